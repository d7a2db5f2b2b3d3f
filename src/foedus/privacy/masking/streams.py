"""The masks: keys that two sites agree on, and the streams of 32-bit words that come of them.
Secret keys come in from the site's state only. Nothing here is kept, printed or named in an error.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from foedus.params import Array

BLOCK = 1 << 15  # words: a mask's and the sum's then lie in the core's own memory


class Mask(NamedTuple):
    """A stream that is added, or taken away where `minus`."""

    key: bytes
    aes: bool
    minus: bool

    def __repr__(self) -> str:
        return f"Mask({'AES-256-CTR' if self.aes else 'ChaCha20'}, minus={self.minus})"


@lru_cache
def has_aes() -> bool:
    """Whether this processor has instructions for AES; without them a ChaCha20 mask costs a tenth of an AES one."""
    with suppress(OSError):
        words = Path("/proc/cpuinfo").read_text().split()
        return "aes" in words
    return platform.machine() in ("x86_64", "AMD64", "arm64")


def derived(secret: bytes, *info: bytes) -> bytes:
    """32 bytes by HKDF-SHA256 (RFC 5869), without salt; each part of `info` has its length in front."""
    framed = b"".join(len(part).to_bytes(2, "big") + part for part in info)
    return HKDF(SHA256(), 32, None, framed).derive(secret)


def exchange_key(private: bytes) -> X25519PrivateKey:
    """The X25519 key of 32 secret bytes; reading one takes as long as an exchange."""
    return X25519PrivateKey.from_private_bytes(private)


def agreed(private: X25519PrivateKey, public: bytes) -> bytes:
    """What two sites' X25519 keys have in common. ValueError for a public key that gives nothing secret."""
    return private.exchange(X25519PublicKey.from_public_bytes(public))


def public_of(private: X25519PrivateKey) -> bytes:
    """The public key, 32 bytes."""
    return private.public_key().public_bytes_raw()


def stream(key: bytes, words: int, aes: bool = True) -> Array:
    """The first words of a key's stream: AES-256-CTR from a zero counter, or ChaCha20 from a zero nonce."""
    found = np.zeros(words, "<u4")
    add(found, [Mask(key, aes, False)])
    return found


def add(words: Array, masks: Sequence[Mask]) -> None:
    """Adds all the masks to `words` (uint32) in place, modulo 2**32."""
    sources = [(_cipher(mask), np.subtract if mask.minus else np.add) for mask in masks]
    zeros, room = bytes(4 * min(BLOCK, words.size)), bytearray(4 * min(BLOCK, words.size))
    drawn = np.frombuffer(room, "<u4")
    for start in range(0, words.size, BLOCK):
        part = words[start : start + BLOCK]
        nothing = memoryview(zeros)[: part.nbytes]
        for source, apply in sources:
            source.update_into(nothing, room)
            apply(part, drawn[: part.size], out=part)
    room[:] = bytes(len(room))


def _cipher(mask: Mask) -> Any:
    if mask.aes:
        return Cipher(algorithms.AES(mask.key), modes.CTR(bytes(16))).encryptor()
    return Cipher(algorithms.ChaCha20(mask.key, bytes(16)), None).encryptor()
