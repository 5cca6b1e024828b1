"""Against what nobody here wrote: the trajectories of ``torch.optim``, to 1e-12 over 1,000 steps."""

from __future__ import annotations

import numpy as np
import pytest

from quadlab.methods import GD, Adam, AdamW, RMSProp
from quadlab.problem import BlockQuadratic
from quadlab.solve import solve
from quadlab.stopping import GradientNorm

torch = pytest.importorskip("torch")

STEPS = 1000
TIMES = [0, 1, 2, 3, 5, 10, 30, 100, 300, 600, STEPS]
NEVER = GradientNorm(eps=1e-250, ord=1)

# name -> learning rate, torch's optimizer, ours. Where an adaptive method has settled into its oscillation
# about the minimiser its dynamics are chaotic and multiply rounding by any factor, so the learning rates of
# those without much momentum are small, or their epsilon is large.
PAIRS = {
    "sgd": (0.2, lambda w, lr: torch.optim.SGD(w, lr=lr), lambda lr: GD(lr)),
    "momentum": (
        0.2,
        lambda w, lr: torch.optim.SGD(w, lr=lr, momentum=0.9),
        lambda lr: GD(lr, momentum=0.9),
    ),
    "nesterov": (
        0.2,
        lambda w, lr: torch.optim.SGD(w, lr=lr, momentum=0.9, nesterov=True),
        lambda lr: GD(lr, momentum=0.9, nesterov=True),
    ),
    "adam": (0.003, lambda w, lr: torch.optim.Adam(w, lr=lr, foreach=False), lambda lr: Adam(lr)),
    "adam-options": (
        0.01,
        lambda w, lr: torch.optim.Adam(w, lr=lr, betas=(0.8, 0.99), eps=0.01, foreach=False),
        lambda lr: Adam(lr, beta1=0.8, beta2=0.99, epsilon=0.01),
    ),
    "adamw": (0.003, lambda w, lr: torch.optim.AdamW(w, lr=lr, foreach=False), lambda lr: AdamW(lr)),
    "adamw-decay": (
        0.003,
        lambda w, lr: torch.optim.AdamW(w, lr=lr, weight_decay=0.3, foreach=False),
        lambda lr: AdamW(lr, weight_decay=0.3),
    ),
    "rmsprop": (1e-4, lambda w, lr: torch.optim.RMSprop(w, lr=lr, foreach=False), lambda lr: RMSProp(lr)),
    "rmsprop-options": (
        0.01,
        lambda w, lr: torch.optim.RMSprop(w, lr=lr, alpha=0.9, eps=0.1, foreach=False),
        lambda lr: RMSProp(lr, beta2=0.9, epsilon=0.1),
    ),
}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_problem(seed: int) -> BlockQuadratic:
    """Three Haar blocks of random sizes, condition number about 100, and a minimiser away from zero."""
    rng = np.random.default_rng(seed)
    spectra = [10.0 ** rng.uniform(-2, 0, rng.integers(1, 8)) for _ in range(3)]
    size = sum(spectrum.size for spectrum in spectra)
    return BlockQuadratic.from_spectra(
        spectra,
        basis="haar",
        start=rng.standard_normal(size),
        minimizer=rng.standard_normal(size),
        seed=seed,
    )


def torch_trajectory(problem: BlockQuadratic, optimizer, learning_rate: float) -> dict[int, np.ndarray]:
    """The iterates at TIMES; the gradient comes from autograd."""
    hessian = torch.from_numpy(np.array(problem.dense_hessian()))
    minimizer = torch.from_numpy(np.array(problem.minimizer))
    w = torch.nn.Parameter(torch.from_numpy(np.array(problem.start)))
    optimizer = optimizer([w], learning_rate)
    points = {}
    for t in range(STEPS + 1):
        if t in TIMES:
            points[t] = w.detach().numpy().copy()
        optimizer.zero_grad()
        x = w - minimizer
        (0.5 * torch.dot(x, hessian @ x)).backward()
        optimizer.step()
    return points


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", PAIRS)
def test_trajectory_of_torch(name, seed):
    problem = random_problem(seed)
    learning_rate, in_torch, in_quadlab = PAIRS[name]
    points = torch_trajectory(problem, in_torch, learning_rate)
    worst = 0.0
    for t, point in points.items():
        run = solve(problem, in_quadlab(learning_rate), NEVER, max_iterations=t)
        assert run.iterations == t
        worst = max(worst, np.max(np.abs(run.point - point)) / np.max(np.abs(point)))
    print(f"{name}, problem {seed}: largest relative difference {worst:.1e}")
    assert worst <= 1e-12
    assert not np.array_equal(points[0], points[STEPS])
