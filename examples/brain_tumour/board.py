"""The demo's live table: what a run's journal has said so far, one row a hospital; plain lines where there is no terminal.
Rows of the journal come in, as `foedus logs` prints them."""

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table


class Board:
    """`row` takes in a row of the journal, `tell` an event; `curves` holds (round, Dice) of each hospital's test slices."""

    def __init__(self, console, rounds):
        self.console, self.rounds, self.done, self.last, self.marks = console, rounds, 0, "", []
        self.state, self.sent, self.size, self.curves = {}, {}, {}, {}
        columns = TextColumn("round"), BarColumn(40), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn()
        self.bar = Progress(*columns, console=console)
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
            table.add_row(name, state, found, str(self.sent.get(name, 0)), f"{self.size.get(name, 0) / 1e6:.1f}")
        return Group(table, self.bar, f"last event: {self.last}")

    def say(self, text):
        if not self.live:
            self.console.print(text)

    def tell(self, text, mark=""):
        """Something that people should know; `mark` is its name in the picture."""
        self.last = f"{text} (after round {self.done})" if self.done else text
        self.marks += [(self.done, mark)] if mark else []
        self.say(self.last)

    def row(self, kind, body):
        """What a row of the journal changes."""
        if kind == "accepted":
            self.size[body["site"]] = self.size.get(body["site"], 0) + body["size"]
            self.sent[body["site"]] = self.sent.get(body["site"], 0) + (body["task"] == 0)  # task 1 is the evaluation
        elif kind == "roster":
            self.state |= {name: "has left" for name, state in self.state.items() if state == "trains"}
            self.state |= dict.fromkeys(body["sites"], "trains")
        elif kind == "event" and body["what"] != "joined":
            self.tell(f"{body['site']} {body['what']}".strip())
        elif kind == "step":
            self.step(body["round"] + 1, body["per_site"])

    def step(self, done, per_site):
        self.done = done
        self.bar.update(self.task, completed=done)
        for name, found in per_site.items():
            self.curves.setdefault(name, []).append((done, found["test_dice"]))
        if done % 3 == 0 or done == self.rounds:
            self.say(
                f"round {done} of {self.rounds}: Dice "
                + ", ".join(f"{n} {f['test_dice']:.2f}" for n, f in per_site.items())
            )
