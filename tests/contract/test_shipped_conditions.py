"""Each of the 32 shipped conditions starts and learns (its values reach its run: test_condition_files.py).

Every value is the condition's own but for the sizes: small maps, two steps, a sixteenth of the published
width, and encoders of random weights, a small transformer in the place of ViT-B,
a small ResNet in that of a wide one.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import Optimizer

from dinomaly_hd.config.base import flatten
from dinomaly_hd.config.conditions_file import Condition, read_conditions
from dinomaly_hd.config.resolve import resolve_model
from dinomaly_hd.config.run import TrainingConfig
from dinomaly_hd.experiments.run import execute
from dinomaly_hd.runs.folder import Context
from dinomaly_hd.training.optim import OPTIMIZERS

from .light_runs import Seen, evaluate_four_images

FOLDER = Path(__file__).resolve().parents[2] / "conditions"
FILES = ("single_domain.json", "multi_domain.json")
EVERYWHERE = {"preset": "full", "gpu": "cpu", "simulate_size": "tiny", "map_size": "32"}
TRAINED = {"max_epochs": "0", "max_steps": "2"}
FROM_SCRATCH = {**TRAINED, "image_size": "32x48", "width": "0.0625"}
SMALLER = {
    "draem": FROM_SCRATCH,
    "draem_sevnet": FROM_SCRATCH,
    "dinomaly": {
        **TRAINED,
        "image_size": "32",
        "encoder": "vit_tiny_patch16_224",
        "encoder_weights": "random",
    },
    "patchcore": {"image_size": "64", "encoder": "resnet18", "encoder_weights": "random"},
}
KINDS = dict(OPTIMIZERS)
EVERY = [one for file in FILES for one in read_conditions(FOLDER / file)]


def assert_trained(seen: Seen, made: list[Optimizer]) -> None:
    training = seen.work.run.training
    assert isinstance(training, TrainingConfig)
    assert seen.trained.last_step == 2
    losses = [value for _, value in seen.history["train/loss"]]
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    assert len(seen.history["val/loss"]) == 2 // training.val_check_interval
    assert seen.trained.tested_step in ((1, 2) if seen.trained.best_value is not None else (2,))
    (optimizer,) = made
    assert type(optimizer) is KINDS[training.optimizer]
    assert {group["weight_decay"] for group in optimizer.param_groups} == {training.weight_decay}
    assert optimizer.defaults["lr"] == training.learning_rate


def assert_filled(seen: Seen) -> None:
    bank, train = seen.weights["bank"], seen.work.ready.split.train
    image = torch.from_numpy(seen.work.store[int(train[0])])
    rows, columns = seen.detector.encode(image[None]).shape[2:]
    share = flatten(seen.work.run)["coreset_sampling_ratio"]
    assert len(bank) == max(1, round(share * len(train) * rows * columns))
    assert torch.isfinite(bank).all()


@pytest.mark.parametrize("one", EVERY, ids=lambda one: one.name)
def test_a_shipped_condition_runs(one: Condition, own: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, made = evaluate_four_images(monkeypatch), list[Optimizer]()
    for optimizer, make in KINDS.items():

        def keep(*args: Any, make: Any = make, **named: Any) -> Optimizer:
            made.append(make(*args, **named))
            return made[-1]

        monkeypatch.setitem(OPTIMIZERS, optimizer, keep)
    domains = ",".join((str(one.source_domain), *one.target_domains))
    data = {"domains": domains, "train_domains": str(one.source_domain) if one.target_domains else "all"}
    values = {**one.values, **EVERYWHERE, **SMALLER[one.model_type], **data}
    execute(resolve_model(one.model_type, values), own)
    (done,) = seen
    flat, records = flatten(done.work.run), done.work.ready.manifest.records
    expected = ("A,B,C,D", "A") if one.target_domains else ("A", "all")
    assert (flat["domains"], flat["train_domains"]) == expected
    assert {records[int(i)].domain for i in done.work.ready.split.train} == {"domain_A"}
    if one.model_type == "patchcore":
        assert_filled(done)
    else:
        assert_trained(done, made)


def test_there_are_sixteen_of_each() -> None:
    assert [len(read_conditions(FOLDER / file)) for file in FILES] == [16, 16]
    assert len({one.name for one in EVERY}) == 32, "names differ between the files"
