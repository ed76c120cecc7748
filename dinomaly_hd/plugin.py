"""A user's file that adds variants of Dinomaly to this process: ``--plugin my_variant.py``.

It holds ``VARIANTS``, functions by name as in ``config/variants.py``, and ``PARTS``, which says by the config
class of each part of its own what builds it, called as the rows of ``models/build.py`` are.

It is code that runs with the user's rights: a flag or DINOMALY_HD_PLUGIN names it, never a run folder.
"""

import hashlib
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from dinomaly_hd.config.conditions_file import file_model, keys_of
from dinomaly_hd.config.dinomaly import PLUGINS, DinomalyConfig
from dinomaly_hd.config.presets import MODELS, every_parameter
from dinomaly_hd.config.run import RunConfig
from dinomaly_hd.config.variants import ABLATION, CONFIG_SETS, VARIANTS, change
from dinomaly_hd.errors import ConfigError

MODULE = "dinomaly_hd_plugin"


def load_plugin(path: Path) -> None:
    """Add a file's variants and parts; what does not fit is a ConfigError with the line in the file."""
    try:
        source = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"plugin={path}: cannot be read: {error.strerror}; give a Python file") from error
    told = f"{path.name}:{hashlib.sha256(source).hexdigest()[:16]}"
    if PLUGINS and told not in PLUGINS:
        raise ConfigError(f"plugin={path}: {', '.join(PLUGINS)} is loaded; put all variants into one file")
    module = sys.modules[MODULE] = ModuleType(MODULE)  # where pydantic looks for the names of annotations
    try:
        exec(compile(source, path, "exec"), module.__dict__)
        _add_parts(getattr(module, "PARTS", {}))
        _add_variants(module.VARIANTS, told)
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        place = f"line {lines[-1]}: " if lines else ""
        raise ConfigError(f"plugin={path}: {place}{type(error).__name__}: {error}") from error
    PLUGINS[told] = source
    for known in (every_parameter, keys_of, file_model):
        known.cache_clear()


def _add_parts(parts: dict[Any, Callable[..., Any]]) -> None:
    from dinomaly_hd.models import build  # imports torch

    tables: dict[str, dict[str, Callable[..., Any]]] = {
        "bottleneck": build.BOTTLENECKS,
        "attention": build.ATTENTIONS,
        "loss": build.LOSSES,
        "distance": build.DISTANCES,
        "auxiliary": build.AUXILIARIES,
    }
    for config, make in parts.items():
        kind = next((kind for kind in tables if kind in config.model_fields), "")
        if not kind:
            raise ValueError(f"{config.__name__} is no part: it has none of {', '.join(tables)}")
        name, field = config.model_fields[kind].default, DinomalyConfig.model_fields[kind]
        if name in tables[kind]:
            raise ValueError(f"{config.__name__}: there is a {kind} {name!r} already; choose another name")
        tables[kind][name], field.annotation = make, field.annotation | config
    for one in (DinomalyConfig, RunConfig):
        one.model_rebuild(force=True)


def _add_variants(variants: dict[str, Callable[[], DinomalyConfig]], told: str) -> None:
    def made(name: str, make: Callable[[], DinomalyConfig]) -> DinomalyConfig:
        return change(make(), variant=name, plugin=told)

    for name, make in variants.items():
        if not name.isidentifier() or name in {**MODELS, **ABLATION, **CONFIG_SETS}:
            raise ValueError(f"variant {name!r}: taken, or no name of letters, digits and _; choose another")
        VARIANTS[name] = MODELS[name] = partial(made, name, make)
