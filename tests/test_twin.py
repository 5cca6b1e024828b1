"""The compiled engine, alone and in batches of any width, against the plain NumPy twin: counts and bits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quadlab.bases import Householder
from quadlab.methods import GD, Adam, AdamW, FrozenAdam, NormalizedGD, RMSProp, SignSGD
from quadlab.problem import BlockQuadratic
from quadlab.solve import solve, solve_many
from quadlab.steps import cosine, inverse_sqrt
from quadlab.stopping import Gap, GradientNorm
from twin import CHUNK, RATIOS, STATISTICS, Hessian, Sums, flush, twin_solve

# -- problems ------------------------------------------------------------------------------------------

EIGENVALUES = [0.0, 1e-3, 0.1, 0.7, 1.0, 2.0, 10.0, 300.0]
BASES = ["axis", "haar", "householder"]


def random_problem(seed: int, shape, *, singular: bool = True, minimizer: bool = False) -> BlockQuadratic:
    """Blocks of the given sizes and storages, with spectra over several decades."""
    rng = np.random.default_rng([seed, 77])
    size = sum(n for n, _ in shape)
    spectra = [
        np.sort(10.0 ** rng.uniform(-2, 2) * rng.choice(EIGENVALUES[not singular :], n)) for n, _ in shape
    ]
    bases = [Householder(count=2) if basis == "householder" else basis for _, basis in shape]
    start = rng.standard_normal(size)
    center = rng.standard_normal(size) if minimizer else None
    return BlockQuadratic.from_spectra(spectra, basis=bases, start=start, minimizer=center, seed=seed)


def top(problem) -> float:
    return float(max(problem.block_norms.max(), 1e-3))


# -- methods: name -> a method suited to a problem -----------------------------------------------------

METHODS = {
    "gd": lambda p: GD(learning_rate=0.9 / top(p)),
    "gd-diverging": lambda p: GD(learning_rate=3.0 / top(p)),
    "gd-momentum": lambda p: GD(learning_rate=0.5 / top(p), momentum=0.9),
    "gd-nesterov": lambda p: GD(learning_rate=0.5 / top(p), momentum=0.8, nesterov=True),
    "gd-schedule": lambda p: GD(learning_rate=lambda t: 1.5 / (top(p) * (t + 1))),
    "gd-lemma": lambda p: GD(learning_rate="lemma"),
    "gd-lambda_g": lambda p: GD(learning_rate="lambda_g"),
    "gd-line_search": lambda p: GD(learning_rate="line_search"),
    "gd-optimal": lambda p: GD(learning_rate="optimal"),
    "signsgd": lambda p: SignSGD(learning_rate=0.03),
    "signum": lambda p: SignSGD(learning_rate=0.02, momentum=0.9),
    "signsgd-optimal": lambda p: SignSGD(learning_rate="optimal"),
    "signsgd-cosine": lambda p: SignSGD(learning_rate=cosine(0.1, 100)),
    "signsgd-lemma": lambda p: SignSGD(learning_rate="lemma"),
    "signsgd-lambda_p": lambda p: SignSGD(learning_rate="lambda_p"),
    "signsgd-m_star": lambda p: SignSGD(learning_rate="m_star"),
    "signsgd-line_search": lambda p: SignSGD(learning_rate="line_search"),
    "normalized_gd": lambda p: NormalizedGD(learning_rate=0.05),
    "adam": lambda p: Adam(learning_rate=0.05),
    "adam-uncorrected": lambda p: Adam(learning_rate=0.01, beta1=0.8, beta2=0.95, bias_correction=False),
    "adam-sign": lambda p: Adam(learning_rate=0.02, beta1=0.0, beta2=0.0, epsilon=0.0),
    "adam-schedule": lambda p: Adam(learning_rate=inverse_sqrt(0.1), beta1=0.5, beta2=0.9),
    "adam-line_search": lambda p: Adam(learning_rate="line_search"),
    "adam-lemma": lambda p: Adam(learning_rate="lemma", beta1=0.0, beta2=0.9),
    "adamw": lambda p: AdamW(learning_rate=0.05, weight_decay=0.1),
    "rmsprop": lambda p: RMSProp(learning_rate=0.01),
    "frozen": lambda p: FrozenAdam(learning_rate=0.02),
    "frozen-optimal": lambda p: FrozenAdam(learning_rate="optimal"),
    "frozen-momentum": lambda p: FrozenAdam(learning_rate=0.01, beta1=0.9),
}

FROZEN = ("frozen", "frozen-momentum", "frozen-optimal")  # no entry of g_0 may be zero

STOPS = {
    "l1": GradientNorm(eps=0.05, ord=1),
    "l2": GradientNorm(eps=0.05, ord=2),
    "linf": GradientNorm(eps=0.1, ord=math.inf),
    "gap": Gap(1e-3),
    "l1-relative": GradientNorm(eps=0.02, ord=1, relative=True),
    "l2-relative": GradientNorm(eps=0.02, ord=2, relative=True),
    "linf-relative": GradientNorm(eps=0.03, ord=math.inf, relative=True),
    "gap-relative": Gap(1e-4, relative=True),
}


# -- the comparison ------------------------------------------------------------------------------------


def same_bits(a, b) -> bool:
    """Equal to the bit; any NaN equals any NaN."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return a.shape == b.shape and bool(
        np.all((a.view(np.int64) == b.view(np.int64)) | (np.isnan(a) & np.isnan(b)))
    )


def expected(problem, method, stop, cap, run, statistics=(), record=None):
    """The twin's run; a constant that the rule "optimal" resolves comes from the run itself."""
    return twin_solve(
        problem,
        method,
        stop,
        max_iterations=cap,
        statistics=statistics,
        record=record,
        learning_rate=run.learning_rate if method.learning_rate == "optimal" else None,
    )


def assert_same(run, twin, label=""):
    assert (run.status.value, run.iterations) == (twin.status, twin.iterations), label
    assert same_bits(run.point, twin.point), label
    assert same_bits(run.tolerance, twin.tolerance), label
    assert run.initial.keys() == run.final.keys() and run.stop.quantity in run.initial
    for name in run.initial:
        assert same_bits(run.initial[name], twin.initial[name]), (label, "initial", name)
        assert same_bits(run.final[name], twin.final[name]), (label, "final", name)
    for name, value in twin.statistics.items():
        assert close(run.statistics[name], value), (label, name, run.statistics[name], value)


def close(measured, value) -> bool:
    if value is None or measured is None:
        return measured is None and value is None
    return bool(np.isclose(measured, value, rtol=1e-12, atol=0.0, equal_nan=True))


def solved(problem, method, stop, cap, statistics=()):
    run = solve(problem, method, stop, max_iterations=cap, statistics=statistics)
    return run, expected(problem, method, stop, cap, run, statistics)


# -- the twin itself -----------------------------------------------------------------------------------


def test_sums_of_the_twin_follow_the_order():
    """Against the specification written as three nested loops."""
    rng = np.random.default_rng(0)
    for offsets in (
        [0, 1],
        [0, 3, 6, 9],
        [0, CHUNK],
        [0, 17, 18, 4200, 13000],
        [0, CHUNK + 1, 2 * CHUNK + 1],
    ):
        terms = rng.standard_normal(offsets[-1]) * 10.0 ** rng.uniform(-8, 8, offsets[-1])
        for block, value in enumerate(Sums(offsets).blocks(terms)):
            total = 0.0
            for start in range(offsets[block], offsets[block + 1], CHUNK):
                s = [0.0] * 8
                for i in range(start, min(start + CHUNK, offsets[block + 1])):
                    s[(i - start) % 8] = s[(i - start) % 8] + float(terms[i])
                total = total + (((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7])))
            assert value == total


def test_products_of_the_twin_are_the_hessian():
    problem = random_problem(3, ((5, "haar"), (4, "axis"), (6, "householder")))
    v = np.random.default_rng(1).standard_normal(problem.size)
    np.testing.assert_allclose(Hessian(problem)(v), problem.dense_hessian() @ v, rtol=1e-12, atol=1e-12)


# -- one run -------------------------------------------------------------------------------------------

SHAPES = {
    "one-dense": ((3, "haar"),),
    "three-dense": ((3, "haar"), (3, "haar"), (3, "haar")),
    "single-parameters": ((1, "haar"), (1, "axis"), (1, "haar")),
    "diagonal": ((7, "axis"), (2, "axis")),
    "householder": ((9, "householder"), (17, "householder")),
    "mixed": ((2, "haar"), (11, "axis"), (5, "householder"), (8, "haar")),
    "five-dense": ((9, "haar"),) * 5,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_and_stop_alone(name, shape):
    """Every method meets every stop, on half of the shapes each."""
    parity = (list(METHODS).index(name) + list(SHAPES).index(shape)) % 2
    for seed, (label, stop) in enumerate(STOPS.items()):
        if seed % 2 == parity:
            problem = random_problem(seed, SHAPES[shape], singular=name not in FROZEN)
            assert_same(*solved(problem, METHODS[name](problem), stop, 80), label=label)


@pytest.mark.parametrize("name", METHODS)
def test_around_the_count(name):
    """The stopping test at 0, at the cap, and just before it."""
    problem = random_problem(5, SHAPES["three-dense"], singular=False)
    method = METHODS[name](problem)
    count = twin_count(problem, method)
    for cap in {0, 1, 2, count - 1, count, count + 1} - {-1}:
        assert_same(*solved(problem, method, STOPS["l1-relative"], cap), label=cap)


def twin_count(problem, method) -> int:
    return solve(problem, method, STOPS["l1-relative"], max_iterations=400).iterations


@pytest.mark.parametrize("name", METHODS)
def test_statistics(name):
    """All together, and each alone: the same numbers, and the same path."""
    problem = random_problem(11, SHAPES["mixed"], singular=False)
    method = METHODS[name](problem)
    names = statistics_of(method)
    together, twin = solved(problem, method, STOPS["l1-relative"], 40, names)
    assert_same(together, twin)
    for statistic in names:
        alone = solve(problem, method, STOPS["l1-relative"], max_iterations=40, statistics=statistic)
        assert same_bits(alone.point, together.point)
        assert same_bits(alone.statistics[statistic], together.statistics[statistic])


def statistics_of(method) -> tuple[str, ...]:
    den = ("sup_denominator_l1", "sup_preconditioned", "inf_preconditioned")
    return tuple(name for name in (*STATISTICS, *RATIOS) if method.family == "adam" or name not in den)


@pytest.mark.parametrize("every", [1, 7])
@pytest.mark.parametrize("name", METHODS)
def test_traces(name, every):
    """Recording every n iterations, and the end; it does not change the run."""
    problem = random_problem(8, SHAPES["mixed"], singular=False)
    method, stop = METHODS[name](problem), STOPS["l1-relative"]
    run = solve(problem, method, stop, max_iterations=50, record=every)
    twin = expected(problem, method, stop, 50, run, record=every)
    assert_same(run, twin)
    for column, values in vars(twin.trace).items():
        assert same_bits(getattr(run.trace, column), values), column


@pytest.mark.parametrize("start", [0, 1, 13, 40, 41])
def test_tails(start):
    """Suprema from an iteration on, the last iterate included."""
    problem = random_problem(6, SHAPES["mixed"])
    tails = {"tail_gap_start": start, "tail_displacement_start": start + 2}
    names = ("tail_gap", "tail_displacement")
    method, stop = SignSGD(0.05), GradientNorm(1e-9)
    run = solve(problem, method, stop, max_iterations=40, statistics=names, **tails)
    twin = twin_solve(problem, method, stop, max_iterations=40, statistics=names, **tails)
    assert_same(run, twin)
    (many,) = solve_many([problem], [method], stop, max_iterations=40, statistics=names, **tails)
    assert_same(many, twin)


@pytest.mark.parametrize("name", ["gd", "gd-lemma", "signsgd-lemma", "adam", "frozen", "gd-momentum"])
def test_many_parameters(name):
    """Sums longer than a chunk, and than a stripe, in every storage."""
    shape = ((300, "haar"), (CHUNK + 5, "axis"), (2 * CHUNK + 11, "householder"))
    problem = random_problem(2, shape, singular=False)
    for stop in (STOPS["l1-relative"], STOPS["gap"]):
        assert_same(*solved(problem, METHODS[name](problem), stop, 8))


@pytest.mark.parametrize("scale", [0.0, 1e-300, 1e-289, 1e-160, 1e-150, 1e150, 1e160, 1e300])
@pytest.mark.parametrize(
    "name", ["gd", "gd-diverging", "gd-momentum", "signum", "normalized_gd", "adam", "adam-sign", "frozen"]
)
def test_tiny_and_huge_starts(name, scale):
    """Starts at the optimum, across the flush boundary, and where squares under- or overflow."""
    if name in FROZEN and scale < 1e-289:
        pytest.skip("no entry of g_0 may be zero")
    problem = random_problem(4, SHAPES["three-dense"], singular=name not in FROZEN)
    problem = problem.with_start(scale * problem.start)
    stops = [
        STOPS["l1"],
        STOPS["gap"],
        GradientNorm(eps=1e-300, ord=2),
        GradientNorm(eps=1e-3, ord=1, relative=True),
    ]
    for stop in stops:
        assert_same(*solved(problem, METHODS[name](problem), stop, 120), label=stop)


def test_a_flush_ends_a_run_at_exactly_zero():
    problem = BlockQuadratic.from_spectra([[1.0, 2.0]], start=[3e-290, -3e-290])
    run, twin = solved(problem, GD(learning_rate=0.4), GradientNorm(eps=1e-300, ord=1), 100)
    assert_same(run, twin)
    assert run.status.value == "converged" and not np.any(run.point)
    assert np.array_equal(flush(np.array([0.9e-290, -1.1e-290])), [0.0, -1.1e-290])


@pytest.mark.parametrize("name", ["gd", "adamw", "signsgd-lambda_p"])
def test_a_minimiser_away_from_zero(name):
    """Weight decay pulls w, not w - w*."""
    for seed in range(4):
        problem = random_problem(seed, SHAPES["mixed"], minimizer=True)
        assert_same(*solved(problem, METHODS[name](problem), STOPS["l2-relative"], 100), label=seed)


# -- batches -------------------------------------------------------------------------------------------


def batch(kind: str, width: int) -> list[BlockQuadratic]:
    """The problems of a batch; their counts differ widely, so lanes stop at different times."""
    rng = np.random.default_rng([width, len(kind)])
    if kind == "one H":
        base = random_problem(1, SHAPES["three-dense"], singular=False)
        scales = 10.0 ** rng.uniform(-2, 1, (width, 1))
        return [base.with_start(start) for start in scales * rng.standard_normal((width, base.size))]
    shapes = {
        "own H": [SHAPES["three-dense"]],
        "own H, all storages": [SHAPES["mixed"]],
        "own shape": list(SHAPES.values()),
    }[kind]
    return [random_problem(seed, shapes[seed % len(shapes)], singular=False) for seed in range(width)]


KINDS = ["one H", "own H", "own H, all storages", "own shape"]
GROUPS = {
    "one method": ["signsgd-lambda_p"],
    "lemma": ["gd-lemma"],
    "adam": ["adam"],
    "every method": list(METHODS),
}
BATCHES = [(width, group) for width in (1, 3, 40) for group in GROUPS] + [(200, "every method")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("width", "group"), BATCHES)
def test_batches(width, kind, group):
    problems = batch(kind, width)
    names = [GROUPS[group][i % len(GROUPS[group])] for i in range(width)]
    methods = [METHODS[name](problem) for name, problem in zip(names, problems, strict=True)]
    stop, caps = STOPS["l1-relative"], [(7 * i) % 51 for i in range(width)]
    runs = solve_many(problems, methods, stop, max_iterations=caps)
    assert len(runs) == width
    for run, problem, method, cap, name in zip(runs, problems, methods, caps, names, strict=True):
        assert run.problem == problem and run.method == method
        assert_same(run, expected(problem, method, stop, cap, run), label=name)


def test_batches_do_not_depend_on_their_making():
    """Order, threads, lanes or not, one list of stops or one stop: the same bits."""
    problems = batch("own shape", 90)
    names = [list(METHODS)[i % len(METHODS)] for i in range(90)]
    methods = [METHODS[name](problem) for name, problem in zip(names, problems, strict=True)]
    stops = [list(STOPS.values())[i % len(STOPS)] for i in range(90)]
    runs = solve_many(problems, methods, stops, max_iterations=45)
    back = solve_many(problems[::-1], methods[::-1], stops[::-1], max_iterations=45, threads=2)[::-1]
    single = solve_many(problems, methods, stops, max_iterations=45, lanes=False)
    for run, other, alone, problem, method, stop in zip(
        runs, back, single, problems, methods, stops, strict=True
    ):
        twin = expected(problem, method, stop, 45, run)
        for each in (run, other, alone):
            assert_same(each, twin)


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("cap", [0, 1, 60])
def test_batches_under_every_stop(stop, cap):
    problems = batch("own H", 40)
    methods = [METHODS["signum" if i % 2 else "gd"](problem) for i, problem in enumerate(problems)]
    runs = solve_many(problems, methods, STOPS[stop], max_iterations=cap)
    for run, problem, method in zip(runs, problems, methods, strict=True):
        assert_same(run, expected(problem, method, STOPS[stop], cap, run))


@pytest.mark.parametrize("stop", ["l1-relative", "l2"])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("sizes", [(3, 3, 3), (1, 2, 3, 4, 5, 6, 7, 8, 9), (16, 3)])
def test_batches_of_dense_blocks(sizes, own, stop):
    """Every remainder of the rows taken four at a time, and blocks of three alone."""
    shape = tuple((size, "haar") for size in sizes)
    names = ["gd", "gd-lemma", "signsgd-lambda_p", "signsgd", "adam"]
    rng = np.random.default_rng(len(sizes))
    problems = [random_problem(seed if own else 0, shape, singular=False) for seed in range(60)]
    if not own:
        problems = [problems[0].with_start(rng.standard_normal(problems[0].size)) for _ in problems]
    methods = [METHODS[names[i % 5]](problem) for i, problem in enumerate(problems)]
    caps = [(11 * i) % 47 for i in range(60)]
    runs = solve_many(problems, methods, STOPS[stop], max_iterations=caps)
    for i, (run, problem, method) in enumerate(zip(runs, problems, methods, strict=True)):
        assert_same(run, expected(problem, method, STOPS[stop], caps[i], run), label=names[i % 5])


@pytest.mark.parametrize("name", ["gd-lemma", "signsgd-lemma", "adam", "gd-diverging"])
@pytest.mark.parametrize("kind", ["one H", "own H, all storages"])
def test_statistics_in_batches(name, kind):
    problems = batch(kind, 40)
    methods = [METHODS[name](problem) for problem in problems]
    names = statistics_of(methods[0])
    runs = solve_many(problems, methods, STOPS["l1-relative"], max_iterations=40, statistics=names)
    for run, problem, method in zip(runs, problems, methods, strict=True):
        assert_same(run, expected(problem, method, STOPS["l1-relative"], 40, run, names))


# -- properties ----------------------------------------------------------------------------------------

blocks = st.tuples(st.integers(1, 12), st.sampled_from(BASES))
runs = st.tuples(st.integers(0, 2**32 - 1), st.sampled_from(sorted(METHODS)))


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    shape=st.lists(blocks, min_size=1, max_size=4).map(tuple),
    members=st.lists(runs, min_size=1, max_size=6),
    stop=st.sampled_from(sorted(STOPS)),
    cap=st.integers(0, 80),
)
def test_alone_and_together(shape, members, stop, cap):
    stop = STOPS[stop]
    # "optimal" is refused where H = 0, which a singular draw of one parameter can give
    problems = [
        random_problem(seed, shape, singular=name not in FROZEN and not name.endswith("-optimal"))
        for seed, name in members
    ]
    methods = [METHODS[name](problem) for (_, name), problem in zip(members, problems, strict=True)]
    together = solve_many(problems, methods, stop, max_iterations=cap)
    for run, problem, method in zip(together, problems, methods, strict=True):
        alone, twin = solved(problem, method, stop, cap)
        assert_same(alone, twin, label="alone")
        assert_same(run, twin, label="together")
