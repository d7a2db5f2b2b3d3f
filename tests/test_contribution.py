"""What a site is worth, and every site's model on every site's data: by numbers that are worked out by hand.

Training adds a site's own number to the model, which is one number, w: a adds 1, b adds 2, c adds 6.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import foedus as fd
from foedus.errors import FoedusError, JobError
from foedus.numpy import NumpyLearner
from foedus.study.rebuilt import played
from tiny import SITES
from tiny import job as tiny_job


def fit(params: Any, split: Any, ctx: Any) -> None:
    params["w"] += split.train.y[0]


def split(own: float, valid: float, test: float) -> fd.Split:
    return fd.Split(*((np.zeros((1, 1)), np.array([float(y)])) for y in (own, valid, test)))


def job(rounds: int = 1, algorithm: Any = None) -> fd.Job:
    learner = NumpyLearner({"w": np.zeros(1)}, train=fit, predict=lambda p, x: x[:, 0] + p["w"], metrics=["rmse"])
    return fd.Job(algorithm or fd.fedavg(), learner, rounds=rounds)


ABC = {"a": split(1, 4, 0), "b": split(2, 4, 0), "c": split(6, 4, 0)}
AC = {"a": ABC["a"], "c": ABC["c"]}
# How far the mean of some is from 4: a 3, b 2, c 2, ab 2.5, ac 0.5, bc 0, abc 1, nobody 4.
SHAPLEY = {"a": 1 / 6, "b": 11 / 12, "c": 23 / 12}


def worth(sites: Any = ABC, rounds: int = 1, **how: Any) -> fd.Contribution:
    return fd.contribution(job(rounds), sites, **how)


def test_leaving_a_site_out_costs_what_it_added(home: Path) -> None:
    """1 with all; 0 without a, 0.5 without b, 2.5 without c."""
    found = worth()
    assert found.values == {"a": -1.0, "b": -0.5, "c": 1.5} and all(map(math.isnan, found.errors.values()))
    assert (found.whole, found.nothing, found.metric, found.trained) == (1.0, 4.0, "rmse", 4)


def test_monte_carlo_comes_near_the_shapley_values_and_adds_up(home: Path) -> None:
    found = worth(method="shapley", permutations=200, tolerance=0.0)
    assert sum(found.values.values()) == pytest.approx(4.0 - 1.0) and found.trained == 7
    for site, value in SHAPLEY.items():
        assert abs(found.values[site] - value) < 4 * found.errors[site] < 1.0
    assert worth(method="shapley", permutations=200, tolerance=0.0).values == found.values


def test_truncation_spares_what_is_near_enough(home: Path) -> None:
    """Within 5 of all (1) nobody (4) is already: no site adds anything, and only all of them were trained."""
    found = worth(method="shapley", permutations=3, tolerance=5.0)
    assert found.values == dict.fromkeys("abc", 0.0) and found.trained == 1


def test_gtg_is_shapley_round_by_round(home: Path) -> None:
    """Round 1 from 0: a 3, c 2, both 0.5, nobody 4: a gets (1 + 1.5) / 2, c gets (2 + 2.5) / 2.
    Round 2 from 3.5: a 0.5, c 5.5, both 3, nobody 0.5: a gets (0 + 2.5) / 2, c gets (-5 - 2.5) / 2."""
    found = worth(AC, rounds=2, method="gtg-shapley", permutations=2, tolerance=0.0)
    assert found.values == {"a": 1.25 + 1.25, "c": 2.25 - 3.75}
    assert (found.whole, found.nothing, found.trained) == (3.0, 4.0, 6)


def test_gtg_leaves_out_rounds_and_sites_that_change_little(home: Path) -> None:
    """Round 2 moves by 2.5. In round 1 both together are within 3 of each alone: the second of a pair adds nothing."""
    found = worth(AC, rounds=2, method="gtg-shapley", permutations=2, tolerance=3.0)
    assert found.values == {"a": 0.5, "c": 1.0}


def test_test_may_be_what_is_measured(home: Path) -> None:
    """On test (0) all are off by 3, bc by 4, ac by 3.5, ab by 1.5: fewer is better."""
    assert worth(part="test").values == {"a": 1.0, "b": 0.5, "c": -1.5}


def test_the_table_has_the_most_valuable_first(home: Path) -> None:
    lines = str(worth().table()).splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["c", "b", "a"] and "+1.5000" in lines[1]
    assert "rmse 1.0000 with all sites, 4.0000 before training; 4 sets of sites tried" in lines[4]


@pytest.mark.parametrize("algorithm", [fd.fedavg(), fd.scaffold(), fd.fedadam()])
def test_rounds_that_can_be_put_together_again_have_the_bits_of_the_run(algorithm: fd.Algorithm, home: Path) -> None:
    made = tiny_job(algorithm, rounds=3)
    rounds = list(played(made, SITES, 5))
    assert fd.digest(rounds[-1].model(rounds[-1].sites)) == made.run(SITES, backend="local", seed=5).digest


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"method": "guess"}, "one of leave-one-out, shapley, gtg-shapley"),
        ({"part": "train"}, "valid or test"),
        ({"permutations": 0}, "at least 1"),
        ({"metric": "auc"}, "none of the metrics"),
        ({"sites": {"a": fd.Split(ABC["a"].train, ABC["a"].valid)}, "part": "test"}, "is not defined on test"),
    ],
)
def test_what_cannot_be_told_is_refused(how: dict[str, Any], said: str, home: Path) -> None:
    with pytest.raises(JobError, match=said):
        worth(**how)


def test_gtg_of_late_updates_is_refused(home: Path) -> None:
    with pytest.raises(JobError, match="use method='shapley'"):
        fd.contribution(job(algorithm=fd.fedbuff(2)), AC, method="gtg-shapley")


# every site's model on every site's data

APART = {"a": split(1, 4, 3), "c": split(6, 10, 11)}


def test_a_matrix_has_a_row_for_each_model_and_a_column_for_each_site(home: Path) -> None:
    """After two trainings a's model is 2 and c's is 12; the start is 0."""
    found = fd.cross_site(job(rounds=2), APART)
    assert (found.models, found.sites) == (["start", "a", "c"], ["a", "c"])
    assert found.array("rmse").tolist() == [[4.0, 10.0], [2.0, 8.0], [8.0, 2.0]]
    assert found.array("test_rmse").tolist() == [[3.0, 11.0], [1.0, 9.0], [9.0, 1.0]]


def test_a_matrix_may_begin_with_a_federated_model(home: Path) -> None:
    """The mean of 1 and 6, then one training at each site."""
    found = fd.cross_site(job(), APART, start=job().run(APART, backend="local"))
    assert found.array("rmse").tolist() == [[0.5, 6.5], [0.5, 5.5], [5.5, 0.5]]


def test_a_matrix_is_a_table_a_frame_and_a_plot(home: Path, tmp_path: Path) -> None:
    found = fd.cross_site(job(rounds=2), APART)
    lines = [line.split() for line in str(found.table("rmse")).splitlines()]
    assert lines[0] == ["model", "of", "a", "c", "elsewhere"] and lines[1] == ["start", "4.000", "10.000", "7.000"]
    assert lines[2] == ["a", "2.000", "8.000", "8.000"]
    assert found.frame.query("model == 'c' and site == 'a'").rmse.tolist() == [8.0]
    assert [text.get_text() for text in found.plot("rmse", tmp_path / "m.png").axes[0].texts][:2] == ["4.00", "10.00"]
    with pytest.raises(FoedusError, match="choose from rmse, test_rmse"):
        found.array("auc")


def test_a_matrix_is_found_again(home: Path, tmp_path: Path) -> None:
    said: list[str] = []
    matrices = [fd.cross_site(job(), APART, save=tmp_path, say=said.append) for _ in range(2)]
    assert matrices[0] == matrices[1] and said == ["cross-site, seed 0"]
