r"""Iteration counts against the angle by which the eigenbasis is rotated from the axes.

GD is unmoved by a rotation of the coordinates, H -> Q H Q^T with x_0 -> Q x_0; methods that work coordinate
by coordinate are not. Each block is a pair of eigenvalues in a plane, rotated by the angle theta; the start
has the same coordinates in the eigenbasis at every angle, and the test is on f - f*, which no rotation
changes. At 90 degrees the eigenvectors are axes again. The pairs are far apart (each block spans the whole
range) or alike (zhang2024's homogeneous and heterogeneous blocks, in pairs): with the same eigenvalues, only
their arrangement into blocks differs, and only between the axes and 90 degrees does it exist.

Every method has its best constant learning rate at each angle, for each start.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from quadlab.bases import Rotation
from quadlab.figures import style
from quadlab.figures._measure import best_constant, each, number
from quadlab.methods import GD, Adam, Method, SignSGD
from quadlab.problem import BlockQuadratic
from quadlab.stopping import Gap

HEIGHT = 2.9

#: Twelve eigenvalues, evenly spaced on a log scale, kappa = 1000.
EIGENVALUES = 10.0 ** np.linspace(0.0, 3.0, 12)
#: Panels: the pairs that make a block.
PAIRS = {
    "far apart": [[k, k + 6] for k in range(6)],
    "neighbours": [[2 * k, 2 * k + 1] for k in range(6)],
}
DELTA = 1e-4
CAP = 20_000
METHODS: dict[str, Method] = {
    "gd": GD("optimal"),
    "signsgd": SignSGD(1.0),
    "adam": Adam(1.0),
    "adam_without_momentum": Adam(1.0, beta1=0.0),
}


def problem(pairs: str, degrees: float, seed: int) -> BlockQuadratic:
    """Return a problem whose start has the same coordinates in the eigenbasis at every angle."""
    order = np.array(PAIRS[pairs])
    turned = BlockQuadratic.from_spectra(
        list(EIGENVALUES[order]), basis=Rotation(np.deg2rad(degrees)), start=np.zeros(EIGENVALUES.size)
    )
    coordinates = np.random.default_rng([seed, EIGENVALUES.size]).standard_normal(EIGENVALUES.size)
    return turned.with_start(turned.from_eigenbasis(coordinates[order.ravel()]))


def data(quick: bool = False, progress: bool = False) -> dict[str, Any]:
    """Return the quartiles over draws of the count at the best constant learning rate."""
    angles = np.linspace(0.0, 90.0, 7 if quick else 19)
    draws = 5 if quick else 15
    stop = Gap(DELTA, relative=True)
    work = [(pairs, angle) for pairs in PAIRS for angle in angles]

    def run(item: tuple[str, float]) -> dict[str, dict[str, Any]]:
        problems = [problem(*item, seed) for seed in range(draws)]
        return {
            name: _quartiles([_count(p, method, stop, quick) for p in problems])
            for name, method in METHODS.items()
        }

    curves: dict[str, dict[str, list[dict[str, Any]]]] = {p: {m: [] for m in METHODS} for p in PAIRS}
    for (pairs, _), points in zip(work, each(run, work, "rotation", progress), strict=True):
        for name, point in points.items():
            curves[pairs][name].append(point)
    return {
        "caption": (
            f"Updates to f - f* <= {DELTA:g} of its start against the angle of the eigenbasis in the plane "
            f"of each block; median and quartiles of {draws} starts, standard normal in the eigenbasis; best "
            f"constant learning rate for each method, angle and start (GD: 2/(mu + L)); Adam with beta = "
            f"(0.9, 0.999), or (0, 0.999). Twelve eigenvalues log-spaced from 1 to 1000, a block a pair: six "
            f"apart in that order, or neighbours."
        ),
        "angles": [number(float(a)) for a in angles],
        "apart": {
            p: number(EIGENVALUES[blocks[0][1]] / EIGENVALUES[blocks[0][0]]) for p, blocks in PAIRS.items()
        },
        "draws": draws,
        "cap": CAP,
        "curves": curves,
    }


def _count(p: BlockQuadratic, method: Method, stop: Gap, quick: bool) -> int | None:
    if method.family == "gd":
        from quadlab.solve import solve

        run = solve(p, method, stop, max_iterations=CAP)
        return run.iterations if run.converged else None
    found = best_constant(p, method, stop, cap=CAP, per_decade=5, refine=0 if quick else 9)
    return found.iterations


def _quartiles(counts: list[int | None]) -> dict[str, Any]:
    """Return the quartiles with censored counts as larger than all others; null where they fall on these."""
    values = np.array([np.inf if c is None else c for c in counts], dtype=float)
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75], method="higher")
    return {
        "low": number(low),
        "median": number(median),
        "high": number(high),
        "least": number(values.min()),
        "most": number(values.max()),
        "censored": int(np.isinf(values).sum()),
    }


def title(data: dict[str, Any]) -> str:
    """Return the finding."""
    far = {name: rise(data, "far apart", name) for name in METHODS}
    moved = max(rise(data, pairs, "gd") for pairs in PAIRS)
    still = "leaves GD unmoved" if moved == 1.0 else f"slows GD {moved:.3g}-fold"
    sign, bare, adam = (style.significant(far[name]) for name in ("signsgd", "adam_without_momentum", "adam"))
    return (
        f"Rotation {still}; with far-apart eigenvalues in a block SignSGD slows up to {sign}-fold, "
        f"Adam {adam}-fold ({bare} without momentum)"
    )


def rise(data: dict[str, Any], pairs: str, method: str) -> float:
    """Return the largest median count over the one at angle 0; a censored median counts as the cap."""
    counts = [data["cap"] if c["median"] is None else c["median"] for c in data["curves"][pairs][method]]
    return max(counts) / counts[0]


def draw(figure: Any, data: dict[str, Any]) -> None:
    """Draw a panel an arrangement."""
    angles = np.array(data["angles"], dtype=float)
    axes = figure.subplots(1, len(data["curves"]), sharey=True)
    top = data["cap"]
    for ax, (pairs, curves) in zip(axes, data["curves"].items(), strict=True):
        for method, points in curves.items():
            label, colour, dashes = style.METHODS[method]
            low, median, high = (
                np.array([top if p[key] is None else p[key] for p in points], dtype=float)
                for key in ("low", "median", "high")
            )
            ax.fill_between(angles, low, high, color=colour, alpha=0.2, linewidth=0.0)
            ax.plot(angles, median, color=colour, linestyle=dashes, label=label)
            beyond = np.array([p["median"] is None for p in points])
            ax.plot(angles[beyond], median[beyond], "^", color=colour, markerfacecolor="white")
        ax.set(
            yscale="log",
            xlim=(0.0, 90.0),
            xlabel="angle of the eigenbasis (°)",
            title=f"eigenvalues {style.significant(data['apart'][pairs])}-fold apart",
        )
        ax.set_xticks([0, 45, 90])
        ax.set_xticks([15, 30, 60, 75], minor=True)
        style.grid(ax)
    axes[0].set_ylabel("updates to the target")
    handles, labels = axes[0].get_legend_handles_labels()
    if any(
        p["median"] is None
        for curves in data["curves"].values()
        for points in curves.values()
        for p in points
    ):
        handles += axes[0].plot([], [], "^", color=style.GREY, markerfacecolor="white")
        labels.append(f"not within {top:,}")
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
