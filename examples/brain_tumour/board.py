"""The demo's live table: what a run's journal has said so far, a row for each hospital; plain lines without a terminal.
Rows of the journal come in, as `foedus logs` prints them; hospital A is its site a."""

from collections import Counter

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

COLOURS = {"A": "#0072B2", "B": "#D55E00", "C": "#009E73", "D": "#CC79A7", "E": "#000000"}  # Okabe and Ito
MARKS = {"left": "leaves", "joined": "joins", "server restarted": "the server is killed"}


class Board:
    """`row` takes in a row of the journal, `tell` an event; `curves`: hospital -> (round, Dice of its test slices)."""

    def __init__(self, console, rounds):
        self.console, self.rounds, self.done, self.last, self.marks = console, rounds, 0, "", []
        self.state, self.curves, self.sent, self.size = {}, {}, Counter(), Counter()
        columns = TextColumn("round"), BarColumn(40), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn()
        self.bar = Progress(*columns, console=console, speed_estimate_period=20)
        self.task = self.bar.add_task("", total=rounds)
        self.live = Live(self, console=console, refresh_per_second=4) if console.is_terminal else None

    def __enter__(self):
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_):
        if self.live:
            self.live.stop()

    def __rich__(self):
        table = Table("hospital", "state", "Dice", "updates sent", "MB sent")
        for name, state in sorted(self.state.items()):
            found = f"{self.curves[name][-1][1]:.2f}" if name in self.curves else "–"
            table.add_row(name, state, found, str(self.sent[name]), f"{self.size[name] / 1e6:.1f}")
        return Group(table, self.bar, f"last event: {self.last}")

    def say(self, text):
        if not self.live:
            self.console.print(text, soft_wrap=True, highlight=False)

    def tell(self, text):
        """Something that people should know."""
        self.last = f"{text} (after round {self.done})" if self.done else text
        self.say(self.last)

    def told(self):
        """What crossed the network, for the journal has the size of every update."""
        return f"images sent: 0, parameters sent: {self.size.total() / 1e6:.0f} MB in {self.sent.total()} updates"

    def row(self, kind, body):
        """What a row of the journal changes."""
        if kind == "accepted":
            self.size[body["site"].upper()] += body["size"]
            self.sent[body["site"].upper()] += body["task"] == 0  # the other task of a round is the evaluation
        elif kind == "roster":
            self.state |= {name: "has left" for name, state in self.state.items() if state == "trains"}
            self.state |= dict.fromkeys(map(str.upper, body["sites"]), "trains")
        elif kind == "event":
            name, what = body["site"].upper(), body["what"]
            self.tell(f"{name} {what}".strip())
            if self.done and what in MARKS:
                self.marks.append((self.done, f"{name} {MARKS[what]}".strip()))
        elif kind == "step":
            self.step(body["round"] + 1, body["per_site"])

    def step(self, done, per_site):
        """A round is over."""
        self.done = done
        self.bar.update(self.task, completed=done)
        now = {name.upper(): found["test_dice"] for name, found in sorted(per_site.items()) if "test_dice" in found}
        for name, dice in now.items():
            self.curves.setdefault(name, []).append((done, dice))
        if done % 3 == 0 or done == self.rounds:
            said = ", ".join(f"{name} {dice:.2f}" for name, dice in now.items())
            self.say(f"round {done} of {self.rounds}: Dice {said}")

    def plot(self, ax):
        """Dice after each round, and when things happened."""
        for name, curve in sorted(self.curves.items()):
            ax.plot(*zip(*curve, strict=True), color=COLOURS[name], lw=2)
            ax.annotate(name, curve[-1], (5, -4), textcoords="offset points", color=COLOURS[name], weight="bold")
        for done, mark in self.marks:
            ax.axvline(done, color="0.4", lw=1.2, ls=":", zorder=0)
            ax.text(done - 0.15, 0.03, mark, rotation=90, va="bottom", ha="right", color="0.25")
        ax.set(title="Dice of the federated model after each round of this run", xlabel="round")
        ax.set(xlim=(0, self.rounds * 1.04), ylim=(0, 1))
        ax.spines[["top", "right"]].set_visible(False)
