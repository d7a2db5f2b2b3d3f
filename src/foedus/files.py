"""Files that outlive a crash: whole and on disk, or not there at all.
Bytes may come in from anywhere; every room above writes its files through this."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from foedus.errors import StoreError

Buffer = bytes | bytearray | memoryview

STRETCH = 8 << 20  # bytes that are worth a word to the disk
_sync_range = getattr(ctypes.CDLL(None), "sync_file_range", None)  # Linux; elsewhere fsync does it all
_WRITE = 2  # SYNC_FILE_RANGE_WRITE: begin to write, wait for nothing

_FREE, _ALLOW = "free disk space or raise the quota", "make it writable for this user"
REMEDIES = {
    errno.ENOSPC: _FREE,
    errno.EDQUOT: _FREE,
    errno.EFBIG: _FREE,
    errno.EACCES: _ALLOW,
    errno.EPERM: _ALLOW,
    errno.EROFS: _ALLOW,
}


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns an OSError inside the block into a StoreError that names the path and the remedy."""
    try:
        yield
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "check the folder and its disk")
        raise StoreError(f"{path}: {error.strerror}; {remedy}") from error


def fsync_dir(folder: Path) -> None:
    """Returns once the folder's entries (new files, renames) are on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path, durable: bool = True) -> None:
    """Makes the folder and those above it where they are missing; StoreError if that is not allowed."""
    if folder.is_dir():
        return
    make_folder(folder.parent, durable)
    with explained(folder):
        folder.mkdir(exist_ok=True)
        if durable:
            fsync_dir(folder.parent)


def write_atomic(path: Path, data: Buffer | Iterable[Buffer], durable: bool = True, mode: int = 0o666) -> None:
    """Writes the file so that after any crash it holds all of `data`, or what it held before.

    With `durable` it is on disk on return. `mode`, less the umask, is the file's: 0o600 for a key. StoreError with
    the remedy if the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with explained(path):
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb", buffering=0) as file:
                for piece in pieces(data):
                    write_all(file, piece, ahead=durable)
                if durable:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if durable:
            fsync_dir(path.parent)


def delete(path: Path) -> None:
    """Removes a file, if it is there; a large one's blocks are given back in a thread, since that takes long."""
    with explained(path), suppress(FileNotFoundError):
        handle = os.open(path, os.O_RDONLY)
        try:
            path.unlink()
        finally:
            large = os.fstat(handle).st_size > STRETCH
            threading.Thread(target=os.close, args=(handle,)).start() if large else os.close(handle)


def pieces(data: Buffer | Iterable[Buffer]) -> Iterable[Buffer]:
    """The data in pieces, of which one buffer is one."""
    return [data] if isinstance(data, Buffer) else data


def write_all(file: FileIO, data: Buffer, ahead: bool = False) -> None:
    """Writes every byte, in as many calls as the system needs; `ahead`: has the disk start meanwhile."""
    view, at = memoryview(data), file.tell() if ahead else 0
    view = view.cast("B") if view.nbytes else memoryview(b"")
    while view:
        wrote = file.write(view[:STRETCH])
        view, at = view[wrote:], at + wrote
        if ahead:
            sync_ahead(file.fileno(), at - wrote, at)


def sync_ahead(fd: int, before: int, after: int) -> None:
    """Has the disk start on the whole stretches that a write from `before` to `after` filled; fsync then waits less."""
    begin, end = before - before % STRETCH, after - after % STRETCH
    if _sync_range is not None and begin < end:
        _sync_range(fd, ctypes.c_int64(begin), ctypes.c_int64(end - begin), _WRITE)
