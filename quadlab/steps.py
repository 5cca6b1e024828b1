r"""Learning rates: what :math:`\eta_t` may be, and which rule goes with which method.

===================  =====================================================  ==========================
learning rate        :math:`\eta_t`                                         methods
===================  =====================================================  ==========================
a number             the number                                             all
a `Schedule`         :math:`\eta(t)`, or any function of t                  all
``"lemma"``          :math:`g\cdot d / (\Lambda(d)\|d\|^2)`                 all
``"lambda_g"``       the same for GD: :math:`1/\Lambda_G(t)`                GD (no momentum)
``"lambda_p"``       the same for SignSGD: :math:`\|g\|_1/(P\Lambda_P)`     SignSGD (no momentum)
``"m_star"``         :math:`\|g\|_1 / M`, M the least known upper value     SignSGD (no momentum)
                     of :math:`M^* = \max_{s\in\{-1,1\}^P} s^\top H s`
``"line_search"``    :math:`g\cdot d / (d^\top H d)`                        all
``"optimal"``        the best constant known: :math:`2/(\mu_+ + L)` for GD, GD and SignSGD (no momentum),
                     :math:`2/(a_{\min}+a_{\max})` for frozen Adam,         frozen Adam (beta1 = 0)
                     :math:`P\epsilon/M` for SignSGD
===================  =====================================================  ==========================

Under gradient noise the exact g is not there to be read: only a number, a schedule and ``"optimal"`` remain,
which is then the constant of the best bound on the mean count (:mod:`quadlab.bounds.stochastic`):
:math:`\min(1/L, P\epsilon^2/(2V))`, :math:`V = \sum_i H_{ii}\sigma_i^2`, for GD, and for SignSGD with
Gaussian noise :math:`(P\epsilon)^2/(M(\sqrt{\pi/2}\,\|\sigma\|_1 + P\epsilon))`.

The lemma's step is where every deterministic :math:`1/\epsilon^2` bound comes from. For SignSGD its
denominator :math:`\sum_b \|d_b\|^2 \|H_b\|` is :math:`P\Lambda_P` when no entry of g is zero, and less
otherwise. A step of zero length, or a direction with :math:`g\cdot d \le 0`, ends the run as
``not_descent``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from quadlab._arrays import FloatArray, shown
from quadlab.curvature import curvature, frozen_preconditioner
from quadlab.kernels import codes
from quadlab.stopping import Gap, Stop, as_float

if TYPE_CHECKING:
    from quadlab.problem import BlockQuadratic

#: Name of a rule -> families of methods it goes with (None: all).
RULES: dict[str, tuple[str, ...] | None] = {
    "lemma": None,
    "lambda_g": ("gd",),
    "lambda_p": ("signsgd",),
    "m_star": ("signsgd",),
    "line_search": None,
    "optimal": ("gd", "signsgd", "frozen_adam"),
}


@dataclass(frozen=True)
class Schedule:
    r"""A learning rate :math:`\eta(t)` that depends on the number t = 0, 1, ... of updates made before.

    Parameters
    ----------
    function : callable
        t -> :math:`\eta(t) > 0`; it may return 0.
    label : str
        How the schedule is shown.

    Examples
    --------
    >>> Schedule(lambda t: 1 / (t + 1), "1/(t+1)").values(0, 3)
    array([1.        , 0.5       , 0.33333333])
    """

    function: Callable[[int], float]
    label: str = "schedule"

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise ValueError(f"a Schedule is made of a function of t, received {shown(self.function)}")

    def values(self, begin: int, end: int) -> FloatArray:
        r"""Return :math:`\eta` for t = begin..end-1; ValueError where it is not finite and >= 0."""
        values = np.empty(end - begin)
        for k in range(begin, end):
            value = self.function(k)
            try:
                values[k - begin] = value
            except (TypeError, ValueError):
                raise ValueError(
                    f"learning_rate {self.label} must return a number, received {shown(value)} at t = {k}"
                ) from None
            if not 0.0 <= values[k - begin] < math.inf:
                raise ValueError(
                    f"learning_rate {self.label} must be finite and >= 0, received {shown(value)} at t = {k}"
                )
        return values

    def __str__(self) -> str:
        return self.label


def constant(rate: float) -> Schedule:
    """Return the schedule that is `rate` at all times."""
    rate = _rate(rate)
    return Schedule(lambda t: rate, f"{rate:g}")


def linear_decay(rate: float, horizon: int) -> Schedule:
    r"""Return :math:`\eta(t) = \eta\,(1 - t/T)`, 0 from the horizon T on."""
    rate, horizon = _rate(rate), _horizon(horizon)
    return Schedule(lambda t: rate * max(0.0, 1.0 - t / horizon), f"linear({rate:g}, {horizon})")


def cosine(rate: float, horizon: int) -> Schedule:
    r"""Return :math:`\eta(t) = \frac\eta2 (1 + \cos(\pi t/T))`, 0 from the horizon T on."""
    rate, horizon = _rate(rate), _horizon(horizon)
    return Schedule(
        lambda t: 0.5 * rate * (1.0 + math.cos(math.pi * min(t / horizon, 1.0))),
        f"cosine({rate:g}, {horizon})",
    )


def inverse_sqrt(rate: float) -> Schedule:
    r"""Return :math:`\eta(t) = \eta/\sqrt{t+1}`."""
    rate = _rate(rate)
    return Schedule(lambda t: rate / math.sqrt(t + 1.0), f"inverse_sqrt({rate:g})")


def warmup(steps: int, after: float | Schedule) -> Schedule:
    r"""Return the schedule `after`, its first `steps` values scaled by :math:`(t+1)/\mathrm{steps}`."""
    steps = _horizon(steps)
    schedule = after if isinstance(after, Schedule) else constant(after)
    function = schedule.function
    return Schedule(lambda t: function(t) * min(1.0, (t + 1.0) / steps), f"warmup({steps}, {schedule.label})")


def check_learning_rate(value: Any, families: tuple[str, ...], method: str) -> float | str | Schedule:
    """Return a learning rate that goes with the method, or raise ValueError."""
    if isinstance(value, Schedule):
        return value
    if isinstance(value, str):
        if value not in RULES:
            raise ValueError(
                f"learning_rate must be a number, a Schedule or one of {', '.join(RULES)}, received {value!r}"
            )
        allowed = RULES[value]
        if allowed is not None and not set(allowed) & set(families):
            raise ValueError(f"learning_rate {value!r} does not go with {method}")
        return value
    if callable(value):
        return Schedule(value, getattr(value, "__name__", "schedule"))
    return _rate(value)


class Step(NamedTuple):
    """A learning rate resolved for one run.

    Attributes
    ----------
    rule : int
        The kernels' code.
    rate : float
        The constant, 0 for the other rules.
    m : float
        The constant M of ``m_star``, else 0.
    schedule : Schedule or None
    """

    rule: int
    rate: float = 0.0
    m: float = 0.0
    schedule: Schedule | None = None


#: The rules whose steps need no number of the problem.
_OWN = {
    "lemma": Step(codes.LEMMA),
    "lambda_g": Step(codes.LEMMA),
    "lambda_p": Step(codes.LEMMA),
    "line_search": Step(codes.LINE_SEARCH),
}


def own_step(learning_rate: float | str | Schedule) -> Step | None:
    """Return what a learning rate is on any problem; None for a rule whose numbers are the problem's."""
    if isinstance(learning_rate, float):
        return Step(codes.CONSTANT, learning_rate)
    if isinstance(learning_rate, Schedule):
        return Step(codes.SCHEDULE, schedule=learning_rate)
    return _OWN.get(learning_rate)


def check_noise(learning_rate: float | str | Schedule) -> None:
    """Raise ValueError for a rule that does not go with gradient noise."""
    if isinstance(learning_rate, str) and learning_rate != "optimal":
        raise ValueError(
            f"learning_rate {learning_rate!r} needs the exact gradient, received a problem with noise: give "
            "a number or a schedule"
        )


def resolve(
    learning_rate: float | str | Schedule, families: tuple[str, ...], problem: BlockQuadratic, stop: Stop
) -> Step:
    """Return the learning rate of a run on `problem` that ends by `stop`; ValueError if noise forbids it."""
    if problem.is_noisy:
        check_noise(learning_rate)
    step = own_step(learning_rate)
    if step is None and learning_rate == "optimal":
        return Step(codes.CONSTANT, rate=_optimal(families, problem, stop))
    return step or Step(codes.M_STAR, m=curvature(problem).m_star_upper)


def _optimal(families: tuple[str, ...], problem: BlockQuadratic, stop: Stop) -> float:
    constants = curvature(problem)
    if constants.largest == 0.0:
        raise ValueError('learning_rate "optimal" needs a nonzero Hessian, received H = 0')
    if problem.is_noisy:
        return _optimal_under_noise(families, problem, stop)
    if "gd" in families:
        return 2.0 / (constants.smallest_positive + constants.largest)
    if "frozen_adam" in families:
        return frozen_preconditioner(problem).best_learning_rate
    return l1_target(problem, stop) / constants.m_star_upper


def _optimal_under_noise(families: tuple[str, ...], problem: BlockQuadratic, stop: Stop) -> float:
    constants, sigma = curvature(problem), problem.noise
    if "gd" in families:
        variance = float(problem.hessian_diagonal() @ np.square(sigma))
        target = l2_target(problem, stop)
        return min(1.0 / constants.largest, target * target / (2.0 * variance) if variance else math.inf)
    if "signsgd" in families and problem.noise_law == "gaussian":
        target = l1_target(problem, stop)
        spread = math.sqrt(math.pi / 2.0) * float(sigma.sum())
        return target * (target / (spread + target)) / constants.m_star_upper
    raise ValueError(
        f'learning_rate "optimal" is not known for this method with {problem.noise_law} noise: give a number'
    )


def l1_target(problem: BlockQuadratic, stop: Stop) -> float:
    r"""Return the largest :math:`\|g\|_1` that certifies `stop`.

    A norm of order 1, 2 or inf is at most :math:`\|g\|_1`, and
    :math:`f - f^* \le \|g\|_1^2/(2\mu_\infty)`.
    """
    tolerance = _tolerance(problem, stop)
    return math.sqrt(2.0 * curvature(problem).mu_inf * tolerance) if isinstance(stop, Gap) else tolerance


def l2_target(problem: BlockQuadratic, stop: Stop) -> float:
    r"""Return the largest :math:`\|g\|_2` that certifies `stop`.

    :math:`\|g\|_1 \le \sqrt P\|g\|_2`, and :math:`f - f^* \le \|g\|_2^2/(2\mu_+)`.
    """
    tolerance = _tolerance(problem, stop)
    if isinstance(stop, Gap):
        return math.sqrt(2.0 * curvature(problem).smallest_positive * tolerance)
    return tolerance / math.sqrt(problem.size) if stop.ord == 1 else tolerance


def _tolerance(problem: BlockQuadratic, stop: Stop) -> float:
    start_value = None
    if stop.relative:
        g = problem.gradient(problem.start)
        if isinstance(stop, Gap):
            start_value = 0.5 * float(problem.displacement @ g)
        else:
            start_value = float(np.linalg.norm(g, stop.ord))
    return stop.tolerance(problem.size, start_value)


def _rate(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise ValueError(f"learning_rate must be a positive number, received {shown(value)}")
    number = as_float(value)
    if not 0.0 < number < math.inf:
        raise ValueError(f"learning_rate must be positive and finite, received {shown(value)}")
    return number


def _horizon(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"a horizon must be an integer >= 1, received {shown(value)}")
    return int(value)
