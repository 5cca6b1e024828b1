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
from quadlab.run import (
    STATISTICS,
    STATUS_OF,
    Run,
    Trace,
    quantity_columns,
    read_quantities,
    read_statistics,
    statistic_columns,
)
from quadlab.steps import Step, check_noise, own_step, resolve
from quadlab.stopping import Stop, check_stop

IntArray = NDArray[np.int64]

#: Longest schedule that lanes share.
MAX_LANE_SCHEDULE = 1 << 20
#: Columns of `Batch.codes`.
METHOD, RULE, STOP, WANT, KEEP, PATH, SHARED = range(7)

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


@dataclass(slots=True, eq=False)
class Column:
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

    @classmethod
    def together(cls, *columns: Column) -> Column:
        """Return the column of the tuples of values that runs have of these columns."""
        values = [column.values for column in columns]
        if max(map(len, values)) == 1:
            return cls(list(zip(*values, strict=True)), columns[0].which)
        first, which = combinations(*(column.which for column in columns))
        return cls(list(zip(*(column.part(first).each() for column in columns), strict=True)), which)

    def distinct(self, numbers: list[Any]) -> Column:
        """Return the column of numbers given one for each value, equal ones once."""
        if len(numbers) == 1:
            return Column(numbers, self.which)
        place: dict[Any, int] = {}
        which = [place.setdefault(number, len(place)) for number in numbers]
        return Column(list(place), np.array(which)[self.which])

    def at(self, run: int) -> Any:
        """Return the value of a run."""
        return self.values[self.which[run]]

    def each(self) -> list[Any]:
        """Return the value of each run."""
        if len(self.values) == 1:
            return self.values * self.which.size
        return list(map(self.values.__getitem__, self.which.tolist()))

    def part(self, runs: IntArray) -> Column:
        """Return the column of these runs."""
        return Column(self.values, self.which[runs])

    def used(self) -> Column:
        """Return the column without the values that no run has."""
        used, which = np.unique(self.which, return_inverse=True)
        return Column(list(map(self.values.__getitem__, used.tolist())), which)

    def spread(self, numbers: list[Any]) -> Any:
        """Return what to assign to have a number for each run, given one for each value.

        That of the only value is repeated by the assignment itself, for a tenth of what an array costs.
        """
        return numbers[0] if len(numbers) == 1 else np.array(numbers).take(self.which)

    def fill(self, table: NDArray[Any], rows: list[dict[int, float]]) -> None:
        """Write the entries of each value, by their column in a table of zeros, to the rows of its runs."""
        if len(rows) == 1:
            for index, number in rows[0].items():
                if number:
                    table[:, index] = number
            return
        for index in set().union(*rows):
            # Not `row.get`: no call for each value.
            numbers = [row[index] if index in row else 0.0 for row in rows]  # noqa: SIM401
            table[:, index] = self.spread(numbers)


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


class Batch(NamedTuple):
    """Runs, checked and resolved.

    Attributes
    ----------
    problems, methods, stops, steps, seeds : Column
    caps : ndarray of shape (n,), int64
    codes : ndarray of shape (n, 7), int64
        Of the method, the rule for the step and the measured quantity; what to compute, what to keep; and,
        set when a kernel is called, the path between events and whether lanes share H.
    params : ndarray of shape (n, N_PARAMETERS)
    noisy : bool
        Whether any problem has gradient noise.
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
    noisy: bool
    statistics: tuple[str, ...]

    @classmethod
    def make(
        cls,
        statistics: tuple[str, ...],
        problems: Column,
        methods: Column,
        stop: Column,
        max_iterations: Column,
        tail_gap_start: Column,
        tail_displacement_start: Column,
        noise_seed: Column,
    ) -> Batch:
        """Check and resolve the arguments of runs; ValueError for what is wrong with any of them."""
        for column, check in ((problems, check_problem), (methods, check_method), (stop, check_stop)):
            for value in column.values:
                check(value)
        n = problems.which.size
        caps, codes = np.empty(n, dtype=np.int64), np.zeros((n, SHARED + 1), dtype=np.int64)
        params = np.zeros((n, c.N_PARAMETERS))
        caps[:] = max_iterations.spread(list(map(_cap, max_iterations.values)))
        codes[:, METHOD] = method_codes = methods.spread(kinds := [method.code for method in methods.values])
        if c.FROZEN_ADAM in kinds:
            for k in set(problems.which[codes[:, METHOD] == c.FROZEN_ADAM].tolist()):
                _check_frozen(problems.values[k])
        noisy = any(loud := [problem.is_noisy for problem in problems.values])
        if noisy:
            for k in set(methods.which[np.array(loud)[problems.which]].tolist()):
                check_noise(methods.values[k].learning_rate)
        steps = _resolved(problems, methods, stop)
        codes[:, RULE] = rule_codes = steps.spread([step.rule for step in steps.values])
        codes[:, STOP] = stop_codes = stop.spread([test.code for test in stop.values])
        codes[:, KEEP] = keep = _kept(statistics)
        codes[:, WANT] = _wanted(keep)[method_codes, rule_codes, stop_codes]
        tests = Column.together(stop, problems.distinct([problem.size for problem in problems.values]))
        methods.fill(params, [method.parameters() for method in methods.values])
        steps.fill(params, [{c.P_RATE: step.rate, c.P_M: step.m} for step in steps.values])
        tests.fill(params, [_target(*test) for test in tests.values])
        for index, tail in ((c.P_TAIL_GAP, tail_gap_start), (c.P_TAIL_DISPLACEMENT, tail_displacement_start)):
            tail.fill(params, [{index: _tail_start(start)} for start in tail.values])
        seeds = Column(list(map(check_seed, noise_seed.values)), noise_seed.which)
        return cls(problems, methods, stop, steps, seeds, caps, codes, params, noisy, statistics)

    @property
    def size(self) -> int:
        """Number of runs."""
        return self.caps.size

    def job(self, k: int) -> Job:
        """Return one run."""
        problem = self.problems.at(k)
        return Job(
            problem,
            self.methods.at(k),
            self.stops.at(k),
            self.steps.at(k),
            cap=int(self.caps[k]),
            codes=self.codes[k],
            params=self.params[k],
            noise=self.noise(k) if problem.is_noisy else None,
        )

    def noise(self, k: int) -> NoiseStream:
        """Return the gradient noise of a run."""
        problem: BlockQuadratic = self.problems.at(k)
        return problem.noise_stream(self.seeds.at(k))

    def part(self, runs: IntArray) -> Batch:
        """Return these runs."""
        return Batch(
            self.problems.part(runs).used(),
            self.methods.part(runs),
            self.stops.part(runs),
            self.steps.part(runs),
            self.seeds.part(runs),
            self.caps[runs],
            self.codes[runs],
            self.params[runs],
            self.noisy,
            self.statistics,
        )

    def hessians(self) -> IntArray:
        """Return a number for each run, equal for those that share H."""
        return np.array([id(problem.blocks) for problem in self.problems.values])[self.problems.which]

    def kinds(self) -> IntArray:
        """Return a label for each run, equal for those that can share lanes, -1 for one that goes alone."""
        functions, schedules = np.ones_like(self.caps), np.zeros_like(self.caps)
        called = np.flatnonzero(self.codes[:, METHOD] == c.USER)
        functions[called] = labels(map(_function, self.methods.part(called).each()))
        scheduled = np.flatnonzero(self.codes[:, RULE] == c.SCHEDULE)
        schedules[scheduled] = labels(step.schedule for step in self.steps.part(scheduled).each())
        structures = labels(p.packed().structure for p in self.problems.values)[self.problems.which]
        long = (schedules > 0) & (self.caps > MAX_LANE_SCHEDULE)
        flags = 2 * (self.params[:, c.P_DECAY] != 0.0)
        if self.noisy:
            flags += np.array([problem.is_noisy for problem in self.problems.values])[self.problems.which]
        codes = (self.codes[:, k] for k in (METHOD, RULE, STOP))
        _, kinds = combinations(*codes, functions, schedules, structures, flags)
        kinds[(functions == 0) | (structures == 0) | long] = -1
        return kinds

    def runs(self, outcome: Outcome, trace: Trace | None = None, state: Any = None) -> list[Run]:
        """Return the runs from what the kernels left; the trace and the state are those of a single run."""
        wants = self.codes[:, WANT].tolist()
        tails = self._tails()
        # What is seldom not at its default.
        others: dict[str, list[Any]] = {}
        for name, starts in tails.items():
            if any(starts):
                others[f"{name}_start"] = starts
        if self.noisy:
            pairs = zip(self.problems.each(), self.seeds.each(), strict=True)
            others["noise_seed"] = [seed if problem.is_noisy else None for problem, seed in pairs]
        if trace is not None:
            others["trace"] = [trace]
        if state is not None:
            others["state"] = [state]
        return Run.from_columns(
            problem=self.problems.each(),
            method=self.methods.each(),
            stop=self.stops.each(),
            status=list(map(STATUS_OF.__getitem__, outcome.statuses)),
            iterations=outcome.iterations,
            tolerance=outcome.tolerances,
            point=outcome.points,
            step=self.steps.each(),
            max_iterations=self.caps.tolist(),
            initial=read_quantities(wants, outcome.firsts),
            final=read_quantities(wants, outcome.finals),
            statistics=read_statistics(
                self.statistics, outcome.accs, outcome.iterations, outcome.peaks, tails
            ),
            **others,
        )

    def numbers(self, outcome: Outcome, runs: slice) -> dict[str, Any]:
        """Return in columns the numbers of some runs that share method, stop and step rule.

        They are those of `runs` to the bit, NaN for None; a quantity at the start is ``initial_...``, one at
        the end ``final_...``, and the constant step ``resolved_learning_rate``.
        """
        want, constant = int(self.codes[runs.start, WANT]), self.codes[runs.start, RULE] == c.CONSTANT
        rates = self.params[runs, c.P_RATE]
        numbers: dict[str, Any] = {
            "iterations": outcome.iterations[runs],
            "resolved_learning_rate": rates if constant else np.full_like(rates, np.nan),
            "tolerance": outcome.tolerances[runs],
        }
        for when, rows in (("initial_", outcome.firsts), ("final_", outcome.finals)):
            for name, values in quantity_columns(want, rows[runs]).items():
                numbers[when + name] = values
        found = statistic_columns(
            self.statistics,
            outcome.accs[runs],
            outcome.iterations[runs],
            outcome.peaks[runs],
            self._tails(runs),
        )
        return numbers | {name: np.where(known, values, np.nan) for name, (values, known) in found.items()}

    def _tails(self, runs: slice = slice(None)) -> dict[str, list[float]]:
        """Return the first iterations of the statistics that have one."""
        return {
            "tail_gap": self.params[runs, c.P_TAIL_GAP].tolist(),
            "tail_displacement": self.params[runs, c.P_TAIL_DISPLACEMENT].tolist(),
        }


class Outcome:
    """What the kernels leave of n runs, in rows.

    Attributes
    ----------
    statuses, iterations : list of int
    tolerances : list of float
        What the measured quantity was compared with.
    points : list of ndarray of shape (P,)
        The final w.
    accs : ndarray of shape (n, N_ACCUMULATORS)
    peaks : list of float
        sum_i max_t |g_i|, where it was asked for.
    firsts, finals : ndarray of shape (n, N_QUANTITIES)
        At the start and at the end.
    """

    def __init__(self, n: int) -> None:
        self.statuses, self.iterations = [c.RUNNING] * n, [0] * n
        self.tolerances, self.peaks = [0.0] * n, [0.0] * n
        self.accs = np.zeros((n, c.N_ACCUMULATORS))
        self.firsts, self.finals = np.zeros((n, c.N_QUANTITIES)), np.zeros((n, c.N_QUANTITIES))
        self.points: list[Any] = [None] * n

    def put(self, runs: IntArray, part: Outcome) -> None:
        """Write what became of some runs to their rows."""
        places = runs.tolist()
        for name in ("statuses", "iterations", "tolerances", "peaks", "points"):
            whole = getattr(self, name)
            for k, value in zip(places, getattr(part, name), strict=True):
                whole[k] = value
        self.accs[runs], self.firsts[runs], self.finals[runs] = part.accs, part.firsts, part.finals


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


def _target(stop: Stop, size: int) -> dict[int, float]:
    """Return the tolerance relative to the start's own value, or the absolute one."""
    return {c.P_RELATIVE if stop.relative else c.P_TOLERANCE: stop.tolerance(size, 1.0)}


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
    both = Column(list(zip(methods.values, own, strict=True)), methods.which)
    cases = Column.together(both, problems, stop)
    found = [step or resolve(m.learning_rate, m.families, p, s) for (m, step), p, s in cases.values]
    return Column(found, cases.which)


def _function(method: FunctionMethod) -> Hashable:
    """Return what lanes call for a method; None for a function of whole vectors."""
    return (method.function(), method.n_states) if method.is_elementwise else None


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
