"""Named points at which a test may kill a process, off by default; the write-ahead order is tested through them.
Only the standard library may come in."""

from __future__ import annotations

import os
import signal
from collections import Counter

_seen: Counter[str] = Counter()


def point(name: str) -> None:
    """Kills this process (SIGKILL) if `FOEDUS_KILL` says so.

    `FOEDUS_KILL=NAME[:N]` names the point and which passage of it (1, the first, by default);
    `FOEDUS_KILL_ONCE=FILE` makes the kill happen once: the file is made first, and where it exists nobody dies.
    """
    wanted = os.environ.get("FOEDUS_KILL")
    if not wanted:
        return
    _seen[name] += 1
    target, _, passage = wanted.partition(":")
    if name == target and _seen[name] == int(passage or 1) and _claim(os.environ.get("FOEDUS_KILL_ONCE")):
        os.kill(os.getpid(), signal.SIGKILL)


def _claim(once: str | None) -> bool:
    if once is None:
        return True
    try:
        os.close(os.open(once, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    return True
