"""Dinomaly: a frozen encoder, a noisy bottleneck and a small decoder that rebuilds the encoder's groups."""

# B batch, S groups (2), P prefix tokens, N = h * w patch tokens, T = P + N, D width, H W pixels

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dinomaly_hd.batch import Batch
from dinomaly_hd.config.base import size_of
from dinomaly_hd.config.dinomaly import DinomalyConfig
from dinomaly_hd.config.run import RunConfig
from dinomaly_hd.models.detector import Detector, Loss, Noise, ParameterGroup, Prediction
from dinomaly_hd.models.dinomaly import score
from dinomaly_hd.models.dinomaly.bottleneck import Bottleneck, Noised
from dinomaly_hd.models.dinomaly.decoder import BandClassifier, Decoded, Decoder, initialise
from dinomaly_hd.models.dinomaly.losses import ReconstructionLoss, token_distance
from dinomaly_hd.models.dinomaly.score import MeanPooling
from dinomaly_hd.models.encoders import Encoder
from dinomaly_hd.models.fast import MLP_RATIO, pieces
from dinomaly_hd.models.networks import PositionScaling, Preprocessing, scaling_of


class Dinomaly(Detector):
    """The one model of all variants, made of exchangeable parts (spec/dinomaly.md).

    ``encode`` gives the encoder's groups (B, S, T, D); their mean over groups is the mean over all target
    layers, since the groups are equally large, and is what the bottleneck reads. ``pooling`` makes one
    distance map of the groups', in the loss and in the score.
    """

    def __init__(
        self,
        run: RunConfig,
        *,
        encoder: Encoder,
        preprocessing: Preprocessing,
        bottleneck: Bottleneck,
        decoder: Decoder,
        loss: ReconstructionLoss,
        pooling: MeanPooling,
        auxiliary: BandClassifier | None,
    ) -> None:
        super().__init__()
        assert isinstance(run.model, DinomalyConfig)
        self.config, self.seed, self.map_size = run.model, run.seed, size_of(run.evaluation.map_size)
        # The encoder then runs under float16 autocast, and its groups are float16, half the size. It rounds
        # eight times as finely as bfloat16: by itself it moves trained scores by .7 % at most.
        self.half_encoder = run.bf16
        self.encoder, self.preprocessing = encoder, preprocessing
        self.scaling = scaling_of(run.model.scaling)
        self.bottleneck, self.decoder, self.loss = bottleneck, decoder, loss
        self.pooling, self.auxiliary = pooling, auxiliary
        for name in ("bottleneck", "decoder", "auxiliary"):
            part = getattr(self, name)
            if part is not None:
                initialise(nn.ModuleDict({name: part}), seed=run.seed)

    @property
    def alters_images(self) -> bool:
        return self.auxiliary is not None

    def fit_encoder(self, batches: Iterable[Tensor]) -> None:
        if isinstance(self.scaling, PositionScaling):
            batches = list(batches)
            self.scaling.fit(torch.cat(batches))
        self.encoder.fit(self.preprocessing(self.scaling(images)) for images in batches)

    def fit_loss(self, batches: Iterable[Tensor]) -> None:
        self.loss.fit(batches)

    @torch.no_grad()
    def encode(self, images_BHW: Tensor) -> Tensor:
        # Whatever surrounds it: what is cached, encoded in a step or scored must be the same.
        with torch.autocast(images_BHW.device.type, enabled=False):
            images_B3HW = self.preprocessing(self.scaling(images_BHW))
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
        total = loss.total + self.pooling.penalty()
        parts = {**loss.parts, **self.pooling.state(), **self._drop_rates(noised, decoded, step=step)}
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
        pooled = list(self.pooling.parameters())
        own = [parameter for parameter in self.parameters() if parameter.requires_grad]
        rest = [parameter for parameter in own if all(parameter is not other for other in pooled)]
        groups = [ParameterGroup(rest, 1.0), ParameterGroup(pooled, self.pooling.rate_factor)]
        return [group for group in groups if group.parameters]

    @torch.no_grad()
    def _examine(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Return token distances (B, S, N) and bottleneck tokens (B, T, D) without noise."""
        distances, tokens = [], []
        for part in pieces(encoded, widest=encoded.shape[2] * MLP_RATIO * encoded.shape[3]):
            groups_BSTD = self._groups(part)
            tokens_BTD = self.bottleneck(groups_BSTD.mean(dim=1), noise=None).tokens_BND
            decoded = self.decoder(tokens_BTD, noise=None).groups_BSTD
            distances.append(token_distance(self._patches(groups_BSTD), self._patches(decoded)))
            tokens.append(tokens_BTD)
        return torch.cat(distances), torch.cat(tokens)

    def validation_loss(self, encoded: Tensor, *, position: int) -> Tensor:
        del position
        distance_BSN, _ = self._examine(encoded)
        return self.pooling(distance_BSN).mean(dim=1).detach()  # type: ignore[no-any-return]

    @torch.no_grad()
    def score(self, encoded: Tensor) -> Prediction:
        distance_BSN, tokens_BTD = self._examine(encoded)
        prediction = score.predict(
            distance_BSN.reshape(*distance_BSN.shape[:2], *self.encoder.grid).float(),
            pool=self.pooling,
            image_size=self.preprocessing.input_size,
            map_size=self.map_size,
            border=self.config.border,
            row_context=self.config.row_context,
        )
        if self.auxiliary is None or self.auxiliary.config.aux_score_weight == 0:
            return prediction
        logit_B = self.auxiliary.logit(tokens_BTD).float()
        weighted_B = self.auxiliary.config.aux_score_weight * logit_B
        return prediction._replace(score_B=prediction.score_B + weighted_B)
