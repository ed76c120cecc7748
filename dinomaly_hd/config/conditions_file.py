"""Conditions files: many experiments in one file, in the authors' own keys (spec/protocols.md).

A family's keys are one flat model made from the fields of its configs: it checks what stands in a file, and
is its schema: ``python -m dinomaly_hd.config.conditions_file > conditions/schema.json``, for editors.
"""

import json
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, Union

import yaml
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError, create_model
from pydantic.json_schema import GenerateJsonSchema

from dinomaly_hd.config.base import LONGEST_TEXT, NO_CROP, Frozen, names_in, reason_of_fault, text_of, visible
from dinomaly_hd.config.dinomaly import Segments
from dinomaly_hd.config.presets import FAMILIES, any_of
from dinomaly_hd.config.resolve import resolve_model
from dinomaly_hd.config.variants import VARIANTS
from dinomaly_hd.errors import ConfigError, nearest
from dinomaly_hd.names import shown

MAX_BYTES = 128 * 1024
WORDS = {"true": True, "false": False, "null": None, "~": None, "": None}
NUMBER = re.compile(
    r"-?(0|[1-9][0-9]*|(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)", re.ASCII
)
"""Plain words and numbers of a YAML file; whatever else stands there is text."""
ONE_LINE = AfterValidator(lambda text: visible(" ".join(text.split())))
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$"
DRAFT = "https://json-schema.org/draft/2020-12/schema"
CLIP = {"gradient_clip_val": "gradient_clip"}
ALIASES = {
    "draem": CLIP,
    "dinomaly": {**CLIP, "encoder_name": "encoder", "remove_class_token": "class_token"},
    "patchcore": {"backbone": "encoder", "batch_size": "eval_batch_size"},
    "draem_sevnet": CLIP,
    "trivial": {},
    "row_evidence": {},
}
"""The authors' names of values, by family."""
TOKENS = {True: "remove", False: "keep"}
"""What ``remove_class_token`` says."""
IN_CONFIG = 3
"""Steps of an error's place that lead to a condition's config; the next is its family."""
WAYS = (("domains", "source_domain"), ("domains", "target_domains"), ("max_epochs", "max_steps"))
"""Keys that are two ways to say one thing."""


class Condition(NamedTuple):
    """One experiment of a conditions file."""

    name: str  # safe as a folder's name, unique in its file whatever the case
    description: str
    model_type: str
    source_domain: str | None  # trained on, "A" of "domain_A"; None: all of the domains are
    target_domains: tuple[str, ...]  # only tested; empty for a single domain
    values: dict[str, str]  # of its run, as text; ``variant`` among them where one is named


def without_prefix(name: str) -> str:
    """Return the short name of a domain: "A" of "domain_A"."""
    return name.removeprefix("domain_") or name


Domain = Annotated[str, Field(pattern=r"^[^.,/\\\s][^,/\\]*$", max_length=64), AfterValidator(without_prefix)]
Domains = Annotated[
    list[Domain],
    BeforeValidator(
        lambda value: list(names_in(value)) if isinstance(value, str) else value,
        json_schema_input_type=str | list[Domain],
    ),
    Field(min_length=1),
]


class Keys(Frozen):
    """What the conditions of every family have; numbers and switches stand without quotes."""

    model_config = ConfigDict(
        strict=True,
        json_schema_extra={"anyOf": [{"required": [key]} for key in ("source_domain", "domains")]},
    )

    model_type: str = Field(description="model family")
    source_domain: Domain = Field("", description="domain that is trained on, and tested")
    target_domains: Domains = Field([], description="domains that are tested only; absent: single domain")
    domains: Domains = Field([], description="one model of all these, instead of source_domain")


@cache
def keys_of(family: str) -> type[Keys]:
    """Return what a condition of a family may say, each key with the rule of the value that it sets."""
    variants = tuple(VARIANTS) if family == "dinomaly" else (family,)
    fields = any_of(variants, without=("preset", "domains", "train_domains"))
    fields |= {alias: fields[name] for alias, name in ALIASES[family].items()}
    keys: dict[str, Any] = {
        name: (field.rebuild_annotation(), Field(None, description=field.description))
        for name, field in fields.items()
    }
    keys["model_type"] = (Literal[family], Field(description="model family"))
    if family == "dinomaly":
        keys["variant"] = (Literal[variants], Field("baseline", description="Dinomaly variant"))
        keys["remove_class_token"] = (bool, keys["class_token"][1])
    if "anomaly_source_path" in keys:  # null leaves the default
        annotation, field = keys["anomaly_source_path"]
        keys["anomaly_source_path"] = (annotation | None, field)
    return create_model(family, __base__=Keys, **keys)


@cache
def file_model() -> type[Frozen]:
    """Return what a file may hold."""
    families: Any = Union[tuple(map(keys_of, FAMILIES))]  # noqa: UP007
    config: Any = Annotated[families, Field(discriminator="model_type")]
    entry: Any = create_model(
        "condition",
        __base__=Frozen,
        name=(Annotated[str, Field(strict=True, pattern=NAME)], ...),
        description=(Annotated[str, Field(strict=True, max_length=LONGEST_TEXT), ONE_LINE], ""),
        config=(config, ...),
    )
    return create_model(
        "Dinomaly-HD conditions file",
        __base__=Frozen,
        schema_file=(str, Field("", alias="$schema")),
        experiment_conditions=(Annotated[list[entry], Field(min_length=1)], ...),
    )


def read_conditions(path: Path) -> tuple[Condition, ...]:
    """Read a conditions file, JSON or YAML.

    A fault is one line with the file, the condition, the key, its value, the rule and the way out.
    """
    content = read_plain(path)
    try:
        file: Any = file_model().model_validate(content)
    except ValidationError as error:
        # An unknown key says more than what is missing.
        first = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
        raise ConfigError(f"{path}: {_fault(content, first)}") from None
    conditions: dict[str, Condition] = {}
    for entry in file.experiment_conditions:
        place = f"{path}: condition {entry.name}"
        if entry.name.casefold() in conditions:
            raise ConfigError(
                f"{place}: the name is given twice (upper and lower case count alike); choose another"
            )
        try:
            conditions[entry.name.casefold()] = _condition(entry)
        except ConfigError as error:
            raise ConfigError(f"{place}: {error}") from None
    return tuple(conditions.values())


def _condition(entry: Any) -> Condition:
    """Return a condition whose keys fit each other and its model."""
    given = entry.config.model_dump(exclude_unset=True, exclude={"model_type"})
    family, aliases = entry.config.model_type, ALIASES[entry.config.model_type]
    for one, other in (*WAYS, *aliases.items()):
        if one in given and other in given:
            raise ConfigError(f"{one} and {other} exclude each other; keep one")
    source, targets = given.pop("source_domain", None), tuple(given.pop("target_domains", ()))
    domains = given.pop("domains", None) or [source, *targets]
    if domains == [None]:
        raise ConfigError("source_domain is missing; write the domain to train on, or domains for several")
    if source in targets:
        raise ConfigError(
            f"target_domains={list(targets)}: {source} is the source_domain, which is tested anyhow"
        )
    if len(set(domains)) < len(domains):
        raise ConfigError(f"domains={domains}: a domain is given twice; keep one")
    if given.get("disable_segment"):
        for name in given.keys() & Segments.model_fields:
            raise ConfigError(f"{name}={given[name]}: does nothing with disable_segment=true; leave it out")
    if "remove_class_token" in given:
        given["remove_class_token"] = TOKENS[given["remove_class_token"]]
    values = {aliases.get(name, name): text_of(value) for name, value in given.items() if value is not None}
    if "image_size" in values:
        values.setdefault("crop", NO_CROP)
    values["domains"] = ",".join(sorted(domains) if targets else domains)
    if targets:
        values["train_domains"] = source
    of_run = {name: text for name, text in values.items() if name != "variant"}
    resolve_model(values.get("variant", family), {**of_run, "preset": "full"})  # refuses what does nothing
    return Condition(entry.name, entry.description, family, source, targets, values)


def _fault(content: Any, detail: Any) -> str:
    """Return an error of pydantic's as one line: the condition, the key, its value, the rule, the way out."""
    loc, kind, value = detail["loc"], detail["type"], detail["input"]
    key = next((step for step in reversed(loc) if isinstance(step, str)), "the file")
    place = ""
    if len(loc) > 1:
        entry = content["experiment_conditions"][loc[1]]
        name = entry.get("name") if isinstance(entry, dict) else None
        named = isinstance(name, str) and re.fullmatch(NAME, name)
        place = f"condition {name if named else loc[1] + 1}: "
    if kind == "missing":
        return f"{place}{key} is missing; write it"
    if kind == "union_tag_not_found":
        return f"{place}model_type is missing; write one of {', '.join(FAMILIES)}"
    if kind == "union_tag_invalid":
        tag = str(value["model_type"])
        return f"{place}model_type={shown(tag)}: unknown.{nearest(tag[:LONGEST_TEXT], FAMILIES)}"
    if kind == "extra_forbidden":
        return f"{place}{shown(key)[1:-1]}={shown(value)}: {_unknown(key, loc)}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"{place}{key}: expected keys and values, got {shown(value)}"
    quotes = "; write it without quotes" if isinstance(value, str) and kind.endswith("_type") else ""
    return f"{place}{key}={shown(value)}: {reason_of_fault(detail)}{quotes}"


def _unknown(key: str, loc: Sequence[Any]) -> str:
    """Return why a key is refused: no family has it, or this one has no use for it."""
    known: Iterable[str] = ("name", "description", "config") if len(loc) > 1 else ("experiment_conditions",)
    if len(loc) > IN_CONFIG:
        if takers := [family for family in FAMILIES if key in keys_of(family).model_fields]:
            return f"does nothing for {loc[IN_CONFIG]}, only for {' and '.join(takers)}; leave it out"
        known = {name for family in FAMILIES for name in keys_of(family).model_fields}
    return f"unknown key.{nearest(key[:LONGEST_TEXT], known)}"


class _WithoutDefaults(GenerateJsonSchema):
    """Leaves out what presets decide, and titles that repeat names."""

    def default_schema(self, schema: Any) -> Any:
        return self.generate_inner(schema["schema"])

    def field_title_should_be_set(self, _schema: Any) -> bool:
        return False


def schema_text() -> str:
    """Return the JSON Schema of conditions files, as the text of ``conditions/schema.json``."""
    schema = file_model().model_json_schema(schema_generator=_WithoutDefaults)
    text = json.dumps({"$schema": DRAFT, **schema}, indent=1, ensure_ascii=False) + "\n"
    return re.sub(r"[{\[][^{}\[\]]*[}\]]", lambda inner: " ".join(inner[0].split()), text)


# ---- a JSON or YAML file as plain data: the same from both, nothing said twice, nothing that hangs ----


def read_plain(path: Path) -> Any:
    """Return the content of a ``.json``, ``.yaml`` or ``.yml`` file (UTF-8, at most 128 KiB).

    YAML is read as JSON with less punctuation: true/false/null, decimal numbers (1e-4 is one), and text; no
    anchors, aliases or tags. No key may be given twice.
    """
    from_json = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant).decode
    readers: dict[str, Callable[[str], Any]] = {".json": from_json, ".yaml": _from_yaml, ".yml": _from_yaml}
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise ConfigError(f"{path}: conditions files end in .json, .yaml or .yml.{nearest(suffix, readers)}")
    text = _text(path)
    try:
        return readers[suffix](text)
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply; three levels are enough") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ConfigError(f"{path}: no valid YAML: {error.problem}{place}") from None
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: no valid {suffix[1:].upper()}: {reason}") from None


def _text(path: Path) -> str:
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{path}: not a regular file; give a conditions file")
            data = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: cannot be read: {reason}; give a conditions file") from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: more than {MAX_BYTES} bytes; split it into several conditions files")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"the key {shown(key)} is given twice; keep one")
        content[key] = value
    return content


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None) or getattr(event, "tag", None):
            problem = "anchors, aliases and tags are not read; write the value out"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return super().compose_node(parent, index)


def _from_yaml(text: str) -> Any:
    return _plain(_Loader(text).get_single_node())


def _plain(node: Any) -> Any:
    """Return a node as one of JSON's types, so that "no", 010, 1:30 and dates stay what was written."""
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        content: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = _plain(key_node)
            if not isinstance(key, str) or key in content:
                rule = "is given twice; keep one" if isinstance(key, str) else "is not text; put it in quotes"
                problem = f"the key {shown(key)} {rule}"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            content[key] = _plain(value_node)
        return content
    if node is None or (node.style is None and node.value in WORDS):  # None: an empty file
        return WORDS[node.value if node else ""]
    if node.style is None and NUMBER.fullmatch(node.value):
        return int(node.value) if node.value.removeprefix("-").isdigit() else float(node.value)
    return node.value


if __name__ == "__main__":
    sys.stdout.write(schema_text())
