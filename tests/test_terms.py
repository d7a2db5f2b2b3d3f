"""What an owner says of one dataset: for what, until when, what may be spent, and whose rows no job sees."""

from __future__ import annotations

import datetime
from pathlib import Path

import pandas as pd
import pytest

from foedus.errors import Denied, FoedusError
from foedus.privacy.spending import Limit
from foedus.site import policy
from foedus.site.terms import Terms, allowed
from foedus.site.withheld import without


def policy_of(folder: Path, text: str) -> policy.Policy:
    (folder / "policy.toml").write_text(text)
    return policy.load(folder / "policy.toml")


WHOLE = """
privacy = ["dp", "secagg"]
[dataset.heart]
epsilon = 4
delta = 1e-6
purpose = ["heart-failure", "triage"]
approval = "ethics 2026-113"
valid_until = 2027-06-30
excluded = "withdrawn.txt"
column = "patient"
"""


def test_the_terms_of_a_dataset_are_read(tmp_path: Path) -> None:
    (tmp_path / "withdrawn.txt").write_text("p3\n\n p1 \np3\n")
    found = policy_of(tmp_path, WHOLE)
    assert found.privacy == ("dp", "secagg") and found.budgets == {"heart": Limit(4.0, 1e-6)}
    assert found.excluded(["heart", "lungs"]) == {"heart": (["p1", "p3"], "patient")}
    assert policy.describe(found)["terms"]["heart"]["valid_until"] == "2027-06-30"
    assert policy_of(tmp_path, "").budgets == {}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[dataset.heart]\nepsilons = 4", "has no rule 'epsilons'; the rules are epsilon, delta"),
        ("[dataset.heart]\nepsilon = -1", "epsilon = -1.0: it must be positive"),
        ("[dataset.heart]\ndelta = 1.0", r"it must be in \(0, 1\)"),
        ("[dataset.heart]\nvalid_until = 2027", "dataset.heart.valid_until = 2027 is not of its kind"),
        ('[dataset.heart]\nexcluded = "nobody.txt"', "there is no file .*nobody.txt"),
        ("[dataset]\nheart = 4", r"write \[dataset.heart\]"),
        ('privacy = ["dp", "magic"]', "privacy = .* is not of its kind"),
        ("terms = 3", "terms = 3"),
    ],
)
def test_a_rule_that_cannot_be_read_forbids_everything(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(Denied, match=f"{why}.*nothing is allowed until it is mended"):
        policy_of(tmp_path, text)


def test_a_dataset_is_for_its_purposes_and_until_its_day() -> None:
    day = datetime.date(2027, 6, 30)
    terms = Terms(purpose=("heart-failure",), valid_until=day)
    assert allowed("heart", terms, "heart-failure", day) == ""
    assert "could be used until 2027-06-30" in allowed("heart", terms, "heart-failure", day + datetime.timedelta(1))
    assert "this job states no purpose: say Job(purpose=…)" in allowed("heart", terms, "", day)
    assert "states the purpose 'marketing'" in allowed("heart", terms, "marketing", day)
    assert allowed("heart", Terms(), "", day) == ""


@pytest.mark.parametrize(
    ("demands", "privacy", "lets"),
    [
        ('"none"', "none", True),
        ('"dp"', "dp_sgd", True),
        ('"dp"', "secagg", False),
        ('"secagg"', "dp_sgd+secagg", True),
        ('["dp", "secagg"]', "dp_sgd+secagg", True),
        ('["dp", "secagg"]', "secagg", False),
        ('["dp", "secagg"]', "none", False),
    ],
)
def test_a_site_demands_a_privacy(tmp_path: Path, demands: str, privacy: str, lets: bool) -> None:
    why = policy_of(tmp_path, f"privacy = {demands}").private(privacy)
    assert (why == "") == lets and (lets or "submit it with privacy=" in why)


# ---- excluded rows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_a_table_is_passed_on_without_the_rows_of_those_who_withdrew(tmp_path: Path, ending: str) -> None:
    frame = pd.DataFrame({"patient": ["p1", "p2", "p3", "p1"], "note": ["a,b", 'say "x"', "", "d"], "age": [*range(4)]})
    path, comma = tmp_path / f"table{ending}", "," if ending == ".csv" else "\t"
    frame.to_csv(path, index=False, sep=comma)
    kept = without(path, ["p1", "p9"], "patient", tmp_path / "view")
    read = pd.read_csv(kept, sep=comma)
    assert kept.name == path.name and kept != path
    assert read.fillna("").values.tolist() == [["p2", 'say "x"', 1], ["p3", "", 2]]
    assert without(path, [], "patient", tmp_path / "other") == path


def test_a_folder_is_passed_on_without_their_files_folders_and_rows(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in ("p1/scan.nii.gz", "p2/scan.nii.gz", "p2/p3.nii.gz", "p1.png", "p10.png"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text(name)
    (data / "labels.csv").write_text("patient,grade\np1,4\np2,2\n")
    (data / "codes.csv").write_text("code,meaning\np1,x\n")
    view = without(data, ["p1", "p3"], "patient", tmp_path / "view")
    found = sorted(str(p.relative_to(view)) for p in view.rglob("*") if not p.is_dir())
    assert found == ["codes.csv", "labels.csv", "p10.png", "p2/scan.nii.gz"]
    assert (view / "labels.csv").read_text() == "patient,grade\np2,2\n" and (view / "p10.png").read_text() == "p10.png"


@pytest.mark.parametrize(
    ("name", "column", "why"),
    [
        ("table.csv", "", "needs `column`"),
        ("table.csv", "id", "the table has no column 'id'"),
        ("table.npz", "patient", "cannot be looked up in a .npz: bind a folder, a .csv"),
    ],
)
def test_what_cannot_be_looked_into_is_never_passed_on_whole(tmp_path: Path, name: str, column: str, why: str) -> None:
    (tmp_path / name).write_text("patient,age\np1,3\n")
    with pytest.raises(FoedusError, match=why):
        without(tmp_path / name, ["p1"], column, tmp_path / "view")
