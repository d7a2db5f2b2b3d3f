"""The contract of foedus in one file: what an algorithm, a site and a backend say to one another.
Only `params` and `keys` may come in."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple, Protocol

from foedus.keys import Key
from foedus.params import Array, Params, Spec

Local = Any  # a site's own state: plain data and Params
State = Any  # an algorithm's state: plain data and Params
Metrics = Mapping[str, Array]  # name -> fixed-shape array of sums over examples
Slice = Mapping[str, Array]  # group -> 1-D array, or a stretch of it
Late = Literal["drop", "keep"]


class Term(NamedTuple):  # what is added to the loss of each batch
    of: Callable[[Any, Callable[[Params], Any]], Any]  # (the model's outputs, params -> outputs with these) -> number

    def __call__(self, grads: Params, params: Params) -> Params:
        raise NotImplementedError("this algorithm adds to the loss: take a TorchLearner with loss=… and optimizer=…")


class Elsewhere(NamedTuple):  # a correction that asks for each batch's gradient at other models, too
    of: Callable[[Params, Params, Callable[[Params], Params]], Params]  # (grads, params, model -> grads there) -> grads

    def __call__(self, grads: Params, params: Params) -> Params:
        raise NotImplementedError(
            "this algorithm asks for a batch's gradient at two models: take a TorchLearner with loss=… and "
            "optimizer=…, or a NumpyLearner with gradient=…"
        )


class Private(NamedTuple):  # DP-SGD in place of plain steps, and the correction of its noised gradients
    clip: float  # the largest norm of an example's gradient
    noise: float  # the noise's standard deviation over the clip
    secret: Key  # draws samples and noise
    after: Any = None  # a Correct of the other kinds, or None

    def __call__(self, grads: Params, params: Params) -> Params:
        raise NotImplementedError(
            "dp_sgd clips each example's gradient: take a TorchLearner with loss=… and optimizer=…, or a NumpyLearner "
            "with gradient=…"
        )


Correct = Callable[[Params, Params], Params] | Term | Elsewhere | Private  # (grads, params) -> grads


class Update(NamedTuple):
    params: Params  # by convention a delta
    weight: float = 1.0  # > 0, at most 29 significant bits
    metrics: Metrics = {}


EVALUATE = "evaluate"  # the work that measures models, where an algorithm does not measure itself


class Decline(NamedTuple):
    reason: str


class Origin(NamedTuple):
    site: str
    round: int
    task: int
    age: int = 0  # rounds since the payload was sent


class Outcome(NamedTuple):  # how an asked site settled
    site: str
    status: Literal["counted", "dropped", "refused", "declined", "lost"]
    why: str = ""
    weight: float = 0.0
    metrics: Metrics = {}


class Total(NamedTuple):
    params: Params
    weight: float
    count: int  # type: ignore[assignment]  # hides tuple.count
    metrics: Metrics
    outcomes: Sequence[Outcome]  # one per asked site
    apart: Mapping[str, Params] = {}  # site -> what it returned, under an aggregator that keeps them apart


class Fit(NamedTuple):  # what training gives back; path is the sum of its step sizes
    params: Params
    examples: float
    steps: int
    path: float
    metrics: Metrics = {}


def _nobody() -> Any:
    raise LookupError("this site has no identity")


class SiteContext(NamedTuple):  # all that a work may touch besides payload and local
    name: str
    split: Any
    train: Callable[[Params, Any, Key, Correct | None], Fit]
    key: Key
    evaluate: Callable[[Params, Any, Sequence[Any]], Metrics]  # (params, data, metrics) -> sums
    gradient: Callable[[Params, Any, Key], Params]  # of the mean loss over data, at params
    metrics: Sequence[Any] = ()  # the Job's
    secret: Key = Key(())  # named randomness that nobody but this site can draw
    seal: tuple[int, int] | None = None  # of a sealed Task: sites asked, and how many must go to the end
    identity: Callable[[], Any] = _nobody  # whom other sites may write to


Work = Callable[[Params, Local, SiteContext], tuple[Local, Update | Decline]]


class Opened(NamedTuple):  # what is aggregated where sites return something smaller
    spec: Spec
    read: Callable[[Params], Params]  # what a site returned -> arrays of `spec`; raises FoedusError for nonsense


class Sum(NamedTuple):  # an aggregator that adds up, in any order, slice by slice
    fold: Callable[[Any, Slice, float], Any]  # (acc | None, slice, weight) -> acc, in place
    merge: Callable[[Any, Any], Any]
    finish: Callable[[Any, Fraction], Slice]  # (acc, sum of the weights)
    weigh: Callable[[Update, Origin], float] = lambda update, origin: update.weight
    bind: Callable[[int], Sum] | None = None  # n = the roster asked, for arithmetics that need it
    ring: Any = None  # None: never sealed
    least: int = 1  # updates that it needs
    opened: Opened | None = None  # None: updates are folded as they were returned
    rows: Callable[[Any, Slice, Sequence[float]], Any] | None = None  # `fold` of (updates, numbers) and their weights


class Pass(NamedTuple):  # once over all trainable columns, a chunk (sites x columns) at a time
    sums: Callable[[Sequence[float], Array], Array]  # (shares, chunk) -> what is added up over the chunks
    close: Callable[[Sequence[float], Sequence[float], Array], Sequence[float]]  # (weights, shares, sums) -> shares


class Gather(NamedTuple):  # an aggregator that sees sites side by side, sorted by origin
    finish: Callable[[Sequence[Origin], Sequence[float], Array], Array]  # (.., shares, sites x columns) -> columns
    passes: Sequence[Pass] = ()  # the shares, one number a site, begin as the weights
    least: int = 1  # updates that it needs
    opened: Opened | None = None
    apart: bool = False  # whether updates stay what they are, in `Total.apart`


class Deadline(NamedTuple):
    stall: float = 600.0  # seconds without progress
    total: float | None = None


class Task(NamedTuple):
    work: str  # a name in Algorithm.works: code is never sent
    payload: Params
    sites: Sequence[str]
    aggregator: Sum | Gather | None = None  # None: the mean
    quorum: int | None = None  # None: the Job's; 0: all who are asked
    late: Late | None = None  # None: the Job's
    deadline: Deadline | None = None  # None: the Job's
    busy: int | None = None  # with late="keep": this many sites at work at any time
    returns: Spec | None = None  # None: the payload's
    seal: Any = None
    reads: str = ""  # the work whose local state this one sees; "": its own
    least: int | None = None  # updates that it needs without a quorum; None: the Job's min_sites, 0: none
    letters: Mapping[str, Params] = {}  # site -> what it alone gets, in place of the payload

    def letter(self, site: str) -> Params:
        return self.letters.get(site, self.payload)


class RoundContext(NamedTuple):  # journaled, all but the secret: no clock, nobody's presence
    seed: int
    round: int
    roster: Sequence[str]
    cohort: Sequence[str]
    history: Sequence[Mapping[str, Any]] = ()
    secret: Key = Key(("nobody's",))  # named randomness that only the aggregator can draw


Round = Generator[Any, Any, State]  # yields a Task or several, is sent a Total or several


class Personal(NamedTuple):  # that each site has a model of its own
    model: Callable[[Params, Local], Params]  # (what `params` gives, what the site keeps) -> the site's model
    work: str = "train"  # the work that keeps it
    alone: bool = False  # what `params` gives is no model that a site could use


class Algorithm(NamedTuple):
    init: Callable[[Params], State]
    round: Callable[[State, RoundContext], Round]
    works: Mapping[str, Work]
    params: Callable[[State], Params] = lambda state: state
    traits: Sequence[str] = ()  # what else it asks for: words that the table of incompatible parts reads
    personal: Personal | None = None
    measure: Callable[[State, RoundContext], Round] | None = None  # in place of the Task "evaluate"
    scorer: Learner | None = None  # what scores examples with the model, where the Job has no learner


class Transform(NamedTuple):  # what happens to an update on its way out, and to the total on its way in
    init: Callable[[], State] = dict
    encode: Callable[[Update, Local, State, Key], tuple[Update, Local]] = lambda u, local, public, key: (u, local)
    decode: Callable[[Total, State, Key], tuple[Total, State]] = lambda total, state, key: (total, state)
    public: Callable[[State], State] = lambda state: state  # the part of the state that sites may read
    returns: Callable[[Spec], Spec] = lambda spec: spec  # of an update before `encode` -> after it
    read: Callable[[Params, Spec], Params] | None = None  # (encoded, spec before) -> what is aggregated; None: as it is
    traits: Sequence[str] = ()  # as an Algorithm's


class Learner(Protocol):
    metrics: Sequence[Any]

    def init(self, key: Key) -> Params: ...
    def train(self, params: Params, data: Any, key: Key, correct: Correct | None) -> Fit: ...
    def evaluate(self, params: Params, data: Any, metrics: Sequence[Any]) -> Metrics: ...


class Runner(Protocol):
    def roster(self, least: int) -> Sequence[str]: ...  # in order; may wait until so many are there
    def run(self, tasks: Sequence[Task], context: RoundContext, first: int) -> Sequence[Total]: ...
    def saved(self) -> State: ...  # what the runner itself must find again after a crash
    def restore(self, saved: State) -> None: ...  # None: from the beginning
