"""The benchmark's peers make the same count, and the README shows what was recorded."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

import bench
import bench_peers
import quadlab as ql
from bench_peers import METHODS, PEERS

README = Path(__file__).parents[1] / "README.md"
PROBLEMS = {
    "dense": lambda: ql.case("het", seed=0),
    "diagonal": lambda: ql.BlockQuadratic.from_spectra([[1.0, 3.0, 9.0], [4.0]], seed=0),
}


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("peer", [peer for peer in PEERS if peer != "quadlab"])
def test_every_peer_stops_at_the_count_of_quadlab(peer, method, problem):
    library = {"torch": "torch", "fused": "torch", "optax": "optax"}.get(peer)
    if library:
        pytest.importorskip(library)
    work = bench.calibrated(PROBLEMS[problem](), method, 200)
    count = PEERS[peer](work)(work.cap)
    assert 100 <= count[0] <= 200
    assert count.tolist() == bench_peers.quadlab(work)(work.cap).tolist()


@pytest.mark.parametrize("own_hessian", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_batch_of_optax_makes_the_counts_of_quadlab(method, own_hessian):
    pytest.importorskip("optax")
    work = bench.batch_work("het", method, own_hessian, side=3, cap=500)
    counts = bench_peers.quadlab(work)(work.cap)
    assert counts.size == 9 and work.shares_hessian != own_hessian
    assert bench_peers.optax(work)(work.cap).tolist() == counts.tolist()


def test_readme_shows_the_record():
    content = json.loads(bench.RECORDED.read_text())
    assert content["schema"] == bench.SCHEMA and not content["quick"]
    assert bench.with_tables(README.read_text(), content) == README.read_text()


def test_adam_holds_five_vectors_and_allocates_none_in_its_loop():
    """Beside the problem's own: x, g, d, m, v; the point that is returned comes after g and d have gone."""
    from numba.core.runtime import _nrt_python, rtsys

    _nrt_python.memsys_enable_stats()
    size = 10**6
    problem = bench.diagonal(size)
    method, stop = ql.Adam(1e-4), ql.GradientNorm(bench.NEVER, relative=True)
    ql.solve(problem, method, stop, max_iterations=1)
    peaks, allocations = [], []
    for cap in (2, 12):
        before = rtsys.get_allocation_stats().alloc
        tracemalloc.start()
        ql.solve(problem, method, stop, max_iterations=cap)
        peaks.append(tracemalloc.get_traced_memory()[1] / (8 * size))
        tracemalloc.stop()
        allocations.append(rtsys.get_allocation_stats().alloc - before)  # by compiled code, small ones too
    assert 4.9 < peaks[0] < 5.1 and peaks[1] < 5.1
    assert allocations[0] == allocations[1] > 0  # the call's own
