"""Collect the runs that a report is asked for; what is missing among them is named, never lost."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dinomaly_hd.config.variants import config_label
from dinomaly_hd.errors import ConfigError, DataError, TrackingError, nearest
from dinomaly_hd.evaluation.comparison_members import MemberRun, leaves
from dinomaly_hd.experiments.members import BETWEEN_RUNS, SINGLE, join_domains, joined, read_member
from dinomaly_hd.runs.find import TRAINING, Found, Shelf
from dinomaly_hd.runs.folder import FINISHED, RESULTS, SCORES, Context

BY_CONFIG, BY_VARIANT = "config", "variant"
COMES_WITH = {"encoder": ("encoder_digest",)}
"""Settings that cannot but differ where the one they are named under does."""


class Asked(NamedTuple):
    """What to report on, how to call it, and where it goes; the help of `report` says what each is.

    ``query`` is "" for none; what is None is the comparison's own, if one is asked for by itself.
    """

    runs: tuple[str, ...]
    query: str
    label_by: str
    reference: str | None = None
    title: str | None = None
    question: str | None = None
    output: Path | None = None


class Collected(NamedTuple):
    """Finished members, why others are missing, and the settings that are compared beside the model's.

    ``own`` is the comparison that was asked for by itself, under its own labels; ``summary`` what it found.
    """

    members: list[MemberRun]
    failed: dict[str, str]
    compared: tuple[str, ...]
    own: Found | None
    summary: Mapping[str, Any]


def collect(asked: Asked, context: Context, shelf: Shelf) -> Collected:
    if not asked.runs and not asked.query:
        raise ConfigError("runs and query: at least one of them is needed")
    named = _named(asked.runs, shelf)
    collection = _Collection(shelf, tick=context.guard.check)
    for one in [*named, *(_matching(asked.query, context, shelf) if asked.query else ())]:
        (collection.add_comparison if one.is_comparison else collection.add)(one)
    members, failed = collection.joined()
    if not members:
        reasons = "; ".join(f"{title}: {reason}" for title, reason in failed.items())
        raise ConfigError(f"no finished run among those asked for: {reasons}")
    alone = len(named) == 1 and named[0].is_comparison and not asked.query
    own = named[0] if alone and asked.label_by == BY_CONFIG else None
    by_name = () if asked.label_by in (BY_CONFIG, BY_VARIANT) else (asked.label_by,)
    compared = dict.fromkeys([*collection.compared, *by_name, *COMES_WITH.get(asked.label_by, ())])
    labelled, summary = _labelled(members, label_by=asked.label_by), _summary(shelf, own) if own else {}
    return Collected(labelled, failed, tuple(compared), own, summary)


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
        raise kind(f"runs: {len(wrong)} of {len(names)} not found: {'; '.join(map(str, wrong))}")
    return found


def _matching(query: str, context: Context, shelf: Shelf) -> list[Found]:
    """Return the training runs that a query matches; a comparison's other members are not asked for."""
    matches = shelf.search(query, experiment=context.experiment)
    runs = [run for run in matches if run.kind == TRAINING]
    kinds = ", ".join(dict.fromkeys(run.kind for run in matches if run not in runs))
    if not runs:
        but = f" but {len(matches)} of other kinds ({kinds}); name comparisons in runs" if matches else ""
        none = f"matches no training run of experiment {context.experiment!r}"
        raise ConfigError(f"query={query!r}: {none}{but}")
    if kinds:
        left_out = len(matches) - len(runs)
        context.say(f"query: {left_out} matches that are no training runs are left out ({kinds})")
    return runs


def _labelled(members: list[MemberRun], *, label_by: str) -> list[MemberRun]:
    """Return the members under the label asked for: as they are, by variant, or by a value: "q_percent=1"."""
    if label_by == BY_CONFIG:
        return members
    if label_by == BY_VARIANT:
        return [member._replace(label=str(member.result.get("variant"))) for member in members]
    values = [leaves(member.result.get("config", {})) for member in members]
    known = {name for own in values for name in own}
    if label_by not in known:
        near = nearest(label_by, [BY_CONFIG, BY_VARIANT, *known])
        raise ConfigError(f"label_by={label_by!r}: no value of these runs' configs.{near}")

    def label(own: Mapping[str, Any]) -> str:
        value = own.get(label_by)
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
        text = text.lower() if isinstance(value, bool) else text
        return f"{label_by}={text}" if label_by in own else f"no {label_by}"

    return [member._replace(label=label(own)) for member, own in zip(members, values, strict=True)]


def _summary(shelf: Shelf, comparison: Found) -> dict[str, Any]:
    """Return a comparison's summary; an older one has bare letters of configs as labels."""
    summary = shelf.summary(comparison)
    if summary:
        summary["runs"] = [{**one, "label": config_label(one["label"])} for one in summary.get("runs", ())]
        summary["failed"] = {config_label(one): why for one, why in summary.get("failed", {}).items()}
        summary |= {"reference": config_label(summary["reference"])} if "reference" in summary else {}
    return summary


def _title(run: Found) -> str:
    """Return label and seed, for one domain also the domain, as a comparison names what failed."""
    name, _, seed = run.place.name.rpartition("_seed")
    label = run.tags.get("config", "-")
    label = run.tags.get("variant", name or run.name) if label == "-" else label
    domains = f" {run.tags['domains']}" if label == SINGLE and "domains" in run.tags else ""
    return f"{config_label(label)}{domains}, seed {run.seed or seed or 'unknown'}"


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
        summary, began = _summary(self._shelf, comparison), self._shelf.members(comparison)
        # By its folder, too: it may have been moved together with those around it.
        known: dict[object, Found] = {one.place.parts[-2:]: one for one in reversed(began)}
        known |= {one.name: one for one in reversed(began)}
        self.compared += summary.get("compared", [])
        covered: set[str] = set()
        for entry in summary.get("runs", []):
            parts = self._parts(entry, known)
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

    def _parts(self, entry: Mapping[str, Any], known: Mapping[object, Found]) -> list[Found]:
        """Return the runs that a summary's entry names; what is gone counts as failed."""
        parts = []
        for name in str(entry["name"]).split(BETWEEN_RUNS):
            own = known.get(name) or known.get(Path(name).parts[-2:])
            try:
                parts.append(own or self._shelf.find(name))
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
                self._failed[_title(run)] = str(error)
                return None
        return self._read[run.name]
