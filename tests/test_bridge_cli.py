"""``quadlab bridge``: its JSON, its files, one line for bad input, and a machine without torch."""

from __future__ import annotations

import importlib
import json
import re

import pytest

import quadlab as ql
from no_torch import python_without_torch
from quadlab.bridge.replay import predict, replay
from quadlab.bridge.statistics import BlockStatistics
from quadlab.cli import main

TINY = ["mlp", "--depth", "1", "--width", "8", "--examples", "16", "--probes", "1", "--steps", "8"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    pytest.importorskip("torch")
    path = tmp_path_factory.mktemp("bridge") / "mlp.npz"
    assert main(["bridge", "measure", *TINY, "--out", str(path)]) == 0
    return path


def test_models(capsys):
    models = pytest.importorskip("quadlab.bridge.models")
    assert main(["bridge", "models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(models.WORKLOADS)
    assert list(rows[0]) == ["name", "depth", "width", "examples", "parameters", "blocks", "description"]
    assert rows[0]["parameters"] == models.workload("gpt-pre").size
    assert main(["bridge", "models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(rows) and lines[1].startswith("gpt-pre")


def test_measure_writes_what_measure_gives(measured, capsys):
    from quadlab.bridge import measure, workload

    w = workload("mlp", depth=1, width=8, examples=16)
    expected = measure(w.model, w.loss, w.batches(4), probes=1, steps=8)
    found = BlockStatistics.load(measured)
    assert found.gradient_norms.tolist() == expected.gradient_norms.tolist()
    assert found.top.tolist() == expected.top.tolist() and found.batches == 4
    assert (found.meta["name"], found.meta["depth"], found.meta["examples"]) == ("mlp", 1, 16)
    capsys.readouterr()
    assert main(["bridge", "measure", *TINY, "--out", str(measured), "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert (table["parameters"], table["blocks"], table["file"]) == (610, 4, str(measured))
    assert table["lambda_g"] == found.gradient_weighted


def test_replay_and_compare_its_problem(measured, tmp_path, capsys):
    path = tmp_path / "problem.npz"
    arguments = ["bridge", "replay", str(measured), "--out", str(path), "--max-block-size", "16"]
    assert main([*arguments, "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    statistics = BlockStatistics.load(measured)
    expected = predict(statistics, max_block_size=16)
    assert table["iterations"] == expected.counts and table["lambda_g"] == statistics.gradient_weighted
    assert ql.load(path) == replay(statistics, 16) and table["problem"] == str(path)
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "Lambda_G / Lambda_P" in out and str(path) in out
    compare = ["compare", str(path), "--methods", "gd:lambda_g,signsgd:lambda_p", "--json"]
    assert main([*compare, "--eps", "0.1", "--relative"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [run["status"] for run in runs] == ["converged", "converged"]
    assert all(run["ratio"] <= 1.0 for run in runs)


def test_noise_is_kept_if_asked_for(measured, tmp_path):
    path = tmp_path / "problem.npz"
    arguments = ["bridge", "replay", str(measured), "--out", str(path), "--max-block-size", "8"]
    assert main(arguments) == 0 and not ql.load(path).noise.any()
    assert main([*arguments, "--noise"]) == 0 and ql.load(path).noise.all()


BAD = {
    "no such model": (["measure", "bert", "--out", "x"], "model must be one of gpt-pre, .* received 'bert'"),
    "depth": (["measure", "mlp", "--out", "x", "--depth", "0"], "depth must be an integer >= 1, received 0"),
    "batches": (["measure", *TINY, "--out", "x", "--batches", "17"], r"count must be an integer in 1\.\.16"),
    "no such file": (["replay", "nosuch.npz"], "nosuch.npz"),
    "no statistics": (["replay", __file__], "is not a statistics file: it is no .npz archive"),
    "no action": ([], "required: ACTION"),
    "no out": (["measure", "mlp"], "required: --out"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_status_two(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, message = BAD[name]
    if arguments[:1] == ["measure"]:
        pytest.importorskip("torch")
    try:
        status = main(["bridge", *arguments])
    except SystemExit as end:  # argparse's own
        status = end.code
    captured = capsys.readouterr()
    assert (status, captured.out) == (2, "")
    assert len(captured.err.splitlines()) == 1
    assert re.search(message, captured.err)
    assert list(tmp_path.iterdir()) == []


def test_bad_negative_is_one_line(measured, capsys):
    assert main(["bridge", "replay", str(measured), "--negative", "flip"]) == 2
    assert "negative must be one of absolute, zero, received 'flip'" in capsys.readouterr().err


def without_torch(*arguments):
    code = "from quadlab.cli import main\nsys.exit(main(sys.argv[1:]))"
    return python_without_torch(code, *arguments)


@pytest.mark.parametrize("arguments", [["models"], ["measure", "mlp", "--out", "x"]])
def test_a_machine_without_torch_is_told_the_extra(arguments):
    done = without_torch("bridge", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "quadlab bridge: error: torch is missing: pip install 'quadlab[torch]'\n"


def test_a_machine_without_torch_replays(measured):
    done = without_torch("bridge", "replay", str(measured), "--max-block-size", "8")
    assert done.returncode == 0 and "Lambda_G" in done.stdout


def test_a_measurement_that_fails_is_one_line(monkeypatch, tmp_path, capsys):
    pytest.importorskip("torch")

    def fails(*args, **options):
        raise RuntimeError("block 'a': 40 steps are not enough\nfor it")

    monkeypatch.setattr(importlib.import_module("quadlab.bridge.measure"), "measure", fails)
    assert main(["bridge", "measure", *TINY, "--out", str(tmp_path / "x")]) == 2
    assert capsys.readouterr().err == "quadlab bridge: error: block 'a': 40 steps are not enough for it\n"
