"""Where runs and comparisons lie: in folders here, or in MLflow only."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dinomaly_hd.errors import ConfigError, TrackingError
from dinomaly_hd.evaluation.comparison_members import MemberRun
from dinomaly_hd.experiments.members import SCORES, SINGLE, read_member
from dinomaly_hd.experiments.reporting import SUMMARY
from dinomaly_hd.files import read_json
from dinomaly_hd.runs.folder import FINISHED, RESULTS, STATE, all_runs, read_state
from dinomaly_hd.runs.search import RUN_ID, RunStore, StoredRun, recorded

TRAINING = "train"


class Found(NamedTuple):
    """A run or a comparison, wherever it lies.

    Attributes:
        name: Its MLflow run id, else its folder.
        folder: None where it lies in MLflow only.
        stored: What MLflow says of it, None for a folder here.
        status: FINISHED, RUNNING, KILLED or FAILED.
        tags: As it was tracked.
        began_ms: UTC milliseconds, 0 where unknown.
    """

    name: str
    folder: Path | None
    stored: StoredRun | None
    status: str
    tags: Mapping[str, str]
    began_ms: int

    @property
    def run_id(self) -> str | None:
        """Its MLflow run."""
        return self.name if RUN_ID.fullmatch(self.name) else None

    @property
    def is_comparison(self) -> bool:
        """Whether it stands for its members."""
        if self.folder is not None and (self.folder / RESULTS).is_file():
            return False
        has_members = self.folder is not None and (
            (self.folder / SUMMARY).is_file() or any(self.folder.glob(f"*/{STATE}"))
        )
        return has_members or self.tags.get("kind", TRAINING) != TRAINING

    def is_called(self, name: str) -> bool:
        """Tell whether ``name`` is its id, or a folder that it has or had, wherever that was moved to."""
        folder = self.folder or self.tags.get("run_folder")
        return name == self.name or (folder is not None and Path(folder).parts[-2:] == Path(name).parts[-2:])

    def title(self) -> str:
        """Return label and seed, for one domain also the domain, as a comparison names what failed."""
        place = Path(self.folder or self.tags.get("run_folder", "")).name.rpartition("_seed")
        label = self.tags.get("config", "-")
        label = self.tags.get("variant", place[0] or self.name) if label == "-" else label
        domains = f" {self.tags['domains']}" if label == SINGLE and "domains" in self.tags else ""
        return f"{label}{domains}, seed {self._seed() or place[2] or 'unknown'}"

    def _seed(self) -> str:
        if self.stored is not None:
            return self.stored.params.get("seed", "")
        settings = read_json(self.folder / "experiment_settings.json") if self.folder else {}
        return str(settings.get("config", {}).get("seed", ""))


class Shelf:
    """Finds runs: those in folders here first, in MLflow only what is not here."""

    def __init__(self, result_dir: Path, store: RunStore) -> None:
        self.result_dir, self.store = result_dir, store
        self._folders = [(folder, read_state(folder)) for folder in all_runs(result_dir)]

    def find(self, name: str) -> Found:
        """Return the run or comparison of a path, folder name or MLflow run id.

        Raises:
            ConfigError: There is none, or the name is several runs'.
            TrackingError: It is not here, and MLflow does not answer.
        """
        path = Path(name)
        if any(os.path.isfile(path / file) for file in (STATE, RESULTS, SUMMARY)):
            return self.at(path)
        here = [
            folder for folder, state in self._folders if name in (folder.name, state.get("mlflow_run_id"))
        ]
        if len(here) > 1:
            places = ", ".join(str(folder) for folder in here)
            raise ConfigError(f"{name!r} is the name of {len(here)} runs ({places}); give one's path or id")
        if here:
            return self.at(here[0])
        if os.path.isdir(path):
            raise ConfigError(f"{name!r} holds no run")
        if RUN_ID.fullmatch(name) is None:
            raise ConfigError(f"{name!r} is no run folder, no name of one under {self.result_dir}, and no id")
        try:
            stored = self.store.run(name)
        except TrackingError as error:
            raise TrackingError(f"{name!r} is not under {self.result_dir}, and {error}") from error
        if stored is None:
            raise ConfigError(
                f"{name!r} is not under {self.result_dir} and not in MLflow at {self.store.uri}"
            )
        return self.of(stored)

    def at(self, folder: Path) -> Found:
        """Return what lies in a folder; one without state was copied here from MLflow."""
        state, record = read_state(folder), recorded(folder)
        name = state.get("mlflow_run_id") or str(folder)
        return Found(name, folder, None, state.get("status", FINISHED), record.tags, record.began_ms)

    def of(self, stored: StoredRun) -> Found:
        """Return a run that MLflow knows, from its folder if that is here."""
        told = Path(stored.tags.get("run_folder", ""))
        for folder, state in [*self._folders, (told, read_state(told))]:
            if state.get("mlflow_run_id") == stored.run_id:
                return self.at(folder)
        return Found(stored.run_id, None, stored, stored.status, stored.tags, stored.began_ms)

    def members(self, comparison: Found) -> list[Found]:
        """Return the runs that began in a comparison, in their order."""
        if comparison.stored is not None:
            return [self.of(child) for child in self.store.children(comparison.stored)]
        assert comparison.folder is not None, "it lies in MLflow or here"
        found = [self.at(path.parent) for path in sorted(comparison.folder.glob(f"*/{STATE}"))]
        return sorted(found, key=lambda run: run.began_ms)

    def summary(self, comparison: Found) -> dict[str, Any]:
        """Return a comparison's final_summary.json, empty where it has none yet."""
        if comparison.folder is not None:
            return read_json(comparison.folder / SUMMARY)
        with tempfile.TemporaryDirectory() as temporary:
            self.store.download(comparison.name, [SUMMARY], target=Path(temporary))
            return read_json(Path(temporary) / SUMMARY)

    def read(self, run: Found) -> MemberRun:
        """Read a finished run, copied from MLflow for as long as that takes if it is not here.

        Raises:
            DataError: It is damaged.
            TrackingError: MLflow does not answer.
        """
        if run.folder is not None:
            return read_member(run.folder, name=run.name)
        with tempfile.TemporaryDirectory() as temporary:
            self.store.download(run.name, [RESULTS, SCORES], target=Path(temporary))
            return read_member(Path(temporary), name=run.name)
