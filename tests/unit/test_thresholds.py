"""Thresholds: each value is the one its rule defines, and each says whether it is honest."""

import numpy as np
import pytest

from dinomaly_hd.errors import DataError, NonFiniteError
from dinomaly_hd.evaluation import thresholds
from dinomaly_hd.evaluation.metrics import confusion_at

SCORE, LABEL = [1.0, 2.0, 3.0, 4.0, 5.0], [0, 0, 1, 0, 1]


def test_youden_maximises_tpr_minus_fpr_and_is_optimistic():
    generator = np.random.default_rng(0)
    label = np.repeat([0, 1], 50)
    score = np.round(generator.normal(size=100) + label, 1)
    chosen = thresholds.youden(score, label)

    def youden_j(threshold: float) -> float:
        confusion = confusion_at(score, label, threshold=threshold)
        return confusion.recall - confusion.fp / 50

    assert youden_j(chosen.value) == pytest.approx(max(youden_j(value) for value in score), abs=1e-12)
    assert chosen.optimistic
    assert chosen.source == "test labels"


def test_ties_go_to_the_higher_threshold():
    assert thresholds.youden([1.0, 2.0, 3.0, 4.0], [0, 1, 0, 1]).value == 4.0


def test_f1_threshold():
    # 5: F1 2/3; 3: tp 2, fp 1, F1 4/5.
    assert thresholds.f1(SCORE, LABEL) == ("f1", 3.0, True, "test labels")


def test_normal_quantile_is_honest_on_held_out_and_marked_on_training_scores():
    score = np.arange(1001.0)
    held_out = thresholds.normal_quantile(score, held_out=True)
    assert held_out.value == pytest.approx(995.0, abs=1e-9)
    assert held_out[2:] == (False, "held-out normals")
    assert thresholds.normal_quantile(score, held_out=False)[2:] == (True, "training normals")


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
def test_no_normal_is_a_fault_where_all_score_the_same(scale):
    chosen = thresholds.normal_quantile(np.full(20, scale), held_out=True)
    assert confusion_at([scale, scale], [0, 0], threshold=chosen.value).fp == 0


def test_one_class_has_no_best_threshold():
    assert np.isnan(thresholds.youden([1.0, 2.0], [0, 0]).value)
    assert np.isnan(thresholds.f1([1.0, 2.0], [1, 1]).value)


def test_no_scores_and_bad_scores_are_errors():
    with pytest.raises(DataError, match="no scores of held-out normals"):
        thresholds.normal_quantile([], held_out=True)
    with pytest.raises(NonFiniteError, match="position 1"):
        thresholds.normal_quantile([1.0, np.nan], held_out=True)
