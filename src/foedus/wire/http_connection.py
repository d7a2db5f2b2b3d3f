"""One connected socket, the same at both ends: heads pass through h11, bodies go straight between socket and file.
Only the standard library, h11 and `errors` may come in; nothing here knows what is said."""

from __future__ import annotations

import os
import select
import socket
import ssl
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from io import FileIO
from pathlib import Path
from threading import Condition
from time import monotonic
from types import MappingProxyType
from typing import NamedTuple, final

import h11

from foedus.errors import WireError

CONTROL = 8 << 20
MOST_HEAD = 64 << 10
BUFFER = 256 << 10  # bytes a connection that brings a body holds, and a cache does between hashing and writing them
PIECE = 256 << 10  # a write's timeout covers a whole piece: larger, and slow links would never be in time
SLOWEST = 4096  # bytes a second: whoever drips less only holds a thread
GLANCE = 0.5
LINGER = 2.0
NOTHING: Mapping[str, str] = MappingProxyType({})
_GONE = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)

Sink = Callable[[memoryview], object]
Progress = Callable[[int], object]


class TooLarge(WireError):
    """A body longer than its reader takes; nothing of it was read."""


class Truncated(WireError):
    """A body whose sender left or fell silent; `stored` bytes of it were taken before."""

    def __init__(self, peer: str, stored: int, missing: int) -> None:
        super().__init__(f"{peer}, body: ended after {stored} bytes, {missing} missing; send it again from there")
        self.stored, self.missing = stored, missing


class FilePart(NamedTuple):
    """Bytes `offset` to `offset + length` of a file, to be sent as a body."""

    path: Path
    offset: int
    length: int

    def open(self) -> FileIO:
        """The file at the part's first byte; WireError if it cannot be read or does not hold the whole part."""
        try:
            file = FileIO(self.path)
        except OSError as error:
            raise WireError(f"{self.path}, send: {error.strerror}; make it readable and try again") from error
        end = self.offset + self.length
        if os.fstat(file.fileno()).st_size < end:
            file.close()
            raise WireError(f"{self.path}, send: shorter than the {end} bytes it should hold; make it anew")
        file.seek(self.offset)
        return file


Content = bytes | FilePart


def size(content: Content) -> int:
    """How many bytes `content` is on the wire."""
    return content.length if isinstance(content, FilePart) else len(content)


@final
class Connection:
    """A socket with its peer's name; `tag` is for whoever wants to cut connections by it.

    Owned by one thread. `cut` alone may be called by others, as long as they know that it is not being closed.
    `patience`: seconds that a read or a write may wait for the peer.
    """

    def __init__(self, sock: socket.socket, peer: str, patience: float = 60.0) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock, self.peer, self.patience = sock, peer, patience
        self.tag: Hashable = None
        self.received = 0
        self.pending = b""

    def handshake(self, seconds: float) -> None:
        """Does the TLS handshake, if this is a TLS socket; OSError if it fails or takes longer."""
        self._sock.settimeout(seconds)
        if isinstance(self._sock, ssl.SSLSocket):
            self._sock.do_handshake()

    def event(self, parser: h11.Connection, first: float, whole: float) -> object:
        """The parser's next event; `first` seconds until a byte comes, `whole` from there to the event's end."""
        deadline, waiting = monotonic() + first, True
        if self.pending:
            parser.receive_data(self.pending)
            deadline, waiting, self.pending = monotonic() + whole, False, b""
        while (event := parser.next_event()) is h11.NEED_DATA:
            parser.receive_data(self._recv(deadline))
            if waiting:
                deadline, waiting = monotonic() + whole, False
        return event

    def response(self, parser: h11.Connection, first: float) -> h11.Response:
        """The head of the answer, past any informational ones; `first` seconds until a byte of each comes."""
        try:
            while isinstance(event := self.event(parser, first, self.patience), h11.InformationalResponse):
                pass
        except h11.RemoteProtocolError as error:
            if parser.trailing_data != (b"", True):  # it is not the end that came too soon
                raise
            raise h11.RemoteProtocolError("closed without an answer") from error
        if not isinstance(event, h11.Response):
            raise h11.RemoteProtocolError("closed without an answer")
        return event

    def _recv(self, deadline: float) -> bytes:
        if (left := deadline - monotonic()) <= 0:
            raise TimeoutError("the head took too long")
        self._sock.settimeout(left)
        data = self._sock.recv(16384)
        self.received += len(data)
        return data

    def fill(self, view: memoryview) -> int:
        """How many bytes of `view` were filled: fewer than asked once the peer has closed, failed or is too slow."""
        done = min(len(self.pending), len(view))
        view[:done], self.pending = self.pending[:done], self.pending[done:]
        self._sock.settimeout(self.patience)
        deadline = monotonic() + self.patience + len(view) / SLOWEST
        with suppress(OSError):
            while done < len(view) and monotonic() < deadline and (got := self._sock.recv_into(view[done:])):
                done += got
        return done

    def send(self, data: bytes | memoryview) -> None:
        """Sends all of it; OSError if the peer is gone or takes less than a piece in `patience` seconds."""
        self._sock.settimeout(GLANCE)
        view = memoryview(data)
        for start in range(0, len(view), PIECE):
            self._send_piece(view[start : start + PIECE], monotonic() + self.patience)

    def _send_piece(self, view: memoryview, deadline: float) -> None:
        while view:
            try:
                view = view[self._sock.send(view) :]
            except TimeoutError:  # who was cut off while its peer takes nothing would hear of it by looking alone
                if monotonic() > deadline or self.closed():
                    raise

    def send_part(self, part: FilePart, progress: Progress | None = None) -> None:
        """Sends a part of a file by way of one small buffer: a mapped file that shrinks would kill the process."""
        left, buffer = part.length, memoryview(bytearray(min(part.length, PIECE)))
        with part.open() as file:
            while left:
                if not (got := file.readinto(buffer[:left])):
                    raise WireError(f"{part.path}, send: became shorter meanwhile; make it anew and send it again")
                self.send(buffer[:got])
                left -= got
                if progress:
                    progress(got)

    def closed(self) -> bool:
        """Whether the peer has closed or this end was cut: one system call, meant for those who wait."""
        if self._sock.fileno() < 0:
            return True
        poll = select.poll()
        poll.register(self._sock, _GONE)
        return bool(poll.poll(0))

    def wait(self, condition: Condition, ready: Callable[[], bool], timeout: float) -> bool:
        """Whether `ready()` came true in `timeout` seconds; False early if the peer is gone. Holds `condition`."""
        deadline = monotonic() + timeout
        while not ready():
            if (left := deadline - monotonic()) <= 0 or self.closed():
                return False
            condition.wait(min(left, GLANCE))
        return True

    def cut(self) -> None:
        """Ends whatever the owner is doing on this connection, at once."""
        with suppress(OSError):
            # SSLSocket's own shutdown would drop TLS under the owner's feet
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def linger(self) -> None:
        """Lets the peer read the last answer: closing on unread bytes would reset the connection and destroy it."""
        deadline = monotonic() + LINGER
        with suppress(OSError):
            socket.socket.shutdown(self._sock, socket.SHUT_WR)
            while (left := deadline - monotonic()) > 0:
                self._sock.settimeout(left)
                if not socket.socket.recv(self._sock, PIECE):
                    return

    def close(self) -> None:
        """Gives the socket back."""
        self._sock.close()


@final
class Body:
    """A body of known length that is still on the wire; `left` bytes of it are unread.

    `invite` is called before the first byte is read: a server sends its `100 Continue` there.
    """

    def __init__(self, connection: Connection, length: int, invite: Callable[[], object] | None = None) -> None:
        self._connection, self._invite = connection, invite if length else None
        self.length = self.left = length

    @property
    def uninvited(self) -> bool:
        """Whether the sender still waits for a `100 Continue`."""
        return self._invite is not None

    def read(self, limit: int = CONTROL) -> bytes:
        """The whole body; TooLarge if longer than `limit`, before anything is read or allocated; Truncated."""
        if self.length > limit:
            raise TooLarge(f"{self._connection.peer}, body: {self.length} bytes where at most {limit} are taken")
        data = bytearray(self.left)
        self._take(memoryview(data))
        return bytes(data)

    def into(self, fd: int, sink: Sink | None = None) -> int:
        """How many bytes went to `fd`, from its current place on; each buffer is shown to `sink` (a hash).

        Truncated if the sender leaves early: what came until then is in the file and was shown. Nothing is fsynced.
        """
        start, buffer = self.left, memoryview(bytearray(min(self.left, BUFFER)))
        while self.left:
            got, short = self._fill(buffer[: self.left])
            _write(fd, buffer[:got])
            if sink:
                sink(buffer[:got])
            if short:
                raise Truncated(self._connection.peer, start - self.left, self.left)
        return start

    def skip(self) -> None:
        """Reads the rest and forgets it."""
        buffer = memoryview(bytearray(min(self.left, BUFFER)))
        while self.left:
            self._take(buffer[: self.left])

    def _take(self, view: memoryview) -> None:
        got, short = self._fill(view)
        if short:
            raise Truncated(self._connection.peer, got, self.left)

    def _fill(self, view: memoryview) -> tuple[int, bool]:
        if self._invite:
            invite, self._invite = self._invite, None
            invite()
        got = self._connection.fill(view)
        self.left -= got
        return got, got < len(view)


def _write(fd: int, view: memoryview) -> None:
    while view:
        view = view[os.write(fd, view) :]
