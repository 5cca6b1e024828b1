r"""Runs as columns: what is checked, resolved and packed for thousands of runs at once, and read back.

A run is a problem, a method, a stopping test, a cap, and the numbers of its update
:math:`w \leftarrow w - \eta_t d_t` and of its test. Most of n runs share most of these: 64 starts times 64
learning rates are 4,096 runs of 64 problems and 64 methods. So an argument is a `Column`, its distinct values
and which of them each run has, and what follows from a value, or from a few together, is found once for each
that occurs. The numbers are arrays with one row a run, as the kernels read and write them.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quadlab._arrays import FloatArray, shown
from quadlab.curvature import starting_gradient
from quadlab.kernels import codes as c
from quadlab.methods import FunctionMethod, Method, check_method
from quadlab.noise import NoiseStream, check_seed
from quadlab.problem import BlockQuadratic, check_problem
from quadlab.run import STATISTICS, STATUS_OF, Run, Trace, read_quantities, read_statistics
from quadlab.steps import Step, check_noise, own_step, resolve
from quadlab.stopping import Stop, check_stop

IntArray = NDArray[np.int64]

#: Longest schedule that lanes share.
MAX_LANE_SCHEDULE = 1 << 20
#: Columns of `Batch.codes`.
METHOD, RULE, STOP, WANT, KEEP = range(5)

_FOR_STOP = {
    c.STOP_L1: c.WANT_L1,
    c.STOP_L2: c.WANT_SQUARE,
    c.STOP_LINF: c.WANT_LINF,
    c.STOP_GAP: c.WANT_GAP,
}
_FOR_RULE = {
    c.LEMMA: c.WANT_DIRECTION,
    c.M_STAR: c.WANT_L1,
    c.LINE_SEARCH: c.WANT_DIRECTION | c.WANT_DHD,
}


# -- columns -------------------------------------------------------------------------------------------------

_ONE_RUN = np.zeros(1, dtype=np.int64)
_ONE_RUN.setflags(write=False)


class Column(NamedTuple):
    """An argument of n runs.

    Attributes
    ----------
    values : list
        The distinct ones, by identity.
    which : ndarray of shape (n,), int64
        The place in `values` of each run's.
    """

    values: list[Any]
    which: IntArray

    @classmethod
    def of(cls, entries: list[Any]) -> Column:
        """Return the column of a list with one entry a run."""
        ids = np.fromiter(map(id, entries), np.int64, len(entries))
        _, first, which = np.unique(ids, return_index=True, return_inverse=True)
        return cls(list(map(entries.__getitem__, first.tolist())), which)

    @classmethod
    def one(cls, value: Any) -> Column:
        """Return the column of a single run."""
        return cls([value], _ONE_RUN)

    def at(self, run: int) -> Any:
        """Return the value of a run."""
        return self.values[self.which[run]]

    def each(self, runs: IntArray) -> list[Any]:
        """Return the value of each of these runs."""
        return list(map(self.values.__getitem__, self.which[runs].tolist()))

    def among(self, runs: IntArray) -> tuple[list[Any], IntArray]:
        """Return the values that occur among these runs, and the place of each run's."""
        used, place = np.unique(self.which[runs], return_inverse=True)
        return list(map(self.values.__getitem__, used.tolist())), place

    def spread(self, numbers: Any) -> NDArray[Any]:
        """Return a number for each run, given one for each value."""
        return np.array(numbers).take(self.which)


def columns(**arguments: Any) -> dict[str, Column]:
    """Return the columns of lists of equal length; any other value serves all runs."""
    lists = {k: list(v) for k, v in arguments.items() if isinstance(v, (list, tuple, range, np.ndarray))}
    lengths = {name: len(v) for name, v in lists.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"lists must have equal length, received {told}")
    n = next(iter(lengths.values()), 1)
    same = np.zeros(n, dtype=np.int64)
    return {
        name: Column.of(lists[name]) if name in lists else Column([value], same)
        for name, value in arguments.items()
    }


def labels(keys: Iterable[Any]) -> IntArray:
    """Return integers, the same for equal keys, 0 for the key None."""
    keys = list(keys)
    label: dict[Any, int] = {None: 0}
    for key in dict.fromkeys(keys):
        label.setdefault(key, len(label))
    return np.array(list(map(label.__getitem__, keys)), dtype=np.int64)


def combinations(*columns: IntArray) -> tuple[IntArray, IntArray]:
    """Return the first run of each combination of numbers >= 0, and the place of each run's combination."""
    n = columns[0].size
    first, which = np.zeros(min(n, 1), dtype=np.int64), np.zeros(n, dtype=np.int64)
    if n <= 1:
        return first, which
    for column in columns:
        if (column != column[:1]).any():
            # Renumbered each time, so that the key cannot overflow.
            key = which * (int(column.max()) + 1) + column
            _, first, which = np.unique(key, return_index=True, return_inverse=True)
    return first, which


# -- what the kernels are given ------------------------------------------------------------------------------


class Job(NamedTuple):
    """One run of a batch."""

    problem: BlockQuadratic
    method: Method
    stop: Stop
    step: Step
    cap: int
    codes: IntArray
    params: FloatArray
    noise: NoiseStream | None


@dataclass(frozen=True, eq=False)
class Batch:
    """Runs, checked and resolved.

    Attributes
    ----------
    problems, methods, stops, steps, seeds : Column
    caps : ndarray of shape (n,), int64
    codes : ndarray of shape (n, 5), int64
        Of the method, the rule for the step and the measured quantity; what to compute, what to keep.
    params : ndarray of shape (n, N_PARAMETERS)
    noisy : ndarray of shape (n,), bool
    statistics : tuple of str
    """

    problems: Column
    methods: Column
    stops: Column
    steps: Column
    seeds: Column
    caps: IntArray
    codes: IntArray
    params: FloatArray
    noisy: NDArray[np.bool_]
    statistics: tuple[str, ...]

    @classmethod
    def make(
        cls,
        problems: Column,
        methods: Column,
        stop: Column,
        max_iterations: Column,
        tail_gap_start: Column,
        tail_displacement_start: Column,
        noise_seed: Column,
        statistics: tuple[str, ...],
    ) -> Batch:
        """Check and resolve the arguments of runs; ValueError for what is wrong with any of them."""
        for column, check in ((problems, check_problem), (methods, check_method), (stop, check_stop)):
            for value in column.values:
                check(value)
        caps = max_iterations.spread(list(map(_cap, max_iterations.values)))
        codes = np.zeros((caps.size, 5), dtype=np.int64)
        codes[:, METHOD] = methods.spread(kinds := [method.code for method in methods.values])
        if c.FROZEN_ADAM in kinds:
            for k in set(problems.which[codes[:, METHOD] == c.FROZEN_ADAM].tolist()):
                _check_frozen(problems.values[k])
        noisy = problems.spread(loud := [problem.is_noisy for problem in problems.values])
        if any(loud):
            for k in set(methods.which[noisy].tolist()):
                check_noise(methods.values[k].learning_rate)
        steps = _resolved(problems, methods, stop)
        codes[:, RULE] = steps.spread([step.rule for step in steps.values])
        codes[:, STOP] = stop.spread([test.code for test in stop.values])
        codes[:, KEEP] = keep = _kept(statistics)
        codes[:, WANT] = _wanted(keep)[codes[:, METHOD], codes[:, RULE], codes[:, STOP]]
        params = _hyperparameters(methods.values)[methods.which]
        params[:, c.P_RATE] = steps.spread([step.rate for step in steps.values])
        params[:, c.P_M] = steps.spread([step.m for step in steps.values])
        sizes = problems.spread([problem.size for problem in problems.values])
        first, which = combinations(stop.which, sizes)
        targets = [_target(*pair) for pair in zip(stop.each(first), sizes[first].tolist(), strict=True)]
        params[:, c.P_RELATIVE], params[:, c.P_TOLERANCE] = np.array(targets)[which].T
        params[:, c.P_TAIL_GAP] = tail_gap_start.spread(list(map(_tail_start, tail_gap_start.values)))
        starts = list(map(_tail_start, tail_displacement_start.values))
        params[:, c.P_TAIL_DISPLACEMENT] = tail_displacement_start.spread(starts)
        seeds = Column(list(map(check_seed, noise_seed.values)), noise_seed.which)
        return cls(problems, methods, stop, steps, seeds, caps, codes, params, noisy, statistics)

    @property
    def size(self) -> int:
        """Number of runs."""
        return self.caps.size

    def job(self, k: int) -> Job:
        """Return one run."""
        return Job(
            problem=self.problems.at(k),
            method=self.methods.at(k),
            stop=self.stops.at(k),
            step=self.steps.at(k),
            cap=int(self.caps[k]),
            codes=self.codes[k],
            params=self.params[k],
            noise=self.noise(k) if self.noisy[k] else None,
        )

    def noise(self, k: int) -> NoiseStream:
        """Return the gradient noise of a run."""
        problem: BlockQuadratic = self.problems.at(k)
        return problem.noise_stream(self.seeds.at(k))

    @functools.cached_property
    def hessians(self) -> IntArray:
        """A number for each run, equal for those that share H."""
        return self.problems.spread([id(problem.blocks) for problem in self.problems.values])

    def kinds(self) -> IntArray:
        """Return a label for each run, equal for those that can share lanes, -1 for one that goes alone."""
        functions, schedules = np.ones_like(self.caps), np.zeros_like(self.caps)
        called = np.flatnonzero(self.codes[:, METHOD] == c.USER)
        functions[called] = labels(map(_function, self.methods.each(called)))
        scheduled = np.flatnonzero(self.codes[:, RULE] == c.SCHEDULE)
        schedules[scheduled] = labels(step.schedule for step in self.steps.each(scheduled))
        structures = self.problems.spread(labels(p.packed().structure for p in self.problems.values))
        long = (schedules > 0) & (self.caps > MAX_LANE_SCHEDULE)
        flags = self.noisy + 2 * (self.params[:, c.P_DECAY] != 0.0)
        codes = (self.codes[:, k] for k in (METHOD, RULE, STOP))
        _, kinds = combinations(*codes, functions, schedules, structures, flags)
        kinds[(functions == 0) | (structures == 0) | long] = -1
        return kinds

    def runs(
        self, members: IntArray, outcome: Outcome, trace: Trace | None = None, state: Any = None
    ) -> list[Run]:
        """Return these runs from what the kernels left; the trace and the state are those of a single run."""
        wants, params, counts = self.codes[members, WANT], self.params[members], outcome.iterations
        tails = {"tail_gap": params[:, c.P_TAIL_GAP], "tail_displacement": params[:, c.P_TAIL_DISPLACEMENT]}
        columns = {
            "problem": self.problems.each(members),
            "method": self.methods.each(members),
            "stop": self.stops.each(members),
            "status": list(map(STATUS_OF.__getitem__, outcome.statuses.tolist())),
            "iterations": counts.tolist(),
            "tolerance": outcome.tolerances.tolist(),
            "point": outcome.points,
            "step": self.steps.each(members),
            "max_iterations": self.caps[members].tolist(),
            "initial": read_quantities(wants, outcome.firsts),
            "final": read_quantities(wants, outcome.finals),
            "statistics": read_statistics(self.statistics, outcome.accs, counts, outcome.peaks, tails),
        }
        # The others are seldom not at their default.
        starts = {f"{name}_start": start.tolist() for name, start in tails.items()}
        columns |= {name: start for name, start in starts.items() if any(start)}
        noisy = self.noisy[members].tolist()
        if any(noisy):
            seeds = zip(self.seeds.each(members), noisy, strict=True)
            columns["noise_seed"] = [seed if known else None for seed, known in seeds]
        if trace is not None:
            columns["trace"] = [trace]
        if state is not None:
            columns["state"] = [state]
        return Run.from_columns(**columns)


class Outcome:
    """What the kernels leave of n runs, in rows.

    Attributes
    ----------
    statuses, iterations : ndarray of shape (n,), int64
    tolerances : ndarray of shape (n,)
        What the measured quantity was compared with.
    points : list of ndarray of shape (P,)
        The final w.
    accs : ndarray of shape (n, N_ACCUMULATORS)
    peaks : ndarray of shape (n,)
        sum_i max_t |g_i|, where it was asked for.
    firsts, finals : ndarray of shape (n, N_QUANTITIES)
        At the start and at the end.
    """

    def __init__(self, n: int) -> None:
        self.statuses, self.iterations = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
        self.tolerances, self.peaks = np.zeros(n), np.zeros(n)
        self.accs = np.zeros((n, c.N_ACCUMULATORS))
        self.firsts, self.finals = np.zeros((n, c.N_QUANTITIES)), np.zeros((n, c.N_QUANTITIES))
        self.points: list[Any] = [None] * n


# -- one value, or all values --------------------------------------------------------------------------------


def _cap(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value < 1 << 62:
        raise ValueError(f"max_iterations must be an integer >= 0, received {shown(value)}")
    return int(value)


def _tail_start(value: Any) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float, np.integer, np.floating))
        or not value >= 0
    ):
        raise ValueError(f"a tail starts at an iteration >= 0, received {shown(value)}")
    return float(value)


def _target(stop: Stop, size: int) -> tuple[float, float]:
    """Return the tolerance relative to the start's own value and the absolute one; the other is 0."""
    tolerance = stop.tolerance(size, 1.0)
    return (tolerance, 0.0) if stop.relative else (0.0, tolerance)


def _check_frozen(problem: BlockQuadratic) -> None:
    g = starting_gradient(problem)
    if not g.all():
        raise ValueError(
            "a frozen preconditioner needs every starting gradient nonzero, "
            f"received 0 at coordinate {int(np.argmin(g != 0.0))}"
        )


def _resolved(problems: Column, methods: Column, stop: Column) -> Column:
    """Return the learning rates of runs: one a method, but for rules whose numbers are the problem's."""
    own = [own_step(method.learning_rate) for method in methods.values]
    if None not in own:
        return Column(own, methods.which)
    tied = np.flatnonzero(methods.spread([step is None for step in own]))
    first, place = combinations(*(column.which[tied] for column in (methods, problems, stop)))
    chosen = (column.each(tied[first]) for column in (methods, problems, stop))
    found = [resolve(m.learning_rate, m.families, p, s) for m, p, s in zip(*chosen, strict=True)]
    which = methods.which.copy()
    which[tied] = len(own) + place
    return Column(*Column([*own, *found], which).among(np.arange(which.size)))  # those in use


def _function(method: FunctionMethod) -> Hashable:
    """Return what lanes call for a method; None for a function of whole vectors."""
    return (method.function(), method.n_states) if method.is_elementwise else None


def _hyperparameters(methods: list[Method]) -> FloatArray:
    """Return the parameters of methods, a row each."""
    rows: list[int] = []
    indices: list[int] = []
    values: list[float] = []
    for k, method in enumerate(methods):
        own = method.parameters()
        rows += [k] * len(own)
        indices += own
        values += own.values()
    table = np.zeros((len(methods), c.N_PARAMETERS))
    table[rows, indices] = values
    return table


def _kept(statistics: tuple[str, ...]) -> int:
    """Return what the kernels accumulate."""
    keep = 0
    for name in statistics:
        keep |= STATISTICS[name].want
    return keep


@functools.cache
def _wanted(keep: int) -> IntArray:
    """Return what the kernels compute at each iteration, by the codes of method, rule and test."""
    table = np.empty((c.USER + 1, c.LINE_SEARCH + 1, c.STOP_GAP + 1), dtype=np.int64)
    for method, rule, stop in np.ndindex(table.shape):
        want = keep | _FOR_STOP[stop] | _FOR_RULE.get(rule, 0)
        if method == c.NORMALIZED:
            want |= c.WANT_SQUARE
        # What they read while they compute it.
        if want & c.WANT_DIRECTION and method == c.GD:
            want |= c.WANT_LAMBDA_G
        if want & c.WANT_LAMBDA_G:
            want |= c.WANT_SQUARE
        table[method, rule, stop] = want
    return table
