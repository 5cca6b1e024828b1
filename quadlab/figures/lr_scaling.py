r"""The best constant learning rate of SignSGD against the theory's, over P, eps, Lambda and gradient noise.

The bound on the count is least at :math:`\eta^* = \epsilon/\Lambda`, :math:`\Lambda = M^*/P`, divided by
:math:`1 + 1.2533\,\bar\sigma/\epsilon` under Gaussian noise of mean level :math:`\bar\sigma`: the learning
rate "optimal". Its exponents are the prediction, the constant is not. They are fitted to the best rates
measured.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from quadlab.curvature import curvature
from quadlab.figures import style
from quadlab.figures._measure import each, number, numbers
from quadlab.methods import SignSGD
from quadlab.problem import BlockQuadratic
from quadlab.solve import solve, solve_many
from quadlab.stopping import GradientNorm

HEIGHT = 3.9

#: The eigenvalues of each block; x_0 ~ N(0, I).
EIGENVALUES = (1.0, 0.3, 0.1, 0.03)
#: Where the other panels stand: P, eps, the top eigenvalue, and noise over eps.
BASE = {"P": 64, "eps": 0.02, "top": 1.0, "noise": 0.0}
#: Panel -> (label of its axis, values, what else it changes).
PANELS: dict[str, tuple[str, tuple[float, ...], dict[str, float]]] = {
    "P": ("parameters P", (4, 16, 64, 256, 1024), {}),
    "eps": ("target ε", (0.003, 0.01, 0.03, 0.1), {}),
    "top": ("complexity Λ", (0.3, 1.0, 3.0, 10.0, 30.0), {}),
    "noise": ("noise σ̄ / ε", (0.3, 1.0, 3.0, 10.0, 30.0), {"P": 32, "eps": 0.05}),
}
#: Rates tried, in units of the prediction.
LOW, HIGH, PER_DECADE = 0.25, 16.0, 12
#: Exponents of the noise are fitted where it rules, from this many eps up.
NOISY = 3.0


def problem(point: dict[str, float], seed: int) -> BlockQuadratic:
    """Return the problem of a point."""
    values = [point["top"], *EIGENVALUES[1:]]
    blocks = int(point["P"]) // len(values)
    return BlockQuadratic.from_spectra([values] * blocks, seed=seed).with_noise(point["noise"] * point["eps"])


def data(quick: bool = False, progress: bool = False) -> dict[str, Any]:
    """Return the quartiles over starts of the best constant learning rate, and the prediction."""
    draws, seeds = (3, 3) if quick else (9, 6)
    work = [
        (panel, {**BASE, **change, panel: value})
        for panel, (_, values, change) in PANELS.items()
        for value in (values[:-1] if quick else values)
    ]

    def measure(item: tuple[str, dict[str, float]]) -> dict[str, Any]:
        panel, point = item
        problems = [problem(point, seed) for seed in range(draws)]
        stop = GradientNorm(point["eps"], ord=1)
        predicted = solve(problems[0], SignSGD("optimal"), stop, max_iterations=0).learning_rate
        assert predicted is not None
        best = [best_rate(p, stop, predicted, seeds if point["noise"] else 1) for p in problems]
        low, median, high = np.quantile(best, [0.25, 0.5, 0.75])
        x = curvature(problems[0]).m_star_upper / problems[0].size if panel == "top" else point[panel]
        return {
            "x": number(float(x)),
            "predicted": number(predicted),
            "low": number(float(low)),
            "median": number(float(median)),
            "high": number(float(high)),
        }

    found = each(measure, work, "lr_scaling", progress)
    panels = {
        panel: [point for (name, _), point in zip(work, found, strict=True) if name == panel]
        for panel in PANELS
    }
    return {
        "caption": (
            f"Best constant learning rate of SignSGD to ||g||_1 <= P eps; median and quartiles of {draws} "
            f"starts N(0, I); blocks diag{EIGENVALUES}, P = {BASE['P']} and eps = {BASE['eps']:g} where they "
            f"do not vary; Lambda varies by the top eigenvalue. Under Gaussian noise P = 32, eps = 0.05: the "
            f"best rate is that of the least mean count over {seeds} seeds. Predicted: eps / Lambda / (1 + "
            f"1.2533 sigma / eps). Exponents are fitted by least squares on logarithms, that "
            f"of the noise from {NOISY:g} eps up."
        ),
        "panels": panels,
        "fits": {
            panel: fit([p for p in points if panel != "noise" or p["x"] >= NOISY])
            for panel, points in panels.items()
        },
        "draws": draws,
        "constants": numbers(
            sorted(p["median"] / p["predicted"] for points in panels.values() for p in points)
        ),
    }


def best_rate(p: BlockQuadratic, stop: GradientNorm, predicted: float, seeds: int) -> float:
    """Return the constant rate of the least mean count over seeds, a grid around the prediction.

    The cap rises until the best is a tenth of it, so that no rate that was cut short can be better.
    """
    count = round(PER_DECADE * np.log10(HIGH / LOW)) + 1
    rates = predicted * np.geomspace(LOW, HIGH, count)
    cap = max(100, round(10.0 * np.abs(p.displacement).max() / rates[-1]))
    while True:
        runs = solve_many(
            p,
            [SignSGD(float(rate)) for rate in rates for _ in range(seeds)],
            stop,
            max_iterations=cap,
            noise_seed=list(range(seeds)) * count,
        )
        counts = np.array([run.iterations if run.converged else np.inf for run in runs])
        means = counts.reshape(count, seeds).mean(axis=1)
        if means.min() <= cap / 10:
            return float(rates[means.argmin()])
        cap *= 8


def fit(points: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the exponents of the measured and the predicted rate, against x and against each other."""
    x, median, predicted = (np.log([p[key] for p in points]) for key in ("x", "median", "predicted"))
    return {
        key: round(float(np.polyfit(x, y, 1)[0]), 3) + 0.0
        for key, y in (("measured", median), ("predicted", predicted))
    }


def title(data: dict[str, Any]) -> str:
    """Return the finding."""
    worst = max(abs(f["measured"] - f["predicted"]) for f in data["fits"].values())
    low, high = data["constants"][0], data["constants"][-1]
    return (
        f"SignSGD's best learning rate follows ε/Λ/(1 + 1.25 σ̄/ε): exponents within {worst:.2f} of the "
        f"predicted, at a constant of {low:.1f} to {high:.1f}"
    )


def draw(figure: Any, data: dict[str, Any]) -> None:
    """Draw a panel a variable."""
    axes = figure.subplots(2, 2)
    for ax, (panel, points) in zip(axes.flat, data["panels"].items(), strict=True):
        x, predicted, low, median, high = (
            np.array([p[key] for p in points], dtype=float)
            for key in ("x", "predicted", "low", "median", "high")
        )
        ax.errorbar(
            x,
            median,
            yerr=[median - low, high - median],
            fmt="o",
            color=style.VERMILLION,
            label="best measured",
            elinewidth=0.8,
            capsize=2.0,
        )
        ax.plot(x, predicted, color=style.BLACK, linestyle="--", label="predicted")
        fit = data["fits"][panel]
        ax.set(xscale="log", yscale="log", xlabel=PANELS[panel][0])
        ax.set_title(f"slope {fit['measured']:.2f}, theory {fit['predicted']:.2f}".replace("-", "−"))
        middle = np.sqrt(predicted.min() * max(high.max(), predicted.max()))
        spread = max(30.0, 3.0 * high.max() / predicted.min())
        ax.set_ylim(middle / np.sqrt(spread), middle * np.sqrt(spread))
        style.decades(ax.xaxis)
        style.decades(ax.yaxis)
        style.grid(ax)
    for ax in axes[:, 0]:
        ax.set_ylabel("learning rate η")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
