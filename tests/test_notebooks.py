"""The notebooks run from a clean kernel, hold the outputs of their scripts' cells, and stay small."""

from __future__ import annotations

import pytest

from render_notebooks import FOLDER, SCRIPTS, execute, read

pytest.importorskip("jupytext")
pytest.importorskip("ipykernel")
nbformat = pytest.importorskip("nbformat")

each = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)


def pictures(cell):
    return ["image/png" in output.get("data", {}) for output in cell.get("outputs", [])]


def test_every_script_has_a_notebook_and_no_other():
    assert len(SCRIPTS) >= 4
    assert {path.stem for path in SCRIPTS} == {path.stem for path in FOLDER.glob("*.ipynb")}


@each
def test_script_and_notebook_are_in_step(script):
    path = script.with_suffix(".ipynb")
    rendered = nbformat.read(path, as_version=4)
    nbformat.validate(rendered)
    kinds_and_sources = [(cell.cell_type, cell.source) for cell in rendered.cells]
    assert kinds_and_sources == [(c.cell_type, c.source) for c in read(script).cells], (
        "make notebooks writes the outputs of the script as it is now"
    )
    code = [cell for cell in rendered.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
    assert path.stat().st_size < 300_000


@each
def test_it_says_what_one_learns_and_shows_a_picture_at_once(script):
    cells = nbformat.read(script.with_suffix(".ipynb"), as_version=4).cells
    assert cells[0].cell_type == "markdown" and "**What you learn:**" in cells[0].source
    assert any(pictures(cells[1]))
    assert cells[1].source.count("\n") < 25


@each
def test_it_runs(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notebook = read(script)
    seconds = execute(notebook)
    print(f"{script.stem}: {seconds:.1f} s")
    assert any(any(pictures(cell)) for cell in notebook.cells)
    assert list(tmp_path.iterdir()) == []  # it works in a folder of its own
