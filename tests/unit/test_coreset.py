"""The coreset is that of the plain greedy algorithm, token by token, whatever is left out on the way."""

import numpy as np
import pytest
import torch
from torch import Tensor

from dinomaly_hd.models import coreset
from dinomaly_hd.models.coreset import greedy_centres, projection, select_coreset

CPU = torch.device("cpu")


def random_tokens(count: int, width: int, *, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def grid_tokens(side: int) -> Tensor:
    """Return every point of a square grid twice: nothing but ties."""
    axis = torch.arange(side).float()
    return torch.cartesian_prod(axis, axis).repeat(2, 1)


def plain_greedy(tokens: Tensor, *, count: int, start: int) -> list[int]:
    """Algorithm 1 of PatchCore with a full distance matrix in float64."""
    points = tokens.double().numpy()
    matrix = np.stack([np.sqrt(((points - point) ** 2).sum(axis=1)) for point in points])
    chosen = [start]
    while len(chosen) < count:
        best, farthest = -1, -1.0
        for token, distance in enumerate(matrix[:, chosen].min(axis=1)):
            if token not in chosen and distance > farthest:
                best, farthest = token, distance
        chosen.append(best)
    return chosen


@pytest.mark.parametrize("block", [1, 16, 1024])
@pytest.mark.parametrize("start", [0, 321])
def test_the_centres_are_those_of_the_plain_algorithm(
    block: int, start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coreset, "BLOCK", block)
    monkeypatch.setattr(coreset, "ROWS", 5)
    tokens = random_tokens(500, 12)
    chosen = select_coreset([tokens], ratio=0.1, seed=0, device=CPU, start=start)
    assert chosen.tolist() == plain_greedy(tokens, count=50, start=start)


@pytest.mark.parametrize("block", [1, 8, 1024])
def test_ties_go_to_the_first_token_and_none_is_chosen_twice(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coreset, "BLOCK", block)
    tokens = grid_tokens(5)
    chosen = greedy_centres(tokens, count=50, start=7).tolist()
    assert chosen == plain_greedy(tokens, count=50, start=7)
    assert sorted(chosen) == list(range(50))


def test_equal_tokens_end() -> None:
    assert greedy_centres(torch.ones(3000, 2), count=3, start=9).tolist() == [9, 0, 1]


def test_pieces_change_nothing() -> None:
    tokens = random_tokens(300, 6)
    whole = select_coreset([tokens], ratio=0.2, seed=3, device=CPU)
    pieces = select_coreset(list(tokens.split(70)), ratio=0.2, seed=3, device=CPU)
    assert torch.equal(whole, pieces)
    assert len(whole) == 60


def test_the_seed_decides_and_no_global_generator() -> None:
    tokens = random_tokens(400, 300)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    first = select_coreset([tokens], ratio=0.05, seed=3, device=CPU)
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    assert torch.equal(select_coreset([tokens], ratio=0.05, seed=3, device=CPU), first)
    assert not torch.equal(select_coreset([tokens], ratio=0.05, seed=4, device=CPU), first)


def test_the_bank_keeps_a_share_and_at_least_one() -> None:
    tokens = random_tokens(40, 3)
    ticks: list[None] = []
    assert len(select_coreset([tokens], ratio=0.001, seed=0, device=CPU)) == 1
    chosen = select_coreset([tokens], ratio=1.0, seed=0, device=CPU, tick=lambda: ticks.append(None))
    assert sorted(chosen.tolist()) == list(range(40))
    assert len(ticks) == 40


def test_the_projection_is_sparse_and_keeps_distances() -> None:
    matrix = projection(1000, count=33_000, seed=5)
    assert matrix is not None
    assert matrix.shape == (1000, 256)  # 4 ln(33000) / (.9**2 / 2 - .9**3 / 3)
    filled = matrix != 0
    assert float(filled.float().mean()) == pytest.approx(1000**-0.5, rel=0.05)
    assert float(matrix[filled].abs().max()) == pytest.approx((1000**0.5 / 256) ** 0.5)
    tokens = random_tokens(60, 1000)
    pairs = torch.triu_indices(60, 60, offset=1)
    ratio = torch.cdist(tokens @ matrix, tokens @ matrix) / torch.cdist(tokens, tokens)
    assert float(ratio[pairs[0], pairs[1]].mean()) == pytest.approx(1, abs=0.02)
    assert float((ratio[pairs[0], pairs[1]].square() - 1).abs().max()) < 0.9


def test_a_projection_that_would_not_shrink_is_left_out() -> None:
    assert projection(256, count=33_000, seed=5) is None
    assert projection(257, count=33_000, seed=5) is not None


def test_wide_tokens_are_chosen_by_their_projection() -> None:
    tokens = random_tokens(500, 400)
    matrix = projection(400, count=500, seed=8)
    assert matrix is not None
    chosen = select_coreset([tokens], ratio=0.06, seed=8, device=CPU, start=11)
    assert chosen.tolist() == plain_greedy(tokens @ matrix, count=30, start=11)
    assert chosen.tolist() != plain_greedy(tokens, count=30, start=11)
