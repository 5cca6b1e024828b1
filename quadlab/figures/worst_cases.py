r"""How near to each bound a search has come: the record of the falsifier, and of a random search.

For every bound on single runs the largest measured / bound (oriented so that more than 1 is a violation)
among the runs that were tried, of any count, and of at least ten updates. The falsifier refines its draws;
the random search is that of the soak test. Nothing is computed here: the record is
``quadlab/recorded/worst_cases.json``, and the tests make its runs again.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from quadlab.bounds import bounds
from quadlab.bounds.record import worst_cases
from quadlab.figures import style
from quadlab.figures._measure import number

HEIGHT = 5.4

PANELS = {"any": "any count T", "long": "T ≥ 10"}
SEARCHES = {"falsifier": (style.VERMILLION, "o", 4.0), "random": (style.BLUE, "|", 6.0)}
#: A ratio from which a bound counts as met.
MET = 0.99


def data(quick: bool = False, progress: bool = False) -> dict[str, Any]:
    """Return the recorded best ratios, in the order of the register."""
    record = worst_cases()
    found = {"falsifier": record["bounds"], "random": record["random"]["best"]}
    names = [entry.name for entry in bounds().of_runs if entry.built_in]
    return {
        "caption": (
            "The largest measured / bound on record (bound / measured for a lower bound; 1: attained). Dots: "
            f"the falsifier, seconds a bound. Bars: {record['random']['runs']:,} random runs of the soak "
            "test. Left: runs of any count, where one update just inside its tolerance meets most bounds. "
            "Right: runs of ten updates or more."
        ),
        "names": names,
        "ratios": {
            label: {
                search: [number((best[name].get(label) or {}).get("ratio")) for name in names]
                for search, best in found.items()
            }
            for label in PANELS
        },
    }


def _ratios(data: dict[str, Any], label: str, search: str) -> np.ndarray:
    return np.array([np.nan if r is None else r for r in data["ratios"][label][search]], dtype=float)


def title(data: dict[str, Any]) -> str:
    """Return the finding."""
    falsifier, random = (_ratios(data, "long", search) for search in SEARCHES)
    best = {label: np.fmax(*(_ratios(data, label, search) for search in SEARCHES)) for label in PANELS}
    met, loose = int((best["any"] >= MET).sum()), best["long"] < MET
    worst = style.significant(1.0 / np.nanmin(best["long"]))
    ahead = int((falsifier[loose] > random[loose]).sum())
    return (
        f"{met} of {len(data['names'])} bounds are met to {1 - MET:.0%}; by runs of ten updates or more "
        f"{loose.sum()} are not, the loosest is ×{worst} its count, and the falsifier beats random search on "
        f"{ahead} of them"
    )


def draw(figure: Any, data: dict[str, Any]) -> None:
    """Draw a row a bound, a panel a class of runs."""
    rows = np.arange(len(data["names"]))
    axes = figure.subplots(1, len(PANELS), sharey=True)
    for ax, (label, text) in zip(axes, PANELS.items(), strict=True):
        ax.axvline(1.0, color=style.BLACK, linewidth=0.7)
        for search, (colour, marker, size) in SEARCHES.items():
            ax.plot(
                _ratios(data, label, search),
                rows,
                linestyle="none",
                marker=marker,
                markersize=size,
                markeredgewidth=1.2 if marker == "|" else 0.0,
                color=colour,
                label={"falsifier": "falsifier", "random": "random search"}[search],
            )
        ax.set(xlim=(0.0, 1.06), title=text)
        ax.set_xticks([0.0, 0.5, 1.0], ["0", "½", "1"])
        ax.grid(True, axis="both", color="#DDDDDD", linewidth=0.4)
    axes[0].set_yticks(rows, data["names"], fontsize=6.0)
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    for ax in axes:
        ax.tick_params(axis="y", length=0.0)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, title="best measured / bound", loc="outside lower center", ncols=2)
