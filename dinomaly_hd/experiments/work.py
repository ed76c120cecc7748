"""One run at work: opened here, with its folder, its copy in MLflow and the checkpoint it goes on from."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dinomaly_hd import provenance
from dinomaly_hd.config import ALL_DOMAINS, NO_ENCODER, RunConfig, TrainingConfig
from dinomaly_hd.data.feature_files import FeaturePlace
from dinomaly_hd.data.store import ImageStore
from dinomaly_hd.errors import CheckpointError
from dinomaly_hd.experiments.checks import Ready
from dinomaly_hd.runs.folder import CHECKPOINTS, Context, RunFolder, read_state
from dinomaly_hd.runs.journal import JOURNAL, Journal
from dinomaly_hd.runs.tracker import Tracker, tracked
from dinomaly_hd.training.checkpoint import Checkpoint, check_belongs, newest, save
from dinomaly_hd.training.loop import named_when_exhausted, resolve_device, way_out

KEPT_IMAGES_BYTES = 2 * 1024**3
NO_LABEL = "-"
LONGEST_NAME = 200


@dataclass(frozen=True, kw_only=True)
class Work:
    """A checked run with its surroundings, its folder, what tells MLflow, and its images.

    ``checkpoint`` is where it goes on, None at a first start; ``timing`` fills up as it goes.
    """

    ready: Ready
    context: Context
    folder: Path
    tracker: Tracker
    device: torch.device
    store: ImageStore
    checkpoint: Checkpoint | None
    timing: dict[str, float] = field(default_factory=dict)

    @property
    def run(self) -> RunConfig:
        return self.ready.run

    @property
    def feature_place(self) -> FeaturePlace | None:
        """Where encoder outputs are kept in files: on a GPU encoding anew is faster than reading."""
        cache = self.run.training.cache
        wanted = cache == "files" or (cache == "auto" and self.device.type == "cpu")
        encodes = self.run.encoder.encoder != NO_ENCODER
        return self.context.feature_place if wanted and encodes else None

    def maps_folder(self, domain: str) -> Path:
        """Return where a domain's anomaly maps lie; in a transfer, the source's apart from the targets'."""
        folder = self.folder / "anomaly_maps"
        if self.run.data.train_domains != ALL_DOMAINS:
            folder /= "source" if domain in self.ready.trained_domains else "targets"
        return folder / domain


@contextmanager
def at_work(ready: Ready, context: Context, folder: RunFolder) -> Iterator[Work]:
    """Open a run in its locked folder and in MLflow, and end it in both.

    Raises:
        CheckpointError: The folder is another run's; it stays as it is.
        DinomalyHDError: What was raised inside, once the run is closed as KILLED or FAILED.
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
    name, tags = run_name(ready.run, label=label_of(context)), _tags(ready, context)
    batch_size = training.batch_size if isinstance(training, TrainingConfig) else None
    with (
        tracked(folder, context, name=name, tags=tags, system_metrics=True) as tracker,
        named_when_exhausted(device, hint=way_out(batch_size)),
    ):
        store = ImageStore(ready.manifest, keep_bytes=KEPT_IMAGES_BYTES)
        yield Work(
            ready=ready,
            context=context,
            folder=folder.path,
            tracker=tracker,
            device=device,
            store=store,
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
    usable = []
    for donor in context.donors:
        if wanted.items() <= read_state(donor).items():
            found = newest(donor / CHECKPOINTS).checkpoint
            if found is not None and found.step <= ready.run.training.last_step:
                usable.append(found)
    latest = max(usable, key=lambda checkpoint: checkpoint.step, default=None)
    return latest and latest._replace(config=ready.run.to_json())


def _tags(ready: Ready, context: Context) -> dict[str, str]:
    """Return what runs are grouped by in MLflow, and what tells where one's numbers come from."""
    return {
        "variant": ready.run.model.variant,
        "config": NO_LABEL,
        "domains": short_domains(ready.manifest.domains),
        "kind": "train",
        "sweep": "-",
        "config_hash": ready.config_hash,
        "manifest_digest": ready.manifest.digest[:16],
        "encoder_digest": ready.weights.digest,
        **({"validate_on": "source_test"} if ready.chooses_by_test else {}),
        **context.tags,
    }


def label_of(context: Context) -> str:
    """Return what a run is called in its comparison."""
    return context.tags.get("config", NO_LABEL)


def run_name(run: RunConfig, *, label: str) -> str:
    """Return ``{variant}-{domains}-s{seed}``, behind the label of a comparison's member: MLflow's charts name
    runs by nothing else.
    """
    what = run.model.variant
    if label.startswith(what) or ":" in label:  # says enough by itself
        what = label
    elif label != NO_LABEL:
        what = f"{label}-{what}"
    return f"{what[:LONGEST_NAME]}-{short_domains(run.data.domain_names)}-s{run.seed}"


def short_domains(names: tuple[str, ...]) -> str:
    """Return "ABCD" for domain_A .. domain_D; longer names are joined by "+"."""
    short = [name.removeprefix("domain_") for name in names]
    return ("" if all(len(name) == 1 for name in short) else "+").join(short)
