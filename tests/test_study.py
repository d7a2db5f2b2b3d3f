"""Comparison: what is chosen, by which data, and every number of it, on a model that is known by hand (jobs/study)."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import foedus as fd
from foedus import jobfile, runs
from foedus.core import Decline
from foedus.errors import FoedusError, JobError
from foedus.numpy import NumpyLearner
from foedus.study.score import Score
from foedus.study.student import interval, paired, quantile
from foedus.study.study import Study
from foedus.trees import xgboost_bagging
from tiny import working

FILE = Path(__file__).parent / "jobs" / "study" / "job.py"
TOY = jobfile.imported(FILE)
LR = {"lr": [0.5, 2.0]}


def study(folder: Path, **changes: Any) -> Study:
    how: dict[str, Any] = {"sites": TOY.sites(), "seeds": [0], "backend": "local", "save": folder}
    return fd.compare(changes.pop("job", TOY.job), **{**how, **changes})


def at(found: Study, method: str, metric: str = "rmse") -> dict[str, float | None]:
    """site -> what the first seed gave."""
    return {site: values[metric] for site, values in found.by_method[method][0].sites.items()}


# what is chosen


def test_options_and_round_are_chosen_on_valid_and_measured_on_test(tmp_path: Path) -> None:
    """w is 2, 4, 6, 8 after each round with lr 2, and at most 2 with lr 0.5. On valid (3 and 5) w = 4 is best, by 1."""
    found = study(tmp_path, tune=LR, references=())
    (score,) = found.by_method["job"]
    assert (score.options, score.round, score.valid["rmse"]) == ({"lr": 2.0}, 1, 1.0)
    assert at(found, "job") == {"north": 6.0, "south": 6.0} and score.test["rmse"] == 6.0


def test_changing_test_changes_no_choice_and_no_bit(tmp_path: Path) -> None:
    """By test (10, then 1) lr 2 after four rounds would be best, then lr 0.5 after two."""
    found = [study(tmp_path / str(t), tune=LR, sites=TOY.sites(t)) for t in (10, 1)]
    chosen = [[(s.method, s.options, s.round, s.valid, s.valid_sites) for s in each.scores] for each in found]
    assert chosen[0] == chosen[1]
    digests = [sorted(runs.result(path).digest for path in (tmp_path / t / "runs").iterdir()) for t in ("10", "1")]
    assert digests[0] == digests[1] and len(digests[0]) == 2 + 2 + 2 + 2
    assert at(found[1], "job") == {"north": 3.0, "south": 3.0}  # w = 4 still


def test_each_site_alone_chooses_by_its_own_valid_part(tmp_path: Path) -> None:
    """North (3) takes w = 2, the first of those that miss by 1, and is off by 8 on test; south (5) takes w = 4."""
    found = study(tmp_path, tune=LR, references=["alone"])
    assert at(found, "alone") == {"north": 8.0, "south": 6.0}
    assert found.values("alone") == [7.0] and found.values("alone", "worst_site") == [8.0]
    assert found.values("alone", "bytes") == [0.0] and math.isnan(found.values("alone", "all")[0])


def test_pooled_is_one_model_measured_at_each_site(tmp_path: Path) -> None:
    found = study(tmp_path, tune=LR, references=["pooled"])
    score = found.by_method["pooled"][0]
    assert (score.options, score.round, score.valid["rmse"]) == ({"lr": 2.0}, 1, 1.0)
    assert at(found, "pooled") == {"north": 6.0, "south": 6.0} and score.test["rmse"] == 6.0


def test_a_site_that_was_never_seen_chooses_nothing(tmp_path: Path) -> None:
    """Without north, south's valid part takes lr 2 and w = 4, the first that misses 5 by 1: off by 6. Without south,
    north's takes lr 0.5, the first, for both miss by 1: w = 2, off by 8."""
    found = study(tmp_path, tune=LR, references=["unseen-site"])
    assert at(found, "unseen-site") == {"north": 6.0, "south": 8.0}
    for site, others in (("north", ["south"]), ("south", ["north"])):
        (path,) = (tmp_path / "runs").glob(f"without-{site}-*seed-0*")
        counted = [row["counted"] for row in runs.journal(path).all("close") if row["task"] == 0]
        assert [[name for name, _, _ in row] for row in counted] == [others] * 4


def broken(site: Any) -> Any:
    if site.data == "broken":
        raise ValueError("no such table")
    return site.data


BROKEN = "declined: loading its data: ValueError: no such table"


@pytest.mark.parametrize("reference", ["alone", "pooled", "unseen-site"])
def test_a_site_that_cannot_be_read_is_left_out_of_every_reference_and_named(reference: str, tmp_path: Path) -> None:
    """The numbers are those of the sites that can."""
    fine = study(tmp_path / "fine", references=[reference], tune={"lr": [2.0]})
    made = {"job": lambda lr=2.0: TOY.job(lr=lr).replace(data=broken)}
    found = study(tmp_path / "bad", job=made, references=[reference], sites={**TOY.sites(), "west": "broken"})
    assert at(found, "job") == at(fine, "job") and at(found, reference) == at(fine, reference)
    assert set(found.left_out) == {"west"} and set(found.left_out["west"]) == {"job", reference}
    assert all(why.startswith(BROKEN) for why in found.left_out["west"].values())
    assert f"job, {reference} without site 'west': {BROKEN}" in str(found)
    assert Study.load(tmp_path / "bad").left_out == found.left_out == found.about()["left_out"]


def test_pooled_joins_no_data_that_the_method_could_not_train_on(tmp_path: Path) -> None:
    x, y = np.zeros((4, 3)), np.zeros(4)
    wide = fd.Split(train=(x, y), valid=(x, y), test=(x, y))
    line = NumpyLearner({"w": np.zeros(2)}, lambda p, x, y: (x @ p["w"], {"w": x.mean(0)}), metrics=["rmse"])
    line.predict = lambda p, x: x @ p["w"]
    held = {"east": fd.Split(*[(x[:, :2], y)] * 3), "north": fd.Split(*[(x[:, :2], y)] * 3), "west": wide}
    found = fd.compare(fd.Job(fd.fedavg(), line, rounds=1), sites=held, seeds=[0], save=tmp_path, backend="local")
    assert set(found.left_out["west"]) == {"job", "pooled", "unseen-site", "alone"}
    assert set(found.by_method["pooled"][0].sites) == {"east", "north"}


def test_a_model_that_cannot_be_made_without_a_site_is_left_out_and_the_others_stay(tmp_path: Path) -> None:
    """Only north has what the method needs: without it nobody can train, so nothing is known of it as unseen."""

    def work(payload: Any, local: Any, site: Any, usual: Any) -> Any:
        return usual() if site.name == "north" else (local, Decline("no scanner"))

    made = TOY.job(working(work), lr=2.0)
    found = study(tmp_path, job=made, references=["unseen-site"])
    assert set(at(found, "unseen-site")) == {"south"}
    assert found.left_out["north"]["unseen-site"].startswith("without it: ")
    assert "south: declined (no scanner)" in found.left_out["north"]["unseen-site"]


def test_trees_are_compared_without_a_site_that_has_no_classes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    parts = [(x, (x[:, 0] > 0).astype(int)) for x in rng.normal(size=(9, 40, 2))]
    held = {name: fd.Split(*parts[3 * i : 3 * i + 3]) for i, name in enumerate(["east", "north", "west"])}
    held["west"] = fd.Split(*[(x, np.where(y > 0, "ill", "well")) for x, y in parts[6:]])
    job = fd.Job(xgboost_bagging({"objective": "binary:logistic", "max_depth": 2}), rounds=1, metrics=["auc"])
    found = fd.compare(job, sites=held, seeds=[0], save=tmp_path, backend="local")
    assert set(found.by_method) == {"job", "alone", "pooled", "unseen-site"} and found.sites == ["east", "north"]
    assert set(found.left_out) == {"west"} and all("y holds text" in why for why in found.left_out["west"].values())


def test_where_no_site_can_be_read_the_comparison_ends_with_the_cause(tmp_path: Path) -> None:
    with pytest.raises(FoedusError, match=r"west: declined .*no such table"):
        study(tmp_path, job=TOY.job().replace(data=broken), sites={"west": "broken"})


def test_without_best_it_is_the_last_round(tmp_path: Path) -> None:
    found = study(tmp_path, job=partial(TOY.job, best=""), references=["alone", "pooled"])
    assert [score.round for score in found.scores] == [3] * 3
    assert at(found, "job") == at(found, "alone") == at(found, "pooled") == {"north": 6.0, "south": 6.0}


def test_a_method_may_have_options_of_its_own(tmp_path: Path) -> None:
    """Half the step of lr 2 takes w to 1, 2, 3, 4: the last round is best."""
    tune = {"lr": [2.0], "half": {"lr": [2.0, 4.0]}}
    found = study(tmp_path, job=TOY.methods, tune=tune, references=())
    assert [s.options for s in found.by_method["half"]] == [{"lr": 2.0}]
    assert [s.round for s in found.by_method["half"]] == [3] and len(list((tmp_path / "runs").iterdir())) == 3


def test_options_that_fail_are_not_chosen_and_where_all_fail_the_cause_is_told(tmp_path: Path) -> None:
    said: list[str] = []
    found = study(tmp_path, tune={"lr": [float("inf"), 2.0]}, references=(), say=said.append)
    assert found.scores[0].options == {"lr": 2.0}
    assert said[0].startswith("job, lr=inf, seed 0: ")
    with pytest.raises(FoedusError, match=r"job, lr=nan, seed 0: .*north") as caught:
        study(tmp_path, tune={"lr": [float("nan")]}, references=())
    assert caught.value.code == 5


# numbers


def test_bytes_are_those_of_the_arrays_that_training_moves(tmp_path: Path) -> None:
    """One float64 down and up, two sites, four rounds: 128; evaluation is not counted."""
    found = study(tmp_path, references=())
    assert found.values("job", "bytes") == [128.0]


def test_seeds_that_change_nothing_give_no_interval(tmp_path: Path) -> None:
    found = study(tmp_path, job=TOY.methods, references=(), seeds=range(2))
    assert found.interval("whole").mean == 6.0 and math.isnan(found.interval("whole").half)
    assert found.verdict("half") == ""


@pytest.mark.parametrize(  # a table of Student's distribution, 97.5 % and 99.5 %
    ("degrees", "usual", "strict"),
    [
        (1, 12.706, 63.657),
        (2, 4.303, 9.925),
        (3, 3.182, 5.841),
        (4, 2.776, 4.604),
        (7, 2.365, 3.499),
        (30, 2.042, 2.750),
    ],
)
def test_quantiles_are_those_of_the_tables(degrees: int, usual: float, strict: float) -> None:
    assert quantile(0.975, degrees) == pytest.approx(usual, abs=6e-4)
    assert quantile(0.995, degrees) == pytest.approx(strict, abs=6e-4)


def test_intervals_need_two_values_that_differ() -> None:
    assert math.isnan(interval([0.5]).half) and math.isnan(interval([0.5, 0.5, 0.5]).half)
    assert math.isnan(interval([]).mean) and math.isnan(interval([0.5, math.nan]).mean)
    assert not interval([0.5, 0.5]).apart


def of(method: str, values: list[float], reference: bool = False) -> list[Score]:
    """Scores with this accuracy at one site, and a tenth less at another."""
    found = []
    for seed, v in enumerate(values):
        sites = {"a": {"accuracy": v}, "b": {"accuracy": v - 0.1}}
        curve, cost = [(0, {"accuracy": 0.5}), (3, {"accuracy": v})], (2_000_000, 1.25)
        more = ({}, {"accuracy": v}, sites, {}, curve, *cost, f"{method}-{seed}")
        found.append(Score(method, reference, seed, {}, 3, False, *more))
    return found


def made(*more: list[Score], better: str = "max") -> Study:
    """FedAvg 0.80, 0.82, 0.84; Other 0.83, 0.86, 0.86: differences 0.03, 0.04, 0.02, so 0.03 ± 4.303 · 0.01 / √3."""
    first, other = of("FedAvg", [0.80, 0.82, 0.84]), of("Other", [0.83, 0.86, 0.86])
    return Study([*first, *other, *(score for each in more for score in each)], "accuracy", better, "FedAvg", Path("x"))


def test_a_difference_is_taken_in_pairs() -> None:
    mean, half = made().difference("Other")
    assert mean == pytest.approx(0.03) and half == pytest.approx(0.02484, abs=1e-5)
    assert made().verdict("Other") == "better" and made(better="min").verdict("Other") == "worse"
    assert made().interval("FedAvg", "worst_site").mean == pytest.approx(0.72 - 0.05 + 0.05)


def test_of_two_comparisons_both_intervals_hold_together() -> None:
    """Bonferroni: 98.75 % instead of 97.5 %, 2 degrees: 6.205 instead of 4.303, and 0.03 ± 0.0358 is no difference."""
    found = made(of("third", [0.7, 0.9, 0.8]))
    assert found.difference("Other").half == pytest.approx(6.205 * 0.01 / math.sqrt(3), abs=1e-5)
    assert found.verdict("Other") == ""
    assert paired([1.0, 2.0], [1.0, 2.0]).mean == 0.0


def test_the_table_says_what_it_shows() -> None:
    lines = str(made().table(["mean", "worst_site", "difference", "bytes", "seconds", "rounds"])).splitlines()
    assert lines[0].split() == ["method", "mean", "worst_site", "difference", "bytes", "seconds", "rounds"]
    assert lines[1].split() == ["FedAvg", "0.770", "±", "0.050", "0.720", "±", "0.050", "-", "2", "MB", "1.2", "4"]
    assert "+0.030 (+0.005 to +0.055) better" in lines[2]
    assert "3 seeds (Student's t)" in lines[3] and "to FedAvg in pairs" in lines[4]
    assert "hold together (Bonferroni)" in str(made(of("third", [0.7, 0.9, 0.8])).table())
    with pytest.raises(FoedusError, match="choose from mean, all, worst_site"):
        made().table(["median"])


def test_each_site_has_its_own_row() -> None:
    lines = str(made().by_site()).splitlines()
    assert lines[0].split() == ["site", "FedAvg", "Other"]
    assert [line.split()[:2] for line in lines[1:4]] == [["a", "0.820"], ["b", "0.720"], ["mean", "0.770"]]
    assert made().difference("Other", of="b").half == pytest.approx(0.02484, abs=1e-5)
    with pytest.raises(FoedusError, match="choose from mean, worst_site, all, bytes, seconds, rounds, a, b"):
        made().values("Other", "c")


def test_latex_has_the_same_rows() -> None:
    text = made().to_latex(["mean", "worst_site"])
    assert r"method & mean & worst\_site \\" in text and r"FedAvg & 0.770 $\pm$ 0.050 & 0.720 $\pm$ 0.050 \\" in text
    assert text.splitlines()[1] == r"\begin{tabular}{lrr}"


def test_the_frame_has_a_row_for_each_site_and_one_for_all() -> None:
    frame = made().frame
    assert len(frame) == 2 * 3 * 3 and frame[frame.site.isna()].accuracy.tolist()[:3] == [0.80, 0.82, 0.84]
    assert frame[(frame.method == "Other") & (frame.site == "b")].accuracy.round(2).tolist() == [0.73, 0.76, 0.76]


def test_the_plot_has_dots_and_curves(tmp_path: Path) -> None:
    figure = made(of("pooled", [0.9, 0.91, 0.92], True)).plot(path=tmp_path / "study.svg")
    dots, curves = figure.axes
    assert [text.get_text() for text in dots.get_yticklabels()] == ["FedAvg", "Other", "(pooled)"]
    assert [line.get_label() for line in curves.lines] == ["FedAvg", "Other", "pooled"]
    assert curves.lines[0].get_xydata().tolist() == [[1.0, 0.5], [4.0, pytest.approx(0.82)]]
    assert (tmp_path / "study.svg").stat().st_size > 1000
    with pytest.raises(FoedusError, match="no metric 'auc'"):
        made().plot("auc")


# going on


def test_what_is_finished_is_not_done_again(tmp_path: Path) -> None:
    said: list[str] = []
    first = study(tmp_path, job=TOY.methods, say=said.append)
    begun = len(said)
    again = study(tmp_path, job=TOY.methods, say=said.append)
    assert again.scores == first.scores == Study.load(tmp_path).scores
    assert begun == len(said) == 2 + 1 + 1 + 2
    more = study(tmp_path, job=TOY.methods, seeds=range(2), references=["alone"], say=said.append)
    assert len(said) == begun + 3 and len(more.values("half")) == 2


def test_other_data_or_another_job_is_another_run(tmp_path: Path) -> None:
    said: list[str] = []
    for changes in ({}, {"sites": TOY.sites(9)}, {"job": partial(TOY.job, rounds=3)}):
        study(tmp_path, references=(), seeds=[0], say=said.append, **changes)
    assert said == ["job, seed 0"] * 3


def test_a_study_that_is_not_finished_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(FoedusError, match="holds no finished study"):
        Study.load(tmp_path)


def test_sites_may_be_a_function_of_the_seed(tmp_path: Path) -> None:
    found = study(tmp_path, sites=lambda seed: TOY.sites(10 + seed), references=["pooled"], seeds=range(2))
    assert found.values("job") == found.values("pooled") == [6.0, 7.0]


# refusals


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"references": ["alnoe"]}, "choose from alone, pooled, unseen-site"),
        ({"seeds": []}, "whole numbers that differ"),
        ({"seeds": 0}, "a number of seeds, or whole"),
        ({"seeds": [1, 1]}, "whole numbers that differ"),
        ({"metric": "auc"}, r"none of the metrics \['loss', 'rmse'\]"),
        ({"tune": {"mu": [1, 2]}}, "the job has no option 'mu'"),
        ({"tune": {"lr": 0.1}}, "give a list of values"),
        ({"tune": {"lr": []}}, "give a list of values"),
        ({"tune": {"whole": {"lr": [1]}}}, "none of the methods job"),
        ({"job": {}}, "at least one method"),
        ({"job": {"alone": TOY.job}}, "a reference's name"),
        ({"job": {"a": 3}}, "method 'a' is int"),
        ({"job": lambda: 3}, "method 'job' returned int"),
        ({"job": TOY.job(), "tune": LR}, "is a Job, which has no options to tune"),
        ({"job": TOY.job().replace(rounds=None, stop=fd.target("rmse", 9.0))}, "give rounds=… beside stop=…"),
        ({"sites": {"north": fd.Split(TOY.split(1, 1, 1).train, TOY.split(1, 1, 1).train)}}, "give sites a test part"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(JobError if "sites" not in changes else FoedusError, match=said):
        study(tmp_path, **changes)


def test_a_job_file_is_compared_by_its_methods(tmp_path: Path) -> None:
    found = fd.compare(FILE, seeds=[0], references=(), save=tmp_path, backend="local")
    assert list(found.by_method) == ["whole", "half"] and found.about()["methods"]["whole"]["mean"]["mean"] == 6.0
    assert json.dumps(found.about(), allow_nan=False)
