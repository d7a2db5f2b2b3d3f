"""Additive homomorphic encryption of whole numbers (Paillier 1999): who has the public key may add, nobody else reads.
Integers and rows of bytes come in; the scheme is python-paillier's, and gmpy2 makes it fast."""

from __future__ import annotations

import secrets
from typing import Any, NamedTuple

import numpy as np

from foedus.errors import FoedusError, Missing
from foedus.params import Array

BITS = 2048  # of a modulus: 112-bit security (NIST SP 800-57, table 2)
MODULUS, CIPHER = BITS // 8, BITS // 4  # bytes
SHIFT = 64  # two numbers travel as one: the first above these bits, the second, not negative, below


class Key(NamedTuple):
    """The two primes, which are the secret, as bytes; and their product, which is public."""

    p: bytes
    q: bytes

    @property
    def modulus(self) -> bytes:
        return (_int(self.p) * _int(self.q)).to_bytes(MODULUS, "little")


def new_key() -> Key:
    """A new key, of the operating system's randomness."""
    _, private = _phe().generate_paillier_keypair(n_length=BITS)
    return Key(*(int(x).to_bytes(MODULUS, "little") for x in (private.p, private.q)))


def encrypted(key: Key, first: Array, second: Array) -> Array:
    """Pairs of whole numbers (n,) as ciphertexts, uint8 (n, CIPHER); |first| and second are below 2^63."""
    import gmpy2

    p, q = gmpy2.mpz(_int(key.p)), gmpy2.mpz(_int(key.q))
    n, p2, q2 = p * q, p * p, q * q
    square, back = n * n, gmpy2.invert(p2, q2)
    ep, eq = n % (p * (p - 1)), n % (q * (q - 1))
    rows = []
    for g, h in zip(first.tolist(), second.tolist(), strict=True):
        r = gmpy2.mpz(secrets.randbelow(int(n) - 1) + 1)
        a, b = gmpy2.powmod(r, ep, p2), gmpy2.powmod(r, eq, q2)  # r^n, by the primes' squares apart
        blind = a + p2 * ((b - a) * back % q2)
        rows.append(int((1 + ((int(g) << SHIFT) + int(h)) * n) * blind % square).to_bytes(CIPHER, "little"))
    return _table(rows)


def added(modulus: bytes, rows: Array, where: Array, places: int) -> Array:
    """Of each of so many places the sum of the rows that are there, (places, CIPHER); no key is needed.

    A place without rows has an encryption of 0 that everybody can read.
    """
    import gmpy2

    square = gmpy2.mpz(_int(modulus)) ** 2
    found = [gmpy2.mpz(1)] * places
    numbers = [gmpy2.mpz(_int(row.tobytes())) for row in rows]
    for number, place in zip(numbers, where.tolist(), strict=True):
        if place >= 0:
            found[place] = found[place] * number % square
    return _table([int(x).to_bytes(CIPHER, "little") for x in found])


def decrypted(key: Key, rows: Array) -> Array:
    """The sums of both numbers of each row, float64 (rows, 2). Raises FoedusError for what no such sum is."""
    phe = _phe()
    public = phe.PaillierPublicKey(_int(key.p) * _int(key.q))
    private = phe.PaillierPrivateKey(public, _int(key.p), _int(key.q))
    found = np.zeros((len(rows), 2))
    for i, row in enumerate(rows):
        number = _int(row.tobytes())
        if number > 1:
            whole = private.raw_decrypt(number)
            whole = whole - public.n if whole > public.n // 2 else whole
            if abs(whole) >> (2 * SHIFT):
                raise FoedusError("this is no sum of what was encrypted here")
            found[i] = whole >> SHIFT, whole & ((1 << SHIFT) - 1)
    return found


def _int(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _table(rows: list[bytes]) -> Array:
    return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, CIPHER)


def _phe() -> Any:
    try:
        import gmpy2  # noqa: F401
        from phe import paillier
    except ImportError as error:
        raise Missing("phe", "vertical") from error
    return paillier
