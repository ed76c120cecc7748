"""Whether the fast drills notice when a guard is gone: each is taken out of a copy and its drill must fail.

    python -m benchmarks.mutations               # all; about half an hour on two cores
    python -m benchmarks.mutations --only=2,6

Prints the table of CONTRIBUTING.md. Ends with 1 where a drill did not notice.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("dinomaly_hd", "entry_points", "benchmarks", "tests", "conditions")
FILES = ("pyproject.toml", "MLproject", "conda.yaml", "requirements.lock")
TEST = "tests/chaos/test_promises.py"
LONGEST_S = 420


class Mutation(NamedTuple):
    """A guard and how it is taken out.

    Attributes:
        promise: Number of the drill that must fail.
        guard: What it is, in a few words.
        file: Where it stands.
        old: Text that stands there once.
        new: What is put in its place.
    """

    promise: int
    guard: str
    file: str
    old: str
    new: str


MUTATIONS = (
    Mutation(
        1,
        "what was logged after the checkpoint is cut off",
        "dinomaly_hd/experiments/session.py",
        "        self.journal.truncate_after(self.checkpoint.step - 1 if self.checkpoint else -1)\n",
        "",
    ),
    Mutation(
        2,
        "an unreadable checkpoint is named and the one before used",
        "dinomaly_hd/training/checkpoint.py",
        "            unreadable.append(str(error))",
        "            pass",
    ),
    Mutation(
        3,
        "a writer that fails removes its half",
        "dinomaly_hd/files.py",
        "            temporary.unlink(missing_ok=True)\n            raise\n",
        "            raise\n",
    ),
    Mutation(
        4,
        "a signal leaves a checkpoint",
        "dinomaly_hd/training/fit.py",
        "if stopping or done %",
        "if done %",
    ),
    Mutation(
        5,
        "loss and gradient are looked at before the step",
        "dinomaly_hd/training/task.py",
        'if math.isfinite(numbers["loss"]) and math.isfinite(numbers["grad_norm"]):',
        "if True:",
    ),
    Mutation(
        6,
        "whatever a damaged file provokes is one error",
        "dinomaly_hd/data/images.py",
        "    except Exception as error:",
        "    except ZeroDivisionError as error:",
    ),
    Mutation(
        7,
        "sides are looked at before pixels",
        "dinomaly_hd/data/images.py",
        "    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE and height * width <= MAX_PIXELS):",
        "    if False:",
    ),
    Mutation(
        8,
        "one shape and one format for the whole set",
        "dinomaly_hd/data/hdmap.py",
        "faults = [*tree.faults, *assigned.faults, *_mixtures(read)]",
        "faults = [*tree.faults, *assigned.faults]",
    ),
    Mutation(
        9,
        "links out of the root are faults",
        "dinomaly_hd/data/tree.py",
        "    return not Path(os.path.realpath(path)).is_relative_to(root)",
        "    return False",
    ),
    Mutation(
        10,
        "scores that are no numbers are refused",
        "dinomaly_hd/evaluation/metrics.py",
        "    finite = np.isfinite(values)",
        "    finite = np.ones_like(values, dtype=bool)",
    ),
    Mutation(
        14,
        "checkpoints hold numbers, never code",
        "dinomaly_hd/training/checkpoint.py",
        "weights_only=True",
        "weights_only=False",
    ),
    Mutation(
        15,
        "behind the marker stand names and values in turn",
        "dinomaly_hd/config/command.py",
        '            words.append(f"{name}={value}")',
        "            words += [name, value]",
    ),
    Mutation(
        15,
        "MLproject never quotes, which MLflow does already",
        "MLproject",
        "entry_points.horizontal --seed={seed}",
        'entry_points.horizontal --seed="{seed}"',
    ),
    Mutation(
        15,
        "cells of a page are escaped",
        "dinomaly_hd/evaluation/report.py",
        'autoescape=select_autoescape(["html"])',
        "autoescape=False",
    ),
    Mutation(
        16,
        "the nearest name is said",
        "dinomaly_hd/errors.py",
        "    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)",
        "    close: list[str] = []",
    ),
    Mutation(
        17,
        "files are in the order of their names' bytes",
        "dinomaly_hd/data/tree.py",
        "    return sorted(visible, key=os.fsencode)",
        "    return visible",
    ),
    Mutation(
        11,
        "a dead server is not waited for at the end",
        "dinomaly_hd/tracking/worker.py",
        "rest > 0 and server_answers(self._uri, timeout_s=GRACE_S):",
        "rest > 0:",
    ),
    Mutation(
        12,
        "one process at a time makes the tables",
        "dinomaly_hd/tracking/store.py",
        'lock = locked(folder / ".mlflow-store.lock", timeout_s=STORE_LOCK_TIMEOUT_S)',
        "pass",
    ),
    Mutation(
        13,
        "trials of dead workers are failed and queued again",
        "dinomaly_hd/tuning/worker.py",
        "            mend(study, joined.storage)\n",
        "",
    ),
    Mutation(
        18,
        "running out of memory is recognised",
        "dinomaly_hd/training/memory.py",
        "        if not is_exhaustion(error):",
        "        if True:",
    ),
    Mutation(
        18,
        "a study gives such a trial up",
        "dinomaly_hd/tuning/worker.py",
        "except (Pruned, OutOfMemory) as error:",
        "except Pruned as error:",
    ),
)


def noticed(mutation: Mutation) -> bool:
    """Return whether the promise's fast drill fails on a copy without the guard."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as name:
        copy = Path(name)
        for folder in COPIED:
            shutil.copytree(
                ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", "output")
            )
        for file in FILES:
            shutil.copy(ROOT / file, copy / file)
        path = copy / mutation.file
        text = path.read_text()
        assert text.count(mutation.old) == 1, (
            f"{mutation.file} has {mutation.old!r} {text.count(mutation.old)} times"
        )
        path.write_text(text.replace(mutation.old, mutation.new))
        # The installed package is this checkout's: the copy must come before it.
        environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", TEST]
        command += ["-k", f"[{mutation.promise}-"]
        try:
            done = subprocess.run(
                command, cwd=copy, env=environment, capture_output=True, text=True, timeout=LONGEST_S
            )
        except subprocess.TimeoutExpired:
            return True
        assert done.returncode in (0, 1), f"pytest ended with {done.returncode}:\n{done.stdout[-2000:]}"
        return done.returncode == 1


def main() -> None:
    """Try the mutations and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="numbers of promises, comma-separated")
    given = parser.parse_args()
    wanted = {int(number) for number in given.only.split(",") if number}
    lines = ["| # | guard | in | without it |", "|---:|---|---|---|"]
    unnoticed = 0
    for mutation in MUTATIONS:
        if wanted and mutation.promise not in wanted:
            continue
        failed = noticed(mutation)
        unnoticed += not failed
        result = f"`{TEST}` [{mutation.promise}] fails" if failed else "NOT NOTICED"
        lines.append(f"| {mutation.promise} | {mutation.guard} | `{mutation.file}` | {result} |")
        print(lines[-1], flush=True)
    print("\n" + "\n".join(lines))
    sys.exit(1 if unnoticed else 0)


if __name__ == "__main__":
    main()
