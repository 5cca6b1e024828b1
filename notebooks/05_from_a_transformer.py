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
# # From a Transformer
#
# **What you learn:** how to measure the gradient and Hessian scales of a real model's blocks, replay them as a
# quadratic, and hold what the quadratic predicts for SGD, SignSGD and Adam against real training.
#
# A small causal Transformer on text, one block a parameter tensor, at its start. (For a model of your own:
# `measure(model, loss, batches)` with `loss(model, batch)`.)

# %%
import matplotlib.pyplot as plt

from quadlab.bridge import measure, predict, train, workload

plt.rcParams["figure.dpi"] = 72
w = workload("gpt-post", depth=2, width=8, examples=8)
statistics = measure(w.model, w.loss, w.batches(), probes=1, steps=12, progress=False, meta={"name": "gpt-post"})
statistics.plot();

# %% [markdown]
# Left: a point a block, its gradient norm against the norm of its Hessian. Right: the spectrum of each block by
# Lanczos quadrature. A quadratic with these scales has the complexities that the theory speaks of: gradient
# descent pays $\Lambda_G$, SignSGD $\Lambda_P$.

# %%
print(f"Lambda_G = {statistics.gradient_weighted:.3g}, Lambda_P = {statistics.parameter_weighted:.3g}")
statistics

# %% [markdown]
# ## Predict
#
# The blocks replayed as a quadratic, each method at its best constant learning rate, until a hundredth of the
# loss gap is left.

# %%
prediction = predict(statistics, max_block_size=16, max_iterations=10_000)
prediction.comparison

# %% [markdown]
# ## Train
#
# The model itself, each optimizer at its best learning rate on a grid, on the full batch, to 65 per cent of its loss.

# %%
start = w.loss(w.model, w.data).item()
trained = train(w.model, w.loss, w.batches(), ["sgd", "signsgd", "adam"], target=0.65 * start, max_iterations=60)
for name, training in trained.items():
    best = training.best
    plt.plot(best.losses, label=f"{name}: {best.status} at {best.iterations}, learning rate {best.learning_rate:.2g}")
plt.axhline(0.65 * start, color="grey", linestyle=":")
plt.xlabel("update"), plt.ylabel("loss"), plt.legend();

# %% [markdown]
# Whether the quadratic gets the order of the optimizers right is an empirical question. Here:

# %%
for method, optimizer in {"gd": "sgd", "signsgd": "signsgd", "adam": "adam"}.items():
    print(f"{optimizer}: predicted {prediction.counts[method]}, in training {trained[optimizer].iterations}")
