"""Dense blocks from half of H, and sums in vectors: the bits of the plain order, compiled and not."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from quadlab.bases import Householder
from quadlab.kernels import codes as c
from quadlab.kernels import sums
from quadlab.kernels.dense import MIN_SIZE, fourfold, fourfold_product, symmetric_product, tiles
from quadlab.methods import GD, Adam, SignSGD
from quadlab.problem import BlockQuadratic, load
from quadlab.run import STATISTICS
from quadlab.solve import solve, solve_many
from quadlab.stopping import GradientNorm
from test_engine import assert_same
from test_twin import same_bits
from twin import CHUNK, Hessian, Sums

SIZES = [*range(1, 50), 64, 79, 100, 130, 257]


def data(size: int, kind: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A symmetric matrix and a vector, some of them hard."""
    rng = np.random.default_rng([size, seed])
    matrix, x = rng.standard_normal((size, size)), rng.standard_normal(size)
    if kind == "ill-scaled":
        matrix *= 10.0 ** rng.uniform(-150, 150, (size, size))
        x *= 10.0 ** rng.uniform(-150, 150, size)
    elif kind == "zeros":
        matrix[rng.random((size, size)) < 0.3] = 0.0
        x[rng.random(size) < 0.5] = -0.0
    elif kind == "infinite":
        matrix[rng.random((size, size)) < 0.1] = 0.0
        x[rng.integers(size)] = -np.inf
    elif kind == "not a number":
        x[rng.integers(size)] = np.nan
    elif kind == "subnormal":
        x *= 1e-308
    return np.tril(matrix) + np.tril(matrix, -1).T, x


KINDS = ["plain", "ill-scaled", "zeros", "infinite", "not a number", "subnormal"]


@pytest.mark.parametrize("kind", KINDS)
def test_products_have_the_bits_of_the_plain_order(kind):
    for size in SIZES:
        blocks = [data(size, kind, seed) for seed in range(4)]
        with np.errstate(all="ignore"):
            wanted = [Hessian.dense(matrix)(x) for matrix, x in blocks]
            out, outs = np.full(size, np.nan), np.full(4 * size, np.nan)
            symmetric_product(tiles(blocks[0][0]), blocks[0][1], out)
            together = np.concatenate([x for _, x in blocks])
            fourfold_product(fourfold([matrix for matrix, _ in blocks]), together, outs, np.empty(8 * size))
        assert same_bits(out, wanted[0]), size
        assert same_bits(outs, np.concatenate(wanted)), size


def test_half_is_stored():
    for size in SIZES:
        matrix, _ = data(size, "plain", 0)
        assert fourfold([matrix] * 4).size == 2 * size * (size + 1)
        assert size * (size + 1) / 2 <= tiles(matrix).size <= size * (size + 16) / 2


def test_the_order_is_not_that_of_the_transposed_sums():
    """What these tests would miss if the order did not matter."""
    matrix, x = data(64, "plain", 0)
    assert not same_bits(Hessian.dense(matrix)(x), matrix @ x)


@pytest.mark.parametrize("offsets", [[0, 1], [0, 7, 8, 17], [0, 64, 128], [0, 3, CHUNK + 8, 2 * CHUNK + 21]])
def test_sums_have_the_order_of_the_twin(offsets):
    rng = np.random.default_rng(len(offsets))
    a, b = rng.standard_normal((2, offsets[-1])) * 10.0 ** rng.uniform(-8, 8, (2, offsets[-1]))
    a[::5], a[1::7] = -0.0, 0.0
    twin, at = Sums(offsets), np.array(offsets)
    for sum_of, block_sum, terms in (
        (sums.absolute_sum, sums.absolute_block_sum, np.abs(a)),
        (sums.product_sum, sums.product_block_sum, a * b),
        (sums.sign_sum, None, np.sign(a) * b),
    ):
        assert same_bits(sum_of(at, a, b), twin.total(terms))
        if block_sum is not None:
            blocks = [block_sum(a, b, low, high) for low, high in pairwise(offsets)]
            assert same_bits(blocks, twin.blocks(terms))


def test_uncompiled_kernels_agree():
    """The kernels run without a compiler too, and say the same."""
    tests = Path(__file__)
    names = "products_have_the_bits or sums_have"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", str(tests), "-k", names],
        env=os.environ | {"NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.startswith("." * 10), done.stdout


# -- runs ----------------------------------------------------------------------------------------------


def dense_problem(sizes: list[int], seed: int = 0) -> BlockQuadratic:
    rng = np.random.default_rng(seed)
    spectra = [np.append(np.exp(rng.normal(-2.0, 1.5, size - 1)), 4.0) / 4.0 for size in sizes]
    return BlockQuadratic.from_spectra(spectra, basis="haar", seed=seed)


def test_where_half_of_it_is_stored():
    p = BlockQuadratic.from_spectra(
        [np.ones(size) for size in (9, 9, 9, 9, 9, 3, 30, 12, 20)],
        basis=["haar"] * 7 + ["axis", Householder(2)],
    )
    packed, half = p.packed(), p.packed_symmetric()
    assert half.kinds.tolist() == [*[c.FOURFOLD] * 4, c.SYMMETRIC, c.DENSE, c.SYMMETRIC, 1, 2]
    assert packed.kinds.tolist() == [*[c.DENSE] * 7, 1, 2]
    assert half.data_offsets[-1] == half.data.size < packed.data.size
    assert not half.data.flags.writeable and half is p.packed_symmetric()
    assert p.with_start(np.ones(p.size)).packed_symmetric() is half
    tiny = dense_problem([MIN_SIZE - 1] * 5)
    assert tiny.packed_symmetric() is tiny.packed()


def test_a_batch_does_not_pay_for_it():
    problems = [dense_problem([12, 12], seed) for seed in range(8)]
    stop = GradientNorm(1e-12)
    solve_many(problems, GD(0.5), stop, max_iterations=5)
    assert not any("packed_symmetric" in p.cache for p in problems)
    solve(problems[0], GD(0.5), stop, max_iterations=5)
    assert "packed_symmetric" in problems[0].cache


SHAPES = [[8], [17], [9] * 4, [24, 8, 8, 8, 8, 8, 3], [50] * 5, [130]]


@pytest.mark.parametrize("sizes", SHAPES, ids=str)
@pytest.mark.parametrize(
    "method", [GD("lambda_g"), GD("line_search"), SignSGD("lambda_p"), Adam(1e-2)], ids=str
)
def test_statistics_are_those_of_the_whole_matrix(sizes, method):
    p, stop = dense_problem(sizes), GradientNorm(1e-2, ord=1, relative=True)
    names = [name for name in STATISTICS if isinstance(method, Adam) or "denominator" not in name]
    options = {"max_iterations": 60, "statistics": names, "record": 9}
    assert_same(solve(p, method, stop, **options), solve(p, method, stop, fused=False, **options))


@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_noise_is_that_of_the_whole_matrix(sizes):
    p, stop = dense_problem(sizes).with_noise(0.1), GradientNorm(1e-3)
    whole = solve(p, Adam(1e-2), stop, max_iterations=300, fused=False)
    assert_same(solve(p, Adam(1e-2), stop, max_iterations=300), whole)
    part = solve(p, Adam(1e-2), stop, max_iterations=123)
    assert_same(solve(p, Adam(1e-2), stop, max_iterations=300, resume=part), whole)


def test_a_saved_zero_of_either_sign_changes_nothing(tmp_path):
    """0.0 opposite -0.0 counts as symmetric: neither adds anything."""
    matrix = np.diag(np.arange(1.0, 10.0))
    matrix[np.triu_indices(9, 1)] = -0.0
    p = BlockQuadratic.from_blocks([matrix], start=np.linspace(-1.0, 1.0, 9))
    p.save(tmp_path / "p.npz")
    for problem in (p, load(tmp_path / "p.npz")):
        runs = [
            solve(problem, GD(0.2), GradientNorm(1e-6), max_iterations=50, fused=f) for f in (True, False)
        ]
        assert_same(*runs)
