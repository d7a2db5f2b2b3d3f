"""Named points at which a test may kill a process, off by default; the write-ahead order is tested through them.
Only the standard library may come in."""

from __future__ import annotations

import os
import signal
from collections import Counter

_seen: Counter[str] = Counter()


def point(name: str) -> None:
    """Kills this process (SIGKILL) if `FOEDUS_KILL` says so.

    `FOEDUS_KILL=NAME[:N],…` names points and which passage of each it is (1, the first, by default).
    `FOEDUS_KILL_ONCE=PATH` lets a kill happen once: the file PATH (or PATH/NAME, where PATH is a folder) is made first,
    and where it exists nobody dies.
    """
    wanted = os.environ.get("FOEDUS_KILL")
    if not wanted:
        return
    _seen[name] += 1
    passages = dict(_target(text) for text in wanted.split(","))
    if passages.get(name) == _seen[name] and _claim(os.environ.get("FOEDUS_KILL_ONCE"), name):
        os.kill(os.getpid(), signal.SIGKILL)


def _target(text: str) -> tuple[str, int]:
    name, _, passage = text.partition(":")
    return name, int(passage or 1)


def _claim(once: str | None, name: str) -> bool:
    if once is None:
        return True
    path = os.path.join(once, name) if os.path.isdir(once) else once
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    return True
