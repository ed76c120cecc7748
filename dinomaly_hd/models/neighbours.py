"""Exact nearest neighbours at the speed of matrix products, without their rounding."""

# Q query tokens, M bank tokens, D width, K candidates

from typing import NamedTuple

import torch
from torch import Tensor

CANDIDATES = 8
"""Bank tokens whose distance to a query is computed again from differences."""
CHUNK = 2**23
"""Products held at once: 32 MB."""
UNIT = 2.0**-24


class Nearest(NamedTuple):
    """Distance to the nearest bank token, and that token's index, of each query (Q,)."""

    distance_Q: Tensor
    index_Q: Tensor


def direct_distance(a_QD: Tensor, b_MD: Tensor) -> Tensor:
    """Return distances (Q, M) from differences: near tokens lose no digits.

    A pair's distance does not depend, to the last bit, on which other pairs are computed with it.
    """
    return torch.cdist(a_QD, b_MD, compute_mode="donot_use_mm_for_euclid_dist")


def nearest(tokens_QD: Tensor, bank_MD: Tensor) -> Nearest:
    """Return the nearest of the bank's tokens for each query; both float32, M >= 1.

    |b|^2 - 2ab finds candidates, differences measure them. Where rounding could have hidden a nearer token,
    by the product's error bound, the query is compared with the whole bank from differences, so the distances
    are those of ``direct_distance`` in any case.
    """
    square_M = bank_MD.square().sum(dim=1)
    rows = max(1, CHUNK // len(bank_MD))
    parts = [_nearest(chunk_QD, bank_MD, square_M=square_M) for chunk_QD in torch.split(tokens_QD, rows)]
    return Nearest(
        torch.cat([part.distance_Q for part in parts]), torch.cat([part.index_Q for part in parts])
    )


def _nearest(tokens_QD: Tensor, bank_MD: Tensor, *, square_M: Tensor) -> Nearest:
    product_QM = torch.addmm(square_M, tokens_QD, bank_MD.T, alpha=-2)
    product_QK, index_QK = product_QM.topk(min(CANDIDATES, len(bank_MD)), largest=False)
    candidates_QKD = bank_MD[index_QK]
    distance_QK = direct_distance(tokens_QD.unsqueeze(1), candidates_QKD).squeeze(1)
    distance_Q, best_Q = distance_QK.min(dim=1)
    index_Q = index_QK.gather(1, best_Q.unsqueeze(1)).squeeze(1)
    if len(bank_MD) > CANDIDATES:
        square_Q = tokens_QD.square().sum(dim=1)
        # Sums of D products err by at most D units of their absolute terms; three such sums meet here.
        error_Q = 8 * bank_MD.shape[1] * UNIT * (square_Q.sqrt() + square_M.max().sqrt()).square()
        unsure = (product_QK[:, -1] + square_Q - error_Q < distance_Q.square()).nonzero().squeeze(1)
        if len(unsure):
            distance_Q[unsure], index_Q[unsure] = direct_distance(tokens_QD[unsure], bank_MD).min(dim=1)
    return Nearest(distance_Q, index_Q)
