"""Short vectors of doubles in LLVM's own code, for the loops that its vectoriser does not find.

Every operation is rounded by itself: no fast-math flag is set, and nothing is contracted.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

DOUBLE, INDEX, WORD = ir.DoubleType(), ir.IntType(64), ir.IntType(32)


def constant(value: int) -> Any:
    """Return an index."""
    return ir.Constant(INDEX, value)


class Vectors:
    """Writes operations on vectors of ``length`` doubles; indices and addresses count doubles."""

    def __init__(self, builder: Any, length: int) -> None:
        self.builder, self.length = builder, length
        self.type = ir.VectorType(DOUBLE, length)

    def at(self, pointer: Any, index: Any) -> Any:
        """Return the address of an entry."""
        return self.builder.gep(pointer, [constant(index) if isinstance(index, int) else index])

    def one(self, pointer: Any, index: Any) -> Any:
        """Return an entry."""
        return self.builder.load(self.at(pointer, index))

    def load(self, pointer: Any, index: Any) -> Any:
        """Return the entries from an index on."""
        address = self.builder.bitcast(self.at(pointer, index), self.type.as_pointer())
        return self.builder.load(address, align=8)

    def store(self, vector: Any, pointer: Any, index: Any) -> None:
        """Write the entries from an index on."""
        address = self.builder.bitcast(self.at(pointer, index), self.type.as_pointer())
        self.builder.store(vector, address, align=8)

    def prefetch(self, pointer: Any, index: Any) -> None:
        """Call for the cache line of an entry, to read; it need not exist."""
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, WORD, WORD, WORD])
        function = self.builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        address = self.builder.bitcast(self.at(pointer, index), byte)
        self.builder.call(function, [address, WORD(0), WORD(3), WORD(1)])

    def filled(self, value: float) -> Any:
        """Return the vector of one number."""
        return ir.Constant(self.type, [value] * self.length)

    def repeated(self, pointer: Any, index: Any) -> Any:
        """Return the vector of one entry."""
        return self.spread(self.one(pointer, index))

    def spread(self, value: Any) -> Any:
        """Return the vector of one double."""
        none = ir.Constant(self.type, ir.Undefined)
        first = self.builder.insert_element(none, value, WORD(0))
        return self.chosen(first, none, *[0] * self.length)

    def joined(self, values: Any) -> Any:
        """Return the vector of these doubles."""
        vector = ir.Constant(self.type, ir.Undefined)
        for k, value in enumerate(values):
            vector = self.builder.insert_element(vector, value, WORD(k))
        return vector

    def chosen(self, a: Any, b: Any, *entries: int) -> Any:
        """Return the vector of entries of a, counted from 0, and of b, counted on."""
        mask = ir.Constant(ir.VectorType(WORD, len(entries)), list(entries))
        return self.builder.shuffle_vector(a, b, mask)

    def entries(self, vector: Any) -> list[Any]:
        """Return the entries of a vector."""
        return [self.builder.extract_element(vector, WORD(k)) for k in range(self.length)]

    def add_product(self, total: Any, a: Any, b: Any) -> Any:
        """Return ``total + a b`` of vectors, or of doubles."""
        return self.builder.fadd(total, self.builder.fmul(a, b))

    def absolute(self, a: Any) -> Any:
        """Return ``|a|``."""
        bits = ir.VectorType(INDEX, self.length)
        magnitude = ir.Constant(bits, [(1 << 63) - 1] * self.length)
        return self.builder.bitcast(self.builder.and_(self.builder.bitcast(a, bits), magnitude), self.type)

    def sign(self, a: Any) -> Any:
        """Return -1, 0 or 1 as `elements.sign`: 0 for -0.0 and NaN."""
        zero, one = self.filled(0.0), self.filled(1.0)
        above, below = (
            self.builder.select(self.builder.fcmp_ordered(relation, a, zero), one, zero)
            for relation in (">", "<")
        )
        return self.builder.fsub(above, below)


def transposed(v: Vectors, a: Any, b: Any, c: Any, d: Any) -> list[Any]:
    """Return the rows of a tile given by its columns, vectors of four."""
    even_ab, odd_ab = v.chosen(a, b, 0, 4, 2, 6), v.chosen(a, b, 1, 5, 3, 7)
    even_cd, odd_cd = v.chosen(c, d, 0, 4, 2, 6), v.chosen(c, d, 1, 5, 3, 7)
    low, high = (0, 1, 4, 5), (2, 3, 6, 7)
    return [
        v.chosen(even_ab, even_cd, *low),
        v.chosen(odd_ab, odd_cd, *low),
        v.chosen(even_ab, even_cd, *high),
        v.chosen(odd_ab, odd_cd, *high),
    ]
