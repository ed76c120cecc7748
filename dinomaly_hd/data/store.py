"""Images of a manifest by position, each proved to be the one that was checked at set-up."""

import hashlib

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from dinomaly_hd.data.hdmap import Manifest
from dinomaly_hd.data.images import decode_image, printable, read_file
from dinomaly_hd.errors import ImageError


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
        image = decode_image(data, name=record.path).image
        if len(self._kept) < self._room:
            self._kept[position] = image
        return image.copy()
