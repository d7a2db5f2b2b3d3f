"""Who owns a run: how a process is named, whether it still lives, and when its lease may pass to another.
Only the machine's table of processes is asked; fencing by epoch, not this answer, is what makes a lease safe."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import NamedTuple

from foedus.store import Held

NOBODY = ""


class Lease(NamedTuple):
    """A run's lease as stored; `until` is in seconds since 1970, by the clock of whoever took it."""

    epoch: int
    holder: str
    until: float


def this_process() -> str:
    """This process as a holder: host:pid:start."""
    return f"{socket.gethostname()}:{os.getpid()}:{_start(os.getpid())}"


def alive(holder: str) -> bool:
    """False only if the holder is known to be dead: a process of this host that is gone, or whose pid another has."""
    host, _, process = holder.partition(":")
    pid, _, start = process.partition(":")
    if host != socket.gethostname() or not pid.isdecimal():
        return True
    return _exists(int(pid)) and _start(int(pid)) in (start, "")


def check_free(run: str, lease: Lease, holder: str, now: float) -> None:
    """Returns if `holder` may take the lease now; else Held. A process of this host holds it while it lives."""
    here = lease.holder.partition(":")[0] == socket.gethostname()
    if lease.holder not in (NOBODY, holder) and (here or now < lease.until) and alive(lease.holder):
        raise Held(run, lease.holder, lease.until)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _start(pid: int) -> str:
    """When the process began, in its machine's own count; "dead" for a zombie, "" where the machine does not say."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "dead" if state in "ZX" else rest[18]  # proc(5): fields 3 and 22
