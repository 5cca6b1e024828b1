"""The figures on real models: drawn from the record without torch, and their findings decided by it."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest

from no_torch import python_without_torch
from quadlab.bridge import study
from quadlab.figures import heterogeneity_in_training as course
from quadlab.figures import js_matrix, replay_vs_training, spectra, transformer_blocks

FIGURES = (transformer_blocks, js_matrix, spectra, replay_vs_training, course)


@pytest.mark.parametrize("figure", FIGURES, ids=lambda module: module.__name__.split(".")[-1])
def test_the_data_are_those_of_the_record(figure):
    data = json.loads(json.dumps(figure.data(), allow_nan=False))
    assert figure.title(data) and data["caption"] and figure.data(quick=True) == figure.data()


def test_torch_is_not_needed(tmp_path):
    names = [module.__name__.split(".")[-1] for module in FIGURES]
    code = (
        "from quadlab import figures\n"
        f"print(*[bool(figures.module(name).data()) for name in {names!r}])\n"
        f"figures.render(['replay_vs_training'], {str(tmp_path)!r})"
    )
    done = python_without_torch(code)
    assert done.stdout.split() == ["True"] * 5 and done.returncode == 0, done.stderr
    assert (tmp_path / "replay_vs_training.png").exists()


def test_blocks_lie_where_they_were_measured():
    data = transformer_blocks.data()
    assert {panel["model"] for panel in data["panels"]} >= {"gpt-pre", "gpt-post", "cnn"}
    for panel in data["panels"]:
        entry = study.recorded()["units"][f"blocks-{panel['model']}-{panel['depth']}-0"]
        missing = sorted(set(entry["names"]) - set(panel["names"]))
        assert len(missing) == panel["without_curvature"]
        assert all(name.endswith("k.bias") for name in missing)
        k = entry["names"].index(panel["names"][3])
        assert panel["gradient"][3] == entry["gradient_norms"][k]
        assert panel["hessian"][3] == max(abs(entry["top"][k]), abs(entry["bottom"][k]))
        assert panel["ratio"] == pytest.approx(entry["lambda_g"] / entry["lambda_p"], rel=1e-4)


def test_distances_and_their_means():
    data = js_matrix.data()
    for panel in data["panels"]:
        distances = np.array(panel["distances"])
        assert np.array_equal(distances, distances.T) and 0.0 <= distances.min() <= distances.max() <= 1.0
        inner = distances[np.triu_indices(len(distances), 1)]
        assert panel["all"] == pytest.approx(inner.mean(), abs=1e-3)


@pytest.mark.parametrize(
    ("cnn", "start"),
    [
        (0.0, "Block spectra differ more in the Transformers than in the CNNs: "),
        (1.0, "Block spectra do not differ more"),
        (None, "Block spectra differ more in the Transformers than in the CNNs over all blocks only"),
    ],
)
def test_the_finding_on_spectra_follows_the_means(cnn, start):
    data = js_matrix.data()
    for entry in data["means"]:
        entry["all"], entry["matrices"] = 0.5, 0.5
        if entry["model"] == "cnn":
            entry["all"], entry["matrices"] = (0.4, 0.6) if cnn is None else (cnn, cnn)
    assert js_matrix.title(data).startswith(start)


def test_the_shares_of_a_density_are_those_of_its_nodes():
    data = spectra.data()
    for panel in data["panels"]:
        entry = study.recorded()["units"][f"blocks-{panel['model']}-{panel['depth']}-0"]
        for block in panel["blocks"]:
            b = entry["names"].index(block["name"])
            nodes, weights = np.array(entry["nodes"][b]), np.array(entry["weights"][b])
            flat = np.abs(nodes) <= spectra.FLAT * max(abs(entry["top"][b]), abs(entry["bottom"][b]))
            assert block["flat"] == pytest.approx(weights[flat].sum(), abs=2e-3)
            if not flat.all():
                rest = weights[~flat].sum()
                assert block["part_negative"] == pytest.approx(
                    weights[~flat & (nodes < 0)].sum() / rest, abs=2e-3
                )
                step = data["grid"][1] - data["grid"][0]
                area = step * (sum(block["positive"]) + sum(block["negative"]))
                assert area == pytest.approx(1.0, abs=0.15)  # the grid cuts the flanks of the outermost


def correlation(rho, p):
    return {"all": {"n": 12, "rho": rho, "low": rho - 0.2, "high": rho + 0.2, "p": p}}


def test_the_finding_on_predictions_follows_the_tests():
    data = replay_vs_training.data()
    assert len(data["pairs"]) >= 10
    found = copy.deepcopy(data)
    found["correlations"] = {
        "replayed": correlation(0.8, 0.001),
        "lambda_ratio": correlation(0.6, 0.03),
        "mean_jensen_shannon": correlation(-0.7, 0.01),
    }
    text = replay_vs_training.title(found)
    assert "the replayed ratio ranks the real SGD-to-Adam gaps" in text
    assert "$JS^0$ ranks them the wrong way round" in text and "Λ" not in text
    for key in found["correlations"]:
        found["correlations"][key] = correlation(0.6, 0.03)
    assert "no prediction" in replay_vs_training.title(found)


def test_post_and_pre_are_compared_by_the_medians():
    data = course.data()
    compared = course.larger_post(data)
    assert len(compared) == 6
    for family, depth, pre, post in compared:
        for kind, value in (("pre", pre), ("post", post)):
            entry = study.recorded()["units"][f"gradients-{family}-{kind}-{depth}-0"]
            assert value == pytest.approx(np.median(entry["gradient_gini"]))
    for entry in data["starts"]:
        entry["gini"] = [1.0 if entry["model"].endswith("post") else 0.5]
    assert "in 6 of 6 cases" in course.title(data)
