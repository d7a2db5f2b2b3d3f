"""The backend `local`: one site after another in this process, with one learner; exact.
A Bench and the sites' data come in as values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from foedus.aggregators import Folding
from foedus.backends.simulation import Done
from foedus.core import Decline, Local, Origin, Outcome, Task, Update
from foedus.errors import Refused, SiteError
from foedus.progress import site_done
from foedus.work import Among, Bench, Order


class Here:
    """A Crew of one: this process."""

    def __init__(self, bench: Bench, data: Mapping[str, Any]) -> None:
        self.bench, self.data = bench, data

    def fold(self, task: Task, orders: Sequence[Order], locals: Mapping[str, Local], into: Folding) -> list[Done]:
        return [self._folded(order, locals.get(order.site), into) for order in orders]

    def each(self, task: Task, orders: Sequence[Order], locals: Mapping[str, Local]) -> list[Done]:
        return [self._made(order, locals.get(order.site)) for order in orders]

    def _folded(self, order: Order, local: Local, into: Folding) -> Done:
        made = self._made(order, local)
        return made if made.update is None else folded(made, order, into)

    def _made(self, order: Order, local: Local) -> Done:
        made = perform(self.bench, order, local, self.data)
        site_done(order.site)
        return made


def perform(bench: Bench, order: Order, local: Local, data: Mapping[str, Any]) -> Done:
    """One site's work, whatever happens there told as an Outcome; `data` is that of all sites."""
    return done(bench, order, lambda: bench.perform(order, local, Among(data)))


def done(bench: Bench, order: Order, work: Callable[[], tuple[Local, Update | Decline]]) -> Done:
    """What became of the order, if this is its work, which is done with this bench."""
    try:
        local, update = work()
    except Refused as error:
        return Done(Outcome(order.site, "refused", str(error)), error=error)
    except SiteError as error:
        return Done(Outcome(order.site, "declined", f"{error.stage}: {error.why}"), error=error)
    if isinstance(update, Decline):
        return Done(Outcome(order.site, "declined", update.reason))
    outcome = Outcome(order.site, "counted", "", update.weight, update.metrics)
    return Done(outcome, local, update, columns=bench.news(order.site))


def folded(made: Done, order: Order, into: Folding) -> Done:
    """The same without its update, which `into` has counted, or refused."""
    assert isinstance(made.update, Update)
    try:
        into.add(made.update, Origin(order.site, order.round, order.task))
    except Refused as error:
        return Done(Outcome(order.site, "refused", str(error)), error=error, columns=made.columns)
    return made._replace(update=None)
