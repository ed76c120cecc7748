"""Losses of the Dinomaly family: pure functions of encoder and decoder groups, the batch and the step."""

# B batch, S groups (2), N = h * w tokens of one image, D width, H W pixels, A angular sectors

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinomaly_hd.batch import Batch
from dinomaly_hd.config.base import Frozen
from dinomaly_hd.config.dinomaly import AdaptiveLoss, FocalLoss, HardMiningLoss, PooledMiningLoss, TopKLoss
from dinomaly_hd.models.detector import Loss
from dinomaly_hd.models.dinomaly.score import MeanPooling, row_context_mean

SECTORS = 36


def token_distance(encoder_BSND: Tensor, decoder_BSND: Tensor) -> Tensor:
    """Return 1 - cos per token and group, shape (B, S, N)."""
    return 1 - F.cosine_similarity(encoder_BSND, decoder_BSND, dim=-1)


def scale_gradient(x: Tensor, factor: Tensor) -> Tensor:
    """Return ``x`` unchanged, its gradient multiplied by ``factor`` (broadcast)."""
    out = x.view_as(x)
    if out.requires_grad:
        # The factor is float32 where autocast made the gradient bfloat16.
        out.register_hook(lambda slope: (slope * factor).to(slope.dtype))  # type: ignore[no-untyped-call]
    return out


def discard_rate(step: int, *, final: float, warmup: int) -> float:
    """Return p(t) = min(final * t / warmup, final), t in optimizer steps from 0."""
    return min(final * step / warmup, final) if warmup > 0 else final


def easy_tokens(distance_BN: Tensor, *, p: float) -> Tensor:
    """Return where the distance is below the k-th largest of the batch, k = max(1, int(B N (1 - p)))."""
    k = max(1, int(distance_BN.numel() * (1 - p)))
    threshold = torch.topk(distance_BN.flatten(), k).values[-1]
    return distance_BN < threshold


class ReconstructionLoss(nn.Module):
    """Compares encoder and decoder groups (B, S, N, D); ``pooling`` makes one distance of the groups'.

    ``grid`` is the (h, w) of the tokens.
    """

    config: Frozen

    def __init__(self, config: Frozen, grid: tuple[int, int]) -> None:
        super().__init__()
        self.config, self.grid = config, grid

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Take what the loss needs from the raw training images (B, H, W); most need nothing."""

    def forward(
        self, encoder_BSND: Tensor, decoder_BSND: Tensor, *, pooling: MeanPooling, batch: Batch, step: int
    ) -> Loss:
        raise NotImplementedError


class HardMining(ReconstructionLoss):
    """Cosine loss over whole images; easy tokens keep only ``discard_factor`` of their gradient.

    Source: Dinomaly's global_cosine_hm_percent (golden g2). The value does not depend on p or factor. The
    groups' losses are weighted by ``pooling.weights`` (the mean, but for Scale).
    """

    config: HardMiningLoss | AdaptiveLoss

    def easy(self, distance_BN: Tensor, *, p: float, batch: Batch) -> Tensor:
        """Return which tokens of one group are easy at discard rate ``p``."""
        del batch
        return easy_tokens(distance_BN, p=p)

    def forward(
        self, encoder_BSND: Tensor, decoder_BSND: Tensor, *, pooling: MeanPooling, batch: Batch, step: int
    ) -> Loss:
        p = discard_rate(step, final=self.config.discard_final, warmup=self.config.discard_warmup)
        encoder_BSND = encoder_BSND.detach()
        distance_BSN = token_distance(encoder_BSND, decoder_BSND.detach())
        easy = [self.easy(group_BN, p=p, batch=batch) for group_BN in distance_BSN.unbind(1)]
        easy_BSN = torch.stack(easy, dim=1)
        factor_BSN = torch.ones_like(distance_BSN).masked_fill_(easy_BSN, self.config.discard_factor)
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
    way, and so are easier to rebuild, discard more.
    """

    config: AdaptiveLoss
    ape_reference: Tensor
    ape_factor: Tensor

    def __init__(self, config: AdaptiveLoss, grid: tuple[int, int]) -> None:
        super().__init__(config, grid)
        self.register_buffer("ape_reference", torch.zeros((), dtype=torch.float64))
        self.register_buffer("ape_factor", torch.ones((), dtype=torch.float64))

    def fit(self, batches: Iterable[Tensor]) -> None:
        entropy_N = torch.cat([angular_power_entropy(images_BHW) for images_BHW in batches])
        self.ape_reference.copy_(entropy_N.mean())
        self.ape_factor.copy_(1 / self._share(entropy_N).mean())

    def _share(self, entropy_B: Tensor) -> Tensor:
        return torch.sigmoid(self.config.ape_scale * (self.ape_reference - entropy_B))

    def rates(self, images_BHW: Tensor, *, p: float) -> Tensor:
        """Return each image's discard rate (B,)."""
        # Where a rate would exceed 1 the mean falls short of p: .8993 for .9 on the simulated maps.
        return (p * self.ape_factor * self._share(angular_power_entropy(images_BHW))).clamp(max=1)

    def easy(self, distance_BN: Tensor, *, p: float, batch: Batch) -> Tensor:
        rates = self.rates(batch.images_BHW[: len(distance_BN)], p=p).tolist()
        images = zip(torch.split(distance_BN, 1), rates, strict=True)
        return torch.cat([easy_tokens(image_1N, p=rate) for image_1N, rate in images])


def angular_power_entropy(images_BHW: Tensor) -> Tensor:
    """Return the entropy of the power spectrum over directions, 0 (one direction) .. 1 (all alike), (B,)."""
    # The definition is ours: the authors' documents name the quantity only.
    height, width = images_BHW.shape[1:]
    centred = images_BHW.double() - images_BHW.double().mean(dim=(1, 2), keepdim=True)
    power_BP = torch.fft.fft2(centred).abs().square().flatten(1)
    like: Any = {"dtype": torch.float64, "device": images_BHW.device}
    row_P = torch.fft.fftfreq(height, **like).repeat_interleave(width)
    column_P = torch.fft.fftfreq(width, **like).repeat(height)
    # Power is summed over 36 sectors of 5 degrees: a direction and its opposite are one. The constant part
    # has no direction.
    angle_P = torch.atan2(row_P, column_P).remainder(math.pi)
    sector_P = (angle_P * (SECTORS / math.pi)).long().clamp(max=SECTORS - 1)
    sector_P = torch.where((row_P == 0) & (column_P == 0), -1, sector_P)
    share_BA = torch.stack([power_BP[:, sector_P == a].sum(dim=1) for a in range(SECTORS)], dim=1)
    # A map without any variation has 1.
    total_B1 = share_BA.sum(dim=1, keepdim=True)
    share_BA = torch.where(total_B1 > 0, share_BA / total_B1.clamp(min=1e-300), 1 / SECTORS)
    entropy_B: Tensor = torch.special.entr(share_BA).sum(dim=1) / math.log(SECTORS)
    return entropy_B


class PooledMining(ReconstructionLoss):
    """Mean of the pooled token distance; easy tokens keep ``gem_factor`` of their gradient (GEM)."""

    config: PooledMiningLoss

    def forward(
        self, encoder_BSND: Tensor, decoder_BSND: Tensor, *, pooling: MeanPooling, batch: Batch, step: int
    ) -> Loss:
        del batch
        p = discard_rate(step, final=self.config.discard_final, warmup=self.config.discard_warmup)
        map_BN = pooling(token_distance(encoder_BSND.detach(), decoder_BSND))
        easy_BN = easy_tokens(map_BN.detach(), p=p)
        factor_BN = torch.ones_like(map_BN).masked_fill_(easy_BN, self.config.gem_factor)
        loss = scale_gradient(map_BN, factor_BN).mean()
        return Loss(loss, {"discard_rate": easy_BN.float().mean(), "discard_target": loss.new_tensor(p)})


class Focal(ReconstructionLoss):
    """Token distances weighted by (d / tau)^gamma, tau the group's batch mean, weights of mean 1.

    No gradient goes through the weights (spec/variants.md, Focal).
    """

    config: FocalLoss

    def forward(
        self, encoder_BSND: Tensor, decoder_BSND: Tensor, *, pooling: MeanPooling, batch: Batch, step: int
    ) -> Loss:
        del batch, step
        distance_BSN = token_distance(encoder_BSND.detach(), decoder_BSND)
        ratio_BSN = _over_mean(distance_BSN.detach().clamp(min=0))
        weight_BSN = _over_mean(ratio_BSN.pow(self.config.focal_gamma))
        loss_S = (weight_BSN * distance_BSN).mean(dim=(0, 2))
        return Loss((loss_S * pooling.weights(loss_S)).sum(), {"focal_weight_max": weight_BSN.max()})


def _over_mean(x_BSN: Tensor) -> Tensor:
    """Divide each group by its mean over the batch; a group of zeros becomes ones."""
    mean_1S1 = x_BSN.mean(dim=(0, 2), keepdim=True)
    return torch.where(mean_1S1 > 0, x_BSN / mean_1S1.clamp(min=1e-30), 1.0)


class TopK(ReconstructionLoss):
    """Mean of the k largest token distances; the share q falls linearly from 100 % to ``q_percent``.

    m = the pooled distance; k = max(1, floor(q / 100 * n)), n tokens in the scope: the batch, each sample, or
    the batch's samples of one domain, and then the mean over scopes (spec/variants.md, TopK).
    """

    config: TopKLoss

    def q_at(self, step: int) -> float:
        """Return q in percent at an optimizer step."""
        warmup = self.config.q_warmup
        progress = min(step / warmup, 1.0) if warmup > 0 else 1.0
        return 100 + (self.config.q_percent - 100) * progress

    def forward(
        self, encoder_BSND: Tensor, decoder_BSND: Tensor, *, pooling: MeanPooling, batch: Batch, step: int
    ) -> Loss:
        distance_BN = pooling(token_distance(encoder_BSND.detach(), decoder_BSND))
        share = self.q_at(step) / 100
        grid_B1hw = distance_BN.detach().reshape(len(distance_BN), 1, *self.grid)
        # With a context the tail is chosen on distances averaged along rows, and paid in plain ones
        # (Directional tail). Everything below the tail gets no gradient.
        rank_BN = row_context_mean(grid_B1hw, k=self.config.tail_context).reshape(distance_BN.shape)
        tails, kept = [], 0
        for rows_B in self._scopes(batch.domain_B[: len(distance_BN)]):
            own = distance_BN[rows_B].flatten()
            k = max(1, int(own.numel() * share))
            tails.append(own[torch.topk(rank_BN[rows_B].flatten(), k).indices].mean())
            kept += k
        total = torch.stack(tails).mean()
        measured = distance_BN.new_tensor(1 - kept / distance_BN.numel())
        return Loss(total, {"discard_rate": measured, "discard_target": measured.new_tensor(1 - share)})

    def _scopes(self, domain_B: Tensor) -> list[Tensor]:
        """Return the rows of the batch that share a tail."""
        rows_B = torch.arange(len(domain_B), device=domain_B.device)
        if self.config.topk_scope == "batch":
            return [rows_B]
        if self.config.topk_scope == "sample":
            return list(rows_B[:, None].unbind())
        return [rows_B[domain_B == domain] for domain in sorted(set(domain_B.tolist()))]
