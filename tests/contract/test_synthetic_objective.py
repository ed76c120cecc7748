"""The synthetic objective: measured in training and at its end, from held-out normals only.

That every family has it: test_families.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

from dinomaly_hd.config.resolve import resolve_model
from dinomaly_hd.data.hdmap import load_manifest
from dinomaly_hd.errors import Pruned
from dinomaly_hd.experiments.run import Outcome, execute
from dinomaly_hd.runs.context import Context
from dinomaly_hd.runs.folder import all_runs, read_state
from dinomaly_hd.runs.search import RunStore

from .light_runs import SMALL, without_pictures


def run(context: Context) -> Outcome:
    values = {"synthetic_copies": "3", "val_check_interval": "1"}
    return execute(resolve_model("dinomaly", {**SMALL["dinomaly"], **values}), context)


def poison_test_split(data: Path) -> None:
    """Turn every test image around its mean; labels and folders stay."""
    manifest = load_manifest(data, domains=("A", "B"), conditions="auto")
    for position in manifest.indices(split="test"):
        path = manifest.path(int(position))
        image = tifffile.imread(path)
        tifffile.imwrite(path, (2 * image.mean() - image).astype(np.float32))


def test_figures_are_reported_in_training_and_at_its_end_and_no_test_image_changes_them(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_pictures(monkeypatch)
    seen: list[tuple[int, Mapping[str, float]]] = []
    watched = replace(context, observe=lambda values, step: seen.append((step, dict(values))))
    first = run(watched)
    block = first.results["synthetic"]
    assert list(block["per_domain"]) == ["domain_A"], "B is not trained on"
    figures = block["per_domain"]["domain_A"]
    assert 0 <= figures["auroc"] <= 1
    assert figures["bands"] <= 3 * figures["normals"]
    reported = {step: values["synthetic/domain_A/auroc"] for step, values in seen if "val/loss" in values}
    assert sorted(reported) == [0, 1]
    assert reported[1] == figures["auroc"], "the last step's detector is the one that is evaluated"

    poison_test_split(context.root / "data" / "simulated_tiny_seed0")
    again = run(replace(context, resume="never"))
    assert again.results["per_domain_metrics"] != first.results["per_domain_metrics"]
    assert again.results["synthetic"] == block


def test_a_run_that_is_given_up_is_closed_and_says_so(context: Context) -> None:
    def give_up(values: Mapping[str, float], step: int) -> None:
        if "synthetic/domain_A/auroc" in values:
            raise Pruned(f"given up at step {step + 1}")

    with pytest.raises(Pruned, match="given up at step 1"):
        run(replace(context, observe=give_up))
    (folder,) = all_runs(context.result_dir)
    state = read_state(folder)
    assert state["status"] == "KILLED"
    tracked = RunStore(f"sqlite:///{context.root / 'mlflow.db'}").run(state["mlflow_run_id"])
    assert tracked is not None
    assert (tracked.status, tracked.tags["pruned"]) == ("KILLED", "true")
