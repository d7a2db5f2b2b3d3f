"""The round loop on `local`: who is asked, what is counted, when it stops, and that a crash changes no bit."""

from __future__ import annotations

import json
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foedus import (
    Decline,
    Split,
    Update,
    alie,
    attacked,
    fedavg,
    fedper,
    fedprox,
    int4,
    int8,
    launch,
    mean,
    plateau,
    target,
    top_k,
    trimmed_mean,
)
from foedus.backends import simulation
from foedus.core import Algorithm, Outcome, Task, Total
from foedus.errors import FoedusError, JobError, Paused
from foedus.job import Job
from foedus.journal import Journal, Memory
from foedus.measured import measured
from foedus.params import Params, digest
from foedus.run import draw, times
from foedus.stop import wall_time
from tiny import SITES, job, learner, many, played, points, working

GOOD = {name: split for name, split in SITES.items() if name != "south"}


def closes(journal: Journal) -> list[Mapping[str, Any]]:
    """The close rows of training."""
    return [row for row in journal.all("close") if row["task"] == 0]


def counted(journal: Journal) -> list[list[str]]:
    return [[site for site, _, _ in row["counted"]] for row in closes(journal)]


# Cohorts.


def sizes(roster: int, **more: Any) -> set[int]:
    names = [f"s{i:03}" for i in range(roster)]
    plan = job(**{"quorum": 1, **more}).plan(0)
    return {len(draw(plan, round, names)) for round in range(5)}


@pytest.mark.parametrize(
    ("roster", "more", "size"),
    [
        (10, {}, 10),
        (10, {"cohort": 4}, 4),
        (3, {"cohort": 4}, 3),
        (10, {"cohort": 0.25}, 3),  # rounded up
        (100, {"cohort": 0.07}, 7),  # the float 0.07 times 100 is a little more than 7
        (10, {"cohort": 0.001}, 1),
        (10, {"cohort": 1}, 1),
        (10, {"cohort": 1.0}, 10),
        (20, {"cohort": 10, "over_select": 1.1}, 11),
        (20, {"cohort": 10, "over_select": 1.3}, 13),
        (12, {"cohort": 10, "over_select": 1.3}, 12),
    ],
)
def test_a_cohort_has_its_size(roster: int, more: dict[str, Any], size: int) -> None:
    assert sizes(roster, **more) == {size}


def test_shares_are_the_decimals_that_were_written() -> None:
    assert [times(0.1, 30), times(0.3, 10), times(1.1, 10), times(2.0, 3)] == [3, 3, 11, 6]


def test_cohorts_are_drawn_by_key_and_fairly() -> None:
    names = [f"s{i}" for i in range(10)]
    plan = job(cohort=3).plan(0)
    drawn = [draw(plan, round, names) for round in range(1000)]
    assert drawn == [draw(plan, round, names) for round in range(1000)]
    assert drawn != [draw(job(cohort=3).plan(1), round, names) for round in range(1000)]
    assert all(found == sorted(set(found)) for found in drawn)
    often = Counter(name for found in drawn for name in found)
    assert all(abs(often[name] - 300) < 66 for name in names)  # 4.6 standard deviations of a binomial


def test_only_the_cohort_trains_and_the_whole_roster_evaluates() -> None:
    _, journal = played(job(cohort=2, rounds=6), SITES)
    assert all(len(sites) == 2 for sites in counted(journal))
    assert len({tuple(sites) for sites in counted(journal)}) > 1
    evaluations = [row for row in journal.all("close") if row["task"] == 1]
    assert len(evaluations) == 6 and all(len(row["counted"]) == 3 for row in evaluations)


def test_the_order_in_which_sites_are_named_changes_nothing() -> None:
    sites = many(7)
    one, other = (played(job(cohort=4), dict(order))[0] for order in (sites.items(), reversed(list(sites.items()))))
    assert digest(one.params) == digest(other.params)


# Quorum and over-selection.


def test_over_selection_asks_more_and_counts_the_first_to_arrive() -> None:
    ended, journal = played(job(cohort=10, over_select=1.3, quorum=10, rounds=3), many(20))
    for row in closes(journal):
        status = Counter(outcome[1] for outcome in row["outcomes"])
        assert status == {"counted": 10, "dropped": 3} and len(row["counted"]) == 10
    again, _ = played(job(cohort=10, over_select=1.3, quorum=10, rounds=3), many(20))
    assert digest(again.params) == digest(ended.params)


def test_over_selection_makes_good_for_sites_that_fail() -> None:
    def failing(payload: Params, local: Any, site: Any, usual: Any) -> Any:
        return (local, Decline("busy")) if site.name in ("s03", "s07") else usual()

    _, journal = played(job(working(failing), cohort=10, over_select=1.4, quorum=10, rounds=3), many(14))
    assert all(len(sites) == 10 and not {"s03", "s07"} & set(sites) for sites in counted(journal))


def test_a_quorum_that_cannot_be_reached_pauses_after_a_second_attempt() -> None:
    calls: Counter[str] = Counter()

    def failing(payload: Params, local: Any, site: Any, usual: Any) -> Any:
        calls[site.name] += 1
        return (local, Decline("no power")) if site.name != "north" else usual()

    with pytest.raises(Paused, match=r"1 of the 2 updates needed.*south: declined \(no power\)") as caught:
        played(job(working(failing), quorum=2), SITES)
    assert calls == {"north": 1, "south": 2, "west": 2} and "north:" not in str(caught.value)


def test_sums_of_other_shapes_spoil_that_metric_alone_and_are_told() -> None:
    def work(payload: Params, local: Any, site: Any, usual: Any) -> Any:
        update = usual()[1]
        size = 3 if site.name == "south" else 2
        return local, update._replace(metrics={**update.metrics, "own": np.ones(size)})

    ended, journal = played(job(working(work)._replace(traits=("tells own",)), rounds=1), SITES)
    usual = played(job(rounds=1), SITES)[0]
    assert digest(ended.params) == digest(usual.params)
    assert ended.history[0]["train_loss"] == usual.history[0]["train_loss"]
    (event,) = journal.events
    assert event["what"] == "metrics not read" and event["why"].startswith("'own' has other shapes at other sites")


def test_a_quorum_of_more_sites_than_there_are_is_waited_for_and_never_lowered() -> None:
    journal = Journal(Memory())
    with pytest.raises(Paused, match=r"round 0: 3 of the 4 sites needed are there \(north, south, west\)"):
        played(job(quorum=4), SITES, journal=journal)
    assert journal.all("round") == []


def test_a_site_that_fails_once_is_counted_at_the_second_attempt() -> None:
    calls: Counter[str] = Counter()

    def shaky(payload: Params, local: Any, site: Any, usual: Any) -> Any:
        calls[site.name] += 1
        if site.name == "south" and calls["south"] == 1:
            raise OSError("disk asleep")
        return usual()

    ended, journal = played(job(working(shaky), min_sites=3, rounds=1), SITES)
    assert counted(journal) == [["north", "south", "west"]] and calls == {"north": 1, "south": 2, "west": 1}
    assert digest(ended.params) == digest(played(job(rounds=1), SITES)[0].params)


def test_too_few_sites_pause_the_run_and_it_goes_on_when_they_are_there() -> None:
    log = Memory()
    made = job(min_sites=3)
    with pytest.raises(Paused, match=r"round 0: 2 of the 3 sites needed are there \(north, west\); let more join"):
        played(made, GOOD, journal=Journal(log))
    assert Journal(log).all("round") == []
    ended, _ = played(made, SITES, journal=Journal(log))
    assert digest(ended.params) == digest(played(made, SITES)[0].params)


def test_min_sites_is_no_more_than_the_cohort_can_give() -> None:
    played(job(cohort=2, min_sites=3), SITES)  # the roster has three


# Sites that fail.


def raises(*_: Any) -> Any:
    raise ValueError("scanner\nwith a second line")


def leaves(*_: Any) -> Any:
    sys.exit(0)


def sends(make: Callable[[Update], Any]) -> Callable[..., Any]:
    return lambda payload, local, site, usual: (local, make(usual()[1]))


NONSENSE: dict[str, tuple[Callable[..., Any], str, str]] = {
    "raises": (raises, "declined", r"train: ValueError: scanner \(test_run.py, line \d+, in raises\)"),
    "leaves": (leaves, "declined", r"train: SystemExit: 0 \(test_run.py, line \d+, in leaves\)"),
    "declines": (sends(lambda u: Decline("not on Sundays")), "declined", "not on Sundays"),
    "nothing": (lambda *_: None, "declined", "train: TypeError"),
    "no update": (sends(lambda u: "done"), "refused", "it returned str; return fd.Update or fd.Decline"),
    "NaN": (sends(lambda u: u._replace(params=math.nan * u.params)), "refused", "array '[wb]' holds NaN"),
    "infinity": (sends(lambda u: u._replace(params=u.params.map(lambda x: x + np.inf))), "refused", "holds NaN or Inf"),
    "another shape": (
        sends(lambda u: Update(Params({"w": np.zeros(3, np.float32), "b": np.float32(0)}))),
        "refused",
        r"array 'w' is trainable float32\[3\], the Task announced trainable float32\[2\]",
    ),
    "another dtype": (
        sends(lambda u: Update({k: np.float64(x) for k, x in u.params.items()})),  # type: ignore[arg-type]
        "refused",
        "float64",
    ),
    "a list": (sends(lambda u: u._replace(params=[1])), "refused", "its params are list"),
    "a weight of nothing": (sends(lambda u: u._replace(weight=0)), "refused", "weight 0 cannot be used"),
    "a weight in words": (sends(lambda u: u._replace(weight="many")), "refused", "weight 'many' cannot be used"),
    "metrics in words": (sends(lambda u: u._replace(metrics={"loss": "low"})), "refused", "metric 'loss' is no sum"),
    "a metric that is no sum": (sends(lambda u: u._replace(metrics={"rmse": 0.5})), "refused", "none of this Job's"),
    "no metrics": (sends(lambda u: u._replace(metrics=None)), "refused", "metric 'NoneType' is no sum"),
}


@pytest.mark.parametrize("late", ["drop", "keep"])
@pytest.mark.parametrize("what", NONSENSE)
def test_a_site_that_fails_is_named_and_the_run_goes_on_without_it(what: str, late: Any) -> None:
    bad, status, why = NONSENSE[what]

    def work(payload: Params, local: Any, site: Any, usual: Any) -> Any:
        return bad(payload, local, site, usual) if site.name == "south" else usual()

    more: dict[str, Any] = {"learner": learner(metrics=["rmse"]), "late": late}
    if late == "keep":
        more["quorum"] = 2
    ended, journal = played(job(working(work), rounds=3, **more), SITES)
    outcomes = [Outcome(*found) for row in closes(journal) for found in row["outcomes"] if found[0] == "south"]
    assert outcomes and {o.status for o in outcomes} == {status}
    assert all(re.search(why, o.why) for o in outcomes)
    assert all("south" not in sites for sites in counted(journal))
    if late == "drop":
        assert digest(ended.params) == digest(played(job(rounds=3, **more), GOOD)[0].params)


def test_a_site_whose_data_cannot_be_loaded_is_named_and_the_run_goes_on() -> None:
    def load(site: Any) -> Split:
        if site.name == "south":
            open("/nowhere/rows.csv").close()
        found: Split = site.data
        return found

    ended, journal = played(job(data=load), SITES)
    outcome = next(found for found in closes(journal)[0]["outcomes"] if found[0] == "south")
    assert outcome[1] == "declined" and outcome[2].startswith("loading its data: FileNotFoundError: [Errno 2]")
    assert outcome[2].endswith("in load)")
    assert digest(ended.params) == digest(played(job(), GOOD)[0].params)


def test_what_load_returns_is_a_split() -> None:
    with pytest.raises(Paused, match=r"loading its data: TypeError: load\(site\) returned int: return fd.Split"):
        played(job(data=lambda site: 3), SITES)


def test_an_error_inside_a_library_is_placed_in_the_users_own_line() -> None:
    def work(payload: Params, local: Any, site: Any, usual: Any) -> Any:
        json.loads("{")

    with pytest.raises(Paused, match=r"JSONDecodeError: .* \(test_run.py, line \d+, in work\)"):
        played(job(working(work)), SITES)


def test_where_every_site_fails_the_cause_is_chained() -> None:
    with pytest.raises(Paused) as caught:
        played(job(working(raises)), SITES)
    assert isinstance(caught.value.__cause__.__cause__, ValueError)  # type: ignore[union-attr]


def test_a_site_that_fails_at_evaluation_is_left_out_of_it() -> None:
    class Shaky(type(learner())):  # type: ignore[misc]
        def evaluate(self, params: Params, data: Any, metrics: Any) -> Any:
            if data is SITES["south"].valid:
                raise ValueError("no")
            return super().evaluate(params, data, metrics)

    shaky = learner()
    shaky.__class__ = Shaky
    ended, journal = played(job(learner=shaky), SITES)
    assert digest(ended.params) == digest(played(job(), SITES)[0].params)
    evaluation = next(row for row in journal.all("close") if row["task"] == 1)
    assert [o[:2] for o in evaluation["outcomes"]] == [["north", "counted"], ["south", "declined"], ["west", "counted"]]


def test_a_site_that_nobody_knows_is_no_site() -> None:
    def round(state: Any, context: Any) -> Any:
        yield Task("train", state, ["north", "nobody"])

    made = fedavg()._replace(round=round)
    with pytest.raises(JobError, match="task 'train' of round 0 asks site 'nobody', which is not here"):
        played(job(made), SITES)


def test_a_weight_of_numpy_is_a_weight() -> None:
    work = sends(lambda u: u._replace(weight=np.int64(u.weight)))
    ended, _ = played(job(working(work)), SITES)
    assert digest(ended.params) == digest(played(job(), SITES)[0].params)


# Metrics, history, evaluation.


def test_metrics_are_pooled_from_sums_beside_those_of_each_site() -> None:
    ended, journal = played(job(rounds=1, learner=learner(metrics=["rmse"])), SITES)
    # The model is (0.75, 1.25 | 0). Squared distances to the sites' rows: north 1.25^2 + 1.25^2 + 4^2, and so on.
    north, south, west = 19.125, 7.25**2 + 1.25**2 + 64, 0.75**2 + 2.75**2
    line = ended.history[0]
    assert line["loss"] == pytest.approx((2 * north + south + 5 * west) / 2 / 8)
    assert line["rmse"] == pytest.approx(math.sqrt((2 * 16 + 64 + 0) / 8))
    per_site = journal.all("step")[0]["per_site"]
    assert per_site["west"]["loss"] == pytest.approx(west / 2) and per_site["south"]["rmse"] == 8
    start = [(4 + 16) / 2, (64 + 64) / 2, 16 / 2]  # the training loss is taken before each step
    assert line["train_loss"] == pytest.approx((2 * start[0] + start[1] + 5 * start[2]) / 8)
    assert per_site["north"]["train_loss"] == pytest.approx(10)


def test_what_a_loop_of_ones_own_reports_is_averaged_over_examples() -> None:
    def fit(arrays: Any, split: Any, ctx: Any) -> dict[str, float]:
        return {"rmse": float(len(split.train)), "auc": 0.5, "anything": -1.0}

    own = learner(train=fit, metrics=["rmse", "auc"])
    line = played(job(rounds=1, learner=own, evaluate=0), SITES)[0].history[0]
    assert (line["train_rmse"], line["train_auc"], line["train_anything"]) == ((4 + 1 + 25) / 8, 0.5, -1.0)


def test_the_history_has_a_line_for_each_round() -> None:
    told: list[Any] = []
    ended, _ = played(job(rounds=3), SITES, told=told.append)
    assert [line["round"] for line in ended.history] == [0, 1, 2] and told == list(ended.history)
    assert all(line["seconds"] > 0 and line["loss"] > 0 for line in ended.history)
    assert ended.reason == "all rounds done"


@pytest.mark.parametrize(
    ("every", "rounds", "measured"), [(1, 3, [0, 1, 2]), (2, 5, [1, 3, 4]), (9, 3, [2]), (0, 3, [])]
)
def test_evaluation_happens_every_so_often_and_at_the_end(every: int, rounds: int, measured: list[int]) -> None:
    ended, _ = played(job(rounds=rounds, evaluate=every), SITES)
    assert [line["round"] for line in ended.history if "loss" in line] == measured
    assert digest(ended.params) == digest(played(job(rounds=rounds), SITES)[0].params)


def test_the_test_part_is_measured_under_its_own_name() -> None:
    sites = {"a": points([[0, 0, 4]], test=[[0, 0, 1]]), "b": points([[0, 0, 0]])}
    ended, _ = played(job(rounds=1, learner=learner(metrics=["rmse"])), sites)  # b goes to 1
    assert ended.history[0]["test_rmse"] == 0 and ended.history[0]["rmse"] == pytest.approx(math.sqrt(5))


@pytest.mark.parametrize("more", [{}, {"stop": plateau("loss", 1, min_delta=0.5)}, {"best": "loss", "evaluate": 2}])
def test_changing_the_test_data_changes_no_parameter(more: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    found = set()
    for test in ([], [[1, 2, 3]], rng.normal(size=(9, 3)).tolist()):
        sites = {name: points(np.c_[s.train.x, s.train.y], test) for name, s in SITES.items()}
        ended, _ = played(job(rounds=6, **more), sites)
        best = digest(ended.best) if ended.best is not None else None
        found.add((digest(ended.params), best, ended.best_round, len(ended.history)))
    assert len(found) == 1


def test_sites_without_validation_set_a_tenth_aside_by_key() -> None:
    rows = {name: (np.random.default_rng(i).normal(size=(40, 2)), np.zeros(40)) for i, name in enumerate("ab")}
    one, journal = played(job(rounds=1), rows)
    weights = [outcome[3] for outcome in closes(journal)[0]["outcomes"]]
    assert weights == [36.0, 36.0] and one.history[0]["loss"] > 0
    assert digest(one.params) == digest(played(job(rounds=1), rows)[0].params)
    assert digest(one.params) != digest(played(job(rounds=1), rows, seed=1)[0].params)


# Stopping, and the best model.


def test_a_plateau_ends_the_run() -> None:
    # Half of the way each round: w - (1.5, 2.5) is halved, so that the loss falls by three quarters of what is left.
    ended, _ = played(job(rounds=None, stop=plateau("loss", patience=2, min_delta=0.01)), SITES)
    over = [line["loss"] for line in ended.history]
    gains = [a - b for a, b in pairwise(over)]
    assert ended.reason.startswith("loss: 2 evaluations in a row were not better than")
    assert max(gains[-2:]) <= 0.01 < min(gains[:-2])


def test_a_target_ends_the_run() -> None:
    ended, _ = played(job(rounds=50, stop=target("rmse", 3.5), learner=learner(metrics=["rmse"])), SITES)
    assert ended.reason.startswith("rmse reached 3.46") and ended.history[-1]["rmse"] <= 3.5


def test_rounds_end_a_run_that_no_rule_stops() -> None:
    ended, _ = played(job(rounds=3, stop=target("loss", -1.0)), SITES)
    assert len(ended.history) == 3 and ended.reason == "all rounds done"


def test_a_run_that_stops_between_evaluations_is_evaluated_once_more() -> None:
    def slow(payload: Params, local: Any, site: Any, usual: Any) -> Any:
        return usual()

    ended, journal = played(job(working(slow), rounds=None, stop=wall_time(1e-9), evaluate=5, best="loss"), SITES)
    assert len(ended.history) == 1 and ended.history[0]["loss"] > 0
    assert ended.best_round == 0 and digest(ended.best or {}) == digest(ended.params)
    assert journal.all("step")[-1]["per_site"].keys() == set(SITES)


def wave(payload: Params, local: Any, site: Any, usual: Any) -> Any:
    """b goes 3, 1, 1, 2 …, so that rmse on b = 0 does."""
    goes = [3.0, 1.0, 1.0, 2.0][site.key.names[1]]
    return local, Update(Params({"w": np.zeros(2, np.float32), "b": np.float32(goes) - payload["b"]}))


def test_the_best_model_is_that_of_the_first_best_round() -> None:
    at_zero = {"a": points([[0, 0, 0]])}
    made = job(working(wave), rounds=4, best="rmse", learner=learner(metrics=["rmse"]))
    ended, _ = played(made, at_zero)
    assert ended.best_round == 1 and (ended.best or {})["b"] == 1 and ended.params["b"] == 2


# Buffered asynchronous training.


def asynchronous(quorum: int, busy: int | None, rounds: int = 12, **more: Any) -> Job:
    algorithm = fedavg(busy=busy, aggregator=mean(discount=lambda age: 1 / math.sqrt(1 + age)))
    return job(more.pop("algorithm", algorithm), rounds=rounds, quorum=quorum, late="keep", **more)


def sent(algorithm: Algorithm, log: list[tuple[str, int]]) -> Algorithm:
    def work(payload: Params, local: Any, site: Any, usual: Any) -> Any:
        log.append((site.name, site.key.names[1]))
        return usual()

    return working(work, algorithm)


@pytest.mark.parametrize(("quorum", "busy"), [(1, 4), (3, 5), (4, None), (2, 2)])
def test_updates_count_as_they_arrive_and_late_ones_are_kept(quorum: int, busy: int | None) -> None:
    log: list[tuple[str, int]] = []
    made = asynchronous(quorum, busy, algorithm=sent(fedavg(busy=busy), log), evaluate=0)
    _, journal = played(made, many(8))
    rows = [row["counted"] for row in journal.all("close")]
    assert all(len(row) == quorum for row in rows)
    origins = [tuple(origin) for row in rows for origin in row]
    assert len(set(origins)) == len(origins) and {(site, r) for site, r, _ in origins} <= set(log)
    ages = [round - r for round, row in enumerate(rows) for _, r, _ in row]
    assert min(ages) == 0
    assert max(ages) > 0 or quorum == busy
    for round in range(12):  # never more than `busy` at work, never a site twice at once
        flying = Counter(site for site, r in log if r <= round)
        flying.subtract(site for row in rows[: round + 1] for site, _, _ in row)
        assert set(flying.values()) <= {0, 1} and sum(flying.values()) <= (busy or 8)


def test_at_each_arrival_the_newest_payload_goes_out() -> None:
    log: list[tuple[str, int]] = []
    played(asynchronous(1, 3, algorithm=sent(fedavg(busy=3), log), evaluate=0), many(8))
    assert Counter(round for _, round in log) == {0: 3, **{round: 1 for round in range(1, 12)}}


def test_an_update_weighs_less_with_its_age() -> None:
    seen: list[int] = []

    def discount(age: int) -> float:
        seen.append(age)
        return 1.0 if age == 0 else 0.5

    plain = played(asynchronous(1, 3, algorithm=fedavg(busy=3)), many(5))[1]
    journal = played(asynchronous(1, 3, algorithm=fedavg(busy=3, aggregator=mean(discount=discount))), many(5))[1]
    ages = [row["round"] - row["counted"][0][1] for row in closes(journal)]
    assert seen == ages and max(ages) > 0
    assert [row["counted"] for row in closes(plain)] == [row["counted"] for row in closes(journal)]


def test_a_late_update_that_is_refused_is_told_in_the_round_of_its_arrival() -> None:
    def work(payload: Params, local: Any, site: Any, usual: Any) -> Any:
        update = usual()[1]
        return local, update._replace(params=math.nan * update.params) if site.name == "s02" else update

    _, journal = played(asynchronous(1, 4, algorithm=working(work, fedavg(busy=4)), evaluate=0), many(5))
    told = [(row["round"], o[1]) for row in closes(journal) for o in row["outcomes"] if o[0] == "s02"]
    assert "refused" in {status for _, status in told}
    assert not any("s02" in sites for sites in counted(journal))


def test_asynchronous_training_pauses_where_nobody_delivers() -> None:
    with pytest.raises(Paused, match=r"0 of the 2 updates needed arrived; north: declined"):
        played(asynchronous(2, 3, algorithm=working(raises, fedavg(busy=3))), SITES)


# A crash changes no bit. Every passage of every named point of the write-ahead order, in this process.


class Crash(BaseException):
    pass


def counting(payload: Params, local: Any, site: Any, usual: Any) -> Any:
    """A stateful work: each site's step depends on how often it was counted before."""
    times = (local or {"times": 0, "last": np.zeros(2)})["times"] + 1
    update = usual()[1]
    return {"times": times, "last": update.params["w"]}, update._replace(params=(1 / times) * update.params)


JOBS: dict[str, Callable[[], Job]] = {
    "all": lambda: job(fedprox(0.1), rounds=3, best="loss", learner=learner(lr=0.3, epochs=2)),
    "cohorts": lambda: job(working(counting), rounds=4, cohort=4, evaluate=2),
    "over-selected": lambda: job(working(counting), rounds=4, cohort=4, over_select=1.5, quorum=4),
    "asynchronous": lambda: asynchronous(2, 4, rounds=4, algorithm=working(counting, fedavg(busy=4))),
    "compressed": lambda: asynchronous(2, 4, rounds=3, compress=[top_k(0.34), int8(2)], evaluate=0),
    "among liars": lambda: job(
        attacked(fedavg(aggregator=trimmed_mean(1)), share=0.5, attack=alie(1.0)), rounds=2, cohort=5, compress=int4()
    ),
    "own models": lambda: job(fedper(personal="b"), rounds=3, cohort=4, evaluate=2),
    "stopped": lambda: job(rounds=None, stop=plateau("loss", 1, min_delta=3.0), evaluate=2, best="loss"),
}


def crash_at(patch: pytest.MonkeyPatch, passage: int | None) -> list[str]:
    """Raises Crash at this passage of any point; the list holds the names of those that were passed."""
    passed: list[str] = []

    def point(name: str) -> None:
        passed.append(name)
        if len(passed) == passage:
            raise Crash(name)

    patch.setattr(simulation, "point", point)
    patch.setattr("foedus.run.point", point)
    return passed


def bits(ended: Any, journal: Journal) -> tuple[Any, ...]:
    history = [{k: v for k, v in line.items() if k != "seconds"} for line in ended.history]
    decided = [(r["round"], r["task"], r["counted"], r["outcomes"]) for r in journal.all("close")]
    best = None if ended.best is None else digest(ended.best)
    return digest(ended.params), best, ended.best_round, history, ended.reason, decided


@pytest.mark.parametrize("kind", JOBS)
def test_a_crash_at_any_named_point_changes_no_bit(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda file: None)  # nothing here cuts the power
    passed = crash_at(monkeypatch, None)
    calm = bits(*played(JOBS[kind](), many(7), folder=tmp_path))
    assert {"run.after-round", "local.after-task", "local.before-close", "local.after-close"} <= set(passed)
    assert {"run.before-state", "run.after-state", "run.after-step"} <= set(passed)
    for passage in range(1, len(passed) + 1):
        log, folder = Memory(), tmp_path / str(passage)
        folder.mkdir()
        with monkeypatch.context() as patch:
            crash_at(patch, passage)
            with pytest.raises(Crash):
                played(JOBS[kind](), many(7), journal=Journal(log), folder=folder)
        again = Journal(log)
        assert bits(*played(JOBS[kind](), many(7), journal=again, folder=folder)) == calm, passed[passage - 1]
        rows = [(kind, row.get("round"), row.get("task")) for kind, row in log.rows()]
        assert len(set(rows)) == len(rows)  # nothing was decided twice


def test_a_crash_after_each_of_many_points_changes_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calm = bits(*played(JOBS["over-selected"](), many(7)))
    log, crashes = Memory(), 0
    while True:
        with monkeypatch.context() as patch:
            crash_at(patch, 13)  # a round has ten: one is finished in each attempt
            try:
                found = bits(*played(JOBS["over-selected"](), many(7), journal=Journal(log), folder=tmp_path))
                break
            except Crash:
                crashes += 1
    assert found == calm and crashes > 2


def test_what_was_decided_before_a_crash_stays_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = True

    def work(payload: Params, local: Any, site: Any, usual: Any) -> Any:
        if broken and site.name == "south":
            raise OSError("asleep")
        return usual()

    log = Memory()
    with monkeypatch.context() as patch:
        patch.setattr(simulation, "point", lambda name: name == "local.after-close" and crash_now())
        with pytest.raises(Crash):
            played(job(working(work), rounds=1), SITES, journal=Journal(log))
    broken = False  # south is well again, but its update of this round was not counted
    ended, journal = played(job(working(work), rounds=1), SITES, journal=Journal(log))
    assert counted(journal) == [["north", "west"]]
    assert digest(ended.params) == digest(played(job(rounds=1), GOOD)[0].params)


def crash_now() -> None:
    raise Crash


def test_another_job_is_not_taken_for_the_one_that_crashed(tmp_path: Path) -> None:
    log = Memory()

    def stop_here(line: Mapping[str, Any]) -> None:
        raise Crash

    with pytest.raises(Crash):
        played(job(rounds=2), SITES, journal=Journal(log), told=stop_here)
    with pytest.raises(
        FoedusError, match=r"the journal's 'task' row \(round 0, task 1\) says digest = .*: the Job, its"
    ):
        played(job(rounds=2, learner=learner(lr=0.25)), SITES, journal=Journal(log))


def test_the_state_passes_through_its_saved_form_every_round() -> None:
    seen: list[Any] = []

    def round(state: Any, context: Any) -> Any:
        seen.append(state["pair"])
        yield Task("train", state["w"], context.cohort)
        return {"w": state["w"], "pair": (1, np.ones(1))}

    base = fedavg()
    made = Algorithm(lambda p: {"w": p, "pair": (0, np.zeros(1))}, round, base.works, lambda state: state["w"])
    played(job(made, rounds=2), SITES)
    assert all(isinstance(pair, list) and not pair[1].flags.writeable for pair in seen)


def test_a_site_finds_its_own_state_as_after_a_restart() -> None:
    seen: list[Any] = []

    def work(payload: Params, local: Any, site: Any, usual: Any) -> Any:
        seen.append(local)
        return ("kept", [np.zeros(1)]), usual()[1]

    played(job(working(work), rounds=2), {"north": SITES["north"]})
    assert seen[0] is None and seen[1][0] == "kept" and not seen[1][1][0].flags.writeable


def test_averages_of_training_are_read_at_once_as_they_are_site_by_site() -> None:
    sums = {"a": [6.0, 4, 9], "b": [0.0, 0, 0], "c": [math.inf, 2, 1], "d": [-3.0, 2, 5]}
    outcomes = [Outcome(site, "counted", "", 1.0, {"train_loss": np.array(x)}) for site, x in sums.items()]
    one = Total(Params({}), 4.0, 4, {}, outcomes)
    assert measured([one], [], Journal(Memory()))[1] == {
        "a": {"train_loss": 1.5}, "b": {"train_loss": None}, "c": {"train_loss": None}, "d": {"train_loss": -1.5}
    }  # fmt: skip
    outcomes.append(Outcome("e", "counted", "", 1.0, {"train_loss": np.array([1.0, 1, 1]), "train_x": np.ones(3)}))
    mixed = measured([one._replace(outcomes=outcomes)], [], Journal(Memory()))[1]
    assert mixed["a"] == {"train_loss": 1.5} and mixed["e"] == {"train_loss": 1.0, "train_x": 1.0}
    both = measured([one, one], [], Journal(Memory()))[1]
    assert both["a"] == {"train_loss": 1.5} and both["b"] == {"train_loss": None}


def test_where_an_error_was_raised_is_a_line_of_the_users_own(tmp_path: Path) -> None:
    def load(site: Any) -> Split:
        return Split((np.zeros((0, 2)), np.zeros(0)))  # whose check is in code that dataclasses made

    made = Job(fedavg(), learner(), load, rounds=1)
    with pytest.raises(Paused) as paused:
        launch.run(made, 1, backend="local", folder=tmp_path / "run")
    assert re.search(r"train has no examples: .* \(test_run\.py, line \d+, in load\)", str(paused.value))
