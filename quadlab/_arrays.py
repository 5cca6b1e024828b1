"""Arrays as the library holds them: float64, C-contiguous, read-only, shared with no writable owner."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterator
from dataclasses import fields
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def shown(value: object) -> str:
    """Return a short `repr` of a received value, on one line, for an error message."""
    return " ".join(reprlib.repr(value).split())


def frozen(*arrays: FloatArray) -> None:
    """Make the arrays read-only in place."""
    for array in arrays:
        array.flags.writeable = False


def real_array(value: Any, what: str) -> FloatArray:
    """Return `value` as a C-contiguous float64 array that nobody else can write to.

    An input that is float64, contiguous and immutable is returned as it is; all else is copied once.
    Raises ValueError for anything but integers and floats (complex, bool, strings, objects, ragged lists).
    """
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError(f"{what} must be an array of real numbers, received {shown(value)}") from None
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{what} must be real numbers, received {shown(value)} of type {array.dtype}")
    result = np.asarray(array, dtype=np.float64, order="C")
    if result is array and not isinstance(value, (list, tuple)) and not _immutable(array):
        result = array.copy()
    return result


def _immutable(array: Any) -> bool:
    return (
        isinstance(array, np.ndarray)
        and not array.flags.writeable
        and (array.base is None or _immutable(array.base))
    )


def real_number(value: Any, what: str, minimum: float = 0.0) -> float:
    """Return `value` as a finite float >= `minimum`, or raise ValueError naming `what` and the value."""
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
        number = float(value)
        if minimum <= number < math.inf:
            return number
    raise ValueError(f"{what} must be a finite number >= {minimum:g}, received {shown(value)}")


def first_bad(good: NDArray[np.bool_]) -> int:
    """Return the flat position of the first False."""
    return int(np.argmin(good))


class Content:
    """Equality, hash and pickle of a frozen dataclass by the content of its fields, bit for bit."""

    def _content(self) -> Iterator[Any]:
        return (getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 (hexadecimal) over the type and every field: sizes and the bits of all arrays."""
        digest = sha256(type(self).__name__.encode())
        for item in self._content():
            if isinstance(item, np.ndarray):
                digest.update(repr(item.shape).encode())
                digest.update(np.ascontiguousarray(item).data)
            else:
                digest.update((item.content_hash if isinstance(item, Content) else repr(item)).encode())
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Content) or type(self) is not type(other):
            return NotImplemented
        return self is other or self.content_hash == other.content_hash

    def __hash__(self) -> int:
        return hash(self.content_hash)

    def __reduce__(self) -> tuple[Any, ...]:
        # Through the constructor: a pickled array comes back writable, and the constructor freezes it.
        return type(self), tuple(getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]
