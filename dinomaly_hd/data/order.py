"""Sample order as a function of (seed, step): a resumed run continues it without remembering anything."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import DataLoader, Dataset, Sampler

from dinomaly_hd.batch import Batch
from dinomaly_hd.randomness import derive


def batch_at(step: int, *, count: int, batch_size: int, seed: int) -> npt.NDArray[np.int64]:
    """Return the positions (0 .. count-1) of the samples of optimizer step ``step``.

    The samples run through one permutation of all images after another without a break: batches are
    always full, and each image is drawn once before any is drawn again.
    """
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    chosen = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(places // count):
        here = places // count == epoch
        generator = np.random.Generator(np.random.Philox(derive(seed, "order", int(epoch))))
        chosen[here] = generator.permutation(count)[places[here] % count]
    return chosen


class StepBatches(Sampler[list[int]]):
    """Batch sampler over optimizer steps ``start`` .. ``stop`` - 1."""

    def __init__(self, *, count: int, batch_size: int, seed: int, start: int, stop: int) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.start, self.stop = start, stop

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.stop):
            batch = batch_at(step, count=self.count, batch_size=self.batch_size, seed=self.seed)
            yield batch.tolist()


def step_loader(dataset: Dataset[Batch], steps: StepBatches, *, num_workers: int) -> DataLoader[Batch]:
    """Return what loads the steps' batches, each gathered whole by the data set, in any number of workers."""
    return DataLoader(dataset, batch_sampler=steps, num_workers=num_workers, collate_fn=_as_it_is)


def _as_it_is(batch: Any) -> Any:
    return batch
