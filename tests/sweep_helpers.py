"""Problems and methods of a user's own, which workers import, and misbehave on request."""

from __future__ import annotations

import os
import signal
import time

import numpy as np

import quadlab as ql


@ql.elementwise
def Lion(g, w, t, m, beta1=0.9, beta2=0.99):
    return np.sign(beta1 * m + (1 - beta1) * g), beta2 * m + (1 - beta2) * g


def scaled(seed, scale):
    """A problem of a user's own."""
    return ql.BlockQuadratic.from_spectra([[1.0, 2.0], [scale]], seed=seed)


def sometimes_malformed(seed, index):
    """Refuses every third problem."""
    if index % 3 == 0:
        raise ValueError(f"index must be no multiple of 3, received {index}")
    return ql.case("het", seed=index)


def deadly(seed, index):
    """Kills its process at index 7."""
    if index == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return ql.case("het", seed=index)


def slow(seed, index):
    """Takes 10 ms to build, so that a kill strikes in mid-sweep."""
    time.sleep(0.01)
    return ql.case("het", seed=index)


def late(seed, index, path):
    """Fails until a file exists."""
    if index == 2 and not os.path.exists(path):
        raise RuntimeError("not yet")
    return ql.case("het", seed=index)
