"""Deployed rounds over TLS on loopback, everything durable: seconds a round beside plain sockets in the same run.

`python benchmarks/rounds.py [MB …]` prints JSON; `limit` and `reach` are what is aimed at. 0.02 is the tiny model of
three sites, others have two; 1000 takes three minutes and 10 GB of disk.
"""

from __future__ import annotations

import json
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from peers import plain

from foedus.loopback import Federation, federation
from foedus.remote import Run

JOB = Path(__file__).parent / "jobs" / "big.py"
LIMITS = {0.02: 0.1, 10: 0.3, 100: 1.6, 1000: 14.0}
ROUNDS = {0.02: 51, 10: 12, 100: 8, 1000: 3}
REACH = 0.8  # of the reference's speed


def main(sizes: list[float]) -> None:
    print(json.dumps([measured(mb, 3 if mb < 1 else 2, ROUNDS.get(mb, 5)) for mb in sizes], indent=2))


def measured(mb: float, sites: int, rounds: int) -> dict[str, Any]:
    """Medians of seconds a round, the first left out; the reference runs before and after."""
    before = plain.seconds(mb, sites, rounds)
    ours = deployed(mb, sites, rounds)
    reference = median(before + plain.seconds(mb, sites, rounds))
    return {
        "mb": mb,
        "sites": sites,
        "seconds": round(median(ours), 4),
        "limit": LIMITS.get(mb),
        "reference_seconds": round(reference, 4),
        "of_reference": round(reference / median(ours), 3),
        "reach": REACH if mb >= 1 else None,
        "all_seconds": [round(s, 3) for s in ours],
    }


def deployed(mb: float, sites: int, rounds: int) -> list[float]:
    """Seconds between the ends of rounds, of a server and agents that are processes of their own."""
    with tempfile.TemporaryDirectory() as folder, federation(Path(folder) / "home") as made:
        made.start_server()
        names = [f"s{i}" for i in range(sites)]
        for name in names:
            (Path(folder) / name).mkdir()
            made.join(name, {"data": Path(folder) / name})
        made.await_sites(names)
        run = submitted(made, mb, rounds)
        run.wait()
        return [b[1] - a[1] for a, b in pairwise(rows(run, "step"))]


def submitted(made: Federation, mb: float, rounds: int) -> Run:
    return made.remote().submit(JOB, {"mb": str(mb), "rounds": str(rounds)})


def rows(run: Run, kind: str) -> list[list[Any]]:
    """The journal's rows of one kind: [seq, time, kind, body, chain]."""
    found: list[list[Any]] = []
    while new := run.rows(found[-1][0] if found else 0)[0]:
        found += new
    return [row for row in found if row[2] == kind]


if __name__ == "__main__":
    main([float(text) for text in sys.argv[1:]] or [0.02, 10, 100])
