"""The saved form: what was packed comes back, other programs can read it, and hostile files are refused."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import struct
import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from foedus import frames
from foedus.errors import WireError
from foedus.files import write_atomic
from foedus.params import DTYPES, Params

GOLDEN = Path(__file__).parent / "golden" / "frame-1.safetensors"
BF16 = ml_dtypes.bfloat16


def golden() -> dict[str, Any]:
    """What the golden file of format 1 holds."""
    arrays = {
        "conv.weight": np.arange(6, dtype=np.float32).reshape(2, 3) / 4,
        "norm.mean": np.float32([-1, 1]),
        "norm.batches": np.int64(12),
        "half": np.float16([1, 2]),
        "brain": np.array([3, 4], BF16),
        "mask": np.array([True, False]),
    }
    model = Params(arrays, {"norm.mean": "buffer"})
    return {
        "state": {"model": model.widen(), "round": 3, "name": "né", "none": None, "yes": True, "rate": 0.1},
        "list": [1, [2.5, "x"], {"deep": np.uint8([[1], [2]])}],
        "empty": [{}, [], Params({}), np.zeros((0, 4), np.float64)],
    }


def same(one: Any, other: Any) -> bool:
    """Equality that looks into trees, arrays and Params; tuples are lists."""
    if isinstance(one, Params):
        return isinstance(other, Params) and one == other and one.kinds == other.kinds
    if isinstance(one, np.ndarray):
        return other.dtype == one.dtype and other.shape == one.shape and other.tobytes() == one.tobytes()
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def file_of(header: Any, arrays: bytes = b"", size: int | None = None) -> bytes:
    """A safetensors file by hand; `header` is a mapping or its text."""
    text = header.encode() if isinstance(header, str) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + arrays


def foedus_file(tree: Any, entries: dict[str, Any] | None = None, arrays: bytes = b"", version: Any = 1) -> bytes:
    meta = tree if isinstance(tree, str) else json.dumps({"version": version, "tree": tree})
    return file_of({"__metadata__": {"foedus": meta}, **(entries or {})}, arrays)


def entry(dtype: str, shape: Any, begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


# What comes back.


def test_what_was_packed_comes_back() -> None:
    assert same(golden(), frames.unpack(frames.pack(golden()).bytes()))


def test_the_golden_file_is_read_and_written_as_ever() -> None:
    assert same(golden(), frames.read(GOLDEN))
    assert frames.pack(golden()).bytes() == GOLDEN.read_bytes()


def test_every_array_of_the_golden_file_is_what_the_safetensors_library_reads() -> None:
    raw = GOLDEN.read_bytes()
    found = safetensors.numpy.load(raw)
    assert sorted(x.tobytes() for x in found.values() if x.size) == sorted(
        x.tobytes() for x in [*golden()["state"]["model"].values(), golden()["list"][2]["deep"]]
    )
    size = struct.unpack("<Q", raw[:8])[0]
    meta = json.loads(json.loads(raw[8 : 8 + size])["__metadata__"]["foedus"])
    assert meta["version"] == 1 and (8 + size) % 8 == 0


def test_arrays_begin_where_their_type_wants_them() -> None:
    tree = [Params({"a": np.zeros(3, np.uint8), "b": np.zeros(1, np.float64), "c": np.zeros(3, np.float16)})]
    data = frames.pack(tree).bytes()
    (found,) = frames.unpack(data)
    base = np.frombuffer(data, np.uint8).ctypes.data
    assert all((x.ctypes.data - base) % x.itemsize == 0 for x in found.values())


def test_arrays_are_read_only_views_and_tuples_are_lists() -> None:
    found = frames.unpack(frames.pack({"x": np.zeros(2), "t": (1, 2)}).bytes())
    assert found["t"] == [1, 2]
    with pytest.raises(ValueError, match="read-only"):
        found["x"][0] = 1


def test_a_frame_says_its_size_and_digest_before_it_is_joined() -> None:
    frame = frames.pack(golden())
    assert frame.size == len(frame.bytes())
    assert frame.digest() == hashlib.sha256(frame.bytes()).hexdigest()


@pytest.mark.parametrize("value", [{1, 2}, b"x", 1j, object(), np.float32(1), {"a": {3}}])
def test_what_is_no_plain_data_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="has no saved form"):
        frames.pack({"x": value})


def test_keys_are_strings() -> None:
    with pytest.raises(TypeError, match="key 1 is not a string"):
        frames.pack({1: 2})


def test_keys_of_users_are_not_taken_for_marks() -> None:
    tree = {"$params": 0, "$map": {"$array": 0}, "leaves": []}
    assert frames.unpack(frames.pack(tree).bytes()) == tree


def test_two_params_with_the_same_names_stay_apart() -> None:
    one, other = Params({"w": np.float32([1])}), Params({"w": np.float32([2])})
    found = frames.unpack(frames.pack([one, other, one]).bytes())
    assert [p["w"].tolist() for p in found] == [[1], [2], [1]]


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
ARRAYS = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda name: hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3).map(
        lambda shape: np.arange(np.prod(shape, dtype=int)).astype(DTYPES[name]).reshape(shape)
    )
)


@pytest.mark.properties
@given(PLAIN, st.dictionaries(st.text(), ARRAYS, max_size=4), ARRAYS)
def test_any_plain_data_and_any_arrays_come_back(plain: Any, arrays: dict[str, Any], x: Any) -> None:
    tree = {"plain": plain, "params": Params(arrays), "x": x}
    assert same(tree, frames.unpack(frames.pack(tree).bytes()))


# Models, for and from other programs.


def test_a_model_file_is_read_by_the_safetensors_library_under_its_own_names(tmp_path: Path) -> None:
    model = golden()["state"]["model"].narrow()
    path = tmp_path / "m.safetensors"
    write_atomic(path, frames.model(model, {"run": "r"}))
    found = safetensors.numpy.load_file(path)
    assert found.keys() == set(model) and all(same(model[n], found[n]) for n in model if n != "brain")
    assert frames.read_model(path) == model and list(frames.read_model(path)) == list(model)


def test_a_model_of_another_program_is_read(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    safetensors.numpy.save_file({"a": np.float32([[1, 2]]), "n": np.int64([3])}, path, {"format": "pt"})
    found = frames.read_model(path)
    assert found["a"].tolist() == [[1, 2]] and found.kinds == {"a": "trainable", "n": "integer"}


def test_a_model_without_arrays_is_read(tmp_path: Path) -> None:
    path = tmp_path / "none.safetensors"
    write_atomic(path, frames.model(Params({}), {}))
    assert len(frames.read_model(path)) == 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:5],
        lambda raw: raw[:60],
        lambda raw: raw[:-1],
        lambda raw: raw + b"\0",
        lambda raw: b"",
        lambda raw: b"\xff" * 100,
        lambda raw: raw.replace(b'\\"trainable\\"', b'\\"integer\\"  '),
        lambda raw: raw.replace(b'\\"w\\", ', b'\\"v\\", '),
        lambda raw: file_of([1]),
        lambda raw: file_of({"__metadata__": []}),
        lambda raw: file_of({"__metadata__": {"foedus": '{"leaves": 3}'}}),
        lambda raw: file_of({"__metadata__": {"foedus": '{"leaves": [[[], "trainable"]]}'}}),
        lambda raw: file_of({"__metadata__": {"foedus": "[" * 9000}}),
        lambda raw: file_of({"w": entry("F8_E4M3", [1], 0, 1)}, b"\0"),
    ],
)
def test_a_damaged_model_file_is_refused_by_its_name(tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "m.safetensors"
    write_atomic(path, frames.model(Params({"w": np.float32([1, 2])}), {}))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(WireError, match=r"m\.safetensors"):
        frames.read_model(path)


def test_a_missing_or_empty_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for read in (frames.read, frames.read_model):
        with pytest.raises(WireError, match=r"nowhere.*No such file"):
            read(tmp_path / "nowhere")
        with pytest.raises(WireError, match="empty is empty"):
            read(tmp_path / "empty")


# Hostile files. None may crash, take much memory, or be read as something else.

ONE = {"$params": 0, "leaves": [["w", "trainable", ""]]}
W = {"0/w": entry("F32", [2], 0, 8)}
HOSTILE = {
    "nothing": b"",
    "no header": b"\x08\0\0\0\0\0\0\0",
    "a header of 2^63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "a header beyond the file": file_of("{}", size=1000),
    "a header of 100 MB announced": struct.pack("<Q", 100 << 20) + b"{" * 1000,
    "no JSON": file_of("{"),
    "not UTF-8": struct.pack("<Q", 2) + b"\xff\xff",
    "a list": file_of([1, 2]),
    "a number": file_of("7"),
    "no metadata": file_of({}),
    "metadata of another program": file_of({"__metadata__": {"format": "pt"}}),
    "metadata that is text": file_of({"__metadata__": "foedus"}),
    "no tree": foedus_file('{"version": 1}'),
    "a description that is a list": foedus_file("[1]"),
    "a later format": foedus_file(None, version=2),
    "a format in words": foedus_file(None, version="1"),
    "nesting, header": file_of("[" * 100_000),
    "nesting, description": foedus_file('{"version": 1, "tree": ' + "[" * 100_000),
    "nested maps": foedus_file('{"version": 1, "tree": ' + '{"$map": {"a": ' * 5000 + "1" + "}}" * 5000 + "}"),
    "overlapping arrays": foedus_file(
        {"$params": 0, "leaves": [["a", "trainable", ""], ["b", "trainable", ""]]},
        {"0/a": entry("F32", [2], 0, 8), "0/b": entry("F32", [2], 4, 12)}, b"\0" * 12),
    "a gap": foedus_file(ONE, {"0/w": entry("F32", [2], 4, 12)}, b"\0" * 12),
    "bytes after the end": foedus_file(ONE, W, b"\0" * 9),
    "truncated arrays": foedus_file(ONE, W, b"\0" * 7),
    "offsets beyond the file": foedus_file(ONE, {"0/w": entry("F32", [2], 0, 80)}, b"\0" * 8),
    "offsets backwards": foedus_file(ONE, {"0/w": entry("F32", [2], 8, 0)}, b"\0" * 8),
    "negative offsets": foedus_file(ONE, {"0/w": entry("F32", [2], -8, 0)}, b"\0" * 8),
    "offsets with fractions": foedus_file(ONE, {"0/w": entry("F32", [2], 0.0, 8.0)}, b"\0" * 8),
    "offsets that are true": foedus_file(ONE, {"0/w": entry("U8", [1], False, True)}, b"\0"),
    "three offsets": foedus_file(ONE, {"0/w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 8]}}, b"\0" * 8),
    "the wrong dtype": foedus_file(ONE, {"0/w": entry("F64", [2], 0, 8)}, b"\0" * 8),
    "an unknown dtype": foedus_file(ONE, {"0/w": entry("C64", [1], 0, 8)}, b"\0" * 8),
    "a dtype that is a list": foedus_file(ONE, {"0/w": entry([], [1], 0, 8)}, b"\0" * 8),
    "a negative shape": foedus_file(ONE, {"0/w": entry("F32", [-1, -2], 0, 8)}, b"\0" * 8),
    "a huge shape": foedus_file(ONE, {"0/w": entry("F32", [2**62, 2**62], 0, 8)}, b"\0" * 8),
    "a huge shape of nothing": foedus_file(ONE, {"0/w": entry("F32", [0, 2**40, 2**40], 0, 0)}),
    "an axis beyond machine integers": foedus_file(ONE, {"0/w": entry("F32", [0, 10**30], 0, 0)}),
    "a million axes": foedus_file(ONE, {"0/w": entry("U8", [1] * 10**6, 0, 1)}, b"\0"),
    "axes with enormous numbers": foedus_file(ONE, {"0/w": entry("U8", [10**4000] * 20_000, 0, 1)}, b"\0"),
    "no entry": foedus_file(ONE, {"0/w": None}, b""),
    "an entry that is missing": foedus_file(ONE),
    "a spoofed kind, integer for float": foedus_file({"$params": 0, "leaves": [["w", "integer", ""]]}, W, b"\0" * 8),
    "a spoofed kind, trainable for integer": foedus_file(ONE, {"0/w": entry("I64", [1], 0, 8)}, b"\0" * 8),
    "a spoofed kind, buffer for integer": foedus_file(
        {"$params": 0, "leaves": [["w", "buffer", ""]]}, {"0/w": entry("I64", [1], 0, 8)}, b"\0" * 8),
    "an unknown kind": foedus_file({"$params": 0, "leaves": [["w", "evil", ""]]}, W, b"\0" * 8),
    "a kind that is a list": foedus_file({"$params": 0, "leaves": [["w", [], ""]]}, W, b"\0" * 8),
    "sent as something else": foedus_file({"$params": 0, "leaves": [["w", "trainable", "int8"]]}, W, b"\0" * 8),
    "an integer sent as a half": foedus_file(
        {"$params": 0, "leaves": [["w", "integer", "float16"]]}, {"0/w": entry("I32", [2], 0, 8)}, b"\0" * 8),
    "a name twice": foedus_file({"$params": 0, "leaves": [["w", "trainable", ""]] * 2}, W, b"\0" * 8),
    "an empty name twice": foedus_file(
        {"$params": 0, "leaves": [["w", "trainable", ""]] * 2}, {"0/w": entry("F32", [0], 0, 0)}),
    "a name that is a number": foedus_file(
        {"$params": 0, "leaves": [[1, "trainable", ""]]}, {"0/1": entry("F32", [2], 0, 8)}, b"\0" * 8),
    "leaves in another order than the bytes": foedus_file(
        {"$params": 0, "leaves": [["b", "trainable", ""], ["a", "trainable", ""]]},
        {"0/a": entry("F32", [1], 0, 4), "0/b": entry("F32", [1], 4, 8)}, b"\0" * 8),
    "leaves that are short": foedus_file({"$params": 0, "leaves": [["w"]]}, W, b"\0" * 8),
    "leaves that are a number": foedus_file({"$params": 0, "leaves": 3}, W, b"\0" * 8),
    "a mapping that is a list": foedus_file({"$map": [1]}),
    "an unmarked mapping": foedus_file({"a": 1}),
    "an array that is missing": foedus_file({"$array": 0}),
    "an array by a strange number": foedus_file({"$array": [[0]]}),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused(name: str) -> None:
    with pytest.raises(WireError):
        frames.unpack(HOSTILE[name])


@pytest.mark.parametrize("depth", [100, 480, 900, 980])
def test_nesting_is_read_or_refused_whatever_the_parser_makes_of_it(depth: int) -> None:
    _survives(foedus_file('{"version": 1, "tree": ' + "[" * depth + "]" * depth + "}"))


def test_hostile_files_take_no_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for data in HOSTILE.values():
        if len(data) < 1 << 20:
            _survives(data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB


@pytest.mark.properties
@given(st.data())
def test_no_damaged_byte_leads_to_another_error_than_ours(data: st.DataObject) -> None:
    raw = bytearray(GOLDEN.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    del raw[data.draw(st.integers(len(raw) // 2, len(raw))) :]
    _survives(bytes(raw))


def _survives(raw: bytes) -> None:
    try:
        found = frames.unpack(raw)
    except WireError:
        return
    _touch(found)


def _touch(found: Any) -> None:
    """Reads every array, so that what was accepted can also be used."""
    if isinstance(found, Params):
        assert sum(x.size for x in found.values()) == found.size
    elif isinstance(found, (list, dict)):
        for inner in found.values() if isinstance(found, dict) else found:
            _touch(inner)


# Digests that cost nothing.


def test_a_large_frame_is_hashed_beside_other_work_and_a_small_one_when_it_is_asked() -> None:
    for size in (3, frames.LARGE):
        frame = frames.pack({"x": np.zeros(size, np.uint8)})
        assert frame.digesting()() == hashlib.sha256(frame.bytes()).hexdigest()


def test_a_digest_is_remembered_for_the_very_arrays_that_were_read_and_nobody_can_change() -> None:
    model = Params({"x": np.zeros(frames.LARGE, np.uint8)})
    frame = frames.pack(model)
    true = hashlib.sha256(frame.bytes()).hexdigest()
    frames.remember(Path("w"), model, "of arrays that may change")
    assert frame.digest() == true
    read = frames.unpack(frame.bytes())
    frames.remember(Path("r"), read, "known")
    assert frames.pack(read).digest() == "known"
    assert frames.known(frames.pack(read)).path == Path("r")  # type: ignore[union-attr]
    assert frames.pack(read.copy()).digest() == true
    assert frames.pack([read]).digest() != "known"


# Files that are filled later.


def test_a_blank_frame_is_filled_in_place_and_read_back() -> None:
    model = golden()["state"]["model"]
    others = {"weight": "3/4", "metrics": {"loss": np.float64([1, 2, 3])}}
    with tempfile.TemporaryFile() as file:
        starts = frames.blank(file.fileno(), model.spec, "params", others)
        assert all(not x.any() for x in frames.unpack(file.read())["params"].values())
        for group, at in starts.items():
            os.pwrite(file.fileno(), model.flats[group].tobytes(), at)
        file.seek(0)
        found = frames.unpack(file.read())
    assert found["params"] == model and found["weight"] == "3/4"
    assert found["metrics"]["loss"].tolist() == [1, 2, 3]


@pytest.mark.parametrize("arrays", [{}, {"e": np.zeros((0, 3), np.float32)}])
def test_a_blank_frame_may_hold_nothing(arrays: dict[str, Any]) -> None:
    spec = Params(arrays).spec
    with tempfile.TemporaryFile() as file:
        frames.blank(file.fileno(), spec, "params", {"n": 1})
        file.seek(0)
        assert same({"params": Params(arrays), "n": 1}, frames.unpack(file.read()))
