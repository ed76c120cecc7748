"""One run from config to finished folder: check, train, evaluate, record."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dinomaly_hd import provenance
from dinomaly_hd.config.base import flatten
from dinomaly_hd.config.dinomaly import PLUGINS, DinomalyConfig
from dinomaly_hd.config.families import PatchCoreConfig
from dinomaly_hd.config.run import EncoderConfig, RunConfig, TrainingConfig
from dinomaly_hd.data.features import ImageStore
from dinomaly_hd.errors import CheckpointError
from dinomaly_hd.experiments.checks import Ready, Work, check
from dinomaly_hd.experiments.evaluate import evaluate
from dinomaly_hd.experiments.prepare import fill_bank, hooks, prepare, training_data
from dinomaly_hd.experiments.record import record
from dinomaly_hd.files import publish, publish_json
from dinomaly_hd.models.encoders import target_layers
from dinomaly_hd.models.patchcore.features import check_layers
from dinomaly_hd.runs.folder import (
    CHECKPOINTS,
    Context,
    RunFolder,
    finished_runs,
    open_folder,
    read_results,
    read_state,
)
from dinomaly_hd.runs.journal import JOURNAL, Journal
from dinomaly_hd.runs.pages import shown_of_detectors
from dinomaly_hd.runs.sync import complete_finished
from dinomaly_hd.runs.tracker import tracked
from dinomaly_hd.training.checkpoint import Checkpoint, check_belongs, newest, save
from dinomaly_hd.training.loop import named_when_exhausted, resolve_device, train, way_out

KEPT_IMAGES_BYTES = 2 * 1024**3
PLUGIN = "plugin"
LONGEST_NAME = 200


class Outcome(NamedTuple):
    """A finished run: its folder, its ``results.json`` as data, and its MLflow run if there is one."""

    folder: Path
    results: dict[str, Any]
    mlflow_run_id: str | None


def execute(run: RunConfig, context: Context) -> Outcome:
    """Train, evaluate and record one run; goes on with an interrupted one of the same configuration.

    A comparison's member (``context.folder``) that any run here has finished already, with the same
    configuration, data, weights and code, is not run again. What ends the run is raised once its folder and
    its MLflow run say so.
    """
    torch.backends.cudnn.deterministic = True
    ready = check(run, context)
    done = _finished_before(ready, context) if context.folder and context.resume != "never" else None
    if done is not None:
        context.say(f"already finished: {done.folder}")
        return done
    with open_folder(
        context.result_dir,
        variant=run.model.variant,
        seed=run.seed,
        config_hash=ready.config_hash,
        resume=context.resume,
        folder=context.folder,
        wait_s=context.lock_wait_s,
        tick=context.guard.check,
    ) as folder:
        done = _finished_before(ready, context) if folder.finished else None
        if done is not None:
            return done
        with at_work(ready, context, folder) as work:
            describe(work)
            scorer = prepare(work)
            if isinstance(work.run.training, TrainingConfig):
                data, told = training_data(work, scorer), hooks(work)
                trained = train(scorer.detector, run=work.run, data=data, hooks=told, resume=work.checkpoint)
            else:
                trained = fill_bank(work, scorer)
            found = evaluate(work, scorer, trained)
            results = record(work, trained, found)
        return Outcome(folder.path, results, work.tracker.run_id)


def _finished_before(ready: Ready, context: Context) -> Outcome | None:
    """Return a finished run of this configuration and code, the comparison's own first.

    Its own is completed in MLflow, in case the process that finished it was killed before that was done.
    """
    assert context.folder is not None, "a run by itself gets a folder of its own"
    for place in (context.folder, context.result_dir):
        folder = finished_runs(place, code=provenance.code_digest()).get(ready.config_hash)
        if folder is not None:
            if folder == context.folder:
                complete_finished(folder, root=context.root, say=context.say)
            return outcome_in(folder)
    return None


def outcome_in(folder: Path) -> Outcome:
    return Outcome(folder, read_results(folder) or {}, read_state(folder).get("mlflow_run_id"))


@contextmanager
def at_work(ready: Ready, context: Context, folder: RunFolder) -> Iterator[Work]:
    """Open a run in its locked folder and in MLflow, and end it in both: FINISHED, KILLED or FAILED.

    A folder that is another run's stays as it is: a CheckpointError.
    """
    own = _own_checkpoint(ready, context, folder)
    folder.set_state(status="RUNNING", training_hash=ready.training_hash, code=provenance.code_digest())
    checkpoint = own or _donated_checkpoint(ready, context)
    if own is None and checkpoint is not None:
        save(folder.path / CHECKPOINTS, checkpoint)
    journal = Journal(folder.path / JOURNAL)
    journal.truncate_after(checkpoint.step - 1 if checkpoint else -1)
    if checkpoint and checkpoint.patience.get("due"):
        journal.keep_first_of(checkpoint.step - 1)
    training, device = ready.run.training, resolve_device(ready.run.training.gpu)
    tags = {  # what runs are grouped by in MLflow
        "variant": ready.run.model.variant,
        "config": ready.run.model.variant,
        "domains": short_domains(ready.manifest.domains),
        "kind": "train",
        **context.tags,
    }
    name = run_name(ready.run, label=tags["config"])
    batch_size = training.batch_size if isinstance(training, TrainingConfig) else None
    with (
        tracked(folder, context, name=name, tags=tags, system_metrics=True) as tracker,
        named_when_exhausted(device, hint=way_out(batch_size)),
    ):
        yield Work(
            ready=ready,
            context=context,
            name=name,
            folder=folder.path,
            tracker=tracker,
            device=device,
            store=ImageStore(ready.manifest, keep_bytes=KEPT_IMAGES_BYTES),
            checkpoint=checkpoint,
        )


def _own_checkpoint(ready: Ready, context: Context, folder: RunFolder) -> Checkpoint | None:
    found = newest(folder.path / CHECKPOINTS)
    for line in found.unreadable:
        context.say(f"warning: {line}; using the one before")
    if found.checkpoint is not None:
        check_belongs(
            found.checkpoint,
            config=ready.run.to_json(),
            data_digest=ready.manifest.digest,
            encoder_digest=ready.weights.digest,
        )
    elif folder.state().get("config_hash") != ready.config_hash:
        raise CheckpointError(
            f"{folder.path}: belongs to another run and holds no readable checkpoint; "
            "resume=never starts a new one"
        )
    return found.checkpoint


def _donated_checkpoint(ready: Ready, context: Context) -> Checkpoint | None:
    """Return the latest checkpoint of a run whose training began as this one's does."""
    wanted = {"training_hash": ready.training_hash, "code": provenance.code_digest()}
    donors = [donor for donor in context.donors if wanted.items() <= read_state(donor).items()]
    found = [newest(donor / CHECKPOINTS).checkpoint for donor in donors]
    usable = [one for one in found if one is not None and one.step <= ready.run.training.last_step]
    latest = max(usable, key=lambda checkpoint: checkpoint.step, default=None)
    return latest and latest._replace(config=ready.run.to_json())


def describe(work: Work) -> None:
    """Record what the run is, in its folder and in MLflow, before it begins."""
    ready, context, tracker = work.ready, work.context, work.tracker
    manifest, settings = ready.manifest, work.folder / "experiment_settings.json"
    publish_json(
        settings,
        {
            "command": context.command,
            "entry_point": context.entry_point,
            "config": json.loads(work.run.to_json()),
            "config_hash": ready.config_hash,
            "data_root": str(manifest.root),
            "data_digest": manifest.digest,
            "condition_rule": manifest.condition_rule,
            "encoder_digest": ready.weights.digest,
        },
    )
    context.say(f"data: {manifest.root}, {len(manifest.records)} images; {manifest.condition_rule}")
    context.say(f"run folder: {work.folder}")
    if ready.chooses_by_test:
        context.say("warning: validate_on=source_test: test labels choose, figures are optimistic")
    tracker.params(_shown_params(work))
    tracker.artifact(settings)
    if plugin := getattr(work.run.model, "plugin", ""):  # so that the run can be gone on with and scored with
        copy = work.folder / PLUGIN / plugin.rpartition(":")[0]
        publish(copy, lambda stream: stream.write(PLUGINS[plugin]))
        tracker.artifact(copy, folder=PLUGIN)
    diff = provenance.git_diff(context.root)
    if diff:
        tracker.add("text", text=diff, file="uncommitted.diff")
    work.dataset("train", use="training")
    domains = short_domains(manifest.domains)
    which = f"tags.kind = 'train' and tags.domains = {domains!r}"
    tracker.view(which, name=f"Runs on {domains}", **shown_of_detectors(manifest.domains))
    work.note("")


def _shown_params(work: Work) -> dict[str, Any]:
    """Return every value of the run once, as it was resolved here."""
    kept = "files" if work.feature_place is not None else "memory"
    flat, model, source = flatten(work.run), work.run.model, work.run.encoder
    layers: Sequence[int] = ()
    if isinstance(source, EncoderConfig):
        if isinstance(model, DinomalyConfig):
            layers = target_layers(source, model.target_layers)
        elif isinstance(model, PatchCoreConfig):
            layers = check_layers(source, model.layers)
    resolved = {
        **dict.fromkeys(("target_layers", "layers"), ",".join(map(str, layers))),
        "gpu": str(work.device),
        "encoder_weights": work.ready.weights.source,
        "conditions": work.ready.manifest.condition_rule,
        "cache": kept if flat["cache"] == "auto" else flat["cache"],
    }
    return {**flat, **{name: value for name, value in resolved.items() if name in flat}}


def run_name(run: RunConfig, *, label: str) -> str:
    """Return ``{variant}-{domains}-s{seed}``, behind the label of a comparison's member: MLflow's charts name
    runs by nothing else.
    """
    what = run.model.variant
    says_enough = label.startswith(what) or ":" in label
    what = label if says_enough else f"{label}-{what}"
    return f"{what[:LONGEST_NAME]}-{short_domains(run.data.domain_names)}-s{run.seed}"


def short_domains(names: tuple[str, ...]) -> str:
    """Return "ABCD" for domain_A .. domain_D; longer names are joined by "+"."""
    short = [name.removeprefix("domain_") for name in names]
    return ("" if all(len(name) == 1 for name in short) else "+").join(short)


def asked_domains(run: RunConfig) -> str:
    """Return "ABCD", or "A_to_BCD" where others are tested than are trained on."""
    trained = run.data.train_domain_names
    others = tuple(name for name in run.data.domain_names if name not in trained)
    return short_domains(trained) + (f"_to_{short_domains(others)}" if others else "")
