"""Files of arrays: NumPy's .npz without pickle, written whole or not at all."""

from __future__ import annotations

import os
import secrets
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from quadlab._arrays import frozen, shown

T = TypeVar("T")


def write_npz(path: str | os.PathLike[str], schema: str, entries: dict[str, Any]) -> None:
    """Write the entries and their schema to `path`, whatever its name, whole or not at all."""
    target = Path(path)
    temporary = target.with_name(f"{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            np.savez(file, allow_pickle=False, schema=schema, **entries)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def read_npz(
    path: str | os.PathLike[str], schema: str, what: str, build: Callable[[dict[str, np.ndarray]], T]
) -> T:
    """Return what `build` makes of the entries of a file of this schema, all of them read-only.

    Raises ValueError, one line that names the path and `what` it should be, if the file is no .npz, has
    another schema, lacks an entry, or `build` raises ValueError; OSError if it cannot be read.
    """
    with Path(path).open("rb") as file:
        try:
            if not zipfile.is_zipfile(file):
                raise ValueError("it is no .npz archive")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                entries = {key: np.asarray(archive[key]) for key in archive.files}
            frozen(*entries.values())  # nobody else holds them: `build` need not copy
            found = str(entries.get("schema"))
            if found != schema:
                raise ValueError(f"its schema is {shown(found)}, not {schema!r}")
            return build(entries)
        except KeyError as error:
            raise ValueError(f"{os.fspath(path)} is not a {what}: it lacks the entry {error}") from None
        except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
            raise ValueError(f"{os.fspath(path)} is not a {what}: {error}") from None
