"""Exact sums against rational arithmetic, and against themselves in other orders, shards, trees and slices.
The reference is reference_exact.py; numbers that stand here were worked out by hand."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import reference_exact as reference
from foedus.aggregators import exact, levels
from foedus.aggregators.exact import BLOCK, Bins, NotFinite
from foedus.errors import FoedusError

Array = NDArray[Any]
Pairs = Sequence[tuple[Array, float]]

BF16 = np.dtype(ml_dtypes.bfloat16)
F16, F32, F64 = (np.dtype(t) for t in (np.float16, np.float32, np.float64))
BITS = {F16: np.uint16, BF16: np.uint16, F32: np.uint32, F64: np.uint64}
HUGE = float(np.finfo(np.float32).max)


def f16(*values: float) -> Array:
    return np.array(values, F16)


def f32(*values: float) -> Array:
    return np.array(values, F32)


def f64(*values: float) -> Array:
    return np.array(values, F64)


def folded(pairs: Pairs, size: int, dtype: Any) -> Bins:
    bins = exact.empty(size, dtype)
    for x, weight in pairs:
        exact.fold(bins, x, weight)
    return bins


def mean_of(pairs: Pairs) -> Array:
    x = pairs[0][0]
    return exact.total(folded(pairs, x.size, x.dtype), divisor(pairs))


def divisor(pairs: Pairs) -> Fraction:
    return sum((Fraction(weight) for _, weight in pairs), Fraction(0))


def any_finite(generator: np.random.Generator, size: int, dtype: Any) -> Array:
    """Every bit pattern is as likely as any other, but for NaN, infinity and what float64 has beyond 2**600."""
    bits = generator.integers(0, 2 ** (8 * np.dtype(dtype).itemsize), size, BITS[np.dtype(dtype)], endpoint=False)
    x: Array = bits.view(dtype)
    with np.errstate(invalid="ignore"):
        x[~(np.abs(x.astype(np.float64)) < 2.0**600)] = 0
    return x


def like_training(generator: np.random.Generator, size: int, dtype: Any) -> Array:
    return (generator.standard_normal(size) * 0.01 * generator.integers(0, 9)).astype(dtype)


def weight_of(generator: np.random.Generator) -> float:
    examples, full = (float(generator.integers(1, most)) for most in (2000, 2**29))
    return (1.0, examples, full * 2.0 ** int(generator.integers(-64, 35)))[generator.integers(3)]


def tree(pairs: Pairs, size: int, dtype: Any, choose: random.Random) -> Bins:
    """Folds and merges in a random order and shape."""
    shards = [folded([pair], size, dtype) for pair in pairs]
    while len(shards) > 1:
        one = shards.pop(choose.randrange(len(shards)))
        other = shards.pop(choose.randrange(len(shards)))
        shards.append(exact.merge(one, other))
    return shards[0]


@st.composite
def updates(draw: st.DrawFn) -> tuple[list[tuple[Array, float]], int]:
    seed = draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    dtype = draw(st.sampled_from(list(BITS)))
    make = draw(st.sampled_from([any_finite, like_training]))
    size = draw(st.integers(1, 12))
    return [(make(generator, size, dtype), weight_of(generator)) for _ in range(draw(st.integers(1, 8)))], seed


@pytest.mark.properties
@given(updates())
@settings(max_examples=300, deadline=None)
def test_every_element_is_near_rational_arithmetic_and_the_same_in_any_order_and_tree(case: Any) -> None:
    pairs, seed = case
    size, dtype = pairs[0][0].size, pairs[0][0].dtype
    choose, shuffled = random.Random(seed), list(pairs)
    choose.shuffle(shuffled)
    got = mean_of(pairs)
    want = reference.mean([x for x, _ in pairs], [w for _, w in pairs])
    if dtype == np.float64:
        assert got.dtype == np.float64
        assert reference.relative(got, want) <= 5e-16
    else:
        assert got.dtype == np.float32
        assert reference.ulps(got, want) <= 0.5000001
    assert mean_of(shuffled).tobytes() == got.tobytes()
    assert exact.total(tree(pairs, size, dtype, choose), divisor(pairs)).tobytes() == got.tobytes()


@pytest.mark.properties
@given(st.integers(0, 2**32 - 1), st.sampled_from([(37, 1, 0), (40, 4, 3), (48, 16, 10**9), (51, 4, 8)]))
@settings(max_examples=60, deadline=None)
def test_where_the_levels_lie_changes_no_bit(seed: int, other: tuple[int, int, int]) -> None:
    generator = np.random.default_rng(seed)
    pairs = [(any_finite(generator, 100, np.float32), weight_of(generator)) for _ in range(6)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(levels, "FEWEST", 22)
        for name, value in zip(("FRESH", "STEP", "SPARSE"), other, strict=True):
            patch.setattr(levels, name, value)
        elsewhere = mean_of(pairs)
    assert mean_of(pairs).tobytes() == elsewhere.tobytes()


@pytest.mark.parametrize("least", [132, -1036])
def test_one_sum_held_by_other_levels_has_the_same_value(least: int) -> None:
    generator = np.random.default_rng(11)
    fine = generator.integers(-(2**52), 2**52, BLOCK) << 9
    coarse = generator.integers(-(2**40), 2**40, BLOCK) >> generator.integers(0, 41, BLOCK)
    other = generator.integers(-(2**56), 2**56, BLOCK)
    two, three = [(0, fine), (4, coarse)], [(0, fine % 2**20), (4, coarse), (20, fine >> 20)]
    crossed = [(0, fine + 16 * (coarse - other)), (4, other)]
    for dtype in (F32, F64):
        totals = set()
        for split in ([(0, fine + 16 * coarse)], two, three, crossed):
            held = [levels.Level(least + e, counts.view(np.uint64), used=levels.FULL) for e, counts in split]
            totals.add(exact.total(Bins(BLOCK, dtype, [held]), 3 * Fraction(2) ** (least - 132)).tobytes())
        assert len(totals) == 1


def test_a_mean_at_the_end_of_float32_is_found_below_levels_that_cancel() -> None:
    counts = [(132, 1 - 2**60), (148, 2**44 + 1)]  # together (2**16 + 1) * 2**132
    held = [levels.Level(e, np.array([n]).view(np.uint64), used=levels.FULL) for e, n in counts]
    divisor = Fraction((2**16 + 1) * 2**132, 2**exact.UNIT) / Fraction(HUGE)
    assert exact.total(Bins(1, np.dtype(np.float32), [held]), divisor).tolist() == [HUGE]


@pytest.mark.parametrize("dtype", list(BITS), ids=str)
@pytest.mark.parametrize("make", [any_finite, like_training])
def test_slices_shards_and_orders_of_a_larger_array_give_the_same_bytes(make: Callable[..., Array], dtype: Any) -> None:
    generator, choose, size = np.random.default_rng(7), random.Random(7), 2 * BLOCK + 17
    pairs = [(make(generator, size, dtype), weight_of(generator)) for _ in range(5)]
    whole = mean_of(pairs).tobytes()
    assert exact.total(tree(pairs[::-1], size, dtype, choose), divisor(pairs)).tobytes() == whole
    for cuts in ([BLOCK], [BLOCK, 2 * BLOCK], [1, BLOCK + 1, size - 1]):
        stretches = zip([0, *cuts], [*cuts, size], strict=True)
        assert b"".join(mean_of([(x[a:b], w) for x, w in pairs]).tobytes() for a, b in stretches) == whole


def test_mixed_magnitudes_in_a_large_array_are_right_in_every_element() -> None:
    generator, size = np.random.default_rng(3), BLOCK + 9
    scales, weights = f32(1e-44, 1e-30, 1e-9, 1.0, 1e30), [3.0, 777.0, 2.0**-40]
    arrays = [generator.standard_normal(size, np.float32) * generator.choice(scales, size) for _ in weights]
    some = generator.choice(size, 2000, replace=False)
    got = mean_of(list(zip(arrays, weights, strict=True)))[some]
    assert reference.ulps(got, reference.mean([x[some] for x in arrays], weights)) <= 0.5000001


def test_full_significands_times_full_weights_in_float64() -> None:
    generator, weights = np.random.default_rng(4), [float(2**29 - 1), float(2**29 - 3) * 2.0**-60, 1.0]
    arrays = [generator.standard_normal(500) * 10.0 ** generator.integers(-9, 9, 500) for _ in weights]
    got = mean_of(list(zip(arrays, weights, strict=True)))
    assert reference.relative(got, reference.mean(arrays, weights)) <= 5e-16


@pytest.mark.parametrize("weight", [5.0, 2.0**29 - 1, 2.0**-30 * 3])
def test_full_significands_cancel_to_the_last_bit_in_float64(weight: float) -> None:
    x = np.random.default_rng(12).standard_normal(500)
    bins = folded([(x, weight), (x, 1.0), (-x, weight), (x * 2.0**-80, 1.0), (-x, 1.0)], x.size, np.float64)
    assert exact.total(bins, 1).tolist() == (x * 2.0**-80).tolist()
    bins = folded([(x, 2.0**29 - 1), (x, 1.0), (-x, 2.0**29)], x.size, np.float64)
    assert exact.total(bins).tobytes() == bytes(8 * x.size)


def test_the_least_float64_times_the_least_weight_is_kept() -> None:
    x = f64(5e-324, -5e-324, 2.0**-1040)
    pairs = [(x, 2.0**-64), (f64(1e180, 1.0, 0.0), 1.0), (f64(-1e180, -1.0, 0.0), 1.0)]
    bins = folded(pairs, 3, np.float64)
    assert exact.total(bins, Fraction(1, 2**64)).tolist() == x.tolist()


def test_the_least_float32_survives_the_largest() -> None:
    x = f32(2.0**-149, -(2.0**-149), 2.0**-140)
    giant = np.full(3, HUGE, np.float32)
    bins = folded([(x, 2.0**-64), (giant, 2.0**64), (-giant, 2.0**64)], 3, np.float32)
    assert exact.total(bins, Fraction(1, 2**64)).tolist() == x.tolist()


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (1, 2, 0), (2, 0, 1)])
def test_a_giant_loses_nothing_of_its_neighbours_whenever_it_arrives(order: tuple[int, int, int]) -> None:
    small = np.full(3, 1e-30, np.float32)
    giant = f32(1e30, 0.0, -1e30)
    pairs = [(small, 1.0), (giant, 1.0), (-giant, 1.0)]
    assert (exact.total(folded([pairs[i] for i in order], 3, np.float32)) == small).all()


def test_bins_at_different_magnitudes_merge_exactly() -> None:
    low, high = (folded([(np.full(2, v, np.float32), 1.0)], 2, np.float32) for v in (2.0**-100, 2.0**100))
    undo = folded([(np.full(2, -(2.0**100), np.float32), 1.0)], 2, np.float32)
    assert exact.total(exact.merge(exact.merge(low, high), undo)).tolist() == [2.0**-100] * 2


def test_halfway_means_round_to_even() -> None:
    step = 2.0**-23
    pairs = [(f32(1.0, 1 + step), 3.0), (f32(1 + step, 1 + 2 * step), 3.0)]
    assert mean_of(pairs).tolist() == [1.0, 1 + 2 * step]


def test_a_sum_that_was_cleared_is_a_sum_of_nothing_and_can_be_used_again() -> None:
    generator = np.random.default_rng(13)
    one, other = (any_finite(generator, BLOCK + 1, np.float32) for _ in range(2))
    bins = exact.clear(folded([(one, 3.0)], one.size, np.float32))
    assert exact.total(bins).tobytes() == bytes(one.nbytes)
    exact.fold(bins, other, 3.0)
    assert exact.total(bins, 3).tobytes() == mean_of([(other, 3.0)]).tobytes()


def test_twenty_thousand_sites_of_ones_have_the_mean_one() -> None:
    ones, bins = np.ones(10, np.float32), exact.empty(10, np.float32)
    for _ in range(20_000):
        exact.fold(bins, ones, 3.0)
    assert exact.total(bins, 60_000).tolist() == [1.0] * 10
    assert exact.total(bins).tolist() == [60_000.0] * 10


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_sum_that_doubles_seventy_times_never_overflows(dtype: Any) -> None:
    x = like_training(np.random.default_rng(5), 1000, dtype)
    bins = folded([(x, 1.0)], x.size, dtype)
    for _ in range(70):
        bins = exact.merge(bins, copy.deepcopy(bins))
    exact.fold(bins, x, 1.0)
    exact.fold(bins, x, 2.0**-64)
    assert exact.total(bins, 2**70 + 1 + Fraction(1, 2**64)).tolist() == x.tolist()
    exact.fold(bins, -x, 1.0)
    exact.fold(bins, -x, 2.0**-64)
    assert exact.total(bins, 2**70).tolist() == x.tolist()


def test_levels_that_fill_up_while_folding_lose_nothing() -> None:
    generator, size = np.random.default_rng(6), 40
    arrays = [any_finite(generator, size, np.float32) * np.float32(2.0**-20) for _ in range(4)]
    weights = [1.0, 3.0, 2.0**-30, 123456789.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(levels, "FULL", 3 << 51)
        crowded = mean_of([*zip(arrays * 20, weights * 20, strict=True)])
        assert reference.ulps(crowded, reference.mean(arrays, weights)) <= 0.5000001


def test_half_types_have_a_float32_mean() -> None:
    assert mean_of([(f16(65504, -65504, 2.0**-24), 1000.0)]).tolist() == [65504, -65504, 2.0**-24]
    assert exact.total(folded([(f16(65504), 1000.0)], 1, np.float16)).tolist() == [65_504_000]
    got = mean_of([(np.array([1, 2], BF16), 1.0), (np.array([1 + 2**-7, 4], BF16), 1.0)])
    assert got.dtype == np.float32
    assert got.tolist() == [1 + 2.0**-8, 3.0]


def test_the_largest_float32_at_the_largest_weight_has_a_mean_but_no_sum() -> None:
    bins = folded([(f32(HUGE, -HUGE), 2.0**64)] * 3, 2, np.float32)
    assert exact.total(bins, 3 * 2**64).tolist() == [HUGE, -HUGE]
    with pytest.raises(FoedusError, match="beyond the range of float32"):
        exact.total(bins)


def test_zeros_of_either_sign_and_what_rounds_to_zero_sum_to_positive_zero() -> None:
    one, other = f32(-0.0, 0.0, -0.0, 1.0), f32(-0.0, -0.0, 0.0, -1.0)
    assert mean_of([(one, 1.0), (other, 1.0)]).tobytes() == bytes(16)
    assert mean_of([(f32(-(2.0**-149)), 1.0), (f32(0), 3.0)]).tobytes() == bytes(4)


def test_empty_arrays_and_sums_of_nothing_are_zeros() -> None:
    assert exact.total(folded([(np.empty(0, np.float32), 1.0)], 0, np.float32), 1).shape == (0,)
    assert exact.total(exact.empty(BLOCK + 1, np.float16)).tobytes() == bytes(4 * (BLOCK + 1))


def test_a_weight_below_one_divides_exactly() -> None:
    assert mean_of([(f32(1.0), 0.5), (f32(7.0), 0.25)]).tolist() == [3.0]


@pytest.mark.parametrize("dtype", list(BITS), ids=str)
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("index", [0, BLOCK + 3])
def test_an_array_that_is_not_finite_is_refused_and_leaves_no_trace(index: int, bad: float, dtype: Any) -> None:
    x = like_training(np.random.default_rng(8), BLOCK + 5, dtype)
    bins = folded([(x, 3.0)], x.size, dtype)
    before, broken = copy.deepcopy(bins), x.copy()
    broken[index:] = bad
    with pytest.raises(NotFinite, match=f"element {index} is") as caught:
        exact.fold(bins, broken, 5.0)
    assert caught.value.index == index
    for levels_now, levels_before in zip(bins.blocks, before.blocks, strict=True):
        for now, then in zip(levels_now, levels_before, strict=True):
            assert (now.exponent, now.biases, now.used) == (then.exponent, then.biases, then.used)
            assert now.counts.tobytes() == then.counts.tobytes()


def test_a_float64_beyond_the_range_is_refused_by_name_and_one_within_is_not() -> None:
    bins, most = exact.empty(2, np.float64), np.nextafter(2.0**700, 0)
    with pytest.raises(NotFinite, match=r"element 1 is -5.26014e\+210.*below 2\*\*700 / weight") as caught:
        exact.fold(bins, f64(1.0, -(2.0**700)), 1.0)
    assert caught.value.index == 1
    with pytest.raises(NotFinite, match="element 0"):
        exact.fold(bins, f64(2.0**690, 0.0), 1024.0)
    for _ in range(1000):
        exact.fold(bins, f64(-most, most), 1.0)
    exact.fold(bins, f64(most, -most) / 4, 4.0)
    assert exact.total(bins, 999).tolist() == [-most, most]


@pytest.mark.parametrize("weight", [0.0, -1.0, np.nan, np.inf, 2.0**65, 2.0**-65, float(2**29 + 1), 0.1])
def test_weights_that_would_not_be_exact_are_refused(weight: float) -> None:
    with pytest.raises(FoedusError, match="weight"):
        exact.fold(exact.empty(1, np.float32), np.ones(1, np.float32), weight)


def test_check_says_what_fold_would_say_and_adds_nothing() -> None:
    bins = exact.empty(2, np.float32)
    exact.check(bins, np.ones(2, np.float32), 1.0)
    with pytest.raises(NotFinite):
        exact.check(bins, f32(1, np.nan), 1.0)
    with pytest.raises(FoedusError, match="weight"):
        exact.check(bins, np.ones(2, np.float32), 0.0)
    assert exact.total(bins).tolist() == [0, 0]


def test_other_shapes_dtypes_and_divisors_are_refused() -> None:
    bins = exact.empty(3, np.float32)
    for x in (np.ones(2, np.float32), np.ones((3, 1), np.float32), np.ones(3), np.ones(3, ">f4"), np.ones(3, np.int32)):
        with pytest.raises(FoedusError, match="cannot add"):
            exact.fold(bins, x, 1.0)
    for other in (exact.empty(4, np.float32), exact.empty(3, np.float64)):
        with pytest.raises(FoedusError, match="cannot merge"):
            exact.merge(bins, other)
    with pytest.raises(FoedusError, match="at least one update"):
        exact.total(bins, 0)
    for dtype in (np.int64, np.complex128, object, "U3", ">f8"):
        with pytest.raises(FoedusError, match="cannot sum"):
            exact.empty(3, dtype)


def test_the_array_that_is_folded_may_be_read_only_and_stays_as_it_is() -> None:
    for dtype in BITS:
        x = like_training(np.random.default_rng(9), 50, dtype)
        kept = x.tobytes()
        x.flags.writeable = False
        mean_of([(x, 5.0)])
        assert x.tobytes() == kept


def test_threads_that_fold_at_the_same_time_do_not_disturb_each_other() -> None:
    generator = np.random.default_rng(10)
    pairs = [(any_finite(generator, 4 * BLOCK, np.float32), weight_of(generator)) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        got = [total.tobytes() for total in pool.map(mean_of, [pairs] * 8)]
    assert got == [mean_of(pairs).tobytes()] * 8


# rows at once


WEIGHTS_OF_ROWS = st.one_of(
    st.integers(1, 40).map(float), st.sampled_from([0.1 * 2**4 // 1, 2.0**-64, 0.75, 2.0**40, 3.0])
)


@st.composite
def rows(draw: st.DrawFn) -> tuple[Array, list[float]]:
    """Rows of float32 of all sizes: close together, far apart, one next to another's half bit, and zeros."""
    count, size = draw(st.integers(1, 9)), draw(st.sampled_from([1, 3, 40]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    near, far = draw(st.integers(-140, 120)), draw(st.sampled_from([1, 20, 45, 160]))
    x = np.ldexp(rng.normal(size=(count, size)), np.clip(near - rng.integers(0, far, (count, size)), -148, 126))
    x[rng.random(x.shape) < draw(st.sampled_from([0.0, 0.5, 0.99]))] = 0
    return x.astype(np.float32), draw(st.lists(WEIGHTS_OF_ROWS, min_size=count, max_size=count))


@pytest.mark.properties
@settings(max_examples=300, deadline=None)
@given(drawn=st.lists(rows(), min_size=1, max_size=3))
def test_rows_at_once_are_the_sum_of_rows(drawn: list[tuple[Array, list[float]]]) -> None:
    drawn = [(x, weights) for x, weights in drawn if x.shape[1] == drawn[0][0].shape[1]]
    pairs = [(row, w) for x, weights in drawn for row, w in zip(x, weights, strict=True)]
    bins = exact.empty(drawn[0][0].shape[1], F32)
    for x, weights in drawn:
        exact.fold_rows(bins, x, weights)
    whole = divisor(pairs)
    assert exact.total(bins, whole).tobytes() == mean_of(pairs).tobytes()
    want = reference.mean([x for x, _ in pairs], [w for _, w in pairs])
    assert reference.ulps(exact.total(bins, whole), want) <= 0.5000001


@pytest.mark.parametrize("size", [1, 5000, BLOCK, BLOCK + 1])
@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64])
def test_rows_of_any_dtype_and_size_are_the_sum_of_rows(size: int, dtype: Any) -> None:
    rng = np.random.default_rng(size)
    x, weights = rng.normal(size=(20, size)).astype(dtype), [float(w) for w in rng.integers(1, 9, 20)]
    bins = exact.empty(size, dtype)
    exact.fold_rows(bins, x, weights)
    pairs = list(zip(x, weights, strict=True))
    assert exact.total(bins, divisor(pairs)).tobytes() == mean_of(pairs).tobytes()


def test_small_numbers_of_several_rows_in_one_place_all_count() -> None:
    x = np.ones((16, 8), F32)
    x[:, 0] = 0
    x[[2, 5, 11], 0] = f32(2.0**-100, 3 * 2.0**-100, 2.0**-140)
    bins = exact.empty(8, F32)
    exact.fold_rows(bins, x, [2.0] * 16)
    assert exact.total(bins).tolist() == [8 * 2.0**-100, *[32.0] * 7]  # of 2**-139 more, float32 has no bits
    exact.fold(bins, f32(-8 * 2.0**-100, *[0] * 7), 1.0)
    assert exact.total(bins)[0] == 2.0**-139


def test_so_many_rows_that_a_level_is_full_are_the_sum_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels, "FULL", 1 << 53)
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(300, 7)).astype(F32), [1.0] * 300
    bins = exact.empty(7, F32)
    for a in range(0, 300, 3):
        exact.fold_rows(bins, x[a : a + 3], weights[a : a + 3])
    assert exact.total(bins, 300).tobytes() == mean_of(list(zip(x, weights, strict=True))).tobytes()


def test_a_row_that_cannot_be_added_leaves_all_out() -> None:
    bins = exact.empty(2, F32)
    for odd in (np.nan, np.inf):
        with pytest.raises(NotFinite):
            exact.fold_rows(bins, f32(1, 2, odd, 4).reshape(2, 2), [1.0, 2.0])
    with pytest.raises(FoedusError, match="cannot add"):
        exact.fold_rows(bins, f32(1, 2, 3).reshape(1, 3), [1.0])
    exact.fold_rows(bins, f32(1, 2, 3, 4).reshape(2, 2), [1.0, 2.0])
    assert exact.total(bins).tolist() == [7.0, 10.0]
