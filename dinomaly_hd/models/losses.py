"""Losses of the Dinomaly family: pure functions of encoder and decoder groups and the step."""

# B batch, S groups (2), N = h * w tokens of one image, D width

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from dinomaly_hd.models.detector import Loss


def token_distance(encoder_BSND: Tensor, decoder_BSND: Tensor) -> Tensor:
    """Return 1 - cos per token and group, shape (B, S, N)."""
    return 1 - F.cosine_similarity(encoder_BSND, decoder_BSND, dim=-1)


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return x.view_as(x)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator,unused-ignore]
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        (factor,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradient * factor, None


def scale_gradient(x: Tensor, factor: Tensor) -> Tensor:
    """Return ``x`` unchanged, its gradient multiplied by ``factor`` (broadcast)."""
    out: Tensor = _ScaleGradient.apply(x, factor)
    return out


def discard_rate(step: int, *, final: float, warmup: int) -> float:
    """Return p(t) = min(final * t / warmup, final), t in optimizer steps from 0."""
    return min(final * step / warmup, final) if warmup > 0 else final


def easy_tokens(distance_BN: Tensor, *, p: float) -> Tensor:
    """Return where the distance is below the k-th largest of the batch, k = max(1, int(B N (1 - p)))."""
    k = max(1, int(distance_BN.numel() * (1 - p)))
    threshold = torch.topk(distance_BN.flatten(), k).values[-1]
    return distance_BN < threshold


class HardMining(nn.Module):
    """Cosine loss over whole images; easy tokens keep only ``discard_factor`` of their gradient.

    Source: Dinomaly's global_cosine_hm_percent (golden g2). The value does not depend on p or factor.

    Args:
        discard_final: p after warm-up, 0 .. 1.
        discard_warmup: Optimizer steps of the linear warm-up of p.
        discard_factor: Share of gradient left to easy tokens, 0 .. 1.
    """

    def __init__(self, *, discard_final: float, discard_warmup: int, discard_factor: float) -> None:
        super().__init__()
        self.discard_final, self.discard_warmup = discard_final, discard_warmup
        self.discard_factor = discard_factor

    def forward(self, encoder_BSND: Tensor, decoder_BSND: Tensor, *, step: int) -> Loss:
        p = discard_rate(step, final=self.discard_final, warmup=self.discard_warmup)
        encoder_BSND = encoder_BSND.detach()
        distance_BSN = token_distance(encoder_BSND, decoder_BSND.detach())
        easy_BSN = torch.stack([easy_tokens(group_BN, p=p) for group_BN in distance_BSN.unbind(1)], dim=1)
        factor_BSN = torch.ones_like(distance_BSN).masked_fill_(easy_BSN, self.discard_factor)
        decoder_BSND = scale_gradient(decoder_BSND, factor_BSN.unsqueeze(-1))
        cosine_BS = F.cosine_similarity(encoder_BSND.flatten(2), decoder_BSND.flatten(2), dim=-1)
        return Loss((1 - cosine_BS).mean(), {"discard_rate": easy_BSN.float().mean()})


class TopK(nn.Module):
    """Mean of the k largest token distances; the share q falls linearly from 100 % to ``q_percent``.

    m = mean over groups of 1 - cos; k = max(1, floor(q / 100 * n)), n tokens in the batch
    (spec/variants.md, TopK). Everything below the tail gets no gradient.

    Args:
        q_percent: Final share in percent, (0, 100].
        q_warmup: Optimizer steps over which q falls.
    """

    def __init__(self, *, q_percent: float, q_warmup: int) -> None:
        super().__init__()
        self.q_percent, self.q_warmup = q_percent, q_warmup

    def q_at(self, step: int) -> float:
        """Return q in percent at an optimizer step."""
        progress = min(step / self.q_warmup, 1.0) if self.q_warmup > 0 else 1.0
        return 100 + (self.q_percent - 100) * progress

    def forward(self, encoder_BSND: Tensor, decoder_BSND: Tensor, *, step: int) -> Loss:
        distance_BN = token_distance(encoder_BSND.detach(), decoder_BSND).mean(dim=1)
        n = distance_BN.numel()
        k = max(1, int(self.q_at(step) / 100 * n))
        tail = torch.topk(distance_BN.flatten(), k).values
        return Loss(tail.mean(), {"discard_rate": distance_BN.new_tensor(1 - k / n)})
