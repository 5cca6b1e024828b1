r"""Named problems.

All have kappa = 5000 (eigenvalues from 1 to 5000), start at :math:`w_0 \sim N(0, I)` and have the minimiser
0.

**het, hom** (cases 3 and 4 of zhang2024): nine eigenvalues, arranged so that each block holds alike ones
(het), or each spans the whole range (hom). Every block is rotated by its own Haar matrix, which is essential:
**het-axis, hom-axis** are the same without rotation, where the arrangement into blocks does not exist for
Adam.

**transformer, cnn** (cases 1 and 2 of zhang2024 in spirit; the spectra are ours, not their measured ones):
288 parameters in nine blocks of unequal sizes, Haar-rotated; few enough that the tens of thousands of
iterations that kappa = 5000 asks of GD take a second or so. As in het and hom, both have *the same*
eigenvalues and block sizes and differ in the arrangement alone, so that every difference between them is due
to it; GD's rate is the same in both.

- transformer: each tensor has curvature of its own scale. Block norms spread over three decades, from query
  and key over the embedding, MLP, output and value matrices to the small normalisation blocks at 5000; within
  a block the spectrum is log-uniform over a factor of 2 to 8. At :math:`w_0 \sim N(0, I)` the gradient norms
  :math:`\approx \|H_b\|_F` spread alike, so gradient and Hessian heterogeneity go together.
- cnn: the same eigenvalues dealt evenly: every block, whatever its size, holds a sample of the whole range
  (condition 2400 to 3500), so that block spectra are alike, as zhang2024 finds those of convolutions.

The condition number that frozen Adam sees (GD: 5000 in both) has a median of about 1,500 in transformer and
180,000 in cnn.

References
----------
Y. Zhang et al., Why Transformers Need Adam: A Hessian Perspective, NeurIPS 2024, arXiv 2402.16788.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from quadlab._arrays import shown
from quadlab.problem import BlockQuadratic
from quadlab.spectra import LogUniform

__all__ = ["CASES", "case", "cases"]

#: Name -> one line of description.
CASES = {
    "het": "3 blocks of 3, eigenvalues alike within, far apart between; Haar-rotated (zhang2024 case 3)",
    "hom": "the eigenvalues of het, each block spans the whole range; Haar-rotated (zhang2024 case 4)",
    "het-axis": "het without rotation",
    "hom-axis": "hom without rotation",
    "transformer": "288 parameters, 9 unequal blocks, spectra widely different (zhang2024 case 1 in spirit)",
    "cnn": "eigenvalues and block sizes of transformer, spectra alike (zhang2024 case 2 in spirit)",
}

_HET = [[1, 2, 3], [99, 100, 101], [4998, 4999, 5000]]
_HOM = [[1, 99, 4998], [2, 100, 4999], [3, 101, 5000]]

#: tensor: (size, smallest eigenvalue, largest eigenvalue)
_TRANSFORMER = {
    "query": (32, 1.0, 4.0),
    "key": (32, 1.5, 6.0),
    "embedding": (48, 5.0, 40.0),
    "mlp.down": (48, 40.0, 160.0),
    "mlp.up": (48, 60.0, 240.0),
    "output": (32, 200.0, 600.0),
    "value": (32, 300.0, 900.0),
    "norm1": (8, 1200.0, 2400.0),
    "norm2": (8, 2500.0, 5000.0),
}


def _transformer() -> list[np.ndarray]:
    return [LogUniform(low, high).eigenvalues(size) for size, low, high in _TRANSFORMER.values()]


def _cnn() -> list[np.ndarray]:
    """Deal the transformer's eigenvalues: entry k = 0..n-1 of a block of n is near their quantile k/(n-1)."""
    blocks = _transformer()
    quantile = np.concatenate([np.linspace(0, 1, block.size) for block in blocks])
    dealt = np.empty(quantile.size)
    dealt[np.argsort(quantile, kind="stable")] = np.sort(np.concatenate(blocks))
    return np.split(dealt, np.cumsum([block.size for block in blocks])[:-1])


def cases() -> tuple[str, ...]:
    """Return the names that `case` knows.

    Examples
    --------
    >>> cases()
    ('het', 'hom', 'het-axis', 'hom-axis', 'transformer', 'cnn')
    """
    return tuple(CASES)


@overload
def case(name: str, seed: int | None = 0, **changes: Any) -> BlockQuadratic: ...
@overload
def case(name: str, seed: Sequence[int], **changes: Any) -> list[BlockQuadratic]: ...
def case(
    name: str, seed: int | Sequence[int] | None = 0, **changes: Any
) -> BlockQuadratic | list[BlockQuadratic]:
    """Return a named problem.

    Parameters
    ----------
    name : str
        One of `cases`.
    seed : int >= 0, sequence of int, or None, default 0
        Of the rotations and of the start; None takes fresh entropy. Of several, the problem of each, made
        together in a fraction of the time.
    **changes
        Options of `BlockQuadratic.from_spectra` that replace the case's own, such as ``basis`` or ``noise``.

    Returns
    -------
    BlockQuadratic
        Of a sequence of seeds, a list.

    Raises
    ------
    ValueError
        If there is no such case, or an option is malformed.

    References
    ----------
    Y. Zhang et al., Why Transformers Need Adam: A Hessian Perspective, NeurIPS 2024, arXiv 2402.16788.

    Examples
    --------
    >>> case("het", seed=0)
    <BlockQuadratic 'het': 9 parameters in 3 blocks, norms 3 to 5000>
    >>> len(case("het", seed=range(1000)))
    1000
    """
    if not isinstance(name, str) or name not in CASES:
        raise ValueError(f"case must be one of {', '.join(CASES)}, received {shown(name)}")
    family, _, axis = name.partition("-")
    spectra: Any = {"het": _HET, "hom": _HOM}.get(family) or {"transformer": _transformer, "cnn": _cnn}[
        family
    ]()
    options = {"basis": "axis" if axis else "haar", "seed": seed, "name": name, **changes}
    return BlockQuadratic.from_spectra(spectra, **options)
