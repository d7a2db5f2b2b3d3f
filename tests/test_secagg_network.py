"""Secure aggregation over a real federation: the bits of the simulation, and no run that would only seem sealed."""

from __future__ import annotations

from pathlib import Path

import pytest

from federations import foedus, simulated, started, submit
from foedus import runs
from toys import JOB

pytestmark = pytest.mark.processes

NAMES = ["east", "north", "south"]


def test_without_masks_a_federation_has_the_bits_of_the_simulation_and_masks_are_refused(tmp_path: Path) -> None:
    with started(tmp_path, NAMES) as (made, sites):
        code, said = foedus(made.home, "submit", JOB, "privacy=secagg")
        assert code == 10 and said.startswith("foedus: secagg between real sites is not built yet: simulate the Job")
        assert made.remote().runs() == []
        result = submit(made, privacy="secagg", masks=0).wait()
    assert result.digest == simulated(sites, tmp_path / "same", privacy="secagg")
    steps = runs.journal(result.folder).all("step")
    assert [row["per_site"] for row in steps] == [{}] * 3 and "loss" not in steps[0]["per_site"]
    assert result.metrics["test_rmse"] > 0
