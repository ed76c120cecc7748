"""Each of the 32 shipped conditions starts and learns (its values reach its run: test_condition_files.py).

Every value is the condition's own but for the sizes: small maps, two steps, a sixteenth of the published
width, and encoders of random weights, a small transformer in the place of ViT-B,
a small ResNet in that of a wide one.
"""

import math
from pathlib import Path

import pytest
import torch

from dinomaly_hd.config.base import flatten
from dinomaly_hd.config.conditions_file import Condition, read_conditions
from dinomaly_hd.config.resolve import resolve_model
from dinomaly_hd.experiments.run import execute
from dinomaly_hd.runs.folder import Context

from .light_runs import Seen, evaluate_four_images

FOLDER = Path(__file__).resolve().parents[2] / "conditions"
EVERYWHERE = {"preset": "full", "gpu": "cpu", "simulate_size": "tiny", "map_size": "32"}
TRAINED = {"max_epochs": "0", "max_steps": "2"}
FROM_SCRATCH = {**TRAINED, "image_size": "32x48", "width": "0.0625"}
VIT = {"encoder": "vit_tiny_patch16_224", "encoder_weights": "random"}
SMALLER = {
    "draem": FROM_SCRATCH,
    "draem_sevnet": FROM_SCRATCH,
    "dinomaly": {**TRAINED, **VIT, "image_size": "32"},
    "patchcore": {"image_size": "64", "encoder": "resnet18", "encoder_weights": "random"},
}
EVERY = [
    one for file in ("single_domain.json", "multi_domain.json") for one in read_conditions(FOLDER / file)
]


def assert_trained(seen: Seen) -> None:
    assert seen.trained.last_step == 2
    losses = [value for _, value in seen.history["train/loss"]]
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    assert len(seen.history["val/loss"]) == 2 // flatten(seen.work.run)["val_check_interval"]
    assert seen.trained.tested_step in ((1, 2) if seen.trained.best_value is not None else (2,))


def assert_filled(seen: Seen) -> None:
    bank, train = seen.weights["bank"], seen.work.ready.split.train
    image = torch.from_numpy(seen.work.store[int(train[0])])
    rows, columns = seen.detector.encode(image[None]).shape[2:]
    share = flatten(seen.work.run)["coreset_sampling_ratio"]
    assert len(bank) == max(1, round(share * len(train) * rows * columns))
    assert torch.isfinite(bank).all()


@pytest.mark.parametrize("one", EVERY, ids=lambda one: one.name)
def test_a_shipped_condition_runs(one: Condition, own: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = evaluate_four_images(monkeypatch)
    domains = ",".join((str(one.source_domain), *one.target_domains))
    expected = {"domains": domains, "train_domains": str(one.source_domain) if one.target_domains else "all"}
    run = resolve_model(one.model_type, {**one.values, **EVERYWHERE, **SMALLER[one.model_type]})
    assert expected.items() <= flatten(run).items()
    execute(run, own)
    (done,) = seen
    records = done.work.ready.manifest.records
    assert {records[int(i)].domain for i in done.work.ready.split.train} == {"domain_A"}
    (assert_filled if one.model_type == "patchcore" else assert_trained)(done)
