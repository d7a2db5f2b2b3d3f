"""Metrics are outputs too: what may leave is declared, of enough examples, counted, and under a seal nobody's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federations import finished, foedus, started, submit
from foedus import frames, runs
from foedus.errors import Paused
from foedus.measured import undeclared
from foedus.params import Params
from foedus.site.orders import At, Blob, Order, Seal
from foedus.site.policy import Policy, load
from foedus.site.shelf import Pending
from foedus.site.tasks import Declined, Done, let_out, of_enough
from tiny import SITES, job, played, working

ROWS = {"train": 40, "valid": 10, "test": 5}
EMPTY = Params({})


def test_what_may_leave_is_what_the_job_declares_and_the_averages_of_training() -> None:
    shapes: dict[str, Any] = {
        name: (2,) for name in ("rmse", "test_rmse", "personal_test_rmse", "train_rmse", "age", "test_age")
    }
    assert undeclared(shapes, {"rmse", "loss"}) == ["age", "test_age"]
    assert undeclared({"train_lr": (3,), "train_rows": (100,), "train_loss": (1,)}, {"loss"}) == ["train_rows"]


def test_a_work_that_returns_sums_that_nobody_declared_is_refused_by_name() -> None:
    def telling(payload: Any, local: Any, site: Any, usual: Any) -> Any:
        local, update = usual()
        return local, update._replace(metrics={"ages": np.arange(40.0)})

    with pytest.raises(Paused, match=r"train: it returns 'ages', which is none of the metrics that the Job declares"):
        played(job(working(telling)), SITES)


def test_own_averages_of_training_are_kept() -> None:
    def telling(payload: Any, local: Any, site: Any, usual: Any) -> Any:
        local, update = usual()
        return local, update._replace(metrics={**update.metrics, "train_lr": np.array([0.5, 1.0, 0.25])})

    ended, _ = played(job(working(telling), rounds=1), SITES)
    assert ended.history[-1]["train_lr"] == 0.5
    assert ended.history[-1]["train_loss"] > 0


@pytest.mark.parametrize(
    ("least", "stay"),
    [
        (1, []),
        (6, ["personal_test_rmse", "test_rmse"]),  # of 5 examples
        (11, ["personal_test_rmse", "rmse", "test_rmse"]),  # and those of 10
        (41, ["personal_test_rmse", "rmse", "test_rmse", "train_loss"]),
    ],
)
def test_metrics_of_too_few_examples_stay_unless_they_leave_in_a_sum(
    least: int, stay: list[str], tmp_path: Path
) -> None:
    (tmp_path / "policy.toml").write_text(f"least_measured = {least}\n")
    policy = load(tmp_path / "policy.toml")
    names = ["personal_test_rmse", "rmse", "test_rmse", "train_loss"]
    done = Done(1.0, {name: {"dtype": "float64", "shape": [2], "data": ""} for name in names}, False)
    kept, few = of_enough(order(None), done, policy, ROWS)
    assert few == stay and set(kept.metrics) == set(names) - set(stay)
    sealed = order(Seal(("a", "b", "c"), 3, 8.0, 64.0))
    assert of_enough(sealed, done, policy, ROWS) == (done, [])


def test_an_analysis_has_one_part_of_which_its_answers_are() -> None:
    assert Policy(least_measured=20).few("dates", {"train": 19}) and not Policy(least_measured=20).few(
        "dates", {"train": 20}
    )


def order(seal: Seal | None) -> Order:
    return Order(At("run", 0, 0, 0), "train", Blob("", 0), EMPTY.spec, 1.0, "", 0, None, {}, "", seal)


def test_the_agent_lets_only_metrics_out_that_the_submission_names(tmp_path: Path) -> None:
    (path := tmp_path / "update").write_bytes(frames.pack(EMPTY).bytes())
    done = Done(1.0, {"ages": {"dtype": "float64", "shape": [40], "data": ""}}, False)
    with pytest.raises(
        Declined, match="it returns 'ages', which is none of the metrics that the submission names"
    ) as no:
        let_out(order(None), done, path, Policy(), "north", ("loss",))
    assert no.value.kind == "refused"
    assert let_out(order(None), done, path, Policy(), "north", ("loss", "ages")).size == path.stat().st_size
    assert let_out(order(None), done, path, Policy(), "north", None).size == path.stat().st_size  # an analysis


def test_the_numbers_that_metrics_are_stand_in_the_sites_record() -> None:
    metrics = {"auc": {"shape": [2, 50]}, "loss": {"shape": [3]}, "n": {"shape": []}}
    pending = Pending(At("run", 0, 0, 0), "train", "0-0-0", Blob("ab", 9), (1.0).hex(), metrics, False, "")
    assert pending.told()["numbers"] == 104 and pending.told()["metrics"] == ["auc", "loss", "n"]


@pytest.mark.long
@pytest.mark.processes
def test_under_a_seal_no_row_of_the_server_has_a_sites_metrics(tmp_path: Path) -> None:
    with started(tmp_path, ["east", "north", "south"]) as (made, _):
        (made.site_home("east") / "sites" / "east" / "policy.toml").write_text(
            'trust = ["owner"]\nprivacy = "none"\nleast_measured = 11\n'
        )
        sealed = finished(submit(made, privacy="secagg", rounds=1))
        clear = finished(submit(made, rounds=1))
        record = {r["work"]: r for r in json.loads(made.site("east", "sent", clear.run, "--json"))["sent"]}
        rows = foedus(made.home, "logs", sealed.run)[1]["rows"]
    kept = runs.journal(sealed.folder)
    assert {(r["weight"], r["metrics"]) for r in kept.all("accepted") if r["task"]} == {("0x0.0p+0", "")}
    assert {w for r in kept.all("close") if r["task"] for *_, w in r["outcomes"]} == {0.0}
    assert [(r["per_site"], r["worst"], r["site_intervals"]) for r in kept.all("step")] == [({}, {}, {})]
    assert not [r for r in rows if r[2] == "accepted" and r[3]["metrics"] and r[3]["task"]]
    assert sealed.per_site == {} and set(sealed.metrics) >= {"rmse", "test_rmse", "train_loss"}
    assert set(clear.per_site["north"]) >= {"rmse", "test_rmse", "train_loss"}  # of 40, 10 and 10 rows
    assert set(clear.per_site["east"]) == {"train_loss"} and "of fewer than 11 examples" in made.log("east")
    assert (record["train"]["numbers"], record["evaluate"]["numbers"], record["evaluate"]["metrics"]) == (3, 0, [])
