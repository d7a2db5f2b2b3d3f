"""Whether a process at work gets on: progress is what it tells, or CPU time; being alive is not.
Only the standard library may come in; agents watch their workers by it, and backends theirs."""

from __future__ import annotations

import os
from pathlib import Path
from time import monotonic
from typing import Any

TICKS = os.sysconf("SC_CLK_TCK")
ASLEEP = 15.0  # seconds: in a longer gap between two looks the one who looks has slept, or the whole machine


class Still:
    """For how long a figure has stayed what it was, as far as it was looked at."""

    def __init__(self) -> None:
        self.figure: Any = None
        self.quiet, self.last = 0.0, monotonic()

    def seconds(self, figure: Any) -> float:
        """For how long it has been this one."""
        now = monotonic()
        self.quiet = self.quiet + min(now - self.last, ASLEEP) if figure == self.figure else 0.0
        self.figure, self.last = figure, now
        return self.quiet


def cpu_seconds(group: int) -> float | None:
    """CPU time that the living processes of a group have used; None where the machine does not say."""
    ticks, told = 0, False
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        told = True
        if int(fields[2]) == group:  # proc(5): field 5 is the group, 14 and 15 are user and system time
            ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS if told else None
