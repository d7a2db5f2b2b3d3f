"""A federation is a site: an edge's data is a federation of its own, and its training is a run there of several rounds.
A job file comes in; the run is one like any other, simulated or submitted to the edge's own server.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foedus import frames, jobfile, launch, progress, runs
from foedus.aggregators.mean import significant
from foedus.core import EVALUATE, Algorithm, Correct, Fit, Metrics, RoundContext, State, Task
from foedus.data import Site, Split
from foedus.errors import JobError
from foedus.files import write_atomic
from foedus.job import Job
from foedus.keys import Key
from foedus.params import Params, digest
from foedus.remote import Remote, Run, connect
from foedus.wire import bundle

FILE, START = "foedus_edge.py", "start.safetensors"
OVER = ("failed", "stopped")
CODE = """from pathlib import Path
from foedus.edges import submitted
job = submitted(Path(__file__).parent, {said!r})
"""


@dataclass(frozen=True)
class Below:
    """The federation below, as an edge's data: its submitter's home, or its sites for a simulation; and a part."""

    place: Any
    part: str = ""  # "test_": of the sites' test parts

    def __len__(self) -> int:
        return 1

    def __getitem__(self, i: int) -> Any:
        raise IndexError("an edge has no examples of its own: its sites have")


def edge(file: str | Path, rounds: int = 2, options: Mapping[str, Any] | None = None) -> Edge:
    """A learner of edges: training is `rounds` rounds of the Job in `file` below, from the model that comes from above.

    `fd.Job(fd.fedavg(), edge, edge.load, rounds=10)` is the Job above. The owner of an edge binds as its data the home
    of a submitter of the edge's own federation (`foedus login TOKEN --home FOLDER`), and allows the network in
    policy.toml; in a simulation a site's data is a folder of its sites' folders, or a mapping name -> data.
    An edge weighs what its sites weigh together in the last round.
    """
    if not isinstance(rounds, int) or rounds < 1:
        raise JobError(f"edge(rounds={rounds!r}): a whole number, at least 1")
    return Edge(Path(file).resolve(), rounds, dict(options or {}))


class Edge:
    """See `edge`."""

    def __init__(self, file: Path, rounds: int, options: Mapping[str, Any]) -> None:
        self.file, self.rounds, self.options = file, rounds, options
        self.job = jobfile.load(file, options).job
        if self.job.learner is None:
            raise JobError(f"edge({file.name}): its Job trains nothing; give it a learner")
        self.learner, self.metrics = self.job.learner, list(self.job.table())
        self.known: tuple[str, Any, Metrics] = "", None, {}

    def describe(self) -> Any:
        """What a Job's digest has of it."""
        return ["edge", self.rounds, self.job.describe()]

    @staticmethod
    def load(site: Site) -> Split:
        """An edge's data: the federation itself, whose sites have parts of their own."""
        return Split(train=Below(site.data), valid=Below(site.data), test=Below(site.data, "test_"))

    def init(self, key: Key) -> Params:
        return self.learner.init(key)

    def train(self, params: Params, data: Any, key: Key, correct: Correct | None) -> Fit:
        """The model after the rounds below, and what they weigh."""
        if correct is not None:
            raise JobError("an edge takes no steps of its own to correct: give fedprox or scaffold to the Job below")
        made, weight = self._run("train", params, data.train.place, key.number() % 2**31)
        return Fit(made, weight, self.rounds, 0.0)

    def evaluate(self, params: Params, data: Any, metrics: Sequence[Any]) -> Metrics:
        """The sums of all sites below."""
        now, place = digest(params), data.place
        if self.known[0] != now or self.known[1] is not place:
            self.known = now, place, dict(self._run(EVALUATE, params, place, 0)[0])
        found = {name: x for name, x in self.known[2].items() if name.startswith("test_") == bool(data.part)}
        return {name.removeprefix(data.part): x for name, x in found.items()}

    def _run(self, what: str, params: Params, place: Any, seed: int) -> tuple[Params, float]:
        """What a run below ends with, and the weight of its last round."""
        said = {"entry": self.file.name, "options": self.options, "what": what, "rounds": self.rounds, "seed": seed}
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "run"
            if not isinstance(place, Mapping) and (Path(place) / "submitter").is_dir():
                with connect(home=place) as remote:
                    run = self._submitted(remote, Path(scratch) / "job", params, said)
                    done = run.wait(told=_progress, folder=folder, progress=False)
            else:
                sites = place if isinstance(place, Mapping) else {p.name: p for p in sorted(Path(place).iterdir())}
                made = asked(self.job, said).replace(start=params)
                done = launch.run(made, sites, backend="local", seed=seed, folder=folder, told=_progress)
            last = runs.journal(folder).all("close")[-1]
            return done.params.copy(), significant(
                sum(w for _, status, _, w in last["outcomes"] if status == "counted")
            )

    def _submitted(self, remote: Remote, folder: Path, params: Params, said: Mapping[str, Any]) -> Run:
        """The run at the edge's server: a new one, or the one that this very Task began before a crash."""
        bundle.unpack(bundle.pack(self.file.parent, self.file.name, self.job.files), folder)
        write_atomic(folder / START, frames.model(params, {}))
        told = hashlib.sha256(json.dumps([digest(params), said], sort_keys=True).encode()).hexdigest()
        name = f"edge-{told[:16]}"
        (folder / FILE).write_text(CODE.format(said={**said, "name": name}))
        begun = [run for run in remote.runs() if run["name"] == name and run["state"] not in OVER]
        return remote.run(begun[0]["run"]) if begun else remote.submit(folder / FILE, seed=said["seed"])


def submitted(folder: Path, said: Mapping[str, Any]) -> Job:
    """The Job that an edge submits, as its server and sites find it in the bundle."""
    made = asked(jobfile.load(folder / said["entry"], said["options"]).job, said)
    return made.replace(name=said["name"], start=folder / START, files=[*made.files, START])


def asked(job: Job, said: Mapping[str, Any]) -> Job:
    """The Job below for one Task of the federation above: some rounds of training, or one of measuring."""
    plain = job.replace(evaluate=0, stop=None, best=None)
    if said["what"] != EVALUATE:
        return plain.replace(rounds=said["rounds"])
    return plain.replace(algorithm=measuring(), compress=None, cohort=None, over_select=1.0, quorum=None, rounds=1)


def measuring() -> Algorithm:
    """One round that measures the model it begins with; what it ends with are the sums."""

    def round(state: State, context: RoundContext) -> Any:
        total = yield Task(EVALUATE, state, context.roster, returns=(), late="drop")
        return Params(total.metrics)

    return Algorithm(lambda params: params, round, {})


def _progress(line: Mapping[str, Any]) -> None:
    progress.progress()
