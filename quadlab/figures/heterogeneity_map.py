r"""Who needs fewer updates, GD or SignSGD, over gradient heterogeneity, Hessian heterogeneity, correlation.

With the lemma's step and one stopping test for both (||g||_1, which bounds of both cover), theory bounds

    T_GD <= 2 Lambda_G Delta / (P eps^2),        T_SignSGD <= 2 Lambda_P Delta / (P eps^2),

so the prediction for T_GD / T_SignSGD is Lambda_G / Lambda_P. It is a ratio of upper bounds: whether the
counts follow it is what the figure asks. Lambda_G is that of the start, known beforehand, or the harmonic
mean along GD's own run.

The B blocks have equal size, a log-uniform spectrum within, and a Haar basis. Their norms ||H_b|| are spaced
evenly on a log scale, max/min = 10^h; so are their starting gradients ||g_b||, max/min = 10^g, in the same
order (correlation of the logarithms +1), in the reverse order (-1), or in a random order of correlation 0.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from quadlab.figures import style
from quadlab.figures._measure import each, number, numbers
from quadlab.heterogeneity import gradient_weighted, parameter_weighted
from quadlab.methods import GD, SignSGD
from quadlab.problem import BlockQuadratic
from quadlab.run import Run
from quadlab.solve import solve_many
from quadlab.spectra import LogUniform
from quadlab.stopping import GradientNorm

HEIGHT = 6.9

BLOCKS, BLOCK_SIZE, BLOCK_CONDITION = 16, 3, 3.0
CORRELATIONS = (1, 0, -1)
EPS = 0.1
CAP = 10**6
#: Colours end here, in powers of ten.
SPAN = 1.5


def problem(hessian: float, gradient: float, correlation: int, seed: int) -> BlockQuadratic:
    """Return a problem with max/min ||H_b|| = 10^hessian and max/min ||g_b|| = 10^gradient."""
    levels = np.linspace(-0.5, 0.5, BLOCKS)
    order = {1: np.arange(BLOCKS), -1: np.arange(BLOCKS)[::-1], 0: _uncorrelated(seed)}[correlation]
    within = LogUniform(1.0 / BLOCK_CONDITION, 1.0).eigenvalues(BLOCK_SIZE)
    return BlockQuadratic.from_spectra(
        list(10.0 ** (hessian * levels[:, None]) * within),
        basis="haar",
        gradient_norms=list(10.0 ** (gradient * levels[order])),
        seed=seed,
    )


@cache
def _uncorrelated(seed: int) -> np.ndarray:
    """Return a random order of 0..B-1 that is uncorrelated with 0..B-1, exactly."""
    rng = np.random.default_rng([seed, BLOCKS])
    ranks = np.arange(BLOCKS)
    while True:
        order = rng.permutation(BLOCKS)
        if 4 * int(ranks @ order) == BLOCKS * (BLOCKS - 1) ** 2:
            return order


def data(quick: bool = False, progress: bool = False) -> dict[str, Any]:
    """Return measured and predicted log10 ratios, medians over the draws of each cell."""
    exponents = np.linspace(0.0, 3.0, 5 if quick else 13)
    draws = 3 if quick else 9
    stop = GradientNorm(EPS, ord=1, relative=True)
    options: dict[str, Any] = {"max_iterations": CAP, "progress": False}

    def row(item: tuple[int, float]) -> list[dict[str, Any]]:
        """Return the cells of one correlation and one gradient heterogeneity."""
        correlation, gradient = item
        problems = [problem(h, gradient, correlation, seed) for h in exponents for seed in range(draws)]
        gd = solve_many(problems, GD("lambda_g"), stop, statistics=["harmonic_lambda_g"], **options)
        sign = solve_many(problems, SignSGD("lambda_p"), stop, **options)
        return [
            {
                "correlation": correlation,
                "gradient_max_over_min": number(10.0**gradient),
                "hessian_max_over_min": number(10.0**hessian),
                **_cell(problems[own], gd[own], sign[own]),
            }
            for hessian, own in ((h, slice(k * draws, (k + 1) * draws)) for k, h in enumerate(exponents))
        ]

    work = [(correlation, float(gradient)) for correlation in CORRELATIONS for gradient in exponents]
    return {
        "caption": (
            f"Median over {draws} draws of log10(T_GD / T_SignSGD), with steps 1/Lambda_G(t) and "
            f"||g||_1/(P Lambda_P), stopped at ||g||_1 <= {EPS:g} of its start, and the prediction "
            f"log10(Lambda_G / Lambda_P). {BLOCKS} Haar-rotated blocks of {BLOCK_SIZE}, condition number "
            f"{BLOCK_CONDITION:g} within; correlation of log ||g_b|| with log ||H_b|| over blocks."
        ),
        "draws": draws,
        "eps": EPS,
        "blocks": BLOCKS,
        "heterogeneities": numbers(10.0**exponents),
        "cells": [cell for cells in each(row, work, "heterogeneity_map", progress) for cell in cells],
    }


def _cell(problems: list[BlockQuadratic], gd: list[Run], sign: list[Run]) -> dict[str, Any]:
    """Return the medians of one cell; a censored run has no count, and leaves its draw out of the ratio."""
    counted = [(a, b) for a, b in zip(gd, sign, strict=True) if a.converged and b.converged]
    start = [gradient_weighted(p) / parameter_weighted(p) for p in problems]
    along = [
        (run.statistics["harmonic_lambda_g"] or math.nan) / parameter_weighted(p)
        for p, run in zip(problems, gd, strict=True)
        if run.converged
    ]
    return {
        "gd": _median([a.iterations for a, _ in counted]),
        "signsgd": _median([b.iterations for _, b in counted]),
        "measured": _median([math.log10(a.iterations / b.iterations) for a, b in counted]),
        "predicted_start": _median(np.log10(start)),
        "predicted_run": _median(np.log10(along)),
        "censored": len(problems) - len(counted),
    }


def _median(values: Any) -> float | None:
    """Return a median to four decimals: of rounding in a logarithm that is 0, ranks would be made."""
    return round(float(np.median(values)), 4) + 0.0 if len(values) else None


def column(data: dict[str, Any], key: str, correlation: int | None = None) -> np.ndarray:
    """Return a column of the cells (NaN for null), of all of them or of one correlation."""
    values = [c[key] for c in data["cells"] if correlation in (None, c["correlation"])]
    return np.array([math.nan if v is None else v for v in values], dtype=float)


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Return Spearman's correlation (mean ranks for ties) over the cells where both are known."""
    known = np.isfinite(x) & np.isfinite(y)
    return float(np.corrcoef(_ranks(x[known]), _ranks(y[known]))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - counts / 2.0)[inverse]


def title(data: dict[str, Any]) -> str:
    """Return the finding."""
    wins = {c: float(np.mean(column(data, "measured", c) > 0.0)) for c in CORRELATIONS}
    if wins[1] > 0.0 and wins[0] == wins[-1] == 0.0:
        finding = "SignSGD stops before GD only where large gradients meet large curvature"
    elif wins[1] > max(wins[0], wins[-1]):
        finding = "SignSGD stops before GD mostly where large gradients meet large curvature"
    else:
        finding = "Where large gradients meet large curvature SignSGD gains nothing on GD"
    rho = rank_correlation(column(data, "predicted_start"), column(data, "measured"))
    return f"{finding}; the predicted ratio ranks the counts with ρ = {rho:.2f}"


def draw(figure: Any, data: dict[str, Any]) -> None:
    """Draw the maps, three correlations by measured and predicted, and the two scatters below."""
    maps, scatters = figure.subfigures(2, 1, height_ratios=[4.6, 2.0])
    _draw_maps(maps, data)
    _draw_scatters(scatters.subplots(1, 2), data)


def _draw_maps(figure: Any, data: dict[str, Any]) -> None:
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    colours = LinearSegmentedColormap.from_list("gd_signsgd", [style.BLUE, "#FFFFFF", style.VERMILLION])
    norm = Normalize(-SPAN, SPAN)
    levels = np.array(data["heterogeneities"], dtype=float)
    edges = 10.0 ** _edges(np.log10(levels))
    axes = figure.subplots(3, 2)
    image = None
    for row, correlation in enumerate(CORRELATIONS):
        for side, key in enumerate(("measured", "predicted_start")):
            ax = axes[row, side]
            values = column(data, key, correlation).reshape(len(levels), len(levels))
            image = ax.pcolormesh(edges, edges, values, cmap=colours, norm=norm, rasterized=True)
            if key == "measured" and np.nanmin(values) < 0.0 < np.nanmax(values):
                ax.contour(levels, levels, values, levels=[0.0], colors=style.BLACK, linewidths=0.9)
            ax.set(xscale="log", yscale="log", xlim=edges[[0, -1]], ylim=edges[[0, -1]])
            ax.minorticks_off()
            ax.tick_params(labelbottom=row == 2, labelleft=side == 0)
        axes[row, 1].annotate(
            f"correlation {_signed(correlation)}",
            (1.05, 0.5),
            xycoords="axes fraction",
            rotation=270,
            va="center",
        )
    axes[0, 0].set_title("measured $T_\\mathrm{GD}/T_\\mathrm{SignSGD}$")
    axes[0, 1].set_title("predicted $Λ_G/Λ_P$")
    figure.supylabel("gradient heterogeneity, max/min $‖g_b‖$", fontsize=7.0)
    for ax in axes[2]:
        ax.set_xlabel("Hessian heterogeneity\nmax/min $‖H_b‖$")
    scale = figure.colorbar(image, ax=axes, location="bottom", extend="both", aspect=40, pad=0.02)
    scale.set_ticks([-1, 0, 1], labels=["1/10", "1", "10"])
    scale.ax.minorticks_off()
    scale.set_label("GD stops first   ←   ratio (black: 1)   →   SignSGD stops first")


def _draw_scatters(axes: Any, data: dict[str, Any]) -> None:
    keys = {"predicted_start": "$Λ_G/Λ_P$ at the start", "predicted_run": "$Λ_G/Λ_P$, mean of GD's run"}
    looks = {1: (style.VERMILLION, "^"), 0: (style.GREY, "o"), -1: (style.BLUE, "v")}
    measured = column(data, "measured")
    known = np.concatenate([measured, *(column(data, key) for key in keys)])
    low, high = 10.0 ** (np.nanmin(known) - 0.15), 10.0 ** (np.nanmax(known) + 0.15)
    for ax, (key, name) in zip(axes, keys.items(), strict=True):
        ax.plot([low, high], [low, high], color=style.BLACK, linewidth=0.7)
        for correlation, (colour, marker) in looks.items():
            ax.plot(
                10.0 ** column(data, key, correlation),
                10.0 ** column(data, "measured", correlation),
                linestyle="none",
                marker=marker,
                markersize=2.2,
                markeredgewidth=0.0,
                color=colour,
                alpha=0.7,
                label=_signed(correlation),
            )
        ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), xlabel=name)
        ax.set_title(f"rank correlation ρ = {rank_correlation(column(data, key), measured):.2f}")
        style.decades(ax.xaxis)
        style.decades(ax.yaxis)
        style.grid(ax)
    axes[0].set_ylabel("measured ratio")
    axes[1].tick_params(labelleft=False)
    axes[1].legend(title="correlation", loc="upper left", title_fontsize=6.5, handlelength=0.8)


def _signed(correlation: int) -> str:
    return f"{correlation:+d}".replace("+0", "0").replace("-", "−")


def _edges(centres: np.ndarray) -> np.ndarray:
    half = (centres[1] - centres[0]) / 2.0
    return np.append(centres - half, centres[-1] + half)
