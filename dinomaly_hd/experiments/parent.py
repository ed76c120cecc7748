"""The MLflow parent and the folder of a comparison, whose members are ordinary runs below it."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from dinomaly_hd import provenance
from dinomaly_hd.config import RunConfig, flatten
from dinomaly_hd.data.features import FeatureMemory
from dinomaly_hd.errors import DinomalyHDError, Interrupted
from dinomaly_hd.experiments.context import Context
from dinomaly_hd.experiments.run_folder import RunFolder, open_run
from dinomaly_hd.experiments.session import CLOSE_TIMEOUT_S, START_TIMEOUT_S, short_domains
from dinomaly_hd.journal import Journal
from dinomaly_hd.tracking import (
    Tracker,
    artifact_page,
    charts_page,
    compare_page,
    default_uri,
    these_runs,
)

REPORT = "report.html"
MOST_LINKED = 40  # runs named one by one in a link, which is part of the 8000 characters of a description


class Parent:
    """A comparison at work; ``member`` gives the surroundings of one of its runs."""

    def __init__(self, folder: RunFolder, tracker: Tracker, context: Context) -> None:
        self.folder, self.tracker, self.context = folder.path, tracker, context
        self._record = folder
        self.features = FeatureMemory()

    def member(self, name: str, *, config: str) -> Context:
        """Return the context of the member ``name``: a subfolder here, a child run in MLflow."""
        return replace(
            self.context,
            folder=self.folder / name,
            parent_run_id=self.tracker.run_id,
            run_name=None,
            resume="auto",
            tags={**self.context.tags, "config": config, "sweep": self.folder.name},
            features=self.features,
        )

    def metrics(self, values: Mapping[str, float]) -> None:
        """Log what the comparison found."""
        self.tracker.metrics(values, step=0)

    def artifact(self, path: Path, *, folder: str | None = None) -> None:
        """Log a file of the comparison."""
        self.tracker.artifact(path, folder=folder)

    def note(self, markdown: str, *, runs: Sequence[str | None]) -> None:
        """Set the description that the comparison's page shows, with links to what MLflow says of ``runs``.

        They may be other comparisons' runs, which the page does not list among its children.
        """
        self.tracker.note(f"{self._links([run for run in runs if run is not None])}{markdown}")

    def close(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """End the comparison in its folder and in MLflow."""
        self._record.set_state(status=status)
        if self.tracker.close(status, timeout_s=CLOSE_TIMEOUT_S) and status == "FINISHED":
            self.context.say(f"MLflow run: {self.tracker.url()}")
            self.context.say("            (`make ui` starts these pages)")

    def _links(self, runs: Sequence[str]) -> str:
        experiment_id, run_id = self.tracker.experiment_id, self.tracker.run_id
        if experiment_id is None or run_id is None or not runs:
            return ""
        pages = {}
        if len(runs) <= MOST_LINKED:
            pages["Charts of its runs"] = charts_page(experiment_id, which=these_runs(runs))
            pages["Parameters side by side"] = compare_page(experiment_id, runs)
        else:
            members = f"tags.sweep = '{self.folder.name}' and tags.kind = 'train'"
            pages["Charts of its runs"] = charts_page(experiment_id, which=members)
        if (self.folder / REPORT).is_file():  # a suite has one in each of its subfolders instead
            pages["Report"] = artifact_page(experiment_id, run_id, REPORT)
        return " · ".join(f"[{name}]({page})" for name, page in pages.items()) + "\n\n"


@contextmanager
def parent_run(
    runs: Mapping[str, RunConfig], context: Context, *, kind: str, detail: str = ""
) -> Iterator[Parent]:
    """Open a comparison ``kind`` of runs by name, or go on with an unfinished one of the same runs.

    ``detail`` is what tells it from others beside its runs.

    Raises:
        DinomalyHDError: What a member raised, once the parent is closed as FAILED or KILLED.
    """
    first = next(iter(runs.values()))
    identity = [(n, run.digest(), run.data.data_root, run.training.start_from) for n, run in runs.items()]
    config_hash = hashlib.sha256(json.dumps([kind, detail, identity]).encode()).hexdigest()[:16]
    with open_run(
        context.result_dir / kind,
        variant=first.model.variant,
        seed=first.seed,
        config_hash=config_hash,
        resume=context.resume,
        of_members=True,
    ) as folder:
        tracker = Tracker(
            Journal(folder.path / "journal.jsonl"),
            uri=default_uri(context.root),
            experiment=context.experiment,
            run_name=context.run_name or _name(kind, list(runs.values())),
            tags={
                "variant": first.model.variant,
                "kind": kind,
                "sweep": folder.path.name,
                "config_hash": config_hash,
                "command": context.command,
                **provenance.git_facts(context.root),
            },
            root=context.root,
            system_metrics=False,
        )
        parent = Parent(folder, tracker, context)
        run_id = tracker.start(timeout_s=START_TIMEOUT_S)
        if run_id is not None:
            folder.set_state(mlflow_run_id=run_id)
        tracker.params(_common(runs.values()))
        try:
            yield parent
        except Interrupted:
            parent.close("KILLED")
            raise
        except BaseException as error:
            tracker.tags({"error": str(error) if isinstance(error, DinomalyHDError) else repr(error)})
            parent.close("FAILED")
            raise
        parent.close("FINISHED")


def _name(kind: str, runs: Sequence[RunConfig]) -> str:
    """Return ``{kind}-{domains}-s{seeds}``."""
    seeds = dict.fromkeys(run.seed for run in runs)
    return f"{kind}-{short_domains(runs[0].data.domain_names)}-s{'-'.join(map(str, seeds))}"


def _common(runs: Iterable[RunConfig]) -> dict[str, Any]:
    """Return the values that all runs have alike."""
    first, *others = [flatten(run) for run in runs]
    return {name: value for name, value in first.items() if all(o.get(name) == value for o in others)}
