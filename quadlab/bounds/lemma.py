r"""One lemma behind every deterministic 1/eps^2 bound, for any method that takes the lemma's step.

For an update w+ = w - eta d,

    f+ = f - eta g.d + (eta^2 / 2) d^T H d,        d^T H d <= sum_b ||H_b|| ||d_b||^2 = Lambda(d) ||d||^2.

The right-hand side with Lambda is least at eta = g.d / (Lambda(d) ||d||^2), and there (g.d > 0)

    f+ <= f - (g.d)^2 / (2 Lambda(d) ||d||^2).

The exact line search, eta = g.d / (d^T H d), gives the least f+ along d from the same point, so its f+ obeys
the same inequality: a bound along the run's own trajectory holds for both rules. (Nothing follows about which
of the two stops first.)

With R_t = Lambda(d_t) ||d_t||^2 ||g_t||^2 / (g_t.d_t)^2 in the norm of the stopping test, each step before
the stop lowers f by ||g_t||^2 / (2 R_t) > tol^2 / (2 sup R). The sum over t < T is at most Delta, so T < 2
Delta sup R / tol^2. For d = g this is GD's bound with Lambda_G, for d = sign g it is SignSGD's with Lambda_P
(no zero entries).
"""

from __future__ import annotations

from quadlab.bounds.registry import bound
from quadlab.bounds.setting import Assumption, Setting
from quadlab.run import Status


def per_step(total: float, decrease: float, tolerance: float) -> float:
    """Return total / (decrease tolerance^2), free of overflow in the square.

    Parameters
    ----------
    total : float
        What can be lost in all, such as Delta.
    decrease : float
        What a step loses, in units of tolerance^2.
    tolerance : float
        The stopping tolerance, > 0.

    Returns
    -------
    float
        An upper bound on the number of steps.

    Examples
    --------
    >>> per_step(8.0, 0.5, 2.0)
    4.0
    """
    return total / decrease / tolerance / tolerance


descent = Assumption(
    lambda s: s.run is None or s.run.status is not Status.NOT_DESCENT,
    lambda s: f"g.d must be positive at every step, it was not at t = {s.run.iterations if s.run else 0}",
)


@bound(
    "lemma.direction_l1",
    rules=("lemma", "line_search"),
    target="l1",
    needs="sup_lemma_l1",
    assumes=(descent,),
    formula="2 Delta sup_t [Lambda(d) ||d||_2^2 ||g||_1^2 / (g.d)^2] / (P eps)^2",
)
def direction_l1(s: Setting) -> float:
    r"""Count of any method with the lemma's step, by the l_1 norm of the gradient.

    .. math:: T < \frac{2\Delta}{(P\epsilon)^2}\,
              \sup_{t<T} \frac{\Lambda(d_t)\,\|d_t\|_2^2\,\|g_t\|_1^2}{(g_t^T d_t)^2}

    Upper bound, a posteriori (strict); the lemma summed over t. Assumes g_t.d_t > 0 at every step; any
    method, momentum, weight decay and a user's own included. Also holds for the exact line search.

    Parameters
    ----------
    s : Setting
        With the statistic "sup_lemma_l1" and target l1.

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
    Derived; tomihari2025 for the weighting of ||H_b|| by the update's blocks.

    Examples
    --------
    >>> import quadlab as ql
    >>> p = ql.BlockQuadratic.from_blocks([[1.0, 4.0]], start=[4.0, 1.0], minimizer=[0.0, 0.0])
    >>> s = Setting.of(p, ql.SignSGD("lemma"), ql.GradientNorm(1.0, ord=1), {"sup_lemma_l1": 8.0})
    >>> direction_l1(s)  # Delta = 10
    40.0
    """
    return per_step(2.0 * s.delta * s.stat("sup_lemma_l1"), 1.0, s.tolerance)


@bound(
    "lemma.direction_l2",
    rules=("lemma", "line_search"),
    target="l2",
    needs="sup_lemma_l2",
    assumes=(descent,),
    formula="2 Delta sup_t [Lambda(d) ||d||_2^2 ||g||_2^2 / (g.d)^2] / (P eps^2)",
)
def direction_l2(s: Setting) -> float:
    r"""Count of any method with the lemma's step, by the l_2 norm of the gradient.

    .. math:: T < \frac{2\Delta}{P\epsilon^2}\,
              \sup_{t<T} \frac{\Lambda(d_t)\,\|d_t\|_2^2\,\|g_t\|_2^2}{(g_t^T d_t)^2}

    Upper bound, a posteriori (strict); the lemma summed over t. Assumes g_t.d_t > 0 at every step; any
    method, momentum, weight decay and a user's own included. Also holds for the exact line search.

    Parameters
    ----------
    s : Setting
        With the statistic "sup_lemma_l2" and target l2.

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
    Derived; tomihari2025 for the weighting of ||H_b|| by the update's blocks.

    Examples
    --------
    >>> import quadlab as ql
    >>> p = ql.BlockQuadratic.from_blocks([[1.0, 4.0]], start=[4.0, 1.0], minimizer=[0.0, 0.0])
    >>> s = Setting.of(p, ql.GD("lemma"), ql.GradientNorm(1.0, ord=2), {"sup_lemma_l2": 4.0})
    >>> round(direction_l2(s), 9)  # Delta = 10, tolerance = sqrt(2)
    40.0
    """
    return per_step(2.0 * s.delta * s.stat("sup_lemma_l2"), 1.0, s.tolerance)
