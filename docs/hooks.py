"""What the site takes from elsewhere: pages that lie beside docs/, and the tables of parameters."""

import re
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from dinomaly_hd.config import dinomaly, families, run
from dinomaly_hd.config.base import Frozen
from dinomaly_hd.config.families import ModelConfig
from dinomaly_hd.config.presets import (
    MODELS,
    any_of,
    described,
    help_of,
    kinds_of,
    preset_run,
    with_every_part,
)
from dinomaly_hd.config.variants import VARIANTS

ROOT = Path(__file__).parent.parent
HEAD = "| name | default | what it is |\n|---|---|---|\n"
BESIDE = {"README.md": "index.md", "SECURITY.md": "security.md", "CONTRIBUTING.md": "architecture.md"}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill the pages whose text is only their source: mkdocs calls this for each."""
    for beside, name in BESIDE.items():
        if page.file.src_path == name:
            return seen_from_docs((ROOT / beside).read_text("utf-8"))
    markdown = re.sub(r"{{ parameters of (\w+) }}", lambda found: of_model(found[1]), markdown)
    return markdown.replace("{{ parameters }}", parameters())


def seen_from_docs(text: str) -> str:
    """Return a page with its links as seen from docs/; files that no page shows are named without a link."""
    for beside, name in BESIDE.items():
        text = text.replace(f"]({beside})", f"](docs/{name})")
    return re.sub(r"\[([^]]*)\]\((?!docs/|https?:|#)([^)]*)\)", r"\1 (`\2`)", text).replace("](docs/", "](")


def of_model(name: str) -> str:
    """Return the table of what is a family's own, or what a variant has otherwise than the baseline."""
    fields, usual = any_of([name]), any_of(["baseline"])
    if name in VARIANTS and name != "baseline":
        own = [key for key in fields if key not in usual or fields[key].default != usual[key].default]
    else:
        own = [key for _, model in with_every_part(name) for key in described(model)]
    full, quick = defaults(MODELS[name]()), defaults(preset_run("quick", MODELS[name]()).model)
    rows = []
    for key in dict.fromkeys(own):
        usual_text = full.get(key, as_text(fields[key].default))
        small = f", quick {quick[key]}" if quick.get(key, usual_text) != usual_text else ""
        rows.append(f"| `{key}` | {usual_text}{small} | {help_of(fields[key])} |")
    return HEAD + "\n".join(rows)


def defaults(model: ModelConfig) -> dict[str, str]:
    """Return every value of a model, also which of its parts are chosen."""
    chosen = {
        str(field.discriminator): name for name, field in type(model).model_fields.items() if kinds_of(field)
    }
    parts = {key: getattr(getattr(model, name), key) for key, name in chosen.items()}
    return {key: as_text(parts.get(key, field.default)) for key, field in described(model).items()}


def as_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def parameters() -> str:
    """Return one table a config class: name, default, what it is."""
    modules = {module.__name__: module for module in (run, dinomaly, families)}
    configs = [one for module in modules.values() for one in vars(module).values() if isinstance(one, type)]
    own = [one for one in configs if issubclass(one, Frozen) and one.__module__ in modules]
    return "\n\n".join(filter(None, map(table, dict.fromkeys(own))))


def table(config: type[Frozen]) -> str:
    rows = [row(name, field) for name, field in config.model_fields.items() if field.description]
    head = f"## {config.__name__}\n\n{config.__doc__}\n\n{HEAD}"
    return head + "\n".join(rows) if rows else ""


def row(name: str, field: FieldInfo) -> str:
    default = "" if field.is_required() else f"`{field.get_default(call_default_factory=True)}`"
    return f"| `{name}` | {default} | {field.description} |"
