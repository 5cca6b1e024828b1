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
# # A heterogeneity sweep
#
# **What you learn:** how to run thousands of optimizations over named axes in one call, draw the result from
# xarray, and stop and resume a sweep without losing or repeating a run.
#
# The question: at one condition number, when does it pay to take the sign? The axis `hessian_spread` moves
# curvature from within the blocks (1: all blocks alike) to between them (100: each block has one eigenvalue of
# its own); `correlation` says whether the steep blocks have the large gradients.

# %%
import quadlab as ql

grid = {
    "fixed": {
        "condition_number": 100, "blocks": 8, "sizes": 4, "gradient_spread": 100, "eps": 1e-3, "relative": True,
    },
    "product": {
        "correlation": [1, 0, -1],
        "hessian_spread": {"log": [1, 100, 7]},
        "method": ["gd:lambda_g", "signsgd:lambda_p"],
        "seed": range(15),
    },
}
counts = ql.sweep(grid, progress=False).to_xarray().iterations.median("seed")
ratio = counts.sel({"method": "gd"}) / counts.sel({"method": "signsgd"})
ratio.rename("iterations of GD / SignSGD").plot.line(x="hessian_spread", marker="o", xscale="log", yscale="log");

# %% [markdown]
# Above 1 SignSGD needs fewer iterations than gradient descent, below 1 more (medians over 15 draws). (The braces
# are xarray's: in its `sel`, a bare `method=` has another meaning.)
#
# ## Stopped, and resumed
#
# With a store, every run is written as it ends. Here more seeds are asked for, and somebody presses *stop*
# a second after the sweep began.

# %%
import _thread
import threading

from quadlab.sweep import estimate

grid["product"]["seed"] = range(60)
timer = threading.Timer(1.0, _thread.interrupt_main)
timer.start()
try:
    ql.sweep(grid, store="spread.sqlite", pack_seconds=0.1, progress=False)
except KeyboardInterrupt:
    print("stopped")
finally:
    timer.cancel()
before = estimate(grid, store="spread.sqlite")
print(f"{before.runs} runs: {before.stored} stored, {before.to_do} to do, in about {before.seconds:.1f} s")

# %% [markdown]
# The same call goes on from there. It could as well be another process, after a power cut, with
# `executor=4` for four processes or `executor="tcp://..."` for a Dask cluster: the table is the same to the bit.

# %%
table = ql.sweep(grid, store="spread.sqlite", progress=True)
table

# %% [markdown]
# A seed is a hash of the named axes, so the first 15 draws are those of the sweep above, run for run, and all
# methods meet the same problems: ratios may be taken draw by draw.

# %%
data = table.to_xarray()
assert (data.iterations.isel(seed=slice(15)).median("seed") == counts).all()
data.iterations

# %%
paired = data.iterations.sel({"method": "gd"}) / data.iterations.sel({"method": "signsgd"})
quartiles = paired.quantile([0.25, 0.5, 0.75], dim="seed").sel(correlation=1)
quartiles.rename("iterations of GD / SignSGD").plot.line(x="hessian_spread", marker="o", xscale="log", yscale="log");
