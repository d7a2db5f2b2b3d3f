"""The site's worker: alone imports a Job, loads the data and trains, in a process without key, network or policy.
Its agent asks over one pipe (and may leave it the network); files that it writes are checked before anything leaves."""

from __future__ import annotations

import base64
import importlib.util
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from foedus import build, columns, frames, jobfile, midway, progress
from foedus.core import Decline, Metrics, Update
from foedus.errors import FoedusError, Refused, SiteError, WireError
from foedus.faults import point
from foedus.files import write_all
from foedus.job import Job
from foedus.keys import Key
from foedus.params import Params
from foedus.preview.rehearsal import Leaving, named, rehearsed
from foedus.privacy import dp_metrics, presets, relays
from foedus.privacy.distributed import DistributedDp
from foedus.privacy.dp_sgd import plan
from foedus.privacy.site_level import LocalDp, noise_of
from foedus.site.limits import hinted, limit
from foedus.site.orders import spec_of
from foedus.site.withheld import without
from foedus.wire.offline import go_offline
from foedus.wire.pipe import Pipe, inherited
from foedus.work import Bench, Order, describe

TELL_EVERY = 1.0  # seconds between messages of progress
OFFLINE = "no network here: `network = true` in the site's policy.toml would let the Job's code and adapters use it"
Json = dict[str, Any]


class Loaded(NamedTuple):
    """The Job's code and the site's data, ready for Tasks."""

    job: Job
    bench: Bench
    site: str
    data: Any
    texts: bool  # whether what errors say may leave the site


class Known:
    """Who this site is to the others of its run, by what its agent has signed, and who they are, as it pinned them."""

    def __init__(self, order: Mapping[str, Any], secret: Key) -> None:
        self.run, self.statement, self.secret = order["run"], bytes.fromhex(order["statement"]), secret
        self.publics: Mapping[str, str] = {}

    def __call__(self, site: str) -> relays.Identity:
        return relays.Identity(self.run, site, relays.private_of(self.secret), self.statement, self.public)

    def public(self, site: str) -> bytes | None:
        """The enrolled key of a site, or None."""
        return bytes.fromhex(self.publics[site]) if site in self.publics else None


def main(fd: int) -> None:
    """Answers the agent until it is gone."""
    os.set_inheritable(fd, False)
    pipe = inherited(fd)
    try:
        order = pipe.receive()[0]
        limit(order.get("limits") or {})
        if order.get("network") is not True:
            go_offline(OFFLINE)  # before there is a second thread: some kernels take the network from one alone
        threading.Thread(target=_end_with_agent, args=(fd,), daemon=True).start()
        progress.tell = Teller(pipe)
        with build.exactly():
            loaded, answer = load(order)
            pipe.send(answer)
            if loaded is not None:
                serve(pipe, loaded)
    except WireError:
        os._exit(0)


def serve(pipe: Pipe, loaded: Loaded) -> None:
    while True:
        message = pipe.receive()[0]
        answer = ASKED.get(message["do"], work)(message, loaded)
        point("worker.before-reply")
        pipe.send(answer)


class Teller:
    """Passes progress on, not more often than the agent needs."""

    def __init__(self, pipe: Pipe) -> None:
        self.pipe, self.count, self.due, self.pid = pipe, 0, 0.0, os.getpid()

    def __call__(self, n: int) -> None:
        self.count += n
        now = time.monotonic()
        if now >= self.due and os.getpid() == self.pid:  # a forked loader of data would write between our messages
            self.pipe.send({"progress": self.count})
            self.count, self.due = 0, now + TELL_EVERY


def load(order: Mapping[str, Any]) -> tuple[Loaded | None, Json]:
    """The Job and its data, and what the agent is told of them."""
    stage = f"importing {order['entry']}"
    try:
        stage = "taking out what is excluded"
        paths = withheld(order)  # before any of the Job's code is here
        stage = f"importing {order['entry']}"
        job = jobfile.load(Path(order["bundle"]) / order["entry"], order["options"]).job
        job = job.given(privacy=order.get("privacy") or None)
        getattr(job.learner, "ready", lambda: None)()
        described = build.describe()  # with the libraries that the Job brings, as the run worker describes itself
        stage = "adapting its data"
        named = {name: adapted(name, paths[name], adapter) for name, _, adapter in order["data"]}
        stage = "loading its data"
        data = named if order["many"] else next(iter(named.values()))
        bench = job.bench(order["seed"])
        bench.secret = Key((order["secret"],))
        bench.identify = Known(order, bench.secret)
        report = describe_split(bench.split(order["site"], data)) | {"schema": "fits" if job.schema else None}
        report |= {"columns": columns.told(bench.news(order["site"]))}
        report |= {
            "privacy": protection(job, report["rows"].get("train", 0)),
            "relays": presets.RELAYS in job.method.traits,
        }
    except SiteError as error:
        return None, _raised(error, error.stage, order["error_texts"])
    except (FoedusError, NotImplementedError) as error:
        return None, {"raised": hinted(str(error)), "stage": stage}
    except (Exception, SystemExit) as error:
        return None, _raised(error, stage, order["error_texts"] or stage.startswith("importing"))
    point("worker.after-load")
    return Loaded(job, bench, order["site"], data, order["error_texts"]), {"ready": True, **report, "build": described}


def withheld(order: Mapping[str, Any]) -> dict[str, str]:
    """dataset -> the path of its data, without the rows and files that its owner has excluded."""
    excluded, into = order.get("excluded") or {}, Path("withheld").absolute()
    found = {}
    for name, path, _ in order["data"]:
        ids, column = excluded.get(name) or ((), "")
        found[name] = str(without(Path(path), ids, column, into / name))
    return found


def adapted(name: str, path: str, adapter: str) -> Any:
    """The path of the data, or what the owner's adapter makes of it."""
    if not adapter:
        return Path(path)
    spec = importlib.util.spec_from_file_location(f"foedus_adapter_{name}", adapter)
    if spec is None or spec.loader is None:
        raise FoedusError(f"{adapter} is no Python file: the adapter of {name!r} is a *.py with def adapt(path, name)")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "adapt", None)):
        raise FoedusError(f"{adapter} has no function adapt: write def adapt(path, name): return data")
    return module.adapt(Path(path), name)


def protection(job: Job, rows: int) -> Json:
    """The Job's privacy, as a submission signs it and in full, and what one training on so many rows spends."""
    stated, said = presets.stated(job.protections), presets.said(job.privacy or "none", job.method.traits)
    return {"stated": stated, "said": said, "spends": spends(job, rows), "measures": measures(job)}


def spends(job: Job, rows: int) -> list[Any] | None:
    """Noise multiplier, sampling rate and steps of one training; None where nothing bounds what it tells."""
    if isinstance(job.site_level, (LocalDp, DistributedDp)) and job.site_level.word:
        return [noise_of(job.site_level, job.rounds).hex(), (1.0).hex(), 1]
    if job.dp_sgd is None or not job.dp_sgd.word or not rows:
        return None
    learner: Any = job.learner
    found = plan(job.dp_sgd, rows, learner.batch_size, learner.count(rows), job.rounds)
    return [float(found.noise).hex(), float(found.rate).hex(), int(found.steps)]


def measures(job: Job) -> list[Any] | None:
    """The same of one evaluation; None where its metrics have no noise."""
    if job.dp_metrics is None or not job.dp_metrics.word or not job.evaluate:
        return None
    found = dp_metrics.spends(job.dp_metrics, *job.releases)
    return [found.noise_multiplier.hex(), (1.0).hex(), 1]


def describe_split(split: Any) -> Json:
    """How many rows each part has, and the shape or columns of one; no values."""
    parts = {part: getattr(split, part) for part in ("train", "valid", "test")}
    shape = getattr(getattr(split.train, "x", None), "shape", None)
    return {
        "rows": {part: len(data) for part, data in parts.items() if data is not None},
        "shape": None if shape is None else [int(n) for n in shape[1:]],
    }


def work(message: Mapping[str, Any], loaded: Loaded) -> Json:
    """Performs one Task and writes its files; what became of it."""
    if isinstance(loaded.bench.identify, Known):
        loaded.bench.identify.publics = message.get("publics") or {}
    try:
        order = Order(message["work"], _payload(message["payload"]), loaded.site, message["round"], message["task"],
                      spec_of(message["returns"]), _sealed(message.get("seal")))  # fmt: skip
        local = frames.read(message["local"]) if message["local"] else None
        midway.folder = Path(message["midway"])
        point("worker.before-train")
        local, update = loaded.bench.perform(order, local, loaded.data)
        if isinstance(update, Decline):
            return {"declined": update.reason}
        return _written(update, local, message)
    except Refused as error:
        return {"refused": str(error)}
    except SiteError as error:
        return _raised(error, error.stage, loaded.texts)
    except (Exception, SystemExit) as error:
        return _raised(error, message["work"], loaded.texts)


def _sealed(told: Any) -> tuple[int, int] | None:
    return told and (int(told[0]), int(told[1]))


def own_model(message: Mapping[str, Any], loaded: Loaded) -> Json:
    """Writes the site's own model beside the run's last one, and says whether it has any."""
    try:
        locals = {work: frames.read(path) for work, path in message["locals"].items()}
        found = loaded.bench.own_model(frames.read_model(message["model"]), locals)
        if found is not None:
            _write(Path(message["file"]), frames.model(found, {"run": message["run"], "site": loaded.site}))
        return {"own": found is not None}
    except (Exception, SystemExit) as error:
        return _raised(error, "its own model", loaded.texts)


def previewed(message: Mapping[str, Any], loaded: Loaded) -> Json:
    """Writes what this site would send in the first rounds, and what is said beside each update."""
    try:
        asked = loaded.bench.seed, message["roster"], loaded.site, loaded.data, message["rounds"]
        left, why = rehearsed(loaded.job, loaded.bench, *asked)
        return {"previewed": [_previewed(one, Path(message["folder"])) for one in left], "why": why}
    except SiteError as error:
        return _raised(error, error.stage, loaded.texts)
    except (Exception, SystemExit) as error:
        return _raised(error, "preview", loaded.texts)


def _previewed(left: Leaving, folder: Path) -> Json:
    """An update's file, and of its Task what its agent would hear from the server."""
    name = named(left.order.round, left.order.task, left.order.work)
    _write(folder / name, frames.pack(left.update.params))
    task, seal = left.task, left.task.seal
    at = {"round": left.order.round, "task": left.order.task, "work": left.order.work, "name": name}
    ring = [seal.threshold, seal.bound.hex(), seal.wmax.hex()] if seal is not None and seal.masks else None
    said = {"weight": float(left.update.weight), "metrics": packed(left.update.metrics), "stateful": left.stateful}
    return at | {"sites": len(task.sites), "returns": [list(x) for x in task.returns or ()], "seal": ring, "done": said}


def _raised(error: BaseException, stage: str, texts: bool) -> Json:
    """What the submitter is told of an error. Its text may quote the data, so that stays in this worker's log."""
    cause = error.__cause__ if isinstance(error, SiteError) else error
    if cause is None:  # foedus says what it found, and no values
        return {"raised": hinted(str(getattr(error, "why", error))), "stage": stage}
    whole = describe(cause)
    told = describe(cause, texts)
    if told != whole:
        sys.stderr.write(f"{stage}: {whole}\n")
    return {"raised": told + hinted(whole)[len(whole) :], "stage": stage}


def _payload(path: str) -> Params:
    found = frames.read(path)
    if not isinstance(found, Params):
        raise WireError(f"the payload is {type(found).__name__}, not Params")
    return found


def _written(update: Update, local: Any, message: Mapping[str, Any]) -> Json:
    _write(Path(message["update"]), frames.pack(update.params))
    if local is not None:
        _write(Path(message["new_local"]), frames.pack(local))
    done = {"weight": float(update.weight), "metrics": packed(update.metrics), "stateful": local is not None}
    return {"done": done}


def _write(path: Path, frame: frames.Frame) -> None:
    with path.open("wb", buffering=0) as file:
        for piece in frame:
            write_all(file, piece, ahead=True)  # its agent checks it and waits for the disk


def packed(metrics: Metrics) -> Json:
    """Metrics as an envelope holds them."""
    arrays = {name: np.asarray(x) for name, x in metrics.items()}
    return {
        name: {"dtype": x.dtype.name, "shape": list(x.shape), "data": base64.b64encode(x.tobytes()).decode()}
        for name, x in arrays.items()
    }


ASKED = {"work": work, "own": own_model, "preview": previewed}


def _end_with_agent(fd: int) -> None:
    """Ends this process and all that it started once the agent's end of the pipe is closed, whatever the Job does."""
    poll = select.poll()
    poll.register(fd, select.POLLHUP)
    while not any(event & (select.POLLHUP | select.POLLERR | select.POLLNVAL) for _, event in poll.poll()):
        time.sleep(0.1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]))
