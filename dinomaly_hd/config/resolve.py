"""From a name and values as text to a run: preset, parts, every value known and checked."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from pydantic import TypeAdapter, ValidationError

from dinomaly_hd.config.base import described, with_parts, with_values
from dinomaly_hd.config.families import ModelConfig
from dinomaly_hd.config.parameters import AUTO, every_parameter, not_of
from dinomaly_hd.config.presets import MODELS, PRESETS, preset_run
from dinomaly_hd.config.run import RunConfig
from dinomaly_hd.config.texts import names_in
from dinomaly_hd.config.variants import ABLATION, CONFIG_SETS, VARIANTS, WITH_TOPK, bare_grid
from dinomaly_hd.errors import ConfigError, nearest

FIXED_IN_COMPARISONS = (
    *("preset", "seed", "class_token"),
    *("data_root", "simulate_size", "simulate_seed", "domains", "conditions"),
)


def resolve_config(text: str, values: Mapping[str, str]) -> RunConfig:
    """Return the config that a comparison calls ``text``, with its common values.

    ``text`` is a config of the ablation, a variant, class tokens removed, or another family, and what is
    changed in it: "F", "F:q_percent=1", "row_mask:row_radius=full:row_context=2", "row_evidence".
    """
    name, changes = _split_text("config", text)
    known: dict[str, Callable[[], ModelConfig]] = {
        **MODELS,
        **{key: partial(bare_grid, make()) for key, make in VARIANTS.items()},
        **ABLATION,
    }
    if name not in known:
        raise ConfigError(f"config {name!r}: unknown.{nearest(name, [*known, *CONFIG_SETS])}")
    model = known[name]()
    return _resolve(model, {**values, **changes}, name=text)


def resolve_model(text: str, values: Mapping[str, str]) -> RunConfig:
    """Return the config of a model that is called ``text``, with the values common to all.

    ``text`` is a family or a Dinomaly variant, and what is changed in it: "draem:fault_source=band",
    "patchcore:context=2+3", "horizontal". ``use_topk`` chooses the variant with the TopK loss.
    """
    name, changes = _split_text("model_type", text)
    if name not in MODELS:
        raise ConfigError(f"model_type {name!r}: unknown.{nearest(name, MODELS)}")
    values = {**values, **changes}
    variant = name
    if name in WITH_TOPK and "use_topk" in values:
        switch = values.pop("use_topk")
        try:
            variant = WITH_TOPK[name] if TypeAdapter(bool).validate_python(switch) else name
        except ValidationError:
            raise ConfigError(f"use_topk={switch!r}: expected true or false") from None
    return _resolve(MODELS[variant](), values, name=text)


def _split_text(what: str, text: str) -> tuple[str, dict[str, str]]:
    """Return the name and the changes of "F:q_percent=1:row_context=2"."""
    name, *parts = text.split(":")
    known = every_parameter().keys() - {"use_topk"}
    changes: dict[str, str] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if key not in known or not equals:
            raise ConfigError(f"{what} {text!r}: {part!r} is not name=value.{nearest(key, known)}")
        if key in FIXED_IN_COMPARISONS:
            raise ConfigError(f"{what} {text!r}: {key} is the same for all members of a comparison")
        if key in changes:
            raise ConfigError(f"{what} {text!r}: {key} is given twice")
        changes[key] = value
    return name, changes


def config_names(text: str) -> tuple[str, ...]:
    """Return the configs of a comma-separated list; a set such as "directional" stands for its own."""
    names = [name for part in names_in(text) for name in CONFIG_SETS.get(part, (part,))]
    if not names or len(set(names)) < len(names):
        raise ConfigError(
            f"configs={text!r}: expected one or more, each once; sets: {', '.join(CONFIG_SETS)}"
        )
    return tuple(names)


def _resolve(model: ModelConfig, values: Mapping[str, str], *, name: str) -> RunConfig:
    """Return a model's run under its preset; ``auto`` leaves what the preset says."""
    chosen: dict[str, Any] = {key: value for key, value in values.items() if value != AUTO}
    chosen["preset"] = preset_name(chosen.get("preset", AUTO))
    run = preset_run(chosen["preset"], with_parts(model, chosen))
    known = described(run)
    for key in chosen:
        if key not in known:
            raise ConfigError(not_of(name, key))
    if "max_steps" in chosen:
        if chosen.get("max_epochs", "0") != "0":
            raise ConfigError(f"{name}: max_steps and max_epochs are two ways to say one thing; give one")
        if "max_epochs" in known:
            chosen["max_epochs"] = "0"
    return with_values(run, chosen)


def preset_name(given: str) -> Any:
    """Return the preset; ``auto`` asks torch for CUDA."""
    if given == AUTO:
        import torch

        return "full" if torch.cuda.is_available() else "quick"
    if given not in PRESETS:
        raise ConfigError(f"preset={given!r}: unknown.{nearest(given, [AUTO, *PRESETS])}")
    return given
