r"""Small real models, one tensor a block, with data that need no download.

A Transformer's layer adds two branches to the residual stream x, attention and a two-layer perceptron:

.. math::
   \text{Pre-LN:}\quad  x \leftarrow x + F(\mathrm{LN}(x)), \qquad
   \text{Post-LN:}\quad x \leftarrow \mathrm{LN}(x + F(x)),

and Pre-LN has one more LN before the head. Query, key, value and output are four matrices with a bias each,
so that a block, a parameter tensor, is what the papers call one. The key's bias moves all scores of a query
alike, which softmax does not see: its gradient and its curvature are exactly zero.

All is smooth (GELU, mean pooling), without dropout and without statistics over a batch: the loss is a
deterministic function of the parameters, twice differentiable. Attention is written out in matrix products,
which any backend differentiates twice.

A Transformer's matrices start at Xavier's normal law, its embeddings at N(0, 1/width); the matrices of the
CNN and the MLP at He's; biases at 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from quadlab._arrays import shown
from quadlab.bridge.data import ALPHABET, CLASSES, SIDE, Batch, digits, text

__all__ = ["WORKLOADS", "Workload", "cross_entropy", "workload"]


class Attention(nn.Module):
    """Multi-head self-attention with separate query, key, value and output matrices."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.heads, self.causal = heads, causal

    def forward(self, x: Tensor) -> Tensor:
        """Map (examples, tokens, width) to the same shape."""
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if self.causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(later, -torch.inf)
        return self.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(-2))


class Layer(nn.Module):
    """One layer of a Transformer, Pre-LN or Post-LN."""

    def __init__(self, width: int, heads: int, causal: bool, post: bool) -> None:
        super().__init__()
        self.attention = Attention(width, heads, causal)
        self.ln1 = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.ln2 = nn.LayerNorm(width)
        self.post = post

    def _perceptron(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.gelu(self.up(x)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (examples, tokens, width) to the same shape."""
        if self.post:
            x = self.ln1(x + self.attention(x))
            return self.ln2(x + self._perceptron(x))
        x = x + self.attention(self.ln1(x))
        return x + self._perceptron(self.ln2(x))


class Transformer(nn.Module):
    """Layers between an embedding of tokens and a linear head; the base of `GPT` and `ViT`."""

    def __init__(
        self, embed: nn.Module, tokens: int, outputs: int, depth: int, width: int, causal: bool, post: bool
    ) -> None:
        super().__init__()
        self.embed = embed
        self.position = nn.Parameter(torch.empty(tokens, width))
        heads = next(h for h in (4, 2, 1) if width % h == 0)
        self.layers = nn.ModuleList(Layer(width, heads, causal, post) for _ in range(depth))
        self.ln = nn.Identity() if post else nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)

    def features(self, x: Tensor) -> Tensor:
        """Map embedded tokens to (examples, tokens, width)."""
        x = self.embed(x)
        x = x + self.position[: x.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.ln(x)


class GPT(Transformer):
    """A causal text Transformer: tokens (examples, context) to logits (examples, context, vocabulary)."""

    def __init__(self, depth: int, width: int, post: bool, vocabulary: int, context: int) -> None:
        super().__init__(
            nn.Embedding(vocabulary, width), context, vocabulary, depth, width, causal=True, post=post
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the next token at every place."""
        return self.head(self.features(x))


class ViT(Transformer):
    """A vision Transformer: images (examples, side^2) to logits, over patches of 2 x 2, mean-pooled."""

    def __init__(self, depth: int, width: int, post: bool, side: int, classes: int) -> None:
        super().__init__(
            nn.Linear(4, width), (side // 2) ** 2, classes, depth, width, causal=False, post=post
        )
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the classes."""
        half = self.side // 2
        patches = x.reshape(-1, half, 2, half, 2).transpose(2, 3).reshape(-1, half * half, 4)
        return self.head(self.features(patches).mean(1))


class CNN(nn.Module):
    """3 x 3 convolutions with GELU, twice as wide after each of two poolings, mean-pooled, a linear head."""

    def __init__(self, depth: int, width: int, side: int, classes: int) -> None:
        super().__init__()
        widths = [1] + [width * 2 ** min(k, 2) for k in range(depth)]
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.head = nn.Linear(widths[-1], classes)
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the classes."""
        x = x.reshape(-1, 1, self.side, self.side)
        for k, convolution in enumerate(self.convolutions):
            x = nn.functional.gelu(convolution(x))
            if k < 2:
                x = nn.functional.avg_pool2d(x, 2)
        return self.head(x.mean((2, 3)))


class MLP(nn.Module):
    """Fully connected layers with GELU, and a linear head."""

    def __init__(self, depth: int, width: int, inputs: int, classes: int) -> None:
        super().__init__()
        widths = [inputs] + [width] * depth
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the classes."""
        for layer in self.hidden:
            x = nn.functional.gelu(layer(x))
        return self.head(x)


def _initialise(model: nn.Module) -> None:
    matrix = nn.init.xavier_normal_ if isinstance(model, Transformer) else nn.init.kaiming_normal_
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for name, parameter in model.named_parameters():
        if name == "position" or id(parameter) in embeddings:
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        elif parameter.ndim > 1:
            matrix(parameter)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean cross-entropy in nats, in the precision and on the device of the model.

    Parameters
    ----------
    model : nn.Module
        Maps inputs to logits, the classes last.
    batch : tuple of Tensor
        Inputs and the numbers of the classes.

    Returns
    -------
    Tensor
        A scalar.
    """
    like = next(model.parameters())
    x, y = batch
    x = x.to(like.device, like.dtype if x.is_floating_point() else x.dtype)
    return nn.functional.cross_entropy(model(x).flatten(0, -2), y.to(like.device).flatten())


@dataclass(frozen=True)
class Workload:
    """A model, its loss and its data; made by :func:`workload`.

    Attributes
    ----------
    name : str
        Its name in `WORKLOADS`.
    model : nn.Module
        float32, on the CPU, at its seeded start.
    data : tuple of Tensor
        All examples: inputs and targets.
    options : dict
        "depth", "width", "examples" and "seed".
    """

    name: str
    model: nn.Module
    data: tuple[Tensor, ...]
    options: dict[str, int]

    #: loss(model, batch), the same for all.
    loss: Callable[[nn.Module, Any], Tensor] = cross_entropy

    @property
    def size(self) -> int:
        """Number of parameters P."""
        return sum(p.numel() for p in self.model.parameters())

    def batches(self, count: int = 1) -> list[tuple[Tensor, ...]]:
        """Return the data in so many batches, as equal as can be; one is the full batch.

        Raises
        ------
        ValueError
            If there are fewer examples than batches, or `count` < 1.
        """
        examples = len(self.data[0])
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= examples:
            raise ValueError(f"count must be an integer in 1..{examples}, received {shown(count)}")
        return list(zip(*(part.tensor_split(count) for part in self.data), strict=True))


@dataclass(frozen=True)
class _Recipe:
    description: str
    build: Callable[[int, int], nn.Module]  # depth, width
    data: Callable[[int, int], Batch]  # examples, seed
    depth: int
    width: int
    examples: int


CONTEXT = 32  #: Characters a piece of text.


def _gpt(post: bool) -> Callable[[int, int], nn.Module]:
    return lambda depth, width: GPT(depth, width, post, len(ALPHABET), CONTEXT)


def _vit(post: bool) -> Callable[[int, int], nn.Module]:
    return lambda depth, width: ViT(depth, width, post, SIDE, CLASSES)


def _text(examples: int, seed: int) -> Batch:
    return text(examples, CONTEXT, seed)


_RECIPES = {
    "gpt-pre": _Recipe("causal text Transformer, Pre-LN, next character", _gpt(False), _text, 4, 64, 64),
    "gpt-post": _Recipe("causal text Transformer, Post-LN, next character", _gpt(True), _text, 4, 64, 64),
    "vit-pre": _Recipe("vision Transformer, Pre-LN, digits", _vit(False), digits, 4, 64, 512),
    "vit-post": _Recipe("vision Transformer, Post-LN, digits", _vit(True), digits, 4, 64, 512),
    "cnn": _Recipe(
        "convolutional network, digits", lambda d, w: CNN(d, w, SIDE, CLASSES), digits, 4, 32, 512
    ),
    "mlp": _Recipe(
        "fully connected network, digits", lambda d, w: MLP(d, w, SIDE**2, CLASSES), digits, 3, 256, 512
    ),
}

#: Name -> one line about it.
WORKLOADS = {name: recipe.description for name, recipe in _RECIPES.items()}


def workload(
    name: str,
    *,
    depth: int | None = None,
    width: int | None = None,
    examples: int | None = None,
    seed: int = 0,
) -> Workload:
    """Return a model with its data; the same arguments give the same bits.

    Parameters
    ----------
    name : str
        One of `WORKLOADS`.
    depth : int >= 1, optional
        Layers; each model has a default, with which it has 90,000 to 300,000 parameters.
    width : int >= 1, optional
        Of the residual stream, of the hidden layers, or of the first convolution; 8 is enough for a test.
    examples : int >= 1, optional
        Pieces of text of 32 characters (default 64), or digits (default 512).
    seed : int >= 0
        Of the start and of the choice of examples.

    Returns
    -------
    Workload

    Raises
    ------
    ValueError
        If there is no such model or a number is out of range.

    Examples
    --------
    >>> w = workload("gpt-post", depth=2, width=8, examples=4)
    >>> w.size, round(w.loss(w.model, w.data).item(), 1)
    (3632, 4.6)
    """
    if name not in _RECIPES:
        raise ValueError(f"model must be one of {', '.join(_RECIPES)}, received {shown(name)}")
    recipe = _RECIPES[name]
    given: dict[str, Any] = {"depth": depth, "width": width, "examples": examples}
    options = {key: getattr(recipe, key) if value is None else value for key, value in given.items()}
    for key, value in {**options, "seed": seed}.items():
        least = 0 if key == "seed" else 1
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{key} must be an integer >= {least}, received {shown(value)}")
    data = recipe.data(options["examples"], seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = recipe.build(options["depth"], options["width"])
        _initialise(model)
    return Workload(name, model, data, {**options, "seed": seed})
