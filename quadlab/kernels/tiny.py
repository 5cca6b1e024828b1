r"""One run of tiny blocks (sizes 1 to 3): the iterations between two events.

At this size an iteration costs what its loads, stores and branches cost, so the blocks are laid side by side
as ``lanes.py`` does with runs: coordinate i of all blocks is a row of ``cells``, and a loop along a row does
the work of four blocks at a time. Blocks are made up to size 3, and their number to a multiple of four, by
zeros: H, x and the moments are 0 there, hence every gradient and step too, and a sum that gains the term +0
keeps its bits. The pass that updates x also forms the next gradient, as in ``stream.py``: what is stored by
one iteration and read by the next costs eight cycles of waiting.

The operations on each number, and their order, are those of ``single.py``: the same bits. Left out is the
first addition of +0 in a row of H x: it turns -0 into +0, which the flush of x and of the moments does too.
Only iterations at which nothing happens are made here; the first, recorded, last and failing ones are made
there.
"""

from __future__ import annotations

import math

import numpy as np

from quadlab.kernels import codes as c
from quadlab.kernels.elements import adam, average, flush, inline, outlined, sign

SIZE = 3
# Numbers in a vector register, and blocks in a group: a loop is vectorised if it may be as long as 16.
REGISTER, GROUP = 4, 16
# The rows of a group: H (its columns, one after the other), x, m, v, g, ||H_b||, and terms of two sums.
H, X, M, V, G, NORM, TERM, WEIGHTED = (GROUP * row for row in (0, 9, 12, 15, 18, 21, 22, 23))
ROWS = 24
# A masked index is provably not negative: Numba then leaves out its test for an index from the end.
MASK = (1 << 40) - 1
# The pass that only forms the gradient.
STAY = -1


@inline
def moved(method, x, g, m, v, step, beta1, beta2, inverse1, inverse2, epsilon):
    """Return a coordinate of the next iterate, and its moments."""
    if method == STAY:
        return x, m, v
    if method == c.GD:
        return flush(x - step * g), m, v
    if method == c.SIGN:
        return flush(x - step * sign(g)), m, v
    m = average(m, g, beta1)
    v = average(v, g * g, beta2)
    return flush(x - step * adam(m, v, inverse1, inverse2, epsilon)), m, v


@inline
def nonzero(value):
    """Return the square of the sign."""
    return 1.0 if value != 0.0 else 0.0


@inline
def move(method, l1, weighted, at, count, step, beta1, beta2, inverse1, inverse2, epsilon, cells):
    """Write the next iterate of a group, its gradient g, and the blocks' terms of sums.

    These are |g| or g^2 and, if ``weighted``, ``||d_b||^2 ||H_b||``: of SignSGD with |g|, of GD with g^2.
    """
    for w in range(at & MASK, (at & MASK) + (count & MASK)):
        x0, m0, v0 = moved(method, cells[w + X], cells[w + G], cells[w + M], cells[w + V],
                           step, beta1, beta2, inverse1, inverse2, epsilon)  # fmt: skip
        x1, m1, v1 = moved(method, cells[w + X + GROUP], cells[w + G + GROUP], cells[w + M + GROUP],
                           cells[w + V + GROUP], step, beta1, beta2, inverse1, inverse2, epsilon)  # fmt: skip
        x2, m2, v2 = moved(method, cells[w + X + 2 * GROUP], cells[w + G + 2 * GROUP],
                           cells[w + M + 2 * GROUP], cells[w + V + 2 * GROUP],
                           step, beta1, beta2, inverse1, inverse2, epsilon)  # fmt: skip
        g0 = cells[w + H] * x0 + cells[w + H + 3 * GROUP] * x1
        g1 = cells[w + H + GROUP] * x0 + cells[w + H + 4 * GROUP] * x1
        g2 = cells[w + H + 2 * GROUP] * x0 + cells[w + H + 5 * GROUP] * x1
        g0 = g0 + cells[w + H + 6 * GROUP] * x2
        g1 = g1 + cells[w + H + 7 * GROUP] * x2
        g2 = g2 + cells[w + H + 8 * GROUP] * x2
        cells[w + X], cells[w + X + GROUP], cells[w + X + 2 * GROUP] = x0, x1, x2
        cells[w + G], cells[w + G + GROUP], cells[w + G + 2 * GROUP] = g0, g1, g2
        if method == c.ADAM:
            cells[w + M], cells[w + M + GROUP], cells[w + M + 2 * GROUP] = m0, m1, m2
            cells[w + V], cells[w + V + GROUP], cells[w + V + 2 * GROUP] = v0, v1, v2
        if l1:
            cells[w + TERM] = (abs(g0) + abs(g1)) + abs(g2)
            if weighted:
                cells[w + WEIGHTED] = ((nonzero(g0) + nonzero(g1)) + nonzero(g2)) * cells[w + NORM]
        else:
            part = (g0 * g0 + g1 * g1) + g2 * g2
            cells[w + TERM] = part
            if weighted:
                cells[w + WEIGHTED] = part * cells[w + NORM]


@inline
def move_by(method, rule, l1, at, count, step, beta1, beta2, inverse1, inverse2, epsilon, cells):
    """Call ``move`` with constants for what is the same in all of its loop."""
    if rule == c.LEMMA and method != c.ADAM:
        move(method, method == c.SIGN, True, at, count, step, beta1, beta2, inverse1, inverse2, epsilon,
             cells)  # fmt: skip
    elif l1:
        move(method, True, False, at, count, step, beta1, beta2, inverse1, inverse2, epsilon, cells)
    else:
        move(method, False, False, at, count, step, beta1, beta2, inverse1, inverse2, epsilon, cells)


@inline
def group_at(first, lanes):
    """Return where the cells of a group begin and the number of its lanes."""
    return (first * ROWS) & MASK, min(lanes - first, GROUP) & MASK


@inline
def sum_of(row, lanes, cells):
    """Return the sum of a row of terms, in order."""
    total = 0.0
    for first in range(0, lanes, GROUP):
        at, count = group_at(first, lanes)
        for w in range(at + row, at + row + count, REGISTER):
            total = (((total + cells[w]) + cells[w + 1]) + cells[w + 2]) + cells[w + 3]
    return total


@outlined
def advance_tiny(method, rule, stop, t, limit, offsets, data_offsets, norms, data, params, schedule, start,
                 acc, x, state):  # fmt: skip
    """Advance x and state from t to the next event, at most to ``limit``; return the iteration reached."""
    if t >= limit:
        return t
    lanes = (norms.size + REGISTER - 1) // REGISTER * REGISTER
    cells = np.zeros((lanes + GROUP - 1) // GROUP * GROUP * ROWS)
    for block in range(norms.size):
        at = block // GROUP * GROUP * ROWS + block % GROUP
        low = offsets[block]
        width = offsets[block + 1] - low
        cells[at + NORM] = norms[block]
        for i in range(width):
            cells[at + X + GROUP * i] = x[low + i]
            for k in range(state.shape[0]):
                cells[at + M + GROUP * (SIZE * k + i)] = state[k, low + i]
            for j in range(width):
                cells[at + H + GROUP * (SIZE * j + i)] = data[data_offsets[block] + width * j + i]
    l1 = stop == c.STOP_L1
    tolerance = params[c.P_TOLERANCE]
    beta1, beta2, epsilon = params[c.P_BETA1], params[c.P_BETA2], params[c.P_EPSILON]
    power1, power2 = acc[c.A_POWER1], acc[c.A_POWER2]
    inverse1 = inverse2 = 1.0
    step = params[c.P_RATE]
    for first in range(0, lanes, GROUP):
        at, count = group_at(first, lanes)
        move(STAY, l1, rule == c.LEMMA, at, count, step, beta1, beta2, inverse1, inverse2, epsilon, cells)
    while True:
        total = sum_of(TERM, lanes, cells)
        value = total if l1 else math.sqrt(total)
        if t >= limit or not (value > tolerance and value < np.inf):
            break
        if rule == c.SCHEDULE:
            step = schedule[t - start]
        elif rule != c.CONSTANT:
            step = total / (params[c.P_M] if rule == c.M_STAR else sum_of(WEIGHTED, lanes, cells))
            if not step < np.inf:
                break
        if method == c.ADAM:
            power1 *= beta1
            power2 *= beta2
            if params[c.P_BIAS] != 0.0:
                inverse1, inverse2 = 1.0 / (1.0 - power1), 1.0 / (1.0 - power2)
        for first in range(0, lanes, GROUP):
            at, count = group_at(first, lanes)
            if method == c.GD:
                move_by(c.GD, rule, l1, at, count, step, beta1, beta2, inverse1, inverse2, epsilon, cells)
            elif method == c.SIGN:
                move_by(c.SIGN, rule, l1, at, count, step, beta1, beta2, inverse1, inverse2, epsilon, cells)
            else:
                move_by(c.ADAM, rule, l1, at, count, step, beta1, beta2, inverse1, inverse2, epsilon, cells)
        t += 1
    acc[c.A_POWER1], acc[c.A_POWER2] = power1, power2
    for block in range(norms.size):
        at = block // GROUP * GROUP * ROWS + block % GROUP
        low = offsets[block]
        for i in range(offsets[block + 1] - low):
            x[low + i] = cells[at + X + GROUP * i]
            for k in range(state.shape[0]):
                state[k, low + i] = cells[at + M + GROUP * (SIZE * k + i)]
    return t
