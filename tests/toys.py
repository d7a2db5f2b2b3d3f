"""Sites of the toy job: folders with rows, how slow their training is, a gate, and a count of its calls by round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import foedus as fd

JOB = Path(__file__).parent / "jobs" / "toy" / "job.py"
MOST_ROUNDS = 100


def make_sites(folder: Path, names: list[str], slow: float = 0.0, first: int = 0) -> dict[str, Path]:
    """name -> folder, each with 60 rows of its own; `first` numbers the rows of the first site."""
    found = {}
    for i, name in enumerate(names, first):
        place = folder / name
        place.mkdir(parents=True)
        rng = np.random.default_rng(i)
        x = rng.normal(size=(60, 4))
        y = x @ np.arange(4) + rng.normal(size=60) + i
        np.savetxt(place / "rows.csv", np.column_stack([x, y]), delimiter=",")
        (place / "slow").write_text(str(slow))
        found[name] = place
    return found


def calls(sites: Mapping[str, Path], what: str = "end") -> dict[str, int]:
    """How often each site's training ended (or began)."""
    return {name: _told(place).count(what) for name, place in sites.items()}


def trained(sites: Mapping[str, Path]) -> Counter[tuple[str, int]]:
    """(site, round) -> how often its training began; what a call drew from its key says of which round it was."""
    return Counter((name, _round(name, line)) for name, place in sites.items() for line in _begun(place))


def training(site: Path) -> bool:
    """Whether a call of this site's training has begun and not ended; once its process is dead: was cut off."""
    return _told(site).rstrip().rpartition("\n")[2].startswith("begin")


def gate(site: Path, calls: int | None) -> None:
    """Lets so many calls of this site's training go on, those from now on wait; None: all of them, from now on."""
    if calls is None:
        (site / "gate").unlink(missing_ok=True)
    else:
        (site / "gate").write_text(str(calls))


def _told(site: Path) -> str:
    return (site / "calls").read_text() if (site / "calls").exists() else ""


def _begun(site: Path) -> list[str]:
    return [line for line in _told(site).splitlines() if line.startswith("begin")]


def _round(site: str, line: str) -> int:
    draw = float(line.split()[1])
    keys = (fd.key(0, round, 0, site, "train", "order") for round in range(MOST_ROUNDS))
    return next(i for i, key in enumerate(keys) if float(key.numpy().random()) == draw)
