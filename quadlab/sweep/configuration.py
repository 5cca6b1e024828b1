r"""What one run of a sweep is, as plain data: a flat table of names and JSON values, and the objects of it.

The names fall into two halves. Those of the **problem** are one of

- ``case``: a named problem, with options of `BlockQuadratic.from_spectra`;
- ``spectra``: those options in full (``sizes``, ``basis``, ``top``, ``storage``, ``gradient_norms``,
  ``direction``, ``start``, ``minimizer``);
- ``condition_number``: the family of `block_family`, with ``sizes``, ``blocks``, ``hessian_spread``,
  ``gradient_spread``, ``correlation``;
- ``problem``: ``"module:function"`` (in Python, the function itself), called with ``seed`` and every name not
  listed here; or a file saved by ``problem.save``;

with ``rotation`` (an angle) short for ``basis`` and ``seed`` the replicate. Those of the **run** are
``method`` and its hyperparameters, ``stop`` ("l1", "l2", "linf", "gap"), ``eps``, ``relative``,
``max_iterations``, ``statistics``, and gradient noise: ``noise`` (a level, one a block or one a coordinate),
``noise_law`` and ``batch``, as in `BlockQuadratic.with_noise`.

A law, basis or schedule is written ``{Name: arguments}``, such as ``{"LogUniform": [1, 100]}``,
``{"Rotation": [0.3]}``, ``{"cosine": [0.1, 1000]}``. A method of your own is ``"module:name"``.

**Seeds.** The problem's seed is a hash of the problem's half alone. So another value on an axis changes no
other run, and all methods meet the same problems at all noise levels. The seed of the noise is the same
hash: methods meet the same noise, replicates another.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, overload

import numpy as np

from quadlab import bases, methods, spectra, steps
from quadlab._arrays import shown
from quadlab.cases import case as named_case
from quadlab.heterogeneity import gradient_weighted, mean_jensen_shannon, parameter_weighted
from quadlab.methods import METHODS, Method, UserMethod, split_method
from quadlab.problem import BlockQuadratic, check_problem_seed, is_several, load
from quadlab.run import STATISTICS
from quadlab.spectra import LogUniform
from quadlab.stopping import Gap, GradientNorm, Stop

HYPERPARAMETERS = (
    "learning_rate", "momentum", "nesterov", "beta1", "beta2", "epsilon", "bias_correction", "weight_decay",
    "norm",
)  # fmt: skip
STOPS = {"l1": 1.0, "l2": 2.0, "linf": math.inf}
#: Statistics of the problem rather than of the trajectory.
PROBLEM_STATISTICS: dict[str, Callable[[BlockQuadratic], float | None]] = {
    "gradient_weighted": gradient_weighted,
    "parameter_weighted": parameter_weighted,
    "mean_jensen_shannon": mean_jensen_shannon,
}
#: Problems made together, at most, and the entries of their matrices: what is made may be more than is used.
MOST_TOGETHER, TOGETHER_ENTRIES = 256, 1 << 16

_OPTIONS = ("basis", "storage", "gradient_norms", "direction", "start", "minimizer")
_PROBLEM_NAMES = {
    "case", "spectra", "sizes", "top", "problem", "problem_digest", "seed", "rotation", "blocks",
    "condition_number", "hessian_spread", "gradient_spread", "correlation", *_OPTIONS,
}  # fmt: skip
RUN_NAMES = {
    "method", "method_digest", "method_options", *HYPERPARAMETERS, "stop", "eps", "relative",
    "max_iterations", "statistics", "noise", "noise_law", "batch",
}  # fmt: skip

_LAWS = ("Listed", "TwoPoint", "LogUniform", "PowerLaw", "MarchenkoPastur", "Density")
_TAGS: dict[str, Callable[..., Any]] = {
    **{name: getattr(spectra, name) for name in _LAWS},
    **{name: getattr(bases, name) for name in ("Rotation", "Householder")},
    **{
        name: getattr(steps, name)
        for name in ("constant", "linear_decay", "cosine", "inverse_sqrt", "warmup")
    },
}


# -- objects and shorthands to plain data --------------------------------------------------------------------


def expand(name: str, value: Any) -> dict[str, Any]:
    """Return the plain names and JSON values that one name and value stand for.

    Raises
    ------
    ValueError
        If the value has no plain form.

    Examples
    --------
    >>> expand("method", "adam:0.01:beta1=0")
    {'method': 'adam', 'learning_rate': 0.01, 'beta1': 0}
    >>> expand("stop", Gap(1e-6, relative=True))
    {'stop': 'gap', 'eps': 1e-06, 'relative': True}
    """
    if name == "method":
        return _expand_method(value)
    if name == "stop" and isinstance(value, (GradientNorm, Gap)):
        norm = {order: key for key, order in STOPS.items()}
        kind, eps = ("gap", value.delta) if isinstance(value, Gap) else (norm[value.ord], value.eps)
        return {"stop": kind, "eps": plain(eps, "eps"), **({"relative": True} if value.relative else {})}
    if name == "problem":
        text = f"{value.__module__}:{value.__qualname__}" if inspect.isfunction(value) else str(value)
        return {"problem": text, "problem_digest": _digest(text)}
    return {name: plain(value, name)}


def plain(value: Any, what: str) -> Any:
    """Return a value as JSON has it; numbers that are whole become integers, so that 1 and 1.0 are one.

    Examples
    --------
    >>> plain([1.0, np.float64(0.5), LogUniform(1, 10)], "x")
    [1, 0.5, {'LogUniform': {'low': 1, 'high': 10, 'random': False}}]
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{what} must be finite, received {value}")
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if isinstance(value, (list, tuple, np.ndarray, range)):
        return [plain(item, what) for item in value]
    if isinstance(value, Mapping):
        return {str(key): plain(item, what) for key, item in value.items()}
    tag = type(value).__name__
    if is_dataclass(value) and _TAGS.get(tag) is type(value):
        return {tag: {field.name: plain(getattr(value, field.name), what) for field in fields(value)}}
    raise ValueError(f'{what} must be plain data, a law, a basis or "module:name", received {shown(value)}')


def _expand_method(value: Any) -> dict[str, Any]:
    if isinstance(value, UserMethod):
        reference = f"{value.rule.__module__}:{value.rule.__qualname__}"
        value = {reference: {"learning_rate": value.learning_rate, **dict(value.hyperparameters)}}
    elif isinstance(value, Method):
        own = {f.name: getattr(value, f.name) for f in fields(value)}
        defaults = {f.name: f.default for f in fields(value)}
        value = {value.family: {k: v for k, v in own.items() if v != defaults[k]}}
    if isinstance(value, str) and value.split(":")[0] in METHODS:
        name, options = split_method(value)
        value = {name: options}
    if isinstance(value, str):
        value = {value: {}}
    tagged = list(value.items()) if isinstance(value, Mapping) else []
    if len(tagged) != 1 or not isinstance(tagged[0][1], Mapping):
        raise ValueError(f"method must be a name, a Method or {{name: options}}, received {shown(value)}")
    name, options = tagged[0][0], {key: plain(item, key) for key, item in tagged[0][1].items()}
    if name in METHODS:
        return {"method": name, **options}
    if ":" not in name:
        known = ", ".join(METHODS)
        raise ValueError(f'method must be one of {known} or "module:name", received {name!r}')
    own = {key: options.pop(key) for key in list(options) if key not in HYPERPARAMETERS}
    extra = {"method_options": own} if own else {}
    try:
        return {"method": name, "method_digest": _digest(name), **extra, **options}
    except ValueError as error:
        raise ValueError(f"method is none of {', '.join(METHODS)}, and {error}") from None


def _digest(reference: str) -> str:
    """Return a hash of a file's bytes or of a function's source, so that an edit makes other runs of it."""
    if ":" not in reference:
        try:
            return hashlib.sha256(Path(reference).read_bytes()).hexdigest()[:16]
        except OSError as error:
            raise ValueError(f"problem {reference!r} cannot be read: {error.strerror}") from None
    return _source_digest(reference)


@cache
def _source_digest(reference: str) -> str:
    target = resolve(reference)
    if getattr(target, "__module__", "") == methods.__name__:  # what elementwise and arraywise return
        target = next(c.cell_contents for c in target.__closure__ if inspect.isfunction(c.cell_contents))
    try:
        return hashlib.sha256(inspect.getsource(target).encode()).hexdigest()[:16]
    except (OSError, TypeError):
        raise ValueError(f"{reference} has no source to tell its versions apart") from None


def resolve(reference: str) -> Any:
    """Return what ``"module:name"`` names; ValueError if it cannot be imported.

    Examples
    --------
    >>> resolve("math:hypot")(3, 4)
    5.0
    """
    module, _, name = reference.partition(":")
    try:
        target: Any = importlib.import_module(module)
        for part in name.split("."):
            target = getattr(target, part)
    except (ImportError, AttributeError, ValueError):
        raise ValueError(
            f"{reference!r} cannot be imported: it must be a name at the top of a module"
        ) from None
    return target


def check_names(names: set[str]) -> None:
    """Raise ValueError if a configuration of these names cannot be one."""
    unknown = sorted(names - _PROBLEM_NAMES - RUN_NAMES)
    if unknown and "problem" not in names:
        known = sorted(n for n in _PROBLEM_NAMES | RUN_NAMES if not n.endswith("digest"))
        raise ValueError(f"axis {unknown[0]!r} is none of {', '.join(known)}")
    makers = sorted(names & {"case", "spectra", "condition_number", "problem"})
    if len(makers) != 1:
        told = " and ".join(makers) or "none"
        raise ValueError(f"a run needs one of case, spectra, condition_number and problem, received {told}")
    for name in ("method", "eps"):
        if name not in names:
            raise ValueError(f"a run needs {name}, received {', '.join(sorted(names))}")


# -- plain data to objects -----------------------------------------------------------------------------------


def decode(value: Any) -> Any:
    """Return the object that ``{Name: arguments}`` stands for, in lists too; other values as they are."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if isinstance(value, dict):
        if len(value) != 1 or (tag := next(iter(value))) not in _TAGS:
            raise ValueError(
                f"a table must be {{Name: arguments}} of {', '.join(_TAGS)}, received {shown(value)}"
            )
        arguments = value[tag]
        try:
            if isinstance(arguments, dict):
                return _TAGS[tag](**{key: decode(item) for key, item in arguments.items()})
            return _TAGS[tag](*map(decode, arguments if isinstance(arguments, list) else [arguments]))
        except TypeError as error:
            raise ValueError(f"{tag}: {error}") from None
    return value


def seed_of(problem: str) -> int:
    """Return the seed of the problem whose half of the configuration is this canonical JSON.

    Examples
    --------
    >>> seed_of('{"case":"het","seed":0}')
    5375369844733033282
    """
    return int.from_bytes(hashlib.sha256(problem.encode()).digest()[:8]) >> 1


def build_problem(canonical: str) -> BlockQuadratic:
    """Return the problem of one half of a configuration, canonical JSON.

    Raises
    ------
    ValueError
        On malformed values.

    Examples
    --------
    >>> build_problem('{"blocks":4,"condition_number":100,"hessian_spread":10,"sizes":3}')
    <BlockQuadratic: 12 parameters in 4 blocks, norms 10 to 100>
    """
    return _problems(json.loads(canonical), [seed_of(canonical)])[0]


def without_seed(problem: str) -> str:
    """Return this half of a configuration, canonical JSON, with the value of "seed" cut out.

    Problems for which it is the same have one structure.

    Examples
    --------
    >>> without_seed('{"case":"het","seed":12}') == without_seed('{"case":"het","seed":3}')
    True
    """
    before, seed, after = problem.partition('"seed":')
    return before + seed + after.partition(",")[2]


def build_problems(canonicals: Iterable[str]) -> Iterator[BlockQuadratic | Exception]:
    """Yield what `build_problem` returns or raises for each.

    Small ones in a row that differ in nothing but their seed are made together.

    Examples
    --------
    >>> texts = ['{"case":"het","seed":0}', '{"case":"het","seed":1}', '{"case":"cat","seed":1}']
    >>> [type(made).__name__ for made in build_problems(texts)]
    ['BlockQuadratic', 'BlockQuadratic', 'ValueError']
    """
    for _, group in itertools.groupby(canonicals, without_seed):
        texts, begin, count, alike = list(group), 0, 1, False
        while begin < len(texts):
            some = texts[begin : begin + count]
            made: list[Any]
            try:
                options = json.loads(some[0])
                # A user's function may take any time. What was cut out may be the seed of a table within.
                alike = "problem" not in options and "seed" in options and some[0].count('"seed":') == 1
                made = _problems(options, list(map(seed_of, some)))
            except Exception as error:
                made = [error] if len(some) == 1 else list(map(_built_or_error, some))
            yield from made
            begin += count
            if alike and isinstance(made[-1], BlockQuadratic):
                entries = sum(block.size**2 for block in made[-1].blocks)
                count = max(1, min(MOST_TOGETHER, TOGETHER_ENTRIES // entries))


def _built_or_error(canonical: str) -> BlockQuadratic | Exception:
    try:
        return build_problem(canonical)
    except Exception as error:
        return error


def _problems(options: dict[str, Any], seeds: list[int]) -> list[BlockQuadratic]:
    """Return the problem of these options with each of the seeds; a user's with one."""
    options.pop("seed", None)
    digest = options.pop("problem_digest", None)
    if "problem" in options:
        reference = options.pop("problem")
        if _digest(reference) != digest:
            raise ValueError(f"problem {reference!r} is another one here than where the sweep began")
        if ":" not in reference:
            if options:
                raise ValueError(f"a problem from a file has no {min(options)}")
            return [load(reference)]
        maker = resolve(reference)
        (seed,) = seeds
        try:
            inspect.signature(maker).bind(seed=seed, **options)
        except TypeError as error:
            raise ValueError(f"problem {reference!r}: {error}") from None
        made = maker(seed=seed, **options)
        if not isinstance(made, BlockQuadratic):
            raise ValueError(f"{reference} must return a BlockQuadratic, received {shown(made)}")
        return [made]
    options = {name: decode(value) for name, value in options.items()}
    if "rotation" in options:
        if "basis" in options:
            raise ValueError(f"rotation is a basis, received also basis {shown(options['basis'])}")
        options["basis"] = bases.Rotation(options.pop("rotation"))
    try:
        if "case" in options:
            return named_case(options.pop("case"), seed=seeds, **options)
        if "spectra" in options:
            return BlockQuadratic.from_spectra(options.pop("spectra"), seed=seeds, **options)
        return block_family(seed=seeds, **options)
    except TypeError as error:
        raise ValueError(str(error).split("() ")[-1]) from None


@overload
def block_family(
    condition_number: float, *, sizes: Any, seed: int | None = 0, **options: Any
) -> BlockQuadratic: ...
@overload
def block_family(
    condition_number: float, *, sizes: Any, seed: Sequence[int], **options: Any
) -> list[BlockQuadratic]: ...
def block_family(
    condition_number: float,
    *,
    sizes: Any,
    blocks: int | None = None,
    hessian_spread: float = 1.0,
    gradient_spread: float | None = None,
    correlation: float = 1.0,
    basis: Any = "haar",
    seed: int | Sequence[int] | None = 0,
    **options: Any,
) -> BlockQuadratic | list[BlockQuadratic]:
    r"""Return a problem between homogeneous and heterogeneous, at one condition number.

    The eigenvalues lie from 1 to :math:`\kappa`. The norms :math:`\|H_b\|` are spaced evenly on a log scale
    over a factor h; within a block the spectrum is log-uniform over :math:`\kappa/h`. At h = 1 all
    blocks are alike and span the whole range; at :math:`h = \kappa` each has one eigenvalue of its own.

    Parameters
    ----------
    condition_number : float >= 1
        :math:`\kappa`.
    sizes : int or list of int
        P_b; one number with `blocks`.
    blocks : int, optional
        B.
    hessian_spread : float in [1, condition_number]
        :math:`h = \max_b\|H_b\| / \min_b\|H_b\|`.
    gradient_spread : float >= 1, optional
        :math:`\max_b\|g_b\|/\min_b\|g_b\|` at the start for correlation 1 and -1; the standard deviation of
        :math:`\log\|g_b\|` depends on it alone. Without it, the start is N(0, I).
    correlation : float in [-1, 1]
        Correlation of :math:`\log\|g_b\|` with :math:`\log\|H_b\|`, exactly.
    basis, seed, **options
        Of `BlockQuadratic.from_spectra`.

    Returns
    -------
    BlockQuadratic
        Of a sequence of seeds, a list.

    Raises
    ------
    ValueError
        On a value out of range.

    Examples
    --------
    >>> p = block_family(100, sizes=2, blocks=5, hessian_spread=10, gradient_spread=10, correlation=0, seed=1)
    >>> norms = [np.linalg.norm(g) for g in p.split(p.gradient(p.start))]
    >>> bool(abs(np.corrcoef(np.log(norms), np.log([b.norm for b in p.blocks]))[0, 1]) < 1e-12)
    True
    """
    if blocks is not None:
        if isinstance(blocks, bool) or not isinstance(blocks, int) or blocks < 1 or isinstance(sizes, list):
            raise ValueError(
                f"blocks must be an integer >= 1 with one size, received {blocks!r} and {sizes!r}"
            )
        sizes = [sizes] * blocks
    if not isinstance(sizes, list) or not sizes:
        raise ValueError(f"sizes must be a list, or one number with blocks, received {shown(sizes)}")
    _in_range(condition_number, "condition_number", 1.0, math.inf)
    _in_range(hessian_spread, "hessian_spread", 1.0, condition_number)
    _in_range(correlation, "correlation", -1.0, 1.0)
    levels = np.linspace(-1.0, 0.0, len(sizes)) if len(sizes) > 1 else np.zeros(1)
    top = condition_number * hessian_spread**levels
    within = condition_number / hessian_spread
    if gradient_spread is None:
        if correlation != 1.0:
            raise ValueError(f"correlation needs gradient_spread, received {correlation} without it")
    else:
        _in_range(gradient_spread, "gradient_spread", 1.0, math.inf)
        if abs(correlation) != 1.0 and is_several(seed):
            options |= {"hessian_spread": hessian_spread, "gradient_spread": gradient_spread, "basis": basis}
            options |= {"correlation": correlation, "sizes": sizes}
            return [
                block_family(condition_number, seed=one, **options) for one in map(check_problem_seed, seed)
            ]  # each its own norms
        options["gradient_norms"] = list(
            gradient_spread ** _correlated(levels - levels.mean(), correlation, seed)
        )
    laws = [LogUniform(high / within, high) for high in top.tolist()]
    return BlockQuadratic.from_spectra(laws, sizes=sizes, basis=basis, seed=seed, **options)


def _correlated(levels: np.ndarray, correlation: float, seed: Any) -> np.ndarray:
    """Return numbers of mean 0 and the norm of `levels` (mean 0) that have this correlation with them."""
    if abs(correlation) == 1.0:
        return correlation * levels
    if levels.size < 3:
        raise ValueError(f"a correlation of {correlation} needs 3 blocks or more, received {levels.size}")
    own = None if check_problem_seed(seed) is None else [seed, levels.size]
    other = np.random.Generator(np.random.Philox(own)).normal(size=levels.size)
    other -= other.mean()
    other -= (other @ levels) / (levels @ levels) * levels
    other *= np.linalg.norm(levels) / np.linalg.norm(other)
    return correlation * levels + math.sqrt(1.0 - correlation**2) * other


def _in_range(value: Any, what: str, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{what} must be a number from {low:g} to {high:g}, received {shown(value)}")


@dataclass(frozen=True)
class Setting:
    """The run's half of a configuration as objects."""

    method: Method
    stop: Stop
    max_iterations: int
    statistics: tuple[str, ...]
    problem_statistics: tuple[str, ...]
    noise: dict[str, Any]

    def noisy(self, problem: BlockQuadratic) -> BlockQuadratic:
        """Return the problem with the run's gradient noise; its own where the run names none."""
        return problem.with_noise(**self.noise) if self.noise else problem


#: Name -> argument of `BlockQuadratic.with_noise`.
_NOISE = {"noise": "noise", "noise_law": "law", "batch": "batch"}


def _check_noise(noise: dict[str, Any]) -> None:
    """Raise ValueError for noise that no problem can have."""
    if noise:
        if "noise" not in noise:
            raise ValueError(f"a noise_law or batch needs noise, received {shown(noise)}")
        level = noise["noise"]
        size = max(1, len(level)) if isinstance(level, list) else 1
        BlockQuadratic.from_spectra([[1.0]] * size, start=np.ones(size)).with_noise(**noise)


def build_setting(canonical: str) -> Setting:
    """Return the objects of the run's half of a configuration, canonical JSON.

    Raises
    ------
    ValueError
        On malformed values.

    Examples
    --------
    >>> print(build_setting('{"eps":0.001,"learning_rate":"lambda_g","method":"gd"}').stop)
    ||g||_1 <= 0.001 * P
    """
    options: dict[str, Any] = json.loads(canonical)
    kind, eps, relative = options.pop("stop", "l1"), options.pop("eps"), options.pop("relative", False)
    if kind != "gap" and kind not in STOPS:
        raise ValueError(f"stop must be one of {', '.join([*STOPS, 'gap'])}, received {kind!r}")
    stop: Stop = Gap(eps, relative) if kind == "gap" else GradientNorm(eps, STOPS[kind], relative)
    cap = options.pop("max_iterations", 10**6)
    if isinstance(cap, bool) or not isinstance(cap, int) or cap < 0:
        raise ValueError(f"max_iterations must be an integer >= 0, received {shown(cap)}")
    names = options.pop("statistics", [])
    if not isinstance(names, list):
        raise ValueError(f"statistics must be a list of names, received {shown(names)}")
    for name in names:
        if name not in STATISTICS and name not in PROBLEM_STATISTICS:
            known = ", ".join([*STATISTICS, *PROBLEM_STATISTICS])
            raise ValueError(f"statistics must be among {known}, received {shown(name)}")
    noise = {key: options.pop(name) for name, key in _NOISE.items() if name in options}
    _check_noise(noise)
    name, digest = options.pop("method"), options.pop("method_digest", None)
    if name in METHODS:
        maker: Any = METHODS[name]
    else:
        maker = resolve(name)
        if _digest(name) != digest:
            raise ValueError(f"method {name!r} is another one here than where the sweep began")
    options |= options.pop("method_options", {})
    if "learning_rate" not in options:
        raise ValueError(f"method {name!r} needs a learning_rate")
    if isinstance(options["learning_rate"], dict):
        options["learning_rate"] = decode(options["learning_rate"])
    try:
        method = maker(**options)
    except TypeError as error:
        raise ValueError(f"method {name!r}: {str(error).split('() ')[-1]}") from None
    if not isinstance(method, Method):
        raise ValueError(f"{name} must be a method, received {shown(method)}")
    own = tuple(n for n in names if n in PROBLEM_STATISTICS)
    return Setting(method, stop, cap, tuple(n for n in names if n not in own), own, noise)
