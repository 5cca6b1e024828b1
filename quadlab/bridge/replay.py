r"""Measured blocks replayed as a quadratic, and what it predicts; torch is not needed.

`replay` makes a block-diagonal quadratic of a model's `BlockStatistics`:

- **Sizes** as measured, or all reduced by one factor so that the largest is `max_block_size`; no block
  vanishes.
- **Spectra**: the P_b quantiles of the measured density, the largest set to ||H_b||_2 as measured, so that
  Lambda_G and Lambda_P are those of the model (up to the rounding of sizes).
- **Negative curvature**: a quadratic with a minimum has none. ``"absolute"`` takes |lam|: a direction is as
  stiff as it is curved, whichever way, and ||H_b|| stays what was measured. ``"zero"`` takes max(lam, 0): a
  direction that curves downward becomes flat.
- **Gradient**: the start is x_b = c_b xi_b with xi_b ~ N(0, I) and c_b such that ||g_b|| = ||H_b x_b|| is as
  measured. A gradient drawn directly would put as much of itself into nearly flat directions as into stiff
  ones, at distances g / lam without a limit.
- **Eigenbases** are Haar-random: no model's Hessian has the axes for eigenvectors.
- **Noise**, if asked for: sigma_b sqrt(measured size / replayed size), which keeps its norm over a block in
  proportion to ||g_b||.
- **Skipped** are blocks without curvature (a key's bias has exactly none) or without gradient.

`predict` says what theory makes of the statistics: the complexities, the Jensen-Shannon distances between the
blocks' densities, and the counts of GD, SignSGD and Adam on the replayed problem, each at its best constant
learning rate, beside their bounds. In the distances eigenvalues within `FLAT` ||H_b|| of zero, which a
Lanczos quadrature of some ten steps does not resolve, count as zero; the others are smoothed by a Gaussian of
`BANDWIDTH` decades, as the nodes of a quadrature are no more than a sample of the spectrum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quadlab._arrays import FloatArray, shown
from quadlab.bridge.statistics import BlockStatistics
from quadlab.compare import Comparison, compare
from quadlab.curvature import curvature
from quadlab.heterogeneity import SPECTRUM_BINS, histogram_distances
from quadlab.methods import GD, Adam, Method, SignSGD
from quadlab.problem import BlockQuadratic
from quadlab.solve import BestLearningRate, best_learning_rate
from quadlab.spectra import Density
from quadlab.stopping import Gap, Stop

__all__ = ["Prediction", "density_distances", "predict", "replay", "skipped"]

#: Up to this fraction of ||H_b|| a block counts as without curvature, beside the largest of all blocks.
NO_CURVATURE = 1e-10
#: Eigenvalues within this fraction of ||H_b|| of zero are zero to the Jensen-Shannon distances: with few
#: Lanczos steps, the one node that carries a flat bulk falls anywhere below it.
FLAT = 1e-2
#: Smoothing of the densities for the Jensen-Shannon distances, in powers of ten of the eigenvalue.
BANDWIDTH = 0.25
NEGATIVE = ("absolute", "zero")

#: What predict runs, and the powers of ten of its learning rates relative to 2/L (GD) or ||x_0||_inf.
METHODS: dict[str, tuple[Method, FloatArray]] = {
    "gd": (GD(1.0), np.linspace(-0.45, 0.05, 11)),
    "signsgd": (SignSGD(1.0), np.linspace(-5.0, 1.0, 31)),
    "adam": (Adam(1.0), np.linspace(-5.0, 1.0, 31)),
}
STOP = Gap(0.01, relative=True)


def replay(
    statistics: BlockStatistics,
    max_block_size: int | None = 64,
    *,
    negative: str = "absolute",
    noise: bool = False,
    seed: int = 0,
) -> BlockQuadratic:
    """Return the quadratic with the measured sizes, gradient norms and spectra.

    Parameters
    ----------
    statistics : BlockStatistics
        With a density for every block that has curvature.
    max_block_size : int >= 1 or None
        All sizes are reduced by one factor so that none is larger; None keeps them.
    negative : "absolute" or "zero"
        What a negative eigenvalue becomes: |lam|, or 0.
    noise : bool
        Keep the measured noise of a batch's gradient.
    seed : int >= 0
        Of the eigenbases and of the start.

    Returns
    -------
    BlockQuadratic

    Raises
    ------
    ValueError
        If a density is missing, noise is asked for but was not measured, no block is left, or an argument is
        out of range.

    References
    ----------
    tomihari2025 (the scales), zhang2024 (the spectra).

    Examples
    --------
    >>> s = BlockStatistics(["w", "b"], sizes=[2, 1], gradient_norms=[3.0, 4.0], noise=[0.1, 0.1],
    ...     top=[5.0, 1.0], bottom=[-1.0, 1.0], trace=[4.0, 1.0], trace_error=[0, 0],
    ...     nodes=[[-1.0, 5.0], [1.0]], weights=[[0.5, 0.5], [1.0]], density_error=[0, 0], exact=[True, True],
    ...     leakage=0.2, leakage_error=0.01, loss=0.7, batches=4)
    >>> replay(s).block_norms.tolist(), replay(s, negative="zero").eigenvalues.tolist()
    ([5.0, 1.0], [0.0, 5.0, 1.0])
    """
    if negative not in NEGATIVE:
        raise ValueError(f"negative must be one of {', '.join(NEGATIVE)}, received {shown(negative)}")
    sizes = _reduced(statistics.sizes, max_block_size)
    norms = _norms(statistics, negative)
    kept = np.flatnonzero(_curved(norms) & (statistics.gradient_norms > 0.0))
    if kept.size == 0:
        raise ValueError("no block has both a gradient and curvature, so there is nothing to replay")
    spectra = []
    for b in kept:
        nodes, weights = statistics.nodes[b], statistics.weights[b]
        if nodes.size == 0:
            raise ValueError(f"block {statistics.names[b]!r} has no density, which a replay needs")
        nodes = np.abs(nodes) if negative == "absolute" else np.maximum(nodes, 0.0)
        values = np.minimum(Density(nodes, weights).eigenvalues(int(sizes[b])), norms[b])
        values[-1] = norms[b]
        spectra.append(values)
    sigma = None
    if noise:
        measured = statistics.noise[kept]
        if np.isnan(measured).any():
            raise ValueError("the noise was not measured: it needs two or more batches")
        sigma = np.repeat(measured * np.sqrt(statistics.sizes[kept] / sizes[kept]), sizes[kept])
    problem = BlockQuadratic.from_spectra(
        spectra, basis="haar", noise=sigma, seed=seed, name=str(statistics.meta.get("name", ""))
    )
    scales = [
        wanted / math.sqrt(g @ g)
        for wanted, g in zip(
            statistics.gradient_norms[kept], problem.split(problem.gradient(problem.start)), strict=True
        )
    ]
    return problem.with_start(np.repeat(scales, sizes[kept]) * problem.start)


def _reduced(sizes: Any, most: Any) -> Any:
    if most is None:
        return sizes
    if isinstance(most, bool) or not isinstance(most, (int, np.integer)) or most < 1:
        raise ValueError(f"max_block_size must be an integer >= 1 or None, received {shown(most)}")
    factor = min(1.0, most / sizes.max())
    return np.maximum(1, np.floor(sizes * factor + 0.5).astype(np.int64))


def _norms(statistics: BlockStatistics, negative: str) -> FloatArray:
    return statistics.block_norms if negative == "absolute" else np.maximum(statistics.top, 0.0)


def _curved(norms: FloatArray) -> NDArray[np.bool_]:
    return norms > NO_CURVATURE * norms.max()


def skipped(statistics: BlockStatistics, negative: str = "absolute") -> tuple[str, ...]:
    """Return the names of the blocks that `replay` leaves out: without curvature, or without gradient.

    Parameters
    ----------
    statistics, negative
        As for `replay`.
    """
    moving = _curved(_norms(statistics, negative)) & (statistics.gradient_norms > 0.0)
    return tuple(name for name, moves in zip(statistics.names, moving, strict=True) if not moves)


def density_distances(statistics: BlockStatistics) -> tuple[tuple[str, ...], FloatArray]:
    """Return the Jensen-Shannon distances between the densities of the blocks that have curvature.

    The densities of |lam| are histograms on the common grid of `quadlab.heterogeneity`, smoothed; see the
    module's head.

    Parameters
    ----------
    statistics : BlockStatistics

    Returns
    -------
    tuple of str, ndarray of shape (B', B')
        The names of the blocks, and the distances in [0, 1].

    Raises
    ------
    ValueError
        If a block with curvature has no density, or no block has curvature.
    """
    norms = statistics.block_norms
    curved = np.flatnonzero(_curved(norms))
    if curved.size == 0:
        raise ValueError("no block has curvature, so there are no distances between spectra")
    low, high = math.log10(FLAT * norms[curved].min()), math.log10(norms.max())
    edges = np.linspace(low, high, SPECTRUM_BINS + 1)
    centres = (edges[1:] + edges[:-1]) / 2.0
    histograms = np.zeros((curved.size, SPECTRUM_BINS + 1))
    for row, b in zip(histograms, curved, strict=True):
        nodes, weights = np.abs(statistics.nodes[b]), statistics.weights[b]
        if nodes.size == 0:
            raise ValueError(f"block {statistics.names[b]!r} has no density, which the distances need")
        positive = nodes > FLAT * norms[b]
        row[0] = weights[~positive].sum()
        kernel = np.exp(-0.5 * ((centres - np.log10(nodes[positive])[:, None]) / BANDWIDTH) ** 2)
        row[1:] = weights[positive] @ (kernel / kernel.sum(axis=1, keepdims=True))
    histograms /= histograms.sum(axis=1, keepdims=True)
    return tuple(statistics.names[b] for b in curved), histogram_distances(histograms)


@dataclass(frozen=True)
class Prediction:
    r"""What theory makes of a model's block statistics.

    Attributes
    ----------
    gradient_weighted, parameter_weighted : float
        Lambda_G and Lambda_P of the measured blocks.
    names : tuple of str
        The blocks of the distances.
    jensen_shannon : ndarray, shape (B', B')
        Distances between the densities of the blocks that have curvature.
    comparison : Comparison
        GD, SignSGD and Adam on the replayed problem, in this order, each at its best constant learning rate.
    skipped : tuple of str
        Blocks that are not in the replayed problem.
    at_edge : tuple of str
        Methods whose best learning rate is an end of the grid.
    """

    gradient_weighted: float
    parameter_weighted: float
    names: tuple[str, ...]
    jensen_shannon: FloatArray
    comparison: Comparison
    skipped: tuple[str, ...]
    at_edge: tuple[str, ...]

    @property
    def ratio(self) -> float:
        """Lambda_G / Lambda_P."""
        return self.gradient_weighted / self.parameter_weighted

    @property
    def mean_jensen_shannon(self) -> float | None:
        """JS^0, the mean distance over pairs of blocks; None for a single block."""
        pairs = np.triu_indices(len(self.names), 1)
        return float(self.jensen_shannon[pairs].mean()) if len(self.names) > 1 else None

    @property
    def problem(self) -> BlockQuadratic:
        """The replayed problem."""
        return self.comparison.problem

    @property
    def counts(self) -> dict[str, int | None]:
        """Method -> updates to the target; None where no run got there."""
        runs = (entry.run for entry in self.comparison.runs)
        return {run.method.name: run.iterations if run.converged else None for run in runs}

    def gap(self, slow: str = "gd", fast: str = "adam") -> float | None:
        """Return the ratio of two methods' counts; None where one has no count, or the second's is 0."""
        a, b = self.counts[slow], self.counts[fast]
        return a / b if a is not None and b else None

    def to_dict(self) -> dict[str, Any]:
        """Return the prediction for JSON; neither NaN nor Infinity occurs."""
        return {
            "lambda_g": self.gradient_weighted,
            "lambda_p": self.parameter_weighted,
            "ratio": self.ratio,
            "mean_jensen_shannon": self.mean_jensen_shannon,
            "blocks": list(self.names),
            "jensen_shannon": np.round(self.jensen_shannon, 6).tolist(),
            "skipped": list(self.skipped),
            "iterations": self.counts,
            "at_edge": list(self.at_edge),
            "comparison": self.comparison.to_dict(),
        }

    def __str__(self) -> str:
        distance = self.mean_jensen_shannon
        lines = [
            f"Lambda_G = {self.gradient_weighted:.4g}, Lambda_P = {self.parameter_weighted:.4g}, "
            f"Lambda_G / Lambda_P = {self.ratio:.4g}, "
            f"JS^0 = {'-' if distance is None else f'{distance:.4g}'}",
        ]
        if self.skipped:
            lines.append(f"skipped, without gradient or curvature: {', '.join(self.skipped)}")
        if self.at_edge:
            lines.append(f"best learning rate at an end of the grid: {', '.join(self.at_edge)}")
        return "\n".join([*lines, "", str(self.comparison)])


def predict(
    statistics: BlockStatistics,
    stop: Stop = STOP,
    *,
    max_iterations: int = 10**5,
    max_block_size: int | None = 64,
    negative: str = "absolute",
    seed: int = 0,
) -> Prediction:
    """Return the complexities, the distances, and the counts on the replayed problem beside their bounds.

    Parameters
    ----------
    statistics : BlockStatistics
        As for `replay`.
    stop : GradientNorm or Gap
        The same test for all methods; by default a hundredth of the loss gap at the start.
    max_iterations : int >= 1
        The cap; the caps tried on the way to it double.
    max_block_size, negative, seed
        As for `replay`; the runs are without noise.

    Returns
    -------
    Prediction

    Raises
    ------
    ValueError
        As `replay`.
    """
    problem = replay(statistics, max_block_size, negative=negative, seed=seed)
    methods, edges = [], []
    for name, (method, exponents) in METHODS.items():
        scale = 2.0 / curvature(problem).largest if name == "gd" else np.abs(problem.displacement).max()
        found = _best(problem, method, stop, scale * 10.0**exponents, max_iterations)
        methods.append(replace(method, learning_rate=_chosen(found)))
        if found.at_edge:
            edges.append(name)
    names, distances = density_distances(statistics)
    return Prediction(
        statistics.gradient_weighted,
        statistics.parameter_weighted,
        names,
        distances,
        compare(problem, methods, stop, max_iterations=max_iterations),
        skipped(statistics, negative),
        tuple(edges),
    )


def _best(
    problem: BlockQuadratic, method: Method, stop: Stop, rates: Sequence[float] | FloatArray, cap: int
) -> BestLearningRate:
    """Return the best learning rate: a run needing more than the first cap that one meets cannot be it."""
    limit = min(100, cap)
    while True:
        found = best_learning_rate(problem, method, stop, learning_rates=rates, max_iterations=limit)
        if found.learning_rate is not None or limit >= cap:
            return found
        limit = min(2 * limit, cap)


def _chosen(found: BestLearningRate) -> float:
    """Return the best learning rate; if no run converged, that of the lowest loss at the cap."""
    if found.learning_rate is not None:
        return found.learning_rate
    gaps = [run.final["gap"] for run in found.runs]
    return float(found.learning_rates[int(np.nanargmin(gaps))])
