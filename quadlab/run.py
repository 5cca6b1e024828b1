"""The result of a run: status, count, final point, trace, and statistics of the trajectory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from quadlab._arrays import FloatArray, shown
from quadlab.kernels import codes as c

if TYPE_CHECKING:
    from quadlab.methods import Method
    from quadlab.problem import BlockQuadratic
    from quadlab.steps import Step
    from quadlab.stopping import Stop


class Status(StrEnum):
    """How a run ended; the value is the word used in tables and JSON."""

    CONVERGED = "converged"
    """The stopping test held."""
    MAX_ITERATIONS = "max_iterations"
    """The cap was reached first: the run is censored, it has no count."""
    DIVERGED = "diverged"
    """The measured quantity was not finite."""
    NOT_DESCENT = "not_descent"
    """A rule for the step met a direction with g.d <= 0."""


STATUS_OF = {
    c.CONVERGED: Status.CONVERGED,
    c.MAX_ITERATIONS: Status.MAX_ITERATIONS,
    c.DIVERGED: Status.DIVERGED,
    c.NOT_DESCENT: Status.NOT_DESCENT,
}


@dataclass(frozen=True)
class Statistic:
    """A statistic of a trajectory over t = 0..T-1 unless it says otherwise.

    Attributes
    ----------
    want : int
        What the kernels must compute for it.
    value : callable
        (accumulators in rows, T, sums of peaks) -> ndarray with one value a run.
    meaning : str
    """

    want: int
    value: Callable[[FloatArray, np.ndarray, FloatArray], FloatArray]
    meaning: str


def _entry(index: int) -> Callable[[FloatArray, np.ndarray, FloatArray], FloatArray]:
    return lambda acc, count, peaks: acc[:, index]


def _harmonic(index: int) -> Callable[[FloatArray, np.ndarray, FloatArray], FloatArray]:
    return lambda acc, count, peaks: count / acc[:, index]


def _mean(index: int) -> Callable[[FloatArray, np.ndarray, FloatArray], FloatArray]:
    return lambda acc, count, peaks: acc[:, index] / count


_AVERAGE = c.WANT_AVERAGE | c.WANT_SQUARE | c.WANT_L1

STATISTICS: dict[str, Statistic] = {
    "sup_lambda_g": Statistic(c.WANT_LAMBDA_G, _entry(c.A_SUP_LAMBDA_G), "sup Lambda_G(t)"),
    "harmonic_lambda_g": Statistic(
        c.WANT_LAMBDA_G, _harmonic(c.A_SUM_INVERSE_LAMBDA_G), "harmonic mean of Lambda_G(t)"
    ),
    "final_lambda_g": Statistic(c.WANT_LAMBDA_G, _entry(c.A_FINAL_LAMBDA_G), "Lambda_G(T-1)"),
    "sup_step_lambda_g": Statistic(c.WANT_LAMBDA_G, _entry(c.A_SUP_STEP_LAMBDA_G), "sup eta_t Lambda_G(t)"),
    "min_gap_ratio": Statistic(c.WANT_GAP, _entry(c.A_MIN_GAP_RATIO), "min f_{t+1}/f_t (gaps), up to T"),
    "max_gap_ratio": Statistic(c.WANT_GAP, _entry(c.A_MAX_GAP_RATIO), "max f_{t+1}/f_t (gaps), up to T"),
    "tail_gap": Statistic(
        c.WANT_GAP, _entry(c.A_TAIL_GAP), "sup f_t - f* over t >= tail_gap_start, T included"
    ),
    "tail_displacement": Statistic(
        c.WANT_DISPLACEMENT,
        _entry(c.A_TAIL_DISPLACEMENT),
        "sup max |x_i| over H_ii > 0 and t >= tail_displacement_start, T included",
    ),
    "min_descent": Statistic(c.WANT_DIRECTION, _entry(c.A_MIN_DESCENT), "min g.d"),
    "sup_lambda_d": Statistic(c.WANT_DIRECTION, _entry(c.A_SUP_LAMBDA_D), "sup Lambda(d_t)"),
    "harmonic_lambda_d": Statistic(
        c.WANT_DIRECTION, _harmonic(c.A_SUM_INVERSE_LAMBDA_D), "harmonic mean of Lambda(d_t)"
    ),
    "sup_lemma_l1": Statistic(
        c.WANT_DIRECTION | c.WANT_L1, _entry(c.A_SUP_LEMMA_L1), "sup Lambda(d) ||d||^2 ||g||_1^2 / (g.d)^2"
    ),
    "sup_lemma_l2": Statistic(
        c.WANT_DIRECTION | c.WANT_SQUARE,
        _entry(c.A_SUP_LEMMA_L2),
        "sup Lambda(d) ||d||^2 ||g||_2^2 / (g.d)^2",
    ),
    "sup_curvature": Statistic(c.WANT_DHD, _entry(c.A_SUP_CURVATURE), "U = max d^T H d"),
    "sup_denominator_l1": Statistic(
        c.WANT_DENOMINATOR, _entry(c.A_SUP_DENOMINATOR), "G = max ||sqrt(vhat) + epsilon||_1"
    ),
    "sup_preconditioned": Statistic(
        c.WANT_DENOMINATOR, _entry(c.A_SUP_PRECONDITIONED), "max_t max_b ||H_b|| / min_{i in b} D_i"
    ),
    "inf_preconditioned": Statistic(
        c.WANT_DENOMINATOR, _entry(c.A_INF_PRECONDITIONED), "min_t min_b mu_b / max_{i in b} D_i"
    ),
    "sum_max_gradient": Statistic(c.WANT_PEAK, lambda acc, count, peaks: peaks, "sum_i max_t |g_i|"),
    "min_cos_sign": Statistic(c.WANT_COS, _entry(c.A_MIN_COS), "min cos(d_t, sign g_t)"),
    "mean_cos_sign": Statistic(c.WANT_COS, _mean(c.A_SUM_COS), "mean cos(d_t, sign g_t)"),
    "mean_soft": Statistic(c.WANT_COS, _mean(c.A_SUM_SOFT), "mean share of |d_i| in [1/2, 2]"),
    "sum_step": Statistic(_AVERAGE, _entry(c.A_SUM_STEP), "sum eta_t"),
    "weighted_square": Statistic(_AVERAGE, _entry(c.A_SUM_STEP_SQUARE), "sum eta_t ||g_t||_2^2"),
    "weighted_l1": Statistic(_AVERAGE, _entry(c.A_SUM_STEP_L1), "sum eta_t ||g_t||_1"),
}

QUANTITIES: dict[str, Callable[[FloatArray], FloatArray]] = {
    "gap": lambda q: q[..., c.Q_GAP],
    "grad_l1": lambda q: q[..., c.Q_L1],
    "grad_l2": lambda q: np.sqrt(q[..., c.Q_SQUARE]),
    "grad_linf": lambda q: q[..., c.Q_LINF],
    "lambda_g": lambda q: q[..., c.Q_LAMBDA_G],
    "step": lambda q: q[..., c.Q_STEP],
    "cos_sign": lambda q: q[..., c.Q_COS],
}
"""What a trace holds, from the kernels' rows."""

_MEASURED = {
    "gap": c.WANT_GAP,
    "grad_l1": c.WANT_L1,
    "grad_l2": c.WANT_SQUARE,
    "grad_linf": c.WANT_LINF,
    "lambda_g": c.WANT_LAMBDA_G,
}
"""What a run holds of its start and its end, where the kernels computed it."""

TRACE_WANT = c.WANT_GAP | c.WANT_L1 | c.WANT_SQUARE | c.WANT_LINF | c.WANT_LAMBDA_G | c.WANT_COS


def check_statistics(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names, or raise ValueError naming one that does not exist."""
    try:
        names = (names,) if isinstance(names, str) else tuple(names)
    except TypeError:
        raise ValueError(f"statistics must be names of statistics, received {shown(names)}") from None
    for name in names:
        if not isinstance(name, str) or name not in STATISTICS:
            raise ValueError(f"statistics must be among {', '.join(STATISTICS)}, received {shown(name)}")
    return names


def read_statistics(
    names: tuple[str, ...],
    acc: FloatArray,
    counts: list[int],
    peaks: list[float],
    tail_starts: dict[str, list[float]],
) -> list[dict[str, float | None]]:
    """Return the values of the named statistics of each run; None where no iteration gave one."""
    if not names:
        return [{} for _ in counts]
    table: dict[str, list[float | None]] = {}
    for name, (values, known) in statistic_columns(names, acc, counts, peaks, tail_starts).items():
        pairs = zip(values.tolist(), known.tolist(), strict=True)
        table[name] = [value if is_known else None for value, is_known in pairs]
    return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]


def statistic_columns(
    names: tuple[str, ...],
    acc: FloatArray,
    counts: list[int],
    peaks: list[float],
    tail_starts: dict[str, list[float]],
) -> dict[str, tuple[FloatArray, np.ndarray]]:
    """Return the values of the named statistics, and in which runs an iteration gave one."""
    count, peak = np.array(counts), np.array(peaks)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            name: (
                STATISTICS[name].value(acc, count, peak),
                count >= np.array(tail_starts[name]) if name in tail_starts else count > 0,
            )
            for name in names
        }


def read_quantities(wants: list[int], rows: FloatArray) -> list[dict[str, float]]:
    """Return by name what the kernels measured at one iteration of each run."""
    found: list[dict[str, float]] = [{} for _ in wants]
    of_any = 0
    for want in set(wants):
        of_any |= want
    for name, values in quantity_columns(of_any, rows).items():
        bit = _MEASURED[name]
        for own, want, value in zip(found, wants, values.tolist(), strict=True):
            if want & bit:
                own[name] = value
    return found


def quantity_columns(want: int, rows: FloatArray) -> dict[str, FloatArray]:
    """Return by name what the kernels measured at one iteration of runs that all want this."""
    return {name: QUANTITIES[name](rows) for name, bit in _MEASURED.items() if want & bit}


@dataclass(frozen=True)
class Trace:
    """Quantities at the recorded iterations; the last row is the end of the run.

    Attributes
    ----------
    iteration : ndarray of shape (n,), int64
    gap, grad_l1, grad_l2, grad_linf, lambda_g : ndarray of shape (n,)
        f - f*, norms of the gradient, Lambda_G.
    step, cos_sign : ndarray of shape (n,)
        The learning rate and cos(d, sign g) of the update made there; NaN at the end of the run.
    """

    iteration: np.ndarray
    gap: FloatArray
    grad_l1: FloatArray
    grad_l2: FloatArray
    grad_linf: FloatArray
    lambda_g: FloatArray
    step: FloatArray
    cos_sign: FloatArray

    @classmethod
    def from_rows(cls, iteration: np.ndarray, rows: FloatArray) -> Trace:
        """Return the trace of the kernels' rows."""
        return cls(iteration, **{name: np.ascontiguousarray(read(rows)) for name, read in QUANTITIES.items()})

    def __len__(self) -> int:
        return len(self.iteration)


@dataclass(frozen=True, eq=False)
class Run:
    """One method on one problem until a stopping test, a cap, or a failure.

    Attributes
    ----------
    problem, method, stop
        What was run.
    status : Status
    iterations : int
        Updates made: if converged, the count T, the number of updates before the test first holds.
    tolerance : float
        The number the measured quantity was compared with.
    point : ndarray of shape (P,)
        The final w.
    step : Step
        The resolved learning rate.
    max_iterations : int
        The cap.
    initial, final : dict
        Quantities at the start and at the end: gap, grad_l1, grad_l2, grad_linf, lambda_g; those that
        neither the test nor a statistic needed are absent.
    statistics : dict
        The statistics of the trajectory that were asked for, by name (see ``STATISTICS``).
    trace : Trace or None
    noise_seed : int or None
        The seed of the gradient noise; None if the problem has none.
    closed_form : bool
        Whether the count and the end are from the closed form of the iteration, not from a simulation.
    state : object
        What `solve(resume=...)` goes on from; None in batches.
    """

    problem: BlockQuadratic
    method: Method
    stop: Stop
    status: Status
    iterations: int
    tolerance: float
    point: FloatArray
    step: Step
    max_iterations: int
    initial: dict[str, float]
    final: dict[str, float]
    statistics: dict[str, float | None]
    trace: Trace | None = None
    tail_gap_start: float = 0.0
    tail_displacement_start: float = 0.0
    noise_seed: int | None = None
    closed_form: bool = False
    state: Any = field(default=None, repr=False)

    @classmethod
    def from_columns(
        cls,
        problem: Sequence[Any],
        method: Sequence[Any],
        stop: Sequence[Any],
        status: Sequence[Any],
        iterations: Sequence[Any],
        tolerance: Sequence[Any],
        point: Sequence[Any],
        step: Sequence[Any],
        max_iterations: Sequence[Any],
        initial: Sequence[Any],
        final: Sequence[Any],
        statistics: Sequence[Any],
        **others: Sequence[Any],
    ) -> list[Run]:
        """Return the runs with these attributes, given as lists of one entry a run; the rest as by default.

        What the constructor does, several times as fast.
        """
        runs: list[Run] = [object.__new__(cls) for _ in status]
        contents = list(map(vars, runs))
        columns = (
            problem, method, stop, status, iterations, tolerance, point, step, max_iterations, initial, final,
            statistics,
        )  # fmt: skip
        for own, row in zip(contents, zip(*columns, strict=True), strict=True):
            # Written out, as a loop over names takes a single run three times as long.
            (
                own["problem"], own["method"], own["stop"], own["status"], own["iterations"],
                own["tolerance"], own["point"], own["step"], own["max_iterations"], own["initial"],
                own["final"], own["statistics"],
            ) = row  # fmt: skip
        for name, values in others.items():
            for own, value in zip(contents, values, strict=True):
                own[name] = value
        return runs

    @property
    def converged(self) -> bool:
        """Whether the stopping test held."""
        return self.status is Status.CONVERGED

    @property
    def learning_rate(self) -> float | None:
        """The constant learning rate, None for a rule or a schedule."""
        return self.step.rate if self.step.rule == c.CONSTANT else None

    def __repr__(self) -> str:
        how = ", in closed form" if self.closed_form else ""
        return f"<Run: {self.method} {self.status} after {self.iterations} updates{how}>"

    def _repr_html_(self) -> str:
        rows = [
            ("method", self.method),
            ("stop", self.stop),
            ("status", self.status),
            ("iterations", self.iterations),
            *((f"final {name}", f"{value:.4g}") for name, value in self.final.items()),
            *((name, "" if value is None else f"{value:.4g}") for name, value in self.statistics.items()),
        ]
        import html

        body = "".join(
            f"<tr><th>{html.escape(str(k))}</th><td>{html.escape(str(v))}</td></tr>" for k, v in rows
        )
        return f"<table>{body}</table>"
