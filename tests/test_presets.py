"""A privacy by one word: what it stands for, what is said of it, what a submission signs; without one it is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import foedus as fd
from federations import finished, kinds, started, until
from foedus import jobfile, launch, remote, runs
from foedus.cli.kept import as_started
from foedus.errors import JobError
from foedus.loopback import environment
from foedus.privacy import presets
from server_rig import Rig
from tiny import SITES, job
from toys import JOB, make_sites

RECORDS = fd.dp_sgd(1.0, epsilon=8.0, delta=1e-5)
PRIVATE = JOB.parents[1] / "private" / "job.py"
NOTHING_SAID = JOB.read_text().replace('if privacy else "none"', "if privacy else None")


def test_a_word_stands_for_the_protections_that_its_page_says() -> None:
    assert job(privacy="none").protections == [] and job(privacy="none").seal is job().seal is None
    assert job(privacy="secagg").protections == [fd.secagg()]
    assert job(privacy="hospital").protections == [RECORDS, fd.secagg()]
    assert (job(privacy="hospital").dp_sgd, job(privacy="hospital").seal) == (RECORDS, fd.secagg())


def test_a_word_gives_a_job_the_digest_of_what_it_stands_for() -> None:
    assert job(privacy="hospital").digest == job(privacy=[RECORDS, fd.secagg()]).digest
    assert job(privacy="none").digest == job().digest
    assert len({job(privacy=word).digest for word in presets.WORDS}) == 4


def test_a_command_lines_word_makes_the_job_that_says_it_itself() -> None:
    for word in presets.WORDS:
        over = job(privacy=fd.dp_sgd(2.0, 1.0)).given(privacy=word, rounds=None)
        assert over.digest == job(privacy=word).digest
    assert job(privacy="secagg").given(privacy=None).digest == job(privacy="secagg").digest


@pytest.mark.parametrize(
    ("privacy", "signed"),
    [
        ("none", "none"),
        (None, "none"),
        ("secagg", "secagg"),
        ("hospital", "dp_sgd+secagg"),
        (RECORDS, "dp_sgd"),
        ([fd.secagg(), RECORDS], "dp_sgd+secagg"),
        (fd.secagg(masks=False), "none"),
        (fd.dp_sgd(1.0, 0.0), "none"),
        ([fd.dp_sgd(1.0, 0.0), "secagg"], "secagg"),
    ],
)
def test_what_is_signed_has_what_protects_and_nothing_else(privacy: Any, signed: str) -> None:
    assert presets.stated(job(privacy=privacy).protections) == signed


@pytest.mark.parametrize(
    ("privacy", "numbers"),
    [
        ("none", ["none: no protection: the server can read each site's update"]),
        ("secagg", ["never one site's", "within 8 (the default of bound=…)"]),
        ("hospital", ["clip 1, epsilon 8 at delta 1e-05 for each site", "epsilon 8 at delta 1e-05", "within 8 (the"]),
        (RECORDS, ["dp_sgd: the server can read each site's update", "epsilon 8 at delta 1e-05"]),
        (fd.secagg(masks=False), ["none: no protection: the server can read each site's update", "within 8"]),
    ],
)
def test_a_privacy_is_said_in_full(privacy: Any, numbers: list[str]) -> None:
    lines = presets.said(privacy, job(privacy=privacy).method.traits)
    assert len(lines) == len(numbers) and all(n in line for n, line in zip(numbers, lines, strict=True))


def test_a_simulation_begins_with_it(tmp_path: Path) -> None:
    for word in ("none", "secagg"):
        said: list[str] = []
        launch.run(job(privacy=word, rounds=1), SITES, backend="local", folder=tmp_path / word, say=said.append)
        assert said == [f"privacy: {line}" for line in presets.said(word, ())]


def test_a_job_that_says_nothing_says_nothing_in_a_simulation(tmp_path: Path) -> None:
    said: list[str] = []
    launch.run(job(rounds=1), SITES, backend="local", folder=tmp_path / "run", say=said.append)
    assert said == []


def test_a_run_goes_on_under_the_privacy_that_its_command_line_gave_it(tmp_path: Path) -> None:
    (file := tmp_path / "job.py").write_text(NOTHING_SAID)
    chosen = jobfile.load(file, {"rounds": "1"}).job.given(privacy="secagg")
    sites = make_sites(tmp_path / "data", ["east", "north", "south"])
    source = {"file": str(file), "options": {"rounds": 1}, "rounds": None, "privacy": "secagg", "sites": None}
    launch.run(chosen, sites, backend="local", folder=tmp_path / "run", source=source)
    about, again, _ = as_started(tmp_path / "run")
    assert again.digest == about["job"] == chosen.digest and again.seal == fd.secagg()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()


@pytest.mark.processes
def test_a_submission_without_a_privacy_is_refused_with_the_three_words(rig: Rig, tmp_path: Path) -> None:
    (file := tmp_path / "job.py").write_text(NOTHING_SAID)
    with connected(rig) as there:
        for verb in (there.submit, there.check):
            with pytest.raises(JobError) as refused:
                verb(file)
            first, *three = str(refused.value).splitlines()
            assert "nothing says how private" in first and refused.value.code == 3
            assert [line.split()[:2] for line in three] == [
                ["--privacy", word] for word in ("none", "secagg", "hospital")
            ]
        with pytest.raises(JobError, match=r"Job\(privacy='secag'\): it is 'none', 'secagg', 'hospital'"):
            there.submit(file, privacy="secag")
        assert there.runs() == []


@pytest.mark.processes
def test_a_submission_signs_its_privacy_and_says_it_aloud(rig: Rig, tmp_path: Path) -> None:
    (file := tmp_path / "job.py").write_text(NOTHING_SAID)
    with connected(rig) as there:
        for privacy, signed in (("none", "none"), ("secagg", "secagg"), (None, "none")):
            said, known = list[str](), {line["run"] for line in there.runs()}
            there.check(JOB if privacy is None else file, privacy=privacy, say=said.append)
            (run,) = {line["run"] for line in there.runs()} - known
            (body,) = rig.rows(run, "submitted")
            assert (body["privacy"], body["override_privacy"]) == (signed, privacy)
            assert said[0] == f"privacy: {signed}: {presets.MEANS[signed]}"


def connected(rig: Rig) -> remote.Remote:
    """The owner's connection, by the port that the rig has now."""
    found = remote.connect(home=rig.home)
    found.link.close()
    found.link = rig.owner_link()
    return found


def foedus(home: Path, *words: object) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "foedus", *map(str, words), "--home", str(home)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.long
@pytest.mark.processes
def test_the_same_job_under_a_given_privacy_has_the_same_bits_for_real_and_simulated(tmp_path: Path) -> None:
    """Nothing in the job file, `secagg` on each command line; both ends say what it is, and `verify` replays it."""
    file = tmp_path / "job" / "job.py"
    file.parent.mkdir()
    file.write_text(NOTHING_SAID)
    with started(tmp_path, ["east", "north", "south"]) as (made, sites):
        code, _, err = foedus(made.home, "submit", file, "rounds=2")
        assert code == 3 and [line.split()[1] for line in err.splitlines()[-3:]] == ["none", "secagg", "hospital"]
        for word in ("secagg", "none"):
            code, out, err = foedus(made.home, "submit", file, "rounds=2", "--privacy", word, "--json")
            found = json.loads(out)
            assert code == 0 and f"privacy: {word}: {presets.MEANS[word]}" in err
            named = [word for site, path in sites.items() for word in ("--site", f"{site}={path}")]
            again = foedus(tmp_path / "sim", "run", file, "rounds=2", "--privacy", word, *named, "--json")
            assert json.loads(again[1])["digest"] == found["digest"] and f"privacy: {word}: " in again[2]
            checked = json.loads(foedus(made.home, "verify", found["run"], *named, "--json")[1])
            assert (checked["same"], checked["why"]) == (True, "")
            log = (made.site_home("north") / "sites" / "north" / "agent.log").read_text()
            assert f"run {found['run']}: privacy: {word}: {presets.MEANS[word]}" in log
        jobs = {runs.about(made.home / "runs" / line["run"])["job"] for line in runs.listed(made.home)}
        assert len(jobs) == 2


@pytest.mark.long
@pytest.mark.processes
def test_a_site_shows_the_privacy_of_a_run_and_refuses_one_that_is_not_its_jobs(tmp_path: Path) -> None:
    with started(tmp_path, ["north"], slow=0.2) as (made, _):
        run = made.remote().submit(JOB, {"rounds": "40"})
        until(lambda: kinds(run, "round"))
        shown = json.loads(made.site("north", "status", "--json"))["runs"]
        assert [(r["privacy"], r["says"]) for r in shown] == [("none", [f"none: {presets.MEANS['none']}"])]
        assert f"its privacy: none: {presets.MEANS['none']}" in made.site("north", "status")
        run.steer("stop")


@pytest.mark.long
@pytest.mark.processes
def test_hospital_is_dp_sgd_under_masks_at_real_sites(tmp_path: Path) -> None:
    """A Job that has other noise is given the preset: eight at most is spent, and the server has sums alone."""
    with started(tmp_path, ["east", "north", "south"]) as (made, _):
        run = made.remote().submit(PRIVATE, {"rounds": "2"}, privacy="hospital")
        result = finished(run)
        (signed,) = kinds(run, "submitted")
        log = (made.site_home("north") / "sites" / "north" / "agent.log").read_text()
    assert (signed["privacy"], signed["override_privacy"]) == ("dp_sgd+secagg", "hospital")
    assert 7 < result.metrics["train_epsilon"] <= 8 and result.per_site == {}
    assert {(r["weight"], r["metrics"]) for r in runs.journal(result.folder).all("accepted") if r["task"]} == {
        ("0x0.0p+0", "")
    }
    assert f"run {run.id}: privacy: hospital: {presets.MEANS['hospital']}" in log
