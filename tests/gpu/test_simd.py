"""The explicit SIMD type, operation by operation, against numpy."""

import numpy as np
import pytest
from numba import njit

from bids_gsrecon.gpu import _simd as v

LANES = [4, 8, 16]


def run(body, lanes, dtype, *extra):
    """Compile ``body(a, b, c, out, *extra)`` with a and b random arrays of one vector each, and call it."""
    rng = np.random.default_rng(lanes)
    a, b, c = (rng.normal(size=lanes + 3).astype(dtype) for _ in range(3))
    out = np.full(lanes + 3, 99, dtype)
    body(lanes)(a, b, c, out, *extra)
    assert (out[lanes + 1 :] == 99).all(), 'a store wrote more than its lanes'
    return a[1 : lanes + 1], b[1 : lanes + 1], c[1 : lanes + 1], out[1 : lanes + 1]


def arithmetic(lanes):
    @njit
    def body(a, b, c, out, which):
        x, y, z = v.load(a, 1, lanes), v.load(b, 1, lanes), v.load(c, 1, lanes)
        if which == 0:
            v.store(out, 1, v.add(x, y))
        elif which == 1:
            v.store(out, 1, v.sub(x, y))
        elif which == 2:
            v.store(out, 1, v.mul(x, y))
        elif which == 3:
            v.store(out, 1, v.fma(x, y, z))
        elif which == 4:
            v.store(out, 1, v.maximum(x, y))
        elif which == 5:
            v.store(out, 1, v.keep_above(x, y, z))
        elif which == 6:
            v.store(out, 1, v.fma(x, 2.5, v.full(a[0], lanes)))
        else:
            v.store(out, 1, v.add(v.iota(a[0], lanes), x))

    return body


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
@pytest.mark.parametrize('lanes', LANES)
def test_arithmetic(lanes, dtype):
    body = arithmetic(lanes)
    expected = {
        0: lambda a, b, c: a + b,
        1: lambda a, b, c: a - b,
        2: lambda a, b, c: a * b,
        3: lambda a, b, c: a * b + c,
        4: lambda a, b, c: np.maximum(a, b),
        5: lambda a, b, c: np.where(b > c, a, 0),
        7: lambda a, b, c: np.arange(lanes) + a,
    }
    for which, function in expected.items():
        a, b, c, out = run(lambda _: body, lanes, dtype, which)
        assert np.allclose(out, function(a, b, c), rtol=1e-6, atol=1e-7), which
    rng = np.random.default_rng(lanes)
    first = rng.normal(size=lanes + 3).astype(dtype)[0]
    a, _, _, out = run(lambda _: body, lanes, dtype, 6)
    assert np.allclose(out, 2.5 * a + first, rtol=1e-6)


@pytest.mark.parametrize('lanes', LANES)
def test_totals(lanes):
    @njit
    def one(a):
        return v.total(v.load(a, 0, lanes))

    @njit
    def many(a, out):
        x, y, z = v.load(a, 0, lanes), v.load(a, 1, lanes), v.load(a, 2, lanes)
        v.store_totals(out, 1, (x, y, z, v.add(x, y), v.mul(x, y)))

    a = np.random.default_rng(0).normal(size=lanes + 2)
    assert one(a) == pytest.approx(a[:lanes].sum())
    out = np.full(2 + -(-5 // lanes) * lanes, 99.0)
    many(a, out)
    x, y, z = a[:lanes], a[1 : lanes + 1], a[2:]
    assert np.allclose(out[1:6], [x.sum(), y.sum(), z.sum(), (x + y).sum(), (x * y).sum()])
    assert out[0] == out[-1] == 99


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
@pytest.mark.parametrize('lanes', LANES)
def test_exp2(lanes, dtype):
    @njit
    def body(a, out):
        for i in range(0, len(a), lanes):
            v.store(out, i, v.exp2(v.load(a, i, lanes)))

    a = np.linspace(-125.9, 125.9, 4096).astype(dtype)
    out = np.empty(4096, np.float32)
    body(a, out)
    assert np.abs(out / np.exp2(a.astype(float)) - 1).max() < 2e-7
    outside = np.array([-1e4, -127, 127, 1e4] * 4, dtype)
    body(outside, out[:16])
    assert np.array_equal(out[:4], np.float32([2.0**-126, 2.0**-126, 2.0**126, 2.0**126]))


def test_exp2_keeps_float64_arguments():
    """At -100 the spacing of float32 numbers is 8e-6: enough to see what the argument lost."""

    @njit
    def body(a, out):
        v.store(out, 0, v.exp2(v.load(a, 0, 8)))

    a = -100 - np.linspace(0, 1e-5, 8)
    out = np.empty(8, np.float32)
    body(a, out)
    assert np.abs(out / np.exp2(a) - 1).max() < 2e-7


def test_uint16_loads_and_packing():
    @njit
    def body(a, out, wide):
        v.store(out, 0, v.load_u16(a, 3, 8))
        v.store(wide, 0, v.pack4(1.5, -2.0, 3.25, 4.0))

    a = np.array([1, 2, 3, 0, 1, 255, 256, 32767, 32768, 65534, 65535, 7], np.uint16)
    out, wide = np.empty(8, np.float32), np.empty(4)
    body(a, out, wide)
    assert np.array_equal(out, a[3:11].astype(np.float32))
    assert np.array_equal(wide, [1.5, -2.0, 3.25, 4.0])


def test_work_queue_gives_every_task_once():
    from numba import prange

    @njit(parallel=True)
    def body(seen):
        counter = np.zeros(1, np.int64)
        for _ in prange(4):
            while True:
                task = v.fetch_add(counter, 0)
                if task >= len(seen):
                    break
                seen[task] += 1

    seen = np.zeros(10000, np.int64)
    body(seen)
    assert (seen == 1).all()


def test_who_waits_for_a_counter_sees_what_was_written_before():
    from numba import prange

    @njit(parallel=True)
    def body(totals):
        begun, done = np.zeros(1, np.int64), np.zeros(1, np.int64)
        for _ in prange(4):
            while True:
                step = v.fetch_add(begun, 0)
                if step >= len(totals):
                    break
                while v.read_counter(done, 0) < step:
                    pass
                totals[step] = step + (totals[step - 1] if step > 0 else 0)
                v.fetch_add(done, 0)

    totals = np.zeros(3000, np.int64)
    body(totals)
    assert np.array_equal(totals, np.cumsum(np.arange(3000)))


def test_prefetch_outside_an_array_is_harmless():
    @njit
    def body(a):
        v.prefetch(a, 10**9)
        v.prefetch(a, -5)
        return a[0]

    assert body(np.ones(3, np.float32)) == 1
