"""The conditions of a file: the authors' keys checked and turned into this project's flags."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dinomaly_hd.condition_files.keys import FIELDS, KEYS, Need, exclusive, families_of, keys_of, needs_of
from dinomaly_hd.condition_files.kinds import MAX_TEXT
from dinomaly_hd.condition_files.reading import read_plain, shown
from dinomaly_hd.errors import ConfigError, nearest
from dinomaly_hd.variants import WITH_TOPK

TOP_KEYS = {"experiment_conditions": "list of conditions", "$schema": "schema for editors"}
ENTRY_KEYS = {"name": "of the run", "description": "what it is for", "config": "its settings"}
NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}"
MAX_DESCRIPTION = 1000
SHOWN_KEYS = 3
DOMAIN_PREFIX = "domain_"
COMPANIONS = {"image_size": ("crop", "none"), "max_steps": ("max_epochs", "0")}
"""Keys that also set another flag, unless its own key does: no crop of a size, no epochs beside steps."""


class Condition(NamedTuple):
    """One experiment of a conditions file.

    Attributes:
        name: Safe as a folder's name, unique in its file whatever the case.
        description: One line, may be empty.
        model_type: One of ``keys.FAMILIES``.
        source_domain: The domain trained on ("A" of "domain_A"); None: all of ``values["domains"]`` are.
        target_domains: Domains that are only tested; empty for a single domain.
        values: This project's flags as text, without the fields above.
    """

    name: str
    description: str
    model_type: str
    source_domain: str | None
    target_domains: tuple[str, ...]
    values: dict[str, str]


def read_conditions(path: Path) -> tuple[Condition, ...]:
    """Read a conditions file, JSON or YAML (spec/protocols.md, "Conditions files").

    Raises:
        ConfigError: One line with the file, the condition, the key, its value, the rule and the way out.
    """
    try:
        content = _checked(read_plain(path), known=TOP_KEYS, place="the file: ")
        entries = content.get("experiment_conditions")
        if not isinstance(entries, list) or not entries:
            raise ValueError(
                f"experiment_conditions={shown(entries)}: expected a list of one or more conditions"
            )
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    conditions: dict[str, Condition] = {}
    for number, entry in enumerate(entries, start=1):
        place = f"{path}: condition {number}"
        try:
            entry = _checked(entry, known=ENTRY_KEYS, place="")
            name = _name(entry)
            place = f"{path}: condition {name}"
            if name.casefold() in conditions:
                raise ValueError("the name is given twice (upper and lower case count alike); choose another")
            conditions[name.casefold()] = _condition(name, entry)
        except ValueError as error:
            raise ConfigError(f"{place}: {error}") from None
    return tuple(conditions.values())


def _checked(content: Any, *, known: Mapping[str, Any], place: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        keys = ", ".join(list(known)[:SHOWN_KEYS]) + (", ..." if len(known) > SHOWN_KEYS else "")
        raise ValueError(f"{place}expected {{{keys}}}, got {shown(content)}")
    for key, value in content.items():
        if key not in known:
            hint = nearest(key[:MAX_TEXT], known)
            raise ValueError(f"{shown(key).strip(chr(39))}={shown(value)}: unknown key.{hint}")
    return content


def _name(entry: dict[str, Any]) -> str:
    name = entry.get("name")
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        raise ValueError(
            f"name={shown(name)}: expected 1 to 100 letters, digits, _ . -; a letter or digit first"
        )
    return name


def _condition(name: str, entry: dict[str, Any]) -> Condition:
    description = entry.get("description", "")
    line = " ".join(description.split()) if isinstance(description, str) else "\n"
    if not line.isprintable() or len(line) > MAX_DESCRIPTION:
        raise ValueError(
            f"description={shown(description)}: expected text of up to {MAX_DESCRIPTION} characters"
        )
    if "config" not in entry:
        raise ValueError("config is missing; write its settings, model_type first")
    known = {key.name: key for key in KEYS}
    config = _checked(entry["config"], known=known, place="config: ")
    family = _read(config, "model_type", "draem")
    given = {key: _read(config, key, family) for key in config}
    _refuse_two_of_one(config, family)
    variant = _variant(given)
    _refuse_unused({**given, **variant, "use_topk": ""}, family)
    source, targets = _domains(given)
    return Condition(name, line, family, source, targets, {**_flags(given, family), **variant})


def _read(config: dict[str, Any], name: str, family: str) -> str:
    """Return a key's value as text, empty for a null that leaves the default."""
    if name not in config:
        raise ValueError(f"{name} is missing: {keys_of(family)[name].text}; write it")
    value = config[name]
    if name not in keys_of(family):
        takers = " and ".join(families_of(name))
        raise ValueError(f"{name}={shown(value)}: does nothing for {family}, only for {takers}; leave it out")
    try:
        return keys_of(family)[name].kind.read(value)
    except ValueError as error:
        raise ValueError(f"{name}={shown(value)}: {error}") from None


def _refuse_two_of_one(config: dict[str, Any], family: str) -> None:
    for one, other in exclusive(family):
        if one in config and other in config:
            raise ValueError(
                f"{one}={shown(config[one])} and {other}={shown(config[other])} exclude each other; keep one"
            )


def _variant(given: dict[str, str]) -> dict[str, str]:
    """Return the variant where one is named, after ``use_topk``, which only some can take."""
    named: dict[str, str] = {name: given[name] for name in ("variant", "use_topk") if name in given}
    _refuse_unused(named, given["model_type"])
    if named.pop("use_topk", "false") == "true":
        return {"variant": WITH_TOPK[named["variant"]]}
    return named


def _refuse_unused(given: dict[str, str], family: str) -> None:
    for name, needs in needs_of(family).items():
        for need in needs if given.get(name) else ():
            value = given.get(need.other, need.default)
            if value not in need.allowed:
                raise ValueError(_unused(name, given[name], need, value))


def _unused(name: str, text: str, need: Need, value: str) -> str:
    allowed = " or ".join(need.allowed)
    return f"{name}={text[:60]}: does nothing with {need.other}={value}, only with {allowed}; leave it out"


def _domains(given: dict[str, str]) -> tuple[str | None, tuple[str, ...]]:
    if "domains" in given:
        return None, ()
    if "source_domain" not in given:
        raise ValueError("source_domain is missing; write the domain to train on, or domains for several")
    source = _domain(given["source_domain"])
    targets = [_domain(name) for name in given.get("target_domains", "").split(",") if name]
    if source in targets:
        raise ValueError(
            f"target_domains={shown(targets)}: {source} is the source_domain, which is tested anyhow"
        )
    if len(set(targets)) < len(targets):
        raise ValueError(f"target_domains={shown(targets)}: a domain is given twice; keep one")
    return source, tuple(targets)


def _domain(name: str) -> str:
    return name.removeprefix(DOMAIN_PREFIX) or name


def _flags(given: dict[str, str], family: str) -> dict[str, str]:
    known = keys_of(family)
    flags = {known[name].flag: text for name, text in given.items() if name not in FIELDS and text}
    for name, (flag, text) in COMPANIONS.items():
        if name in given:
            flags.setdefault(flag, text)
    if "domains" in flags:
        flags["domains"] = ",".join(_domain(name) for name in flags["domains"].split(","))
    return flags
