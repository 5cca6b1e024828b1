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
# # Your own method
#
# **What you learn:** how to write an optimizer of your own as a function of one coordinate, have it compiled
# into the engine's loop, compare it with the built-in ones at their best learning rates, and check it against a
# plain loop.
#
# Lion (Chen et al., 2023), in five lines:

# %%
import matplotlib.pyplot as plt
import numpy as np

import quadlab as ql


@ql.elementwise
def Lion(g, w, t, m, beta1=0.9, beta2=0.99):
    return np.sign(beta1 * m + (1 - beta1) * g), beta2 * m + (1 - beta2) * g


problem, stop = ql.case("het", seed=0), ql.GradientNorm(1e-2, relative=True)
for method in (ql.SignSGD(1.0), ql.Adam(1.0), Lion(1.0)):
    best = ql.best_learning_rate(problem, method, stop, max_iterations=20_000)
    counts = [run.iterations if run.converged else np.nan for run in best.runs]
    plt.loglog(best.learning_rates, counts, ".-", label=f"{method.name}: {best.iterations} at {best.learning_rate:.2g}")
plt.xlabel("learning rate"), plt.ylabel("iterations"), plt.legend();

# %% [markdown]
# Arguments after `t` without a default (`m`) are the state, which begins at zero; those with one are
# hyperparameters. The function returns the direction and the new state. Learning rates at which a run did not
# converge have no point: a capped run is never counted.
#
# ## Compared
#
# Everything else comes with it: step rules, schedules, traces, statistics, bounds that hold for any method.

# %%
methods = [ql.SignSGD("lambda_p"), Lion(2e-3), Lion(2e-3, beta1=0.5), Lion("lemma", beta1=0.0, beta2=0.0)]
comparison = ql.compare(problem, methods, stop, record="log")
ql.plot(comparison)
comparison

# %% [markdown]
# Without momentum Lion is SignSGD, and at the lemma's step it takes the same iterations.

# %%
assert comparison.runs[3].run.iterations == comparison.runs[0].run.iterations

# %% [markdown]
# ## Checked against a plain loop
#
# The count is exact: a twin in NumPy that knows nothing of the engine stops after the same number of updates.


# %%
def twin(problem, learning_rate, tolerance, beta1=0.9, beta2=0.99):
    w, m, t = problem.start.copy(), np.zeros(problem.size), 0
    while np.abs(g := problem.gradient(w)).sum() > tolerance:
        w -= learning_rate * np.sign(beta1 * m + (1 - beta1) * g)
        m = beta2 * m + (1 - beta2) * g
        t += 1
    return t


rates = [5e-4, 1e-3, 2e-3]
problems = ql.case("het", seed=range(10))
runs = ql.solve_many([p for p in problems for _ in rates], [Lion(rate) for _ in problems for rate in rates], stop)
assert all(run.converged for run in runs)
twins = [twin(run.problem, run.learning_rate, run.tolerance) for run in runs]
assert twins == [run.iterations for run in runs]
print(f"{len(runs)} runs: the same count as the twin in all, {min(twins)} to {max(twins)} updates")
