r"""Measured counts beside the bounds: what every registered bound says about every run.

The ratio measured / bound says how tight a bound is: 1 for a count that meets it, 10^-3 for one a thousand
times loose. Different bounds win in different regimes (1 / eps^2, 1 / eps, ln(1 / eps)), so what theory says
about a run is the
*smallest* of the upper bounds that apply, and each run names it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from html import escape
from typing import Any

from quadlab.bounds.evaluation import evaluate, requirements
from quadlab.bounds.registry import ITERATIONS, Bound, Evaluation, aligned, finite, html_table, select
from quadlab.bounds.setting import TEST_OF
from quadlab.methods import check_method
from quadlab.problem import BlockQuadratic, check_problem
from quadlab.run import Run
from quadlab.solve import solve
from quadlab.stopping import Gap, Stop, check_stop, default_stop


@dataclass(frozen=True)
class RunComparison:
    """A run, and what every bound says about it.

    Attributes
    ----------
    run : Run
        The run.
    evaluations : tuple of Evaluation
        One a bound, in the order of the register.
    """

    run: Run
    evaluations: tuple[Evaluation, ...]

    @cached_property
    def best(self) -> Evaluation | None:
        """The smallest upper bound on the count that applies; None if there is none.

        A bound that uses maxima along the trajectory says nothing before the run has stopped.
        """
        candidates = [
            e
            for e in self.evaluations
            if e.bound.kind == "upper"
            and not e.bound.expectation
            and e.bound.quantity == ITERATIONS
            and finite(e.value) is not None
            and (self.run.converged or not e.bound.needs)
        ]
        return min(candidates, key=lambda e: e.value or 0.0, default=None)

    @property
    def best_bound(self) -> str | None:
        """The name of the smallest upper bound that applies."""
        return self.best.name if self.best is not None else None

    @property
    def ratio(self) -> float | None:
        """Measured count over the smallest upper bound."""
        return self.best.ratio if self.best is not None else None

    @property
    def violated(self) -> tuple[Evaluation, ...]:
        """The bounds that do not hold."""
        return tuple(e for e in self.evaluations if e.holds is False)

    def __getitem__(self, name: str) -> Evaluation:
        """Return what the bound of that name says."""
        for evaluation in self.evaluations:
            if evaluation.name == name:
                return evaluation
        raise KeyError(f"no bound {name!r} was evaluated")

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison for JSON; neither NaN nor Infinity occurs."""
        rate = self.run.method.learning_rate
        return {
            "method": method_label(self.run.method),
            "learning_rate": rate if isinstance(rate, (int, float)) else str(rate),
            "status": self.run.status.value,
            "iterations": self.run.iterations,
            "best_bound": self.best_bound,
            "ratio": finite(self.ratio),
            "bounds": [e.to_dict() for e in self.evaluations],
        }

    def __repr__(self) -> str:
        return f"<RunComparison: {self.run.method}: {self._summary()}>"

    def __str__(self) -> str:
        head = f"{self.run.method}: {self._summary()}"
        applying = [e for e in self.evaluations if e.applies]
        rows = [_HEAD, *(_row(e) for e in applying)]
        parts = [head, aligned(rows, right=(2, 3, 4), indent="  ")] if applying else [head]
        failing = self._reasons()
        if failing:
            parts.append("  does not apply:")
            parts += [f"    {', '.join(names)}: {reasons}" for reasons, names in failing.items()]
        return "\n".join(parts)

    def _repr_html_(self) -> str:
        rows = [(*_row(e), "") for e in self.evaluations if e.applies]
        rows += [
            (", ".join(names), "", "", "", "", "", reasons) for reasons, names in self._reasons().items()
        ]
        caption = f"<p><b>{escape(str(self.run.method))}</b>: {escape(self._summary())}</p>"
        return caption + html_table((*_HEAD, "does not apply because"), rows)

    def _reasons(self) -> dict[str, list[str]]:
        """Return the names of the method's own bounds that do not apply, by reason."""
        failing: dict[str, list[str]] = {}
        for e in self.evaluations:
            if not e.applies and not e.foreign:
                failing.setdefault("; ".join(e.reasons), []).append(e.name)
        return failing

    def _summary(self) -> str:
        run = self.run
        text = f"{run.status.value} at {run.iterations:,} iterations"
        if self.best is not None:
            text += f"; smallest upper bound {_number(self.best.value)} ({self.best.name})"
            if self.ratio is not None:
                text += f", measured / bound {_number(self.ratio)}"
        return text


@dataclass(frozen=True)
class Comparison:
    """Runs of several methods on one problem, beside the bounds; made by :func:`compare`.

    Attributes
    ----------
    problem : BlockQuadratic
        The problem.
    runs : tuple of RunComparison
        One a method, in order.
    seed : int or None
        The seed of the problem, where the caller knows it.
    """

    problem: BlockQuadratic
    runs: tuple[RunComparison, ...]
    seed: int | None = None

    @property
    def violated(self) -> tuple[Evaluation, ...]:
        """The bounds that do not hold, over all runs; empty if all is well."""
        return tuple(e for entry in self.runs for e in entry.violated)

    def with_seed(self, seed: int | None) -> Comparison:
        """Return this comparison with the seed that made its problem."""
        return replace(self, seed=seed)

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison for JSON; neither NaN nor Infinity occurs.

        Returns
        -------
        dict
            "case" (the problem's name or None), "seed", "stop" (one, or one a run where they differ), "runs".
        """
        stops = [stop_dict(entry.run.stop) for entry in self.runs]
        same = all(stop == stops[0] for stop in stops)
        return {
            "case": self.problem.name or None,
            "seed": self.seed,
            "stop": (stops[0] if stops else None) if same else stops,
            "runs": [entry.to_dict() for entry in self.runs],
        }

    def __repr__(self) -> str:
        methods = ", ".join(str(entry.run.method) for entry in self.runs)
        return f"<Comparison: {methods} on {self.problem.name or 'a problem'}, {len(self.violated)} violated>"

    def __str__(self) -> str:
        lines = [self._head(), *map(str, self.runs)]
        if self.violated:
            lines.append(f"VIOLATED: {', '.join(e.name for e in self.violated)}")
        return "\n\n".join(lines)

    def _head(self) -> str:
        stops = list(dict.fromkeys(str(entry.run.stop) for entry in self.runs))
        seed = "" if self.seed is None else f", seed {self.seed}"
        size = f"P = {self.problem.size:,}, B = {self.problem.n_blocks:,}"
        return f"{self.problem.name or 'problem'}: {size}{seed}; stop: {' / '.join(stops)}"

    def _repr_html_(self) -> str:
        """Return a line a method, and below one a method that opens to what every bound says."""
        head = ("method", "status", "iterations", "smallest upper bound", "", "measured / bound", "violated")
        rows = [
            (
                str(entry.run.method),
                entry.run.status.value,
                f"{entry.run.iterations:,}",
                _number(entry.best.value if entry.best is not None else None),
                entry.best_bound or "",
                _number(entry.ratio),
                ", ".join(e.name for e in entry.violated) or "none",
            )
            for entry in self.runs
        ]
        details = "".join(
            f"<details><summary>{escape(str(entry.run.method))}: all bounds</summary>"
            f"{entry._repr_html_()}</details>"
            for entry in self.runs
        )
        return f"<p>{escape(self._head())}</p>{html_table(head, rows)}{details}"


def compare(
    problem: BlockQuadratic,
    methods: Any,
    stop: Stop | Sequence[Stop] | None = None,
    *,
    max_iterations: int = 10**6,
    bounds: Iterable[str | Bound] | None = None,
    record: int | str | Sequence[int] | None = None,
    noise_seed: int = 0,
) -> Comparison:
    r"""Run methods on a problem and hold every bound against what was measured.

    Each run records the statistics that the bounds for its method need. Under gradient noise the bounds for
    exact gradients do not apply, and those on means give a number but judge no single run: that is what
    :func:`quadlab.expectation` is for.

    Parameters
    ----------
    problem : BlockQuadratic
        The problem.
    methods : method or sequence of methods
        What is run, in order.
    stop : GradientNorm, Gap, or a sequence of them, optional
        One stopping test for all, or one a method. By default ||g||_1 <= P eps with eps = 1e-3 mean_i
        |g_0,i|.
    max_iterations : int
        Updates after which a run is cut short, >= 0.
    bounds : sequence of str or Bound, optional
        The bounds to look at; all registered ones by default.
    record : int, "log", sequence of int, or None
        Where the runs' traces are recorded, as in `solve`; :func:`quadlab.plot` draws them.
    noise_seed : int >= 0
        Of the gradient noise, where the problem has noise.

    Returns
    -------
    Comparison
        Print it, or take ``.to_dict()``.

    Raises
    ------
    ValueError
        If the stops are not one a method, a bound's name is unknown, or a method does not fit the problem.

    Examples
    --------
    >>> from quadlab.cases import case
    >>> from quadlab.methods import SignSGD
    >>> entry = compare(case("het", seed=0), SignSGD("lambda_p")).runs[0]
    >>> entry["signsgd.parameter_weighted"].holds, entry.best_bound
    (True, 'signsgd.linear')
    """
    check_problem(problem)
    runs = [check_method(m) for m in (methods if isinstance(methods, (list, tuple)) else [methods])]
    if stop is None:
        stop = default_stop(problem)
    stops: list[Any] = list(stop) if isinstance(stop, (list, tuple)) else [stop] * len(runs)
    if len(stops) != len(runs):
        raise ValueError(
            f"stop must be one for all or one a method: received {len(stops)} for {len(runs)} methods"
        )
    stops = [check_stop(test) for test in stops]
    chosen = select(bounds)
    entries = []
    for method, test in zip(runs, stops, strict=True):
        wanted = requirements(problem, method, test, chosen)
        wanted |= {"max_iterations": max_iterations, "record": record, "noise_seed": noise_seed}
        run = solve(problem, method, test, **wanted)
        entries.append(compare_run(run, chosen))
    return Comparison(problem, tuple(entries))


def compare_run(run: Run, bounds: Iterable[str | Bound] | None = None) -> RunComparison:
    """Hold every bound against a run that has been made.

    Parameters
    ----------
    run : Run
        A run; the statistics it recorded decide which bounds on the trajectory apply
        (:func:`quadlab.bounds.requirements` gives the arguments of ``solve`` that record them all).
    bounds : sequence of str or Bound, optional
        The bounds to look at; all registered ones by default.

    Returns
    -------
    RunComparison
        What each bound says.
    """
    return RunComparison(run, evaluate(run, bounds))


def method_label(method: Any) -> str:
    """Return a method's name with the hyperparameters that are not at their default.

    Parameters
    ----------
    method : Method
        Of :mod:`quadlab.methods`.

    Examples
    --------
    >>> from quadlab.methods import Adam
    >>> method_label(Adam(0.1, beta2=0.99))
    'adam(beta2=0.99)'
    """
    changed = [
        f"{item.name}={getattr(method, item.name)!r}"
        for item in fields(method)
        if item.name not in ("learning_rate", "rule") and getattr(method, item.name) != item.default
    ]
    return method.name + (f"({', '.join(changed)})" if changed else "")


def stop_dict(stop: Stop) -> dict[str, Any]:
    """Return a stopping test for JSON.

    Parameters
    ----------
    stop : GradientNorm or Gap
        The test.

    Examples
    --------
    >>> stop_dict(Gap(1e-8, relative=True))
    {'test': 'gap', 'delta': 1e-08, 'relative': True}
    """
    key = "delta" if isinstance(stop, Gap) else "eps"
    return {"test": TEST_OF[stop.quantity], key: getattr(stop, key), "relative": stop.relative}


_HEAD = ("bound", "kind", "value", "measured", "ratio", "holds")
_VERDICTS = {True: "yes", False: "NO", None: "inconclusive"}


def _row(e: Evaluation) -> tuple[str, ...]:
    quantity = "" if e.bound.quantity == ITERATIONS else f" of {e.bound.quantity}"
    return (
        e.name,
        e.bound.statement + quantity,
        _number(e.value),
        _number(e.measured),
        _number(e.ratio),
        "on average" if e.bound.expectation else _VERDICTS[e.holds],
    )


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    whole = math.isfinite(value) and value == round(value)
    return f"{value:,.0f}" if (whole and abs(value) < 1e9) or 1e3 <= abs(value) < 1e9 else f"{value:.4g}"
