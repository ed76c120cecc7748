"""Exact nearest neighbours at the speed of matrix products, without their rounding."""

# Q query tokens, M bank tokens, D width, k coordinates, G groups of g bank tokens, P pairs of query and
# group, C candidates

from typing import NamedTuple

import torch
from torch import Tensor

CANDIDATES = 32  # bank tokens, at most, that are measured from differences for a query
GROUP = 64  # bank tokens of which the nearest by products is looked for first
CHUNK = 2**23  # products held at once: 32 MB
UNIT, SLACK = 2.0**-24, 8  # relative error of one float32 operation, and a few more of them beside each sum's
# Of the bank's variance in its few coordinates, tokens that these are taken from, and reduced at once.
KEPT_SHARE, SAMPLE, PIECE = 0.98, 8192, 8192


class Nearest(NamedTuple):
    """Distance to the nearest bank token, and that token's index, of each query (Q,)."""

    distance_Q: Tensor
    index_Q: Tensor


def direct_distance(a_QD: Tensor, b_MD: Tensor) -> Tensor:
    """Return distances (Q, M) from differences: near tokens lose no digits.

    A pair's distance does not depend, to the last bit, on which other pairs are computed with it.
    """
    if torch.compiler.is_exporting():  # other programs have no such operator; products in float64 lose none
        a_QD, b_MD = a_QD.double(), b_MD.double()
        squares_QM = a_QD.square().sum(-1).unsqueeze(-1) + b_MD.square().sum(-1).unsqueeze(-2)
        return (squares_QM - 2 * a_QD @ b_MD.mT).clamp(min=0).sqrt().float()
    return torch.cdist(a_QD, b_MD, compute_mode="donot_use_mm_for_euclid_dist")


def nearest(tokens_QD: Tensor, bank_MD: Tensor) -> Nearest:
    """Return the nearest tokens of a bank that is asked once; see ``NeighbourIndex``."""
    return NeighbourIndex(bank_MD, reduced=False).nearest(tokens_QD)


class NeighbourIndex:
    """A bank (float32, M >= 1), not to be changed any more, of which nearest tokens are asked many times.

    Finding few coordinates costs some hundred queries' time; ``reduced=False`` looks in all at once.
    """

    # A distance in some orthonormal coordinates, with the length of what they leave out as one more, is at
    # most the tokens' own. So |q - b|^2 = |q|^2 + |b|^2 - 2qb, a matrix product in few principal coordinates,
    # names a token that is near, and that token's own distance leaves only those as candidates whose lesser
    # one is within it and the product's error bound. Candidates are measured from differences, so distances
    # are those of ``direct_distance`` in any case. Where candidates are many, all coordinates are taken, and
    # where they are many then, the whole bank is measured.

    def __init__(self, bank_MD: Tensor, *, reduced: bool = True) -> None:
        self.bank_MD, self._mean_D = bank_MD, bank_MD.mean(dim=0)
        basis_Dk = _basis(bank_MD, self._mean_D) if reduced else None
        self._bases: list[Tensor | None] = [None] if basis_Dk is None else [basis_Dk, None]
        self._levels: list[_Level] = []

    def nearest(self, tokens_QD: Tensor) -> Nearest:
        """Return the nearest of the bank's tokens for each query (Q, D), the first of equally near ones."""
        distance_Q = tokens_QD.new_empty(len(tokens_QD))
        index_Q = torch.empty(len(tokens_QD), dtype=torch.int64, device=tokens_QD.device)
        open_Q = torch.arange(len(tokens_QD), device=tokens_QD.device)
        for number in range(len(self._bases)):
            if not len(open_Q):
                break
            place_C, index_C = self._candidates(tokens_QD[open_Q], self._level(number))
            query_C = open_Q[place_C]
            distance_C = _to_one(tokens_QD[query_C], self.bank_MD[index_C])
            distance_Q[query_C] = torch.inf
            distance_Q.scatter_reduce_(0, query_C, distance_C, "amin")
            best_C = distance_C == distance_Q[query_C]
            index_Q[query_C] = len(self.bank_MD)
            index_Q.scatter_reduce_(0, query_C[best_C], index_C[best_C], "amin")
            open_Q = open_Q[torch.bincount(place_C, minlength=len(open_Q)) == 0]
        for part_Q in torch.split(open_Q, max(1, CHUNK // len(self.bank_MD))):
            distance_Q[part_Q], index_Q[part_Q] = direct_distance(tokens_QD[part_Q], self.bank_MD).min(dim=1)
        return Nearest(distance_Q, index_Q)

    def _level(self, number: int) -> "_Level":
        """Return a level; the one of all coordinates, a copy of the bank, is made where it is needed."""
        if number == len(self._levels):
            self._levels.append(_Level(self.bank_MD - self._mean_D, basis_Dk=self._bases[number]))
        return self._levels[number]

    def _candidates(self, tokens_QD: Tensor, level: "_Level") -> tuple[Tensor, Tensor]:
        """Return query and bank token (C,) of all pairs that may be as near as the query's nearest.

        None for queries of which more than ``CANDIDATES`` may be, or a product is not finite.
        """
        rows = max(1, CHUNK // len(level.factors_Mk))
        room_QM = tokens_QD.new_empty(min(rows, len(tokens_QD)), len(level.factors_Mk))
        pairs = [torch.empty(2, 0, dtype=torch.int64, device=tokens_QD.device)]
        for number, chunk_QD in enumerate(torch.split(tokens_QD, rows)):
            query_Qk = level.coordinates(chunk_QD - self._mean_D)
            product_QM = room_QM[: len(chunk_QD)]
            torch.mm(torch.nn.functional.pad(query_Qk, (0, 1), value=1), level.factors_Mk.T, out=product_QM)
            product_QGg = product_QM.view(len(chunk_QD), -1, GROUP)
            least_QG = product_QGg.amin(dim=2)
            group_Q = least_QG.argmin(dim=1)
            place_Q = product_QGg[torch.arange(len(group_Q), device=group_Q.device), group_Q].argmin(dim=1)
            token_Q = (group_Q * GROUP + place_Q).clamp(max=len(self.bank_MD) - 1)  # where all is NaN
            near_Q = _to_one(chunk_QD, self.bank_MD[token_Q])
            limit_Q = level.limit(query_Qk, near_Q, width=tokens_QD.shape[1])
            query_P, group_P = (least_QG <= limit_Q.unsqueeze(1)).nonzero(as_tuple=True)
            near_Pg = product_QGg[query_P, group_P] <= limit_Q[query_P].unsqueeze(1)
            count_Q = torch.zeros_like(group_Q).index_add_(0, query_P, near_Pg.sum(dim=1))
            few_P = count_Q[query_P] <= CANDIDATES
            query_P, group_P = query_P[few_P], group_P[few_P]
            pair_C, place_C = near_Pg[few_P].nonzero(as_tuple=True)
            pairs.append(torch.stack([query_P[pair_C] + number * rows, group_P[pair_C] * GROUP + place_C]))
        query_C, index_C = torch.cat(pairs, dim=1)
        return query_C, index_C


class _Level:
    """A bank in coordinates whose distances are the tokens' own, or less.

    ``factors_Mk``, -2b and |b|^2, times a query's coordinates and 1 are the products |b|^2 - 2qb. The
    coordinates are those of ``basis_Dk``, orthonormal columns in float64, or all as they are.
    """

    def __init__(self, centred_MD: Tensor, *, basis_Dk: Tensor | None) -> None:
        self._basis_Dk = basis_Dk
        own_Mk = self.coordinates(centred_MD)
        count, width = own_Mk.shape
        self.factors_Mk = own_Mk.new_empty(count + -count % GROUP, width + 1)
        torch.mul(own_Mk, -2, out=self.factors_Mk[:count, :-1])
        square_M = torch.linalg.vector_norm(own_Mk, dim=1).square_()
        self._largest = square_M.max().sqrt()
        self.factors_Mk[:count, -1] = square_M
        self.factors_Mk[count:, :-1], self.factors_Mk[count:, -1] = 0, torch.inf

    def coordinates(self, centred_ND: Tensor) -> Tensor:
        """Return tokens (N, k + 1): the basis' coordinates, and the length of the rest."""
        if self._basis_Dk is None:
            return centred_ND
        parts = []
        for part_ND in torch.split(centred_ND, PIECE):
            wide_ND = part_ND.double()
            kept_Nk = wide_ND @ self._basis_Dk
            rest_N = (wide_ND.square().sum(dim=1) - kept_Nk.square().sum(dim=1)).clamp(min=0).sqrt()
            parts.append(torch.cat([kept_Nk, rest_N.unsqueeze(1)], dim=1).float())
        return torch.cat(parts)

    def limit(self, query_Qk: Tensor, distance_Q: Tensor, *, width: int) -> Tensor:
        """Return the largest products (Q,), |b|^2 - 2qb, of tokens that may be as near as ``distance_Q``.

        NaN, which lets none pass, where it is not finite.
        """
        # A sum of n products errs by at most n units of its absolute terms, and squares are sums, too.
        units = 2 * (query_Qk.shape[1] + SLACK) * (query_Qk.norm(dim=1) + self._largest).square()
        square_Q = distance_Q.double().square()
        error_Q = UNIT * (units.double() + 4 * (width + SLACK) * square_Q)
        limit_Q = (square_Q - query_Qk.double().square().sum(dim=1) + error_Q).float()
        return torch.where(limit_Q.isfinite(), limit_Q, torch.nan)


def _basis(bank_MD: Tensor, mean_D: Tensor) -> Tensor | None:
    """Return the fewest principal directions (D, k) that hold most of the variance, None where many do."""
    count, width = bank_MD.shape
    sample_ND = (bank_MD[:: max(1, count // SAMPLE)] - mean_D).double()
    if not bool(torch.isfinite(sample_ND).all()):
        return None
    variance_D, direction_DD = torch.linalg.eigh(sample_ND.T @ sample_ND)
    share_D = variance_D.flip(0).cumsum(0) / variance_D.sum()
    kept = int((share_D < KEPT_SHARE).sum()) + 1
    return direction_DD.flip(1)[:, :kept].contiguous() if 2 * kept < width else None


def _to_one(a_QD: Tensor, b_QD: Tensor) -> Tensor:
    return direct_distance(a_QD.unsqueeze(1), b_QD.unsqueeze(1)).flatten()
