r"""What a bound sees: a problem, a method with its step rule, and a stopping test with its tolerance.

**Targets.** A bound is proven for one stopping test, its target. If that test, with some tolerance tau',
implies the user's test with tolerance tau, then the user's test holds no later, and N(tau') bounds its count
as well. The tolerance handed to the bound is the largest tau' that the inequalities below certify (L, M*,
mu_+, mu_inf, as in :mod:`quadlab.curvature`; M* by its upper value):

========== ================== =================== ==================== =====================
user's     target l2          target l1           target linf          target gap
========== ================== =================== ==================== =====================
l2: tau    tau                tau                 tau / sqrt(P)        tau^2 / (2 L)
l1: tau    tau / sqrt(P)      tau                 tau / P              tau^2 / (2 M*)
linf: tau  tau                tau                 tau                  tau^2 / (2 max H_ii)
gap: tau   sqrt(2 mu_+ tau)   sqrt(2 mu_inf tau)  as l2 / sqrt(P),     tau
                                                  or l1 / P if larger
========== ================== =================== ==================== =====================

by ||g||_inf <= ||g||_2 <= ||g||_1 <= sqrt(P) ||g||_2 <= P ||g||_inf; 2 mu_+ f <= ||g||_2^2 <= 2 L f;
2 mu_inf f <= ||g||_1^2 <= 2 M* f; g_i^2 <= 2 H_ii f (f measured from f*). Conversion happens here and nowhere
else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from quadlab.curvature import Curvature, curvature
from quadlab.problem import Block, BlockQuadratic, DenseBlock, DiagonalBlock
from quadlab.run import Run
from quadlab.steps import resolve

TARGETS = ("l1", "l2", "linf", "gap")
RULES = ("constant", "schedule", "lemma", "m_star", "line_search")

#: The stopping test that measures each quantity of a run.
TEST_OF = {"grad_l1": "l1", "grad_l2": "l2", "grad_linf": "linf", "gap": "gap"}

_RULE_ALIASES = {"lambda_g": "lemma", "lambda_p": "lemma", "optimal": "constant"}


class MissingStatisticError(KeyError):
    """A statistic of the trajectory that was not recorded."""


@dataclass(frozen=True, slots=True)
class Setting:
    r"""What a bound's formula, and its assumptions, see.

    Attributes
    ----------
    problem, method
        As given.
    families : tuple of str
        The method's family; Adam with beta1 = beta2 = epsilon = 0 is SignSGD as well.
    rule : str
        "constant", "schedule", "lemma", "m_star" or "line_search".
    learning_rate : float or None
        The constant step eta; None for the other rules.
    curvature : Curvature
        The constants of H.
    size : int
        P.
    start : mapping
        The quantities at w_0: "gap", "grad_l1", "grad_l2", "grad_linf".
    delta : float
        Delta = f(w_0) - f*.
    test : str
        The user's stopping test: "l1", "l2", "linf" or "gap".
    target : str
        The stopping test that the bound is stated for.
    tolerance : float
        The tolerance of the target: P eps (l1), sqrt(P) eps (l2), eps (linf), delta (gap).
    statistics : mapping
        Statistics of the trajectory by name; read them with :meth:`stat`.
    run : Run or None
        The run; None before it is made.
    """

    problem: BlockQuadratic
    method: Any
    families: tuple[str, ...]
    rule: str
    learning_rate: float | None
    curvature: Curvature
    size: int
    start: Mapping[str, float]
    delta: float
    test: str
    target: str
    tolerance: float
    statistics: Mapping[str, float | None]
    run: Run | None = None

    @classmethod
    def of(
        cls,
        problem: BlockQuadratic,
        method: Any,
        stop: Any,
        statistics: Mapping[str, float | None] | None = None,
    ) -> Setting:
        """Return the setting before any run, with the user's stopping test as target.

        Parameters
        ----------
        problem : BlockQuadratic
            The problem.
        method : GD, SignSGD, Adam, ...
            The method.
        stop : GradientNorm or Gap
            The stopping test.
        statistics : mapping, optional
            Statistics of a trajectory, for a bound that needs them.

        Returns
        -------
        Setting
        """
        start = start_quantities(problem)
        test = TEST_OF[stop.quantity]
        rule = step_rule(method)
        rate = constant_learning_rate(problem, method, stop) if rule == "constant" else None
        tolerance = float(stop.tolerance(problem.size, start[stop.quantity]))
        return cls(
            problem=problem,
            method=method,
            families=families_of(method),
            rule=rule,
            learning_rate=rate,
            curvature=curvature(problem),
            size=problem.size,
            start=start,
            delta=start["gap"],
            test=test,
            target=test,
            tolerance=tolerance,
            statistics=statistics or {},
        )

    @classmethod
    def of_run(cls, run: Run) -> Setting:
        """Return the setting of a run, with the run's own stopping test as target."""
        rule, test = step_rule(run.method), TEST_OF[run.stop.quantity]
        start = start_quantities(run.problem)
        return cls(
            problem=run.problem,
            method=run.method,
            families=families_of(run.method),
            rule=rule,
            learning_rate=run.learning_rate if rule == "constant" else None,
            curvature=curvature(run.problem),
            size=run.problem.size,
            start=start,
            delta=start["gap"],
            test=test,
            target=test,
            tolerance=run.tolerance,
            statistics=run.statistics,
            run=run,
        )

    @property
    def eps(self) -> float:
        """The target's tolerance per parameter: eps of the norms, delta of the gap."""
        scale = {"l1": self.size, "l2": math.sqrt(self.size)}.get(self.target, 1.0)
        return self.tolerance / scale

    @property
    def step(self) -> float:
        """The constant learning rate eta; ValueError if the step is not constant."""
        if self.learning_rate is None:
            raise ValueError(f"learning_rate must be constant, received {self.rule}")
        return self.learning_rate

    def stat(self, name: str) -> float:
        """Return a statistic of the trajectory; `MissingStatisticError` if it was not recorded."""
        value = self.statistics.get(name)
        if value is None or math.isnan(value):
            raise MissingStatisticError(name)
        return value

    def at(self, target: str) -> Setting:
        """Return this setting with the tolerance that the target needs to certify the user's test."""
        if target == self.target:
            return self
        tolerance = convert(self.test, self.tolerance, target, self.size, self.curvature)
        return replace(self, target=target, tolerance=tolerance)


def convert(test: str, tolerance: float, target: str, size: int, constants: Curvature) -> float:
    """Return the largest known tolerance of ``target`` that certifies ``test`` at ``tolerance``.

    Parameters
    ----------
    test, target : {"l1", "l2", "linf", "gap"}
        The user's test, and the test that a bound is proven for.
    tolerance : float
        What the tested quantity is compared with, for instance P eps for "l1".
    size : int
        P.
    constants : Curvature
        Of the Hessian; read only where the gap is on one side.

    Returns
    -------
    float
        inf where the test holds everywhere (H = 0).

    Examples
    --------
    >>> convert("l1", 4.0, "l2", 4, None), convert("l2", 4.0, "l1", 4, None)
    (2.0, 4.0)
    """
    if test == target:
        return tolerance
    if target == "gap":
        if test == "l2":
            top = constants.largest
        elif test == "l1":
            top = constants.m_star_upper
        else:
            top = constants.largest_diagonal
        return tolerance / (2.0 * top) * tolerance if top > 0.0 else math.inf
    if test == "gap":
        by_l2 = math.sqrt(2.0 * constants.smallest_positive * tolerance)
        if target == "l2":
            return by_l2
        by_l1 = math.sqrt(2.0 * constants.mu_inf * tolerance)
        return by_l1 if target == "l1" else max(by_l2 / math.sqrt(size), by_l1 / size)
    if test == "l1" and target == "l2":
        return tolerance / math.sqrt(size)
    if target == "linf":
        return tolerance / (size if test == "l1" else math.sqrt(size))
    return tolerance


def start_quantities(problem: BlockQuadratic) -> Mapping[str, float]:
    """Return "gap", "grad_l1", "grad_l2" and "grad_linf" at w_0; kept with the problem."""
    known = problem.cache.get("start_quantities")
    if known is None:
        gradient = problem.gradient(problem.start)
        size = np.abs(gradient)
        known = problem.cache["start_quantities"] = {
            "gap": 0.5 * float(problem.displacement @ gradient),
            "grad_l1": float(size.sum()),
            "grad_l2": float(np.sqrt(size @ size)),
            "grad_linf": float(size.max()),
        }
    return known


def step_rule(method: Any) -> str:
    """Return a method's step rule; "optimal" is constant, "lambda_g" and "lambda_p" are the lemma's."""
    rate = method.learning_rate
    if isinstance(rate, str):
        return _RULE_ALIASES.get(rate, rate)
    return "constant" if isinstance(rate, (int, float)) else "schedule"


def families_of(method: Any) -> tuple[str, ...]:
    """Return the families whose bounds hold for a method.

    Adam with beta1 = beta2 = epsilon = 0 divides g by sqrt(g^2), which is |g| to the bit: it *is* SignSGD.
    """
    family: str = method.family
    if family == "adam" and not (method.beta1 or method.beta2 or method.epsilon or method.weight_decay):
        return ("adam", "signsgd")
    return (family,)


def constant_learning_rate(problem: BlockQuadratic, method: Any, stop: Any) -> float:
    """Return the constant step of a method, with "optimal" resolved."""
    return resolve(method.learning_rate, method.families, problem, stop).rate


# Assumptions ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Assumption:
    """A condition on the setting, and what to say where it fails.

    Parameters
    ----------
    test : callable
        Setting -> bool.
    message : str or callable
        The condition in words, or Setting -> str.
    """

    test: Callable[[Setting], bool]
    message: str | Callable[[Setting], str]

    def failure(self, setting: Setting) -> str:
        """Return the message for a setting that fails the test."""
        return self.message if isinstance(self.message, str) else self.message(setting)


def assume(message: str | Callable[[Setting], str]) -> Callable[[Callable[[Setting], bool]], Assumption]:
    """Turn a predicate into an :class:`Assumption`.

    Parameters
    ----------
    message : str or callable
        What to say where the predicate fails.

    Examples
    --------
    >>> @assume("P must be 1")
    ... def scalar(s):
    ...     return s.size == 1
    """
    return lambda test: Assumption(test, message)


no_momentum = Assumption(
    lambda s: not getattr(s.method, "momentum", 0.0),
    lambda s: f"momentum must be 0, it is {s.method.momentum:g}",
)
no_weight_decay = Assumption(
    lambda s: not getattr(s.method, "weight_decay", 0.0),
    lambda s: f"weight_decay must be 0, it is {s.method.weight_decay:g}",
)


def is_diagonal(problem: BlockQuadratic) -> bool:
    """Return whether H has no entry off its diagonal, as stored."""
    known = problem.cache.get("is_diagonal")
    if known is None:
        known = problem.cache["is_diagonal"] = all(map(_is_diagonal, problem.blocks))
    return known


def _is_diagonal(block: Block) -> bool:
    if isinstance(block, DenseBlock):
        return not np.any(block.matrix[~np.eye(block.size, dtype=bool)])
    return isinstance(block, DiagonalBlock) or block.size == 1
