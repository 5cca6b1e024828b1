"""Kill -9 sweeps at random moments, start them again, and hold the final table against an undisturbed one.

``python tests/sweep_kills.py --kills 50`` is the long version of what ``tests/test_sweep_kills.py`` does.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

from quadlab.sweep import Table, sweep

GRID = {
    "fixed": {"blocks": 4, "sizes": 3, "eps": 1e-3, "relative": True, "max_iterations": 3000},
    "product": {
        "condition_number": [10, 100, 300],
        "hessian_spread": [1, 10],
        "method": ["gd:lambda_g", "signsgd:lambda_p", "adam:0.01"],
        "seed": range(400),
    },
}
#: Short packs, so that a store is written to thirty times a second and kills strike while it is.
PACK_SECONDS = 0.03


def content(table: Table) -> list[dict[str, object]]:
    """All but the wall times."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in table.rows()]


@cache
def undisturbed() -> list[dict[str, object]]:
    """The table that every sweep of the grid must end in."""
    return content(sweep(GRID))


def stored(path: Path) -> dict[str, tuple[object, ...]]:
    """The rows of a store by key, read past this library; SQLite's own check of the file comes first."""
    connection = sqlite3.connect(path, timeout=30)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = connection.execute("SELECT * FROM runs").fetchall() if path.stat().st_size else []
    except sqlite3.OperationalError as error:
        assert "no such table" in str(error)  # killed before the first write
        rows = []
    finally:
        connection.close()
    found = {row[0]: row for row in rows}
    assert len(found) == len(rows)
    return found


def start(path: Path, workers: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, __file__, "--child", str(path), "--workers", str(workers)],
        start_new_session=True,
    )


def await_end_of_group(pid: int) -> None:
    """Wait until worker processes have noticed that their parent died."""
    for _ in range(200):
        try:
            os.killpg(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.killpg(pid, signal.SIGKILL)
    raise AssertionError("worker processes outlived a killed sweep by 10 seconds")


def survive(kills: int, folder: Path, workers: int, seed: int, most_a_store: int = 8) -> dict[str, int]:
    """Kill sweeps `kills` times in all and return what was counted; AssertionError if something was lost."""
    draw = random.Random(seed)
    expected = undisturbed()
    done = stores = in_mid_sweep = 0
    while done < kills:
        path, before = folder / f"store{seed}-{stores}.sqlite", {}
        stores += 1
        for _ in range(min(most_a_store, kills - done)):
            child = start(path, workers)
            begin = time.monotonic()
            # Half of the kills come at any moment, imports included, half soon after the sweep is under way.
            if draw.random() < 0.5:
                while child.poll() is None and time.monotonic() - begin < 60:
                    if path.exists() and len(stored(path)) > len(before):
                        break
                    time.sleep(0.01)
                time.sleep(draw.uniform(0, 0.4))
            else:
                time.sleep(draw.uniform(0, 2.5))
            if child.poll() is not None:
                assert child.returncode == 0
                break  # it had ended
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
            await_end_of_group(child.pid)
            done += 1
            after = stored(path) if path.exists() else {}
            in_mid_sweep += 0 < len(after) < len(expected)
            assert all(after.get(key) == row for key, row in before.items()), (
                "a stored run was lost or changed"
            )
            before = after
        assert start(path, workers).wait(timeout=300) == 0
        after = stored(path)
        assert all(after.get(key) == row for key, row in before.items())
        assert len(after) == len(expected)
        assert content(sweep(GRID, path)) == expected
    return {"kills": done, "stores": stores, "in_mid_sweep": in_mid_sweep, "runs_a_store": len(expected)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--child", type=Path)
    options = parser.parse_args()
    if options.child:
        sweep(GRID, options.child, options.workers or None, pack_seconds=PACK_SECONDS)
        return
    with tempfile.TemporaryDirectory() as folder:
        print("seed", options.seed, flush=True)
        counted = survive(options.kills, Path(folder), options.workers, options.seed)
    print(", ".join(f"{name} {value}" for name, value in counted.items()), "; lost or doubled: 0")


if __name__ == "__main__":
    main()
