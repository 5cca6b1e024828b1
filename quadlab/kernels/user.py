"""A user's method as compiled code: the loop is generated around the user's function and compiled alone.

The kernels stay as they are in the cache; what is compiled is the user's function inside one loop over the
coordinates (and one over coordinates and lanes), with the engine's rule for tiny state values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quadlab.kernels.elements import flush
from quadlab.kernels.entry import compile_function, once
from quadlab.kernels.pointers import USER_LANES, USER_SINGLE, address_of

_ELEMENTWISE = """
def single(t, g, x, anchor, d, work, state, params, offsets):
    for i in range(g.size):
        {targets_single} = rule(g[i], x[i] + anchor[i], t{states_single}{hyper_single})
        {flush_single}

def lanes(n, t, g, x, anchor, d, state, params, offsets):
    for i in range(g.shape[0]):
        for w in range(n):
            {targets_lanes} = rule(g[i, w], x[i, w] + anchor[i, w], t[w]{states_lanes}{hyper_lanes})
            {flush_lanes}
"""

_ARRAYWISE = """
def single(t, g, x, anchor, d, work, state, params, offsets):
    for i in range(g.size):
        work[i] = x[i] + anchor[i]
    rule(g, work, t, d{states}, offsets{hyper})
    for k in range(state.shape[0]):
        for i in range(g.size):
            state[k, i] = flush(state[k, i])
"""


def _elementwise_source(states: int, parameters: int) -> str:
    names = [f"s{k}" for k in range(states)]
    targets = ", ".join(["{d}", *names])
    fields: dict[str, str] = {}
    for path, at, column in (("single", "i", ""), ("lanes", "i, w", ", w")):
        fields["targets_" + path] = targets.format(d=f"d[{at}]")
        fields["states_" + path] = "".join(f", state[{k}, {at}]" for k in range(states))
        fields["hyper_" + path] = "".join(f", params[{k}{column}]" for k in range(parameters))
        fields["flush_" + path] = (
            "; ".join(f"state[{k}, {at}] = flush(s{k})" for k in range(states)) or "pass"
        )
    return _ELEMENTWISE.format(**fields)


def _arraywise_source(states: int, parameters: int) -> str:
    return _ARRAYWISE.format(
        states="".join(f", state[{k}]" for k in range(states)),
        hyper="".join(f", params[{k}]" for k in range(parameters)),
    )


@once
def compile_rule(
    rule: Callable[..., Any], states: int, parameters: int, is_elementwise: bool
) -> tuple[int, int, Any]:
    """Return the addresses for the single path and for lanes (0 for an arraywise rule), and what holds them.

    Raises
    ------
    ValueError
        If Numba cannot compile the function, with the first line of its reason.
    """
    import numba
    from numba.core.errors import NumbaError

    source = (_elementwise_source if is_elementwise else _arraywise_source)(states, parameters)
    namespace: dict[str, Any] = {
        "rule": rule if hasattr(rule, "py_func") else numba.njit(rule),
        "flush": flush,
    }
    exec(source, namespace)
    try:
        single = compile_function(namespace["single"], USER_SINGLE, cache=False)
        lanes = compile_function(namespace["lanes"], USER_LANES, cache=False) if is_elementwise else None
    except NumbaError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = next((line for line in lines if not line.startswith(("Failed in", "During"))), "unknown")
        raise ValueError(f"method {rule.__name__} does not compile: {reason}") from None
    at_lanes = 0 if lanes is None else address_of(lanes, USER_LANES)
    return address_of(single, USER_SINGLE), at_lanes, (single, lanes)
