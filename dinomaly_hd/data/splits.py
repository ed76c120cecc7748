"""The hold-out of normal training images: a function of seed and domain (spec protocols, Splits)."""

import hashlib
import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dinomaly_hd.data.hdmap import Manifest
from dinomaly_hd.errors import ConfigError, LayoutError

Indices = npt.NDArray[np.int64]


class Split(NamedTuple):
    """Positions in ``manifest.records``, sorted: images to train on and normals held out.

    ``normals`` are the training images of every domain, also of those that are only tested.
    """

    train: Indices
    held_out: Indices
    normals: Indices


def hold_out(
    manifest: Manifest, *, ratio: float, seed: int, train_domains: Sequence[str] | None = None
) -> Split:
    """Draw ``ratio`` of each domain's train/good for validation; 0 holds out nothing.

    A domain's draw depends on its folder name, its number of images and the seed, not on which other domains
    are loaded. With a ratio above 0 both sides keep at least one image per domain. ``train_domains`` (folder
    names, None for all) restricts what is trained on.

    Raises:
        ConfigError: The ratio is not in [0, 1), or a domain to train on is not among the manifest's.
        LayoutError: A domain has a single training image and the ratio is above 0.
    """
    if not 0 <= ratio < 1:
        raise ConfigError(f"val_split_ratio={ratio}: expected a share from 0 up to but not including 1")
    unknown = sorted(set(train_domains or ()) - set(manifest.domains))
    if unknown or (train_domains is not None and not train_domains):
        raise ConfigError(
            f"train_domains={','.join(train_domains or ())}: "
            f"expected one or more of {', '.join(manifest.domains)}"
        )
    train, normals, held_out = [], [], []
    for domain in manifest.domains:
        candidates = manifest.indices(domain=domain, split="train")
        if ratio > 0 and len(candidates) < 2:
            raise LayoutError(
                f"{domain}/train/good: 1 image, val_split_ratio={ratio:g} needs 2; add images or pass 0"
            )
        drawn = _drawn(len(candidates), ratio=ratio, key=f"hold_out/{seed}/".encode() + os.fsencode(domain))
        held_out.append(candidates[drawn])
        normals.append(candidates[~drawn])
        if train_domains is None or domain in train_domains:
            train.append(candidates[~drawn])
    return Split(*(np.sort(np.concatenate(positions)) for positions in (train, held_out, normals)))


def _drawn(count: int, *, ratio: float, key: bytes) -> npt.NDArray[np.bool_]:
    """Return a mask (count,) of the images drawn."""
    size = min(max(math.floor(ratio * count + 0.5), 1), count - 1) if ratio > 0 else 0
    digest = hashlib.sha256(key).digest()
    # Raw words are fixed for ever; NumPy promises no such thing for permutation().
    words = np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(count)
    mask = np.zeros(count, dtype=np.bool_)
    mask[np.argsort(words, kind="stable")[:size]] = True
    return mask
