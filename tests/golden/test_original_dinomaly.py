"""Vectors computed with the original Dinomaly are reproduced: float64 to 1e-12, float32 to 1e-5 relative."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dinomaly_hd.batch import Batch
from dinomaly_hd.config.dinomaly import HardMiningLoss
from dinomaly_hd.models.detector import Noise, dropout
from dinomaly_hd.models.dinomaly import score
from dinomaly_hd.models.dinomaly.attention import LinearAttention, attend
from dinomaly_hd.models.dinomaly.bottleneck import BottleneckMLP
from dinomaly_hd.models.dinomaly.losses import HardMining, discard_rate, token_distance
from dinomaly_hd.models.dinomaly.score import MeanPooling
from dinomaly_hd.models.fast import positive_feature
from dinomaly_hd.models.networks import interpolate_positions
from dinomaly_hd.training.optim import StableAdamW, warm_cosine

HERE = Path(__file__).parent
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
PRECISIONS = [("32", torch.float32), ("64", torch.float64)]
precisions = pytest.mark.parametrize(("suffix", "dtype"), PRECISIONS)


def load(name: str) -> dict[str, Any]:
    with np.load(HERE / f"{name}.npz") as archive:
        return {key: archive[key] for key in archive.files}


def part_of(golden: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in golden.items() if name.startswith(prefix)}


def assert_close(tensor: Tensor | None, expected: np.ndarray, *, tolerance: float) -> None:
    assert tensor is not None
    actual, scale = tensor.detach().double().numpy(), max(np.abs(expected).max(), 1e-30)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() / scale <= tolerance


def filled(module: torch.nn.Module, weights: dict[str, np.ndarray], dtype: torch.dtype) -> torch.nn.Module:
    module.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return module.to(dtype)


@precisions
def test_g1_linear_attention(suffix: str, dtype: torch.dtype) -> None:
    # The 1e-6 in the denominator, which keeps underflow finite, moves float64 by more than 1e-12.
    golden = load("g1_linear_attention2")
    for tag in "abc":
        weights = part_of(golden, f"{tag}_w.")
        x = torch.from_numpy(golden[f"{tag}_x"]).to(dtype).requires_grad_()
        heads = int(golden[f"{tag}_heads"])
        module = filled(
            LinearAttention(x.shape[-1], heads=heads, qkv_bias="qkv.bias" in weights), weights, dtype
        )
        out = module(module.qkv(x), noise=None).tokens_BND
        out.backward(torch.from_numpy(golden[f"{tag}_gy"]).to(dtype))
        assert_close(out, golden[f"{tag}_y{suffix}"], tolerance=1e-5)
        assert_close(x.grad, golden[f"{tag}_dx{suffix}"], tolerance=1e-5)
        for name, parameter in module.named_parameters():
            assert_close(parameter.grad, golden[f"{tag}_grad{suffix}.{name}"], tolerance=1e-5)
    x, weight, bias = (
        torch.from_numpy(golden[f"a_{n}"]).to(dtype) for n in ("x", "w.qkv.weight", "w.qkv.bias")
    )
    q, k, v = (x @ weight.T + bias).reshape(2, 7, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
    state = attend(positive_feature(q), positive_feature(k), v).state_Bhdd
    assert_close(state, golden[f"a_kv{suffix}"], tolerance=TOLERANCE[dtype])


def test_g1_underflow_is_finite_where_the_original_is_nan() -> None:
    golden = load("g1_linear_attention2")
    assert np.isnan(golden["nan_y"]).all()
    module = filled(LinearAttention(4, heads=1), part_of(golden, "nan_w."), torch.float32)
    out = module(module.qkv(torch.from_numpy(golden["nan_x"])), noise=None).tokens_BND
    assert torch.isfinite(out).all()


@precisions
@pytest.mark.parametrize("factor", [0.1, 0.0])
@pytest.mark.parametrize("p", [0, 0.5, 0.9, 0.2997])
@pytest.mark.parametrize("tag", ["s", "m", "r"])
def test_g2_hard_mining(tag: str, p: float, factor: float, suffix: str, dtype: torch.dtype) -> None:
    golden = load("g2_loss_hm_percent")

    def groups(kind: str) -> list[Tensor]:
        return [torch.from_numpy(golden[f"{tag}_{kind}{i}"]).to(dtype) for i in range(2)]

    decoder = [group.requires_grad_() for group in groups("de")]
    encoder_BSND, decoder_BSND = (
        torch.stack([group.flatten(2).transpose(1, 2) for group in side], dim=1)
        for side in (groups("en"), decoder)
    )
    loss = HardMining(HardMiningLoss(discard_final=p, discard_warmup=0, discard_factor=factor), (0, 0))
    batch = Batch(torch.zeros(len(encoder_BSND), 1, 1), torch.zeros(len(encoder_BSND)), None)
    result = loss(encoder_BSND, decoder_BSND, pooling=MeanPooling(), batch=batch, step=0)
    result.total.backward()
    key = f"{tag}_p{p:g}_f{factor:g}"
    assert_close(result.total, golden[f"{key}_loss{suffix}"], tolerance=TOLERANCE[dtype])
    for i, group in enumerate(decoder):
        assert_close(group.grad, golden[f"{key}_grad{i}_{suffix}"], tolerance=TOLERANCE[dtype])


def test_g2_discard_schedule() -> None:
    golden = load("g2_loss_hm_percent")
    for step, expected in zip(golden["sched_it"], golden["sched_p"], strict=True):
        assert discard_rate(int(step), final=0.9, warmup=1000) == expected
    for batch in (1, 2, 4, 8, 16):
        ks = [max(1, int(batch * 784 * (1 - p))) for p in golden["sched_p"]]
        assert ks == golden[f"sched_k_b{batch}_28x28"].tolist()


@pytest.mark.parametrize(
    ("tag", "suffix", "dtype"),
    [("small", *PRECISIONS[0]), ("small", *PRECISIONS[1]), ("real", *PRECISIONS[0])],
)
def test_g3_anomaly_map(tag: str, suffix: str, dtype: torch.dtype) -> None:
    golden = load("g3_anomaly_map")
    size, mask = int(golden[f"{tag}_out_size"]), int(golden[f"{tag}_mask_size"])
    sides = [
        [torch.from_numpy(golden[f"{tag}_{kind}{i}"]).to(dtype) for i in range(2)] for kind in ("en", "de")
    ]
    encoder, decoder = (torch.stack([g.flatten(2).transpose(1, 2) for g in side], dim=1) for side in sides)
    batch, _, rows, columns = sides[0][0].shape
    distance = token_distance(encoder, decoder).reshape(batch, 2, rows, columns)
    tolerance = TOLERANCE[dtype]
    sizes: dict[str, Any] = {"image_size": (size, size), "map_size": (mask, mask), "pool": MeanPooling()}
    plain = score.upsample(distance, **sizes)
    assert_close(plain[:, None], golden[f"{tag}_map_resized{suffix}"], tolerance=tolerance)
    assert_close(
        score.top_share_score(plain), golden[f"{tag}_score_top1pct_pregauss{suffix}"], tolerance=tolerance
    )
    predicted = score.predict(distance, **sizes, border="zero", row_context=0)
    assert_close(predicted.map_BHW[:, None], golden[f"{tag}_map_resized_gauss{suffix}"], tolerance=tolerance)
    assert_close(predicted.score_B, golden[f"{tag}_score_top1pct{suffix}"], tolerance=tolerance)


def test_g3_gaussian() -> None:
    golden = load("g3_anomaly_map")
    ones = torch.ones(1, 8, 8)
    kernel = score.gaussian_kernel(5, 4.0)
    assert_close(kernel[None, None], golden["gauss_kernel_5_4"], tolerance=1e-6)
    darkened = score.blur(ones, border="zero")
    assert_close(
        darkened.reshape(golden["gauss_of_ones_8x8"].shape), golden["gauss_of_ones_8x8"], tolerance=1e-6
    )
    assert torch.allclose(score.blur(ones, border="reflect"), ones)


def test_g4_warm_cosine() -> None:
    for key, total, warmup, start in (
        ("lr_before_step", 300, 100, 0.0),
        ("lr_before_step_1000_100", 1000, 100, 0.0),
        ("lr_before_step_5000_100", 5000, 100, 0.0),
        ("lr_before_step_start1e-4", 50, 10, 1e-4),
    ):
        expected = load("g4_warm_cosine")[key]
        shape = {"base": 2e-3, "final": 2e-4, "warmup": warmup, "total": total, "start": start}
        actual = [warm_cosine(i, **shape) for i in range(len(expected))]
        np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-18)


CONFIGS: dict[str, dict[str, Any]] = {
    "ams10": {"lr": 2e-3},
    "ams8": {"lr": 2e-3, "eps": 1e-8},
    "noams": {"lr": 2e-3, "amsgrad": False},
    "wd": {"lr": 1e-2, "betas": (0.8, 0.95), "weight_decay": 0.1, "eps": 1e-6, "clip_threshold": 0.5},
}


@precisions
@pytest.mark.parametrize("config", CONFIGS)
def test_g5_stable_adamw(config: str, suffix: str, dtype: torch.dtype) -> None:
    golden = load("g5_stable_adamw")
    parameters = {
        n: torch.from_numpy(golden[f"p0.{n}"]).to(dtype).requires_grad_() for n in ("W", "b", "big")
    }
    optimizer = StableAdamW(parameters.values(), **CONFIGS[config])
    for step in range(10):
        for name, parameter in parameters.items():
            parameter.grad = torch.from_numpy(golden[f"g.{name}"][step]).to(dtype)
        optimizer.step()
        for name, parameter in parameters.items():
            assert_close(parameter, golden[f"{config}_{suffix}.{name}"][step], tolerance=TOLERANCE[dtype])
    for name, parameter in parameters.items():
        for moment in [key for key in optimizer.state[parameter] if key != "step"]:
            expected = golden[f"{config}_{suffix}.{name}.{moment}"]
            assert_close(optimizer.state[parameter][moment], expected, tolerance=TOLERANCE[dtype])


@precisions
def test_g5_thirty_steps_with_clipping_and_schedule(suffix: str, dtype: torch.dtype) -> None:
    golden = load("g5_stable_adamw")
    w = torch.from_numpy(golden["quad_w0"]).to(dtype).requires_grad_()
    matrix = torch.from_numpy(golden["quad_A"]).to(dtype)
    optimizer = StableAdamW([w], lr=2e-3)
    for step in range(30):
        optimizer.param_groups[0]["lr"] = warm_cosine(step, base=2e-3, final=2e-4, warmup=10, total=30)
        loss = 0.5 * (matrix @ w).square().sum()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([w], 0.1)
        optimizer.step()
        assert_close(w, golden[f"quad_w_{suffix}"][step], tolerance=TOLERANCE[dtype])
        assert_close(norm, golden[f"quad_gradnorm_{suffix}"][step], tolerance=TOLERANCE[dtype])
        assert_close(loss, golden[f"quad_loss_{suffix}"][step], tolerance=TOLERANCE[dtype])


def test_g6c_position_embedding() -> None:
    golden = load("g6c_pos_embed")
    grids = {"small": ((7, 7), (4, 4), (10, 10)), "dino": ((28, 28), (32, 32), (16, 16), (28, 20))}
    for tag, (rows, columns) in ((tag, grid) for tag, own in grids.items() for grid in own):
        table = torch.from_numpy(golden[f"{tag}_pos_embed"])
        expected = golden[f"{tag}_to{rows}" if rows == columns else f"{tag}_to{rows}x{columns}"]
        found = interpolate_positions(table[:, 1:], grid=(rows, columns))
        assert_close(found, expected[:, 1:], tolerance=1e-5)
        assert (expected[:, :1] == table[:, :1].numpy()).all()


@precisions
def test_g7_bottleneck(suffix: str, dtype: torch.dtype) -> None:
    golden = load("g7_bmlp")
    mlp = filled(BottleneckMLP(12, p=0.2), part_of(golden, "w."), dtype)
    out = mlp(torch.from_numpy(golden["x"]).to(dtype), noise=None)
    assert_close(out.tokens_BND, golden[f"y{suffix}"], tolerance=TOLERANCE[dtype])


def test_g7_three_dropouts() -> None:
    golden = load("g7_bmlp")
    mlp = BottleneckMLP(64, p=0.2)
    with torch.no_grad():
        for layer, factor in ((mlp.fc1, 1000), (mlp.fc2, 1 / 1000)):  # where GELU is the identity
            torch.nn.init.eye_(layer.weight).mul_(factor)
            torch.nn.init.zeros_(layer.bias)
        noise = Noise(1, step=0, device=torch.device("cpu"))
        out = mlp(torch.ones(64, 100, 64), noise=noise).tokens_BND
    values = np.unique(out.numpy().round(5))
    np.testing.assert_allclose(values, golden["train_identity_values"], atol=1e-4)
    rate, count = float((out != 0).float().mean()), out.numel()
    assert abs(rate - 0.8**3) < 3 * (0.512 * 0.488 / count) ** 0.5
    assert abs(rate - float(golden["train_identity_keep_rate"])) < 0.01


def test_dropout_scales_what_it_keeps() -> None:
    kept = dropout(torch.ones(10_000), p=0.2, generator=torch.Generator().manual_seed(3))
    assert set(kept.unique().tolist()) == {0.0, 1.25}
