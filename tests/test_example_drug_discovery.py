"""The gallery's assays: a short run on a small file in the real format, and what its loader refuses."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import foedus as fd
from foedus import jobfile

FOLDER = Path(__file__).parents[1] / "examples" / "drug_discovery" / "assays"
SITES = ("bio_assay_068", "bio_assay_137")


@pytest.fixture
def made():
    return jobfile.imported(FOLDER / "job.py")


def compounds(folder, made):
    """200 compounds, half of which have a group: one assay finds exactly these active, the other all others."""
    group = np.arange(200) % 2
    columns = {name: 3 * group if i < 9 else np.zeros(200) for i, name in enumerate(made.PRINTS)}
    assays = {name: 4.0 + (group != (name == SITES[1])) for name in made.TASKS[1:]}
    path = folder / "hepatic_injury_qsar.csv"
    injury = np.where(group, "mild", "none")
    pd.DataFrame({"class": injury, **assays, **columns}).to_csv(path, index=False)
    return str(path)


def test_own_heads_on_one_trunk_are_right_where_one_model_cannot_be(made, tmp_path):
    sites = dict.fromkeys(SITES, compounds(tmp_path, made))
    shared = made.job(rounds=8).run(sites, seed=1, backend="local")
    assert shared.metrics["personal_test_auc"] == 1.0
    assert made.one(rounds=8).run(sites, seed=1, backend="local").metrics["test_auc"] < 0.7


def test_heads_stay_at_the_laboratories(made, tmp_path):
    sites = dict.fromkeys(SITES, compounds(tmp_path, made))
    first = made.job(rounds=1).learner.init(fd.key(1))
    result = made.job(rounds=1).replace(start=first).run(sites, seed=1, backend="local")
    assert np.array_equal(result.params["head.w"], first["head.w"])
    assert not np.array_equal(result.params["trunk.w"], first["trunk.w"])


def test_a_gradient_is_the_slope_of_the_mean_loss(made):
    random = np.random.default_rng(3)
    p, x, y = made.model(random, hidden=2), random.normal(size=(5, len(made.PRINTS))), np.array([0, 1, 1, 0, 1])
    for name, slope in made.gradient(p, x, y, l2=0)[1].items():
        first = np.zeros(np.shape(p[name]))
        first.flat[0] = 1e-5
        up, down = (made.gradient({**p, name: p[name] + sign * first}, x, y)[0].mean() for sign in (1, -1))
        assert (up - down) / 2e-5 == pytest.approx(np.ravel(slope)[0], abs=1e-8)


def test_fingerprints_are_logs_of_counts_and_injury_is_any(made, tmp_path):
    frame = made.table(compounds(tmp_path, made))[:2].copy()
    frame.iloc[0, frame.columns.get_loc("chem_fp_192")] = -1  # as in the real table: none
    x, y = made.examples(frame, "liver_injury")
    assert x[0].tolist() == [0] * 192
    assert x[1].tolist() == [np.log(4) / 2] * 9 + [0] * 183
    assert y.tolist() == [0, 1]


def test_a_site_that_is_no_assay_is_told_how_to_name_it(made, tmp_path):
    path = compounds(tmp_path, made)
    with pytest.raises(fd.FoedusError, match="Roche is none of the assays"):
        made.job(rounds=1).run({"Roche": path}, seed=1, backend="local")


def test_a_pickle_that_is_not_the_packages_is_not_opened(made, tmp_path):
    false = tmp_path / "hepatic_injury_qsar.pkl.compress"
    false.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(fd.FoedusError, match="is not opened"):
        made.table(str(false))


def test_another_table_in_the_data_folder_is_refused(made, tmp_path, monkeypatch):
    (tmp_path / "modeldata").mkdir()
    compounds(tmp_path / "modeldata", made)
    monkeypatch.setenv("FOEDUS_DATA", str(tmp_path))
    with pytest.raises(fd.FoedusError, match="is not the table of this example"):
        made.sites()
