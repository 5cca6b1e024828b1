"""What the figures share in measuring: progress, the best constant learning rate, numbers for JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np

from quadlab.bounds import bounds
from quadlab.bounds.adam import momentum_constant
from quadlab.curvature import curvature, frozen_preconditioner
from quadlab.methods import Adam, AdamMini, Method
from quadlab.problem import BlockQuadratic
from quadlab.solve import BestLearningRate, best_learning_rate
from quadlab.stopping import Stop

#: Threads of a figure's runs; the numbers do not depend on it.
THREADS = 2
#: The panels of the figures of all upper bounds, and the families of methods in each.
PANELS = {
    "gd": "GD",
    "signsgd": "SignSGD",
    "adam": "Adam",
    "steepest": "Steepest descent, Adam-mini",
}
_FAMILIES = {"steepest": ("steepest", "adam_mini")}

T = TypeVar("T")
R = TypeVar("R")


def each(function: Callable[[T], R], items: Sequence[T], name: str, progress: bool) -> list[R]:
    """Return [function(item) for item in items], two at a time, with a progress bar after two seconds.

    Kernels release the interpreter's lock, so threads do; one pack of lanes a thread is wider, and so
    quicker, than the packs of one call shared out.
    """
    from concurrent.futures import ThreadPoolExecutor

    from quadlab._progress import progress_bar

    with ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            bar = progress_bar(None if progress else False, iterable=futures, desc=name, leave=False)
            return [future.result() for future in bar]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def upper_bounds(panel: str) -> list[str]:
    """Return the names of the register's own upper bounds on the count of the methods of a panel."""
    families = _FAMILIES.get(panel, (panel,))
    return [
        b.name
        for b in bounds().of_runs
        if b.built_in
        and b.kind == "upper"
        and b.quantity == "iterations"
        and not set(families).isdisjoint(b.families or families)
    ]


def short_rate(p: BlockQuadratic, eps: float, method: Adam | AdamMini, share: float, growth: float) -> float:
    """Return the step that spends a share of (P eps)^2 on eta G M C, for the bounds on Adam with momentum.

    G is the start's ||g||_1 and P epsilon, times `growth`; the target is eps of the start's ||g||_1.
    """
    c, gradient = curvature(p), float(np.abs(p.gradient(p.start)).sum())
    m = c.m_star_upper if isinstance(method, Adam) else c.size * c.parameter_weighted
    spent = growth * (gradient + p.size * method.epsilon) * m * momentum_constant(method, math.inf)
    return share * (eps * gradient) ** 2 / spent


def number(value: float | None, digits: int = 5) -> float | int | None:
    """Return a number for JSON with so many significant digits; None for None, NaN and infinities."""
    if value is None or not math.isfinite(value):
        return None
    if isinstance(value, (int, np.integer)):
        return int(value)
    return float(f"{value:.{digits}g}")


def numbers(values: Iterable[float | None], digits: int = 5) -> list[float | int | None]:
    """Return numbers for JSON."""
    return [number(value, digits) for value in values]


def natural_rate(problem: BlockQuadratic, method: Method) -> float:
    """Return the order of magnitude from which a method's best constant learning rate is sought.

    The edge of stability 2/L for GD and 2/a_max for frozen Adam; the longest way to go, ||x_0||_inf, for
    methods whose steps have length 1.
    """
    if method.family == "gd":
        return 2.0 / curvature(problem).largest
    if isinstance(method, Adam) and method.frozen:
        return 2.0 / float(frozen_preconditioner(problem).eigenvalues.max())
    return float(np.abs(problem.displacement).max())


def best_constant(
    problem: BlockQuadratic,
    method: Method,
    stop: Stop,
    *,
    cap: int,
    per_decade: int = 5,
    refine: int = 11,
    high: float = 1.0,
) -> BestLearningRate:
    """Return the best constant learning rate over a log grid, then over a finer one around the best.

    The first grid covers, in powers of ten of `natural_rate`, -5 to `high`; -2 to 0.2 for frozen Adam and
    -0.45 to 0.05 for GD, whose best lie a factor below the edge of stability (for GD a known one, at most 2).

    The caps rise tenfold up to `cap`, and the search ends at the first that lets a run converge: a run that
    needs more updates than that cannot be the best.

    Parameters
    ----------
    problem, method, stop
        As for `best_learning_rate`.
    cap : int
        The last cap. If no run converges below it, the result's ``learning_rate`` is None.
    per_decade : int
        Points a decade of the first grid; GD has 20.
    refine : int
        Points of the finer grid, which covers two gaps of the first; 0 for none.
    high : float
        The end of the first grid; Adam with a large epsilon takes long steps.
    """
    low = -5.0
    if method.family == "gd":
        low, high, per_decade = -0.45, 0.05, 20
    elif isinstance(method, Adam) and method.frozen:
        low, high = -2.0, 0.2
    grid = 10.0 ** np.linspace(low, high, round((high - low) * per_decade) + 1)
    rates = natural_rate(problem, method) * grid
    for limit in [c for c in (10**k for k in range(2, 9)) if c < cap] + [cap]:
        found = best_learning_rate(problem, method, stop, learning_rates=rates, max_iterations=limit)
        if found.learning_rate is not None and found.iterations is not None:
            break
    else:
        return found
    if refine == 0 or found.iterations == 0:
        return found
    finer = found.learning_rate * 10.0 ** np.linspace(-1.0 / per_decade, 1.0 / per_decade, refine)
    return best_learning_rate(problem, method, stop, learning_rates=finer, max_iterations=found.iterations)
