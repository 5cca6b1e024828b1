"""A long random search for a violated bound: ``make soak``, or ``python tests/soak.py --checks 1000000``.

Problems are drawn in batches. A batch shares its block structure and a *program*: a method with its
learning-rate rule, the way its numbers are drawn, and the stopping test. Between them the programs exercise
every registered bound with its assumptions met; spectra, bases, starts and tolerances are random, singular
blocks, P = 1, condition 1 to 1e8, starts at the optimum and zero gradient entries among them. The runs of a
batch are solved together as lanes, and judged by the library's own register: nothing here knows a bound's
formula or its rounding.

A check is one (problem, method, bound) with the assumptions met and a verdict, true or false. Batch k depends
on the seed and k alone, and batches count in order, so a seed gives the same checks on any number of
processes. A violation is saved as a problem file and a JSON file beside it; ``--batch K`` repeats its batch.

The column "rounded" counts the verdicts in which the library's resolution rule (float64 does not know the
tested quantity that finely) spoke, and not the bound: a stopped run that is inconclusive, or a statistic that
is beyond its bound by more than 1e-12 and held to agree.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import count, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

import quadlab as ql
from quadlab.bases import Householder, Rotation
from quadlab.bounds import Evaluation, bounds, evaluate, requirements
from quadlab.bounds.setting import convert, start_quantities
from quadlab.curvature import curvature, frozen_preconditioner
from quadlab.methods import (
    GD,
    Adam,
    AdamMini,
    AdamW,
    FrozenAdam,
    NormalizedGD,
    RMSProp,
    SignSGD,
    SteepestDescent,
    elementwise,
)
from quadlab.problem import BlockQuadratic
from quadlab.run import Run
from quadlab.solve import solve_many
from quadlab.stopping import Gap, GradientNorm, Stop

RUNS = 40  # a batch
CAP = 20_000
TESTS = ("l1", "l2", "linf", "gap")

# -- problems ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Structure:
    """What the problems of a batch share: block sizes, bases, and the range of their spectra."""

    sizes: tuple[int, ...]
    bases: tuple[Any, ...]
    condition: float  # decimal exponent of the largest condition number of a block
    spread: float  # of the blocks' scales, in decades


def draw_structure(rng: np.random.Generator, diagonal: bool = False, scalar: bool = False) -> Structure:
    kind = rng.choice(["scalar", "tiny", "small", "medium", "large"], p=[0.06, 0.3, 0.34, 0.25, 0.05])
    kind = "scalar" if scalar else kind
    most = {"scalar": 1, "tiny": 3, "small": 8, "medium": 12, "large": 40}[kind]
    blocks = 1 if kind == "scalar" else int(rng.integers(1, 6 if kind != "large" else 3))
    sizes = tuple(int(n) for n in rng.integers(1, most + 1, blocks))
    bases = []
    for _ in sizes:
        options = [
            "axis",
            "haar",
            Rotation(float(rng.uniform(0, math.pi))),
            Householder(int(rng.integers(1, 4))),
        ]
        bases.append("axis" if diagonal else options[rng.choice(4, p=[0.3, 0.45, 0.15, 0.1])])
    if rng.random() < 0.25:
        bases = ["axis"] * blocks
    # A matrix of condition 1e7 and more does not hold its smallest eigenvalue to 1e-9; a diagonal does.
    widest = 8.0 if all(basis == "axis" for basis in bases) else 6.0
    condition = float(rng.choice([0.0, 0.5, 1.0, 2.0, 3.0, 4.0, widest]))
    return Structure(sizes, tuple(bases), condition, float(rng.choice([0.0, 0.5, 2.0])))


def draw_spectrum(rng: np.random.Generator, size: int, condition: float) -> np.ndarray:
    low = 10.0 ** -rng.uniform(0.0, condition) if condition else 1.0
    law = rng.integers(6)
    if law == 0:
        values = np.geomspace(low, 1.0, size)
    elif law == 1:
        values = rng.choice([low, 1.0], size)
    elif law == 2:
        values = np.full(size, low)
    elif law == 3:
        values = np.maximum(low, np.arange(1, size + 1.0) ** -rng.uniform(0.5, 3.0))
    else:
        values = low ** rng.random(size)
        values[rng.integers(size)] = 1.0
    if rng.random() < 0.2:  # whole numbers, where ties and exact steps are
        values = np.maximum(1.0, np.round(8.0 * values)) if condition <= 1.0 else values
    return values


def draw_problem(rng: np.random.Generator, shared: Structure, nonzero: bool = False) -> BlockQuadratic:
    """A problem of the structure; ``nonzero`` asks that no entry of the starting gradient be zero."""
    scale = 10.0 ** rng.uniform(-3, 3) if rng.random() < 0.7 else 1.0
    spectra = []
    for size in shared.sizes:
        values = draw_spectrum(rng, size, shared.condition)
        if rng.random() < 0.12 and not (nonzero and size == 1):
            values[rng.random(size) < 0.5] = 0.0
        spectra.append(scale * 10.0 ** (shared.spread * rng.uniform(-1, 1)) * values)
    if not any(values.any() for values in spectra):
        spectra[0][0] = scale
    size = sum(shared.sizes)
    options: dict[str, Any] = {"basis": list(shared.bases), "seed": int(rng.integers(2**32))}
    if rng.random() < 0.3:
        options["minimizer"] = rng.standard_normal(size)
    if not nonzero and rng.random() < 0.5:
        laws = ["isotropic", "top", "bottom", "sign"]
        norms = [10.0 ** rng.uniform(-2, 2) * bool(values.any()) for values in spectra]
        options |= {"gradient_norms": norms, "direction": [laws[rng.integers(4)] for _ in spectra]}
        return BlockQuadratic.from_spectra(spectra, **options)
    problem = BlockQuadratic.from_spectra(spectra, **options)
    x = problem.displacement * 10.0 ** rng.uniform(-3, 3)
    kind = rng.random()
    if nonzero:
        pass
    elif kind < 0.02:
        x = np.zeros(size)
    elif kind < 0.15:  # zero coordinates, which are zero gradient entries on diagonal blocks
        x = np.where(rng.random(size) < 0.4, 0.0, x)
    elif kind < 0.2:  # whole numbers
        x = np.round(8.0 * problem.displacement)
    problem = problem.with_start(problem.minimizer + x)
    if nonzero and not problem.gradient(problem.start).all():
        return draw_problem(rng, shared, nonzero)
    return problem


def draw_two_eigenvectors(rng: np.random.Generator, shared: Structure) -> BlockQuadratic:
    """Equal gradients along one eigenvector each of the smallest and the largest eigenvalue, and no other."""
    while True:
        problem = draw_problem(rng, shared)
        values = problem.eigenvalues
        positive = np.flatnonzero(values > 1e-12 * values.max())
        low, high = positive[values[positive].argmin()], int(values.argmax())
        if values[low] < 0.999 * values[high]:
            break
        shared = Structure((2, 3), shared.bases[:1] * 2, 2.0, 1.0)
    gradient = np.zeros(problem.size)
    gradient[[low, high]] = 10.0 ** rng.uniform(-2, 2) * rng.choice([-1.0, 1.0], 2)
    x = np.divide(gradient, values, out=np.zeros_like(values), where=gradient != 0.0)
    return problem.with_start(problem.minimizer + problem.from_eigenbasis(x))


# -- stopping tests ------------------------------------------------------------------------------------------


def make_stop(test: str, size: int, tolerance: float, start: float, relative: bool) -> Stop:
    """The stopping test of a kind whose tolerance is (nearly) the given one."""
    if test == "gap":
        return Gap(tolerance / start, relative=True) if relative else Gap(tolerance)
    order = {"l1": 1, "l2": 2, "linf": math.inf}[test]
    if relative:
        return GradientNorm(tolerance / start, ord=order, relative=True)
    return GradientNorm(tolerance / {"l1": size, "l2": math.sqrt(size), "linf": 1.0}[test], ord=order)


def draw_stop(
    rng: np.random.Generator, problem: BlockQuadratic, test: str, decades: float
) -> tuple[Stop, float]:
    """A stopping test and its tolerance, a random fraction of the start's value."""
    quantity = {"l1": "grad_l1", "l2": "grad_l2", "linf": "grad_linf", "gap": "gap"}[test]
    start = start_quantities(problem)[quantity]
    fraction = 10.0 ** rng.uniform(-decades * (2 if test == "gap" else 1), 0.02)
    tolerance = fraction * start if start > 0.0 else 1e-3
    relative = start > 0.0 and rng.random() < 0.3
    return make_stop(test, problem.size, tolerance, start, relative), tolerance


# -- programs: a method, and how its numbers are drawn -------------------------------------------------------


@dataclass(frozen=True)
class Program:
    """A way to draw the runs of a batch.

    ``method(rng, problem, tolerances)`` gets the tolerance of each of the four tests that certifies the stop.
    """

    method: Callable[[np.random.Generator, BlockQuadratic, dict[str, float]], Any]
    decades: float = 5.0
    tests: tuple[str, ...] = TESTS
    nonzero: bool = False
    diagonal: bool = False
    scalar: bool = False
    problem: Callable[[np.random.Generator, Structure], BlockQuadratic] | None = None


@elementwise
def Lion(g, w, t, m, beta1=0.9, beta2=0.99):
    return np.sign(beta1 * m + (1 - beta1) * g), beta2 * m + (1 - beta2) * g


def largest(problem: BlockQuadratic) -> float:
    return curvature(problem).largest


def gd_short(rng, problem, tolerances):
    share = rng.choice([1.0, rng.uniform(0.0, 1.0), 10.0 ** rng.uniform(-2, 0)])
    return GD(max(share, 1e-3) / largest(problem))


def gd_long(rng, problem, tolerances):
    c = curvature(problem)
    best = 2.0 / (c.smallest_positive + c.largest)
    return GD(rng.choice([best, rng.uniform(1.0, 2.0) / c.largest, 2.0 / c.largest, 1.999 / c.largest]))


def gd_any(rng, problem, tolerances):
    c = curvature(problem)
    best = 2.0 / (c.smallest_positive + c.largest)
    return GD(
        rng.choice([best, best * (1.0 + rng.uniform(-1e-3, 1e-3)), 10.0 ** rng.uniform(-3, 1) / c.largest])
    )


def gd_weighted(rng, problem, tolerances):
    """A constant step of about 1/Lambda_G at the start, which may be above 1/L."""
    weight = ql.gradient_weighted(problem) if problem.gradient(problem.start).any() else largest(problem)
    return GD(rng.uniform(0.3, 1.05) / weight)


def sign_constant(rng, problem, tolerances):
    theta = rng.choice([1.0, rng.uniform(0.05, 1.99), rng.uniform(1.9, 2.1)])
    return SignSGD(theta * tolerances["l1"] / curvature(problem).m_star_upper)


def length(problem: BlockQuadratic) -> float:
    """The largest distance that a coordinate has to go."""
    return float(np.abs(problem.displacement).max()) or 1.0


def sign_settling(rng, problem, tolerances):
    """Steps that reach the neighbourhood within a few thousand updates, and stay there."""
    return SignSGD(length(problem) / rng.choice([0.3, 1.0, 2.0, 4.0, 37.5, rng.uniform(1, 200)]))


def adam_free(rng, problem, tolerances):
    """Denominators of at least epsilon, so that a short step satisfies every assumption on D."""
    epsilon = start_quantities(problem)["grad_linf"] * 10.0 ** rng.uniform(-4, 1) or 1.0
    beta2 = float(rng.choice([0.0, 0.5, 0.9, 0.99, 0.999]))
    share = rng.choice([rng.uniform(0.1, 1.0), rng.uniform(1.0, 2.0), 10.0 ** rng.uniform(0.0, 2.0)])
    rate = share * epsilon / largest(problem)
    return Adam(rate, beta1=0.0, beta2=beta2, epsilon=epsilon, bias_correction=bool(rng.integers(2)))


def adam_bracket(rng, problem, tolerances):
    """Steps for which (P eps)^2 - eta G U / 2 is about to stay positive."""
    start = start_quantities(problem)["grad_l1"] or 1.0
    epsilon = start / problem.size * 10.0 ** rng.uniform(-6, 0)
    beta2 = float(rng.choice([0.0, 0.3, 0.9, 0.99]))
    g = 1.2 * start + problem.size * epsilon
    share = rng.uniform(0.05, 1.6)
    rate = share * 2.0 * tolerances["l1"] ** 2 / (g * curvature(problem).m_star_upper)
    return Adam(rate, beta1=0.0, beta2=beta2, epsilon=epsilon, bias_correction=bool(rng.integers(2)))


def averages(rng, problem):
    """beta1, beta2 and epsilon with beta1^2 < beta2, or just outside."""
    beta1 = float(rng.choice([0.0, 0.0, 0.5, 0.9, 0.99]))
    beta2 = (
        float(rng.choice([beta1**2, 0.5, 0.9, 0.99, 0.999])) if beta1 else float(rng.choice([0.0, 0.5, 0.9]))
    )
    gradient = start_quantities(problem)["grad_l1"] / problem.size or 1.0
    return beta1, beta2, float(rng.choice([0.0, 1e-8, gradient * 10.0 ** rng.uniform(-3, 1)]))


def adam_momentum(rng, problem, tolerances):
    """Steps for which (P eps)^2 - eta G M* C is about to stay positive."""
    beta1, beta2, epsilon = averages(rng, problem)
    g = 1.2 * start_quantities(problem)["grad_l1"] + problem.size * epsilon or 1.0
    spent = g * curvature(problem).m_star_upper * (0.5 + beta1 / (1.0 - beta1) / math.sqrt(1.0 - beta2))
    rate = rng.uniform(0.05, 1.6) * tolerances["l1"] ** 2 / spent
    return Adam(rate, beta1=beta1, beta2=beta2, epsilon=epsilon)


def short_adam(maker):
    """Steps for which there is a bound before the run."""

    def method(rng, problem, tolerances):
        beta1, beta2, epsilon = averages(rng, problem)
        c = curvature(problem)
        m = c.m_star_upper if maker is Adam else c.size * c.parameter_weighted
        gradient = start_quantities(problem)["grad_l1"] + problem.size * epsilon or 1.0
        spent = 1.0 + 2.0 * beta1 / (1.0 - beta1) / (1.0 - beta2)
        rate = rng.uniform(0.1, 0.8) * tolerances["l1"] / m * min(1.0, tolerances["l1"] / gradient) / spent
        return maker(rate, beta1=beta1, beta2=beta2, epsilon=epsilon)

    return method


def steepest(rule):
    return lambda rng, problem, tolerances: SteepestDescent(rule, str(rng.choice(["l2", "linf", "block"])))


def steepest_constant(rng, problem, tolerances):
    norm, c = str(rng.choice(["l2", "linf", "block"])), curvature(problem)
    largest = {"l2": c.largest, "linf": c.m_star_upper, "block": c.block_norms.sum()}[norm]
    return SteepestDescent(float(rng.choice([1.0, rng.uniform(0.05, 2.05)]) / largest), norm)


def adam_sign(rng, problem, tolerances):
    rate = sign_constant(rng, problem, tolerances).learning_rate
    return Adam(rate, beta1=0.0, beta2=0.0, epsilon=0.0)


def frozen(rng, problem, tolerances):
    a = frozen_preconditioner(problem)
    rates = [a.best_learning_rate, rng.uniform(0.05, 1.0) * a.safe_learning_rate, a.safe_learning_rate,
             rng.uniform(0.5, 2.05) / a.largest]  # fmt: skip
    return FrozenAdam(float(rng.choice(rates)))


def fixed(method: Any) -> Callable[..., Any]:
    return lambda rng, problem, tolerances: method


BARE = {"beta1": 0.0, "beta2": 0.0, "epsilon": 0.0}
PROGRAMS: dict[str, Program] = {
    "gd lemma": Program(fixed(GD("lambda_g"))),
    "gd line search": Program(fixed(GD("line_search"))),
    "gd short": Program(gd_short),
    "gd short, exact": Program(gd_short, tests=("l2", "gap")),
    "gd long": Program(gd_long, tests=("l2", "gap")),
    "gd any": Program(gd_any),
    "gd 1/Lambda_G": Program(gd_weighted, decades=1.5),
    "gd two eigenvectors": Program(gd_any, problem=draw_two_eigenvectors, decades=3.0),
    "gd momentum lemma": Program(fixed(GD("lemma", momentum=0.9)), decades=3.0),
    "nesterov lemma": Program(fixed(GD("lemma", momentum=0.7, nesterov=True)), decades=3.0),
    "normalized line search": Program(fixed(NormalizedGD("line_search")), decades=3.0),
    "sign lemma": Program(fixed(SignSGD("lambda_p")), decades=3.0),
    "sign M*": Program(fixed(SignSGD("m_star")), decades=3.0),
    "sign line search": Program(fixed(SignSGD("line_search")), decades=3.0),
    "signum lemma": Program(fixed(SignSGD("lemma", momentum=0.5)), decades=2.0),
    "sign constant": Program(sign_constant, decades=2.0),
    "sign settling": Program(sign_settling, decades=9.0),
    "sign settling, diagonal": Program(sign_settling, decades=9.0, diagonal=True),
    "sign settling, P = 1": Program(sign_settling, decades=9.0, scalar=True),
    "adam lemma": Program(fixed(Adam("lemma", beta1=0.9, beta2=0.99)), decades=3.0),
    "adamw line search": Program(fixed(AdamW("line_search", beta1=0.0, weight_decay=1e-3)), decades=2.0),
    "rmsprop lemma": Program(fixed(RMSProp("lemma")), decades=3.0),
    "lion lemma": Program(fixed(Lion("lemma")), decades=2.0),
    "adam free": Program(adam_free, decades=2.5),
    "adam bracket": Program(adam_bracket, decades=0.8, tests=("l1", "l2", "linf")),
    "adam is sign": Program(adam_sign, decades=2.0),
    "adam is sign, lemma": Program(fixed(Adam("lemma", **BARE)), decades=3.0),
    "adam is sign, line search": Program(fixed(Adam("line_search", **BARE)), decades=3.0),
    "frozen": Program(frozen, nonzero=True, tests=("gap", "gap", "l1", "l2", "linf")),
    "frozen, gap": Program(frozen, nonzero=True, tests=("gap",)),
    "adam momentum": Program(adam_momentum, decades=0.5, tests=("l1", "l2", "linf")),
    "adam momentum, P = 1": Program(adam_momentum, decades=0.1, tests=("l1", "l2", "linf"), scalar=True),
    "adam a priori": Program(short_adam(Adam), decades=0.4, tests=("l1", "l2", "linf")),
    "adam a priori, P = 1": Program(short_adam(Adam), decades=0.1, tests=("l1", "linf"), scalar=True),
    "adam mini a priori, P = 1": Program(short_adam(AdamMini), decades=0.1, tests=("l1",), scalar=True),
    "adam mini a priori": Program(short_adam(AdamMini), decades=0.4, tests=("l1", "l2", "linf")),
    "adam mini lemma": Program(fixed(AdamMini("lemma", **BARE)), decades=2.0),
    "adam mini line search": Program(fixed(AdamMini("line_search", **BARE)), decades=2.0),
    "steepest lemma": Program(steepest("lemma"), decades=1.0),
    "steepest line search": Program(steepest("line_search"), decades=2.5),
    "steepest constant": Program(steepest_constant, decades=1.0),
    "frozen lemma": Program(fixed(FrozenAdam("lemma")), nonzero=True, decades=3.0),
}


def draw_batch(rng: np.random.Generator, program: Program, runs: int) -> Iterator[tuple[Any, Any, Stop]]:
    """Yield (problem, method, stop)."""
    shared = draw_structure(rng, program.diagonal, program.scalar)
    test = str(rng.choice(program.tests))
    make = program.problem or (lambda rng, shared: draw_problem(rng, shared, program.nonzero))
    decades = program.decades if shared.condition < 4.0 else min(program.decades, 1.5)
    for _ in range(runs):
        problem = make(rng, shared)
        stop, tolerance = draw_stop(rng, problem, test, decades)
        constants = curvature(problem)
        tolerances = {t: convert(test, tolerance, t, problem.size, constants) for t in ("l1", "l2")}
        yield problem, program.method(rng, problem, tolerances), stop


# -- the tally -----------------------------------------------------------------------------------------------


@dataclass
class Line:
    """What became of one bound."""

    verdicts: Counter = field(default_factory=Counter)  # True, False, None where it applied
    ratios: list[float] = field(default_factory=list)  # measured / bound
    long: list[float] = field(default_factory=list)  # those of runs of ten updates or more
    rounded: int = 0  # verdicts that the resolution of float64 decided, not the bound

    def add(self, run: Run, evaluation: Evaluation) -> None:
        kind, holds = evaluation.bound.kind, evaluation.holds
        self.verdicts[holds] += 1
        if evaluation.bound.quantity == "iterations":
            rounded = holds is None and run.converged
        else:
            rounded = holds is True and beyond(kind, evaluation.value, evaluation.measured)
        self.rounded += rounded
        if evaluation.ratio is not None and holds is not None and not rounded:
            self.ratios.append(evaluation.ratio)
            if run.iterations >= 10:
                self.long.append(evaluation.ratio)

    @property
    def checked(self) -> int:
        return self.verdicts[True] + self.verdicts[False]

    @property
    def applies(self) -> int:
        return self.verdicts.total()


def beyond(kind: str, value: float | None, measured: float | None) -> bool:
    """Whether a statistic is on the wrong side of its bound by more than the relative 1e-12 of the rule."""
    if value is None or measured is None:
        return False
    excess = (measured - value) * (-1 if kind == "lower" else 1)
    return (abs(excess) if kind == "exact" else excess) > 1e-12 * abs(value)


@dataclass
class Tally:
    """What became of all bounds, and the violations found."""

    lines: dict[str, Line] = field(default_factory=lambda: defaultdict(Line))
    violations: list[str] = field(default_factory=list)
    runs: int = 0

    @property
    def checks(self) -> int:
        return sum(line.checked for line in self.lines.values())

    @property
    def violated(self) -> int:
        return sum(line.verdicts[False] for line in self.lines.values())

    def add(self, other: Tally) -> None:
        for name, line in other.lines.items():
            mine = self.lines[name]
            mine.verdicts.update(line.verdicts)
            mine.ratios += line.ratios
            mine.long += line.long
            mine.rounded += line.rounded
        self.violations += other.violations
        self.runs += other.runs

    def __str__(self) -> str:
        head = ("bound", "kind", "checked", "applies", "held", "inconclusive", "rounded", "violated")
        rows: list[tuple[str, ...]] = [(*head, "median", "best")]
        for entry in bounds().of_runs:
            line = self.lines.get(entry.name, Line())
            v, ratios = line.verdicts, line.ratios
            best = (min if entry.kind == "lower" else max)(ratios, default=math.nan)
            median = float(np.median(ratios)) if ratios else math.nan
            numbers = (line.checked, line.applies, v[True], v[None], line.rounded, v[False])
            rows.append(
                (entry.name, entry.kind, *(f"{n:,}" for n in numbers), f"{median:.4g}", f"{best:.6g}")
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = "\n".join(
            "  ".join(
                c.ljust(w) if k < 2 else c.rjust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        )
        return f"{table}\n{self.checks:,} checks of {self.runs:,} runs, {self.violated:,} violated"


def run_batch(
    seed: int, index: int, out: str | None = None, chosen: Iterable[str] | None = None, runs: int = RUNS,
    only: tuple[str, ...] | None = None,
) -> Tally:  # fmt: skip
    """Draw, solve and judge batch number ``index``."""
    rng = np.random.default_rng([seed, index])
    names = only or tuple(PROGRAMS)
    program = PROGRAMS[names[index % len(names)]]
    drawn = list(draw_batch(rng, program, runs))
    needs = [requirements(problem, method, stop, chosen) for problem, method, stop in drawn]
    problems, methods, stops = (list(column) for column in zip(*drawn, strict=True))
    starts = {name: [need[name] for need in needs] for name in ("tail_gap_start", "tail_displacement_start")}
    # A statement about the tail of a run is not tested by one that is cut short before it.
    latest = [max(gap, displacement) for gap, displacement in zip(*starts.values(), strict=True)]
    caps = [int(min(max(100.0, 2.0 * late), CAP)) if late > 0.0 else CAP for late in latest]
    solved = solve_many(
        problems,
        methods,
        stops,
        max_iterations=caps,
        statistics=sorted({name for need in needs for name in need["statistics"]}),
        progress=False,
        **starts,
    )
    tally = Tally(runs=len(solved))
    for k, run in enumerate(solved):
        for evaluation in evaluate(run, chosen):
            if not evaluation.applies:
                continue
            tally.lines[evaluation.name].add(run, evaluation)
            if evaluation.holds is False:
                where = {"seed": seed, "batch": index, "run": k, "program": names[index % len(names)]}
                tally.violations.append(report(run, evaluation, where, out))
    return tally


def report(run: Run, evaluation: Evaluation, where: dict[str, Any], out: str | None) -> str:
    """Describe a violation in a line, and save what reproduces it."""
    told = {
        "bound": evaluation.name,
        "value": evaluation.value,
        "measured": evaluation.measured,
        "status": run.status.value,
        "iterations": run.iterations,
        "method": repr(run.method),
        "stop": repr(run.stop),
        "max_iterations": run.max_iterations,
        "tail_gap_start": run.tail_gap_start,
        "tail_displacement_start": run.tail_displacement_start,
        "statistics": run.statistics,
        **where,
    }
    if out is not None:
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{evaluation.name}-{where['seed']}-{where['batch']}-{where['run']}"
        run.problem.save(folder / f"{name}.npz")
        (folder / f"{name}.json").write_text(json.dumps(told, indent=1) + "\n")
    return f"{told['bound']}: value {told['value']!r}, measured {told['measured']!r}, {run!r}, {where}"


def soak(
    checks: int,
    seed: int = 0,
    *,
    jobs: int = 1,
    out: str | None = None,
    chosen: Iterable[str] | None = None,
    only: tuple[str, ...] | None = None,
    most_batches: int | None = None,
    progress: bool = False,
) -> Tally:
    """Draw batches in order until they make up the given number of checks.

    ``chosen`` bounds are judged (all by default), ``only`` programs are drawn from (all by default). With
    more than one job, workers see the built-in bounds only.
    """
    from tqdm import tqdm

    tally = Tally()
    todo = count() if most_batches is None else iter(range(most_batches))
    arguments = ((seed, index, out, chosen, RUNS, only) for index in todo)
    with tqdm(total=checks, unit="check", disable=not progress, smoothing=0.05) as bar:
        for part in _results(arguments, jobs):
            tally.add(part)
            bar.update(min(tally.checks, checks) - bar.n)
            bar.set_postfix(violated=tally.violated, refresh=False)
            if tally.checks >= checks:
                break
    return tally


def _results(arguments: Iterator[tuple[Any, ...]], jobs: int) -> Iterator[Tally]:
    """Yield the batches' tallies in order; a few batches a worker are under way at any time."""
    if jobs == 1:
        yield from (run_batch(*each) for each in arguments)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        under_way = [pool.submit(run_batch, *each) for each in islice(arguments, 4 * jobs)]
        try:
            while under_way:
                yield under_way.pop(0).result()
                under_way += [pool.submit(run_batch, *each) for each in islice(arguments, 1)]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def main(argv: list[str] | None = None) -> int:
    """Run the soak; exit status 1 if a bound is violated, or is exercised too seldom to say that it holds."""
    parser = argparse.ArgumentParser(prog="soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--checks", type=int, default=1_000_000, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the whole search (default: %(default)s)")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)"
    )
    parser.add_argument("--out", default="build/soak", help="where violations go (default: %(default)s)")
    parser.add_argument("--batch", type=int, help="repeat one batch of the seed and stop")
    options = parser.parse_args(argv)
    if options.batch is not None:
        tally = run_batch(options.seed, options.batch, options.out)
    else:
        tally = soak(options.checks, options.seed, jobs=options.jobs, out=options.out, progress=True)
    print(tally)
    for line in tally.violations[:20]:
        print(line)
    least = options.checks // 1000
    seldom = (
        [b.name for b in bounds().of_runs if tally.lines[b.name].checked < least] if options.batch is None else []
    )
    if seldom:
        print(f"checked fewer than {least:,} times: {', '.join(seldom)}")
    return 1 if tally.violated or seldom else 0


if __name__ == "__main__":
    sys.exit(main())
