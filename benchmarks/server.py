"""What a server costs: its private memory in a round against the number of sites, and how fast a Task is delivered.

`python benchmarks/server.py [SITES …]` prints JSON. Memory is what no file backs, of the server and the run worker
together, above what it was when every site held the Task and nobody had begun; `limit` is one model.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import quantiles
from typing import Any

from peers.swarm import Swarm
from rounds import rows, submitted

from foedus.loopback import federation

MB = 20
PERIOD = 0.005


def main(counts: list[int]) -> None:
    found = {"memory": [memory(count) for count in counts], "delivery": delivery(3, 60)}
    print(json.dumps(found, indent=2))


def memory(sites: int, rounds: int = 3) -> dict[str, Any]:
    """The largest private memory in a few rounds of a model of MB million bytes."""
    with tempfile.TemporaryDirectory() as folder, federation(Path(folder) / "home") as made:
        made.start_server()
        swarm = Swarm(made.home, Path(folder), sites)
        run = submitted(made, MB, rounds)
        until(lambda: len(swarm.got) == sites)
        watch = Watch(made.processes["server"].pid)
        swarm.gate.set()
        run.wait()
        peak = watch.stop()
        swarm.stop()
    return {
        "sites": sites,
        "model_mb": MB,
        "idle_mb": round(watch.idle, 1),
        "above_idle_mb": round(peak, 1),
        "limit_mb": MB,
        "of_model": round(peak / MB, 2),
    }


def delivery(sites: int, rounds: int) -> dict[str, Any]:
    """Milliseconds from a Task's row in the journal until a site has the signed Task in its hands."""
    with tempfile.TemporaryDirectory() as folder, federation(Path(folder) / "home") as made:
        made.start_server()
        swarm = Swarm(made.home, Path(folder), sites)
        swarm.gate.set()
        run = submitted(made, 0.02, rounds)
        run.wait()
        asked = {body["round"]: at for _, at, _, body, _ in rows(run, "task")}
        swarm.stop()
    gaps = [1000 * (at - asked[round]) for (round, _), at in swarm.got.items() if round]
    cuts = quantiles(gaps, n=10)
    return {
        "sites": sites,
        "tasks": len(gaps),
        "p50_ms": round(cuts[4], 2),
        "p90_ms": round(cuts[8], 2),
        "limit_ms": 20,
    }


class Watch(threading.Thread):
    """The largest private memory of a process and its children above what it is at the start, in MB."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.over = pid, threading.Event()
        self.idle = self.peak = self._now()
        self.start()

    def run(self) -> None:
        while not self.over.wait(PERIOD):
            self.peak = max(self.peak, self._now())

    def stop(self) -> float:
        self.over.set()
        self.join()
        return self.peak - self.idle

    def _now(self) -> float:
        return sum(map(private, [self.pid, *children(self.pid)]))


def until(ready: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise SystemExit("the sites did not get their Task")
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    try:
        tasks = [*Path(f"/proc/{pid}/task").iterdir()]
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []


def private(pid: int) -> float:
    """Memory that only this process has and no file backs, in MB (millions of bytes)."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e6 for line in text.splitlines() if line.startswith("RssAnon:")), 0.0)


if __name__ == "__main__":
    main([int(text) for text in sys.argv[1:]] or [2, 8, 32])
