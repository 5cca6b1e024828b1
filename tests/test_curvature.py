"""Constants of the Hessian, against brute force and against the inequalities they stand for."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hessian_strategies import nonzero, problems
from quadlab import FrozenAdam, Gap, solve
from quadlab import curvature as curvature_function
from quadlab.bases import Householder
from quadlab.curvature import BRUTE_FORCE_LIMIT, DENSE_LIMIT, curvature, frozen_preconditioner
from quadlab.kernels.m_star import largest_sign_form
from quadlab.problem import RANK_TOLERANCE, BlockQuadratic

ROUNDING = 1e-10  # relative; conditions up to 1e6 stand behind it


def signs(size):
    return np.array(list(itertools.product([-1.0, 1.0], repeat=size)))


def brute_force(matrix):
    s = signs(len(matrix))
    return np.einsum("si,ij,sj->s", s, matrix, s).max()


def gram(size, rank, seed):
    factor = np.random.default_rng(seed).standard_normal((rank, size))
    return factor.T @ factor


def haar_problem(*spectra, seed=0, **options):
    return BlockQuadratic.from_spectra(list(spectra), basis="haar", seed=seed, **options)


# -- M* --------------------------------------------------------------------------------------------------


@given(size=st.integers(1, 12), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=60)
def test_brute_force_is_exact_on_integers(size, seed):
    factor = np.random.default_rng(seed).integers(-9, 10, (size, size)).astype(float)
    matrix = factor.T @ factor
    assert largest_sign_form(matrix) == brute_force(matrix)


@given(problem=problems(max_size=6))
@settings(deadline=None, max_examples=80)
def test_m_star_is_the_maximum_over_all_signs(problem):
    c = curvature(problem)
    assert c.m_star_exact and c.m_star_lower == c.m_star_upper
    expected = [brute_force(block.to_dense()) for block in problem.blocks]
    np.testing.assert_allclose(c.m_star_blocks, expected, rtol=ROUNDING, atol=1e-300)
    assert c.m_star_upper == pytest.approx(sum(expected), rel=ROUNDING)


def test_m_star_is_the_norm_from_l_inf_to_l1():
    matrix = gram(6, 4, seed=1)
    s = signs(6)
    assert largest_sign_form(matrix) == pytest.approx(np.abs(s @ matrix).sum(axis=1).max(), rel=1e-13)
    assert largest_sign_form(matrix) == pytest.approx((s @ matrix @ s.T).max(), rel=1e-13)


@given(problem=problems())
@settings(deadline=None, max_examples=100)
def test_chain_of_m_star(problem):
    c = curvature(problem)
    slack = 1 + ROUNDING
    assert c.trace <= c.m_star_lower * slack
    assert c.m_star_lower <= c.m_star_upper
    assert c.m_star_upper <= min(c.abs_sum, c.size * c.parameter_weighted) * slack
    assert c.size * c.parameter_weighted <= c.size * c.largest * slack


def test_m_star_of_a_long_walk_does_not_drift():
    # 2^19 Gray steps; for H = u u^T the answer is (sum |u_i|)^2
    u = np.random.default_rng(2).standard_normal(20)
    assert largest_sign_form(np.outer(u, u)) == pytest.approx(np.abs(u).sum() ** 2, rel=1e-13)


@pytest.mark.parametrize(
    ("size", "source"), [(BRUTE_FORCE_LIMIT, "brute force"), (BRUTE_FORCE_LIMIT + 1, "P Lambda_P")]
)
def test_brute_force_ends_at_its_limit(size, source):
    # eigenvalues alike: P ||H|| is below the sum of |H_ij|
    c = curvature(haar_problem(np.linspace(1.0, 1.1, size)))
    assert (c.m_star_source, c.m_star_exact) == (source, source == "brute force")


@pytest.mark.parametrize("shape", [(21, 21), (2, 3), (0, 0), (3,)])
def test_brute_force_refuses(shape):
    with pytest.raises(ValueError, match="size 1 to 20"):
        largest_sign_form(np.zeros(shape))


@pytest.mark.parametrize("seed", range(5))
def test_above_the_limit_m_star_lies_between(seed):
    # one block of 24 whose matrix falls into two of 12 after a permutation: M* is known
    halves = [gram(12, 5, seed), 3.0 * gram(12, 12, seed + 100)]
    matrix = np.zeros((24, 24))
    matrix[:12, :12], matrix[12:, 12:] = halves
    order = np.random.default_rng(seed).permutation(24)
    c = curvature(BlockQuadratic.from_blocks([matrix[np.ix_(order, order)]], seed=seed))
    exact = sum(largest_sign_form(half) for half in halves)
    assert not c.m_star_exact
    assert c.trace < c.m_star_lower <= exact * (1 + 1e-12)
    assert exact <= c.m_star_upper * (1 + 1e-12)
    assert c.m_star_lower >= 0.97 * exact


def test_where_signs_align_the_absolute_sum_is_attained():
    u = np.random.default_rng(3).standard_normal(50)
    c = curvature(BlockQuadratic.from_blocks([np.outer(u, u)], seed=0))
    assert c.m_star_source == "absolute sum"
    assert c.m_star_lower == pytest.approx(c.m_star_upper, rel=1e-12)
    assert c.m_star_upper == pytest.approx(np.abs(u).sum() ** 2, rel=1e-12)


def test_sources_are_named_once_each():
    c = curvature(
        BlockQuadratic.from_blocks([np.ones(30), gram(3, 3, 0), gram(4, 4, 1), gram(40, 40, 2)], seed=0)
    )
    assert c.m_star_sources[:3] == ("trace", "brute force", "brute force")
    assert c.m_star_source in ("trace + brute force + absolute sum", "trace + brute force + P Lambda_P")
    assert c.m_star_upper == c.m_star_blocks.sum()


# -- mu_inf ----------------------------------------------------------------------------------------------


@given(problem=problems())
@settings(deadline=None, max_examples=100)
def test_mu_inf_is_the_largest_entry_of_the_pseudoinverse(problem):
    assume(nonzero(problem))
    c = curvature(problem)
    inverse = max(
        np.diag(np.linalg.pinv(block.to_dense(), rcond=1e-10, hermitian=True)).max()
        for block in problem.blocks
    )
    assert c.mu_inf_exact
    assert c.mu_inf == pytest.approx(1.0 / inverse, rel=1e-6)


@given(problem=problems())
@settings(deadline=None, max_examples=100)
def test_orders_of_mu_inf(problem):
    assume(nonzero(problem))
    c = curvature(problem)
    assert c.mu_inf >= c.smallest_positive
    assert c.m_star_upper / c.mu_inf >= c.rank**2 / c.size * (1 - ROUNDING)


@given(problem=problems(singular=False))
@settings(deadline=None, max_examples=100)
def test_signsgd_pays_the_dimension_when_definite(problem):
    c = curvature(problem)
    assert c.rank == c.size
    assert c.m_star_upper / c.mu_inf >= c.size * (1 - ROUNDING)


@given(problem=problems(storages=("axis",)))
@settings(deadline=None, max_examples=50)
def test_mu_inf_of_a_diagonal_is_mu_plus(problem):
    c = curvature(problem)
    assert c.mu_inf == c.smallest_positive


@given(problem=problems(), seed=st.integers(0, 2**32 - 1), sparse=st.booleans())
@settings(deadline=None, max_examples=150)
def test_l1_inequality_and_its_dual(problem, seed, sparse):
    assume(nonzero(problem))
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(problem.size)
    if sparse:  # gradients near the vertices of the l_1 ball are the extreme ones
        g = np.zeros(problem.size)
        g[rng.integers(problem.size)] = 1.0
        x = np.concatenate([b.pinv_matvec(v) for b, v in zip(problem.blocks, problem.split(g), strict=True)])
    w = problem.minimizer + x
    gap, norm = problem.value(w), np.abs(problem.gradient(w)).sum()
    c = curvature(problem)
    assert norm**2 >= 2.0 * c.mu_inf * gap * (1 - 1e-8)
    assert norm**2 <= 2.0 * c.m_star_upper * gap * (1 + 1e-8) + 1e-18 * c.largest**2
    gradient = problem.gradient(w)
    assert gradient @ gradient <= 2.0 * c.largest * gap * (1 + 1e-8) + 1e-18 * c.largest**2
    assert (gradient**2).max() <= 2.0 * c.largest_diagonal * gap * (1 + 1e-8) + 1e-18 * c.largest**2


@given(problem=problems(singular=False))
@settings(deadline=None, max_examples=60)
def test_the_l1_constant_is_attained_when_definite(problem):
    inverses = [np.linalg.inv(block.to_dense()) for block in problem.blocks]
    diagonal = np.concatenate([np.diag(inverse) for inverse in inverses])
    g = np.zeros(problem.size)
    g[np.argmax(diagonal)] = 1.0
    x = np.concatenate([inverse @ v for inverse, v in zip(inverses, problem.split(g), strict=True)])
    assert curvature(problem).mu_inf == pytest.approx(
        1.0 / (2.0 * problem.value(problem.minimizer + x)), rel=1e-6
    )


def test_a_singular_block_may_leave_the_inequality_strict():
    # H = u u^T: gradients are multiples of u, ||g||_1^2 / (2 f) = ||u||_1^2 > mu_inf = ||u||^4 / max u_i^2
    u = np.array([2.0, 1.0, 1.0])
    c = curvature(BlockQuadratic.from_blocks([np.outer(u, u)], seed=0))
    assert c.rank == 1
    assert c.mu_inf == pytest.approx(36.0 / 4.0, rel=1e-12)
    assert c.m_star_upper == pytest.approx(16.0, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-250, 1e-30, 1e30, 1e250])
def test_constants_scale(scale):
    small = curvature(haar_problem([1.0, 2.0, 5.0], [0.0, 3.0]))
    large = curvature(haar_problem([scale, 2.0 * scale, 5.0 * scale], [0.0, 3.0 * scale]))
    for name in (
        "largest",
        "smallest_positive",
        "trace",
        "parameter_weighted",
        "abs_sum",
        "m_star_upper",
        "mu_inf",
    ):
        assert getattr(large, name) == pytest.approx(scale * getattr(small, name), rel=1e-12)
    assert large.condition_number == pytest.approx(5.0)


# -- Spectrum and rank -----------------------------------------------------------------------------------


@given(problem=problems())
@settings(deadline=None, max_examples=60)
def test_spectrum_against_dense(problem):
    c = curvature(problem)
    eigenvalues = np.linalg.eigvalsh(problem.dense_hessian())
    scale = max(c.largest, 1e-300)
    assert c.largest == pytest.approx(eigenvalues[-1], rel=1e-12)
    assert c.smallest == pytest.approx(max(0.0, eigenvalues[0]), abs=1e-12 * scale)
    assert c.trace == pytest.approx(eigenvalues.sum(), rel=1e-12)
    assert c.abs_sum == pytest.approx(np.abs(problem.dense_hessian()).sum(), rel=1e-12)
    assert c.largest_diagonal == pytest.approx(problem.dense_hessian().diagonal().max(), rel=1e-12)
    assert c.rank == np.count_nonzero(problem.eigenvalues)
    assert c.positive.tolist() == (problem.eigenvalues > 0).tolist()
    if c.rank:
        assert c.smallest_positive == problem.eigenvalues[problem.eigenvalues > 0].min()
        assert c.condition_number == c.largest / c.smallest_positive


@pytest.mark.parametrize(("factor", "rank"), [(0.5, 1), (1.0, 1), (2.0, 2)])
def test_rank_tolerance_is_relative_to_the_block(factor, rank):
    tiny = factor * RANK_TOLERANCE
    assert curvature(BlockQuadratic.from_blocks([np.array([tiny, 1.0])], seed=0)).rank == rank
    # a block of its own is not rounding of another one, however small
    c = curvature(BlockQuadratic.from_blocks([np.array([tiny]), np.array([1.0])], seed=0))
    assert (c.rank, c.smallest_positive) == (2, tiny)
    assert c.mu_inf >= c.smallest_positive


def test_zero_hessian():
    c = curvature(BlockQuadratic.from_blocks([np.zeros(2), np.zeros((3, 3))], seed=0))
    assert (c.rank, c.largest, c.smallest, c.trace, c.m_star_upper, c.parameter_weighted) == (
        0,
        0,
        0,
        0,
        0,
        0,
    )
    assert (c.smallest_positive, c.mu_inf, c.condition_number) == (math.inf, math.inf, 1.0)
    assert json.loads(json.dumps(c.to_dict(), allow_nan=False))["mu_inf"] is None


def test_zero_block_beside_another():
    c = curvature(BlockQuadratic.from_blocks([np.zeros((2, 2)), np.array([2.0, 4.0])], seed=0))
    assert (c.rank, c.smallest, c.smallest_positive, c.mu_inf, c.m_star_upper) == (2, 0.0, 2.0, 2.0, 6.0)
    assert c.block_smallest_positive.tolist() == [math.inf, 2.0]


def test_single_parameter():
    c = curvature(BlockQuadratic.from_blocks([np.array([[3.0]])], seed=0))
    assert (c.m_star_upper, c.mu_inf, c.parameter_weighted, c.condition_number) == (3.0, 3.0, 3.0, 1.0)


# -- Storages --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [3, 30])
def test_householder_agrees_with_dense(size):
    spectrum = np.geomspace(1.0, 100.0, size)
    problem = BlockQuadratic.from_spectra([spectrum], basis=Householder(2), seed=4)
    dense = BlockQuadratic.from_blocks([problem.blocks[0].to_dense()], seed=0)
    a, b = curvature(problem), curvature(dense)
    assert a.m_star_source == b.m_star_source
    for name in ("mu_inf", "abs_sum", "m_star_upper", "trace", "largest_diagonal", "smallest_positive"):
        assert getattr(a, name) == pytest.approx(getattr(b, name), rel=1e-9)
    assert a.m_star_lower == pytest.approx(b.m_star_lower, rel=0.1)


def test_large_householder_says_what_it_cannot_give():
    size = 200_000
    problem = BlockQuadratic.from_spectra(
        [[1.0], np.geomspace(1e-3, 1.0, size)], basis=["axis", Householder(2)], seed=0
    )
    c = curvature(problem)
    assert size > DENSE_LIMIT
    assert c.abs_sum is None
    assert "block 1 of size 200000" in c.reasons["abs_sum"]
    assert c.m_star_source == "trace + P Lambda_P"
    assert c.m_star_upper == pytest.approx(c.size * c.parameter_weighted, rel=1e-15)
    assert c.trace <= c.m_star_lower <= c.m_star_upper
    assert c.mu_inf_exact and c.smallest_positive <= c.mu_inf <= 1.01e-3
    json.dumps(c.to_dict(), allow_nan=False)
    with pytest.raises(ValueError, match="size 200000"):
        frozen_preconditioner(problem)


def test_constants_are_kept_with_the_problem_and_read_only():
    problem = haar_problem([1.0, 2.0], [3.0, 4.0])
    c = curvature(problem)
    assert curvature(problem) is c
    assert curvature_function is curvature
    assert frozen_preconditioner(problem) is frozen_preconditioner(problem)
    with pytest.raises(ValueError, match="read-only"):
        c.block_norms[0] = 1.0
    with pytest.raises(AttributeError):
        c.blocks = ()
    assert "kappa=4" in repr(c)


def test_numba_is_imported_only_for_brute_force():
    code = (
        "import sys; from quadlab.problem import BlockQuadratic; from quadlab.curvature import curvature;"
        "c = curvature(BlockQuadratic.from_spectra([[1.0, 2.0]], basis='haar', seed=0));"
        "c.mu_inf, c.abs_sum, c.condition_number; assert 'numba' not in sys.modules;"
        "c.m_star_upper; assert 'numba' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- Frozen Adam -----------------------------------------------------------------------------------------


def dense_preconditioned(problem):
    scale = 1.0 / np.sqrt(np.abs(problem.gradient(problem.start)))
    return problem.dense_hessian() * np.multiply.outer(scale, scale)


@given(problem=problems(max_size=4))
@settings(deadline=None, max_examples=80)
def test_frozen_eigenvalues_and_condition_bounds(problem):
    assume(np.all(np.abs(problem.gradient(problem.start)) > 1e-6) and np.all(problem.block_norms > 0))
    frozen = frozen_preconditioner(problem)
    expected = np.linalg.eigvalsh(dense_preconditioned(problem))
    np.testing.assert_allclose(np.sort(frozen.eigenvalues), expected, atol=1e-10 * expected[-1])
    assert np.count_nonzero(frozen.eigenvalues) == curvature(problem).rank
    assert frozen.components.sum() == pytest.approx(problem.value(problem.start), rel=1e-8)
    slack = 1 + 1e-8
    assert 1.0 <= frozen.condition_number <= frozen.condition_bound * slack
    assert frozen.condition_bound <= frozen.loose_condition_bound * slack
    kappa = frozen.block_condition_numbers.max()
    assert frozen.loose_condition_bound == pytest.approx(math.sqrt(frozen.r) * kappa, rel=1e-12)
    assert frozen.safe_learning_rate * frozen.largest <= slack
    for eta in (frozen.best_learning_rate, frozen.safe_learning_rate):
        worst = np.abs(1 - eta * frozen.eigenvalues[frozen.eigenvalues > 0]).max()
        assert worst >= frozen.rho * (1 - 1e-8)
    # the rate at the safe step is at least as sharp as the paper's max_l (1 - 1 / (r kappa_l))
    assert (1 - 1 / frozen.condition_bound) ** 2 <= (1 - 1 / (frozen.r * kappa)) * slack


@pytest.mark.parametrize("seed", range(5))
def test_frozen_gap_is_exact(seed):
    problem = BlockQuadratic.from_spectra(
        [[1.0, 10.0, 30.0], [0.5, 2.0], [0.0, 4.0, 5.0]], basis=["haar", "axis", "haar"], seed=seed
    )
    frozen = frozen_preconditioner(problem)
    scale = np.abs(problem.gradient(problem.start))
    for eta in (frozen.best_learning_rate, frozen.safe_learning_rate, 2.1 / frozen.largest):
        w = problem.start
        for t in range(30):
            assert frozen.gap(t, eta) == pytest.approx(problem.value(w), rel=1e-8)
            w = w - eta * problem.gradient(w) / scale
    assert frozen.gap(10**9, frozen.best_learning_rate) == 0.0
    assert frozen.gap(10**9, 3.0 / frozen.smallest) == math.inf


def test_frozen_adam_without_rotation_sees_only_the_start():
    # a_i = h_i / |h_i x_i|: kappa_A = max |x_i| / min |x_i|, whatever the blocks
    problem = BlockQuadratic.from_spectra([[1.0, 5000.0], [3.0, 70.0]], seed=5)
    x = np.abs(problem.displacement)
    assert frozen_preconditioner(problem).condition_number == pytest.approx(x.max() / x.min(), rel=1e-12)


def test_frozen_adam_householder_agrees_with_dense():
    problem = BlockQuadratic.from_spectra([np.geomspace(1.0, 100.0, 12)], basis=Householder(3), seed=6)
    expected = np.linalg.eigvalsh(dense_preconditioned(problem))
    np.testing.assert_allclose(frozen_preconditioner(problem).eigenvalues, expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("matrices", "start", "message"),
    [
        ([np.ones(2), np.zeros(2)], [1.0, 1.0, 1.0, 1.0], "block 1 is zero"),
        ([np.ones(2), np.array([1.0, 0.0])], [1.0, 1.0, 1.0, 1.0], "gradient is 0 at coordinate 3"),
        ([np.ones(2)], [1.0, 0.0], "gradient is 0 at coordinate 1"),
        ([np.ones(2)], [1.0, 1e-145], "gradient is 1e-145 at coordinate 1: .* root of its square, 0"),
        ([np.ones(2)], [-2e154, 1.0], r"gradient is -2e\+154 at coordinate 0: .* root of its square, inf"),
    ],
)
def test_frozen_adam_refuses(matrices, start, message):
    problem = BlockQuadratic.from_blocks(matrices, start=start, minimizer=np.zeros(len(start)))
    with pytest.raises(ValueError, match=message):
        frozen_preconditioner(problem)


@pytest.mark.parametrize("start", [1.01e-145, 1.3e154])
def test_frozen_adam_from_the_ends_of_its_range(start):
    problem = BlockQuadratic.from_blocks([np.ones(2)], start=[1.0, start], minimizer=np.zeros(2))
    a = frozen_preconditioner(problem)
    run = solve(problem, FrozenAdam(a.best_learning_rate), Gap(0.5, relative=True), max_iterations=3)
    assert run.status != "diverged"
