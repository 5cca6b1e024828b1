"""Numbers of the quadratics het and hom that need no simulation: medians over draws, to 5 per cent.

The draws number 4,000 a case: a sample median of 1,000 already strays by 4 per cent (one standard deviation)
for frozen Adam, whose kappa_A has a heavy tail.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from quadlab.cases import case
from quadlab.curvature import curvature, frozen_preconditioner
from quadlab.heterogeneity import parameter_weighted

DRAWS = 4000
WITHIN = 0.05
CASES = ("het", "hom", "het-axis", "hom-axis")


def count(kappa):
    """Iterations at the best constant step to a relative gap of 1e-12: ln(1e-6) / ln(rho)."""
    return math.log(1e-6) / math.log((kappa - 1.0) / (kappa + 1.0))


@pytest.fixture(scope="module")
def draws():
    return {name: case(name, seed=range(DRAWS)) for name in CASES}


def median(problems, quantity):
    return float(np.median([quantity(problem) for problem in problems]))


@pytest.mark.parametrize("name", CASES)
def test_gd_count_is_the_same_in_every_case(name):
    constants = curvature(case(name))
    assert constants.condition_number == 5000.0
    assert constants.smallest == constants.smallest_positive == 1.0
    assert count(constants.condition_number) == pytest.approx(34_500, rel=WITHIN)


@pytest.mark.parametrize("name", CASES)
def test_parameter_weighted(name):
    value, stated = (
        ((3 + 101 + 5000) / 3, 1701) if name.startswith("het") else ((4998 + 4999 + 5000) / 3, 4999)
    )
    assert parameter_weighted(case(name)) == pytest.approx(value, rel=1e-15)
    assert value == pytest.approx(stated, rel=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_trace(name):
    constants = curvature(case(name))
    assert constants.trace / constants.size == pytest.approx(15303 / 9, rel=1e-15)
    assert pytest.approx(1700, rel=1e-3) == 15303 / 9


@pytest.mark.parametrize(("name", "expected"), [("het", 1701.0), ("hom", 3820.0)])
def test_m_star(draws, name, expected):
    assert all(curvature(problem).m_star_exact for problem in draws[name])
    found = median(draws[name], lambda p: curvature(p).m_star_upper / p.size)
    assert found == pytest.approx(expected, rel=WITHIN)


def test_m_star_without_rotation_is_the_trace():
    for name in ("het-axis", "hom-axis"):
        constants = curvature(case(name))
        assert constants.m_star_lower == constants.m_star_upper == constants.trace


@pytest.mark.parametrize(
    ("name", "kappa", "iterations"),
    [("het", 21.0, 145.0), ("hom", 8560.0, 60_100.0), ("het-axis", None, 130.0), ("hom-axis", None, 131.0)],
)
def test_frozen_adam(draws, name, kappa, iterations):
    frozen = [frozen_preconditioner(problem) for problem in draws[name]]
    if kappa is not None:
        assert float(np.median([f.condition_number for f in frozen])) == pytest.approx(kappa, rel=WITHIN)
    counts = [math.log(1e-6) / math.log(f.rho) for f in frozen]
    assert float(np.median(counts)) == pytest.approx(iterations, rel=WITHIN)


def test_without_rotation_frozen_adam_cannot_tell_het_from_hom(draws):
    # a_i = 1 / |x_i|: the arrangement into blocks, and H itself, drop out
    for problem in draws["hom-axis"][:100]:
        x = np.abs(problem.displacement)
        expected = x.max() / x.min()
        assert frozen_preconditioner(problem).condition_number == pytest.approx(expected, rel=1e-12)


def test_share_of_small_r(draws):
    share = np.mean([frozen_preconditioner(problem).r <= 1000.0 for problem in draws["het"]])
    assert share == pytest.approx(0.638, rel=WITHIN)


@pytest.mark.parametrize("name", ["het", "hom"])
def test_condition_bounds(draws, name):
    for problem in draws[name]:
        frozen = frozen_preconditioner(problem)
        assert 1.0 <= frozen.condition_number <= frozen.condition_bound * (1 + 1e-9)
        assert frozen.condition_bound <= frozen.loose_condition_bound * (1 + 1e-9)
