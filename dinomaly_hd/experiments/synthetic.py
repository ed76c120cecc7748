"""Score held-out normals and copies of them with synthetic bands: an objective that sees no test image."""

# N images, H W pixels

import hashlib
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dinomaly_hd.data.features import FeatureCache, digests
from dinomaly_hd.evaluation.synthetic import synthetic_blocks
from dinomaly_hd.experiments.score import Positions, encode, score, stack
from dinomaly_hd.experiments.session import Session, trained_on
from dinomaly_hd.models.detector import Detector
from dinomaly_hd.models.draem.faults import horizontal_bands
from dinomaly_hd.randomness import derive


class SyntheticSet(NamedTuple):
    """Normals (label 0) and copies with a band (1); names by which their encoder outputs are kept."""

    images_NHW: Tensor
    names: list[str]
    label_N: list[int]
    domain_N: list[str]


class SyntheticBands:
    """Examines a detector on one set of bands, always the same for a run's seed and held-out normals.

    Args:
        session: Its run says how many copies of each held-out normal get a band; only normals of the domains
            that are trained on count.
        features: Keeps encoder outputs from one examination to the next.
    """

    def __init__(self, session: Session, *, features: FeatureCache) -> None:
        self.session = session
        self.features = None if session.run.training.cache == "off" else features
        self.images = _draw(session, trained_on(session, session.split.held_out))

    def examine(self, detector: Detector) -> dict[str, Any]:
        """Return the figures (``evaluation.synthetic``); NaN scores count as the least anomalous ones.

        A detector in the midst of its training may be in any state, and must not be ended by this.
        """
        size = self.session.run.evaluation.eval_batch_size
        names = self.images.names
        scores = []
        for start in range(0, len(names), size):
            self.session.context.guard.check()
            part = slice(start, start + size)
            encoded = encode(
                detector,
                self.images.images_NHW[part],
                names=names[part],
                device=self.session.device,
                features=self.features,
                tick=self.session.context.guard.check,
            )
            scores.append(score(detector, encoded, bf16=self.session.run.bf16).score_B)
        score_N = np.nan_to_num(torch.cat(scores).numpy(), nan=-np.finfo(np.float64).max)
        return synthetic_blocks(score_N, self.images.label_N, np.array(self.images.domain_N))


def _draw(session: Session, positions: Positions) -> SyntheticSet:
    records, copies = session.manifest.records, session.run.evaluation.synthetic_copies
    seed = derive(session.run.seed, "synthetic bands")
    images: list[Tensor] = []
    names: list[str] = []
    label_N: list[int] = []
    domain_N: list[str] = []
    for domain in dict.fromkeys(records[int(i)].domain for i in positions):
        own = np.array([i for i in positions if records[int(i)].domain == domain], dtype=np.int64)
        normals_NHW = torch.from_numpy(stack(session.store, own))
        kept = digests(session.manifest, own)
        drawn_from = hashlib.sha256(f"{seed} {kept}".encode()).hexdigest()
        images.append(normals_NHW)
        names += kept
        for copy in range(copies):
            faulty = horizontal_bands(normals_NHW, seed=seed, position=copy)
            visible = faulty.mask_BHW.any(dim=(1, 2))  # a broken band may lose all its columns
            images.append(faulty.images_BHW[visible])
            names += [f"{drawn_from}-{copy}-{i}" for i in visible.nonzero().flatten().tolist()]
        label_N += [0] * len(own) + [1] * (len(names) - len(label_N) - len(own))
        domain_N += [domain] * (len(names) - len(domain_N))
    return SyntheticSet(torch.cat(images), names, label_N, domain_N)
