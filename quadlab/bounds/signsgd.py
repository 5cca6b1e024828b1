r"""SignSGD: w+ = w - eta sign(g), native test ||g||_1 <= P eps.

Adam with beta1 = beta2 = epsilon = 0 is SignSGD to the bit (:func:`quadlab.bounds.adam.is_signsgd`), so all
of these hold for it as well.

**Descent.** With s = sign(g), g.s = ||g||_1, and s^T H s <= M* also where s has zeros (convex in s, hence
largest at the corners of the cube). For any M >= M*,

    f+ <= f - eta ||g||_1 + (eta^2 / 2) M.
       (1)

The step eta = ||g||_1 / M gives f+ <= f - ||g||_1^2 / (2 M). The lemma's step is this with the present
M_t = sum_b ||H_b|| (number of nonzeros of g_b) <= P Lambda_P; the line search is it with the exact s^T H s <=
M*; so each obeys the inequality with its own M and every larger one. Since M* <= P Lambda_P, all three obey M
= P Lambda_P.

**Linear.** ||g||_1^2 >= 2 mu_inf f gives f+ <= (1 - mu_inf / M) f.

**Constant step**, theta = eta M / (P eps) < 2. Before the stop ||g||_1 > P eps, so (1) gives
f+ < f - eta (P eps - eta M / 2); and also f+ <= f - eta (1 - theta / 2) ||g||_1 <= f - c sqrt(f) with
c = eta (1 - theta / 2) sqrt(2 mu_inf), hence sqrt(f+) <= sqrt(f) - c / 2, since f - c sqrt(f) <= (sqrt(f) - c
/ 2)^2.

**Neighbourhood.** (1) reads f+ <= h(sqrt f), h(u) = u^2 - c u + e with c = eta sqrt(2 mu_inf), e = eta^2 M /
2, which is below f as long as sqrt(f) > e / c. On [0, U] the convex h is largest at an end: h(0) = e, and
h(U) <= U^2 if U >= e / c. So {f <= max(e, (e / c)^2)} is never left, and f sinks to it. Above (1 + s)^2 (e /
c)^2 a step lowers sqrt(f) by at least c s / (2 (1 + s)), which bounds the time that takes.

**Diagonal H.** Coordinates with H_ii > 0 move on their own: |x_i| sinks by eta while above eta, and |x_i| <=
eta stays.
"""

from __future__ import annotations

import math

import numpy as np

from quadlab.bounds import verdict
from quadlab.bounds.gd import linear_count, log_ratio
from quadlab.bounds.lemma import per_step
from quadlab.bounds.registry import bound
from quadlab.bounds.setting import Assumption, Setting, assume, is_diagonal, no_momentum
from quadlab.problem import BlockQuadratic

#: The margin s of `neighbourhood`.
NEIGHBOURHOOD_MARGIN = 1.0


def step_constant(s: Setting) -> float:
    """Return the M of the run's step rule: P Lambda_P for the lemma's step, else the upper value of M*.

    Parameters
    ----------
    s : Setting
        Of a run of SignSGD.
    """
    return s.size * s.curvature.parameter_weighted if s.rule == "lemma" else s.curvature.m_star_upper


def theta(s: Setting) -> float:
    """Return theta = eta M / (P eps) of a constant step, with the upper value of M*.

    Parameters
    ----------
    s : Setting
        With a constant step and target l1.
    """
    return s.step * s.curvature.m_star_upper / s.tolerance


theta_below_two = Assumption(
    lambda s: theta(s) < 2.0,
    lambda s: f"theta = eta M / (P eps) must be below 2, it is {theta(s):.6g}",
)
diagonal_hessian = assume("H must be diagonal")(lambda s: is_diagonal(s.problem))


@bound(
    "signsgd.parameter_weighted",
    family="signsgd",
    rules=("lemma", "m_star", "line_search"),
    target="l1",
    assumes=(no_momentum,),
    formula="2 Lambda_P Delta / (P eps^2)",
    source="tomihari2025",
    status="derived; the paper's constants unconfirmed",
)
def parameter_weighted(s: Setting) -> float:
    r"""Count of SignSGD with a step ||g||_1 / M, M <= P Lambda_P, by Lambda_P.

    .. math:: T < \frac{2 M\Delta}{(P\epsilon)^2} = \frac{2\Lambda_P\Delta}{P\epsilon^2}, \qquad M =
              P\Lambda_P

    Upper bound, a priori (strict); from the lemma with d = sign g. Assumes no momentum. Holds for the steps
    of the lemma (alias "lambda_p"), "m_star" and "line_search".

    Parameters
    ----------
    s : Setting
        With target l1.

    Returns
    -------
    float
        The bound on the number of updates.

    References
    ----------
    Derived; form of tomihari2025, whose constants are unconfirmed.

    Examples
    --------
    >>> import quadlab as ql
    >>> p = ql.BlockQuadratic.from_blocks([[1.0, 4.0]], start=[4.0, 1.0], minimizer=[0.0, 0.0])
    >>> parameter_weighted(Setting.of(p, ql.SignSGD("lambda_p"), ql.GradientNorm(1.0, ord=1)))
    40.0
    """
    return per_step(2.0 * s.size * s.curvature.parameter_weighted * s.delta, 1.0, s.tolerance)


@bound(
    "signsgd.m_star",
    family="signsgd",
    rules=("m_star", "line_search"),
    target="l1",
    assumes=(no_momentum,),
    formula="2 M* Delta / (P eps)^2",
)
def m_star(s: Setting) -> float:
    r"""Count of SignSGD with the step ||g||_1 / M*.

    .. math:: T < \frac{2 M^*\Delta}{(P\epsilon)^2}, \qquad M^* = \max_{s \in \{-1,1\}^P} s^T H s

    Upper bound, a priori (strict). Where M* is only bounded, the same upper value stands in the step and here
    (``Curvature.m_star_source`` names it). Assumes no momentum.

    Parameters
    ----------
    s : Setting
        With target l1.

    Returns
    -------
    float
        The bound on the number of updates.

    References
    ----------
    Derived; balles2020 for M*.

    Examples
    --------
    >>> import quadlab as ql
    >>> p = ql.BlockQuadratic.from_blocks([[1.0, 4.0]], start=[4.0, 1.0], minimizer=[0.0, 0.0])
    >>> m_star(Setting.of(p, ql.SignSGD("m_star"), ql.GradientNorm(1.0, ord=1)))  # M* = 5
    25.0
    """
    return per_step(2.0 * s.curvature.m_star_upper * s.delta, 1.0, s.tolerance)


@bound(
    "signsgd.linear",
    family="signsgd",
    rules=("lemma", "m_star", "line_search"),
    target="gap",
    form="log",
    assumes=(no_momentum,),
    formula="ln(Delta / delta) / -ln(1 - mu_inf / M), delta = (P eps)^2 / (2 M*) for the l1 test",
)
def linear(s: Setting) -> float:
    r"""Count of SignSGD with a step ||g||_1 / M, linear in ln(1 / eps).

    .. math:: N = \frac{\ln(\Delta/\delta)}{-\ln(1 - \mu_\infty/M)},
              \qquad \delta = \frac{(P\epsilon)^2}{2M^*}\ \text{for}\ \|g\|_1 \le P\epsilon

    Upper bound on the last unstopped index, a priori (log): f+ <= (1 - mu_inf / M) f. M is P Lambda_P for the
    lemma's step, else (the upper value of) M*. If mu_inf = M no index after the first is unstopped: N = 0
    here, which rounds to a count of 1. M* / mu_inf >= P for a positive definite H: the rate pays the
    dimension. Assumes no momentum.

    Parameters
    ----------
    s : Setting
        With target gap (the registry converts the test on the norm).

    Returns
    -------
    float
        N before rounding up.

    References
    ----------
    Derived.

    Examples
    --------
    >>> import quadlab as ql
    >>> p = ql.BlockQuadratic.from_blocks([[1.0, 1.0]], start=[4.0, 2.0], minimizer=[0.0, 0.0])
    >>> round(linear(Setting.of(p, ql.SignSGD("m_star"), ql.Gap(10 / 2**7))), 9)  # mu_inf = 1, M* = 2
    7.0
    """
    return linear_count(log_ratio(s.delta, s.tolerance), 1.0 - s.curvature.mu_inf / step_constant(s))


@bound(
    "signsgd.constant_step",
    family="signsgd",
    rules="constant",
    target="l1",
    assumes=(no_momentum, theta_below_two),
    formula="Delta / (eta (P eps - eta M / 2)), eta < 2 P eps / M",
)
def constant_step(s: Setting) -> float:
    r"""Count of SignSGD with a constant step.

    .. math:: T < \frac{\Delta}{\eta\,(P\epsilon - \eta M/2)}, \qquad \eta = \theta P\epsilon/M,\ 0 < \theta <
              2

    Upper bound, a priori (strict); least at theta = 1, where it is 2 M Delta / (P eps)^2. M is (the upper
    value of) M*. Assumes no momentum and eta < 2 P eps / M.

    Parameters
    ----------
    s : Setting
        With a constant step eta (the unit of w) and target l1.

    Returns
    -------
    float
        The bound on the number of updates.

    References
    ----------
    Derived; bernstein2018 for the argument.

    Examples
    --------
    >>> import quadlab as ql
    >>> p = ql.BlockQuadratic.from_blocks([[1.0, 4.0]], start=[4.0, 1.0], minimizer=[0.0, 0.0])
    >>> round(constant_step(Setting.of(p, ql.SignSGD(0.4), ql.GradientNorm(1.0, ord=1))), 9)
    25.0
    """
    return s.delta / (s.step * (s.tolerance - 0.5 * s.step * s.curvature.m_star_upper))


@bound(
    "signsgd.constant_step_pl",
    family="signsgd",
    rules="constant",
    target="l1",
    assumes=(no_momentum, theta_below_two),
    formula="2 sqrt(Delta) / (eta (1 - theta / 2) sqrt(2 mu_inf)), theta = eta M / (P eps) < 2",
)
def constant_step_pl(s: Setting) -> float:
    r"""Count of SignSGD with a constant step, in 1 / eps.

    .. math:: T < \frac{2\sqrt\Delta}{\eta\,(1 - \theta/2)\sqrt{2\mu_\infty}}, \qquad \theta = \frac{\eta
              M}{P\epsilon} < 2

    Upper bound, a priori (strict); at theta = 1 it is 2 sqrt(2) M sqrt(Delta / mu_inf) / (P eps). M is (the
    upper value of) M*. Assumes no momentum and eta < 2 P eps / M.

    Parameters
    ----------
    s : Setting
        With a constant step eta (the unit of w) and target l1.

    Returns
    -------
    float
        The bound on the number of updates.

    References
    ----------
    Derived.

    Examples
    --------
    >>> import quadlab as ql
    >>> p = ql.BlockQuadratic.from_blocks([[2.0, 2.0]], start=[4.0, 0.0], minimizer=[0.0, 0.0])
    >>> round(constant_step_pl(Setting.of(p, ql.SignSGD(0.5), ql.GradientNorm(1.0, ord=1))), 9)  # theta = 1
    16.0
    """
    slope = s.step * (1.0 - 0.5 * theta(s)) * math.sqrt(2.0 * s.curvature.mu_inf)
    return 2.0 * math.sqrt(s.delta) / slope


def neighbourhood_start(s: Setting) -> float:
    r"""Return the first index that `neighbourhood` covers.

    It is 2 (1 + 1/s) sqrt(Delta) / (eta sqrt(2 mu_inf)), rounded up.

    Parameters
    ----------
    s : Setting
        With a constant step.
    """
    slope = s.step * math.sqrt(2.0 * s.curvature.mu_inf)
    return verdict.first_index(2.0 * (1.0 + 1.0 / NEIGHBOURHOOD_MARGIN) * math.sqrt(s.delta) / slope)


@bound(
    "signsgd.neighbourhood",
    family="signsgd",
    rules="constant",
    quantity="tail_gap",
    form="equality",
    assumes=(no_momentum,),
    formula="eta^2 max(M / 2, M^2 / (2 mu_inf)) for t >= 4 sqrt(Delta) / (eta sqrt(2 mu_inf))",
    tail_start=neighbourhood_start,
)
def neighbourhood(s: Setting) -> float:
    r"""Largest gap of SignSGD with a constant step, once it has settled.

    .. math:: f_t - f^* \le \eta^2 \max\Bigl(\frac M2, \frac{(1+s)^2 M^2}{8\mu_\infty}\Bigr)
              \quad\text{for all}\ t \ge 2\Bigl(1 + \frac1s\Bigr)\frac{\sqrt\Delta}{\eta\sqrt{2\mu_\infty}}

    Upper bound on a statistic, for any s > 0; here s = 1. In the limit limsup f_t - f* <= eta^2 max(M / 2,
    M^2 / (8 mu_inf)), the value at s = 0 (`neighbourhood_limit`), and f stays below that once it is. M is
    (the upper value of) M*. Assumes no momentum.

    Parameters
    ----------
    s : Setting
        With a constant step eta (the unit of w); the stopping test does not matter.

    Returns
    -------
    float
        The bound on the gap, in the unit of f.

    References
    ----------
    Derived.

    Examples
    --------
    >>> import quadlab as ql
    >>> p = ql.BlockQuadratic.from_blocks([[1.0, 4.0]], start=[4.0, 1.0], minimizer=[0.0, 0.0])
    >>> s = Setting.of(p, ql.SignSGD(0.25), ql.Gap(1e-9))
    >>> neighbourhood(s), neighbourhood_limit(s), neighbourhood_start(s)  # M* = 5, mu_inf = 1
    (0.78125, 0.1953125, 36.0)
    """
    return _neighbourhood(s, NEIGHBOURHOOD_MARGIN)


def neighbourhood_limit(s: Setting) -> float:
    r"""Return the bound on limsup f_t - f*, eta^2 max(M / 2, M^2 / (8 mu_inf)).

    Parameters
    ----------
    s : Setting
        With a constant step.
    """
    return _neighbourhood(s, 0.0)


def _neighbourhood(s: Setting, margin: float) -> float:
    m = s.curvature.m_star_upper
    return s.step**2 * max(0.5 * m, (1.0 + margin) ** 2 * m * (m / (8.0 * s.curvature.mu_inf)))


def diagonal_start(s: Setting) -> float:
    r"""Return the first index that `diagonal_neighbourhood` covers, max(0, ceil(||x_0||_inf / eta) - 1).

    The maximum is over coordinates with H_ii > 0. A ratio within rounding of a whole number counts as the
    next one.

    Parameters
    ----------
    s : Setting
        With a constant step.
    """
    return max(0.0, verdict.first_index(_largest_displacement(s.problem) / s.step) - 1.0)


def _largest_displacement(problem: BlockQuadratic) -> float:
    moving = problem.hessian_diagonal() > 0.0
    return float(np.max(np.abs(problem.displacement), where=moving, initial=0.0))


@bound(
    "signsgd.diagonal_neighbourhood",
    family="signsgd",
    rules="constant",
    quantity="tail_displacement",
    form="equality",
    assumes=(no_momentum, diagonal_hessian),
    formula="eta for t >= max(0, ceil(||x_0||_inf / eta) - 1)",
    tail_start=diagonal_start,
)
def diagonal_neighbourhood(s: Setting) -> float:
    r"""Largest displacement of SignSGD with a constant step on a diagonal H, once it has settled.

    .. math:: |x_i| \le \eta \quad\text{for all}\ t \ge \max(0, \lceil \|x_0\|_\infty/\eta \rceil - 1)\
              \text{and}\ H_{ii} > 0

    Upper bound on a statistic (attained); it does not depend on H. Assumes no momentum and a diagonal H.

    Parameters
    ----------
    s : Setting
        With a constant step eta (the unit of w); the stopping test does not matter.

    Returns
    -------
    float
        eta.

    References
    ----------
    Derived.

    Examples
    --------
    >>> import quadlab as ql
    >>> p = ql.BlockQuadratic.from_blocks([[1.0, 4.0]], start=[4.1, 1.0], minimizer=[0.0, 0.0])
    >>> s = Setting.of(p, ql.SignSGD(0.5), ql.Gap(1e-9))
    >>> diagonal_neighbourhood(s), diagonal_start(s)
    (0.5, 8.0)
    """
    return s.step
