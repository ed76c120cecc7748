"""What a report says of transfer: a table of figures by label, and all pairs of source and target."""

from collections.abc import Mapping, Sequence

import numpy as np

from dinomaly_hd.evaluation.comparison_members import MemberRun
from dinomaly_hd.evaluation.comparison_tables import Table
from dinomaly_hd.evaluation.metrics import number
from dinomaly_hd.evaluation.report import Picture
from dinomaly_hd.evaluation.summary import percent
from dinomaly_hd.evaluation.transfer import FIGURES
from dinomaly_hd.evaluation.transfer_plots import pairs_picture

FROM = " from "
"""Between a model and its source in the label of a run, where a comparison has several sources."""
NAMES = {
    "source_auroc": "source AUROC",
    "average_target_auroc": "mean target AUROC",
    "transfer_ratio": "ratio",
    "domain_gap": "gap",
    "chance_corrected_ratio": "ratio above chance",
}
NOTE = (
    "All in %: mean ± standard deviation over seeds. Ratio: mean target over source; gap: source less mean "
    "target; ratio above chance: the same of what each has beyond 50. Targets without an AUROC are left "
    "out of the mean, and named."
)


def transfer_table(members: Sequence[MemberRun]) -> Table | None:
    """Return the transfer figures of each label, None unless every run has some."""
    if not all("transfer" in one.result for one in members):
        return None
    body = []
    for label in dict.fromkeys(one.label for one in members):
        transfers = [one.result["transfer"] for one in members if one.label == label]
        sources = " ".join(transfers[0]["source_domains"])
        missing = sorted({name for transfer in transfers for name in transfer["missing_targets"]})
        cells = [_cell([number(transfer[name]) for transfer in transfers]) for name in FIGURES]
        body.append([label, sources, *cells, ", ".join(missing) or "-"])
    head = ["label", "source", *(NAMES[name] for name in FIGURES), "left out"]
    return Table("Transfer from the source to the other domains", head, body, (NOTE,))


def pairs_pictures(members: Sequence[MemberRun]) -> dict[str, Picture]:
    """Return a heat map of AUROC, source by target, for each model that has several single sources."""
    found: dict[str, dict[tuple[str, str], list[float]]] = {}
    for one in members:
        sources = one.result.get("transfer", {}).get("source_domains", [])
        for target, block in one.result["per_domain_metrics"].items():
            if len(sources) == 1:
                cells = found.setdefault(one.label.rpartition(FROM)[0], {})
                cells.setdefault((sources[0], target), []).append(number(block["auroc"]))
    several = {model: cells for model, cells in found.items() if len({source for source, _ in cells}) > 1}
    return {
        f"transfer_{number}": pairs_picture(_means(cells), title=model)
        for number, (model, cells) in enumerate(several.items(), start=1)
    }


def _means(cells: Mapping[tuple[str, str], Sequence[float]]) -> dict[tuple[str, str], float]:
    return {pair: float(np.mean(values)) for pair, values in cells.items() if not np.isnan(values).any()}


def _cell(values: Sequence[float]) -> str:
    have = [value for value in values if not np.isnan(value)]
    if not have:
        return "-"
    spread = f" ± {percent(float(np.std(have, ddof=1)))}" if len(have) > 1 else ""
    return percent(float(np.mean(have))) + spread
