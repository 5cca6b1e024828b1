r"""Sweeps: thousands of runs over named axes, resumable, on one machine or many.

.. code-block:: python

    table = ql.sweep(
        {
            "product": {
                "condition_number": [10, 100, 1000],
                "hessian_spread": {"log": [1, 10, 5]},
                "method": ["gd:lambda_g", "signsgd:lambda_p", ql.Adam(1e-2)],
                "seed": range(100),
            },
            "fixed": {"blocks": 8, "sizes": 4, "eps": 1e-3, "relative": True},
        },
        store="spread.sqlite",
        executor=4,  # processes; None: this one; "tcp://host:8786": Dask
    )
    table["iterations"], table.array("status").shape, table.to_csv("spread.csv"), table.to_xarray()

The same as a file, for ``quadlab sweep SPEC.toml``::

    [fixed]
    blocks = 8
    sizes = 4
    eps = 1e-3
    relative = true

    [product]
    condition_number = [10, 100, 1000]
    hessian_spread = { log = [1, 10, 5] }
    method = ["gd:lambda_g", "signsgd:lambda_p", "adam:0.01"]
    seed = { range = 100 }

`quadlab.sweep.grid` says how axes combine, `quadlab.sweep.configuration` which names there are and where
seeds come from, `quadlab.sweep.store` what survives a kill (everything written), `quadlab.sweep.engines` how
runs are packed.

**A Dask cluster in five lines**, on machines that have the same versions of the libraries and of quadlab::

    pip install 'quadlab[dask]'                       # on each machine
    dask scheduler --port 8786                        # on one of them, called host below
    dask worker tcp://host:8786 --nworkers 16 --nthreads 1   # on each, a worker a core
    quadlab sweep spec.toml --store spec.sqlite --dask tcp://host:8786
    # the store stays with the last command, which may be killed and started again

Packs run on one thread each, whatever the number of cores: give a machine as many workers as it has cores.
numba's variable for threads need not be set: the kernels that a pack runs are serial. Dask's own profiler
takes some 4 per cent of a worker; ``DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED=False`` in its environment
switches it off. Where a function or a file is named as ``problem`` or ``method``, the workers must find the
same one.

**Two sweeps on one store** at once are safe, and each ends with the whole table, but they do not share the
work: each runs what was missing when it began. One sweep with more workers shares it.

**What a million runs cost.** Measured: a million runs of nine parameters ("het" and "hom", three methods,
:math:`\|g\|_1` to a thousandth) took 75 s in one process, 0.075 ms a run, of which building the problem takes
0.025 ms and the sweep's own bookkeeping (reading the grid, the store, the table) 0.015 ms; the store has
0.45 GB, the process 1.0 GB, and to read the finished sweep again takes 17 s. Bookkeeping stays with the
process that started the sweep: beyond four workers, runs this short are bound by it.

Problems that differ in nothing but their seed are built together. So in packs of 0.1 s a sweep in one process
takes half the CPU time of a script that builds the problems of such short runs one by one and solves them in
one call, and 3 to 5 per cent more than it where a run takes 10 ms. Over a script that builds them together as
well (``case(name, seed=range(n))``) it takes 10 to 24 per cent more where a run takes 0.06 to 0.15 ms, 8 to
13 at a millisecond, 0 to 7 at ten. A Dask cluster adds the time of its own processes, 2 ms a pack or, on few
cores, up to 20, so packs of the usual 0.5 s suit it better. Runs that take longer scale with their own time;
``--dry-run`` tells it beforehand. ``tests/sweep_throughput.py`` measures all this.
"""

from __future__ import annotations

from collections import deque
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from quadlab._progress import progress_bar
from quadlab.sweep.engines import PACK_SECONDS, Group, Packs, compute, engine_of, run_pack
from quadlab.sweep.grid import Grid, joined, read_grid, versions
from quadlab.sweep.store import FAILED, Outcome, Store
from quadlab.sweep.table import Table

__all__ = ["Estimate", "Grid", "Table", "estimate", "read_grid", "sweep"]

#: Wall time of the sample from which `estimate` estimates.
SAMPLE_SECONDS = 1.0


def sweep(
    grid: Any,
    store: str | Path | None = None,
    executor: Any = None,
    *,
    retry_failed: bool = False,
    progress: bool | None = None,
    pack_seconds: float = PACK_SECONDS,
) -> Table:
    """Run all runs of a grid that the store does not hold, and return the table of all.

    Parameters
    ----------
    grid : dict, list of dict, path of a TOML file, or Grid
        The named axes, see `quadlab.sweep.grid`.
    store : str or Path, optional
        An SQLite file, made if there is none. Killed at any point, the same call goes on where it was.
        Without it, results are kept in memory only.
    executor : int, str, distributed.Client, concurrent.futures.Executor or None
        A number of processes, the address of a Dask scheduler, a Dask client, or any executor, whose workers
        have one thread's worth of work each; None: this process. The numbers do not depend on it.
    retry_failed : bool
        Run again what is stored as failed.
    progress : bool, optional
        A progress bar; by default on a terminal and in a notebook, after two seconds.
    pack_seconds : float > 0
        Wall time of a pack of runs, from 0.1 s for the overhead to be small.

    Returns
    -------
    Table
        In the order of the grid; runs that could not be run have the status "failed" and no numbers.

    Raises
    ------
    ValueError
        On a malformed grid, before anything is run; or if the store is damaged, or of another schema.
    OSError
        If the store cannot be written, such as on a full disk; what was written is kept.

    Examples
    --------
    >>> methods = ["gd:lambda_g", "signsgd:lambda_p"]
    >>> table = sweep({"case": "het", "method": methods, "eps": 0.1, "seed": [0, 1]})
    >>> table
    <Table: 4 runs (4 converged): method 2 x seed 2>
    >>> table.array("iterations").shape
    (2, 2)
    """
    runs = read_grid(grid)
    if not pack_seconds > 0:
        raise ValueError(f"pack_seconds must be positive, received {pack_seconds}")
    with closing(Store(store)) as rows:
        known = rows.read(runs.keys)
        todo = _to_do(runs, known, retry_failed)
        if todo:
            runs.check()
            missing = sum(map(len, todo.values()))
            bar = progress_bar(progress, total=len(runs), initial=len(runs) - missing, unit="run")
            packs = Packs(deque(_groups(todo)), pack_seconds)
            with bar, closing(compute(packs, engine_of(executor))) as ended:
                for groups in ended:
                    done = [
                        (todo[problem][setting], joined(problem, setting), outcome)
                        for (problem, settings), outcomes in groups
                        for setting, outcome in zip(settings, outcomes, strict=True)
                    ]
                    rows.write(done)
                    known.update([(key, outcome) for key, _, outcome in done])
                    bar.update(len(done))
            if not rows.is_own():  # another sweep may have been first with some of these runs
                known = rows.read(runs.keys)
        return Table(runs, [known[key] for key in runs.keys])


def _to_do(runs: Grid, known: dict[str, Outcome], retry_failed: bool) -> dict[str, dict[str, str]]:
    """Return the keys of the runs to do, by problem and setting, problems in the order of their keys.

    So those of one structure are in a row, and rows come to the store in the order of its index: elsewhere
    each would change a page of its own.
    """
    todo: dict[str, dict[str, str]] = {}
    for key, problem, setting in zip(
        runs.keys, runs.problem_of.tolist(), runs.setting_of.tolist(), strict=True
    ):
        if key not in known or (retry_failed and known[key][0] == FAILED):
            todo.setdefault(runs.problems[problem], {})[runs.settings[setting]] = key
    return dict(sorted(todo.items(), key=lambda item: min(item[1].values())))


def _groups(todo: dict[str, dict[str, str]]) -> list[Group]:
    return [(problem, list(keys)) for problem, keys in todo.items()]


@dataclass(frozen=True)
class Estimate:
    """What a sweep would do; made by `estimate`.

    Attributes
    ----------
    runs, stored, failed, to_do : int
        All, those with a result in the store, those stored as failed, those that a call would run.
    sample : int
        Runs that were tried.
    seconds_per_run : float or None
        On one worker; None if there is nothing to do.
    seconds : float
        Of the whole, on so many workers.
    """

    runs: int
    stored: int
    failed: int
    to_do: int
    sample: int
    seconds_per_run: float | None
    seconds: float


def estimate(
    grid: Any, store: str | Path | None = None, workers: int = 1, *, retry_failed: bool = False
) -> Estimate:
    """Count the runs of a sweep and estimate its time from a sample of a second or three; nothing is stored.

    Parameters
    ----------
    grid, store, retry_failed
        As in `sweep`.
    workers : int >= 1

    Returns
    -------
    Estimate

    Raises
    ------
    ValueError
        As `sweep` does.

    Examples
    --------
    >>> plan = estimate({"case": ["het", "hom"], "method": "gd:lambda_g", "eps": 0.1, "seed": range(50)})
    >>> plan.to_do, 0 < plan.sample <= 100
    (100, True)
    """
    runs = read_grid(grid)
    with closing(Store(store, write=False)) as rows:
        known = rows.read(runs.keys)
    todo = _to_do(runs, known, retry_failed)
    failed = sum(status == FAILED for status, *_ in known.values())
    missing = sum(map(len, todo.values()))
    sample, per_run = 0, None
    if todo:
        runs.check()
        groups = _groups(todo)
        begin, count = perf_counter(), 1
        while True:  # ever more problems, spread over the grid
            chosen = [groups[k * len(groups) // count] for k in range(min(count, len(groups)))]
            result = run_pack(chosen, versions(), SAMPLE_SECONDS)
            sample = sum(map(len, result.outcomes))
            per_run = result.seconds / sample
            # In lanes eight problems take little longer than one.
            next_seconds = (3 if result.lanes else 8) * result.seconds
            if count >= len(groups) or perf_counter() - begin + next_seconds > 3 * SAMPLE_SECONDS:
                break
            count = min(8 * count, len(groups))
    return Estimate(
        runs=len(runs),
        stored=len(known) - failed,
        failed=failed,
        to_do=missing,
        sample=sample,
        seconds_per_run=per_run,
        seconds=0.0 if per_run is None else per_run * missing / workers,
    )
