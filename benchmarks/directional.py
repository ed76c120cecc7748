"""What the directional parts cost.

    MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 python -m benchmarks.directional

(The two settings let glibc keep freed memory: else tensors above 32 MB, those of 12544 tokens, are paid for
with page faults each time.)

Row-blind attention: seconds, time and operations per token at 784, 3136 and 12544 tokens (28, 56 and 112
rows and columns) of ViT-B's 12 heads of 64, beside plain linear attention. Linear means a time per token
that does not grow with the tokens. Segment dropout: 16 x 784 x 768 tokens, forward and backward, as a share
of one training step of the full preset's bottleneck and decoder (ViT-B width, 8 blocks), encoder not counted.
Prints tables and writes benchmarks/results/directional.json. One thread on a CPU, so that figures compare.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dinomaly_hd.batch import Batch
from dinomaly_hd.models.attention import PlainMixing, linear_attention
from dinomaly_hd.models.bottleneck import BottleneckMLP, NoisyMLP, SegmentDropout
from dinomaly_hd.models.dinomaly import Decoder
from dinomaly_hd.models.dinomaly.distance import MeanPooling
from dinomaly_hd.models.losses import HardMining
from dinomaly_hd.models.noise import Noise
from dinomaly_hd.models.row_attention import row_blind_attention
from dinomaly_hd.training.optim import StableAdamW

RESULT = Path(__file__).parent / "results" / "directional.json"
SIDES = (28, 56, 112)
HEADS, HEAD_WIDTH, WIDTH = 12, 64, 768
BATCH, GRID, DEPTH = 16, (28, 28), 8
REPETITIONS = 9


class Timing(NamedTuple):
    """Seconds of one attention at a number of tokens."""

    attention: str
    tokens: int
    seconds: float
    microseconds_per_token: float
    operations_per_token: float


def best_seconds(work: Callable[[int], object], *, repetitions: int) -> float:
    """Return the shortest wall time of ``work(step)``."""
    times = []
    for step in range(repetitions):
        began = time.perf_counter()
        work(step)
        times.append(time.perf_counter() - began)
    return min(times)


def attentions(side: int) -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """Return the attentions compared on a square grid."""
    grid = (side, side)
    return {
        "plain": lambda q, k, v: linear_attention(q, k, v).value_BhNd,
        "row-blind, radius 3": lambda q, k, v: row_blind_attention(q, k, v, grid=grid, radius=3),
        "row-blind, full row": lambda q, k, v: row_blind_attention(q, k, v, grid=grid, radius=None),
    }


def time_attention() -> list[Timing]:
    """Time each attention, forward only, one image."""
    rows = []
    for side in SIDES:
        generator = torch.Generator().manual_seed(side)
        shape = (1, HEADS, side * side, HEAD_WIDTH)
        parts = [torch.randn(shape, generator=generator) for _ in range(3)]
        for name, attend in attentions(side).items():
            with torch.no_grad():
                seconds = best_seconds(lambda _, f=attend, p=parts: f(*p), repetitions=REPETITIONS)  # type: ignore[misc]
                with FlopCounterMode(display=False) as counter:
                    attend(*parts)
            per_token = 1e6 * seconds / side**2
            rows.append(Timing(name, side**2, seconds, per_token, counter.get_total_flops() / side**2))
    return rows


def growth(rows: list[Timing]) -> dict[str, float]:
    """Return per attention the time per token at the most tokens over that at the fewest; 1 is linear."""
    by_name: dict[str, list[float]] = {}
    for row in rows:
        by_name.setdefault(row.attention, []).append(row.microseconds_per_token)
    return {name: per_token[-1] / per_token[0] for name, per_token in by_name.items()}


def segment_dropout() -> SegmentDropout:
    """Return segment dropout at its defaults."""
    return SegmentDropout(GRID, row_p=0.2, seg_len=2, seg_drop_p=0.6)


def time_segments() -> float:
    """Return seconds of one segment dropout, forward and backward."""
    x_BND = torch.randn(BATCH, GRID[0] * GRID[1], WIDTH, requires_grad=True)
    gradient_BND, dropout = torch.ones_like(x_BND), segment_dropout()

    def work(step: int) -> None:
        dropout(x_BND, noise=noise(step)).tokens_BND.backward(gradient_BND)

    return best_seconds(work, repetitions=REPETITIONS)


def noise(step: int) -> Noise:
    """Return the noise of a step."""
    return Noise(0, step=step, device=torch.device("cpu"))


def time_training_step(*, repetitions: int) -> float:
    """Return seconds of one optimizer step of bottleneck and decoder from cached features."""
    mlp = BottleneckMLP(WIDTH, hidden=4 * WIDTH, p=0.1)
    bottleneck = NoisyMLP(segment_dropout(), mlp)
    decoder = Decoder(WIDTH, heads=HEADS, mixings=[PlainMixing() for _ in range(DEPTH)])
    loss = HardMining(discard_final=0.9, discard_warmup=1000, discard_factor=0.1)
    parameters = [*bottleneck.parameters(), *decoder.parameters()]
    optimizer = StableAdamW(parameters, lr=2e-3)
    generator = torch.Generator().manual_seed(1)
    encoded = torch.randn(BATCH, 2, GRID[0] * GRID[1], WIDTH, generator=generator)
    batch = Batch(torch.zeros(BATCH, 31, 95), torch.zeros(BATCH, dtype=torch.int64), encoded)

    def work(step: int) -> None:
        optimizer.zero_grad()
        tokens_BND = bottleneck(encoded.mean(dim=1), noise=noise(step)).tokens_BND
        decoded = decoder(tokens_BND, noise=noise(step)).groups_BSTD
        loss(encoded, decoded, pooling=MeanPooling(), batch=batch, step=step).total.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.1)
        optimizer.step()

    return best_seconds(work, repetitions=repetitions)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1, help="training steps that are timed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = time_attention()
    for row in rows:
        per_token = (
            f"{row.microseconds_per_token:7.2f} us, {row.operations_per_token:9.0f} operations per token"
        )
        print(f"{row.attention:22}{row.tokens:6} tokens {row.seconds:8.4f} s {per_token}")
    grown = growth(rows)
    for name, factor in grown.items():
        print(f"{name:22}time per token, {SIDES[-1] ** 2} over {SIDES[0] ** 2} tokens: {factor:.2f}")
    segments = time_segments()
    print(f"segment dropout {segments:.4f} s", flush=True)
    step = time_training_step(repetitions=arguments.steps)
    print(f"training step {step:.1f} s; segment dropout is {100 * segments / step:.2f} % of it")
    result = {
        "torch": torch.__version__,
        "threads": 1,
        "attention": [row._asdict() for row in rows],
        "time_per_token_growth": grown,
        "segment_dropout_s": segments,
        "training_step_s": step,
        "segment_dropout_share": segments / step,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
