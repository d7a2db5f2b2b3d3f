"""Which local data stands behind a dataset's name, and which packages are here: what a Job needs besides consent.
Names and paths come in; no data is read."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from foedus.errors import FoedusError
from foedus.store import Store
from foedus.wire.identity import NAME

TABLE = "data"
_PACKAGE = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]{0,100})\s*(?:\[[^\]]*\])?")
_CLAUSE = re.compile(r"\s*(===?|~=|!=|<=|>=|<|>)\s*([0-9][^\s,]*)\s*")


class Binding(NamedTuple):
    """A dataset: its name, the path of the data, and the file of its adapter ("" without one)."""

    name: str
    path: str
    adapter: str = ""


def check(binding: Binding) -> Binding:
    """The binding with absolute paths. Raises FoedusError for a bad name or a path that is not there."""
    if not NAME.fullmatch(binding.name):
        raise FoedusError(f"dataset {binding.name!r}: a name has 1 to 63 of a-z 0-9 . _ -, as in heart=/srv/heart")
    for path in filter(None, binding[1:]):
        if not Path(path).expanduser().exists():
            raise FoedusError(f"dataset {binding.name!r}: there is nothing at {path}; check the path")
    absolute = [str(Path(path).expanduser().resolve()) if path else "" for path in binding[1:]]
    return Binding(binding.name, *absolute)


def add(store: Store, binding: Binding) -> Binding:
    """Binds a dataset, in place of an earlier binding of its name."""
    found = check(binding)
    store.put(TABLE, found.name, found._asdict())
    return found


def remove(store: Store, name: str) -> None:
    """Unbinds a dataset; its data stays where it is."""
    if store.get(TABLE, name) is None:
        raise FoedusError(f"no dataset {name!r} is bound here; bound: {_listed(every(store))}")
    store.delete(TABLE, name)


def every(store: Store) -> list[Binding]:
    """All bindings, by name."""
    return [Binding(**body) for _, body in store.items(TABLE)]


def chosen(store: Store, wanted: Sequence[str]) -> list[Binding]:
    """The bindings that a Job of these datasets sees; a Job that names none sees the only one.

    Raises FoedusError with the line that mends it.
    """
    bound = {binding.name: binding for binding in every(store)}
    known = _listed(bound.values())
    if odd := [name for name in wanted if name not in bound]:
        raise FoedusError(f"no data is bound to {odd[0]!r} (bound: {known}): foedus site data add {odd[0]}=PATH")
    if wanted:
        return [bound[name] for name in wanted]
    if len(bound) != 1:
        remedy = "name one with Job(datasets=[…])" if bound else "bind some with: foedus site data add NAME=PATH"
        raise FoedusError(f"the Job names no dataset and this site has {len(bound)} (bound: {known}): {remedy}")
    return list(bound.values())


def _listed(found: Iterable[Binding]) -> str:
    return ", ".join(binding.name for binding in found) or "none"


def missing(requires: Iterable[str]) -> list[str]:
    """Those of the requirements that this Python does not fulfil."""
    return [text for text in requires if not _fulfilled(text)]


def remedy(requirements: Collection[str]) -> str:
    """The line that installs them."""
    return "pip install " + " ".join(f"'{text.strip()}'" for text in requirements)


def _fulfilled(text: str) -> bool:
    found = _PACKAGE.match(text)
    if found is None:
        return False
    rest = text[found.end() :].partition(";")[0].strip()
    clauses = [_CLAUSE.fullmatch(part) for part in rest.split(",")] if rest else []
    try:
        here = _release(version(found[1]))
    except PackageNotFoundError:
        return False
    return all(clause is not None and _holds(here, clause[1], clause[2]) for clause in clauses)


def _holds(here: tuple[int, ...], sign: str, wanted: str) -> bool:
    there = _release(wanted)
    size = max(len(here), len(there))
    a, b = here + (0,) * (size - len(here)), there + (0,) * (size - len(there))
    if sign == "~=":
        return a >= b and here[: len(there) - 1] == there[:-1]
    if wanted.endswith(".*"):
        return (here[: len(there)] == there) == (sign != "!=")
    return {"==": a == b, "===": a == b, "!=": a != b, "<=": a <= b, ">=": a >= b, "<": a < b, ">": a > b}[sign]


def _release(text: str) -> tuple[int, ...]:
    """The numbers at the front of a version: 2.13.0+cpu is (2, 13, 0)."""
    found = re.match(r"[0-9]+(?:\.[0-9]+)*", text)
    return tuple(map(int, found[0].split("."))) if found else (0,)
