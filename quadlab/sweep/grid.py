"""The runs of a sweep: products, zips and lists of named axes, as configurations in plain data.

A grid is a table, in Python as in TOML, with the sections

- ``fixed``: name = value, the same for all runs;
- ``product``: name = list of values, all combinations (or a range: ``{range = [start, stop, step]}``,
  ``{linear = [first, last, count]}``, ``{log = [first, last, count]}``);
- ``zip``: a table, or several, of lists of equal length that move together;
- ``list``: a list of tables, written out;

all multiplied with one another. A table without sections is a product; a list of grids (TOML: ``[[grid]]``)
is their union, in which a run that occurs twice counts once. The names are those of
`quadlab.sweep.configuration`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import tomllib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from quadlab import __version__
from quadlab._arrays import shown
from quadlab.sweep.configuration import (
    RUN_NAMES,
    build_problem,
    build_setting,
    check_names,
    expand,
    without_seed,
)

#: Raised by one when a configuration would give other numbers than before.
SCHEMA = 1
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)
SECTIONS = ("fixed", "product", "zip", "list")


@dataclass(frozen=True)
class Factor:
    """One axis: a name and, for each of its points, the names and values it sets."""

    name: str
    points: list[dict[str, Any]]


@dataclass(frozen=True)
class Grid:
    """A union of products of factors; made by `read_grid`.

    Attributes
    ----------
    parts : tuple of tuple of Factor
    problems, settings : list of str
        The distinct halves of the configurations, canonical JSON.
    problem_of, setting_of : ndarray of int
        Per run, which.
    keys : list of str
        Per run, the hashes of the two halves of its configuration, each with the versions that matter, after
        a checksum of its problem without the seed: in the order of keys, problems of one structure are in a
        row.
    """

    parts: tuple[tuple[Factor, ...], ...]
    problems: list[str]
    settings: list[str]
    problem_of: np.ndarray
    setting_of: np.ndarray
    keys: list[str]

    def __len__(self) -> int:
        return len(self.keys)

    def __repr__(self) -> str:
        dims = " x ".join(f"{name} {n}" for name, n in self.dims.items())
        return f"<Grid: {len(self)} runs on {len(self.problems)} problems: {dims}>"

    @property
    def dims(self) -> dict[str, int]:
        """Names and lengths of the axes with more than one point; of a union, all runs in a row."""
        if len(self.parts) > 1:
            return {"run": len(self)}
        return {f.name: len(f.points) for f in self.parts[0] if len(f.points) > 1} or {"run": len(self)}

    def configuration(self, run: int) -> dict[str, Any]:
        """Return the names and values of a run."""
        problem, setting = self.problems[self.problem_of[run]], self.settings[self.setting_of[run]]
        return {**json.loads(problem), **json.loads(setting)}

    def config_json(self, run: int) -> str:
        """Return the configuration of a run as it is hashed and stored."""
        return joined(self.problems[self.problem_of[run]], self.settings[self.setting_of[run]])

    def check(self) -> None:
        """Raise ValueError if a method or stop is malformed, or the first problem, unless a user makes it."""
        for setting in self.settings:
            build_setting(setting)
        if "problem" not in json.loads(self.problems[0]):
            build_problem(self.problems[0])


def read_grid(spec: Any) -> Grid:
    """Return the grid of a table, of a list of tables, or of a TOML file.

    Parameters
    ----------
    spec : dict, list of dict, str, Path or Grid

    Returns
    -------
    Grid

    Raises
    ------
    ValueError
        On a malformed grid, naming the axis.

    Examples
    --------
    >>> read_grid({"case": ["het", "hom"], "method": ["gd:lambda_g"], "eps": 1e-3, "seed": range(5)})
    <Grid: 10 runs on 10 problems: case 2 x seed 5>
    """
    if isinstance(spec, Grid):
        return spec
    if isinstance(spec, (str, Path)):
        try:
            with open(spec, "rb") as file:
                spec = tomllib.load(file)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{spec} is not TOML: {error}") from None
        if set(spec) == {"grid"}:
            spec = spec["grid"]
    tables = list(spec) if isinstance(spec, (list, tuple)) else [spec]
    if not tables:
        raise ValueError("a grid needs at least one table, received none")
    parts = tuple(_part(table) for table in tables)
    problems, problem_of = _halves(parts, of_run=False)
    settings, setting_of = _halves(parts, of_run=True)
    _, first = np.unique(problem_of * len(settings) + setting_of, return_index=True)
    if len(parts) == 1 and len(first) != len(problem_of):
        raise ValueError("an axis has the same value twice")
    first.sort()
    problem_of, setting_of = problem_of[first], setting_of[first]
    first_halves = [_structure(problem) + _hash(problem) for problem in problems]
    second_halves = [_hash(setting) for setting in settings]
    pairs = zip(problem_of.tolist(), setting_of.tolist(), strict=True)
    keys = [first_halves[k] + second_halves[j] for k, j in pairs]
    return Grid(parts, problems, settings, problem_of, setting_of, keys)


def _part(table: Any) -> tuple[Factor, ...]:
    if not isinstance(table, Mapping):
        raise ValueError(f"a grid must be a table of named axes, received {shown(table)}")
    if not any(name in SECTIONS for name in table):
        table = {"product": table}
    unknown = [name for name in table if name not in SECTIONS]
    if unknown:
        raise ValueError(f"a section must be one of {', '.join(SECTIONS)}, received {unknown[0]!r}")
    for section in ("fixed", "product"):
        if not isinstance(table.get(section, {}), Mapping):
            raise ValueError(f"section {section} must be a table, received {shown(table[section])}")
    factors = [Factor("fixed", [_point(table.get("fixed", {}))])]
    for name, values in table.get("product", {}).items():
        factors.append(Factor(name, [expand(name, value) for value in _values(name, values)]))
    zips = table.get("zip", [])
    for tied in [zips] if isinstance(zips, Mapping) else zips:
        columns = {name: _values(name, values) for name, values in tied.items()}
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) != 1:
            told = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise ValueError(f"axes that are zipped must have equal length, received {told}")
        rows = zip(*columns.values(), strict=True)
        factors.append(
            Factor(next(iter(columns)), [_point(dict(zip(columns, row, strict=True))) for row in rows])
        )
    if "list" in table:
        factors.append(Factor("list", [_point(entry) for entry in table["list"]]))
    for factor in factors:
        if not factor.points:
            raise ValueError(f"axis {factor.name} is empty")
    seen: dict[str, str] = {}
    for factor in factors:
        for name in sorted({name for point in factor.points for name in point}):
            if name in seen:
                raise ValueError(f"{name} is set twice, by {seen[name]} and by {factor.name}")
            seen[name] = factor.name
    common = [set.intersection(*(set(point) for point in factor.points)) for factor in factors]
    for k, factor in enumerate(factors):  # every combination has the common names and those of one point
        rest = set().union(*(names for j, names in enumerate(common) if j != k))
        for names in {frozenset(point) for point in factor.points}:
            check_names(rest | names)
    return tuple(factors)


def _point(table: Any) -> dict[str, Any]:
    if not isinstance(table, Mapping):
        raise ValueError(f"a run must be a table of names and values, received {shown(table)}")
    merged: dict[str, Any] = {}
    for name, value in table.items():
        for key, item in expand(name, value).items():
            if key in merged:
                raise ValueError(f"{key} is set twice, received {shown(merged[key])} and {shown(item)}")
            merged[key] = item
    return merged


def _values(name: str, values: Any) -> list[Any]:
    """Return the values of an axis; one that is no list stands for itself."""
    if isinstance(values, Mapping) and len(values) == 1:
        ((form, arguments),) = values.items()
        if form in ("range", "linear", "log"):
            try:
                numbers = list(arguments) if isinstance(arguments, (list, tuple)) else [arguments]
                make = {"range": range, "linear": np.linspace, "log": np.geomspace}[form]
                return list(make(*numbers))  # type: ignore[operator]
            except (TypeError, ValueError) as error:
                raise ValueError(f"axis {name}: {form} {shown(arguments)}: {error}") from None
    if isinstance(values, (list, tuple, range, np.ndarray)):
        if name == "statistics" and all(isinstance(value, str) for value in values):
            return [list(values)]  # one list of names is one value
        return list(values)
    return [values]


def _halves(parts: tuple[tuple[Factor, ...], ...], of_run: bool) -> tuple[list[str], np.ndarray]:
    """Return the problems (or the settings) of all runs, each once, and which each run has.

    Last axis fastest. A half is the product of what the factors set of it, so that thousands of runs need no
    more than the arithmetic of their indices.
    """
    halves: dict[str, int] = {}
    which = []
    for part in parts:
        index, own = np.zeros(1, dtype=np.int64), []
        for factor in part:
            texts: dict[tuple[tuple[str, str], ...], int] = {}
            of = []
            for point in factor.points:
                text = [
                    (name, canonical({name: value})[1:-1])
                    for name, value in point.items()
                    if (name in RUN_NAMES) == of_run
                ]
                of.append(texts.setdefault(tuple(text), len(texts)))
            own.append(texts)
            index = (index[:, None] * len(texts) + of).ravel()
        codes = [
            halves.setdefault(
                "{" + ",".join(text for _, text in sorted(itertools.chain(*choice))) + "}", len(halves)
            )
            for choice in itertools.product(*own)
        ]
        which.append(np.array(codes)[index])
    return list(halves), np.concatenate(which)


def canonical(value: Any) -> str:
    """Return JSON with one spelling: sorted names, no spaces, ASCII."""
    return _ENCODER.encode(value)


@cache
def versions() -> str:
    """Return what the numbers of a run depend on beside its configuration, canonical JSON."""
    numerical = {name: metadata.version(name) for name in ("numpy", "scipy", "numba")}
    return canonical({"quadlab": __version__, "schema": SCHEMA, **numerical})


def joined(problem: str, setting: str) -> str:
    """Return a configuration as it is hashed and stored."""
    return f'{{"problem":{problem},"run":{setting}}}'


def _structure(problem: str) -> str:
    return f"{zlib.crc32(without_seed(problem).encode()):08x}"


def _hash(half: str) -> str:
    """Return the hash of a half of a configuration and of the versions that matter."""
    return hashlib.sha256((versions() + half).encode()).hexdigest()[:24]
