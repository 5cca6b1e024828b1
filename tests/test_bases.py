"""Eigenbases: orthogonal, Haar-distributed where they say so, and the same bits on any number of threads."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from quadlab.bases import (
    Householder,
    Rotation,
    as_basis,
    basis_matrix,
    haar_from_gaussian,
    one_blas_thread,
    reflect,
    unit_reflectors,
)


@pytest.mark.parametrize("spec", ["axis", "haar", Rotation(0.3), Householder(1), Householder(4)], ids=repr)
@pytest.mark.parametrize("size", [1, 2, 3, 8, 70])
def test_bases_are_orthogonal(spec, size):
    q = basis_matrix(spec, size, np.random.default_rng(0))
    assert q.shape == (size, size)
    assert np.abs(q.T @ q - np.eye(size)).max() < 1e-14


def test_rotation_turns_disjoint_planes_and_leaves_the_odd_coordinate():
    q = basis_matrix(Rotation(0.7), 5)
    turn = [[math.cos(0.7), -math.sin(0.7)], [math.sin(0.7), math.cos(0.7)]]
    expected = np.eye(5)
    expected[:2, :2] = expected[2:4, 2:4] = turn
    np.testing.assert_array_equal(q, expected)
    np.testing.assert_array_equal(basis_matrix(Rotation(0), 4), np.eye(4))


def test_haar_moments():
    # Haar on O(n): E tr Q = 0, E (tr Q)^2 = 1, E (tr Q)^4 = 3 for n >= 4, E q_ij^4 = 3 / (n (n + 2)).
    q = haar_from_gaussian(np.random.default_rng(0).standard_normal((20_000, 4, 4)))
    trace = np.trace(q, axis1=1, axis2=2)
    assert abs(trace.mean()) < 5 / math.sqrt(20_000)
    assert (trace**2).mean() == pytest.approx(1, abs=0.05)
    assert (trace**4).mean() == pytest.approx(3, abs=0.35)
    assert (q**4).mean() == pytest.approx(3 / 24, rel=0.02)
    assert np.linalg.det(q).mean() == pytest.approx(0, abs=0.05)
    # The signs of the first row are free: without those of R, LAPACK's Q has a negative first entry always.
    assert (q[:, 0, 0] > 0).mean() == pytest.approx(0.5, abs=0.02)


def test_a_stack_has_the_bits_of_its_members():
    z = np.random.default_rng(0).standard_normal((7, 9, 9))
    for one, member in zip(z, haar_from_gaussian(z), strict=True):
        np.testing.assert_array_equal(haar_from_gaussian(one), member)


@pytest.mark.parametrize("size", [50, 63, 64, 200])
def test_haar_has_the_same_bits_on_any_number_of_threads(size):
    made = []
    for threads in (1, 2):
        with threadpool_limits(threads, user_api="blas"):
            made.append(basis_matrix("haar", size, np.random.default_rng(0)))
    np.testing.assert_array_equal(*made)


def test_one_blas_thread_limits_and_restores():
    def threads() -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    before = threads()
    with one_blas_thread():
        assert threads() == {1}
    assert threads() == before


LATER = """
import sys
from quadlab.bases import one_blas_thread
{before}
with one_blas_thread():
    pass
{after}
from threadpoolctl import threadpool_info
with one_blas_thread():
    print({{pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}})
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "import scipy.linalg"),
        ("", "import scipy.special"),
        # Another thread is at the beginning of the import.
        ("sys.modules['scipy.linalg'] = sys", "del sys.modules['scipy.linalg']; import scipy.linalg"),
    ],
)
def test_one_blas_thread_limits_a_library_loaded_later(before, after):
    code = LATER.format(before=before, after=after)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "{1}\n"


def test_reflections():
    u = unit_reflectors(3, 6, np.random.default_rng(0))
    np.testing.assert_allclose(np.linalg.norm(u, axis=1), 1, rtol=1e-15)
    r1, r2, r3 = (np.eye(6) - 2 * np.outer(row, row) for row in u)
    v = np.arange(6.0)
    np.testing.assert_allclose(reflect(u, v), r3 @ r2 @ r1 @ v, atol=1e-14)
    np.testing.assert_allclose(reflect(u[::-1], v), r1 @ r2 @ r3 @ v, atol=1e-14)
    assert v.tolist() == list(range(6))
    q = basis_matrix(Householder(3), 6, np.random.default_rng(0))
    np.testing.assert_allclose(q, r1 @ r2 @ r3, atol=1e-14)


def test_few_reflectors_are_not_haar():
    q = basis_matrix(Householder(2), 50, np.random.default_rng(0))
    assert np.linalg.matrix_rank(q - np.eye(50), tol=1e-10) == 2


def test_an_explicit_matrix_comes_back():
    q = basis_matrix("haar", 3, np.random.default_rng(0))
    np.testing.assert_array_equal(basis_matrix(q, 3), q)
    assert as_basis([[0, 1], [1, 0]], 2).dtype == np.float64


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rotation(math.inf), "Rotation angle must be .* received inf"),
        (lambda: Rotation(math.nan), "Rotation angle must be .* received nan"),
        (lambda: Householder(0), "Householder count must be an integer >= 1, received 0"),
        (lambda: Householder(1.5), "Householder count must be an integer >= 1, received 1.5"),
        (lambda: basis_matrix("haar", 3), "basis 'haar' needs a random generator, received None"),
        (lambda: as_basis("random", 3), "received 'random'"),
        (lambda: as_basis(np.eye(2), 3), r"must have shape \(3, 3\), received a matrix of shape \(2, 2\)"),
        (lambda: as_basis(2 * np.eye(3), 3), r"not orthogonal: max \|Q\^T Q - I\| = 3"),
        (lambda: as_basis(np.full((2, 2), np.nan), 2), "not orthogonal: .* nan"),
    ],
)
def test_bad_bases(make, message):
    with pytest.raises(ValueError, match=message):
        make()
