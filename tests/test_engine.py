"""Behaviour of the engine: exact reductions, the count, resuming, traces, batches, users' methods, Ctrl-C."""

from __future__ import annotations

import gc
import math
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from itertools import pairwise
from types import FunctionType, ModuleType

import numpy as np
import pytest

from quadlab import engine
from quadlab.bases import Householder, Rotation
from quadlab.cases import case
from quadlab.kernels import codes as c
from quadlab.methods import (
    GD,
    Adam,
    AdamW,
    FrozenAdam,
    NormalizedGD,
    RMSProp,
    SignSGD,
    arraywise,
    elementwise,
)
from quadlab.problem import BlockQuadratic
from quadlab.run import STATISTICS, Run, Status
from quadlab.solve import best_learning_rate, solve, solve_many
from quadlab.spectra import LogUniform
from quadlab.steps import Schedule, cosine, inverse_sqrt, linear_decay, warmup
from quadlab.stopping import Gap, GradientNorm

from_spectra, from_blocks = BlockQuadratic.from_spectra, BlockQuadratic.from_blocks

L1 = GradientNorm(1e-2, ord=1, relative=True)
NEVER = GradientNorm(1e-280, ord=2)  # far below what a few hundred iterations reach


def bits(a, b) -> bool:
    """Equal to the bit, but for the sign of zero; a NaN equals a NaN."""
    return np.array_equal(np.asarray(a, dtype=float), np.asarray(b, dtype=float), equal_nan=True)


def assert_same(a: Run, b: Run) -> None:
    """Everything a run reports is the same."""
    assert (a.status, a.iterations) == (b.status, b.iterations)
    assert bits(a.point, b.point) and a.tolerance == b.tolerance
    for one, other in ((a.initial, b.initial), (a.final, b.final), (a.statistics, b.statistics)):
        assert one.keys() == other.keys()
        for name in one:
            assert (one[name] is None) == (other[name] is None), name
            assert one[name] is None or bits(one[name], other[name]), (name, one[name], other[name])
    assert (a.trace is None) == (b.trace is None)
    if a.trace is not None:
        for name in ("iteration", "gap", "grad_l1", "grad_l2", "grad_linf", "lambda_g", "step", "cos_sign"):
            assert bits(getattr(a.trace, name), getattr(b.trace, name)), name


def mixed(seed: int = 0, **options) -> BlockQuadratic:
    """All storages, three scales of curvature, no zero eigenvalue."""
    spectra = [[1.0, 2.0, 3.0], [100.0, 99.0], [7.0, 8.0, 9.0, 10.0, 11.0], [40.0]]
    return from_spectra(
        spectra, basis=["haar", "axis", Householder(2), Rotation(0.3)], **{"seed": seed, **options}
    )


METHODS = {
    "gd": GD(5e-3),
    "gd-momentum": GD(2e-3, momentum=0.9),
    "gd-nesterov": GD(2e-3, momentum=0.8, nesterov=True),
    "gd-lemma": GD("lambda_g"),
    "gd-line_search": GD("line_search"),
    "gd-schedule": GD(inverse_sqrt(1e-2)),
    "signsgd": SignSGD(1e-2),
    "signum": SignSGD(1e-2, momentum=0.9),
    "signsgd-lemma": SignSGD("lambda_p"),
    "signsgd-m_star": SignSGD("m_star"),
    "normalized_gd": NormalizedGD(1e-2),
    "adam": Adam(1e-2),
    "adam-plain": Adam(1e-2, beta1=0.0, beta2=0.9, bias_correction=False),
    "adam-line_search": Adam("line_search", beta1=0.0),
    "adamw": AdamW(1e-2),
    "rmsprop": RMSProp(1e-2),
    "frozen": FrozenAdam(1e-3),
    "frozen-momentum": FrozenAdam(1e-3, beta1=0.5),
}
CONSTANT = [name for name, method in METHODS.items() if isinstance(method.learning_rate, float)]

# -- Adam with beta1 = beta2 = epsilon = 0 is SignSGD


@pytest.mark.parametrize("bias_correction", [True, False])
@pytest.mark.parametrize("rate", [1e-2, "lemma", "line_search", linear_decay(0.1, 300)], ids=str)
def test_adam_without_memory_is_signsgd(rate, bias_correction):
    adam = Adam(rate, beta1=0.0, beta2=0.0, epsilon=0.0, bias_correction=bias_correction)
    singular = from_spectra([[0.0, 2.0], [0.0, 0.0, 1.0], [5.0]], basis=["haar", "axis", "axis"], seed=3)
    for problem in (mixed(1), case("het", seed=2), case("hom-axis"), singular):
        options = {"max_iterations": 500, "record": 7, "statistics": tuple(STATISTICS)}
        a, s = (solve(problem, method, L1, **options) for method in (adam, SignSGD(rate)))
        denominators = ("sup_denominator_l1", "sup_preconditioned", "inf_preconditioned")
        for name in denominators:  # SignSGD has none
            a.statistics[name] = s.statistics[name]
        assert_same(a, s)


def test_adam_is_signsgd_over_the_whole_range():
    """|g| from 1e-144, whose square is not flushed, to 1e153, whose square does not overflow."""
    powers = np.array([-144.0, -100.0, -12.0, 0.0, 20.0, 153.0])
    start = 10.0**powers * [1.7, -2.3, 1.0, 0.0, -5.0, 3.3]
    problem = from_blocks([np.ones(6)], start=start, minimizer=np.zeros(6))
    for rate in (1e-145, 1.0, 1e140):
        adam = solve(problem, Adam(rate, 0.0, 0.0, 0.0), NEVER, max_iterations=1)
        assert bits(adam.point, solve(problem, SignSGD(rate), NEVER, max_iterations=1).point)
        assert bits(adam.point, start - rate * np.sign(start))


# -- one block, other storages, other blocks: the same quadratic


@pytest.mark.parametrize("name", METHODS)
def test_a_diagonal_block_is_a_dense_one_is_a_householder_one_without_reflectors(name):
    spectra, start = [[1.0, 30.0, 0.5, 7.0, 2.0]], [1.0, -2.0, 3.0, 0.1, -0.7]
    runs = [
        solve(
            from_spectra(spectra, basis="axis", storage=storage, start=start, minimizer=np.zeros(5)),
            METHODS[name],
            L1,
            max_iterations=400,
            record="log",
            statistics=("sup_lambda_g", "sup_curvature", "mean_cos_sign"),
        )
        for storage in ("diagonal", "dense", "householder")
    ]
    assert_same(runs[0], runs[1])
    assert_same(runs[0], runs[2])


@pytest.mark.parametrize("name", [n for n in CONSTANT if n != "normalized_gd"])
def test_one_block_equals_its_decoupled_parts(name):
    """Zeros off the blocks add nothing: one dense matrix and its blocks give the same points."""
    parts = case("het", seed=4)
    whole = from_blocks([parts.dense_hessian()], start=parts.start, minimizer=parts.minimizer)
    scalars = from_spectra([[1.0], [30.0], [0.5], [7.0]], start=np.ones(4), seed=0)
    joined = from_spectra([[1.0, 30.0, 0.5, 7.0]], start=np.ones(4), minimizer=scalars.minimizer)
    for one, other in ((whole, parts), (joined, scalars)):
        for cap in (0, 1, 2, 77):
            a, b = (solve(p, METHODS[name], NEVER, max_iterations=cap) for p in (one, other))
            assert bits(a.point, b.point) and a.iterations == b.iterations == cap
        linf = GradientNorm(0.3, ord=math.inf, relative=True)  # a maximum has no order
        a, b = (solve(p, METHODS[name], linf, max_iterations=3000) for p in (one, other))
        assert a.iterations == b.iterations and a.status == b.status and bits(a.point, b.point)


def test_a_plain_loop_agrees():
    """One block against three lines of NumPy."""
    problem = from_spectra([[1.0, 5.0, 30.0]], basis="haar", seed=1)
    hessian, x = problem.dense_hessian(), problem.displacement
    for _ in range(100):
        x = x - 0.02 * (hessian @ x)
    point = solve(problem, GD(0.02), NEVER, max_iterations=100).point
    np.testing.assert_allclose(point, problem.minimizer + x, rtol=1e-12, atol=1e-13)


# -- scaling by powers of two


# How the learning rate, and Adam's epsilon, scale with H -> a H and x -> b x.
SCALE_FREE = {
    "gd": lambda a, b: GD(5e-3 / a),
    "gd-momentum": lambda a, b: GD(2e-3 / a, momentum=0.9),
    "gd-nesterov": lambda a, b: GD(2e-3 / a, momentum=0.8, nesterov=True),
    "gd-lemma": lambda a, b: GD("lambda_g"),
    "gd-line_search": lambda a, b: GD("line_search"),
    "gd-optimal": lambda a, b: GD("optimal"),
    "signsgd": lambda a, b: SignSGD(1e-2 * b),
    "signum": lambda a, b: SignSGD(1e-2 * b, momentum=0.9),
    "signsgd-lemma": lambda a, b: SignSGD("lambda_p"),
    "signsgd-m_star": lambda a, b: SignSGD("m_star"),
    "signsgd-line_search": lambda a, b: SignSGD("line_search"),
    "normalized_gd": lambda a, b: NormalizedGD(1e-2 * b),
    "adam": lambda a, b: Adam(1e-2 * b, epsilon=1e-3 * a * b),
    "adam-plain": lambda a, b: Adam(1e-2 * b, beta1=0.0, beta2=0.9, epsilon=0.0, bias_correction=False),
    "frozen": lambda a, b: FrozenAdam(1e-3 * b),
}


@pytest.mark.parametrize("name", SCALE_FREE)
@pytest.mark.parametrize("log_a, log_b", [(0, 7), (12, 0), (-9, 20), (300, -160)])
def test_scaling_by_powers_of_two(name, log_a, log_b):
    a, b = 2.0**log_a, 2.0**log_b
    method = SCALE_FREE[name]
    spectra = np.array([[1.0, 2.0, 3.0], [99.0, 100.0, 101.0]])
    start = np.random.default_rng(0).standard_normal(6)
    base, other = (
        from_spectra(k * spectra, basis="haar", start=m * start, minimizer=np.zeros(6), seed=1)
        for k, m in ((1.0, 1.0), (a, b))
    )
    for stop in (L1, GradientNorm(1e-2, ord=2, relative=True), Gap(1e-4, relative=True)):
        one = solve(base, method(1.0, 1.0), stop, max_iterations=3000, record=50)
        two = solve(other, method(a, b), stop, max_iterations=3000, record=50)
        assert one.iterations == two.iterations and one.status == two.status
        assert bits(b * one.point, two.point)
        assert bits(a * b * b * one.trace.gap, two.trace.gap)
        assert bits(a * b * one.trace.grad_l1, two.trace.grad_l1)
        assert bits(one.trace.cos_sign, two.trace.cos_sign)


# -- permutation of blocks


@pytest.mark.parametrize("name", [n for n in CONSTANT if n != "normalized_gd"])
def test_permuting_blocks_permutes_the_run(name):
    rng = np.random.default_rng(8)
    blocks = [b.to_dense() for b in case("hom", seed=1).blocks] + [np.array([3.0, 0.2]), np.array([[70.0]])]
    starts = [rng.standard_normal(len(b)) for b in blocks]
    order = [3, 0, 4, 2, 1]

    def problem(indices):
        start = np.concatenate([starts[k] for k in indices])
        return from_blocks([blocks[k] for k in indices], start=start, minimizer=np.zeros(start.size))

    plain, permuted = problem(range(5)), problem(order)
    for stop in (GradientNorm(0.2, ord=math.inf, relative=True), L1, Gap(1e-3, relative=True), NEVER):
        one = solve(plain, METHODS[name], stop, max_iterations=900)
        two = solve(permuted, METHODS[name], stop, max_iterations=900)
        assert one.iterations == two.iterations and one.status == two.status
        parts = plain.split(one.point)
        assert bits(np.concatenate([parts[k] for k in order]), two.point)


# -- the count, the cap, relative tests


@pytest.mark.parametrize("lanes", [False, True])
@pytest.mark.parametrize(
    "stop, at_start",
    [(GradientNorm(1.0, ord=1), 3.0), (GradientNorm(1.0, ord=2), math.sqrt(3.0)),
     (GradientNorm(1.0, ord=math.inf), 1.0), (Gap(1.5), 1.5)],
)  # fmt: skip
def test_the_test_is_made_at_zero_at_one_and_at_the_cap(stop, at_start, lanes):
    """x halves at each update of H = I; the test is <=, so it holds at equality."""

    def count(start, cap):
        problem = from_blocks([np.ones(3)], start=np.full(3, start), minimizer=np.zeros(3))
        run = solve_many([problem] * 7, GD(0.5), stop, max_iterations=cap, lanes=lanes)[3]
        return run.status.value, run.iterations

    assert stop.tolerance(3) == at_start
    for cap in (0, 1, 5):
        assert count(1.0, cap) == ("converged", 0)
        assert count(np.nextafter(1.0, 0.0), cap) == ("converged", 0)
    above = np.nextafter(1.0, 2.0) * (1 + 1e-9)
    assert count(above, 0) == ("max_iterations", 0)
    assert count(above, 1) == ("converged", 1)
    assert count(2.0, 0) == ("max_iterations", 0)
    assert count(2.0, 1) == ("converged", 1)
    assert count(8.0, 2) == ("max_iterations", 2)
    assert count(8.0, 3) == ("converged", 3)
    assert count(8.0, 10**6) == ("converged", 3)


@pytest.mark.parametrize("name", METHODS)
def test_every_cap_around_the_count(name):
    problem = mixed(3)
    full = solve(problem, METHODS[name], L1, max_iterations=20_000)
    assert full.converged and full.iterations > 2
    for cap in (0, 1, 2, full.iterations - 1):
        run = solve(problem, METHODS[name], L1, max_iterations=cap)
        assert run.status is Status.MAX_ITERATIONS and run.iterations == cap and not run.converged
    for cap in (full.iterations, full.iterations + 1):
        assert_same(solve(problem, METHODS[name], L1, max_iterations=cap), full)
    before = solve(problem, METHODS[name], L1, max_iterations=full.iterations - 1)
    assert before.final["grad_l1"] > full.tolerance >= full.final["grad_l1"]


@pytest.mark.parametrize("name", ["gd", "signsgd-lemma", "adam"])
@pytest.mark.parametrize(
    "stop",
    [GradientNorm(0.03, 1, True), GradientNorm(0.03, 2, True), GradientNorm(0.03, math.inf, True),
     Gap(1e-3, True)],
    ids=str,
)  # fmt: skip
def test_a_relative_test_is_the_absolute_one_of_the_starts_value(name, stop):
    problem = mixed(2)
    relative = solve(problem, METHODS[name], stop, max_iterations=20_000)
    start = relative.initial[stop.quantity]
    gradient = problem.gradient(problem.start)
    expected = problem.value(problem.start) if isinstance(stop, Gap) else np.linalg.norm(gradient, stop.ord)
    assert start == pytest.approx(expected, rel=1e-13)
    fraction = stop.delta if isinstance(stop, Gap) else stop.eps
    assert relative.converged and relative.tolerance == fraction * start
    scale = {1: problem.size, 2: math.sqrt(problem.size)}.get(getattr(stop, "ord", None), 1.0)
    key = "delta" if isinstance(stop, Gap) else "eps"
    absolute = replace(stop, relative=False, **{key: relative.tolerance / scale})
    assert absolute.tolerance(problem.size) == pytest.approx(relative.tolerance, rel=1e-15)
    run = solve(problem, METHODS[name], absolute, max_iterations=20_000)
    assert run.iterations == relative.iterations and bits(run.point, relative.point)
    whole = replace(stop, **{key: 1.0})
    assert solve(problem, METHODS[name], whole, max_iterations=5).iterations == 0


# -- exactly zero, tiny, divergent


ZERO_PROBLEMS = {
    "at the optimum": from_spectra([[1.0, 2.0], [3.0]], start=[1.0, 2.0, 3.0], minimizer=[1.0, 2.0, 3.0]),
    "in the null space": from_spectra([[0.0, 2.0], [0.0]], start=[5.0, 0.0, 1.0], minimizer=np.zeros(3)),
    "H = 0": from_spectra([[0.0, 0.0], [0.0]], start=[5.0, 1.0, 1.0], minimizer=np.zeros(3)),
}
STOPS = [GradientNorm(1e-9, order, relative) for order in (1, 2, math.inf) for relative in (False, True)]
STOPS += [Gap(1e-9), Gap(0.5, True)]


@pytest.mark.parametrize("which", ZERO_PROBLEMS)
def test_a_run_at_exactly_zero_gradient_stops_at_zero(which):
    problem = ZERO_PROBLEMS[which]
    methods = {n: m for n, m in METHODS.items() if "frozen" not in n}
    if which == "H = 0":
        methods = {n: m for n, m in methods.items() if "m_star" not in n}
    for method in methods.values():
        for stop in STOPS:
            runs = [
                solve(problem, method, stop, record=1, max_iterations=9, statistics=tuple(STATISTICS)),
                *solve_many([problem] * 8, method, stop, max_iterations=9, statistics=tuple(STATISTICS)),
            ]
            for run in runs:
                assert (run.status, run.iterations) == (Status.CONVERGED, 0)
                assert bits(run.point, problem.start)
                assert all(v is None or not math.isnan(v) for v in run.statistics.values())
            assert runs[0].trace.iteration.tolist() == [0]


@pytest.mark.parametrize("name", METHODS)
def test_a_coordinate_that_is_exactly_zero_stays(name):
    """0/0 := 0, sign(0) = 0: coordinates without gradient do not move."""
    start = [1.0, 4.0, 0.0, 0.0, 2.0]
    problem = from_spectra([[2.0, 0.0, 1.0], [5.0, 3.0]], start=start, minimizer=np.zeros(5))
    if "frozen" in name:
        with pytest.raises(ValueError, match="received 0 at coordinate 1"):
            solve(problem, METHODS[name], L1)
        return
    run = solve(problem, replace(METHODS[name], **{"weight_decay": 0.0} if name == "adamw" else {}), L1)
    assert run.converged and run.point[[1, 2, 3]].tolist() == [4.0, 0.0, 0.0]


def test_zero_in_mid_run_converges_at_once():
    problem = from_blocks([np.array([1.0, 2.0, 4.0])], start=[3.0, 0.0, 0.0], minimizer=np.zeros(3))
    for stop in (GradientNorm(1e-300), Gap(1e-300), GradientNorm(1e-9, math.inf, True)):
        run = solve(problem, GD(1.0), stop)
        assert (run.iterations, run.converged, run.point.tolist()) == (1, True, [0.0, 0.0, 0.0])
    scalar = from_blocks([np.array([4.0])], start=[3.0], minimizer=[0.0])
    rules = (SignSGD("lemma"), SignSGD("m_star"), GD("lambda_g"), NormalizedGD("line_search"), GD("optimal"))
    for method in rules:
        run = solve(scalar, method, GradientNorm(1e-300))
        assert (run.iterations, run.converged, run.point.tolist()) == (1, True, [0.0])


def test_the_flush_boundary():
    """What an update writes is 0 under 1e-290, and itself from there on; the start is taken as it is."""
    start = np.array([4e-290, 2e-290, np.nextafter(2e-290, 0), 1e-290, 3e-300, -1.9e-290])
    problem = from_blocks([np.ones(6)], start=start, minimizer=np.zeros(6))
    run = solve(problem, GD(0.5), GradientNorm(1e-305, ord=math.inf), max_iterations=0)
    assert run.point.tolist() == start.tolist() and run.final["grad_linf"] == 4e-290
    run = solve(problem, GD(0.5), GradientNorm(1e-305, ord=math.inf), max_iterations=1)
    assert run.point.tolist() == [2e-290, 1e-290, 0.0, 0.0, 0.0, 0.0]
    run = solve(problem, GD(0.5), GradientNorm(1e-305, ord=math.inf))
    assert (run.status, run.iterations) == (Status.CONVERGED, 3) and not run.point.any()
    lanes = solve_many([problem] * 9, GD(0.5), GradientNorm(1e-305, ord=math.inf))
    assert {(r.iterations, r.point.tobytes()) for r in lanes} == {(3, np.zeros(6).tobytes())}


def test_the_flush_of_a_state():
    """Momentum v <- v/2 + g under 1e-290 is written as 0 and does not come back."""
    problem = from_blocks([np.ones(2)], start=[1.6e-290, 0.9e-290], minimizer=np.zeros(2))
    run = solve(problem, SignSGD(1e-300, momentum=0.5), GradientNorm(1e-305), max_iterations=1)
    assert run.point.tolist() == [1.6e-290, 0.0]  # v = g/2 < 1e-290 twice: no direction; x itself is flushed
    run = solve(problem, GD(0.25, momentum=0.5), GradientNorm(1e-305), max_iterations=1)
    assert run.point.tolist() == [1.6e-290 - 0.25 * 1.6e-290, 0.0]


def test_a_run_across_the_flush_boundary_costs_no_subnormals():
    problem = from_blocks([np.full(9, 1.0)], start=np.ones(9), minimizer=np.zeros(9))
    run = solve(problem, GD(0.5), GradientNorm(1e-320, ord=math.inf))
    assert run.iterations == math.ceil(290 / math.log10(2)) and not run.point.any()


@pytest.mark.parametrize("stop", STOPS, ids=str)
@pytest.mark.parametrize("lanes", [False, True])
def test_divergence_is_caught_and_never_converges(stop, lanes):
    problem = case("het", seed=1)
    problems = [problem.with_start(s * problem.start) for s in range(1, 9)]
    top = problem.block_norms.max()
    methods = [
        GD(2.5 / top),
        GD(2.0 / top, momentum=0.99, nesterov=True),
        GD(1e200),
        GD(1e308),
        FrozenAdam(50.0),
        FrozenAdam(1e200),
        GD(Schedule(lambda t: 1e200 if t > 5 else 1e-5)),
        AdamW(1.0, weight_decay=4.0),
    ]
    for method in methods:
        for run in solve_many(problems, method, stop, lanes=lanes):
            assert run.status is Status.DIVERGED and not run.converged
            assert 0 < run.iterations < 200_000
            assert not math.isfinite(run.final[stop.quantity])


def test_just_inside_and_just_outside_the_stable_steps():
    problem = from_spectra([[1.0, 3.0], [10.0]], basis=["haar", "axis"], seed=2)
    inside = solve(problem, GD(2.0 / 10.0 * (1 - 1e-3)), GradientNorm(1e-3))
    outside = solve(problem, GD(2.0 / 10.0 * (1 + 1e-3)), GradientNorm(1e-3))
    assert inside.status is Status.CONVERGED and outside.status is Status.DIVERGED
    at = solve(problem, GD(0.2), GradientNorm(1e-3), max_iterations=1000)
    assert at.status is Status.MAX_ITERATIONS


def test_a_diverging_run_beside_others_leaves_them_alone():
    problem = mixed(0)
    methods = [GD(1.0 if k % 3 == 0 else 1e-3) for k in range(60)]
    runs = solve_many([problem] * 60, methods, L1, max_iterations=5000)
    for k, run in enumerate(runs):
        assert (run.status is Status.DIVERGED) == (k % 3 == 0)
        assert_same(run, replace(solve(problem, methods[k], L1, max_iterations=5000), state=None))


# -- no direction of descent


def test_not_descent():
    @elementwise
    def Ascent(g, w, t):
        return -g

    @elementwise
    def Nothing(g, w, t):
        return 0.0 * g

    @elementwise
    def Turns(g, w, t):
        return g if t < 4 else -g

    problem = mixed(1)
    for rule in ("lemma", "line_search"):
        for make, count in ((Ascent, 0), (Nothing, 0), (Turns, 4)):
            alone = solve(problem, make(rule), L1, record=1)
            assert (alone.status, alone.iterations) == (Status.NOT_DESCENT, count) and not alone.converged
            for run in solve_many([problem] * 8, make(rule), L1):
                assert_same(run, replace(alone, trace=None, final=run.final, initial=run.initial))
        assert solve(problem, Ascent(1e-3), L1, max_iterations=10).status is Status.MAX_ITERATIONS


def test_not_descent_of_momentum():
    """Signum's direction lags the gradient, until g.d <= 0; the run says so at that iteration."""
    problem = from_blocks([np.array([1.0])], start=[1.0], minimizer=[0.0])
    run = solve(problem, SignSGD("lemma", momentum=0.9), GradientNorm(1e-9))
    # x = 1, v = .1 > 0: step 1 to x = 0 exactly
    assert (run.status, run.iterations) == (Status.CONVERGED, 1)
    problem, signum = mixed(4), SignSGD("line_search", momentum=0.9)
    run = solve(problem, signum, GradientNorm(1e-12))
    assert run.status is Status.NOT_DESCENT and run.iterations > 1 and run.final["grad_l1"] > run.tolerance
    capped = solve(problem, signum, GradientNorm(1e-12), max_iterations=run.iterations)
    assert capped.status is Status.MAX_ITERATIONS and bits(capped.point, run.point)
    for other in solve_many([problem] * 8, signum, GradientNorm(1e-12)):
        assert_same(other, replace(run, state=None))


# -- resuming

CAPS = (0, 1, 2, 17, 17, 40, 141, 300)
RECORDS = [None, 1, 7, "log", [0, 3, 17, 18, 100, 140, 141, 299, 300, 9999]]
RESUME_STATISTICS = tuple(STATISTICS)


@pytest.mark.parametrize("record", RECORDS, ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_equals_an_uninterrupted_one(name, record):
    problem = mixed(5)
    stop = GradientNorm(0.02, ord=2, relative=True)
    options = {
        "record": record,
        "statistics": RESUME_STATISTICS,
        "tail_gap_start": 9,
        "tail_displacement_start": 30.0,
    }
    run = None
    for cap in CAPS:
        run = solve(problem, METHODS[name], stop, max_iterations=cap, resume=run, **options)
        whole = solve(problem, METHODS[name], stop, max_iterations=cap, **options)
        assert_same(run, whole)
        if run.status is not Status.MAX_ITERATIONS:
            break


def test_resuming_does_not_change_the_earlier_run():
    problem = mixed(5)
    first = solve(problem, Adam(1e-2), L1, max_iterations=10, record=3)
    point, times = first.point.copy(), first.trace.iteration.copy()
    one, two = (solve(problem, Adam(1e-2), L1, max_iterations=50, record=3, resume=first) for _ in range(2))
    assert_same(one, two)
    assert bits(first.point, point) and bits(first.trace.iteration, times) and first.iterations == 10


def test_resuming_a_users_method():
    @elementwise
    def HeavyBall(g, w, t, v, decay=0.9):
        v = decay * v + (1.0 + 1.0 / (t + 1)) * g
        return v, v

    problem, method = mixed(6), HeavyBall(2e-3)
    half = solve(problem, method, L1, max_iterations=33, record=10, statistics=("sup_curvature",))
    again = solve(problem, method, L1, resume=half, record=10, statistics=("sup_curvature",))
    assert_same(again, solve(problem, method, L1, record=10, statistics=("sup_curvature",)))
    assert again.converged


# -- traces and callbacks


def test_record_times():
    problem, method = mixed(1), GD(5e-3)
    count = solve(problem, method, L1).iterations
    assert 50 < count < 1000

    def times(record, **options):
        return solve(problem, method, L1, record=record, **options).trace.iteration.tolist()

    for n in (1, 7, count, count + 1):
        expected = [*range(0, count, n), count]
        assert times(n) == expected
    log = times("log")
    assert log[0] == 0 and log[-1] == count and log[1:9] == list(range(1, 9))
    assert all(a < b for a, b in pairwise(log)) and len(log) < 60 * math.log10(count) + 3
    assert times([5, 3, 3, 10**12]) == [3, 5, count]
    assert times([]) == [count]
    assert times(np.array([2, 4])) == [2, 4, count]
    assert times(10, max_iterations=20) == [0, 10, 20]
    assert times(10, max_iterations=19) == [0, 10, 19]
    assert times(10, max_iterations=0) == [0]
    assert times([7], max_iterations=5) == [5]


def test_a_trace_shows_the_run_and_does_not_change_it():
    problem, method = mixed(1), Adam(1e-2)
    plain = solve(problem, method, L1, max_iterations=60)
    for record in (1, 13, "log", [20]):
        run = solve(problem, method, L1, max_iterations=60, record=record)
        assert bits(run.point, plain.point) and run.iterations == plain.iterations
    trace = solve(problem, method, L1, max_iterations=60, record=13).trace
    assert len(trace) == 6 and trace.iteration.dtype == np.int64
    for row, t in enumerate(trace.iteration):
        w = solve(problem, method, L1, max_iterations=int(t)).point
        g = problem.gradient(w)
        blocks = [part @ part for part in problem.split(g)]
        expected = {
            "gap": problem.value(w),
            "grad_l1": np.abs(g).sum(),
            "grad_l2": np.linalg.norm(g),
            "grad_linf": np.abs(g).max(),
            "lambda_g": np.dot(blocks, problem.block_norms) / (g @ g),
        }
        for name, value in expected.items():
            assert getattr(trace, name)[row] == pytest.approx(value, rel=1e-11), name
        if row + 1 < len(trace):
            after = solve(problem, method, L1, max_iterations=int(t) + 1).point
            d = (w - after) / 1e-2
            cosine_ = d @ np.sign(g) / np.linalg.norm(d) / math.sqrt(np.count_nonzero(g))
            assert trace.step[row] == 1e-2 and trace.cos_sign[row] == pytest.approx(cosine_, rel=1e-9)
    assert math.isnan(trace.step[-1]) and math.isnan(trace.cos_sign[-1])


def test_a_long_trace_over_many_kernel_calls():
    problem = case("het-axis", seed=0)
    run = solve(problem, SignSGD(1e-4), GradientNorm(1e-12), max_iterations=20_011, record=1)
    assert bits(run.trace.iteration, np.arange(20_012))
    coarse = solve(problem, SignSGD(1e-4), GradientNorm(1e-12), max_iterations=20_011, record=100)
    assert bits(run.trace.gap[::100], coarse.trace.gap[:-1]) and coarse.trace.iteration[-1] == 20_011


@pytest.mark.parametrize("record", [1, 9, "log", [4, 30, 31]], ids=str)
def test_callback(record):
    problem, method = mixed(2), GD(5e-3, momentum=0.5)
    seen = []
    options = {"max_iterations": 60, "record": record}
    run = solve(problem, method, L1, **options, callback=lambda t, w: seen.append((t, w)))
    assert_same(run, solve(problem, method, L1, **options))
    asked = solve(problem, method, NEVER, **options).trace.iteration
    assert [t for t, _ in seen] == [t for t in asked if t <= run.iterations]  # the end if it is to record
    for t, w in seen:
        assert bits(w, solve(problem, method, L1, max_iterations=t).point)


def test_a_callback_cannot_disturb_the_run():
    def scribble(t, w):
        w[:] = 1e9

    problem = mixed(2)
    run = solve(problem, Adam(1e-2), L1, max_iterations=60, record=5, callback=scribble)
    assert_same(run, solve(problem, Adam(1e-2), L1, max_iterations=60, record=5))


def test_callbacks_of_a_resumed_run_continue():
    problem, method = mixed(2), GD(1e-3)
    seen: list[int] = []
    options = {"record": 10, "callback": lambda t, w: seen.append(t)}
    solve(problem, method, L1, max_iterations=90, **options)
    whole = seen.copy()
    seen.clear()
    run = None
    for cap in (5, 30, 61, 90):
        run = solve(problem, method, L1, max_iterations=cap, resume=run, **options)
    assert whole == list(range(0, 91, 10))
    assert seen == [*range(0, 31, 10), *range(30, 91, 10)]  # 30 was an end that was to record, and is again


def test_an_exception_in_a_callback_passes():
    with pytest.raises(ZeroDivisionError):
        solve(mixed(2), GD(1e-3), L1, record=5, callback=lambda t, w: 1 / (t - 25))


def test_schedules():
    problem = mixed(2)
    ramp = warmup(10, inverse_sqrt(1e-2))
    for schedule in (linear_decay(1e-2, 50), cosine(1e-2, 50), ramp, lambda t: 1e-3 * (t % 3)):
        run = solve(problem, GD(schedule), NEVER, max_iterations=60, record=1)
        function = getattr(schedule, "function", schedule)
        assert run.trace.step[:-1].tolist() == [function(t) for t in range(60)]
    called = []
    run = solve(problem, GD(lambda t: called.append(t) or 1e-3), L1)
    assert run.converged and called == list(range(len(called)))  # in order, once, and not far ahead
    assert run.iterations <= len(called) <= 2 * run.iterations + 1000
    assert bits(run.point, solve(problem, GD(1e-3), L1).point)


# -- statistics


def test_statistics_do_not_change_the_run():
    problem = mixed(7)
    for name, method in METHODS.items():
        plain = solve(problem, method, L1, max_iterations=100)
        full = solve(problem, method, L1, max_iterations=100, statistics=tuple(STATISTICS))
        assert bits(plain.point, full.point) and plain.iterations == full.iterations, name


def test_statistics_and_trace_tell_the_same():
    problem = mixed(7)
    for method in (GD("lambda_g"), SignSGD(1e-2), Adam(1e-2)):
        run = solve(problem, method, L1, max_iterations=300, record=1, statistics=tuple(STATISTICS))
        s, trace = run.statistics, run.trace
        lambda_g, step = trace.lambda_g[:-1], trace.step[:-1]
        assert s["sup_lambda_g"] == lambda_g.max() and s["final_lambda_g"] == lambda_g[-1]
        assert s["harmonic_lambda_g"] == pytest.approx(len(lambda_g) / np.sum(1 / lambda_g), rel=1e-12)
        assert s["sup_step_lambda_g"] == (step * lambda_g).max()
        ratios = trace.gap[1:] / trace.gap[:-1]
        assert (s["min_gap_ratio"], s["max_gap_ratio"]) == (ratios.min(), ratios.max())
        assert s["tail_gap"] == trace.gap.max()
        assert s["min_cos_sign"] == trace.cos_sign[:-1].min()
        assert s["mean_cos_sign"] == pytest.approx(trace.cos_sign[:-1].mean(), rel=1e-12)
        later = solve(problem, method, L1, max_iterations=300, statistics=("tail_gap",), tail_gap_start=25)
        assert later.statistics["tail_gap"] == trace.gap[25:].max()
        never = solve(problem, method, L1, max_iterations=300, statistics=("tail_gap",), tail_gap_start=1e9)
        assert never.statistics["tail_gap"] is None


# -- batches: order, packs, threads


@pytest.fixture(scope="module")
def crowd():
    """400 runs of all storages, methods, tests and caps; each alone."""
    rng = np.random.default_rng(0)
    shared = [mixed(s) for s in range(3)] + [case("het", seed=s) for s in range(3)]
    runs = []
    names = list(METHODS)
    for k in range(400):
        kind = k % 4
        problem = shared[k % 6] if kind < 2 else case("het", seed=k) if kind == 2 else mixed(k)
        if kind == 1:
            problem = problem.with_start(rng.standard_normal(problem.size))
        name = names[k % 5] if kind else names[rng.integers(len(names))]
        stop = (L1, Gap(1e-3, relative=True), GradientNorm(0.5, ord=2), GradientNorm(0.7, ord=1))[k % 7 % 4]
        runs.append((problem, METHODS[name], stop, int(rng.choice([0, 1, 30, 200, 700]))))
    alone = [
        replace(solve(p, m, s, max_iterations=cap, statistics=("sup_lambda_g", "max_gap_ratio")), state=None)
        for p, m, s, cap in runs
    ]
    return runs, alone


def solve_all(runs, **options):
    problems, methods, stops, caps = map(list, zip(*runs, strict=True))
    statistics = ("sup_lambda_g", "max_gap_ratio")
    return solve_many(problems, methods, stops, max_iterations=caps, statistics=statistics, **options)


@pytest.mark.parametrize("options", [{}, {"threads": 2}, {"threads": 5}, {"lanes": False},
                                     {"lanes": False, "threads": 2}], ids=str)  # fmt: skip
def test_a_batch_equals_single_runs(crowd, options):
    runs, alone = crowd
    for one, other in zip(solve_all(runs, **options), alone, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_a_batch_changes_nothing(crowd, seed):
    runs, alone = crowd
    order = np.random.default_rng(seed).permutation(len(runs))
    for k, run in zip(order, solve_all([runs[k] for k in order]), strict=True):
        assert_same(run, alone[k])


@pytest.mark.parametrize("size", [1, 5, 6, 7, 37, 151])
def test_the_size_of_a_batch_changes_nothing(crowd, size):
    runs, alone = crowd
    for begin in range(0, min(len(runs), 40 * size), size):
        part = slice(begin, begin + size)
        for run, other in zip(solve_all(runs[part]), alone[part], strict=True):
            assert_same(run, other)


def test_a_long_queue_refills_lanes_in_any_order():
    """Many more runs than lanes; counts from 1 to hundreds, so that lanes are refilled all the time."""
    problem = case("hom", seed=1)
    scales = 10.0 ** np.random.default_rng(1).uniform(-3, 3, 700)
    problems = [problem.with_start(s * problem.start) for s in scales]
    stop = GradientNorm(1.0, ord=1)
    runs = solve_many(problems, SignSGD("lambda_p"), stop, statistics=("harmonic_lambda_g",))
    counts = [run.iterations for run in runs]
    assert min(counts) < 5 and max(counts) > 300
    back = solve_many(problems[::-1], SignSGD("lambda_p"), stop, statistics=("harmonic_lambda_g",), threads=2)
    for run, other in zip(runs, back[::-1], strict=True):
        assert_same(run, other)
    for k in range(0, 700, 50):
        other = solve(problems[k], SignSGD("lambda_p"), stop, statistics=("harmonic_lambda_g",))
        assert_same(runs[k], replace(other, state=None))


TINY = {
    "gd": (lambda rate: GD(rate), (1, 2)),
    "gd, lemma": (lambda rate: GD("lambda_g"), (2,)),
    "gd, schedule": (lambda rate: GD(lambda t: rate / math.sqrt(1 + t)), (1, 2)),
    "sign": (lambda rate: SignSGD(rate), (1, 2)),
    "sign, lemma": (lambda rate: SignSGD("lambda_p"), (1,)),
    "sign, M*": (lambda rate: SignSGD("m_star"), (1,)),
    "sign, schedule": (lambda rate: SignSGD(lambda t: rate / math.sqrt(1 + t)), (1, 2)),
    "adam": (lambda rate: Adam(rate), (1, 2)),
}


def some_adam(rate, rng):
    return Adam(
        rate,
        beta1=float(rng.choice([0.0, 0.5, 0.9])),
        beta2=float(rng.choice([0.0, 0.9, 0.999])),
        epsilon=float(rng.choice([0.0, 1e-8, 0.1])),
        bias_correction=bool(rng.integers(2)),
    )


@pytest.mark.parametrize("shared", [True, False], ids=["one H", "H per run"])
@pytest.mark.parametrize("name", TINY)
def test_tiny_blocks_of_four_runs_have_the_bits_of_the_general_path(name, shared, monkeypatch):
    """No statistics, so that runs side by side go on by themselves; some diverge, others end at any time."""
    make, orders = TINY[name]
    path, paths, ends = engine._path, [], set()
    monkeypatch.setattr(engine, "_path", lambda job: paths.append(path(job)) or paths[-1])
    rng = np.random.default_rng([list(TINY).index(name), shared])
    for _ in range(6):
        sizes = rng.integers(1, 4, rng.integers(1, 8)).tolist()
        spectra = [LogUniform(1.0, high) for high in rng.uniform(2.0, 100.0, len(sizes)).tolist()]
        n = int(rng.integers(6, 40))
        problems = [from_spectra(spectra, sizes=sizes, basis="haar", seed=k * (not shared)) for k in range(n)]
        if shared:
            problems = [problems[0].with_start(rng.standard_normal(sum(sizes)) * 10 ** rng.uniform(-2, 2))
                        for _ in range(n)]  # fmt: skip
        if name == "adam":
            used = [some_adam(10.0 ** rng.uniform(-4.0, 0.0), rng) for _ in range(n)]
        elif name in ("gd", "sign"):
            used = [make(10.0 ** rng.uniform(-4.0, 0.0)) for _ in range(n)]
        else:
            used = [make(10.0 ** rng.uniform(-4.0, -0.5))] * n
        stop = GradientNorm(10.0 ** rng.uniform(-6.0, -1.0), ord=int(rng.choice(orders)), relative=True)
        caps = rng.choice([0, 1, 2, 63, 64, 65, 66, 129, 300], n).tolist()
        for run, problem, own, cap in zip(
            solve_many(problems, used, stop, max_iterations=caps), problems, used, caps, strict=True
        ):
            other = solve(problem, own, stop, max_iterations=cap, fused=False)
            assert_same(run, replace(other, state=None))
            ends.add(str(run.status))
    assert set(paths) == {c.TINY}
    assert ends == {"converged", "max_iterations", "diverged"} or name != "gd"


def test_householder_and_mixed_storages_in_batches():
    large = [
        from_spectra(
            [np.linspace(1, 50, 900), np.linspace(1, 9, 200), [1.0, 4.0]],
            basis=[Householder(3), "axis", "haar"],
            seed=s,
        )
        for s in range(9)
    ]
    for method in (GD("lambda_g"), SignSGD(1e-3), Adam(1e-2)):
        runs = solve_many(large, method, L1, max_iterations=150, threads=2)
        for problem, run in zip(large, runs, strict=True):
            assert_same(run, replace(solve(problem, method, L1, max_iterations=150), state=None))


def calls(function) -> int:
    """Python and C functions called."""
    count, before = 0, sys.getprofile()

    def counted(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(counted)
    try:
        function()
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("own", ["start", "hessian"])
@pytest.mark.parametrize("make", [GD, SignSGD, Adam, lambda rate: SignSGD("lambda_p")])
def test_python_does_little_for_each_run_of_a_batch(make, own):
    """What a method and a problem cost is paid once for each. Counted in calls: time depends on the load."""
    problem = case("het", seed=0)

    def batch(methods: int, problems: int, repeats: int):
        rng = np.random.default_rng(0)
        starts = rng.standard_normal((problems, problem.size))
        others = [
            case("het", seed=k) if own == "hessian" else problem.with_start(w) for k, w in enumerate(starts)
        ]
        chosen = [make(1e-6 * (k + 1)) for k in range(methods)]
        n = repeats * max(methods, problems)
        everything = [others[k % problems] for k in range(n)], [chosen[k % methods] for k in range(n)]
        solve_many(*everything, L1, max_iterations=3, progress=False)  # what is kept with a problem
        return lambda: solve_many(*everything, L1, max_iterations=3, progress=False)

    # The difference of two batches, so that what a batch costs once is not counted.
    assert calls(batch(512, 512, 1)) - calls(batch(256, 256, 1)) < 24 * 256
    assert calls(batch(8, 7, 128)) - calls(batch(8, 7, 64)) < 2 * 8 * 64


def test_a_run_that_is_kept_keeps_no_batch_alive():
    runs = solve_many(case("het", seed=range(40)), GD(1e-4), L1, max_iterations=30)
    reached, left = [], [runs[7]]
    while left:
        item = left.pop()
        if isinstance(item, np.ndarray) and item.base is not None:
            left.append(item.base)
        if any(item is other for other in reached) or isinstance(item, (type, ModuleType, FunctionType)):
            continue
        reached.append(item)
        left += gc.get_referents(item)
    arrays = [item for item in reached if isinstance(item, np.ndarray)]
    assert runs[7].point.base is None and max(item.size for item in arrays) <= 9 * 9
    assert sum(isinstance(item, (Run, BlockQuadratic)) for item in reached) == 2


def test_one_for_all_and_lists():
    problem = mixed(0)
    runs = solve_many(problem, [GD(1e-3), GD(2e-3)], [L1, Gap(0.1, True)], max_iterations=[5, 6])
    assert [run.iterations for run in runs] == [5, 6] and runs[1].stop == Gap(0.1, True)
    assert len(solve_many(problem, GD(1e-3), L1, max_iterations=3)) == 1
    assert solve_many([], GD(1e-3), L1) == []
    tails = solve_many(problem, [GD(1e-3)] * 7, L1, max_iterations=9, statistics="tail_gap",
                       tail_gap_start=[0, 1, 2, 3, 8, 9, 10])  # fmt: skip
    values = [run.statistics["tail_gap"] for run in tails]
    assert values[-1] is None and values[:-1] == sorted(values[:-1], reverse=True)


def test_best_learning_rate():
    problem = from_spectra([[1.0, 9.0]], start=[1.0, 1.0], minimizer=[0.0, 0.0])
    grid = [0.01, 0.05, 0.2, 0.21, 0.5]
    best = best_learning_rate(problem, GD(1.0), Gap(1e-9, relative=True), learning_rates=grid[::-1])
    counts = [run.iterations if run.converged else math.inf for run in best.runs]
    assert best.learning_rates.tolist() == grid and best.iterations == min(counts)
    assert best.learning_rate == 0.2 and not best.at_edge  # 2/(mu + L)
    assert best_learning_rate(problem, GD(1.0), Gap(1e-9, True), learning_rates=[0.01]).at_edge
    none = best_learning_rate(problem, GD(1.0), Gap(1e-9, True), learning_rates=[1.0], max_iterations=50)
    assert none.learning_rate is None and none.iterations is None
    wide = best_learning_rate(case("het-axis"), SignSGD(1.0), L1, max_iterations=2000)
    assert wide.learning_rate is not None and len(wide.runs) == 61


# -- users' methods


@elementwise
def Lion(g, w, t, m, beta1=0.9, beta2=0.99, decay=0.0):
    """Evolved sign momentum."""
    d = np.sign(beta1 * m + (1 - beta1) * g) + decay * w
    return d, beta2 * m + (1 - beta2) * g


def lion(problem, rate, steps, beta1=0.9, beta2=0.99, decay=0.0):
    w, m = problem.start.copy(), np.zeros(problem.size)
    for _ in range(steps):
        g = problem.gradient(w)
        d = np.sign(beta1 * m + (1 - beta1) * g) + decay * w
        m = beta2 * m + (1 - beta2) * g
        w = w - rate * d
    return w


def test_lion():
    problem = from_spectra([[1.0, 3.0], [20.0, 30.0]], basis=["axis", "haar"], seed=1,
                           minimizer=[1.0, -1.0, 2.0, 0.5])  # fmt: skip
    for options in ({}, {"beta1": 0.5}, {"decay": 0.1, "beta2": 0.9}):
        run = solve(problem, Lion(1e-2, **options), NEVER, max_iterations=50)
        np.testing.assert_allclose(run.point, lion(problem, 1e-2, 50, **options), rtol=1e-9, atol=1e-12)
    assert str(Lion(1e-2, beta1=0.5)) == "Lion(0.01, beta1=0.5, beta2=0.99, decay=0)"
    assert Lion.__doc__ == "Evolved sign momentum."


@elementwise
def MyAdam(g, w, t, m, v, p1, p2, beta1=0.9, beta2=0.999, epsilon=1e-8):
    p1 = beta1 if t == 0 else p1 * beta1
    p2 = beta2 if t == 0 else p2 * beta2
    m = beta1 * m + (1.0 - beta1) * g
    v = beta2 * v + (1.0 - beta2) * (g * g)
    if abs(m) < 1e-290:
        m = 0.0
    if abs(v) < 1e-290:
        v = 0.0
    numerator = m * (1.0 / (1.0 - p1))
    d = 0.0 if numerator == 0.0 else numerator / (math.sqrt(v * (1.0 / (1.0 - p2))) + epsilon)
    return d, m, v, p1, p2


@pytest.mark.parametrize("rate", [1e-2, "lemma", "line_search"])
def test_a_users_adam_is_the_built_in_one_to_the_bit(rate):
    problems = [mixed(s) for s in range(8)] + [case("het", seed=s) for s in range(8)]
    options = {"max_iterations": 400, "statistics": ("sup_lemma_l1", "mean_cos_sign", "sup_curvature")}
    mine = solve_many(problems, MyAdam(rate), L1, **options)
    theirs = solve_many(problems, Adam(rate), L1, **options)
    for a, b in zip(mine, theirs, strict=True):
        assert_same(a, b)
    for k in (0, 9):
        assert_same(solve(problems[k], MyAdam(rate), L1, record=3, **options),
                    solve(problems[k], Adam(rate), L1, record=3, **options))  # fmt: skip


def test_a_users_gd_and_sgdm_are_the_built_in_ones():
    @elementwise
    def Momentum(g, w, t, v, mu=0.9):
        v = mu * v + g
        return v, v

    @elementwise
    def Plain(g, w, t):
        return g

    problem = mixed(3)
    for mine, theirs in ((Momentum(2e-3), GD(2e-3, momentum=0.9)), (Plain(5e-3), GD(5e-3)),
                         (Plain("line_search"), GD("line_search"))):  # fmt: skip
        assert_same(solve(problem, mine, L1, record=10), solve(problem, theirs, L1, record=10))


@arraywise
def AdamMini(g, w, t, d, m, v, p, offsets, beta1=0.9, beta2=0.95, epsilon=1e-8):
    """One second moment a block."""
    p[0] = beta1 if t == 0 else p[0] * beta1
    p[1] = beta2 if t == 0 else p[1] * beta2
    for b in range(offsets.size - 1):
        low, high = offsets[b], offsets[b + 1]
        mean = 0.0
        for i in range(low, high):
            mean += g[i] * g[i] / (high - low)
        v[low] = beta2 * v[low] + (1 - beta2) * mean
        for i in range(low, high):
            m[i] = beta1 * m[i] + (1 - beta1) * g[i]
            d[i] = m[i] / (1 - p[0]) / (math.sqrt(v[low] / (1 - p[1])) + epsilon)


def test_adam_mini():
    problem = mixed(3, minimizer=np.arange(11.0))
    w, m, v = problem.start.copy(), np.zeros(11), np.zeros(4)
    for t in range(1, 61):
        g = problem.gradient(w)
        m = 0.9 * m + 0.1 * g
        v = 0.95 * v + 0.05 * np.array([np.mean(part**2) for part in problem.split(g)])
        scale = np.repeat(np.sqrt(v / (1 - 0.95**t)) + 1e-8, problem.block_sizes)
        w = w - 1e-2 * (m / (1 - 0.9**t)) / scale
    run = solve(problem, AdamMini(1e-2), NEVER, max_iterations=60)
    np.testing.assert_allclose(run.point, w, rtol=1e-11, atol=1e-12)
    batch = solve_many([problem] * 9, AdamMini(1e-2), NEVER, max_iterations=60, threads=2)
    assert all(bits(other.point, run.point) for other in batch)
    half = solve(problem, AdamMini(1e-2), L1, max_iterations=30, record=7)
    again = solve(problem, AdamMini(1e-2), L1, resume=half, record=7)
    assert_same(again, solve(problem, AdamMini(1e-2), L1, record=7))


def test_scalar_blocks_make_adam_mini_adam():
    problem = from_spectra([[1.0], [20.0], [5.0]], seed=0)
    mini = solve(problem, AdamMini(1e-2, beta2=0.999), L1, max_iterations=500)
    adam = solve(problem, Adam(1e-2), L1, max_iterations=500)
    assert mini.iterations == adam.iterations
    np.testing.assert_allclose(mini.point, adam.point, rtol=1e-10)


def test_an_edit_of_a_users_function_is_noticed(tmp_path, monkeypatch):
    """The same name, file and line, another body: a notebook's cell run again, a module reloaded."""
    import importlib

    problem = from_blocks([np.ones(2)], start=[8.0, 4.0], minimizer=[0.0, 0.0])

    def cell(body):
        namespace = {"elementwise": elementwise}
        exec(compile(f"@elementwise\ndef Mine(g, w, t):\n    return {body}\n", "<cell>", "exec"), namespace)
        return namespace["Mine"](0.5)

    def point(method):
        batch = solve_many([problem] * 7, method, NEVER, max_iterations=1)
        alone = solve(problem, method, NEVER, max_iterations=1).point.tolist()
        assert all(run.point.tolist() == alone for run in batch)
        return alone

    assert [point(cell(body)) for body in ("g", "-g", "2 * g")] == [[4.0, 2.0], [12.0, 6.0], [0.0, 0.0]]
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    source = (
        "from quadlab.methods import elementwise\n\n@elementwise\ndef Mine(g, w, t):\n    return {} * g\n"
    )
    (tmp_path / "edited_method.py").write_text(source.format("1.0"))
    module = importlib.import_module("edited_method")
    assert point(module.Mine(0.5)) == [4.0, 2.0]
    (tmp_path / "edited_method.py").write_text(source.format("0.5"))
    importlib.reload(module)
    assert point(module.Mine(0.5)) == [6.0, 3.0]


def unknown_name(g, w, t):
    return g * there_is_no_such_name  # noqa: F821


def wrong_count(g, w, t, m):
    return g


def not_compiled(g, w, t):
    return sorted({"a": g}, key=str)


def text(g, w, t):
    return "left"


def assigns_text(g, w, t, d, offsets):
    d[0] = "left"


@pytest.mark.parametrize(
    "make, rule",
    [
        (elementwise, unknown_name),
        (elementwise, wrong_count),
        (elementwise, not_compiled),
        (elementwise, text),
        (arraywise, assigns_text),
    ],
    ids=lambda f: f.__name__,
)
def test_a_function_that_does_not_compile_is_a_one_line_error(make, rule):
    for run in (lambda m: solve(mixed(0), m, L1), lambda m: solve_many([mixed(0)] * 7, m, L1)):
        with pytest.raises(ValueError, match=rf"method {rule.__name__} does not compile: .") as info:
            run(make(rule)(1e-3))
        assert "\n" not in str(info.value) and len(str(info.value)) < 400, str(info.value)


# -- Ctrl-C


def interrupted(script: str, after: float = 0.7) -> tuple[str, float]:
    """Run a script, press Ctrl-C a while after it prints "running"; its output, the seconds it then took."""
    command = [sys.executable, "-c", textwrap.dedent(script)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline().strip() == "running"
        time.sleep(after)
        process.send_signal(signal.SIGINT)
        begin = time.monotonic()
        line = process.stdout.readline().strip()
        seconds = time.monotonic() - begin
        out, err = process.communicate(timeout=120)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    assert line == "interrupted", (line, out, err)
    assert process.returncode == 0, err
    return out, seconds


def test_ctrl_c_in_solve_and_resume():
    script = """
        import numpy as np
        from quadlab import Adam, GradientNorm, case, solve
        problem, method, stop = case("transformer"), Adam(1e-5), GradientNorm(1e-280)
        options = dict(record=1000, statistics=("sup_lambda_g", "sum_max_gradient", "mean_cos_sign"))
        solve(problem, method, stop, max_iterations=3)
        print("running", flush=True)
        try:
            solve(problem, method, stop, max_iterations=10**9, **options)
        except KeyboardInterrupt as interrupt:
            print("interrupted", flush=True)
            part = interrupt.run
        assert part.status.value == "max_iterations" and part.iterations > 0, part
        count = part.iterations
        here = solve(problem, method, stop, max_iterations=count, **options)
        for name, value in here.final.items():
            assert part.final[name] == value, (name, part.final[name], value)
        assert part.statistics == here.statistics and np.array_equal(part.point, here.point)
        assert np.array_equal(part.trace.gap, here.trace.gap), (part.trace, here.trace)
        cap = count + 12345
        rest = solve(problem, method, stop, max_iterations=cap, resume=part, **options)
        whole = solve(problem, method, stop, max_iterations=cap, **options)
        assert rest.iterations == whole.iterations == cap
        assert np.array_equal(rest.point, whole.point) and rest.statistics == whole.statistics
        assert np.array_equal(rest.trace.iteration, whole.trace.iteration)
        assert np.array_equal(rest.trace.gap, whole.trace.gap)
        print("resumed")
    """
    out, seconds = interrupted(script)
    assert out.strip() == "resumed" and seconds < 2.0


def test_ctrl_c_at_any_time_leaves_a_run_that_resumes():
    """Twenty interrupts at random times, in kernels and between them."""
    script = """
        import _thread, random, threading
        import numpy as np
        from quadlab import GD, Adam, GradientNorm, case, solve
        random.seed(0)
        problem, stop = case("het"), GradientNorm(1e-280)
        solve(problem, Adam(1e-5), stop, max_iterations=3)
        for k in range(20):
            method = Adam(1e-5) if k % 2 else Adam(lambda t: 1e-5)
            record = (None, 1, 500, "log")[k % 4]
            threading.Timer(random.uniform(0.02, 0.2), _thread.interrupt_main).start()
            try:
                solve(problem, method, stop, max_iterations=10**9, record=record)
            except KeyboardInterrupt as interrupt:
                part = interrupt.run
            cap = part.iterations + 777
            rest = solve(problem, method, stop, max_iterations=cap, record=record, resume=part)
            whole = solve(problem, method, stop, max_iterations=cap, record=record)
            assert rest.iterations == whole.iterations and np.array_equal(rest.point, whole.point), k
            if record is not None:
                assert np.array_equal(rest.trace.iteration, whole.trace.iteration), k
                assert np.array_equal(rest.trace.gap, whole.trace.gap), k
        print("running", flush=True)
        try:
            solve(problem, Adam(1e-5), stop, max_iterations=10**9)
        except KeyboardInterrupt as interrupt:
            print("interrupted", flush=True)
    """
    _, seconds = interrupted(script, after=0.1)
    assert seconds < 2.0


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("lanes", [False, True])
def test_ctrl_c_in_solve_many(threads, lanes):
    script = f"""
        import time
        from quadlab import Adam, GradientNorm, case, solve_many
        problems = case("het", seed=range(40))
        method, stop, options = Adam(1e-5), GradientNorm(1e-280), dict(lanes={lanes}, threads={threads})
        solve_many(problems, method, stop, max_iterations=3, **options)
        print("running", flush=True)
        try:
            solve_many(problems, method, stop, max_iterations=10**9, **options)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    """
    _, seconds = interrupted(script)
    assert seconds < 3.0


FUSED = {
    "gd": GD(0.9), "gd-diverges": GD(20.0), "gd-lemma": GD("lambda_g"),
    "gd-schedule": GD(linear_decay(1.0, 90)),
    "signsgd": SignSGD(1e-3), "signsgd-lemma": SignSGD("lambda_p"), "signsgd-m_star": SignSGD("m_star"),
    "adam": Adam(1e-2), "adam-schedule": Adam(cosine(0.1, 200), beta1=0.5, beta2=0.9),
    "adam-uncorrected": Adam(1e-2, bias_correction=False),
}  # fmt: skip


def tiny_blocks(seed: int) -> BlockQuadratic:
    rng = np.random.default_rng(seed)
    # Around the 4 that fill a register and the 16 that fill a group.
    sizes = rng.integers(1, 4, (1, 2, 3, 4, 5, 7, 15, 16, 17, 19, 32, 37)[seed])
    spectra = [np.exp(rng.normal(0.0, 2.0, size)) for size in sizes]
    if seed % 4 == 0 and sizes[0] > 1:
        spectra[0][0] = 0.0
    largest = max(block.max() for block in spectra)
    return from_spectra([block / largest for block in spectra], basis="haar", seed=seed)


def long_diagonals(seed: int) -> BlockQuadratic:
    rng = np.random.default_rng(seed)
    sizes = [(9000,), (4096, 300), (1, 700, 259)][seed % 3]
    spectra = [np.append(np.exp(rng.normal(-2.0, 1.0, size - 1)), 4.0) / 4.0 for size in sizes]
    spectra[-1][:2] = 0.0
    return from_spectra(spectra, seed=seed)


def dense_blocks(seed: int) -> BlockQuadratic:
    rng = np.random.default_rng(seed)
    sizes = [(30,), (9, 9, 9, 9, 12), (1, 50, 21)][seed % 3]
    spectra = [np.append(np.exp(rng.normal(-2.0, 1.0, size - 1)), 4.0) / 4.0 for size in sizes]
    return from_spectra(spectra, basis="haar", seed=seed)


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("ord", [1, 2])
@pytest.mark.parametrize("make, count", [(tiny_blocks, 12), (long_diagonals, 3), (dense_blocks, 3)])
def test_the_fused_paths_are_the_general_one(name, ord, make, count):
    stop = GradientNorm(1e-2, ord=ord, relative=True)
    method = FUSED[name]
    ended = set()
    for seed in range(count):
        p = make(seed)
        for options in ({"record": 7}, {"record": [0, 1, 2, 50, 51]}, {}):
            run = solve(p, method, stop, max_iterations=400, **options)
            assert_same(run, solve(p, method, stop, max_iterations=400, fused=False, **options))
        part = solve(p, method, stop, max_iterations=min(run.iterations, 3))
        if part.status is Status.MAX_ITERATIONS:
            assert_same(solve(p, method, stop, max_iterations=400, resume=part), run)
        ended.add(run.status)
    expected = {"gd-diverges": Status.DIVERGED, "signsgd": Status.MAX_ITERATIONS}
    assert expected.get(name, Status.CONVERGED) in ended or make is not tiny_blocks


def test_no_interrupt_is_lost_between_python_and_a_kernel():
    script = """
        import _thread, random, threading, time
        from quadlab import Adam, GradientNorm, case, solve
        random.seed(0)
        problem, method, stop = case("het"), Adam(1e-5), GradientNorm(1e-280)
        solve(problem, method, stop, max_iterations=3)
        caught = 0
        def interrupt():
            time.sleep(random.uniform(0.0005, 0.003))
            _thread.interrupt_main()
        for _ in range(400):
            thread = threading.Thread(target=interrupt)
            try:
                thread.start()
                end = time.monotonic() + 10.0
                while time.monotonic() < end:
                    solve(problem, method, stop, max_iterations=300)
            except KeyboardInterrupt:
                caught += 1
            thread.join()
        print(caught)
    """
    out = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert out.stdout.strip() == "400", out
