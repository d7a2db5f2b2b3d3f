"""The round loop: opens rounds, plays the algorithm, evaluates, checkpoints, stops; resume is the ordinary path.
A Plan, a Runner and a Journal come in as values; nothing here knows where sites are."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from foedus import frames, midway
from foedus.aggregators import mean
from foedus.aggregators.gathering import too_few
from foedus.algorithms.buffered import size
from foedus.clock import Watch
from foedus.core import EVALUATE, Algorithm, Deadline, Late, Round, RoundContext, Runner, State, Task, Total
from foedus.errors import JobError, JournalError, Paused
from foedus.faults import point
from foedus.files import delete, write_atomic
from foedus.journal import Journal
from foedus.keys import Key, key
from foedus.measured import facts, measured
from foedus.metrics import Metric
from foedus.params import Params
from foedus.participation import Cohort, counted, drawn, lots, picked, times
from foedus.stop import Stop

BESIDE = ("round", "seconds", "clock")  # what a line of the history has beside metrics
CHECKPOINT_SHARE = 20  # a checkpoint may take a twentieth of the time since the last one
MOST_WAITS = 10_000  # for a moment at which enough simulated devices are there
SLOW = 0.005  # seconds a site: in such a round the intervals cost nothing that is felt
MOST_MEASURED, PANEL = 10_000, 1_000  # beyond so many sites so many are evaluated, where the Job does not say


class Plan(NamedTuple):
    """All that the loop needs of a Job."""

    algorithm: Algorithm
    start: Callable[[], Params]
    metrics: Mapping[str, Metric]
    seed: int = 0
    rounds: int | None = None
    cohort: Cohort = None
    over_select: float = 1.0
    min_sites: int = 1
    quorum: int | None = None
    late: Late = "drop"
    deadline: Deadline = Deadline()
    evaluate: int = 1
    panel: float | int | None = None
    best: str | None = None
    stop: Stop | None = None
    measuring: Callable[[Task], Task] | None = None  # what seals the Task that evaluates
    secret: Key | None = None  # that only the aggregator has; None: the seed's, as in a simulation

    @property
    def randomness(self) -> Key:
        """The aggregator's own; a simulation has nobody to hide it from."""
        return self.secret or key(self.seed, "secret", 0, "server")

    @property
    def least(self) -> int:
        """How many sites must be there when a round begins."""
        return max(self.min_sites, size(self.algorithm.traits), (self.quorum or 1) if self.late == "drop" else 1)


class Here(NamedTuple):
    """Where a run stands after `round` rounds."""

    state: State
    round: int = 0
    history: tuple[Mapping[str, Any], ...] = ()
    best: Params | None = None
    best_round: int | None = None


class Ended(NamedTuple):
    params: Params
    best: Params | None
    best_round: int | None
    history: Sequence[Mapping[str, Any]]
    reason: str


class Checkpoints:
    """State files of one run: written whole, or not at all. `lazy` ones leave out rounds that come too fast.

    The state has a file of its own, which the next round may send; what else there is has another.
    """

    def __init__(self, folder: Path | None, lazy: bool = True) -> None:
        self.folder, self.lazy = folder, lazy
        self.last, self.cost = time.monotonic(), 0.0

    def due(self) -> bool:
        return self.folder is not None and (
            not self.lazy or time.monotonic() - self.last > max(1.0, CHECKPOINT_SHARE * self.cost)
        )

    def write(self, round: int, state: frames.Frame, beside: Callable[[], Mapping[str, Any]]) -> str:
        """The name of the state's file, durable on return. What goes beside it is asked for here: its time counts."""
        assert self.folder is not None
        began, name = time.monotonic(), f"state-{round}.safetensors"
        point("run.before-state")
        others = beside()
        if any(x is not None for x in others.values()):
            write_atomic(self.folder / f"beside-{name}", frames.pack(others))
        write_atomic(self.folder / name, state)
        point("run.after-state")
        self.last = time.monotonic()
        self.cost = self.last - began
        return name

    def read(self, name: str) -> Any:
        """A checkpoint's state, memory-mapped; it stays readable when the file is swept."""
        assert self.folder is not None
        return frames.read(self.folder / name)

    def beside(self, name: str) -> Mapping[str, Any]:
        """What was written beside a state, without what was None."""
        assert self.folder is not None
        path = self.folder / f"beside-{name}"
        return dict(frames.read(path)) if path.exists() else {}

    def keep(self, round: int) -> None:
        """Keeps the checkpoint of that round for good: a site joins after it, which may want to be left out one day."""
        name = f"state-{round}.safetensors"
        for part in ("", "beside-"):
            if self.folder is not None and (self.folder / f"{part}{name}").exists():
                _linked(self.folder / f"{part}{name}", self.folder / self.kept(round, part))

    @staticmethod
    def kept(round: int, part: str = "") -> str:
        """The name of a kept checkpoint, or of what is kept beside it."""
        return f"kept-{part}{round}.safetensors"

    def sweep(self, keep: str) -> None:
        for path in self.folder.glob("*state-*.safetensors") if self.folder else ():
            if not path.name.endswith(keep):
                delete(path)
        if self.folder is not None:
            midway.clear(self.folder / midway.FOLDER)  # trainings of the rounds that the checkpoint has


def _linked(old: Path, new: Path) -> None:
    """The same file under a second name; a copy where the disk has no such names."""
    try:
        os.link(old, new)
    except FileExistsError:
        return
    except OSError:
        shutil.copyfile(old, new)


def execute(
    plan: Plan,
    runner: Runner,
    journal: Journal,
    checkpoints: Checkpoints,
    script: Journal | None = None,
    told: Callable[[Mapping[str, Any]], None] = lambda row: None,
    watch: Watch | None = None,
) -> Ended:
    """What the run ends with, from wherever its journal stands.

    `script` is the journal whose rosters, cohorts and counted sets are followed (by default this run's own, so that
    what was decided before a crash stays decided). `told` hears of each finished round. `watch` has the virtual time
    of a simulation.
    """
    script, watch = script or journal, watch or Watch()
    here = _restore(plan, runner, journal, checkpoints)
    while (reason := _reason(plan, here, script)) is None:
        here = _round(plan, here, runner, journal, checkpoints, script, watch)
        told(here.history[-1])
    here = _last_words(plan, here, runner, journal, script, watch)
    return Ended(plan.algorithm.params(here.state), here.best, here.best_round, here.history, reason)


def _restore(plan: Plan, runner: Runner, journal: Journal, checkpoints: Checkpoints) -> Here:
    steps = sorted((row for row in journal.all("step") if row["checkpoint"]), key=lambda row: row["round"])
    if not steps or checkpoints.folder is None:
        runner.restore(None)
        state = frames.pack(plan.algorithm.init(plan.start()))
        if checkpoints.lazy or checkpoints.folder is None:
            return Here(frames.unpack(state.bytes()))
        write_atomic(checkpoints.folder / "start.safetensors", state)
        return Here(checkpoints.read("start.safetensors"))
    last = steps[-1]["round"]
    name = steps[-1]["checkpoint"]
    beside = checkpoints.beside(name)
    runner.restore(beside.get("runner"))
    history = tuple(_line(journal.find("step", r)) for r in range(last + 1))
    return Here(checkpoints.read(name), last + 1, history, beside.get("best"), beside.get("best_round"))


def _reason(plan: Plan, here: Here, script: Journal) -> str | None:
    """Why the run is over, if it is; a replay ends where the original did, which a clock may have stopped."""
    end = script.find("end")
    if end is not None and here.round >= end["rounds"]:
        return str(end["reason"])
    done = plan.stop.done(here.history) if plan.stop and here.history and end is None else None
    if done:
        return done
    return "all rounds done" if plan.rounds is not None and here.round >= plan.rounds else None


def _round(
    plan: Plan,
    here: Here,
    runner: Runner,
    journal: Journal,
    checkpoints: Checkpoints,
    script: Journal,
    watch: Watch,
) -> Here:
    began = time.monotonic()
    context = _open(plan, here, runner, journal, script, watch)
    if here.round and journal.newcomers(here.round):
        checkpoints.keep(here.round - 1)
    state, totals = _play(plan, plan.algorithm.round(here.state, context), context, runner)
    if _evaluates(plan, here.round):
        totals = [*totals, *_evaluate(plan, state, context, len(totals), runner)]
    metrics, per_site = measured(totals, plan.metrics.values(), journal)
    line = {"round": here.round, **metrics, "seconds": round(time.monotonic() - began, 6), **_clock(watch)}
    ends = _reason(plan, here._replace(round=here.round + 1, history=(*here.history, line)), script) is not None
    found = facts(totals, per_site, plan.metrics.values(), ends or line["seconds"] > SLOW * len(per_site))
    here = _improved(plan, here._replace(state=state), line)
    return _step(plan, here, line, found, runner, journal, checkpoints)


def _clock(watch: Watch) -> dict[str, float]:
    return {"clock": watch.now} if watch.shown else {}


def _open(plan: Plan, here: Here, runner: Runner, journal: Journal, script: Journal, watch: Watch) -> RoundContext:
    decided = script.find("round", here.round)
    if decided is None:
        roster = runner.roster(plan.least)
        if len(roster) < plan.least:
            there = f"{len(roster)} of the {plan.least} sites needed are there ({', '.join(roster)})"
            raise Paused(f"round {here.round}: {there}; let more join and resume the run")
        cohort = _asked(plan, here, roster, watch)
    else:
        roster = script.roster(decided["roster"])
        cohort = roster if decided["cohort"] is None else list(decided["cohort"])
        watch.reach(decided)
    since = journal.roster_of(here.round, roster)
    everybody = len(cohort) == len(roster)
    journal.add("round", round=here.round, roster=since, cohort=None if everybody else cohort, **_clock(watch))
    point("run.after-round")
    return RoundContext(plan.seed, here.round, roster, cohort, here.history, plan.randomness)


def _asked(plan: Plan, here: Here, roster: Sequence[str], watch: Watch) -> Sequence[str]:
    """The cohort, once enough of it can be asked; on a simulation's clock that may take time."""
    least, there = min(plan.least, wanted(plan, len(roster))), watch.there if watch.selects else None
    never = f"never {least} at once"
    for _ in range(MOST_WAITS):
        cohort = draw(plan, here.round, roster, there, here.history)
        if len(cohort) >= least:
            return cohort
        if not watch.wait(roster):
            never = "none will be any more"
            break
    found = f"{len(cohort)} of the {least} sites needed are available"
    mend = "cohort=…" if callable(plan.cohort) and there is None else "available=…"
    raise Paused(f"round {here.round}: {found}, and {never}; mend {mend} and resume the run")


def draw(
    plan: Plan,
    round: int,
    roster: Sequence[str],
    there: Callable[[str], bool] | None = None,
    history: Sequence[Mapping[str, Any]] = (),
) -> Sequence[str]:
    """The cohort of a round, drawn by key from the roster, which is in order; of those who are `there`, if it is given.

    A count, a share or everybody, over-selected; fewer where not so many are there. Or what the Job's rule draws.
    """
    context = RoundContext(plan.seed, round, roster, (), history)
    if callable(plan.cohort):
        here = roster if there is None else [site for site in roster if there(site)]
        return drawn(plan.cohort, context._replace(roster=here)) if here else ()
    count, random = wanted(plan, len(roster)), lots(context)
    if there is None:
        return picked(random, roster, count)
    order = _lots(random.numpy(), len(roster))
    chosen = islice((i for i in order if there(roster[i])), count)
    return [roster[i] for i in sorted(chosen)]


def wanted(plan: Plan, sites: int) -> int:
    """How many of so many sites a round asks; of those that a rule draws there is one at least."""
    if callable(plan.cohort):
        return min(sites, 1)
    asked = counted(1.0 if plan.cohort is None else plan.cohort, sites)
    return min(sites, times(plan.over_select, asked))


def panel(plan: Plan, roster: Sequence[str]) -> Sequence[str]:
    """Who evaluates: the same sites each time, so that rounds can be compared."""
    share = plan.panel
    if share is None:
        share = 1.0 if len(roster) <= MOST_MEASURED else PANEL
    return picked(key(plan.seed, 0, 0, "server", "panel"), roster, counted(share, len(roster)))


def _lots(random: np.random.Generator, count: int) -> Iterator[int]:
    """The numbers below `count` in random order, each drawn when it is asked for."""
    moved: dict[int, int] = {}
    for i in range(count):
        at = int(random.integers(i, count))
        yield moved.get(at, at)
        moved[at] = moved.pop(i, i)


def _play(plan: Plan, steps: Round, context: RoundContext, runner: Runner, first: int = 0) -> tuple[State, list[Total]]:
    """What a generator of Tasks returns, and its Totals; its Tasks are numbered from `first` on."""
    totals, answer = list[Total](), None
    while True:
        try:
            asked = steps.send(answer)
        except StopIteration as end:
            return end.value, totals
        tasks = [asked] if isinstance(asked, Task) else list(asked)
        found = list(runner.run([_filled(task, plan) for task in tasks], context, first + len(totals)))
        totals += found
        answer = found[0] if isinstance(asked, Task) else list(found)


def _filled(task: Task, plan: Plan) -> Task:
    quorum = (task.quorum if task.quorum is not None else plan.quorum) or None
    late = task.late or plan.late
    if quorum is not None and late == "drop":
        quorum = min(quorum, len(task.sites))
    fewest = len(task.sites) if quorum is None else quorum
    if task.aggregator and fewest < task.aggregator.least:
        raise JobError(f"task {task.work!r}: {too_few(task.aggregator.least, fewest)}")
    return task._replace(
        aggregator=task.aggregator or mean(),
        quorum=quorum,
        late=late,
        deadline=task.deadline or plan.deadline,
        returns=task.payload.spec if task.returns is None else task.returns,
    )


def _evaluates(plan: Plan, round: int) -> bool:
    return plan.evaluate > 0 and ((round + 1) % plan.evaluate == 0 or round + 1 == plan.rounds)


def _evaluate(plan: Plan, state: State, context: RoundContext, first: int, runner: Runner) -> Sequence[Total]:
    if plan.algorithm.measure is not None:
        return _play(plan, plan.algorithm.measure(state, context), context, runner, first)[1]
    params, personal = plan.algorithm.params(state), plan.algorithm.personal
    task = Task(EVALUATE, params, panel(plan, context.roster), mean(), late="drop", deadline=plan.deadline, returns=())
    task = task._replace(reads=personal.work) if personal else task
    return runner.run([plan.measuring(task) if plan.measuring else task], context, first)


def _last_words(plan: Plan, here: Here, runner: Runner, journal: Journal, script: Journal, watch: Watch) -> Here:
    """A stop rule may end a run at a round that was not evaluated: then the last model still is."""
    if not plan.evaluate or not here.round or _evaluates(plan, here.round - 1):
        return here
    context = _open(plan, here, runner, journal, script, watch)
    totals = _evaluate(plan, here.state, context, 0, runner)
    metrics, per_site = measured(totals, plan.metrics.values(), journal)
    line, found = {**here.history[-1], **metrics}, facts(totals, per_site, plan.metrics.values(), True)
    journal.add("step", round=here.round, digest="", seconds=0.0, metrics=line, checkpoint=None, **found)
    last = _improved(plan, here._replace(round=here.round - 1), line)
    return last._replace(round=here.round, history=(*here.history[:-1], line))


def _improved(plan: Plan, here: Here, line: Mapping[str, Any]) -> Here:
    if plan.best is None or line.get(plan.best) is None:
        return here
    sign = -1 if plan.metrics[plan.best].better == "min" else 1
    old = None if here.best_round is None else here.history[here.best_round][plan.best]
    if old is not None and sign * line[plan.best] <= sign * old:
        return here
    return here._replace(best=plan.algorithm.params(here.state), best_round=here.round)


def _step(
    plan: Plan,
    here: Here,
    line: Mapping[str, Any],
    found: Mapping[str, Any],
    runner: Runner,
    journal: Journal,
    checkpoints: Checkpoints,
) -> Here:
    state = frames.pack(here.state)
    digesting = state.digesting()
    known = journal.find("step", here.round)
    name = None
    if known is None and checkpoints.due():
        rest = {"best": here.best, "best_round": here.best_round}
        name = checkpoints.write(here.round, state, lambda: {"runner": runner.saved(), **rest})
    metrics, digest = {k: v for k, v in line.items() if k not in BESIDE}, digesting()
    clock = {"clock": line["clock"]} if "clock" in line else {}
    journal.add(
        "step",
        round=here.round,
        digest=digest,
        seconds=line["seconds"],
        metrics=metrics,
        checkpoint=name,
        **clock,
        **found,
    )
    point("run.after-step")
    row = journal.find("step", here.round)
    saved_state = checkpoints.read(name) if name else frames.unpack(state.bytes())
    if name is not None and checkpoints.folder is not None:
        frames.remember(checkpoints.folder / name, saved_state, digest)
        checkpoints.sweep(name)
    return here._replace(state=saved_state, round=here.round + 1, history=(*here.history, _line(row)))


def _line(row: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if row is None:
        raise JournalError("a finished round has no row in the journal: it is damaged")
    return {name: row[name] for name in BESIDE if name in row} | dict(row["metrics"])
