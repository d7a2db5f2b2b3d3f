"""What a server finds again after a restart: its Tasks, rebuilt from the journal, are those that it had."""

from __future__ import annotations

import os
import signal
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest

from foedus.core import Origin
from foedus.journal import Journal, Memory
from foedus.loopback import free_port
from foedus.server import owner
from foedus.server.__main__ import serve
from foedus.server.federation import Hub
from foedus.server.tasks import Book

AT = {"round": 0, "task": 0}


def task(round: int, *asked: str, **changes: Any) -> tuple[str, dict[str, Any]]:
    body = {"work": "train", "quorum": None, "late": "drop", "least": 2, "busy": None, "deadline": None}
    return "task", {**AT, **body, "round": round, "asked": list(asked), **changes}


def settled(kind: str, site: str, attempt: int = 0, round: int = 0) -> tuple[str, dict[str, Any]]:
    row = {**AT, "round": round, "site": site, "attempt": attempt, "why": "it left"}
    return kind, row | {"digest": "", "metrics": "", "weight": "0x1.0p+0", "stateful": False}


def rebuilt(*rows: tuple[str, dict[str, Any]]) -> Book:
    log = Memory()
    log.append(rows)
    return Book(Journal(log))


def test_a_site_at_work_for_a_later_attempt_is_still_waited_for() -> None:
    """The rows of the attempt before say that it was lost; they are older than the attempt."""
    lost = settled("lost", "north"), settled("lost", "south")
    book = rebuilt(task(0, "north", "south"), *lost, ("again", {**AT, "attempt": 1}), settled("accepted", "south", 1))
    found = book.tasks[0, 0]
    assert found.wants("north", 1) and not found.wants("north", 0) and not found.wants("south")
    assert found.desk.verdict() == "open"


def test_an_attempt_of_which_nobody_has_answered_yet_goes_on() -> None:
    declined = settled("declined", "north"), settled("lost", "south")
    again = [("again", {**AT, "attempt": attempt}) for attempt in (1, 2)]
    book = rebuilt(task(0, "north", "south"), *declined, again[0], settled("lost", "north", 1),
                   settled("lost", "south", 1), again[1])  # fmt: skip
    assert book.tasks[0, 0].wants("north", 2) and book.tasks[0, 0].wants("south", 2)
    assert book.verdict("south", 0, 0, 2, ended=False) == "send"  # what it has computed is not computed again


def test_an_update_that_came_after_its_round_waits_to_be_counted_in_the_next() -> None:
    keep = {"quorum": 1, "late": "keep", "least": 1}
    book = rebuilt(
        task(0, "north", "south", **keep),
        settled("accepted", "north"),
        ("close", {**AT, "counted": [["north", 0, 0]], "outcomes": []}),
        task(1, "north", **{**keep, "quorum": 2}),
        settled("accepted", "south"),
        settled("accepted", "north", round=1),
    )
    assert book.tasks[1, 0].desk.verdict() == "close"
    assert book.tasks[1, 0].desk.counted() == [Origin("north", 1, 0), Origin("south", 0, 0)]


@pytest.mark.processes
def test_a_server_answers_nobody_before_its_runs_are_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A site that asked too early would hear that its update is not needed, delete it and train again."""
    port, answers = free_port(), []
    owner.found(tmp_path, "fed", "127.0.0.1", port, (f"https://127.0.0.1:{port}",))

    def start(hub: Hub) -> None:
        answers.append(greets(port))
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Hub, "start", start)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        serve(tmp_path)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert answers == [False]


def greets(port: int) -> bool:
    """Whether anybody shakes hands at this port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(0.5)
        try:
            context.wrap_socket(connection).close()
        except TimeoutError:
            return False
    return True
