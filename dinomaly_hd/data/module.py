"""The Lightning data module: batches by optimizer step, encoded or as images."""

from typing import Any

import lightning
from torch.utils.data import DataLoader, Dataset

from dinomaly_hd.batch import Batch
from dinomaly_hd.data.order import StepBatches


def as_it_is(batch: Any) -> Any:
    """Return what the data set gathered: it makes whole batches by itself."""
    return batch


class StepDataModule(lightning.LightningDataModule):
    """Training batches of the steps ``start`` .. ``stop`` - 1.

    The number of loader workers changes only who reads: order is a function of (seed, step).
    """

    def __init__(
        self,
        dataset: Dataset[Batch],
        *,
        count: int,
        batch_size: int,
        seed: int,
        start: int,
        stop: int,
        num_workers: int,
    ) -> None:
        super().__init__()
        self.dataset, self.num_workers = dataset, num_workers
        self.batches = StepBatches(count=count, batch_size=batch_size, seed=seed, start=start, stop=stop)

    def train_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(
            self.dataset, batch_sampler=self.batches, num_workers=self.num_workers, collate_fn=as_it_is
        )
