r"""Iteration counts without iterations, wherever the iteration is linear with constant coefficients.

**Modes.** With :math:`x = w - w^*`, GD with a constant step, with momentum or without, and frozen Adam split
into scalar recurrences, one for each eigenvalue a: of H, with the coordinates of x in its eigenbasis, or of
:math:`D^{-1/2} H D^{-1/2}`, :math:`D = \mathrm{diag}|g(w_0)|`, with those of :math:`D^{1/2} x`. In t updates
a coordinate is multiplied by r(t), r(0) = 1. With :math:`z = \eta a`:

================  ==========================================  ================  ===========================
method            r(t+1)                                      r(1)              stable for
================  ==========================================  ================  ===========================
GD                (1 - z) r(t)                                1 - z             z <= 2
GD, momentum mu   (1 + mu - z) r(t) - mu r(t-1)               1 - z             z <= 2 (1 + mu)
GD, Nesterov      (1 + mu)(1 - z) r(t) - mu (1 - z) r(t-1)    1 - (1 + mu) z    z <= 2 (1 + mu) / (1 + 2 mu)
frozen Adam       as momentum mu = beta1 with (1 - beta1) z for z
================  ==========================================  ================  ===========================

Let p, q be the roots of the recurrence's polynomial, :math:`|p| \ge |q|`. Where they are real,

.. math:: r(t) = p^t \Bigl[1 + \Bigl(\frac{r(1)}{p} - 1\Bigr) \frac{1 - (q/p)^t}{1 - q/p}\Bigr]

(the last fraction is t where they are equal); where they are complex, :math:`p = |p| e^{i\theta}`,

.. math:: r(t) = |p|^t \Bigl[\cos\theta t + \frac{r(1) - |p|\cos\theta}{|p|\sin\theta} \sin\theta t\Bigr].

All three polynomials have (1 - p)(1 - q) = z, which gives 1 - p, and so ln p, to the last digits where p is
close to 1 and t is :math:`10^9`.

**What is measured** is :math:`\sum_i s_i r_i(t)^2`: the shares s add up to :math:`\|g_0\|_2^2`, or to
:math:`f(w_0) - f^*`. The l_2 norm of GD and the gap are such sums; other norms are not, nor is a norm of g
for frozen Adam.

**First hitting.** Without momentum :math:`r^2` never rises while :math:`|1 - z| \le 1`, and the first t at
which the sum is at most the tolerance is found by bisection. With momentum a mode of complex roots
oscillates, and the sum may fall below the tolerance and come back. But where
:math:`0 \le q < p < r(1) \le 1`,

    r(t) = A p^t - B q^t,    A = (r(1) - q) / (p - q) > 1,    B = A - 1 > 0,

is positive and falls: both A p^t / (B q^t) and A (1 - p) p^t / (B (1 - q) q^t) rise with t, and are above 1
at t = 0 because r(0) > 0 and r(0) > r(1); q = p is the limit. (Real roots of one sign at small z have
p < r(1): the polynomial at r(1) is :math:`\mu z`, or :math:`\mu^2 z` for Nesterov, so r(1) is not between
the roots, and it is above their mean.) These *falling* modes alone are a lower value of the sum that never
rises: the first t at which it meets the tolerance, found by bisection, is at most T. Any t at which the whole
sum meets the tolerance is at least T. The times between the two are scanned, one step of the recurrences
each: about as many as the oscillating modes take to die out.

Where oscillating modes all but cancel, so that the sum is smaller than the rounding of its terms, the count
is the choice of rounding, here as in a simulation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from quadlab._arrays import FloatArray
from quadlab.bases import one_blas_thread
from quadlab.curvature import frozen_preconditioner, starting_gradient
from quadlab.methods import GD, Adam, Method
from quadlab.problem import BlockQuadratic, DiagonalBlock

#: No count is looked for beyond this.
FOREVER = 1 << 1000
#: Exponents of what is nothing beside 1, whatever the number of modes.
NEGLIGIBLE = -100.0
#: Steps of the scan from one evaluation of the closed form to the next.
SCAN = 1000


@dataclass(frozen=True, eq=False)
class Modes:
    """Scalar recurrences r(t+1) = trace r(t) - determinant r(t-1), r(0) = 1; arrays of shape (n,).

    Attributes
    ----------
    trace, determinant : ndarray
        The sum and the product of the roots p and q.
    log_radius : ndarray
        ln |p|; -inf for p = 0.
    negative : ndarray of bool
        Whether p < 0.
    excess, gap, log_ratio : ndarray
        For real roots r(1) / p - 1, 1 - q / p and ln |q / p|; excess 0 for complex ones.
    angle, slope : ndarray
        For complex roots r(t) = |p|^t (cos(angle t) + slope sin(angle t)); 0 for real ones.
    falling : ndarray of bool
        Which r(t)^2 are known never to rise.
    """

    trace: FloatArray
    determinant: FloatArray
    log_radius: FloatArray
    negative: np.ndarray
    excess: FloatArray
    gap: FloatArray
    log_ratio: FloatArray
    angle: FloatArray
    slope: FloatArray
    falling: np.ndarray

    def __getitem__(self, index: np.ndarray) -> Modes:
        return Modes(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def values(self, t: int) -> FloatArray:
        """Return r(t), for t >= 0."""
        if t == 0:
            return np.ones_like(self.trace)
        signs = np.where(self.negative, (-1.0) ** (t % 2), 1.0)
        with np.errstate(under="ignore"):
            return signs * np.exp(t * self.log_radius) * self.shape(t)

    def shape(self, t: float) -> Any:
        """Return r(t) / |p|^t, up to its sign, for t >= 1."""
        if not (self.excess.any() or self.angle.any()):
            return 1.0
        with np.errstate(divide="ignore", invalid="ignore", under="ignore"):
            power = np.where(
                self.gap <= 1.0,
                -np.expm1(t * self.log_ratio),  # 1 - (q/p)^t
                1.0 - (-1.0) ** (t % 2) * np.exp(t * self.log_ratio),
            )
            straight = 1.0 + self.excess * np.where(self.gap == 0.0, t, power / self.gap)
        turning = self.angle > 0.0
        if not turning.any():
            return straight
        phase = t * self.angle
        return np.where(turning, np.cos(phase) + self.slope * np.sin(phase), straight)


def first_order(z: FloatArray) -> Modes:
    """Return the modes r(t) = (1 - z)^t, for 0 <= z <= 2."""
    zero = np.zeros_like(z)
    with np.errstate(divide="ignore"):
        # |1 - z| = 1 - min(z, 2 - z), and 2 - z is exact above 1/2
        log_radius = np.log1p(-np.minimum(z, 2.0 - z))
    return Modes(
        trace=1.0 - z, determinant=zero, log_radius=log_radius, negative=z > 1.0, excess=zero,
        gap=zero + 1.0, log_ratio=zero, angle=zero, slope=zero, falling=z >= 0.0,
    )  # fmt: skip


def heavy_ball(z: FloatArray, momentum: float) -> Modes:
    """Return the modes of r(t+1) = (1 + mu - z) r(t) - mu r(t-1), r(1) = 1 - z, for 0 < mu < 1."""
    root = math.sqrt(momentum)
    discriminant = ((1.0 - root) ** 2 - z) * ((1.0 + root) ** 2 - z)
    return _second_order(z, 1.0 + momentum - z, np.full_like(z, momentum), discriminant, 1.0 - z)


def nesterov(z: FloatArray, momentum: float) -> Modes:
    """Return the modes of r(t+1) = (1 + mu)(1 - z) r(t) - mu (1 - z) r(t-1), r(1) = 1 - (1 + mu) z."""
    z = np.where(z == 1.0, np.nextafter(1.0, 0.0), z)  # both roots would be 0, but not r(1)
    rest, more, less = 1.0 - z, 1.0 + momentum, 1.0 - momentum
    return _second_order(z, more * rest, momentum * rest, rest * (less**2 - more**2 * z), 1.0 - more * z)


def _second_order(
    z: FloatArray, trace: FloatArray, determinant: FloatArray, discriminant: FloatArray, first: FloatArray
) -> Modes:
    """Return the modes of a recurrence with (1 - p)(1 - q) = z, not both roots 0, and r(1) = first."""
    real = discriminant >= 0.0
    half, width = 0.5 * trace, 0.5 * np.sqrt(np.abs(discriminant))
    with np.errstate(divide="ignore", invalid="ignore"):
        p = np.where(half >= 0.0, half + width, half - width)
        q = determinant / p
        short = z / (1.0 - q)  # 1 - p
        log_p = np.where(short < 0.5, np.log1p(-np.minimum(short, 0.5)), np.log(np.abs(p)))
        gap = np.where(q / p < 0.0, 1.0 - q / p, 2.0 * width / np.abs(p))
        log_ratio = np.where(gap < 0.5, np.log1p(-np.minimum(gap, 0.5)), np.log(np.abs(q / p)))
        return Modes(
            trace=trace,
            determinant=determinant,
            log_radius=np.where(real, log_p, 0.5 * np.log(np.abs(determinant))),
            negative=real & (p < 0.0),
            excess=np.where(real, first / p - 1.0, 0.0),
            gap=np.where(real, gap, 1.0),
            log_ratio=np.where(real, log_ratio, 0.0),
            angle=np.where(real, 0.0, np.arctan2(width, half)),
            slope=np.where(real, 0.0, (first - half) / width),
            falling=real & (q >= 0.0) & (p > 0.0) & (p <= first) & (first <= 1.0),
        )


def stability_edge(momentum: float, nesterov: bool = False) -> float:
    r"""Return the largest z at which :math:`|r(t)|` stays bounded; with momentum only below it does r vanish.

    Parameters
    ----------
    momentum : float in [0, 1)
    nesterov : bool

    Examples
    --------
    >>> stability_edge(0.0), stability_edge(0.5), stability_edge(0.5, nesterov=True)
    (2.0, 3.0, 1.5)
    """
    return 2.0 * (1.0 + momentum) / (1.0 + 2.0 * momentum if nesterov else 1.0)


class _Sum:
    """The sum over modes of exp(logs) r(t)^2, for t >= 1."""

    def __init__(self, modes: Modes, logs: FloatArray) -> None:
        self._modes, self._logs = modes, logs

    def at(self, t: int) -> float:
        """Return the sum at t."""
        time = float(t)
        with np.errstate(over="ignore", under="ignore"):
            sizes = np.exp(2.0 * time * self._modes.log_radius + self._logs)
            return float((sizes * np.square(self._modes.shape(time))).sum())

    def after(self, t: int) -> _Sum:
        """Return the same sum from t - 1 on, with less work.

        Modes that are negligible are left out; those of two real roots whose smaller one is become p^t alone.
        """
        m, logs, time = self._modes, self._logs, float(t - 1)
        pair = m.excess != 0.0
        with np.errstate(divide="ignore", invalid="ignore"):
            limit = np.where(pair, 1.0 + m.excess / m.gap, 1.0)  # of r(t) / p^t
            most = np.log(1.0 + 2.0 * np.abs(limit - 1.0) + np.abs(m.slope))
            settled = pair & (time * m.log_ratio < NEGLIGIBLE)
            alive = ~(2.0 * (time * m.log_radius + most) + logs < NEGLIGIBLE)
        logs = logs + 2.0 * np.log(np.abs(np.where(settled, limit, 1.0)))
        return _Sum(replace(m, excess=np.where(settled, 0.0, m.excess))[alive], logs[alive])

    def scan(self, begin: int, end: int) -> int | None:
        """Return the least t in begin..end at which the sum is at most 1, None if there is none."""
        while begin <= end:
            part = self.after(begin)
            m, scale = part._modes, np.exp(0.5 * part._logs)
            before, now = scale * m.values(begin - 1), scale * m.values(begin)
            for t in range(begin, min(end, begin + SCAN - 1) + 1):
                if now @ now <= 1.0:
                    return t
                before, now = now, m.trace * now - m.determinant * before
            begin += SCAN
        return None

    def descend(self, begin: int, last: int) -> int | None:
        """Return a t in begin..last at which the sum is at most 1, and above 1 at t - 1 unless t = begin.

        It is looked for in steps that double. None: not found; a sum that never rises has none then.
        """
        if self.at(begin) <= 1.0:
            return begin
        total, above, step = self, begin, 1 + begin // 8
        while True:
            if above == last:
                return None
            total = total.after(above)
            t = min(above + step, last)
            if total.at(t) <= 1.0:
                break
            above, step = t, 2 * step
        while t - above > 1:
            middle = (above + t) // 2
            above, t = (middle, t) if total.at(middle) > 1.0 else (above, middle)
        return t


def hitting_time(modes: Modes, shares: FloatArray, tolerance: float, last: int = FOREVER) -> int | None:
    r"""Return the least t in 0..last with :math:`\sum_i s_i r_i(t)^2 \le` tolerance.

    Parameters
    ----------
    modes : Modes
        n of them, all stable.
    shares : ndarray of shape (n,)
        :math:`s_i \ge 0`.
    tolerance : float > 0
        In the unit of the shares.
    last : int >= 0
        The last t that is looked at.

    Returns
    -------
    int or None
        None if there is no such t.

    Examples
    --------
    >>> hitting_time(first_order(np.array([1e-9, 0.5])), np.array([1.0, 1.0]), 1e-6)
    6907755276
    >>> hitting_time(heavy_ball(np.array([0.1]), 0.9), np.array([1.0]), 1e-2)  # r(5) = -0.03
    5
    """
    if shares.sum() <= tolerance:
        return 0
    seen = shares > 0.0
    modes, logs = modes[seen], np.log(shares[seen]) - math.log(tolerance)
    falling = _Sum(modes[modes.falling], logs[modes.falling])
    if last < 1 or falling.at(last) > 1.0:
        return None
    # Falling modes have r(t) >= |p|^t: one alone is above 1 until then.
    large = modes.falling & (logs > 0.0)
    alone = (logs[large] / (-2.0 * modes.log_radius[large])).max(initial=0.0)
    low = falling.descend(max(1, int(alone * (1.0 - 1e-9)) - 1), last)
    if low is None or modes.falling.all():
        return low
    total = _Sum(modes, logs)
    high = total.descend(low, last)
    return total.scan(low, last if high is None else high)


def spectral_shares(problem: BlockQuadratic) -> tuple[FloatArray, FloatArray]:
    """Return the shares of ||g_0||^2 and of f(w_0) - f* by eigendirection; kept with the problem.

    They are gamma_i^2 and gamma_i^2 / (2 lam_i) = lam_i x_i^2 / 2.

    Parameters
    ----------
    problem : BlockQuadratic
        The problem.

    Returns
    -------
    tuple of ndarray, shape (P,)
        Their sums are ||g_0||^2 and f(w_0) - f*.
    """
    known = problem.cache.get("spectral_shares")
    if known is None:
        x = problem.to_eigenbasis(problem.displacement)
        gamma = problem.eigenvalues * x
        known = problem.cache["spectral_shares"] = (gamma * gamma, 0.5 * gamma * x)
    return known


@dataclass(frozen=True, eq=False)
class LinearIteration:
    """A method on a problem as modes.

    Attributes
    ----------
    modes : Modes
    shares : dict
        By the name of what is measured, "gap" and for GD "grad_l2" (squared), the shares of its start.
    point : callable
        t -> the point w after t updates.
    """

    modes: Modes
    shares: dict[str, FloatArray]
    point: Callable[[int], FloatArray]

    def measured(self, t: int) -> dict[str, float]:
        """Return what is measured after t updates."""
        squares = np.square(self.modes.values(t))
        sums = {name: float(shares @ squares) for name, shares in self.shares.items()}
        return {name: math.sqrt(total) if name == "grad_l2" else total for name, total in sums.items()}

    def count(self, name: str, tolerance: float, last: int) -> int | None:
        """Return the least t in 0..last at which what is measured is at most the tolerance, or None."""
        squared = tolerance * tolerance if name == "grad_l2" else tolerance
        return hitting_time(self.modes, self.shares[name], squared, last)


def linear_iteration(problem: BlockQuadratic, method: Method, learning_rate: float | None) -> LinearIteration:
    """Return a method's modes on a problem.

    Parameters
    ----------
    problem : BlockQuadratic
    method : GD or Adam
        GD in all its forms; Adam with beta2 = 1, epsilon = 0 and no weight decay, and without bias correction
        where beta1 > 0.
    learning_rate : float or None
        The constant, None where it is not.

    Returns
    -------
    LinearIteration

    Raises
    ------
    ValueError
        If the iteration is not linear with constant coefficients, or not stable.

    Examples
    --------
    >>> p = BlockQuadratic.from_blocks([[1.0, 4.0]], start=[4.0, 1.0])
    >>> linear_iteration(p, GD(0.25), 0.25).measured(2)
    {'gap': 2.53125, 'grad_l2': 2.25}
    """
    if learning_rate is None:
        raise ValueError(f"closed_form needs a constant learning_rate, received {method.learning_rate!s}")
    if isinstance(method, GD):
        eigenvalues, edge = problem.eigenvalues, stability_edge(method.momentum, method.nesterov)
    elif isinstance(method, Adam):
        _check_frozen(method)
        eigenvalues = frozen_preconditioner(problem).eigenvalues
        edge = stability_edge(method.beta1) / (1.0 - method.beta1)
    else:
        raise ValueError(f"closed_form goes with GD and with Adam of beta2 = 1, received {method}")
    top = float(eigenvalues.max())
    if not learning_rate * top <= edge:
        raise ValueError(
            f"closed_form needs a stable step, at most {edge / top:.6g} here, received {learning_rate:.6g}"
        )

    def modes(eigenvalues: FloatArray) -> Modes:
        z = learning_rate * eigenvalues
        if isinstance(method, Adam):
            return heavy_ball((1.0 - method.beta1) * z, method.beta1) if method.beta1 else first_order(z)
        if method.momentum == 0.0:
            return first_order(z)
        return (nesterov if method.nesterov else heavy_ball)(z, method.momentum)

    all_modes = modes(eigenvalues)
    if isinstance(method, Adam):
        return LinearIteration(
            all_modes,
            {"gap": frozen_preconditioner(problem).components},
            lambda t: problem.minimizer + _frozen_displacement(problem, lambda a: modes(a).values(t)),
        )
    by_norm, by_gap = spectral_shares(problem)
    x = problem.to_eigenbasis(problem.displacement)
    return LinearIteration(
        all_modes,
        {"gap": by_gap, "grad_l2": by_norm},
        lambda t: problem.minimizer + problem.from_eigenbasis(all_modes.values(t) * x),
    )


def _check_frozen(method: Adam) -> None:
    if not method.frozen:
        raise ValueError(f"closed_form needs Adam with beta2 = 1, received beta2 = {method.beta2:g}")
    if method.epsilon != 0.0 or method.weight_decay != 0.0:
        raise ValueError(
            "closed_form needs Adam with epsilon = 0 and weight_decay = 0, "
            f"received {method.epsilon:g} and {method.weight_decay:g}"
        )
    if method.beta1 != 0.0 and method.bias_correction:
        raise ValueError(
            "closed_form needs Adam with bias_correction=False where beta1 > 0, received bias_correction=True"
        )


def _frozen_displacement(problem: BlockQuadratic, values: Callable[[FloatArray], FloatArray]) -> FloatArray:
    """Return x of frozen Adam, block by block, from eigenvalue -> r(t)."""
    scales = problem.split(np.abs(starting_gradient(problem)))
    parts = []
    for block, scale, x in zip(problem.blocks, scales, problem.split(problem.displacement), strict=True):
        if isinstance(block, DiagonalBlock):
            parts.append(values(block.eigenvalues / scale) * x)
            continue
        root = np.sqrt(scale)
        with one_blas_thread(block.size):
            a, vectors = np.linalg.eigh(block.to_dense() / root / root[:, None])
            parts.append(vectors @ (values(np.maximum(a, 0.0)) * (vectors.T @ (root * x))) / root)
    return np.concatenate(parts)
