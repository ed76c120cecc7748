"""Dinomaly: a frozen encoder, a noisy bottleneck and a small decoder that rebuilds the encoder's groups."""

# B batch, S groups (2), P prefix tokens, N = h * w patch tokens, T = P + N, D width, H W pixels

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from dinomaly_hd.batch import Batch
from dinomaly_hd.models.dinomaly import score as scoring
from dinomaly_hd.models.attention import LinearAttention, Mixing
from dinomaly_hd.models.auxiliary import BandClassifier
from dinomaly_hd.models.bottleneck import Noised
from dinomaly_hd.models.detector import Detector, Loss, ParameterGroup, Prediction
from dinomaly_hd.models.dinomaly.distance import Pooling
from dinomaly_hd.models.encoders import Encoder, mean_of
from dinomaly_hd.models.losses import ReconstructionLoss, token_distance
from dinomaly_hd.models.noise import Noise
from dinomaly_hd.models.pieces import MLP_RATIO, pieces
from dinomaly_hd.models.preprocessing import Preprocessing
from dinomaly_hd.models.recompute import linear_of_norm, mlp_of_norm
from dinomaly_hd.randomness import derive

LAYER_NORM_EPSILON = 1e-8
INITIAL_SIGMA, INITIAL_CUT = 0.01, 0.03


class Bottleneck(Protocol):
    """What stands between encoder and decoder: (B, T, D) in and out; ``noise=None`` means inference."""

    @property
    def expected_drop_rate(self) -> float:
        """Return the share of tokens that directional noise drops on average in training."""

    def __call__(self, x_BTD: Tensor, *, noise: Noise | None) -> Noised: ...


class DecoderBlock(nn.Module):
    """A pre-norm transformer block with linear attention, MLP ratio 4, no dropout, no LayerScale."""

    def __init__(self, width: int, *, heads: int, mixing: Mixing) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.attn = LinearAttention(width, heads=heads, mixing=mixing)
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.mlp = nn.Sequential(
            nn.Linear(width, MLP_RATIO * width), nn.GELU(), nn.Linear(MLP_RATIO * width, width)
        )

    def forward(self, x_BTD: Tensor, *, noise: Noise | None) -> Noised:
        qkv = linear_of_norm(x_BTD, norm=self.norm1, layer=self.attn.qkv)
        attended = self.attn(qkv, noise=noise)
        x_BTD = x_BTD + attended.tokens_BND
        return Noised(x_BTD + mlp_of_norm(x_BTD, norm=self.norm2, mlp=self.mlp), attended.drop_rate)


class Decoded(NamedTuple):
    """The two group means (B, S, T, D) and the measured drop rate, the mean over the blocks that drop."""

    groups_BSTD: Tensor
    drop_rate: Tensor


class Decoder(nn.Module):
    """A chain of blocks; the reversed outputs' halves rebuild the encoder's groups.

    Group 0 (early encoder layers) is compared with the mean of the last half of the blocks, group 1
    with the mean of the first half.

    Args:
        width: D.
        heads: Attention heads.
        mixings: How the tokens of each block meet; their number is the decoder's depth.
    """

    def __init__(self, width: int, *, heads: int, mixings: Sequence[Mixing]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(DecoderBlock(width, heads=heads, mixing=mixing) for mixing in mixings)
        self.mixings = tuple(mixings)

    def expected_drop_rate(self, step: int) -> float:
        """Return the share of values dropped on average, over the blocks and heads that drop."""
        rates = [mixing.expected_drop_rate(step) for mixing in self.dropping]
        return sum(rates) / len(rates) if rates else 0.0

    @property
    def dropping(self) -> list[Mixing]:
        """The mixings that drop values."""
        return [mixing for mixing in self.mixings if mixing.drops]

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


class _Examined(NamedTuple):
    distance_BSN: Tensor
    tokens_BTD: Tensor


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
        pooling: Makes one distance map of the groups', in the loss and in the score.
        auxiliary: A second task on the bottleneck, or None.
        map_size: (height, width) of the anomaly maps, pixels.
        border: How the blur pads the map.
        row_context: Half-width k of the 1 x (2k+1) mean along rows before scoring; 0 is off.
        seed: Seed of initial weights and noise.
        half: Whether the encoder runs under float16 autocast, and its groups are float16, half the size. It
            rounds eight times as finely as bfloat16: by itself it moves trained scores by .7 % at most.
    """

    def __init__(
        self,
        *,
        encoder: Encoder,
        preprocessing: Preprocessing,
        bottleneck: Bottleneck,
        decoder: Decoder,
        loss: ReconstructionLoss,
        pooling: Pooling,
        auxiliary: BandClassifier | None,
        map_size: tuple[int, int],
        border: scoring.Border,
        row_context: int,
        seed: int,
        half: bool,
    ) -> None:
        super().__init__()
        self.encoder, self.preprocessing = encoder, preprocessing
        self.bottleneck, self.decoder, self.loss = bottleneck, decoder, loss
        self.pooling, self.auxiliary = pooling, auxiliary
        self.map_size, self.border, self.row_context, self.seed = map_size, border, row_context, seed
        self.half_encoder = half
        for name, part in (("bottleneck", bottleneck), ("decoder", decoder), ("auxiliary", auxiliary)):
            if part is not None:
                initialise(nn.ModuleDict({name: cast(nn.Module, part)}), seed=seed)

    @property
    def alters_images(self) -> bool:
        return self.auxiliary is not None

    def fit_encoder(self, batches: Iterable[Tensor]) -> None:
        self.encoder.fit(self.preprocessing(images) for images in batches)

    def fit_loss(self, batches: Iterable[Tensor]) -> None:
        self.loss.fit(batches)

    @torch.no_grad()
    def encode(self, images_BHW: Tensor) -> Tensor:
        # Whatever surrounds it: what is cached, encoded in a step or scored must be the same.
        with torch.autocast(images_BHW.device.type, enabled=False):
            images_B3HW = self.preprocessing(images_BHW)
        with torch.autocast(images_BHW.device.type, dtype=torch.float16, enabled=self.half_encoder):
            groups_BSTD: Tensor = self.encoder(images_B3HW)
        return groups_BSTD.half() if self.half_encoder else groups_BSTD

    def _groups(self, encoded: Tensor) -> Tensor:
        """Return what ``encode`` gave in a precision whose means and cosines can be trusted."""
        return encoded.float() if self.half_encoder else encoded

    def alter(self, images_BHW: Tensor, *, step: int) -> Tensor:
        return images_BHW if self.auxiliary is None else self.auxiliary.alter(images_BHW, step=step)

    def _patches(self, tokens_BSTD: Tensor) -> Tensor:
        return tokens_BSTD[:, :, self.encoder.prefix_tokens :]

    def training_loss(self, batch: Batch, *, step: int) -> Loss:
        assert batch.encoded is not None, "encode the batch first"
        encoded = self._groups(batch.encoded)
        noise = Noise(self.seed, step=step, device=encoded.device)
        noised = self.bottleneck(encoded.mean(dim=1), noise=noise)
        clean = len(encoded) if self.auxiliary is None else self.auxiliary.clean(len(encoded))
        decoded = self.decoder(noised.tokens_BND[:clean], noise=noise)
        loss = self.loss(
            self._patches(encoded[:clean]),
            self._patches(decoded.groups_BSTD),
            pooling=self.pooling,
            batch=batch,
            step=step,
        )
        penalties = self.pooling.penalty()
        parts = {**loss.parts, **self.pooling.state(), **self._drop_rates(noised, decoded, step=step)}
        total = loss.total + sum(penalties.values())
        if self.auxiliary is not None:
            task = self.auxiliary.loss(noised.tokens_BND)
            total, parts = total + task.total, {**parts, **task.parts}
        return Loss(total, parts)

    def _drop_rates(self, noised: Noised, decoded: Decoded, *, step: int) -> dict[str, Tensor]:
        """Return measured and expected rates: a setting that does nothing must be seen."""
        rates = {
            "drop_rate": noised.drop_rate,
            "drop_rate_expected": noised.drop_rate.new_tensor(self.bottleneck.expected_drop_rate),
        }
        if self.decoder.dropping:
            expected = self.decoder.expected_drop_rate(step)
            rates["decoder_drop_rate"] = decoded.drop_rate
            rates["decoder_drop_rate_expected"] = decoded.drop_rate.new_tensor(expected)
        return rates

    def parameter_groups(self) -> list[ParameterGroup]:
        pooled = list(cast(nn.Module, self.pooling).parameters())
        own = [parameter for parameter in self.parameters() if parameter.requires_grad]
        rest = [parameter for parameter in own if all(parameter is not other for other in pooled)]
        groups = [ParameterGroup(rest, 1.0), ParameterGroup(pooled, self.pooling.rate_factor)]
        return [group for group in groups if group.parameters]

    @torch.no_grad()
    def _examine(self, encoded: Tensor) -> _Examined:
        """Return token distances and bottleneck tokens without noise."""
        tokens, width = encoded.shape[2:]
        parts = [self._examine_piece(part) for part in pieces(encoded, widest=tokens * MLP_RATIO * width)]
        return _Examined(*(torch.cat(each) for each in zip(*parts, strict=True)))

    def _examine_piece(self, encoded: Tensor) -> _Examined:
        encoded = self._groups(encoded)
        tokens_BTD = self.bottleneck(encoded.mean(dim=1), noise=None).tokens_BND
        decoded = self.decoder(tokens_BTD, noise=None).groups_BSTD
        return _Examined(token_distance(self._patches(encoded), self._patches(decoded)), tokens_BTD)

    def validation_loss(self, encoded: Tensor, *, position: int) -> Tensor:
        del position
        return self.pooling(self._examine(encoded).distance_BSN).mean(dim=1).detach()

    @torch.no_grad()
    def score(self, encoded: Tensor) -> Prediction:
        distance_BSN, tokens_BTD = self._examine(encoded)
        prediction = scoring.predict(
            distance_BSN.reshape(*distance_BSN.shape[:2], *self.encoder.grid).float(),
            pool=self.pooling,
            image_size=self.preprocessing.input_size,
            map_size=self.map_size,
            border=self.border,
            row_context=self.row_context,
        )
        if self.auxiliary is None or self.auxiliary.score_weight == 0:
            return prediction
        logit_B = self.auxiliary.logit(tokens_BTD).float()
        return prediction._replace(score_B=prediction.score_B + self.auxiliary.score_weight * logit_B)
