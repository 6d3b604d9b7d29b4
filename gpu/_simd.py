"""A small explicit SIMD type for numba kernels.

LLVM does not vectorise our inner loops (they carry recurrences), so the kernels say what goes into the
lanes. A vector is a numba type over an LLVM vector of float32 or float64; LLVM legalises any lane count
for the machine at hand (one AVX-512 register, two of AVX, four of SSE or NEON), so nothing here depends on
an instruction set. Lane counts are compile-time constants: a literal, or a global or closure variable.

Loads and stores need no alignment and check no bounds: arrays must be C-contiguous and have room for all
lanes from the (flat) index on.
"""

from __future__ import annotations

from functools import cache

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

#: For functions below the parallel loops, which only kernels call. Without ``_nrt=False`` numba counts
#: references to every array at every call: atomic operations on shared memory that cost more than the
#: arithmetic. Without wrappers for Python they compile in a third of the time.
leaf = njit(cache=True, error_model='numpy', _nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True)

_IR = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}
_I32 = ir.IntType(32)


class VecType(types.Type):
    """The numba type of a vector of ``lanes`` float32 or float64."""

    def __init__(self, dtype, lanes: int):
        self.dtype = dtype
        self.lanes = lanes
        super().__init__(name=f'vec({dtype}, {lanes})')

    @property
    def key(self):
        """What makes two of these types equal."""
        return self.dtype, self.lanes


@register_model(VecType)
class _VecModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, ir.VectorType(_IR[fe_type.dtype], fe_type.lanes))


@cache
def vec(dtype, lanes: int) -> VecType:
    """The vector type of that element type and length."""
    return VecType(dtype, lanes)


def _ir_type(fe_type):
    return ir.VectorType(_IR[fe_type.dtype], fe_type.lanes)


def _constant(llvm_type, value):
    if isinstance(llvm_type, ir.VectorType):
        return ir.Constant(llvm_type, [value] * llvm_type.count)
    return ir.Constant(llvm_type, value)


def _call(builder, name, args):
    """Call the LLVM intrinsic ``name``, overloaded on the type of its (equal) arguments."""
    llvm_type = args[0].type
    scalar = llvm_type.element if isinstance(llvm_type, ir.VectorType) else llvm_type
    suffix = 'f32' if isinstance(scalar, ir.FloatType) else 'f64'
    if isinstance(llvm_type, ir.VectorType):
        suffix = f'v{llvm_type.count}{suffix}'
    function_type = ir.FunctionType(llvm_type, [llvm_type] * len(args))
    function = cgutils.get_or_insert_function(builder.module, function_type, f'llvm.{name}.{suffix}')
    return builder.call(function, args)


def _splat(builder, scalar, lanes):
    vector_type = ir.VectorType(scalar.type, lanes)
    one = builder.insert_element(ir.Constant(vector_type, ir.Undefined), scalar, ir.Constant(_I32, 0))
    mask = ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes)
    return builder.shuffle_vector(one, ir.Constant(vector_type, ir.Undefined), mask)


def _pointer(context, builder, array_type, array, index, llvm_type):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), llvm_type.as_pointer())


def _elementwise(emit, n_operands):
    """An intrinsic over vectors; any scalar operand is broadcast to the others' type."""

    def common(operands):
        vectors = {t for t in operands if isinstance(t, VecType)}
        if len(vectors) != 1:
            return None
        return vectors.pop()

    def make(operands):
        result = common(operands)
        if result is None:
            return None

        def codegen(context, builder, signature, args):
            values = []
            for fe_type, value in zip(signature.args, args):
                if not isinstance(fe_type, VecType):
                    value = _splat(builder, context.cast(builder, value, fe_type, result.dtype), result.lanes)
                values.append(value)
            return emit(builder, *values)

        return result(*operands), codegen

    if n_operands == 2:

        @intrinsic
        def operation(typingctx, a, b):
            return make((a, b))
    else:

        @intrinsic
        def operation(typingctx, a, b, c):
            return make((a, b, c))

    return operation


add = _elementwise(lambda builder, a, b: builder.fadd(a, b), 2)
sub = _elementwise(lambda builder, a, b: builder.fsub(a, b), 2)
mul = _elementwise(lambda builder, a, b: builder.fmul(a, b), 2)
fma = _elementwise(lambda builder, a, b, c: _call(builder, 'fmuladd', [a, b, c]), 3)


def _emit_max(builder, a, b):
    return builder.select(builder.fcmp_ordered('>', a, b), a, b)


def _emit_keep_above(builder, value, x, threshold):
    zero = _constant(value.type, 0.0)
    return builder.select(builder.fcmp_ordered('>', x, threshold), value, zero)


maximum = _elementwise(_emit_max, 2)
#: ``keep_above(value, x, threshold)``: value where x > threshold, else zero.
keep_above = _elementwise(_emit_keep_above, 3)


@intrinsic(prefer_literal=True)
def full(typingctx, value, lanes):
    """Vector with the float32 or float64 ``value`` in every lane."""
    if not isinstance(lanes, types.IntegerLiteral) or value not in _IR:
        return None

    def codegen(context, builder, signature, args):
        return _splat(builder, args[0], lanes.literal_value)

    return vec(value, lanes.literal_value)(value, lanes), codegen


@intrinsic(prefer_literal=True)
def iota(typingctx, like, lanes):
    """0, 1, 2, ... in the dtype of the scalar ``like``."""
    if not isinstance(lanes, types.IntegerLiteral) or like not in _IR:
        return None
    result = vec(like, lanes.literal_value)

    def codegen(context, builder, signature, args):
        return ir.Constant(_ir_type(result), [float(i) for i in range(result.lanes)])

    return result(like, lanes), codegen


@intrinsic(prefer_literal=True)
def load(typingctx, array, index, lanes):
    """``lanes`` elements of a float32/float64 array from flat ``index`` on."""
    if not isinstance(lanes, types.IntegerLiteral) or array.dtype not in _IR:
        return None
    result = vec(array.dtype, lanes.literal_value)

    def codegen(context, builder, signature, args):
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1], _ir_type(result))
        value = builder.load(pointer, align=signature.args[0].dtype.bitwidth // 8)
        return value

    return result(array, types.intp, lanes), codegen


@intrinsic
def store(typingctx, array, index, value):
    """Write all lanes of ``value`` from flat ``index`` on."""
    if not isinstance(value, VecType) or array.dtype != value.dtype:
        return None

    def codegen(context, builder, signature, args):
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1], _ir_type(value))
        builder.store(args[2], pointer, align=value.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), codegen


@intrinsic(prefer_literal=True)
def load_u16(typingctx, array, index, lanes):
    """``lanes`` elements of a uint16 array from flat ``index`` on, as float32."""
    if not isinstance(lanes, types.IntegerLiteral) or array.dtype != types.uint16:
        return None
    result = vec(types.float32, lanes.literal_value)

    def codegen(context, builder, signature, args):
        stored = ir.VectorType(ir.IntType(16), result.lanes)
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1], stored)
        wide = builder.zext(builder.load(pointer, align=2), ir.VectorType(_I32, result.lanes))
        return builder.sitofp(wide, _ir_type(result))

    return result(array, types.intp, lanes), codegen


def _fold(builder, a, b, group):
    """Halve every group of lanes of two vectors by adding its halves; the results side by side in one."""
    lanes = a.type.count
    starts = [first + offset for offset in (0, lanes) for first in range(0, lanes, group)]
    halves = []
    for shift in (0, group // 2):
        picks = [start + shift + i for start in starts for i in range(group // 2)]
        halves.append(builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, lanes), picks)))
    return builder.fadd(*halves)


def _lane_sums(builder, vectors):
    """One vector whose lane i is the sum of the lanes of vectors[i]; as many vectors as lanes."""
    group = len(vectors)
    while len(vectors) > 1:
        vectors = [_fold(builder, a, b, group) for a, b in zip(vectors[::2], vectors[1::2])]
        group //= 2
    return vectors[0]


@intrinsic
def store_totals(typingctx, array, index, values):
    """Write the sum of the lanes of every vector of a tuple, one after the other, from flat ``index`` on.

    The array needs room for the tuple's length rounded up to a multiple of the lanes (a power of two). The
    order of additions is the same on every machine.
    """
    if not isinstance(values, types.UniTuple) or not isinstance(values.dtype, VecType):
        return None
    vector = values.dtype
    if vector.lanes & (vector.lanes - 1) or array.dtype != vector.dtype:
        return None

    def codegen(context, builder, signature, args):
        vectors = cgutils.unpack_tuple(builder, args[2], values.count)
        zero = _constant(_ir_type(vector), 0.0)
        for first in range(0, values.count, vector.lanes):
            part = vectors[first : first + vector.lanes]
            part += [zero] * (vector.lanes - len(part))
            place = builder.add(args[1], ir.Constant(args[1].type, first))
            pointer = _pointer(context, builder, signature.args[0], args[0], place, _ir_type(vector))
            builder.store(_lane_sums(builder, part), pointer, align=vector.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, values), codegen


@intrinsic
def total(typingctx, value):
    """Sum of the lanes (a power of two), halves added to halves: the same order on every machine."""
    if not isinstance(value, VecType) or value.lanes & (value.lanes - 1):
        return None

    def codegen(context, builder, signature, args):
        (x,) = args
        lanes = value.lanes
        while lanes > 1:
            lanes //= 2
            halves = [
                builder.shuffle_vector(x, x, ir.Constant(ir.VectorType(_I32, lanes), list(part)))
                for part in (range(lanes), range(lanes, 2 * lanes))
            ]
            x = builder.fadd(*halves)
        return builder.extract_element(x, ir.Constant(_I32, 0))

    return value.dtype(value), codegen


# Chebyshev interpolant of 2^f on [-1/2, 1/2], relative error 3e-9.
_EXP2 = (
    1.0,
    0.6931472067028329,
    0.24022650922289554,
    0.05550327226669895,
    0.00961805667843204,
    0.0013400428177711937,
    0.00015461444724808513,
)
_SHIFT = {types.float32: 1.5 * 2.0**23, types.float64: 1.5 * 2.0**52}


@intrinsic
def exp2(typingctx, x):
    """float32 2^x, x clamped to [-126, 126]; a float64 x is reduced in float64: large x lose nothing."""
    if not isinstance(x, VecType):
        return None
    result = vec(types.float32, x.lanes)

    def codegen(context, builder, signature, args):
        (value,) = args
        real, single = value.type, _ir_type(result)
        integer = ir.VectorType(ir.IntType(x.dtype.bitwidth), x.lanes)
        value = _emit_max(builder, value, _constant(real, -126.0))
        high = _constant(real, 126.0)
        value = builder.select(builder.fcmp_ordered('<', value, high), value, high)
        # Adding 1.5 * 2^52 (2^23) rounds to the nearest integer, which then stands in the lowest bits.
        shift = _constant(real, _SHIFT[x.dtype])
        shifted = builder.fadd(value, shift)
        fraction = builder.fsub(value, builder.fsub(shifted, shift))
        whole = builder.bitcast(shifted, integer)
        if x.dtype == types.float64:
            fraction = builder.fptrunc(fraction, single)
            whole = builder.trunc(whole, ir.VectorType(_I32, x.lanes))
        power = _constant(single, _EXP2[-1])
        for coefficient in _EXP2[-2::-1]:
            power = _call(builder, 'fmuladd', [power, fraction, _constant(single, coefficient)])
        exponent = builder.shl(whole, _constant(whole.type, 23))
        return builder.bitcast(builder.add(builder.bitcast(power, whole.type), exponent), single)

    return result(x), codegen


def _on_counter(emit):
    """An intrinsic over (counters, index), an int64 array and the place of one; returns an int64."""

    @intrinsic
    def operation(typingctx, counters, index):
        if counters.dtype != types.int64:
            return None

        def codegen(context, builder, signature, args):
            return emit(builder, _pointer(context, builder, signature.args[0], *args, ir.IntType(64)))

        return types.int64(counters, types.intp), codegen

    return operation


#: Atomically add one to ``counters[index]`` and return what it was: a shared work queue.
fetch_add = _on_counter(
    lambda builder, pointer: builder.atomic_rmw('add', pointer, ir.Constant(ir.IntType(64), 1), 'acq_rel')
)
#: ``counters[index]`` as other threads leave it with `fetch_add`; what they wrote before that is then seen too.
read_counter = _on_counter(lambda builder, pointer: builder.load_atomic(pointer, 'acquire', 8))


@intrinsic
def as_float(typingctx, bits):
    """The float32 with these int32 bits."""
    if bits != types.int32:
        return None

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(bits), codegen


@intrinsic
def pack4(typingctx, a, b, c, d):
    """A vector of four float64."""
    if {a, b, c, d} != {types.float64}:
        return None
    result = vec(types.float64, 4)

    def codegen(context, builder, signature, args):
        value = ir.Constant(_ir_type(result), ir.Undefined)
        for lane, arg in enumerate(args):
            value = builder.insert_element(value, arg, ir.Constant(_I32, lane))
        return value

    return result(a, b, c, d), codegen


@intrinsic
def prefetch(typingctx, array, index):
    """Ask for the cache line of flat element ``index``; any index inside or outside the array is safe."""

    def codegen(context, builder, signature, args):
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1], ir.IntType(8))
        flag = [ir.Constant(_I32, n) for n in (0, 3, 1)]
        function_type = ir.FunctionType(ir.VoidType(), [pointer.type, _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(builder.module, function_type, 'llvm.prefetch.p0')
        builder.call(function, [pointer, *flag])
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen
