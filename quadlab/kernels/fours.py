"""Four doubles as one value of compiled code: an entry of each of four blocks, in one vector register.

`load` and `store` move four neighbours of an array. The operators ``+ - * /``, ``abs``, ``<``, ``>`` and
``==`` work entry by entry, on a four and a double too; so do `chosen`, `root` and `unit`, which take doubles
as well: a rule written with them serves both. Every operation is rounded by itself. Uncompiled, four doubles
are an array.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
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
def _entries(typingctx, four):
    """Return the four doubles."""

    def codegen(context, builder, signature, arguments):
        entries = Vectors(builder, LENGTH).entries(arguments[0])
        return context.make_tuple(builder, signature.return_type, entries)

    return types.UniTuple(types.float64, LENGTH)(FOUR), codegen


def _plain_store(four: Any, array: Any, index: int) -> None:
    array[index : index + LENGTH] = four


load: Any
store: Any
entries: Any
chosen: Any
root: Any
unit: Any
if COMPILING:
    load, store, entries, chosen = _load, _store, _entries, _chosen
    root, unit = _elementwise("sqrt"), _elementwise("copysign", 1.0)
else:
    load, store, entries = lambda array, index: array[index : index + LENGTH].copy(), _plain_store, tuple
    chosen = lambda condition, a, b: np.asarray(np.where(condition, a, b))[()]  # noqa: E731
    root, unit = np.sqrt, lambda value: np.copysign(1.0, value)
