"""Linear attention of the Dinomaly decoder, cost linear in the number of tokens."""

# B batch, h heads, N tokens, d width of a head, D width = h * d

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from dinomaly_hd.models.bottleneck import Noised
from dinomaly_hd.models.noise import Noise
from dinomaly_hd.models.products import Linear
from dinomaly_hd.models.recompute import divided, positive_feature

DENOMINATOR_EPSILON = 1e-6


class LinearAttended(NamedTuple):
    """Attended values (B, h, N, d) and the summed outer products k v^T (B, h, d, d)."""

    value_BhNd: Tensor
    state_Bhdd: Tensor


def linear_attention(q_BhNd: Tensor, k_BhNd: Tensor, v_BhNd: Tensor) -> LinearAttended:
    """Attend with phi(q) (sum phi(k) v^T) / (phi(q) . sum phi(k)), without softmax and without scaling.

    Sums and division run in float32 at least. Source: Dinomaly's LinearAttention2, with 1e-6 added to
    the denominator: where all features underflow the original returns NaN (spec/dinomaly.md, Decoder).
    """
    accumulate = torch.promote_types(q_BhNd.dtype, torch.float32)
    q, k, v = q_BhNd.to(accumulate), k_BhNd.to(accumulate), v_BhNd.to(accumulate)
    attended = attend_features(positive_feature(q), positive_feature(k), v)
    return LinearAttended(attended.value_BhNd.to(v_BhNd.dtype), attended.state_Bhdd)


def attend_features(q_BhNd: Tensor, k_BhNd: Tensor, v_BhNd: Tensor) -> LinearAttended:
    """Attend with features that are positive already."""
    state_Bhdd = k_BhNd.transpose(-2, -1) @ v_BhNd
    sum_Bhd = k_BhNd.sum(dim=-2)
    denominator_BhN1 = q_BhNd @ sum_Bhd.unsqueeze(-1)
    value_BhNd = divided(q_BhNd @ state_Bhdd, denominator_BhN1 + DENOMINATOR_EPSILON)
    return LinearAttended(value_BhNd, state_Bhdd)


class LinearAttention(nn.Module):
    """Multi-head linear attention with a fused qkv projection, rows [q; k; v].

    Args:
        width: D, divisible by ``heads``.
        heads: Number of heads.
        qkv_bias: Whether the qkv projection has a bias (the decoder's has).
        mixing: How queries, keys and values meet; plain linear attention where nothing is given.
    """

    def __init__(
        self, width: int, *, heads: int, qkv_bias: bool = True, mixing: "Mixing | None" = None
    ) -> None:
        super().__init__()
        self.heads = heads
        self.mixing = mixing or PlainMixing()
        self.qkv = Linear(width, 3 * width, bias=qkv_bias)
        self.proj = Linear(width, width)

    def forward(self, qkv_BNE: Tensor, *, noise: Noise | None) -> Noised:
        """Attend, from what ``qkv`` made of the tokens (E = 3 D); ``noise=None`` means inference.

        The projection stands outside, so that a block can join it with its norm. The drop rate is that of
        ``mixing``.
        """
        batch, tokens, width = *qkv_BNE.shape[:2], qkv_BNE.shape[2] // 3
        qkv = qkv_BNE.reshape(batch, tokens, 3, self.heads, width // self.heads)
        q_BhNd, k_BhNd, v_BhNd = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        with torch.autocast(device_type=qkv_BNE.device.type, enabled=False):
            mixed = self.mixing(q_BhNd, k_BhNd, v_BhNd, noise=noise)
        out_BND: Tensor = self.proj(mixed.value_BhNd.transpose(1, 2).reshape(batch, tokens, width))
        return Noised(out_BND, mixed.drop_rate)


class Mixed(NamedTuple):
    """Attended values (B, h, N, d) and the measured share of values dropped in the heads that drop."""

    value_BhNd: Tensor
    drop_rate: Tensor


class Mixing(Protocol):
    """How queries, keys and values (B, h, N, d) of one block meet; ``noise=None`` means inference.

    Attributes:
        drops: Whether values are ever dropped.
    """

    drops: bool

    def expected_drop_rate(self, step: int) -> float:
        """Return the share of values dropped on average at an optimizer step, in the heads that drop."""

    def __call__(self, q_BhNd: Tensor, k_BhNd: Tensor, v_BhNd: Tensor, *, noise: Noise | None) -> Mixed: ...


class PlainMixing:
    """Linear attention over all tokens, the original's."""

    drops = False

    def expected_drop_rate(self, step: int) -> float:
        del step
        return 0.0

    def __call__(self, q_BhNd: Tensor, k_BhNd: Tensor, v_BhNd: Tensor, *, noise: Noise | None) -> Mixed:
        del noise
        return Mixed(linear_attention(q_BhNd, k_BhNd, v_BhNd).value_BhNd, v_BhNd.new_zeros(()))
