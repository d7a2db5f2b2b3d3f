"""Blobs and atomic files: content, resumed uploads, what is refused, order on disk, and real kills."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foedus.errors import StoreError, WireError
from foedus.files import STRETCH, delete, write_atomic
from foedus.store.blobs import Blobs

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
DATA = bytes(range(256)) * 40


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "blobs")


START = "import sys\nfrom foedus.files import write_atomic\nfrom foedus.store.blobs import Blobs\n"


def start(code: str, *arguments: object, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", START + code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | env,
        stdout=subprocess.PIPE,
        text=True,
    )


# content


def test_a_blob_has_the_name_of_its_content(blobs: Blobs) -> None:
    assert blobs.put(b"abc") == ABC
    assert blobs.path(ABC) == blobs.root / "ba" / "78" / ABC
    assert blobs.path(ABC).read_bytes() == b"abc"
    assert (blobs.has(ABC), blobs.size(ABC), blobs.has(EMPTY)) == (True, 3, False)


@pytest.mark.parametrize(
    ("pieces", "digest"),
    [([b"a", bytearray(b"b"), memoryview(b"c")], ABC), ([], EMPTY), (b"", EMPTY), ((piece for piece in [b"abc"]), ABC)],
)
def test_pieces_of_any_kind_make_one_blob(blobs: Blobs, pieces: Iterator[bytes], digest: str) -> None:
    assert blobs.put(pieces) == digest
    assert Blobs(blobs.root).has(digest)


def test_a_view_of_numbers_is_stored_as_its_bytes(blobs: Blobs) -> None:
    numbers = array("d", [1.0, 2.0])
    assert blobs.size(blobs.put(memoryview(numbers))) == 16
    assert blobs.put([memoryview(numbers)]) == sha(numbers.tobytes())


def test_a_deleted_blob_is_gone(blobs: Blobs) -> None:
    blobs.delete(blobs.put(b"abc"))
    assert not blobs.has(ABC)
    blobs.delete(ABC)
    with pytest.raises(StoreError, match="No such file"):
        blobs.size(ABC)


@pytest.mark.parametrize(
    "name", ["", "../../etc/passwd", ABC[:-1], ABC + "0", ABC.upper(), ABC[:-1] + "\n", ABC + "\n"]
)
def test_what_is_no_digest_never_becomes_a_path(blobs: Blobs, name: str) -> None:
    for use in (blobs.path, blobs.has, blobs.size, blobs.delete):
        with pytest.raises(WireError, match="64 lower-case hex"):
            use(name)


def test_threads_may_put_the_same_blob_at_once(blobs: Blobs) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(blobs.put, [DATA] * 16)) == {sha(DATA)}
    assert blobs.path(sha(DATA)).read_bytes() == DATA
    assert list((blobs.root / "parts").iterdir()) == []


def test_a_connection_that_takes_over_while_the_last_one_is_finished_holds_up_neither(
    blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, taker = blobs.place, threading.Thread(target=lambda: blobs.part("id").discard(), daemon=True)

    def slow(digest: str) -> Path:
        taker.start()
        taker.join(0.2)  # it waits for the part that is being finished
        return place(digest)

    monkeypatch.setattr(blobs, "place", slow)
    part = blobs.part("id")
    part.append(DATA)
    finisher = threading.Thread(target=part.finish, args=(sha(DATA), len(DATA)), daemon=True)
    finisher.start()
    for thread in (finisher, taker):
        thread.join(10)
        assert not thread.is_alive()
    assert blobs.path(sha(DATA)).read_bytes() == DATA


def test_an_abandoned_upload_is_gone_whether_or_not_somebody_sends_it(blobs: Blobs) -> None:
    left, sending = blobs.part("left"), blobs.part("sending")
    left.append(b"abc")
    left.close()
    sending.append(b"abc")
    for id in ("left", "sending", "never begun"):
        blobs.abandon(id)
    with pytest.raises(WireError, match="closed, or taken over"):
        sending.append(b"def")
    assert list((blobs.root / "parts").iterdir()) == []
    with blobs.part("left") as part:
        assert part.offset == 0


def test_a_source_that_fails_leaves_nothing_behind(blobs: Blobs) -> None:
    def source() -> Iterator[bytes]:
        yield b"abc"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        blobs.put(source())
    assert not blobs.has(ABC)
    assert list((blobs.root / "parts").iterdir()) == []


# uploads


@settings(max_examples=40, deadline=None)
@given(data=st.binary(max_size=3000), cuts=st.lists(st.tuples(st.integers(0, 3000), st.booleans()), max_size=6))
def test_an_upload_goes_on_from_any_cut(data: bytes, cuts: list[tuple[int, bool]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        blobs, sent = Blobs(folder, durable=False), 0
        for cut, restart in sorted((min(cut, len(data)), restart) for cut, restart in cuts):
            with blobs.part("upload") as part:
                assert (part.offset, part.digest) == (sent, sha(data[:sent]))
                part.append(data[sent:cut])
            sent = cut
            blobs = Blobs(folder, durable=False) if restart else blobs
        with blobs.part("upload") as part:
            part.append(memoryview(data)[part.offset :])
            assert part.finish(sha(data), len(data)).read_bytes() == data
        with blobs.part("upload") as part:
            assert part.offset == 0


def test_uploads_of_different_ids_do_not_meet_whatever_the_ids_are(blobs: Blobs) -> None:
    ids = ["a", "A", "../a", "a/b", "", "a\0", "é" * 300]
    parts = [blobs.part(id) for id in ids]
    for part, id in zip(parts, ids, strict=True):
        part.append(id.encode())
    for part, id in zip(parts, ids, strict=True):
        assert part.finish(sha(id.encode()), len(id.encode())).read_bytes() == id.encode()
    assert {path.name for path in blobs.root.parent.iterdir()} == {"blobs"}


def test_an_upload_with_missing_bytes_is_refused_and_can_go_on(blobs: Blobs) -> None:
    with blobs.part("u") as part:
        part.append(DATA[:1000])
        with pytest.raises(WireError, match=f"1000 of {len(DATA)} bytes have arrived; send the rest"):
            part.finish(sha(DATA), len(DATA))
    with blobs.part("u") as part:
        part.append(DATA[1000:])
        part.finish(sha(DATA), len(DATA))
    assert blobs.has(sha(DATA))


@pytest.mark.parametrize(("sent", "digest", "size"), [(b"abd", ABC, 3), (b"abc!", ABC, 3), (b"abc", EMPTY, 0)])
def test_an_upload_of_other_bytes_is_refused_and_deleted(blobs: Blobs, sent: bytes, digest: str, size: int) -> None:
    with blobs.part("u") as part:
        part.append(sent)
        with pytest.raises(WireError, match=f"{len(sent)} bytes with digest .* not the announced {size} bytes"):
            part.finish(digest, size)
    assert not blobs.has(digest)
    with blobs.part("u") as part:
        assert part.offset == 0
        part.append(b"abc")
        part.finish(ABC, 3)


def test_bytes_that_changed_on_disk_between_two_connections_are_found(blobs: Blobs) -> None:
    with blobs.part("u") as part:
        part.append(b"ab")
    (path,) = (blobs.root / "parts").iterdir()
    path.write_bytes(b"aB")
    with blobs.part("u") as part:
        part.append(b"c")
        with pytest.raises(WireError, match="announced"):
            part.finish(ABC, 3)


def test_a_newer_connection_cuts_off_the_older_one(blobs: Blobs) -> None:
    older = blobs.part("u")
    older.append(b"a")
    newer = blobs.part("u")
    assert newer.offset == 1
    for use in (lambda: older.append(b"x"), lambda: older.finish(ABC, 3)):
        with pytest.raises(WireError, match="taken over"):
            use()
    older.discard()
    newer.append(b"bc")
    newer.finish(ABC, 3)
    older.close()
    assert blobs.path(ABC).read_bytes() == b"abc"


def test_a_discarded_upload_starts_again_from_nothing(blobs: Blobs) -> None:
    part = blobs.part("u")
    part.append(b"a")
    part.discard()
    with blobs.part("u") as part:
        assert part.offset == 0


def test_a_sweep_keeps_what_is_named_and_what_is_in_use(blobs: Blobs) -> None:
    kept, lost = blobs.put(b"abc"), blobs.put(b"defg")
    for id in ("kept", "lost"):
        with blobs.part(id) as part:
            part.append(b"12345")
    using = blobs.part("using")
    using.append(b"abc")
    assert blobs.sweep({kept}) == 4
    assert (blobs.has(kept), blobs.has(lost)) == (True, False)
    assert blobs.sweep({kept}, parts={"kept"}) == 5
    using.finish(ABC, 3)
    for id, offset in (("kept", 5), ("lost", 0)):
        with blobs.part(id) as part:
            assert part.offset == offset


# the disk


def test_too_little_disk_is_said_before_anything_is_asked(blobs: Blobs) -> None:
    blobs.require(1)
    assert 0 < blobs.free() < 1e18
    with pytest.raises(StoreError, match=r"blobs.* 1000000000\.000 GB are needed and .* free; free disk"):
        blobs.require(10**18)


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_keeps_what_had_arrived(blobs: Blobs, tmp_path: Path) -> None:
    with blobs.part("u") as part:
        part.append(DATA[:4000])
        with no_file_above(5000), pytest.raises(StoreError, match="free disk space"):
            part.append(DATA[4000:])
        assert part.offset == 4000
        part.append(DATA[4000:])
        assert part.finish(sha(DATA), len(DATA)).read_bytes() == DATA
    write_atomic(tmp_path / "state", b"old")
    with no_file_above(5000), pytest.raises(StoreError, match=r"state: .*free disk space"):
        write_atomic(tmp_path / "state", DATA)
    assert (tmp_path / "state").read_bytes() == b"old"
    assert {path.name for path in tmp_path.iterdir()} == {"blobs", "state"}


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="file: File exists; check the folder"):
        Blobs(tmp_path / "file")
    with pytest.raises(StoreError, match="x: No such file or directory"):
        write_atomic(tmp_path / "none" / "x", b"")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of the disk, in order."""
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(handle: int) -> None:
        calls.append("fsync folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "fsync file")
        fsync(handle)

    def noted_replace(source: Path, target: Path) -> None:
        calls.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    return calls


def test_the_order_on_disk_is_file_name_folder(blobs: Blobs, tmp_path: Path, calls: list[str]) -> None:
    blobs.put(b"abc")
    assert calls[-3:] == ["fsync file", "rename", "fsync folder"]
    assert calls[:-3] == ["fsync folder"] * 2  # of those above the two new ones
    calls.clear()
    write_atomic(tmp_path / "state", [b"a", b"b"])
    assert calls == ["fsync file", "rename", "fsync folder"]


def test_what_need_not_be_durable_waits_for_no_disk(tmp_path: Path, calls: list[str]) -> None:
    assert Blobs(tmp_path / "blobs", durable=False).put(b"abc") == ABC
    write_atomic(tmp_path / "state", b"abc", durable=False)
    assert calls == ["rename", "rename"]
    assert (tmp_path / "state").read_bytes() == b"abc"


# atomic files


def test_an_atomic_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    def source() -> Iterator[bytes]:
        yield b"half"
        raise ZeroDivisionError

    path = tmp_path / "state"
    write_atomic(path, [b"first ", memoryview(b"state")])
    with pytest.raises(ZeroDivisionError):
        write_atomic(path, source())
    assert path.read_bytes() == b"first state"
    write_atomic(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_larger_than_what_the_disk_is_told_of_at_once_is_whole(tmp_path: Path) -> None:
    data = bytes(range(256)) * (STRETCH // 128) + b"end"  # two stretches and a bit, in uneven pieces
    write_atomic(tmp_path / "state", [data[:1000], data[1000:]])
    assert (tmp_path / "state").read_bytes() == data


@pytest.mark.parametrize("size", [3, STRETCH + 1])
def test_a_deleted_file_is_gone_at_once_whatever_its_size(tmp_path: Path, size: int) -> None:
    (tmp_path / "state").write_bytes(bytes(size))
    delete(tmp_path / "state")
    assert list(tmp_path.iterdir()) == []
    delete(tmp_path / "state")


def test_a_key_file_is_never_readable_by_others(tmp_path: Path) -> None:
    seen: list[int] = []

    def source() -> Iterator[bytes]:
        seen.extend(stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir())
        yield b"secret"

    write_atomic(tmp_path / "key", source(), mode=0o600)
    assert [*seen, stat.S_IMODE((tmp_path / "key").stat().st_mode)] == [0o600, 0o600]


DIE = """
def source():
    yield b"half"
    os.kill(os.getpid(), 9)
from pathlib import Path
write_atomic(Path(sys.argv[1]), source())
"""


def test_a_kill_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "state", b"old")
    with start("import os" + DIE, tmp_path / "state") as child:
        assert child.wait(20) == -signal.SIGKILL
    assert (tmp_path / "state").read_bytes() == b"old"


# kill -9


UPLOAD = """
data = bytes(range(256)) * 40
with Blobs(sys.argv[1]).part("u") as part:
    part.append(data[part.offset:])
    part.finish(sys.argv[2], len(data))
"""


@pytest.mark.parametrize(
    ("point", "named"), [("blob.before-fsync", False), ("blob.after-fsync", False), ("blob.after-rename", True)]
)
def test_a_kill_at_any_step_of_finishing_loses_no_byte(tmp_path: Path, point: str, named: bool) -> None:
    with start(UPLOAD, tmp_path, sha(DATA), FOEDUS_KILL=point) as child:
        assert child.wait(20) == -signal.SIGKILL
    blobs = Blobs(tmp_path)
    assert blobs.has(sha(DATA)) == named
    with blobs.part("u") as part:
        assert part.offset == (0 if named else len(DATA))
    with start(UPLOAD, tmp_path, sha(DATA)) as child:
        assert child.wait(20) == 0
    assert blobs.path(sha(DATA)).read_bytes() == DATA


TRICKLE = """
part = Blobs(sys.argv[1]).part("u")
while True:
    part.append(bytes([part.offset // 1000 % 251]) * 1000)
    print(part.offset, flush=True)
"""


def test_a_kill_while_uploading_keeps_what_append_has_returned(tmp_path: Path) -> None:
    with start(TRICKLE, tmp_path) as child:
        assert child.stdout is not None
        for _ in range(20):
            said = int(child.stdout.readline())
        child.kill()
    expected = b"".join(bytes([n % 251]) * 1000 for n in range(100_000))
    with Blobs(tmp_path).part("u") as part:
        assert part.offset >= said
        assert part.digest == sha(expected[: part.offset])
        part.append(expected[part.offset : part.offset + 500])
        assert part.finish(sha(expected[: part.offset]), part.offset).stat().st_size == part.offset
