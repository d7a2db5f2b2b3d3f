"""Named randomness: equal names give equal numbers, whoever asks first and wherever.
Only numpy and errors may come in; torch is imported when a torch generator is asked for."""

from __future__ import annotations

import hashlib
import operator
import threading
from collections.abc import Iterator, Sequence
from json.encoder import encode_basestring_ascii
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsIndex

import numpy as np

from foedus.errors import explained

if TYPE_CHECKING:
    import torch

Name = str | SupportsIndex
Array = np.ndarray[Any, np.dtype[Any]]
Orders = np.ndarray[Any, np.dtype[np.intp]]
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio


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

    def order(self, count: int, epoch: int = 0) -> Orders:
        """(count,): the whole numbers below `count` in an order for that epoch; `orders` draws those of many keys."""
        found: Orders = orders([self], [count], epoch)[0]
        return found

    def batches(self, count: int, size: int, epochs: int = 1) -> Iterator[Orders]:
        """`size` of `count` things at a time, each epoch permuted by `numpy()`; one of a single batch keeps theirs."""
        draw = self.numpy().permutation if count > size else np.arange
        for order in (draw(count) for _ in range(epochs)):
            yield from (order[at : at + size] for at in range(0, count, size))

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


def orders(keys: Sequence[Key], counts: Sequence[int] | Array, epoch: int = 0) -> Orders:
    """(keys, largest count): each key's `order` of so many things, and behind it what only pads.

    Things are sorted by a number each, which SplitMix64 draws from the key; the orders of many keys are drawn at once.
    """
    starts = np.array([int.from_bytes(one.digest()[:8], "little") for one in keys], np.uint64)[:, None]
    sizes = np.array(counts, np.uint64)[:, None]
    place = np.arange(sizes.max(), dtype=np.uint64)
    drawn = splitmix64(starts, np.uint64(epoch) * sizes + place)
    drawn[place >= sizes] = np.iinfo(np.uint64).max
    found: Orders = drawn.argsort(axis=1, kind="stable")
    return found


def splitmix64(seed: Array, i: Array) -> Array:
    """Number i, from 0 on, of the generator with that seed; all uint64.

    Steele, Lea and Flood, *Fast splittable pseudorandom number generators*, 2014, with the constants of its mix13.
    """
    z = seed + GOLDEN * (i + np.uint64(1))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    made: Array = z ^ (z >> np.uint64(31))
    return made


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
