r"""The problem: a block-diagonal quadratic with everything about it set directly.

.. math:: f(w) = \tfrac12 (w - w^*)^T H (w - w^*), \qquad H = \mathrm{blkdiag}(H_1, \dots, H_B) \succeq 0,

of :math:`P = \sum_b P_b` parameters, block b of size :math:`P_b`. With the displacement :math:`x = w - w^*`
the gradient is :math:`g = Hx`; a stochastic gradient adds :math:`\sigma_i \xi_i`, where the noise level
:math:`\sigma` and the law of :math:`\xi` belong to the problem (`quadlab.noise`).

**Blocks.** Each is :math:`H_b = Q\,\mathrm{diag}(\lambda)\,Q^T` in one of three storages with one interface:

- `DenseBlock`: the matrix, its eigenvalues and eigenvectors;
- `DiagonalBlock`: the diagonal;
- `HouseholderBlock`: the eigenvalues and k reflectors, :math:`Q = R_1 \cdots R_k`, in O(k P_b) memory. Few
  reflectors are not Haar.

The eigenvalues of a block built from a spectrum are the given ones, to the bit; they are never computed back
from the matrix. Dense matrices are symmetric to the bit.

**Start.** Either :math:`w_0` is given, or the starting gradient of each block is set by its norm and a
direction law, and :math:`x_b = H_b^+ g_b`; else :math:`w_0 = w^* + N(0, I)`. On a singular block a random
direction is projected on the range of :math:`H_b`, then rescaled; a listed gradient outside the range is an
error.

**Rank.** An eigenvalue of a block counts as positive if it exceeds `RANK_TOLERANCE` times the block's
largest. All questions of range and pseudo-inverse use this one rule.

**Random streams.** One Philox generator, keyed by the seed, has a stream of its own for every block and
purpose (spectrum, basis, direction, start): the block and the purpose are the upper words of its counter, so
streams never overlap, and changing one block, or how it is used, leaves all other draws as they were.
``seed=None`` takes fresh entropy.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from html import escape
from itertools import accumulate, pairwise
from typing import Any, ClassVar, NamedTuple, TypeGuard, overload

import numpy as np

from quadlab._arrays import Content, FloatArray, first_bad, frozen, real_array, real_number, shown
from quadlab._files import read_npz, write_npz
from quadlab.bases import (
    Householder,
    as_basis,
    basis_matrix,
    haar_from_gaussian,
    one_blas_thread,
    reflect,
    unit_reflectors,
)
from quadlab.kernels.codes import FOURFOLD, SYMMETRIC
from quadlab.noise import NoiseStream, check_law
from quadlab.spectra import Listed, Spectrum, as_spectrum, check_eigenvalues, fixed_eigenvalues

__all__ = [
    "RANK_TOLERANCE",
    "Block",
    "BlockQuadratic",
    "DenseBlock",
    "DiagonalBlock",
    "HouseholderBlock",
    "PackedHessian",
    "load",
]

#: An eigenvalue counts as positive above this fraction of its block's largest.
RANK_TOLERANCE = 1e-13
#: A matrix whose asymmetry exceeds this fraction of its largest entry is refused; less is averaged out.
SYMMETRY_TOLERANCE = 1e-10
#: A matrix with an eigenvalue below minus this fraction of its norm is refused as indefinite.
DEFINITE_TOLERANCE = 1e-10
#: A listed gradient with more than this fraction of its norm outside the range of its block is refused.
RANGE_TOLERANCE = 1e-9
#: The largest block that is written out as a matrix (3.2 GB).
MAX_DENSE_BLOCK = 20_000
#: Entries of the bases that are made in one call.
STACK_ENTRIES = 1 << 16

SCHEMA = "quadlab.problem/1"
DIRECTIONS = ("isotropic", "top", "bottom", "sign")
_SPECTRUM, _BASIS, _DIRECTION, _START = range(4)  # purposes of the random streams


class Block(Content):
    r"""One block of the Hessian, :math:`H_b = Q\,diag(\lambda)\,Q^T`; the interface of the three storages.

    The constructors of the storages take arrays as they are and make them read-only;
    `BlockQuadratic.from_spectra` and `BlockQuadratic.from_blocks` check what they are given.
    """

    kind: ClassVar[int]
    storage: ClassVar[str]
    eigenvalues: FloatArray

    def __post_init__(self) -> None:
        for name in _field_names(type(self)):
            getattr(self, name).flags.writeable = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.size}, norm {self.norm:.6g}>"

    @property
    def size(self) -> int:
        """Number of parameters P_b."""
        return self.eigenvalues.size

    @cached_property
    def norm(self) -> float:
        """Spectral norm ||H_b||_2, the largest eigenvalue."""
        # Of a few numbers a list tells it sooner.
        values = self.eigenvalues
        return (max(values.tolist()) if values.size <= 16 else float(values.max())) or 0.0  # not -0

    @property
    def trace(self) -> float:
        """Sum of the eigenvalues."""
        return float(self.eigenvalues.sum())

    @property
    def positive(self) -> np.ndarray:
        """Which eigenvalues exceed `RANK_TOLERANCE` times the largest."""
        return self.eigenvalues > RANK_TOLERANCE * self.norm

    @cached_property
    def full_rank(self) -> bool:
        """Whether all eigenvalues are positive by that rule."""
        return bool(self.eigenvalues.min() > RANK_TOLERANCE * self.norm)

    def to_eigenbasis(self, v: FloatArray) -> FloatArray:
        """Return the coordinates Q^T v."""
        raise NotImplementedError

    def from_eigenbasis(self, c: FloatArray) -> FloatArray:
        """Return the vector Q c."""
        raise NotImplementedError

    def matvec(self, v: FloatArray) -> FloatArray:
        """Return H_b v."""
        return self.from_eigenbasis(self.eigenvalues * self.to_eigenbasis(v))

    def pinv_matvec(self, g: FloatArray) -> FloatArray:
        """Return H_b^+ g."""
        c = self.to_eigenbasis(g)
        if self.full_rank:
            return self.from_eigenbasis(c / self.eigenvalues)
        inverse = np.divide(c, self.eigenvalues, out=np.zeros(self.size), where=self.positive)
        return self.from_eigenbasis(inverse)

    def project(self, v: FloatArray) -> FloatArray:
        """Return the part of v in the range of H_b."""
        return v if self.full_rank else self.from_eigenbasis(self.positive * self.to_eigenbasis(v))

    def diagonal(self) -> FloatArray:
        """Return the diagonal of H_b."""
        return self.spectral_diagonal(self.eigenvalues)

    def spectral_diagonal(self, values: FloatArray) -> FloatArray:
        """Return the diagonal of Q diag(values) Q^T, for values >= 0 such as those of H_b^+."""
        raise NotImplementedError

    def to_dense(self) -> FloatArray:
        """Return H_b as a matrix (ValueError above `MAX_DENSE_BLOCK` parameters)."""
        raise NotImplementedError

    def packed(self) -> FloatArray:
        """Return the numbers the kernels need, flat: see `PackedHessian`."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise ValueError if the arrays do not fit together; for blocks that come from a file or a user."""
        for name, array in zip(self.__dataclass_fields__, self._content(), strict=True):  # type: ignore[attr-defined]
            if not isinstance(array, np.ndarray) or array.dtype != np.float64:
                raise ValueError(f"{name} must be a float64 array, received {shown(array)}")
        check_eigenvalues(self.eigenvalues)


@dataclass(frozen=True, eq=False, repr=False)
class DenseBlock(Block):
    """A block stored as a matrix.

    Parameters
    ----------
    matrix : ndarray of shape (P_b, P_b)
        Symmetric to the bit.
    eigenvalues : ndarray of shape (P_b,)
        In the order of the eigenvectors.
    eigenvectors : ndarray of shape (P_b, P_b)
        Orthogonal, in columns.
    """

    kind = 0
    storage = "dense"

    matrix: FloatArray
    eigenvalues: FloatArray
    eigenvectors: FloatArray

    @classmethod
    def from_eigen(cls, eigenvalues: FloatArray, eigenvectors: FloatArray) -> DenseBlock:
        """Return the block of the given eigenvalues and orthogonal eigenvectors (columns)."""
        return cls(_matrices(eigenvalues, eigenvectors), eigenvalues, eigenvectors)

    @classmethod
    def from_matrix(cls, matrix: FloatArray) -> DenseBlock:
        """Return the block of a symmetric positive semidefinite matrix, decomposed once by LAPACK.

        Raises
        ------
        ValueError
            If the matrix is not square, finite, symmetric and positive semidefinite, up to rounding.
        """
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"matrix must be square, received shape {matrix.shape}")
        size = len(matrix)
        if size == 0:
            raise ValueError("the block is empty: received a matrix of shape (0, 0)")
        _check_dense_size(size)
        if not np.isfinite(matrix).all():
            i, j = divmod(first_bad(np.isfinite(matrix)), size)
            raise ValueError(f"matrix entry ({i}, {j}) is {float(matrix[i, j])}, not finite")
        asymmetry = np.abs(matrix - matrix.T)
        if asymmetry.max() > SYMMETRY_TOLERANCE * np.abs(matrix).max():
            i, j = divmod(int(asymmetry.argmax()), size)
            raise ValueError(
                f"matrix is not symmetric: entries ({i}, {j}) and ({j}, {i}) are "
                f"{float(matrix[i, j]):.6g} and {float(matrix[j, i]):.6g}"
            )
        matrix = (matrix + matrix.T) / 2
        with one_blas_thread(size):
            eigenvalues, eigenvectors = np.linalg.eigh(matrix)
        norm = max(eigenvalues[-1], -eigenvalues[0])
        if eigenvalues[0] < -DEFINITE_TOLERANCE * norm:
            raise ValueError(
                f"matrix is not positive semidefinite, smallest eigenvalue {float(eigenvalues[0]):.6g}"
            )
        # LAPACK finds an eigenvalue to size * eps of the norm: what lies below is zero.
        eigenvalues[eigenvalues <= max(RANK_TOLERANCE, size * np.finfo(float).eps) * norm] = 0.0
        return cls(matrix, eigenvalues, eigenvectors)

    def to_eigenbasis(self, v: FloatArray) -> FloatArray:
        """Return the coordinates Q^T v."""
        return self.eigenvectors.T @ v

    def from_eigenbasis(self, c: FloatArray) -> FloatArray:
        """Return the vector Q c."""
        return self.eigenvectors @ c

    def matvec(self, v: FloatArray) -> FloatArray:
        """Return H_b v."""
        return self.matrix @ v

    def diagonal(self) -> FloatArray:
        """Return the diagonal of H_b."""
        return self.matrix.diagonal()

    def spectral_diagonal(self, values: FloatArray) -> FloatArray:
        """Return the diagonal of Q diag(values) Q^T."""
        return np.square(self.eigenvectors) @ values

    def to_dense(self) -> FloatArray:
        """Return the matrix itself (read-only)."""
        return self.matrix

    def packed(self) -> FloatArray:
        """Return the matrix, row-major."""
        return self.matrix.ravel()

    def check(self) -> None:
        """Raise ValueError if the arrays do not fit together."""
        super().check()
        square = (self.size, self.size)
        if self.matrix.shape != square or self.eigenvectors.shape != square:
            raise ValueError(
                f"matrix and eigenvectors must have shape {square}, "
                f"received {self.matrix.shape} and {self.eigenvectors.shape}"
            )
        if not (np.isfinite(self.matrix).all() and (self.matrix == self.matrix.T).all()):
            raise ValueError("matrix is not finite and symmetric to the bit")
        as_basis(self.eigenvectors, self.size)


@dataclass(frozen=True, eq=False, repr=False)
class DiagonalBlock(Block):
    """A diagonal block.

    Parameters
    ----------
    eigenvalues : ndarray of shape (P_b,)
        The diagonal.
    """

    kind = 1
    storage = "diagonal"

    eigenvalues: FloatArray

    def to_eigenbasis(self, v: FloatArray) -> FloatArray:
        """Return v: the eigenbasis is the axes."""
        return v

    def from_eigenbasis(self, c: FloatArray) -> FloatArray:
        """Return c: the eigenbasis is the axes."""
        return c

    def spectral_diagonal(self, values: FloatArray) -> FloatArray:
        """Return the values."""
        return values

    def to_dense(self) -> FloatArray:
        """Return H_b as a matrix (ValueError above `MAX_DENSE_BLOCK` parameters)."""
        _check_dense_size(self.size)
        return np.diag(self.eigenvalues)

    def packed(self) -> FloatArray:
        """Return the diagonal."""
        return self.eigenvalues


@dataclass(frozen=True, eq=False, repr=False)
class HouseholderBlock(Block):
    r"""A block with the eigenbasis :math:`Q = R_1 \cdots R_k` of reflections :math:`R_r = I - 2 u_r u_r^T`.

    Parameters
    ----------
    eigenvalues : ndarray of shape (P_b,)
    reflectors : ndarray of shape (k, P_b)
        The unit vectors u_r as rows; k = 0 is axis-aligned.
    """

    kind = 2
    storage = "householder"

    eigenvalues: FloatArray
    reflectors: FloatArray

    def to_eigenbasis(self, v: FloatArray) -> FloatArray:
        """Return the coordinates Q^T v = R_k ... R_1 v."""
        return reflect(self.reflectors, v)

    def from_eigenbasis(self, c: FloatArray) -> FloatArray:
        """Return the vector Q c = R_1 ... R_k c."""
        return reflect(self.reflectors[::-1], c)

    def spectral_diagonal(self, values: FloatArray) -> FloatArray:
        """Return the diagonal of Q diag(values) Q^T in O(k P_b) memory."""
        # Q = I - W U, U the reflectors: multiplying by R_r from the right adds the column 2 Q u_r to W.
        u = self.reflectors
        w = np.empty((self.size, len(u)))
        for r, row in enumerate(u):
            w[:, r] = 2.0 * (row - w[:, :r] @ (u[:r] @ row))
        cross = np.einsum("ir,ri->i", w, u)
        weighted = (u * values) @ u.T
        return np.maximum(values - 2.0 * cross * values + np.einsum("ir,ir->i", w @ weighted, w), 0.0)

    def to_dense(self) -> FloatArray:
        """Return H_b as a matrix, symmetric to the bit (ValueError above `MAX_DENSE_BLOCK` parameters)."""
        _check_dense_size(self.size)
        return DenseBlock.from_eigen(self.eigenvalues, self.from_eigenbasis(np.eye(self.size))).matrix

    def packed(self) -> FloatArray:
        """Return the eigenvalues, then the reflectors row by row."""
        return np.concatenate([self.eigenvalues, self.reflectors.ravel()])

    def check(self) -> None:
        """Raise ValueError if the arrays do not fit together."""
        super().check()
        if self.reflectors.ndim != 2 or self.reflectors.shape[1] != self.size:
            raise ValueError(f"reflectors must have shape (k, {self.size}), received {self.reflectors.shape}")
        squares = np.einsum("ri,ri->r", self.reflectors, self.reflectors)
        good = np.abs(squares - 1.0) <= 1e-10
        if not good.all():
            bad = first_bad(good)
            raise ValueError(f"reflector {bad} is no unit vector: its squared norm is {float(squares[bad])}")


_STORAGES: dict[int, type[Block]] = {cls.kind: cls for cls in (DenseBlock, DiagonalBlock, HouseholderBlock)}


class PackedHessian(NamedTuple):
    """The Hessian as the kernels read it; all arrays read-only.

    Attributes
    ----------
    kinds : ndarray of shape (B,), int64
        0 dense, 1 diagonal, 2 Householder; 3 and 4 dense, half of it stored.
    offsets : ndarray of shape (B + 1,), int64
        Block b holds the coordinates offsets[b] to offsets[b+1].
    data_offsets : ndarray of shape (B + 1,), int64
        Block b holds the entries data_offsets[b] to data_offsets[b+1] of `data`.
    reflectors : ndarray of shape (B,), int64
        Number of reflectors k; 0 unless Householder.
    kind : int
        The storage of all blocks, -1 if they differ.
    largest : int
        Size of the largest block.
    structure : bytes or None
        Equal for problems whose runs can share lanes; None with reflectors, whose runs go alone.
    norms : ndarray of shape (B,), float64
        ||H_b||_2.
    data : ndarray, float64
        Dense: the matrix, row-major; half of it, see `quadlab.kernels.dense` (kind 4: that of four blocks,
        with the first of them); diagonal: the diagonal; Householder: the eigenvalues, then the reflectors row
        by row.
    """

    kinds: np.ndarray
    offsets: np.ndarray
    data_offsets: np.ndarray
    reflectors: np.ndarray
    kind: int
    largest: int
    structure: bytes | None
    norms: FloatArray
    data: FloatArray


@lru_cache(maxsize=64)
def _layout(
    storages: tuple[int, ...], sizes: tuple[int, ...], lengths: tuple[int, ...], reflectors: tuple[int, ...]
) -> dict[str, Any]:
    """Return all but the numbers of a `PackedHessian`, given what its blocks are and how much each holds."""
    kinds, offsets = _fixed(storages), _fixed([0, *accumulate(sizes)])
    return {
        "kinds": kinds,
        "offsets": offsets,
        "data_offsets": _fixed([0, *accumulate(lengths)]),
        "reflectors": _fixed(reflectors),
        "kind": storages[0] if len(set(storages)) == 1 else -1,
        "largest": max(sizes),
        "structure": None if any(reflectors) else kinds.tobytes() + offsets.tobytes(),
    }


@dataclass(frozen=True, eq=False, repr=False)
class BlockQuadratic(Content):
    r"""A block-diagonal quadratic :math:`f(w) = \frac12 (w - w^*)^T H (w - w^*)` with its start and noise.

    Made by `from_spectra`, `from_blocks`, `quadlab.problem.load` or `quadlab.cases.case`, which check
    everything; the constructor itself takes its arguments as they are. Equality and hash go by content, bit
    for bit, without the name.

    Attributes
    ----------
    blocks : tuple of Block
    start : ndarray of shape (P,)
        :math:`w_0`.
    minimizer : ndarray of shape (P,)
        :math:`w^*`.
    noise : ndarray of shape (P,)
        Standard deviations :math:`\sigma_i \ge 0` of the gradient noise (a zero-strided view of one number
        where all are equal).
    name : str
        A label.
    noise_law : str
        The law of the noise, see `quadlab.noise`; "gaussian" where there is none.

    Examples
    --------
    >>> spectra = [[1, 2, 3], [99, 100, 101]]
    >>> p = BlockQuadratic.from_spectra(spectra, basis="haar", gradient_norms=[1, 10], seed=0)
    >>> [round(float(np.linalg.norm(g)), 9) for g in p.split(p.gradient(p.start))]
    [1.0, 10.0]
    """

    blocks: tuple[Block, ...]
    start: FloatArray
    minimizer: FloatArray
    noise: FloatArray
    name: str = ""
    noise_law: str = "gaussian"
    #: What other modules have computed from this problem; no part of equality, hash or pickle.
    cache: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        frozen(self.start, self.minimizer, self.noise)

    # -- constructors

    @overload
    @classmethod
    def from_spectra(
        cls,
        spectra: Any,
        *,
        sizes: Any = None,
        basis: Any = "axis",
        top: Any = None,
        storage: Any = None,
        gradient_norms: Any = None,
        direction: Any = "isotropic",
        start: Any = None,
        minimizer: Any = None,
        noise: Any = None,
        seed: int | None = None,
        name: str = "",
    ) -> BlockQuadratic: ...
    @overload
    @classmethod
    def from_spectra(
        cls,
        spectra: Any,
        *,
        sizes: Any = None,
        basis: Any = "axis",
        top: Any = None,
        storage: Any = None,
        gradient_norms: Any = None,
        direction: Any = "isotropic",
        start: Any = None,
        minimizer: Any = None,
        noise: Any = None,
        seed: Sequence[int],
        name: str = "",
    ) -> list[BlockQuadratic]: ...
    @classmethod
    def from_spectra(
        cls,
        spectra: Any,
        *,
        sizes: Any = None,
        basis: Any = "axis",
        top: Any = None,
        storage: Any = None,
        gradient_norms: Any = None,
        direction: Any = "isotropic",
        start: Any = None,
        minimizer: Any = None,
        noise: Any = None,
        seed: int | Sequence[int] | None = None,
        name: str = "",
    ) -> BlockQuadratic | list[BlockQuadratic]:
        r"""Return the problem with the given eigenvalues, eigenbases and start.

        Options "per block" take one value for all blocks or a list of one a block.

        Parameters
        ----------
        spectra : list
            Per block: a list of eigenvalues >= 0, a `Spectrum` (its size from `sizes`), or a pair
            (Spectrum, size). One Spectrum with a list of sizes serves all blocks.
        sizes : int or None, per block
            P_b >= 1 of the blocks given by a law.
        basis : "axis", "haar", Rotation, Householder or an orthogonal matrix, per block
            The eigenbasis, see `quadlab.bases`; eigenvalue k belongs to column k. (A nested list is read as
            one entry a block: a matrix for all blocks must be an array.)
        top : float > 0 or None, per block
            Multiplies the spectrum so that this is its largest eigenvalue.
        storage : None, "dense", "diagonal" or "householder", per block
            None: diagonal for "axis", Householder for `Householder`, else dense. Any basis may be stored
            dense, and "axis" in all ways.
        gradient_norms : float >= 0 or None, per block
            :math:`\|g_b(w_0)\|_2`.
        direction : "isotropic", "top", "bottom", "sign" or a vector of P_b entries, per block
            The direction of :math:`g_b(w_0)`: uniform on the sphere; the eigenvector of the largest, or of
            the smallest positive, eigenvalue; random signs; or listed (:math:`g_b` itself where the block has
            no gradient norm). On a singular block random directions are projected on the range.
        start : array of shape (P,), optional
            :math:`w_0`, instead of gradients. Without either, :math:`w_0 = w^* + N(0, I)`.
        minimizer : array of shape (P,), optional
            :math:`w^*`, default 0.
        noise : float, or array of shape (B,) or (P,), optional
            Standard deviation of Gaussian gradient noise: one, one a block, or one a coordinate; default 0.
            `with_noise` sets other laws.
        seed : int >= 0 or sequence of int, optional
            Each block has random streams of its own for spectrum, basis, direction and start; None takes
            fresh entropy. With several seeds: the problem of each, as it is alone, made together in a
            fraction of the time.
        name : str, optional
            A label.

        Returns
        -------
        BlockQuadratic
            Of a sequence of seeds, a list.

        Raises
        ------
        ValueError
            On any malformed input, naming the block and the value.

        Examples
        --------
        >>> from quadlab.spectra import PowerLaw
        >>> BlockQuadratic.from_spectra([[1, 2], (PowerLaw(1, 1), 3)], top=[None, 100], seed=0)
        <BlockQuadratic: 5 parameters in 2 blocks, norms 2 to 100>
        >>> problems = BlockQuadratic.from_spectra([[1, 2]], basis="haar", seed=range(100))
        >>> problems[7] == BlockQuadratic.from_spectra([[1, 2]], basis="haar", seed=7)
        True
        """
        count = _length(spectra, sizes)
        laws = zip(
            _each(spectra, count, "spectra"),
            _each(sizes, count, "sizes"),
            _each(top, count, "top"),
            strict=True,
        )
        bases = _each(basis, count, "basis")
        storages = _each(storage, count, "storage")
        several = is_several(seed)
        mover: list[np.random.Generator] = []
        seeds: Any = seed if several else [seed]
        streams = [_Streams(one, mover) for one in seeds]
        if not streams:
            return []
        try:
            eigenvalues = []
            for b, law in enumerate(laws):
                eigenvalues.append(_eigenvalues(*law, streams, b))
            made = _small_haar_blocks(eigenvalues, bases, storages, streams)
            blocks = []
            for b, values in enumerate(eigenvalues):
                blocks.append(made.get(b) or _blocks(values, bases[b], storages[b], streams, b))
        except ValueError as error:
            raise ValueError(f"block {b}: {error}") from None
        if all([of_each[0] is of_each[-1] for of_each in blocks]):
            # One problem, or several of which no block is drawn: they share H.
            each = [tuple([of_each[0] for of_each in blocks])] * len(streams)
        else:
            each = list(zip(*blocks, strict=True))
        problems = cls._assemble(each, streams, start, minimizer, gradient_norms, direction, noise, name)
        return problems if several else problems[0]

    @classmethod
    def from_blocks(
        cls,
        matrices: Any,
        *,
        start: Any = None,
        minimizer: Any = None,
        gradient_norms: Any = None,
        direction: Any = "isotropic",
        noise: Any = None,
        seed: int | None = None,
        name: str = "",
    ) -> BlockQuadratic:
        """Return the problem with the given matrices as blocks.

        Parameters
        ----------
        matrices : list
            Per block: a symmetric positive semidefinite matrix, the diagonal of one as a 1-D array, or a
            `Block` of another problem. An asymmetry or a negative eigenvalue of 1e-10 of the norm is taken as
            rounding and removed.
        start, minimizer, gradient_norms, direction, noise, seed, name
            As in `from_spectra`, with one seed.

        Returns
        -------
        BlockQuadratic

        Raises
        ------
        ValueError
            On any malformed input, naming the block and the value.

        Examples
        --------
        >>> p = BlockQuadratic.from_blocks([[[2, 1], [1, 2]], [5.0]], start=[1, 0, 1])
        >>> p.gradient(p.start).tolist()
        [2.0, 1.0, 5.0]
        """
        if isinstance(matrices, np.ndarray) and matrices.ndim < 3:
            raise ValueError(
                f"blocks must be a list of matrices, received one array of shape {matrices.shape}"
            )
        blocks: list[Block] = []
        for b, given in enumerate(_each(matrices, _length(matrices), "blocks")):
            try:
                if isinstance(given, Block):
                    given.check()
                    blocks.append(given)
                    continue
                matrix = real_array(given, "matrix")
                if matrix.ndim == 1:
                    blocks.append(DiagonalBlock(check_eigenvalues(matrix)))
                else:
                    blocks.append(DenseBlock.from_matrix(matrix))
            except ValueError as error:
                raise ValueError(f"block {b}: {error}") from None
        streams = [_Streams(seed)]
        return cls._assemble(
            [tuple(blocks)], streams, start, minimizer, gradient_norms, direction, noise, name
        )[0]

    @classmethod
    def _assemble(
        cls,
        blocks: list[tuple[Block, ...]],
        streams: list[_Streams],
        start: Any,
        minimizer: Any,
        gradient_norms: Any,
        direction: Any,
        noise: Any,
        name: str,
    ) -> list[BlockQuadratic]:
        """Return the problems whose blocks, of equal sizes in all, and streams are listed."""
        sizes = [block.size for block in blocks[0]]
        size = sum(sizes)
        w_star = np.zeros(size) if minimizer is None else _vector(minimizer, "minimizer", sizes)
        by_gradient = gradient_norms is not None or not (
            isinstance(direction, str) and direction == "isotropic"
        )
        if start is not None:
            if by_gradient:
                raise ValueError(
                    "start and gradients exclude each other: received a start, "
                    f"gradient_norms {shown(gradient_norms)} and direction {shown(direction)}"
                )
            starts = [_vector(start, "start", sizes)] * len(blocks)
        else:
            starts = []
            for own, streams_of_own in zip(blocks, streams, strict=True):
                if by_gradient:
                    x = _displacements(own, gradient_norms, direction, streams_of_own)
                else:
                    x = np.empty(size)
                    for b, part in enumerate(_parts(x, sizes)):
                        streams_of_own(b, _START).standard_normal(out=part)
                starts.append(x if minimizer is None else w_star + x)
        sigma, label = _noise(noise, sizes), _label(name)
        return [cls(own, w_0, w_star, sigma, label) for own, w_0 in zip(blocks, starts, strict=True)]

    # -- structure

    @property
    def size(self) -> int:
        """Number of parameters P."""
        return self.start.size

    @property
    def n_blocks(self) -> int:
        """Number of blocks B."""
        return len(self.blocks)

    @cached_property
    def block_sizes(self) -> np.ndarray:
        """Sizes P_b, int64, shape (B,)."""
        return _fixed([block.size for block in self.blocks])

    @cached_property
    def offsets(self) -> np.ndarray:
        """Block b holds the coordinates offsets[b] to offsets[b+1]; int64, shape (B + 1,)."""
        return _fixed([0, *accumulate(block.size for block in self.blocks)])

    @cached_property
    def block_norms(self) -> FloatArray:
        """Spectral norms ||H_b||_2, shape (B,)."""
        return _fixed([block.norm for block in self.blocks], np.float64)

    @cached_property
    def eigenvalues(self) -> FloatArray:
        """The eigenvalues of all blocks, block after block, shape (P,)."""
        return self._joined([block.eigenvalues for block in self.blocks])

    @cached_property
    def displacement(self) -> FloatArray:
        """The start relative to the minimiser, x_0 = w_0 - w*, shape (P,)."""
        if not self.minimizer.any():
            return self.start
        x = self.start - self.minimizer
        frozen(x)
        return x

    @staticmethod
    def _joined(parts: Sequence[FloatArray]) -> FloatArray:
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        frozen(whole)
        return whole

    def split(self, v: FloatArray) -> list[FloatArray]:
        """Return the parts of a vector of P entries that belong to the blocks, as views."""
        return _parts(v, [block.size for block in self.blocks])

    def _by_block(self, method: str, v: Any) -> FloatArray:
        parts = self.split(self._argument(v))
        return np.concatenate(
            [getattr(block, method)(part) for block, part in zip(self.blocks, parts, strict=True)]
        )

    def _argument(self, v: Any) -> FloatArray:
        array = np.asarray(v)
        if array.shape != (self.size,) or array.dtype.kind not in "iuf":
            raise ValueError(
                f"a vector of {self.size} real numbers is needed, received {shown(v)} of shape {array.shape}"
            )
        return np.asarray(array, dtype=np.float64)

    # -- the function

    def value(self, w: Any) -> float:
        """Return f(w) = 1/2 (w - w*)^T H (w - w*), for w of shape (P,)."""
        x = self._argument(w) - self.minimizer
        return 0.5 * float(x @ self.hvp(x))

    def gradient(self, w: Any) -> FloatArray:
        """Return g = H (w - w*), shape (P,)."""
        return self.hvp(self._argument(w) - self.minimizer)

    def hvp(self, v: Any) -> FloatArray:
        """Return H v, shape (P,)."""
        return self._by_block("matvec", v)

    def to_eigenbasis(self, v: Any) -> FloatArray:
        """Return the coordinates Q^T v in the eigenbasis, in the order of `eigenvalues`."""
        return self._by_block("to_eigenbasis", v)

    def from_eigenbasis(self, c: Any) -> FloatArray:
        """Return the vector Q c of the coordinates c in the eigenbasis."""
        return self._by_block("from_eigenbasis", c)

    def hessian_diagonal(self) -> FloatArray:
        """Return the diagonal of H, shape (P,)."""
        return np.concatenate([block.diagonal() for block in self.blocks])

    def dense_hessian(self, max_size: int = 5000) -> FloatArray:
        """Return H as a matrix of shape (P, P).

        Raises
        ------
        ValueError
            If P exceeds `max_size`.
        """
        if self.size > max_size:
            raise ValueError(f"the dense Hessian of {self.size} parameters exceeds max_size = {max_size}")
        hessian = np.zeros((self.size, self.size))
        for block, low in zip(self.blocks, self.offsets.tolist(), strict=False):
            hessian[low : low + block.size, low : low + block.size] = block.to_dense()
        return hessian

    # -- copies with another start, name or noise

    def _with(self, **changes: Any) -> BlockQuadratic:
        names = ("start", "minimizer", "noise", "name", "noise_law")
        kept = {name: getattr(self, name) for name in names}
        # These follow from the blocks alone.
        shared = ("packed", "packed_symmetric", "curvature")
        cache = {key: value for key, value in self.cache.items() if key in shared}
        return BlockQuadratic(self.blocks, **{**kept, **changes}, cache=cache)

    def with_start(self, w: Any) -> BlockQuadratic:
        """Return the same problem started at w, shape (P,)."""
        return self._with(start=_vector(w, "start", self.block_sizes.tolist()))

    def with_noise(self, noise: Any, law: str = "gaussian", *, batch: int = 1) -> BlockQuadratic:
        r"""Return the same problem with another gradient noise.

        Parameters
        ----------
        noise : float, or array of shape (B,) or (P,)
            Standard deviation of the noise of one sample: one, one a block, or one a coordinate.
        law : "gaussian", "uniform", "rademacher" or "student:DF"
            See `quadlab.noise`.
        batch : int >= 1
            A minibatch of n divides the standard deviation by :math:`\sqrt n` (and leaves the law as it is).

        Returns
        -------
        BlockQuadratic

        Raises
        ------
        ValueError
            On a negative level, an unknown law or an empty batch.

        Examples
        --------
        >>> from quadlab import case
        >>> case("het").with_noise(0.4, "rademacher", batch=16).noise.max()
        np.float64(0.1)
        """
        law = check_law(law)
        if isinstance(batch, bool) or not isinstance(batch, (int, np.integer)) or batch < 1:
            raise ValueError(f"batch must be an integer >= 1, received {shown(batch)}")
        sizes, root = self.block_sizes.tolist(), math.sqrt(batch)
        sigma = _noise(noise, sizes)
        if batch > 1:
            sigma = _noise(float(sigma[0]) / root if sigma.strides == (0,) else sigma / root, sizes)
        return self._with(noise=sigma, noise_law=law if sigma.any() else "gaussian")

    @cached_property
    def is_noisy(self) -> bool:
        """Whether any coordinate has gradient noise."""
        return bool(self._compact_noise.any())

    def noise_stream(self, seed: int = 0) -> NoiseStream:
        """Return the gradient noise of the run with this ``noise_seed``, for any iterations.

        Examples
        --------
        >>> from quadlab import case
        >>> case("het", seed=0).with_noise(0.1).noise_stream(seed=0).rows(1000, 1003).shape
        (3, 9)
        """
        return NoiseStream(self.noise, self.noise_law, self.content_hash, seed)

    def with_name(self, name: str) -> BlockQuadratic:
        """Return the same problem under another name."""
        return self._with(name=_label(name))

    # -- identity, pickle, file

    @property
    def _compact_noise(self) -> FloatArray:
        return self.noise[:1] if self.noise.strides == (0,) else self.noise

    def _content(self) -> Iterator[Any]:
        law = () if self.noise_law == "gaussian" else (self.noise_law,)
        return iter((*self.blocks, self.start, self.minimizer, self._compact_noise, *law))

    def __reduce__(self) -> tuple[Any, ...]:
        arrays = (self.start, self.minimizer, self._compact_noise)
        return _restored, (self.blocks, *arrays, self.name, self.noise_law)

    def packed(self) -> PackedHessian:
        """Return the Hessian in flat arrays for the kernels.

        Made once, and without a copy where there is a single dense or diagonal block.
        """
        if "packed" not in self.cache:
            blocks = self.blocks
            parts = [block.packed() for block in blocks]
            # Thousands of small problems have one layout; that of many blocks is not worth its memory.
            layout = _layout if len(blocks) <= 256 else _layout.__wrapped__
            self.cache["packed"] = PackedHessian(
                **layout(
                    tuple([block.kind for block in blocks]),
                    tuple([block.size for block in blocks]),
                    tuple([part.size for part in parts]),
                    tuple([len(getattr(block, "reflectors", ())) for block in blocks]),
                ),
                norms=self.block_norms,
                data=self._joined(parts),
            )
        return self.cache["packed"]

    def packed_symmetric(self) -> PackedHessian:
        """Return the same for a single run: half of each dense matrix, in the order of its product.

        Made once; `packed` itself where no dense block is large enough.
        """
        if "packed_symmetric" not in self.cache:
            from quadlab.kernels.dense import MIN_SIZE, fourfold, tiles

            packed, blocks = self.packed(), self.blocks
            sizes = [block.size if isinstance(block, DenseBlock) else 0 for block in blocks]
            kinds: list[int] = []
            parts: list[FloatArray] = []
            while len(kinds) < len(blocks) and max(sizes) >= MIN_SIZE:
                b = len(kinds)
                size = sizes[b]
                if size < MIN_SIZE:
                    kinds.append(blocks[b].kind)
                    parts.append(blocks[b].packed())
                elif sizes[b : b + 4] == [size] * 4:
                    kinds += [FOURFOLD] * 4
                    parts += [fourfold([block.to_dense() for block in blocks[b : b + 4]]), *[np.empty(0)] * 3]
                else:
                    kinds.append(SYMMETRIC)
                    parts.append(tiles(blocks[b].to_dense()))
            if parts:
                data_offsets = _fixed([0, *accumulate(part.size for part in parts)])
                packed = packed._replace(
                    kinds=_fixed(kinds), data_offsets=data_offsets, data=self._joined(parts)
                )
            self.cache["packed_symmetric"] = packed
        return self.cache["packed_symmetric"]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the problem to one file, without pickle; `load` gives the same bits back.

        The format is NumPy's .npz, whatever the name of the path, with the entry
        ``schema = "quadlab.problem/1"``. The file appears whole or not at all.

        Examples
        --------
        >>> import tempfile
        >>> p = BlockQuadratic.from_spectra([[1, 2], [3]], seed=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     p.save(f"{folder}/p.npz")
        ...     load(f"{folder}/p.npz") == p
        True
        """
        entries: dict[str, Any] = {
            "name": self.name,
            "kinds": [block.kind for block in self.blocks],
            "start": self.start,
            "minimizer": self.minimizer,
            "noise": self._compact_noise,
            "noise_law": self.noise_law,
        }
        for b, block in enumerate(self.blocks):
            entries |= {f"block{b}_{key}": getattr(block, key) for key in _field_names(type(block))}
        write_npz(path, SCHEMA, entries)

    # -- display

    def __repr__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        return (
            f"<BlockQuadratic{name}: {self.size} parameters in {self.n_blocks} blocks, "
            f"norms {self.block_norms.min():.6g} to {self.block_norms.max():.6g}>"
        )

    def _repr_html_(self) -> str:
        """Return a table of the first 20 blocks."""
        names = ("block", "size", "storage", "||H<sub>b</sub>||", "condition", "||g<sub>b</sub>||")
        head = "".join(f"<th>{name}</th>" for name in names)
        gradients = self.split(self.gradient(self.start))
        rows = []
        for b, block in enumerate(self.blocks[:20]):
            positive = block.eigenvalues[block.positive]
            condition = f"{block.norm / positive.min():.4g}" if positive.size else "-"
            cells = (
                b,
                block.size,
                block.storage,
                f"{block.norm:.4g}",
                condition,
                f"{np.linalg.norm(gradients[b]):.4g}",
            )
            rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
        more = f"<p>and {self.n_blocks - 20} more blocks</p>" if self.n_blocks > 20 else ""
        return f"<p>{escape(repr(self))}</p><table><tr>{head}</tr>{''.join(rows)}</table>{more}"


def load(path: str | os.PathLike[str]) -> BlockQuadratic:
    """Return the problem that `BlockQuadratic.save` wrote, the same bits.

    Raises
    ------
    ValueError
        If the file is no .npz, has another schema, or holds arrays that are no problem.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> load(__file__)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: ... is not a problem file: it is no .npz archive
    """
    return read_npz(path, SCHEMA, "problem file", _from_entries)


def _from_entries(entries: dict[str, np.ndarray]) -> BlockQuadratic:
    kinds = entries["kinds"]
    if kinds.ndim != 1 or kinds.size == 0 or not np.isin(kinds, list(_STORAGES)).all():
        raise ValueError(f"its kinds are {shown(kinds.tolist())}, not a list of {sorted(_STORAGES)}")
    blocks: list[Block] = []
    for b, kind in enumerate(kinds.tolist()):
        storage = _STORAGES[kind]
        block = storage(*(entries[f"block{b}_{key}"] for key in _field_names(storage)))
        try:
            block.check()
        except ValueError as error:
            raise ValueError(f"block {b}: {error}") from None
        blocks.append(block)
    sizes = [block.size for block in blocks]
    start, minimizer = (_vector(entries[key], key, sizes) for key in ("start", "minimizer"))
    noise = entries["noise"].ravel()
    return BlockQuadratic(
        tuple(blocks),
        start,
        minimizer,
        _noise(noise[0] if noise.size == 1 else noise, sizes),
        str(entries["name"]),
        check_law(str(entries.get("noise_law", "gaussian"))),
    )


# -- parts of the constructors


class _Streams:
    """The random stream of each block and purpose: one Philox generator, moved to the stream's own counter.

    A stream holds 2^128 numbers. It ends when the next one is asked for, of any problem of the same call.
    """

    def __init__(self, seed: int | None, mover: list[np.random.Generator] | None = None) -> None:
        self._seed = check_problem_seed(seed)
        #: The generator, made when the first number is drawn, for all seeds of a call.
        self._mover = [] if mover is None else mover
        self._state: dict[str, Any] | None = None

    def __call__(self, block: int, purpose: int) -> np.random.Generator:
        if not self._mover:
            self._mover.append(np.random.Generator(np.random.Philox(key=0)))
        generator = self._mover[0]
        if self._state is None:
            self._state = self._beginning()
        self._state["state"]["counter"][2:] = block, purpose
        generator.bit_generator.state = self._state
        return generator

    def _beginning(self) -> dict[str, Any]:
        """Return the state of ``Philox(seed)``, in lists, which move it three times as fast as arrays."""
        key = np.random.SeedSequence(self._seed).generate_state(2, np.uint64).tolist()
        return {
            "bit_generator": "Philox",
            "state": {"counter": [0, 0, 0, 0], "key": key},
            "buffer": [0, 0, 0, 0],
            "buffer_pos": 4,
            "has_uint32": 0,
            "uinteger": 0,
        }


def check_problem_seed(seed: Any) -> int | None:
    """Return `seed` if a problem can have it, else raise ValueError."""
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0):
        raise ValueError(f"seed must be an integer >= 0 or None, received {shown(seed)}")
    return None if seed is None else int(seed)


def is_several(seed: Any) -> TypeGuard[Sequence[Any]]:
    """Return whether these are the seeds of several problems."""
    return isinstance(seed, range) or _is_list(seed)


def check_problem(problem: Any) -> BlockQuadratic:
    """Return `problem` if it is one, else raise ValueError."""
    if not isinstance(problem, BlockQuadratic):
        raise ValueError(f"problem must be a BlockQuadratic, received {shown(problem)}")
    return problem


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim > 0)


def _length(items: Any, sizes: Any = None) -> int:
    """Return the number of blocks."""
    listed = sizes if isinstance(items, Spectrum) else items
    if not _is_list(listed) or len(listed) == 0:
        raise ValueError(
            f"a list with an entry for each block (at least one) is needed, received {shown(items)}"
        )
    return len(listed)


def _each(value: Any, count: int, what: str) -> Any:
    """Return one entry a block: a list as it is, anything else, such as a basis matrix, repeated."""
    if _is_list(value) and not (what == "basis" and isinstance(value, np.ndarray) and value.ndim == 2):
        if len(value) != count:
            raise ValueError(f"{what} has {len(value)} entries for {count} blocks: received {shown(value)}")
        return value
    return [value] * count


def _eigenvalues(given: Any, size: Any, top: Any, streams: list[_Streams], b: int) -> list[FloatArray]:
    """Return the eigenvalues of block b of each problem: one array for all where none are drawn."""
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], Spectrum):
        if size is not None:
            raise ValueError(f"the size is given twice: {shown(given[1])} and {shown(size)}")
        given, size = given
    spectrum = as_spectrum(given)
    if size is None and isinstance(spectrum, Listed):
        values = spectrum.values
    else:
        if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
            raise ValueError(f"size must be an integer >= 1, received {shown(size)} for {shown(spectrum)}")
        users = type(spectrum).__module__ != Spectrum.__module__
        if users or spectrum.random:
            drawn = []
            for own in streams:
                values = spectrum.eigenvalues(int(size), own(b, _SPECTRUM))
                if users:  # it may give the same array again
                    values = check_eigenvalues(real_array(values, "eigenvalues"))
                    if values.size != size:
                        raise ValueError(f"{shown(spectrum)} gave {values.size} eigenvalues for size {size}")
                drawn.append(values if top is None else _to_top(values, top))
            return drawn
        values = fixed_eigenvalues(spectrum, int(size))
    return [values if top is None else _to_top(values, top)] * len(streams)


def _to_top(values: FloatArray, top: Any) -> FloatArray:
    """Return the eigenvalues, multiplied so that the largest is `top`."""
    largest = values.max()
    if real_number(top, "top") == 0 or largest == 0:
        raise ValueError(
            f"a spectrum with largest eigenvalue {largest:g} cannot be rescaled to top {shown(top)}"
        )
    return values / largest * float(top)  # in this order the largest is `top` exactly


def _small_haar_blocks(
    eigenvalues: list[list[FloatArray]],
    bases: Sequence[Any],
    storages: Sequence[Any],
    streams: list[_Streams],
) -> dict[int, list[Block]]:
    """Return the dense blocks under 64 with Haar bases, of each problem: many in one call of LAPACK.

    A call costs more than a small basis.
    """
    members: dict[int, list[int]] = {}
    for b, basis in enumerate(bases):
        if isinstance(basis, str) and basis == "haar" and storages[b] in (None, "dense"):
            size = eigenvalues[b][0].size
            if size < 64:
                members.setdefault(size, []).append(b)
    made: dict[int, list[Block]] = {b: [] for which in members.values() for b in which}
    for size, which in members.items():
        pairs = [(b, k) for k in range(len(streams)) for b in which]
        at_once = max(1, STACK_ENTRIES // (size * size))
        for begin in range(0, len(pairs), at_once):
            some = pairs[begin : begin + at_once]
            gaussians = np.empty((len(some), size, size))
            for (b, k), gaussian in zip(some, gaussians, strict=True):
                streams[k](b, _BASIS).standard_normal(out=gaussian)
            own = [eigenvalues[b][k] for b, k in some]
            vectors = haar_from_gaussian(gaussians)
            # Copied, each of its own, so that a block kept keeps no other alive.
            matrices = map(np.ndarray.copy, _matrices(np.array(own), vectors))
            blocks = map(DenseBlock, matrices, own, map(np.ndarray.copy, vectors))
            for (b, _), block in zip(some, blocks, strict=True):
                made[b].append(block)
    return made


def _matrices(eigenvalues: FloatArray, eigenvectors: FloatArray) -> FloatArray:
    """Return Q diag(values) Q^T, symmetric to the bit, of one block or of each in a stack."""
    with one_blas_thread(eigenvalues.shape[-1]):
        matrix = (eigenvectors * eigenvalues[..., None, :]) @ eigenvectors.swapaxes(-1, -2)
    return (matrix + matrix.swapaxes(-1, -2)) / 2


def _blocks(
    eigenvalues: list[FloatArray], basis: Any, storage: Any, streams: list[_Streams], b: int
) -> list[Block]:
    """Return block b of each problem: one for all where nothing of it is drawn."""
    if len(streams) > 1:
        drawn = isinstance(basis, Householder) or (isinstance(basis, str) and basis == "haar")
        if drawn or any(values is not eigenvalues[0] for values in eigenvalues):
            pairs = zip(eigenvalues, streams, strict=True)
            return [_block(values, basis, storage, own, b) for values, own in pairs]
    return [_block(eigenvalues[0], basis, storage, streams[0], b)] * len(streams)


def _block(eigenvalues: FloatArray, basis: Any, storage: Any, streams: _Streams, b: int) -> Block:
    size = eigenvalues.size
    basis = as_basis(basis, size)
    axis = isinstance(basis, str) and basis == "axis"
    if storage is None:
        storage = "diagonal" if axis else "householder" if isinstance(basis, Householder) else "dense"
    if storage == "dense":
        _check_dense_size(size)
        # An explicit matrix has just been checked.
        given = isinstance(basis, np.ndarray)
        return DenseBlock.from_eigen(
            eigenvalues, basis if given else basis_matrix(basis, size, streams(b, _BASIS))
        )
    if storage == "diagonal" and axis:
        return DiagonalBlock(eigenvalues)
    if storage == "householder" and axis:
        return HouseholderBlock(eigenvalues, np.empty((0, size)))
    if storage == "householder" and isinstance(basis, Householder):
        return HouseholderBlock(eigenvalues, unit_reflectors(basis.count, size, streams(b, _BASIS)))
    raise ValueError(f"storage {shown(storage)} cannot hold the basis {shown(basis)}")


def _displacements(
    blocks: Sequence[Block], gradient_norms: Any, direction: Any, streams: _Streams
) -> FloatArray:
    """Return x = H^+ g of the gradient that the directions and the norms describe."""
    sizes = [block.size for block in blocks]
    norms = _each(gradient_norms, len(blocks), "gradient_norms")
    directions = _each(direction, len(blocks), "direction")
    x = np.empty(sum(sizes))
    with np.errstate(over="ignore", invalid="ignore"):  # seen below
        for b, part in enumerate(_parts(x, sizes)):
            try:
                gradient = _gradient(blocks[b], directions[b], norms[b], streams, b)
            except ValueError as error:
                raise ValueError(f"block {b}: {error}") from None
            part[:] = blocks[b].pinv_matvec(gradient)
    good = np.isfinite(x)
    if not good.all():
        b = _owner(first_bad(good), sizes)
        least = blocks[b].eigenvalues[blocks[b].positive].min()
        raise ValueError(f"block {b}: the gradient over the smallest positive eigenvalue {least:g} overflows")
    return x


def _gradient(block: Block, direction: Any, norm: Any, streams: _Streams, b: int) -> FloatArray:
    """Return the starting gradient g_b of a direction and a norm, in the range of the block."""
    if norm is not None:
        norm = real_number(norm, "gradient norm")
    if isinstance(direction, str):
        if direction not in DIRECTIONS:
            raise ValueError(
                f"direction must be one of {DIRECTIONS} or a vector, received {shown(direction)}"
            )
        if norm is None:
            raise ValueError(f"direction {direction!r} needs a gradient norm, received None")
        if norm == 0:
            return np.zeros(block.size)
        if block.norm == 0:
            raise ValueError(f"gradient norm {norm:g} is outside the range of a zero block")
        gradient = _drawn(block, direction, streams, b)
    else:
        gradient = real_array(direction, "gradient")
        if gradient.shape != (block.size,):
            raise ValueError(f"gradient must have {block.size} entries, received {shown(direction)}")
        if not np.isfinite(gradient).all():
            bad = first_bad(np.isfinite(gradient))
            raise ValueError(f"gradient entry {bad} is {float(gradient[bad])}, not finite")
        scale = float(np.abs(gradient).max()) or 1.0
        unit = gradient / scale  # so that no square overflows
        outside = float(np.linalg.norm(unit - block.project(unit)) / (np.linalg.norm(unit) or 1.0))
        if outside > RANGE_TOLERANCE:
            raise ValueError(
                f"gradient {shown(gradient.tolist())} is outside the range of the block, "
                f"by {outside:.3g} of its norm"
            )
        if norm is None:
            return gradient
        if norm > 0 and not unit.any():
            raise ValueError(f"a zero gradient cannot be rescaled to norm {norm:g}")
        gradient = unit
    return gradient * (norm / (math.sqrt(gradient @ gradient) or 1.0))


def _drawn(block: Block, direction: str, streams: _Streams, b: int) -> FloatArray:
    """Return a vector along the direction law, in the range of the block."""
    if direction in ("top", "bottom"):
        values = block.eigenvalues
        chosen = (
            values.argmax() if direction == "top" else np.where(block.positive, values, math.inf).argmin()
        )
        unit = np.zeros(block.size)
        unit[chosen] = 1.0
        return block.from_eigenbasis(unit)
    rng = streams(b, _DIRECTION)
    while True:
        if direction == "isotropic":
            drawn: FloatArray = rng.standard_normal(block.size)
        else:
            drawn = np.where(rng.integers(0, 2, block.size) == 1, 1.0, -1.0)
        if block.full_rank:
            return drawn
        inside = block.project(drawn)
        # A sign vector may be orthogonal to the range; some never is, as s^T H s has the mean tr H > 0.
        if inside @ inside > 1e-16 * (drawn @ drawn):
            return inside


def _vector(value: Any, what: str, sizes: list[int]) -> FloatArray:
    """Return a finite vector with one entry a coordinate."""
    array = real_array(value, what)
    if array.shape != (sum(sizes),):
        raise ValueError(
            f"{what} must have {sum(sizes)} entries, received {shown(value)} of shape {array.shape}"
        )
    good = np.isfinite(array)
    if not good.all():
        bad = first_bad(good)
        raise ValueError(f"block {_owner(bad, sizes)}: {what} is {float(array[bad])} at coordinate {bad}")
    return array


def _parts(v: FloatArray, sizes: list[int]) -> list[FloatArray]:
    """Return the parts of a vector that belong to the blocks, as views."""
    ends = [0, *accumulate(sizes)]
    return [v[low:high] for low, high in pairwise(ends)]


def _owner(coordinate: int, sizes: list[int]) -> int:
    return int(np.searchsorted(np.cumsum(sizes), coordinate, side="right"))


def _noise(noise: Any, sizes: list[int]) -> FloatArray:
    """Return sigma, one entry a coordinate; where all are equal, as a zero-strided view of one number."""
    size = sum(sizes)
    if not _is_list(noise):
        return _constant(0.0 if noise is None else real_number(noise, "noise"), size)
    array = real_array(noise, "noise")
    if array.shape not in ((size,), (len(sizes),)):
        raise ValueError(
            f"noise must be a number, {len(sizes)} (one a block) or {size} (one a coordinate), "
            f"received {shown(noise)} of shape {array.shape}"
        )
    good = (array >= 0) & (array < math.inf)
    if not good.all():
        bad = first_bad(good)
        block = _owner(bad, sizes) if array.size == size else bad
        raise ValueError(f"block {block}: noise {float(array[bad])} at position {bad} is not finite and >= 0")
    if (array == array[0]).all():
        return _constant(float(array[0]), size)
    return array if array.size == size else np.repeat(array, sizes)


def _constant(value: float, size: int) -> FloatArray:
    return np.ndarray((size,), np.float64, buffer=np.array([value]), strides=(0,))


def _label(name: Any) -> str:
    if not isinstance(name, str):
        raise ValueError(f"name must be a string, received {shown(name)}")
    return name


def _fixed(values: Sequence[Any], dtype: type = np.int64) -> np.ndarray:
    array: np.ndarray = np.array(values, dtype=dtype)
    frozen(array)
    return array


def _field_names(cls: type[Block]) -> tuple[str, ...]:
    return tuple(cls.__dataclass_fields__)  # type: ignore[attr-defined]


def _restored(
    blocks: tuple[Block, ...],
    start: FloatArray,
    minimizer: FloatArray,
    noise: FloatArray,
    name: str,
    noise_law: str,
) -> BlockQuadratic:
    if noise.size == 1:
        noise = _constant(float(noise[0]), start.size)
    return BlockQuadratic(blocks, start, minimizer, noise, name, noise_law)


def _check_dense_size(size: int) -> None:
    if size > MAX_DENSE_BLOCK:
        raise ValueError(
            f"a dense block of {size} parameters exceeds {MAX_DENSE_BLOCK}; "
            "use basis='axis' or Householder(count)"
        )
