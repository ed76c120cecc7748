"""What is worked out again in the backward pass gives the values and gradients of plain autograd."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinomaly_hd.models.recompute import (
    Kept,
    divided,
    linear_of_gelu,
    linear_of_norm,
    masked,
    mlp_of_norm,
    positive_feature,
)


def leaf(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return x.requires_grad_()


def value_and_gradients(out: Tensor, *given: Tensor) -> list[Tensor]:
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), given)]


def assert_equal(ours: list[Tensor], plain: list[Tensor]) -> None:
    for one, other in zip(ours, plain, strict=True):
        assert torch.equal(one, other)


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


def test_positive_feature_is_elu_plus_one_and_its_slope_does_not_jump_at_zero() -> None:
    x = torch.tensor([-200.0, -20.0, -1.0, -0.0, 0.0, 1e-9, 0.5, 30.0], requires_grad=True)
    feature = positive_feature(x)
    (slope,) = torch.autograd.grad(feature.sum(), x)
    assert torch.equal(feature.detach(), torch.exp(x.detach().clamp(max=0)) + F.relu(x.detach()))
    wide = x.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(F.elu(wide).sum(), wide)
    assert torch.allclose(slope.double(), expected, rtol=1e-6, atol=1e-40)
    assert slope[3:5].tolist() == [1.0, 1.0]


def test_positive_feature_equals_autograd_bit_by_bit_on_a_permuted_view() -> None:
    x = leaf(2, 7, 3, 4)
    view = x.permute(0, 2, 1, 3)
    plain = value_and_gradients(torch.exp(view.clamp(max=0)) + F.relu(view), x)
    ours = positive_feature(view)
    assert ours.is_contiguous()
    assert_equal(value_and_gradients(ours, x), plain)


def test_quotient_equals_autograd_and_lies_token_by_token() -> None:
    value, denominator = leaf(2, 3, 5, 4), (leaf(2, 3, 5, 1, seed=1).detach().abs() + 1).requires_grad_()
    ours = divided(value, denominator)
    assert ours.transpose(1, 2).is_contiguous()
    assert_equal(
        value_and_gradients(ours, value, denominator),
        value_and_gradients(value / denominator, value, denominator),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_mask_equals_a_product_and_keeps_a_byte_a_value(dtype: torch.dtype) -> None:
    x = leaf(3, 50, 8, dtype=dtype)
    kept = torch.rand(3, 50, 8, generator=torch.Generator().manual_seed(1)) >= 0.3
    factor = kept.to(dtype).mul_(1 / 0.7)
    ours = value_and_gradients(masked(x, Kept(kept, 1 / 0.7)), x)
    assert_equal(ours, value_and_gradients(x * factor, x))
    assert kept_bytes(lambda: masked(x, Kept(kept, 1 / 0.7))) == kept.nelement()


def test_dropout_between_gelu_and_a_linear_layer_equals_autograd() -> None:
    torch.manual_seed(0)
    x, layer = leaf(3, 50, 32), nn.Linear(32, 8)
    kept = Kept(torch.rand(3, 50, 32) >= 0.3, 1 / 0.7)
    given = (x, *layer.parameters())
    ours = value_and_gradients(linear_of_gelu(x * 1, layer=layer, kept=kept), *given)
    assert_equal(ours, value_and_gradients(layer(F.gelu(x * 1) * kept.scale * kept.mask), *given))
    # Beside the parameters: its input and a byte a value, not the hidden layer once more.
    hidden = x.nelement() * x.element_size()
    most = hidden + kept.mask.nelement() + layer.weight.nelement() * 4
    assert kept_bytes(lambda: linear_of_gelu(x, layer=layer, kept=kept)) <= most
    with torch.no_grad():
        before = x.clone()
        assert torch.equal(linear_of_gelu(x, layer=layer, kept=kept), ours[0])
        assert torch.equal(x, before)


def norm_and_linear(bias: bool) -> tuple[nn.LayerNorm, nn.Linear]:
    torch.manual_seed(0)
    norm, linear = nn.LayerNorm(8, eps=1e-8), nn.Linear(8, 12, bias=bias)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm, linear


@pytest.mark.parametrize("bias", [True, False])
def test_linear_of_norm_equals_autograd(bias: bool) -> None:
    norm, linear = norm_and_linear(bias)
    x = leaf(3, 5, 8)
    given = (x, *norm.parameters(), *linear.parameters())
    ours = value_and_gradients(linear_of_norm(x, norm=norm, layer=linear), *given)
    assert_equal(ours, value_and_gradients(linear(norm(x)), *given))


def mlp_and_norm() -> tuple[nn.Sequential, nn.LayerNorm]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)), nn.LayerNorm(8)


def test_mlp_equals_autograd() -> None:
    mlp, norm = mlp_and_norm()
    x = leaf(3, 5, 8)
    given = (x, *norm.parameters(), *mlp.parameters())
    plain = mlp(norm(x))
    assert_equal(
        value_and_gradients(mlp_of_norm(x, norm=norm, mlp=mlp), *given), value_and_gradients(plain, *given)
    )


def test_without_gradients_the_mlp_writes_over_its_hidden_layer_and_gives_the_same() -> None:
    mlp, norm = mlp_and_norm()
    x = leaf(3, 5, 8)
    with torch.no_grad():
        assert torch.equal(mlp_of_norm(x, norm=norm, mlp=mlp), mlp_of_norm(x, norm=norm, mlp=mlp))
        assert torch.equal(mlp_of_norm(x, norm=norm, mlp=mlp), mlp(norm(x)))


def test_under_autocast_gradients_are_those_of_autocast() -> None:
    mlp, norm = mlp_and_norm()
    x = leaf(3, 5, 8)
    given = (x, *norm.parameters(), *mlp.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, plain = mlp_of_norm(x, norm=norm, mlp=mlp), mlp(norm(x))
    assert ours.dtype == plain.dtype == torch.bfloat16
    for one, other in zip(value_and_gradients(ours, *given), value_and_gradients(plain, *given), strict=True):
        assert one.dtype == other.dtype
        assert torch.allclose(one.float(), other.float(), rtol=2e-2, atol=2e-2)


def test_less_is_kept_than_by_autograd() -> None:
    mlp, norm = mlp_and_norm()
    x = leaf(64, 8)
    ours = kept_bytes(lambda: mlp_of_norm(x, norm=norm, mlp=mlp))
    plain = kept_bytes(lambda: mlp(norm(x)))
    assert ours < 0.65 * plain
    assert kept_bytes(lambda: positive_feature(x * 1)) < 0.5 * kept_bytes(
        lambda: torch.exp((x * 1).clamp(max=0)) + F.relu(x * 1)
    )
