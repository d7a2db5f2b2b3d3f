"""Sites that did not count: who they are and why, in the Result and in Python's log, however a run was started."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import foedus as fd
from foedus import runs
from foedus.absent import MORE, MOST_TOLD, Teller, absences, declined, never
from foedus.core import Decline
from foedus.journal import Journal, Memory
from tiny import SITES, job, working

EVERY = pytest.mark.parametrize("backend", ["local", "vectorized", "processes"])
BROKEN = "declined: loading its data: ValueError: no such table (test_absent.py, line"


def load(site: Any) -> Any:
    if site.name == "south":
        raise ValueError("no such table")
    return site.data


@EVERY
@pytest.mark.processes
def test_a_site_whose_data_cannot_be_read_is_in_the_result_and_in_the_log_once(backend: str, caplog: Any) -> None:
    result = job(rounds=3, data=load).run(SITES, backend=backend, workers=2)
    ((site, why),) = result.declined.items()
    assert site == "south" and why.startswith(BROKEN)
    assert caplog.messages == [f"south {why}"] and caplog.records[0].name == "foedus"
    assert result.about()["declined"] == {"south": why}


def test_where_all_count_nothing_is_said(caplog: Any) -> None:
    assert job().run(SITES).declined == {} and caplog.messages == []


def test_an_update_that_is_refused_and_a_site_that_declines_are_told_apart(caplog: Any) -> None:
    def work(payload: Any, local: Any, site: Any, usual: Any) -> Any:
        if site.name == "west":
            return local, Decline("not today")
        local, update = usual()
        return local, update if site.name == "north" else update._replace(params=np.nan * update.params)

    result = job(working(work), evaluate=0).run(SITES)
    assert result.declined["west"] == "declined: not today"
    assert result.declined["south"].startswith("refused: site 'south', checking its update: ")
    assert [text.split(":")[0] for text in caplog.messages] == ["south refused", "west declined"]


def test_whoever_counts_again_keeps_its_reason_but_was_not_absent_for_good() -> None:
    def work(payload: Any, local: Any, site: Any, usual: Any) -> Any:
        again = payload["w"].any()  # from the second round on
        return usual() if again or site.name != "west" else (local, Decline("too early"))

    result = job(working(work), evaluate=0).run(SITES)
    assert result.declined == {"west": "declined: too early"} and never(runs.journal(result.folder)) == {}


def test_whom_the_clock_loses_is_no_news(caplog: Any) -> None:
    clock = fd.clock(work=1.0, dropout={"north": 0.0, "south": 1.0, "west": 0.0})
    result = job(evaluate=0).run(SITES, clock=clock)
    assert result.declined == {} and caplog.messages == []


def kept(*rows: tuple[str, dict[str, Any]]) -> Journal:
    journal = Journal(Memory())
    for kind, body in rows:
        journal.add(kind, **body)
    return journal


def close(round: int, counted: list[str], *outcomes: list[Any]) -> tuple[str, dict[str, Any]]:
    body = {"round": round, "task": 0, "counted": [[site, round, 0] for site in counted], "outcomes": [*outcomes]}
    return "close", body


def test_a_journal_says_who_never_counted_and_who_was_not_ready() -> None:
    journal = kept(
        ("event", {"what": "not ready", "why": "no dataset", "site": "east"}),
        ("event", {"what": "not ready", "why": "no approval", "site": "north"}),
        close(
            0, ["north"], ["north", "counted", "", 1.0], ["south", "declined", "no", 0.0], ["west", "lost", "left", 0.0]
        ),
        close(1, ["north", "south"], ["north", "counted", "", 1.0], ["south", "counted", "", 1.0]),
        close(2, ["north"], ["north", "counted", "", 1.0], ["south", "refused", "NaN", 0.0]),
    )
    assert declined(journal) == {"east": "took no part: no dataset", "south": "refused: NaN", "west": "lost: left"}
    assert never(journal) == {"east": "took no part: no dataset", "west": "lost: left"}
    assert absences(journal) == [
        "east took no part: no dataset",
        "south did not count in 1 Task, declined: no",
        "south did not count in 1 Task, refused: NaN",
        "west did not count in 1 Task, lost: left",
    ]


def test_whoever_only_measures_nothing_has_not_counted() -> None:
    """South cannot train and says of no metric anything; east is asked to measure alone, and cannot once."""
    journal = kept(
        ("task", {"round": 0, "task": 0, "work": "train", "digest": "0"}),
        ("task", {"round": 0, "task": 1, "work": "evaluate", "digest": "1"}),
        ("task", {"round": 1, "task": 1, "work": "evaluate", "digest": "2"}),
        close(0, ["north"], ["north", "counted", "", 1.0], ["south", "declined", "cannot train", 0.0]),
        (
            "close",
            {**close(0, ["south"], ["south", "counted", "", 1.0], ["east", "declined", "no", 0.0])[1], "task": 1},
        ),
        ("close", {**close(1, ["east"], ["south", "declined", "no", 0.0], ["east", "counted", "", 1.0])[1], "task": 1}),
    )
    assert never(journal) == {"south": "declined: cannot train"}
    assert declined(journal) == {"east": "declined: no", "south": "declined: no"}


def test_a_thousand_absent_sites_fill_no_log() -> None:
    said: list[str] = []
    teller = Teller(said.append)
    for _ in range(2):
        teller.hear(*close(0, [], *[[f"s{i:03}", "declined", "no", 0.0] for i in range(1000)]))
    assert len(said) == MOST_TOLD + 1 and said[0] == "s000 declined: no" and said[-1] == MORE


def test_a_reason_commands_no_terminal() -> None:
    said: list[str] = []
    Teller(said.append).hear("declined", {"site": "south", "why": "\x1b[2Jno"})
    assert said == ["south declined: \N{REPLACEMENT CHARACTER}[2Jno"]
