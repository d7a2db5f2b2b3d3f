"""What algorithms share in which sites write to one another: introductions, letters, and models as bytes.
Relays and the contract may come in; the server keeps statements of keys, and never a model.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from foedus.aggregators import each
from foedus.algorithms.exchange import noted
from foedus.core import Local, RoundContext, SiteContext, Task, Update
from foedus.keys import Key, key
from foedus.metrics import moments
from foedus.params import DTYPES, Array, Leaf, Params, Spec
from foedus.privacy import relays
from foedus.privacy.presets import RELAYS

TRAITS = (RELAYS, "tells train_refused")
Keys = Mapping[str, Array]  # site -> its statement of a key for messages
INTRODUCE = "introduce"  # the work that tells a site's key for messages
REFUSED = "train_refused"  # the share of messages that a site could not open, in the history
INTRODUCED = (Leaf("statement", (relays.STATEMENT,), "uint8", "integer"),)


def introducing(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
    """The work that tells a site's key for messages."""
    return local, Update(Params({"statement": array(site.identity().statement)}))


def first(site: SiteContext) -> SiteContext:
    """The site with the names that its randomness has where no Task came before this one in its round."""
    return site._replace(key=Key((*site.key.names[:2], 0, *site.key.names[3:])))


def introductions(known: Keys, sites: Sequence[str]) -> Any:
    """Asks those whose key is not known yet; the keys of all who told theirs."""
    new = [site for site in sites if site not in known]
    if not new:
        return dict(known)
    total = yield Task(INTRODUCE, Params({}), new, each(), quorum=0, late="drop", returns=INTRODUCED, least=0)
    return {**known, **{site: found["statement"] for site, found in total.apart.items()}}


def turns(context: RoundContext, sites: Sequence[str]) -> list[str]:
    """The sites in the order in which they are asked to do something for all; another one each round."""
    order = key(context.seed, context.round, 0, "server", "turns").numpy().permutation(len(sites))
    return [sites[i] for i in order]


def letter_spec(size: int, readers: int) -> Spec:
    """The arrays of a letter of so many bytes for so many readers, in their order."""
    body = Leaf("body", (size + relays.TAG,), "uint8", "integer")
    return body, Leaf("wraps", (readers, relays.WRAP), "uint8", "integer")


def written(site: SiteContext, readers: Mapping[str, bytes], matter: str, message: bytes, room: int = 0) -> Params:
    """A letter as arrays; `room` for more readers than there are is left empty."""
    found = relays.sealed(site.identity(), readers, matter, message)
    wraps = [*found.wraps.values()] + [bytes(relays.WRAP)] * max(0, room - len(readers))
    rows = np.frombuffer(b"".join(wraps), np.uint8).reshape(-1, relays.WRAP)
    return Params({"body": array(found.body), "wraps": rows})


def told(note: Mapping[str, Any], statements: Keys, letters: Mapping[str, Params]) -> Params:
    """A payload: a note, the keys of `statements`, and of each sender its `body` and the reader's `wrap`."""
    arrays = {f"letters/{i}/{name}": x for i, sender in enumerate(letters) for name, x in letters[sender].items()}
    keys = {f"statements/{i}": x for i, x in enumerate(statements.values())}
    return noted(Params({**arrays, **keys}), **note, senders=list(letters), named=list(statements))


def named(payload: Params, note: Mapping[str, Any]) -> dict[str, bytes]:
    """site -> its statement, of those that a payload has."""
    return {site: payload[f"statements/{i}"].tobytes() for i, site in enumerate(note["named"])}


def letter(written: Params, reader: int) -> Params:
    """What goes to the reader of that place of what a site wrote."""
    return Params({"body": written["body"], "wrap": written["wraps"][reader]})


def heard(site: SiteContext, payload: Params, note: Mapping[str, Any], sender: str, matter: str) -> bytes:
    """What a sender wrote to this site. Raises Refused."""
    i, statement = note["senders"].index(sender), named(payload, note)[sender]
    body, wrap = (payload[f"letters/{i}/{name}"].tobytes() for name in ("body", "wrap"))
    return relays.opened(site.identity(), sender, statement, matter, body, wrap)


def left_out(senders: int, counted: int) -> dict[str, Array]:
    """What is told where not every message could be opened."""
    lost = senders - counted
    return {REFUSED: moments(np.repeat([1.0, 0.0], [lost, counted]))} if lost else {}


def packed(model: Params, weight: float = 0.0) -> bytes:
    """A weight and a model's numbers, in the order of its arrays."""
    return struct.pack("<d", weight) + b"".join(model[leaf.name].tobytes() for leaf in model.spec)


def packed_size(spec: Spec) -> int:
    """How many bytes that is."""
    return 8 + sum(int(np.prod(leaf.shape, dtype=np.int64)) * DTYPES[leaf.dtype].itemsize for leaf in spec)


def unpacked(spec: Spec, message: bytes) -> tuple[Params, float]:
    """(model, weight) of a message whose model has this spec. ValueError for another length."""
    (weight,), at, found = struct.unpack_from("<d", message), 8, {}
    for leaf in spec:
        size = int(np.prod(leaf.shape, dtype=np.int64))
        found[leaf.name] = np.frombuffer(message, DTYPES[leaf.dtype], size, at).reshape(leaf.shape)
        at += found[leaf.name].nbytes
    if at != len(message):
        raise ValueError(f"a message of {len(message)} bytes, and its model has {at}")
    flats = Params(found, {leaf.name: leaf.kind for leaf in spec}).flats
    return Params.of(spec, flats), weight


def spec_of(told: Sequence[Sequence[Any]]) -> Spec:
    """A spec, as a note has it."""
    return tuple(Leaf(name, tuple(shape), *rest) for name, shape, *rest in told)


def array(data: bytes) -> Array:
    return np.frombuffer(data, np.uint8)
