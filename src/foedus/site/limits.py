"""What a site's policy lets the process of a Job's code take of the machine, set before that code is imported.
Only the standard library comes in; the kernel holds the limits, for what that process starts, too."""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping

NOTICE = 5  # seconds between the signal that says that CPU time is over and the one that nobody outlives
SCARCE = ("MemoryError", "can't allocate memory")


def limit(limits: Mapping[str, int | None]) -> None:
    """Lowers this process's `memory` (bytes of data, each process), `cpu` (seconds in its life) and priority (`nice`).

    Memory is what it may write to; mapped files, such as a model that is read, do not count.
    """
    _lower(resource.RLIMIT_CORE, 0)  # a dump would hold the site's data
    if (memory := limits.get("memory")) is not None:
        _lower(resource.RLIMIT_DATA, memory)
    if (cpu := limits.get("cpu")) is not None:
        _lower(resource.RLIMIT_CPU, cpu, NOTICE)
    os.nice(limits.get("nice") or 0)


def hinted(why: str) -> str:
    """The reason, and the rule that memory was short by, if it was."""
    most = resource.getrlimit(resource.RLIMIT_DATA)[0]
    if most == resource.RLIM_INFINITY or not any(words in why for words in SCARCE):
        return why
    return f"{why}; the site's policy gives a job {most} bytes of memory (`most_memory_bytes`)"


def _lower(kind: int, most: int, spare: int = 0) -> None:
    hard = resource.getrlimit(kind)[1]
    most, last = (n if hard == resource.RLIM_INFINITY else min(n, hard) for n in (most, most + spare))
    resource.setrlimit(kind, (most, last))
