"""What Tasks carry that go up and down within a round: arrays, and a note in plain data of what to do with them.
Only the contract and the saved form may come in.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from foedus import frames
from foedus.core import Total
from foedus.params import Array, Leaf, Params, kind

COUNTED = (Leaf("n", (), "int64", "integer"),)


def noted(arrays: Params | None = None, **note: Any) -> Params:
    """A payload of `arrays` and a note."""
    packed = np.frombuffer(frames.pack(note).bytes(), np.uint8)
    return Params({**(arrays or {}), "note": packed})


def note_of(payload: Params) -> dict[str, Any]:
    """The note of a payload. Raises FoedusError for none."""
    return dict(frames.unpack(payload["note"].tobytes()))


def like(name: str, x: Array) -> Leaf:
    """The announcement of an array of this shape and dtype."""
    return Leaf(name, x.shape, x.dtype.name, kind(x.dtype.name))


def count_of(total: Total) -> int:
    """The whole number `n` that a site returned."""
    return int(total.params["n"])


def counting(n: int) -> Params:
    return Params({"n": np.int64(n)})


def rows(x: Array) -> list[bytes]:
    """The rows of a table of bytes."""
    return [row.tobytes() for row in x]
