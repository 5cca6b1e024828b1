"""The compiled entry points: explicit signatures, cached on disk, loaded on first use.

Numba's cache notices an edit of this file only, not of the files whose functions are inlined here. The
stamp, a hash of all kernel sources, is a closure variable of every entry function; Numba's cache key
covers closure variables, so an edit anywhere in ``kernels/`` compiles anew.

A user's method arrives as a typed function pointer. Built-in methods pass a placeholder of the same type.
"""

from __future__ import annotations

import functools
import hashlib
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba import types

from quadlab.kernels import lanes as lanes_module
from quadlab.kernels import single as single_module

I1 = types.Array(types.int64, 1, "C")
F1 = types.Array(types.float64, 1, "C")
F2 = types.Array(types.float64, 2, "C")
F3 = types.Array(types.float64, 3, "C")
INT = types.int64
# Arrays of a problem are read-only.
READ_I1 = types.Array(types.int64, 1, "C", readonly=True)
READ_F1 = types.Array(types.float64, 1, "C", readonly=True)

# (t, g, x, minimizer, d, work, state, parameters, offsets) and the same for lanes, their number first.
USER_SINGLE = types.void(INT, F1, F1, READ_F1, F1, F1, F2, F1, READ_I1)
USER_LANES = types.void(INT, I1, F2, F2, F2, F2, F3, F2, READ_I1)


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


def compile_function(function: Callable[..., Any], signature: Any, cache: bool = True) -> Any:
    """Compile with the package's settings; without the disk cache where no folder can be written."""
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
    """Say on stderr why nothing happens, when compiling takes more than two seconds."""
    text = "quadlab: compiling the kernels; this takes about a minute, once\n"
    timer = threading.Timer(2.0, sys.stderr.write, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@once
def placeholders() -> tuple[Any, Any]:
    """Return do-nothing pointers for runs of built-in methods."""

    def nothing_single(t, g, x, anchor, d, work, state, params, offsets):
        pass

    def nothing_lanes(lanes, t, g, x, anchor, d, state, params, offsets):
        pass

    return compile_function(nothing_single, USER_SINGLE), compile_function(nothing_lanes, USER_LANES)


@once
def single() -> Any:
    """Return the compiled ``run_single``."""
    signature = INT(
        I1, I1, READ_I1, READ_I1, READ_I1, READ_I1, READ_F1, F1, READ_F1, F1, READ_F1,
        F1, F1, I1, F2, F1, F1, F1, F1, F2, F1, F1, F1, F1, F2, F1, types.FunctionType(USER_SINGLE),
    )  # fmt: skip
    with notice():
        return compile_function(single_module.build(stamp()), signature)


@once
def lanes() -> Any:
    """Return the compiled ``run_lanes``."""
    signature = INT(
        I1, I1, READ_I1, READ_I1, READ_I1, F1,
        F2, F2, I1, F2, F2, F2, F2, F2,
        I1, I1, I1, F2, F2, F2, F2, F2, F2,
        F2, F2, F2, F2, F3, F2, F2, F2, F2, F1, F1, F2,
        I1, I1, F2, F2, F2, F2, F2, F3, F2, types.FunctionType(USER_LANES),
    )  # fmt: skip
    with notice():
        return compile_function(lanes_module.build(stamp()), signature)


def compile_all() -> None:
    """Compile whatever the cache does not hold."""
    placeholders()
    single()
    lanes()
