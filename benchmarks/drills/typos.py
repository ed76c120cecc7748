"""Drill 16: mistyped flags and keys of conditions files, through every entry point as it is started."""

import contextlib
import importlib
import io
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.drills import Drill, Tally
from dinomaly_hd.config.conditions_file import keys_of
from dinomaly_hd.config.presets import FAMILIES, every_parameter
from dinomaly_hd.errors import Interrupted, SignalGuard
from entry_points.__main__ import NAMES
from entry_points.common import launch

SEED = 16
TRIED_FAST = 25
CONFIG_CODE = 64
LETTERS = "abcdefghijklmnopqrstuvwxyz_"
READER = "single_domain"
SLIPS: dict[str, Callable[[str, int], str]] = {
    "two neighbours exchanged": lambda name, at: name[: at - 1] + name[at] + name[at - 1] + name[at + 1 :],
    "a letter left out": lambda name, at: name[:at] + name[at + 1 :],
    "a letter typed twice": lambda name, at: name[:at] + name[at] + name[at:],
    "the next letter": lambda name, at: name[:at] + _next(name[at]) + name[at + 1 :],
}


def _next(letter: str) -> str:
    return LETTERS[(LETTERS.find(letter) + 1) % len(LETTERS)]


class Typo(NamedTuple):
    """A name as typed for an entry point or a model family, what was meant, and what is known there."""

    where: str
    typed: str
    meant: str
    known: Sequence[str]


class Unstarted(SignalGuard):
    """Stops a run that a typo has not stopped, before it does any work."""

    def check(self) -> None:
        raise Interrupted(2)


def typos(
    where: str, names: Iterable[str], known: Sequence[str], *, taken: Iterable[str], draw: random.Random
) -> Iterator[Typo]:
    """Yield one typo of each kind for each name, unless it happens to be a name that is taken."""
    taken = set(taken)
    for name in names:
        for slip in SLIPS.values():
            typed = slip(name, draw.randrange(1, len(name)))
            if typed not in taken:
                yield Typo(where, typed, name, known)


def _one_slip(one: str, other: str) -> bool:
    """Return whether one letter is left out, added or another, or two neighbours are exchanged."""
    shorter, longer = sorted((one, other), key=len)
    if len(shorter) < len(longer):
        return any(shorter == longer[:at] + longer[at + 1 :] for at in range(len(longer)))
    off = [at for at, (letter, its) in enumerate(zip(one, other, strict=True)) if letter != its]
    return len(off) == 1 or (len(off) == 2 and off[1] - off[0] == 1 and sorted(one) == sorted(other))


def refusal(module: str, argv: Sequence[str], typo: Typo) -> str | None:
    """Start an entry point and return what was wrong about how it refused the typo.

    The name that it offers must be what was meant, or one that is as near to what was typed.
    """
    main = importlib.import_module(f"entry_points.{module}").main
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        code = launch(lambda words, _: main(words, Unstarted()), argv)
    said = errors.getvalue()
    if code != CONFIG_CODE:
        return f"exit code {code}: {said.strip()[-200:]}"
    if said.count("\n") != 1 or typo.typed not in said:
        return f"not one line with what was typed: {said!r}"
    offered = [name for name in typo.known if f"Did you mean {name!r}?" in said]
    near = any(_one_slip(typo.typed, name) for name in offered)
    return None if near else f"{typo.meant} was meant: {said.strip()}"


def _of_flag(typo: Typo, *, full: bool) -> str | None:
    names = dict.fromkeys((typo.typed, typo.typed.replace("_", "-")))
    spellings = [words for name in names for words in ([f"--{name}=1"], [f"--{name}", "1"])]
    faults = (refusal(typo.where, words, typo) for words in spellings[: None if full else 1])
    return next(filter(None, faults), None)


def _of_key(folder: Path, typo: Typo) -> str | None:
    config = {"model_type": typo.where, "source_domain": "domain_A", typo.typed: 1}
    path = folder / "conditions.json"
    path.write_text(json.dumps({"experiment_conditions": [{"name": "one", "config": config}]}))
    return refusal(READER, [f"--conditions_file={path}"], typo)


def mistyped(folder: Path, full: bool) -> Tally:
    """Mistype flags of all entry points and keys: letters swapped, dropped, doubled, wrong."""
    tally, draw = Tally(), random.Random(SEED)
    flags, keys = list[Typo](), list[Typo]()
    for module in NAMES:
        known = list(importlib.import_module(f"entry_points.{module}").COMMAND.parameters())
        flags += typos(module, known, known, taken=(*known, *every_parameter()), draw=draw)
    of_family = {family: list(keys_of(family).model_fields) for family in FAMILIES}
    every = sorted({name for names in of_family.values() for name in names})
    for family, names in of_family.items():
        keys += typos(family, names, every, taken=every, draw=draw)
    if not full:
        flags, keys = draw.sample(flags, TRIED_FAST), draw.sample(keys, TRIED_FAST)
    for typo in flags:
        tally.add(f"{typo.where} --{typo.typed}", _of_flag(typo, full=full))
    for typo in keys:
        tally.add(f"{typo.where}, key {typo.typed}", _of_key(folder, typo))
    tally.note = f"{len(flags)} flags, {len(keys)} keys"
    return tally


DRILLS = (Drill(16, "a typo is refused with the nearest name", mistyped),)
