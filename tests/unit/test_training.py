"""Training by steps: exact resume, finite checks before each update, checkpoints that are never torn."""

import math
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from dinomaly_hd.batch import Batch
from dinomaly_hd.errors import CheckpointError, Interrupted, NonFiniteError
from dinomaly_hd.models.detector import Loss
from dinomaly_hd.training import checkpoint as checkpoints
from dinomaly_hd.training import loop
from dinomaly_hd.training.checkpoint import Checkpoint
from dinomaly_hd.training.optim import OPTIMIZERS, StableAdamW
from tests.training import DATA, STEPS, Line, Samples, config, train


def test_bf16_spans_the_forward_pass_and_not_the_backward_pass(tmp_path: Path) -> None:
    passes: list[tuple[str, bool]] = []

    class Watched(Line):
        def training_loss(self, batch: Batch, *, step: int) -> Loss:
            loss = super().training_loss(batch, step=step)
            passes.append(("forward", torch.is_autocast_enabled("cpu")))
            loss.total.register_hook(lambda _: passes.append(("backward", torch.is_autocast_enabled("cpu"))))
            return loss

    train(Watched(), config(precision="bf16", max_steps=2, warmup_steps=1), tmp_path)
    assert passes == [("forward", True), ("backward", False)] * 2


def test_an_interrupted_training_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole, resumed = Line(), Line()  # encoded before or in the step
    expected = train(whole, config(), tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(Line(), config(), tmp_path / "parts", until=7)
    rest = train(
        resumed, config(), tmp_path / "parts", samples=Samples(encoded=False)
    )  # encoded before or in it
    assert rest.points == expected.points[7:]
    assert torch.equal(whole.linear.weight, resumed.linear.weight)


def test_validation_is_reported_with_the_step_that_it_follows_and_changes_nothing(tmp_path: Path) -> None:
    plain, watched, run = Line(), Line(), config(val_check_interval=5)
    assert not train(plain, run, tmp_path / "plain").series("val/loss")
    record = train(watched, run, tmp_path / "watched", validate=losing([0.1, 0.2]))
    points = [(step, values) for step, values in record.points if "val/loss" in values]
    assert points == [(4, {"val/loss": 0.1}), (9, {"val/loss": 0.2})]
    assert torch.equal(plain.linear.weight, watched.linear.weight), "without patience the last ones are left"


def test_learning_rate_is_stepped_once_per_optimizer_step(tmp_path: Path) -> None:
    rates = train(Line(), config(max_steps=300, warmup_steps=100), tmp_path).series("train/lr")
    assert len(rates) == 300
    assert [rates[0], rates[1], rates[100]] == pytest.approx([0, 2e-3 / 99, 2e-3])
    assert rates[299] == pytest.approx(2e-4, rel=1e-3)
    constant = config(warmup_steps=0, final_rate_share=1.0, learning_rate=0.003)
    assert train(Line(), constant, tmp_path / "c").series("train/lr") == pytest.approx([0.003] * STEPS)


def test_the_old_schedule_per_epoch_trains_its_first_epoch_with_rate_zero(tmp_path: Path) -> None:
    rates = train(Line(), config(lr_schedule_interval="epoch"), tmp_path).series("train/lr")
    assert rates[:2] == [0, 0]  # 10 images, batches of 4: an epoch is two steps
    assert rates[2] == rates[3] == 1e-3


def test_skipped_steps_are_counted_also_over_a_resume(tmp_path: Path) -> None:
    whole, broken, resumed = (Line(poisoned=(2, 8)) for _ in range(3))
    run = config(on_nonfinite="skip")
    expected = train(whole, run, tmp_path / "whole").series("train/nonfinite")
    assert expected[-1] == 2
    with pytest.raises(Interrupted):
        train(broken, run, tmp_path / "parts", until=6)
    assert train(resumed, run, tmp_path / "parts").series("train/nonfinite") == expected[6:]


class Jump(torch.optim.SGD):
    """An optimizer whose step is infinite although the gradient was finite."""

    def step(self, closure: Any = None) -> None:
        super().step(closure)
        for group in self.param_groups:
            group["params"][0].data.fill_(math.inf)


def test_weights_that_became_infinite_are_never_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OPTIMIZERS, "stable_adamw", lambda groups, **_: Jump(groups, 1))
    with pytest.raises(NonFiniteError, match=r"step \d+: .*linear\.weight became NaN or infinite"):
        train(Line(), config(max_steps=1, checkpoint_interval=1), tmp_path)
    assert not list(tmp_path.glob("step_*"))


@pytest.mark.parametrize(
    "change",
    [{"step": "5"}, {"weights": {"w": 1}}, {"weights": []}, {"optimizer": None}, {"config": 3}],
    ids=str,
)
def test_a_checkpoint_with_malformed_fields_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    path = saved(tmp_path, 5)
    content = torch.load(path, weights_only=True)
    torch.save({**content, **change}, path)
    with pytest.raises(CheckpointError, match="malformed"):
        checkpoints.load(path)


def test_a_checkpoint_of_other_shapes_is_one_error() -> None:
    with pytest.raises(CheckpointError, match="does not fit the model"):
        checkpoints.load_trained_state(Line(), {"linear.weight": torch.zeros(2, 2)})


def test_a_zip_whose_pickle_ends_early_is_named(tmp_path: Path) -> None:
    saved(tmp_path, 5)
    path = saved(tmp_path, 10)
    with zipfile.ZipFile(path) as source:
        entries = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w") as target:
        for name, data in entries.items():
            target.writestr(name, b"" if name.endswith("data.pkl") else data)
    found = checkpoints.newest(tmp_path)
    assert found.checkpoint.step == 5
    assert "step_00000010.pt" in found.unreadable[0]
    assert "cannot be read" in found.unreadable[0]


def test_the_gradients_norm_is_logged_as_it_was_before_clipping(tmp_path: Path) -> None:
    assert max(train(Line(), config(), tmp_path).series("train/grad_norm")) > 0.1


def saved(folder: Path, step: int) -> Path:
    weights = {"w": torch.full((50, 50), float(step))}
    return checkpoints.save(folder, Checkpoint(step, config().to_json(), "d", "e", 0, weights, {}, {}))


def test_two_checkpoints_are_kept_and_leftovers_swept(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        saved(tmp_path, step)
    (tmp_path / ".writing-abc").write_bytes(b"half")
    checkpoints.newest(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000010.pt", "step_00000015.pt"]


def test_a_checkpoint_is_taken_on_another_machine_and_refused_by_another_run(tmp_path: Path) -> None:
    checkpoint = checkpoints.load(saved(tmp_path, 5))
    digests = {"data_digest": "d", "encoder_digest": "e"}
    checkpoints.check_belongs(checkpoint, config=config(num_workers=3).to_json(), **digests)
    other = config(learning_rate=1e-3, seed=7).to_json()
    with pytest.raises(CheckpointError, match=r"learning_rate 0\.002 -> 0\.001; seed 42 -> 7"):
        checkpoints.check_belongs(checkpoint, config=other, **digests)


def losing(values: Sequence[float]) -> Callable[[], loop.Validation]:
    """Validate to given values, one after another."""
    left = iter(values)

    def validate() -> loop.Validation:
        value = next(left)
        return loop.Validation(value, {"val/loss": value})

    return validate


PATIENT = {"val_check_interval": 2, "early_stopping_patience": 2, "checkpoint_interval": 3}


def test_patience_ends_the_training_and_the_best_weights_are_left(tmp_path: Path) -> None:
    values = [3.0, 1.0, 2.0, math.nan, 0.0]
    stopped, best = Line(), Line()
    record = train(stopped, config(**PATIENT), tmp_path / "stopped", validate=losing(values))
    train(best, config(max_steps=STEPS, stop_step=4), tmp_path / "best")
    assert record.series("val/loss")[:3] == values[:3]
    assert len(record.series("train/loss")) == 8, "two validations without a better value: steps 6 and 8"
    assert torch.equal(stopped.linear.weight, best.linear.weight), "those of step 4, the best validation"
    kept = checkpoints.newest(tmp_path / "stopped").checkpoint
    assert (kept.step, kept.patience["best_step"], kept.patience["stale"]) == (8, 4, 2)
    again = train(Line(), config(**PATIENT), tmp_path / "stopped", validate=losing([]))
    assert not again.points, "a training that patience ended is over"


def test_an_interrupted_patience_ends_where_it_would_have(tmp_path: Path) -> None:
    values = [3.0, 1.0, 2.0, 1.5, 0.0, 0.0]
    whole, resumed = Line(), Line()
    train(whole, config(**PATIENT), tmp_path / "whole", validate=losing(values))
    with pytest.raises(Interrupted):
        train(Line(), config(**PATIENT), tmp_path / "resumed", until=5, validate=losing(values))
    rest = train(resumed, config(**PATIENT), tmp_path / "resumed", validate=losing(values[2:]))
    assert len(rest.series("train/loss")) == 3
    assert torch.equal(whole.linear.weight, resumed.linear.weight)


@pytest.mark.parametrize("broken_off", [4, STEPS])
def test_a_validation_that_a_signal_breaks_off_is_made_up_for(tmp_path: Path, broken_off: int) -> None:
    values = [3.0, 1.0, 2.0, 0.9, 1.5, 0.7]
    done = broken_off // 2 - 1
    before = losing(values[:done])

    def ending() -> loop.Validation:
        try:
            return before()
        except StopIteration:
            raise Interrupted(15) from None

    run = config(**{**PATIENT, "checkpoint_interval": 100})
    whole, resumed = Line(), Line()
    expected = train(whole, run, tmp_path / "whole", validate=losing(values))
    with pytest.raises(Interrupted):
        train(Line(), run, tmp_path / "resumed", validate=ending)
    assert checkpoints.newest(tmp_path / "resumed").checkpoint.step == broken_off
    rest = train(resumed, run, tmp_path / "resumed", validate=losing(values[done:]))
    assert rest.points == expected.points[-len(rest.points) :]
    assert rest.points[0] == (broken_off - 1, {"val/loss": values[done]})
    assert torch.equal(whole.linear.weight, resumed.linear.weight)


@pytest.mark.parametrize("amsgrad", [True, False])
def test_moments_are_there_before_the_first_step_and_only_a_gradient_moves_them(amsgrad: bool) -> None:
    moved, still = (torch.ones(3, requires_grad=True) for _ in range(2))
    optimizer, again = (StableAdamW([moved, still], lr=0.1, amsgrad=amsgrad) for _ in range(2))
    names = {"step", "exp_avg", "exp_avg_sq"} | ({"max_exp_avg_sq"} if amsgrad else set())
    assert set(optimizer.state[moved]) == set(optimizer.state[still]) == names
    moved.grad = torch.ones(3)
    optimizer.step()
    assert (optimizer.state[moved]["step"], optimizer.state[still]["step"]) == (1, 0)
    assert torch.equal(still.detach(), torch.ones(3))
    again.load_state_dict(optimizer.state_dict())
    assert torch.equal(again.state[moved]["exp_avg"], optimizer.state[moved]["exp_avg"])


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_other_optimizers_take_their_plain_step(
    name: str, kind: type[torch.optim.Optimizer], tmp_path: Path
) -> None:
    values = {"optimizer": name, "learning_rate": 0.01, "weight_decay": 0.1, "gradient_clip": 0.0}
    detector, plain = Line(), Line()
    train(detector, config(**values, max_steps=1, warmup_steps=0, batch_size=10), tmp_path)
    optimizer = kind(plain.parameters(), lr=0.01, weight_decay=0.1)  # type: ignore[call-arg]
    batch = Batch(DATA, torch.zeros(len(DATA), dtype=torch.int64), DATA)
    plain.training_loss(batch, step=0).total.backward()
    optimizer.step()
    torch.testing.assert_close(detector.linear.weight, plain.linear.weight)
