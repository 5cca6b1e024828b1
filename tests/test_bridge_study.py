"""The study: units that resume, what is recorded, and how it is judged."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from scipy.stats import spearmanr

from no_torch import python_without_torch
from quadlab.bridge import study
from quadlab.bridge.replay import predict
from quadlab.bridge.study import Unit, gap_of, pairs, rank_correlation, units


def tiny(kind, model="mlp", **changes):
    """A unit of half a second."""
    given = {"depth": 1, "seed": 0, "width": 8, "examples": 16, "target": 1.0}
    return Unit(kind, model, **{**given, **changes})


def test_the_plan_holds_what_the_question_needs():
    plan = units()
    keys = [task.key for task in plan]
    assert len(set(keys)) == len(keys)
    trained = {(u.model, u.depth) for u in plan if u.kind == "training"}
    assert len(trained) >= 10 and trained == {(u.model, u.depth) for u in plan if u.kind == "blocks"}
    for model in study.TRANSFORMERS:
        assert {u.depth for u in plan if u.kind == "gradients" and u.model == model} == {2, 4, 8}
        assert f"course-{model}-2-0" in keys and f"extremes-{model}-8-0" in keys


@pytest.mark.parametrize("kind", ["training", "minibatch", "blocks", "extremes", "gradients", "course"])
def test_a_unit_is_measured_and_is_json(kind, tmp_path):
    pytest.importorskip("torch")
    found = study.run_unit(tiny(kind), tmp_path)
    assert (found["kind"], found["model"], found["width"]) == (kind, "mlp", 8)
    json.dumps(found, allow_nan=False)
    if kind in ("training", "minibatch"):
        for result in found["optimizers"].values():
            converged = [count for _, status, count in result["runs"] if status == "converged"]
            assert result["iterations"] == min(converged, default=None)
    if kind in ("blocks", "extremes"):
        norms = np.maximum(np.abs(found["top"]), np.abs(found["bottom"]))
        sizes, squares = np.array(found["sizes"]), np.square(found["gradient_norms"])
        assert found["lambda_p"] == pytest.approx(sizes @ norms / sizes.sum(), rel=1e-3)
        assert found["lambda_g"] == pytest.approx(squares @ norms / squares.sum(), rel=1e-3)
        assert found["hessian_cv"] == pytest.approx(norms.std() / norms.mean(), rel=1e-3)
    if kind == "gradients":
        assert all(len(found[key]) == 10 for key in ("gradient_cv", "per_parameter_gini"))
    if kind == "course":
        times = [point["iteration"] for point in found["points"]]
        losses = [point["loss"] for point in found["points"]]
        assert times[0] == 0 and times == sorted(times) and found["status"] == "converged"
        assert losses[-1] <= 1.0 < losses[0]


def test_what_is_there_is_not_made_again_and_what_was_killed_is(tmp_path):
    made = []

    def work(task, store):
        made.append(task.key)
        if len(made) == 2:
            raise KeyboardInterrupt
        return {"kind": task.kind, "seed": task.seed}

    tasks = [tiny("blocks", seed=s) for s in range(3)]
    with pytest.raises(KeyboardInterrupt):
        study.run(tasks, tmp_path, work=work, progress=False)
    assert made == [tasks[0].key, tasks[1].key]
    study.run(tasks, tmp_path, work=work, progress=False)
    assert made[2:] == [tasks[1].key, tasks[2].key]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{t.key}.json" for t in tasks)


def quickly(task, store):
    return {"key": task.key, "process": os.getpid()}


def test_other_processes_make_the_units(tmp_path):
    tasks = [tiny("gradients", seed=s) for s in range(3)]
    study.run(tasks, tmp_path, workers=2, work=quickly, progress=False)
    found = [json.loads((tmp_path / f"{task.key}.json").read_text()) for task in tasks]
    assert [entry["key"] for entry in found] == [task.key for task in tasks]
    assert os.getpid() not in {entry["process"] for entry in found}


def test_what_is_missing_is_named_in_the_record(tmp_path):
    pytest.importorskip("torch")
    tasks = [tiny("gradients"), tiny("blocks")]
    study.run(tasks[:1], tmp_path / "store", progress=False)
    study.record(tasks, tmp_path / "store", tmp_path / "out" / "bridge.json")
    content = json.loads((tmp_path / "out" / "bridge.json").read_text())
    assert content["missing"] == [tasks[1].key] and list(content["units"]) == [tasks[0].key]
    assert content["schema"] == study.SCHEMA


def training(model, sgd, adam, seed=0, at_edge=False):
    counts = {"sgd": {"iterations": sgd, "at_edge": at_edge}, "adam": {"iterations": adam, "at_edge": False}}
    return {"kind": "training", "model": model, "depth": 2, "seed": seed, "optimizers": counts}


def blocks(model, lambda_g=1.0, seed=0):
    """Two blocks whose spectra have nothing in common."""
    return {
        "kind": "blocks",
        "model": model,
        "depth": 2,
        "seed": seed,
        "names": ["a", "b"],
        "sizes": [3, 1],
        "gradient_norms": [1.0, 2.0],
        "top": [1.0, 1000.0],
        "bottom": [0.5, 1000.0],
        "nodes": [[0.5, 1.0], [1000.0]],
        "weights": [[0.33334, 0.66667], [1.0]],
        "leakage": 0.9,
        "loss": 1.0,
        "lambda_g": lambda_g,
        "lambda_p": 2.0,
    }


def replayed(model, gd, adam, seed=0):
    counts = {"gd": gd, "adam": adam}
    return {"kind": "replay", "model": model, "depth": 2, "seed": seed, "counts": counts}


def recording(*entries):
    return {"cap": 1000, "units": {"{kind}-{model}-{depth}-{seed}".format(**e): e for e in entries}}


def test_pairs_are_medians_over_seeds_and_a_capped_run_is_a_lower_value():
    record = recording(
        *(training("a", 10 * k, 2, seed=k) for k in (1, 2, 4)),
        *(blocks("a", float(k), seed=k) for k in (1, 2, 4)),
        *(replayed("a", [6 * k, 30 * k, 90 * k], [3, 3, 3], seed=k) for k in (1, 2, 4)),
        training("b", None, 4),
        blocks("b"),
        replayed("b", [8, None], [2, 2]),
        training("c", 5, 1),  # nothing was measured of it
        training("d", 5, None),
        blocks("d"),
        replayed("d", [8], [2]),
    )
    a, b = pairs(record)
    assert (a["model"], a["seeds"], a["gap"], a["replayed"], a["lambda_ratio"]) == ("a", 3, 10.0, 20.0, 1.0)
    assert not a["censored"] and (b["gap"], b["censored"]) == (250.0, True)
    assert b["replayed"] == (4.0 + study.CAP_REPLAYED / 2) / 2
    assert a["mean_jensen_shannon"] == pytest.approx(1.0, abs=1e-3)
    assert gap_of(5, None, 1000) is None


def test_a_replay_unit_is_made_of_the_recorded_blocks(tmp_path):
    entry = {**blocks("mlp"), "depth": 1}
    (tmp_path / "blocks-mlp-1-0.json").write_text(json.dumps(entry))
    found = study.run_unit(tiny("replay"), tmp_path)
    expected = [predict(study.block_statistics(entry), seed=s).counts for s in range(5)]
    assert found["counts"] == {name: [c[name] for c in expected] for name in expected[0]}
    assert {(u.model, u.depth, u.seed) for u in study.replays()} == {
        (u.model, u.depth, u.seed) for u in units() if u.kind == "blocks"
    }


def test_rank_correlation_is_spearmans_with_ties():
    rng = np.random.default_rng(0)
    for n in (5, 12, 40):
        x, y = rng.integers(0, 5, n).astype(float), rng.standard_normal(n)
        expected = spearmanr(x, y)
        found = rank_correlation(x, y, draws=4000)
        assert found["rho"] == pytest.approx(expected.statistic, abs=1e-4)
        assert found["low"] <= found["rho"] <= found["high"] and found["n"] == n
        if n > 10:
            assert found["p"] == pytest.approx(expected.pvalue, abs=0.04)


def test_the_interval_covers_what_it_should():
    """95 per cent intervals of independent pairs hold 0 in most of 200 samples; of equal ones never."""
    rng = np.random.default_rng(1)
    held = 0
    for k in range(100):
        found = rank_correlation(rng.standard_normal(15), rng.standard_normal(15), draws=300, seed=k)
        held += found["low"] <= 0.0 <= found["high"]
    assert 84 <= held <= 100
    x = rng.standard_normal(15)
    assert rank_correlation(x, x + 1e-9 * x, draws=300)["low"] > 0.9


def test_constant_sides_have_no_correlation():
    assert rank_correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])["rho"] is None
    with pytest.raises(ValueError, match="n >= 3 numbers each"):
        rank_correlation([1.0, 2.0], [1.0, 2.0])


def test_judging_needs_no_torch():
    code = "from quadlab.bridge.study import recorded, pairs\nprint(len(pairs(recorded())))"
    done = python_without_torch(code)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 10
