"""Messages between sites that a server passes on and cannot read: who they are from and for is known, and their size.
Keys and bytes come in, cryptography when it is needed; who is who says the register that each site pinned.

For each run a site has an X25519 key, made of its secret; its public half is signed with the site's enrolled key
(Ed25519). A message is encrypted once (AES-256-GCM), and its key once for each reader, under what the two keys have in
common (HKDF-SHA256, whose `info` binds run, matter, sender and reader). So nobody else can have written it either, and
one of another run, round or step cannot be opened. The same message has the same bytes again, and another one another
key: both are made of the site's secret and a hash of the message.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from foedus.errors import Refused
from foedus.keys import Key, key

KEY, NONCE, TAG, SIGNATURE = 32, 12, 16, 64
STATEMENT = KEY + SIGNATURE  # public key for messages, signature
WRAP = NONCE + KEY + TAG  # the key of a message, for one reader
REMEDY = "nothing of it is used; tell the federation's owner if it comes again"


class Identity(NamedTuple):
    """Who a site is to the others of a run; `public` gives a site's enrolled key as this one pinned it, or None."""

    run: str
    name: str
    private: bytes
    statement: bytes
    public: Callable[[str], bytes | None]


class Letter(NamedTuple):
    """A message as it travels: `body` for all its readers, and of each the key to it."""

    body: bytes
    wraps: Mapping[str, bytes]


def private_of(secret: Key) -> bytes:
    """A site's key for the messages of a run, by the secret that it has for this run."""
    return secret("relay").digest()


def stated(run: str, name: str, secret: Key, sign: Callable[[bytes], bytes]) -> bytes:
    """What a site tells of its key: the public half, and its signature with the enrolled key."""
    from foedus.privacy.masking.streams import exchange_key, public_of

    public = public_of(exchange_key(private_of(secret)))
    return public + sign(_signed(run, name, public))


def simulated(seed: int, name: str) -> Identity:
    """The identity of a simulated site: all of its keys are named by the seed."""
    secret = key(seed, "secret", 0, name)
    return Identity(
        "", name, private_of(secret), stated("", name, secret, _enrolled(seed, name).sign), partial(_public, seed)
    )


def read(own: Identity, name: str, statement: bytes) -> bytes:
    """The public key that a site stated. Raises Refused where the register does not say that it is its own."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    enrolled, public = own.public(name), statement[:KEY]
    if enrolled is None:
        raise _refused(name, "it is not in the register that this site pinned")
    try:
        Ed25519PublicKey.from_public_bytes(enrolled).verify(statement[KEY:], _signed(own.run, name, public))
    except InvalidSignature:
        raise _refused(name, "its key for messages is not signed with its enrolled key for this run") from None
    return public


def sealed(own: Identity, readers: Mapping[str, bytes], matter: str, message: bytes) -> Letter:
    """The message for these readers, site -> its statement; `matter` says what it is about. Raises Refused."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    from foedus.privacy.masking.streams import derived

    content = derived(own.private, b"foedus/relay/1/content", matter.encode(), hashlib.sha256(message).digest())
    body = AESGCM(content).encrypt(bytes(NONCE), message, _about(own.run, matter, own.name))
    wraps = {}
    for name, statement in readers.items():
        between = _between(own, read(own, name, statement), matter, own.name, name)
        nonce = derived(own.private, b"foedus/relay/1/nonce", content, name.encode())[:NONCE]
        wraps[name] = nonce + AESGCM(between).encrypt(nonce, content, b"")
    return Letter(body, wraps)


def opened(own: Identity, sender: str, statement: bytes, matter: str, body: bytes, wrap: bytes) -> bytes:
    """What the sender wrote to this site. Raises Refused for anything that is not that, whole and unchanged."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    between = _between(own, read(own, sender, statement), matter, sender, own.name)
    try:
        content = AESGCM(between).decrypt(wrap[:NONCE], wrap[NONCE:], b"")
        return AESGCM(content).decrypt(bytes(NONCE), body, _about(own.run, matter, sender))
    except (InvalidTag, ValueError):
        raise _refused(sender, f"its message of {matter} was changed, or is for another site, round or step") from None


def _between(own: Identity, public: bytes, matter: str, sender: str, reader: str) -> bytes:
    from foedus.privacy.masking.streams import agreed, derived, exchange_key

    common = agreed(exchange_key(own.private), public)
    return derived(common, b"foedus/relay/1/key", *(x.encode() for x in (own.run, matter, sender, reader)))


def _about(run: str, matter: str, sender: str) -> bytes:
    return "\n".join(("foedus/relay/1", run, matter, sender)).encode()


def _signed(run: str, name: str, public: bytes) -> bytes:
    return f"foedus/relaykey/1\n{run}\n{name}\n".encode() + public


def _enrolled(seed: int, name: str) -> Any:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(key(seed, "enrolled", 0, name).digest())


def _public(seed: int, name: str) -> bytes:
    public: bytes = _enrolled(seed, name).public_key().public_bytes_raw()
    return public


def _refused(site: str, why: str) -> Refused:
    return Refused(site, "opening a sealed message", why, REMEDY)
