"""Sums over the coordinates of one run, in the order that all paths keep.

Per block, in chunks of ``CHUNK`` coordinates combined in order, each in ``STRIPES`` stripes.
"""

from __future__ import annotations

from quadlab.kernels import codes as c
from quadlab.kernels.elements import inline, outlined, sign

TERM_ABSOLUTE, TERM_PRODUCT, TERM_SIGN = 0, 1, 2


@inline
def term(kind, a, b):
    """Return one term of a sum over coordinates."""
    if kind == TERM_ABSOLUTE:
        return abs(a)
    if kind == TERM_PRODUCT:
        return a * b
    return sign(a) * b


@inline
def block_sum(kind, a, b, low, high):
    """Sum the terms of coordinates low..high-1: chunks in order, eight stripes a chunk."""
    total = 0.0
    begin = low
    while begin < high:
        end = min(begin + c.CHUNK, high)
        s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = 0.0
        i = begin
        while i + 8 <= end:
            s0 += term(kind, a[i], b[i])
            s1 += term(kind, a[i + 1], b[i + 1])
            s2 += term(kind, a[i + 2], b[i + 2])
            s3 += term(kind, a[i + 3], b[i + 3])
            s4 += term(kind, a[i + 4], b[i + 4])
            s5 += term(kind, a[i + 5], b[i + 5])
            s6 += term(kind, a[i + 6], b[i + 6])
            s7 += term(kind, a[i + 7], b[i + 7])
            i += 8
        rest = end - i
        if rest > 0:
            s0 += term(kind, a[i], b[i])
        if rest > 1:
            s1 += term(kind, a[i + 1], b[i + 1])
        if rest > 2:
            s2 += term(kind, a[i + 2], b[i + 2])
        if rest > 3:
            s3 += term(kind, a[i + 3], b[i + 3])
        if rest > 4:
            s4 += term(kind, a[i + 4], b[i + 4])
        if rest > 5:
            s5 += term(kind, a[i + 5], b[i + 5])
        if rest > 6:
            s6 += term(kind, a[i + 6], b[i + 6])
        total += ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))
        begin = end
    return total


@inline
def total_sum(kind, offsets, a, b):
    """Sum over all coordinates: the block sums in order."""
    total = 0.0
    for block in range(offsets.size - 1):
        total += block_sum(kind, a, b, offsets[block], offsets[block + 1])
    return total


@outlined
def called_sum(kind, offsets, a, b):
    """Call ``total_sum``."""
    return total_sum(kind, offsets, a, b)


@inline
def weighted_squares(offsets, norms, a):
    """Return ``(sum_b ||a_b||^2 ||H_b||, ||a||^2)``."""
    weighted = 0.0
    square = 0.0
    for block in range(offsets.size - 1):
        part = block_sum(TERM_PRODUCT, a, a, offsets[block], offsets[block + 1])
        square += part
        weighted += part * norms[block]
    return weighted, square
