"""Steps whose backward pass works out again what it would otherwise keep: same values, same gradients.

A decoder block keeps most of what a training step holds in memory; its cheap elementwise results are
rebuilt from what has to be kept anyway.
"""

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _PositiveFeature(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        feature = torch.clamp(x, max=0, out=torch.empty(x.shape, dtype=x.dtype, device=x.device))
        feature.exp_().add_(F.relu(x))
        ctx.save_for_backward(feature)
        return feature

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator,unused-ignore]
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # The slope is exp(x), the feature itself, up to x = 0, and 1 above, where the feature exceeds 1.
        feature: Tensor = ctx.saved_tensors[0]
        return gradient * feature.clamp(max=1)


def positive_feature(x: Tensor) -> Tensor:
    """Return elu(x) + 1 as exp(x) below zero, where the sum would cancel to 0 (from -16.75 in float32).

    The result is contiguous, ready for a batched matrix product, and all that is kept.
    """
    feature: Tensor = _PositiveFeature.apply(x)
    return feature


class _Divided(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value_BhNd: Tensor, denominator_BhN1: Tensor) -> Tensor:
        batch, heads, tokens, width = value_BhNd.shape
        out_BhNd = value_BhNd.new_empty(batch, tokens, heads, width).transpose(1, 2)
        torch.div(value_BhNd, denominator_BhN1, out=out_BhNd)
        ctx.save_for_backward(out_BhNd, denominator_BhN1)
        return out_BhNd

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator,unused-ignore]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        out_BhNd, denominator_BhN1 = ctx.saved_tensors
        of_denominator = (-gradient * (out_BhNd / denominator_BhN1)).sum(dim=-1, keepdim=True)
        return gradient / denominator_BhN1, of_denominator


def divided(value_BhNd: Tensor, denominator_BhN1: Tensor) -> Tensor:
    """Return the quotient (B, h, N, d), laid out token by token as the projection after it reads it."""
    out: Tensor = _Divided.apply(value_BhNd, denominator_BhN1)
    return out


class _LinearOfGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(F.gelu(x), weight, bias)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator,unused-ignore]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        through = _through_linear(gradient, F.gelu(x), weight)
        return torch.ops.aten.gelu_backward(through.input, x), through.weight, through.bias


class _LinearOfNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        epsilon: float,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        normed, mean, scale = torch.native_layer_norm(
            x.to(norm_weight.dtype), x.shape[-1:], norm_weight, norm_bias, epsilon
        )
        ctx.save_for_backward(x, mean, scale, norm_weight, norm_bias, weight)
        ctx.epsilon = epsilon
        return F.linear(normed, weight, bias)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator,unused-ignore]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, scale, norm_weight, norm_bias, weight = ctx.saved_tensors
        wide, shape = x.to(norm_weight.dtype), x.shape[-1:]
        normed = F.layer_norm(wide, shape, norm_weight, norm_bias, ctx.epsilon)
        through = _through_linear(gradient, normed, weight)
        of_x, of_norm_weight, of_norm_bias = torch.ops.aten.native_layer_norm_backward(
            through.input, wide, shape, mean, scale, norm_weight, norm_bias, [True, True, True]
        )
        of_bias = through.bias if ctx.needs_input_grad[-1] else None  # a linear layer may have none
        return of_x.to(x.dtype), of_norm_weight, of_norm_bias, None, through.weight, of_bias


def linear_of_norm(x: Tensor, *, norm: nn.LayerNorm, linear: nn.Linear) -> Tensor:
    """Return ``linear(norm(x))`` without keeping ``norm(x)``; ``norm`` is over the last dimension."""
    out: Tensor = _LinearOfNorm.apply(x, norm.weight, norm.bias, norm.eps, linear.weight, linear.bias)
    return out


class _LinearGradients(NamedTuple):
    input: Tensor
    weight: Tensor
    bias: Tensor


def _through_linear(gradient: Tensor, given: Tensor, weight: Tensor) -> _LinearGradients:
    """Return the gradients of a linear layer's input, weight and bias.

    Autocast is off in a backward pass: the products run in the gradient's type, as its own would.
    """
    flat = gradient.flatten(0, -2)
    return _LinearGradients(
        (gradient @ weight.to(gradient.dtype)).to(given.dtype),
        (flat.t() @ given.flatten(0, -2).to(flat.dtype)).to(weight.dtype),
        flat.sum(dim=0).to(weight.dtype),
    )


def mlp_of_norm(x: Tensor, *, norm: nn.LayerNorm, mlp: nn.Sequential) -> Tensor:
    """Return ``mlp(norm(x))`` of a Linear, GELU, Linear, and keep ``x`` and the hidden layer only."""
    first, last = cast(nn.Linear, mlp[0]), cast(nn.Linear, mlp[2])
    hidden = linear_of_norm(x, norm=norm, linear=first)
    out: Tensor = _LinearOfGelu.apply(hidden, last.weight, last.bias)
    return out
