"""A study's report: what scores alike is called a tie, and too few normals for an FPR are named."""

from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import optuna
import pytest

from dinomaly_hd.config.resolve import resolve_config
from dinomaly_hd.errors import SignalGuard
from dinomaly_hd.experiments import study_report
from dinomaly_hd.runs.folder import Context
from dinomaly_hd.tuning.space import make_space
from dinomaly_hd.tuning.storage import address_of
from dinomaly_hd.tuning.study import Joined, Plan

COARSE = "40 normals: the finest FPR is 2.5 % (domain_C)"


def reported(place: Path, monkeypatch: pytest.MonkeyPatch, *values: tuple[float, ...]) -> list[str]:
    """Return what is printed of a study whose trials found these values."""

    def build(text: str, _: int = 42) -> Any:
        return resolve_config(text, {"preset": "quick", "seed": "42"})

    plan = Plan(
        study="s",
        address=address_of(f"sqlite:///{place / 'optuna.db'}", root=place),
        trials=len(values),
        config="F",
        space=make_space(("row_p",), base="F", build=build, check=lambda _: None),
        objective="synthetic",
        metrics=("domain_C/tpr_at_fpr_1", "mean/auroc")[: len(values[0])],
        seeds=(42,),
        sampler="random",
        pruner="none",
        heartbeat_s=1,
        build=build,
    )
    study = optuna.create_study(directions=["maximize"] * len(values[0]))
    for number, found in enumerate(values):
        row_p = 0.1 + 0.01 * number
        trial = optuna.trial.create_trial(
            values=found,
            params={"row_p": row_p},
            distributions={"row_p": optuna.distributions.FloatDistribution(0, 1)},
            user_attrs={"config": f"F:row_p={row_p:.2f}", "resolution": [COARSE]},
        )
        study.add_trial(trial)
    monkeypatch.setattr(study_report, "study_pictures", lambda *_, **__: {})
    lines: list[str] = []
    context = Context(
        root=place,
        result_dir=place,
        experiment="e",
        guard=SignalGuard(),
        say=lines.append,
        command="tune",
        entry_point="tune",
    )
    page = MagicMock(experiment_id=None, run_id=None)
    study_report.report_study(Joined(plan, study, MagicMock(), None), context, page)
    return lines


def test_trials_that_score_alike_are_ties(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 0.1 + 0.2 is 0.30000000000000004: sums of the same shares in another order
    lines = reported(tmp_path, monkeypatch, (0.2,), (0.3,), (0.1 + 0.2,), (0.3,), (0.1,))
    tied = "3 of 5 trials tie at synthetic/domain_C/tpr_at_fpr_1 30.00 % (trials 1, 2, 3)"
    said = f"{tied}; the first of them is shown"
    assert lines[-2] == said, "the closing line"
    assert f"{said}." in lines
    rows = [line.split(" | ")[0] for line in lines if line.startswith("| ")]
    assert rows[-5:] == ["| 0", "| best: 1", "| tied: 2", "| tied: 3", "| 4"]
    page = (tmp_path / "tune" / "s" / "report.html").read_text()
    assert said in page
    assert COARSE in page


def test_a_best_one_and_a_front_of_different_ones_are_no_ties(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not any("tie" in line for line in reported(tmp_path, monkeypatch, (0.2,), (0.3,)))
    lines = reported(tmp_path, monkeypatch, (0.2, 0.5), (0.3, 0.4), (0.2, 0.5), (0.1, 0.1))
    figures = "synthetic/domain_C/tpr_at_fpr_1 20.00 %, synthetic/mean/auroc 50.00 %"
    assert lines[-2] == f"2 of 4 trials tie at {figures} (trials 0, 2); all of them are shown"
