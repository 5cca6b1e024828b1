"""The README's Python runs as printed, and the files that it names exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

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
    assert "Lion(0.001" in printed
    assert "\nTrue\n" in printed


def test_named_functions_exist() -> None:
    named = re.findall(r"`bounds/(\w+)\.py(?:: ([\w*, ]+))?`", TEXT)
    assert len(named) > 10
    for module, functions in named:
        source = (ROOT / "quadlab" / "bounds" / f"{module}.py").read_text()
        for function in filter(None, functions.split(", ")):
            pattern = function.replace("*", r"\w*")
            assert re.search(rf"^def {pattern}\(", source, re.MULTILINE), function


def test_figures_and_tests_exist() -> None:
    for path in re.findall(r"`((?:tests|figures|quadlab|bounds)/[\w/]+\.\w+)`", TEXT):
        assert (ROOT / path).exists() or (ROOT / "quadlab" / path).exists(), path
