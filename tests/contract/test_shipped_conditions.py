"""Each of the 32 shipped conditions starts, learns, and is run with the values that stand in its file.

Every value is the condition's own but for the sizes: small maps, two steps, a sixteenth of the published
width, and encoders of random weights, a small transformer in the place of ViT-B.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import Optimizer

from dinomaly_hd.config import TrainingConfig, flatten, layers_of, range_of
from dinomaly_hd.config.conditions_file import Condition, read_conditions
from dinomaly_hd.config.resolve import resolve_model
from dinomaly_hd.experiments.run import execute
from dinomaly_hd.runs.context import Context
from dinomaly_hd.training.optim import OPTIMIZERS

from .light_runs import Seen, evaluate_four_images

CONDITIONS = Path(__file__).resolve().parents[2] / "conditions"
FILES = ("single_domain.json", "multi_domain.json")
EVERYWHERE = {"preset": "full", "gpu": "cpu", "simulate_size": "tiny", "map_size": "32"}
TWO_STEPS = {"max_epochs": "0", "max_steps": "2"}
SMALLER = {
    "draem": {**TWO_STEPS, "image_size": "32x48", "width": "0.0625"},
    "draem_sevnet": {**TWO_STEPS, "image_size": "32x48", "width": "0.0625"},
    "dinomaly": {
        **TWO_STEPS,
        "image_size": "32",
        "encoder": "vit_tiny_patch16_224",
        "encoder_weights": "random",
    },
    "patchcore": {"image_size": "64", "encoder_weights": "random"},
}
FLAGS = {"encoder_name": "encoder", "backbone": "encoder"}
KINDS = dict(OPTIMIZERS)
NO_VALUES = ("model_type", "source_domain", "target_domains")


def entries(file: str) -> list[dict[str, Any]]:
    return list(json.loads((CONDITIONS / file).read_text())["experiment_conditions"])


EVERY = {entry["name"]: (file, entry["config"]) for file in FILES for entry in entries(file)}


@pytest.fixture(scope="module")
def conditions() -> dict[str, Condition]:
    return {one.name: one for file in FILES for one in read_conditions(CONDITIONS / file)}


def run_small(one: Condition, context: Context) -> None:
    targets = ",".join((str(one.source_domain), *one.target_domains))
    own = {"domains": targets, "train_domains": str(one.source_domain) if one.target_domains else "all"}
    values = {**one.values, **EVERYWHERE, **SMALLER[one.model_type], **own}
    execute(resolve_model(one.model_type, values), context)


def assert_values(flat: Mapping[str, Any], config: Mapping[str, Any], *, family: str) -> None:
    """Compare every value of the file that was not made smaller with the run's."""
    for name, wanted in config.items():
        flag = FLAGS.get(name, name)
        flag = "eval_batch_size" if (family, name) == ("patchcore", "batch_size") else flag
        if name in NO_VALUES or flag in SMALLER[family] or name == "max_epochs":
            continue
        if name.endswith("_range"):
            assert range_of(flat[flag]) == tuple(wanted), name
        elif isinstance(wanted, list):
            assert layers_of(flat[flag]) == [int(str(one).removeprefix("layer")) for one in wanted], name
        else:
            assert flat[flag] == wanted, name


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
    flat = flatten(seen.work.run)
    bank = seen.weights["bank"]
    image = torch.from_numpy(seen.work.store[int(seen.work.ready.split.train[0])])
    rows, columns = seen.detector.encode(image[None]).shape[2:]
    tokens = len(seen.work.ready.split.train) * rows * columns
    assert len(bank) == max(1, round(flat["coreset_sampling_ratio"] * tokens))
    assert torch.isfinite(bank).all()


@pytest.mark.parametrize("name", EVERY)
def test_a_shipped_condition_runs_with_its_own_values(
    name: str,
    conditions: dict[str, Condition],
    own: Context,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, config = EVERY[name]
    seen = evaluate_four_images(monkeypatch)
    made: list[Optimizer] = []
    for optimizer, make in KINDS.items():

        def keep(*args: Any, make: Any = make, **named: Any) -> Optimizer:
            made.append(make(*args, **named))
            return made[-1]

        monkeypatch.setitem(OPTIMIZERS, optimizer, keep)
    one = conditions[name]
    run_small(one, own)
    (done,) = seen
    flat = flatten(done.work.run)
    assert_values(flat, config, family=one.model_type)
    assert (flat["domains"], flat["train_domains"]) == (
        ("A,B,C,D", "A") if one.target_domains else ("A", "all")
    )
    assert {done.work.ready.manifest.records[int(i)].domain for i in done.work.ready.split.train} == {
        "domain_A"
    }
    if one.model_type == "patchcore":
        assert_filled(done)
    else:
        assert_trained(done, made)


def test_there_are_sixteen_of_each() -> None:
    assert [len(entries(file)) for file in FILES] == [16, 16]
    assert len(EVERY) == 32, "names differ between the files"
