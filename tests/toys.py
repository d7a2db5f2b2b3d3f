"""Sites of the toy job: folders with rows, how slow their training is, and a count of its calls."""

from __future__ import annotations

from pathlib import Path

import numpy as np

JOB = Path(__file__).parent / "jobs" / "toy" / "job.py"


def make_sites(folder: Path, names: list[str], slow: float = 0.0) -> dict[str, Path]:
    """name -> folder, each with 60 rows of its own."""
    found = {}
    for i, name in enumerate(names):
        place = folder / name
        place.mkdir(parents=True)
        rng = np.random.default_rng(i)
        x = rng.normal(size=(60, 4))
        y = x @ np.arange(4) + rng.normal(size=60) + i
        np.savetxt(place / "rows.csv", np.column_stack([x, y]), delimiter=",")
        (place / "slow").write_text(str(slow))
        found[name] = place
    return found


def calls(sites: dict[str, Path], what: str = "end") -> dict[str, int]:
    """How often each site's training ended (or began)."""
    return {n: (p / "calls").read_text().count(what) if (p / "calls").exists() else 0 for n, p in sites.items()}
