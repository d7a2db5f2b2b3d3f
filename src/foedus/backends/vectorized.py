"""Many sites train at once in one process, in batched kernels; close to `local`.
A Bench and the sites' data come in. A learner that knows `together` is asked for many sites, any other for one by one.

A work that treats all sites alike is done once for many, see foedus.rows. Any other is a pure function, too, so it may
be stopped at the call of `train` or `evaluate` and begun again: the first time it raises what it asks for, the second
time it is given the answer. So any algorithm's work trains with those of others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from foedus import rows
from foedus.aggregators import Folding
from foedus.backends.local import done, folded
from foedus.backends.simulation import Done
from foedus.core import EVALUATE, Correct, Decline, Fit, Local, Origin, SiteContext, Task, Update
from foedus.data import Split
from foedus.errors import Alone
from foedus.job import Job
from foedus.keys import Key
from foedus.params import Array, Params
from foedus.progress import site_done
from foedus.work import Among, Order, describe

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
        self.apart = set[str]()  # works that look at their own site
        self.told = set[str]()  # what was noted already
        if self.alone:
            note(f"{type(job.learner).__name__} trains one site at a time")

    def fold(self, task: Task, orders: Sequence[Order], locals: Mapping[str, Local], into: Folding) -> list[Done]:
        return self.folded(orders, locals, into)

    def each(self, task: Task, orders: Sequence[Order], locals: Mapping[str, Local]) -> list[Done]:
        return self.work(orders, locals)

    def folded(self, orders: Sequence[Order], locals: Mapping[str, Local], into: Folding) -> list[Done]:
        """The Done of each of the orders, which are of one Task; their updates are in `into`."""
        found = dict[int, Done]()
        splits = self._alike(orders, locals, into)
        for group in self._groups(orders, splits):
            found |= self._at_once([orders[i] for i in group], [splits[i] for i in group], group, into)
        left = [i for i in range(len(orders)) if i not in found] if found else range(len(orders))
        rest = [orders[i] for i in left]
        made = self.work(rest, locals, lambda one, order: one if one.update is None else folded(one, order, into))
        found |= zip(left, made, strict=True)
        return [found[i] for i in range(len(orders))]

    def _alike(self, orders: Sequence[Order], locals: Mapping[str, Local], into: Folding) -> Sequence[Split]:
        """The data of the orders' sites, if their work may be done at once; nothing where it has to see its site."""
        if len(orders) < 2 or orders[0].work in self.apart or orders[0].work == EVALUATE or not into.adds:
            return ()
        first = orders[0]
        if first.seal is not None or not hasattr(self.learner.learner, "rows"):
            return ()
        if any(o.payload is not first.payload or locals.get(o.site) is not None for o in orders):
            return ()
        data = Among(self.data)
        try:
            return [self.bench.split(order.site, data) for order in orders]
        except Exception:
            return ()  # the site at fault, and no other, is to raise it

    def _groups(self, orders: Sequence[Order], splits: Sequence[Split]) -> Sequence[list[int]]:
        """The orders, by their place, in groups that are worked at once."""
        try:
            return list(self.learner.learner.groups(orders[0].payload, splits)) if splits else ()
        except Exception:
            return ()  # all have to train one after another

    def _at_once(
        self, orders: Sequence[Order], splits: Sequence[Split], places: Sequence[int], into: Folding
    ) -> dict[int, Done]:
        """place -> what became of the order, its update folded; those that are missing are to be worked one by one."""
        first, bench = orders[0], self.bench
        heads = [(bench.seed, order.round, order.task, order.site) for order in orders]
        try:
            update = rows.together(
                bench.works[first.work], first.payload, heads, splits, self.learner.learner.rows, bench.metrics
            )
            bench.check_rows(update, first)
        except (rows.Apart, Exception):
            self.apart.add(first.work)
            return {}
        counted = into.add_rows(update, [Origin(order.site, order.round, order.task) for order in orders])
        found = dict[int, Done]()
        for place, outcome in zip(places, counted, strict=True):
            if outcome is not None:
                found[place] = Done(outcome, columns=bench.news(outcome.site))
                site_done(outcome.site)
        return found

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
                    turn.done = then(done(self.bench, turn.order, partial(self._turn, turn)), turn.order)
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
                self._tell(name, f"sites {SAID[name]} one after another: {error}")
            except Exception as error:  # the site at fault, and no other, is to raise it
                self._tell(f"some {name}", f"some sites {SAID[name]} one after another: {describe(error)}")
        return [_answer(getattr(self.learner.learner, name), call) for call in calls]

    def _tell(self, what: str, why: str) -> None:
        """Notes the first reason of each kind: messages may have other numbers in every round."""
        if what not in self.told:
            self.told.add(what)
            self.note(why)


def _answer(function: Callable[..., Any], call: Sequence[Any]) -> Any:
    try:
        return function(*call)
    except Exception as error:
        return error
