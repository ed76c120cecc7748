"""Writes what a study found, and beside which known settings, to its folder and to its MLflow run."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd

from dinomaly_hd.config.base import text_of
from dinomaly_hd.config.run import RunConfig
from dinomaly_hd.config.variants import config_label
from dinomaly_hd.evaluation.report import render, write_files
from dinomaly_hd.experiments.trial import COARSE, RUN_ID, beside
from dinomaly_hd.names import listed
from dinomaly_hd.runs.folder import Context
from dinomaly_hd.runs.pages import members_line, these_runs
from dinomaly_hd.runs.tracker import Tracker
from dinomaly_hd.tuning.results import (
    BY_SEED,
    COMPLETE,
    CONFIG,
    TEST,
    Row,
    best_of,
    condition_of,
    conditions_text,
    recipe_of,
    rows_of,
    study_pictures,
)
from dinomaly_hd.tuning.space import TOPK
from dinomaly_hd.tuning.study import FAILED, SYNTHETIC, Joined, Plan
from dinomaly_hd.tuning.study import TEST as BY_TEST

SHOWN_TIES = 12
REPORT, BEST, TRIALS = "report", "best.yaml", "trials.csv"
CAVEATS = {
    SYNTHETIC: "The best of many trials looks better on the figure that chose it than it is: only runs with "
    "other seeds tell what it is worth. Test figures stand beside the objective and were not used.",
    BY_TEST: "The objective is measured on test images (objective=test): what is found fits these images, "
    "and its figures are optimistic.",
}


def report_study(joined: Joined, context: Context, page: Tracker) -> None:
    """Write report.html, report.md, best.yaml, trials.csv and plots/, log them, and print the report."""
    plan, folder = joined.plan, joined.plan.folder(context.result_dir)
    rows = rows_of(joined.study)
    best = best_of(rows)
    runs = {row.number: plan.build(row.notes[CONFIG], plan.seeds[0]) for row in best}
    commands = [recipe_of(runs[row.number], spelt=tuple(row.params)).command(plan.seeds) for row in best]
    known = [row for row in rows if row.setting and row.state == COMPLETE and row not in best]
    pictures = study_pictures(joined.study, names=tuple(plan.space.dimensions), objectives=plan.keys)
    ties = _ties(plan, rows, best)
    content = {
        "title": f"Study {plan.study}",
        "facts": _facts(plan, context, rows, best),
        "caveat": CAVEATS[plan.objective],
        "ties": ties,
        "commands": commands,
        "tables": {
            "Found and known settings, %": _table(plan, [*best, *known], best),
            "All trials; figures in %, - where a value does nothing": _table(plan, rows, best),
        },
        "pictures": pictures.values(),
    }
    texts = {f"{REPORT}.{form}": render(f"study.{form}", **content) for form in ("html", "md")}
    texts[TRIALS] = _trials(plan, rows).to_csv(index=False)
    if best:
        head = [f"The best of study {plan.study}.", *commands]
        found = [_condition(plan, row, runs[row.number], best) for row in best]
        texts[BEST] = conditions_text(found, comment=head)
        page.tags({"best_trial": str(best[0].number), "best_config": str(best[0].notes[CONFIG])})
    for path in write_files(folder, texts, pictures):
        page.artifact(path, folder=None if path.parent == folder else path.parent.name)
    so_far = float("-inf")
    for row in rows:
        so_far = max(so_far, row.values[0]) if row.state == COMPLETE else so_far
        if so_far > float("-inf"):
            page.metrics({f"best/{plan.keys[0]}": so_far}, step=row.number)
    markdown = texts[f"{REPORT}.md"]
    runs_of = [str(row.notes[RUN_ID]) for row in rows if RUN_ID in row.notes]
    links = members_line(page.experiment_id, page.run_id, runs_of, what="trials", report=f"{REPORT}.html")
    page.note(f"{links}{markdown}")
    figures = list(dict.fromkeys([*plan.keys, *beside(plan)]))
    columns = {"tags": ["trial", "setting"], "metrics": figures, "params": list(plan.space.dimensions)}
    which = these_runs(runs_of, sweep=plan.study, kind="trial")
    page.view(which, name=None, columns=columns, charts=figures, images=[])
    for line in (*markdown.splitlines(), *ties, f"report: {folder / REPORT}.html"):
        context.say(line)


def _facts(plan: Plan, context: Context, rows: Sequence[Row], best: Sequence[Row]) -> dict[str, str]:
    states = Counter(row.state for row in rows)
    coarse = best[0].notes.get(COARSE, []) if best and any("tpr" in key for key in plan.keys) else []
    return {
        "command": context.command,
        "storage": plan.address.shown,
        "trials": ", ".join(f"{states[state]} {state}" for state in sorted(states)) or "none",
        "config searched around": plan.config,
        "objective": ", ".join(plan.keys),
        **({"resolution": "; ".join(coarse)} if coarse else {}),
        "seeds of a trial": ", ".join(map(str, plan.seeds)),
        "suggested by": plan.sampler,
        "given up": plan.pruning.text,
    }


def _ties(plan: Plan, rows: Sequence[Row], best: Sequence[Row]) -> list[str]:
    """Name the best as what they are where others score alike: the objective cannot tell them apart."""
    complete = [row for row in rows if row.state == COMPLETE]
    lines = []
    for values in dict.fromkeys(row.rounded for row in best):
        alike = [str(row.number) for row in complete if row.rounded == values]
        if len(alike) > 1:
            figures = ", ".join(
                f"{key} {_percent(value)} %" for key, value in zip(plan.keys, values, strict=True)
            )
            shown = "the first of them is shown" if len(plan.keys) == 1 else "all of them are shown"
            named = listed(alike, most=SHOWN_TIES)
            lines.append(f"{len(alike)} of {len(complete)} trials tie at {figures} (trials {named}); {shown}")
    return lines


def _condition(plan: Plan, row: Row, run: RunConfig, best: Sequence[Row]) -> dict[str, Any]:
    """Return one of the best trials as a condition; with one seed its numbers are the trial's."""
    figures = ", ".join(f"{key} {value:.4f}" for key, value in zip(plan.keys, row.values, strict=True))
    return condition_of(
        run,
        name=f"{plan.study}_best" if len(best) == 1 else f"{plan.study}_trial_{row.number:04d}",
        description=f"trial {row.number} of study {plan.study}: {figures}",
        spelt=[name for name in row.params if name != TOPK],
    )


def _trials(plan: Plan, rows: Sequence[Row]) -> pd.DataFrame:
    body = [
        {"trial": row.number, "state": row.state, "setting": config_label(row.setting)}
        | dict(zip(plan.keys, row.values, strict=False))
        | row.params
        | {f"test {name}": value for name, value in row.notes.get(TEST, {}).items()}
        for row in rows
    ]
    test = [f"test {name}" for name in beside(plan)]
    columns = ["trial", "state", "setting", *plan.keys, *plan.space.dimensions, *test]
    return pd.DataFrame(body, columns=columns, dtype=object)


def _table(plan: Plan, rows: Sequence[Row], best: Sequence[Row]) -> pd.DataFrame:
    """Return trials as texts: objective, its seeds one by one, test figures, and what was searched."""
    ahead = {row.rounded for row in best}
    names = []
    for row in rows:
        tied = row.state == COMPLETE and row.rounded in ahead
        mark = "best: " if row in best else "tied: " if tied else ""
        names.append(f"{mark}{row.number}{f' ({config_label(row.setting)})' if row.setting else ''}")
    trials, test = _trials(plan, rows), [f"test {name}" for name in beside(plan)]
    figures = trials[[*plan.keys, *test]].map(_percent, na_action="ignore")
    figures = figures.rename(columns={f"test {name}": f"{name} (test, not used)" for name in beside(plan)})
    for place, seed in enumerate(plan.seeds if len(plan.seeds) > 1 else (), start=len(plan.keys)):
        own = [row.notes.get(BY_SEED, {}).get(str(seed), []) for row in rows]
        figures.insert(place, f"seed {seed}", [" / ".join(map(_percent, values)) for values in own])
    figures.insert(0, "state", [row.notes.get(FAILED, row.state) for row in rows])
    figures.insert(0, "trial", names)
    searched = trials[list(plan.space.dimensions)].map(
        lambda value: f"{value:.3g}" if isinstance(value, float) else text_of(value), na_action="ignore"
    )
    return pd.concat([figures, searched], axis=1).astype(object).fillna("-")


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"
