"""The JSON Schema (draft 2020-12) of conditions files, from the table of keys."""

import json
from typing import Any

from dinomaly_hd.condition_files.keys import FAMILIES, Need, exclusive, keys_of, needs_of
from dinomaly_hd.condition_files.kinds import Schema
from dinomaly_hd.condition_files.translation import MAX_DESCRIPTION, NAME, TOP_KEYS
from dinomaly_hd.variants import WITH_TOPK


def schema() -> Schema:
    """Return what editors check: each family's keys with types, ranges and what they need of others."""
    by_family = [
        {"if": _has("model_type", family), "then": {"$ref": f"#/$defs/{family}"}} for family in FAMILIES
    ]
    config = {
        "type": "object",
        "required": ["model_type"],
        "properties": {"model_type": {"enum": list(FAMILIES)}},
        "allOf": by_family,
    }
    condition = _object(
        {
            "name": {"type": "string", "pattern": f"^{NAME}$"},
            "description": {"type": "string", "maxLength": MAX_DESCRIPTION},
            "config": config,
        },
        required=["name", "config"],
    )
    conditions = {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/condition"}}
    assert set(TOP_KEYS) == {"$schema", "experiment_conditions"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Dinomaly-HD conditions file",
        **_object(
            {"$schema": {"type": "string"}, "experiment_conditions": conditions},
            required=["experiment_conditions"],
        ),
        "$defs": {"condition": condition, **{family: _family(family) for family in FAMILIES}},
    }


def schema_text() -> str:
    """Return the schema as the text of ``conditions/schema.json``."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


def _object(properties: Schema, *, required: list[str]) -> Schema:
    return {
        "type": "object",
        "required": required,
        "properties": properties,
        "additionalProperties": False,
    }


def _has(name: str, value: str) -> Schema:
    return {"properties": {name: {"const": value}}, "required": [name]}


def _family(family: str) -> Schema:
    keys = keys_of(family)
    properties = {name: {"description": key.text, **key.kind.schema()} for name, key in keys.items()}
    needs = {
        name: _unless_null(name, {"allOf": [_need(need, keys) for need in each]})
        for name, each in needs_of(family).items()
    }
    return {
        **_object(properties, required=["model_type"]),
        "anyOf": [{"required": ["source_domain"]}, {"required": ["domains"]}],
        "allOf": [{"not": {"required": list(pair)}} for pair in exclusive(family)],
        "dependentSchemas": needs,
    }


def _unless_null(name: str, rule: Schema) -> Schema:
    return {"anyOf": [{"properties": {name: {"type": "null"}}}, rule]}


def _need(need: Need, keys: dict[str, Any]) -> Schema:
    """Return what another key must be; a variant counts as what ``use_topk`` may make of it."""
    before = [name for name, after in WITH_TOPK.items() if need.other == "variant" and after in need.allowed]
    texts = dict.fromkeys([*need.allowed, *before])
    is_switch = keys[need.other].kind.schema() == {"type": "boolean"}
    values = [text == "true" for text in texts] if is_switch else list(texts)
    required = [] if need.default in need.allowed else [need.other]
    return {"properties": {need.other: {"enum": values}}, "required": required}
