r"""Does what the blocks predict at the start rank the real gap between SGD and Adam.

A point a pair of model and data: its prediction against T_SGD / T_Adam in real training, full batch, to one
loss, each optimizer at its best constant learning rate. Three predictions: T_GD / T_Adam on the replayed
quadratic, Lambda_G / Lambda_P, and JS^0.
"""

from __future__ import annotations

from typing import Any

from quadlab.bridge import study
from quadlab.figures import style
from quadlab.figures._models import MODELS, label

HEIGHT = 2.9

LABELS = {
    "replayed": "replayed $T_\\mathrm{GD}/T_\\mathrm{Adam}$",
    "lambda_ratio": "$Λ_G/Λ_P$",
    "mean_jensen_shannon": "$JS^0$",
}


def data(quick: bool = False, progress: bool = False) -> dict[str, Any]:
    """Return the pairs, and the rank correlations over them."""
    record = study.recorded()
    rows = study.pairs(record)
    transformers = [row for row in rows if row["model"] in study.TRANSFORMERS]
    minibatch = study.pairs(record, "minibatch")
    seeds = sorted({row["seeds"] for row in rows})
    return {
        "caption": (
            "T_SGD / T_Adam to one loss (text 2.0, digits 0.1 nats), full batch, best constant learning "
            "rates on a grid 10^(1/2) apart, against what the blocks at the start predict; a point a pair of "
            f"model and data, medians over {' or '.join(map(str, seeds))} seeds, of the replayed ratio also "
            "over five draws of the quadratic; size: depth. Spearman's rho with its 95 per cent bootstrap "
            f"interval over pairs; open symbols: SGD not within {record['cap']} updates, a lower value. A "
            "prediction ranks the gaps if a permutation test says so at 5 per cent, shared by the three."
        ),
        "cap": record["cap"],
        "pairs": rows,
        "correlations": {
            key: {
                "all": _correlation(rows, key),
                "transformers": _correlation(transformers, key),
                "minibatch": _correlation(minibatch, key),
            }
            for key in study.PREDICTIONS
        },
    }


def _correlation(rows: list[dict[str, Any]], key: str) -> dict[str, Any] | None:
    if len(rows) < 5:
        return None
    return study.rank_correlation([row[key] for row in rows], [row["gap"] for row in rows])


def title(data: dict[str, Any]) -> str:
    """Return the finding: which predictions rank the gaps, at 5 per cent shared out over the three."""
    found = {key: entry["all"] for key, entry in data["correlations"].items()}
    names = {"replayed": "the replayed ratio", "lambda_ratio": "$Λ_G/Λ_P$", "mean_jensen_shannon": "$JS^0$"}
    level = 0.05 / len(found)
    sure = {key: c["rho"] for key, c in found.items() if c["p"] is not None and c["p"] < level}
    ranks = [names[key] for key, rho in sure.items() if rho > 0.0]
    wrong = [names[key] for key, rho in sure.items() if rho < 0.0]
    parts = []
    if ranks:
        parts.append(f"{_list(ranks)} {'ranks' if len(ranks) == 1 else 'rank'} the real SGD-to-Adam gaps")
    if wrong:
        parts.append(f"{_list(wrong)} {'ranks' if len(wrong) == 1 else 'rank'} them the wrong way round")
    if not parts:
        parts.append("no prediction from the start ranks the real SGD-to-Adam gaps beyond chance")
    numbers = ", ".join(f"{c['rho']:.2f}".replace("-", "−") for c in found.values() if c["rho"] is not None)
    return f"Over {len(data['pairs'])} pairs {'; '.join(parts)} (ρ = {numbers})"


def _list(items: list[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def draw(figure: Any, data: dict[str, Any]) -> None:
    """Draw a panel a prediction."""
    axes = figure.subplots(1, 3, sharey=True)
    for ax, (key, name) in zip(axes, LABELS.items(), strict=True):
        seen = set()
        for row in data["pairs"]:
            _, colour, marker, _ = MODELS[row["model"]]
            ax.plot(
                row[key],
                row["gap"],
                marker,
                color=colour,
                markerfacecolor="white" if row["censored"] else colour,
                markersize=2.4 + 0.5 * row["depth"],
                label=None if row["model"] in seen else label(row["model"]),
            )
            seen.add(row["model"])
        found = data["correlations"][key]["all"]
        if found and found["rho"] is not None:
            text = f"ρ = {found['rho']:.2f}\n[{found['low']:.2f}, {found['high']:.2f}]"
            ax.set_title(text.replace("-", "−"))
        ax.set(yscale="log", xlabel=name)
        if key == "replayed":
            ax.set_xscale("log")
            style.decades(ax.xaxis)
        style.grid(ax)
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes[0].yaxis.set_major_locator(LogLocator(base=10.0, subs=(1.0, 2.0, 5.0)))
    axes[0].yaxis.set_minor_locator(NullLocator())
    axes[0].yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes[0].set_ylabel("real $T_\\mathrm{SGD}/T_\\mathrm{Adam}$")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
