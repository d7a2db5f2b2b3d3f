"""The server's side of secure aggregation: it passes on what sites sign and encrypt, and takes the masks off their sum.
Messages of sites come in; what goes out is a message for all, or the sum. What is kept is the caller's to journal.

`Refused` names a site whose message is not what it should be: the Task goes on without it. `Paused`: too few are left,
and the Task is retried under new keys, which is allowed while no site has revealed a share.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from foedus.errors import FoedusError, Paused, Refused
from foedus.params import Array
from foedus.privacy import shamir
from foedus.privacy.masking.site import (
    ADVERT,
    KEY,
    SEALED,
    SHARE,
    SIGNATURE,
    commitment,
    own_mask,
    pair_mask,
    signed_advert,
    signed_survivors,
)
from foedus.privacy.masking.streams import Mask, add, exchange_key, public_of
from foedus.privacy.masking.tables import STAGES, Table, at_stage, pack, unpack
from foedus.privacy.masking.terms import Terms, holders, place

GONE = "the Task goes on without it"


class Shares(NamedTuple):
    """What a site shared: the commitment to its seed, and an encrypted record for each peer that it picked."""

    proof: bytes
    sealed: Table


class Sealed(NamedTuple):
    """All that the server knows of a Task when it takes the masks off: rebuilt from the messages that it kept."""

    adverts: Table
    shares: Mapping[str, Shares]
    survivors: frozenset[str]


def read_advert(given: Terms, publics: Table, site: str, message: bytes) -> bytes:
    """The keys that a site advertised. Raises Refused."""
    with at_stage(Refused, site, STAGES["advertisement"], GONE):
        advert = advert_of(given, site, message)
        key = Ed25519PublicKey.from_public_bytes(publics[site])
        key.verify(advert[-SIGNATURE:], signed_advert(given, site, advert[:-SIGNATURE]))
    return advert


def advert_of(given: Terms, site: str, message: bytes) -> bytes:
    """The keys in an advertisement, whoever has signed it. Raises WireError or ValueError."""
    return _one(unpack("advertisement", given.slot, given.roster, message, ADVERT)[0], site)


def keys(given: Terms, adverts: Table) -> bytes:
    """The message for all sites that advertised. Raises Paused where they are too few."""
    _enough(given, adverts, "keys")
    return pack("keys", given.slot, given.roster, adverts)


def read_shares(given: Terms, adverts: Table, site: str, message: bytes) -> Shares:
    """What a site shared. Raises Refused."""
    with at_stage(Refused, site, STAGES["shares"], GONE):
        proof, sealed = unpack("shares", given.context, given.roster, message, KEY, SEALED)
        found = Shares(_one(proof, site), sealed)
        others, least = holders(given)
        peers, whole = adverts.keys() - {site}, others == len(given.roster) - 1
        if not sealed.keys() <= peers or (whole and sealed.keys() != peers) or not least - 1 <= len(sealed) <= others:
            raise ValueError
    return found


def deliveries(given: Terms, shares: Mapping[str, Shares]) -> dict[str, bytes]:
    """site -> its message: who shared, and what is its to hold. Raises Paused where they are too few."""
    _enough(given, shares, "delivery")
    present = dict.fromkeys(shares, b"")
    return {
        site: pack(
            "delivery",
            given.context,
            given.roster,
            present,
            {peer: theirs.sealed[site] for peer, theirs in shares.items() if site in theirs.sealed},
        )
        for site in shares
    }


def survivors(given: Terms, arrived: Iterable[str]) -> bytes:
    """The message with the sites whose masked words arrived: journaled before it is sent, and one for ever."""
    alive = dict.fromkeys(arrived, b"")
    _enough(given, alive, "survivors")
    return pack("survivors", given.context, given.roster, alive)


def read_agreement(given: Terms, publics: Table, asked: bytes, site: str, message: bytes) -> bytes:
    """A site's signature under the survivors that it was asked about. Raises Refused."""
    with at_stage(Refused, site, STAGES["agreement"], GONE):
        signature = _one(unpack("agreement", given.context, given.roster, message, SIGNATURE)[0], site)
        Ed25519PublicKey.from_public_bytes(publics[site]).verify(signature, signed_survivors(given, asked))
    return signature


def endorsement(given: Terms, signatures: Table) -> bytes:
    """The message with as many signatures as are needed. Raises Paused where they are too few."""
    _enough(given, signatures, "endorsement")
    return pack("endorsement", given.context, given.roster, dict(sorted(signatures.items())[: given.threshold]))


def read_reveal(given: Terms, shares: Mapping[str, Shares], site: str, message: bytes) -> dict[str, int]:
    """site -> the one share of it that this survivor held. Raises Refused."""
    with at_stage(Refused, site, STAGES["reveal"], GONE):
        (table,) = unpack("reveal", given.context, given.roster, message, SHARE)
        if table.keys() != {site} | {peer for peer, theirs in shares.items() if site in theirs.sealed}:
            raise ValueError
    return {peer: int.from_bytes(share, "little") for peer, share in table.items()}


def unmask(given: Terms, sealed: Sealed, reveals: Mapping[str, Mapping[str, int]], total: Array) -> None:
    """Takes the masks off `total`, the sum of all survivors' words, in place. Raises Paused, total then as it was.

    Of a survivor its own mask goes, of a lost site the masks that it had in common with survivors. Each secret is
    checked against what its site had said of it, so that false shares are found out.
    """
    seeds = {site: _seed(given, sealed, reveals, site) for site in sorted(sealed.survivors)}
    lost = {site: _private(given, sealed, reveals, site) for site in sorted(sealed.shares.keys() - sealed.survivors)}
    masks = [own_mask(given, site, seed, bool(sealed.adverts[site][0])) for site, seed in seeds.items()]
    add(total, [mask._replace(minus=True) for mask in masks] + _left_over(given, sealed, lost))


def fold(total: Array | None, words: Array) -> Array:
    """The sum modulo 2**32, in place: of masked words that arrived, in any order."""
    if total is None:
        return words.copy()
    return np.add(total, words, out=total)


def _left_over(given: Terms, sealed: Sealed, lost: Mapping[str, X25519PrivateKey]) -> list[Mask]:
    """The masks of lost sites with survivors, seen from the lost: each is what takes the survivor's part away."""
    adverts = sealed.adverts
    return [
        pair_mask(given, site, peer, private, adverts[site], adverts[peer])
        for site, private in lost.items()
        for peer in sorted(sealed.survivors)
        if peer in sealed.shares[site].sealed or site in sealed.shares[peer].sealed
    ]


def _seed(given: Terms, sealed: Sealed, reveals: Mapping[str, Mapping[str, int]], site: str) -> bytes:
    proof = sealed.shares[site].proof
    for secret in _secrets(given, reveals, site):
        if hmac.compare_digest(commitment(given, site, secret), proof):
            return secret
    raise _false(site)


def _private(given: Terms, sealed: Sealed, reveals: Mapping[str, Mapping[str, int]], site: str) -> X25519PrivateKey:
    for secret in _secrets(given, reveals, site):
        private = exchange_key(secret)
        if public_of(private) == sealed.adverts[site][1 + KEY : 1 + 2 * KEY]:
            return private
    raise _false(site)


def _secrets(given: Terms, reveals: Mapping[str, Mapping[str, int]], site: str) -> Iterable[bytes]:
    """What the shares of a site give: all windows of enough of them, round about, so that one may be false."""
    shares = [(place(given, holder), held[site]) for holder, held in sorted(reveals.items()) if site in held]
    least = holders(given)[1]
    if len(shares) < least:
        raise Paused(f"revealing shares: {len(shares)} of {least} shares of {site!r} are there; more sites must answer")
    for start in range(len(shares) if len(shares) > least else 1):
        window = (shares + shares)[start : start + least]
        secret = shamir.combine(window)
        if secret < 1 << 256:
            yield secret.to_bytes(KEY, "little")


def _false(site: str) -> Paused:
    return Paused(f"revealing shares: the shares of {site!r} do not fit; it, or sites that held them, sent false ones")


def _one(table: Table, site: str) -> bytes:
    if table.keys() != {site}:
        raise ValueError
    return table[site]


def _enough(given: Terms, sites: Iterable[str], kind: str) -> None:
    names = set(sites)
    if not names <= set(given.roster):
        raise FoedusError(f"{STAGES[kind]}: {min(names - set(given.roster))!r} was not asked")
    if len(names) < given.threshold:
        missing = ", ".join(sorted(set(given.roster) - names)[:5])
        raise Paused(
            f"{STAGES[kind]}: {len(names)} of {len(given.roster)} sites are there, and {given.threshold} are needed "
            f"(missing: {missing}); the Task is retried under new keys when they are back"
        )
