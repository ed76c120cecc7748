"""What the directional parts cost.

    MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 python -m benchmarks.directional

(The two settings let glibc keep freed memory: else tensors above 32 MB, those of 12544 tokens, are paid for
with page faults each time.)

Row-blind attention: seconds, time and operations per token at 784, 3136 and 12544 tokens (28, 56 and 112
rows and columns) of ViT-B's 12 heads of 64, beside plain linear attention. Linear means a time per token
that does not grow with the tokens. Segment dropout: 16 x 784 x 768 tokens, forward and backward, as a share
of one training step of the full preset's bottleneck and decoder (ViT-B width, 8 blocks), encoder not counted.
Writes benchmarks/results/directional.json. One thread on a CPU, so that figures compare.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import given, record, timed
from dinomaly_hd.batch import Batch
from dinomaly_hd.config.dinomaly import HardMiningLoss, Segments
from dinomaly_hd.models.detector import Noise
from dinomaly_hd.models.dinomaly.attention import PlainMixing, linear_attention, row_blind_attention
from dinomaly_hd.models.dinomaly.bottleneck import BottleneckMLP, NoisyMLP, SegmentDropout
from dinomaly_hd.models.dinomaly.decoder import Decoder
from dinomaly_hd.models.dinomaly.losses import HardMining
from dinomaly_hd.models.dinomaly.score import MeanPooling
from dinomaly_hd.training.optim import StableAdamW

SIDES = (28, 56, 112)
HEADS, HEAD_WIDTH, WIDTH = 12, 64, 768
BATCH, GRID, DEPTH = 16, (28, 28), 8
REPETITIONS = 9


def best_seconds(work: Callable[[int], object], *, repetitions: int = REPETITIONS) -> float:
    """Return the shortest wall time of ``work(step)``."""
    return min(timed(partial(work, step))[0] for step in range(repetitions))


def time_attention() -> list[dict[str, Any]]:
    """Time each attention, forward only, one image."""
    rows: list[dict[str, Any]] = []
    for side in SIDES:
        blind = partial(row_blind_attention, grid=(side, side))
        attentions: dict[str, Callable[..., object]] = {
            "plain": linear_attention,
            "row-blind, radius 3": partial(blind, radius=3),
            "row-blind, full row": partial(blind, radius=None),
        }
        generator = torch.Generator().manual_seed(side)
        parts = [torch.randn(1, HEADS, side**2, HEAD_WIDTH, generator=generator) for _ in range(3)]
        for name, attend in attentions.items():
            with torch.no_grad():
                seconds = best_seconds(lambda _, attend=attend, parts=parts: attend(*parts))
                with FlopCounterMode(display=False) as counter:
                    attend(*parts)
            row = {"attention": name, "tokens": side**2, "seconds": seconds}
            row["microseconds_per_token"] = 1e6 * seconds / side**2
            rows.append({**row, "operations_per_token": counter.get_total_flops() / side**2})
    return rows


def growth(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return per attention the time per token at the most tokens over that at the fewest; 1 is linear."""
    per_token = pd.DataFrame(rows).groupby("attention", sort=False)["microseconds_per_token"]
    return (per_token.last() / per_token.first()).to_dict()


def noise(step: int) -> Noise:
    return Noise(0, step=step, device=torch.device("cpu"))


def time_segments() -> float:
    """Return seconds of one segment dropout, forward and backward."""
    x_BND = torch.randn(BATCH, GRID[0] * GRID[1], WIDTH, requires_grad=True)
    gradient_BND, dropout = torch.ones_like(x_BND), SegmentDropout(GRID, Segments())
    return best_seconds(lambda step: dropout(x_BND, noise=noise(step)).tokens_BND.backward(gradient_BND))


def time_training_step(*, repetitions: int) -> float:
    """Return seconds of one optimizer step of bottleneck and decoder from cached features."""
    bottleneck = NoisyMLP(SegmentDropout(GRID, Segments()), BottleneckMLP(WIDTH, p=0.1))
    decoder = Decoder(WIDTH, heads=HEADS, mixings=[PlainMixing() for _ in range(DEPTH)])
    loss = HardMining(HardMiningLoss(), GRID)
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
    steps = given(__doc__, steps=1).steps  # training steps that are timed
    torch.set_num_threads(1)
    rows = time_attention()
    segments, step = time_segments(), time_training_step(repetitions=steps)
    shared = {"torch": torch.__version__, "threads": 1, "attention": rows}
    times = {"time_per_token_growth": growth(rows), "segment_dropout_s": segments, "training_step_s": step}
    record("directional", {**shared, **times, "segment_dropout_share": segments / step})


if __name__ == "__main__":
    main()
