"""The benchmark: quadlab beside NumPy, torch.optim and JAX + optax on the same work, and against the machine.

    make bench                                     # everything, about ten minutes on an idle machine
    python tests/bench.py --only batch --quick     # some items, small, written to no file but --out
    python tests/bench.py --table                  # the README's tables from the recorded JSON

Every peer lives in processes of its own, one for each number of threads, bound to as many cores; what is
timed alternates between them, so that a busy machine disturbs all alike. A peer is warmed up first (compiled,
and its counts compared with quadlab's). The median over the repeats is quoted, the least recorded beside it.

Items:

one       one run, time per iteration with the test on; NumPy and torch make a shorter run than the others
batch     64 learning rates x 64 starts, to 1e-3 of the starting gradient, cap 10^4; one H, and one H a lane
roofline  diagonal Adam against the bandwidth of a triad, dense lanes against dgemm, in the same repeats
growth    time per iteration against P, sum P_b^2 and the number of lanes; peak memory of diagonal Adam
startup   imports, the first solve from a warm cache, and a cold warmup, each in a new process
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import bench_peers
import quadlab as ql
from bench_peers import METHODS, PEERS, Work

ROOT = Path(__file__).parents[1]
RECORDED = ROOT / "quadlab" / "recorded" / "bench.json"
SCHEMA = "quadlab.bench/1"
MARKS = "<!-- bench: made by tests/bench.py --table -->\n", "<!-- /bench -->\n"
LIBRARIES = ("quadlab", "numpy", "scipy", "numba", "torch", "jax", "jaxlib", "optax")
THREADS = (1, 2)
#: Fewer seconds than this are measured as several calls.
LEAST = 0.05
#: Bytes that an iteration of Adam on a diagonal must move: h, x, m, v read, and x, m, v written.
ADAM_BYTES = 7 * 8
#: Parameters of the growing diagonal.
SIZES = (10**4, 10**5, 10**6, 10**7, 10**8)
#: A test that never holds.
NEVER = 1e-280


# -- workers: a peer in a process of its own -----------------------------------------------------------------


class Worker:
    """A process with a number of threads that evaluates module-level functions; one call at a time."""

    def __init__(self, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        limits = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "NPROC")
        kept = {name: os.environ.get(name) for name in limits}
        os.environ.update(dict.fromkeys(limits, str(threads)))
        self._process = context.Process(target=_serve, args=(other, threads), daemon=True)
        self._process.start()
        for name, value in kept.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        other.close()

    def __enter__(self) -> Worker:
        return self

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self._pipe.send((function, arguments))
        ok, value = self._pipe.recv()
        if not ok:
            raise RuntimeError(value)
        return value

    def __exit__(self, *exc: object) -> None:
        self._pipe.close()
        self._process.join(10)
        self._process.kill()


def _serve(pipe: Any, threads: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, function(*arguments)))
        except Exception as error:
            pipe.send((False, f"{function.__name__}{arguments[:1]}: {type(error).__name__}: {error}"))


@contextmanager
def workers(names: Sequence[Any], threads: Sequence[int] = THREADS) -> Iterator[dict[Any, Worker]]:
    """One worker for each (name, number of threads)."""
    with ExitStack() as stack:
        yield {(name, n): stack.enter_context(Worker(n)) for n in threads for name in names}


_run: bench_peers.Run
_calls: int


def prepare(peer: str, work: Work) -> None:
    """Build and compile a peer's run, in the worker."""
    global _run, _calls
    _run, _calls = PEERS[peer](work), 1
    _run(2)


def warm(cap: int) -> np.ndarray:
    """Make the run once, and decide how many calls a measurement takes."""
    global _calls
    begin = time.perf_counter()
    counts = _run(cap)
    _calls = max(1, math.ceil(LEAST / (time.perf_counter() - begin)))
    return counts


def measure(cap: int) -> float:
    """Seconds of the run, the mean of a few calls where it is short."""
    begin = time.perf_counter()
    for _ in range(_calls):
        _run(cap)
    return (time.perf_counter() - begin) / _calls


def counted(cap: int) -> tuple[float, np.ndarray]:
    """Seconds of one run, and its counts."""
    begin = time.perf_counter()
    counts = _run(cap)
    return time.perf_counter() - begin, counts


def tune() -> tuple[int, int]:
    """Two caps between which a run takes long enough to be measured."""
    once, high = measure(1), 4
    while measure(high) - measure(high // 4) < max(4.0 * LEAST, 2.0 * once):
        high *= 4
    return high // 4, high


def per_iteration(low: int, high: int) -> float:
    """Seconds an iteration of all runs, between two caps: without what a call costs once."""
    short, long = measure(low), measure(high)
    return (long - short) / (high - low)


def alternate(measures: dict[Any, Callable[[], float]], repeats: int) -> dict[Any, list[float]]:
    """Measure all in turn, so many times; every second round in the opposite order."""
    seconds: dict[Any, list[float]] = {key: [] for key in measures}
    for k in range(repeats):
        for key in list(measures)[:: 1 if k % 2 == 0 else -1]:
            seconds[key].append(measures[key]())
    return seconds


def timing(seconds: Sequence[float], unit: float) -> dict[str, float]:
    """Nanoseconds a unit: the median, and the least."""
    return {
        "ns": rounded(1e9 * float(np.median(seconds)) / unit),
        "ns_least": rounded(1e9 * min(seconds) / unit),
    }


def rounded(value: float, digits: int = 4) -> float:
    return float(f"{value:.{digits}g}")


# -- one run -------------------------------------------------------------------------------------------------


def one_problems(quick: bool) -> dict[str, tuple[ql.BlockQuadratic, int, int]]:
    """Problem, iterations of the compiled peers, and of the interpreted ones."""
    law = ql.LogUniform(1.0, 1000.0)
    short = 10 if quick else 1

    def dense(blocks: int, size: int) -> ql.BlockQuadratic:
        return ql.BlockQuadratic.from_spectra(law, sizes=[size] * blocks, basis="haar", seed=0)

    million = ql.BlockQuadratic.from_spectra(law, sizes=[125_000] * 8, seed=0)
    problems = {
        "P = 9: 3 of 3": (ql.case("het", seed=0), 100_000 // short, 2_000 // short),
        "P = 1,024: 16 of 64": (dense(16, 64), 3_000 // short, 500 // short),
        "P = 1,000,000: diagonal": (million, 60 // short, 60 // short),
    }
    if not quick:
        problems["P = 4,096: 4 of 1,024"] = (dense(4, 1024), 60, 60)
    return problems


def calibrated(problem: ql.BlockQuadratic, method: str, iterations: int) -> Work:
    """A run whose test first holds within a factor two of so many iterations, with room for rounding.

    GD's step is 1/L; Adam's and SignSGD's constant takes the farthest coordinate there. The tolerance is put
    in the widest gap between the norm and all norms before.
    """
    rate = (
        1.0 / ql.curvature(problem).largest
        if method == "gd"
        else float(np.abs(problem.displacement).max()) / iterations
    )
    never = ql.GradientNorm(NEVER, ord=1)
    chosen = bench_peers.quadlab_method(method, rate)
    run = ql.solve(problem, chosen, never, max_iterations=iterations, record=1)
    norms = run.trace.grad_l1
    before = np.minimum.accumulate(norms)
    first = iterations // 2
    t = first + int(np.argmin(norms[first:] / before[first - 1 : -1]))
    eps = math.sqrt(norms[t] * before[t - 1]) / norms[0]
    return Work([problem], method, [rate], eps, cap=2 * iterations)


def one(repeats: int, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """One run: ns an iteration."""
    rows = []
    with workers(PEERS) as pool:
        for label, (problem, far, near) in one_problems(quick).items():
            for method in METHODS:
                works = {far: calibrated(problem, method, far), near: calibrated(problem, method, near)}
                counts, measures = {}, {}
                wanted = {
                    iterations: bench_peers.quadlab(work)(work.cap) for iterations, work in works.items()
                }
                for (peer, threads), worker in pool.items():
                    iterations = far if peer in ("quadlab", "optax") else near
                    cap = works[iterations].cap
                    worker(prepare, peer, _threaded(works[iterations], threads))
                    count = worker(warm, cap)
                    counts[peer, threads] = int(count[0]), bool((count == wanted[iterations]).all())
                    measures[peer, threads] = _later(worker, measure, cap)
                for (peer, threads), seconds in alternate(measures, repeats).items():
                    count, same = counts[peer, threads]
                    row = {"problem": label, "method": method, "peer": peer, "threads": threads}
                    rows.append({**row, "iterations": count, "same_count": same, **timing(seconds, count)})
                say(_told(rows, problem=label, method=method))
    return {"rows": rows}


def _threaded(work: Work, threads: int) -> Work:
    return Work(work.problems, work.method, work.rates, work.eps, work.cap, threads)


def _later(worker: Worker, function: Callable[..., float], *arguments: Any) -> Callable[[], float]:
    return lambda: worker(function, *arguments)


def _told(rows: list[dict[str, Any]], **chosen: Any) -> str:
    mine = [row for row in rows if all(row[key] == value for key, value in chosen.items())]
    cells = [
        f"{row['peer']} {row['threads']}: {row['ns']:g} ns{'' if row['same_count'] else ' OTHER COUNT'}"
        for row in mine
    ]
    return f"{', '.join(map(str, chosen.values()))}: {'; '.join(cells)}"


# -- a batch -------------------------------------------------------------------------------------------------


def batch_work(case: str, method: str, own_hessian: bool, side: int, cap: int) -> Work:
    """Rates 0.03 to 3 times the stable or optimal one, for each start.

    That is 2/L for GD, and P eps / M* for SignSGD (which Adam gets too). The rule of "sign_l1" has no rate:
    as many starts instead. With ``own_hessian`` every lane has a rotation of its own.
    """
    n, eps = side * side, 1e-3
    if own_hessian:
        problems = ql.case(case, seed=range(n))
    else:
        problem = ql.case(case, seed=0)
        starts = np.random.default_rng(0).standard_normal((n if method == "sign_l1" else side, problem.size))
        started = [problem.with_start(start) for start in starts]
        problems = started if method == "sign_l1" else [p for p in started for _ in range(side)]
    factors = np.tile(np.geomspace(0.03, 3.0, side), side)
    if method == "gd":
        scales = [2.0 / ql.curvature(p).largest for p in problems]
    else:
        norms = [np.abs(p.gradient(p.start)).sum() for p in problems]
        constants = (ql.curvature(p).m_star_upper for p in problems)
        scales = [eps * norm / m for norm, m in zip(norms, constants, strict=True)]
    return Work(problems, method, (factors * scales).tolist(), eps, cap)


def batch(repeats: int, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """A batch: ns a useful iteration of a run, and ns a lane and iteration, until the last lane ends."""
    rows = []
    side, cap = (8, 1_000) if quick else (64, 10_000)
    with workers(("quadlab", "optax")) as pool:
        for case in ("het", "hom"):
            for own_hessian in (False, True):
                for method in METHODS:
                    work = batch_work(case, method, own_hessian, side, cap)
                    counts: dict[Any, np.ndarray] = {}
                    measures = {}
                    for key, worker in pool.items():
                        peer, threads = key
                        if not (own_hessian and threads == 1):
                            worker(prepare, peer, _threaded(work, threads))
                            measures[key] = _counting(worker, cap, counts, key)
                    taken = alternate(measures, repeats)
                    mine = next(count for (peer, _), count in counts.items() if peer == "quadlab")
                    for (peer, threads), seconds in taken.items():
                        count = counts[peer, threads]
                        useful, lanes = int(count.sum()), int(count.size * count.max())
                        rows.append(
                            {
                                "case": case,
                                "hessian": "one a lane" if own_hessian else "one",
                                "method": method,
                                "peer": peer,
                                "threads": threads,
                                "runs": int(count.size),
                                "useful_iterations": useful,
                                "same_count": bool((count == mine).all()),
                                "other_counts": int((count != mine).sum()),
                                "largest_difference": int(np.abs(count - mine).max()),
                                "seconds": rounded(float(np.median(seconds))),
                                **timing(seconds, useful),
                                "ns_lane": rounded(1e9 * float(np.median(seconds)) / lanes),
                            }
                        )
                    shown = "one H a lane" if own_hessian else "one H"
                    say(f"{shown}, {_told(rows, case=case, method=method, hessian=rows[-1]['hessian'])}")
    return {"side": side, "cap": cap, "rows": rows}


def _counting(worker: Worker, cap: int, counts: dict[Any, np.ndarray], key: Any) -> Callable[[], float]:
    def seconds() -> float:
        taken, counts[key] = worker(counted, cap)
        return taken

    return seconds


# -- the machine ---------------------------------------------------------------------------------------------

_arrays: dict[str, Any] = {}


def prepare_machine(triad_size: int, gemm_size: int) -> None:
    """Arrays and the compiled triad, in the worker."""
    import numba

    @numba.njit(parallel=True, error_model="numpy")
    def triad(a: Any, b: Any, c: Any) -> None:
        for i in numba.prange(a.size):
            a[i] = b[i] + 3.0 * c[i]

    rng = np.random.default_rng(0)
    vectors = [np.ones(triad_size) for _ in range(3)]
    matrices = [rng.standard_normal((gemm_size, gemm_size)) for _ in range(3)]
    triad(*vectors)
    np.matmul(*matrices[:2], out=matrices[2])
    _arrays.update(triad=triad, vectors=vectors, matrices=matrices)


def triad_rate() -> float:
    """Bytes a second of a = b + 3 c, counted as 24 an entry (the line of a that is read first is not).

    The best of some passes: the first after a pause meets pages that the system has put aside.
    """
    seconds = []
    for _ in range(6):
        begin = time.perf_counter()
        _arrays["triad"](*_arrays["vectors"])
        seconds.append(time.perf_counter() - begin)
    return 24.0 * _arrays["vectors"][0].size / min(seconds)


def gemm_rate() -> float:
    """Floating-point operations a second of a product of matrices."""
    a, b, out = _arrays["matrices"]
    begin = time.perf_counter()
    np.matmul(a, b, out=out)
    return 2.0 * a.shape[0] ** 3 / (time.perf_counter() - begin)


def diagonal(size: int) -> ql.BlockQuadratic:
    """A diagonal problem, made without random numbers so that 10^8 take seconds."""
    return ql.BlockQuadratic.from_blocks([np.linspace(1.0, 1000.0, size)], start=np.linspace(-1.0, 1.0, size))


def prepare_diagonal(size: int, threads: int) -> None:
    prepare("quadlab", Work([diagonal(size)], "adam", [1e-4], NEVER, 0, threads))


def prepare_dense(blocks: int, size: int, runs: int, threads: int) -> None:
    """GD on dense blocks from many starts, with a step that reaches no end."""
    law = ql.LogUniform(1.0, 100.0)
    problem = ql.BlockQuadratic.from_spectra(law, sizes=[size] * blocks, basis="haar", seed=0)
    rng = np.random.default_rng(0)
    problems = [problem.with_start(rng.standard_normal(problem.size)) for _ in range(runs)]
    prepare("quadlab", Work(problems, "gd", [1e-9] * runs, NEVER, 0, threads))


def roofline(repeats: int, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Shares of what the machine does at best, measured between the repeats."""
    size, gemm = (10**5, 256) if quick else (10**7, 2000)
    rows = []
    with workers(("machine", "quadlab")) as pool:
        for threads in THREADS:
            machine = pool["machine", threads]
            machine(prepare_machine, size, gemm)
            worker = pool["quadlab", threads]
            worker(prepare_diagonal, size, threads)
            # Fixed caps, far apart: at this length what a call costs once varies by a second.
            taken = _later(worker, per_iteration, 10, 260)
            seconds = alternate({"triad": _later(machine, triad_rate), "quadlab": taken}, repeats)
            rate = ADAM_BYTES * size / float(np.median(seconds["quadlab"]))
            row = {"what": "diagonal Adam", "size": size, "threads": threads}
            rows.append({**row, **_share(rate, float(np.median(seconds["triad"])))})
            say(_shown_share(rows[-1], "GB/s of triad"))
        for block, blocks, runs in ((64, 4, 512), (256, 1, 256)) if not quick else ((16, 1, 64),):
            for threads in THREADS:
                machine, worker = pool["machine", threads], pool["quadlab", threads]
                worker(prepare_dense, blocks, block, runs, threads)
                caps = worker(tune)
                seconds = alternate(
                    {"dgemm": _later(machine, gemm_rate), "quadlab": _later(worker, per_iteration, *caps)},
                    repeats,
                )
                rate = 2.0 * runs * blocks * block**2 / float(np.median(seconds["quadlab"]))
                what = f"GD, {runs} lanes, {blocks} x {block}"
                row = {"what": what, "size": blocks * block, "threads": threads}
                rows.append({**row, **_share(rate, float(np.median(seconds["dgemm"])))})
                say(_shown_share(rows[-1], "Gflop/s of dgemm"))
    return {"adam_bytes": ADAM_BYTES, "rows": rows}


def _share(rate: float, best: float) -> dict[str, float]:
    return {
        "rate": rounded(rate / 1e9),
        "machine": rounded(best / 1e9),
        "share": rounded(rate / best, 3),
    }


def _shown_share(row: dict[str, Any], unit: str) -> str:
    return (
        f"{row['what']}, {row['threads']}: {row['rate']:g} of {row['machine']:g} {unit}, {row['share']:.0%}"
    )


# -- growth --------------------------------------------------------------------------------------------------


def peak_memory() -> float:
    """The most memory that this process has held so far, in bytes."""
    import resource

    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def growth(repeats: int, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Time an iteration against the size of the work; one thread."""
    result: dict[str, Any] = {"diagonal": [], "dense": [], "lanes": []}
    with Worker(1) as machine:
        machine(prepare_machine, 10**5 if quick else 10**7, 256 if quick else 1500)
        measures = {"triad": _later(machine, triad_rate), "dgemm": _later(machine, gemm_rate)}
        for what, rates in alternate(measures, repeats).items():
            result[what] = rounded(float(np.median(rates)) / 1e9)
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for size in (10**3, 10**4) if quick else SIZES:
        if 150 * size > available:
            say(f"diagonal, P = {size:,}: left out, {available / 1e9:.0f} GB are free")
            continue
        with Worker(1) as worker:
            worker(prepare_diagonal, 1000, 1)
            before = worker(peak_memory)
            worker(prepare_diagonal, size, 1)
            caps = worker(tune)
            seconds = [worker(per_iteration, *caps) for _ in range(repeats)]
            peak = worker(peak_memory)
        row = {"size": size, **timing(seconds, 1.0), "peak_gb": rounded(peak / 1e9)}
        row["bytes_a_parameter"] = rounded((peak - before) / size)
        result["diagonal"].append(row)
        told = f"{number(row['ns'])}, {row['bytes_a_parameter']:g} bytes a parameter"
        say(f"diagonal Adam, P = {size:,}: {told}")
    with Worker(1) as worker:
        shapes = ((1, 8), (4, 8)) if quick else ((1, 64), (4, 64), (16, 64), (4, 256), (16, 256), (4, 1024))
        for blocks, block in shapes:
            entries = blocks * block**2
            worker(prepare_dense, blocks, block, 1, 1)
            caps = worker(tune)
            seconds = [worker(per_iteration, *caps) for _ in range(repeats)]
            row = {"blocks": blocks, "block": block, "entries": entries, **timing(seconds, 1.0)}
            result["dense"].append(row)
            say(f"dense GD, {blocks} of {block}: {number(row['ns'])}")
        for runs in (1, 8) if quick else (1, 4, 16, 64, 256, 1024, 4096):
            worker(prepare_dense, 3, 3, runs, 1)
            caps = worker(tune)
            seconds = [worker(per_iteration, *caps) for _ in range(repeats)]
            row = {"runs": runs, **timing(seconds, 1.0)}
            result["lanes"].append(row)
            say(f"{runs} runs on P = 9: {row['ns']:g} ns an iteration of all")
    return result


# -- start-up ------------------------------------------------------------------------------------------------

_IMPORT = "import time; begin = time.perf_counter(); {}; print(time.perf_counter() - begin)"
_SOLVE = "import quadlab as ql; ql.solve(ql.case('het', seed=0), ql.GD('optimal'), ql.GradientNorm(1e-3))"


def new_process(code: str) -> float:
    """The seconds that a new interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(done.stdout)


def startup(repeats: int, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Seconds in new processes, and of a warmup whose cache is empty."""
    codes = {
        "import quadlab": _IMPORT.format("import quadlab"),
        "import and first solve, warm cache": _IMPORT.format(_SOLVE),
    }
    result = {}
    seconds = alternate({what: lambda code=code: new_process(code) for what, code in codes.items()}, repeats)
    for what, taken in seconds.items():
        result[what] = {"seconds": rounded(float(np.median(taken))), "least": rounded(min(taken))}
    if not quick:
        with tempfile.TemporaryDirectory() as cache:
            begin = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "quadlab", "warmup"],
                check=True,
                capture_output=True,
                env={**os.environ, "NUMBA_CACHE_DIR": cache},
            )
            result["quadlab warmup, empty cache"] = {"seconds": rounded(time.perf_counter() - begin)}
    for what, value in result.items():
        say(f"{what}: {value['seconds']:g} s")
    return {"rows": [{"what": what, **value} for what, value in result.items()]}


# -- the record and its tables -------------------------------------------------------------------------------

ITEMS: dict[str, Callable[..., dict[str, Any]]] = {
    "one": one,
    "batch": batch,
    "roofline": roofline,
    "growth": growth,
    "startup": startup,
}


def machine_name() -> str:
    """The model of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def conditions() -> dict[str, Any]:
    """When and where an item was measured."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{machine_name()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in LIBRARIES},
        "load": rounded(os.getloadavg()[0], 2),
    }


def record(names: Sequence[str], repeats: int, quick: bool, out: Path) -> None:
    """Measure the items and write them; what the file holds of other items stays."""
    content = {"schema": SCHEMA, "quick": quick, "items": {}}
    if out.exists():
        content["items"] = json.loads(out.read_text())["items"]
    for name in names:
        before = conditions()
        begin = time.perf_counter()
        result = ITEMS[name](repeats, quick, lambda line: print(line, flush=True))
        taken = round(time.perf_counter() - begin)
        print(f"{name}: {taken} s", flush=True)
        content["items"][name] = {**before, "repeats": repeats, "seconds": taken, **result}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


LABELS = {"gd": "GD", "sign": "SignSGD", "sign_l1": "SignSGD, $\\|g\\|_1/(P\\Lambda_P)$", "adam": "Adam"}
PEER_LABELS = {"quadlab": "quadlab", "optax": "optax", "numpy": "NumPy", "torch": "torch", "fused": "fused"}


def number(value: float) -> str:
    """Two to three digits, in the unit that they fit."""
    for unit, scale in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if value >= scale:
            return f"{float(f'{value / scale:.3g}'):g} {unit}"
    return f"{float(f'{value:.3g}'):g} ns"


def rows_of(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in markdown."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def table_one(item: dict[str, Any]) -> str:
    cells = {(r["problem"], r["method"], r["peer"], r["threads"]): r for r in item["rows"]}
    body = []
    for problem, method in dict.fromkeys((r["problem"], r["method"]) for r in item["rows"]):
        line = [problem, LABELS[method]]
        for peer in PEERS:
            pair = [cells[problem, method, peer, threads] for threads in THREADS]
            text = " / ".join(number(r["ns"]) for r in pair)
            line.append(text + ("" if all(r["same_count"] for r in pair) else " (other count)"))
        ours, theirs = (
            [cells[problem, method, peer, n]["ns"] for n in THREADS] for peer in ("quadlab", "optax")
        )
        body.append([*line, _ratio(ours, theirs)])
    header = ["problem", "method", *(PEER_LABELS[peer] for peer in PEERS), "optax / quadlab"]
    told = "Time per iteration of one run, the test on, on one / two threads."
    return f"{told}\n\n{rows_of(header, body)}"


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    text = " / ".join(f"{ratio:.2g}" if ratio < 100 else f"{ratio:.0f}" for ratio in ratios)
    return text if min(ratios) >= 1.0 else f"**{text}** (we lose)"


def table_batch(item: dict[str, Any]) -> str:
    cells = {(r["case"], r["hessian"], r["method"], r["peer"], r["threads"]): r for r in item["rows"]}
    body = []
    for key in dict.fromkeys((r["case"], r["hessian"], r["method"]) for r in item["rows"]):
        case, hessian, method = key
        line = [case, hessian, LABELS[method]]
        present = [n for n in THREADS if (*key, "quadlab", n) in cells]
        pad = "– / " if len(present) < len(THREADS) else ""
        for peer in ("quadlab", "optax"):
            for unit in ("ns", "ns_lane"):
                line.append(pad + " / ".join(number(cells[(*key, peer, n)][unit]) for n in present))
        ours, theirs = ([cells[(*key, peer, n)]["ns"] for n in present] for peer in ("quadlab", "optax"))
        other = max(cells[(*key, "optax", n)]["other_counts"] for n in present)
        body.append([*line, pad + _ratio(ours, theirs), str(other)])
    header = ["case", "H", "method", "quadlab: useful", "a lane", "optax: useful", "a lane", "times faster"]
    header.append("counts that differ")
    told = (
        f"A batch of {item['side']} learning rates x {item['side']} starts, cap {item['cap']:,}: time "
        "per useful iteration of a run, and per lane and iteration until the last stops; one / two threads."
    )
    return f"{told}\n\n{rows_of(header, body)}"


def table_roofline(item: dict[str, Any]) -> str:
    body = [
        [
            f"{r['what']}, P = {r['size']:,}",
            str(r["threads"]),
            f"{r['rate']:g} {'GB/s' if 'Adam' in r['what'] else 'Gflop/s'}",
            f"{r['machine']:g}",
            f"{r['share']:.0%}",
        ]
        for r in item["rows"]
    ]
    told = (
        f"Against the machine: diagonal Adam, counted as the {item['adam_bytes']} bytes a parameter that an "
        "iteration cannot do without, beside a triad; dense lanes beside dgemm."
    )
    return f"{told}\n\n{rows_of(['what', 'threads', 'rate', 'machine', 'share'], body)}"


def table_startup(item: dict[str, Any]) -> str:
    return rows_of(["start-up", "seconds"], [[r["what"], f"{r['seconds']:.2g}"] for r in item["rows"]])


def tables(content: dict[str, Any]) -> str:
    """The README's section: conditions and tables, from the record alone."""
    makers = {"one": table_one, "batch": table_batch, "roofline": table_roofline, "startup": table_startup}
    parts = []
    for name, maker in makers.items():
        if name in content["items"]:
            item = content["items"][name]
            when = f"{item['date']}, load {item['load']:g} at the start"
            parts.append(f"{maker(item)}\n*{when}, {item['repeats']} alternating repeats.*\n")
    last = content["items"][next(reversed(content["items"]))]
    libraries = ", ".join(f"{name} {number}" for name, number in last["versions"].items())
    return "\n".join([*parts, f"On {last['machine']}; Python {last['python']}, {libraries}.\n"])


def with_tables(readme: str, content: dict[str, Any]) -> str:
    """The README with its tables made anew."""
    begin, end = MARKS
    head, _, rest = readme.partition(begin)
    _, found, tail = rest.partition(end)
    if not found:
        raise ValueError(f"README.md lacks the marks {begin.strip()} and {end.strip()}")
    return f"{head}{begin}\n{tables(content)}\n{end}{tail}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(ITEMS), help="items, comma separated")
    parser.add_argument("--quick", action="store_true", help="small sizes, to try it")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help=f"default {RECORDED.relative_to(ROOT)}; --quick: no file")
    parser.add_argument("--table", action="store_true", help="only write the README's tables")
    options = parser.parse_args()
    names = options.only.split(",")
    unknown = [name for name in names if name not in ITEMS]
    if unknown:
        parser.error(f"--only takes {', '.join(ITEMS)}, received {unknown[0]!r}")
    if not options.table:
        with tempfile.TemporaryDirectory() as scratch:
            default = Path(scratch) / "bench.json" if options.quick else RECORDED
            record(names, options.repeats, options.quick, options.out or default)
    if not options.quick and not options.out:
        readme = ROOT / "README.md"
        readme.write_text(with_tables(readme.read_text(), json.loads(RECORDED.read_text())))


if __name__ == "__main__":
    main()
