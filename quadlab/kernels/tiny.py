r"""Tiny blocks (sizes 1 to 3): the iterations between two events, of one run or of four.

At this size an iteration costs what its loads, stores and branches cost. Four blocks of a run are therefore
worked on side by side, coordinate i of each an entry of one vector register (``fours.py``); or a block of
four runs, where there are that many. At most four blocks of a run stay in registers from one event to the
next; more, and those of four runs, in a few hundred doubles of the first cache. Blocks are made up to size
3, and their number to a multiple of four, by zeros: H, x and the moments are 0 there, hence every gradient
and step too, and a sum that gains the term +0 keeps its bits. The pass that updates x also forms the next
gradient, as in ``stream.py``.

The operations on each number, and their order, are those of ``single.py`` and ``lanes.py``: the same bits.
Left out is the first addition of +0 in a row of H x: it turns -0 into +0, which the flush of x and of the
moments does too; and the one to the first term of a sum, which is never -0. Only iterations at which nothing
happens are made here; the first, recorded, last and failing ones are made there.
"""

from __future__ import annotations

import numpy as np

from quadlab.kernels import codes as c
from quadlab.kernels.elements import adam, average, flush, inline, outlined, sign
from quadlab.kernels.fours import LENGTH, added, chosen, entry_at, every, load, root, spread, store

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
def measured(weighs, l1, total, weighted, g, norm):
    """Return the sum of |g| or g^2, and of ``||d_b||^2 ||H_b||``: of SignSGD with |g|, of GD with g^2."""
    parts = (abs(g[0]) + abs(g[1])) + abs(g[2]) if l1 else (g[0] * g[0] + g[1] * g[1]) + g[2] * g[2]
    total = added(total, parts)
    if weighs:
        squares = (nonzero(g[0]) + nonzero(g[1])) + nonzero(g[2]) if l1 else parts
        weighted = added(weighted, squares * norm)
    return total, weighted


@inline
def advance(method, rule, l1, most, start, schedule, nothing, numbers, cells):
    """Advance the cells to the next event, at most by ``most`` iterations.

    The entries of a four are blocks of one run, or the same block of four runs; ``nothing`` (-0, to which all
    can be added) and the numbers are doubles, or fours. Returns the number of iterations and the powers of
    beta.
    """
    step, m_star, tolerance, beta1, beta2, epsilon, bias, power1, power2 = numbers
    weighs = rule == c.LEMMA
    inverse1, inverse2 = power1, power2
    total = weighted = nothing
    for at in range(0, cells.size, ROWS):
        gradient = product(columns_of(cells, at), vector(cells, at + X))
        write(gradient, cells, at + G)
        total, weighted = measured(weighs, l1, total, weighted, gradient, load(cells, at + NORM))
    # The last group; where it is the only one it stays in registers until the end.
    alone = at == 0
    columns, norm = columns_of(cells, at), load(cells, at + NORM)
    x, g, m, v = (
        vector(cells, at + X), vector(cells, at + G), vector(cells, at + M), vector(cells, at + V)
    )  # fmt: skip
    n = 0
    while n < most:
        value = total if l1 else root(total)
        if not (every(value > tolerance) and every(value < np.inf)):
            break
        if rule == c.SCHEDULE:
            step = entry_at(schedule, start, n)
        elif rule == c.M_STAR:
            step = total / m_star
        elif rule == c.LEMMA:
            step = total / weighted
        if not every(step < np.inf):
            break
        if method == c.ADAM:
            power1 = power1 * beta1
            power2 = power2 * beta2
            inverse1 = chosen(bias == 0.0, 1.0, 1.0 / (1.0 - power1))
            inverse2 = chosen(bias == 0.0, 1.0, 1.0 / (1.0 - power2))
        total = weighted = nothing
        if alone:
            x, m, v = move(method, x, g, m, v, step, beta1, beta2, inverse1, inverse2, epsilon)
            g = product(columns, x)
            total, weighted = measured(weighs, l1, total, weighted, g, norm)
        else:
            for row in range(0, cells.size, ROWS):
                point, mean, square = move(
                    method, vector(cells, row + X), vector(cells, row + G), vector(cells, row + M),
                    vector(cells, row + V), step, beta1, beta2, inverse1, inverse2, epsilon,
                )  # fmt: skip
                gradient = product(columns_of(cells, row), point)
                write(point, cells, row + X)
                write(gradient, cells, row + G)
                if method == c.ADAM:
                    write(mean, cells, row + M)
                    write(square, cells, row + V)
                total, weighted = measured(weighs, l1, total, weighted, gradient, load(cells, row + NORM))
        n += 1
    if alone:
        write(x, cells, at + X)
        write(m, cells, at + M)
        write(v, cells, at + V)
    return n, power1, power2


@inline
def advance_by(method, rule, l1, most, start, schedule, nothing, numbers, cells):
    """Call `advance` with a constant for the method, which is the same in all of its loop."""
    if method == c.GD:
        return advance(c.GD, rule, l1, most, start, schedule, nothing, numbers, cells)
    if method == c.SIGN:
        return advance(c.SIGN, rule, l1, most, start, schedule, nothing, numbers, cells)
    return advance(c.ADAM, rule, l1, most, start, schedule, nothing, numbers, cells)


@inline
def place(offsets, block):
    """Return where a block's cells begin, where its coordinates do, and their number."""
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
    numbers = (
        params[c.P_RATE], params[c.P_M], params[c.P_TOLERANCE], params[c.P_BETA1], params[c.P_BETA2],
        params[c.P_EPSILON], params[c.P_BIAS], acc[c.A_POWER1], acc[c.A_POWER2],
    )  # fmt: skip
    n, acc[c.A_POWER1], acc[c.A_POWER2] = advance_by(
        method, rule, stop == c.STOP_L1, limit - t, t - start, schedule, -0.0, numbers, cells
    )
    for block in range(norms.size):
        at, low, width = place(offsets, block)
        for i in range(width):
            x[low + i] = cells[at + X + LENGTH * i]
            for k in range(state.shape[0]):
                state[k, low + i] = cells[at + M + LENGTH * (SIZE * k + i)]
    return t + n


@outlined
def advance_four(w, method, rule, stop, most, offsets, data_offsets, data, shared, norms, t, par, schedule,
                 acc, x, state, cells):  # fmt: skip
    """Advance the lanes w to w + 3 to the next event of one of them, at most by ``most`` iterations.

    ``cells`` has ``ROWS`` entries a block, and zeros where nothing is written here.
    """
    width = x.shape[1]
    for block in range(norms.shape[0]):
        low, at, first = offsets[block], block * ROWS, data_offsets[block]
        size = offsets[block + 1] - low
        store(load(norms, block * width + w), cells, at + NORM)
        for i in range(size):
            store(load(x, (low + i) * width + w), cells, at + X + LENGTH * i)
            for k in range(state.shape[0]):
                row = k * x.shape[0] + low + i
                store(load(state, row * width + w), cells, at + M + LENGTH * (SIZE * k + i))
            for j in range(size):
                row = first + size * j + i
                h = spread(data[row, 0]) if shared else load(data, row * width + w)
                store(h, cells, at + H + LENGTH * (SIZE * j + i))
    numbers = (
        load(par, c.P_RATE * width + w), load(par, c.P_M * width + w), load(par, c.P_TOLERANCE * width + w),
        load(par, c.P_BETA1 * width + w), load(par, c.P_BETA2 * width + w),
        load(par, c.P_EPSILON * width + w), load(par, c.P_BIAS * width + w),
        load(acc, c.A_POWER1 * width + w), load(acc, c.A_POWER2 * width + w),
    )  # fmt: skip
    start = t[w], t[w + 1], t[w + 2], t[w + 3]
    n, power1, power2 = advance_by(
        method, rule, stop == c.STOP_L1, most, start, schedule, spread(-0.0), numbers, cells
    )
    store(power1, acc, c.A_POWER1 * width + w)
    store(power2, acc, c.A_POWER2 * width + w)
    for k in range(w, w + LENGTH):
        t[k] += n
    for block in range(norms.shape[0]):
        low, at = offsets[block], block * ROWS
        for i in range(offsets[block + 1] - low):
            store(load(cells, at + X + LENGTH * i), x, (low + i) * width + w)
            for k in range(state.shape[0]):
                row = k * x.shape[0] + low + i
                store(load(cells, at + M + LENGTH * (SIZE * k + i)), state, row * width + w)
    return n
