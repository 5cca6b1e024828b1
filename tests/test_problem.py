"""The problem: what is set is there, to the bit where it can be; storages agree; frozen; saved whole."""

from __future__ import annotations

import math
import os
import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quadlab.bases import Householder, Rotation, basis_matrix
from quadlab.problem import (
    BlockQuadratic,
    DenseBlock,
    DiagonalBlock,
    HouseholderBlock,
    load,
)
from quadlab.spectra import Listed, LogUniform, PowerLaw, Spectrum, TwoPoint

from_spectra, from_blocks = BlockQuadratic.from_spectra, BlockQuadratic.from_blocks

BASES = {
    "axis": "axis",
    "haar": "haar",
    "rotation": Rotation(0.4),
    "householder": Householder(2),
    "explicit": basis_matrix("haar", 4, np.random.default_rng(5)),
}


def mixed(**options) -> BlockQuadratic:
    """One block of each storage, one of them singular."""
    spectra = [[3, 1, 2], [0, 5, 7, 7], [1e-3, 10, 1, 4, 2]]
    bases = ["haar", "axis", Householder(2)]
    return from_spectra(spectra, basis=bases, **{"seed": 3, **options})


# -- Hessian


@pytest.mark.parametrize("basis", BASES.values(), ids=BASES.keys())
@pytest.mark.parametrize("storage", [None, "dense"])
def test_a_block_has_the_given_eigenvalues_in_the_given_order(basis, storage):
    values = [4.0, 0.1, 4000.0, 2.0]
    block = from_spectra([values], basis=basis, storage=storage, seed=0).blocks[0]
    assert block.eigenvalues.tolist() == values  # to the bit, not computed back
    assert block.norm == 4000.0 and block.trace == sum(values) and block.size == 4
    for k, value in enumerate(values):
        unit = np.eye(4)[k]
        vector = block.from_eigenbasis(unit)
        np.testing.assert_allclose(block.matvec(vector), value * vector, atol=1e-11)
        np.testing.assert_allclose(block.to_eigenbasis(vector), unit, atol=1e-14)


@pytest.mark.parametrize("basis", BASES.values(), ids=BASES.keys())
def test_all_operations_agree_with_the_matrix(basis):
    rng = np.random.default_rng(1)
    for values in ([4.0, 0.1, 40.0, 2.0], [0.0, 1.0, 0.0, 3.0]):
        block = from_spectra([values], basis=basis, seed=0).blocks[0]
        dense = block.to_dense()
        pinv = np.linalg.pinv(dense, rcond=1e-12, hermitian=True)
        v = rng.standard_normal(4)
        np.testing.assert_allclose(block.matvec(v), dense @ v, atol=1e-12)
        np.testing.assert_allclose(block.pinv_matvec(v), pinv @ v, atol=1e-11)
        np.testing.assert_allclose(block.project(v), dense @ pinv @ v, atol=1e-11)
        np.testing.assert_allclose(block.diagonal(), dense.diagonal(), atol=1e-13)
        inverse = [1 / value if value else 0.0 for value in values]
        np.testing.assert_allclose(block.spectral_diagonal(np.array(inverse)), pinv.diagonal(), atol=1e-11)
        np.testing.assert_allclose(np.linalg.eigvalsh(dense), sorted(values), atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 50, 130])
@pytest.mark.parametrize("basis", ["haar", Rotation(1.0), Householder(3)], ids=repr)
def test_dense_matrices_are_symmetric_to_the_bit(size, basis):
    matrix = from_spectra([(LogUniform(1, 5000), size)], basis=basis, seed=0).blocks[0].to_dense()
    np.testing.assert_array_equal(matrix, matrix.T)


def test_storages():
    axis, house = [1.0, 2.0, 3.0], Householder(2)
    for basis, storage, cls in [
        ("axis", None, DiagonalBlock),
        ("axis", "diagonal", DiagonalBlock),
        ("axis", "dense", DenseBlock),
        ("axis", "householder", HouseholderBlock),
        ("haar", None, DenseBlock),
        (Rotation(1), None, DenseBlock),
        (house, None, HouseholderBlock),
        (house, "dense", DenseBlock),
    ]:
        p = from_spectra([axis], basis=basis, storage=storage, seed=0)
        assert type(p.blocks[0]) is cls
    dense, implicit = (from_spectra([axis], basis=house, storage=s, seed=0) for s in ("dense", None))
    np.testing.assert_array_equal(dense.start, implicit.start)
    np.testing.assert_allclose(dense.dense_hessian(), implicit.dense_hessian(), atol=1e-14)


def test_top_rescales_exactly():
    p = from_spectra([[0.1, 0.3], TwoPoint(1, 7), [5.0]], sizes=[None, 3, None], top=[3.3, 0.7, None], seed=0)
    assert p.block_norms.tolist() == [3.3, 0.7, 5.0]
    np.testing.assert_allclose(p.eigenvalues, [1.1, 3.3, 0.1, 0.7, 0.7, 5.0], rtol=1e-15)


def test_sizes_of_laws():
    law = PowerLaw(3, 1)
    p = from_spectra(law, sizes=[2, 3], seed=0)
    assert p == from_spectra([law, law], sizes=[2, 3], seed=0) == from_spectra([(law, 2), (law, 3)], seed=0)
    assert p.block_sizes.tolist() == [2, 3]
    assert from_spectra([law, law], sizes=4, seed=0).size == 8
    assert from_spectra(np.ones((3, 2)), seed=0).block_sizes.tolist() == [2, 2, 2]


def test_a_users_law():
    class Squares(Spectrum):
        def eigenvalues(self, size, rng=None):
            return [k * k for k in range(size)]

    assert from_spectra([(Squares(), 3)], seed=0).eigenvalues.tolist() == [0.0, 1.0, 4.0]


def test_structure():
    p = mixed()
    assert (p.size, p.n_blocks) == (12, 3)
    assert p.offsets.tolist() == [0, 3, 7, 12] and p.offsets.dtype == np.int64
    assert p.block_norms.tolist() == [3.0, 7.0, 10.0]
    assert p.eigenvalues.tolist() == [3, 1, 2, 0, 5, 7, 7, 1e-3, 10, 1, 4, 2]
    v = np.arange(12.0)
    assert [part.tolist() for part in p.split(v)] == [[0, 1, 2], [3, 4, 5, 6], [7, 8, 9, 10, 11]]
    assert all(np.shares_memory(part, v) for part in p.split(v))


def test_the_function():
    w_star = np.arange(12.0)
    p = mixed(minimizer=w_star)
    hessian = p.dense_hessian()
    w = np.random.default_rng(0).standard_normal(12)
    x = w - w_star
    assert p.value(w) == pytest.approx(0.5 * x @ hessian @ x, rel=1e-12)
    np.testing.assert_allclose(p.gradient(w), hessian @ x, atol=1e-11)
    np.testing.assert_allclose(p.hvp(w), hessian @ w, atol=1e-11)
    np.testing.assert_allclose(p.hessian_diagonal(), hessian.diagonal(), atol=1e-12)
    np.testing.assert_allclose(p.from_eigenbasis(p.to_eigenbasis(w)), w, atol=1e-13)
    np.testing.assert_allclose(p.from_eigenbasis(p.eigenvalues * p.to_eigenbasis(w)), hessian @ w, atol=1e-11)
    assert p.value(w_star) == 0 and not p.gradient(w_star).any()
    np.testing.assert_array_equal(p.displacement, p.start - w_star)
    assert p.hvp(range(12)).shape == (12,)


def test_dense_hessian_refuses_above_its_limit():
    p = from_spectra([np.ones(11)], seed=0)
    assert p.dense_hessian(max_size=11).shape == (11, 11)
    with pytest.raises(ValueError, match="the dense Hessian of 11 parameters exceeds max_size = 10"):
        p.dense_hessian(max_size=10)
    with pytest.raises(ValueError, match="5001 parameters exceeds max_size = 5000"):
        from_spectra([np.ones(5001)], seed=0).dense_hessian()


def test_packed():
    p = mixed()
    h = p.packed()
    assert h is p.packed()
    assert h.kinds.tolist() == [0, 1, 2] and h.reflectors.tolist() == [0, 0, 2]
    assert h.data_offsets.tolist() == [0, 9, 13, 13 + 5 + 10]
    dense, diagonal, house = p.blocks
    expected = [dense.matrix.ravel(), diagonal.eigenvalues, house.eigenvalues, house.reflectors.ravel()]
    np.testing.assert_array_equal(h.data, np.concatenate(expected))
    np.testing.assert_array_equal(h.norms, p.block_norms)
    assert (h.kind, h.largest, h.structure) == (-1, 5, None)
    for array in (h.kinds, h.offsets, h.data_offsets, h.reflectors, h.norms, h.data):
        assert array.flags.c_contiguous and not array.flags.writeable
    one = from_spectra([[1, 2, 3]], seed=0)
    assert np.shares_memory(one.packed().data, one.blocks[0].eigenvalues)
    assert (one.packed().kind, one.packed().largest) == (1, 3)
    assert one.packed().structure == from_spectra([[4, 5, 6]], seed=1).packed().structure


# -- blocks as matrices


def test_from_blocks_keeps_a_symmetric_matrix_to_the_bit():
    a = np.random.default_rng(0).standard_normal((5, 5))
    a = a @ a.T
    a = (a + a.T) / 2
    p = from_blocks([a, [2, 3]], start=np.ones(7))
    np.testing.assert_array_equal(p.blocks[0].to_dense(), a)
    assert isinstance(p.blocks[1], DiagonalBlock) and p.blocks[1].eigenvalues.tolist() == [2.0, 3.0]
    np.testing.assert_allclose(p.blocks[0].eigenvalues, np.linalg.eigvalsh(a))
    np.testing.assert_array_equal(p.start, np.ones(7))


def test_from_blocks_removes_rounding():
    v = np.random.default_rng(0).standard_normal((40, 6))
    matrix = v @ v.T  # rank 6; the other eigenvalues are rounding, of either sign
    matrix[0, 1] *= 1 + 1e-13
    block = from_blocks([matrix], seed=0).blocks[0]
    assert (block.eigenvalues == 0).sum() == 34 and (block.eigenvalues >= 0).all()
    assert block.positive.sum() == 6 and not block.full_rank
    np.testing.assert_array_equal(block.matrix, block.matrix.T)


def test_from_blocks_takes_blocks_of_another_problem():
    p = mixed()
    assert from_blocks(p.blocks, start=p.start) == p
    assert from_blocks(p.blocks[::-1], seed=0).block_sizes.tolist() == [5, 4, 3]


def test_from_blocks_takes_a_stack():
    assert from_blocks(np.stack([np.eye(2), 2 * np.eye(2)]), seed=0).block_norms.tolist() == [1.0, 2.0]


# -- start


@pytest.mark.parametrize("basis", BASES.values(), ids=BASES.keys())
@pytest.mark.parametrize("direction", ["isotropic", "sign", "top", "bottom"])
@pytest.mark.parametrize("values", [[4.0, 0.1, 40.0, 2.0], [0.0, 1.0, 0.0, 3.0]], ids=["regular", "singular"])
def test_gradient_norms_are_met(basis, direction, values):
    p = from_spectra([values], basis=basis, gradient_norms=[2.5], direction=direction, seed=1)
    block, g = p.blocks[0], p.gradient(p.start)
    assert np.linalg.norm(g) == pytest.approx(2.5, rel=1e-12)
    # x = H^+ g has no part in the kernel.
    np.testing.assert_allclose(block.project(p.start), p.start, atol=1e-12)
    if direction in ("top", "bottom"):
        eigenvalue = max(values) if direction == "top" else min(value for value in values if value)
        np.testing.assert_allclose(block.matvec(g), eigenvalue * g, atol=1e-11)


def test_sign_direction_on_a_regular_block():
    p = from_spectra([[1, 2, 3, 4]], gradient_norms=2.0, direction="sign", seed=0)
    np.testing.assert_allclose(np.abs(p.gradient(p.start)), 1.0, rtol=1e-15)


def test_sign_direction_orthogonal_to_the_range_is_drawn_again():
    block = np.ones((2, 2))  # half of all sign vectors are orthogonal to its range
    for seed in range(20):
        p = from_blocks([block], gradient_norms=1.0, direction="sign", seed=seed)
        assert np.linalg.norm(p.gradient(p.start)) == pytest.approx(1)


def test_isotropic_direction_is_uniform_in_the_plane():
    angles = []
    for seed in range(2000):
        p = from_spectra([[1, 1]], gradient_norms=1.0, seed=seed)
        angles.append(math.atan2(*p.start) / (2 * math.pi) % 1)
    np.testing.assert_allclose(np.sort(angles), (np.arange(2000) + 0.5) / 2000, atol=0.04)


def test_listed_direction():
    p = from_spectra([[1, 2], [4, 4]], direction=[[3, 4], "top"], gradient_norms=[None, 8.0])
    np.testing.assert_array_equal(p.gradient(p.start), [3, 4, 8, 0])
    p = from_spectra([[1, 2]], direction=[[3, 4]], gradient_norms=[10.0])
    np.testing.assert_allclose(p.gradient(p.start), [6, 8], rtol=1e-15)
    p = from_spectra([[1, 1]], direction=[[3e200, 4e200]], gradient_norms=[10.0])
    np.testing.assert_allclose(p.gradient(p.start), [6, 8], rtol=1e-15)
    p = from_spectra([[0, 2]], direction=[[0, 4]])
    assert p.start.tolist() == [0.0, 2.0]


def test_zero_gradients():
    p = from_spectra([[1, 2], [0, 0]], gradient_norms=[0.0, 0.0], seed=0)
    assert not p.start.any()
    assert not from_spectra([[1, 2]], direction=[[0, 0]]).start.any()


def test_start_with_a_minimiser():
    w_star = [1, 2, 3]
    p = from_spectra([[1, 2, 3]], minimizer=w_star, gradient_norms=1.0, seed=0)
    q = from_spectra([[1, 2, 3]], gradient_norms=1.0, seed=0)
    np.testing.assert_array_equal(p.start, q.start + w_star)
    assert q.displacement is q.start and q.minimizer.tolist() == [0, 0, 0]
    normal = from_spectra([np.ones(50_000)], minimizer=np.full(50_000, 3.0), seed=0).displacement
    assert normal.mean() == pytest.approx(0, abs=0.02) and normal.std() == pytest.approx(1, abs=0.02)


# -- random streams


def test_seeds():
    assert mixed(seed=1) == mixed(seed=1) != mixed(seed=2)
    assert mixed(seed=np.int64(1)) == mixed(seed=1) and mixed(seed=2**200) == mixed(seed=2**200)
    assert from_spectra([[1, 2]]) != from_spectra([[1, 2]])


@pytest.mark.parametrize("size", [3, 70])
@pytest.mark.parametrize("start", [{}, {"gradient_norms": 1.0}, {"gradient_norms": 1.0, "direction": "sign"}])
def test_changing_one_block_leaves_the_draws_of_the_others(size, start):
    law = LogUniform(1, 10, random=True)
    before = from_spectra([(law, size)] * 3, basis="haar", seed=0, **start)
    other = from_spectra(
        [(law, size), [1.0, 2.0], (law, size)], basis=["haar", "axis", "haar"], seed=0, **start
    )
    for b in (0, 2):
        assert before.blocks[b] == other.blocks[b]
        np.testing.assert_array_equal(before.split(before.start)[b], other.split(other.start)[b])
    assert len({block.content_hash for block in before.blocks}) == 3  # independent blocks


def test_purposes_have_their_own_streams():
    listed = from_spectra([[1, 2, 3]], basis="haar", gradient_norms=1.0, seed=0)
    law = from_spectra([(LogUniform(1, 9, random=True), 3)], basis="haar", gradient_norms=1.0, seed=0)
    np.testing.assert_array_equal(listed.blocks[0].eigenvectors, law.blocks[0].eigenvectors)
    np.testing.assert_allclose(listed.gradient(listed.start), law.gradient(law.start), atol=1e-13)


@pytest.mark.parametrize("seed", [0, 5, 2**200])
def test_streams_are_those_of_philox(seed):
    p = from_spectra([[1, 2], [1, 2, 3]], basis="haar", seed=seed)
    for b, (block, start) in enumerate(zip(p.blocks, p.split(p.start), strict=True)):
        generator = np.random.Philox(seed)
        state = generator.state
        for purpose, size in ((1, (block.size, block.size)), (3, block.size)):
            state["state"]["counter"] = np.array([0, 0, b, purpose], dtype=np.uint64)
            generator.state = state
            drawn = np.random.Generator(generator).standard_normal(size)
            if purpose == 1:
                q, r = np.linalg.qr(drawn)
                np.testing.assert_array_equal(block.eigenvectors, q * np.copysign(1.0, r.diagonal()))
            else:
                np.testing.assert_array_equal(start, drawn)


# -- several seeds at once

SEEDS = [3, 0, 2**200, 3, *range(10, 90)]
RANDOM = LogUniform(1, 10, random=True)
ALIKE: dict[str, dict] = {
    "all storages": {"spectra": [[3, 1, 2], [0, 5, 7], [1, 10]], "basis": ["haar", "axis", Householder(2)]},
    "drawn spectra": {"spectra": [RANDOM, LogUniform(1, 9)] * 2, "sizes": [5, 5, 5, 3], "basis": "haar"},
    "small and large": {"spectra": [LogUniform(1, 9)] * 5, "sizes": [63, 64, 70, 63, 1], "basis": "haar"},
    "top": {"spectra": [RANDOM, [1, 2, 3]], "sizes": [3, None], "top": [7, 11], "basis": ["axis", "haar"]},
    "dense axis": {"spectra": [[1, 2], [3, 4]], "basis": ["axis", Rotation(0.3)], "storage": "dense"},
    "gradients": {
        "spectra": [[1, 2, 0], [1, 2, 3], [4, 5]], "basis": ["haar", Rotation(0.3), "axis"],
        "direction": ["isotropic", "sign", "top"], "gradient_norms": [1, 2, 3], "minimizer": np.arange(8.0),
    },
    "start": {"spectra": [[1, 2]] * 3, "basis": "haar", "start": range(6), "noise": [1, 2, 3], "name": "n"},
    "three hundred": {"spectra": [[1, 2]] * 300, "basis": ["haar", "axis", Rotation(0.1)] * 100},
}  # fmt: skip


@pytest.mark.parametrize("what", ALIKE)
def test_each_of_several_seeds_makes_what_it_makes_alone(what):
    together = from_spectra(seed=SEEDS, **ALIKE[what])
    for seed, p in zip(SEEDS, together, strict=True):
        alone = from_spectra(seed=seed, **ALIKE[what])
        assert p == alone and p.name == alone.name
        assert p == pickle.loads(pickle.dumps(p))
        for mine, its in zip(p.packed(), alone.packed(), strict=True):
            np.testing.assert_array_equal(mine, its)
        for block in p.blocks:
            arrays = [value for value in vars(block).values() if isinstance(value, np.ndarray)]
            assert arrays and not any(array.flags.writeable for array in arrays)
            assert all(array.flags.c_contiguous for array in arrays)
            assert all(array.base is None for array in arrays)


def test_sequences_of_seeds():
    numbers = [p.start.tolist() for p in from_spectra([[1, 2]], seed=[4, 2])]
    for seeds in ((4, 2), np.array([4, 2]), range(4, 0, -2)):
        assert [p.start.tolist() for p in from_spectra([[1, 2]], seed=seeds)] == numbers
    assert from_spectra([[1, 2]], seed=[]) == []
    one, other = from_spectra([[1, 2]], seed=[None, None])
    assert one != other


def test_problems_of_several_seeds_share_what_is_not_drawn():
    axis = from_spectra([[1, 2], [3]], basis=[Rotation(0.3), "axis"], seed=range(3))
    assert axis[0].blocks is axis[1].blocks is axis[2].blocks
    assert axis[0].start.tolist() != axis[1].start.tolist()
    assert axis[0].cache is not axis[1].cache
    some = from_spectra([[1, 2], [3, 4]], basis=["haar", "axis"], seed=range(3))
    assert some[0].blocks[1] is some[2].blocks[1] and some[0].blocks[0] != some[2].blocks[0]


def test_a_users_law_may_give_the_same_array_again():
    class Reused(Spectrum):
        values = np.empty(3)

        def eigenvalues(self, size, rng=None):
            self.values[:] = rng.uniform(1.0, 2.0, size)
            return self.values

    for k, p in enumerate(from_spectra([Reused()] * 2, sizes=[3, 3], seed=range(3))):
        assert p == from_spectra([Reused()] * 2, sizes=[3, 3], seed=k)


def test_no_norm_is_minus_zero():
    p = from_spectra([[-0.0, 0.0], [0.0, -0.0], -np.zeros(20)], start=np.ones(24))
    assert not np.signbit(p.block_norms).any()


def test_one_of_many_problems_does_not_keep_all_alive():
    tracemalloc.start()
    try:
        kept = from_spectra([LogUniform(1, 9)] * 4, sizes=[12] * 4, basis="haar", seed=range(4000))[1234]
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept.size == 48
    assert held < peak / 100, f"{held} of {peak} bytes"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"seed": [0, -1]}, "seed must be an integer >= 0 or None, received -1"),
        ({"seed": [0, 1.5]}, "seed must be an integer >= 0 or None, received 1.5"),
        ({"seed": "01"}, "seed must be an integer >= 0 or None, received '01'"),
        ({"seed": [0, 1], "spectra": [[1], [-1]]}, "block 1: eigenvalue -1.0 at position 0"),
        ({"seed": [0, 1], "basis": ["haar", "hear"]}, "block 1: basis must be"),
        ({"seed": [0, 1], "gradient_norms": [1, -1]}, "block 1: gradient norm must be"),
    ],
)
def test_several_seeds_refuse_what_one_refuses(options, told):
    with pytest.raises(ValueError, match=told):
        from_spectra(**{"spectra": [[1, 2], [3]], **options})


# -- noise


def test_noise():
    p = mixed()
    assert p.noise.tolist() == [0.0] * 12 and p.noise.strides == (0,)
    assert p.with_noise(2).noise.tolist() == [2.0] * 12
    assert p.with_noise([1, 2, 3]).noise.tolist() == [1.0] * 3 + [2.0] * 4 + [3.0] * 5
    assert p.with_noise(np.arange(12)).noise.tolist() == list(range(12))
    assert p.with_noise(np.zeros(12)) == p == p.with_noise(0)
    assert p.with_noise([2, 2, 2]) == p.with_noise(2) != p
    assert mixed(noise=[1, 2, 3]) == p.with_noise([1, 2, 3])


# -- frozen, equal, hashable, picklable


def arrays_of(p: BlockQuadratic) -> list[np.ndarray]:
    found = [
        p.start,
        p.minimizer,
        p.noise,
        p.displacement,
        p.eigenvalues,
        p.block_norms,
        p.block_sizes,
        p.offsets,
    ]
    for block in p.blocks:
        found += [value for value in vars(block).values() if isinstance(value, np.ndarray)]
    return found


@pytest.mark.parametrize(
    "make", [lambda p: p, lambda p: pickle.loads(pickle.dumps(p))], ids=["made", "unpickled"]
)
def test_frozen(make):
    p = make(mixed(minimizer=np.ones(12)))
    for array in arrays_of(p):
        with pytest.raises(ValueError, match="read-only"):
            array[..., 0] = 1.0
    with pytest.raises(AttributeError):
        p.start = np.ones(12)
    with pytest.raises(AttributeError):
        p.blocks[0].eigenvalues = np.ones(3)


def test_inputs_stay_the_users():
    start, matrix, noise = np.ones(2), np.eye(2), np.array([1.0, 2.0])
    p = from_blocks([matrix], start=start, minimizer=start, noise=noise)
    before = p.content_hash
    for mine in (start, matrix, noise):
        mine[...] = 7  # still writable, and without effect
    assert pickle.loads(pickle.dumps(p)).content_hash == before
    assert p.start.tolist() == [1, 1] and p.dense_hessian().tolist() == [[1, 0], [0, 1]]


def test_equality_and_hash():
    p, q = mixed(name="a"), mixed(name="b")
    assert p == q and hash(p) == hash(q) and len({p, q}) == 1  # the name is a label
    others = [
        p.with_start(np.zeros(12)),
        p.with_noise(1),
        mixed(minimizer=np.full(12, 1e-300), start=p.start),
        mixed(storage=["dense", "dense", "householder"]),
    ]
    assert len({p, *others}) == 5
    assert p != "p" and p.blocks[0] != p.blocks[1]
    assert p.blocks[0] == q.blocks[0] and hash(p.blocks[0]) == hash(q.blocks[0])
    assert len(p.content_hash) == 64


def test_with():
    p = mixed(name="a", noise=1)
    packed = p.packed()
    p.cache["frozen_preconditioner"] = 1
    q = p.with_start(range(12)).with_name("b")
    assert q.name == "b" and q.start.tolist() == list(range(12)) and q.blocks is p.blocks
    assert q.noise.tolist() == p.noise.tolist()
    assert q.packed() is packed  # follows from the blocks alone
    assert "frozen_preconditioner" not in q.cache  # depends on the start
    assert p.name == "a" and p == mixed(noise=1)


def test_pickle():
    p = mixed(name="a")
    p.cache["x"] = 1
    q = pickle.loads(pickle.dumps(p))
    assert q == p and q.name == "a" and q.cache == {} and q.noise.strides == (0,)
    assert pickle.loads(pickle.dumps(mixed(noise=[1, 2, 3]))) == mixed(noise=[1, 2, 3])


def test_names():
    assert repr(mixed(name="a")) == "<BlockQuadratic 'a': 12 parameters in 3 blocks, norms 3 to 10>"
    assert repr(mixed().blocks[1]) == "<DiagonalBlock of 4, norm 7>"
    html = mixed(name="<b>")._repr_html_()
    assert "householder" in html and "&lt;b&gt;" in html and html.count("<tr>") == 4
    many = from_spectra([[0.0]] * 30, seed=0)._repr_html_()
    assert many.count("<tr>") == 21 and "and 10 more blocks" in many


# -- conversion


@pytest.mark.parametrize("dtype", [np.int8, np.uint64, np.float16, np.float32, np.longdouble, ">f8"])
def test_numbers_are_converted(dtype):
    values = np.array([1, 2, 3], dtype=dtype)
    matrix = np.array([[2, 1, 0], [1, 2, 0], [0, 0, 1]], dtype=dtype)
    p = from_spectra([values], start=values, minimizer=values, noise=values)
    q = from_blocks([matrix], start=values)
    for array in (*arrays_of(p), *arrays_of(q)):
        assert array.dtype in (np.float64, np.int64) and array.dtype.isnative
    assert p.eigenvalues.tolist() == [1, 2, 3] and q.dense_hessian().tolist() == matrix.tolist()


def test_layouts_are_converted():
    big = np.arange(1.0, 13.0)
    matrix = np.asfortranarray(np.diag([1.0, 2, 3]) + 0.5)
    p = from_blocks([matrix, big[::4]], start=big[::2], minimizer=big[::-2])
    assert p.start.tolist() == [1, 3, 5, 7, 9, 11] and p.minimizer.tolist() == [12, 10, 8, 6, 4, 2]
    assert p.blocks[1].eigenvalues.tolist() == [1, 5, 9]
    assert all(array.flags.c_contiguous for array in (p.start, p.minimizer, p.blocks[0].matrix))


# -- large blocks


def peak_memory(make) -> tuple[BlockQuadratic, float]:
    tracemalloc.start()
    p = make()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return p, peak


def test_a_householder_block_of_a_million():
    size = 10**6
    p, peak = peak_memory(
        lambda: from_spectra([(LogUniform(1, 5000), size)], basis=Householder(3), gradient_norms=1.0, seed=0)
    )
    assert peak < 12 * 8 * size  # numbers a parameter, not a matrix
    g = p.gradient(p.start)
    assert np.linalg.norm(g) == pytest.approx(1, rel=1e-12)
    assert p.hessian_diagonal().sum() == pytest.approx(p.blocks[0].trace, rel=1e-12)
    with pytest.raises(ValueError, match="dense block of 1000000 parameters exceeds 20000"):
        p.blocks[0].to_dense()


def test_a_large_diagonal_is_not_copied_needlessly():
    size = 10**6
    values = np.linspace(1, 2, size).copy()  # owner of its memory
    values.flags.writeable = False
    p, peak = peak_memory(lambda: from_spectra([values], seed=0))
    assert p.blocks[0].eigenvalues is values and p.eigenvalues is values
    assert np.shares_memory(p.packed().data, values) and p.displacement is p.start
    assert peak < 2.5 * 8 * size  # start and minimiser


# -- files


@pytest.mark.parametrize("path", ["p.npz", "problem", "p.with.dots"])
def test_save_and_load(tmp_path, path):
    for k, p in enumerate([mixed(name="Ünïcode"), mixed(minimizer=np.ones(12), noise=[1, 2, 3])]):
        target = tmp_path / f"{k}{path}"
        p.save(target)
        q = load(str(target))
        assert q == p and q.content_hash == p.content_hash and q.name == p.name
        assert [type(block) for block in q.blocks] == [type(block) for block in p.blocks]
        assert q.packed().data.tobytes() == p.packed().data.tobytes()
        for array in arrays_of(q):
            assert not array.flags.writeable
    assert len(os.listdir(tmp_path)) == 2  # no temporary file left, no suffix added


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "p.npz"
    mixed().save(target)
    before = target.read_bytes()

    def broken(file, **_):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", broken)
    with pytest.raises(OSError, match="disk full"):
        mixed(seed=9).save(target)
    assert target.read_bytes() == before and os.listdir(tmp_path) == ["p.npz"]


def test_saving_twice_gives_the_same_bytes(tmp_path):
    mixed().save(tmp_path / "a")
    mixed().save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# -- anything goes

block_specs = st.tuples(
    st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1e6)), min_size=1, max_size=6),
    st.sampled_from(["axis", "haar", Rotation(0.5), Householder(1)]),
    st.sampled_from(["isotropic", "top", "bottom", "sign"]),
    st.one_of(st.just(0.0), st.floats(1e-6, 1e6)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(block_specs, min_size=1, max_size=4), st.integers(0, 2**64))
def test_any_problem(specs, seed):
    spectra, bases, directions, norms = zip(*specs, strict=True)
    norms = [norm if max(values) else 0.0 for values, norm in zip(spectra, norms, strict=True)]
    options = {"basis": bases, "direction": directions, "gradient_norms": norms, "seed": seed}
    p = from_spectra(spectra, **options)
    assert p.eigenvalues.tolist() == [value for values in spectra for value in values]
    hessian = p.dense_hessian()
    np.testing.assert_array_equal(hessian, hessian.T)
    for block, g, norm in zip(p.blocks, p.split(p.gradient(p.start)), norms, strict=True):
        # Rounding of H x, relative to ||H|| ||x||, of at most the condition number times ||g||.
        positive = block.eigenvalues[block.positive]
        condition = block.norm / positive.min() if positive.size else 1.0
        assert abs(np.linalg.norm(g) - norm) <= 1e-14 * condition * norm
    assert from_spectra(spectra, **options) == p == pickle.loads(pickle.dumps(p))
    assert from_spectra(spectra, **{**options, "seed": [1, seed]})[1] == p
    assert from_spectra([Listed(values) for values in spectra], **options) == p
