"""`make demo`: a real federation on this machine. Hospitals learn together, one leaves, one joins, the server is killed.
What happens is read from the journal; `--folder` gets picture.png, report.html and the run. Needs foedus[server,torch,examples]."""

import argparse
import json
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import foedus as fd
import figures
from data import PIXEL, read
from foedus.loopback import federation

ROOT = Path(__file__).resolve().parents[2]
KILLED = 22  # after this many rounds
COLOURS = {"A": "#0072B2", "B": "#D55E00", "C": "#009E73", "D": "#CC79A7", "E": "#000000"}  # Okabe and Ito
LABELS = np.array([(0, 0, 0, 0), (0.34, 0.71, 0.91, 0.65), (0.9, 0.62, 0, 0.65), (0.8, 0.47, 0.65, 0.65)])


class Board:
    """What the journal has said so far: a live table in a terminal, lines elsewhere."""

    def __init__(self, console, rounds):
        self.console, self.rounds, self.done, self.last = console, rounds, 0, "the hospitals get ready"
        self.state, self.sent, self.size, self.curves, self.marks = {}, {}, {}, {}, []
        columns = TextColumn("round"), BarColumn(40), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("left")
        self.bar = Progress(*columns, console=console)
        self.task = self.bar.add_task("", total=rounds)

    def __rich__(self):
        table = Table("hospital", "state", "Dice", "updates sent", "MB sent")
        for name, state in sorted(self.state.items()):
            dice = f"{self.curves[name][-1][1]:.2f}" if name in self.curves else "–"
            table.add_row(name, state, dice, str(self.sent.get(name, 0)), f"{self.size.get(name, 0) / 1e6:.1f}")
        return Group(table, self.bar, f"last event: {self.last}")

    def tell(self, text, mark=""):
        """Something that people should know; `mark` is its name in the picture."""
        self.last = f"{text} (after round {self.done})" if self.done else text
        self.marks += [(self.done, mark)] if mark else []
        if not self.console.is_terminal:
            self.console.print(self.last)

    def row(self, kind, body):
        """A row of the journal."""
        if kind == "accepted":
            self.size[body["site"]] = self.size.get(body["site"], 0) + body["size"]
            self.sent[body["site"]] = self.sent.get(body["site"], 0) + (body["task"] == 0)
        elif kind == "roster":
            self.state = {name: "trains" if name in body["sites"] else "has left" for name in {*self.state, *body["sites"]}}
        elif kind == "event" and body["what"] in ("joined", "left", "server restarted"):
            self.tell(f"{body['site'] or 'the'} {body['what']}".replace("the server", "the server was"))
        elif kind == "step":
            self.done = body["round"] + 1
            self.bar.update(self.task, completed=self.done)
            for name, found in body["per_site"].items():
                self.curves.setdefault(name, []).append((self.done, found["test_dice"]))
            if not self.console.is_terminal and self.done % 3 == 0:
                found = ", ".join(f"{n} {c[-1][1]:.2f}" for n, c in sorted(self.curves.items()) if c[-1][0] == self.done)
                self.console.print(f"round {self.done} of {self.rounds}: Dice {found}")


def train(made, folders, board, seed, rounds):
    """The Result of the federation's run, in whose middle things happen."""
    made.start_server()
    for name in "ABC":
        made.join(name, {"data": folders[name]})
    made.await_sites("ABC")
    run = made.remote().submit(figures.JOB, {"rounds": str(rounds)}, seed=seed)
    for kind, news in run.watch():
        if kind == "state" and news[0] in ("paused", "failed", "stopped"):
            raise fd.FoedusError(f"the run has {news[0]}: {news[1]}; the server's log ends: {made.log('server')[-500:]}")
        if kind == "row":
            board.row(news[2], news[3])
        if kind == "row" and news[2] == "step":
            meddle(made, folders, board)
    return run.pull()


def meddle(made, folders, board):
    """The three events."""
    at = {figures.LEFT: "leave", figures.LEFT + 1: "join", KILLED: "kill"}.get(board.done * figures.ROUNDS // board.rounds)
    ...
