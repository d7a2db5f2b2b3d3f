"""The report of a run: what it says is what the journal says, and nothing that a site chose becomes markup."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import foedus as fd
from foedus import metrics, report, runs
from foedus.cli import main
from foedus.core import Outcome, Total
from foedus.errors import JournalError
from foedus.journal import Memory
from foedus.numpy import NumpyLearner
from foedus.params import Params
from foedus.report import markup, story
from foedus.store import START, Row, chained
from foedus.work import certainty, worst

NASTY = "<script>alert(1)</script>"
VOID = ("meta",)


class Page(HTMLParser):
    """A page as tables (caption -> rows of cells), numbers, tags and text; raises at a tag that is not closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.numbers: dict[str, list[list[list[float]]]] = {}  # of a table: the machine's numbers of each cell
        self.caption, self.text = "", ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "caption":
            self.caption = ""
        if tag == "tr" and "tbody" in self.open:
            self.tables.setdefault(self.caption, []).append([])
            self.numbers.setdefault(self.caption, []).append([])
        if tag in ("th", "td") and "tbody" in self.open:
            self.tables[self.caption][-1].append("")
            self.numbers[self.caption][-1].append([])
        if tag == "data" and "tbody" in self.open:
            self.numbers[self.caption][-1][-1].append(float(dict(attrs)["value"] or "nan"))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if self.open and self.open[-1] == "caption":
            self.caption += data
        if "tbody" in self.open and ("td" in self.open or "th" in self.open):
            self.tables[self.caption][-1][-1] += data

    def table(self, beginning: str) -> list[list[str]]:
        return next(rows for caption, rows in self.tables.items() if caption.startswith(beginning))

    def values(self, beginning: str) -> list[list[list[float]]]:
        return next(rows for caption, rows in self.numbers.items() if caption.startswith(beginning))


def rows_of(journal: Memory, began: float = 1.7e9) -> list[Row]:
    """What a store would have kept, a second between rows."""
    head, rows = START, []
    for i, entry in enumerate(journal.rows()):
        rows += [row for row, _ in chained(head, [entry], began + i)]
        head = head._replace(seq=rows[-1].seq, chain=rows[-1].chain)
    return rows


def opened(**more: Any) -> Memory:
    journal = Memory()
    about = {"job": "j", "seed": 7, "description": {"name": "lesions", "rounds": 9}, "backend": "network", "exact": True}
    about |= {"build": {"foedus": "0.1", "cpu": "AVX2", "hash": "aaaa"}, "source": {"file": None}, "sites": []}
    journal.append([("open", about | more)])
    return journal


def add(journal: Memory, kind: str, **body: Any) -> None:
    journal.append([(kind, body)])


def play(journal: Memory, round: int, fates: dict[str, str], names: Sequence[str] = (), size: int = 1000) -> None:
    """A round with one training Task: site -> status of its outcome."""
    sites = sorted(fates)
    rosters = [b for k, b in journal.rows() if k == "roster"]
    if not rosters or rosters[-1]["sites"] != sites:
        add(journal, "roster", round=round, sites=sites)
    since = [b for k, b in journal.rows() if k == "roster"][-1]["round"]
    add(journal, "round", round=round, roster=since, cohort=None)
    asked = [s for s in sites if fates[s] != "idle"]
    payload = {"digest": "d", "size": 4000}
    add(journal, "task", round=round, task=0, work="train", asked=asked, payload=payload, digest="t")
    for site in asked:
        at = {"round": round, "task": 0, "site": site, "attempt": 0}
        if fates[site] in ("counted", "dropped"):
            add(journal, "accepted", **at, size=size, build="aaaa" if site != "west" else "bbbb")
        else:
            add(journal, fates[site], **at, why=f"{site} says {NASTY}")
    counted = [[s, round, 0] for s in asked if fates[s] == "counted"]
    why = {s: f"{s} says {NASTY}" if fates[s] not in ("counted", "dropped") else "" for s in asked}
    add(journal, "close", round=round, task=0, counted=counted, outcomes=[[s, fates[s], why[s], 1.0] for s in asked])
    values = {s: {"dice": 0.5 + 0.04 * round - 0.02 * i, "test_dice": 0.4} for i, s in enumerate(asked)}
    low = asked[-1]
    add(
        journal,
        "step",
        round=round,
        digest="s",
        seconds=1.5,
        metrics={"dice": 0.5 + 0.04 * round, "test_dice": 0.4 + 0.03 * round, "train_loss": 1 / (1 + round)},
        per_site=values,
        worst={"dice": low, "test_dice": low},
        intervals={"dice": [0.1, 0.9]},
        site_intervals={s: {"dice": [values[s]["dice"] - 0.1, values[s]["dice"] + 0.1]} for s in asked},
        checkpoint=None,
    )


def eventful() -> Memory:
    """Nine rounds: a site is refused, one declines, one is lost and leaves, one joins, the server is killed."""
    journal = opened()
    three = dict.fromkeys(("north", NASTY, "south"), "counted")
    add(journal, "event", what="joined", site="north", why="", round=0)
    for round in range(3):
        play(journal, round, three)
    play(journal, 3, three | {"south": "refused"})
    add(journal, "event", what="left", site="south", why=f"maintenance {NASTY}", round=4)
    play(journal, 4, three | {"south": "lost"})
    play(journal, 5, {"north": "counted", NASTY: "declined"})
    add(journal, "event", what="server restarted", site="", why="", round=6)
    add(journal, "event", what="joined", site="west", why="", round=6)
    for round in range(6, 9):
        play(journal, round, {"north": "dropped", NASTY: "idle", "west": "counted"})
    return journal


def ended(journal: Memory) -> Memory:
    add(journal, "end", reason="all rounds done", rounds=9, digest="f" * 64, seconds=20.0, best_round=8, history=[])
    return journal
