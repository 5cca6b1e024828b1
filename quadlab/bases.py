r"""Eigenbases of one block: the orthogonal :math:`Q` of :math:`H_b = Q\,\mathrm{diag}(\lambda)\,Q^T`.

The columns of Q are the eigenvectors. A basis is

- ``"axis"``: :math:`Q = I`.
- ``Rotation(angle)``: :math:`Q` rotates by the angle in the disjoint coordinate planes (0,1), (2,3), ...;
  the last coordinate of a block of odd size stays where it is.
- ``"haar"``: uniform on the orthogonal group. With :math:`Z = QR` the QR factors of a Gaussian matrix,
  :math:`Q\,\mathrm{sign}(\mathrm{diag}\,R)` is Haar; without the signs it is not (Mezzadri, 2007).
- ``Householder(count)``: :math:`Q = R_1 \cdots R_k`, :math:`R_r = I - 2 u_r u_r^T` with uniform random unit
  vectors, kept as the k vectors: O(kP) memory and work, so a block may have 10^6 parameters. **Few reflectors
  are not Haar**: Q is the identity plus a matrix of rank k, and k of the order of P would be needed to come
  near it.
- an explicit orthogonal matrix.

LAPACK gives other bits on other numbers of threads, so it runs on one: the same seed gives the same problem
anywhere (same library versions and CPU).
"""

from __future__ import annotations

import math
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from quadlab._arrays import FloatArray, real_array, real_number, shown

__all__ = [
    "Basis",
    "Householder",
    "Rotation",
    "as_basis",
    "basis_matrix",
    "haar_from_gaussian",
    "one_blas_thread",
    "reflect",
    "unit_reflectors",
]

ORTHOGONALITY_TOLERANCE = 1e-10

_UNLIMITED = nullcontext()


#: The first parts of SciPy that are linked to its own BLAS: once one is there, so is that. Of a package above
#: them that holds not yet while another thread imports it.
_LINKED = ("scipy.linalg._fblas", "scipy.special._ufuncs")


@cache
def _controller(with_scipy: bool) -> Any:
    """Return what limits the libraries loaded so far: made anew once SciPy's own BLAS is there too."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def one_blas_thread(size: int = 1 << 30) -> AbstractContextManager[Any]:
    """Return a context in which BLAS and LAPACK run on one thread.

    Parameters
    ----------
    size : int, optional
        Order of the matrices worked on. Below 64 BLAS takes one thread of itself, and the limit (10 us) is
        left out.

    Examples
    --------
    >>> with one_blas_thread():
    ...     Q, R = np.linalg.qr(np.eye(100))
    """
    if size < 64:
        return _UNLIMITED
    return _controller(any(name in sys.modules for name in _LINKED)).limit(limits=1, user_api="blas")


@dataclass(frozen=True)
class Rotation:
    """The identity rotated by an angle in the coordinate planes (0,1), (2,3), ...

    Parameters
    ----------
    angle : float
        In radians; 0 is axis-aligned, pi/4 the farthest from it.

    Raises
    ------
    ValueError
        If the angle is not finite.

    Examples
    --------
    >>> basis_matrix(Rotation(np.pi / 2), 3).round(3).tolist()
    [[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """

    angle: float

    def __post_init__(self) -> None:
        real_number(self.angle, "Rotation angle", -math.inf)
        if math.isinf(self.angle):
            raise ValueError(f"Rotation angle must be finite, received {self.angle}")


@dataclass(frozen=True)
class Householder:
    """A product of `count` reflections in random hyperplanes.

    It is not Haar unless `count` is of the order of the block's size.

    Parameters
    ----------
    count : int
        Number of reflectors, >= 1. Memory and work are O(count P_b).

    Raises
    ------
    ValueError
        If the count is not a positive integer.

    Examples
    --------
    >>> Q = basis_matrix(Householder(2), 5, np.random.default_rng(0))
    >>> bool(abs(Q.T @ Q - np.eye(5)).max() < 1e-15)
    True
    """

    count: int

    def __post_init__(self) -> None:
        if isinstance(self.count, bool) or not isinstance(self.count, (int, np.integer)) or self.count < 1:
            raise ValueError(f"Householder count must be an integer >= 1, received {shown(self.count)}")


Basis = str | Rotation | Householder | np.ndarray


def as_basis(spec: Any, size: int) -> Basis:
    """Return a basis specification if it is one for a block of `size`; a matrix comes back as float64.

    Raises
    ------
    ValueError
        If it is none, or a matrix that is not orthogonal or of another size.

    Examples
    --------
    >>> as_basis("haar", 3)
    'haar'
    """
    if isinstance(spec, (Rotation, Householder)) or (isinstance(spec, str) and spec in ("axis", "haar")):
        return spec
    if spec is None or isinstance(spec, (str, int, float, complex)):
        raise ValueError(
            f"basis must be 'axis', 'haar', Rotation, Householder or a matrix, received {shown(spec)}"
        )
    matrix = real_array(spec, "basis")
    if matrix.shape != (size, size):
        raise ValueError(f"basis must have shape {(size, size)}, received a matrix of shape {matrix.shape}")
    with one_blas_thread(size), np.errstate(all="ignore"):
        error = np.abs(matrix.T @ matrix - np.eye(size)).max()
    if not error <= ORTHOGONALITY_TOLERANCE:
        raise ValueError(f"basis is not orthogonal: max |Q^T Q - I| = {error:.3g}")
    return matrix


def unit_reflectors(count: int, size: int, rng: np.random.Generator) -> FloatArray:
    """Return `count` independent uniform unit vectors as rows, shape (count, size).

    Examples
    --------
    >>> unit_reflectors(2, 1, np.random.default_rng(0)).tolist()
    [[1.0], [-1.0]]
    """
    vectors = rng.standard_normal((count, size))
    for u in vectors:  # row by row: no temporary of the size of the whole
        u /= math.sqrt(np.vdot(u, u))
    return vectors


def reflect(reflectors: FloatArray, v: FloatArray) -> FloatArray:
    r"""Return :math:`R_k \cdots R_1 v`, the first row first.

    The rows reversed give :math:`R_1 \cdots R_k v`.

    Parameters
    ----------
    reflectors : ndarray of shape (k, P_b)
        Unit rows.
    v : ndarray of shape (P_b,) or (P_b, m)

    Examples
    --------
    >>> reflect(np.array([[1.0, 0.0]]), np.array([3.0, 4.0])).tolist()
    [-3.0, 4.0]
    """
    v = v.copy()
    for u in reflectors:
        v -= np.multiply.outer(u, 2.0 * (u @ v))
    return v


def haar_from_gaussian(z: FloatArray) -> FloatArray:
    """Return the Haar matrix of a Gaussian matrix, or of each in a stack, shape (..., n, n).

    Examples
    --------
    >>> haar_from_gaussian(np.array([[-2.0]])).tolist()
    [[-1.0]]
    """
    with one_blas_thread(z.shape[-1]):
        q, r = np.linalg.qr(z)
    q *= np.copysign(1.0, r.diagonal(0, -2, -1))[..., None, :]
    return q


def basis_matrix(spec: Basis, size: int, rng: np.random.Generator | None = None) -> FloatArray:
    """Return the orthogonal matrix of a basis specification; its columns are the eigenvectors.

    Parameters
    ----------
    spec : "axis", "haar", Rotation, Householder or an orthogonal matrix
    size : int
        P_b >= 1.
    rng : numpy.random.Generator, optional
        Needed by "haar" and Householder.

    Returns
    -------
    ndarray of shape (size, size)

    Raises
    ------
    ValueError
        If `spec` is not a basis of that size.

    References
    ----------
    F. Mezzadri, How to generate random matrices from the classical compact groups, 2007.

    Examples
    --------
    >>> Q = basis_matrix("haar", 3, np.random.default_rng(0))
    >>> bool(abs(Q.T @ Q - np.eye(3)).max() < 1e-15)
    True
    """
    spec = as_basis(spec, size)
    if isinstance(spec, str) and spec == "haar" and rng is not None:
        return haar_from_gaussian(rng.standard_normal((size, size)))
    if isinstance(spec, np.ndarray):
        return spec
    q = np.eye(size)
    if isinstance(spec, Rotation):
        even = np.arange(0, size - 1, 2)
        q[even, even] = q[even + 1, even + 1] = math.cos(spec.angle)
        q[even + 1, even] = math.sin(spec.angle)
        q[even, even + 1] = -math.sin(spec.angle)
    elif spec != "axis":
        if rng is None:
            raise ValueError(f"basis {shown(spec)} needs a random generator, received None")
        assert isinstance(spec, Householder)
        q = reflect(unit_reflectors(spec.count, size, rng)[::-1], q)
    return q
