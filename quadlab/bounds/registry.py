r"""The register of bounds: what a bound states, where it applies, and what it says about a run.

A bound is a function of a :class:`Setting` (a problem, a method with its step rule, a stopping test) that
returns one number. The decorator :func:`bound` states what the number means: which side of which quantity it
bounds, for which methods and step rules, for which stopping test, under which assumptions, from which
statistics of the trajectory.

**Targets.** A bound is proven for one stopping test, its target. If that test, with some tolerance tau',
implies the user's test with tolerance tau, then the user's test holds no later, and N(tau') bounds its count
as well. The tolerance handed to the bound is the largest tau' that the inequalities below certify (L, M*,
mu_+, mu_inf, as in :mod:`quadlab.curvature`; M* by its upper value):

========== ================== =================== ==================== =====================
user's     target l2          target l1           target linf          target gap
========== ================== =================== ==================== =====================
l2: tau    tau                tau                 tau / sqrt(P)        tau^2 / (2 L)
l1: tau    tau / sqrt(P)      tau                 tau / P              tau^2 / (2 M*)
linf: tau  tau                tau                 tau                  tau^2 / (2 max H_ii)
gap: tau   sqrt(2 mu_+ tau)   sqrt(2 mu_inf tau)  as l2 / sqrt(P),     tau
                                                  or l1 / P if larger
========== ================== =================== ==================== =====================

by ||g||_inf <= ||g||_2 <= ||g||_1 <= sqrt(P) ||g||_2 <= P ||g||_inf; 2 mu_+ f <= ||g||_2^2 <= 2 L f;
2 mu_inf f <= ||g||_1^2 <= 2 M* f; g_i^2 <= 2 H_ii f (f measured from f*). Conversion happens here and nowhere
else.

Rounding and verdicts are :mod:`quadlab.bounds.verdict`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any, NamedTuple, TypeVar

import numpy as np

from quadlab.bounds import verdict
from quadlab.bounds.verdict import FORMS, KINDS, Form, Kind
from quadlab.curvature import Curvature, curvature
from quadlab.problem import Block, BlockQuadratic, DenseBlock, DiagonalBlock
from quadlab.run import Run, Status
from quadlab.steps import resolve

TARGETS = ("l1", "l2", "linf", "gap")
RULES = ("constant", "schedule", "lemma", "m_star", "line_search")
ITERATIONS = "iterations"

#: The stopping test that measures each quantity of a run.
TEST_OF = {"grad_l1": "l1", "grad_l2": "l2", "grad_linf": "linf", "gap": "gap"}

_FAMILY_NAMES = {
    "gd": "GD",
    "signsgd": "SignSGD",
    "adam": "Adam",
    "normalized_gd": "normalised GD",
    "user": "a user's method",
}
_RULE_NAMES = {
    "constant": "a constant step",
    "schedule": "a schedule",
    "lemma": "learning_rate='lemma'",
    "m_star": "learning_rate='m_star'",
    "line_search": "learning_rate='line_search'",
}
_RULE_ALIASES = {"lambda_g": "lemma", "lambda_p": "lemma", "optimal": "constant"}
#: Statistics that are accumulated from a given index on, and the argument of ``solve`` that gives it.
TAILS = {"tail_gap": "tail_gap_start", "tail_displacement": "tail_displacement_start"}
#: Statistics that are ratios of successive gaps: their resolution is that of the gap.
_GAP_RATIOS = ("min_gap_ratio", "max_gap_ratio")

F = TypeVar("F", bound=Callable[["Setting"], float])


class MissingStatisticError(KeyError):
    """A statistic of the trajectory that was not recorded."""


# What a bound sees ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Setting:
    r"""What a bound's formula, and its assumptions, see.

    Attributes
    ----------
    problem, method
        As given.
    families : tuple of str
        The method's family; Adam with beta1 = beta2 = epsilon = 0 is SignSGD as well.
    rule : str
        "constant", "schedule", "lemma", "m_star" or "line_search".
    learning_rate : float or None
        The constant step eta; None for the other rules.
    curvature : Curvature
        The constants of H.
    size : int
        P.
    start : mapping
        The quantities at w_0: "gap", "grad_l1", "grad_l2", "grad_linf".
    delta : float
        Delta = f(w_0) - f*.
    test : str
        The user's stopping test: "l1", "l2", "linf" or "gap".
    target : str
        The stopping test that the bound is stated for.
    tolerance : float
        The tolerance of the target: P eps (l1), sqrt(P) eps (l2), eps (linf), delta (gap).
    statistics : mapping
        Statistics of the trajectory by name; read them with :meth:`stat`.
    run : Run or None
        The run; None before it is made.
    """

    problem: BlockQuadratic
    method: Any
    families: tuple[str, ...]
    rule: str
    learning_rate: float | None
    curvature: Curvature
    size: int
    start: Mapping[str, float]
    delta: float
    test: str
    target: str
    tolerance: float
    statistics: Mapping[str, float | None]
    run: Run | None = None

    @classmethod
    def of(
        cls,
        problem: BlockQuadratic,
        method: Any,
        stop: Any,
        statistics: Mapping[str, float | None] | None = None,
    ) -> Setting:
        """Return the setting before any run, with the user's stopping test as target.

        Parameters
        ----------
        problem : BlockQuadratic
            The problem.
        method : GD, SignSGD, Adam, ...
            The method.
        stop : GradientNorm or Gap
            The stopping test.
        statistics : mapping, optional
            Statistics of a trajectory, for a bound that needs them.

        Returns
        -------
        Setting
        """
        start = start_quantities(problem)
        test = TEST_OF[stop.quantity]
        rule = step_rule(method)
        rate = constant_learning_rate(problem, method, stop) if rule == "constant" else None
        tolerance = float(stop.tolerance(problem.size, start[stop.quantity]))
        return cls(
            problem=problem,
            method=method,
            families=families_of(method),
            rule=rule,
            learning_rate=rate,
            curvature=curvature(problem),
            size=problem.size,
            start=start,
            delta=start["gap"],
            test=test,
            target=test,
            tolerance=tolerance,
            statistics=statistics or {},
        )

    @classmethod
    def of_run(cls, run: Run) -> Setting:
        """Return the setting of a run, with the run's own stopping test as target."""
        rule, test = step_rule(run.method), TEST_OF[run.stop.quantity]
        start = start_quantities(run.problem)
        return cls(
            problem=run.problem,
            method=run.method,
            families=families_of(run.method),
            rule=rule,
            learning_rate=run.learning_rate if rule == "constant" else None,
            curvature=curvature(run.problem),
            size=run.problem.size,
            start=start,
            delta=start["gap"],
            test=test,
            target=test,
            tolerance=run.tolerance,
            statistics=run.statistics,
            run=run,
        )

    @property
    def eps(self) -> float:
        """The target's tolerance per parameter: eps of the norms, delta of the gap."""
        scale = {"l1": self.size, "l2": math.sqrt(self.size)}.get(self.target, 1.0)
        return self.tolerance / scale

    @property
    def step(self) -> float:
        """The constant learning rate eta; ValueError if the step is not constant."""
        if self.learning_rate is None:
            raise ValueError(f"learning_rate is {_RULE_NAMES[self.rule]}, not a constant")
        return self.learning_rate

    def stat(self, name: str) -> float:
        """Return a statistic of the trajectory; `MissingStatisticError` if it was not recorded."""
        value = self.statistics.get(name)
        if value is None or math.isnan(value):
            raise MissingStatisticError(name)
        return value

    def at(self, target: str) -> Setting:
        """Return this setting with the tolerance that the target needs to certify the user's test."""
        if target == self.target:
            return self
        tolerance = convert(self.test, self.tolerance, target, self.size, self.curvature)
        return replace(self, target=target, tolerance=tolerance)


def convert(test: str, tolerance: float, target: str, size: int, constants: Curvature) -> float:
    """Return the largest known tolerance of ``target`` that certifies ``test`` at ``tolerance``.

    Parameters
    ----------
    test, target : {"l1", "l2", "linf", "gap"}
        The user's test, and the test that a bound is proven for.
    tolerance : float
        What the tested quantity is compared with, for instance P eps for "l1".
    size : int
        P.
    constants : Curvature
        Of the Hessian; read only where the gap is on one side.

    Returns
    -------
    float
        inf where the test holds everywhere (H = 0).

    Examples
    --------
    >>> convert("l1", 4.0, "l2", 4, None), convert("l2", 4.0, "l1", 4, None)
    (2.0, 4.0)
    """
    if test == target:
        return tolerance
    if target == "gap":
        if test == "l2":
            top = constants.largest
        elif test == "l1":
            top = constants.m_star_upper
        else:
            top = constants.largest_diagonal
        return tolerance / (2.0 * top) * tolerance if top > 0.0 else math.inf
    if test == "gap":
        by_l2 = math.sqrt(2.0 * constants.smallest_positive * tolerance)
        if target == "l2":
            return by_l2
        by_l1 = math.sqrt(2.0 * constants.mu_inf * tolerance)
        return by_l1 if target == "l1" else max(by_l2 / math.sqrt(size), by_l1 / size)
    if test == "l1" and target == "l2":
        return tolerance / math.sqrt(size)
    if target == "linf":
        return tolerance / (size if test == "l1" else math.sqrt(size))
    return tolerance


def start_quantities(problem: BlockQuadratic) -> Mapping[str, float]:
    """Return "gap", "grad_l1", "grad_l2" and "grad_linf" at w_0; kept with the problem."""
    known = problem.cache.get("start_quantities")
    if known is None:
        gradient = problem.gradient(problem.start)
        size = np.abs(gradient)
        known = problem.cache["start_quantities"] = {
            "gap": 0.5 * float(problem.displacement @ gradient),
            "grad_l1": float(size.sum()),
            "grad_l2": float(np.sqrt(size @ size)),
            "grad_linf": float(size.max()),
        }
    return known


def step_rule(method: Any) -> str:
    """Return a method's step rule; "optimal" is constant, "lambda_g" and "lambda_p" are the lemma's."""
    rate = method.learning_rate
    if isinstance(rate, str):
        return _RULE_ALIASES.get(rate, rate)
    return "constant" if isinstance(rate, (int, float)) else "schedule"


def families_of(method: Any) -> tuple[str, ...]:
    """Return the families whose bounds hold for a method.

    Adam with beta1 = beta2 = epsilon = 0 divides g by sqrt(g^2), which is |g| to the bit: it *is* SignSGD.
    """
    family: str = method.family
    if family == "adam" and not (method.beta1 or method.beta2 or method.epsilon or method.weight_decay):
        return ("adam", "signsgd")
    return (family,)


# Assumptions ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Assumption:
    """A condition on the setting, and what to say where it fails.

    Parameters
    ----------
    test : callable
        Setting -> bool.
    message : str or callable
        The condition in words, or Setting -> str.
    """

    test: Callable[[Setting], bool]
    message: str | Callable[[Setting], str]

    def failure(self, setting: Setting) -> str:
        """Return the message for a setting that fails the test."""
        return self.message if isinstance(self.message, str) else self.message(setting)


def assume(message: str | Callable[[Setting], str]) -> Callable[[Callable[[Setting], bool]], Assumption]:
    """Turn a predicate into an :class:`Assumption`.

    Parameters
    ----------
    message : str or callable
        What to say where the predicate fails.

    Examples
    --------
    >>> @assume("P must be 1")
    ... def scalar(s):
    ...     return s.size == 1
    """
    return lambda test: Assumption(test, message)


no_momentum = Assumption(
    lambda s: not getattr(s.method, "momentum", 0.0),
    lambda s: f"momentum must be 0, it is {s.method.momentum:g}",
)
no_weight_decay = Assumption(
    lambda s: not getattr(s.method, "weight_decay", 0.0),
    lambda s: f"weight_decay must be 0, it is {s.method.weight_decay:g}",
)


def is_diagonal(problem: BlockQuadratic) -> bool:
    """Return whether H has no entry off its diagonal, as stored."""
    known = problem.cache.get("is_diagonal")
    if known is None:
        known = problem.cache["is_diagonal"] = all(map(_is_diagonal, problem.blocks))
    return known


def _is_diagonal(block: Block) -> bool:
    if isinstance(block, DenseBlock):
        return not np.any(block.matrix[~np.eye(block.size, dtype=bool)])
    return isinstance(block, DiagonalBlock) or block.size == 1


# Bounds ---------------------------------------------------------------------------------------------------


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
    #: the evaluation of a run of another family, made once
    foreign: Evaluation = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        reason = f"a bound for {_listed(_FAMILY_NAMES.get(f, f) for f in self.families or ())}"
        object.__setattr__(self, "foreign", Evaluation(self, False, (reason,), None, None, None, None, True))

    def __call__(self, setting: Setting) -> float:
        """Return the number that the formula gives."""
        return self.function(setting)

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (self.function.__doc__ or "").strip().partition("\n")[0]

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
    def names(self) -> tuple[str, ...]:
        """The names, in order."""
        return tuple(entry.name for entry in self)

    def __str__(self) -> str:
        rows = [("name", "kind", "quantity", "target", "formula", "source")]
        rows += [(b.name, b.kind, b.quantity, " ".join(b.targets), b.formula, b.source) for b in self]
        return aligned(rows)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = ("name", "kind", "quantity", "target", "formula", "source", "statement")
        rows = [
            (b.name, b.kind, b.quantity, " ".join(b.targets), b.formula, b.source, b.summary) for b in self
        ]
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
) -> Callable[[F], F]:
    r"""Register a function of a :class:`Setting` as a bound.

    The function itself is returned unchanged. Registering a name again replaces the bound of that name (so a
    notebook cell can be run twice), except that built-in names are refused.

    Parameters
    ----------
    name : str
        ``method.theorem``.
    family : str or sequence of str, optional
        Families of methods that it is for: "gd", "signsgd", "adam", "normalized_gd", "user". None: all.
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
        built_in = function.__module__.startswith("quadlab.bounds.")
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
    found = []
    for item in chosen:
        entry = item if isinstance(item, Bound) else _REGISTRY.get(item)
        if entry is None:
            raise ValueError(f"no bound is named {item!r}; the names are {', '.join(_REGISTRY)}")
        found.append(entry)
    return tuple(found)


# Before a run ---------------------------------------------------------------------------------------------


def requirements(
    problem: BlockQuadratic, method: Any, stop: Any, chosen: Iterable[str | Bound] | None = None
) -> dict[str, Any]:
    """Return the keyword arguments of ``solve`` that record what the bounds need.

    Parameters
    ----------
    problem, method, stop
        As for ``solve``.
    chosen : sequence, optional
        Bounds by name or as they are; all registered ones by default.

    Returns
    -------
    dict
        "statistics", "tail_gap_start", "tail_displacement_start" (0 where no bound asks).
    """
    entries = select(chosen)
    families, rule = families_of(method), step_rule(method)
    entries = tuple(
        entry
        for entry in entries
        if (entry.families is None or any(family in entry.families for family in families))
        and (entry.rules is None or rule in entry.rules)
        and (entry.statistics or entry.tail_start)
    )
    statistics: dict[str, None] = {}
    begins = dict.fromkeys(TAILS, 0.0)
    if entries:
        base = Setting.of(problem, method, stop)
        for entry in entries:
            setting = _targeted(entry, base)
            if setting is None or _failures(entry, setting):
                continue
            if entry.tail_start is not None:
                # a sup over a shorter tail is implied by the statement, so the latest start serves all
                begin = entry.tail_start(setting)
                if not math.isfinite(begin):
                    continue
                begins[entry.quantity] = max(begin, begins[entry.quantity])
            statistics.update(dict.fromkeys(entry.statistics))
    return {"statistics": tuple(statistics)} | {TAILS[quantity]: begin for quantity, begin in begins.items()}


def constant_learning_rate(problem: BlockQuadratic, method: Any, stop: Any) -> float:
    """Return the constant step of a method, with "optimal" resolved."""
    return resolve(method.learning_rate, method.families, problem, stop).rate


# After a run ----------------------------------------------------------------------------------------------


def evaluate(run: Run, chosen: Iterable[str | Bound] | None = None) -> tuple[Evaluation, ...]:
    """Judge a run by the bounds.

    Parameters
    ----------
    run : Run
        A run with the statistics that the bounds need (see :func:`requirements`).
    chosen : sequence, optional
        Bounds by name or as they are; all registered ones by default.

    Returns
    -------
    tuple of Evaluation
        One a bound, in order.
    """
    base = Setting.of_run(run)
    settings = {base.target: base}
    families, rule = base.families, base.rule
    result = []
    for entry in select(chosen):
        if entry.families is not None and not any(family in entry.families for family in families):
            result.append(entry.foreign)
        elif entry.rules is not None and rule not in entry.rules:
            result.append(_not_applying(entry, (_wrong_rule(entry, base),)))
        else:
            target = _target(entry, base.test)
            if target is None:
                result.append(_not_applying(entry, (_wrong_target(entry, base.test),)))
                continue
            setting = settings.get(target)
            if setting is None:
                setting = settings[target] = base.at(target)
            result.append(_evaluate(entry, setting, run))
    return tuple(result)


def _evaluate(entry: Bound, setting: Setting, run: Run) -> Evaluation:
    reasons = _failures(entry, setting)
    # with no update made there is no trajectory, and a bound over it has nothing to add up
    if not reasons and run.iterations > 0:
        statistics = run.statistics
        reasons = [f"{name} was not recorded" for name in entry.needs if statistics.get(name) is None]
    if reasons:
        return _not_applying(entry, tuple(reasons))
    try:
        number = float(entry.function(setting))
    except MissingStatisticError as missing:
        if run.iterations > 0:
            return _not_applying(entry, (f"{missing.args[0]} is not a number",))
        number = 0.0
    except (ZeroDivisionError, OverflowError):
        number = math.inf
    if math.isnan(number):
        return _not_applying(entry, ("the formula gives no number",))
    if entry.quantity == ITERATIONS:
        return _count_evaluation(entry, setting, run, number)
    return _statistic_evaluation(entry, setting, run, number)


def _count_evaluation(entry: Bound, setting: Setting, run: Run, number: float) -> Evaluation:
    converged, iterations = run.converged, run.iterations
    holds = verdict.judge_count(
        entry.kind,
        entry.form,
        number,
        iterations=iterations,
        converged=converged,
        diverged=run.status is Status.DIVERGED,
        a_posteriori=bool(entry.needs),
        near=lambda: _near(entry, setting, run),
        resolved=lambda: _resolved(setting, run),
    )
    if entry.form == "log" and entry.kind == "upper":
        number = verdict.allowed_iterations("log", number, holds_at_start=converged and iterations == 0)
    measured = float(iterations) if converged else None
    return Evaluation(entry, True, (), number, measured, holds, _ratio(measured, number))


def _statistic_evaluation(entry: Bound, setting: Setting, run: Run, number: float) -> Evaluation:
    measured = run.statistics.get(entry.quantity) if entry.measure is None else float(entry.measure(setting))
    if measured is not None and math.isnan(measured):
        measured = None
    if entry.tail_start is not None:
        # the statement covers the recorded tail only if that begins late enough, and if the run reached it
        recorded = getattr(run, TAILS[entry.quantity])
        if recorded < entry.tail_start(setting) or run.iterations < recorded:
            measured = None
    holds = verdict.judge_statistic(entry.kind, number, measured)
    if holds is False and measured is not None:  # known to fewer digits than the rule asks for?
        error = _statistic_error(entry, setting, run, max(abs(number), abs(measured)))
        holds = verdict.judge_statistic(entry.kind, number, measured, error=error)
    return Evaluation(entry, True, (), number, measured, holds, _ratio(measured, number))


def _near(entry: Bound, setting: Setting, run: Run) -> tuple[float, float]:
    """Return the smallest and the largest exact count within a near tie."""
    error = 0.0 if is_diagonal(run.problem) else _rounding_error(setting, _displacement(run, end=True))
    width = verdict.near_tie(error / setting.tolerance)
    low = entry.function(replace(setting, tolerance=setting.tolerance * (1.0 + width)))
    smaller = setting.tolerance * (1.0 - width)
    return low, entry.function(replace(setting, tolerance=smaller)) if smaller > 0.0 else math.inf


def _resolved(setting: Setting, run: Run) -> bool:
    """Return whether the run's tolerance lies above the rounding of the tested quantity."""
    largest = max(_displacement(run, end=False), _displacement(run, end=True))
    own = setting if setting.target == setting.test else replace(setting, target=setting.test)
    return not run.tolerance <= _rounding_error(own, largest)


def _statistic_error(entry: Bound, setting: Setting, run: Run, scale: float) -> float:
    """Return to what the measured statistic, of the given size, is known."""
    if entry.quantity == "frozen_condition_number":
        return verdict.constant_error(setting.size, scale)
    if entry.quantity not in _GAP_RATIOS or not math.isfinite(scale):
        return 0.0
    if is_diagonal(run.problem):
        return verdict.ratio_error(setting.size, 1.0, 0.0, scale)
    last = float(run.problem.value(run.point))
    error = _rounding_error(replace(setting, target="gap"), _displacement(run, end=True))
    relative = error / last if last > 0.0 else math.inf
    return verdict.ratio_error(setting.size, setting.curvature.condition_number, relative, scale)


def _rounding_error(setting: Setting, displacement: float) -> float:
    return verdict.rounding_error(setting.target, setting.size, setting.curvature.largest, displacement)


def _displacement(run: Run, *, end: bool) -> float:
    x = run.point - run.problem.minimizer if end else run.problem.displacement
    return float(np.sqrt(x @ x))


def _ratio(measured: float | None, number: float) -> float | None:
    if measured is None or number == 0.0 or not math.isfinite(number) or not math.isfinite(measured):
        return None
    return measured / number


def _not_applying(entry: Bound, reasons: tuple[str, ...]) -> Evaluation:
    return Evaluation(entry, False, reasons, None, None, None, None)


def _failures(entry: Bound, setting: Setting) -> list[str]:
    """Return the messages of all assumptions that fail; one that needs a missing statistic passes."""
    failures = []
    for item in entry.assumes:
        try:
            if not item.test(setting):
                failures.append(item.failure(setting))
        except MissingStatisticError:
            continue
    return failures


def _target(entry: Bound, test: str) -> str | None:
    if test in entry.targets:
        return test
    return None if entry.kind == "exact" else entry.targets[0]


def _targeted(entry: Bound, base: Setting) -> Setting | None:
    target = _target(entry, base.test)
    return None if target is None else base.at(target)


def _wrong_rule(entry: Bound, setting: Setting) -> str:
    wanted = " or ".join(_RULE_NAMES[rule] for rule in entry.rules or ())
    return f"needs {wanted}, the run has {_RULE_NAMES.get(setting.rule, setting.rule)}"


def _wrong_target(entry: Bound, test: str) -> str:
    return f"exact for the stopping test {' or '.join(entry.targets)} only, the run has {test}"


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


def _listed(names: Iterable[str]) -> str:
    items = list(names)
    return " and ".join(items) if len(items) < 3 else ", ".join(items[:-1]) + " and " + items[-1]
