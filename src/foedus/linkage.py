"""Private set intersection: who is known to several sites, without saying who anybody is. Pure functions over bytes.
Only the errors may come in; the group is edwards25519 of libsodium (PyNaCl), imported when it is needed.

Diffie–Hellman PSI (Meadows 1986; Huberman, Franklin and Hogg 1999): each site multiplies points H(id) by its own secret
number. Once every site has done so, equal ids are equal points, whoever began, and nobody else can tell whose they are.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from foedus.errors import FoedusError, explained

POINT = 32  # bytes
DOMAIN = b"foedus/linkage/1"


class Linked(NamedTuple):
    """What comes out: each site's positions of those known to all, how many these are, and how many people in all."""

    positions: Mapping[str, list[int]]  # in the order of the site's own points
    common: int
    union: int


def identifier(value: Any) -> bytes:
    """What is hashed of an id: bytes as they are; text (NFC) and whole numbers as text, so that 7 and "7" are one.

    Raises FoedusError for anything else, for 7.0 and "7" would be two.
    """
    if isinstance(value, bytes):
        return bytes(value)
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value).encode()
    if hasattr(value, "__index__") and not isinstance(value, bool):
        return str(int(value)).encode()
    raise FoedusError(f"an id is text, bytes or a whole number, not {type(value).__name__}: convert it at every site")


def hashed(id: bytes) -> bytes:
    """The point of an id: two maps to the curve (Elligator 2) added up, as hash_to_curve of RFC 9380 does."""
    lib, wide = _group(), hashlib.sha512(len(DOMAIN).to_bytes(1, "big") + DOMAIN + id).digest()
    one, other = (lib.crypto_core_ed25519_from_uniform(part) for part in (wide[:POINT], wide[POINT:]))
    return bytes(lib.crypto_core_ed25519_add(one, other))


def scalar(secret: bytes) -> bytes:
    """The secret number of a site, from at least 32 bytes that only this site can know."""
    if len(secret) < POINT:
        raise FoedusError(f"a secret of {len(secret)} bytes can be guessed: give at least {POINT}")
    return bytes(_group().crypto_core_ed25519_scalar_reduce(hashlib.sha512(DOMAIN + secret).digest()))


def blinded(points: Iterable[bytes], number: bytes) -> list[bytes]:
    """Every point times the number, in the same order. Raises FoedusError for what is no point of the group."""
    multiply, found = _group().crypto_scalarmult_ed25519_noclamp, []
    for i, point in enumerate(points):
        try:
            found.append(bytes(multiply(number, point)))
        except Exception as error:  # PyNaCl says only that it failed: not on the curve, or of small order
            raise FoedusError(f"point {i} is none of the group: whoever sent it did not blind an id") from error
    return found


def matched(points: Mapping[str, Sequence[bytes]]) -> Linked:
    """Who is in all sets, from the points that every site has multiplied: site -> points in the site's own order.

    >>> matched({"north": [b"a", b"b", b"c"], "south": [b"c", b"d", b"a"]})
    Linked(positions={'north': [0, 2], 'south': [0, 2]}, common=2, union=4)
    """
    if not points:
        raise FoedusError("there is no site whose people could be compared")
    sets = {site: set(own) for site, own in points.items()}
    twice = sorted(site for site, own in points.items() if len(sets[site]) < len(own))
    if twice:
        raise FoedusError(f"site {twice[0]!r} sent a point twice: every person has one row there")
    common = set.intersection(*sets.values())
    found = {site: [i for i, point in enumerate(own) if point in common] for site, own in points.items()}
    return Linked(found, len(common), len(set().union(*sets.values())))


def intersection(ids: Mapping[str, Sequence[Any]], secrets: Mapping[str, bytes]) -> Linked:
    """The whole protocol in one process: what `fd.link()` does between sites. `positions` are those of `ids`.

    >>> both = intersection({"bank": ["ann", "bob"], "shop": ["eve", "bob"]}, {"bank": b"x" * 32, "shop": b"y" * 32})
    >>> both.positions, both.union
    ({'bank': [1], 'shop': [1]}, 3)
    """
    numbers = {site: scalar(secrets[site]) for site in ids}
    sent = {site: [hashed(identifier(x)) for x in own] for site, own in ids.items()}
    for step in range(len(numbers)):
        sent = {site: blinded(points, numbers[turn(sorted(ids), site, step)]) for site, points in sent.items()}
    return matched(sent)


def turn(sites: Sequence[str], site: str, step: int) -> str:
    """Who multiplies this site's points in that step: itself first, then who follows in the circle."""
    return sites[(sites.index(site) + step) % len(sites)]


def _group() -> Any:
    try:
        from nacl import bindings
    except ImportError as error:
        raise explained(error) from error
    return bindings
