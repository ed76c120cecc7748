"""Imports run one way, and what is said twice is the same: the design, held by a walk over the source."""

import ast
import itertools
import re
import tomllib
from pathlib import Path

import yaml

from dinomaly_hd.config.presets import FAMILIES
from dinomaly_hd.config.variants import VARIANTS, WITH_TOPK

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "dinomaly_hd"

# Each layer may import itself, what stands before it, and nothing else of the package.
LAYERS = {
    "errors": set(),
    "names": set(),
    "randomness": set(),
    "geometry": set(),
    "batch": set(),
    "streams": {"errors"},
    "progress": set(),
    "provenance": set(),
    "files": {"errors"},
    "config": {"errors", "names"},
    "trivial": {"errors"},
    "data": {"errors", "names", "files", "config", "randomness", "geometry", "batch", "progress"},
    "models": {"errors", "files", "config", "randomness", "geometry", "batch", "trivial", "progress"},
    "plugin": {"errors", "config", "models"},
    "vibration": {"errors", "names", "files", "config", "data", "evaluation", "trivial", "progress"},
    "evaluation": {"errors", "names", "files", "config", "randomness", "geometry", "trivial"},
    "training": {"errors", "files", "config", "randomness", "batch", "data", "models", "progress"},
    "runs": {"errors", "files", "provenance", "data", "training", "serving"},  # mirror sends its models
    "jobs": {"errors", "files", "provenance"},
    "tuning": {"errors", "files", "randomness", "config", "evaluation"},
    "serving": {
        *["errors", "files", "config", "data", "models", "evaluation", "training", "experiments", "geometry"],
        *["runs", "provenance", "plugin"],
    },
}
EVERYTHING_BUT_ENTRY_POINTS = {path.stem for path in PACKAGE.iterdir() if path.stem != "__init__"}
LAYERS["experiments"] = EVERYTHING_BUT_ENTRY_POINTS
LAYERS["workbench"], LAYERS["estimators"] = EVERYTHING_BUT_ENTRY_POINTS, {"config", "models", "trivial"}
ONLY_HERE = {
    "mlflow": {"runs", "serving"},
    "optuna": {"tuning"},
    "lightning": {"training"},
    "timm": {"models"},
    "ray": {"jobs"},
}


def modules() -> list[Path]:
    return sorted(
        path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" or path.parent != PACKAGE
    )


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_imports_run_one_way_and_heavy_packages_are_imported_in_their_place_only() -> None:
    wrong = []
    for path in modules():
        layer, names = path.relative_to(PACKAGE).with_suffix("").parts[0], imports(path)
        own = {name.split(".")[1] for name in names if name.startswith("dinomaly_hd.")} - {layer}
        roots = {name.split(".")[0] for name in names}
        heavy = {package for package in roots & set(ONLY_HERE) if layer not in ONLY_HERE[package]}
        wrong += [(str(path), one) for one in (own - LAYERS[layer]) | heavy | (roots & {"entry_points"})]
    assert not wrong


def test_conda_installs_what_pyproject_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    conda = yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"]
    assert conda[:2] == ["python=3.11", "pip"]
    assert conda[2] == {"pip": project["dependencies"]}


def test_files_that_documents_name_are_there() -> None:
    for document in ("CONTRIBUTING.md", "SECURITY.md"):
        for place in re.findall(r"`([a-z0-9_/{},]+/[a-z0-9_{},]+\.py)`", (ROOT / document).read_text()):
            parts = [part.strip("{}").split(",") for part in re.split(r"(\{.*?\})", place)]
            for path in map("".join, itertools.product(*parts)):
                assert (ROOT / path).is_file() or (PACKAGE / path).is_file(), f"{document}: {path}"


def test_each_model_has_its_page_in_the_site() -> None:
    nav = (ROOT / "mkdocs.yml").read_text()
    for name in [*VARIANTS, *FAMILIES]:
        if name not in (*WITH_TOPK.values(), "dinomaly"):  # a switch of another's page, and the baseline's
            text = (ROOT / f"docs/models/{name}.md").read_text()
            assert f"{{{{ parameters of {name} }}}}" in text
            assert f" models/{name}.md" in nav


def test_each_guard_that_mutations_take_out_is_there_once() -> None:
    for guard in tomllib.loads((ROOT / "benchmarks" / "mutations.toml").read_text())["guard"]:
        assert (ROOT / guard["file"]).read_text().count(guard["old"]) == 1, guard["guard"]


def test_the_badge_says_what_pyproject_says() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    first, end = map(int, re.findall(r"3\.(\d+)", project["requires-python"]))
    said = re.findall(">([^<]+)</text>", (ROOT / "docs/images/badges.svg").read_text())
    versions = " | ".join(f"3.{minor}" for minor in range(first, end))
    assert said == ["Python", versions, "licence", project["license"]]
