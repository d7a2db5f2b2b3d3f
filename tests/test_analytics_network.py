"""Exact analyses in a real federation: the digest of the simulation, and the same frames."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from analytics_tables import sites
from federations import finished, joined
from foedus import analytics, jobfile, launch

pytestmark = pytest.mark.processes

JOB = Path(__file__).parent / "jobs" / "analytics" / "job.py"


def written(folder: Path) -> dict[str, Path]:
    """The cohort's sites as files."""
    folder.mkdir()
    paths = {name: folder / f"{name}.csv" for name in sites()}
    for name, table in sites().items():
        table.to_csv(paths[name], index=False)
    return paths


def test_an_analysis_is_the_same_in_a_real_federation(tmp_path: Path) -> None:
    paths = written(tmp_path / "data")
    with joined(tmp_path / "home", paths) as made:
        for what in ("glm", "describe"):
            run = made.remote().submit(JOB, {"what": what})
            result = finished(run)
            here = launch.run(jobfile.load(JOB, {"what": what}).job, dict(paths), folder=tmp_path / what)
            assert result.digest == here.digest
            pd.testing.assert_frame_equal(analytics.read(result).pandas, analytics.read(here).pandas)
