"""A user's compiled method as an integer: the address of its machine code.

Numba can pass a function to a kernel as an argument of a first-class function type, but it then asks the
function for its address by Python code at every call, some 50 us, and drops an exception (a Ctrl-C) raised
there. Here the address is asked for once, and the kernel makes a function of it.
"""

from __future__ import annotations

from typing import Any

from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

INT = types.int64
I1 = types.Array(types.int64, 1, "C")
F1 = types.Array(types.float64, 1, "C")
F2 = types.Array(types.float64, 2, "C")
F3 = types.Array(types.float64, 3, "C")
# Arrays of a problem are read-only.
READ_I1 = types.Array(types.int64, 1, "C", readonly=True)
READ_F1 = types.Array(types.float64, 1, "C", readonly=True)

# (t, g, x, minimizer, d, work, state, parameters, offsets) and the same for lanes, their number first.
USER_SINGLE = types.void(INT, F1, F1, READ_F1, F1, F1, F2, F1, READ_I1)
USER_LANES = types.void(INT, I1, F2, F2, F2, F2, F3, F2, READ_I1)


COMPILING = not config.DISABLE_JIT  # type: ignore[attr-defined]
# With NUMBA_DISABLE_JIT=1 nothing is compiled, and a function is found by its number here.
_UNCOMPILED: dict[int, Any] = {}


def address_of(function: Any, signature: Any) -> int:
    """Return the address of a compiled function, which the caller keeps alive."""
    if not COMPILING:
        _UNCOMPILED[id(function)] = function
        return id(function)
    compiled = function.get_compile_result(signature)
    return int(compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name))


def _function_at(signature: Any) -> Any:
    if not COMPILING:
        return _UNCOMPILED.get
    function_type = types.FunctionType(signature)

    @intrinsic
    def function_at(typingctx, address):
        """Return the function at an address."""

        def codegen(context, builder, _, arguments):
            function = cgutils.create_struct_proxy(function_type)(context, builder)
            function.jit_addr = builder.inttoptr(arguments[0], cgutils.voidptr_t)
            return function._getvalue()

        return function_type(types.int64), codegen

    return function_at


single_function_at = _function_at(USER_SINGLE)
lanes_function_at = _function_at(USER_LANES)
