r"""The methods: hyperparameters and a learning rate, nothing else.

Every update is :math:`w \leftarrow w - \eta_t d_t`; a method gives the direction :math:`d_t` from the
gradients so far, its learning rate (steps.py) gives :math:`\eta_t`.

================  =========================================================================================
`GD`              :math:`d = g`; with momentum :math:`v \leftarrow \mu v + g`, :math:`d = v`
                  (Nesterov: :math:`d = g + \mu v`), torch's convention
`SignSGD`         :math:`d = \mathrm{sign}(g)`, sign(0) = 0; with momentum (Signum)
                  :math:`v \leftarrow \beta v + (1-\beta) g`, :math:`d = \mathrm{sign}(v)`
`NormalizedGD`    :math:`d = g/\|g\|_2`
`SteepestDescent` :math:`d = \|g\|_* u`, u the unit vector of a norm that maximises :math:`g\cdot u`
`Adam`            :math:`d = \hat m/(\sqrt{\hat v} + \epsilon)`, 0/0 := 0, and its relatives `AdamW`,
                  `RMSProp`, `FrozenAdam`; `AdamMini` has one second moment a block
`elementwise`     a user's method, from a function of one coordinate
`arraywise`       a user's method, from a function of the whole gradient and the block offsets
================  =========================================================================================
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from quadlab._arrays import shown
from quadlab.kernels import codes
from quadlab.steps import Schedule, check_learning_rate
from quadlab.stopping import as_float


def _fraction(value: Any, what: str, closed: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise ValueError(f"{what} must be a number, received {shown(value)}")
    if not (0.0 <= value < 1.0 or (closed and value == 1.0)):
        raise ValueError(f"{what} must be in [0, 1{']' if closed else ')'}, received {shown(value)}")
    return float(value)


def _nonnegative(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise ValueError(f"{what} must be a number, received {shown(value)}")
    number = as_float(value)
    if not 0.0 <= number < math.inf:
        raise ValueError(f"{what} must be finite and >= 0, received {shown(value)}")
    return number


def _flag(value: Any, what: str) -> None:
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{what} must be True or False, received {shown(value)}")


@dataclass(frozen=True)
class Method:
    """What all methods share.

    Parameters
    ----------
    learning_rate : float > 0, Schedule, callable, or the name of a rule
        See `quadlab.steps`.
    """

    learning_rate: float | str | Schedule | Callable[[int], float]

    def __post_init__(self) -> None:
        self._check()
        rate = check_learning_rate(self.learning_rate, self.families, str(self))
        object.__setattr__(self, "learning_rate", rate)

    def _check(self) -> None:
        """Convert and check the hyperparameters."""

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def family(self) -> str:
        """The family of bounds, such as "gd", "signsgd", "adam" or "user"."""
        raise NotImplementedError

    @property
    def families(self) -> tuple[str, ...]:
        """The families of learning-rate rules (steps.RULES): none beside "all" with momentum."""
        return (self.family,)

    @property
    def code(self) -> int:
        """The kernels' code of the direction."""
        raise NotImplementedError

    @property
    def n_states(self) -> int:
        """Vectors of state a run keeps beside the point."""
        return 0

    def parameters(self) -> dict[int, float]:
        """Return the hyperparameters by the kernels' index."""
        return {}

    @property
    def name(self) -> str:
        """Name in tables, on the command line and in JSON."""
        return self.family

    def __str__(self) -> str:
        shown_fields = [
            f"{f.name}={getattr(self, f.name)!r}"
            for f in fields(self)
            if f.name != "learning_rate" and getattr(self, f.name) != f.default
        ]
        return f"{type(self).__name__}({', '.join([str(self.learning_rate), *shown_fields])})"


@dataclass(frozen=True)
class GD(Method):
    r"""Gradient descent, :math:`w \leftarrow w - \eta g`, with momentum in torch's convention.

    Parameters
    ----------
    learning_rate : float > 0, Schedule or rule
        Rules: "lemma" (alias "lambda_g"), "line_search", "optimal".
    momentum : float in [0, 1)
        :math:`\mu` of :math:`v \leftarrow \mu v + g`, :math:`d = v`.
    nesterov : bool
        :math:`d = g + \mu v` instead.

    Raises
    ------
    ValueError
        On a value out of range, a rule of another method, or nesterov without momentum.

    Examples
    --------
    >>> GD("lambda_g")
    GD(learning_rate='lambda_g', momentum=0.0, nesterov=False)
    """

    momentum: float = 0.0
    nesterov: bool = False

    def _check(self) -> None:
        self._set(momentum=_fraction(self.momentum, "momentum"))
        _flag(self.nesterov, "nesterov")
        if self.nesterov and self.momentum == 0.0:
            raise ValueError("nesterov needs momentum > 0, received momentum 0.0")

    @property
    def family(self) -> str:
        """Always "gd"."""
        return "gd"

    @property
    def families(self) -> tuple[str, ...]:
        """Rules named for plain GD do not go with momentum."""
        return ("gd",) if self.momentum == 0.0 else ()

    @property
    def code(self) -> int:
        """The kernels' code."""
        return codes.GD if self.momentum == 0.0 else codes.GD_NESTEROV if self.nesterov else codes.GD_MOMENTUM

    @property
    def n_states(self) -> int:
        """One with momentum."""
        return 0 if self.momentum == 0.0 else 1

    def parameters(self) -> dict[int, float]:
        """Return the momentum."""
        return {codes.P_BETA1: self.momentum}


@dataclass(frozen=True)
class SignSGD(Method):
    r"""Sign descent, :math:`w \leftarrow w - \eta\,\mathrm{sign}(g)`; with momentum, Signum.

    Parameters
    ----------
    learning_rate : float > 0, Schedule or rule
        Rules: "lemma" (alias "lambda_p"), "m_star", "line_search", "optimal".
    momentum : float in [0, 1)
        :math:`\beta` of :math:`v \leftarrow \beta v + (1-\beta) g`, :math:`d = \mathrm{sign}(v)`.

    Raises
    ------
    ValueError
        On a value out of range or a rule of another method.

    References
    ----------
    bernstein2018, balles2020.

    Examples
    --------
    >>> SignSGD(1e-3).momentum
    0.0
    """

    momentum: float = 0.0

    def _check(self) -> None:
        self._set(momentum=_fraction(self.momentum, "momentum"))

    @property
    def family(self) -> str:
        """Always "signsgd"."""
        return "signsgd"

    @property
    def families(self) -> tuple[str, ...]:
        """Rules named for plain SignSGD do not go with momentum."""
        return ("signsgd",) if self.momentum == 0.0 else ()

    @property
    def code(self) -> int:
        """The kernels' code."""
        return codes.SIGN if self.momentum == 0.0 else codes.SIGNUM

    @property
    def n_states(self) -> int:
        """One with momentum."""
        return 0 if self.momentum == 0.0 else 1

    def parameters(self) -> dict[int, float]:
        """Return the momentum."""
        return {codes.P_BETA1: self.momentum}


@dataclass(frozen=True)
class NormalizedGD(Method):
    r"""Normalised gradient descent, :math:`w \leftarrow w - \eta g/\|g\|_2`.

    Parameters
    ----------
    learning_rate : float > 0, Schedule or rule
        Rules: "lemma", "line_search".

    Examples
    --------
    >>> NormalizedGD(0.1).family
    'normalized_gd'
    """

    @property
    def family(self) -> str:
        """Always "normalized_gd"."""
        return "normalized_gd"

    @property
    def code(self) -> int:
        """The kernels' code."""
        return codes.NORMALIZED


@dataclass(frozen=True)
class Adam(Method):
    r"""Adam, :math:`d = \hat m/(\sqrt{\hat v} + \epsilon)` with 0/0 := 0.

    :math:`m \leftarrow \beta_1 m + (1-\beta_1) g`, :math:`v \leftarrow \beta_2 v + (1-\beta_2) g^2`,
    :math:`\hat m = m/(1-\beta_1^{t+1})`, :math:`\hat v = v/(1-\beta_2^{t+1})`. With
    :math:`\beta_2 = 1` the preconditioner is frozen: v stays :math:`g_0^2` (zhang2024, Theorem 1).
    Adam(0, 0, 0) is SignSGD, bit for bit while :math:`|g_i|` is 0 or in 1e-145..1e154
    (squares below 1e-290 become 0). The corrections multiply, as :math:`m \cdot (1/(1-\beta_1^{t+1}))`.

    Parameters
    ----------
    learning_rate : float > 0, Schedule or rule
        Rules: "lemma", "line_search"; "optimal" with a frozen preconditioner, beta1 = 0 and epsilon = 0.
    beta1 : float in [0, 1)
    beta2 : float in [0, 1]
    epsilon : float >= 0
    bias_correction : bool
        False: :math:`\hat m = m`, :math:`\hat v = v`.
    weight_decay : float >= 0
        Decoupled, as in AdamW: adds ``weight_decay * w`` to d.

    Raises
    ------
    ValueError
        On a value out of range or a rule that does not go with it.

    Examples
    --------
    >>> Adam(1e-3, beta1=0.0, beta2=0.0, epsilon=0.0).frozen
    False
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    bias_correction: bool = True
    weight_decay: float = 0.0

    def _check(self) -> None:
        self._set(
            beta1=_fraction(self.beta1, "beta1"),
            beta2=_fraction(self.beta2, "beta2", closed=True),
            epsilon=_nonnegative(self.epsilon, "epsilon"),
            weight_decay=_nonnegative(self.weight_decay, "weight_decay"),
        )
        _flag(self.bias_correction, "bias_correction")

    @property
    def frozen(self) -> bool:
        """Whether the preconditioner stays that of the first gradient."""
        return self.beta2 == 1.0

    @property
    def family(self) -> str:
        """Always "adam"."""
        return "adam"

    @property
    def families(self) -> tuple[str, ...]:
        """The best constant is known for GD in disguise only."""
        plain = self.frozen and self.beta1 == 0.0 and self.epsilon == 0.0 and self.weight_decay == 0.0
        return ("adam", "frozen_adam") if plain else ("adam",)

    @property
    def code(self) -> int:
        """The kernels' code."""
        return codes.FROZEN_ADAM if self.frozen else codes.ADAM

    @property
    def n_states(self) -> int:
        """Two: m and v."""
        return 2

    def parameters(self) -> dict[int, float]:
        """Return the hyperparameters."""
        return {
            codes.P_BETA1: self.beta1,
            codes.P_BETA2: self.beta2,
            codes.P_EPSILON: self.epsilon,
            codes.P_DECAY: self.weight_decay,
            codes.P_BIAS: float(self.bias_correction),
        }


def AdamW(learning_rate: Any, weight_decay: float = 0.01, **options: Any) -> Adam:
    """Return Adam with decoupled weight decay (torch's default 0.01).

    Examples
    --------
    >>> AdamW(1e-3).weight_decay
    0.01
    """
    return Adam(learning_rate, weight_decay=weight_decay, **options)


def RMSProp(learning_rate: Any, beta2: float = 0.99, epsilon: float = 1e-8) -> Adam:
    r"""Return RMSProp, :math:`d = g/(\sqrt v + \epsilon)`: Adam without momentum and bias correction.

    Examples
    --------
    >>> RMSProp(1e-2).beta1
    0.0
    """
    return Adam(learning_rate, beta1=0.0, beta2=beta2, epsilon=epsilon, bias_correction=False)


def FrozenAdam(learning_rate: Any, beta1: float = 0.0) -> Adam:
    r"""Return Adam with the preconditioner :math:`D = \mathrm{diag}|g(w_0)|` of the start, no correction.

    References
    ----------
    zhang2024, Theorem 1.

    Examples
    --------
    >>> FrozenAdam("optimal").frozen
    True
    """
    return Adam(learning_rate, beta1=beta1, beta2=1.0, epsilon=0.0, bias_correction=False)


@dataclass(frozen=True)
class FunctionMethod(Method):
    """A method whose direction is a Python function, compiled on its own and called by the engine."""

    def function(self) -> Callable[..., Any]:
        """Return the function, of the form that `elementwise` or `arraywise` describes."""
        raise NotImplementedError

    @property
    def hyperparameters(self) -> tuple[tuple[str, float], ...]:
        """The function's last arguments, by name."""
        return ()

    @property
    def is_elementwise(self) -> bool:
        """Whether the function is of one coordinate, and so runs in lanes."""
        return False

    @property
    def code(self) -> int:
        """The kernels' code."""
        return codes.USER

    def parameters(self) -> dict[int, float]:
        """Return the hyperparameters in the order of the function's signature."""
        return {codes.P_USER + k: value for k, (_, value) in enumerate(self.hyperparameters)}


def _steepest_l2(g, w, t, d, offsets):
    for i in range(g.size):
        d[i] = g[i]


def _steepest_linf(g, w, t, d, offsets):
    dual = 0.0
    for i in range(g.size):
        dual += abs(g[i])
    for i in range(g.size):
        d[i] = dual * np.sign(g[i])


def _steepest_block(g, w, t, d, offsets):
    dual = 0.0
    for b in range(offsets.size - 1):
        square = 0.0
        for i in range(offsets[b], offsets[b + 1]):
            square += g[i] * g[i]
        length = math.sqrt(square)
        dual += length
        for i in range(offsets[b], offsets[b + 1]):
            d[i] = g[i] / length if length > 0.0 else 0.0
    for i in range(g.size):
        d[i] *= dual


_STEEPEST = {"l2": _steepest_l2, "linf": _steepest_linf, "block": _steepest_block}


@dataclass(frozen=True)
class SteepestDescent(FunctionMethod):
    r"""Steepest descent under a norm, :math:`d = \|g\|_*\, u`, :math:`u = \arg\max_{\|u\| \le 1} g\cdot u`.

    ============  ====================================  ===================================  ================
    norm          :math:`\|u\|`                         dual norm :math:`\|g\|_*`             d
    ============  ====================================  ===================================  ================
    ``"l2"``      :math:`\|u\|_2`                       :math:`\|g\|_2`                      g: GD
    ``"linf"``    :math:`\max_i |u_i|`                  :math:`\|g\|_1`                      sign descent,
                                                                                             scaled
    ``"block"``   :math:`\max_b \|u_b\|_2`              :math:`\sum_b \|g_b\|_2`             :math:`\|g\|_*
                                                                                             g_b/\|g_b\|_2`
    ============  ====================================  ===================================  ================

    The lemma's step and the line search do not see the factor :math:`\|g\|_*`: with them "linf" is `SignSGD`.
    With a constant step it makes d vanish with g, so that the run converges.

    Parameters
    ----------
    learning_rate : float > 0, Schedule or rule
        Rules: "lemma", "line_search".
    norm : {"l2", "linf", "block"}

    Raises
    ------
    ValueError
        On another norm, or a rule of another method.

    References
    ----------
    Boyd and Vandenberghe, Convex Optimization, section 9.4; balles2020.

    Examples
    --------
    >>> print(SteepestDescent("lemma", norm="block"))
    SteepestDescent(lemma, norm='block')
    """

    norm: str = "l2"

    def _check(self) -> None:
        if not isinstance(self.norm, str) or self.norm not in _STEEPEST:
            raise ValueError(f"norm must be one of {', '.join(_STEEPEST)}, received {shown(self.norm)}")

    @property
    def family(self) -> str:
        """Always "steepest"."""
        return "steepest"

    def function(self) -> Callable[..., Any]:
        """Return the direction under the norm."""
        return _STEEPEST[self.norm]


def _adam_mini(g, w, t, d, m, v, offsets, beta1, beta2, epsilon):
    inverse1 = 1.0 / (1.0 - beta1 ** (t + 1))
    inverse2 = 1.0 / (1.0 - beta2 ** (t + 1))
    for b in range(offsets.size - 1):
        first, end = offsets[b], offsets[b + 1]
        square = 0.0
        for i in range(first, end):
            m[i] = beta1 * m[i] + (1.0 - beta1) * g[i]
            square += g[i] * g[i]
        # the block's second moment stands at its first coordinate
        v[first] = beta2 * v[first] + (1.0 - beta2) * (square / (end - first))
        denominator = math.sqrt(v[first] * inverse2) + epsilon
        for i in range(first, end):
            d[i] = m[i] * inverse1 / denominator if denominator > 0.0 else 0.0


@dataclass(frozen=True)
class AdamMini(FunctionMethod):
    r"""Adam with one second moment a block, :math:`d_b = \hat m_b/(\sqrt{\hat v_b} + \epsilon)`, 0/0 := 0.

    :math:`m \leftarrow \beta_1 m + (1-\beta_1) g`,
    :math:`v_b \leftarrow \beta_2 v_b + (1-\beta_2) \|g_b\|_2^2/P_b`, both bias-corrected; the blocks are the
    problem's. With beta1 = beta2 = epsilon = 0 it is block-normalised GD,
    :math:`d_b = \sqrt{P_b}\, g_b/\|g_b\|_2`.

    Parameters
    ----------
    learning_rate : float > 0, Schedule or rule
        Rules: "lemma", "line_search".
    beta1, beta2 : float in [0, 1)
    epsilon : float >= 0

    Raises
    ------
    ValueError
        On a value out of range or a rule of another method.

    References
    ----------
    Y. Zhang et al., Adam-mini: Use Fewer Learning Rates To Gain More, arXiv 2406.16793.

    Examples
    --------
    >>> print(AdamMini(1e-3, beta1=0.0))
    AdamMini(0.001, beta1=0.0)
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def _check(self) -> None:
        self._set(
            beta1=_fraction(self.beta1, "beta1"),
            beta2=_fraction(self.beta2, "beta2"),
            epsilon=_nonnegative(self.epsilon, "epsilon"),
        )

    @property
    def family(self) -> str:
        """Always "adam_mini"."""
        return "adam_mini"

    def function(self) -> Callable[..., Any]:
        """Return the direction."""
        return _adam_mini

    @property
    def hyperparameters(self) -> tuple[tuple[str, float], ...]:
        """beta1, beta2 and epsilon."""
        return (("beta1", self.beta1), ("beta2", self.beta2), ("epsilon", self.epsilon))

    @property
    def n_states(self) -> int:
        """Two: m, and v at the first coordinate of each block."""
        return 2


@dataclass(frozen=True)
class UserMethod(FunctionMethod):
    """A user's method; made by calling what `elementwise` or `arraywise` return.

    Attributes
    ----------
    rule : callable
        The user's function.
    hyperparameters : tuple of (str, float)
    states : int
        Vectors of state.
    is_elementwise : bool
    """

    rule: Callable[..., Any]
    hyperparameters: tuple[tuple[str, float], ...] = ()
    states: int = 0
    is_elementwise: bool = True

    @property
    def family(self) -> str:
        """Always "user"."""
        return "user"

    @property
    def name(self) -> str:
        """The name of the user's function."""
        return self.rule.__name__

    def function(self) -> Callable[..., Any]:
        """Return the user's function."""
        return self.rule

    @property
    def n_states(self) -> int:
        """As the function declares."""
        return self.states

    def __str__(self) -> str:
        options = "".join(f", {name}={value:g}" for name, value in self.hyperparameters)
        return f"{self.name}({self.learning_rate}{options})"


def elementwise(rule: Callable[..., Any]) -> Callable[..., UserMethod]:
    r"""Make a method of a function of one coordinate; it is compiled into the engine's loop.

    The function is called as ``rule(g, w, t, *state, **hyperparameters)`` with scalars: the gradient, the
    parameter, the number t of updates made before, the state (all 0 at first) and the hyperparameters.
    Arguments without a default after t are the state, those with one are hyperparameters. It returns the
    direction d and the new state: ``return d`` without state, ``return d, m`` with one, and so on. The
    update is :math:`w \leftarrow w - \eta d`.

    Parameters
    ----------
    rule : callable
        It must be what Numba compiles: scalar arithmetic, ``math`` and NumPy functions.

    Returns
    -------
    callable
        ``(learning_rate, **hyperparameters) -> UserMethod``.

    Raises
    ------
    ValueError
        If the signature is of another form.

    Examples
    --------
    >>> @elementwise
    ... def Lion(g, w, t, m, beta1=0.9, beta2=0.99):
    ...     return np.sign(beta1 * m + (1 - beta1) * g), beta2 * m + (1 - beta2) * g
    >>> print(Lion(1e-3, beta1=0.95))
    Lion(0.001, beta1=0.95, beta2=0.99)
    """
    states, defaults = _signature(rule, ("g", "w", "t"))
    return _factory(rule, len(states), defaults, True)


def arraywise(rule: Callable[..., Any]) -> Callable[..., UserMethod]:
    r"""Make a method of a function of whole vectors, for methods that are not elementwise.

    The function is called as ``rule(g, w, t, d, *state, offsets, **hyperparameters)``: it writes the
    direction into d and the new state into the state vectors, all arrays of shape (P,). Block b
    holds the coordinates ``offsets[b]`` to ``offsets[b+1]``. Arguments between d and offsets are state
    vectors (all 0 at first).

    Parameters
    ----------
    rule : callable
        It must be what Numba compiles.

    Returns
    -------
    callable
        ``(learning_rate, **hyperparameters) -> UserMethod``.

    Raises
    ------
    ValueError
        If the signature is of another form.

    Examples
    --------
    >>> @arraywise
    ... def BlockNormalized(g, w, t, d, offsets):
    ...     for b in range(offsets.size - 1):
    ...         block = slice(offsets[b], offsets[b + 1])
    ...         d[block] = g[block] / np.sqrt(np.sum(g[block] ** 2))
    >>> BlockNormalized(0.1).states
    0
    """
    states, defaults = _signature(rule, ("g", "w", "t", "d"))
    if not states or states[-1] != "offsets":
        raise ValueError(
            f"{_name(rule)} must take (g, w, t, d, *state, offsets, ...), received {tuple(states)} after d"
        )
    return _factory(rule, len(states) - 1, defaults, False)


def _name(rule: Any) -> str:
    return getattr(rule, "__name__", "rule")


def _signature(rule: Any, leading: tuple[str, ...]) -> tuple[list[str], dict[str, float]]:
    if not callable(rule):
        raise ValueError(f"a method is made of a function, received {shown(rule)}")
    items = list(inspect.signature(rule).parameters.values())
    names = tuple(p.name for p in items)
    if names[: len(leading)] != leading or any(p.kind is not p.POSITIONAL_OR_KEYWORD for p in items):
        raise ValueError(
            f"{_name(rule)} must take ({', '.join(leading)}, ...), received ({', '.join(names)})"
        )
    rest = items[len(leading) :]
    defaults = {p.name: p.default for p in rest if p.default is not p.empty}
    if len(defaults) > codes.MAX_USER_PARAMETERS:
        raise ValueError(
            f"{_name(rule)} may have {codes.MAX_USER_PARAMETERS} hyperparameters, received {len(defaults)}"
        )
    return [p.name for p in rest if p.default is p.empty], defaults


def _factory(
    rule: Callable[..., Any], states: int, defaults: dict[str, float], is_elementwise: bool
) -> Callable[..., UserMethod]:
    def make(learning_rate: Any, **hyperparameters: Any) -> UserMethod:
        unknown = set(hyperparameters) - set(defaults)
        if unknown:
            raise ValueError(f"{_name(rule)} has no hyperparameter {sorted(unknown)[0]!r}")
        values = []
        for name, value in {**defaults, **hyperparameters}.items():
            if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
                raise ValueError(f"{_name(rule)}: {name} must be a number, received {shown(value)}")
            values.append((name, float(value)))
        return UserMethod(learning_rate, rule, tuple(values), states, is_elementwise)

    make.__name__ = make.__qualname__ = _name(rule)
    make.__doc__ = rule.__doc__
    return make


#: Names of the built-in methods, on the command line and in sweeps.
METHODS: dict[str, Callable[..., Method]] = {
    "gd": GD,
    "signsgd": SignSGD,
    "normalized_gd": NormalizedGD,
    "adam": Adam,
    "adamw": AdamW,
    "rmsprop": RMSProp,
    "frozen_adam": FrozenAdam,
    "adam_mini": AdamMini,
    "steepest": SteepestDescent,
}


def split_method(text: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the options of ``NAME:LEARNING_RATE[:OPTION=VALUE...]``.

    Raises
    ------
    ValueError
        If an option is not NAME=VALUE.

    Examples
    --------
    >>> split_method("adam:0.01:beta2=0.99:bias_correction=false")
    ('adam', {'learning_rate': 0.01, 'beta2': 0.99, 'bias_correction': False})
    """
    name, *rest = text.strip().split(":")
    options = {"learning_rate": _word(rest[0])} if rest else {}
    for item in rest[1:]:
        key, separator, value = item.partition("=")
        if not separator:
            raise ValueError(f"an option of a method is NAME=VALUE, received {item!r}")
        options[key.strip()] = _word(value.strip())
    return name, options


def parse_method(text: str) -> Method:
    """Return the method that ``NAME:LEARNING_RATE[:OPTION=VALUE...]`` names.

    Raises
    ------
    ValueError
        If there is no such method or option, the learning rate is missing, or a value is out of range.

    Examples
    --------
    >>> print(parse_method("adam:0.01:beta2=0.99"))
    Adam(0.01, beta2=0.99)
    """
    name, options = split_method(text)
    if name not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, received {name!r}")
    if "learning_rate" not in options:
        raise ValueError(f"a method is NAME:LEARNING_RATE, received {text!r}")
    try:
        return METHODS[name](**options)
    except TypeError as error:
        raise ValueError(f"{text!r}: {str(error).split('__init__() ')[-1]}") from None


def _word(text: str) -> float | bool | str:
    if text in ("true", "false"):
        return text == "true"
    try:
        return float(text)
    except ValueError:
        return text


def check_method(method: Any) -> Method:
    """Return `method` if it is one, else raise ValueError."""
    if not isinstance(method, Method):
        raise ValueError(f"method must be GD, SignSGD, Adam or another Method, received {shown(method)}")
    return method
