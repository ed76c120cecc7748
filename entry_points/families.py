"""What single_domain, multi_domain and suite share: any model family, or conditions of a file."""

from pathlib import Path
from typing import TYPE_CHECKING

from dinomaly_hd.config.base import doc
from dinomaly_hd.config.presets import MODELS, Fields, any_of
from dinomaly_hd.config.resolve import Names, Numbers, OrAuto
from dinomaly_hd.config.run import ALL_DOMAINS, SIMULATED, DataConfig
from dinomaly_hd.errors import ConfigError
from entry_points.common import PluginOptions, RunOptions, Start

if TYPE_CHECKING:
    from dinomaly_hd.experiments.trials import Trial

NO_FILE = "none"
EVERY = DataConfig().domain_names
PER_TRIAL = ("seed", "domains", "train_domains", "stop_step", "start_from", "use_topk")
"""Values of a run that come from the trial."""
INSTEAD = {"domains": "source_domain", "train_domains": "source_domain", "variant": "model_type"}


class ConditionOptions(RunOptions, PluginOptions):
    conditions_file: str = doc(NO_FILE, "JSON or YAML with conditions, which then say models and domains")
    condition: OrAuto[Names] = doc(None, "names of conditions in the file; auto: all of them")
    seeds: OrAuto[Numbers] = doc(  # type: ignore[assignment]
        None, "comma-separated; auto: the condition's or 42; five: 42,43,44,123,456"
    )


class FamilyOptions(ConditionOptions):
    model_type: Names = doc(
        ("dinomaly",),
        "dinomaly, patchcore, draem, draem_sevnet, row_evidence, trivial, or a variant; several are compared "
        "with the first, changes behind colons: patchcore,patchcore:context=2,draem:fault_source=band",
    )
    source_domain: Names = doc(("A",), "the domain trained on; several, or all, are trained one by one")


class TransferOptions(FamilyOptions):
    domains: Names = doc(EVERY, "all domains there are")
    target_domains: str = doc(ALL_DOMAINS, "domains that are tested beside the source; all: the other ones")


def family_fields() -> Fields:
    """Return what an entry point of any family takes: whatever one has, and the trial does not say."""
    return any_of(MODELS, without=PER_TRIAL)


def trials_of(start: Start[FamilyOptions]) -> "list[Trial]":
    """Return the trials that flags ask for: models x sources x seeds, or the conditions of a file."""
    from dinomaly_hd.experiments import trials

    options, given = start.options, start.asked.given
    transfer = options if isinstance(options, TransferOptions) else None
    if options.conditions_file in (NO_FILE, ""):
        if options.condition is not None:
            names = ",".join(options.condition)
            raise ConfigError(f"condition={names}: give the conditions_file that it stands in")
        every, targets = _every(start), transfer.target_domains if transfer else None
        sources = options.source_domain
        if "source_domain" not in given and not set(sources) <= set(every):
            sources = every[:1]  # there is no A
        chosen = trials.conditions_of_flags(options.model_type, sources, every, targets=targets)
    else:
        for name in ("model_type", "source_domain", "domains", "target_domains"):
            if name in given:
                raise ConfigError(f"{name} and conditions_file: the condition says it; leave one out")
        chosen = trials.conditions_of_file(Path(options.conditions_file), options.condition)
        trials.check_comparable(chosen, with_targets=transfer is not None)
    return trials.trials_of(chosen, options.seeds, start.asked.values)


def _every(start: Start[FamilyOptions]) -> tuple[str, ...]:
    """Return all domains: those given, else the usual four, else those that the data root holds."""
    options, root = start.options, start.asked.values.get("data_root", SIMULATED)
    usual = options.domains if isinstance(options, TransferOptions) else EVERY
    if root == SIMULATED or "domains" in start.asked.given:
        return usual
    from dinomaly_hd.data.tree import found_domains

    return found_domains(Path(root).expanduser(), usual=usual) or usual
