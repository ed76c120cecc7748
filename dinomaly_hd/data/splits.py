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
    """
    if not 0 <= ratio < 1:
        raise ConfigError(f"val_split_ratio={ratio}: expected a share from 0 up to but not including 1")
    asked = manifest.domains if train_domains is None else tuple(train_domains)
    if not asked or not set(asked) <= set(manifest.domains):
        known = ", ".join(manifest.domains)
        raise ConfigError(f"train_domains={','.join(asked)}: expected one or more of {known}")
    train, held_out, normals = [], [], []
    for domain in manifest.domains:
        candidates = manifest.indices(domain=domain, split="train")
        count = len(candidates)
        if ratio > 0 and count < 2:
            raise LayoutError(
                f"{domain}/train/good: 1 image, val_split_ratio={ratio:g} needs 2; add images or pass 0"
            )
        size = min(max(math.floor(ratio * count + 0.5), 1), count - 1) if ratio > 0 else 0
        key = hashlib.sha256(f"hold_out/{seed}/".encode() + os.fsencode(domain)).digest()[:16]
        # Raw words are fixed for ever; NumPy promises no such thing for permutation().
        words = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(count)
        drawn = np.isin(np.arange(count), np.argsort(words, kind="stable")[:size])
        held_out.append(candidates[drawn])
        normals.append(candidates[~drawn])
        if domain in asked:
            train.append(candidates[~drawn])
    return Split(*(np.sort(np.concatenate(positions)) for positions in (train, held_out, normals)))
