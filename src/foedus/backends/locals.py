"""The sites' own states in a simulation, in one SQLite file: memory holds only those that were used last.
Plain data and Params come in; the round loop's checkpoints say what of it is kept."""

from __future__ import annotations

import sqlite3
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from foedus import frames
from foedus.core import Local
from foedus.store.sqlite import explained, use_wal

FILE = "locals.db"
MOST_BYTES, OBJECTS = 64 << 20, 3 << 10  # of states in memory; what Python's objects add to each, or a little more
PIECE = 1 << 28  # bytes of a row: a state may be larger than what SQLite keeps in one

TABLE = (
    "CREATE TABLE IF NOT EXISTS state (work TEXT NOT NULL, site TEXT NOT NULL, round INTEGER NOT NULL,"
    " piece INTEGER NOT NULL, value BLOB NOT NULL, PRIMARY KEY (work, site, round, piece))",
    "CREATE INDEX IF NOT EXISTS by_round ON state (round)",
)
NEWEST = """SELECT value FROM state WHERE work = :work AND site = :site
    AND round = (SELECT max(round) FROM state WHERE work = :work AND site = :site) ORDER BY piece"""
REPLACED = """DELETE FROM state WHERE rowid IN (SELECT old.rowid FROM state AS new JOIN state AS old
    ON old.work = new.work AND old.site = new.site AND old.round < new.round
    WHERE new.round > ? AND new.round <= ? AND new.piece = 0)"""


class Known(NamedTuple):
    """A state in memory, and its saved form; `new`: the file does not have it yet."""

    local: Local
    packed: bytes
    new: bool


class Locals:
    """The newest state of each work and site. What a checkpoint saw stays in the file until there is another one.

    What lies in `folder` already counts for nothing until `back` is called. Without a folder the states end with this
    object. Raises StoreError with the remedy if the disk is full.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.path = None if folder is None else folder / FILE
        self.round, self.kept, self.before = 0, -1, -1  # now; of the last checkpoint; of the one before it
        self.works: set[str] = set()  # that have states
        self.sizes: dict[str, int] = {}  # of each work, the bytes of the state that was kept last
        self.cache: OrderedDict[tuple[str, str], Known] = OrderedDict()
        self.bytes = 0
        self._db: sqlite3.Connection | None = None

    def of(self, work: str) -> Mapping[str, Local]:
        """site -> its state of this work, read when it is asked for."""
        return Own(self, work)

    def get(self, work: str, site: str) -> Local:
        """The state; None if the site has none."""
        if work not in self.works:
            return None
        known = self.cache.get((work, site))
        if known is not None:
            self.cache.move_to_end((work, site))
            return known.local
        rows = self._do(NEWEST, {"work": work, "site": site}).fetchall()
        return self._keep(work, site, b"".join(value for (value,) in rows), False) if rows else None

    def put(self, work: str, site: str, local: Local) -> None:
        """Keeps the state as after a restart; None changes nothing."""
        if local is None:
            self.sizes.setdefault(work, 0)
            return
        packed = frames.pack(local).bytes()
        self.works.add(work)
        self.sizes[work] = len(packed)
        self._keep(work, site, packed, True)

    def checkpoint(self) -> int:
        """The round whose states are on disk now, for `back`; what the last checkpoint replaced is let go."""
        self.write()
        if self._db is not None:
            self._do(REPLACED, (self.before, self.kept))
            self._do("COMMIT")
            self._do("BEGIN")
        if self.round > self.kept:
            self.before, self.kept = self.kept, self.round
        return self.round

    def back(self, round: int, states: Mapping[str, Mapping[str, Local]] | None = None) -> None:
        """All as it was at the checkpoint of that round (-1: at the beginning), with these states besides."""
        self.cache.clear()
        self.round, self.kept, self.before, self.bytes = max(round, 0), round, -1, 0
        if self._db is not None or (self.path is not None and self.path.exists()):
            self._do("DELETE FROM state WHERE round > ?", (round,))
            self.read()
        for work, own in (states or {}).items():
            for site, local in own.items():
                self.put(work, site, local)

    def read(self) -> None:
        """Takes what lies in the folder as it is: of a run that is over."""
        if self.path is not None and self.path.exists():
            self.works = {work for (work,) in self._do("SELECT DISTINCT work FROM state")}

    def write(self) -> None:
        """Brings what is new in memory to the file."""
        for (work, site), known in self.cache.items():
            if known.new:
                self._write(work, site, known.packed)
                self.cache[work, site] = known._replace(new=False)

    def _keep(self, work: str, site: str, packed: bytes, new: bool) -> Local:
        name, local = (work, site), frames.unpack(packed)
        old = self.cache.pop(name, None)
        self.bytes += OBJECTS + len(packed) - (OBJECTS + len(old.packed) if old else 0)
        self.cache[name] = Known(local, packed, new)
        while self.bytes > MOST_BYTES and len(self.cache) > 1:
            least, known = self.cache.popitem(last=False)
            self.bytes -= OBJECTS + len(known.packed)
            if known.new:
                self._write(*least, known.packed)
        return local

    def _write(self, work: str, site: str, packed: bytes) -> None:
        self._do("DELETE FROM state WHERE work = ? AND site = ? AND round > ?", (work, site, self.kept))
        view = memoryview(packed)
        for i in range(0, len(packed), PIECE):
            self._do("INSERT INTO state VALUES (?, ?, ?, ?, ?)", (work, site, self.round, i, view[i : i + PIECE]))

    def _do(self, statement: str, values: Any = ()) -> sqlite3.Cursor:
        try:
            if self._db is None:
                self._db = self._opened()
            return self._db.execute(statement, values)
        except sqlite3.Error as error:
            raise explained(str(self.path or "of a simulation"), error) from error

    def _opened(self) -> sqlite3.Connection:
        """The file, in a transaction that ends with the next checkpoint: a killed process leaves the last one."""
        db = sqlite3.connect("" if self.path is None else self.path, isolation_level=None)
        weakref.finalize(self, db.close)
        if self.path is not None:
            use_wal(db, str(self.path))
        db.execute("PRAGMA cache_size = -8192")  # kilobytes
        for statement in TABLE:
            db.execute(statement)
        db.execute("BEGIN")
        return db


class Own(Mapping[str, Local]):
    """site -> its state of one work."""

    def __init__(self, locals: Locals, work: str) -> None:
        self.locals, self.work = locals, work

    def get(self, site: str, default: Any = None) -> Any:
        found = self.locals.get(self.work, site)
        return default if found is None else found

    def __getitem__(self, site: str) -> Local:
        found = self.locals.get(self.work, site)
        if found is None:
            raise KeyError(site)
        return found

    def __iter__(self) -> Iterator[str]:
        self.locals.write()
        rows = self.locals._do("SELECT DISTINCT site FROM state WHERE work = ? ORDER BY site", (self.work,))
        return iter([site for (site,) in rows])

    def __len__(self) -> int:
        return sum(1 for _ in self)
