"""What an actor holds from its first to its last moment: a Hand, and so the model and the learner, and one sum a Task.
Messages come in as a pickle and its large arrays, which lie in the object store of the actor's machine.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np

from foedus import build
from foedus.backends.processes.channel import parted, whole
from foedus.backends.processes.worker import Hand, failed, read

Parts = tuple[bytes, list[Any]]


class Ready(NamedTuple):
    """A member's first answer: the machine where it is, and its build."""

    machine: str
    build: Mapping[str, Any]


class Member:
    """An actor's class. Whatever goes wrong in it is an answer."""

    def begin(self, path: Sequence[str], sent: Parts) -> Parts:
        """Reads the Job, with `path` to look for its modules too: Ready, or Failed."""
        return _answered(lambda: self._begin(path, sent))

    def work(self, given: Parts, brief: Parts | None) -> Parts:
        """The Answer to Given, or Failed; `brief` is there where it is a new one."""
        return _answered(lambda: self._work(given, brief))

    def _begin(self, path: Sequence[str], sent: Parts) -> Ready:
        sys.path += [place for place in path if place not in sys.path]
        self.settings = ExitStack()
        self.settings.enter_context(build.exactly())
        self.hand = Hand(*read(lambda: whole(*sent, copied=True)))
        return Ready(platform.node(), build.describe())

    def _work(self, given: Parts, brief: Parts | None) -> Any:
        if brief is not None:
            self.hand.brief = whole(*brief)
        return self.hand.answer(whole(*given))


def parts(value: Any, **how: Any) -> Parts:
    """The value as it is sent: what Ray keeps of a large array is memory that all readers of a machine share."""
    head, large = parted(value, **how)
    return head, [np.frombuffer(x, np.uint8) for x in large]


def _answered(work: Callable[[], Any]) -> Parts:
    try:
        return parts(work())
    except BaseException as error:
        return parts(failed(error))
