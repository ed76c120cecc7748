"""Fast kernels give the values and gradients of plain ones: products, steps worked out again, pieces."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinomaly_hd.models import fast
from dinomaly_hd.models import fast as pieces_module
from dinomaly_hd.models import fast as products
from dinomaly_hd.models.fast import (
    Kept,
    Linear,
    bias_gradient,
    divided,
    input_gradient,
    linear,
    linear_of_gelu,
    linear_of_norm,
    masked,
    mlp_of_norm,
    pieces,
    positive_feature,
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
def test_values_and_gradients_are_a_linear_layers(
    inputs: int, outputs: int, bias: bool, onednn: bool
) -> None:
    layer = Linear(inputs, outputs, bias=bias)
    assert ("mkldnn::_linear_pointwise" in operators(layer, random(4, inputs))) == onednn
    plain = nn.Linear(inputs, outputs, bias=bias, dtype=torch.float64)
    plain.load_state_dict(layer.state_dict())
    x = random(3, 7, inputs).requires_grad_()
    wide = x.detach().double().requires_grad_()
    weights = random(3, 7, outputs, seed=1)
    (layer(x) * weights).sum().backward()
    (plain(wide) * weights).sum().backward()
    torch.testing.assert_close(layer(x).double(), plain(wide), atol=1e-5, rtol=0)
    for one, other in zip((x, *layer.parameters()), (wide, *plain.parameters()), strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, atol=2e-5, rtol=1e-5)
    layer.zero_grad()
    layer.requires_grad_(False)(x).sum().backward()
    assert not any(parameter.grad is not None for parameter in layer.parameters())
    if onednn:  # a row does not depend on the others; MKL takes other kernels for few rows
        rows = random(200, inputs, seed=2)
        whole = layer(rows)
        assert all(torch.equal(layer(rows[50 : 50 + n]), whole[50 : 50 + n]) for n in (2, 7, 64, 100))


def test_all_else_is_pytorchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    wide = random(WIDE, WIDE)
    for weight in (random(8, 8), wide.double(), wide.bfloat16()):
        assert torch.equal(linear(weight[:2], weight), F.linear(weight[:2], weight))
    monkeypatch.setattr(fast, "ON", False)
    assert "mkldnn::_linear_pointwise" not in operators(Linear(WIDE, NARROW), random(4, WIDE))


@pytest.mark.usefixtures("onednn")
def test_under_autocast_products_are_autocasts_and_gradients_of_the_outputs_type() -> None:
    layer, x = Linear(WIDE, WIDE), random(4, WIDE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
        assert layer(x).dtype == torch.bfloat16
    gradient = random(2, 4, 8).bfloat16()
    found = input_gradient(gradient, random(8, 6)), weight_gradient(gradient, random(2, 4, 6))
    assert [each.dtype for each in found] == [torch.bfloat16] * 2
    assert [tuple(each.shape) for each in (*found, bias_gradient(gradient))] == [(2, 4, 6), (8, 6), (8,)]


def test_a_model_keeps_its_parameters_and_their_names() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(WIDE, WIDE), nn.ReLU(), nn.Linear(WIDE, 3)), random(5, WIDE)
    names, expected = list(model.state_dict()), model(x)
    after: Any = with_fast_products(model)
    assert [type(layer) for layer in after] == [Linear, nn.ReLU, Linear]
    assert list(after.state_dict()) == names
    torch.testing.assert_close(after(x), expected, atol=1e-5, rtol=0)


def test_the_processor_and_the_operator_choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "CPUINFO", tmp_path / "cpuinfo")
    for cpuinfo, (vendor, right) in product((False, True), (("AMD", True), ("Intel", True), ("AMD", False))):
        name = {"AMD": "AuthenticAMD", "Intel": "GenuineIntel"}[vendor]
        if cpuinfo:
            products.CPUINFO.write_text(f"processor\t: 0\nvendor_id\t: {name}\nmodel name\t: some\n")
        monkeypatch.setattr(products.platform, "processor", lambda n=name: f"AMD64 Family 25 Model 33, {n}")
        monkeypatch.setattr(products, "_onednn_is_right", lambda r=right: r)
        assert products.onednn_is_faster.__wrapped__() == (right and vendor == "AMD")
    monkeypatch.undo()
    for operator in (None, lambda x, weight, bias: F.linear(x, weight, bias) + 1e-3):  # raises; is wrong
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
    monkeypatch.setattr(fast, "ON", False)
    assert len(pieces(batch, widest=30)) == 1


# What is worked out again in the backward pass


def leaf(*shape: int, seed: int = 0) -> Tensor:
    return random(*shape, seed=seed).requires_grad_()


def value_and_gradients(out: Tensor, *given: Tensor) -> list[Tensor]:
    weights = random(*out.shape, seed=9).to(out.dtype)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), given)]


def kept_bytes(work: Callable[[], Tensor]) -> int:
    """Return what autograd keeps for the backward pass, each storage once."""
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = work()
    del out
    return sum(kept.values())


def plain_feature(x: Tensor) -> Tensor:
    return torch.exp(x.clamp(max=0)) + F.relu(x)


def test_positive_feature_is_elu_plus_one_and_its_slope_does_not_jump_at_zero() -> None:
    x = torch.tensor([-200.0, -20.0, -1.0, -0.0, 0.0, 1e-9, 0.5, 30.0], requires_grad=True)
    feature = positive_feature(x)
    (slope,) = torch.autograd.grad(feature.sum(), x)
    assert torch.equal(feature.detach(), plain_feature(x.detach()))
    wide = x.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(F.elu(wide).sum(), wide)
    assert torch.allclose(slope.double(), expected, rtol=1e-6, atol=1e-40)
    assert slope[3:5].tolist() == [1.0, 1.0]


def mask(*shape: int) -> Kept:
    return Kept(torch.rand(*shape, generator=torch.Generator().manual_seed(1)) >= 0.3, 1 / 0.7)


def made_mlp() -> tuple[nn.LayerNorm, nn.Sequential]:
    torch.manual_seed(0)
    norm = nn.LayerNorm(8, eps=1e-8)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm, nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))


Work = Callable[[], Tensor]


def fused() -> dict[str, tuple[Work, Work, tuple[Tensor, ...]]]:
    """Return by name: what is worked out again, the same by autograd, and what has gradients."""
    x, value = leaf(2, 7, 3, 4), leaf(2, 3, 5, 4)
    below = (random(2, 3, 5, 1).abs() + 1).requires_grad_()
    view, kept, wide = x.permute(0, 2, 1, 3), mask(3, 50, 32), leaf(3, 50, 32)
    double = wide.detach().double().requires_grad_()
    norm, mlp = made_mlp()
    layer, plain, given = nn.Linear(32, 8), nn.Linear(8, 12, bias=False), leaf(3, 5, 8)
    normed = (given, *norm.parameters())

    def scaled(of: Tensor) -> Tensor:
        return kept.mask.to(of.dtype).mul_(kept.scale)

    return {
        "feature": (lambda: positive_feature(view), lambda: plain_feature(view), (x,)),
        "quotient": (lambda: divided(value, below), lambda: value / below, (value, below)),
        "mask": (lambda: masked(wide, kept), lambda: wide * scaled(wide), (wide,)),
        "mask, float64": (lambda: masked(double, kept), lambda: double * scaled(double), (double,)),
        "gelu and linear": (
            lambda: linear_of_gelu(wide * 1, layer=layer, kept=kept),
            lambda: layer(F.gelu(wide * 1) * kept.scale * kept.mask),
            (wide, *layer.parameters()),
        ),
        "norm and linear": (
            lambda: linear_of_norm(given, norm=norm, layer=mlp[0]),
            lambda: mlp[0](norm(given)),
            (*normed, *mlp[0].parameters()),
        ),
        "norm and linear without bias": (
            lambda: linear_of_norm(given, norm=norm, layer=plain),
            lambda: plain(norm(given)),
            (*normed, plain.weight),
        ),
        "norm and MLP": (
            lambda: mlp_of_norm(given, norm=norm, mlp=mlp),
            lambda: mlp(norm(given)),
            (*normed, *mlp.parameters()),
        ),
    }


@pytest.mark.parametrize("name", fused())
def test_values_and_gradients_equal_autograds_bit_by_bit(name: str) -> None:
    """Also where the switch is off; without gradients it writes over its hidden layer, not over its input."""
    work, plain, given = fused()[name]
    found, expected = value_and_gradients(work(), *given), value_and_gradients(plain(), *given)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast, "ON", False)
        off = value_and_gradients(work(), *given)
    for one, other, third in zip(found, expected, off, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, third)
    with torch.no_grad():
        assert torch.equal(work(), expected[0])
        assert torch.equal(work(), expected[0])


def test_results_lie_token_by_token_and_less_is_kept_than_by_autograd() -> None:
    assert positive_feature(leaf(2, 7, 3, 4).permute(0, 2, 1, 3)).is_contiguous()
    assert divided(leaf(2, 3, 5, 4), leaf(2, 3, 5, 1)).transpose(1, 2).is_contiguous()
    x, layer, kept = leaf(3, 50, 32), nn.Linear(32, 8), mask(3, 50, 32)
    assert kept_bytes(lambda: masked(x, kept)) == kept.mask.nelement(), "a byte a value"
    # Beside the parameters: its input and a byte a value, not the hidden layer once more.
    most = x.nelement() * x.element_size() + kept.mask.nelement() + layer.weight.nelement() * 4
    assert kept_bytes(lambda: linear_of_gelu(x, layer=layer, kept=kept)) <= most
    (norm, mlp), many = made_mlp(), leaf(64, 8)
    ours = kept_bytes(lambda: mlp_of_norm(many, norm=norm, mlp=mlp))
    assert ours < 0.65 * kept_bytes(lambda: mlp(norm(many)))
    ours = kept_bytes(lambda: positive_feature(many * 1))
    assert ours < 0.5 * kept_bytes(lambda: plain_feature(many * 1))


def test_under_autocast_gradients_are_those_of_autocast() -> None:
    (norm, mlp), x = made_mlp(), leaf(3, 5, 8)
    given = (x, *norm.parameters(), *mlp.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, plain = mlp_of_norm(x, norm=norm, mlp=mlp), mlp(norm(x))
    assert ours.dtype == plain.dtype == torch.bfloat16
    for one, other in zip(value_and_gradients(ours, *given), value_and_gradients(plain, *given), strict=True):
        assert one.dtype == other.dtype
        assert torch.allclose(one.float(), other.float(), rtol=2e-2, atol=2e-2)
