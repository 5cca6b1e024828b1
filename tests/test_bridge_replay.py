"""Replayed problems: what was measured is what they have; what theory predicts of them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

import quadlab as ql
from no_torch import python_without_torch
from quadlab.bridge.replay import BANDWIDTH, STOP, density_distances, predict, replay, skipped
from quadlab.bridge.statistics import BlockStatistics


def statistics(spectra, gradient_norms, sizes=None, **changes):
    """Statistics with the exact spectra of the blocks, or with densities of that many nodes."""
    spectra = [np.sort(np.array(values, dtype=float)) for values in spectra]
    counts = [values.size for values in spectra]
    zeros = np.zeros(len(spectra))
    given = {
        "names": [f"b{k}" for k in range(len(spectra))],
        "sizes": counts if sizes is None else sizes,
        "gradient_norms": gradient_norms,
        "noise": zeros + 0.1,
        "top": [values[-1] for values in spectra],
        "bottom": [values[0] for values in spectra],
        "trace": zeros,
        "trace_error": zeros,
        "nodes": spectra,
        "weights": [np.full(n, 1.0 / n) for n in counts],
        "density_error": zeros,
        "exact": [sizes is None] * len(spectra),
        "leakage": 0.1,
        "leakage_error": 0.0,
        "loss": 1.0,
        "batches": 4,
    }
    return BlockStatistics(**{**given, **changes})


@pytest.fixture
def measured():
    """Five blocks: two with negative curvature, one with no curvature at all, as a key's bias has."""
    rng = np.random.default_rng(0)
    spectra = [scale * rng.uniform(-0.2, 1.0, n) for scale, n in ((10.0, 12), (1.0, 5), (0.1, 30))]
    return statistics([*spectra, np.zeros(4), [2.0]], [1.0, 3.0, 0.2, 1e-17, 0.5])


def test_exact_spectra_are_replayed_as_they_are(measured):
    problem = replay(measured, None)
    assert skipped(measured) == ("b3",)
    kept = [0, 1, 2, 4]
    assert problem.block_sizes.tolist() == [12, 5, 30, 1]
    for b, block in zip(kept, problem.blocks, strict=True):
        np.testing.assert_array_equal(block.eigenvalues, np.sort(np.abs(measured.nodes[b])))
    np.testing.assert_array_equal(problem.block_norms, measured.block_norms[kept])
    norms = [np.linalg.norm(g) for g in problem.split(problem.gradient(problem.start))]
    np.testing.assert_allclose(norms, measured.gradient_norms[kept], rtol=1e-12)
    assert ql.gradient_weighted(problem) == pytest.approx(measured.gradient_weighted, rel=1e-12)
    assert np.linalg.norm(problem.blocks[0].to_dense() - np.diag(np.diag(problem.blocks[0].to_dense()))) > 0.1


def test_a_seed_decides_all(measured):
    assert replay(measured, seed=1) == replay(measured, seed=1) != replay(measured, seed=2)


def test_reduced_sizes_keep_their_ratios_and_the_complexities():
    rng = np.random.default_rng(1)
    sizes = [4000, 2000, 400, 7]
    s = statistics([rng.uniform(0.0, top, 300) for top in (1.0, 5.0, 0.3, 20.0)], [1.0, 0.5, 2.0, 0.1], sizes)
    problem = replay(s, 200)
    assert problem.block_sizes.tolist() == [200, 100, 20, 1]
    np.testing.assert_array_equal(problem.block_norms, s.block_norms)
    assert ql.gradient_weighted(problem) == pytest.approx(s.gradient_weighted, rel=1e-12)
    assert ql.parameter_weighted(problem) == pytest.approx(s.parameter_weighted, rel=0.05)
    for block, nodes in zip(problem.blocks[:3], s.nodes, strict=False):
        deciles = np.linspace(0.1, 0.9, 9)
        np.testing.assert_allclose(
            np.quantile(block.eigenvalues, deciles), np.quantile(nodes, deciles), atol=0.03 * nodes[-1]
        )


def test_the_largest_eigenvalue_survives_however_small_its_weight():
    s = statistics([np.r_[np.linspace(0.0, 1.0, 99), 50.0]], [1.0], [10**6])
    eigenvalues = replay(s, 10).eigenvalues
    assert eigenvalues[-1] == 50.0 and eigenvalues[-2] < 1.0


def test_ritz_values_beyond_the_extremes_are_cut():
    s = statistics([[0.0, 1.0, 2.0]], [1.0], top=[1.5], exact=[False])
    assert replay(s).eigenvalues.tolist() == [0.0, 1.0, 1.5]


def test_negative_curvature_is_absolute_or_zero():
    s = statistics([[-3.0, -1.0, 2.0], [-2.0, -1.0]], [1.0, 1.0])
    assert replay(s).eigenvalues.tolist() == [1.0, 2.0, 3.0, 1.0, 2.0]
    assert replay(s, negative="zero").eigenvalues.tolist() == [0.0, 0.0, 2.0]
    assert skipped(s) == () and skipped(s, "zero") == ("b1",)


def test_the_start_has_no_gradient_where_there_is_no_curvature():
    s = statistics([np.r_[np.zeros(5), 1e-9, 1.0]], [3.0])
    problem = replay(s)
    delta = problem.value(problem.start)
    assert np.linalg.norm(problem.gradient(problem.start)) == pytest.approx(3.0, rel=1e-12)
    assert delta < 100.0  # g / lam in a direction of lam = 1e-9 would give 1e8


def test_noise_keeps_its_norm_over_a_block():
    s = statistics([np.ones(50)], [1.0], [1000], noise=[0.2])
    assert not replay(s).noise.any()
    problem = replay(s, 10, noise=True)
    assert np.sqrt(10) * problem.noise[0] == pytest.approx(np.sqrt(1000) * 0.2)


def test_distances_between_densities():
    rng = np.random.default_rng(2)
    same = [10.0 ** rng.normal(0.0, 0.3, 400) for _ in range(2)]
    s = statistics([*same, 100.0 * same[0], np.zeros(3), -same[0]], [1.0, 1.0, 1.0, 0.0, 1.0])
    names, distances = density_distances(s)
    assert names == ("b0", "b1", "b2", "b4") and np.array_equal(distances, distances.T)
    assert distances[0, 1] < 0.1 < 0.99 < distances[0, 2] <= 1.0  # samples of one law are near
    assert distances[0, 3] == pytest.approx(0.0, abs=1e-7)  # the sign does not matter


def test_the_distance_of_two_gaussians_in_the_logarithm():
    s = statistics([[1.0], [10.0**0.5]], [1.0, 1.0])
    x = np.linspace(-3.0, 3.5, 2001)
    p, q = (np.exp(-0.5 * ((x - m) / BANDWIDTH) ** 2) for m in (0.0, 0.5))
    edge = x > 0.5 + 1e-9  # the grid ends at the largest norm, and what lies beyond is shared out
    p, q = np.where(edge, 0.0, p), np.where(edge, 0.0, q)
    assert density_distances(s)[1][0, 1] == pytest.approx(jensenshannon(p, q, 2), abs=0.03)


def test_eigenvalues_that_are_not_resolved_are_zero():
    flat = [[1e-5, -1e-4, 1.0], [0.0, 1e-6, 1.0]]
    assert density_distances(statistics(flat, [1.0, 1.0]))[1][0, 1] == pytest.approx(0.0, abs=1e-7)


def test_prediction(measured):
    found = predict(measured, max_iterations=10**4)
    assert found.ratio == pytest.approx(measured.gradient_weighted / measured.parameter_weighted)
    assert found.skipped == ("b3",) and found.problem == replay(measured)
    assert found.mean_jensen_shannon == pytest.approx(found.jensen_shannon[np.triu_indices(4, 1)].mean())
    assert list(found.counts) == ["gd", "signsgd", "adam"] and None not in found.counts.values()
    assert found.gap() == found.counts["gd"] / found.counts["adam"]
    assert found.at_edge == () and not found.comparison.violated
    run = found.comparison.runs[0].run
    longer = [
        ql.solve(found.problem, ql.GD(factor * run.method.learning_rate), STOP).iterations
        for factor in (0.7, 1.5)
    ]
    assert run.iterations < min(longer)
    table = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert table["iterations"] == found.counts and table["skipped"] == ["b3"]
    assert "JS^0" in str(found) and "skipped, without gradient or curvature: b3" in str(found)


def test_a_capped_run_has_no_count_and_no_gap(measured):
    found = predict(measured, ql.Gap(1e-12, relative=True), max_iterations=3)
    assert set(found.counts.values()) == {None} and found.gap() is None
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"negative": "flip"}, r"negative must be one of absolute, zero, received 'flip'"),
        ({}, {"max_block_size": 0}, r"max_block_size must be an integer >= 1 or None, received 0"),
        ({"noise": [np.nan, 0.1]}, {"noise": True}, r"the noise was not measured"),
        ({"gradient_norms": [0.0, 0.0]}, {}, r"no block has both a gradient and curvature"),
        ({"nodes": [[], [1.0]], "weights": [[], [1.0]]}, {}, r"block 'b0' has no density"),
    ],
)
def test_bad_input_is_one_line(change, options, message):
    s = statistics([[1.0], [2.0]], [1.0, 1.0], exact=[False, False])
    with pytest.raises(ValueError, match=message):
        replay(replace(s, **change), **options)


def test_torch_is_not_needed(tmp_path, measured):
    path = tmp_path / "s.npz"
    measured.save(path)
    code = (
        "from quadlab.bridge import BlockStatistics, predict, replay\n"
        f"s = BlockStatistics.load({str(path)!r})\n"
        "print(replay(s).size, predict(s).counts['adam'])"
    )
    done = python_without_torch(code)
    assert done.stdout.split() == [str(replay(measured).size), str(predict(measured).counts["adam"])]
