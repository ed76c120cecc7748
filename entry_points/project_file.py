"""Write MLproject from the entry points' own flags: `python -m entry_points.project_file > MLproject`."""

import importlib
from collections.abc import Mapping

from entry_points import families
from entry_points.common import training_defaults
from entry_points.comparisons import defaults_of

TRAINING = (
    *("horizontal", "topk", "baseline", "gem", "focal", "aux", "scale", "adaptive"),
    *("decoder_dropout", "row_mask", "row_masking", "directional_topk"),
)
COMPARISONS = ("ablation", "encoders", "steps", "finetune")
FAMILIES = ("single_domain", "multi_domain", "suite")
STUDIES = ("tune",)
OTHERS = ("report", "simulate", "predict", "sync", "doctor")
NAMES = (*TRAINING, *FAMILIES, *COMPARISONS, *STUDIES, *OTHERS)
NO_NUMBERS = ("precision", "map_size", "row_radius", "seeds")
"""Flags with a number as default that take other texts, too: bf16, 64x32, full, 42,43."""
HEAD = """\
# Written by `make mlproject` from the entry points' flags; a test compares. `auto`: the preset decides.
# The environment: python_env.yaml, which `make setup` writes and which names .venv; without it, conda.yaml.
name: dinomaly-hd
entry_points:
"""


def render() -> str:
    """Return the text of MLproject."""
    return HEAD + "\n".join(_block(name, defaults(name)) for name in NAMES)


def defaults(entry_point: str) -> dict[str, str]:
    """Return name -> default of every flag of an entry point."""
    module = importlib.import_module(f"entry_points.{entry_point}")
    if entry_point in TRAINING:
        return training_defaults(entry_point, module.SWITCHES)
    if entry_point in COMPARISONS:
        return defaults_of(module.SWITCHES, without=getattr(module, "WITHOUT", ()))
    if entry_point in FAMILIES:
        return families.defaults_of(module.SWITCHES)
    if entry_point in STUDIES:
        return dict(module.defaults_of(module.SWITCHES))
    return {key: option.default for key, option in module.FLAGS.items()}


def _block(name: str, defaults: Mapping[str, str]) -> str:
    parameters = [f"      {key}: {_parameter(key, value)}" for key, value in defaults.items()]
    flags = [f"      --{key}={{{key}}}" for key in defaults]  # so that no value is read as a flag
    command = "\n".join([f"      python -m entry_points.{name}", *flags])
    return f"  {name}:\n    parameters:\n" + "\n".join(parameters) + f"\n    command: >-\n{command}\n"


def _parameter(key: str, value: str) -> str:
    """Return a parameter's type and default; an empty default means that the user must give it."""
    kind = "string" if key in NO_NUMBERS else _type(value)
    default = value if kind != "string" else f'"{value}"'
    return f"{{type: {kind}, default: {default}}}" if value else "{type: string}"


def _type(value: str) -> str:
    for kind in (int, float):
        try:
            kind(value)
        except ValueError:
            continue
        return kind.__name__
    return "string"


if __name__ == "__main__":
    print(render(), end="")
