"""What an owner says of one dataset, under `[dataset.NAME]` in `policy.toml`: for what, until when, without whom.
Plain TOML comes in; every question is answered with "" (yes) or with the reason and the remedy."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from foedus.privacy.spending import Limit

Day = datetime.date | None


class Terms(NamedTuple):
    """The terms of one dataset; without any it may be used for whatever the rest of the policy lets in."""

    epsilon: float | None = None  # that all jobs together may spend, at `delta`
    delta: float = 1e-5
    purpose: tuple[str, ...] = ()  # one of which a job must state; (): any
    approval: str = ""  # of whose committee, for the ledger
    valid_until: Day = None  # the last day
    excluded: str = ""  # a file with an id a line: rows, files and folders that no job sees
    column: str = ""  # of a table, in which these ids stand

    @property
    def limit(self) -> Limit | None:
        return None if self.epsilon is None else Limit(self.epsilon, self.delta)

    def ids(self) -> list[str]:
        """What is excluded. Raises OSError where the file cannot be read."""
        if not self.excluded:
            return []
        return sorted({line.strip() for line in Path(self.excluded).read_text().splitlines() if line.strip()})


def allowed(name: str, terms: Terms, purpose: str, today: datetime.date) -> str:
    """Whether a job of that purpose may use the dataset today."""
    if terms.valid_until is not None and today > terms.valid_until:
        until = f"dataset {name!r} could be used until {terms.valid_until} (`valid_until`)"
        return f"{until}: its owner may prolong that in policy.toml"
    if terms.purpose and purpose not in terms.purpose:
        stated = f"states the purpose {purpose!r}" if purpose else "states no purpose"
        listed = ", ".join(map(repr, terms.purpose))
        return (
            f"dataset {name!r} may be used for {listed}, and this job {stated}: say Job(purpose=…), and submit it anew"
        )
    return ""


def read(name: str, table: Any, beside: Path) -> Terms:
    """The terms of a dataset. Raises ValueError, which says what to mend."""
    hints = get_type_hints(Terms)
    if not isinstance(table, Mapping):
        raise ValueError(f"dataset.{name} is no table: write [dataset.{name}]")
    if odd := sorted(table.keys() - hints.keys()):
        raise ValueError(f"[dataset.{name}] has no rule {odd[0]!r}; the rules are {', '.join(hints)}")
    found = Terms(**{key: _value(f"dataset.{name}.{key}", hints[key], value) for key, value in table.items()})
    if found.epsilon is not None and not found.epsilon > 0:
        raise ValueError(f"dataset.{name}.epsilon = {found.epsilon}: it must be positive")
    if not 0 < found.delta < 1:
        raise ValueError(f"dataset.{name}.delta = {found.delta}: it must be in (0, 1), and below 1 / rows")
    if not found.excluded:
        return found
    path = beside / Path(found.excluded).expanduser()
    if not path.is_file():
        raise ValueError(f"dataset.{name}.excluded: there is no file {path}")
    return found._replace(excluded=str(path))


def _value(key: str, kind: Any, value: Any) -> Any:
    if kind == tuple[str, ...] and isinstance(value, str):
        return (value,)
    if kind == tuple[str, ...] and isinstance(value, list) and all(isinstance(x, str) for x in value):
        return tuple(value)
    if kind in (float, float | None) and type(value) in (int, float):
        return float(value)
    if kind is str and isinstance(value, str):
        return value
    if kind == Day and type(value) is datetime.date:
        return value
    raise ValueError(f"{key} = {value!r} is not of its kind; the file's own comments show each")
