"""Many sites train at once in one process, in batched kernels; close to `local`.
A Bench and the sites' data come in. A learner that knows `together` is asked for many sites, any other for one by one.

A work is a pure function, so it may be stopped at the call of `train` or `evaluate` and begun again: the first time it
raises what it asks for, the second time it is given the answer. So any algorithm's work trains with those of others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from foedus.aggregators import Folding
from foedus.backends.local import done, folded
from foedus.backends.simulation import Done
from foedus.core import Correct, Decline, Fit, Local, SiteContext, Task, Update
from foedus.errors import Alone
from foedus.job import Job
from foedus.keys import Key
from foedus.params import Array, Params
from foedus.progress import site_done
from foedus.work import Among, Order

TOGETHER = {"train": "together", "evaluate": "evaluate_together"}  # what a learner may do for many sites at once
SAID = {"train": "train", "evaluate": "are measured"}


class Asked(BaseException):
    """What a work asks of its learner: the function's name, and the arguments."""

    def __init__(self, name: str, call: tuple[Any, ...]) -> None:
        super().__init__()
        self.name, self.call = name, call


class Stopping:
    """A learner that answers what it has answers for and raises Asked for the next; all else is the learner's own."""

    def __init__(self, learner: Any) -> None:
        self.learner = learner
        self.stops = {name for name, many in TOGETHER.items() if hasattr(learner, many)}
        self.answers: dict[str, Iterator[Any]] | None = None  # None: the learner does all itself

    def __getattr__(self, name: str) -> Any:
        return getattr(self.learner, name)

    def train(self, params: Params, data: Any, key: Key, correct: Correct | None) -> Fit:
        return self._answer("train", params, data, key, correct)  # type: ignore[no-any-return]

    def evaluate(self, params: Params, data: Any, metrics: Sequence[Any]) -> dict[str, Array]:
        return self._answer("evaluate", params, data, metrics)  # type: ignore[no-any-return]

    def _answer(self, name: str, *call: Any) -> Any:
        if self.answers is None or name not in self.stops:
            return getattr(self.learner, name)(*call)
        for answer in self.answers[name]:
            if isinstance(answer, Exception):
                raise answer
            return answer
        raise Asked(name, call)


@dataclass(slots=True)
class Turn:
    """One site's order on its way: what its work was told so far, and what it asks next."""

    order: Order
    local: Local
    context: SiteContext | None = None
    asked: Asked | None = None
    answers: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in TOGETHER})
    done: Done | None = None


class Many:
    """A Crew of one process that works many sites at once. `note` hears why they have to train one after another."""

    def __init__(self, job: Job, data: Mapping[str, Any], seed: int, note: Callable[[str], object]) -> None:
        self.learner = Stopping(job.learner)
        self.bench = job.bench(seed, self.learner if job.learner else None)
        self.data, self.note = data, note
        if self.alone:
            note(f"{type(job.learner).__name__} trains one site at a time")

    def fold(self, task: Task, orders: Sequence[Order], locals: Mapping[str, Local], into: Folding) -> list[Done]:
        return self.work(orders, locals, lambda one, order: one if one.update is None else folded(one, order, into))

    def each(self, task: Task, orders: Sequence[Order], locals: Mapping[str, Local]) -> list[Done]:
        return self.work(orders, locals)

    def work(
        self,
        orders: Sequence[Order],
        locals: Mapping[str, Local],
        then: Callable[[Done, Order], Done] = lambda one, order: one,
    ) -> list[Done]:
        """What `then`, at once, makes of the Done with its update of each of the orders, which are of one Task."""
        turns = [Turn(order, locals.get(order.site)) for order in orders]
        while waiting := [turn for turn in turns if turn.done is None]:
            for turn in waiting:
                try:
                    turn.done = then(done(turn.order, partial(self._turn, turn)), turn.order)
                except Asked as asked:
                    turn.asked = asked
                else:
                    site_done(turn.order.site)
            for name in TOGETHER:
                asking = [(t, t.asked.call) for t in waiting if t.done is None and t.asked and t.asked.name == name]
                answers = self._together(name, [call for _, call in asking])
                for (turn, _), answer in zip(asking, answers, strict=True):
                    turn.answers[name].append(answer)
        self.learner.answers = None
        return [turn.done for turn in turns if turn.done is not None]

    def _turn(self, turn: Turn) -> tuple[Local, Update | Decline]:
        if turn.context is None:
            turn.context = self.bench.context(turn.order, Among(self.data))
        self.learner.answers = {name: iter(answers) for name, answers in turn.answers.items()}
        return self.bench.work(turn.order, turn.local, turn.context)

    @property
    def alone(self) -> bool:
        """Whether sites train one after another."""
        return "train" not in self.learner.stops

    def _together(self, name: str, calls: Sequence[Any]) -> Sequence[Any]:
        """The learner's answers to these calls, or what it raises."""
        if len(calls) > 1:
            try:
                return getattr(self.learner.learner, TOGETHER[name])(calls)  # type: ignore[no-any-return]
            except Alone as error:
                self.learner.stops.discard(name)
                self.note(f"sites {SAID[name]} one after another: {error}")
            except Exception:
                pass  # the site at fault, and no other, is to raise it
        return [_answer(getattr(self.learner.learner, name), call) for call in calls]


def _answer(function: Callable[..., Any], call: Sequence[Any]) -> Any:
    try:
        return function(*call)
    except Exception as error:
        return error
