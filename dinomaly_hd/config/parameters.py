"""What a user may set: fields of runs by their names, which runs have them, what a study may search."""

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from dinomaly_hd.config.base import LARGEST_COUNT, Search, described, kinds_of, with_parts
from dinomaly_hd.config.families import ModelConfig
from dinomaly_hd.config.presets import MODELS, preset_run
from dinomaly_hd.config.variants import WITH_TOPK

Fields = dict[str, FieldInfo]
AUTO = "auto"
USE_TOPK = FieldInfo(annotation=bool, default=False, description="the TopK loss too (config F)")
"""A switch that no config holds: it chooses another variant."""


def fields_of(model: ModelConfig) -> Fields:
    """Return what may be set in the runs of a model."""
    return described(preset_run("full", model))


@cache
def parameters(name: str) -> Fields:
    """Return what may be set in the runs of a variant or a family as it is by default."""
    switch = {"use_topk": USE_TOPK} if name in WITH_TOPK else {}
    return {**switch, **fields_of(MODELS[name]())}


def with_every_part(name: str) -> Iterator[tuple[str, ModelConfig]]:
    """Yield a model with each part that can be chosen, by what a user calls it: "draem with ..."."""
    model = MODELS[name]()
    for field in type(model).model_fields.values():
        for kind in kinds_of(field):
            chosen = {str(field.discriminator): kind}
            yield f"{name} with {field.discriminator}={kind}", with_parts(model, chosen)


def any_of(names: Iterable[str], *, without: Iterable[str] = ()) -> Fields:
    """Return what may be set in the runs of at least one model, with whatever parts."""
    found: Fields = {}
    for name in names:
        for fields in (parameters(name), *(fields_of(model) for _, model in with_every_part(name))):
            found |= {key: field for key, field in fields.items() if key not in found}
    return {key: field for key, field in found.items() if key not in without}


@cache
def every_parameter() -> Fields:
    """Return what may be set in any run."""
    return any_of(MODELS)


def all_of(names: Iterable[str], *, without: Iterable[str] = ()) -> Fields:
    """Return what may be set in the runs of every model."""
    first, *others = map(parameters, names)
    return {
        key: field
        for key, field in first.items()
        if all(key in fields for fields in others) and key not in without
    }


def not_of(name: str, key: str) -> str:
    """Return the refusal of a value that a model, or an entry point, does not have."""
    takers: list[str] = []
    for model in MODELS:
        if model != "dinomaly":  # is the baseline
            parts = [label for label, made in with_every_part(model) if key in fields_of(made)]
            takers += [model] if key in parameters(model) else parts
    return f"{key} does not apply to {name} as it is set, only to {', '.join(takers)}; leave it out"


def search_ranges() -> dict[str, tuple[Any, Search]]:
    """Return what a study may search, by name: its type (bool, int or float), and the ends of the search."""
    return {
        name: (field.annotation, mark)
        for name, field in every_parameter().items()
        for mark in field.metadata
        if isinstance(mark, Search)
    }


def help_of(field: FieldInfo) -> str:
    """Return a flag's line in ``--help``: what it is, and what it may be, such as "from 0 to 1"."""
    words = {"ge": "from", "gt": "above", "le": "to", "lt": "below"}
    limits = [(word, getattr(mark, key, None)) for key, word in words.items() for mark in field.metadata]
    rule = " ".join(f"{word} {n:g}" for word, n in limits if n is not None and n < LARGEST_COUNT)
    if get_origin(field.annotation) is Literal:
        rule = ", ".join(map(str, get_args(field.annotation)))
    elif field.annotation is bool:
        rule = "true, false"
    return f"{field.description}: {rule}" if rule else str(field.description)
