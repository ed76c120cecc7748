"""Compare methods: mean and spread over seeds, and paired differences to a reference, as tidy tables.

All tables follow from the metrics of every run in every place (a domain or their mean, and a condition) and
from one draw of images that all runs share. A difference is significant only by a p-value after Holm's
correction. ``p_holm`` corrects over the domains of one label, condition and metric (the spec's family: does
this label differ anywhere?). ``p_holm_labels`` corrects over all compared labels of one domain, condition and
metric (which of these labels helps here?). The row ``mean`` has no family of domains, so its ``p_holm`` is
``p_holm_labels``. Legend: P places, M runs, N images, B draws, R metrics with an interval over images, K
metrics. Source: protocols.md, "Statistics between methods".
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from dinomaly_hd.errors import ConfigError, nearest
from dinomaly_hd.evaluation import metrics, statistics
from dinomaly_hd.evaluation.comparison_members import MemberRun, Settings, same_images, settings_of
from dinomaly_hd.evaluation.metrics import NAN, FloatArray, IntArray
from dinomaly_hd.evaluation.results import (
    ALL,
    FPR_TARGETS,
    WITH_INTERVAL,
    domain_names,
    of_condition,
    rates,
    shown_conditions,
)
from dinomaly_hd.evaluation.statistics import DRAWS, bootstrap, named_generator

NAMES = {
    "auroc": "AUROC",
    "tpr_at_fpr_1pct": "TPR at FPR 1 %",
    "tpr_at_fpr_5pct": "TPR at FPR 5 %",
    "average_precision": "average precision",
}
METRICS = tuple(NAMES)
SHOWN = ("auroc", "tpr_at_fpr_1pct")  # what a report shows; the tables hold all metrics
MEAN = "mean"
LEAST_SEEDS = 3
SIGNIFICANT = 0.05
HIGHER, LOWER, NOT_SHOWN = "higher", "lower", "no difference shown"
PLACE = ["domain", "condition"]


class Focus(NamedTuple):
    """One domain (or ``mean``) and condition that a comparison asks about, e.g. domain_C, cold."""

    domain: str
    condition: str


class Cell(NamedTuple):
    """Scores (M, N) and labels (N,) of one focus, and the draws (M, B, R) of their metrics."""

    scores_MN: FloatArray
    label: IntArray
    draws_MBR: FloatArray


Cells = Mapping[tuple[str, str], Cell]  # by domain and condition
Pairs = dict[str, list[tuple[int, int, int]]]
"""By compared label each seed shared with the reference, and the two runs' places, reference first."""


@dataclass(frozen=True)
class Comparison:
    """Everything a comparison says; metrics are shares in [0, 1], differences are label minus reference.

    The tables' domains hold ``mean`` too, but for DeLong's. ``missing`` names each (label, seed) that another
    label has; ``counts`` are good and fault test images of "domain_C", "domain_C cold", ...
    """

    labels: tuple[str, ...]
    reference: str
    seeds: Mapping[str, tuple[int, ...]]
    missing: tuple[tuple[str, int], ...]
    domains: tuple[str, ...]
    conditions: tuple[str, ...]
    counts: Mapping[str, tuple[int, int]]
    data_digest: str
    runs: list[dict[str, str | int]]
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
    """
    images, scores_MN = same_images(members)
    runs: dict[str, dict[int, int]] = {}  # place among the members, by label and seed
    for place, member in enumerate(members):
        runs.setdefault(member.label, {})[member.seed] = place
    labels = tuple(runs)
    reference = labels[0] if reference is None else reference
    if reference not in labels:
        raise ConfigError(
            f"reference {reference!r} is not a label of these runs.{nearest(reference, labels)}"
        )
    draws = draws if len(labels) > 1 else 0
    cells = _cells(images, scores_MN, draws=draws, draw_seed=draw_seed, tick=tick)
    values, theirs = _values(members, cells), runs[reference]
    pairs = {
        label: [(seed, theirs[seed], own[seed]) for seed in sorted(own) if seed in theirs]
        for label, own in runs.items()
        if label != reference
    }
    seeds = {label: tuple(sorted(own)) for label, own in runs.items()}
    every_seed = sorted(set().union(*runs.values()))
    return Comparison(
        labels=labels,
        reference=reference,
        seeds=seeds,
        missing=tuple((label, seed) for label in labels for seed in every_seed if seed not in seeds[label]),
        domains=tuple(domain_names(images)),
        conditions=shown_conditions(images),
        counts={
            domain if condition == ALL else f"{domain} {condition}": (
                int((label == 0).sum()),
                int(label.sum()),
            )
            for (domain, condition), (_, label, _) in cells.items()
        },
        data_digest=str(members[0].result.get("data_digest", "unknown")),
        runs=[{"label": member.label, "seed": member.seed, "name": member.name} for member in members],
        settings=settings_of(members, compared=compared),
        values=values,
        means=values.groupby(["label", *PLACE, "metric"], sort=False)["value"]
        .agg(mean=_mean_of_known, std=lambda own: own.dropna().std(), n="count")
        .reset_index(),
        differences=_differences(pairs, cells, values, reference=reference),
        delong=_delong(pairs, cells, reference=reference),
    )


def focus_table(comparison: Comparison, focus: Focus, *, metric: str) -> pd.DataFrame:
    """Answer "which labels help here?": one cell's differences, best first, judged by ``p_holm_labels``."""
    rows = where(comparison.differences, **focus._asdict(), metric=metric)
    rows = rows.sort_values("mean_difference", ascending=False, kind="stable", ignore_index=True)
    return rows.assign(verdict=_verdicts(rows, "mean_difference", "p_holm_labels"))


def where(table: pd.DataFrame, **values: str) -> pd.DataFrame:
    for column, value in values.items():
        table = table[table[column] == value]
    return table


def verdict(seeds: int, difference: float, p: float) -> str:
    """Say in words what a corrected p-value over so many seeds allows."""
    if seeds < LEAST_SEEDS:
        return f"nothing can be concluded ({seeds} seed{'' if seeds == 1 else 's'})"
    if np.isnan(difference):
        return "nothing can be concluded (no value)"
    if p < SIGNIFICANT:
        return HIGHER if difference > 0 else LOWER
    return NOT_SHOWN


def _cells(
    images: pd.DataFrame, scores_MN: FloatArray, *, draws: int, draw_seed: int, tick: Callable[[], None]
) -> dict[tuple[str, str], Cell]:
    """Cut the images into domains x conditions and draw each cell's images once for all runs."""
    cells = {}
    for domain in domain_names(images):
        for condition in shown_conditions(images):
            rows = where(of_condition(images, condition), domain=domain)
            own_MN, label = scores_MN[:, rows.index], rows["label"].to_numpy(np.int64)
            draws_MBR = bootstrap(
                own_MN,
                label=label,
                max_fprs=tuple(FPR_TARGETS.values()),
                generator=named_generator(draw_seed, f"comparison/{domain}/{condition}"),
                draws=draws,
            )
            cells[domain, condition] = Cell(own_MN, label, draws_MBR)
            tick()
    return cells


def _values(members: Sequence[MemberRun], cells: Cells) -> pd.DataFrame:
    """Every metric of every run in every cell, and its mean over the domains that have it.

    Rows are sorted by place (the mean's last), run and metric.
    """
    rows = []
    for place, cell in cells.items():
        for member, score in zip(members, cell.scores_MN, strict=True):
            own = rates(score, cell.label)
            own["average_precision"] = metrics.average_precision(score, cell.label)
            rows += [(member.label, member.seed, *place, metric, own[metric]) for metric in METRICS]
    values = pd.DataFrame(rows, columns=["label", "seed", *PLACE, "metric", "value"])
    over_domains = values.groupby(["label", "seed", "condition", "metric"], sort=False)["value"]
    mean = over_domains.agg(_mean_of_known).reset_index().assign(domain=MEAN)
    return pd.concat([values, mean[values.columns]], ignore_index=True)


def _mean_of_known(values: "pd.Series[float]") -> float:
    # pandas' own "mean" of groups sums otherwise, to other last bits
    return values.dropna().mean()


def _draws(cells: Cells) -> dict[tuple[str, str], FloatArray]:
    """Draws of every cell, and of the mean over the domains that have both classes, drawn independently."""
    draws = {place: cell.draws_MBR for place, cell in cells.items()}
    for condition in dict.fromkeys(condition for _, condition in cells):
        parts = [cell.draws_MBR for (_, name), cell in cells.items() if name == condition]
        known = [part for part in parts if not np.isnan(part).any()]
        draws[MEAN, condition] = np.mean(known, axis=0) if known else np.full_like(parts[0], NAN)
    return draws


def _differences(pairs: Pairs, cells: Cells, values: pd.DataFrame, *, reference: str) -> pd.DataFrame:
    """Differences of seed means, label minus reference, paired over common seeds."""
    draws = _draws(cells)
    value_PMK = values["value"].to_numpy().reshape(len(draws), -1, len(METRICS))
    rows = []
    for label, common in pairs.items():
        first, second = [pair[1] for pair in common], [pair[2] for pair in common]
        for value_MK, (place, draws_MBR) in zip(value_PMK, draws.items(), strict=True):
            for metric, value_M in zip(METRICS, value_MK.T, strict=True):
                tested = statistics.paired_test(value_M[first], value_M[second])
                interval = NAN, NAN, "not drawn for this metric"
                if metric in WITH_INTERVAL:
                    drawn_MB = draws_MBR[:, :, WITH_INTERVAL.index(metric)]
                    interval = statistics.mean_difference_interval(drawn_MB[first], drawn_MB[second])
                rows.append((label, reference, *place, metric, *tested, *interval))
    head = ["label", "reference", *PLACE, "metric"]
    columns = [*head, *statistics.PairedTest._fields, "images_low", "images_high", "images_reason"]
    table = pd.DataFrame(rows, columns=columns)
    is_mean = table["domain"] == MEAN
    over_labels = table.groupby([*PLACE, "metric"], sort=False)["t_p"].transform(statistics.holm)
    single = table[~is_mean].groupby(["label", "condition", "metric"], sort=False)
    table["p_holm"] = over_labels.where(is_mean, single["t_p"].transform(statistics.holm))
    table["p_holm_labels"] = over_labels
    return table.assign(verdict=_verdicts(table, "mean_difference", "p_holm"))


def _delong(pairs: Pairs, cells: Cells, *, reference: str) -> pd.DataFrame:
    """DeLong's test of every run against the reference's run of the same seed.

    ``p_holm`` corrects over the domains of one run and condition. A verdict holds for these two runs only.
    """
    rows = [
        (
            label,
            reference,
            seed,
            *place,
            *statistics.delong(*cell.scores_MN[[first, second]], label=cell.label),
        )
        for label, common in pairs.items()
        for seed, first, second in common
        for place, cell in cells.items()
    ]
    columns = ["label", "reference", "seed", *PLACE, *statistics.DeLong._fields]
    table = pd.DataFrame(rows, columns=columns)
    family = table.groupby(["label", "seed", "condition"], sort=False)
    table["p_holm"] = family["p"].transform(statistics.holm)
    judged = _verdicts(table.assign(seeds=LEAST_SEEDS), "difference", "p_holm")
    return table.assign(verdict=[f"these two runs: {text}" for text in judged])


def _verdicts(table: pd.DataFrame, difference: str, p: str) -> list[str]:
    return [verdict(*row) for row in zip(table["seeds"], table[difference], table[p], strict=True)]
