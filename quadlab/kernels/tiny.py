r"""One run of tiny blocks (sizes 1 to 3): the iterations between two events.

At this size an iteration costs what its loads, stores and branches cost. Four blocks are therefore worked on
side by side, coordinate i of each an entry of one vector register (`fours`), and a problem of at most four
blocks stays in registers from one event to the next. Blocks are made up to size 3, and their number to a
multiple of four, by zeros: H, x and the moments are 0 there, hence every gradient and step too, and a sum
that gains the term +0 keeps its bits. The pass that updates x also forms the next gradient, as in
``stream.py``.

The operations on each number, and their order, are those of ``single.py``: the same bits. Left out is the
first addition of +0 in a row of H x: it turns -0 into +0, which the flush of x and of the moments does too;
and the one to the first term of a sum, which is never -0. Only iterations at which nothing happens are made
here; the first, recorded, last and failing ones are made there.
"""

from __future__ import annotations

import math

import numpy as np

from quadlab.kernels import codes as c
from quadlab.kernels.elements import adam, average, flush, inline, outlined, sign
from quadlab.kernels.fours import LENGTH, chosen, entries, load, store

SIZE = 3
# The rows of a group of four blocks: H (its columns, one after the other), x, m, v, g, ||H_b||.
H, X, M, V, G, NORM = (LENGTH * row for row in (0, 9, 12, 15, 18, 21))
ROWS = 22 * LENGTH


@inline
def vector(cells, at):
    """Return a vector of each block of a group: its coordinates."""
    return load(cells, at), load(cells, at + LENGTH), load(cells, at + 2 * LENGTH)


@inline
def write(coordinates, cells, at):
    """Write what `vector` returns."""
    store(coordinates[0], cells, at)
    store(coordinates[1], cells, at + LENGTH)
    store(coordinates[2], cells, at + 2 * LENGTH)


@inline
def columns_of(cells, at):
    """Return the columns of H of a group."""
    at += H
    return vector(cells, at), vector(cells, at + 3 * LENGTH), vector(cells, at + 6 * LENGTH)


@inline
def moved(method, x, g, m, v, step, beta1, beta2, inverse1, inverse2, epsilon):
    """Return a coordinate of the next iterate, and its moments."""
    if method == c.GD:
        return flush(x - step * g), m, v
    if method == c.SIGN:
        return flush(x - step * sign(g)), m, v
    m = average(m, g, beta1)
    v = average(v, g * g, beta2)
    return flush(x - step * adam(m, v, inverse1, inverse2, epsilon)), m, v


@inline
def move(method, x, g, m, v, step, beta1, beta2, inverse1, inverse2, epsilon):
    """Return the next iterate of a group, and its moments."""
    x0, m0, v0 = moved(method, x[0], g[0], m[0], v[0], step, beta1, beta2, inverse1, inverse2, epsilon)
    x1, m1, v1 = moved(method, x[1], g[1], m[1], v[1], step, beta1, beta2, inverse1, inverse2, epsilon)
    x2, m2, v2 = moved(method, x[2], g[2], m[2], v[2], step, beta1, beta2, inverse1, inverse2, epsilon)
    return (x0, x1, x2), (m0, m1, m2), (v0, v1, v2)


@inline
def product(columns, x):
    """Return H x of a group."""
    g0 = columns[0][0] * x[0] + columns[1][0] * x[1]
    g1 = columns[0][1] * x[0] + columns[1][1] * x[1]
    g2 = columns[0][2] * x[0] + columns[1][2] * x[1]
    return g0 + columns[2][0] * x[2], g1 + columns[2][1] * x[2], g2 + columns[2][2] * x[2]


@inline
def nonzero(value):
    """Return the square of the sign."""
    return chosen(value == 0.0, 0.0, 1.0)


@inline
def in_order(begin, total, terms):
    """Return a sum that the terms of a group are added to, or which they begin."""
    t0, t1, t2, t3 = entries(terms)
    return (((t0 if begin else total + t0) + t1) + t2) + t3


@inline
def measured(weighs, l1, begin, total, weighted, g, norm):
    """Return the sum of |g| or g^2, and of ``||d_b||^2 ||H_b||``: of SignSGD with |g|, of GD with g^2."""
    if l1:
        total = in_order(begin, total, (abs(g[0]) + abs(g[1])) + abs(g[2]))
        if weighs:
            squares = (nonzero(g[0]) + nonzero(g[1])) + nonzero(g[2])
            weighted = in_order(begin, weighted, squares * norm)
    else:
        squares = (g[0] * g[0] + g[1] * g[1]) + g[2] * g[2]
        total = in_order(begin, total, squares)
        if weighs:
            weighted = in_order(begin, weighted, squares * norm)
    return total, weighted


@inline
def advance(method, rule, l1, t, limit, params, schedule, start, acc, cells):
    """Advance the cells from t to the next event, at most to ``limit``; return the iteration reached."""
    weighs = rule == c.LEMMA
    tolerance = params[c.P_TOLERANCE]
    beta1, beta2, epsilon = params[c.P_BETA1], params[c.P_BETA2], params[c.P_EPSILON]
    power1, power2 = acc[c.A_POWER1], acc[c.A_POWER2]
    inverse1 = inverse2 = 1.0
    step = params[c.P_RATE]
    total = weighted = 0.0
    for at in range(0, cells.size, ROWS):
        gradient = product(columns_of(cells, at), vector(cells, at + X))
        write(gradient, cells, at + G)
        total, weighted = measured(weighs, l1, at == 0, total, weighted, gradient, load(cells, at + NORM))
    # The last group; where it is the only one it stays in registers until the end.
    alone = at == 0
    columns, norm = columns_of(cells, at), load(cells, at + NORM)
    x, g, m, v = (
        vector(cells, at + X), vector(cells, at + G), vector(cells, at + M), vector(cells, at + V)
    )  # fmt: skip
    while True:
        value = total if l1 else math.sqrt(total)
        if t >= limit or not (value > tolerance and value < np.inf):
            break
        if rule == c.SCHEDULE:
            step = schedule[t - start]
        elif rule != c.CONSTANT:
            step = total / (params[c.P_M] if rule == c.M_STAR else weighted)
            if not step < np.inf:
                break
        if method == c.ADAM:
            power1 *= beta1
            power2 *= beta2
            if params[c.P_BIAS] != 0.0:
                inverse1, inverse2 = 1.0 / (1.0 - power1), 1.0 / (1.0 - power2)
        if alone:
            x, m, v = move(method, x, g, m, v, step, beta1, beta2, inverse1, inverse2, epsilon)
            g = product(columns, x)
            total, weighted = measured(weighs, l1, True, 0.0, 0.0, g, norm)
        else:
            for at in range(0, cells.size, ROWS):
                point, mean, square = move(
                    method, vector(cells, at + X), vector(cells, at + G), vector(cells, at + M),
                    vector(cells, at + V), step, beta1, beta2, inverse1, inverse2, epsilon,
                )  # fmt: skip
                gradient = product(columns_of(cells, at), point)
                write(point, cells, at + X)
                write(gradient, cells, at + G)
                if method == c.ADAM:
                    write(mean, cells, at + M)
                    write(square, cells, at + V)
                total, weighted = measured(
                    weighs, l1, at == 0, total, weighted, gradient, load(cells, at + NORM)
                )
        t += 1
    if alone:
        write(x, cells, at + X)
        write(m, cells, at + M)
        write(v, cells, at + V)
    acc[c.A_POWER1], acc[c.A_POWER2] = power1, power2
    return t


@inline
def place(offsets, block):
    """Return where a block's column of cells begins, where its coordinates do, and their number."""
    at = block // LENGTH * ROWS + block % LENGTH
    return at, offsets[block], offsets[block + 1] - offsets[block]


@outlined
def advance_tiny(method, rule, stop, t, limit, offsets, data_offsets, norms, data, params, schedule, start,
                 acc, x, state):  # fmt: skip
    """Advance x and state from t to the next event, at most to ``limit``; return the iteration reached."""
    if t >= limit:
        return t
    cells = np.zeros((norms.size + LENGTH - 1) // LENGTH * ROWS)
    for block in range(norms.size):
        at, low, width = place(offsets, block)
        cells[at + NORM] = norms[block]
        for i in range(width):
            cells[at + X + LENGTH * i] = x[low + i]
            for k in range(state.shape[0]):
                cells[at + M + LENGTH * (SIZE * k + i)] = state[k, low + i]
            for j in range(width):
                cells[at + H + LENGTH * (SIZE * j + i)] = data[data_offsets[block] + width * j + i]
    l1 = stop == c.STOP_L1
    if method == c.GD:
        t = advance(c.GD, rule, l1, t, limit, params, schedule, start, acc, cells)
    elif method == c.SIGN:
        t = advance(c.SIGN, rule, l1, t, limit, params, schedule, start, acc, cells)
    else:
        t = advance(c.ADAM, rule, l1, t, limit, params, schedule, start, acc, cells)
    for block in range(norms.size):
        at, low, width = place(offsets, block)
        for i in range(width):
            x[low + i] = cells[at + X + LENGTH * i]
            for k in range(state.shape[0]):
                state[k, low + i] = cells[at + M + LENGTH * (SIZE * k + i)]
    return t
