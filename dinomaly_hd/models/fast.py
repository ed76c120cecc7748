"""Kernels that save time or memory on this processor and move no number beyond rounding."""

# B batch, h heads, N tokens, d width of a head; M rows, K inputs and N outputs of a linear layer

import math
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Size, Tensor, nn
from torch.autograd.function import once_differentiable

from dinomaly_hd.errors import ConfigError

SWITCH = "DINOMALY_HD_KERNELS"
MLP_RATIO = 4  # width of a transformer block's hidden layer over that of its tokens
CACHED_BYTES = 10 * 2**20  # of a widest layer: two images with ViT-S/14 at 392 px, one with ViT-B/14
AMD, CPUINFO = "AuthenticAMD", Path("/proc/cpuinfo")
SMALLEST = 2**14  # values of a weight from which on oneDNN pays: a call costs some 20 microseconds


def kernels(device: str = "cpu") -> Literal["plain", "lean", "onednn"]:
    """Return which kernels run on a device of this type; each run's results.json says it.

    ``plain``, where the environment has DINOMALY_HD_KERNELS=plain, and in a graph for other programs
    (``torch.export``): each function here is the plain formula that stands in it, and autograd does the rest.
    ``onednn``: what ``lean`` has, and oneDNN's products.
    """
    return "plain" if torch.compiler.is_exporting() else _suitable(device)


@cache
def _suitable(device: str) -> Literal["plain", "lean", "onednn"]:
    # By what the processor is, never by a stopwatch, whose noise would let two runs of a seed, or a run and
    # its resumed half, round otherwise. PyTorch's MKL takes AVX-512 on Intel's processors only, oneDNN
    # wherever it is; with AVX2 no gain of oneDNN's is sure (benchmarks/limits.md).
    if asked := os.environ.get(SWITCH):
        if asked != "plain":
            raise ConfigError(f"{SWITCH}={asked}: expected plain, or nothing for what suits the processor")
        return "plain"
    suits = device == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX512" and CPUINFO.is_file()
    return "onednn" if suits and AMD in CPUINFO.read_text() and _onednn_is_right() else "lean"


def pieces(batch: Tensor, *, widest: int) -> tuple[Tensor, ...]:
    """Return a batch (B, ...) in pieces whose widest layer, ``widest`` values an image, a cache holds."""
    # On a CPU: sooner, and in less memory. A GPU wants many images at once.
    if kernels() == "plain" or batch.device.type != "cpu":
        return (batch,)
    return torch.split(batch, max(1, CACHED_BYTES // (widest * torch.float32.itemsize)))


# ---- linear layers by oneDNN where it is faster, else by PyTorch's choice ----


def _onednn_is_right() -> bool:
    """Return whether the operator, which PyTorch promises nobody, does what is expected of it."""
    sizes = (2, 2, 32), (8, 32), (8,)
    x, weight, bias = (torch.linspace(-1, 1, math.prod(size)).sin().view(size) for size in sizes)
    try:
        return torch.allclose(_onednn(x, weight, bias), F.linear(x, weight, bias), atol=1e-4)
    except (AttributeError, RuntimeError, TypeError):
        return False


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], ""))


def _suits_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        kernels(x.device.type) == "onednn"
        and x.dtype == weight.dtype == torch.float32
        and weight.nelement() >= SMALLEST
        and not torch.is_autocast_enabled("cpu")
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``F.linear(x, weight, bias)``, with gradients: x (..., K), weight (N, K), bias (N,)."""
    if not _suits_onednn(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        return cast(Tensor, _Linear.apply(x, weight, bias))
    return _onednn(x, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator,unused-ignore]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        of_x = of_weight = None
        gradient_MN, (x, weight) = gradient.flatten(0, -2), ctx.saved_tensors
        if ctx.needs_input_grad[1]:
            x_MK = x.flatten(0, -2)
            # oneDNN's operator copies the second factor if it is transposed: better the narrower one.
            if gradient_MN.shape[1] > x_MK.shape[1] and _suits_onednn(x_MK.t(), gradient_MN.t()):
                of_weight = linear(x_MK.t(), gradient_MN.t()).t()
            else:
                of_weight = linear(gradient_MN.t(), x_MK.t())
            del x, x_MK  # made again (``linear_of``) and wide, as its gradient is: never both at once
        if ctx.needs_input_grad[0]:  # what a frozen encoder gives needs none
            of_x = linear(gradient, weight.t())
        return of_x, of_weight, gradient_MN.sum(dim=0) if ctx.needs_input_grad[2] else None


class Linear(nn.Linear):
    """A linear layer of the same parameters, multiplied by ``linear``."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


# ---- what the backward pass makes again instead of keeping it: the same bits, the same gradients ----


def linear_of(make: Callable[[Tensor], Tensor], x: Tensor, *, layer: nn.Module) -> Tensor:
    """Return ``layer(make(x))`` and keep ``x`` instead of ``make(x)``, a cheap function such as a norm."""
    made = make(x)
    if kernels() == "plain" or not torch.is_grad_enabled():
        return layer(made)  # type: ignore[no-any-return]
    given, place = x.detach(), made.data_ptr()

    # Under autocast the layer keeps a copy of its own, of half the size, which stays.
    def pack(kept: Tensor) -> Tensor | Size:
        return kept.shape if kept.data_ptr() == place and kept.is_contiguous() else kept

    def unpack(kept: Tensor | Size) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        assert not torch.is_grad_enabled(), "what is made again has no graph: differentiate once"
        return make(given).view(kept)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return layer(made)  # type: ignore[no-any-return]


def gelu_to_spare() -> Callable[[Tensor], Tensor]:
    """Return GELU; where nothing has gradients it writes over its input, in half the time."""
    kept = torch.is_grad_enabled() or kernels() == "plain"
    return F.gelu if kept else cast(Any, torch.ops.aten.gelu_)


def positive_feature(x: Tensor) -> Tensor:
    """Return elu(x) + 1, contiguous, ready for a batched matrix product, and all that is kept."""
    if kernels() == "plain":
        return x.clamp(max=0).exp() + F.relu(x)
    return cast(Tensor, _PositiveFeature.apply(x))


class _PositiveFeature(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        # exp(x) below zero, where elu's sum would cancel to 0 (from -16.75 in float32).
        feature = torch.clamp(x, max=0, out=torch.empty(x.shape, dtype=x.dtype, device=x.device))
        feature.exp_().add_(F.relu(x))
        ctx.save_for_backward(feature)
        return feature

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator,unused-ignore]
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # The slope is exp(x), the feature itself, up to x = 0, and 1 above, where the feature exceeds 1.
        return gradient * cast(Tensor, ctx.saved_tensors[0]).clamp(max=1)


def divided(value_BhNd: Tensor, denominator_BhN1: Tensor) -> Tensor:
    """Return the quotient (B, h, N, d), laid out token by token as the projection after it reads it."""
    if kernels() == "plain":
        return value_BhNd / denominator_BhN1
    return cast(Tensor, _Divided.apply(value_BhNd, denominator_BhN1))


class _Divided(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value_BhNd: Tensor, denominator_BhN1: Tensor) -> Tensor:
        batch, heads, tokens, width = value_BhNd.shape
        out_BhNd = value_BhNd.new_empty(batch, tokens, heads, width).transpose(1, 2)
        torch.div(value_BhNd, denominator_BhN1, out=out_BhNd)
        ctx.save_for_backward(out_BhNd, denominator_BhN1)  # which the projection keeps as well
        return out_BhNd

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator,unused-ignore]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        out_BhNd, denominator_BhN1 = ctx.saved_tensors
        of_denominator = (-gradient * (out_BhNd / denominator_BhN1)).sum(dim=-1, keepdim=True)
        return gradient / denominator_BhN1, of_denominator
