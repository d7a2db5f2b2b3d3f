"""A site's part in sealed Tasks: keys, shares, masked words, and of each peer one share, each durable before it leaves.
A line, the store, the pinned register and an update's file come in; the protocol's steps are those of `masking`."""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np

from foedus import frames
from foedus.core import Metrics, Sum
from foedus.errors import WireError
from foedus.faults import point
from foedus.files import write_atomic
from foedus.params import DTYPES, Params
from foedus.privacy import masking
from foedus.privacy.masking import figures
from foedus.privacy.secagg import ring_of
from foedus.site.orders import Activity, At, Blob, Seal
from foedus.store import Store
from foedus.wire.link import Link, Member, Stopped

SEALS = "seals"  # of each sealed Task, for ever: its state, whose secrets are gone once it is settled
WAIT = 60.0  # seconds that the server may take to answer
Json = dict[str, Any]


class About(NamedTuple):
    """An update that is to be sealed: its Task, what it must be bound to, and what it weighs."""

    at: At
    seal: Seal
    facts: Json  # bundle, seed, work, payload's digest, returns
    weight: float
    metrics: Json


@final
class Sealer:
    """Seals one site's updates of one run, in the thread that sends them."""

    def __init__(
        self, who: Member, store: Store, line: Link, publics: Callable[[], Mapping[str, bytes]], log: logging.Logger
    ) -> None:
        self.who, self.store, self.line, self.publics, self.log = who, store, line, publics, log

    def words(self, about: About, update: Path, into: Path, activity: Activity) -> Blob:
        """The masked words of an update as a file, durable; what it takes until then is said and heard."""
        own, first = self._own(), terms(about, ())
        after = self._after(about.at, own)
        state, message = masking.advertise(own, first, after)
        self._keep(about.at, state)
        metrics = {name: array(x) for name, x in about.metrics.items()}
        said = [list(figure) for figure in figures.announced(metrics)]
        answer = self._ask(about.at, "advertisement", message, activity, figures=said)
        layout = figures.read_layout(answer.get("figures"))
        given = terms(about, layout)
        state, message = masking.share(own, given, state, data_of(answer, "keys"))
        self._keep(about.at, state, layout)
        point("agent.after-shared")
        answer = self._ask(about.at, "shares", message, activity)
        words = encoded(about, update, metrics, layout)
        state = masking.mask(own, given, state, data_of(answer, "delivery"), words)
        self._keep(about.at, state, layout)
        point("agent.after-masked")
        write_atomic(into, words.view(np.uint8).data)
        return Blob(hashlib.sha256(words.view(np.uint8).data).hexdigest(), words.nbytes)

    def released(self, at: At) -> bool:
        """Whether a share of this Task may have left, in this attempt or an earlier one."""
        found = self._state(at)
        return found is not None and masking.released(self._own(), found)

    def finish(self, about: About, activity: Activity) -> None:
        """Signs the survivors and reveals one share of each peer, once enough have signed the same set."""
        own, found = self._own(), self.store.get(SEALS, _key(about.at))
        assert found is not None
        given, state = terms(about, figures.read_layout(found["figures"])), bytes.fromhex(found["state"])
        if masking.kind(own, state) != "revealed":
            survivors = data_of(self._ask(about.at, "masked", b"", activity), "survivors")
            state, message = masking.agree(own, given, state, survivors)
            self._keep(about.at, state, given_layout(found))
            point("agent.after-agreed")
            endorsed = data_of(self._ask(about.at, "agreement", message, activity), "endorsement")
        else:
            endorsed = b""
        state, message = masking.reveal(own, given, state, endorsed)
        self._keep(about.at, state, given_layout(found))
        point("agent.after-revealed")
        self._ask(about.at, "reveal", message, activity, **self._ahead(about, own, found["figures"]))

    def _ahead(self, about: About, own: masking.Own, figures: Any) -> Json:
        """New keys for the Task of this number in the next round; where other sites are asked, they are dropped."""
        at = about.at._replace(round=about.at.round + 1, attempt=0)
        given = masking.terms(*at, list(about.seal.roster), "", "", about.seal.threshold)  # the rest is not known yet
        state, message = masking.advertise(own, given, self._after(at, own))
        self._keep(at, state)
        return {"ahead": base64.b64encode(message).decode(), "figures": figures}

    def settled(self, at: At) -> None:
        """Erases the secrets of a Task that is over here."""
        found = self._state(at)
        if found is not None:
            self._keep(at, masking.settled(self._own(), found))

    def clear(self, run: str) -> None:
        """Erases the secrets of all Tasks of a run that is over."""
        own = self._own()
        for key, body in self.store.items(SEALS, f"{run}/"):
            self.store.put(SEALS, key, body | {"state": masking.settled(own, bytes.fromhex(body["state"])).hex()})

    def _own(self) -> masking.Own:
        return masking.Own(self.who.name, self.who.key, self.publics(), masking.rest_key(self.who.key))

    def _state(self, at: At) -> bytes | None:
        found = self.store.get(SEALS, _key(at))
        return None if found is None else bytes.fromhex(found["state"])

    def _after(self, at: At, own: masking.Own) -> bytes | None:
        """The state of this attempt, or that of an earlier one, which is over now."""
        found = self.store.get(SEALS, _key(at))
        if found is None:
            return None
        state = bytes.fromhex(found["state"])
        return state if found["attempt"] == at.attempt else masking.settled(own, state)

    def _keep(self, at: At, state: bytes, layout: figures.Layout = ()) -> None:
        body = {"attempt": at.attempt, "state": state.hex(), "figures": [list(figure) for figure in layout]}
        self.store.put(SEALS, _key(at), body)

    def _ask(self, at: At, kind: str, message: bytes, activity: Activity, **more: Any) -> Json:
        """What the server has to say to this message, once it has heard of the others. Raises Stopped or Answered."""
        body = at._asdict() | {"kind": kind, "data": base64.b64encode(message).decode(), **more}
        while not activity.gone.is_set():
            answer = self.line.patient(lambda: self.line.call("POST", "/v1/seals", body, timeout=WAIT), activity.gone)
            activity.advance()
            if answer.get("kind"):
                return answer
        raise Stopped("nobody waits for this update any more")


def terms(about: About, layout: figures.Layout) -> masking.Terms:
    """What this Task is about, as this site knows it: the model that it received, the code that its owner let in."""
    facts, seal = about.facts, about.seal
    ring = (seal.bound.hex(), seal.wmax.hex())
    job = figures.about(facts["bundle"], facts["seed"], facts["work"], ring, facts["returns"], layout)
    return masking.terms(*about.at, list(seal.roster), facts["payload"], job, seal.threshold)


def rule_of(seal: Seal) -> Sum:
    """The arithmetic of a sealed Task."""
    return ring_of(seal.bound, seal.wmax, len(seal.roster))


def encoded(about: About, update: Path, metrics: Metrics, layout: figures.Layout) -> Any:
    """The words of an update's file and of its metrics."""
    params = frames.read(update)
    assert isinstance(params, Params)
    part = {leaf.group: params.flats[leaf.group] for leaf in params.spec}
    words = masking.encode(rule_of(about.seal), part, about.weight)
    return np.concatenate([words, figures.figures(metrics, layout)])


def array(packed: Mapping[str, Any]) -> Any:
    """A metric as an envelope holds it, as an array."""
    data = base64.b64decode(packed["data"])
    return np.frombuffer(data, DTYPES[packed["dtype"]]).reshape(packed["shape"])


def data_of(answer: Mapping[str, Any], kind: str) -> bytes:
    """The message in an answer. Raises WireError for any other answer."""
    if answer.get("kind") != kind:
        raise WireError(f"sealing: the server answered {answer.get('kind')!r:.40}, not {kind!r}")
    try:
        return base64.b64decode(answer["data"], validate=True)
    except (KeyError, TypeError, ValueError):
        raise WireError(f"sealing: what the server says of {kind!r} cannot be read") from None


def given_layout(found: Mapping[str, Any]) -> figures.Layout:
    return figures.read_layout(found["figures"])


def _key(at: At) -> str:
    return f"{at.run}/{at.round}/{at.task}"
