"""Swarm learning and sealed gossip: the models are those of fedavg and gossip, and the server never has them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import foedus as fd
from federations import finished, foedus, joined, until
from foedus import frames, jobfile
from foedus.algorithms.mixing import mixed
from foedus.algorithms.relayed import packed, packed_size, turns, unpacked
from foedus.core import RoundContext
from foedus.errors import Paused
from foedus.numpy import NumpyLearner
from foedus.params import Params
from foedus.preview.rehearsal import dry_run
from foedus.privacy import presets

NAMES = [f"s{i}" for i in range(5)]


def gradient(p: Any, x: Any, y: Any) -> Any:
    error = x @ p["w"] - y
    return error**2, {"w": 2 * x.T @ error / len(x)}


def rows(seed: int) -> fd.Split:
    x = np.random.default_rng(seed).normal(size=(20 + 7 * seed, 3))
    return fd.Split(train=(x, x @ [1.0, 2.0, 3.0]), test=(x, x @ [1.0, 2.0, 3.0]))


SITES = {name: rows(i) for i, name in enumerate(NAMES)}


def job(algorithm: Any, dtype: str = "float64", **more: Any) -> fd.Job:
    learner = NumpyLearner({"w": np.zeros(3, dtype)}, gradient, lambda p, x: x @ p["w"], lr=0.05, metrics=["rmse"])
    return fd.Job(algorithm, learner, **{"rounds": 3, "privacy": "none"} | more)


@pytest.mark.parametrize("base", [fd.fedavg(), fd.fedprox(0.1)], ids=["fedavg", "fedprox"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_all_sites_have_the_bits_of_the_same_job_with_a_server(base: Any, dtype: str) -> None:
    plain, swarm = job(base, dtype).run(SITES), job(fd.swarm(base), dtype).run(SITES)
    assert {fd.digest(swarm.personal(name)) for name in SITES} == {fd.digest(plain.params)}
    assert swarm.metrics["personal_test_rmse"] == plain.metrics["test_rmse"]
    assert swarm.metrics["train_loss"] == plain.metrics["train_loss"] and not swarm.params


def test_a_cohort_trains_and_everybody_has_the_model() -> None:
    plain, swarm = job(fd.fedavg(), cohort=3).run(SITES), job(fd.swarm(), cohort=3).run(SITES)
    assert {fd.digest(swarm.personal(name)) for name in SITES} == {fd.digest(plain.params)}


def test_another_site_combines_in_each_round() -> None:
    first = [turns(RoundContext(0, r, NAMES, NAMES), NAMES) for r in range(40)]
    assert all(sorted(order) == NAMES for order in first) and {order[0] for order in first} == {*NAMES}


def test_models_are_packed_in_the_order_of_their_arrays() -> None:
    model = Params({"b": np.float32([1, 2]), "a": np.arange(6.0).reshape(2, 3), "n": np.float32(7)})
    message = packed(model, 0.1)
    assert len(message) == packed_size(model.spec) == 8 + 8 + 48 + 4
    found, weight = unpacked(model.spec, message)
    assert weight == 0.1 and fd.digest(found) == fd.digest(model)
    with pytest.raises(ValueError, match="a message of 69 bytes"):
        unpacked(model.spec, message + b"x")


# ---- who is lost, who joins, who lies --------------------------------------------------------------------------------
class Played:
    """A round's Tasks, done by simulated sites as a script says: who is gone, and what is changed on its way."""

    def __init__(self, made: fd.Job, sites: Mapping[str, Any] = SITES) -> None:
        self.method, self.bench, self.sites = made.method, made.bench(0), sites
        self.state, self.locals, self.round = self.method.init(made.first(0)), dict[str, Any](), 0
        self.asked: list[tuple[str, list[str]]] = []

    def play(self, roster: list[str], gone: Any = lambda note, site: False, changed: Any = lambda note, x: x) -> Any:
        """The metrics of a round."""
        from foedus.aggregators import Folding
        from foedus.algorithms.exchange import note_of
        from foedus.core import Origin, Update
        from foedus.work import ordered

        steps, answer, told = self.method.round(self.state, RoundContext(0, self.round, roster, roster)), None, {}
        while True:
            try:
                task = steps.send(answer)
            except StopIteration as end:
                self.state, self.round = end.value, self.round + 1
                return told
            note = note_of(task.payload.part("said")) if "said/note" in task.payload else {"do": task.work}
            self.asked.append((note["do"], list(task.sites)))
            folding, outcomes = Folding(task.aggregator, task.returns, len(task.sites)), []
            for site in task.sites:
                status = "lost"
                if not gone(note, site):
                    (order,) = ordered(task, [site], self.round, 0)
                    local, update = self.bench.perform(order, self.locals.get((task.work, site)), self.sites[site])
                    if isinstance(update, Update):
                        self.locals[task.work, site] = local
                        folding.add(update._replace(params=changed(note, update.params)), Origin(site, self.round, 0))
                        told |= update.metrics
                        status = "counted"
                outcomes.append(fd.core.Outcome(site, status))  # type: ignore[arg-type]
            answer = folding.total(outcomes) if folding.count else fd.core.Total(Params({}), 0.0, 0, {}, outcomes)

    def models(self) -> dict[str, str]:
        return {site: fd.digest(local["model"]) for (work, site), local in self.locals.items() if work == "train"}


def test_where_the_combining_site_is_gone_the_next_one_combines() -> None:
    whole, without = Played(job(fd.swarm())), Played(job(fd.swarm()))
    whole.play(NAMES)
    order = turns(RoundContext(0, 0, NAMES, NAMES), NAMES)
    without.play(NAMES, gone=lambda note, site: note["do"] in ("combine", "receive") and site == order[0])
    assert [do for do, _ in without.asked] == ["introduce", "train", "combine", "seal", "combine", "receive"]
    assert without.asked[4][1] == [order[1]]
    assert [without.models()[name] for name in order[1:]] == [whole.models()[name] for name in order[1:]]
    assert order[0] not in without.state["holders"]  # it comes back as a newcomer
    without.play(NAMES)
    assert ("welcome", without.asked[6][1]) == without.asked[6] and without.asked[7] == ("receive", [order[0]])
    assert len(set(without.models().values())) == 1


def test_a_site_that_dies_after_training_is_left_out_by_the_next_one_who_combines() -> None:
    played, order = Played(job(fd.swarm())), turns(RoundContext(0, 0, NAMES, NAMES), NAMES)
    played.play(NAMES, gone=lambda note, site: site == order[0] and note["do"] not in ("introduce", "train"))
    fewer = Played(job(fd.swarm()), SITES)
    fewer.play(NAMES, gone=lambda note, site: site == order[0] and note["do"] != "introduce")
    there = [name for name in NAMES if name != order[0]]
    assert [played.models()[name] for name in there] == [fewer.models()[name] for name in there]


def test_a_newcomer_is_given_the_model_by_a_site_that_has_it() -> None:
    played = Played(job(fd.swarm()))
    played.play(NAMES[:3])
    played.play(NAMES)
    assert [do for do, _ in played.asked[4:]] == ["introduce", "welcome", "receive", "train", "combine", "receive"]
    assert len(played.models()) == 5 and len(set(played.models().values())) == 1


def test_a_run_waits_where_nobody_who_has_the_model_is_there() -> None:
    played = Played(job(fd.swarm()))
    played.play(NAMES[:2])
    with pytest.raises(Paused, match="no site that has the model is there"):
        played.play(NAMES[2:])
    with pytest.raises(Paused, match="no site combined the updates"):
        Played(job(fd.swarm())).play(NAMES, gone=lambda note, site: note["do"] == "combine")


def test_an_update_that_was_changed_on_its_way_is_left_out_and_told() -> None:
    def flipped(note: Any, params: Params) -> Params:
        if note["do"] != "train":
            return params
        body = params["body"].copy()
        body[3] ^= len(seen) == 2
        seen.append(1)
        return Params({**params, "body": body})

    seen: list[int] = []
    played = Played(job(fd.swarm()))
    told = played.play(NAMES, changed=flipped)
    assert told["train_refused"].tolist() == [1, 5, 1]  # one of five
    assert len(set(played.models().values())) == 1


# ---- gossip ----------------------------------------------------------------------------------------------------------
def test_sealed_gossip_averages_what_gossip_averages() -> None:
    """With a fixed graph: what plain sites have after training, averaged with their neighbours' by 1/3 each."""
    graph = {name: [NAMES[(i + 1) % 5], NAMES[i - 1]] for i, name in enumerate(NAMES)}
    plain, sealed = job(fd.gossip(graph=graph)).run(SITES), job(fd.gossip(graph=graph, sealed=True)).run(SITES)
    for name in NAMES:
        expected = mixed([plain.personal(x) for x in (name, *graph[name])], [1 / 3] * 3)
        assert sealed.personal(name)["w"] == pytest.approx(expected["w"], rel=1e-12)
    assert not sealed.params and sealed.metrics["train_loss"] == plain.metrics["train_loss"]


def test_a_neighbour_whose_message_was_changed_leaves_its_share_to_the_site() -> None:
    def flipped(note: Any, params: Params) -> Params:
        return Params({**params, "body": params["body"] ^ 1}) if note["do"] == "train" else params

    played = Played(job(fd.gossip(sealed=True)))
    told = played.play(NAMES, changed=flipped)
    assert told["train_refused"].tolist() == [2, 2, 2]  # both neighbours', at the last site and each other
    alone = {name: job(fd.fedavg(), rounds=1).run({name: SITES[name]}).params["w"] for name in NAMES}
    for name in NAMES:
        assert played.locals["train", name]["model"]["w"] == pytest.approx(alone[name], abs=0.1)


# ---- what is said ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", [fd.swarm(), fd.gossip(sealed=True)], ids=["swarm", "gossip"])
def test_who_reads_what_is_said_and_a_rehearsal_says_what_it_cannot_show(method: Any, tmp_path: Path) -> None:
    made = job(method)
    (line,) = presets.said("none", made.method.traits)
    assert "hands on updates that it cannot read, and other sites read them" in line and presets.READABLE not in line
    found = dry_run(made, SITES, tmp_path)
    assert [row["work"] for row in found["updates"]] == ["introduce"]
    assert "encrypted with keys that they tell in the run" in found["why"]


def test_an_update_is_encrypted_for_the_one_who_combines_alone() -> None:
    seen: list[int] = []

    def watched(note: Any, params: Params) -> Params:
        if note["do"] == "train":
            seen.append(len(params["wraps"]))
        return params

    Played(job(fd.swarm())).play(NAMES, changed=watched)
    assert seen == [1] * 5


# ---- a real federation -----------------------------------------------------------------------------------------------
FILE = """
import numpy as np
import foedus as fd
from foedus.core import Deadline
from foedus.numpy import NumpyLearner

def load(site):
    x = np.random.default_rng(len(site.name)).normal(size=(40, 3))
    return fd.Split(train=(x, x @ [1.0, 2.0, 3.0]), test=(x, x @ [1.0, 2.0, 3.0]))

def gradient(p, x, y):
    error = x @ p["w"] - y
    return error**2, {"w": 2 * x.T @ error / len(x)}

def job(how="swarm", rounds=3, total=600.0):
    learner = NumpyLearner({"w": np.zeros(3)}, gradient, lambda p, x: x @ p["w"], lr=0.05)
    method = {"swarm": fd.swarm(), "gossip": fd.gossip(sealed=True), "fedavg": fd.fedavg()}[how]
    return fd.Job(method, learner, load, rounds=rounds, min_sites=2, privacy="none", deadline=Deadline(600.0, total))
"""


@pytest.mark.long
@pytest.mark.processes
def test_real_sites_have_the_models_of_a_simulation_and_the_server_has_none(tmp_path: Path) -> None:
    file, sites = placed(tmp_path)
    with joined(tmp_path / "home", sites) as made:
        for how in ("swarm", "gossip"):
            result = finished(made.remote().submit(file, {"how": how}))
            here = jobfile.load(file, {"how": how}).job.run(sites)
            models = {name: exported(made, name, result.run, tmp_path) for name in sites}
            assert {n: fd.digest(x) for n, x in models.items()} == {n: fd.digest(here.personal(n)) for n in sites}
            kept = [path.read_bytes() for path in (tmp_path / "home" / "server").rglob("*") if path.is_file()]
            assert kept and not any(x["w"].tobytes() in data for x in models.values() for data in kept)
    plain, swarm = (jobfile.load(file, {"how": how}).job.run(sites) for how in ("fedavg", "swarm"))
    assert fd.digest(swarm.personal("east")) == fd.digest(plain.params)


def placed(folder: Path) -> tuple[Path, dict[str, Path]]:
    """A job file, and the folders of three sites."""
    sites = {name: folder / "data" / name for name in ("east", "north", "southern")}
    for place in [*sites.values(), folder / "job"]:
        place.mkdir(parents=True)
    (folder / "job" / "job.py").write_text(FILE)
    return folder / "job" / "job.py", sites


def exported(made: Any, name: str, run: str, folder: Path) -> Params:
    """The site's own model, once its run is settled there."""
    home, file = made.site_home(name), folder / f"{run}-{name}.safetensors"
    until(lambda: not (home / "sites" / name / "work" / run).exists())
    assert foedus(home, "site", "export", run, "--out", file)[0] == 0
    return frames.read_model(file)


@pytest.mark.long
@pytest.mark.kills
def test_a_site_that_is_killed_is_passed_by_and_comes_back(tmp_path: Path) -> None:
    """Whoever is to combine: killed in round 2 and back in round 6, the run goes on, and all end with one model."""
    file, sites = placed(tmp_path)
    with joined(tmp_path / "home", sites) as made:
        run = made.remote().submit(file, {"rounds": "12", "total": "3"})
        until(lambda: run.status()["rounds"] >= 2)
        made.kill("north")
        until(lambda: run.status()["rounds"] >= 5)
        made.start_site("north")
        result = finished(run)
        models = {name: exported(made, name, result.run, tmp_path) for name in sites}
    assert len(result.history) == 12
    assert fd.digest(models["east"]) == fd.digest(models["southern"])
    assert models["east"]["w"] == pytest.approx([1.0, 2.0, 3.0], abs=0.5)
