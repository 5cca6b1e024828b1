r"""How much the blocks' Hessian spectra differ: a Transformer beside a convolutional network.

The Jensen-Shannon distance between the densities of every two blocks, and its mean over pairs, JS^0, of every
model measured. zhang2024 finds spectra alike within CNNs and unlike within Transformers, and takes that for
the reason that SGD fails on the latter.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from quadlab.bridge import study
from quadlab.bridge.replay import BANDWIDTH, FLAT, density_distances
from quadlab.figures import style
from quadlab.figures._measure import number
from quadlab.figures._models import MODELS, is_matrix, label, setting, short

HEIGHT = 3.7

PANELS = (("vit-pre", 2), ("cnn", 3))


def data(quick: bool = False, progress: bool = False) -> dict[str, Any]:
    """Return the distances of the recorded densities, and JS^0 over all blocks and over matrices alone."""
    panels, means = [], []
    for entry in study.select(study.recorded(), "blocks"):
        if entry["seed"]:
            continue
        names, distances = density_distances(study.block_statistics(entry))
        matrices = [k for k, name in enumerate(names) if is_matrix(name)]
        means.append(
            {
                **setting(entry),
                "all": number(study.mean_distance(distances)),
                "matrices": number(study.mean_distance(distances, matrices)),
                "hessian_gini": entry["hessian_gini"],
            }
        )
        if (entry["model"], entry["depth"]) in PANELS:
            panels.append({**means[-1], "names": names, "distances": np.round(distances, 3).tolist()})
    norms, norms_cnn = medians({"means": means}, "hessian_gini")
    return {
        "caption": (
            "Jensen-Shannon distance between the eigenvalue densities of every two parameter tensors at the "
            "start, and its mean over pairs (JS^0) for every model measured: over all tensors that have "
            "curvature, and over matrices and convolutions alone. Densities of log10 |lam|, smoothed over "
            f"{BANDWIDTH:g} decades; eigenvalues within {FLAT:g} ||H_b|| of zero count as zero. Seed 0. "
            f"The Gini coefficient of the block norms ||H_b|| is {norms:.2f} in the median Transformer and "
            f"{norms_cnn:.2f} in the median CNN."
        ),
        "panels": panels,
        "means": means,
    }


def medians(data: dict[str, Any], key: str) -> tuple[float, float]:
    """Return the medians of the Transformers and of the CNNs."""
    groups: dict[bool, list[float]] = {True: [], False: []}
    for entry in data["means"]:
        if entry["model"] != "mlp":
            groups[entry["model"] == "cnn"].append(entry[key])
    return float(np.median(groups[False])), float(np.median(groups[True]))


def title(data: dict[str, Any]) -> str:
    """Return the finding."""
    (every, every_cnn), (matrices, matrices_cnn) = medians(data, "all"), medians(data, "matrices")
    if every > every_cnn and matrices > matrices_cnn:
        finding = "Block spectra differ more in the Transformers than in the CNNs"
    elif every < every_cnn and matrices < matrices_cnn:
        finding = "Block spectra do not differ more in the Transformers than in the CNNs"
    else:
        which = "all blocks" if every > every_cnn else "matrices alone"
        finding = f"Block spectra differ more in the Transformers than in the CNNs over {which} only"
    return (
        f"{finding}: $JS^0$ {every:.2f} against {every_cnn:.2f}, over matrices {matrices:.2f} against "
        f"{matrices_cnn:.2f}"
    )


def draw(figure: Any, data: dict[str, Any]) -> None:
    """Draw the two matrices, and the means of all models below."""
    upper, lower = figure.subfigures(2, 1, height_ratios=[1.2, 1.0])
    axes = np.atleast_1d(upper.subplots(1, max(1, len(data["panels"]))))
    image = None
    for ax, panel in zip(axes, data["panels"], strict=True):
        image = ax.imshow(
            np.array(panel["distances"]), cmap="magma", vmin=0.0, vmax=1.0, interpolation="nearest"
        )
        ax.set_title(label(panel["model"]), fontweight="bold", loc="left")
        count = len(panel["names"])
        if count <= 12:
            ax.set_yticks(range(count), [short(name) for name in panel["names"]], fontsize=6.0)
            ax.set_xticks([])
        else:
            ax.set_xticks([])
            ax.set_yticks([])
        ax.set_xlabel(f"{count} blocks, mean {panel['all']:.2f}")
    if image is not None:
        scale = upper.colorbar(image, ax=axes, location="right", aspect=25, pad=0.02)
        scale.set_label("distance")
    ax = lower.subplots()
    rows = list(dict.fromkeys(entry["model"] for entry in data["means"]))
    for entry in data["means"]:
        row = rows.index(entry["model"])
        _, colour, marker, _ = MODELS[entry["model"]]
        for key, shift, fill in (("all", -0.14, colour), ("matrices", 0.14, "white")):
            ax.plot(
                entry[key],
                row + shift,
                marker,
                color=colour,
                markerfacecolor=fill,
                markersize=2.2 + 0.35 * entry["depth"],
            )
    ax.set_yticks(range(len(rows)), [label(model) for model in rows])
    ax.set(ylim=(len(rows) - 0.5, -0.5), xlabel="$JS^0$ (filled: all blocks; open: matrices; size: depth)")
    style.grid(ax)
