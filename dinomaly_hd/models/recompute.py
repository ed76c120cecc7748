"""Steps whose backward pass works out again what it would otherwise keep: same values, same gradients.

A decoder block keeps most of what a training step holds in memory; its cheap elementwise results are
rebuilt from what has to be kept anyway.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dinomaly_hd.models.products import linear, linear_backward


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


class _Masked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return (x * scale).mul_(kept)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator,unused-ignore]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return (gradient * ctx.scale).mul_(ctx.saved_tensors[0]), None, None


def masked(x: Tensor, kept: Tensor, *, scale: float) -> Tensor:
    """Return ``x * scale`` where ``kept`` is true, else 0; what is kept is the mask, a byte a value."""
    out: Tensor = _Masked.apply(x, kept, scale)
    return out


class _LinearOfGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return linear(F.gelu(x), weight, bias)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator,unused-ignore]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        through = linear_backward(gradient, F.gelu(x), weight)
        of_x = torch.ops.aten.gelu_backward.grad_input(through.input, x, grad_input=through.input)
        return of_x, through.weight, through.bias


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
        return linear(normed, weight, bias)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator,unused-ignore]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, scale, norm_weight, norm_bias, weight = ctx.saved_tensors
        wide, shape = x.to(norm_weight.dtype), x.shape[-1:]
        normed = F.layer_norm(wide, shape, norm_weight, norm_bias, ctx.epsilon)
        through = linear_backward(gradient, normed, weight)
        of_x, of_norm_weight, of_norm_bias = torch.ops.aten.native_layer_norm_backward(
            through.input, wide, shape, mean, scale, norm_weight, norm_bias, [True, True, True]
        )
        of_bias = through.bias if ctx.needs_input_grad[-1] else None  # a linear layer may have none
        return of_x.to(x.dtype), of_norm_weight, of_norm_bias, None, through.weight, of_bias


def linear_of_norm(x: Tensor, *, norm: nn.LayerNorm, layer: nn.Linear) -> Tensor:
    """Return ``layer(norm(x))`` without keeping ``norm(x)``; ``norm`` is over the last dimension."""
    out: Tensor = _LinearOfNorm.apply(x, norm.weight, norm.bias, norm.eps, layer.weight, layer.bias)
    return out


def mlp_of_norm(x: Tensor, *, norm: nn.LayerNorm, mlp: nn.Sequential) -> Tensor:
    """Return ``mlp(norm(x))`` of a Linear, GELU, Linear, and keep ``x`` and the hidden layer only."""
    first, last = cast(nn.Linear, mlp[0]), cast(nn.Linear, mlp[2])
    hidden = linear_of_norm(x, norm=norm, layer=first)
    if not torch.is_grad_enabled():
        return linear(torch.ops.aten.gelu_(hidden), last.weight, last.bias)
    out: Tensor = _LinearOfGelu.apply(hidden, last.weight, last.bias)
    return out
