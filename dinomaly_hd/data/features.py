"""Encoded images: computed once where memory allows, else on the fly, for the same results."""

# B batch, H W pixels

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import psutil
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dinomaly_hd.batch import Batch
from dinomaly_hd.data.hdmap import Manifest
from dinomaly_hd.data.store import ImageStore

MEMORY_SHARE = 0.4


class MapDataset(Dataset[Tensor]):
    """The maps at some manifest positions as float32 tensors (H, W); never resized here."""

    def __init__(self, store: ImageStore, positions: npt.NDArray[np.int64]) -> None:
        self.store, self.positions = store, positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, item: int) -> Tensor:
        return torch.from_numpy(self.store[int(self.positions[item])])


class FeatureMemory:
    """Encoder outputs by image digest, in memory; the runs of one comparison share it.

    One encoder's outputs at a time: ``use`` with another key drops what is kept. Statistics that an encoder
    took from training images are kept beside them, by what they were taken from.
    """

    def __init__(self) -> None:
        self._key: str | None = None
        self._kept: dict[str, Tensor] = {}
        self._room = 0.0
        self.statistics: dict[str, dict[str, Tensor]] = {}

    def use(self, key: str) -> None:
        """Begin to keep the outputs of the encoder that ``key`` names, up to a share of the free memory."""
        if key != self._key:
            self._kept.clear()
            self._key, self._room = key, MEMORY_SHARE * psutil.virtual_memory().available

    def has_room(self, example: Tensor, *, count: int) -> bool:
        """Return whether ``count`` outputs like ``example`` (1, ...) may be added."""
        return example.nelement() * example.element_size() * count < self._room

    def add(self, names: Sequence[str], encoded: Tensor) -> None:
        """Keep outputs (B, ...) where there is room for all of them."""
        if self.has_room(encoded, count=1):
            self._room -= encoded.nelement() * encoded.element_size()
            self._kept.update(zip(names, encoded.cpu().unbind(), strict=True))

    def holds(self, names: Sequence[str]) -> bool:
        """Return whether the outputs of all these images are kept."""
        return all(name in self._kept for name in names)

    def get(self, names: Sequence[str]) -> Tensor | None:
        """Return outputs (B, ...), None where one is missing."""
        return torch.stack([self._kept[name] for name in names]) if self.holds(names) else None


class TrainingSet(Dataset[Batch]):
    """Training samples by number: the map, its domain and, where ``memory`` is given, its encoder output."""

    def __init__(
        self, store: ImageStore, positions: npt.NDArray[np.int64], *, memory: FeatureMemory | None
    ) -> None:
        self.store, self.positions, self.memory = store, positions, memory
        manifest = store.manifest
        self._domains = [manifest.domains.index(manifest.records[int(i)].domain) for i in positions]

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, item: int) -> Batch:
        return self.__getitems__([item])

    def __getitems__(self, items: Sequence[int]) -> Batch:
        positions = self.positions[list(items)]
        images_BHW = torch.stack([torch.from_numpy(self.store[int(i)]) for i in positions])
        encoded = None
        if self.memory is not None:
            encoded = self.memory.get(digests(self.store.manifest, positions))
            assert encoded is not None, "the training images were not encoded"
        return Batch(images_BHW, torch.tensor([self._domains[item] for item in items]), encoded)


def digests(manifest: Manifest, positions: npt.NDArray[np.int64]) -> list[str]:
    """Return the digests of images, by which their encoder outputs are kept."""
    return [manifest.records[int(i)].digest for i in positions]


def image_batches(
    store: ImageStore,
    positions: npt.NDArray[np.int64],
    *,
    batch_size: int,
    num_workers: int,
    tick: Callable[[], None] = lambda: None,
) -> Iterator[Tensor]:
    """Yield the maps (B, H, W) at the positions, in order; ``tick`` is called before each batch."""
    loader = DataLoader(
        MapDataset(store, positions), batch_size=batch_size, num_workers=num_workers, shuffle=False
    )
    for images_BHW in loader:
        tick()
        yield images_BHW
