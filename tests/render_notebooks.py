"""Run notebooks and write their outputs: ``python tests/render_notebooks.py [NAME ...]``, ``make notebooks``.

A notebook is a script ``notebooks/NAME.py`` in jupytext's percent format; ``NAME.ipynb`` holds the same cells
with their outputs. The kernel is this interpreter, whatever kernels are installed; it works in an empty
folder.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

FOLDER = Path(__file__).parents[1] / "notebooks"
SCRIPTS = sorted(FOLDER.glob("*.py"))


def read(script: Path) -> Any:
    """The cells of a script as a notebook without outputs, always the same: its cells are numbered."""
    import jupytext

    notebook = jupytext.read(script)
    for k, cell in enumerate(notebook.cells):
        cell.id = f"cell-{k}"
    return notebook


def execute(notebook: Any, timeout: int = 600) -> float:
    """Run a notebook in place, from a clean kernel, and return the seconds; the first error is raised."""
    from jupyter_client.kernelspec import KernelSpecManager
    from nbclient import NotebookClient

    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "work"
        folder.mkdir()
        places = {name: home for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR")}
        client = NotebookClient(
            notebook,
            timeout=timeout,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(folder)}},
        )
        client.km = client.create_kernel_manager()
        client.km.kernel_spec_manager = KernelSpecManager(kernel_dirs=[])  # none but this interpreter's own
        with mock.patch.dict(os.environ, places):
            begin = time.perf_counter()
            client.execute()
    return time.perf_counter() - begin


def main() -> None:
    import nbformat

    for script in [FOLDER / f"{name}.py" for name in sys.argv[1:]] or SCRIPTS:
        notebook = read(script)
        seconds = execute(notebook)
        for cell in notebook.cells:
            for output in list(cell.get("outputs", [])):
                if output.output_type == "stream":  # of a progress bar only its last state stays
                    output.text = re.sub(r"[^\n]*\r", "", output.text)
                    if not output.text.strip():
                        cell.outputs.remove(output)
        target = script.with_suffix(".ipynb")
        nbformat.write(notebook, target)
        print(f"{target.name}: {seconds:.1f} s, {target.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
