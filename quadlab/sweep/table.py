"""The results of a sweep as a table of named axes."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quadlab._arrays import shown
from quadlab.problem import BlockQuadratic
from quadlab.sweep.configuration import build_problem, build_setting
from quadlab.sweep.grid import Grid, canonical
from quadlab.sweep.store import FAILED, NUMBER, Outcome

if TYPE_CHECKING:
    import xarray

#: Columns that differ from one time to the next.
WALL_TIMES = ("seconds",)
_FIRST = ("status", "iterations", "resolved_learning_rate", "tolerance")
_LAST = ("error", "seconds")


class Table:
    """The runs of a grid, in its order, with their results; made by `quadlab.sweep.sweep`.

    ``table["iterations"]`` is a column, an array with an entry a run: integers, floats (NaN where a run has
    none), or objects. The columns are the names of the configurations, then ``status`` ("converged",
    "max_iterations", "diverged", "not_descent", "failed"), ``iterations`` (a count only where the status is
    "converged"), ``resolved_learning_rate`` (the constant, such as "optimal" is), ``tolerance``,
    ``initial_...`` and ``final_...`` quantities, the statistics asked for (one of which,
    ``final_lambda_g``, takes the place of the quantity at the end), ``error`` and ``seconds``.

    Attributes
    ----------
    grid : Grid
    names : list of str
        The columns.
    axes : dict
        Name and length of each axis with more than one point; ``table.array(name)`` has this shape.
    """

    def __init__(self, grid: Grid, outcomes: Sequence[Outcome]) -> None:
        statuses, names, numbers, errors, seconds = zip(*outcomes, strict=True)
        columns: dict[str, Any] = _columns(names, numbers)
        columns |= {"status": list(statuses), "error": list(errors), "seconds": list(seconds)}
        self.grid = grid
        self.axes = grid.dims
        settings: dict[str, list[Any]] = {}
        for texts, of in ((grid.problems, grid.problem_of), (grid.settings, grid.setting_of)):
            tables, indices = _parsed(texts), of.tolist()
            for name in dict.fromkeys(chain.from_iterable(tables)):
                if not name.endswith("_digest"):
                    values = [table.get(name) for table in tables]
                    settings[name] = [values[k] for k in indices]
        middle = sorted(set(columns) - {*_FIRST, *_LAST})
        #: Arrays of numbers, and lists of whatever else there is.
        self._columns = settings | {name: columns[name] for name in (*_FIRST, *middle, *_LAST)}
        self.names = list(self._columns)

    def __len__(self) -> int:
        return len(self.grid)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._columns:
            raise ValueError(f"column must be one of {', '.join(self.names)}, received {shown(name)}")
        if name not in self._arrays:
            self._arrays[name] = _array(self._columns[name])
        return self._arrays[name]

    @cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        return {}

    def array(self, name: str) -> np.ndarray:
        """Return a column in the shape of the axes."""
        return self[name].reshape(tuple(self.axes.values()))

    @property
    def statuses(self) -> dict[str, int]:
        """How many runs ended how."""
        return dict(sorted(Counter(self._columns["status"]).items()))

    def problem(self, run: int) -> BlockQuadratic:
        """Return the problem of a run, built anew."""
        setting = build_setting(self.grid.settings[self.grid.setting_of[run]])
        return setting.noisy(build_problem(self.grid.problems[self.grid.problem_of[run]]))

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the runs as plain data, None where a run has no value."""
        for values in zip(*map(_plain, self._columns.values()), strict=True):
            yield dict(zip(self.names, values, strict=True))

    def to_csv(self, path: str | Path | None = None) -> str | None:
        """Write the table as CSV, or return it as text; lists and tables are written as JSON.

        Parameters
        ----------
        path : str or Path, optional

        Returns
        -------
        str or None
        """
        if path is None:
            text = io.StringIO(newline="")
            self._write_csv(text)
            return text.getvalue()
        with open(path, "w", newline="", encoding="utf-8") as file:
            self._write_csv(file)
        return None

    def _write_csv(self, file: Any) -> None:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(self.names)
        for row in self.rows():
            writer.writerow(map(_scalar, row.values()))

    def to_xarray(self) -> xarray.Dataset:
        """Return the table as a labelled array a column; needs the extra ``quadlab[xarray]``.

        The dimensions are the axes; names that move together are coordinates along one dimension.

        Returns
        -------
        xarray.Dataset
        """
        try:
            import xarray
        except ImportError:
            raise ImportError("to_xarray needs xarray: pip install 'quadlab[xarray]'") from None
        dims = tuple(self.axes)
        shape = tuple(self.axes.values())
        data: dict[str, Any] = {}
        coords: dict[str, Any] = {}
        own = {name for text in (*self.grid.problems[:1], *self.grid.settings) for name in json.loads(text)}
        if len(self.grid.parts) == 1:
            for factor in self.grid.parts[0]:
                for name in {name: None for point in factor.points for name in point}:
                    values = [point.get(name) for point in factor.points]
                    if name.endswith("_digest"):
                        continue
                    if factor.name not in dims:
                        coords[name] = _scalar(values[0])
                    elif name != factor.name or _is_index(values):
                        coords[name] = (factor.name, _array([_scalar(v) for v in values]))
        for name in self.names:
            if name not in coords and not (name in own and coords):
                column = self[name]
                if column.dtype == object:
                    column = _array(list(map(_scalar, column)))
                data[name] = (dims, column.reshape(shape))
        return xarray.Dataset(data, coords)

    def __repr__(self) -> str:
        told = ", ".join(f"{count} {status}" for status, count in self.statuses.items())
        axes = " x ".join(f"{name} {length}" for name, length in self.axes.items())
        return f"<Table: {len(self)} runs ({told}): {axes}>"

    def _repr_html_(self) -> str:
        from html import escape

        head = "".join(f"<th>{escape(name)}</th>" for name in self.names)
        body = ""
        for row, _ in zip(self.rows(), range(10), strict=False):
            cells = (
                f"{v:.4g}" if isinstance(v, float) else "" if v is None else str(v) for v in row.values()
            )
            body += "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
        return f"<p>{escape(repr(self)[1:-1])}</p><table><tr>{head}</tr>{body}</table>"


def _parsed(texts: Sequence[str]) -> list[dict[str, Any]]:
    """Parse JSON tables in one call: most of the time of json.loads is in its beginning."""
    return json.loads(f"[{','.join(texts)}]")


def _columns(names: Sequence[str], numbers: Sequence[bytes]) -> dict[str, Any]:
    """Return the numbers of runs by name, NaN where a run has none."""
    columns = {name: np.full(len(names), math.nan) for name in _FIRST[1:]}
    kinds = {text: k for k, text in enumerate(dict.fromkeys(names))}
    which = np.array([kinds[text] for text in names])
    for text, k in kinds.items():
        own = np.flatnonzero(which == k)
        data = b"".join([numbers[run] for run in own.tolist()])
        table = np.frombuffer(data, NUMBER).reshape(own.size, -1)
        for name, column in zip(text.split(",") if text else (), table.T, strict=True):
            columns.setdefault(name, np.full(len(names), math.nan))[own] = column
    counts = columns["iterations"]
    if np.isnan(counts).any():
        return columns | {"iterations": [None if n != n else int(n) for n in counts.tolist()]}
    return columns | {"iterations": counts.astype(np.int64)}


def _plain(column: Any) -> Iterator[Any]:
    """Yield the values of a column as plain data, None where a run has none."""
    if isinstance(column, np.ndarray):
        return (None if number != number else number for number in column.data)
    return iter(column)


def _array(values: Any) -> np.ndarray:
    if isinstance(values, np.ndarray):
        return values
    kinds = set(map(type, values))
    if kinds == {bool} or kinds == {int}:
        return np.array(values)
    if kinds <= {int, float, type(None)} and kinds != {type(None)}:
        return np.array([math.nan if value is None else value for value in values], dtype=np.float64)
    if kinds == {str}:
        return np.array(values)
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _scalar(value: Any) -> Any:
    return canonical(value) if isinstance(value, (list, dict)) else value


def _is_index(values: list[Any]) -> bool:
    return len({_scalar(value) for value in values}) == len(values)


__all__ = ["FAILED", "Table"]
