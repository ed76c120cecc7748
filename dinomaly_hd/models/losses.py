"""Losses of the Dinomaly family: pure functions of encoder and decoder groups, the batch and the step."""

# B batch, S groups (2), N = h * w tokens of one image, D width, H W pixels

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from dinomaly_hd.batch import Batch
from dinomaly_hd.models.detector import Loss
from dinomaly_hd.models.dinomaly.distance import Pooling
from dinomaly_hd.models.entropy import angular_power_entropy
from dinomaly_hd.models.scoring import row_context_mean


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


def kept_count(n: int, *, share: float) -> int:
    """Return how many of ``n`` tokens a share keeps, at least one."""
    return max(1, int(n * share))


def easy_tokens(distance_BN: Tensor, *, p: float) -> Tensor:
    """Return where the distance is below the k-th largest of the batch, k = max(1, int(B N (1 - p)))."""
    k = kept_count(distance_BN.numel(), share=1 - p)
    threshold = torch.topk(distance_BN.flatten(), k).values[-1]
    return distance_BN < threshold


class ReconstructionLoss(nn.Module):
    """Compares encoder and decoder groups (B, S, N, D); ``pooling`` makes one distance of the groups'."""

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Take what the loss needs from the raw training images (B, H, W); most need nothing."""

    def forward(
        self, encoder_BSND: Tensor, decoder_BSND: Tensor, *, pooling: Pooling, batch: Batch, step: int
    ) -> Loss:
        raise NotImplementedError


class Mining(ReconstructionLoss):
    """A loss that treats the easiest tokens otherwise; their share p(t) rises over the first steps.

    Args:
        discard_final: p after warm-up, 0 .. 1.
        discard_warmup: Optimizer steps of the linear warm-up of p.
    """

    def __init__(self, *, discard_final: float, discard_warmup: int) -> None:
        super().__init__()
        self.discard_final, self.discard_warmup = discard_final, discard_warmup

    def rate(self, step: int) -> float:
        """Return p at an optimizer step."""
        return discard_rate(step, final=self.discard_final, warmup=self.discard_warmup)


class HardMining(Mining):
    """Cosine loss over whole images; easy tokens keep only ``discard_factor`` of their gradient.

    Source: Dinomaly's global_cosine_hm_percent (golden g2). The value does not depend on p or factor. The
    groups' losses are weighted by ``pooling.weights`` (the mean, but for Scale).

    Args:
        discard_final: p after warm-up, 0 .. 1.
        discard_warmup: Optimizer steps of the linear warm-up of p.
        discard_factor: Share of gradient left to easy tokens, 0 .. 1.
    """

    def __init__(self, *, discard_final: float, discard_warmup: int, discard_factor: float) -> None:
        super().__init__(discard_final=discard_final, discard_warmup=discard_warmup)
        self.discard_factor = discard_factor

    def easy(self, distance_BN: Tensor, *, p: float, batch: Batch) -> Tensor:
        """Return which tokens of one group are easy at discard rate ``p``."""
        del batch
        return easy_tokens(distance_BN, p=p)

    def forward(
        self, encoder_BSND: Tensor, decoder_BSND: Tensor, *, pooling: Pooling, batch: Batch, step: int
    ) -> Loss:
        p = self.rate(step)
        encoder_BSND = encoder_BSND.detach()
        distance_BSN = token_distance(encoder_BSND, decoder_BSND.detach())
        easy = [self.easy(group_BN, p=p, batch=batch) for group_BN in distance_BSN.unbind(1)]
        easy_BSN = torch.stack(easy, dim=1)
        factor_BSN = torch.ones_like(distance_BSN).masked_fill_(easy_BSN, self.discard_factor)
        decoder_BSND = scale_gradient(decoder_BSND, factor_BSN.unsqueeze(-1))
        cosine_BS = F.cosine_similarity(encoder_BSND.flatten(2), decoder_BSND.flatten(2), dim=-1)
        loss_S = (1 - cosine_BS).mean(dim=0)
        return Loss(
            (loss_S * pooling.weights(loss_S)).sum(),
            {"discard_rate": easy_BSN.float().mean(), "discard_target": loss_S.new_tensor(p)},
        )


class AdaptiveMining(HardMining):
    """Hard mining within each image, at a discard rate that follows the image's angular power entropy.

    p_i = p(t) c sigmoid(s (ref - APE_i)), at most 1, with ref the mean entropy of the training images and c
    such that the mean of p_i over them is p(t) (spec/variants.md, Adaptive): maps whose structure points one
    way, and so are easier to rebuild, discard more. Where a p_i would exceed 1 the mean falls short of
    p(t): .8993 for .9 on the simulated maps.

    Args:
        ape_scale: s.
        discard_final: As in ``HardMining``, like the other two.
        discard_warmup: Optimizer steps.
        discard_factor: 0 .. 1.
    """

    ape_reference: Tensor
    ape_factor: Tensor

    def __init__(
        self, *, ape_scale: float, discard_final: float, discard_warmup: int, discard_factor: float
    ) -> None:
        super().__init__(
            discard_final=discard_final, discard_warmup=discard_warmup, discard_factor=discard_factor
        )
        self.ape_scale = ape_scale
        self.register_buffer("ape_reference", torch.zeros((), dtype=torch.float64))
        self.register_buffer("ape_factor", torch.ones((), dtype=torch.float64))

    def fit(self, batches: Iterable[Tensor]) -> None:
        entropy_N = torch.cat([angular_power_entropy(images_BHW) for images_BHW in batches])
        self.ape_reference.copy_(entropy_N.mean())
        self.ape_factor.copy_(1 / self._share(entropy_N).mean())

    def _share(self, entropy_B: Tensor) -> Tensor:
        return torch.sigmoid(self.ape_scale * (self.ape_reference - entropy_B))

    def rates(self, images_BHW: Tensor, *, p: float) -> Tensor:
        """Return each image's discard rate (B,)."""
        return (p * self.ape_factor * self._share(angular_power_entropy(images_BHW))).clamp(max=1)

    def easy(self, distance_BN: Tensor, *, p: float, batch: Batch) -> Tensor:
        rates = self.rates(batch.images_BHW[: len(distance_BN)], p=p).tolist()
        return torch.cat(
            [
                easy_tokens(image_1N, p=rate)
                for image_1N, rate in zip(distance_BN[:, None].unbind(), rates, strict=True)
            ]
        )


class PooledMining(Mining):
    """Mean of the pooled token distance; easy tokens keep ``gem_factor`` of their gradient (GEM).

    Args:
        discard_final: p after warm-up, 0 .. 1.
        discard_warmup: Optimizer steps of the linear warm-up of p.
        gem_factor: Share of gradient left to easy tokens, 0 .. 1.
    """

    def __init__(self, *, discard_final: float, discard_warmup: int, gem_factor: float) -> None:
        super().__init__(discard_final=discard_final, discard_warmup=discard_warmup)
        self.gem_factor = gem_factor

    def forward(
        self, encoder_BSND: Tensor, decoder_BSND: Tensor, *, pooling: Pooling, batch: Batch, step: int
    ) -> Loss:
        del batch
        p = self.rate(step)
        map_BN = pooling(token_distance(encoder_BSND.detach(), decoder_BSND))
        easy_BN = easy_tokens(map_BN.detach(), p=p)
        factor_BN = torch.ones_like(map_BN).masked_fill_(easy_BN, self.gem_factor)
        loss = scale_gradient(map_BN, factor_BN).mean()
        return Loss(loss, {"discard_rate": easy_BN.float().mean(), "discard_target": loss.new_tensor(p)})


class Focal(ReconstructionLoss):
    """Token distances weighted by (d / tau)^gamma, tau the group's batch mean, weights of mean 1.

    No gradient goes through the weights (spec/variants.md, Focal).

    Args:
        gamma: 0 (all alike) or more.
    """

    def __init__(self, *, gamma: float) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(
        self, encoder_BSND: Tensor, decoder_BSND: Tensor, *, pooling: Pooling, batch: Batch, step: int
    ) -> Loss:
        del batch, step
        distance_BSN = token_distance(encoder_BSND.detach(), decoder_BSND)
        ratio_BSN = _over_mean(distance_BSN.detach().clamp(min=0))
        weight_BSN = _over_mean(ratio_BSN.pow(self.gamma))
        loss_S = (weight_BSN * distance_BSN).mean(dim=(0, 2))
        return Loss((loss_S * pooling.weights(loss_S)).sum(), {"focal_weight_max": weight_BSN.max()})


def _over_mean(x_BSN: Tensor) -> Tensor:
    """Divide each group by its mean over the batch; a group of zeros becomes ones."""
    mean_1S1 = x_BSN.mean(dim=(0, 2), keepdim=True)
    return torch.where(mean_1S1 > 0, x_BSN / mean_1S1.clamp(min=1e-30), 1.0)


class TopK(ReconstructionLoss):
    """Mean of the k largest token distances; the share q falls linearly from 100 % to ``q_percent``.

    m = the pooled distance; k = max(1, floor(q / 100 * n)), n tokens in the scope: the batch, each sample, or
    the batch's samples of one domain, and then the mean over scopes (spec/variants.md, TopK). Everything
    below the tail gets no gradient.

    Args:
        q_percent: Final share in percent, (0, 100].
        q_warmup: Optimizer steps over which q falls.
        scope: What shares one tail: "batch", "sample" or "domain".
        tail_context: Half-width of the mean along rows by which the tail is chosen; the loss itself takes the
            unsmoothed distances (Directional tail). 0 is off.
        grid: (h, w) of the tokens.
    """

    def __init__(
        self, *, q_percent: float, q_warmup: int, scope: str, tail_context: int, grid: tuple[int, int]
    ) -> None:
        super().__init__()
        self.q_percent, self.q_warmup, self.scope = q_percent, q_warmup, scope
        self.tail_context, self.grid = tail_context, grid

    def q_at(self, step: int) -> float:
        """Return q in percent at an optimizer step."""
        progress = min(step / self.q_warmup, 1.0) if self.q_warmup > 0 else 1.0
        return 100 + (self.q_percent - 100) * progress

    def forward(
        self, encoder_BSND: Tensor, decoder_BSND: Tensor, *, pooling: Pooling, batch: Batch, step: int
    ) -> Loss:
        distance_BN = pooling(token_distance(encoder_BSND.detach(), decoder_BSND))
        share = self.q_at(step) / 100
        rank_BN = self._ranked_by(distance_BN.detach())
        tails, kept = [], 0
        for rows_B in self._scopes(batch.domain_B[: len(distance_BN)]):
            own = distance_BN[rows_B].flatten()
            k = kept_count(own.numel(), share=share)
            tails.append(own[torch.topk(rank_BN[rows_B].flatten(), k).indices].mean())
            kept += k
        total = torch.stack(tails).mean()
        measured = distance_BN.new_tensor(1 - kept / distance_BN.numel())
        return Loss(total, {"discard_rate": measured, "discard_target": measured.new_tensor(1 - share)})

    def _ranked_by(self, distance_BN: Tensor) -> Tensor:
        if self.tail_context == 0:
            return distance_BN
        grid_B1hw = distance_BN.reshape(len(distance_BN), 1, *self.grid)
        return row_context_mean(grid_B1hw, k=self.tail_context).reshape(distance_BN.shape)

    def _scopes(self, domain_B: Tensor) -> list[Tensor]:
        """Return the rows of the batch that share a tail."""
        rows_B = torch.arange(len(domain_B), device=domain_B.device)
        if self.scope == "batch":
            return [rows_B]
        if self.scope == "sample":
            return list(rows_B[:, None].unbind())
        return [rows_B[domain_B == domain] for domain in sorted(set(domain_B.tolist()))]
