"""The falsifier: planted false bounds are caught and shrunk, true ones stand, the worst cases are kept."""

from __future__ import annotations

import itertools
import json
import math
import sys
import time

import numpy as np
import pytest

import quadlab as ql
import quadlab.falsify
from make_worst_cases import KEPT, LEAST, MAX_ITERATIONS, from_json, measured
from quadlab.bounds import Setting, gd, temporary_bounds
from quadlab.bounds.record import best_ratio, worst_cases
from quadlab.cli import main
from quadlab.falsify import Instance, excess, falsify, method_text, simplified
from quadlab.methods import parse_method as parse

# the attribute of the package is the function
module = sys.modules["quadlab.falsify"]


def variant(of, name="planted", *, value=None, **changes):
    """Register a false copy of a bound."""
    whole = ql.bounds()[of]
    options = {
        "family": whole.families,
        "rules": whole.rules,
        "target": whole.targets,
        "kind": whole.kind,
        "form": whole.form,
        "quantity": whole.quantity,
        "needs": whole.needs,
        "assumes": whole.assumes,
        "tail_start": whole.tail_start,
        "measure": whole.measure,
    }
    ql.bound(name, **(options | changes))(value or whole.function)
    return name


def half(of):
    whole = ql.bounds()[of]
    return variant(of, value=lambda s: 0.5 * whole(s))


def unsquared(s):
    return (s.curvature.condition_number - 1) / (s.curvature.condition_number + 1)


def trace(s):
    return 2 * s.curvature.trace * s.delta / s.tolerance**2


PLANTED = {
    "half of signsgd.parameter_weighted": lambda: half("signsgd.parameter_weighted"),
    "half of signsgd.m_star": lambda: half("signsgd.m_star"),
    "half of gd.gradient_weighted": lambda: half("gd.gradient_weighted"),
    "half of gd.constant_step": lambda: half("gd.constant_step"),
    "half of adam.a_posteriori": lambda: half("adam.a_posteriori"),
    "half of lemma.direction_l1": lambda: half("lemma.direction_l1"),
    "zhang2024's lower bound unsquared": lambda: variant("gd.zhang_lower", value=unsquared),
    "signsgd with tr H for M*": lambda: variant("signsgd.m_star", value=trace),
    "gd linear without the ceil": lambda: variant("gd.gradient_weighted_linear", form="strict"),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_false_bound_is_caught(planted, tmp_path):
    with temporary_bounds():
        name = PLANTED[planted]()
        begin = time.perf_counter()
        result = falsify(name, budget=60.0, seed=1, file=tmp_path / "worst.npz")
        print(f"{planted}: {time.perf_counter() - begin:.2f} s, {result.tried} tried\n{result}")
        assert result.violated and result.best_ratio > 1.0
        assert result.smallest.evaluation(name).holds is False
        assert result.smallest.problem.size <= 2
        problem = ql.load(result.problem_file)
        assert Instance(problem, *result.found[1:]).evaluation(name).holds is False


def test_a_true_bound_stands():
    result = falsify("signsgd.m_star", budget=60.0, seed=0, tries=2000)
    assert not result.violated and 0.99 < result.best_ratio <= 1.0 and result.smallest is None
    assert result.worst.evaluation("signsgd.m_star").ratio == pytest.approx(result.best_ratio, rel=1e-12)
    assert 2000 <= result.tried < 2100


def test_the_same_seed_finds_the_same():
    one, other = (falsify("gd.a_priori_linear", seed=3, tries=1500, least_iterations=10) for _ in range(2))
    assert one.tried == other.tried and one.best_ratio == other.best_ratio
    assert one.worst.problem == other.worst.problem and one.worst[1:] == other.worst[1:]
    run = ql.solve(*one.worst)
    assert run.iterations >= 10


def test_command_line(tmp_path, capsys):
    file = tmp_path / "worst.npz"
    assert main(["falsify", "gd.constant_step", "--budget", "0.5", "--json", "--out", str(file)]) == 0
    found = json.loads(capsys.readouterr().out)
    head = ["bound", "budget_s", "tried", "best_ratio", "violated", "problem_file"]
    assert list(found)[:6] == head and found["bound"] == "gd.constant_step"
    assert found["budget_s"] == 0.5 and found["tried"] > 0 and found["problem_file"] == str(file)
    test = found["stop"]["test"]
    eps = found["stop"]["delta" if test == "gap" else "eps"]
    arguments = ["--methods", found["method"], "--stop", test, "--eps", repr(eps), "--json"]
    assert main(["compare", str(file), *arguments]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    (entry,) = [item for item in run["bounds"] if item["name"] == "gd.constant_step"]
    assert entry["ratio"] == pytest.approx(found["best_ratio"], rel=1e-12)


def test_command_line_on_a_violation(tmp_path, capsys):
    with temporary_bounds():
        arguments = ["falsify", half("gd.constant_step"), "--out", str(tmp_path / "worst.npz")]
        assert main([*arguments, "--json"]) == 1
        assert json.loads(capsys.readouterr().out)["violated"] is True
        assert main(arguments) == 1
        printed = capsys.readouterr().out
    assert "VIOLATED" in printed
    command = printed.splitlines()[-1].split()
    assert command[:2] == ["quadlab", "compare"] and main(command[1:]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.such.bound"], "no bound is named 'no.such.bound'"),
        (["gd.contraction", "--budget", "0"], "budget must be a positive number of seconds, received 0.0"),
        (["gd.contraction", "--seed", "-1"], "seed must be an integer >= 0, received -1"),
        (["gd.contraction", "--out", "/no/such/folder/x.npz"], "folder that exists"),
    ],
)
def test_bad_input(arguments, message, capsys):
    assert main(["falsify", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_bound_without_a_problem():
    with temporary_bounds():
        ql.bound("planted.none", family="gd", assumes=[(lambda s: False, "never")])(lambda s: 1.0)
        with pytest.raises(ValueError, match=r"no problem was found to which planted.none applies, in \d+"):
            falsify("planted.none", tries=100)
        ql.bound("planted.user", family="user")(lambda s: 1.0)
        with pytest.raises(ValueError, match="give the methods to search among"):
            falsify("planted.user")


def test_a_users_method():
    @ql.elementwise
    def Sign(g, w, t):
        return np.sign(g)

    with temporary_bounds():
        whole = ql.bounds()["signsgd.parameter_weighted"]
        name = variant("signsgd.parameter_weighted", value=lambda s: whole(s) / 3, family="user", assumes=())
        result = falsify(name, methods=[Sign], tries=2000)
    assert result.violated and result.smallest.problem.size == 1
    assert result.smallest.method.name == "Sign"


# The parts --------------------------------------------------------------------------------------------------


def diagonal(values, x):
    return ql.BlockQuadratic.from_blocks([list(values)], start=list(x), minimizer=[0.0] * len(x))


def test_excess_is_oriented():
    """Above 1 exactly where the verdict is a violation, for all three kinds, stopped or not."""
    problem = diagonal([1.0, 3.0], [3.0, 1.0])
    stop = ql.GradientNorm(0.5, 2)
    count = ql.solve(problem, ql.GD(0.1), stop).iterations
    cases = [("upper", 1.0), ("upper", 1e9), ("lower", 1.0), ("lower", 1e9), ("exact", count), ("exact", 2.0)]
    for (kind, value), cap in itertools.product(cases, (count - 3, 10**5)):
        with temporary_bounds():
            ql.bound("mine", family="gd", kind=kind)(lambda s, value=value: value)
            run = ql.compare(problem, ql.GD(0.1), stop, max_iterations=cap, bounds=["mine"]).runs[0]
        ratio = excess(run.evaluations[0], run.run)
        if ratio is not None:
            assert (ratio > 1.0) is (run["mine"].holds is False), (kind, value, cap)
        elif run["mine"].holds is not None:
            assert run["mine"].holds is True and cap < count
    with temporary_bounds():
        ql.bound("zero", family="gd")(lambda s: 0.0)
        run = ql.compare(problem, ql.GD(0.1), stop, bounds=["zero"]).runs[0]
        assert excess(run.evaluations[0], run.run) == math.inf


def test_islands_cover_what_theorems_speak_of():
    """Singular and equal spectra, condition 1e8, special starts, exact learning rates all come up."""
    rng = np.random.default_rng(0)
    entry = ql.bounds()["gd.exact_count"]
    choices = module.choices(entry.families, entry.rules)
    seen = set()
    for _ in range(250):
        island = module._Island.draw(entry, choices, rng)
        for problem, method, stop in island.instances(rng.random((8, island.dimension))):
            c = ql.curvature(problem)
            x = problem.to_eigenbasis(problem.displacement)
            gamma = np.abs(problem.eigenvalues * x)
            seen.add(("sizes", tuple(problem.block_sizes)))
            seen.add(("singular", c.rank < c.size))
            seen.add(("identity", c.condition_number == 1.0 and c.rank == problem.size > 1))
            seen.add(("condition above 1e6", c.condition_number > 1e6))
            seen.add(("rotated", not all(b.storage == "diagonal" for b in problem.blocks)))
            seen.add(("one eigenvector", np.count_nonzero(gamma > 1e-9 * gamma.max()) == 1 < problem.size))
            seen.add(("zeros", 0 < np.count_nonzero(problem.displacement) < problem.size))
            seen.add(("at rest", not problem.displacement.any()))
            if method.learning_rate != "optimal":
                seen.add(("eta = 1/L", method.learning_rate == 1.0 / c.largest))
                seen.add(("eta = 2/L", method.learning_rate == 2.0 / c.largest))
            seen.add(("two eigenvectors", gd.two_eigenvectors.test(Setting.of(problem, method, stop))))
            assert ql.solve(problem, method, stop, max_iterations=3).iterations <= 3
    names = {name for name, value in seen if name != "sizes" and value}
    assert {("sizes", sizes) for sizes in module._SIZES} <= seen
    assert names == {name for name, _ in seen} - {"sizes"}


def test_simplified_keeps_what_it_is_told():
    rng = np.random.default_rng(0)
    problem = ql.BlockQuadratic.from_spectra(
        [[1.234, 2.345, 7.77], [3.21]], basis="haar", seed=0, start=rng.standard_normal(4)
    )
    start = Instance(problem, ql.GD(0.0123), ql.GradientNorm(0.0456, 2))
    count = ql.solve(*start).iterations
    simple = simplified(start, lambda i: ql.solve(*i, max_iterations=count).iterations >= count)
    assert simple.problem.size <= 2 and ql.solve(*simple).iterations >= count
    digits = [module._digits(v) for v in module._numbers(simple)]
    assert max(digits) <= 2, simple


@pytest.mark.parametrize(
    "method",
    [
        ql.GD("lambda_g"),
        ql.GD(0.1, momentum=0.5, nesterov=True),
        ql.SignSGD(1e-5),
        ql.FrozenAdam(0.1),
        ql.Adam("lemma", 0.5, 0.75, 1e-3),
        ql.NormalizedGD("line_search"),
    ],
)
def test_method_text_is_what_the_command_line_reads(method):
    assert parse(method_text(method)) == method


# The record -------------------------------------------------------------------------------------------------

RECORD = worst_cases()
RECORDED = [(name, label) for name, entries in RECORD["bounds"].items() for label in entries]


def test_every_bound_is_on_record():
    """A new bound is searched by `python -m tests.make_worst_cases NAME`."""
    assert set(RECORD["bounds"]) == set(ql.bounds().of_runs.names)
    assert RECORD["least_iterations"] == LEAST and RECORD["max_iterations"] == MAX_ITERATIONS


def test_the_random_search_has_met_every_bound():
    """By `python -m tests.make_worst_cases --random CHECKS`."""
    best = RECORD["random"]["best"]
    assert set(best) == set(RECORD["bounds"]) and sum(e["checked"] for e in best.values()) > 10**5
    for name, entry in best.items():
        assert entry["checked"] > 100 and 0.0 < entry["any"]["ratio"] <= best_ratio(name) <= 1.0


@pytest.mark.parametrize(("name", "label"), RECORDED)
def test_worst_case(name, label):
    entry = RECORD["bounds"][name][label]
    instance = from_json(entry)
    ratio, iterations = measured(instance, name)
    assert ratio is not None and KEPT * entry["ratio"] <= ratio <= 1.0
    assert iterations >= LEAST[label]
    assert instance.evaluation(name, MAX_ITERATIONS).holds is True
