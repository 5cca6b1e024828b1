"""An independent twin of the engine in plain NumPy, written from the specification of order alone.

It shares no code with the compiled loops. Every product is rounded before it is added, and every sum over
coordinates adds its terms in the order that is specified, so the engine must agree with it to the last bit:

* a block's sum goes in chunks of 4096 coordinates, a chunk in eight stripes (coordinates equal modulo 8, in
  ascending order), the stripes combined as ((0+1)+(2+3))+((4+5)+(6+7)), chunks and then blocks in order;
* a dense product adds column after column; a Householder product reflects forth, scales, reflects back;
* Adam's bias correction multiplies by the reciprocals 1/(1 - beta1^t) and 1/(1 - beta2^t);
* the noise of iterations kR to (k+1)R - 1 is drawn row by row from Philox(key, counter (0, 0, 0, k)), the key
  the first 128 bits of a hash of problem and seed; the direction sees g + sigma xi, everything else sees g;
* values under 1e-290 become zero wherever a state is written (frozen Adam's g_0^2 is never written again).

``np.add.accumulate`` is sequential by definition; ``np.sum`` and ``np.dot`` are not, and do not occur.
"""

from __future__ import annotations

import hashlib
import math
from functools import cached_property
from itertools import pairwise
from types import SimpleNamespace

import numpy as np

from quadlab.steps import Schedule

TINY = 1e-290
CHUNK = 4096


def flush(v: np.ndarray) -> np.ndarray:
    return np.where(np.abs(v) < TINY, 0.0, v)


def add_rows(terms: np.ndarray) -> np.ndarray:
    """0.0 + terms[0] + terms[1] + ..., one row after the other (the zero only turns -0.0 into 0.0)."""
    return (np.add.accumulate(terms, axis=0)[-1] if len(terms) > 1 else terms[0]) + 0.0


def add_up(values) -> float:
    total = 0.0
    for value in values:
        total = total + value
    return total


def over(numerator, denominator):
    """A mean of nothing is 0: Lambda and the cosine of a zero vector."""
    return np.float64(0.0) if denominator == 0.0 else np.float64(numerator) / denominator


class Sums:
    """The specified sum over the coordinates of each block."""

    def __init__(self, offsets):
        self.size = int(offsets[-1])
        pieces = [
            (block, start, min(start + CHUNK, stop))
            for block, (start, stop) in enumerate(pairwise(offsets))
            for start in range(start, stop, CHUNK)
        ]
        rows = max(-(-(stop - start) // 8) for _, start, stop in pieces)
        self.block_of = [block for block, _, _ in pieces]
        self.n_blocks = len(offsets) - 1
        self.terms = np.zeros(self.size + 1)  # the term behind the last one stays 0.0
        self.index = np.full((rows, len(pieces), 8), self.size)
        for piece, (_, start, stop) in enumerate(pieces):
            i = np.arange(stop - start)
            self.index[i // 8, piece, i % 8] = start + i

    def blocks(self, terms: np.ndarray) -> list[float]:
        self.terms[:-1] = terms
        s = add_rows(self.terms[self.index]).T
        chunks = ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]))
        sums = [0.0] * self.n_blocks
        for block, chunk in zip(self.block_of, chunks.tolist(), strict=True):
            sums[block] = sums[block] + chunk
        return sums

    def total(self, terms: np.ndarray) -> np.float64:
        return np.float64(add_up(self.blocks(terms)))  # NumPy's, so that a division by zero is no error


class Hessian:
    """H v, block by block, in the specified order."""

    def __init__(self, problem):
        packed = problem.packed()
        self.products = []
        for b, kind in enumerate(packed.kinds):
            lo, hi = int(packed.offsets[b]), int(packed.offsets[b + 1])
            data = packed.data[packed.data_offsets[b] : packed.data_offsets[b + 1]]
            size = hi - lo
            if kind == 0:
                product = self.dense(data.reshape(size, size))
            elif kind == 1:
                product = self.diagonal(data)
            else:
                product = self.householder(data[:size], data[size:].reshape(-1, size))
            self.products.append((slice(lo, hi), product))

    def __call__(self, v: np.ndarray) -> np.ndarray:
        out = np.empty_like(v)
        for block, product in self.products:
            out[block] = product(v[block])
        return out

    @staticmethod
    def dense(matrix):
        columns = matrix.T.copy()  # row j holds column j
        return lambda v: add_rows(columns * v[:, None])

    @staticmethod
    def diagonal(h):
        return lambda v: h * v

    @staticmethod
    def householder(eigenvalues, reflectors):
        sums = Sums([0, eigenvalues.size])

        def reflect(y, u):
            return y - (2.0 * sums.blocks(u * y)[0]) * u

        def product(v):
            y = v
            for u in reflectors:
                y = reflect(y, u)
            y = eigenvalues * y
            for u in reflectors[::-1]:
                y = reflect(y, u)
            return y

        return product


class Noise:
    """sigma xi of one iteration after the other."""

    def __init__(self, problem, seed):
        identity = f"{problem.content_hash} {seed}".encode()
        self.key = int.from_bytes(hashlib.sha256(identity).digest()[:16], "little")
        self.law, self.sigma = problem.noise_law, np.array(problem.noise)
        self.period = max(1, min(128, 8192 // problem.size))

    def __call__(self, t):
        if t % self.period == 0:
            self.rng = np.random.Generator(np.random.Philox(key=self.key, counter=(t // self.period) << 192))
        return self.sigma * self.unit(self.sigma.size)

    def unit(self, n):
        if self.law == "gaussian":
            return np.array([self.rng.standard_normal() for _ in range(n)])
        if self.law == "uniform":
            return np.array([self.rng.random() - 0.5 for _ in range(n)]) * math.sqrt(12.0)
        if self.law == "rademacher":
            return np.array([-1.0, 1.0])[[self.rng.integers(2) for _ in range(n)]]
        df = float(self.law.removeprefix("student:"))
        scale = math.sqrt((df - 2.0) / df) if df > 2.0 else 1.0
        return np.array([self.rng.standard_t(df) for _ in range(n)]) * scale


class Moment:
    """The quantities at one iterate; what no one asks for is not computed."""

    def __init__(self, run, x: np.ndarray):
        self.run, self.x = run, x
        self.g = run.hessian(x)
        self.seen = self.g  # what the method sees of it
        self.d = self.eta = self.den = None

    @cached_property
    def gap(self):
        return 0.5 * self.run.sums.total(self.x * self.g)

    @cached_property
    def grad_l1(self):
        return self.run.sums.total(np.abs(self.g))

    @cached_property
    def grad_sq_blocks(self):
        return self.run.sums.blocks(self.g * self.g)

    @cached_property
    def grad_sq(self):
        return np.float64(add_up(self.grad_sq_blocks))

    @cached_property
    def grad_l2(self):
        return np.sqrt(self.grad_sq)

    @cached_property
    def grad_linf(self):
        return np.max(np.abs(self.g))

    @cached_property
    def lambda_g(self):
        return over(self.run.weigh(self.grad_sq_blocks), self.grad_sq)

    @cached_property
    def descent(self):
        return self.run.sums.total(self.g * self.d)

    @cached_property
    def d_sq_blocks(self):
        return self.run.sums.blocks(self.d * self.d)

    @cached_property
    def d_sq(self):
        return np.float64(add_up(self.d_sq_blocks))

    @cached_property
    def curvature_bound(self):
        return np.float64(self.run.weigh(self.d_sq_blocks))

    @cached_property
    def curvature(self):
        return self.run.sums.total(self.d * self.run.hessian(self.d))

    @cached_property
    def lambda_d(self):
        return over(self.curvature_bound, self.d_sq)

    @cached_property
    def cos_sign(self):
        nonzero = float(np.count_nonzero(self.g))
        return over(self.run.sums.total(np.sign(self.g) * self.d), np.sqrt(self.d_sq) * np.sqrt(nonzero))

    def lemma_ratio(self, grad_sq):
        """Where the direction is none of descent the lemma gives no bound."""
        return math.inf if self.descent <= 0.0 else self.curvature_bound * grad_sq / self.descent**2


# statistic -> (the value at one iteration, how the iterations t = 0..T-1 are put together)
STATISTICS = {
    "sup_lambda_g": (lambda at: at.lambda_g, "max"),
    "harmonic_lambda_g": (lambda at: at.lambda_g, "harmonic"),
    "final_lambda_g": (lambda at: at.lambda_g, "last"),
    "sup_step_lambda_g": (lambda at: at.eta * at.lambda_g, "max"),
    "sup_lambda_d": (lambda at: at.lambda_d, "max"),
    "harmonic_lambda_d": (lambda at: at.lambda_d, "harmonic"),
    "min_descent": (lambda at: at.descent, "min"),
    "sup_lemma_l1": (lambda at: at.lemma_ratio(at.grad_l1**2), "max"),
    "sup_lemma_l2": (lambda at: at.lemma_ratio(at.grad_sq), "max"),
    "sup_curvature": (lambda at: at.curvature, "max"),
    "sup_denominator_l1": (lambda at: at.run.sums.total(at.den), "max"),
    "sup_preconditioned": (lambda at: at.run.preconditioned_top(at.den), "max"),
    "inf_preconditioned": (lambda at: at.run.preconditioned_bottom(at.den), "min"),
    "min_cos_sign": (lambda at: at.cos_sign, "min"),
    "mean_cos_sign": (lambda at: at.cos_sign, "mean"),
    "mean_soft": (
        lambda at: np.count_nonzero((np.abs(at.d) >= 0.5) & (np.abs(at.d) <= 2.0)) / at.d.size,
        "mean",
    ),
    "sum_max_gradient": (lambda at: np.abs(at.g), "coordinates"),
    "sum_step": (lambda at: at.eta, "sum"),
    "weighted_square": (lambda at: at.eta * at.grad_sq, "sum"),
    "weighted_l1": (lambda at: at.eta * at.grad_l1, "sum"),
}
RATIOS = {"min_gap_ratio": "min", "max_gap_ratio": "max"}


def combine(values: list, how: str, sums: Sums):
    if not values:
        return None
    if how == "harmonic":
        return len(values) / np.float64(add_up([1.0 / value for value in values]))
    if how == "sum":
        return add_up(values)
    if how == "mean":
        return add_up(values) / len(values)
    if how == "coordinates":
        return sums.total(np.max(values, axis=0))
    return {"max": np.max, "min": np.min, "last": lambda v: v[-1]}[how](values)


class Twin:
    def __init__(self, problem, method, stop, learning_rate, tail_starts, noise_seed):
        self.problem, self.method, self.stop = problem, method, stop
        packed = problem.packed()
        self.norms = [float(norm) for norm in packed.norms]
        self.sums = Sums([int(offset) for offset in packed.offsets])
        self.hessian = Hessian(problem)
        self.learning_rate = method.learning_rate if learning_rate is None else learning_rate
        self.state = {}
        self.tail_gap_start, self.tail_displacement_start = tail_starts
        self.noise = Noise(problem, noise_seed) if problem.noise.any() else None

    def weigh(self, block_squares) -> float:
        return add_up([square * norm for square, norm in zip(block_squares, self.norms, strict=True)])

    # -- stopping --------------------------------------------------------------------------------------

    def measured(self, at: Moment):
        if not hasattr(self.stop, "ord"):
            return at.gap
        return {1: at.grad_l1, 2: at.grad_l2}.get(self.stop.ord, at.grad_linf)

    def tolerance(self, start_value: float) -> float:
        stop, size = self.stop, self.problem.size
        number = stop.eps if hasattr(stop, "ord") else stop.delta
        if stop.relative:
            return number * start_value
        if not hasattr(stop, "ord"):
            return number
        return {1: size * number, 2: math.sqrt(size) * number}.get(stop.ord, number)

    # -- directions ------------------------------------------------------------------------------------

    def average(self, name: str, decay: float, weight: float, value: np.ndarray) -> np.ndarray:
        """The state ``name`` becomes decay*state + weight*value, flushed."""
        old = self.state.get(name, np.zeros_like(value))
        self.state[name] = flush(decay * old + weight * value)
        return self.state[name]

    def direct(self, at: Moment) -> np.ndarray:
        """Set the direction of the moment."""
        method, g = self.method, at.seen
        if method.family == "gd":
            at.d = g
            if method.momentum:
                v = self.average("v", method.momentum, 1.0, g)
                at.d = g + method.momentum * v if method.nesterov else v
        elif method.family == "signsgd":
            beta = method.momentum
            at.d = np.sign(self.average("v", beta, 1.0 - beta, g) if beta else g)
        elif method.family == "normalized_gd":
            square = self.sums.total(g * g)
            at.d = np.zeros_like(g) if square == 0.0 else g / np.sqrt(square)
        elif method.family == "adam":
            at.d = self.adam(at)
        else:
            raise NotImplementedError(method.family)

    def adam(self, at: Moment) -> np.ndarray:
        method, g, state = self.method, at.seen, self.state
        beta1, beta2 = method.beta1, method.beta2
        frozen = beta2 == 1.0
        m = self.average("m", beta1, 1.0 - beta1, g)
        if not frozen:
            v = self.average("v", beta2, 1.0 - beta2, g * g)
        else:
            v = state.setdefault("v", g * g)
        p1 = state["p1"] = state.get("p1", 1.0) * beta1
        p2 = state["p2"] = state.get("p2", 1.0) * beta2
        if method.bias_correction:
            m = m * (1.0 / (1.0 - p1))
            v = v if frozen else v * (1.0 / (1.0 - p2))
        at.den = np.sqrt(v) + method.epsilon
        d = np.where((at.den == 0.0) & (m == 0.0), 0.0, m / at.den)
        if method.weight_decay:
            d = d + method.weight_decay * (at.x + self.problem.minimizer)
        return d

    # -- steps -----------------------------------------------------------------------------------------

    def step(self, at: Moment, t: int) -> bool:
        """Set the step; False where the direction is none of descent."""
        rule = self.learning_rate
        if isinstance(rule, float | int):
            at.eta = rule
        elif isinstance(rule, Schedule):
            at.eta = float(rule.function(t))
        elif rule == "m_star":
            from quadlab.curvature import curvature

            at.eta = at.grad_l1 / curvature(self.problem).m_star_upper
        elif rule in ("lemma", "lambda_g", "lambda_p", "line_search"):
            if at.descent <= 0.0:
                return False
            bound = at.curvature if rule == "line_search" else at.curvature_bound
            at.eta = 0.0 if bound == 0.0 else at.descent / bound
        else:
            raise NotImplementedError(f"{rule}: pass the resolved learning_rate")
        return True

    # -- statistics that look inside blocks ------------------------------------------------------------

    def split(self, v: np.ndarray) -> list[np.ndarray]:
        return np.split(v, self.problem.packed().offsets[1:-1])

    def preconditioned_top(self, den: np.ndarray):
        return np.max([n / np.min(part) for n, part in zip(self.norms, self.split(den), strict=True)])

    def preconditioned_bottom(self, den: np.ndarray):
        return np.min(
            [
                mu / np.max(part)
                for mu, part in zip(self.smallest_positive, self.split(den), strict=True)
                if mu is not None
            ]
        )

    @cached_property
    def smallest_positive(self) -> list[float | None]:
        from quadlab.problem import RANK_TOLERANCE

        bottom = []
        for block in self.problem.blocks:
            positive = block.eigenvalues[block.eigenvalues > RANK_TOLERANCE * max(self.norms)]
            bottom.append(np.min(positive) if positive.size else None)
        return bottom

    # -- the loop --------------------------------------------------------------------------------------

    def run(self, max_iterations: int, statistics, record: int | None):
        history = {name: [] for name in statistics}
        rows = []
        x = np.array(self.problem.displacement, dtype=np.float64)
        initial = before = None
        t = 0
        while True:
            at = Moment(self, x)
            measured = self.measured(at)
            if before is None:
                initial, tolerance = at, self.tolerance(measured)
            else:
                for name in RATIOS.keys() & history.keys():
                    history[name].append(at.gap / before.gap)
            if measured <= tolerance:
                status = "converged"
                break
            if not np.isfinite(measured):
                status = "diverged"
                break
            if t == max_iterations:
                status = "max_iterations"
                break
            if self.noise is not None:
                at.seen = at.g + self.noise(t)
            self.direct(at)
            if not self.step(at, t):
                status = "not_descent"
                break
            for name in STATISTICS.keys() & history.keys():
                history[name].append(STATISTICS[name][0](at))
            self.tail(history, at, t)
            if record and t % record == 0:
                rows.append((t, at))
            x = flush(x - at.eta * at.d)
            before = at
            t += 1
        self.tail(history, at, t)
        if record:
            rows.append((t, at))
        how = {name: rule for name, (_, rule) in STATISTICS.items()} | RATIOS
        how |= {"tail_gap": "max", "tail_displacement": "max"}
        return SimpleNamespace(
            status=status,
            iterations=t,
            x=x,
            point=x + self.problem.minimizer,
            tolerance=tolerance,
            initial=self.quantities(initial),
            final=self.quantities(at),
            statistics={name: combine(values, how[name], self.sums) for name, values in history.items()},
            trace=self.trace(rows) if record else None,
        )

    def tail(self, history: dict, at: Moment, t: int) -> None:
        """Suprema from some iteration on; the last iterate belongs to them."""
        if "tail_gap" in history and t >= self.tail_gap_start:
            history["tail_gap"].append(at.gap)
        if "tail_displacement" in history and t >= self.tail_displacement_start:
            moved = np.abs(at.x[self.problem.hessian_diagonal() > 0.0])
            history["tail_displacement"].append(np.max(moved, initial=0.0))

    @staticmethod
    def quantities(at: Moment) -> dict[str, float]:
        return {
            name: float(getattr(at, name)) for name in ("gap", "grad_l1", "grad_l2", "grad_linf", "lambda_g")
        }

    @staticmethod
    def trace(rows: list[tuple[int, Moment]]) -> SimpleNamespace:
        def column(name):
            return np.array([float(getattr(at, name)) for _, at in rows])

        def stepped(name):
            return np.array([float(getattr(at, name)) if at.eta is not None else math.nan for _, at in rows])

        return SimpleNamespace(
            iteration=np.array([t for t, _ in rows]),
            step=stepped("eta"),
            cos_sign=stepped("cos_sign"),
            **{name: column(name) for name in ("gap", "grad_l2", "grad_l1", "grad_linf", "lambda_g")},
        )


def twin_solve(
    problem,
    method,
    stop,
    *,
    max_iterations: int,
    statistics=(),
    record: int | None = None,
    learning_rate=None,
    tail_gap_start: float = 0,
    tail_displacement_start: float = 0,
    noise_seed: int = 0,
) -> SimpleNamespace:
    """Run one method as the engine should: status, iterations, x (= w - w*), trace, statistics.

    ``learning_rate`` replaces the method's own: a number, a schedule or a rule by name.
    ``record`` keeps every so-manieth iterate, and the last one.
    """
    tails = tail_gap_start, tail_displacement_start
    twin = Twin(problem, method, stop, learning_rate, tails, noise_seed)
    with np.errstate(all="ignore"):
        return twin.run(max_iterations, statistics, record)
