r"""Gradient descent: w+ = w - eta g, native test ||g||_2 <= sqrt(P) eps.

**Descent.** From the lemma (d = g, Lambda_G = sum_b (||g_b||^2 / ||g||^2) ||H_b||): with eta = 1 /
Lambda_G(t), or with the exact line search, f+ <= f - ||g||^2 / (2 Lambda_G). Before the stop ||g||^2 > P
eps^2; summing over t < T,

    sum_{t<T} 1 / Lambda_G(t) < 2 Delta / (P eps^2),

which is T < 2 h Delta / (P eps^2) with h the harmonic mean of Lambda_G along the run, at most its maximum, at
most L. With a constant eta and eta Lambda_G(t) <= 1 along the run (always so if eta <= 1/L): f+ <= f -
(eta/2) ||g||^2.

**Linear.** ||g||^2 >= 2 mu_+ f turns these into f+ <= (1 - mu_+ / Lambda_G) f. So f_t <= Delta exp(-t mu_+ /
sup Lambda_G), and an index t at which f_t is still above delta is below (sup Lambda_G / mu_+) ln(Delta /
delta). The test on the norm is certified by delta = P eps^2 / (2 L).

**Closed form.** In the eigenbasis of H a constant step multiplies the component gamma_i of g by 1 - eta
lam_i:

    ||g_t||^2 = sum_i (1 - eta lam_i)^(2t) gamma_i^2,      f_t = sum_i (1 - eta lam_i)^(2t) gamma_i^2 / (2
    lam_i).

While |1 - eta lam_i| <= 1 for all i both are nonincreasing in t, so the first t at which one is below its
tolerance is found by bisection, without simulating. That needs only the l_2 norm or the gap: ||g||_1 and
||g||_inf are no sums over eigendirections, and may rise. |1 - eta lam_i| <= 1 is asked of all eigenvalues,
also where gamma_i = 0, because rounding excites those.

**From below.** Let w_0 have gradients of equal size along one eigenvector each of mu and L, and none
elsewhere. f_{t+1} / f_t is the mean of a = (1 - eta mu)^2 and b = (1 - eta L)^2 with weights a^t / mu, b^t /
L; it rises with t, as the larger factor gains weight. At t = 0 it is (L a + mu b) / (L + mu), least at eta =
2 / (mu + L), with value rho^2, rho = (kappa - 1) / (kappa + 1). The *square* is attained there at every t, so
a version without it is false.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from quadlab.bounds.lemma import per_step
from quadlab.bounds.registry import bound
from quadlab.bounds.setting import Assumption, Setting, assume, no_momentum
from quadlab.closed_form import FOREVER, linear_iteration, spectral_shares, stability_edge

Array = NDArray[np.float64]

DESCENT_RULES = ("lemma", "line_search")
#: How unequal the two starting components of `zhang_lower` may be: the ratio is stationary there, so that an
#: inequality of 1e-8 changes it by 1e-16.
_EQUAL = 1e-8

# Tools ----------------------------------------------------------------------------------------------------


def log_ratio(value: float, target: float) -> float:
    """Return ln(value / target), at least 0 and free of overflow.

    Parameters
    ----------
    value, target : float
        >= 0.

    Examples
    --------
    >>> log_ratio(1.0, 2.0), log_ratio(0.0, 1.0), round(log_ratio(1e300, 1e-300))
    (0.0, 0.0, 1382)
    """
    if not value > target:
        return 0.0
    return math.log(value) - math.log(target) if target > 0.0 else math.inf


def linear_count(decades: float, factor: float) -> float:
    """Return decades / ln(1 / factor), when a quantity that shrinks by ``factor`` a step meets its target.

    Parameters
    ----------
    decades : float
        The natural logarithm to be gained, >= 0.
    factor : float
        Contraction per step in [0, 1]: 0 gives 0 (no index after the first is unstopped), 1 gives inf.

    Examples
    --------
    >>> round(linear_count(math.log(8.0), 0.5), 12), linear_count(3.0, 0.0), linear_count(3.0, 1.0)
    (3.0, 0.0, inf)
    """
    if factor <= 0.0 or decades == 0.0:
        return 0.0
    return decades / -math.log(factor) if factor < 1.0 else math.inf


def closed_form_count(s: Setting) -> float:
    """Return the exact count of a linear iteration; inf if the run never stops.

    Parameters
    ----------
    s : Setting
        With target l2 or gap, and a method and step that :mod:`quadlab.closed_form` takes.
    """
    name = "gap" if s.target == "gap" else "grad_l2"
    count = linear_iteration(s.problem, s.method, s.step).count(name, s.tolerance, FOREVER)
    return math.inf if count is None else float(count)


def is_stable(z: float, momentum: float, nesterov: bool = False) -> bool:
    """Return whether a mode at z keeps its size or loses it; with momentum it has to lose it.

    Examples
    --------
    >>> is_stable(2.0, 0.0), is_stable(3.0, 0.5), is_stable(2.9, 0.5)
    (True, False, True)
    """
    edge = stability_edge(momentum, nesterov)
    return z < edge if momentum else z <= edge


def contraction_factor(learning_rate: float, smallest: float, largest: float) -> float:
    """Return rho = max |1 - eta a| over a in [smallest, largest].

    Parameters
    ----------
    learning_rate : float
        eta.
    smallest, largest : float
        The least and the greatest positive eigenvalue.

    Examples
    --------
    >>> contraction_factor(0.5, 1.0, 3.0)
    0.5
    """
    return max(abs(1.0 - learning_rate * smallest), abs(1.0 - learning_rate * largest))


# Assumptions ----------------------------------------------------------------------------------------------

stable = Assumption(
    lambda s: is_stable(s.step * s.curvature.largest, s.method.momentum, s.method.nesterov),
    lambda s: (
        f"eta must be {'below' if s.method.momentum else 'at most'} {_edge(s):.6g}/L = "
        f"{_edge(s) / s.curvature.largest:.6g}, it is {s.step:.6g}"
    ),
)
short_step = Assumption(
    lambda s: s.step * s.curvature.largest <= 1.0 or s.step <= 1.0 / s.curvature.largest,
    lambda s: f"eta must be at most 1/L = {1.0 / s.curvature.largest:.6g}, it is {s.step:.6g}",
)
contracts = Assumption(
    lambda s: _rho(s) < 1.0,
    lambda s: f"rho = max |1 - eta lam| must be below 1, it is {_rho(s):.6g}",
)
self_consistent = Assumption(
    lambda s: s.stat("sup_step_lambda_g") <= 1.0,
    lambda s: (
        f"eta Lambda_G(t) must stay at most 1 along the run, it reached {s.stat('sup_step_lambda_g'):.6g}"
    ),
)


@assume(
    "w_0 must have gradients of equal size along one eigenvector each of mu and L (0 < mu < L), and none else"
)
def two_eigenvectors(s: Setting) -> bool:
    """Return whether the gradient at w_0 lives, in equal parts, at mu_+ and at L alone."""
    known = s.problem.cache.get("two_eigenvectors")
    if known is None:
        known = s.problem.cache["two_eigenvectors"] = _two_eigenvectors(s)
    return known


def _two_eigenvectors(s: Setting) -> bool:
    c = s.curvature
    # the components of g at w_0 are themselves known to kappa u
    width = max(_EQUAL, 16.0 * 2.0**-53 * c.condition_number)
    if not c.smallest_positive < c.largest or width > 1e-5:
        return False
    shares, _ = spectral_shares(s.problem)
    values = s.problem.eigenvalues
    low = float(shares[np.abs(values - c.smallest_positive) <= 1e-12 * c.smallest_positive].sum())
    high = float(shares[np.abs(values - c.largest) <= 1e-12 * c.largest].sum())
    rest = float(shares.sum()) - low - high
    return high > 0.0 and abs(low - high) <= 2.0 * width * high and rest <= (width * width + 1e-15) * high


def _edge(s: Setting) -> float:
    return stability_edge(s.method.momentum, s.method.nesterov)


def _rho(s: Setting) -> float:
    return contraction_factor(s.step, s.curvature.smallest_positive, s.curvature.largest)


# Step 1 / Lambda_G(t) -------------------------------------------------------------------------------------


@bound(
    "gd.gradient_weighted",
    family="gd",
    rules=DESCENT_RULES,
    target="l2",
    needs="sup_lambda_g",
    assumes=(no_momentum,),
    formula="2 sup_t Lambda_G(t) Delta / (P eps^2)",
    source="tomihari2025",
    status="derived; the paper's constants unconfirmed",
)
def gradient_weighted(s: Setting) -> float:
    r"""Count of GD with step 1 / Lambda_G(t), by the largest Lambda_G.

    .. math:: T < \frac{2 \sup_{t<T}\Lambda_G(t)\,\Delta}{P\epsilon^2}

    Upper bound, a posteriori (strict); from the lemma with d = g. Assumes no momentum. Also holds for the
    exact line search.

    Parameters
    ----------
    s : Setting
        With the statistic "sup_lambda_g" (the unit of H) and target l2.

    Returns
    -------
    float
        The bound on the number of updates.

    Raises
    ------
    MissingStatisticError
        If the statistic was not recorded.

    References
    ----------
    Derived; form of tomihari2025, whose constants are unconfirmed.

    Examples
    --------
    >>> import quadlab as ql
    >>> p = ql.BlockQuadratic.from_blocks([[1.0, 4.0]], start=[4.0, 1.0], minimizer=[0.0, 0.0])
    >>> s = Setting.of(p, ql.GD("lambda_g"), ql.GradientNorm(1.0, ord=2), {"sup_lambda_g": 4.0})
    >>> round(gradient_weighted(s), 9)  # Delta = 10, P = 2
    40.0
    """
    return per_step(2.0 * s.stat("sup_lambda_g") * s.delta, 1.0, s.tolerance)


@bound(
    "gd.gradient_weighted_harmonic",
    family="gd",
    rules=DESCENT_RULES,
    target="l2",
    needs="harmonic_lambda_g",
    assumes=(no_momentum,),
    formula="2 harmonic_t Lambda_G(t) Delta / (P eps^2)",
    source="tomihari2025",
    status="derived; the paper's constants unconfirmed",
)
def gradient_weighted_harmonic(s: Setting) -> float:
    r"""Count of GD with step 1 / Lambda_G(t), by the harmonic mean of Lambda_G.

    .. math:: T < \frac{2\Delta}{P\epsilon^2}\;\frac{T}{\sum_{t<T} 1/\Lambda_G(t)}

    Upper bound, a posteriori (strict): the sum of the lemma itself, before the maximum is taken. Never above
    `gradient_weighted`; where a few steep steps come first it is many times below. Assumes no momentum.

    Parameters
    ----------
    s : Setting
        With the statistic "harmonic_lambda_g" (the unit of H) and target l2.

    Returns
    -------
    float
        The bound on the number of updates.

    Raises
    ------
    MissingStatisticError
        If the statistic was not recorded.

    References
    ----------
    Derived; form of tomihari2025, whose constants are unconfirmed.

    Examples
    --------
    >>> import quadlab as ql
    >>> p = ql.BlockQuadratic.from_blocks([[1.0, 4.0]], start=[4.0, 1.0], minimizer=[0.0, 0.0])
    >>> s = Setting.of(p, ql.GD("lambda_g"), ql.GradientNorm(1.0, ord=2), {"harmonic_lambda_g": 1.6})
    >>> round(gradient_weighted_harmonic(s), 9)  # Delta = 10, P = 2
    16.0
    """
    return per_step(2.0 * s.stat("harmonic_lambda_g") * s.delta, 1.0, s.tolerance)


@bound(
    "gd.gradient_weighted_linear",
    family="gd",
    rules=DESCENT_RULES,
    target="gap",
    form="log",
    needs="sup_lambda_g",
    assumes=(no_momentum,),
    formula="(sup_t Lambda_G(t) / mu_+) ln(Delta / delta), delta = P eps^2 / (2 L) for the l2 test",
)
def gradient_weighted_linear(s: Setting) -> float:
    r"""Count of GD with step 1 / Lambda_G(t), linear in ln(1 / eps).

    .. math:: N = \frac{\sup_{t<T}\Lambda_G(t)}{\mu_+} \ln\frac{\Delta}{\delta},
              \qquad \delta = \frac{P\epsilon^2}{2L}\ \text{for}\ \|g\|_2 \le \sqrt P \epsilon

    Upper bound on the last unstopped index, a posteriori (log); the lemma with ||g||^2 >= 2 mu_+ f. Assumes
    no momentum.

    Parameters
    ----------
    s : Setting
        With the statistic "sup_lambda_g" and target gap (the registry converts the test on the norm).

    Returns
    -------
    float
        N before rounding up.

    Raises
    ------
    MissingStatisticError
        If the statistic was not recorded.

    References
    ----------
    Derived.

    Examples
    --------
    >>> import quadlab as ql
    >>> p = ql.BlockQuadratic.from_blocks([[1.0, 4.0]], start=[4.0, 1.0], minimizer=[0.0, 0.0])
    >>> s = Setting.of(p, ql.GD("lambda_g"), ql.Gap(10 * math.exp(-5)), {"sup_lambda_g": 4.0})
    >>> round(gradient_weighted_linear(s), 9)  # Delta = 10, mu = 1
    20.0
    """
    return s.stat("sup_lambda_g") / s.curvature.smallest_positive * log_ratio(s.delta, s.tolerance)


@bound(
    "gd.a_priori",
    family="gd",
    rules=DESCENT_RULES,
    target="l2",
    assumes=(no_momentum,),
    formula="2 L Delta / (P eps^2)",
)
def a_priori(s: Setting) -> float:
    r"""Count of GD with step 1 / Lambda_G(t), before any run: L in place of Lambda_G.

    .. math:: T < \frac{2 L \Delta}{P\epsilon^2}

    Upper bound, a priori (strict): `gradient_weighted` with Lambda_G <= L. Assumes no momentum. No run of ten
    updates or more is known to exceed a fifth of it: each is counted at the least decrease that the test
    allows, and on a quadratic f falls geometrically, so that few are. Then `a_priori_linear` is sharper.

    Parameters
    ----------
    s : Setting
        With target l2.

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
    >>> p = ql.BlockQuadratic.from_blocks([[1.0, 4.0]], start=[4.0, 1.0], minimizer=[0.0, 0.0])
    >>> round(a_priori(Setting.of(p, ql.GD("lambda_g"), ql.GradientNorm(1.0, ord=2))), 9)
    40.0
    """
    return per_step(2.0 * s.curvature.largest * s.delta, 1.0, s.tolerance)


@bound(
    "gd.a_priori_linear",
    family="gd",
    rules=DESCENT_RULES,
    target="gap",
    form="log",
    assumes=(no_momentum,),
    formula="kappa ln(Delta / delta), delta = P eps^2 / (2 L) for the l2 test",
)
def a_priori_linear(s: Setting) -> float:
    r"""Count of GD with step 1 / Lambda_G(t), linear in ln(1 / eps), before any run.

    .. math:: N = \kappa \ln\frac{\Delta}{\delta}

    Upper bound on the last unstopped index, a priori (log): `gradient_weighted_linear` with Lambda_G <= L.
    Assumes no momentum.

    Parameters
    ----------
    s : Setting
        With target gap.

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
    >>> p = ql.BlockQuadratic.from_blocks([[1.0, 4.0]], start=[4.0, 1.0], minimizer=[0.0, 0.0])
    >>> round(a_priori_linear(Setting.of(p, ql.GD("lambda_g"), ql.Gap(10 * math.exp(-5)))), 9)
    20.0
    """
    return s.curvature.condition_number * log_ratio(s.delta, s.tolerance)


# Constant step --------------------------------------------------------------------------------------------


@bound(
    "gd.constant_step",
    family="gd",
    rules="constant",
    target="l2",
    assumes=(no_momentum, short_step),
    formula="2 Delta / (eta P eps^2)",
)
def constant_step(s: Setting) -> float:
    r"""Count of GD with a constant step of at most 1 / L.

    .. math:: T < \frac{2\Delta}{\eta P\epsilon^2}

    Upper bound, a priori (strict): f+ <= f - (eta / 2) ||g||^2. Assumes no momentum and eta <= 1 / L. A run
    of many updates stays below a fifth of it: along one eigenvector, with x = ||g_0|| / (sqrt(P) eps) and a
    short step, T is ln(x) / x^2 of it, at most 1 / (2 e) = 0.18. Then `contraction` is sharper.

    Parameters
    ----------
    s : Setting
        With a constant step eta (the unit of 1 / H) and target l2.

    Returns
    -------
    float
        The bound on the number of updates.

    References
    ----------
    Textbook; derived.

    Examples
    --------
    >>> import quadlab as ql
    >>> p = ql.BlockQuadratic.from_blocks([[1.0, 4.0]], start=[4.0, 1.0], minimizer=[0.0, 0.0])
    >>> round(constant_step(Setting.of(p, ql.GD(0.25), ql.GradientNorm(1.0, ord=2))), 9)
    40.0
    """
    return per_step(2.0 * s.delta, s.step, s.tolerance)


@bound(
    "gd.self_consistency",
    family="gd",
    rules="constant",
    target="l2",
    needs="sup_step_lambda_g",
    assumes=(no_momentum, self_consistent),
    formula="2 Delta / (eta P eps^2) where eta Lambda_G(t) <= 1 for all t < T",
)
def self_consistency(s: Setting) -> float:
    r"""Count of GD with a constant step eta that keeps eta Lambda_G(t) <= 1 along its own trajectory.

    .. math:: \eta \Lambda_G(t) \le 1\ \text{for all}\ t < T \quad\Longrightarrow\quad T < \frac{2\Delta}{\eta
              P\epsilon^2}

    Upper bound, a posteriori (strict). *Whether it applies is the flag*: a constant step 1 / Lambda_G,
    measured at one point, is larger than 1 / L, and f+ <= f - (eta / 2) ||g||^2 needs eta Lambda_G(t) <= 1 at
    every t. With eta > 2 / L the component along the top eigenvector grows by |1 - eta L| > 1 a step, if only
    from rounding, until Lambda_G(t) has risen to L: over long runs no such step is self-consistent. The step
    1 / Lambda_G(t), renewed at each t, has no such cap.

    Parameters
    ----------
    s : Setting
        With a constant step eta, the statistic "sup_step_lambda_g" (eta Lambda_G, no unit) and target l2.

    Returns
    -------
    float
        The bound on the number of updates.

    References
    ----------
    Derived; tomihari2025 for the step.

    Examples
    --------
    >>> import quadlab as ql
    >>> p = ql.BlockQuadratic.from_blocks([[1.0], [4.0]], start=[4.0, 1.0], minimizer=[0.0, 0.0])
    >>> s = Setting.of(p, ql.GD(0.4), ql.GradientNorm(1.0, ord=2), {"sup_step_lambda_g": 1.0})  # eta > 1 / L
    >>> round(self_consistency(s), 9)
    25.0
    """
    return per_step(2.0 * s.delta, s.step, s.tolerance)


@bound(
    "gd.exact_count",
    family="gd",
    rules="constant",
    target=("l2", "gap"),
    kind="exact",
    form="equality",
    assumes=(stable,),
    formula="least t with sum_i r_i(t)^2 gamma_i^2 <= P eps^2, r_i(t) = (1 - eta lam_i)^t without momentum",
)
def exact_count(s: Setting) -> float:
    r"""Count of GD with a constant step, exactly, without simulating.

    .. math:: T = \min\Bigl\{t : \sum_i r_i(t)^2 \gamma_i^2 \le P\epsilon^2\Bigr\}, \qquad
              r_i(t) = (1 - \eta\lambda_i)^t

    Exact, a priori; gamma = g(w_0) in the eigenbasis. For the gap, gamma_i^2 / (2 lam_i) replaces gamma_i^2.
    Both sums are nonincreasing in t, so T is found by bisection in O(P log T). With momentum r_i is the
    solution of a recurrence of second order, and the search another: :mod:`quadlab.closed_form`. Assumes that
    no mode grows, also where gamma_i = 0. The l_1 and l_inf norms have no such closed form: with these tests
    it does not apply.

    Parameters
    ----------
    s : Setting
        With a constant step and target l2 or gap.

    Returns
    -------
    float
        T, a whole number; inf if the run never stops.

    References
    ----------
    Textbook; derived.

    Examples
    --------
    >>> import quadlab as ql
    >>> p = ql.BlockQuadratic.from_blocks([[1.0, 4.0]], start=[4.0, 1.0], minimizer=[0.0, 0.0])
    >>> exact_count(Setting.of(p, ql.GD(1e-9), ql.GradientNorm(1e-3, ord=2)))
    7947476046.0
    """
    return closed_form_count(s)


@bound(
    "gd.contraction",
    family="gd",
    rules="constant",
    target=("l2", "gap"),
    form="log",
    assumes=(no_momentum, contracts),
    formula="ln(||g_0|| / (sqrt(P) eps)) / ln(1 / rho), rho = max |1 - eta lam|",
)
def contraction(s: Setting) -> float:
    r"""Count of GD with a constant step, by the contraction factor.

    .. math:: N = \frac{\ln(\|g_0\|_2 / (\sqrt P\epsilon))}{\ln(1/\rho)}, \qquad \rho = \max_{\lambda_i > 0}
              |1 - \eta\lambda_i|

    Upper bound on the last unstopped index, a priori (log): ||g_t|| <= rho^t ||g_0||, and f_t <= rho^(2t)
    Delta, with N = ln(Delta / delta) / (2 ln(1 / rho)) for the gap. If rho = 0 no index after the first is
    unstopped: N = 0 here, which rounds to a count of 1. Least at eta = 2 / (mu_+ + L), rho = (kappa - 1) /
    (kappa + 1). Assumes no momentum, rho < 1.

    Parameters
    ----------
    s : Setting
        With a constant step and target l2 or gap.

    Returns
    -------
    float
        N before rounding up.

    References
    ----------
    Textbook; derived.

    Examples
    --------
    >>> import quadlab as ql
    >>> p = ql.BlockQuadratic.from_blocks([[1.0, 4.0]], start=[4.0, 1.0], minimizer=[0.0, 0.0])
    >>> round(contraction(Setting.of(p, ql.GD(0.4), ql.Gap(10 * 0.6**20))), 9)
    10.0
    """
    if s.target == "gap":
        return linear_count(0.5 * log_ratio(s.delta, s.tolerance), _rho(s))
    return linear_count(log_ratio(s.start["grad_l2"], s.tolerance), _rho(s))


# From below -----------------------------------------------------------------------------------------------


@bound(
    "gd.zhang_lower",
    family="gd",
    rules="constant",
    kind="lower",
    form="equality",
    quantity="min_gap_ratio",
    assumes=(no_momentum, two_eigenvectors),
    formula="((kappa - 1) / (kappa + 1))^2",
    source="zhang2024",
    status="derived; Proposition 1 with the square that it needs",
)
def zhang_lower(s: Setting) -> float:
    r"""Least ratio f_{t+1} / f_t of GD with any constant step, from the hard start.

    .. math:: f_{t+1} - f^* \ge \Bigl(\frac{\kappa-1}{\kappa+1}\Bigr)^2 (f_t - f^*) \quad\text{for all}\ t

    Lower bound on a statistic (attained with equality at eta = 2 / (mu + L)). The square is needed. Assumes
    no momentum, and a w_0 with gradients of equal size along one eigenvector each of mu and L, 0 < mu < L,
    and none along any other (to 1e-8; mu is mu_+ where H is singular).

    Parameters
    ----------
    s : Setting
        With a constant step; the stopping test does not matter.

    Returns
    -------
    float
        The least ratio of successive gaps, in (0, 1).

    References
    ----------
    zhang2024, Proposition 1.

    Examples
    --------
    >>> import quadlab as ql
    >>> p = ql.BlockQuadratic.from_blocks([[1.0, 3.0]], start=[3.0, 1.0], minimizer=[0.0, 0.0])
    >>> zhang_lower(Setting.of(p, ql.GD(0.5), ql.Gap(1e-6)))
    0.25
    """
    c = s.curvature
    return ((c.largest - c.smallest_positive) / (c.largest + c.smallest_positive)) ** 2
