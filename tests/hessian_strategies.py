"""Random block-diagonal Hessians of all storages, singular ones among them."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from quadlab.bases import Householder, Rotation
from quadlab.problem import BlockQuadratic


@st.composite
def problems(
    draw, max_blocks=4, max_size=5, singular=True, storages=("axis", "haar", "rotation", "householder")
):
    """A problem with start ~ N(0, I), block sizes 1 to max_size and eigenvalues over six decades."""
    spectra, bases = [], []
    for _ in range(draw(st.integers(1, max_blocks))):
        size = draw(st.integers(1, max_size))
        value = st.floats(-3.0, 3.0).map(lambda e: 10.0**e)
        if singular:
            value = value | st.just(0.0)
        spectra.append(draw(st.lists(value, min_size=size, max_size=size)))
        storage = draw(st.sampled_from(storages))
        angle = draw(st.floats(0.0, 3.0)) if storage == "rotation" else 0.0
        bases.append({"rotation": Rotation(angle), "householder": Householder(2)}.get(storage, storage))
    return BlockQuadratic.from_spectra(spectra, basis=bases, seed=draw(st.integers(0, 2**32 - 1)))


def nonzero(problem: BlockQuadratic) -> bool:
    return bool(np.any(problem.eigenvalues > 0.0))
