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
# # A first comparison
#
# **What you learn:** how to set a block-diagonal quadratic, run three optimizers on it until the same stopping
# test holds, and see at a glance how many iterations each took and how many theory allows it at most.

# %%
import quadlab as ql

methods = [ql.GD("lambda_g"), ql.SignSGD("lambda_p"), ql.Adam(1e-2)]
stop = ql.GradientNorm(1e-3, ord=1, relative=True)  # ||g||_1 down to a thousandth of its start
het = ql.compare(ql.case("het", seed=0), methods, stop, record="log")
ql.plot(het);

# %% [markdown]
# Dots are where the stopping test held, dotted lines the smallest proven upper bound on that count.
# `lambda_g` and `lambda_p` are the step sizes behind the theory: $1/\Lambda_G(t)$ for gradient descent and
# $\|g\|_1/(P\Lambda_P)$ for SignSGD, with
#
# $$\Lambda_G = \sum_b \frac{\|g_b\|^2}{\|g\|^2}\,\|H_b\|, \qquad \Lambda_P = \sum_b \frac{P_b}{P}\,\|H_b\|.$$
#
# The problem has three blocks of three parameters, each rotated by its own random matrix:

# %%
het.problem

# %% [markdown]
# A run knows how it ended; a comparison holds every registered bound against it (open a line for all of them).

# %%
het.runs[1].run

# %%
het

# %% [markdown]
# ## The same eigenvalues, dealt differently
#
# In `hom` each block spans the whole range instead. The eigenvalues, and so the condition number 5000, are the
# same; gradient descent at a constant step cannot tell the two apart.

# %%
hom = ql.compare(ql.case("hom", seed=0), methods, stop, record="log")
ql.plot(hom);

# %%
for name, comparison in {"het": het, "hom": hom}.items():
    gd, signsgd, adam = (entry.run.iterations for entry in comparison.runs)
    lambda_p = ql.parameter_weighted(comparison.problem)
    print(f"{name}: Lambda_P = {lambda_p:,.0f}; iterations: GD {gd:,}, SignSGD {signsgd:,}, Adam {adam:,}")
assert not het.violated and not hom.violated

# %% [markdown]
# ## Set everything yourself
#
# Spectra, eigenbases, gradient norms and their directions are free, per block.

# %%
mine = ql.BlockQuadratic.from_spectra(
    [[1, 2, 3], [99, 100, 101]], basis="haar", gradient_norms=[10.0, 1.0], seed=0, name="mine"
)
ql.plot(ql.compare(mine, methods, stop, record="log"));
