"""The full preset on one device: step time, scoring rate, peak memory, and agreement with the CPU.

    python -m benchmarks.gpu_check                        # on a machine with CUDA
    python -m benchmarks.gpu_check --device cpu --encoder dinov2reg_vit_small_14 --batch 2 --steps 2

Weights are random (their values change no time); results go to benchmarks/results/gpu_check.json.
"""

import tempfile
from collections.abc import Callable
from statistics import median_high
from typing import Any

import torch

from benchmarks.common import given, record, timed
from benchmarks.speed.subjects import Case, detector_of, ours, write_weights
from dinomaly_hd.experiments.score import predict

AGREEMENT = {"32": 1e-4, "bf16": 0.05}
"""Largest relative difference of scores to the CPU's in float32."""


def measure(case: Case, *, batch: int, steps: int) -> dict[str, float]:
    """Return rates and peak memory of encoding, a step from encoded images, a whole step, and scoring."""
    plain, cached, images = ours(case, cached=False), ours(case, cached=True), case.maps(batch)
    encoded, on_gpu = cached.prepare(images), case.device != "cpu"
    works: dict[str, Callable[[int], object]] = {
        "encode": lambda _: cached.prepare(images),
        "step_from_cache": lambda step: cached.train(encoded, step),
        "step": lambda step: plain.train(images, step),
        "score": lambda _: plain.score(images),
    }
    rates = {}
    for name, work in works.items():

        def done(step: int, work: Callable[[int], object] = work) -> None:
            work(step)
            if on_gpu:
                torch.cuda.synchronize(case.device)

        done(0)  # not counted
        seconds = median_high(timed(lambda step=step: done(step))[0] for step in range(1, steps + 1))
        rates[f"{name}_images_per_s"] = batch / seconds
    memory = torch.cuda.max_memory_allocated(case.device) / 2**30 if on_gpu else float("nan")
    return {**rates, "peak_memory_gib": memory}


def agreement(case: Case) -> float:
    """Return the largest relative difference between scores there and in float32 on the CPU."""
    images = torch.rand(2, 31, 95, generator=torch.Generator().manual_seed(2))
    cpu, there = (
        predict(
            detector_of(own), images, device=torch.device(own.device), bf16=own.precision == "bf16"
        ).score_B
        for own in (case._replace(device="cpu", precision="32"), case)
    )
    return float(((cpu - there).abs() / cpu.abs()).max())


def main() -> None:
    told = given(__doc__, device="cuda", encoder="dinov2reg_vit_base_14", batch=16, steps=20)
    device = "cpu" if told.device == "cpu" else torch.cuda.get_device_name(told.device)
    result: dict[str, Any] = {"device": device, "torch": torch.__version__}
    result |= {"encoder": told.encoder, "batch": told.batch}
    with tempfile.TemporaryDirectory() as folder:
        base = Case(told.encoder, write_weights(told.encoder, folder), device=told.device)
        for precision in AGREEMENT:
            case = base._replace(precision=precision)
            measured = measure(case, batch=told.batch, steps=told.steps)
            result[precision] = {**measured, "relative_difference_to_cpu": agreement(case)}
    record("gpu_check", result)
    for precision, most in AGREEMENT.items():
        found = result[precision]["relative_difference_to_cpu"]
        assert found < most, f"scores of precision={precision} differ by {found:.1e} from the CPU's"


if __name__ == "__main__":
    main()
