"""Messages between two processes of one machine: JSON with a length in front, file descriptors passed beside it.
A Unix socket comes in; both ends trust the kernel, and neither trusts the content beyond its size."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

from foedus.errors import WireError

MOST_BYTES = 256 << 20
MOST_FDS = 250  # Linux passes 253 at once
PARENT = "FOEDUS_PARENT"  # in the environment: a descriptor whose other end closes when the parent is gone
GRACE = 10.0  # seconds to end in order


class Pipe:
    """One end of a socket pair; `send` may be called by several threads, `receive` by one."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end
        self.sending = threading.Lock()
        self.fds: list[int] = []

    def send(self, message: Any, fds: Sequence[int] = ()) -> None:
        """Sends one message; the descriptors arrive with it, in order."""
        body = json.dumps(message).encode()
        head = len(body).to_bytes(8, "little") + len(fds).to_bytes(4, "little")
        with self.sending:
            try:
                self.end.sendall(head + body)
                for at in range(0, len(fds), MOST_FDS):
                    socket.send_fds(self.end, [b"f"], list(fds[at : at + MOST_FDS]))
            except OSError as error:
                raise WireError("the other process is gone") from error

    def receive(self) -> tuple[Any, list[int]]:
        """The next message and its descriptors (the caller closes them). WireError when the other end is gone."""
        head = self._exactly(12)
        size, count = int.from_bytes(head[:8], "little"), int.from_bytes(head[8:], "little")
        if size > MOST_BYTES:
            raise WireError(f"a message of {size} bytes from the other process: it is damaged")
        message = json.loads(self._exactly(size))
        fds: list[int] = []
        while len(fds) < count:
            data, new, _, _ = socket.recv_fds(self.end, 1, MOST_FDS)
            fds += new
            if not data:
                for fd in fds:
                    os.close(fd)
                raise WireError("the other process is gone")
        return message, fds

    def ask(self, message: Any, fds: Sequence[int] = ()) -> Any:
        """Sends a message and returns the answer, which brings no descriptors."""
        self.send(message, fds)
        return self.receive()[0]

    def _exactly(self, size: int) -> bytes:
        found = bytearray(size)
        view, at = memoryview(found), 0
        while at < size:
            try:
                n = self.end.recv_into(view[at:])
            except OSError as error:
                raise WireError("the other process is gone") from error
            if n == 0:
                raise WireError("the other process is gone")
            at += n
        return bytes(found)

    def close(self) -> None:
        self.end.close()


def pair() -> tuple[Pipe, socket.socket]:
    """This process's end, and the other one, whose descriptor a child inherits."""
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for end in (mine, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    return Pipe(mine), theirs


def inherited(fd: int) -> Pipe:
    """The end that this process inherited as descriptor `fd`."""
    return Pipe(socket.socket(fileno=fd))


def end_with_parent() -> None:
    """Has this process end as by SIGTERM when its parent is gone, however that ended; if a parent asked for it."""
    fd = os.environ.pop(PARENT, "")
    if fd:
        os.set_inheritable(int(fd), False)
        threading.Thread(target=_end_with, args=(int(fd),), name="parent", daemon=True).start()


def _end_with(fd: int) -> None:
    os.read(fd, 1)  # nothing is ever written
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os.kill(os.getpid(), signal.SIGKILL)
