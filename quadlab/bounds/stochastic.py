r"""Bounds under gradient noise: the method sees :math:`g_i + \sigma_i\xi_i`, f and the test see g.

The :math:`\xi` are independent in i and t, of mean zero and variance one. What is bounded is an expectation
over the noise: a single run may exceed it. :func:`quadlab.expectation` tests it on many seeds.

**One proof for counts.** Let E_t be the mean given w_t, and T the count. If E_t f_{t+1} <= f_t - c whenever
the test does not hold at w_t, then f_{min(t,T)} + c min(t, T) is a supermartingale, so c E[min(t, T)] <=
Delta for every t, hence **E[T] <= Delta / c**. In the same way E_t f_{t+1} <= f_t - eta_t u_t + v_t gives
**E sum eta_t u_t <= Delta + E sum v_t** over the updates made, whatever stops them. (The minimum over t of
E u_t is no more than the eta-weighted average; a minimum over t of *sample* means is biased low, and is not
used.)

**SGD.** With V = sum H_ii sigma_i^2, E_t f+ = f - eta ||g||^2 + (eta^2 / 2)(g^T H g + V), g^T H g <= L
||g||^2. So for eta <= 1/L the decrease is at least (eta / 2)(||g||_2^2 - eta V): u = ||g||_2^2 / 2 and v =
eta^2 V / 2; and before the stop ||g||_2^2 > P eps^2, so c = (eta / 2)(P eps^2 - eta V). In the eigenbasis of
H each coordinate of the displacement is an autoregression of its own: its second moment is known exactly.

**SignSGD.** E_t f+ <= f - eta sum g_i e_i + eta^2 M / 2 with e_i = E sign(g_i + sigma_i xi_i), any M >= M*.

- *Any law.* With S = |g_i| / sigma_i Cantelli's inequality bounds the probability of the wrong sign, or of
  zero, by 1 / (1 + S^2). So |e_i| >= (S^2 - 1) / (S^2 + 1), and as S (S^2 - 1) / (S^2 + 1) - (S - 1) =
  (S - 1)^2 / (S^2 + 1) >= 0, **g_i e_i >= |g_i| - sigma_i**. Summed: u = ||g||_1 - ||sigma||_1, v =
  eta^2 M / 2. The floor is real: two-point noise +-sigma hides every gradient below sigma.
- *Gaussian.* e_i = erf(g_i / (sqrt 2 sigma_i)), and erf(S / sqrt 2) >= S / (sqrt(pi/2) + S). So g_i e_i >=
  g_i^2 / (a_i + |g_i|), a_i = sqrt(pi/2) sigma_i, and by Cauchy and Schwarz **sum g_i e_i >= ||g||_1^2 / (a +
  ||g||_1)**, a = sum a_i, which grows with ||g||_1. Before the stop it is more than h = (P eps)^2 / (a +
  P eps), so c = eta (h - eta M / 2), best at eta = h / M. No floor.

**One step of SignSGD, exactly.** Given w the signs s_i are independent, with means e_i and second moments q_i
(the probability that the sign is not zero), so E f+ = f - eta g^T e + (eta^2 / 2)(sum H_ii (q_i - e_i^2) +
e^T H e).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from quadlab._arrays import FloatArray, shown
from quadlab.bounds.gd import short_step
from quadlab.bounds.registry import bound
from quadlab.bounds.setting import Assumption, MissingStatisticError, Setting, assume, no_momentum
from quadlab.curvature import curvature
from quadlab.noise import degrees_of_freedom
from quadlab.problem import BlockQuadratic, DenseBlock, HouseholderBlock
from quadlab.run import Status
from quadlab.steps import Schedule, constant

#: sqrt(pi / 2), the 1.2533 of the Gaussian bounds.
ROOT = math.sqrt(math.pi / 2.0)


# -- quantities of the noise ---------------------------------------------------------------------------------


def weighted_variance(problem: BlockQuadratic) -> float:
    r"""Return :math:`V = \sum_i H_{ii} \sigma_i^2`, the mean of :math:`(\sigma\xi)^T H (\sigma\xi)`.

    Parameters
    ----------
    problem : BlockQuadratic
        With noise.

    Examples
    --------
    >>> p = BlockQuadratic.from_blocks([[1.0, 4.0]], start=[1, 1], noise=[3.0, 0.5])
    >>> weighted_variance(p)
    10.0
    """
    return float(problem.hessian_diagonal() @ np.square(problem.noise))


def expected_sign(problem: BlockQuadratic, g: FloatArray) -> tuple[FloatArray, FloatArray]:
    r"""Return the mean of :math:`\mathrm{sign}(g_i + \sigma_i\xi_i)`, and of its square.

    Parameters
    ----------
    problem : BlockQuadratic
        Its noise levels and their law.
    g : ndarray of shape (P,)
        The true gradient.

    Returns
    -------
    mean, square : ndarray of shape (P,)

    Examples
    --------
    >>> p = BlockQuadratic.from_blocks([[1.0, 1.0]], start=[1, 1]).with_noise([2.0, 0.0], "rademacher")
    >>> [e.tolist() for e in expected_sign(p, np.array([1.0, 1.0]))]
    [[0.0, 1.0], [1.0, 1.0]]
    """
    sigma, law = np.array(problem.noise), problem.noise_law
    mean, square = np.sign(g), np.abs(np.sign(g))
    noisy = sigma > 0.0
    s = g[noisy] / sigma[noisy]
    if law == "rademacher":
        up, down = np.sign(s + 1.0), np.sign(s - 1.0)
        mean[noisy], square[noisy] = (up + down) / 2.0, (np.abs(up) + np.abs(down)) / 2.0
        return mean, square
    square[noisy] = 1.0
    if law == "uniform":
        mean[noisy] = np.clip(s / math.sqrt(3.0), -1.0, 1.0)
    elif law == "gaussian":
        from scipy.special import erf

        mean[noisy] = erf(s / math.sqrt(2.0))
    else:
        from scipy.special import stdtr

        df = degrees_of_freedom(law)
        scale = math.sqrt((df - 2.0) / df) if df > 2.0 else 1.0
        mean[noisy] = np.sign(s) * (1.0 - 2.0 * stdtr(df, -np.abs(s) / scale))
    return mean, square


def density_at_zero(law: str) -> float:
    r"""Return the density of :math:`\xi` at 0; 0 for the two-point law.

    Parameters
    ----------
    law : str
        As in `quadlab.noise`.

    Examples
    --------
    >>> round(density_at_zero("gaussian"), 6), round(density_at_zero("student:1"), 6)
    (0.398942, 0.31831)
    """
    if law == "rademacher":
        return 0.0
    if law == "uniform":
        return 1.0 / math.sqrt(12.0)
    df = degrees_of_freedom(law)
    if math.isinf(df):
        return 1.0 / math.sqrt(2.0 * math.pi)
    scale = math.sqrt((df - 2.0) / df) if df > 2.0 else 1.0
    return math.exp(math.lgamma((df + 1.0) / 2.0) - math.lgamma(df / 2.0)) / (scale * math.sqrt(df * math.pi))


# -- exact means ---------------------------------------------------------------------------------------------


def second_moments(problem: BlockQuadratic, learning_rate: float | Schedule, steps: int) -> FloatArray:
    r"""Return :math:`E[\hat x_i^2]` of SGD after some steps, in the eigenbasis: exact for every law.

    .. math:: m_i \leftarrow (1 - \eta_t\lambda_i)^2 m_i + \eta_t^2\, q_i^T \Sigma q_i, \qquad
              E[f - f^*] = \tfrac12 \sum_i \lambda_i m_i

    since :math:`\hat x_i \leftarrow (1 - \eta\lambda_i)\hat x_i - \eta\, q_i^T(\sigma\xi)`, the two parts
    independent.

    Parameters
    ----------
    problem : BlockQuadratic
        Its start, Hessian and noise (of finite variance); :math:`\Sigma = \mathrm{diag}(\sigma^2)`.
    learning_rate : float or Schedule
    steps : int >= 0

    Returns
    -------
    ndarray of shape (P,)
        In the order of ``problem.eigenvalues``.

    Raises
    ------
    ValueError
        If the noise has no variance.

    Examples
    --------
    >>> p = BlockQuadratic.from_blocks([[1.0]], start=[0.0], noise=1.0)
    >>> second_moments(p, 0.5, 2).tolist()  # 0.25 + 0.25 / 4
    [0.3125]
    """
    _check_variance(problem)
    m = np.square(problem.to_eigenbasis(problem.displacement))
    rotated = _rotated_variance(problem)
    if isinstance(learning_rate, Schedule):
        for eta in learning_rate.values(0, steps):
            m = np.square(1.0 - eta * problem.eigenvalues) * m + eta**2 * rotated
        return m
    with np.errstate(over="ignore"):
        factor = np.square(1.0 - learning_rate * problem.eigenvalues)
        power = factor**steps
        rest = 1.0 - factor
        summed = np.where(rest == 0.0, steps, (1.0 - power) / np.where(rest == 0.0, 1.0, rest))
    return power * m + learning_rate**2 * rotated * summed


def _rotated_variance(problem: BlockQuadratic) -> FloatArray:
    """Return q_i^T Sigma q_i for the eigenvectors q_i, in the order of ``problem.eigenvalues``."""
    known = problem.cache.get("rotated_variance")
    if known is None:
        parts = []
        for block, sigma in zip(problem.blocks, problem.split(np.array(problem.noise)), strict=True):
            variance = np.square(sigma)
            if isinstance(block, DenseBlock):
                variance = np.square(block.eigenvectors).T @ variance
            elif isinstance(block, HouseholderBlock):  # Q^T is the same reflections in the other order
                turned = HouseholderBlock(block.eigenvalues, block.reflectors[::-1])
                variance = turned.spectral_diagonal(variance)
            parts.append(variance)
        known = problem.cache["rotated_variance"] = np.concatenate(parts)
    return known


def stationary_gap(problem: BlockQuadratic, method: Any) -> float:
    r"""Return the mean of :math:`f - f^*` that SGD or SignSGD with a constant step settles at.

    - SGD, any law, :math:`\eta < 2/L`: exactly
      :math:`\frac12 \sum_{\lambda_i > 0} \eta\, q_i^T\Sigma q_i/(2 - \eta\lambda_i)`.
    - SignSGD, to leading order in :math:`\eta`: :math:`\eta\|\sigma\|_1/(8\,p(0))`, p the density of
      :math:`\xi`: :math:`\eta\|\sigma\|_1\sqrt{\pi/2}/4` for Gaussian noise, :math:`\eta\|B\|_1/4` for noise
      uniform on [-B, B]. It does not depend on H, which must be positive definite. Near the minimiser
      :math:`E s = Dg`, :math:`D = \mathrm{diag}(2p(0)/\sigma_i)`, so that the covariance C of x obeys
      :math:`DHC + CHD = \eta I`; multiplied by :math:`D^{-1}` its trace is
      :math:`2\,\mathrm{tr}(HC) = \eta\,\mathrm{tr} D^{-1}`. Two-point noise has p(0) = 0, no such law, and a
      floor that no step lowers.

    Parameters
    ----------
    problem : BlockQuadratic
        With noise on every coordinate for SignSGD.
    method : GD or SignSGD
        With a number as learning rate and no momentum.

    Returns
    -------
    float
        The gap, in the unit of f.

    Raises
    ------
    ValueError
        Where there is no such floor.

    Examples
    --------
    >>> from quadlab.methods import GD, SignSGD
    >>> p = BlockQuadratic.from_blocks([[1.0]], start=[0.0], noise=1.0)
    >>> stationary_gap(p, GD(1.0)), round(stationary_gap(p, SignSGD(0.1)), 6)
    (0.5, 0.031333)
    """
    eta = method.learning_rate
    if not isinstance(eta, (int, float)) or getattr(method, "momentum", 0.0):
        raise ValueError(
            f"a stationary gap needs a constant learning rate and no momentum, received {method}"
        )
    if method.family == "gd":
        _check_variance(problem)
        if eta * curvature(problem).largest >= 2.0:
            raise ValueError(f"the learning rate must be below 2/L, received {shown(eta)}")
        values = problem.eigenvalues
        positive = values > 0.0
        return (
            0.5 * eta * float(np.sum(_rotated_variance(problem)[positive] / (2.0 - eta * values[positive])))
        )
    if method.family == "signsgd":
        density = density_at_zero(problem.noise_law)
        if not density or not problem.noise.all() or not all(b.full_rank for b in problem.blocks):
            raise ValueError(
                "the stationary gap of SignSGD needs a positive definite H and noise with a density on every "
                f"coordinate, received {problem.noise_law} noise from {problem.noise.min():g} up"
            )
        return eta * float(problem.noise.sum()) / (8.0 * density)
    raise ValueError(f"the stationary gap is known for GD and SignSGD, received {method}")


def _check_variance(problem: BlockQuadratic) -> None:
    if degrees_of_freedom(problem.noise_law) <= 2.0:
        raise ValueError(f"noise must have a finite variance, received {problem.noise_law}")


# -- schedules -----------------------------------------------------------------------------------------------


def optimised(
    problem: BlockQuadratic, family: str, horizon: int, shape: Schedule | None = None
) -> tuple[float, float]:
    r"""Return the best peak of a schedule over a fixed horizon, and the bound on the average it gives.

    With :math:`\eta_t = \eta\varphi(t)` the bounds on the weighted average of :math:`\|g\|_2^2`
    (`gd_average`) and :math:`\|g\|_1` (`signsgd_average`) are

    .. math:: \frac{D + v\,\eta^2\sum\varphi^2}{\eta\sum\varphi} + c, \qquad
              \eta^* = \sqrt{\frac{D}{v\sum\varphi^2}},

    with D = 2 Delta, v = V, c = 0 for GD (:math:`\eta\varphi \le 1/L` as well), and D = Delta, v = M/2,
    c = :math:`\|\sigma\|_1` for SignSGD. So a schedule costs :math:`\sqrt{T\sum\varphi^2}/\sum\varphi` times
    the constant: :math:`\sqrt{4/3}` for linear decay and :math:`\sqrt{3/2}` for the cosine as
    :math:`T \to \infty`. For SignSGD at a constant step, :math:`\eta^* = \sqrt{2\Delta/(P\Lambda T)}`,
    :math:`\Lambda = M/P`, is the learning rate for a fixed horizon.

    Parameters
    ----------
    problem : BlockQuadratic
    family : "gd" or "signsgd"
    horizon : int >= 1
        T.
    shape : Schedule, optional
        :math:`\varphi`, such as ``linear_decay(1.0, T)``; default: constant.

    Returns
    -------
    peak, bound : float
        :math:`\eta^*`, and the bound on the weighted average of :math:`\|g\|_2^2` or :math:`\|g\|_1`.

    Raises
    ------
    ValueError
        On another family or horizon, or a schedule that is zero.

    Examples
    --------
    >>> from quadlab.steps import linear_decay
    >>> p = BlockQuadratic.from_blocks([[1.0]], start=[1.0], noise=1.0)
    >>> flat, decay = (optimised(p, "gd", 10_000, shape)[1] for shape in (None, linear_decay(1.0, 10_000)))
    >>> round(decay / flat, 3)
    1.155
    """
    if isinstance(horizon, bool) or not isinstance(horizon, (int, np.integer)) or horizon < 1:
        raise ValueError(f"horizon must be an integer >= 1, received {shown(horizon)}")
    phi = (constant(1.0) if shape is None else shape).values(0, int(horizon))
    first, second = float(phi.sum()), float(phi @ phi)
    if not first > 0.0:
        raise ValueError(f"a schedule must be positive somewhere, received {shape}")
    constants, delta = curvature(problem), problem.value(problem.start)
    if family == "gd":
        _check_variance(problem)
        top, slope, floor = 2.0 * delta, weighted_variance(problem), 0.0
        limit = 1.0 / (constants.largest * float(phi.max()))
    elif family == "signsgd":
        top, slope, floor = delta, constants.m_star_upper / 2.0, float(problem.noise.sum())
        limit = math.inf
    else:
        raise ValueError(f"family must be gd or signsgd, received {shown(family)}")
    peak = min(math.sqrt(top / (slope * second)) if slope > 0.0 else math.inf, limit)
    return peak, (top / peak + slope * peak * second) / first + floor


# -- bounds --------------------------------------------------------------------------------------------------

has_variance = Assumption(
    lambda s: degrees_of_freedom(s.problem.noise_law) > 2.0,
    lambda s: f"the noise must have a finite variance, it is {s.problem.noise_law}",
)
has_mean_count = Assumption(
    lambda s: s.step * weighted_variance(s.problem) < s.tolerance**2,
    lambda s: (
        f"eta V must be below P eps^2 = {s.tolerance**2:.6g}, it is "
        f"{s.step * weighted_variance(s.problem):.6g}"
    ),
)
above_floor = Assumption(
    lambda s: _above_floor(s) > 0.0,
    lambda s: (
        f"P eps = {s.tolerance:.6g} must exceed ||sigma||_1 + eta M / 2 = {s.tolerance - _above_floor(s):.6g}"
    ),
)
gaussian_step = Assumption(
    lambda s: 0.5 * s.step * s.curvature.m_star_upper < _gaussian_descent(s),
    lambda s: (
        f"eta must be below 2 h / M = {2.0 * _gaussian_descent(s) / s.curvature.m_star_upper:.6g}, it is "
        f"{s.step:.6g}"
    ),
)
gaussian_law = Assumption(
    lambda s: s.problem.noise_law == "gaussian",
    lambda s: f"the noise must be Gaussian, it is {s.problem.noise_law}",
)


@assume("every eta_t must be at most 1/L")
def short_steps(s: Setting) -> bool:
    """Whether eta_t <= 1/L at every update."""
    if s.rule == "constant":
        return short_step.test(s)
    steps = _schedule(s)
    return bool(steps.size == 0 or steps.max() * s.curvature.largest <= 1.0 + 1e-12)


@assume("the run must not stop before its cap")
def reaches_cap(s: Setting) -> bool:
    """Whether the test did not hold on the way; before the run, that it will not."""
    return s.run is None or s.run.status is Status.MAX_ITERATIONS


@assume("the run must be one update long")
def one_update(s: Setting) -> bool:
    """Whether one update was made; before the run, that it will be."""
    return s.run is None or s.run.iterations == 1


def _above_floor(s: Setting) -> float:
    return s.tolerance - float(s.problem.noise.sum()) - 0.5 * s.step * s.curvature.m_star_upper


def _gaussian_descent(s: Setting) -> float:
    """Return h = (P eps)^2 / (a + P eps)."""
    return s.tolerance * (s.tolerance / (ROOT * float(s.problem.noise.sum()) + s.tolerance))


def _run(s: Setting) -> Any:
    if s.run is None:
        raise MissingStatisticError("run")
    return s.run


def _schedule(s: Setting) -> FloatArray:
    """Return the learning rates of the updates that a run with a schedule made."""
    run = _run(s)
    key = ("schedule", run.step.schedule, run.iterations)
    if key not in s.problem.cache:
        s.problem.cache[key] = run.step.schedule.values(0, run.iterations)  # type: ignore[index]
    return s.problem.cache[key]  # type: ignore[index]


def _sum_squares(s: Setting) -> float:
    """Return sum eta_t^2 over the updates of the run."""
    if s.rule == "constant":
        return s.step**2 * _run(s).iterations
    steps = _schedule(s)
    return float(steps @ steps)


@bound(
    "stochastic.gd_count",
    family="gd",
    rules="constant",
    target="l2",
    expectation=True,
    assumes=(no_momentum, has_variance, short_step, has_mean_count),
    formula="2 Delta / (eta (P eps^2 - eta V)), eta <= 1/L",
)
def gd_count(s: Setting) -> float:
    r"""Mean count of SGD with a constant step.

    .. math:: E[T] \le \frac{2\Delta}{\eta\,(P\epsilon^2 - \eta V)}, \qquad V = \sum_i H_{ii}\sigma_i^2,\
              \eta \le 1/L

    Upper bound on an expectation, a priori. At :math:`\eta = \min(1/L, P\epsilon^2/(2V))`, the learning rate
    "optimal", it is at most :math:`\max(4L\Delta/(P\epsilon^2), 8\Delta V/(P\epsilon^2)^2)`. Assumes noise of
    any law with a variance, no momentum, and :math:`\eta V < P\epsilon^2`.

    Parameters
    ----------
    s : Setting
        With a constant step and target l2.

    Returns
    -------
    float
        The bound on the mean number of updates.

    References
    ----------
    Derived (module docstring).

    Examples
    --------
    >>> import quadlab as ql
    >>> p = ql.BlockQuadratic.from_blocks([[1.0]], start=[2.0], noise=1.0)
    >>> gd_count(Setting.of(p, ql.GD(0.5), ql.GradientNorm(1.0)))
    16.0
    """
    return 2.0 * s.delta / (s.step * (s.tolerance**2 - s.step * weighted_variance(s.problem)))


@bound(
    "stochastic.gd_average",
    family="gd",
    rules=("constant", "schedule"),
    quantity="weighted_square",
    expectation=True,
    assumes=(no_momentum, has_variance, short_steps),
    formula="sum eta_t ||g_t||^2 <= 2 Delta + V sum eta_t^2, eta_t <= 1/L",
)
def gd_average(s: Setting) -> float:
    r"""Mean of the step-weighted sum of squared gradient norms of SGD.

    .. math:: E \sum_{t<T} \eta_t \|g_t\|_2^2 \le 2\Delta + V\, E\sum_{t<T} \eta_t^2, \qquad \eta_t \le 1/L

    Upper bound on an expectation, for any schedule and up to any stop; over :math:`\sum\eta_t` it bounds
    :math:`\min_t E\|g_t\|^2` by :math:`(2\Delta + V\sum\eta^2)/\sum\eta`. Assumes noise of any law with a
    variance and no momentum.

    Parameters
    ----------
    s : Setting
        With a constant step or a schedule, and its run; the stopping test does not matter.

    Returns
    -------
    float
        The bound on the sum.

    References
    ----------
    Derived (module docstring).

    Examples
    --------
    >>> import quadlab as ql
    >>> p = ql.BlockQuadratic.from_blocks([[1.0]], start=[2.0], noise=1.0)
    >>> gd_average(Setting.of_run(ql.solve(p, ql.GD(0.5), ql.Gap(1e-300), max_iterations=8)))
    6.0
    """
    return 2.0 * s.delta + weighted_variance(s.problem) * _sum_squares(s)


@bound(
    "stochastic.gd_gap",
    family="gd",
    rules=("constant", "schedule"),
    kind="exact",
    form="equality",
    quantity="final_gap",
    expectation=True,
    assumes=(no_momentum, has_variance, reaches_cap),
    formula="1/2 sum lam_i m_i, m_i <- (1 - eta lam_i)^2 m_i + eta^2 q_i^T Sigma q_i",
    measure=lambda s: s.problem.value(_run(s).point),
)
def gd_gap(s: Setting) -> float:
    r"""Mean gap of SGD after its last update.

    .. math:: E[f_T - f^*] = \tfrac12\sum_i \lambda_i m_i(T), \qquad
              m_i \leftarrow (1 - \eta_t\lambda_i)^2 m_i + \eta_t^2\, q_i^T\Sigma q_i

    Exact, for any schedule and any law with a variance (`second_moments`). Assumes no momentum, and a run
    that ends at its cap, not before.

    Parameters
    ----------
    s : Setting
        With a constant step or a schedule, and its run; the stopping test must not hold on the way.

    Returns
    -------
    float
        The mean gap, in the unit of f.

    References
    ----------
    Derived (`second_moments`).

    Examples
    --------
    >>> import quadlab as ql
    >>> p = ql.BlockQuadratic.from_blocks([[1.0]], start=[0.0], noise=1.0)
    >>> gd_gap(Setting.of_run(ql.solve(p.with_start([1.0]), ql.GD(0.5), ql.Gap(1e-300), max_iterations=1)))
    0.25
    """
    run = _run(s)
    key = ("gd_gap", run.step, run.iterations)
    if key not in s.problem.cache:
        rate = s.step if s.rule == "constant" else run.step.schedule
        moments = second_moments(s.problem, rate, run.iterations)  # type: ignore[arg-type]
        s.problem.cache[key] = 0.5 * float(s.problem.eigenvalues @ moments)  # type: ignore[index]
    return s.problem.cache[key]  # type: ignore[index]


@bound(
    "stochastic.signsgd_count",
    family="signsgd",
    rules="constant",
    target="l1",
    expectation=True,
    assumes=(no_momentum, has_variance, above_floor),
    formula="Delta / (eta (P eps - ||sigma||_1 - eta M / 2))",
)
def signsgd_count(s: Setting) -> float:
    r"""Mean count of SignSGD with a constant step under noise of any law, above a floor.

    .. math:: E[T] \le \frac{\Delta}{\eta\,(P\epsilon - \|\sigma\|_1 - \eta M/2)}

    Upper bound on an expectation, a priori; M is (the upper value of) M*. Assumes a law with a variance, no
    momentum, and a target above the floor, :math:`P\epsilon > \|\sigma\|_1 + \eta M/2`.

    Parameters
    ----------
    s : Setting
        With a constant step and target l1.

    Returns
    -------
    float
        The bound on the mean number of updates.

    References
    ----------
    Derived (module docstring); bernstein2018 for the argument, whose floor is 2 ||sigma||_1.

    Examples
    --------
    >>> import quadlab as ql
    >>> p = ql.BlockQuadratic.from_blocks([[1.0]], start=[2.0], noise=0.25)
    >>> signsgd_count(Setting.of(p, ql.SignSGD(0.5), ql.GradientNorm(1.0)))
    8.0
    """
    return s.delta / (s.step * _above_floor(s))


@bound(
    "stochastic.signsgd_average",
    family="signsgd",
    rules=("constant", "schedule"),
    quantity="weighted_l1",
    needs="sum_step",
    expectation=True,
    assumes=(no_momentum, has_variance),
    formula="sum eta_t ||g_t||_1 <= Delta + ||sigma||_1 sum eta_t + (M / 2) sum eta_t^2",
)
def signsgd_average(s: Setting) -> float:
    r"""Mean of the step-weighted sum of gradient norms of SignSGD under noise of any law.

    .. math:: E \sum_{t<T} \eta_t \|g_t\|_1 \le \Delta + \|\sigma\|_1\, E\sum_{t<T}\eta_t
              + \tfrac M2\, E\sum_{t<T}\eta_t^2

    Upper bound on an expectation, for any schedule and up to any stop. At a constant step over T updates:
    :math:`\min_t E\|g_t\|_1 \le \Delta/(\eta T) + \|\sigma\|_1 + \eta M/2`. M is (the upper value of) M*.
    Assumes a law with a variance and no momentum.

    Parameters
    ----------
    s : Setting
        With a constant step or a schedule, and its run; the stopping test does not matter.

    Returns
    -------
    float
        The bound on the sum.

    References
    ----------
    Derived (module docstring); bernstein2018 for the argument, whose floor is 2 ||sigma||_1.

    Examples
    --------
    >>> import quadlab as ql
    >>> p = ql.BlockQuadratic.from_blocks([[1.0]], start=[2.0], noise=0.25)
    >>> run = ql.solve(p, ql.SignSGD(0.5), ql.Gap(1e-300), max_iterations=8, statistics=["sum_step"])
    >>> run.iterations, signsgd_average(Setting.of_run(run))
    (4, 3.0)
    """
    floor = float(s.problem.noise.sum()) * s.stat("sum_step")
    return s.delta + floor + 0.5 * s.curvature.m_star_upper * _sum_squares(s)


@bound(
    "stochastic.signsgd_gaussian",
    family="signsgd",
    rules="constant",
    target="l1",
    expectation=True,
    assumes=(no_momentum, gaussian_law, gaussian_step),
    formula="Delta / (eta (h - eta M / 2)), h = (P eps)^2 / (1.2533 ||sigma||_1 + P eps)",
)
def signsgd_gaussian(s: Setting) -> float:
    r"""Mean count of SignSGD with a constant step under Gaussian noise, without a floor.

    .. math:: E[T] \le \frac{\Delta}{\eta\,(h - \eta M/2)}, \qquad
              h = \frac{(P\epsilon)^2}{\sqrt{\pi/2}\,\|\sigma\|_1 + P\epsilon}

    Upper bound on an expectation, a priori; least at :math:`\eta = h/M`, the learning rate "optimal", where
    it is :math:`\frac{2M\Delta}{(P\epsilon)^2}\bigl(1 + 1.2533\,\bar\sigma/\epsilon\bigr)^2`,
    :math:`\bar\sigma = \|\sigma\|_1/P`. M is (the upper value of) M*. Assumes Gaussian noise, no momentum and
    :math:`\eta < 2h/M`.

    Parameters
    ----------
    s : Setting
        With a constant step and target l1.

    Returns
    -------
    float
        The bound on the mean number of updates.

    References
    ----------
    Derived (module docstring).

    Examples
    --------
    >>> import quadlab as ql
    >>> p = ql.BlockQuadratic.from_blocks([[1.0]], start=[2.0], noise=1.0 / ROOT)  # h = 1/2
    >>> round(signsgd_gaussian(Setting.of(p, ql.SignSGD("optimal"), ql.GradientNorm(1.0))), 9)
    16.0
    """
    return s.delta / (s.step * (_gaussian_descent(s) - 0.5 * s.step * s.curvature.m_star_upper))


@bound(
    "stochastic.signsgd_step",
    family="signsgd",
    rules="constant",
    kind="exact",
    form="equality",
    quantity="final_gap",
    expectation=True,
    assumes=(no_momentum, reaches_cap, one_update),
    formula="f - eta g^T e + (eta^2 / 2)(sum H_ii (q_i - e_i^2) + e^T H e), e = E sign, q = E sign^2",
    measure=lambda s: s.problem.value(_run(s).point),
)
def signsgd_step(s: Setting) -> float:
    r"""Mean gap of SignSGD after one update.

    .. math:: E f^+ = f - \eta\, g^T e + \frac{\eta^2}{2}\Bigl(\sum_i H_{ii}(q_i - e_i^2) + e^T H e\Bigr),
              \qquad e_i = E\,\mathrm{sign}(g_i + \sigma_i\xi_i)

    Exact, for every law: :math:`e_i = \mathrm{erf}(g_i/(\sqrt2\sigma_i))` for Gaussian noise, and q_i, the
    probability that the sign is not zero, is 1 for every law with a density. Assumes no momentum and a cap of
    one update.

    Parameters
    ----------
    s : Setting
        With a constant step; the stopping test must not hold at the start.

    Returns
    -------
    float
        The mean gap, in the unit of f.

    References
    ----------
    Derived (module docstring).

    Examples
    --------
    >>> import quadlab as ql
    >>> p = ql.BlockQuadratic.from_blocks([[1.0]], start=[1.0]).with_noise(2.0, "rademacher")  # e = 0
    >>> signsgd_step(Setting.of(p, ql.SignSGD(0.5), ql.Gap(1e-300)))
    0.625
    """
    p = s.problem
    known = p.cache.get("signsgd_step")
    if known is None:
        g = p.gradient(p.start)
        e, q = expected_sign(p, g)
        spread = float(p.hessian_diagonal() @ (q - np.square(e)))
        known = p.cache["signsgd_step"] = float(g @ e), spread + float(e @ p.hvp(e))
    return s.delta - s.step * known[0] + 0.5 * s.step**2 * known[1]
