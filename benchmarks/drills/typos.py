"""Drill 16: mistyped flags and keys of conditions files, through every entry point as it is started."""

import contextlib
import importlib
import io
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.drills.tally import Drill, Tally
from dinomaly_hd.config.conditions_file import keys_of
from dinomaly_hd.config.parameters import every_parameter
from dinomaly_hd.config.presets import FAMILIES
from dinomaly_hd.errors import Interrupted
from dinomaly_hd.training.guards import SignalGuard
from entry_points.__main__ import NAMES
from entry_points.common import Main, launch

SEED = 16
TRIED_FAST = 25
CONFIG_CODE = 64
LETTERS = "abcdefghijklmnopqrstuvwxyz_"
READER = "single_domain"


class Typo(NamedTuple):
    """A name as it was typed, and what was meant."""

    typed: str
    meant: str


class Unstarted(SignalGuard):
    """Stops a run that a typo has not stopped, before it does any work."""

    def check(self) -> None:
        raise Interrupted(2)


def swapped(name: str, place: int) -> str:
    """Exchange two neighbours."""
    return name[: place - 1] + name[place] + name[place - 1] + name[place + 1 :]


def dropped(name: str, place: int) -> str:
    """Leave a letter out."""
    return name[:place] + name[place + 1 :]


def doubled(name: str, place: int) -> str:
    """Type a letter twice."""
    return name[:place] + name[place] + name[place:]


def replaced(name: str, place: int) -> str:
    """Type the next letter of the alphabet."""
    return name[:place] + LETTERS[(LETTERS.find(name[place]) + 1) % len(LETTERS)] + name[place + 1 :]


SLIPS: tuple[Callable[[str, int], str], ...] = (swapped, dropped, doubled, replaced)


def typos(names: Iterable[str], *, known: Iterable[str], draw: random.Random) -> Iterator[Typo]:
    """Yield one typo of each kind for each name, unless it happens to be a known name."""
    taken = set(known)
    for name in names:
        for slip in SLIPS:
            typed = slip(name, draw.randrange(1, len(name)))
            if typed not in taken:
                yield Typo(typed, name)


def distance(one: str, other: str) -> int:
    """Return in how many slips one name becomes the other (optimal string alignment)."""
    rows = [list(range(len(other) + 1))]
    for i, letter in enumerate(one, start=1):
        row = [i]
        for j, counterpart in enumerate(other, start=1):
            best = min(row[-1] + 1, rows[-1][j] + 1, rows[-1][j - 1] + (letter != counterpart))
            if i > 1 and j > 1 and (letter, one[i - 2]) == (other[j - 2], counterpart):
                best = min(best, rows[-2][j - 2] + 1)
            row.append(best)
        rows.append(row)
    return rows[-1][-1]


def refusal(module: str, argv: Sequence[str], typo: Typo, *, known: Iterable[str]) -> str | None:
    """Start an entry point and return what was wrong about how it refused the typo.

    The name that it offers must be what was meant, or one that is no farther from what was typed.
    """
    main: Main = importlib.import_module(f"entry_points.{module}").main
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        code = launch(lambda words, _: main(words, Unstarted()), argv)
    said = errors.getvalue()
    if code != CONFIG_CODE:
        return f"exit code {code}: {said.strip()[-200:]}"
    if said.count("\n") != 1 or typo.typed not in said:
        return f"not one line with what was typed: {said!r}"
    near = distance(typo.typed, typo.meant)
    offered = [name for name in known if f"Did you mean {name!r}?" in said]
    if not any(distance(typo.typed, name) <= near for name in offered):
        return f"{typo.meant} was meant: {said.strip()}"
    return None


def _flags(draw: random.Random) -> Iterator[tuple[str, Typo, Sequence[str]]]:
    """Yield every entry point with typos of its flags, and what it knows."""
    for module in NAMES:
        known = list(importlib.import_module(f"entry_points.{module}").COMMAND.parameters())
        for typo in typos(known, known={*known, *every_parameter()}, draw=draw):
            yield module, typo, known


def _keys(draw: random.Random) -> Iterator[tuple[str, Typo, Sequence[str]]]:
    """Yield every model family with typos of its keys, and every key there is."""
    known = sorted({name for family in FAMILIES for name in keys_of(family).model_fields})
    for family in FAMILIES:
        for typo in typos(keys_of(family).model_fields, known=known, draw=draw):
            yield family, typo, known


def _spellings(typed: str) -> Iterator[list[str]]:
    """Yield the ways to write a flag, whatever its value is."""
    for name in dict.fromkeys((typed, typed.replace("_", "-"))):
        yield from ([f"--{name}=1"], [f"--{name}", "1"])


def _of_flag(module: str, typo: Typo, known: Sequence[str], *, full: bool) -> str | None:
    for argv in list(_spellings(typo.typed))[: None if full else 1]:
        reason = refusal(module, argv, typo, known=known)
        if reason is not None:
            return f"{' '.join(argv)}: {reason}"
    return None


def _of_key(folder: Path, family: str, typo: Typo, known: Sequence[str]) -> str | None:
    config = {"model_type": family, "source_domain": "domain_A", typo.typed: 1}
    path = folder / "conditions.json"
    path.write_text(json.dumps({"experiment_conditions": [{"name": "one", "config": config}]}))
    return refusal(READER, [f"--conditions_file={path}"], typo, known=known)


def mistyped(folder: Path, full: bool) -> Tally:
    """Mistype flags of all entry points and keys: letters swapped, dropped, doubled, wrong."""
    tally, draw = Tally(), random.Random(SEED)
    flags, keys = list(_flags(draw)), list(_keys(draw))
    if not full:
        flags, keys = draw.sample(flags, TRIED_FAST), draw.sample(keys, TRIED_FAST)
    for module, typo, known in flags:
        tally.add(f"{module} --{typo.typed}", _of_flag(module, typo, known, full=full))
    for family, typo, known in keys:
        tally.add(f"{family}, key {typo.typed}", _of_key(folder, family, typo, known))
    tally.note = f"{len(flags)} flags, {len(keys)} keys"
    return tally


DRILLS = (Drill(16, "a typo is refused with the nearest name", mistyped),)
