"""The round loop: opens rounds, plays the algorithm, evaluates, checkpoints, stops; resume is the ordinary path.
A Plan, a Runner and a Journal come in as values; nothing here knows where sites are."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from foedus import frames
from foedus.aggregators import mean
from foedus.core import Algorithm, Deadline, Late, RoundContext, Runner, State, Task, Total
from foedus.errors import JournalError, Paused
from foedus.faults import point
from foedus.files import delete, write_atomic
from foedus.journal import Journal
from foedus.keys import key
from foedus.measured import facts, measured
from foedus.metrics import Metric
from foedus.params import Params
from foedus.stop import Stop
from foedus.work import EVALUATE

CHECKPOINT_SHARE = 20  # a checkpoint may take a twentieth of the time since the last one
SLOW = 0.005  # seconds a site: in such a round the intervals cost nothing that is felt


class Plan(NamedTuple):
    """All that the loop needs of a Job."""

    algorithm: Algorithm
    start: Callable[[], Params]
    metrics: Mapping[str, Metric]
    seed: int = 0
    rounds: int | None = None
    cohort: float | int | None = None
    over_select: float = 1.0
    min_sites: int = 1
    quorum: int | None = None
    late: Late = "drop"
    deadline: Deadline = Deadline()
    evaluate: int = 1
    best: str | None = None
    stop: Stop | None = None

    @property
    def least(self) -> int:
        """How many sites must be there when a round begins."""
        return max(self.min_sites, (self.quorum or 1) if self.late == "drop" else 1)


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

    def write(self, round: int, state: frames.Frame, **others: Any) -> str:
        """The name of the state's file, durable on return."""
        assert self.folder is not None
        began, name = time.monotonic(), f"state-{round}.safetensors"
        point("run.before-state")
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

    def sweep(self, keep: str) -> None:
        for path in self.folder.glob("*state-*.safetensors") if self.folder else ():
            if not path.name.endswith(keep):
                delete(path)


def execute(
    plan: Plan,
    runner: Runner,
    journal: Journal,
    checkpoints: Checkpoints,
    script: Journal | None = None,
    told: Callable[[Mapping[str, Any]], None] = lambda row: None,
) -> Ended:
    """What the run ends with, from wherever its journal stands.

    `script` is the journal whose rosters, cohorts and counted sets are followed (by default this run's own, so that
    what was decided before a crash stays decided). `told` hears of each finished round.
    """
    script = script or journal
    here = _restore(plan, runner, journal, checkpoints)
    while (reason := _reason(plan, here, script)) is None:
        here = _round(plan, here, runner, journal, checkpoints, script)
        told(here.history[-1])
    here = _last_words(plan, here, runner, journal, script)
    return Ended(plan.algorithm.params(here.state), here.best, here.best_round, here.history, reason)


def _restore(plan: Plan, runner: Runner, journal: Journal, checkpoints: Checkpoints) -> Here:
    steps = sorted((row for row in journal.all("step") if row["checkpoint"]), key=lambda row: row["round"])
    if not steps or checkpoints.folder is None:
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


def _round(plan: Plan, here: Here, runner: Runner, journal: Journal, checkpoints: Checkpoints, script: Journal) -> Here:
    began = time.monotonic()
    context = _open(plan, here, runner, journal, script)
    state, totals = _play(plan, here.state, context, runner)
    if _evaluates(plan, here.round):
        totals = [*totals, *_evaluate(plan, state, context, len(totals), runner)]
    metrics, per_site = measured(totals, plan.metrics.values(), journal)
    line = {"round": here.round, **metrics, "seconds": round(time.monotonic() - began, 6)}
    ends = _reason(plan, here._replace(round=here.round + 1, history=(*here.history, line)), script) is not None
    found = facts(totals, per_site, plan.metrics.values(), ends or line["seconds"] > SLOW * len(per_site))
    here = _improved(plan, here._replace(state=state), line)
    return _step(plan, here, line, found, runner, journal, checkpoints)


def _open(plan: Plan, here: Here, runner: Runner, journal: Journal, script: Journal) -> RoundContext:
    decided = script.find("round", here.round)
    if decided is None:
        roster = sorted(runner.roster(plan.least))
        if len(roster) < plan.least:
            there = f"{len(roster)} of the {plan.least} sites needed are there ({', '.join(roster)})"
            raise Paused(f"round {here.round}: {there}; let more join and resume the run")
        cohort = draw(plan, here.round, roster)
    else:
        row = script.find("roster", decided["roster"])
        if row is None:
            raise JournalError(f"round {here.round} names a roster that the journal lacks: it is damaged")
        roster = list(row["sites"])
        cohort = roster if decided["cohort"] is None else list(decided["cohort"])
    since = journal.roster_of(here.round, roster)
    journal.add("round", round=here.round, roster=since, cohort=None if cohort == roster else cohort)
    point("run.after-round")
    return RoundContext(plan.seed, here.round, roster, cohort, here.history)


def draw(plan: Plan, round: int, roster: Sequence[str]) -> list[str]:
    """The cohort of a round, drawn by key from the sorted roster: a count, a share or everybody, over-selected."""
    share = 1.0 if plan.cohort is None else plan.cohort
    count = share if isinstance(share, int) else max(1, times(share, len(roster)))
    count = min(len(roster), times(plan.over_select, count))
    if count == len(roster):
        return list(roster)
    chosen = key(plan.seed, round, 0, "server", "cohort").numpy().choice(len(roster), count, replace=False)
    return [roster[i] for i in sorted(chosen)]


def times(share: float, count: int) -> int:
    """`share` of `count`, rounded up; 1.1 of 10 is 11, although the float 1.1 is a little more than 11/10."""
    return math.ceil(Fraction(str(share)) * count)


def _play(plan: Plan, state: State, context: RoundContext, runner: Runner) -> tuple[State, list[Total]]:
    steps, answer = plan.algorithm.round(state, context), None
    totals: list[Total] = []
    while True:
        try:
            asked = steps.send(answer)
        except StopIteration as end:
            return end.value, totals
        tasks = [asked] if isinstance(asked, Task) else list(asked)
        found = list(runner.run([_filled(task, plan) for task in tasks], context, len(totals)))
        totals += found
        answer = found[0] if isinstance(asked, Task) else list(found)


def _filled(task: Task, plan: Plan) -> Task:
    quorum = task.quorum if task.quorum is not None else plan.quorum
    late = task.late or plan.late
    return task._replace(
        aggregator=task.aggregator or mean(),
        quorum=quorum if quorum is None or late == "keep" else min(quorum, len(task.sites)),
        late=late,
        deadline=task.deadline or plan.deadline,
        returns=task.payload.spec if task.returns is None else task.returns,
    )


def _evaluates(plan: Plan, round: int) -> bool:
    return plan.evaluate > 0 and ((round + 1) % plan.evaluate == 0 or round + 1 == plan.rounds)


def _evaluate(plan: Plan, state: State, context: RoundContext, first: int, runner: Runner) -> Sequence[Total]:
    params = plan.algorithm.params(state)
    task = Task(EVALUATE, params, context.roster, mean(), late="drop", deadline=plan.deadline, returns=())
    return runner.run([task], context, first)


def _last_words(plan: Plan, here: Here, runner: Runner, journal: Journal, script: Journal) -> Here:
    """A stop rule may end a run at a round that was not evaluated: then the last model still is."""
    if not plan.evaluate or not here.round or _evaluates(plan, here.round - 1):
        return here
    context = _open(plan, here, runner, journal, script)
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
        name = checkpoints.write(here.round, state, runner=runner.saved(), best=here.best, best_round=here.best_round)
    metrics, digest = {k: v for k, v in line.items() if k not in ("round", "seconds")}, digesting()
    journal.add(
        "step",
        round=here.round,
        digest=digest,
        seconds=line["seconds"],
        metrics=metrics,
        checkpoint=name,
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
    return {"round": row["round"], "seconds": row["seconds"], **row["metrics"]}
