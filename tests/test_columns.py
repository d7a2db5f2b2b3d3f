"""Columns by name: sites that have others than the rest never train one model with them, wherever they are."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from torch import nn

import foedus as fd
from foedus import build, launch, runs
from foedus.backends.simulation import Simulation
from foedus.backends.vectorized import Many
from foedus.columns import differ, told
from foedus.data import Pairs, load_split, save_split
from foedus.errors import FoedusError, JobError, Paused
from foedus.jax import JaxLearner
from foedus.journal import Journal, Memory
from foedus.numpy import NumpyLearner
from foedus.run import Checkpoints, execute
from foedus.study import references
from foedus.torch import TorchLearner
from server_rig import Rig, Scripted
from tiny import played

NAMES = ["age", "dose", "days"]
ORDER = r"site 'south' has the columns of site 'north' in another order \(dose, age, days, not age, dose, days\)"
REMEDY = r"write fd\.Job\(…, columns=\['age', 'dose', 'days'\]\)"


def frame(seed: int) -> pandas.DataFrame:
    """Rows of which y is a known sum of the columns: 1 age - 2 dose + 3 days."""
    x = np.random.default_rng(seed).normal(size=(40, 3))
    return pandas.DataFrame(x, columns=NAMES).assign(y=x @ [1.0, -2.0, 3.0])


def split(seed: int, columns: Any = (), **renamed: str) -> fd.Split:
    data = frame(seed).rename(columns=renamed)
    return fd.Split.from_frame(data[[*columns, "y"]] if columns else data, label="y")


NORTH = split(1)
TURNED = {"north": NORTH, "south": split(2, ["dose", "age", "days"])}
STRAIGHT = {"north": NORTH, "south": split(2)}
RENAMED = {"north": NORTH, "south": split(2, dose="dosis")}


def gradient(p: Any, x: Any, y: Any) -> Any:
    error = x @ p["w"] - y
    return error**2, {"w": 2 * x.T @ error / len(x)}


def of_numpy() -> NumpyLearner:
    return NumpyLearner({"w": np.zeros(3)}, gradient, lambda p, x: x @ p["w"], lr=0.1, batch_size=8, metrics=["rmse"])


def of_torch() -> TorchLearner:
    def line() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 1, dtype=torch.float64), nn.Flatten(0))

    return TorchLearner(line, nn.MSELoss(), partial(torch.optim.SGD, lr=0.1), batch_size=8)


def of_jax() -> JaxLearner:
    import jax.numpy as jnp
    import optax

    model = (lambda rng: {"w": jnp.zeros(3)}, lambda p, x: x @ p["w"])
    return JaxLearner(model, optax.squared_error, optimizer=optax.sgd(0.1))


LEARNERS = pytest.mark.parametrize("made", [of_numpy, of_torch, of_jax], ids=["numpy", "torch", "jax"])


def together(made: fd.Job, sites: Any) -> Any:
    kept = Journal(Memory())
    with build.exactly():
        runner = Simulation(Many(made, sites, 0, str), sorted(sites), kept, 0, made.min_sites)
        return execute(made.plan(0), runner, kept, Checkpoints(None))


def job(made: Any = of_numpy, **more: Any) -> fd.Job:
    return fd.Job(fd.fedavg(), made(), **{"rounds": 2, **more})


@LEARNERS
def test_no_learner_trains_one_model_of_columns_in_two_orders(made: Any) -> None:
    with pytest.raises(JobError, match=f"{ORDER}: {REMEDY}"), build.exactly():
        played(job(made), TURNED)


@LEARNERS
def test_in_the_order_that_the_job_states_a_site_with_another_order_changes_no_bit(made: Any) -> None:
    with build.exactly():
        straight = played(job(made), STRAIGHT)[0].params
        for sites in (STRAIGHT, TURNED):
            found = played(job(made, columns=NAMES), sites)[0].params
            assert fd.digest(found) == fd.digest(straight)


def test_what_a_site_has_beside_the_jobs_columns_is_left_out_of_every_part() -> None:
    wide = frame(2).assign(ward=7.0)[["ward", "days", "y", "dose", "age"]]
    more = fd.Split.from_frame(wide[:30], label="y", valid=wide[30:35], test=wide[35:])
    few = fd.Split.from_frame(frame(2)[:30], label="y", valid=frame(2)[30:35], test=frame(2)[35:])
    bench = job(columns=NAMES).bench(0)
    found = bench.split("south", more)
    for part in ("train", "valid", "test"):
        assert getattr(found, part).names == tuple(NAMES)
        np.testing.assert_array_equal(getattr(found, part).x, getattr(few, part).x)


@pytest.mark.parametrize("backend", ["local", "vectorized", "auto"])
def test_every_backend_refuses_sites_of_other_columns(backend: str) -> None:
    with pytest.raises(JobError, match=ORDER):
        job(of_torch).run(TURNED, backend=backend)


@pytest.mark.processes
@pytest.mark.parametrize("backend", ["processes", "vectorized"])
def test_workers_of_which_each_has_one_site_refuse_them_too(backend: str) -> None:
    with pytest.raises(JobError, match="in another order"):
        job().run(TURNED, backend=backend, workers=2)


def test_a_buffered_run_refuses_sites_of_other_columns() -> None:
    with pytest.raises(JobError, match=ORDER):
        played(fd.Job(fd.fedbuff(2), of_numpy(), rounds=2), TURNED)


def test_work_that_is_done_once_for_all_sites_refuses_them_too() -> None:
    with pytest.raises(JobError, match=ORDER):
        together(job(of_torch), TURNED)


def test_a_column_of_another_name_is_told_with_both_sites() -> None:
    what = "site 'south' has other columns than site 'north': it lacks dose and has dosis more; load the same ones"
    with pytest.raises(JobError, match=what):
        played(job(), RENAMED)


def test_a_site_that_lacks_a_stated_column_is_left_out_and_told_what_to_do() -> None:
    made = job(columns=NAMES)
    kept, journal = played(made, {**RENAMED, "west": split(3)})
    alone, _ = played(made, {"north": NORTH, "west": split(3)})
    assert fd.digest(kept.params) == fd.digest(alone.params)
    (why,) = {row[2] for close in journal.all("close") for row in close["outcomes"] if row[0] == "south"}
    assert why == (
        "comparing its columns: train has no column 'dose', which the Job's columns=… name: it has age, dosis, days; "
        "rename or add it at this site, in load or in the data's adapter"
    )


@pytest.mark.parametrize(
    "held, why",
    [
        ((np.zeros((8, 4)), np.zeros(8)), r"name 3 columns, and the examples of train have shape \[4\] and no names"),
        (fd.Split([(np.zeros(3), 0.0)] * 8), "name columns, and train is list: load fd.Split.from_frame"),
        (fd.Split(Pairs(np.zeros((8, 3)), np.zeros(8), ["age", "age", "dose"])), "more than once a column 'age'"),
    ],
    ids=["another width", "a dataset", "twice"],
)
def test_what_cannot_be_put_in_the_stated_order_is_refused_at_its_site(held: Any, why: str) -> None:
    with pytest.raises(Paused, match=f"south: declined .*{why}"):
        played(job(columns=NAMES, min_sites=2), {"north": NORTH, "south": held})


def test_a_table_without_names_is_taken_in_the_order_that_it_has() -> None:
    plain = (frame(2)[NAMES].to_numpy(), frame(2).y.to_numpy())
    with build.exactly():
        found = [played(job(**more), {"north": NORTH, "south": plain})[0].params for more in ({}, {"columns": NAMES})]
        assert {fd.digest(x) for x in found} == {fd.digest(played(job(), STRAIGHT)[0].params)}


def test_the_pooled_reference_joins_no_columns_of_other_sites() -> None:
    with pytest.raises(JobError, match=ORDER):
        references.splits(job(), TURNED, 0)


@pytest.mark.parametrize("columns", ["age", ["age", "age"], [1, 2], ["age", ""]])
def test_columns_that_are_no_names_are_refused_when_the_job_is_built(columns: Any) -> None:
    with pytest.raises(JobError, match="give the features' names in their order"):
        job(columns=columns)


def test_a_saved_split_keeps_the_names_of_its_columns(tmp_path: Path) -> None:
    save_split(tmp_path / "a.split", NORTH)
    found = load_split(tmp_path / "a.split")
    assert found.train.names == tuple(NAMES)
    kept = fd.Sites.load(next(iter(fd.Sites(TURNED).save(tmp_path / "sites").values())).parent)
    assert kept["south"].train.names == ("dose", "age", "days")


def test_long_names_are_told_by_their_digest_and_still_compared() -> None:
    genes = [f"ENSG{i:011}" for i in range(20_000)]
    assert len(str(told(genes))) < 200 and told(genes) == told([*genes]) != told(genes[::-1])
    assert told(NAMES) == NAMES
    assert "site 'b' has other columns than site 'a'" in differ("a", told(genes), "b", told(genes[::-1]))
    assert differ("a", NAMES, "b", []) == differ("a", [], "b", NAMES) == ""


CODE = """
import numpy as np
import foedus as fd
from foedus.numpy import NumpyLearner

job = fd.Job(fd.fedavg(), NumpyLearner({"w": np.zeros(3)}, lambda p, x, y: (x[:, 0], {"w": p["w"]})), rounds=2)
"""


@pytest.fixture
def rig(tmp_path: Path) -> Any:
    made = Rig(tmp_path)
    yield made
    made.close()


@pytest.mark.processes
def test_a_server_begins_no_run_with_sites_of_other_columns(rig: Rig) -> None:
    north, south = Scripted(rig, "north"), Scripted(rig, "south")
    run = rig.submit(CODE, min_sites=2)
    north.ready(run, columns=NAMES)
    south.ready(run, columns=["dose", "age", "days"])
    rig.until(lambda: rig.hub.runs[run].state == "failed")
    assert rig.hub.runs[run].why == differ("north", NAMES, "south", ["dose", "age", "days"])
    assert not rig.rows(run, "round")


@pytest.mark.processes
def test_a_site_of_other_columns_takes_no_part_in_a_run_that_has_begun(rig: Rig) -> None:
    north, south = Scripted(rig, "north"), Scripted(rig, "south")
    run = rig.submit(CODE)
    south.ready(run, yes=False)
    north.ready(run, columns=NAMES)
    north.task(run)
    south.ready(run, columns=["age", "dosis", "days"])
    live = rig.hub.runs[run]
    why = differ("north", NAMES, "south", ["age", "dosis", "days"])
    assert live.ready() == ["north"] and live.answer("south")["why"] == why
    south.ready(run, columns=NAMES)
    assert live.ready() == ["north", "south"]


@pytest.mark.processes
@pytest.mark.long
def test_a_real_federation_refuses_what_a_simulation_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "job.py"
    file.write_text(CODE.replace("rounds=2", "rounds=2, evaluate=0"))
    from foedus import jobfile

    made = jobfile.load(file, {}).job
    with pytest.raises(FoedusError, match=ORDER):
        launch.run(made, TURNED, backend="network", folder=tmp_path / "turned")
    stated = file.with_name("stated.py")
    stated.write_text(file.read_text().replace("rounds=2", f"rounds=2, columns={NAMES}"))
    made = jobfile.load(stated, {}).job
    real = launch.run(made, TURNED, backend="network", folder=tmp_path / "real")
    assert real.digest == launch.run(made, STRAIGHT, backend="local", folder=tmp_path / "local").digest
    assert runs.journal(real.folder).find("columns")["names"] == NAMES
