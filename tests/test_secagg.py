"""Secure aggregation in Jobs: integers worked out by hand, one digest on every backend, and what it refuses by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import foedus as fd
from foedus import (
    Job,
    Update,
    clip,
    fedadam,
    fedavg,
    fednova,
    fixed,
    launch,
    mean,
    scaffold,
    secagg,
    transformed,
)
from foedus.backends.local import Here
from foedus.backends.simulation import Simulation
from foedus.core import Algorithm, Task
from foedus.errors import Incompatible, JobError, Paused
from foedus.journal import Journal, Memory
from foedus.params import Params
from foedus.privacy.secagg import Secagg, announcing, seal
from foedus.run import Checkpoints, execute
from tiny import SITES, final, job, many, played, working

RING = 2**31 - 1


def by_hand(rows: Mapping[str, tuple[float, int]], bound: float, wmax: float) -> float:
    """The mean in fixed arithmetic of site -> (update, weight), in whole numbers and fractions."""
    step = bound / (RING // len(rows))
    sums = sum(round(x * (weight / wmax) / step) for x, weight in rows.values())
    return float(Fraction(sums) * Fraction(step) * Fraction(wmax) / sum(weight for _, weight in rows.values()))


def test_a_round_by_hand() -> None:
    # From 0, a full step of size 1/2 goes half the way to the means: north (1, 0 | 2) with 2 rows, south (4, 0 | -4)
    # with 1, west (0, 2 | 0) with 5; the largest count of rows is 5, so wmax = 8.
    ended, _ = played(job(rounds=1, privacy="secagg"), SITES)
    w0 = by_hand({"north": (1, 2), "south": (4, 1), "west": (0, 5)}, 8.0, 8.0)
    w1 = by_hand({"north": (0, 2), "south": (0, 1), "west": (2, 5)}, 8.0, 8.0)
    b = by_hand({"north": (2, 2), "south": (-4, 1), "west": (0, 5)}, 8.0, 8.0)
    assert final(ended) == {"w": [float(np.float32(w0)), float(np.float32(w1))], "b": float(np.float32(b))}
    assert final(ended)["w"] == pytest.approx([0.75, 1.25], abs=1e-7) and ended.params["b"] == pytest.approx(
        0, abs=1e-7
    )


@pytest.mark.parametrize(
    ("how", "row"),
    [
        ("secagg", [8.0, 8.0]),  # most rows are 5, rounded up to 8
        (secagg(bound=4.5, wmax=100), [4.5, 100.0]),
        (secagg(wmax=100), [8.0, 100.0]),
    ],
)
def test_the_ring_is_as_given_or_as_sites_announce(how: Any, row: list[float]) -> None:
    found = sealed_tasks(job(rounds=1, privacy=how))
    assert [list(task.seal[2:]) for task in found if task.work == "train"] == [row]


def sealed_tasks(made: Job, sites: Mapping[str, Any] = SITES) -> list[Task]:
    """The Tasks of the first round of a Job."""
    found: list[Task] = []

    class Watched(Simulation):
        def run(self, tasks: Any, context: Any, first: int) -> Any:
            found.extend(tasks)
            return super().run(tasks, context, first)

    kept = Journal(Memory())
    runner = Watched(Here(made.bench(0), sites), sorted(sites), kept, 0, made.least)
    execute(made.plan(0), runner, kept, Checkpoints(None))
    return found


def test_every_task_but_the_count_of_rows_is_sealed_and_needs_two_thirds() -> None:
    found = sealed_tasks(job(rounds=2, privacy="secagg"), many(8))
    assert [(task.work, task.seal and task.seal.threshold, task.least) for task in found] == [
        ("rows", None, None),
        *[("train", 6, 6), ("evaluate", 6, 6)] * 2,  # 2 * 8 // 3 + 1 = 6
    ]


def test_a_newcomer_tells_its_rows_before_its_first_round() -> None:
    steps = job(privacy="secagg").method
    state = {"inner": {"w": 0}, "wmax": 8.0, "known": ["a", "b", "c"]}
    context = fd.RoundContext(0, 4, ["a", "b", "c", "d"], ["a", "b", "d"])
    asked = next(steps.round(state, context))
    assert (asked.work, list(asked.sites), asked.least, asked.seal) == ("rows", ["d"], 0, None)


def test_a_site_says_its_rows_as_a_power_of_two() -> None:
    class Site:
        class split:
            train: Any = range(5)

    for rows, told in ((0, 1), (1, 1), (2, 2), (5, 8), (8, 8), (9, 16)):
        Site.split.train = range(rows)
        _, update = announcing(Params({}), None, Site())  # type: ignore[arg-type]
        assert isinstance(update, Update) and int(update.params["rows"]) == told


@pytest.mark.parametrize(
    ("algorithm", "compress", "bound"),
    [
        (fedavg(), None, 8.0),
        (fedavg(), clip(0.5), 0.5 * (1 + 2**-7)),
        (fedavg(), [clip(2.0), clip(3.0)], 2.0 * (1 + 2**-7)),
        (transformed(fedavg(), clip(4.0)), None, 4.0 * (1 + 2**-7)),
    ],
)
def test_the_bound_comes_from_the_clip(algorithm: Algorithm, compress: Any, bound: float) -> None:
    made = job(algorithm, rounds=1, privacy="secagg", compress=compress)
    assert {task.seal.bound for task in sealed_tasks(made) if task.work == "train"} == {bound}


def test_what_a_clip_rounds_up_has_room() -> None:
    ended, journal = played(job(rounds=1, privacy="secagg", compress=clip(0.1)), SITES)  # float32(0.1) is above 0.1
    assert len(journal.all("refused")) == 0
    close = [row for row in journal.all("close") if row["round"] == 0]
    assert all(status == "counted" for row in close for _, status, *_ in row["outcomes"])
    assert np.abs(ended.params["w"]).max() <= 0.1


def test_nobody_s_weight_and_nobody_s_metrics_are_known() -> None:
    plain, _ = played(job(rounds=1), SITES)
    ended, journal = played(job(rounds=1, privacy="secagg"), SITES)
    assert {row[3] for close in journal.all("close") if close["task"] for row in close["outcomes"]} == {0.0}
    (step,) = journal.all("step")
    assert step["per_site"] == {} and step["worst"] == {}
    assert step["metrics"].keys() == {name for name in plain.history[-1] if name not in ("round", "seconds")}
    assert ended.history[-1]["loss"] == pytest.approx(plain.history[-1]["loss"])


@pytest.mark.parametrize("made", [fedavg, fedadam, scaffold, fednova])
def test_it_comes_within_its_error_of_the_exact_mean(made: Any) -> None:
    plain, _ = played(job(made()), SITES)
    ended, _ = played(job(made(), privacy=secagg(bound=64.0)), SITES)
    for name, x in plain.params.items():
        assert np.allclose(ended.params[name], x, atol=1e-5)


@pytest.mark.processes
@pytest.mark.parametrize("made", [fedavg, scaffold])
def test_the_bits_are_those_of_the_backend_processes_and_of_masks_off(made: Any, tmp_path: Path) -> None:
    sealed = job(made(), privacy="secagg")
    digests = {
        launch.run(each, many(8), backend=backend, folder=tmp_path / f"{backend}{i}", workers=2).digest
        for i, each in enumerate([sealed, job(made(), privacy=secagg(masks=False))])
        for backend in ("local", "processes")
    }
    assert len(digests) == 1


def test_two_of_seven_lost_are_made_up_for_and_three_are_not() -> None:
    sites = many(7)  # 2 * 7 // 3 + 1 = 5

    def without(lost: set[str]) -> Job:
        def work(payload: Params, local: Any, site: Any, usual: Any) -> Any:
            declined = site.name in lost
            return local, fd.Decline("no") if declined else Update(payload.zeros(), 1.0)

        return job(working(work), rounds=1, privacy=secagg(wmax=8), evaluate=0)

    _, journal = played(without({"s00", "s03"}), sites)
    (close,) = journal.all("close")
    assert len(close["counted"]) == 5
    with pytest.raises(Paused, match="4 of the 5 updates needed arrived"):
        played(without({"s00", "s03", "s06"}), sites)


def test_an_update_beyond_its_bound_is_refused_and_never_clipped() -> None:
    sites = many(5)

    def work(payload: Params, local: Any, site: Any, usual: Any) -> Any:
        beyond = {"s00": (9.0, 1.0), "s01": (1.0, 17.0)}.get(site.name, (1.0, 1.0))
        return local, Update(payload.map(lambda x: np.full_like(x, beyond[0])), beyond[1])

    made = job(working(work), rounds=1, privacy=secagg(wmax=16), evaluate=0)
    with pytest.raises(Paused) as caught:  # 4 of 5 are needed, and three are left
        played(made, sites)
    assert "9 is above bound=8; clip, or raise the bound" in str(caught.value)
    assert "weight 17 is above wmax=16; raise wmax" in str(caught.value)


def test_fewer_than_three_sites_are_waited_for() -> None:
    with pytest.raises(Paused, match="2 of the 3 sites needed are there"):
        played(job(privacy="secagg"), {name: SITES[name] for name in ("north", "south")})


@pytest.mark.parametrize(
    ("made", "sites", "why"),
    [
        (job(privacy="secagg", cohort=0.2), 10, "task 'train' asks 2 sites, and a sealed one needs 3"),
        (job(privacy="secagg", quorum=5), 9, "would close at 5 of 9 updates, and a sealed one needs 7: raise quorum"),
        (job(privacy=secagg(threshold=4)), 9, "threshold 4 of 9 sites: take 7 or more"),
        (job(privacy=secagg(threshold=6)), 5, "task 'train' asks 5 sites, and a sealed one needs 6"),
    ],
)
def test_what_the_roster_shows_to_be_too_few_is_refused_with_a_remedy(made: Job, sites: int, why: str) -> None:
    with pytest.raises((JobError, Paused)) as caught:
        played(made, many(sites))
    assert why in str(caught.value) or "5 of the 6 sites needed" in str(caught.value)


@pytest.mark.parametrize(
    ("task", "why"),
    [
        ({"letters": {"a": Params({})}}, "it sends sites different models"),
        ({"aggregator": fd.median()}, "the aggregator of task 'train'"),
        ({"aggregator": mean(lambda age: 0.5)}, "the aggregator of task 'train'"),
        ({"payload": Params({"n": np.int64(3)})}, "the integer array 'n'"),
    ],
)
def test_a_task_that_no_sum_can_answer_is_refused(task: dict[str, Any], why: str) -> None:
    given = Task(**{"work": "train", "payload": Params({}), "sites": ["a", "b", "c"], **task})
    with pytest.raises(Incompatible, match=re.escape(why)):
        seal(given, Secagg(), fixed(8.0, 8.0))


def test_fixed_arithmetic_of_one_s_own_stays() -> None:
    ours = mean(arithmetic=fixed(16.0, 64.0))
    found = sealed_tasks(job(fedavg(aggregator=ours), rounds=1, privacy="secagg"))
    assert {task.seal[2:] for task in found if task.work == "train"} == {(16.0, 64.0)}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ({"bound": 0}, "secagg(bound=0): it must be positive and finite"),
        ({"wmax": float("inf")}, "secagg(wmax=inf): it must be positive and finite"),
        ({"threshold": 2}, "secagg(threshold=2): a whole number of sites, 3 or more"),
        ({"masks": 1}, "secagg(masks=1): it is True or False"),
    ],
)
def test_a_wrong_word_is_refused(words: dict[str, Any], why: str) -> None:
    with pytest.raises(JobError, match=re.escape(why)):
        secagg(**words)


def test_a_run_says_its_bound_aloud(tmp_path: Path) -> None:
    said: list[str] = []
    launch.run(job(privacy="secagg"), SITES, backend="local", folder=tmp_path / "run", say=said.append)
    assert said[0].startswith(
        "privacy: secagg: secure aggregation: the server sees sums of updates, weights and metrics"
    )
    assert said[1].startswith("privacy: secagg: an update's numbers lie within 8 (the default of bound=…)")


@pytest.mark.parametrize("compress", [fd.int8(), fd.qsgd(), [fd.clip(1.0), fd.int4()]])
def test_numbers_that_a_site_rounds_are_summed_under_a_seal(compress: Any) -> None:
    """To the ring's own rounding what a server makes of the same updates that it reads one by one."""
    whole, plain, sealed = (
        job(rounds=1, **more).run(sites=SITES).params
        for more in ({}, {"compress": compress}, {"compress": compress, "privacy": fd.secagg(wmax=64)})
    )
    for name, x in plain.items():
        np.testing.assert_allclose(sealed[name], x, atol=1e-5)
    assert any(np.abs(plain[name] - x).max() > 2e-5 for name, x in whole.items()), "nothing was rounded"
