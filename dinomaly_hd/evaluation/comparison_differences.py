"""Tables of paired differences to the reference: over seeds, over images, and run by run (DeLong).

A row is significant only by a p-value after Holm's correction. ``p_holm`` corrects over the domains of one
label, condition and metric (the spec's family: does this label differ anywhere?). ``p_holm_labels`` corrects
over all compared labels of one domain, condition and metric (which of these labels helps here?). The row
``mean`` has no family of domains, so its ``p_holm`` is ``p_holm_labels``.
Source: protocols.md, "Statistics between methods".
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from dinomaly_hd.evaluation import statistics
from dinomaly_hd.evaluation.blocks import WITH_INTERVAL
from dinomaly_hd.evaluation.comparison_cells import MEAN, METRICS, Cell, Place, ValueKey
from dinomaly_hd.evaluation.comparison_members import MemberRun
from dinomaly_hd.evaluation.metrics import NAN, FloatArray
from dinomaly_hd.evaluation.statistics import ImageInterval

LEAST_SEEDS = 3
SIGNIFICANT = 0.05
HIGHER, LOWER, NOT_SHOWN = "higher", "lower", "no difference shown"
DIFFERENCE_COLUMNS = (
    *("label", "reference", "domain", "condition", "metric", "seeds", "mean_difference"),
    *("seeds_low", "seeds_high", "t_p", "wilcoxon_p", "effect_size", "reason"),
    *("images_low", "images_high", "images_reason", "p_holm", "p_holm_labels", "verdict"),
)
DELONG_COLUMNS = (
    *("label", "reference", "seed", "domain", "condition", "auroc_reference", "auroc", "difference"),
    *("standard_error", "low", "high", "p", "reason", "p_holm", "verdict"),
)
WITHOUT_DRAWS = ImageInterval(NAN, NAN, "not drawn for this metric")

Positions = Mapping[str, Mapping[int, int]]  # label -> seed -> position among the runs


def difference_table(
    members: Sequence[MemberRun],
    values: Mapping[ValueKey, float],
    draws: Mapping[Place, FloatArray],
    *,
    reference: str,
) -> pd.DataFrame:
    """Differences of seed means, label minus reference, paired over common seeds: ``DIFFERENCE_COLUMNS``."""
    positions, rows = _positions(members), []
    for label in positions:
        seeds = sorted(positions[label].keys() & positions[reference].keys())
        if label == reference:
            continue
        first, second = ([positions[name][seed] for seed in seeds] for name in (reference, label))
        for (domain, condition), draws_MBR in draws.items():
            for metric in METRICS:
                at = (domain, condition, metric)
                before, after = ([values[name, seed, *at] for seed in seeds] for name in (reference, label))
                interval = WITHOUT_DRAWS
                if metric in WITH_INTERVAL:
                    drawn_MB = draws_MBR[:, :, WITH_INTERVAL.index(metric)]
                    interval = statistics.mean_difference_interval(drawn_MB[first], drawn_MB[second])
                rows.append((label, reference, *at, *statistics.paired_test(before, after), *interval))
    table = pd.DataFrame(rows, columns=list(DIFFERENCE_COLUMNS[:-3]))
    over_domains = _holm(table[table["domain"] != MEAN], "t_p", family=["label", "condition", "metric"])
    over_labels = _holm(table, "t_p", family=["domain", "condition", "metric"])
    table["p_holm"] = over_domains.reindex(table.index).fillna(over_labels.where(table["domain"] == MEAN))
    table["p_holm_labels"] = over_labels
    judged = zip(table["seeds"], table["mean_difference"], table["p_holm"], strict=True)
    table["verdict"] = [verdict(*row) for row in judged]
    return table


def delong_table(
    members: Sequence[MemberRun], cells: Mapping[Place, Cell], *, reference: str
) -> pd.DataFrame:
    """DeLong's test of every run against the reference's run of the same seed: ``DELONG_COLUMNS``.

    ``p_holm`` corrects over the domains of one run and condition. A verdict holds for these two runs only.
    """
    positions, rows = _positions(members), []
    for label in positions:
        seeds = sorted(positions[label].keys() & positions[reference].keys())
        for seed in seeds if label != reference else ():
            first, second = positions[reference][seed], positions[label][seed]
            for (domain, condition), cell in cells.items():
                tested = statistics.delong(cell.scores_MN[first], cell.scores_MN[second], label=cell.label)
                rows.append((label, reference, seed, domain, condition, *tested))
    table = pd.DataFrame(rows, columns=list(DELONG_COLUMNS[:-2]))
    table["p_holm"] = _holm(table, "p", family=["label", "seed", "condition"])
    judged = zip(table["difference"], table["p_holm"], strict=True)
    table["verdict"] = [f"these two runs: {verdict(LEAST_SEEDS, *row)}" for row in judged]
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


def _positions(members: Sequence[MemberRun]) -> dict[str, dict[int, int]]:
    positions: dict[str, dict[int, int]] = {}
    for position, member in enumerate(members):
        positions.setdefault(member.label, {})[member.seed] = position
    return positions


def _holm(table: pd.DataFrame, column: str, *, family: list[str]) -> pd.Series:
    """Corrected p-values, family by family, on the table's own index."""
    corrected = [pd.Series(dtype=np.float64)]
    for _, p_values in table.groupby(family, sort=False)[column]:
        corrected.append(pd.Series(statistics.holm(p_values.to_list()), index=p_values.index))
    together: pd.Series = pd.concat(corrected).reindex(table.index)
    return together
