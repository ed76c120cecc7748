"""A suite runs every member once, whatever fails, is stopped or is killed."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dinomaly_hd.config.resolve import resolve_model
from dinomaly_hd.data import hdmap
from dinomaly_hd.data.feature_files import FeaturePlace
from dinomaly_hd.data.simulator import simulate
from dinomaly_hd.errors import ComparisonError, ConfigError, DataError, Interrupted, SignalGuard
from dinomaly_hd.experiments import checks
from dinomaly_hd.experiments.as_jobs import context_from_plain, context_to_plain
from dinomaly_hd.experiments.comparison import Member, member
from dinomaly_hd.experiments.protocols import report_places, run_suite
from dinomaly_hd.experiments.run import execute
from dinomaly_hd.files import locked
from dinomaly_hd.jobs.job import Slots
from dinomaly_hd.runs.folder import Context, open_folder
from dinomaly_hd.runs.store import default_uri, prepare_store
from entry_points import suite
from tests.work import wait_for

from .light_runs import runs_in

ROOT = Path(__file__).resolve().parents[2]
LOCAL = Slots("local", 2, "")
HOLD = """
import time
from pathlib import Path
from dinomaly_hd.experiments import run
evaluate, VARIANTS = run.evaluate, {{}}
def held(work, *found):
    while work.name.startswith("std") and Path({held!r}).exists():
        work.context.guard.check()
        time.sleep(.05)
    return evaluate(work, *found)
run.evaluate = held
"""
"""A plugin that lets the second member of two wait, as long as there is a file."""
TINY = {"preset": "quick", "gpu": "cpu", "simulate_size": "tiny", "map_size": "32", "maps_per_group": "0"}
STEPS = {"image_size": "32", "decoder_depth": "2", "max_steps": "2", "batch_size": "4"}


def trivial(label: str, root: Path, **values: str) -> Member:
    data = {"data_root": str(simulate(root / "maps", size="tiny", seed=0)), "domains": "A"}
    run = resolve_model("trivial", {**TINY, **data, **values})
    return member(label, run)


def statuses(context: Context, kind: str) -> dict[str, list[str]]:
    """Return the MLflow statuses of the runs of one kind by the label of the member."""
    found: dict[str, list[str]] = {}
    for run in runs_in(context, kind):
        found.setdefault(run.data.tags.get("config", "-"), []).append(run.info.status)
    return found


def test_members_are_run_reported_and_used_again(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    load = hdmap.load_manifest
    monkeypatch.setattr(
        checks, "load_manifest", lambda root, **named: read.append(root) or load(root, **named)
    )
    lines: list[str] = []
    told = replace(context, say=lines.append)
    members = [
        trivial("max", context.root, trivial_score="max"),
        trivial("max_again", context.root, trivial_score="max"),
        trivial("to_B", context.root, domains="A,B", train_domains="A"),
    ]
    own = {"data_root": str(context.root / "maps"), "domains": "A", "learning_rate": "1e38"}
    members.append(member("diverges", resolve_model("baseline", {**TINY, **STEPS, **own})))
    with pytest.raises(ComparisonError, match=r"^1 of 4 members failed: diverges, seed 42: NonFiniteError: "):
        run_suite(members, told, slots=LOCAL)
    assert len(read) == 2, "once for each set of domains"
    assert statuses(context, "train") == {"max": ["FINISHED"], "to_B": ["FINISHED"], "diverges": ["FAILED"]}
    assert statuses(context, "suite") == {"-": ["FAILED"]}
    (parent,) = (context.result_dir / "suite").glob("*/*_seed42")
    assert "diverges, seed 42" in (parent / "reports" / "A" / "report.md").read_text()
    summary = json.loads((parent / "reports" / "A" / "final_summary.json").read_text())
    assert summary["labels"] == ["max", "max_again"]
    assert (parent / "reports" / "A_to_B" / "report.html").is_file()
    assert "NonFiniteError" in (parent / "diverges_seed42" / "log.txt").read_text()
    assert any("diverges_seed42: failed" in line and "log.txt" in line for line in lines)

    lines.clear()
    done = run_suite(members[:3], told, slots=LOCAL)
    assert "3 finished before, 0 to run" in lines
    assert len(done.outcomes) == 3
    assert statuses(context, "train") == {"max": ["FINISHED"], "to_B": ["FINISHED"], "diverges": ["FAILED"]}


def test_a_suite_killed_or_stopped_goes_on_and_runs_each_member_once(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = simulate(context.root / "maps", size="tiny", seed=0)
    names = ["max", "std"]
    common = {"model_type": "trivial", "source_domain": "A", "data_root": str(maps)}
    entries = [{"name": name, "config": {**common, "trivial_score": name}} for name in names]
    file = context.root / "conditions.json"
    file.write_text(json.dumps({"experiment_conditions": entries}))
    own = {"conditions_file": file, "slots": 1, "experiment": context.experiment}
    flags = [f"--{name}={value}" for name, value in {**TINY, **own, "result_dir": context.result_dir}.items()]

    def states() -> list[str]:
        found = [json.loads(path.read_text()) for path in context.result_dir.glob("suite/*/*/*/run.json")]
        return sorted(one["status"] for one in found)

    held, plugin = context.root / "held", context.root / "hold.py"
    held.touch()
    plugin.write_text(HOLD.format(held=str(held)))
    monkeypatch.setenv("DINOMALY_HD_PLUGIN", str(plugin))
    prepare_store(default_uri(context.root), experiment=context.experiment, root=context.root)
    command = [sys.executable, "-m", "entry_points.suite", *flags]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as killed:
        wait_for(lambda: states() == ["FINISHED", "RUNNING"])
        killed.kill()
    wait_for(lambda: states() == ["FINISHED", "KILLED"])  # the second one ends with it

    class Stop(SignalGuard):
        def check(self) -> None:
            if "RUNNING" in states():
                raise Interrupted(signal.SIGINT)

    with pytest.raises(Interrupted):
        suite.main(flags, Stop())
    assert states() == ["FINISHED", "KILLED"]
    assert statuses(context, "suite") == {"-": ["KILLED"]}

    held.unlink()
    suite.main(flags, SignalGuard())
    assert states() == ["FINISHED"] * 2
    assert statuses(context, "train") == {name: ["FINISHED"] for name in names}
    assert statuses(context, "suite") == {"-": ["FINISHED"]}


def test_of_two_processes_one_is_at_work(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"variant": "trivial", "seed": 1, "config_hash": "a", "resume": "auto", "of_members": True}
    with (
        open_folder(context.root / "other", **told),
        pytest.raises(ConfigError, match="another process is at work on the same runs; wait for it, or stop"),
        open_folder(context.root / "other", **told),
    ):
        pass
    one = trivial("max", context.root)
    own = replace(context, folder=context.result_dir / "max", lock_wait_s=60.0)
    first = execute(one.run, own)
    state = own.folder / "run.json"  # type: ignore[operator]
    finished = state.read_text()
    state.write_text(finished.replace("FINISHED", "RUNNING"))

    def other_process_finishes(_: float) -> None:
        state.write_text(finished)
        lock.__exit__(None, None, None)

    lock = locked(state.parent / ".lock", timeout_s=1)
    lock.__enter__()
    monkeypatch.setattr("dinomaly_hd.files.time.sleep", other_process_finishes)
    before = (state.parent / "results.json").stat().st_mtime_ns
    assert execute(one.run, own).mlflow_run_id == first.mlflow_run_id
    assert (state.parent / "results.json").stat().st_mtime_ns == before
    assert len(runs_in(context)) == 1


def test_a_context_goes_through_json(context: Context) -> None:
    place = FeaturePlace(Path.cwd() / "features", None)
    told: dict[str, Any] = {"parent_run_id": "p", "tags": {"config": "max"}, "feature_place": place}
    own = replace(context, folder=Path("here/max_seed1"), **told)
    plain = json.loads(json.dumps(context_to_plain(own)))
    back = context_from_plain(plain, guard=own.guard, say=own.say)
    assert back == replace(own, folder=Path.cwd() / "here/max_seed1")


def test_reports_are_one_for_each_set_of_data(tmp_path: Path) -> None:
    sets = [("1", "A", "A"), ("1", "A", "A"), ("2", "A", "A"), ("1", "A,B,C", "A"), ("3", "A,B", "all")]
    digests = {
        trivial(str(number), tmp_path, domains=domains, train_domains=trained): digest
        for number, (digest, domains, trained) in enumerate(sets)
    }
    assert list(report_places(digests).values()) == [
        *("reports/A", "reports/A", "reports/A_data_2", "reports/A_to_BC", "reports/AB"),
    ]
    assert set(report_places(dict(list(digests.items())[:2])).values()) == {""}


def test_bad_members_are_refused_before_the_first_is_run(context: Context, tmp_path: Path) -> None:
    one = trivial("one", tmp_path)
    with pytest.raises(ConfigError, match=r"both would lie in One_seed42; rename one"):
        run_suite([one, one._replace(label="One", place="One_seed42")], context, slots=LOCAL)
    lost = member("lost", resolve_model("trivial", {**TINY, "data_root": "/nowhere"}))
    with pytest.raises(DataError, match=r"^lost: data_root=/nowhere: no such folder"):
        run_suite([one, lost], context, slots=LOCAL)
    assert not context.result_dir.exists()
