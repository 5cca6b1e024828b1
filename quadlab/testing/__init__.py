r'''Tests for bounds of one's own, and for predictions that should not move.

A bound is a claim about *all* problems inside its assumptions. :func:`assert_bound_holds` tries it on
problems, methods and stopping tests that hypothesis draws, and shrinks a counterexample; the strategies
:func:`block_quadratics`, :func:`methods` and :func:`stops` draw the same for tests of another kind. A bound
with its test::

    import quadlab as ql
    from hypothesis import given
    from quadlab.testing import assert_bound_holds, block_quadratics, methods

    @ql.bound("mine.gd", family="gd", rules="lemma", target="l2", needs="sup_lambda_g")
    def mine(s):
        """Twice the gradient-weighted bound."""
        return 4 * s.stat("sup_lambda_g") * s.delta / s.tolerance**2

    def test_mine():
        assert_bound_holds("mine.gd")

    @given(block_quadratics(max_size=2), methods("gd", rules="lemma"))
    def test_mine_on_small_blocks(problem, method):
        assert_bound_holds("mine.gd", problem, method)

The pytest plugin, which is installed with the package, adds the fixture ``bound_regression``: it keeps what
was measured and predicted in a JSON file beside the test, and fails when one of the numbers moves::

    def test_golden(bound_regression):
        problem = ql.case("het", seed=0)
        bound_regression(ql.compare(problem, [ql.GD("lambda_g"), ql.SignSGD("lambda_p")]))

``pytest --quadlab-update`` writes the file. See :mod:`quadlab.testing.plugin`.

Everything here but the plugin needs hypothesis: ``pip install quadlab[test]``. Names are loaded when first
used, since pytest imports this package whenever it starts.
'''

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quadlab.testing.strategies import assert_bound_holds, block_quadratics, methods, stops

__all__ = ["assert_bound_holds", "block_quadratics", "methods", "stops"]


def __getattr__(name: str) -> Any:
    """Load a name from its module at first use (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from quadlab.testing import strategies

    value = globals()[name] = getattr(strategies, name)
    return value
