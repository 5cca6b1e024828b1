"""Steepest descent under a norm, and Adam-mini: the directions, what they reduce to, and every way in."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest

import quadlab as ql
from quadlab.bounds import Setting
from quadlab.cli import main
from quadlab.falsify import method_text
from quadlab.methods import METHODS, parse_method

NORMS = ("l2", "linf", "block")


@pytest.fixture(scope="module")
def problem():
    return ql.BlockQuadratic.from_spectra(
        [[1.0, 4.0, 9.0], [0.5, 2.0], [20.0]], basis="haar", gradient_norms=[3.0, 1.0, 0.5], seed=7
    )


def first_direction(problem, method):
    """d_0 from one update with step 1/8."""
    run = ql.solve(problem, method, ql.GradientNorm(1e-12), max_iterations=1)
    return (problem.start - run.point) * 8.0


def dual(problem, g, norm):
    blocks = sum(float(np.linalg.norm(part)) for part in problem.split(g))
    return {"l2": float(np.linalg.norm(g)), "linf": float(np.abs(g).sum()), "block": blocks}[norm]


def primal(problem, u, norm):
    blocks = max(float(np.linalg.norm(part)) for part in problem.split(u))
    return {"l2": float(np.linalg.norm(u)), "linf": float(np.abs(u).max()), "block": blocks}[norm]


@pytest.mark.parametrize("norm", NORMS)
def test_the_direction_is_steepest(problem, norm):
    """||d|| = ||g||_* and g.d = ||g||_*^2: no unit vector does better, by the definition of the dual norm."""
    g = problem.gradient(problem.start)
    d = first_direction(problem, ql.SteepestDescent(0.125, norm))
    assert primal(problem, d, norm) == pytest.approx(dual(problem, g, norm), rel=1e-12)
    assert g @ d == pytest.approx(dual(problem, g, norm) ** 2, rel=1e-12)
    rng = np.random.default_rng(0)
    for _ in range(200):
        u = rng.standard_normal(g.size)
        assert g @ u <= dual(problem, g, norm) * primal(problem, u, norm) * (1 + 1e-12)


@pytest.mark.parametrize("rate", ["lemma", "line_search", 0.04])
def test_l2_is_gd_to_the_bit(problem, rate):
    for order in (1, 2):
        stop = ql.GradientNorm(1e-6, order, relative=True)
        one, other = (ql.solve(problem, m(rate), stop) for m in (ql.SteepestDescent, ql.GD))
        assert one.converged and one.iterations == other.iterations
        assert one.point.tobytes() == other.point.tobytes()


@pytest.mark.parametrize("rate", ["lemma", "line_search"])
def test_linf_is_sign_descent(problem, rate):
    stop = ql.GradientNorm(1e-2, 1, relative=True)
    one, other = (ql.solve(problem, m, stop) for m in (ql.SteepestDescent(rate, "linf"), ql.SignSGD(rate)))
    assert one.converged and one.iterations == other.iterations
    np.testing.assert_allclose(one.point, other.point, rtol=1e-9)


def test_block_is_gd_on_one_block_and_sign_descent_on_scalars():
    stop = ql.GradientNorm(1e-3, 2, relative=True)
    whole = ql.BlockQuadratic.from_spectra([[1.0, 3.0, 7.0]], basis="haar", seed=1)
    single = ql.BlockQuadratic.from_spectra([[1.0], [3.0], [7.0]], seed=1)
    for p, same in ((whole, "l2"), (single, "linf")):
        one, other = (ql.solve(p, ql.SteepestDescent(0.01, norm), stop) for norm in ("block", same))
        assert one.converged and one.iterations == other.iterations
        np.testing.assert_allclose(one.point, other.point, rtol=1e-9)


def test_the_bound_reduces_to_those_of_gd_and_signsgd_exactly():
    rng = np.random.default_rng(3)

    def value(name, p, method, stop, statistics=None):
        entry, s = ql.bounds()[name], Setting.of(p, method, stop, statistics)
        return entry(s if s.test in entry.targets else s.at(entry.targets[0]))

    for _ in range(50):
        spectra = [10.0 ** rng.uniform(-2, 2, n) for n in rng.integers(1, 5, 3)]
        p = ql.BlockQuadratic.from_spectra(spectra, basis="haar", seed=int(rng.integers(2**31)))
        statistics = {"sup_lambda_g": rng.uniform(0.1, 1.0) * ql.curvature(p).largest}
        eps = 10.0 ** rng.uniform(-3, 0)
        for stop in (ql.GradientNorm(eps, 2), ql.GradientNorm(eps, 1), ql.Gap(eps)):
            one = value("steepest.weighted", p, ql.SteepestDescent("lemma", "l2"), stop, statistics)
            assert one == value("gd.gradient_weighted", p, ql.GD("lemma"), stop, statistics)
            one = value("steepest.weighted", p, ql.SteepestDescent("lemma", "linf"), stop)
            assert one == value("signsgd.parameter_weighted", p, ql.SignSGD("lemma"), stop)
            assert one == value("adam_mini.parameter_weighted", p, ql.AdamMini("lemma", 0, 0, 0), stop)
        rate = 1.0 / ql.curvature(p).largest
        stop = ql.GradientNorm(eps, 2)
        one = value("steepest.constant_step", p, ql.SteepestDescent(rate), stop)
        assert one == pytest.approx(value("gd.constant_step", p, ql.GD(rate), stop), rel=1e-12)


def test_the_norms_of_one_block_and_of_scalars_agree():
    """K and tau_* of "block" are those of "l2" for one block, of "linf" for blocks of one parameter."""
    stop = ql.GradientNorm(0.1, 2)
    for spectra, same in (([[1.0, 3.0, 7.0]], "l2"), ([[1.0], [3.0], [7.0]], "linf")):
        p = ql.BlockQuadratic.from_spectra(spectra, seed=1)
        settings = [Setting.of(p, ql.SteepestDescent(0.01, norm), stop) for norm in ("block", same)]
        one, other = (ql.bounds()["steepest.constant_step"](s) for s in settings)
        assert one == pytest.approx(other, rel=1e-12)


def numpy_adam_mini(problem, rate, beta1, beta2, epsilon, updates):
    x, offsets = problem.displacement.copy(), problem.offsets
    m, v = np.zeros(x.size), np.zeros(problem.n_blocks)
    for t in range(1, updates + 1):
        g = problem.hvp(x)
        m = beta1 * m + (1 - beta1) * g
        squares = np.array([np.mean(g[a:b] ** 2) for a, b in itertools.pairwise(offsets)])
        v = beta2 * v + (1 - beta2) * squares
        denominator = np.sqrt(v / (1 - beta2**t)) + epsilon
        x = x - rate * (m / (1 - beta1**t)) / np.repeat(denominator, np.diff(offsets))
    return problem.minimizer + x


@pytest.mark.parametrize("betas", [(0.0, 0.0, 0.0), (0.0, 0.99, 1e-8), (0.9, 0.999, 1e-3)])
def test_adam_mini_is_what_it_says(problem, betas):
    run = ql.solve(problem, ql.AdamMini(0.01, *betas), ql.GradientNorm(1e-12), max_iterations=60)
    np.testing.assert_allclose(run.point, numpy_adam_mini(problem, 0.01, *betas, 60), atol=1e-11)


def test_adam_mini_is_adam_on_blocks_of_one_parameter():
    p = ql.BlockQuadratic.from_spectra([[1.0], [3.0], [7.0]], seed=1)
    stop = ql.GradientNorm(1e-12)
    one, other = (ql.solve(p, m(0.01), stop, max_iterations=500) for m in (ql.AdamMini, ql.Adam))
    np.testing.assert_allclose(one.point, other.point, rtol=1e-12)


def test_adam_mini_without_memory_normalises_blocks(problem):
    g = problem.gradient(problem.start)
    d = first_direction(problem, ql.AdamMini(0.125, 0, 0, 0))
    for part, along in zip(problem.split(g), problem.split(d), strict=True):
        np.testing.assert_allclose(along, math.sqrt(part.size) * part / np.linalg.norm(part), rtol=1e-12)


def test_a_block_without_gradient_stays():
    p = ql.BlockQuadratic.from_blocks([[1.0, 2.0], [3.0]], start=[0.0, 0.0, 1.0], minimizer=[0.0] * 3)
    for method in (ql.AdamMini(0.1, 0, 0, 0), ql.SteepestDescent(0.1, "block")):
        run = ql.solve(p, method, ql.GradientNorm(1e-12), max_iterations=3)
        assert run.point[:2].tolist() == [0.0, 0.0] and run.point[2] < 1.0


METHODS_HERE = [
    ql.SteepestDescent("lemma"),
    ql.SteepestDescent(0.01, "linf"),
    ql.SteepestDescent("line_search", norm="block"),
    ql.AdamMini(0.01),
    ql.AdamMini("lemma", beta1=0.0, beta2=0.5, epsilon=1e-3),
]


@pytest.mark.parametrize("method", METHODS_HERE, ids=str)
def test_every_way_in(method, problem, tmp_path, capsys):
    """One by one and in a batch, resumed, as text, saved, compared, on the command line and in a sweep."""
    stop = ql.GradientNorm(1e-2, 1, relative=True)
    run = ql.solve(problem, method, stop, max_iterations=2000)
    many = ql.solve_many([problem] * 8, method, stop, max_iterations=2000)
    assert {r.point.tobytes() for r in many} == {run.point.tobytes()}
    part = ql.solve(problem, method, stop, max_iterations=3)
    assert (
        ql.solve(problem, method, stop, max_iterations=2000, resume=part).point.tobytes()
        == run.point.tobytes()
    )
    text = method_text(method)
    assert parse_method(text) == method and method.name in METHODS
    assert eval(repr(method), vars(ql)) == method
    file = tmp_path / "p.npz"
    problem.save(file)
    assert main(["compare", str(file), "--methods", text, "--eps", "1e-2", "--relative", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["runs"]
    assert told["iterations"] == (run.iterations if run.converged else told["iterations"])
    names = {entry["name"] for entry in told["bounds"] if entry["applies"]}
    assert (
        run.method.learning_rate == 0.01
        or any(name.startswith(method.family) for name in names)
        or (method.family == "adam_mini" and method.beta2)
    )
    table = ql.sweep({"fixed": {"problem": str(file), "method": text, "eps": 1e-2, "relative": True}})
    assert next(iter(table.rows()))["iterations"] == told["iterations"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ql.SteepestDescent(0.1, "l1"), "norm must be one of l2, linf, block, received 'l1'"),
        (lambda: ql.SteepestDescent("m_star", "linf"), "'m_star' does not go with SteepestDescent"),
        (lambda: ql.SteepestDescent("lambda_g"), "does not go with"),
        (lambda: ql.AdamMini(0.1, beta2=1.0), r"beta2 must be in \[0, 1\), received 1.0"),
        (lambda: ql.AdamMini(0.1, epsilon=-1.0), "epsilon must be finite and >= 0"),
        (lambda: parse_method("steepest:0.1:beta1=0.5"), "beta1"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
