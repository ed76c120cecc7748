"""Compare methods: mean and spread over seeds, and paired differences to a reference, as tidy tables."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from dinomaly_hd.errors import ConfigError, nearest
from dinomaly_hd.evaluation.comparison_cells import (
    MEAN,
    METRICS,
    VALUE_COLUMNS,
    cells_of,
    draws_of,
    means_of,
    shown_conditions,
    values_of,
)
from dinomaly_hd.evaluation.comparison_differences import delong_table, difference_table, verdict
from dinomaly_hd.evaluation.comparison_members import (
    MemberRun,
    Settings,
    check_members,
    same_images,
    settings_of,
)
from dinomaly_hd.evaluation.intervals import DRAWS
from dinomaly_hd.evaluation.results import domain_names


class RunName(NamedTuple):
    """Which run stands for a label and seed."""

    label: str
    seed: int
    name: str


class ImageCounts(NamedTuple):
    """Test images of one domain."""

    good: int
    fault: int


class Focus(NamedTuple):
    """One domain (or ``mean``) and condition that a comparison asks about, e.g. domain_C, cold."""

    domain: str
    condition: str


@dataclass(frozen=True)
class Comparison:
    """Everything a comparison says; metrics are shares in [0, 1], differences are label minus reference.

    The tables' columns are ``VALUE_COLUMNS``, ``MEANS_COLUMNS``, ``DIFFERENCE_COLUMNS`` and
    ``DELONG_COLUMNS`` of the modules that make them; their domains hold ``mean`` too, but for DeLong's.
    ``missing`` names each (label, seed) that another label has.
    """

    labels: tuple[str, ...]
    reference: str
    seeds: Mapping[str, tuple[int, ...]]
    missing: tuple[tuple[str, int], ...]
    domains: tuple[str, ...]
    conditions: tuple[str, ...]
    counts: Mapping[str, ImageCounts]
    data_digest: str
    runs: tuple[RunName, ...]
    settings: Settings
    values: pd.DataFrame
    means: pd.DataFrame
    differences: pd.DataFrame
    delong: pd.DataFrame

    def common_seeds(self, label: str) -> tuple[int, ...]:
        """Seeds that a label shares with the reference: those its paired tests use."""
        return tuple(seed for seed in self.seeds[label] if seed in self.seeds[self.reference])

    @property
    def others(self) -> tuple[str, ...]:
        """Every label but the reference."""
        return tuple(label for label in self.labels if label != self.reference)


def compare(
    members: Sequence[MemberRun],
    *,
    reference: str | None = None,
    compared: Sequence[str] = (),
    draws: int = DRAWS,
    draw_seed: int = 0,
    tick: Callable[[], None] = lambda: None,
) -> Comparison:
    """Compare every label with the reference (the first label, if none is given).

    ``compared`` names settings beside the model's that are the compared thing, e.g. ``encoder``. ``tick`` is
    called once per domain and condition.

    Raises:
        ConfigError: No run, an unknown reference, or two runs of one label and seed.
        DataError: The runs were tested on different data, or one's scores are not those of its result.
        NonFiniteError: A score is NaN or infinite.
    """
    check_members(members)
    labels = tuple(dict.fromkeys(member.label for member in members))
    reference = labels[0] if reference is None else reference
    if reference not in labels:
        raise ConfigError(
            f"reference {reference!r} is not a label of these runs.{nearest(reference, labels)}"
        )
    same = same_images(members)
    cells = cells_of(same, draws=draws if len(labels) > 1 else 0, draw_seed=draw_seed, tick=tick)
    values = values_of(members, cells)
    seeds = {label: tuple(sorted(m.seed for m in members if m.label == label)) for label in labels}
    every_seed = sorted({member.seed for member in members})
    return Comparison(
        labels=labels,
        reference=reference,
        seeds=seeds,
        missing=tuple((label, seed) for label in labels for seed in every_seed if seed not in seeds[label]),
        domains=tuple(domain_names(same.images)),
        conditions=shown_conditions(same.images),
        counts=_counts(same.images),
        data_digest=str(members[0].result.get("data_digest", "unknown")),
        runs=tuple(RunName(member.label, member.seed, member.name) for member in members),
        settings=settings_of(members, compared=compared),
        values=pd.DataFrame(((*key, value) for key, value in values.items()), columns=list(VALUE_COLUMNS)),
        means=means_of(values),
        differences=difference_table(members, values, draws_of(cells), reference=reference),
        delong=delong_table(members, cells, reference=reference),
    )


def focus_table(comparison: Comparison, focus: Focus, *, metric: str) -> pd.DataFrame:
    """Answer "which labels help here?": one cell's differences, best first, judged by ``p_holm_labels``.

    Raises:
        ConfigError: The comparison has no such domain (or ``mean``), condition or metric.
    """
    known = {"domain": (*comparison.domains, MEAN), "condition": comparison.conditions, "metric": METRICS}
    for kind, name in (("domain", focus.domain), ("condition", focus.condition), ("metric", metric)):
        if name not in known[kind]:
            raise ConfigError(f"{kind} {name!r} is not in this comparison.{nearest(name, known[kind])}")
    table = comparison.differences
    here = (table["domain"] == focus.domain) & (table["condition"] == focus.condition)
    rows = table[here & (table["metric"] == metric)]
    rows = rows.sort_values("mean_difference", ascending=False, kind="stable", ignore_index=True)
    judged = zip(rows["seeds"], rows["mean_difference"], rows["p_holm_labels"], strict=True)
    return rows.assign(verdict=[verdict(*row) for row in judged])


def _counts(images: pd.DataFrame) -> dict[str, ImageCounts]:
    counts = {}
    for domain in domain_names(images):
        label = images["label"][images["domain"] == domain]
        counts[domain] = ImageCounts(good=int((label == 0).sum()), fault=int((label == 1).sum()))
    return counts
