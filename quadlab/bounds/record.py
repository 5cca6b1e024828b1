"""The record: the largest measured / bound that a search has found for each bound; the table of theorems.

``quadlab/recorded/worst_cases.json`` holds, for every bound, the tightest runs that the falsifier has found,
as arrays, and the best ratios of a random search. ``tests/make_worst_cases.py`` writes it, and the tests make
its runs again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import Any

from quadlab.bounds.registry import ITERATIONS, Bound, bounds


@cache
def worst_cases() -> dict[str, Any]:
    """Return the record: "bounds", name -> "any" and "long" run, and "random", with the best ratios.

    Examples
    --------
    >>> worst_cases()["bounds"]["gd.constant_step"]["long"]["iterations"] >= 10
    True
    """
    record: dict[str, Any] = json.loads((files("quadlab") / "recorded" / "worst_cases.json").read_text())
    return record


def best_ratio(name: str, label: str = "any") -> float | None:
    """Return the best ratio on record, of the falsifier and the random search; None if there is none.

    Parameters
    ----------
    name : str
        The bound's.
    label : {"any", "long"}
        Over all runs, or over those of at least ten updates.

    Examples
    --------
    >>> 0.19 < best_ratio("gd.constant_step", "long") < best_ratio("gd.constant_step") <= 1.0
    True
    """
    record = worst_cases()
    found = record["bounds"].get(name, {}).get(label), record["random"]["best"].get(name, {}).get(label)
    return max((entry["ratio"] for entry in found if entry is not None), default=None)


def figure_of(entry: Bound) -> str:
    """Return the name of the figure that shows a bound: of counts, of means over noise, or of the record."""
    if entry.expectation:
        return "noise"
    counts = entry.kind == "upper" and entry.quantity == ITERATIONS
    return "measured_vs_bound" if counts else "worst_cases"


def checked_by(entry: Bound) -> str:
    """Return the id, below ``tests/``, of the test on a bound's tightest run, or of its mean over noise."""
    if entry.expectation:
        return "test_stochastic.py::test_every_bound_holds_on_average"
    return f"test_falsify.py::test_worst_case[{entry.name}-any]"


def markdown() -> str:
    """Return the table of the library's theorems, with the code, test and figure of each.

    Examples
    --------
    >>> print(markdown().splitlines()[0])
    | theorem | formula | source | function | test | figure | best ratio found |
    """
    rows: list[Iterable[str]] = [
        ("theorem", "formula", "source", "function", "test", "figure", "best ratio found"),
        ("---",) * 7,
    ]
    for entry in bounds():
        if not entry.built_in:
            continue
        module = entry.function.__module__.rpartition(".")[2]
        figure, test = figure_of(entry), checked_by(entry)
        rows.append(
            (
                f"{entry.summary.rstrip('.')} ({entry.statement})",
                f"`{entry.formula}`",
                entry.source or "derived",
                f"[`bounds/{module}.py: {entry.function.__name__}`](quadlab/bounds/{module}.py)",
                f"[`{test}`](tests/{test.partition('::')[0]})",
                f"[`{figure}`](figures/{figure}.png)",
                _ratios(entry.name),
            )
        )
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)


def _ratios(name: str) -> str:
    of_any, of_long = best_ratio(name), best_ratio(name, "long")
    if of_any is None:
        return "-"
    return f"{of_any:.2f}" if of_long is None else f"{of_any:.2f}; {of_long:.2f} for T ≥ 10"
