"""Named randomness: equal names give equal numbers, whoever asks first and wherever.
Only numpy and errors may come in; torch is imported when a torch generator is asked for."""

from __future__ import annotations

import hashlib
import operator
import threading
from json.encoder import encode_basestring_ascii
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsIndex

import numpy as np

from foedus.errors import explained

if TYPE_CHECKING:
    import torch

Name = str | SupportsIndex


class Key(NamedTuple):
    """A name for randomness, always in the order (seed, round, task, site, purpose); calling it appends names."""

    names: tuple[str | int, ...]

    def __call__(self, *names: Name) -> Key:
        return Key(self.names + tuple(map(_plain, names)))

    def digest(self) -> bytes:
        """32 bytes that only these names give."""
        return hashlib.sha256(f"[{', '.join(map(_said, self.names))}]".encode()).digest()  # as json.dumps, sooner

    def numpy(self) -> np.random.Generator:
        """A numpy generator (Philox) of its own."""
        return np.random.Generator(np.random.Philox(key=int.from_bytes(self.digest()[:16], "little")))

    def lent(self) -> np.random.Generator:
        """The numbers of `numpy()`, ten times sooner, from a generator that is this thread's until the next."""
        number = int.from_bytes(self.digest()[:16], "little")
        return _lender.lend(number)

    def torch(self) -> torch.Generator:
        """A torch CPU generator of its own. Missing without torch."""
        try:
            import torch
        except ImportError as error:
            raise explained(error) from error

        return torch.Generator().manual_seed(self.number())

    def number(self) -> int:
        """A whole number in [0, 2**63), for libraries that take a seed."""
        return int.from_bytes(self.digest()[:8], "little") >> 1


class _Lender(threading.local):
    def __init__(self) -> None:
        self.bits = np.random.Philox(key=0)
        self.generator = np.random.Generator(self.bits)
        self.start: Any = self.bits.state

    def lend(self, number: int) -> np.random.Generator:
        self.start["state"]["key"][:] = number & (2**64 - 1), number >> 64
        self.bits.state = self.start
        return self.generator


_lender = _Lender()


def key(seed: SupportsIndex, *names: Name) -> Key:
    """The key of these names; `key(3)` and `key(np.int64(3))` are one, `key(3)` and `key("3")` are two.

    >>> key(0, 1, 0, "north", "train") == key(0, 1, 0, "north")("train")
    True
    """
    return Key(())(seed, *names)


def _said(name: str | int) -> str:
    return encode_basestring_ascii(name) if type(name) is str else str(name)


def _plain(name: Name) -> str | int:
    if type(name) is str or type(name) is int:
        return name
    if isinstance(name, str):
        return str(name)
    if isinstance(name, (bool, np.bool_)):
        raise TypeError("a key's names are strings and whole numbers, not booleans")
    return operator.index(name)
