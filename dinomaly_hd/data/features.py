"""Encoded images: computed once where memory allows, else on the fly, for the same results."""

# B batch, H W pixels

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import psutil
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dinomaly_hd.data.store import ImageStore

MEMORY_SHARE = 0.4
Encode = Callable[[Tensor], Tensor]


class MapDataset(Dataset[Tensor]):
    """The maps at some manifest positions as float32 tensors (H, W); never resized here."""

    def __init__(self, store: ImageStore, positions: npt.NDArray[np.int64]) -> None:
        self.store, self.positions = store, positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, item: int) -> Tensor:
        return torch.from_numpy(self.store[int(self.positions[item])])


class EncodedDataset(Dataset[Tensor]):
    """Encoded maps held in memory, one per position."""

    def __init__(self, encoded: Tensor) -> None:
        self.encoded = encoded

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, item: int) -> Tensor:
        return self.encoded[item]

    def __getitems__(self, items: Sequence[int]) -> Tensor:
        return self.encoded[torch.as_tensor(items)]


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


def fits_in_memory(example: Tensor, *, count: int) -> bool:
    """Return whether ``count`` encoded images like ``example`` (1, ...) take a fair share of free memory."""
    return (
        example.nelement() * example.element_size() * count < MEMORY_SHARE * psutil.virtual_memory().available
    )


def encode_all(batches: Iterator[Tensor], *, count: int, encode: Encode) -> EncodedDataset:
    """Encode every batch and keep the results in memory."""
    kept: Tensor | None = None
    filled = 0
    for images_BHW in batches:
        encoded = encode(images_BHW)
        if kept is None:
            kept = encoded.new_empty((count, *encoded.shape[1:]))
        kept[filled : filled + len(encoded)] = encoded
        filled += len(encoded)
    if kept is None or filled != count:
        raise ValueError(f"expected {count} images to encode, got {filled}")
    return EncodedDataset(kept)
