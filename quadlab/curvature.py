r"""Constants of the Hessian, and of the Hessian that frozen Adam sees.

For H = blkdiag(H_1, ..., H_B), symmetric positive semidefinite, with block b of size P_b and P = sum_b P_b:

* L, mu and mu_+ are the largest, the smallest and the smallest *positive* eigenvalue, kappa = L / mu_+;
* Lambda_P = sum_b (P_b / P) ||H_b||_2 is the parameter-weighted Hessian complexity;
* M* = max over s in {-1, 1}^P of s^T H s = sum_b M*_b, which is the norm of H from l_inf to l_1;
* mu_inf = 1 / max_i (H^+)_ii.

**M\*.** The mean over all signs gives tr H <= M*, and M*_b <= min(sum |H_ij|, P_b ||H_b||_2). A diagonal
block has M*_b = tr H_b; up to 20 parameters M*_b is found by brute force; above, it is bounded on both sides.
It bounds the gradient, ||g||_1^2 <= 2 M* (f - f*): with s = sign g and x = w - w*,
||g||_1 = s^T H x <= (s^T H s)^(1/2) (x^T H x)^(1/2).

**mu_inf.** As g = H x is in the range of H, f - f* = g^T H^+ g / 2, a convex function of g: on the l_1 ball
it is largest at a vertex, so f - f* <= ||g||_1^2 max_i (H^+)_ii / 2, that is ||g||_1^2 >= 2 mu_inf (f -
f*). For positive definite H some g attains it. For singular H the vertex may lie outside the range, and the
inequality be strict. (H^+)_ii <= 1 / mu_+ gives mu_inf >= mu_+, with equality for a diagonal H. From M* >=
tr H and max_i (H^+)_ii >= tr(H^+) / P follows M* / mu_inf >= tr(H) tr(H^+) / P >= rank(H)^2 / P.

**Frozen Adam** (beta1 = 0, beta2 = 1, epsilon = 0) iterates w <- w - eta D^-1 g with D = diag |g(w_0)|. In
y = D^(1/2) (w - w*) this is gradient descent on A = D^(-1/2) H D^(-1/2), of the same rank as H, and

    f_t - f* = 1/2 sum_i a_i c_i^2 (1 - eta a_i)^(2 t)        (c: y_0 in the eigenbasis of A).

With C_l1 = min_i |g_0,l,i| / ||H_l||, C_l2 = max_i |g_0,l,i| / ||H_l||, r = max_l C_l2^2 / min_l C_l1^2:
a_max <= 1 / min_l C_l1 and a_min >= min_l 1 / (kappa_l C_l2), so that
kappa_A <= max_l (kappa_l C_l2) / min_l C_l1 <= r^(1/2) max_l kappa_l.

References
----------
A. Tomihari, I. Sato, Understanding Transformer Optimization via Gradient Heterogeneity, arXiv 2502.00213
(Lambda_P).
L. Balles, F. Pedregosa, N. Le Roux, The Geometry of Sign Gradient Descent, arXiv 2002.08056 (smoothness in
l_inf).
Y. Zhang et al., Why Transformers Need Adam: A Hessian Perspective, NeurIPS 2024, arXiv 2402.16788, Theorem 1
(frozen Adam, r).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from quadlab._arrays import FloatArray, frozen
from quadlab.bases import one_blas_thread
from quadlab.kernels.codes import FLUSH
from quadlab.kernels.m_star import BRUTE_FORCE_LIMIT, largest_sign_form
from quadlab.problem import Block, BlockQuadratic, DenseBlock, DiagonalBlock, HouseholderBlock

__all__ = ["Curvature", "FrozenPreconditioner", "curvature", "frozen_preconditioner"]

#: Largest Householder block that is written out as a matrix, where a constant needs its entries.
DENSE_LIMIT = 5000
#: Largest P_b k^2 for which mu_inf of a Householder block is computed (about ten seconds).
PINV_DIAGONAL_LIMIT = 10**10
#: Starts of the local search for a lower value of M*: the top eigenvector's signs, then seeded random signs.
SEARCH_STARTS = 5

T = TypeVar("T")


@dataclass(frozen=True, eq=False, repr=False)
class Curvature:
    r"""The constants of H; each is computed when first read, and kept.

    An eigenvalue counts as positive if it exceeds ``RANK_TOLERANCE`` times the largest of its block.

    Parameters
    ----------
    blocks : tuple of blocks
        The blocks of a problem. Use :func:`curvature`, which keeps the result with the problem.

    See Also
    --------
    curvature : the constants of a problem.
    """

    blocks: tuple[Block, ...]

    # -- spectrum --------------------------------------------------------------------------------------------

    @cached_property
    def block_sizes(self) -> NDArray[np.int64]:
        """P_b, shape (B,)."""
        return _read_only(np.array([block.size for block in self.blocks], dtype=np.int64))

    @cached_property
    def block_norms(self) -> FloatArray:
        """The blocks' largest eigenvalues ||H_b||_2, shape (B,)."""
        return _read_only(np.array([block.norm for block in self.blocks]))

    @cached_property
    def positive(self) -> NDArray[np.bool_]:
        """Which eigenvalues count as positive, shape (P,), in the order of ``problem.eigenvalues``."""
        return _read_only(np.concatenate([block.positive for block in self.blocks]))

    @cached_property
    def block_smallest_positive(self) -> FloatArray:
        """The blocks' smallest positive eigenvalues, shape (B,); inf for a zero block."""
        return _read_only(np.array([_smallest_positive(block) for block in self.blocks]))

    @cached_property
    def size(self) -> int:
        """P, the number of parameters."""
        return int(self.block_sizes.sum())

    @cached_property
    def largest(self) -> float:
        """L, the largest eigenvalue."""
        return float(self.block_norms.max())

    @cached_property
    def smallest(self) -> float:
        """The smallest eigenvalue mu, 0 for a singular H."""
        return min(float(block.eigenvalues.min()) for block in self.blocks)

    @cached_property
    def smallest_positive(self) -> float:
        """The smallest positive eigenvalue mu_+; inf (the least of an empty set) if H = 0."""
        return float(self.block_smallest_positive.min())

    @cached_property
    def condition_number(self) -> float:
        """Kappa = L / mu_+; 1 if H = 0."""
        return self.largest / self.smallest_positive if self.rank else 1.0

    @cached_property
    def rank(self) -> int:
        """The number of positive eigenvalues."""
        return int(self.positive.sum())

    @cached_property
    def trace(self) -> float:
        """The sum of the eigenvalues."""
        return float(sum(block.trace for block in self.blocks))

    @cached_property
    def parameter_weighted(self) -> float:
        """Lambda_P = sum_b (P_b / P) ||H_b||_2."""
        return float(self.block_sizes @ self.block_norms) / self.size

    # -- entries ---------------------------------------------------------------------------------------------

    @cached_property
    def largest_diagonal(self) -> float:
        """The largest entry max_i H_ii, for which |g_i|^2 <= 2 H_ii (f - f*)."""
        return max(float(block.diagonal().max()) for block in self.blocks)

    @cached_property
    def abs_sum(self) -> float | None:
        """The sum of |H_ij|; None if a Householder block is too large to be written out (see ``reasons``)."""
        sums = [total for total in self._abs_sums if total is not None]
        return float(sum(sums)) if len(sums) == len(self.blocks) else None

    @property
    def reasons(self) -> dict[str, str]:
        """Why a constant is None, by the constant's name."""
        if self.abs_sum is not None:
            return {}
        pairs = zip(self.blocks, self._abs_sums, strict=True)
        large = [f"{b} of size {block.size}" for b, (block, total) in enumerate(pairs) if total is None]
        text = f"a Householder block above {DENSE_LIMIT} parameters is not written out"
        return {"abs_sum": f"{text}: block {', block '.join(large)}"}

    @cached_property
    def _abs_sums(self) -> tuple[float | None, ...]:
        return tuple(_abs_sum(block) for block in self.blocks)

    # -- M* --------------------------------------------------------------------------------------------------

    @cached_property
    def _m_star(self) -> tuple[tuple[float, str], ...]:
        return tuple(self._m_star_of(b) for b in range(len(self.blocks)))

    def _m_star_of(self, index: int) -> tuple[float, str]:
        """Return an upper value of M*_b and its source."""
        block = self.blocks[index]
        if isinstance(block, DiagonalBlock):
            return float(block.trace), "trace"
        if block.size <= BRUTE_FORCE_LIMIT:
            return largest_sign_form(block.to_dense()), "brute force"
        by_norm, by_entries = block.size * block.norm, self._abs_sums[index]
        if by_entries is not None and by_entries <= by_norm:
            return by_entries, "absolute sum"
        return by_norm, "P Lambda_P"

    @cached_property
    def m_star_blocks(self) -> FloatArray:
        """The values of M*_b that ``m_star_upper`` adds up, shape (B,)."""
        return _read_only(np.array([value for value, _ in self._m_star]))

    @cached_property
    def m_star_sources(self) -> tuple[str, ...]:
        """Where each block's value is from: "trace", "brute force" (exact), "absolute sum", "P Lambda_P"."""
        return tuple(source for _, source in self._m_star)

    @property
    def m_star_source(self) -> str:
        """The sources of the blocks' values, each named once."""
        return " + ".join(dict.fromkeys(self.m_star_sources))

    @cached_property
    def m_star_exact(self) -> bool:
        """Whether ``m_star_lower = M* = m_star_upper``, up to rounding."""
        return set(self.m_star_sources) <= {"trace", "brute force"}

    @cached_property
    def m_star_upper(self) -> float:
        """M* where it is exact, else the least upper value known: the M of SignSGD's bounds and steps."""
        return float(self.m_star_blocks.sum())

    @cached_property
    def m_star_lower(self) -> float:
        """M* where it is exact, else a lower value found by local search."""
        return float(
            sum(
                value if source in ("trace", "brute force") else min(value, _m_star_lower(block))
                for block, (value, source) in zip(self.blocks, self._m_star, strict=True)
            )
        )

    # -- mu_inf ----------------------------------------------------------------------------------------------

    @cached_property
    def mu_inf(self) -> float:
        """1 / max_i (H^+)_ii, the l_1 Polyak-Lojasiewicz constant; inf if H = 0."""
        pairs = zip(self.blocks, self.block_smallest_positive.tolist(), strict=True)
        return min(_mu_inf(block, smallest) for block, smallest in pairs)

    @property
    def mu_inf_exact(self) -> bool:
        """Whether ``mu_inf`` is 1 / max_i (H^+)_ii; else a block's mu_+ stands in, a valid lower value."""
        return all(_has_pinv_diagonal(block) for block in self.blocks)

    def to_dict(self) -> dict[str, float | int | bool | str | None]:
        """Return the scalar constants by name; infinities (H = 0) become None."""
        return {
            name: None if isinstance(value, float) and math.isinf(value) else value
            for name, value in ((name, getattr(self, name)) for name in _SCALARS)
        }

    def __repr__(self) -> str:
        return (
            f"Curvature(P={self.size}, B={len(self.blocks)}, rank={self.rank}, L={self.largest:.6g}, "
            f"mu_+={self.smallest_positive:.6g}, kappa={self.condition_number:.6g}, "
            f"Lambda_P={self.parameter_weighted:.6g})"
        )


_SCALARS = (
    "size",
    "rank",
    "largest",
    "smallest",
    "smallest_positive",
    "condition_number",
    "trace",
    "parameter_weighted",
    "largest_diagonal",
    "abs_sum",
    "m_star_lower",
    "m_star_upper",
    "m_star_exact",
    "m_star_source",
    "mu_inf",
    "mu_inf_exact",
)


def curvature(problem: BlockQuadratic) -> Curvature:
    r"""Return the constants of the problem's Hessian, computed once per problem.

    Parameters
    ----------
    problem : BlockQuadratic
        The problem; its start and minimiser do not matter here.

    Returns
    -------
    Curvature
        Each constant is computed when it is first read.

    References
    ----------
    tomihari2025 (Lambda_P); balles2020 (M*, the norm of H from l_inf to l_1).

    Examples
    --------
    >>> c = curvature(BlockQuadratic.from_blocks([[[2, 1], [1, 2]], [5.0]], seed=0))
    >>> c.largest, c.rank, round(c.parameter_weighted, 9), round(c.m_star_upper, 9), round(c.mu_inf, 9)
    (5.0, 3, 3.666666667, 11.0, 1.5)
    """
    return _memo(problem, "curvature", lambda p: Curvature(p.blocks))


@dataclass(frozen=True, eq=False)
class FrozenPreconditioner:
    r"""The Hessian A = D^(-1/2) H D^(-1/2) that frozen Adam sees, D = diag |g(w_0)|.

    Frozen Adam (beta1 = 0, beta2 = 1, epsilon = 0) is gradient descent on A in y = D^(1/2) (w - w*).

    Parameters
    ----------
    eigenvalues : ndarray, shape (P,)
        The eigenvalues a_i of A, block after block, ascending within a block; 0 on the null space.
    components : ndarray, shape (P,)
        a_i c_i^2 / 2, the share of each eigenvector in f(w_0) - f*, in the order of ``eigenvalues``.
    c1, c2 : ndarray, shape (B,)
        C_l1 = min_i |g_0,l,i| / ||H_l|| and C_l2 = max_i |g_0,l,i| / ||H_l||.
    block_condition_numbers : ndarray, shape (B,)
        kappa_l, the blocks' own condition numbers (over positive eigenvalues).

    References
    ----------
    zhang2024, Theorem 1.
    """

    eigenvalues: FloatArray = field(repr=False)
    components: FloatArray = field(repr=False)
    c1: FloatArray
    c2: FloatArray
    block_condition_numbers: FloatArray
    smallest: float = field(init=False)
    largest: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "smallest", float(self.eigenvalues[self.eigenvalues > 0.0].min()))
        object.__setattr__(self, "largest", float(self.eigenvalues.max()))
        frozen(self.eigenvalues, self.components, self.c1, self.c2, self.block_condition_numbers)

    @property
    def condition_number(self) -> float:
        """kappa_A = a_max / a_min over positive eigenvalues."""
        return self.largest / self.smallest

    @property
    def best_learning_rate(self) -> float:
        """2 / (a_min + a_max), the constant step with the least contraction factor."""
        return 2.0 / (self.smallest + self.largest)

    @property
    def rho(self) -> float:
        """(kappa_A - 1) / (kappa_A + 1), the contraction at the best step; f contracts by its square."""
        return (self.largest - self.smallest) / (self.largest + self.smallest)

    @property
    def r(self) -> float:
        """zhang2024's r = max_l C_l2^2 / min_l C_l1^2."""
        return float(self.c2.max() / self.c1.min()) ** 2

    @property
    def condition_bound(self) -> float:
        """max_l (kappa_l C_l2) / min_l C_l1, at least kappa_A."""
        return float((self.block_condition_numbers * self.c2).max() / self.c1.min())

    @property
    def loose_condition_bound(self) -> float:
        """r^(1/2) max_l kappa_l, at least ``condition_bound``."""
        return float(self.c2.max() / self.c1.min() * self.block_condition_numbers.max())

    @property
    def safe_learning_rate(self) -> float:
        """min_l C_l1 <= 1 / a_max, at which f contracts by (1 - 1 / condition_bound)^2 or better."""
        return float(self.c1.min())

    def gap(self, iterations: int, learning_rate: float) -> float:
        r"""Return f_t - f* of frozen Adam without momentum, exact: sum_i components_i (1 - eta a_i)^(2 t).

        Parameters
        ----------
        iterations : int
            t >= 0, the number of updates.
        learning_rate : float
            The constant step eta.
        """
        factors = np.abs(1.0 - learning_rate * self.eigenvalues)
        with np.errstate(over="ignore", under="ignore"):
            powers = factors ** (2 * iterations)
        seen = self.components > 0.0  # 0 times an infinite power is 0 here
        return float(self.components[seen] @ powers[seen])


def frozen_preconditioner(problem: BlockQuadratic) -> FrozenPreconditioner:
    r"""Return the eigenvalues and constants of D^(-1/2) H D^(-1/2), D = diag |g(w_0)|; kept with the problem.

    The eigenvalues are the squared singular values of Lambda^(1/2) Q^T D^(-1/2), over the positive
    eigenvalues Lambda of H: this keeps the rank of H, and the small a_i lose half the digits that A would
    cost them.

    Parameters
    ----------
    problem : BlockQuadratic
        Every block must be nonzero, and every starting gradient entry in magnitude between 1e-145 and 1e154,
        so that its square is a number.

    Returns
    -------
    FrozenPreconditioner

    Raises
    ------
    ValueError
        If a block is zero, an entry of g(w_0) is out of range, or a Householder block is too large to be
        written out.

    References
    ----------
    zhang2024, Theorem 1.

    Examples
    --------
    >>> frozen = frozen_preconditioner(BlockQuadratic.from_blocks([[1.0, 9.0]], start=[4.0, 1.0]))
    >>> frozen.eigenvalues, frozen.condition_number, frozen.best_learning_rate
    (array([0.25, 1.  ]), 4.0, 1.6)
    """
    return _memo(problem, "frozen_preconditioner", _frozen_preconditioner)


def starting_gradient(problem: BlockQuadratic) -> FloatArray:
    """Return g(w_0) as the solver computes it, to the bit (but for Householder blocks).

    Where an entry is all rounding, another order of the sums gives another number, and D = diag |g(w_0)|
    would not be the solver's.

    Parameters
    ----------
    problem : BlockQuadratic

    Returns
    -------
    ndarray of shape (P,)

    Examples
    --------
    >>> starting_gradient(BlockQuadratic.from_blocks([[[2, 1], [1, 2]]], start=[1.0, 0.0]))
    array([2., 1.])
    """
    parts = []
    for block, x in zip(problem.blocks, problem.split(problem.displacement), strict=True):
        if isinstance(block, DenseBlock):
            parts.append(np.add.accumulate(block.matrix * x, axis=1)[:, -1])  # j ascending
        else:
            parts.append(block.matvec(x))
    return np.concatenate(parts)


def _frozen_preconditioner(problem: BlockQuadratic) -> FrozenPreconditioner:
    constants = curvature(problem)
    gradient = starting_gradient(problem)
    for index, norm in enumerate(constants.block_norms):
        if norm == 0.0:
            raise ValueError(f"block {index} is zero: frozen Adam needs every block's norm > 0")
    with np.errstate(over="ignore"):
        squares = gradient * gradient
    # What the solver keeps is the square: a smaller one is 0 there, a larger one inf.
    bad = np.flatnonzero(~((squares >= FLUSH) & (squares < np.inf)))
    if bad.size:
        raise ValueError(
            f"starting gradient is {gradient[bad[0]]:.6g} at coordinate {bad[0]}: "
            f"frozen Adam divides by the root of its square, {0 if squares[bad[0]] < FLUSH else np.inf}"
        )

    scales = np.abs(gradient)
    eigenvalues, components = [], []
    for block, scale, x in zip(
        problem.blocks, problem.split(scales), problem.split(problem.displacement), strict=True
    ):
        a, share = _preconditioned(block, scale, x)
        eigenvalues.append(a)
        components.append(share)
    starts = problem.offsets[:-1]
    return FrozenPreconditioner(
        eigenvalues=np.concatenate(eigenvalues),
        components=np.concatenate(components),
        c1=np.minimum.reduceat(scales, starts) / constants.block_norms,
        c2=np.maximum.reduceat(scales, starts) / constants.block_norms,
        block_condition_numbers=constants.block_norms / constants.block_smallest_positive,
    )


def _preconditioned(block: Block, scale: FloatArray, x: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the eigenvalues a_i of one preconditioned block, and a_i c_i^2 / 2."""
    if isinstance(block, DiagonalBlock):
        a = block.eigenvalues / scale
        order = np.argsort(a, kind="stable")
        return a[order], (0.5 * block.eigenvalues * x * x)[order]
    if isinstance(block, HouseholderBlock) and block.size > DENSE_LIMIT:
        raise ValueError(
            f"block of size {block.size}: the preconditioned spectrum of a Householder block "
            f"is computed up to size {DENSE_LIMIT}"
        )
    eigenvalues, vectors = block.eigenvalues, _eigenvectors(block)
    positive = block.positive
    null = block.size - np.count_nonzero(positive)
    if null:
        eigenvalues, vectors = eigenvalues[positive], vectors[:, positive]
    roots = np.sqrt(eigenvalues)
    halves = vectors * roots  # H = halves halves^T
    with one_blas_thread(block.size):
        left, singular, _ = np.linalg.svd(halves.T / np.sqrt(scale), full_matrices=False)
        energy = left.T @ (halves.T @ x)
    a, share = np.zeros(block.size), np.zeros(block.size)
    np.square(singular[::-1], out=a[null:])
    np.multiply(0.5, np.square(energy[::-1]), out=share[null:])
    return a, share


# -- parts, block by block -----------------------------------------------------------------------------------


def _memo(problem: BlockQuadratic, name: str, make: Callable[[BlockQuadratic], T]) -> T:
    """Return the value kept with the problem, computed at the first call."""
    if name not in problem.cache:
        problem.cache[name] = make(problem)
    return problem.cache[name]


def _read_only(array: np.ndarray) -> np.ndarray:
    frozen(array)
    return array


def _smallest_positive(block: Block) -> float:
    return float(block.eigenvalues[block.positive].min(initial=math.inf))


def _eigenvectors(block: Block) -> FloatArray:
    return block.eigenvectors if isinstance(block, DenseBlock) else block.from_eigenbasis(np.eye(block.size))


def _abs_sum(block: Block) -> float | None:
    """Return the sum of |H_ij| of a block, or None for a large Householder block."""
    if isinstance(block, DiagonalBlock):
        return float(block.trace)
    if isinstance(block, HouseholderBlock) and block.size > DENSE_LIMIT:
        return None
    matrix = block.to_dense()
    rows = max(1, 2**20 // block.size)  # a few rows at a time: no second matrix of absolute values
    return float(sum(np.abs(matrix[i : i + rows]).sum() for i in range(0, block.size, rows)))


def _m_star_lower(block: Block) -> float:
    """Return a lower value of M*_b, from a local search over sign vectors."""
    rng = np.random.default_rng(0)
    top = np.zeros(block.size)
    top[np.argmax(block.eigenvalues)] = 1.0
    best = float(block.trace)  # the mean of s^T H s over all s
    with one_blas_thread(block.size):
        for start in range(SEARCH_STARTS):
            direction = block.from_eigenbasis(top) if start == 0 else rng.standard_normal(block.size)
            best = max(best, _climb(block, np.where(direction < 0.0, -1.0, 1.0)))
    return best


def _climb(block: Block, signs: FloatArray) -> float:
    """Return the sign form s^T H s at a local maximum above ``signs``."""
    # s <- sign(H s) never decreases s^T H s for a positive semidefinite H, and changes many signs at once
    product = block.matvec(signs)
    value = float(signs @ product)
    for _ in range(100):
        proposal = np.where(product < 0.0, -1.0, 1.0)
        step = block.matvec(proposal)
        gain = float(proposal @ step) - value
        if not gain > 1e-12 * value:
            break
        signs, product, value = proposal, step, value + gain
    if not isinstance(block, DenseBlock):
        return value
    # then single signs: flipping s_k adds 4 (H_kk - s_k (H s)_k)
    diagonal, signs, product = block.diagonal(), signs.copy(), product.copy()
    while True:
        gains = diagonal - signs * product
        k = int(np.argmax(gains))
        if not gains[k] > 1e-12 * block.norm:
            return float(signs @ block.matvec(signs))
        signs[k] = -signs[k]
        product += 2.0 * signs[k] * block.matrix[k]


def _has_pinv_diagonal(block: Block) -> bool:
    # the diagonal of a Householder block of k reflectors costs O(P_b k^2)
    return not isinstance(block, HouseholderBlock) or block.reflectors.size * len(block.reflectors) <= (
        PINV_DIAGONAL_LIMIT
    )


def _mu_inf(block: Block, smallest: float) -> float:
    """Return 1 / max_i (H_b^+)_ii, or the block's smallest positive eigenvalue where that costs too much."""
    if isinstance(block, DiagonalBlock) or math.isinf(smallest) or not _has_pinv_diagonal(block):
        return smallest
    # mu_+ (H^+)_ii = sum_k q_ik^2 mu_+ / lam_k is in [0, 1]: nothing overflows, whatever the scale
    weights = np.divide(smallest, block.eigenvalues, out=np.zeros(block.size), where=block.positive)
    return smallest / min(1.0, float(block.spectral_diagonal(weights).max()))
