"""What was measured: a value object that checks itself, and is the same after a file."""

from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest

from quadlab.bridge import BlockStatistics
from quadlab.heterogeneity import gradient_weighted, parameter_weighted
from quadlab.problem import BlockQuadratic

GOOD = {
    "names": ("embed", "head.<b>", "bias"),
    "sizes": [3, 40, 1],
    "gradient_norms": [0.5, 2.0, 0.0],
    "noise": [0.1, 0.2, 0.0],
    "top": [4.0, 1.0, 0.0],
    "bottom": [0.5, -1.5, 0.0],
    "trace": [6.5, 2.0, 0.0],
    "trace_error": [0.0, 0.3, 0.0],
    "nodes": ([0.5, 2.0, 4.0], [-1.5, 0.0, 0.25, 1.0], [0.0]),
    "weights": ([1 / 3, 1 / 3, 1 / 3], [0.125, 0.5, 0.25, 0.125], [1.0]),
    "density_error": [0.0, 0.02, 0.0],
    "exact": [True, False, True],
    "leakage": 0.25,
    "leakage_error": 0.01,
    "loss": 1.5,
    "batches": 4,
    "meta": {"name": "tiny", "seed": 3, "post": None},
}


def statistics(**changes) -> BlockStatistics:
    return BlockStatistics(**(GOOD | changes))


def test_a_file_gives_the_same_bits_back(tmp_path):
    s = statistics()
    s.save(tmp_path / "s")
    found = BlockStatistics.load(tmp_path / "s")
    assert found == s and hash(found) == hash(s)
    assert found.names == s.names and found.meta == GOOD["meta"] and found.batches == 4
    for b in range(3):
        assert np.array_equal(found.nodes[b], GOOD["nodes"][b])
        assert np.array_equal(found.weights[b], GOOD["weights"][b])
    assert [path.name for path in tmp_path.iterdir()] == ["s"]  # and no temporary file


def test_what_was_not_measured_survives_a_file(tmp_path):
    unknown = [np.nan] * 3
    empty = ([0.5, 2.0, 4.0], [], [0.0])
    weights = (GOOD["weights"][0], [], [1.0])
    s = statistics(
        noise=unknown, nodes=empty, weights=weights, density_error=unknown, leakage=np.nan, batches=1
    )
    s.save(tmp_path / "s.npz")
    assert BlockStatistics.load(tmp_path / "s.npz") == s
    assert "-" in s._repr_html_()


@pytest.mark.parametrize("again", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_copies_are_equal(again):
    assert again(statistics()) == statistics()


@pytest.mark.parametrize("name", [name for name in GOOD if name != "exact"])
def test_every_field_counts_in_an_equality(name):
    changes = {
        "names": ("a", "b", "c"),
        "nodes": (GOOD["nodes"][0], [-1.5, 0.0, 0.25, 1.125], [0.0]),
        "weights": (GOOD["weights"][0], [0.125, 0.25, 0.5, 0.125], [1.0]),
        "exact": [True, False, False],
        "batches": 5,
        "meta": {},
        "sizes": [3, 41, 1],
        "bottom": [0.5, -1.25, 0.0],
    }
    changed = changes.get(name)
    if changed is None:
        changed = np.add(GOOD[name], 0.125)
    assert statistics(**{name: changed}) != statistics()


def test_nothing_can_be_written_to():
    s = statistics()
    for array in (s.sizes, s.top, s.exact, s.block_norms, s.nodes[0], s.weights[1]):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_complexities_are_those_of_the_quadratic():
    """Built as a quadratic with the same norms: the library's own functions give the same numbers."""
    s = statistics()
    assert s.block_norms.tolist() == [4.0, 1.5, 0.0]
    kept = s.block_norms > 0
    problem = BlockQuadratic.from_spectra(
        [np.full(size, norm) for size, norm in zip(s.sizes[kept], s.block_norms[kept], strict=True)],
        gradient_norms=s.gradient_norms[kept],
        seed=0,
    )
    assert s.gradient_weighted == pytest.approx(gradient_weighted(problem), rel=1e-12)
    expected = parameter_weighted(problem) * problem.size / s.size
    assert s.parameter_weighted == pytest.approx(expected, rel=1e-12)


def test_lambda_g_of_a_zero_gradient():
    with pytest.raises(ValueError, match="gradient is zero"):
        _ = statistics(gradient_norms=[0.0, 0.0, 0.0]).gradient_weighted


def test_tiny_gradients_do_not_underflow():
    tiny = statistics(gradient_norms=[0.5e-200, 2e-200, 0.0])
    assert tiny.gradient_weighted == pytest.approx(statistics().gradient_weighted, rel=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": ()}, "names must be distinct strings"),
        ({"names": ("a", "a", "b")}, "names must be distinct strings"),
        ({"names": ("a", "b", 3)}, "names must be distinct strings"),
        ({"sizes": [3, 40]}, r"sizes must be 3 values of type int64, received \[3, 40\]"),
        ({"sizes": [3, 40, 0]}, "sizes must be >= 1, received 0"),
        ({"sizes": [3.0, 40.0, 1.0]}, "sizes must be 3 values of type int64"),
        ({"exact": [1, 0, 1]}, "exact must be 3 values of type bool"),
        ({"top": [4.0, np.nan, 0.0]}, r"top of block 'head.<b>' is nan, must be finite"),
        ({"top": [4.0, -2.0, 0.0]}, r"block 'head.<b>' has bottom -1.5, must be <= its top -2"),
        ({"noise": [0.1, -0.2, 0.0]}, "noise of block 'head.<b>' is -0.2, must be finite and >= 0"),
        ({"noise": [0.1, np.inf, 0.0]}, "noise of block 'head.<b>' is inf"),
        ({"gradient_norms": [0.5, 2.0, np.nan]}, "gradient_norms of block 'bias' is nan"),
        ({"trace": ["a", "b", "c"]}, "trace must be 3 values of type float64"),
        ({"trace": [[1.0], [1.0, 2.0], [1.0]]}, "trace must be an array"),
        ({"nodes": GOOD["nodes"][:2]}, "nodes must hold an array for each of the 3 blocks, received 2"),
        ({"nodes": ([0.5, 2.0], *GOOD["nodes"][1:])}, r"block 'embed' has nodes \(2,\) and weights \(3,\)"),
        ({"nodes": ([0.5, 2.0, np.inf], *GOOD["nodes"][1:])}, "block 'embed' has a node that is not finite"),
        ({"weights": ([0.5, 0.5, 0.5], *GOOD["weights"][1:])}, "block 'embed' has weights that are not"),
        ({"weights": ([1.5, -0.5, 0.0], *GOOD["weights"][1:])}, "block 'embed' has weights that are not"),
        ({"exact": [True, True, True]}, r"block 'head.<b>' is exact, must have 40 nodes, received 4"),
        ({"leakage": -0.1}, "leakage is -0.1, must be finite and >= 0"),
        ({"loss": np.nan}, "loss is nan, must be finite"),
        ({"batches": 0}, "batches must be >= 1, received 0"),
        ({"meta": {"lr": np.nan}}, "meta must be plain JSON"),
        ({"meta": {"model": object()}}, "meta must be plain JSON"),
    ],
)
def test_what_no_measurement_gives_is_refused(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        statistics(**changes)
    assert "\n" not in str(caught.value)


def archive(path, **changes):
    """A saved file with some entries changed; None drops one."""
    statistics().save(path)
    with np.load(path, allow_pickle=False) as file:
        entries = {key: file[key] for key in file.files} | changes
    with path.open("wb") as file:
        np.savez(file, **{key: value for key, value in entries.items() if value is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": "quadlab.problem/1"}, "its schema is 'quadlab.problem/1', not 'quadlab.statistics/1'"),
        ({"trace": None}, "it lacks the entry 'trace'"),
        ({"trace": [1.0]}, "trace must be 3 values"),
        ({"names": "[1"}, "Expecting"),
        ({"node_counts": [3, 4, 2]}, "its 8 nodes are not the sum of its node_counts"),
        ({"node_counts": [9, -2, 1]}, "not the sum of its node_counts"),
        ({"node_counts": np.array([], int)}, "its 8 nodes are"),
        ({"loss": [1.0, 2.0]}, "its loss must be one number"),
        ({"batches": "many"}, "batches|many"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, changes, message):
    archive(tmp_path / "s.npz", **changes)
    with pytest.raises(ValueError, match=rf"s\.npz is not a statistics file: .*({message})") as caught:
        BlockStatistics.load(tmp_path / "s.npz")
    assert "\n" not in str(caught.value)


def test_a_file_that_holds_a_pickle_is_refused(tmp_path):
    archive(tmp_path / "s.npz", names=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match=r"s\.npz is not a statistics file: .*pickle"):
        BlockStatistics.load(tmp_path / "s.npz")


@pytest.mark.parametrize("damage", ["foreign", "short", "flipped"])
def test_a_damaged_file_is_one_line(tmp_path, damage):
    path = tmp_path / "s.npz"
    statistics().save(path)
    content = path.read_bytes()
    middle = len(content) // 4
    path.write_bytes(
        {
            "foreign": b"loss,step\n1,2\n",
            "short": content[:-200],
            "flipped": content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :],
        }[damage]
    )
    if damage == "flipped":  # a byte between the entries may be one that nobody reads
        try:
            assert BlockStatistics.load(path) == statistics()
        except ValueError as error:
            assert re.match(r".*s\.npz is not a statistics file: ", str(error)) and "\n" not in str(error)
    else:
        with pytest.raises(ValueError, match=r"s\.npz is not a statistics file"):
            BlockStatistics.load(path)


def test_loads_and_prints_without_torch(tmp_path):
    statistics().save(tmp_path / "s.npz")
    code = (
        "import sys; sys.modules['torch'] = None\n"  # an import of torch raises
        "from quadlab.bridge import BlockStatistics\n"
        f"s = BlockStatistics.load({str(tmp_path / 's.npz')!r})\n"
        "print(s, s.gradient_weighted, len(s._repr_html_()))\n"
        "print('matplotlib' in sys.modules, 'numba' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    first, second = out.splitlines()
    assert first.startswith(
        "<BlockStatistics 'tiny': 44 parameters in 3 blocks, ||H_b|| 0 to 4, leakage 0.25>"
    )
    assert second == "False False"


def test_draws_itself():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure()
    canvas = FigureCanvasAgg(figure)
    assert statistics().plot(figure) is figure
    canvas.draw()
    scales, spectra = figure.axes
    assert len(scales.lines[0].get_xdata()) == 2 and scales.get_title().endswith(": 1")
    assert [label.get_text() for label in spectra.get_yticklabels()] == list(GOOD["names"])
    assert len(spectra.collections) == 3


def test_shows_itself_as_a_table():
    html = statistics()._repr_html_()
    assert html.count("<tr>") == 4 and "head.&lt;b&gt;" in html and "exact" in html and "4 nodes" in html
