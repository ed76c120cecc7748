"""Kernels that save time or memory on this processor and move no number beyond rounding.

``ON`` is the one switch: without it every function here is the plain formula that stands in it.
"""

import platform
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.autograd.function import once_differentiable

ON = True
MLP_RATIO = 4
"""Width of a transformer block's hidden layer over that of its tokens."""
CACHED_BYTES = 10 * 2**20
"""Of a widest layer: two images with ViT-S/14 at 392 px, one with ViT-B/14."""
VENDOR = "AuthenticAMD"
CPUINFO = Path("/proc/cpuinfo")
SMALLEST = 2**14
"""Values of a weight from which on oneDNN pays: each of its calls costs some 20 microseconds."""
TOLERANCE = 1e-4


def pieces(batch: Tensor, *, widest: int) -> tuple[Tensor, ...]:
    """Return a batch (B, ...) in pieces whose widest layer stays in a CPU's cache: sooner, in less memory.

    ``widest`` is the number of values in one image's widest layer. A GPU wants many images at once and gets
    the batch whole.
    """
    if not ON or batch.device.type != "cpu":
        return (batch,)
    return torch.split(batch, max(1, CACHED_BYTES // (widest * torch.float32.itemsize)))


# Linear layers by the kernels that are fastest on this processor: oneDNN's on AMD's, else PyTorch's choice.
# PyTorch multiplies float32 matrices on x86 with MKL, which takes its AVX-512 kernels on Intel's processors
# only. oneDNN, which PyTorch has for convolutions, takes them wherever they are (benchmarks/limits.md).


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``F.linear(x, weight, bias)``, with gradients: x (..., K), weight (N, K), bias (N,)."""
    if not _suits_onednn(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        out: Tensor = _Linear.apply(x, weight, bias)
        return out
    return _onednn(x, weight, bias)


class Linear(nn.Linear):
    """A linear layer of the same parameters, multiplied by ``linear``."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def with_fast_products(model: nn.Module) -> nn.Module:
    """Let all plain linear layers of a model multiply by ``linear``; its parameters and their names stay."""
    for layer in model.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = Linear
    return model


# Gradients of a linear layer, whose output's gradient is (..., N) and which was given (..., K). In a backward
# pass autocast is off: products run in the gradient's type, as its own would.


def input_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient (..., K) of a linear layer's input."""
    return linear(gradient, weight.to(gradient.dtype).t())


def weight_gradient(gradient: Tensor, given: Tensor) -> Tensor:
    """Return the gradient (N, K) of a linear layer's weight."""
    gradient_MN, given_MK = gradient.flatten(0, -2), given.flatten(0, -2).to(gradient.dtype)
    # The factor that oneDNN's operator copies is the narrower one.
    wider = gradient_MN.shape[1] > given_MK.shape[1]
    if wider and _suits_onednn(given_MK.t(), gradient_MN.t()):
        return linear(given_MK.t(), gradient_MN.t()).t()
    return linear(gradient_MN.t(), given_MK.t())


def bias_gradient(gradient: Tensor) -> Tensor:
    """Return the gradient (N,) of a linear layer's bias."""
    return gradient.flatten(0, -2).sum(dim=0)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator,unused-ignore]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            input_gradient(gradient, weight) if of_x else None,  # what a frozen encoder gives needs none
            weight_gradient(gradient, x) if of_weight else None,
            bias_gradient(gradient) if of_bias else None,
        )


def _suits_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        ON
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and weight.nelement() >= SMALLEST
        and not torch.is_autocast_enabled("cpu")
        and onednn_is_faster()
    )


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


@cache
def onednn_is_faster() -> bool:
    """Return whether the processor is one on which it was measured to be, and PyTorch's operator is there."""
    return _vendor() == VENDOR and torch._C._has_mkldnn and _onednn_is_right()


def _vendor() -> str:
    """Return who made the processor, "" where the system does not say it."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return platform.processor().rpartition(", ")[2]  # Windows: "AMD64 Family 25 Model 33, AuthenticAMD"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")


def _onednn_is_right() -> bool:
    """Return whether the operator, which PyTorch promises nobody, does what is expected of it."""
    with torch.no_grad():
        x, weight, bias = (torch.linspace(-1, 1, size).sin() for size in (4 * 32, 8 * 32, 8))
        x, weight = x.view(2, 2, 32), weight.view(8, 32)
        try:
            found = _onednn(x, weight, bias)
        except (AttributeError, RuntimeError, TypeError):
            return False
        return torch.allclose(found, F.linear(x, weight, bias), atol=TOLERANCE)


# Steps whose backward pass works out again what it would otherwise keep: same values, same gradients. Decoder
# blocks and the bottleneck keep most of what a training step holds in memory; their cheap elementwise results
# are rebuilt from what has to be kept anyway.


def positive_feature(x: Tensor) -> Tensor:
    """Return elu(x) + 1 as exp(x) below zero, where the sum would cancel to 0 (from -16.75 in float32).

    The result is contiguous, ready for a batched matrix product, and all that is kept.
    """
    if not ON:
        return x.clamp(max=0).exp() + F.relu(x)
    feature: Tensor = _PositiveFeature.apply(x)
    return feature


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


def divided(value_BhNd: Tensor, denominator_BhN1: Tensor) -> Tensor:
    """Return the quotient (B, h, N, d), laid out token by token as the projection after it reads it."""
    if not ON:
        return value_BhNd / denominator_BhN1
    out: Tensor = _Divided.apply(value_BhNd, denominator_BhN1)
    return out


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


class Kept(NamedTuple):
    """What dropout keeps (boolean, of the shape of its input) and the factor that makes up for the rest."""

    mask: Tensor
    scale: float

    def of(self, x: Tensor) -> Tensor:
        """Write over ``x``, where dropout is no step of its own for autograd."""
        return x.mul_(self.scale).mul_(self.mask)


def draw_kept(like: Tensor, *, p: float, generator: Generator | None) -> Kept | None:
    """Return what dropout with probability ``p`` keeps of a tensor; None, all, without a generator."""
    if generator is None or p == 0:
        return None
    # Uniform numbers and a comparison: less than half the time of bernoulli_ on the CPU.
    mask = torch.rand(like.shape, generator=generator, device=like.device) >= p
    return Kept(mask, 1.0 if p == 1 else 1 / (1 - p))


def dropout(x: Tensor, *, p: float, generator: Generator | None) -> Tensor:
    """Zero elements with probability ``p`` and scale the rest by 1/(1-p); identity without a generator."""
    kept = draw_kept(x, p=p, generator=generator)
    return x if kept is None else masked(x, kept)


def masked(x: Tensor, kept: Kept) -> Tensor:
    """Return ``x``, scaled, where ``kept`` says so, else 0, and keep the mask only, a byte a value."""
    if not ON:
        return x * kept.scale * kept.mask
    out: Tensor = _Masked.apply(x, kept)
    return out


class _Masked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Kept) -> Tensor:
        ctx.save_for_backward(kept.mask)
        ctx.scale = kept.scale
        return (x * kept.scale).mul_(kept.mask)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator,unused-ignore]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return (gradient * ctx.scale).mul_(ctx.saved_tensors[0]), None


def linear_of_gelu(x: Tensor, *, layer: nn.Linear, kept: Kept | None = None) -> Tensor:
    """Return ``layer(gelu(x))``, with dropout between where ``kept`` is given, and keep ``x`` and the mask.

    Without gradients, and without dropout, it writes over ``x``.
    """
    if not ON:
        return layer(F.gelu(x) if kept is None else masked(F.gelu(x), kept))  # type: ignore[no-any-return]
    if kept is None and not torch.is_grad_enabled():
        return linear(torch.ops.aten.gelu_(x), layer.weight, layer.bias)
    out: Tensor = _LinearOfGelu.apply(x, layer.weight, layer.bias, kept)
    return out


class _LinearOfGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, kept: Kept | None) -> Tensor:
        ctx.save_for_backward(x, weight, None if kept is None else kept.mask)
        ctx.scale = None if kept is None else kept.scale
        return linear(_dropped_gelu(x, kept), weight, bias)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator,unused-ignore]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mask = ctx.saved_tensors
        kept = None if mask is None else Kept(mask, ctx.scale)
        # First what needs the hidden layer, the widest, then what is as wide itself: never both at once.
        of_weight = weight_gradient(gradient, _dropped_gelu(x, kept)).to(weight.dtype)
        of_x = input_gradient(gradient, weight).to(x.dtype)
        of_x = of_x if kept is None else kept.of(of_x)
        torch.ops.aten.gelu_backward.grad_input(of_x, x, grad_input=of_x)
        return of_x, of_weight, bias_gradient(gradient).to(weight.dtype), None


def _dropped_gelu(x: Tensor, kept: Kept | None) -> Tensor:
    return F.gelu(x) if kept is None else kept.of(F.gelu(x))


def linear_of_norm(x: Tensor, *, norm: nn.LayerNorm, layer: nn.Linear) -> Tensor:
    """Return ``layer(norm(x))`` without keeping ``norm(x)``; ``norm`` is over the last dimension."""
    if not ON:
        return layer(norm(x))  # type: ignore[no-any-return]
    out: Tensor = _LinearOfNorm.apply(x, norm.weight, norm.bias, norm.eps, layer.weight, layer.bias)
    return out


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
        of_weight = weight_gradient(gradient, normed).to(weight.dtype)
        of_normed = input_gradient(gradient, weight).to(normed.dtype)
        of_x, of_norm_weight, of_norm_bias = torch.ops.aten.native_layer_norm_backward(
            of_normed, wide, shape, mean, scale, norm_weight, norm_bias, [True, True, True]
        )
        # A linear layer may have no bias.
        of_bias = bias_gradient(gradient).to(weight.dtype) if ctx.needs_input_grad[-1] else None
        return of_x.to(x.dtype), of_norm_weight, of_norm_bias, None, of_weight, of_bias


def mlp_of_norm(x: Tensor, *, norm: nn.LayerNorm, mlp: nn.Sequential) -> Tensor:
    """Return ``mlp(norm(x))`` of a Linear, GELU, Linear, and keep ``x`` and the hidden layer only."""
    first, last = cast(nn.Linear, mlp[0]), cast(nn.Linear, mlp[2])
    return linear_of_gelu(linear_of_norm(x, norm=norm, layer=first), layer=last)
