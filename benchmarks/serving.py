"""`mlflow models serve` on a finished run: 1000 requests with single maps, and those that must be refused.

    python -m benchmarks.serving            # trains one with the quick preset first
    python -m benchmarks.serving RUN        # run folder, its name, or its MLflow run id

Every answer is compared with the run's own score and threshold. Writes
benchmarks/results/serving.json (--output NAME: another); exits with 1 if an answer was wrong.
"""

import base64
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks import common
from benchmarks.common import ROOT, given, record, timed
from dinomaly_hd import provenance
from dinomaly_hd.data.images import read_image
from dinomaly_hd.files import read_json
from dinomaly_hd.runs.folder import FINISHED, MODEL, find_run, read_state
from dinomaly_hd.runs.store import default_uri
from dinomaly_hd.serving.exported import Card, read_card
from tests.contract.scoring_server import Client, Request, as_files, as_json, malformed, serving

TOLERANCE = 1e-6
MAP_EVERY = 50  # requests, of which one asks for the map
QUICK = {"preset": "quick", "seed": 42}


def finished_run(result_dir: Path, run: str | None) -> Path:
    """Return the run's folder; without a run, train one with the quick preset."""
    if run is None:
        common.run("horizontal", {**QUICK, "result_dir": result_dir})
        run = str(max((result_dir / "horizontal").iterdir()))
    folder = find_run(result_dir, run)
    if read_state(folder).get("status") != FINISHED:
        sys.exit(f"{folder}: the run did not finish")
    return folder


def asked_of(folder: Path, card: Card, *, count: int) -> list[tuple[Request, pd.Series]]:
    """Return requests over a run's test images, spread evenly, each with its row of the run's scores."""
    root = Path(read_json(folder / "experiment_settings.json")["data_root"])
    tables = {domain: pd.read_csv(folder / "scores" / f"{domain}.csv") for domain in card.thresholds}
    table = pd.concat([one.assign(domain=domain) for domain, one in tables.items()], ignore_index=True)
    rows = table.iloc[np.linspace(0, len(table) - 1, count).round().astype(int)]
    rows = rows.assign(with_map=[number % MAP_EVERY == 0 for number in range(count)])
    return [(_request(root / row["path"], i, row), row) for i, (_, row) in enumerate(rows.iterrows())]


def _request(path: Path, number: int, row: pd.Series) -> Request:
    """Ask for an image as an array or as a TIFF file, each in two forms by turns."""
    params = {"domain": row["domain"], **({"return_map": True} if row["with_map"] else {})}
    if number % 2:
        image = read_image(path)[None].tolist()
        return as_json({"inputs" if number % 4 == 1 else "instances": image}, **params)
    file = path.read_bytes()
    if number % 4 == 0:
        return as_files(file, **params)
    split = {"columns": ["image"], "data": [[base64.b64encode(file).decode()]]}
    return as_json({"dataframe_split": split}, **params)


def check(client: Client, request: Request, row: pd.Series, card: Card) -> dict[str, Any]:
    """Return an answer's seconds, how far its score is from the run's, and whether all else was right."""
    answer = client.ask(request)
    if answer.status != 200:
        return {"seconds": answer.seconds, "difference": float("inf"), "right": False}
    (told,) = answer.rows()
    right = told["threshold"] == card.thresholds[row["domain"]]
    right = right and told["fault"] == (told["score"] >= told["threshold"])
    if row["with_map"]:
        right = right and np.shape(told["map"]) == card.shape
    return {"seconds": answer.seconds, "difference": abs(told["score"] - row["score"]), "right": right}


def ask_all(port: int, asked: list[Any], card: Card, *, clients: int) -> pd.DataFrame:
    """Send all requests, each client its share over one connection."""

    def ask(share: list[Any]) -> list[dict[str, Any]]:
        with closing(Client(port)) as client:
            return [check(client, request, row, card) for request, row in share]

    with ThreadPoolExecutor(clients) as pool:
        return pd.DataFrame(chain(*pool.map(ask, [asked[i::clients] for i in range(clients)])))


def refusals(client: Client, *, shape: tuple[int, int]) -> dict[str, Any]:
    """Send every malformed request and return its answer, and whether it was as it must be."""
    found: dict[str, Any] = {}
    for name, refused in malformed(shape).items():
        answer = client.ask(refused.request)
        message = answer.message()
        clear = bool(re.search(refused.names, message)) and "Traceback" not in answer.body
        right = clear and answer.status == refused.status
        found[name] = {"status": answer.status, "message": message[:300], "right": right}
    return found


def measure(folder: Path, *, model: str, requests: int, clients: int) -> dict[str, Any]:
    card = read_card(folder / MODEL)
    asked = asked_of(folder, card, count=requests)
    with tempfile.TemporaryDirectory() as temporary:
        log, began = Path(temporary) / "server.log", time.monotonic()
        with serving(model, tracking_uri=default_uri(ROOT), log=log) as port:
            start_s = time.monotonic() - began
            print(f"{model} is up after {start_s:.0f} s", flush=True)
            wall_s, answers = timed(lambda: ask_all(port, asked, card, clients=clients))
            with closing(Client(port)) as client:
                refused = refusals(client, shape=card.shape)
                again = check(client, *asked[0], card)
    milliseconds = 1000 * answers["seconds"]
    return {
        "run": folder.name,
        "model_type": card.run.model.model_type,
        "requests": len(answers),
        "clients": clients,
        "start_s": start_s,
        "requests_per_s": len(answers) / wall_s,
        "latency_ms": {f"p{share}": milliseconds.quantile(share / 100) for share in (50, 95)}
        | {"max": milliseconds.max()},
        "max_difference": answers["difference"].max(),
        "wrong_answers": int((~answers["right"].astype(bool)).sum()),
        "alive_after_refusals": bool(again["right"] and again["difference"] <= TOLERANCE),
        "malformed": refused,
        "versions": provenance.package_versions(),
        "cores": os.cpu_count(),
    }


def is_good(result: Mapping[str, Any]) -> bool:
    return bool(
        result["max_difference"] <= TOLERANCE
        and result["wrong_answers"] == 0
        and result["alive_after_refusals"]
        and all(one["right"] for one in result["malformed"].values())
    )


def main() -> None:
    # model: what is served, by default runs:/ID/model of the run; clients: connections at once
    told = given(
        __doc__,
        first="run",
        model="",
        requests=1000,
        clients=1,
        result_dir=ROOT / "results",
        output="serving",
    )
    folder = finished_run(told.result_dir, told.run)
    run_id = read_state(folder).get("mlflow_run_id")
    if run_id is None and not told.model:
        sys.exit(f"{folder}: the run is not in MLflow; give --model")
    model = told.model or f"runs:/{run_id}/model"
    result = measure(folder, model=model, requests=told.requests, clients=told.clients)
    record(told.output, result)
    sys.exit(0 if is_good(result) else 1)


if __name__ == "__main__":
    main()
