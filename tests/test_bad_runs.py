"""Malformed runs: each is refused with a one-line ValueError that names the value."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from quadlab.cases import case
from quadlab.compare import compare
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
from quadlab.solve import best_learning_rate, solve, solve_many
from quadlab.steps import Schedule, constant, cosine, inverse_sqrt, linear_decay, warmup
from quadlab.stopping import Gap, GradientNorm, default_stop

NAN, INF = math.nan, math.inf
PROBLEM, OTHER = case("het-axis"), case("hom-axis")
ZERO_ENTRY = BlockQuadratic.from_spectra([[1.0, 2.0]], start=[1.0, 0.0], minimizer=[0.0, 0.0])
FLAT = BlockQuadratic.from_spectra([[0.0, 0.0]], start=[1.0, 0.0], minimizer=[0.0, 0.0])
METHOD, STOP = GD(1e-4), GradientNorm(1e-3)


def made(kind: Any, *arguments: Any, **options: Any) -> Any:
    return lambda: kind(*arguments, **options)


def run(problem: Any = PROBLEM, method: Any = METHOD, stop: Any = STOP, **options: Any) -> Any:
    return lambda: solve(problem, method, stop, **options)


def many(problems: Any = (PROBLEM, OTHER), methods: Any = METHOD, stop: Any = STOP, **options: Any) -> Any:
    return lambda: solve_many(problems, methods, stop, **options)


def rates(**options: Any) -> Any:
    return lambda: best_learning_rate(PROBLEM, GD(1.0), STOP, **options)


def compared(methods: Any = METHOD, stop: Any = STOP, problem: Any = PROBLEM, **options: Any) -> Any:
    return lambda: compare(problem, methods, stop, **options)


def resumed(change: dict[str, Any], first: dict[str, Any] | None = None) -> Any:
    """A run of five updates, resumed with something else."""
    same = {"problem": PROBLEM, "method": METHOD, "stop": STOP}

    def attempt() -> Any:
        part = solve(**{**same, "max_iterations": 5, **(first or {})})
        return solve(**{**same, **change}, resume=part)

    return attempt


def scheduled(value: Any, **options: Any) -> Any:
    def rate(t: int) -> Any:
        return value if t >= 3 else 1e-4

    return many([PROBLEM] * 8, GD(rate), **options) if options else run(method=GD(rate))


@elementwise
def Shrink(g, w, t, factor=0.9):
    return factor * g


def misordered(w, g, t):
    return g


def starred(g, w, t, *rest):
    return g


def no_offsets(g, w, t, d, m):
    d[:] = g


def greedy(g, w, t, a=1, b=1, c=1, d=1, e=1, f=1, h=1, i=1, j=1, k=1, l=1, m=1, n=1):  # noqa: E741
    return g


BAD = {
    # stopping tests
    "eps zero": (made(GradientNorm, 0), r"eps must be positive and finite, received 0$"),
    "eps negative": (made(GradientNorm, -1e-3), r"eps .*received -0\.001"),
    "eps nan": (made(GradientNorm, NAN), r"eps .*received nan"),
    "eps infinite": (made(GradientNorm, INF), r"eps .*received inf"),
    "eps text": (made(GradientNorm, "small"), r"eps must be a positive number, received 'small'"),
    "eps bool": (made(GradientNorm, True), r"eps .*received True"),
    "eps array": (made(GradientNorm, np.ones(2)), r"eps .*received array"),
    "eps complex": (made(GradientNorm, 1j), r"eps .*received 1j"),
    "order 3": (made(GradientNorm, 1e-3, ord=3), r"ord must be 1, 2 or inf, received 3"),
    "order text": (made(GradientNorm, 1e-3, ord="inf"), r"ord .*received 'inf'"),
    "order bool": (made(GradientNorm, 1e-3, ord=True), r"ord .*received True"),
    "order array": (made(GradientNorm, 1e-3, ord=np.array([1, 2])), r"ord .*received array\(\[1, 2\]\)"),
    "order -inf": (made(GradientNorm, 1e-3, ord=-INF), r"ord .*received -inf"),
    "relative number": (made(GradientNorm, 1e-3, relative=1), r"relative must be True or False, received 1"),
    "relative text": (made(Gap, 1e-3, relative="yes"), r"relative .*received 'yes'"),
    "delta zero": (made(Gap, 0.0), r"delta must be positive and finite, received 0\.0"),
    "delta negative": (made(Gap, -1e-9), r"delta .*received -1e-09"),
    "delta beyond float64": (made(Gap, 10**400), r"delta must be positive and finite, received 1000"),
    "no start value": (lambda: Gap(0.1, relative=True).tolerance(3), r"start's own value, received None"),
    # learning rates
    "rate zero": (made(GD, 0), r"learning_rate must be positive and finite, received 0"),
    "rate negative": (made(SignSGD, -0.1), r"learning_rate .*received -0\.1"),
    "rate nan": (made(Adam, NAN), r"learning_rate .*received nan"),
    "rate infinite": (made(NormalizedGD, INF), r"learning_rate .*received inf"),
    "rate beyond float64": (made(GD, 10**400), r"learning_rate must be positive and finite, received 1000"),
    "rate none": (made(RMSProp, None), r"learning_rate must be a positive number, received None"),
    "rate bool": (made(AdamW, True), r"learning_rate .*received True"),
    "rate list": (made(FrozenAdam, [0.1]), r"learning_rate .*received \[0\.1\]"),
    "rate unknown": (made(GD, "fast"), r"learning_rate must be a number, a Schedule or one of .*'fast'"),
    "lambda_p for GD": (made(GD, "lambda_p"), r"learning_rate 'lambda_p' does not go with GD"),
    "lambda_g for SignSGD": (made(SignSGD, "lambda_g"), r"'lambda_g' does not go with SignSGD"),
    "m_star for Adam": (made(Adam, "m_star"), r"'m_star' does not go with Adam"),
    "optimal for Adam": (made(Adam, "optimal"), r"'optimal' does not go with Adam"),
    "optimal for normalised GD": (made(NormalizedGD, "optimal"), r"'optimal' does not go with NormalizedGD"),
    "lambda_g with momentum": (
        made(GD, "lambda_g", momentum=0.5),
        r"'lambda_g' does not go with GD\(lambda_g, momentum=0\.5\)",
    ),
    "m_star with momentum": (made(SignSGD, "m_star", momentum=0.1), r"'m_star' .* SignSGD\(.*momentum=0\.1"),
    "optimal frozen with beta1": (made(FrozenAdam, "optimal", beta1=0.5), r"'optimal' .*beta1=0\.5"),
    "optimal for a user's method": (made(Shrink, "optimal"), r"'optimal' does not go with Shrink"),
    "schedule of no function": (made(Schedule, 3), r"a Schedule is made of a function of t, received 3"),
    "constant nan": (made(constant, NAN), r"learning_rate .*received nan"),
    "horizon zero": (made(linear_decay, 0.1, 0), r"a horizon must be an integer >= 1, received 0"),
    "horizon float": (made(cosine, 0.1, 1.5), r"a horizon .*received 1\.5"),
    "negative decay": (made(linear_decay, -0.1, 10), r"learning_rate .*received -0\.1"),
    "inverse sqrt of zero": (made(inverse_sqrt, 0), r"learning_rate .*received 0"),
    "warm-up of no steps": (made(warmup, 0, 0.1), r"a horizon .*received 0"),
    "warm-up to text": (made(warmup, 3, "x"), r"learning_rate .*received 'x'"),
    "schedule nan": (scheduled(NAN), r"learning_rate rate must be finite and >= 0, received nan at t = 3"),
    "schedule negative": (scheduled(-1e-4), r"learning_rate rate .*received -0\.0001 at t = 3"),
    "schedule infinite": (scheduled(INF), r"learning_rate rate .*received inf at t = 3"),
    "schedule text": (scheduled("x"), r"learning_rate rate must return a number, received 'x' at t = 3"),
    "schedule none": (scheduled(None), r"learning_rate rate .*received None at t = 3"),
    "schedule array": (scheduled(np.ones(2)), r"learning_rate rate must return a number, received array"),
    "schedule complex": (scheduled(1j), r"learning_rate rate must return a number, received 1j"),
    "schedule nan in lanes": (
        scheduled(NAN, max_iterations=9),
        r"learning_rate rate .*received nan at t = 3",
    ),
    # hyperparameters
    "momentum one": (made(GD, 0.1, momentum=1.0), r"momentum must be in \[0, 1\), received 1\.0"),
    "momentum negative": (made(SignSGD, 0.1, momentum=-0.1), r"momentum .*received -0\.1"),
    "momentum nan": (made(GD, 0.1, momentum=NAN), r"momentum .*received nan"),
    "momentum text": (made(GD, 0.1, momentum="x"), r"momentum must be a number, received 'x'"),
    "nesterov alone": (made(GD, 0.1, nesterov=True), r"nesterov needs momentum > 0, received momentum 0\.0"),
    "nesterov number": (
        made(GD, 0.1, momentum=0.5, nesterov=1),
        r"nesterov must be True or False, received 1",
    ),
    "beta1 one": (made(Adam, 0.1, beta1=1.0), r"beta1 must be in \[0, 1\), received 1\.0"),
    "beta2 above one": (made(Adam, 0.1, beta2=1.1), r"beta2 must be in \[0, 1\], received 1\.1"),
    "beta2 negative": (made(RMSProp, 0.1, beta2=-0.1), r"beta2 .*received -0\.1"),
    "epsilon negative": (made(Adam, 0.1, epsilon=-1e-8), r"epsilon must be finite and >= 0, received -1e-08"),
    "epsilon infinite": (made(Adam, 0.1, epsilon=INF), r"epsilon .*received inf"),
    "weight decay negative": (made(AdamW, 0.1, weight_decay=-1), r"weight_decay .*received -1"),
    "bias correction text": (made(Adam, 0.1, bias_correction="no"), r"bias_correction .*received 'no'"),
    # users' methods
    "arguments misordered": (made(elementwise, misordered), r"misordered must take \(g, w, t, .*\(w, g, t\)"),
    "arguments starred": (made(elementwise, starred), r"starred must take \(g, w, t"),
    "no function": (made(elementwise, 3), r"a method is made of a function, received 3"),
    "no offsets": (made(arraywise, no_offsets), r"no_offsets must take .*offsets.*received \('m',\)"),
    "too many hyperparameters": (made(elementwise, greedy), r"greedy may have 12 .*received 13"),
    "hyperparameter unknown": (made(Shrink, 0.1, decay=1), r"Shrink has no hyperparameter 'decay'"),
    "hyperparameter text": (made(Shrink, 0.1, factor="x"), r"Shrink: factor must be a number, received 'x'"),
    "user's rate negative": (made(Shrink, -1), r"learning_rate .*received -1"),
    # solve
    "problem's name": (run("het"), r"problem must be a BlockQuadratic, received 'het'"),
    "method's name": (run(method="gd"), r"method must be GD, .* received 'gd'"),
    "method's class": (run(method=GD), r"method must be GD, .* received <class 'quadlab\.methods\.GD'>"),
    "stop number": (run(stop=1e-3), r"stop must be a GradientNorm or a Gap, received 0\.001"),
    "stop none": (run(stop=None), r"stop .*received None"),
    "method and stop swapped": (run(method=STOP, stop=METHOD), r"method must be .*received GradientNorm"),
    "cap negative": (run(max_iterations=-1), r"max_iterations must be an integer >= 0, received -1"),
    "cap float": (run(max_iterations=1e6), r"max_iterations .*received 1000000\.0"),
    "cap text": (run(max_iterations="10"), r"max_iterations .*received '10'"),
    "cap bool": (run(max_iterations=True), r"max_iterations .*received True"),
    "cap beyond int64": (run(max_iterations=2**70), r"max_iterations .*received 1180591620717411303424"),
    "statistic unknown": (run(statistics=("speed",)), r"statistics must be among .*received 'speed'"),
    "statistic text": (run(statistics="speed"), r"statistics must be among .*received 'speed'"),
    "record zero": (run(record=0), r"record must be an integer >= 1, received 0"),
    "record negative": (run(record=-5), r"record .*received -5"),
    "record float": (run(record=2.5), r"record must be an integer, \"log\" or a list.*received 2\.5"),
    "record bool": (run(record=True), r"record .*received True"),
    "record unknown": (run(record="linear"), r"record .*received 'linear'"),
    "record float times": (run(record=[1, 2.5]), r"record must list iterations >= 0, received \[1, 2\.5\]"),
    "record negative time": (run(record=[3, -1]), r"record .*received \[3, -1\]"),
    "callback alone": (run(callback=print), r"a callback .*received record=None"),
    "callback no function": (run(record=5, callback=3), r"callback must be a function, received 3"),
    "tail negative": (run(tail_gap_start=-1), r"a tail starts at an iteration >= 0, received -1"),
    "tail nan": (run(tail_displacement_start=NAN), r"a tail .*received nan"),
    "tail text": (run(tail_gap_start="x"), r"a tail .*received 'x'"),
    "frozen with a zero": (run(ZERO_ENTRY, FrozenAdam(0.1)), r"frozen .*received 0 at coordinate 1"),
    "frozen on H = 0": (run(FLAT, FrozenAdam(0.1)), r"frozen .*received 0 at coordinate 0"),
    "optimal frozen with a zero": (run(ZERO_ENTRY, FrozenAdam("optimal")), r"frozen .*coordinate 1"),
    "optimal GD on H = 0": (run(FLAT, GD("optimal")), r"\"optimal\" needs a nonzero Hessian, received H = 0"),
    "optimal sign on H = 0": (run(FLAT, SignSGD("optimal")), r"\"optimal\" .*received H = 0"),
    # resume
    "resume text": (run(resume="x"), r"resume must be a Run made by solve, received 'x'"),
    "resume of a batch": (
        lambda: solve(PROBLEM, METHOD, STOP, resume=solve_many(PROBLEM, METHOD, STOP, max_iterations=5)[0]),
        r"resume must be a Run made by solve, received <Run: GD",
    ),
    "resume of another problem": (resumed({"problem": OTHER}), r"resume .*same problem, method and stop"),
    "resume from another start": (
        resumed({"problem": PROBLEM.with_start(np.ones(9))}),
        r"resume .*same problem",
    ),
    "resume of another method": (resumed({"method": GD(2e-4)}), r"resume .*same problem, method and stop"),
    "resume of another stop": (
        resumed({"stop": GradientNorm(1e-2)}),
        r"resume .*same problem, method and stop",
    ),
    "resume with statistics": (
        resumed({"statistics": ("sup_lambda_g",)}),
        r"resume .*same statistics, received \(\)",
    ),
    "resume with another tail": (
        resumed(
            {"statistics": "tail_gap", "tail_gap_start": 3}, {"statistics": "tail_gap", "tail_gap_start": 7}
        ),
        r"resume .*same tail starts, received 7 and 0",
    ),
    "resume to a smaller cap": (resumed({"max_iterations": 3}), r"max_iterations must be >= 5 .*received 3"),
    "resume of a finished run": (
        resumed({"stop": GradientNorm(1e9)}, {"stop": GradientNorm(1e9)}),
        r"only a capped or interrupted run .*received one that converged",
    ),
    # solve_many
    "methods of unequal length": (
        many(methods=[METHOD] * 3),
        r"equal length, received problems 2, methods 3",
    ),
    "stops of unequal length": (many(stop=[STOP]), r"equal length, received problems 2, stop 1"),
    "caps of unequal length": (many(max_iterations=[1, 2, 3]), r"equal length, .*max_iterations 3"),
    "tails of unequal length": (many(tail_gap_start=[0.0]), r"equal length, .*tail_gap_start 1"),
    "one cap negative": (many(max_iterations=[1, -2]), r"run 1: max_iterations .*received -2"),
    "caps of floats": (many(max_iterations=np.array([1.0, 2.0])), r"run 0: max_iterations .*1\.0"),
    "one problem's name": (
        many([PROBLEM, "het"]),
        r"run 1: problem must be a BlockQuadratic, received 'het'",
    ),
    "one method none": (many(methods=[METHOD, None]), r"run 1: method must be .*received None"),
    "one stop none": (many(stop=[STOP, None]), r"run 1: stop .*received None"),
    "one frozen with a zero": (
        many([PROBLEM, ZERO_ENTRY], FrozenAdam(0.1)),
        r"run 1: a frozen .*coordinate 1",
    ),
    "statistic of many unknown": (many(statistics=["speed"]), r"statistics must be among .*received 'speed'"),
    "no threads": (many(threads=0), r"threads must be an integer >= 1, received 0"),
    "half threads": (many(threads=1.5), r"threads .*received 1\.5"),
    # best_learning_rate
    "empty grid": (rates(learning_rates=[]), r"learning_rates must be a non-empty list, received \[\]"),
    "grid of text": (rates(learning_rates="abc"), r"learning_rates must be numbers, received 'abc'"),
    "grid with a negative": (rates(learning_rates=[1.0, -1.0]), r"learning_rate .*received -1\.0"),
    "grid with a nan": (rates(learning_rates=[NAN, 1.0]), r"learning_rate .*received nan"),
    "grid of rows": (rates(learning_rates=[[1.0]]), r"learning_rates must be .*received \[\[1\.0\]\]"),
    "grid's cap": (rates(max_iterations=-3), r"max_iterations .*received -3"),
    "grid for a name": (lambda: best_learning_rate("het", METHOD, STOP), r"problem must .*received 'het'"),
    "grid for no method": (lambda: best_learning_rate(PROBLEM, "gd", STOP), r"method must .*received 'gd'"),
    # compare
    "more stops than methods": (compared([METHOD], [STOP, STOP]), r"one a method.* received 2 for 1"),
    "bound unknown": (compared(bounds=["gd.best"]), r"no bound is named 'gd\.best'"),
    "compared cap negative": (compared(max_iterations=-1), r"max_iterations .*received -1"),
    "compared cap float": (compared(max_iterations=1e6), r"max_iterations .*received 1000000\.0"),
    "compared frozen with a zero": (compared(FrozenAdam(0.1), problem=ZERO_ENTRY), r"0 at coordinate 1"),
    "compared optimal on H = 0": (compared(GD("optimal"), problem=FLAT), r"received H = 0"),
    "statistics number": (run(statistics=3), r"statistics .*received 3"),
    "statistics none": (run(statistics=None), r"statistics .*received None"),
    "statistics lists": (run(statistics=[["sup_lambda_g"]]), r"statistics .*received \['sup_lambda_g'\]"),
    "compared problem's name": (compared(problem="het"), r"problem must be a BlockQuadratic, received 'het'"),
    "compared method's name": (compared("gd"), r"method must be .*received 'g"),
    "compared method number": (compared(3), r"method must be .*received 3"),
    "compared method's class": (compared(GD), r"method must be .*received <class"),
    "compared stop number": (compared(stop=1e-3), r"stop must be .*received 0\.001"),
    "bounds number": (compared(bounds=3), r"bounds? .*received 3|no bound is named 3"),
    "default stop of a name": (lambda: default_stop("het"), r"problem must be .*received 'het'"),  # type: ignore[arg-type]
}


def refuse(attempt: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as info:
        attempt()
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("name", BAD)
def test_refused(name):
    refuse(*BAD[name])


def test_the_table_is_long_enough():
    assert len(BAD) >= 100


def test_a_bad_run_in_a_batch_stops_it_before_anything_runs():
    called = []
    good = GD(lambda t: called.append(t) or 1e-4)
    with pytest.raises(ValueError, match="run 9"):
        solve_many([PROBLEM] * 10, [good] * 9 + [None], STOP)
    assert not called


def test_at_the_edges_of_what_is_accepted():
    """Just inside every condition of the table."""
    for method in (
        GD(5e-324),
        GD(1.7e308),
        GD(np.float32(0.1)),
        GD(1),
        GD(0.1, momentum=0.0),
        GD(0.1, momentum=math.nextafter(1.0, 0.0)),
        Adam(0.1, beta1=0.0, beta2=0.0, epsilon=0.0),
        Adam(0.1, beta2=1.0),
        AdamW(0.1, weight_decay=0.0),
        GD(lambda t: 0.0),
    ):
        assert solve(PROBLEM, method, STOP, max_iterations=2).iterations <= 2
    assert solve(PROBLEM, METHOD, STOP, max_iterations=np.int64(0)).iterations == 0
    assert solve(PROBLEM, METHOD, STOP, max_iterations=3, record=np.int32(1)).trace.iteration.size == 4
    assert GradientNorm(np.float32(0.5), ord=2.0).tolerance(4) == 1.0
    assert GradientNorm(5e-324).eps > 0.0 and Gap(1e300).delta == 1e300
