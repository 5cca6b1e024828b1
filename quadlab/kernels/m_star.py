r"""Brute force for the largest sign form of a matrix, M* = max over s in {-1, 1}^n of s^T H s.

The values at s and -s are equal, so the last sign stays +1 and 2^(n-1) vectors remain. They are visited in
the order of the reflected Gray code: step t flips the sign whose index is k, the number of trailing zeros of
t. With p = H s before the flip and s_k the sign after it,

    s^T H s  grows by  4 (s_k p_k + H_kk),        p  grows by  2 s_k H_k,

so that a vector costs O(n). Both are computed from scratch every 1,024 steps, and the winner's form at the
end: rounding does not add up.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Largest size for which the 2^(n-1) vectors are visited (5 ms at 20).
BRUTE_FORCE_LIMIT = 20


def _largest_sign_form(matrix: NDArray[np.float64]) -> float:
    size = matrix.shape[0]
    signs = np.ones(size)
    product = np.empty(size)
    value = 0.0
    best = -np.inf
    best_step = 0
    for step in range(1 << (size - 1)):
        flipped = 0
        if step > 0:
            while not (step >> flipped) & 1:
                flipped += 1
            signs[flipped] = -signs[flipped]
        if step & 1023 == 0:
            value = 0.0
            for i in range(size):
                total = 0.0
                for j in range(size):
                    total += matrix[i, j] * signs[j]
                product[i] = total
                value += signs[i] * total
        else:
            value += 4.0 * (signs[flipped] * product[flipped] + matrix[flipped, flipped])
            twice = 2.0 * signs[flipped]
            for j in range(size):
                product[j] += twice * matrix[flipped, j]
        if value > best:
            best = value
            best_step = step

    code = best_step ^ (best_step >> 1)
    for i in range(size):
        signs[i] = -1.0 if (code >> i) & 1 else 1.0
    best = 0.0
    for i in range(size):
        total = 0.0
        for j in range(size):
            total += matrix[i, j] * signs[j]
        best += signs[i] * total
    return best


@cache
def _compiled() -> Callable[..., Any]:
    # numba is imported at the first call, and the explicit signature compiles (or loads) once for all sizes
    from numba import types

    from quadlab.kernels.entry import compile_function

    matrix = types.Array(types.float64, 2, "C", readonly=True)
    return compile_function(_largest_sign_form, types.float64(matrix))


def largest_sign_form(matrix: NDArray[np.float64]) -> float:
    """Return max over s in {-1, 1}^n of s^T H s, by visiting all sign vectors.

    Parameters
    ----------
    matrix : ndarray, shape (n, n), 1 <= n <= 20
        Symmetric, C-contiguous, float64.

    Returns
    -------
    float
        The maximum, exact up to rounding.

    Raises
    ------
    ValueError
        If the matrix is not square, or its size is not in 1..20.

    Examples
    --------
    >>> largest_sign_form(np.array([[2.0, -1.0], [-1.0, 2.0]]))
    6.0
    """
    if matrix.ndim != 2 or len(matrix) != matrix.shape[1] or not 1 <= len(matrix) <= BRUTE_FORCE_LIMIT:
        raise ValueError(f"matrix has shape {matrix.shape}, must be square of size 1 to {BRUTE_FORCE_LIMIT}")
    return _compiled()(matrix)
