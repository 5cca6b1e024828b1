"""Four doubles as one value: the rules of the methods give each entry the bits that they give a double."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
from numba import njit

from quadlab.kernels.elements import adam, average, flush, sign
from quadlab.kernels.fours import LENGTH, added, entry_at, every, load, spread, store

SPECIAL = [0.0, 1.0, 1.5, np.pi, 1e-290, 0.9e-290, 1e-310, 5e-324, 1e-160, 1e154, 1e308, np.inf, np.nan]
VALUES = np.array([s * v for v in SPECIAL for s in (1.0, -1.0)])

RULES = {
    "flush": lambda a, b: flush(a),
    "sign": lambda a, b: sign(a),
    "average": lambda a, b: average(a, b, 0.9),
    "adam": lambda a, b: adam(a, abs(b), 10.0, 1.5, 1e-8),
    "adam 0/0": lambda a, b: adam(a, abs(b) * 0.0, 1.0, 1.0, 0.0),
    "sums": lambda a, b: (a + b) - abs(b),
    "with doubles": lambda a, b: (2.0 * a + 1.0) / (b - 3.0),
}


@pytest.mark.parametrize("name", RULES)
def test_entries_have_the_bits_of_doubles(name: str) -> None:
    rule = njit(error_model="numpy")(RULES[name])

    @njit(error_model="numpy")
    def in_fours(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        for i in range(0, a.size, LENGTH):
            store(rule(load(a, i), load(b, i)), out, i)

    @njit(error_model="numpy")
    def one_by_one(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        for i in range(a.size):
            out[i] = rule(a[i], b[i])

    pairs = np.array(list(itertools.product(VALUES, VALUES)))
    a, b = np.ascontiguousarray(pairs.T)
    assert a.size % LENGTH == 0
    fours, ones = np.empty(a.size), np.empty(a.size)
    in_fours(a, b, fours)
    one_by_one(a, b, ones)
    known = ~np.isnan(ones)  # which NaN it is, is not defined
    assert np.array_equal(np.isnan(fours), ~known)
    assert np.array_equal(fours[known].view(np.int64), ones[known].view(np.int64))


def test_what_takes_both() -> None:
    @njit
    def folded(a: np.ndarray) -> float:
        return added(added(-0.0, load(a, 1) * 1e16), load(a, 5))

    @njit
    def fours(a: np.ndarray, out: np.ndarray) -> tuple[bool, bool, bool]:
        four = added(load(a, 1), spread(2.0))
        store(four + entry_at(a, (0, 2, 4, 1), 3), out, 0)
        return every(four > 2.9), every(four > 3.0), every(entry_at(a, 3, 2) == 5.0)

    a, out = np.arange(9.0), np.empty(4)
    assert fours(a, out) == (True, False, True)
    assert out.tolist() == [6.0, 9.0, 12.0, 10.0]
    assert folded(a) == ((((1e16 + 2e16) + 3e16) + 4e16 + 5.0) + 6.0) + 7.0 + 8.0


POINTS = """
import quadlab as ql
for blocks in ([3, 2, 1], [1, 2, 3, 3, 2]):
    problem = ql.BlockQuadratic.from_spectra(ql.LogUniform(1.0, 100.0), sizes=blocks, basis="haar", seed=0)
    for method in (ql.GD(1e-3), ql.GD("lambda_g"), ql.SignSGD(1e-3), ql.SignSGD("lambda_p"), ql.Adam(1e-3)):
        order = 1 if isinstance(method, ql.SignSGD) else 2
        run = ql.solve(problem, method, ql.GradientNorm(1e-9, ord=order, relative=True), max_iterations=25)
        print(run.iterations, run.point.tobytes().hex())
"""


def test_uncompiled_runs_have_the_same_bits() -> None:
    compiled, plain = (
        subprocess.run(
            [sys.executable, "-c", POINTS], env=os.environ | {"NUMBA_DISABLE_JIT": off}, capture_output=True,
            text=True, check=True,
        ).stdout
        for off in ("0", "1")
    )  # fmt: skip
    assert compiled.count("\n") == 10
    assert plain == compiled
