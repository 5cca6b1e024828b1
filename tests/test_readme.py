"""The README's Python runs as printed, and the files that it names exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

import quadlab as ql
from quadlab.bounds.record import checked_by, figure_of
from test_falsify import RECORDED

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def test_python_blocks_run_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    from quadlab.bounds import temporary_bounds

    namespace: dict[str, object] = {}
    with temporary_bounds():
        for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
            if "quadlab.bridge" in block and importlib.util.find_spec("torch") is None:
                continue
            exec(compile(block, "README.md", "exec"), namespace)
    printed = capsys.readouterr().out
    assert "signsgd.parameter_weighted" in printed
    assert "stochastic.signsgd_gaussian (upper on an expectation): holds" in printed
    assert "Lion(0.001" in printed
    assert "\nTrue\n" in printed


def test_the_table_of_theorems_is_that_of_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    """`quadlab bounds --markdown` prints it."""
    from quadlab.cli import main

    assert main(["bounds", "--markdown"]) == 0
    table = capsys.readouterr().out
    assert table in TEXT
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()]
    assert len(rows) == len(ql.bounds()) + 2 and {len(row) for row in rows} == {7}
    assert all(cell for row in rows for cell in row)


def test_every_row_names_a_function_a_test_and_a_figure_that_exist() -> None:
    from quadlab import figures

    for entry in ql.bounds():
        module = entry.function.__module__.rpartition(".")[2]
        source = (ROOT / "quadlab" / "bounds" / f"{module}.py").read_text()
        assert f"\ndef {entry.function.__name__}(" in source
        assert figure_of(entry) in figures.names()
        assert (ROOT / "figures" / f"{figure_of(entry)}.png").exists()
        file, _, test = checked_by(entry).partition("::")
        name, _, case = test.rstrip("]").partition("[")
        assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text()
        assert not case or case in {f"{name}-{label}" for name, label in RECORDED}


def test_figures_and_tests_exist() -> None:
    for path in re.findall(r"`((?:tests|figures|quadlab|bounds)/[\w/]+\.\w+)`", TEXT):
        assert (ROOT / path).exists() or (ROOT / "quadlab" / path).exists(), path
