"""The full preset on one device: step time, scoring rate, peak memory, and agreement with the CPU.

    python -m benchmarks.gpu_check                        # on a machine with CUDA
    python -m benchmarks.gpu_check --device cpu --encoder dinov2reg_vit_small_14 --batch 2 --steps 2

Weights are random (their values change no time); results go to benchmarks/results/gpu_check.json.
"""

from collections.abc import Callable
from statistics import median_high
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import given, record, timed
from dinomaly_hd.batch import Batch
from dinomaly_hd.config import RunConfig, with_values
from dinomaly_hd.config.presets import preset_run
from dinomaly_hd.config.variants import horizontal
from dinomaly_hd.experiments.score import predict
from dinomaly_hd.models.build import build_detector
from dinomaly_hd.models.weights import locate
from dinomaly_hd.training.optim import StableAdamW

AGREEMENT = {"32": 1e-4, "bf16": 0.05}
"""Largest relative difference of scores to the CPU's in float32."""


def median_seconds(work: Callable[[int], object], *, steps: int, device: torch.device) -> float:
    """Return the median wall time of ``work(step)`` after one call that is not counted."""

    def done(step: int) -> None:
        work(step)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    done(0)
    return median_high(timed(lambda step=step: done(step))[0] for step in range(1, steps + 1))


def measure(run: RunConfig, *, batch: int, steps: int, device: torch.device) -> dict[str, float]:
    """Return rates and peak memory of encoding, a step from encoded images, a whole step, and scoring."""
    weights = locate(run.encoder.encoder, run.encoder.encoder_weights)
    detector = build_detector(run, weights=weights).to(device)
    images = torch.rand(batch, 31, 95, generator=torch.Generator().manual_seed(1)).to(device)
    domain = torch.zeros(batch, dtype=torch.int64, device=device)
    trained = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    optimizer = StableAdamW(trained, lr=run.training.learning_rate)

    def step_on(encoded: Tensor, step: int) -> None:
        optimizer.zero_grad()
        detector.training_loss(Batch(images, domain, encoded), step=step).total.backward()
        torch.nn.utils.clip_grad_norm_(trained, run.training.gradient_clip)
        optimizer.step()

    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=run.bf16):
        encoded = detector.encode(images)
        works: dict[str, Callable[[int], object]] = {
            "encode": lambda _: detector.encode(images),
            "step_from_cache": lambda step: step_on(encoded, step),
            "step": lambda step: step_on(detector.encode(images), step),
            "score": lambda _: detector.score(detector.encode(images)),
        }
        seconds = {name: median_seconds(work, steps=steps, device=device) for name, work in works.items()}
    rates = {f"{name}_images_per_s": batch / value for name, value in seconds.items()}
    memory = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else float("nan")
    return {**rates, "peak_memory_gib": memory}


def agreement(base: RunConfig, run: RunConfig, *, device: torch.device) -> float:
    """Return the largest relative difference between scores of ``run`` there and of ``base`` on the CPU."""
    images = torch.rand(2, 31, 95, generator=torch.Generator().manual_seed(2))
    weights = locate(run.encoder.encoder, run.encoder.encoder_weights)

    def scores(of: RunConfig, place: torch.device) -> Tensor:
        detector = build_detector(of, weights=weights).to(place)
        return predict(detector, images, device=place, bf16=of.bf16).score_B

    cpu, other = scores(base, torch.device("cpu")), scores(run, device)
    return float(((cpu - other).abs() / cpu.abs()).max())


def main() -> None:
    told = given(__doc__, device="cuda", encoder="dinov2reg_vit_base_14", batch=16, steps=20)
    device = torch.device(told.device)
    encoder = {"encoder": told.encoder, "encoder_weights": "random"}
    base = with_values(preset_run("full", horizontal()), encoder)
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "encoder": told.encoder,
        "batch": told.batch,
    }
    for precision in AGREEMENT:
        run = with_values(base, {"precision": precision})
        result[precision] = {
            **measure(run, batch=told.batch, steps=told.steps, device=device),
            "relative_difference_to_cpu": agreement(base, run, device=device),
        }
    record("gpu_check", result)
    for precision, most in AGREEMENT.items():
        found = result[precision]["relative_difference_to_cpu"]
        assert found < most, f"scores of precision={precision} differ by {found:.1e} from the CPU's"


if __name__ == "__main__":
    main()
