"""Linear layers by the kernels that are fastest on this processor: oneDNN's on AMD's, else PyTorch's choice.

PyTorch multiplies float32 matrices on x86 with MKL, which takes its AVX-512 kernels on Intel's processors
only. oneDNN, which PyTorch has for convolutions, takes them wherever they are (benchmarks/limits.md).
"""

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dinomaly_hd.models import fast

VENDOR = "AuthenticAMD"
CPUINFO = Path("/proc/cpuinfo")
SMALLEST = 2**14
"""Values of a weight from which on oneDNN pays: each of its calls costs some 20 microseconds."""
TOLERANCE = 1e-4


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
        fast.ON
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
