"""Fast kernels give the values and gradients of plain ones: products, what is made again, pieces."""

import weakref
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinomaly_hd.config.presets import preset_run
from dinomaly_hd.config.run import EncoderConfig
from dinomaly_hd.config.variants import baseline
from dinomaly_hd.errors import ConfigError
from dinomaly_hd.experiments import prepare
from dinomaly_hd.models import encoders, fast
from dinomaly_hd.models.detector import Kept
from dinomaly_hd.models.encoders import attention, build_encoder
from dinomaly_hd.models.fast import (
    Linear,
    divided,
    gelu_to_spare,
    linear,
    linear_of,
    pieces,
    positive_feature,
)
from dinomaly_hd.models.weights import Weights

WIDE, NARROW = 192, 96
Work = Callable[[], Tensor]


@pytest.fixture(params=[True, False], ids=["onednn", "plain"])
def onednn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param and not fast._onednn_is_right():
        pytest.skip("this PyTorch has no such operator")
    choose(monkeypatch, "onednn" if request.param else "lean")
    return bool(request.param)


def choose(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(fast, "kernels", lambda *_: name)


def operators(work: nn.Module, x: Tensor) -> set[str]:
    with torch.profiler.profile() as profile:
        work(x)
    return {event.key for event in profile.key_averages()}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(WIDE, NARROW), (NARROW, WIDE)])
def test_values_and_gradients_are_a_linear_layers(
    inputs: int, outputs: int, bias: bool, onednn: bool
) -> None:
    layer = Linear(inputs, outputs, bias=bias)
    assert ("mkldnn::_linear_pointwise" in operators(layer, random(4, inputs))) == onednn
    plain = nn.Linear(inputs, outputs, bias=bias, dtype=torch.float64)
    plain.load_state_dict(layer.state_dict())
    x = random(3, 7, inputs).requires_grad_()
    wide = x.detach().double().requires_grad_()
    weights = random(3, 7, outputs, seed=1)
    (layer(x) * weights).sum().backward()
    (plain(wide) * weights).sum().backward()
    torch.testing.assert_close(layer(x).double(), plain(wide), atol=1e-5, rtol=0)
    for one, other in zip((x, *layer.parameters()), (wide, *plain.parameters()), strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, atol=2e-5, rtol=1e-5)
    layer.zero_grad()
    layer.requires_grad_(False)(x).sum().backward()
    assert not any(parameter.grad is not None for parameter in layer.parameters())
    if onednn:  # a row does not depend on the others; MKL takes other kernels for few rows
        rows = random(200, inputs, seed=2)
        whole = layer(rows)
        assert all(torch.equal(layer(rows[50 : 50 + n]), whole[50 : 50 + n]) for n in (2, 7, 64, 100))


def test_all_else_is_pytorchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, "onednn")
    wide = random(WIDE, WIDE)
    for weight in (random(8, 8), wide.double(), wide.bfloat16()):
        assert torch.equal(linear(weight[:2], weight), F.linear(weight[:2], weight))
    layer, x = Linear(WIDE, WIDE), random(4, WIDE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
        assert layer(x).dtype == torch.bfloat16


def heads(tokens: int, *, width: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values (2, 3, N, d) as timm cuts them out of one product."""
    q, k, v = random(2, tokens, 3, 3, width).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


@torch.no_grad()
def test_attention_is_softmax_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, "onednn")
    q, k, v = heads(261)
    plain = (q.double() @ k.double().mT / 8).softmax(dim=-1) @ v.double()
    for cached in (encoders.CACHED_BYTES, 4 * 261 * 100):  # all queries at once, and a hundred at a time
        monkeypatch.setattr(encoders, "CACHED_BYTES", cached)
        found = attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False)
        torch.testing.assert_close(found.double(), plain, atol=1e-5, rtol=0)
        assert found.transpose(1, 2).is_contiguous()


@torch.no_grad()
def test_all_other_attention_is_pytorchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, "onednn")
    monkeypatch.setattr(encoders, "linear", None)
    q, k, v = heads(261)
    mask, own = random(261, 261) > 0, F.scaled_dot_product_attention
    assert torch.equal(attention(q, k, v, mask), own(q, k, v, mask))
    for more in ({"attn_mask": mask}, {"is_causal": True}, {"scale": 0.5}):
        assert torch.equal(attention(q, k, v, **more), own(q, k, v, **more))
    few, wide = heads(20), tuple(x.double() for x in (q, k, v))
    for given in (few, wide, (q, k[:, :, :100], v[:, :, :100]), (q[0], k[0], v[0])):
        assert torch.equal(attention(*given), own(*given))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attention(q, k, v).dtype == torch.bfloat16


def test_a_frozen_vit_multiplies_and_attends_by_onednn_or_not(onednn: bool) -> None:
    config = EncoderConfig(encoder="dinov2reg_vit_small_14", image_size="224", crop="none")
    weights = Weights("random", None, "random")
    encoder = build_encoder(config, weights=weights, keep_prefix=True, seed=0)
    images = random(1, 3, 224, 224)
    used = operators(encoder, images)
    assert ("mkldnn::_linear_pointwise" in used) == onednn
    assert ("aten::scaled_dot_product_attention" in used) != onednn
    assert ("aten::linear" in used) != onednn
    with torch.no_grad():
        plain = encoder._groups(images)  # whatever kernels runs
    torch.testing.assert_close(encoder(images), plain, atol=1e-4, rtol=0)


def test_the_processor_and_the_operator_choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(fast.SWITCH, raising=False)
    monkeypatch.setattr(fast, "CPUINFO", tmp_path / "cpuinfo")
    for vendor, capability, right, device in product(
        (None, "AuthenticAMD", "GenuineIntel"), ("AVX512", "AVX2"), (True, False), ("cpu", "cuda")
    ):
        if vendor is not None:
            fast.CPUINFO.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: some\n")
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda c=capability: c)
        monkeypatch.setattr(fast, "_onednn_is_right", lambda r=right: r)
        faster = (vendor, capability, right, device) == ("AuthenticAMD", "AVX512", True, "cpu")
        assert fast._suitable.__wrapped__(device) == ("onednn" if faster else "lean")
    monkeypatch.undo()
    for operator in (None, lambda x, weight, bias: F.linear(x, weight, bias) + 1e-3):  # raises; is wrong
        monkeypatch.setattr(fast, "_onednn", operator)
        assert not fast._onednn_is_right()


def test_pieces_are_the_batch_and_no_larger_than_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "CACHED_BYTES", 4 * 100)
    batch = random(7, 3)
    assert [len(part) for part in pieces(batch, widest=30)] == [3, 3, 1]
    assert [len(part) for part in pieces(batch, widest=1000)] == [1] * 7
    assert torch.equal(torch.cat(pieces(batch, widest=30)), batch)
    assert [len(part) for part in pieces(batch[:0], widest=30)] == [0]
    assert len(pieces(batch.to("meta"), widest=30)) == 1, "only a CPU's batch is split"


def test_the_environment_switches_all_of_it_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, below = leaf(40, WIDE), random(40, 1)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(fast, "CPUINFO", tmp_path / "cpuinfo")
    fast.CPUINFO.write_text(fast.AMD)
    for setting, on in (("plain", False), ("", True)):
        monkeypatch.setenv("DINOMALY_HD_KERNELS", setting)
        monkeypatch.setattr(fast, "_suitable", cache(fast._suitable.__wrapped__))  # decided anew
        layer = Linear(WIDE, NARROW)
        if fast._onednn_is_right():
            assert ("mkldnn::_linear_pointwise" in operators(layer, x.detach())) == on
        assert len(pieces(random(7, 3), widest=2**30)) == (7 if on else 1)
        for out in (positive_feature(x), divided(x[None, None], below[None, None])):
            assert out.grad_fn is not None
            assert out.grad_fn.name().startswith("_") == on, "differentiated by hand"
        assert holds_hidden(linear_of, x, layer) != on
    monkeypatch.setenv("DINOMALY_HD_KERNELS", "plian")
    with pytest.raises(ConfigError, match="DINOMALY_HD_KERNELS=plian: expected plain"):
        fast._suitable.__wrapped__("cpu")


def test_encoded_images_belong_to_the_kernels_that_encoded_them(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, device = SimpleNamespace(digest="", source="file"), torch.device("cpu")
    work: Any = SimpleNamespace(
        run=preset_run("quick", baseline()), ready=SimpleNamespace(weights=weights), device=device
    )
    found = set()
    for name in ("plain", "lean", "onednn"):
        monkeypatch.setattr(prepare, "kernels", {"cpu": name}.__getitem__)
        found.add(prepare._encoding(work))
    assert len(found) == 3


# What is made again in the backward pass, or differentiated by hand


def holds_hidden(work: Callable[..., Tensor], x: Tensor, layer: nn.Linear) -> bool:
    """Return whether the backward pass of ``work(make, x, layer=layer)`` keeps what ``make`` made."""
    made = []

    def make(x: Tensor) -> Tensor:
        out = F.gelu(x)
        made.append(weakref.ref(out.untyped_storage()))
        return out

    out = work(make, x, layer=layer)
    assert out.requires_grad
    return made[0]() is not None


def leaf(*shape: int, seed: int = 0) -> Tensor:
    return random(*shape, seed=seed).requires_grad_()


def value_and_gradients(out: Tensor, *given: Tensor) -> list[Tensor]:
    weights = random(*out.shape, seed=9).to(out.dtype)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), given)]


def kept_bytes(work: Work) -> int:
    """Return what autograd keeps for the backward pass, each storage once."""
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = work()
    del out
    return sum(kept.values())


def plain_feature(x: Tensor) -> Tensor:
    return torch.exp(x.clamp(max=0)) + F.relu(x)


def test_positive_feature_is_elu_plus_one_and_its_slope_does_not_jump_at_zero() -> None:
    x = torch.tensor([-200.0, -20.0, -1.0, -0.0, 0.0, 1e-9, 0.5, 30.0], requires_grad=True)
    feature = positive_feature(x)
    (slope,) = torch.autograd.grad(feature.sum(), x)
    assert torch.equal(feature.detach(), plain_feature(x.detach()))
    wide = x.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(F.elu(wide).sum(), wide)
    assert torch.allclose(slope.double(), expected, rtol=1e-6, atol=1e-40)
    assert slope[3:5].tolist() == [1.0, 1.0]


def made_norm() -> nn.LayerNorm:
    norm = nn.LayerNorm(8, eps=1e-8)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


def fused() -> dict[str, tuple[Work, Work, tuple[Tensor, ...]]]:
    """Return by name: ours, the same by autograd, and what has gradients."""
    x, value = leaf(2, 7, 3, 4), leaf(2, 3, 5, 4)
    below = (random(2, 3, 5, 1).abs() + 1).requires_grad_()
    view, wide, given = x.permute(0, 2, 1, 3), leaf(3, 50, 32), leaf(3, 5, 8)
    kept = Kept(random(3, 50, 32, seed=1) > -0.5, 1 / 0.7)
    torch.manual_seed(0)
    norm, layer, plain = made_norm(), nn.Linear(32, 8), nn.Linear(8, 12, bias=False)
    return {
        "feature": (lambda: positive_feature(view), lambda: plain_feature(view), (x,)),
        "quotient": (lambda: divided(value, below), lambda: value / below, (value, below)),
        "mask": (lambda: kept.of(wide), lambda: wide * (kept.mask * kept.scale), (wide,)),
        "gelu, dropout and linear": (
            lambda: linear_of(lambda x: kept.of(F.gelu(x)), wide * 1, layer=layer),
            lambda: layer(F.gelu(wide * 1) * kept.scale * kept.mask),
            (wide, *layer.parameters()),
        ),
        "norm and linear without bias": (
            lambda: linear_of(norm, given, layer=plain),
            lambda: plain(norm(given)),
            (given, *norm.parameters(), plain.weight),
        ),
        "what lies in another order": (
            lambda: linear_of(F.gelu, wide.transpose(0, 1), layer=layer),
            lambda: layer(F.gelu(wide.transpose(0, 1))),
            (wide, *layer.parameters()),
        ),
    }


@pytest.mark.parametrize("name", fused())
def test_values_and_gradients_equal_autograds_bit_by_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    work, plain, given = fused()[name]
    expected = value_and_gradients(plain(), *given)
    for kernels in ("lean", "plain"):
        choose(monkeypatch, kernels)
        found = value_and_gradients(work(), *given)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    with torch.no_grad():
        assert torch.equal(work(), expected[0])


def test_gelu_writes_over_its_input_only_where_nothing_has_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    x = random(5, 8)
    for kernels, grad in product(("plain", "lean", "onednn"), (True, False)):
        choose(monkeypatch, kernels)
        given = x.clone()
        with torch.set_grad_enabled(grad):
            out = gelu_to_spare()(given)
        assert torch.equal(out, F.gelu(x))
        assert torch.equal(given, out if kernels != "plain" and not grad else x)


def test_results_lie_token_by_token_and_less_is_kept_than_by_autograd() -> None:
    assert positive_feature(leaf(2, 7, 3, 4).permute(0, 2, 1, 3)).is_contiguous()
    assert divided(leaf(2, 3, 5, 4), leaf(2, 3, 5, 1)).transpose(1, 2).is_contiguous()
    x, kept = leaf(64, 8), Kept(random(64, 8) > 0, 2.0)
    assert kept_bytes(lambda: kept.of(x)) == x.nelement(), "a byte a value"
    assert kept_bytes(lambda: positive_feature(x * 1)) < 0.5 * kept_bytes(lambda: plain_feature(x * 1))


@pytest.mark.usefixtures("onednn")
def test_what_a_linear_layer_is_given_is_made_again() -> None:
    layer, x = Linear(WIDE, WIDE), leaf(2, 20, WIDE)
    assert not holds_hidden(linear_of, x, layer)
    assert holds_hidden(lambda make, x, layer: layer(make(x)), x, layer)


def test_under_autocast_gradients_are_those_of_autocast() -> None:
    torch.manual_seed(0)
    norm, layer, x = made_norm(), nn.Linear(8, 32), leaf(3, 5, 8)
    given = (x, *norm.parameters(), *layer.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, plain = linear_of(norm, x, layer=layer), layer(norm(x))
    assert ours.dtype == plain.dtype == torch.bfloat16
    for one, other in zip(value_and_gradients(ours, *given), value_and_gradients(plain, *given), strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
