"""A Dask cluster, and problems and methods that its workers import and that misbehave on request."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import quadlab as ql


@ql.elementwise
def Lion(g, w, t, m, beta1=0.9, beta2=0.99):
    return np.sign(beta1 * m + (1 - beta1) * g), beta2 * m + (1 - beta2) * g


def scaled(seed, scale):
    """A problem of a user's own."""
    return ql.BlockQuadratic.from_spectra([[1.0, 2.0], [scale]], seed=seed)


def sometimes_malformed(seed, index):
    """Refuses every third problem."""
    if index % 3 == 0:
        raise ValueError(f"index must be no multiple of 3, received {index}")
    return ql.case("het", seed=index)


def deadly(seed, index):
    """Kills its process at index 7."""
    if index == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return ql.case("het", seed=index)


def deaf(connection):
    """Stands for a worker that dies while it starts."""
    os.abort()


def half_an_answer():
    """Begin an answer of a million bytes to the parent, and die."""
    connection = sys._getframe(1).f_locals["connection"]
    os.write(connection.fileno(), struct.pack("!i", 10**6) + bytes(1000))
    os.kill(os.getpid(), signal.SIGKILL)


def slow(seed, index):
    """Takes 10 ms to build, so that a kill strikes in mid-sweep."""
    time.sleep(0.01)
    return ql.case("het", seed=index)


def waiting(seed):
    """Takes 10 ms of wall time, little of it a processor's; no lane takes it."""
    time.sleep(0.01)
    return ql.BlockQuadratic.from_spectra([np.linspace(1.0, 1.1, 20_000)], basis="axis", seed=seed)


def late(seed, index, path):
    """Fails until a file exists."""
    if index == 2 and not os.path.exists(path):
        raise RuntimeError("not yet")
    return ql.case("het", seed=index)


@contextmanager
def dask_cluster(folder: Path, size: int = 2) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """The address of a scheduler with worker processes of one thread over TCP on loopback, and these."""
    environment = {**os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    environment.pop("NUMBA_NUM_THREADS", None)
    file = folder / "scheduler.json"
    common = ["--host", "tcp://127.0.0.1", "--no-dashboard", "--scheduler-file", str(file)]

    def spawn(module: str, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.{module}", *common, *options]
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    scheduler = spawn("dask_scheduler", "--port", "0")
    workers = [spawn("dask_worker", "--nthreads", "1", "--no-nanny") for _ in range(size)]
    try:
        from distributed import Client

        while not file.exists():
            time.sleep(0.05)
            assert scheduler.poll() is None
        with Client(scheduler_file=str(file), set_as_default=False) as client:
            client.wait_for_workers(size, timeout=60)
            address = client.scheduler.address
        yield address, workers
    finally:
        for process in [*workers, scheduler]:
            process.kill()
            process.wait()
