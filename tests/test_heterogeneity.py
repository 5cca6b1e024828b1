"""Heterogeneity, against textbook formulas and examples computed by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import pearsonr, spearmanr

from hessian_strategies import problems
from quadlab.bases import Householder
from quadlab.heterogeneity import (
    SPECTRUM_BINS,
    correlation,
    covariance,
    gradient_heterogeneity,
    gradient_weighted,
    hessian_heterogeneity,
    jensen_shannon,
    mean_jensen_shannon,
    parameter_weighted,
    spread,
    weighted_hessian_complexity,
)
from quadlab.problem import BlockQuadratic


def scalar_blocks(hessian, gradient):
    """Blocks of one parameter with the given curvatures and starting gradients."""
    hessian, gradient = np.array(hessian, float), np.array(gradient, float)
    start = np.divide(gradient, hessian, out=np.zeros(len(hessian)), where=hessian > 0)
    return BlockQuadratic.from_blocks([[h] for h in hessian], start=start)


# -- Lambda --------------------------------------------------------------------------------------------------


@given(problem=problems(), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=100)
def test_lambda_by_its_definition(problem, seed):
    d = np.random.default_rng(seed).standard_normal(problem.size)
    value = weighted_hessian_complexity(problem, d)
    parts = problem.split(d)
    expected = sum(v @ v * block.norm for v, block in zip(parts, problem.blocks, strict=True)) / (d @ d)
    slack = 1 + 1e-12
    assert value == pytest.approx(expected, rel=1e-12)
    assert problem.block_norms.min() <= value * slack and value <= problem.block_norms.max() * slack
    assert d @ problem.hvp(d) <= value * (d @ d) * slack + 1e-300


@given(problem=problems(), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=100)
def test_lambda_of_signs(problem, seed):
    signs = np.random.default_rng(seed).integers(-1, 2, problem.size)
    assume(signs.any())
    value = weighted_hessian_complexity(problem, signs)
    nonzeros = np.count_nonzero(signs)
    assert parameter_weighted(problem) >= nonzeros / problem.size * value * (1 - 1e-12)
    if nonzeros == problem.size:
        assert value == pytest.approx(parameter_weighted(problem), rel=1e-12)


def test_lambda_by_hand():
    problem = BlockQuadratic.from_blocks([[2.0], [5.0, 1.0], np.eye(2) * 8], seed=0)
    assert weighted_hessian_complexity(problem, [1, 0, 1, 1, 1]) == (2 + 5 + 2 * 8) / 4
    assert weighted_hessian_complexity(problem, [3, 0, 0, 0, 0]) == 2.0
    assert parameter_weighted(problem) == (2 + 2 * 5 + 2 * 8) / 5


@pytest.mark.parametrize("scale", [1e-200, 2.0**-1000, 1e200])
def test_lambda_does_not_see_the_length_of_the_direction(scale):
    problem = BlockQuadratic.from_blocks([[2.0], [5.0, 1.0]], seed=0)
    assert weighted_hessian_complexity(problem, scale * np.array([2.0, 1.0, 1.0])) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("direction", "message"),
    [
        ([0, 0, 0], "direction is zero"),
        ([1.0, 2.0], r"shape \(2,\), must be \(3,\)"),
        ([[1.0, 2.0, 3.0]], r"shape \(1, 3\)"),
        ([1.0, math.nan, 0.0], "holds nan"),
        ([1.0, math.inf, 0.0], "holds inf"),
        ([1j, 0, 0], "direction must be real numbers"),
        (["a", "b", "c"], "direction must be real numbers"),
    ],
)
def test_lambda_refuses(direction, message):
    problem = BlockQuadratic.from_blocks([[2.0], [5.0, 1.0]], seed=0)
    with pytest.raises(ValueError, match=message):
        weighted_hessian_complexity(problem, direction)


def test_gradient_weighted_at_a_point_and_at_the_optimum():
    problem = scalar_blocks([1.0, 3.0], [3.0, 3.0])
    assert gradient_weighted(problem) == 2.0
    assert gradient_weighted(problem, [1.0, 1.0]) == (1 * 1 + 9 * 3) / 10
    with pytest.raises(ValueError, match="gradient is zero"):
        gradient_weighted(problem, problem.minimizer)
    with pytest.raises(ValueError, match="w has shape"):
        gradient_weighted(problem, [1.0])


# -- the criterion -------------------------------------------------------------------------------------------


@given(problem=problems(max_blocks=6), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=200)
def test_covariance_is_the_criterion(problem, seed):
    w = np.random.default_rng(seed).standard_normal(problem.size)
    g = problem.gradient(w)
    assume(np.abs(g).max() > 1e-9)
    lambda_g, lambda_p = gradient_weighted(problem, w), parameter_weighted(problem)
    expected = (g @ g) / problem.size * (lambda_g - lambda_p)
    size = (g @ g) / problem.size * problem.block_norms.max()
    assert covariance(problem, w) == pytest.approx(expected, abs=1e-12 * size)
    if abs(lambda_g - lambda_p) > 1e-12 * problem.block_norms.max():
        assert (covariance(problem, w) > 0) == (lambda_g > lambda_p)


@given(seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=50)
def test_covariance_by_numpy(seed):
    rng = np.random.default_rng(seed)
    sizes, norms = rng.integers(1, 9, 5), 10.0 ** rng.uniform(-2, 2, 5)
    problem = BlockQuadratic.from_spectra(
        [np.linspace(h / 2, h, n) if n > 1 else [h] for h, n in zip(norms, sizes, strict=True)],
        basis="haar",
        gradient_norms=10.0 ** rng.uniform(-2, 2, 5),
        seed=seed,
    )
    u = np.array([v @ v for v in problem.split(problem.gradient(problem.start))]) / sizes
    expected = np.cov(u, problem.block_norms, fweights=sizes, ddof=0)
    assert covariance(problem) == pytest.approx(
        expected[0, 1], rel=1e-9, abs=1e-13 * np.ptp(u) * np.ptp(norms)
    )


def test_covariance_at_the_edge():
    # equal per-parameter gradients: Lambda_G = Lambda_P; a little more on the steep block tips it
    assert covariance(scalar_blocks([1.0, 3.0], [2.0, 2.0])) == 0.0
    assert covariance(scalar_blocks([1.0, 3.0], [2.0, 2.0 + 1e-9])) > 0.0
    assert covariance(scalar_blocks([1.0, 3.0], [2.0, 2.0 - 1e-9])) < 0.0
    assert covariance(scalar_blocks([1.0, 3.0], [0.0, 0.0])) == 0.0


def test_a_correlation_may_have_the_other_sign():
    # four blocks rise together; the fifth, by far the steepest, has little gradient
    problem = scalar_blocks([1.0, 2.0, 4.0, 8.0, 1000.0], [1.0, 2.0, 4.0, 8.0, 1.5])
    assert covariance(problem) < 0.0
    assert correlation(problem).spearman > 0.0


# -- correlations --------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(3, 12), ties=st.booleans())
@settings(deadline=None, max_examples=80)
def test_correlations_against_scipy(seed, count, ties):
    rng = np.random.default_rng(seed)
    draw = (lambda: 2.0 ** rng.integers(0, 4, count)) if ties else (lambda: rng.lognormal(size=count))
    h, g = draw(), draw()
    assume(np.ptp(h) > 0 and np.ptp(g) > 0)
    problem = scalar_blocks(h, g)
    # the gradient h * (g / h) may break a tie by an ulp; ranks are of what the problem holds
    g = np.abs(problem.gradient(problem.start))
    found = correlation(problem)
    assert found.pearson == pytest.approx(pearsonr(np.log(g), np.log(h)).statistic, abs=1e-9)
    assert found.spearman == pytest.approx(spearmanr(g, h).statistic, abs=1e-9)


def test_correlation_per_parameter_or_raw():
    # sizes 1, 4, 16: raw norms rise with h, per-parameter norms fall
    problem = BlockQuadratic.from_spectra(
        [[1.0], [2.0] * 4, [4.0] * 16], gradient_norms=[1.0, 1.5, 2.0], direction="sign", seed=0
    )
    assert correlation(problem).spearman == pytest.approx(-1.0)
    assert correlation(problem, per_parameter=False).spearman == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("hessian", "gradient", "present"),
    [
        ([1, 2, 4], [1, 2, 3], True),
        ([1, 2], [1, 2], False),  # two blocks
        ([1, 2, 4], [1, 0, 3], False),  # three, one without gradient
        ([1, 2, 4, 8], [1, 0, 3, 2], True),  # four, one without gradient
        ([1, 2, 0], [1, 2, 0], False),  # a zero block
        ([2, 2, 2], [1, 2, 3], False),  # constant curvature
        ([1, 2, 4], [2, 2, 2], False),  # constant gradient
        ([1, 2, 4], [2, 2, 2 + 1e-6], True),
        ([1], [1], False),
    ],
)
def test_correlations_need_three_blocks_and_some_spread(hessian, gradient, present):
    found = correlation(scalar_blocks(hessian, gradient))
    assert (found.pearson is not None, found.spearman is not None) == (present, present)


def test_correlation_at_another_point():
    problem = scalar_blocks([1.0, 2.0, 4.0], [1.0, 2.0, 4.0])
    assert correlation(problem).pearson == pytest.approx(1.0)
    assert correlation(problem, [16.0, 4.0, 1.0]).pearson == pytest.approx(-1.0)


# -- spread --------------------------------------------------------------------------------------------------


@given(values=st.lists(st.floats(0.0, 1e6), min_size=1, max_size=12))
@settings(deadline=None, max_examples=150)
def test_spread_by_textbook(values):
    assume(max(values) > 1e-3)
    found, a = spread(values), np.array(values)
    assert found.cv == pytest.approx(np.std(a) / np.mean(a), rel=1e-9, abs=1e-12)
    pairs = sum(abs(x - y) for x, y in itertools.product(values, repeat=2))
    assert found.gini == pytest.approx(pairs / (2 * len(a) ** 2 * np.mean(a)), abs=1e-12)
    assert 0.0 <= found.gini <= 1.0 - 1.0 / len(a) + 1e-12
    if min(values) > 0.0:
        assert found.max_over_min == max(values) / min(values)
    else:
        assert found.max_over_min == math.inf


@pytest.mark.parametrize(
    ("values", "cv", "gini", "ratio"),
    [
        ([4.0], 0.0, 0.0, 1.0),
        ([3.0, 3.0, 3.0], 0.0, 0.0, 1.0),
        ([0.0, 0.0, 0.0, 4.0], math.sqrt(3.0), 0.75, math.inf),
        ([1, 2, 3, 4], math.sqrt(1.25) / 2.5, 0.25, 4.0),
        ([1e308, 1e308], 0.0, 0.0, 1.0),
        ([1e-310, 3e-310], 0.5, 0.25, 3.0),
        ([0.0, 0.0], None, None, None),
    ],
)
def test_spread_by_hand(values, cv, gini, ratio):
    found = spread(values)
    assert (found.cv, found.gini, found.max_over_min) == (
        pytest.approx(cv),
        pytest.approx(gini),
        pytest.approx(ratio),
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "empty"),
        ([1.0, -2.0], "holds -2.0"),
        ([math.nan, 1.0], "holds nan"),
        ([1.0, math.inf], "holds inf"),
    ],
)
def test_spread_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        spread(values)


def test_gradient_heterogeneity_by_hand():
    problem = BlockQuadratic.from_spectra(
        [[1.0], [2.0] * 4, [3.0] * 4], gradient_norms=[3.0, 2.0, 2.0], direction="sign", seed=0
    )
    found = gradient_heterogeneity(problem)
    np.testing.assert_allclose(found.block_norms, [3.0, 2.0, 2.0])
    np.testing.assert_allclose(found.per_parameter_norms, [3.0, 1.0, 1.0])
    assert found.spread.cv == pytest.approx(np.std([3, 2, 2]) / np.mean([3, 2, 2]))
    assert found.per_parameter.max_over_min == pytest.approx(3.0)
    shares = np.array([9.0, 4.0, 4.0]) / 17.0
    assert found.entropy == pytest.approx(-(shares * np.log(shares)).sum() / math.log(3.0))


@pytest.mark.parametrize(
    ("gradient", "entropy"),
    [([1, 1, 1], 1.0), ([1, 0, 0], 0.0), ([1, 1, 0, 0], 0.5), ([0, 0], None), ([5], None), ([-1, 1], 1.0)],
)
def test_entropy_by_hand(gradient, entropy):
    found = gradient_heterogeneity(scalar_blocks(np.ones(len(gradient)), gradient))
    assert found.entropy == pytest.approx(entropy)


def test_gradient_heterogeneity_at_the_optimum():
    problem = scalar_blocks([1.0, 2.0], [1.0, 1.0])
    found = gradient_heterogeneity(problem, problem.minimizer)
    assert found.block_norms.tolist() == [0.0, 0.0]
    assert (found.spread.cv, found.per_parameter.gini, found.entropy) == (None, None, None)


def test_hessian_heterogeneity():
    problem = BlockQuadratic.from_blocks([[1.0], [9.0, 1.0], np.diag([2.0, 5.0])], seed=0)
    found = hessian_heterogeneity(problem)
    assert found.block_norms.tolist() == [1.0, 9.0, 5.0]
    assert found.spread == spread([1.0, 9.0, 5.0])
    assert found.parameter_weighted == parameter_weighted(problem) == (1 + 18 + 10) / 5
    assert found.mean_jensen_shannon == mean_jensen_shannon(problem)


# -- Jensen-Shannon ------------------------------------------------------------------------------------------


def entropy_bits(*shares):
    return -sum(p * math.log2(p) for p in shares if p > 0)


def test_jensen_shannon_of_identical_and_disjoint_spectra():
    problem = BlockQuadratic.from_spectra(
        [[1.0, 100.0], [100.0, 1.0], [10.0, 10.0], [1.0, 1.0, 100.0, 100.0]],
        basis=["axis", "haar", "haar", Householder(1)],
        seed=0,
    )
    # whatever the basis, the order and the size
    assert jensen_shannon(problem).tolist() == [[0, 0, 1, 0], [0, 0, 1, 0], [1, 1, 0, 1], [0, 0, 1, 0]]
    assert mean_jensen_shannon(problem) == 0.5


def test_jensen_shannon_by_hand():
    # p = (1/2, 1/2, 0), q = (0, 1/2, 1/2) over the bins of 1, 10, 100 (and mu_+ = 1, L = 100)
    problem = BlockQuadratic.from_spectra([[1.0, 10.0], [10.0, 100.0], [1.0, 10.0, 10.0, 10.0]], seed=0)
    distances = jensen_shannon(problem)
    first = entropy_bits(1 / 4, 1 / 2, 1 / 4) - entropy_bits(1 / 2, 1 / 2)
    second = entropy_bits(3 / 8, 5 / 8) - (1.0 + entropy_bits(1 / 4, 3 / 4)) / 2
    third = entropy_bits(1 / 8, 5 / 8, 1 / 4) - (1.0 + entropy_bits(1 / 4, 3 / 4)) / 2
    assert distances[0, 1] == pytest.approx(math.sqrt(first))
    assert distances[0, 2] == pytest.approx(math.sqrt(second))
    assert distances[1, 2] == pytest.approx(math.sqrt(third))
    assert mean_jensen_shannon(problem) == pytest.approx(np.sqrt([first, second, third]).mean())


def test_zero_eigenvalues_have_a_bin_of_their_own():
    problem = BlockQuadratic.from_spectra([[0.0, 1.0], [0.0, 0.0], [1.0, 1.0], [1e-14, 1.0]], seed=0)
    distances = jensen_shannon(problem)
    half = math.sqrt(entropy_bits(3 / 4, 1 / 4) - 0.5)
    np.testing.assert_allclose(distances[0], [0.0, half, half, 0.0])
    assert distances[1, 2] == 1.0


@pytest.mark.parametrize(("ratio", "distance"), [(0.99, 0.0), (1.01, 1.0)])
def test_width_of_a_bin(ratio, distance):
    # over two decades a bin is 0.02 wide; 1 and 100 span the grid
    step = 2.0 / SPECTRUM_BINS
    values = [10.0, 10.0 ** (1.0 + ratio * step)]
    problem = BlockQuadratic.from_spectra([[v] for v in (*values, 1.0, 100.0)], seed=0)
    assert jensen_shannon(problem)[0, 1] == distance


def test_equal_eigenvalues_up_to_rounding_share_a_bin():
    # 10, 100 and 1000 lie on edges of the grid from 1 to 10^4
    values = np.array([10.0, 100.0, 1000.0])
    spectra = [values * (1 + 1e-13), values * (1 - 1e-13), [1.0, 1.0, 1.0], [1e4] * 3]
    assert jensen_shannon(BlockQuadratic.from_spectra(spectra, seed=0))[0, 1] == 0.0


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_single_eigenvalue_everywhere(value):
    problem = BlockQuadratic.from_spectra([[value], [value, value]], seed=0)
    assert jensen_shannon(problem).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_a_single_block_has_no_pairs():
    problem = BlockQuadratic.from_spectra([[1.0, 2.0]], seed=0)
    assert jensen_shannon(problem).tolist() == [[0.0]]
    assert mean_jensen_shannon(problem) is None


@given(problem=problems(max_blocks=5, max_size=8))
@settings(deadline=None, max_examples=60)
def test_jensen_shannon_against_scipy(problem):
    distances = jensen_shannon(problem)
    assert (distances == distances.T).all() and not np.diag(distances).any()
    assert distances.min() >= 0.0 and distances.max() <= 1.0
    positive = np.concatenate([block.positive for block in problem.blocks])
    logs = np.log10(problem.eigenvalues[positive])
    assume(logs.size == 0 or np.ptp(logs) > 1e-6)
    # histograms by another route: edges a hair lower, as the module sends an edge to the bin above
    rows = []
    for block in problem.blocks:
        row = np.zeros(SPECTRUM_BINS + 1)
        row[0] = np.count_nonzero(~block.positive)
        if block.positive.any():
            edges = np.linspace(logs.min(), logs.max(), SPECTRUM_BINS + 1) - 1e-11 * np.ptp(logs)
            edges[-1] = math.inf
            row[1:] = np.histogram(np.log10(block.eigenvalues[block.positive]), edges)[0]
        rows.append(row / block.size)
    for b, c in itertools.combinations(range(len(rows)), 2):
        # scipy's square root of a tiny negative number is nan
        expected = np.nan_to_num(jensenshannon(rows[b], rows[c], base=2))
        assert distances[b, c] == pytest.approx(expected, abs=1e-7)


def test_many_blocks_are_quick():
    problem = BlockQuadratic.from_spectra([np.geomspace(1, 10 + b, 5) for b in range(400)], seed=0)
    assert jensen_shannon(problem).shape == (400, 400)
