"""Secure aggregation over a real federation: the bits of the simulation, and nothing in the clear at the server."""

from __future__ import annotations

from pathlib import Path

import pytest

from federations import simulated, started, submit
from foedus import runs

pytestmark = pytest.mark.processes

NAMES = ["east", "north", "south"]


def test_a_sealed_run_has_the_bits_of_the_simulation_and_of_masks_off(tmp_path: Path) -> None:
    with started(tmp_path, NAMES) as (made, sites):
        sealed = submit(made, privacy="secagg", rounds=2).wait()
        plain = submit(made, privacy="secagg", masks=0, rounds=2).wait()
    assert sealed.digest == plain.digest == simulated(sites, tmp_path / "same", privacy="secagg", rounds=2)
    steps = [row["per_site"] for result in (sealed, plain) for row in runs.journal(result.folder).all("step")]
    assert steps == [{}] * 4
    assert sealed.metrics == pytest.approx(plain.metrics)
    rows = [row for row in runs.journal(sealed.folder).all("accepted") if (row["round"], row["task"]) != (0, 0)]
    assert len(rows) == 3 * 4 and {(row["weight"], row["metrics"]) for row in rows} == {("0x0.0p+0", "")}
