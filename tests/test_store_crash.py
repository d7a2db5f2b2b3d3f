"""Every store under SIGKILL, several processes, a full disk, and files that are not its own or of another version."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from foedus.errors import Missing, StoreError
from foedus.store import Head, Held, Store, read_row, sql, sqlite, verify_chain
from foedus.store.lease import alive, this_process
from foedus.store.sql import SqlStore
from foedus.store.sqlite import SqliteStore

GOLDEN = Path(__file__).parent / "golden"
KINDS = ("sqlite", "sqlite-not-durable", "sql")
IMPORTS = """
import sys
from functools import partial
from foedus.store.lease import this_process
kind, path = sys.argv[1:]
if kind == "sql":
    from foedus.store.sql import SqlStore
    opened = partial(SqlStore, "sqlite:///" + path)
else:
    from foedus.store.sqlite import SqliteStore
    opened = partial(SqliteStore, path, durable=kind == "sqlite")
"""


def opened(kind: str, path: Path) -> Store:
    return SqlStore(f"sqlite:///{path}") if kind == "sql" else SqliteStore(path, durable=kind == "sqlite")


def start(kind: str, path: Path, code: str, **env: str) -> subprocess.Popen[str]:
    """A real process that runs `code`, where `opened()` is the store."""
    return subprocess.Popen(
        [sys.executable, "-c", IMPORTS + code, kind, str(path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def together(names: str, kind: str, path: Path, code: str) -> list[int]:
    """The exit codes of one process per name, which all go on at once when each of them has said that it is ready."""
    with ExitStack() as stack:
        children = [stack.enter_context(start(kind, path, code)) for _ in names]
        assert [line(child) for child in children] == ["ready"] * len(names)
        for child, name in zip(children, names, strict=True):
            assert child.stdin is not None
            child.stdin.write(f"{name}\n")
            child.stdin.flush()
        return [child.wait(20) for child in children]


def pragma(store: Store, text: str) -> Any:
    """Asks or tells the connection that writes."""
    if isinstance(store, SqliteStore):
        return store._writer.execute(f"PRAGMA {text}").fetchall()
    assert isinstance(store, SqlStore)
    with store._connection() as connection:
        found = connection.exec_driver_sql(f"PRAGMA {text}")
        return found.fetchall() if found.returns_rows else []


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store(kind: str, path: Path) -> Iterator[Store]:
    store = opened(kind, path)
    yield store
    store.close()


# processes


OWN = """
store = opened()
store.acquire("run", this_process(), 3600)
print(this_process(), flush=True)
sys.stdin.read()
"""


def test_a_killed_owner_is_replaced_at_once_long_before_its_lease_ends(kind: str, path: Path, store: Store) -> None:
    with start(kind, path, OWN) as child:
        holder = line(child)
        assert holder.split(":")[:2] == [socket.gethostname(), str(child.pid)]
        with pytest.raises(Held, match=holder):
            store.acquire("run", this_process(), 60)
        child.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and a zombie until it is waited for
        assert store.acquire("run", this_process(), 60) == 2
    assert not alive(holder)


def test_a_holder_is_alive_unless_it_is_known_to_be_dead() -> None:
    host, pid, start = this_process().rsplit(":", 2)
    assert alive(this_process())
    assert alive("elsewhere.example:1:2")
    assert alive("any text")
    assert not alive(f"{host}:{pid}:{int(start) + 1}")  # the same pid, another process
    assert not alive(f"{host}:{2**31 - 1}:{start}")
    assert not alive(f"{host}:{2**80}:{start}")


APPEND = """
store = opened()
print("ready", flush=True)
who = sys.stdin.readline().strip()
for n in range(60):
    store.append("run", [("k", {"who": who, "n": n})], 1)
"""


def test_processes_append_to_one_chain(kind: str, path: Path, store: Store) -> None:
    assert store.acquire("run", "all of them", 60) == 1
    assert together("ab", kind, path, APPEND) == [0, 0]
    rows = store.rows("run")
    verify_chain(rows, store.head("run"))
    for who in "ab":
        assert [row.body["n"] for row in rows if row.body["who"] == who] == list(range(60))


def test_processes_that_open_a_new_file_at_once_all_succeed(kind: str, path: Path) -> None:
    code = "print('ready', flush=True); who = sys.stdin.readline(); opened().put('t', who, {})"
    assert together("abc", kind, path, code) == [0] * 3
    again = opened(kind, path)
    assert len(again.items("t")) == 3
    again.close()


def test_opening_waits_for_a_writer_that_keeps_a_file_from_its_wal_mode(kind: str, path: Path) -> None:
    opened(kind, path).close()
    make(path, "PRAGMA journal_mode = DELETE")
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(1) as pool:
        store = pool.submit(opened, kind, path)
        with pytest.raises(TimeoutError):
            store.result(0.2)
        writer.close()
        assert pragma(store.result(10), "journal_mode") == [("wal",)]
        store.result().close()


# kill -9


WRITE = """
store = opened()
epoch = store.acquire("run", this_process(), 3600)
for n in range(1, 5):
    with store.transaction():
        store.put("t", "last", {"n": n})
        store.append("run", [("k", {"n": n}), ("k", {"n": -n})], epoch)
"""


@pytest.mark.parametrize(("point", "kept"), [("store.before-commit:3", 2), ("store.after-commit:3", 3)])
def test_a_kill_around_a_commit_leaves_all_of_it_or_nothing(kind: str, path: Path, point: str, kept: int) -> None:
    with start(kind, path, WRITE, FOEDUS_KILL=point) as child:
        assert child.wait(20) == -signal.SIGKILL
    store = opened(kind, path)
    rows = store.rows("run")
    verify_chain(rows, store.head("run"))
    assert [row.body["n"] for row in rows] == [sign * n for n in range(1, kept + 1) for sign in (1, -1)]
    assert store.get("t", "last") == {"n": kept}
    epoch = store.acquire("run", this_process(), 60)
    assert store.append("run", [("k", {})], epoch)[0].seq == 2 * kept + 1
    verify_chain(store.rows("run"))
    store.close()


SAY = """
store = opened()
epoch = store.acquire("run", this_process(), 3600)
while True:
    print(store.append("run", [("k", {"text": "x" * 500})], epoch)[0].seq, flush=True)
"""


def test_a_kill_at_any_moment_loses_no_row_that_append_has_returned(kind: str, path: Path) -> None:
    seen = 0
    for more in (1, 40, 173):
        with start(kind, path, SAY) as child:
            for _ in range(more):
                seen = int(line(child))
            child.kill()
            assert child.stdout is not None
            seen = max([seen, *(int(text) for text in child.stdout if text.endswith("\n"))])
        store = opened(kind, path)
        rows = store.rows("run")
        verify_chain(rows, store.head("run"))
        assert seen <= len(rows) <= seen + 1  # at most one was written but not yet reported
        seen = len(rows)
        store.close()


def test_durable_stores_sync_every_commit_and_others_only_checkpoints(path: Path) -> None:
    levels = {}
    for kind in KINDS:
        store = opened(kind, path.with_name(kind))
        levels[kind] = pragma(store, "synchronous") + pragma(store, "journal_mode")
        store.close()
    full, normal, wal = (2,), (1,), ("wal",)
    assert levels == {"sqlite": [full, wal], "sqlite-not-durable": [normal, wal], "sql": [full, wal]}


# a full disk


def test_a_full_disk_says_so_undoes_the_transaction_and_keeps_what_was_there(kind: str, store: Store) -> None:
    epoch = store.acquire("run", "me", 60)
    before = [read_row(*record) for record in store.append("run", [("k", {})], epoch)]
    with pytest.raises(StoreError, match=r"store\.db: .*full; free disk space"), store.transaction():
        store.put("t", "key", {})
        pragma(store, f"max_page_count = {pragma(store, 'page_count')[0][0]}")
        store.append("run", [("k", {"text": "x" * 100_000})], epoch)
    assert store.rows("run") == before
    assert store.items("t") == []
    pragma(store, "max_page_count = 1000000")
    store.put("t", "key", {})
    store.append("run", [("k", {})], epoch)
    verify_chain(store.rows("run"), store.head("run"))


def test_a_transaction_that_the_database_undid_cannot_go_on(store: Store) -> None:
    epoch = store.acquire("run", "me", 60)
    with pytest.raises(StoreError), store.transaction():
        pragma(store, f"max_page_count = {pragma(store, 'page_count')[0][0]}")
        store.put("t", "before", {})
        with pytest.raises(StoreError, match="free disk space"):
            store.append("run", [("k", {"text": "x" * 100_000})], epoch)
        with pytest.raises(StoreError, match="undone by an earlier error"):
            store.put("t", "after", {})
    assert store.items("t") == []


# files that are not ours, or of another version


def make(path: Path, script: str) -> None:
    db = sqlite3.connect(path)
    db.executescript(script)
    db.close()


def test_what_is_no_store_is_refused_and_left_as_it_was(kind: str, path: Path) -> None:
    path.write_bytes(b"these are notes, not a database " * 100)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"store\.db: file is not a database; .*name another place"):
        opened(kind, path)
    assert path.read_bytes() == before


def test_another_programs_database_is_refused_and_left_as_it_was(kind: str, path: Path) -> None:
    make(path, "CREATE TABLE notes (text); PRAGMA user_version = 1")
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"store\.db: .*(name another place|of its own)"):
        opened(kind, path)
    assert path.read_bytes() == before


def test_a_newer_schema_is_refused_with_the_remedy(kind: str, path: Path) -> None:
    opened(kind, path).close()
    make(path, "UPDATE foedus_version SET version_num = '9999'" if kind == "sql" else "PRAGMA user_version = 9999")
    with pytest.raises(StoreError, match=r"store\.db: schema 9999 is newer than .*1, .*; upgrade foedus"):
        opened(kind, path)


def test_a_place_that_cannot_be_written_is_named(kind: str, path: Path) -> None:
    path.write_text("a file where a folder should be")
    with pytest.raises(StoreError, match=r"store\.db: .*(name another place|check the folder)"):
        opened(kind, path / "store.db")
    folder = path.with_name("folder")
    folder.mkdir()
    with pytest.raises(StoreError, match=r"folder: unable to open.*make the folder writable"):
        opened(kind, folder)


def test_a_store_that_may_only_be_read_says_so(store: Store) -> None:
    pragma(store, "query_only = ON")
    with pytest.raises(StoreError, match=r"store\.db: .*readonly.*; make the file and its folder writable"):
        store.put("t", "key", {})


@pytest.mark.parametrize("url", ["mysql://me:secret@host/name", "sqlite://", "sqlite:///:memory:", "no url"])
def test_only_a_file_or_postgresql_is_taken(url: str) -> None:
    with pytest.raises(StoreError, match=r"name an SQLite file|parse") as refused:
        SqlStore(url)
    assert "secret" not in str(refused.value)


def test_a_missing_driver_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(Missing, match="psycopg is not installed: pip install 'foedus"):
        SqlStore("postgresql+psycopg://nobody@127.0.0.1/none")


# golden files: what version 1 wrote stays readable


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("kind", ["sqlite", "sql"])
def test_the_golden_file_of_version_1_still_opens(kind: str, path: Path) -> None:
    shutil.copy(GOLDEN / f"store-v1-{kind}.db", path)
    store = opened(kind, path)
    first = sha('["' + "0" * 64 + '",1,1700000000.25,"open",{"job":"golden","seed":7}]')
    second = sha(f'["{first}",2,1700000000.25,"close",{{"counted":["north","s\\u00fcd"]}}]')
    rows = store.rows("golden")
    assert [(row.seq, row.at, row.kind, row.body, row.chain) for row in rows] == [
        (1, 1700000000.25, "open", {"job": "golden", "seed": 7}, first),
        (2, 1700000000.25, "close", {"counted": ["north", "süd"]}, second),
    ]
    verify_chain(rows, Head(2, second))
    assert store.items("sites") == [("north", {"epoch": 1}), ("süd", {"epoch": 2})]
    epoch = store.acquire("golden", "a newer process", 60)
    assert epoch == 3
    assert store.append("golden", [("end", {})], epoch)[0].seq == 3
    store.close()


def test_a_store_of_the_version_before_is_brought_up_to_date(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(GOLDEN / "store-v1-sqlite.db", path)
    monkeypatch.setattr(sqlite, "STEPS", (*sqlite.STEPS, ("CREATE TABLE second (x)", "INSERT INTO second VALUES (5)")))
    for _ in range(2):
        store = SqliteStore(path)
        assert len(store.rows("golden")) == 2
        assert store._select("SELECT x FROM second") == [(5,)]
        store.close()
    monkeypatch.undo()
    with pytest.raises(StoreError, match="schema 2 is newer than 1"):
        SqliteStore(path)


def test_the_migrations_make_the_tables_that_the_code_uses(path: Path) -> None:
    SqlStore(f"sqlite:///{path}").close()
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": "foedus_version"})
        assert compare_metadata(context, sql.tables) == []
    engine.dispose()


def test_the_agents_store_needs_no_orm(path: Path) -> None:
    code = "print(sorted(name for name in sys.modules if name.split('.')[0] in ('sqlalchemy', 'alembic', 'numpy')))"
    with start("sqlite", path, "opened().close();" + code) as child:
        assert child.communicate(timeout=20)[0].strip() == "[]"
