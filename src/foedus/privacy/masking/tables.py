"""The messages of secure aggregation: a head that names stage and Task, then tables of site -> record of a fixed size.
Bytes come in from anybody; a table goes out only where every byte of the message is accounted for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from cryptography.exceptions import InvalidSignature, InvalidTag

from foedus.errors import SiteError, WireError

MAGIC = b"fdm1"
STAGES = {
    "advertisement": "advertising keys",
    "keys": "sharing keys",
    "shares": "sharing keys",
    "delivery": "masking",
    "survivors": "agreeing on the survivors",
    "agreement": "agreeing on the survivors",
    "endorsement": "revealing shares",
    "reveal": "revealing shares",
}
_NUMBERS = {kind: number for number, kind in enumerate(STAGES, 1)}
Table = Mapping[str, bytes]


class Unsafe(SiteError):
    """What a site was asked to do in a sealed Task is not what it agreed to; nothing more of its secrets leaves it."""

    code = 7


def pack(kind: str, about: bytes, roster: Sequence[str], *tables: Table) -> bytes:
    """The message: head, and for each table a bit a site of the roster and the records in its order."""
    parts = [MAGIC, bytes([_NUMBERS[kind]]), about]
    for table in tables:
        bits = sum(1 << i for i, site in enumerate(roster) if site in table)
        parts.append(bits.to_bytes(_width(roster), "little"))
        parts += [table[site] for site in roster if site in table]
    return b"".join(parts)


def unpack(kind: str, about: bytes, roster: Sequence[str], message: bytes, *sizes: int) -> list[dict[str, bytes]]:
    """The tables of a message, whose records have these sizes. Raises WireError for any other message."""
    head = len(MAGIC) + 1
    if message[: len(MAGIC)] != MAGIC or len(message) < head + len(about):
        raise WireError("this is no message of secure aggregation, or only its beginning")
    if message[len(MAGIC)] != _NUMBERS[kind]:
        raise WireError(f"this is another message than the {kind} that comes now")
    if message[head : head + len(about)] != about:
        raise WireError("it is about another run, round, attempt, roster, model or Job than this site's")
    tables, at = [], head + len(about)
    for size in sizes:
        table, at = _table(roster, message, at, size)
        tables.append(table)
    if at != len(message):
        raise WireError(f"it has {len(message)} bytes, not {at}")
    return tables


def _table(roster: Sequence[str], message: bytes, at: int, size: int) -> tuple[dict[str, bytes], int]:
    bits, at = int.from_bytes(message[at : at + _width(roster)], "little"), at + _width(roster)
    if bits >> len(roster):
        raise WireError("it names more sites than were asked")
    names = [site for i, site in enumerate(roster) if bits >> i & 1]
    end = at + size * len(names)
    if end > len(message):
        raise WireError(f"it has {len(message)} bytes, and should have {end} at least")
    return {site: message[at + size * i : at + size * (i + 1)] for i, site in enumerate(names)}, end


def _width(roster: Sequence[str]) -> int:
    return (len(roster) + 7) // 8


@contextmanager
def at_stage(kind: type[SiteError], site: str, stage: str, remedy: str) -> Iterator[None]:
    """Turns what can be wrong with bytes into an error that names site, stage and remedy; no secret is in its text."""
    why = ""
    try:
        yield
    except WireError as error:
        why = str(error)
    except InvalidSignature:
        why = "a signature is not of the key that the pinned register has for its site"
    except InvalidTag:
        why = "an encrypted share was changed, or is for another Task"
    except ValueError:
        why = "a key or a number in it is none"
    if why:
        raise kind(site, stage, why, remedy)
