r"""The product of a symmetric matrix from half of it, with the bits of the product from the whole.

The order that all paths keep is :math:`y_i = ((0 + a_{i0} x_0) + a_{i1} x_1) + \dots`, one column after the
other, no multiply-add contracted. Let the columns be cut into panels J. Sweep the panels in order, each from
its diagonal tile downward: a tile :math:`A_{IJ}`, I below J, gives

.. math:: y_I \leftarrow y_I + A_{IJ} x_J, \qquad y_J \leftarrow y_J + A_{IJ}^T x_I,

columns, and rows, one after the other. Then :math:`y_K` gets the panels J < K while they are swept, its own
diagonal tile, and the rows I > K: its terms in ascending order, the same sums to the bit. The upper half is
never read. Half the bytes matter as soon as the matrices leave a level of the cache.

**Storage** (`tiles`), panel by panel, in the order of the sweep: the diagonal tile; the rows below in groups
of four, a group column after column; up to three more rows, each by itself. Panels have ``WIDE`` columns,
at most one then ``NARROW``, the last columns are by themselves.

LLVM's vectoriser does not find the transposed half. A panel is therefore written in LLVM's own vectors of
four; :math:`y_J` stays in registers throughout a panel.

**Four blocks of one size** at once, each entry of a vector a block (`fourfold`): nothing is transposed, and
the panels are four columns wide. Their storage is the four lower triangles, entry by entry; panel by panel,
and row by row from the diagonal down. x and y are brought into that order, and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from quadlab.kernels import codes as c
from quadlab.kernels.elements import outlined
from quadlab.kernels.pointers import COMPILING
from quadlab.kernels.vectors import Vectors, constant, transposed

WIDE, NARROW = 16, 8
#: Smallest block that is stored so.
MIN_SIZE = NARROW
#: Blocks of this size are called for ahead of their use, by so many entries: a page, where the processor's
#: own prefetching stops.
LARGE, AHEAD = 256, 512


def tiles(matrix: np.ndarray) -> np.ndarray:
    """Return the lower triangle of a symmetric matrix in the order of the sweep."""
    size = len(matrix)
    parts = []
    low = 0
    while low < size:
        width = next(width for width in (WIDE, NARROW, 1) if low + width <= size)
        # Rows of the upper half are columns of the lower, and lie together in memory.
        panel = matrix[low : low + width, low:]
        fours = width + (size - low - width) // 4 * 4 if width > 1 else width
        groups = panel[:, width:fours].reshape(width, -1, 4).swapaxes(0, 1)
        parts += [panel[:, :width], groups, panel[:, fours:].T]
        low += width
    return np.concatenate([part.ravel() for part in parts])


def _panel(width: int) -> Any:
    """Return the compiled sweep of one panel: ``at = panel(data, at, x, y, low)``."""
    if not COMPILING:
        return lambda data, at, x, y, low: _plain_panel(width, data, at, x, y, low)

    @intrinsic
    def panel(typingctx, data, at, x, y, low):
        """Add the terms of a panel of columns to y; return where the next one begins in ``data``."""

        def codegen(context, builder, signature, arguments):
            arrays = [
                context.make_array(signature.args[k])(context, builder, arguments[k]) for k in (0, 2, 3)
            ]
            start, low = arguments[1], arguments[4]
            v = Vectors(builder, 4)
            tile = v.at(arrays[0].data, start)
            x, y = (array.data for array in arrays[1:])
            x_panel, y_panel = v.at(x, low), v.at(y, low)
            quarters = range(width // 4)

            # The diagonal tile: column after column.
            sums = [v.load(y_panel, 4 * k) for k in quarters]
            for j in range(width):
                factor = v.repeated(x_panel, j)
                sums = [v.add_product(sums[k], v.load(tile, width * j + 4 * k), factor) for k in quarters]
            kept = [cgutils.alloca_once_value(builder, total) for total in sums]  # LLVM makes them registers
            tile = v.at(tile, width * width)

            # Rows below in groups of four.
            begin = builder.add(low, constant(width))
            size = cgutils.unpack_tuple(builder, arrays[1].shape)[0]
            is_large = builder.icmp_signed(">=", size, constant(LARGE))
            rows = builder.sub(size, begin)
            groups = builder.ashr(rows, constant(2))
            with cgutils.for_range(builder, groups) as loop:
                group = v.at(tile, builder.mul(loop.index, constant(4 * width)))
                i = builder.add(begin, builder.shl(loop.index, constant(2)))
                with builder.if_then(is_large, likely=False):
                    for entry in range(0, 4 * width, 8):
                        v.prefetch(group, entry + AHEAD)
                factors = [v.repeated(v.at(x, i), r) for r in range(4)]
                below = v.load(y, i)
                for k in quarters:
                    columns = [v.load(group, 16 * k + 4 * j) for j in range(4)]
                    for j in range(4):
                        below = v.add_product(below, columns[j], v.repeated(x_panel, 4 * k + j))
                    total = builder.load(kept[k])
                    for row, factor in zip(transposed(v, *columns), factors, strict=True):
                        total = v.add_product(total, row, factor)
                    builder.store(total, kept[k])
                v.store(below, y, i)
            done = builder.shl(groups, constant(2))
            tile = v.at(tile, builder.mul(done, constant(width)))

            # The rows left.
            left = builder.sub(rows, done)
            with cgutils.for_range(builder, left) as loop:
                row = v.at(tile, builder.mul(loop.index, constant(width)))
                i = builder.add(builder.add(begin, done), loop.index)
                factor = v.repeated(x, i)
                below = v.one(y, i)
                for k in quarters:
                    total = v.add_product(builder.load(kept[k]), v.load(row, 4 * k), factor)
                    builder.store(total, kept[k])
                for j in range(width):
                    below = v.add_product(below, v.one(row, j), v.one(x_panel, j))
                builder.store(below, v.at(y, i))
            for k in quarters:
                v.store(builder.load(kept[k]), y_panel, 4 * k)
            entries = builder.mul(builder.add(rows, constant(width)), constant(width))
            return builder.add(start, entries)

        return types.int64(data, at, x, y, low), codegen

    return panel


def _plain_panel(width: int, data: Any, at: int, x: Any, y: Any, low: int) -> int:
    """Sweep a panel without a compiler."""
    for j in range(width):
        for i in range(width):
            y[low + i] += data[at] * x[low + j]
            at += 1
    row = low + width
    while row < x.size:
        rows = 4 if row + 4 <= x.size else 1
        tile = data[at : at + rows * width].reshape(width, rows)
        for j in range(width):
            for i in range(rows):
                y[row + i] += tile[j, i] * x[low + j]
        for i in range(rows):
            for j in range(width):
                y[low + j] += tile[j, i] * x[row + i]
        at += rows * width
        row += rows
    return at


wide_panel, narrow_panel = _panel(WIDE), _panel(NARROW)


@outlined
def symmetric_product(data, x, out):
    """Write H x of one dense block from its `tiles`: the terms of each sum in ascending order."""
    size = x.size
    for i in range(size):
        out[i] = 0.0
    at = 0
    low = 0
    while low + WIDE <= size:
        at = wide_panel(data, at, x, out, low)
        low += WIDE
    if low + NARROW <= size:
        at = narrow_panel(data, at, x, out, low)
        low += NARROW
    while low < size:
        total = out[low] + data[at] * x[low]
        at += 1
        for i in range(low + 1, size):
            out[i] += data[at] * x[low]
            total += data[at] * x[i]
            at += 1
        out[low] = total
        low += 1


def fourfold(matrices: Sequence[np.ndarray]) -> np.ndarray:
    """Return the lower triangles of four symmetric matrices of one size, entry by entry."""
    size = len(matrices[0])
    parts = []
    low = 0
    while low < size:
        width = 4 if low + 4 <= size else 1
        panel = np.stack([matrix[low:, low : low + width] for matrix in matrices], axis=-1)
        parts += [panel[row, : row + 1] for row in range(width)]
        parts.append(panel[width:])
        low += width
    return np.concatenate([part.ravel() for part in parts])


def _fourfold_panel(width: int) -> Any:
    """Return the compiled sweep of a panel of four blocks: ``at = panel(data, at, x, y, low, size)``."""
    if not COMPILING:
        return lambda data, at, x, y, low, size: _plain_fourfold_panel(width, data, at, x, y, low, size)

    @intrinsic
    def panel(typingctx, data, at, x, y, low, size):
        """Add the terms of a panel of columns to y; return where the next one begins in ``data``."""

        def codegen(context, builder, signature, arguments):
            data, x, y = (
                context.make_array(signature.args[k])(context, builder, arguments[k]).data for k in (0, 2, 3)
            )
            start, low, size = arguments[1], arguments[4], arguments[5]
            v = Vectors(builder, 4)
            columns = range(width)

            def begin_of(index):
                return builder.shl(index, constant(2))

            entries = v.at(data, start)
            x_panel, y_panel = v.at(x, begin_of(low)), v.at(y, begin_of(low))
            factors = [v.load(x_panel, 4 * j) for j in columns]
            sums = [v.load(y_panel, 4 * j) for j in columns]
            triangle = {}
            for i in columns:
                for j in range(i + 1):
                    triangle[i, j] = triangle[j, i] = v.load(entries, 4 * (i * (i + 1) // 2 + j))
            for j in columns:
                sums = [v.add_product(sums[i], triangle[i, j], factors[j]) for i in columns]
            kept = [cgutils.alloca_once_value(builder, total) for total in sums]
            entries = v.at(entries, 2 * width * (width + 1))
            begin = builder.add(low, constant(width))
            rows = builder.sub(size, begin)
            is_large = builder.icmp_signed(">=", size, constant(LARGE))
            with cgutils.for_range(builder, rows) as loop:
                row = v.at(entries, builder.mul(loop.index, constant(4 * width)))
                i = begin_of(builder.add(begin, loop.index))
                with builder.if_then(is_large, likely=False):
                    for entry in range(0, 4 * width, 8):
                        v.prefetch(row, entry + AHEAD)
                factor, below = v.load(x, i), v.load(y, i)
                for j in columns:
                    entry = v.load(row, 4 * j)
                    below = v.add_product(below, entry, factors[j])
                    builder.store(v.add_product(builder.load(kept[j]), entry, factor), kept[j])
                v.store(below, y, i)
            for j in columns:
                v.store(builder.load(kept[j]), y_panel, 4 * j)
            count = builder.add(builder.mul(rows, constant(4 * width)), constant(2 * width * (width + 1)))
            return builder.add(start, count)

        return types.int64(data, at, x, y, low, size), codegen

    return panel


def _plain_fourfold_panel(width: int, data: Any, at: int, x: Any, y: Any, low: int, size: int) -> int:
    """Sweep a panel of four blocks without a compiler."""
    panel = range(low, low + width)
    diagonal = {}
    for i in panel:
        for j in range(low, i + 1):
            diagonal[i, j] = diagonal[j, i] = data[at : at + 4]
            at += 4
    for j in panel:
        for i in panel:
            y[i] += diagonal[i, j] * x[j]
    for i in range(low + width, size):
        for j in panel:
            y[i] += data[at : at + 4] * x[j]
            y[j] += data[at : at + 4] * x[i]
            at += 4
    return at


four_columns, one_column = _fourfold_panel(4), _fourfold_panel(1)


@outlined
def fourfold_work(kinds, offsets):
    """Return the entries of ``work`` that products of four blocks need."""
    largest = 0
    for block in range(kinds.size):
        if kinds[block] == c.FOURFOLD:
            largest = max(largest, offsets[block + 1] - offsets[block])
    return 8 * largest


@outlined
def fourfold_product(data, x, out, work):
    """Write H x of four dense blocks of one size from their `fourfold` storage."""
    size = x.size // 4
    factors = work[: 4 * size].reshape(size, 4)
    sums = work[4 * size : 8 * size].reshape(size, 4)
    x0, x1, x2, x3 = x[:size], x[size : 2 * size], x[2 * size : 3 * size], x[3 * size :]
    for i in range(size):
        factors[i, 0], factors[i, 1], factors[i, 2], factors[i, 3] = x0[i], x1[i], x2[i], x3[i]
        sums[i, 0] = sums[i, 1] = sums[i, 2] = sums[i, 3] = 0.0
    at = 0
    low = 0
    while low < size:
        if low + 4 <= size:
            at = four_columns(data, at, factors, sums, low, size)
            low += 4
        else:
            at = one_column(data, at, factors, sums, low, size)
            low += 1
    y0, y1, y2, y3 = out[:size], out[size : 2 * size], out[2 * size : 3 * size], out[3 * size :]
    for i in range(size):
        y0[i], y1[i], y2[i], y3[i] = sums[i, 0], sums[i, 1], sums[i, 2], sums[i, 3]
