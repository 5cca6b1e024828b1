r"""Eigenvalue laws of one block.

A law gives the eigenvalues :math:`0 \le \lambda_1 \le \dots \le \lambda_n` of a block of any size :math:`n`.
The laws with a distribution function :math:`F` are deterministic: they return the quantiles

.. math:: \lambda_k = F^{-1}\big((k - \tfrac12) / n\big), \qquad k = 1, \dots, n,

so that a problem of a given size is one problem, not a sample of it. Only ``LogUniform(..., random=True)``
draws. The option ``top``, which multiplies a spectrum so that its largest eigenvalue becomes a given number,
is one of `quadlab.problem.BlockQuadratic.from_spectra`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from quadlab._arrays import Content, FloatArray, first_bad, frozen, real_array, real_number, shown

__all__ = [
    "Density",
    "Listed",
    "LogUniform",
    "MarchenkoPastur",
    "PowerLaw",
    "Spectrum",
    "TwoPoint",
    "as_spectrum",
    "check_eigenvalues",
]


class Spectrum:
    """A law of eigenvalues of one block; every law below is one, and so is a user's subclass."""

    #: Whether `eigenvalues` may draw; a law that does not is asked without a generator.
    random: bool = True

    def eigenvalues(self, size: int, rng: np.random.Generator | None = None) -> FloatArray:
        """Return `size` eigenvalues, ascending (`Listed`: as listed).

        They must depend on these two arguments alone: blocks may be made in any order.

        Parameters
        ----------
        size : int
            Number of eigenvalues P_b >= 1.
        rng : numpy.random.Generator, optional
            Source of randomness of the laws that draw; the others ignore it.

        Returns
        -------
        ndarray of shape (size,), float64
            Finite and >= 0.
        """
        raise NotImplementedError


def check_eigenvalues(values: FloatArray) -> FloatArray:
    """Return `values` if it is a non-empty vector of finite eigenvalues >= 0.

    Raises
    ------
    ValueError
        Naming the first offending value and its position.

    Examples
    --------
    >>> check_eigenvalues(np.array([1.0, -2.0]))
    Traceback (most recent call last):
    ValueError: eigenvalue -2.0 at position 1 is not finite and >= 0
    """
    if values.ndim != 1:
        raise ValueError(f"eigenvalues must be a list of numbers, received an array of shape {values.shape}")
    if values.size == 0:
        raise ValueError("the block is empty: received no eigenvalues")
    if not (values.min() >= 0.0 and values.max() < math.inf):  # NaN fails both
        bad = first_bad((values >= 0.0) & (values < math.inf))
        raise ValueError(f"eigenvalue {float(values[bad])} at position {bad} is not finite and >= 0")
    return values


def _levels(size: int) -> FloatArray:
    return (np.arange(size) + 0.5) / size


@dataclass(frozen=True, eq=False)
class Listed(Spectrum, Content):
    """The eigenvalues as listed, in that order.

    Parameters
    ----------
    values : sequence of float, shape (P_b,)
        Finite and >= 0.

    Raises
    ------
    ValueError
        If a value is negative, not finite or not real, if there are none, or if a size other than theirs is
        asked for.

    Examples
    --------
    >>> Listed([3, 1]).eigenvalues(2).tolist()
    [3.0, 1.0]
    """

    values: FloatArray

    random = False

    def __post_init__(self) -> None:
        values = check_eigenvalues(real_array(self.values, "eigenvalues"))
        frozen(values)
        object.__setattr__(self, "values", values)

    def eigenvalues(self, size: int, rng: np.random.Generator | None = None) -> FloatArray:
        """Return the list itself (read-only)."""
        if size != self.values.size:
            raise ValueError(f"size {size} was asked of a list of {self.values.size} eigenvalues")
        return self.values


@dataclass(frozen=True)
class TwoPoint(Spectrum):
    r"""Two values: :math:`\lfloor \phi n + 1/2 \rfloor` eigenvalues at `high`, the rest at `low`.

    Parameters
    ----------
    low, high : float
        0 <= low <= high.
    fraction_high : float, default 0.5
        The fraction :math:`\phi` in [0, 1] of eigenvalues at `high`.

    Raises
    ------
    ValueError
        If a parameter is outside its range.

    Examples
    --------
    >>> TwoPoint(1, 100, fraction_high=0.25).eigenvalues(4).tolist()
    [1.0, 1.0, 1.0, 100.0]
    """

    low: float
    high: float
    fraction_high: float = 0.5

    random = False

    def __post_init__(self) -> None:
        real_number(self.low, "TwoPoint low")
        real_number(self.high, "TwoPoint high", float(self.low))
        if real_number(self.fraction_high, "TwoPoint fraction_high") > 1:
            raise ValueError(f"TwoPoint fraction_high must lie in [0, 1], received {self.fraction_high}")

    def eigenvalues(self, size: int, rng: np.random.Generator | None = None) -> FloatArray:
        """Return `size` eigenvalues, ascending."""
        values = np.full(size, float(self.low))
        values[size - math.floor(size * self.fraction_high + 0.5) :] = self.high
        return values


@dataclass(frozen=True)
class LogUniform(Spectrum):
    r"""Evenly spaced in :math:`\log\lambda` from `low` to `high`, both ends exactly, or drawn at random.

    .. math:: \lambda_k = \text{low}\,(\text{high}/\text{low})^{(k-1)/(n-1)}

    A block of one has the eigenvalue `high`. With ``random=True`` the :math:`\log\lambda_k` are independent
    and uniform.

    Parameters
    ----------
    low, high : float
        0 < low <= high.
    random : bool, default False
        Draw instead of spacing evenly.

    Raises
    ------
    ValueError
        If a parameter is outside its range.

    Examples
    --------
    >>> LogUniform(1, 100).eigenvalues(3).tolist()
    [1.0, 10.0, 100.0]
    """

    low: float
    high: float
    random: bool = False

    def __post_init__(self) -> None:
        if real_number(self.low, "LogUniform low") == 0:
            raise ValueError(f"LogUniform low must be positive, received {self.low}")
        real_number(self.high, "LogUniform high", float(self.low))

    def eigenvalues(self, size: int, rng: np.random.Generator | None = None) -> FloatArray:
        """Return `size` eigenvalues, ascending; `rng` is needed if `random`."""
        low, high = float(self.low), float(self.high)
        if self.random:
            if rng is None:
                raise ValueError("LogUniform(random=True) needs a random generator, received None")
            values = np.exp(np.sort(rng.uniform(math.log(low), math.log(high), size)))
            return np.clip(values, low, high)  # exp(log(high)) may round above high
        return np.geomspace(low, high, size) if size > 1 else np.array([high])


@dataclass(frozen=True)
class PowerLaw(Spectrum):
    r"""A power law, :math:`\lambda_k = \text{top}\; k^{-\text{exponent}}`, k = 1..n, returned ascending.

    Parameters
    ----------
    top : float
        The largest eigenvalue, >= 0.
    exponent : float
        >= 0; 0 gives equal eigenvalues.

    Raises
    ------
    ValueError
        If a parameter is outside its range.

    Examples
    --------
    >>> PowerLaw(12, 1).eigenvalues(3).tolist()
    [4.0, 6.0, 12.0]
    """

    top: float
    exponent: float

    random = False

    def __post_init__(self) -> None:
        real_number(self.top, "PowerLaw top")
        real_number(self.exponent, "PowerLaw exponent")

    def eigenvalues(self, size: int, rng: np.random.Generator | None = None) -> FloatArray:
        """Return `size` eigenvalues, ascending."""
        return self.top / np.arange(size, 0, -1, dtype=np.float64) ** self.exponent


@dataclass(frozen=True)
class MarchenkoPastur(Spectrum):
    r"""Quantiles of the Marchenko-Pastur law, the spectrum of :math:`X^T X / m` for white X of shape (m, n).

    .. math:: dF(\lambda) = \frac{\sqrt{(b - \lambda)(\lambda - a)}}{2 \pi \sigma^2 r \lambda}\,d\lambda
       \;\text{ on } [a, b] = \sigma^2 (1 \mp \sqrt r)^2,
       \quad\text{plus the mass } 1 - 1/r \text{ at } 0 \text{ if } r > 1.

    Parameters
    ----------
    ratio : float
        :math:`r = n / m > 0`, parameters per sample.
    variance : float, default 1.0
        :math:`\sigma^2 > 0`, the mean eigenvalue.

    Raises
    ------
    ValueError
        If a parameter is outside its range.

    References
    ----------
    V. A. Marchenko, L. A. Pastur, Distribution of eigenvalues for some sets of random matrices, 1967.

    Examples
    --------
    >>> MarchenkoPastur(2.0).eigenvalues(4).round(3).tolist()
    [0.0, 0.0, 0.797, 2.972]
    """

    ratio: float
    variance: float = 1.0

    random = False

    def __post_init__(self) -> None:
        for name in ("ratio", "variance"):
            if real_number(getattr(self, name), f"MarchenkoPastur {name}") == 0:
                raise ValueError(f"MarchenkoPastur {name} must be positive, received {getattr(self, name)}")

    def eigenvalues(self, size: int, rng: np.random.Generator | None = None) -> FloatArray:
        """Return `size` eigenvalues, ascending."""
        root = math.sqrt(self.ratio)
        low, high = self.variance * (1 - root) ** 2, self.variance * (1 + root) ** 2
        # lambda = middle - half cos(theta) takes the square roots at both ends away.
        theta, step = np.linspace(0.0, math.pi, 20_001, retstep=True)
        inner = theta[:-1] + step / 2
        middle, half = (low + high) / 2, (high - low) / 2
        density = np.sin(inner) ** 2 / (middle - half * np.cos(inner))
        cumulative = np.concatenate([[0.0], np.cumsum(density)])
        bulk = min(1.0, 1 / self.ratio)
        level = (_levels(size) - (1 - bulk)) / bulk
        values = middle - half * np.cos(np.interp(level * cumulative[-1], cumulative, theta))
        return np.where(level > 0, np.clip(values, low, high), 0.0)


@dataclass(frozen=True, eq=False)
class Density(Spectrum, Content):
    """Quantiles of a discrete measure, such as a measured Lanczos density.

    Each node occurs in a number apportioned by its weight.

    A node of weight below about 1/(2n) of the total gets no eigenvalue in a block of n.

    Parameters
    ----------
    nodes : sequence of float, shape (k,)
        Finite and >= 0, in any order.
    weights : sequence of float, shape (k,)
        Finite and >= 0, not all zero; they need not sum to one.

    Raises
    ------
    ValueError
        If a node or a weight is outside its range, or their numbers differ.

    Examples
    --------
    >>> Density(nodes=[1, 10], weights=[3, 1]).eigenvalues(4).tolist()
    [1.0, 1.0, 1.0, 10.0]
    """

    nodes: FloatArray
    weights: FloatArray

    random = False

    def __post_init__(self) -> None:
        try:
            nodes = check_eigenvalues(real_array(self.nodes, "nodes"))
        except ValueError as error:
            raise ValueError(f"Density nodes: {error}") from None
        weights = real_array(self.weights, "Density weights")
        if weights.shape != nodes.shape:
            raise ValueError(f"Density has {nodes.size} nodes but weights of shape {weights.shape}")
        good = (weights >= 0) & (weights < math.inf)
        if not good.all():
            bad = first_bad(good)
            raise ValueError(f"Density weight {float(weights[bad])} at position {bad} is not finite and >= 0")
        if not 0 < weights.sum() < math.inf:
            raise ValueError(
                f"Density weights must have a positive finite sum, received {float(weights.sum())}"
            )
        frozen(nodes, weights)
        object.__setattr__(self, "nodes", nodes)
        object.__setattr__(self, "weights", weights)

    def eigenvalues(self, size: int, rng: np.random.Generator | None = None) -> FloatArray:
        """Return `size` eigenvalues, ascending."""
        order = np.argsort(self.nodes, kind="stable")
        cumulative = np.cumsum(self.weights[order])
        return self.nodes[order][np.searchsorted(cumulative, _levels(size) * cumulative[-1])]


def fixed_eigenvalues(law: Spectrum, size: int) -> FloatArray:
    """Return the eigenvalues of a law that does not draw.

    Those of a small block are remembered where they take time: a sweep asks for the same ones many times.

    Examples
    --------
    >>> fixed_eigenvalues(LogUniform(1, 100), 3).tolist()
    [1.0, 10.0, 100.0]
    """
    # Both have positive parameters: laws that are equal give equal bits.
    if isinstance(law, (LogUniform, MarchenkoPastur)) and size <= 1024:
        return _remembered(law, size)
    return law.eigenvalues(size)


@lru_cache(maxsize=256)
def _remembered(law: Spectrum, size: int) -> FloatArray:
    values = law.eigenvalues(size)
    frozen(values)
    return values


def as_spectrum(obj: Any) -> Spectrum:
    """Return a law as it is, and a sequence of numbers as `Listed`.

    Raises
    ------
    ValueError
        If it is neither.

    Examples
    --------
    >>> as_spectrum([1, 2]) == Listed([1.0, 2.0])
    True
    """
    if isinstance(obj, Spectrum):
        return obj
    if isinstance(obj, (str, bytes, int, float, complex, np.number, dict, set)) or obj is None:
        raise ValueError(f"eigenvalues must be a list of numbers or a Spectrum, received {shown(obj)}")
    return Listed(obj)
