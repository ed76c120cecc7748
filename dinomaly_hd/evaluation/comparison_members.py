"""The runs of a comparison: which may be compared at all, on which images, and in which settings they differ.

Legend: M runs, N test images. Source: protocols.md, "Statistics between methods".
"""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from dinomaly_hd.config.families import SourceFaults
from dinomaly_hd.config.run import WITHOUT_EFFECT
from dinomaly_hd.errors import ConfigError, DataError, DinomalyHDError
from dinomaly_hd.evaluation import metrics, results
from dinomaly_hd.evaluation.metrics import FloatArray, number
from dinomaly_hd.names import listed

BESIDE_CONFIG = ("condition_rule", "encoder_digest", "code_digest", "kernels")
NOT_SETTINGS = {*WITHOUT_EFFECT, "seed", "preset", "cache", "val_check_interval", "eval_batch_size"}
SHOWN_RUNS = 6
SAME = 1e-9
LEARNING = SourceFaults().fault_source  # of runs that learn from labelled faults


class MemberRun(NamedTuple):
    """One finished run: what it is called in the comparison, and what it left behind.

    ``name`` is the run's id or folder, for messages; ``result`` the content of ``results.json``; ``scores``
    one row per test image: path, domain, label (0 good, 1 fault), condition, score. ``folders`` may hold its
    anomaly maps; they may be gone.
    """

    label: str
    seed: int
    name: str
    result: Mapping[str, Any]
    scores: pd.DataFrame
    folders: tuple[Path, ...] = ()

    @property
    def title(self) -> str:
        return f"{self.label}, seed {self.seed} ({self.name})"


class Settings(NamedTuple):
    """Settings equal in all runs, compared ones that differ (by label and name), and what differs besides."""

    equal: Mapping[Hashable, str]
    by_label: Mapping[Hashable, Mapping[Hashable, str]]
    notes: tuple[str, ...]


def leaves(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return every value of a stored config under its own name, as ``config.flatten`` does of a config."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat.update(leaves(value) if isinstance(value, Mapping) else {name: value})
    return flat


def _check_members(members: Sequence[MemberRun]) -> None:
    """Refuse runs that cannot stand in one comparison: two of one label and seed, or of different data."""
    if not members:
        raise ConfigError("comparison: no runs, expected at least one finished run")
    seen: dict[tuple[str, int], MemberRun] = {}
    for member in members:
        other = seen.setdefault((member.label, member.seed), member)
        if other is not member:
            raise ConfigError(
                f"label {member.label!r} has seed {member.seed} twice: {other.name} and {member.name}; "
                "leave one out, or give it a label of its own (report: label_by)"
            )
        first, digest = members[0], member.result.get("data_digest")
        if digest != first.result.get("data_digest"):
            raise DataError(
                f"{first.title} and {member.title} were tested on different data (digest "
                f"{first.result.get('data_digest')} and {digest}); compare runs of one data set only"
            )


def same_images(members: Sequence[MemberRun]) -> tuple[pd.DataFrame, FloatArray]:
    """Return the first run's images (path, domain, label, condition) and all runs' scores (M, N) of them.

    Refused are two runs of one label and seed, runs of other data or images, and one whose scores do not give
    the AUROC of its own result: its folder holds parts of two evaluations. Faults that a run has learned from
    (``fault_source=source_domain``) are compared in no run.
    """
    _check_members(members)
    learned = learned_from(members)
    first, facts = members[0], ["domain", "label", "condition"]
    reference, scores = pd.DataFrame(), []
    for member in members:
        try:
            results.check_table(member.scores)
        except DinomalyHDError as error:
            raise type(error)(f"{member.title}: {error}") from error
        _check_own_result(member)
        table = member.scores.set_index("path").drop(index=learned, errors="ignore")
        if member is first:
            reference = table
        different = f"{first.title} and {member.title} were tested on different images: "
        for path in reference.index.symmetric_difference(table.index, sort=False):
            owner = first if path in reference.index else member
            raise DataError(f"{different}{path} is only in {owner.name}")
        table = table.reindex(reference.index)
        for column in facts:
            wanted, found = reference[column].astype(str), table[column].astype(str)
            for path in reference.index[wanted != found]:
                raise DataError(f"{different}{path}: {column} {wanted[path]} and {found[path]}")
        scores.append(table["score"].to_numpy(np.float64))
    return reference.reset_index()[["path", *facts]], np.stack(scores)


def learned_from(members: Sequence[MemberRun]) -> list[str]:
    """Return the test images of which some run has learned: those of others that it lacks."""
    configs = [leaves(member.result.get("config", {})) for member in members]
    pairs = zip(members, configs, strict=True)
    known = [set(one.scores["path"]) for one, own in pairs if own.get("fault_source") == LEARNING]
    if not known:
        return []
    tested = dict.fromkeys(path for member in members for path in member.scores["path"])
    return [path for path in tested if any(path not in paths for paths in known)]


def settings_of(members: Sequence[MemberRun], *, compared: Sequence[str] = ()) -> Settings:
    """Tell equal settings from compared ones and from those that differ unasked.

    Compared are the model's settings and the names in ``compared`` (e.g. ``encoder``). A setting that differs
    inside one label is noted even if compared: the label's mean then mixes two things.
    """
    models = (member.result.get("config", {}).get("model", {}) for member in members)
    asked = {*compared}.union(*map(leaves, models))
    labels = [member.label for member in members]
    table = pd.DataFrame([_flat(member.result) for member in members]).fillna("-")
    differing = table.loc[:, table.nunique() > 1]
    by_label = pd.DataFrame(
        {name: texts.groupby(labels, sort=False).unique() for name, texts in differing.items()},
        index=pd.Index(labels).unique(),
    )
    notes = []
    for name, texts in differing.items():
        if name not in asked:
            owners = [
                m.label if len(by_label[name][m.label]) == 1 else f"{m.label}/{m.seed}" for m in members
            ]
            with_text = pd.Series(owners).groupby(texts, sort=False).unique()
            who = "; ".join(f"{text} ({listed(names, most=SHOWN_RUNS)})" for text, names in with_text.items())
            notes.append(f"{name} differs between runs: {who}")
        notes += [
            f"{name} differs inside {label}: its mean mixes {', '.join(values)}"
            for label, values in by_label[name].items()
            if len(values) > 1
        ]
    learned = learned_from(members)
    if learned:
        notes.append(
            f"{len(learned)} faults of the source are compared in no run, since some learned from them; "
            "a transfer table holds each run's own figures"
        )
    shown = by_label[[name for name in by_label if name in asked]].map(" / ".join)
    equal = table.iloc[0].drop(differing.columns)
    return Settings(equal.to_dict(), shown.to_dict("index"), tuple(notes))


def _check_own_result(member: MemberRun) -> None:
    for domain, block in member.result.get("per_domain_metrics", {}).items():
        rows = member.scores[member.scores["domain"] == domain]
        stated, found = number(block.get("auroc")), metrics.auroc(rows["score"], rows["label"])
        if not np.isclose(stated, found, rtol=0, atol=SAME, equal_nan=True):
            raise DataError(
                f"{member.title}: {domain} has AUROC {stated:.6f} in its result but {found:.6f} by its "
                "scores; evaluate the run again"
            )


def _flat(result: Mapping[str, Any]) -> dict[str, str]:
    beside = {name: result[name] for name in BESIDE_CONFIG if name in result}
    versions = {f"version of {name}": text for name, text in result.get("versions", {}).items()}
    own = {
        name: value for name, value in leaves(result.get("config", {})).items() if name not in NOT_SETTINGS
    }
    return {name: str(value) for name, value in (own | beside | versions).items()}
