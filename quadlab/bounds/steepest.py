r"""Steepest descent under a norm: w+ = w - eta ||g||_* u, u the unit vector with the largest g.u = ||g||_*.

One formula, the norm its parameter. Along d = ||g||_* u, g.d = ||g||_*^2, and the lemma's curvature is
Lambda(d) ||d||_2^2 = K_t ||g||_*^2 with K_t = sum_b ||H_b|| ||u_b||_2^2; the exact d^T H d is at most
K ||g||_*^2 with K = max over ||u|| <= 1 of u^T H u:

==========  =======================  ==================  =====================  ==============
norm        ||u||                    ||g||_*             K_t                    K
==========  =======================  ==================  =====================  ==============
"l2"        ||u||_2                  ||g||_2             Lambda_G(t)            L
"linf"      max_i |u_i|              ||g||_1             at most P Lambda_P     M*
"block"     max_b ||u_b||_2          sum_b ||g_b||_2     at most sum_b ||H_b||  sum_b ||H_b||
==========  =======================  ==================  =====================  ==============

So the lemma's step gives f+ <= f - ||g||_*^2 / (2 K_t), and the constant step eta < 2 / K gives f+ <= f - eta
(1 - eta K / 2) ||g||_*^2. Both are summed over t, as long as the stop has not come, which certifies
||g||_* > tau_*. With "l2" these are GD's bounds, with "linf" and the lemma's step SignSGD's.
"""

from __future__ import annotations

import math

from quadlab.bounds.lemma import per_step
from quadlab.bounds.registry import bound
from quadlab.bounds.setting import Assumption, Setting


def dual_tolerance(s: Setting) -> float:
    r"""Return the largest tau_* known such that the dual norm exceeds tau_* until the stop.

    By ||g||_2 <= sum_b ||g_b||_2, and ||g||_1 <= sqrt(max P_b) sum_b ||g_b||_2.

    Parameters
    ----------
    s : Setting
        Of a run of `SteepestDescent`, with any stopping test.
    """
    if s.method.norm == "linf":
        return s.at("l1").tolerance
    by_l2 = s.at("l2").tolerance
    if s.method.norm == "l2":
        return by_l2
    return max(by_l2, s.at("l1").tolerance / math.sqrt(s.curvature.block_sizes.max()))


def largest_curvature(s: Setting) -> float:
    """Return K, the largest u^T H u over the norm's unit ball (M* by its upper value).

    Parameters
    ----------
    s : Setting
        Of a run of `SteepestDescent`.
    """
    c = s.curvature
    values = {"l2": c.largest, "linf": c.m_star_upper, "block": float(c.block_norms.sum())}
    return values[s.method.norm]


short_step = Assumption(
    lambda s: s.step * largest_curvature(s) < 2.0,
    lambda s: f"eta must be below 2 / K = {2.0 / largest_curvature(s):.6g}, it is {s.step:.6g}",
)


@bound(
    "steepest.weighted",
    family="steepest",
    rules=("lemma", "line_search"),
    needs="sup_lambda_g",
    formula="2 K Delta / tau*^2, K = sup Lambda_G (l2), P Lambda_P (linf), sum_b ||H_b|| (block)",
)
def weighted(s: Setting) -> float:
    r"""Count of steepest descent with the lemma's step, by the lemma's curvature under the norm.

    .. math:: T < \frac{2\Delta}{\tau_*^2} \sup_{t<T} K_t, \qquad K_t = \sum_b \|H_b\|\,\|u_{t,b}\|_2^2

    Upper bound, a posteriori for "l2", else a priori (strict); the lemma summed over t. tau_* is what the
    stopping test, not met, certifies of the dual norm: sqrt(P) eps for "l2" with the l_2 test, P eps for
    "linf" with the l_1 test.

    Parameters
    ----------
    s : Setting
        With the statistic "sup_lambda_g".

    Returns
    -------
    float
        The bound on the number of updates.

    References
    ----------
    Derived; balles2020 for the geometry, tomihari2025 for the forms with Lambda_G and Lambda_P.

    Examples
    --------
    >>> import quadlab as ql
    >>> p = ql.BlockQuadratic.from_blocks([[1.0], [4.0]], start=[4.0, 1.0], minimizer=[0.0, 0.0])
    >>> stop, statistics = ql.GradientNorm(1.0, ord=1), {"sup_lambda_g": 2.5}
    >>> [round(weighted(Setting.of(p, ql.SteepestDescent("lemma", norm), stop, statistics)), 9)
    ...  for norm in ("l2", "linf", "block")]  # Delta = 10, P = 2
    [25.0, 25.0, 25.0]
    """
    c = s.curvature
    if s.method.norm == "l2":
        curvature = s.stat("sup_lambda_g")
    else:
        curvature = s.size * c.parameter_weighted if s.method.norm == "linf" else float(c.block_norms.sum())
    return per_step(2.0 * curvature * s.delta, 1.0, dual_tolerance(s))


@bound(
    "steepest.constant_step",
    family="steepest",
    rules="constant",
    assumes=(short_step,),
    formula="Delta / (eta (1 - eta K / 2) tau*^2), K = L (l2), M* (linf), sum_b ||H_b|| (block)",
)
def constant_step(s: Setting) -> float:
    r"""Count of steepest descent with a constant step below 2 / K.

    .. math:: T < \frac{\Delta}{\eta\,(1 - \eta K/2)\,\tau_*^2}, \qquad K = \max_{\|u\| \le 1} u^T H u

    Upper bound, a priori (strict). Least at eta = 1 / K, where it is 2 K Delta / tau_*^2; for "l2" and eta <=
    1 / L at most GD's 2 Delta / (eta P eps^2).

    Parameters
    ----------
    s : Setting
        With a constant step.

    Returns
    -------
    float
        The bound on the number of updates.

    References
    ----------
    Derived; balles2020 for K.

    Examples
    --------
    >>> import quadlab as ql
    >>> p = ql.BlockQuadratic.from_blocks([[1.0], [4.0]], start=[4.0, 1.0], minimizer=[0.0, 0.0])
    >>> constant_step(Setting.of(p, ql.SteepestDescent(0.2, "block"), ql.GradientNorm(1.0, ord=1)))
    25.0
    """
    decrease = s.step * (1.0 - 0.5 * s.step * largest_curvature(s))
    return per_step(s.delta, decrease, dual_tolerance(s))
