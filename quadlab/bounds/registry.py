r"""The register of bounds: what each states, for which methods, under which assumptions.

A bound is a function of a :class:`~quadlab.bounds.setting.Setting` that returns one number. The decorator
:func:`bound` states what the number means: which side of which quantity it bounds, for which methods and step
rules, for which stopping test, under which assumptions, from which statistics of the trajectory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from typing import Any, NamedTuple, TypeVar

from quadlab._arrays import shown
from quadlab.bounds.setting import RULES, TARGETS, Assumption, Setting
from quadlab.bounds.verdict import FORMS, KINDS, Form, Kind

ITERATIONS = "iterations"
#: Statistics that are accumulated from a given index on, and the argument of ``solve`` that gives it.
TAILS = {"tail_gap": "tail_gap_start", "tail_displacement": "tail_displacement_start"}

_FAMILY_NAMES = {
    "gd": "GD",
    "signsgd": "SignSGD",
    "adam": "Adam",
    "normalized_gd": "normalised GD",
    "steepest": "steepest descent",
    "adam_mini": "Adam-mini",
    "user": "a user's method",
}

F = TypeVar("F", bound=Callable[[Setting], float])


@dataclass(frozen=True, slots=True)
class Bound:
    """A registered bound, made by the decorator :func:`bound`.

    Call it with a Setting for the number that the formula gives.
    """

    name: str
    function: Callable[[Setting], float] = field(repr=False)
    families: tuple[str, ...] | None
    rules: tuple[str, ...] | None
    targets: tuple[str, ...]
    kind: Kind
    form: Form
    quantity: str
    needs: tuple[str, ...]
    assumes: tuple[Assumption, ...] = field(repr=False)
    formula: str
    source: str
    status: str
    tail_start: Callable[[Setting], float] | None = field(repr=False)
    measure: Callable[[Setting], float] | None = field(repr=False)
    built_in: bool
    expectation: bool = False
    #: the evaluation of a run of another family, made once
    foreign: Evaluation = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        reason = f"a bound for {one_of(_FAMILY_NAMES.get(f, f) for f in self.families or ('any method',))}"
        object.__setattr__(self, "foreign", Evaluation(self, False, (reason,), None, None, None, None, True))

    def __call__(self, setting: Setting) -> float:
        """Return the number that the formula gives."""
        return self.function(setting)

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (self.function.__doc__ or "").strip().partition("\n")[0]

    @property
    def statement(self) -> str:
        """The side that it bounds, in words: "upper", or "upper on an expectation"."""
        return f"{self.kind} on an expectation" if self.expectation else self.kind

    @property
    def target(self) -> str:
        """The stopping tests that it is stated for, in words."""
        return "any" if self.targets == TARGETS else one_of(self.targets)

    @property
    def statistics(self) -> tuple[str, ...]:
        """All statistics that a run must record: ``needs``, and the quantity if it is one."""
        if self.quantity == ITERATIONS or self.measure is not None or self.quantity in self.needs:
            return self.needs
        return (*self.needs, self.quantity)

    def to_dict(self) -> dict[str, Any]:
        """Return the bound's description, for JSON."""
        return {
            "name": self.name,
            "summary": self.summary,
            "kind": self.kind,
            "expectation": self.expectation,
            "form": self.form,
            "quantity": self.quantity,
            "families": None if self.families is None else list(self.families),
            "rules": None if self.rules is None else list(self.rules),
            "targets": list(self.targets),
            "needs": list(self.needs),
            "formula": self.formula,
            "source": self.source,
            "status": self.status,
        }


class Evaluation(NamedTuple):
    """What a bound says about a run.

    Attributes
    ----------
    bound : Bound
        The bound.
    applies : bool
        Whether its family, step rule, target and assumptions fit.
    reasons : tuple of str
        Every reason why it does not apply.
    value : float or None
        The bound: for the form "log" the count after rounding up (so that measured / value <= 1 exactly if it
        holds), else the formula's number.
    measured : float or None
        The count, or the statistic; None where there is none (a run that did not stop has no count).
    holds : bool or None
        The verdict; None is inconclusive, or not applicable.
    ratio : float or None
        measured / value.
    foreign : bool
        Whether it is a bound for other methods than the run's.
    """

    bound: Bound
    applies: bool
    reasons: tuple[str, ...]
    value: float | None
    measured: float | None
    holds: bool | None
    ratio: float | None
    foreign: bool = False

    @property
    def name(self) -> str:
        """The bound's name."""
        return self.bound.name

    def to_dict(self) -> dict[str, Any]:
        """Return the evaluation for JSON; an infinite number becomes None."""
        return {
            "name": self.bound.name,
            "kind": self.bound.kind,
            "applies": self.applies,
            "reasons": list(self.reasons),
            "value": finite(self.value),
            "holds": self.holds,
            "ratio": finite(self.ratio),
        }


class BoundTable(tuple[Bound, ...]):
    """The registered bounds, in order; indexed by position or by name, shown as a table."""

    __slots__ = ()

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return super().__getitem__(key)
        for entry in self:
            if entry.name == key:
                return entry
        raise KeyError(f"no bound is named {key!r}; the names are {', '.join(self.names)}")

    def __contains__(self, key: object) -> bool:
        return key in self.names if isinstance(key, str) else super().__contains__(key)

    @property
    def of_runs(self) -> BoundTable:
        """Those that judge a single run; the others are on expectations."""
        return BoundTable(entry for entry in self if not entry.expectation)

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in order."""
        return tuple(entry.name for entry in self)

    def __str__(self) -> str:
        rows = [("name", "kind", "quantity", "target", "formula", "source")]
        rows += [(b.name, b.statement, b.quantity, b.target, b.formula, b.source) for b in self]
        return aligned(rows)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = ("name", "kind", "quantity", "target", "formula", "source", "statement")
        rows = [(b.name, b.statement, b.quantity, b.target, b.formula, b.source, b.summary) for b in self]
        return html_table(head, rows)


_REGISTRY: dict[str, Bound] = {}


def bounds() -> BoundTable:
    """Return the registered bounds.

    Returns
    -------
    BoundTable
        A tuple of :class:`Bound`, also indexed by name.

    Examples
    --------
    >>> bounds()["signsgd.parameter_weighted"].formula
    '2 Lambda_P Delta / (P eps^2)'
    """
    return BoundTable(_REGISTRY.values())


def bound(
    name: str,
    *,
    family: str | Iterable[str] | None = None,
    rules: str | Iterable[str] | None = None,
    target: str | Iterable[str] = TARGETS,
    kind: Kind = "upper",
    form: Form = "strict",
    quantity: str = ITERATIONS,
    needs: str | Iterable[str] = (),
    assumes: Iterable[Assumption | tuple[Callable[[Setting], bool], str] | Callable[[Setting], bool]] = (),
    formula: str = "",
    source: str = "",
    status: str = "derived",
    tail_start: Callable[[Setting], float] | None = None,
    measure: Callable[[Setting], float] | None = None,
    expectation: bool = False,
) -> Callable[[F], F]:
    r"""Register a function of a :class:`Setting` as a bound.

    The function itself is returned unchanged. Registering a name again replaces the bound of that name (so a
    notebook cell can be run twice), except that built-in names are refused.

    Parameters
    ----------
    name : str
        ``method.theorem``.
    family : str or sequence of str, optional
        Families of methods that it is for: "gd", "signsgd", "adam", "normalized_gd", "steepest",
        "adam_mini", "user". None: all.
    rules : str or sequence of str, optional
        Step rules: "constant", "schedule", "lemma", "m_star", "line_search". None: all.
    target : str or sequence of str
        The stopping tests ("l1", "l2", "linf", "gap") that it is stated for. A run with one of them uses it
        directly (``Setting.target`` says which); with another test the bound is converted to the first of
        them, unless ``kind`` is "exact". All four (the default) if the test does not matter.
    kind : {"upper", "lower", "exact"}
        Which side of the quantity the number bounds.
    form : {"strict", "log", "equality"}
        What the proof says, which selects the rounding rule of :mod:`quadlab.bounds.verdict`.
    quantity : str
        "iterations", or the trajectory statistic that is bounded.
    needs : str or sequence of str
        Statistics of the trajectory that the formula or the assumptions read.
    assumes : sequence
        Assumptions: :class:`Assumption`, pairs (predicate, message), or predicates whose docstring is the
        message.
    formula, source, status : str
        The formula in plain text, the paper's key, and where the proof stands.
    tail_start : callable, optional
        For a statement on "tail_gap" or "tail_displacement": Setting -> first index that it covers.
    measure : callable, optional
        Setting -> the measured quantity, for a statement about a constant of the problem.
    expectation : bool
        Whether the statement is on the mean over gradient noise: such a bound is for problems with noise,
        judges no single run, and is tested by :func:`quadlab.expectation`. All others are for exact
        gradients.

    Returns
    -------
    callable
        The decorator.

    Raises
    ------
    ValueError
        For an unknown kind, form, rule or target, or the name of a built-in bound.

    Examples
    --------
    >>> with temporary_bounds():
    ...     @bound("mine.triple", family="gd", rules="lemma", target="l2", needs="sup_lambda_g")
    ...     def triple(s):
    ...         return 3 * s.stat("sup_lambda_g") * s.delta / s.tolerance**2
    """
    targets = _names(target)
    _check(kind in KINDS, f"kind must be one of {', '.join(KINDS)}, received {kind!r}")
    _check(form in FORMS, f"form must be one of {', '.join(FORMS)}, received {form!r}")
    _check(
        bool(targets) and set(targets) <= set(TARGETS),
        f"target must be among {', '.join(TARGETS)}: {target!r}",
    )
    chosen = None if rules is None else _names(rules)
    _check(chosen is None or set(chosen) <= set(RULES), f"rules must be among {', '.join(RULES)}: {rules!r}")
    _check(isinstance(name, str) and bool(name), f"name must be a string, received {name!r}")
    _check(
        tail_start is None or quantity in TAILS,
        f"tail_start goes with a quantity among {', '.join(TAILS)}, received {quantity!r}",
    )

    def register(function: F) -> F:
        built_in = (function.__module__ or "").startswith("quadlab.bounds.")
        present = _REGISTRY.get(name)
        if present is not None and present.built_in and not _same_function(present.function, function):
            raise ValueError(f"bound {name!r} is built in: choose another name")
        _REGISTRY[name] = Bound(
            name=name,
            function=function,
            families=None if family is None else _names(family),
            rules=chosen,
            targets=targets,
            kind=kind,
            form=form,
            quantity=quantity,
            needs=_names(needs),
            assumes=tuple(_assumption(item) for item in assumes),
            formula=formula,
            source=source,
            status=status,
            tail_start=tail_start,
            measure=measure,
            built_in=built_in,
            expectation=expectation,
        )
        return function

    return register


def unregister(name: str) -> None:
    """Remove a user's bound.

    Parameters
    ----------
    name : str
        Its name.

    Raises
    ------
    ValueError
        If no bound has that name, or if it is built in.
    """
    if name not in _REGISTRY:
        raise ValueError(f"no bound is named {name!r}")
    if _REGISTRY[name].built_in:
        raise ValueError(f"bound {name!r} is built in: it stays")
    del _REGISTRY[name]


@contextmanager
def temporary_bounds() -> Iterator[None]:
    """Restore the register on leaving: what is registered or removed inside does not last."""
    saved = dict(_REGISTRY)
    try:
        yield
    finally:
        _REGISTRY.clear()
        _REGISTRY.update(saved)


def select(chosen: Iterable[str | Bound] | str | Bound | None = None) -> tuple[Bound, ...]:
    """Return bounds by name or as they are; all registered ones for None.

    Raises
    ------
    ValueError
        For a name that no bound has.
    """
    if chosen is None:
        return tuple(_REGISTRY.values())
    if isinstance(chosen, (str, Bound)):
        chosen = (chosen,)
    if not isinstance(chosen, Iterable):
        raise ValueError(f"bounds must be names of bounds, received {shown(chosen)}")
    found = []
    for item in chosen:
        entry = item if isinstance(item, Bound) else _REGISTRY.get(item)
        if entry is None:
            raise ValueError(f"no bound is named {item!r}; the names are {', '.join(_REGISTRY)}")
        found.append(entry)
    return tuple(found)


def _assumption(item: Any) -> Assumption:
    if isinstance(item, Assumption):
        return item
    if isinstance(item, tuple):
        return Assumption(*item)
    if not callable(item):
        raise ValueError(f"an assumption is a predicate of a Setting, received {item!r}")
    return Assumption(item, (item.__doc__ or item.__name__).strip().partition("\n")[0])


def _names(names: str | Iterable[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _same_function(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    # importlib.reload registers the package's own functions again
    return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


# Presentation ---------------------------------------------------------------------------------------------


def finite(value: float | None) -> float | None:
    """Return a number for JSON: None for None, NaN and infinities."""
    return value if value is not None and math.isfinite(value) else None


def aligned(rows: Iterable[Iterable[str]], *, right: Iterable[int] = (), indent: str = "") -> str:
    """Return rows of strings as aligned text; the columns in ``right`` are set flush right."""
    table = [tuple(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    flush = set(right)
    return "\n".join(
        (
            indent
            + "  ".join(
                cell.rjust(width) if column in flush else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
        ).rstrip()
        for row in table
    )


def html_table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return an HTML table of escaped strings."""
    first = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{first}</tr></thead><tbody>{body}</tbody></table>"


def one_of(names: Iterable[str]) -> str:
    """Return names as "a, b or c"."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last
