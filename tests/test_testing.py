"""`quadlab.testing`: strategies, the property that a bound holds, and the plugin in a project of its own."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import hypothesis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import quadlab as ql
import quadlab.testing
from quadlab.bounds import temporary_bounds
from quadlab.testing import assert_bound_holds, block_quadratics, methods, stops
from quadlab.testing.plugin import SCHEMA, differences, prediction, read, record

ROOT = Path(__file__).parents[1]


def example(code: str | None) -> str:
    """The first code block of a docstring."""
    block = re.search(r"::\n\n((?:    .*\n|\n)+)", code or "")
    assert block is not None
    return "".join(line.removeprefix("    ") for line in block.group(1).strip("\n").splitlines(True)) + "\n"


def diagonal(values, x):
    return ql.BlockQuadratic.from_blocks([list(values)], start=list(x), minimizer=[0.0] * len(x))


# A user's own bound -----------------------------------------------------------------------------------------


def test_the_example_of_the_docstring():
    code = example(quadlab.testing.__doc__)
    assert len([line for line in code.splitlines() if line.strip()]) < 20
    namespace = {}
    with temporary_bounds():
        exec(compile(code, "the example", "exec"), namespace)
        namespace["test_mine"]()
        namespace["test_mine_on_small_blocks"]()


@pytest.fixture
def repeatable():
    """Hypothesis draws the same examples in every run of the suite."""
    before = settings.get_current_profile_name()
    settings.register_profile("repeatable", derandomize=True)
    settings.load_profile("repeatable")
    yield
    settings.load_profile(before)


def test_a_false_bound_fails_and_shrinks(repeatable):
    # One search in sixty ends at a problem of two blocks, so the search is fixed and the end is asked for.
    with temporary_bounds():
        ql.bound("mine.false", family="signsgd", rules="m_star", target="l1")(
            lambda s: s.curvature.trace * s.delta / s.tolerance**2
        )
        with pytest.raises(AssertionError) as error:
            assert_bound_holds("mine.false", max_examples=100)
    message = str(error.value)
    assert re.match(r"mine.false is violated: upper bound 0\.\d+ on iterations, measured 1\n", message)
    assert "SignSGD(m_star), stop: " in message and "block [1.0], start [" in message


def test_one_run():
    problem = diagonal([1.0, 4.0], [4.0, 1.0])
    assert_bound_holds("gd.constant_step", problem, ql.GD(0.25))
    assert_bound_holds("gd.constant_step", problem, ql.GD(0.25), ql.GradientNorm(1.0, 2))
    reason = "gd.constant_step does not apply: eta must be at most 1/L = 0.25, it is 0.5"
    with pytest.raises(ValueError, match=reason):
        assert_bound_holds("gd.constant_step", problem, ql.GD(0.5))
    with temporary_bounds():
        ql.bound("mine.one", family="gd")(lambda s: 1.0)
        with pytest.raises(AssertionError, match="upper bound 1 on iterations, measured more updates"):
            assert_bound_holds("mine.one", problem, ql.GD(0.1), max_iterations=5)


def test_values_and_strategies_mix():
    with temporary_bounds():
        seen = []

        @ql.bound("mine.seen", family="gd", target="l2")
        def mine(s):
            seen.append(s)
            return math.inf

        problem = diagonal([1.0, 4.0], [4.0, 1.0])
        assert_bound_holds("mine.seen", problem, methods("gd", "constant"), max_examples=20)
        assert len(seen) >= 20 and all(s.problem is problem and s.rule == "constant" for s in seen)
        assert len({s.method for s in seen}) > 5 and len({s.test for s in seen}) > 1
        seen.clear()
        assert_bound_holds("mine.seen", stop=ql.Gap(0.5, relative=True), max_examples=20)
        assert {s.test for s in seen} == {"gap"}


def test_nothing_inside_the_assumptions():
    with temporary_bounds():
        ql.bound("mine.none", family="gd", assumes=[(lambda s: False, "never")])(lambda s: 1.0)
        with pytest.raises(hypothesis.errors.Unsatisfiable):
            assert_bound_holds("mine.none", max_examples=10)


@pytest.mark.parametrize(
    "name", ["gd.contraction", "signsgd.linear", "adam.frozen_rate", "lemma.direction_l1"]
)
def test_registered_bounds_hold(name):
    assert_bound_holds(name, max_examples=30, max_iterations=2000)


# The strategies ---------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(block_quadratics(max_blocks=2, max_size=3, condition_number=100.0, singular=False))
def test_problems_stay_in_range(problem):
    assert problem.n_blocks <= 2 and problem.block_sizes.max() <= 3
    assert problem.eigenvalues.min() >= 0.01 * (1 - 1e-12) and problem.eigenvalues.max() <= 1.0
    assert abs(problem.start).max() <= 10.0 and not problem.minimizer.any()


@settings(max_examples=20, deadline=None)
@given(block_quadratics(rotated=False))
def test_unrotated_problems(problem):
    assert all(block.storage == "diagonal" for block in problem.blocks)


def test_problems_cover():
    seen = set()

    @settings(max_examples=300, deadline=None, database=None)
    @given(block_quadratics())
    def collect(problem):
        if (problem.eigenvalues == 0.0).any():
            seen.add("singular")
        if any(block.storage == "dense" for block in problem.blocks):
            seen.add("rotated")
        if not problem.displacement.any():
            seen.add("at rest")
        seen.add(problem.n_blocks)
        seen.update(problem.block_sizes.tolist())

    collect()
    assert seen >= {"singular", "rotated", "at rest", 1, 2, 3, 4}


def test_methods_cover():
    found = set()

    @settings(max_examples=400, deadline=None, database=None)
    @given(methods())
    def collect(method):
        found.add(
            (method.family, method.learning_rate if isinstance(method.learning_rate, str) else "constant")
        )

    collect()
    assert {family for family, _ in found} == {
        "gd", "signsgd", "normalized_gd", "adam", "steepest", "adam_mini",
    }  # fmt: skip
    assert {rule for _, rule in found} == {"constant", "lemma", "m_star", "line_search"}
    assert {rule for family, rule in found if family != "signsgd"} == {"constant", "lemma", "line_search"}


def test_methods_that_do_not_exist():
    with pytest.raises(ValueError, match="none is known of adamax"):
        methods("adamax")
    with pytest.raises(ValueError, match="no method goes with a step rule among m_star"):
        methods("gd", "m_star")


@settings(max_examples=50, deadline=None)
@given(stops(["linf", "gap"], smallest=1e-3), st.floats(0.1, 10.0))
def test_stops(stop, value):
    assert stop.relative and stop.quantity in ("grad_linf", "gap")
    assert 1e-3 * value <= stop.tolerance(7, value) <= value


# The record -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def comparison():
    problem = diagonal([1.0, 4.0], [4.0, 1.0])
    return ql.compare(problem, [ql.GD(0.25), ql.SignSGD("lambda_p")], ql.GradientNorm(1.0, ord=2))


def test_a_prediction_is_json_and_equals_itself(comparison):
    entry = prediction(comparison)
    assert entry["problem"]["gap"] == 10.0 and entry["runs"][0]["iterations"] == 4
    assert "gd.constant_step" in entry["runs"][0]["bounds"]
    copy = json.loads(json.dumps(entry, allow_nan=False))
    assert copy == entry and differences(copy, entry) == []


def moved(comparison, change):
    """The differences from a changed record."""
    golden = json.loads(json.dumps(prediction(comparison)))
    change(golden)
    return differences(golden, prediction(comparison))


def test_what_moves_is_told(comparison):
    bounds = "gd.constant_step"
    assert moved(comparison, lambda g: g["problem"].update(gap=11.0)) == ["problem gap: 11 -> 10"]
    assert moved(comparison, lambda g: g["problem"].update(gap=10.0 * (1 + 1e-10))) == []
    assert moved(comparison, lambda g: g["runs"][0].update(iterations=5)) == [
        "run 0, GD(0.25): iterations: 5 -> 4"
    ]
    assert moved(comparison, lambda g: g["runs"][0].update(status="max_iterations")) == [
        'run 0, GD(0.25): status: "max_iterations" -> "converged"'
    ]
    assert moved(comparison, lambda g: g["runs"][0]["bounds"].update({bounds: 20.0})) == [
        "run 0, GD(0.25): gd.constant_step: 20 -> 40"
    ]
    assert moved(comparison, lambda g: g["runs"][0]["bounds"].update(gone=1.0)) == [
        "run 0, GD(0.25): gone: 1 -> absent"
    ]
    assert moved(comparison, lambda g: g["runs"][0]["bounds"].pop(bounds)) == []  # a bound that is new
    assert moved(comparison, lambda g: g["runs"].pop()) == [
        "run 1, SignSGD(lambda_p): status: not in the record"
    ]
    assert moved(comparison, lambda g: g["stop"].update(eps=0.5)) == ["stop eps: 0.5 -> 1"]


def test_a_file_that_is_no_record(tmp_path):
    path = tmp_path / "x.json"
    assert read(path) == {}
    for text in ("{", "[]", '{"schema": "other/1"}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="is not a record of predictions"):
            read(path)


def write_ten(path, worker):
    for k in range(10):
        record(path, f"{worker}-{k}", {"worker": worker})


def test_processes_merge_their_entries(tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path_factory.mktemp("locks")))
    path = tmp_path / "x.json"
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        for future in [pool.submit(write_ten, path, worker) for worker in range(3)]:
            future.result()
    assert len(read(path)) == 30 and os.listdir(tmp_path) == ["x.json"]
    assert json.loads(path.read_text())["schema"] == SCHEMA


# The plugin -------------------------------------------------------------------------------------------------


def test_the_plugin_is_light():
    """Pytest imports it at every start, in every project of the environment."""
    code = (
        "import sys, pytest; before = set(sys.modules); import quadlab.testing.plugin\n"
        "print(*sorted({name for name in set(sys.modules) - before if 'quadlab' in name}))\n"
        "print(*[n for n in ('numba', 'hypothesis', 'numpy', 'scipy', 'torch') if n in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    names, heavy = out.split("\n")[:2]
    light = ["quadlab", "quadlab._lazy", "quadlab.testing", "quadlab.testing.plugin"]
    assert names.split() == light and heavy == ""


PROJECT = """
import sys

def pytest_configure(config):
    # the plugin is there, and brought nothing with it
    assert config.pluginmanager.has_plugin("quadlab")
    assert not {"numba", "quadlab.problem"} & set(sys.modules)
"""
TESTS = """
import pytest
import quadlab as ql

def compared(rate, eps=1.0):
    problem = ql.BlockQuadratic.from_blocks([[1.0, 4.0]], start=[4.0, 1.0])
    return ql.compare(problem, [ql.GD(rate), ql.SignSGD("lambda_p")], ql.GradientNorm(eps, ord=2))

@pytest.mark.parametrize("rate", [0.1, 0.15, 0.2, 0.25])
def test_rates(bound_regression, rate):
    bound_regression(compared(rate))

class TestTwice:
    def test_twice(self, bound_regression):
        bound_regression(compared(0.25, 1.0), "loose")
        bound_regression(compared(0.25, 0.5), "strict")

def test_once_too_often(bound_regression, request):
    if not request.config.getoption("--quadlab-update"):
        with pytest.raises(ValueError, match="a name for each call"):
            bound_regression(compared(0.25))
            bound_regression(compared(0.25))
    else:
        bound_regression(compared(0.25))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The package, from its wheel, in a folder of its own; built from a copy, so that none is left behind."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "quadlab", source / "quadlab", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    wheels = source / "wheels"
    subprocess.run(
        [*pip, "wheel", "--no-index", "--no-build-isolation", "--no-deps", "-w", str(wheels), str(source)],
        check=True,
    )
    (wheel,) = wheels.glob("quadlab-*.whl")
    subprocess.run(
        [*pip, "install", "--no-index", "--no-deps", "--target", str(target), str(wheel)], check=True
    )
    return target


def test_in_a_project_of_its_own(installed, tmp_path):
    (tmp_path / "conftest.py").write_text(PROJECT)
    (tmp_path / "test_mine.py").write_text(TESTS)
    golden = tmp_path / "test_mine.quadlab.json"
    # the kernels run uncompiled: the few iterations here are not worth a minute of compilation
    environment = os.environ | {
        "PYTHONPATH": str(installed),
        "NUMBA_DISABLE_JIT": "1",
        "TMPDIR": str(tmp_path),
    }
    environment = {key: value for key, value in environment.items() if not key.startswith("PYTEST_")}

    def run(*arguments):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    where = subprocess.run(
        [sys.executable, "-c", "import quadlab; print(quadlab.__file__)"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    ).stdout
    assert Path(where).is_relative_to(installed)

    status, out = run("-k", "rates")
    assert status == 1 and "4 failed" in out
    assert "test_mine.quadlab.json has no prediction for test_rates[0.1]; pytest --quadlab-update" in out
    assert not golden.exists()

    status, out = run("-n", "2", "--quadlab-update")
    assert status == 0, out
    entries = json.loads(golden.read_text())["predictions"]
    assert set(entries) == {
        *(f"test_rates[{rate}]" for rate in (0.1, 0.15, 0.2, 0.25)),
        "TestTwice::test_twice: loose",
        "TestTwice::test_twice: strict",
        "test_once_too_often",
    }
    assert entries["test_rates[0.25]"]["runs"][0]["iterations"] == 4
    before = golden.read_bytes()

    status, out = run()
    assert status == 0 and golden.read_bytes() == before, out

    entries["test_rates[0.25]"]["runs"][0]["iterations"] = 5
    entries["test_rates[0.1]"]["runs"][1]["bounds"]["signsgd.parameter_weighted"] *= 1.001
    golden.write_text(json.dumps({"schema": SCHEMA, "predictions": entries}))
    status, out = run()
    assert status == 1 and "2 failed" in out
    assert "the prediction for test_rates[0.25] moved\n  run 0, GD(0.25): iterations: 5 -> 4\n" in out
    assert re.search(r"run 1, SignSGD\(lambda_p\): signsgd.parameter_weighted: [\d.]+ -> [\d.]+\n", out)
    assert "Traceback" not in out and out.count("pytest --quadlab-update records") >= 2

    status, out = run("--quadlab-update", "-k", "rates")
    assert status == 0 and golden.read_bytes() == before, out
    assert sorted(path.name for path in tmp_path.glob("*.json*")) == [golden.name]
