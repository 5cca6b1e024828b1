# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own bound
#
# **What you learn:** how to register an iteration bound that you have derived, let the falsifier look for the
# problem on which it fails, and pin one that holds as a regression test.
#
# Gradient descent at the step $1/\Lambda_G(t)$ contracts $f - f^*$ by $1 - \mu_+/\Lambda_G(t)$. As $\Lambda_G$ is
# an average of the block norms, a conjecture suggests itself: with the plain average $\bar h$ of $\|H_b\|$,
#
# $$T \le \frac{\bar h}{\mu_+} \ln\frac{2 L \Delta}{P \epsilon^2}\,?$$

# %%
from math import log

import quadlab as ql

assumes = [
    (lambda s: s.method.momentum == 0, "momentum must be 0"),
    (lambda s: s.delta > 0, "the start must not be a minimiser"),
]


@ql.bound("mine.average", family="gd", rules="lemma", target="l2", form="log", assumes=assumes)
def average(s):
    """The average block norm in place of Lambda_G."""
    h = s.problem.block_norms.mean()
    return h / s.curvature.smallest_positive * log(2 * s.curvature.largest * s.delta / s.tolerance**2)


stop = ql.GradientNorm(1e-3, ord=2, relative=True)
problem = ql.BlockQuadratic.from_spectra([[0.01, 1.0]] + [[0.02]] * 40, seed=0)
ql.plot(ql.compare(problem, ql.GD("lambda_g"), stop, record="log", bounds=["mine.average"]), quantity="grad_l2");

# %% [markdown]
# The run goes on beyond the dotted line: one steep block among many flat ones, and the conjecture is false.
#
# ## Derive
#
# Where is the mistake? $\Lambda_G$ averages $\|H_b\|$ with the weights $\|g_b\|^2/\|g\|^2$, which may all lie on the
# steepest block. So the average has to become the maximum, $L$. The lemma of descent and
# $\|g\|^2 \ge 2\mu_+ (f - f^*)$ give
#
# $$f_{t+1} - f^* \le f_t - f^* - \frac{\|g_t\|^2}{2\Lambda_G(t)} \le \Big(1 - \frac{\mu_+}{L}\Big)(f_t - f^*),$$
#
# and as long as the run has not stopped, $P\epsilon^2 < \|g_t\|^2 \le 2L (f_t - f^*)$. Hence the bound with $L$ for
# $\bar h$.
#
# ## Register
#
# The decorator says what the number means: which methods and step rules it is for, which stopping test, under
# which assumptions. A run to which it does not apply gets the reason and no number. The form `"log"` says how
# such a bound is rounded to a whole number.


# %%
@ql.bound("mine.largest", family="gd", rules="lemma", target="l2", form="log", assumes=assumes)
def largest(s):
    """L in place of Lambda_G."""
    condition_number = s.curvature.largest / s.curvature.smallest_positive
    return condition_number * log(2 * s.curvature.largest * s.delta / s.tolerance**2)


methods = [ql.GD("lambda_g"), ql.GD("lemma", momentum=0.9), ql.GD("line_search")]
comparison = ql.compare(problem, methods, stop, record="log", bounds=["mine.average", "mine.largest"])
print(comparison)

# %% [markdown]
# ## Falsify
#
# The falsifier searches the problems, methods and stopping tests inside the assumptions for a violation. (A
# search that finds none is no proof: its problems have at most four blocks, so the conjecture above would have
# passed.) Runs of fewer than four updates are left aside, since where a bound is rounded up to a whole number, a
# run of a single update meets it.

# %%
result = ql.falsify("mine.largest", seed=0, tries=10_000, least_iterations=4)
assert not result.violated
print(result)

# %% [markdown]
# How much room is left? Would a quarter of the bound do? A violation is shrunk to something to check by hand.


# %%
@ql.bound("mine.quarter", family="gd", rules="lemma", target="l2", form="log", assumes=assumes)
def quarter(s):
    """A quarter of mine.largest."""
    return largest(s) / 4


result = ql.falsify("mine.quarter", seed=0, tries=20_000)
assert result.violated
print(result)

# %% [markdown]
# ## Pin
#
# A test file for your own repository: hypothesis draws problems and shrinks a violation, and the fixture
# `bound_regression` (a pytest plugin that comes with quadlab) fails when a count or a bound moves.

# %%
from pathlib import Path

Path("test_mine.py").write_text('''
from math import log

import quadlab as ql
from quadlab.testing import assert_bound_holds

assumes = [
    (lambda s: s.method.momentum == 0, "momentum must be 0"),
    (lambda s: s.delta > 0, "the start must not be a minimiser"),
]


@ql.bound("mine.largest", family="gd", rules="lemma", target="l2", form="log", assumes=assumes)
def largest(s):
    condition_number = s.curvature.largest / s.curvature.smallest_positive
    return condition_number * log(2 * s.curvature.largest * s.delta / s.tolerance**2)


def test_it_holds():
    assert_bound_holds("mine.largest")


def test_it_does_not_move(bound_regression):
    stop = ql.GradientNorm(1e-3, ord=2, relative=True)
    bound_regression(ql.compare(ql.case("het", seed=0), ql.GD("lambda_g"), stop, bounds=["mine.largest"]))
''');

# %%
import subprocess
import sys

pytest = [sys.executable, "-m", "pytest", "-q", "--color=no", "test_mine.py"]
subprocess.run([*pytest, "--quadlab-update"], check=True, capture_output=True)  # once: records what is there now
print(subprocess.run(pytest, check=True, capture_output=True, text=True).stdout)

# %% [markdown]
# The record is a small JSON file that belongs into version control, beside the test.

# %%
print(Path("test_mine.quadlab.json").read_text())
