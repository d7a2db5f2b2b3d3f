"""The check of a site's data: every piece is held against the rule, and what was counted becomes a report.
A schema and whatever the owner bound come in; a report goes out, also for data that cannot be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, final

from foedus.errors import Missing
from foedus.schema.counts import Counts, added, count
from foedus.schema.findings import Finding, Problem, Report, column_problems, few, image_problems, listed, short
from foedus.schema.images import ImageCounts, count_images
from foedus.schema.rules import Dataset, Schema
from foedus.schema.sources import Piece, parts, pieces
from foedus.schema.tables import ADAPTER, Table, Unreadable, loose

MOST_PLACES = 5  # of files that a finding names
RAGGED = "quote cells that hold the delimiter, and give every row the same number of cells"


def check(schema: Schema, dataset: str, data: Any, site: str) -> Report:
    """How `data`, what the owner of `site` bound to `dataset`, fits the schema; one that asks nothing is met.

    `data` is a path (a CSV, TSV, Parquet, .npy, .npz, .safetensors file, or a folder of them or of PNG), a data frame,
    (x, y) arrays, a Split or Pairs of arrays, or a mapping of arrays. Anything else is a finding, never an exception.
    """
    rule = schema.datasets.get(dataset)
    if rule is None:
        return Report(None)
    tally = Tally(rule)
    tally.examine(data)
    return Report(tally.known_rows, tuple(Finding(site, dataset, *problem) for problem in tally.problems()))


@final
class Tally:
    """What has been counted of a dataset, piece by piece."""

    def __init__(self, rule: Dataset) -> None:
        self.rule = rule
        self.columns: dict[str, Counts] = {}
        self.images: dict[str, ImageCounts] = {}
        self.found: dict[Problem, list[int]] = {}  # -> the files that have it, by number
        self.files = self.rows = self.ragged = 0
        self.tabular = self.ordered = self.broken = False

    @property
    def known_rows(self) -> int | None:
        """The examples of the dataset; None where a part of it could not be read."""
        examples = self.images["image"].rows if "image" in self.images else self.rows
        return None if self.broken else examples

    def examine(self, data: Any) -> None:
        """Counts all of the data; what cannot be read is a problem like any other."""
        held = parts(self.rule, data)
        self.files = len(held)
        for number, part in enumerate(held, 1):
            try:
                for piece in pieces(self.rule, part):
                    self._add(piece, number)
            except Exception as error:  # a file, or the owner's object, may raise anything
                self.broken = True
                self._note(_trouble(error), number)

    def problems(self) -> Iterator[Problem]:
        """All that is wrong, without a value of the data or the name of a file."""
        yield from (problem._replace(what=problem.what + self._where(at)) for problem, at in self.found.items())
        if self.ragged:
            yield Problem("", f"{few(self.ragged)} rows have more or fewer cells than the first", RAGGED)
        for place, (name, rule) in enumerate(self.rule.columns.items(), 1):
            if name in self.columns:
                yield from column_problems(name, rule, self.columns[name], place if self.ordered else None)
        for name, counts in self.images.items():
            yield from image_problems(name, getattr(self.rule, name), counts)
        if not self.broken:
            yield from self._amounts()

    def _amounts(self) -> Iterator[Problem]:
        held = {name: counts.rows for name, counts in self.images.items()}
        if self.tabular:
            held["columns"] = self.rows
        for name in ("columns", "image", "mask"):
            if getattr(self.rule, name) and name not in held:
                yield Problem("", f"there is no {name}, which the schema asks for", ADAPTER)
        if self.rule.image and len(set(held.values())) > 1:
            amounts = ", ".join(f"{few(rows)} of {name}" for name, rows in held.items())
            yield Problem("", f"the examples differ in number ({amounts})", "give one target for each image")
        rows, least = self.known_rows or 0, self.rule.least_rows
        if rows < least:
            what = f"it holds {short(rows, least)} rows, and the Job needs at least {least:,}"
            yield Problem("", what, "bind more data, or leave this Job out")

    def _add(self, piece: Piece, number: int) -> None:
        for name in ("image", "mask"):
            if (held := getattr(piece, name)) is not None:
                found = count_images(getattr(self.rule, name), held)
                self.images[name] = added(self.images[name], found) if name in self.images else found
        if piece.table is not None:
            self._add_table(piece.table, number)

    def _add_table(self, table: Table, number: int) -> None:
        self.tabular = True
        places = self._places(table, number)
        for columns, ragged in table.blocks:
            self.rows += len(columns[0]) if columns else 0
            self.ragged += ragged
            for name, place in places.items() if columns else ():
                found = count(self.rule.columns[name], columns[place])
                self.columns[name] = added(self.columns[name], found) if name in self.columns else found

    def _places(self, table: Table, number: int) -> dict[str, int]:
        """Where the schema's columns are in the table; notes those that are not there."""
        wanted = list(self.rule.columns)
        if table.names is None:
            self.ordered = True
            if table.width == len(wanted):
                return {name: place for place, name in enumerate(wanted)}
            what = f"there are {table.width} columns without names, and the schema has {len(wanted)}"
            remedy = f"add a header, or give exactly these columns in this order: {listed(wanted)}"
            self._note(Problem("", what, remedy), number)
            return {}
        times, similar = Counter(table.names), set(map(loose, table.names))
        for name in wanted:
            if times[name] != 1:
                self._note(Problem(name, *_absence(times[name], loose(name) in similar)), number)
        return {name: table.names.index(name) for name in wanted if times[name] == 1}

    def _note(self, problem: Problem, number: int) -> None:
        self.found.setdefault(problem, []).append(number)

    def _where(self, numbers: list[int]) -> str:
        """Which files have a problem, by their place in the order of names: a name may tell of a person."""
        if self.files < 2:
            return ""
        named = ", ".join(map(str, numbers[:MOST_PLACES])) + (", …" if len(numbers) > MOST_PLACES else "")
        return f" (file {named} of {self.files:,}, in the order of their names)"


def _absence(times: int, similar: bool) -> tuple[str, str]:
    """Of a column that is not there exactly once: what is wrong, and the remedy."""
    if times:
        return "the column is there more than once", "keep one of them"
    if similar:
        return "the column is missing, but one is spelled alike", "rename it: case and blanks count"
    return "the column is missing", "add it, rename the one that holds it, or do so in an adapter"


def _trouble(error: Exception) -> Problem:
    """What an error means, without its message, which may hold values and paths."""
    match error:
        case Unreadable():
            return Problem("", error.what, error.remedy)
        case Missing():
            what, _, remedy = str(error).partition(": ")
            return Problem("", what, f"{remedy}, or bind another kind of file")
        case UnicodeDecodeError():
            return Problem("", "the file is no UTF-8 text", "save it as UTF-8 CSV")
        case OSError() if error.strerror:
            remedy = "check the path and what the agent's user may read"
            return Problem("", f"it cannot be opened ({error.strerror})", remedy)
    return Problem("", f"it cannot be read ({type(error).__name__})", "open it at the site to see why; save it again")
