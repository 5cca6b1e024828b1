"""The golden predictions: counts exactly, bounds to 1e-9. `make golden REASON="..."` rewrites them."""

from __future__ import annotations

import json

import numpy as np
import pytest

import make_golden
import quadlab as ql
from make_golden import RUNS, predictions, problems, read
from quadlab.methods import METHODS

GOLDEN = read()
PROBLEMS = problems()
REWRITE = 'if this is meant: make golden REASON="why"'


@pytest.fixture(scope="module", params=list(PROBLEMS))
def found(request):
    return request.param, predictions(PROBLEMS[request.param])


def test_every_prediction(found):
    name, now = found
    before = GOLDEN["cases"][name]
    assert now.keys() == before.keys()
    wrong = []
    for label, run in now.items():
        told = before[label]
        for key in ("status", "iterations", "best_bound"):
            if run[key] != told[key]:
                wrong.append(f"{label}: {key} was {told[key]}, is {run[key]}")
        if run["bounds"].keys() != told["bounds"].keys():
            wrong.append(f"{label}: bounds {sorted(run['bounds'].keys() ^ told['bounds'].keys())} differ")
            continue
        for bound, (value, holds) in run["bounds"].items():
            old, held = told["bounds"][bound]
            same = value is None and old is None
            same = same or (None not in (value, old) and abs(value - old) <= 1e-9 * abs(old))
            if not same or holds is not held:
                wrong.append(f"{label}: {bound} was {old} ({held}), is {value} ({holds})")
    assert not wrong, "\n".join([f"{name}:", *wrong, REWRITE])


def test_no_golden_bound_is_violated(found):
    verdicts = [holds for run in found[1].values() for _, holds in run["bounds"].values()]
    assert len(verdicts) > 20 and False not in verdicts


def test_every_bound_and_case_has_a_prediction():
    assert set(GOLDEN["cases"]) == {*ql.cases(), "two eigenvectors"}
    for name in ql.cases():
        assert list(GOLDEN["cases"][name]) == list(RUNS)
    held = {
        bound
        for runs in GOLDEN["cases"].values()
        for run in runs.values()
        for bound, (_, holds) in run["bounds"].items()
        if holds
    }
    assert held == {entry.name for entry in ql.bounds().of_runs if entry.built_in}


def test_every_method_takes_every_learning_rate_that_it_can():
    """At least a number, a schedule, the lemma's step and the line search; the rules that a method names."""
    for name in METHODS:
        kinds = {label.partition(": ")[2] for label in RUNS if label.startswith(f"{name}: ")}
        assert kinds >= {"constant", "cosine", "lemma", "line_search"}
    assert {"signsgd: m_star", "gd: optimal", "signsgd: optimal", "frozen_adam: optimal"} <= set(RUNS)


def test_every_update_has_a_reason():
    assert GOLDEN["reasons"] and all(isinstance(r, str) and r.strip() for r in GOLDEN["reasons"])


@pytest.mark.parametrize("name", ql.cases())
def test_the_stored_problems_are_the_named_cases(name):
    stored, fresh = PROBLEMS[name], ql.case(name, seed=0)
    if name.endswith("-axis"):
        assert stored == fresh
    np.testing.assert_allclose(stored.start, fresh.start, rtol=1e-12)
    np.testing.assert_allclose(stored.dense_hessian(), fresh.dense_hessian(), atol=1e-9)
    np.testing.assert_allclose(stored.eigenvalues, fresh.eigenvalues, rtol=1e-12)


def test_rewriting(tmp_path, monkeypatch, capsys):
    """A rewrite keeps the earlier reasons, and asks for one."""
    path = tmp_path / "golden.json"
    monkeypatch.setattr(make_golden, "GOLDEN", path)
    monkeypatch.setattr(make_golden, "problems", lambda: {"two eigenvectors": PROBLEMS["two eigenvectors"]})
    for reason in ("first", "second"):
        make_golden.main(["--reason", reason])
    told = json.loads(path.read_text())
    assert told["reasons"] == ["first", "second"]
    now, before = (golden["cases"]["two eigenvectors"] for golden in (told, GOLDEN))
    assert {k: run["iterations"] for k, run in now.items()} == {
        k: run["iterations"] for k, run in before.items()
    }
    for arguments in ([], ["--reason", " "]):
        with pytest.raises(SystemExit):
            make_golden.main(arguments)
    assert "reason" in capsys.readouterr().err
