"""The coreset of a memory bank: greedy k-centre selection in memory linear in the number of tokens."""

# N tokens, D width, d width after the projection, M centres

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dinomaly_hd.models.patchcore.neighbours import direct_distance, nearest
from dinomaly_hd.progress import Progress
from dinomaly_hd.randomness import derive

EPSILON = 0.9  # distortion of squared distances that the projection's dimension is chosen for
# Tokens among which the next centres are sought, and of which those brought up to date at once.
BLOCK, ROWS = 1024, 256
CHOSEN = -1.0  # stands for the distance of a centre: below every distance, so that no token is chosen twice


def projection(width: int, *, count: int, seed: int) -> Tensor | None:
    """Return a sparse random matrix (D, d), or None where it would not shrink the width D.

    d is the Johnson-Lindenstrauss dimension of ``count`` tokens for a distortion of .9 (256 for 33,000).
    """
    # Imported here: only fitting needs it, and every start would pay for it.
    from sklearn.random_projection import SparseRandomProjection, johnson_lindenstrauss_min_dim

    target = int(johnson_lindenstrauss_min_dim(count, eps=EPSILON))
    if target >= width:
        return None
    sparse = SparseRandomProjection(target, random_state=derive(seed, "projection") % 2**32)
    sparse.fit(torch.zeros(1, width).numpy())
    return torch.from_numpy(sparse.components_.toarray()).float().T.contiguous()


def greedy_centres(
    points_Nd: Tensor, *, count: int, start: int, tick: Callable[[], None] = lambda: None
) -> Tensor:
    """Return the indices (M,) of greedy k-centre selection from ``start`` on, in the order of their choice.

    Each next centre is the token farthest from its nearest centre, the first one on ties; none is chosen
    twice. ``tick`` is called once per centre.
    """
    # Exact and lazy: distances only shrink, so a token's old distance bounds its present one, and centres are
    # chosen among the few tokens with the largest bounds while these are ahead of all others.
    lazy = _Lazy(points_Nd, count=count, start=start)
    size = BLOCK
    with Progress("choosing", count, unit="token", tell=lambda *_: tick()) as each_centre:
        each_centre()
        while lazy.number < count:
            before = lazy.number
            lazy.choose(size, tick=each_centre)
            # Tokens that tie with others outside of the block wait for one that holds them all.
            size = BLOCK if lazy.number > before else 2 * size
    return lazy.chosen_M


class _Lazy:
    """The centres chosen so far, and for each token its distance to the nearest of the first ``seen``."""

    def __init__(self, points_Nd: Tensor, *, count: int, start: int) -> None:
        self.points_Nd, self.number = points_Nd, 1
        self.chosen_M = torch.full((count,), start, device=points_Nd.device)
        self.centres_Md = points_Nd[start].repeat(count, 1)
        self.distance_N = direct_distance(points_Nd, self.centres_Md[:1]).squeeze(1)
        self.distance_N[start] = CHOSEN
        self.seen_N = torch.ones_like(self.distance_N, dtype=torch.int64)

    def choose(self, size: int, *, tick: Callable[[], None]) -> None:
        """Choose centres among the ``size`` tokens that may be farthest, while they are farthest of all."""
        largest = self.distance_N.topk(min(size + 1, len(self.distance_N)))
        index_K = largest.indices[:size].sort().values
        outside = float(largest.values[size]) if len(largest.values) > size else -torch.inf
        points_Kd, distance_K = self.points_Nd[index_K], self._present(index_K)
        while self.number < len(self.chosen_M):
            best = int(distance_K.argmax())
            if distance_K[best] <= outside:
                break
            tick()
            self.chosen_M[self.number], self.centres_Md[self.number] = index_K[best], points_Kd[best]
            self.number += 1
            distance_K.clamp_(max=direct_distance(points_Kd, points_Kd[best : best + 1]).squeeze(1))
            distance_K[best] = CHOSEN
        self.distance_N[index_K], self.seen_N[index_K] = distance_K, self.number

    def _present(self, index_K: Tensor) -> Tensor:
        """Return the distances of some tokens to the nearest of all centres."""
        distance_K, seen_K = self.distance_N[index_K], self.seen_N[index_K]
        # Those that missed as many centres together.
        for rows in torch.split(seen_K.argsort(), ROWS):
            missed_Md = self.centres_Md[int(seen_K[rows].min()) : self.number]
            if len(missed_Md):
                new = nearest(self.points_Nd[index_K[rows]], missed_Md).distance_Q
                distance_K[rows] = torch.minimum(distance_K[rows], new)
        return distance_K


def select_coreset(
    pieces: Sequence[Tensor],
    *,
    ratio: float,
    seed: int,
    device: torch.device,
    start: int | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Tensor:
    """Return the indices (M,) of the tokens that a memory bank keeps, M = ratio * N rounded, at least 1.

    Greedy k-centre selection (PatchCore, CVPR 2022, algorithm 1) on a sparse random projection. Beside the
    tokens it needs their projection and three numbers per token, never a distance matrix.

    ``pieces`` are the tokens (n, D), float32, in one or several tensors anywhere; distances are computed on
    ``device``. ``seed`` draws the projection and, where it is None, ``start``, the first centre.
    """
    count, width = sum(len(piece) for piece in pieces), pieces[0].shape[1]
    matrix_Dd = projection(width, count=count, seed=seed)
    points_Nd = torch.empty(count, width if matrix_Dd is None else matrix_Dd.shape[1], device=device)
    filled = 0
    for piece in pieces:
        target = points_Nd[filled : filled + len(piece)]
        target.copy_(piece if matrix_Dd is None else piece @ matrix_Dd.to(piece.device))
        filled += len(piece)
    return greedy_centres(
        points_Nd,
        count=max(1, round(ratio * count)),
        start=derive(seed, "coreset start") % count if start is None else start,
        tick=tick,
    )
