r"""Hypothesis strategies for problems, methods and stopping tests, and the property that a bound holds.

Everything is drawn in natural units: eigenvalues at most 1, starts of order 1, stopping tests relative to the
start. So learning rates of :math:`10^{-4}` to 2 meet what bounds assume of them often enough, on both sides
of 1/L. Draws shrink towards a single parameter, H = 1, an axis-aligned basis, short decimals, a learning
rate of 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import hypothesis
import numpy as np
from hypothesis import strategies as st

from quadlab._arrays import FloatArray
from quadlab.bases import Rotation
from quadlab.bounds.registry import Bound, select
from quadlab.bounds.setting import TARGETS
from quadlab.falsify import Instance, Maker, choices
from quadlab.methods import Method
from quadlab.problem import BlockQuadratic
from quadlab.stopping import Gap, GradientNorm, Stop, default_stop

_ORDERS = {"l1": 1.0, "l2": 2.0, "linf": math.inf}


def block_quadratics(
    *,
    max_blocks: int = 3,
    max_size: int = 4,
    condition_number: float = 1e4,
    singular: bool = True,
    rotated: bool = True,
) -> st.SearchStrategy[BlockQuadratic]:
    """Return a strategy for problems with eigenvalues in [1 / condition_number, 1] or 0.

    Parameters
    ----------
    max_blocks, max_size : int >= 1
        Blocks, and parameters of a block, at most.
    condition_number : float >= 1
        The largest ratio of positive eigenvalues.
    singular : bool
        Whether zero eigenvalues, and so zero blocks, occur.
    rotated : bool
        Whether eigenbases other than the axes occur.

    Returns
    -------
    strategy of BlockQuadratic
        Minimiser 0; starts have entries among -10.0, -9.9, ..., 10.0, often 0.

    Examples
    --------
    >>> from hypothesis import find
    >>> find(block_quadratics(), lambda p: True).blocks
    (<DiagonalBlock of 1, norm 1>,)
    """
    decades = math.log10(condition_number)
    # one draw for an eigenvalue (zero beyond the decades), one pair a parameter: easily dropped in shrinking
    eigenvalues = st.floats(0.0, decades + (0.5 if singular else 0.0)).map(
        lambda e: 10.0**-e if e <= decades else 0.0
    )
    parameters = st.tuples(eigenvalues, st.integers(-100, 100).map(lambda k: k / 10.0))
    bases: st.SearchStrategy[Any] = st.just("axis")
    if rotated:
        angles = st.sampled_from([math.pi / 4, math.pi / 2]) | st.floats(0.0, math.pi, allow_subnormal=False)
        bases |= angles.map(Rotation) | st.just("haar")
    block = st.tuples(st.lists(parameters, min_size=1, max_size=max_size), bases)
    blocks = st.lists(block, min_size=1, max_size=max_blocks)
    return st.builds(_problem, blocks, st.integers(0, 2**16))


def _problem(blocks: Sequence[tuple[Sequence[tuple[float, float]], Any]], seed: int) -> BlockQuadratic:
    return BlockQuadratic.from_spectra(
        [[value for value, _ in pairs] for pairs, _ in blocks],
        basis=[basis if len(pairs) > 1 else "axis" for pairs, basis in blocks],
        start=[entry for pairs, _ in blocks for _, entry in pairs],
        seed=seed,
    )


def methods(
    family: str | Iterable[str] | None = None, rules: str | Iterable[str] | None = None
) -> st.SearchStrategy[Method]:
    """Return a strategy for methods with their hyperparameters and a learning rate.

    Parameters
    ----------
    family : str or sequence of str, optional
        Among "gd", "signsgd", "normalized_gd", "adam"; all by default.
    rules : str or sequence of str, optional
        Among "constant", "lemma", "m_star", "line_search"; all that go with the method by default.

    Returns
    -------
    strategy of Method
        Constant learning rates are 1, 2, 1/2 or 10^-4 to 1.

    Examples
    --------
    >>> from hypothesis import find
    >>> print(find(methods("gd", rules="constant"), lambda method: True))
    GD(1.0)
    """
    rates = st.sampled_from([1.0, 0.5, 2.0]) | st.floats(0.0, 4.0).map(lambda e: 10.0**-e)
    units = st.floats(0.0, 1.0)
    cube = st.tuples(units, units, units).map(np.array)
    return st.builds(_method, st.sampled_from(choices(_names(family), _names(rules))), rates, cube)


def _method(choice: tuple[Maker, str], rate: float, cube: FloatArray) -> Method:
    maker, rule = choice
    return maker(rate if rule == "constant" else rule, cube, 1.0)


def stops(tests: Sequence[str] = TARGETS, smallest: float = 1e-6) -> st.SearchStrategy[Stop]:
    """Return a strategy for stopping tests relative to the start.

    Parameters
    ----------
    tests : sequence of str
        Among "l1", "l2", "linf", "gap".
    smallest : float in (0, 1)
        The smallest fraction of the start's own value.

    Returns
    -------
    strategy of GradientNorm and Gap

    Examples
    --------
    >>> from hypothesis import find
    >>> print(find(stops(["l2"]), lambda stop: True))
    ||g||_2 <= 0.5 * ||g||_2 at the start
    """
    simple = [f for f in (0.5, 0.9, 0.99, 0.1, 0.01) if f >= smallest]
    fractions = st.sampled_from(simple or [smallest]) | st.floats(smallest, 1.0, exclude_max=True)
    return st.builds(_stop, st.sampled_from(list(tests)), fractions)


def _stop(test: str, fraction: float) -> Stop:
    return Gap(fraction, relative=True) if test == "gap" else GradientNorm(fraction, _ORDERS[test], True)


def assert_bound_holds(
    bound: str | Bound,
    problem: Any = None,
    method: Any = None,
    stop: Any = None,
    *,
    max_examples: int = 100,
    max_iterations: int = 10_000,
) -> None:
    """Fail if a bound is violated: on one run, or on what hypothesis draws.

    Given a problem and a method, this is one check. If one of them is a strategy, or is left out, hypothesis
    draws examples, and a violation is shrunk. Examples outside the bound's assumptions are drawn again; where
    none is inside, hypothesis raises ``Unsatisfiable``, and narrower strategies should be given.

    Parameters
    ----------
    bound : str or Bound
        A registered bound.
    problem : BlockQuadratic or strategy, optional
        By default :func:`block_quadratics`.
    method : Method or strategy, optional
        By default :func:`methods` of the bound's family and step rules.
    stop : GradientNorm, Gap or strategy, optional
        By default :func:`stops` where examples are drawn, else that of :func:`quadlab.compare`.
    max_examples : int
        Examples inside the assumptions.
    max_iterations : int
        The cap of a run; one that is cut short before the bound says nothing.

    Raises
    ------
    AssertionError
        If the bound is violated, with the run.
    ValueError
        If the bound does not apply to the one run given, or is on an expectation
        (:func:`quadlab.expectation`).

    Examples
    --------
    >>> p = BlockQuadratic.from_blocks([[1.0, 4.0]], start=[4.0, 1.0])
    >>> from quadlab.methods import SignSGD
    >>> assert_bound_holds("signsgd.m_star", p, SignSGD("m_star"))
    >>> assert_bound_holds("signsgd.m_star", max_examples=10)
    """
    (entry,) = select(bound)
    if entry.expectation:
        raise ValueError(
            f"no single run violates {entry.name}, a bound on an expectation: see ql.expectation"
        )
    given = (problem, method, stop)
    drawing = any(isinstance(value, st.SearchStrategy) for value in given)
    if not (drawing or problem is None or method is None):
        _check(entry, Instance(problem, method, stop or default_stop(problem)), max_iterations)
        return
    defaults = (block_quadratics(), methods(entry.families, entry.rules), stops())
    drawn = [
        default if value is None else value if isinstance(value, st.SearchStrategy) else st.just(value)
        for value, default in zip(given, defaults, strict=True)
    ]

    @hypothesis.settings(
        max_examples=max_examples,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        suppress_health_check=[hypothesis.HealthCheck.filter_too_much, hypothesis.HealthCheck.too_slow],
    )
    @hypothesis.given(st.tuples(*drawn))
    def holds(example: tuple[BlockQuadratic, Method, Stop]) -> None:
        _check(entry, Instance(*example), max_iterations)

    holds()


def _check(entry: Bound, instance: Instance, max_iterations: int) -> None:
    try:
        evaluation = instance.evaluation(entry, max_iterations)
    except ValueError:  # a method that the problem does not go with, such as frozen Adam
        if not hypothesis.currently_in_test_context():
            raise
        hypothesis.reject()
    if not evaluation.applies:
        if hypothesis.currently_in_test_context():
            hypothesis.reject()
        raise ValueError(f"{entry.name} does not apply: {'; '.join(evaluation.reasons)}")
    if evaluation.holds is False:
        measured = "more updates" if evaluation.measured is None else f"{evaluation.measured:.12g}"
        what = f"{entry.kind} bound {evaluation.value:.12g} on {entry.quantity}, measured {measured}"
        raise AssertionError(f"{entry.name} is violated: {what}\n{instance}")


def _names(names: str | Iterable[str] | None) -> tuple[str, ...] | None:
    return None if names is None else (names,) if isinstance(names, str) else tuple(names)
