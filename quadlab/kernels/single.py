"""One run at a time: vectors of length P.

Dense products run over columns as rows (H is symmetric to the bit): ``out += H[j, :] * x[j]`` for j
ascending vectorises over the coordinates and adds the terms of one coordinate in the order of j, which is
the order of the lanes path too. The same sums from half of H are in ``dense.py``.
"""

from __future__ import annotations

import math

import numpy as np

from quadlab.kernels import codes as c
from quadlab.kernels.dense import fourfold_product, fourfold_work, symmetric_product
from quadlab.kernels.elements import adam, average, flush, inline, larger, outlined, sign
from quadlab.kernels.pointers import single_function_at
from quadlab.kernels.stream import advance_stream, assist
from quadlab.kernels.sums import (
    FIRST,
    absolute_block_sum,
    absolute_sum,
    called_product_sum,
    product_block_sum,
    product_sum,
    sign_sum,
    weighted_squares,
)
from quadlab.kernels.team import barrier
from quadlab.kernels.tiny import advance_tiny


@outlined
def reflect(y, u, start, low, size):
    """Apply ``I - 2 u u^T`` in place to the block at ``low``; ``u`` begins at ``start`` of the data."""
    factor = 2.0 * product_block_sum(u[start : start + size], y[low : low + size], FIRST, size)
    for i in range(size):
        y[low + i] = y[low + i] - factor * u[start + i]


@outlined
def dense_product(matrix, x, out):
    """Write H x of one dense block: columns as rows, terms of j ascending, four a pass."""
    size = x.size
    for i in range(size):
        out[i] = 0.0
    j = 0
    while j + 4 <= size:
        # Slices, not indices of the whole: a loop over them is provably in range, and vectorises.
        row0 = matrix[j * size : (j + 1) * size]
        row1 = matrix[(j + 1) * size : (j + 2) * size]
        row2 = matrix[(j + 2) * size : (j + 3) * size]
        row3 = matrix[(j + 3) * size : (j + 4) * size]
        x0, x1, x2, x3 = x[j], x[j + 1], x[j + 2], x[j + 3]
        for i in range(size):
            out[i] = (((out[i] + row0[i] * x0) + row1[i] * x1) + row2[i] * x2) + row3[i] * x3
        j += 4
    while j < size:
        row0 = matrix[j * size : (j + 1) * size]
        x0 = x[j]
        for i in range(size):
            out[i] = out[i] + row0[i] * x0
        j += 1


@outlined
def hessian_product(kinds, offsets, data_offsets, reflectors, data, x, out, aside):
    """Write H x into ``out``; ``aside`` has `fourfold_work` entries."""
    for block in range(kinds.size):
        low, high = offsets[block], offsets[block + 1]
        size = high - low
        at = data_offsets[block]
        if kinds[block] == c.DENSE:
            if size >= 8:
                dense_product(data[at : at + size * size], x[low:high], out[low:high])
                continue
            for i in range(size):
                value = 0.0
                for j in range(size):
                    value += data[at + j * size + i] * x[low + j]
                out[low + i] = value
        elif kinds[block] == c.DIAGONAL:
            h, y, z = data[at : at + size], x[low:high], out[low:high]
            for i in range(size):
                z[i] = h[i] * y[i]
        elif kinds[block] == c.SYMMETRIC:
            symmetric_product(data[at : data_offsets[block + 1]], x[low:high], out[low:high])
        elif kinds[block] == c.FOURFOLD:
            if data_offsets[block + 1] > at:  # the first of four, with the data of all
                high = offsets[block + 4]
                fourfold_product(data[at : data_offsets[block + 1]], x[low:high], out[low:high], aside)
        else:
            for i in range(size):
                out[low + i] = x[low + i]
            first = at + size
            for r in range(reflectors[block]):
                reflect(out, data, first + r * size, low, size)
            for i in range(size):
                out[low + i] = data[at + i] * out[low + i]
            for r in range(reflectors[block] - 1, -1, -1):
                reflect(out, data, first + r * size, low, size)


@inline
def write_direction(method, t, grad_square, params, acc, minimizer, x, g, d, state):
    """Write the direction of a built-in method into ``d`` (plain GD uses ``g`` itself)."""
    size = g.size
    beta1 = params[c.P_BETA1]
    if method == c.GD_MOMENTUM:
        for i in range(size):
            d[i] = state[0, i] = flush(beta1 * state[0, i] + g[i])
    elif method == c.GD_NESTEROV:
        for i in range(size):
            state[0, i] = flush(beta1 * state[0, i] + g[i])
            d[i] = g[i] + beta1 * state[0, i]
    elif method == c.SIGN:
        for i in range(size):
            d[i] = sign(g[i])
    elif method == c.SIGNUM:
        for i in range(size):
            state[0, i] = average(state[0, i], g[i], beta1)
            d[i] = sign(state[0, i])
    elif method == c.NORMALIZED:
        norm = math.sqrt(grad_square)
        for i in range(size):
            d[i] = g[i] / norm if norm != 0.0 else 0.0
    elif method == c.ADAM or method == c.FROZEN_ADAM:
        beta2 = params[c.P_BETA2]
        epsilon = params[c.P_EPSILON]
        inverse1 = inverse2 = 1.0
        acc[c.A_POWER1] *= beta1
        acc[c.A_POWER2] *= beta2
        if params[c.P_BIAS] != 0.0:
            inverse1 = 1.0 / (1.0 - acc[c.A_POWER1])
            if method == c.ADAM:
                inverse2 = 1.0 / (1.0 - acc[c.A_POWER2])
        if method == c.ADAM:
            for i in range(size):
                state[0, i] = average(state[0, i], g[i], beta1)
                state[1, i] = average(state[1, i], g[i] * g[i], beta2)
                d[i] = adam(state[0, i], state[1, i], inverse1, inverse2, epsilon)
        else:
            if t == 0:
                for i in range(size):
                    state[1, i] = g[i] * g[i]
            for i in range(size):
                state[0, i] = average(state[0, i], g[i], beta1)
                d[i] = adam(state[0, i], state[1, i], inverse1, inverse2, epsilon)
        decay = params[c.P_DECAY]
        if decay != 0.0:
            for i in range(size):
                d[i] = d[i] + decay * (x[i] + minimizer[i])


@outlined
def write_denominator(method, offsets, norms, lowest, params, acc, state, d, work, q):
    """Statistics of the denominator ``D = sqrt(vhat) + epsilon`` of Adam (``D = 1`` elsewhere)."""
    size = d.size
    if method == c.ADAM or method == c.FROZEN_ADAM:
        inverse2 = 1.0
        if params[c.P_BIAS] != 0.0 and method == c.ADAM:
            inverse2 = 1.0 / (1.0 - acc[c.A_POWER2])
        for i in range(size):
            work[i] = math.sqrt(state[1, i] * inverse2) + params[c.P_EPSILON]
    else:
        for i in range(size):
            work[i] = 1.0
    total = 0.0
    highest = 0.0
    least = np.inf
    for block in range(offsets.size - 1):
        low, high = offsets[block], offsets[block + 1]
        total += absolute_block_sum(work, work, low, high)
        smallest = largest = work[low]
        for i in range(low + 1, high):
            smallest = min(smallest, work[i])
            largest = max(largest, work[i])
        if norms[block] > 0.0:
            highest = max(highest, norms[block] / smallest)
            least = min(least, lowest[block] / largest)
    q[c.Q_DENOMINATOR] = total
    q[c.Q_PRECONDITIONED_MAX] = highest
    q[c.Q_PRECONDITIONED_MIN] = least


@inline
def measured(stop, q):
    """Return the quantity that the stopping test compares with its tolerance."""
    if stop == c.STOP_L1:
        return q[c.Q_L1]
    if stop == c.STOP_L2:
        return math.sqrt(q[c.Q_SQUARE])
    if stop == c.STOP_LINF:
        return q[c.Q_LINF]
    return q[c.Q_GAP]


@outlined
def accumulate_transition(want, t, params, acc, q):
    """Accumulators that include the last iterate: idempotent, so that a resumed run may repeat them."""
    if want & c.WANT_GAP:
        gap = q[c.Q_GAP]
        previous = acc[c.A_PREVIOUS_GAP]
        if t > 0 and previous > 0.0:
            ratio = gap / previous
            acc[c.A_MIN_GAP_RATIO] = min(acc[c.A_MIN_GAP_RATIO], ratio)
            acc[c.A_MAX_GAP_RATIO] = max(acc[c.A_MAX_GAP_RATIO], ratio)
        if t >= params[c.P_TAIL_GAP]:
            acc[c.A_TAIL_GAP] = max(acc[c.A_TAIL_GAP], gap)
    if want & c.WANT_DISPLACEMENT and t >= params[c.P_TAIL_DISPLACEMENT]:
        acc[c.A_TAIL_DISPLACEMENT] = max(acc[c.A_TAIL_DISPLACEMENT], q[c.Q_DISPLACEMENT])


@outlined
def accumulate_step(want, acc, q, g, peak):
    """Accumulators over the iterations at which an update is made."""
    if want & c.WANT_PEAK:
        for i in range(g.size):
            peak[i] = max(peak[i], abs(g[i]))
    if want & c.WANT_GAP:
        acc[c.A_PREVIOUS_GAP] = q[c.Q_GAP]
    if want & c.WANT_LAMBDA_G:
        value = q[c.Q_LAMBDA_G]
        acc[c.A_SUP_LAMBDA_G] = max(acc[c.A_SUP_LAMBDA_G], value)
        acc[c.A_SUM_INVERSE_LAMBDA_G] += 1.0 / value
        acc[c.A_FINAL_LAMBDA_G] = value
        acc[c.A_SUP_STEP_LAMBDA_G] = max(acc[c.A_SUP_STEP_LAMBDA_G], q[c.Q_STEP] * value)
    if want & c.WANT_DIRECTION:
        descent = q[c.Q_DESCENT]
        curvature = q[c.Q_CURVATURE_D]
        square = q[c.Q_D_SQUARE]
        value = curvature / square if square > 0.0 else 0.0
        acc[c.A_MIN_DESCENT] = min(acc[c.A_MIN_DESCENT], descent)
        acc[c.A_SUP_LAMBDA_D] = max(acc[c.A_SUP_LAMBDA_D], value)
        acc[c.A_SUM_INVERSE_LAMBDA_D] += 1.0 / value
        ratio = curvature / (descent * descent) if descent > 0.0 else np.inf
        acc[c.A_SUP_LEMMA_L1] = max(acc[c.A_SUP_LEMMA_L1], ratio * (q[c.Q_L1] * q[c.Q_L1]))
        acc[c.A_SUP_LEMMA_L2] = max(acc[c.A_SUP_LEMMA_L2], ratio * q[c.Q_SQUARE])
    if want & c.WANT_DHD:
        acc[c.A_SUP_CURVATURE] = max(acc[c.A_SUP_CURVATURE], q[c.Q_DHD])
    if want & c.WANT_COS:
        acc[c.A_MIN_COS] = min(acc[c.A_MIN_COS], q[c.Q_COS])
        acc[c.A_SUM_COS] += q[c.Q_COS]
        acc[c.A_SUM_SOFT] += q[c.Q_SOFT]
    if want & c.WANT_DENOMINATOR:
        acc[c.A_SUP_DENOMINATOR] = max(acc[c.A_SUP_DENOMINATOR], q[c.Q_DENOMINATOR])
        acc[c.A_SUP_PRECONDITIONED] = max(acc[c.A_SUP_PRECONDITIONED], q[c.Q_PRECONDITIONED_MAX])
        acc[c.A_INF_PRECONDITIONED] = min(acc[c.A_INF_PRECONDITIONED], q[c.Q_PRECONDITIONED_MIN])
    if want & c.WANT_AVERAGE:
        acc[c.A_SUM_STEP] += q[c.Q_STEP]
        acc[c.A_SUM_STEP_SQUARE] += q[c.Q_STEP] * q[c.Q_SQUARE]
        acc[c.A_SUM_STEP_L1] += q[c.Q_STEP] * q[c.Q_L1]


@inline
def gradient_norms(want, offsets, g, q):
    """Fill the norms that most stopping tests need."""
    if want & c.WANT_L1:
        q[c.Q_L1] = absolute_sum(offsets, g, g)
    if want & c.WANT_SQUARE and not want & c.WANT_LAMBDA_G:
        q[c.Q_SQUARE] = product_sum(offsets, g, g)


@outlined
def gradient_statistics(want, offsets, norms, support, x, g, q):
    """Fill the quantities that need x and g only, but those of `gradient_norms`."""
    if want & c.WANT_GAP:
        q[c.Q_GAP] = 0.5 * called_product_sum(offsets, x, g)
    if want & c.WANT_LAMBDA_G:
        weighted, square = weighted_squares(offsets, norms, g)
        q[c.Q_SQUARE] = square
        q[c.Q_CURVATURE_G] = weighted
        q[c.Q_LAMBDA_G] = weighted / square if square > 0.0 else 0.0
    if want & c.WANT_LINF:
        peak = 0.0
        for i in range(g.size):
            peak = larger(peak, abs(g[i]))
        q[c.Q_LINF] = peak
    if want & c.WANT_DISPLACEMENT:
        peak = 0.0
        for i in range(x.size):
            if support[i] > 0.0:
                peak = larger(peak, abs(x[i]))
        q[c.Q_DISPLACEMENT] = peak


@outlined
def direction_statistics(method, want, offsets, norms, g, d, q):
    """Fill the quantities that need d (all but d^T H d)."""
    if want & c.WANT_DIRECTION:
        if method == c.GD:  # d is g: the same sums, already there
            q[c.Q_DESCENT] = q[c.Q_D_SQUARE] = q[c.Q_SQUARE]
            q[c.Q_CURVATURE_D] = q[c.Q_CURVATURE_G]
        else:
            q[c.Q_DESCENT] = product_sum(offsets, g, d)
            weighted, square = weighted_squares(offsets, norms, d)
            q[c.Q_D_SQUARE] = square
            q[c.Q_CURVATURE_D] = weighted
    if want & c.WANT_COS:
        nonzero = 0
        soft = 0
        for i in range(g.size):
            if g[i] != 0.0:
                nonzero += 1
            if abs(d[i]) >= 0.5 and abs(d[i]) <= 2.0:
                soft += 1
        length = math.sqrt(called_product_sum(offsets, d, d)) * math.sqrt(nonzero)
        along = sign_sum(offsets, g, d)
        q[c.Q_COS] = along / length if length > 0.0 else 0.0
        q[c.Q_SOFT] = soft / g.size


def build(sources):
    """Return ``run_single`` with the stamp of the kernel sources as a closure variable."""

    def run_single(
        code, clock, kinds, offsets, data_offsets, reflectors, norms, lowest, data, support, minimizer,
        params, schedule, record_times, record, x, g, d, work, state, peak, acc, q, first, noise, noisy,
        address, rank, ranks, team, sums,
    ):  # fmt: skip
        """Run until an outcome, the pause or a full record; return the status code.

        With rows of ``noise`` the direction sees ``noisy``, the gradient plus row t mod their number. On the
        path STREAM ``ranks`` threads make this call; all but rank 0 only help it.
        """
        sources  # noqa: B018 - a closure variable, for the key of the compile cache
        user = single_function_at(address)
        method, rule, stop, want, keep, path = code[0], code[1], code[2], code[3], code[4], code[5]
        t, cap, pause, schedule_start, row = clock[0], clock[1], clock[2], clock[3], clock[4]
        if rank > 0:
            assist(rank, ranks, team, sums, method, rule, stop, offsets, data_offsets, norms, data, params,
                   schedule, schedule_start, acc, x, state)  # fmt: skip
            return c.RUNNING
        rows = noise.shape[0]
        aside = np.empty(fourfold_work(kinds, offsets))
        source = noisy if rows > 0 else g
        direction = source if method == c.GD else d
        exact = method if rows == 0 else c.USER  # d is g itself for GD without noise only
        status = c.RUNNING
        while t < pause:
            if path != c.GENERAL and t > 0:
                limit = min(pause, cap)
                if row < record.shape[0]:
                    limit = min(limit, record_times[row])
                if path == c.TINY:
                    t = advance_tiny(method, rule, stop, t, limit, offsets, data_offsets, norms, data, params,
                                     schedule, schedule_start, acc, x, state)  # fmt: skip
                else:
                    if ranks > 1:
                        team[c.T_FIRST], team[c.T_LIMIT] = t, limit
                        barrier(team, ranks)
                    t = advance_stream(rank, ranks, team, sums, method, rule, stop, t, limit, offsets,
                                       data_offsets, norms, data, params, schedule, schedule_start, acc, x,
                                       state)  # fmt: skip
                if t == pause:
                    break
            hessian_product(kinds, offsets, data_offsets, reflectors, data, x, g, aside)
            gradient_norms(want, offsets, g, q)
            if want & c.WANT_GRADIENT:
                gradient_statistics(want, offsets, norms, support, x, g, q)
            if t == 0:
                for k in range(q.size):
                    first[k] = q[k]
                if params[c.P_RELATIVE] != 0.0:
                    params[c.P_TOLERANCE] = params[c.P_RELATIVE] * measured(stop, q)
                    params[c.P_RELATIVE] = 0.0
            if keep & c.WANT_TRANSITION:
                accumulate_transition(keep, t, params, acc, q)
            value = measured(stop, q)
            if not abs(value) < np.inf:
                status = c.DIVERGED
            elif value <= params[c.P_TOLERANCE]:
                status = c.CONVERGED
            elif t >= cap:
                status = c.MAX_ITERATIONS
            recording = row < record.shape[0] and record_times[row] <= t
            q[c.Q_STEP] = q[c.Q_COS] = np.nan
            if status == c.RUNNING:
                square = q[c.Q_SQUARE]
                if rows > 0:
                    for i in range(g.size):
                        noisy[i] = g[i] + noise[t % rows, i]
                    if method == c.NORMALIZED:
                        square = called_product_sum(offsets, noisy, noisy)
                if method == c.USER:
                    user(t, source, x, minimizer, d, work, state, params[c.P_USER :], offsets)
                else:
                    write_direction(method, t, square, params, acc, minimizer, x, source, d, state)
                if want & c.WANT_ALONG:
                    direction_statistics(exact, want, offsets, norms, g, direction, q)
                if want & c.WANT_DHD:
                    hessian_product(kinds, offsets, data_offsets, reflectors, data, direction, work, aside)
                    q[c.Q_DHD] = called_product_sum(offsets, direction, work)
                if want & c.WANT_DENOMINATOR:
                    write_denominator(method, offsets, norms, lowest, params, acc, state, direction, work, q)
                if rule == c.CONSTANT:
                    step = params[c.P_RATE]
                elif rule == c.SCHEDULE:
                    step = schedule[t - schedule_start]
                elif rule == c.M_STAR:
                    step = q[c.Q_L1] / params[c.P_M]
                else:
                    curvature = q[c.Q_CURVATURE_D] if rule == c.LEMMA else q[c.Q_DHD]
                    step = q[c.Q_DESCENT] / curvature if curvature > 0.0 else 0.0
                    if not q[c.Q_DESCENT] > 0.0:
                        status = c.NOT_DESCENT
                q[c.Q_STEP] = step
            if recording:
                for k in range(q.size):
                    record[row, k] = q[k]
                row += 1
            if status != c.RUNNING:
                break
            if keep & c.WANT_STEP:
                accumulate_step(keep, acc, q, g, peak)
            for i in range(x.size):
                x[i] = flush(x[i] - step * direction[i])
            t += 1
            if row == record.shape[0] and row > 0:
                break
        if ranks > 1:
            team[c.T_LIMIT] = c.LEAVE
            barrier(team, ranks)
        clock[0] = t
        clock[4] = row
        return status

    return run_single
