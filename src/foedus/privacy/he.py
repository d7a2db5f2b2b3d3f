"""Homomorphic encryption as a Job asks for it: sites share a key, the server adds what it cannot read.
The contract, relays, aggregators and the masked words' arithmetic may come in.

For each Task of updates one site makes a new key and writes it to the others (`relays`); they encrypt the words that
secure aggregation would mask, so that the sum, and the model, have the same bits; three of them decrypt the sum. The
server never sees one update or weight. But every site has the key: one that works with the server can read all others.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple

import numpy as np

from foedus.aggregators import each, mean
from foedus.aggregators.fixed import OutOfBound, fixed
from foedus.aggregators.folding import Folding, bound
from foedus.core import (
    Algorithm,
    Decline,
    Local,
    Opened,
    RoundContext,
    SiteContext,
    State,
    Sum,
    Task,
    Update,
    Work,
)
from foedus.errors import FoedusError, JobError, Paused
from foedus.keys import Key
from foedus.params import Leaf, Params, Spec, join
from foedus.play import played
from foedus.privacy import ckks, relays, secagg
from foedus.privacy.secagg import LEAST, ROWS, announcing

MAKE, OPEN, INTRODUCE = "he-key", "he-open", "he-introduce"  # works of its own
READERS = 3  # sites that decrypt a sum, and have to agree
STATED = (Leaf("statement", (relays.STATEMENT,), "uint8", "integer"),)


class He(NamedTuple):
    """What a Job says of homomorphic encryption; see `he`."""

    bound: float | None = None
    wmax: float | None = None

    @property
    def word(self) -> str:
        """What a submission signs."""
        return "he"

    def said(self, traits: Sequence[str] = ()) -> str:
        """What is told of it when a run begins."""
        largest = secagg.Secagg(self.bound, self.wmax).largest(traits)
        return (
            f"he: updates and weights are encrypted (CKKS) under a key that all sites of a round have, and the server "
            f"learns their sum; numbers lie within {largest:g}. A site that works with the server can read the others, "
            "and metrics of evaluation are known site by site: secagg protects against both"
        )


def he(bound: float | None = None, wmax: float | None = None) -> He:
    """Homomorphic encryption (CKKS, TenSEAL): sites share a key, and the server adds what it cannot read.

    About 32 bytes and half a microsecond a number, where `secagg` takes 4 bytes and a fraction of it; and a site that
    works with the server can read the others' updates. For those who have to have it. `bound`, `wmax`: as `secagg`'s.
    """
    for name, value in (("bound", bound), ("wmax", wmax)):
        if value is not None and not 0 < value < math.inf:
            raise JobError(f"he({name}={value!r}): it must be positive and finite")
    return He(bound and float(bound), wmax and float(wmax))


def encrypted(algorithm: Algorithm, how: He) -> Algorithm:
    """The same algorithm, every Task of its works encrypted; one that measures is not."""
    largest = secagg.Secagg(how.bound).largest(algorithm.traits)

    def round(state: State, context: RoundContext) -> Any:
        wmax, known, keys = state["wmax"], set(state["known"]), dict(state["keys"])
        new = how.wmax is None and not known.issuperset(context.roster)
        if new:
            wmax, known = yield from secagg.announced(context.roster, wmax, known)
        if strangers := [site for site in context.roster if site not in keys]:
            how_asked: dict[str, Any] = {"quorum": 0, "late": "drop", "least": 0}
            total = yield Task(INTRODUCE, Params({}), strangers, each(), returns=STATED, **how_asked)
            keys |= {site: found["statement"] for site, found in total.apart.items()}
        numbers = count(int(new))

        def ask(tasks: list[Task]) -> Any:
            totals = []
            for task in tasks:
                totals.append((yield from _asked(task, Ring(largest, wmax), keys, context, next(numbers))))
            return totals

        inner = yield from played(algorithm.round(state["inner"], context), ask)
        return {"inner": inner, "wmax": wmax, "known": sorted(known), "keys": keys}

    works = {name: _encrypting(work) for name, work in algorithm.works.items()}
    measure = algorithm.measure
    return algorithm._replace(
        init=lambda params: {"inner": algorithm.init(params), "wmax": how.wmax or 0.0, "known": [], "keys": {}},
        round=round,
        works={**works, ROWS: announcing, INTRODUCE: _introduce, MAKE: _make, OPEN: _open},
        params=lambda state: algorithm.params(state["inner"]),
        measure=measure and (lambda state, context: measure(state["inner"], context)),
        traits=(*algorithm.traits, "relays"),
    )


class Ring(NamedTuple):
    """The arithmetic of the words, as `fixed` has it."""

    bound: float
    wmax: float

    def rule(self, asked: int) -> Sum:
        found: Sum = bound(mean(arithmetic=fixed(self.bound, self.wmax)), asked)
        return found


def _asked(task: Task, ring: Ring, keys: Mapping[str, Any], context: RoundContext, number: int) -> Any:
    """The Total of a Task whose updates are encrypted."""
    spec: Spec = task.payload.spec if task.returns is None else task.returns
    if not spec:
        return (yield task)
    from foedus.privacy.masking import words  # cryptography, which no other Job needs

    secagg.check_task(task)
    asked = [site for site in task.sites if site in keys]
    if len(asked) < LEAST:
        raise JobError(f"task {task.work!r} asks {len(asked)} sites that have told their keys; he needs {LEAST}")
    matter = f"he {context.round} {number} {task.work}"
    letter = yield from _letter(matter, asked, keys)
    size = sum(leaf.size for leaf in spec) + words.LIMBS
    texts = Params({"he": np.zeros((ckks.count(size), ckks.ROOM), np.uint8)}).spec
    note = {"matter": matter, "sites": asked, "ring": list(ring), "size": size, "task": number}
    payload = _joined(task.payload, letter, note)
    gather = each()._replace(opened=Opened(texts, lambda params: params))
    least = max(LEAST, task.least or 0)
    total = yield task._replace(payload=payload, sites=asked, aggregator=gather, returns=texts, least=least)
    counted = sorted(total.apart)
    payload = _joined(Params({"sum": ckks.added([total.apart[site]["he"] for site in counted])}), letter, note)
    found = yield from _opened(payload, counted, size)
    folding = Folding(mean(arithmetic=fixed(*ring)), spec, len(asked))
    sizes = dict.fromkeys([leaf.group for leaf in spec], 0)
    for leaf in spec:
        sizes[leaf.group] += leaf.size
    dtypes = {leaf.group: leaf.dtype for leaf in spec}
    acc, weight = words.decode(folding.aggregator, {g: (dtypes[g], n) for g, n in sizes.items()}, found)
    folding.take(acc, weight, len(counted), {})
    return folding.total([outcome._replace(weight=0.0, metrics={}) for outcome in total.outcomes])


def _letter(matter: str, sites: Sequence[str], keys: Mapping[str, Any]) -> Any:
    """A new key, made by the first site that answers and written to all."""
    said = Params({f"statement/{site}": keys[site] for site in sites})
    returns = (
        Leaf("body", (ckks.ROOM + relays.TAG,), "uint8", "integer"),
        Leaf("wraps", (len(sites), relays.WRAP), "uint8", "integer"),
    )
    for maker in sites:
        payload = _joined(said, Params({}), {"matter": matter, "sites": list(sites)})
        total = yield Task(MAKE, payload, [maker], each(), late="drop", returns=returns, least=0)
        if maker in total.apart:
            made = total.apart[maker]
            names = np.frombuffer(maker.encode(), np.uint8)
            return Params({**made, "maker": names, "statement": keys[maker]})
    raise Paused(f"{matter}: no site made a key; resume the run when they are back")


def _opened(payload: Params, sites: Sequence[str], size: int) -> Any:
    """The words of the sum, as most of those say who decrypt it."""
    returns = (Leaf("words", (size,), "uint32", "integer"),)
    said: dict[str, Any] = {}
    for at in range(0, len(sites), READERS):
        asked = list(sites[at : at + READERS])
        total = yield Task(OPEN, payload, asked, each(), quorum=0, late="drop", returns=returns, least=0)
        said |= {site: found["words"] for site, found in total.apart.items()}
        digests = Counter(hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest() for x in said.values())
        (digest, votes), *others = digests.most_common() or [("", 0)]
        if votes > sum(count for _, count in others) and (votes > 1 or not others):
            return next(x for x in said.values() if hashlib.sha256(x.tobytes()).hexdigest() == digest)
    raise Paused(f"sites {', '.join(said) or 'all'} do not agree on the sum that they decrypted: look at their builds")


def _encrypting(work: Work) -> Work:
    def working(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update | Decline]:
        from foedus.privacy.masking.words import encode

        plain, about = _parted(payload)
        if "note" not in about:
            return work(payload, local, site)
        note = _note(about)
        named = (*site.key.names[:2], note["task"], *site.key.names[3:])  # as if no Task had come for the key
        local, update = work(plain, local, site._replace(key=Key(named)))
        if isinstance(update, Decline):
            return local, update
        rule = Ring(*note["ring"]).rule(len(note["sites"]))
        try:
            words = encode(rule, update.params.flats, update.weight)
        except OutOfBound as error:
            raise JobError(f"{site.name}: {error}") from None
        return local, Update(Params({"he": ckks.encrypted(_key(about, site), words)}))

    return working


def _introduce(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
    """The work that tells a site's key for messages."""
    return local, Update(Params({"statement": np.frombuffer(site.identity().statement, np.uint8)}))


def _make(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
    """The work that makes a key for a Task and writes it to all who are asked."""
    plain, about = _parted(payload)
    note = _note(about)
    readers = {name: plain[f"statement/{name}"].tobytes() for name in note["sites"]}
    letter = relays.sealed(site.identity(), readers, note["matter"], ckks.new_key())
    wraps = np.frombuffer(b"".join(letter.wraps[name] for name in note["sites"]), np.uint8)
    body = np.frombuffer(letter.body, np.uint8)
    return local, Update(Params({"body": body, "wraps": wraps.reshape(-1, relays.WRAP)}))


def _open(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
    """The work that decrypts a sum."""
    plain, about = _parted(payload)
    return local, Update(Params({"words": ckks.decrypted(_key(about, site), plain["sum"], _note(about)["size"])}))


def _key(about: Params, site: SiteContext) -> bytes:
    """The Task's key, of the letter that every site got. Raises Refused."""
    note, maker = _note(about), about["maker"].tobytes().decode()
    wrap = about["wraps"][note["sites"].index(site.name)].tobytes()
    own, statement = site.identity(), about["statement"].tobytes()
    return relays.opened(own, maker, statement, note["matter"], about["body"].tobytes(), wrap)


def _joined(payload: Params, letter: Mapping[str, Any], note: Mapping[str, Any]) -> Params:
    """A payload, and what goes with it: how it is encrypted."""
    text = np.frombuffer(json.dumps(note, sort_keys=True).encode(), np.uint8)
    return join(task=payload, he=Params({**letter, "note": text}))


def _parted(payload: Params) -> tuple[Params, Params]:
    """What the Task says, and what goes with it."""
    return payload.part("task"), payload.part("he")


def _note(about: Params) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(about["note"].tobytes())
    except (KeyError, ValueError) as error:
        raise FoedusError(f"this Task does not say how it is encrypted ({error})") from None
    return found
