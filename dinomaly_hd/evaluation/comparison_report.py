"""A comparison as Markdown to paste, as one HTML page that needs nothing else, and as CSV."""

import re
from collections.abc import Mapping, Sequence

from dinomaly_hd.evaluation import page
from dinomaly_hd.evaluation.comparison import Comparison, Focus
from dinomaly_hd.evaluation.comparison_cells import MEAN, METRICS, SHOWN
from dinomaly_hd.evaluation.comparison_reading import Story, reading
from dinomaly_hd.evaluation.comparison_tables import (
    Table,
    delong_text,
    differences_text,
    focus_text,
    means_table,
)
from dinomaly_hd.evaluation.report import Picture
from dinomaly_hd.evaluation.results import ALL

NO_DIFFERENCES = "There is one label only, so there are no differences to show."


def comparison_csv(comparison: Comparison) -> dict[str, str]:
    """Return the four tables as CSV texts by file name; shares in [0, 1], NaN empty."""
    tables = {
        "values.csv": comparison.values,
        "means.csv": comparison.means,
        "differences.csv": comparison.differences,
        "delong.csv": comparison.delong,
    }
    return {name: table.to_csv(index=False, lineterminator="\n") for name, table in tables.items()}


def comparison_markdown(
    comparison: Comparison, *, story: Story, focuses: Sequence[Focus], more: Sequence[Table] = ()
) -> str:
    """Return question, reading, main tables, ``more`` and focus tables, short enough for a README."""
    tables = [means_table(comparison, condition=ALL, metric=metric) for metric in SHOWN]
    tables += more
    if comparison.others:
        tables += [focus_text(comparison, focus, metric=metric) for focus in focuses for metric in SHOWN]
    lines = [f"# {_line(story.title)}", "", _line(story.question), "", f"    {_line(story.command)}", ""]
    lines += [f"- {name}: {_escaped(text)}" for name, text in _facts(comparison).items()]
    lines += [f"- {_escaped(text)}" for text in comparison.settings.notes]
    lines += ["", "## Reading", ""]
    sentences = reading(comparison, failed=story.failed, focuses=focuses)
    lines += [f"- {_escaped(text)}" for text in sentences]
    lines += ["", "## Tables", ""]
    told: set[str] = set()
    for table in tables:
        lines += _markdown_table(table)
        lines += [text for note in table.notes if note not in told for text in (_escaped(note), "")]
        told.update(table.notes)
    return "\n".join(lines).rstrip() + "\n"


def comparison_html(
    comparison: Comparison,
    *,
    story: Story,
    focuses: Sequence[Focus],
    pictures: Mapping[str, Picture],
    more: Sequence[Table] = (),
) -> str:
    """Return the page; ``more`` tables stand behind the means, ``pictures`` in their order."""
    parts = [
        page.paragraph(story.question),
        page.facts({"command": story.command, **_facts(comparison)}),
        *_settings(comparison),
        page.heading("Reading"),
        page.bullets(reading(comparison, failed=story.failed, focuses=focuses)),
        page.heading("Means over seeds"),
    ]
    for condition in dict.fromkeys([ALL, *comparison.conditions]):
        parts += [
            _html_table(means_table(comparison, condition=condition, metric=metric)) for metric in SHOWN
        ]
    parts += [_html_table(table) for table in more]
    if comparison.others:
        for focus in focuses:
            parts.append(page.heading(f"Which labels differ on {focus.domain} {focus.condition}?"))
            parts += [_html_table(focus_text(comparison, focus, metric=metric)) for metric in SHOWN]
            if focus.domain != MEAN:
                parts.append(_folded(delong_text(comparison, focus)))
    parts.append(page.heading("Pictures"))
    parts += [page.figure(picture.caption, picture.png) for picture in pictures.values()]
    parts.append(page.heading("All differences"))
    if comparison.others:
        parts += [_folded(differences_text(comparison, metric=metric)) for metric in METRICS]
    else:
        parts.append(page.paragraph(NO_DIFFERENCES))
    return page.page(story.title, parts)


def _facts(comparison: Comparison) -> dict[str, str]:
    seeds = sorted({run.seed for run in comparison.runs})
    counts = comparison.counts.items()
    facts = {
        "labels": ", ".join(comparison.labels),
        "reference": comparison.reference,
        "seeds": ", ".join(str(seed) for seed in seeds),
        "runs": str(len(comparison.runs)),
        "test images (good + fault)": ", ".join(f"{name} {c.good} + {c.fault}" for name, c in counts),
        "data digest": comparison.data_digest,
    }
    return facts if comparison.others else {k: v for k, v in facts.items() if k != "reference"}


def _settings(comparison: Comparison) -> list[str]:
    settings = comparison.settings
    labels = {
        label: ", ".join(f"{name} {text}" for name, text in values.items() if text != "-")
        or "no such settings"
        for label, values in settings.by_label.items()
    }
    runs = [[run.label, str(run.seed), run.name] for run in comparison.runs]
    parts = []
    if any(settings.by_label.values()):
        parts.append(page.folded("What the labels stand for", page.facts(labels)))
    parts.append(page.folded(f"The {len(runs)} runs", page.table("", ["label", "seed", "run"], runs)))
    parts.append(page.folded(f"{len(settings.equal)} settings equal in all runs", page.facts(settings.equal)))
    if settings.notes:
        parts += [page.heading("What else differs between the runs"), page.bullets(settings.notes)]
    return parts


def _html_table(table: Table) -> str:
    return page.table(table.caption, table.head, table.body) + page.note(" ".join(table.notes))


def _folded(table: Table) -> str:
    return page.folded(
        table.caption, page.table("", table.head, table.body) + page.note(" ".join(table.notes))
    )


def _markdown_table(table: Table) -> list[str]:
    lines = [f"**{_escaped(table.caption)}**", "", _markdown_row(table.head)]
    lines.append("|---|" + "---:|" * (len(table.head) - 1))
    return [*lines, *(_markdown_row(row) for row in table.body), ""]


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_escaped(cell) for cell in cells)} |"


def _escaped(text: str) -> str:
    """Keep a label from breaking a table, opening a tag or changing the type.

    A "<" behind a backslash makes MLflow's pages drop every tag up to the next ">".
    """
    for character in "\\|>`*":
        text = text.replace(character, "\\" + character)
    return _line(re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text))


def _line(text: str) -> str:
    return " ".join(text.split())
