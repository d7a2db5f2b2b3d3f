"""Validation of a fixed model: counts of scores give what the scores give, and a claim is shown or it is not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

import foedus as fd
from federations import finished, joined
from foedus import frames, jobfile, trees, validation
from foedus.data import Pairs, load_split, save_split, take
from foedus.errors import FoedusError, JobError, Paused
from foedus.keys import key
from foedus.loopback import environment
from foedus.metrics import BINS, measure
from foedus.numpy import NumpyLearner
from foedus.params import Params
from foedus.torch import TorchLearner
from foedus.validation.judging import Claim, judged

MODEL = Params({"w": np.array([0.0, 2.0])})
AGES, SEXES = validation.cut(0, [50, 65]), validation.cut(2, [0.5], ["women", "men"])


def gradient(p: Any, x: Any, y: Any) -> Any:
    error = predict(p, x) - y  # of which only the losses are asked for: a fixed model does not train
    return error**2, {"w": np.zeros(2)}


def predict(p: Any, x: Any) -> Any:
    return x[:, 1] * p["w"][1] - 1.0


def rows(seed: int, n: int, blind: float = 0.0) -> fd.Split:
    """Age, marker, sex; with `blind` the marker says less of that share of the women."""
    rng = np.random.default_rng(seed)
    age, sex, y = rng.uniform(30, 80, n), rng.integers(0, 2, n), rng.integers(0, 2, n)
    marker = y + rng.normal(size=n)
    unseen = (sex == 0) & (rng.uniform(size=n) < blind)
    marker[unseen] = rng.normal(size=unseen.sum())
    x = np.column_stack([age, marker, sex])
    return fd.Split(train=(x[:2], y[:2]), test=(x, y))


SITES = {"north": rows(1, 400), "south": rows(2, 250), "tiny": rows(3, 6)}
JOB = fd.Job(fd.fedavg(), NumpyLearner({"w": np.zeros(2)}, gradient, predict, metrics=["auc"]), rounds=1)


def whole(*sites: str) -> tuple[np.ndarray, np.ndarray]:
    parts = [SITES[name].test[:] for name in sites]
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


def test_pooled_values_are_those_of_all_examples_and_each_site_has_its_own() -> None:
    found = fd.validate(JOB, MODEL, SITES)
    for name, sites in ((validation.validating.EVERYWHERE, ("north", "south")), ("north", ("north",))):
        x, y = whole(*sites)
        line = found.line(name)
        assert (line.examples, line.positives) == (len(y), y.sum())
        assert line.found["auc"].value == pytest.approx(roc_auc_score(y, x[:, 1]), abs=1e-3)
        assert line.found["sensitivity"].value == pytest.approx((x[y == 1, 1] > 0.5).mean(), abs=2e-2)
        assert line.found["specificity"].value == pytest.approx((x[y == 0, 1] <= 0.5).mean(), abs=2e-2)
    assert found.line("tiny").hidden and found.line("tiny").examples == 0  # 6 examples, and 10 are the least
    assert "nothing was claimed" in found.verdict


def test_subgroups_are_counted_at_each_site() -> None:
    found = fd.validate(JOB, MODEL, SITES, by={"age": AGES, "sex": SEXES})
    x, y = whole("north", "south")
    for name, members in (("below 50", x[:, 0] < 50), ("50 to 65", (x[:, 0] >= 50) & (x[:, 0] < 65))):
        line = found.line(by="age", group=name)
        assert line.examples == members.sum()
        assert line.found["auc"].value == pytest.approx(roc_auc_score(y[members], x[members, 1]), abs=2e-3)
    assert found.line("north", "sex", "men").examples == (SITES["north"].test.x[:, 2] == 1).sum()


def test_a_small_group_is_not_what_the_others_leave_of_the_whole() -> None:
    """Three women in 100: were the 97 men told of, the women would be everybody less these."""
    x, y = SITES["north"].test[:]
    x = x[:100].copy()
    x[:, 2] = np.arange(100) >= 3
    found = fd.validate(JOB, MODEL, {"a": fd.Split(train=(x[:2], y[:2]), test=(x, y[:100]))}, by={"sex": SEXES})
    assert found.line("a").examples == 100
    assert [found.line("a", "sex", name).hidden for name in ("women", "men")] == [True, True]
    assert "fewer than 10, or would show such" in "\n".join(found.text())


def test_a_claim_is_shown_for_everybody_and_not_for_whom_the_marker_is_blind() -> None:
    sites = {"a": rows(1, 1500, blind=0.9), "b": rows(2, 1500)}
    found = fd.validate(JOB, MODEL, sites, Claim("auc", reference=0.7, margin=0.05), by={"sex": SEXES})
    assert found.meets(found.line()) is True and "SHOWN to be no more than 0.05 below 0.7 " in found.verdict
    assert found.meets(found.line("a", "sex", "women")) is False and "a, sex women" in found.verdict
    assert found.meets(found.line("a", "sex", "men")) is True
    stricter = fd.validate(JOB, MODEL, sites, Claim("auc", reference=0.9, margin=0.05))
    assert stricter.meets(stricter.line()) is False and stricter.verdict.count("NOT SHOWN") == 1


@pytest.mark.long
def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Of 300 samples of 200: the AUC of two normals one apart is Phi(1 / sqrt 2) = 0.7602."""
    rng, inside = np.random.default_rng(0), 0
    for i in range(300):
        y = rng.integers(0, 2, 200)
        counts = measure(["auc"], rng.normal(size=200) + y, y)["auc"]
        found = judged(counts, key(i), 500, Claim())["auc"]
        inside += found.low <= 0.7602 <= found.high
    assert 0.91 <= inside / 300 <= 0.98


def test_a_bootstrap_of_counts_is_one_of_examples() -> None:
    """Its standard error beside that of a plain bootstrap, which draws the examples themselves."""
    rng = np.random.default_rng(5)
    y = rng.integers(0, 2, 300)
    x = rng.normal(size=300) + y
    found = judged(measure(["auc"], x, y)["auc"], key(1), 2000, Claim())["auc"]
    plain = []
    for _ in range(400):
        at = rng.integers(0, 300, 300)
        plain.append(roc_auc_score(y[at], x[at]))
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.std(plain), rel=0.15)


def test_one_class_alone_has_no_value_and_nothing_fails() -> None:
    counts = np.zeros((2, BINS), np.int64)
    counts[0, :5] = 7
    found = judged(counts, key(0), 100, Claim("specificity", 0.9))
    assert np.isnan(found["auc"].value) and found["specificity"].p is not None
    assert found["specificity"].value == 1.0 and np.isnan(found["sensitivity"].low)


def test_what_was_found_is_kept_and_is_the_same_again(tmp_path: Path) -> None:
    claim = Claim("sensitivity", reference=0.6, threshold=0.4)
    once, again = (fd.validate(JOB, MODEL, SITES, claim, {"sex": SEXES}) for _ in range(2))
    assert once.plain() == again.plain() and once.model == fd.digest(MODEL)
    path = once.save(tmp_path / "new" / "folder")
    assert json.loads((path.parent / "validation.json").read_text()) == json.loads(json.dumps(once.plain()))
    text = path.read_text()
    assert "sex: women" in text and "fewer than 10" in text and text.rstrip().endswith(once.verdict)


@pytest.mark.parametrize(
    ("given", "error", "why"),
    [
        (dict(claim=Claim("f1")), JobError, "choose from auc, sensitivity, specificity"),
        (dict(claim=Claim(threshold=1.0)), JobError, "it is a probability"),
        (dict(claim=Claim(reference=80)), JobError, "a auc is from 0 to 1"),
        (dict(part="train"), JobError, "it is 'test' or 'valid'"),
        (dict(least=0), JobError, "at least 1"),
        (dict(by={"scanner": validation.cut(9, [1])}), Paused, "a subgroup is by column 9"),
        (dict(part="valid", sites={"a": fd.Split(train=rows(1, 20).test[:1])}), Paused, "a has no valid part"),
    ],
)
def test_bad_input_is_answered_with_what_may_be_given(given: dict[str, Any], error: type[Exception], why: str) -> None:
    with pytest.raises(error, match=why):
        fd.validate(JOB, MODEL, **{"sites": SITES, **given})


def test_cuts_and_runs_that_are_none_are_refused() -> None:
    for bad in (dict(cuts=[]), dict(cuts=[3, 1]), dict(cuts=[1], names=["one"])):
        with pytest.raises(JobError, match=r"rising order|different names"):
            validation.cut(0, **bad)
    with pytest.raises(FoedusError, match="this is no run of a validation"):
        validation.read(MODEL)
    with pytest.raises(JobError, match="scores no examples"):
        validation.job(fd.Job(fd.fedavg(), start=MODEL, rounds=1), MODEL)


def banks() -> dict[str, fd.Split]:
    """Frames with named columns, in which the marker says much of the men and little of the women."""
    found = {}
    for seed, name in enumerate(("alpha", "beta", "gamma")):
        rng = np.random.default_rng(seed)
        n = 300
        y, sex = rng.integers(0, 2, n), rng.integers(0, 2, n).astype(float)
        frame = pd.DataFrame({"income": y * (1 + sex) + rng.normal(size=n), "age": rng.uniform(20, 80, n), "sex": sex})
        split = fd.Split.from_frame(frame.assign(default=y), label="default")
        parts = [take(split.train, rows) for rows in (np.arange(200), np.arange(200, n))]
        found[name] = fd.Split(train=parts[0], test=parts[1])
    return found


TREES = {"objective": "binary:logistic", "max_depth": 3, "eta": 0.3}


@pytest.mark.parametrize("make", [trees.histogram_boosting, trees.xgboost_bagging, trees.xgboost_cyclic])
def test_boosted_trees_are_validated_at_every_site_and_for_every_group(make: Any) -> None:
    sites = banks()
    job = fd.Job(make(TREES), rounds=5, evaluate=0)
    model = job.run(sites, backend="local")
    by = {"sex": validation.cut("sex", [0.5], ["women", "men"])}
    found = fd.validate(job, model, sites, Claim("auc", reference=0.7, margin=0.05), by, least=10)
    x, y = (np.concatenate([getattr(split.test, part) for split in sites.values()]) for part in "xy")
    scores = trees.predict(model, x)
    whole = found.line()
    assert whole.examples == len(y) == 300 and whole.positives == y.sum()
    assert whole.found["auc"].value == pytest.approx(roc_auc_score(y, scores), abs=2e-3)
    for site, split in sites.items():
        own = roc_auc_score(split.test.y, trees.predict(model, split.test.x))
        assert found.line(site).found["auc"].value == pytest.approx(own, abs=2e-3)
    groups = {name: roc_auc_score(y[at], scores[at]) for name, at in (("women", x[:, 2] == 0), ("men", x[:, 2] == 1))}
    for name, auc in groups.items():
        assert found.line(by="sex", group=name).found["auc"].value == pytest.approx(auc, abs=2e-3)
    assert groups["men"] > groups["women"] + 0.03


def test_a_site_whose_columns_are_not_the_models_is_told() -> None:
    sites = banks()
    job = fd.Job(trees.histogram_boosting(TREES), rounds=1, evaluate=0)
    model = job.run(sites, backend="local")
    other = {"odd": fd.Split(train=Pairs(sites["alpha"].train.x, sites["alpha"].train.y, ["a", "b", "c"]))}
    other["odd"] = fd.Split(train=other["odd"].train, test=other["odd"].train)
    with pytest.raises(Paused, match=r"odd.*columns"):
        fd.validate(job, model, other)


def test_a_subgroup_by_name_says_which_names_there_are() -> None:
    named = Pairs(np.array([[1.0, 0], [2, 1]]), [0, 1], ["age", "sex"], {"scanner": ["A", "B"]})
    with pytest.raises(
        JobError, match=r"a subgroup is by 'ward', and there are scanner, age, sex: load .*about=\['ward'\]"
    ):
        validation.cut("ward", [1]).of(named)
    with pytest.raises(JobError, match="nothing has a name here"):
        validation.cut("ward", [1]).of(Pairs(np.zeros((3, 2)), np.zeros(3)))
    with pytest.raises(JobError, match=r"holds text .*: name its levels"):
        validation.cut("scanner", [1]).of(named)
    assert validation.cut("sex", [0.5]).of(named).tolist() == [0, 1]
    assert validation.levels("scanner", ["B", "C"]).of(named).tolist() == [-1, 0]
    assert validation.levels("sex", [0, 1]).of(named).tolist() == validation.levels(1, ["0", "1"]).of(named).tolist()
    with pytest.raises(JobError, match=r"the column's number, or a name"):
        validation.cut(1.5, [1])  # type: ignore[arg-type]
    for bad in ([], ["A", "A"], "AB"):
        with pytest.raises(JobError, match="name the levels, each once"):
            validation.levels("scanner", bad)


class Scans:
    """Images with a mean that says much, but on one scanner; what is known of each is beside them."""

    def __init__(self, seed: int, n: int = 120) -> None:
        rng = np.random.default_rng(seed)
        self.y, scanner = rng.integers(0, 2, n), rng.integers(0, 2, n)
        noise = np.where(scanner, 4.0, 0.7)
        self.x = (self.y + noise * rng.normal(size=n))[:, None, None] + np.zeros((n, 3, 3))
        self.about = {"scanner": np.array(["old" if s else "new" for s in scanner]), "age": rng.uniform(20, 80, n)}

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        return self.x[i].astype(np.float32), int(self.y[i])


def test_images_are_divided_by_what_is_known_of_them_and_no_model_reads() -> None:
    class Mean(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, x: Any) -> Any:
            return self.scale * x.flatten(1).mean(1)

    learner = TorchLearner(Mean, train=lambda *_: {}, device="cpu", metrics=["auc"])
    sites = {name: fd.Split(train=Scans(9, 4), test=Scans(i)) for i, name in enumerate(("north", "south"))}
    by = {"scanner": validation.levels("scanner", ["new", "old"]), "age": validation.cut("age", [50])}
    found = fd.validate(fd.Job(fd.fedavg(), learner, rounds=1), learner.init(key(0)), sites, by=by)
    tests = [split.test for split in sites.values()]
    for name in ("new", "old"):
        parts = [(s.about["scanner"] == name, s) for s in tests]
        y, x = (np.concatenate([getattr(s, part)[at] for at, s in parts]) for part in "yx")
        line = found.line(by="scanner", group=name)
        assert line.examples == len(y)
        assert line.found["auc"].value == pytest.approx(roc_auc_score(y, x[:, 0, 0]), abs=2e-3)
    ages = sum(int((s.about["age"] < 50).sum()) for s in tests)
    assert found.line(by="age", group="below 50").examples == ages
    assert (
        found.line(by="scanner", group="new").found["auc"].value
        > 0.75
        > found.line(by="scanner", group="old").found["auc"].value
    )


def test_what_is_about_examples_is_no_feature_and_goes_with_them(tmp_path: Path) -> None:
    frame = pd.DataFrame({"age": [30.0, 40, 50, 60], "sex": ["f", "m", "f", "m"], "ill": [0, 1, 0, 1]})
    split = fd.Split.from_frame(frame, label="ill", test=frame[1:3], about=["sex"])
    assert split.train.names == ("age",) and split.train.x.shape == (4, 1)
    assert take(split.train, np.array([3, 0])).about["sex"].tolist() == ["m", "f"]
    drawn = split.with_valid(key(0))
    assert sorted([*drawn.train.about["sex"], *drawn.valid.about["sex"]]) == ["f", "f", "m", "m"]
    save_split(tmp_path / "site.split", split)
    again = load_split(tmp_path / "site.split")
    assert again.train.about["sex"].tolist() == ["f", "m", "f", "m"] and again.test.about["sex"].tolist() == ["m", "f"]
    with pytest.raises(FoedusError, match=r"about\['sex'\] is \[3\]: give one value for each of 4 examples"):
        Pairs(np.zeros((4, 1)), np.zeros(4), about={"sex": ["f"] * 3})
    with pytest.raises(FoedusError, match="there is no column 'ward'"):
        fd.Split.from_frame(frame, label="ill", about=["ward"])


def test_a_model_beside_the_job_file_is_found_from_anywhere_and_travels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, model, _ = written(tmp_path)
    file.write_text(FILE.replace("rounds=1)", "rounds=1, start='model.safetensors')"))
    folder = file.parent
    model.rename(folder / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    loaded = jobfile.load(file)
    assert loaded.job.first(0) == MODEL and loaded.job.files == ["model.safetensors"]
    jobfile.check_sent(loaded.job, folder)
    for other in ("20260101-a-run", str(tmp_path / "elsewhere.safetensors")):
        with pytest.raises(JobError, match=r"only what lies there is sent: copy the model"):
            jobfile.check_sent(loaded.job.replace(start=other), folder)


# ---- the command line and real sites ---------------------------------------------------------------------------------

FILE = """
import numpy as np
import foedus as fd
from foedus.numpy import NumpyLearner


def load(site):
    table = np.loadtxt(site.data / "rows.csv", delimiter=",")
    x, y = table[:, :3], table[:, 3].astype(int)
    return fd.Split(train=(x[:2], y[:2]), test=(x, y))


def gradient(p, x, y):
    return (x[:, 1] - y) ** 2, {"w": np.zeros(2)}


learner = NumpyLearner({"w": np.zeros(2)}, gradient, lambda p, x: x[:, 1] * p["w"][1] - 1.0, metrics=["auc"])
job = fd.Job(fd.fedavg(), learner, load, rounds=1)
"""


def written(folder: Path) -> tuple[Path, Path, dict[str, Path]]:
    """A job file, a model, and the folders of two sites."""
    for name in ("north", "south"):
        (folder / name).mkdir(parents=True)
        np.savetxt(folder / name / "rows.csv", np.column_stack(SITES[name].test[:]), delimiter=",")
    (folder / "job").mkdir()
    (folder / "job" / "job.py").write_text(FILE)
    (folder / "model.safetensors").write_bytes(frames.model(MODEL, {}).bytes())
    return folder / "job" / "job.py", folder / "model.safetensors", {n: folder / n for n in ("north", "south")}


def said(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "foedus", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)


def test_the_command_line_says_what_python_does_and_fails_where_a_claim_is_not_shown(tmp_path: Path) -> None:
    file, model, sites = written(tmp_path)
    given = ["validate", str(file), "--model", str(model), *(f"--site={n}={p}" for n, p in sites.items())]
    more = ["--by", "age=0:50,65", "--out", str(tmp_path / "out"), "--json", "--reference"]
    good, bad = (said(*given, *more, reference) for reference in ("0.75", "0.99"))
    found = fd.validate(JOB, MODEL, {n: SITES[n] for n in sites}, Claim(reference=0.75), {"age": AGES}).plain()
    told = json.loads(good.stdout)
    assert good.returncode == 0 and told["lines"] == json.loads(json.dumps(found["lines"]))
    assert bad.returncode == 1 and "the claim is not shown: auc" in bad.stderr
    refused = said(*given, "--by", "age=old")
    assert refused.returncode == 3 and "write NAME=COLUMN:CUTS" in refused.stderr


@pytest.mark.long
@pytest.mark.processes
def test_real_sites_send_the_same_counts_as_a_simulation_of_them(tmp_path: Path) -> None:
    _, _, sites = written(tmp_path)
    text = FILE.replace("job = fd.Job", "from foedus import validation\njob = validation.job(fd.Job")
    claim = "validation.Claim(reference=0.75)"
    text = text.replace(
        "rounds=1)\n", f"rounds=1), 'model.safetensors', {{'age': validation.cut(0, [50, 65])}}, claim={claim})\n"
    )
    (tmp_path / "job" / "job.py").write_text(text)
    (tmp_path / "model.safetensors").rename(tmp_path / "job" / "model.safetensors")
    with joined(tmp_path / "home", sites) as made:
        result = finished(made.remote().submit(tmp_path / "job" / "job.py"))
    simulated = fd.validate(JOB, MODEL, {n: SITES[n] for n in sites}, Claim(reference=0.75), {"age": AGES})
    assert validation.read(result).plain() == simulated.plain() == validation.read(result.folder).plain()


def test_under_a_seal_all_sites_together_are_told_of_and_none_alone() -> None:
    sites = {name: rows(i, 300) for i, name in enumerate(("a", "b", "c"))}
    how: dict[str, Any] = {"claim": Claim("auc", reference=0.7), "by": {"sex": SEXES}}
    open_, sealed = (fd.validate(JOB, MODEL, sites, privacy=p, **how) for p in ("none", "secagg"))
    assert {line.site for line in sealed.lines} == {validation.validating.EVERYWHERE}
    assert {line.site for line in open_.lines} == {validation.validating.EVERYWHERE, "a", "b", "c"}
    for line in sealed.lines:
        same = open_.line(by=line.by, group=line.group)
        assert line.found == same.found and line.calibration_error == pytest.approx(same.calibration_error, rel=1e-9)
        assert (line.examples, line.positives) == (same.examples, same.positives)
    assert sealed.verdict.split(". ")[0] == open_.verdict.split(". ")[0]


def masks(found: Sequence[int]) -> fd.Split:
    """Cases of 8 pixels of which 4 are the organ: a model that finds so many of them, and nothing else."""
    x = np.zeros((len(found), 8))
    for row, count in zip(x, found, strict=True):
        row[:count] = 1
    return fd.Split(train=(x[:1], np.ones((1, 8), int)), test=(x, np.tile([1] * 4 + [0] * 4, (len(found), 1))))


def test_the_dice_of_cases_is_a_claim_about_their_mean() -> None:
    """Found k of 4 pixels: Dice 2k / (k + 4), so 1, 6/7, 2/3, 0."""
    logits = lambda p, x: np.stack([10 - 20 * x, 20 * x - 10], axis=1)  # noqa: E731
    learner = NumpyLearner({"w": np.zeros(1)}, predict=logits, train=print, metrics=["dice"])
    job, model = fd.Job(fd.fedavg(), learner, rounds=1), Params({"w": np.zeros(1)})
    sites = {"a": masks([4] * 12 + [3] * 8), "b": masks([2] * 10 + [0] * 10)}
    found = fd.validate(job, model, sites, Claim("dice", reference=0.9, margin=0.05))
    whole = (12 + 8 * 6 / 7 + 10 * 2 / 3) / 40
    assert found.line().found["dice"].value == pytest.approx(whole, abs=2e-4) and found.line().examples == 40
    assert found.line("a").found["dice"].value == pytest.approx((12 + 8 * 6 / 7) / 20, abs=2e-4)
    assert found.meets(found.line("a")) is True and found.meets(found.line("b")) is False and "dice" in found.verdict
    low, high = found.line("b").found["dice"].low, found.line("b").found["dice"].high
    half = 1.96 * np.std([2 / 3] * 10 + [0] * 10) / np.sqrt(20)
    assert (low, high) == (pytest.approx(1 / 3 - half, abs=0.03), pytest.approx(1 / 3 + half, abs=0.03))
    with pytest.raises(JobError, match="this run counted for 'dice'"):
        validation.read(validation.job(job, model, claim=Claim("dice")).run(sites=sites), Claim("auc"))
    with pytest.raises(JobError, match=r"Claim\(metric='iou'\): choose from auc, sensitivity, specificity, loss, dice"):
        fd.validate(job, model, sites, Claim("iou"))
