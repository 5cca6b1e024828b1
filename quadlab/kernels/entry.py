"""The compiled entry points: explicit signatures, cached on disk, loaded on first use.

Numba's cache notices an edit of this file only, not of the files whose functions are inlined here. The
stamp, a hash of all kernel sources, is a closure variable of every entry function; Numba's cache key
covers closure variables, so an edit anywhere in ``kernels/`` compiles anew.

A user's method arrives as the address of its compiled function, see ``pointers.py``.
"""

from __future__ import annotations

import functools
import hashlib
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numba

from quadlab.kernels import lanes as lanes_module
from quadlab.kernels import single as single_module
from quadlab.kernels.pointers import F1, F2, F3, I1, INT, READ_F1, READ_I1

_LOCK = threading.RLock()
R = TypeVar("R")


def once(function: Callable[..., R]) -> Callable[..., R]:
    """Cache a function's results; a second thread waits for the first rather than compile again."""
    cached = functools.cache(function)

    @functools.wraps(function)
    def locked(*arguments: Any) -> R:
        with _LOCK:
            return cached(*arguments)

    return locked


@once
def stamp() -> str:
    """Return a hash of the kernel sources."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _without_scipy() -> None:
    """Let Numba load without scipy.linalg, which takes a quarter of a second and which no kernel needs.

    ``numba.np.arraymath`` imports it only to see that there is a BLAS. Whatever uses BLAS later makes the
    true check.
    """
    from numba.np import linalg

    if "numba.np.arraymath" in sys.modules or not hasattr(linalg, "ensure_blas"):
        return
    check = linalg.ensure_blas
    linalg.ensure_blas = lambda: None
    try:
        from numba.np import arraymath
    finally:
        linalg.ensure_blas = check
    if hasattr(arraymath, "ensure_blas"):
        arraymath.ensure_blas = check


def compile_function(function: Callable[..., Any], signature: Any, cache: bool = True) -> Any:
    """Compile with the package's settings; without the disk cache where no folder can be written."""
    _without_scipy()
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", numba.NumbaExperimentalFeatureWarning)
        try:
            return numba.njit(signature, cache=cache, **options)(function)
        except RuntimeError as error:
            if not cache or "cannot cache" not in str(error):
                raise
            return numba.njit(signature, cache=False, **options)(function)


@contextmanager
def notice() -> Iterator[None]:
    """Say on stderr why nothing happens, when it takes longer than loading from the cache."""
    text = "quadlab: compiling the kernels; this takes about a minute, once\n"
    timer = threading.Timer(4.0, sys.stderr.write, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@once
def single() -> Any:
    """Return the compiled ``run_single``."""
    signature = INT(
        I1, I1, READ_I1, READ_I1, READ_I1, READ_I1, READ_F1, F1, READ_F1, F1, READ_F1,
        F1, F1, I1, F2, F1, F1, F1, F1, F2, F1, F1, F1, F1, F2, F1, INT, INT, INT, I1, F3,
    )  # fmt: skip
    with notice():
        return compile_function(single_module.build(stamp()), signature)


@once
def lanes() -> Any:
    """Return the compiled ``run_lanes``."""
    signature = INT(
        I1, I1, READ_I1, READ_I1, READ_I1, F1,
        F2, I1, I1, I1, I1, F2, F3, F2, F2, F2, F2, F2, F2, F2, F2, F2,
        F2, F2, F2, F2, F2, F1, F1, F2,
        I1, I1, F2, F2, F2, F3, F2, INT,
    )  # fmt: skip
    with notice():
        return compile_function(lanes_module.build(stamp()), signature)


def compile_all() -> None:
    """Compile whatever the cache does not hold."""
    single()
    lanes()


def warm_up() -> None:
    """Compile whatever the cache does not hold, the two paths at once in two processes."""
    command = [sys.executable, "-c", "from quadlab.kernels import entry; entry.lanes()"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL):
        single()
    lanes()  # from the cache, or here, should the other process have failed
