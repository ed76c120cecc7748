"""How the time of a step and of scoring grows with images, steps, tokens, batch and encoder.

    python -m benchmarks.speed.growth

Ours, from maps, in one process. Time an image (or a step) must not grow with the number of images or steps
over a factor of 8; with the tokens, linearly but for the encoder's attention. Writes
benchmarks/results/speed_growth.json.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch

from benchmarks.common import given, numbers, record, timed
from benchmarks.speed.subjects import Case, Subject, ours, write_weights

PATCH = 14


def by_turns(works: dict[int, Callable[[], Any]], *, rounds: int) -> dict[int, float]:
    """Return the median wall time of each call; all take turns, so that a slow minute is one of all."""
    times: dict[int, list[float]] = {size: [] for size in works}
    for _ in range(rounds):
        for size, work in works.items():
            times[size].append(timed(work)[0])
    return {size: median(taken) for size, taken in times.items()}


def grown(case: Case, *, sides: list[int], factors: list[int], rounds: int) -> dict[str, dict[int, float]]:
    """Return seconds by number of images, steps, tokens and batch."""

    def scored(subject: Subject, own: Case, images: int, batch: int) -> None:
        for _ in range(images // batch):
            subject.score(own.maps(batch))

    def trained(steps: int, batch: int) -> None:
        for step in range(steps):
            subject.train(case.maps(batch), step)

    subject = ours(case, cached=False)
    scored(subject, case, 8, 8)
    trained(1, 4)
    sized = {(side // PATCH) ** 2: case._replace(image=side, crop=side) for side in sides}
    of_size = {count: (ours(own, cached=False), own) for count, own in sized.items()}
    works = {
        "images": {8 * n: partial(scored, subject, case, 8 * n, 8) for n in factors},
        "steps": {2 * n: partial(trained, 2 * n, 4) for n in factors},
        "batch": {n: partial(trained, 1, n) for n in factors},
        "tokens": {count: partial(scored, *one, 8, 4) for count, one in of_size.items()},
    }
    found = {name: by_turns(own, rounds=rounds) for name, own in works.items()}
    found["batch"] = {n: taken / n for n, taken in found["batch"].items()}
    found["tokens"] = {count: taken / 8 for count, taken in found["tokens"].items()}
    return found


def main() -> None:
    # crop: of all but the growth with tokens
    told = given(
        __doc__,
        encoder="dinov2reg_vit_small_14",
        crop=196,
        sides="98,196,392",
        factors="1,2,4,8",
        rounds=3,
    )
    with tempfile.TemporaryDirectory() as folder:
        case = Case(told.encoder, write_weights(told.encoder, folder), told.crop, told.crop)
        sides, factors = numbers(told.sides), numbers(told.factors)
        found = grown(case, sides=sides, factors=factors, rounds=told.rounds)
    record("speed_growth", {**vars(told), "threads": torch.get_num_threads(), **found})


if __name__ == "__main__":
    main()
