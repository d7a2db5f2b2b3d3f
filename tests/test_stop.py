"""Stop rules over histories made by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foedus.errors import JobError
from foedus.metrics import Metric
from foedus.stop import Stop, any_of, plateau, target, wall_time


def history(metric, *values):
    return [{"round": i, "seconds": 2.0, metric: value} for i, value in enumerate(values)]


def first(rule, lines):
    """The number of rounds after which the rule stops, or None."""
    return next((n for n in range(len(lines) + 1) if rule.done(lines[:n]) is not None), None)


def test_plateau_waits_for_patience_evaluations_without_a_better_one():
    losses = history("loss", 0.9, 0.5, 0.6, 0.4, 0.4, 0.7, 0.5)
    assert first(plateau("loss", patience=1), losses) == 3
    assert first(plateau("loss", patience=2), losses) == 6
    assert first(plateau("loss", patience=3), losses) == 7
    assert first(plateau("loss", patience=4), losses) is None


def test_plateau_knows_that_more_accuracy_is_better():
    assert first(plateau("accuracy", patience=2), history("accuracy", 0.5, 0.6, 0.6, 0.55)) == 4
    assert first(plateau("accuracy", patience=2), history("accuracy", 0.5, 0.6, 0.7, 0.8)) is None


def test_plateau_counts_only_gains_above_min_delta():
    losses = history("loss", 1.0, 0.95, 0.85, 0.8, 0.76)  # 0.85 gains 0.15 on 1.0; 0.76 gains 0.09 on 0.85
    assert first(plateau("loss", patience=2, min_delta=0.1), losses) == 5
    assert first(plateau("loss", patience=2, min_delta=0.2), losses) == 3
    assert (
        plateau("loss", 2, 0.2).done(losses)
        == "loss: 2 evaluations in a row were not better than 1 of round 0 by more than 0.2"
    )


def test_rounds_without_the_metric_are_not_counted():
    lines = history("loss", 0.5, 0.6, 0.7)
    sparse = [lines[0], {"round": 1, "seconds": 1}, {"round": 2, "seconds": 1}, lines[1], {"round": 4}, lines[2]]
    assert first(plateau("loss", patience=2), sparse) == 6


@pytest.mark.parametrize("undefined", [None, math.nan])
def test_an_undefined_value_is_not_better_and_never_the_best(undefined):
    assert first(plateau("auc", patience=2), history("auc", undefined, 0.6, undefined, 0.5)) == 4
    assert first(plateau("auc", patience=2), history("auc", undefined, 0.1, 0.2, 0.3)) is None
    assert (
        plateau("auc", patience=2).done(history("auc", undefined, undefined))
        == "auc: 2 evaluations in a row were not defined"
    )


def test_a_loss_that_explodes_stops_the_run():
    assert first(plateau("loss", patience=2), history("loss", 1.0, math.inf, math.inf)) == 3


def test_target_stops_when_the_value_is_reached():
    assert first(target("accuracy", 0.9), history("accuracy", 0.5, 0.89, 0.9)) == 3
    assert first(target("loss", 0.1), history("loss", 0.5, 0.2, 0.1, 0.3)) == 3
    assert first(target("loss", 0.1), history("loss", 0.5, 0.2, math.nan, None)) is None
    assert target("loss", 0.1).done(history("loss", 0.05)) == "loss reached 0.05 in round 0 (target 0.1)"


def test_wall_time_adds_the_journaled_seconds():
    lines = history("loss", *[1.0] * 5)
    assert first(wall_time(6), lines) == 3
    assert first(wall_time(6.1), lines) == 4
    assert first(wall_time(100), lines) is None
    assert wall_time(6).done(lines) == "the rounds took 10.0 s of 6 s"


def test_wall_time_never_asks_the_clock(monkeypatch):
    for name in ("time", "monotonic", "perf_counter"):
        monkeypatch.setattr(f"time.{name}", lambda: pytest.fail("a stop rule read the clock"))
    assert wall_time(1).done([{"round": 0, "seconds": 0.5}]) is None


def test_any_of_gives_the_first_reason():
    rule = any_of(plateau("loss", patience=2), target("loss", 0.1), wall_time(100))
    assert first(rule, history("loss", 0.5, 0.05)) == 2
    assert rule.done(history("loss", 0.5, 0.05)).startswith("loss reached")
    assert rule.done(history("loss", 0.1, 0.2, 0.2)).startswith("loss: 2 evaluations")
    assert rule.name == "any_of(plateau(loss), target(loss), wall_time)"


@pytest.mark.parametrize("rule", [plateau("loss", 2), target("loss", 0.1), wall_time(10)])
def test_nothing_stops_before_the_first_round(rule):
    assert rule.done([]) is None


@pytest.mark.properties
@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=12), st.integers(1, 4), st.floats(0, 0.5))
def test_a_reason_that_was_given_stays_the_same(values, patience, min_delta):
    lines = history("loss", *values)
    for rule in (plateau("loss", patience, min_delta), target("loss", 0.3), wall_time(9)):
        reasons = [rule.done(lines[:n]) for n in range(len(lines) + 1)]
        stopped = next((n for n, reason in enumerate(reasons) if reason), len(reasons))
        assert all(reasons[stopped:])
        assert rule.done(lines) == rule.done([dict(line) for line in lines])


@pytest.mark.properties
@given(st.lists(st.floats(0, 1), max_size=12), st.integers(1, 4))
def test_plateau_is_the_plain_definition(values, patience):
    stops = next(
        (
            n
            for n in range(patience + 1, len(values) + 1)
            if min(values[n - patience : n]) >= min(values[: n - patience])
        ),
        None,
    )
    assert first(plateau("loss", patience), history("loss", *values)) == stops


@pytest.mark.parametrize("name", ["test_loss", "personal_test_auc", "train_loss"])
def test_rules_refuse_to_look_at_anything_but_valid(name):
    for make in (lambda: plateau(name, 3), lambda: target(name, 0.5)):
        with pytest.raises(JobError, match=rf"'{name}'\): stop rules look only at valid, never at train or test"):
            make()


def test_personal_metrics_may_be_watched():
    assert first(target("personal_accuracy", 0.8), history("personal_accuracy", 0.7, 0.8)) == 2


def test_a_metric_of_ones_own_brings_its_direction():
    own = Metric("gain", lambda x, y: x, float, "max")
    assert first(plateau(own, 1), history("gain", 1.0, 2.0, 1.5)) == 3
    with pytest.raises(JobError, match="no metric 'gain'"):
        plateau("gain", 1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: plateau("loss", 0),
        lambda: plateau("loss", 1.5),
        lambda: plateau("loss", True),
        lambda: plateau("loss", 1, -0.1),
        lambda: plateau("loss", 1, math.nan),
        lambda: plateau(None, 1),
        lambda: target("loss", math.nan),
        lambda: wall_time(0),
        lambda: wall_time(math.inf),
        any_of,
        lambda: any_of(wall_time(1), "loss"),
    ],
)
def test_bad_arguments_are_refused(make):
    with pytest.raises(JobError):
        make()


def test_a_rule_of_ones_own_is_a_name_and_a_function():
    rule = Stop("odd", lambda lines: "odd" if len(lines) % 2 else None)
    assert any_of(rule).done([{}]) == "odd"
