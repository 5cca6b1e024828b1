r"""Adam at the edge of stability: the top eigenvalue of the preconditioned Hessian along runs.

cohen2022 observed on networks that lam_max(D_t^(-1/2) H D_t^(-1/2)) rises to (2 + 2 beta1) / (eta (1 -
beta1)) and stays near it. On random quadratics every value is exact (:func:`quadlab.stability.stability`);
the median over problems and the middle 90 per cent are shown against t, without a stop. An observation, no
theorem.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from quadlab.figures import style
from quadlab.figures._measure import each, number
from quadlab.methods import Adam
from quadlab.problem import BlockQuadratic
from quadlab.stability import stability
from quadlab.stopping import Gap

HEIGHT = 2.7

BETA1 = {0.0: style.SKY, 0.5: style.ORANGE, 0.9: style.GREEN}
BETA2 = (0.9, 0.99, 0.999)
LAST = 10_000
#: Quantiles of the band, and the time from which the title speaks.
BAND = (0.05, 0.95)
SETTLED = 3_000


def random_run(seed: int, beta1: float, beta2: float) -> tuple[BlockQuadratic, Adam]:
    """Return a problem of up to three rotated blocks, and Adam with a learning rate of 10^-3 to 10^-1."""
    rng = np.random.default_rng([seed, 77])
    spectra = [10.0 ** rng.uniform(-3.0, 0.0, n) for n in rng.integers(2, 9, rng.integers(1, 4))]
    problem = BlockQuadratic.from_spectra(spectra, basis="haar", seed=seed)
    return problem, Adam(10.0 ** rng.uniform(-3.0, -1.0), beta1=beta1, beta2=beta2)


def data(quick: bool = False, progress: bool = False) -> dict[str, Any]:
    """Return the quantiles over problems of sharpness over edge, at log-spaced updates."""
    problems = 10 if quick else 60
    times = sorted({round(t) - 1 for t in np.geomspace(1, LAST, 20 if quick else 50)})

    def measure(item: tuple[float, float]) -> dict[str, Any]:
        ratios = np.full((problems, len(times)), np.nan)
        for seed in range(problems):
            problem, method = random_run(seed, *item)
            found = stability(problem, method, Gap(1e-300), times, max_iterations=LAST)
            ratios[seed, : found.ratio.size] = found.ratio
        low, middle, high = np.nanquantile(ratios, [BAND[0], 0.5, BAND[1]], axis=0)
        settled = ratios[:, np.array(times) >= SETTLED]
        return {
            "beta1": item[0],
            "beta2": item[1],
            "low": [number(v, 4) for v in low],
            "median": [number(v, 4) for v in middle],
            "high": [number(v, 4) for v in high],
            "settled": number(float(np.nanmedian(settled)), 4),
            "ended": int(np.isnan(ratios[:, -1]).sum()),
        }

    work = [(b1, b2) for b2 in BETA2 for b1 in BETA1]
    return {
        "caption": (
            "The largest eigenvalue of Adam's preconditioned Hessian over (2 + 2 beta1) / (eta (1 - beta1)), "
            f"against the update; median and middle 90 per cent of {problems} random quadratics (up to three "
            "Haar-rotated blocks, eigenvalues and learning rates log-uniform over three and two decades)."
        ),
        "times": times,
        "problems": problems,
        "curves": each(measure, work, "edge_of_stability", progress),
    }


def title(data: dict[str, Any]) -> str:
    """Return the finding."""
    settled: dict[float, list[float]] = {}
    for curve in data["curves"]:
        settled.setdefault(curve["beta2"], []).append(curve["settled"])
    told = ", ".join(f"{min(v):.2f} to {max(v):.2f} for β₂ = {b2:g}" for b2, v in settled.items())
    return (
        f"Adam's preconditioned Hessian over the edge of stability, medians after {SETTLED:,} updates: {told}"
    )


def draw(figure: Any, data: dict[str, Any]) -> None:
    """Draw a panel a beta2, a curve a beta1."""
    axes = figure.subplots(1, len(BETA2), sharey=True)
    x = np.array(data["times"]) + 1.0
    for ax, beta2 in zip(axes, BETA2, strict=True):
        for curve in data["curves"]:
            if curve["beta2"] != beta2:
                continue
            colour = BETA1[curve["beta1"]]
            low, middle, high = (np.array(curve[key], dtype=float) for key in ("low", "median", "high"))
            ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0.0)
            ax.plot(x, middle, color=colour, label=f"$β_1$ = {curve['beta1']:g}")
        ax.axhline(1.0, color=style.BLACK, linewidth=0.7)
        ax.set(
            xscale="log", yscale="log", ylim=(1e-4, 1e2), xlabel="update t + 1", title=f"$β_2$ = {beta2:g}"
        )
        style.decades(ax.xaxis, 2)
        style.decades(ax.yaxis, 2)
        style.grid(ax)
    axes[0].set_ylabel("sharpness / edge")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
