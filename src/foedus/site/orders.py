"""What the server may tell a site, read from signed envelopes that nobody has vouched for yet.
Plain JSON comes in; named tuples whose every field was checked go out."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from foedus.errors import Denied, WireError
from foedus.params import DTYPES, Leaf, Spec
from foedus.store.blobs import DIGEST
from foedus.wire.signing import open_envelope

RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # the name of a folder, too
Verdict = Literal["counted", "dropped", "refused", "send", "unknown"]
VERDICTS = ("counted", "dropped", "refused", "send", "unknown")
KINDS = ("trainable", "buffer", "integer")
Json = dict[str, Any]


class At(NamedTuple):
    """Which Task: its text `RUN/ROUND/TASK/ATTEMPT` is the TASKID of the protocol."""

    run: str
    round: int
    task: int
    attempt: int

    def __str__(self) -> str:
        return "/".join(map(str, self))

    @property
    def file(self) -> str:
        return f"{self.round}-{self.task}-{self.attempt}"


class Blob(NamedTuple):
    """Bytes by their SHA-256; `size` is -1 where only the server knows it."""

    digest: str
    size: int


class Seal(NamedTuple):
    """What a sealed Task's update must be: which sites share its masks, how many must go to the end, its ring."""

    roster: tuple[str, ...]
    threshold: int
    bound: float
    wmax: float


class Order(NamedTuple):
    """A Task as it was signed for this site; `base` is the (round, task) whose local state must be here."""

    at: At
    work: str
    payload: Blob
    returns: Spec
    stall: float
    bundle: str
    seed: int
    base: tuple[int, int] | None
    verdicts: Mapping[str, Verdict]
    reads: str = ""  # the work whose local state that is; "": its own
    seal: Seal | None = None


class Offer(NamedTuple):
    """A run that this site may take part in: what the submitter signed, and by which key."""

    run: str
    name: str
    bundle: Blob
    entry: str
    options: Json
    seed: int
    datasets: tuple[str, ...]
    requires: tuple[str, ...]
    public: str
    privacy: str = "none"
    override_privacy: str = ""  # the word in place of the Job's own
    purpose: str = ""
    metrics: tuple[str, ...] | None = None  # that may leave, under prefixes, too; None: an analysis, or an older foedus


class Ending(NamedTuple):
    """How a run ended, and the models that it leaves to its sites."""

    run: str
    state: str
    models: Mapping[str, Blob]


class Activity:
    """What is being done for one Task: counted for heartbeats, and to be given up once `gone` is set."""

    def __init__(self, at: At, gone: threading.Event | None = None) -> None:
        self.at, self.gone = at, gone or threading.Event()
        self.count, self.cpu = 0, 0.0

    def advance(self, n: int = 1) -> None:
        self.count += n


def read_order(envelope: Any, server: str, site: str) -> Order:
    """The Task in an envelope that the server's key signed for this site. Raises Denied or WireError."""
    body = open_envelope(envelope, "foedus/task/1", server)
    if body.get("site") != site:
        raise Denied(f"a task for {body.get('site')!r} came to {site!r}; nothing of it is done")
    try:
        at = At(_run(body["run"]), _count(body["round"]), _count(body["task"]), _count(body["attempt"]))
        base = body["base"] and (_count(body["base"]["round"]), _count(body["base"]["task"]))
        stall, told = number(body["deadline"]["stall"]), verdicts(body["verdicts"])
        return Order(
            at, _text(body["work"]), _blob(body["payload"]), spec_of(body["returns"]), stall, _digest(body["bundle"]),
            _integer(body["seed"]), base or None, told, _text(body.get("reads", "")),
            _seal(body.get("seal")),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise WireError(f"a task of run {body.get('run')!r} is malformed ({type(error).__name__} {error})") from error


def read_offer(envelope: Any, server: str) -> Offer:
    """The run in a `prepare` of the server. The submission's signature holds; whose key it is, is asked elsewhere."""
    body = open_envelope(envelope, "foedus/prepare/1", server)
    inner = body.get("submission")
    public = str(inner.get("by")) if isinstance(inner, dict) else ""
    signed = open_envelope(inner, "foedus/submission/1", public)
    try:
        return Offer(
            _run(body["run"]), str(signed.get("name") or ""), _blob(signed["bundle"]), _text(signed["entry"]),
            dict(signed.get("options") or {}), _integer(signed["seed"]), _texts(signed.get("datasets")),
            _texts(signed.get("requires")), public, _text(signed.get("privacy") or "none"),
            _text(signed.get("override_privacy") or ""), _text(signed.get("purpose") or ""),
            None if signed.get("metrics") is None else _texts(signed["metrics"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise WireError(f"run {body.get('run')!r} is described wrongly ({type(error).__name__} {error})") from error


def kept_offer(body: Mapping[str, Any]) -> Offer:
    """An offer as this site noted it."""
    lists = {name: tuple(body[name]) for name in ("datasets", "requires", "metrics") if body.get(name) is not None}
    return Offer(**{**body, **lists, "bundle": Blob(*body["bundle"])})


def read_ending(body: Mapping[str, Any]) -> Ending:
    """The end of a run. Raises WireError."""
    try:
        models = {name: _model(body[name]) for name in ("final", "best") if body.get(name)}
        return Ending(_run(body["run"]), str(body.get("state") or "over"), models)
    except (KeyError, TypeError, ValueError) as error:
        raise WireError(f"the end of a run is described wrongly ({type(error).__name__} {error})") from error


def _model(value: Any) -> Blob:
    return Blob(_digest(value), -1) if isinstance(value, str) else _blob(value)


def verdicts(found: Mapping[str, Any]) -> dict[str, Verdict]:
    """TASKID -> verdict; one that is not known is as good as `unknown`."""
    return {_text(name): verdict if verdict in VERDICTS else "unknown" for name, verdict in dict(found).items()}


def spec_of(rows: Sequence[Sequence[Any]]) -> Spec:
    """A Spec as it travels. Raises ValueError for kinds and dtypes that there are not."""
    return tuple(_leaf(*row) for row in rows)


def number(value: Any) -> float:
    """A float as signed bodies hold it: an integer, or the text of `float.hex`."""
    return float.fromhex(value) if isinstance(value, str) else float(_integer(value))


def _leaf(name: Any, shape: Any, dtype: Any, kind: Any, sent: Any = "") -> Leaf:
    if dtype not in DTYPES or kind not in KINDS:
        raise ValueError(f"array {name!r} of kind {kind!r} and dtype {dtype!r}")
    return Leaf(_text(name), tuple(map(_count, shape)), dtype, kind, _text(sent))


def _seal(body: Mapping[str, Any] | None) -> Seal | None:
    if body is None:
        return None
    return Seal(_texts(body["roster"]), _count(body["threshold"]), number(body["bound"]), number(body["wmax"]))


def _run(value: Any) -> str:
    if not RUN.fullmatch(_text(value)):
        raise ValueError(f"{value!r} is no name of a run")
    return str(value)


def _blob(value: Mapping[str, Any]) -> Blob:
    return Blob(_digest(value["digest"]), _count(value["size"]))


def _digest(value: Any) -> str:
    if not DIGEST.fullmatch(_text(value)):
        raise ValueError(f"{value!r} is no digest")
    return str(value)


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(map(_text, value or ()))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _count(value: Any) -> int:
    if _integer(value) < 0:
        raise ValueError(f"{value} is negative")
    return int(value)


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r} is no whole number")
    return value
