r"""Adam: w+ = w - eta D_t^-1 mhat_t, D_t = diag(sqrt(vhat_t) + epsilon), 0/0 := 0; at first without momentum.

**Preconditioned descent.** In y = D_t^(1/2) x one step is gradient descent on A_t = D_t^(-1/2) H D_t^(-1/2).
With z = D_t^(-1/2) g,

    f+ = f - eta |z|^2 + (eta^2 / 2) z^T A_t z <= f - eta (1 - eta a_max,t / 2) |z|^2,

so f falls while eta a_max,t < 2; and each eigencomponent of f is multiplied by (1 - eta a)^2, so that
f+ <= (1 - eta a_min,t)^2 f while eta a_max,t <= 1 (a_min,t the smallest positive eigenvalue). Blockwise
||H_b|| / max_{i in b} D_ii <= a <= ||H_b|| / min_{i in b} D_ii for the top eigenvalue a, and
a_min,t >= min_b mu_b / max_{i in b} D_ii, as A has the nonzero eigenvalues of H^(1/2) D^-1 H^(1/2). The
statistics "sup_preconditioned" and "inf_preconditioned" are these two bounds, over all t.

**Frozen preconditioner** (beta2 = 1, epsilon = 0): D = diag |g(w_0)|, so A never changes and f_t has a closed
form (:mod:`quadlab.curvature`). With momentum beta1 and no bias correction each eigencomponent obeys
y_{t+1} = (1 + beta1 - (1 - beta1) eta a) y_t - beta1 y_{t-1}, stable if and only if 0 < eta a < 2 (1 + beta1)
/ (1 - beta1).

**A posteriori.** By Cauchy and Schwarz g.d = sum_i g_i^2 / D_ii >= ||g||_1^2 / sum_i D_ii, so before the stop
f+ < f - eta (P eps)^2 / G + eta^2 U / 2 with G = max_t sum_i D_ii and U = max_t d_t^T H d_t. (vhat >= (1 -
beta2) g^2, so that |d_i| <= 1 / sqrt(1 - beta2) and U <= M* / (1 - beta2).)

**Momentum**, bias-corrected, beta1^2 < beta2 < 1; w_1 and w_2 are the weights of the averages of n = t + 1
gradients.

- By Cauchy and Schwarz |mhat_i| <= (sum_k w_1k^2 / w_2k)^(1/2) sqrt(vhat_i), so that |d_i| <= c_n.
- mhat - g is the average of g_k - g_t = eta H (d_k + ... + d_{t-1}), and ||H d||_1 <= M* ||d||_inf, so that
  ||mhat - g||_1 <= eta M* c_n l_n, l_n = sum_k w_1k (t - k) <= beta1 / (1 - beta1) the mean lag.
- |g_i| / D_ii <= s_n = ((1 - beta2^n) / (1 - beta2))^(1/2), as the newest gradient has weight 1 / s_n^2.

Hence g.d >= ||g||_1^2 / G - eta M* c_n l_n s_n, and with d^T H d <= M* c_n^2,

    f+ <= f - eta ||g||_1^2 / G + eta^2 M* C_n,        C_n = c_n l_n s_n + c_n^2 / 2.

c_n, l_n and s_n, and so C_n, increase with n, to C = c beta1 / ((1 - beta1) sqrt(1 - beta2)) + c^2 / 2.
Before the run, G is at most P epsilon + S sqrt(max f), as |g_i| <= sqrt(2 H_ii f), and f is at most Delta +
eta^2 M* C T.

**SignSGD.** With beta1 = beta2 = epsilon = 0, d = g / sqrt(g^2), which is sign(g) to the bit for |g_i| in
1e-145 .. 1e154 or 0 (below, the second moment is flushed to 0; above, it overflows).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from quadlab import closed_form
from quadlab.bounds.gd import closed_form_count, contraction_factor, is_stable, linear_count, log_ratio
from quadlab.bounds.lemma import per_step
from quadlab.bounds.registry import bound
from quadlab.bounds.setting import Assumption, Setting, no_weight_decay
from quadlab.curvature import FrozenPreconditioner, frozen_preconditioner

# Tools ----------------------------------------------------------------------------------------------------


def stability_edge(beta1: float) -> float:
    r"""Return where Adam's linear iteration loses stability: eta a = 2 (1 + beta1) / (1 - beta1).

    Parameters
    ----------
    beta1 : float
        In [0, 1).

    References
    ----------
    cohen2022 (38 at beta1 = 0.9).

    Examples
    --------
    >>> round(stability_edge(0.9), 9)
    38.0
    """
    return closed_form.stability_edge(beta1) / (1.0 - beta1)


def momentum_factor(learning_rate: float, beta1: float, eigenvalue: float) -> float:
    r"""Return the larger modulus of the roots of z^2 - (1 + beta1 - (1 - beta1) eta a) z + beta1.

    The asymptotic contraction per step of the eigencomponent a of frozen Adam with momentum, no bias
    correction.

    Parameters
    ----------
    learning_rate : float
        eta.
    beta1 : float
        In [0, 1).
    eigenvalue : float
        a.

    Examples
    --------
    >>> momentum_factor(0.5, 0.0, 1.0), round(momentum_factor(38.0, 0.9, 1.0), 9)
    (0.5, 1.0)
    """
    half = 0.5 * (1.0 + beta1 - (1.0 - beta1) * learning_rate * eigenvalue)
    square = half * half - beta1
    return math.sqrt(beta1) if square < 0.0 else abs(half) + math.sqrt(square)


def preconditioner(s: Setting) -> FrozenPreconditioner:
    """Return the constants of D^(-1/2) H D^(-1/2), D = diag |g(w_0)|; ValueError where there is none.

    Parameters
    ----------
    s : Setting
        Any setting of the problem.
    """
    return frozen_preconditioner(s.problem)


def _preconditioner_problem(s: Setting) -> str:
    """Return why the frozen preconditioner cannot be had, or ""."""
    reason = s.problem.cache.get("frozen_preconditioner_problem")
    if reason is None:
        try:
            preconditioner(s)
        except ValueError as error:
            reason = str(error)
        s.problem.cache["frozen_preconditioner_problem"] = reason = reason or ""
    return reason


def _is_frozen(s: Setting) -> bool:
    return s.method.beta2 == 1.0 and s.method.epsilon == 0.0


def _frozen_rho(s: Setting) -> float:
    a = preconditioner(s)
    return contraction_factor(s.step, a.smallest, a.largest)


def average_ratio(beta1: float, beta2: float, count: float) -> float:
    r"""Return c_n, the largest :math:`|\hat m/\sqrt{\hat v}|` that n gradients can give.

    .. math:: c_n^2 = \sum_k \frac{w_{1,k}^2}{w_{2,k}} =
              \frac{(1-\beta_1)^2 (1-\beta_2^n)}{(1-\beta_2)(1-\beta_1^n)^2} \sum_{j<n} (\beta_1^2/\beta_2)^j

    It increases with n (its logarithm's derivative in n is x / (e^x - 1), which is convex, at two points less
    twice at their mean) to :math:`c = (1-\beta_1)/\sqrt{(1-\beta_2)(1-\beta_1^2/\beta_2)}`.

    Parameters
    ----------
    beta1, beta2 : float
        In [0, 1); inf for an infinite n if beta1^2 >= beta2 and beta1 > 0.
    count : float
        The number n >= 1 of gradients; inf for the limit.

    Examples
    --------
    >>> [round(average_ratio(0.9, 0.999, n), 2) for n in (1, 11, 101, math.inf)]
    [1.0, 1.05, 2.25, 7.27]
    """
    r = beta1 * beta1 / beta2 if beta2 > 0.0 else math.inf if beta1 > 0.0 else 0.0
    if r < 1.0:
        total = (1.0 - r**count) / (1.0 - r)
    else:
        total = math.inf if math.isinf(count) else sum(r**j for j in range(int(count)))
    return (1.0 - beta1) / (1.0 - beta1**count) * math.sqrt(total * (1.0 - beta2**count) / (1.0 - beta2))


def momentum_constant(method: Any, count: float) -> float:
    r"""Return C_n of the bound with momentum.

    .. math:: C_n = c_n\, \ell_n \sqrt{\frac{1-\beta_2^n}{1-\beta_2}} + \frac{c_n^2}{2}, \qquad
              \ell_n = \frac{\beta_1}{1-\beta_1} - \frac{n \beta_1^n}{1-\beta_1^n}

    Parameters
    ----------
    method : Adam or AdamMini
        With beta1^2 < beta2 < 1, or beta1 = 0.
    count : float
        The number n >= 1 of gradients; inf for the limit.

    Examples
    --------
    >>> import quadlab as ql
    >>> method = ql.Adam(1e-3, beta1=0.9, beta2=0.95)
    >>> [round(momentum_constant(method, n), 2) for n in (1, 10, math.inf)]
    [0.5, 10.96, 47.57]
    """
    beta1, beta2 = method.beta1, method.beta2
    c = average_ratio(beta1, beta2, count)
    lag = beta1 / (1.0 - beta1)
    if math.isfinite(count):  # sum_{j<n} j beta1^j over sum_{j<n} beta1^j; the difference cancels for small n
        power = beta1**count
        lag -= count * power / (1.0 - power)
    return c * max(lag, 0.0) * math.sqrt((1.0 - beta2**count) / (1.0 - beta2)) + 0.5 * c * c


def growing_count(s: Setting, slope: float, curvature: float) -> float:
    r"""Return the least T with (P epsilon + slope sqrt(F)) F <= eta T (P eps)^2.

    Here F = Delta + eta^2 curvature T. Until the stop, T updates lower f by more than
    T (eta (P eps)^2 / G - eta^2 curvature) in all, G the first factor, so that the inequality fails at each
    of them. The left-hand side is convex in T: the first root is a bound, unless there is none, or a whole
    number of updates steps over both roots. Newton's iteration from 0 rises to the first.

    Parameters
    ----------
    s : Setting
        With a constant step and target l1.
    slope : float
        With ||g||_1 <= slope sqrt(f), coordinate by coordinate or block by block over time.
    curvature : float
        M* C.

    Returns
    -------
    float
        The least real T; inf if there is none.
    """
    if s.delta == 0.0:
        return 0.0
    # in units of Delta / (eta^2 curvature) steps: (a + b sqrt(1 + u)) (1 + u) = k u
    rate = s.step * curvature
    a = s.size * s.method.epsilon / s.tolerance
    b = slope * math.sqrt(s.delta) / s.tolerance
    k = s.tolerance / rate

    def excess(u: float) -> float:
        return (a + b * math.sqrt(1.0 + u)) * (1.0 + u) - k * u

    u = 0.0
    while (height := excess(u)) > 0.0:
        fall = k - a - 1.5 * b * math.sqrt(1.0 + u)
        if fall <= 0.0:
            return math.inf
        u, last = u + height / fall, u
        if u == last:
            break
    unit = s.delta / s.step / rate
    count = u * unit
    return count if excess((math.floor(count) + 1.0) / unit) <= 0.0 else math.inf


# Assumptions ----------------------------------------------------------------------------------------------

no_beta1 = Assumption(lambda s: s.method.beta1 == 0.0, lambda s: f"beta1 must be 0, it is {s.method.beta1:g}")
frozen = Assumption(
    _is_frozen,
    lambda s: (
        "the preconditioner must be frozen (beta2 = 1, epsilon = 0), "
        f"beta2 is {s.method.beta2:g} and epsilon {s.method.epsilon:g}"
    ),
)
moving = Assumption(lambda s: s.method.beta2 < 1.0, "beta2 must be below 1 (the preconditioner is frozen)")
has_preconditioner = Assumption(
    lambda s: not _is_frozen(s) or not _preconditioner_problem(s), _preconditioner_problem
)
#: What every statement on frozen Adam assumes; the last tests nothing unless the ones before hold.
FROZEN = (no_weight_decay, no_beta1, frozen, has_preconditioner)


def _ready(s: Setting) -> bool:
    """Return whether the frozen preconditioner can be read at all; else another assumption has said so."""
    return _is_frozen(s) and not _preconditioner_problem(s)


def _most(s: Setting) -> str:
    return "below" if s.method.beta1 else "at most"


frozen_stable = Assumption(
    lambda s: (
        not _ready(s)
        or is_stable((1.0 - s.method.beta1) * s.step * preconditioner(s).largest, s.method.beta1)
    ),
    lambda s: (
        f"eta must be {_most(s)} {stability_edge(s.method.beta1):.6g} / a_max = "
        f"{stability_edge(s.method.beta1) / preconditioner(s).largest:.6g}, it is {s.step:.6g}"
    ),
)
uncorrected = Assumption(
    lambda s: s.method.beta1 == 0.0 or not s.method.bias_correction,
    "bias_correction must be False where beta1 > 0",
)
frozen_contracts = Assumption(
    lambda s: not _ready(s) or _frozen_rho(s) < 1.0,
    lambda s: f"rho = max |1 - eta a| must be below 1, it is {_frozen_rho(s):.6g}",
)
frozen_safe = Assumption(
    lambda s: not _ready(s) or s.step <= preconditioner(s).safe_learning_rate,
    lambda s: (
        f"eta must be at most min_l C_l1 = {preconditioner(s).safe_learning_rate:.6g}, it is {s.step:.6g}"
    ),
)
sup_below_two = Assumption(
    lambda s: s.step * s.stat("sup_preconditioned") < 2.0,
    lambda s: (
        f"eta max_b ||H_b|| / min D must stay below 2, it reached {s.step * s.stat('sup_preconditioned'):.6g}"
    ),
)
sup_at_most_one = Assumption(
    lambda s: s.step * s.stat("sup_preconditioned") <= 1.0,
    lambda s: (
        "eta max_b ||H_b|| / min D must stay at most 1, "
        f"it reached {s.step * s.stat('sup_preconditioned'):.6g}"
    ),
)


def _bracket(s: Setting) -> float:
    """Return (P eps)^2 - eta G U / 2, over (P eps)^2."""
    spent = 0.5 * s.step * s.stat("sup_denominator_l1") * s.stat("sup_curvature")
    return 1.0 - spent / s.tolerance / s.tolerance


positive_bracket = Assumption(
    lambda s: _bracket(s) > 0.0,
    lambda s: f"(P eps)^2 - eta G U / 2 must be positive, it is {_bracket(s):.6g} (P eps)^2",
)
averages_ratio = Assumption(
    lambda s: s.method.beta2 < 1.0 and (s.method.beta1 == 0.0 or s.method.beta1**2 < s.method.beta2),
    lambda s: f"beta1^2 < beta2 < 1 is needed, beta1^2 is {s.method.beta1**2:g} and beta2 {s.method.beta2:g}",
)
bias_corrected = Assumption(lambda s: s.method.bias_correction, "bias_correction must be on")
bias_corrected_momentum = Assumption(
    lambda s: s.method.bias_correction or s.method.beta1 == 0.0, "bias_correction must be on with momentum"
)


def _momentum_bracket(s: Setting) -> float:
    """Return (P eps)^2 - eta G M* C_T, over (P eps)^2; T is the count of a run that stopped, or infinite."""
    count = max(1, s.run.iterations) if s.run is not None and s.run.converged else math.inf
    spent = s.step * s.stat("sup_denominator_l1") * s.curvature.m_star_upper
    return 1.0 - spent * momentum_constant(s.method, count) / s.tolerance / s.tolerance


def _growing_count(s: Setting) -> float:
    c = s.curvature
    by_entries = float(np.sqrt(2.0 * s.problem.hessian_diagonal()).sum())
    slope = min(by_entries, math.sqrt(2.0 * s.size * c.parameter_weighted))
    return growing_count(s, slope, c.m_star_upper * momentum_constant(s.method, math.inf))


momentum_bracket = Assumption(
    lambda s: not averages_ratio.test(s) or _momentum_bracket(s) > 0.0,
    lambda s: f"(P eps)^2 - eta G M* C must be positive, it is {_momentum_bracket(s):.6g} (P eps)^2",
)
small_step = Assumption(
    lambda s: not averages_ratio.test(s) or math.isfinite(_growing_count(s)),
    lambda s: (
        f"eta = {s.step:.6g} is too large for the tolerance: G (Delta / (eta T) + eta M* C) stays above "
        "(P eps)^2 for every T"
    ),
)
no_memory = Assumption(
    lambda s: not (s.method.beta1 or s.method.beta2 or s.method.epsilon),
    lambda s: (
        "beta1 = beta2 = epsilon = 0 is needed, "
        f"they are {s.method.beta1:g}, {s.method.beta2:g} and {s.method.epsilon:g}"
    ),
)

# Frozen preconditioner ------------------------------------------------------------------------------------


@bound(
    "adam.frozen_exact",
    family="adam",
    rules="constant",
    target=("gap",),
    kind="exact",
    form="equality",
    assumes=(no_weight_decay, frozen, has_preconditioner, uncorrected, frozen_stable),
    formula="least t with 1/2 sum_i a_i c_i^2 r_i(t)^2 <= delta, r_i(t) = (1 - eta a_i)^t for beta1 = 0",
    source="zhang2024",
)
def frozen_exact(s: Setting) -> float:
    r"""Count of frozen Adam, exactly, without simulating.

    .. math:: T = \min\Bigl\{t : \tfrac12 \sum_i a_i c_i^2 r_i(t)^2 \le \delta\Bigr\}, \qquad
              r_i(t) = (1 - \eta a_i)^t

    Exact, a priori; a_i the eigenvalues of D^(-1/2) H D^(-1/2), c = D^(1/2) x_0 in its eigenbasis. The sum is
    nonincreasing in t, so T is found by bisection. With beta1 > 0 r_i is the solution of a recurrence of
    second order, and the search another: :mod:`quadlab.closed_form`. Assumes beta2 = 1, epsilon = 0, no
    weight decay, no bias correction where beta1 > 0, no zero in g(w_0), and eta a_max at most 2, or below
    2 (1 + beta1) / (1 - beta1). Only the gap has this form: the norms of g are no sums over the
    eigendirections of A.

    Parameters
    ----------
    s : Setting
        With a constant step and target gap.

    Returns
    -------
    float
        T, a whole number; inf if the run never stops.

    References
    ----------
    zhang2024, Theorem 1, for the iteration; the closed form is derived.

    Examples
    --------
    >>> import quadlab as ql
    >>> p = ql.BlockQuadratic.from_blocks([[1.0, 9.0]], start=[4.0, 1.0], minimizer=[0.0, 0.0])
    >>> frozen_exact(Setting.of(p, ql.FrozenAdam(1.6), ql.Gap(1e-6, relative=True)))  # a = 1/4, 1; rho = 0.6
    14.0
    """
    return closed_form_count(s)


@bound(
    "adam.frozen_rate",
    family="adam",
    rules="constant",
    target="gap",
    form="log",
    assumes=(*FROZEN, frozen_contracts),
    formula="ln(Delta / delta) / (2 ln(1 / rho)), rho = max |1 - eta a|",
    source="zhang2024",
)
def frozen_rate(s: Setting) -> float:
    r"""Count of frozen Adam, by the contraction factor.

    .. math:: N = \frac{\ln(\Delta/\delta)}{2\ln(1/\rho)}, \qquad \rho = \max_{a_i > 0} |1 - \eta a_i|

    Upper bound on the last unstopped index, a priori (log). Least at eta = 2 / (a_min + a_max), where
    rho = (kappa_A - 1) / (kappa_A + 1). Assumes beta1 = 0, beta2 = 1, epsilon = 0, no weight decay, no zero
    in g(w_0), rho < 1.

    Parameters
    ----------
    s : Setting
        With a constant step and target gap.

    Returns
    -------
    float
        N before rounding up.

    References
    ----------
    zhang2024, Theorem 1, for the iteration; the rate is derived.

    Examples
    --------
    >>> import quadlab as ql
    >>> p = ql.BlockQuadratic.from_blocks([[1.0, 9.0]], start=[4.0, 1.0], minimizer=[0.0, 0.0])
    >>> round(frozen_rate(Setting.of(p, ql.FrozenAdam(1.6), ql.Gap(0.6**20, relative=True))), 9)
    10.0
    """
    return linear_count(0.5 * log_ratio(s.delta, s.tolerance), _frozen_rho(s))


@bound(
    "adam.frozen_block_rate",
    family="adam",
    rules="constant",
    target="gap",
    form="log",
    assumes=(*FROZEN, frozen_safe),
    formula="ln(Delta / delta) / (-2 ln(1 - eta / max_l (kappa_l C_l2))), eta <= min_l C_l1",
    source="zhang2024",
    status="derived; sharper than Theorem 1",
)
def frozen_block_rate(s: Setting) -> float:
    r"""Count of frozen Adam with a step of at most min C_l1, from the blocks' constants alone.

    .. math:: N = \frac{\ln(\Delta/\delta)}{-2\ln\bigl(1 - \eta / \max_l(\kappa_l C_{l,2})\bigr)}, \qquad \eta
              \le \min_l C_{l,1}

    Upper bound on the last unstopped index, a priori (log): eta a_max <= 1 and a_min >= 1 / max_l (kappa_l
    C_l2). At eta = min_l C_l1 f contracts by (1 - 1 / K)^2 or better, K = max_l (kappa_l C_l2) / min_l C_l1
    <= sqrt(r) max_l kappa_l; the paper has max_l (1 - 1 / (r kappa_l)). Assumes beta1 = 0, beta2 = 1, epsilon
    = 0, no weight decay, no zero in g(w_0).

    Parameters
    ----------
    s : Setting
        With a constant step and target gap.

    Returns
    -------
    float
        N before rounding up.

    References
    ----------
    zhang2024, Theorem 1.

    Examples
    --------
    >>> import quadlab as ql
    >>> p = ql.BlockQuadratic.from_blocks([[1.0], [2.0]], start=[4.0, 1.0], minimizer=[0.0, 0.0])
    >>> round(frozen_block_rate(Setting.of(p, ql.FrozenAdam(1.0), ql.Gap(0.75**20, relative=True))), 9)
    10.0
    """
    a = preconditioner(s)
    factor = 1.0 - s.step / float((a.block_condition_numbers * a.c2).max())
    return linear_count(0.5 * log_ratio(s.delta, s.tolerance), factor)


@bound(
    "adam.frozen_contraction",
    family="adam",
    rules="constant",
    quantity="max_gap_ratio",
    form="equality",
    assumes=(*FROZEN, frozen_contracts),
    formula="rho^2, rho = max |1 - eta a|",
    source="zhang2024",
)
def frozen_contraction(s: Setting) -> float:
    r"""Greatest ratio f_{t+1} / f_t of frozen Adam.

    .. math:: f_{t+1} - f^* \le \rho^2 (f_t - f^*), \qquad \rho = \max_{a_i > 0} |1 - \eta a_i|

    Upper bound on a statistic (attained). Assumes beta1 = 0, beta2 = 1, epsilon = 0, no weight decay, no zero
    in g(w_0), rho < 1.

    Parameters
    ----------
    s : Setting
        With a constant step; the stopping test does not matter.

    Returns
    -------
    float
        rho^2, in [0, 1).

    References
    ----------
    zhang2024, Theorem 1, for the iteration; the rate is derived.

    Examples
    --------
    >>> import quadlab as ql
    >>> p = ql.BlockQuadratic.from_blocks([[1.0, 9.0]], start=[4.0, 1.0], minimizer=[0.0, 0.0])
    >>> round(frozen_contraction(Setting.of(p, ql.FrozenAdam(1.6), ql.Gap(1e-6))), 9)
    0.36
    """
    return _frozen_rho(s) ** 2


def _condition_number(s: Setting) -> float:
    return preconditioner(s).condition_number


@bound(
    "adam.frozen_condition",
    family="adam",
    quantity="frozen_condition_number",
    form="equality",
    assumes=FROZEN,
    measure=_condition_number,
    formula="kappa_A <= max_l (kappa_l C_l2) / min_l C_l1",
    source="zhang2024",
)
def frozen_condition(s: Setting) -> float:
    r"""Condition number that frozen Adam sees, by the blocks' constants.

    .. math:: \kappa_A \le \frac{\max_l \kappa_l C_{l,2}}{\min_l C_{l,1}},
              \qquad C_{l,1} = \min_i \frac{|g_{0,l,i}|}{\|H_l\|},\ C_{l,2} = \max_i
              \frac{|g_{0,l,i}|}{\|H_l\|}

    Upper bound on a constant of the problem (attained). Assumes beta1 = 0, beta2 = 1, epsilon = 0, no weight
    decay, no zero in g(w_0).

    Parameters
    ----------
    s : Setting
        Any step rule, any stopping test.

    Returns
    -------
    float
        The bound on kappa_A, at least 1.

    References
    ----------
    zhang2024, Theorem 1.

    Examples
    --------
    >>> import quadlab as ql
    >>> p = ql.BlockQuadratic.from_blocks([[1.0], [2.0]], start=[4.0, 1.0], minimizer=[0.0, 0.0])
    >>> frozen_condition(Setting.of(p, ql.FrozenAdam(1.0), ql.Gap(1e-6)))
    4.0
    """
    return preconditioner(s).condition_bound


@bound(
    "adam.frozen_condition_r",
    family="adam",
    quantity="frozen_condition_number",
    form="equality",
    assumes=FROZEN,
    measure=_condition_number,
    formula="kappa_A <= sqrt(r) max_l kappa_l, r = max C_l2^2 / min C_l1^2",
    source="zhang2024",
)
def frozen_condition_r(s: Setting) -> float:
    r"""Condition number that frozen Adam sees, by zhang2024's r.

    .. math:: \kappa_A \le \sqrt r\, \max_l \kappa_l, \qquad r = \frac{\max_l C_{l,2}^2}{\min_l C_{l,1}^2}

    Upper bound on a constant of the problem (attained); never below `frozen_condition`. Assumes beta1 = 0,
    beta2 = 1, epsilon = 0, no weight decay, no zero in g(w_0).

    Parameters
    ----------
    s : Setting
        Any step rule, any stopping test.

    Returns
    -------
    float
        The bound on kappa_A, at least 1.

    References
    ----------
    zhang2024, Theorem 1.

    Examples
    --------
    >>> import quadlab as ql
    >>> p = ql.BlockQuadratic.from_blocks([[1.0], [2.0]], start=[4.0, 1.0], minimizer=[0.0, 0.0])
    >>> frozen_condition_r(Setting.of(p, ql.FrozenAdam(1.0), ql.Gap(1e-6)))
    4.0
    """
    return preconditioner(s).loose_condition_bound


# Moving preconditioner ------------------------------------------------------------------------------------


@bound(
    "adam.preconditioned_descent",
    family="adam",
    rules="constant",
    quantity="max_gap_ratio",
    form="equality",
    needs="sup_preconditioned",
    assumes=(no_weight_decay, no_beta1, moving, sup_below_two),
    formula="1, where eta max_t max_b ||H_b|| / min_{i in b} D_ii < 2",
)
def preconditioned_descent(s: Setting) -> float:
    r"""Greatest ratio f_{t+1} / f_t of Adam without momentum: f falls.

    .. math:: f_{t+1} < f_t \quad\text{where}\quad \eta\,\lambda_{\max}(D_t^{-1/2} H D_t^{-1/2}) < 2

    Upper bound on a statistic, a posteriori. The condition is tested by max_b ||H_b|| / min_{i in b} D_ii,
    which is at least lam_max, at every step. Assumes beta1 = 0, beta2 < 1, no weight decay.

    Parameters
    ----------
    s : Setting
        With a constant step and the statistic "sup_preconditioned".

    Returns
    -------
    float
        1.

    References
    ----------
    Derived; cohen2022 for the preconditioned Hessian.

    Examples
    --------
    >>> import quadlab as ql
    >>> p = ql.BlockQuadratic.from_blocks([[1.0, 9.0]], start=[4.0, 1.0], minimizer=[0.0, 0.0])
    >>> preconditioned_descent(Setting.of(p, ql.RMSProp(1e-3), ql.Gap(1e-6), {"sup_preconditioned": 90.0}))
    1.0
    """
    return 1.0


@bound(
    "adam.preconditioned_contraction",
    family="adam",
    rules="constant",
    quantity="max_gap_ratio",
    form="equality",
    needs=("sup_preconditioned", "inf_preconditioned"),
    assumes=(no_weight_decay, no_beta1, moving, sup_at_most_one),
    formula="(1 - eta min_t min_b mu_b / max_{i in b} D_ii)^2",
)
def preconditioned_contraction(s: Setting) -> float:
    r"""Greatest ratio f_{t+1} / f_t of Adam without momentum, with a short step.

    .. math:: f_{t+1} - f^* \le (1 - \eta a_{\min,t})^2 (f_t - f^*) \quad\text{where}\quad \eta a_{\max,t} \le
              1

    Upper bound on a statistic, a posteriori (attained); a_min,t and a_max,t, over positive eigenvalues of
    D_t^(-1/2) H D_t^(-1/2), enter by their blockwise bounds. Assumes beta1 = 0, beta2 < 1, no weight decay.

    Parameters
    ----------
    s : Setting
        With a constant step and the statistics "sup_preconditioned" and "inf_preconditioned".

    Returns
    -------
    float
        The bound on the ratio, in [0, 1].

    References
    ----------
    Derived.

    Examples
    --------
    >>> import quadlab as ql
    >>> p = ql.BlockQuadratic.from_blocks([[1.0, 9.0]], start=[4.0, 1.0], minimizer=[0.0, 0.0])
    >>> statistics = {"sup_preconditioned": 9.0, "inf_preconditioned": 1.0}
    >>> round(preconditioned_contraction(Setting.of(p, ql.RMSProp(0.1), ql.Gap(1e-6), statistics)), 9)
    0.81
    """
    return (1.0 - s.step * s.stat("inf_preconditioned")) ** 2


@bound(
    "adam.preconditioned_linear",
    family="adam",
    rules="constant",
    target="gap",
    form="log",
    needs=("sup_preconditioned", "inf_preconditioned"),
    assumes=(no_weight_decay, no_beta1, moving, sup_at_most_one),
    formula="ln(Delta / delta) / (-2 ln(1 - eta min_t min_b mu_b / max_{i in b} D_ii))",
)
def preconditioned_linear(s: Setting) -> float:
    r"""Count of Adam without momentum, with a short step, linear in ln(1 / eps).

    .. math:: N = \frac{\ln(\Delta/\delta)}{-2\ln(1 - \eta \min_t a_{\min,t})} \quad\text{where}\quad \eta
              a_{\max,t} \le 1

    Upper bound on the last unstopped index, a posteriori (log): `preconditioned_contraction` applied t times.
    Assumes beta1 = 0, beta2 < 1, no weight decay.

    Parameters
    ----------
    s : Setting
        With a constant step, the statistics "sup_preconditioned" and "inf_preconditioned", and target gap.

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
    >>> p = ql.BlockQuadratic.from_blocks([[1.0, 9.0]], start=[4.0, 1.0], minimizer=[0.0, 0.0])
    >>> stop, statistics = ql.Gap(0.9**20, True), {"sup_preconditioned": 9.0, "inf_preconditioned": 1.0}
    >>> round(preconditioned_linear(Setting.of(p, ql.RMSProp(0.1), stop, statistics)), 9)
    10.0
    """
    return linear_count(0.5 * log_ratio(s.delta, s.tolerance), 1.0 - s.step * s.stat("inf_preconditioned"))


@bound(
    "adam.a_posteriori",
    family="adam",
    rules="constant",
    target="l1",
    needs=("sup_denominator_l1", "sup_curvature"),
    assumes=(no_weight_decay, no_beta1, positive_bracket),
    formula="G Delta / (eta ((P eps)^2 - eta G U / 2)), G = sup ||sqrt(vhat) + epsilon||_1, U = sup d^T H d",
)
def a_posteriori(s: Setting) -> float:
    r"""Count of Adam without momentum, by the largest denominator and curvature along the run.

    .. math:: T < \frac{G\Delta}{\eta\,((P\epsilon)^2 - \eta G U/2)}, \qquad
              G = \max_{t<T} \|\sqrt{\hat v_t} + \varepsilon\|_1,\ U = \max_{t<T} d_t^T H d_t \le
              \frac{M^*}{1-\beta_2}

    Upper bound, a posteriori (strict). Assumes beta1 = 0, no weight decay, and a positive bracket. The proof
    uses no property of beta2: the frozen preconditioner (beta2 = 1) is included.

    Parameters
    ----------
    s : Setting
        With a constant step, the statistics "sup_denominator_l1" and "sup_curvature", and target l1.

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
    >>> statistics = {"sup_denominator_l1": 8.0, "sup_curvature": 5.0}
    >>> round(a_posteriori(Setting.of(p, ql.RMSProp(0.1), ql.GradientNorm(1.0, ord=1), statistics)), 9)
    400.0
    """
    return per_step(s.delta * s.stat("sup_denominator_l1"), s.step * _bracket(s), s.tolerance)


# Momentum -------------------------------------------------------------------------------------------------


@bound(
    "adam.momentum",
    family="adam",
    rules="constant",
    target="l1",
    needs="sup_denominator_l1",
    assumes=(no_weight_decay, bias_corrected, averages_ratio, momentum_bracket),
    formula="G Delta / (eta ((P eps)^2 - eta G M* C)), "
    "C = c beta1 / ((1 - beta1) sqrt(1 - beta2)) + c^2 / 2, or its value at T",
)
def momentum(s: Setting) -> float:
    r"""Count of Adam with momentum, by the largest denominator along the run.

    .. math:: T < \frac{G\Delta}{\eta\,((P\epsilon)^2 - \eta G M^* C_T)}, \qquad
              G = \max_{t<T} \|\sqrt{\hat v_t} + \varepsilon\|_1 \le P\varepsilon + \sum_i \max_{t<T}
              |g_{t,i}|

    Upper bound, a posteriori (strict). C_T (`momentum_constant`) increases with T to :math:`C = c\beta_1 /
    ((1-\beta_1)\sqrt{1-\beta_2}) + c^2/2`, c = (1 - beta1) / ((1 - beta2) (1 - beta1^2 / beta2))^(1/2).
    Assumes bias correction, no weight decay, beta1^2 < beta2 < 1 (or beta1 = 0), and a positive bracket.

    Parameters
    ----------
    s : Setting
        With a constant step, the statistic "sup_denominator_l1", and target l1.

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
    >>> stop, statistics = ql.GradientNorm(1.0, ord=1), {"sup_denominator_l1": 8.0}
    >>> round(momentum(Setting.of(p, ql.Adam(1e-4, 0.5, 0.5), stop, statistics)))  # M* = 5, c = 1, C = 1.91
    200384
    """
    return per_step(s.delta * s.stat("sup_denominator_l1"), s.step * _momentum_bracket(s), s.tolerance)


@bound(
    "adam.a_priori",
    family="adam",
    rules="constant",
    target="l1",
    assumes=(no_weight_decay, bias_corrected_momentum, averages_ratio, small_step),
    formula="least T with G_T (Delta + eta^2 M* C T) <= eta T (P eps)^2, "
    "G_T = P epsilon + S sqrt(Delta + eta^2 M* C T)",
)
def a_priori(s: Setting) -> float:
    r"""Count of Adam, with or without momentum, before the run.

    .. math:: T < \min\Bigl\{\tau : G_\tau\, (\Delta + \eta^2 M^* C \tau) \le \eta\tau (P\epsilon)^2\Bigr\},
              \qquad G_\tau = P\varepsilon + S \sqrt{\Delta + \eta^2 M^* C \tau},
              \qquad S = \min\Bigl(\sum_i \sqrt{2 H_{ii}},\ \sqrt{2 P\Lambda_P}\Bigr)

    Upper bound, a priori (strict): `momentum` with G by what the gradients can grow to. (S: in a block
    sum_i sqrt(vhat_i) <= sqrt(P_b sum_i vhat_i), and ||g_b||^2 <= 2 ||H_b|| f_b.) Assumes no weight decay,
    bias correction if beta1 > 0, beta1^2 < beta2 < 1 (or beta1 = 0), and a step so short that there is such a
    time.

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
    >>> s = Setting.of(p, ql.Adam(1e-4, 0.5, 0.5), ql.GradientNorm(1.0, ord=1))
    >>> round(a_priori(s))
    317671
    """
    return _growing_count(s)


# Softness -------------------------------------------------------------------------------------------------


@bound(
    "adam.is_signsgd",
    family="adam",
    kind="exact",
    form="equality",
    quantity="min_cos_sign",
    assumes=(no_weight_decay, no_memory),
    formula="cos(d_t, sign g_t) = 1 for beta1 = beta2 = epsilon = 0",
    source="balles2020",
)
def is_signsgd(s: Setting) -> float:
    r"""Least cosine between the update and sign g of Adam with beta1 = beta2 = epsilon = 0, which is SignSGD.

    .. math:: \cos(d_t, \mathrm{sign}\, g_t) = 1 \quad\text{for all}\ t

    Exact. The update is sign(g) to the bit for |g_i| in 1e-145 .. 1e154 or 0, so SignSGD's bounds apply to
    this Adam too. Assumes no weight decay.

    Parameters
    ----------
    s : Setting
        Any step rule, any stopping test.

    Returns
    -------
    float
        1.

    References
    ----------
    balles2020, bernstein2018.

    Examples
    --------
    >>> import quadlab as ql
    >>> p = ql.BlockQuadratic.from_blocks([[1.0, 4.0]], start=[4.0, 1.0], minimizer=[0.0, 0.0])
    >>> method = ql.Adam(0.1, beta1=0.0, beta2=0.0, epsilon=0.0)
    >>> is_signsgd(Setting.of(p, method, ql.Gap(1e-6)))
    1.0
    """
    return 1.0
