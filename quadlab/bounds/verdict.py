r"""The verdict: when a measurement agrees with a bound; the only home of rounding rules.

Let T be the number of updates made when the stopping test first holds, and N the number that a bound's
formula gives. Three forms of statement, by the inequality that their proof ends in:

========  ======================================  ==============================================
form      what the proof says, exactly            the largest count that is allowed
========  ======================================  ==============================================
strict    T < N, or T = 0                         floor(N (1 + 1e-9))
log       every index t before the stop is < N    0 if the test holds at w_0, else
                                                  max(1, ceil(N + 1e-9 max(1, N)))
equality  T <= N, and T = N happens               floor(N (1 + 1e-12))
========  ======================================  ==============================================

An upper bound on the count is then judged so:

* stopped: it holds if and only if T is allowed;
* not stopped: violated if more updates than allowed were made, or if the run diverged; else inconclusive;
* a bound that uses maxima along the trajectory, on a run that did not stop: inconclusive.

An exact count has to be met, except within a near tie: the count is also computed for the tolerance changed
by 1e-6 relative either way, and a count between the two is inconclusive. A statement on a statistic (such as
the least f_{t+1} / f_t) is compared with a relative 1e-12, or with the resolution of the statistic where that
is coarser.

Resolution. With u = 2^-53, a float64 product H x carries an error of about u sqrt(P) L ||x||, whatever the
size of H x itself. So a stopping test whose tolerance lies below that error of its own quantity tests
rounding: what it contradicts is inconclusive. In the same way f = x^T H x / 2 is known to about u sqrt(P) L
||x||^2, which is u sqrt(P) kappa relative to f, and more where x has a part in the null space of H: no ratio
of gaps can be tested more finely. A diagonal H has no such error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

Kind = Literal["upper", "lower", "exact"]
Form = Literal["strict", "log", "equality"]

KINDS: tuple[Kind, ...] = ("upper", "lower", "exact")
FORMS: tuple[Form, ...] = ("strict", "log", "equality")

COUNT_SLACK = 1e-9
EQUALITY_SLACK = 1e-12
TIE = 1e-6

#: Standard deviations of a rounding error that count as possible, times the unit roundoff 2^-53.
_ROUNDING = 8 * 2.0**-53


def allowed_iterations(form: Form, value: float, *, holds_at_start: bool = False) -> float:
    """Return the largest count that an upper bound of value N allows.

    Parameters
    ----------
    form : {"strict", "log", "equality"}
        What the proof says; see the module's table.
    value : float
        N >= 0; inf allows every count.
    holds_at_start : bool
        Whether the stopping test holds at w_0.

    Returns
    -------
    float
        A whole number, or inf.

    Examples
    --------
    >>> allowed_iterations("strict", 7.2), allowed_iterations("log", 7.2), allowed_iterations("log", 0.0)
    (7.0, 8.0, 1.0)
    """
    if form == "log" and holds_at_start:
        return 0.0
    if math.isinf(value):
        return value
    if form == "log":
        return max(1.0, float(math.ceil(value + COUNT_SLACK * max(1.0, value))))
    slack = COUNT_SLACK if form == "strict" else EQUALITY_SLACK
    return float(max(0, math.floor(value * (1.0 + slack))))


def required_iterations(form: Form, value: float) -> float:
    """Return the least count that a lower bound of value N requires, the mirror image of the upper rule.

    Parameters
    ----------
    form : {"strict", "log", "equality"}
        "strict" and "log" give way by 1e-9, "equality" by 1e-12.
    value : float
        N; the statement is T >= N.

    Returns
    -------
    float
        A whole number, or inf.

    Examples
    --------
    >>> required_iterations("strict", 7.2), required_iterations("equality", 7.0)
    (8.0, 7.0)
    """
    if math.isinf(value):
        return value
    slack = EQUALITY_SLACK if form == "equality" else COUNT_SLACK
    return float(max(0, math.ceil(value - slack * max(1.0, abs(value)))))


def first_index(value: float) -> float:
    """Return the first whole t at which a statement "for all t >= value" is tested.

    Parameters
    ----------
    value : float
        A real time; rounding in it could name a whole number that is one too small.

    Returns
    -------
    float
        max(0, ceil(value + 1e-9 max(1, value))), or inf.

    Examples
    --------
    >>> first_index(2.5), first_index(3.0), first_index(-1.0)
    (3.0, 4.0, 0.0)
    """
    if not math.isfinite(value):
        return math.inf
    return float(max(0, math.ceil(value + COUNT_SLACK * max(1.0, value))))


def judge_count(
    kind: Kind,
    form: Form,
    value: float,
    *,
    iterations: int,
    converged: bool,
    diverged: bool = False,
    a_posteriori: bool = False,
    near: Callable[[], tuple[float, float]] | None = None,
    resolved: Callable[[], bool] | None = None,
) -> bool | None:
    """Judge a statement about the iteration count.

    Parameters
    ----------
    kind : {"upper", "lower", "exact"}
        Which side of the count the statement bounds.
    form : {"strict", "log", "equality"}
        The rounding rule of an upper or lower bound.
    value : float
        The number that the formula gives; inf for "never".
    iterations : int
        Updates made: the count if the run stopped.
    converged, diverged : bool
        How the run ended; neither means that it was cut short.
    a_posteriori : bool
        Whether the value uses maxima along the trajectory.
    near : callable, optional
        Gives the exact count's smallest and largest value within a near tie; called only on a mismatch.
    resolved : callable, optional
        Whether the tolerance lies above the rounding of the tested quantity; called only before False.

    Returns
    -------
    bool or None
        True (holds), False (violated), None (inconclusive).

    Examples
    --------
    >>> judge_count("upper", "strict", 9.5, iterations=9, converged=True)
    True
    >>> judge_count("upper", "strict", 9.5, iterations=9, converged=False), judge_count(
    ...     "upper", "strict", 9.5, iterations=8, converged=False)
    (False, None)
    """
    if math.isnan(value) or (a_posteriori and not converged):
        return None
    if kind == "upper":
        verdict = _upper_count(form, value, iterations, converged, diverged)
    elif kind == "lower":
        verdict = _lower_count(form, value, iterations, converged, diverged)
    else:
        verdict = _exact_count(value, iterations, converged, diverged, near)
    return None if verdict is False and resolved is not None and not resolved() else verdict


def _upper_count(form: Form, value: float, iterations: int, converged: bool, diverged: bool) -> bool | None:
    allowed = allowed_iterations(form, value, holds_at_start=converged and iterations == 0)
    if converged:
        return iterations <= allowed
    # the test was made, and failed, after the last update: the count is above `iterations`
    return False if iterations >= allowed or (diverged and math.isfinite(allowed)) else None


def _lower_count(form: Form, value: float, iterations: int, converged: bool, diverged: bool) -> bool | None:
    required = required_iterations(form, value)
    if converged:
        return iterations >= required
    return True if diverged or iterations + 1 >= required else None


def _exact_count(
    value: float,
    iterations: int,
    converged: bool,
    diverged: bool,
    near: Callable[[], tuple[float, float]] | None,
) -> bool | None:
    if converged and iterations == value:
        return True
    if not converged and not diverged and iterations < value:
        return None
    low, high = near() if near is not None else (value, value)
    if converged:
        return None if low <= iterations <= high else False
    return False if (math.isfinite(high) if diverged else iterations >= high) else None


def judge_statistic(kind: Kind, value: float, measured: float | None, *, error: float = 0.0) -> bool | None:
    """Judge a statement about a statistic of the trajectory, or about a constant.

    Parameters
    ----------
    kind : {"upper", "lower", "exact"}
        Which side the statement bounds.
    value : float
        The number that the formula gives.
    measured : float or None
        The statistic; None or NaN (nothing was measured) is inconclusive.
    error : float
        To what the statistic is known; used where it exceeds 1e-12 of the value.

    Returns
    -------
    bool or None
        True (holds), False (violated), None (inconclusive).

    Examples
    --------
    >>> judge_statistic("upper", 1.0, 1.0 + 1e-13), judge_statistic("upper", 1.0, 1.0 + 1e-11)
    (True, False)
    """
    if measured is None or math.isnan(measured) or math.isnan(value):
        return None
    if measured == math.inf and kind == "lower":  # the least of nothing
        return None
    if measured == value:
        return True
    if math.isinf(value):
        return None if kind == "exact" else (measured < value) is (kind == "upper")
    slack = max(EQUALITY_SLACK * abs(value), error)
    above, below = measured > value + slack, measured < value - slack
    return not (above if kind == "upper" else below if kind == "lower" else above or below)


def rounding_error(test: str, size: int, largest: float, displacement: float) -> float:
    """Return how far rounding alone may move the quantity of a stopping test.

    Parameters
    ----------
    test : {"l1", "l2", "linf", "gap"}
        The tested quantity.
    size : int
        P.
    largest : float
        L.
    displacement : float
        ||x||_2.

    Returns
    -------
    float
        8 u sqrt(P) L ||x|| for the l_2 and l_inf norms of g, sqrt(P) times that for l_1, and
        8 u sqrt(P) L ||x||^2 for the gap.

    Examples
    --------
    >>> rounding_error("l2", 1, 1.0, 1.0) == 8 * 2.0**-53
    True
    """
    error = _ROUNDING * math.sqrt(size) * largest * displacement
    if test == "gap":
        return error * displacement
    return error * math.sqrt(size) if test == "l1" else error


def near_tie(relative_error: float) -> float:
    """Return the relative change of the tolerance that makes a near tie: 1e-6, or the rounding where coarser.

    Parameters
    ----------
    relative_error : float
        Rounding error of the tested quantity over the tolerance.

    Examples
    --------
    >>> near_tie(1e-9), near_tie(1e-3)
    (1e-06, 0.001)
    """
    return max(TIE, relative_error)


def ratio_error(size: int, condition_number: float, gap_error: float, ratio: float) -> float:
    """Return to what a ratio f_{t+1} / f_t of a trajectory is known.

    Two errors add: that of f itself, and that of the step, which leaves rounding of the size of u ||x|| in
    the new x, whatever the factor sqrt(ratio) by which x should have shrunk.

    Parameters
    ----------
    size : int
        P.
    condition_number : float
        kappa for H with off-diagonal entries, 1 for a diagonal one.
    gap_error : float
        Rounding error of the last gap over that gap; 0 for a diagonal H.
    ratio : float
        The ratio, >= 0.

    Examples
    --------
    >>> ratio_error(9, 1.0, 0.0, 0.25) < 1e-14
    True
    """
    step = _ROUNDING * math.sqrt(size * condition_number)
    field = _ROUNDING * math.sqrt(size) * condition_number if condition_number > 1.0 else 0.0
    return ratio * (field + gap_error) + step * (2.0 * math.sqrt(ratio) + step)


def constant_error(size: int, condition_number: float) -> float:
    """Return to what a condition number computed in float64 is known.

    Parameters
    ----------
    size : int
        P.
    condition_number : float
        The computed value; its smallest eigenvalue is known to u sqrt(P) of the largest.

    Examples
    --------
    >>> constant_error(1, 1e6) < 1e-3
    True
    """
    return _ROUNDING * math.sqrt(size) * condition_number * condition_number
