"""A site's state of one sealed Task as bytes for its disk: encrypted, and without secrets once the Task is over.
The key for it comes in from the site; what cannot be opened is refused.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from foedus.privacy.masking.streams import derived
from foedus.privacy.masking.tables import Unsafe

NONCE = 12
KINDS = ("keys", "shared", "masked", "agreed", "revealed", "over")  # in this order, never back
State = Mapping[str, Any]  # bytes as hex


class Own(NamedTuple):
    """What a site brings along: `publics` are the raw Ed25519 keys of the register that it pinned, by name.

    `rest` (32 bytes) encrypts its states. `least`: the fewest sites whose sum it will be a part of; with two of them
    each learns the other's update.
    """

    name: str
    key: Ed25519PrivateKey
    publics: Mapping[str, bytes]
    rest: bytes
    least: int = 3

    def __repr__(self) -> str:
        return f"Own({self.name!r}, least={self.least})"


def rest_key(key: Ed25519PrivateKey) -> bytes:
    """A key for states, derived from the site's own: as safe at rest as that one is."""
    return derived(key.private_bytes_raw(), b"foedus/secagg/1/rest")


def closed(own: Own, state: State) -> bytes:
    """The state as bytes; only `own.rest` opens them."""
    nonce = secrets.token_bytes(NONCE)
    return nonce + AESGCM(own.rest).encrypt(nonce, json.dumps(state).encode(), _about(own))


def opened(own: Own, data: bytes) -> dict[str, Any]:
    """The state of these bytes. Raises Unsafe where they were changed, cut, or are another site's."""
    try:
        found: dict[str, Any] = json.loads(AESGCM(own.rest).decrypt(data[:NONCE], data[NONCE:], _about(own)))
        return found
    except (InvalidTag, ValueError):
        pass
    raise Unsafe(own.name, "reading its state", "the file is damaged", "drop out of this Task: others make up for it")


def kind(own: Own, data: bytes) -> str:
    """How far the site is: keys, shared, masked, agreed, revealed or over."""
    return str(opened(own, data)["kind"])


def released(own: Own, data: bytes) -> bool:
    """Whether a share may have left this site: from then on the same update is never masked again."""
    return bool(opened(own, data)["released"])


def settled(own: Own, data: bytes) -> bytes:
    """The state once its Task is over, or given up: what was signed and whether shares left, no secret any more."""
    return closed(own, over(opened(own, data), "over"))


def over(state: State, end: str, **more: Any) -> State:
    kept = ("slot", "task", "context", "survivors", "released")
    return {name: state[name] for name in kept if name in state} | {"kind": end} | more


def _about(own: Own) -> bytes:
    return b"foedus/secagg/state/1\n" + own.name.encode()
