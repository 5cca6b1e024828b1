r"""SignSGD and SGD under gradient noise: means over seeds against their bounds, and the floors.

Left: the eta-weighted average of :math:`\|g\|_1` over T updates of SignSGD, against
:math:`\Delta/(\eta T) + \|\sigma\|_1 + \eta M/2`, which holds for every law of the noise. Right: where
f - f* settles. SGD's floor is exact. SignSGD's is proportional to eta for noise with a density at 0;
two-point noise hides what lies below it at every step.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from quadlab.bounds.stochastic import optimised, second_moments, stationary_gap
from quadlab.expectation import expectation
from quadlab.figures import style
from quadlab.figures._measure import each, number
from quadlab.methods import GD, Method, SignSGD
from quadlab.problem import BlockQuadratic
from quadlab.solve import solve_many
from quadlab.stopping import Gap

HEIGHT = 3.1

#: Standard errors of the intervals, to either side.
Z = 5.0
HORIZON = 1000
#: Law -> (label, colour, marker).
LAWS = {
    "gaussian": ("Gaussian", style.BLUE, "o"),
    "student:3": ("Student t, 3 d.f.", style.GREEN, "^"),
    "rademacher": ("two-point ±σ", style.VERMILLION, "s"),
}
NEVER = Gap(1e-300)


def problem(law: str, basis: str = "haar", start: float = 1.0) -> BlockQuadratic:
    """Return four blocks with eigenvalues from 1 to 4, and noise of mean level 1."""
    p = BlockQuadratic.from_spectra(
        [np.geomspace(1.0, 4.0, 4)] * 4, basis=basis, start=np.full(16, start), seed=0
    )
    return p.with_noise(np.tile([0.4, 0.8, 1.2, 1.6], 4), law)


def data(quick: bool = False, progress: bool = False) -> dict[str, Any]:
    """Return the means over seeds, their intervals, the bounds and the floors."""
    seeds, count = (16, 5) if quick else (64, 9)
    rates = np.geomspace(2e-3, 2.0, count)

    def average(item: tuple[str, float]) -> dict[str, Any]:
        law, rate = item
        found = expectation(
            problem(law), SignSGD(rate), NEVER, "stochastic.signsgd_average", seeds=seeds, z=Z,
            max_iterations=HORIZON,
        )  # fmt: skip
        scale = rate * HORIZON * 16
        low, high = found.interval
        return {
            "law": law,
            "rate": number(rate),
            "mean": number(found.mean / scale),
            "low": number(low / scale),
            "high": number(high / scale),
            "bound": number(found.value / scale),
            "holds": found.holds,
        }

    def settled(item: tuple[str, str, float]) -> dict[str, Any]:
        family, law, rate = item
        p = problem(law, "axis", 0.3)
        method: Method = GD(rate) if family == "gd" else SignSGD(rate)
        updates = round(12.0 / rate)
        runs = solve_many(p, method, NEVER, max_iterations=updates, noise_seed=list(range(2 * seeds)))
        gaps = np.array([p.value(run.point) for run in runs])
        margin = Z * float(gaps.std(ddof=1)) / math.sqrt(gaps.size)
        exact = 0.5 * float(p.eigenvalues @ second_moments(p, rate, updates)) if family == "gd" else None
        return {
            "family": family,
            "law": law,
            "rate": number(rate),
            "mean": number(float(gaps.mean())),
            "low": number(float(gaps.mean()) - margin),
            "high": number(float(gaps.mean()) + margin),
            "exact": number(exact),
            "floor": number(stationary_gap(p, method)),
        }

    averages = each(average, [(law, float(rate)) for law in LAWS for rate in rates], "noise", progress)
    steps = np.geomspace(0.01, 0.3, 3 if quick else 6)
    work = [("gd", "gaussian", float(rate)) for rate in steps]
    work += [("signsgd", law, float(rate)) for law in LAWS for rate in steps]
    floors = each(settled, work, "noise", progress)
    peak, value = optimised(problem("gaussian"), "signsgd", HORIZON)
    return {
        "caption": (
            f"Left: mean over {seeds} seeds, with {Z:g} standard errors to either side, of the average of "
            f"||g||_1 / P over {HORIZON:,} updates of SignSGD with a constant step, for three laws of the "
            f"noise; the bound for all laws, and its floor, the mean sigma; four Haar-rotated blocks, P = "
            f"16, eigenvalues 1 to 4, sigma from 0.4 to 1.6. Right: the mean of f - f* after 12/eta updates "
            f"on the diagonal problem, {2 * seeds} seeds; lines: SGD's floor, exact; SignSGD's, to leading "
            f"order, eta ||sigma||_1 / (8 p(0)), p the density of xi, and sum sigma^2 / (6 H_ii) for "
            f"two-point noise."
        ),
        "seeds": seeds,
        "sigma": number(float(problem("gaussian").noise.mean())),
        "best": {"rate": number(peak), "bound": number(value / 16)},
        "averages": averages,
        "floors": floors,
    }


def title(data: dict[str, Any]) -> str:
    """Return the finding."""
    held = all(point["holds"] for point in data["averages"])
    lowest = {
        law: min(p["mean"] for p in data["averages"] if p["law"] == law) / data["sigma"] for law in LAWS
    }
    slopes = {law: slope(data, law) for law in LAWS}
    words = "holds" if held else "DOES NOT HOLD"
    return (
        f"The bound on SignSGD's mean ‖g‖₁ {words} for every law; Gaussian noise lets it sink to "
        f"{lowest['gaussian']:.2f} σ̄, two-point noise to {lowest['rademacher']:.2f}. Floors of f scale as "
        f"η{style.superscript(slopes['gaussian'])} and η{style.superscript(slopes['rademacher'])}"
    )


def slope(data: dict[str, Any], law: str) -> float:
    """Return the exponent of the step in SignSGD's measured floor."""
    points = [p for p in data["floors"] if p["family"] == "signsgd" and p["law"] == law]
    rate, mean = (np.log([p[key] for p in points]) for key in ("rate", "mean"))
    return round(float(np.polyfit(rate, mean, 1)[0]), 1) + 0.0


def draw(figure: Any, data: dict[str, Any]) -> None:
    """Draw the averages beside the floors."""
    left, right = figure.subplots(1, 2)
    for law, (label, colour, marker) in LAWS.items():
        points = [p for p in data["averages"] if p["law"] == law]
        _bars(left, points, colour, marker, f"SignSGD, {label}")
        points = [p for p in data["floors"] if p["law"] == law and p["family"] == "signsgd"]
        _bars(right, points, colour, marker, None)
        right.plot([p["rate"] for p in points], [p["floor"] for p in points], color=colour, linewidth=0.8)
    points = [p for p in data["averages"] if p["law"] == "gaussian"]
    left.plot(
        [p["rate"] for p in points], [p["bound"] for p in points], "--", color=style.BLACK, label="bound"
    )
    left.axhline(data["sigma"], color=style.GREY, linestyle=":", label="its floor, mean σ")
    points = [p for p in data["floors"] if p["family"] == "gd"]
    _bars(right, points, style.PURPLE, "D", None)
    line = right.plot(
        [p["rate"] for p in points],
        [p["floor"] for p in points],
        color=style.PURPLE,
        marker="D",
        label="SGD, any law",
        linewidth=0.8,
    )
    left.set(xscale="log", yscale="log", xlabel="learning rate η", title="average ‖g‖₁ / P")
    right.set(xscale="log", yscale="log", xlabel="learning rate η", title="f − f* settles at")
    for ax in (left, right):
        style.decades(ax.xaxis)
        style.decades(ax.yaxis)
        style.grid(ax)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(
        [*handles, *line], [*labels, "SGD, any law"], loc="outside lower center", ncols=2, fontsize=6.0
    )


def _bars(ax: Any, points: list[dict[str, Any]], colour: str, marker: str, label: str | None) -> None:
    x, mean, low, high = (
        np.array([p[key] for p in points], dtype=float) for key in ("rate", "mean", "low", "high")
    )
    ax.errorbar(
        x,
        mean,
        yerr=[np.minimum(mean - low, 0.9 * mean), high - mean],
        fmt=marker,
        color=colour,
        label=label,
        elinewidth=0.8,
        capsize=1.5,
        markersize=2.6,
    )
