r"""The eigenvalue densities of the matrices of a Transformer and of a convolutional network, at their start.

Lanczos quadratures of the Hessian blocks, smoothed, on a logarithmic scale of |lam|: the part of positive
and that of negative eigenvalues. What lies within a hundredth of the block's norm of zero is not resolved by
so few steps, and is given as a share.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from quadlab.bridge.replay import BANDWIDTH, FLAT
from quadlab.figures import style
from quadlab.figures._measure import number, numbers
from quadlab.figures._models import blocks, is_matrix, label, setting, short

HEIGHT = 4.4

#: Columns of panels, one below another.
COLUMNS = ((("vit-pre", 2),), (("vit-post", 2),), (("cnn", 3), ("mlp", 4)))
POINTS = 80


def data(quick: bool = False, progress: bool = False) -> dict[str, Any]:
    """Return the smoothed densities of the matrices, on one grid, as recorded."""
    entries = [blocks(*panel) for column in COLUMNS for panel in column]
    chosen = [
        (entry, [b for b, name in enumerate(entry["names"]) if is_matrix(name)]) for entry in entries if entry
    ]
    norms = np.array(
        [max(abs(entry["top"][b]), abs(entry["bottom"][b])) for entry, own in chosen for b in own]
    )
    low, high = math.log10(FLAT * norms.min()), math.log10(norms.max())
    grid = np.linspace(low - 0.3, high + 1.5, POINTS)  # on the right, room for the shares
    return {
        "caption": (
            "Eigenvalues of the Hessian blocks of all matrices at the start: on the right, a block's share "
            f"of eigenvalues within {FLAT:g} ||H_b|| of zero; drawn, the density of the others over "
            f"log10 |lam|, smoothed over {BANDWIDTH:g} decades, positive above and negative below each line. "
            "Stochastic Lanczos quadrature, seed 0."
        ),
        "grid": numbers(grid.tolist()),
        "flat": FLAT,
        "panels": [
            {**setting(entry), "blocks": [_density(entry, b, grid) for b in own]} for entry, own in chosen
        ],
    }


def _density(entry: dict[str, Any], b: int, grid: np.ndarray) -> dict[str, Any]:
    lam, w = np.array(entry["nodes"][b]), np.array(entry["weights"][b])
    w = w / w.sum()
    flat = np.abs(lam) <= FLAT * max(abs(entry["top"][b]), abs(entry["bottom"][b]))
    rest = max(float(w[~flat].sum()), 1e-300)
    shares, curves = {}, {}
    for key, side in (("positive", lam > 0.0), ("negative", lam < 0.0)):
        own = side & ~flat
        distance = (grid - np.log10(np.abs(lam[own]))[:, None]) / BANDWIDTH
        kernel = np.exp(-0.5 * distance**2) / (BANDWIDTH * math.sqrt(2.0 * math.pi))
        curves[key] = [round(v, 4) for v in (w[own] @ kernel / rest).tolist()]
        shares[key] = float(w[own].sum()) / rest
    return {
        "name": entry["names"][b],
        "flat": number(float(w[flat].sum()), 3),
        "part_negative": number(shares["negative"], 3),
        **curves,
    }


def title(data: dict[str, Any]) -> str:
    """Return the finding."""
    every = [block for panel in data["panels"] for block in panel["blocks"]]
    flat, negative = (np.median([block[key] for block in every]) for key in ("flat", "part_negative"))
    return (
        f"In the median matrix {100 * flat:.0f}% of the eigenvalues lie within {100 * data['flat']:g}% of "
        f"the block's norm of zero, and {100 * negative:.0f}% of the others are negative"
    )


def draw(figure: Any, data: dict[str, Any]) -> None:
    """Draw a column a Transformer and one for the controls, a line a block."""
    panels = {(panel["model"], panel["depth"]): panel for panel in data["panels"]}
    columns: list[list[Any]] = []
    for column in COLUMNS:
        rows: list[Any] = []
        for place in column:
            if place in panels:
                rows += [*([None] if rows else []), label(place[0]), *panels[place]["blocks"]]
        columns.append(rows)
    x = 10.0 ** np.array(data["grid"])
    every = [block for panel in data["panels"] for block in panel["blocks"]]
    height = max(max(block["positive"] + block["negative"]) for block in every) / 0.6
    names: list[str] = []
    for ax, rows in zip(figure.subplots(1, len(columns)), columns, strict=True):
        ticks = []
        for row, block in enumerate(rows):
            if isinstance(block, dict):
                up, down = (np.array(block[key]) / height for key in ("positive", "negative"))
                ax.fill_between(x, row, row - up, color=style.BLUE, linewidth=0.0)
                ax.fill_between(x, row, row + down, color=style.VERMILLION, linewidth=0.0)
                ax.plot(x[[0, -1]], [row, row], color=style.GREY, linewidth=0.3)
                ticks.append((row, short(block["name"])))
                share = f"{100 * block['flat']:.0f}%"
                ax.text(x[-1], row - 0.05, share, fontsize=6.0, ha="right", va="bottom", color="#555555")
            elif block:
                ax.text(x[0], row + 0.3, block, fontweight="bold", ha="left", va="bottom")
        ax.set(xscale="log", xlim=(x[0], x[-1]), ylim=(max(map(len, columns)) - 0.4, -0.5))
        ax.set_yticks(*zip(*ticks, strict=True), fontsize=6.0)
        ax.tick_params(axis="y", length=0, labelleft=[text for _, text in ticks] != names)
        names = [text for _, text in ticks]
        style.decades(ax.xaxis, 2)
        ax.spines["left"].set_visible(False)
    figure.supxlabel("$|λ|$   (blue, up: $λ>0$; red, down: $λ<0$; %: near zero)", fontsize=7.0)
