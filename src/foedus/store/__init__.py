"""What durable storage promises: a hash-chained journal per run, a lease with fencing, and small documents.
Plain JSON may come in; every store keeps these promises and passes the same tests."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

from foedus.errors import FoedusError, JournalError, StoreError

Entry = tuple[str, Mapping[str, Any]]  # kind, body


class Fenced(FoedusError):
    """This process does not own the run (any more): its lease ended, or another process took it over."""

    def __init__(self, run: str, epoch: int) -> None:
        super().__init__(
            f"run {run!r}: the lease of epoch {epoch} is not held any more, nothing was written; "
            "another process owns the run, or nobody does: stop here, and start again to take it over"
        )
        self.run, self.epoch = run, epoch


class Held(FoedusError):
    """Another living process owns the run; `holder` says which, `until` (seconds since 1970) for how long."""

    def __init__(self, run: str, holder: str, until: float) -> None:
        end = datetime.fromtimestamp(until, UTC).isoformat(" ", "seconds")
        super().__init__(f"run {run!r} is owned by process {holder} (host:pid:start) until {end}; stop it, or wait")
        self.run, self.holder, self.until = run, holder, until


class Row(NamedTuple):
    """One fact of a run; `seq` counts from 1, `at` is seconds since 1970, `chain` seals this row and all before it."""

    seq: int
    at: float
    kind: str
    body: dict[str, Any]
    chain: str


class Record(NamedTuple):
    """A Row as it is written: its body is canonical JSON; `read_row(*record)` is the Row."""

    seq: int
    at: float
    kind: str
    text: str
    chain: str


class Head(NamedTuple):
    """A journal's last row, enough to go on from it or to pin it elsewhere."""

    seq: int
    chain: str


START = Head(0, "0" * 64)

_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode
_NOT_TEXT = re.compile(r'"(?:-?\d[^"]*|true|false|null)":')  # a key that may have been no text, and so stands elsewhere


def canonical(value: object) -> str:
    """The one JSON text of a plain value: sorted keys, no spaces, ASCII. StoreError for what JSON cannot hold."""
    try:
        return _encode(value)
    except (TypeError, ValueError) as error:
        raise StoreError(f"only plain JSON can be stored ({error}); write NaN and infinity as text") from error


def link(last: str, seq: int, at: float, kind: str, text: str) -> str:
    """SHA-256 (64 hex) of the JSON array [last, seq, at, kind, body]; `text` is the body's canonical JSON."""
    return hashlib.sha256(f'["{last}",{seq},{float(at)!r},{_encode(kind)},{text}]'.encode()).hexdigest()


def chained(head: Head, entries: Iterable[Entry], at: float) -> list[Record]:
    """The rows that follow `head`, as they are written."""
    found = []
    for kind, body in entries:
        text = canonical(dict(body))
        if _NOT_TEXT.search(text):
            text = _encode(json.loads(text))  # the form in which it will be read back
        head = Head(head.seq + 1, link(head.chain, head.seq + 1, at, kind, text))
        found.append(Record(head.seq, at, kind, text, head.chain))
    return found


def read_row(seq: int, at: float, kind: str, text: str, chain: str) -> Row:
    """The Row of one stored record; JournalError where its body was damaged beyond reading."""
    try:
        return Row(seq, at, kind, json.loads(text), chain)
    except ValueError as error:
        raise _broken(seq, "holds no JSON") from error


def verify_chain(rows: Iterable[Row], head: Head | None = None, after: Head = START) -> None:
    """Returns if the rows are what was appended after `after`; else JournalError with the first bad seq.

    A tail that was cut off, or rewritten with all its chains, shows only against a `head` pinned elsewhere.
    """
    last = after
    for row in rows:
        if row.seq != last.seq + 1:
            raise _broken(last.seq + 1, f"is missing or out of order (row {row.seq} stands in its place)")
        if row.chain != link(last.chain, row.seq, row.at, row.kind, _encode(row.body)):
            raise _broken(row.seq, "was changed after it was written")
        last = Head(row.seq, row.chain)
        if head is not None and row.seq == head.seq and row.chain != head.chain:
            raise _broken(row.seq, "is not the pinned head: rows up to here were rewritten")
    if head is not None and last.seq < head.seq:
        raise _broken(last.seq + 1, f"is missing: the journal was cut off before its pinned head, row {head.seq}")


def _broken(seq: int, what: str) -> JournalError:
    return JournalError(f"journal row {seq} {what}; restore the store from a backup, or run the Job again")


class Store(Protocol):
    """Durable storage that the threads of one process share; every write is on disk when it returns.

    Only journal writes are fenced: a document belongs to the process that owns the file, or is rebuilt from the
    journal. Runs, kinds, tables and keys are text without NUL.
    """

    def append(self, run: str, rows: Sequence[Entry], epoch: int) -> list[Record]:
        """The new rows as they were written: all, or none; Fenced unless `epoch` is that of the run's present lease."""

    def rows(self, run: str, after: int = 0, kinds: Collection[str] | None = None) -> list[Row]:
        """The run's rows with seq > `after`, in order; of these kinds only, if given."""

    def head(self, run: str) -> Head:
        """The seq and chain of the run's last row; START while it has none."""

    def runs(self) -> list[str]:
        """The runs that have a journal, sorted."""

    def acquire(self, run: str, holder: str, seconds: float) -> int:
        """The epoch (old + 1) of a lease that is now the holder's; Held while another living process has one.

        A holder whose lease ran out, or that is known to be dead, is replaced; the same holder may acquire again.
        """

    def renew(self, run: str, epoch: int, seconds: float) -> None:
        """Prolongs the lease to `seconds` from now; Fenced if it is not this epoch's any more."""

    def release(self, run: str, epoch: int) -> None:
        """Gives the lease back; nothing happens if it is not this epoch's any more."""

    def put(self, table: str, key: str, value: Mapping[str, Any]) -> None:
        """Stores the document under this key, in place of any other."""

    def add(self, table: str, key: str, value: Mapping[str, Any]) -> bool:
        """True if the document was stored; False, and nothing changed, if the key has one already."""

    def get(self, table: str, key: str) -> dict[str, Any] | None:
        """The document, or None."""

    def delete(self, table: str, key: str) -> None:
        """Removes the document, if there is one."""

    def items(self, table: str, prefix: str = "") -> list[tuple[str, dict[str, Any]]]:
        """The table's (key, document) pairs whose key starts with `prefix`, sorted by key."""

    def transaction(self) -> AbstractContextManager[None]:
        """Makes all writes of this thread inside the block one durable step; an error undoes them all.

        A block inside a block joins the outer one; an error caught between the two undoes the inner one alone.
        """

    def close(self) -> None:
        """Lets go of the file or connections; the store cannot be used after this."""
