r"""One run of tiny blocks (sizes 1 to 3): the iterations between two events.

At this size an iteration costs what its loads, stores and branches cost. The gradient of a block stays in
registers, and the next iterate goes to a second buffer before the stopping test is known: it is dropped if
the test holds. Where the step needs a norm of the whole gradient (``m_star``, ``lemma``), a second pass
computes the gradient anew, which costs less than a wide load that must wait for narrow stores.

The operations on each number, and their order, are those of ``single.py``: the same bits. Only iterations
at which nothing happens are made here; the first, recorded, last and failing ones are made there.
"""

from __future__ import annotations

import math

import numpy as np

from quadlab.kernels import codes as c
from quadlab.kernels.elements import adam, average, flush, inline, outlined, sign

MAX_SIZE = 3
# A masked index is provably not negative: Numba then leaves out its test for an index from the end.
MASK = (1 << 40) - 1


@inline
def block_gradient(width, data, k, x, at):
    """Return the coordinates and the gradient of a block, zeros beyond its width."""
    x0, x1, x2 = x[at], 0.0, 0.0
    g1 = g2 = 0.0
    if width == 1:
        g0 = 0.0 + data[k] * x0
    elif width == 2:
        x1 = x[at + 1]
        g0 = (0.0 + data[k] * x0) + data[k + 2] * x1
        g1 = (0.0 + data[k + 1] * x0) + data[k + 3] * x1
    else:
        x1, x2 = x[at + 1], x[at + 2]
        g0 = ((0.0 + data[k] * x0) + data[k + 3] * x1) + data[k + 6] * x2
        g1 = ((0.0 + data[k + 1] * x0) + data[k + 4] * x1) + data[k + 7] * x2
        g2 = ((0.0 + data[k + 2] * x0) + data[k + 5] * x1) + data[k + 8] * x2
    return x0, x1, x2, g0, g1, g2


@inline
def move(method, size, now, new, i, x, g, step, beta1, beta2, inverse1, inverse2, epsilon, buffers):
    """Write one coordinate of the next iterate and of its state: buffers (x, m, v) of ``size`` each."""
    if method == c.GD:
        d = g
    elif method == c.SIGN:
        d = sign(g)
    else:
        m = average(buffers[(now + size + i) & MASK], g, beta1)
        v = average(buffers[(now + 2 * size + i) & MASK], g * g, beta2)
        buffers[(new + size + i) & MASK] = m
        buffers[(new + 2 * size + i) & MASK] = v
        d = adam(m, v, inverse1, inverse2, epsilon)
    buffers[(new + i) & MASK] = flush(x - step * d)


@inline
def block_step(width, method, measure, update, l1, size, now, new, low, data, k, step, beta1, beta2, inverse1,
               inverse2, epsilon, buffers):  # fmt: skip
    """Move a block (``update``) and return its sum of |g| or g^2, and with ``measure`` that of d^2."""
    x0, x1, x2, g0, g1, g2 = block_gradient(width, data, k, buffers, (now + low) & MASK)
    if l1:
        part = (abs(g0) + abs(g1)) + abs(g2)
    else:
        part = (g0 * g0 + g1 * g1) + g2 * g2
    square = part
    if method == c.SIGN and measure:
        s0, s1, s2 = sign(g0), sign(g1), sign(g2)
        square = (s0 * s0 + s1 * s1) + s2 * s2
    if update:
        move(method, size, now, new, low, x0, g0, step, beta1, beta2, inverse1, inverse2, epsilon, buffers)
        if width > 1:
            move(method, size, now, new, low + 1, x1, g1, step, beta1, beta2, inverse1, inverse2, epsilon,
                 buffers)  # fmt: skip
        if width > 2:
            move(method, size, now, new, low + 2, x2, g2, step, beta1, beta2, inverse1, inverse2, epsilon,
                 buffers)  # fmt: skip
    return part, square


@inline
def advance(method, rule, l1, t, limit, offsets, data_offsets, norms, data, params, schedule, start, acc,
            size, buffers):  # fmt: skip
    """Return the iteration reached and the half of ``buffers`` that holds it."""
    tolerance = params[c.P_TOLERANCE]
    beta1, beta2, epsilon = params[c.P_BETA1], params[c.P_BETA2], params[c.P_EPSILON]
    power1, power2 = acc[c.A_POWER1], acc[c.A_POWER2]
    half = buffers.size // 2
    now = 0
    late = method != c.ADAM and (rule == c.M_STAR or rule == c.LEMMA)
    inverse1 = inverse2 = 1.0
    step = params[c.P_RATE]
    measure = late and rule == c.LEMMA
    update = not late
    while t < limit:
        new = half - now
        if rule == c.SCHEDULE:
            step = schedule[t - start]
        if method == c.ADAM:
            power1 *= beta1
            power2 *= beta2
            if params[c.P_BIAS] != 0.0:
                inverse1, inverse2 = 1.0 / (1.0 - power1), 1.0 / (1.0 - power2)
        total = weighted = 0.0
        for block in range(norms.size):
            low = offsets[block] & MASK
            width = offsets[block + 1] - low
            k = data_offsets[block] & MASK
            if width == 3:
                part, square = block_step(3, method, measure, update, l1, size, now, new, low, data, k, step,
                                          beta1, beta2, inverse1, inverse2, epsilon, buffers)  # fmt: skip
            elif width == 2:
                part, square = block_step(2, method, measure, update, l1, size, now, new, low, data, k, step,
                                          beta1, beta2, inverse1, inverse2, epsilon, buffers)  # fmt: skip
            else:
                part, square = block_step(1, method, measure, update, l1, size, now, new, low, data, k, step,
                                          beta1, beta2, inverse1, inverse2, epsilon, buffers)  # fmt: skip
            total += part
            if measure:
                weighted += square * norms[block]
        if late and update:  # the second pass is done
            update = False
        else:
            value = total if l1 else math.sqrt(total)
            if not (value > tolerance and value < np.inf):
                break
            if late:
                step = total / (params[c.P_M] if rule == c.M_STAR else weighted)
                if not step < np.inf:
                    break
                update = True
                continue
        acc[c.A_POWER1], acc[c.A_POWER2] = power1, power2
        now = new
        t += 1
    return t, now


@outlined
def advance_tiny(method, rule, stop, t, limit, offsets, data_offsets, norms, data, params, schedule, start,
                 acc, x, state):  # fmt: skip
    """Advance x and state from t to the next event, at most to ``limit``; return the iteration reached."""
    size = x.size
    half = (1 + state.shape[0]) * size
    buffers = np.empty(2 * half)
    buffers[:size] = x
    for k in range(state.shape[0]):
        buffers[(k + 1) * size : (k + 2) * size] = state[k]
    l1 = stop == c.STOP_L1
    if method == c.GD:
        t, now = advance(c.GD, rule, l1, t, limit, offsets, data_offsets, norms, data, params, schedule,
                         start, acc, size, buffers)  # fmt: skip
    elif method == c.SIGN:
        t, now = advance(c.SIGN, rule, l1, t, limit, offsets, data_offsets, norms, data, params,
                         schedule, start, acc, size, buffers)  # fmt: skip
    else:
        t, now = advance(c.ADAM, rule, l1, t, limit, offsets, data_offsets, norms, data, params,
                         schedule, start, acc, size, buffers)  # fmt: skip
    x[:] = buffers[now : now + size]
    for k in range(state.shape[0]):
        state[k, :] = buffers[now + (k + 1) * size : now + (k + 2) * size]
    return t
