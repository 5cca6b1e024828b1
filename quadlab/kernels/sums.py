"""Sums over the coordinates of one run, in the order that all paths keep.

Per block, in chunks of ``CHUNK`` coordinates combined in order, each in ``STRIPES`` stripes: the stripes are
the entries of one vector of LLVM's, for its vectoriser does not see that they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from quadlab.kernels import codes as c
from quadlab.kernels.elements import inline, outlined, sign
from quadlab.kernels.pointers import COMPILING
from quadlab.kernels.vectors import Vectors, constant

# Not literals, each of a type of its own, for which a function would be compiled once more.
FIRST: Any
TERM_ABSOLUTE: Any
TERM_PRODUCT: Any
TERM_SIGN: Any
FIRST, TERM_ABSOLUTE, TERM_PRODUCT, TERM_SIGN = map(np.int64, (0, 0, 1, 2))


@inline
def term(kind, a, b):
    """Return one term of a sum over coordinates."""
    if kind == TERM_ABSOLUTE:
        return abs(a)
    if kind == TERM_PRODUCT:
        return a * b
    return sign(a) * b


VECTOR_TERMS: dict[int, Callable[[Vectors, Any, Any], Any]] = {
    TERM_ABSOLUTE: lambda v, a, b: v.absolute(a),
    TERM_PRODUCT: lambda v, a, b: v.builder.fmul(a, b),
    TERM_SIGN: lambda v, a, b: v.builder.fmul(v.sign(a), b),
}


def _stripes(kind: int) -> Any:
    """Return the compiled ``stripes(a, b, begin, end)``: the eight sums of whole eights."""
    if not COMPILING:
        return lambda a, b, begin, end: _plain_stripes(kind, a, b, begin, end)

    @intrinsic
    def stripes(typingctx, a, b, begin, end):
        """Sum the terms of coordinates equal modulo eight, from begin in whole eights."""

        def codegen(context, builder, signature, arguments):
            v = Vectors(builder, c.STRIPES)
            a, b = (
                context.make_array(signature.args[k])(context, builder, arguments[k]).data for k in range(2)
            )
            begin, end = arguments[2:]
            eight = constant(c.STRIPES)
            sums = cgutils.alloca_once_value(builder, v.filled(0.0))
            with cgutils.for_range(builder, builder.sdiv(builder.sub(end, begin), eight)) as loop:
                i = builder.add(begin, builder.mul(loop.index, eight))
                terms = VECTOR_TERMS[kind](v, v.load(a, i), v.load(b, i))
                builder.store(builder.fadd(builder.load(sums), terms), sums)
            return context.make_tuple(builder, signature.return_type, v.entries(builder.load(sums)))

        return types.UniTuple(types.float64, c.STRIPES)(a, b, begin, end), codegen

    return stripes


def _plain_stripes(kind: int, a: Any, b: Any, begin: int, end: int) -> tuple[float, ...]:
    """Sum stripes without a compiler."""
    sums = [0.0] * c.STRIPES
    for i in range(begin, end - (end - begin) % c.STRIPES):
        sums[(i - begin) % c.STRIPES] += term(kind, a[i], b[i])
    return tuple(sums)


def _sums(kind: int) -> tuple[Any, Any]:
    """Return the sum over one block, ``(a, b, low, high)``, and over all, ``(offsets, a, b)``."""
    stripes = _stripes(kind)

    @inline
    def block_sum(a, b, low, high):
        """Sum the terms of coordinates low..high-1: chunks in order, eight stripes a chunk."""
        total = 0.0
        begin = low
        while begin < high:
            end = min(begin + c.CHUNK, high)
            s0, s1, s2, s3, s4, s5, s6, s7 = stripes(a, b, begin, end)
            rest = (end - begin) % c.STRIPES
            i = end - rest
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
    def total_sum(offsets, a, b):
        """Sum over all coordinates: the block sums in order."""
        total = 0.0
        for block in range(offsets.size - 1):
            total += block_sum(a, b, offsets[block], offsets[block + 1])
        return total

    return block_sum, total_sum


absolute_block_sum, absolute_sum = _sums(TERM_ABSOLUTE)
product_block_sum, product_sum = _sums(TERM_PRODUCT)
sign_sum = _sums(TERM_SIGN)[1]


@outlined
def called_product_sum(offsets, a, b):
    """Call ``product_sum``."""
    return product_sum(offsets, a, b)


@inline
def weighted_squares(offsets, norms, a):
    """Return ``(sum_b ||a_b||^2 ||H_b||, ||a||^2)``."""
    weighted = 0.0
    square = 0.0
    for block in range(offsets.size - 1):
        part = product_block_sum(a, a, offsets[block], offsets[block + 1])
        square += part
        weighted += part * norms[block]
    return weighted, square
