"""Script: the learner whose training is a program of its own, one process a site, asked round by round.
Processes, loops and metrics come in; what the script does inside is its own business."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from foedus import frames
from foedus import metrics as measures
from foedus.core import Correct, Fit
from foedus.data import Pairs, Site, Split, save_split
from foedus.errors import JobError
from foedus.keys import Key
from foedus.loops import Loop, alike, fitted
from foedus.params import Array, Params
from foedus.script.models import first_model
from foedus.script.process import SCRATCH, Command, Killed, Process

TRIES = 2  # of a Task whose script was killed from outside
START, FIRST = "starting its script", "the script's first model"
NO_DATA = (
    "where a run begins there is no data: let the script make its model before it reads any, "
    "or give fd.Script(model=…) or fd.Job(start=…)"
)


@dataclass(frozen=True)
class Part:
    """One part of a site's examples, which its script alone has."""

    site: str
    name: str
    examples: int

    def __len__(self) -> int:
        return self.examples

    def __getitem__(self, index: int) -> Any:
        raise JobError("these examples are the script's: only a learner that is a script can use them")


class Held(NamedTuple):
    """What a site's script process is started with, again if need be."""

    site: str
    data: str
    seed: str


class Script:
    """A learner that is a script of its own: `for rnd in fd.rounds(model): …; rnd.report(examples=…, loss=…)`.

    path: of the script, from the folder of the file that builds the Job. `args`: of its command line. `launcher`: what
        starts it in place of Python, such as ["torchrun", "--nproc-per-node", "2"].
    model: the first one, as a module, a mapping of arrays, or a function making one; None: the script is asked.
    threads: of its numeric libraries. `stall`: seconds without a sign of progress after which it counts as hanging.
    alive: how many sites' processes stay between rounds on this machine; the one that rested longest ends first.
    Raises JobError where there is no such file.
    """

    loss = None

    def __init__(
        self,
        path: str | os.PathLike[str],
        args: Sequence[Any] = (),
        *,
        launcher: Sequence[str] = (),
        model: Any = None,
        metrics: Sequence[Any] = (),
        reads: measures.Reads = "logits",
        threads: int = 1,
        stall: float = 600.0,
        alive: int = 16,
    ) -> None:
        beside = Path(sys._getframe(1).f_globals.get("__file__") or "job.py").resolve().parent
        self.name, self.own = str(path), (beside / path).resolve()
        if not self.own.is_file():
            raise JobError(f"there is no script {path} in {beside}: put it beside the job file, so that it is sent too")
        if not (threads >= 1 and stall > 0 and alive >= 1):
            raise JobError(f"Script(threads={threads}, stall={stall}, alive={alive}): they are positive")
        self.args, self.launcher, self.model = [str(x) for x in args], [str(x) for x in launcher], model
        self.metrics, self.reads, self.threads, self.stall, self.alive = list(metrics), reads, threads, stall, alive
        self._forget()

    def _forget(self) -> None:
        self.processes: OrderedDict[str, Process] = OrderedDict()
        self.held: dict[str, Held] = {}
        self.folders: list[Path] = []  # at most one, for data that is handed on
        self.pid = os.getpid()
        self.ending = weakref.finalize(self, _end_all, self.processes, self.folders, self.pid)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("processes", "held", "folders", "pid", "ending")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def describe(self) -> dict[str, Any]:
        """The settings and the script's digest, for the Job's description."""
        about = {k: getattr(self, k) for k in ("name", "args", "launcher", "reads", "threads")}
        model = self.model if self.model is None else getattr(self.model, "__qualname__", type(self.model).__qualname__)
        return about | {"digest": hashlib.sha256(self.own.read_bytes()).hexdigest(), "model": model}

    def init(self, key: Key) -> Params:
        """The first model's Params: of `model`, or what the script gives to fd.rounds. Raises JobError, Relayed."""
        if self.model is not None:
            return first_model(self.model, key)
        with Process(self._command(Held("", "", str(key.number()))), FIRST, NO_DATA) as process:
            return Params(frames.read(process.ready["model"])).copy()

    def hold(self, site: Site, loaded: Any) -> Split:
        """The parts of the site's data, as its script, which is started for that, tells them.

        `loaded`: a path, plain data, or a Split of arrays, which the script finds as `fd.load_split(rnd.data)`.
        """
        self._own_processes()
        self._end(site.name)
        data = self._handed(site, loaded)
        self.held[site.name] = Held(site.name, data, str(site.key("script").number()))
        counts = self._process(site.name).ready["examples"]
        parts = {
            name: Part(site.name, name, int(counts[name])) for name in ("train", "valid", "test") if name in counts
        }
        return Split(**parts)

    def train(self, params: Params, split: Any, key: Key, correct: Correct | None) -> Fit:
        """The model after the script's round from `params`, with the examples, steps and metrics that it reported."""
        loop = Loop(None, correct)
        answer = self._asked(
            split.train.site, "train", params, {"key": list(key.names), "corrects": correct is not None}, loop
        )
        loop.steps, loop.path, loop.without_lr = answer["steps"], answer["path"], answer["without_lr"]
        found, examples = answer["metrics"], answer["examples"]
        fit = fitted(loop, answer["params"], Split(range(max(1, int(examples)))), (found, examples))
        return fit._replace(params=fit.params.ordered(params.spec))

    def evaluate(self, params: Params, data: Any, metrics: Sequence[Any]) -> dict[str, Array]:
        """name -> sums over a part of the site's data, from what the script's `evaluate(model, part)` returned."""
        answer = self._asked(data.site, "evaluate", params, {"part": data.name}, None)
        return summed(answer["found"], list(map(measures.metric, metrics)), self.reads)

    def close(self) -> None:
        """Ends all processes, in order where they are at rest."""
        self._own_processes()
        _end_all(self.processes, [], self.pid)

    def _own_processes(self) -> None:
        """Those that a forked process finds are its parent's: it starts its own."""
        if self.pid != os.getpid():
            held = self.held
            self.ending.detach()
            self._forget()
            self.held = held

    def _asked(self, site: str, do: str, params: Params, more: Mapping[str, Any], loop: Loop | None) -> dict[str, Any]:
        """The script's answer; one that was killed from outside is started and asked once more."""
        self._own_processes()
        correct = None if loop is None or loop.correction is None else partial(_corrected, loop.correction)
        for attempt in range(TRIES):
            try:
                return self._process(site).ask(do, params, more, correct)
            except Killed:
                self._end(site)
                if attempt == TRIES - 1:
                    raise
            except BaseException:
                self._end(site)
                raise
        raise AssertionError

    def _process(self, site: str) -> Process:
        """The site's process, alive; the one that rested longest makes room."""
        found = self.processes.get(site)
        if found is None:
            while len(self.processes) >= self.alive:
                self.processes.popitem(last=False)[1].end()
            found = self.processes[site] = Process(self._command(self.held[site]), START)
        self.processes.move_to_end(site)
        return found

    def _end(self, site: str) -> None:
        process = self.processes.pop(site, None)
        if process is not None:
            process.end()

    def _handed(self, site: Site, loaded: Any) -> str:
        """What the script hears of the site's data; arrays lie in a file."""
        if isinstance(loaded, tuple) and len(loaded) == 2:
            loaded = Split(loaded)
        if not isinstance(loaded, Split):
            return _plain(loaded)
        split = loaded.with_valid(site.key("valid"))
        if not isinstance(split.train, Pairs):
            raise JobError("a script gets (x, y) arrays or a path: let it read site.data by itself, without load=…")
        if not self.folders:
            self.folders.append(Path(tempfile.mkdtemp(prefix="foedus-data-", dir=os.environ.get(SCRATCH))))
        path = self.folders[0] / f"{hashlib.sha256(site.name.encode()).hexdigest()[:16]}.split"
        save_split(path, split)
        return str(path)

    def _command(self, held: Held) -> Command:
        return Command(self.own, self.args, self.launcher, self.threads, self.stall, held.site, held.data, held.seed)


def summed(found: Any, metrics: Sequence[measures.Metric], reads: measures.Reads) -> dict[str, Array]:
    """name -> sums, from (outputs, targets, losses or None), or name -> sums, or name -> mean beside `examples`.

    Raises JobError for what is none of these.
    """
    if isinstance(found, (list, tuple)):
        outputs, targets, losses = found
        wanted = [m for m in metrics if losses is not None or m.name != "loss"]
        return measures.measure(wanted, outputs, targets, losses, reads)
    count = found.get("examples")
    sums = {}
    for m in (m for m in metrics if m.name in found):
        x = np.asarray(found[m.name], np.float64)
        if x.ndim == 0 and count is None:
            raise JobError(
                f"the script's evaluate gave {m.name!r} as one number: give its sums, as [sum, count], or give "
                "'examples' beside means"
            )
        sums[m.name] = x if x.ndim else np.array([float(x) * float(count), float(count)])
        if not np.isfinite(sums[m.name]).all():
            raise JobError(f"the script's evaluate gave {m.name!r} as {found[m.name]}: lower the learning rate")
    measures.values(sums, metrics)  # their shapes
    return sums


def _corrected(correct: Correct, grads: Params, params: Params) -> Params:
    return correct(alike(grads, params), params)


def _plain(loaded: Any) -> str:
    """A path, or plain data as JSON. Raises JobError for what a script cannot be handed."""
    if isinstance(loaded, (str, Path)):
        return str(loaded.resolve()) if isinstance(loaded, Path) else loaded
    if isinstance(loaded, Mapping):
        loaded = {name: str(x) if isinstance(x, Path) else x for name, x in loaded.items()}
    try:
        return json.dumps(loaded)
    except TypeError as error:
        kind = type(loaded).__name__
        raise JobError(f"a script cannot be handed {kind}: bind a path, plain data or a Split of arrays") from error


def _end_all(processes: OrderedDict[str, Process], folders: list[Path], pid: int) -> None:
    if pid != os.getpid():
        return
    while processes:
        processes.popitem()[1].end()
    while folders:
        shutil.rmtree(folders.pop(), ignore_errors=True)
