"""The compile cache: warm, edited, read-only, and two processes at once; each with a package copy of its own.

Compiling everything takes about a minute, so most copies carry this package's own cache with them, and a
process that must not compile has its compiler removed. The two that do compile stand last.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import quadlab

PACKAGE = Path(quadlab.__file__).parent

WITHOUT_COMPILER = """
    import numba.core.compiler as compiler

    def compile_extra(typing_context, target_context, function, *args, **kwargs):
        raise SystemExit(f"compiles {function.__name__}")

    compiler.compile_extra = compile_extra
"""
SOLVE = """
    import quadlab, sys
    assert quadlab.__file__.startswith(sys.argv[1]), quadlab.__file__
    from quadlab import Adam, GradientNorm, case, solve
    from quadlab.kernels import entry
    run = solve(case("het-axis"), Adam(0.01), GradientNorm(1e-2, relative=True))
    print(run.iterations, run.point.tobytes().hex())
    print(sum(entry.single().stats.cache_hits.values()), sum(entry.single().stats.cache_misses.values()))
"""


@pytest.fixture(scope="module", autouse=True)
def warm():
    """Fill this package's own cache, which the copies take with them."""
    from quadlab.kernels import entry

    entry.compile_all()


def copied(folder: Path, cached: bool = True) -> Path:
    """Copy the package with its times, and with or without what is compiled; return its parent."""
    ignore = None if cached else shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, folder / "quadlab", ignore=ignore, copy_function=shutil.copy2)
    return folder


def start(parent: Path, script: str, **environment: str) -> subprocess.Popen[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("NUMBA_")}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(parent)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=parent,
        env={**clean, "PYTHONPATH": str(parent), "PYTHONDONTWRITEBYTECODE": "1", **environment},
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, list[str], str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out.split(), err


def compiles(parent: Path, what: str = "single") -> str:
    """The function that a process would have to compile first, or "nothing"."""
    script = textwrap.dedent(WITHOUT_COMPILER) + f"from quadlab.kernels import entry\nentry.{what}()\n"
    status, _, err = finish(start(parent, script))
    return "nothing" if status == 0 else err.strip().splitlines()[-1].removeprefix("compiles ")


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


# -- without compiling


def test_a_warm_cache_is_hit(tmp_path):
    parent = copied(tmp_path)
    status, (count, _, hits, misses), err = finish(start(parent, WITHOUT_COMPILER + SOLVE))
    assert status == 0, err
    assert (hits, misses) == ("1", "0") and int(count) > 0
    assert [compiles(parent, what) for what in ("single", "lanes")] == ["nothing"] * 2


def test_the_notice_of_compiling_is_silent_on_a_warm_cache(tmp_path):
    _, _, err = finish(start(copied(tmp_path), SOLVE))
    assert err == ""


@pytest.mark.parametrize("edited", ["elements.py", "user.py"])
def test_an_edit_of_any_kernel_file_compiles_anew(tmp_path, edited):
    """Numba looks at the file of the function alone; the stamp covers those whose functions it inlines."""
    parent = copied(tmp_path)
    file = parent / "quadlab" / "kernels" / edited
    before, times = file.read_bytes(), (file.stat().st_atime, file.stat().st_mtime)
    append(file, "# an edit\n")
    assert compiles(parent, "single") == "run_single"
    assert compiles(parent, "lanes") == "run_lanes"
    file.write_bytes(before)  # the old sources find the old entries
    os.utime(file, times)
    assert compiles(parent, "single") == compiles(parent, "lanes") == "nothing"


def test_what_is_no_edit_of_a_kernel_does_not_compile(tmp_path):
    parent = copied(tmp_path)
    os.utime(parent / "quadlab" / "kernels" / "elements.py")  # touched, not changed
    append(parent / "quadlab" / "solve.py", "# an edit elsewhere\n")
    assert compiles(parent, "single") == compiles(parent, "lanes") == "nothing"


def test_a_package_without_a_cache_compiles(tmp_path):
    """The check itself: an empty cache is noticed."""
    parent = copied(tmp_path, cached=False)
    assert compiles(parent, "single") == "run_single" and compiles(parent, "lanes") == "run_lanes"


# -- compiling


def unwritable(parent: Path) -> dict[str, str]:
    """Leave no folder that a cache could be written to, whoever runs this (root may write anywhere)."""
    (parent / "quadlab" / "kernels" / "__pycache__").write_text("a file where the folder would be")
    nowhere = parent / "nowhere"
    nowhere.write_text("a file where the home would be")
    return {"HOME": str(nowhere), "XDG_CACHE_HOME": str(nowhere), "IPYTHONDIR": str(nowhere)}


def test_no_writable_cache(tmp_path):
    parent = copied(tmp_path, cached=False)
    script = (
        SOLVE
        + """
    from quadlab import SignSGD, curvature, BlockQuadratic
    assert curvature(BlockQuadratic.from_blocks([[[2.0, 1.0], [1.0, 2.0]]])).m_star_upper == 6.0
    """
    )
    status, words, err = finish(start(parent, script, **unwritable(parent)))
    assert status == 0, err
    assert words[2] == "0" and words[:2] == expected()
    assert not list(parent.rglob("*.nbi"))


def test_two_processes_compile_at_once(tmp_path):
    """Both run, on the same bits; the cache they leave is whole."""
    parent, cache = copied(tmp_path / "package", cached=False), str(tmp_path / "shared")
    both = [start(parent, SOLVE, NUMBA_CACHE_DIR=cache) for _ in range(2)]
    for status, words, err in map(finish, both):
        assert status == 0, err
        assert words[:2] == expected()
    status, words, err = finish(start(parent, WITHOUT_COMPILER + SOLVE, NUMBA_CACHE_DIR=cache))
    assert status == 0 and words == [*expected(), "1", "0"], err


def expected() -> list[str]:
    """What the script prints of its run, from this process."""
    from quadlab import Adam, GradientNorm, case, solve

    run = solve(case("het-axis"), Adam(0.01), GradientNorm(1e-2, relative=True))
    return [str(run.iterations), run.point.tobytes().hex()]
