r"""Stopping tests, each absolute or relative to its own value at the start.

===========================  ==============================  =================================
test                         absolute                        relative to the start
===========================  ==============================  =================================
``GradientNorm(eps, 1)``     :math:`\|g\|_1 \le P\epsilon`   :math:`\|g\|_1 \le \epsilon\|g_0\|_1`
``GradientNorm(eps, 2)``     :math:`\|g\|_2 \le \sqrt P\epsilon`  :math:`\|g\|_2 \le \epsilon\|g_0\|_2`
``GradientNorm(eps, inf)``   :math:`\|g\|_\infty \le\epsilon` :math:`\|g\|_\infty\le\epsilon\|g_0\|_\infty`
``Gap(delta)``               :math:`f - f^* \le \delta`      :math:`f - f^* \le \delta\Delta`
===========================  ==============================  =================================

The targets differ: by :math:`\|g\|_1 \le \sqrt P \|g\|_2`, the l2 test implies the l1 test of the same
:math:`\epsilon`. A comparison of methods offers the same test to all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from quadlab._arrays import shown
from quadlab.kernels.codes import STOP_GAP, STOP_L1, STOP_L2, STOP_LINF
from quadlab.problem import BlockQuadratic, check_problem


def as_float(value: Any) -> float:
    """Return a number as a float, infinite where an integer is too large for one."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _positive(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise ValueError(f"{what} must be a positive number, received {shown(value)}")
    number = as_float(value)
    if not 0.0 < number < math.inf:
        raise ValueError(f"{what} must be positive and finite, received {shown(value)}")
    return number


def _check_relative(value: Any) -> None:
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"relative must be True or False, received {shown(value)}")


_CODES = {1: STOP_L1, 2: STOP_L2, math.inf: STOP_LINF}


@dataclass(frozen=True)
class GradientNorm:
    r"""Stop when the mean gradient coordinate is small in the norm `ord`.

    Parameters
    ----------
    eps : float > 0
        :math:`\epsilon`, a gradient per coordinate (absolute), or a fraction of the start's norm (relative).
    ord : 1, 2 or inf
        :math:`\|g\|_1 \le P\epsilon`, :math:`\|g\|_2 \le \sqrt P\epsilon` or
        :math:`\|g\|_\infty \le \epsilon`.
    relative : bool
        Compare the norm with :math:`\epsilon` times its value at the start instead.

    Raises
    ------
    ValueError
        If eps is not positive and finite or ord is another number.

    Examples
    --------
    >>> GradientNorm(eps=1e-3, ord=2).tolerance(size=100)
    0.01
    """

    eps: float
    ord: float = 1
    relative: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", _positive(self.eps, "eps"))
        if isinstance(self.ord, (bool, np.ndarray)) or self.ord not in (1, 2, math.inf):
            raise ValueError(f"ord must be 1, 2 or inf, received {shown(self.ord)}")
        _check_relative(self.relative)

    @property
    def code(self) -> int:
        """The kernels' code of the measured quantity."""
        return _CODES[self.ord]

    @property
    def quantity(self) -> str:
        """Name of the measured quantity."""
        return {1: "grad_l1", 2: "grad_l2", math.inf: "grad_linf"}[self.ord]

    def tolerance(self, size: int, start_value: float | None = None) -> float:
        """Return the number that the measured norm must not exceed, for a problem of `size` parameters."""
        if self.relative:
            return _relative_tolerance(self.eps, start_value)
        return {1: size, 2: math.sqrt(size), math.inf: 1.0}[self.ord] * self.eps

    def __str__(self) -> str:
        name = {1: "||g||_1", 2: "||g||_2", math.inf: "||g||_inf"}[self.ord]
        scale = f"{name} at the start" if self.relative else {1: "P", 2: "sqrt(P)", math.inf: "1"}[self.ord]
        return f"{name} <= {self.eps:g} * {scale}"


@dataclass(frozen=True)
class Gap:
    r"""Stop when :math:`f - f^* \le \delta`, or :math:`\le \delta\,(f(w_0) - f^*)` if relative.

    Parameters
    ----------
    delta : float > 0
        The target, in units of f (absolute) or of the initial gap (relative).
    relative : bool
        Whether delta is a fraction of the initial gap.

    Raises
    ------
    ValueError
        If delta is not positive and finite.

    Examples
    --------
    >>> Gap(1e-8, relative=True).tolerance(size=3, start_value=2.0)
    2e-08
    """

    delta: float
    relative: bool = False

    code = STOP_GAP
    quantity = "gap"

    def __post_init__(self) -> None:
        object.__setattr__(self, "delta", _positive(self.delta, "delta"))
        _check_relative(self.relative)

    def tolerance(self, size: int, start_value: float | None = None) -> float:
        """Return the number that the gap must not exceed."""
        return _relative_tolerance(self.delta, start_value) if self.relative else self.delta

    def __str__(self) -> str:
        return f"f - f* <= {self.delta:g}" + (" * its value at the start" if self.relative else "")


Stop = GradientNorm | Gap


def _relative_tolerance(fraction: float, start_value: float | None) -> float:
    if start_value is None:
        raise ValueError("a relative test needs the start's own value, received None")
    return fraction * start_value


def check_stop(stop: Any) -> Stop:
    """Return `stop` if it is a stopping test, else raise ValueError."""
    if not isinstance(stop, (GradientNorm, Gap)):
        raise ValueError(f"stop must be a GradientNorm or a Gap, received {shown(stop)}")
    return stop


def default_stop(problem: BlockQuadratic) -> GradientNorm:
    r"""Return the test :math:`\|g\|_1 \le P\epsilon` with :math:`\epsilon` a thousandth of the start's mean.

    Parameters
    ----------
    problem : BlockQuadratic
        :math:`\epsilon = 10^{-3}\,\mathrm{mean}_i |g_{0,i}|`.

    Returns
    -------
    GradientNorm
        For a start at the minimiser, where the mean is 0, :math:`\epsilon` is the smallest normal number.

    Examples
    --------
    >>> from quadlab.problem import BlockQuadratic
    >>> default_stop(BlockQuadratic.from_spectra([[1.0, 2.0]], start=[2.0, 1.0])).eps
    0.002
    """
    check_problem(problem)
    mean = float(np.abs(problem.gradient(problem.start)).mean())
    return GradientNorm(max(1e-3 * mean, float(np.finfo(np.float64).tiny)), ord=1)
