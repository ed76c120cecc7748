"""A JSON or YAML file as plain data: the same data from both, nothing said twice, nothing that hangs."""

import json
import os
import re
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import yaml

from dinomaly_hd.errors import ConfigError, nearest
from dinomaly_hd.names import shown

MAX_BYTES = 128 * 1024


def read_plain(path: Path) -> Any:
    """Return the content of a ``.json``, ``.yaml`` or ``.yml`` file (UTF-8, at most 128 KiB).

    YAML is read as JSON with less punctuation: true/false/null, decimal numbers (1e-4 is one), and text; no
    anchors, aliases or tags. No key may be given twice.
    """
    from_yaml = partial(yaml.load, Loader=_Loader)
    readers: dict[str, Callable[[str], Any]] = {
        ".json": json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant).decode,
        ".yaml": from_yaml,
        ".yml": from_yaml,
    }
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


TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    # Only JSON's types, so that "no", 010, 1:30 and dates stay what was written.
    yaml_implicit_resolvers = {}  # noqa: RUF012
    yaml_constructors = {  # noqa: RUF012
        TAG + kind: yaml.SafeLoader.yaml_constructors[TAG + kind]
        for kind in ("map", "seq", "str", "int", "float", "bool", "null")
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None) or getattr(event, "tag", None):
            problem = "anchors, aliases and tags are not read; write the value out"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        content: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str) or key in content:
                rule = "is given twice; keep one" if isinstance(key, str) else "is not text; put it in quotes"
                problem = f"the key {shown(key)} {rule}"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            content[key] = self.construct_object(value_node, deep=deep)
        return content


for _kind, _pattern, _first in (
    ("bool", r"true|false", "tf"),
    ("null", r"null|~|", ["n", "~", ""]),
    ("int", r"-?(0|[1-9][0-9]*)", "-0123456789"),
    ("float", r"-?((\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)", "-.0123456789"),
):
    _Loader.add_implicit_resolver(TAG + _kind, re.compile(rf"^(?:{_pattern})$"), list(_first))
