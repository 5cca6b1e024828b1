"""Progress bars: tqdm's, shown after two seconds, on a terminal and in a notebook."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator
from typing import Any


def progress_bar(wanted: bool | None = None, **options: Any) -> Any:
    """Return a tqdm bar; `wanted` None shows it where somebody looks, True and False decide.

    tqdm itself shows a bar of ``disable=None`` only where the output is a terminal, so not in a notebook.
    """
    if wanted is False:
        return _NoBar(options.get("iterable", ()))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "IProgress not found")  # a notebook without widgets: a bar of text
        from tqdm.auto import tqdm

    if wanted is None and type(sys.stderr).__module__.startswith("ipykernel."):
        wanted = True
    return tqdm(delay=2.0, disable=None if wanted is None else not wanted, **options)


class _NoBar:
    """No bar at all: even a disabled tqdm makes a semaphore, which a killed worker would leave behind."""

    def __init__(self, iterable: Iterable[Any]) -> None:
        self._iterable = iterable

    def __iter__(self) -> Iterator[Any]:
        return iter(self._iterable)

    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def update(self, count: int = 1) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Nothing to close."""
