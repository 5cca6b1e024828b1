"""The store: one SQLite file, a row a run, in which a sweep that was killed goes on.

Rows are written in transactions of whole packs. SQLite's write-ahead log makes each of them happen wholly or
not at all, whatever kills the process, and lets several processes write to one file. A row's key is a hash of
the run's configuration and of the versions that matter, so a run is never stored twice, and never mistaken
for one that another version computed. Its numbers are the bytes of floats, as they were computed:
``array.array("d", numbers)``, in the order of ``names.split(",")``.

A killed process loses nothing that was committed. A machine that loses its power may lose the last
transactions (SQLite's ``synchronous = NORMAL``), not the file: what is missing is run again.

A store is looked at before it is opened for writing: one that is of another schema, damaged, or no store at
all is left as it is.
"""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from time import sleep
from typing import Any

#: Of the layout below; other layouts are refused.
STORE_SCHEMA = 3
#: "QLsw", where SQLite keeps the kind of a file.
APPLICATION_ID = 0x514C7377
FAILED = "failed"
#: Of the numbers of a run, as NumPy calls it.
NUMBER = "<f8"
#: Seconds to wait for another process that is writing.
PATIENCE = 60.0

_TABLE = """
CREATE TABLE IF NOT EXISTS runs (
    key TEXT PRIMARY KEY,     -- hash of the configuration and of the versions that matter
    config TEXT NOT NULL,     -- JSON: {"problem": {...}, "run": {...}}
    status TEXT NOT NULL,     -- how the run ended, or failed
    names TEXT NOT NULL,      -- of its numbers: final_grad_l1,...,iterations,...; of a failed run none
    numbers BLOB NOT NULL,    -- little-endian float64, one a name; NaN where the run has none
    error TEXT,               -- why it failed
    seconds REAL NOT NULL,    -- its share of the wall time of its pack
    checksum INTEGER NOT NULL -- CRC-32 of all but seconds
)
"""
# A result is never overwritten; a failed run is, when it was retried.
_WRITE = """
INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET
    status = excluded.status, names = excluded.names, numbers = excluded.numbers, error = excluded.error,
    seconds = excluded.seconds, checksum = excluded.checksum
WHERE runs.status = 'failed'
"""


#: What became of a run: status, names, numbers, error, seconds.
Outcome = tuple[str, str, bytes, str | None, float]
#: Key, configuration and outcome.
Row = tuple[str, str, Outcome]


def _checksum(key: str, config: str, outcome: Outcome) -> int:
    """Return the CRC-32 of what a row says, all but the wall time."""
    status, names, numbers, error, _ = outcome
    return zlib.crc32(numbers, zlib.crc32(f"{key}\0{config}\0{status}\0{names}\0{error or ''}".encode()))


class Store:
    """The rows of a file, or of this process's memory.

    Parameters
    ----------
    path : str, Path or None
        The file, made if there is none; None keeps the rows in memory.
    write : bool
        False only reads, and makes no file.

    Raises
    ------
    ValueError
        If the file is no store, one of another schema, or damaged; it is left untouched.
    OSError
        If it cannot be opened.

    Examples
    --------
    >>> with closing(Store(None)) as store:
    ...     store.write([("k", "{}", ("failed", "", b"", "no luck", 0.1))])
    ...     store.read(["k", "other"])
    {'k': ('failed', '', b'', 'no luck', 0.1)}
    """

    def __init__(self, path: str | Path | None, write: bool = True) -> None:
        self.path = None if path is None else Path(path)
        self._connection: sqlite3.Connection | None = None
        if self.path is None or not (write or self.path.exists()):
            self._connection = sqlite3.connect(":memory:", isolation_level=None)
            self._connection.execute(_TABLE)
            return
        try:
            if _looked_at(self.path):
                with closing(_connect(self.path, "ro")) as connection:
                    _check(connection, self.path)
            self._connection = _connect(self.path, "rwc" if write else "ro")
            if write:
                self._prepare()
        except BaseException as error:
            self.close()
            if isinstance(error, sqlite3.Error):
                raise _explained(error, self.path) from None
            raise

    def _prepare(self) -> None:
        """Make the table if this is a new file; twice, or by two processes at once, is the same as once."""
        connection = self._db
        (has_table,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not has_table:
            # In the journal mode of a new file, so that its kind stands in its first bytes from the start on.
            with _Transaction(connection):
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {STORE_SCHEMA}")
                connection.execute(_TABLE)
        for _ in range(int(PATIENCE * 20)):  # SQLite itself does not wait for this lock
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError as error:
                if "locked" not in str(error):
                    raise
                sleep(0.05)
        connection.execute("PRAGMA synchronous = NORMAL")

    @property
    def _db(self) -> sqlite3.Connection:
        if self._connection is None:
            raise ValueError(f"store {self.path} is closed")
        return self._connection

    def write(self, rows: Iterable[Row]) -> None:
        """Write rows in one transaction: all of them, or none and an OSError."""
        try:
            with _Transaction(self._db):
                self._db.executemany(
                    _WRITE,
                    [
                        (key, config, *outcome, _checksum(key, config, outcome))
                        for key, config, outcome in rows
                    ],
                )
        except sqlite3.Error as error:
            raise _explained(error, self.path) from None

    def read(self, keys: Iterable[str]) -> dict[str, Outcome]:
        """Return what is stored of the keys.

        Raises
        ------
        ValueError
            If a row is not what was written.
        """
        wanted = set(keys)
        found: dict[str, Outcome] = {}
        try:
            self._version = self._data_version()
            for key, config, *values, checksum in self._db.execute("SELECT * FROM runs"):
                if key in wanted:
                    status, names, numbers, error, seconds = values
                    found[key] = outcome = status, names, numbers, error, seconds
                    if _checksum(key, config, outcome) != checksum:
                        raise ValueError(f"store {self.path} is damaged: run {key} is not what was written")
        except sqlite3.Error as error:
            raise _explained(error, self.path) from None
        return found

    def is_own(self) -> bool:
        """Return whether nobody else has written since `read`.

        Then the file holds what was read and what this object wrote, and need not be read again.
        """
        try:
            return self._data_version() == self._version
        except sqlite3.Error as error:
            raise _explained(error, self.path) from None

    def _data_version(self) -> int:
        return self._db.execute("PRAGMA data_version").fetchone()[0]

    def close(self) -> None:
        """Close the file; what was written stays."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class _Transaction:
    """BEGIN IMMEDIATE ... COMMIT, rolled back on any exception, Ctrl-C included."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: Any, *rest: object) -> None:
        try:
            if kind is None:
                self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None, timeout=PATIENCE
    )


def _looked_at(path: Path) -> bool:
    """Return whether the file holds a store of this schema; False: there is none yet.

    Its first bytes are read as bytes, since SQLite would write beside a file merely to look into it.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(100)
    except FileNotFoundError:
        return False
    if not head:
        return False  # killed before the first write
    if len(head) < 100 or not head.startswith(b"SQLite format 3\0"):
        raise ValueError(f"store {path} is no SQLite file")
    if int.from_bytes(head[68:72]) != APPLICATION_ID:
        raise ValueError(f"store {path} is an SQLite file, but no store of a sweep")
    schema = int.from_bytes(head[60:64])
    if schema != STORE_SCHEMA:
        raise ValueError(f"store {path} has schema {schema}, quadlab reads {STORE_SCHEMA}: use another file")
    return True


def _check(connection: sqlite3.Connection, path: Path) -> None:
    try:
        (told,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and "malformed" not in str(error):
            raise
        told = str(error)
    if told != "ok":
        raise ValueError(f"store {path} is damaged: {' '.join(told.split())}")


def _explained(error: sqlite3.Error, path: Path | None) -> Exception:
    text = str(error)
    if isinstance(error, sqlite3.OperationalError) or "readonly" in text:
        if "full" in text:
            text += "; what was written is kept, and the same call goes on from there"
        elif path is not None and "unable to open" in text and not os.path.isdir(path.absolute().parent):
            text += f": no folder {path.absolute().parent}"
        return OSError(f"store {path}: {text}")
    return ValueError(f"store {path} is damaged: {text}")
