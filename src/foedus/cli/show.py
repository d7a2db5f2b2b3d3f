"""What people see while they wait: progress as a bar in a terminal, as plain lines elsewhere; results as JSON or text.
Only rich may come in, and only where there is a terminal."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any


def note(text: str) -> None:
    """A line for people, on standard error."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Inside the block, whatever the Job's code or its processes print goes to standard error."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def out(found: Mapping[str, Any], as_json: bool, lines: Sequence[str] | None = None) -> None:
    """One JSON object on standard output, or a few lines for people."""
    if as_json:
        print(json.dumps(found, default=str))
        return
    for line in lines if lines is not None else _lines(found):
        note(line)


def _lines(found: Mapping[str, Any]) -> list[str]:
    flat = {k: v for k, v in found.items() if k not in ("per_site", "metrics") and v not in (None, "", {})}
    metrics = found.get("metrics", {})
    lines = [f"{name:>14}: {value}" for name, value in flat.items()]
    return lines + [f"{name:>14}: {value:.4f}" for name, value in metrics.items() if value is not None]


class Progress:
    """Hears of every finished round; a bar with the newest metrics in a terminal, else a line now and then."""

    def __init__(self, rounds: int | None) -> None:
        self.rounds = rounds
        self.bar: Any = None
        self.task: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("round"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
            )
            self.bar = Bar(*columns, console=Console(stderr=True))
            self.bar.start()
            self.task = self.bar.add_task("", total=self.rounds)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, line: Mapping[str, Any]) -> None:
        shown = "  ".join(f"{k} {v:.4f}" for k, v in line.items() if k not in ("round", "seconds") and v is not None)
        if self.bar is not None:
            self.bar.update(self.task, completed=line["round"] + 1, description=shown)
            return
        number, every = line["round"] + 1, max(1, (self.rounds or 10) // 10)
        if number % every == 0 or number == self.rounds:
            note(f"round {number}{f' of {self.rounds}' if self.rounds else ''}: {shown}")
