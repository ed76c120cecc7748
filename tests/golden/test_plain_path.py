"""Fifty steps of training end like those of a plain detector, in which nothing is optimised for speed.

Plain: every block of the encoder is run for every image in every step, with attention written out and a GELU
of its own memory; autograd differentiates the decoder. The optimizer: golden vectors g5.
"""

from collections.abc import Callable
from typing import Any, cast

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinomaly_hd.batch import Batch
from dinomaly_hd.config.base import with_values
from dinomaly_hd.config.presets import preset_run
from dinomaly_hd.config.variants import baseline
from dinomaly_hd.models import fast
from dinomaly_hd.models.build import build_detector
from dinomaly_hd.models.dinomaly import attention
from dinomaly_hd.models.dinomaly.detector import Dinomaly
from dinomaly_hd.models.encoders import ViTEncoder
from dinomaly_hd.models.weights import locate, timm_name
from tests.golden.test_variant_losses import task_of

STEPS, IMAGES, BATCH = 50, 6, 2
ENCODER, BLOCKS = "dinov2reg_vit_small_14", range(2, 10)
VALUES = {
    "encoder": ENCODER,
    "image_size": "42",
    "crop": "42",
    "map_size": "32",
    "decoder_depth": "2",
    "max_steps": str(STEPS),
    "warmup_steps": "10",
    "batch_size": str(BATCH),
}
RUN = with_values(preset_run("full", baseline()), VALUES)
MAPS = torch.rand(IMAGES, 31, 95, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "encoder.pth"
    torch.save(timm.create_model(timm_name(ENCODER), pretrained=False).state_dict(), path)
    return str(path)


def detector(weights_file: str) -> Dinomaly:
    run = with_values(RUN, {"encoder_weights": weights_file})
    built = build_detector(run, weights=locate(run.encoder.encoder, run.encoder.encoder_weights))
    assert isinstance(built, Dinomaly)
    return built


class PlainEncoder(nn.Module):
    """Group means of a timm ViT whose blocks are all run, with the softmax written out."""

    def __init__(self, ours: ViTEncoder, *, weights_file: str) -> None:
        super().__init__()
        model: Any = timm.create_model(timm_name(ENCODER), pretrained=False, img_size=(42, 42))
        late = {
            name: value for name, value in torch.load(weights_file).items() if name.startswith("blocks.1")
        }
        model.load_state_dict({**late, **ours.model.state_dict()})
        for block in model.blocks:
            block.attn.fused_attn = False
        self.model = model.requires_grad_(False).eval()

    def forward(self, images_B3HW: Tensor) -> Tensor:
        outputs = []
        model = cast(Any, self.model)
        x_BTD = model._pos_embed(model.patch_embed(images_B3HW))
        for block in model.blocks:
            x_BTD = block(x_BTD)
            outputs.append(x_BTD)
        half = len(BLOCKS) // 2
        means = [torch.stack([outputs[i] for i in part]).mean(0) for part in (BLOCKS[:half], BLOCKS[half:])]
        return torch.stack(means, dim=1)


def trained(model: Dinomaly, encode: Callable[[int], Tensor]) -> list[float]:
    """Train for ``STEPS`` steps and return each step's loss."""
    losses: list[float] = []
    task = task_of(model, RUN, log=lambda values, _: losses.append(values["train/loss"]))
    model.train()
    for items in torch.randint(IMAGES, (STEPS, BATCH), generator=torch.Generator().manual_seed(7)):
        encoded = torch.cat([encode(int(item)) for item in items])
        task.training_step(Batch(MAPS[items], torch.zeros(BATCH, dtype=torch.int64), encoded), 0)
    return losses


def weights(model: Dinomaly) -> list[Tensor]:
    return [each.detach() for each in model.parameters() if each.requires_grad]


def test_fifty_steps_end_like_plain_ones(weights_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, plain = detector(weights_file), detector(weights_file)
    cache = [ours.encode(MAPS[[item]]) for item in range(IMAGES)]
    losses = trained(ours, lambda item: cache[item])

    monkeypatch.setattr(fast, "kernels", lambda *_: "plain")
    monkeypatch.setattr(attention, "positive_feature", lambda x: F.elu(x) + 1)
    encoder = PlainEncoder(cast(ViTEncoder, plain.encoder), weights_file=weights_file)
    expected = trained(plain, lambda item: encoder(plain.preprocessing(MAPS[[item]])))

    assert losses[-1] < 0.8 * losses[0]
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=0, atol=1e-5)
    scores, plain_scores = (each.eval().score(torch.cat(cache)).score_B for each in (ours, plain))
    torch.testing.assert_close(scores, plain_scores, rtol=0, atol=1e-5)
    differences = torch.cat(
        [(one - other).abs().flatten() for one, other in zip(weights(ours), weights(plain), strict=True)]
    )
    # Where a gradient is all rounding, its quotient with its own size is not: a few weights differ by more.
    assert float((differences > 1e-5).float().mean()) < 1e-4
    assert float(differences.max()) < 1e-3
