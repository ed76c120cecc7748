"""What ``--help`` says of an entry point: what is set most; ``--help-all`` says the rest too."""

import shutil
from textwrap import fill, wrap

from pydantic_core import PydanticUndefined

from dinomaly_hd.config.base import Frozen, text_of
from dinomaly_hd.config.presets import MODELS, PRESETS, Fields, described, help_of, preset_run

OFTEN = (
    *("preset", "data_root", "domains", "seeds", "mode", "config", "configs", "model_type", "source_domain"),
    *("conditions_file", "condition", "max_steps", "gpu", "plugin", "run_name", "resume", "result_dir"),
)
FEW = 12
"""Parameters that are shown at once; more of a model are those of many models."""
COLUMN, WIDEST = 24, 110


def help_text(name: str, doc: str | None, *, fields: Fields, options: type[Frozen], whole: bool) -> str:
    """Return the page: main parameters described, the others by name, or described in groups (``whole``)."""
    width = min(shutil.get_terminal_size().columns, WIDEST)
    groups, defaults = _grouped(fields, options), _defaults(name, fields, options)
    lines = [f"usage: dinomaly-hd {name} --name VALUE ...", "", (doc or "").strip()]
    for title in groups if whole else ["main"]:
        lines += ["", f"{title}:"]
        for one in groups[title]:
            text = f"  --{one} ".ljust(COLUMN)
            rows = wrap(help_of(fields[one]) + defaults.get(one, ""), width - COLUMN)
            lines += [text + rows.pop(0)] if len(text) == COLUMN else [text]
            lines += [" " * COLUMN + row for row in rows]
    if not whole and len(groups) > 1:
        rest = [f"{title}: {', '.join(names)}" for title, names in groups.items() if title != "main"]
        lines += ["", "--help-all describes these too:"]
        lines += [fill(row, width, initial_indent="  ", subsequent_indent="    ") for row in rest]
    return "\n".join(lines)


def _grouped(fields: Fields, options: type[Frozen]) -> dict[str, list[str]]:
    """Return all names by group: first what is set often, is the entry point's own, or the model's own."""
    usual = preset_run("full", MODELS["baseline"]())
    parts = {name: part for part, config in usual if isinstance(config, Frozen) for name in described(config)}
    of_run = fields.keys() - options.model_fields.keys()
    own = of_run - parts.keys() - {"preset", "seed"}
    main = [name for name in OFTEN if name in fields]
    main += [name for name in fields if name in options.__annotations__ or (name in own and len(own) <= FEW)]
    main = list(dict.fromkeys(main) if of_run and len(fields) > FEW else fields)
    groups = {"main": sorted(main, key=lambda name: not fields[name].is_required())}
    for name in (name for name in fields if name not in groups["main"]):
        groups.setdefault(parts.get(name, "model") if name in of_run else "place", []).append(name)
    return groups


def _defaults(name: str, fields: Fields, options: type[Frozen]) -> dict[str, str]:
    """Return the ends of lines: an option's default, and for one model what its presets say."""
    said = {own: text_of(field.default) for own, field in fields.items() if own in options.model_fields}
    if name in MODELS:
        runs = {preset: described(preset_run(preset, MODELS[name]())) for preset in PRESETS}
        for own in fields.keys() - said.keys() - {"preset"}:
            told = {preset: text_of(run.get(own, fields[own]).default) for preset, run in runs.items()}
            each = ", ".join(f"{preset} {value}" for preset, value in told.items())
            said[own] = each if len({*told.values()}) > 1 else told["full"]
    # What is needed has none, and what auto means an option's own text says.
    unsaid = ("", "auto", str(PydanticUndefined))
    return {own: f" (default {value})" for own, value in said.items() if value not in unsaid}
