"""Many runs at a time: arrays (P, W), one run a lane, the lane innermost.

All lanes share the block structure, the method, the step rule and the stopping quantity; H is shared or
one per lane, everything else is one per lane. A lane whose run ends is refilled from the queue; when the
queue is empty the last lane is moved into its place, so that a batch costs the sum of its runs. Every
coordinate of every lane sees the operations of the single path in the same order: the same bits.

The loop differs from the single path in one thing: a lane that has ended still makes the update of the
current iteration (its result is stored before that) and is refilled after it.
"""

from __future__ import annotations

import math

import numpy as np

from quadlab.kernels import codes as c
from quadlab.kernels.elements import adam, average, flush, inline, larger, outlined, sign
from quadlab.kernels.fours import LENGTH
from quadlab.kernels.pointers import lanes_function_at
from quadlab.kernels.sums import TERM_ABSOLUTE, TERM_PRODUCT, TERM_SIGN, term
from quadlab.kernels.tiny import ROWS, advance_four

# Iterations that four lanes make in a row, away from the others.
TINY_PIECE = 64


@outlined
def block_sum(kind, a, b, low, high, lanes, stripes, part):
    """Write the block sum of every lane into ``part``: the order of single.block_sum."""
    for w in range(lanes):
        part[w] = 0.0
    if high - low <= 3:  # the stripes that stay empty add +0
        for i in range(low, high):
            for w in range(lanes):
                part[w] += term(kind, a[i, w], b[i, w])
        return
    begin = low
    while begin < high:
        end = min(begin + c.CHUNK, high)
        for k in range(c.STRIPES):
            for w in range(lanes):
                stripes[k, w] = 0.0
        for i in range(begin, end):
            k = (i - begin) % c.STRIPES
            for w in range(lanes):
                stripes[k, w] += term(kind, a[i, w], b[i, w])
        for w in range(lanes):
            part[w] += ((stripes[0, w] + stripes[1, w]) + (stripes[2, w] + stripes[3, w])) + (
                (stripes[4, w] + stripes[5, w]) + (stripes[6, w] + stripes[7, w])
            )
        begin = end


@outlined
def total_sum(kind, offsets, a, b, lanes, stripes, part, total):
    """Write the sum over all coordinates of every lane into ``total``."""
    for w in range(lanes):
        total[w] = 0.0
    for block in range(offsets.size - 1):
        block_sum(kind, a, b, offsets[block], offsets[block + 1], lanes, stripes, part)
        for w in range(lanes):
            total[w] += part[w]


@outlined
def weighted_squares(offsets, norms, a, lanes, stripes, part, weighted, square):
    """Write ``sum_b ||a_b||^2 ||H_b||`` and ``||a||^2`` of every lane."""
    for w in range(lanes):
        weighted[w] = 0.0
        square[w] = 0.0
    for block in range(offsets.size - 1):
        block_sum(TERM_PRODUCT, a, a, offsets[block], offsets[block + 1], lanes, stripes, part)
        for w in range(lanes):
            square[w] += part[w]
            weighted[w] += part[w] * norms[block, w]


@outlined
def four_rows(data, k, low, size, i, x, out, lanes):
    """Write rows i to i + 3 of a dense block's product, H shared: 32 flops for 8 loads of lanes."""
    row = low + i
    for r in range(row, row + 4):
        for w in range(lanes):
            out[r, w] = 0.0
    k0, k1, k2, k3 = k + i * size, k + (i + 1) * size, k + (i + 2) * size, k + (i + 3) * size
    j = 0
    while j + 4 <= size:
        a0, a1, a2, a3 = data[k0 + j, 0], data[k0 + j + 1, 0], data[k0 + j + 2, 0], data[k0 + j + 3, 0]
        b0, b1, b2, b3 = data[k1 + j, 0], data[k1 + j + 1, 0], data[k1 + j + 2, 0], data[k1 + j + 3, 0]
        c0, c1, c2, c3 = data[k2 + j, 0], data[k2 + j + 1, 0], data[k2 + j + 2, 0], data[k2 + j + 3, 0]
        d0, d1, d2, d3 = data[k3 + j, 0], data[k3 + j + 1, 0], data[k3 + j + 2, 0], data[k3 + j + 3, 0]
        y = low + j
        for w in range(lanes):
            x0, x1, x2, x3 = x[y, w], x[y + 1, w], x[y + 2, w], x[y + 3, w]
            out[row, w] = (((out[row, w] + a0 * x0) + a1 * x1) + a2 * x2) + a3 * x3
            out[row + 1, w] = (((out[row + 1, w] + b0 * x0) + b1 * x1) + b2 * x2) + b3 * x3
            out[row + 2, w] = (((out[row + 2, w] + c0 * x0) + c1 * x1) + c2 * x2) + c3 * x3
            out[row + 3, w] = (((out[row + 3, w] + d0 * x0) + d1 * x1) + d2 * x2) + d3 * x3
        j += 4
    while j < size:
        a0, b0, c0, d0 = data[k0 + j, 0], data[k1 + j, 0], data[k2 + j, 0], data[k3 + j, 0]
        for w in range(lanes):
            x0 = x[low + j, w]
            out[row, w] = out[row, w] + a0 * x0
            out[row + 1, w] = out[row + 1, w] + b0 * x0
            out[row + 2, w] = out[row + 2, w] + c0 * x0
            out[row + 3, w] = out[row + 3, w] + d0 * x0
        j += 1


@inline
def one_row(data, shared, k, low, size, row, x, out, lanes):
    """Write a row of a dense block's product: terms of j ascending, three a pass over the lanes."""
    for w in range(lanes):
        out[row, w] = 0.0
    j = 0
    while j + 3 <= size:
        m, y = k + j, low + j
        for w in range(lanes):
            h = 0 if shared else w
            out[row, w] = ((out[row, w] + data[m, h] * x[y, w]) + data[m + 1, h] * x[y + 1, w]) + data[
                m + 2, h
            ] * x[y + 2, w]
        j += 3
    while j < size:
        for w in range(lanes):
            h = 0 if shared else w
            out[row, w] = out[row, w] + data[k + j, h] * x[low + j, w]
        j += 1


@outlined
def hessian_product(kinds, offsets, data_offsets, data, shared, x, out, lanes):
    """Write H x of every lane (Householder blocks run on the single path)."""
    for block in range(kinds.size):
        low = offsets[block]
        size = offsets[block + 1] - low
        at = data_offsets[block]
        if kinds[block] == c.DENSE and shared:
            fours = size // 4 * 4
            for i in range(0, fours, 4):
                four_rows(data, at, low, size, i, x, out, lanes)
            for i in range(fours, size):
                one_row(data, True, at + i * size, low, size, low + i, x, out, lanes)
        elif kinds[block] == c.DENSE:
            for i in range(size):
                one_row(data, False, at + i * size, low, size, low + i, x, out, lanes)
        elif shared:
            for i in range(size):
                h = data[at + i, 0]
                for w in range(lanes):
                    out[low + i, w] = h * x[low + i, w]
        else:
            for i in range(size):
                for w in range(lanes):
                    out[low + i, w] = data[at + i, w] * x[low + i, w]


@inline
def correct(method, lanes, par, acc, inverse):
    """Write ``1 / (1 - beta_k^t)`` of Adam, the second moment's of a frozen one being 1."""
    for w in range(lanes):
        acc[c.A_POWER1, w] *= par[c.P_BETA1, w]
        acc[c.A_POWER2, w] *= par[c.P_BETA2, w]
        inverse[0, w] = 1.0
        inverse[1, w] = 1.0
        if par[c.P_BIAS, w] != 0.0:
            inverse[0, w] = 1.0 / (1.0 - acc[c.A_POWER1, w])
            if method == c.ADAM:
                inverse[1, w] = 1.0 / (1.0 - acc[c.A_POWER2, w])


@inline
def move_directly(method, lanes, par, step, inverse, g, x, state):
    """Make the update of SignSGD or Adam where nothing else needs the direction."""
    for i in range(x.shape[0]):
        if method == c.SIGN:
            for w in range(lanes):
                x[i, w] = flush(x[i, w] - step[w] * sign(g[i, w]))
        else:
            for w in range(lanes):
                m = average(state[0, i, w], g[i, w], par[c.P_BETA1, w])
                v = average(state[1, i, w], g[i, w] * g[i, w], par[c.P_BETA2, w])
                state[0, i, w], state[1, i, w] = m, v
                d = adam(m, v, inverse[0, w], inverse[1, w], par[c.P_EPSILON, w])
                x[i, w] = flush(x[i, w] - step[w] * d)


@inline
def write_direction(method, lanes, t, par, acc, anchor, x, g, d, state, square, inverse):
    """Write the direction of a built-in method (plain GD uses ``g`` itself)."""
    size = g.shape[0]
    if method == c.GD_MOMENTUM:
        for i in range(size):
            for w in range(lanes):
                d[i, w] = state[0, i, w] = flush(par[c.P_BETA1, w] * state[0, i, w] + g[i, w])
    elif method == c.GD_NESTEROV:
        for i in range(size):
            for w in range(lanes):
                state[0, i, w] = flush(par[c.P_BETA1, w] * state[0, i, w] + g[i, w])
                d[i, w] = g[i, w] + par[c.P_BETA1, w] * state[0, i, w]
    elif method == c.SIGN:
        for i in range(size):
            for w in range(lanes):
                d[i, w] = sign(g[i, w])
    elif method == c.SIGNUM:
        for i in range(size):
            for w in range(lanes):
                state[0, i, w] = average(state[0, i, w], g[i, w], par[c.P_BETA1, w])
                d[i, w] = sign(state[0, i, w])
    elif method == c.NORMALIZED:
        for w in range(lanes):
            inverse[0, w] = math.sqrt(square[w])
        for i in range(size):
            for w in range(lanes):
                d[i, w] = g[i, w] / inverse[0, w] if inverse[0, w] != 0.0 else 0.0
    elif method == c.ADAM or method == c.FROZEN_ADAM:
        if method == c.ADAM:
            for i in range(size):
                for w in range(lanes):
                    state[0, i, w] = average(state[0, i, w], g[i, w], par[c.P_BETA1, w])
                    state[1, i, w] = average(state[1, i, w], g[i, w] * g[i, w], par[c.P_BETA2, w])
                    d[i, w] = adam(
                        state[0, i, w], state[1, i, w], inverse[0, w], inverse[1, w], par[c.P_EPSILON, w]
                    )
        else:
            for w in range(lanes):
                if t[w] == 0:
                    for i in range(size):
                        state[1, i, w] = g[i, w] * g[i, w]
            for i in range(size):
                for w in range(lanes):
                    state[0, i, w] = average(state[0, i, w], g[i, w], par[c.P_BETA1, w])
                    d[i, w] = adam(
                        state[0, i, w], state[1, i, w], inverse[0, w], inverse[1, w], par[c.P_EPSILON, w]
                    )
        if anchor.shape[0] > 0:
            for i in range(size):
                for w in range(lanes):
                    if par[c.P_DECAY, w] != 0.0:
                        d[i, w] = d[i, w] + par[c.P_DECAY, w] * (x[i, w] + anchor[i, w])


@outlined
def write_denominator(method, offsets, norms, lowest, par, acc, state, work, q, lanes, stripes, part):
    """Statistics of the denominator ``D = sqrt(vhat) + epsilon`` of Adam (``D = 1`` elsewhere)."""
    size = work.shape[0]
    for i in range(size):
        for w in range(lanes):
            inverse2 = 1.0
            if method == c.ADAM and par[c.P_BIAS, w] != 0.0:
                inverse2 = 1.0 / (1.0 - acc[c.A_POWER2, w])
            if method == c.ADAM or method == c.FROZEN_ADAM:
                work[i, w] = math.sqrt(state[1, i, w] * inverse2) + par[c.P_EPSILON, w]
            else:
                work[i, w] = 1.0
    total_sum(TERM_ABSOLUTE, offsets, work, work, lanes, stripes, part, q[c.Q_DENOMINATOR])
    for w in range(lanes):
        highest = 0.0
        least = np.inf
        for block in range(offsets.size - 1):
            smallest = largest = work[offsets[block], w]
            for i in range(offsets[block] + 1, offsets[block + 1]):
                smallest = min(smallest, work[i, w])
                largest = max(largest, work[i, w])
            if norms[block, w] > 0.0:
                highest = max(highest, norms[block, w] / smallest)
                least = min(least, lowest[block, w] / largest)
        q[c.Q_PRECONDITIONED_MAX, w] = highest
        q[c.Q_PRECONDITIONED_MIN, w] = least


@inline
def measure(stop, q, lanes, value):
    """Write the quantity that the stopping test compares with its tolerance."""
    if stop == c.STOP_L2:
        for w in range(lanes):
            value[w] = math.sqrt(q[c.Q_SQUARE, w])
    else:
        row = c.Q_L1 if stop == c.STOP_L1 else c.Q_LINF if stop == c.STOP_LINF else c.Q_GAP
        for w in range(lanes):
            value[w] = q[row, w]


@outlined
def accumulate_transition(want, lanes, t, par, acc, q):
    """Accumulators that include the last iterate."""
    if want & c.WANT_GAP:
        for w in range(lanes):
            gap = q[c.Q_GAP, w]
            previous = acc[c.A_PREVIOUS_GAP, w]
            if t[w] > 0 and previous > 0.0:
                ratio = gap / previous
                acc[c.A_MIN_GAP_RATIO, w] = min(acc[c.A_MIN_GAP_RATIO, w], ratio)
                acc[c.A_MAX_GAP_RATIO, w] = max(acc[c.A_MAX_GAP_RATIO, w], ratio)
            if t[w] >= par[c.P_TAIL_GAP, w]:
                acc[c.A_TAIL_GAP, w] = max(acc[c.A_TAIL_GAP, w], gap)
    if want & c.WANT_DISPLACEMENT:
        for w in range(lanes):
            if t[w] >= par[c.P_TAIL_DISPLACEMENT, w]:
                acc[c.A_TAIL_DISPLACEMENT, w] = max(acc[c.A_TAIL_DISPLACEMENT, w], q[c.Q_DISPLACEMENT, w])


@outlined
def accumulate_step(want, lanes, acc, q, g, peak):
    """Accumulators over the iterations at which an update is made."""
    if want & c.WANT_PEAK:
        for i in range(g.shape[0]):
            for w in range(lanes):
                peak[i, w] = max(peak[i, w], abs(g[i, w]))
    if want & c.WANT_GAP:
        for w in range(lanes):
            acc[c.A_PREVIOUS_GAP, w] = q[c.Q_GAP, w]
    if want & c.WANT_LAMBDA_G:
        for w in range(lanes):
            value = q[c.Q_LAMBDA_G, w]
            acc[c.A_SUP_LAMBDA_G, w] = max(acc[c.A_SUP_LAMBDA_G, w], value)
            acc[c.A_SUM_INVERSE_LAMBDA_G, w] += 1.0 / value
            acc[c.A_FINAL_LAMBDA_G, w] = value
            acc[c.A_SUP_STEP_LAMBDA_G, w] = max(acc[c.A_SUP_STEP_LAMBDA_G, w], q[c.Q_STEP, w] * value)
    if want & c.WANT_DIRECTION:
        for w in range(lanes):
            descent = q[c.Q_DESCENT, w]
            curvature = q[c.Q_CURVATURE_D, w]
            square = q[c.Q_D_SQUARE, w]
            value = curvature / square if square > 0.0 else 0.0
            acc[c.A_MIN_DESCENT, w] = min(acc[c.A_MIN_DESCENT, w], descent)
            acc[c.A_SUP_LAMBDA_D, w] = max(acc[c.A_SUP_LAMBDA_D, w], value)
            acc[c.A_SUM_INVERSE_LAMBDA_D, w] += 1.0 / value
            ratio = curvature / (descent * descent) if descent > 0.0 else np.inf
            l1 = q[c.Q_L1, w]
            acc[c.A_SUP_LEMMA_L1, w] = max(acc[c.A_SUP_LEMMA_L1, w], ratio * (l1 * l1))
            acc[c.A_SUP_LEMMA_L2, w] = max(acc[c.A_SUP_LEMMA_L2, w], ratio * q[c.Q_SQUARE, w])
    if want & c.WANT_DHD:
        for w in range(lanes):
            acc[c.A_SUP_CURVATURE, w] = max(acc[c.A_SUP_CURVATURE, w], q[c.Q_DHD, w])
    if want & c.WANT_COS:
        for w in range(lanes):
            acc[c.A_MIN_COS, w] = min(acc[c.A_MIN_COS, w], q[c.Q_COS, w])
            acc[c.A_SUM_COS, w] += q[c.Q_COS, w]
            acc[c.A_SUM_SOFT, w] += q[c.Q_SOFT, w]
    if want & c.WANT_DENOMINATOR:
        for w in range(lanes):
            acc[c.A_SUP_DENOMINATOR, w] = max(acc[c.A_SUP_DENOMINATOR, w], q[c.Q_DENOMINATOR, w])
            acc[c.A_SUP_PRECONDITIONED, w] = max(acc[c.A_SUP_PRECONDITIONED, w], q[c.Q_PRECONDITIONED_MAX, w])
            acc[c.A_INF_PRECONDITIONED, w] = min(acc[c.A_INF_PRECONDITIONED, w], q[c.Q_PRECONDITIONED_MIN, w])
    if want & c.WANT_AVERAGE:
        for w in range(lanes):
            acc[c.A_SUM_STEP, w] += q[c.Q_STEP, w]
            acc[c.A_SUM_STEP_SQUARE, w] += q[c.Q_STEP, w] * q[c.Q_SQUARE, w]
            acc[c.A_SUM_STEP_L1, w] += q[c.Q_STEP, w] * q[c.Q_L1, w]


@inline
def gradient_norms(want, offsets, g, q, lanes, stripes, part):
    """Fill the norms that most stopping tests need."""
    if want & c.WANT_L1:
        total_sum(TERM_ABSOLUTE, offsets, g, g, lanes, stripes, part, q[c.Q_L1])
    if want & c.WANT_SQUARE and not want & c.WANT_LAMBDA_G:
        total_sum(TERM_PRODUCT, offsets, g, g, lanes, stripes, part, q[c.Q_SQUARE])


@outlined
def gradient_statistics(want, offsets, norms, support, x, g, q, lanes, stripes, part):
    """Fill the quantities that need x and g only, but those of `gradient_norms`."""
    if want & c.WANT_GAP:
        total_sum(TERM_PRODUCT, offsets, x, g, lanes, stripes, part, q[c.Q_GAP])
        for w in range(lanes):
            q[c.Q_GAP, w] = 0.5 * q[c.Q_GAP, w]
    if want & c.WANT_LAMBDA_G:
        weighted_squares(offsets, norms, g, lanes, stripes, part, q[c.Q_CURVATURE_G], q[c.Q_SQUARE])
        for w in range(lanes):
            square = q[c.Q_SQUARE, w]
            q[c.Q_LAMBDA_G, w] = q[c.Q_CURVATURE_G, w] / square if square > 0.0 else 0.0
    if want & c.WANT_LINF:
        for w in range(lanes):
            q[c.Q_LINF, w] = 0.0
        for i in range(g.shape[0]):
            for w in range(lanes):
                q[c.Q_LINF, w] = larger(q[c.Q_LINF, w], abs(g[i, w]))
    if want & c.WANT_DISPLACEMENT:
        for w in range(lanes):
            q[c.Q_DISPLACEMENT, w] = 0.0
        for i in range(x.shape[0]):
            for w in range(lanes):
                if support[i, w] > 0.0:
                    q[c.Q_DISPLACEMENT, w] = larger(q[c.Q_DISPLACEMENT, w], abs(x[i, w]))


@outlined
def direction_statistics(method, want, offsets, norms, g, d, q, lanes, stripes, part, total):
    """Fill the quantities that need d (all but d^T H d)."""
    if want & c.WANT_DIRECTION:
        if method == c.GD:  # d is g: the same sums, already there
            for w in range(lanes):
                q[c.Q_DESCENT, w] = q[c.Q_D_SQUARE, w] = q[c.Q_SQUARE, w]
                q[c.Q_CURVATURE_D, w] = q[c.Q_CURVATURE_G, w]
        else:
            if method == c.SIGN and want & c.WANT_L1:  # g sign(g) is |g|
                for w in range(lanes):
                    q[c.Q_DESCENT, w] = q[c.Q_L1, w]
            else:
                total_sum(TERM_PRODUCT, offsets, g, d, lanes, stripes, part, q[c.Q_DESCENT])
            weighted_squares(offsets, norms, d, lanes, stripes, part, q[c.Q_CURVATURE_D], q[c.Q_D_SQUARE])
    if want & c.WANT_COS:
        total_sum(TERM_PRODUCT, offsets, d, d, lanes, stripes, part, total)
        for w in range(lanes):
            nonzero = 0
            soft = 0
            for i in range(g.shape[0]):
                if g[i, w] != 0.0:
                    nonzero += 1
                if abs(d[i, w]) >= 0.5 and abs(d[i, w]) <= 2.0:
                    soft += 1
            total[w] = math.sqrt(total[w]) * math.sqrt(nonzero)
            q[c.Q_SOFT, w] = soft / g.shape[0]
        total_sum(TERM_SIGN, offsets, g, d, lanes, stripes, part, q[c.Q_COS])
        for w in range(lanes):
            q[c.Q_COS, w] = q[c.Q_COS, w] / total[w] if total[w] > 0.0 else 0.0


@outlined
def fill(w, run, starts, caps, owner, t, cap, cells):
    """Put a run of the queue at its start into lane w: first the state, of zeros."""
    owner[w] = run
    t[w] = 0
    cap[w] = caps[run]
    first = cells.shape[0] - starts.shape[1]
    for k in range(first):
        cells[k, w] = 0.0
    for k in range(starts.shape[1]):
        cells[first + k, w] = starts[run, k]


@outlined
def move(source, w, owner, t, cap, cells):
    """Move the run of lane ``source`` into lane w."""
    owner[w] = owner[source]
    t[w] = t[source]
    cap[w] = cap[source]
    for k in range(cells.shape[0]):
        cells[k, w] = cells[k, source]


@outlined
def move_noise(noise, row, source, w):
    """Move the rows of noise that lane ``source`` has not used yet into lane w."""
    for k in range(row + 1, noise.shape[0]):
        for i in range(noise.shape[1]):
            noise[k, i, w] = noise[k, i, source]


@outlined
def retire(w, status, run, t, cells, q, statuses, iterations, ends, finals):
    """Store the result of the run in lane w."""
    statuses[run] = status
    iterations[run] = t[w]
    first = cells.shape[0] - ends.shape[1]
    for k in range(ends.shape[1]):
        ends[run, k] = cells[first + k, w]
    for k in range(q.shape[0]):
        finals[run, k] = q[k, w]


def build(sources):
    """Return ``run_lanes`` with the stamp of the kernel sources as a closure variable."""

    def run_lanes(
        code, clock, kinds, offsets, data_offsets, schedule,
        starts, caps, owner, t, cap, cells, state, par, norms, lowest, support, anchor, data, x, peak, acc,
        g, d, work, q, stripes, part, step, inverse,
        statuses, iterations, ends, firsts, finals, noise, noisy, address,
    ):  # fmt: skip
        """Run the queue until it is done, few lanes are left, or the budget of iterations is spent.

        A column of ``cells`` is all that a lane has of its run, a row of ``starts`` what a run begins with
        after its state; ``state`` to ``acc`` are rows of the cells (``data`` where H is not shared), and a
        row of ``ends`` is what x, ``peak`` and ``acc`` were at the end. ``clock`` holds the number of active
        lanes, the next run of the queue, the budget and the number of lanes under which the caller takes
        over; the first two are updated.

        With rows of ``noise`` the direction sees ``noisy``, the gradient plus row t mod their number: the
        budget is that number, and lanes are refilled at the start only, so that all are at the same row.
        """
        sources  # noqa: B018 - a closure variable, for the key of the compile cache
        user = lanes_function_at(address)
        method, rule, stop, want, keep, path = code[0], code[1], code[2], code[3], code[4], code[5]
        shared = code[6] != 0
        lanes, queue, budget, least = clock[0], clock[1], clock[2], clock[3]
        size = x.shape[0]
        n_runs = caps.size
        rows = noise.shape[0]
        source = noisy if rows > 0 else g
        direction = source if method == c.GD else d
        exact = method if rows == 0 else c.USER  # d is g itself for GD without noise only
        direct = (method == c.SIGN or method == c.ADAM) and anchor.shape[0] == 0
        direct = direct and not want & (c.WANT_ALONG | c.WANT_DHD | c.WANT_DENOMINATOR)
        tiny = np.zeros(ROWS * kinds.size if path == c.TINY else 0)
        fresh = True
        while lanes < t.size and queue < n_runs:
            fill(lanes, queue, starts, caps, owner, t, cap, cells)
            lanes += 1
            queue += 1
        while budget > 0 and lanes > 0 and (queue < n_runs or lanes >= least):
            budget -= 1
            if path == c.TINY:
                done = 0
                for w in range(0, lanes - LENGTH + 1, LENGTH):
                    most = min(budget, TINY_PIECE)
                    for k in range(w, w + LENGTH):
                        most = min(most, cap[k] - t[k] if t[k] > 0 else 0)
                    if most > 0:
                        n = advance_four(w, method, rule, stop, most, offsets, data_offsets, data, shared,
                                         norms, t, par, schedule, acc, x, state, tiny)  # fmt: skip
                        done = max(done, n)
                budget -= done
            hessian_product(kinds, offsets, data_offsets, data, shared, x, g, lanes)
            gradient_norms(want, offsets, g, q, lanes, stripes, part)
            if want & c.WANT_GRADIENT:
                gradient_statistics(want, offsets, norms, support, x, g, q, lanes, stripes, part)
            ended = 0
            measure(stop, q, lanes, part)
            going = 0
            for w in range(lanes):
                on = (part[w] > par[c.P_TOLERANCE, w]) & (part[w] < np.inf) & (t[w] < cap[w])
                going += 1 if on else 0
            if keep & c.WANT_TRANSITION:
                accumulate_transition(keep, lanes, t, par, acc, q)
            if going < lanes or fresh:
                fresh = False
                for w in range(lanes):
                    value = part[w]
                    if t[w] == 0:
                        for k in range(q.shape[0]):
                            firsts[owner[w], k] = q[k, w]
                        if par[c.P_RELATIVE, w] != 0.0:
                            par[c.P_TOLERANCE, w] = par[c.P_RELATIVE, w] * value
                            par[c.P_RELATIVE, w] = 0.0
                    status = c.RUNNING
                    if not abs(value) < np.inf:
                        status = c.DIVERGED
                    elif value <= par[c.P_TOLERANCE, w]:
                        status = c.CONVERGED
                    elif t[w] >= cap[w]:
                        status = c.MAX_ITERATIONS
                    if status != c.RUNNING:
                        q[c.Q_STEP, w] = q[c.Q_COS, w] = np.nan
                        retire(w, status, owner[w], t, cells, q, statuses, iterations, ends, finals)
                        owner[w] = -1 - owner[w]
                        ended += 1
            square = q[c.Q_SQUARE]
            row = 0
            if rows > 0:
                row = t[0] % rows
                for i in range(size):
                    for w in range(lanes):
                        noisy[i, w] = g[i, w] + noise[row, i, w]
                if method == c.NORMALIZED:
                    total_sum(TERM_PRODUCT, offsets, noisy, noisy, lanes, stripes, part, step)
                    square = step
            if method == c.ADAM or method == c.FROZEN_ADAM:
                correct(method, lanes, par, acc, inverse)
            if direct:
                pass
            elif method == c.USER:
                user(lanes, t, source, x, anchor, d, state, par[c.P_USER :], offsets)
            else:
                write_direction(method, lanes, t, par, acc, anchor, x, source, d, state, square, inverse)
            if want & c.WANT_ALONG:
                direction_statistics(exact, want, offsets, norms, g, direction, q, lanes, stripes, part, step)
            if want & c.WANT_DHD:
                hessian_product(kinds, offsets, data_offsets, data, shared, direction, work, lanes)
                total_sum(TERM_PRODUCT, offsets, direction, work, lanes, stripes, part, q[c.Q_DHD])
            if want & c.WANT_DENOMINATOR:
                write_denominator(
                    method, offsets, norms, lowest, par, acc, state, work, q, lanes, stripes, part
                )
            if rule == c.CONSTANT:
                for w in range(lanes):
                    step[w] = par[c.P_RATE, w]
            elif rule == c.SCHEDULE:
                for w in range(lanes):
                    step[w] = schedule[t[w]]
            elif rule == c.M_STAR:
                for w in range(lanes):
                    step[w] = q[c.Q_L1, w] / par[c.P_M, w]
            else:
                of = c.Q_CURVATURE_D if rule == c.LEMMA else c.Q_DHD
                for w in range(lanes):
                    step[w] = q[c.Q_DESCENT, w] / q[of, w] if q[of, w] > 0.0 else 0.0
                for w in range(lanes):
                    if owner[w] >= 0 and not q[c.Q_DESCENT, w] > 0.0:
                        q[c.Q_STEP, w] = step[w]
                        retire(w, c.NOT_DESCENT, owner[w], t, cells, q, statuses, iterations, ends, finals)
                        owner[w] = -1 - owner[w]
                        ended += 1
            for w in range(lanes):
                q[c.Q_STEP, w] = step[w]
            if keep & c.WANT_STEP:
                accumulate_step(keep, lanes, acc, q, g, peak)
            if direct and method == c.SIGN:
                move_directly(c.SIGN, lanes, par, step, inverse, source, x, state)
            elif direct:
                move_directly(c.ADAM, lanes, par, step, inverse, source, x, state)
            else:
                for i in range(size):
                    for w in range(lanes):
                        x[i, w] = flush(x[i, w] - step[w] * direction[i, w])
            for w in range(lanes):
                t[w] += 1
            if ended > 0:
                fresh = queue < n_runs and rows == 0
                # From the last, so that the lane moved in is an active one.
                for w in range(lanes - 1, -1, -1):
                    if owner[w] >= 0:
                        continue
                    if fresh and queue < n_runs:
                        fill(w, queue, starts, caps, owner, t, cap, cells)
                        queue += 1
                    else:
                        lanes -= 1
                        if w != lanes:
                            move(lanes, w, owner, t, cap, cells)
                            move_noise(noise, row, lanes, w)
        clock[0] = lanes
        clock[1] = queue
        return lanes

    return run_lanes
