r"""Curvature of blocks through Hessian-vector products: extremes, densities, leakage.

**Products.** With the gradient :math:`g_b = \nabla_b f` kept as a graph, the product with block b's Hessian
is a derivative of a number with respect to that block alone,

.. math:: H_b v = \nabla_b \langle g_b, v \rangle,

so neither the loss nor the gradient is computed again, and autograd walks only the part of the graph between
the block and the loss. Several vectors go through it together (`VECTORS`), which saves overhead.

**Extremes.** ARPACK (`scipy.sparse.linalg.eigsh`) on :math:`H_b + 2cI`, c an estimate of :math:`\|H_b\|`
from a few Lanczos steps. The shift makes ARPACK's tolerance, relative to each eigenvalue, one relative to the
norm: an eigenvalue near zero has no relative accuracy to ask for. A residual r of an eigenvector gives an
eigenvalue to :math:`\min(r, r^2/\mathrm{gap})`.

**Densities** by stochastic Lanczos quadrature: for probes :math:`v = z/\sqrt{P_b}` of random signs z, m steps
of Lanczos with full reorthogonalisation give a tridiagonal matrix; its eigenvalues :math:`\theta_j` (Ritz
values) and the squares :math:`\tau_j` of the first components of its eigenvectors are the Gauss quadrature of
the measure :math:`\sum_i (v \cdot q_i)^2 \delta(\lambda - \lambda_i)`, whose mean over z is the spectral
density. :math:`P_b \sum_j \tau_j \theta_j = z^T H_b z` estimates the trace. The error over probes does not
hold what m nodes a probe leave out of a density: more steps show it.

**Rounding.** Some blocks have no curvature at all (a key's bias: softmax does not see it), and the computed
products are rounding, which is no symmetric operator. A block whose products are asymmetric in the fourth
digit (double precision; :math:`\epsilon^{1/4}` in general) counts as zero.

References
----------
S. Ubaru, J. Chen, Y. Saad, Fast estimation of tr(f(A)) via stochastic Lanczos quadrature, SIAM J. Matrix
Anal. Appl. 38 (2017). B. Ghorbani, S. Krishnan, Y. Xiao, An investigation into neural net optimization via
Hessian eigenvalue density, ICML 2019 (the quadrature on networks). B. A. Pearlmutter, Fast exact
multiplication by the Hessian, Neural Computation 6 (1994).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from scipy.sparse.linalg import LinearOperator, eigsh
from scipy.stats import wasserstein_distance
from torch import Tensor

from quadlab._arrays import FloatArray
from quadlab.bases import one_blas_thread

__all__ = ["Curvature", "Piece", "Spectrum", "dense_spectrum", "extremes", "lanczos_density", "leakage"]

#: Vectors that go through the graph together; more save nothing, and take memory.
VECTORS = 8
#: Lanczos vectors of as many numbers are held at a time (1 GiB in double precision).
LANCZOS_NUMBERS = 2**27

#: Products with one symmetric matrix: (k, P_b) to (k, P_b).
Product = Callable[[Tensor], Tensor]


class Piece(NamedTuple):
    """A part of a block: rows or columns of a parameter tensor, or all of it.

    Parameters
    ----------
    parameter : str
        The name of the tensor.
    part : tuple of slice
        What of the tensor belongs to the block; () for all.
    shape : tuple of int
        The shape of that part.
    """

    parameter: str
    part: tuple[slice, ...]
    shape: tuple[int, ...]


class Curvature:
    """The gradient of a loss with its graph kept, and products with the blocks of its Hessian.

    Parameters
    ----------
    loss : Tensor
        A scalar.
    parameters : mapping of str to Tensor
        Leaves of the loss's graph.
    blocks : sequence of sequences of Piece
        Disjoint parts of the parameters.
    """

    def __init__(
        self, loss: Tensor, parameters: Mapping[str, Tensor], blocks: Sequence[Sequence[Piece]]
    ) -> None:
        self.parameters = dict(parameters)
        self.blocks = [list(block) for block in blocks]
        gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
        self.gradients = dict(zip(parameters, gradients, strict=True))
        self.sizes = [sum(math.prod(piece.shape) for piece in block) for block in blocks]
        self._together = True  # until an operation cannot be vectorised

    def gradient(self, block: int) -> Tensor:
        """Return g_b, shape (P_b,), without its graph."""
        return torch.cat([self.gradients[p][part].detach().reshape(-1) for p, part, _ in self.blocks[block]])

    def product(self, block: int, vectors: Tensor) -> Tensor:
        """Return H_b v for each row v, shape (k, P_b)."""
        return self._products([block], [vectors])[0]

    def full_product(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Return the blocks of H v, for v given by its blocks, each of shape (k, P_b)."""
        return self._products(range(len(self.blocks)), vectors)

    def _products(self, which: Sequence[int], vectors: Sequence[Tensor]) -> list[Tensor]:
        """Return the rows and columns `which` of the Hessian times the vectors, `VECTORS` at a time."""
        pieces = [piece for b in which for piece in self.blocks[b]]
        outputs, weights = [], []
        for b, rows in zip(which, vectors, strict=True):
            columns = rows.split([math.prod(piece.shape) for piece in self.blocks[b]], dim=1)
            for (p, part, shape), column in zip(self.blocks[b], columns, strict=True):
                if self.gradients[p].requires_grad:  # else the loss is linear in this parameter
                    outputs.append(self.gradients[p][part])
                    weights.append(column.reshape(-1, *shape))
        count = len(vectors[0])
        if not outputs:
            return [torch.zeros_like(rows) for rows in vectors]
        inputs = sorted({piece.parameter for piece in pieces})
        chunks = [
            self._grad(outputs, inputs, [weight[k : k + VECTORS] for weight in weights])
            for k in range(0, count, VECTORS)
        ]
        found = {p: torch.cat(rows) for p, rows in zip(inputs, zip(*chunks, strict=True), strict=True)}
        return [
            torch.cat([found[p][:, *part].reshape(count, -1) for p, part, _ in self.blocks[b]], dim=1)
            for b in which
        ]

    def _grad(self, outputs: list[Tensor], inputs: list[str], weights: list[Tensor]) -> list[Tensor]:
        """Return the gradients of sum <output, weight> by the inputs, for each row of weights."""
        leaves = [self.parameters[p] for p in inputs]

        def grad(rows: list[Tensor], together: bool) -> tuple[Tensor | None, ...]:
            return torch.autograd.grad(
                outputs,
                leaves,
                rows,
                retain_graph=True,
                is_grads_batched=together,
                allow_unused=True,
            )

        count = len(weights[0])
        if self._together and count > 1:
            try:
                return [
                    leaf.new_zeros(count, *leaf.shape) if rows is None else rows
                    for leaf, rows in zip(leaves, grad(weights, True), strict=True)
                ]
            except RuntimeError:  # an operation without a rule for several vectors: one by one
                self._together = False
        found = [grad([weight[k] for weight in weights], False) for k in range(count)]
        return [
            torch.stack([torch.zeros_like(leaf) if row is None else row for row in rows])
            for leaf, rows in zip(leaves, zip(*found, strict=True), strict=True)
        ]


class Spectrum(NamedTuple):
    """The spectral density of one block: see `BlockStatistics`."""

    nodes: FloatArray
    weights: FloatArray
    error: float
    trace: float
    trace_error: float


def _is_rounding(product: Product, size: int, like: Tensor, rng: np.random.Generator) -> bool:
    """Return whether the products are zero, or so asymmetric that they are rounding."""
    v = _tensor(rng.standard_normal((2, size)), like)
    hv = product(v)
    norm = float(torch.linalg.vector_norm(hv))
    asymmetry = abs(float(v[0] @ hv[1] - v[1] @ hv[0]))
    return norm == 0.0 or asymmetry > torch.finfo(v.dtype).eps ** 0.25 * norm


def dense_spectrum(product: Product, size: int, like: Tensor) -> FloatArray:
    """Return all eigenvalues of a small block, ascending, from its products with the unit vectors.

    Parameters
    ----------
    product : callable
        (k, size) to (k, size).
    size : int
        P_b.
    like : Tensor
        Of the precision and on the device that `product` takes.

    Returns
    -------
    ndarray, shape (size,)
        Zeros for a block that is nothing but rounding.
    """
    rows = product(torch.eye(size, dtype=like.dtype, device=like.device))
    matrix = rows.double().cpu().numpy()
    limit = torch.finfo(like.dtype).eps ** 0.25
    if np.linalg.norm(matrix - matrix.T) > limit * np.linalg.norm(matrix):
        return np.zeros(size)
    with one_blas_thread(size):
        return np.linalg.eigvalsh((matrix + matrix.T) / 2)


def extremes(
    product: Product, size: int, like: Tensor, tolerance: float, rng: np.random.Generator
) -> tuple[float, float]:
    """Return the smallest and the largest eigenvalue of a block of at least 3 parameters.

    Parameters
    ----------
    product, size, like
        As in `dense_spectrum`.
    tolerance : float
        Largest residual of an eigenvector, relative to the block's norm.
    rng : Generator
        Of the starting vectors.

    Returns
    -------
    bottom, top : float
        Both 0 for a block that is nothing but rounding.
    """
    if _is_rounding(product, size, like, rng):
        return 0.0, 0.0
    start = _tensor(rng.standard_normal((1, size)), like)
    (few,) = lanczos(product, start, min(10, size))
    shift = 2.0 * float(np.abs(_ritz(*few)[0]).max())

    def matvec(v: FloatArray) -> FloatArray:
        return product(_tensor(v.reshape(1, -1), like))[0].double().cpu().numpy() + shift * v.ravel()

    operator = LinearOperator((size, size), matvec=matvec, dtype=np.float64)
    found = eigsh(
        operator,
        k=2,
        which="BE",
        tol=tolerance / 3.0,  # the shifted eigenvalues are up to three times the norm
        v0=rng.standard_normal(size),
        return_eigenvectors=False,
    )
    return float(found.min() - shift), float(found.max() - shift)


def lanczos(product: Product, start: Tensor, steps: int) -> list[tuple[FloatArray, FloatArray]]:
    """Return the tridiagonal matrix of each row of starting vectors: diagonal, and off-diagonal.

    Full reorthogonalisation, twice. A row whose Krylov space ends early has fewer steps.
    """
    rows, size = start.shape
    basis = torch.zeros(rows, steps, size, dtype=start.dtype, device=start.device)
    alphas, betas = np.zeros((rows, steps)), np.zeros((rows, steps))
    v = start / torch.linalg.vector_norm(start, dim=1, keepdim=True)
    for j in range(steps):
        basis[:, j] = v
        w = product(v)
        alphas[:, j] = (v * w).sum(1).double().cpu().numpy()
        done = basis[:, : j + 1]
        for _ in range(2):
            w = w - (done.mT @ (done @ w[:, :, None]))[:, :, 0]
        norm = torch.linalg.vector_norm(w, dim=1, keepdim=True)
        betas[:, j] = norm[:, 0].double().cpu().numpy()
        v = torch.where(norm > 0.0, w / norm, 0.0)
    # what is left at the end of a Krylov space is rounding: cut there
    scale = np.maximum(np.abs(alphas).max(axis=1), betas.max(axis=1))
    small = betas <= 10.0 * size**0.5 * torch.finfo(start.dtype).eps * scale[:, None]
    lengths = np.where(small.any(axis=1), small.argmax(axis=1) + 1, steps)
    return [(a[:m], b[: m - 1]) for a, b, m in zip(alphas, betas, lengths, strict=True)]


def lanczos_density(
    product: Product, size: int, like: Tensor, probes: int, steps: int, rng: np.random.Generator
) -> Spectrum:
    """Return the spectral density of a block by stochastic Lanczos quadrature.

    Parameters
    ----------
    product, size, like
        As in `dense_spectrum`.
    probes : int
        Random vectors, at least 2 for an error.
    steps : int
        Of Lanczos a probe.
    rng : Generator
        Of the probes.

    Returns
    -------
    Spectrum
        Its nodes are the Ritz values of all probes, ascending; a single zero for a block that is nothing but
        rounding.
    """
    if _is_rounding(product, size, like, rng):
        return Spectrum(np.zeros(1), np.ones(1), 0.0, 0.0, 0.0)
    steps = min(steps, size)
    signs = _tensor(rng.integers(0, 2, (probes, size)) * 2.0 - 1.0, like)
    at_once = max(1, min(probes, LANCZOS_NUMBERS // (steps * size)))
    found = [_ritz(*matrix) for rows in signs.split(at_once) for matrix in lanczos(product, rows, steps)]
    nodes = np.concatenate([theta for theta, _ in found])
    weights = np.concatenate([tau for _, tau in found]) / probes
    traces = size * np.array([theta @ tau for theta, tau in found])
    error, trace_error = math.nan, math.nan
    if probes > 1:
        distances = [wasserstein_distance(theta, nodes, tau, weights) for theta, tau in found]
        error = math.sqrt(float(np.square(distances).sum()) / (probes * (probes - 1)))
        trace_error = float(traces.std(ddof=1)) / math.sqrt(probes)
    order = np.argsort(nodes, kind="stable")
    return Spectrum(nodes[order], weights[order], error, float(traces.mean()), trace_error)


def leakage(curvature: Curvature, probes: int, like: Tensor, rng: np.random.Generator) -> Iterator[float]:
    r"""Yield :math:`\|(H - H_D) v\| / \|H v\|` for Gaussian vectors v (0 where H v = 0).

    Parameters
    ----------
    curvature : Curvature
    probes : int
        Number of vectors.
    like : Tensor
        Of the precision and on the device of the parameters.
    rng : Generator
        Of the vectors.

    Yields
    ------
    float
    """
    sizes = curvature.sizes
    for k in range(0, probes, VECTORS):
        rows = min(VECTORS, probes - k)
        vectors = [_tensor(rng.standard_normal((rows, size)), like) for size in sizes]
        full = curvature.full_product(vectors)
        total, off = torch.zeros((2, rows), dtype=torch.float64)
        for b, (v, hv) in enumerate(zip(vectors, full, strict=True)):
            total += hv.double().square().sum(1).cpu()
            off += (hv - curvature.product(b, v)).double().square().sum(1).cpu()
        yield from torch.where(total > 0.0, (off / total).sqrt(), 0.0).tolist()


def _ritz(diagonal: FloatArray, off_diagonal: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the eigenvalues of a tridiagonal matrix and the squared first components of its eigenvectors."""
    if diagonal.size == 1:
        return diagonal.copy(), np.ones(1)
    values, vectors = eigh_tridiagonal(diagonal, off_diagonal)
    weights = vectors[0] ** 2
    return values, weights / weights.sum()


def _tensor(values: Any, like: Tensor) -> Tensor:
    return torch.as_tensor(values, dtype=like.dtype, device=like.device)
