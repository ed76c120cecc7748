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
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, entry_point, given, record, runs_in, surroundings, timed

SEEDS = (42, 43)
EXPERIMENT = "many-runs"
SHORTEST_S, LONGEST_S = 20.0, 120.0
"""How long a suite works before it is killed."""
SETTINGS = {
    "preset": "quick",
    "simulate_size": "tiny",
    "map_size": "32",
    "maps_per_group": "0",
    "gpu": "cpu",
    "seeds": ",".join(map(str, SEEDS)),
    "slots": 2,
    "experiment": EXPERIMENT,
}


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


class Suite:
    """A folder where suites run, one after the other, and what they leave."""

    def __init__(self, folder: Path, count: int, engine: str) -> None:
        self.folder, self.members, self.results = folder, count * len(SEEDS), folder / "results"
        entries = json.dumps({"experiment_conditions": conditions(count)})
        (folder / "conditions.json").write_text(entries)
        own = {"conditions_file": folder / "conditions.json", "result_dir": self.results}
        self.values = {**SETTINGS, **own, "engine": "ray" if engine == "cluster" else engine}

    def start(self) -> "subprocess.Popen[bytes]":
        around = surroundings(self.folder, RAY_USAGE_STATS_ENABLED="0")
        with (self.folder / "suite.txt").open("ab") as log:
            told = {"cwd": ROOT, "env": around, "stdout": log, "stderr": log, "start_new_session": True}
            return subprocess.Popen(entry_point("suite", self.values), **told)

    def states(self) -> dict[Path, dict[str, Any]]:
        found = self.results.glob("suite/*/*/*/run.json")
        return {path.parent: json.loads(path.read_text()) for path in found}

    def say(self, what: str) -> None:
        print(f"{what}: {dict(Counter(state['status'] for state in self.states().values()))}", flush=True)

    def written(self) -> dict[Path, int]:
        """Return when each finished member's results were written: one that is run again writes them anew."""
        finished = [run for run, state in self.states().items() if state.get("status") == "FINISHED"]
        return {run: (run / "results.json").stat().st_mtime_ns for run in finished}

    def kill_and_restart(self, *, kills: int, chance: random.Random) -> tuple[list[float], dict[Path, int]]:
        """Kill the suite at random moments, then let it finish.

        Returns how long each killed one worked, and the members that were finished by then, with their times.
        """
        moments, finished = list[float](), dict[Path, int]()
        for _ in range(kills):
            suite = self.start()
            moments.append(round(chance.uniform(SHORTEST_S, LONGEST_S), 1))
            try:
                suite.wait(moments[-1])
                return moments, finished  # it was faster
            except subprocess.TimeoutExpired:
                suite.kill()
                suite.wait()
            finished = {**self.written(), **finished}
            self.say(f"killed after {moments[-1]} s")
        self.say(f"the last suite left with {self.start().wait()}")
        return moments, finished

    def lose_a_node(self) -> dict[Path, int]:
        """Run on a Ray of two nodes, kill one midway, and return the members that were finished then."""
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 1, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            node = cluster.add_node(num_cpus=1)
            cluster.wait_for_nodes()
            self.values["ray_address"] = cluster.address
            suite = self.start()
            while suite.poll() is None and len(self.written()) < self.members // 2:
                time.sleep(1)
            then = self.written()
            cluster.remove_node(node, allow_graceful=False)
            self.say("node killed")
            self.say(f"the suite left with {suite.wait()}")
        finally:
            cluster.shutdown()
        return then

    def verdict(self) -> dict[str, Any]:
        runs = runs_in(f"sqlite:///{self.folder / 'mlflow.db'}", EXPERIMENT)
        children, parents = (
            [run for run in runs if run.data.tags.get("kind") == kind] for kind in ("train", "suite")
        )
        of_member = Counter(run.data.tags["config_hash"] for run in children)
        states = list(self.states().values())
        folders = Counter(state["config_hash"] for state in states)
        finished = {state["config_hash"] for state in states if state.get("status") == "FINISHED"}
        return {
            "members": self.members,
            "finished": len(finished),
            "run_twice": sum(max(of_member[one], folders[one]) > 1 for one in folders | of_member),
            "lost": self.members - len(finished),
            "mlflow_runs_by_status": dict(Counter(run.info.status for run in children)),
            "mlflow_parents_by_status": dict(Counter(run.info.status for run in parents)),
        }


def measured(told: Any, folder: Path) -> dict[str, Any]:
    suite = Suite(folder, told.conditions, told.engine)
    if told.engine == "cluster":
        then = suite.lose_a_node()
        story: dict[str, Any] = {"finished_when_the_node_was_killed": len(then)}
    else:
        moments, then = suite.kill_and_restart(kills=told.kills, chance=random.Random(told.seed))
        story = {"suite_killed_after_s": moments, "finished_when_it_was_killed_last": len(then)}
    now = suite.written()
    story["finished_then_and_run_again"] = sum(now.get(path) != time_ns for path, time_ns in then.items())
    result = {**suite.verdict(), **story}
    if result["finished"] < suite.members:
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
