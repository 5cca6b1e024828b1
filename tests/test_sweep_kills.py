"""A sweep that is killed, interrupted, shared by two processes or out of disk ends in the same table."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import pytest

from quadlab.sweep import engines, sweep
from quadlab.sweep import store as store_module
from sweep_kills import GRID, content, start, stored, survive, undisturbed

SMALL = {
    "case": ["het", "hom"],
    "method": ["gd:lambda_g", "signsgd:lambda_p"],
    "eps": 1e-2,
    "seed": range(60),
}


def test_five_kills_at_random_moments(tmp_path):
    seed = random.SystemRandom().randrange(10**6)
    print("seed", seed)
    assert survive(5, tmp_path, workers=0, seed=seed)["kills"] == 5


def test_a_killed_sweep_takes_its_worker_processes_along(tmp_path):
    assert survive(1, tmp_path, workers=2, seed=0)["kills"] == 1


def test_control_c_keeps_what_was_written(tmp_path):
    path = tmp_path / "s.sqlite"
    child = start(path, 0)
    while not (path.exists() and stored(path)):
        time.sleep(0.01)
        assert child.poll() is None
    child.send_signal(signal.SIGINT)
    assert child.wait(timeout=30) != 0
    before = stored(path)
    assert len(before) > 0
    table = sweep(GRID, path)
    assert content(table) == undisturbed()
    assert all(stored(path)[key] == row for key, row in before.items())


@pytest.mark.parametrize("under_way", [False, True], ids=["workers are starting", "runs are written"])
def test_control_c_at_the_command_line_is_one_line(tmp_path, under_way):
    spec = tmp_path / "spec.toml"
    spec.write_text(
        '[product]\ncase = "het"\nmethod = "adam:0.0001"\neps = 1e-12\nmax_iterations = 1000000\n'
        "seed = { range = 3000 }\n"
    )
    command = [sys.executable, "-m", "quadlab", "sweep", str(spec), "--workers", "2"]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    store = spec.with_suffix(".sqlite")
    while not (store.exists() and (stored(store) or not under_way)):
        time.sleep(0.01)
        assert child.poll() is None
    if not under_way:
        time.sleep(random.uniform(0, 0.5))
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does, to the workers too
    assert child.wait(timeout=30) == 130
    assert child.stderr.read() == "quadlab sweep: interrupted\n"


def test_two_processes_on_one_store(tmp_path):
    path = tmp_path / "s.sqlite"
    children = [start(path, 0), start(path, 0)]
    assert [child.wait(timeout=120) for child in children] == [0, 0]
    assert len(stored(path)) == len(undisturbed())
    assert content(sweep(GRID, path)) == undisturbed()


def test_many_open_a_new_store_at_once(tmp_path):
    path = tmp_path / "s.sqlite"
    errors = []

    def work():
        try:
            sweep(SMALL, path)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert content(sweep(SMALL, path)) == content(sweep(SMALL))


def test_full_disk(tmp_path, monkeypatch):
    """The file may not grow beyond some pages, which SQLite reports as it does a full disk."""
    path = tmp_path / "s.sqlite"
    connect = store_module._connect

    def limited(file, mode):
        connection = connect(file, mode)
        connection.execute("PRAGMA max_page_count = 20")
        return connection

    monkeypatch.setattr(store_module, "_connect", limited)
    with pytest.raises(OSError, match="full; what was written is kept"):
        sweep(SMALL, path, pack_seconds=0.005)
    monkeypatch.undo()
    before = stored(path)
    assert 0 < len(before) < 240
    assert content(sweep(SMALL, path)) == content(sweep(SMALL))
    assert all(stored(path)[key] == row for key, row in before.items())


@pytest.mark.skipif(os.getuid() != 0, reason="mounting needs root")
def test_full_disk_for_real(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "none", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        path = folder / "s.sqlite"
        with pytest.raises(OSError, match="full"):
            sweep(SMALL, path, pack_seconds=0.005)
        before = stored(path)
        subprocess.run(["mount", "-o", "remount,size=20m", folder], check=True)
        assert content(sweep(SMALL, path)) == content(sweep(SMALL))
        assert all(stored(path)[key] == row for key, row in before.items())
    finally:
        subprocess.run(["umount", folder], check=True)


def test_an_error_in_mid_sweep_keeps_what_was_written(tmp_path, monkeypatch):
    path = tmp_path / "s.sqlite"
    real, calls = engines.run_pack, []

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise MemoryError("no more")
        return real(*arguments)

    monkeypatch.setattr(engines, "MAX_LANES", 8)
    monkeypatch.setattr(engines, "run_pack", failing)
    with pytest.raises(ChildProcessError, match="MemoryError: no more"):
        sweep(SMALL, path, pack_seconds=0.005)
    monkeypatch.undo()
    assert 0 < len(stored(path)) < 240
    assert content(sweep(SMALL, path)) == content(sweep(SMALL))


def test_a_store_killed_before_its_first_write_is_a_new_one(tmp_path):
    path = tmp_path / "s.sqlite"
    path.touch()
    sweep(SMALL, path)
    assert len(stored(path)) == 240
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
