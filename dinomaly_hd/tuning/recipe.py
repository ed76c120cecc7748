"""A found setting as a user would start it again: an entry point's flags, and a conditions file."""

import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from dinomaly_hd.config import RunConfig, flatten, names_in, text_of
from dinomaly_hd.config.conditions_file import keys_of
from dinomaly_hd.config.presets import PRESETS, every_parameter
from dinomaly_hd.config.resolve import resolve_model
from dinomaly_hd.config.variants import WITH_TOPK

SPELT = ("class_token", "domains", "seed")
OF_A_STUDY = ("maps_per_group",)  # what a study draws less of than a run by itself; it changes no number
NOT_OF_A_CONDITION = ("gpu", "num_workers")  # flags that belong to a machine, not to an experiment


class Recipe(NamedTuple):
    """A run as an entry point of its variant and flags as text."""

    entry_point: str
    flags: Mapping[str, str]

    def command(self, seeds: Sequence[int]) -> str:
        """Return the exact ``mlflow run`` command of the run with these seeds."""
        seeded = {"seed": str(seeds[0])} if len(seeds) == 1 else {"seeds": ",".join(map(str, seeds))}
        flags = {name: text for name, text in self.flags.items() if name != "seed"} | seeded
        words = [word for name, text in flags.items() for word in ("-P", f"{name}={text}")]
        return shlex.join(["mlflow", "run", ".", "-e", self.entry_point, *words, "--env-manager", "local"])


def recipe_of(run: RunConfig, *, spelt: Collection[str]) -> Recipe:
    """Return entry point and flags of a run: those that differ from the defaults, and ``spelt`` ones."""
    plain = next((plain for plain, other in WITH_TOPK.items() if other == run.model.variant), None)
    entry_point = plain or run.model.variant
    start = {"preset": run.preset, **({"use_topk": "true"} if plain else {})}
    usual, told = flatten(resolve_model(entry_point, start)), {*spelt, *SPELT}
    known = every_parameter()
    flags = {
        name: text_of(value)
        for name, value in flatten(run).items()
        if name in known and name not in OF_A_STUDY and (value != usual.get(name) or name in told)
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
    flags = dict(recipe_of(run, spelt=(*spelt, *by_preset)).flags)
    keys = keys_of("dinomaly").model_fields
    config: dict[str, Any] = {
        "model_type": "dinomaly",
        "domains": list(names_in(flags.pop("domains"))),
        "variant": run.model.variant,  # it says use_topk
    }
    left_out = {*NOT_OF_A_CONDITION, "use_topk", *(["max_epochs"] if flags.get("max_epochs") == "0" else [])}
    config |= {flag: _plain(flags[flag]) for flag in flags if flag in keys and flag not in left_out}
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
