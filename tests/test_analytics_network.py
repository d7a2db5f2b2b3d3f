"""Exact analyses in a real federation: the digest of the simulation, in any order and on any backend."""

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
    """Three of the cohort's sites as files."""
    folder.mkdir()
    paths = {name: folder / f"{name}.csv" for name in ("north", "south", "west")}
    for name, path in paths.items():
        sites()[name].to_csv(path, index=False)
    return paths


def digest(what: str, paths: dict[str, Path], folder: Path, backend: str = "local") -> str:
    """That of a simulation, which is kept in the folder."""
    return launch.run(jobfile.load(JOB, {"what": what}).job, paths, backend=backend, folder=folder).digest


def test_every_analysis_has_the_same_bits_on_all_cores_and_in_any_order(tmp_path: Path) -> None:
    paths = written(tmp_path / "data")
    back = dict(reversed(paths.items()))
    assert digest("every", paths, tmp_path / "a") == digest("every", back, tmp_path / "b", "processes")


@pytest.mark.parametrize("what", ["logrank", pytest.param("every", marks=pytest.mark.long)])
def test_an_analysis_is_the_same_in_a_real_federation(what: str, tmp_path: Path) -> None:
    paths = written(tmp_path / "data")
    with joined(tmp_path / "home", paths) as made:
        result = finished(made.remote().submit(JOB, {"what": what}), 300)
    assert result.digest == digest(what, paths, tmp_path / "here")
    if what == "logrank":
        here = analytics.logrank(sites=paths, time="days", event="died", group="sex")
        pd.testing.assert_frame_equal(analytics.read(result).pandas, here.pandas)
        assert analytics.read(result).p == here.p
