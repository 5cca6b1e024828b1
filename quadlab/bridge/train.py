r"""Real training: updates to a fixed loss, each optimizer at its best constant learning rate.

The count is that of the library's runs: T is the number of updates made when the mean loss over all batches
first is at most the target, 0 if it is at the start. A run that does not get there within its cap is
*capped*, one whose loss is not finite, or a hundred times the start's, has *diverged*; neither has a count.

=============  ================================================================================
optimizer      update of w by the gradient g, learning rate eta
=============  ================================================================================
``sgd``        :math:`-\eta g`
``momentum``   :math:`-\eta m`, :math:`m \leftarrow 0.9\,m + g`
``signsgd``    :math:`-\eta\,\mathrm{sign}(g)`
``signum``     :math:`-\eta\,\mathrm{sign}(m)`, :math:`m \leftarrow 0.9\,m + 0.1\,g`
``adam``       torch's, :math:`\beta = (0.9, 0.999)`, :math:`\epsilon = 10^{-8}`
=============  ================================================================================

The best learning rate is sought on a grid :math:`10^{k/n}`: two decades about a usual value first, then on
beyond an end that is best, until the best lies inside. A run need not go on past the least count found so
far: it is cut there, and capped.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from quadlab._arrays import real_number, shown
from quadlab._progress import progress_bar

__all__ = ["OPTIMIZERS", "SignSGD", "Training", "TrainingRun", "train", "train_at"]

Loss = Callable[[nn.Module, Any], Tensor]

#: A loss above this multiple of its start counts as diverged.
DIVERGED = 100.0
#: The grid of learning rates ends at these powers of ten.
GRID = (-7, 3)


class SignSGD(torch.optim.Optimizer):
    r"""SignSGD, and with momentum Signum: :math:`w \leftarrow w - \eta\,\mathrm{sign}(m)`.

    .. math:: m \leftarrow \beta m + (1 - \beta) g

    Parameters
    ----------
    params : iterable of Tensor
        As for every optimizer of torch.
    lr : float > 0
        The learning rate.
    momentum : float
        :math:`\beta` in [0, 1).

    References
    ----------
    bernstein2018.

    Examples
    --------
    >>> w = torch.tensor([3.0, -1.0], requires_grad=True)
    >>> (w**2).sum().backward()
    >>> SignSGD([w], lr=0.5).step()
    >>> w.tolist()
    [2.5, -0.5]
    """

    def __init__(self, params: Iterable[Any], lr: float, momentum: float = 0.0) -> None:
        real_number(lr, "lr")
        if not real_number(momentum, "momentum") < 1.0:
            raise ValueError(f"momentum must lie in [0, 1), received {shown(momentum)}")
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Make one update."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                direction = p.grad
                if group["momentum"]:
                    state = self.state[p]
                    state.setdefault("mean", torch.zeros_like(p)).lerp_(p.grad, 1.0 - group["momentum"])
                    direction = state["mean"]
                p.add_(direction.sign(), alpha=-group["lr"])
        return loss


#: Name -> (optimizer of parameters and learning rate, usual learning rate as a power of ten).
OPTIMIZERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], float]] = {
    "sgd": (torch.optim.SGD, -0.5),
    "momentum": (lambda params, lr: torch.optim.SGD(params, lr=lr, momentum=0.9), -1.5),
    "signsgd": (SignSGD, -3.0),
    "signum": (lambda params, lr: SignSGD(params, lr=lr, momentum=0.9), -3.0),
    "adam": (torch.optim.Adam, -2.5),
}


@dataclass(frozen=True)
class TrainingRun:
    """One run with one constant learning rate.

    Attributes
    ----------
    optimizer : str
        A name in `OPTIMIZERS`.
    learning_rate : float
        The constant.
    status : str
        "converged", "capped" or "diverged".
    iterations : int
        Updates made; a count to the target only if converged.
    losses : list of float
        The mean loss over all batches, every `every` updates from 0 on.
    every : int
        1, unless training is on minibatches.
    """

    optimizer: str
    learning_rate: float
    status: str
    iterations: int
    losses: list[float] = field(repr=False)
    every: int = 1

    @property
    def converged(self) -> bool:
        """Whether the target was reached."""
        return self.status == "converged"

    @property
    def _rank(self) -> tuple[float, float]:
        """What the best run has least of: the count, then the loss it was left with."""
        last = self.losses[-1] if self.status == "capped" else math.inf
        return (self.iterations, 0.0) if self.converged else (math.inf, last)


@dataclass(frozen=True)
class Training:
    """An optimizer's runs over the grid of learning rates.

    Attributes
    ----------
    optimizer : str
        A name in `OPTIMIZERS`.
    runs : tuple of TrainingRun
        By ascending learning rate.
    best : TrainingRun
        The one of fewest updates to the target; if none converged, that of the lowest loss at its cap.
    at_edge : bool
        Whether the best is an end of the whole grid: then its learning rate is not known to be the best.
    """

    optimizer: str
    runs: tuple[TrainingRun, ...] = field(repr=False)
    best: TrainingRun
    at_edge: bool

    @property
    def iterations(self) -> int | None:
        """The count of the best run; None if no run converged."""
        return self.best.iterations if self.best.converged else None


def train_at(
    model: nn.Module,
    loss: Loss,
    batches: Sequence[Any],
    optimizer: str,
    learning_rate: float,
    *,
    target: float,
    max_iterations: int = 1000,
    minibatch: bool = False,
    every: int = 10,
    seed: int = 0,
    callback: Callable[[int, nn.Module], None] | None = None,
) -> TrainingRun:
    """Train a copy of a model with one constant learning rate, to a loss or to a cap.

    Parameters
    ----------
    model : nn.Module
        Left as it is; a copy is trained, in its precision, on its device.
    loss : callable
        loss(model, batch) -> scalar Tensor, a mean over examples.
    batches : sequence
        Of equal weight: the loss and the full gradient are means over them.
    optimizer : str
        A name in `OPTIMIZERS`.
    learning_rate : float > 0
        Constant.
    target : float
        The loss to reach, of all batches.
    max_iterations : int >= 0
        The cap.
    minibatch : bool
        One batch an update, all once an epoch in an order drawn anew, instead of the mean over all.
    every : int >= 1
        With minibatches the loss of all batches is evaluated every so many updates: the count's resolution.
    seed : int >= 0
        Of the order of the minibatches.
    callback : callable, optional
        callback(iterations made, model), whenever the loss has been evaluated.

    Returns
    -------
    TrainingRun

    Raises
    ------
    ValueError
        If an argument is out of range, or there is no batch.

    Examples
    --------
    >>> from quadlab.bridge.models import workload
    >>> w = workload("mlp", depth=1, width=8, examples=32)
    >>> train_at(w.model, w.loss, w.batches(), "adam", 0.1, target=0.5).converged
    True
    """
    make = _optimizer(optimizer)[0]
    if real_number(learning_rate, "learning_rate") == 0.0:
        raise ValueError("learning_rate must be positive, received 0")
    _integer(max_iterations, 0, "max_iterations")
    _integer(every, 1, "every")
    real_number(target, "target", -math.inf)
    batches = list(batches)
    if not batches:
        raise ValueError("batches is empty, needs at least one batch")
    model = copy.deepcopy(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    stepper = make(parameters, lr=learning_rate)
    generator = torch.Generator().manual_seed(seed)
    if not minibatch:
        every = 1
    order: list[int] = []
    losses: list[float] = []
    status = "capped"
    t = 0
    while True:
        if t % every == 0:
            losses.append(_full_loss(model, loss, batches, gradient=not minibatch))
            if callback is not None:
                callback(t, model)
            if losses[-1] <= target:
                status = "converged"
                break
            if not losses[-1] <= DIVERGED * abs(losses[0]):  # NaN too
                status = "diverged"
                break
        if t >= max_iterations:
            break
        if minibatch:
            order = order or torch.randperm(len(batches), generator=generator).tolist()
            stepper.zero_grad()
            loss(model, batches[order.pop()]).backward()
        stepper.step()
        t += 1
    return TrainingRun(optimizer, float(learning_rate), status, t, losses, every)


def _full_loss(model: nn.Module, loss: Loss, batches: list[Any], gradient: bool) -> float:
    """Return the mean loss over all batches, and leave its gradient in the parameters if asked to."""
    total = 0.0
    model.zero_grad()
    with torch.set_grad_enabled(gradient):
        for batch in batches:
            value = loss(model, batch) / len(batches)
            if gradient:
                value.backward()
            total += value.item()
    return total


def train(
    model: nn.Module,
    loss: Loss,
    batches: Sequence[Any],
    optimizers: Sequence[str] = ("sgd", "adam"),
    *,
    target: float,
    max_iterations: int = 1000,
    per_decade: int = 2,
    progress: bool | None = None,
    **options: Any,
) -> dict[str, Training]:
    """Train with each optimizer at its best constant learning rate of a log grid.

    Parameters
    ----------
    model, loss, batches, target
        As for `train_at`.
    optimizers : sequence of str
        Names in `OPTIMIZERS`.
    max_iterations : int >= 0
        The cap of a run.
    per_decade : int >= 1
        The grid holds the powers 10^(k/per_decade) of ten, from 10^-7 to 10^3.
    progress : bool, optional
        A progress bar over the optimizers; None: where somebody looks.
    **options
        Further ones of `train_at`.

    Returns
    -------
    dict of str to Training
        One an optimizer.

    Raises
    ------
    ValueError
        As `train_at`.

    Examples
    --------
    >>> from quadlab.bridge.models import workload
    >>> w = workload("mlp", depth=1, width=8, examples=32)
    >>> found = train(w.model, w.loss, w.batches(), target=0.5, max_iterations=200)
    >>> found["sgd"].best.converged, found["adam"].at_edge
    (True, False)
    """
    for name in optimizers:
        _optimizer(name)
    _integer(per_decade, 1, "per_decade")
    done = {}
    for name in progress_bar(progress, iterable=list(optimizers), unit="optimizer", leave=False):

        def run(k: int, cap: int, name: str = name) -> TrainingRun:
            rate = 10.0 ** (k / per_decade)
            return train_at(model, loss, batches, name, rate, target=target, max_iterations=cap, **options)

        done[name] = _search(run, round(_optimizer(name)[1] * per_decade), per_decade, max_iterations)
    return done


def _search(
    run: Callable[[int, int], TrainingRun], centre: int, per_decade: int, max_iterations: int
) -> Training:
    """Return the runs about the centre of the grid, and on beyond an end for as long as that end is best."""
    low, high = (edge * per_decade for edge in GRID)
    runs: dict[int, TrainingRun] = {}
    cap = max_iterations
    span = range(centre - per_decade, centre + per_decade + 1)
    waiting = sorted((k for k in span if low <= k <= high), key=lambda k: abs(k - centre))
    while waiting:
        k = waiting.pop(0)
        runs[k] = run(k, cap)
        if runs[k].converged:
            cap = min(cap, runs[k].iterations)
        if not waiting:
            best = min(sorted(runs), key=lambda j: runs[j]._rank)
            if best == max(runs) and best < high:
                waiting = [best + 1]
            elif best == min(runs) and best > low:
                waiting = [best - 1]
    ordered = sorted(runs)
    return Training(
        runs[best].optimizer, tuple(runs[j] for j in ordered), runs[best], best in (ordered[0], ordered[-1])
    )


def _optimizer(name: str) -> tuple[Callable[..., torch.optim.Optimizer], float]:
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, received {shown(name)}")
    return OPTIMIZERS[name]


def _integer(value: Any, least: int, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{what} must be an integer >= {least}, received {shown(value)}")
