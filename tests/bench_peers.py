"""The peers of the benchmark, each written as its users would, on the same work.

A piece of work is one run, or a batch of runs, of one method on given block matrices: from x_0, with
x = w - w*, until ||g||_1 <= eps ||g_0||_1, a value that is not finite, or the cap. The test is made at every
iteration, t = 0 included, in float64. A peer is a function ``work -> run``, and ``run(cap) -> counts`` does
all of the work but what is done once per problem: conversion of arrays, building of functions, compilation.

========== =================================================================================================
quadlab    `solve`, or `solve_many` for a batch
numpy      a plain loop
torch      `torch.optim.SGD` and `Adam`, eager; the gradient is given to them, no graph is recorded
fused      the same with ``fused=True``
optax      JAX and optax in one `lax.while_loop`, jitted, with `jax_enable_x64`; `vmap` for a batch
========== =================================================================================================

torch has no SignSGD: its SGD is handed sign(g), times the step where that changes (step 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

import quadlab as ql

METHODS = ("gd", "sign", "sign_l1", "adam")
Run = Callable[[int], np.ndarray]


@dataclass(frozen=True)
class Work:
    """What all peers are given.

    problems: one a run, or a list with one entry for one run; runs of a batch that share H share the blocks.
    rates: one a run; for "sign_l1" the step is ||g||_1 / (P Lambda_P), and rates are not read.
    threads: of the process.
    """

    problems: list[ql.BlockQuadratic]
    method: str
    rates: list[float]
    eps: float
    cap: int
    threads: int = 1

    @property
    def is_batch(self) -> bool:
        return len(self.problems) > 1

    @property
    def shares_hessian(self) -> bool:
        return all(problem.blocks is self.problems[0].blocks for problem in self.problems)


def hessian(problem: ql.BlockQuadratic) -> np.ndarray:
    """The blocks, all of one size, as (B, s, s); the diagonal, (P,), where all are diagonal."""
    if all(type(block).__name__ == "DiagonalBlock" for block in problem.blocks):
        return problem.hessian_diagonal()
    return np.stack([block.to_dense() for block in problem.blocks])


def shaped(x: np.ndarray, h: np.ndarray) -> np.ndarray:
    """A vector, (P,), by blocks where H is: (B, s)."""
    return x if h.ndim == 1 else x.reshape(h.shape[:2])


def denominator(problem: ql.BlockQuadratic) -> float:
    """P Lambda_P, what divides ||g||_1 in SignSGD's step."""
    return problem.size * ql.curvature(problem).parameter_weighted


def quadlab(work: Work) -> Run:
    methods = [quadlab_method(work.method, rate) for rate in work.rates]
    stop = ql.GradientNorm(work.eps, ord=1, relative=True)
    if not work.is_batch:
        one = partial(ql.solve, work.problems[0], methods[0], stop, threads=work.threads)
        return lambda cap: np.array([one(max_iterations=cap).iterations])

    def run(cap: int) -> np.ndarray:
        runs = ql.solve_many(
            work.problems, methods, stop, max_iterations=cap, threads=work.threads, progress=False
        )
        return np.array([run.iterations for run in runs])

    return run


def quadlab_method(method: str, rate: float) -> Any:
    if method == "gd":
        return ql.GD(rate)
    if method == "adam":
        return ql.Adam(rate)
    return ql.SignSGD(rate if method == "sign" else "lambda_p")


def numpy(work: Work) -> Run:
    problem, rate = work.problems[0], work.rates[0]
    h, over, method = hessian(problem), denominator(problem), work.method
    start = shaped(problem.displacement, h)

    def gradient(x: np.ndarray) -> np.ndarray:
        return h * x if h.ndim == 1 else np.matmul(h, x[..., None])[..., 0]

    def run(cap: int) -> np.ndarray:
        x, t, m, v = start.copy(), 0, np.zeros_like(start), np.zeros_like(start)
        g = gradient(x)
        size = np.abs(g).sum()
        tolerance = work.eps * size
        while tolerance < size < math.inf and t < cap:
            t += 1
            if method == "gd":
                x -= rate * g
            elif method == "sign":
                x -= rate * np.sign(g)
            elif method == "sign_l1":
                x -= size / over * np.sign(g)
            else:
                m = 0.9 * m + 0.1 * g
                v = 0.999 * v + 0.001 * g**2
                x -= rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
            g = gradient(x)
            size = np.abs(g).sum()
        return np.array([t])

    return run


def torch(work: Work, fused: bool = False) -> Run:
    import torch

    torch.set_num_threads(work.threads)
    problem, rate = work.problems[0], work.rates[0]
    matrices, over, method = hessian(problem), denominator(problem), work.method
    h, start = torch.tensor(matrices), torch.tensor(shaped(problem.displacement, matrices))

    def gradient(x: Any) -> Any:
        return h * x if h.ndim == 1 else torch.bmm(h, x.unsqueeze(-1)).squeeze(-1)

    @torch.no_grad()
    def run(cap: int) -> np.ndarray:
        x, t = torch.nn.Parameter(start.clone()), 0
        if method == "adam":
            optimizer: Any = torch.optim.Adam([x], lr=rate, fused=fused)
        else:
            optimizer = torch.optim.SGD([x], lr=1.0 if method == "sign_l1" else rate, fused=fused)
        g = gradient(x)
        size = g.abs().sum().item()
        tolerance = work.eps * size
        while tolerance < size < math.inf and t < cap:
            t += 1
            if method == "sign":
                g = g.sign()
            elif method == "sign_l1":
                g = g.sign().mul_(size / over)
            x.grad = g
            optimizer.step()
            g = gradient(x)
            size = g.abs().sum().item()
        return np.array([t])

    return run


def fused(work: Work) -> Run:
    return torch(work, fused=True)


def optax(work: Work) -> Run:
    import jax

    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp
    import optax

    method = work.method
    matrices = [hessian(p) for p in (work.problems[:1] if work.shares_hessian else work.problems)]
    h = jnp.asarray(np.stack(matrices) if len(matrices) > 1 else matrices[0])
    # For one run on tiny blocks XLA does better with a sum than with a product of matrices.
    small = not work.is_batch and matrices[0].shape[-1] <= 8

    def gradient(h: Any, x: Any) -> Any:
        if h.ndim == 1:
            return h * x
        return (h * x[:, None, :]).sum(-1) if small else jnp.einsum("bij,bj->bi", h, x)

    def one(h: Any, start: Any, rate: Any, over: Any, cap: Any) -> Any:
        optimizer = {
            "gd": optax.sgd(rate),
            "sign": optax.sign_sgd(rate),
            "sign_l1": optax.scale_by_sign(),
            "adam": optax.adam(rate),
        }[method]
        g = gradient(h, start)
        size = jnp.abs(g).sum()
        tolerance = work.eps * size

        def goes_on(carry: Any) -> Any:
            _, _, _, size, t = carry
            return (size > tolerance) & (size < jnp.inf) & (t < cap)

        def update(carry: Any) -> Any:
            x, state, g, size, t = carry
            change, state = optimizer.update(g, state, x)
            if method == "sign_l1":
                change = change * (-size / over)
            x = optax.apply_updates(x, change)
            g = gradient(h, x)
            return x, state, g, jnp.abs(g).sum(), t + 1

        return jax.lax.while_loop(goes_on, update, (start, optimizer.init(start), g, size, 0))[4]

    shared = None if work.shares_hessian else 0
    starts = [shaped(p.displacement, matrices[0]) for p in work.problems]
    if work.is_batch:
        function = jax.jit(jax.vmap(one, in_axes=(shared, 0, 0, shared, None)))
        start, rate = jnp.asarray(np.stack(starts)), jnp.asarray(work.rates)
    else:
        function, start, rate = jax.jit(one), jnp.asarray(starts[0]), work.rates[0]
    overs = [denominator(p) for p in work.problems[: len(matrices)]]
    over = jnp.asarray(overs) if len(overs) > 1 else overs[0]
    return lambda cap: np.atleast_1d(np.asarray(function(h, start, rate, over, cap)))


PEERS: dict[str, Callable[[Work], Run]] = {
    "quadlab": quadlab,
    "optax": optax,
    "numpy": numpy,
    "torch": torch,
    "fused": fused,
}
