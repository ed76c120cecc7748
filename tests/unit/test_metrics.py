"""Metrics equal scikit-learn's at any scale; thresholds are their rules; intervals are seeded and exact."""

import numpy as np
import pytest
from sklearn import config_context
from sklearn import metrics as sk

from dinomaly_hd.errors import DataError, NonFiniteError
from dinomaly_hd.evaluation import metrics, statistics
from dinomaly_hd.evaluation.report import flat_synthetic, render
from dinomaly_hd.evaluation.results import synthetic_figures

SETS = 1000
SCALES = (1e-300, 1e-150, 1e-30, 1.0, 1e30, 1e150, 1e300)


def random_set(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of one of many kinds (ties, constants, denormals, any scale) with both classes present."""
    generator = np.random.default_rng(number)
    size = int(generator.integers(2, 120))
    label = generator.integers(0, 2, size)
    label[:2] = 0, 1
    score = generator.normal(size=size) + label * generator.uniform(-1, 3)
    kind = number % 5
    if kind == 1:
        score = np.round(score)  # many ties
    elif kind == 2:
        score = np.full(size, score[0])  # one tie
    elif kind == 3:
        return 5e-324 * generator.integers(0, 9, size), label  # denormals
    elif kind == 4:
        score = 1.0 + np.spacing(1.0) * np.round(score)  # neighbouring floats
    return score * SCALES[number % len(SCALES)], label


def sk_f1(score: np.ndarray, label: np.ndarray) -> float:
    precision, recall, _ = sk.precision_recall_curve(label, score)
    called = precision + recall > 0
    return float((2 * precision[called] * recall[called] / (precision + recall)[called]).max())


@config_context(assume_finite=True, skip_parameter_validation=True)
def test_equal_to_scikit_learn_on_1000_sets():
    for number in range(SETS):
        score, label = random_set(number)
        fpr, tpr, _ = sk.roc_curve(label, score, drop_intermediate=False)
        pairs = [
            (metrics.auroc(score, label), sk.roc_auc_score(label, score)),
            (metrics.average_precision(score, label), sk.average_precision_score(label, score)),
            (metrics.f1_max(score, label)[0], sk_f1(score, label)),
            *(
                (metrics.tpr_at_fpr(score, label, max_fpr=f), tpr[fpr <= f].max())
                for f in (0.0, 0.01, 0.05, 0.3)
            ),
        ]
        assert all(abs(ours - theirs) <= 1e-12 for ours, theirs in pairs), (number, pairs)


def test_calls_equal_scikit_learn_and_thresholds_are_the_best_ones():
    for number in range(100):
        score, label = random_set(number)
        threshold = float(np.median(score))
        called = score >= threshold
        tn, fp, fn, tp = sk.confusion_matrix(label, called).ravel()
        ours = metrics.confusion_at(score, label, threshold=threshold)
        assert ours[:4] == (tp, fp, tn, fn)
        theirs = (
            sk.precision_score(label, called, zero_division=np.nan),
            *(score_of(label, called) for score_of in (sk.recall_score, sk.f1_score, sk.accuracy_score)),
        )
        assert ours[4:] == pytest.approx(theirs, abs=1e-12, nan_ok=True)
        value, threshold = metrics.f1_max(score, label)
        assert metrics.confusion_at(score, label, threshold=threshold).f1_score == value
        chosen = metrics.youden(score, label)
        assert chosen.optimistic
        assert chosen.source == "test labels"

        def youden_j(threshold: float, score=score, label=label) -> float:
            found = metrics.confusion_at(score, label, threshold=threshold)
            return found.recall - found.fp / (found.fp + found.tn)

        assert youden_j(chosen.value) == pytest.approx(max(map(youden_j, score)), abs=1e-12)


def test_ties_go_to_the_higher_threshold_and_a_score_equal_to_it_is_a_fault():
    assert metrics.youden([1.0, 2.0, 3.0, 4.0], [0, 1, 0, 1]).value == 4.0
    assert metrics.confusion_at([1.0, 2.0, 3.0], [0, 0, 1], threshold=2.0)[:4] == (1, 1, 1, 0)
    # 5: F1 2/3; 3: tp 2, fp 1, F1 4/5.
    assert metrics.f1([1.0, 2.0, 3.0, 4.0, 5.0], [0, 0, 1, 0, 1]) == ("f1", 3.0, True, "test labels")


def test_normal_quantile_is_honest_on_held_out_and_marked_on_training_scores():
    held_out = metrics.normal_quantile(np.arange(1001.0), held_out=True)
    assert held_out.value == pytest.approx(995.0, abs=1e-9)
    assert held_out[2:] == (False, "held-out normals")
    assert metrics.normal_quantile(np.arange(9.0), held_out=False)[2:] == (True, "training normals")
    with pytest.raises(DataError, match="no scores of held-out normals"):
        metrics.normal_quantile([], held_out=True)


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
def test_no_normal_is_a_fault_where_all_score_the_same(scale):
    chosen = metrics.normal_quantile(np.full(20, scale), held_out=True)
    assert metrics.confusion_at([scale, scale], [0, 0], threshold=chosen.value).fp == 0


@pytest.mark.parametrize("count", [7, 100, 1000, 999])
def test_allowed_false_positives_compares_as_a_roc_curve_does(count):
    for target in (0.0, 0.01, 0.05, 0.29, 0.57, 0.58, 1.0):
        allowed = statistics.allowed_false_positives(count, max_fpr=target)
        assert allowed == (np.arange(count + 1) / count <= target).sum() - 1


@pytest.mark.parametrize("label", [[0, 0, 0], [1, 1, 1]])
def test_one_class_gives_nan(label):
    score = [1.0, 2.0, 3.0]
    values = [
        metrics.auroc(score, label),
        metrics.tpr_at_fpr(score, label, max_fpr=0.01),
        metrics.average_precision(score, label),
        *metrics.f1_max(score, label),
        metrics.youden(score, label).value,
        metrics.f1(score, label).value,
        *metrics.confusion_at(score, label, threshold=2.0)[4:],
        *statistics.percentile_interval(bootstrap(score, label)[:, 0]),
    ]
    assert np.isnan(values).all()
    assert metrics.roc_curve(score, label)[0].size == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_score_is_an_error_that_names_the_image(bad):
    with pytest.raises(NonFiniteError, match=r"C/000001\.tiff: score .*1 of 3"):
        metrics.check_finite([0.0, bad, 1.0], names=["C/000000.tiff", "C/000001.tiff", "C/000002.tiff"])
    for measure in (metrics.auroc, metrics.average_precision, metrics.f1_max):
        with pytest.raises(NonFiniteError, match="position 1"):
            measure([0.0, bad, 1.0], [0, 1, 1])
    with pytest.raises(NonFiniteError, match="position 1"):
        metrics.normal_quantile([1.0, bad], held_out=True)


# ---- pixels ----


def maps_and_masks(seed: int, *, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    masks = np.zeros((4, 12, 15), dtype=bool)
    masks[0, 2, 1:9] = masks[0, 8:11, 10:12] = masks[2, 5, 5] = masks[2, 6, 6] = True
    maps = generator.normal(size=masks.shape) + masks
    return (np.round(maps, 1) if ties else maps).astype(np.float32), masks


def aupro_by_thresholds(maps: np.ndarray, masks: np.ndarray, max_fpr: float) -> float:
    """The definition, point by point, with the three regions written out."""
    regions = [np.zeros_like(masks) for _ in range(3)]
    regions[0][0, 2, 1:9] = regions[1][0, 8:11, 10:12] = True
    regions[2][2, 5, 5] = regions[2][2, 6, 6] = True  # touch at a corner: one region
    levels = np.unique(maps)[::-1]
    fpr = np.array([0.0] + [(maps[~masks] >= level).mean() for level in levels])
    pro = np.array(
        [0.0] + [np.mean([(maps[region] >= level).mean() for region in regions]) for level in levels]
    )
    grid = np.append(fpr[fpr < max_fpr], max_fpr)
    curve = np.append(pro[fpr < max_fpr], np.interp(max_fpr, fpr, pro))
    return float(np.trapezoid(curve, grid) / max_fpr)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_pixel_metrics_equal_their_definitions(seed, ties):
    maps, masks = maps_and_masks(seed, ties=ties)
    assert metrics.pixel_auroc(maps, masks) == pytest.approx(
        sk.roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-12
    )
    for max_fpr in (0.3, 0.05, 1.0):
        ours = metrics.aupro(maps, masks, max_fpr=max_fpr)
        assert ours == pytest.approx(aupro_by_thresholds(maps, masks, max_fpr), abs=1e-12)


def test_pixel_metrics_without_defects_are_nan_and_bad_maps_named():
    maps, masks = maps_and_masks(0, ties=False)
    assert np.isnan(metrics.aupro(maps, np.zeros_like(masks)))
    assert np.isnan(metrics.pixel_auroc(maps, np.zeros_like(masks)))
    maps[2, 0, 0] = np.nan
    with pytest.raises(NonFiniteError, match="anomaly map 2"):
        metrics.aupro(maps, masks)


# ---- intervals ----


def gaussian_set(count: int) -> tuple[np.ndarray, np.ndarray]:
    label = np.repeat([0, 1], count)
    return np.random.default_rng(0).normal(size=2 * count) + 1.5 * label, label


def bootstrap(score, label, *, seed: int = 42, draws: int = 2000) -> np.ndarray:
    generator = statistics.named_generator(seed, "score/domain_C/all")
    drawn = statistics.bootstrap(
        np.asarray([score]), label=label, max_fprs=(0.01, 0.05), generator=generator, draws=draws
    )
    return drawn[0]


def test_draws_depend_on_the_seed():
    score, label = gaussian_set(200)
    assert np.array_equal(bootstrap(score, label), bootstrap(score, label))
    assert not np.array_equal(bootstrap(score, label), bootstrap(score, label, seed=43))


@pytest.mark.parametrize("ties", [False, True])
def test_every_draw_is_the_metric_of_the_images_drawn_for_all_runs(ties: bool):
    """With the generator replayed, each draw equals the plain metric of the resampled images."""
    score, label = gaussian_set(30)
    scores = np.stack([score, score[::-1] + np.random.default_rng(1).normal(size=60)])
    scores = np.round(scores, 1) if ties else scores
    drawn = statistics.bootstrap(
        scores, label=label, max_fprs=(0.01, 0.05), generator=np.random.default_rng(7), draws=25
    )
    replay = np.random.default_rng(7)
    good, fault = replay.integers(0, 30, size=(25, 30)), 30 + replay.integers(0, 30, size=(25, 30))
    for draw, chosen in enumerate(np.concatenate([good, fault], axis=1)):
        for run, own in enumerate(scores):
            assert drawn[run, draw, 0] == pytest.approx(sk.roc_auc_score(label, own[chosen]), abs=1e-12)
            for column, fpr in ((1, 0.01), (2, 0.05)):
                assert drawn[run, draw, column] == metrics.tpr_at_fpr(own[chosen], label, max_fpr=fpr)


# ---- synthetic bands ----


def test_figures_on_synthetic_bands_are_those_of_each_domain():
    label, domain = np.tile([0, 0, 1, 1, 1], 40), np.repeat(np.array(["domain_A", "domain_C"]), 100)
    score = np.random.default_rng(0).normal(size=200) + label * np.where(domain == "domain_A", 3.0, 0.5)
    blocks = synthetic_figures(score, label, domain)
    for name, block in blocks["per_domain"].items():
        own = name == domain
        assert block["auroc"] == pytest.approx(sk.roc_auc_score(label[own], score[own]), abs=1e-12)
        assert (block["normals"], block["bands"]) == (40, 60)
    mean = np.mean([block["auroc"] for block in blocks["per_domain"].values()])
    assert blocks["mean"]["auroc"] == pytest.approx(mean, abs=1e-12)
    flat = flat_synthetic(blocks)
    assert flat["synthetic/domain_C/tpr_at_fpr_1"] == blocks["per_domain"]["domain_C"]["tpr_at_fpr_1pct"]
    assert flat["synthetic/mean/auroc"] == blocks["mean"]["auroc"]
    assert len(flat) == 3 * 3
    text = render("synthetic.txt", result={"synthetic": blocks})
    assert "(40 normals, 60 bands)\n  40 normals: the finest FPR is 2.5 % (domain_A, domain_C)\n" in text
