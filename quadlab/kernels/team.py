"""Threads that work on one run: a barrier, and what the first of them asks of the others.

All of a team's threads run the same code on the same numbers, each on its share of the coordinates, and meet
at a barrier where a sum over all is needed; so each takes the same decisions, and none is told any. The one
that holds the run (rank 0) asks the others to join it at an iteration and up to another one, or to leave.
"""

from __future__ import annotations

import os
import threading
import time

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from quadlab.kernels import codes as c
from quadlab.kernels.elements import inline
from quadlab.kernels.pointers import COMPILING

# A thread that has waited for so long (some 10 us) lets others have its core.
PATIENCE = 2000


def _compiled():
    @intrinsic
    def add(typingctx, array, index, value):
        """Add to an entry in one step that no other thread can interrupt; return what it was."""

        def codegen(context, builder, signature, arguments):
            data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
            place = cgutils.gep_inbounds(builder, data, arguments[1])
            return builder.atomic_rmw("add", place, arguments[2], "seq_cst")

        return types.int64(array, types.int64, types.int64), codegen

    @intrinsic
    def give_way(typingctx):
        """Let another thread have the core."""

        def codegen(context, builder, _, arguments):
            if hasattr(os, "sched_yield"):
                kind = ir.FunctionType(ir.IntType(32), [])
                builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])
            return context.get_dummy_value()

        return types.void(), codegen

    return add, give_way


def _interpreted():
    lock = threading.Lock()

    def add(array, index, value):
        with lock:
            old = int(array[index])
            array[index] = old + value
            return old

    return add, lambda: time.sleep(0)


add, give_way = _compiled() if COMPILING else _interpreted()


@inline
def barrier(team, ranks):
    """Wait until all threads are here; what each wrote before, all read after."""
    generation = add(team, c.T_GENERATION, 0)
    if add(team, c.T_ARRIVED, 1) == ranks - 1:
        add(team, c.T_ARRIVED, -ranks)
        add(team, c.T_GENERATION, 1)
        return
    waited = 0
    while add(team, c.T_GENERATION, 0) == generation:
        waited += 1
        if waited > PATIENCE:
            give_way()
