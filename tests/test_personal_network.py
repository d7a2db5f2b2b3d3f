"""Sites' own models over real agents and a real server: measured as in a simulation, and exported where they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from federations import finished, foedus, joined, until
from foedus import frames, jobfile, launch
from foedus.loopback import Federation
from foedus.result import Result
from toys import make_sites

pytestmark = pytest.mark.processes
JOB = Path(__file__).parent / "jobs" / "personal" / "job.py"
Made = tuple[Federation, dict[str, Path]]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    sites = make_sites(tmp_path_factory.mktemp("data"), ["east", "north"])
    with joined(tmp_path_factory.mktemp("home"), sites) as made:
        yield made, sites


def both(made: Made, folder: Path, **options: Any) -> tuple[Result, Result]:
    """The Result of a federation and that of a simulation."""
    federation, sites = made
    told = {name: str(value) for name, value in options.items()}
    there = finished(federation.remote().submit(JOB, told))
    return there, launch.run(jobfile.load(JOB, told).job, dict(sites), backend="local", folder=folder)


@pytest.mark.parametrize("options", [{"method": "ditto", "evaluate": 0}, {"method": "fedper", "cohort": 1}], ids=str)
def test_what_a_site_exports_is_what_a_simulation_gives(federation: Made, tmp_path: Path, options: Any) -> None:
    there, here = both(federation, tmp_path / "here", **options)
    assert there.digest == here.digest and dict(there.metrics) == dict(here.metrics)
    if options.get("evaluate", 1):
        assert {"personal_loss", "personal_test_loss"} <= there.metrics.keys()
        assert there.per_site == here.per_site
    for site in federation[1]:
        home, file = federation[0].site_home(site), tmp_path / f"{site}.safetensors"
        until(lambda home=home, site=site: not (home / "sites" / site / "work" / there.run).exists())
        code, said = foedus(home, "site", "export", there.run, "--out", file)
        if here.own is not None and here.own(site) is None:  # it was never drawn
            assert code == 1 and "has no model of its own" in said
            continue
        assert (code, said["site"], said["model"]) == (0, site, str(file))
        assert frames.read_model(file) == here.personal(site)


def test_a_simulation_that_is_kept_exports_them_later(federation: Made, tmp_path: Path) -> None:
    path = tmp_path / "north.safetensors"
    home, sites = tmp_path / "home", [f"--site={name}={path}" for name, path in federation[1].items()]
    code, said = foedus(home, "run", JOB, "method=ditto", "--backend", "local", *sites)
    assert code == 0, said
    assert foedus(home, "export", said["run"], "north", "--out", path)[0] == 0
    found = launch.run(
        jobfile.load(JOB, {"method": "ditto"}).job, federation[1], backend="local", folder=tmp_path / "h"
    )
    assert frames.read_model(path) == found.personal("north")
    code, said = foedus(home, "export", said["run"], "nobody")
    assert code == 1 and "site 'nobody' has no model of its own" in said
