r"""Bounds before and after a run: the statistics that they ask for, and what they say.

A bound is evaluated in this order: the method's family, the step rule, the stopping test, the assumptions
(all that fail are listed), the statistics that it needs, and only then its formula. The verdict is
:mod:`quadlab.bounds.verdict`'s.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quadlab.bounds import verdict
from quadlab.bounds.registry import ITERATIONS, TAILS, Bound, Evaluation, one_of, select
from quadlab.bounds.setting import MissingStatisticError, Setting, families_of, is_diagonal, step_rule
from quadlab.problem import BlockQuadratic
from quadlab.run import Run, Status

#: Statistics that are ratios of successive gaps: they are known as well as the gap is.
_GAP_RATIOS = ("min_gap_ratio", "max_gap_ratio")


def requirements(
    problem: BlockQuadratic, method: Any, stop: Any, chosen: Iterable[str | Bound] | None = None
) -> dict[str, Any]:
    """Return the keyword arguments of ``solve`` that record what the bounds need.

    Parameters
    ----------
    problem, method, stop
        As for ``solve``.
    chosen : sequence, optional
        Bounds by name or as they are; all registered ones by default.

    Returns
    -------
    dict
        "statistics", "tail_gap_start", "tail_displacement_start" (0 where no bound asks).
    """
    entries = select(chosen)
    families, rule = families_of(method), step_rule(method)
    entries = tuple(
        entry
        for entry in entries
        if (entry.families is None or any(family in entry.families for family in families))
        and (entry.rules is None or rule in entry.rules)
        and (entry.statistics or entry.tail_start)
    )
    statistics: dict[str, None] = {}
    begins = dict.fromkeys(TAILS, 0.0)
    if entries:
        base = Setting.of(problem, method, stop)
        for entry in entries:
            setting = _targeted(entry, base)
            if setting is None or _failures(entry, setting):
                continue
            if entry.tail_start is not None:
                # a sup over a shorter tail is implied by the statement, so the latest start serves all
                begin = entry.tail_start(setting)
                if not math.isfinite(begin):
                    continue
                begins[entry.quantity] = max(begin, begins[entry.quantity])
            statistics.update(dict.fromkeys(entry.statistics))
    return {"statistics": tuple(statistics)} | {TAILS[quantity]: begin for quantity, begin in begins.items()}


def evaluate(run: Run, chosen: Iterable[str | Bound] | None = None) -> tuple[Evaluation, ...]:
    """Judge a run by the bounds.

    Parameters
    ----------
    run : Run
        A run with the statistics that the bounds need (see :func:`requirements`).
    chosen : sequence, optional
        Bounds by name or as they are; all registered ones by default.

    Returns
    -------
    tuple of Evaluation
        One a bound, in order.
    """
    base = Setting.of_run(run)
    settings = {base.target: base}
    families, rule = base.families, base.rule
    result = []
    for entry in select(chosen):
        if entry.families is not None and not any(family in entry.families for family in families):
            result.append(entry.foreign)
        elif entry.rules is not None and rule not in entry.rules:
            result.append(_not_applying(entry, (_wrong_rule(entry, base),)))
        else:
            target = _target(entry, base.test)
            if target is None:
                result.append(_not_applying(entry, (_wrong_target(entry, base.test),)))
                continue
            setting = settings.get(target)
            if setting is None:
                setting = settings[target] = base.at(target)
            result.append(_evaluate(entry, setting, run))
    return tuple(result)


def _evaluate(entry: Bound, setting: Setting, run: Run) -> Evaluation:
    reasons = _failures(entry, setting)
    # with no update made there is no trajectory, and a bound over it has nothing to add up
    if not reasons and run.iterations > 0:
        statistics = run.statistics
        reasons = [f"{name} was not recorded" for name in entry.needs if statistics.get(name) is None]
    if reasons:
        return _not_applying(entry, tuple(reasons))
    try:
        number = float(entry.function(setting))
    except MissingStatisticError as missing:
        if run.iterations > 0:
            return _not_applying(entry, (f"{missing.args[0]} is not a number",))
        number = 0.0
    except (ZeroDivisionError, OverflowError):
        number = math.inf
    if math.isnan(number):
        return _not_applying(entry, ("the formula gives no number",))
    if entry.expectation:  # says nothing of a single run
        measured = _measured(entry, setting, run)
        return Evaluation(entry, True, (), number, measured, None, _ratio(measured, number))
    if entry.quantity == ITERATIONS:
        return _count_evaluation(entry, setting, run, number)
    return _statistic_evaluation(entry, setting, run, number)


def _count_evaluation(entry: Bound, setting: Setting, run: Run, number: float) -> Evaluation:
    converged, iterations = run.converged, run.iterations
    holds = verdict.judge_count(
        entry.kind,
        entry.form,
        number,
        iterations=iterations,
        converged=converged,
        diverged=run.status is Status.DIVERGED,
        a_posteriori=bool(entry.needs),
        near=lambda: _near(entry, setting, run),
        resolved=lambda: _resolved(setting, run),
    )
    if entry.form == "log" and entry.kind == "upper":
        number = verdict.allowed_iterations("log", number, holds_at_start=converged and iterations == 0)
    measured = float(iterations) if converged else None
    return Evaluation(entry, True, (), number, measured, holds, _ratio(measured, number))


def _statistic_evaluation(entry: Bound, setting: Setting, run: Run, number: float) -> Evaluation:
    measured = _measured(entry, setting, run)
    if entry.tail_start is not None:
        # the statement covers the recorded tail only if that begins late enough, and if the run reached it
        recorded = getattr(run, TAILS[entry.quantity])
        if recorded < entry.tail_start(setting) or run.iterations < recorded:
            measured = None
    holds = verdict.judge_statistic(entry.kind, number, measured)
    if holds is False and measured is not None:  # known to fewer digits than the rule asks for?
        error = _statistic_error(entry, setting, run, max(abs(number), abs(measured)))
        holds = verdict.judge_statistic(entry.kind, number, measured, error=error)
    return Evaluation(entry, True, (), number, measured, holds, _ratio(measured, number))


def _measured(entry: Bound, setting: Setting, run: Run) -> float | None:
    """Return what the bound bounds, as the run measured it; None if it did not."""
    if entry.quantity == ITERATIONS:
        return float(run.iterations) if run.converged else None
    measured = run.statistics.get(entry.quantity) if entry.measure is None else float(entry.measure(setting))
    return None if measured is None or math.isnan(measured) else measured


def _near(entry: Bound, setting: Setting, run: Run) -> tuple[float, float]:
    """Return the smallest and the largest exact count within a near tie."""
    error = 0.0 if is_diagonal(run.problem) else _rounding_error(setting, _norm(_last(run)))
    width = verdict.near_tie(error / setting.tolerance)
    low = entry.function(replace(setting, tolerance=setting.tolerance * (1.0 + width)))
    smaller = setting.tolerance * (1.0 - width)
    return low, entry.function(replace(setting, tolerance=smaller)) if smaller > 0.0 else math.inf


def _resolved(setting: Setting, run: Run) -> bool:
    """Return whether the run's tolerance lies above the rounding of the tested quantity.

    Taken at the start: a run that grows must not excuse itself.
    """
    own = setting if setting.target == setting.test else replace(setting, target=setting.test)
    return not run.tolerance <= _rounding_error(own, _norm(run.problem.displacement))


def _statistic_error(entry: Bound, setting: Setting, run: Run, scale: float) -> float:
    """Return to what the measured statistic, of the given size, is known."""
    if entry.quantity == "frozen_condition_number":
        return verdict.constant_error(setting.size, scale)
    if entry.quantity not in _GAP_RATIOS or not math.isfinite(scale):
        return 0.0
    if is_diagonal(run.problem):
        return verdict.ratio_error(setting.size, 1.0, 0.0, scale)
    last = float(run.problem.value(run.point))
    error = _rounding_error(replace(setting, target="gap"), _norm(_last(run)))
    relative = error / last if last > 0.0 else math.inf
    return verdict.ratio_error(setting.size, setting.curvature.condition_number, relative, scale)


def _rounding_error(setting: Setting, displacement: float) -> float:
    return verdict.rounding_error(setting.target, setting.size, setting.curvature.largest, displacement)


def _last(run: Run) -> NDArray[np.float64]:
    """Return the last displacement from the minimiser."""
    return run.point - run.problem.minimizer


def _norm(x: NDArray[np.float64]) -> float:
    """Return ||x||_2 without overflow."""
    scale = float(np.abs(x).max())
    return scale * float(np.linalg.norm(x / scale)) if 0.0 < scale < math.inf else scale


def _ratio(measured: float | None, number: float) -> float | None:
    if measured is None or number == 0.0 or not math.isfinite(number) or not math.isfinite(measured):
        return None
    return measured / number


def _not_applying(entry: Bound, reasons: tuple[str, ...]) -> Evaluation:
    return Evaluation(entry, False, reasons, None, None, None, None)


def _failures(entry: Bound, setting: Setting) -> list[str]:
    """Return the messages of all assumptions that fail; one that needs a missing statistic passes."""
    failures = []
    if entry.expectation is not setting.problem.is_noisy:
        return ["a mean over gradient noise" if entry.expectation else "needs the exact gradient, not noise"]
    for item in entry.assumes:
        try:
            if not item.test(setting):
                failures.append(item.failure(setting))
        except MissingStatisticError:
            continue
    return failures


def _target(entry: Bound, test: str) -> str | None:
    if test in entry.targets:
        return test
    return None if entry.kind == "exact" else entry.targets[0]


def _targeted(entry: Bound, base: Setting) -> Setting | None:
    target = _target(entry, base.test)
    return None if target is None else base.at(target)


def _wrong_rule(entry: Bound, setting: Setting) -> str:
    return f"needs learning_rate {one_of(entry.rules or ())}, received {setting.rule}"


def _wrong_target(entry: Bound, test: str) -> str:
    return f"exact for the stopping test {one_of(entry.targets)} only, received {test}"
