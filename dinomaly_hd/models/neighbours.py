"""Exact nearest neighbours at the speed of matrix products, without their rounding."""

# Q query tokens, M bank tokens, D width, G groups of g bank tokens, P pairs of query and group, C candidates

from typing import NamedTuple

import torch
from torch import Tensor

CANDIDATES = 8
"""Bank tokens, at most, that are measured from differences for a query; above, the whole bank is."""
GROUP = 64
"""Bank tokens of which the nearest by products is looked for first."""
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
    """Return the nearest of the bank's tokens for each query, the first of equally near ones.

    |b|^2 - 2ab, with the bank's mean taken off both, finds what may be the nearest: all that are as near as
    the nearest within the product's error bound. Distances to these, or to the whole bank where they are
    many, are measured from differences, so that they are those of ``direct_distance`` in any case.

    Args:
        tokens_QD: Queries, float32.
        bank_MD: Bank, float32, M >= 1.
    """
    mean_D = bank_MD.mean(dim=0)
    centred_MD = torch.nn.functional.pad(bank_MD - mean_D, (0, 0, 0, -len(bank_MD) % GROUP))
    square_M = centred_MD.square().sum(dim=1)
    largest = square_M.max().sqrt()
    square_M[len(bank_MD) :] = torch.inf
    rows = max(1, CHUNK // len(centred_MD))
    room_QM = tokens_QD.new_empty(min(rows, len(tokens_QD)), len(centred_MD))
    parts = []
    for chunk_QD in torch.split(tokens_QD, rows):
        query_QD = chunk_QD - mean_D
        product_QM = room_QM[: len(chunk_QD)]
        torch.addmm(square_M, query_QD, centred_MD.T, alpha=-2, out=product_QM)
        # A sum of D products errs by at most D units of its absolute terms, and two products are compared.
        error_Q = 2 * (bank_MD.shape[1] + SLACK) * UNIT * (query_QD.norm(dim=1) + largest).square()
        parts.append(_nearest(chunk_QD, bank_MD, product_QM=product_QM, error_Q=error_Q))
    return Nearest(
        torch.cat([part.distance_Q for part in parts]), torch.cat([part.index_Q for part in parts])
    )


def _nearest(tokens_QD: Tensor, bank_MD: Tensor, *, product_QM: Tensor, error_Q: Tensor) -> Nearest:
    query_C, index_C = _candidates(product_QM, error_Q)
    count_Q = torch.bincount(query_C, minlength=len(tokens_QD))
    many_Q = (count_Q > CANDIDATES) | (count_Q == 0)  # 0 where a product is not finite
    few_C = ~many_Q[query_C]
    query_C, index_C = query_C[few_C], index_C[few_C]
    distance_C = _to_one(tokens_QD[query_C], bank_MD[index_C])
    distance_Q = distance_C.new_full((len(tokens_QD),), torch.inf).scatter_reduce(
        0, query_C, distance_C, "amin"
    )
    best_C = distance_C == distance_Q[query_C]
    index_Q = index_C.new_full((len(tokens_QD),), len(bank_MD)).scatter_reduce(
        0, query_C[best_C], index_C[best_C], "amin"
    )
    many = many_Q.nonzero().squeeze(1)
    if len(many):
        distance_Q[many], index_Q[many] = direct_distance(tokens_QD[many], bank_MD).min(dim=1)
    return Nearest(distance_Q, index_Q)


def _candidates(product_QM: Tensor, error_Q: Tensor) -> tuple[Tensor, Tensor]:
    """Return query and bank token (C,) of all products within the error of the query's least one."""
    product_QGg = product_QM.view(len(product_QM), -1, GROUP)
    least_QG = product_QGg.amin(dim=2)
    limit_Q = least_QG.amin(dim=1) + error_Q
    query_P, group_P = (least_QG <= limit_Q.unsqueeze(1)).nonzero(as_tuple=True)
    near_Pg = product_QGg[query_P, group_P] <= limit_Q[query_P].unsqueeze(1)
    pair_C, place_C = near_Pg.nonzero(as_tuple=True)
    return query_P[pair_C], group_P[pair_C] * GROUP + place_C


def _to_one(a_QD: Tensor, b_QD: Tensor) -> Tensor:
    return direct_distance(a_QD.unsqueeze(1), b_QD.unsqueeze(1)).flatten()
