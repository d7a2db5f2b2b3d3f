"""`for rnd in fd.rounds(model)`: what a script says to the federation around it, or to nobody where there is none.
Models, ranks and a pipe come in; this runs in the script's own process."""

from __future__ import annotations

import json
import math
import os
import random
import select
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from foedus import frames
from foedus import progress as progressing
from foedus.core import Algorithm
from foedus.errors import JobError, WireError
from foedus.keys import Key, key
from foedus.metrics import measure, values
from foedus.params import Params
from foedus.script.models import Held, held, same
from foedus.script.process import DATA, PLACE, SITE, _write, at
from foedus.script.ranks import Ranks
from foedus.wire.pipe import GRACE, Pipe

LOCAL = "FOEDUS_ROUNDS"  # rounds of a script that runs by itself
ALONE = "foedus: nobody federates this script, so it trains alone: {} rounds on its own data ({}=… sets how many)"
TELL_EVERY = 1.0
Json = dict[str, Any]


class Round:
    """One round: `number` (from 0), `site`, `data`, `key` (named randomness), `rank`; `report` ends it.

    The model that fd.rounds was given already holds the global model's numbers.
    """

    def __init__(self, number: int, site: str, data: Any, key: Key, ranks: Ranks, talk: Talk | None) -> None:
        self.number, self.site, self.data, self.key = number, site, data, key
        self.rank, self.world = ranks.rank, ranks.world
        self.reported: Json | None = None
        self.steps, self.path, self.without_lr = 0, 0.0, 0
        self._talk = talk

    def report(self, examples: float, loss: float | None = None, **metrics: float) -> None:
        """Ends the round: on how many examples it trained (its weight), with the mean loss and other means over them.

        Raises JobError for what is no number.
        """
        found = {name: float(x) for name, x in ({"loss": loss} | metrics).items() if x is not None}
        if not (math.isfinite(examples) and examples > 0):
            raise JobError(f"rnd.report(examples={examples}): say on how many examples it trained, at least 1")
        for name, x in found.items():
            if not math.isfinite(x):
                raise JobError(f"rnd.report({name}={x}): lower the learning rate, clip gradients, look into the data")
        if self.reported is not None:
            raise JobError("rnd.report was called twice in one round: call it once, when the training is done")
        self.reported = {"examples": float(examples), "metrics": found}

    def correct(self, model: Any, lr: float | None = None) -> None:
        """Has the algorithm (FedProx, SCAFFOLD …) change the gradients of a torch `model`, and counts a step of `lr`.

        To be called between backward() and each step().
        """
        self.steps += 1
        self.path += lr or 0.0
        self.without_lr += lr is None
        progressing.progress()
        if self._talk is not None:
            self._talk.correct()

    def progress(self, n: int = 1) -> None:
        """Says that the work advanced."""
        progressing.progress(n)


Measured = Callable[[Any, str], Any]


def rounds(
    model: Any = None,
    *more: Any,
    evaluate: Measured | None = None,
    examples: Mapping[str, int] | int | None = None,
    only: Callable[[str], bool] | None = None,
    alone: int = 1,
    **named: Any,
) -> Any:
    """The rounds of a federation, for a script: `for rnd in fd.rounds(model): …; rnd.report(examples=…, loss=…)`.

    model: a torch module, a mapping of arrays that are changed in place, or (read, write), two functions. `only` takes
        the names of the arrays that travel.
    evaluate: (model, part) -> what metrics read of "valid" or "test": (outputs, targets, losses or None), or a mapping
        name -> [sum, count], or name -> mean beside "examples"; None where this site has no such part.
    examples: how many the script has, in training, or as {"train": …, "valid": …, "test": …}.
    alone: rounds where nobody federates the script. With `share, work, step` this is `foedus.algorithms.rounds`.
    """
    if more or named:
        from foedus.algorithms.rounds import rounds as of_algorithm

        made: Algorithm = of_algorithm(*([] if model is None else [model]), *more, **named)
        return made
    counts = {"train": examples} if isinstance(examples, int) else dict(examples or {})
    ranks = Ranks()
    place = os.environ.get(PLACE)
    if place is None:
        return _alone(model, evaluate, held(model, only), ranks, alone)
    talk = Talk(Path(place), ranks, model, held(model, only), evaluate)
    return talk.rounds(counts)


class Talk:
    """The script's end of what its Job asks."""

    def __init__(self, folder: Path, ranks: Ranks, model: Any, arrays: Held, evaluate: Measured | None) -> None:
        self.folder, self.ranks, self.model, self.arrays, self.evaluate = folder, ranks, model, arrays, evaluate
        self.site, self.data = os.environ.get(SITE, ""), _data(os.environ.get(DATA, ""))
        self.pipe: Pipe | None = None
        self.busy, self.corrects = False, False
        self.spec = arrays.read().spec
        if ranks.rank == 0:
            self.pipe = Pipe(_connected(folder))
            progressing.tell = self._progress
            self.due, self.count = 0.0, 0
            threading.Thread(target=self._end_with_job, name="job", daemon=True).start()

    def rounds(self, counts: Mapping[str, int]) -> Iterator[Round]:
        """Each round of training; what is to be measured is measured between them."""
        if not self.site:
            self._first()
        parts = ("train", *(("valid", "test") if self.evaluate else ()))
        self._say({"examples": {name: counts.get(name, 1) for name in parts}})
        while (asked := self._hear()) is not None:
            params = self._model(asked)
            if asked["do"] == "evaluate":
                self._measured(asked)
                continue
            made = Round(int(asked["key"][1]), self.site, self.data, Key(tuple(asked["key"])), self.ranks, self)
            self.corrects = bool(asked["corrects"])
            _seed(made.key("script"), self.ranks)
            yield made
            if made.reported is None:
                raise JobError(f"round {made.number} ended without rnd.report(examples=…): call it once in each round")
            self._reply(asked, same(self.arrays.read(), params.spec))
            kept = {"steps": made.steps, "path": made.path, "without_lr": made.without_lr}
            self._say(made.reported | kept)

    def correct(self) -> None:
        """Has the Job's algorithm change the model's gradients."""
        if not self.corrects:
            return
        arrays: Any = self.arrays
        if not hasattr(arrays, "gradients"):
            raise JobError(
                "rnd.correct(model) is of torch modules: use an algorithm without corrections, as fd.fedavg()"
            )
        grads = arrays.gradients(self.spec)
        found = None
        if self.pipe is not None:
            path = self.folder / "grads"
            here = self.arrays.read().trainable()
            _write(path, [grads, here.only(set(grads))])
            self._say({"correct": str(path)})
            found = frames.read(self.pipe.receive()[0]["corrected"])
        arrays.set_gradients(self.ranks.params(found, grads.spec))

    def _first(self) -> None:
        """Gives the model as it is to the Job that begins with it, and ends the script."""
        self._reply({"into": str(self.folder / "into")}, self.arrays.read())
        self._say({"model": str(self.folder / "into")})
        self._hear()
        sys.exit(0)

    def _hear(self) -> Json | None:
        """The next thing to do; None at the end."""
        message: Any = None
        if self.pipe is not None:
            self.busy = False
            try:
                message = self.pipe.receive()[0]
            except WireError:
                message = {"do": "end"}  # the Job is gone, and nobody else clears this away
                shutil.rmtree(self.folder, ignore_errors=True)
            self.busy = message["do"] != "end"
        message = self.ranks.heard(message)
        return None if message["do"] == "end" else dict(message)

    def _model(self, asked: Json) -> Params:
        """Writes the Task's model into the script's."""
        params = frames.read(asked["model"]) if self.pipe is not None else None
        if params is not None:
            params = same(params, self.spec)
        params = self.ranks.params(params, self.spec)
        self.arrays.write(params)
        return params

    def _measured(self, asked: Json) -> None:
        assert self.evaluate is not None
        _seed(key(0, "evaluate"), self.ranks)
        found = self.evaluate(self.model, asked["part"])
        _write(Path(asked["into"]), plain(found)) if self.pipe is not None else None
        self._say({})

    def _reply(self, asked: Json, params: Params) -> None:
        if self.pipe is not None:
            _write(Path(asked["into"]), params)

    def _say(self, message: Json) -> None:
        if self.pipe is not None:
            self.pipe.send(message)

    def _end_with_job(self) -> None:
        """Ends this process when the Job is gone: at once in a round, later where the script is to end by itself."""
        assert self.pipe is not None
        poll = select.poll()
        poll.register(self.pipe.end, select.POLLHUP)
        while not any(event & (select.POLLHUP | select.POLLERR | select.POLLNVAL) for _, event in poll.poll()):
            time.sleep(TELL_EVERY)
        if self.busy:
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            time.sleep(GRACE)
        os._exit(1)

    def _progress(self, n: int) -> None:
        self.count += n
        if time.monotonic() >= self.due:
            self._say({"progress": self.count})
            self.count, self.due = 0, time.monotonic() + TELL_EVERY


def plain(found: Any) -> Any:
    """What a script's evaluate returned, as it has a saved form. Raises JobError."""
    if found is None:
        return {}
    if isinstance(found, Mapping):
        return {str(name): np.asarray(x, np.float64) for name, x in found.items()}
    if not isinstance(found, tuple) or len(found) not in (2, 3):
        raise JobError(
            f"evaluate(model, part) gave {type(found).__name__}: return (outputs, targets, losses), or sums by metric"
        )
    return [None if x is None else _array(x) for x in (*found, None)[:3]]


def _array(x: Any) -> Any:
    return x.detach().float().cpu().numpy() if hasattr(x, "detach") and x.is_floating_point() else np.asarray(x)


def _alone(model: Any, evaluate: Measured | None, arrays: Held, ranks: Ranks, count: int) -> Iterator[Round]:
    """Rounds on this script's own data, told on standard error."""
    total = int(os.environ.get(LOCAL, count))
    say = _quiet if ranks.rank else _aloud
    say(ALONE.format(total, LOCAL))
    for number in range(total):
        made = Round(
            number,
            os.environ.get(SITE, "alone"),
            _data(os.environ.get(DATA, "")),
            key(0, number, 0, "alone"),
            ranks,
            None,
        )
        _seed(made.key("script"), ranks)
        yield made
        if made.reported is None:
            raise JobError(f"round {number} ended without rnd.report(examples=…): call it once in each round")
        told = [f"{name} {x:.4g}" for name, x in made.reported["metrics"].items()]
        for part in ("valid", "test") if evaluate else ():
            assert evaluate is not None
            told += [f"{part} {name} {x:.4g}" for name, x in _valued(plain(evaluate(model, part))).items()]
        say(f"round {number + 1} of {total}: {', '.join(told)}; {made.reported['examples']:g} examples")


def _valued(found: Any) -> Mapping[str, float]:
    """The loss and what else has a mean, for people to read."""
    if isinstance(found, list):
        return {} if found[2] is None else values(measure(["loss"], *found), ["loss"])
    sums = {name: x for name, x in found.items() if name != "examples"}
    return {
        name: float(x) if x.ndim == 0 else float(x.flat[0] / x.flat[1])
        for name, x in sums.items()
        if x.size != 1 or not x.ndim
    }


def _aloud(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _quiet(text: str) -> None:
    pass


def _connected(folder: Path) -> socket.socket:
    """The connection to the Job; when it is cut in the middle of a round, this process ends."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with at(folder) as address:
        made.connect(address)
    return made


def _data(text: str) -> Any:
    """A path as it is, or what was said in JSON: several datasets by name, a number."""
    try:
        found = json.loads(text) if text else None
    except ValueError:
        return Path(text)
    return (
        {name: Path(x) if isinstance(x, str) else x for name, x in found.items()} if isinstance(found, dict) else found
    )


def _seed(key: Key, ranks: Ranks) -> None:
    """Seeds the global generators of Python, numpy and (where it is there) torch; ranks differ."""
    key = key(ranks.rank) if ranks.rank else key
    random.seed(key.digest())
    np.random.seed(key.number() % 2**32)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(key.number())
