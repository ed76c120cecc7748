"""A found setting as a user would start it again: an entry point's flags, and a conditions file."""

import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from dinomaly_hd.config import RunConfig, flatten, names_in, text_of
from dinomaly_hd.config.conditions_file import keys_of
from dinomaly_hd.config.parameters import every_parameter
from dinomaly_hd.config.presets import PRESETS
from dinomaly_hd.config.resolve import resolve_model
from dinomaly_hd.config.variants import WITH_TOPK

SPELT = ("class_token", "domains")
OF_A_STUDY = ("maps_per_group",)
"""What a study draws less of than a run by itself; it changes no number."""
NOT_OF_A_CONDITION = ("gpu", "num_workers")
"""Flags that belong to a machine, not to an experiment."""


class Recipe(NamedTuple):
    """A run as an entry point of its variant and flags as text."""

    entry_point: str
    flags: Mapping[str, str]

    def command(self, seeds: Sequence[int]) -> str:
        """Return the exact ``mlflow run`` command of the run with these seeds."""
        flags = {name: text for name, text in self.flags.items() if name != "seed"}
        seeded = {"seed": str(seeds[0])} if len(seeds) == 1 else {"seeds": ",".join(map(str, seeds))}
        words = [word for name, text in {**flags, **seeded}.items() for word in ("-P", f"{name}={text}")]
        return shlex.join(["mlflow", "run", ".", "-e", self.entry_point, *words, "--env-manager", "local"])


def recipe_of(run: RunConfig, *, spelt: Collection[str]) -> Recipe:
    """Return entry point and flags of a run: those that differ from the defaults, and ``spelt`` ones."""
    variant = run.model.variant
    entry_point, switch = variant, {}
    for plain, other in WITH_TOPK.items():
        if variant == other:
            entry_point, switch = plain, {"use_topk": "true"}
    start = {"preset": run.preset, **switch}
    usual = flatten(resolve_model(entry_point, start))
    flags = {
        name: text_of(value)
        for name, value in flatten(run).items()
        if name in every_parameter()
        and name not in OF_A_STUDY
        and (value != usual.get(name) or name in (*spelt, *SPELT, "seed"))
    }
    found = Recipe(entry_point, {**start, **flags})
    assert resolve_model(entry_point, found.flags).digest() == run.digest(), "the flags say the whole run"
    return found


def condition_of(run: RunConfig, *, name: str, description: str, spelt: Collection[str]) -> dict[str, Any]:
    """Return a run as an entry of a conditions file.

    It stands for itself: what the presets have differently is written out, since a file names no preset.
    """
    flats = [flatten(resolve_model(run.model.variant, {"preset": preset})) for preset in PRESETS]
    by_preset = [key for key in flats[0] if flats[0][key] != flats[1].get(key) and key != "preset"]
    flags = dict(recipe_of(run, spelt=(*spelt, *by_preset, "seed")).flags)
    keys = keys_of("dinomaly").model_fields
    config: dict[str, Any] = {
        "model_type": "dinomaly",
        "domains": list(names_in(flags.pop("domains"))),
        "variant": run.model.variant,
    }
    for flag, text in flags.items():
        if flag in keys and flag not in NOT_OF_A_CONDITION:
            config[flag] = _plain(text)
    config.pop("use_topk", None)  # the variant says it
    if config.get("max_epochs") == 0:
        del config["max_epochs"]
    return {"name": name, "description": description, "config": config}


def conditions_text(conditions: Sequence[Mapping[str, Any]], *, comment: Sequence[str]) -> str:
    """Return conditions as the text of a YAML file."""
    head = "".join(f"# {line}\n" for line in comment)
    content = {"experiment_conditions": list(conditions)}
    return head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)


def _plain(text: str) -> Any:
    """Return a flag's text as the number or switch that it is, else as it stands."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float) else text
