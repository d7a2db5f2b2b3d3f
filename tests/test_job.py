"""Job: every argument is checked when it is built, what it resolves to is plain data, and where its model begins."""

from __future__ import annotations

import json
import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foedus import (
    Deadline,
    Metric,
    alie,
    attacked,
    fedavg,
    fedprox,
    frames,
    int8,
    krum,
    median,
    plateau,
    sign_flip,
    top_k,
)
from foedus.core import Algorithm, Task, Update
from foedus.errors import FoedusError, JobError
from foedus.files import write_atomic
from foedus.job import Job, described
from foedus.params import Params, digest
from tiny import SITES, job, learner, played

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"rounds": None}, "needs rounds=… or stop=…, or it would never end"),
    ({"rounds": 0}, "Job(rounds=0): it must be a whole number of at least 1"),
    ({"rounds": 2.0}, "Job(rounds=2.0)"),
    ({"rounds": True}, "Job(rounds=True)"),
    ({"min_sites": 0}, "Job(min_sites=0)"),
    ({"quorum": -1}, "Job(quorum=-1)"),
    ({"evaluate": -1}, "Job(evaluate=-1): it must be a whole number of at least 0"),
    ({"evaluate": "always"}, "Job(evaluate='always')"),
    ({"late": "maybe"}, "Job(late='maybe'): it is 'drop' or 'keep'"),
    ({"over_select": 0.9}, "Job(over_select=0.9): it must be at least 1"),
    ({"over_select": math.nan}, "Job(over_select=nan)"),
    ({"over_select": math.inf}, "Job(over_select=inf)"),
    ({"cohort": 0}, "Job(cohort=0): a whole number counts sites, a float in (0, 1] is a share"),
    ({"cohort": 1.5}, "Job(cohort=1.5)"),
    ({"cohort": 0.0}, "Job(cohort=0.0)"),
    ({"cohort": True}, "Job(cohort=True)"),
    ({"metrics": ["acuracy"]}, "there is no metric 'acuracy': did you mean 'accuracy'?"),
    ({"best": "auc"}, "Job(best='auc'): it is none of the metrics ['loss']"),
    ({"algorithm": fedavg}, "a Job's first argument is an algorithm, for example fd.fedavg(); write fedavg()"),
    ({"algorithm": "fedavg"}, "this is 'fedavg'"),
    ({"name": "a/b"}, "Job(name='a/b'): it names a folder"),
    ({"name": ""}, "Job(name='')"),
    ({"privacy": "secag"}, "Job(privacy='secag'): it is 'none', 'secagg', 'hospital', fd.secagg(…), fd.dp"),
]


@pytest.mark.parametrize(("change", "said"), WRONG)
def test_a_wrong_argument_is_refused_when_the_job_is_built(change: dict[str, Any], said: str) -> None:
    with pytest.raises(JobError, match=re.escape(said)):
        Job(**{"algorithm": fedavg(), "learner": learner(), "rounds": 3, **change})


def test_a_part_that_is_not_built_yet_says_so_by_name() -> None:
    with pytest.raises(NotImplementedError, match=re.escape("Job(track=...) is not built yet")):
        job(track=object())


def test_an_argument_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(TypeError, match="round"):
        job(round=3)


def test_a_job_does_not_change_and_replace_makes_a_variant() -> None:
    made = job(rounds=3)
    with pytest.raises(AttributeError):
        made.rounds = 5  # type: ignore[misc]
    assert made.replace(rounds=5).rounds == 5 and made.rounds == 3


def test_the_metrics_of_the_job_win_over_those_of_the_learner() -> None:
    ours = learner(metrics=["rmse"])
    assert list(job(learner=ours).table()) == ["loss", "rmse"]
    assert list(job(learner=ours, metrics=["mae"]).table()) == ["loss", "mae"]
    own = Metric("close", lambda outputs, targets: np.array([1, 2]), lambda s: s[0] / s[1], "max")
    assert job(metrics=[own], best="close").table()["close"] is own


# What it resolves to.


def same(**more: Any) -> Job:
    return job(**{"learner": learner(), **more})


def test_equal_jobs_have_one_digest() -> None:
    assert same().digest == same().digest == same(over_select=1.0, evaluate=1, cohort=None).digest
    assert re.fullmatch("[0-9a-f]{64}", same().digest)


@pytest.mark.parametrize(
    "change",
    [
        {"rounds": 3},
        {"rounds": 1},
        {"cohort": 1},
        {"cohort": 1.0},
        {"min_sites": 2},
        {"evaluate": 2},
        {"algorithm": fedavg(rate=0.5)},
        {"algorithm": fedprox(0.1)},
        {"algorithm": fedprox(0.2)},
        {"algorithm": fedavg(aggregator=median())},
        {"algorithm": fedavg(aggregator=krum(1))},
        {"algorithm": fedavg(aggregator=krum(2))},
        {"algorithm": attacked(fedavg(), share=0.2, attack=sign_flip())},
        {"algorithm": attacked(fedavg(), share=0.2, attack=alie())},
        {"compress": int8()},
        {"compress": top_k(0.01)},
        {"compress": top_k(0.02)},
        {"compress": [top_k(0.01), int8()]},
        {"learner": learner(lr=0.25)},
        {"learner": learner(epochs=2)},
        {"stop": plateau("loss", 3)},
        {"stop": plateau("loss", 4)},
        {"deadline": Deadline(10.0)},
        {"start": {"w": np.float32([1, 1]), "b": np.float32(0)}},
        {"start": {"w": np.float32([1, 2]), "b": np.float32(0)}},
        {"data": partial(max, 3)},
        {"data": partial(max, 4)},
        {"options": {"mu": 0.1}},
    ],
)
def test_every_change_shows_in_the_digest(change: dict[str, Any]) -> None:
    assert same(**change).digest != same().digest
    others = [{"rounds": 1}, {"cohort": 1}, {"cohort": 1.0}, {"algorithm": fedprox(0.1)}, {"stop": plateau("loss", 3)}]
    assert sum(same(**other).digest == same(**change).digest for other in others) <= 1


def test_the_description_is_plain_json() -> None:
    made = same(
        algorithm=fedprox(0.1), start={"w": np.zeros(2)}, stop=plateau("loss", 2), deadline=Deadline(math.inf),
        data=lambda site: site, metrics=["rmse"], name="heart",
    )  # fmt: skip
    text = json.dumps(made.describe(), allow_nan=False)
    assert json.loads(text) == made.describe() and '"name": "heart"' in text and "0.1" in text


def test_a_description_ends_even_where_data_hold_themselves() -> None:
    loop: list[Any] = []
    loop.append(loop)
    assert json.dumps(described(loop))


# The first model.


def test_the_first_model_is_the_learners_drawn_by_key() -> None:
    drawing = learner(model=lambda rng: {"w": rng.normal(size=2).astype(np.float32), "b": np.float32(0)})
    one, again, other = (job(learner=drawing).first(seed) for seed in (0, 0, 1))
    assert one == again and one != other


def test_the_first_model_may_be_given(tmp_path: Path, home: Path) -> None:
    start = Params({"w": np.float32([1, 2]), "b": np.float32(3)})
    write_atomic(tmp_path / "m.safetensors", frames.model(start, {}))
    for given in (start, dict(start), tmp_path / "m.safetensors", str(tmp_path / "m.safetensors")):
        assert job(start=given).first(0) == start
    earlier = job(rounds=2).run(SITES)
    for run in (earlier, earlier.run, earlier.run[:-2], earlier.folder):
        assert job(start=run).first(0) == earlier.params
    on = job(rounds=2, start=earlier).run(SITES)
    assert on.digest == digest(played(job(rounds=4), SITES)[0].params)


def test_a_first_model_that_is_nowhere_is_named(home: Path) -> None:
    with pytest.raises(FoedusError, match="there is no run 'yesterday'"):
        job(start="yesterday").run(SITES)
    with pytest.raises(FoedusError, match=r"there is no run '/no/such/file'"):
        job(start="/no/such/file").run(SITES)


# Running.


def test_run_returns_a_result_that_is_kept(home: Path, tmp_path: Path) -> None:
    result = job(rounds=2, best="loss").run(SITES, seed=5)
    assert result.digest == digest(result.params) and result.exact and result.backend == "local"
    assert result.rounds == 2 and result.folder.parent == home / "runs" and result.reason == "all rounds done"
    assert result.metrics["loss"] == result.history[-1]["loss"] and set(result.per_site) == set(SITES)
    assert result.best_round == 1 and digest(result.best or {}) == result.digest
    saved = result.save(tmp_path / "model.safetensors")
    assert frames.read_model(saved) == result.params
    json.dumps(result.about(), allow_nan=False)


def test_rounds_may_be_given_to_run(home: Path) -> None:
    assert job(rounds=9).run(SITES, rounds=1).rounds == 1


@pytest.mark.parametrize("sites", [None, 0, -1, True, {}, [1, 2], "north"])
def test_sites_are_a_count_or_a_mapping(sites: Any, home: Path) -> None:
    said = "no sites are named" if sites is None else "sites=.*: give a count, a mapping name -> folder, frame or"
    with pytest.raises(JobError, match=said):
        job().run(sites)
    assert not list(home.glob("runs/*"))


def test_a_count_makes_sites_that_sort_by_number(home: Path) -> None:
    seen: list[tuple[str, int]] = []

    def load(site: Any) -> Any:
        seen.append((site.name, site.data))
        return SITES["north"]

    job(data=load, rounds=1).run(11)
    assert seen[0] == ("site-00", 0) and seen[-1] == ("site-10", 10) and seen == sorted(seen)


def test_sites_may_be_a_function(home: Path) -> None:
    assert job().run(lambda: SITES).digest == job().run(SITES).digest


def test_a_backend_that_nobody_knows_is_named(home: Path) -> None:
    with pytest.raises(JobError, match="there is no backend 'cloud': choose one of auto, local"):
        job().run(SITES, backend="cloud")


def test_a_job_without_a_learner_runs_works_of_its_own(home: Path) -> None:
    def count(payload: Params, local: Any, site: Any) -> Any:
        return local, Update(Params({}), 1.0, {"n": np.int64(len(site.split.train))})

    def round(state: Any, context: Any) -> Any:
        total = yield Task("count", Params({}), context.cohort)
        return {"n": int(total.metrics["n"])}

    counting = Algorithm(
        lambda params: {"n": 0}, round, {"count": count}, lambda state: Params({"n": np.int64(state["n"])})
    )
    assert Job(counting, rounds=1).run(SITES).params["n"] == 8


def test_an_algorithm_that_trains_needs_a_learner(home: Path) -> None:
    with pytest.raises(FoedusError, match="this algorithm trains, but the Job has no learner"):
        Job(fedavg(), rounds=1, start={"w": np.zeros(1)}).run(SITES)
