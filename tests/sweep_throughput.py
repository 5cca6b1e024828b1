"""What a sweep costs beside the bare solver: ``python tests/sweep_throughput.py [NAME ...] [--dask N]``.

The same runs, of the same problems built from the same text, are made in four ways:

- **bare**: the problems are built one after another, then one call of ``solve_many``;
- **together**: the same, but those of many seeds are built in one call, as a sweep does;
- **cut**: this with as many problems at a time as fill a pack: what cutting alone costs;
- **sweep**: ``sweep`` with a store on disk, from the grid to the table.

What is compared is CPU time, which other work on the machine disturbs less than wall time. With ``--dask N``
the sweep is also made on a scheduler and N worker processes that talk over TCP; there it is wall time, over
that of N processes which make a part of the bare runs each, at once: two threads of one core are slower than
two cores. The runs of the last workload wait rather than compute, so that scheduler, client and workers have
the processors they need on any machine; there all is wall time. The ways alternate; what is printed is each
way's least cost, to which other work on the machine adds least, over that of another, and in brackets the
median of the ratios of one round.
"""

from __future__ import annotations

import argparse
import gc
import math
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from quadlab.bases import one_blas_thread
from quadlab.engine import MAX_LANES
from quadlab.kernels import entry
from quadlab.solve import solve_many
from quadlab.sweep import read_grid, sweep
from quadlab.sweep.configuration import build_problem, build_problems, build_setting
from quadlab.sweep.grid import Grid
from sweep_helpers import dask_cluster, waiting

METHODS = ["gd:lambda_g", "signsgd:lambda_p", "adam:0.01"]
STOP = {"eps": 1e-3, "relative": True}
LARGE, WAITING = "1,024 parameters", "waiting for 10 ms"
CONDITIONS = {"condition_number": [10, 100, 1000], "hessian_spread": [1, 10]}


def workloads(seeds: int) -> dict[str, dict[str, Any]]:
    """Grids: the shortest runs, what the docs show, dense blocks, what no lane takes, no computation."""
    cases = {"case": ["het", "hom"], "method": METHODS, "seed": range(12 * seeds)}
    family = {**CONDITIONS, "method": METHODS, "seed": range(seeds)}
    short = {**family, "seed": range(2 * seeds)}
    return {
        "9 parameters": {"fixed": STOP, "product": cases},
        "32 parameters": {"fixed": {"blocks": 8, "sizes": 4, **STOP}, "product": short},
        "128 parameters": {"fixed": {"blocks": 8, "sizes": 16, **STOP}, "product": family},
        LARGE: {
            "fixed": {"blocks": 16, "sizes": 64, **STOP},
            "product": {**family, "seed": range(math.ceil(seeds / 15))},
        },
        WAITING: {
            "fixed": {"problem": waiting, "method": "gd:lambda_g", **STOP},
            "product": {"seed": range(4 * seeds)},
        },
    }


def bare(grid: Grid, at_a_time: int = 1 << 60, part: int = 0, parts: int = 1, together: bool = False) -> None:
    """Build and solve so many problems at a time, of one part of all."""
    settings = [build_setting(text) for text in grid.settings]
    of: list[list[int]] = [[] for _ in grid.problems]
    for problem, setting in zip(grid.problem_of.tolist(), grid.setting_of.tolist(), strict=True):
        of[problem].append(setting)
    with one_blas_thread():
        own = range(part, len(of), parts)
        for begin in range(0, len(own), at_a_time):
            some = own[begin : begin + at_a_time]
            texts = [grid.problems[k] for k in some]
            problems = build_problems(texts) if together else map(build_problem, texts)
            built: dict[int, Any] = dict(zip(some, problems, strict=True))
            runs = [(built[k], settings[j]) for k in some for j in of[k]]
            solve_many(
                [problem for problem, _ in runs],
                [setting.method for _, setting in runs],
                [setting.stop for _, setting in runs],
                progress=False,
            )


def swept(spec: dict[str, Any], pack_seconds: float, executor: Any = None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        table = sweep(spec, Path(folder) / "s.sqlite", executor, pack_seconds=pack_seconds, progress=False)
    assert set(table.statuses) == {"converged"}


def in_parts(pool: Executor, part: Callable[..., None], parts: int) -> None:
    list(pool.map(partial(run_part, part), range(parts)))


def run_part(bare_of: Callable[..., None], part: int) -> None:
    bare_of(part=part)


def over(costs: list[float], base: list[float]) -> str:
    """Say the ratio of the least costs, and the median of the ratios."""
    return f"{min(costs) / min(base):.3f} ({median(a / b for a, b in zip(costs, base, strict=True)):.3f})"


def cost(function: Callable[[], Any], clock: Callable[[], float] = time.process_time) -> float:
    gc.collect()
    begin = clock()
    function()
    return clock() - begin


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=[""], help="how the wanted workloads begin: 9 128")
    parser.add_argument("--seeds", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--pack-seconds", type=float, nargs="+", default=[0.1, 0.5])
    parser.add_argument("--dask", type=int, default=0, metavar="N")
    options = parser.parse_args()
    entry.compile_all()
    with ExitStack() as stack:
        client: Any = None
        if options.dask:
            from distributed import Client

            folder = stack.enter_context(tempfile.TemporaryDirectory())
            address, _ = stack.enter_context(dask_cluster(Path(folder), options.dask))
            client = stack.enter_context(Client(address, set_as_default=False))
            client.run(entry.compile_all)
            pool = stack.enter_context(
                ProcessPoolExecutor(options.dask, multiprocessing.get_context("spawn"), entry.compile_all)
            )
        for name, spec in workloads(options.seeds).items():
            if not name.startswith(tuple(options.names)):
                continue
            grid = read_grid(spec)
            bare(grid)
            clock = time.perf_counter if name == WAITING else time.process_time
            alone = cost(lambda grid=grid: bare(grid, together=True), clock)
            for seconds in options.pack_seconds:
                pack = max(1, round(seconds / alone * len(grid.problems)))
                if name not in (WAITING, LARGE):
                    pack = max(pack, 2 * MAX_LANES)
                ways = {
                    "bare": (partial(bare, grid), clock),
                    "together": (partial(bare, grid, together=True), clock),
                    "cut": (partial(bare, grid, pack, together=True), clock),
                    "sweep": (partial(swept, spec, seconds), clock),
                }
                if client is not None:
                    for way, together in (("bare parts", False), ("parts", True)):
                        part = partial(bare, grid, parts=options.dask, together=together)
                        own = partial(in_parts, pool, part, options.dask)
                        ways[way] = (own, time.perf_counter)
                    ways["dask"] = (partial(swept, spec, seconds, client), time.perf_counter)
                costs: dict[str, list[float]] = {way: [] for way in ways}
                for _ in range(options.rounds):
                    for way, (function, of_way) in ways.items():
                        costs[way].append(cost(function, of_way))
                rates = {way: f"{len(grid) / min(values):,.0f}" for way, values in costs.items()}
                told = "wall" if name == WAITING else "CPU"
                print(
                    f"{name}, {len(grid):,} runs, packs of {seconds:g} s or {pack} problems\n"
                    f"    runs a second of {told} time: bare {rates['bare']}, together {rates['together']}, "
                    f"sweep {rates['sweep']}; sweep over bare {over(costs['sweep'], costs['bare'])}, "
                    f"over together {over(costs['sweep'], costs['together'])}, of which cutting "
                    f"{over(costs['cut'], costs['together'])}",
                    flush=True,
                )
                if client is not None:
                    print(
                        f"    {options.dask} processes, of wall time: bare {rates['bare parts']}, together "
                        f"{rates['parts']}, Dask {rates['dask']}. Dask over bare "
                        f"{over(costs['dask'], costs['bare parts'])}, over together "
                        f"{over(costs['dask'], costs['parts'])}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
