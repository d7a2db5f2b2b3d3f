"""A store in one SQLite file by the standard library alone: the journals of agents and of simulations.
Only the store's contract may come in; a store is never carried over a fork."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from foedus import faults
from foedus.errors import StoreError
from foedus.files import fsync_dir, make_folder
from foedus.store import START, Entry, Fenced, Head, Record, Row, canonical, chained, read_row
from foedus.store.lease import NOBODY, Lease, check_free

STEPS: tuple[tuple[str, ...], ...] = (  # schema version n is the first n steps
    (
        "CREATE TABLE journal (run TEXT NOT NULL, seq INTEGER NOT NULL, at REAL NOT NULL, kind TEXT NOT NULL,"
        " body TEXT NOT NULL, chain TEXT NOT NULL, PRIMARY KEY (run, seq)) WITHOUT ROWID",
        "CREATE TABLE lease (run TEXT NOT NULL PRIMARY KEY, epoch INTEGER NOT NULL, holder TEXT NOT NULL,"
        " until REAL NOT NULL) WITHOUT ROWID",
        "CREATE TABLE document (collection TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL,"
        " PRIMARY KEY (collection, key)) WITHOUT ROWID",
    ),
)
NAME = 0x666F6564  # "foed": what SQLite calls the application id of the file
BUSY = 30.0  # seconds to wait for another process's write

REMEDIES = {
    sqlite3.SQLITE_FULL: "free disk space and start again; what was stored before is safe",
    sqlite3.SQLITE_IOERR: "check the disk, its free space and quota; what was stored before is safe",
    sqlite3.SQLITE_READONLY: "make the file and its folder writable for this user",
    sqlite3.SQLITE_CANTOPEN: "make the folder writable for this user, or name another place",
    sqlite3.SQLITE_NOTADB: "this file is no foedus store: move it away, or name another place",
    sqlite3.SQLITE_CORRUPT: "the file is damaged: restore it from a backup",
    sqlite3.SQLITE_BUSY: f"another process has been writing for {BUSY:.0f} s: end it and try again",
}


def explained(where: str, error: sqlite3.Error) -> StoreError:
    """The StoreError that names the place, what SQLite said, and the remedy."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return StoreError(f"store {where}: {error}; {REMEDIES.get(code, 'this is a fault of foedus or of the file')}")


def use_wal(db: sqlite3.Connection, where: str) -> None:
    """Brings the file to WAL mode; waits where SQLite does not, for others that open the same new file."""
    last = time.monotonic() + BUSY
    while True:
        try:
            mode = _pragma(db, "journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > last:
                raise explained(where, error) from error
        time.sleep(0.005)
    if mode != "wal":
        raise StoreError(f"store {where}: this file system cannot share memory; put the store on a local disk")


class SqliteStore:
    """A Store in the file `path`, made if it is not there.

    With `durable=False` a killed process loses nothing, but a power cut may take the last transactions.
    StoreError if the file cannot be opened or was made by a newer foedus.
    """

    def __init__(self, path: str | Path, durable: bool = True, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock = Path(path), clock
        self._writing, self._reading = threading.RLock(), threading.Lock()
        self._owner, self._journaled = 0, False  # the thread inside a transaction; whether it appended
        make_folder(self._path.parent, durable)
        try:
            self._writer = _connect(self._path, durable)
            self._reader = _connect(self._path, durable)  # so that no reader waits for an fsync
        except sqlite3.Error as error:
            raise explained(str(self._path), error) from error

    def append(self, run: str, rows: Sequence[Entry], epoch: int) -> list[Record]:
        with self.transaction():
            self._own(run, epoch)
            new = chained(self.head(run), rows, self._clock())
            self._writer.executemany("INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?)", [(run, *one) for one in new])
            self._journaled = True
        return new

    def rows(self, run: str, after: int = 0, kinds: Collection[str] | None = None) -> list[Row]:
        marks = "" if kinds is None else f" AND kind IN ({','.join('?' * len(kinds))})"
        query = f"SELECT seq, at, kind, body, chain FROM journal WHERE run = ? AND seq > ?{marks} ORDER BY seq"
        return [read_row(*record) for record in self._select(query, run, after, *(kinds or ()))]

    def head(self, run: str) -> Head:
        found = self._select("SELECT seq, chain FROM journal WHERE run = ? ORDER BY seq DESC LIMIT 1", run)
        return Head(*found[0]) if found else START

    def runs(self) -> list[str]:
        query = "SELECT run FROM lease WHERE EXISTS (SELECT 1 FROM journal WHERE journal.run = lease.run) ORDER BY run"
        return [run for (run,) in self._select(query)]

    def acquire(self, run: str, holder: str, seconds: float) -> int:
        with self.transaction():
            found = self._select("SELECT epoch, holder, until FROM lease WHERE run = ?", run)
            lease, now = Lease(*found[0]) if found else Lease(0, NOBODY, 0.0), self._clock()
            check_free(run, lease, holder, now)
            record = (run, lease.epoch + 1, holder, now + seconds)
            self._writer.execute("INSERT OR REPLACE INTO lease VALUES (?, ?, ?, ?)", record)
        return lease.epoch + 1

    def renew(self, run: str, epoch: int, seconds: float) -> None:
        with self.transaction():
            self._own(run, epoch)
            self._writer.execute("UPDATE lease SET until = ? WHERE run = ?", (self._clock() + seconds, run))

    def release(self, run: str, epoch: int) -> None:
        with self.transaction():
            self._writer.execute("UPDATE lease SET holder = ? WHERE run = ? AND epoch = ?", (NOBODY, run, epoch))

    def put(self, table: str, key: str, value: Mapping[str, Any]) -> None:
        with self.transaction():
            record = (table, key, canonical(dict(value)))
            self._writer.execute("INSERT OR REPLACE INTO document VALUES (?, ?, ?)", record)

    def add(self, table: str, key: str, value: Mapping[str, Any]) -> bool:
        with self.transaction():
            record = (table, key, canonical(dict(value)))
            return self._writer.execute("INSERT OR IGNORE INTO document VALUES (?, ?, ?)", record).rowcount == 1

    def get(self, table: str, key: str) -> dict[str, Any] | None:
        found = self._select("SELECT value FROM document WHERE collection = ? AND key = ?", table, key)
        value: dict[str, Any] | None = json.loads(found[0][0]) if found else None
        return value

    def delete(self, table: str, key: str) -> None:
        with self.transaction():
            self._writer.execute("DELETE FROM document WHERE collection = ? AND key = ?", (table, key))

    def items(self, table: str, prefix: str = "") -> list[tuple[str, dict[str, Any]]]:
        query = "SELECT key, value FROM document WHERE collection = ? AND substr(key, 1, ?) = ? ORDER BY key"
        return [(key, json.loads(value)) for key, value in self._select(query, table, len(prefix), prefix)]

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with self._writing:
            try:
                with self._joined() if self._inside() else self._whole():
                    yield
            except sqlite3.Error as error:
                raise explained(str(self._path), error) from error

    def close(self) -> None:
        with self._writing, self._reading:
            self._reader.close()
            self._writer.close()

    def _inside(self) -> bool:
        return self._owner == threading.get_ident()

    @contextmanager
    def _whole(self) -> Iterator[None]:
        self._owner, self._journaled = threading.get_ident(), False
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            yield
            self._point("store.before-commit")
            self._writer.execute("COMMIT")  # fails if SQLite has undone all already, as it may when the disk is full
        except BaseException:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            raise
        finally:
            self._owner = 0
        self._point("store.after-commit")

    @contextmanager
    def _joined(self) -> Iterator[None]:
        if not self._writer.in_transaction:
            raise StoreError(f"store {self._path}: this transaction was undone by an earlier error; leave it")
        self._writer.execute("SAVEPOINT joined")
        try:
            yield
        except BaseException:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK TO joined")
            raise
        finally:
            if self._writer.in_transaction:
                self._writer.execute("RELEASE joined")

    def _point(self, name: str) -> None:
        if self._journaled:
            faults.point(name)

    def _select(self, query: str, *values: object) -> list[Any]:
        try:
            if self._inside():
                return self._writer.execute(query, values).fetchall()
            with self._reading:
                return self._reader.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise explained(str(self._path), error) from error

    def _own(self, run: str, epoch: int) -> None:
        query = "SELECT 1 FROM lease WHERE run = ? AND epoch = ? AND holder <> ?"
        if not self._select(query, run, epoch, NOBODY):
            raise Fenced(run, epoch)


def _connect(path: Path, durable: bool) -> sqlite3.Connection:
    """A connection to the file, in WAL mode and of the present schema; no file is left open by an error."""
    with ExitStack() as undo:
        db = sqlite3.connect(path, timeout=BUSY, isolation_level=None, check_same_thread=False)
        undo.enter_context(closing(db))
        db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        db.execute("PRAGMA wal_autocheckpoint = 4000")  # pages; where nothing else syncs, a checkpoint does
        _migrate(db, path)
        use_wal(db, str(path))
        undo.pop_all()
    return db


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    """Brings the file to the present schema; StoreError, and no change, for a newer one and for what is not ours."""
    if (_pragma(db, "application_id"), _pragma(db, "user_version")) == (NAME, len(STEPS)):
        return
    db.execute("BEGIN IMMEDIATE")  # and look again: another process may have been faster
    version = _pragma(db, "user_version")
    if _pragma(db, "application_id") != NAME and db.execute("SELECT 1 FROM sqlite_master").fetchone():
        raise StoreError(f"store {path}: {REMEDIES[sqlite3.SQLITE_NOTADB]}")
    if version > len(STEPS):
        raise StoreError(
            f"store {path}: schema {version} is newer than {len(STEPS)}, which foedus reads here; upgrade foedus"
        )
    for statement in chain.from_iterable(STEPS[version:]):
        db.execute(statement)
    db.execute(f"PRAGMA application_id = {NAME}")
    db.execute(f"PRAGMA user_version = {len(STEPS)}")
    db.execute("COMMIT")
    fsync_dir(path.parent)


def _pragma(db: sqlite3.Connection, text: str) -> Any:
    return db.execute(f"PRAGMA {text}").fetchone()[0]
