"""The run worker: alone runs a Job's rounds, folds and stop rules, in a process without keys, network or database.
What it knows comes over one pipe and from read-only descriptors; what it decides goes back over the pipe."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

from foedus import build, frames, jobfile, params
from foedus.aggregators.chunks import fold_files
from foedus.core import Origin, Outcome, RoundContext, State, Task, Total
from foedus.errors import FoedusError, WireError
from foedus.faults import point
from foedus.files import write_atomic
from foedus.journal import Journal, task_digest
from foedus.keys import Key
from foedus.metrics import Metric
from foedus.params import Params, digest
from foedus.privacy.secagg import hidden, masked
from foedus.run import Checkpoints, execute
from foedus.server.checking import checked, mapped, sums_of
from foedus.server.unsealing import unsealed
from foedus.settle import needed
from foedus.wire.offline import go_offline
from foedus.wire.pipe import Pipe, inherited
from foedus.work import describe


def main(fd: int) -> None:
    """Runs the Job that the server names on the pipe, until it ends, fails or the server is gone."""
    pipe = inherited(fd)
    order = pipe.receive()[0]
    end_with_server()
    go_offline("a run worker has no network: only sites train, only the server speaks with them")
    os.chdir(order["scratch"])
    try:
        with build.exactly():
            pipe.send({"do": "ended", **run(pipe, order)})
    except WireError:
        raise SystemExit(0) from None
    except FoedusError as error:
        pipe.send({"do": "failed", "why": str(error)})
    except Exception as error:
        pipe.send({"do": "failed", "why": describe(error)})


def run(pipe: Pipe, order: Mapping[str, Any]) -> dict[str, Any]:
    """What the run ended with; its models are in the scratch folder."""
    scratch = params.scratch = Path(order["scratch"])
    job = jobfile.load(Path(order["bundle"]) / order["entry"], order["options"]).job
    job = job.given(rounds=order.get("rounds"), privacy=order.get("privacy"))
    journal = Journal(PipeLog(pipe))
    journal.add(
        "open",
        job=job.digest,
        seed=order["seed"],
        description=job.describe(),
        backend="network",
        exact=True,
        build=build.describe(),
        source=order["source"],
        sites=[],
    )
    plan = job.plan(order["seed"])._replace(secret=Key((order["secret"],)))
    runner = Remote(pipe, scratch, job.least, plan.metrics.values())
    ended = execute(plan, runner, journal, Checkpoints(scratch, lazy=False))
    about = {"run": order["run"], "rounds": len(ended.history)}
    write_atomic(scratch / "final.safetensors", frames.model(ended.params, about))
    if ended.best is not None:
        write_atomic(scratch / "best.safetensors", frames.model(ended.best, about | {"round": ended.best_round}))
    return {
        "reason": ended.reason,
        "rounds": len(ended.history),
        "digest": digest(ended.params),
        "best_round": ended.best_round,
        "history": [dict(line) for line in ended.history],
    }


class PipeLog:
    """The server's journal at the other end of the pipe."""

    def __init__(self, pipe: Pipe) -> None:
        self.pipe = pipe

    def append(self, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        self.pipe.ask({"do": "append", "rows": list(rows)})

    def rows(self) -> Sequence[tuple[str, Mapping[str, Any]]]:
        return [(kind, body) for kind, body in self.pipe.ask({"do": "rows"})["rows"]]


class Remote:
    """A Runner whose sites are reached by the server at the other end of the pipe."""

    def __init__(self, pipe: Pipe, scratch: Path, least: int, metrics: Collection[Metric]) -> None:
        self.pipe, self.scratch, self.least, self.metrics = pipe, scratch, least, metrics
        self.asked: dict[int, Task] = {}  # the newest Task of each number: a late update may come while another is open

    def roster(self, least: int) -> Sequence[str]:
        return sorted(self.pipe.ask({"do": "roster", "least": least})["sites"])

    def saved(self) -> State:
        return None

    def restore(self, saved: State) -> None:
        """Nothing: what this runner must find again is the server's."""

    def run(self, tasks: Sequence[Task], context: RoundContext, first: int) -> Sequence[Total]:
        numbers = range(first, first + len(tasks))
        self.asked |= dict(zip(numbers, tasks, strict=True))
        asked = [self._published(task, context.round, n) for task, n in zip(tasks, numbers, strict=True)]
        self.pipe.send({"do": "tasks", "round": context.round, "first": first, "tasks": asked})
        totals: dict[int, Total] = {}
        while len(totals) < len(tasks):
            message, fds = self.pipe.receive()
            if "check" in message:
                self.pipe.send(self._checked(message["check"], fds[0]))
            elif message.get("total"):
                totals[message["task"]] = read_total(self.scratch / message["total"])
            else:
                number = message["task"]
                totals[number] = self._closed(message, tasks[number - first], context.round, fds)
        return [totals[n] for n in numbers]

    def _published(self, task: Task, round: int, number: int) -> dict[str, Any]:
        payload = self._put(f"payload-{round}-{number}.safetensors", task.payload)
        letters = {
            site: self._put(f"payload-{round}-{number}-{i}.safetensors", letter)
            for i, (site, letter) in enumerate(sorted(task.letters.items()))
        }
        deadline = None if task.deadline is None else list(task.deadline)
        assert task.aggregator is not None
        return {
            "work": task.work,
            "payload": payload,
            "letters": letters,
            "sites": list(task.sites),
            "quorum": task.quorum,
            "late": task.late,
            "busy": task.busy,
            "deadline": deadline,
            "returns": [list(leaf) for leaf in task.returns or ()],
            "digest": task_digest(task, payload["digest"], {site: x["digest"] for site, x in letters.items()}),
            "least": needed(task, self.least),
            **({"reads": task.reads} if task.reads else {}),
            **({"seal": [task.seal.threshold, *(x.hex() for x in task.seal[2:])]} if masked(task) else {}),
        }

    def _put(self, name: str, payload: Params) -> dict[str, Any]:
        """What is said of a payload, which is in its file from now on."""
        frame = frames.pack(payload)
        digesting = frame.digesting()
        put(self.scratch / name, frame)
        return {"digest": digesting(), "size": frame.size, "file": name}

    def _checked(self, said: Mapping[str, Any], fd: int) -> dict[str, Any]:
        """What the server is told of an update that arrived; a late one will be counted by a Task of its number."""
        why = checked(said, self.asked[said["task"]], self.metrics, fd)
        return {"checked": not why, "why": why}

    def _closed(self, message: Mapping[str, Any], task: Task, round: int, fds: Sequence[int]) -> Total:
        point("runworker.before-fold")
        name = f"total-{round}-{message['task']}.safetensors"
        if "seal" in message:
            outcomes = hidden(task, [Outcome(*row) for row in message["outcomes"]])
            unsealed(task, message["seal"], fds, outcomes, self.scratch / name)
            return self._told(message["task"], name)
        counted = [(Origin(c["site"], c["round"], c["task"], c["age"]), c) for c in message["close"]]
        told = [sums_of(c["metrics"], origin.site) for origin, c in counted]
        weights = [float.fromhex(c["weight"]) for _, c in counted]
        last = {origin.site: found for (origin, _), *found in zip(counted, weights, told, strict=True)}
        outcomes = hidden(
            task, [Outcome(s, status, why, *last.get(s, (0.0, {}))) for s, status, why in message["outcomes"]]
        )
        updates = [(origin, w, mapped(fd)) for (origin, _), w, fd in zip(counted, weights, fds, strict=True)]
        fold_files(task.aggregator, task.returns or (), updates, len(task.sites), outcomes, self.scratch / name, told)
        return self._told(message["task"], name)

    def _told(self, number: int, name: str) -> Total:
        point("runworker.after-fold")
        self.pipe.send({"do": "total", "task": number, "file": name})
        return read_total(self.scratch / name)


def put(path: Path, frame: frames.Frame) -> None:
    """Makes a payload's file, which need not outlive a crash: a new name of one that has these bytes, or a new file."""
    path.unlink(missing_ok=True)
    with suppress(OSError):
        if (known := frames.known(frame)) is not None:
            os.link(known.path, path)
            return
    write_atomic(path, frame, durable=False)


def read_total(path: Path) -> Total:
    """A Total as `fold_files` wrote it."""
    found = frames.read(path)
    outcomes = [Outcome(*row) for row in found["outcomes"]]
    weight, apart = float(Fraction(found["weight"])), found.get("apart", {})
    return Total(found["params"], weight, found["count"], found["metrics"], outcomes, apart)


def end_with_server() -> None:
    """Has the kernel kill this process when its server is gone."""
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL


if __name__ == "__main__":
    main(int(sys.argv[1]))
