"""Score held-out normals and copies of them with synthetic bands: an objective that sees no test image."""

# N images, H W pixels

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinomaly_hd.data.features import digests
from dinomaly_hd.evaluation.synthetic import synthetic_blocks
from dinomaly_hd.experiments.score import Positions, Scorer, score, stack
from dinomaly_hd.models.faults import horizontal_bands
from dinomaly_hd.randomness import derive


class SyntheticBands:
    """Examines a detector on one set of bands, always the same for a run's seed and held-out normals.

    The run says how many copies of each normal at ``positions`` get a band.
    """

    def __init__(self, scorer: Scorer, positions: Positions) -> None:
        self.scorer = scorer
        records, copies = scorer.store.manifest.records, scorer.run.evaluation.synthetic_copies
        seed = derive(scorer.run.seed, "synthetic bands")
        images: list[Tensor] = []
        # By these names their encoder outputs are kept from one examination to the next.
        self.names: list[str] = []
        self.label_N: list[int] = []
        self.domain_N: list[str] = []
        for domain in dict.fromkeys(records[int(i)].domain for i in positions):
            own = np.array([i for i in positions if records[int(i)].domain == domain], dtype=np.int64)
            normals_NHW = torch.from_numpy(stack(scorer.store, own))
            kept = digests(scorer.store.manifest, own)
            drawn_from = hashlib.sha256(f"{seed} {kept}".encode()).hexdigest()
            images.append(normals_NHW)
            self.names += kept
            for copy in range(copies):
                faulty = horizontal_bands(normals_NHW, seed=seed, position=copy)
                visible = faulty.mask_BHW.any(dim=(1, 2))  # a broken band may lose all its columns
                images.append(faulty.images_BHW[visible])
                self.names += [f"{drawn_from}-{copy}-{i}" for i in visible.nonzero().flatten().tolist()]
            self.label_N += [0] * len(own) + [1] * (len(self.names) - len(self.label_N) - len(own))
            self.domain_N += [domain] * (len(self.names) - len(self.domain_N))
        self.images_NHW = torch.cat(images)

    def examine(self) -> dict[str, Any]:
        """Return the figures (``evaluation.synthetic``); NaN scores count as the least anomalous ones.

        A detector in the midst of its training may be in any state, and must not be ended by this.
        """
        scorer, size = self.scorer, self.scorer.run.evaluation.eval_batch_size
        scores = []
        for start in range(0, len(self.names), size):
            scorer.tick()
            part = slice(start, start + size)
            encoded = scorer.encode(self.images_NHW[part], self.names[part])
            scores.append(score(scorer.detector, encoded, bf16=scorer.run.bf16).score_B)
        score_N = np.nan_to_num(torch.cat(scores).numpy(), nan=-np.finfo(np.float64).max)
        return synthetic_blocks(score_N, self.label_N, np.array(self.domain_N))
