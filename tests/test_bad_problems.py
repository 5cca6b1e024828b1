"""Malformed problems: each is refused with a one-line ValueError that names the block and the value."""

from __future__ import annotations

import zipfile
from typing import Any

import numpy as np
import pytest

from quadlab.bases import Householder, Rotation
from quadlab.cases import case
from quadlab.problem import BlockQuadratic, DiagonalBlock, HouseholderBlock, load
from quadlab.spectra import LogUniform, PowerLaw, Spectrum

NAN, INF = float("nan"), float("inf")
TWO = [[1, 2], [3, 4, 5]]


def spectra(given: Any = TWO, **options: Any) -> Any:
    return lambda: BlockQuadratic.from_spectra(given, **{"seed": 0, **options})


def blocks(*given: Any, **options: Any) -> Any:
    return lambda: BlockQuadratic.from_blocks(list(given), **{"seed": 0, **options})


def method(name: str, *arguments: Any) -> Any:
    return lambda: getattr(BlockQuadratic.from_spectra(TWO, seed=0), name)(*arguments)


class Wrong(Spectrum):
    def eigenvalues(self, size, rng=None):
        return [1.0, -4.0, 2.0]


HUGE = HouseholderBlock(np.array([1.0, 2.0]), np.array([[3.0, 4.0]]))
MATRIX = np.array([[2.0, 1.0], [1.0, 2.0]])

BAD = {
    # eigenvalues
    "negative eigenvalue": (
        spectra([[1], [2, -3]]),
        r"block 1: eigenvalue -3\.0 at position 1 is not finite and >= 0",
    ),
    "nan eigenvalue": (spectra([[NAN, 1]]), r"block 0: eigenvalue nan at position 0"),
    "infinite eigenvalue": (spectra([[1], [1], [1, INF]]), r"block 2: eigenvalue inf at position 1"),
    "complex eigenvalue": (
        spectra([[1 + 2j]]),
        r"block 0: eigenvalues must be real .*\(1\+2j\).* complex128",
    ),
    "complex with zero imaginary part": (spectra([[1 + 0j]]), r"block 0: .*received \[\(1\+0j\)\]"),
    "string eigenvalues": (spectra([["1", "2"]]), r"block 0: .*received \['1', '2'\]"),
    "boolean eigenvalues": (spectra([[True, False]]), r"block 0: .*\[True, False\] of type bool"),
    "missing eigenvalue": (spectra([[1, None]]), r"block 0: .*\[1, None\] of type object"),
    "ragged eigenvalues": (spectra([[[1], [2, 3]]]), r"block 0: .*received \[\[1\], \[2, 3\]\]"),
    "matrix for eigenvalues": (spectra([np.eye(3)]), r"block 0: .*received an array of shape \(3, 3\)"),
    "empty block": (spectra([[1], []]), r"block 1: the block is empty: received no eigenvalues"),
    "no blocks": (spectra([]), r"at least one.* received \[\]"),
    "number for a block": (spectra([1, 2]), r"block 0: .*list of numbers or a Spectrum, received 1"),
    "string for a block": (spectra(["haar"]), r"block 0: .*received 'haar'"),
    "none for a block": (spectra([[1], None]), r"block 1: .*received None"),
    "number for the list": (spectra(5), r"a list with an entry for each block .* received 5"),
    "string for the list": (spectra("haar"), r"a list with an entry for each block .* received 'haar'"),
    # laws and sizes
    "law without a size": (spectra([[1], PowerLaw(1, 1)]), r"block 1: size must be .* None for PowerLaw\("),
    "one law without sizes": (spectra(PowerLaw(1, 1)), r"a list with an entry .* received PowerLaw\("),
    "size zero": (spectra([(PowerLaw(1, 1), 0)]), r"block 0: size must be an integer >= 1, received 0"),
    "negative size": (spectra([PowerLaw(1, 1)], sizes=[-2]), r"block 0: size must be .* received -2"),
    "fractional size": (spectra([PowerLaw(1, 1)], sizes=[2.5]), r"block 0: size must be .* received 2\.5"),
    "size given twice": (spectra([(PowerLaw(1, 1), 2)], sizes=[3]), r"block 0: .* given twice: 2 and 3"),
    "size of a list": (spectra(TWO, sizes=[2, 4]), r"block 1: size 4 was asked of a list of 3 eigenvalues"),
    "user's law, negative": (spectra([(Wrong(), 3)]), r"block 0: eigenvalue -4\.0 at position 1"),
    "top zero": (spectra(top=0), r"block 0: .*largest eigenvalue 2 cannot be rescaled to top 0"),
    "top negative": (spectra(top=[None, -1]), r"block 1: top must be a finite number >= 0, received -1"),
    "top nan": (spectra(top=NAN), r"block 0: top must be .* received nan"),
    "top of a zero block": (
        spectra([[0, 0]], top=2),
        r"block 0: .*largest eigenvalue 0 cannot be rescaled to top 2",
    ),
    # per-block lists
    "spectra and sizes": (
        spectra([PowerLaw(1, 1)] * 2, sizes=[1, 2, 3]),
        r"sizes has 3 entries for 2 blocks",
    ),
    "basis list": (spectra(basis=["haar"]), r"basis has 1 entries for 2 blocks: received \['haar'\]"),
    "top list": (spectra(top=[1, 2, 3]), r"top has 3 entries for 2 blocks: received \[1, 2, 3\]"),
    "gradient_norms list": (spectra(gradient_norms=[1.0]), r"gradient_norms has 1 entries for 2 blocks"),
    "direction list": (
        spectra(gradient_norms=1, direction=["top"] * 3),
        r"direction has 3 entries for 2 blocks",
    ),
    "storage list": (spectra(storage=[]), r"storage has 0 entries for 2 blocks: received \[\]"),
    # bases and storages
    "unknown basis": (spectra(basis=["haar", "random"]), r"block 1: basis must be .* received 'random'"),
    "basis a number": (spectra(basis=0.3), r"block 0: basis must be .* received 0\.3"),
    "basis of another size": (
        spectra(basis=np.eye(3)),
        r"block 0: basis must have shape \(2, 2\).* \(3, 3\)",
    ),
    "basis not orthogonal": (spectra(basis=["axis", 2 * np.eye(3)]), r"block 1: .*not orthogonal: .* = 3"),
    "basis with nan": (
        spectra([[1]], basis=[np.array([[NAN]])]),
        r"block 0: basis is not orthogonal: .* = nan",
    ),
    "unknown storage": (spectra(storage="sparse"), r"block 0: storage 'sparse' cannot hold the basis 'axis'"),
    "diagonal storage of haar": (
        spectra(basis="haar", storage="diagonal"),
        r"block 0: storage 'diagonal' .*'haar'",
    ),
    "householder storage of a rotation": (
        spectra(basis=["axis", Rotation(1)], storage="householder"),
        r"block 1: storage 'householder' cannot hold the basis Rotation",
    ),
    "dense block too large": (
        spectra([[1], (LogUniform(1, 2), 20_001)], basis=["axis", "haar"]),
        r"block 1: a dense block of 20001 parameters exceeds 20000",
    ),
    "dense householder too large": (
        spectra([(LogUniform(1, 2), 30_000)], basis=Householder(2), storage="dense"),
        r"block 0: a dense block of 30000 parameters exceeds 20000",
    ),
    # gradients
    "negative gradient norm": (
        spectra(gradient_norms=[1, -1]),
        r"block 1: gradient norm must be .* received -1",
    ),
    "nan gradient norm": (
        spectra(gradient_norms=[NAN, 1]),
        r"block 0: gradient norm must be .* received nan",
    ),
    "infinite gradient norm": (
        spectra(gradient_norms=INF),
        r"block 0: gradient norm must be .* received inf",
    ),
    "string gradient norm": (
        spectra(gradient_norms=["1", 1]),
        r"block 0: gradient norm must be .* received '1'",
    ),
    "gradient of a zero block": (
        spectra([[1], [0, 0]], gradient_norms=[1, 3]),
        r"block 1: gradient norm 3 is outside the range of a zero block",
    ),
    "gradient outside the range": (
        spectra([[1, 2], [0, 2]], direction=[[1, 1], [3, 4]]),
        r"block 1: gradient \[3\.0, 4\.0\] is outside the range of the block, by 0\.6 of its norm",
    ),
    "gradient outside the range of a matrix": (
        blocks(np.ones((2, 2)), direction=[[1, -1]], gradient_norms=2),
        r"block 0: gradient \[1\.0, -1\.0\] is outside the range of the block, by 1 of its norm",
    ),
    "gradient of another length": (
        spectra(direction=[[1, 2], [1, 2]]),
        r"block 1: gradient must have 3 entries, received \[1, 2\]",
    ),
    "gradient with nan": (
        spectra(direction=[[1, NAN], [1, 1, 1]]),
        r"block 0: gradient entry 1 is nan, not finite",
    ),
    "complex gradient": (spectra(direction=[[1, 1j], [1, 1, 1]]), r"block 0: gradient must be real numbers"),
    "zero gradient with a norm": (
        spectra([[1, 2]], direction=[[0, 0]], gradient_norms=2),
        r"block 0: a zero gradient cannot be rescaled to norm 2",
    ),
    "unknown direction": (
        spectra(gradient_norms=1, direction="up"),
        r"block 0: direction must be one of .* received 'up'",
    ),
    "direction without a norm": (
        spectra(direction="top"),
        r"block 0: direction 'top' needs a gradient norm.* None",
    ),
    "norm missing for one block": (
        spectra(gradient_norms=[1, None]),
        r"block 1: direction 'isotropic' needs a gradient norm, received None",
    ),
    "gradient over a tiny eigenvalue": (
        spectra([[1], [1e-310]], gradient_norms=1),
        r"block 1: the gradient over the smallest positive eigenvalue 1e-310 overflows",
    ),
    "gradient over a tiny rotated eigenvalue": (
        spectra([[1], [1e-310, 1e-310, 1e-310]], basis="haar", gradient_norms=1),
        r"block 1: the gradient over the smallest positive eigenvalue 1e-310 overflows",
    ),
    # start, minimiser, noise, seed, name
    "start and gradients": (
        spectra(start=np.ones(5), gradient_norms=[1, 2]),
        r"start and gradients exclude each other: .* gradient_norms \[1, 2\] and direction 'isotropic'",
    ),
    "start of another length": (
        spectra(start=[1, 2]),
        r"start must have 5 entries, received \[1, 2\] of shape \(2,\)",
    ),
    "start a number": (spectra(start=1), r"start must have 5 entries, received 1 of shape \(\)"),
    "nan in start": (spectra(start=[1, 1, 1, NAN, 1]), r"block 1: start is nan at coordinate 3"),
    "complex start": (spectra(start=np.ones(5) * 1j), r"start must be real numbers"),
    "infinite minimiser": (
        spectra(minimizer=[INF, 1, 1, 1, 1]),
        r"block 0: minimizer is inf at coordinate 0",
    ),
    "minimiser of another length": (spectra(minimizer=np.ones(6)), r"minimizer must have 5 entries"),
    "negative noise": (spectra(noise=-1), r"noise must be a finite number >= 0, received -1"),
    "negative noise of a block": (spectra(noise=[1, -2]), r"block 1: noise -2\.0 at position 1"),
    "nan noise of a coordinate": (spectra(noise=[1, 1, 1, NAN, 1]), r"block 1: noise nan at position 3"),
    "noise of another length": (spectra(noise=[1, 2, 3]), r"noise must be a number, 2 .* or 5 .*\(3,\)"),
    "ragged noise": (spectra(noise=[[1], [1, 2]]), r"noise must be .* received \[\[1\], \[1, 2\]\]"),
    "string noise": (spectra(noise="low"), r"noise must be a finite number >= 0, received 'low'"),
    "negative seed": (spectra(seed=-1), r"seed must be an integer >= 0 or None, received -1"),
    "fractional seed": (spectra(seed=1.5), r"seed must be an integer >= 0 or None, received 1\.5"),
    "name not a string": (spectra(name=3), r"name must be a string, received 3"),
    # matrices
    "asymmetric matrix": (
        blocks([1], [[1, 2], [3, 10]]),
        r"block 1: matrix is not symmetric: entries \(0, 1\) and \(1, 0\) are 2 and 3",
    ),
    "indefinite matrix": (
        blocks([1], [1], [[0, 3], [3, 0]]),
        r"block 2: matrix is not positive semidefinite, smallest eigenvalue -3",
    ),
    "negative definite matrix": (blocks([[-2.0]]), r"block 0: .* smallest eigenvalue -2"),
    "matrix with nan": (blocks([[1, NAN], [NAN, 1]]), r"block 0: matrix entry \(0, 1\) is nan, not finite"),
    "matrix with inf": (blocks([[1, 0], [0, INF]]), r"block 0: matrix entry \(1, 1\) is inf, not finite"),
    "oblong matrix": (blocks(np.ones((2, 3))), r"block 0: matrix must be square, received shape \(2, 3\)"),
    "cube": (blocks(np.ones((2, 2, 2))), r"block 0: matrix must be square, received shape \(2, 2, 2\)"),
    "number for a matrix": (blocks(3.0), r"block 0: matrix must be square, received shape \(\)"),
    "empty matrix": (blocks(np.ones((0, 0))), r"block 0: the block is empty"),
    "empty diagonal": (blocks([1], []), r"block 1: the block is empty"),
    "complex matrix": (blocks(MATRIX * 1j), r"block 0: matrix must be real numbers"),
    "negative diagonal": (blocks([1, -2]), r"block 0: eigenvalue -2\.0 at position 1"),
    "ragged matrix": (blocks([[1, 2], [3]]), r"block 0: .* received \[\[1, 2\], \[3\]\]"),
    "one matrix for the list": (
        lambda: BlockQuadratic.from_blocks(MATRIX),
        r"list of matrices, received one array of shape \(2, 2\)",
    ),
    "no matrices": (blocks(), r"at least one.* received \[\]"),
    "reflector of another length": (blocks([1], HUGE), r"block 1: reflector 0 is no unit vector: .* 25"),
    "block with a bad array": (
        blocks(DiagonalBlock(np.array([1.0, NAN]))),
        r"block 0: eigenvalue nan at position 1",
    ),
    # methods
    "value of another length": (
        method("value", [1, 2]),
        r"a vector of 5 real numbers .* \[1, 2\] of shape \(2,\)",
    ),
    "gradient of a complex point": (
        method("gradient", [1j] * 5),
        r"a vector of 5 real numbers .* received \[",
    ),
    "with_start of nan": (method("with_start", [NAN] * 5), r"block 0: start is nan at coordinate 0"),
    "with_noise of inf": (method("with_noise", INF), r"noise must be .* received inf"),
    "with_name of none": (method("with_name", None), r"name must be a string, received None"),
    "dense_hessian above the limit": (method("dense_hessian", 4), r"5 parameters exceeds max_size = 4"),
    # cases
    "unknown case": (lambda: case("het2"), r"case must be one of het, .* received 'het2'"),
    "case with a bad option": (lambda: case("het", noise=[1, 2]), r"noise must be a number, 3 .* or 9"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD.keys())
def test_refused_with_its_message(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


# Files: what save() wrote, damaged.


def entries(**changes: Any) -> dict[str, Any]:
    return {
        "schema": "quadlab.problem/1",
        "name": "",
        "kinds": [1, 0],
        "start": np.ones(3),
        "minimizer": np.zeros(3),
        "noise": np.zeros(1),
        "block0_eigenvalues": np.ones(1),
        "block1_matrix": MATRIX,
        "block1_eigenvalues": np.array([1.0, 3.0]),
        "block1_eigenvectors": np.array([[1.0, 1.0], [-1.0, 1.0]]) / np.sqrt(2),
    } | changes


FILES = {
    "another schema": ({"schema": "quadlab.problem/2"}, r"its schema is 'quadlab\.problem/2', not"),
    "no schema": ({"schema": None}, r"its schema is 'None', not"),
    "no start": ({"start": None}, r"it lacks the entry 'start'"),
    "no matrix": ({"block1_matrix": None}, r"it lacks the entry 'block1_matrix'"),
    "unknown kind": ({"kinds": [1, 7]}, r"its kinds are \[1, 7\], not a list of \[0, 1, 2\]"),
    "no kinds": ({"kinds": []}, r"its kinds are \[\]"),
    "kinds in a matrix": ({"kinds": [[1, 0]]}, r"its kinds are \[\[1, 0\]\]"),
    "nan in start": ({"start": [1, NAN, 1]}, r"block 1: start is nan at coordinate 1"),
    "short start": ({"start": np.ones(2)}, r"start must have 3 entries"),
    "negative noise": ({"noise": [-1.0]}, r"noise must be .* received .*-1"),
    "negative eigenvalue": ({"block0_eigenvalues": [-1.0]}, r"block 0: eigenvalue -1\.0 at position 0"),
    "float32": ({"block0_eigenvalues": np.ones(1, "f4")}, r"block 0: eigenvalues must be a float64 array"),
    "asymmetric": ({"block1_matrix": [[1.0, 0.0], [2.0, 1.0]]}, r"block 1: .*symmetric to the bit"),
    "shapes": (
        {"block1_matrix": np.eye(3)},
        r"block 1: matrix and eigenvectors .*\(2, 2\), received \(3, 3\)",
    ),
    "basis": ({"block1_eigenvectors": 2 * np.eye(2)}, r"block 1: basis is not orthogonal: .* = 3"),
    "pickled": ({"start": np.array([None] * 3)}, r"Object arrays cannot be loaded"),
}


@pytest.mark.parametrize(("changes", "message"), FILES.values(), ids=FILES.keys())
def test_damaged_entries(tmp_path, changes, message):
    path = tmp_path / "p.npz"
    with path.open("wb") as file:
        np.savez(file, **{key: value for key, value in entries(**changes).items() if value is not None})
    with pytest.raises(ValueError, match=rf"p\.npz is not a problem file: .*{message}") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_the_undamaged_entries_load(tmp_path):
    np.savez(tmp_path / "p.npz", **entries())
    assert load(tmp_path / "p.npz").size == 3


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 not really", b"{}", b"\x93NUMPY"])
def test_files_that_are_no_archive(tmp_path, content):
    path = tmp_path / "p"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"p is not a problem file: it is no \.npz archive"):
        load(path)


def test_truncated_and_foreign_archives(tmp_path):
    path = tmp_path / "p.npz"
    BlockQuadratic.from_spectra([np.ones(1000)], seed=0).save(path)
    whole = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("start.npy").header_offset + 500
    whole[offset] ^= 1  # one bit: the archive's checksum sees it
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"p\.npz is not a problem file: .*CRC"):
        load(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"it is no \.npz archive"):
        load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "text")
    with pytest.raises(ValueError, match="its schema is 'None'"):
        load(path)


def test_a_missing_file_is_an_oserror(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.npz")


def test_there_are_enough():
    assert len(BAD) + len(FILES) >= 100
