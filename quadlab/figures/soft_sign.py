r"""Adam as a soft SignSGD, over beta2 and epsilon.

With beta1 = beta2 = epsilon = 0 Adam is SignSGD to the bit. A longer memory of g^2, and a larger epsilon,
make its update d_t softer: the cosine between d_t and sign g_t falls, and fewer coordinates have |d_i| in
[1/2, 2]. What that does to the count is measured with the best constant learning rate of each.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from quadlab.figures import style
from quadlab.figures._measure import best_constant, each, number
from quadlab.methods import Adam, SignSGD
from quadlab.problem import BlockQuadratic
from quadlab.solve import solve
from quadlab.stopping import GradientNorm

HEIGHT = 4.1

BETA1 = (0.0, 0.9)
BETA2 = (0.0, 0.5, 0.9, 0.99, 0.999)
#: In units of the start's mean |g_i|.
EPSILON = (0.0, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
KAPPA, SIZE, BLOCKS = 100.0, 24, 4
EPS = 1e-2
CAP = 20_000
#: Quantity -> (title, colour map, limits).
QUANTITIES: dict[str, tuple[str, str, tuple[float, float]]] = {
    "cos": ("cos(d, sign g)", "viridis", (0.0, 1.0)),
    "soft": ("share of |d| in [½, 2]", "viridis", (0.0, 1.0)),
    "ratio": ("$T_{Adam}/T_{SignSGD}$", "PuOr", (0.1, 10.0)),
}


def problem(seed: int) -> BlockQuadratic:
    """Return a problem of four Haar-rotated blocks with log-spaced eigenvalues, dealt in turn."""
    eigenvalues = np.geomspace(1.0 / KAPPA, 1.0, SIZE)
    return BlockQuadratic.from_spectra(
        [eigenvalues[b::BLOCKS] for b in range(BLOCKS)], basis="haar", seed=seed
    )


def data(quick: bool = False, progress: bool = False) -> dict[str, Any]:
    """Return the medians over draws in every cell."""
    draws = 2 if quick else 7
    stop = GradientNorm(EPS, 1, relative=True)
    problems = [problem(seed) for seed in range(draws)]
    refine = 0 if quick else 9
    signs = [best_constant(p, SignSGD(1.0), stop, cap=CAP, refine=refine).iterations for p in problems]

    def measure(cell: tuple[float, float, float]) -> dict[str, Any]:
        beta1, beta2, epsilon = cell
        rows = []
        for p, sign in zip(problems, signs, strict=True):
            unit = float(np.abs(p.gradient(p.start)).mean())
            method = Adam(1.0, beta1=beta1, beta2=beta2, epsilon=epsilon * unit)
            found = best_constant(p, method, stop, cap=CAP, refine=refine, high=3.0)
            if found.learning_rate is None or sign is None:
                continue
            best = Adam(found.learning_rate, beta1=beta1, beta2=beta2, epsilon=epsilon * unit)
            run = solve(p, best, stop, max_iterations=CAP, statistics=("mean_cos_sign", "mean_soft"))
            rows.append((run.statistics["mean_cos_sign"], run.statistics["mean_soft"], run.iterations / sign))
        middle = np.median(np.array(rows, dtype=float), axis=0) if 2 * len(rows) > draws else [None] * 3
        return {
            **dict(zip(QUANTITIES, (number(value, 4) for value in middle), strict=True)),
            "censored": draws - len(rows),
        }

    cells = [(b1, b2, epsilon) for b1 in BETA1 for b2 in BETA2 for epsilon in EPSILON]
    found = each(measure, cells, "soft_sign", progress)
    return {
        "caption": (
            "Adam over beta2 and epsilon (in units of the start's mean |g_i|), without and with momentum, on "
            f"{BLOCKS} Haar-rotated blocks, P = {SIZE}, kappa = {KAPPA:g}, to ||g||_1 <= {EPS:g} of its "
            f"start; medians of {draws} draws, best constant learning rates. Means over the run of cos(d_t, "
            "sign g_t) and of the share of coordinates with 1/2 <= |d_i| <= 2; the count over SignSGD's, "
            f"below 1 where Adam is quicker. White: most draws need more than {CAP:,} updates."
        ),
        "beta1": list(BETA1),
        "beta2": list(BETA2),
        "epsilon": list(EPSILON),
        "draws": draws,
        "cap": CAP,
        "signsgd": signs,
        "cells": [
            {"beta1": b1, "beta2": b2, "epsilon": epsilon, **cell}
            for (b1, b2, epsilon), cell in zip(cells, found, strict=True)
        ],
    }


def column(data: dict[str, Any], quantity: str, beta1: float) -> np.ndarray:
    """Return a quantity as an array of shape (epsilon, beta2); NaN where most draws were cut short."""
    values = [c[quantity] for c in data["cells"] if c["beta1"] == beta1]
    shape = len(data["beta2"]), len(data["epsilon"])
    return np.array([np.nan if v is None else v for v in values], dtype=float).reshape(shape).T


def rank(data: dict[str, Any], quantity: str) -> float:
    """Return the rank correlation, over all cells, of a quantity with the count over SignSGD's."""
    from scipy.stats import spearmanr

    x, y = (
        np.concatenate([column(data, name, b).ravel() for b in data["beta1"]]) for name in (quantity, "ratio")
    )
    known = np.isfinite(x) & np.isfinite(y)
    return float(spearmanr(x[known], y[known]).statistic)


def title(data: dict[str, Any]) -> str:
    """Return the finding."""
    soft, cos = rank(data, "soft"), rank(data, "cos")
    relation = "fewer" if soft > 0.0 else "more"
    best = min((c for c in data["cells"] if c["ratio"] is not None), key=lambda c: c["ratio"])
    return (
        f"The less Adam's steps are of size 1, the {relation} updates it needs (rank correlation {soft:.2f}; "
        f"of the cosine {cos:.2f}); SignSGD needs up to ×{style.significant(1.0 / best['ratio'])} its count, "
        f"at β₁ = {best['beta1']:g}, β₂ = {best['beta2']:g}, ε = {best['epsilon']:g} mean |g₀|"
    )


def draw(figure: Any, data: dict[str, Any]) -> None:
    """Draw a row a beta1, a column a quantity."""
    from matplotlib.colors import LogNorm, Normalize

    axes = figure.subplots(len(data["beta1"]), len(QUANTITIES), sharex=True, sharey=True)
    for k, (quantity, (label, colours, (low, high))) in enumerate(QUANTITIES.items()):
        norm = LogNorm(low, high) if quantity == "ratio" else Normalize(low, high)
        for ax, beta1 in zip(axes[:, k], data["beta1"], strict=True):
            values = np.ma.masked_invalid(column(data, quantity, beta1))
            image = ax.imshow(values, origin="lower", aspect="auto", cmap=colours, norm=norm)
            for spine in ax.spines.values():
                spine.set_visible(False)
            ax.tick_params(length=0.0)
        axes[0, k].set_title(label)
        axes[-1, k].set_xticks(
            range(len(data["beta2"])), [f"{b:g}".lstrip("0") or "0" for b in data["beta2"]]
        )
        axes[-1, k].tick_params(axis="x", rotation=90)
        axes[-1, k].set_xlabel("$β_2$")
        figure.colorbar(image, ax=list(axes[:, k]), orientation="horizontal", aspect=12, pad=0.03)
    for ax, beta1 in zip(axes[:, 0], data["beta1"], strict=True):
        ax.set_yticks(range(len(data["epsilon"])), [f"{e:g}" for e in data["epsilon"]])
        ax.set_ylabel(f"$β_1$ = {beta1:g}:  ε / mean |$g_0$|")
