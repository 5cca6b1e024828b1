"""Eigenvalue laws: their formulas, their ranges, and that only the random law draws."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest

from quadlab.problem import BlockQuadratic
from quadlab.spectra import (
    Density,
    Listed,
    LogUniform,
    MarchenkoPastur,
    PowerLaw,
    TwoPoint,
    as_spectrum,
    fixed_eigenvalues,
)

LAWS = [
    TwoPoint(1, 5000),
    TwoPoint(0, 2, fraction_high=0.3),
    LogUniform(1e-3, 5000),
    LogUniform(2, 2),
    LogUniform(1, 5000, random=True),
    PowerLaw(5000, 1.5),
    PowerLaw(3, 0),
    MarchenkoPastur(0.3),
    MarchenkoPastur(1.0, variance=4.0),
    MarchenkoPastur(3.0),
    Density([0.0, 1.0, 7.0], [5, 3, 1]),
]


@pytest.mark.parametrize("law", LAWS, ids=repr)
@pytest.mark.parametrize("size", [1, 2, 3, 17, 400])
def test_a_law_gives_size_finite_nonnegative_ascending_values(law, size):
    values = law.eigenvalues(size, np.random.default_rng(0))
    assert values.shape == (size,) and values.dtype == np.float64
    assert np.isfinite(values).all() and (values >= 0).all() and (np.diff(values) >= 0).all()


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_laws_are_values(law):
    again = pickle.loads(pickle.dumps(law))
    assert again == law and hash(again) == hash(law)


@pytest.mark.parametrize("law", [law for law in LAWS if not law.random], ids=repr)
def test_what_is_remembered_is_what_the_law_gives(law):
    for size in (1, 17, 1024, 1025):
        for _ in range(2):
            values = fixed_eigenvalues(law, size)
            np.testing.assert_array_equal(values, law.eigenvalues(size), strict=True)
    assert law.eigenvalues(17).flags.writeable  # the caller's own


def test_only_a_law_that_draws_differs_between_blocks_and_seeds():
    class Drawn(LogUniform):
        """A user's law, which draws although the one it is made from does not."""

        def eigenvalues(self, size, rng=None):
            return np.sort(rng.uniform(self.low, self.high, size))

    def blocks(law):
        problems = [BlockQuadratic.from_spectra([law] * 2, sizes=[9, 9], seed=seed) for seed in (0, 1)]
        return {block.eigenvalues.tobytes() for problem in problems for block in problem.blocks}

    for law in LAWS:
        assert len(blocks(law)) == (4 if law.random else 1)
    assert len(blocks(Drawn(1, 100))) == 4


def test_listed_keeps_order_and_bits():
    law = Listed([3, 0.1, 2])
    assert law.eigenvalues(3).tolist() == [3.0, 0.1, 2.0]
    assert not law.values.flags.writeable
    assert law == Listed(np.array([3, 0.1, 2])) and law != Listed([0.1, 2, 3])


def test_listed_cannot_be_changed_from_outside():
    mine = np.array([1.0, 2.0])
    law = Listed(mine)
    mine[0] = 7
    assert law.values.tolist() == [1.0, 2.0]
    view = mine.view()
    view.flags.writeable = False  # read-only itself, but its owner is not
    law = Listed(view)
    mine[0] = 9
    assert law.values.tolist() == [7.0, 2.0]


def test_listed_takes_an_immutable_array_without_a_copy():
    mine = np.arange(5.0)
    mine.flags.writeable = False
    assert Listed(mine).values is mine


def test_two_point_counts():
    for size, fraction, high in [(10, 0.25, 3), (10, 0.24, 2), (3, 0.0, 0), (3, 1.0, 3), (1, 0.5, 1)]:
        assert (TwoPoint(1, 2, fraction).eigenvalues(size) == 2).sum() == high


def test_log_uniform_ends_and_spacing():
    values = LogUniform(1, 5000).eigenvalues(50)
    assert values[0] == 1.0 and values[-1] == 5000.0
    np.testing.assert_allclose(np.diff(np.log(values)), math.log(5000) / 49, rtol=1e-12)
    assert LogUniform(1, 5000).eigenvalues(1).tolist() == [5000.0]


def test_random_log_uniform_is_uniform_in_the_logarithm():
    values = LogUniform(1, 100, random=True).eigenvalues(20_000, np.random.default_rng(1))
    unit = np.log(values) / math.log(100)
    assert unit.min() >= 0 and unit.max() <= 1
    np.testing.assert_allclose(unit, (np.arange(20_000) + 0.5) / 20_000, atol=0.015)


def test_power_law_formula():
    np.testing.assert_allclose(PowerLaw(10, 2).eigenvalues(3), [10 / 9, 10 / 4, 10], rtol=1e-15)


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0, 2.0, 5.0])
def test_marchenko_pastur_moments(ratio):
    # Moments of the law: mean s, second moment s^2 (1 + r), third s^3 (1 + 3 r + r^2).
    values = MarchenkoPastur(ratio, variance=2.0).eigenvalues(20_000)
    assert values.mean() == pytest.approx(2, rel=1e-3)
    assert (values**2).mean() == pytest.approx(4 * (1 + ratio), rel=2e-3)
    assert (values**3).mean() == pytest.approx(8 * (1 + 3 * ratio + ratio**2), rel=3e-3)
    assert (values == 0).mean() == pytest.approx(max(0, 1 - 1 / ratio), abs=1e-4)


def test_marchenko_pastur_matches_a_sample():
    rng = np.random.default_rng(0)
    sample = np.linalg.eigvalsh(np.cov(rng.standard_normal((300, 1200)), bias=True))
    np.testing.assert_allclose(sample, MarchenkoPastur(0.25).eigenvalues(300), atol=0.05)


def test_density_apportions_by_weight_whatever_the_order():
    values = Density([5.0, 1.0, 9.0], [0.2, 0.7, 0.1]).eigenvalues(10)
    assert values.tolist() == [1.0] * 7 + [5.0] * 2 + [9.0]
    assert Density([1.0, 2.0], [0.0, 3.0]).eigenvalues(2).tolist() == [2.0, 2.0]


def test_only_the_random_law_draws():
    for law in LAWS:
        state = np.random.default_rng(3)
        before = state.bit_generator.state
        law.eigenvalues(4, state)
        assert (state.bit_generator.state == before) == (not getattr(law, "random", False))


def test_as_spectrum():
    law = PowerLaw(1, 1)
    assert as_spectrum(law) is law
    assert as_spectrum((1, 2)) == Listed([1.0, 2.0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TwoPoint(-1, 2), r"TwoPoint low must be a finite number >= 0, received -1"),
        (lambda: TwoPoint(3, 2), r"TwoPoint high must be a finite number >= 3, received 2"),
        (lambda: TwoPoint(1, 2, 1.5), r"fraction_high must lie in \[0, 1\], received 1.5"),
        (lambda: LogUniform(0, 2), r"LogUniform low must be positive, received 0"),
        (lambda: LogUniform(1, math.inf), r"LogUniform high must be a finite number >= 1, received inf"),
        (lambda: LogUniform(1, 2, random=True).eigenvalues(3), r"needs a random generator, received None"),
        (lambda: PowerLaw(math.nan, 1), r"PowerLaw top must be .* received nan"),
        (lambda: PowerLaw(1, -2), r"PowerLaw exponent must be .* received -2"),
        (lambda: PowerLaw("1", 2), r"PowerLaw top must be .* received '1'"),
        (lambda: MarchenkoPastur(0), r"MarchenkoPastur ratio must be positive, received 0"),
        (lambda: MarchenkoPastur(1, variance=-1), r"MarchenkoPastur variance must be .* received -1"),
        (lambda: Density([1, 2], [1]), r"Density has 2 nodes but weights of shape \(1,\)"),
        (lambda: Density([1, -2], [1, 1]), r"Density nodes: eigenvalue -2.0 at position 1"),
        (lambda: Density([1, 2], [1, -1]), r"Density weight -1.0 at position 1"),
        (lambda: Density([1, 2], [0, 0]), r"Density weights must have a positive finite sum, received 0"),
        (lambda: Listed([1, math.nan]), r"eigenvalue nan at position 1 is not finite and >= 0"),
        (lambda: Listed([1, 2]).eigenvalues(3), r"size 3 was asked of a list of 2 eigenvalues"),
        (lambda: as_spectrum("flat"), r"must be a list of numbers or a Spectrum, received 'flat'"),
    ],
)
def test_bad_parameters(make, message):
    with pytest.raises(ValueError, match=message):
        make()
