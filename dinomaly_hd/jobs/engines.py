"""The engines that run jobs: one machine's slots, each a GPU or a share of the cores, or a Ray cluster."""

import importlib.util
import logging
import os
import signal
import socket
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from dinomaly_hd.errors import ConfigError, nearest, reason_of
from dinomaly_hd.jobs.job import Exit, Job, Slots
from dinomaly_hd.jobs.process import STOP_S, Starter
from dinomaly_hd.provenance import usable_cores

LOCAL, RAY = "local", "ray"
ONE_SLOT = Slots(LOCAL, 1, "")
DEVICES, THREADS, WAITING = "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "OMP_WAIT_POLICY"
MOVES = 10  # how often Ray starts a job elsewhere after its worker or node was lost
STOP = "stop"
CONNECT_S = 10.0
OF_ITS_OWN = "local"  # Ray's word for a new one: without it, a cluster on this machine would be joined
STORE_BYTES = 100 * 2**20
# Beginnings of the names of environment variables that jobs on other machines get from this one.
FORWARDED = ("MLFLOW_", "OPTUNA_", "DINOMALY_HD_")
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


class LocalEngine:
    """Runs as many jobs at once as there are slots; None takes one a GPU, or one for two cores without a GPU.

    More slots than GPUs share them in turn.
    """

    def __init__(self, slots: Slots) -> None:
        devices = _devices()
        self._count = slots.number or len(devices) or max(1, usable_cores() // 2)
        self._ending, self._free = ExitStack(), SimpleQueue[Starter]()
        for token in _tokens(self._count, devices):
            starter = Starter(directory=Path.cwd(), environment=token)
            self._free.put(self._ending.enter_context(closing(starter)))
        self._pool, self._stopping = ThreadPoolExecutor(self._count), threading.Event()

    def places(self) -> int:
        """Return how many jobs may run at once."""
        return self._count

    def start(self, job: Job) -> Future[Exit]:
        """Start a job whose folder is ready."""
        return self._pool.submit(self._run, job)

    def close(self) -> None:
        """End what still runs, each with what it saved."""
        self._stopping.set()
        self._pool.shutdown()
        self._ending.close()

    def _run(self, job: Job) -> Exit:
        starter, folder = self._free.get(), job.folder.absolute()
        try:
            return starter.run(job.module, folder, stopping=self._stopping.is_set, imports=job.imports)
        finally:
            self._free.put(starter)


def _devices() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    if not torch.cuda.is_available():
        return []
    named = os.environ.get(DEVICES)
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]


def _tokens(count: int, devices: list[str]) -> list[dict[str, str]]:
    """Return what each slot sets in its job's environment."""
    threads = os.environ.get(THREADS, str(max(1, usable_cores() // count)))
    # Threads that wait for one another leave cores that are shared to other jobs' threads.
    crowded = threads.isdecimal() and int(threads) * count > usable_cores()
    shared = {WAITING: os.environ.get(WAITING, "PASSIVE")} if crowded else {}
    gpus = [{DEVICES: devices[number % len(devices)]} if devices else {} for number in range(count)]
    return [{THREADS: threads, **shared, **gpu} for gpu in gpus]


class RayEngine:
    """Runs jobs on the cluster at the slots' address, or on a Ray that ends with this process ("").

    Where no number is given it runs one a GPU of the cluster, or one a core where it has no GPU (one for two
    cores on this machine). Raises ConfigError where Ray refuses the address.
    """

    def __init__(self, slots: Slots) -> None:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        import ray

        self._ray: Any = ray
        number, address = slots.number, slots.address
        self._slots = number if address else number or max(1, usable_cores() // 2)
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
    with closing(Starter(directory=directory, environment=environment)) as starter:
        return starter.run(module, folder, stopping=stopping)


ENGINES: Mapping[str, type[LocalEngine] | type[RayEngine]] = {LOCAL: LocalEngine, RAY: RayEngine}


def check_engine(slots: Slots) -> None:
    """Refuse an engine that cannot be had; starts nothing. Ray itself would try for minutes."""
    engine, address = slots.engine, slots.address
    if engine not in ENGINES:
        raise ConfigError(f"engine={engine!r}: unknown.{nearest(engine, ENGINES)}")
    if engine == RAY and importlib.util.find_spec("ray") is None:
        way_out = 'pip install "dinomaly-hd[ray]", or take engine=local'
        raise ConfigError(f"engine=ray: Ray is not installed; {way_out}")
    if not address:
        return
    if engine != RAY:
        raise ConfigError(f"ray_address={address}: does nothing with engine={engine}; leave it out")
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or "/" in host:
        raise ConfigError(f"ray_address={address!r}: expected HOST:PORT of the cluster's head, or auto")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except (OSError, OverflowError) as error:
        way_out = "start one with `ray start --head`, or leave it at auto"
        raise ConfigError(f"ray_address={address}: no Ray answers there ({error}); {way_out}") from error
