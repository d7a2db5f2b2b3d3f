"""Params: kinds, arithmetic by flat groups, masters of half-precision models, and the digest."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from foedus import params
from foedus.errors import FoedusError
from foedus.params import DTYPES, Params, digest, join, places

BF16 = ml_dtypes.bfloat16


def model() -> Params:
    arrays = {
        "conv": np.arange(4, dtype=np.float32).reshape(2, 2),
        "mean": np.float32([10, 20]),
        "head": np.float64([0.5]),
        "steps": np.int64(3),
        "bias": np.float32([7]),
    }
    return Params(arrays, {"mean": "buffer"})


def test_arrays_keep_their_order_shapes_and_kinds() -> None:
    p = model()
    assert list(p) == ["conv", "mean", "head", "steps", "bias"]
    assert p["conv"].tolist() == [[0, 1], [2, 3]] and p["steps"].shape == ()
    assert list(p.kinds.values()) == ["trainable", "buffer", "trainable", "integer", "trainable"]
    assert (len(p), p.size, p.nbytes) == (5, 9, 4 * 4 + 4 * 2 + 8 + 8 + 4)


def test_arrays_of_one_group_are_views_of_one_flat_array() -> None:
    p = model()
    assert p.flats["float32"].tolist() == [0, 1, 2, 3, 7]
    assert p.flats["float32:buffer"].tolist() == [10, 20]
    p["bias"][0] = 9
    assert p.flats["float32"].tolist() == [0, 1, 2, 3, 9]
    assert [(leaf.name, a, b) for leaf, g, a, b in places(p.spec) if g == "float32"] == [("conv", 0, 4), ("bias", 4, 5)]


def test_params_do_not_share_memory_with_what_they_were_made_of() -> None:
    x, y = np.zeros(2, np.float32), np.zeros((3, 2), np.float64).T
    p = Params({"x": x, "y": y})
    x[0] = y[0, 0] = 5
    assert p["x"].tolist() == [0, 0] and p["y"][0, 0] == 0


def test_a_step_by_hand() -> None:
    p, q = model(), model()
    q.flats["float32"][:] += 2
    q.flats["float32:buffer"][:] = 16
    q["steps"][...] = 8
    delta = q - p
    assert delta["conv"].tolist() == [[2, 2], [2, 2]] and delta["mean"].tolist() == [6, -4] and delta["steps"] == 8
    moved = p + 0.5 * delta
    assert moved["conv"].tolist() == [[1, 2], [3, 4]] and moved["mean"].tolist() == [13, 18]
    assert moved["steps"] == 8 and moved["head"].tolist() == [0.5]
    assert p == model()  # nothing changed in place


@pytest.mark.parametrize("scale", [0.5, np.float64(0.5), np.float32(0.5), np.array(0.5)])
def test_every_scalar_scales(scale: Any) -> None:
    assert (scale * model())["bias"].tolist() == [3.5]


def test_scaling_keeps_the_dtypes() -> None:
    for dtype in (np.float16, BF16, np.float32, np.float64):
        assert (0.25 * Params({"w": np.ones(2, dtype)}))["w"].dtype == np.dtype(dtype)


def test_map_touches_trainable_arrays_alone() -> None:
    p = model().map(lambda x: x * 0)
    assert p["conv"].sum() == p["head"].sum() == p["bias"].sum() == 0
    assert p["mean"].tolist() == [10, 20] and p["steps"] == 3


def test_the_trainable_part_is_the_same_memory() -> None:
    p = model()
    part = p.trainable()
    assert list(part) == ["conv", "head", "bias"]
    part.flats["float32"][0] = 42
    assert p["conv"][0, 0] == 42
    assert part.trainable() is part


@pytest.mark.parametrize(
    "other",
    [
        {"w": np.zeros(2, np.float64)},
        {"w": np.zeros(3, np.float32)},
        {"v": np.zeros(2, np.float32)},
        {"w": np.zeros(2, np.float32), "v": np.zeros(1, np.float32)},
    ],
)
def test_params_that_do_not_match_do_not_add(other: dict[str, Any]) -> None:
    p = Params({"w": np.zeros(2, np.float32)})
    with pytest.raises(FoedusError, match=r"do not match.*'[wv]'"):
        p + Params(other)
    with pytest.raises(FoedusError, match="do not match"):
        p - Params(other)


def test_a_half_precision_model_has_a_float32_master() -> None:
    p = Params({"a": np.float16([1, 2]), "b": np.float32([3]), "c": np.array([4], BF16), "n": np.int8([5])})
    master = p.widen()
    assert [x.dtype.name for x in master.values()] == ["float32", "float32", "float32", "int8"]
    assert master.flats["float32"].tolist() == [1, 2, 3, 4]
    tiny = master + 2.0**-14 * Params.of(master.spec, {g: np.ones_like(x) for g, x in master.flats.items()})
    assert tiny["a"][0] == 1 + 2.0**-14  # float16 could not hold it
    back = tiny.narrow()
    assert [x.dtype.name for x in back.values()] == ["float16", "float32", "bfloat16", "int8"]
    assert back["a"].tolist() == [1, 2] and back.spec == p.spec
    assert p.narrow() is p


def test_several_params_travel_as_one() -> None:
    p, q = model(), Params({"c": np.float32([1, 1])})
    both = join(w=p, c=q)
    assert list(both)[:2] == ["w/conv", "w/mean"] and both["c/c"].tolist() == [1, 1]
    assert both.part("w") == p and both.part("c") == q and len(both.part("x")) == 0


def test_a_tag_that_begins_another_is_not_that_other() -> None:
    both = join(a=Params({"x": np.float32([1])}), ab=Params({"x": np.float32([2])}))
    assert both.part("a")["x"].tolist() == [1] and both.part("ab")["x"].tolist() == [2]


def test_arrays_can_be_put_in_another_order() -> None:
    p = model()
    other = p.ordered(tuple(reversed(p.spec)))
    assert list(other) == list(reversed(list(p))) and digest(other) == digest(p)
    assert other.flats["float32"].tolist() == [7, 0, 1, 2, 3]


@pytest.mark.parametrize(
    "value", [["a"], [None], [1j], np.array([1, 2], "M8[s]"), np.zeros(1, np.longdouble), [{}], "text", None]
)
def test_a_dtype_that_has_no_place_is_refused_by_name(value: Any) -> None:
    with pytest.raises(FoedusError, match=r"array 'odd' has dtype"):
        Params({"fine": np.zeros(1), "odd": np.array(value)})


def test_names_are_strings() -> None:
    with pytest.raises(FoedusError, match="must be a string, not 3"):
        Params({3: np.zeros(1)})  # type: ignore[dict-item]


@pytest.mark.parametrize(("dtype", "kind"), [("int32", "trainable"), ("bool", "buffer"), ("float32", "integer")])
def test_a_kind_that_its_dtype_cannot_be_is_refused(dtype: str, kind: Any) -> None:
    with pytest.raises(FoedusError, match=f"array 'x' is {dtype}: it cannot be {kind}"):
        Params({"x": np.zeros(1, dtype)}, {"x": kind})


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_every_dtype_in_the_list_is_kept(name: str) -> None:
    x = np.ones(3, DTYPES[name])
    assert Params({"x": x})["x"].dtype == DTYPES[name]
    assert Params({"x": x}).copy()["x"].tobytes() == x.tobytes()


def test_equality_tells_kinds_and_numbers_apart() -> None:
    assert model() == model() and model() != 2.0 * model()
    assert Params({"x": np.zeros(1)}) != Params({"x": np.zeros(1)}, {"x": "buffer"})
    assert Params({"x": np.zeros(1)}) != {"x": np.zeros(1)}


# The digest: its definition is DESIGN's, the bytes here are put together by hand.


def test_the_digest_is_that_of_names_dtypes_shapes_and_bytes_in_order_of_names() -> None:
    text = b'["a", "int8", []]\n' + b"\x05" + b'["w", "float32", [2, 1]]\n' + struct.pack("<2f", 1.5, -0.0)
    params = {"w": np.float32([[1.5], [-0.0]]), "a": np.int8(5)}
    assert digest(params) == digest(Params(params)) == hashlib.sha256(text).hexdigest()


def test_the_digest_of_bfloat16_is_that_of_its_two_bytes() -> None:
    text = b'["w", "bfloat16", [1]]\n' + struct.pack("<f", 1.5)[2:]
    assert digest({"w": np.array([1.5], BF16)}) == hashlib.sha256(text).hexdigest()


def test_the_digest_does_not_see_memory_layout() -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert digest({"x": x}) == digest({"x": np.asfortranarray(x)}) == digest({"x": x.astype(">f4")})
    assert digest({"x": x}) == digest({"x": np.repeat(x, 2, axis=0)[::2]})


@pytest.mark.parametrize(
    "other",
    [
        {"y": np.float32([1, 2])},
        {"x": np.float64([1, 2])},
        {"x": np.float32([[1, 2]])},
        {"x": np.float32([2, 1])},
        {"x": np.float32([1, np.nextafter(np.float32(2), np.float32(3))])},
        {"x": np.float32([1, 2]), "y": np.zeros(0)},
    ],
)
def test_the_digest_sees_everything_else(other: dict[str, Any]) -> None:
    assert digest(other) != digest({"x": np.float32([1, 2])})


@pytest.mark.properties
@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=4)), st.data())
def test_one_flipped_bit_changes_the_digest(x: Any, data: st.DataObject) -> None:
    flipped = x.copy()
    raw = flipped.reshape(-1).view(np.uint8)
    raw[data.draw(st.integers(0, raw.size - 1))] ^= np.uint8(1 << data.draw(st.integers(0, 7)))
    assert digest({"x": flipped}) != digest({"x": x})


@pytest.mark.properties
@given(st.permutations(["b", "a", "c/d", "c"]))
def test_the_digest_does_not_see_the_order_of_the_names(names: list[str]) -> None:
    arrays = {name: np.full(2, len(name) + ord(name[-1])) for name in sorted(names)}
    assert digest({name: arrays[name] for name in names}) == digest(Params(arrays))


def test_large_room_is_in_a_file_and_used_again_only_when_nothing_looks_at_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(params, "scratch", tmp_path)
    like = np.zeros(params.LARGE // 4, np.float32)
    first = params.room(like)
    first[:] = 1
    kept, where = first[5:9], first.ctypes.data
    del first
    second = params.room(like)
    second[:] = 2
    assert kept.tolist() == [1, 1, 1, 1]
    del kept
    third = params.room(like)
    assert third.ctypes.data == where and third.shape == like.shape and third.dtype == like.dtype
    assert second[0] == 2
    assert list(tmp_path.iterdir()) == []  # the files have no names: nothing is left after a crash
