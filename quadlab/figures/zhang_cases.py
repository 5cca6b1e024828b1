r"""Loss against iteration on the six named cases, each method with its best constant learning rate.

The eigenvalues of the cases in a row are the same, kappa = 5000; what differs is how they are arranged into
blocks (alike within, or each block over the whole range) and whether blocks are rotated (zhang2024). GD sees
none of that. The best learning rate is the one with the fewest updates to the target; where no constant
reaches it within the cap, the one with the lowest loss at the cap, drawn with an open end.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from quadlab.cases import case
from quadlab.figures import style
from quadlab.figures._measure import best_constant, each, number, numbers
from quadlab.methods import GD, Adam, FrozenAdam, Method, SignSGD
from quadlab.problem import BlockQuadratic
from quadlab.run import Run
from quadlab.solve import solve
from quadlab.stopping import Gap

HEIGHT = 5.6

DELTA = 1e-6
CASES = ("het", "hom", "het-axis", "hom-axis", "transformer", "cnn")
#: Case -> how its eigenvalues are arranged in blocks, and how its blocks lie.
KINDS = {
    "het": "alike, rotated",
    "hom": "mixed, rotated",
    "het-axis": "alike, axes",
    "hom-axis": "mixed, axes",
    "transformer": "alike, rotated",
    "cnn": "mixed, rotated",
}
METHODS: dict[str, Method] = {
    "gd": GD(1.0),
    "signsgd": SignSGD(1.0),
    "adam": Adam(1.0),
    "frozen_adam": FrozenAdam(1.0),
}
#: Case -> (draws, draws of the quick version); the last two have 288 parameters.
DRAWS = {name: (15, 3) for name in CASES[:4]} | {name: (3, 1) for name in CASES[4:]}
CAP, QUICK_CAP = 30_000, 10_000
PER_DECADE = 16


def data(quick: bool = False, progress: bool = False) -> dict[str, Any]:
    """Return the loss at log-spaced iterations for every case, method and draw."""
    cap = QUICK_CAP if quick else CAP
    stop = Gap(DELTA, relative=True)
    times = [
        0,
        *np.unique(np.round(10.0 ** np.arange(0.0, math.log10(cap) + 1e-9, 1 / PER_DECADE)).astype(int)),
    ]
    work = [
        (name, method, seed)
        for name in reversed(CASES)  # the longest first
        for method in METHODS
        for seed in range(DRAWS[name][quick])
    ]

    def measure(item: tuple[str, str, int]) -> dict[str, Any]:
        name, method, seed = item
        run, at_edge = _best_run(case(name, seed=seed), METHODS[method], stop, cap, quick, times)
        return _curve(run, at_edge, times)

    panels: dict[str, Any] = {name: {method: [] for method in METHODS} for name in CASES}
    for (name, method, _), curve in zip(work, each(measure, work, "zhang_cases", progress), strict=True):
        panels[name][method].append(curve)
    return {
        "caption": (
            f"(f - f*) relative to its start for the named cases, one thin line a draw "
            f"({DRAWS['het'][quick]} for the cases of 9 parameters, {DRAWS['cnn'][quick]} for those of 288), "
            f"the draw of median count thick. Best constant learning rate for each method and draw: fewest "
            f"updates to {DELTA:g}, or the lowest loss after {cap} updates where none gets there."
        ),
        "delta": DELTA,
        "cap": cap,
        "iterations": [int(t) for t in times],
        "panels": panels,
    }


def _best_run(
    problem: BlockQuadratic, method: Method, stop: Gap, cap: int, quick: bool, times: list[int]
) -> tuple[Run, bool]:
    found = best_constant(
        problem, method, stop, cap=cap, refine=5 if quick else 11, per_decade=3 if quick else 5
    )
    rate = found.learning_rate
    if rate is None:
        gaps = [math.inf if math.isnan(run.final["gap"]) else run.final["gap"] for run in found.runs]
        rate = float(found.learning_rates[int(np.argmin(gaps))])
    run = solve(problem, replace(method, learning_rate=rate), stop, max_iterations=cap, record=times)
    return run, found.at_edge


def _curve(run: Run, at_edge: bool, times: list[int]) -> dict[str, Any]:
    assert run.trace is not None
    gaps = run.trace.gap / run.initial["gap"]
    regular = np.isin(run.trace.iteration, times)
    return {
        "learning_rate": number(run.learning_rate),
        "at_edge": at_edge,
        "status": run.status.value,
        "iterations": run.iterations,
        "final": number(gaps[-1], 4),
        "gap": numbers(gaps[regular].tolist(), 4),
    }


def median_draw(curves: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the curve of median count; runs that did not converge count as longer than all that did."""
    return sorted(curves, key=lambda c: (c["status"] != "converged", c["iterations"]))[(len(curves) - 1) // 2]


def slowdown(data: dict[str, Any], method: str, slow: str, fast: str) -> tuple[float, bool]:
    """Return the ratio of the median counts of two cases, and whether it is only a lower value (censored)."""
    counts = [median_draw(data["panels"][name][method]) for name in (slow, fast)]
    return counts[0]["iterations"] / counts[1]["iterations"], counts[0]["status"] != "converged"


def title(data: dict[str, Any]) -> str:
    """Return the finding."""

    def shown(method: str) -> str:
        factor, censored = slowdown(data, method, "hom", "het")
        return f"{'over ' if censored else ''}{style.significant(factor)}"

    axis = [slowdown(data, method, "hom-axis", "het-axis") for method in METHODS]
    most = "over" if any(censored for _, censored in axis) else "at most"
    aligned = style.significant(max(factor for factor, _ in axis))
    return (
        f"Mixed rather than alike blocks take frozen Adam {shown('frozen_adam')} times the updates, Adam "
        f"{shown('adam')}, GD {shown('gd')} if rotated; {most} {aligned} if axis-aligned"
    )


def draw(figure: Any, data: dict[str, Any]) -> None:
    """Draw a panel a case: alike blocks on the left, mixed on the right."""
    times = np.array(data["iterations"], dtype=float)
    axes = figure.subplots(3, 2, sharex=True, sharey=True)
    every = [c for panel in data["panels"].values() for curves in panel.values() for c in curves]
    top = max(float(np.nanmax(_points(curve, times)[1])) for curve in every)
    for ax, name in zip(axes.flat, data["panels"], strict=True):
        for method, curves in data["panels"][name].items():
            label, colour, dashes = style.METHODS[method]
            chosen = median_draw(curves)
            for curve in curves:
                x, y = _points(curve, times)
                main = curve is chosen
                ax.plot(
                    x,
                    y,
                    color=colour,
                    linestyle=dashes if main else "-",
                    linewidth=1.3 if main else 0.3,
                    alpha=1.0 if main else 0.4,
                    zorder=3 if main else 2,
                    label=label if main else None,
                )
                if main:
                    reached = curve["status"] == "converged"
                    ax.plot(
                        x[-1:],
                        y[-1:],
                        marker="o",
                        markersize=3.2,
                        color=colour,
                        markerfacecolor=colour if reached else "white",
                        zorder=4,
                        clip_on=False,
                    )
        ax.set(
            xscale="log", yscale="log", xlim=(1.0, 1.25 * data["cap"]), ylim=(0.2 * data["delta"], 2.0 * top)
        )
        ax.axhline(data["delta"], color=style.GREY, linewidth=0.5, linestyle=":")
        ax.set_title(name, fontweight="bold", loc="left")
        ax.set_title(KINDS[name], loc="right", color="#555555", fontsize=6.5)
        style.decades(ax.xaxis)
        style.decades(ax.yaxis, 2)
    for ax in axes[:, 0]:
        ax.set_ylabel("$(f-f^*)/(f_0-f^*)$")
    for ax in axes[-1]:
        ax.set_xlabel("iteration")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    from matplotlib.lines import Line2D

    for text, filled in (("target reached", True), (f"not within {data['cap']:,}", False)):
        handles.append(
            Line2D([], [], linestyle="none", marker="o", markersize=3.2, color=style.GREY,
                   markerfacecolor=style.GREY if filled else "white")
        )  # fmt: skip
        labels.append(text)
    figure.legend(handles, labels, loc="outside lower center", ncols=3)


def _points(curve: dict[str, Any], times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return iterations and losses, the end included, from iteration 1 on."""
    y = np.array([math.nan if v is None else v for v in curve["gap"]], dtype=float)
    x = times[: len(y)]
    if x[-1] < curve["iterations"] and curve["final"] is not None:
        x, y = np.append(x, curve["iterations"]), np.append(y, curve["final"])
    return x[1:], y[1:]
