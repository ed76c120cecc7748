"""Writes what a study found to its folder and to its MLflow run."""

import csv
import io
from collections.abc import Mapping, Sequence

from dinomaly_hd.runs.context import Context
from dinomaly_hd.experiments.study_plan import TEST as BY_TEST
from dinomaly_hd.experiments.study_plan import Plan, beside
from dinomaly_hd.experiments.trial import RUN_ID
from dinomaly_hd.files import publish, publish_text
from dinomaly_hd.runs.pages import members_line
from dinomaly_hd.runs.tracker import Tracker
from dinomaly_hd.tuning.dimensions import TOPK
from dinomaly_hd.tuning.methods import importances
from dinomaly_hd.tuning.plots import study_pictures
from dinomaly_hd.tuning.recipe import condition_of, conditions_text, recipe_of
from dinomaly_hd.tuning.report import CONFIG, TEST, Story, study_html, study_markdown
from dinomaly_hd.tuning.study import Joined
from dinomaly_hd.tuning.trials import COMPLETE, Row, best_of, rows_of

REPORT, BEST, TRIALS = "report", "best.yaml", "trials.csv"


def report_study(plan: Plan, context: Context, joined: Joined, page: Tracker) -> None:
    """Write report.html, report.md, best.yaml, trials.csv and plots/, log them, and print the report.

    Raises:
        OutputError: A file cannot be written.
    """
    folder = plan.folder(context.result_dir)
    rows = rows_of(joined.study)
    best = best_of(rows)
    commands = {row.number: _command(plan, row) for row in best}
    story = _story(plan, context, rows, commands)
    pictures = study_pictures(
        rows, names=story.names, objectives=plan.keys, importances=importances(joined.study)
    )
    files = [folder / f"{REPORT}.html", folder / f"{REPORT}.md", folder / TRIALS]
    markdown = study_markdown(rows, story=story)
    publish_text(files[0], study_html(rows, story=story, pictures=pictures))
    publish_text(files[1], markdown)
    publish_text(files[2], _csv(plan, rows, story))
    if best:
        files.append(folder / BEST)
        publish_text(files[-1], _conditions(plan, best, commands))
    for path in files:
        page.artifact(path)
    for name, picture in pictures.items():
        path = folder / "plots" / f"{name}.png"
        publish(path, lambda stream, png=picture.png: stream.write(png))  # type: ignore[misc]
        page.artifact(path, folder="plots")
    _log_best(plan, rows, best, page)
    page.note(f"{_links(plan, rows, page)}{markdown}")
    for line in markdown.splitlines():
        context.say(line)
    context.say(f"report: {files[0]}")


def _story(plan: Plan, context: Context, rows: Sequence[Row], commands: Mapping[int, str]) -> Story:
    states = [row.state for row in rows]
    counted = [f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(states))]
    facts = {
        "command": context.command,
        "storage": plan.address.shown,
        "trials": ", ".join(counted) or "none",
        "config searched around": plan.config,
        "objective": ", ".join(plan.keys),
        "seeds of a trial": ", ".join(map(str, plan.seeds)),
        "suggested by": plan.sampler,
        "given up": plan.pruning.text,
    }
    return Story(
        title=f"Study {plan.study}",
        facts=facts,
        objectives=plan.keys,
        test=beside(plan),
        seeds=plan.seeds,
        by_test=plan.objective == BY_TEST,
        commands=commands,
        names=tuple(plan.space.dimensions),
    )


def _command(plan: Plan, row: Row) -> str:
    run = plan.build(row.notes[CONFIG], plan.seeds[0])
    return recipe_of(run, spelt=tuple(row.params)).command(plan.seeds)


def _conditions(plan: Plan, best: Sequence[Row], commands: Mapping[int, str]) -> str:
    """Return the best trials as a conditions file; with one seed a condition's numbers are the trial's."""
    conditions = [
        condition_of(
            plan.build(row.notes[CONFIG], plan.seeds[0]),
            name=f"{plan.study}_best" if len(best) == 1 else f"{plan.study}_trial_{row.number:04d}",
            description=f"trial {row.number} of study {plan.study}: "
            + ", ".join(f"{key} {value:.4f}" for key, value in zip(plan.keys, row.values, strict=True)),
            spelt=[name for name in row.params if name != TOPK],
        )
        for row in best
    ]
    return conditions_text(conditions, comment=[f"The best of study {plan.study}.", *commands.values()])


def _csv(plan: Plan, rows: Sequence[Row], story: Story) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ["trial", "state", "setting", *plan.keys, *story.names, *(f"test {n}" for n in story.test)]
    )
    for row in rows:
        values = [*row.values, *[""] * (len(plan.keys) - len(row.values))]
        params = [row.params.get(name, "") for name in story.names]
        test = [row.notes.get(TEST, {}).get(name, "") for name in story.test]
        writer.writerow([row.number, row.state, row.setting, *values, *params, *test])
    return stream.getvalue()


def _links(plan: Plan, rows: Sequence[Row], page: Tracker) -> str:
    if page.experiment_id is None or page.run_id is None:
        return ""
    return members_line(
        page.experiment_id,
        page.run_id,
        [str(row.notes[RUN_ID]) for row in rows if RUN_ID in row.notes],
        what="trials",
        sweep=plan.study,
        kind="trial",
        report=f"{REPORT}.html",
    )


def _log_best(plan: Plan, rows: Sequence[Row], best: Sequence[Row], page: Tracker) -> None:
    """Log the best value so far by trial, and which config it is in the end."""
    so_far = float("-inf")
    for row in rows:
        if row.state == COMPLETE and row.values[0] > so_far:
            so_far = row.values[0]
        if so_far > float("-inf"):
            page.metrics({f"best/{plan.keys[0]}": so_far}, step=row.number)
    if best:
        page.tags({"best_trial": str(best[0].number), "best_config": str(best[0].notes[CONFIG])})
