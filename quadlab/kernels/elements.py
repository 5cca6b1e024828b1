"""The scalar rules of the methods, written once for both paths.

With ``x = w - w*`` and the gradient ``g``, a rule maps one coordinate of ``g`` and of the state to one
coordinate of the direction ``d``; the update is ``x <- x - eta d``.
"""

from __future__ import annotations

from numba import njit

from quadlab.kernels.codes import FLUSH
from quadlab.kernels.fours import chosen, root, unit

inline = njit(forceinline=True, error_model="numpy", nogil=True)
# A call costs some 100 ns (an array is seven arguments), an inlined copy costs compile time: what runs
# seldom, or works on request only, is called.
outlined = njit(error_model="numpy", nogil=True)


@inline
def flush(value):
    """Return 0 for a magnitude under 1e-290."""
    return chosen(abs(value) < FLUSH, 0.0, value)


@inline
def sign(value):
    """Return -1, 0 or 1, without a branch: near the end signs flip at random, and a guess costs 5 ns."""
    return chosen(abs(value) > 0.0, unit(value), 0.0)  # 0 of a NaN, too


@inline
def average(old, new, beta):
    """Return the flushed moving average ``beta old + (1 - beta) new``."""
    return flush(beta * old + (1.0 - beta) * new)


@inline
def adam(m, v, inverse1, inverse2, epsilon):
    """Return ``mhat / (sqrt(vhat) + epsilon)`` with 0/0 := 0; ``inverse_k = 1 / (1 - beta_k^t)``."""
    numerator = m * inverse1
    # A chosen divisor, not a branch around the division: the loop over coordinates vectorises.
    return numerator / chosen(numerator == 0.0, 1.0, root(v * inverse2) + epsilon)


@inline
def larger(a, b):
    """Return the larger of ``a`` (the running maximum) and ``b``; a NaN wins, and stays."""
    return a if a >= b or a != a else b
