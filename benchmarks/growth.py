"""How time and memory grow with the members of a report, the runs in one MLflow store, and the maps scored.

    python -m benchmarks.growth                               # all three, about half an hour on two cores
    python -m benchmarks.growth --what=report --members=5,50  # one of report, store, maps

One run is made (row evidence, the quick data) and its folder copied, with another seed, label and, for a
report, other scores: a tenth of their spread is added at random, and the stated AUROC follows. A report's
labels have five seeds each. Writes benchmarks/results/growth.json.
"""

import json
import os
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks import common
from benchmarks.common import ROOT, newest, numbers, surroundings, timed
from dinomaly_hd.evaluation.metrics import auroc
from dinomaly_hd.runs.find import Shelf
from dinomaly_hd.runs.journal import FOLDER_TAG, OUTBOX
from dinomaly_hd.runs.mirror import mirror

SEEDS = 5
KEPT = ("run.json", "results.json", "experiment_settings.json", "journal.jsonl", OUTBOX, "scores")


def made(folder: Path) -> Path:
    """Return the folder of a finished run on the simulated quick data."""
    told = {"preset": "quick", "seed": 42, "gpu": "cpu", "maps_per_group": 0, "feature_gb": 0}
    common.run("row_evidence", {**told, "result_dir": folder / "one"}, folder=folder)
    return newest(folder, "one/**/results.json").parent


def copied(one: Path, place: Path, number: int) -> None:
    """Lay a copy of a run into ``place``: of another label and seed, with its own scores."""
    place.mkdir(parents=True)
    for name in KEPT:
        (shutil.copytree if (one / name).is_dir() else shutil.copy)(one / name, place / name)
    label, seed, draw = f"config_{number // SEEDS}", number % SEEDS, np.random.default_rng(number)
    result = json.loads((one / "results.json").read_text()) | {"label": label, "seed": seed}
    for domain, block in result["per_domain_metrics"].items():
        rows = pd.read_csv(place / "scores" / f"{domain}.csv")
        rows["score"] += draw.normal(0, 0.1 * rows["score"].std(), len(rows))
        block["auroc"] = auroc(rows["score"], rows["label"])
        rows.to_csv(place / "scores" / f"{domain}.csv", index=False, float_format="%.17g")
    (place / "results.json").write_text(json.dumps(result))
    (place / "run.json").write_text('{"status": "FINISHED", "in_mlflow": false}')
    notes = [json.loads(line) for line in (one / OUTBOX).read_text().splitlines()]
    notes = [note for note in notes if "run" in note or note.get("kind") in ("params", "tags")]
    for note in notes:
        if "run" in note:
            note["run"] |= {"key": uuid.uuid4().hex, "run_name": place.name}
            note["run"]["tags"] |= {"config": label, FOLDER_TAG: str(place)}
    (place / OUTBOX).write_text("".join(f"{json.dumps(note)}\n" for note in notes))


def measured(name: str, values: dict[str, Any], folder: Path) -> dict[str, float]:
    """Let an entry point come to its end and return its seconds and its largest memory."""
    command = common.entry_point(name, values)
    with (folder / "said.txt").open("w") as said:
        process = subprocess.Popen(command, cwd=ROOT, env=surroundings(folder), stdout=said, stderr=said)
        seconds, (_, status, used) = timed(lambda: os.wait4(process.pid, 0))
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, (folder / "said.txt").read_text()[-2000:]
    spent = {"seconds": round(seconds, 1), "user_s": round(used.ru_utime, 1)}
    return {**spent, "peak_gib": round(used.ru_maxrss / 2**20, 2)}


def report(one: Path, count: int, folder: Path) -> dict[str, float]:
    for number in range(count):
        copied(one, folder / f"of_{count}" / f"member_{number}", number)
    (folder / f"of_{count}" / "run.json").write_text('{"status": "FINISHED"}')
    places = {"runs": folder / f"of_{count}", "result_dir": folder, "output": folder / f"report_{count}"}
    return {"members": count, **measured("report", places, folder)}


def store(one: Path, first: int, count: int, folder: Path) -> dict[str, float]:
    """Give one SQLite store its runs ``first`` .. ``count`` - 1, and look for one of them."""
    place, uri = folder / "stored", surroundings(folder)["MLFLOW_TRACKING_URI"]
    runs = [place / f"run_{number}" for number in range(first, count)]
    for number, own in enumerate(runs, start=first):
        copied(one, own, number)
    seconds = [timed(lambda own=own: mirror(own, uri=uri, root=folder))[0] for own in runs]
    query = f"tags.config = 'config_{(count - 1) // SEEDS}'"
    found, _ = timed(lambda: Shelf(place, uri).search(query, experiment="dinomaly-hd"))
    size = (folder / "mlflow.db").stat().st_size / 2**20
    last = float(np.median(seconds[-5:]))
    return {"runs": count, "send_one_s": round(last, 3), "search_s": round(found, 2), "file_mib": round(size)}


def maps(one: Path, count: int, folder: Path) -> dict[str, float]:
    there = sorted(newest(ROOT / "data", "simulated_quick_seed0").glob("domain_C/test/**/*.tiff"))
    (folder / f"maps_{count}").mkdir()
    for number in range(count):
        shutil.copy(there[number % len(there)], folder / f"maps_{count}" / f"{number:06d}.tiff")
    values = {"run": one, "input": folder / f"maps_{count}", "result_dir": folder / "scored"}
    return {"maps": count, **measured("predict", values, folder)}


def main() -> None:
    sizes = {"members": "5,50,500", "runs": "10,100,1000", "maps": "100,1000,10000"}
    told = common.given(__doc__, what="report,store,maps", **sizes)
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one, counts = made(folder), numbers(told.runs)
        of_kind = {
            "report": lambda: [report(one, count, folder) for count in numbers(told.members)],
            "store": lambda: [store(one, *ends, folder) for ends in zip([0, *counts], counts, strict=False)],
            "maps": lambda: [maps(one, count, folder) for count in numbers(told.maps)],
        }
        for kind in told.what.split(","):
            found[kind] = of_kind[kind]()
            print(f"\n{common.table(found[kind])}\n")
    common.record("growth", found, show=False)


if __name__ == "__main__":
    main()
