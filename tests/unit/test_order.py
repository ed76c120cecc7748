"""Sample order is a function of (seed, step): each image once before any twice, wherever one begins."""

import numpy as np
import pytest

from dinomaly_hd.data.features import StepBatches, batch_at

SHAPE = {"count": 10, "batch_size": 4, "seed": 42}


def test_each_image_is_drawn_once_before_any_is_drawn_again() -> None:
    drawn = np.concatenate([batch_at(step, **SHAPE) for step in range(5)])
    for epoch in (drawn[:10], drawn[10:]):
        assert sorted(epoch) == list(range(10))
    assert list(drawn[:10]) != list(drawn[10:])


def test_a_resumed_order_goes_on_where_it_was() -> None:
    whole = list(StepBatches(**SHAPE, start=0, stop=9))
    assert list(StepBatches(**SHAPE, start=5, stop=9)) == whole[5:]
    assert len(StepBatches(**SHAPE, start=5, stop=9)) == 4


def test_another_seed_is_another_order() -> None:
    other = {**SHAPE, "seed": 43}
    assert batch_at(0, **SHAPE).tolist() != batch_at(0, **other).tolist()


@pytest.mark.parametrize("count", [1, 3])
def test_a_batch_larger_than_the_set_repeats_it(count: int) -> None:
    batch = batch_at(7, count=count, batch_size=8, seed=1)
    assert len(batch) == 8
    assert set(batch.tolist()) == set(range(count))
    assert np.bincount(batch).max() - np.bincount(batch).min() <= 1


def test_the_order_of_seed_42_is_pinned() -> None:
    assert batch_at(0, **SHAPE).tolist() == [1, 3, 2, 7]
