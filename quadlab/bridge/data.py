r"""Data that need no download: scikit-learn's digits, and the text of Python's own documentation topics.

**Digits.** The 1,797 images of 8 x 8 pixels of ``sklearn.datasets.load_digits``, scaled to [-1, 1]; ten
classes.

**Text.** ``pydoc_data.topics`` (about 460,000 characters), as next-character prediction. The alphabet is
fixed, 95 printable ASCII characters and the line break (anything else is left out), so that a model has the
same parameters under every version of Python; the text itself differs a little between versions.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from quadlab._arrays import shown

Batch = tuple[Tensor, Tensor]

#: The alphabet of the text: character k of it is token k.
ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
CLASSES = 10
SIDE = 8  #: Pixels along the side of a digit.


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise ValueError("the digits come with scikit-learn: pip install 'quadlab[torch]'") from None

    images, labels = load_digits(return_X_y=True)
    return (images / 8.0 - 1.0).astype(np.float32), labels.astype(np.int64)


@functools.cache
def _tokens() -> np.ndarray:
    from pydoc_data.topics import topics

    code = np.full(128, -1)
    code[[ord(c) for c in ALPHABET]] = np.arange(len(ALPHABET))
    text = "".join(topics[key] for key in sorted(topics)).encode("ascii", "ignore")
    tokens = code[np.frombuffer(text, dtype=np.uint8)]
    return tokens[tokens >= 0]


def _count(value: int, most: int, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ValueError(f"{what} must be an integer in 1..{most}, received {shown(value)}")
    return value


def digits(examples: int = 512, seed: int = 0) -> Batch:
    """Return images and labels of digits, drawn without replacement.

    Parameters
    ----------
    examples : int
        1 to 1,797.
    seed : int >= 0

    Returns
    -------
    tuple of Tensor
        float32 of shape (examples, 64) in [-1, 1], and int64 of shape (examples,).

    Raises
    ------
    ValueError
        If `examples` is out of range, or scikit-learn is missing.

    Examples
    --------
    >>> images, labels = digits(5, seed=0)
    >>> tuple(images.shape), sorted(set(labels.tolist())) == labels.unique().tolist()
    ((5, 64), True)
    """
    images, labels = _digits()
    chosen = np.random.default_rng(seed).permutation(len(images))[: _count(examples, len(images), "examples")]
    return torch.from_numpy(images[chosen]), torch.from_numpy(labels[chosen])


def text(examples: int = 64, context: int = 64, seed: int = 0) -> Batch:
    """Return pieces of the documentation topics, and the characters that come next.

    Parameters
    ----------
    examples : int
        Pieces, at random places.
    context : int
        Characters a piece, 1 to 1,024.
    seed : int >= 0

    Returns
    -------
    tuple of Tensor
        Two int64 of shape (examples, context): the second is the first, moved on by one character.

    Raises
    ------
    ValueError
        If a number is out of range.

    Examples
    --------
    >>> x, y = text(2, 16, seed=0)
    >>> tuple(x.shape), bool((x[:, 1:] == y[:, :-1]).all())
    ((2, 16), True)
    """
    tokens = _tokens()
    _count(examples, len(tokens), "examples")
    _count(context, 1024, "context")
    begin = np.random.default_rng(seed).integers(0, len(tokens) - context, examples)
    piece = torch.from_numpy(tokens[begin[:, None] + np.arange(context + 1)])
    return piece[:, :-1].contiguous(), piece[:, 1:].contiguous()
