r"""Run methods on problems: `solve` for one, `solve_many` for thousands, `best_learning_rate` over a grid.

With :math:`x = w - w^*`, iteration t = 0, 1, ... is: the gradient :math:`g = Hx`, the statistics asked for,
the stopping test, the direction d, the step :math:`\eta`, the update :math:`x \leftarrow x - \eta d`. Where
the problem has gradient noise the direction sees :math:`g + \sigma\xi_t`; the test and the statistics see
g. The test is made at t = 0 and at the cap too, so that ``iterations`` is the number of updates before the
test first holds.

Two compiled paths share one specification of the order of every operation: a single run over vectors, and
lanes, arrays of many runs with the lane innermost. A run gives the same bits on either, alone, in a batch of
any width, and on any number of threads. Kernels are resumable and are called in pieces of about a tenth of a
second, so that Ctrl-C, callbacks and progress live here.
"""

from __future__ import annotations

import functools
import itertools
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from quadlab._arrays import FloatArray, shown
from quadlab._progress import progress_bar
from quadlab.curvature import curvature, starting_gradient
from quadlab.kernels import codes as c
from quadlab.methods import FunctionMethod, Method, check_method
from quadlab.noise import NoiseStream, check_seed
from quadlab.problem import BlockQuadratic, check_problem
from quadlab.run import (
    QUANTITIES,
    STATISTICS,
    STATUS_OF,
    TRACE_WANT,
    Run,
    Status,
    Trace,
    check_statistics,
    read_statistics,
)
from quadlab.steps import Step, of_problem, resolve
from quadlab.stopping import Stop, check_stop

#: Iterations times entries touched in one kernel call: about a tenth of a second.
PIECE = 30_000_000
#: Rows of a trace held by one kernel call.
RECORD_ROWS = 4096
#: Largest block of the path for tiny blocks, least mean block of the path for diagonal ones.
MAX_TINY_BLOCK, MIN_STREAM_BLOCK = 3, 256
#: A batch of fewer runs, or what is left of a batch, goes one by one.
LEAST_LANES = 6
#: Lanes of a pack, and the bytes of vectors that a pack should stay under.
MAX_LANES, MIN_LANES, LANE_BYTES = 128, 32, 1 << 18
#: Entries of H beyond which runs with different H go one by one.
MAX_LANE_HESSIAN = 1 << 14
#: Bytes of starts and Hessians put in one queue.
QUEUE_BYTES = 1 << 26
#: Longest schedule that lanes share.
MAX_LANE_SCHEDULE = 1 << 20

_STOP_WANT = {
    c.STOP_L1: c.WANT_L1,
    c.STOP_L2: c.WANT_SQUARE,
    c.STOP_LINF: c.WANT_LINF,
    c.STOP_GAP: c.WANT_GAP,
}


def solve(
    problem: BlockQuadratic,
    method: Method,
    stop: Stop,
    *,
    max_iterations: int = 10**6,
    statistics: Iterable[str] = (),
    record: int | str | Sequence[int] | None = None,
    callback: Callable[[int, FloatArray], Any] | None = None,
    resume: Run | None = None,
    tail_gap_start: float = 0.0,
    tail_displacement_start: float = 0.0,
    noise_seed: int = 0,
    fused: bool = True,
    closed_form: bool = False,
) -> Run:
    r"""Run one method on one problem.

    Parameters
    ----------
    problem : BlockQuadratic
    method : Method
    stop : GradientNorm or Gap
    max_iterations : int >= 0
        The cap: a run that reaches it is censored (``max_iterations``), never counted as converged.
    statistics : iterable of str
        Statistics of the trajectory, accumulated at every iteration; ``quadlab.run.STATISTICS`` lists them.
    record : int, "log", sequence of int, or None
        Where the trace is recorded: every n iterations, about 60 a decade, or at the iterations listed. The
        end of the run is always its last row.
    callback : callable, optional
        Called as ``callback(iteration, point)`` at each iteration to record that is reached.
    resume : Run, optional
        Go on from the end of this run (same problem, method, stop and statistics), which had reached a
        smaller cap or was interrupted; the result equals that of an uninterrupted run, to the bit.
    tail_gap_start, tail_displacement_start : float
        First iteration of the statistics ``tail_gap`` and ``tail_displacement``.
    noise_seed : int >= 0
        The seed of the gradient noise, where the problem has noise: the same seed gives all methods the same
        noise on the same problem.
    fused : bool
        False makes every iteration on the general path, from whole matrices, to compare: the numbers are
        the same, but runs on blocks of up to three coordinates, and on diagonal ones, take several times as
        long, and those on larger dense blocks up to twice as long.
    closed_form : bool
        Find the count and the end without iterating, see `quadlab.closed_form`: for GD with a constant step,
        with momentum or without, and frozen Adam, stopped by the l2 norm (GD) or the gap. No trace and no
        statistics. The count is that of exact arithmetic; a simulated one may differ where the measured
        quantity passes the tolerance within the rounding of so many updates.

    Returns
    -------
    Run

    Raises
    ------
    ValueError
        On bad input, before anything is compiled or run.
    KeyboardInterrupt
        On Ctrl-C, within about a tenth of a second; its attribute ``run`` is the run so far, as if capped
        there, and can be resumed (no such attribute while kernels compile).

    Examples
    --------
    >>> from quadlab import BlockQuadratic, GradientNorm, GD
    >>> p = BlockQuadratic.from_spectra([[1.0, 2.0], [10.0]], start=[1.0, 1.0, 1.0])
    >>> solve(p, GD("optimal"), GradientNorm(1e-3)).iterations
    41
    """
    job = _Job.make(
        problem,
        method,
        stop,
        max_iterations,
        check_statistics(statistics),
        tail_gap_start,
        tail_displacement_start,
        noise_seed,
    )
    if closed_form:
        for name, value in (("record", record), ("callback", callback), ("resume", resume)):
            if value is not None:
                raise ValueError(f"closed_form goes without {name}, received {shown(value)}")
        return _in_closed_form(job)
    times = _record_times(record, job.cap)
    if times is not None:
        job.want |= TRACE_WANT
    if callback is not None and not callable(callback):
        raise ValueError(f"callback must be a function, received {shown(callback)}")
    if callback is not None and times is None:
        raise ValueError("a callback is called at recorded iterations, received record=None")
    state = _State.begin(job) if resume is None else _resumed(resume, job)
    return _run_one(job, state, times, callback, None, fused)


def solve_many(
    problems: BlockQuadratic | Sequence[BlockQuadratic],
    methods: Method | Sequence[Method],
    stop: Stop | Sequence[Stop],
    *,
    max_iterations: int | Sequence[int] = 10**6,
    statistics: Iterable[str] = (),
    tail_gap_start: float | Sequence[float] = 0.0,
    tail_displacement_start: float | Sequence[float] = 0.0,
    noise_seed: int | Sequence[int] = 0,
    threads: int = 1,
    lanes: bool = True,
    progress: bool | None = None,
) -> list[Run]:
    r"""Run many (problem, method, stop) triples; run k takes entry k of each list.

    A single problem, method, stop or number serves all runs; lists must have equal length. Use
    ``itertools.product`` for all combinations. Each result equals that of `solve`, to the bit.

    Parameters
    ----------
    problems : BlockQuadratic or sequence
    methods : Method or sequence
    stop : GradientNorm, Gap or sequence
    max_iterations : int >= 0 or sequence
        The caps.
    statistics : iterable of str
        Statistics of the trajectories, the same for all runs.
    tail_gap_start, tail_displacement_start : float or sequence
        First iteration of the statistics ``tail_gap`` and ``tail_displacement``.
    noise_seed : int >= 0 or sequence
        The seeds of the gradient noise: one problem with ``range(n)`` gives n independent runs.
    threads : int >= 1
        Python threads that share the work; the numbers do not depend on it.
    lanes : bool
        False runs all one by one, to compare.
    progress : bool, optional
        A progress bar; by default on a terminal and in a notebook, after two seconds.

    Returns
    -------
    list of Run
        In the order given.

    Raises
    ------
    ValueError
        On bad input, naming the run, before anything is run.

    Examples
    --------
    >>> from quadlab import GD, GradientNorm, case
    >>> problems = [case("het", seed=s) for s in range(3)]
    >>> runs = solve_many(problems, GD("lambda_g"), GradientNorm(1e-3, relative=True))
    >>> [run.status.value for run in runs]
    ['converged', 'converged', 'converged']
    """
    names = check_statistics(statistics)
    if isinstance(threads, bool) or not isinstance(threads, (int, np.integer)) or threads < 1:
        raise ValueError(f"threads must be an integer >= 1, received {shown(threads)}")
    columns = _broadcast(
        problems=problems,
        methods=methods,
        stop=stop,
        max_iterations=max_iterations,
        tail_gap_start=tail_gap_start,
        tail_displacement_start=tail_displacement_start,
        noise_seed=noise_seed,
    )
    jobs: list[_Job] = []
    alike: dict[tuple[Any, ...], _Job] = {}
    for k, (p, m, s, cap, tail_gap, tail_displacement, seed) in enumerate(columns):
        try:
            check_problem(p)
            # Of thousands of runs most differ from an earlier one in their problem alone.
            key = (*map(id, (m, s, cap, tail_gap, tail_displacement)), p.size, p.is_noisy)
            if key in alike:
                jobs.append(alike[key].on(p, seed))
                continue
            job = _Job.make(p, m, s, cap, names, tail_gap, tail_displacement, seed)
            if m.code != c.FROZEN_ADAM and not of_problem(m.learning_rate):
                alike[key] = job
            jobs.append(job)
        except ValueError as error:
            raise ValueError(f"run {k}: {error}") from None
    results: list[Run | None] = [None] * len(jobs)
    with _Progress(len(jobs), progress) as bar:
        tasks = list(_tasks(jobs, lanes, threads))

        def work(task: tuple[bool, list[int]]) -> None:
            packed, members = task
            group = [jobs[k] for k in members]
            runs = _run_lanes(group, bar) if packed else _run_each(group, bar)
            for k, run in zip(members, runs, strict=True):
                results[k] = run

        if threads == 1 or len(tasks) <= 1:
            for task in tasks:
                work(task)
        else:
            with ThreadPoolExecutor(threads) as pool:
                futures = [pool.submit(work, task) for task in tasks]
                try:
                    for future in futures:
                        future.result()
                except BaseException:
                    bar.cancelled.set()
                    pool.shutdown(wait=True, cancel_futures=True)
                    raise
    return results  # type: ignore[return-value]


@dataclass(frozen=True)
class BestLearningRate:
    """The result of `best_learning_rate`.

    Attributes
    ----------
    learning_rate : float or None
        The constant with the fewest iterations (the smallest such), None if no run converged.
    iterations : int or None
        Its count.
    learning_rates : ndarray
        The grid.
    runs : list of Run
        One a grid point.
    at_edge : bool
        Whether the best point is an end of the grid: then the grid should be wider.
    """

    learning_rate: float | None
    iterations: int | None
    learning_rates: FloatArray
    runs: list[Run] = field(repr=False)
    at_edge: bool


def best_learning_rate(
    problem: BlockQuadratic,
    method: Method,
    stop: Stop,
    *,
    learning_rates: Sequence[float] | FloatArray | None = None,
    max_iterations: int = 10**5,
    threads: int = 1,
    noise_seed: int = 0,
) -> BestLearningRate:
    r"""Return the constant learning rate with the fewest iterations over a log grid.

    Parameters
    ----------
    problem : BlockQuadratic
    method : Method
        Its own learning rate is replaced.
    stop : GradientNorm or Gap
    learning_rates : sequence of float > 0, optional
        The grid; default: 61 points a factor :math:`10^{1/10}` apart, from :math:`10^{-5}` to
        :math:`10` times :math:`2/L` for GD, and times :math:`\|x_0\|_\infty` for methods whose
        steps have length 1.
    max_iterations : int >= 0
        The cap of each run.
    threads : int >= 1
    noise_seed : int >= 0
        Of the gradient noise, the same for all rates: the best for this one noise, not on average.

    Returns
    -------
    BestLearningRate

    Raises
    ------
    ValueError
        On an empty or non-positive grid.

    Examples
    --------
    >>> from quadlab import GD, GradientNorm, case
    >>> stop = GradientNorm(1e-2, relative=True)
    >>> best_learning_rate(case("het-axis"), GD(1.0), stop, learning_rates=[1e-5, 1e-4]).learning_rate
    0.0001
    """
    if not isinstance(problem, BlockQuadratic):
        raise ValueError(f"problem must be a BlockQuadratic, received {shown(problem)}")
    check_method(method)
    if learning_rates is None:
        scale = (
            2.0 / max(curvature(problem).largest, np.finfo(float).tiny)
            if method.family in ("gd", "steepest")
            else float(np.abs(problem.displacement).max()) or 1.0
        )
        learning_rates = scale * 10.0 ** np.linspace(-5.0, 1.0, 61)
    try:
        grid = np.array(learning_rates, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"learning_rates must be numbers, received {shown(learning_rates)}") from None
    if grid.ndim != 1 or grid.size == 0:
        raise ValueError(f"learning_rates must be a non-empty list, received {shown(learning_rates)}")
    grid.sort()
    runs = solve_many(
        problem,
        [replace(method, learning_rate=float(rate)) for rate in grid],
        stop,
        max_iterations=max_iterations,
        threads=threads,
        noise_seed=noise_seed,
    )
    counts = [run.iterations if run.converged else math.inf for run in runs]
    best = int(np.argmin(counts))
    if counts[best] == math.inf:
        return BestLearningRate(None, None, grid, runs, False)
    return BestLearningRate(float(grid[best]), int(counts[best]), grid, runs, best in (0, len(grid) - 1))


# -- one run as the kernels see it ---------------------------------------------------------------------------


@dataclass
class _Job:
    problem: BlockQuadratic
    method: Method
    stop: Stop
    step: Step
    cap: int
    want: int
    keep: int
    params: FloatArray
    statistics: tuple[str, ...]
    noise: NoiseStream | None

    @classmethod
    def make(
        cls,
        problem: BlockQuadratic,
        method: Method,
        stop: Stop,
        cap: Any,
        statistics: tuple[str, ...],
        tail_gap_start: Any,
        tail_displacement_start: Any,
        noise_seed: Any,
    ) -> _Job:
        check_problem(problem)
        check_method(method)
        check_stop(stop)
        if isinstance(cap, bool) or not isinstance(cap, (int, np.integer)) or not 0 <= cap < 1 << 62:
            raise ValueError(f"max_iterations must be an integer >= 0, received {shown(cap)}")
        if method.code == c.FROZEN_ADAM:
            _check_frozen(problem)
        step = resolve(method.learning_rate, method.families, problem, stop)  # type: ignore[arg-type]
        params = np.zeros(c.N_PARAMETERS)
        params[c.P_RATE] = step.rate
        params[c.P_M] = step.m
        if stop.relative:
            params[c.P_RELATIVE] = stop.tolerance(problem.size, 1.0)
        else:
            params[c.P_TOLERANCE] = stop.tolerance(problem.size)
        params[c.P_TAIL_GAP] = _tail_start(tail_gap_start)
        params[c.P_TAIL_DISPLACEMENT] = _tail_start(tail_displacement_start)
        for index, value in method.parameters().items():
            params[index] = value
        keep = _kept(statistics)
        want = _closed(method, keep | _needed(method, stop, step))
        job = cls(problem, method, stop, step, int(cap), want, keep, params, statistics, None)
        return job.on(problem, noise_seed)

    def on(self, problem: BlockQuadratic, noise_seed: Any) -> _Job:
        """Return the same on another problem of the same size."""
        noise_seed = check_seed(noise_seed)
        return _Job(
            problem, self.method, self.stop, self.step, self.cap, self.want, self.keep, self.params,
            self.statistics, problem.noise_stream(noise_seed) if problem.is_noisy else None,
        )  # fmt: skip

    @property
    def lowest(self) -> FloatArray:
        """Smallest positive eigenvalue of each block, where it is needed."""
        if self.want & c.WANT_DENOMINATOR:
            return np.array(curvature(self.problem).block_smallest_positive)
        return np.zeros(self.problem.n_blocks)

    @property
    def support(self) -> FloatArray:
        """The diagonal of H, where it is needed."""
        return np.array(self.problem.hessian_diagonal()) if self.want & c.WANT_DISPLACEMENT else np.zeros(0)

    def group(self) -> tuple[Any, ...] | None:
        """Return the key that runs of one pack of lanes share; None: this one goes alone."""
        packed = self.problem.packed()
        if packed.structure is None or (
            isinstance(self.method, FunctionMethod) and not self.method.is_elementwise
        ):
            return None
        if self.step.schedule is not None and self.cap > MAX_LANE_SCHEDULE:
            return None
        method = self.method
        rule = (method.function(), method.n_states) if isinstance(method, FunctionMethod) else None
        anchored = self.method.code == c.USER or self.params[c.P_DECAY] != 0.0
        code = (method.code, self.step.rule, self.stop.code, self.want, self.keep, self.step.schedule)
        return (*code, rule, anchored, self.noise is not None, packed.structure)

    def path(self) -> int:
        """Return the kernels' path of the iterations at which nothing happens."""
        if self.keep or self.noise is not None or self.params[c.P_DECAY] != 0.0:
            return c.GENERAL
        norm = {c.GD: c.STOP_L2, c.SIGN: c.STOP_L1}.get(self.method.code)
        simple = self.step.rule in (c.CONSTANT, c.SCHEDULE) and self.stop.code in (c.STOP_L1, c.STOP_L2)
        own = self.step.rule in (c.LEMMA, c.M_STAR) and self.stop.code == norm
        if not ((simple and (norm is not None or self.method.code == c.ADAM)) or own):
            return c.GENERAL
        packed = self.problem.packed()
        if packed.kind == c.DENSE and packed.largest <= MAX_TINY_BLOCK:
            return c.TINY
        if packed.kind == c.DIAGONAL and self.problem.size >= MIN_STREAM_BLOCK * packed.kinds.size:
            return c.STREAM
        return c.GENERAL

    def result(
        self, status: int, count: int, x: FloatArray, acc: FloatArray, peaks: FloatArray,
        initial: dict[str, float], final: dict[str, float], tolerance: float, trace: Trace | None = None,
        state: Any = None,
    ) -> Run:  # fmt: skip
        tails = {
            "tail_gap": float(self.params[c.P_TAIL_GAP]),
            "tail_displacement": float(self.params[c.P_TAIL_DISPLACEMENT]),
        }
        return Run(
            problem=self.problem,
            method=self.method,
            stop=self.stop,
            status=STATUS_OF.get(status, STATUS_OF[c.MAX_ITERATIONS]),
            iterations=count,
            tolerance=tolerance,
            point=self.problem.minimizer + x,
            step=self.step,
            max_iterations=self.cap,
            initial=initial,
            final=final,
            statistics=read_statistics(
                self.statistics, acc, count, float(peaks.sum()) if peaks.size else 0.0, tails
            ),
            trace=trace,
            tail_gap_start=tails["tail_gap"],
            tail_displacement_start=tails["tail_displacement"],
            noise_seed=None if self.noise is None else self.noise.seed,
            state=state,
        )


def _measured(want: int, rows: FloatArray) -> list[dict[str, float]]:
    """Return what the kernels measured in each row, by name."""
    of = {
        "gap": c.WANT_GAP,
        "grad_l1": c.WANT_L1,
        "grad_l2": c.WANT_SQUARE,
        "grad_linf": c.WANT_LINF,
        "lambda_g": c.WANT_LAMBDA_G,
    }
    names = [name for name, bit in of.items() if want & bit]
    table = np.stack([QUANTITIES[name](rows) for name in names], axis=-1).tolist()
    return [dict(zip(names, row, strict=True)) for row in table]


@functools.cache
def _kept(statistics: tuple[str, ...]) -> int:
    """Return what the kernels accumulate."""
    keep = 0
    for name in statistics:
        keep |= STATISTICS[name].want
    return keep


def _closed(method: Method, want: int) -> int:
    """Return `want` and what the kernels read while they compute it."""
    if want & c.WANT_DIRECTION and method.code == c.GD:
        want |= c.WANT_LAMBDA_G
    if want & c.WANT_LAMBDA_G:
        want |= c.WANT_SQUARE
    return want


def _needed(method: Method, stop: Stop, step: Step) -> int:
    """Return what the kernels compute at each iteration for the method, the step and the test."""
    want = _STOP_WANT[stop.code]
    if step.rule == c.M_STAR:
        want |= c.WANT_L1
    if step.rule in (c.LEMMA, c.LINE_SEARCH):
        want |= c.WANT_DIRECTION
    if step.rule == c.LINE_SEARCH:
        want |= c.WANT_DHD
    if method.code == c.NORMALIZED:
        want |= c.WANT_SQUARE
    return want


def _check_frozen(problem: BlockQuadratic) -> None:
    g = starting_gradient(problem)
    if not g.all():
        raise ValueError(
            "a frozen preconditioner needs every starting gradient nonzero, "
            f"received 0 at coordinate {int(np.argmin(g != 0.0))}"
        )


def _tail_start(value: Any) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float, np.integer, np.floating))
        or not value >= 0
    ):
        raise ValueError(f"a tail starts at an iteration >= 0, received {shown(value)}")
    return float(value)


def _record_times(record: Any, cap: int) -> Iterator[int] | None:
    """Return the iterations at which to record, ascending, ending at the cap."""
    if record is None:
        return None
    if isinstance(record, str):
        if record != "log":
            raise ValueError(f'record must be an integer, "log" or a list of iterations, received {record!r}')
        dense = (round(10.0 ** (k / 60.0)) for k in itertools.count())
        times: Iterator[int] = itertools.chain([0], (t for t, _ in itertools.groupby(dense)))
    elif isinstance(record, (int, np.integer)) and not isinstance(record, bool):
        if record < 1:
            raise ValueError(f"record must be an integer >= 1, received {record}")
        times = itertools.count(0, int(record))
    else:
        if not isinstance(record, (list, tuple, range, np.ndarray)):
            raise ValueError(f'record must be an integer, "log" or a list, received {shown(record)}')
        values = list(record)
        if not all(isinstance(v, (int, np.integer)) and not isinstance(v, bool) and v >= 0 for v in values):
            raise ValueError(f"record must list iterations >= 0, received {shown(record)}")
        times = iter(sorted({int(v) for v in values}))
    return itertools.takewhile(lambda t: t <= cap, times)


# -- the single path -----------------------------------------------------------------------------------------


@dataclass
class _State:
    """Everything a run carries from one kernel call to the next."""

    t: int
    params: FloatArray
    x: FloatArray
    state: FloatArray
    peak: FloatArray
    acc: FloatArray
    first: FloatArray
    times: list[int] = field(default_factory=list)
    rows: list[FloatArray] = field(default_factory=list)

    @classmethod
    def begin(cls, job: _Job) -> _State:
        size = job.problem.size
        acc = np.zeros(c.N_ACCUMULATORS)
        acc[list(c.STARTS_AT_INFINITY)] = np.inf
        acc[list(c.STARTS_AT_ONE)] = 1.0
        return cls(
            t=0,
            params=job.params.copy(),
            x=np.array(job.problem.displacement),
            state=np.zeros((job.method.n_states, size)),
            peak=np.zeros(size if job.want & c.WANT_PEAK else 0),
            acc=acc,
            first=np.zeros(c.N_QUANTITIES),
        )

    def copy(self) -> _State:
        return _State(
            self.t, self.params.copy(), self.x.copy(), self.state.copy(), self.peak.copy(), self.acc.copy(),
            self.first.copy(), list(self.times), list(self.rows),
        )  # fmt: skip


def _resumed(run: Run, job: _Job) -> _State:
    if not isinstance(run, Run) or run.state is None:
        raise ValueError(f"resume must be a Run made by solve, received {shown(run)}")
    if run.problem != job.problem or run.method != job.method or run.stop != job.stop:
        raise ValueError("resume must have the same problem, method and stop, received another run")
    if tuple(run.statistics) != job.statistics:
        raise ValueError(f"resume must have the same statistics, received {tuple(run.statistics)}")
    tails = run.tail_gap_start, run.tail_displacement_start
    if tails != (job.params[c.P_TAIL_GAP], job.params[c.P_TAIL_DISPLACEMENT]):
        raise ValueError(f"resume must have the same tail starts, received {tails[0]:g} and {tails[1]:g}")
    if job.noise is not None and run.noise_seed != job.noise.seed:
        raise ValueError(f"resume must have the same noise_seed, received {run.noise_seed}")
    if run.status is not STATUS_OF[c.MAX_ITERATIONS]:
        raise ValueError(f"only a capped or interrupted run can be resumed, received one that {run.status}")
    if job.cap < run.iterations:
        raise ValueError(
            f"max_iterations must be >= {run.iterations} updates already made, received {job.cap}"
        )
    return run.state.copy()


def _addresses(method: Method) -> tuple[int, int]:
    """Return where the compiled direction of a function method is for the two paths, else zeros."""
    if not isinstance(method, FunctionMethod):
        return 0, 0
    from quadlab.kernels.user import compile_rule

    return compile_rule(
        method.function(), method.n_states, len(method.hyperparameters), method.is_elementwise
    )[:2]


def _run_one(
    job: _Job,
    s: _State,
    times: Iterator[int] | None,
    callback: Callable[[int, FloatArray], Any] | None,
    cancelled: threading.Event | None,
    fused: bool = True,
) -> Run:
    """Run on the single path from the state s to the end."""
    from quadlab.kernels import entry

    packed = job.problem.packed_symmetric() if fused else job.problem.packed()
    size = job.problem.size
    kernel = entry.single()
    address = _addresses(job.method)[0]
    path = job.path() if fused else c.GENERAL
    code = np.array([job.method.code, job.step.rule, job.stop.code, job.want, job.keep, path], dtype=np.int64)
    g = np.empty(size)
    d = np.empty(0 if job.method.code == c.GD else size)
    work = np.empty(size if job.want & (c.WANT_DHD | c.WANT_DENOMINATOR) or job.method.code == c.USER else 0)
    q = np.zeros(c.N_QUANTITIES)
    lowest, support = job.lowest, job.support
    piece = max(64, PIECE // (packed.data.size + 8 * size))
    schedule = np.zeros(0)
    noise, noisy, drawn = np.zeros((0, size)), np.empty(0 if job.noise is None else size), -1
    pending: list[int] = []
    no_times = np.zeros(0, dtype=np.int64)
    if times is not None:
        times = itertools.dropwhile(lambda t: t < s.t, times)
    status = c.RUNNING
    call: Any = None
    try:
        while status == c.RUNNING:
            if times is not None and not pending:
                pending = list(itertools.islice(times, RECORD_ROWS if callback is None else 1))
            pause = min(s.t + piece, job.cap + 1)
            if callback is not None and pending and pending[0] <= pause:
                # Stop before the recorded iteration, show the point, then record it.
                pause = pending[0] if pending[0] > s.t else s.t + 1
                if pending[0] == s.t:
                    callback(s.t, job.problem.minimizer + s.x)
            if job.step.schedule is not None:  # a Python function: not asked far ahead of its use
                pause = min(pause, s.t + max(1000, s.t))
                schedule = job.step.schedule.values(s.t, min(pause, job.cap))
            if job.noise is not None:
                rows = job.noise.block_rows
                pause = min(pause, s.t - s.t % rows + rows)
                if s.t // rows != drawn:
                    drawn = s.t // rows
                    noise = job.noise.block(drawn)
            at = np.array(pending, dtype=np.int64) if pending else no_times
            record = np.empty((len(at), c.N_QUANTITIES))
            clock = np.array([s.t, job.cap, pause, s.t, 0], dtype=np.int64)
            call = len(s.times), at, record, clock
            status = kernel(
                code, clock, packed.kinds, packed.offsets, packed.data_offsets, packed.reflectors,
                packed.norms, lowest, packed.data, support, job.problem.minimizer, s.params, schedule, at,
                record, s.x, g, d, work, s.state, s.peak, s.acc, q, s.first, noise, noisy, address,
            )  # fmt: skip
            pending = pending[_collect(s, *call) :]
            if cancelled is not None and cancelled.is_set():
                raise KeyboardInterrupt
    except KeyboardInterrupt as interrupt:
        if call is not None:
            _collect(s, *call)
        # The quantities at the point reached are those of a run with its cap there.
        nothing = None if times is None else iter(())
        interrupt.run = _run_one(replace(job, cap=s.t), s, nothing, None, None)  # type: ignore[attr-defined]
        raise
    return _finished(job, s, status, q, times is not None)


def _collect(s: _State, recorded: int, at: Any, record: FloatArray, clock: Any) -> int:
    """Take over what a kernel call did and return the rows it recorded.

    Ctrl-C may strike between a call and its bookkeeping, so this can be done twice.
    """
    done = int(clock[4])
    s.times[recorded:] = at[:done].tolist()
    s.rows[recorded:] = list(record[:done])
    s.t = int(clock[0])
    return done


def _finished(job: _Job, s: _State, status: int, q: FloatArray, traced: bool) -> Run:
    trace = None
    kept = _State(s.t, s.params, s.x, s.state, s.peak, s.acc, s.first, list(s.times), list(s.rows))
    if traced:
        times, rows = list(s.times), list(s.rows)
        if not times or times[-1] < s.t:
            times.append(s.t)
            rows.append(q.copy())
        elif status != c.RUNNING:  # the row of the end; a resumed run records it again
            kept.times.pop()
            kept.rows.pop()
        trace = Trace.from_rows(np.array(times, dtype=np.int64), np.array(rows))
    initial, final = _measured(job.want, np.array([s.first, q]))
    return job.result(
        status, s.t, s.x, s.acc, s.peak, initial, final, float(s.params[c.P_TOLERANCE]), trace, kept
    )


def _run_each(jobs: list[_Job], bar: _Progress) -> list[Run]:
    runs = []
    for job in jobs:
        run = _run_one(job, _State.begin(job), None, None, bar.cancelled)
        runs.append(_stateless(run))
        bar.update(1)
    return runs


def _stateless(run: Run) -> Run:
    object.__setattr__(run, "state", None)
    return run


# -- the lanes path ------------------------------------------------------------------------------------------


def _tasks(jobs: list[_Job], lanes: bool, threads: int) -> Iterator[tuple[bool, list[int]]]:
    """Yield (as lanes, members) packs of runs."""
    groups: dict[Any, list[int]] = {}
    alone: list[int] = []
    for k, job in enumerate(jobs):
        key = job.group() if lanes else None
        if key is None:
            alone.append(k)
        else:
            groups.setdefault(key, []).append(k)
    for members in groups.values():
        if len(members) < LEAST_LANES:
            alone += members
            continue
        # Runs that share H keep it in one copy; the others must be small enough for a copy a lane.
        by_hessian: dict[int, list[int]] = {}
        for k in members:
            by_hessian.setdefault(id(jobs[k].problem.blocks), []).append(k)
        mixed: list[int] = []
        for same in by_hessian.values():
            if len(same) >= MIN_LANES or len(same) == len(members):
                yield from ((True, part) for part in _parts(same, jobs, threads))
            else:
                mixed += same
        if len(mixed) >= LEAST_LANES and jobs[mixed[0]].problem.packed().data.size <= MAX_LANE_HESSIAN:
            yield from ((True, part) for part in _parts(mixed, jobs, threads))
        else:
            alone += mixed
    per_task = max(1, math.ceil(len(alone) / (4 * threads)))
    for begin in range(0, len(alone), per_task):
        yield False, alone[begin : begin + per_task]


def _parts(members: list[int], jobs: list[_Job], threads: int) -> Iterator[list[int]]:
    """Cut a group into queues: bounded memory, and enough parts for the threads."""
    problem = jobs[members[0]].problem
    per_run = 8 * (problem.packed().data.size + 4 * problem.size + 100)
    count = max(1, min(QUEUE_BYTES // per_run, math.ceil(len(members) / threads)))
    count = max(count, min(LEAST_LANES, len(members)))
    for begin in range(0, len(members), count):
        yield members[begin : begin + count]


def _width(size: int, runs: int) -> int:
    """Return the number of lanes: a multiple of 8 whose vectors stay in the cache."""
    width = min(MAX_LANES, max(MIN_LANES, LANE_BYTES // (48 * size)))
    return max(8, min(width, 8 * math.ceil(runs / 8)))


def _run_lanes(jobs: list[_Job], bar: _Progress) -> list[Run]:
    """Run jobs of one group as lanes; what is left at the end goes to the single path."""
    from quadlab.kernels import entry

    job = jobs[0]
    problem, method = job.problem, job.method
    packed = problem.packed()
    size, blocks, n, width = problem.size, problem.n_blocks, len(jobs), _width(problem.size, len(jobs))
    shared = all(other.problem.blocks is problem.blocks for other in jobs)
    code = np.array([method.code, job.step.rule, job.stop.code, job.want, job.keep, shared], dtype=np.int64)
    anchored = method.code == c.USER or job.params[c.P_DECAY] != 0.0
    own = jobs[:1] if shared else jobs
    start = np.array([j.problem.displacement for j in jobs])
    params = np.array([j.params for j in jobs])
    caps = np.array([j.cap for j in jobs], dtype=np.int64)
    norms_of = np.array([j.problem.packed().norms for j in own])
    lowest_of = np.array([j.lowest for j in own])
    support_of = np.array([j.support for j in own])
    anchor_of = np.array([j.problem.minimizer for j in jobs]) if anchored else np.zeros((n, 0))
    data_of = np.zeros((0, 0)) if shared else np.array([j.problem.packed().data for j in jobs])
    schedule = np.zeros(0)
    if job.step.schedule is not None:
        longest = int(caps.max())
        schedule = np.append(job.step.schedule.values(0, longest), 0.0)
    empty = np.empty
    owner, t, cap = (empty(width, dtype=np.int64) for _ in range(3))
    par = empty((c.N_PARAMETERS, width))
    norms, lowest = empty((blocks, width)), empty((blocks, width))
    support, anchor = empty((support_of.shape[1], width)), empty((anchor_of.shape[1], width))
    data = packed.data[:, None].copy() if shared else empty((packed.data.size, width))
    x, g = empty((size, width)), empty((size, width))
    d = empty((0 if method.code == c.GD else size, width))
    work = empty((size if job.want & (c.WANT_DHD | c.WANT_DENOMINATOR) else 0, width))
    state = empty((method.n_states, size, width))
    peak = empty((size if job.want & c.WANT_PEAK else 0, width))
    acc, q = empty((c.N_ACCUMULATORS, width)), np.zeros((c.N_QUANTITIES, width))
    stripes, part, step, inverse = empty((c.STRIPES, width)), empty(width), empty(width), empty((2, width))
    statuses, iterations = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    points, peaks = empty((n, size)), empty((n, peak.shape[0]))
    accs, firsts, finals = (
        empty((n, c.N_ACCUMULATORS)),
        np.zeros((n, c.N_QUANTITIES)),
        np.zeros((n, c.N_QUANTITIES)),
    )
    kernel = entry.lanes()
    address = _addresses(method)[1]
    budget = max(16, PIECE // (width * (packed.data.size + 8 * size)))
    rows = 0 if job.noise is None else job.noise.block_rows
    noise, noisy = empty((rows, size, width)), empty((size if rows else 0, width))
    budget = rows or budget
    active = queued = finished = 0
    least = min(LEAST_LANES, n)
    results: list[Run | None] = [None] * n
    while queued < n or active >= least:
        clock = np.array([active, queued, budget, least], dtype=np.int64)
        if rows:
            _draw(jobs, owner, t, active, queued, noise)
        kernel(
            code, clock, packed.kinds, packed.offsets, packed.data_offsets, schedule,
            start, params, caps, norms_of, lowest_of, support_of, anchor_of, data_of,
            owner, t, cap, par, norms, lowest, support, anchor, data,
            x, g, d, work, state, peak, acc, q, stripes, part, step, inverse,
            statuses, iterations, points, peaks, accs, firsts, finals, noise, noisy, address,
        )  # fmt: skip
        active, queued = int(clock[0]), int(clock[1])
        bar.update(queued - active - finished)
        finished = queued - active
        if bar.cancelled.is_set():
            raise KeyboardInterrupt
        if active == 0 and queued == n:
            break
    for w in range(active):
        k = int(owner[w])
        s = _State(
            int(t[w]), par[:, w].copy(), x[:, w].copy(), state[:, :, w].copy(), peak[:, w].copy(),
            acc[:, w].copy(), firsts[k].copy(),
        )  # fmt: skip
        results[k] = _stateless(_run_one(jobs[k], s, None, None, bar.cancelled))
        bar.update(1)
    initial, final = _measured(job.want, firsts), _measured(job.want, finals)
    for k, other in enumerate(jobs):
        if results[k] is None:
            tolerance = other.stop.tolerance(size, initial[k][job.stop.quantity])
            results[k] = other.result(
                int(statuses[k]), int(iterations[k]), points[k], accs[k], peaks[k], initial[k], final[k],
                tolerance,
            )  # fmt: skip
    return results  # type: ignore[return-value]


def _draw(
    jobs: list[_Job], owner: np.ndarray, t: np.ndarray, active: int, queued: int, noise: FloatArray
) -> None:
    """Draw the noise of the next iterations of the active lanes and of the runs that fill the others."""
    rows, size, width = noise.shape
    at = [(int(owner[w]), int(t[w]) // rows) for w in range(active)]
    at += [(k, 0) for k in range(queued, min(queued + width - active, len(jobs)))]
    blocks = np.empty((len(at), rows, size))
    for block, (k, number) in zip(blocks, at, strict=True):
        block[:] = jobs[k].noise.block(number)  # type: ignore[union-attr]
    noise[:, :, : len(at)] = blocks.transpose(1, 2, 0)


# -- without iterating ---------------------------------------------------------------------------------------


def _in_closed_form(job: _Job) -> Run:
    """Return the run of a linear iteration from its closed form."""
    from quadlab.closed_form import linear_iteration

    if job.noise is not None:
        raise ValueError("closed_form goes without noise, received noise > 0; problem.with_noise(0) has none")
    if job.statistics:
        raise ValueError(f"closed_form goes without statistics, received {', '.join(job.statistics)}")
    rate = job.step.rate if job.step.rule == c.CONSTANT else None
    iteration = linear_iteration(job.problem, job.method, rate)
    name = job.stop.quantity
    if name not in iteration.shares:
        raise ValueError(
            f"closed_form goes with {' and '.join(iteration.shares)} of {job.method}, received {job.stop}"
        )
    initial = iteration.measured(0)
    tolerance = job.stop.tolerance(job.problem.size, initial[name])
    count = iteration.count(name, tolerance, job.cap)
    end = job.cap if count is None else count
    return Run(
        problem=job.problem,
        method=job.method,
        stop=job.stop,
        status=Status.MAX_ITERATIONS if count is None else Status.CONVERGED,
        iterations=end,
        tolerance=tolerance,
        point=iteration.point(end),
        step=job.step,
        max_iterations=job.cap,
        initial=initial,
        final=iteration.measured(end),
        statistics={},
        closed_form=True,
    )


# -- plumbing ------------------------------------------------------------------------------------------------


def _broadcast(**columns: Any) -> Iterator[tuple[Any, ...]]:
    """Zip lists of equal length, single values repeated."""
    lists = {name: list(v) for name, v in columns.items() if isinstance(v, (list, tuple, range, np.ndarray))}
    lengths = {name: len(v) for name, v in lists.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"lists must have equal length, received {told}")
    count = next(iter(lengths.values()), 1)
    return zip(*(lists.get(name, itertools.repeat(v, count)) for name, v in columns.items()), strict=True)


class _Progress:
    """A tqdm bar that shows itself after two seconds, and the flag that stops the threads."""

    def __init__(self, total: int, wanted: bool | None) -> None:
        self.cancelled = threading.Event()
        self._lock = threading.Lock()
        self._bar = progress_bar(wanted, total=total, unit="run", leave=False)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.close()

    def update(self, count: int) -> None:
        if count:
            with self._lock:
                self._bar.update(count)
