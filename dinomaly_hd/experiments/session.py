"""One run at work: its folder, journal and tracker, and what MLflow is told of it."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from dinomaly_hd import provenance
from dinomaly_hd.config import SOURCE_TEST, RunConfig, TrainingConfig, flatten
from dinomaly_hd.data.store import ImageStore
from dinomaly_hd.errors import CheckpointError, OutputError
from dinomaly_hd.runs.context import Context
from dinomaly_hd.experiments.checks import Ready
from dinomaly_hd.runs.folder import CHECKPOINTS, IN_MLFLOW, RunFolder, read_state
from dinomaly_hd.files import publish_json
from dinomaly_hd.runs.journal import Journal
from dinomaly_hd.names import as_markdown
from dinomaly_hd.runs.store import default_uri
from dinomaly_hd.runs.tracker import Status, Tracker
from dinomaly_hd.training.checkpoint import Checkpoint, check_belongs, newest
from dinomaly_hd.training.loop import resolve_device

Positions = npt.NDArray[np.int64]
KEPT_IMAGES_BYTES = 2 * 1024**3
START_TIMEOUT_S, CLOSE_TIMEOUT_S = 60.0, 120.0
NO_LABEL = "-"
LONGEST_NAME = 200


class Session:
    """The run folder is the truth, MLflow a copy (design.md); both are opened and closed here.

    Attributes:
        checkpoint: The newest readable one, None at a first start.
        donated: Whether it is another run's, whose training began as this one's does.
    """

    def __init__(self, ready: Ready, context: Context, folder: RunFolder) -> None:
        self.ready, self.context, self.folder = ready, context, folder
        self.run, self.manifest, self.split = ready.run, ready.manifest, ready.split
        self.device = resolve_device(self.run.training.gpu)
        self.store = ImageStore(self.manifest, keep_bytes=KEPT_IMAGES_BYTES)
        own = self._newest_checkpoint()  # another run's folder is refused here and stays as it is
        folder.set_state(training_hash=ready.training_hash, code=provenance.code_digest())
        self.checkpoint = own or self._donated_checkpoint()
        self.donated = own is None and self.checkpoint is not None
        self.journal = Journal(folder.path / "journal.jsonl")
        self.journal.truncate_after(self.checkpoint.step - 1 if self.checkpoint else -1)
        if self.checkpoint and self.checkpoint.patience.get("due"):
            self.journal.keep_first_of(self.checkpoint.step - 1)
        self.tracker = Tracker(
            self.journal,
            uri=default_uri(context.root),
            experiment=context.experiment,
            run_name=context.run_name or run_name(self.run, label=context.tags.get("config", NO_LABEL)),
            tags=self._tags(),
            root=context.root,
            parent_run_id=context.parent_run_id,
        )

    @property
    def chooses_by_test(self) -> bool:
        """Whether test labels choose the weights, as only ``validate_on=source_test`` asks for."""
        training = self.run.training
        return isinstance(training, TrainingConfig) and training.validate_on == SOURCE_TEST

    def _newest_checkpoint(self) -> Checkpoint | None:
        found = newest(self.folder.path / CHECKPOINTS)
        for line in found.unreadable:
            self.context.say(f"warning: {line}; using the one before")
        if found.checkpoint is not None:
            check_belongs(
                found.checkpoint,
                config=self.run.to_json(),
                data_digest=self.manifest.digest,
                encoder_digest=self.ready.weights.digest,
            )
            return found.checkpoint
        if self.folder.state().get("config_hash") != self.ready.config_hash:
            raise CheckpointError(
                f"{self.folder.path}: belongs to another run and holds no readable checkpoint; "
                "resume=never starts a new one"
            )
        return None

    def _donated_checkpoint(self) -> Checkpoint | None:
        """Return the latest checkpoint of a run whose training began as this one's does."""
        wanted = {"training_hash": self.ready.training_hash, "code": provenance.code_digest()}
        usable = []
        for donor in self.context.donors:
            if wanted.items() <= read_state(donor).items():
                found = newest(donor / CHECKPOINTS).checkpoint
                if found is not None and found.step <= self.run.training.last_step:
                    usable.append(found)
        newest_of_all = max(usable, key=lambda checkpoint: checkpoint.step, default=None)
        return newest_of_all and newest_of_all._replace(config=self.run.to_json())

    def open(self) -> None:
        """Record what the run is, in its folder and in MLflow."""
        settings = {
            "command": self.context.command,
            "entry_point": self.context.entry_point,
            "config": json.loads(self.run.to_json()),
            "config_hash": self.ready.config_hash,
            "data_root": str(self.manifest.root),
            "data_digest": self.manifest.digest,
            "condition_rule": self.manifest.condition_rule,
            "encoder_digest": self.ready.weights.digest,
        }
        self.folder.set_state(**{IN_MLFLOW: False})
        path = self.folder.path / "experiment_settings.json"
        publish_json(path, settings)
        self.context.say(
            f"data: {self.manifest.root}, {len(self.manifest.records)} images; {self.manifest.condition_rule}"
        )
        self.context.say(f"run folder: {self.folder.path}")
        if self.chooses_by_test:
            self.context.say("warning: validate_on=source_test: test labels choose, figures are optimistic")
        run_id = self.tracker.start(timeout_s=START_TIMEOUT_S)
        if run_id is not None:
            self.folder.set_state(mlflow_run_id=run_id)
        self.tracker.artifact(path)
        self._describe()

    def close(self, status: Status, *, error: str | None = None) -> None:
        """End the run in both places and say where to look."""
        if error is not None:
            self.tracker.tags({"error": error})
        delivered = close_both(self.folder, self.tracker, status, say=self.context.say)
        if delivered and status == "FINISHED":
            self.context.say(f"MLflow run:   {self.tracker.url()}")
            if self.context.parent_run_id is None:
                self.context.say(f"all its runs: {self.tracker.experiment_url()}")
                self.context.say("              (`make ui` starts these pages)")
        self.context.say(f"run folder:   {self.folder.path}")

    # What training reports to (training.task.Reporter).

    def metrics(self, values: Any, *, step: int) -> None:
        """Log metrics of a step to the journal, which the tracker copies."""
        self.tracker.metrics(values, step=step)
        if self.context.observe is not None:
            self.context.observe(values, step)

    def sync(self) -> None:
        """Put the journal on the disk before a checkpoint that relies on it."""
        self.journal.sync()

    def _describe(self) -> None:
        flat = flatten(self.run)
        self.tracker.params({**flat, **{f"cfg/{name}": value for name, value in flat.items()}})
        self.tracker.text(self.run.to_json(), file="config.json")
        diff = provenance.git_diff(self.context.root)
        if diff:
            self.tracker.text(diff, file="uncommitted.diff")
        for split, use in (("train", "training"), ("test", "evaluation")):
            self.tracker.dataset(
                f"{self.manifest.root.name}-{split}",
                digest=self.manifest.digest,
                count=len(self.manifest.indices(split=split)),
                source=str(self.manifest.root),
                context=use,
            )
        self.describe("")

    def describe(self, results: str) -> None:
        """Set the description that the run's page shows; ``results`` is Markdown."""
        domains = as_markdown(", ".join(self.manifest.domains))
        self.tracker.note(
            f"**{self.run.model.variant}** on {domains}, seed {self.run.seed}\n\n"
            f"{results}Repeat it: `{self.context.command}`\n\n"
            f"Run folder: `{self.folder.path}`\n\nConditions: {self.manifest.condition_rule}"
        )

    def _tags(self) -> dict[str, str]:
        return {
            "variant": self.run.model.variant,
            "config": NO_LABEL,
            "domains": short_domains(self.manifest.domains),
            "kind": "train",
            "sweep": "-",
            "config_hash": self.ready.config_hash,
            "manifest_digest": self.manifest.digest[:16],
            "encoder_digest": self.ready.weights.digest,
            "encoder_weights": self.ready.weights.source,
            "command": self.context.command,
            "run_folder": str(self.folder.path.resolve()),
            **({"validate_on": SOURCE_TEST} if self.chooses_by_test else {}),
            **provenance.git_facts(self.context.root),
            **self.context.tags,
        }


def close_both(folder: RunFolder, tracker: Tracker, status: Status, *, say: Callable[[str], None]) -> bool:
    """End a run in its folder and in MLflow, and return whether MLflow has all of it.

    A folder that cannot be written any more, on a full disk, keeps MLflow from nothing.
    """

    def note(**values: Any) -> None:
        try:
            folder.set_state(**values)
        except OutputError as error:
            say(f"warning: {error}")

    note(status=status)
    delivered = tracker.close(status, timeout_s=CLOSE_TIMEOUT_S)
    if tracker.run_id is not None:
        note(mlflow_run_id=tracker.run_id)  # of a server that was too slow at the start
    note(**{IN_MLFLOW: delivered})
    return delivered


def trained_domains(session: Session) -> set[str]:
    """Return the folder names of the domains trained on."""
    return {session.manifest.records[int(i)].domain for i in session.split.train}


def trained_on(session: Session, positions: Positions) -> Positions:
    """Return those of the positions whose domains are trained on."""
    records, domains = session.manifest.records, trained_domains(session)
    return np.array([i for i in positions if records[int(i)].domain in domains], dtype=np.int64)


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
