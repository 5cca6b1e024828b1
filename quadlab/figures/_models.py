"""What the figures on real models share: how models look, names of blocks, and the record they draw from."""

from __future__ import annotations

from typing import Any

from quadlab.bridge import study
from quadlab.figures import style

#: Model -> (label, colour, marker, line style), the same in every figure.
MODELS: dict[str, tuple[str, str, str, Any]] = {
    "gpt-pre": ("GPT, Pre-LN", style.SKY, "o", (0, (4, 1.5))),
    "gpt-post": ("GPT, Post-LN", style.BLUE, "s", "-"),
    "vit-pre": ("ViT, Pre-LN", style.ORANGE, "^", (0, (5, 1.2, 1, 1.2))),
    "vit-post": ("ViT, Post-LN", style.VERMILLION, "v", (0, (1, 1))),
    "cnn": ("CNN", style.GREEN, "D", (0, (5, 1.2, 1, 1.2, 1, 1.2))),
    "mlp": ("MLP", style.PURPLE, "P", (0, (2, 1))),
}


def label(model: str, depth: int | None = None) -> str:
    """Return what a model is called."""
    return MODELS[model][0] + (f", {depth} layers" if depth else "")


def blocks(model: str, depth: int, kind: str = "blocks") -> dict[str, Any] | None:
    """Return the recorded unit of a model's blocks at its start, seed 0; None if it is missing."""
    found = study.select(study.recorded(), kind, model, depth)
    return next((entry for entry in found if entry["seed"] == 0), None)


def setting(entry: dict[str, Any]) -> dict[str, Any]:
    """Return what identifies a recorded unit."""
    return {key: entry[key] for key in ("model", "depth", "width", "examples", "seed")}


def short(name: str) -> str:
    """Return a block's name as a label: without what goes without saying.

    Examples
    --------
    >>> short("layers.1.attention.q.weight"), short("convolutions.0.weight"), short("head.bias")
    ('1.q', 'conv.0', 'head bias')
    """
    for long, brief in (
        ("layers.", ""),
        ("attention.", ""),
        ("convolutions.", "conv."),
        ("hidden.", "hidden."),
        (".weight", ""),
        (".bias", " bias"),
    ):
        name = name.replace(long, brief)
    return name


def is_matrix(name: str) -> bool:
    """Return whether a block is a matrix (or a convolution), not a bias or a normalisation.

    Examples
    --------
    >>> is_matrix("layers.0.attention.q.weight"), is_matrix("layers.0.ln1.weight"), is_matrix("position")
    (True, False, True)
    """
    parts = name.split(".")
    return name == "position" or (parts[-1] == "weight" and not parts[-2].startswith("ln"))
