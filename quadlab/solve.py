r"""Run methods on problems: `solve` for one, `solve_many` for thousands, `best_learning_rate` over a grid.

A run makes the updates :math:`w \leftarrow w - \eta_t d_t` of a method from :math:`w_0` until the stopping
test first holds, at t = T (`quadlab.engine`). Where the iteration is linear T can be found without iterating
(`quadlab.closed_form`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from quadlab._arrays import FloatArray, shown
from quadlab.batch import WANT, Batch, Column, columns
from quadlab.curvature import curvature
from quadlab.engine import State, run_many, run_one
from quadlab.kernels import codes as c
from quadlab.methods import Method, check_method
from quadlab.problem import BlockQuadratic
from quadlab.run import STATUS_OF, TRACE_WANT, Run, Status, check_statistics
from quadlab.stopping import Stop


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
    threads: int = 1,
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
    threads : int >= 1
        Python threads that share the coordinates of a diagonal problem of 65,536 or more (one with blocks of
        256 or more in the mean); the numbers do not depend on it.
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
    OSError
        If the system does not start so many threads.
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
    names = check_statistics(statistics)
    arguments = (
        problem, method, stop, max_iterations, tail_gap_start, tail_displacement_start, noise_seed,
    )  # fmt: skip
    batch = Batch.make(names, *map(Column.one, arguments))
    if closed_form:
        for name, value in (("record", record), ("callback", callback), ("resume", resume)):
            if value is not None:
                raise ValueError(f"closed_form goes without {name}, received {shown(value)}")
        return _in_closed_form(batch)
    times = _record_times(record, int(batch.caps[0]))
    if times is not None:
        batch.codes[:, WANT] |= TRACE_WANT
    if callback is not None and not callable(callback):
        raise ValueError(f"callback must be a function, received {shown(callback)}")
    if callback is not None and times is None:
        raise ValueError("a callback is called at recorded iterations, received record=None")
    state = None if resume is None else _resumed(resume, batch)
    return run_one(batch, state, times, callback, fused, _threads(threads))


def _threads(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"threads must be an integer >= 1, received {shown(value)}")
    return int(value)


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
    OSError
        If the system does not start so many threads.

    Examples
    --------
    >>> from quadlab import GD, GradientNorm, case
    >>> problems = case("het", seed=range(3))
    >>> runs = solve_many(problems, GD("lambda_g"), GradientNorm(1e-3, relative=True))
    >>> [run.status.value for run in runs]
    ['converged', 'converged', 'converged']
    """
    names = check_statistics(statistics)
    threads = _threads(threads)
    arguments = columns(
        problems=problems,
        methods=methods,
        stop=stop,
        max_iterations=max_iterations,
        tail_gap_start=tail_gap_start,
        tail_displacement_start=tail_displacement_start,
        noise_seed=noise_seed,
    )
    if not arguments["problems"].which.size:
        return []
    try:
        batch = Batch.make(names, **arguments)
    except ValueError:
        for k in range(arguments["problems"].which.size):  # which run is it
            try:
                Batch.make(names, **{name: Column.one(each.at(k)) for name, each in arguments.items()})
            except ValueError as error:
                raise ValueError(f"run {k}: {error}") from None
        raise
    return batch.runs(run_many(batch, lanes, threads, progress))


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


def _resumed(run: Run, batch: Batch) -> State:
    job = batch.job(0)
    if not isinstance(run, Run) or run.state is None:
        raise ValueError(f"resume must be a Run made by solve, received {shown(run)}")
    if run.problem != job.problem or run.method != job.method or run.stop != job.stop:
        raise ValueError("resume must have the same problem, method and stop, received another run")
    if tuple(run.statistics) != batch.statistics:
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


def _in_closed_form(batch: Batch) -> Run:
    """Return the run of a linear iteration from its closed form."""
    from quadlab.closed_form import linear_iteration

    job = batch.job(0)
    if job.noise is not None:
        raise ValueError("closed_form goes without noise, received noise > 0; problem.with_noise(0) has none")
    if batch.statistics:
        raise ValueError(f"closed_form goes without statistics, received {', '.join(batch.statistics)}")
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
