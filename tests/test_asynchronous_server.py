"""Asynchronous runs at a real server whose sites are late, decline, leave or fall silent while others go on.
Scripted sites say what arrives, and when."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foedus.errors import FoedusError
from foedus.params import Params, digest
from foedus.server import conductor
from server_rig import Rig, Scripted, packed, sums

pytestmark = pytest.mark.processes

JOB = """
import numpy as np
import foedus as fd
from foedus.numpy import NumpyLearner


def gradient(p, x, y):
    return x[:, 0], {"w": p["w"]}


learner = NumpyLearner({"w": np.zeros(3, np.float32)}, gradient, lambda p, x: x[:, 0], lr=0.1)
plain = fd.fedavg(quorum=2, late="keep", busy=3)
job = fd.Job(ALGORITHM, learner, rounds=ROUNDS, evaluate=MEASURED)
"""


def job(algorithm: str, rounds: int, evaluate: int = 0) -> str:
    return JOB.replace("ALGORITHM", algorithm).replace("ROUNDS", str(rounds)).replace("MEASURED", str(evaluate))


def moved(by: float) -> bytes:
    return packed(w=np.full(3, by, np.float32))


def model(*w: float) -> str:
    return digest(Params({"w": np.float32(w)}))


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()


def begun(rig: Rig, code: str, names: str) -> tuple[str, list[Scripted]]:
    """A run in which all these sites take part."""
    sites = [Scripted(rig, name) for name in names.split()]
    run = rig.submit(code)
    for site in sites:
        site.ready(run)
    return run, sites


def accepted(site: Scripted, run: str, by: float, round: int, **said: Any) -> dict[str, Any]:
    """The site's next order, which it has done."""
    order = site.task(run)
    assert order["round"] == round
    assert site.send(order, moved(by), **said)["status"] == "accepted"
    return order


def ended(rig: Rig, run: str) -> str:
    """The digest of the run's last model."""
    rig.until(lambda: rig.hub.runs[run].over)
    assert rig.hub.runs[run].state == "finished"
    return str(rig.rows(run, "end")[0]["digest"])


def counted(rig: Rig, run: str) -> list[list[Any]]:
    return [row["counted"] for row in rig.rows(run, "close") if row["task"] == 0]


def test_a_late_update_counts_by_its_age(rig: Rig) -> None:
    """Round 0: (1 + 3) / 2. Round 2: c's update of round 0, of age 2, counts 1 / 3: (4 + 6 / 3) / 2."""
    run, (a, b, c) = begun(rig, job("fd.fedbuff(2, staleness=fd.staleness.polynomial(1))", 3), "a b c")
    late = c.task(run)
    for round, by in enumerate((1.0, 0.0)):
        accepted(a, run, by, round)
        accepted(b, run, 3 * by, round)
    accepted(a, run, 4.0, 2)
    assert c.send(late, moved(6.0))["status"] == "accepted"
    assert ended(rig, run) == model(5.0, 5.0, 5.0)
    assert counted(rig, run)[2] == [["a", 2, 0], ["c", 0, 0]]


def test_a_site_that_counts_twice_in_a_round_counts_with_each_update_s_own_weight(rig: Rig) -> None:
    """c's update of round 0 weighs 3, that of round 1, for which it had room as soon as it was back, 1: (3 + 5) / 4."""
    run, (a, b, c) = begun(rig, job("plain", 2), "a b c")
    late = c.task(run)
    accepted(a, run, 0.0, 0)
    accepted(b, run, 0.0, 0)
    assert c.send(late, moved(1.0), weight=(3.0).hex())["status"] == "accepted"
    accepted(c, run, 5.0, 1)
    assert ended(rig, run) == model(2.0, 2.0, 2.0)
    assert counted(rig, run)[1] == [["c", 0, 0], ["c", 1, 0]]


def test_a_round_waits_for_who_is_at_work_before_it_asks_anybody_again(rig: Rig) -> None:
    run, (a, b, c) = begun(rig, job("fd.fedbuff(2, staleness=None)", 2), "a b c")
    late = c.task(run)
    accepted(a, run, 0.0, 0)
    accepted(b, run, 0.0, 0)
    order = b.task(run)
    place = {k: order[k] for k in ("run", "round", "task", "attempt", "site")}
    said = b.signed(place | {"reason": "no time", "kind": "declined"}, "decline")
    b.link.call("POST", "/v1/declines", {"envelope": said})
    accepted(a, run, 2.0, 1)
    rig.until(lambda: len(rig.rows(run, "accepted")) == 3)
    assert c.send(late, moved(4.0))["status"] == "accepted"
    assert ended(rig, run) == model(3.0, 3.0, 3.0)
    assert rig.rows(run, "again") == []
    assert "paused" not in {row["what"] for row in rig.rows(run, "event")}


def test_who_leaves_while_at_work_for_an_old_round_makes_room_for_another(rig: Rig) -> None:
    """Two are busy; one that was gone for good would keep its place for ever, and two such would end the run."""
    run, (a, b) = begun(rig, job("fd.fedasync(1.0, rho=0, busy=2)", 2), "a b")
    late = a.task(run)
    accepted(b, run, 1.0, 0)
    again = b.task(run)
    a.link.call("POST", "/v1/accepting", {"accepting": False, "why": ""})
    rig.until(lambda: rig.rows(run, "lost"))
    (lost,) = rig.rows(run, "lost")
    assert (lost["site"], lost["round"], lost["why"]) == ("a", 0, "it left")
    with pytest.raises(FoedusError, match="410"):  # nobody wants it
        a.send(late, moved(9.0))
    assert b.send(again, moved(2.0))["status"] == "accepted"
    assert ended(rig, run) == model(2.0, 2.0, 2.0)


def test_to_measure_nobody_silent_is_waited_for_and_who_comes_back_is_asked(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """a delivers and is gone: it was the only one with time to measure. Then b delivers, and measures."""
    run, (a, b) = begun(rig, job("fd.fedasync(1.0, rho=0, staleness=fd.staleness.constant())", 2, evaluate=1), "a b")
    late = b.task(run)
    accepted(a, run, 1.0, 0)
    assert a.task(run)["work"] == "evaluate"
    monkeypatch.setattr(conductor, "AWAY", 0.5)
    rig.until(lambda: rig.rows(run, "lost"))
    assert rig.rows(run, "lost")[0]["why"] == "nothing was heard of it for 0.5 s"
    assert b.send(late, moved(2.0))["status"] == "accepted"  # which closes round 1 as soon as b has measured
    assert measured(b, run) == 0
    accepted(b, run, 3.0, 1)
    assert measured(b, run) == 1
    assert ended(rig, run) == model(2.0, 2.0, 2.0)
    assert [row["metrics"]["loss"] for row in rig.rows(run, "step")] == [1.0, 1.0]


def measured(site: Scripted, run: str) -> int:
    """The round of the site's next order, which was to measure."""
    order = site.task(run)
    assert order["work"] == "evaluate"
    assert site.send(order, packed(), metrics={"loss": sums("float64", 1.0, 1.0, 1.0)})["status"] == "accepted"
    return int(order["round"])
