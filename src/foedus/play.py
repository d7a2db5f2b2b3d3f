"""How what wraps an algorithm plays its round: it asks in the algorithm's place, and passes on what comes of it.
Only the contract may come in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from foedus.core import Task


def played(steps: Any, ask: Callable[[list[Task]], Any]) -> Any:
    """A generator that plays the round `steps`; what the round returns.

    `ask(tasks)`, a generator, asks whatever it likes for Tasks that the round asks at once, and returns their Totals.
    """
    answer = None
    while True:
        try:
            asked = steps.send(answer)
        except StopIteration as end:
            return end.value
        single = isinstance(asked, Task)
        totals = yield from ask([asked] if single else list(asked))
        answer = totals[0] if single else totals


def each(steps: Any, change: Callable[[Task], Task]) -> Any:
    """The same where every Task is only changed."""

    def ask(tasks: list[Task]) -> Any:
        return (yield [change(task) for task in tasks])

    return played(steps, ask)
