"""Random numbers of a batch: a row for each image, which the images after it do not move."""

# B batch, K numbers of an image

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

CHUNK = 16


def uniform_rows(batch: int, numbers: int, *, generator: Generator, device: torch.device) -> Tensor:
    """Return (B, K) in [0, 1), drawn where the generator lives: a CPU generator gives every device the same.

    On the CPU the first n rows are the same whatever the batch size.
    """
    return torch.rand(batch, numbers, generator=generator, device=generator.device).to(device)


def fork(generator: Generator) -> Generator:
    """Return a generator that the given one seeds, so that what it draws moves nothing drawn later."""
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    return Generator(generator.device).manual_seed(int(seed))


def integers(uniform: Tensor, *, low: int, high: Tensor | int) -> Tensor:
    """Return whole numbers low..high, both included, from numbers in [0, 1); shapes broadcast."""
    return low + (uniform * (high - low + 1)).long()


def chunks(batch: int) -> Iterator[slice]:
    """Yield the parts of a batch that are worked on at once: intermediate results stay small."""
    for start in range(0, batch, CHUNK):
        yield slice(start, min(start + CHUNK, batch))
