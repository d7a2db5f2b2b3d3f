"""Deployed rounds over TLS on loopback: seconds a round, delivery of a Task, private memory of the server.

`python benchmarks/rounds.py [MB …]` prints JSON; the reference of the same run is in transfer.py.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path

from foedus.loopback import Federation
from foedus.remote import Run

JOB = Path(__file__).parent / "jobs" / "big.py"


def main(sizes: list[float]) -> None:
    print(json.dumps([measured(mb, 3 if mb < 1 else 2, 50 if mb < 1 else 4) for mb in sizes], indent=2))


def measured(mb: float, sites: int, rounds: int) -> dict[str, float]:
    """Median seconds of a round (the first left out), and the server's and run worker's memory above idle, in MB."""
    with tempfile.TemporaryDirectory() as folder:
        made = Federation(Path(folder) / "home")
        try:
            made.start_server()
            for i in range(sites):
                (Path(folder) / f"d{i}").mkdir()
                made.join(f"s{i}", {"data": Path(folder) / f"d{i}"})
            made.await_sites([f"s{i}" for i in range(sites)])
            watch = Memory(made.processes["server"].pid)
            run = made.remote().submit(JOB, {"mb": str(mb), "rounds": str(rounds)})
            watch.start()
            run.wait()
            peak = watch.stop()
            rows = journal(run)
        finally:
            made.stop()
    ends = [at for _, at, kind, _, _ in rows if kind == "step"]
    seconds = [b - a for a, b in pairwise(ends)]
    return {"mb": mb, "sites": sites, "seconds": statistics.median(seconds), "memory_mb": peak, **delivery(rows)}


def journal(run: Run) -> list[list]:
    rows: list[list] = []
    while new := run.rows(rows[-1][0] if rows else 0)[0]:
        rows += new
    return rows


def delivery(rows: list[list]) -> dict[str, float]:
    """p50 of milliseconds from a Task's row to the first acceptance: delivery, work and upload of a model."""
    asked = {(b["round"], b["task"]): at for _, at, kind, b, _ in rows if kind == "task"}
    first: dict[tuple[int, int], float] = {}
    for _, at, kind, body, _ in rows:
        if kind == "accepted":
            first.setdefault((body["round"], body["task"]), at)
    gaps = [1000 * (first[k] - asked[k]) for k in first]
    return {"task_to_first_update_ms": round(statistics.median(gaps), 1)}


class Memory(threading.Thread):
    """The largest private memory of a process and its children above what it had at the start, in MB."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.base, self.peak, self.on = pid, private(pid), 0.0, True

    def run(self) -> None:
        while self.on:
            self.peak = max(self.peak, sum(map(private, [self.pid, *children(self.pid)])))
            time.sleep(0.02)

    def stop(self) -> float:
        self.on = False
        return round(self.peak - self.base, 1)


def children(pid: int) -> list[int]:
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()] + [
            int(p) for t in Path(f"/proc/{pid}/task").iterdir() for p in (t / "children").read_text().split()
        ]
    except OSError:
        return []


def private(pid: int) -> float:
    """Memory that only this process has and no file backs, in MB."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith("RssAnon:")), 0.0)


if __name__ == "__main__":
    main([float(text) for text in sys.argv[1:]] or [0.02, 10, 100])
