"""What the site takes from elsewhere: the README as its first page, and the tables of all parameters."""

import re
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from dinomaly_hd.config import dinomaly, families, run
from dinomaly_hd.config.base import Frozen

ROOT = Path(__file__).parent.parent


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill the pages whose text is only their source: mkdocs calls this for each."""
    if page.file.src_path == "index.md":
        return first_page((ROOT / "README.md").read_text("utf-8"))
    return markdown.replace("{{ parameters }}", parameters())


def first_page(readme: str) -> str:
    """Return the README with its links as seen from docs/; files beside docs/ are named without a link."""
    beside = re.sub(r"\[([^]]*)\]\((?!docs/|https?:|#)([^)]*)\)", r"\1 (`\2`)", readme)
    return beside.replace("](docs/", "](")


def parameters() -> str:
    """Return one table a config class: name, default, what it is."""
    modules = {module.__name__: module for module in (run, dinomaly, families)}
    configs = [one for module in modules.values() for one in vars(module).values() if isinstance(one, type)]
    own = [one for one in configs if issubclass(one, Frozen) and one.__module__ in modules]
    return "\n\n".join(filter(None, map(table, dict.fromkeys(own))))


def table(config: type[Frozen]) -> str:
    rows = [row(name, field) for name, field in config.model_fields.items() if field.description]
    head = f"## {config.__name__}\n\n{config.__doc__}\n\n| name | default | what it is |\n|---|---|---|\n"
    return head + "\n".join(rows) if rows else ""


def row(name: str, field: FieldInfo) -> str:
    default = "" if field.is_required() else f"`{field.get_default(call_default_factory=True)}`"
    return f"| `{name}` | {default} | {field.description} |"
