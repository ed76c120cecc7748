"""From a manifest to batches: proved images, in an order of their own, encoded once where there is room.

Order is a function of (seed, step), so that a resumed run continues it without remembering anything.
"""

# B batch, H W pixels

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dinomaly_hd.batch import Batch
from dinomaly_hd.data.feature_files import FeatureFiles, FeaturePlace
from dinomaly_hd.data.hdmap import Indices, Manifest
from dinomaly_hd.data.images import decode_image, printable, read_file
from dinomaly_hd.errors import ImageError
from dinomaly_hd.randomness import derive

MEMORY_SHARE = 0.4
CPU = torch.device("cpu")
ENCODED, STATISTICS = "encoded", "statistics"


class ImageStore(Dataset[npt.NDArray[np.float32]]):
    """``store[i]`` is image i of the manifest, float32 (H, W), a copy of its own.

    Decoded images are kept until ``keep_bytes`` are used (0 keeps none); the rest are read each time.
    """

    def __init__(self, manifest: Manifest, *, keep_bytes: int) -> None:
        self.manifest = manifest
        height, width = manifest.shape
        self._room = keep_bytes // (4 * height * width)
        self._kept: dict[int, npt.NDArray[np.float32]] = {}

    def __len__(self) -> int:
        return len(self.manifest.records)

    def __getitem__(self, position: int) -> npt.NDArray[np.float32]:
        if position in self._kept:
            return self._kept[position].copy()
        record = self.manifest.records[position]
        data = read_file(self.manifest.path(position), name=record.path)
        if hashlib.sha256(data).hexdigest() != record.digest:
            name = printable(record.path)
            raise ImageError(f"{name}: changed since this run was set up; start the run again")
        image = decode_image(data, name=record.path, grey=self.manifest.grey).image
        if len(self._kept) < self._room:
            self._kept[position] = image
        return image.copy()


class FeatureCache:
    """Encoder outputs by image digest: in memory as long as there is room, and in files for other runs.

    One encoder's outputs at a time: ``use`` with another key drops what is in memory. Statistics that an
    encoder took from training images are kept beside them, by what they were taken from.
    """

    def __init__(self) -> None:
        self._key: tuple[str, torch.device] | None = None
        self._kept: dict[str, Tensor] = {}
        self._device, self._rooms = CPU, dict[torch.device, float]()
        self._files: FeatureFiles | None = None
        self._statistics: dict[str, dict[str, Tensor]] = {}

    def use(self, key: str, *, place: FeaturePlace | None = None, device: torch.device = CPU) -> None:
        """Begin to keep the outputs of the encoder that ``key`` names; whatever changes one changes the key.

        ``place`` is where files are kept (None keeps none), ``device`` where outputs are wanted; a GPU's
        memory is filled before the host's.
        """
        if (key, device) != self._key:
            self._kept.clear()
            self._key, self._device, self._rooms = (key, device), device, _rooms(device)
        self._files = _files(place, key)

    def files_only(self) -> "FeatureCache":
        """Return a cache with the same files that keeps nothing in memory, for what is read once."""
        other = FeatureCache()
        other._key, other._files, other._device = self._key, self._files, self._device
        return other

    def statistics(
        self,
        source: str,
        take: Callable[[], dict[str, Tensor]],
        *,
        like: Mapping[str, Tensor],
        place: FeaturePlace | None,
    ) -> dict[str, Tensor]:
        """Return what an encoder took from training images: kept, else from ``take``, which is kept then.

        ``source`` says what they are taken from, and by what; tensors of other names, types or shapes than
        ``like``'s do not count as kept.
        """
        if source not in self._statistics:
            files = _files(place, source) if like else None
            found = files.get(STATISTICS) if files else None
            if found is None or not _alike(found, like):
                found = take()
                if files:
                    files.put(STATISTICS, found)
            self._statistics[source] = found
        return self._statistics[source]

    def in_memory(self, names: Sequence[str]) -> bool:
        """Return whether the outputs of all these images are kept in memory."""
        return all(name in self._kept for name in names)

    def has_room(self, example: Tensor, names: Sequence[str], *, where: str = "auto") -> bool:
        """Return whether outputs like ``example`` (1, ...) of all these images can be kept.

        ``where`` is "memory", "files", or either ("auto"). Those that are kept already need no room.
        """
        size = example.nbytes * sum(name not in self._kept for name in names)
        if where != "files" and any(size < room for room in self._rooms.values()):
            return True
        if where == "memory" or self._files is None:
            return False
        absent = sum(not self._files.holds(name) for name in names)
        return absent == 0 or self._files.has_room(example, count=absent)

    def add(self, names: Sequence[str], encoded: Tensor) -> None:
        """Keep outputs (B, ...): in files, and in memory where there is room for all of them."""
        if self._files is not None:
            for name, one in zip(names, encoded, strict=True):
                self._files.put(name, {ENCODED: one})
        self._remember(names, encoded)

    def get(self, names: Sequence[str]) -> Tensor | None:
        """Return outputs (B, ...), None where one is missing."""
        found: list[Tensor] = []
        for name in names:
            one = self._kept.get(name)
            if one is None and self._files is not None:
                one = (self._files.get(name) or {}).get(ENCODED)
            if one is None:
                return None
            found.append(one.to(self._device, non_blocking=True))
        encoded = torch.stack(found)
        self._remember(names, encoded)
        return encoded

    def encode(
        self, names: Sequence[str], make: Callable[[], Tensor], *, tick: Callable[[], None] = lambda: None
    ) -> Tensor:
        """Return the outputs (B, ...) of these images: kept ones, else those of ``make``, which are kept.

        Of several processes with the same files one makes them, and the others wait; ``tick`` is called then.
        """
        encoded = self.get(names)
        if encoded is not None:
            return encoded
        with self._files.writing(names, tick=tick) if self._files else nullcontext():
            encoded = self.get(names) if self._files else None
            if encoded is None:
                encoded = make()
                self.add(names, encoded)
        return encoded

    def _remember(self, names: Sequence[str], encoded: Tensor) -> None:
        new = {name: one for name, one in zip(names, encoded, strict=True) if name not in self._kept}
        size = encoded[0].nbytes * len(new)
        for device, room in self._rooms.items():
            if new and size < room:
                try:
                    self._kept.update((name, one.to(device, copy=True)) for name, one in new.items())
                except torch.cuda.OutOfMemoryError:  # others use this GPU, too
                    self._rooms[device] = 0.0
                    continue
                self._rooms[device] -= size
                return


def _files(place: FeaturePlace | None, key: str) -> FeatureFiles | None:
    return None if place is None else FeatureFiles(place, hashlib.sha256(key.encode()).hexdigest())


def _rooms(device: torch.device) -> dict[torch.device, float]:
    """Return how many bytes may be kept where, the device's own memory first."""
    host = {CPU: MEMORY_SHARE * psutil.virtual_memory().available}
    if device.type != "cuda":
        return host
    return {device: MEMORY_SHARE * torch.cuda.mem_get_info(device)[0], **host}


def _alike(found: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> bool:
    """Tell whether tensors have the names, types and shapes of others, of which an empty one has any."""
    return found.keys() == like.keys() and all(
        own.dtype == found[name].dtype and (own.shape == found[name].shape or not own.numel())
        for name, own in like.items()
    )


class TrainingSet(Dataset[Batch]):
    """Training samples by number: the map, its domain and, where ``cache`` holds it, its encoder output."""

    def __init__(self, store: ImageStore, positions: Indices, *, cache: FeatureCache | None) -> None:
        self.store, self.positions, self.cache = store, positions, cache
        manifest = store.manifest
        self._domains = [manifest.domains.index(manifest.records[int(i)].domain) for i in positions]

    def __len__(self) -> int:
        return len(self.positions)

    def __getitems__(self, items: Sequence[int]) -> Batch:
        positions = self.positions[list(items)]
        images_BHW = torch.stack([torch.from_numpy(self.store[int(i)]) for i in positions])
        # One whose file was damaged or made room for others since is encoded in the step.
        encoded = None if self.cache is None else self.cache.get(digests(self.store.manifest, positions))
        return Batch(images_BHW, torch.tensor([self._domains[item] for item in items]), encoded)


def digests(manifest: Manifest, positions: Indices) -> list[str]:
    """Return the digests of images, by which their encoder outputs are kept."""
    return [manifest.records[int(i)].digest for i in positions]


def image_batches(
    store: ImageStore,
    positions: Indices,
    *,
    batch_size: int,
    num_workers: int,
    tick: Callable[[], None] = lambda: None,
) -> Iterator[Tensor]:
    """Yield the maps (B, H, W) at the positions, in order; ``tick`` is called before each batch."""
    loader = DataLoader(store, sampler=positions.tolist(), batch_size=batch_size, num_workers=num_workers)
    for images_BHW in loader:
        tick()
        yield images_BHW


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
