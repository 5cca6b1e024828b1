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
from quadlab.kernels.sums import FIRST, absolute_block_sum, product_block_sum
from quadlab.kernels.team import barrier


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
    return absolute_block_sum(g, g, FIRST, g.size)


@outlined
def square_sum(g):
    """Return the sum of g^2 over a chunk."""
    return product_block_sum(g, g, FIRST, g.size)


@outlined
def advance_stream(rank, ranks, team, sums, method, rule, stop, t, limit, offsets, data_offsets, norms, data,
                   params, schedule, start, acc, x, state):  # fmt: skip
    """Advance x and state from t to the next event, at most to ``limit``; return the iteration reached.

    Thread ``rank`` of ``ranks`` moves its share of the chunks. ``sums[p, :, k]`` holds what chunk k adds at
    the passes of parity p, to be summed in order by every thread: the next pass writes to the other half, so
    one barrier a pass is enough.
    """
    beta1, beta2, epsilon = params[c.P_BETA1], params[c.P_BETA2], params[c.P_EPSILON]
    power1, power2 = acc[c.A_POWER1], acc[c.A_POWER2]
    inverse1 = inverse2 = step = 1.0
    buffer = np.empty(c.CHUNK)
    chunks = sums.shape[2]
    mine, behind = rank * chunks // ranks, (rank + 1) * chunks // ranks
    counted = rule == c.LEMMA and method == c.SIGN
    moving = False
    parity = 0
    while True:
        k = 0
        for block in range(norms.size):
            at = data_offsets[block] - offsets[block]
            for begin in range(offsets[block], offsets[block + 1], c.CHUNK):
                if mine <= k < behind:
                    end = min(begin + c.CHUNK, offsets[block + 1])
                    h, y, g = data[at + begin : at + end], x[begin:end], buffer[: end - begin]
                    if not moving:
                        start_chunk(h, y, g)
                    elif method == c.GD:
                        move_gd(h, y, g, step)
                    elif method == c.SIGN:
                        move_sign(h, y, g, step)
                    else:
                        move_adam(h, y, state[0, begin:end], state[1, begin:end], g, step, beta1, beta2,
                                  inverse1, inverse2, epsilon)  # fmt: skip
                    sums[parity, 0, k] = absolute_sum(g) if stop == c.STOP_L1 else square_sum(g)
                    if counted:
                        sums[parity, 1, k] = nonzeros(g)
                k += 1
        if ranks > 1:
            barrier(team, ranks)
        total = weighted = 0.0
        k = 0
        for block in range(norms.size):
            part = count = 0.0
            for _ in range(offsets[block], offsets[block + 1], c.CHUNK):
                part += sums[parity, 0, k]
                count += sums[parity, 1, k]
                k += 1
            total += part
            weighted += (count if method == c.SIGN else part) * norms[block]
        parity = 1 - parity
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
            power1 *= beta1
            power2 *= beta2
            if params[c.P_BIAS] != 0.0:
                inverse1, inverse2 = 1.0 / (1.0 - power1), 1.0 / (1.0 - power2)
        moving = True
    if rank == 0:
        acc[c.A_POWER1], acc[c.A_POWER2] = power1, power2
    return t


@outlined
def assist(rank, ranks, team, sums, method, rule, stop, offsets, data_offsets, norms, data, params, schedule,
           start, acc, x, state):  # fmt: skip
    """Join `advance_stream` whenever rank 0 asks for it, until it asks to leave."""
    while True:
        barrier(team, ranks)
        t, limit = team[c.T_FIRST], team[c.T_LIMIT]
        if limit == c.LEAVE:
            return
        advance_stream(rank, ranks, team, sums, method, rule, stop, t, limit, offsets, data_offsets, norms,
                       data, params, schedule, start, acc, x, state)  # fmt: skip
