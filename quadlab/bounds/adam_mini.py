r"""Adam-mini: Adam with one second moment a block, D_b = sqrt(vhat_b) + epsilon.

vhat_b is the moving average of ||g_b||^2 / P_b. Its geometry is that of the norm N(u) = max_b ||u_b||_2 /
sqrt(P_b), whose dual, sum_b sqrt(P_b) ||g_b||_2, is at least ||g||_1, and whose largest curvature, max over
N(u) <= 1 of u^T H u, is sum_b P_b ||H_b|| = P Lambda_P.

**Block-normalised GD** (beta1 = beta2 = epsilon = 0): d_b = sqrt(P_b) g_b / ||g_b||, so g.d >= ||g||_1 and
Lambda(d) ||d||^2 <= P Lambda_P: by the lemma it obeys SignSGD's bound with Lambda_P, to the letter.

**Averages.** The proof of Adam's bound with momentum (:mod:`quadlab.bounds.adam`) holds block by block: by
Cauchy and Schwarz ||mhat_b|| <= c sqrt(P_b vhat_b), so that N(d) <= c; the dual norm of H d is at most
c P Lambda_P, and so that of mhat - g at most eta P Lambda_P c times the lag; ||g_b|| / D_b <= sqrt(P_b / (1 -
beta2)); sum_b ||g_b||^2 / D_b >= ||g||_1^2 / G with G = sum_b P_b D_b. And ||g_b||^2 <= 2 ||H_b|| f_b, so
that G <= P epsilon + sqrt(2 P Lambda_P max f). M* becomes P Lambda_P, and nothing else changes.
"""

from __future__ import annotations

import math

from quadlab.bounds.adam import averages_ratio, growing_count, momentum_constant, no_memory
from quadlab.bounds.lemma import per_step
from quadlab.bounds.registry import bound
from quadlab.bounds.setting import Assumption, Setting


@bound(
    "adam_mini.parameter_weighted",
    family="adam_mini",
    rules=("lemma", "line_search"),
    target="l1",
    assumes=(no_memory,),
    formula="2 Lambda_P Delta / (P eps^2)",
)
def parameter_weighted(s: Setting) -> float:
    r"""Count of block-normalised GD with the lemma's step, by Lambda_P: SignSGD's bound.

    .. math:: T < \frac{2\Lambda_P\Delta}{P\epsilon^2}

    Upper bound, a priori (strict). Assumes beta1 = beta2 = epsilon = 0, d_b = sqrt(P_b) g_b / ||g_b||_2. Also
    holds for the exact line search.

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
    Derived, by the lemma.

    Examples
    --------
    >>> import quadlab as ql
    >>> p = ql.BlockQuadratic.from_blocks([[1.0, 4.0]], start=[4.0, 1.0], minimizer=[0.0, 0.0])
    >>> method = ql.AdamMini("lemma", beta1=0.0, beta2=0.0, epsilon=0.0)
    >>> parameter_weighted(Setting.of(p, method, ql.GradientNorm(1.0, ord=1)))
    40.0
    """
    return per_step(2.0 * s.size * s.curvature.parameter_weighted * s.delta, 1.0, s.tolerance)


def _growing_count(s: Setting) -> float:
    curvature = s.size * s.curvature.parameter_weighted
    return growing_count(s, math.sqrt(2.0 * curvature), curvature * momentum_constant(s.method, math.inf))


small_step = Assumption(
    lambda s: not averages_ratio.test(s) or math.isfinite(_growing_count(s)),
    lambda s: (
        f"eta = {s.step:.6g} is too large for the tolerance: G (Delta / (eta T) + eta P Lambda_P C) stays "
        "above (P eps)^2 for every T"
    ),
)


@bound(
    "adam_mini.a_priori",
    family="adam_mini",
    rules="constant",
    target="l1",
    assumes=(averages_ratio, small_step),
    formula="least T with G_T (Delta + eta^2 P Lambda_P C T) <= eta T (P eps)^2, "
    "G_T = P epsilon + sqrt(2 P Lambda_P (Delta + eta^2 P Lambda_P C T))",
)
def a_priori(s: Setting) -> float:
    r"""Count of Adam-mini with a constant step, before the run.

    .. math:: T < \min\Bigl\{\tau : G_\tau\, \bigl(\Delta + \eta^2 P\Lambda_P C\, \tau\bigr) \le
              \eta\tau (P\epsilon)^2\Bigr\},
              \qquad G_\tau = P\varepsilon + \sqrt{2 P\Lambda_P\,(\Delta + \eta^2 P\Lambda_P C\,\tau)}

    Upper bound, a priori (strict); C as for Adam (`quadlab.bounds.adam.momentum_constant`). Assumes beta1^2 <
    beta2 < 1 or beta1 = 0, and a step so short that there is such a time. Loose by about 1 / eps^2: it
    trades every gradient for its largest value.

    Parameters
    ----------
    s : Setting
        With a constant step and target l1.

    Returns
    -------
    float
        The bound on the number of updates; inf where the step is too long.

    References
    ----------
    Derived.

    Examples
    --------
    >>> import quadlab as ql
    >>> p = ql.BlockQuadratic.from_blocks([[1.0, 4.0]], start=[4.0, 1.0], minimizer=[0.0, 0.0])
    >>> s = Setting.of(p, ql.AdamMini(1e-4, 0.0, 0.0, 0.0), ql.GradientNorm(1.0, ord=1))
    >>> round(a_priori(s))
    316829
    """
    return _growing_count(s)
