"""Values on their way between processes of one user: small parts through a pipe, large arrays in memory that both map.
Any value that pickles may come in; the pipe's other end is a process that this one started, or that started it.
"""

from __future__ import annotations

import copyreg
import mmap
import os
import pickle
import sys
import tempfile
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import IO, Any, NamedTuple

from foedus.params import Params

APART = 1 << 15  # an array of so many bytes travels in shared memory
LINE = 64  # bytes; each begins at a multiple of this

copyreg.pickle(Params, lambda params: (Params.of, (params.spec, dict(params.flats))))  # views are not sent twice


class Packed(NamedTuple):
    """A value as a pickle, and a file in memory in which its large arrays lie from `starts` to `ends`."""

    head: bytes
    starts: list[int]
    ends: list[int]
    memory: IO[bytes] | None = None

    def close(self) -> None:
        """Lets go of the memory; who has mapped it keeps it."""
        if self.memory is not None:
            self.memory.close()


class Channel:
    """One end of a pipe."""

    def __init__(self, connection: Connection[Any, Any]) -> None:
        self.connection = connection

    def send(self, value: Any) -> None:
        packed = pack(value)
        try:
            self.send_packed(packed)
        finally:
            packed.close()

    def send_packed(self, packed: Packed) -> None:
        """Sends what may go to others too."""
        self.connection.send(packed[:3])
        if packed.memory is not None:
            send_handle(self.connection, packed.memory.fileno(), 0)

    def receive(self, access: int = mmap.ACCESS_READ) -> Any:
        """The next value, its large arrays mapped, not copied. EOFError or OSError: nobody is at the other end."""
        head, starts, ends = self.connection.recv()
        if not starts:
            return pickle.loads(head)
        with os.fdopen(recv_handle(self.connection), "rb") as memory:
            view = memoryview(mmap.mmap(memory.fileno(), ends[-1], access=access))
        return whole(head, [view[a:b] for a, b in zip(starts, ends, strict=True)])


def parted(value: Any, dumps: Callable[..., bytes] = pickle.dumps) -> tuple[bytes, list[memoryview]]:
    """The value as a pickle, and its large arrays beside it, not copied."""
    large: list[memoryview] = []

    def stays(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes >= APART:
            large.append(raw)
        return raw.nbytes < APART

    return dumps(value, protocol=5, buffer_callback=stays), large


def whole(head: bytes, large: Iterable[Any], copied: bool = False) -> Any:
    """The value of these parts; its large arrays are theirs, or copies that may be written to."""
    return pickle.loads(head, buffers=map(bytearray, large) if copied else large)


def pack(value: Any, dumps: Callable[..., bytes] = pickle.dumps) -> Packed:
    """The value in a form that can be sent any number of times; its large arrays are copied once."""
    head, large = parted(value, dumps)
    if not large:
        return Packed(head, [], [])
    starts, ends, memory = [], [], _memory()
    for x in large:  # writing takes half the time of copying into a fresh map
        starts.append(memory.seek(-(-memory.tell() // LINE) * LINE))
        memory.write(x)
        ends.append(memory.tell())
    memory.flush()
    return Packed(head, starts, ends, memory)


def _memory() -> IO[bytes]:
    """A file without a name, which ends with its last user."""
    return os.fdopen(os.memfd_create("foedus"), "w+b") if sys.platform == "linux" else tempfile.TemporaryFile()
