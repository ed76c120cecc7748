"""A run's page: what its figures say to a gear engineer, maps to look at, then tables."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dinomaly_hd.evaluation.metrics import known
from dinomaly_hd.evaluation.report import (
    Picture,
    alarm_line,
    defect_table,
    detector_table,
    missing_lines,
    named_rows,
    percent,
    render,
    trivial_table,
)
from dinomaly_hd.evaluation.results import Block
from dinomaly_hd.names import listed

FOUND, CHANCE = 0.9, 0.5
TELLING = {
    "fault_highest_01": "the fault with the highest score",
    "fault_lowest": "the fault with the lowest score",
    "good_highest_01": "the healthy map with the highest score",
}
MOST_NAMED = 6


def verdict(result: Mapping[str, Any]) -> str:
    """Return where faults are found, also when cold, what simple scores find more, and the alarms raised."""
    domains = result["per_domain_metrics"]
    figures = {name: percent(own["auroc"], 1) for name, own in domains.items()}
    graded = _grouped({f"{one} ({figures[one]} %)": _grade(own) for one, own in domains.items()})
    said = [f"Faults are {'; '.join(f'{grade} on {names}' for grade, names in graded.items())}"]
    for name in hardest_first(result)[:1]:
        if cold := domains[name]["by_condition"].get("cold"):
            low, high = (percent(end, 0) for end in cold["intervals"]["auroc"])
            of_all = f"AUROC {percent(cold['auroc'], 1)} %, 95 % interval {low} to {high}, chance is 50"
            said.append(f"Cold maps of {name} by themselves: {_grade(cold)} ({of_all})")
    better = {
        score: listed([n for n in domains if own[n]["auroc"] > domains[n]["auroc"]], most=MOST_NAMED)
        for score, own in result["trivial"].items()
    }
    if better:
        groups = _grouped({score: names for score, names in better.items() if names})
        told = "; ".join(f"{scores} on {names}" for names, scores in groups.items())
        said.append(f"Simple scores with a higher AUROC: {told or 'none on any domain'}")
    if alarms := alarm_line(result):
        said.append(alarms)
    return ". ".join(said) + "."


def _grade(block: Block) -> str:
    low = known({"low": block["intervals"]["auroc"][0]}).get("low")
    if low is None:
        return "not measured"
    return "found" if low >= FOUND else "found in part" if low > CHANCE else "not shown to be found"


def _grouped(values: Mapping[str, str]) -> dict[str, str]:
    """Return the keys, listed, of each value."""
    groups: dict[str, list[str]] = {}
    for key, value in values.items():
        groups.setdefault(value, []).append(key)
    return {value: listed(keys, most=MOST_NAMED) for value, keys in groups.items()}


def hardest_first(result: Mapping[str, Any]) -> list[str]:
    """Return the domains that have an AUROC, the lowest first."""
    aurocs = known({name: own["auroc"] for name, own in result["per_domain_metrics"].items()})
    return sorted(aurocs, key=lambda name: aurocs[name])


def run_page(
    result: Mapping[str, Any], *, title: str, facts: Mapping[str, str], plots: Path, maps: Mapping[str, Path]
) -> str:
    """Return ``report.html``; ``maps`` are the folders of each domain's anomaly maps."""
    hard = hardest_first(result)
    ordered = [*hard, *(name for name in maps if name not in hard)]
    return render(
        "run.html",
        title=title,
        verdict=verdict(result),
        facts=facts,
        detector=named_rows(detector_table(result)),
        trivial=named_rows(trivial_table(result)),
        result=result,
        defects=named_rows(defect_table(result)),
        missing=missing_lines(result),
        gallery=[picture for name in ordered for picture in _telling(name, maps[name])],
        pictures=[Picture(path.stem, path.read_bytes()) for path in sorted(plots.glob("*.png"))],
    )


def _telling(domain: str, folder: Path) -> Iterator[Picture]:
    for start, what in TELLING.items():
        for path in sorted(folder.glob(f"{start}_*.png"))[-1:]:
            yield Picture(f"{domain}: {what}", path.read_bytes())
