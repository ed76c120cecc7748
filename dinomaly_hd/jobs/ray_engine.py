"""The engine of many machines: Ray places the jobs, one a GPU or core, and moves those of a lost node."""

import importlib.util
import logging
import os
import signal
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dinomaly_hd.errors import ConfigError
from dinomaly_hd.jobs.job import Job
from dinomaly_hd.jobs.local import THREADS, usable_cores
from dinomaly_hd.jobs.process import STOP_S, Exit, Process, Start, stop

PIP = 'pip install "dinomaly-hd[ray]"'
LOST = -1000
MOVES = 10
"""How often Ray starts a job elsewhere after its worker or node was lost."""
POLL_S = 0.2
STOP = "stop"
CONNECT_S = 10.0
OF_ITS_OWN = "local"
"""Ray's word for a new one: without it, a cluster that happens to run on this machine would be joined."""
STORE_BYTES = 100 * 2**20
FORWARDED = ("MLFLOW_", "OPTUNA_", "DINOMALY_HD_")
"""Beginnings of the names of environment variables that jobs on other machines get from this one."""
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


class RayEngine:
    """Runs jobs on a cluster, or on a Ray of its own that ends with this process.

    Args:
        slots: How many jobs run at once; None takes one a GPU of the cluster, or one a core where it has no
            GPU (one for two cores on this machine).
        address: HOST:PORT of the cluster's head; "" starts a Ray of its own.

    Raises:
        ConfigError: Ray refuses the address.
    """

    def __init__(self, *, slots: int | None, address: str) -> None:
        self._ray = _import()
        self._slots = slots if address else slots or max(1, usable_cores() // 2)
        _connect(self._ray, slots=self._slots, address=address)
        self._environment = {name: value for name, value in os.environ.items() if name.startswith(FORWARDED)}
        if not address:
            threads = str(max(1, usable_cores() // (self._slots or 1)))
            self._environment[THREADS] = os.environ.get(THREADS, threads)
        self._running: dict[Any, str] = {}
        self._folders: dict[str, Path] = {}

    def room(self) -> int:
        """Return how many more jobs may be started now."""
        resources = self._ray.cluster_resources()
        places = int(resources.get("GPU", 0) or resources.get("CPU", 0))
        return min(places, self._slots or places) - len(self._running)

    def start(self, job: Job) -> None:
        """Hand a job to Ray."""
        gpus = 1 if self._ray.cluster_resources().get("GPU", 0) else 0
        remote = self._ray.remote(num_cpus=1, num_gpus=gpus, max_retries=MOVES)(run_on_node)
        start = Start(job.module, job.folder.absolute(), Path.cwd(), self._environment)
        (start.folder / STOP).unlink(missing_ok=True)
        self._folders[job.name] = start.folder
        self._running[remote.options(name=job.name).remote(start)] = job.name

    def ended(self) -> Mapping[str, Exit]:
        """Return the jobs that ended since the last call, by name."""
        references = list(self._running)
        if not references:
            return {}
        done, _ = self._ray.wait(references, num_returns=len(references), timeout=0)
        return {self._running.pop(reference): self._exit(reference) for reference in done}

    def stop(self) -> None:
        """End all jobs, on which they save what they have, and wait for that a minute."""
        for name in self._running.values():
            (self._folders[name] / STOP).touch()
        if self._running:
            self._ray.wait(list(self._running), num_returns=len(self._running), timeout=STOP_S + CONNECT_S)
        for reference in self._running:
            self._ray.cancel(reference)
        self._running.clear()

    def close(self) -> None:
        """Leave the cluster, or end this process's own."""
        self._ray.shutdown()

    def _exit(self, reference: Any) -> Exit:
        try:
            exit_: Exit = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            return Exit(LOST, str(error).strip().splitlines()[0])
        return exit_


def run_on_node(start: Start) -> Exit:
    """Run a job as a process of the node that Ray chose; stop it when asked to, or Ray cancels the task.

    It is asked by a file, since Ray may end a cancelled task's process before the job has saved anything.
    """
    process = Process(start)
    try:
        while (exit_ := process.poll()) is None:
            time.sleep(POLL_S)
            if (start.folder / STOP).is_file():
                stop([process])
    except KeyboardInterrupt:
        _stop_whatever_comes(process)
        raise
    return exit_


def _stop_whatever_comes(process: Process) -> None:
    """Stop a job although Ray may interrupt a task it cancels more than once."""
    while True:
        try:
            stop([process])
        except KeyboardInterrupt:
            continue
        return


def _import() -> Any:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    return ray


def _connect(ray: Any, *, slots: int | None, address: str) -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    told: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address:
            ray.init(address=address, **told)
        else:
            told |= {"include_dashboard": False, "object_store_memory": STORE_BYTES}
            ray.init(address=OF_ITS_OWN, num_cpus=slots, **told)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"ray_address={address or 'auto'}: {str(error).strip().splitlines()[0]}") from error
    finally:
        for number, handler in handlers.items():  # Ray's own would end the process without a word
            signal.signal(number, handler)


def check_ray(address: str) -> None:
    """Refuse a cluster that does not answer; Ray itself would try for minutes.

    Raises:
        ConfigError: Ray is not installed, or nothing answers at the address.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(f"engine=ray: Ray is not installed; {PIP}, or take engine=local")
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
