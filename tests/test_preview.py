"""What would leave a site, shown before it does: the bytes of a preview are those that a run sends."""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import foedus as fd
from audit_jobs import learner as network
from federations import finished, foedus, kinds, until
from foedus import build, frames, jobfile
from foedus.audit.leaving import watched
from foedus.backends.local import Here
from foedus.backends.locals import Locals
from foedus.backends.simulation import Done, Simulation
from foedus.cli import leaving
from foedus.core import Decline
from foedus.errors import JobError
from foedus.journal import Journal, Memory
from foedus.loopback import Federation
from foedus.params import Params
from foedus.pool import Pool
from foedus.preview import Leaving, dry_run, rehearsed, row, shown, words
from foedus.privacy import masking
from foedus.privacy.masking import figures
from foedus.privacy.secagg import ring_of
from foedus.result import Result
from foedus.run import Checkpoints, execute
from foedus.work import Among, Bench, Order
from tiny import SITES, job, played, working
from toys import JOB as TOY
from toys import make_sites

VARIANTS = {
    "plain": {},
    "clip-int8": {"compress": [fd.clip(0.5), fd.int8()]},
    "top-k": {"compress": fd.top_k(0.4)},
    "scaffold": {"algorithm": fd.scaffold()},
    "krum": {"algorithm": fd.fedavg(aggregator=fd.krum(0))},
    "secagg": {"privacy": fd.secagg(wmax=8)},
    "dp": {"privacy": fd.dp_sgd(1.0, 1.0)},
    "dp-secagg": {"privacy": [fd.dp_sgd(1.0, 1.0), "secagg"], "compress": fd.clip(0.1)},
}


def first(made: fd.Job, site: str = "north", rounds: int = 1) -> list[Leaving]:
    left, why = rehearsed(made, made.bench(5), 5, SITES, site, Among(SITES), rounds)
    assert why == ""
    return left


@pytest.mark.parametrize("what", VARIANTS)
def test_the_bytes_of_a_rehearsal_are_those_that_leave_in_a_run(what: str) -> None:
    made = job(**VARIANTS[what])
    run = watched(made, Pool(sorted(SITES), SITES.get), "north", seed=5, rounds=1)
    (mine,) = (left for left in first(made) if left.order.work == "train")
    assert frames.pack(mine.update.params).bytes() == frames.pack(run.updates[0].update.params).bytes()
    assert (mine.update.weight, mine.order.task) == (run.updates[0].update.weight, run.updates[0].order.task)


def test_what_is_shown_is_what_was_worked_out_by_hand(tmp_path: Path) -> None:
    """Two rows (2, 0 | 4), one step of 0.5 from zero: w = (1, 0), b = 2; cut to norm 1, a weight of 2."""
    found = dry_run(job(compress=fd.clip(1.0), evaluate=0), SITES, tmp_path)
    (update,) = found["updates"]
    assert (found["site"], found["why"]) == ("north", "") and (update["round"], update["weight"]) == (0, 2.0)
    assert [(a["name"], a["kind"], a["dtype"], a["shape"], a["bytes"]) for a in update["arrays"]] == [
        ("w", "trainable", "float32", [2], 8),
        ("b", "trainable", "float32", [], 4),
    ]
    assert [a["norm"] for a in update["arrays"]] == pytest.approx([1 / math.sqrt(5), 2 / math.sqrt(5)])
    assert update["norm"] == pytest.approx(1.0)
    data = (tmp_path / "1-0-train.safetensors").read_bytes()
    assert (update["file"], update["bytes"]) == (str(tmp_path / "1-0-train.safetensors"), len(data))
    assert update["digest"] == hashlib.sha256(data).hexdigest()
    assert update["metrics"]["train_loss"]["values"][1] == 2 and update["sealed"] is None


def test_metrics_of_evaluation_leave_too_and_are_shown() -> None:
    trained, evaluated = first(job())
    assert trained.order.work == "train" and set(trained.update.metrics) == {"train_loss"}
    assert evaluated.order.work == "evaluate" and set(evaluated.update.metrics) == {"loss"}
    assert len(evaluated.update.params) == 0


def test_the_words_under_a_seal_add_up_to_the_sum_that_a_run_has() -> None:
    made = job(privacy=fd.secagg(wmax=8), rounds=1, evaluate=0)
    found = [first(made, site)[0] for site in SITES]
    total = np.zeros(0, np.uint32)
    for left in found:
        seal = left.task.seal
        assert (seal.bound, seal.wmax, seal.threshold) == (8.0, 8.0, 3)
        mine = words(left.update.params, left.update.weight, left.update.metrics, seal.bound, seal.wmax, 3)
        total = mine + total if total.size else mine.copy()
    assert summed(total, found[0].update.params, found[0].update.metrics, 8.0, 8.0) == flat(played(made, SITES, 5)[0])


def summed(total: Any, like: Params, metrics: Any, bound: float, wmax: float) -> dict[str, Any]:
    """The mean of three sites, of the sum of their words."""
    rule = ring_of(bound, wmax, 3)
    cut = total.size - figures.size(figures.announced(metrics))
    sizes = {group: (x.dtype.name, x.size) for group, x in like.flats.items()}
    acc, weight = masking.decode(rule, sizes, total[:cut])
    return {group: x.astype(sizes[group][0]).tolist() for group, x in rule.finish(acc, weight).items()}


def flat(ended: Any) -> dict[str, Any]:
    return {group: x.tolist() for group, x in ended.params.flats.items()}


def test_a_rehearsal_says_why_nothing_leaves() -> None:
    def refusing(payload: Any, local: Any, site: Any, usual: Any) -> Any:
        return local, Decline("its machine is on loan")

    def failing(payload: Any, local: Any, site: Any, usual: Any) -> Any:
        raise ValueError("no such column")

    for work, why in (
        (refusing, "declined: its machine is on loan"),
        (failing, "declined: train: ValueError: no such"),
    ):
        made = job(working(work))
        assert rehearsed(made, made.bench(0), 0, SITES, "north", Among(SITES))[1].startswith(f"round 1, train: {why}")
    made = job(cohort=lambda context: ["south"], evaluate=0)
    left, why = rehearsed(made, made.bench(0), 0, SITES, "north", Among(SITES), 2)
    assert (left, why) == ([], "'north' is in no cohort of the first 2 rounds: take more, --rounds")
    made = job(cohort=lambda context: ["south"])
    left, why = rehearsed(made, made.bench(0), 0, SITES, "north", Among(SITES), 1)
    assert [one.order.work for one in left] == ["evaluate"] and why.startswith("'north' is in no cohort of the first 1")


def test_a_dry_run_is_of_a_site_that_is_asked_unless_it_is_named(tmp_path: Path) -> None:
    made = job(cohort=lambda context: ["south"], evaluate=0)
    assert dry_run(made, SITES, tmp_path)["site"] == "south"
    assert dry_run(made, SITES, tmp_path, target="west")["why"].startswith("'west' is in no cohort")
    with pytest.raises(JobError, match="there is no data of site 'east' here: the sites are north, south, west"):
        dry_run(made, SITES, tmp_path, target="east")


def test_a_roster_of_too_few_is_filled_up_and_later_rounds_follow(tmp_path: Path) -> None:
    made = job(privacy=fd.secagg(), evaluate=0)
    found = dry_run(made, {"north": SITES["north"]}, tmp_path, rounds=2)
    assert [(u["round"], u["work"]) for u in found["updates"]] == [(0, "rows"), (0, "train"), (1, "train")]
    assert [u["sealed"] and (u["sealed"]["sites"], u["sealed"]["wmax"]) for u in found["updates"]] == [
        None,
        (3, 2.0),
        (3, 2.0),
    ]
    assert found["updates"][1]["norm"] == pytest.approx(math.sqrt(5))  # half of the way is left: half as long
    assert found["updates"][2]["norm"] == pytest.approx(math.sqrt(5) / 2, rel=1e-4)


def test_what_is_not_finite_is_shown_as_such(tmp_path: Path) -> None:
    (path := tmp_path / "update").write_bytes(frames.pack(Params({"w": np.array([1.0, np.nan])})).bytes())
    assert row(0, 0, "train", path, 1.0, {}, False)["norm"] is None


class Noting(Here):
    """A Crew that keeps the bytes of the first update of each work and site."""

    def __init__(self, bench: Bench, data: Any) -> None:
        super().__init__(bench, data)
        self.seen: dict[tuple[str, str], bytes] = {}

    def _made(self, order: Order, local: Any) -> Done:
        made = super()._made(order, local)
        if made.update is not None:
            self.seen.setdefault((order.work, order.site), frames.pack(made.update.params).bytes())
        return made


@pytest.mark.long
def test_every_algorithm_is_rehearsed_and_its_first_update_is_that_of_a_run(tmp_path: Path) -> None:
    """But where another site comes first, and gives it a model (`cyclic` in an order that is drawn) or its place."""
    made = jobfile.load(TOY.parents[1] / "every" / "job.py", {"rounds": "1"}).job
    sites = make_sites(tmp_path, ["north", "south", "west"])
    crew, journal = Noting(made.bench(1), sites), Journal(Memory())
    with build.exactly():
        runner = Simulation(crew, sorted(sites), journal, 1, made.least, locals=Locals(None))
        execute(made.plan(1), runner, journal, Checkpoints(None))
        left, why = rehearsed(made, made.bench(1), 1, sites, "north", Among(sites))
    found: dict[str, bytes] = {}
    for one in left:
        found.setdefault(one.order.work, frames.pack(one.update.params).bytes())
    theirs = {work: data for (work, site), data in crew.seen.items() if site == "north"}
    firsts = {work.partition(".")[0]: work for work in reversed(theirs)}
    assert why == "" and theirs.keys() - found.keys() <= {"power-of-choice.train"} and len(firsts) > 60
    assert {name for name, work in firsts.items() if found[work] != theirs[work]} == {"cyclic-shuffled"}


# ---- real processes -----------------------------------------------------------------------------------------------
JOB = """
# Least squares on the rows of a site: {how}
import numpy as np
import foedus as fd
from foedus.numpy import NumpyLearner


def load(site):
    rows = np.loadtxt(site.data / "rows.csv", delimiter=",", dtype=np.float32)
    return fd.Split(train=(rows[:40, :4], rows[:40, 4]), valid=(rows[40:, :4], rows[40:, 4]))


def gradient(p, x, y):
    error = x @ p["w"] - y
    return error**2, {{"w": 2 * x.T @ error / len(x)}}


learner = NumpyLearner({{"w": np.zeros(4, np.float32)}}, gradient, lambda p, x: x @ p["w"], lr=0.05, batch_size=10)
job = fd.Job(fd.fedavg(), learner, load, rounds=1, min_sites=3, **dict({how}))
"""
REAL = {
    "plain": 'privacy="none"',
    "clip-int8": 'privacy="none", compress=[fd.clip(0.5), fd.int8()]',
    "dp": "privacy=fd.dp_sgd(1.0, 1.0)",
    "secagg": "privacy=fd.secagg(wmax=64), compress=fd.clip(0.5)",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """Three sites that trust nobody: what comes waits for their owners."""
    root = tmp_path_factory.mktemp("preview")
    found = Federation(root / "home")
    try:
        found.start_server()
        sites = make_sites(root / "data", ["east", "north", "south"])
        for name, path in sites.items():
            found.join(name, {"data": path}, trust="nobody")
        found.await_sites(sites)
        yield found
    finally:
        found.stop()


def kept(made: Federation, site: str) -> list[Any]:
    """Every document of a site, and its ledger."""
    ledger = made.site_home(site) / "sites" / site / "ledger.jsonl"
    return [*documents(made, site), ledger.read_bytes() if ledger.exists() else b""]


def documents(made: Federation, site: str) -> list[Any]:
    with closing(sqlite3.connect(made.site_home(site) / "sites" / site / "site.db")) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return [(name, sorted(map(repr, db.execute(f"SELECT * FROM {name}")))) for name in sorted(tables)]


@pytest.mark.long
@pytest.mark.processes
@pytest.mark.parametrize("how", REAL)
def test_a_sites_preview_has_the_bytes_that_go_over_the_wire(how: str, made: Federation, tmp_path: Path) -> None:
    names = ["east", "north", "south"]
    (tmp_path / "job").mkdir()
    (file := tmp_path / "job" / "job.py").write_text(JOB.format(how=REAL[how]))
    run = made.remote().submit(file, seed=3)
    until(lambda: set(run.status()["answers"]) == set(names))
    found, before = {}, {name: kept(made, name) for name in names}
    for name in names:
        found[name] = json.loads(made.site(name, "preview", run.id, "--out", str(tmp_path / name), "--json"))
        assert not found[name]["approved"] and found[name]["why"] == ""
        assert all(u["refused"] == "" for u in found[name]["updates"])
    assert {name: kept(made, name) for name in names} == before, "a preview leaves nothing behind"
    for name in names:
        made.site(name, "approve", run.id)
    result = finished(run)
    sent = {(r["site"], r["task"]): (r["digest"], r["size"]) for r in kinds(run, "accepted")}
    for name in names:
        trained = next(u for u in found[name]["updates"] if u["work"] == "train")
        data = Path(trained["file"]).read_bytes()
        assert (trained["digest"], trained["bytes"]) == (hashlib.sha256(data).hexdigest(), len(data))
        if how != "secagg":
            assert sent[name, trained["task"]] == (trained["digest"], trained["bytes"])
            record = json.loads(made.site(name, "sent", run.id, "--json"))["sent"]
            assert [r["digest"] for r in record if r["work"] == "train"] == [trained["digest"]]
    if how == "secagg":
        check_sealed(found, sent, result)


def check_sealed(found: dict[str, Any], sent: dict[Any, Any], result: Result) -> None:
    """As many words leave as were shown, other ones (they are masked), with the same sum."""
    trained = {name: next(u for u in f["updates"] if u["work"] == "train") for name, f in found.items()}
    total: Any = 0
    for name, update in trained.items():
        data = Path(update["sealed"]["file"]).read_bytes()
        digest, size = sent[name, update["task"]]
        assert size == len(data) == update["sealed"]["bytes"] and digest != update["sealed"]["digest"]
        total = np.frombuffer(data, "<u4") + total
    assert update["sealed"]["sites"] == 3
    like = frames.read(Path(update["file"]))
    metrics = {name: np.zeros(x["shape"]) for name, x in update["metrics"].items()}
    mean = summed(total, like, metrics, update["sealed"]["bound"], update["sealed"]["wmax"])
    assert {group: x.tolist() for group, x in result.params.flats.items()} == mean  # the first model is zero


@pytest.mark.long
@pytest.mark.processes
def test_a_preview_is_of_what_waits_and_of_what_a_check_left(made: Federation, tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    (file := tmp_path / "job" / "job.py").write_text(JOB.format(how='privacy="none", name="checked"'))
    made.remote().check(file)
    (run,) = (line["run"] for line in made.remote().runs() if "checked" in line["run"])
    until(lambda: run not in json.dumps(json.loads(made.site("north", "status", "--json"))["runs"]))
    shown = made.site("north", "preview", run, "--out", str(tmp_path / "shown"))
    assert "round 1, train: " in shown and "norm of all trainable arrays together" in shown
    assert "metric train_loss: float64 3" in shown and "nothing was sent; the bytes are in" in shown
    home, policy = made.site_home("north"), made.site_home("north") / "sites" / "north" / "policy.toml"
    before = policy.read_text()
    policy.write_text(before.replace('\nprivacy = "none"', '\nprivacy = "secagg"'))
    found = json.loads(made.site("north", "preview", run, "--out", str(tmp_path / "again"), "--json"))
    assert found["forbidden"].startswith("the job's privacy is 'none', and the site's policy demands 'secagg'")
    policy.write_text(before.replace('datasets = "all"', 'datasets = ["heart"]'))
    assert foedus(home, "site", "preview", run)[0] == 7
    policy.write_text(before)
    made.site("north", "refuse", run)
    code, said = foedus(home, "site", "preview", run)
    assert (code, "this code was refused here" in said) == (7, True)
    code, said = foedus(home, "site", "preview", "no-such-run")
    assert code == 1 and "0 bundles here belong to 'no-such-run'" in said


@pytest.mark.long
@pytest.mark.processes
def test_a_dry_run_shows_what_a_site_of_the_data_here_would_send(tmp_path: Path) -> None:
    (file := tmp_path / "job.py").write_text(JOB.format(how='privacy="none"'))
    sites = make_sites(tmp_path / "data", ["east", "north", "south"])
    named = [word for site, path in sites.items() for word in ("--site", f"{site}={path}")]
    code, found = foedus(tmp_path / "home", "submit", file, "--dry-run", "--out", tmp_path / "dry", *named)
    assert code == 0 and found["site"] == "east" and not (tmp_path / "home" / "submitter").exists()
    written = {path.name for path in (tmp_path / "dry").iterdir()}
    assert written == {"1-0-train.safetensors", "1-1-evaluate.safetensors"}
    assert [u["work"] for u in found["updates"]] == ["train", "evaluate"]
    code, said = foedus(tmp_path / "home", "submit", file, "--dry-run")
    assert code == 3 and "no sites are named" in said


def test_the_learner_of_an_audit_is_rehearsed_with_its_own_network() -> None:
    made = fd.Job(fd.fedavg(), network(), rounds=1, evaluate=0)
    split = fd.Split(train=(np.ones((6, 12)), np.zeros(6, int)))
    (left,), why = rehearsed(made, made.bench(1), 1, ["a"], "a", split)
    assert why == "" and set(left.update.params) == {"w1", "b1", "w2", "b2"}


def test_a_list_of_levels_is_shown_whole() -> None:
    levels = {"ward": ["A", "Süd", *(f"w{i}" for i in range(40))]}
    told = shown.figure(np.frombuffer(json.dumps(levels).encode().ljust(1000), np.uint8))
    assert json.loads(told["text"]) == levels
    assert leaving._metric(told) == f"the text {told['text']}" and "Süd" in told["text"]
    for other in (np.arange(5, dtype=np.uint8), np.zeros((2, 2), np.uint8), np.arange(3.0)):
        assert "text" not in shown.figure(other)
