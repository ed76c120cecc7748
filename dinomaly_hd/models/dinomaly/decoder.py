"""The decoder that rebuilds the encoder's groups, a task beside it, and the start that all have in common."""

# B batch, S groups (2), T N tokens, D width, H W pixels

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinomaly_hd.config import dinomaly as configs
from dinomaly_hd.models.detector import Loss, Noise
from dinomaly_hd.models.dinomaly.attention import LinearAttention, PlainMixing
from dinomaly_hd.models.dinomaly.bottleneck import Noised
from dinomaly_hd.models.draem.faults import horizontal_bands
from dinomaly_hd.models.encoders import mean_of
from dinomaly_hd.models.fast import MLP_RATIO, Linear, gelu_to_spare, linear_of
from dinomaly_hd.randomness import derive

LAYER_NORM_EPSILON = 1e-8
INITIAL_SIGMA, INITIAL_CUT = 0.01, 0.03


class DecoderBlock(nn.Module):
    """A pre-norm transformer block with linear attention, MLP ratio 4, no dropout, no LayerScale."""

    def __init__(self, width: int, *, heads: int, mixing: PlainMixing) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.attn = LinearAttention(width, heads=heads, mixing=mixing)
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.mlp = nn.Sequential(
            Linear(width, MLP_RATIO * width), nn.GELU(), Linear(MLP_RATIO * width, width)
        )

    def forward(self, x_BTD: Tensor, *, noise: Noise | None) -> Noised:
        first, _, last = self.mlp  # GELU stands between them for the names of parameters
        attended = self.attn(linear_of(self.norm1, x_BTD, layer=self.attn.qkv), noise=noise)
        x_BTD = x_BTD + attended.tokens_BND
        hidden = linear_of(self.norm2, x_BTD, layer=first)
        return Noised(x_BTD + linear_of(gelu_to_spare(), hidden, layer=last), attended.drop_rate)


class Decoded(NamedTuple):
    """The two group means (B, S, T, D) and the measured drop rate, the mean over the blocks that drop."""

    groups_BSTD: Tensor
    drop_rate: Tensor


class Decoder(nn.Module):
    """A chain of blocks, one for each mixing; the reversed outputs' halves rebuild the encoder's groups.

    Group 0 (early encoder layers) is compared with the mean of the last half of the blocks, group 1
    with the mean of the first half.
    """

    def __init__(self, width: int, *, heads: int, mixings: Sequence[PlainMixing]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(DecoderBlock(width, heads=heads, mixing=mixing) for mixing in mixings)
        self.dropping = [mixing for mixing in mixings if mixing.drops]

    def expected_drop_rate(self, step: int) -> float:
        """Return the share of values dropped on average, over the blocks and heads that drop."""
        rates = [mixing.expected_drop_rate(step) for mixing in self.dropping]
        return sum(rates) / len(rates) if rates else 0.0

    def forward(self, x_BTD: Tensor, *, noise: Noise | None) -> Decoded:
        """Decode; ``noise=None`` means inference."""
        outputs, rates = [], []
        for block in self.blocks:
            x_BTD, rate = block(x_BTD, noise=noise)
            outputs.append(x_BTD)
            rates.append(rate)
        half = len(outputs) // 2
        groups = [mean_of(outputs[half:]), mean_of(outputs[:half])]
        return Decoded(torch.stack(groups, dim=1), torch.stack(rates).sum() / max(1, len(self.dropping)))


class BandClassifier(nn.Module):
    """An auxiliary task: whether an image got a synthetic band, as the second half of a training batch did.

    Linear-GELU-linear on the mean bottleneck token. Only the clean half is rebuilt (spec/variants.md, Aux). A
    batch of one image has no altered half. ``seed`` is the run's.
    """

    def __init__(self, config: configs.BandClassifier, width: int, seed: int) -> None:
        super().__init__()
        self.config, self.seed = config, seed
        self.layers = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))

    def clean(self, batch: int) -> int:
        """Return how many of a batch's images, its first ones, stay as they are."""
        return batch - batch // 2

    def alter(self, images_BHW: Tensor, *, step: int) -> Tensor:
        """Return the batch with a band added to each image of its second half."""
        clean = self.clean(len(images_BHW))
        faulty = horizontal_bands(images_BHW[clean:], seed=self.seed, position=step)
        return torch.cat([images_BHW[:clean], faulty.images_BHW])

    def logit(self, tokens_BND: Tensor) -> Tensor:
        """Return the log-odds of a band, (B,)."""
        logit_B1: Tensor = self.layers(tokens_BND.mean(dim=1))
        return logit_B1.squeeze(1)

    def loss(self, tokens_BND: Tensor) -> Loss:
        """Return the weighted cross-entropy of a batch that ``alter`` made, with accuracy."""
        logit_B = self.logit(tokens_BND)
        label_B = (torch.arange(len(logit_B), device=logit_B.device) >= self.clean(len(logit_B))).float()
        entropy = F.binary_cross_entropy_with_logits(logit_B.float(), label_B)
        accuracy = ((logit_B.detach() > 0) == (label_B > 0)).float().mean()
        return Loss(
            self.config.aux_weight * entropy, {"aux_loss": entropy.detach(), "aux_accuracy": accuracy}
        )


def initialise(module: nn.Module, *, seed: int) -> None:
    """Give bottleneck and decoder of every variant the same start, weight by weight.

    Linear weights are normal, sigma 0.01, cut at +-0.03; biases 0; LayerNorm 1 and 0. Every weight has its
    own generator, seeded with its name, so a part that one variant adds moves no other's start.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            # A part may wrap another (bottleneck.mlp.fc1): only what the layer is decides its start.
            place = name.replace(".mlp.fc", ".fc") if name.startswith("bottleneck.") else name
            generator = torch.Generator().manual_seed(derive(seed, "initialise", place))
            nn.init.trunc_normal_(
                layer.weight, std=INITIAL_SIGMA, a=-INITIAL_CUT, b=INITIAL_CUT, generator=generator
            )
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.LayerNorm):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
