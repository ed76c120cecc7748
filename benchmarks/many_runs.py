"""Whether many runs survive what is killed: every member finished, none run twice, none lost.

    python -m benchmarks.many_runs local            # or ray (a Ray of its own), or cluster (two nodes here)

32 tiny conditions x 2 seeds on two slots. ``local`` and ``ray``: the suite is killed by SIGKILL at five
random moments and started again each time, then left to finish. ``cluster``: two Ray nodes on this machine,
of which one is killed midway. Writes benchmarks/results/many_runs_{engine}.json: members
finished, run twice (two MLflow runs or two folders of one configuration), lost, MLflow runs by status, and
wall seconds.
``--conditions``, ``--kills`` and ``--seed`` (of the random moments) make it smaller or other.
"""

import json
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common import ROOT, entry_point, given, record, surroundings, timed

SEEDS = (42, 43)
EXPERIMENT = "many-runs"
SHORTEST_S, LONGEST_S = 20.0, 120.0
"""How long a suite works before it is killed."""
SETTINGS = {"preset": "quick", "simulate_size": "tiny", "map_size": "32", "maps_per_group": "0", "gpu": "cpu"}


class Place(NamedTuple):
    """Where a benchmark's suites run and what they leave."""

    folder: Path
    engine: str
    address: str

    def states(self) -> list[dict[str, Any]]:
        found = (self.folder / "results").glob("suite/*/*/*/run.json")
        return [json.loads(path.read_text()) for path in found]

    def counted(self) -> str:
        count = Counter(state["status"] for state in self.states())
        return ", ".join(f"{status} {number}" for status, number in sorted(count.items()))


def conditions(count: int) -> list[dict[str, Any]]:
    """Return tiny conditions that all differ: every fourth a Dinomaly of a few steps, else trivial ones."""
    scores, entries = ("max", "mean", "std", "contrast"), []
    for number in range(count):
        config: dict[str, Any] = {"source_domain": "ABCD"[number // 4 % 4]}
        if number % 4 == 3:
            config |= {"model_type": "dinomaly", "variant": ("baseline", "horizontal")[number // 16 % 2]}
            config |= {"image_size": 32, "decoder_depth": 2, "batch_size": 4, "max_steps": 4 + number}
        else:
            config |= {"model_type": "trivial", "trivial_score": scores[number % 4]}
            config |= {"val_split_ratio": 0.2} if number >= 16 else {}
        entries.append({"name": f"condition_{number:02d}", "config": config})
    return entries


def start(place: Place) -> "subprocess.Popen[bytes]":
    told = {
        **SETTINGS,
        "conditions_file": place.folder / "conditions.json",
        "seeds": ",".join(map(str, SEEDS)),
        "slots": 2,
        "engine": place.engine,
        "experiment": EXPERIMENT,
        "result_dir": place.folder / "results",
        **({"ray_address": place.address} if place.address else {}),
    }
    around = surroundings(place.folder, RAY_USAGE_STATS_ENABLED="0")
    with (place.folder / "suite.txt").open("ab") as log:
        return subprocess.Popen(
            entry_point("suite", told), cwd=ROOT, env=around, stdout=log, stderr=log, start_new_session=True
        )


def written(place: Place) -> dict[Path, int]:
    """Return when each finished member's results were written: one that is run again writes them anew."""
    found = (place.folder / "results").glob("suite/*/*/*/results.json")
    return {
        path: path.stat().st_mtime_ns
        for path in found
        if json.loads((path.parent / "run.json").read_text()).get("status") == "FINISHED"
    }


class Killed(NamedTuple):
    """How long each killed suite worked, and the members that were finished by then, with their times."""

    moments: list[float]
    finished: dict[Path, int]


def kill_and_restart(place: Place, *, kills: int, chance: random.Random) -> Killed:
    """Kill the suite at random moments, then let it finish."""
    moments: list[float] = []
    finished: dict[Path, int] = {}
    for _ in range(kills):
        suite = start(place)
        moments.append(round(chance.uniform(SHORTEST_S, LONGEST_S), 1))
        try:
            suite.wait(moments[-1])
            return Killed(moments, finished)  # it was faster
        except subprocess.TimeoutExpired:
            suite.send_signal(signal.SIGKILL)
            suite.wait()
        finished = {**written(place), **finished}
        print(f"killed after {moments[-1]} s: {place.counted()}", flush=True)
    code = start(place).wait()
    print(f"the last suite left with {code}: {place.counted()}", flush=True)
    return Killed(moments, finished)


@contextmanager
def two_nodes() -> Iterator[tuple[str, Any, Any]]:
    """Yield address, cluster and second node of a Ray of two nodes with one slot each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        node = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        yield cluster.address, cluster, node
    finally:
        cluster.shutdown()


def lose_a_node(folder: Path, *, members: int) -> tuple[Place, dict[Path, int]]:
    """Run the suite on two nodes, kill one midway, and return the members that were finished then."""
    with two_nodes() as (address, cluster, node):
        place = Place(folder, "ray", address)
        suite = start(place)
        while suite.poll() is None and len(written(place)) < members // 2:
            time.sleep(1)
        then = written(place)
        cluster.remove_node(node, allow_graceful=False)
        print(f"node killed: {place.counted()}", flush=True)
        print(f"the suite left with {suite.wait()}: {place.counted()}", flush=True)
    return place, then


def verdict(place: Place, *, members: int) -> dict[str, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{place.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=5000)
    children = [run for run in runs if run.data.tags.get("kind") == "train"]
    parents = [run for run in runs if run.data.tags.get("kind") == "suite"]
    of_member = Counter(run.data.tags["config_hash"] for run in children)
    states = place.states()
    folders = Counter(state["config_hash"] for state in states)
    finished = {state["config_hash"] for state in states if state.get("status") == "FINISHED"}
    return {
        "members": members,
        "finished": len(finished),
        "run_twice": sum(max(of_member[one], folders[one]) > 1 for one in folders | of_member),
        "lost": members - len(finished),
        "mlflow_runs_by_status": dict(Counter(run.info.status for run in children)),
        "mlflow_parents_by_status": dict(Counter(run.info.status for run in parents)),
    }


def measured(told: Any, folder: Path) -> dict[str, Any]:
    members = told.conditions * len(SEEDS)
    entries = {"experiment_conditions": conditions(told.conditions)}
    (folder / "conditions.json").write_text(json.dumps(entries))
    place = Place(folder, told.engine, "")
    if told.engine == "cluster":
        place, then = lose_a_node(folder, members=members)
        story: dict[str, Any] = {"finished_when_the_node_was_killed": len(then)}
    else:
        moments, then = kill_and_restart(place, kills=told.kills, chance=random.Random(told.seed))
        story = {"suite_killed_after_s": moments, "finished_when_it_was_killed_last": len(then)}
    now = written(place)
    story["finished_then_and_run_again"] = sum(now.get(path) != time_ns for path, time_ns in then.items())
    result = {**verdict(place, members=members), **story}
    if result["finished"] < members:
        print((folder / "suite.txt").read_text()[-4000:])
    return result


def main() -> None:
    engines = ("local", "ray", "cluster")
    told = given(__doc__, first="engine", among=engines, conditions=32, kills=5, seed=0)
    with tempfile.TemporaryDirectory(prefix="many_runs_") as folder:
        seconds, result = timed(lambda: measured(told, Path(folder)))
    small = "" if (told.conditions, told.kills) == (32, 5) else f"_{told.conditions}"
    record(f"many_runs_{told.engine}{small}", {**result, "wall_s": round(seconds)})


if __name__ == "__main__":
    main()
