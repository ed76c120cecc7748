"""The experiments: what is run on equal terms, which question that answers, and how runs are put together.

Members of a comparison differ in one thing; all differences are to the first, or to what is named.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from dinomaly_hd.config import ALL_DOMAINS, EncoderConfig, RunConfig, TrainingConfig, with_values
from dinomaly_hd.errors import ConfigError, nearest
from dinomaly_hd.evaluation.comparison_members import MemberRun
from dinomaly_hd.evaluation.transfer import FROM
from dinomaly_hd.experiments.as_jobs import Checked, check_for_jobs, run_as_jobs
from dinomaly_hd.experiments.comparison import ONE_REPORT, Done, Member, Protocol, member, run_comparison
from dinomaly_hd.experiments.members import SINGLE, UNIFIED, Joined, join_domains, joined
from dinomaly_hd.experiments.reporting import Question
from dinomaly_hd.experiments.run import Outcome, execute
from dinomaly_hd.jobs.engines import ONE_SLOT
from dinomaly_hd.jobs.job import Slots
from dinomaly_hd.runs.folder import Context

BY_NATURE = (
    "model_type", "variant", "encoder_digest", *EncoderConfig.model_fields, *TrainingConfig.model_fields,
)  # fmt: skip
"""Settings in which model families differ by nature."""
START, OWN = "unified", "fine-tuned, own domain"
MODES = {"multiclass": (True, False), "singleclass": (False, True), "compare": (True, True)}
REPORTS = "reports"

QUESTIONS = {
    "ablation": Question(
        "Ablation",
        "Which of these changes to Dinomaly find more damaged teeth? Every config starts from the same "
        "weights and sees the same images in the same order; class tokens are removed in all.",
    ),
    "encoders": Question(
        "Encoders at equal settings",
        "Which frozen encoder serves Dinomaly best here? All else is equal: size of the images, steps, "
        "seeds.",
        compared=("encoder", "encoder_digest"),
    ),
    "steps": Question(
        "One training, evaluated at several numbers of steps",
        "How long should one train? All rows of a seed are points of one training, whose learning rate falls "
        "until the last of them: an earlier point is not what a training of that length would have reached.",
        compared=("stop_step",),
    ),
    "multiclass": Question(
        "One model for all domains, or one a domain",
        "Does training on all domains help a domain, the hard one first of all? Both have the same settings "
        "and number of steps, so a single-domain model sees its images more often.",
        compared=("domains",),
        reference=SINGLE,
    ),
    "single_domain": Question(
        "Models on single domains",
        "Which model finds the faults of a domain when it has seen only normal images of that domain?",
        compared=BY_NATURE,
    ),
    "multi_domain": Question(
        "From one domain to others",
        "How much of what a model finds on the domain it was trained on does it find on others, of which it "
        "has seen no image?",
        compared=(*BY_NATURE, "train_domains"),
    ),
    "finetune": Question(
        "Fine-tuning one domain after unified training",
        "What does a domain gain when the unified model is trained on for a while on this domain alone, and "
        f'what do the others lose? Row "{OWN}" has each domain from the model that was fine-tuned on it: its '
        'difference to the unified model is the gain. The rows "fine-tuned on X" show one model each on all '
        "domains: what they lose elsewhere is the forgetting.",
        compared=("train_domains", "max_steps", "learning_rate", "warmup_steps"),
        reference=START,
    ),
    "suite": Question(
        "Suite of conditions",
        "How do these conditions do on the same domains? All differences are to the first one.",
        compared=BY_NATURE,
    ),
}


class Trial(NamedTuple):
    """One model on one source domain with one seed."""

    model: str
    source: str
    run: RunConfig


def run_mode(run: RunConfig, context: Context, *, mode: str, seeds: Sequence[int]) -> Done:
    """Run ``multiclass`` (one model), ``singleclass`` (one a domain) or ``compare``, with each seed."""
    if mode not in MODES:
        raise ConfigError(f"mode={mode!r}: unknown.{nearest(mode, MODES)}")
    unified, single = MODES[mode]
    if single and run.data.train_domains != ALL_DOMAINS:
        raise ConfigError(
            f"train_domains={run.data.train_domains}: mode={mode} trains a model on each domain; leave it out"
        )
    members = []
    for seed in seeds:
        seeded, suffix = with_values(run, {"seed": seed}), f"_seed{seed}" if len(seeds) > 1 else ""
        members += [Member(UNIFIED, seeded, f"{UNIFIED}{suffix}")] if unified else []
        for domain in run.data.domain_names if single else ():
            own = with_values(seeded, {"domains": domain})
            members.append(Member(SINGLE, own, f"{SINGLE}_{domain}{suffix}"))
    question = QUESTIONS["multiclass"]
    question = question if mode == "compare" else question._replace(reference=None)
    return run_comparison(members, context, Protocol(mode, question, gather=join_domains))


def run_ablation(
    configs: Sequence[str],
    seeds: Sequence[int],
    context: Context,
    *,
    build: Callable[[str, int], RunConfig],
    slots: Slots = ONE_SLOT,
) -> Done:
    """Run every config with every seed, seed by seed.

    One slot runs them one after another in this process, more as jobs that share the machine's GPUs or cores.
    """
    members = [member(config, build(config, seed)) for seed in seeds for config in configs]
    title = f"Ablation of {len(configs)} configs, seeds {', '.join(map(str, seeds))}"
    protocol = Protocol("ablation", QUESTIONS["ablation"]._replace(title=title))
    if slots != ONE_SLOT:
        checked = check_for_jobs(members, context, slots=slots)
        protocol = protocol._replace(run_members=partial(run_as_jobs, checked=checked, slots=slots))
    return run_comparison(members, context, protocol)


def run_encoders(
    encoders: Sequence[str], seeds: Sequence[int], context: Context, *, build: Callable[[str, int], RunConfig]
) -> Done:
    """Train with every encoder and seed; all are compared with the first encoder."""
    members = [member(encoder, build(encoder, seed)) for seed in seeds for encoder in encoders]
    return run_comparison(members, context, Protocol("encoders", QUESTIONS["encoders"]))


def run_steps(
    steps: Sequence[int], seeds: Sequence[int], context: Context, *, build: Callable[[int, int], RunConfig]
) -> Done:
    """Train every seed once to the last step and evaluate it at each; ``build`` makes the run of a step.

    Each evaluation is a member that goes on where the one before it stopped.
    """
    members = [member(f"step {step}", build(step, seed)) for seed in seeds for step in sorted(steps)]
    return run_comparison(members, context, Protocol("steps", QUESTIONS["steps"]))


def run_single_domain(trials: Sequence[Trial], context: Context) -> Done | None:
    """Train and test every trial's model on its own domain; several are compared, model by model.

    Several sources of one model and seed count as one member, tested on all their domains.
    """
    if len(trials) == 1:
        execute(trials[0].run, context)
        return None
    members = [member(trial.model, trial.run) for trial in trials]
    protocol = Protocol("single_domain", QUESTIONS["single_domain"])
    if len({trial.source for trial in trials}) > 1:
        pairs = zip(members, trials, strict=True)
        members = [one._replace(place=f"{one.place}_{trial.source}") for one, trial in pairs]
        protocol = protocol._replace(gather=partial(join_domains, labels={trial.model for trial in trials}))
    return run_comparison(members, context, protocol)


def run_multi_domain(trials: Sequence[Trial], context: Context) -> Done | None:
    """Train every trial's model on its source and test it on all its domains; several are compared."""
    if len(trials) == 1:
        execute(trials[0].run, context)
        return None
    many = len({trial.source for trial in trials}) > 1
    members = [
        member(f"{trial.model}{FROM}{trial.source}" if many else trial.model, trial.run) for trial in trials
    ]
    return run_comparison(members, context, Protocol("multi_domain", QUESTIONS["multi_domain"]))


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
        "finetune", QUESTIONS["finetune"], gather=_with_own_domains, then=then, detail=f"{values} {chosen}"
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
        QUESTIONS["suite"],
        run_members=partial(run_as_jobs, checked=checked, slots=slots),
        places=report_places(checked),
    )
    return run_comparison(members, context, protocol)


def report_places(checked: Mapping[Member, Checked]) -> dict[Member, str]:
    """Return the report's folder for each member: one for each set of data, none where there is one set."""
    places: dict[tuple[str, tuple[str, ...]], str] = {}
    for one in checked.values():
        number = 1 + sum(place == one.place for place, data in places if data != one.data)
        places.setdefault((one.place, one.data), one.place if number == 1 else f"{one.place}_data_{number}")
    if len(places) <= 1:
        return dict.fromkeys(checked, ONE_REPORT)
    return {member: f"{REPORTS}/{places[one.place, one.data]}" for member, one in checked.items()}
