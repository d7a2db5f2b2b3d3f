"""Many sites train at once in one process, in batched kernels; close to `local`.
A Bench and the sites' data come in. A learner that knows `together` is asked for many sites, any other for one by one.

A work is a pure function, so it may be stopped at the call of `train` and begun again: the first time it raises what it
asks for, the second time it is given the answer. So any algorithm's work trains together with those of other sites.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from foedus.aggregators import Folding
from foedus.backends.local import done, folded
from foedus.backends.simulation import Done
from foedus.core import Correct, Decline, Fit, Local, SiteContext, Task, Update
from foedus.errors import Alone, FoedusError
from foedus.job import Job
from foedus.keys import Key
from foedus.params import Params
from foedus.progress import site_done
from foedus.work import Among, Order


class Asked(BaseException):
    """What a work asks of its learner; `call` are the arguments of `train`."""

    def __init__(self, call: tuple[Params, Any, Key, Correct | None]) -> None:
        super().__init__()
        self.call = call


class Stopping:
    """A learner that answers what it has answers for and raises Asked for the next; all else is the learner's own."""

    def __init__(self, learner: Any) -> None:
        self.learner = learner
        self.answers: list[Fit | FoedusError] | None = None  # None: the learner trains itself
        self.given = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.learner, name)

    def train(self, params: Params, data: Any, key: Key, correct: Correct | None) -> Fit:
        if self.answers is None:
            return self.learner.train(params, data, key, correct)  # type: ignore[no-any-return]
        if self.given == len(self.answers):
            raise Asked((params, data, key, correct))
        self.given += 1
        answer = self.answers[self.given - 1]
        if isinstance(answer, FoedusError):
            raise answer
        return answer


@dataclass(slots=True)
class Turn:
    """One site's order on its way: what its work was told so far, and what it asks next."""

    order: Order
    local: Local
    context: SiteContext | None = None
    call: Any = None
    answers: list[Fit | FoedusError] = field(default_factory=list)
    done: Done | None = None


class Many:
    """A Crew of one process that works many sites at once. `note` hears why they have to train one after another."""

    def __init__(self, job: Job, data: Mapping[str, Any], seed: int, note: Callable[[str], object]) -> None:
        self.learner = Stopping(job.learner)
        self.bench = job.bench(seed, self.learner if job.learner else None)
        self.data, self.note = data, note
        self.alone = not hasattr(job.learner, "together")
        if self.alone:
            note(f"{type(job.learner).__name__} trains one site at a time")

    def fold(self, task: Task, orders: Sequence[Order], locals: Mapping[str, Local], into: Folding) -> list[Done]:
        made = self.work(orders, locals)
        return [
            one if one.update is None else folded(one, order, into) for one, order in zip(made, orders, strict=True)
        ]

    def each(self, task: Task, orders: Sequence[Order], locals: Mapping[str, Local]) -> list[Done]:
        return self.work(orders, locals)

    def work(self, orders: Sequence[Order], locals: Mapping[str, Local]) -> list[Done]:
        """A Done with its update for each of the orders, which are of one Task."""
        turns = [Turn(order, locals.get(order.site)) for order in orders]
        while waiting := [turn for turn in turns if turn.done is None]:
            for turn in waiting:
                try:
                    turn.done = done(turn.order, partial(self._turn, turn))
                except Asked as asked:
                    turn.call = asked.call
                else:
                    site_done(turn.order.site)
            asking = [turn for turn in waiting if turn.done is None]
            for turn, answer in zip(asking, self._together([turn.call for turn in asking]), strict=True):
                turn.answers.append(answer)
        self.learner.answers = None
        return [turn.done for turn in turns if turn.done is not None]

    def _turn(self, turn: Turn) -> tuple[Local, Update | Decline]:
        if turn.context is None:
            turn.context = self.bench.context(turn.order, Among(self.data))
        self.learner.answers, self.learner.given = None if self.alone else turn.answers, 0
        return self.bench.work(turn.order, turn.local, turn.context)

    def _together(self, calls: Sequence[Any]) -> Sequence[Fit | FoedusError]:
        """The learner's answers to these calls of `train`."""
        if calls and not self.alone:
            try:
                return self.learner.together(calls)  # type: ignore[no-any-return]
            except Alone as error:
                self.alone = True
                self.note(f"sites train one after another: {error}")
        return [_trained(self.learner.learner, call) for call in calls]


def _trained(learner: Any, call: Any) -> Fit | FoedusError:
    try:
        return learner.train(*call)  # type: ignore[no-any-return]
    except FoedusError as error:
        return error
