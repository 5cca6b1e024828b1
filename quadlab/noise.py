r"""Gradient noise: the method sees :math:`g_i + \sigma_i \xi_i`, the :math:`\xi` independent in i and t.

**Laws** of :math:`\xi`, by name; mean zero and variance one but for the heaviest tails:

- ``"gaussian"``;
- ``"uniform"`` on :math:`[-\sqrt3, \sqrt3]`: noise uniform on [-B, B] has :math:`\sigma = B/\sqrt3`;
- ``"rademacher"``: :math:`\pm 1`;
- ``"student:DF"``: Student's t with DF > 0 degrees of freedom, scaled to variance one for DF > 2. For
  DF <= 2 the variance is infinite and :math:`\xi` is the plain t, so that :math:`\sigma` is a scale only; for
  DF <= 1 (Cauchy) there is no mean either.

**One stream a run.** The noise of a run is a function of the problem and a seed, not of the method: methods
meet the same noise. The rows of the iterations :math:`kR, \dots, (k+1)R - 1` are drawn one after the other
by ``Generator(Philox(key, counter))``, with k in the top word of the counter and the key a hash of the
problem and the seed. R depends on the number of parameters alone (`block_rows`). So the noise of any
iteration can be drawn at any time: a run gives the same bits alone, in a batch, in any order, on any number
of threads, and resumed.
"""

from __future__ import annotations

import math
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np

from quadlab._arrays import FloatArray, shown

LAWS = ("gaussian", "uniform", "rademacher", "student:DF")


def check_law(law: Any) -> str:
    """Return the name of a law in its one spelling, or raise ValueError.

    Examples
    --------
    >>> check_law("student:3.0")
    'student:3'
    """
    if law in LAWS[:3]:
        return str(law)
    name, _, df = law.partition(":") if isinstance(law, str) else ("", "", "")
    if name == "student":
        try:
            number = float(df)
        except ValueError:
            number = math.nan
        if not 0.0 < number < math.inf:
            raise ValueError(f"student:DF needs degrees of freedom DF > 0, received {shown(law)}")
        return f"student:{int(number) if number.is_integer() else number!r}"
    raise ValueError(f"law must be one of {', '.join(LAWS)}, received {shown(law)}")


def check_seed(seed: Any) -> int:
    """Return a seed of the noise, or raise ValueError."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"noise_seed must be an integer >= 0, received {shown(seed)}")
    return int(seed)


def degrees_of_freedom(law: str) -> float:
    """Return DF of a Student law, infinity for the others."""
    return float(law.partition(":")[2] or math.inf)


def draw(law: str, rng: np.random.Generator, shape: tuple[int, ...]) -> FloatArray:
    r"""Return independent draws of :math:`\xi`; n draws are those of m and then of n - m."""
    if law == "gaussian":
        return rng.standard_normal(shape)
    if law == "uniform":
        return (rng.random(shape) - 0.5) * math.sqrt(12.0)
    if law == "rademacher":  # int64: streams of small integers depend on how they are cut
        return 2.0 * rng.integers(0, 2, shape, dtype=np.int64) - 1.0
    df = degrees_of_freedom(law)
    return rng.standard_t(df, shape) * (math.sqrt((df - 2.0) / df) if df > 2.0 else 1.0)


def block_rows(size: int) -> int:
    """Return R, the iterations whose noise is drawn from one counter, for P parameters."""
    return max(1, min(128, 8192 // size))


class NoiseStream:
    r"""The noise of one run; `BlockQuadratic.noise_stream` makes it.

    Parameters
    ----------
    sigma : ndarray of shape (P,)
        Standard deviations.
    law : str
        One of the laws, in its one spelling.
    identity : str
        What tells the problem from others: its content hash.
    seed : int >= 0
        Another seed gives independent noise, and so does another identity.
    """

    def __init__(self, sigma: FloatArray, law: str, identity: str, seed: int) -> None:
        self.sigma, self.law, self.seed = sigma, law, check_seed(seed)
        self.block_rows = block_rows(sigma.size)
        self._identity = identity

    @cached_property
    def _generator(self) -> np.random.Generator:
        digest = sha256(f"{self._identity} {self.seed}".encode()).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))

    @cached_property
    def _state(self) -> dict[str, Any]:
        return self._generator.bit_generator.state  # type: ignore[return-value]

    def block(self, k: int) -> FloatArray:
        """Return the noise of iterations kR to (k+1)R - 1, shape (R, P)."""
        rng = self._generator
        self._state["state"]["counter"][3] = k
        rng.bit_generator.state = self._state
        return draw(self.law, rng, (self.block_rows, self.sigma.size)) * self.sigma

    def rows(self, start: int, stop: int) -> FloatArray:
        """Return the noise of iterations start to stop - 1, shape (stop - start, P)."""
        first, last = start // self.block_rows, -(-stop // self.block_rows)
        whole = [self.block(k) for k in range(first, last)]
        offset = first * self.block_rows
        return np.concatenate(whole or [np.zeros((0, self.sigma.size))])[start - offset : stop - offset]
