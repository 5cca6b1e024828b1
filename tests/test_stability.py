"""The preconditioned Hessian's largest eigenvalue along Adam's runs, and the edge that it settles near."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import quadlab as ql
from quadlab.bounds.adam import stability_edge
from quadlab.steps import inverse_sqrt

NEVER = ql.Gap(1e-300)


def numpy_sharpness(problem, method, updates):
    """lam_max at every update, with dense eigenvalues of the whole matrix."""
    x, h = problem.displacement.copy(), problem.dense_hessian()
    m, v, found = np.zeros(x.size), np.zeros(x.size), []
    for t in range(1, updates + 1):
        g = h @ x
        m = method.beta1 * m + (1 - method.beta1) * g
        v = (
            g**2
            if method.frozen and t == 1
            else v
            if method.frozen
            else method.beta2 * v + (1 - method.beta2) * g**2
        )
        bias = method.bias_correction
        mhat = m / (1 - method.beta1**t) if bias else m
        vhat = v / (1 - method.beta2**t) if bias and not method.frozen else v
        d = np.sqrt(vhat) + method.epsilon
        found.append(np.linalg.eigvalsh(h / np.sqrt(np.outer(d, d))).max())
        x = x - method.learning_rate * mhat / d
    return np.array(found)


@pytest.mark.parametrize(
    "method",
    [
        ql.Adam(0.01),
        ql.Adam(0.01, 0.0, 0.9, 1e-3),
        ql.RMSProp(0.01),
        ql.FrozenAdam(0.01),
        ql.FrozenAdam(0.01, 0.5),
    ],
    ids=str,
)
@pytest.mark.parametrize("basis", ["haar", "axis", ql.Householder(1)])
def test_against_dense_eigenvalues(method, basis):
    p = ql.BlockQuadratic.from_spectra(
        [[1.0, 3.0, 9.0], [0.5, 2.0], [20.0]], basis=[basis, basis, "axis"], seed=2
    )
    times = [0, 1, 2, 7, 40]
    found = ql.stability(p, method, NEVER, times, max_iterations=50)
    assert found.iteration.tolist() == times
    np.testing.assert_allclose(found.sharpness, numpy_sharpness(p, method, 50)[times], rtol=1e-7)
    assert found.edge.tolist() == [stability_edge(method.beta1) / 0.01] * 5


def test_large_blocks_by_lanczos(monkeypatch):
    p = ql.BlockQuadratic.from_spectra(
        [np.geomspace(0.01, 1.0, 60)] * 2, basis=["haar", ql.Householder(2)], seed=0
    )
    dense = ql.stability(p, ql.Adam(0.01), NEVER, [0, 30, 90], max_iterations=100)
    monkeypatch.setattr(sys.modules["quadlab.stability"], "DENSE_SIZE", 10)
    lanczos = ql.stability(p, ql.Adam(0.01), NEVER, [0, 30, 90], max_iterations=100)
    np.testing.assert_allclose(lanczos.sharpness, dense.sharpness, rtol=1e-9)


def test_looking_changes_nothing():
    """The run is that of solve, to the bit: stopped, capped, or looked at in its last update."""
    p = ql.case("het", seed=3)
    for stop, cap in ((ql.GradientNorm(1e-2, 1, relative=True), 5000), (NEVER, 300)):
        run = ql.solve(p, ql.Adam(0.01), stop, max_iterations=cap)
        for times in (None, [run.iterations - 1], [10**6], []):
            found = ql.stability(p, ql.Adam(0.01), stop, times, max_iterations=cap)
            assert found.run.status is run.status and found.run.iterations == run.iterations
            assert found.run.point.tobytes() == run.point.tobytes()
            assert np.all(found.iteration < run.iterations) and len(found.iteration) == len(found.sharpness)


def test_a_coordinate_without_gradient_is_left_out():
    p = ql.BlockQuadratic.from_blocks([[5.0, 2.0]], start=[0.0, 1.0], minimizer=[0.0, 0.0])
    found = ql.stability(p, ql.Adam(0.1, epsilon=0.0), NEVER, [0], max_iterations=1)
    assert found.sharpness == pytest.approx([1.0])  # 2 / |g| = 2 / 2
    still = p.with_start([0.0, 0.0])
    found = ql.stability(still, ql.Adam(0.1, epsilon=0.0), NEVER, [0], max_iterations=1)
    assert found.sharpness.size == 0 and found.run.iterations == 0


def test_the_edge_of_a_schedule():
    p = ql.case("hom", seed=0)
    found = ql.stability(p, ql.Adam(inverse_sqrt(0.1)), NEVER, [0, 3, 99], max_iterations=100)
    np.testing.assert_allclose(found.edge, 38.0 / (0.1 / np.sqrt([1, 4, 100])))


def test_it_settles_near_the_edge():
    """cohen2022, empirically: the median over random problems, in a wide interval; no theorem."""
    rng, medians = np.random.default_rng(0), []
    for seed in range(40):
        sizes = rng.integers(1, 6, rng.integers(1, 4))
        spectra = [10.0 ** rng.uniform(-3, 0, n) for n in sizes]
        p = ql.BlockQuadratic.from_spectra(spectra, basis="haar", seed=seed)
        method = ql.Adam(10 ** rng.uniform(-3, -1), rng.choice([0.0, 0.5, 0.9]), rng.choice([0.9, 0.99]))
        found = ql.stability(p, method, NEVER, range(2000, 4000, 97), max_iterations=4000)
        if len(found.ratio):
            medians.append(np.median(found.ratio))
    assert len(medians) > 35
    assert 0.85 < np.median(medians) < 1.15
    assert np.quantile(medians, 0.1) > 0.6 and np.quantile(medians, 0.9) < 1.6


@pytest.mark.parametrize(
    ("method", "times", "message"),
    [
        (ql.SignSGD(0.1), None, "method must be Adam or a relative of it"),
        (ql.Adam("lemma"), None, "learning_rate must be a number or a Schedule, received 'lemma'"),
        (ql.Adam(0.1), [1, -1], r"times must be iterations >= 0, received \[1, -1\]"),
        (ql.Adam(0.1), 5, "times must be iterations >= 0, received 5"),
        (ql.Adam(0.1), [0.5], "times must be iterations >= 0"),
    ],
)
def test_bad_input(method, times, message):
    with pytest.raises(ValueError, match=message):
        ql.stability(ql.case("het"), method, NEVER, times)
