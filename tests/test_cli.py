"""The command line: its JSON, its exit statuses, one line for bad input."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

import quadlab as ql
from quadlab.bounds import bound, temporary_bounds
from quadlab.cli import main


def test_help_is_immediate():
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-m", "quadlab", "--help"], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) < 0.4


def test_compare_as_json(capsys):
    assert main(["compare", "het", "--methods", "gd:lambda_g,adam:0.05", "--seed", "3", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert list(table) == ["case", "seed", "stop", "runs"]
    assert (table["case"], table["seed"], table["stop"]["test"]) == ("het", 3, "l1")
    run = table["runs"][0]
    keys = ["method", "learning_rate", "status", "iterations", "best_bound", "ratio", "bounds"]
    assert list(run) == keys
    entry = next(b for b in run["bounds"] if b["name"] == "gd.gradient_weighted")
    assert list(entry) == ["name", "kind", "applies", "reasons", "value", "holds", "ratio"]
    alone = ql.solve(ql.case("het", seed=3), ql.GD("lambda_g"), ql.default_stop(ql.case("het", seed=3)))
    assert run["iterations"] == alone.iterations


def test_compare_a_file_is_compare_the_case(tmp_path, capsys):
    ql.case("hom", seed=2).save(tmp_path / "p.npz")
    outputs = []
    for arguments in (["hom", "--seed", "2"], [str(tmp_path / "p.npz")]):
        assert main(["compare", *arguments, "--stop", "gap", "--methods", "gd:optimal", "--json"]) == 0
        outputs.append(json.loads(capsys.readouterr().out)["runs"])
    assert outputs[0] == outputs[1]


def test_draws_add_a_summary(capsys):
    assert main(["compare", "het", "--draws", "3", "--methods", "gd:lambda_g", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert [run["seed"] for run in table["runs"]] == [0, 1, 2]
    counts = sorted(run["iterations"] for run in table["runs"])
    assert table["summary"][0]["median_iterations"] == counts[1]
    assert table["summary"][0]["converged"] == 3


def test_a_violated_bound_is_exit_status_one(capsys):
    with temporary_bounds():

        @bound("test.nothing", family="gd", target="l1")
        def nothing(s):
            """No update is needed."""
            return 0.0

        assert main(["compare", "het", "--methods", "gd:lambda_g"]) == 1
    assert "VIOLATED: test.nothing" in capsys.readouterr().out


BAD = {
    "no such case": ["compare", "nosuch"],
    "no such method": ["compare", "het", "--methods", "foo:1"],
    "no learning rate": ["compare", "het", "--methods", "gd"],
    "negative rate": ["compare", "het", "--methods", "gd:-1"],
    "another method's rule": ["compare", "het", "--methods", "gd:lambda_p"],
    "no such option": ["compare", "het", "--methods", "adam:0.1:beta9=3"],
    "option without a value": ["compare", "het", "--methods", "adam:0.1:beta1"],
    "beta out of range": ["compare", "het", "--methods", "adam:0.1:beta1=1.5"],
    "eps zero": ["compare", "het", "--eps", "0"],
    "no draws": ["compare", "het", "--draws", "0"],
    "negative cap": ["compare", "het", "--max-iterations", "-5"],
    "no problem file": ["compare", __file__],
    "draws of a file": ["compare", __file__, "--draws", "2"],
    "no such figure": ["figures", "nosuch"],
    "no such stop": ["compare", "het", "--stop", "l3"],
    "no such command": ["nosuch"],
    "no command": [],
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_status_two(name, capsys):
    try:
        status = main(BAD[name])
    except SystemExit as exit:  # argparse's own
        status = exit.code
    printed = capsys.readouterr()
    assert status == 2
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1 and "error:" in printed.err


@pytest.mark.parametrize("command", ["cases", "bounds"])
def test_lists(command, capsys):
    assert main([command]) == 0
    text = capsys.readouterr().out
    assert main([command, "--json"]) == 0
    items = json.loads(capsys.readouterr().out)
    assert len(items) > 5 and all(item["name"] in text for item in items)


def test_a_reader_that_leaves_is_no_error():
    command = [sys.executable, "-m", "quadlab", "compare", "het", "--methods", "gd:lambda_g", "--json"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    child.stdout.close()
    assert child.stderr.read() == b""
    assert child.wait(timeout=60) != 2
