"""What people see of a command: notes and progress on standard error, results as JSON or text.
Only the standard library may come in; `report.live` shows progress."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any


def note(text: str) -> None:
    """A line for people, on standard error."""
    print(text, file=sys.stderr, flush=True)


_next = [""]


def next_step(text: str) -> None:
    """Notes what to do if this command is cut short from here on."""
    _next[0] = text


def noted_step() -> str:
    """What `next_step` heard last; "" where nothing was begun."""
    return _next[0]


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


def out(found: Mapping[str, Any], as_json: bool, lines: Sequence[str]) -> None:
    """The answer, on standard output: one JSON object, or a few lines for people."""
    for line in [json.dumps(found, default=str)] if as_json else lines:
        print(line, flush=True)


def columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table as lines, each column as wide as its longest cell."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in (head, *rows)]


def result_lines(found: Mapping[str, Any]) -> list[str]:
    """What a finished run ended with, for people: metrics with what is sure of them, and where everything is."""
    sure = "the same bits on the same build" if found["exact"] else "other runs come near, not to the bit"
    lines = [
        f"finished: {found['reason']}; {found['rounds']} rounds in {found['seconds']:.1f} s on backend "
        f"{found['backend']}",
        f"digest: {'' if found['exact'] else '≈ '}{found['digest']} ({sure})",
    ]
    if found["best_round"] is not None:
        lines.append(f"best model: round {found['best_round'] + 1}")
    values = [[name, f"{x:.4f}", _sure(found, name)] for name, x in found["metrics"].items() if x is not None]
    if values:
        lines += columns(["metric", "value", "95 % interval"], values)
    lines += found.get("absences", [])
    lines.append(f"models: {found['folder']}")
    return [*lines, f"report: {found['report']}"] if "report" in found else lines


def _sure(found: Mapping[str, Any], name: str) -> str:
    """A metric's interval, and the error of its bins where it has any."""
    low, high = found["intervals"].get(name, (None, None))
    interval = "-" if low is None else f"{low:.4f} to {high:.4f}"
    return f"{interval} (bins: ± {found['bounds'][name]:.2g})" if name in found["bounds"] else interval
