r"""One run on a diagonal Hessian: the iterations between two events, in one pass over memory each.

A long vector costs the bytes it moves. The pass that updates a chunk of x (and of the moments) also forms
the next gradient there, :math:`g_i = h_i x_i`, and sums its norm: whether the next iteration's test holds is
known at the end of the pass, before anything else is written. Neither g nor d is stored, so that GD and
SignSGD move three numbers a coordinate (h and x read, x written) and Adam seven.

The operations on each number, and the order of every sum, are those of ``single.py``: the same bits. Only
iterations at which nothing happens are made here; the first, recorded, last and failing ones are made there.
"""

from __future__ import annotations

import math

import numpy as np

from quadlab.kernels import codes as c
from quadlab.kernels.elements import adam, average, flush, outlined, sign
from quadlab.kernels.sums import absolute_block_sum, product_block_sum


@outlined
def start_chunk(h, x, g):
    """Write the gradient of a chunk."""
    for i in range(x.size):
        g[i] = h[i] * x[i]


@outlined
def move_gd(h, x, g, step):
    """Update a chunk by gradient descent and write its next gradient."""
    for i in range(x.size):
        x[i] = flush(x[i] - step * (h[i] * x[i]))
        g[i] = h[i] * x[i]


@outlined
def move_sign(h, x, g, step):
    """Update a chunk by the sign of the gradient and write its next gradient."""
    for i in range(x.size):
        x[i] = flush(x[i] - step * sign(h[i] * x[i]))
        g[i] = h[i] * x[i]


@outlined
def move_adam(h, x, m, v, g, step, beta1, beta2, inverse1, inverse2, epsilon):
    """Update a chunk by Adam and write its next gradient."""
    for i in range(x.size):
        gradient = h[i] * x[i]
        m[i] = average(m[i], gradient, beta1)
        v[i] = average(v[i], gradient * gradient, beta2)
        x[i] = flush(x[i] - step * adam(m[i], v[i], inverse1, inverse2, epsilon))
        g[i] = h[i] * x[i]


@outlined
def nonzeros(g):
    """Return the number of nonzero entries: ||sign g||^2."""
    count = 0
    for i in range(g.size):
        count += 1 if g[i] != 0.0 else 0
    return count


@outlined
def absolute_sum(g):
    """Return the sum of |g| over a chunk."""
    return absolute_block_sum(g, g, 0, g.size)


@outlined
def square_sum(g):
    """Return the sum of g^2 over a chunk."""
    return product_block_sum(g, g, 0, g.size)


@outlined
def advance_stream(method, rule, stop, t, limit, offsets, data_offsets, norms, data, params, schedule, start,
                   acc, x, state):  # fmt: skip
    """Advance x and state from t to the next event, at most to ``limit``; return the iteration reached."""
    beta1, beta2, epsilon = params[c.P_BETA1], params[c.P_BETA2], params[c.P_EPSILON]
    inverse1 = inverse2 = step = 1.0
    buffer = np.empty(c.CHUNK)
    moving = False
    while True:
        total = weighted = 0.0
        for block in range(norms.size):
            part = 0.0
            count = 0
            at = data_offsets[block] - offsets[block]
            for begin in range(offsets[block], offsets[block + 1], c.CHUNK):
                end = min(begin + c.CHUNK, offsets[block + 1])
                h, y, g = data[at + begin : at + end], x[begin:end], buffer[: end - begin]
                if not moving:
                    start_chunk(h, y, g)
                elif method == c.GD:
                    move_gd(h, y, g, step)
                elif method == c.SIGN:
                    move_sign(h, y, g, step)
                else:
                    move_adam(h, y, state[0, begin:end], state[1, begin:end], g, step, beta1, beta2, inverse1,
                              inverse2, epsilon)  # fmt: skip
                part += absolute_sum(g) if stop == c.STOP_L1 else square_sum(g)
                if rule == c.LEMMA and method == c.SIGN:
                    count += nonzeros(g)
            total += part
            weighted += (count if method == c.SIGN else part) * norms[block]
        t += 1 if moving else 0
        value = total if stop == c.STOP_L1 else math.sqrt(total)
        if t >= limit or not (value > params[c.P_TOLERANCE] and value < np.inf):
            break
        if rule == c.CONSTANT:
            step = params[c.P_RATE]
        elif rule == c.SCHEDULE:
            step = schedule[t - start]
        else:
            step = total / (params[c.P_M] if rule == c.M_STAR else weighted)
            if not step < np.inf:
                break
        if method == c.ADAM:
            acc[c.A_POWER1] *= beta1
            acc[c.A_POWER2] *= beta2
            if params[c.P_BIAS] != 0.0:
                inverse1, inverse2 = 1.0 / (1.0 - acc[c.A_POWER1]), 1.0 / (1.0 - acc[c.A_POWER2])
        moving = True
    return t
