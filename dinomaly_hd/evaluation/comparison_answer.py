"""What a comparison says first: a sentence by its corrected tests, its labels in order, one image by all."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from dinomaly_hd.evaluation.compare import (
    HIGHER,
    LEAST_SEEDS,
    LOWER,
    MEAN,
    SHOWN,
    Comparison,
    Focus,
    focus_table,
    where,
)
from dinomaly_hd.evaluation.comparison_members import MemberRun
from dinomaly_hd.evaluation.comparison_pages import Question, Table, p_text, points
from dinomaly_hd.evaluation.pictures import LONGEST_STEM, cut_panel
from dinomaly_hd.evaluation.pointing import PERCENTILE, POINTED, where_text
from dinomaly_hd.evaluation.report import mean_and_spread, percent
from dinomaly_hd.evaluation.results import ALL, condition_names, of_condition
from dinomaly_hd.names import listed

MOST_NAMED = 6
SHORT = {"auroc": "AUROC", "tpr_at_fpr_1pct": "TPR 1 %"}


class OneImage(NamedTuple):
    """Test images through every model: what each is, its pixels; by label the maps and what they say."""

    images: list[tuple[str, bytes]]
    maps: dict[str, list[tuple[bytes, str]]]


def asked_focus(comparison: Comparison, question: Question) -> Focus:
    """Return where the question is answered, which no figure chooses: its domain, else their mean."""
    domains = comparison.domains
    place = question.place if question.place in domains else MEAN
    return Focus(domains[0] if len(domains) == 1 else place, ALL)


def answer(comparison: Comparison, focus: Focus) -> str:
    """Return the sentence: by AUROC, and only by p-values corrected over the labels, never by a bare mean."""
    reference, place = comparison.reference, "the mean over domains" if focus.domain == MEAN else focus.domain
    if not comparison.others:
        return f"There is one label only, {reference}: nothing is compared."
    rows = focus_table(comparison, focus, metric="auroc")
    few = rows[rows["seeds"] < LEAST_SEEDS]
    judged = rows[(rows["seeds"] >= LEAST_SEEDS) & rows["mean_difference"].notna()]
    if judged.empty:
        seeds = f"fewer than {LEAST_SEEDS} seeds in common with {reference} ({rows['seeds'].max()} at most)"
        missing = seeds if len(few) == len(rows) else f"no AUROC can be had on {place}"
        return f"Nothing can be concluded: {missing}."
    higher, lower = (judged[judged["verdict"] == verdict] for verdict in (HIGHER, LOWER))
    best = (higher if len(higher) else judged).iloc[0]
    own, theirs = _means(comparison, focus, best["label"])
    tests = rows["p_holm_labels"].count()
    corrected = f" after correction over {tests} labels" if tests > 1 else ""
    found = best["reason"] or f"p {p_text(best['p_holm_labels'])}{corrected}"
    tested = f"{best['seeds']} seeds, {found}"
    if len(higher):
        highest = " and has the highest mean" if best.equals(rows.iloc[0]) else ""
        text = (
            f"{best['label']} is better than {reference} on {place}{highest}: "
            f"AUROC {own} against {theirs} %, {tested}"
        )
        if len(higher) > 1:
            text += f"; better than {reference} too: {_named(higher[1:])}"
    elif len(lower) == len(rows):
        text = (
            f"{reference} is the best on {place}: AUROC {theirs} against {own} % of the next, "
            f"{best['label']}, {tested}"
        )
    elif len(lower):
        text = f"Nothing better than {reference} is shown on {place}; worse are {_named(lower)}"
    else:
        text = (
            f"Nothing shown: on {place} no label's AUROC differs significantly from that of {reference}, "
            f"{theirs} %; the highest other is {best['label']}, {own} %, {tested}"
        )
    shown = higher if len(higher) else lower
    if len(unsafe := shown[(shown["images_low"] <= 0) & (shown["images_high"] >= 0)]):
        text += f"; other test images might turn it round for {listed([*unsafe['label']], most=MOST_NAMED)}"
    return f"{text}{f'; nothing can be concluded about {_named(few)}, of too few seeds' if len(few) else ''}."


def _named(rows: pd.DataFrame) -> str:
    named = zip(rows["label"], rows["mean_difference"].map(points), strict=True)
    return listed([f"{label} ({difference})" for label, difference in named], most=MOST_NAMED)


def _means(comparison: Comparison, focus: Focus, label: str) -> tuple[str, str]:
    """Return a label's and the reference's mean over their common seeds."""
    values = where(comparison.values, **focus._asdict(), metric="auroc")
    common = values[values["seed"].isin(comparison.common_seeds(label))]
    means = common.groupby("label")["value"].mean()
    return percent(means[label], 1), percent(means[comparison.reference], 1)


def ranking(comparison: Comparison, focus: Focus, focuses: Sequence[Focus]) -> Table:
    """Return a row a label, highest mean AUROC at ``focus`` first, with its test against the reference."""
    means = where(comparison.means, **focus._asdict(), metric="auroc").set_index("label")["mean"]
    order = means.sort_values(ascending=False, kind="stable").index
    columns: dict[str, Any] = {"label": order, "seeds": [len(comparison.seeds[label]) for label in order]}
    for place in dict.fromkeys([focus, *focuses]):
        for metric in SHOWN if place == focus else SHOWN[:1]:
            values = where(comparison.values, **place._asdict(), metric=metric)
            texts = values.groupby("label")["value"].agg(mean_and_spread)
            columns[f"{SHORT[metric]} {' '.join(place)}".removesuffix(f" {ALL}")] = texts[order].to_numpy()
    if comparison.others:
        tests = focus_table(comparison, focus, metric="auroc").set_index("label").reindex(order)
        columns["points"] = tests["mean_difference"].map(points).to_numpy()
        columns["p (labels)"] = tests["p_holm_labels"].map(p_text).to_numpy()
        columns["verdict"] = tests["verdict"].fillna("reference").to_numpy()
    notes = ("ranking",) if comparison.others else ()
    return Table(f"Highest AUROC on {' '.join(focus)} first, in %", pd.DataFrame(columns), notes)


def one_image(members: Sequence[MemberRun], *, hard: str) -> OneImage | None:
    """Return what each label's lowest common seed made of the same images, None where they drew none alike.

    Chosen are, by their paths, a fault of each condition and a normal of the ``hard`` domain, and a fault of
    another one. Colours are every model's own: up to the 99.5 % quantile of its normals' maps.
    """
    seeds: dict[str, set[int]] = {}
    for one in members:
        seeds.setdefault(one.label, set()).add(one.seed)
    common = set.intersection(*seeds.values())
    own = [one for one in members if one.seed == min(common or seeds[one.label])]
    drawn = [_drawn(one) for one in own]
    rows = own[0].scores.assign(key=[_key(row) for _, row in own[0].scores.iterrows()]).sort_values("path")
    rows = rows.drop_duplicates("key", keep=False)
    rows = rows[[all(key in pictures for pictures in drawn) for key in rows["key"]]]
    if rows.empty:
        return None
    hard = hard if hard in set(rows["domain"]) else rows["domain"].iloc[0]
    here, faults = rows["domain"] == hard, rows["label"] == 1
    parts = [of_condition(rows[here & faults], name)[:1] for name in condition_names(rows)]
    chosen = pd.concat([*parts, rows[~here & faults][:1], rows[here & ~faults][:1]]).drop_duplicates("key")
    names = (chosen["path"] + ", " + chosen["condition"]).str.removesuffix(f", {ALL}")
    inputs = [cut_panel(drawn[0][key], "input") for key in chosen["key"]]
    maps = {}
    for one, pictures in zip(own, drawn, strict=True):
        pointed = one.scores.set_index("path").reindex(chosen["path"], columns=[*POINTED, PERCENTILE])
        said = [where_text(row) for _, row in pointed.astype(dict.fromkeys(POINTED, "Int64")).iterrows()]
        cut = [cut_panel(pictures[key], "anomaly map") for key in chosen["key"]]
        maps[f"{one.label}, seed {one.seed}"] = list(zip(cut, said, strict=True))
    return OneImage(list(zip(names, inputs, strict=True)), maps)


def _key(row: "pd.Series[Any]") -> str:
    return f"{row['domain']}/{'fault' if row['label'] else 'good'}/{Path(row['path']).stem[-LONGEST_STEM:]}"


def _drawn(member: MemberRun) -> dict[str, Path]:
    """Return the pictures in a run's folders by domain, kind and the end of the image's name."""
    found = (path for folder in member.folders for path in (folder / "anomaly_maps").glob("**/*_*_*_*.png"))
    paths = [path for path in found if path.stat().st_size]  # a power cut may leave empty ones
    parts = [path.stem.split("_", 3) for path in paths]
    return {f"{path.parent.name}/{one[0]}/{one[3]}": path for path, one in zip(paths, parts, strict=True)}
