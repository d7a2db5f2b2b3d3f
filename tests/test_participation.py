"""Who is asked in a round: drawn by key from the roster, in the proportions asked for, and the same in replays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import foedus as fd
from foedus import launch, runs
from foedus.core import Outcome, RoundContext, Total
from foedus.errors import JobError, Paused
from foedus.job import Job
from foedus.numpy import NumpyLearner
from foedus.params import Params
from foedus.participation import (
    TOLD,
    Cohort,
    available,
    by_loss,
    drawn,
    highest,
    power_of_choice,
    stratified,
    uniform,
    weighted,
)
from tiny import SITES, ZERO, gradient, job, many, played

ABC = ["a", "b", "c"]


def context(roster: Sequence[str] = ABC, round: int = 0, seed: int = 0) -> RoundContext:
    return RoundContext(seed, round, roster, ())


def cohorts(cohort: Cohort, rounds: int, roster: Sequence[str] = ABC) -> list[Sequence[str]]:
    return [drawn(cohort, context(roster, round)) for round in range(rounds)]


def near(found: int, chance: float, times: int) -> bool:
    """Within four standard deviations."""
    return abs(found - chance * times) < 4 * (times * chance * (1 - chance)) ** 0.5


# Rules.


def test_uniform_draws_what_a_number_draws() -> None:
    def told(cohort: Any) -> list[Any]:
        return [row["cohort"] for row in played(job(rounds=5, cohort=cohort, evaluate=0), many(9))[1].all("round")]

    assert told(4) == told(uniform(4)) and told(0.4) == told(uniform(0.4))  # a share is rounded up: 4 of 9
    assert {len(names) for names in told(0.4)} == {4} and len({tuple(names) for names in told(4)}) > 1


def test_weighted_draws_in_proportion_one_after_another() -> None:
    """Of a, b, c with 1, 2, 7 tenths, two are b and c with 0.2 0.7/0.8 + 0.7 0.2/0.3, and so on."""
    weights = {"a": 1, "b": 2.0, "c": 7}
    one, two = (
        Counter(map(tuple, cohorts(weighted(1, weights), 3000))),
        Counter(map(tuple, cohorts(weighted(2, weights.__getitem__), 3000))),
    )
    assert all(near(one[name,], weights[name] / 10, 3000) for name in ABC)
    chances = {("a", "b"): 0.1 * 0.2 / 0.9 + 0.2 * 0.1 / 0.8, ("a", "c"): 0.1 * 0.7 / 0.9 + 0.7 * 0.1 / 0.3}
    assert all(near(two[pair], chance, 3000) for pair, chance in chances.items())
    assert sum(two.values()) == 3000 and near(two["b", "c"], 0.2 * 0.7 / 0.8 + 0.7 * 0.2 / 0.3, 3000)


def test_a_site_without_weight_is_never_drawn() -> None:
    weights = {"a": 0, "b": 1, "c": 1e-300}
    assert {tuple(names) for names in cohorts(weighted(2, weights), 20)} == {("b", "c")}
    assert {tuple(names) for names in cohorts(weighted(1.0, weights), 20)} == {("b", "c")}


ROSTER = [f"{kind}{i:02}" for kind, count in (("clinic", 4), ("device", 10), ("practice", 6)) for i in range(count)]


def kind(site: str) -> str:
    return site.rstrip("0123456789")


@pytest.mark.parametrize(
    ("cohort", "expected"),
    [
        (5, {"clinic": 1, "device": 3, "practice": 1}),  # 1, 2.5 and 1.5: of equal remainders the first
        (10, {"clinic": 2, "device": 5, "practice": 3}),
        (0.5, {"clinic": 2, "device": 5, "practice": 3}),
        (1, {"device": 1}),  # 0.2, 0.5, 0.3
        (99, {"clinic": 4, "device": 10, "practice": 6}),
        ({"clinic": 3, "practice": 0.5}, {"clinic": 3, "practice": 3}),
        ({"clinic": 9, "nowhere": 2}, {"clinic": 4}),
    ],
)
def test_stratified_draws_so_many_of_each_stratum(cohort: Any, expected: dict[str, int]) -> None:
    for by in (kind, {site: kind(site) for site in ROSTER}):
        found = cohorts(stratified(cohort, by), 6, ROSTER)
        assert all(Counter(map(kind, names)) == expected for names in found)
    assert all(list(names) == sorted(names) for names in found)


def test_within_a_stratum_all_are_drawn_alike() -> None:
    found = Counter(
        site for names in cohorts(stratified({"clinic": 1, "device": 3}, kind), 2000, ROSTER) for site in names
    )
    assert all(near(found[site], 0.25 if kind(site) == "clinic" else 0.3, 2000) for site in ROSTER[:14])


def test_available_draws_among_those_who_are_there() -> None:
    def at_night(site: str, round: int) -> bool:
        return (site == "a") == (round % 2 == 0)

    assert cohorts(available(at_night), 4) == [["a"], ["b", "c"], ["a"], ["b", "c"]]
    assert [len(names) for names in cohorts(available(at_night, 1), 4)] == [1] * 4
    inner = available(at_night, weighted(2, {"a": 1, "b": 0, "c": 1}))
    assert cohorts(inner, 2) == [["a"], ["c"]]
    assert cohorts(available(at_night, least=3), 1) == [[]]


def test_a_probability_of_being_there_is_drawn_anew_for_each_site_and_round() -> None:
    """With nobody there (0.2 0.5 0.7) a later moment is looked at: each chance is divided by the rest."""
    found = cohorts(available({"a": 0.8, "b": 0.5, "c": 0.3}), 3000)
    some = 1 - 0.2 * 0.5 * 0.7
    there = Counter(site for names in found for site in names)
    assert all(near(there[site], p / some, 3000) for site, p in {"a": 0.8, "b": 0.5, "c": 0.3}.items())
    assert all(len(names) >= 2 for names in cohorts(available(0.4, least=2), 200))


def test_cohorts_depend_on_seed_and_round_alone() -> None:
    for cohort in (uniform(5), weighted(5, lambda site: 1 + int(site[-1])), stratified(5, kind), available(0.5, 5)):
        again = [drawn(cohort, context(ROSTER, round)) for round in (3, 3, 4)]
        assert again[0] == again[1] != again[2] and again[0] != drawn(cohort, context(ROSTER, 3, seed=1))


# What is no rule.


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda context: ["a", "x"], "returned 'x', which is not in context.roster"),
        (lambda context: ["a", "a"], "returned a site twice"),
        (lambda context: [0], "returned 0, which is not in"),
        (lambda context: "abc", "returned str; return a list"),
        (lambda context: None, "returned NoneType; return a list"),
        (weighted(1, {"a": 1}), r"weighted\(weights=…\) does not name site 'b'"),
        (weighted(1, lambda site: -1.0), "site 'a' has weight -1.0"),
        (stratified(1, {"a": 1}), r"stratified\(by=…\) does not name site 'b'"),
        (available(lambda site, round: 2.0), "site 'a' is there with probability 2.0"),
    ],
)
def test_a_rule_that_draws_what_is_not_there_is_an_error(wrong: Any, said: str) -> None:
    with pytest.raises(JobError, match=said):
        drawn(wrong, context())


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: uniform(0),
        lambda: weighted(1.5, {}),
        lambda: stratified({"a": True}, {}),
        lambda: power_of_choice(2, 3),
        lambda: power_of_choice(2, 0),
        lambda: power_of_choice(0.5, 1),  # type: ignore[arg-type]
        lambda: job(cohort=True),
        lambda: job(panel=uniform(3)),
    ],
)
def test_what_is_no_number_of_sites_is_refused(wrong: Callable[[], Any]) -> None:
    with pytest.raises(JobError):
        wrong()


def test_a_round_that_nobody_is_drawn_for_pauses() -> None:
    with pytest.raises(Paused, match=r"0 of the 1 sites needed are available, .* mend cohort=…"):
        played(job(cohort=available(lambda site, round: round < 1), evaluate=0), SITES)


# Power of choice.


def trained(journal: Any) -> list[list[str]]:
    """Of each round the sites that trained; those that told their losses are those of Task 0."""
    return [[site for site, _, _ in row["counted"]] for row in journal.all("close") if row["task"] == 1]


def test_power_of_choice_by_hand() -> None:
    """Losses are half the squared distances to north (2, 0 | 4), south (8, 0 | -8), west (0, 4 | 0).

    At (0, 0 | 0): 10, 64, 8. South trains: (4, 0 | -4), with 34, 16, 24. North: (3, 0 | 0), with 8.5, 44.5, 12.5.
    South again: half of (5, 0 | -8).
    """
    made = job(rounds=3, cohort=power_of_choice(3, 1))
    ended, journal = played(made, SITES)
    assert trained(journal) == [["south"], ["north"], ["south"]]
    assert {name: x.tolist() for name, x in ended.params.items()} == {"w": [5.5, 0.0], "b": -4.0}
    by_examples = (2 * 10 + 64 + 5 * 8) / 8
    assert ended.history[0][TOLD] == by_examples


def test_two_of_the_candidates_train() -> None:
    """North and south, with 2 examples and 1, make (2, 0 | 0) of the first model; there the losses are 8, 50, 10."""
    _, journal = played(job(rounds=2, cohort=power_of_choice(9, 2)), SITES)
    assert trained(journal) == [["north", "south"], ["south", "west"]]


def test_candidates_are_drawn_by_weight() -> None:
    made = job(rounds=4, cohort=power_of_choice(2, 1, {"north": 1, "south": 0, "west": 1}))
    _, journal = played(made, SITES)
    assert trained(journal)[0] == ["north"]
    assert [row["cohort"] for row in journal.all("round")] == [["north", "west"]] * 4


def told(**losses: float) -> Total:
    rows = [Outcome(site, "counted", "", 1.0, {TOLD: np.array([2 * x, 2, 0])}) for site, x in losses.items()]
    return Total(Params({}), 3.0, 3, {}, [*rows, Outcome("x", "declined", "no loss")])


def test_the_highest_losses_are_chosen_and_among_equals_a_key_decides() -> None:
    assert highest(told(a=1.0, b=3.0, c=2.0), 2, context()) == ["b", "c"]
    assert highest(told(a=np.nan, b=-1.0, c=np.inf), 2, context()) == ["b", "c"]
    found = Counter(highest(told(a=1.0, b=1.0, c=1.0), 1, context(round=r))[0] for r in range(600))
    assert all(near(found[site], 1 / 3, 600) for site in ABC)


def test_a_candidate_that_tells_no_loss_is_not_chosen_and_the_others_train() -> None:
    def shaky(payload: Any, local: Any, site: Any) -> Any:
        if site.name == "south":
            raise OSError("a cable was loose")
        return usual(payload, local, site)

    chosen = by_loss(fd.fedavg(), 2)
    usual = chosen.works["candidates"]
    made = chosen._replace(works={**chosen.works, "candidates": shaky})
    assert trained(played(job(made, rounds=2), SITES)[1]) == [["north", "west"]] * 2


def test_a_quorum_closes_training_and_never_the_candidates_losses() -> None:
    _, journal = played(job(rounds=3, cohort=power_of_choice(6, 4), quorum=2), many(8))
    counts = [(row["task"], len(row["counted"])) for row in journal.all("close") if row["task"] < 2]
    assert counts == [(0, 6), (1, 2)] * 3


def test_a_learner_without_a_loss_says_so() -> None:
    own = NumpyLearner(ZERO, gradient, lambda p, x: x[:, 0], train=lambda arrays, split, ctx: {})
    own.gradient = None
    with pytest.raises(JobError, match="reads the loss"):
        job(learner=own, cohort=power_of_choice(2, 1))


# Backends, replays and resumed runs.

RULES: dict[str, Callable[[], Job]] = {
    "weighted": lambda: job(rounds=4, cohort=weighted(4, lambda site: 1 + int(site[1:]))),
    "stratified": lambda: job(rounds=4, cohort=stratified({"0": 2, "1": 2}, lambda site: str(int(site[1:]) % 2))),
    "available": lambda: job(rounds=4, cohort=available(0.5, 4)),
    "one's own": lambda: job(rounds=4, cohort=lambda context: context.roster[context.round :: 2]),
    "power of choice": lambda: job(rounds=4, cohort=power_of_choice(5, 2)),
    "power of choice, compressed": lambda: job(rounds=4, cohort=power_of_choice(5, 2), compress=[fd.top_k(0.34)]),
    "power of choice of who is there": lambda: job(rounds=4, cohort=available(0.7, power_of_choice(5, 2))),
    "weighted, buffered": lambda: job(fd.fedbuff(2, busy=3), rounds=4, cohort=weighted(4, lambda site: 1.0)),
}
DEVICES = fd.clock(work=fd.clock.lognormal(10.0, 1.0), available=0.8, dropout=0.1)


@pytest.mark.parametrize("rule", RULES)
def test_replays_and_runs_that_were_cut_ask_the_same_sites(rule: str, home: Path) -> None:
    made = RULES[rule]().replace(deadline=fd.Deadline(stall=100.0))
    for clock in (None, DEVICES):
        first = made.run(many(9), backend="local", seed=2, clock=clock)
        assert made.run(many(9), backend="local", seed=2, replay=first).digest == first.digest

        def stop(line: Any) -> None:
            if line["round"] == 1:
                raise KeyboardInterrupt

        folder = home / "runs" / f"cut-{clock is None}"
        with pytest.raises(KeyboardInterrupt):
            launch.run(made, many(9), seed=2, backend="local", folder=folder, told=stop, clock=clock)
        assert launch.run(made, many(9), seed=2, backend="local", folder=folder, clock=clock).digest == first.digest
        asked = [[row["cohort"] for row in runs.journal(place).all("round")] for place in (first.folder, folder)]
        assert asked[0] == asked[1]


@pytest.mark.processes
def test_processes_choose_the_same_sites(home: Path) -> None:
    made = RULES["power of choice, compressed"]()
    one, other = (made.run(many(9), backend=backend, workers=2) for backend in ("local", "processes"))
    assert one.digest == other.digest


def test_a_rule_is_asked_for_those_of_a_clock_s_devices_that_are_there(home: Path) -> None:
    """Of a and b one is there, in turns of 10 s; a round takes 10 s, so that it ends when the other comes."""

    def windows(site: str, seconds: float) -> tuple[float, float]:
        begins = 20 * (seconds // 20) + (0 if site == "a" else 10)
        return (begins, begins + 10) if seconds < begins + 10 else (begins + 20, begins + 30)

    sites = dict(zip("ab", SITES.values(), strict=False))
    made = job(rounds=4, cohort=lambda context: context.roster, evaluate=0)
    found = made.run(sites, backend="local", clock=fd.clock(work=10.0, available=windows))
    closes = [[site for site, _, _ in row["counted"]] for row in runs.journal(found.folder).all("close")]
    assert closes == [["a"], ["b"], ["a"], ["b"]]


def test_a_job_tells_its_rule_and_its_settings() -> None:
    digests = {job(cohort=weighted(2, {"a": w})).digest for w in (1, 2)} | {job(cohort=c).digest for c in (2, 3, None)}
    assert len(digests) == 5
    assert job(cohort=weighted(2, {"a": 1})).digest == job(cohort=weighted(2, {"a": 1})).digest
    assert job(cohort=power_of_choice(3, 2)).describe()["cohort"]["trains"] == 2
