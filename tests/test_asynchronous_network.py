"""FedBuff and FedAsync by real agents that die and come back while others go on; their journals replay bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from federations import accepted, finished, in_training, kinds, started, submit, until
from foedus import jobfile, launch
from foedus.loopback import Federation
from foedus.remote import Run
from toys import JOB, gate

pytestmark = pytest.mark.processes

Made = tuple[Federation, dict[str, Path]]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    with started(tmp_path_factory.mktemp("federation"), ["east", "north", "south"]) as found:
        yield found


@pytest.fixture
def made(federation: Made) -> Made:
    """The federation, whose sites have not trained in this test."""
    for site in federation[1].values():
        (site / "calls").unlink(missing_ok=True)
        gate(site, None)
    return federation


def closed(run: Run) -> list[list[str]]:
    """Of each round's training the sites that counted, each with the round in which it was asked."""
    rows = [row for row in kinds(run, "close") if row["task"] == 0]
    return [sorted(f"{site}{r}" for site, r, _ in row["counted"]) for row in rows]


def replayed(run: Run, sites: dict[str, Path], folder: Path, **options: object) -> list[str]:
    """The digests of the run and of its replays."""
    result, made = finished(run), jobfile.load(JOB, {k: str(v) for k, v in options.items()}).job
    again = [
        launch.run(made, sites, backend=backend, workers=2, replay=result, folder=folder / backend)
        for backend in ("local", "processes")
    ]
    return [result.digest, *(found.digest for found in again)]


def test_a_site_is_killed_in_training_others_go_on_and_what_it_brings_back_counts_by_its_age(
    made: Made, tmp_path: Path
) -> None:
    federation, sites = made
    options = {"rounds": 8, "buffer": 2}
    gate(sites["east"], 0)
    gate(sites["south"], 4)
    run = submit(federation, **options)
    in_training(sites["east"], 1)
    federation.kill("east")
    until(lambda: len(kinds(run, "step")) == 4)  # north and south have filled the buffer four times
    assert closed(run) == [[f"north{r}", f"south{r}"] for r in range(4)]
    gate(sites["east"], None)
    federation.start_site("east")
    until(lambda: accepted(run, "east", 0))  # south is at work for round 4: north's update and this one fill the buffer
    until(lambda: len(closed(run)) == 5)
    assert closed(run)[4] == ["east0", "north4"]
    gate(sites["south"], None)
    digests = replayed(run, sites, tmp_path, **options)
    assert len(set(digests)) == 1


def test_fedasync_goes_on_at_each_arrival_while_a_site_pauses_and_returns(made: Made, tmp_path: Path) -> None:
    federation, sites = made
    options = {"rounds": 12, "alpha": 0.5, "busy": 2}
    for name, calls in {"east": 0, "north": 2, "south": 2}.items():
        gate(sites[name], calls)
    run = submit(federation, **options)
    until(lambda: any((site / "calls").exists() for site in sites.values()))
    federation.site("east", "pause")
    for name in ("north", "south"):
        gate(sites[name], None)
    until(lambda: len(kinds(run, "step")) >= 4)
    assert not any(site.startswith("east") for row in closed(run) for site in row)
    gate(sites["east"], None)
    federation.site("east", "return")
    digests = replayed(run, sites, tmp_path, **options)
    assert len(set(digests)) == 1 and all(len(row) == 1 for row in closed(run))
