"""Gradient noise: its laws, its streams, and runs that see it, beside the twin and each other, to the bit."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest

from quadlab import (
    GD,
    Adam,
    AdamMini,
    BlockQuadratic,
    FrozenAdam,
    Gap,
    GradientNorm,
    NormalizedGD,
    SignSGD,
    SteepestDescent,
    best_learning_rate,
    case,
    elementwise,
    load,
)
from quadlab.curvature import curvature
from quadlab.noise import block_rows, draw
from quadlab.solve import solve, solve_many
from quadlab.steps import cosine
from test_twin import STATISTICS, assert_same, random_problem, same_bits
from twin import RATIOS, Noise, twin_solve

LAWS = ("gaussian", "uniform", "rademacher", "student:5", "student:1.5")
SHAPE = ((3, "haar"), (4, "axis"), (5, "haar"))
METHODS = {
    "gd": GD(1e-5),
    "momentum": GD(1e-6, momentum=0.9),
    "nesterov": GD(1e-6, momentum=0.8, nesterov=True),
    "signsgd": SignSGD(0.01),
    "cosine": SignSGD(cosine(0.05, 300)),
    "signum": SignSGD(0.01, momentum=0.9),
    "normalized": NormalizedGD(0.02),
    "adam": Adam(0.01),
    "frozen": FrozenAdam(0.01),
}


def noisy(law: str = "gaussian", seed: int = 1, scale: float = 1.0) -> BlockQuadratic:
    problem = random_problem(seed, SHAPE, singular=False)
    return problem.with_noise(scale * np.linspace(0.0, 3.0, problem.size), law)


# -- laws --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", LAWS)
def test_moments_of_the_laws(law):
    """Mean 0 and variance 1 within five standard errors; the heaviest tail by its quartiles instead."""
    n = 400_000
    sample = draw(law, np.random.default_rng(3), (n,))
    if law == "student:1.5":
        from scipy.stats import t

        assert np.quantile(sample, [0.25, 0.75]) == pytest.approx(t(1.5).ppf([0.25, 0.75]), rel=0.02)
        return
    kurtosis = {"gaussian": 3.0, "uniform": 1.8, "rademacher": 1.0, "student:5": 9.0}[law]
    assert abs(sample.mean()) < 5.0 / math.sqrt(n)
    # (the sixth moment that the variance of a t_5 sample's variance needs exists: df > 4)
    assert abs(np.mean(sample**2) - 1.0) <= 5.0 * math.sqrt((kurtosis - 1.0) / n) + 1e-15
    if law == "uniform":
        assert np.abs(sample).max() <= math.sqrt(3.0)
    if law == "rademacher":
        assert set(np.unique(sample)) == {-1.0, 1.0}


@pytest.mark.parametrize("law", LAWS)
def test_draws_do_not_depend_on_how_they_are_cut(law):
    whole = draw(law, np.random.default_rng(0), (1000, 7))
    rng = np.random.default_rng(0)
    parts = [draw(law, rng, (rows, 7)) for rows in (1, 2, 97, 900)]
    assert np.array_equal(whole, np.concatenate(parts))


@pytest.mark.parametrize(
    ("law", "told"),
    [
        ("gauss", r"law must be one of gaussian, .*, received 'gauss'"),
        (3, r"law must be one of .* received 3"),
        ("student", r"student:DF needs .* received 'student'"),
        ("student:0", r"DF > 0, received 'student:0'"),
        ("student:nan", r"DF > 0, received 'student:nan'"),
        ("student:inf", r"DF > 0, received 'student:inf'"),
    ],
)
def test_a_bad_law(law, told):
    with pytest.raises(ValueError, match=told):
        case("het").with_noise(1.0, law)


# -- where it lives ----------------------------------------------------------------------------------------


def test_the_law_belongs_to_the_problem(tmp_path):
    p = case("het", seed=0).with_noise([0.1, 0.2, 0.3], "student:3.0")
    assert p.noise_law == "student:3" and p.is_noisy
    assert p != p.with_noise([0.1, 0.2, 0.3]) and p == p.with_noise([0.1, 0.2, 0.3], "student:3")
    p.save(tmp_path / "p.npz")
    for copy in (
        load(tmp_path / "p.npz"),
        pickle.loads(pickle.dumps(p)),
        p.with_start(p.start),
        p.with_name("a"),
    ):
        assert copy == p and copy.noise_law == "student:3" and same_bits(copy.noise, p.noise)
    assert p.with_noise(0, "uniform") == case("het", seed=0) and not p.with_noise(0).is_noisy


def test_a_minibatch_divides_the_standard_deviation():
    p = case("het")
    assert p.with_noise(2.0, batch=16) == p.with_noise(0.5)
    assert p.with_noise([1, 2, 3], "uniform", batch=4) == p.with_noise([0.5, 1, 1.5], "uniform")
    assert p.with_noise(2.0, batch=16).noise.strides == (0,)
    for bad in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match=r"batch must be an integer >= 1, received"):
            p.with_noise(1, batch=bad)


def test_a_stream_is_a_function_of_problem_seed_and_iteration():
    p = case("het", seed=0).with_noise(0.5)
    stream = p.noise_stream(7)
    rows = stream.rows(0, 3 * stream.block_rows)
    for start, stop in ((0, 1), (5, 5), (127, 129), (200, 384)):
        assert np.array_equal(p.noise_stream(7).rows(start, stop), rows[start:stop])
    twin = Noise(p, 7)
    assert np.array_equal([twin(t) for t in range(len(rows))], rows)
    others = [
        p.noise_stream(8),
        p.with_start(2 * p.start).noise_stream(7),
        case("hom").with_noise(0.5).noise_stream(7),
    ]
    for other in others:  # independent: no correlation
        assert abs(np.corrcoef(rows.ravel(), other.rows(0, len(rows)).ravel())[0, 1]) < 5 / math.sqrt(
            rows.size
        )
    assert np.corrcoef(rows[:-1].ravel(), rows[1:].ravel())[0, 1] < 5 / math.sqrt(rows.size)
    assert [block_rows(n) for n in (1, 64, 100, 5000, 10**6)] == [128, 128, 81, 1, 1]


# -- runs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", METHODS)
def test_a_run_with_noise_is_the_twin_to_the_bit(name, law):
    problem, method = noisy(law), METHODS[name]
    names = (*STATISTICS, *RATIOS) if law == "gaussian" else ("sum_step", "weighted_square", "weighted_l1")
    if name not in ("adam", "frozen"):
        names = [n for n in names if "denominator" not in n and "preconditioned" not in n]
    for stop in (GradientNorm(0.3, ord=1, relative=True), Gap(1e-9)):
        run = solve(problem, method, stop, max_iterations=300, statistics=names, noise_seed=5)
        twin = twin_solve(problem, method, stop, max_iterations=300, statistics=names, noise_seed=5)
        assert_same(run, twin, (name, law, stop))
    assert run.noise_seed == 5 and run.iterations > 130  # over more than one block of noise


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", METHODS)
def test_alone_and_in_batches_of_any_width_order_and_threads(name, law):
    """Runs of many lengths on many problems, so that lanes end, move and are refilled at all times."""
    method, stop = METHODS[name], [GradientNorm(eps, relative=True) for eps in (0.9, 0.5, 0.3, 0.2, 0.1)] * 9
    problems = [noisy(law, seed, scale=0.1) for seed in range(3)] * 15
    seeds = [k // 3 for k in range(45)]
    caps = [0, 1, 5, 60, 127, 128, 129, 256, 300] * 5
    options = {"statistics": ["weighted_l1", "sum_step"]}
    alone = [
        solve(p, method, test, max_iterations=cap, noise_seed=s, **options)
        for p, test, s, cap in zip(problems, stop, seeds, caps, strict=True)
    ]
    for part, threads in ((slice(None), 1), (slice(None), 2), (slice(None, None, -1), 1), (slice(0, 9), 1)):
        batch = solve_many(
            problems[part],
            method,
            stop[part],
            max_iterations=caps[part],
            noise_seed=seeds[part],
            threads=threads,
            **options,
        )
        for one, other in zip(alone[part], batch, strict=True):
            assert (one.status, one.iterations) == (other.status, other.iterations)
            assert same_bits(one.point, other.point) and one.statistics == other.statistics
    assert len({run.iterations for run in alone}) >= 6


def test_more_runs_than_lanes():
    p, method, stop = noisy(scale=200.0), SignSGD(0.02), GradientNorm(0.2, relative=True)
    batch = solve_many(p, method, stop, max_iterations=400, noise_seed=list(range(400)))
    for seed in range(0, 400, 7):
        one = solve(p, method, stop, max_iterations=400, noise_seed=seed)
        assert same_bits(one.point, batch[seed].point) and one.iterations == batch[seed].iterations
    assert len({run.iterations for run in batch}) >= 5


@pytest.mark.parametrize("method", [SteepestDescent(1e-4, norm="linf"), AdamMini(1e-3)], ids=str)
def test_methods_made_of_a_function_see_the_noise(method):
    p = noisy()
    run, without = (solve(problem, method, Gap(1e-9), max_iterations=200) for problem in (p, p.with_noise(0)))
    again = solve_many([p] * 8, method, Gap(1e-9), max_iterations=200)
    assert not same_bits(run.point, without.point) and all(same_bits(run.point, r.point) for r in again)


def test_a_method_of_ones_own_sees_the_noise():
    @elementwise
    def Sign(g, w, t):
        return 1.0 if g > 0.0 else -1.0 if g < 0.0 else 0.0

    p = noisy()
    mine, ours = (solve(p, method, Gap(1e-9), max_iterations=500) for method in (Sign(0.01), SignSGD(0.01)))
    assert same_bits(mine.point, ours.point)


@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_is_an_uninterrupted_one(name):
    p, stop = noisy(), GradientNorm(1e-9)
    whole = solve(p, METHODS[name], stop, max_iterations=500, record=7, noise_seed=2)
    part = solve(p, METHODS[name], stop, max_iterations=0, record=7, noise_seed=2)
    for cap in (1, 100, 128, 300, 500):
        part = solve(p, METHODS[name], stop, max_iterations=cap, record=7, noise_seed=2, resume=part)
    assert same_bits(part.point, whole.point) and same_bits(part.trace.gap, whole.trace.gap)
    with pytest.raises(ValueError, match=r"resume must have the same noise_seed, received 2"):
        solve(p, METHODS[name], stop, max_iterations=600, record=7, noise_seed=3, resume=whole)


def test_an_interrupted_run_can_be_resumed():
    p, stop, method = noisy(), GradientNorm(1e-9), Adam(1e-3)

    def interrupt(iteration, point):
        if iteration == 200:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        solve(p, method, stop, max_iterations=900, record=50, callback=interrupt)
    part = caught.value.run
    rest = solve(p, method, stop, max_iterations=900, record=50, resume=part)
    whole = solve(p, method, stop, max_iterations=900, record=50)
    assert part.iterations < 900 and same_bits(rest.point, whole.point)
    assert same_bits(rest.trace.gap, whole.trace.gap)


def test_methods_meet_the_same_noise():
    """One step of GD from the same point, twice the step: exactly twice the noise."""
    p = noisy().with_start(np.zeros(12))
    stop = Gap(1e-300)
    small, large = (
        solve(p.with_start(p.start + 1.0), GD(rate), stop, max_iterations=1).point
        for rate in (2.0**-10, 2.0**-9)
    )
    start = p.start + 1.0
    np.testing.assert_allclose(large - start, 2.0 * (small - start), rtol=1e-12)
    paired = [
        solve(noisy(), m, stop, max_iterations=300).point for m in (SignSGD(0.01), Adam(0.01, 0.0, 0.0, 0.0))
    ]
    assert same_bits(*paired)


def test_test_and_statistics_see_the_true_gradient():
    p = case("het", seed=0).with_noise(1e6)
    run = solve(p, GD(1e-12), GradientNorm(1.0, relative=True), max_iterations=5)
    assert run.converged and run.iterations == 0
    run = solve(
        p, SignSGD(1e-3), GradientNorm(1e-9), max_iterations=1, statistics=["weighted_l1", "weighted_square"]
    )
    g = p.gradient(p.start)
    assert run.statistics["weighted_l1"] == pytest.approx(1e-3 * np.abs(g).sum(), rel=1e-12)
    assert run.statistics["weighted_square"] == pytest.approx(1e-3 * g @ g, rel=1e-12)


def test_zero_noise_changes_no_bit():
    p = noisy(scale=0.0)
    assert not p.is_noisy
    run = solve(p, Adam(0.01), Gap(1e-9), max_iterations=300, noise_seed=4)
    assert run.noise_seed is None
    assert same_bits(
        run.point,
        solve(random_problem(1, SHAPE, singular=False), Adam(0.01), Gap(1e-9), max_iterations=300).point,
    )


@pytest.mark.parametrize("rate", ["lemma", "lambda_p", "m_star", "line_search"])
def test_rules_that_read_the_exact_gradient_are_refused(rate):
    with pytest.raises(
        ValueError, match=rf"learning_rate '{rate}' needs the exact gradient, .* a number or a sch"
    ):
        solve(noisy(), SignSGD(rate), GradientNorm(1.0))


def test_the_optimal_constant_under_noise():
    """Those of theory.md, section 6; with no noise to speak of, the noiseless ones of the same bounds."""
    p, stop = noisy(), GradientNorm(0.1, ord=1)
    size, tol, m = p.size, p.size * 0.1, curvature(p).m_star_upper
    sigma = p.noise.sum()
    rate = solve(p, SignSGD("optimal"), stop, max_iterations=0).learning_rate
    assert rate == pytest.approx((0.1 / (m / size)) / (1.0 + math.sqrt(math.pi / 2) * sigma / tol), rel=1e-12)
    variance = np.sum(p.hessian_diagonal() * p.noise**2)
    rate = solve(p, GD("optimal"), GradientNorm(0.1, ord=2), max_iterations=0).learning_rate
    assert rate == pytest.approx(size * 0.01 / (2.0 * variance), rel=1e-12)
    largest = solve(p, GD("optimal"), GradientNorm(0.1, ord=math.inf), max_iterations=0)
    assert largest.learning_rate == pytest.approx(rate / size, rel=1e-12)
    tiny = p.with_noise(1e-9)
    assert solve(tiny, GD("optimal"), stop, max_iterations=0).learning_rate == 1.0 / curvature(p).largest
    for method, problem in ((SignSGD("optimal"), noisy("uniform")), (FrozenAdam("optimal"), p)):
        with pytest.raises(ValueError, match=r'"optimal" is not known for this method with \w+ noise'):
            solve(problem, method, stop)


@pytest.mark.parametrize("seed", [-1, 1.0, None, True, "a"])
def test_a_bad_noise_seed(seed):
    with pytest.raises(ValueError, match=r"noise_seed must be an integer >= 0, received"):
        solve(noisy(), SignSGD(0.1), GradientNorm(1.0), noise_seed=seed)


def test_the_best_learning_rate_under_noise():
    p = noisy(scale=0.1)
    found = best_learning_rate(
        p, SignSGD(1.0), GradientNorm(0.3, relative=True), learning_rates=[1e-3, 1e-2, 1e-1]
    )
    counts = [run.iterations if run.converged else math.inf for run in found.runs]
    assert found.iterations == min(counts) and len(set(counts)) > 1


def test_a_large_problem_draws_few_rows_at_a_time():
    p = BlockQuadratic.from_spectra([np.linspace(1.0, 2.0, 10_000)], seed=0).with_noise(0.01)
    runs = solve_many([p] * 8, SignSGD(1e-3), GradientNorm(1e-9), max_iterations=5, noise_seed=list(range(8)))
    for seed, run in enumerate(runs):
        twin = twin_solve(p, SignSGD(1e-3), GradientNorm(1e-9), max_iterations=5, noise_seed=seed)
        assert same_bits(run.point, twin.point)
