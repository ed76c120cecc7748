"""The runs of a comparison: which may be compared at all, on which images, and in which settings they differ.

Legend: M runs, N test images. Source: protocols.md, "Statistics between methods".
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from dinomaly_hd.config import WITHOUT_EFFECT
from dinomaly_hd.errors import ConfigError, DataError, DinomalyHDError
from dinomaly_hd.evaluation import metrics, results
from dinomaly_hd.evaluation.metrics import FloatArray, number

TOP_LEVEL = ("encoder", "max_steps", "batch_size")  # settings of a result that holds no config
BESIDE_CONFIG = ("condition_rule", "encoder_digest", "code_digest")
NOT_SETTINGS = {*WITHOUT_EFFECT, "seed", "preset", "cache", "val_check_interval", "eval_batch_size"}
SHOWN_RUNS = 6
SAME = 1e-9


class MemberRun(NamedTuple):
    """One finished run: what it is called in the comparison, and what it left behind.

    ``name`` is the run's id or folder, for messages; ``result`` the content of ``results.json``; ``scores``
    one row per test image: path, domain, label (0 good, 1 fault), condition, score.
    """

    label: str
    seed: int
    name: str
    result: Mapping[str, Any]
    scores: pd.DataFrame

    @property
    def title(self) -> str:
        """Label, seed and name, as messages show them."""
        return f"{self.label}, seed {self.seed} ({self.name})"


class SameImages(NamedTuple):
    """Test images that all runs share (path, domain, label, condition) and each run's scores of them."""

    images: pd.DataFrame
    scores_MN: FloatArray


class Settings(NamedTuple):
    """Settings equal in all runs, compared ones that differ (by label and name), and what differs besides."""

    equal: dict[str, str]
    by_label: dict[str, dict[str, str]]
    notes: tuple[str, ...]


def leaves(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return every value of a stored config under its own name, as ``config.flatten`` does of a config."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat.update(leaves(value) if isinstance(value, Mapping) else {name: value})
    return flat


def check_members(members: Sequence[MemberRun]) -> None:
    """Refuse runs that cannot stand in one comparison.

    Raises:
        ConfigError: There is no run, or two have the same label and seed; both are named.
        DataError: Two runs were tested on different data; both and their digests are named.
    """
    if not members:
        raise ConfigError("comparison: no runs, expected at least one finished run")
    seen: dict[tuple[str, int], MemberRun] = {}
    for member in members:
        other = seen.setdefault((member.label, member.seed), member)
        if other is not member:
            raise ConfigError(
                f"label {member.label!r} has seed {member.seed} twice: {other.name} and {member.name}; "
                "leave one out or give it a label of its own"
            )
        first, digest = members[0], member.result.get("data_digest")
        if digest != first.result.get("data_digest"):
            raise DataError(
                f"{first.title} and {member.title} were tested on different data (digest "
                f"{first.result.get('data_digest')} and {digest}); compare runs of one data set only"
            )


def same_images(members: Sequence[MemberRun]) -> SameImages:
    """Bring all runs' scores into the order of the first run's images.

    Raises:
        DataError: A score table cannot be evaluated (``results.check_table``); the runs' images, labels or
            conditions differ; or a run's scores do not give the AUROC of its own result.
        NonFiniteError: A score is NaN or infinite.
    """
    first, aligned = members[0], []
    for member in members:
        try:
            results.check_table(member.scores)
        except DinomalyHDError as error:
            raise type(error)(f"{member.title}: {error}") from error
        _check_own_result(member)
        aligned.append(member.scores.set_index("path"))
    reference = aligned[0]
    for member, table in zip(members[1:], aligned[1:], strict=True):
        for path in (*reference.index.difference(table.index), *table.index.difference(reference.index)):
            owner = first if path in reference.index else member
            raise _different(first, member, f"{path} is only in {owner.name}")
        for column in ("domain", "label", "condition"):
            wanted, found = reference[column].astype(str), table[column].reindex(reference.index).astype(str)
            for path in reference.index[wanted != found]:
                raise _different(first, member, f"{path}: {column} {wanted[path]} and {found[path]}")
    images = reference.reset_index()[["path", "domain", "label", "condition"]]
    scores = [table["score"].reindex(reference.index).to_numpy(np.float64) for table in aligned]
    return SameImages(images, np.stack(scores))


def settings_of(members: Sequence[MemberRun], *, compared: Sequence[str] = ()) -> Settings:
    """Tell equal settings from compared ones and from those that differ unasked.

    Compared are the model's settings and the names in ``compared`` (e.g. ``encoder``). A setting that differs
    inside one label is noted even if compared: the label's mean then mixes two things.
    """
    flat = [_flat(member.result) for member in members]
    names = list(dict.fromkeys(name for settings in flat for name in settings))
    asked = set(compared).union(
        *(leaves(member.result.get("config", {}).get("model", {})) for member in members)
    )
    equal: dict[str, str] = {}
    by_label: dict[str, dict[str, str]] = {member.label: {} for member in members}
    notes = []
    for name in names:
        texts = [settings.get(name, "-") for settings in flat]
        if len(set(texts)) == 1:
            equal[name] = texts[0]
            continue
        per_label = {label: _texts(members, texts, label) for label in by_label}
        if name in asked:
            for label, values in per_label.items():
                by_label[label][name] = " / ".join(values)
        else:
            notes.append(f"{name} differs between runs: {_who(members, texts)}")
        mixed = [label for label, values in per_label.items() if len(values) > 1]
        notes += [
            f"{name} differs inside {label}: its mean mixes {', '.join(per_label[label])}" for label in mixed
        ]
    return Settings(equal, by_label, tuple(notes))


def _check_own_result(member: MemberRun) -> None:
    """A folder whose scores and result come from two evaluations must not be reported as one."""
    for domain, block in member.result.get("per_domain_metrics", {}).items():
        rows = member.scores[member.scores["domain"] == domain]
        stated, found = block.get("auroc"), metrics.auroc(rows["score"], rows["label"])
        stated = number(stated)
        if not np.isclose(stated, found, rtol=0, atol=SAME, equal_nan=True):
            raise DataError(
                f"{member.title}: {domain} has AUROC {stated:.6f} in its result but {found:.6f} by its "
                "scores; evaluate the run again"
            )


def _different(first: MemberRun, second: MemberRun, what: str) -> DataError:
    return DataError(f"{first.title} and {second.title} were tested on different images: {what}")


def _flat(result: Mapping[str, Any]) -> dict[str, str]:
    config = result.get("config") or {name: result[name] for name in TOP_LEVEL if name in result}
    beside = {name: result[name] for name in BESIDE_CONFIG if name in result}
    versions = {f"version of {name}": text for name, text in result.get("versions", {}).items()}
    own = {name: value for name, value in leaves(config).items() if name not in NOT_SETTINGS}
    return {name: str(value) for name, value in (own | beside | versions).items()}


def _texts(members: Sequence[MemberRun], texts: Sequence[str], label: str) -> list[str]:
    own = (text for member, text in zip(members, texts, strict=True) if member.label == label)
    return list(dict.fromkeys(own))


def _who(members: Sequence[MemberRun], texts: Sequence[str]) -> str:
    """Every value with the labels that have it, or with label/seed where a label has several."""
    of_label = {member.label: _texts(members, texts, member.label) for member in members}
    owners: dict[str, list[str]] = {}
    for member, text in zip(members, texts, strict=True):
        name = member.label if len(of_label[member.label]) == 1 else f"{member.label}/{member.seed}"
        if name not in owners.setdefault(text, []):
            owners[text].append(name)
    return "; ".join(f"{text} ({_listed(names)})" for text, names in owners.items())


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_RUNS} more" if len(names) > SHOWN_RUNS else ""
    return ", ".join(names[:SHOWN_RUNS]) + more
