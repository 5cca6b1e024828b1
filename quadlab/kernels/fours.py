"""Four doubles as one value of compiled code: of four blocks, or of four runs, in one vector register.

`load` and `store` move four neighbours of an array, counted in C order. The operators ``+ - * /``, ``abs``,
``<``, ``>`` and ``==`` work entry by entry, on a four and a double too; so do the functions here, which take
doubles as well: what is written with them serves both. Every operation is rounded by itself. Uncompiled, four
doubles are an array.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from quadlab.kernels.pointers import COMPILING
from quadlab.kernels.vectors import Vectors

LENGTH = 4


class Four(types.Type):
    """Four doubles."""


class FourTruths(types.Type):
    """What a comparison of fours gives."""


FOUR, TRUTHS = Four("four"), FourTruths("four_truths")


def _model(kind: Any, entry: Any) -> None:
    """Make a type a vector of LLVM's."""

    @register_model(kind)
    class Model(models.PrimitiveModel):
        def __init__(self, manager: Any, kind: Any) -> None:
            super().__init__(manager, kind, ir.VectorType(entry, LENGTH))


_model(Four, ir.DoubleType())
_model(FourTruths, ir.IntType(1))


def _vector(builder: Any, value: Any) -> Any:
    """Return a vector; of a double, the one that repeats it."""
    return value if isinstance(value.type, ir.VectorType) else Vectors(builder, LENGTH).spread(value)


def _operator(function: Any, result: Any, write: Callable[..., Any]) -> None:
    """Let compiled code apply an operator to two fours, or to a four and a double."""
    pairs = (FOUR, FOUR), (FOUR, types.float64), (types.float64, FOUR)

    @infer_global(function)
    class Template(ConcreteTemplate):
        cases = tuple(signature(result, *pair) for pair in pairs)

    for pair in pairs:

        @lower_builtin(function, *pair)
        def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return write(builder, *(_vector(builder, value) for value in arguments))


_operator(operator.add, FOUR, ir.IRBuilder.fadd)
_operator(operator.sub, FOUR, ir.IRBuilder.fsub)
_operator(operator.mul, FOUR, ir.IRBuilder.fmul)
_operator(operator.truediv, FOUR, ir.IRBuilder.fdiv)
_operator(operator.lt, TRUTHS, lambda builder, a, b: builder.fcmp_ordered("<", a, b))
_operator(operator.gt, TRUTHS, lambda builder, a, b: builder.fcmp_ordered(">", a, b))
_operator(operator.eq, TRUTHS, lambda builder, a, b: builder.fcmp_ordered("==", a, b))


@infer_global(abs)
class _Absolute(ConcreteTemplate):
    cases = (signature(FOUR, FOUR),)


@lower_builtin(abs, FOUR)
def _absolute(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    return Vectors(builder, LENGTH).absolute(arguments[0])


@intrinsic
def _chosen(typingctx, condition, a, b):
    """Return ``a`` where the condition holds, else ``b``, without a branch."""
    fours = condition == TRUTHS

    def codegen(context, builder, signature, arguments):
        condition, a, b = arguments
        if fours:
            a, b = _vector(builder, a), _vector(builder, b)
        return builder.select(condition, a, b)

    return (FOUR if fours else types.float64)(condition, a, b), codegen


def _elementwise(name: str, *first: float) -> Any:
    """Return a function of LLVM's, of the numbers given first and of a four or a double."""

    @intrinsic
    def function(typingctx, value):
        def codegen(context, builder, signature, arguments):
            kind = arguments[0].type
            several = isinstance(kind, ir.VectorType)
            numbers = [ir.Constant(kind, [number] * LENGTH if several else number) for number in first]
            declared = builder.module.declare_intrinsic(
                f"llvm.{name}.{f'v{LENGTH}' * several}f64",
                fnty=ir.FunctionType(kind, [kind] * (len(first) + 1)),
            )
            return builder.call(declared, [*numbers, arguments[0]])

        return value(value), codegen

    return function


@intrinsic
def _load(typingctx, array, index):
    """Return four neighbours."""

    def codegen(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return Vectors(builder, LENGTH).load(data, arguments[1])

    return FOUR(array, types.int64), codegen


@intrinsic
def _store(typingctx, four, array, index):
    """Write four neighbours."""

    def codegen(context, builder, signature, arguments):
        data = context.make_array(signature.args[1])(context, builder, arguments[1]).data
        Vectors(builder, LENGTH).store(arguments[0], data, arguments[2])
        return context.get_dummy_value()

    return types.void(FOUR, array, types.int64), codegen


@intrinsic
def _spread(typingctx, value):
    """Return a double four times."""

    def codegen(context, builder, signature, arguments):
        return _vector(builder, arguments[0])

    return FOUR(types.float64), codegen


@intrinsic
def _added(typingctx, total, parts):
    """Return the four ``total + parts``; the double total to which the entries are added one by one."""

    def codegen(context, builder, signature, arguments):
        total, parts = arguments
        if signature.args[0] == FOUR:
            return builder.fadd(total, parts)
        for entry in Vectors(builder, LENGTH).entries(parts):
            total = builder.fadd(total, entry)
        return total

    return total(total, FOUR), codegen


@intrinsic
def _every(typingctx, truths):
    """Return whether all are true."""

    def codegen(context, builder, signature, arguments):
        if signature.args[0] != TRUTHS:
            return arguments[0]
        bits = ir.IntType(LENGTH)
        return builder.icmp_unsigned("==", builder.bitcast(arguments[0], bits), bits((1 << LENGTH) - 1))

    return types.boolean(truths), codegen


@intrinsic
def _entry_at(typingctx, array, begin, further):
    """Return ``array[begin + further]``; where begin is four indices, the four of them."""
    several = isinstance(begin, types.UniTuple)

    def codegen(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        v = Vectors(builder, LENGTH)
        begins = cgutils.unpack_tuple(builder, arguments[1]) if several else [arguments[1]]
        values = [v.one(data, builder.add(begin, arguments[2])) for begin in begins]
        return v.joined(values) if several else values[0]

    return (FOUR if several else types.float64)(array, begin, types.int64), codegen


def _plain_store(four: Any, array: Any, index: int) -> None:
    array.reshape(-1)[index : index + LENGTH] = four


def _plain_added(total: Any, parts: Any) -> Any:
    if np.ndim(total):
        return total + parts
    for part in parts:
        total += part
    return total


load: Any
store: Any
spread: Any
added: Any
every: Any
entry_at: Any
chosen: Any
root: Any
unit: Any
if COMPILING:
    load, store, spread, added, every, entry_at = _load, _store, _spread, _added, _every, _entry_at
    chosen, root, unit = _chosen, _elementwise("sqrt"), _elementwise("copysign", 1.0)
else:
    load = lambda array, index: array.reshape(-1)[index : index + LENGTH].copy()  # noqa: E731
    store, added, every = _plain_store, _plain_added, np.all
    spread = lambda value: np.full(LENGTH, value)  # noqa: E731
    entry_at = lambda array, begin, further: array[np.add(begin, further)]  # noqa: E731
    chosen = lambda condition, a, b: np.asarray(np.where(condition, a, b))[()]  # noqa: E731
    root, unit = np.sqrt, lambda value: np.copysign(1.0, value)
