"""Exact nearest neighbours at the speed of matrix products, without their rounding."""

# Q query tokens, M bank tokens, D width, K candidates

from typing import NamedTuple

import torch
from torch import Tensor

CANDIDATES = 8
"""Bank tokens whose distance to a query is computed again from differences."""
CHUNK = 2**23
"""Products held at once: 32 MB."""
UNIT, SLACK = 2.0**-24, 8
"""Relative error of one float32 operation, and a few more of them beside each sum's."""


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

    |b|^2 - 2ab, with the bank's mean taken off both, finds the nearest; its distance is measured from
    differences. Where another token is as near within the product's error bound, the candidates, or the
    whole bank, are compared from differences, so distances are those of ``direct_distance`` in any case.
    """
    mean_D = bank_MD.mean(dim=0)
    centred_MD = bank_MD - mean_D
    square_M = centred_MD.square().sum(dim=1)
    rows = max(1, CHUNK // len(bank_MD))
    parts = [
        _nearest(chunk_QD, bank_MD, mean_D=mean_D, centred_MD=centred_MD, square_M=square_M)
        for chunk_QD in torch.split(tokens_QD, rows)
    ]
    return Nearest(
        torch.cat([part.distance_Q for part in parts]), torch.cat([part.index_Q for part in parts])
    )


def _nearest(
    tokens_QD: Tensor, bank_MD: Tensor, *, mean_D: Tensor, centred_MD: Tensor, square_M: Tensor
) -> Nearest:
    query_QD = tokens_QD - mean_D
    product_QM = torch.addmm(square_M, query_QD, centred_MD.T, alpha=-2)
    least_Q, index_Q = product_QM.min(dim=1)
    distance_Q = _to_one(tokens_QD, bank_MD[index_Q])
    # A sum of D products errs by at most D units of its absolute terms, and two products are compared.
    largest_Q = query_QD.norm(dim=1) + square_M.max().sqrt()
    limit_Q = least_Q + 2 * (bank_MD.shape[1] + SLACK) * UNIT * largest_Q.square()
    near_Q = (product_QM <= limit_Q.unsqueeze(1)).sum(dim=1)
    few = ((near_Q > 1) & (near_Q <= CANDIDATES)).nonzero().squeeze(1)
    if len(few):
        index_FK = product_QM[few].topk(min(CANDIDATES, len(bank_MD)), largest=False).indices
        distance_FK = direct_distance(tokens_QD[few].unsqueeze(1), bank_MD[index_FK]).squeeze(1)
        distance_Q[few], best_F = distance_FK.min(dim=1)
        index_Q[few] = index_FK.gather(1, best_F.unsqueeze(1)).squeeze(1)
    many = (near_Q > CANDIDATES).nonzero().squeeze(1)
    if len(many):
        distance_Q[many], index_Q[many] = direct_distance(tokens_QD[many], bank_MD).min(dim=1)
    return Nearest(distance_Q, index_Q)


def _to_one(a_QD: Tensor, b_QD: Tensor) -> Tensor:
    return direct_distance(a_QD.unsqueeze(1), b_QD.unsqueeze(1)).flatten()
