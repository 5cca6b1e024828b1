r"""Heterogeneity over training, and at the start over depth, Post-LN against Pre-LN.

Above, along Adam's best run: Lambda_G / Lambda_P, and the Gini coefficient of the block gradient norms.
Below, that coefficient at the start over depth, ten seeds each, and Lambda_G / Lambda_P where it was
measured. tomihari2025 finds the gradients of Post-LN more unequal than those of Pre-LN.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from quadlab.bridge import study
from quadlab.figures import style
from quadlab.figures._measure import number
from quadlab.figures._models import MODELS, setting

HEIGHT = 4.2


def data(quick: bool = False, progress: bool = False) -> dict[str, Any]:
    """Return the courses and the heterogeneity at the start, as recorded."""
    record = study.recorded()
    courses = [
        {
            **setting(entry),
            "status": entry["status"],
            "iteration": [point["iteration"] for point in entry["points"]],
            "loss": [point["loss"] for point in entry["points"]],
            "ratio": [number(point["lambda_g"] / point["lambda_p"]) for point in entry["points"]],
            "gini": [point["gradient_gini"] for point in entry["points"]],
        }
        for entry in study.select(record, "course")
    ]
    starts = [
        {
            "model": entry["model"],
            "depth": entry["depth"],
            "gini": entry["gradient_gini"],
            "per_parameter_gini": entry["per_parameter_gini"],
        }
        for entry in study.select(record, "gradients")
    ]
    compared = larger_post({"starts": starts}, "per_parameter_gini")
    ratios: dict[tuple[str, int], list[float]] = {}
    for kind in ("blocks", "extremes"):
        for entry in study.select(record, kind):
            if entry["model"] in study.TRANSFORMERS:
                key = entry["model"], entry["depth"]
                ratios.setdefault(key, []).append(entry["lambda_g"] / entry["lambda_p"])
    return {
        "caption": (
            "Above: Lambda_G / Lambda_P and the Gini coefficient of ||g_b|| at the start, a quarter, half "
            "and the end of Adam's run with its best constant learning rate, full batch, seed 0 (depth 2; "
            "CNN 3). Below, at the start: Lambda_G / Lambda_P for each seed measured, and the Gini "
            "coefficient over ten seeds (median and range). Of ||g_b|| / sqrt(P_b) the median is larger "
            f"Post-LN in {sum(post > pre for *_, pre, post in compared)} of {len(compared)} cases."
        ),
        "courses": courses,
        "starts": starts,
        "ratios": [
            {"model": model, "depth": depth, "ratio": [number(v) for v in values]}
            for (model, depth), values in ratios.items()
        ],
    }


def larger_post(data: dict[str, Any], key: str = "gini") -> list[tuple[str, int, float, float]]:
    """Return family, depth and the median Gini coefficients, Pre-LN and Post-LN."""
    middle = {(e["model"], e["depth"]): float(np.median(e[key])) for e in data["starts"]}
    return [
        (family, depth, middle[f"{family}-pre", depth], middle[f"{family}-post", depth])
        for family in ("gpt", "vit")
        for depth in study.DEPTHS
        if (f"{family}-pre", depth) in middle and (f"{family}-post", depth) in middle
    ]


def title(data: dict[str, Any]) -> str:
    """Return the finding."""
    compared = larger_post(data)
    wins = sum(post > pre for *_, pre, post in compared)
    text = f"At the start gradients are more unequal Post-LN than Pre-LN in {wins} of {len(compared)} cases"
    if data["courses"]:
        begin = [course["ratio"][0] for course in data["courses"]]
        peak = [max(course["ratio"]) for course in data["courses"]]
        text += f"; in training $Λ_G/Λ_P$ rises from {_range(begin)} to {_range(peak)}"
    return text


def _range(values: list[float]) -> str:
    return f"{min(values):.1f}–{max(values):.1f}"


def draw(figure: Any, data: dict[str, Any]) -> None:
    """Draw the courses above and the starts below."""
    axes = figure.subplots(2, 2)
    for course in data["courses"]:
        _, colour, marker, dashes = MODELS[course["model"]]
        x = np.array(course["iteration"]) / max(course["iteration"])
        for ax, key in zip(axes[0], ("ratio", "gini"), strict=True):
            ax.plot(x, course[key], color=colour, linestyle=dashes, marker=marker)
    for ax, text in zip(axes[0], ("$Λ_G/Λ_P$", "Gini of $‖g_b‖$"), strict=True):
        ax.set(xlabel="part of Adam's run", ylabel=text, xlim=(-0.04, 1.04))
        ax.set_xticks([0.0, 0.5, 1.0], ["0", "½", "1"])
    for entry in data["ratios"]:
        _, colour, marker, _ = MODELS[entry["model"]]
        x = _place(entry)
        axes[1, 0].plot([x] * len(entry["ratio"]), entry["ratio"], marker, color=colour)
    for entry in data["starts"]:
        _, colour, marker, _ = MODELS[entry["model"]]
        x = _place(entry)
        axes[1, 1].plot([x, x], [min(entry["gini"]), max(entry["gini"])], color=colour, linewidth=0.7)
        axes[1, 1].plot(x, np.median(entry["gini"]), marker, color=colour)
    for ax, text in zip(axes[1], ("$Λ_G/Λ_P$ at the start", "Gini of $‖g_b‖$, start"), strict=True):
        ax.set(xlabel="depth", ylabel=text, xlim=(-0.5, len(study.DEPTHS) - 0.5))
        ax.set_xticks(range(len(study.DEPTHS)), [str(depth) for depth in study.DEPTHS])
    for ax in axes.flat:
        style.grid(ax)
    axes[0, 0].axhline(1.0, color=style.GREY, linewidth=0.6)
    axes[1, 0].axhline(1.0, color=style.GREY, linewidth=0.6)
    from matplotlib.lines import Line2D

    shown = {entry["model"] for key in ("courses", "starts") for entry in data[key]}
    handles = [
        Line2D([], [], color=colour, linestyle=dashes, marker=marker, label=name)
        for model, (name, colour, marker, dashes) in MODELS.items()
        if model in shown
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)


def _place(entry: dict[str, Any]) -> float:
    """Return the place on the axis of depths, the models side by side."""
    return study.DEPTHS.index(entry["depth"]) + 0.13 * (study.TRANSFORMERS.index(entry["model"]) - 1.5)
