"""Drill 15: parameters, names and links that try to reach a shell, another folder, a page or a table."""

import contextlib
import importlib
import io
import os
import random
import re
import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pandas as pd

from benchmarks.drills import Drill, Tally
from dinomaly_hd.config.resolve import MARKER, Command
from dinomaly_hd.data.tree import survey
from dinomaly_hd.errors import ConfigError
from dinomaly_hd.evaluation.report import ENVIRONMENT, Picture, render
from dinomaly_hd.names import FORMULA_STARTS, has_hidden
from dinomaly_hd.runs.store import client_for
from entry_points import common
from entry_points.__main__ import NAMES as ENTRY_POINTS
from tests.files import add_domain, add_image

SEED = 15
SECRET = "what nobody may see"
MARK = "escaped"
"""In the name of every file that a payload would make."""
SHIFTS_FAST = 2
DOMAINS_FAST = ("<img src=x onerror=alert(1)>", "![x](https:evil)", "é😀")
LONGEST_DOMAIN = 100
REFUSALS = (64, 65, 74, 75)
LONGEST_FILE = 245
TAGS = frozenset(
    {
        *("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "ul", "li", "table", "caption"),
        *("tr", "th", "td", "div", "code", "img", "figure", "figcaption", "details", "summary"),
        *("label", "input"),  # of the contents
    }
)
ATTRIBUTES = frozenset(
    {"lang", "charset", "class", "alt", "src", "open", "id", "for", "tabindex", "readonly"}
)
STUB = """#!/bin/bash
printf '%s\\0' "$@" > "$RECORD"
"""

FREE_TEXT = (
    *(("horizontal", name) for name in ("domains", "train_domains", "encoder", "encoder_weights", "resume")),
    *(("horizontal", name) for name in ("start_from", "data_root", "target_layers", "mode", "seeds")),
    *(("single_domain", name) for name in ("model_type", "source_domain", "conditions_file", "condition")),
    *(("single_domain", "anomaly_source_path"), ("multi_domain", "target_domains")),
    *(("ablation", "configs"), ("finetune", "config"), ("report", "runs")),
    *(("predict", name) for name in ("run", "domain")),
    *(("tune", name) for name in ("storage", "space", "metrics", "config")),
)
"""Parameters of which no payload can be a value: each is refused before anything runs."""


def payloads(place: Path) -> tuple[str, ...]:
    """Return texts that make a file called ``escaped`` in ``place`` if a shell or a path takes them."""
    made = place / MARK
    return (
        *(f"$(touch {made})", f"; touch {made}", f"`touch {made}`", f"| touch {made}", f"&& touch {made}"),
        *(f"'; touch {made}; '", f'"; touch {made}; "', f"x\ntouch {made}\n", f"> {made}"),
        *(f"../../../{MARK}", str(made), f"file://{made}", f"~/{MARK}", f"..\\..\\{MARK}"),
        *(f"--result_dir={made}", f"-{MARK}", "%s%n{0}{}{seed}", "\u202egnp.exe", f"x\0{MARK}", "x" * 5000),
    )


NAMES = (
    *(" lead", "trail ", "a  b", "a'b", 'a"b', "a`id`b", "$(id)", "${HOME}", "a;b", "a|b", "a&b", "a>b"),
    *("*", "?", "[a]", "~", "!x", "#x", "%s%n", "%2e%2e%2f", "{0}{x}", "..\\x", "..x", "-rf", "--help"),
    *("=cmd|' -C calc'!A0", "+1+1", "@SUM(1)", "<script>alert(1)<", "<img src=x onerror=alert(1)>"),
    *("&lt;b&gt;", "![x](https:evil)", "[x](javascript:alert(1))", "CON", "nul.txt", "$\\alpha_$", "a,b"),
    *("a\nb", "a\tb", "a\x1b[2J", "a\x7fb", "a\u202eb", "a\rb", "é😀", "x" * 250, "\u00a0nbsp"),
)
"""Of folders and files; all of them can stand on a disk."""


class Sandbox:
    """A folder in which a run may write its results, its MLflow store and the caches of libraries.

    The run starts four folders down, so that a path that climbs still stays where it is seen.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.maps, self.store = root, root / "maps", root / "store"
        self.work = root / "a" / "b" / "c" / "work"
        for place in (self.work, self.store, root / "home"):
            place.mkdir(parents=True)
        add_domain(self.maps, "domain_A")

    def written_elsewhere(self, before: set[Path]) -> list[str]:
        """Return what lies in the sandbox, but not where it may, and was not there before."""
        places = self.work / "results", self.store, self.root / "home" / ".cache"
        new = set(self.root.rglob("*")) - before
        return sorted(str(path) for path in new if not any(map(path.is_relative_to, places)))


class Ended(NamedTuple):
    """How an entry point ended, all that it said, and what it wrote where it may not."""

    code: int
    said: str
    escaped: list[str]


@contextlib.contextmanager
def _inside(box: Sandbox) -> Iterator[None]:
    store = box.store
    surroundings = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{store / 'mlflow.db'}",
        "DINOMALY_HD_FEATURES": str(store / "features"),
        "DINOMALY_HD_STORAGE": f"sqlite:///{store / 'optuna.db'}",
        "HOME": str(box.root / "home"),
        "MPLCONFIGDIR": str(store / "matplotlib"),
    }
    with (
        mock.patch.dict(os.environ, surroundings),
        mock.patch.object(common, "ROOT", store),
        contextlib.chdir(box.work),
        warnings.catch_warnings(action="ignore"),
    ):
        yield


def start(box: Sandbox, module: str, **flags: str) -> Ended:
    """Start an entry point in the sandbox, as ``dinomaly-hd`` does."""
    main = importlib.import_module(f"entry_points.{module}").main
    words = [f"--{name}={value}" for name, value in flags.items()]
    said, before = io.StringIO(), set(box.root.rglob("*"))
    with _inside(box), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = common.launch(main, words)
    return Ended(code, said.getvalue(), box.written_elsewhere(before))


# A shell.


def command_of(name: str) -> Command[Any]:
    """Return what an entry point takes."""
    command: Command[Any] = importlib.import_module(f"entry_points.{name}").COMMAND
    return command


def shell(folder: Path, tally: Tally, *, full: bool) -> None:
    """Let MLflow put payloads into all parameters of all entry points, and bash run its command.

    Each shift gives declared parameter i payload i + shift, so that all of them together give each all;
    each payload is also the value of an undeclared parameter, and the name of one.
    """
    from mlflow.projects._project_spec import load_project

    folder.mkdir()

    project, texts = load_project(str(common.ROOT)), payloads(folder)
    stub = folder / "bin" / "python"
    stub.parent.mkdir()
    stub.write_text(STUB)
    stub.chmod(0o755)
    every = range(len(texts))
    shifts = every if full else random.Random(SEED).sample(every, SHIFTS_FAST)
    for name in ENTRY_POINTS:
        point = project.get_entry_point(name)
        others = [key for key in command_of(name).parameters() if key not in point.parameters]
        for shift in shifts:
            values = {key: texts[(i + shift) % len(texts)] for i, key in enumerate(point.parameters)}
            added = {key: texts[(i + shift) % len(texts)] for i, key in enumerate(others)}
            named = {texts[shift]: "x", texts[shift - 1]: f"--{texts[shift]}"}
            reason = _arrive(folder, point, values, {**added, **named}) or _understood(name, added, named)
            tally.add(f"mlflow run -e {name}, shift {shift}", reason)


def _arrive(folder: Path, point: Any, values: dict[str, str], added: dict[str, str]) -> str | None:
    """Return what was wrong about how values came through MLflow's shell to the entry point's arguments."""
    every = {**values, **added}
    if any("\0" in text for pair in every.items() for text in pair):
        with contextlib.suppress(ValueError):  # no argument can hold it, so nothing is started
            subprocess.run(["bash", "-c", point.compute_command(every, None)], check=False)
            return "a NUL was given to a process"
    every = {key.replace("\0", ""): value.replace("\0", "") for key, value in every.items()}
    record = folder / "record"
    record.unlink(missing_ok=True)
    surroundings = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "RECORD": str(record)}
    command = ["bash", "-c", point.compute_command(every, None)]
    done = subprocess.run(command, cwd=folder, env=surroundings, capture_output=True, text=True, check=False)
    if (folder / MARK).exists():
        (folder / MARK).unlink()
        return "a payload was run"
    if done.returncode or done.stderr or not record.exists():
        return f"exit code {done.returncode}: {done.stderr[-300:]}"
    words = record.read_text().split("\0")[:-1]
    expected = ["-m", f"entry_points.{point.name}", *(f"--{key}={every[key]}" for key in values), MARKER]
    expected += [word for key in every if key not in values for word in (f"--{key}", every[key])]
    wrong = [word for word, other in zip(words, expected, strict=False) if word != other]
    return f"arrived as {wrong[:1]}, {len(words)} words" if words != expected else None


def _understood(name: str, added: dict[str, str], named: dict[str, str]) -> str | None:
    """Return which word behind the marker was read as anything but the value of the name before it."""
    for key, text in {**added, **named}.items():
        try:
            given = command_of(name).parse([MARKER, f"--{key}", text]).given
        except ConfigError as error:
            if has_hidden(str(error)):
                return f"said {str(error)!r}"
            if "expected one argument" in str(error):
                return f"{key}={text!r} was not read as a value: {error}"
        else:
            if given != {key: text}:
                return f"{key}={text!r} was read as {given}"
            if key in named:
                return f"{key!r} was taken for a parameter"
    return None


# Parameters.


OF_POINT: dict[str, dict[str, str]] = {
    "predict": {"run": "x", "input": "x"},
    "tune": {"trials": "1"},
    "single_domain": {"model_type": "trivial", "source_domain": "A"},
    "multi_domain": {"model_type": "trivial", "source_domain": "A"},
}
"""What an entry point needs beside the parameter that is tried."""


def refused_values(box: Sandbox, tally: Tally, *, full: bool) -> None:
    draw, texts = random.Random(SEED), payloads(box.root)
    common_flags = {"data_root": str(box.maps), "domains": "A", "result_dir": "results"}
    for module, name in FREE_TEXT:
        takes, own = command_of(module).parameters(), OF_POINT.get(module, {})
        if name in ("condition", "conditions_file"):
            own = {"conditions_file": "none.json"}
        elif name == "anomaly_source_path":
            own = {**own, "model_type": "draem"}
        kept = {key: common_flags[key] for key in takes if key in common_flags}
        if "source_domain" in takes:
            kept.pop("domains", None)
        for text in texts if full else (draw.choice(texts[:-1]), texts[-1]):
            ended = start(box, module, **{**own, **kept, name: text})
            tally.add(f"{module} --{name}={text[:60]!r}", _is_refused(ended))


def _is_refused(ended: Ended) -> str | None:
    if ended.escaped or ended.code not in REFUSALS:
        return f"wrote {ended.escaped[:3]}, exit code {ended.code}: {ended.said[-300:]}"
    return f"said {ended.said!r}" if has_hidden(ended.said.replace("\n", "")) else None


def taken_values(box: Sandbox, tally: Tally) -> None:
    for text in payloads(box.root):
        flags = {"source_domain": "A", "data_root": str(box.maps), "run_name": text, "experiment": text}
        ended = start(box, "single_domain", **TRIVIAL, **flags)
        reason = _is_refused(ended) if ended.code else _is_clean(box, ended, names=(text,))
        tally.add(f"run_name and experiment {text[:60]!r}", reason)


TRIVIAL = {
    "model_type": "trivial",
    "preset": "quick",
    "conditions": "none",
    "maps_per_group": "1",
    "gpu": "cpu",
    "result_dir": "results",
}
"""Flags of a run that trains nothing."""


# Names.


def names(box: Sandbox, tally: Tally, *, full: bool) -> None:
    """Give names to domains, images and kinds of defects: refused before anything runs, or harmless."""
    refused = [name for name in NAMES if _add_if_refused(box, name)]
    for name in refused:
        flags = {"source_domain": name, "data_root": str(box.maps)}
        tally.add(f"domain {name!r}", _is_refused(start(box, "single_domain", **TRIVIAL, **flags)))
    for name in set(NAMES) - set(refused):
        if name.startswith(FORMULA_STARTS) or has_hidden(name) or len(name.encode()) > LONGEST_DOMAIN:
            tally.add(f"domain {name!r}", "taken, though results cannot be named after it")
    taken = [name for name in NAMES if name not in refused and (full or name in DOMAINS_FAST)]
    images, faults = _add_images(box)
    flags = {
        **TRIVIAL,
        "source_domain": "domain_A",
        "domains": ",".join(["domain_A", *taken]),
        "data_root": str(box.maps),
        "maps_per_group": str(len(NAMES)) if full else TRIVIAL["maps_per_group"],
        "run_name": "<script>alert(1)</script>",
        "experiment": "<b>![x](https:evil)",
    }
    if faults:
        ended = start(box, "multi_domain", **flags)
        for path in faults:
            tally.add(f"image {path.name!r}", _is_refused(ended))
            path.unlink()
    kinds = [name for name in NAMES if _add_kind(box, name)]
    for name in kinds:
        if name.startswith(FORMULA_STARTS) or has_hidden(name):
            tally.add(f"kind of defect {name!r}", "taken, though tables cannot hold it")
    ended = start(box, "multi_domain", **flags)
    reason = f"exit code {ended.code}: {ended.said[-500:]}" if ended.code else None
    reason = reason or _is_clean(box, ended, names=(*taken, *(path.stem for path in images)))
    reason = reason or _predicted(box, images[0].parent)
    results = {path.stem for path in box.work.glob("results/**/scores/*.csv")}
    for name in taken:
        tally.add(f"domain {name!r}", reason or (None if name in results else "has no scores"))
    for path in images:
        tally.add(f"image {path.name!r}", reason)
    for name in kinds:
        tally.add(f"kind of defect {name!r}", reason)


def _add_kind(box: Sandbox, name: str) -> bool:
    """Make a kind of defect of one image, and tell whether it is taken; one that is refused goes again."""
    place = box.maps / "domain_A" / "test" / name
    place.mkdir()
    add_image(place / "0.tiff", np.random.default_rng(len(name)))
    taken = not survey(box.maps, domains=["domain_A"]).faults
    if not taken:
        shutil.rmtree(place)
    return taken


def _predicted(box: Sandbox, images: Path) -> str | None:
    (run,) = (path.parent for path in box.work.glob("results/**/results.json"))
    flags = {"run": str(run), "input": str(images), "result_dir": "results", "gpu": "cpu", "maps": "1"}
    ended = start(box, "predict", **flags)
    if ended.code:
        return f"predict: exit code {ended.code}: {ended.said[-500:]}"
    return _is_clean(box, ended, names=())


def _add_if_refused(box: Sandbox, name: str) -> bool:
    add_domain(box.maps, name)
    asked = [part.strip() for part in name.split(",")]
    return bool(survey(box.maps, domains=asked).faults) or name != name.strip()


def _add_images(box: Sandbox) -> tuple[list[Path], list[Path]]:
    """Make an image of each name, and return those that are taken and those that are refused."""
    place = box.maps / "domain_A" / "test" / "fault"
    for number, name in enumerate(NAMES):
        add_image(place / f"{name[:LONGEST_FILE]}.tiff", np.random.default_rng(number))
    known = {entry.path for entry in survey(box.maps, domains=["domain_A"]).entries}
    every = [place / f"{name[:LONGEST_FILE]}.tiff" for name in NAMES]
    taken = [path for path in every if path.relative_to(box.maps).as_posix() in known]
    hidden = [path for path in every if path.name.startswith(".")]  # left out, as every hidden file is
    return taken, [path for path in every if path not in taken and path not in hidden]


class _Page(HTMLParser):
    """Collects what a page holds beyond what ours do."""

    def __init__(self) -> None:
        super().__init__()
        self.strange: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in [*attrs, ("class", None)]:
            own_source = name != "src" or (value or "").startswith("data:image/png;base64,")
            if tag not in TAGS or name not in ATTRIBUTES or not own_source:
                self.strange.append(f"<{tag} {name}={value!r}>")


def _is_clean(box: Sandbox, ended: Ended, *, names: Sequence[str]) -> str | None:
    """Return what a finished run let through to a folder, terminal, page, table or to MLflow."""
    checks: tuple[Callable[[], object], ...] = (
        lambda: ended.escaped[:3],
        lambda: has_hidden(ended.said.replace("\n", "")) and f"said {ended.said!r}",
        lambda: "lacks part of this run" in ended.said and ended.said[-500:],
        lambda: [fault for path in box.work.rglob("*.html") for fault in _strange(path.read_text())],
        lambda: [cell for table in box.work.rglob("*.csv") for cell in _formulas(table)],
        lambda: _in_markdown(box, names),
    )
    for check in checks:
        found = check()
        if found:
            return f"let through: {str(found)[:500]}"
    return None


def _strange(text: str) -> list[str]:
    reader = _Page()
    reader.feed(text)
    return reader.strange


def pages(tally: Tally) -> None:
    """Put names into every place of a page that takes text."""
    parts: Any = ENVIRONMENT.get_template("parts.html").module
    for name in NAMES:
        made = [
            render("page.html", title=name),
            parts.bullets([name]),
            parts.facts({name: name}),
            parts.table(name, [name, name], [[name, name]]),
            parts.folded(name, caller=lambda: ""),
            parts.figures([Picture(name, b"")]),
        ]
        strange = [fault for part in made for fault in _strange(part)]
        tally.add(f"{name!r} in a page", f"let through: {strange[:3]}" if strange else None)


def _formulas(path: Path) -> list[str]:
    cells = pd.read_csv(path, header=None, dtype=str, keep_default_na=False).stack()
    texts = cells[pd.to_numeric(cells, errors="coerce").isna()]
    return texts[texts.str.startswith(FORMULA_STARTS)].tolist()


def _in_markdown(box: Sandbox, names: Sequence[str]) -> list[str]:
    """Return names that stand in a run's description as links, pictures or tags, outside of code."""
    with _inside(box):
        client = client_for(os.environ["MLFLOW_TRACKING_URI"])
        experiments = [one.experiment_id for one in client.search_experiments()]
        notes = [run.data.tags.get("mlflow.note.content", "") for run in client.search_runs(experiments)]
    texts = [re.sub(r"`[^`\n]*`", "", note) for note in notes]
    active = [name for name in names if re.search(r"[<\[]", name)]
    return [name for name in active if any(name in text for text in texts)]


# Links.


def links(box: Sandbox, tally: Tally) -> None:
    """Let an image, a folder, a domain and a table lead to what is no image: its type is all that is said."""
    secret = box.root / "outside"
    secret.mkdir()
    (secret / "key.tiff").write_text("x" * 4 + SECRET)
    for number, place in enumerate(("test/good/link.tiff", "test/good", "test/fault", "")):
        root = box.root / f"linked{number}"
        add_domain(root, "domain_A")
        link, target = root / "domain_A" / place, secret
        if place.endswith(".tiff"):
            target = secret / "key.tiff"
        else:
            link.rename(root / "moved")
        link.symlink_to(target)
        _linked(box, tally, f"a link at {place or 'the domain'}", root)
    table = box.maps / "images.csv"
    for path in ("../outside/key.tiff", str(secret / "key.tiff"), "domain_A/../../outside/key.tiff"):
        table.write_text(f"path,label,split\ndomain_A/train/good/0.tiff,good,train\n{path},good,test\n")
        _linked(box, tally, f"a table with {path}", table, domain="images")


def _linked(box: Sandbox, tally: Tally, what: str, root: Path, *, domain: str = "A") -> None:
    ended = start(box, "single_domain", **TRIVIAL, source_domain=domain, data_root=str(root))
    told = f"told {ended.said[-300:]}" if SECRET in ended.said else None
    tally.add(what, _is_refused(ended) or told)


def escapes(folder: Path, full: bool) -> Tally:
    """Send payloads through MLflow's shell, the flags, the names of domains and images, and links."""
    tally, counts = Tally(), []
    parts: dict[str, Callable[[Path], None]] = {
        "words": lambda own: shell(own, tally, full=full),
        "values": lambda own: refused_values(Sandbox(own), tally, full=full),
        "names": lambda own: names(Sandbox(own), tally, full=full),
        "links": lambda own: links(Sandbox(own), tally),
        "texts in pages": lambda _: pages(tally),
        **({"titles": lambda own: taken_values(Sandbox(own), tally)} if full else {}),
    }
    for number, (what, part) in enumerate(parts.items()):
        before = tally.tried
        part(folder / str(number))
        counts.append(f"{tally.tried - before} {what}")
    tally.note = ", ".join(counts)
    return tally


DRILLS = (Drill(15, "no escape to a shell, a path, a page or a table", escapes),)
