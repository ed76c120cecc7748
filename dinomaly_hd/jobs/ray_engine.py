"""The engine of many machines: Ray places the jobs, one a GPU or core, and moves those of a lost node."""

import importlib.util
import logging
import os
import signal
import socket
from collections.abc import Mapping
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

from dinomaly_hd.errors import ConfigError, reason_of
from dinomaly_hd.jobs.job import Exit, Job
from dinomaly_hd.jobs.local import STOP_S, THREADS, run_process, usable_cores

MOVES = 10  # how often Ray starts a job elsewhere after its worker or node was lost
STOP = "stop"
CONNECT_S = 10.0
OF_ITS_OWN = (
    "local"  # Ray's word for a new one: without it, a cluster that runs on this machine would be joined
)
STORE_BYTES = 100 * 2**20
# Beginnings of the names of environment variables that jobs on other machines get from this one.
FORWARDED = ("MLFLOW_", "OPTUNA_", "DINOMALY_HD_")
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


class RayEngine:
    """Runs jobs on the cluster whose head is at ``address``, or on a Ray that ends with this process ("").

    ``slots`` is how many run at once; None takes one a GPU of the cluster, or one a core where it has no
    GPU (one for two cores on this machine). Raises ConfigError where Ray refuses the address.
    """

    def __init__(self, *, slots: int | None, address: str) -> None:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        import ray

        self._ray: Any = ray
        self._slots = slots if address else slots or max(1, usable_cores() // 2)
        own = {"num_cpus": self._slots, "include_dashboard": False, "object_store_memory": STORE_BYTES}
        told: dict[str, Any] = {"address": address} if address else {"address": OF_ITS_OWN, **own}
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._ray.init(log_to_driver=False, logging_level=logging.ERROR, **told)
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(f"ray_address={address or 'auto'}: {reason_of(error)}") from error
        finally:
            for number, handler in handlers.items():  # Ray's own would end the process without a word
                signal.signal(number, handler)
        self._environment = {name: value for name, value in os.environ.items() if name.startswith(FORWARDED)}
        if not address:
            threads = str(max(1, usable_cores() // (self._slots or 1)))
            self._environment[THREADS] = os.environ.get(THREADS, threads)
        self._started: dict[Future[Exit], tuple[Any, Job]] = {}

    def places(self) -> int:
        """Return how many jobs may run at once."""
        resources = self._ray.cluster_resources()
        places = int(resources.get("GPU", 0) or resources.get("CPU", 0))
        return min(places, self._slots or places)

    def start(self, job: Job) -> Future[Exit]:
        """Hand a job, whose folder is ready, to Ray."""
        (job.folder / STOP).unlink(missing_ok=True)
        gpus = 1 if self._ray.cluster_resources().get("GPU", 0) else 0
        remote = self._ray.remote(num_cpus=1, num_gpus=gpus, max_retries=MOVES)(run_on_node)
        place = job.folder.absolute(), Path.cwd(), self._environment
        reference = remote.options(name=job.name).remote(job.module, *place)
        future: Future[Exit] = reference.future()
        self._started[future] = reference, job
        return future

    def close(self) -> None:
        """End what still runs, each with what it saved, and leave the cluster or end this process's own."""
        running = {future: one for future, one in self._started.items() if not future.done()}
        for _, job in running.values():
            (job.folder / STOP).touch()
        wait(running, timeout=STOP_S + CONNECT_S)
        for reference, _ in running.values():
            self._ray.cancel(reference)
        self._ray.shutdown()


def run_on_node(module: str, folder: Path, directory: Path, environment: Mapping[str, str]) -> Exit:
    """Run a job as a process of the node that Ray chose.

    It is asked to stop by a file, since Ray may end a cancelled task's process before the job has saved.
    """
    stopping = (folder / STOP).is_file
    return run_process(module, folder, directory=directory, environment=environment, stopping=stopping)


def check_ray(address: str) -> None:
    """Refuse a cluster that does not answer; Ray itself would try for minutes."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(
            'engine=ray: Ray is not installed; pip install "dinomaly-hd[ray]", or take engine=local'
        )
    if not address:
        return
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or "/" in host:
        raise ConfigError(f"ray_address={address!r}: expected HOST:PORT of the cluster's head, or auto")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"ray_address={address}: no Ray answers there ({error}); start one with `ray start --head`, "
            "or leave it at auto"
        ) from error
