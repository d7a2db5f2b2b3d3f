"""When a Task may close: the rules as a table, and their properties for any course of events."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foedus.core import Origin, Outcome
from foedus.settle import Desk, Rule, pause


def desk(quorum: int | None, least: int, asked: str, events: str = "") -> Desk:
    """Sites are letters; an event is a site and + accepted, r refused, d declined, l lost."""
    made = Desk(Rule(quorum, least), asked)
    for site, what in zip(events[::2], events[1::2], strict=True):
        happen(made, site, what)
    return made


def happen(made: Desk, site: str, what: str) -> None:
    status: Any = {"+": "counted", "r": "refused", "d": "declined", "l": "lost"}[what]
    outcome = Outcome(site, status, f"why {site}", 1.0)
    if what == "+":
        made.accept(Origin(site, 0, 0), outcome)
    else:
        made.settle(outcome)


TABLE = [
    # quorum, least, asked, events, verdict
    (None, 1, "abc", "", "open"),
    (None, 1, "abc", "a+b+", "open"),  # every asked site must settle
    (None, 1, "abc", "a+b+c+", "close"),
    (None, 1, "abc", "a+brcd", "close"),  # refused and declined sites settle too
    (None, 1, "abc", "a+blcl", "close"),  # and lost ones
    (None, 1, "abc", "arbdcl", "short"),  # but one must count
    (None, 0, "ab", "a+", "open"),  # or none
    (None, 0, "ab", "arbl", "close"),
    (None, 2, "abc", "a+b+cl", "close"),
    (None, 2, "abc", "a+brcl", "short"),
    (None, 3, "abc", "a+b+cr", "short"),
    (None, 1, "", "", "short"),  # nobody was asked
    (2, 1, "abc", "a+", "open"),
    (2, 1, "abc", "a+b+", "close"),  # without waiting for c
    (2, 1, "abc", "a+brcl", "short"),
    (2, 1, "abc", "arb+", "open"),
    (2, 1, "abc", "arb+c+", "close"),
    (2, 1, "abc", "a+b+c+", "close"),  # a third in the same moment
    (1, 1, "abc", "c+", "close"),
    (3, 1, "ab", "a+b+", "short"),  # more than were asked
]


@pytest.mark.parametrize(("quorum", "least", "asked", "events", "verdict"), TABLE)
def test_a_task_closes_by_the_rules(quorum: int | None, least: int, asked: str, events: str, verdict: str) -> None:
    assert desk(quorum, least, asked, events).verdict() == verdict


def test_over_selection_counts_the_first_to_arrive() -> None:
    made = desk(2, 1, "abcd", "d+b+a+cr")
    assert [o.site for o in made.counted()] == ["b", "d"]
    assert [(o.site, o.status) for o in made.outcomes()] == [
        ("a", "dropped"), ("b", "counted"), ("c", "refused"), ("d", "counted")]  # fmt: skip


def test_who_did_not_settle_was_dropped() -> None:
    assert [o.status for o in desk(1, 1, "abc", "b+").outcomes()] == ["dropped", "counted", "dropped"]


def test_only_those_who_did_not_deliver_are_asked_again() -> None:
    made = desk(None, 3, "abcd", "a+brcddl")
    assert made.verdict() == "short" and made.ask_again() == ["b", "c", "d"]
    assert (made.verdict(), made.attempt, made.waiting()) == ("open", 1, ["b", "c", "d"])
    for site, what in ("b+", "c+", "dl"):
        happen(made, site, what)
    assert made.verdict() == "close"
    assert [o.status for o in made.outcomes()] == ["counted", "counted", "counted", "lost"]


def test_the_first_word_of_a_site_stands() -> None:
    made = desk(None, 1, "ab", "ar")
    happen(made, "a", "d")
    assert [o.status for o in made.outcomes()] == ["refused", "dropped"]


def test_an_update_of_an_earlier_round_counts_and_is_told() -> None:
    made = Desk(Rule(2), "b")
    made.accept(Origin("a", 3, 0, 2), Outcome("a", "counted"))
    assert made.verdict() == "open"
    happen(made, "b", "+")
    assert made.verdict() == "close"
    assert made.counted() == [Origin("a", 3, 0, 2), Origin("b", 0, 0)]
    assert [o.site for o in made.outcomes()] == ["b", "a"]


def test_a_refusal_of_an_earlier_round_is_told() -> None:
    made = desk(1, 1, "b", "b+")
    made.settle(Outcome("late", "refused", "NaN"))
    assert [(o.site, o.status) for o in made.outcomes()] == [("b", "counted"), ("late", "refused")]


def test_the_pause_names_sites_and_causes() -> None:
    made = desk(None, 2, "abc", "a+brcl")
    text = str(pause(4, "train", made.rule, made.outcomes()))
    assert text.startswith("round 4, task 'train': 1 of the 2 updates needed arrived; ")
    assert "b: refused (why b); c: lost (why c)" in text and "a:" not in text and "resume" in text
    assert "nobody was asked" in str(pause(0, "train", Rule(None), []))


COURSES = st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("+rdl")), unique_by=lambda e: e[0], max_size=6)


@pytest.mark.properties
@given(COURSES, st.sampled_from([None, 1, 2, 3, 4]), st.integers(0, 4))
@settings(max_examples=300)
def test_whatever_happens_the_books_are_straight(events: list[tuple[str, str]], quorum: int | None, least: int) -> None:
    made = Desk(Rule(quorum, least), "abcdef")
    verdicts = [made.verdict()]
    for site, what in events:
        happen(made, site, what)
        verdicts.append(made.verdict())
    accepted = [site for site, what in events if what == "+"]
    outcomes = made.outcomes()
    assert [o.site for o in outcomes] == list("abcdef")  # one per asked site, in the order asked
    counted = sorted(o.site for o in outcomes if o.status == "counted")
    assert counted == sorted(o.site for o in made.counted()) == sorted(accepted[:quorum])
    if "close" in verdicts:  # once it may close, it may close ever after
        assert set(verdicts[verdicts.index("close") :]) == {"close"}
        assert len(made.counted()) >= (quorum or least)
    if quorum is None:
        settled = len(events) == 6
        assert (verdicts[-1] != "open") == settled
        assert (verdicts[-1] == "close") == (settled and len(accepted) >= least)


@pytest.mark.properties
@given(st.permutations([("a", "+"), ("b", "+"), ("c", "r"), ("d", "l"), ("e", "+")]))
def test_where_all_are_waited_for_the_order_of_arrival_does_not_count(events: list[tuple[str, str]]) -> None:
    made = Desk(Rule(None), "abcde")
    for site, what in events:
        happen(made, site, what)
    assert [o.site for o in made.counted()] == ["a", "b", "e"]
    assert [o.status for o in made.outcomes()] == ["counted", "counted", "refused", "lost", "counted"]
