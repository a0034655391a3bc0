"""Vector instructions for the inner loops of the pass (``kernel.py``), where LLVM would not find them by itself.

The loop vectoriser of LLVM finds neither tiles whose sums stay in the processor's registers nor an order of operations in which
none waits for the one before. So each inner loop is written here once, as instructions on vectors of ``LANES`` numbers, and is a
function that compiled code can call. A block's arrays are feature-major with ``PITCH`` numbers from one row to the next; b, the number
of rows, is a whole number of vectors. Whitened features are y = Pᵀ(x − μ), P a lower triangle.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

BLOCK = 256
"""Rows of a block: fewer, and the start of each loop shows; more, and a block of ten features leaves the first-level cache."""

PITCH = BLOCK + 16
"""Numbers from one row of a block's arrays to the next: with a power of two, loads would wait for stores to other arrays."""

LANES = 8 if llvmlite.binding.get_host_cpu_features().get("avx512f") else 4
"""Numbers in a vector register."""

STRIP = 3 * LANES
"""Rows that are whitened together: four sums for each of three vectors fill the registers."""

LINE = 8
"""Numbers of a cache line."""

GROUP = 4 * LANES
"""Rows of a group of vectors that are worked on side by side; a block is a whole number of them."""

LN2 = 0.6931471805599453
ROUNDER = 1.5 * 2.0**52 + 1023.0

# (2^r − 1 − r log 2) / r², interpolated at Chebyshev nodes of |r| ≤ ½: within 0.1 ulp of 2^r.
EXP2 = (
    0.24022650695910075,
    0.05550410866482158,
    0.009618129107618665,
    0.0013333558146423213,
    0.00015403530424776529,
    1.5252733820795803e-05,
    1.3215451633221434e-06,
    1.0178067267449427e-07,
    7.070977866508138e-09,
    4.45410341058704e-10,
)

F64, I64, I32 = ir.DoubleType(), ir.IntType(64), ir.IntType(32)
VECTOR, FOUR = ir.VectorType(F64, LANES), ir.VectorType(F64, 4)


class Lanes:
    """Arithmetic on vectors of LANES numbers, as instructions of LLVM; arrays are pointers to their first element.

    Parameters
    ----------
    context, builder, sig, args
        As Numba hands them to the code generator of an intrinsic.
    """

    def __init__(self, context: Any, builder: Any, sig: Any, args: Any) -> None:
        self.builder = builder
        self.args = [
            context.make_array(kind)(context, builder, value).data if isinstance(kind, types.Array) else value
            for kind, value in zip(sig.args, args, strict=True)
        ]

    def plus(self, a: Any, b: int) -> Any:
        """An index b further on."""
        return self.builder.add(a, I64(b))

    def at(self, pointer: Any, *offsets: Any) -> Any:
        """The pointer moved on by the sum of the offsets."""
        for offset in offsets:
            pointer = self.builder.gep(pointer, [I64(offset) if isinstance(offset, int) else offset])
        return pointer

    def load(self, pointer: Any, kind: Any = VECTOR, align: int = 8) -> Any:
        """The numbers from a pointer on."""
        return self.builder.load(self.builder.bitcast(pointer, kind.as_pointer()), align=align)

    def store(self, value: Any, pointer: Any) -> None:
        """Write a vector from a pointer on."""
        self.builder.store(value, self.builder.bitcast(pointer, value.type.as_pointer()), align=8)

    def shuffle(self, a: Any, b: Any, order: list[int]) -> Any:
        """Elements of the vector a followed by b."""
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(order)), order))

    def splat(self, number: Any) -> Any:
        """One number in every lane."""
        if isinstance(number, float):
            return VECTOR([number] * LANES)
        one = self.builder.insert_element(VECTOR(ir.Undefined), number, I32(0))
        return self.shuffle(one, VECTOR(ir.Undefined), [0] * LANES)

    def broadcast(self, pointer: Any) -> Any:
        """The number at a pointer in every lane."""
        return self.splat(self.builder.load(pointer))

    def add(self, a: Any, b: Any) -> Any:
        """Sum a + b."""
        return self.builder.fadd(a, b, flags=("contract",))

    def sub(self, a: Any, b: Any) -> Any:
        """Difference a − b."""
        return self.builder.fsub(a, b, flags=("contract",))

    def mul(self, a: Any, b: Any) -> Any:
        """Product a b."""
        return self.builder.fmul(a, b, flags=("contract",))

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """Sum a b + c, in one instruction where the processor has it."""
        return self.add(self.mul(a, b), c)

    def larger(self, a: Any, b: Any) -> Any:
        """The larger of a and b; b where a is NaN."""
        return self.builder.select(self.builder.fcmp_ordered(">", a, b), a, b)

    def reached(self, constant: Any, squares: Any) -> Any:
        """The exponent constant − squares; −inf where a row beyond the reach of float64 has come to inf − inf."""
        return self.larger(self.sub(constant, squares), self.splat(-math.inf))

    def dot(self, a: list[Any], b: list[Any]) -> Any:
        """Σ a_i b_i, long ones in two chains so that additions need not wait for each other."""
        if len(a) > 3:
            half = len(a) // 2
            return self.add(self.dot(a[:half], b[:half]), self.dot(a[half:], b[half:]))
        total = self.mul(a[0], b[0])
        for x, y in zip(a[1:], b[1:], strict=True):
            total = self.fma(x, y, total)
        return total

    def sums(self, vectors: list[Any]) -> Any:
        """The sums of up to four vectors, as one vector of four."""
        vectors = vectors + [self.splat(0.0)] * (4 - len(vectors))
        if LANES == 8:
            low, high = [0, 1, 2, 3], [4, 5, 6, 7]
            vectors = [self.add(self.shuffle(v, v, low), self.shuffle(v, v, high)) for v in vectors]
        pairs = [
            self.add(self.shuffle(a, b, [0, 4, 2, 6]), self.shuffle(a, b, [1, 5, 3, 7]))
            for a, b in (vectors[:2], vectors[2:])
        ]
        a, b = pairs
        return self.add(self.shuffle(a, b, [0, 1, 4, 5]), self.shuffle(a, b, [2, 3, 6, 7]))

    def increase(self, pointer: Any, vectors: list[Any]) -> None:
        """Add the sums of up to four vectors to the four numbers at a pointer."""
        self.store(self.add(self.load(pointer, FOUR), self.sums(vectors)), pointer)

    def zeros(self, n: int) -> list[Any]:
        """Variables that a loop changes."""
        return [cgutils.alloca_once_value(self.builder, self.splat(0.0)) for _ in range(n)]

    def values(self, variables: list[Any]) -> list[Any]:
        """What the variables hold."""
        return [self.builder.load(variable) for variable in variables]

    def clear(self, variables: list[Any]) -> None:
        """Set variables to zero."""
        for variable in variables:
            self.builder.store(self.splat(0.0), variable)

    def gain(self, variable: Any, a: Any, b: Any = None) -> None:
        """Add a, or a b, to a variable."""
        value = self.builder.load(variable)
        self.builder.store(self.add(value, a) if b is None else self.fma(a, b, value), variable)

    def loop(self, start: Any, stop: Any, step: int) -> AbstractContextManager[Any]:
        """A loop; its context is (index, …)."""
        return cgutils.for_range_slice(self.builder, start, stop, I64(step))

    def exp2(self, u: Any) -> Any:
        """2^u for u ≤ 0, within 1.3 ulp; 0 below −1022.5 (and for −inf and NaN)."""
        bounded = self.larger(u, self.splat(-1023.0))
        # Adding 1.5 · 2^52 rounds to an integer in the low bits; the 1023 makes these the exponent of 2^n, and 0 the power at the bound.
        shifted = self.builder.fadd(bounded, self.splat(ROUNDER))
        r = self.builder.fsub(bounded, self.builder.fsub(shifted, self.splat(ROUNDER)))
        r2 = self.mul(r, r)
        # In pairs, not in one chain: what waits on the step before fills the processor's queue.
        p = [self.fma(self.splat(EXP2[n + 1]), r, self.splat(EXP2[n])) for n in range(0, len(EXP2), 2)]
        r4 = self.mul(r2, r2)
        high = self.fma(p[4], r4, self.fma(p[3], r2, p[2]))
        series = self.fma(r4, high, self.fma(p[1], r2, p[0]))
        mantissa = self.fma(series, r2, self.fma(r, self.splat(LN2), self.splat(1.0)))
        integers = ir.VectorType(I64, LANES)
        power = self.builder.shl(self.builder.bitcast(shifted, integers), integers([52] * LANES))
        return self.mul(mantissa, self.builder.bitcast(power, VECTOR))


def _code(build: Callable[[Lanes], Any]) -> Callable[..., Any]:
    """What Numba calls to generate the body of an intrinsic that ``build`` writes."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value = build(Lanes(context, builder, sig, args))
        return context.get_dummy_value() if value is None else value

    return generate


def _factor(lanes: Lanes, factors: Any, D: int, width: int) -> dict[tuple[int, int], Any]:
    """The lower triangle of one component's factor (width × width in memory), each entry in every lane."""
    return {(f, j): lanes.broadcast(lanes.at(factors, f * width + j)) for j in range(D) for f in range(j, D)}


def _squared_length(lanes: Lanes, z: list[Any], P: dict[tuple[int, int], Any]) -> Any:
    """|Pᵀ z|²."""
    D = len(z)
    y = [lanes.dot([P[f, j] for f in range(j, D)], z[j:]) for j in range(D)]
    return lanes.dot(y, y)


def _exponents(D: int) -> Any:
    """Vector code for D ≤ 4, 6 or 8 features: u = constant − |Pᵀ(x − μ)|²."""

    @intrinsic
    def exponents(typingctx, x, b, constant, mean, factor, u):
        def build(lanes):
            x, b, constant, mean, factor, u = lanes.args
            constant = lanes.splat(constant)
            means = [lanes.broadcast(lanes.at(mean, j)) for j in range(D)]
            P = _factor(lanes, factor, D, 4 if D <= 4 else 8)
            with lanes.loop(I64(0), b, LANES) as (i, _):
                z = [lanes.sub(lanes.load(lanes.at(x, i, j * PITCH)), means[j]) for j in range(D)]
                lanes.store(lanes.sub(constant, _squared_length(lanes, z, P)), lanes.at(u, i))

        return types.void(x, b, constant, mean, factor, u), _code(build)

    return exponents


def _whiten_strip(lanes: Lanes, x: Any, start: Any, mean: Any, factor: Any, width: Any, z: Any, take: Any) -> None:
    """Code that whitens STRIP rows, y = Pᵀ(x − μ), four features at a time: ``take(j, a, v, y)`` gets vector v of feature j + a."""
    builder, vectors = lanes.builder, range(STRIP // LANES)
    with lanes.loop(I64(0), width, 1) as (f, _):
        middle, column = lanes.broadcast(lanes.at(mean, f)), lanes.at(x, start, builder.mul(f, I64(PITCH)))
        for v in vectors:
            value = lanes.sub(lanes.load(lanes.at(column, v * LANES)), middle)
            lanes.store(value, lanes.at(z, builder.mul(f, I64(STRIP)), v * LANES))
    y = [lanes.zeros(len(vectors)) for _ in range(4)]

    def step(j, f, n):
        """Add the part of feature f to the first n of the four features from j on."""
        row = [lanes.load(lanes.at(z, builder.mul(f, I64(STRIP)), v * LANES)) for v in vectors]
        coefficients = lanes.at(factor, builder.mul(f, width), j)
        for a in range(n):
            p = lanes.broadcast(lanes.at(coefficients, a))
            for v in vectors:
                lanes.gain(y[a][v], p, row[v])

    with lanes.loop(I64(0), width, 4) as (j, _):
        for a in range(4):
            lanes.clear(y[a])
        for a in range(4):
            step(j, lanes.plus(j, a), a + 1)
        with lanes.loop(lanes.plus(j, 4), width, 1) as (f, _):
            step(j, f, 4)
        for a in range(4):
            for v, value in enumerate(lanes.values(y[a])):
                take(j, a, v, value)


@intrinsic
def exponents_of_strip(typingctx, x, start, constant, mean, factor, width, z, u):
    """Vector code for any number of features: u = constant − |Pᵀ(x − μ)|² for STRIP rows; z is scratch."""

    def build(lanes):
        x, start, constant, mean, factor, width, z, u = lanes.args
        squares = lanes.zeros(STRIP // LANES)
        lanes.clear(squares)
        _whiten_strip(
            lanes, x, start, mean, factor, width, z, lambda j, a, v, value: lanes.gain(squares[v], value, value)
        )
        constant = lanes.splat(constant)
        for v, value in enumerate(lanes.values(squares)):
            lanes.store(lanes.reached(constant, value), lanes.at(u, start, v * LANES))

    return types.void(x, start, constant, mean, factor, width, z, u), _code(build)


@intrinsic
def whiten_strip(typingctx, x, start, mean, factor, width, z, y):
    """Vector code for any number of features: y = Pᵀ(x − μ) for STRIP rows, feature-major as x; z is scratch."""

    def build(lanes):
        x, start, mean, factor, width, z, y = lanes.args

        def keep(j, a, v, value):
            column = lanes.builder.mul(lanes.plus(j, a), I64(PITCH))
            lanes.store(value, lanes.at(y, start, column, v * LANES))

        _whiten_strip(lanes, x, start, mean, factor, width, z, keep)

    return types.void(x, start, mean, factor, width, z, y), _code(build)


@intrinsic
def exponents_by_feature(typingctx, x, start, constant, mean, scale, width, u):
    """Vector code for features that are whitened one by one: u = constant − Σ_j (scale_j (x_j − μ_j))² for GROUP rows."""

    def build(lanes):
        x, start, constant, mean, scale, width, u = lanes.args
        _distances(lanes, x, start, constant, mean, width, u, scale)

    return types.void(x, start, constant, mean, scale, width, u), _code(build)


@intrinsic
def exponents_of_whitened(typingctx, y, start, constant, mean, width, u):
    """Vector code for rows that are whitened: u = constant − |y − mean|² for GROUP rows."""

    def build(lanes):
        y, start, constant, mean, width, u = lanes.args
        _distances(lanes, y, start, constant, mean, width, u)

    return types.void(y, start, constant, mean, width, u), _code(build)


def _distances(
    lanes: Lanes, x: Any, start: Any, constant: Any, mean: Any, width: Any, u: Any, scale: Any | None = None
) -> None:
    """Code for u = constant − Σ_j (scale_j (x_j − mean_j))²; four vectors side by side, so that additions need not wait."""
    squares = lanes.zeros(GROUP // LANES)
    lanes.clear(squares)
    with lanes.loop(I64(0), width, 1) as (j, _):
        middle, column = lanes.broadcast(lanes.at(mean, j)), lanes.at(x, start, lanes.builder.mul(j, I64(PITCH)))
        factor = None if scale is None else lanes.broadcast(lanes.at(scale, j))
        for v, total in enumerate(squares):
            value = lanes.sub(lanes.load(lanes.at(column, v * LANES)), middle)
            value = value if factor is None else lanes.mul(value, factor)
            lanes.gain(total, value, value)
    constant = lanes.splat(constant)
    for v, value in enumerate(lanes.values(squares)):
        lanes.store(lanes.reached(constant, value), lanes.at(u, start, v * LANES))


@intrinsic
def exponentials(typingctx, u, b, top, total):
    """Vector code: turn u into 2^(u − top) and add it to ``total``."""

    def build(lanes):
        u, b, top, total = lanes.args
        with lanes.loop(I64(0), b, LANES) as (i, _):
            value = lanes.exp2(lanes.sub(lanes.load(lanes.at(u, i)), lanes.load(lanes.at(top, i))))
            lanes.store(value, lanes.at(u, i))
            lanes.store(lanes.add(lanes.load(lanes.at(total, i)), value), lanes.at(total, i))

    return types.void(u, b, top, total), _code(build)


@intrinsic
def add_density(typingctx, total, top, shift, b, summed, high):
    """Vector code: add total · 2^(top + shift) to summed · 2^high, ``high`` becoming the larger exponent."""

    def build(lanes):
        total, top, shift, b, summed, high = lanes.args
        shift = lanes.splat(shift)
        with lanes.loop(I64(0), b, LANES) as (i, _):
            old, other = lanes.load(lanes.at(high, i)), lanes.add(lanes.load(lanes.at(top, i)), shift)
            new = lanes.larger(other, old)
            kept = lanes.mul(lanes.load(lanes.at(summed, i)), lanes.exp2(lanes.sub(old, new)))
            value = lanes.fma(lanes.load(lanes.at(total, i)), lanes.exp2(lanes.sub(other, new)), kept)
            lanes.store(value, lanes.at(summed, i))
            lanes.store(new, lanes.at(high, i))

    return types.void(total, top, shift, b, summed, high), _code(build)


def _moments(D: int) -> Any:
    """Vector code for D ≤ 4 features: N is returned, S1 and the upper triangle of S2 added to; r = e · scale."""

    @intrinsic
    def moments(typingctx, x, b, mean, e, scale, first, second):
        def build(lanes):
            x, b, mean, e, scale, first, second = lanes.args
            means = [lanes.broadcast(lanes.at(mean, j)) for j in range(D)]
            (count,), sums, products = lanes.zeros(1), lanes.zeros(D), [lanes.zeros(D - f) for f in range(D)]
            for variables in ([count], sums, *products):
                lanes.clear(variables)
            with lanes.loop(I64(0), b, LANES) as (i, _):
                z = [lanes.sub(lanes.load(lanes.at(x, i, j * PITCH)), means[j]) for j in range(D)]
                r = lanes.mul(lanes.load(lanes.at(e, i)), lanes.load(lanes.at(scale, i)))
                lanes.gain(count, r)
                if D == 4:
                    lanes.store(r, lanes.at(e, i))
                for j in range(D):
                    q = lanes.mul(r, z[j])
                    if D < 4:
                        lanes.gain(sums[j], q)
                    for f in range(j + 1):
                        lanes.gain(products[f][j - f], q, z[f])
            if D == 4:
                # With these sums too the registers would not do.
                with lanes.loop(I64(0), b, LANES) as (i, _):
                    r = lanes.load(lanes.at(e, i))
                    for j in range(D):
                        lanes.gain(sums[j], r, lanes.sub(lanes.load(lanes.at(x, i, j * PITCH)), means[j]))
            lanes.increase(first, lanes.values(sums))
            for f in range(D):
                padding = [lanes.splat(0.0)] * f
                lanes.increase(lanes.at(second, f * 4), padding + lanes.values(products[f]))
            total = lanes.sums(lanes.values([count]))
            return lanes.builder.extract_element(total, I32(0))

        return types.float64(x, b, mean, e, scale, first, second), _code(build)

    return moments


@intrinsic
def diagonal_block(typingctx, x, b, mean, r, first, second, j, width, q):
    """Vector code: q = r z of the features j … j + 3, S1 of these and the upper triangle of their S2 added to."""

    def build(lanes):
        builder = lanes.builder
        x, b, mean, r, first, second, j, width, q = lanes.args
        x, mean = lanes.at(x, builder.mul(j, I64(PITCH))), lanes.at(mean, j)
        means = [lanes.broadcast(lanes.at(mean, a)) for a in range(4)]
        sums, products = lanes.zeros(4), [lanes.zeros(4 - f) for f in range(4)]
        for variables in (sums, *products):
            lanes.clear(variables)
        with lanes.loop(I64(0), b, LANES) as (i, _):
            weight, z = lanes.load(lanes.at(r, i)), []
            for a in range(4):
                z.append(lanes.sub(lanes.load(lanes.at(x, i, a * PITCH)), means[a]))
                value = lanes.mul(weight, z[a])
                lanes.store(value, lanes.at(q, i, a * PITCH))
                for f in range(a + 1):
                    lanes.gain(products[f][a - f], value, z[f])
        # In a loop of their own: with these sums too the registers would not do.
        with lanes.loop(I64(0), b, LANES) as (i, _):
            for a in range(4):
                lanes.gain(sums[a], lanes.load(lanes.at(q, i, a * PITCH)))
        lanes.increase(lanes.at(first, j), lanes.values(sums))
        for f in range(4):
            padding = [lanes.splat(0.0)] * f
            row = lanes.at(second, builder.mul(lanes.plus(j, f), width), j)
            lanes.increase(row, padding + lanes.values(products[f]))

    return types.void(x, b, mean, r, first, second, j, width, q), _code(build)


@intrinsic
def moments_by_feature(typingctx, x, b, mean, r, first, second, j):
    """Vector code: S1 and the diagonal of S2 of the features j … j + 3 added to."""

    def build(lanes):
        x, b, mean, r, first, second, j = lanes.args
        x, mean = lanes.at(x, lanes.builder.mul(j, I64(PITCH))), lanes.at(mean, j)
        means = [lanes.broadcast(lanes.at(mean, a)) for a in range(4)]
        sums, squares = lanes.zeros(4), lanes.zeros(4)
        for variables in (sums, squares):
            lanes.clear(variables)
        with lanes.loop(I64(0), b, LANES) as (i, _):
            weight = lanes.load(lanes.at(r, i))
            for a in range(4):
                z = lanes.sub(lanes.load(lanes.at(x, i, a * PITCH)), means[a])
                value = lanes.mul(weight, z)
                lanes.gain(sums[a], value)
                lanes.gain(squares[a], value, z)
        lanes.increase(lanes.at(first, j), lanes.values(sums))
        lanes.increase(lanes.at(second, j), lanes.values(squares))

    return types.void(x, b, mean, r, first, second, j), _code(build)


@intrinsic
def deviations(typingctx, x, b, mean, r, first, deviation, j, added):
    """Vector code: r z of the features j … j + 3 written to ``deviation``, which is laid out as x, or added; S1 of these added to."""

    def build(lanes):
        x, b, mean, r, first, deviation, j, added = lanes.args
        rows, mean = lanes.builder.mul(j, I64(PITCH)), lanes.at(mean, j)
        x, deviation = lanes.at(x, rows), lanes.at(deviation, rows)
        means = [lanes.broadcast(lanes.at(mean, a)) for a in range(4)]
        sums = lanes.zeros(4)
        lanes.clear(sums)
        with lanes.loop(I64(0), b, LANES) as (i, _):
            weight = lanes.load(lanes.at(r, i))
            for a in range(4):
                z = lanes.sub(lanes.load(lanes.at(x, i, a * PITCH)), means[a])
                lanes.gain(sums[a], weight, z)
                here = lanes.at(deviation, i, a * PITCH)
                before = lanes.builder.select(added, lanes.load(here), lanes.splat(0.0))
                lanes.store(lanes.fma(weight, z, before), here)
        lanes.increase(lanes.at(first, j), lanes.values(sums))

    return types.void(x, b, mean, r, first, deviation, j, added), _code(build)


def _rectangle(n: int) -> Any:
    """Vector code: S2 of n features from f on with the four from j on, whose r z is q, added to."""

    @intrinsic
    def rectangle(typingctx, x, b, mean, q, second, j, f, width):
        def build(lanes):
            builder = lanes.builder
            x, b, mean, q, second, j, f, width = lanes.args
            x, mean = lanes.at(x, builder.mul(f, I64(PITCH))), lanes.at(mean, f)
            means = [lanes.broadcast(lanes.at(mean, a)) for a in range(n)]
            # Twelve sums, three features and one r z fill sixteen registers; four by four would spill.
            products = [lanes.zeros(4) for _ in range(n)]
            for variables in products:
                lanes.clear(variables)
            with lanes.loop(I64(0), b, LANES) as (i, _):
                z = [lanes.sub(lanes.load(lanes.at(x, i, a * PITCH)), means[a]) for a in range(n)]
                for c in range(4):
                    value = lanes.load(lanes.at(q, i, c * PITCH))
                    for a in range(n):
                        lanes.gain(products[a][c], value, z[a])
            for a in range(n):
                row = lanes.at(second, builder.mul(lanes.plus(f, a), width), j)
                lanes.increase(row, lanes.values(products[a]))

        return types.void(x, b, mean, q, second, j, f, width), _code(build)

    return rectangle


def _numbers(lanes: Lanes, pointer: Any, n: int, single: bool) -> Any:
    """A vector of n numbers, of single or double precision where they lie."""
    kind = ir.VectorType(ir.FloatType() if single else F64, n)
    value = lanes.load(pointer, kind, 4 if single else 8)
    return lanes.builder.fpext(value, ir.VectorType(F64, n)) if single else value


@intrinsic
def transpose(typingctx, X, at, D, x, to):
    """Vector code: write four features of four rows of X, from element ``at`` on, feature-major to x, from ``to`` on."""
    single = X.dtype == types.float32

    def build(lanes):
        builder = lanes.builder
        X, at, D, x, to = lanes.args
        rows = [_numbers(lanes, lanes.at(X, at, builder.mul(D, I64(i))), 4, single) for i in range(4)]
        pairs = [
            [lanes.shuffle(a, b, [0, 4, 2, 6]), lanes.shuffle(a, b, [1, 5, 3, 7])] for a, b in (rows[:2], rows[2:])
        ]
        halves = [lanes.shuffle(a, b, [0, 1, 4, 5]) for a, b in zip(*pairs, strict=True)]
        halves += [lanes.shuffle(a, b, [2, 3, 6, 7]) for a, b in zip(*pairs, strict=True)]
        for j, column in enumerate(halves):
            lanes.store(column, lanes.at(x, to, j * PITCH))

    return types.void(X, at, D, x, to), _code(build)


@intrinsic
def prefetch(typingctx, X, at):
    """Ask for the cache line of element ``at``."""

    def build(lanes):
        X, at = lanes.args
        pointer = lanes.builder.bitcast(lanes.at(X, at), ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, I32, I32, I32])
        function = cgutils.get_or_insert_function(lanes.builder.module, kind, "llvm.prefetch.p0")
        # To read, kept in the second-level cache, data.
        lanes.builder.call(function, [pointer, I32(0), I32(2), I32(1)])

    return types.void(X, at), _code(build)


def _part(D: int) -> Any:
    """Vector code for D < 4 features: write four rows of X, from element ``at`` on, feature-major to x, from ``to`` on."""

    @intrinsic
    def part(typingctx, X, at, x, to):
        single = X.dtype == types.float32

        def build(lanes):
            X, at, x, to = lanes.args
            rows = _numbers(lanes, lanes.at(X, at), 4 * D, single)
            for j in range(D):
                lanes.store(lanes.shuffle(rows, rows, [D * i + j for i in range(4)]), lanes.at(x, to, j * PITCH))

        return types.void(X, at, x, to), _code(build)

    return part


exponents_1, exponents_2, exponents_3, exponents_4, exponents_6, exponents_8 = map(_exponents, (1, 2, 3, 4, 6, 8))
moments_1, moments_2, moments_3, moments_4 = (_moments(D) for D in (1, 2, 3, 4))
rectangle_2, rectangle_3 = (_rectangle(n) for n in (2, 3))
part_2, part_3 = map(_part, (2, 3))
