"""Where packs of runs are computed: any `concurrent.futures.Executor`.

A **pack** is some problems with all their runs, as text; it takes half a second or so, long enough that
sending it costs little, short enough that a kill loses little. A worker runs it on one thread, the engine's
lanes filled by runs of one structure. Runs give the same bits in any pack, so packs may be cut as the
workers' speed suggests.

=====================  =====================================================================================
`Here`                 this process, one pack after another
`Processes`            spawned processes, each with a pipe of its own; one that dies is replaced
`Cluster`              Dask distributed, by an address or a Client; Dask itself moves a dead worker's packs
any other Executor     as it is
=====================  =====================================================================================

A pack that dies with its worker again and again is halved and run with no other beside it. The one run that
is left then is stored as failed, so a run that kills its process ends neither the sweep nor other runs.
"""

from __future__ import annotations

import gc
import math
import os
import pickle
import signal
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, wait
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import repeat
from queue import SimpleQueue
from time import perf_counter
from typing import Any

import numpy as np

from quadlab._arrays import shown
from quadlab.bases import one_blas_thread
from quadlab.batch import Batch, Column
from quadlab.engine import MAX_LANE_HESSIAN, MAX_LANES, run_many
from quadlab.problem import BlockQuadratic
from quadlab.run import STATUS_OF
from quadlab.sweep.configuration import (
    PROBLEM_STATISTICS,
    Setting,
    build_problems,
    build_setting,
    seed_of,
)
from quadlab.sweep.grid import versions
from quadlab.sweep.store import FAILED, NUMBER, Outcome

#: Wall time a pack should take; it gives back what it has not begun after four times as long.
PACK_SECONDS = 0.5
#: No pack is cut shorter than this to share out the last runs.
LEAST_SECONDS = 0.1
#: While nobody knows what a run costs, a worker gets one problem, and so many more for when that is cheap.
GROWTH = 32
#: Bytes of problems that a worker holds at once.
BATCH_BYTES = 1 << 26
#: Times a pack may die with its worker before it runs alone.
DEATHS = 2

#: One problem and its runs, both halves of a configuration as canonical JSON.
Group = tuple[str, list[str]]
#: What became of a run, but for its seconds.
_Ending = tuple[str, str, bytes, str | None]
_WORD = {code: str(status) for code, status in STATUS_OF.items()}


# -- in the worker -------------------------------------------------------------------------------------------


class _Inside:
    """What holds while any pack runs in this process; packs may overlap, in threads.

    BLAS has one thread. The garbage collector waits for the end of the pack: its full collection walks all
    objects of the process, 60 to 90 ms each time, and a pack leaves it nothing to free.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._packs = 0

    def __enter__(self) -> None:
        with self._lock:
            if self._packs == 0:
                self._limit = one_blas_thread()
                self._limit.__enter__()
                self._collects = gc.isenabled()
                gc.disable()
            self._packs += 1

    def __exit__(self, *exc: Any) -> None:
        with self._lock:
            self._packs -= 1
            if self._packs == 0:
                if self._collects:
                    gc.enable()
                self._limit.__exit__(*exc)


_INSIDE = _Inside()


@dataclass
class PackResult:
    """What a worker gives back: the outcomes of the first groups of the pack, and what they cost."""

    outcomes: list[list[Outcome]]
    seconds: float
    lanes: bool


def run_pack(pack: list[Group], sender: str, budget: float, first: int | None = None) -> PackResult:
    """Run the groups of a pack until the budget of seconds is spent, at least one.

    The first batch is `first` of them, or all; one after it is as long as the budget allows at the cost seen.

    Raises
    ------
    RuntimeError
        If this process has other versions of the libraries than the sender.
    """
    if versions() != sender:
        raise RuntimeError(f"a worker has the versions {versions()}, the sweep was started with {sender}")
    from quadlab.kernels import entry

    entry.compile_all()  # not counted as the runs' time
    begin = perf_counter()
    outcomes: list[list[Outcome]] = []
    lanes, most, spent = False, first or len(pack), 0.0
    with _INSIDE:
        while len(outcomes) < len(pack) and spent <= budget:
            held, start = 0, perf_counter()
            some = pack[len(outcomes) : len(outcomes) + most]
            problems: list[BlockQuadratic | Exception] = []
            for problem in build_problems(text for text, _ in some):
                problems.append(problem)
                if isinstance(problem, BlockQuadratic):
                    # Not of problem.packed(): to pack all in a row, later, takes less than each by itself.
                    entries = sum(block.packed().size for block in problem.blocks)
                    lanes = entries <= MAX_LANE_HESSIAN
                    held += 24 * entries + 1000
                if held > BATCH_BYTES or (not lanes and perf_counter() - start > budget):
                    break
            outcomes += _run_batch(problems, some[: len(problems)], start)
            spent = perf_counter() - begin
            affordable = (budget - spent) / spent * len(outcomes)
            most = max(1, min(GROWTH * most, math.ceil(affordable)))
    return PackResult(outcomes, spent, lanes)


def _run_pickled(pack: bytes, *arguments: Any) -> PackResult:
    return run_pack(pickle.loads(pack), *arguments)


def _run_batch(
    problems: list[BlockQuadratic | Exception], groups: list[Group], start: float
) -> list[list[Outcome]]:
    """Return what became of the runs of each group on its problem, those of one structure run together."""
    places: defaultdict[str, list[int]] = defaultdict(list)  # of each setting: its problems
    for k, (_, texts) in enumerate(groups):
        for text in texts:
            places[text].append(k)
    bad = {k: _failed(problem) for k, problem in enumerate(problems) if isinstance(problem, Exception)}
    seeds = [seed_of(text) for text, _ in groups]
    endings: dict[str, list[_Ending]] = {}
    together: defaultdict[tuple[str, ...], list[tuple[str, Setting]]] = defaultdict(list)
    for text, own in places.items():
        try:
            setting = build_setting(text)
        except Exception as error:
            endings[text] = [_failed(error)] * len(own)
        else:
            together[setting.statistics].append((text, setting))
    for members in together.values():
        jobs = [(setting, [k for k in places[text] if k not in bad]) for text, setting in members]
        for (text, _), solved in zip(members, _solve(jobs, problems, seeds), strict=True):
            good = iter(solved)
            endings[text] = [bad[k] if k in bad else next(good) for k in places[text]]
    share = (perf_counter() - start) / max(1, sum(map(len, places.values())))
    ended = {text: iter(of_one) for text, of_one in endings.items()}
    return [[(*next(ended[text]), share) for text in texts] for _, texts in groups]


def _solve(
    jobs: list[tuple[Setting, list[int]]], problems: list[Any], seeds: list[int]
) -> list[list[_Ending]]:
    """Run each setting on the problems at its places, all together; where one cannot be run, each alone."""
    try:
        return list(_solve_together(jobs, problems, seeds))
    except Exception as error:
        if sum(len(own) for _, own in jobs) == 1:
            return [[_failed(error)] * len(own) for _, own in jobs]
        return [[_solve([(setting, [k])], problems, seeds)[0][0] for k in own] for setting, own in jobs]


def _solve_together(
    jobs: list[tuple[Setting, list[int]]], problems: list[Any], seeds: list[int]
) -> Iterator[list[_Ending]]:
    counts = [len(own) for _, own in jobs]
    which = np.repeat(np.arange(len(jobs)), counts)
    places = np.array([k for _, own in jobs for k in own], dtype=np.int64)
    of_run = Column(problems, places)
    if any(setting.noise for setting, _ in jobs):
        of_run = Column.of([setting.noisy(problems[k]) for setting, own in jobs for k in own])
    settings = [setting for setting, _ in jobs]
    none = Column([0.0], np.zeros_like(places))
    batch = Batch.make(
        settings[0].statistics,
        problems=of_run.used(),
        methods=Column([setting.method for setting in settings], which),
        stop=Column([setting.stop for setting in settings], which),
        max_iterations=Column([setting.max_iterations for setting in settings], which),
        tail_gap_start=none,
        tail_displacement_start=none,
        noise_seed=Column(seeds, places),
    )
    outcome = run_many(batch, lanes=True, threads=1, progress=False)
    ends = np.cumsum(counts).tolist()
    for setting, begin, end in zip(settings, [0, *ends], ends, strict=False):
        runs = slice(begin, end)
        if begin == end:
            yield []
            continue
        of_problem: dict[str, list[float | None]] = {name: [] for name in setting.problem_statistics}
        failed: dict[int, _Ending] = {}
        for run in range(begin, end) if of_problem else ():
            for name, values in of_problem.items():
                values.append(None)
                try:
                    values[-1] = PROBLEM_STATISTICS[name](batch.problems.at(run))
                except Exception as error:
                    failed.setdefault(run - begin, _failed(error))
        names, numbers = _packed(batch.numbers(outcome, runs), of_problem)
        words = map(_WORD.__getitem__, outcome.statuses[runs])
        errors: Iterator[str | None] = repeat(None)
        endings = list(zip(words, repeat(names), numbers, errors, strict=False))
        for k, ending in failed.items():
            endings[k] = ending
        yield endings


def _packed(columns: Mapping[str, Any], others: Mapping[str, Any]) -> tuple[str, list[bytes]]:
    """Return the names and the numbers of runs as the store keeps them, given columns of equal length."""
    columns = {**columns, **others}
    names = sorted(columns)
    table = np.array([columns[name] for name in names], dtype=NUMBER)  # None becomes NaN
    table[~np.isfinite(table)] = np.nan
    data, width = table.T.tobytes(), table.itemsize * len(names)
    return ",".join(names), [data[begin : begin + width] for begin in range(0, len(data), width)]


def _failed(error: Exception) -> _Ending:
    return FAILED, "", b"", _told(error)


def _told(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no message"
    return text if type(error) is ValueError else f"{type(error).__name__}: {text}"


def _serve(connection: Any) -> None:
    """Run in a spawned process the calls that come through its pipe, until the parent closes it or ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    # Read when numba is first imported, which is later: a worker has one thread.
    os.environ["NUMBA_NUM_THREADS"] = "1"
    import multiprocessing

    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    with suppress(EOFError, OSError):  # the end of the pipe
        connection.send(None)  # it has started
        while True:
            call = connection.recv_bytes()
            try:
                function, args, kwargs = pickle.loads(call)
                answer = pickle.dumps((function(*args, **kwargs), None))
            except Exception as error:
                answer = pickle.dumps((None, f"{type(error).__name__}: {error}"))
            connection.send_bytes(answer)


# -- engines -------------------------------------------------------------------------------------------------


class Engine:
    """An executor, the number of packs it should have at once, and whether it lost one."""

    def __init__(self, executor: Executor, workers: int | None = None) -> None:
        self.executor = executor
        self._workers = workers or getattr(executor, "_max_workers", None) or os.cpu_count() or 1

    @property
    def workers(self) -> int:
        """Packs that run at the same time."""
        return self._workers

    @property
    def slots(self) -> int:
        """Packs that are under way or wait at the workers."""
        return 2 * self.workers

    def submit(self, pack: list[Group], budget: float, first: int | None) -> Future[PackResult]:
        """Start a pack."""
        return self.executor.submit(run_pack, pack, versions(), budget, first)

    def lost(self, error: BaseException) -> bool:
        """Return whether a pack that ended with this died with its worker, and can be run again."""
        return False

    def close(self) -> None:
        """Release what this object made, and give up what is under way."""


class Here(Engine):
    """The process itself; Ctrl-C works within a pack."""

    def __init__(self) -> None:
        super().__init__(_Inline(), 1)

    @property
    def slots(self) -> int:
        """One: a pack runs when it is submitted."""
        return 1


class _Inline(Executor):
    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class Processes(Engine):
    """Spawned processes of one thread each."""

    def __init__(self, workers: int) -> None:
        if isinstance(workers, bool) or workers < 1:
            raise ValueError(f"workers must be an integer >= 1, received {workers}")
        super().__init__(ProcessExecutor(workers), workers)

    def lost(self, error: BaseException) -> bool:
        """Return whether the process of the pack died."""
        return isinstance(error, WorkerDied)

    def close(self) -> None:
        """End the processes."""
        self.executor.shutdown(cancel_futures=True)


class WorkerDied(Exception):
    """The process that ran a call is dead."""


class ProcessExecutor(Executor):
    """Spawned processes that may be killed at any moment.

    The workers of the standard library's `ProcessPoolExecutor` answer through one pipe; where one is killed
    in an answer longer than the pipe holds, the reader waits for the rest for ever. Here each process has a
    pipe and a thread of the parent to itself: its death is the end of that pipe and of one call.
    """

    def __init__(self, workers: int) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], bytes] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._processes: set[Any] = set()
        self._cancelled = False
        self._threads = [threading.Thread(target=self._attend, daemon=True) for _ in range(workers)]
        for thread in self._threads:
            thread.start()

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run ``function(*args, **kwargs)`` in the next free process."""
        future: Future[Any] = Future()
        self._calls.put((future, pickle.dumps((function, args, kwargs))))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes: when all calls have ended, or, with ``cancel_futures``, at once."""
        if cancel_futures:
            with self._lock:
                self._cancelled = True
                for process in self._processes:
                    process.kill()
        for _ in self._threads:
            self._calls.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    def _attend(self) -> None:
        """Hand one call after another to a process of this thread's own."""
        process = connection = None
        while (item := self._calls.get()) is not None:
            future, call = item
            if self._cancelled:
                future.cancel()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                if process is not None and not process.is_alive():
                    self._end(process, connection)
                    process = None
                if process is None:
                    process, connection = self._start()
                result, told = self._ask(connection, call)
            except WorkerDied as error:
                self._end(process, connection)
                process = None
                future.set_exception(error)
            except Exception as error:
                future.set_exception(error)
            else:
                if told is None:
                    future.set_result(result)
                else:
                    future.set_exception(RuntimeError(told))
        if process is not None:
            self._end(process, connection)

    @staticmethod
    def _ask(connection: Any, call: bytes) -> Any:
        try:
            connection.send_bytes(call)
            answer = connection.recv_bytes()
        except (EOFError, OSError):
            raise WorkerDied("in mid-call") from None
        return pickle.loads(answer)

    def _start(self) -> tuple[Any, Any]:
        from multiprocessing import get_context, resource_tracker

        if hasattr(signal, "pthread_sigmask"):
            resource_tracker.ensure_running()  # which would unblock the signal
            # The process inherits this, so that Ctrl-C does not strike while it starts either.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        spawn = get_context("spawn")
        for _ in range(3):
            connection, other_end = spawn.Pipe()
            process = spawn.Process(target=_serve, args=(other_end,), daemon=True)
            with self._lock:
                if self._cancelled:
                    raise CancelledError("the processes are being ended")
                process.start()
                self._processes.add(process)
            other_end.close()  # or the pipe would not end with the process
            try:
                connection.recv()
                return process, connection
            except (EOFError, OSError):
                self._end(process, connection)
        raise ChildProcessError(
            "worker processes do not start; a script that starts them needs "
            'if __name__ == "__main__": around its code'
        )

    def _end(self, process: Any, connection: Any) -> None:
        connection.close()
        with self._lock:
            self._processes.discard(process)
        process.kill()
        process.join()


class Cluster(Engine):
    """A Dask cluster; workers may come and go."""

    def __init__(self, client: Any) -> None:
        self._own = isinstance(client, str)
        try:
            from distributed import Client
            from distributed.scheduler import KilledWorker
        except ImportError:
            raise ValueError("a Dask cluster needs dask: pip install 'quadlab[dask]'") from None
        if self._own:
            address, told = client, None
            try:
                client = Client(address, timeout=10, set_as_default=False)
            except (OSError, ValueError) as error:
                told = " ".join(str(error).split())
            if told is not None:
                # A half-made Client closes when it is collected: here, since Dask would wait for its own lock
                # for ever if that happened in the start of another one.
                gc.collect()
                raise ValueError(f"no Dask scheduler answers at {address}: {told}")
        self._killed = KilledWorker
        self._client = client
        self._asked, self._threads = -math.inf, 1
        self.executor = client.get_executor(pure=False)

    @property
    def workers(self) -> int:
        """Threads of all workers at present, asked every few seconds."""
        if perf_counter() - self._asked > 5.0:
            self._threads = max(1, sum(self._client.nthreads().values()))
            self._asked = perf_counter()
        return self._threads

    def submit(self, pack: list[Group], budget: float, first: int | None) -> Future[PackResult]:
        """Start a pack; as bytes, since Dask looks for tasks in all elements of a list."""
        return self.executor.submit(_run_pickled, pickle.dumps(pack), versions(), budget, first)

    def lost(self, error: BaseException) -> bool:
        """Return whether Dask gave up on a pack, several of whose workers died."""
        return isinstance(error, self._killed)

    def close(self) -> None:
        """Give up what is under way, and leave the cluster as it is."""
        self.executor.shutdown(wait=False)
        if self._own:
            self._client.close()


def engine_of(executor: Any) -> Engine:
    """Return the engine that the argument `executor` of a sweep names.

    Raises
    ------
    ValueError
        If it names none.

    Examples
    --------
    >>> type(engine_of(None)).__name__
    'Here'
    """
    if executor is None:
        return Here()
    if isinstance(executor, Executor):
        return Engine(executor)
    if isinstance(executor, int):
        return Processes(executor)
    if isinstance(executor, str) or type(executor).__module__.startswith("distributed."):
        return Cluster(executor)
    raise ValueError(
        "executor must be None, a number of processes, the address of a Dask scheduler, a Client or an "
        f"Executor, received {shown(executor)}"
    )


# -- from the runs to do to their outcomes -------------------------------------------------------------------


@dataclass
class _Pack:
    groups: list[Group]
    deaths: int = 0
    #: Problems of the first batch; fewer than all while nobody knows what a run costs.
    first: int | None = None


@dataclass
class Packs:
    """The groups still to run, cut into packs as the measured speed suggests."""

    groups: deque[Group]
    seconds: float = PACK_SECONDS
    again: deque[_Pack] = field(default_factory=deque)
    #: Packs that died with their worker more often than chance explains; each runs with no other beside it.
    suspects: deque[_Pack] = field(default_factory=deque)
    #: Seconds a group; None before the first pack has ended.
    cost: float | None = None
    _lanes: bool = False
    _cut: int = 0

    def take(self, workers: int) -> _Pack | None:
        """Return the next pack, or None."""
        if self.again:
            return self.again.popleft()
        left = len(self.groups)
        if not left:
            return None
        if self.cost is None:
            return self._next(min(math.ceil(left / workers), 1 + GROWTH), 1)
        size, least = self.seconds / self.cost, min(self.seconds, LEAST_SECONDS) / self.cost
        if self._lanes:
            size = max(size, 2 * MAX_LANES)  # a method's runs fill the lanes and fill them again
        # Equal packs, as many for each worker, so that all end at about the same time: rather too long than
        # too short, unless that would leave a worker without any.
        parts = max(1, int(left / size))
        spare = (self._cut + parts) % workers
        parts += -spare if spare < parts else workers - spare
        if not self._lanes:
            parts = max(parts, workers)  # runs may differ much: the last packs get smaller
        self._cut += 1
        return self._next(min(math.ceil(max(left / parts, least)), left))

    def _next(self, count: int, first: int | None = None) -> _Pack:
        return _Pack([self.groups.popleft() for _ in range(count)], first=first)

    def learn(self, pack: _Pack, result: PackResult) -> None:
        """Take in what a pack cost, and back what it did not begin."""
        done = len(result.outcomes)
        self.groups.extendleft(reversed(pack.groups[done:]))
        self.cost, self._lanes = max(result.seconds / done, 1e-7), result.lanes

    def died(self, pack: _Pack, alone: bool, error: BaseException) -> list[tuple[Group, list[Outcome]]]:
        """Put a pack that died with its worker where it is run again; return the run that is to blame."""
        pack.deaths += 1
        if not alone:
            (self.again if pack.deaths <= DEATHS else self.suspects).append(pack)
            return []
        problem, settings = pack.groups[0]
        if len(pack.groups) > 1:
            halves = [pack.groups[0::2], pack.groups[1::2]]
        elif len(settings) > 1:
            halves = [[(problem, settings[0::2])], [(problem, settings[1::2])]]
        else:
            text = f"its worker died, {pack.deaths} times: {type(error).__name__}"
            return [(pack.groups[0], [(FAILED, "", b"", text, 0.0)])]
        self.suspects.extend(_Pack(half, pack.deaths) for half in halves)
        return []


def compute(packs: Packs, engine: Engine) -> Generator[list[tuple[Group, list[Outcome]]], None, None]:
    """Yield what has ended, until all has; closing the generator gives up what is under way."""
    pending: dict[Future[PackResult], _Pack] = {}

    def submit(pack: _Pack) -> None:
        pending[engine.submit(pack.groups, 4.0 * packs.seconds, pack.first)] = pack

    try:
        while True:
            workers = engine.workers
            slots = workers if packs.cost is None else engine.slots
            while len(pending) < slots and (pack := packs.take(workers)) is not None:
                submit(pack)
            alone = not pending and bool(packs.suspects)
            if alone:
                submit(packs.suspects.popleft())
            if not pending:
                break
            ended: list[tuple[Group, list[Outcome]]] = []
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                pack = pending.pop(future)
                error = (
                    CancelledError("given up by the executor") if future.cancelled() else future.exception()
                )
                if error is None:
                    result = future.result()
                    packs.learn(pack, result)
                    ended += zip(pack.groups, result.outcomes, strict=False)
                elif engine.lost(error):
                    ended += packs.died(pack, alone, error)
                else:
                    told = " ".join(f"{type(error).__name__}: {error}".split())
                    raise ChildProcessError(f"a pack of runs cannot be run: {told}") from error
            if ended:
                yield ended
    finally:
        for future in pending:
            future.cancel()
        engine.close()
