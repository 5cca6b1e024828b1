r"""How tight the bounds are: measured count over bound, against condition number, size and target.

The eigenvalues are log-spaced over [1/kappa, 1] and cut into four Haar-rotated blocks, the largest together;
the start is standard normal. One of kappa, P and eps varies at a time. Each bound is shown for a run it is
made for: its own step rule, and its own stopping test (the gradient norm, or f - f*, at eps, or eps^2, of its
start). A ratio is the median over draws, and is left out where a draw was cut short at the cap.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from quadlab.bounds import bounds, evaluate, requirements
from quadlab.curvature import curvature, frozen_preconditioner
from quadlab.figures import style
from quadlab.figures._measure import PANELS, each, number, numbers, short_rate, upper_bounds
from quadlab.methods import GD, Adam, AdamMini, FrozenAdam, Method, SignSGD, SteepestDescent
from quadlab.problem import BlockQuadratic
from quadlab.run import Run
from quadlab.solve import solve_many
from quadlab.stopping import Gap, GradientNorm, Stop

HEIGHT = 8.6

BLOCKS = 4
BASE = {"kappa": 100.0, "size": 16, "eps": 0.1}
SWEEPS: dict[str, list[float]] = {
    "kappa": [10.0 ** (k / 2.0) for k in range(1, 9)],
    "size": [2.0**k for k in range(3, 10)],
    "eps": [10.0 ** (-k / 2.0) for k in range(1, 9)],
}
CAP, QUICK_CAP = 200_000, 5_000
#: Updates times entries of H: large problems are cut short before the cap.
BUDGET = 5e8

L1, L2, GAP = 1, 2, 0


def _safe(p: BlockQuadratic, eps: float) -> Method:
    return FrozenAdam(frozen_preconditioner(p).safe_learning_rate)


def _soft(p: BlockQuadratic, eps: float) -> Method:
    """Return Adam whose epsilon, the start's mean gradient, keeps the preconditioned Hessian below 1/eta."""
    epsilon = float(np.abs(p.gradient(p.start)).mean())
    return Adam(epsilon / curvature(p).largest, beta1=0.0, beta2=0.99, epsilon=epsilon)


def _short(p: BlockQuadratic, eps: float) -> Method:
    """Return Adam with about half the step beyond which adam.a_posteriori says nothing."""
    gradient = float(np.abs(p.gradient(p.start)).sum())
    return Adam(0.5 * eps**2 * gradient / curvature(p).m_star_upper, beta1=0.0, beta2=0.99)


def _averaged(maker: Any, before: bool) -> Callable[[BlockQuadratic, float], Method]:
    """Return Adam or Adam-mini with momentum and a step for which there is a bound, also before the run."""

    def make(p: BlockQuadratic, eps: float) -> Method:
        method, growth = maker(1.0, beta1=0.5, beta2=0.9), 1.2
        if before:
            gradient = float(np.abs(p.gradient(p.start)).sum())
            growth = math.sqrt(2.0 * p.size * curvature(p).parameter_weighted * p.value(p.start)) / gradient
        return replace(method, learning_rate=short_rate(p, eps, method, 0.35, growth))

    return make


#: (panel, method of problem and eps, test): every bound is read from the first run it applies to.
RUNS: list[tuple[str, Callable[[BlockQuadratic, float], Method], int]] = [
    ("gd", lambda p, eps: GD("lambda_g"), L2),
    ("gd", lambda p, eps: GD("lambda_g"), L1),
    ("gd", lambda p, eps: GD(1.0 / curvature(p).largest), L2),
    ("signsgd", lambda p, eps: SignSGD("lambda_p"), L1),
    ("signsgd", lambda p, eps: SignSGD("lambda_p"), L2),
    ("signsgd", lambda p, eps: SignSGD("m_star"), L1),
    ("signsgd", lambda p, eps: SignSGD("optimal"), L1),
    ("adam", lambda p, eps: FrozenAdam("optimal"), GAP),
    ("adam", _safe, GAP),
    ("adam", _soft, GAP),
    ("adam", _short, L1),
    ("adam", _averaged(Adam, before=False), L1),
    ("adam", _averaged(Adam, before=True), L1),
    ("adam", lambda p, eps: Adam("lemma"), L1),
    ("adam", lambda p, eps: Adam("lemma"), L2),
    ("steepest", lambda p, eps: SteepestDescent("lemma", "block"), L2),
    ("steepest", lambda p, eps: SteepestDescent(1.0 / curvature(p).block_norms.sum(), "block"), L2),
    ("steepest", lambda p, eps: AdamMini("lemma", beta1=0.0, beta2=0.0, epsilon=0.0), L1),
    ("steepest", _averaged(AdamMini, before=True), L1),
]
#: The test each bound is stated for, where it is not the first one it applies with.
NATIVE = {"lemma.direction_l1": L1, "lemma.direction_l2": L2}


def problem(kappa: float, size: int, seed: int) -> BlockQuadratic:
    """Return a problem of four Haar-rotated blocks."""
    eigenvalues = np.geomspace(1.0 / kappa, 1.0, size)
    return BlockQuadratic.from_spectra(np.split(eigenvalues, BLOCKS), basis="haar", seed=seed)


def _stop(test: int, eps: float) -> Stop:
    return Gap(eps**2, relative=True) if test == GAP else GradientNorm(eps, test, relative=True)


def data(quick: bool = False, progress: bool = False) -> dict[str, Any]:
    """Return the median ratio of every bound at every point of the three sweeps."""
    draws = 3 if quick else 9
    cap = QUICK_CAP if quick else CAP
    sweeps = {axis: values[:: 2 if quick else 1] for axis, values in SWEEPS.items()}
    names = {family: upper_bounds(family) for family in PANELS}

    def measure(item: tuple[str, float]) -> dict[str, dict[str, dict[str, Any]]]:
        axis, value = item
        at = {**BASE, axis: value}
        problems = [problem(at["kappa"], int(at["size"]), seed) for seed in range(draws)]
        limit = int(min(cap, BUDGET / problems[0].packed().data.size))
        found: dict[str, dict[str, dict[str, Any]]] = {family: {} for family in PANELS}
        for family, method, test in RUNS:
            wanted = [n for n in names[family] if n not in found[family] and NATIVE.get(n, test) == test]
            methods, stop = [method(p, at["eps"]) for p in problems], _stop(test, at["eps"])
            needs = {
                s
                for p, m in zip(problems, methods, strict=True)
                for s in requirements(p, m, stop, wanted)["statistics"]
            }
            runs = solve_many(
                problems, methods, stop, max_iterations=limit, statistics=sorted(needs), progress=False
            )
            for column in zip(*(evaluate(run, wanted) for run in runs), strict=True):
                applying = [(e, run) for e, run in zip(column, runs, strict=True) if e.applies]
                if 2 * len(applying) > draws:
                    found[family][column[0].name] = _point(applying)
        return found

    work = [(axis, value) for axis, values in sweeps.items() for value in values]
    points = dict(zip(work, each(measure, work, "tightness", progress), strict=True))
    return {
        "caption": (
            f"Measured count over bound, median of {draws} draws, on four Haar-rotated blocks with "
            f"log-spaced eigenvalues; kappa = {BASE['kappa']:g}, P = {BASE['size']}, eps = {BASE['eps']:g} "
            f"where they do not vary. Each bound with its own step rule and stopping test. A curve breaks "
            f"where the bound does not apply, or where runs cut short after {cap} updates (fewer above "
            f"P = 100) leave the median open."
        ),
        "draws": draws,
        "cap": cap,
        "base": BASE,
        "forms": {b.name: b.form for b in bounds() if any(b.name in of for of in names.values())},
        "sweeps": {axis: numbers(values) for axis, values in sweeps.items()},
        "ratios": {
            family: {
                name: {
                    axis: [points[axis, value][family].get(name) for value in values]
                    for axis, values in sweeps.items()
                }
                for name in names[family]
            }
            for family in PANELS
        },
    }


def _point(applying: list[tuple[Any, Run]]) -> dict[str, Any]:
    """Return the median of measured / bound; null where a run that was cut short leaves it open.

    The ratio of such a run is above cap / bound, so it may stand in for infinity if that is above the median.
    """
    evaluations = [e for e, _ in applying]
    cut = [run.iterations / e.value for e, run in applying if not run.converged]
    median = float(
        np.median([e.ratio or 0.0 for e, run in applying if run.converged] + [math.inf] * len(cut))
    )
    return {
        "draws": len(applying),
        "censored": len(cut),
        "violated": sum(e.holds is False for e in evaluations),
        "ratio": number(median, 4) if all(least >= median for least in cut) else None,
    }


def slope(data: dict[str, Any], axis: str, form: str) -> float:
    """Return the median, over bounds of a form, of the exponent with which the ratio goes with an axis."""
    x = np.log(np.array(data["sweeps"][axis], dtype=float))
    found = []
    for curves in data["ratios"].values():
        for name, curve in curves.items():
            y = ratios(curve[axis])
            known = np.isfinite(y)
            if data["forms"][name] == form and known.sum() >= 3:
                found.append(float(np.polyfit(x[known], np.log(y[known]), 1)[0]))
    return float(np.median(found)) if found else math.nan


def ratios(points: list[dict[str, Any] | None]) -> np.ndarray:
    """Return the ratios of a curve, NaN where there is none."""
    return np.array([math.nan if p is None else (p["ratio"] or math.nan) for p in points], dtype=float)


def title(data: dict[str, Any]) -> str:
    """Return the finding."""
    powers, logs = (
        {axis: slope(data, axis, form) for axis in ("eps", "kappa")} for form in ("strict", "log")
    )
    first = (
        f"As ε falls, bounds in powers of 1/ε {'loosen' if powers['eps'] > 0 else 'tighten'} "
        f"(ratio ~ ε{style.superscript(powers['eps'])}), those in ln 1/ε "
        f"{'loosen' if logs['eps'] > 0 else 'tighten'}"
    )
    return (
        f"{first}; as κ grows the latter {'loosen' if logs['kappa'] < 0 else 'tighten'} "
        f"(~ κ{style.superscript(logs['kappa'])})"
    )


AXES = {"kappa": "$κ$", "size": "$P$", "eps": "$ε$"}


def draw(figure: Any, data: dict[str, Any]) -> None:
    """Draw a row a method, a column a sweep, a curve a bound."""
    ring: dict[str, Any] = {
        "marker": "o",
        "markersize": 5.0,
        "markerfacecolor": "none",
        "markeredgewidth": 0.6,
    }
    for part, (family, curves) in zip(figure.subfigures(len(PANELS), 1), data["ratios"].items(), strict=True):
        axes = part.subplots(1, len(AXES), sharey=True)
        looks = style.bound_looks(list(curves))
        ended: list[tuple[Any, str]] = []
        for ax, (axis, label) in zip(axes, AXES.items(), strict=True):
            x = np.array(data["sweeps"][axis], dtype=float)
            for same in coinciding(curves):
                look, points = looks[same[0]], curves[same[0]][axis]
                y = ratios(points)
                ax.plot(x, y, **look, markersize=2.2, linewidth=0.8, label=style.bound_label(same))
                before = [
                    k for k in range(len(points) - 1)
                    if np.isfinite(y[k]) and np.isnan(y[k + 1]) and (points[k + 1] or {}).get("censored")
                ]  # fmt: skip
                if before:
                    (end,) = ax.plot(x[before], y[before], linestyle="none", color=look["color"], **ring)
                    ended = [(end, "beyond: runs cut short")]
            ax.axhline(1.0, color=style.BLACK, linewidth=0.7)
            ax.set(xscale="log", yscale="log", xlabel=label)
            if axis == "eps":
                ax.invert_xaxis()
            style.decades(ax.xaxis, 2 if axis == "eps" else 1)
            style.decades(ax.yaxis, 2)
            ax.minorticks_off()
            style.grid(ax)
        axes[0].set_ylabel("measured / bound")
        axes[0].set_title(PANELS[family], fontweight="bold", loc="left")
        style.bound_legend(part, axes[0], ended, 1.6)


def coinciding(curves: dict[str, Any]) -> list[list[str]]:
    """Return the bounds with a ratio anywhere, in groups of the same ratios everywhere."""
    groups: dict[tuple[float, ...], list[str]] = {}
    for name, curve in curves.items():
        key = tuple(np.nan_to_num(np.concatenate([ratios(curve[axis]) for axis in AXES]), nan=-1.0).tolist())
        if max(key) > 0.0:
            groups.setdefault(key, []).append(name)
    return list(groups.values())
