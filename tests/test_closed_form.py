"""Counts without iterations: the modes against the recurrences, the counts against the solver."""

from __future__ import annotations

import decimal
import math
import time

import numpy as np
import pytest

import quadlab as ql
from quadlab.closed_form import first_order, heavy_ball, hitting_time, linear_iteration, nesterov
from quadlab.curvature import frozen_preconditioner

MOMENTA = (0.05, 0.3, 0.5, 0.9, 0.99)
#: name -> (modes of z and mu, largest stable z, the z at which the roots are equal)
FAMILIES = {
    "gd": (lambda z, mu: first_order(z), lambda mu: 2.0, lambda mu: 1.0),
    "momentum": (heavy_ball, lambda mu: 2.0 * (1.0 + mu), lambda mu: (1.0 - math.sqrt(mu)) ** 2),
    "nesterov": (
        nesterov,
        lambda mu: 2.0 * (1.0 + mu) / (1.0 + 2.0 * mu),
        lambda mu: ((1.0 - mu) / (1.0 + mu)) ** 2,
    ),
}


def simulated(name, z, mu, steps):
    """The coordinate of each mode, iterated as the method is written: shape (steps + 1, n)."""
    x, v = np.ones_like(z), np.zeros_like(z)
    rows = [x]
    for _ in range(steps):
        g = z * x
        v = mu * v + g
        x = x - {"gd": g, "momentum": v, "nesterov": g + mu * v}[name]
        rows.append(x)
    return np.array(rows)


def draw(rng, name):
    """Modes of all kinds: far from the stable edge and at it, with equal roots, with z = 1."""
    modes, edge, double = FAMILIES[name]
    mu = float(rng.choice([*MOMENTA, rng.uniform(0.01, 0.99)]))
    z = edge(mu) * 0.9999 * 10.0 ** rng.uniform(-5.0, 0.0, rng.integers(2, 9))
    if rng.random() < 0.4:
        z[0] = double(mu)
    if rng.random() < 0.3:
        z[-1] = 1.0
    return modes(z, mu), simulated(name, z, mu, 300)


@pytest.mark.parametrize("name", FAMILIES)
def test_modes_are_the_recurrences(name):
    rng = np.random.default_rng(1)
    for _ in range(60):
        modes, expected = draw(rng, name)
        values = np.array([modes.values(t) for t in range(len(expected))])
        assert np.abs(values - expected).max() <= 1e-11 * np.abs(expected).max()
        fallen = np.diff(np.square(values[:, modes.falling]), axis=0)
        assert (fallen <= 1e-15).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_first_hit_is_found_where_the_sum_rises_again(name):
    rng = np.random.default_rng(2)
    rising = 0
    for _ in range(300):
        modes, rows = draw(rng, name)
        shares = 10.0 ** rng.uniform(-3.0, 3.0, rows.shape[1])
        sums = np.square(rows) @ shares
        tolerance = sums[rng.integers(len(sums))] * (1.0 + 1e-4)
        if tolerance < 1e-25 * sums[0]:  # what is left there is rounding
            continue
        hits = np.flatnonzero(sums <= tolerance)
        assert hitting_time(modes, shares, tolerance, 300) == hits[0]
        assert hitting_time(modes, shares, tolerance, int(hits[0]) - 1) is None
        rising += bool((sums[hits[0] :] > tolerance).any())
    assert rising == 0 if name == "gd" else rising > 30


def test_two_modes_that_cancel_for_one_step():
    """Bisection on the sum itself would find the second hit: the first is an island."""
    modes = heavy_ball(np.array([0.2, 0.21]), 0.95)
    sums = [float(np.square(modes.values(t)).sum()) for t in range(60)]
    first = int(np.argmin(sums[:15]))
    tolerance = sums[first] * 1.01
    assert sums[first + 3] > 10.0 * tolerance
    assert hitting_time(modes, np.ones(2), tolerance) == first


def test_hitting_time_at_the_edges():
    def count(eigenvalues, rate, tolerance):
        return hitting_time(first_order(rate * np.array(eigenvalues)), np.ones(len(eigenvalues)), tolerance)

    assert count([1.0, 2.0], 0.5, 2.0) == 0  # already there
    assert count([1.0, 1.0], 1.0, 1e-300) == 1  # rho = 0
    assert count([0.0, 1.0], 1.0, 0.5) is None  # a share that never moves
    assert count([0.0, 1.0], 0.5, 1.5) == 1
    assert count([2.0, 1.0], 1.0, 0.5) is None  # |1 - eta a| = 1
    assert count([1e-320, 1.0], 1.0, 0.5) is None
    assert count([1e-12], 1.0, math.exp(-2.0)) == pytest.approx(1e12, rel=1e-9)
    assert count([2 - 1e-12], 1.0, math.exp(-2.0)) == pytest.approx(1e12, rel=1e-3)
    assert hitting_time(heavy_ball(np.array([0.0, 0.5]), 0.9), np.ones(2), 0.5) is None


@pytest.mark.parametrize("name", ["momentum", "nesterov"])
def test_a_billion_updates_to_the_last(name):
    """A count near 10^9 against 50 decimal digits."""
    z, mu, tolerance = 1e-9, 0.9, 1e-7
    with decimal.localcontext(prec=50):
        one, d, m = decimal.Decimal(1), decimal.Decimal(z), decimal.Decimal(mu)
        trace, determinant, first = (
            (one + m - d, m, one - d)
            if name == "momentum"
            else ((one + m) * (one - d), m * (one - d), one - (one + m) * d)
        )
        root = (trace * trace / 4 - determinant).sqrt()
        p, q = trace / 2 + root, trace / 2 - root
        share = (first - q) / (p - q)
        exact = (decimal.Decimal(tolerance) / share**2).ln() / (2 * p.ln())
    count = hitting_time(FAMILIES[name][0](np.array([z]), mu), np.ones(1), tolerance)
    assert count == math.ceil(exact) and 0.7e9 < count < 1.2e9


@pytest.mark.parametrize("method", [ql.GD(0.02), ql.GD(0.002, momentum=0.9), ql.FrozenAdam(1e-8, beta1=0.9)])
def test_a_billion_updates_of_ten_thousand_parameters_take_milliseconds(method):
    values = np.geomspace(1e-7, 1.0, 10**4)
    problem = ql.BlockQuadratic.from_blocks([values], start=np.ones(10**4))
    iteration = linear_iteration(problem, method, method.learning_rate)
    tolerance = 1e-11 * iteration.measured(0)["gap"]
    taken = []
    for _ in range(5):
        begin = time.process_time()
        count = iteration.count("gap", tolerance, 10**12)
        taken.append(time.process_time() - begin)
    print(f"{method}: T = {count:,} in {1e3 * min(taken):.1f} ms")
    assert count > 10**9 and min(taken) < 0.1
    assert iteration.measured(count)["gap"] <= tolerance < iteration.measured(count - 1)["gap"]


# -- against the solver --------------------------------------------------------------------------------------


def random_problem(rng):
    sizes = rng.integers(1, 5, rng.integers(1, 4))
    spectra = [10.0 ** rng.uniform(-2.0, 0.0, size) for size in sizes]
    basis = str(rng.choice(["haar", "axis"]))
    return ql.BlockQuadratic.from_spectra(spectra, basis=basis, seed=int(rng.integers(2**31)))


def random_method(rng, problem):
    """A linear iteration with a stable step, up to close to the edge."""
    mu = float(rng.choice([0.0, *MOMENTA]))
    share = float(rng.choice([rng.uniform(0.05, 0.98), 10.0 ** rng.uniform(-2.0, 0.0) * 0.98]))
    if rng.random() < 0.4:
        edge = 2.0 * (1.0 + mu) / (1.0 - mu)
        return ql.FrozenAdam(share * edge / frozen_preconditioner(problem).largest, beta1=mu)
    is_nesterov = mu > 0.0 and rng.random() < 0.5
    edge = 2.0 * (1.0 + mu) / (1.0 + 2.0 * mu if is_nesterov else 1.0)
    return ql.GD(share * edge / ql.curvature(problem).largest, momentum=mu, nesterov=is_nesterov)


def test_a_thousand_counts_equal_the_simulated_ones():
    """Equal unless the measured quantity is within 1e-6 of the tolerance at either count (theory 5.4)."""
    rng = np.random.default_rng(3)
    long, ties, kinds = 0, 0, set()
    for _ in range(1000):
        problem = random_problem(rng)
        method = random_method(rng, problem)
        stop = ql.Gap(10.0 ** rng.uniform(-9.0, -1.0), relative=True)
        if isinstance(method, ql.GD) and rng.random() < 0.5:
            stop = ql.GradientNorm(10.0 ** rng.uniform(-5.0, -1.0), ord=2, relative=True)
        run = ql.solve(problem, method, stop, max_iterations=3000)
        exact = ql.solve(problem, method, stop, max_iterations=3000, closed_form=True)
        assert exact.closed_form and not run.closed_form
        if (exact.status, exact.iterations) != (run.status, run.iterations):
            iteration = linear_iteration(problem, method, method.learning_rate)
            values = [iteration.measured(t)[stop.quantity] for t in (run.iterations, exact.iterations)]
            assert min(abs(value / run.tolerance - 1.0) for value in values) < 1e-6, (method, stop)
            ties += 1
            continue
        long += run.iterations > 50
        kinds.add((type(method), getattr(method, "nesterov", None), stop.quantity))
        assert exact.tolerance == pytest.approx(run.tolerance, rel=1e-10)
        size = np.abs(problem.displacement).max()
        np.testing.assert_allclose(exact.point, run.point, rtol=0, atol=1e-9 * size)
    assert ties <= 5 and long > 300 and len(kinds) == 5


def test_the_run_says_how_it_was_made():
    problem = ql.case("het-axis", seed=0)
    method, stop = ql.GD("optimal"), ql.GradientNorm(1e-3, ord=2)
    run = ql.solve(problem, method, stop)
    exact = ql.solve(problem, method, stop, closed_form=True)
    assert exact.iterations == run.iterations and exact.converged and exact.trace is None
    assert "in closed form" in repr(exact) and "closed form" not in repr(run)
    assert exact.initial["grad_l2"] == pytest.approx(run.initial["grad_l2"], rel=1e-12)
    assert exact.final["grad_l2"] == pytest.approx(run.final["grad_l2"], rel=1e-6)
    capped = ql.solve(problem, method, stop, max_iterations=run.iterations - 1, closed_form=True)
    assert (capped.status, capped.iterations) == (ql.Status.MAX_ITERATIONS, run.iterations - 1)
    assert ql.solve(problem, method, ql.Gap(1.0, relative=True), closed_form=True).iterations == 0


def test_a_singular_block_keeps_its_null_space():
    problem = ql.BlockQuadratic.from_spectra([[0.0, 1.0, 3.0]], basis="haar", seed=4)
    for method in (ql.GD(0.2, momentum=0.5), ql.FrozenAdam(0.5, beta1=0.5)):
        run, exact = (
            ql.solve(problem, method, ql.Gap(1e-6, relative=True), closed_form=how) for how in (False, True)
        )
        assert exact.iterations == run.iterations
        np.testing.assert_allclose(exact.point, run.point, atol=1e-9)


L2 = ql.GradientNorm(1e-3, ord=2)
REFUSED = [
    ({"method": ql.SignSGD(0.1)}, r"closed_form goes with GD and with Adam of beta2 = 1, received SignSGD"),
    ({"method": ql.GD("lambda_g")}, "closed_form needs a constant learning_rate, received lambda_g"),
    ({"method": ql.GD(lambda t: 0.1)}, "closed_form needs a constant learning_rate, received <lambda>"),
    ({"method": ql.GD(1.5)}, r"closed_form needs a stable step, at most 1 here, received 1\.5"),
    ({"method": ql.GD(1.6, momentum=0.5)}, r"a stable step, at most 1\.5 here, received 1\.6"),
    ({"method": ql.GD(0.8, momentum=0.5, nesterov=True)}, r"at most 0\.75 here, received 0\.8"),
    ({"method": ql.Adam(0.1)}, r"closed_form needs Adam with beta2 = 1, received beta2 = 0\.999"),
    ({"method": ql.Adam(0.1, 0.0, 1.0)}, "epsilon = 0 and weight_decay = 0, received 1e-08 and 0"),
    ({"method": ql.Adam(0.1, 0.5, 1.0, 0.0)}, "bias_correction=False where beta1 > 0"),
    ({"method": ql.FrozenAdam(0.1), "stop": L2}, r"closed_form goes with gap of .*, received \|\|g\|\|_2"),
    ({"stop": ql.GradientNorm(1e-3, ord=1)}, r"goes with gap and grad_l2 of .*, received \|\|g\|\|_1"),
    ({"stop": ql.GradientNorm(1e-3, ord=math.inf)}, r"received \|\|g\|\|_inf"),
    ({"record": 1}, "closed_form goes without record, received 1"),
    ({"callback": print}, "closed_form goes without callback"),
    ({"statistics": "sup_lambda_g"}, "closed_form goes without statistics, received sup_lambda_g"),
    ({"problem": "noisy"}, "closed_form goes without noise"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_has_no_closed_form_is_refused(changes, message):
    problem = ql.BlockQuadratic.from_blocks([[1.0, 2.0]], start=[1.0, 1.0])
    if "problem" in changes:
        changes = {"problem": problem.with_noise(1.0)}
    arguments = {"problem": problem, "method": ql.GD(0.5), "stop": ql.Gap(1e-3), **changes}
    with pytest.raises(ValueError, match=message):
        ql.solve(**arguments, closed_form=True)
