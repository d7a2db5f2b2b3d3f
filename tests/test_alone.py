"""The two algorithms that comparisons are made of: nobody federates, and not everybody does."""

from __future__ import annotations

from pathlib import Path

import pytest

import foedus as fd
from foedus import jobfile, runs
from foedus.core import RoundContext
from foedus.errors import JobError
from foedus.params import Params

TOY = jobfile.imported(Path(__file__).parent / "jobs" / "study" / "job.py")  # w goes up by lr in each round
WEST = {**TOY.sites(), "west": TOY.split(0, 9, 9)}


def asked(result: fd.Result) -> list[list[str]]:
    """The sites that each round's training counted."""
    rows = [row["counted"] for row in runs.journal(result.folder).all("close") if row["task"] == 0]
    return [[site for site, _, _ in row] for row in rows]


def test_alone_each_site_goes_on_with_its_own_model(home: Path) -> None:
    """w is 4 after four rounds: off by 6, 6 and 5 on test, by 1, 1 and 5 on valid."""
    job = TOY.job(fd.alone(), best="")
    result = job.run(WEST, backend="local")
    assert result.params["w"].tolist() == [0.0]
    assert {s: v["personal_test_rmse"] for s, v in result.per_site.items()} == {"north": 6.0, "south": 6.0, "west": 5.0}
    assert {s: v["personal_rmse"] for s, v in result.per_site.items()} == {"north": 1.0, "south": 1.0, "west": 5.0}
    assert "rmse" not in result.metrics


def test_alone_a_site_trains_in_the_rounds_in_which_it_is_asked(home: Path) -> None:
    result = TOY.job(fd.alone(), best="").replace(cohort=1).run(WEST, backend="local", seed=3)
    times = [site for row in asked(result) for site in row]
    for site, values in result.per_site.items():
        if site in times:
            tested = {"north": 10, "south": 10, "west": 9}[site]
            assert values["personal_test_rmse"] == tested - times.count(site)
        else:
            assert "personal_test_rmse" not in values


def test_among_some_sites_is_a_federation_of_these(home: Path) -> None:
    """The same model and bits as where the others are not there at all, but they are measured, too."""
    some = TOY.job(fd.among(fd.fedavg(), ["north", "west"]), noise=0.5, best="").run(WEST, backend="local")
    fewer = {name: WEST[name] for name in ("north", "west")}
    assert some.digest == TOY.job(noise=0.5, best="").run(fewer, backend="local").digest
    assert asked(some) == [["north", "west"]] * 4 and sorted(some.per_site) == ["north", "south", "west"]
    without = TOY.job(fd.among(fd.fedavg(), without=["south"]), noise=0.5, best="").run(WEST, backend="local")
    assert without.digest == some.digest


def test_a_cohort_of_which_nobody_takes_part_is_drawn_from_those_who_do(home: Path) -> None:
    job = TOY.job(fd.among(fd.fedavg(), ["north", "west"]), rounds=12, best="").replace(cohort=1)
    rows = asked(job.run(WEST, backend="local"))
    assert {site for row in rows for site in row} == {"north", "west"} and all(len(row) == 1 for row in rows)


def test_among_sites_that_are_not_there_is_refused() -> None:
    algorithm = fd.among(fd.fedavg(), ["east"])
    with pytest.raises(JobError, match=r"among\(\['east'\], without=\[\]\): none of these sites is on the roster"):
        algorithm.round(Params({}), RoundContext(0, 0, ["north"], ["north"]))


def test_other_sites_are_another_job() -> None:
    digests = {
        TOY.job(fd.among(fd.fedavg(), sites)).digest for sites in (["north"], ["south"], ["north", "south"], None)
    }
    assert len(digests) == 4
