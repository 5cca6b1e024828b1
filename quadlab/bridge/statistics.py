r"""What was measured of a model's blocks: one value object, readable without torch.

At a point w, for the loss f, the mean of the losses :math:`f^1, \dots, f^K` of K batches, block b of
:math:`P_b` parameters has

- the gradient norm :math:`\|g_b\|_2` and the noise :math:`\sigma_b`, the standard deviation of a batch's
  gradient as a root mean square over the block's coordinates,
  :math:`\sigma_b^2 = \sum_k \|g_b^k - g_b\|^2 / ((K - 1) P_b)`;
- the largest and the smallest eigenvalue of its Hessian :math:`H_b`, which may be negative: the model is not
  a convex function; :math:`\|H_b\|_2` is the larger of their magnitudes;
- its spectral density :math:`\frac1{P_b} \sum_i \delta(\lambda - \lambda_i)`, exact for small blocks, else a
  quadrature: nodes, and weights that sum to one;
- the trace.

Of the whole, the **leakage** :math:`\|(H - H_D) v\| / \|H v\|` for random v says how much of the Hessian a
block-diagonal one leaves out: 0 if nothing; above 1 where the two parts cancel.

From these follow the complexities :math:`\Lambda_G = \sum_b \|g_b\|^2 \|H_b\| / \|g\|^2` and
:math:`\Lambda_P = \sum_b (P_b/P) \|H_b\|` of `quadlab.heterogeneity`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quadlab._arrays import Content, FloatArray, frozen, real_array, shown
from quadlab._files import read_npz, write_npz

__all__ = ["BlockStatistics"]

SCHEMA = "quadlab.statistics/1"
#: The weights of a density sum to one up to this.
WEIGHT_TOLERANCE = 1e-6

_PER_BLOCK = ("gradient_norms", "noise", "top", "bottom", "trace", "trace_error", "density_error")
_NUMBERS = ("leakage", "leakage_error", "loss")
_MAY_BE_UNKNOWN = {"noise", "trace", "trace_error", "density_error", "leakage", "leakage_error"}
_NONNEGATIVE = {"gradient_norms", "noise", "trace_error", "density_error", "leakage", "leakage_error"}


@dataclass(frozen=True, eq=False, repr=False)
class BlockStatistics(Content):
    r"""Scales of the blocks of a model at one point: gradient, noise, curvature.

    What was not measured is NaN (numbers) or empty (densities).

    Parameters
    ----------
    names : sequence of str, length B
        The blocks, in the order of the model's parameters; no name twice.
    sizes : array_like of int, shape (B,)
        Numbers of parameters P_b >= 1.
    gradient_norms : array_like, shape (B,)
        ||g_b||_2 of the mean loss.
    noise : array_like, shape (B,)
        sigma_b, the standard deviation of a batch's gradient a coordinate; NaN if there was one batch.
    top, bottom : array_like, shape (B,)
        Largest and smallest eigenvalue of H_b.
    trace, trace_error : array_like, shape (B,)
        tr H_b and the standard error of its estimate, 0 if exact.
    nodes, weights : sequence of array_like, length B
        The spectral density of each block: eigenvalues (or Ritz values, pooled over probes) and their
        weights >= 0, which sum to 1.
    density_error : array_like, shape (B,)
        Standard error of the density over probes, as a 1-Wasserstein distance: in units of eigenvalues, 0 if
        exact.
    exact : array_like of bool, shape (B,)
        Whether the nodes are all P_b eigenvalues of the dense Hessian.
    leakage, leakage_error : float
        Mean over probes of ||(H - H_D) v|| / ||H v||, and its standard error.
    loss : float
        The mean loss.
    batches : int
        Number of batches K >= 1.
    meta : mapping
        Anything that JSON holds: the model, its seed, how it was measured.

    Raises
    ------
    ValueError
        If the arrays do not fit together, or hold what no measurement gives.

    Examples
    --------
    >>> s = BlockStatistics(["w", "b"], sizes=[2, 1], gradient_norms=[3.0, 4.0], noise=[0.1, 0.1],
    ...     top=[5.0, 1.0], bottom=[-1.0, 1.0], trace=[4.0, 1.0], trace_error=[0, 0],
    ...     nodes=[[-1.0, 5.0], [1.0]], weights=[[0.5, 0.5], [1.0]], density_error=[0, 0], exact=[True, True],
    ...     leakage=0.2, leakage_error=0.01, loss=0.7, batches=4)
    >>> round(s.gradient_weighted, 12), round(s.parameter_weighted, 12)
    (2.44, 3.666666666667)
    """

    names: tuple[str, ...]
    sizes: NDArray[np.int64]
    gradient_norms: FloatArray
    noise: FloatArray
    top: FloatArray
    bottom: FloatArray
    trace: FloatArray
    trace_error: FloatArray
    nodes: tuple[FloatArray, ...]
    weights: tuple[FloatArray, ...]
    density_error: FloatArray
    exact: NDArray[np.bool_]
    leakage: float
    leakage_error: float
    loss: float
    batches: int
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        names = tuple(self.names)
        if not names or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
            raise ValueError(f"names must be distinct strings, at least one, received {shown(self.names)}")
        put("names", names)
        put("sizes", _array(self.sizes, "sizes", np.int64, names))
        put("exact", _array(self.exact, "exact", np.bool_, names))
        for name in _PER_BLOCK:
            put(name, _array(getattr(self, name), name, np.float64, names))
        for name in _NUMBERS:
            put(name, float(_array([getattr(self, name)], name, np.float64, ("",))[0]))
        if not self.sizes.min() >= 1:
            raise ValueError(f"sizes must be >= 1, received {self.sizes.min()}")
        if not self.batches >= 1:
            raise ValueError(f"batches must be >= 1, received {shown(self.batches)}")
        put("batches", int(self.batches))
        for name in ("nodes", "weights"):
            arrays = tuple(real_array(item, f"{name} of a block") for item in getattr(self, name))
            frozen(*arrays)
            put(name, arrays)
        self._check_densities()
        if not (self.bottom <= self.top).all():
            b = int(np.argmin(self.bottom <= self.top))
            raise ValueError(
                f"block {names[b]!r} has bottom {self.bottom[b]:g}, must be <= its top {self.top[b]:g}"
            )
        try:
            put("meta", json.loads(json.dumps(dict(self.meta), allow_nan=False)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"meta must be plain JSON: {error}") from None

    def _check_densities(self) -> None:
        for name in ("nodes", "weights"):
            if len(getattr(self, name)) != self.n_blocks:
                raise ValueError(
                    f"{name} must hold an array for each of the {self.n_blocks} blocks, "
                    f"received {len(getattr(self, name))}"
                )
        for name, nodes, weights, size, exact in zip(
            self.names, self.nodes, self.weights, self.sizes, self.exact, strict=True
        ):
            if nodes.ndim != 1 or nodes.shape != weights.shape:
                raise ValueError(f"block {name!r} has nodes {nodes.shape} and weights {weights.shape}")
            if not np.isfinite(nodes).all():
                raise ValueError(f"block {name!r} has a node that is not finite")
            if weights.size and not ((weights >= 0.0).all() and abs(weights.sum() - 1.0) <= WEIGHT_TOLERANCE):
                raise ValueError(f"block {name!r} has weights that are not >= 0 with the sum 1")
            if exact and nodes.size != size:
                raise ValueError(f"block {name!r} is exact, must have {size} nodes, received {nodes.size}")

    # -- derived

    @property
    def n_blocks(self) -> int:
        """Number of blocks B."""
        return len(self.names)

    @property
    def size(self) -> int:
        """Number of parameters P."""
        return int(self.sizes.sum())

    @cached_property
    def block_norms(self) -> FloatArray:
        """||H_b||_2 = max(|top|, |bottom|), shape (B,)."""
        norms = np.maximum(np.abs(self.top), np.abs(self.bottom))
        frozen(norms)
        return norms

    @property
    def gradient_weighted(self) -> float:
        """Lambda_G = sum_b (||g_b||^2 / ||g||^2) ||H_b||_2 (ValueError where g = 0)."""
        largest = self.gradient_norms.max()
        if largest == 0.0:
            raise ValueError("the gradient is zero, Lambda_G needs g != 0")
        shares = (self.gradient_norms / largest) ** 2
        return float(shares @ self.block_norms / shares.sum())

    @property
    def parameter_weighted(self) -> float:
        """Lambda_P = sum_b (P_b / P) ||H_b||_2."""
        return float(self.sizes @ self.block_norms / self.size)

    # -- files

    def _content(self) -> Iterator[Any]:
        yield from (self.names, self.sizes, self.exact, self.batches)
        yield from (getattr(self, name) for name in (*_PER_BLOCK, *_NUMBERS))
        yield from (*self.nodes, *self.weights, json.dumps(self.meta, sort_keys=True))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the statistics to one file, without pickle; `load` gives the same bits back.

        The format is NumPy's .npz, whatever the name of the path. The file appears whole or not at all.
        """
        entries = {
            name: getattr(self, name) for name in ("sizes", "exact", "batches", *_PER_BLOCK, *_NUMBERS)
        }
        entries |= {"names": json.dumps(self.names), "meta": json.dumps(self.meta)}
        entries |= {name: np.concatenate(getattr(self, name)) for name in ("nodes", "weights")}
        entries["node_counts"] = [nodes.size for nodes in self.nodes]
        write_npz(path, SCHEMA, entries)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> BlockStatistics:
        """Return the statistics that `save` wrote, the same bits; torch is not needed.

        Raises
        ------
        ValueError
            If the file is no .npz, has another schema, or holds arrays that are no statistics.
        OSError
            If the file cannot be read.

        Examples
        --------
        >>> BlockStatistics.load(__file__)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: ... is not a statistics file: it is no .npz archive
        """
        return read_npz(path, SCHEMA, "statistics file", cls._from_entries)

    @classmethod
    def _from_entries(cls, entries: dict[str, np.ndarray]) -> BlockStatistics:
        counts = entries["node_counts"]
        for name in ("nodes", "weights"):
            if counts.dtype.kind != "i" or (counts < 0).any() or counts.sum() != entries[name].size:
                raise ValueError(f"its {entries[name].size} {name} are not the sum of its node_counts")
        for name in (*_NUMBERS, "batches"):
            if entries[name].shape != ():
                raise ValueError(f"its {name} must be one number, received {shown(entries[name])}")
        edges = np.cumsum(counts)[:-1]
        values: dict[str, Any] = {name: entries[name] for name in ("sizes", "exact", *_PER_BLOCK)}
        values |= {name: float(entries[name]) for name in _NUMBERS}
        values |= {name: np.split(entries[name], edges) for name in ("nodes", "weights")}
        values |= {name: json.loads(str(entries[name])) for name in ("names", "meta")}
        return cls(**values, batches=int(entries["batches"]))

    # -- display

    def __repr__(self) -> str:
        name = f" {self.meta['name']!r}" if "name" in self.meta else ""
        norms = self.block_norms
        return (
            f"<BlockStatistics{name}: {self.size} parameters in {self.n_blocks} blocks, "
            f"||H_b|| {norms.min():.4g} to {norms.max():.4g}, leakage {self.leakage:.2g}>"
        )

    def _repr_html_(self) -> str:
        """Return a table of all blocks."""
        head = "<tr><th>block<th>size<th>||g<sub>b</sub>||<th>noise<th>top<th>bottom<th>trace<th>density</tr>"
        columns = (self.gradient_norms, self.noise, self.top, self.bottom, self.trace)
        rows = []
        for b, name in enumerate(self.names):
            kind = "exact" if self.exact[b] else f"{self.nodes[b].size} nodes" if self.nodes[b].size else "-"
            numbers = (f"{column[b]:.4g}" if math.isfinite(column[b]) else "-" for column in columns)
            cells = (escape(name), str(self.sizes[b]), *numbers, kind)
            rows.append("<tr><td>" + "<td>".join(cells) + "</tr>")
        return f"<p>{escape(repr(self))}</p><table>{head}{''.join(rows)}</table>"

    def plot(self, figure: Any = None) -> Any:
        """Draw ||g_b|| against ||H_b||, a point a block, and the block densities.

        Parameters
        ----------
        figure : matplotlib Figure, optional
            What to draw on; a new one of pyplot's by default.

        Returns
        -------
        matplotlib Figure
        """
        if figure is None:
            from matplotlib import pyplot

            figure = pyplot.figure(figsize=(9.0, max(3.0, 0.9 + 0.14 * self.n_blocks)), layout="constrained")
        scales, spectra = figure.subplots(1, 2)
        drawn = (self.gradient_norms > 0.0) & (self.block_norms > 0.0)
        scales.loglog(self.block_norms[drawn], self.gradient_norms[drawn], "o", alpha=0.7)
        missing = self.n_blocks - int(drawn.sum())
        scales.set(xlabel="block Hessian norm ||H_b||", ylabel="block gradient norm ||g_b||")
        if missing:
            scales.set_title(f"not shown, without gradient or curvature: {missing}", fontsize="medium")
        for b, (nodes, weights) in enumerate(zip(self.nodes, self.weights, strict=True)):
            spectra.scatter(nodes, np.full(nodes.size, b), s=60.0 * np.sqrt(weights), alpha=0.4, linewidths=0)
        decade = 10.0 ** math.floor(math.log10(self.block_norms.max() or 1.0))
        spectra.set_xscale("symlog", linthresh=1e-4 * decade)
        ticks = decade * np.array([1.0, 1e-2, 1e-4])
        spectra.set_xticks([*-ticks, 0.0, *ticks[::-1]], minor=False)
        spectra.set_yticks(range(self.n_blocks), self.names, fontsize="xx-small")
        spectra.invert_yaxis()
        spectra.set_xlabel("eigenvalue of H_b")
        spectra.set_title("spectra; area of a dot: root of its weight", fontsize="medium")
        return figure


def _array(value: Any, name: str, dtype: Any, names: tuple[str, ...]) -> Any:
    """Return the values as a read-only array of one entry a block, or raise ValueError."""
    try:
        raw = np.asarray(value)
    except ValueError:
        raise ValueError(f"{name} must be an array, received {shown(value)}") from None
    kinds = {np.int64: "iu", np.bool_: "b", np.float64: "iuf"}[dtype]
    if raw.dtype.kind not in kinds or raw.shape != (len(names),):
        raise ValueError(
            f"{name} must be {len(names)} values of type {np.dtype(dtype)}, received {shown(value)}"
        )
    array = raw.astype(dtype)  # a copy
    frozen(array)
    if dtype is not np.float64:
        return array
    known = np.isfinite(array) | (np.isnan(array) if name in _MAY_BE_UNKNOWN else False)
    good = known & ~(array < 0.0) if name in _NONNEGATIVE else known
    if not good.all():
        b = int(np.argmin(good))
        of = f" of block {names[b]!r}" if names[b] else ""
        condition = "finite and >= 0" if name in _NONNEGATIVE else "finite"
        raise ValueError(f"{name}{of} is {array[b]:g}, must be {condition}")
    return array
