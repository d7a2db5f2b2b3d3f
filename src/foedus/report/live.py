"""Live progress: a bar on a terminal, an element in a notebook, a line now and then elsewhere; all of one Standing.
Nothing of it has a thread: it is drawn when something is heard, and then not more often than a screen asks for.

A run's workers may be forks of this process, and would wait for ever for what another thread had locked.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from importlib import import_module
from typing import Any, Protocol

from foedus.journal import Journal, Log
from foedus.progress import hearing
from foedus.report.standing import Standing, html, line, part

BAR, SHARE = 24, 8  # characters of the bar at most; a line has SHARE times as many
PATIENCE = 0.5  # seconds of a run of which nothing is drawn: it may be over before anybody looks
Told = Callable[[str, Mapping[str, Any]], None]


class Screen(Protocol):
    """Where a Standing is shown, at most once in `every` seconds."""

    every: float

    def due(self, of: Standing) -> bool: ...  # whether a round that is finished is shown at once
    def draw(self, of: Standing, at: float) -> None: ...
    def end(self, of: Standing, at: float) -> None: ...  # the last time


class Live:
    """Hears of rows and sites and has them drawn."""

    def __init__(self, screen: Screen, of: Standing, clock: Callable[[], float] = time.monotonic) -> None:
        self.screen, self.of, self.clock = screen, of, clock
        self.next = clock() + max(PATIENCE, screen.every)

    def hear(self, kind: str, body: Mapping[str, Any]) -> None:
        """A row of the run's journal."""
        at = self.clock()
        self.of.hear(kind, body, at)
        if at >= self.next or (kind == "step" and self.screen.due(self.of)):
            self._draw(at)

    def catch_up(self, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """Takes in rows that were there before, of which nothing is shown."""
        for kind, body in rows:
            self.of.hear(kind, body, self.clock())

    def site(self, name: str) -> None:
        """A site of a simulation is done."""
        self.of.done.add(name)
        at = self.clock()
        if at >= self.next:
            self._draw(at)

    def _draw(self, at: float) -> None:
        with suppress(OSError, ValueError):  # a terminal that is gone ends no run
            self.screen.draw(self.of, at)
        self.next = self.clock() + self.screen.every

    def end(self) -> None:
        with suppress(OSError, ValueError):
            self.screen.end(self.of, self.clock())


class Lines:
    """Plain lines: one for each tenth of the rounds, or for 1, 2, 5, 10, 20 … of them; in slow runs one a minute."""

    every = 60.0

    def __init__(self, write: Callable[[str], object]) -> None:
        self.write, self.last = write, ""

    def due(self, of: Standing) -> bool:
        if of.rounds is None:
            return str(of.round).rstrip("0") in ("1", "2", "5")
        return of.round % max(1, of.rounds // 10) == 0 or of.round == of.rounds

    def draw(self, of: Standing, at: float) -> None:
        self._say(line(of, at))

    def end(self, of: Standing, at: float) -> None:
        """The last round, where it was not told: a rule ended the run."""
        if of.ended and not self.last.startswith(line(of).partition("  ")[0]):
            self._say(line(of))

    def _say(self, text: str) -> None:
        self.last = text
        self.write(f"{text}\n")


class Terminal:
    """A bar that is drawn over itself; what others print meanwhile goes above it."""

    every = 0.2

    def __init__(self, stream: Any, width: Callable[[], int] | None = None) -> None:
        self.stream, self.width = stream, width or (lambda: _columns(stream))
        self.shown = False  # whether the bar is in the line of the cursor
        self.drawn = False  # whether it ever was
        self.free = True  # whether that line is free for it
        self.full, self.empty = ("━", "╌") if _can(stream, "━╌") else ("#", "-")

    def due(self, of: Standing) -> bool:
        return False

    def draw(self, of: Standing, at: float) -> None:
        if not self.free:
            return
        room, share = self.width() - 1, part(of)
        bar = "" if share is None else self._bar(share, min(BAR, room // SHARE)) + " "
        text = line(of, at, room - len(bar))
        while text and _wide(bar + text) > room:
            text = text[:-1]
        self._write(f"\r{bar}{text}\x1b[K")  # all at once, and nothing is cleared before it: so it does not flicker
        self.shown = self.drawn = True

    def _bar(self, share: float, size: int) -> str:
        full = int(share * size)
        return self.full * full + self.empty * (size - full)

    def end(self, of: Standing, at: float) -> None:
        """Leaves the last line where it is, if a bar was ever drawn."""
        if self.drawn:
            self.draw(of, at)
            self._write("\n" if self.shown else "")
            self.shown = False

    def clear(self) -> None:
        """Takes the bar away, for what is printed now."""
        if self.shown:
            self._write("\r\x1b[K")
            self.shown = False

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()


class Above:
    """A stream whose text is printed above the bar; everything else is the stream's own."""

    def __init__(self, stream: Any, terminal: Terminal) -> None:
        self.stream, self.terminal = stream, terminal

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> Any:
        if not text:
            return 0
        self.terminal.clear()
        self.terminal.free = text.endswith(("\n", "\r"))
        found = self.stream.write(text)
        self.stream.flush()
        return found

    def writelines(self, lines: Sequence[str]) -> None:
        for text in lines:
            self.write(text)


class Notebook:
    """An element under the cell, updated in place."""

    every = 0.5

    def __init__(self) -> None:
        self.handle: Any = None

    def due(self, of: Standing) -> bool:
        return False

    def draw(self, of: Standing, at: float) -> None:
        display: Any = import_module("IPython.display").display
        shown = {"text/html": str(html(of, at)), "text/plain": line(of, at)}
        if self.handle is None:
            self.handle = display(shown, raw=True, display_id=True)
        else:
            self.handle.update(shown, raw=True)

    def end(self, of: Standing, at: float) -> None:
        if self.handle is not None:
            self.draw(of, at)


class Heard:
    """A Log that tells of each row that was appended."""

    def __init__(self, log: Log, told: Told) -> None:
        self.log, self.told = log, told

    def append(self, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        self.log.append(rows)
        for kind, body in rows:
            self.told(kind, body)

    def rows(self) -> Sequence[tuple[str, Mapping[str, Any]]]:
        return self.log.rows()


@contextmanager
def followed(journal: Journal, wanted: bool | None, told: Told = lambda kind, body: None) -> Iterator[None]:
    """Inside the block a simulation is shown, by its journal's rows, which `told` hears, and by sites that are done."""
    with shown(wanted) as live, hearing(live.site if live else None):
        journal.log = Heard(journal.log, told)
        if live:
            live.catch_up(journal.log.rows())
            journal.log = Heard(journal.log, live.hear)
        yield


@contextmanager
def shown(wanted: bool | None) -> Iterator[Live | None]:
    """What hears of a run inside the block; None where nothing is to be shown.

    None as `wanted` shows in a notebook and on a terminal and nowhere else; True says lines elsewhere.
    """
    screen = _screen(wanted)
    if screen is None:
        yield None
        return
    live = Live(screen, Standing())
    with ExitStack() as open:
        if isinstance(screen, Terminal):
            _lift(screen, open)
        try:
            yield live
        finally:
            live.end()


def _screen(wanted: bool | None) -> Screen | None:
    if wanted is False:
        return None
    if _in_notebook():
        return Notebook()
    if sys.stderr is None:  # it was closed before Python began
        return None
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        return Terminal(sys.stderr)
    return Lines(_on_stderr) if wanted else None


def _on_stderr(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _lift(terminal: Terminal, open: ExitStack) -> None:
    """Has what is printed on the terminal go above the bar."""
    open.enter_context(redirect_stderr(Above(sys.stderr, terminal)))
    if sys.stdout is not None and sys.stdout.isatty():
        open.enter_context(redirect_stdout(Above(sys.stdout, terminal)))


def _in_notebook() -> bool:
    """Whether a kernel runs this; IPython on a terminal has none."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None


def _columns(stream: Any) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or shutil.get_terminal_size().columns
    except (OSError, ValueError):
        return shutil.get_terminal_size().columns


def _can(stream: Any, text: str) -> bool:
    try:
        text.encode(getattr(stream, "encoding", None) or "ascii")
    except (LookupError, UnicodeEncodeError):
        return False
    return True


def _wide(text: str) -> int:
    """How many columns the text takes."""
    return len(text) + sum(unicodedata.east_asian_width(c) in "WF" for c in text)
