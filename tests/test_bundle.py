"""Bundles: equal content gives equal bytes, and nothing but checked files ever comes out."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foedus.errors import JobError, WireError
from foedus.wire import bundle
from foedus.wire.bundle import MANIFEST, inspect, pack, unpack


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A job's folder with everything that must stay out of the bundle, too."""
    root = tmp_path / "job"
    files = {
        "job.py": "import data\n", "data.py": "ROWS = 3\n", "settings.toml": "a = 1\n", "codes.csv": "a,b\n",
        "lib/net.py": "class Net: ...\n", "notes.txt": "private\n", ".env": "SECRET=1\n", ".git/hook.py": "",
        "data/rows.py": "", "__pycache__/job.py": "", "venv/lib/x.py": "", "mine/pyvenv.cfg": "", "mine/y.py": "",
        ".hidden.py": "",
    }  # fmt: skip
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def zipped(contents: dict[str, bytes], manifest: dict[str, Any] | None = None, **options: Any) -> bytes:
    """A bundle made by somebody else; its manifest is right unless it is given."""
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    right = {"format": 1, "protocol": 1, "entry": "job.py", "requires": [], "files": hashes}
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", **options) as archive:
        archive.writestr(MANIFEST, json.dumps(right | (manifest or {})))
        for name, data in contents.items():
            archive.writestr(name, data)
    return made.getvalue()


def test_a_bundle_holds_the_sources_and_the_declared_files_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    manifest = unpack(pack(folder, "job.py", files=["*.csv"], requires=["scipy>=1.10"]), tmp_path / "out")
    assert sorted(manifest.files) == ["codes.csv", "data.py", "job.py", "lib/net.py", "settings.toml"]
    assert (manifest.entry, manifest.requires, manifest.protocol) == ("job.py", ("scipy>=1.10",), 1)
    assert (tmp_path / "out" / "lib" / "net.py").read_text() == "class Net: ...\n"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        [MANIFEST, "codes.csv", "data.py", "job.py", "lib", "settings.toml"]
    )


def test_the_same_content_has_the_same_bytes_whatever_its_times_modes_and_place(folder: Path, tmp_path: Path) -> None:
    first = pack(folder, "job.py")
    moved = tmp_path / "elsewhere"
    folder.rename(moved)
    os.utime(moved / "job.py", (1, 1))
    (moved / "job.py").chmod(0o755)
    assert pack(moved, "job.py") == first
    (moved / "data.py").write_text("ROWS = 4\n")
    assert bundle.digest(pack(moved, "job.py")) != bundle.digest(first)


def test_the_digest_of_a_known_bundle_never_changes(tmp_path: Path) -> None:
    # the bytes are those of a zip whose every field is fixed, so any change here would unapprove all code
    (tmp_path / "job.py").write_text("job = 1\n")
    data = pack(tmp_path, "job.py")
    manifest = inspect(data)
    assert manifest.files == {"job.py": hashlib.sha256(b"job = 1\n").hexdigest()}
    text = (
        '{"entry":"job.py","files":{"job.py":"' + manifest.files["job.py"] + '"},"format":1,"protocol":1,"requires":[]}'
    )
    assert data.startswith(b"PK\x03\x04") and text.encode() in data
    stored = zipfile.ZipFile(io.BytesIO(data)).infolist()
    assert [(i.date_time, i.compress_type, i.external_attr >> 16) for i in stored] == [
        ((1980, 1, 1, 0, 0, 0), 0, 0o100644)
    ] * 2


@pytest.mark.parametrize("text", ["../secret.txt", "/etc/hostname", "", "lib/../../x", "missing.csv"])
def test_a_declared_file_outside_the_folder_or_missing_is_refused_by_name(folder: Path, text: str) -> None:
    (folder.parent / "secret.txt").write_text("x")
    with pytest.raises(JobError, match="files="):
        pack(folder, "job.py", files=[text])


def test_a_link_that_leads_out_is_refused_and_one_that_stays_inside_is_a_copy(folder: Path, tmp_path: Path) -> None:
    (folder / "same.py").symlink_to(folder / "data.py")
    assert (
        unpack(pack(folder, "job.py"), tmp_path / "out").files["same.py"] == hashlib.sha256(b"ROWS = 3\n").hexdigest()
    )
    assert not (tmp_path / "out" / "same.py").is_symlink()
    (folder.parent / "key.py").write_text("SECRET = 1")
    (folder / "key.py").symlink_to(folder.parent / "key.py")
    with pytest.raises(JobError, match=r"key\.py is a link that leads out"):
        pack(folder, "job.py")


def test_a_linked_folder_is_left_out(folder: Path) -> None:
    (folder.parent / "other").mkdir()
    (folder.parent / "other" / "x.py").write_text("x")
    (folder / "other").symlink_to(folder.parent / "other")
    assert not [name for name in inspect(pack(folder, "job.py")).files if "other" in name]


def test_too_much_and_a_missing_job_file_are_refused_with_the_remedy(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(JobError, match=r"lacks its job file 'jobs\.py'"):
        pack(folder, "jobs.py")
    monkeypatch.setattr(bundle, "MOST_FILES", 3)
    with pytest.raises(JobError, match="4 files: put the job into a folder of its own"):
        pack(folder, "job.py")
    monkeypatch.setattr(bundle, "MOST_FILES", 100)
    monkeypatch.setattr(bundle, "MOST_BYTES", 10)
    with pytest.raises(JobError, match="data stays at the sites"):
        pack(folder, "job.py")


@pytest.mark.parametrize(
    "name",
    ["../evil.py", "/evil.py", "a/../../evil.py", "..\\evil.py", "C:evil.py", "a//b.py", "./a.py", "a\x01.py", "a/"],
)
def test_a_path_that_could_lead_out_is_refused_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(WireError, match=r"lead out|damaged"):
        unpack(zipped({"job.py": b"x", name: b"evil"}), tmp_path / "in" / "out")
    assert [p for p in tmp_path.rglob("*") if p.name != "in"] == []


def test_nothing_is_unpacked_over_what_is_there(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(WireError, match="exists"):
        unpack(pack(folder, "job.py"), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_compressed_and_repeated_and_swelling_archives_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WireError, match="compressed"):
        inspect(zipped({"job.py": b"0" * 10_000}, compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(WireError, match="twice"):
        inspect(zipped({"job.py": b"x", "JOB.py": b"x"}))
    monkeypatch.setattr(bundle, "MOST_FILES", 1)
    with pytest.raises(WireError, match="more than 1 files"):
        inspect(zipped({"job.py": b"x", "b.py": b"x", "c.py": b"x"}))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"files": {"job.py": "0" * 64}}, r"job\.py is not the file"),
        ({"files": {}}, "not those of its manifest"),
        ({"entry": "other.py"}, "not those of its manifest"),
        ({"format": 99}, "format 99.*upgrade"),
        ({"extra": 1}, "exactly the fields"),
        ({"requires": "numpy"}, "requires"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(WireError, match=said):
        inspect(zipped({"job.py": b"x"}, changed))


@given(st.integers(0, 10_000), st.integers(1, 255))
@settings(max_examples=60, deadline=None)
def test_a_bundle_with_any_byte_changed_is_refused_or_says_the_same(at: int, by: int) -> None:
    data = zipped({"job.py": b"import foedus as fd\n" * 9, "lib/net.py": b"x = 1\n"})
    damaged = bytearray(data)
    damaged[at % len(data)] ^= by
    try:
        found = inspect(bytes(damaged))
    except WireError:
        return
    assert found == inspect(data)  # a byte that no reader looks at, such as a time stamp: the hash of the whole tells


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_arbitrary_bytes_are_no_bundle(data: bytes) -> None:
    with pytest.raises(WireError):
        inspect(data)
