"""The named cases: section 8 of the theory for het and hom, and their counterparts transformer and cnn."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quadlab.bases import one_blas_thread
from quadlab.cases import CASES, case, cases
from quadlab.problem import BlockQuadratic, DiagonalBlock


def frozen_adam_condition(p: BlockQuadratic) -> float:
    """kappa_A of D^-1/2 H D^-1/2, D = diag |g(w_0)|."""
    scale = np.abs(p.gradient(p.start)) ** -0.5
    with one_blas_thread(p.size):
        values = np.linalg.eigvalsh(scale[:, None] * p.dense_hessian() * scale)
    return values[-1] / values[0]


def test_names():
    assert cases() == ("het", "hom", "het-axis", "hom-axis", "transformer", "cnn") == tuple(CASES)
    assert all("\n" not in line for line in CASES.values())


@pytest.mark.parametrize("name", cases())
def test_every_case(name):
    p = case(name, seed=1)
    assert (
        p.name == name and p == case(name, seed=1) != case(name, seed=2) and case(name) == case(name, seed=0)
    )
    assert (p.eigenvalues.min(), p.eigenvalues.max()) == (1.0, 5000.0)
    assert not p.minimizer.any() and not p.noise.any()
    assert all(isinstance(block, DiagonalBlock) for block in p.blocks) == name.endswith("axis")


def test_starts_are_standard_normal():
    starts = np.concatenate([p.start for p in case("cnn", seed=range(40))])
    assert starts.mean() == pytest.approx(0, abs=0.05) and starts.std() == pytest.approx(1, abs=0.03)


def test_het_and_hom():
    het, hom = case("het"), case("hom")
    assert het.eigenvalues.tolist() == [1, 2, 3, 99, 100, 101, 4998, 4999, 5000]
    assert hom.eigenvalues.tolist() == [1, 99, 4998, 2, 100, 4999, 3, 101, 5000]
    assert not np.array_equal(het.blocks[0].eigenvectors, het.blocks[1].eigenvectors)
    np.testing.assert_array_equal(case("het-axis").start, het.start)


def test_changes():
    p = case("het", seed=3, basis="axis", noise=2.0)
    assert p == case("het-axis", seed=3).with_noise(2) and p.name == "het"


@pytest.mark.parametrize(
    ("name", "value"), [("het", 21), ("hom", 8560), ("het-axis", None), ("hom-axis", None)]
)
def test_frozen_adam_condition_of_the_small_cases(name, value):
    draws = 1000
    median = np.median(list(map(frozen_adam_condition, case(name, seed=range(draws)))))
    if value is None:  # counts 130 and 131: ln(1e-6) / ln rho
        value = 1 / math.tanh(-math.log(1e-6) / 130.5 / 2)
    assert median == pytest.approx(value, rel=0.15)


def test_transformer_and_cnn_differ_in_the_arrangement_alone():
    transformer, cnn = case("transformer"), case("cnn")
    assert transformer.size == cnn.size == 288
    np.testing.assert_array_equal(transformer.block_sizes, cnn.block_sizes)
    np.testing.assert_array_equal(np.sort(transformer.eigenvalues), np.sort(cnn.eigenvalues))
    assert len(set(transformer.block_sizes.tolist())) > 1
    # Widely different: norms over three decades, each block within a factor of 8.
    assert transformer.block_norms.max() / transformer.block_norms.min() > 1000
    # Alike: every block reaches over most of the whole range.
    spans = [block.eigenvalues.max() / block.eigenvalues.min() for block in transformer.blocks]
    assert max(spans) <= 8
    assert cnn.block_norms.max() / cnn.block_norms.min() < 2.5
    assert min(block.eigenvalues.max() / block.eigenvalues.min() for block in cnn.blocks) > 1000


def test_transformer_is_easier_for_adam_than_for_gd_and_cnn_is_harder():
    conditions = {
        name: np.median(list(map(frozen_adam_condition, case(name, seed=range(10)))))
        for name in ("transformer", "cnn")
    }
    assert conditions["transformer"] < 5000 / 2 and conditions["cnn"] > 5000 * 2


@pytest.mark.parametrize("name", ["Het", "", None, 3])
def test_unknown_cases(name):
    with pytest.raises(ValueError, match=r"case must be one of het, hom, .*, received"):
        case(name)
