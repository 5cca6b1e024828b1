"""Threads that share the coordinates of one run: the same bits as one thread, whatever happens on the way."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import quadlab as ql
from quadlab import engine, steps
from quadlab.kernels import codes as c

#: Blocks that end within a chunk, at its end, and just behind it.
SIZES = (3 * c.CHUNK + 17, c.CHUNK, 5, 2 * c.CHUNK + 1, 900)
METHODS = [
    ql.GD(0.5),
    ql.GD("lambda_g"),
    ql.GD(steps.inverse_sqrt(0.4)),
    ql.SignSGD(1e-3),
    ql.SignSGD("lambda_p"),
    ql.SignSGD("m_star"),
    ql.SignSGD("lemma"),
    ql.Adam(1e-3),
    ql.Adam(1e-3, beta1=0.0),
    ql.RMSProp(1e-3),
]
STOPS = [ql.GradientNorm(0.01, ord=1, relative=True), ql.GradientNorm(0.01, relative=True)]


@pytest.fixture(autouse=True)
def small_team(monkeypatch):
    monkeypatch.setattr(engine, "MIN_TEAM", 1)


@pytest.fixture(scope="module")
def problem():
    draw = np.random.default_rng(0)
    blocks = [draw.uniform(0.05, 1.0, size) * 10.0**-k for k, size in enumerate(SIZES)]
    return ql.BlockQuadratic.from_blocks(blocks, start=draw.standard_normal(sum(SIZES)))


def same(one, other):
    assert (one.status, one.iterations, one.final) == (other.status, other.iterations, other.final)
    assert one.point.tobytes() == other.point.tobytes()


@pytest.mark.parametrize("stop", STOPS, ids=str)
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_the_same_bits_on_any_number_of_threads(problem, method, stop):
    alone = ql.solve(problem, method, stop, max_iterations=300)
    assert alone.iterations > 2
    for threads in (2, 3, 8, 99):
        same(ql.solve(problem, method, stop, max_iterations=300, threads=threads), alone)
    same(ql.solve(problem, method, stop, max_iterations=300, threads=2, fused=False), alone)


def test_several_threads_do_work_on_it(problem, monkeypatch):
    asked = []
    run = engine._Team.run
    monkeypatch.setattr(engine._Team, "run", lambda self, *args: asked.append(self.ranks) or run(self, *args))
    ql.solve(problem, ql.GD(0.5), STOPS[0], max_iterations=50, threads=3)
    ql.solve_many([problem], [ql.GD(0.5)], STOPS[0], max_iterations=50, threads=2)
    ql.solve_many([problem] * 2, [ql.GD(0.5)] * 2, STOPS[0], max_iterations=50, threads=2)
    assert asked == [3, 2, 1, 1]
    # more threads than chunks
    ql.solve(problem, ql.GD(0.5), STOPS[0], max_iterations=50, threads=99)
    assert asked[-1] == 4 + 1 + 1 + 3 + 1


def test_in_pieces_recorded_shown_and_resumed(problem, monkeypatch):
    monkeypatch.setattr(engine, "PIECE", 0)  # pieces of 16 iterations
    stop, method = ql.GradientNorm(1e-9, relative=True), ql.Adam(1e-3)
    alone = ql.solve(problem, method, stop, max_iterations=200, record=np.arange(0, 200, 7))
    team = ql.solve(problem, method, stop, max_iterations=200, record=np.arange(0, 200, 7), threads=2)
    same(team, alone)
    for name in ("iteration", "grad_l1", "gap"):
        assert np.array_equal(getattr(team.trace, name), getattr(alone.trace, name))
    seen = []
    half = ql.solve(
        problem, method, stop, max_iterations=90, threads=2, record=[3, 70],
        callback=lambda t, w: seen.append((t, w.copy())),
    )  # fmt: skip
    assert [t for t, _ in seen] == [3, 70]
    assert seen[1][1].tobytes() == ql.solve(problem, method, stop, max_iterations=70).point.tobytes()
    same(ql.solve(problem, method, stop, max_iterations=200, record=[3, 70], resume=half, threads=3), alone)


def test_divergence_is_caught_in_every_part(problem):
    stop = ql.GradientNorm(1e-3, relative=True)
    alone = ql.solve(problem, ql.GD(50.0), stop, max_iterations=10**4)
    team = ql.solve(problem, ql.GD(50.0), stop, max_iterations=10**4, threads=2)
    assert str(team.status) == "diverged"
    same(team, alone)


def test_interrupted_by_a_callback(problem):
    def press(t, w):
        if t == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as pressed:
        ql.solve(
            problem,
            ql.GD(0.5),
            ql.GradientNorm(1e-9),
            max_iterations=100,
            record=[40],
            callback=press,
            threads=2,
        )
    assert pressed.value.run.iterations == 40


@pytest.mark.parametrize("threads", [0, -1, True, 1.5, "2"])
def test_bad_threads(problem, threads):
    with pytest.raises(ValueError, match="threads must be an integer >= 1, received"):
        ql.solve(problem, ql.GD(0.5), STOPS[0], threads=threads)


@pytest.mark.parametrize("started", [0, 1, 2, 3])
def test_threads_that_the_system_refuses_are_an_error(problem, monkeypatch, started):
    """One that never comes would keep the others waiting in the kernel for ever."""
    ql.solve(problem, ql.GD(0.5), STOPS[0], max_iterations=1)  # kernels load with a thread of their own
    before, start, allowed = threading.active_count(), threading.Thread.start, [None] * started

    def refuse(thread):
        if not allowed:
            raise RuntimeError("can't start new thread")
        allowed.pop()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(OSError, match="does not start 4 threads: can't start new thread"):
        ql.solve(problem, ql.GD(0.5), STOPS[0], max_iterations=50, threads=4)
    allowed[:] = [None] * started
    with pytest.raises(OSError, match="does not start 4 threads: can't start new thread"):
        ql.solve_many(
            [problem] * 9, ql.GD(0.5), STOPS[0], max_iterations=50, threads=4, lanes=False, progress=False
        )
    assert threading.active_count() == before


def test_ctrl_c_while_threads_start_leaves_none(problem, monkeypatch):
    ql.solve(problem, ql.GD(0.5), STOPS[0], max_iterations=1)
    before, start, seen = threading.active_count(), threading.Thread.start, []

    def interrupted(thread):
        seen.append(thread)
        if len(seen) == 3:
            raise KeyboardInterrupt
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ql.solve(problem, ql.GD(0.5), STOPS[0], max_iterations=50, threads=4)
    assert threading.active_count() == before
