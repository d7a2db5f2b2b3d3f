"""Which sites did not count, and why: read from a run's journal, and told while its rows are written.
A Journal, or rows of one, come in."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from foedus.core import EVALUATE
from foedus.journal import Journal

MOST_TOLD = 10  # absences that a run speaks of while it goes on; its Result has all
MORE = "more sites did not count, or did not for other reasons: Result.declined has the newest of each"
log = logging.getLogger("foedus")


class Absence(NamedTuple):
    """One way in which a site did not count: `how` is declined, refused, lost, or "took no part"."""

    site: str
    how: str
    why: str

    @property
    def reason(self) -> str:
        return f"{self.how}: {self.why}"


def absences(journal: Journal) -> list[str]:
    """One line for each way in which a site that was asked, or should have been, did not count."""
    found = Counter(absence for row in journal.all("close") for absence in _in_close(row))
    return [f"{absence.site} {absence.reason}" for absence in sorted(_away(journal))] + [
        f"{site} did not count in {n} Task{'s' * (n > 1)}, {how}: {why}"
        for (site, how, why), n in sorted(found.items())
    ]


def declined(journal: Journal) -> dict[str, str]:
    """site -> the newest reason why it did not count; not of those whom a simulation's clock lost, as was asked for."""
    found = {absence.site: absence.reason for absence in _away(journal)}
    for row in journal.all("close"):
        found |= {absence.site: absence.reason for absence in _unasked(row)}
    return dict(sorted(found.items()))


def never(journal: Journal) -> dict[str, str]:
    """Those of `declined` who never counted in what a model is made of; who was not asked for that: in any Task."""
    rows = journal.all("close")
    makes = [row for row in rows if (journal.find("task", row["round"], row["task"]) or {}).get("work") != EVALUATE]
    reasons = {absence.site: absence.reason for row in makes for absence in _unasked(row)}
    asked = {site for row in makes for site, *_ in row["outcomes"]}
    counted = {site for row in makes for site, _, _ in row["counted"]}
    counted |= {site for row in rows for site, _, _ in row["counted"]} - asked
    return {site: reasons.get(site, why) for site, why in declined(journal).items() if site not in counted}


class Teller:
    """Says of each row of a journal who did not count by it: every reason of a site once, and not too many."""

    def __init__(self, say: Callable[[str], object] = log.warning) -> None:
        self.say, self.told = say, set[Absence]()

    def hear(self, kind: str, body: Mapping[str, Any]) -> None:
        for absence in _in_row(kind, body):
            if absence not in self.told and len(self.told) <= MOST_TOLD:
                self.told.add(absence)
                more = len(self.told) > MOST_TOLD
                self.say(MORE if more else _printable(f"{absence.site} {absence.reason}"))


def _printable(text: str) -> str:
    """The text without what would command a terminal: sites chose some of it."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _in_row(kind: str, body: Mapping[str, Any]) -> Iterator[Absence]:
    if kind in ("declined", "refused", "lost"):
        yield Absence(body["site"], kind, body.get("why") or body.get("reason") or "")
    elif kind == "event" and body["what"] == "not ready":
        yield Absence(body["site"], "takes no part", body["why"])
    elif kind == "close":
        yield from _unasked(body)


def _in_close(row: Mapping[str, Any]) -> Iterator[Absence]:
    for site, status, why, *_ in row["outcomes"]:
        if status in ("refused", "declined", "lost"):
            yield Absence(site, status, why)


def _unasked(row: Mapping[str, Any]) -> Iterator[Absence]:
    """Without those whom a simulation's clock lost."""
    return (absence for absence in _in_close(row) if absence.how != "lost" or "clock" not in row)


def _away(journal: Journal) -> set[Absence]:
    """Those that were not ready, and never counted."""
    counted = {site for row in journal.all("close") for site, _, _ in row["counted"]}
    events = [row for row in journal.events if row["what"] == "not ready" and row["site"] not in counted]
    return {Absence(row["site"], "took no part", row["why"]) for row in events}
