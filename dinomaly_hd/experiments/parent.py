"""The MLflow parent and the folder of a comparison, whose members are ordinary runs below it."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from dinomaly_hd.config import RunConfig, flatten
from dinomaly_hd.data.features import FeatureCache
from dinomaly_hd.runs.context import Context
from dinomaly_hd.experiments.page import open_page
from dinomaly_hd.runs.folder import open_run
from dinomaly_hd.experiments.session import short_domains
from dinomaly_hd.runs.pages import members_line
from dinomaly_hd.runs.tracker import Tracker

REPORT = "report.html"


class Parent:
    """A comparison at work; ``member`` gives the surroundings of one of its runs."""

    def __init__(self, folder: Path, page: Tracker, context: Context) -> None:
        self.folder, self.page, self.context = folder, page, context
        self.features = FeatureCache()

    def member(self, name: str, *, config: str) -> Context:
        """Return the context of the member ``name``: a subfolder here, a child run in MLflow."""
        return replace(
            self.context,
            folder=self.folder / name,
            parent_run_id=self.page.run_id,
            run_name=None,
            resume="auto",
            tags={**self.context.tags, "config": config, "sweep": self.folder.name},
            features=self.features,
        )

    def metrics(self, values: Mapping[str, float]) -> None:
        """Log what the comparison found."""
        self.page.metrics(values, step=0)

    def artifact(self, path: Path, *, folder: str | None = None) -> None:
        """Log a file of the comparison."""
        self.page.artifact(path, folder=folder)

    def note(self, markdown: str, *, runs: Sequence[str | None]) -> None:
        """Set the description that the comparison's page shows, with links to what MLflow says of ``runs``.

        They may be other comparisons' runs, which the page does not list among its children.
        """
        self.page.note(f"{self._links([run for run in runs if run is not None])}{markdown}")

    def _links(self, runs: Sequence[str]) -> str:
        if self.page.experiment_id is None or self.page.run_id is None:
            return ""
        return members_line(
            self.page.experiment_id,
            self.page.run_id,
            runs,
            what="runs",
            sweep=self.folder.name,
            kind="train",
            # a suite has one in each of its subfolders instead
            report=REPORT if (self.folder / REPORT).is_file() else None,
        )


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
    with (
        open_run(
            context.result_dir / kind,
            variant=first.model.variant,
            seed=first.seed,
            config_hash=config_hash,
            resume=context.resume,
            of_members=True,
        ) as folder,
        open_page(
            folder,
            context,
            name=context.run_name or _name(kind, list(runs.values())),
            tags={
                "variant": first.model.variant,
                "kind": kind,
                "sweep": folder.path.name,
                "config_hash": config_hash,
            },
        ) as page,
    ):
        page.params(_common(runs.values()))
        yield Parent(folder.path, page, context)


def _name(kind: str, runs: Sequence[RunConfig]) -> str:
    """Return ``{kind}-{domains}-s{seeds}``."""
    seeds = dict.fromkeys(run.seed for run in runs)
    return f"{kind}-{short_domains(runs[0].data.domain_names)}-s{'-'.join(map(str, seeds))}"


def _common(runs: Iterable[RunConfig]) -> dict[str, Any]:
    """Return the values that all runs have alike."""
    first, *others = [flatten(run) for run in runs]
    return {name: value for name, value in first.items() if all(o.get(name) == value for o in others)}
