"""The report on a study, as a page and as Markdown: what was found, and beside which known settings."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dinomaly_hd.evaluation.report import Picture, render
from dinomaly_hd.tuning.queue import FAILED
from dinomaly_hd.tuning.trials import COMPLETE, FAILURE, Row, best_of

BY_SEED, TEST, CONFIG = "by_seed", "test", "config"
"""Names of what a trial notes for its report."""
CAVEAT = (
    "The best of many trials looks better on the figure that chose it than it is: only runs with other seeds "
    "tell what it is worth. Test figures stand beside the objective and were not used."
)
BY_TEST = (
    "The objective is measured on test images (objective=test): what is found fits these images, and its "
    "figures are optimistic."
)


class Story(NamedTuple):
    """What the report says beside the trials.

    Attributes:
        title: Heading.
        facts: Name -> text, above the tables.
        objectives: What is maximised.
        test: Test figures shown beside it.
        seeds: Of every trial.
        by_test: Whether test images chose.
        commands: Of the best trials, by number.
        names: Searched.
    """

    title: str
    facts: Mapping[str, str]
    objectives: tuple[str, ...]
    test: tuple[str, ...]
    seeds: tuple[int, ...]
    by_test: bool
    commands: Mapping[int, str]
    names: tuple[str, ...]


class Table(NamedTuple):
    """A table of plain texts."""

    caption: str
    head: list[str]
    body: list[list[str]]


def study_html(rows: Sequence[Row], *, story: Story, pictures: Mapping[str, Picture]) -> str:
    """Return the whole page."""
    return render(
        "study.html",
        title=story.title,
        facts=story.facts,
        caveat=BY_TEST if story.by_test else CAVEAT,
        known=_known_table(rows, story),
        commands=story.commands.values(),
        trials=_trials_table(rows, story),
        pictures=pictures.values(),
    )


def study_markdown(rows: Sequence[Row], *, story: Story) -> str:
    """Return the same without pictures."""
    lines = [f"# {story.title}", ""]
    lines += [f"* {name}: `{text}`" for name, text in story.facts.items()]
    lines += ["", BY_TEST if story.by_test else CAVEAT]
    lines += ["", *_markdown(_known_table(rows, story)), "", "**The best again**", ""]
    lines += [f"    {command}" for command in story.commands.values()]
    lines += ["", *_markdown(_trials_table(rows, story))]
    return "\n".join(lines) + "\n"


def _known_table(rows: Sequence[Row], story: Story) -> Table:
    """The best trials and the known settings: objective, its seeds one by one, and the test figures."""
    best = best_of(rows)
    known = [row for row in rows if row.setting and row.state == COMPLETE and row not in best]
    head = ["trial", *story.objectives]
    several = len(story.seeds) > 1
    head += [f"seed {seed}" for seed in story.seeds] if several else []
    head += [f"{name} (test, not used)" for name in story.test]
    body = []
    for row in [*best, *known]:
        name = f"{'best: ' if row in best else ''}{row.number}{f' ({row.setting})' if row.setting else ''}"
        by_seed = [row.notes.get(BY_SEED, {}).get(str(seed), []) for seed in story.seeds] if several else []
        seeds = [" / ".join(_percent(value) for value in values) for values in by_seed]
        body.append([name, *map(_percent, row.values), *seeds, *_test_cells(row, story)])
    return Table("Found and known settings, %", head, body)


def _trials_table(rows: Sequence[Row], story: Story) -> Table:
    head = ["trial", "state", *story.objectives, *story.names]
    head += [f"{name} (test, not used)" for name in story.test]
    body = []
    for row in rows:
        state = row.notes.get(FAILED, row.state) if row.state == FAILURE else row.state
        values = [_percent(value) for value in row.values] or ["-"] * len(story.objectives)
        values += ["-"] * (len(story.objectives) - len(values))
        params = [_shown(row.params.get(name)) for name in story.names]
        name = f"{row.number}{f' ({row.setting})' if row.setting else ''}"
        body.append([name, str(state), *values, *params, *_test_cells(row, story)])
    return Table("All trials; figures in %, - where a value does nothing", head, body)


def _test_cells(row: Row, story: Story) -> list[str]:
    figures = row.notes.get(TEST, {})
    return [_percent(figures[name]) if name in figures else "-" for name in story.test]


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value).lower()


def _markdown(table: Table) -> list[str]:
    head = [f"**{table.caption}**", "", _line(table.head), _line(["---"] * len(table.head))]
    return [*head, *(_line(cells) for cells in table.body)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
