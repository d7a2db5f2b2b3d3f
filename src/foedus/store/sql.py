"""A store in a database of the server, by SQLAlchemy Core: an SQLite file by default, PostgreSQL by its URL.
Only the server may come in; agents and simulations use foedus.store.sqlite."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from foedus import faults
from foedus.errors import Missing, StoreError
from foedus.files import fsync_dir, make_folder
from foedus.store import START, Entry, Fenced, Head, Record, Row, canonical, chained, migrations, read_row
from foedus.store.lease import NOBODY, Lease, check_free
from foedus.store.sqlite import BUSY, explained, use_wal

tables = sa.MetaData()
journal = sa.Table(
    "journal",
    tables,
    sa.Column("run", sa.Text, primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("chain", sa.Text, nullable=False),
)
lease = sa.Table(
    "lease",
    tables,
    sa.Column("run", sa.Text, primary_key=True),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("until", sa.Double, nullable=False),
)
document = sa.Table(
    "document",
    tables,
    sa.Column("collection", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)


class _Here(threading.local):
    """What this thread has open."""

    connection: sa.Connection | None = None
    journaled = False
    failed = False


class SqlStore:
    """A Store in the database at `url` (`sqlite:///PATH` or `postgresql://USER@HOST/NAME`), its tables made or updated.

    StoreError if it cannot be opened or was made by a newer foedus; Missing if the database's driver is.
    """

    def __init__(self, url: str, clock: Callable[[], float] = time.time) -> None:
        self._engine, self._clock, self._here = _engine(url), clock, _Here()
        self._where = self._engine.url.render_as_string(hide_password=True)
        self._sqlite = self._engine.dialect.name == "sqlite"
        self._insert = sqlite.insert if self._sqlite else postgresql.insert
        # SQLite has one writer at a time, and waiting here is shorter than waiting there
        self._writing: AbstractContextManager[Any] = threading.RLock() if self._sqlite else nullcontext()
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def append(self, run: str, rows: Sequence[Entry], epoch: int) -> list[Record]:
        with self.transaction():
            self._own(run, epoch)
            new = chained(self.head(run), rows, self._clock())
            if new:
                names = ("run", "seq", "at", "kind", "body", "chain")
                self._run(sa.insert(journal), [dict(zip(names, (run, *one), strict=True)) for one in new])
                self._here.journaled = True
        return new

    def rows(self, run: str, after: int = 0, kinds: Collection[str] | None = None) -> list[Row]:
        columns = (journal.c.seq, journal.c.at, journal.c.kind, journal.c.body, journal.c.chain)
        query = sa.select(*columns).where(journal.c.run == run, journal.c.seq > after).order_by(journal.c.seq)
        if kinds is not None:
            query = query.where(journal.c.kind.in_(kinds))
        return [read_row(*record) for record in self._run(query)]

    def head(self, run: str) -> Head:
        query = sa.select(journal.c.seq, journal.c.chain).where(journal.c.run == run)
        found = self._run(query.order_by(journal.c.seq.desc()).limit(1))
        return Head(*found[0]) if found else START

    def runs(self) -> list[str]:
        query = sa.select(lease.c.run).where(sa.exists().where(journal.c.run == lease.c.run))
        return sorted(run for (run,) in self._run(query))

    def acquire(self, run: str, holder: str, seconds: float) -> int:
        with self.transaction():
            free = {"run": run, **Lease(0, NOBODY, 0.0)._asdict()}
            self._run(self._insert(lease).values(free).on_conflict_do_nothing())
            query = sa.select(lease.c.epoch, lease.c.holder, lease.c.until).where(lease.c.run == run)
            old, now = Lease(*self._run(query.with_for_update())[0]), self._clock()
            check_free(run, old, holder, now)
            new = Lease(old.epoch + 1, holder, now + seconds)
            self._run(sa.update(lease).where(lease.c.run == run).values(new._asdict()))
        return new.epoch

    def renew(self, run: str, epoch: int, seconds: float) -> None:
        with self.transaction():
            self._own(run, epoch)
            self._run(sa.update(lease).where(lease.c.run == run).values(until=self._clock() + seconds))

    def release(self, run: str, epoch: int) -> None:
        with self.transaction():
            ours = sa.update(lease).where(lease.c.run == run, lease.c.epoch == epoch)
            self._run(ours.values(holder=NOBODY))

    def put(self, table: str, key: str, value: Mapping[str, Any]) -> None:
        text = canonical(dict(value))
        with self.transaction():
            new = self._insert(document).values(collection=table, key=key, value=text)
            self._run(new.on_conflict_do_update(index_elements=["collection", "key"], set_={"value": text}))

    def add(self, table: str, key: str, value: Mapping[str, Any]) -> bool:
        text = canonical(dict(value))
        with self.transaction():
            new = self._insert(document).values(collection=table, key=key, value=text)
            return bool(self._run(new.on_conflict_do_nothing().returning(document.c.key)))

    def get(self, table: str, key: str) -> dict[str, Any] | None:
        found = self._run(sa.select(document.c.value).where(*_at(table, key)))
        value: dict[str, Any] | None = json.loads(found[0][0]) if found else None
        return value

    def delete(self, table: str, key: str) -> None:
        with self.transaction():
            self._run(sa.delete(document).where(*_at(table, key)))

    def items(self, table: str, prefix: str = "") -> list[tuple[str, dict[str, Any]]]:
        starts = sa.func.substr(document.c.key, 1, len(prefix)) == prefix
        query = sa.select(document.c.key, document.c.value).where(document.c.collection == table, starts)
        return sorted((key, json.loads(value)) for key, value in self._run(query))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        connection = self._here.connection
        with self._explained(), self._whole() if connection is None else self._joined(connection):
            yield

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _whole(self) -> Iterator[None]:
        here = self._here
        with self._writing, self._engine.connect() as connection:  # which undoes what is not committed
            if self._sqlite:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            here.connection, here.journaled, here.failed = connection, False, False
            try:
                yield
                self._check()
                self._point("store.before-commit")
                connection.commit()
            finally:
                here.connection = None
            self._point("store.after-commit")

    @contextmanager
    def _joined(self, connection: sa.Connection) -> Iterator[None]:
        self._check()
        savepoint = connection.begin_nested()
        try:
            yield
        except BaseException:
            if not self._here.failed:
                savepoint.rollback()
            raise
        savepoint.commit()

    def _check(self) -> None:
        if self._here.failed:
            raise StoreError(f"store {self._where}: this transaction was undone by an earlier error; leave it")

    def _point(self, name: str) -> None:
        if self._here.journaled:
            faults.point(name)

    def _run(self, statement: sa.Executable, records: list[dict[str, Any]] | None = None) -> Sequence[Any]:
        with self._explained(), self._connection() as connection:
            result = connection.execute(statement, records)
            return result.all() if result.returns_rows else []

    def _connection(self) -> AbstractContextManager[sa.Connection]:
        ours = self._here.connection
        return self._engine.connect() if ours is None else nullcontext(ours)

    def _open(self) -> None:
        with self.transaction(), self._connection() as connection:
            migrations.upgrade(connection, self._where)
        if self._sqlite:
            with self._explained(), closing(self._engine.raw_connection()) as connection:
                use_wal(cast(sqlite3.Connection, connection.driver_connection), self._where)
            fsync_dir(_file(self._engine.url).parent)

    def _own(self, run: str, epoch: int) -> None:
        ours = sa.select(lease.c.run).where(lease.c.run == run, lease.c.epoch == epoch, lease.c.holder != NOBODY)
        if not self._run(ours.with_for_update()):
            raise Fenced(run, epoch)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            self._here.failed = True
            raise _store_error(self._where, error) from error


def _at(table: str, key: str) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    return document.c.collection == table, document.c.key == key


def _store_error(where: str, error: SQLAlchemyError) -> StoreError:
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, sqlite3.Error):
        return explained(where, cause)
    return StoreError(f"store {where}: {cause}; check that the database server runs and lets this user in")


def _engine(url: str) -> sa.Engine:
    try:
        address = sa.make_url(url)
        if address.get_backend_name() == "sqlite" and address.database not in (None, "", ":memory:"):
            return _sqlite_engine(address)
        if address.get_backend_name() == "postgresql":
            return sa.create_engine(address, pool_pre_ping=True)
    except ArgumentError as error:
        raise StoreError(f"store: {error}") from error
    except ModuleNotFoundError as error:
        raise Missing(str(error.name), "postgresql") from error
    where = address.render_as_string(hide_password=True)
    raise StoreError(f"store {where}: name an SQLite file (sqlite:///PATH) or PostgreSQL (postgresql://USER@HOST/NAME)")


def _sqlite_engine(address: sa.URL) -> sa.Engine:
    make_folder(_file(address).parent)
    engine = sa.create_engine(address, connect_args={"timeout": BUSY}, max_overflow=-1)
    sa.event.listen(engine, "connect", _prepare)
    return engine


def _file(address: sa.URL) -> Path:
    return Path(str(address.database)).absolute()


def _prepare(db: sqlite3.Connection, _: object) -> None:
    db.isolation_level = None  # transactions are ours: the driver's own BEGIN would come too late to keep others out
    db.execute("PRAGMA synchronous = FULL")
