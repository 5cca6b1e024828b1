r"""The edge of stability of Adam: the largest eigenvalue of the preconditioned Hessian along a run.

Adam's update is :math:`w_{t+1} = w_t - \eta D_t^{-1} \hat m_t`, :math:`D_t = \mathrm{diag}(\sqrt{\hat v_t} +
\epsilon)`. With D frozen, each eigencomponent a of :math:`D^{-1/2} H D^{-1/2}` obeys a linear recursion,
stable if and only if :math:`\eta a < 2(1+\beta_1)/(1-\beta_1)`
(:func:`quadlab.bounds.adam.stability_edge`). With D moving, an a above the edge grows its own gradients, and
so D, until it is back below: cohen2022 found that :math:`\lambda_{\max}(D_t^{-1/2} H D_t^{-1/2})` settles
near the edge. That is an observation, no theorem.

On a quadratic H is known, so that each value is exact: the largest over the blocks, by a symmetric eigenvalue
solver. Coordinates with :math:`D_{ii} = 0` have had no gradient and do not move; they are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from quadlab._arrays import FloatArray, shown
from quadlab.bounds.adam import stability_edge
from quadlab.methods import Adam
from quadlab.problem import Block, BlockQuadratic, DiagonalBlock
from quadlab.run import Run, Status
from quadlab.solve import solve
from quadlab.steps import Schedule
from quadlab.stopping import Stop

#: Blocks up to this size are solved densely, larger ones by Lanczos iterations on products with H.
DENSE_SIZE = 500


@dataclass(frozen=True)
class Stability:
    r"""What :func:`stability` returns.

    Attributes
    ----------
    iteration : ndarray of shape (n,), int64
        The updates t looked at.
    sharpness : ndarray of shape (n,)
        :math:`\lambda_{\max}(D_t^{-1/2} H D_t^{-1/2})`.
    edge : ndarray of shape (n,)
        :math:`(2 + 2\beta_1)/(\eta_t (1 - \beta_1))`.
    run : Run
        The run, to its end.
    """

    iteration: np.ndarray
    sharpness: FloatArray
    edge: FloatArray
    run: Run = field(repr=False)

    @property
    def ratio(self) -> FloatArray:
        """Sharpness over edge: above 1 the step is unstable for D as it is."""
        return self.sharpness / self.edge


def stability(
    problem: BlockQuadratic,
    method: Adam,
    stop: Stop,
    times: Sequence[int] | None = None,
    *,
    max_iterations: int = 10_000,
) -> Stability:
    r"""Run Adam, and look at the largest eigenvalue of the preconditioned Hessian at given updates.

    .. math:: \lambda_{\max}(D_t^{-1/2} H D_t^{-1/2}), \qquad D_t = \mathrm{diag}(\sqrt{\hat v_t} + \epsilon)

    Parameters
    ----------
    problem : BlockQuadratic
    method : Adam
        Or a relative of it (`RMSProp`, `FrozenAdam`, ...), with a constant learning rate or a `Schedule`.
    stop : GradientNorm or Gap
    times : sequence of int >= 0, optional
        The updates to look at; by default about 60 a decade. Those from the end of the run on are left out.
    max_iterations : int >= 0
        The cap of the run.

    Returns
    -------
    Stability

    Raises
    ------
    ValueError
        On another method, a rule for its learning rate, or bad times.

    References
    ----------
    cohen2022.

    Examples
    --------
    >>> from quadlab import Adam, Gap, case
    >>> method = Adam(1e-2, beta1=0.9, beta2=0.99)
    >>> found = stability(case("hom", seed=0), method, Gap(1e-300), [0, 3000], max_iterations=3001)
    >>> found.edge.round(9).tolist(), bool(0.8 < found.ratio[-1] < 1.2)
    ([3800.0, 3800.0], True)
    """
    if not isinstance(method, Adam):
        raise ValueError(f"method must be Adam or a relative of it, received {shown(method)}")
    rate = method.learning_rate
    if not isinstance(rate, (float, Schedule)) and rate != "optimal":
        raise ValueError(f"learning_rate must be a number or a Schedule, received {shown(rate)}")
    run: Run | None = None
    found: list[tuple[int, float]] = []
    for t in _times(times, max_iterations):
        run = solve(problem, method, stop, max_iterations=t + 1, resume=run)
        if run.iterations <= t:
            break
        found.append((t, _sharpness(problem, _denominator(method, run.state.state[1], t + 1))))
        if run.status is not Status.MAX_ITERATIONS:
            break
    if run is None or run.status is Status.MAX_ITERATIONS:
        run = solve(problem, method, stop, max_iterations=max_iterations, resume=run)
    iteration = np.array([t for t, _ in found], dtype=np.int64)
    schedule = run.step.schedule
    steps = np.array([schedule.function(t) if schedule else run.step.rate for t, _ in found])
    with np.errstate(divide="ignore"):
        edge = stability_edge(method.beta1) / steps
    return Stability(iteration, np.array([value for _, value in found]), edge, run)


def _times(times: Iterable[int] | None, cap: int) -> list[int]:
    """Return the updates to look at, ascending, those that the cap allows."""
    if times is None:
        times = sorted(
            {round(10.0 ** (k / 60.0)) for k in range(round(60 * math.log10(max(cap, 1))) + 1)} | {0}
        )
    given = list(times) if isinstance(times, Iterable) else None
    if given is None or not all(
        isinstance(t, (int, np.integer)) and not isinstance(t, bool) and t >= 0 for t in given
    ):
        raise ValueError(f"times must be iterations >= 0, received {shown(times)}")
    return sorted({int(t) for t in given if t < cap})


def _denominator(method: Adam, second: FloatArray, count: int) -> FloatArray:
    """Return D after `count` gradients, from the state v."""
    corrected = method.bias_correction and not method.frozen
    return np.sqrt(second / (1.0 - method.beta2**count) if corrected else second) + method.epsilon


def _sharpness(problem: BlockQuadratic, denominator: FloatArray) -> float:
    parts = zip(problem.blocks, problem.split(denominator), strict=True)
    return max(_block_sharpness(block, d) for block, d in parts)


def _block_sharpness(block: Block, d: FloatArray) -> float:
    moving = d > 0.0
    if not moving.any():
        return 0.0
    scale = np.zeros_like(d)
    scale[moving] = d[moving] ** -0.5
    if isinstance(block, DiagonalBlock):
        return float((block.diagonal() * scale**2).max())
    if block.size <= DENSE_SIZE:
        from scipy.linalg import eigvalsh

        last = block.size - 1
        whole = block.to_dense() * scale[:, None] * scale
        return float(eigvalsh(whole, subset_by_index=(last, last), check_finite=False)[0])
    from scipy.sparse.linalg import LinearOperator, eigsh

    operator = LinearOperator(
        (block.size, block.size), matvec=lambda u: scale * block.matvec(scale * u.ravel()), dtype=np.float64
    )
    start = scale * block.matvec(scale)  # seeded by the block itself: the same call gives the same number
    return float(eigsh(operator, k=1, which="LA", v0=start, return_eigenvectors=False)[0])
