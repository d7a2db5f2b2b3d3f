"""Bytes on disk that outlive a crash: a folder of blobs named by their SHA-256.
Bytes may come in from anywhere; a blob gets its name only once its content was checked and synced."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import threading
import uuid
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Self
from weakref import WeakValueDictionary

from foedus import faults
from foedus.errors import StoreError, WireError
from foedus.files import Buffer, delete, explained, fsync_dir, make_folder, pieces, sync_ahead, write_all

DIGEST = re.compile("[0-9a-f]{64}")


class Part:
    """An upload on its way, in pieces and over any number of connections; `offset` bytes of it are in the file.

    A context manager; leaving it keeps the bytes, and the next `Blobs.part` of the same id goes on from them.
    """

    def __init__(self, blobs: Blobs, path: Path) -> None:
        self._blobs, self._path, self._lock = blobs, path, threading.Lock()
        self._sha, self.offset = hashlib.sha256(), 0
        with explained(path):
            self._file = FileIO(path, "a+")

    @property
    def digest(self) -> str:
        """SHA-256 (64 hex) of the bytes so far."""
        return self._sha.hexdigest()

    @property
    def closed(self) -> bool:
        """Whether it takes no more bytes: finished, left, or taken over by a newer connection."""
        return self._file.closed

    def resume(self) -> None:
        """Reads and hashes what an earlier connection left; `Blobs.part` has done it."""
        with self._using() as file:
            file.seek(0)
            self._sha = hashlib.file_digest(file, "sha256")
            self.offset = file.tell()

    def append(self, data: Buffer) -> None:
        """Adds the bytes; StoreError, and none of them kept, if the disk is full."""
        view = memoryview(data).cast("B")
        with self._using() as file:
            try:
                write_all(file, view)
            except OSError:
                file.truncate(self.offset)
                raise
            if self._blobs.durable:
                sync_ahead(file.fileno(), self.offset, self.offset + len(view))
            self._sha.update(view)
            self.offset += len(view)

    def finish(self, digest: str, size: int) -> Path:
        """The path of the blob, now durable and under its name.

        WireError if bytes are missing (the part is kept and can go on), or if they are not the announced ones (the
        part is deleted).
        """
        with self._using() as file:
            self._check(digest, size)
            target = self._blobs.place(digest)
            _settle(file, self._path, target, self._blobs.durable)
            file.close()
        return target

    def discard(self) -> None:
        """Deletes the bytes, so that the id starts again from nothing; a part that was closed stays as it is."""
        with self._lock:
            self._drop()

    def close(self) -> None:
        """Lets go of the file and keeps the bytes."""
        with self._lock:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _using(self) -> Iterator[FileIO]:
        with self._lock, explained(self._path):
            if self.closed:
                raise WireError("upload: this part was closed, or taken over by a newer connection; open it again")
            yield self._file

    def _check(self, digest: str, size: int) -> None:
        if self.offset < size:
            raise WireError(f"upload: {self.offset} of {size} bytes have arrived; send the rest")
        if (self.offset, self.digest) != (size, digest):
            self._drop()
            raise WireError(
                f"upload: {self.offset} bytes with digest {self.digest[:12]} are not the announced {size} bytes with "
                f"digest {digest[:12]}; they were deleted, send them again from the start"
            )

    def _drop(self) -> None:
        if not self.closed:
            self._file.close()
            self._path.unlink(missing_ok=True)


class Blobs:
    """The blobs in the folder `root`, made if it is not there; one process owns it, its threads share it."""

    def __init__(self, root: str | Path, durable: bool = True) -> None:
        self.root, self.durable = Path(root), durable
        self._parts = self.root / "parts"
        self._open: WeakValueDictionary[str, Part] = WeakValueDictionary()
        self._lock, self._making = threading.Lock(), threading.Lock()  # who finishes a part holds it, and makes folders
        make_folder(self._parts, durable)

    def put(self, data: Buffer | Iterable[Buffer]) -> str:
        """The digest (SHA-256, 64 hex) under which all of the data is now stored."""
        with self.part(uuid.uuid4().hex) as part:
            try:
                for piece in pieces(data):
                    part.append(piece)
                part.finish(part.digest, part.offset)
            except BaseException:
                part.discard()
                raise
        return part.digest

    def part(self, id: str) -> Part:
        """The upload of this id (any text), with the bytes it has so far; an older connection to it is cut off."""
        path = self._part(id)
        with self._lock:
            if (older := self._open.get(path.name)) is not None:
                older.close()
            part = self._open[path.name] = Part(self, path)
        part.resume()
        return part

    def abandon(self, id: str) -> None:
        """Deletes what has come of the upload of this id, if anything has; a connection to it is cut off."""
        path = self._part(id)
        with self._lock:
            if (part := self._open.get(path.name)) is not None:
                part.close()
            path.unlink(missing_ok=True)

    def path(self, digest: str) -> Path:
        """Where the blob is, or would be; WireError if this is no digest."""
        if not DIGEST.fullmatch(digest):
            raise WireError(f"blob {digest[:80]!r}: a name is a SHA-256 in 64 lower-case hex digits")
        return self.root / digest[:2] / digest[2:4] / digest

    def place(self, digest: str) -> Path:
        """The blob's path, its folder made; no thread uses a new folder before it is on disk."""
        path = self.path(digest)
        with self._making:
            make_folder(path.parent, self.durable)
        return path

    def has(self, digest: str) -> bool:
        """Whether the blob is here."""
        return self.path(digest).is_file()

    def size(self, digest: str) -> int:
        """The blob's length in bytes; StoreError if it is not here."""
        with explained(self.path(digest)):
            return self.path(digest).stat().st_size

    def delete(self, digest: str) -> None:
        """Removes the blob, if it is here."""
        delete(self.path(digest))

    def sweep(self, keep: Collection[str], parts: Collection[str] | None = None) -> int:
        """The bytes freed by removing every blob that is not in `keep` and, if given, every part not of these ids.

        Parts in use stay. A blob that is finished during the sweep may be lost if `keep` lacks it: sweep at start.
        """
        doomed = [path for path in self.root.glob("??/??/*") if path.name not in keep]
        if parts is not None:
            kept = {self._part(id).name for id in parts}
            used = {name for name, part in self._open.items() if not part.closed}
            doomed += [path for path in self._parts.iterdir() if path.name not in kept | used]
        return sum(_removed(path) for path in doomed)

    def free(self) -> int:
        """Bytes that this user may still write to the disk of `root`."""
        return shutil.disk_usage(self.root).free

    def require(self, size: int) -> None:
        """Returns if `size` bytes fit on the disk; else StoreError, to be raised before anything is asked of sites."""
        if size > (free := self.free()):
            raise StoreError(
                f"blobs {self.root}: {size / 1e9:.3f} GB are needed and {free / 1e9:.3f} GB are free; "
                "free disk space, or move the folder to a larger disk"
            )

    def _part(self, id: str) -> Path:
        return self._parts / hashlib.sha256(id.encode()).hexdigest()


def _settle(file: FileIO, path: Path, target: Path, durable: bool) -> None:
    """Gives a checked file its name, in the order that a crash at any moment cannot hurt."""
    faults.point("blob.before-fsync")
    if durable:
        os.fsync(file.fileno())
    faults.point("blob.after-fsync")
    os.replace(path, target)
    faults.point("blob.after-rename")
    if durable:
        fsync_dir(target.parent)


def _removed(path: Path) -> int:
    size = path.stat().st_size
    path.unlink()
    return size
