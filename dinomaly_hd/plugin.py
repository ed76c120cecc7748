"""A user's file that adds variants of Dinomaly to this process: ``--plugin my_variant.py``.

Its ``VARIANTS`` are functions by name as in ``config/variants.py``, its ``PARTS`` say by the config class of
each part of its own what builds it, as the rows of ``models/build.py`` do. It is code that runs with the
user's rights: a flag or DINOMALY_HD_PLUGIN names it, never a run folder.
"""

import hashlib
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from dinomaly_hd.config.conditions_file import file_model, keys_of
from dinomaly_hd.config.dinomaly import PLUGIN_VARIABLE, PLUGINS, DinomalyConfig
from dinomaly_hd.config.presets import AUTO, MODELS, every_parameter
from dinomaly_hd.config.run import RunConfig
from dinomaly_hd.config.variants import ABLATION, CONFIG_SETS, VARIANTS, change
from dinomaly_hd.errors import ConfigError

FORBIDDEN = "none"


def load_named(flag: str = "") -> None:
    """Load the plugin that a flag or the environment names, as processes started from here will, too."""
    said = os.environ.get(PLUGIN_VARIABLE) or AUTO
    named = flag or said
    if said == FORBIDDEN and named not in (AUTO, said):
        raise ConfigError(f"plugin={named}: {PLUGIN_VARIABLE}={said} allows none here")
    if named not in (AUTO, FORBIDDEN):
        os.environ[PLUGIN_VARIABLE] = str(Path(named).expanduser().absolute())
        load_plugin(Path(os.environ[PLUGIN_VARIABLE]))


def load_plugin(path: Path) -> None:
    """Add a file's variants and parts; what is wrong with it is a ConfigError with the line in it."""
    try:
        source = path.read_bytes()
        told = f"{path.name}:{hashlib.sha256(source).hexdigest()[:16]}"
        if told in PLUGINS:
            return
        if PLUGINS:
            raise ValueError(f"{', '.join(PLUGINS)} is loaded; put all variants into one file")
        module = sys.modules["dinomaly_hd_plugin"] = ModuleType("dinomaly_hd_plugin")  # pydantic looks there
        exec(compile(source, path, "exec"), module.__dict__)
        _add_parts(getattr(module, "PARTS", {}))
        for name, make in module.VARIANTS.items():
            if not name.isidentifier() or name in {**MODELS, **ABLATION, **CONFIG_SETS}:
                raise ValueError(f"variant {name!r}: taken, or not of letters, digits and _; choose another")
            VARIANTS[name] = MODELS[name] = partial(_variant, make, name, told)
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        place = f"line {lines[-1]}: " if lines else ""
        told = " ".join(str(error).split())  # pydantic's have several lines
        raise ConfigError(f"plugin={path}: {place}{type(error).__name__}: {told}") from error
    PLUGINS[told] = source
    for known in (every_parameter, keys_of, file_model):
        known.cache_clear()


def _variant(make: Callable[[], DinomalyConfig], name: str, told: str) -> DinomalyConfig:
    return change(make(), variant=name, plugin=told)


def _add_parts(parts: Mapping[Any, Callable[..., Any]]) -> None:
    from dinomaly_hd.models import build  # imports torch

    tables: dict[str, dict[str, Callable[..., Any]]] = {
        "bottleneck": build.BOTTLENECKS,
        "attention": build.ATTENTIONS,
        "loss": build.LOSSES,
        "distance": build.DISTANCES,
        "auxiliary": build.AUXILIARIES,
    }
    for config, make in parts.items():
        kind = next(kind for kind in config.model_fields if kind in tables)
        name, field = config.model_fields[kind].default, DinomalyConfig.model_fields[kind]
        if name in tables[kind]:
            raise ValueError(f"{config.__name__}: there is a {kind} {name!r} already; choose another name")
        tables[kind][name], field.annotation = make, field.annotation | config
    DinomalyConfig.model_rebuild(force=True)
    RunConfig.model_rebuild(force=True)
