"""A dataset without what its owner has excluded, made before any of a Job's code is there: it never sees the rest.
A path and ids come in; what cannot be looked into is refused, never passed on whole."""

from __future__ import annotations

import csv
from collections.abc import Collection
from pathlib import Path

from foedus.errors import FoedusError

TABLES = {".csv": ",", ".tsv": "\t"}


def without(path: Path, ids: Collection[str], column: str, into: Path) -> Path:
    """The same data under `into`, a folder that is not there yet, without these ids; `path` itself without any.

    Of a table (.csv, .tsv) the rows go whose `column` is one of the ids; of a folder the files and folders
    of such a name (less its endings), and rows of tables in it that have the column; the rest are links. Raises
    FoedusError.
    """
    if not ids:
        return path
    into.mkdir(parents=True)
    if path.is_dir():
        _folder(path, frozenset(ids), column, into)
        return into
    if not column:
        raise FoedusError(f"{path.name}: `excluded` of a table needs `column`, the name of the column with the ids")
    if not _table(path, frozenset(ids), column, into / path.name):
        raise FoedusError(f"{path.name}: the table has no column {column!r} (`column` of the dataset's terms)")
    return into / path.name


def _folder(path: Path, ids: frozenset[str], column: str, into: Path) -> None:
    for item in sorted(path.iterdir()):
        if {item.name, item.name.partition(".")[0]} & ids:
            continue
        if item.is_dir():
            (into / item.name).mkdir()
            _folder(item, ids, column, into / item.name)
        elif not (column and item.suffix in TABLES and _table(item, ids, column, into / item.name)):
            (into / item.name).symlink_to(item.resolve())


def _table(path: Path, ids: frozenset[str], column: str, into: Path) -> bool:
    """Writes the table without the rows of these ids; False, and nothing written, where it has no such column."""
    if path.suffix not in TABLES:
        remedy = "bind a folder, a .csv or a .tsv, and let an adapter make the rest of it"
        raise FoedusError(f"{path.name}: excluded ids cannot be looked up in a {path.suffix or 'file'}: {remedy}")
    with path.open(newline="", encoding="utf-8-sig") as source:
        rows = csv.reader(source, delimiter=TABLES[path.suffix])
        head = next(rows, [])
        if column not in head:
            return False
        at = head.index(column)
        with into.open("w", newline="", encoding="utf-8") as file:
            out = csv.writer(file, delimiter=TABLES[path.suffix])
            out.writerow(head)
            out.writerows(row for row in rows if len(row) <= at or row[at].strip() not in ids)
    return True
