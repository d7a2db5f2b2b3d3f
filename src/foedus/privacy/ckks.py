"""Whole numbers under homomorphic encryption: encrypted at sites, added by anybody, exact again once decrypted.
Arrays and bytes come in; the scheme is CKKS (Cheon, Kim, Kim and Song 2017), as TenSEAL has it from Microsoft SEAL.

A ciphertext has 4,096 numbers in polynomials of degree 8,192 modulo 60 + 60 bits, which is 128-bit security and more
(218 bits would be: Homomorphic Encryption Standard, 2018, table 1). Words of 32 bits are encrypted as multiples of
2^-12 at scale 2^40; their error is below a thousandth of one, so that rounding takes it away. Nothing but rounded
numbers is ever told: what Li and Micciancio 2021 find in CKKS's approximate answers is not in them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from foedus.errors import FoedusError, Missing
from foedus.params import Array

DEGREE, MODULI, SCALE = 8192, (60, 60), 40
SLOTS = DEGREE // 2  # words of a ciphertext
UNIT = 2.0**-12
ROOM = 132_096  # bytes of a ciphertext or a key, its length before it and zeros behind


def new_key() -> bytes:
    """A new secret key, from the operating system's randomness."""
    kept = {"save_public_key": False, "save_secret_key": True, "save_galois_keys": False, "save_relin_keys": False}
    return _padded(_context().serialize(**kept))


def encrypted(key: bytes, words: Array) -> Array:
    """uint32 words (n,) as ciphertexts, uint8 (ciphertexts, ROOM)."""
    seal, own = _tenseal(), _tenseal().context_from(_read(key))
    signed = words.view(np.int32).astype(np.float64) * UNIT
    parts = [signed[at : at + SLOTS].tolist() for at in range(0, len(words), SLOTS)]
    return _rows(_padded(seal.ckks_vector(own, part).serialize()) for part in parts)


def added(texts: Sequence[Array]) -> Array:
    """The ciphertexts of the sums, of those of several sites; no key is needed. FoedusError for what is none."""
    seal, nobody = _tenseal(), _context()
    found = []
    for rows in zip(*texts, strict=True):
        total = None
        for row in rows:
            one = _vector(seal, nobody, row)
            total = one if total is None else total + one
        assert total is not None
        found.append(_padded(total.serialize()))
    return _rows(iter(found))


def decrypted(key: bytes, texts: Array, size: int) -> Array:
    """The words (uint32, modulo 2^32) of a sum of which no number is beyond 31 bits."""
    seal, own = _tenseal(), _tenseal().context_from(_read(key))
    numbers = np.concatenate([np.array(_vector(seal, own, row).decrypt()) for row in texts])
    return (np.rint(numbers[:size] / UNIT).astype(np.int64) % (1 << 32)).astype("<u4")


def count(size: int) -> int:
    """How many ciphertexts so many words have."""
    return -(-size // SLOTS)


def _context() -> Any:
    seal = _tenseal()
    symmetric = seal.ENCRYPTION_TYPE.SYMMETRIC
    made = seal.context(
        seal.SCHEME_TYPE.CKKS, DEGREE, coeff_mod_bit_sizes=list(MODULI), encryption_type=symmetric, n_threads=1
    )
    made.global_scale = 2.0**SCALE
    return made


def _vector(seal: Any, context: Any, row: Array) -> Any:
    try:
        return seal.ckks_vector_from(context, _read(row.tobytes()))
    except (RuntimeError, ValueError) as error:
        raise FoedusError(f"this is no ciphertext ({error})") from None


def _padded(data: bytes) -> bytes:
    return (len(data).to_bytes(4, "little") + data).ljust(ROOM, b"\0")


def _read(data: bytes) -> bytes:
    return data[4 : 4 + int.from_bytes(data[:4], "little")]


def _rows(rows: Iterator[bytes]) -> Array:
    return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, ROOM)


def _tenseal() -> Any:
    try:
        import tenseal
    except ImportError as error:
        raise Missing("tenseal", "he") from error
    return tenseal
