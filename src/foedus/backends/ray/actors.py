"""Workers that are actors of a Ray cluster: how they begin, what is said to them, what they died of.
A Job and the sites' data come in; what all of them need lies in the object store, once for each machine."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import ray
from ray.exceptions import ActorDiedError, RayError

from foedus import build
from foedus.backends.processes.channel import whole
from foedus.backends.processes.shift import GLANCE, Worker, Workers, same
from foedus.backends.processes.worker import Answer, Brief, Failed, Given, Sent
from foedus.backends.processes.workers import dumps, sendable
from foedus.backends.ray import cluster
from foedus.backends.ray.member import Member, Ready, parts
from foedus.errors import FoedusError, JobError
from foedus.work import FOREIGN

SIGNS = {  # of a death, in Ray's words; it does not say which signal or exit code it was
    "running low on memory": "its node ran out of memory",
    "node has died": "its node died",
    "node was terminated": "its node died",
    "temporarily unavailable": "it cannot be reached",  # what Ray says until it knows more
}
PATIENCE = 60.0  # seconds without any worker until a run gives up


class Way:
    """The way to an actor: its handle, and the answer that is awaited."""

    def __init__(self, actor: Any) -> None:
        self.actor, self.answer = actor, None
        self.brief: Any = None  # the last one it was sent
        self.cause = "it was ended"

    def figure(self) -> None:
        """An actor does not say how it gets on: its machine may be another one."""

    def end(self) -> str:
        """What the actor died of, now at the latest."""
        ray.kill(self.actor)
        return self.cause


class Actors(Workers[Way]):
    """Workers that are actors; those for which there is no room begin when there is."""

    stillborn_text = (
        "workers of the Ray cluster end as soon as they start ({cause}): install foedus and what the Job needs on "
        "every node, in the same versions"
    )

    def __init__(self, sent: Sent, count: int, needs: Mapping[str, float], note: Callable[..., object]) -> None:
        super().__init__(count)
        self.needs, self.note = needs, note
        with sendable():
            found = parts(sent, dumps=dumps)
        self.sent = _put(found)
        self.member = ray.remote(Member)
        self.briefed: Brief | None = None
        self.brief: Any = None
        self.odd: set[str] = set()  # machines whose build is another
        self.alone = time.monotonic()  # since when no worker is ready

    def begin(self, number: int) -> Way:
        try:
            return Way(self.member.options(**cluster.options(self.needs), scheduling_strategy="SPREAD").remote())
        except ValueError as error:
            raise JobError(f"resources={dict(self.needs)}: {error}") from error

    def greet(self, worker: Worker[Way]) -> None:
        worker.way.answer = worker.way.actor.begin.remote(sys.path, self.sent)

    def tell(self, worker: Worker[Way], brief: Brief, given: Given) -> None:
        if not same(self.briefed, brief):
            self.brief, self.briefed = _put(parts(brief)), brief
        new = None if worker.way.brief is self.brief else self.brief
        worker.way.answer = worker.way.actor.work.remote(parts(given), new)
        worker.way.brief = self.brief

    def heard(self) -> Iterator[tuple[Worker[Way], Answer | Failed | None]]:
        awaited = {worker.way.answer: worker for worker in self.awaited()}
        there, _ = ray.wait(list(awaited), timeout=GLANCE)
        for answer in there:
            yield awaited[answer], self._message(awaited[answer])
        self._look()

    def _message(self, worker: Worker[Way]) -> Answer | Failed | None:
        try:
            head, large = ray.get(worker.way.answer)
        except RayError as error:
            worker.way.cause = _cause(error)
            return None
        message = whole(head, large, copied=True)
        if isinstance(message, Ready):
            self._compare(message)
            message = Answer()
        self.up(worker)
        found: Answer | Failed = message
        return found

    def _compare(self, said: Ready) -> None:
        """Notes a machine on which bits may be others, once."""
        own, other = build.describe(), said.build
        odd = build.differences(
            {name: own[name] for name in own if name in other}, {name: other[name] for name in own if name in other}
        )
        if odd and said.machine not in self.odd:
            self.odd.add(said.machine)
            self.note(f"bits not comparable: {'; '.join(odd)} at {said.machine}", what="build")

    def _look(self) -> None:
        """Raises FoedusError where nobody is there to work, and nobody comes."""
        if any(worker.ready for worker in self.all.values()):
            self.alone = time.monotonic()
        elif time.monotonic() - self.alone > PATIENCE:
            raise FoedusError(f"the Ray cluster gave no worker within {PATIENCE:.0f} s: {cluster.lacking(self.needs)}")

    def close(self) -> None:
        """Ends all workers, whatever they do, and lets go of what they shared."""
        for worker in self.all.values():
            worker.way.end()
        self.sent = self.brief = None
        self.all.clear()


def _put(value: Any) -> Any:
    """The value in the object store, from where each machine fetches it once."""
    try:
        return ray.put(value)
    except RayError as error:
        raise FoedusError(
            f"Ray's object store took no more ({_line(error)}): start Ray with more memory for it"
        ) from error


def _cause(error: RayError) -> str:
    """What an actor died of, in a line."""
    found = next((cause for sign, cause in SIGNS.items() if sign in str(error)), "")
    return found or ("its process died" if isinstance(error, ActorDiedError) else _line(error))


def _line(error: RayError) -> str:
    """The last line of what Ray says."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1].strip()


@contextmanager
def carried() -> Iterator[None]:
    """What is pickled inside the block carries the code along that lies beside a job file: other machines lack it."""
    found = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
    files = {name: Path(file) for name, file in found.items() if file}
    folders = {file.parent for name, file in files.items() if name.startswith("foedus_job_")}
    own = [sys.modules[name] for name, file in files.items() if _travels(name, file) and folders & set(file.parents)]
    for module in own:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in own:
            cloudpickle.unregister_pickle_by_value(module)


def _travels(name: str, file: Path) -> bool:
    """Whether a module was not installed, and is known by its own name."""
    installed = str(file).startswith(FOREIGN) or "site-packages" in file.parts
    return not installed and sys.modules[name].__name__ == name
