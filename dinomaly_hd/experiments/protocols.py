"""The experiments: what is run on equal terms, which question that answers, and how runs are put together.

Members of a comparison differ in one thing; all differences are to the first, or to what is named.
"""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import resources
from typing import Any

from dinomaly_hd.config.base import with_values
from dinomaly_hd.config.run import ALL_DOMAINS, EncoderConfig, RunConfig, TrainingConfig
from dinomaly_hd.errors import ConfigError, nearest
from dinomaly_hd.evaluation.comparison_members import MemberRun
from dinomaly_hd.evaluation.comparison_pages import Question
from dinomaly_hd.evaluation.transfer import FROM
from dinomaly_hd.experiments.as_jobs import check_for_jobs, run_as_jobs
from dinomaly_hd.experiments.checks import with_found_domains
from dinomaly_hd.experiments.comparison import ONE_REPORT, Done, Member, Protocol, member, run_comparison
from dinomaly_hd.experiments.members import SINGLE, UNIFIED, Joined, join_domains, joined
from dinomaly_hd.experiments.run import Outcome, asked_domains, execute
from dinomaly_hd.experiments.trials import Trial
from dinomaly_hd.jobs.engines import ONE_SLOT
from dinomaly_hd.jobs.job import Slots
from dinomaly_hd.runs.folder import Context

# Settings in which model families differ by nature.
BY_NATURE = (
    "model_type", "variant", "encoder_digest", *EncoderConfig.model_fields, *TrainingConfig.model_fields,
)  # fmt: skip
START, OWN = "unified", "fine-tuned, own domain"
MODES = {"multiclass": (True, False), "singleclass": (False, True), "compare": (True, True)}
REPORTS = "reports"

WORDS = resources.files("dinomaly_hd.evaluation") / "templates" / "questions.toml"


def question_of(kind: str) -> Question:
    words = tomllib.loads(WORDS.read_text("utf-8"))[kind]
    compared = (*(BY_NATURE if words.get("families") else ()), *words.get("compared", ()))
    own = {name: words[name] for name in ("reference", "place") if name in words}
    return Question(words["title"], words["text"], compared, **own)


def run_mode(run: RunConfig, context: Context, *, mode: str, seeds: Sequence[int]) -> Done:
    """Run ``multiclass`` (one model), ``singleclass`` (one a domain) or ``compare``, with each seed."""
    if mode not in MODES:
        raise ConfigError(f"mode={mode!r}: unknown.{nearest(mode, MODES)}")
    unified, single = MODES[mode]
    if single and run.data.train_domains != ALL_DOMAINS:
        raise ConfigError(
            f"train_domains={run.data.train_domains}: mode={mode} trains a model on each domain; leave it out"
        )
    members, run = [], with_found_domains(run)
    for seed in seeds:
        seeded, suffix = with_values(run, {"seed": seed}), f"_seed{seed}" if len(seeds) > 1 else ""
        members += [Member(UNIFIED, seeded, f"{UNIFIED}{suffix}")] if unified else []
        for domain in run.data.domain_names if single else ():
            own = with_values(seeded, {"domains": domain})
            members.append(Member(SINGLE, own, f"{SINGLE}_{domain}{suffix}"))
    question = question_of("multiclass")
    question = question if mode == "compare" else question._replace(reference=None)
    return run_comparison(members, context, Protocol(mode, question, gather=join_domains))


def _run_each(
    kind: str,
    things: Sequence[Any],
    seeds: Sequence[int],
    context: Context,
    *,
    build: Callable[[Any, int], RunConfig],
    slots: Slots = ONE_SLOT,
) -> Done:
    """Run everything with every seed, seed by seed; all are compared with the first.

    ``build`` makes a member's run. One slot runs them one after another in this process, more as jobs that
    share the machine's GPUs or cores.
    """
    question, name = question_of(kind), "step {}" if kind == "steps" else "{}"
    if kind == "ablation":
        title = f"Ablation of {len(things)} configs, seeds {', '.join(map(str, seeds))}"
        question = question._replace(title=title)
    members = [member(name.format(one), build(one, seed)) for seed in seeds for one in things]
    protocol = Protocol(kind, question)
    if slots != ONE_SLOT:
        checked = check_for_jobs(members, context, slots=slots)
        protocol = protocol._replace(run_members=partial(run_as_jobs, checked=checked, slots=slots))
    return run_comparison(members, context, protocol)


# Configs; encoders; ascending numbers of steps, each of which goes on where the one before it stopped.
run_ablation, run_encoders, run_steps = (
    partial(_run_each, kind) for kind in ("ablation", "encoders", "steps")
)


def run_single_domain(trials: Sequence[Trial], context: Context) -> Done | None:
    """Train and test every trial's model on its own domain; several are compared, model by model.

    Several sources of one model and seed count as one member, tested on all their domains.
    """
    members = [member(trial.model, trial.run) for trial in trials]
    protocol = Protocol("single_domain", question_of("single_domain"))
    if len({trial.source for trial in trials}) > 1:
        pairs = zip(members, trials, strict=True)
        members = [one._replace(place=f"{one.place}_{trial.source}") for one, trial in pairs]
        protocol = protocol._replace(gather=partial(join_domains, labels={trial.model for trial in trials}))
    return _compare_several(members, context, protocol)


def run_multi_domain(trials: Sequence[Trial], context: Context) -> Done | None:
    """Train every trial's model on its source and test it on all its domains; several are compared."""
    many = len({trial.source for trial in trials}) > 1
    members = [
        member(f"{trial.model}{FROM}{trial.source}" if many else trial.model, trial.run) for trial in trials
    ]
    return _compare_several(members, context, Protocol("multi_domain", question_of("multi_domain")))


def _compare_several(members: Sequence[Member], context: Context, protocol: Protocol) -> Done | None:
    if len(members) > 1:
        return run_comparison(members, context, protocol)
    execute(members[0].run, context)
    return None


def run_finetune(
    runs: Sequence[RunConfig],
    context: Context,
    *,
    steps: int,
    learning_rate: float,
    domains: Sequence[str] | None,
) -> Done:
    """Train every run (alike but for seeds) on all its domains, then fine-tune each on each domain alone.

    A fine-tuning has a tenth of its steps as warm-up and a cosine to a tenth of its rate.
    """
    known = runs[0].data.domain_names
    chosen = known if domains is None else tuple(domains)
    if not chosen or len(set(chosen)) < len(chosen):
        raise ConfigError(f"finetune_domains: expected one or more of {', '.join(known)}, each once")
    for domain in chosen:
        if domain not in known:
            raise ConfigError(f"finetune_domains: {domain!r} is not trained on.{nearest(domain, known)}")
    values = {"max_steps": steps, "learning_rate": learning_rate, "warmup_steps": steps // 10}

    def then(outcomes: dict[Member, Outcome]) -> list[Member]:
        tunings = []
        for start, outcome in outcomes.items():
            for domain in chosen:
                own = {**values, "train_domains": domain, "start_from": str(outcome.folder)}
                tunings.append(member(f"fine-tuned on {domain}", with_values(start.run, own)))
        return tunings

    protocol = Protocol(
        "finetune", question_of("finetune"), gather=_with_own_domains, then=then, detail=f"{values} {chosen}"
    )
    return run_comparison([member(START, run) for run in runs], context, protocol)


def _with_own_domains(members: list[MemberRun]) -> Joined:
    """Put in, after the unified runs, each seed's own domains as one run; named where a domain is missing."""
    unified = [one for one in members if one.label == START]
    tuned = [one for one in members if one.label != START]
    joint, lacking = [], {}
    for start in unified:
        parts = [one for one in tuned if one.seed == start.seed]
        if len(parts) == len(start.result["domains"]):
            joint.append(joined(parts, label=OWN, data_digest=start.result["data_digest"]))
        elif parts:
            lacking[f"{OWN}, seed {start.seed}"] = "not every domain has a finished fine-tuning"
    return [*unified, *joint, *tuned], lacking


def run_suite(members: Sequence[Member], context: Context, *, slots: Slots) -> Done:
    """Run members as jobs and report on those of each set of domains."""
    checked = check_for_jobs(members, context, slots=slots)
    protocol = Protocol(
        "suite",
        question_of("suite"),
        run_members=partial(run_as_jobs, checked=checked, slots=slots),
        places=report_places({one: ready.manifest.digest for one, ready in checked.items()}),
    )
    return run_comparison(members, context, protocol)


def report_places(digests: Mapping[Member, str]) -> dict[Member, str]:
    """Return the report's folder for each member: one for each set of data, none where there is one set.

    Members can be compared where they learn from and are tested on the same. ``digests`` are those of the
    data that a member reads; its report's folder is named by the domains.
    """
    found: dict[Member, str] = {}
    numbered: dict[tuple[str, tuple[str, ...]], str] = {}
    for one, digest in digests.items():
        place, data = asked_domains(one.run), (digest, *one.run.data.train_domain_names)
        number = 1 + sum(known == place for known, theirs in numbered if theirs != data)
        numbered.setdefault((place, data), place if number == 1 else f"{place}_data_{number}")
        found[one] = f"{REPORTS}/{numbered[place, data]}"
    return found if len(numbered) > 1 else dict.fromkeys(digests, ONE_REPORT)
