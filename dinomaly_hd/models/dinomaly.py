"""Dinomaly: a frozen encoder, a noisy bottleneck and a small decoder that rebuilds the encoder's groups."""

# B batch, S groups (2), P prefix tokens, N = h * w patch tokens, T = P + N, D width, H W pixels

from collections.abc import Iterable
from typing import Protocol, cast

import torch
from torch import Generator, Tensor, nn

from dinomaly_hd.models import scoring
from dinomaly_hd.models.attention import LinearAttention
from dinomaly_hd.models.bottleneck import Noised
from dinomaly_hd.models.detector import Detector, Loss, Prediction
from dinomaly_hd.models.encoders import Encoder
from dinomaly_hd.models.losses import token_distance
from dinomaly_hd.models.preprocessing import Preprocessing
from dinomaly_hd.randomness import derive

LAYER_NORM_EPSILON = 1e-8
INITIAL_SIGMA, INITIAL_CUT = 0.01, 0.03


class Bottleneck(Protocol):
    """What stands between encoder and decoder: (B, T, D) in and out; no generator means inference."""

    def __call__(self, x_BTD: Tensor, *, generator: Generator | None) -> Noised: ...


class ReconstructionLoss(Protocol):
    """A pure function of encoder and decoder groups (B, S, N, D) and the optimizer step."""

    def __call__(self, encoder_BSND: Tensor, decoder_BSND: Tensor, *, step: int) -> Loss: ...


class DecoderBlock(nn.Module):
    """A pre-norm transformer block with linear attention, MLP ratio 4, no dropout, no LayerScale."""

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.attn = LinearAttention(width, heads=heads)
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.attn(self.norm1(x_BTD))
        return x_BTD + cast(Tensor, self.mlp(self.norm2(x_BTD)))


class Decoder(nn.Module):
    """A chain of blocks; the reversed outputs' halves rebuild the encoder's groups.

    Group 0 (early encoder layers) is compared with the mean of the last half of the blocks, group 1
    with the mean of the first half.
    """

    def __init__(self, width: int, *, heads: int, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(DecoderBlock(width, heads=heads) for _ in range(depth))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return the two group means (B, S, T, D)."""
        outputs = []
        for block in self.blocks:
            x_BTD = block(x_BTD)
            outputs.append(x_BTD)
        half = len(outputs) // 2
        return torch.stack([torch.stack(outputs[half:]).mean(0), torch.stack(outputs[:half]).mean(0)], dim=1)


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


class Dinomaly(Detector):
    """The one model of all variants, made of exchangeable parts (spec/dinomaly.md).

    ``encode`` gives the encoder's groups (B, S, T, D); their mean over groups is the mean over all target
    layers, since the groups are equally large, and is what the bottleneck reads.

    Args:
        encoder: Frozen encoder.
        preprocessing: What the encoder's images go through.
        bottleneck: Noise and MLP.
        decoder: Rebuilds the groups.
        loss: Compares them during training.
        map_size: (height, width) of the anomaly maps, pixels.
        border: How the blur pads the map.
        row_context: Half-width k of the 1 x (2k+1) mean along rows before scoring; 0 is off.
        seed: Seed of initial weights and dropout.
    """

    def __init__(
        self,
        *,
        encoder: Encoder,
        preprocessing: Preprocessing,
        bottleneck: Bottleneck,
        decoder: Decoder,
        loss: ReconstructionLoss,
        map_size: tuple[int, int],
        border: scoring.Border,
        row_context: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.encoder, self.preprocessing = encoder, preprocessing
        self.bottleneck, self.decoder, self.loss = bottleneck, decoder, loss
        self.map_size, self.border, self.row_context, self.seed = map_size, border, row_context, seed
        for name, part in (("bottleneck", bottleneck), ("decoder", decoder)):
            initialise(nn.ModuleDict({name: cast(nn.Module, part)}), seed=seed)

    def fit_encoder(self, batches: Iterable[Tensor]) -> None:
        self.encoder.fit(self.preprocessing(images) for images in batches)

    @torch.no_grad()
    def encode(self, images_BHW: Tensor) -> Tensor:
        # Always in full precision: what is cached, encoded in a step or scored must be the same.
        with torch.autocast(images_BHW.device.type, enabled=False):
            groups_BSTD: Tensor = self.encoder(self.preprocessing(images_BHW))
        return groups_BSTD

    def _patches(self, tokens_BSTD: Tensor) -> Tensor:
        return tokens_BSTD[:, :, self.encoder.prefix_tokens :]

    def training_loss(self, encoded: Tensor, *, step: int) -> Loss:
        generator = torch.Generator(encoded.device).manual_seed(derive(self.seed, "dropout", step))
        noised = self.bottleneck(encoded.mean(dim=1), generator=generator)
        decoded = self.decoder(noised.tokens_BND)
        loss = self.loss(self._patches(encoded), self._patches(decoded), step=step)
        return Loss(loss.total, {**loss.parts, "drop_rate": noised.drop_rate})

    @torch.no_grad()
    def _distance(self, encoded: Tensor) -> Tensor:
        """Return token distances (B, S, N) without noise."""
        decoded = self.decoder(self.bottleneck(encoded.mean(dim=1), generator=None).tokens_BND)
        return token_distance(self._patches(encoded), self._patches(decoded))

    def validation_loss(self, encoded: Tensor) -> Tensor:
        return self._distance(encoded).mean(dim=(1, 2))

    def score(self, encoded: Tensor) -> Prediction:
        distance_BSN = self._distance(encoded)
        return scoring.predict(
            distance_BSN.reshape(*distance_BSN.shape[:2], *self.encoder.grid).float(),
            image_size=self.preprocessing.input_size,
            map_size=self.map_size,
            border=self.border,
            row_context=self.row_context,
        )
