"""The server's port: had, or said who has it.
The machine's tables of sockets and processes come in, where it has such."""

from __future__ import annotations

import errno
import os
import ssl
from contextlib import suppress
from pathlib import Path

from foedus.errors import WireError
from foedus.wire.http_server import Handler, Server

LISTENING = "0A"  # in the column `st` of proc(5)'s net/tcp


def listening(handler: Handler, host: str, port: int, tls: ssl.SSLContext) -> Server:
    """A Server on this port. WireError names the process that has it, where the machine tells."""
    try:
        return Server(handler, host, port, tls)
    except WireError as error:
        pid = holder(port) if getattr(error.__cause__, "errno", None) == errno.EADDRINUSE else None
        if pid is None:
            raise
        raise WireError(
            f"server, listen on {host}:{port}: the port is taken by process {pid} ({command(pid)}): stop that, "
            "or give the server another with --port (sites look for it where their tokens say)"
        ) from error


def holder(port: int) -> int | None:
    """The pid of the process that listens on this TCP port; None where the machine does not say."""
    sockets = {f"socket:[{inode}]" for inode in _inodes(port)}
    for folder in Path("/proc").glob("[0-9]*/fd") if sockets else ():
        with suppress(OSError):
            if any(os.readlink(file) in sockets for file in folder.iterdir()):
                return int(folder.parent.name)
    return None


def command(pid: int) -> str:
    """How a process was called, in at most 60 characters."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "unknown"
    return " ".join(words).strip()[:60]


def _inodes(port: int) -> set[str]:
    """The sockets that listen on a port: column 2 is ADDRESS:PORT in hex, 4 the state, 10 the inode."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            rows = [line.split() for line in Path(table).read_text().splitlines()[1:]]
            found |= {row[9] for row in rows if row[3] == LISTENING and int(row[1].rpartition(":")[2], 16) == port}
    return found
