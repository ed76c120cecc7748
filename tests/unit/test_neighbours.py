"""Nearest neighbours are exact, and the coreset is the plain algorithm's, whatever is left out on the way."""

import numpy as np
import pytest
import torch
from torch import Tensor

from dinomaly_hd.models.patchcore import coreset, neighbours
from dinomaly_hd.models.patchcore.coreset import greedy_centres, projection, select_coreset
from dinomaly_hd.models.patchcore.neighbours import Nearest, NeighbourIndex, direct_distance, nearest

CPU = torch.device("cpu")


DIRECT = "donot_use_mm_for_euclid_dist"  # the product of matrices is wrong by 1e-2 far from the origin


def tokens(count: int, width: int, *, offset: float, spread: float = 1.0, seed: int) -> Tensor:
    return offset + spread * torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("offset", "spread", "size"), [(0, 1, 300), (0, 1, 1), (0, 1, 5), (100, 1, 300), (100, 0.01, 300)]
)
def test_distances_are_those_of_double_precision(offset: float, spread: float, size: int) -> None:
    queries = tokens(500, 20, offset=offset, spread=spread, seed=1)
    bank = tokens(size, 20, offset=offset, spread=spread, seed=2)
    found = nearest(queries, bank)
    expected = torch.cdist(queries.double(), bank.double(), compute_mode=DIRECT).min(dim=1)
    torch.testing.assert_close(found.distance_Q.double(), expected.values, rtol=1e-5, atol=0)
    assert torch.equal(found.index_Q, expected.indices)


@pytest.mark.parametrize("chunk", [1, 700, 2**23])
def test_distances_equal_direct_ones_to_the_last_bit(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "CHUNK", chunk)
    queries, bank = tokens(100, 33, offset=50, seed=1), tokens(70, 33, offset=50, seed=2)
    assert_exact(nearest(queries, bank), queries, bank)
    found = nearest(bank.flip(0), bank)
    assert float(found.distance_Q.max()) == 0, "a token of the bank"
    assert found.index_Q.tolist() == list(range(70))[::-1]
    for copies in (2, 7, 40):
        equal = tokens(300, 8, offset=0, seed=5)
        equal[list(range(3, 3 + 7 * copies, 7))] = equal[3].clone()
        assert nearest(equal[[3, 4]] + 1e-3, equal).index_Q.tolist() == [3, 4], (
            "the first of equally near ones"
        )
    ones = torch.ones(300, 16)
    queries = torch.cat([ones[:20], tokens(20, 16, offset=0, seed=6)])
    found = NeighbourIndex(ones).nearest(queries)
    assert_exact(found, queries, ones)
    assert found.index_Q.tolist() == [0] * 40


def flat(count: int, *, rest: float, offset: float = 0.0, seed: int) -> Tensor:
    """Tokens of width 64 in a plane of 6 dimensions, but for ``rest``."""
    plane = torch.linalg.qr(tokens(64, 6, offset=0, seed=1)).Q
    return (
        offset
        + tokens(count, 6, offset=0, seed=seed) @ plane.T
        + tokens(count, 64, offset=0, spread=rest, seed=seed + 1)
    )


def assert_exact(found: Nearest, queries: Tensor, bank: Tensor) -> None:
    direct = direct_distance(queries, bank).min(dim=1)
    assert torch.equal(found.distance_Q, direct.values)
    assert torch.equal(found.index_Q, direct.indices)


@pytest.mark.parametrize(("rest", "offset"), [(0.0, 0.0), (1e-4, 0.0), (0.03, 0.0), (0.03, 100.0)])
@pytest.mark.parametrize("chunk", [700, 2**23])
def test_few_coordinates_find_it(
    rest: float, offset: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "CHUNK", chunk)
    bank, queries = flat(900, rest=rest, offset=offset, seed=10), flat(300, rest=rest, offset=offset, seed=20)
    measured = []
    monkeypatch.setattr(
        neighbours, "_to_one", lambda a, b, plain=neighbours._to_one: measured.append(len(a)) or plain(a, b)
    )
    index = NeighbourIndex(bank)
    assert_exact(index.nearest(queries), queries, bank)
    assert_exact(index.nearest(bank[:50]), bank[:50], bank)
    assert index.nearest(bank[:50]).distance_Q.max() == 0
    assert sum(measured) < 350 * 40  # and not all 900 for each


def test_where_few_coordinates_do_not_tell_tokens_apart_all_do() -> None:
    bank, queries = flat(900, rest=0.03, seed=10), flat(40, rest=0.03, seed=20)
    crowd = bank[0] + tokens(200, 64, offset=0, spread=0.03, seed=30)  # one place in the plane
    crowd[7] = crowd[3]
    bank, queries = torch.cat([bank, crowd]), torch.cat([queries, crowd[:20] + 1e-3, crowd[3:4], crowd[7:8]])
    assert_exact(NeighbourIndex(bank).nearest(queries), queries, bank)


def test_banks_without_few_coordinates_and_queries_that_are_no_numbers() -> None:
    queries = tokens(30, 16, offset=0, seed=6)
    for size in (1, 2, 63, 64, 65, 500):
        bank = tokens(size, 16, offset=0, seed=7)
        assert_exact(NeighbourIndex(bank).nearest(queries), queries, bank)
    bank, queries = flat(900, rest=0.03, seed=10), flat(3, rest=0.03, seed=20)
    queries[1, 2], queries[2, 0] = torch.nan, torch.inf
    assert nearest(queries, bank).distance_Q.isfinite().tolist() == [True, False, False]
    index = NeighbourIndex(bank)
    assert index.nearest(queries).distance_Q.isfinite().tolist() == [True, False, False]
    assert int(index.nearest(queries[:1] * 1e25).index_Q[0]) < 900  # its square is no float32
    assert len(index.nearest(queries[:0]).index_Q) == 0


# The coreset


def normal(count: int, width: int) -> Tensor:
    return tokens(count, width, offset=0, seed=0)


def plain_greedy(points: Tensor, *, count: int, start: int) -> list[int]:
    """Algorithm 1 of PatchCore with a full distance matrix in float64."""
    matrix = torch.cdist(points.double(), points.double(), compute_mode=DIRECT)
    chosen = [start]
    while len(chosen) < count:
        distance = matrix[:, chosen].min(dim=1).values
        distance[chosen] = -1
        chosen.append(int(np.argmax(distance.numpy())))  # the first of equally far ones
    return chosen


@pytest.mark.parametrize("block", [1, 16, 1024])
@pytest.mark.parametrize("start", [0, 321])
def test_the_centres_are_those_of_the_plain_algorithm_also_in_pieces(
    block: int, start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coreset, "BLOCK", block)
    monkeypatch.setattr(coreset, "ROWS", 5)
    points = normal(500, 12)
    expected = plain_greedy(points, count=50, start=start)
    for pieces in ([points], points.split(70)):
        chosen = select_coreset(list(pieces), ratio=0.1, seed=0, device=CPU, start=start)
        assert chosen.tolist() == expected


@pytest.mark.parametrize("block", [1, 8, 1024])
def test_ties_go_to_the_first_and_none_is_chosen_twice(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coreset, "BLOCK", block)
    axis = torch.arange(5).float()
    points = torch.cartesian_prod(axis, axis).repeat(2, 1)  # nothing but ties
    chosen = greedy_centres(points, count=50, start=7).tolist()
    assert chosen == plain_greedy(points, count=50, start=7)
    assert sorted(chosen) == list(range(50))
    assert greedy_centres(torch.ones(3000, 2), count=3, start=9).tolist() == [9, 0, 1]


def test_the_seed_decides_and_the_bank_keeps_a_share_and_at_least_one() -> None:
    points = normal(400, 300)
    chosen = [select_coreset([points], ratio=0.05, seed=seed, device=CPU) for seed in (3, 3, 4)]
    assert torch.equal(chosen[0], chosen[1])
    assert not torch.equal(chosen[1], chosen[2])
    ticks: list[None] = []
    few = normal(40, 3)
    assert len(select_coreset([few], ratio=0.001, seed=0, device=CPU)) == 1
    every = select_coreset([few], ratio=1.0, seed=0, device=CPU, tick=lambda: ticks.append(None))
    assert sorted(every.tolist()) == list(range(40))
    assert len(ticks) == 40


def test_the_projection_is_sparse_and_keeps_distances() -> None:
    matrix = projection(1000, count=33_000, seed=5)
    assert matrix is not None
    assert matrix.shape == (1000, 256)  # 4 ln(33000) / (.9**2 / 2 - .9**3 / 3)
    filled = matrix != 0
    assert float(filled.float().mean()) == pytest.approx(1000**-0.5, rel=0.05)
    assert float(matrix[filled].abs().max()) == pytest.approx((1000**0.5 / 256) ** 0.5)
    points = normal(60, 1000)
    pairs = torch.triu_indices(60, 60, offset=1)
    ratio = torch.cdist(points @ matrix, points @ matrix) / torch.cdist(points, points)
    assert float(ratio[pairs[0], pairs[1]].mean()) == pytest.approx(1, abs=0.02)
    assert float((ratio[pairs[0], pairs[1]].square() - 1).abs().max()) < 0.9
    assert projection(256, count=33_000, seed=5) is None, "it would not shrink"
    assert projection(257, count=33_000, seed=5) is not None
    # Wide tokens are chosen by their projection.
    points = normal(500, 400)
    matrix = projection(400, count=500, seed=8)
    assert matrix is not None
    chosen = select_coreset([points], ratio=0.06, seed=8, device=CPU, start=11)
    assert chosen.tolist() == plain_greedy(points @ matrix, count=30, start=11)
    assert chosen.tolist() != plain_greedy(points, count=30, start=11)
