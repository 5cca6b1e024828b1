"""Every engine gives the same table to the bit, whatever dies meanwhile."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import random
import signal
import threading
import time
import weakref
from collections import deque
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache

import pytest

import sweep_helpers
from quadlab.cli import main
from quadlab.sweep import engines, sweep
from quadlab.sweep.grid import versions
from quadlab.sweep.store import Store
from sweep_helpers import Lion, dask_cluster
from sweep_kills import content

GRID = {
    "fixed": {"eps": 1e-3, "relative": True, "statistics": ["sup_lambda_g", "parameter_weighted"]},
    "product": {
        "case": ["het", "hom", "het-axis"],
        "method": ["gd:lambda_g", "signsgd:lambda_p", "adam:0.01", Lion(1e-2)],
        "max_iterations": [50, 2000],
        "seed": range(40),
    },
}
SLOW = {
    "problem": "sweep_helpers:slow",
    "index": range(300),
    "method": ["gd:lambda_g", "adam:0.01"],
    "eps": 1,
}


@cache
def local(name):
    return content(sweep({"GRID": GRID, "SLOW": SLOW}[name]))


def test_processes():
    assert content(sweep(GRID, executor=2)) == local("GRID")


def test_any_executor():
    with ThreadPoolExecutor(3) as threads:
        assert content(sweep(GRID, executor=threads, pack_seconds=0.02)) == local("GRID")
        assert threads.submit(int).result() == 0  # it is left to its owner
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
        assert content(sweep(GRID, executor=processes)) == local("GRID")


def test_pack_length_changes_nothing():
    assert content(sweep(GRID, pack_seconds=1e-6)) == local("GRID")
    assert content(sweep(GRID, pack_seconds=100.0)) == local("GRID")


def simulated(groups, cost, workers, lanes, seconds=0.1):
    """The sizes of packs, and when each worker of a machine that runs a group in `cost` seconds ends."""
    packs = engines.Packs(deque([("{}", ["{}"])] * groups), seconds=seconds)
    sizes, ends, running = [], [0.0] * workers, []
    while True:
        slots = workers if packs.cost is None else 2 * workers
        while len(running) < slots and (pack := packs.take(workers)) is not None:
            done = len(pack.groups)
            if pack.first:  # a worker gives back what it does not begin
                done = min(done, max(1, round(4 * seconds / cost)))
            worker = ends.index(min(ends))
            ends[worker] += done * cost
            running.append((ends[worker], pack, done))
        if not running:
            return sizes, ends
        _, pack, done = running.pop(min(range(len(running)), key=lambda k: running[k][0]))
        sizes.append(done)
        packs.learn(pack, engines.PackResult([[]] * done, done * cost, lanes))


@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize("groups", [1, 5, 700, 5000])
@pytest.mark.parametrize("cost", [5e-7, 5e-4, 1e-2, 3.0])
@pytest.mark.parametrize("lanes", [True, False])
def test_workers_end_together(workers, groups, cost, lanes):
    sizes, ends = simulated(groups, cost, workers, lanes)
    assert sum(sizes) == groups
    longest = max(cost, engines.LEAST_SECONDS, 3 * engines.MAX_LANES * cost * lanes)
    assert max(ends) - min(ends) <= 1.01 * longest


def test_packs_fill_the_lanes_to_the_end():
    for workers in (1, 2, 7):
        sizes, ends = simulated(20_000, 1e-3, workers, lanes=True)
        known = sizes[workers:]
        assert 2 * engines.MAX_LANES <= min(known) <= max(known) < 3 * engines.MAX_LANES
        assert max(known) - min(known) <= 1
        assert max(ends) < 1.04 * sum(ends) / workers


def test_the_cost_of_a_run_is_found_out_by_the_worker(monkeypatch):
    batches, real = [], engines._run_batch

    def counted(problems, groups, start):
        batches.append(len(groups))
        return real(problems, groups, start)

    monkeypatch.setattr(engines, "_run_batch", counted)
    assert len(engines.run_pack(PACK, versions(), 100.0, 1).outcomes) == len(PACK)
    assert batches == [1, engines.GROWTH, len(PACK) - engines.GROWTH - 1]
    batches.clear()
    assert len(engines.run_pack(PACK, versions(), 1e-9, 1).outcomes) == 1
    assert len(engines.run_pack(PACK, versions(), 1e-9).outcomes) == len(PACK)
    assert batches == [1, len(PACK)]


def test_a_killed_process_does_not_end_the_sweep(tmp_path):
    killed = []
    path = tmp_path / "s.sqlite"

    def kill():
        while len(killed) < 2:
            time.sleep(0.1)
            children = multiprocessing.active_children()
            rows = 0
            if path.exists() and children:
                with Store(path, write=False)._db as connection:
                    rows = connection.execute("SELECT count(*) FROM runs").fetchone()[0]
            if 0 < rows < 500 and rows > 60 * len(killed):
                os.kill(children[0].pid, signal.SIGKILL)
                killed.append(rows)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    table = sweep(SLOW, path, executor=2, pack_seconds=0.1)
    thread.join(timeout=5)
    assert len(killed) == 2
    assert content(table) == local("SLOW")


def test_a_worker_killed_in_mid_answer_is_the_death_of_one_call():
    executor = engines.ProcessExecutor(2)
    try:
        calls = [executor.submit(sweep_helpers.half_an_answer), executor.submit(os.getpid)]
        calls += [executor.submit(bytes, 10**6) for _ in range(20)]
        assert isinstance(calls[0].exception(timeout=60), engines.WorkerDied)
        assert calls[1].result(timeout=60) != os.getpid()
        assert [len(call.result(timeout=60)) for call in calls[2:]] == [10**6] * 20
    finally:
        executor.shutdown(cancel_futures=True)


def test_workers_killed_at_random_moments_of_long_answers():
    executor = engines.ProcessExecutor(2)
    died = 0
    try:
        for _ in range(10):
            calls = [executor.submit(bytes, 10**6) for _ in range(100)]
            calls[random.randrange(100)].result(timeout=60)
            time.sleep(random.uniform(0, 0.02))
            process = random.choice(sorted(executor._processes, key=id))
            os.kill(process.pid, signal.SIGKILL)
            while process.is_alive():  # on a busy machine longer than the calls take
                time.sleep(0.001)
            for call in calls:
                error = call.exception(timeout=60)
                assert error is None or isinstance(error, engines.WorkerDied)
                died += error is not None
            assert executor.submit(len, "abc").result(timeout=60) == 3
    finally:
        executor.shutdown(cancel_futures=True)
    assert died <= 10  # a death is that of one call
    assert not multiprocessing.active_children()


def test_an_executor_of_processes_reports_what_goes_wrong():
    with engines.ProcessExecutor(1) as executor:
        with pytest.raises(RuntimeError, match="ZeroDivisionError: integer"):
            executor.submit(divmod, 1, 0).result(timeout=60)
        with pytest.raises(RuntimeError, match="pickle"):
            executor.submit(open, os.devnull).result(timeout=60)
        assert executor.submit(int, "11", base=2).result(timeout=60) == 3
        last = executor.submit(sum, [1, 2])
    assert last.result() == 3  # leaving waits


def test_a_run_that_kills_its_process_fails_alone(tmp_path):
    grid = {"problem": "sweep_helpers:deadly", "index": [5, 6, 7], "method": "gd:lambda_g", "eps": 1}
    table = sweep(grid, tmp_path / "s.sqlite", executor=1)
    assert table.statuses == {"converged": 2, "failed": 1}
    assert table["status"][2] == "failed"
    assert "worker died" in table["error"][2]


def test_workers_that_cannot_start_are_an_error(monkeypatch):
    monkeypatch.setattr(engines, "_serve", sweep_helpers.deaf)
    with pytest.raises(ChildProcessError, match="do not start"):
        sweep({"case": "het", "method": "gd:lambda_g", "eps": 1}, executor=1)


def test_a_worker_of_other_versions_is_refused(monkeypatch):
    monkeypatch.setattr(engines, "versions", lambda: "others")
    with (
        ThreadPoolExecutor(1) as threads,
        pytest.raises(ChildProcessError, match="a worker has the versions"),
    ):
        real = engines.run_pack
        monkeypatch.setattr(engines, "run_pack", lambda pack, sender, *rest: real(pack, "mine", *rest))
        sweep({"case": "het", "method": "gd:lambda_g", "eps": 1}, executor=threads)


def threads_of_a_worker(pack):
    """Run a pack, then return whether numba made threads, how many it may, and those of each BLAS."""
    import numba
    from numba.np.ufunc import parallel
    from threadpoolctl import threadpool_info

    engines.run_pack(pack, versions(), 1.0)
    with engines._INSIDE:
        blas = [pool["num_threads"] for pool in threadpool_info()]
    return parallel._is_initialized, numba.config.NUMBA_NUM_THREADS, max(blas)


PACK = [
    (f'{{"case":"het","seed":{k}}}', ['{"eps":1,"learning_rate":"lambda_g","method":"gd"}'])
    for k in range(64)
]


def test_what_fails_in_a_pack_fails_alone():
    gd, sign, wrong = (
        f'{{"eps":1,"learning_rate":{rate},"method":"{method}"}}'
        for method, rate in (("gd", '"lambda_g"'), ("signsgd", '"lambda_p"'), ("gd", "-1"))
    )
    good, bad = '{"case":"het","seed":%d}', '{"case":"het","noise":-1,"seed":%d}'
    groups = [
        (good % 0, [gd]),
        (bad % 0, [gd, sign]),
        (good % 1, [wrong, gd]),
        (bad % 1, [sign]),
        (bad % 2, [wrong]),
    ]
    outcomes = engines.run_pack(groups, versions(), 100.0).outcomes
    assert [[status for status, *_ in of_one] for of_one in outcomes] == [
        ["converged"], ["failed", "failed"], ["failed", "converged"], ["failed"], ["failed"],
    ]  # fmt: skip
    alone = [engines.run_pack([(problem, [setting])], versions(), 100.0).outcomes
             for problem, settings in groups for setting in settings]  # fmt: skip
    told = [outcome[:-1] for of_one in outcomes for outcome in of_one]
    assert told == [outcome[:-1] for ((outcome,),) in alone]
    assert "noise must be" in told[1][3] and "learning_rate" in told[3][3]


def test_a_worker_has_one_thread():
    engine = engines.Processes(1)
    try:
        assert engine.executor.submit(threads_of_a_worker, PACK).result() == (False, 1, 1)
    finally:
        engine.close()


def test_packs_at_once_share_one_limit_of_threads_and_one_pause_of_the_collector():
    from threadpoolctl import threadpool_info

    def blas():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    before = blas()
    with engines._INSIDE:
        with engines._INSIDE:
            pass
        assert set(blas()) == {1}
        assert not gc.isenabled()
    assert blas() == before
    assert gc.isenabled()
    gc.disable()
    try:
        with engines._INSIDE:
            pass
        assert not gc.isenabled()  # as it was
    finally:
        gc.enable()


def test_a_pack_leaves_the_collector_nothing():
    engines.run_pack(PACK, versions(), 1.0)
    gc.collect()
    gc.disable()
    try:
        engines.run_pack(PACK, versions(), 1.0)
        assert gc.collect() == 0
    finally:
        gc.enable()


@pytest.mark.parametrize("executor", [0, -1, True, 1.5, "tcp://127.0.0.1:1", "nonsense", object()])
def test_a_bad_executor_is_one_line(executor, monkeypatch):
    distributed = pytest.importorskip("distributed")
    made = []

    class Client(distributed.Client):
        def __init__(self, address, timeout, **options):
            made.append(weakref.ref(self))
            super().__init__(address, timeout=1, **options)

    monkeypatch.setattr(distributed, "Client", Client)
    with pytest.raises(ValueError, match=r"executor|workers|Dask scheduler") as caught:
        sweep({"case": "het", "method": "gd:lambda_g", "eps": 1}, executor=executor)
    assert "\n" not in str(caught.value)
    assert len(made) == isinstance(executor, str)
    # A Client left half made hangs the next one, if it is collected while that one starts.
    assert not any(client() for client in made)


# -- Dask ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    pytest.importorskip("distributed")
    with dask_cluster(tmp_path_factory.mktemp("cluster")) as made:
        yield made


def test_dask_at_the_command_line(cluster, tmp_path, capsys):
    spec = tmp_path / "spec.toml"
    spec.write_text('case = "het"\nmethod = "gd:lambda_g"\neps = 1\nseed = { range = 50 }\n')
    assert main(["sweep", str(spec), "--dask", cluster[0], "--json"]) == 0
    here = sweep(spec)
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [{k: v for k, v in run.items() if k != "seconds"} for run in runs] == content(here)


def test_a_dask_client_is_left_open(cluster):
    from distributed import Client

    with Client(cluster[0], set_as_default=False) as client:
        assert content(sweep(GRID, executor=client)) == local("GRID")
        # Dask does not limit numba, nor need it: the kernels that a pack runs are serial.
        started, _, blas = client.submit(threads_of_a_worker, PACK).result()
        assert (started, blas) == (False, 1)


def test_dask_with_a_worker_killed_in_mid_sweep(cluster, tmp_path, monkeypatch):
    address, workers = cluster
    assert address.startswith("tcp://127.0.0.1:")
    assert content(sweep(GRID, executor=address)) == local("GRID")

    monkeypatch.setattr(engines, "MAX_LANES", 8)  # or two packs would be the whole sweep
    path, killed = tmp_path / "s.sqlite", []

    def kill():
        while not killed:
            time.sleep(0.05)
            if path.exists():
                with Store(path, write=False)._db as connection:
                    rows = connection.execute("SELECT count(*) FROM runs").fetchone()[0]
                if rows > 100:
                    workers[0].kill()
                    killed.append(rows)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    table = sweep(SLOW, path, executor=address, pack_seconds=0.1)
    thread.join(timeout=5)
    assert 100 < killed[0] < 500
    assert workers[0].poll() is not None
    assert workers[1].poll() is None
    assert content(table) == local("SLOW")
