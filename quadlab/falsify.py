r"""The falsifier: a search for the problem on which a bound is violated, or on which it is tightest.

What is maximised is the *excess* of a run over a bound, oriented so that more than 1 is a violation:

=============  ====================================  ==========================================
kind           excess                                a run that was cut short after t updates
=============  ====================================  ==========================================
upper          measured / bound                      t / bound where that is already a violation
lower          bound / measured                      inconclusive
exact          the larger of the two                 inconclusive
=============  ====================================  ==========================================

What is inconclusive, or outside the assumptions, scores nothing: the verdict itself is
:mod:`quadlab.bounds.verdict`'s alone.

**The space.** The discrete choices (block sizes, rotated or not, singular or not, the kind of start, the
method, its step rule, the stopping test) make an *island*; all else on it (eigenvalues, angles, components
of the start, learning rate, hyperparameters, eps) is one point u of the unit cube. The map from the cube has
atoms where theorems like to break: equal eigenvalues, zero eigenvalues, angles 0 and pi/4, zero and equal
components, a start along one eigenvector, or along two with gradients equal to the bit, and learning rates
exactly at 1/L, at 2/L, at theta = 1. All problems of an island share their block structure, so that a batch
of them runs as lanes.

**The search.** In rounds: some new islands are sampled, and the best of them is refined by differential
evolution (``scipy.optimize``); every third round refines the best point so far instead. Counts are whole
numbers, and nearly every upper bound is met by a run that stops at T = 1, just inside its tolerance: so an
island may ask for T >= 4 or T >= 32, to look also where the asymptotics are.

**Shrinking.** A violation is looked for on ever larger blocks, from a single parameter on. The first is made
simpler as long as it stays a violation: fewer blocks, fewer parameters, no off-diagonal entries, zeros in the
start, rounder numbers.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from quadlab._arrays import FloatArray, shown
from quadlab.bounds.evaluation import evaluate, requirements
from quadlab.bounds.registry import ITERATIONS, Bound, Evaluation, finite, select
from quadlab.bounds.setting import TARGETS, start_quantities
from quadlab.compare import compare, stop_dict
from quadlab.curvature import curvature, starting_gradient
from quadlab.heterogeneity import gradient_weighted
from quadlab.methods import (
    GD,
    Adam,
    AdamMini,
    FrozenAdam,
    Method,
    NormalizedGD,
    RMSProp,
    SignSGD,
    SteepestDescent,
    UserMethod,
)
from quadlab.problem import Block, BlockQuadratic, DenseBlock, DiagonalBlock
from quadlab.run import Run
from quadlab.solve import solve_many
from quadlab.stopping import Gap, GradientNorm, Stop

#: Updates after which a run of the search is cut short.
MAX_ITERATIONS = 10_000
#: Seconds that a violation is shrunk at most.
SHRINK_SECONDS = 10.0
#: A best ratio above this is not worth refining.
SATURATED = 1.0 - 1e-6

_ISLANDS, _SAMPLES, _POPULATION, _GENERATIONS = 12, 32, 48, 15
_SIZES = (
    (1,), (2,), (3,), (4,), (6,), (8,), (1, 1), (2, 1), (2, 2), (3, 1), (4, 4), (1, 1, 1), (2, 2, 2),
    (1, 1, 1, 1),
)  # fmt: skip
_DECADES, _SPREAD, _ACCURACY = 8.0, 6.0, 8.0  # of the eigenvalues, of the start's components, of eps
_STARTS = ("point", "gradient", "eigen", "two", "one")

Maker = Callable[[Any, FloatArray, float], Method]


class Instance(NamedTuple):
    """A problem, a method and a stopping test: what one run takes."""

    problem: BlockQuadratic
    method: Method
    stop: Stop

    def evaluation(self, bound: str | Bound, max_iterations: int = MAX_ITERATIONS) -> Evaluation:
        """Return what the bound says about the run."""
        table = compare(self.problem, self.method, self.stop, max_iterations=max_iterations, bounds=[bound])
        return table.runs[0].evaluations[0]

    def __str__(self) -> str:
        lines = [f"{self.method}, stop: {self.stop}"]
        for block, x in zip(self.problem.blocks, self.problem.split(self.problem.displacement), strict=True):
            entries = block.diagonal() if isinstance(block, DiagonalBlock) else block.to_dense()
            small = block.size <= 12
            lines.append(f"  block {entries.tolist()}, start {x.tolist()}" if small else f"  {block}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Falsification:
    """The result of a search, made by :func:`falsify`.

    Attributes
    ----------
    bound : str
        The bound's name.
    budget : float
        Seconds that were given.
    tried : int
        Runs that were made.
    best_ratio : float
        The largest measured / bound, oriented so that more than 1 is a violation; inf for a bound of 0.
    violated : bool
        Whether the bound is false.
    worst : Instance
        The problem, method and stopping test that attain `best_ratio`.
    smallest : Instance or None
        Where violated: the smallest violation that shrinking it led to.
    problem_file : Path or None
        Where the problem of `found` is saved.
    """

    bound: str
    budget: float
    tried: int
    best_ratio: float
    violated: bool
    worst: Instance
    smallest: Instance | None = None
    problem_file: Path | None = None

    @property
    def found(self) -> Instance:
        """What to look at: the smallest violation, or the tightest run."""
        return self.worst if self.smallest is None else self.smallest

    def to_dict(self) -> dict[str, Any]:
        """Return the result for JSON; an infinite ratio becomes None."""
        return {
            "bound": self.bound,
            "budget_s": self.budget,
            "tried": self.tried,
            "best_ratio": finite(self.best_ratio),
            "violated": self.violated,
            "problem_file": None if self.problem_file is None else str(self.problem_file),
            "method": method_text(self.found.method),
            "stop": stop_dict(self.found.stop),
        }

    def __str__(self) -> str:
        verdict = "VIOLATED" if self.violated else "no violation"
        head = f"{self.bound}: {verdict}, {self.tried:,} runs tried; largest measured / bound"
        lines = [f"{head} {self.best_ratio:.6g}", str(self.found)]
        if self.problem_file is not None and not isinstance(self.found.method, UserMethod):
            test = stop_dict(self.found.stop)
            options = f"--stop {test['test']} --eps {test.get('eps', test.get('delta'))!r}"
            command = (
                f"quadlab compare {self.problem_file} --methods {method_text(self.found.method)} {options}"
            )
            lines.append(command)
        return "\n".join(lines)


def falsify(
    bound: str | Bound,
    *,
    budget: float = 30.0,
    seed: int = 0,
    tries: int | None = None,
    methods: Sequence[Callable[[Any], Method]] | None = None,
    max_iterations: int = MAX_ITERATIONS,
    least_iterations: int = 0,
    file: str | Path | None = None,
) -> Falsification:
    r"""Search for the problem on which a bound is violated, or tightest.

    The search ends at the first violation, which is then shrunk.

    Parameters
    ----------
    bound : str or Bound
        A registered bound.
    budget : float > 0
        Seconds to search, once the kernels are compiled; shrinking a violation takes up to ten more.
    seed : int >= 0
        Of the search.
    tries : int > 0, optional
        End after about so many runs: the same result for the same seed, if the budget is not what ends it.
    methods : sequence of callables, optional
        Functions ``learning_rate -> method`` to search among, such as a user's method; by default the
        methods of the bound's family, with varying hyperparameters.
    max_iterations : int >= 1
        The cap of a run.
    least_iterations : int >= 0
        Shorter runs may violate the bound, but do not count as tight: where N is rounded up to a whole
        number, a run of a single update is.
    file : path, optional
        Where the problem found is saved; ``quadlab compare`` reads it.

    Returns
    -------
    Falsification
        Print it, or take ``.to_dict()``.

    Raises
    ------
    ValueError
        If the budget is not positive, the folder of the file does not exist, no method is known for the
        bound, or nothing was found to which the bound applies.

    Examples
    --------
    >>> from quadlab.bounds import bound, temporary_bounds
    >>> with temporary_bounds():
    ...     @bound("mine.hopeful", family="gd", rules="lemma", target="l2")
    ...     def hopeful(s):  # the trace over P in place of L
    ...         return 2 * s.curvature.trace / s.size * s.delta / s.tolerance**2
    ...     result = falsify("mine.hopeful", seed=0, tries=3000)
    >>> result.violated, result.smallest.problem.size
    (True, 2)
    """
    from quadlab.kernels import entry as kernels

    if not (isinstance(budget, (int, float)) and 0.0 < budget < math.inf):
        raise ValueError(f"budget must be a positive number of seconds, received {shown(budget)}")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"seed must be an integer >= 0, received {shown(seed)}")
    if file is not None and not Path(file).parent.is_dir():
        raise ValueError(f"file must lie in a folder that exists, received {file}")
    (entry,) = select(bound)
    if entry.expectation:
        raise ValueError(
            f"no single run violates {entry.name}, a bound on an expectation: see ql.expectation"
        )
    found = choices(entry.families, entry.rules, methods)
    kernels.compile_all()  # before the clock starts
    search = _Search(
        entry, found, np.random.default_rng(seed), budget, tries, max_iterations, least_iterations
    )
    search.run()
    if search.worst is None:
        raise ValueError(f"no problem was found to which {entry.name} applies, in {search.tried:,} tries")
    tried = search.tried
    smallest = search.smallest() if search.violated else None
    result = Falsification(
        bound=entry.name,
        budget=float(budget),
        tried=tried,
        best_ratio=search.best,
        violated=search.violated,
        worst=search.worst,
        smallest=smallest,
        problem_file=None if file is None else Path(file),
    )
    if result.problem_file is not None:
        result.found.problem.save(result.problem_file)
    return result


def excess(evaluation: Evaluation, run: Run) -> float | None:
    """Return measured / bound, oriented so that more than 1 is a violation; None where nothing is known.

    Parameters
    ----------
    evaluation : Evaluation
        What a bound says about the run.
    run : Run
        The run.

    Examples
    --------
    >>> from quadlab.compare import compare
    >>> p = BlockQuadratic.from_blocks([[1.0, 4.0]], start=[4.0, 1.0])
    >>> entry = compare(p, GD(0.25), GradientNorm(1.0, ord=2), bounds=["gd.constant_step"]).runs[0]
    >>> entry.run.iterations, round(excess(entry.evaluations[0], entry.run), 9)  # the bound is 40
    (4, 0.1)
    """
    value, measured, holds = evaluation.value, evaluation.measured, evaluation.holds
    if value is None or holds is None:
        return None
    if measured is None:  # a count that exceeds its bound, or one that a cap leaves open
        if holds:
            return None
        measured = math.inf if not run.converged and evaluation.bound.kind != "upper" else run.iterations
    if measured == value == 0.0:  # a run that made no step attains whatever there is
        return None
    up, down = _quotient(measured, value), _quotient(value, measured)
    kind = evaluation.bound.kind
    ratio = up if kind == "upper" else down if kind == "lower" else max(up, down)
    # the rounding rules decide what is above 1
    return min(ratio, 1.0) if holds else max(ratio, math.nextafter(1.0, 2.0))


def simplified(
    instance: Instance, keep: Callable[[Instance], bool], seconds: float = SHRINK_SECONDS
) -> Instance:
    """Return the simplest instance that greedy steps lead to while ``keep`` accepts every one of them.

    Parameters
    ----------
    instance : Instance
        Where to start; its blocks must be small enough to be written out.
    keep : callable
        Instance -> whether it still has what matters, for instance a violation; ValueError means no.
    seconds : float
        When to stop.

    Examples
    --------
    >>> p = BlockQuadratic.from_blocks([[1.234, 4.0], [7.0]], start=[4.0, 0.1, 2.0])
    >>> start = Instance(p, GD(0.1234), GradientNorm(1.0))
    >>> simple = simplified(start, lambda i: i.problem.gradient(i.problem.start).max() > 3)
    >>> simple.problem.hessian_diagonal().tolist(), simple.problem.start.tolist(), str(simple.method)
    ([7.0], [2.0], 'GD(0.1)')
    """
    end = time.monotonic() + seconds
    changed = True
    while changed:
        changed = False
        for step in (_smaller, _sparser, _rounder):
            again = True
            while again:
                again = False
                for simpler in step(instance):
                    if time.monotonic() > end:
                        return instance
                    try:
                        kept = keep(simpler)
                    except (
                        ValueError
                    ):  # a method may not go with it, such as frozen Adam with a zero in g(w_0)
                        continue
                    if kept:
                        instance, again, changed = simpler, True, True
                        break
    return instance


def method_text(method: Method) -> str:
    """Return a method as the command line writes it, NAME:LEARNING_RATE[:OPTION=VALUE...].

    Parameters
    ----------
    method : Method
        With a number or a rule for its learning rate.

    Examples
    --------
    >>> method_text(Adam(0.25, beta1=0.0, bias_correction=False))
    'adam:0.25:beta1=0.0:bias_correction=false'
    """
    if isinstance(method, UserMethod):
        return str(method)
    options = [
        f":{item.name}={str(getattr(method, item.name)).lower()}"
        for item in fields(method)
        if item.name != "learning_rate" and getattr(method, item.name) != item.default
    ]
    return f"{method.name}:{method.learning_rate}{''.join(options)}"


def _quotient(above: float, below: float) -> float:
    if above == below:
        return 1.0
    return above / below if below != 0.0 else math.inf


# The search -------------------------------------------------------------------------------------------------


class _Search:
    """The best instance so far, and what bounds the search."""

    def __init__(
        self,
        entry: Bound,
        choices: list[tuple[Maker, str]],
        rng: np.random.Generator,
        budget: float,
        tries: int | None,
        max_iterations: int,
        least_iterations: int,
    ) -> None:
        self.entry, self.choices, self.rng = entry, choices, rng
        self.cap, self.least = max_iterations, least_iterations
        self.end, self.tries = time.monotonic() + budget, math.inf if tries is None else tries
        self.tried, self.best, self.violated = 0, -math.inf, False
        self.worst: Instance | None = None
        self.home: tuple[_Island, FloatArray] | None = None

    @property
    def over(self) -> bool:
        return self.violated or self.tried >= self.tries or time.monotonic() >= self.end

    def run(self) -> None:
        """Search until it is over."""
        for turn in itertools.count():
            if self.over:
                return
            sampled = []
            for _ in range(_ISLANDS):
                island = _Island.draw(self.entry, self.choices, self.rng)
                points = self.rng.random((_SAMPLES, island.dimension))
                sampled.append((self.scores(island, points), points, island))
                if self.over:
                    return
            scores, points, island = max(sampled, key=lambda item: float(item[0].max()))
            around = points[int(scores.argmax())]
            if turn % 3 == 2 and self.home is not None and self.best < SATURATED:
                island, around = self.home
            self.refine(island, around)

    def refine(self, island: _Island, around: FloatArray) -> None:
        """Refine by differential evolution, from a population that is half around a point, half anywhere."""
        from scipy.optimize import differential_evolution

        shape = (_POPULATION, island.dimension)
        width = 10.0 ** self.rng.uniform(-3.0, 0.0, size=(_POPULATION, 1))
        kept = self.rng.random(shape) < 0.5
        near = np.where(kept, around, np.clip(around + width * self.rng.standard_normal(shape), 0.0, 1.0))
        population = np.where(np.arange(_POPULATION)[:, None] % 2 == 0, near, self.rng.random(shape))
        population[0] = around
        differential_evolution(
            lambda u: -self.scores(island, u.T),
            [(0.0, 1.0)] * island.dimension,
            init=population,
            vectorized=True,
            updating="deferred",
            mutation=(0.3, 0.9),
            maxiter=_GENERATIONS,
            polish=False,
            rng=self.rng,
            callback=lambda intermediate_result: self.over,
        )

    def scores(self, island: _Island, points: FloatArray) -> FloatArray:
        """Run the instances at the given points and return what differential evolution climbs."""
        result = np.full(len(points), -1.0)
        if self.over:
            return result
        least = max(island.least, self.least)
        for k, (instance, run, evaluation) in enumerate(self.evaluated(island, points)):
            if not evaluation.applies:
                continue
            ratio = excess(evaluation, run)
            result[k] = 0.0 if ratio is None else min(ratio, 1e3) * min(1.0, run.iterations / max(1, least))
            self.violated = evaluation.holds is False
            if ratio is None or (not self.violated and (ratio <= self.best or run.iterations < self.least)):
                continue
            self.best, self.worst, self.home = ratio, instance, (island, points[k].copy())
            if self.violated:
                break
        return result

    def evaluated(self, island: _Island, points: FloatArray) -> list[tuple[Instance, Run, Evaluation]]:
        """Return the instances at the given points with their runs and what the bound says."""
        instances = island.instances(points)
        problems, methods, stops = zip(*instances, strict=True)
        tails: dict[str, Any] = {}
        if self.entry.tail_start is not None:
            wanted = [requirements(*instance, [self.entry]) for instance in instances]
            for name in ("tail_gap_start", "tail_displacement_start"):
                tails[name] = [item[name] for item in wanted]
        runs = solve_many(
            problems,
            methods,
            stops,
            max_iterations=self.cap,
            statistics=self.entry.statistics,
            progress=False,
            **tails,
        )
        self.tried += len(runs)
        return [(i, run, evaluate(run, [self.entry])[0]) for i, run in zip(instances, runs, strict=True)]

    def smallest(self) -> Instance:
        """Return the simplest violation at hand: on the smallest blocks that have one, then shrunk."""
        assert self.worst is not None and self.home is not None
        violation, home = self.worst, self.home[0]
        end = time.monotonic() + SHRINK_SECONDS

        def weight(sizes: tuple[int, ...]) -> tuple[int, int]:
            return sum(sizes), len(sizes)

        smaller = sorted((sizes for sizes in _SIZES if weight(sizes) < weight(home.sizes)), key=weight)
        for sizes, turn in itertools.product(smaller, range(_ISLANDS)):
            if time.monotonic() > end - SHRINK_SECONDS / 2:
                break
            start = home.start if turn % 2 == 0 else _STARTS[turn % len(_STARTS)]
            island = replace(home, sizes=sizes, start=start, rotated=turn % 3 > 0 and max(sizes) > 1)
            points = self.rng.random((_SAMPLES, island.dimension))
            found = [i for i, _, evaluation in self.evaluated(island, points) if evaluation.holds is False]
            if found:
                violation = found[0]
                break

        def violated(instance: Instance) -> bool:
            return instance.evaluation(self.entry, self.cap).holds is False

        return simplified(violation, violated, end - time.monotonic()) if violated(violation) else violation


def choices(
    families: Sequence[str] | None = None,
    rules: Sequence[str] | None = None,
    methods: Sequence[Callable[[Any], Method]] | None = None,
) -> list[tuple[Maker, str]]:
    """Return makers of methods, each with a step rule that goes with it.

    A maker takes the learning rate, three numbers in [0, 1] for hyperparameters, and the mean |g_0,i|.

    Parameters
    ----------
    families, rules : sequence of str, optional
        All by default.
    methods : sequence of callables, optional
        Functions ``learning_rate -> method``, instead of the families'.

    Raises
    ------
    ValueError
        If there is none.

    Examples
    --------
    >>> [(str(make(rule, np.zeros(3), 1.0)), rule) for make, rule in choices(["normalized_gd"], ["lemma"])]
    [('NormalizedGD(lemma)', 'lemma')]
    """
    makers: list[Maker] = []
    if methods is None:
        for family in families or tuple(_MAKERS):
            makers += _MAKERS.get(family, ())
        if not makers:
            raise ValueError(
                f"give the methods to search among: none is known of {', '.join(families or ())}"
            )
    else:
        makers = [lambda rate, h, g, make=make: make(rate) for make in methods]  # type: ignore[misc]
    found = []
    for maker, rule in itertools.product(makers, rules or _RULES):
        try:
            maker(0.5 if rule == "constant" else rule, np.full(3, 0.5), 1.0)
        except ValueError:  # a rule of other methods
            continue
        found.append((maker, rule))
    if not found:
        raise ValueError(f"no method goes with a step rule among {', '.join(rules or _RULES)}")
    return found


# The cube and the islands -----------------------------------------------------------------------------------

_RULES = ("constant", "lemma", "m_star", "line_search")


def _beta(v: float) -> float:
    """Return a decay: 0 on a fifth of [0, 1], else 1 - 10^(-w), w up to 3."""
    return 0.0 if v < 0.2 else 1.0 - 10.0 ** (-3.0 * (v - 0.2) / 0.8)


def _epsilon(v: float, gradient: float) -> float:
    """Return Adam's epsilon: 0 on a fifth of [0, 1], else from 10^-4 to 30 times the mean |g_0,i|."""
    return 0.0 if v < 0.2 else gradient * 10.0 ** (-4.0 + 5.5 * (v - 0.2) / 0.8)


# family -> makers (learning rate, three numbers in [0, 1], mean |g_0,i|) -> method
_MAKERS: dict[str, tuple[Maker, ...]] = {
    "gd": (
        lambda rate, h, g: GD(rate),
        lambda rate, h, g: GD(rate),
        lambda rate, h, g: GD(rate, momentum=_beta(h[0])),
    ),
    "signsgd": (
        lambda rate, h, g: SignSGD(rate),
        lambda rate, h, g: SignSGD(rate),
        lambda rate, h, g: SignSGD(rate, momentum=_beta(h[0])),
    ),
    "normalized_gd": (lambda rate, h, g: NormalizedGD(rate),),
    "adam": (
        lambda rate, h, g: FrozenAdam(rate),
        lambda rate, h, g: Adam(rate, 0.0, 0.0, 0.0),
        lambda rate, h, g: RMSProp(rate, min(_beta(h[1]), 0.999), _epsilon(h[2], g)),
        lambda rate, h, g: Adam(rate, 0.0, min(_beta(h[1]), 0.999), _epsilon(h[2], g)),
        lambda rate, h, g: Adam(rate, _beta(h[0]), min(_beta(h[1]), 0.999), _epsilon(h[2], g)),
    ),
    "steepest": (
        lambda rate, h, g: SteepestDescent(rate, "l2"),
        lambda rate, h, g: SteepestDescent(rate, "linf"),
        lambda rate, h, g: SteepestDescent(rate, "block"),
    ),
    "adam_mini": (
        lambda rate, h, g: AdamMini(rate, 0.0, 0.0, 0.0),
        lambda rate, h, g: AdamMini(rate, _beta(h[0]), min(_beta(h[1]), 0.999), _epsilon(h[2], g)),
    ),
}


def _by_largest(p: BlockQuadratic, stop: Stop) -> float:
    return 1.0 / curvature(p).largest


def _by_range(p: BlockQuadratic, stop: Stop) -> float:
    return 2.0 / (curvature(p).smallest_positive + curvature(p).largest)


def _by_weight(p: BlockQuadratic, stop: Stop) -> float:
    return 1.0 / gradient_weighted(p) if start_quantities(p)["grad_l2"] > 0.0 else _by_largest(p, stop)


def _by_blocks(p: BlockQuadratic, stop: Stop) -> float:
    return 1.0 / float(curvature(p).block_norms.sum())


def _by_signs(p: BlockQuadratic, stop: Stop) -> float:
    return 1.0 / curvature(p).m_star_upper


def _by_distance(p: BlockQuadratic, stop: Stop) -> float:
    return float(np.abs(p.displacement).max())


def _by_theta(p: BlockQuadratic, stop: Stop) -> float:
    tolerance = stop.tolerance(p.size) if isinstance(stop, GradientNorm) else start_quantities(p)["grad_l1"]
    return tolerance / curvature(p).m_star_upper


def _by_square(p: BlockQuadratic, stop: Stop) -> float:
    """Return the unit of the bounds on Adam that need a positive (P eps)^2 - eta G M* C."""
    tolerance = stop.tolerance(p.size) if isinstance(stop, GradientNorm) else start_quantities(p)["grad_l1"]
    start = start_quantities(p)["grad_l1"] or 1.0
    return min(1.0, tolerance / start) * tolerance / curvature(p).m_star_upper


def _by_gradient(p: BlockQuadratic, stop: Stop) -> float:
    return start_quantities(p)["grad_linf"] / curvature(p).largest


def _by_least_gradient(p: BlockQuadratic, stop: Stop) -> float:
    gradient = np.abs(p.gradient(p.start))
    return min(
        float(part.min()) / max(block.norm, 1e-300)
        for part, block in zip(p.split(gradient), p.blocks, strict=True)
    )


#: Units of a constant learning rate, by family.
_UNITS: dict[str, tuple[Callable[[BlockQuadratic, Stop], float], ...]] = {
    "gd": (_by_largest, _by_range, _by_weight),
    "signsgd": (_by_distance, _by_theta),
    "normalized_gd": (_by_distance, _by_theta),
    "adam": (_by_distance, _by_theta, _by_square, _by_gradient, _by_least_gradient),
    "steepest": (_by_largest, _by_signs, _by_blocks),
    "adam_mini": (_by_distance, _by_theta, _by_square, _by_gradient),
    "user": (_by_largest, _by_distance, _by_theta, _by_gradient),
}


def _factors(v: FloatArray) -> FloatArray:
    """Return learning rates in their unit: 1, 2 or 1/2 exactly on a fifth of [0, 1], else 10^-4 to 3."""
    free = 10.0 ** (-4.0 + 4.5 * np.clip((v - 0.2) / 0.8, 0.0, 1.0))
    return np.select([v < 0.1, v < 0.15, v < 0.2], [1.0, 2.0, 0.5], free)


@dataclass(frozen=True)
class _Island:
    """The discrete choices; `instances` maps points of the unit cube to problems, methods and tests."""

    sizes: tuple[int, ...]
    rotated: bool
    singular: bool
    start: str
    maker: Maker
    rule: str
    unit: Callable[[BlockQuadratic, Stop], float]
    test: str
    least: int

    @classmethod
    def draw(cls, entry: Bound, choices: list[tuple[Maker, str]], rng: np.random.Generator) -> _Island:
        """Return a random island for a bound."""

        def pick(options: Sequence[Any]) -> Any:
            return options[int(rng.integers(len(options)))]

        maker, rule = pick(choices)
        family = maker(0.5 if rule == "constant" else rule, np.full(3, 0.5), 1.0).family
        own = entry.kind == "exact" or rng.random() < 0.75
        return cls(
            sizes=pick(_SIZES),
            rotated=bool(rng.random() < 0.6),
            singular=bool(rng.random() < 0.3),
            start=pick(_STARTS),
            maker=maker,
            rule=rule,
            unit=pick(_UNITS.get(family, _UNITS["user"])),
            test=pick(entry.targets if own else TARGETS),
            least=pick((1, 1, 4, 32)) if entry.quantity == ITERATIONS else 1,
        )

    @property
    def size(self) -> int:
        return sum(self.sizes)

    @property
    def angles(self) -> int:
        return sum(n * (n - 1) // 2 for n in self.sizes) if self.rotated else 0

    @property
    def dimension(self) -> int:
        return 2 * self.size + self.angles + 9

    def instances(self, points: FloatArray) -> list[Instance]:
        """Return the instances at the points, shape (n, dimension)."""
        cuts = np.cumsum([self.size, self.size, self.angles, 3])
        spectra, components, angles, hyper, rest = np.split(points, cuts, axis=1)
        decades, spread, hessian_scale, start_scale, rate, accuracy = rest.T
        eigenvalues = self._eigenvalues(spectra, decades) * _scales(hessian_scale)[:, None]
        bases = self._bases(angles)
        x = self._starts(eigenvalues, bases, _components(components, spread)) * _scales(start_scale)[:, None]
        factors = _factors(rate)
        found = []
        noise = np.zeros(self.size)
        ends = np.cumsum(self.sizes)[:-1]
        for k in range(len(points)):
            blocks: list[Block] = []
            for b, values in enumerate(np.split(eigenvalues[k], ends)):
                if self.rotated and values.size > 1:
                    blocks.append(DenseBlock.from_eigen(values.copy(), bases[b][k].copy()))
                else:
                    blocks.append(DiagonalBlock(values.copy()))
            problem = BlockQuadratic(tuple(blocks), x[k].copy(), noise, noise)
            stop = self._stop(problem, 10.0 ** (-_ACCURACY * accuracy[k] ** 2))
            learning_rate: Any = self.rule
            if self.rule == "constant":
                learning_rate = float(self.unit(problem, stop) * factors[k]) or 1.0
            gradient = start_quantities(problem)["grad_l1"] / self.size
            method = self.maker(learning_rate, hyper[k], gradient)
            if isinstance(method, Adam) and method.frozen and not starting_gradient(problem).all():
                # it divides by each of them; no theorem speaks of such a start
                method = replace(method, beta2=0.5)
            found.append(Instance(problem, method, stop))
        return found

    def _eigenvalues(self, v: FloatArray, decades: FloatArray) -> FloatArray:
        """Return the spectra, largest 1: equal at the top, equal at the bottom, zero, or log-uniform."""
        height = np.clip((v - 0.3) / 0.4, 0.0, 1.0)
        exponents = -_DECADES * decades[:, None] ** 2 * (1.0 - height)
        values = 10.0 ** (exponents - exponents.max(axis=1, keepdims=True))
        if self.singular:
            values = np.where(v < 0.15, 0.0, values)
        values[:, 0] = np.where(values.any(axis=1), values[:, 0], 1.0)
        return values / values.max(axis=1, keepdims=True)

    def _bases(self, v: FloatArray) -> list[FloatArray]:
        """Return the eigenvectors of each block, shape (n, P_b, P_b), as products of plane rotations."""
        bases, used = [], 0
        turn = np.select([v < 0.2, v < 0.4], [0.0, math.pi / 4.0], math.pi * (v - 0.4) / 0.6)
        for n in self.sizes:
            q = np.broadcast_to(np.eye(n), (len(v), n, n)).copy()
            for i, j in itertools.combinations(range(n), 2) if self.rotated else ():
                c, s = np.cos(turn[:, used])[:, None], np.sin(turn[:, used])[:, None]
                q[..., i], q[..., j] = c * q[..., i] + s * q[..., j], c * q[..., j] - s * q[..., i]
                used += 1
            bases.append(q)
        return bases

    def _starts(self, values: FloatArray, bases: list[FloatArray], components: FloatArray) -> FloatArray:
        """Return x_0 from its components, shape (n, P)."""
        if self.start == "point":
            return components
        ends = np.cumsum(self.sizes)[:-1]
        gamma = components
        if self.start == "gradient":
            parts = zip(bases, np.split(components, ends, axis=1), strict=True)
            gamma = np.concatenate([np.einsum("nij,ni->nj", q, g) for q, g in parts], axis=1)
        elif self.start in ("two", "one"):
            rows = np.arange(len(values))
            gamma = np.zeros_like(values)
            if self.start == "two":
                gamma[rows, np.where(values > 0.0, values, np.inf).argmin(axis=1)] = 1.0
                gamma[rows, values.argmax(axis=1)] = 1.0
            else:
                gamma[rows, np.abs(components).argmax(axis=1)] = 1.0
        c = np.divide(gamma, values, out=np.zeros_like(values), where=values > 0.0)
        parts = zip(bases, np.split(c, ends, axis=1), strict=True)
        return np.concatenate([np.einsum("nij,nj->ni", q, part) for q, part in parts], axis=1)

    def _stop(self, problem: BlockQuadratic, fraction: float) -> Stop:
        """Return the test at a fraction of its value at the start, as an absolute one."""
        start = start_quantities(problem)
        if self.test == "gap":
            return Gap(fraction * start["gap"] or fraction)
        value = start[f"grad_{self.test}"] or 1.0
        order = {"l1": 1.0, "l2": 2.0, "linf": math.inf}[self.test]
        scale = {"l1": self.size, "l2": math.sqrt(self.size), "linf": 1.0}[self.test]
        return GradientNorm(fraction * value / scale, order)


def _scales(v: FloatArray) -> FloatArray:
    """Return overall scales: 1 on a half of [0, 1], else 10^-3 to 10^3."""
    return np.where(v < 0.5, 1.0, 10.0 ** (6.0 * np.clip((v - 0.5) / 0.5, 0.0, 1.0) - 3.0))


def _components(v: FloatArray, spread: FloatArray) -> FloatArray:
    """Return components of a start: 0, 1, -1, or of a size that varies by up to six decades."""
    signed = 2.0 * v - 1.0
    size = np.abs(signed)
    height = np.clip((size - 0.12) / 0.68, 0.0, 1.0)
    magnitude = 10.0 ** (-_SPREAD * spread[:, None] ** 2 * (1.0 - height))
    return np.where(size < 0.12, 0.0, np.sign(signed) * magnitude)


# Simpler instances ------------------------------------------------------------------------------------------


def _matrices(problem: BlockQuadratic) -> list[FloatArray]:
    """Return the blocks as arrays: a diagonal, or a matrix."""
    return [
        np.array(block.diagonal() if isinstance(block, DiagonalBlock) else block.to_dense())
        for block in problem.blocks
    ]


def _rebuilt(instance: Instance, matrices: Sequence[FloatArray], x: FloatArray) -> Iterator[Instance]:
    """Yield the instance with other blocks and another start, if these make a problem."""
    try:
        problem = BlockQuadratic.from_blocks(list(matrices), start=x, minimizer=np.zeros(x.size))
    except ValueError:
        return
    yield instance._replace(problem=problem)
    # and with the same fraction of the start's own value to go
    name = instance.stop.quantity
    before, after = start_quantities(instance.problem)[name], start_quantities(problem)[name]
    if before > 0.0 and after > 0.0:
        scale = after / before
        if isinstance(instance.stop, GradientNorm):
            ratio = instance.stop.tolerance(instance.problem.size) / instance.stop.tolerance(problem.size)
            stop: Stop = replace(instance.stop, eps=instance.stop.eps * scale * ratio)
        else:
            stop = replace(instance.stop, delta=instance.stop.delta * scale)
        yield Instance(problem, instance.method, stop)


def _smaller(instance: Instance) -> Iterator[Instance]:
    """Yield the instance without a block, then without a parameter."""
    problem = instance.problem
    matrices, parts = _matrices(problem), problem.split(problem.displacement)
    for b in range(len(matrices) if len(matrices) > 1 else 0):
        rest = [part for k, part in enumerate(parts) if k != b]
        yield from _rebuilt(instance, [m for k, m in enumerate(matrices) if k != b], np.concatenate(rest))
    for b, matrix in enumerate(matrices):
        for i in range(len(matrix) if len(matrix) > 1 else 0):
            less = matrix
            for axis in range(matrix.ndim):
                less = np.delete(less, i, axis)
            x = [np.delete(part, i) if k == b else part for k, part in enumerate(parts)]
            changed = [less if k == b else m for k, m in enumerate(matrices)]
            yield from _rebuilt(instance, changed, np.concatenate(x))


def _sparser(instance: Instance) -> Iterator[Instance]:
    """Yield the instance with a diagonal block, then with one more zero in the start."""
    problem = instance.problem
    matrices, x = _matrices(problem), problem.displacement
    for b, matrix in enumerate(matrices):
        if matrix.ndim == 2:
            changed = [m.diagonal() if k == b else m for k, m in enumerate(matrices)]
            yield from _rebuilt(instance, changed, x)
    for i in np.flatnonzero(x):
        zeroed = x.copy()
        zeroed[i] = 0.0
        yield from _rebuilt(instance, matrices, zeroed)


def _rounder(instance: Instance) -> Iterator[Instance]:
    """Yield the instance with all numbers rounded, then with a single one, to 1, 2, 3 or 4 digits."""
    numbers = np.array(_numbers(instance))
    digits = np.array([_digits(v) for v in numbers])
    for count in (1, 2, 3, 4):
        if (digits > count).any():
            yield from _with_numbers(instance, [_rounded(v, count) for v in numbers])
    for i, count in itertools.product(np.argsort(-digits, kind="stable"), (1, 2, 3, 4)):
        if digits[i] > count:
            changed = numbers.copy()
            changed[i] = _rounded(numbers[i], count)
            yield from _with_numbers(instance, changed)


def _numbers(instance: Instance) -> list[float]:
    """Return every number of an instance: H, x_0, learning rate and hyperparameters, eps."""
    numbers = []
    for matrix in _matrices(instance.problem):
        numbers += (matrix if matrix.ndim == 1 else matrix[np.tril_indices(len(matrix))]).tolist()
    numbers += instance.problem.displacement.tolist()
    numbers += [getattr(instance.method, name) for name in _number_fields(instance.method)]
    stop = instance.stop
    return [*numbers, stop.delta if isinstance(stop, Gap) else stop.eps]


def _with_numbers(instance: Instance, numbers: Sequence[float] | FloatArray) -> Iterator[Instance]:
    left = iter([float(v) for v in numbers])

    def take(count: int) -> FloatArray:
        return np.array(list(itertools.islice(left, count)))

    matrices = []
    for matrix in _matrices(instance.problem):
        if matrix.ndim == 1:
            matrices.append(take(len(matrix)))
            continue
        lower = np.tril_indices(len(matrix))
        changed = np.zeros_like(matrix)
        changed[lower] = take(len(lower[0]))
        matrices.append(changed + np.tril(changed, -1).T)
    x = take(instance.problem.size)
    names = _number_fields(instance.method)
    try:
        method = replace(instance.method, **dict(zip(names, take(len(names)).tolist(), strict=True)))
        stop: Stop
        if isinstance(instance.stop, Gap):
            stop = replace(instance.stop, delta=next(left))
        else:
            stop = replace(instance.stop, eps=next(left))
    except ValueError:
        return
    yield from itertools.islice(_rebuilt(Instance(instance.problem, method, stop), matrices, x), 1)


def _number_fields(method: Method) -> list[str]:
    return [item.name for item in fields(method) if type(getattr(method, item.name)) is float]


def _rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits - 1}e}")


def _digits(value: float) -> int:
    """Return the number of significant decimal digits."""
    return next((count for count in range(1, 17) if _rounded(value, count) == value), 17)
