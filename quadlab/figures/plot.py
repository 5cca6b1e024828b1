r"""One picture of a comparison: how each run went, where it stopped, and its smallest upper bound."""

from __future__ import annotations

from itertools import cycle
from typing import Any

from quadlab.bounds.registry import finite
from quadlab.compare import Comparison
from quadlab.figures import style

#: Trace -> label of its axis.
QUANTITIES = {
    "gap": "$f - f^*$",
    "grad_l1": r"$\|g\|_1$",
    "grad_l2": r"$\|g\|_2$",
    "grad_linf": r"$\|g\|_\infty$",
    "lambda_g": r"$\Lambda_G$",
}


def plot(comparison: Comparison, quantity: str = "gap", ax: Any = None) -> Any:
    """Draw the recorded runs of a comparison against the iteration, on log scales.

    A dot is the end of a run, filled if its stopping test held; a vertical line of the same colour is the
    smallest upper bound on its count. Iteration t is drawn at t + 1, so that the start has a place.

    Parameters
    ----------
    comparison : Comparison
        Made by `compare` with ``record``, such as ``record="log"``.
    quantity : "gap", "grad_l1", "grad_l2", "grad_linf" or "lambda_g"
        What of the trace is drawn.
    ax : matplotlib.axes.Axes, optional
        Where; by default new axes of pyplot.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        If the quantity is unknown, or the comparison has no traces.

    Examples
    --------
    >>> from quadlab import GD, case, compare
    >>> from matplotlib.figure import Figure
    >>> axes = plot(compare(case("het"), GD("lambda_g"), record="log"), ax=Figure().subplots())
    >>> axes.get_xlabel(), len(axes.lines)
    ('iteration + 1', 3)
    """
    if quantity not in QUANTITIES:
        raise ValueError(f"quantity must be one of {', '.join(QUANTITIES)}, received {quantity!r}")
    traces = [entry.run.trace for entry in comparison.runs if entry.run.trace is not None]
    if len(traces) < len(comparison.runs):
        raise ValueError(
            'a comparison is drawn from traces, received one without: compare(..., record="log")'
        )
    if ax is None:
        from matplotlib import pyplot

        ax = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")[1]
    others = cycle(colour for colour, _ in style.CYCLE[3:])
    for entry, trace in zip(comparison.runs, traces, strict=True):
        run = entry.run
        _, colour, dashes = style.METHODS.get(run.method.family, ("", next(others), "-"))
        x, y = trace.iteration + 1, getattr(trace, quantity)
        bound = None if entry.best is None else finite(entry.best.value)
        told = f"T = {run.iterations:,}" if run.converged else f"{run.status.value} at {run.iterations:,}"
        if bound is not None:
            told += f", at most {bound:,.4g}"
            ax.axvline(bound + 1, color=colour, linestyle=":", linewidth=1.0)
        ax.plot(x, y, color=colour, linestyle=dashes, label=f"{run.method}: {told}")
        ax.plot(x[-1:], y[-1:], "o", color=colour, markerfacecolor=colour if run.converged else "white")
    ax.set(xscale="log", yscale="log", xlabel="iteration + 1", ylabel=QUANTITIES[quantity])
    ax.set_title(f"{comparison.problem.name or 'problem'}: runs, and the smallest upper bounds (dotted)")
    ax.legend(fontsize="small")
    return ax
