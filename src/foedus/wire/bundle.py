"""Bundles: a job's source files in one archive whose SHA-256 is what a site's owner approves.
A folder comes in at the submitter; at server and sites the bytes of anybody come in, and only checked files go out.

The archive is a zip without compression: the same files give the same bytes on any machine, and nothing can swell.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import uuid
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from foedus.errors import JobError, WireError
from foedus.wire.plain import canonical, parse, plain, read

FORMAT = 1
PROTOCOL = 1
MOST_BYTES = 20 << 20
MOST_FILES = 2000
MANIFEST = "manifest.json"
SOURCES = (".py", ".toml")
LEFT_OUT = frozenset(("__pycache__", "data", "venv", "env", "site-packages", "node_modules", "build", "dist"))
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can hold
_FIXED = 0o100644 << 16  # a regular file, in the upper half of the Unix attributes
_PART = re.compile(r"[^/\\:\x00-\x1f\x7f]{1,255}")


class Manifest(NamedTuple):
    """What a bundle says of itself; `files` maps each path (relative, with `/`) to its SHA-256 in 64 hex digits."""

    format: int
    protocol: int
    entry: str
    requires: tuple[str, ...]
    files: dict[str, str]


def pack(folder: str | os.PathLike[str], entry: str, files: Sequence[str] = (), requires: Sequence[str] = ()) -> bytes:
    """The bundle of the *.py and *.toml files under `folder` and of `files` (paths or patterns relative to it).

    Hidden folders, linked folders, virtual environments, caches and `data` are left out. The same content gives the
    same bytes. Raises JobError for too much, for paths that lead out of the folder and for a missing entry.
    """
    root = Path(folder).resolve()
    found = sorted({*_sources(root), *(path for text in files for path in _declared(root, text))})
    names = {_name(root, path): path for path in found}
    if entry not in names:
        raise JobError(f"the bundle of {root} lacks its job file {entry!r}: name a *.py file in that folder")
    if MANIFEST in names or len(names) > MOST_FILES:
        what = f"{MANIFEST}, a name that bundles keep for themselves" if MANIFEST in names else f"{len(names)} files"
        raise JobError(f"the bundle of {root} would hold {what}: put the job into a folder of its own")
    if (size := sum(path.stat().st_size for path in found)) > MOST_BYTES:
        most = f"at most {MOST_BYTES >> 20} MB are sent: data stays at the sites"
        raise JobError(f"the bundle of {root} would hold {size >> 20} MB, {most}")
    contents = {name: path.read_bytes() for name, path in names.items()}
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    manifest = canonical(plain(Manifest(FORMAT, PROTOCOL, entry, tuple(requires), hashes)))
    return _zipped({MANIFEST: manifest} | contents)


def repacked(folder: str | os.PathLike[str]) -> bytes:
    """The bundle of which `unpack` wrote this folder, if nothing in it was changed: compare its `digest`."""
    root = Path(folder)
    names = sorted(root / name for name in _manifest({MANIFEST: (root / MANIFEST).read_bytes()}, sure=False).files)
    return _zipped({path.relative_to(root).as_posix(): path.read_bytes() for path in [root / MANIFEST, *names]})


def listed(bundle: bytes) -> list[str]:
    """The names of a bundle's files, without its manifest."""
    return sorted(inspect(bundle).files)


def digest(bundle: bytes) -> str:
    """SHA-256 (64 hex digits) of a bundle's bytes: its name everywhere."""
    return hashlib.sha256(bundle).hexdigest()


def inspect(bundle: bytes) -> Manifest:
    """The manifest of a bundle whose every file was checked. Raises WireError for anything else."""
    return _opened(bundle)[0]


def unpack(bundle: bytes, into: str | os.PathLike[str]) -> Manifest:
    """Writes the files of a checked bundle, and its manifest, into the folder `into`, which must not exist.

    All of them or, after an error, none. Raises WireError.
    """
    manifest, contents = _opened(bundle)
    target = Path(into)
    if target.exists():
        raise WireError(f"bundle: {target} exists, and nothing is ever unpacked over other files; remove it first")
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        for name, data in contents.items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                file.write(data)
        temporary.rename(target)
    except OSError as error:
        raise WireError(f"bundle: {target} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def _sources(root: Path) -> Iterator[Path]:
    for here, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if not _left_out(Path(here) / f))
        for name in names:
            if name.endswith(SOURCES) and not name.startswith("."):
                yield _inside(root, Path(here) / name)


def _left_out(folder: Path) -> bool:
    named = folder.name.startswith(".") or folder.name in LEFT_OUT
    return named or folder.is_symlink() or (folder / "pyvenv.cfg").exists()


def _declared(root: Path, text: str) -> list[Path]:
    if not text or PurePosixPath(text).is_absolute() or ".." in PurePosixPath(text).parts:
        raise JobError(f"files={text!r}: a path relative to the job file's folder is needed, without '..'")
    found = [_inside(root, path) for path in root.glob(text) if path.is_file()]
    if not found:
        raise JobError(f"files={text!r}: there is no such file under {root}")
    return found


def _inside(root: Path, path: Path) -> Path:
    if not path.resolve().is_relative_to(root):
        raise JobError(f"{path} is a link that leads out of {root}: put a copy into the job's folder")
    return path


def _name(root: Path, path: Path) -> str:
    name = path.relative_to(root).as_posix()
    if not _safe(name):
        raise JobError(f"{path}: this name cannot travel in a bundle; rename the file")
    return name


def _safe(name: str) -> bool:
    """Whether `name` is a relative path that stays in its folder on any system."""
    return all(_PART.fullmatch(part) and part not in (".", "..") for part in name.split("/"))


def _zipped(contents: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as archive:
        for name, data in contents.items():
            info = zipfile.ZipInfo(name, _EPOCH)
            info.create_system, info.external_attr = 3, _FIXED
            archive.writestr(info, data)
    return made.getvalue()


def _opened(bundle: bytes) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest and all files, the manifest's own too, once everything fits."""
    if len(bundle) > MOST_BYTES + (MOST_FILES << 10):
        raise WireError(f"bundle: {len(bundle) >> 20} MB, where at most {MOST_BYTES >> 20} are taken")
    try:
        with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
            infos = archive.infolist()
            _check_infos(infos)
            contents = {info.filename: archive.read(info) for info in infos}
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, OSError) as error:
        raise WireError(f"bundle: damaged, or no bundle of foedus ({error}); fetch it again") from error
    manifest = _manifest(contents)
    for name, sha in manifest.files.items():
        if hashlib.sha256(contents[name]).hexdigest() != sha:
            raise WireError(f"bundle: {name} is not the file that its manifest names; fetch it again")
    return manifest, contents


def _check_infos(infos: Sequence[zipfile.ZipInfo]) -> None:
    names = [info.filename for info in infos]
    if len(names) > MOST_FILES + 1 or sum(info.file_size for info in infos) > MOST_BYTES + (1 << 20):
        raise WireError(f"bundle: more than {MOST_FILES} files or {MOST_BYTES >> 20} MB")
    if odd := next((name for name in names if not _safe(name)), None):
        raise WireError(f"bundle: the path {odd!r} could lead out of its folder; nothing was unpacked")
    if len({name.casefold() for name in names}) != len(names):
        raise WireError("bundle: a path comes twice; nothing was unpacked")
    if any(info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 for info in infos):
        raise WireError("bundle: it is compressed or encrypted, which foedus never does; nothing was unpacked")


def _manifest(contents: dict[str, bytes], sure: bool = True) -> Manifest:
    found = read(Manifest, parse(contents.get(MANIFEST, b"null")))
    if not FORMAT - 1 <= found.format <= FORMAT:
        raise WireError(f"bundle: it has format {found.format}, this foedus reads {FORMAT}: upgrade foedus")
    if sure and (found.files.keys() != contents.keys() - {MANIFEST} or found.entry not in found.files):
        raise WireError("bundle: its files are not those of its manifest; fetch it again")
    return found
