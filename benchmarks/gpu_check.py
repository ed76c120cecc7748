"""The full preset on one device: step time, scoring rate, peak memory, and agreement with the CPU.

    python -m benchmarks.gpu_check                        # on a machine with CUDA
    python -m benchmarks.gpu_check --device cpu --encoder dinov2reg_vit_small_14 --batch 2 --steps 2
    python -m benchmarks.gpu_check all                    # all that is to be known of a card, in ten minutes
    python -m benchmarks.gpu_check all --rehearse         # the same on the CPU at tiny sizes, without limits

Weights are random (their values change no time). Results go to benchmarks/results/gpu_check.json, those of
``all`` to gpu_session.{json,md,log} there, or where BENCHMARK_RESULTS says: written after each part, so that
a session that is cut off keeps what it has.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median_high
from typing import IO, Any, NamedTuple

import pandas as pd
import torch

from benchmarks.common import RESULTS, given, record, surroundings, table, timed
from benchmarks.speed.subjects import Case, detector_of, ours, write_weights
from dinomaly_hd.experiments.score import predict
from dinomaly_hd.files import publish_json, publish_text
from dinomaly_hd.models.fast import SWITCH

AGREEMENT = {"32": 1e-4, "bf16": 0.05}
"""Largest relative difference of scores to the CPU's in float32."""
SESSION, SESSION_S, GRACE_S = "gpu_session", 570.0, 15.0


class Part(NamedTuple):
    """A module and its flags, those of a rehearsal behind them, its limit in s, and which kernels."""

    words: str
    rehearsal: str
    limit_s: float
    kernels: str = ""


STEPS = "benchmarks.gpu_check --batch=16"
TINY = "--device=cpu --encoder=dinov2reg_vit_small_14 --image=56 --crop=56"
FEW, RUN = f"{TINY} --batch=2 --steps=2", "--preset=quick --simulate_size=tiny --max_steps=2 --gpu=cpu"
FULL = "--preset=full --encoder_weights=random --gpu=0 --max_steps=50 --simulate_size=quick"
OWN = "--result_dir={own}/results --feature_dir={own}/features"
ABLATION = f"entry_points.ablation {FULL} {OWN} --seeds=42,43,44,123,456"
PEER = "--device=cuda --encoder=dinov2reg_vit_base_14 --train_batch=16 --score_batch=16 --rounds=5"
FEW_OF_PEER = f"{TINY} --train_batch=2 --score_batch=2 --rounds=1 --precision=32"
PARTS = {  # in the order of what one wants to know first
    "batch 16": Part(STEPS, FEW, 60),
    "batch 64": Part(f"{STEPS} --batch=64", FEW, 60),
    "a run of 4,000 + 8,000 maps": Part("benchmarks.speed.runs whole --repeats=1", RUN, 180),
    "ablation 10 x 5": Part(ABLATION, f"{RUN} --seeds=42,43 --configs=A,B", 100),
    "ablation 10 x 5, four at once": Part(f"{ABLATION} --slots=4", f"{RUN} --seeds=42 --configs=A,B", 60),
    "plain autograd": Part(STEPS, FEW, 40, "plain"),
    "torch.compile": Part(f"{STEPS} --compiled=default", FEW, 100, "plain"),
    "CUDA graphs": Part(f"{STEPS} --compiled=reduce-overhead", FEW, 100, "plain"),
    "beside anomalib, if installed": Part(f"benchmarks.speed {PEER} --precision=bf16", FEW_OF_PEER, 60),
}


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

        rates[f"{name}_first_s"] = timed(partial(done, 0))[0]  # compiles, where that was asked for
        seconds = median_high(timed(partial(done, step))[0] for step in range(1, steps + 1))
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
        for own in (case._replace(device="cpu", precision="32", compiled=""), case)
    )
    return float(((cpu - there).abs() / cpu.abs()).max())


def check(told: Any) -> None:
    """Measure one device in both precisions."""
    device = "cpu" if told.device == "cpu" else torch.cuda.get_device_name(told.device)
    result: dict[str, Any] = {"device": device, "torch": torch.__version__}
    result |= {"encoder": told.encoder, "batch": told.batch}
    with tempfile.TemporaryDirectory() as folder:
        weights = write_weights(told.encoder, folder)
        base = Case(told.encoder, weights, told.image, told.crop, told.device, compiled=told.compiled)
        for precision in AGREEMENT:
            case = base._replace(precision=precision)
            measured = measure(case, batch=told.batch, steps=told.steps)
            result[precision] = {**measured, "relative_difference_to_cpu": agreement(case)}
            record("gpu_check", result, show=False)
    print(json.dumps(result, indent=2))
    for precision, most in AGREEMENT.items():
        found = result[precision]["relative_difference_to_cpu"]
        assert found < most, f"scores of precision={precision} differ by {found:.1e} from the CPU's"


def within(limit_s: float, words: list[str], around: Mapping[str, str], log: IO[str]) -> str:
    """Return how a command ended; where it takes too long it gets a signal, as all that it started."""
    whole: dict[str, Any] = {"env": around, "stdout": log, "stderr": log, "start_new_session": True}
    with subprocess.Popen(words, **whole) as process:
        for limit, ending in ((limit_s, signal.SIGTERM), (GRACE_S, signal.SIGKILL)):
            try:
                return f"with exit code {process.wait(limit)}"
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, ending)
    return "by force"


def session(parts: Mapping[str, Part], folder: Path, *, limit_s: float, rehearse: bool) -> None:
    """Do one part after the other, and write what is known after each."""
    done: dict[str, Any] = {}
    end = time.monotonic() + limit_s
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        limit = min(limit_s if rehearse else part.limit_s, max(0.0, end - time.monotonic()))
        with tempfile.TemporaryDirectory() as own, (folder / f"{SESSION}.log").open("a") as log:
            told = f"{part.words} {part.rehearsal if rehearse else ''}".format(own=own).split()
            words = {word.partition("=")[0]: word for word in told}.values()  # of a flag the last one
            around = surroundings(Path(own)) | {"BENCHMARK_RESULTS": own, SWITCH: part.kernels}
            began = time.time()
            ended = within(limit, [sys.executable, "-m", *words], around, log)
            found = {path.stem: json.loads(path.read_text()) for path in sorted(Path(own).glob("*.json"))}
            runs = sorted(path.stat().st_mtime - began for path in Path(own).glob("results/**/results.json"))
        found |= {"runs": len(runs), "first_run_s": runs[0], "last_run_s": runs[-1]} if runs else {}
        done[name] = {"ended": ended, "seconds": time.time() - began, **found}
        print(f"{name}: ended {ended} after {done[name]['seconds']:.0f} s", flush=True)
        publish_json(folder / f"{SESSION}.json", done)
        flat = {part: pd.json_normalize(found).iloc[0].items() for part, found in done.items()}
        rows = [
            {"part": part, "what": name, "found": f"{x:.4g}" if isinstance(x, float) else x}
            for part, facts in flat.items()
            for name, x in facts
        ]
        publish_text(folder / f"{SESSION}.md", table(rows) + "\n")


def main() -> None:
    told = given(
        __doc__,
        first="what",
        device="cuda",
        encoder="dinov2reg_vit_base_14",
        image=448,
        crop=392,
        batch=16,
        steps=20,
        compiled="",
        rehearse=False,
    )
    if told.what == "all":
        session(PARTS, RESULTS, limit_s=3600.0 if told.rehearse else SESSION_S, rehearse=told.rehearse)
    else:
        check(told)


if __name__ == "__main__":
    main()
