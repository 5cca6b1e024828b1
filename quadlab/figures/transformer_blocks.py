r"""Gradient against curvature of the blocks of real models at their start, a point a block.

Where large gradients meet large curvature, Lambda_G exceeds Lambda_P: the gradient-weighted mean of ||H_b||
is larger than the parameter-weighted one, and theory expects GD to pay for it (tomihari2025).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from quadlab.figures import style
from quadlab.figures._measure import number
from quadlab.figures._models import blocks, is_matrix, label, setting

HEIGHT = 3.9

#: Panels: Pre-LN beside Post-LN beside a control.
PANELS = (
    ("gpt-pre", 2),
    ("gpt-post", 2),
    ("mlp", 4),
    ("vit-pre", 2),
    ("vit-post", 2),
    ("cnn", 3),
)
#: Kind of block -> (label, colour, marker).
KINDS = {
    "embedding": ("embedding, head", style.BLACK, "s"),
    "scores": ("query, key", style.VERMILLION, "^"),
    "values": ("value, output", style.ORANGE, "v"),
    "perceptron": ("other matrices", style.BLUE, "o"),
    "norm": ("LayerNorm", style.GREEN, "D"),
    "bias": ("bias", style.GREY, "x"),
}


def kind(name: str) -> str:
    """Return the kind of a block.

    Examples
    --------
    >>> kind("layers.0.attention.k.weight"), kind("ln.bias"), kind("layers.0.up.bias"), kind("position")
    ('scores', 'norm', 'bias', 'embedding')
    """
    parts = name.split(".")
    if any(part.startswith("ln") for part in parts):
        return "norm"
    if not is_matrix(name):
        return "bias"
    if parts[0] in ("position", "embed", "head"):
        return "embedding"
    return {"q": "scores", "k": "scores", "v": "values", "o": "values"}.get(parts[-2], "perceptron")


def data(quick: bool = False, progress: bool = False) -> dict[str, Any]:
    """Return the scales of the blocks, as recorded."""
    panels = []
    for model, depth in PANELS:
        entry = blocks(model, depth)
        if entry is None:
            continue
        norms = np.maximum(np.abs(entry["top"]), np.abs(entry["bottom"]))
        gradients = np.array(entry["gradient_norms"])
        shown = (norms > 1e-10 * norms.max()) & (gradients > 0.0)
        logs = np.log(norms[shown]), np.log(gradients[shown])
        panels.append(
            {
                **setting(entry),
                "names": [name for name, drawn in zip(entry["names"], shown, strict=True) if drawn],
                "hessian": norms[shown].tolist(),
                "gradient": gradients[shown].tolist(),
                "without_curvature": int((~shown).sum()),
                "ratio": number(entry["lambda_g"] / entry["lambda_p"]),
                "correlation": number(float(np.corrcoef(*logs)[0, 1])),
            }
        )
    return {
        "caption": (
            "||g_b|| against ||H_b|| at the start, a point a parameter tensor, with Lambda_G / Lambda_P and "
            "Pearson's correlation r of the logarithms; full batch, seed 0. "
            + " ".join(
                f"Not shown, as without curvature: {p['without_curvature']} blocks of {label(p['model'])}."
                for p in panels
                if p["without_curvature"]
            )
        ),
        "panels": panels,
    }


def title(data: dict[str, Any]) -> str:
    """Return the finding."""
    panels = data["panels"]
    positive = sum(p["correlation"] > 0.0 for p in panels)
    above = sum(p["ratio"] > 1.0 for p in panels)
    return (
        f"Gradient and curvature of blocks go together in {positive} of {len(panels)} models; "
        f"$Λ_G$ exceeds $Λ_P$ in {above}, and is at most {max(p['ratio'] for p in panels):.1f} times as large"
    )


def draw(figure: Any, data: dict[str, Any]) -> None:
    """Draw a panel a model."""
    axes = figure.subplots(2, 3, sharex="row", sharey="row")
    for ax, panel in zip(axes.flat, data["panels"], strict=False):
        kinds = np.array([kind(name) for name in panel["names"]])
        x, y = np.array(panel["hessian"]), np.array(panel["gradient"])
        for name, (text, colour, marker) in KINDS.items():
            own = kinds == name
            ax.plot(
                x[own],
                y[own],
                marker,
                color=colour,
                markersize=2.8,
                alpha=0.8,
                markeredgewidth=0.8 if marker == "x" else 0.0,
                label=text,
            )
        ax.set(xscale="log", yscale="log")
        ax.set_title(label(panel["model"]), fontweight="bold", loc="left")
        ax.text(
            0.97,
            0.04,
            f"$Λ_G/Λ_P$ = {panel['ratio']:.2f}\nr = {panel['correlation']:.2f}",
            transform=ax.transAxes,
            ha="right",
            va="bottom",
            fontsize=6.5,
        )
        low, high = ax.get_xlim()
        style.decades(ax.xaxis, 1 if high < 1e3 * low else 2)
        style.decades(ax.yaxis)
        style.grid(ax)
    for ax in axes.flat[len(data["panels"]) :]:
        ax.set_axis_off()
    axes[1, 1].set_xlabel("block Hessian norm $‖H_b‖$")
    figure.supylabel("block gradient norm $‖g_b‖$", fontsize=7.0)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
