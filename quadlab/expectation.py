r"""Bounds on expectations: the mean over many seeds of the gradient noise, with an interval.

A bound on E[T], or on the mean of another quantity, says nothing of a single run. It is tested by the paired
differences :math:`D_r = \mathrm{measured}_r - \mathrm{bound}_r` of n runs with independent noise, their mean
and its standard error s. With z standard errors to either side (one-sided level :math:`1 - \Phi(-z)`; z = 5
is :math:`1 - 3\cdot10^{-7}`, for the many problems of a test suite)

- an *upper* bound holds if mean(D) + z s <= 0, is violated if mean(D) - z s > 0, and else the seeds do not
  tell;
- an *exact* mean holds if \|mean(D)\| <= z s, and is violated otherwise. How sharp that is, s says; if all
  runs measure the same, s = 0 says nothing, and a difference is inconclusive.

The interval is that of the central limit: events too rare for n seeds to meet are not in it.

A capped run is censored: its count is at least the cap, so that the mean of min(T, cap) is a lower value of
E[T]. It may violate an upper bound; but with any capped run no upper bound on the count holds. A diverged run
has an infinite count. The rounding slack is that of the verdicts on single runs, a relative 1e-9.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from quadlab._arrays import FloatArray, shown
from quadlab.bounds.evaluation import evaluate, requirements
from quadlab.bounds.registry import ITERATIONS, Bound, finite, select
from quadlab.bounds.verdict import COUNT_SLACK
from quadlab.methods import Method, check_method
from quadlab.problem import BlockQuadratic, check_problem
from quadlab.run import Run, Status
from quadlab.solve import solve_many
from quadlab.stopping import Stop, check_stop


@dataclass(frozen=True)
class Expectation:
    """What the seeds say about a bound on an expectation; made by :func:`expectation`.

    Attributes
    ----------
    bound : Bound
    value : float
        The bound: the mean of its values over the runs, which are all the same unless it is a posteriori.
    mean : float
        The mean measured; with capped runs a lower value of the mean count.
    standard_error : float
        Of the mean of measured - bound.
    z : float
        Standard errors to either side.
    runs : tuple of Run
        One a seed.
    censored : int
        Runs that reached the cap before the test held, where the bound is on the count.
    """

    bound: Bound
    value: float
    mean: float
    standard_error: float
    z: float
    runs: tuple[Run, ...]
    censored: int

    @property
    def interval(self) -> tuple[float, float]:
        """The mean measured, z standard errors down and up; open above if runs were censored."""
        margin = self.z * self.standard_error
        return self.mean - margin, math.inf if self.censored else self.mean + margin

    @property
    def holds(self) -> bool | None:
        """The verdict; None: the seeds do not tell."""
        low, high = self.interval
        slack = COUNT_SLACK * abs(self.value)
        if self.bound.kind == "exact":
            met = low - slack <= self.value <= high + slack
            return None if self.censored or not (met or self.standard_error) else met
        if self.bound.kind == "lower":
            return True if low >= self.value - slack else False if high < self.value - slack else None
        return False if low > self.value + slack else True if high <= self.value + slack else None

    @property
    def verdict(self) -> str:
        """The verdict in a word: "holds", "violated" or "inconclusive"."""
        return {True: "holds", False: "violated", None: "inconclusive"}[self.holds]

    @property
    def ratio(self) -> float | None:
        """Mean measured over the bound."""
        return finite(self.mean / self.value) if self.value else None

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON; neither NaN nor Infinity occurs."""
        low, high = self.interval
        return {
            "bound": self.bound.name,
            "statement": self.bound.statement,
            "value": finite(self.value),
            "mean": finite(self.mean),
            "interval": [finite(low), finite(high)],
            "z": self.z,
            "seeds": len(self.runs),
            "censored": self.censored,
            "ratio": self.ratio,
            "verdict": self.verdict,
        }

    def __str__(self) -> str:
        low, high = self.interval
        censored = f", {self.censored} of them capped" if self.censored else ""
        return (
            f"{self.bound.name} ({self.bound.statement}): {self.verdict}; mean {self.mean:.6g}, "
            f"{self.z:g} standard errors [{low:.6g}, {high:.6g}], bound {self.value:.6g}; "
            f"{len(self.runs)} seeds{censored}"
        )

    __repr__ = __str__


def expectation(
    problem: BlockQuadratic,
    method: Method,
    stop: Stop,
    bound: str | Bound,
    *,
    seeds: int | Iterable[int] = 400,
    z: float = 5.0,
    max_iterations: int = 10**6,
    threads: int = 1,
) -> Expectation:
    r"""Test a bound on an expectation over gradient noise, on many seeds.

    Parameters
    ----------
    problem : BlockQuadratic
        With noise (``problem.with_noise``).
    method : Method
    stop : GradientNorm or Gap
        A bound on a mean at a fixed time needs one that does not hold on the way, such as ``Gap(1e-300)``.
    bound : str or Bound
        A bound registered with ``expectation=True``.
    seeds : int >= 2, or iterable of int
        The ``noise_seed`` of each run; a number n is range(n).
    z : float > 0
        Standard errors to either side of the mean.
    max_iterations : int
        The cap of each run.
    threads : int >= 1

    Returns
    -------
    Expectation
        Print it, or take ``.verdict``, ``.mean``, ``.interval``.

    Raises
    ------
    ValueError
        If the bound is not on an expectation, or does not apply, with every reason.

    Examples
    --------
    >>> from quadlab import BlockQuadratic, GradientNorm, SignSGD
    >>> p = BlockQuadratic.from_spectra([[1.0, 2.0], [10.0]], start=[1.0, 1.0, 1.0], noise=0.1)
    >>> found = expectation(p, SignSGD("optimal"), GradientNorm(0.1, ord=1), "stochastic.signsgd_gaussian")
    >>> found.verdict, len(found.runs)
    ('holds', 400)
    """
    check_problem(problem)
    check_method(method)
    check_stop(stop)
    entries = select(bound)
    if len(entries) != 1 or not entries[0].expectation:
        raise ValueError(f"bound must be one on an expectation, received {shown(bound)}")
    (entry,) = entries
    numbers = list(range(seeds)) if isinstance(seeds, (int, np.integer)) and seeds is not True else seeds
    numbers = list(numbers) if isinstance(numbers, Iterable) else []
    if len(numbers) < 2:
        raise ValueError(f"seeds must be at least two, received {shown(seeds)}")
    if not (isinstance(z, (int, float)) and 0.0 < z < math.inf):
        raise ValueError(f"z must be a positive number, received {shown(z)}")
    wanted = requirements(problem, method, stop, entries)
    runs = solve_many(
        problem,
        method,
        stop,
        max_iterations=max_iterations,
        noise_seed=numbers,
        threads=threads,
        **wanted,
    )
    evaluations = [evaluate(run, entries)[0] for run in runs]
    reasons = dict.fromkeys(reason for e in evaluations for reason in e.reasons)
    if reasons:
        raise ValueError(f"{entry.name} does not apply: {'; '.join(reasons)}")
    measured = np.array([_measured(entry, run, e.measured) for run, e in zip(runs, evaluations, strict=True)])
    values = np.array([e.value for e in evaluations], dtype=np.float64)
    capped = entry.quantity == ITERATIONS
    return Expectation(
        bound=entry,
        value=float(values.mean()),
        mean=float(measured.mean()),
        standard_error=_standard_error(measured - values),
        z=float(z),
        runs=tuple(runs),
        censored=sum(run.status is Status.MAX_ITERATIONS for run in runs) if capped else 0,
    )


def _measured(entry: Bound, run: Run, measured: float | None) -> float:
    if measured is not None:
        return measured
    if entry.quantity == ITERATIONS and run.status is Status.MAX_ITERATIONS:
        return float(run.iterations)
    return math.inf if run.status is Status.DIVERGED else 0.0  # a sum over no update


def _standard_error(differences: FloatArray) -> float:
    if not np.isfinite(differences).all():
        return 0.0
    return float(differences.std(ddof=1)) / math.sqrt(differences.size)
