"""What ``--help`` says of an entry point: what is set most; ``--help-all`` says the rest too."""

import shutil
from textwrap import fill, wrap

from pydantic_core import PydanticUndefined

from dinomaly_hd.config.base import Frozen, text_of
from dinomaly_hd.config.presets import MODELS, PRESETS, Fields, described, help_of, parameters, preset_run
from dinomaly_hd.config.run import DataConfig, EncoderConfig, EvaluationConfig, TrainingConfig

MAIN = (
    *("preset", "data_root", "domains", "seeds", "mode", "config", "configs", "model_type", "source_domain"),
    *("conditions_file", "condition", "max_steps", "gpu", "plugin", "run_name", "resume", "result_dir"),
)
FEW = 12
"""Parameters of a model that are shown at once; more are those of many models."""
COLUMN, WIDEST = 22, 110
PARTS = {
    "data": DataConfig,
    "encoder": EncoderConfig,
    "training": TrainingConfig,
    "evaluation": EvaluationConfig,
}


def help_text(name: str, doc: str | None, *, fields: Fields, options: type[Frozen], whole: bool) -> str:
    """Return the page: main parameters described, the others by name, or described in groups (``whole``)."""
    width = min(shutil.get_terminal_size().columns, WIDEST)
    groups, defaults = _grouped(fields, options), _defaults(name, fields, options)
    lines = [f"usage: dinomaly-hd {name} --name VALUE ..."]
    lines += ["", (doc or "").strip()]
    for title, names in groups.items():
        if title == "main" or whole:
            lines += ["", f"{title}:"]
            for one in names:
                text = help_of(fields[one]) + defaults.get(one, "")
                rows = wrap(text, width - COLUMN - 3)
                lines += [f"  --{one} ".ljust(COLUMN + 2) + (rows[0] if len(one) < COLUMN - 3 else "")]
                lines += [" " * (COLUMN + 2) + row for row in rows[len(one) < COLUMN - 3 :]]
    if len(groups) > 1 and not whole:
        lines += ["", "--help-all describes these too:"]
        for title, names in groups.items():
            text = f"{title}: {', '.join(names)}"
            lines += [fill(text, width, initial_indent="  ", subsequent_indent="    ")] * (title != "main")
    return "\n".join(lines)


def _grouped(fields: Fields, options: type[Frozen]) -> dict[str, list[str]]:
    """Return all names by group, main ones first."""
    own = options.__annotations__.keys() if options.__annotations__.keys() <= fields.keys() else ()
    of_model = fields.keys() - options.model_fields.keys() - parameters("baseline").keys()
    main = dict.fromkeys([*(name for name in MAIN if name in fields), *own])
    main |= dict.fromkeys(name for name in fields if name in of_model and len(of_model) <= FEW)
    if not fields.keys() - options.model_fields.keys() or len(fields) <= FEW:
        main = dict.fromkeys(fields)
    groups = {"main": list(main)}
    for name in (name for name in fields if name not in main):
        parts = [part for part, config in PARTS.items() if name in config.model_fields]
        groups.setdefault("place" if name in options.model_fields else (*parts, "model")[0], []).append(name)
    return groups


def _defaults(name: str, fields: Fields, options: type[Frozen]) -> dict[str, str]:
    """Return the ends of lines: an option's default, and for one model what its presets say."""
    said = {
        own: f" (default {text_of(field.default)})"
        for own, field in options.model_fields.items()
        if field.default not in (None, PydanticUndefined, "")
    }
    if name in MODELS:
        runs = {preset: described(preset_run(preset, MODELS[name]())) for preset in PRESETS}
        for own in fields.keys() - options.model_fields.keys() - {"preset"}:
            told = {preset: text_of(run.get(own, fields[own]).default) for preset, run in runs.items()}
            same = len(set(told.values())) == 1
            text = told["full"] if same else ", ".join(f"{preset} {value}" for preset, value in told.items())
            said[own] = f" (default {text})"
    return said
