r"""Time per iteration against the size of the work, beside what the machine can do at best.

Drawn from ``recorded/bench.json``, which ``make bench`` writes: one thread, the test made each time. Three
growths: Adam on a diagonal against P, GD on dense blocks against :math:`\sum_b P_b^2`, and a batch of GD runs
on three blocks of three against the number of runs. The roofs are what no code can beat that reads and writes
each number once: the bytes over the bandwidth of a triad (a roof once the numbers have left the cache), and
the operations over the rate of a product of matrices, measured in the same hour.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import numpy as np

from quadlab.figures import style
from quadlab.figures._measure import number

HEIGHT = 4.3

#: Bytes that an iteration must move: of Adam on a diagonal a parameter (h, x, m and v read; x, m and v
#: written); of GD on dense blocks an entry of H.
ADAM_BYTES, DENSE_BYTES = 56, 8


def recorded() -> dict[str, Any]:
    """Return what the benchmark recorded of growth."""
    file = resources.files("quadlab") / "recorded" / "bench.json"
    return json.loads(file.read_text())["items"]["growth"]


def data(quick: bool = False, progress: bool = False) -> dict[str, Any]:
    """Return sizes, nanoseconds an iteration, and the machine's rates; the same whether quick or not."""
    growth = recorded()
    points = {
        "diagonal": [[row["size"], row["ns"]] for row in growth["diagonal"]],
        "dense": [[row["entries"], row["ns"]] for row in growth["dense"]],
        "lanes": [[row["runs"], number(row["ns"] / row["runs"])] for row in growth["lanes"]],
    }
    return {
        "caption": (
            "Time per iteration, stopping test included, one thread: Adam on a diagonal; GD on dense blocks "
            "(1, 4, 16 of 64, 4, 16 of 256, 4 of 1024), one run; GD on three blocks of three, so many runs "
            "at a time, per run. Medians. Roofs: 56 bytes a parameter, or 8 an entry of H, at the triad's "
            f"{growth['triad']:g} GB/s; two operations an entry at dgemm's {growth['dgemm']:g} Gflop/s; "
            "the triad's is one beyond the cache only. "
            f"{growth['machine']}, {growth['date']}, load {growth['load']:g}."
        ),
        "points": points,
        "triad": growth["triad"],
        "dgemm": growth["dgemm"],
    }


def slope(points: list[list[float]]) -> float:
    """Return the slope of a straight line through the points on log axes."""
    size, time = np.log(np.array(points, dtype=float)).T
    return float(np.polyfit(size, time, 1)[0])


def share(data: dict[str, Any]) -> float:
    """Return the share of the triad's bandwidth that the largest diagonal reaches."""
    size, time = data["points"]["diagonal"][-1]
    return ADAM_BYTES * size / time / data["triad"]


def title(data: dict[str, Any]) -> str:
    """Return the finding."""
    points = data["points"]["diagonal"]
    low, high = (style.superscript(np.log10(points[k][0]), 0) for k in (0, -1))
    return (
        f"From P = 10{low} to 10{high} an iteration of Adam grows as P{style.superscript(slope(points), 2)}, "
        f"to {share(data):.0%} of the triad's bandwidth"
    )


def draw(figure: Any, data: dict[str, Any]) -> None:
    """Draw the diagonal above, dense blocks and lanes below."""
    grid = figure.add_gridspec(2, 2)
    panels = {
        "diagonal": figure.add_subplot(grid[0, :]),
        "dense": figure.add_subplot(grid[1, 0]),
        "lanes": figure.add_subplot(grid[1, 1]),
    }
    labels = {
        "diagonal": ("parameters P", "Adam, diagonal"),
        "dense": ("$\\sum_b P_b^2$", "GD, dense blocks"),
        "lanes": ("runs at a time", "GD, P = 9"),
    }
    roofs = {
        "diagonal": [("triad", style.ORANGE, ADAM_BYTES / data["triad"])],
        "dense": [
            ("triad", style.ORANGE, DENSE_BYTES / data["triad"]),
            ("dgemm", style.GREY, 2.0 / data["dgemm"]),
        ],
        "lanes": [("dgemm", style.GREY, 2.0 * 27.0 / data["dgemm"])],
    }
    for name, ax in panels.items():
        size, time = np.array(data["points"][name], dtype=float).T
        ax.plot(size, time, "o-", color=style.BLUE, label="quadlab")
        for label, colour, rate in roofs[name]:
            grows = np.ones_like(size) if name == "lanes" else size
            dashes = "--" if label == "triad" else ":"
            ax.plot(size, rate * grows, dashes, color=colour, label=label)
        xlabel, heading = labels[name]
        if name != "lanes":
            heading += f": slope {slope(data['points'][name]):.2f}"
        ax.set(xscale="log", xlabel=xlabel, title=heading)
        style.decades(ax.xaxis)
        if name == "lanes":
            ax.set(ylim=(0.0, None), ylabel="ns an iteration and run")
        else:
            ax.set(yscale="log", ylabel="ns an iteration")
            style.decades(ax.yaxis)
        style.grid(ax)
    handles, names = panels["dense"].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3)
