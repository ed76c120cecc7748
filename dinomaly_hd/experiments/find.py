"""Find the runs that a report is asked for: in folders here first, in MLflow what is not here.

What is missing among them is named, never lost.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dinomaly_hd.errors import ConfigError, DataError, TrackingError, nearest
from dinomaly_hd.evaluation.comparison_members import MemberRun, leaves
from dinomaly_hd.experiments.members import BETWEEN_RUNS, SINGLE, join_domains, joined, read_member
from dinomaly_hd.files import read_json
from dinomaly_hd.runs.folder import FINISHED, RESULTS, SCORES, STATE, all_runs, read_state
from dinomaly_hd.runs.journal import recorded
from dinomaly_hd.runs.store import RUN_ID, RunStore, StoredRun

SUMMARY = "final_summary.json"
TRAINING = "train"
BY_CONFIG, BY_VARIANT = "config", "variant"
COMES_WITH = {"encoder": ("encoder_digest",)}
"""Settings that cannot but differ where the one they are named under does."""


@dataclass(frozen=True, kw_only=True)
class ReportRequest:
    """What to report on, how to call it, and where it goes; the help of `report` says what each is.

    ``query`` is "" for none. None as ``reference``, ``title`` and ``question`` is the comparison's own, if
    one is asked for by itself. ``root`` is the project, for MLflow's database; ``command`` repeats the
    report; ``tick`` is called for each run, domain and condition.
    """

    runs: tuple[str, ...]
    query: str
    experiment: str
    label_by: str
    reference: str | None
    title: str | None
    question: str | None
    output: Path | None
    result_dir: Path
    root: Path
    command: str
    say: Callable[[str], None]
    tick: Callable[[], None]


class Found(NamedTuple):
    """A run or a comparison, wherever it lies.

    ``name`` is its MLflow run id, else its folder; ``folder`` is None where it lies in MLflow only,
    ``stored`` where it lies here. ``began_ms`` is UTC milliseconds, 0 where unknown.
    """

    name: str
    folder: Path | None
    stored: StoredRun | None
    status: str
    tags: Mapping[str, str]
    began_ms: int

    @property
    def run_id(self) -> str | None:
        return self.name if RUN_ID.fullmatch(self.name) else None

    @property
    def place(self) -> Path:
        """The folder that it has or had, wherever that was moved to."""
        return Path(self.folder or self.tags.get("run_folder", ""))

    @property
    def is_comparison(self) -> bool:
        """Whether it stands for its members."""
        if self.folder is not None:
            if (self.folder / RESULTS).is_file():
                return False
            if (self.folder / SUMMARY).is_file() or any(self.folder.glob(f"*/{STATE}")):
                return True
        return self.tags.get("kind", TRAINING) != TRAINING

    def title(self) -> str:
        """Return label and seed, for one domain also the domain, as a comparison names what failed."""
        name, _, seed = self.place.name.rpartition("_seed")
        label = self.tags.get("config", "-")
        label = self.tags.get("variant", name or self.name) if label == "-" else label
        domains = f" {self.tags['domains']}" if label == SINGLE and "domains" in self.tags else ""
        settings = self.stored.params if self.stored is not None else {}
        if self.folder is not None:
            settings = read_json(self.folder / "experiment_settings.json").get("config", {})
        return f"{label}{domains}, seed {settings.get('seed', seed) or 'unknown'}"


class Collected(NamedTuple):
    """Finished members, why others are missing, and the settings that are compared beside the model's.

    ``own`` is the comparison that was asked for by itself, under its own labels; ``summary`` what it found.
    """

    members: list[MemberRun]
    failed: dict[str, str]
    compared: tuple[str, ...]
    own: Found | None
    summary: Mapping[str, Any]


class Shelf:
    """Runs in folders here, and in MLflow."""

    def __init__(self, result_dir: Path, store: RunStore) -> None:
        self.result_dir, self.store = result_dir, store
        self._folders = [(folder, read_state(folder)) for folder in all_runs(result_dir)]

    def find(self, name: str) -> Found:
        path = Path(name)
        if any(os.path.isfile(path / file) for file in (STATE, RESULTS, SUMMARY)):
            return _at(path)
        here = [
            folder for folder, state in self._folders if name in (folder.name, state.get("mlflow_run_id"))
        ]
        if len(here) > 1:
            places = ", ".join(str(folder) for folder in here)
            raise ConfigError(f"{name!r} is the name of {len(here)} runs ({places}); give one's path or id")
        if here:
            return _at(here[0])
        if os.path.isdir(path):
            raise ConfigError(f"{name!r} holds no run")
        if RUN_ID.fullmatch(name) is None:
            raise ConfigError(f"{name!r} is no run folder, no name of one under {self.result_dir}, and no id")
        absent = f"{name!r} is not under {self.result_dir}"
        try:
            stored = self.store.run(name)
        except TrackingError as error:
            raise TrackingError(f"{absent}, and {error}") from error
        if stored is None:
            raise ConfigError(f"{absent} and not in MLflow at {self.store.uri}")
        return self.of(stored)

    def of(self, stored: StoredRun) -> Found:
        """Return a run that MLflow knows, from its folder if that is here."""
        told = Path(stored.tags.get("run_folder", ""))
        for folder, state in [*self._folders, (told, read_state(told))]:
            if state.get("mlflow_run_id") == stored.run_id:
                return _at(folder)
        return Found(stored.run_id, None, stored, stored.status, stored.tags, stored.began_ms)

    def members(self, comparison: Found) -> list[Found]:
        """Return the runs that began in a comparison, in their order."""
        if comparison.stored is not None:
            return [self.of(child) for child in self.store.children(comparison.stored)]
        found = [_at(path.parent) for path in sorted(comparison.place.glob(f"*/{STATE}"))]
        return sorted(found, key=lambda run: run.began_ms)

    @contextmanager
    def folder(self, run: Found, *names: str) -> Iterator[Path]:
        """Yield a run's folder, or one with copies of these files from MLflow if it is not here."""
        if run.folder is not None:
            yield run.folder
            return
        with tempfile.TemporaryDirectory() as temporary:
            self.store.download(run.name, names, target=Path(temporary))
            yield Path(temporary)

    def summary(self, comparison: Found) -> dict[str, Any]:
        with self.folder(comparison, SUMMARY) as folder:
            return read_json(folder / SUMMARY)


def _at(folder: Path) -> Found:
    """Return what lies in a folder; one without state was copied here from MLflow."""
    state, (tags, began_ms) = read_state(folder), recorded(folder)
    name = state.get("mlflow_run_id") or str(folder)
    return Found(name, folder, None, state.get("status", FINISHED), tags, began_ms)


def collect(asked: ReportRequest, shelf: Shelf) -> Collected:
    if not asked.runs and not asked.query:
        raise ConfigError("runs and query: at least one of them is needed")
    named = _named(asked.runs, shelf)
    collection = _Collection(shelf, tick=asked.tick)
    for one in [*named, *(_matching(asked, shelf) if asked.query else ())]:
        (collection.add_comparison if one.is_comparison else collection.add)(one)
    members, failed = collection.joined()
    if not members:
        reasons = "; ".join(f"{title}: {reason}" for title, reason in failed.items())
        raise ConfigError(f"no finished run among those asked for: {reasons}")
    alone = len(named) == 1 and named[0].is_comparison and not asked.query
    own = named[0] if alone and asked.label_by == BY_CONFIG else None
    by_name = () if asked.label_by in (BY_CONFIG, BY_VARIANT) else (asked.label_by,)
    compared = dict.fromkeys([*collection.compared, *by_name, *COMES_WITH.get(asked.label_by, ())])
    labelled = [
        member._replace(label=label)
        for member, label in zip(members, _labels(members, label_by=asked.label_by), strict=True)
    ]
    return Collected(labelled, failed, tuple(compared), own, shelf.summary(own) if own else {})


def _named(names: Sequence[str], shelf: Shelf) -> list[Found]:
    found: list[Found] = []
    wrong: list[ConfigError | TrackingError] = []
    for name in names:
        try:
            found.append(shelf.find(name))
        except (ConfigError, TrackingError) as error:
            wrong.append(error)
    if wrong:
        kind = TrackingError if any(isinstance(error, TrackingError) for error in wrong) else ConfigError
        lines = "; ".join(str(error) for error in wrong)
        raise kind(f"runs: {len(wrong)} of {len(names)} not found: {lines}")
    return found


def _matching(asked: ReportRequest, shelf: Shelf) -> list[Found]:
    """Return the training runs that a query matches; a comparison's other members are not asked for."""
    matches = shelf.store.search(asked.query, experiment=asked.experiment)
    runs = [run for run in matches if run.tags.get("kind", TRAINING) == TRAINING]
    kinds = ", ".join(dict.fromkeys(run.tags["kind"] for run in matches if run not in runs))
    if not runs:
        but = f" but {len(matches)} of other kinds ({kinds}); name comparisons in runs" if matches else ""
        raise ConfigError(
            f"query={asked.query!r}: matches no training run of experiment {asked.experiment!r}{but}"
        )
    if kinds:
        left_out = len(matches) - len(runs)
        asked.say(f"query: {left_out} matches that are no training runs are left out ({kinds})")
    return [shelf.of(run) for run in runs]


def _labels(members: Sequence[MemberRun], *, label_by: str) -> list[str]:
    """Return what the members are called: as they are, by variant, or by a value as in "q_percent=1"."""
    if label_by == BY_CONFIG:
        return [member.label for member in members]
    if label_by == BY_VARIANT:
        return [str(member.result.get("variant")) for member in members]
    values = [leaves(member.result.get("config", {})) for member in members]
    known = {name for own in values for name in own}
    if label_by not in known:
        raise ConfigError(
            f"label_by={label_by!r}: no value of these runs' configs."
            f"{nearest(label_by, [BY_CONFIG, BY_VARIANT, *known])}"
        )

    def shown(value: Any) -> str:
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
        return text.lower() if isinstance(value, bool) else text

    return [f"{label_by}={shown(own[label_by])}" if label_by in own else f"no {label_by}" for own in values]


class _Collection:
    """Members and what is missing among them, as runs and comparisons are added."""

    def __init__(self, shelf: Shelf, *, tick: Callable[[], None]) -> None:
        self.compared: list[str] = []
        self._members: dict[tuple[str, str], MemberRun] = {}  # once, however often asked for
        self._failed: dict[str, str] = {}
        self._read: dict[str, MemberRun] = {}
        self._shelf, self._tick = shelf, tick

    def add(self, run: Found) -> None:
        member = self._member(run)
        if member is not None:
            self._members.setdefault((member.label, member.name), member)

    def add_comparison(self, comparison: Found) -> None:
        """Add what a comparison's summary lists, wherever it was run, and what began in it since."""
        summary, began = self._shelf.summary(comparison), self._shelf.members(comparison)
        self.compared += summary.get("compared", [])
        covered: set[str] = set()
        for entry in summary.get("runs", []):
            parts = self._parts(entry, began)
            covered.update(part.name for part in parts)
            members = [member for member in map(self._member, parts) if member is not None]
            if members and len(members) == len(parts):
                label, digest = entry["label"], summary.get("data_digest")
                several = len(parts) > 1
                whole = joined(members, label=label, data_digest=digest) if several else members[0]
                self._members.setdefault((label, whole.name), whole._replace(label=label))
        for run in began:
            if run.name not in covered:
                self.add(run)
        for title, reason in summary.get("failed", {}).items():
            self._failed.setdefault(title, reason)
        if not summary:
            self._failed[f"comparison {comparison.name}"] = (
                f"status {comparison.status}: it has not come to its report, so members that it had not "
                "begun or took from elsewhere are not known"
            )

    def joined(self) -> tuple[list[MemberRun], dict[str, str]]:
        """Join single domains' runs, and forget failures of which a later attempt finished."""
        members, incomplete = join_domains(list(self._members.values()))
        there = {(member.label, str(member.seed)) for member in members}
        failed = {}
        for title, reason in {**incomplete, **self._failed}.items():
            label, _, seed = title.rpartition(", seed ")
            label = SINGLE if label.startswith(f"{SINGLE} ") else label
            if (label, seed) not in there:
                failed[title] = reason
        return members, failed

    def _parts(self, entry: Mapping[str, Any], began: Sequence[Found]) -> list[Found]:
        """Return the runs that a summary's entry names; what is gone counts as failed."""
        parts = []
        for name in str(entry["name"]).split(BETWEEN_RUNS):
            # A folder may have been moved together with those around it.
            own = [run for run in began if name == run.name or run.place.parts[-2:] == Path(name).parts[-2:]]
            try:
                parts.append(own[0] if own else self._shelf.find(name))
            except (ConfigError, TrackingError) as error:
                self._failed[f"{entry['label']}, seed {entry['seed']}"] = str(error)
                return []
        return parts

    def _member(self, run: Found) -> MemberRun | None:
        """Read a run once; None, and named, if it is not finished or cannot be read."""
        if run.name not in self._read:
            self._tick()
            try:
                if run.status != FINISHED:
                    raise DataError(f"{run.tags.get('error', f'status {run.status}')}; run {run.name}")
                with self._shelf.folder(run, RESULTS, SCORES) as folder:
                    self._read[run.name] = read_member(folder, name=run.name)
            except DataError as error:
                self._failed[run.title()] = str(error)
                return None
        return self._read[run.name]
