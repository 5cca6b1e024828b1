"""Progress bars: tqdm's, shown after two seconds, on a terminal and in a notebook."""

from __future__ import annotations

from typing import Any


def progress_bar(wanted: bool | None = None, **options: Any) -> Any:
    """Return a tqdm bar; `wanted` None shows it where somebody looks, True and False decide.

    tqdm itself shows a bar of ``disable=None`` only where the output is a terminal, so not in a notebook.
    """
    from tqdm.auto import tqdm

    if wanted is None and any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__):
        wanted = True
    return tqdm(delay=2.0, disable=None if wanted is None else not wanted, **options)
