r"""Measuring a model: which numbers are its blocks, and what the loss is like at this point.

The function measured is the mean of the losses of all batches, which weigh the same,

.. math:: f(w) = \frac1K \sum_{k=1}^K \mathrm{loss}(\mathrm{model}_w, \mathrm{batch}_k),

in the model's evaluation mode (no dropout; batch normalisation by its running statistics), in double
precision, attention computed by products of matrices, which autograd differentiates twice. A parameter that
does not require a gradient is a constant, and no block.

A copy of the model is measured. The model itself is not touched, whatever happens: its precision, device,
training mode and gradients stay as they are.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from quadlab._arrays import FloatArray, real_number, shown
from quadlab._progress import progress_bar
from quadlab.bridge.spectrum import (
    Curvature,
    Piece,
    Spectrum,
    dense_spectrum,
    extremes,
    lanczos_density,
    leakage,
)
from quadlab.bridge.statistics import BlockStatistics

__all__ = ["measure"]

#: More batches than this are taken for an iterator without an end.
MAX_BATCHES = 10_000

Loss = Callable[[nn.Module, Any], Tensor]
Blocks = str | Callable[[str], str | None]


def measure(
    model: nn.Module,
    loss: Loss,
    batches: Iterable[Any],
    *,
    blocks: Blocks = "tensor",
    split_packed: bool = False,
    probes: int = 8,
    steps: int = 40,
    dense_below: int = 256,
    eigenvalue_tolerance: float = 1e-6,
    seed: int = 0,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float64,
    threads: int = 1,
    progress: bool | None = None,
    meta: Mapping[str, Any] | None = None,
) -> BlockStatistics:
    r"""Return the scales of a model's blocks: gradient, noise, extreme eigenvalues, densities, leakage.

    Parameters
    ----------
    model : nn.Module
        Measured where its parameters are. It is copied, and not changed.
    loss : callable
        ``loss(model, batch)``, a scalar tensor. It must use the model it is given.
    batches : iterable
        Anything ``loss`` takes; read once. Tensors in tuples, lists and mappings are moved to `device`, and
        floating ones to `dtype`.
    blocks : str or callable
        "tensor": a block a parameter tensor. "layer": the tensors of one numbered layer together, others by
        their module. Or a function of a tensor's name that returns the name of its block, or None to leave
        the tensor out, as a constant.
    split_packed : bool
        Take tensors that hold query, key and value (``in_proj_weight``, ``c_attn``, ``qkv`` and their
        biases) as three, named NAME.q, NAME.k and NAME.v.
    probes : int
        Random vectors for each density and for the leakage; 0 for neither.
    steps : int
        Of Lanczos for each probe.
    dense_below : int
        Blocks of at most so many parameters, at least 2, by their dense Hessian: exact.
    eigenvalue_tolerance : float
        Largest residual of an extreme eigenvector, relative to its block's norm. The eigenvalue is more
        accurate: about the square of it over the relative gap to the next.
    seed : int
        Of all random vectors; torch's own generator is not used.
    device : str or torch.device, optional
        Where to measure; where the model is by default.
    dtype : torch.dtype
        ``torch.float64``, or ``torch.float32``: half the memory, four digits.
    threads : int
        Of torch; more than one pays for large models on idle cores only.
    progress : bool, optional
        A progress bar; by default where somebody looks.
    meta : mapping, optional
        Plain JSON to keep with the result, beside how it was measured.

    Returns
    -------
    BlockStatistics

    Raises
    ------
    ValueError
        If an argument is out of range; if there is no batch; if the loss is no scalar, not finite or not the
        same when computed again; if a parameter gets no gradient.

    Notes
    -----
    Memory: the graph of the gradient over all batches, and for each block `steps` times its size for as many
    probes as fit into 1 GiB. Time goes with the batches in the graph: the same data in few of them is faster.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), torch.randn(8, 3)
    >>> s = measure(model, lambda model, batch: model(batch).square().mean(), [x[:4], x[4:]])
    >>> s.names, s.sizes.tolist(), bool(s.exact.all())
    (('0.weight', '0.bias', '2.weight', '2.bias'), [12, 4, 4, 1], True)
    >>> round(float(s.top[3]), 12)  # the loss is the square of an output that the last bias is added to
    2.0
    """
    for name, value, least in (
        ("probes", probes, 0),
        ("steps", steps, 1),
        ("dense_below", dense_below, 2),
        ("seed", seed, 0),
        ("threads", threads, 1),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer >= {least}, received {shown(value)}")
    tolerance = real_number(eigenvalue_tolerance, "eigenvalue_tolerance")
    if dtype not in (torch.float64, torch.float32):
        raise ValueError(f"dtype must be torch.float64 or torch.float32, received {shown(dtype)}")
    where = _device(model, device)
    grouped, left_out = _grouped(model, blocks, split_packed)
    names, pieces = list(grouped), list(grouped.values())

    with _threads(threads), torch.inference_mode(False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        model = _copied(model, where, dtype)
        data = [_moved(batch, where, dtype) for batch in _listed(batches)]
        measured = {piece.parameter for block in pieces for piece in block}
        parameters = {name: p for name, p in model.named_parameters() if name in measured}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in measured)
        _check_repeatable(model, loss, data[0], parameters)
        noise = _noise(model, loss, data, parameters, pieces)
        total = torch.stack([_loss(model, loss, batch) for batch in data]).mean()
        curvature = Curvature(total, parameters, pieces)
        return _measured(
            curvature,
            names,
            probes,
            steps,
            dense_below,
            tolerance,
            seed,
            progress,
            noise=noise,
            loss=total.item(),
            batches=len(data),
            meta={
                "model": type(model).__name__,
                "left_out": left_out,
                "blocks": blocks if isinstance(blocks, str) else "function",
                "probes": probes,
                "steps": steps,
                "eigenvalue_tolerance": tolerance,
                "seed": seed,
                "dtype": str(dtype).removeprefix("torch."),
                "torch": torch.__version__,
                **(meta or {}),
            },
        )


def _measured(
    curvature: Curvature,
    names: Sequence[str],
    probes: int,
    steps: int,
    dense_below: int,
    tolerance: float,
    seed: int,
    progress: bool | None,
    **known: Any,
) -> BlockStatistics:
    """Return the statistics of the blocks, given what is known without the Hessian."""
    like = curvature.gradient(0)
    exact = [size <= dense_below for size in curvature.sizes]
    norms, edges = np.empty(len(names)), np.empty((len(names), 2))
    densities = []
    with progress_bar(progress, total=len(names), desc="blocks", unit="block") as bar:
        for b, size in enumerate(curvature.sizes):
            norms[b] = float(torch.linalg.vector_norm(curvature.gradient(b)))
            rng = np.random.default_rng((seed, *names[b].encode()))  # whatever the other blocks are

            def product(vectors: Tensor, b: int = b) -> Tensor:
                return curvature.product(b, vectors)

            if exact[b]:
                values = dense_spectrum(product, size, like)
                edges[b] = values[[0, -1]]
                density = Spectrum(values, np.full(size, 1.0 / size), 0.0, float(values.sum()), 0.0)
            else:
                try:
                    edges[b] = extremes(product, size, like, tolerance, rng)
                except RuntimeError as error:
                    raise RuntimeError(f"block {names[b]!r}: {error}") from error
                density = (
                    lanczos_density(product, size, like, probes, steps, rng)
                    if probes
                    else Spectrum(np.empty(0), np.empty(0), math.nan, math.nan, math.nan)
                )
            densities.append(density)
            bar.update()
    off = np.array(list(leakage(curvature, probes, like, np.random.default_rng(seed))))
    nodes, weights, errors, traces, trace_errors = zip(*densities, strict=True)
    return BlockStatistics(
        names=tuple(names),
        sizes=np.array(curvature.sizes),
        gradient_norms=norms,
        top=edges[:, 1],
        bottom=edges[:, 0],
        trace=np.array(traces),
        trace_error=np.array(trace_errors),
        nodes=nodes,
        weights=weights,
        density_error=np.array(errors),
        exact=np.array(exact),
        leakage=float(off.mean()) if probes else math.nan,
        leakage_error=float(off.std(ddof=1)) / math.sqrt(probes) if probes > 1 else math.nan,
        **known,
    )


# -- the model and its blocks


def _device(model: nn.Module, device: str | torch.device | None) -> torch.device:
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be an nn.Module, received {shown(model)}")
    first = next(model.parameters(), None)
    if first is None:
        raise ValueError(f"model {type(model).__name__} has no parameters")
    if device is None:
        return first.device
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = (str(error).splitlines() or ["it is not there"])[0]
        raise ValueError(f"device {shown(device)} cannot be used: {reason}") from None


def _copied(model: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    try:
        copied = copy.deepcopy(model)
    except RuntimeError as error:
        raise ValueError(
            f"model {type(model).__name__} cannot be copied: {str(error).splitlines()[0]}"
        ) from None
    return copied.to(device=device, dtype=dtype).eval()


def _packed(name: str, shape: Sequence[int]) -> tuple[int, int] | None:
    """Return the axis along which a tensor packs query, key and value, and the length of each."""
    match = re.search(r"(?:^|\.)(in_proj_|c_attn\.|qkv\.)(weight|bias)$", name)
    if not match:
        return None
    # GPT-2's c_attn maps rows to columns (inputs, 3 outputs); the others, as nn.Linear, (3 outputs, inputs)
    axis = 1 if match[1] == "c_attn." and match[2] == "weight" else 0
    return (axis, shape[axis] // 3) if shape[axis] % 3 == 0 else None


def _grouped(
    model: nn.Module, blocks: Blocks, split_packed: bool
) -> tuple[dict[str, list[Piece]], list[str]]:
    """Return block name -> its pieces, and the names of the tensors in no block."""
    if not callable(blocks) and blocks not in ("tensor", "layer"):
        raise ValueError(
            f"blocks must be 'tensor', 'layer' or a function of a name, received {shown(blocks)}"
        )
    named, left_out = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            left_out.append(name)
            continue
        if parameter.is_complex():
            raise ValueError(f"parameter {name!r} is complex, only real ones can be measured")
        shape = tuple(parameter.shape)
        packed = _packed(name, shape) if split_packed else None
        if packed:
            axis, length = packed
            third = (*shape[:axis], length, *shape[axis + 1 :])
            for k, letter in enumerate("qkv"):
                part = (slice(None),) * axis + (slice(k * length, (k + 1) * length),)
                named.append((f"{name}.{letter}", Piece(name, part, third)))
        else:
            named.append((name, Piece(name, (), shape)))
    grouped: dict[str, list[Piece]] = {}
    for name, piece in named:
        block = _block_of(name, blocks)
        if block is None:
            left_out.append(name)
        else:
            grouped.setdefault(block, []).append(piece)
    if not grouped:
        raise ValueError("no block to measure: every parameter is frozen or left out")
    return grouped, left_out


def _block_of(name: str, blocks: Blocks) -> str | None:
    if blocks == "tensor":
        return name
    if blocks == "layer":
        layer = re.match(r"(?:.*?\.)?\d+(?=\.)", name)
        return layer[0] if layer else name.rpartition(".")[0] or name
    block = blocks(name)  # type: ignore[operator]
    if block is not None and not (isinstance(block, str) and block):
        raise ValueError(f"blocks({name!r}) must be the name of a block or None, received {shown(block)}")
    return block


# -- the loss


def _listed(batches: Iterable[Any]) -> list[Any]:
    if isinstance(batches, (Tensor, str, Mapping)) or not isinstance(batches, Iterable):
        raise ValueError(f"batches must be an iterable of batches, received {shown(batches)}")
    found = list(itertools.islice(batches, MAX_BATCHES + 1))
    if not found:
        raise ValueError("batches is empty; an iterator that has been read before has nothing left")
    if len(found) > MAX_BATCHES:
        raise ValueError(f"batches has more than {MAX_BATCHES} batches, or no end: take some of it")
    return found


def _moved(batch: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Return the batch with its tensors on the device, the floating ones in this precision."""
    if isinstance(batch, Tensor):
        if batch.is_inference():
            batch = batch.clone()
        return batch.detach().to(device, dtype if batch.is_floating_point() else batch.dtype)
    if isinstance(batch, Mapping):
        moved = copy.copy(batch)
        for key, value in batch.items():
            moved[key] = _moved(value, device, dtype)  # type: ignore[index]
        return moved
    if isinstance(batch, (tuple, list)):
        parts = [_moved(part, device, dtype) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch


def _loss(model: nn.Module, loss: Loss, batch: Any) -> Tensor:
    value = loss(model, batch)
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
        raise ValueError(f"loss must return a real scalar tensor, received {shown(value)}")
    if not math.isfinite(value.item()):
        raise ValueError(f"the loss is {value.item()}, not finite")
    if not value.requires_grad:
        raise ValueError("the loss depends on no parameter: does it use the model it is given?")
    return value.reshape(())


def _gradients(
    model: nn.Module, loss: Loss, batch: Any, parameters: Mapping[str, Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Return the loss and the gradient of one batch."""
    value = _loss(model, loss, batch)
    found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    for name, gradient in zip(parameters, found, strict=True):
        if gradient is None:
            raise ValueError(
                f"parameter {name!r} gets no gradient: the loss does not depend on it "
                "(requires_grad_(False) makes it a constant)"
            )
        if gradient.is_sparse:
            raise ValueError(f"parameter {name!r} has a sparse gradient, which has no second derivative")
        if not torch.isfinite(gradient).all():
            raise ValueError(f"parameter {name!r} has a gradient that is not finite")
    return value.detach(), list(found)


def _check_repeatable(model: nn.Module, loss: Loss, batch: Any, parameters: Mapping[str, Tensor]) -> None:
    """Raise ValueError if the same batch does not give the same loss and gradient again."""
    (first, gradients), (second, again) = (_gradients(model, loss, batch, parameters) for _ in range(2))
    hint = "the model or the loss draws random numbers, or keeps a state"
    if not torch.equal(first, second):
        raise ValueError(f"the loss is {first.item()!r}, then {second.item()!r} on the same batch: {hint}")
    # a GPU may add up in another order each time; a CPU does not
    slack = 0.0 if first.device.type == "cpu" else 1e3 * torch.finfo(first.dtype).eps
    for name, a, b in zip(parameters, gradients, again, strict=True):
        if torch.linalg.vector_norm(a - b) > slack * torch.linalg.vector_norm(a):
            raise ValueError(f"the gradient of {name!r} is another one on the same batch: {hint}")


def _noise(
    model: nn.Module,
    loss: Loss,
    batches: Sequence[Any],
    parameters: Mapping[str, Tensor],
    blocks: Sequence[Sequence[Piece]],
) -> FloatArray:
    """Return the standard deviation of a batch's gradient a coordinate, for each block."""
    count = len(batches)
    means = {name: torch.zeros_like(p) for name, p in parameters.items()}
    squares = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for k, batch in enumerate(batches, start=1):  # Welford's update: no cancellation
        for name, gradient in zip(parameters, _gradients(model, loss, batch, parameters)[1], strict=True):
            change = gradient - means[name]
            means[name] += change / k
            squares[name] += change * (gradient - means[name])
    if count == 1:
        return np.full(len(blocks), math.nan)
    found = []
    for block in blocks:
        total = sum(float(squares[p][part].sum()) for p, part, _ in block)
        size = sum(math.prod(shape) for _, _, shape in block)
        found.append(math.sqrt(max(0.0, total) / ((count - 1) * size)))
    return np.array(found)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
