"""One suite for every store: journal and chain, lease and fencing, documents, transactions, threads."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foedus.errors import JournalError, StoreError
from foedus.store import START, Fenced, Head, Held, Row, Store, chained, read_row, verify_chain
from foedus.store.lease import this_process
from foedus.store.sql import SqlStore
from foedus.store.sqlite import SqliteStore

Open = Callable[..., Store]


class Clock:
    """A clock that a test moves by hand."""

    now = 1000.5

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["sqlite", "sqlite-not-durable", "sql"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens the same file again and again, as one kind of store."""
    opened: list[Store] = []

    def open_store(**options: Any) -> Store:
        path = tmp_path / "store.db"
        durable = request.param == "sqlite"
        store: Store = (
            SqlStore(f"sqlite:///{path}", **options)
            if request.param == "sql"
            else SqliteStore(path, durable=durable, **options)
        )
        opened.append(store)
        return store

    yield open_store
    for store in opened:
        store.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(reopen: Open, clock: Clock) -> Store:
    return reopen(clock=clock)


def filled(store: Store, run: str = "run", rows: int = 6) -> int:
    epoch = store.acquire(run, "me", 60)
    for number in range(1, rows + 1):
        store.append(run, [("even" if number % 2 == 0 else "odd", {"n": number})], epoch)
    return epoch


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# journal


def test_rows_come_back_as_append_returned_them_and_survive_reopening(store: Store, reopen: Open) -> None:
    epoch = store.acquire("run", "me", 60)
    records = store.append("run", [("open", {"job": "a"}), ("task", {"site": "café", "none": None})], epoch)
    written = [read_row(*record) for record in (*records, *store.append("run", [("close", {})], epoch))]
    assert [(row.seq, row.at, row.kind) for row in written] == [
        (1, 1000.5, "open"),
        (2, 1000.5, "task"),
        (3, 1000.5, "close"),
    ]
    assert store.rows("run") == written
    assert store.head("run") == Head(3, written[2].chain)
    store.close()
    assert reopen().rows("run") == written


def test_rows_are_found_by_seq_and_by_kind(store: Store) -> None:
    filled(store)
    assert [row.seq for row in store.rows("run", after=4)] == [5, 6]
    assert [row.seq for row in store.rows("run", after=2, kinds={"even"})] == [4, 6]
    assert [row.seq for row in store.rows("run", kinds=["even", "odd"])] == [1, 2, 3, 4, 5, 6]
    assert store.rows("run", kinds=()) == []


def test_runs_do_not_mix(store: Store) -> None:
    filled(store, "b", 2)
    filled(store, "a", 3)
    store.acquire("leased only", "me", 60)
    assert store.runs() == ["a", "b"]
    assert [row.body["n"] for row in store.rows("a")] == [1, 2, 3]
    assert store.rows("none") == []
    assert store.head("none") == START == Head(0, "0" * 64)


def test_the_chain_is_the_sha256_of_last_seq_at_kind_body(store: Store) -> None:
    epoch = store.acquire("run", "me", 60)
    rows = store.append("run", [("open", {"b": [2, None], "a": 'é"'}), ("close", {"x": 0.1})], epoch)
    first = sha('["' + "0" * 64 + '",1,1000.5,"open",{"a":"\\u00e9\\"","b":[2,null]}]')
    assert [row.chain for row in rows] == [first, sha(f'["{first}",2,1000.5,"close",{{"x":0.1}}]')]


def test_a_body_is_stored_in_its_json_form(store: Store) -> None:
    epoch = store.acquire("run", "me", 60)
    records = store.append("run", [("k", {"pair": (1, 2), "by number": {10: "x", 9: "y"}})], epoch)
    assert records[0].text == '{"by number":{"10":"x","9":"y"},"pair":[1,2]}'
    assert store.rows("run") == [read_row(*records[0])]
    store.append("run", [("k", {"flags": {True: 1, False: 2}}), ("k", {"sizes": {-2: 1, -10.5: 2}})], epoch)
    verify_chain(store.rows("run"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), b"bytes", {1, 2}, {"a": 1, 2: 3}])
def test_what_is_not_json_is_refused_and_nothing_is_written(store: Store, bad: object) -> None:
    epoch = store.acquire("run", "me", 60)
    with pytest.raises(StoreError, match="plain JSON"):
        store.append("run", [("good", {}), ("bad", {"value": bad})], epoch)
    with pytest.raises(StoreError, match="plain JSON"):
        store.put("table", "key", {"value": bad})
    assert store.rows("run") == []
    assert store.get("table", "key") is None


def test_appending_no_rows_changes_nothing_but_is_fenced(store: Store) -> None:
    assert store.append("run", [], store.acquire("run", "me", 60)) == []
    with pytest.raises(Fenced):
        store.append("run", [], 7)
    assert store.runs() == []


# the chain finds what was done to the file


@pytest.mark.parametrize(
    ("change", "seq"),
    [
        ("UPDATE journal SET body = '{\"n\":7}' WHERE seq = 3", 3),
        ("UPDATE journal SET at = 1000.25 WHERE seq = 1", 1),
        ("UPDATE journal SET kind = 'even' WHERE seq = 5", 5),
        ("UPDATE journal SET chain = 'f' || substr(chain, 2) || '0' WHERE seq = 6", 6),
        ("UPDATE journal SET body = 'no json' WHERE seq = 4", 4),
        ("DELETE FROM journal WHERE seq = 1", 1),
        ("DELETE FROM journal WHERE seq = 3", 3),
        ("UPDATE journal SET seq = CASE seq WHEN 3 THEN -4 WHEN 4 THEN -3 ELSE -seq END", 3),
        ("DELETE FROM journal WHERE seq = 2; UPDATE journal SET seq = seq - 1 WHERE seq > 2", 2),
    ],
)
def test_a_changed_missing_or_moved_row_is_named(store: Store, tmp_path: Path, change: str, seq: int) -> None:
    filled(store)
    verify_chain(store.rows("run"), store.head("run"))
    _edit(tmp_path, change)
    _edit(tmp_path, "UPDATE journal SET seq = -seq WHERE seq < 0")
    with pytest.raises(JournalError, match=f"row {seq} .*restore"):
        verify_chain(store.rows("run"))


def test_a_cut_tail_is_found_against_a_pinned_head_only(store: Store, tmp_path: Path) -> None:
    filled(store)
    head = store.head("run")
    _edit(tmp_path, "DELETE FROM journal WHERE seq > 4")
    verify_chain(store.rows("run"))
    with pytest.raises(JournalError, match=r"row 5 is missing.*row 6"):
        verify_chain(store.rows("run"), head)


def test_a_rewritten_chain_is_found_against_a_pinned_head_even_when_the_journal_grew(store: Store) -> None:
    filled(store, "true")
    filled(store, "false", 8)
    entries = [(row.kind, row.body | {"forged": 1}) for row in store.rows("false")]
    forged = [read_row(*record) for record in chained(START, entries, 1)]
    verify_chain(forged)
    with pytest.raises(JournalError, match="row 6 is not the pinned head"):
        verify_chain(forged, store.head("true"))


def test_a_journal_is_verified_in_pieces(store: Store) -> None:
    filled(store)
    rows = store.rows("run")
    middle = Head(rows[2].seq, rows[2].chain)
    verify_chain(rows[3:], store.head("run"), after=middle)
    with pytest.raises(JournalError, match="row 4 was changed"):
        verify_chain(rows[3:], after=Head(3, "0" * 64))
    with pytest.raises(JournalError, match="row 4 is missing or out of order"):
        verify_chain(rows[4:], after=middle)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.tuples(st.text(), st.dictionaries(st.text(), plain, max_size=3)), max_size=4), st.floats(0, 2e9))
def test_any_plain_body_verifies_after_a_round_trip_through_json(entries: list[Any], at: float) -> None:
    rows = [read_row(*record) for record in chained(START, entries, at)]
    assert [(row.kind, row.body) for row in rows] == entries
    verify_chain([Row(*json.loads(json.dumps(row))) for row in rows])


def _edit(folder: Path, script: str) -> None:
    db = sqlite3.connect(folder / "store.db")
    db.executescript(script)
    db.close()


# lease


def test_only_the_present_epoch_may_append(store: Store) -> None:
    with pytest.raises(Fenced, match="run 'run'"):
        store.append("run", [("k", {})], 0)
    old = store.acquire("run", "me", 60)
    new = store.acquire("run", "me", 60)
    assert (old, new) == (1, 2)
    with pytest.raises(Fenced):
        store.append("run", [("k", {})], old)
    store.append("run", [("k", {})], new)
    with pytest.raises(Fenced):
        store.append("run", [("k", {})], new + 1)
    with pytest.raises(Fenced):
        store.append("another", [("k", {})], new)
    assert len(store.rows("run")) == 1


def test_a_living_holder_keeps_its_run_until_its_lease_ends(store: Store, clock: Clock) -> None:
    old = store.acquire("run", "me", 60)
    with pytest.raises(Held) as held:
        store.acquire("run", "you", 60)
    assert (held.value.run, held.value.holder, held.value.until) == ("run", "me", 1060.5)
    assert "until 1970-01-01 00:17:40+00:00" in str(held.value)
    clock.now += 30
    store.renew("run", old, 60)
    clock.now += 59
    with pytest.raises(Held):
        store.acquire("run", "you", 60)
    clock.now += 1
    assert store.acquire("run", "you", 60) == old + 1
    for fenced in (lambda: store.append("run", [("k", {})], old), lambda: store.renew("run", old, 60)):
        with pytest.raises(Fenced):
            fenced()


def test_a_process_of_this_host_holds_its_run_while_it_lives_however_long_a_round_takes(
    store: Store, clock: Clock
) -> None:
    store.acquire("run", this_process(), 60)
    clock.now += 86_400
    with pytest.raises(Held, match="owned by process"):
        store.acquire("run", "elsewhere:1:1", 60)


def test_a_lease_that_ran_out_still_counts_while_nobody_took_it(store: Store, clock: Clock) -> None:
    epoch = store.acquire("run", "me", 60)
    clock.now += 3600
    store.append("run", [("k", {})], epoch)
    store.renew("run", epoch, 60)
    with pytest.raises(Held):
        store.acquire("run", "you", 60)


def test_a_released_run_is_free_and_its_epoch_is_spent(store: Store) -> None:
    epoch = store.acquire("run", "me", 60)
    store.release("run", epoch)
    for fenced in (lambda: store.append("run", [("k", {})], epoch), lambda: store.renew("run", epoch, 60)):
        with pytest.raises(Fenced):
            fenced()
    assert store.acquire("run", "you", 60) == epoch + 1
    store.release("run", epoch)  # too late: it is another's by now
    with pytest.raises(Held):
        store.acquire("run", "me", 60)


# documents


def test_documents_are_put_read_and_deleted(store: Store, reopen: Open) -> None:
    store.put("sites", "north", {"b": 1, "a": [None, True]})
    store.put("sites", "north", {"b": 2})
    store.put("grants", "north", {})
    assert store.get("sites", "north") == {"b": 2}
    assert store.get("sites", "south") is None
    store.delete("sites", "south")
    store.close()
    again = reopen()
    assert again.get("sites", "north") == {"b": 2}
    again.delete("sites", "north")
    assert again.get("sites", "north") is None
    assert again.get("grants", "north") == {}


def test_items_are_sorted_and_a_prefix_is_meant_literally(store: Store) -> None:
    for key in ("b", "a_1", "ab", "A_2", "a%", "é", "Z"):
        store.put("t", key, {"key": key})
    store.put("other", "a_9", {})
    assert [key for key, _ in store.items("t")] == ["A_2", "Z", "a%", "a_1", "ab", "b", "é"]
    assert store.items("t", "a_") == [("a_1", {"key": "a_1"})]
    assert [key for key, _ in store.items("t", "a")] == ["a%", "a_1", "ab"]
    assert store.items("t", "none") == []


def test_add_keeps_the_first_value(store: Store) -> None:
    assert store.add("t", "key", {"first": True})
    assert not store.add("t", "key", {"first": False})
    assert store.get("t", "key") == {"first": True}
    store.delete("t", "key")
    assert store.add("t", "key", {"first": False})


# transactions


def test_an_error_undoes_the_whole_transaction(store: Store) -> None:
    epoch = store.acquire("run", "me", 60)
    store.put("t", "old", {"n": 1})
    with pytest.raises(ZeroDivisionError), store.transaction():
        store.append("run", [("k", {})], epoch)
        store.put("t", "old", {"n": 2})
        assert store.add("t", "new", {})
        assert store.acquire("run", "me", 60) == epoch + 1
        assert (len(store.rows("run")), store.get("t", "old")) == (1, {"n": 2})
        raise ZeroDivisionError
    assert (store.rows("run"), store.items("t")) == ([], [("old", {"n": 1})])
    store.append("run", [("k", {})], epoch)


def test_an_inner_block_joins_the_outer_one(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.transaction():
        with store.transaction():
            store.put("t", "inner", {})
        raise ZeroDivisionError
    assert store.items("t") == []


def test_an_error_caught_between_two_blocks_undoes_the_inner_one_alone(store: Store) -> None:
    epoch = store.acquire("run", "me", 60)
    with store.transaction():
        store.put("t", "outer", {})
        with pytest.raises(ZeroDivisionError), store.transaction():
            store.put("t", "inner", {})
            raise ZeroDivisionError
        with pytest.raises(Fenced):
            store.append("run", [("k", {})], epoch + 1)
        store.append("run", [("k", {})], epoch)
    assert [key for key, _ in store.items("t")] == ["outer"]
    assert len(store.rows("run")) == 1


def test_another_thread_reads_the_state_before_an_open_transaction_without_waiting(store: Store) -> None:
    epoch = filled(store, rows=1)
    store.put("t", "a", {"n": 0})
    with ThreadPoolExecutor(1) as pool:
        with store.transaction():
            store.put("t", "a", {"n": 1})
            store.append("run", [("k", {})], epoch)
            assert pool.submit(store.get, "t", "a").result(10) == {"n": 0}
            assert pool.submit(store.head, "run").result(10).seq == 1
        assert pool.submit(store.get, "t", "a").result(10) == {"n": 1}
        assert pool.submit(store.head, "run").result(10).seq == 2


def test_readers_never_see_half_a_transaction(store: Store) -> None:
    store.put("t", "a", {"n": 0})
    store.put("t", "b", {"n": 0})
    done = threading.Event()

    def write() -> None:
        for n in range(1, 60):
            with store.transaction():
                store.put("t", "a", {"n": n})
                store.put("t", "b", {"n": n})
        done.set()

    def read() -> int:
        seen = set()
        while not done.is_set():
            values = [value["n"] for _, value in store.items("t")]
            assert values[0] == values[1]
            seen.add(values[0])
        return len(seen)

    with ThreadPoolExecutor(2) as pool:
        reading = pool.submit(read)
        pool.submit(write).result(20)
        assert reading.result(20) >= 1
    assert store.get("t", "b") == {"n": 59}


def test_threads_append_to_one_chain(store: Store) -> None:
    epoch = store.acquire("run", "me", 60)

    def work(thread: int) -> None:
        for n in range(50):
            store.append("run", [("k", {"thread": thread, "n": n})], epoch)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    rows = store.rows("run")
    verify_chain(rows, store.head("run"))
    for thread in range(4):
        assert [row.body["n"] for row in rows if row.body["thread"] == thread] == list(range(50))


def test_add_wins_once_over_eight_threads(store: Store) -> None:
    barrier = threading.Barrier(8)

    def race(thread: int, key: int) -> bool:
        barrier.wait(10)
        return store.add("t", str(key), {"thread": thread})

    with ThreadPoolExecutor(8) as pool:
        for key in range(10):
            won = list(pool.map(race, range(8), [key] * 8))
            assert won.count(True) == 1
            assert store.get("t", str(key)) == {"thread": won.index(True)}
