"""The comparison of runs with the bounds: what it asks for, what it says, and how it looks."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

import quadlab as ql
from quadlab.bounds import requirements, temporary_bounds
from quadlab.compare import Comparison, compare_run, method_label, stop_dict
from quadlab.methods import elementwise

RUN_KEYS = ["method", "learning_rate", "status", "iterations", "best_bound", "ratio", "bounds"]
BOUND_KEYS = ["name", "kind", "applies", "reasons", "value", "holds", "ratio"]


@pytest.fixture(scope="module")
def comparison():
    methods = [
        ql.GD(learning_rate="lambda_g"),
        ql.SignSGD(learning_rate="lambda_p"),
        ql.Adam(learning_rate=1e-2),
        ql.FrozenAdam("optimal"),
        ql.GD(lambda t: 1e-4 / (t + 1)),
    ]
    return ql.compare(ql.case("het", seed=0), methods, max_iterations=2000)


def test_json_has_the_agreed_form(comparison):
    d = comparison.to_dict()
    assert list(d) == ["case", "seed", "stop", "runs"]
    assert (d["case"], d["seed"]) == ("het", None)
    for run in d["runs"]:
        assert list(run) == RUN_KEYS
        assert [entry["name"] for entry in run["bounds"]] == list(ql.bounds().names)
        for entry in run["bounds"]:
            assert list(entry) == BOUND_KEYS
            assert entry["applies"] == (not entry["reasons"])
            if not entry["applies"]:
                assert entry["value"] is entry["holds"] is entry["ratio"] is None
    assert json.loads(json.dumps(d, allow_nan=False)) == d
    assert [run["method"] for run in d["runs"]][:3] == ["gd", "signsgd", "adam"]
    assert [run["learning_rate"] for run in d["runs"]][:4] == ["lambda_g", "lambda_p", 1e-2, "optimal"]
    assert d["runs"][4]["learning_rate"] == "<lambda>"
    assert comparison.with_seed(7).to_dict()["seed"] == 7


def test_the_best_bound_is_the_smallest(comparison):
    for run, d in zip(comparison.runs, comparison.to_dict()["runs"], strict=True):
        uppers = {
            e.name: e.value
            for e in run.evaluations
            if e.applies and e.bound.kind == "upper" and e.bound.quantity == "iterations"
        }
        if not uppers:
            assert run.best is run.best_bound is run.ratio is d["best_bound"] is d["ratio"] is None
            continue
        assert uppers[run.best_bound] == min(uppers.values())
        if run.run.converged:
            assert d["ratio"] == run.run.iterations / min(uppers.values())


def test_numbers_of_het_and_hom():
    """Medians over draws, theory's section 8: T(GD, 1/Lambda_G), T(SignSGD, P Lambda_P), T(SignSGD, M*)."""
    methods = [ql.GD("lambda_g"), ql.SignSGD("lambda_p"), ql.SignSGD("m_star")]
    for name, expected in (("het", (5, 87, 87)), ("hom", (175, 415, 302))):
        counts = []
        for seed in range(60):
            problem = ql.case(name, seed=seed)
            eps = 1e-3 * float(np.abs(problem.gradient(problem.start)).mean())
            stops = [ql.GradientNorm(eps, 2), ql.GradientNorm(eps, 1), ql.GradientNorm(eps, 1)]
            result = ql.compare(problem, methods, stops)
            assert not result.violated
            counts.append([run.run.iterations for run in result.runs])
        assert np.median(counts, axis=0) == pytest.approx(expected, rel=0.35)


def test_default_stop(comparison):
    problem = comparison.problem
    eps = 1e-3 * np.abs(problem.gradient(problem.start)).mean()
    assert comparison.to_dict()["stop"] == {"test": "l1", "eps": pytest.approx(eps), "relative": False}


def test_one_stop_a_method():
    problem = ql.case("het", seed=1)
    stops = [ql.GradientNorm(1.0, 2), ql.Gap(1e-3, relative=True)]
    result = ql.compare(problem, [ql.GD("lemma"), ql.SignSGD("lemma")], stops)
    assert [run.run.stop for run in result.runs] == stops
    assert result.to_dict()["stop"] == [
        {"test": "l2", "eps": 1.0, "relative": False},
        {"test": "gap", "delta": 1e-3, "relative": True},
    ]
    assert "||g||_2" in str(result) and "f - f*" in str(result)
    with pytest.raises(ValueError, match="one for all or one a method: received 2 for 1 methods"):
        ql.compare(problem, [ql.GD("lemma")], stops)
    assert stop_dict(ql.GradientNorm(0.5, math.inf))["test"] == "linf"


def test_one_method_alone_and_none():
    problem = ql.case("het", seed=1)
    assert len(ql.compare(problem, ql.GD("lemma")).runs) == 1
    empty = ql.compare(problem, [])
    assert empty.runs == () and empty.to_dict()["stop"] is None
    assert not empty.violated and "het" in str(empty)


def test_bounds_can_be_chosen():
    problem = ql.case("het", seed=1)
    chosen = ["gd.a_priori", ql.bounds()["gd.gradient_weighted"]]
    run = ql.compare(problem, ql.GD("lemma"), bounds=chosen).runs[0]
    assert [e.name for e in run.evaluations] == ["gd.a_priori", "gd.gradient_weighted"]
    assert list(run.run.statistics) == ["sup_lambda_g"]
    with pytest.raises(ValueError, match=r"no bound is named 'gd\.best'; the names are"):
        ql.compare(problem, ql.GD("lemma"), bounds=["gd.best"])
    with pytest.raises(KeyError, match=r"no bound 'gd\.contraction' was evaluated"):
        run["gd.contraction"]


def test_a_run_made_elsewhere():
    problem, method, stop = ql.case("het", seed=2), ql.GD("lemma"), ql.GradientNorm(1.0, 2)
    run = ql.solve(problem, method, stop, **requirements(problem, method, stop))
    assert compare_run(run).to_dict() == ql.compare(problem, method, stop).runs[0].to_dict()


def test_table(comparison):
    text = str(comparison)
    lines = text.splitlines()
    assert lines[0].startswith("het: P = 9, B = 3; stop: ||g||_1 <=")
    rows = [line for line in lines if line.startswith("  gd.") or line.startswith("  bound ")]
    assert len({len(row) for row in rows[:5]}) <= 2  # aligned, but for trailing blanks
    assert "smallest upper bound" in text and "does not apply:" in text
    assert "a bound for" not in text and "VIOLATED" not in text
    assert "gd.constant_step, gd.self_consistency" in text
    assert comparison.with_seed(3).__str__().startswith("het: P = 9, B = 3, seed 3;")


def test_html(comparison):
    text = comparison._repr_html_()
    assert text.count("<table>") == text.count("<details>") + 1 == len(comparison.runs) + 1
    summary = text.partition("<details>")[0]
    assert summary.count("<tr>") == len(comparison.runs) + 1
    assert "het: P = 9, B = 3; stop: ||g||_1 &lt;= " in summary
    assert f">{comparison.runs[0].best_bound}<" in summary and "gd.a_priori" in text
    assert "<td>max_iterations</td><td>2,000</td>" in summary  # a capped run says so beside its number


def test_repr_is_a_line(comparison):
    assert repr(comparison).startswith("<Comparison: GD(lambda_g), SignSGD(lambda_p), Adam(0.01), Adam(opt")
    assert repr(comparison).endswith(" on het, 0 violated>")
    assert repr(comparison.runs[2]) == "<RunComparison: Adam(0.01): converged at 240 iterations>"


# Pictures ---------------------------------------------------------------------------------------------------


def drawn(*arguments, **options):
    from matplotlib.figure import Figure

    return ql.plot(*arguments, ax=Figure().subplots(), **options)


def test_plot():
    methods = [ql.GD("lambda_g"), ql.Adam(1e-4)]
    result = ql.compare(ql.case("het", seed=0), methods, max_iterations=50, record=1)
    axes = drawn(result)
    bound, first, first_end, second, second_end = axes.lines
    gd, adam = (entry.run for entry in result.runs)
    assert bound.get_xdata()[0] == result.runs[0].best.value + 1
    assert first.get_xdata().tolist() == [t + 1 for t in range(gd.iterations + 1)]
    assert first.get_ydata().tolist() == gd.trace.gap.tolist()
    assert second_end.get_xdata().tolist() == [51]
    # a full dot is a run that stopped, an open one a run cut short, which has no count
    assert first_end.get_markerfacecolor() == first.get_color()
    assert (adam.status, second_end.get_markerfacecolor()) == ("max_iterations", "white")
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels[0].startswith(f"GD(lambda_g): T = {gd.iterations}, at most ")
    assert labels[1] == "Adam(0.0001): max_iterations at 50"
    assert second.get_color() != first.get_color()
    assert drawn(result, quantity="grad_l2").lines[1].get_ydata().tolist() == gd.trace.grad_l2.tolist()


def test_plot_refuses(comparison):
    with pytest.raises(ValueError, match="received 'loss'"):
        drawn(comparison, quantity="loss")
    with pytest.raises(ValueError, match="record="):
        drawn(comparison)


def test_a_user_bound_that_fails_is_reported():
    problem = ql.case("het", seed=0)
    with temporary_bounds():

        @ql.bound("mine.hopeful", family="gd", rules="lemma", target="l2", source="a < b")
        def hopeful(s):
            """One step is enough."""
            return 1.5

        result = ql.compare(problem, [ql.GD("lemma"), ql.SignSGD("lemma")])
        assert [e.name for e in result.violated] == ["mine.hopeful"]
        entry = result.runs[0]["mine.hopeful"]
        assert entry.holds is False and entry.ratio == entry.measured / 1.5
        assert result.runs[0].best_bound == "mine.hopeful"
        assert "VIOLATED: mine.hopeful" in str(result) and " NO" in str(result)
        assert result.runs[1]["mine.hopeful"].reasons == ("a bound for GD",)
        assert json.loads(json.dumps(result.to_dict()))["runs"][0]["bounds"][-1]["holds"] is False


def test_a_bound_on_a_user_method():
    @elementwise
    def Doubled(g, w, t):
        return 2.0 * g

    problem = ql.case("het-axis", seed=0)
    with temporary_bounds():

        @ql.bound("mine.doubled", family="user", target="l2", needs=("sup_lambda_d",))
        def doubled(s):
            return 2 * s.stat("sup_lambda_d") * s.delta / s.tolerance**2

        run = ql.compare(problem, Doubled("lemma"), ql.GradientNorm(1.0, 2)).runs[0]
        assert run["mine.doubled"].holds is True
        assert run["lemma.direction_l2"].value == pytest.approx(run["mine.doubled"].value)


def test_labels():
    assert method_label(ql.GD(0.1)) == "gd"
    assert method_label(ql.GD("optimal")) == "gd"
    assert method_label(ql.SignSGD("lemma", momentum=0.9)) == "signsgd(momentum=0.9)"
    assert method_label(ql.RMSProp(0.1)) == "adam(beta1=0.0, beta2=0.99, bias_correction=False)"


def test_censored_runs_have_no_ratio():
    problem = ql.case("het", seed=0)
    run = ql.compare(problem, ql.GD("optimal"), max_iterations=10).runs[0]
    d = run.to_dict()
    assert (d["status"], d["iterations"], d["ratio"]) == ("max_iterations", 10, None)
    assert d["best_bound"] == "gd.contraction" and run["gd.contraction"].holds is None


def test_frozen_pieces():
    assert isinstance(ql.compare(ql.case("het"), []), Comparison)
    with pytest.raises(AttributeError):
        ql.compare(ql.case("het"), []).seed = 3


def test_a_cut_run_names_no_bound_on_its_trajectory():
    entry = ql.compare(ql.case("het"), ql.GD("lambda_g"), ql.GradientNorm(1e-6), max_iterations=3).runs[0]
    assert not entry.run.converged
    assert entry["gd.gradient_weighted"].value is not None
    assert entry.best_bound == "gd.a_priori_linear"
