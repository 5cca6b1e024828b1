r"""Measured counts against every upper bound that applies, on random problems.

A problem has 10 to 1,000 parameters (log-uniform) in up to 10 blocks of at most 100; each block has a law of
its spectrum, a condition number and a top eigenvalue of its own, and an axis-aligned, rotated or Haar basis.
A run has a method and a step rule for which bounds exist, one of the four stopping tests, and a target. The
bounds are those of the register, so a new one appears here of itself. A bound on a run that was cut short at
its cap is either inconclusive, and drawn as such at the cap, or violated; nothing may lie above the diagonal.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from quadlab.bases import Rotation
from quadlab.bounds import evaluate, requirements
from quadlab.curvature import curvature, frozen_preconditioner
from quadlab.figures import style
from quadlab.figures._measure import PANELS, each, number, short_rate, upper_bounds
from quadlab.methods import GD, Adam, AdamMini, FrozenAdam, Method, SignSGD, SteepestDescent
from quadlab.problem import BlockQuadratic
from quadlab.run import Run
from quadlab.solve import solve
from quadlab.spectra import LogUniform, MarchenkoPastur, PowerLaw, Spectrum, TwoPoint
from quadlab.steps import l1_target
from quadlab.stopping import Gap, GradientNorm, Stop

HEIGHT = 9.0

PROBLEMS, QUICK_PROBLEMS = 2000, 150
SIZES = (10, 1000)
MAX_BLOCKS, MAX_BLOCK = 10, 100
#: Updates times entries touched by one: about 20 ms a run.
BUDGET = 2e7
CAPS = (300, 20_000)
CHUNK = 25
SLICES = 10


def random_problem(rng: np.random.Generator) -> BlockQuadratic:
    """Return a random problem."""
    size = round(10.0 ** rng.uniform(*np.log10(SIZES)))
    least = -(-size // MAX_BLOCK)
    count = int(rng.integers(least, max(least, min(MAX_BLOCKS, size // 2)) + 1))
    sizes = _partition(size, count, rng)
    axis = rng.random() < 0.3
    return BlockQuadratic.from_spectra(
        [_law(rng) for _ in sizes],
        sizes=sizes,
        top=[10.0 ** rng.uniform(-1.0, 1.0) for _ in sizes],
        basis=["axis" if axis else _basis(rng) for _ in sizes],
        gradient_norms=[10.0 ** rng.uniform(-1.0, 1.0) for _ in sizes] if rng.random() < 0.5 else None,
        seed=int(rng.integers(2**31)),
    )


def _partition(size: int, count: int, rng: np.random.Generator) -> list[int]:
    """Return random block sizes, none above MAX_BLOCK."""
    shares = rng.dirichlet(np.full(count, 2.0))
    sizes = np.clip(np.round(shares * size).astype(int), 1, MAX_BLOCK)
    while (excess := int(sizes.sum()) - size) != 0:
        movable = np.flatnonzero(sizes > 1) if excess > 0 else np.flatnonzero(sizes < MAX_BLOCK)
        sizes[rng.choice(movable)] -= np.sign(excess)
    return [int(s) for s in sizes]


def _law(rng: np.random.Generator) -> Spectrum:
    condition = 10.0 ** rng.uniform(0.1, 1.5)
    laws: list[Spectrum] = [
        LogUniform(1.0 / condition, 1.0),
        TwoPoint(1.0 / condition, 1.0, rng.uniform(0.1, 0.9)),
        PowerLaw(1.0, rng.uniform(0.2, 1.0)),
        MarchenkoPastur(rng.uniform(0.1, 0.6)),
    ]
    return laws[rng.integers(len(laws))]


def _basis(rng: np.random.Generator) -> str | Rotation:
    return "haar" if rng.random() < 0.7 else Rotation(rng.uniform(0.0, math.pi))


def random_stop(rng: np.random.Generator) -> Stop:
    """Return a random test, relative to its start."""
    eps = 10.0 ** rng.uniform(-1.5, -0.2)
    kind = rng.integers(4)
    return Gap(eps * eps, relative=True) if kind == 3 else GradientNorm(eps, (1, 2, math.inf)[kind], True)


def random_run(family: str, p: BlockQuadratic, rng: np.random.Generator) -> tuple[Method, Stop]:
    """Return a method of the family with a step rule that some bound knows, and a test."""
    stop = random_stop(rng)
    c = curvature(p)
    kind = rng.integers(4)
    if family == "gd":
        rates: tuple[Any, ...] = ("lambda_g", "line_search", "optimal", rng.uniform(0.2, 1.95) / c.largest)
        return GD(rates[kind]), stop
    if family == "signsgd":
        rates = (
            "lambda_p",
            "m_star",
            "line_search",
            rng.uniform(0.5, 1.5) * l1_target(p, stop) / c.m_star_upper,
        )
        return SignSGD(rates[kind]), stop
    if family == "steepest":
        return _relative(p, rng)
    gradient = np.abs(p.gradient(p.start))
    kind = rng.integers(5)
    if kind == 4:
        return _averaged(p, rng, Adam)
    if kind == 0 and gradient.all():
        safe = frozen_preconditioner(p).safe_learning_rate
        return FrozenAdam("optimal" if rng.random() < 0.5 else safe), stop
    if kind == 1:
        rule = "lemma" if rng.random() < 0.5 else "line_search"
        return Adam(rule, beta1=rng.choice([0.0, 0.5, 0.9]), beta2=rng.choice([0.9, 0.99, 0.999])), stop
    beta2 = rng.choice([0.5, 0.9, 0.99])
    if kind == 2:  # a large epsilon bounds the preconditioned Hessian from above
        epsilon = float(gradient.mean()) * 10.0 ** rng.uniform(-1.0, 1.0)
        rate = rng.uniform(0.2, 1.0) * epsilon / c.largest
        return Adam(rate, beta1=0.0, beta2=beta2, epsilon=epsilon), stop
    eps = 10.0 ** rng.uniform(-1.0, -0.2)  # the step of adam.a_posteriori falls as eps^2, the count as eps^-4
    rate = rng.uniform(0.3, 1.0) * eps**2 * float(gradient.sum()) / c.m_star_upper
    return Adam(rate, beta1=0.0, beta2=beta2), GradientNorm(eps, 1, True)


def _averaged(p: BlockQuadratic, rng: np.random.Generator, maker: Any) -> tuple[Method, Stop]:
    """Return Adam or Adam-mini with a step short enough for a bound with momentum, some before the run."""
    eps = 10.0 ** rng.uniform(-0.5, -0.05)
    beta1, beta2 = ((0.0, 0.0), (0.0, 0.5), (0.5, 0.9))[rng.integers(3)]
    method = maker(1.0, beta1=beta1, beta2=beta2)
    rate = short_rate(p, eps, method, rng.uniform(0.1, 1.0), 10.0 ** rng.uniform(0.0, 1.0))
    return replace(method, learning_rate=rate), GradientNorm(eps, 1, True)


def _relative(p: BlockQuadratic, rng: np.random.Generator) -> tuple[Method, Stop]:
    """Return steepest descent or Adam-mini."""
    c, stop = curvature(p), random_stop(rng)
    rule = "lemma" if rng.random() < 0.5 else "line_search"
    if rng.random() < 0.5:
        if rng.random() < 0.5:
            return AdamMini(rule, beta1=0.0, beta2=0.0, epsilon=0.0), stop
        return _averaged(p, rng, AdamMini)
    norm = ("l2", "linf", "block")[rng.integers(3)]
    if rng.random() < 0.5:
        return SteepestDescent(rule, norm), stop
    largest = {"l2": c.largest, "linf": c.m_star_upper, "block": float(c.block_norms.sum())}[norm]
    return SteepestDescent(rng.uniform(0.2, 1.95) / largest, norm), stop


def cap_of(p: BlockQuadratic) -> int:
    """Return the number of updates after which a run on this problem is cut short."""
    return int(np.clip(BUDGET / (p.packed().data.size + 20 * p.size), *CAPS))


def data(quick: bool = False, progress: bool = False) -> dict[str, Any]:
    """Return, for each method and bound, the pairs (bound, count), censored ones apart, and the verdicts."""
    problems = QUICK_PROBLEMS if quick else PROBLEMS
    upper = {family: upper_bounds(family) for family in PANELS}

    def measure(first: int) -> list[tuple[str, Run, Any]]:
        found = []
        for seed in range(first, min(first + CHUNK, problems)):
            rng = np.random.default_rng([seed, 1000])
            p = random_problem(rng)
            for family in PANELS:
                method, stop = random_run(family, p, rng)
                wanted = requirements(p, method, stop, upper[family])
                run = solve(p, method, stop, max_iterations=cap_of(p), **wanted)
                found.append((family, run, [e for e in evaluate(run, upper[family]) if e.applies]))
        return found

    panels: dict[str, dict[str, Any]] = {family: {} for family in PANELS}
    best: dict[str, list[float]] = {family: [] for family in PANELS}
    runs = {family: {"converged": 0, "censored": 0} for family in PANELS}
    for chunk in each(measure, range(0, problems, CHUNK), "measured_vs_bound", progress):
        for family, run, evaluations in chunk:
            runs[family]["converged" if run.converged else "censored"] += 1
            for e in evaluations:
                row = panels[family].setdefault(e.name, _empty())
                _add(row, run, e)
            ratios = [e.ratio for e in evaluations if e.ratio]
            if run.converged and ratios:
                best[family].append(max(ratios))
    return {
        "caption": (
            f"{problems} random problems of {SIZES[0]} to {SIZES[1]} parameters, a run of each method on "
            f"each: the count against every upper bound that applies, log bounds after rounding up. Arrows: "
            f"runs cut short, drawn at their cap, with the bounds known before the run; they have no count."
        ),
        "problems": problems,
        "runs": runs,
        "panels": {f: {n: panels[f].get(n, _empty()) for n in upper[f]} for f in PANELS},
        "best_ratio_median": {f: number(float(np.median(r)), 3) if r else None for f, r in best.items()},
    }


def _empty() -> dict[str, Any]:
    return {"bound": [], "count": [], "censored_bound": [], "cap": [], "violated": 0, "inconclusive": 0}


def _add(row: dict[str, Any], run: Run, e: Any) -> None:
    row["violated"] += e.holds is False
    row["inconclusive"] += e.holds is None
    value = number(e.value, 6)
    if value is None:
        return
    if run.converged:
        row["bound"].append(value)
        row["count"].append(run.iterations)
    elif not e.bound.needs:  # a bound along the trajectory says nothing about a run cut short
        row["censored_bound"].append(value)
        row["cap"].append(run.iterations)


def title(data: dict[str, Any]) -> str:
    """Return the finding."""
    rows = [(name, row) for panel in data["panels"].values() for name, row in panel.items()]
    checks = sum(len(row["count"]) for _, row in rows)
    violated = sum(row["violated"] for _, row in rows)
    met = {name for name, row in rows if row["count"]}
    if violated == 0:
        first = f"No count exceeds any of {len(met)} upper bounds ({checks:,} checks)"
    else:
        first = f"{violated:,} of {checks:,} checks VIOLATE an upper bound"
    loose = [
        f"×{style.significant(1.0 / ratio)} ({PANELS[family]})"
        for family, ratio in data["best_ratio_median"].items()
        if ratio
    ]
    return f"{first}; the tightest of a run is a median {', '.join(loose)} its count"


def draw(figure: Any, data: dict[str, Any]) -> None:
    """Draw a panel a method, one colour and marker a bound."""
    rows = [row for panel in data["panels"].values() for row in panel.values()]
    right = 2.0 * max(max(row["bound"] + row["censored_bound"], default=1.0) for row in rows)
    top = 2.0 * max(max(row["count"] + row["cap"], default=1) for row in rows)
    limits = np.array([0.7, right])
    dots: dict[str, Any] = {"linestyle": "none", "rasterized": True}
    for part, (family, panel) in zip(figure.subfigures(len(PANELS), 1), data["panels"].items(), strict=True):
        ax = part.subplots()
        ax.fill_between(limits, limits, right, color="#E8E8E8", linewidth=0.0)
        ax.plot(limits, limits, color=style.BLACK, linewidth=0.7)
        ax.annotate("count > bound:\nforbidden", (0.03, 0.93), xycoords="axes fraction", va="top")
        (cut,) = ax.plot(
            [b for row in panel.values() for b in row["censored_bound"]],
            [c for row in panel.values() for c in row["cap"]],
            **dots,
            marker="^",
            markersize=2.5,
            markerfacecolor="none",
            markeredgewidth=0.4,
            color=style.GREY,
        )
        looks = style.bound_looks(list(panel))
        for k in range(SLICES):  # in turn, so that no bound covers the others
            for same in coinciding(panel):
                row, look = panel[same[0]], looks[same[0]]
                ax.plot(
                    row["bound"][k::SLICES],
                    [max(c, 0.8) for c in row["count"][k::SLICES]],
                    **{**look, **dots},
                    markersize=1.5,
                    markeredgewidth=0.4 if look["marker"] == "x" else 0.0,
                    alpha=0.7,
                    label=style.bound_label(same) if k == 0 else None,
                )
        ax.set(xscale="log", yscale="log", xlim=limits, ylim=(0.7, top))
        ax.set(xlabel="upper bound", ylabel="measured count")
        style.decades(ax.xaxis)
        style.decades(ax.yaxis)
        ax.minorticks_off()
        runs = data["runs"][family]
        ax.set_title(PANELS[family], fontweight="bold", loc="left")
        ax.set_title(f"{runs['converged']:,} runs, {runs['censored']:,} cut short", loc="right", fontsize=6.5)
        style.bound_legend(part, ax, [(cut, "cut short at the cap: no count")], 0.8)


def coinciding(panel: dict[str, Any]) -> list[list[str]]:
    """Return the bounds that have counts, in groups whose values are the same on every run."""
    groups: dict[tuple[float, ...], list[str]] = {}
    for name, row in panel.items():
        if row["bound"]:
            groups.setdefault((*row["bound"], *row["count"]), []).append(name)
    return list(groups.values())
