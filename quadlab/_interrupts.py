"""Ctrl-C while compiled code runs: it waits for the end of the call.

Numba turns a function pointer into a kernel's argument by a call of Python code, and drops an exception
raised there: a KeyboardInterrupt at that moment would be lost.
"""

from __future__ import annotations

import signal
import threading
from typing import Any


class Deferred:
    """A context in which SIGINT is noted, and handled by the handler in force before at its end.

    Only the main thread gets signals; in other threads the context does nothing.
    """

    def __enter__(self) -> None:
        self._received: list[tuple[Any, ...]] = []
        handler = None
        if threading.current_thread() is threading.main_thread():
            handler = signal.getsignal(signal.SIGINT)
        self._handler = handler if callable(handler) else None
        if self._handler is not None:
            signal.signal(signal.SIGINT, lambda *arguments: self._received.append(arguments))

    def __exit__(self, *exc: object) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            if self._received:
                self._handler(*self._received[0])
