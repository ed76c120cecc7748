"""Which runs a report is asked for, as members of one comparison; what is missing is named, never lost."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dinomaly_hd.errors import ConfigError, DataError, DinomalyHDError, TrackingError
from dinomaly_hd.evaluation.comparison_members import MemberRun
from dinomaly_hd.experiments.members import (
    BETWEEN_RUNS,
    BY_CONFIG,
    BY_VARIANT,
    SINGLE,
    join_single_domains,
    joined,
    relabelled,
)
from dinomaly_hd.experiments.shelf import TRAINING, Found, Shelf
from dinomaly_hd.runs.folder import FINISHED

COMES_WITH = {"encoder": ("encoder_digest",)}
"""Settings that cannot but differ where the one they are named under does."""


class Asked(NamedTuple):
    """Runs and comparisons by path, name or id; and a filter string over an MLflow experiment, "" for none.

    ``label_by`` is what a run is called: ``config``, ``variant``, or the name of a value of its config.
    """

    runs: tuple[str, ...]
    query: str
    experiment: str
    label_by: str


class Collected(NamedTuple):
    """Finished members, why others are missing, and the settings that are compared beside the model's.

    ``own`` is the comparison that was asked for by itself, under its own labels; ``summary`` what it found.
    """

    members: list[MemberRun]
    failed: dict[str, str]
    compared: tuple[str, ...]
    own: Found | None
    summary: Mapping[str, Any]


def collect(asked: Asked, shelf: Shelf, *, say: Callable[[str], None], tick: Callable[[], None]) -> Collected:
    """Find and read everything that is asked for; ``tick`` is called once per run.

    Raises:
        ConfigError: Nothing is asked for; a name is no run (all such names are told); the query cannot be
            read or matches no training run; nothing is finished; or an unknown ``label_by``.
        TrackingError: Something is not here, and MLflow does not answer.
    """
    if not asked.runs and not asked.query:
        raise ConfigError("runs and query: at least one of them is needed")
    found = _named(asked.runs, shelf)
    collection = Collection(shelf, tick=tick)
    for one in found:
        if one.is_comparison:
            collection.add_comparison(one)
        else:
            collection.add(one)
    for run in _matching(asked, shelf, say=say) if asked.query else ():
        collection.add(run)
    collection.join()
    if not collection.members:
        reasons = "; ".join(f"{title}: {reason}" for title, reason in collection.failed.items())
        raise ConfigError(f"no finished run among those asked for: {reasons}")
    alone = len(found) == 1 and found[0].is_comparison and not asked.query
    own = found[0] if alone and asked.label_by == BY_CONFIG else None
    named = () if asked.label_by in (BY_CONFIG, BY_VARIANT) else (asked.label_by,)
    compared = [*collection.compared, *named, *COMES_WITH.get(asked.label_by, ())]
    return Collected(
        relabelled(collection.members, label_by=asked.label_by),
        collection.failed,
        tuple(dict.fromkeys(compared)),
        own,
        shelf.summary(own) if own else {},
    )


def _named(names: Sequence[str], shelf: Shelf) -> list[Found]:
    found: list[Found] = []
    wrong: list[DinomalyHDError] = []
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


def _matching(asked: Asked, shelf: Shelf, *, say: Callable[[str], None]) -> list[Found]:
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
        say(f"query: {len(matches) - len(runs)} matches that are no training runs are left out ({kinds})")
    return [shelf.of(run) for run in runs]


class Collection:
    """Members and what is missing among them, as runs and comparisons are added."""

    def __init__(self, shelf: Shelf, *, tick: Callable[[], None]) -> None:
        self.members: list[MemberRun] = []
        self.failed: dict[str, str] = {}
        self.compared: list[str] = []
        self._shelf, self._tick = shelf, tick
        self._read: dict[str, MemberRun] = {}

    def add(self, run: Found) -> None:
        """Add a run under its own label."""
        member = self._member(run)
        if member is not None:
            self._keep(member)

    def add_comparison(self, comparison: Found) -> None:
        """Add what a comparison's summary lists, wherever it was run, and what began in it since."""
        summary, began = self._shelf.summary(comparison), self._shelf.members(comparison)
        self.compared += summary.get("compared", [])
        covered: set[str] = set()
        for entry in summary.get("runs", []):
            parts = self._parts(entry, began)
            covered.update(part.name for part in parts)
            members = [self._member(part) for part in parts]
            whole = [member for member in members if member is not None]
            if len(whole) == 1 == len(members):
                self._keep(whole[0]._replace(label=entry["label"]))
            elif whole and len(whole) == len(members):
                digest = summary.get("data_digest")
                self._keep(joined(whole, label=entry["label"], data_digest=digest))
        for run in began:
            if run.name not in covered:
                self.add(run)
        for title, reason in summary.get("failed", {}).items():
            self.failed.setdefault(title, reason)
        if not summary:
            self.failed[f"comparison {comparison.name}"] = (
                f"status {comparison.status}: it has not come to its report, so members that it had not "
                "begun or took from elsewhere are not known"
            )

    def join(self) -> None:
        """Join single domains' runs, and forget failures of which a later attempt finished."""
        self.members, incomplete = join_single_domains(self.members)
        self.failed = {**incomplete, **self.failed}
        for member in self.members:
            seed = f", seed {member.seed}"
            for title in [title for title in self.failed if title.endswith(seed)]:
                label = title.removesuffix(seed)
                if label == member.label or (member.label == SINGLE and label.startswith(f"{SINGLE} ")):
                    del self.failed[title]

    def _parts(self, entry: Mapping[str, Any], began: Sequence[Found]) -> list[Found]:
        """Return the runs that a summary's entry names; what is gone counts as failed."""
        parts = []
        for name in str(entry["name"]).split(BETWEEN_RUNS):
            own = next((run for run in began if run.is_called(name)), None)
            try:
                parts.append(own or self._shelf.find(name))
            except (ConfigError, TrackingError) as error:
                self.failed[f"{entry['label']}, seed {entry['seed']}"] = str(error)
                return []
        return parts

    def _member(self, run: Found) -> MemberRun | None:
        """Read a run once; None, and named, if it is not finished or cannot be read."""
        if run.name not in self._read:
            self._tick()
            try:
                if run.status != FINISHED:
                    raise DataError(f"{run.tags.get('error', f'status {run.status}')}; run {run.name}")
                self._read[run.name] = self._shelf.read(run)
            except DataError as error:
                self.failed[run.title()] = str(error)
                return None
        return self._read[run.name]

    def _keep(self, member: MemberRun) -> None:
        """Add a member, once however often it was asked for."""
        if (member.label, member.name) not in {(kept.label, kept.name) for kept in self.members}:
            self.members.append(member)
