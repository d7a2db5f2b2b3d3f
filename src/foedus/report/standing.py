"""Where a run stands, by the rows of its journal, and the words for it on a terminal, in a notebook and in the report.
Rows come in one after another, while the run goes on or later; nothing here knows where the words are shown."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

from foedus.core import EVALUATE
from foedus.metrics import plain
from foedus.report.markup import Html, el, join, lasting, short

RECENT = 20  # rounds from which speed and remaining time are taken
BESIDE = ("round", "seconds", "clock")  # in the metrics of the row that a stop rule adds
BACKENDS = ("vectorized", "processes")  # that `auto` may go on in
OUTCOMES = ("accepted", "declined", "refused", "lost")
Cell = tuple[str, str]  # what, and how much


class Standing:
    """What the rows said so far. A site may be heard of that no row names: simulations journal a Task as a whole."""

    def __init__(self) -> None:
        self.rounds: int | None = None
        self.backend = ""
        self.round = 0  # finished ones
        self.tasks: dict[tuple[int, int], int] = {}  # (round, task) that are open -> how many sites were asked
        self.work, self.asked = "", 0
        self.done = set[str | tuple[Any, ...]]()  # sites that are done with the open Tasks, whatever became of them
        self.metrics: dict[str, float] = {}
        self.recent: deque[tuple[float, float]] = deque(maxlen=RECENT)  # seconds and examples of rounds
        self.began: float | None = None  # when the open round began
        self.most = 0.0  # the largest part of it that was done: a second Task does not turn the bar back
        self.ended = False

    def hear(self, kind: str, body: Mapping[str, Any], at: float = 0.0) -> None:
        """Takes in a row that is heard of at this moment, in seconds of any clock."""
        match kind:
            case "open":
                self.backend, self.rounds = body["backend"], body["description"].get("rounds") or self.rounds
            case "event" if body["what"] == "backend" and (name := body["why"].split(",")[0]) in BACKENDS:
                self.backend = name
            case "round":
                self.began, self.tasks, self.most = at, {}, 0.0
            case "task":
                self._task(body)
            case "asked" if (body["round"], body["task"]) in self.tasks:
                self.asked += len(body["sites"])
            case "close":
                self.tasks.pop((body["round"], body["task"]), None)
            case "step":
                self._step(body)
            case "end":
                self.ended = True
            case _ if kind in OUTCOMES and (body["round"], body["task"]) in self.tasks:
                self.done.add((body["task"], body["site"]))

    def _task(self, body: Mapping[str, Any]) -> None:
        if not self.tasks:
            self.asked, self.done = 0, set()
        asked = body["asked"]
        self.tasks[body["round"], body["task"]] = count = asked if isinstance(asked, int) else len(asked)
        self.work, self.asked = body["work"], self.asked + count

    def _step(self, body: Mapping[str, Any]) -> None:
        self.metrics |= {k: x for k, x in body["metrics"].items() if x is not None and k not in BESIDE}
        self.began, self.asked, self.done, self.most = None, 0, set(), 0.0
        if body["digest"]:  # else it is the evaluation after the last round
            self.round = body["round"] + 1
            self.recent.append((body["seconds"], body.get("examples", 0.0)))

    @property
    def number(self) -> int:
        """The round that is open, else the last one, from 1."""
        return self.round + (self.began is not None and not self.ended)

    def within(self) -> float:
        """The part of the open round that is done; evaluation takes little of it."""
        done = 1.0 if self.work == EVALUATE else min(1.0, len(self.done) / self.asked) if self.asked else 0.0
        self.most = max(self.most, done if self.asked else 0.0)
        return self.most

    def left(self, at: float) -> float | None:
        """Seconds until the last round is over; None while nobody can tell."""
        if self.rounds is None or self.ended:
            return None
        spent = 0.0 if self.began is None else at - self.began
        if self.recent:
            usual = statistics.median(seconds for seconds, _ in self.recent)
        elif self.began is not None and self.within():
            usual = spent / self.within()
        else:
            return None
        return max(0.0, usual * (self.rounds - self.round) - min(spent, usual))

    def speed(self) -> float:
        """Examples a second that sites trained on in the last rounds; 0 where their learner does not say."""
        seconds = sum(seconds for seconds, _ in self.recent)
        return sum(examples for _, examples in self.recent) / seconds if seconds else 0.0


def cells(of: Standing, at: float | None = None) -> list[Cell]:
    """What there is to say, the most important first; `at`: now, by the clock of the rows, while the run goes on."""
    left, speed = None if at is None else of.left(at), of.speed()
    found = [("round", f"{of.number:,}" + (f" of {of.rounds:,}" if of.rounds else ""))]
    if left is not None and of.round != of.rounds:
        found.append(("left", lasting(round(left))))
    if of.asked and (at is not None or of.done) and not of.ended:
        found.append((of.work, f"{len(of.done):,}/{of.asked:,} sites"))
    names = sorted(of.metrics, key=_rank)
    values = [(name, short(of.metrics[name])) for name in names]
    rest = [("examples/s", f"{speed:,.0f}")] if speed else []
    rest += [("on", of.backend)] if of.backend else []
    return [*found, *values[:2], *rest, *values[2:]]


def _rank(name: str) -> tuple[bool, bool]:
    """The loss and metrics of the valid part first."""
    return name != plain(name), plain(name) != "loss"


def line(of: Standing, at: float | None = None, width: int | None = None) -> str:
    """The cells in one line, as many of them as fit into `width` characters."""
    found = ""
    for what, value in cells(of, at):
        more = f"{found}  {what} {value}" if found else f"{what} {value}"
        if width is not None and len(more) > width:
            break
        found = more
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in found)


def html(of: Standing, at: float | None = None) -> Html:
    """The bar and the cells as an element that needs no style sheet."""
    share = part(of)
    bar = [] if share is None else [el("progress", value=f"{share:.4f}", max=1, aria_label="rounds done")]
    shown = (el("span", el("small", what), " ", el("b", value)) for what, value in cells(of, at))
    return el("p", join([*bar, *shown], " \N{MIDDLE DOT} "), class_="standing")


def part(of: Standing) -> float | None:
    """The part of the rounds that is done, the open one's too; None where nobody can tell how many there will be."""
    if of.rounds is None:
        return 1.0 if of.ended else None
    return 1.0 if of.ended else min(1.0, (of.round + of.within()) / of.rounds)
