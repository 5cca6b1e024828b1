r"""The two compiled paths, driven from Python.

With :math:`x = w - w^*`, iteration t = 0, 1, ... is: the gradient :math:`g = Hx`, the statistics asked for,
the stopping test, the direction d, the step :math:`\eta`, the update :math:`x \leftarrow x - \eta d`. Where
the problem has gradient noise the direction sees :math:`g + \sigma\xi_t`; the test and the statistics see
g. The test is made at t = 0 and at the cap too, so that ``iterations`` is the number of updates before the
test first holds.

Two compiled paths share one specification of the order of every operation: a single run over vectors, and
lanes, arrays of many runs with the lane innermost. A run gives the same bits on either, alone, in a batch of
any width, and on any number of threads. Kernels are resumable and are called in pieces of about a tenth of a
second, so that Ctrl-C, callbacks and progress live here.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from quadlab._arrays import FloatArray
from quadlab._progress import progress_bar
from quadlab.batch import METHOD, PATH, SHARED, WANT, Batch, IntArray, Job, Outcome
from quadlab.curvature import curvature
from quadlab.kernels import codes as c
from quadlab.methods import FunctionMethod, Method
from quadlab.noise import NoiseStream
from quadlab.problem import BlockQuadratic, PackedHessian
from quadlab.run import QUANTITIES, Run, Trace

#: Iterations times entries touched in one kernel call: about a tenth of a second.
PIECE = 30_000_000
#: Rows of a trace held by one kernel call.
RECORD_ROWS = 4096
#: Largest block of the path for tiny blocks, least mean block of the path for diagonal ones.
MAX_TINY_BLOCK, MIN_STREAM_BLOCK = 3, 256
#: Parameters from which the threads share the coordinates of a run with long diagonals.
MIN_TEAM = 1 << 16
#: A batch of fewer runs, or what is left of a batch, goes one by one.
LEAST_LANES = 6
#: Lanes of a pack, and the bytes of vectors that a pack should stay under.
MAX_LANES, MIN_LANES, LANE_BYTES = 128, 32, 1 << 23
#: Entries of H beyond which runs with different H go one by one.
MAX_LANE_HESSIAN = 1 << 14
#: Bytes of starts and Hessians put in one queue.
QUEUE_BYTES = 1 << 26


def _addresses(method: Method) -> tuple[int, int]:
    """Return where the compiled direction of a function method is for the two paths, else zeros."""
    if not isinstance(method, FunctionMethod):
        return 0, 0
    from quadlab.kernels.user import compile_rule

    return compile_rule(
        method.function(), method.n_states, len(method.hyperparameters), method.is_elementwise
    )[:2]


def _rows(vectors: list[FloatArray]) -> FloatArray:
    """Return vectors of equal length as the rows of a matrix."""
    return np.concatenate(vectors).reshape(len(vectors), -1)


def _lowest(problem: BlockQuadratic) -> FloatArray:
    return curvature(problem).block_smallest_positive


# -- the single path -----------------------------------------------------------------------------------------


def _beginning() -> FloatArray:
    acc = np.zeros(c.N_ACCUMULATORS)
    acc[list(c.STARTS_AT_INFINITY)] = np.inf
    acc[list(c.STARTS_AT_ONE)] = 1.0
    acc.setflags(write=False)
    return acc


#: The accumulators of a run that has not begun.
_BEGINNING = _beginning()
#: Stand for arrays that a run does without.
_NO_FLOATS, _NO_INTEGERS, _NO_ROWS = np.zeros(0), np.zeros(0, dtype=np.int64), np.zeros((0, c.N_QUANTITIES))


@dataclass
class State:
    """Everything a run carries from one kernel call to the next."""

    t: int
    params: FloatArray
    x: FloatArray
    state: FloatArray
    peak: FloatArray
    acc: FloatArray
    first: FloatArray
    times: list[int] = field(default_factory=list)
    rows: list[FloatArray] = field(default_factory=list)

    @classmethod
    def begin(cls, job: Job) -> State:
        """Return the state at the start of a run."""
        size = job.problem.size
        return cls(
            t=0,
            params=job.params.copy(),
            x=job.problem.displacement.copy(),
            state=np.zeros((job.method.n_states, size)),
            peak=np.zeros(size) if job.codes[WANT] & c.WANT_PEAK else _NO_FLOATS,
            acc=_BEGINNING.copy(),
            first=np.zeros(c.N_QUANTITIES),
        )

    def copy(self) -> State:
        """Return a copy that shares no array."""
        return State(
            self.t, self.params.copy(), self.x.copy(), self.state.copy(), self.peak.copy(), self.acc.copy(),
            self.first.copy(), list(self.times), list(self.rows),
        )  # fmt: skip


#: Methods, rules and tests of the paths for tiny and for long diagonal blocks.
_FUSED = {
    *itertools.product((c.GD, c.SIGN, c.ADAM), (c.CONSTANT, c.SCHEDULE), (c.STOP_L1, c.STOP_L2)),
    *itertools.product((c.GD,), (c.LEMMA, c.M_STAR), (c.STOP_L2,)),
    *itertools.product((c.SIGN,), (c.LEMMA, c.M_STAR), (c.STOP_L1,)),
}


def _path(job: Job) -> int:
    """Return the kernels' path of the iterations at which nothing happens."""
    method, rule, stop, _, keep, *_ = job.codes.tolist()
    if keep or job.noise is not None or (method, rule, stop) not in _FUSED or job.params[c.P_DECAY] != 0.0:
        return c.GENERAL
    packed = job.problem.packed()
    if packed.kind == c.DENSE and packed.largest <= MAX_TINY_BLOCK:
        return c.TINY
    if packed.kind == c.DIAGONAL and job.problem.size >= MIN_STREAM_BLOCK * packed.kinds.size:
        return c.STREAM
    return c.GENERAL


def run_one(
    batch: Batch,
    s: State | None,
    times: Iterator[int] | None,
    callback: Callable[[int, FloatArray], Any] | None,
    fused: bool,
    threads: int,
) -> Run:
    """Make the one run of a batch, from the state s (None: from its start) to the end.

    Ctrl-C leaves the run so far, as if capped there, in the attribute ``run`` of the KeyboardInterrupt.
    """
    job = batch.job(0)
    s = State.begin(job) if s is None else s
    try:
        status, q = _iterate(job, s, times, callback, None, fused, threads)
    except KeyboardInterrupt as interrupt:
        # The quantities at the point reached are those of a run with its cap there.
        here = batch._replace(caps=np.array([s.t]))
        nothing = None if times is None else iter(())
        interrupt.run = run_one(here, s, nothing, None, fused, threads)  # type: ignore[attr-defined]
        raise
    trace = None
    if times is not None:
        at, rows = list(s.times), list(s.rows)
        if not at or at[-1] < s.t:
            at.append(s.t)
            rows.append(q.copy())
        else:  # the row of the end; a resumed run records it again
            s.times.pop()
            s.rows.pop()
        trace = Trace.from_rows(np.array(at, dtype=np.int64), np.array(rows))
    outcome = Outcome(1)
    _store(outcome, 0, job, s, status, q)
    return batch.runs(outcome, trace, s)[0]


def _store(outcome: Outcome, k: int, job: Job, s: State, status: int, q: FloatArray) -> None:
    """Put a run that ended in the state s into row k."""
    outcome.statuses[k], outcome.iterations[k] = status, s.t
    outcome.tolerances[k] = float(s.params[c.P_TOLERANCE])
    outcome.peaks[k] = float(s.peak.sum()) if s.peak.size else 0.0
    outcome.points[k] = job.problem.minimizer + s.x
    outcome.accs[k], outcome.firsts[k], outcome.finals[k] = s.acc, s.first, q


def _iterate(
    job: Job,
    s: State,
    times: Iterator[int] | None,
    callback: Callable[[int, FloatArray], Any] | None,
    cancelled: threading.Event | None,
    fused: bool = True,
    threads: int = 1,
) -> tuple[int, FloatArray]:
    """Run on the single path from the state s to the end; return the status and the last quantities."""
    from quadlab.kernels import entry

    packed = job.problem.packed_symmetric() if fused else job.problem.packed()
    size = job.problem.size
    kernel = entry.single()
    address = _addresses(job.method)[0]
    code = job.codes
    code[PATH] = path = _path(job) if fused else c.GENERAL
    method, want = int(code[METHOD]), int(code[WANT])
    g, q = np.empty(size), np.zeros(c.N_QUANTITIES)
    d = _NO_FLOATS if method == c.GD else np.empty(size)
    working = want & (c.WANT_DHD | c.WANT_DENOMINATOR) or method == c.USER
    work = np.empty(size) if working else _NO_FLOATS
    lowest = np.array(_lowest(job.problem)) if want & c.WANT_DENOMINATOR else _NO_FLOATS
    support = job.problem.hessian_diagonal() if want & c.WANT_DISPLACEMENT else _NO_FLOATS
    team = _Team(packed, threads) if path == c.STREAM else _ALONE
    piece = max(16, PIECE // (packed.data.size + 8 * size))
    schedule, noise, drawn = _NO_FLOATS, _NO_ROWS, -1
    noisy = _NO_FLOATS if job.noise is None else np.empty(size)
    pending: list[int] = []
    if times is not None:
        times = itertools.dropwhile(lambda t: t < s.t, times)
    status = c.RUNNING
    call: Any = None
    try:
        while status == c.RUNNING:
            if times is not None and not pending:
                pending = list(itertools.islice(times, RECORD_ROWS if callback is None else 1))
            pause = min(s.t + piece, job.cap + 1)
            if callback is not None and pending and pending[0] <= pause:
                # Stop before the recorded iteration, show the point, then record it.
                pause = pending[0] if pending[0] > s.t else s.t + 1
                if pending[0] == s.t:
                    callback(s.t, job.problem.minimizer + s.x)
            if job.step.schedule is not None:  # a Python function: not asked far ahead of its use
                pause = min(pause, s.t + max(1000, s.t))
                schedule = job.step.schedule.values(s.t, min(pause, job.cap))
            if job.noise is not None:
                rows = job.noise.block_rows
                pause = min(pause, s.t - s.t % rows + rows)
                if s.t // rows != drawn:
                    drawn = s.t // rows
                    noise = job.noise.block(drawn)
            at = np.array(pending, dtype=np.int64) if pending else _NO_INTEGERS
            record = np.empty((len(at), c.N_QUANTITIES)) if pending else _NO_ROWS
            clock = np.array([s.t, job.cap, pause, s.t, 0])
            call = len(s.times), at, record, clock
            status = team.run(
                kernel,
                code, clock, packed.kinds, packed.offsets, packed.data_offsets, packed.reflectors,
                packed.norms, lowest, packed.data, support, job.problem.minimizer, s.params, schedule, at,
                record, s.x, g, d, work, s.state, s.peak, s.acc, q, s.first, noise, noisy, address,
            )  # fmt: skip
            pending = pending[_collect(s, *call) :]
            if cancelled is not None and cancelled.is_set():
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        if call is not None:
            _collect(s, *call)
        raise
    finally:
        team.close()
    return status, q


class _Team:
    """Threads that share the coordinates of one run with long diagonals."""

    def __init__(self, packed: PackedHessian | None = None, threads: int = 1) -> None:
        sizes = np.zeros(0, dtype=np.int64) if packed is None else np.diff(packed.offsets)
        chunks = int(np.sum(-(-sizes // c.CHUNK)))
        self.ranks = min(threads, chunks) if sizes.sum() >= MIN_TEAM else 1
        self._shared = np.zeros(c.TEAM_SIZE, dtype=np.int64)
        self._sums = np.zeros((2, 2, chunks))
        self._pool = _started(self.ranks) if self.ranks > 1 else None

    def run(self, kernel: Callable[..., Any], *arguments: Any) -> int:
        """Call the kernel in all threads and return the status that rank 0 gives."""
        shared = self.ranks, self._shared, self._sums
        pool = self._pool
        if pool is None:
            return int(kernel(*arguments, 0, *shared))

        def together() -> int:
            others = [pool.submit(kernel, *arguments, rank, *shared) for rank in range(1, self.ranks)]
            status = int(kernel(*arguments, 0, *shared))
            wait(others)
            return status

        # All in the pool: a Ctrl-C, which this thread gets, must not leave some of them waiting for others.
        run = pool.submit(together)
        try:
            return run.result()
        finally:
            wait([run])

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()


def _started(threads: int) -> ThreadPoolExecutor:
    """Return a pool whose threads all run: those of a team would wait for ever for one that never came."""
    pool, met = ThreadPoolExecutor(threads), threading.Barrier(threads)
    try:
        for _ in range(threads):
            pool.submit(met.wait)
    except BaseException as error:
        met.abort()
        pool.shutdown()
        if isinstance(error, RuntimeError):
            raise OSError(f"the system does not start {threads} threads: {error}") from None
        raise
    return pool


_ALONE = _Team()


def _collect(s: State, recorded: int, at: Any, record: FloatArray, clock: Any) -> int:
    """Take over what a kernel call did and return the rows it recorded.

    Ctrl-C may strike between a call and its bookkeeping, so this can be done twice.
    """
    done = int(clock[4])
    if done:
        s.times[recorded:] = at[:done].tolist()
        s.rows[recorded:] = list(record[:done])
    s.t = int(clock[0])
    return done


def _run_each(batch: Batch, bar: _Progress, threads: int) -> Outcome:
    outcome = Outcome(batch.size)
    for k in range(batch.size):
        job = batch.job(k)
        s = State.begin(job)
        _store(outcome, k, job, s, *_iterate(job, s, None, None, bar.cancelled, threads=threads))
        bar.update(1)
    return outcome


# -- lanes ---------------------------------------------------------------------------------------------------


def run_many(batch: Batch, lanes: bool, threads: int, progress: bool | None) -> Outcome:
    """Make the runs of a batch, as lanes where they can share them."""
    with _Progress(batch.size, progress) as bar:
        tasks = list(_tasks(batch, lanes, threads))
        spare = threads if len(tasks) <= 1 else 1  # for the coordinates of a run

        def ended(task: tuple[bool, IntArray]) -> Outcome:
            packed, members = task
            part = batch.part(members)
            return _run_lanes(part, bar) if packed else _run_each(part, bar, spare)

        if len(tasks) == 1 and (tasks[0][1] == np.arange(batch.size)).all():
            return ended(tasks[0])
        outcome = Outcome(batch.size)

        def work(task: tuple[bool, IntArray]) -> None:
            outcome.put(task[1], ended(task))

        if threads == 1 or len(tasks) <= 1:
            for task in tasks:
                work(task)
        else:
            with _started(min(threads, len(tasks))) as pool:
                try:
                    for future in [pool.submit(work, task) for task in tasks]:
                        future.result()
                except BaseException:
                    bar.cancelled.set()
                    pool.shutdown(wait=True, cancel_futures=True)
                    raise
    return outcome


def _tasks(batch: Batch, lanes: bool, threads: int) -> Iterator[tuple[bool, IntArray]]:
    """Yield (as lanes, members) packs of runs."""
    kinds = batch.kinds() if lanes else np.full(batch.size, -1)
    hessians = batch.hessians()
    alone = [np.flatnonzero(kinds < 0)]
    for members in _groups(kinds, np.flatnonzero(kinds >= 0)):
        # Runs that share H keep it in one copy; the others must be small enough for a copy a lane.
        _, which, counts = np.unique(hessians[members], return_inverse=True, return_counts=True)
        crowd = counts[which]
        together = (crowd >= min(MIN_LANES, members.size)) & (crowd >= LEAST_LANES)
        for same in _groups(hessians, members[together]):
            yield from ((True, part) for part in _parts(batch, same, threads))
        mixed = members[~together]
        entries = batch.problems.at(members[0]).packed().data.size
        if mixed.size >= LEAST_LANES and entries <= MAX_LANE_HESSIAN:
            yield from ((True, part) for part in _parts(batch, mixed, threads))
        else:
            alone.append(mixed)
    single = np.concatenate(alone)
    per_task = max(1, math.ceil(single.size / (4 * threads)))
    for begin in range(0, single.size, per_task):
        yield False, single[begin : begin + per_task]


def _groups(labels: IntArray, members: IntArray) -> Iterator[IntArray]:
    """Yield the members of each label, in order."""
    order = members[np.argsort(labels[members], kind="stable")]
    if order.size:
        yield from np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def _parts(batch: Batch, members: IntArray, threads: int) -> Iterator[IntArray]:
    """Cut a group into queues: bounded memory, and enough parts for the threads."""
    problem = batch.problems.at(members[0])
    per_run = 8 * (problem.packed().data.size + 4 * problem.size + 100)
    count = max(1, min(QUEUE_BYTES // per_run, math.ceil(members.size / threads)))
    count = max(count, min(LEAST_LANES, members.size))
    for begin in range(0, members.size, count):
        yield members[begin : begin + count]


def _width(size: int, runs: int) -> int:
    """Return the number of lanes: a multiple of 8 whose vectors stay in the cache."""
    width = min(MAX_LANES, max(MIN_LANES, LANE_BYTES // (48 * size) // 8 * 8))
    return max(8, min(width, 8 * math.ceil(runs / 8)))


def _run_lanes(batch: Batch, bar: _Progress) -> Outcome:
    """Make the runs of a batch of one kind as lanes; what is left at the end goes to the single path."""
    from quadlab.kernels import entry

    n, params, caps = batch.size, batch.params, batch.caps
    problems, place = batch.problems.values, batch.problems.which
    problem, method, step = problems[0], batch.methods.at(0), batch.steps.at(0)
    shared = all(p.blocks is problem.blocks for p in problems)
    packed = problem.packed()
    size, width = problem.size, _width(problem.size, n)
    code = batch.codes[0].copy()
    code[PATH], code[SHARED], want = _path(batch.job(0)), shared, int(code[WANT])
    start = _rows([p.displacement for p in problems])[place]
    anchors = _rows([p.minimizer for p in problems])[place]
    anchored = code[METHOD] == c.USER or params[0, c.P_DECAY] != 0.0
    if shared:
        problems, place = [problem], np.zeros(1, dtype=np.int64)
    none = np.zeros((1, 0))
    # What a run begins with after its state, in rows, one for all where they have it in common.
    parts = {
        "par": params,
        "norms": _rows([p.block_norms for p in problems])[place],
        "lowest": _rows([_lowest(p) for p in problems])[place] if want & c.WANT_DENOMINATOR else none,
        "support": _rows([p.hessian_diagonal() for p in problems])[place]
        if want & c.WANT_DISPLACEMENT
        else none,
        "anchor": anchors if anchored else none,
        "data": none if shared else _rows([p.packed().data for p in problems])[place],
        "x": start,
        "peak": np.zeros((1, size if want & c.WANT_PEAK else 0)),
        "acc": _BEGINNING[None],
    }
    states = method.n_states * size
    offsets = [0, *itertools.accumulate(part.shape[1] for part in parts.values())]
    starts, cells = np.empty((n, offsets[-1])), np.zeros((states + offsets[-1], width))
    state = cells[:states].reshape(method.n_states, size, width)
    rows_of: dict[str, FloatArray] = {"state": state}
    for name, (low, high) in zip(parts, itertools.pairwise(offsets), strict=True):
        starts[:, low:high] = parts[name]
        rows_of[name] = cells[states + low : states + high]
    del parts, start  # may be large
    par, x, peak, acc = (rows_of[name] for name in ("par", "x", "peak", "acc"))
    if shared:
        rows_of["data"] = packed.data[:, None].copy()
    schedule = np.zeros(0)
    if step.schedule is not None:
        longest = int(caps.max())
        schedule = np.append(step.schedule.values(0, longest), 0.0)
    empty = np.empty
    owner, t, cap = (empty(width, dtype=np.int64) for _ in range(3))
    g, d = empty((size, width)), empty((0 if code[METHOD] == c.GD else size, width))
    work = empty((size if want & (c.WANT_DHD | c.WANT_DENOMINATOR) else 0, width))
    q = np.zeros((c.N_QUANTITIES, width))
    stripes, part, eta, inverse = empty((c.STRIPES, width)), empty(width), empty(width), empty((2, width))
    outcome, ends = Outcome(n), np.zeros((n, offsets[-1] - offsets[-4]))
    statuses, iterations = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    kernel = entry.lanes()
    address = _addresses(method)[1]
    budget = max(16, PIECE // (width * (packed.data.size + 8 * size)))
    streams = list(map(batch.noise, range(n))) if problem.is_noisy else []
    rows = streams[0].block_rows if streams else 0
    noise, noisy = empty((rows, size, width)), empty((size if rows else 0, width))
    budget = rows or budget
    active = queued = finished = 0
    least = min(LEAST_LANES, n)
    while queued < n or active >= least:
        clock = np.array([active, queued, budget, least], dtype=np.int64)
        if rows:
            _draw(streams, owner, t, active, queued, noise)
        kernel(
            code, clock, packed.kinds, packed.offsets, packed.data_offsets, schedule,
            starts, caps, owner, t, cap, cells, *rows_of.values(),
            g, d, work, q, stripes, part, eta, inverse,
            statuses, iterations, ends, outcome.firsts, outcome.finals, noise, noisy, address,
        )  # fmt: skip
        active, queued = int(clock[0]), int(clock[1])
        bar.update(queued - active - finished)
        finished = queued - active
        if bar.cancelled.is_set():
            raise KeyboardInterrupt
        if active == 0 and queued == n:
            break
    first = QUANTITIES[batch.stops.at(0).quantity](outcome.firsts)
    relative = params[:, c.P_RELATIVE] != 0.0
    tolerances = np.where(relative, params[:, c.P_RELATIVE] * first, params[:, c.P_TOLERANCE])
    outcome.statuses, outcome.iterations = statuses.tolist(), iterations.tolist()
    points, peaks, outcome.accs = np.split(ends, [size, size + peak.shape[0]], axis=1)
    outcome.tolerances, outcome.peaks = tolerances.tolist(), peaks.sum(axis=1).tolist()
    points += anchors
    outcome.points = list(map(np.ndarray.copy, points))  # each of its own, not to keep all alive
    for w in range(active):
        k = int(owner[w])
        job = batch.job(k)
        s = State(
            int(t[w]), par[:, w].copy(), x[:, w].copy(), state[:, :, w].copy(), peak[:, w].copy(),
            acc[:, w].copy(), outcome.firsts[k].copy(),
        )  # fmt: skip
        _store(outcome, k, job, s, *_iterate(job, s, None, None, bar.cancelled))
        bar.update(1)
    return outcome


def _draw(
    streams: list[NoiseStream], owner: np.ndarray, t: np.ndarray, active: int, queued: int, noise: FloatArray
) -> None:
    """Draw the noise of the next iterations of the active lanes and of the runs that fill the others."""
    rows, size, width = noise.shape
    at = [(int(owner[w]), int(t[w]) // rows) for w in range(active)]
    at += [(k, 0) for k in range(queued, min(queued + width - active, len(streams)))]
    blocks = np.empty((len(at), rows, size))
    for block, (k, number) in zip(blocks, at, strict=True):
        block[:] = streams[k].block(number)
    noise[:, :, : len(at)] = blocks.transpose(1, 2, 0)


class _Progress:
    """A tqdm bar that shows itself after two seconds, and the flag that stops the threads."""

    def __init__(self, total: int, wanted: bool | None) -> None:
        self.cancelled = threading.Event()
        self._lock = threading.Lock()
        self._bar = progress_bar(wanted, total=total, unit="run", leave=False)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.close()

    def update(self, count: int) -> None:
        if count:
            with self._lock:
                self._bar.update(count)
