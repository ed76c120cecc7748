"""Linear layers by another kernel: the same values and gradients, and only where it is faster and right."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinomaly_hd.models import pieces as pieces_module
from dinomaly_hd.models import products
from dinomaly_hd.models.pieces import pieces
from dinomaly_hd.models.products import (
    Linear,
    bias_gradient,
    input_gradient,
    linear,
    weight_gradient,
    with_fast_products,
)

WIDE, NARROW = 192, 96


@pytest.fixture(params=[True, False], ids=["onednn", "plain"])
def onednn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param and not products._onednn_is_right():
        pytest.skip("this PyTorch has no such operator")
    monkeypatch.setattr(products, "onednn_is_faster", lambda: request.param)
    return bool(request.param)


def operators(work: nn.Module, x: Tensor) -> set[str]:
    with torch.profiler.profile() as profile:
        work(x)
    return {event.key for event in profile.key_averages()}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(WIDE, NARROW), (NARROW, WIDE)])
def test_values_and_gradients_are_those_of_a_linear_layer(
    inputs: int, outputs: int, bias: bool, onednn: bool
) -> None:
    del onednn
    layer = Linear(inputs, outputs, bias=bias)
    plain = nn.Linear(inputs, outputs, bias=bias, dtype=torch.float64)
    plain.load_state_dict(layer.state_dict())
    x = random(3, 7, inputs).requires_grad_()
    wide = x.detach().double().requires_grad_()
    weights = random(3, 7, outputs, seed=1)
    (layer(x) * weights).sum().backward()
    (plain(wide) * weights).sum().backward()
    torch.testing.assert_close(layer(x).double(), plain(wide), atol=1e-5, rtol=0)
    for one, other in zip((x, *layer.parameters()), (wide, *plain.parameters()), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(one.grad.double(), other.grad, atol=2e-5, rtol=1e-5)


def test_only_what_has_a_gradient_gets_one(onednn: bool) -> None:
    del onednn
    layer = Linear(WIDE, NARROW).requires_grad_(False)
    x = random(2, WIDE).requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None
    assert layer.bias.grad is None


def test_the_kernel_is_the_chosen_one(onednn: bool) -> None:
    found = operators(Linear(WIDE, NARROW), random(4, WIDE))
    assert ("mkldnn::_linear_pointwise" in found) == onednn


def test_with_onednn_a_row_does_not_depend_on_the_others(onednn: bool) -> None:
    if not onednn:
        pytest.skip("MKL takes other kernels for few rows")
    weight, bias, x = random(WIDE, NARROW), random(WIDE, seed=1), random(200, NARROW, seed=2)
    whole = linear(x, weight, bias)
    for rows in (2, 7, 64, 100):
        assert torch.equal(linear(x[50 : 50 + rows], weight, bias), whole[50 : 50 + rows])


@pytest.mark.parametrize(
    ("weight", "x"),
    [
        (random(8, 8), random(2, 8)),
        (random(WIDE, WIDE).double(), random(2, WIDE).double()),
        (random(WIDE, WIDE).bfloat16(), random(2, WIDE).bfloat16()),
    ],
    ids=["small", "float64", "bfloat16"],
)
def test_all_else_is_pytorchs_own(weight: Tensor, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    assert torch.equal(linear(x, weight), F.linear(x, weight))


def test_under_autocast_products_are_autocasts(onednn: bool) -> None:
    del onednn
    layer, x = Linear(WIDE, WIDE), random(4, WIDE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
        assert layer(x).dtype == torch.bfloat16


def test_gradients_run_in_the_type_of_the_outputs_gradient() -> None:
    gradient = random(2, 4, 8).bfloat16()
    found = input_gradient(gradient, random(8, 6)), weight_gradient(gradient, random(2, 4, 6))
    assert [each.dtype for each in found] == [torch.bfloat16] * 2
    assert [tuple(each.shape) for each in (*found, bias_gradient(gradient))] == [(2, 4, 6), (8, 6), (8,)]


def test_a_model_keeps_its_parameters_and_their_names() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDE, WIDE), nn.ReLU(), nn.Linear(WIDE, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = random(5, WIDE)
    expected = model(x)
    after = with_fast_products(model)
    assert [type(layer) for layer in after] == [Linear, nn.ReLU, Linear]  # type: ignore[arg-type]
    assert list(after.state_dict()) == list(before)
    torch.testing.assert_close(after(x), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("vendor", "right", "expected"),
    [("AuthenticAMD", True, True), ("GenuineIntel", True, False), ("AuthenticAMD", False, False)],
)
def test_the_choice_is_the_processors_and_the_operators(
    vendor: str, right: bool, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: some\n")
    monkeypatch.setattr(products, "CPUINFO", file)
    monkeypatch.setattr(products, "_onednn_is_right", lambda: right)
    assert products.onednn_is_faster.__wrapped__() == expected


@pytest.mark.parametrize("processor", ["AMD64 Family 25 Model 33 Stepping 0, AuthenticAMD", "", "arm"])
def test_without_cpuinfo_the_platform_is_asked(
    processor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "CPUINFO", tmp_path / "none")
    monkeypatch.setattr(products.platform, "processor", lambda: processor)
    assert (products._vendor() == products.VENDOR) == processor.endswith("AuthenticAMD")


@pytest.mark.parametrize("fault", ["raises", "is wrong"])
def test_an_operator_that_is_not_what_it_was_is_not_used(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def operator(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if fault == "raises":
            raise AttributeError("no such operator")
        return F.linear(x, weight, bias) + 1e-3

    monkeypatch.setattr(products, "_onednn", operator)
    assert not products._onednn_is_right()


def test_pieces_are_the_batch_and_no_larger_than_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces_module, "CACHED_BYTES", 4 * 100)
    batch = random(7, 3)
    assert [len(part) for part in pieces(batch, widest=30)] == [3, 3, 1]
    assert [len(part) for part in pieces(batch, widest=1000)] == [1] * 7
    assert torch.equal(torch.cat(pieces(batch, widest=30)), batch)
    assert [len(part) for part in pieces(batch[:0], widest=30)] == [0]
    assert len(pieces(batch.to("meta"), widest=30)) == 1, "only a CPU's batch is split"
