"""Figures on synthetic bands agree with scikit-learn and keep domains apart."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from dinomaly_hd.evaluation.synthetic import flat_synthetic, synthetic_blocks, synthetic_lines

RANDOM = np.random.default_rng(0)
LABEL = np.tile([0, 0, 1, 1, 1], 40)
DOMAIN = np.repeat(np.array(["domain_A", "domain_C"]), 100)
SCORE = RANDOM.normal(size=200) + LABEL * np.where(DOMAIN == "domain_A", 3.0, 0.5)


def test_auroc_of_each_domain_is_scikit_learns() -> None:
    blocks = synthetic_blocks(SCORE, LABEL, DOMAIN)
    for name, block in blocks["per_domain"].items():
        own = name == DOMAIN
        assert block["auroc"] == pytest.approx(roc_auc_score(LABEL[own], SCORE[own]), abs=1e-12)
        assert (block["normals"], block["bands"]) == (40, 60)
    aurocs = [block["auroc"] for block in blocks["per_domain"].values()]
    assert blocks["mean"]["auroc"] == pytest.approx(np.mean(aurocs), abs=1e-12)


def test_with_few_normals_no_false_positive_is_allowed_at_one_percent() -> None:
    score = np.array([1.0, 2.0, 1.5, 2.5, 3.0, 0.0])
    blocks = synthetic_blocks(score, [0, 0, 1, 1, 1, 1], np.array(["domain_C"] * 6))
    assert blocks["per_domain"]["domain_C"]["tpr_at_fpr_1pct"] == 0.5


def test_mlflow_gets_every_figure_of_every_domain_and_of_the_mean() -> None:
    blocks = synthetic_blocks(SCORE, LABEL, DOMAIN)
    flat = flat_synthetic(blocks)
    assert flat["synthetic/domain_C/tpr_at_fpr_1"] == blocks["per_domain"]["domain_C"]["tpr_at_fpr_1pct"]
    assert flat["synthetic/mean/auroc"] == blocks["mean"]["auroc"]
    assert len(flat) == 3 * 3
    assert any("domain_C" in line and "40 normals" in line for line in synthetic_lines(blocks))
