r"""Heterogeneity: how unevenly gradient and curvature are spread over the blocks.

The **weighted Hessian complexity** of a direction d != 0 is

    Lambda(d) = sum_b (||d_b||^2 / ||d||^2) ||H_b||_2,

so that d^T H d <= Lambda(d) ||d||^2. One function, three uses: Lambda_G = Lambda(g) (gradient-weighted),
Lambda(d) of an optimizer's update, and Lambda_P = sum_b (P_b / P) ||H_b||_2 (parameter-weighted), which is
Lambda(sign g) when no entry of g is zero and in general at least (nonzeros / P) Lambda(sign g).

**Criterion.** With the weights p_b = P_b / P, u_b = ||g_b||^2 / P_b and h_b = ||H_b||_2,

    cov_p(u, h) = sum_b p_b u_b h_b - (sum_b p_b u_b) (sum_b p_b h_b) = (||g||^2 / P) (Lambda_G - Lambda_P):

Lambda_G > Lambda_P exactly when the parameter-weighted covariance is positive. Log-log correlations are for
pictures: they often have the other sign.

**Spread** of nonnegative block quantities a_1, ..., a_B: the coefficient of variation (population standard
deviation over mean), the Gini coefficient sum_ij |a_i - a_j| / (2 B^2 mean a), and max / min. The entropy of
the shares ||g_b||^2 / ||g||^2 is divided by ln B: 1 for equal shares, 0 for one block that has it all.

**Between spectra**: the Jensen-Shannon distance, the square root of JS(p, q) = (KL(p | m) + KL(q | m)) / 2 in
base 2, m = (p + q) / 2; it lies in [0, 1]. A block's spectrum is a histogram in which each eigenvalue weighs
1 / P_b, on a grid that all blocks share: 100 equal bins of log10 lam over [mu_+, L], and one bin for zero.
(This discretisation is ours; that of zhang2024 is unconfirmed.)

References
----------
A. Tomihari, I. Sato, Understanding Transformer Optimization via Gradient Heterogeneity, arXiv 2502.00213.
Y. Zhang et al., Why Transformers Need Adam: A Hessian Perspective, NeurIPS 2024, arXiv 2402.16788.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from quadlab._arrays import FloatArray, real_array
from quadlab.curvature import curvature
from quadlab.problem import BlockQuadratic

__all__ = [
    "Correlation",
    "GradientHeterogeneity",
    "HessianHeterogeneity",
    "Spread",
    "correlation",
    "covariance",
    "gradient_heterogeneity",
    "gradient_weighted",
    "hessian_heterogeneity",
    "jensen_shannon",
    "mean_jensen_shannon",
    "parameter_weighted",
    "spread",
    "weighted_hessian_complexity",
]

#: Bins of log10 lam for the Jensen-Shannon distance.
SPECTRUM_BINS = 100


@dataclass(frozen=True)
class Spread:
    """How unequal nonnegative numbers a_1, ..., a_B are.

    Parameters
    ----------
    cv : float or None
        Coefficient of variation, population standard deviation / mean; None if all are zero.
    gini : float or None
        Gini coefficient, in [0, 1 - 1/B]; None if all are zero.
    max_over_min : float or None
        Largest over smallest; inf if only the smallest is zero, None if all are.
    """

    cv: float | None
    gini: float | None
    max_over_min: float | None


def spread(values: ArrayLike) -> Spread:
    r"""Return the coefficient of variation, Gini coefficient and max / min of nonnegative numbers.

    Parameters
    ----------
    values : array_like, shape (B,)
        Finite, nonnegative.

    Returns
    -------
    Spread

    Raises
    ------
    ValueError
        If there is no value, or one is negative or not finite.

    Examples
    --------
    >>> spread([1.0, 3.0])
    Spread(cv=0.5, gini=0.25, max_over_min=3.0)
    """
    a = np.sort(np.asarray(values, dtype=np.float64).ravel())
    if a.size == 0:
        raise ValueError("values is empty, needs at least one number")
    if not (np.isfinite(a).all() and a[0] >= 0.0):
        bad = a[~(np.isfinite(a) & (a >= 0.0))][0]
        raise ValueError(f"values holds {bad}, every value must be finite and >= 0")
    largest = float(a[-1])
    if largest == 0.0:
        return Spread(None, None, None)
    max_over_min = largest / float(a[0]) if a[0] > 0.0 else math.inf
    a = np.ldexp(a, -math.frexp(largest)[1])  # by a power of two: no overflow, and no rounding
    # sum_ij |a_i - a_j| = 2 sum_i (2 i - B - 1) a_(i) over the sorted values
    ranks = 2.0 * np.arange(1, a.size + 1) - a.size - 1.0
    mean = float(a.mean())
    gini = max(0.0, float(ranks @ a) / (a.size**2 * mean))
    return Spread(float(a.std()) / mean, gini, max_over_min)


class Correlation(NamedTuple):
    """Log-log correlations over blocks; None below three usable blocks or where a side is constant."""

    pearson: float | None
    spearman: float | None


@dataclass(frozen=True, eq=False)
class GradientHeterogeneity:
    """How unevenly the gradient is spread over blocks.

    Parameters
    ----------
    block_norms : ndarray, shape (B,)
        ||g_b||_2.
    per_parameter_norms : ndarray, shape (B,)
        ||g_b||_2 / sqrt(P_b).
    spread, per_parameter : Spread
        Of ``block_norms`` and of ``per_parameter_norms``.
    entropy : float or None
        Entropy of ||g_b||^2 / ||g||^2 over ln B, in [0, 1]; None for a single block or g = 0.
    """

    block_norms: FloatArray = field(repr=False)
    per_parameter_norms: FloatArray = field(repr=False)
    spread: Spread
    per_parameter: Spread
    entropy: float | None


@dataclass(frozen=True, eq=False)
class HessianHeterogeneity:
    """How unevenly the curvature is spread over blocks.

    Parameters
    ----------
    block_norms : ndarray, shape (B,)
        ||H_b||_2.
    spread : Spread
        Of ``block_norms``.
    parameter_weighted : float
        Lambda_P.
    mean_jensen_shannon : float or None
        JS^0, the mean Jensen-Shannon distance over pairs of block spectra; None for a single block.
    """

    block_norms: FloatArray = field(repr=False)
    spread: Spread
    parameter_weighted: float
    mean_jensen_shannon: float | None


def weighted_hessian_complexity(problem: BlockQuadratic, direction: ArrayLike) -> float:
    r"""Return Lambda(d) = sum_b (||d_b||^2 / ||d||^2) ||H_b||_2.

    Parameters
    ----------
    problem : BlockQuadratic
        Only its blocks matter.
    direction : array_like, shape (P,)
        d, finite and not zero; its length does not matter.

    Returns
    -------
    float
        Between the least and the largest block norm; d^T H d <= Lambda(d) ||d||^2.

    Raises
    ------
    ValueError
        If d has another shape, is zero, or is not finite.

    References
    ----------
    tomihari2025.

    Examples
    --------
    >>> problem = BlockQuadratic.from_blocks([[1.0], [9.0, 4.0]], seed=0)
    >>> weighted_hessian_complexity(problem, [1.0, 1.0, 0.0])
    5.0
    """
    squares, _ = _block_squares(problem, _vector(problem, direction, "direction"))
    total = float(squares.sum())
    if total == 0.0:
        raise ValueError("direction is zero, Lambda(d) needs d != 0")
    return float(squares @ problem.block_norms) / total


def gradient_weighted(problem: BlockQuadratic, w: ArrayLike | None = None) -> float:
    r"""Return Lambda_G = Lambda(g(w)), the gradient-weighted Hessian complexity.

    Parameters
    ----------
    problem : BlockQuadratic
    w : array_like, shape (P,), optional
        The point; the start by default.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If the gradient at ``w`` is zero.

    References
    ----------
    tomihari2025.

    Examples
    --------
    >>> problem = BlockQuadratic.from_blocks([[1.0], [3.0]], start=[3.0, 1.0])
    >>> gradient_weighted(problem), parameter_weighted(problem)
    (2.0, 2.0)
    """
    g = _gradient(problem, w)
    if not g.any():
        raise ValueError("gradient is zero at this point, Lambda_G needs g != 0")
    return weighted_hessian_complexity(problem, g)


def parameter_weighted(problem: BlockQuadratic) -> float:
    r"""Return Lambda_P = sum_b (P_b / P) ||H_b||_2, the parameter-weighted Hessian complexity.

    Parameters
    ----------
    problem : BlockQuadratic

    Returns
    -------
    float

    References
    ----------
    tomihari2025.

    Examples
    --------
    >>> parameter_weighted(BlockQuadratic.from_blocks([[1.0], [9.0, 4.0, 4.0]], seed=0))
    7.0
    """
    return curvature(problem).parameter_weighted


def gradient_heterogeneity(problem: BlockQuadratic, w: ArrayLike | None = None) -> GradientHeterogeneity:
    r"""Return the block gradient norms at a point, and how unequal they are.

    Parameters
    ----------
    problem : BlockQuadratic
    w : array_like, shape (P,), optional
        The point; the start by default.

    Returns
    -------
    GradientHeterogeneity

    Examples
    --------
    >>> problem = BlockQuadratic.from_blocks([[1.0], [1.0]], start=[1.0, 3.0])
    >>> gradient_heterogeneity(problem).spread
    Spread(cv=0.5, gini=0.25, max_over_min=3.0)
    """
    squares, exponent = _block_squares(problem, _gradient(problem, w))
    norms = np.ldexp(np.sqrt(squares), exponent)
    per_parameter = norms / np.sqrt(problem.block_sizes)
    return GradientHeterogeneity(norms, per_parameter, spread(norms), spread(per_parameter), _entropy(norms))


def hessian_heterogeneity(problem: BlockQuadratic) -> HessianHeterogeneity:
    r"""Return the block norms of the Hessian, and how unequal they and the block spectra are.

    Parameters
    ----------
    problem : BlockQuadratic

    Returns
    -------
    HessianHeterogeneity

    Examples
    --------
    >>> hessian_heterogeneity(BlockQuadratic.from_blocks([[1.0], [9.0]], seed=0))
    HessianHeterogeneity(spread=Spread(cv=0.8, gini=0.4, max_over_min=9.0), parameter_weighted=5.0,
                         mean_jensen_shannon=1.0)
    """
    norms = problem.block_norms
    distance = mean_jensen_shannon(problem)
    return HessianHeterogeneity(norms, spread(norms), parameter_weighted(problem), distance)


def covariance(problem: BlockQuadratic, w: ArrayLike | None = None) -> float:
    r"""Return the parameter-weighted covariance over blocks of ||g_b||^2 / P_b with ||H_b||_2.

    It equals (||g||^2 / P) (Lambda_G - Lambda_P): its sign says which complexity is larger.

    Parameters
    ----------
    problem : BlockQuadratic
    w : array_like, shape (P,), optional
        The point; the start by default.

    Returns
    -------
    float
        In units of gradient squared times curvature.

    Examples
    --------
    >>> problem = BlockQuadratic.from_blocks([[1.0], [3.0]], start=[1.0, 1.0])
    >>> covariance(problem)
    4.0
    """
    squares, exponent = _block_squares(problem, _gradient(problem, w))
    sizes, norms = problem.block_sizes, problem.block_norms
    shares = sizes / sizes.sum()
    u = squares / sizes
    return float(np.ldexp(shares @ ((u - shares @ u) * (norms - shares @ norms)), 2 * exponent))


def correlation(
    problem: BlockQuadratic, w: ArrayLike | None = None, *, per_parameter: bool = True
) -> Correlation:
    r"""Return the Pearson and Spearman correlations of log block gradient norm with log ||H_b||_2.

    For pictures: the exact criterion for Lambda_G > Lambda_P is the sign of :func:`covariance`.

    Parameters
    ----------
    problem : BlockQuadratic
    w : array_like, shape (P,), optional
        The point; the start by default.
    per_parameter : bool
        Use ||g_b|| / sqrt(P_b) (default) rather than ||g_b||.

    Returns
    -------
    Correlation
        Over the blocks in which both are positive; None below three of them, or where one side is constant.

    Examples
    --------
    >>> problem = BlockQuadratic.from_blocks([[1.0], [10.0], [100.0]], start=[1.0, 1.0, 1.0])
    >>> round(correlation(problem).pearson, 12), round(correlation(problem).spearman, 12)
    (1.0, 1.0)
    """
    found = gradient_heterogeneity(problem, w)
    gradients = found.per_parameter_norms if per_parameter else found.block_norms
    norms = problem.block_norms
    both = (gradients > 0.0) & (norms > 0.0)
    if np.count_nonzero(both) < 3:
        return Correlation(None, None)
    x, y = np.log(gradients[both]), np.log(norms[both])
    if min(np.ptp(x), np.ptp(y)) <= 1e-12:  # equal up to rounding
        return Correlation(None, None)
    return Correlation(_pearson(x, y), _pearson(_ranks(x), _ranks(y)))


def jensen_shannon(problem: BlockQuadratic) -> FloatArray:
    r"""Return the Jensen-Shannon distances between the block spectra.

    Parameters
    ----------
    problem : BlockQuadratic

    Returns
    -------
    ndarray, shape (B, B)
        Symmetric, in [0, 1], zero on the diagonal.

    References
    ----------
    zhang2024 (the idea; the discretisation, see the module's head, is ours).

    Examples
    --------
    >>> problem = BlockQuadratic.from_blocks([[1.0, 100.0], [100.0, 1.0], [10.0]], seed=0)
    >>> jensen_shannon(problem)
    array([[0., 0., 1.],
           [0., 0., 1.],
           [1., 1., 0.]])
    """
    return histogram_distances(_histograms(problem))


def histogram_distances(p: FloatArray) -> FloatArray:
    """Return the Jensen-Shannon distances between the rows of `p`, each a distribution over common bins."""
    from scipy.special import rel_entr

    distances = np.zeros((len(p), len(p)))
    for b in range(len(p) - 1):
        q = p[b + 1 :]
        middle = 0.5 * (p[b] + q)
        divergence = (rel_entr(p[b], middle) + rel_entr(q, middle)).sum(axis=1) / (2.0 * math.log(2.0))
        distances[b, b + 1 :] = np.sqrt(np.clip(divergence, 0.0, 1.0))
    return distances + distances.T


def mean_jensen_shannon(problem: BlockQuadratic) -> float | None:
    r"""Return JS^0, the mean Jensen-Shannon distance over the pairs of blocks.

    Parameters
    ----------
    problem : BlockQuadratic

    Returns
    -------
    float or None
        In [0, 1]; None for a single block.

    References
    ----------
    zhang2024.

    Examples
    --------
    >>> mean_jensen_shannon(BlockQuadratic.from_blocks([[1.0], [1.0], [10.0], [10.0]], seed=0))
    0.6666666666666666
    """
    distances = jensen_shannon(problem)
    if len(distances) < 2:
        return None
    return float(distances[np.triu_indices(len(distances), 1)].mean())


def _histograms(problem: BlockQuadratic) -> FloatArray:
    """Return the block spectra on the common grid, shape (B, 1 + bins): column 0 is zero, rows sum to 1."""
    constants = curvature(problem)
    eigenvalues, positive = problem.eigenvalues, constants.positive
    bins = np.zeros(problem.size, dtype=np.int64)
    if positive.any():
        logs = np.log10(eigenvalues[positive])
        low, width = logs.min(), np.ptp(logs)
        # the nudge sends an eigenvalue on an edge, up to rounding, to the bin above
        steps = (logs - low) * (SPECTRUM_BINS / width) + 1e-9 if width > 1e-12 else np.zeros(logs.size)
        bins[positive] = 1 + np.minimum(steps.astype(np.int64), SPECTRUM_BINS - 1)
    rows = np.repeat(np.arange(problem.n_blocks), problem.block_sizes)
    counts = np.bincount(rows * (SPECTRUM_BINS + 1) + bins, minlength=problem.n_blocks * (SPECTRUM_BINS + 1))
    return counts.reshape(problem.n_blocks, -1) / problem.block_sizes[:, None]


def _entropy(norms: FloatArray) -> float | None:
    """Return the entropy of norms^2 / sum norms^2 over ln B."""
    if len(norms) < 2 or not norms.any():
        return None
    shares = (norms / norms.max()) ** 2
    shares = shares[shares > 0.0] / shares.sum()
    return min(1.0, max(0.0, -float(shares @ np.log(shares)) / math.log(len(norms))))


def _pearson(x: FloatArray, y: FloatArray) -> float:
    x, y = x - x.mean(), y - y.mean()
    value = float(x @ y) / math.sqrt(float(x @ x) * float(y @ y))
    return min(1.0, max(-1.0, value))


def _ranks(x: FloatArray) -> FloatArray:
    """Return ranks from 1, ties at their mean rank."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - 0.5 * (counts - 1))[inverse]


def _vector(problem: BlockQuadratic, values: ArrayLike, name: str) -> FloatArray:
    """Return a finite vector of the problem's size."""
    vector = real_array(values, name)
    if vector.shape != (problem.size,):
        raise ValueError(f"{name} has shape {vector.shape}, must be ({problem.size},)")
    finite = np.isfinite(vector)
    if not finite.all():
        raise ValueError(f"{name} holds {vector[~finite][0]}, must be finite")
    return vector


def _gradient(problem: BlockQuadratic, w: ArrayLike | None) -> FloatArray:
    return problem.gradient(problem.start if w is None else _vector(problem, w, "w"))


def _block_squares(problem: BlockQuadratic, vector: FloatArray) -> tuple[FloatArray, int]:
    """Return ||d_b||^2 / 4^e for each block, and e: scaled by a power of two, so that no square overflows."""
    exponent = math.frexp(float(np.abs(vector).max()))[1]
    scaled = np.ldexp(vector, -exponent)
    return np.add.reduceat(scaled * scaled, problem.offsets[:-1]), exponent
