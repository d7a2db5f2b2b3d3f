"""When a Task may close: pure bookkeeping of who was asked and how each site settled.
Only the contract may come in; simulation and server share it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from foedus.core import Origin, Outcome, Task
from foedus.errors import Paused

Verdict = Literal["open", "close", "short"]


class Rule(NamedTuple):
    """What a Task needs: `quorum` updates, or (None) every asked site settled and at least `least` counted."""

    quorum: int | None
    least: int = 1

    @property
    def needed(self) -> int:
        return self.quorum or self.least


class Desk:
    """One open Task: updates are accepted in their order of arrival, other sites settle with a reason."""

    def __init__(self, rule: Rule, asked: Iterable[str]) -> None:
        self.rule = rule
        self.asked = dict.fromkeys(asked)
        self.arrived: list[tuple[Origin, Outcome]] = []  # what counts, or waited from an earlier round to count
        self.settled: dict[str, Outcome] = {}
        self.attempt = 0

    def accept(self, origin: Origin, outcome: Outcome) -> None:
        """An update that passed every check; `outcome` says counted."""
        self.arrived.append((origin, outcome))
        self.settled.setdefault(origin.site, outcome)

    def settle(self, outcome: Outcome) -> None:
        """A site that will not be counted: refused, declined or lost."""
        self.settled.setdefault(outcome.site, outcome)

    def waiting(self) -> list[str]:
        return [site for site in self.asked if site not in self.settled]

    def verdict(self) -> Verdict:
        """Whether the Task goes on, closes, or is settled with too few updates."""
        if self.rule.quorum is not None and len(self.arrived) >= self.rule.quorum:
            return "close"
        if self.waiting():
            return "open"
        enough = self.rule.quorum is None and len(self.arrived) >= self.rule.needed
        return "close" if enough else "short"

    def ask_again(self) -> list[str]:
        """The sites that get a second attempt: all that were asked and did not deliver."""
        self.attempt += 1
        counted = {origin.site for origin, _ in self.arrived}
        again = [site for site in self.asked if site not in counted]
        for site in again:
            self.settled.pop(site, None)
        return again

    def counted(self) -> list[Origin]:
        """The counted set, sorted; the first `quorum` to arrive."""
        return sorted(origin for origin, _ in self.arrived[: self.rule.quorum])

    def outcomes(self) -> list[Outcome]:
        """One per asked site, in the order asked, then those from earlier rounds; who came too late was dropped."""
        counted = {origin.site: outcome for origin, outcome in self.arrived[: self.rule.quorum]}
        late = {site: Outcome(site, "dropped", "not needed any more") for site in self.asked if site not in counted}
        for site, outcome in self.settled.items():
            if outcome.status != "counted":
                late[site] = outcome
        everyone = dict.fromkeys([*self.asked, *counted, *late])
        return [counted.get(site) or late[site] for site in everyone]


def needed(task: Task, least: int) -> int:
    """How many updates a Task without a quorum needs where the Job needs `least`."""
    assert task.aggregator is not None
    usual = max(1, min(max(least, task.aggregator.least), len(task.sites)))
    return usual if task.least is None else task.least


def pause(round: int, task: str, rule: Rule, outcomes: Sequence[Outcome]) -> Paused:
    """The error that names the sites and causes for which a Task cannot close."""
    absent = [o for o in outcomes if o.status not in ("counted", "dropped")]
    bad = [f"{o.site}: {o.status} ({o.why})" for o in absent]
    counted = sum(o.status == "counted" for o in outcomes)
    return Paused(
        f"round {round}, task {task!r}: {counted} of the {rule.needed} updates needed arrived; "
        f"{'; '.join(bad) or 'nobody was asked'}. A job file that has to be mended needs a new run. Mend the cause and "
        "resume the run",
        {o.site: f"{o.status}: {o.why}" for o in absent},
    )
