"""The site's side of secure aggregation (Bonawitz et al. 2017, figure 4; Bell et al. 2020 above 64 sites).
The server's bytes come in and are believed only as far as they are signed by keys that the site itself pinned.

Each function returns (state, message): the state is durable at the site *before* the message leaves. Each may be called
again, with the newest state: the same question has the same answer, any other question is refused. So each secret is
revealed in one way only: of every peer the share of its own mask, or the share of its pairwise key.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from typing import Any, NoReturn

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from foedus.params import Array
from foedus.privacy import shamir
from foedus.privacy.masking.rest import KINDS, NONCE, Own, State, closed, opened, over
from foedus.privacy.masking.streams import Mask, add, agreed, derived, exchange_key, has_aes, public_of
from foedus.privacy.masking.tables import STAGES, Table, Unsafe, at_stage, pack, unpack
from foedus.privacy.masking.terms import Terms, holders, place, terms

KEY, SHARE, SIGNATURE = 32, 33, 64
ADVERT = 1 + 2 * KEY + SIGNATURE  # has AES, public key for shares, public key for masks, signature
SEALED = NONCE + 2 * SHARE + 16
REMEDY = "this site drops out of the Task; tell the federation's owner if it comes again"


def advertise(own: Own, given: Terms, after: bytes | None = None, anew: bool = False) -> tuple[bytes, bytes]:
    """(state, message): new keys for one Task and attempt, signed. They may be made a round ahead, on the last message.

    `after`: the state of an earlier attempt at this Task, if there was one; keys of this very attempt are kept, and
    those that nothing was done with are dropped. Where a share has left the site, the same update may never be masked
    again: `anew` says that it was computed again, under its attempt's key, and is counted as spent once more.
    """
    _sound(own, given)
    before = opened(own, after) if after is not None else None
    if before and before["slot"] == given.slot.hex() and before["kind"] != "over":
        return _again(own, before, "advert")
    if before and before["task"][:3] == list(given[:3]) and before["kind"] != "keys":
        _check_attempt(own, given, before, anew)
    private = {"c": secrets.token_bytes(KEY), "s": secrets.token_bytes(KEY)}
    keys = bytes([has_aes()]) + b"".join(public_of(exchange_key(private[name])) for name in ("c", "s"))
    signed = keys + own.key.sign(signed_advert(given, own.name, keys))
    message = pack("advertisement", given.slot, given.roster, {own.name: signed})
    state = {name: x.hex() for name, x in private.items()} | {"slot": given.slot.hex(), "task": list(given[:4])}
    return _next(own, state, "keys", message, "advert", released=False)


def share(own: Own, given: Terms, state: bytes, keys: bytes) -> tuple[bytes, bytes]:
    """(state, message): shares of this site's two secrets, encrypted for each peer with the key that it advertised."""
    _sound(own, given)
    now = _found(own, given, state, "keys", keys)
    if "shares" in now:
        return _again(own, now, "shares")
    if now["kind"] != "keys":
        _refuse(own, "keys", "it comes out of turn: the secrets of this Task are erased")
    with at_stage(Unsafe, own.name, STAGES["keys"], REMEDY):
        adverts = _adverts(own, given, now, keys)
        now |= {"context": given.context.hex(), "b": secrets.token_bytes(KEY).hex(), "picked": _picked(own, given)}
        table = _split(own, given, now, adverts)
    proof = {own.name: commitment(given, own.name, bytes.fromhex(now["b"]))}
    message = pack("shares", given.context, given.roster, proof, table)
    return _next(own, now, "shared", message, "shares", keys=keys.hex())


def mask(own: Own, given: Terms, state: bytes, delivery: bytes, words: Array) -> bytes:
    """The state; `words` (uint32, from `encode`) are masked in place, and are the message.

    `delivery` has who shared, and the shares that are this site's to hold. Other words under the same masks would give
    away their difference: they are zeroed, and refused.
    """
    now = _found(own, given, state, "delivery", delivery)
    _reached(own, now, "shared", "delivery")
    if words.dtype != np.dtype("<u4") or words.ndim != 1 or not words.flags.c_contiguous:
        _refuse(own, "delivery", f"words of {words.dtype}, {words.ndim} dimensions: give a flat array of uint32")
    with at_stage(Unsafe, own.name, STAGES["delivery"], REMEDY):
        adverts = _read_adverts(given, bytes.fromhex(now["keys"]))
        peers, held = _held(own, given, now, adverts, delivery)
        add(words, _masks(own, given, now, adverts, peers))
    digest = hashlib.sha256(words.view(np.uint8).data).hexdigest()
    if now.get("words", digest) != digest:
        words[:] = 0
        _refuse(own, "delivery", "another update was masked for this Task before")
    if "words" in now:
        return state
    return _next(own, now | {"held": held, "words": digest}, "masked", b"", "", delivery=delivery.hex())[0]


def agree(own: Own, given: Terms, state: bytes, survivors: bytes) -> tuple[bytes, bytes]:
    """(state, message): this site's signature under the set of sites whose masked words arrived; one set, for ever."""
    now = _found(own, given, state, "survivors", survivors)
    if "agreement" in now:
        return _again(own, now, "agreement")
    _reached(own, now, "masked", "survivors")
    with at_stage(Unsafe, own.name, STAGES["survivors"], REMEDY):
        (alive,) = unpack("survivors", given.context, given.roster, survivors, 0)
        (shared, _) = unpack("delivery", given.context, given.roster, bytes.fromhex(now["delivery"]), 0, SEALED)
    least = max(given.threshold, own.least)
    if not alive.keys() <= shared.keys() or own.name not in alive:
        _refuse(own, "survivors", "the set has sites that shared nothing, or lacks this one")
    if len(alive) < least:
        _refuse(own, "survivors", f"{len(alive)} sites are left, and this site is part of no sum of fewer than {least}")
    signature = own.key.sign(signed_survivors(given, survivors))
    message = pack("agreement", given.context, given.roster, {own.name: signature})
    return _next(own, now, "agreed", message, "agreement", survivors=survivors.hex())


def reveal(own: Own, given: Terms, state: bytes, endorsement: bytes) -> tuple[bytes, bytes]:
    """(state, message): of each peer one share, of its own mask if it is among the survivors, of its key if it is not.

    Only once enough sites have signed the very set that this site signed. The state has no secret left.
    """
    now = _found(own, given, state, "endorsement", b"")
    if "reveal" in now:
        return _again(own, now, "reveal")
    _reached(own, now, "agreed", "endorsement")
    survivors = bytes.fromhex(now["survivors"])
    with at_stage(Unsafe, own.name, STAGES["endorsement"], REMEDY):
        (alive,) = unpack("survivors", given.context, given.roster, survivors, 0)
        (signed,) = unpack("endorsement", given.context, given.roster, endorsement, SIGNATURE)
        for site, signature in signed.items():
            _public(own, site).verify(signature, signed_survivors(given, survivors))
    if not signed.keys() <= alive.keys() or len(signed) < given.threshold:
        count = len(signed.keys() & alive.keys())
        _refuse(own, "endorsement", f"{count} of {given.threshold} survivors signed the set of survivors")
    shares = {site: bytes.fromhex(pair) for site, pair in now["held"].items()}
    table = {site: pair[SHARE:] if site in alive else pair[:SHARE] for site, pair in shares.items()}
    message = pack("reveal", given.context, given.roster, table)
    ended = over(now, "revealed", agreement=now["agreement"], reveal=message.hex(), released=True)
    return closed(own, ended), message


def _sound(own: Own, given: Terms) -> None:
    """Terms may come from the server: a roster in another order, or a lower threshold, would protect nobody."""
    if given != terms(*given) or own.name not in given.roster:
        _refuse(own, "advertisement", "the Task's roster is not in order, or this site is not in it")


def _check_attempt(own: Own, given: Terms, before: State, anew: bool) -> None:
    if before["task"][3] >= given.attempt or before["kind"] != "over":
        _refuse(
            own, "advertisement", f"attempt {before['task'][3]} of this Task is not over here, or is no earlier one"
        )
    if before["released"] and not anew:
        _refuse(own, "advertisement", "a share of this Task has left this site: its update is not masked a second time")


def _adverts(own: Own, given: Terms, now: State, keys: bytes) -> dict[str, bytes]:
    """All advertised keys, each signed by the site that it names and by nobody's wish there twice."""
    adverts = _read_adverts(given, keys)
    (mine,) = unpack("advertisement", given.slot, given.roster, bytes.fromhex(now["advert"]), ADVERT)
    if adverts.get(own.name) != mine[own.name]:
        _refuse(own, "keys", "this site's own keys are not among them as it sent them")
    if len(adverts) < max(given.threshold, own.least):
        _refuse(own, "keys", f"only {len(adverts)} sites have sent keys")
    for site, advert in adverts.items():
        _public(own, site).verify(advert[-SIGNATURE:], signed_advert(given, site, advert[:-SIGNATURE]))
    public = [x for advert in adverts.values() for x in (advert[1:33], advert[33:65])]
    if len(set(public)) < len(public):
        _refuse(own, "keys", "two keys are the same")
    return adverts


def _read_adverts(given: Terms, keys: bytes) -> dict[str, bytes]:
    return unpack("keys", given.slot, given.roster, keys, ADVERT)[0]


def _picked(own: Own, given: Terms) -> list[str]:
    """With whom this site shares: chosen by itself, among all asked, so that no server can choose its neighbours."""
    others = [site for site in given.roster if site != own.name]
    return sorted(secrets.SystemRandom().sample(others, holders(given)[0]))


def _split(own: Own, given: Terms, now: dict[str, Any], adverts: Table) -> dict[str, bytes]:
    """site -> its shares of the key for masks and of the own mask's seed, encrypted; this site keeps its own."""
    names = [site for site in given.roster if site in adverts and site in {own.name, *now["picked"]}]
    least = holders(given)[1]
    if len(names) < least:
        _refuse(own, "keys", f"only {len(names)} of the sites that it picked have sent keys, and {least} are needed")
    places = [place(given, site) for site in names]
    values = [shamir.split_at(int.from_bytes(bytes.fromhex(now[x]), "little"), places, least) for x in ("s", "b")]
    rows = zip(*([y.to_bytes(SHARE, "little") for _, y in shares] for shares in values), strict=True)
    pairs = {site: s + b for site, (s, b) in zip(names, rows, strict=True)}
    now["mine"] = pairs.pop(own.name).hex()
    private = exchange_key(bytes.fromhex(now["c"]))
    return {site: _seal(own, given, private, adverts, site, pair) for site, pair in pairs.items()}


def _seal(own: Own, given: Terms, private: X25519PrivateKey, adverts: Table, to: str, pair: bytes) -> bytes:
    nonce = secrets.token_bytes(NONCE)
    key = _share_key(given, private, adverts[to], own.name, to)
    return nonce + AESGCM(key).encrypt(nonce, pair, given.context)


def _share_key(given: Terms, private: X25519PrivateKey, advert: bytes, sender: str, to: str) -> bytes:
    common = agreed(private, advert[1:33])
    return derived(common, b"foedus/secagg/1/share", given.context, sender.encode(), to.encode())


def _held(own: Own, given: Terms, now: State, adverts: Table, delivery: bytes) -> tuple[list[str], dict[str, str]]:
    """(the peers with whom this site has a mask in common, site -> the two shares that it holds)."""
    shared, sealed = unpack("delivery", given.context, given.roster, delivery, 0, SEALED)
    if not sealed.keys() <= shared.keys() <= adverts.keys() or own.name not in shared or own.name in sealed:
        _refuse(own, "delivery", "the sites that shared are not of those with keys, or this one is not among them")
    if len(shared) < max(given.threshold, own.least):
        _refuse(own, "delivery", f"only {len(shared)} sites have shared their secrets")
    picked = shared.keys() & set(now["picked"])
    if len(now["picked"]) == len(given.roster) - 1 and sealed.keys() != picked:
        _refuse(own, "delivery", "shares of some sites were kept back")
    private, held = exchange_key(bytes.fromhex(now["c"])), {own.name: now["mine"]}
    for site, box in sealed.items():
        key = _share_key(given, private, adverts[site], site, own.name)
        held[site] = AESGCM(key).decrypt(box[:NONCE], box[NONCE:], given.context).hex()
    return sorted(sealed.keys() | picked), held


def _masks(own: Own, given: Terms, now: State, adverts: Table, peers: Iterable[str]) -> list[Mask]:
    private, aes = exchange_key(bytes.fromhex(now["s"])), bool(adverts[own.name][0])
    found = [own_mask(given, own.name, bytes.fromhex(now["b"]), aes)]
    return found + [pair_mask(given, own.name, site, private, adverts[own.name], adverts[site]) for site in peers]


def own_mask(given: Terms, site: str, seed: bytes, aes: bool) -> Mask:
    """The mask that only this site knows until the survivors give its seed back."""
    return Mask(derived(seed, b"foedus/secagg/1/own", given.context, site.encode()), aes, False)


def pair_mask(given: Terms, site: str, peer: str, private: X25519PrivateKey, advert: bytes, other: bytes) -> Mask:
    """The mask that `site`, whose private key this is, has in common with `peer`: one adds it, one takes it away."""
    names = sorted((site, peer))
    key = derived(agreed(private, other[33:65]), b"foedus/secagg/1/pair", given.context, *(n.encode() for n in names))
    return Mask(key, bool(advert[0] and other[0]), site != names[0])


def commitment(given: Terms, site: str, seed: bytes) -> bytes:
    """32 bytes by which the server will know the right seed when the shares give it back; they say nothing about it."""
    return derived(seed, b"foedus/secagg/1/commitment", given.context, site.encode())


def signed_advert(given: Terms, site: str, keys: bytes) -> bytes:
    return b"foedus/maskingkeys/1\n" + given.slot + site.encode() + b"\n" + keys


def signed_survivors(given: Terms, survivors: bytes) -> bytes:
    return b"foedus/survivors/1\n" + given.context + survivors


def _public(own: Own, site: str) -> Ed25519PublicKey:
    if site not in own.publics:
        _refuse(own, "keys", f"{site!r} is not in the register that this site pinned")
    return Ed25519PublicKey.from_public_bytes(own.publics[site])


def _found(own: Own, given: Terms, state: bytes, asked: str, question: bytes) -> dict[str, Any]:
    """The open state, if it is of this Task and the question is the one that was asked before, if any was."""
    now = opened(own, state)
    if now["slot"] != given.slot.hex() or now.get("context", given.context.hex()) != given.context.hex():
        _refuse(own, asked, "it is about another run, round, attempt, roster, model or Job than this site's keys")
    if now["kind"] == "over":
        _refuse(own, asked, "this Task is over here")
    if question and now.get(asked, question.hex()) != question.hex():
        _refuse(own, asked, "the question was asked before, and was another one")
    return now


def _reached(own: Own, now: State, kind: str, asked: str) -> None:
    if KINDS.index(now["kind"]) < KINDS.index(kind) or now["kind"] == "revealed":
        _refuse(own, asked, f"it comes out of turn: this site has {now['kind']!r}")


def _again(own: Own, now: State, message: str) -> tuple[bytes, bytes]:
    if message not in now:
        raise Unsafe(own.name, "answering again", "that answer was erased with the secrets", REMEDY)
    return closed(own, now), bytes.fromhex(now[message])


def _next(own: Own, now: State, kind: str, message: bytes, name: str, **more: Any) -> tuple[bytes, bytes]:
    said = {name: message.hex()} if name else {}
    return closed(own, {**now, **said, **more, "kind": kind}), message


def _refuse(own: Own, asked: str, why: str) -> NoReturn:
    raise Unsafe(own.name, STAGES[asked], why, REMEDY)
