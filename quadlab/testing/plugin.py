r"""The pytest plugin: the fixture ``bound_regression`` and the option ``--quadlab-update``.

The fixture takes what :func:`quadlab.compare` returns and holds it against what the same test recorded
before: the problem by its constants, and for each run the method, the status, the count, and the value of
every bound that applies. Statuses and counts have to be equal, other numbers to 1e-9 relative: the count is
that of one sequence of floating-point operations, the constants pass through LAPACK, whose last bits differ
between CPUs. Bounds that are new to the record are no difference; bounds that no longer apply are.

The record of ``tests/test_x.py`` is ``tests/test_x.quadlab.json``, one entry a test. ``--quadlab-update``
rewrites the entries of the tests that run, and leaves the others. Under pytest-xdist several processes do so
at once: each takes a lock, reads the file, merges its own entry and replaces the file.

Pytest imports this module whenever it starts, so it imports nothing of weight: neither numba, nor
hypothesis, nor the rest of quadlab. The fixture gets by on the attributes of what it is given.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from quadlab.compare import Comparison

SCHEMA = "quadlab.golden/1"
RELATIVE = 1e-9


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option ``--quadlab-update``."""
    group = parser.getgroup("quadlab")
    group.addoption(
        "--quadlab-update", action="store_true", help="rewrite the golden predictions of bound_regression"
    )


@pytest.fixture
def bound_regression(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Return a function that holds a comparison against the recorded one, or records it.

    It is called as ``bound_regression(comparison, name="")``; the name tells several calls in one test apart.
    """
    path = request.node.path.with_suffix(".quadlab.json")
    test = request.node.nodeid.partition("::")[2]
    update = request.config.getoption("--quadlab-update")
    used: set[str] = set()

    def check(comparison: Comparison, name: str = "") -> None:
        __tracebackhide__ = True
        key = f"{test}: {name}" if name else test
        if key in used:
            raise ValueError(
                f"bound_regression needs a name for each call of a test, received {name!r} twice"
            )
        used.add(key)
        entry = prediction(comparison)
        if update:
            record(path, key, entry)
            return
        hint = "pytest --quadlab-update records what is there now"
        golden = read(path).get(key)
        if golden is None:
            pytest.fail(f"{path.name} has no prediction for {key}; {hint}", pytrace=False)
        moved = differences(golden, entry)
        if moved:
            lines = "\n".join(f"  {line}" for line in moved)
            pytest.fail(f"{path.name}: the prediction for {key} moved\n{lines}\n{hint}", pytrace=False)

    return check


def prediction(comparison: Comparison) -> dict[str, Any]:
    """Return what is recorded of a comparison, as JSON.

    Parameters
    ----------
    comparison : Comparison
        Of :func:`quadlab.compare`.

    Examples
    --------
    >>> import quadlab as ql
    >>> p = ql.BlockQuadratic.from_blocks([[1.0, 4.0]], start=[4.0, 1.0])
    >>> entry = prediction(ql.compare(p, ql.GD(0.25), ql.GradientNorm(1.0, ord=2)))
    >>> entry["runs"][0]["iterations"], round(entry["runs"][0]["bounds"]["gd.constant_step"], 9)
    (4, 40.0)
    """
    problem = comparison.problem
    gradient = problem.gradient(problem.start)
    table = comparison.to_dict()
    return {
        "problem": {
            "name": table["case"],
            "parameters": int(problem.size),
            "blocks": int(problem.n_blocks),
            "largest": float(problem.block_norms.max()),
            "trace": float(problem.eigenvalues.sum()),
            "gap": 0.5 * float(problem.displacement @ gradient),
            "gradient_l1": float(abs(gradient).sum()),
        },
        "stop": table["stop"],
        "runs": [
            {
                "method": str(entry.run.method),
                "status": run["status"],
                "iterations": run["iterations"],
                "bounds": {item["name"]: item["value"] for item in run["bounds"] if item["applies"]},
            }
            for entry, run in zip(comparison.runs, table["runs"], strict=True)
        ],
    }


def differences(golden: dict[str, Any], entry: dict[str, Any]) -> list[str]:
    r"""Return what moved, a line each.

    Parameters
    ----------
    golden, entry : dict
        Predictions: the one recorded, and the one of now.

    Examples
    --------
    >>> import quadlab as ql
    >>> p = ql.BlockQuadratic.from_blocks([[1.0, 4.0]], start=[4.0, 1.0])
    >>> golden, entry = (
    ...     prediction(ql.compare(p, ql.GD(0.25), ql.GradientNorm(eps, ord=2))) for eps in (1.0, 0.9)
    ... )
    >>> print(*differences(golden, entry)[:2], sep="\n")
    stop eps: 1 -> 0.9
    run 0, GD(0.25): gd.constant_step: 40 -> 49.3827160494
    """
    old, new = _flat(golden), _flat(entry)
    moved = [
        f"{label}: {_shown(value)} -> {_shown(new[label]) if label in new else 'absent'}"
        for label, value in old.items()
        if label not in new or not _same(value, new[label])
    ]
    return moved + [f"{label}: not in the record" for label in new if label not in old and "status" in label]


def _flat(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers and words of a prediction by what they are called in a message."""
    flat = {f"problem {key}": value for key, value in entry["problem"].items()}
    stops = entry["stop"] if isinstance(entry["stop"], list) else [entry["stop"]]
    for k, stop in enumerate(stops):
        flat |= {f"stop {k} {key}" if k else f"stop {key}": value for key, value in stop.items()}
    for k, run in enumerate(entry["runs"]):
        label = f"run {k}, {run['method']}:"
        flat |= {f"{label} {key}": run[key] for key in ("status", "iterations")}
        flat |= {f"{label} {name}": value for name, value in run["bounds"].items()}
    return flat


def _same(old: Any, new: Any) -> bool:
    if isinstance(old, float) and isinstance(new, float):
        return math.isclose(old, new, rel_tol=RELATIVE, abs_tol=0.0)
    return bool(old == new)


def _shown(value: Any) -> str:
    return f"{value:.12g}" if isinstance(value, float) else json.dumps(value)


# The file ---------------------------------------------------------------------------------------------------


def read(path: Path) -> dict[str, Any]:
    """Return the entries of a record; none if there is no file.

    Raises
    ------
    ValueError
        If the file is no record.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path} is not a record of predictions: {error}") from None
    if not isinstance(table, dict) or table.get("schema") != SCHEMA:
        raise ValueError(f"{path} is not a record of predictions: its schema is not {SCHEMA!r}")
    entries: dict[str, Any] = table["predictions"]
    return entries


def record(path: Path, key: str, entry: dict[str, Any]) -> None:
    """Write one entry of a record, in whatever number of processes at once."""
    with _locked(path):
        entries = read(path) | {key: entry}
        table = {"schema": SCHEMA, "predictions": dict(sorted(entries.items()))}
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            text = json.dumps(table, indent=1, allow_nan=False, ensure_ascii=False)
            temporary.write_text(text + "\n", encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file; the operating system gives it back if the process dies."""
    user = getattr(os, "getuid", int)()  # nobody can open the lock of another user
    name = hashlib.sha256(f"{user}:{path.resolve()}".encode()).hexdigest()[:16]
    with open(Path(tempfile.gettempdir()) / f"quadlab-{name}.lock", "a+b") as lock:
        if os.name == "nt":
            import msvcrt

            lock.seek(0)
            msvcrt.locking(lock.fileno(), msvcrt.LK_LOCK, 1)  # type: ignore[attr-defined]
            try:
                yield
            finally:
                lock.seek(0)
                msvcrt.locking(lock.fileno(), msvcrt.LK_UNLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
