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
    paths = {name: folder / f"{name}.csv" for name in ("north", "south", "west")}
    for name, path in paths.items():
        sites()[name].to_csv(path, index=False)
    return paths


@pytest.mark.parametrize(
    "every",
    [("logrank",), pytest.param(("describe", "glm", "cox", "kaplan_meier"), marks=pytest.mark.long)],
    ids=["one", "many"],
)
def test_an_analysis_is_the_same_in_a_real_federation(every: tuple[str, ...], tmp_path: Path) -> None:
    paths = written(tmp_path / "data")
    with joined(tmp_path / "home", paths) as made:
        for what in every:
            result = finished(made.remote().submit(JOB, {"what": what}))
            here = launch.run(jobfile.load(JOB, {"what": what}).job, dict(paths), folder=tmp_path / what)
            assert result.digest == here.digest
            pd.testing.assert_frame_equal(analytics.read(result).pandas, analytics.read(here).pandas)
