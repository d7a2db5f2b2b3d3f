"""FedBuff and FedAsync against numbers worked out by hand, and replayed from their journals bit for bit.

One full-batch step of size 1/2 goes half the way to a site's mean m: from w, the difference is (m - w) / 2. The means
of the three sites are north (2, 0 | 4), south (8, 0 | -8), west (0, 4 | 0). A training takes them 1, 4 and 10 s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import foedus as fd
from foedus import launch, runs
from foedus.core import Algorithm
from foedus.errors import JobError, Paused
from foedus.job import Job
from foedus.params import Params
from foedus.result import Result
from tiny import SITES, job, learner, many, played, points

DEVICES = fd.clock(work=1.0, speed={"north": 1.0, "south": 1 / 4, "west": 0.1})


def halving(age: int) -> float:
    return 0.5**age


def ran(algorithm: Algorithm, rounds: int, sites: Any = SITES, clock: Any = DEVICES, **more: Any) -> Result:
    return job(algorithm, rounds=rounds, **more).run(sites, backend="local", clock=clock)


def model(result: Result) -> dict[str, Any]:
    return {name: x.tolist() for name, x in result.params.items()}


def counted(result: Result) -> list[list[str]]:
    """Of each round's training the sites that counted, each with the round in which it was asked."""
    rows = runs.journal(result.folder).all("close")
    return [[f"{site}{r}" for site, r, _ in row["counted"]] for row in rows if row["task"] == 0]


# FedBuff.


def test_fedbuff_by_hand(home: Path) -> None:
    """The buffer holds two. All set out at 0; who has arrived sets out again when the buffer is full.

    Round 0: from (0, 0 | 0) north sends (1, 0 | 2) and south (4, 0 | -4); half their sum is (5/2, 0 | -1).
    Round 1: from there north sends (-1/4, 0 | 5/2), south (11/4, 0 | -7/2): (15/4, 0 | -3/2).
    Round 2: north sends (-7/8, 0 | 11/4); west's (0, 2 | 0) is of round 0 and counts 1/4: (53/16, 1/4 | -1/8).
    Round 3: north sends (-21/32, -1/8 | 33/16); south's is of round 2, (17/8, 0 | -13/4), and counts 1/2.
    """
    made = fd.fedbuff(2, staleness=halving)
    assert model(ran(made, 1)) == {"w": [2.5, 0.0], "b": -1.0}
    assert model(ran(made, 2)) == {"w": [3.75, 0.0], "b": -1.5}
    assert model(ran(made, 3)) == {"w": [53 / 16, 0.25], "b": -0.125}
    last = ran(made, 4)
    assert model(last) == {
        "w": [53 / 16 + (-21 / 32 + 17 / 16) / 2, 0.25 - 1 / 16],
        "b": -1 / 8 + (33 / 16 - 13 / 8) / 2,
    }
    assert counted(last) == [["north0", "south0"], ["north1", "south1"], ["north2", "west0"], ["north3", "south2"]]
    assert [line["clock"] for line in last.history] == [4.0, 8.0, 10.0, 12.0]


def test_an_old_update_moves_the_model_less_and_does_not_make_others_heavier(home: Path) -> None:
    """The sum is divided by the buffer's size: where all that is in it is old, the step is short, whatever the others.

    With a buffer of one, in round 2 south's update of round 0, (4, 0 | -4), counts 1/4 alone. North's before it:
    0 -> 2 -> 3 in b.
    """
    devices = fd.clock(work=1.0, speed={"north": 1.0, "south": 0.4, "west": 0.1})
    last = ran(fd.fedbuff(1, staleness=halving), 3, clock=devices)
    assert counted(last) == [["north0"], ["north1"], ["south0"]]
    assert model(last) == {"w": [1.5 + 1.0, 0.0], "b": 3.0 - 1.0}


def test_without_staleness_weights_an_old_update_counts_as_much_as_a_new_one(home: Path) -> None:
    # Round 2: (15/4 - 7/16, 1 | -3/2 + 11/8)
    assert model(ran(fd.fedbuff(2, staleness=None), 3)) == {"w": [53 / 16, 1.0], "b": -0.125}
    assert model(ran(fd.fedbuff(2, staleness=fd.staleness.constant()), 3)) == {"w": [53 / 16, 1.0], "b": -0.125}


def test_sites_count_alike_whatever_their_number_of_examples(home: Path) -> None:
    """North has two examples and south one: by examples round 0 would be ((2 + 4) / 3, 0 | 0)."""
    assert [len(split.train) for split in SITES.values()] == [2, 1, 5]
    assert model(ran(fd.fedbuff(2), 1)) == {"w": [2.5, 0.0], "b": -1.0}


def test_the_rate_of_the_server_is_that_of_the_base(home: Path) -> None:
    assert model(ran(fd.fedbuff(2, fd.fedavg(rate=0.5)), 1)) == {"w": [1.25, 0.0], "b": -0.5}


def test_a_server_optimizer_sees_the_buffer_as_its_mean_difference(home: Path) -> None:
    """Momentum 1/2 in b: the first step is v = -1; then half the sum of 5/2 and -7/2 makes v = -1/2 - 1/2."""
    assert model(ran(fd.fedbuff(2, fd.fedavgm(beta=0.5)), 2))["b"] == -2.0


def test_fedprox_as_a_base_pulls_to_the_model_that_was_sent(home: Path) -> None:
    """mu = 1: the second local step stays where the first one went."""
    two = learner(epochs=2)
    assert model(ran(fd.fedbuff(2, fd.fedprox(1.0)), 2, learner=two)) == model(ran(fd.fedbuff(2), 2))


def test_buffers_are_the_means_of_those_of_the_sites_and_no_differences_from_old_ones(home: Path) -> None:
    """Each site says 8 in its buffer; were b's old difference added, the second round would have 16."""
    kinds = Params({"w": np.float32([0]), "mean": np.float32([0])}, {"mean": "buffer"})

    def fit(arrays: Mapping[str, Any], split: Any, ctx: Any) -> None:
        arrays["w"][:] += 1
        arrays["mean"][:] = 8

    own = learner(model=kinds, train=fit)
    sites = {"a": points([[0, 0, 0]]), "b": points([[0, 0, 0]])}
    devices = fd.clock(speed={"a": 1.0, "b": 1 / 1.5})
    for made in (fd.fedbuff(1, staleness=halving), fd.fedbuff(1, fd.fedadam(), staleness=halving)):
        found = job(made, rounds=2, learner=own, evaluate=0).run(sites, backend="local", clock=devices)
        assert counted(found) == [["a0"], ["b0"]] and model(found)["mean"] == [8.0]
    found = ran(fd.fedbuff(1, staleness=halving), 2, sites, devices, learner=own, evaluate=0)
    assert model(found)["w"] == [1.5]


def test_a_median_of_a_buffer(home: Path) -> None:
    """Of three updates, without weights: in round 0 the medians of (1, 4, 0), (0, 0, 2) and (2, -4, 0)."""
    made = fd.fedbuff(3, fd.fedavg(aggregator=fd.median()), staleness=None)
    assert model(ran(made, 1)) == {"w": [1.0, 0.0], "b": 0.0}


def test_fixed_arithmetic_weighs_by_age_too(home: Path) -> None:
    near = fd.fedavg(aggregator=fd.mean(arithmetic=fd.fixed(bound=8.0, wmax=1.0)))
    found = ran(fd.fedbuff(2, near, staleness=halving), 3)
    assert np.allclose(found.params["w"], [53 / 16, 0.25], atol=1e-6)


# FedAsync.

ALONE = fd.clock(work=1.0, speed={"north": 1.0, "south": 0.4, "west": 0.1})  # one arrives at a time


def test_fedasync_by_hand(home: Path) -> None:
    """alpha = 1/2, s(age) = 2^-age, in b. North arrives at 1 s and at 2 s, south at 2.5, north again at 3.

    Round 0: north's model is 2: 0/2 + 2/2 = 1. Round 1: north's is 1 + 3/2: 1/2 + 5/4 = 7/4.
    Round 2: south's is of round 0, -4, and a = 1/8: 7/8 7/4 - 1/2 = 33/32.
    Round 3: north's is of round 2, 7/4 + 9/8, and a = 1/4: 3/4 33/32 + 23/32.
    """
    made = fd.fedasync(0.5, staleness=halving, rho=0)
    found = [ran(made, rounds, clock=ALONE) for rounds in (1, 2, 3, 4)]
    assert [model(one)["b"] for one in found] == [1.0, 1.75, 33 / 32, 0.75 * 33 / 32 + 23 / 32]
    assert counted(found[-1]) == [["north0"], ["north1"], ["south0"], ["north2"]]


def test_alpha_may_be_a_schedule(home: Path) -> None:
    """1/2, then 1/4: 1, then 3/4 + 5/8."""
    made = fd.fedasync(lambda round: 0.5 / (1 + round), rho=0)
    assert model(ran(made, 2, clock=ALONE))["b"] == 1.375


def test_rho_pulls_back_to_the_model_that_was_sent(home: Path) -> None:
    """rho = 1: the second local step stays where the first one went."""
    two = ran(fd.fedasync(0.5, rho=1.0), 3, clock=ALONE, learner=learner(epochs=2))
    assert model(two) == model(ran(fd.fedasync(0.5, rho=0), 3, clock=ALONE))


@pytest.mark.parametrize(
    ("weigh", "expected"),
    [
        (fd.staleness.constant(), [1, 1, 1, 1]),
        (fd.staleness.polynomial(0.5), [1, 2**-0.5, 3**-0.5, 0.5]),
        (fd.staleness.polynomial(2), [1, 1 / 4, 1 / 9, 1 / 16]),
        (fd.staleness.hinge(10, 1), [1, 1, 1 / 11, 1 / 21]),
    ],
    ids=["constant", "root", "square", "hinge"],
)
def test_staleness_by_age(weigh: Callable[[int], float], expected: list[float]) -> None:
    assert [weigh(age) for age in range(4)] == pytest.approx(expected, rel=1e-15)


# Who begins, and with how many.


def begun(result: Result) -> list[int]:
    """How many sites each round asked."""
    return [row["asked"] for row in runs.journal(result.folder).all("task") if row["task"] == 0]


def test_every_site_has_its_turn_where_few_are_busy(home: Path) -> None:
    """In the roster's order the first sites would be asked again and again: three at work, few of 24 would count."""
    found = job(fd.fedbuff(1, busy=3), rounds=80, evaluate=0).run(many(24), backend="local")
    sites = [site[:3] for row in counted(found) for site in row]
    assert len(set(sites)) >= 20 and max(map(sites.count, set(sites))) <= 12


def test_the_newest_model_goes_out_when_one_comes_back() -> None:
    ended, journal = played(job(fd.fedasync(busy=2), rounds=6, evaluate=0), many(5))
    origins = [row["counted"][0] for row in journal.all("close")]
    assert len(ended.history) == 6 and len({tuple(origin) for origin in origins}) == 6
    assert max(row["round"] - row["counted"][0][1] for row in journal.all("close")) > 0


def test_too_few_sites_to_fill_the_buffer_are_not_asked() -> None:
    with pytest.raises(Paused, match="round 0: 3 of the 4 sites needed are there"):
        played(job(fd.fedbuff(4), rounds=1), SITES)


@pytest.mark.parametrize("wrong", [{"buffer": 0}, {"buffer": 2.5}, {"buffer": True}, {"busy": 0}])
def test_what_is_no_buffer_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(JobError, match="a whole number from 1"):
        fd.fedbuff(**wrong)


@pytest.mark.parametrize("wrong", [lambda: fd.staleness.polynomial(-1), lambda: fd.staleness.hinge(1, -1)])
def test_what_would_make_old_updates_heavier_is_refused(wrong: Callable[[], Any]) -> None:
    with pytest.raises(JobError, match="0 or more"):
        wrong()


def test_a_base_that_asks_several_tasks_is_named() -> None:
    usual = fd.fedavg()

    def twice(state: Any, context: Any) -> Any:
        total = yield fd.Task("train", state, context.cohort)
        total = yield fd.Task("train", state + total.params, context.cohort)
        return state + total.params

    with pytest.raises(JobError, match="its base asks several Tasks a round"):
        played(job(fd.fedbuff(2, usual._replace(round=twice)), rounds=1), SITES)
    with pytest.raises(JobError, match="wrap fedbuff, and not its base"):
        played(job(fd.fedbuff(2, fd.transformed(usual, fd.int8())), rounds=1), SITES)


# Replays, backends and resumed runs.

KINDS: dict[str, Callable[[], Job]] = {
    "fedbuff": lambda: job(fd.fedbuff(3, busy=5), rounds=8, best="loss"),
    "fedbuff of a server optimizer": lambda: job(fd.fedbuff(2, fd.fedadam(rate=0.1)), rounds=6),
    "fedbuff, compressed": lambda: job(fd.fedbuff(2, busy=4), rounds=6, compress=[fd.top_k(0.34), fd.int8(2)]),
    "fedbuff of cohorts": lambda: job(fd.fedbuff(2, busy=4), rounds=6, cohort=6),
    "fedbuff among liars": lambda: job(
        fd.attacked(fd.fedbuff(3, fd.fedavg(aggregator=fd.median()), staleness=None), {"s03": fd.sign_flip()}), rounds=6
    ),
    "fedasync": lambda: job(fd.fedasync(busy=4), rounds=12, learner=learner(lr=0.3, epochs=2)),
}
BUSY = fd.clock(work=fd.clock.lognormal(10.0, 1.0), bandwidth=1e3, dropout=0.1, available=0.9)
PATIENT = fd.Deadline(stall=50.0)


@pytest.mark.parametrize("clock", [None, BUSY], ids=["no clock", "clock"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_replay_from_the_journal_has_the_same_bits(kind: str, clock: Any, home: Path) -> None:
    made = KINDS[kind]().replace(deadline=PATIENT)
    first = made.run(many(9), backend="local", seed=4, clock=clock)
    ages = [row["round"] - r for row in runs.journal(first.folder).all("close") for _, r, _ in row["counted"]]
    assert max(ages) > 0
    assert made.run(many(9), backend="local", seed=4, replay=first).digest == first.digest
    assert launch.verify(first.folder, made, many(9))["same"]


@pytest.mark.processes
def test_processes_have_the_same_bits_with_and_without_a_clock(home: Path) -> None:
    made = KINDS["fedbuff, compressed"]().replace(deadline=PATIENT)
    for clock in (None, BUSY):
        one = made.run(many(9), backend="local", seed=4, clock=clock)
        others = [
            made.run(many(9), backend="processes", workers=2, seed=4, clock=clock),
            made.run(many(9), backend="processes", workers=2, seed=4, replay=one),
        ]
        assert [other.digest for other in others] == [one.digest] * 2


@pytest.mark.parametrize("kind", ["fedbuff, compressed", "fedasync"])
def test_a_run_that_was_cut_goes_on_with_what_is_on_its_way(kind: str, home: Path) -> None:
    made = KINDS[kind]()
    calm = made.run(many(9), backend="local", seed=4)

    def stop(line: Any) -> None:
        if line["round"] == 3:
            raise KeyboardInterrupt

    folder = home / "runs" / "cut"
    with pytest.raises(KeyboardInterrupt):
        launch.run(made, many(9), seed=4, backend="local", folder=folder, told=stop)
    assert launch.run(made, many(9), seed=4, backend="local", folder=folder).digest == calm.digest
