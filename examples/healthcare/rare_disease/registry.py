"""Hospitals with 0 to 3 cases each: real measurements (breast-cancer biopsies of UCI, in scikit-learn), made rare."""

import functools

import numpy as np
from sklearn.datasets import load_breast_cancer

import foedus as fd

HOSPITALS = tuple(f"hospital{i:02}" for i in range(40))
CASES = {name: i % 4 for i, name in enumerate(HOSPITALS)}  # 60 cases in all
CONTROLS = 6
MIDDLES = (14, 19, 92, 650, 0.1, 0.1, 0.09, 0.05, 0.18, 0.06, 0.4, 1.2, 3, 40, 0.007, 0.025, 0.03, 0.012, 0.02, 0.004)
MIDDLES += (16, 25, 107, 880, 0.13, 0.25, 0.27, 0.11, 0.29, 0.08)  # of the columns, as a textbook might have them


@functools.lru_cache(maxsize=4)
def divided(seed):
    """(hospital -> (x, y), (x, y) of the reference): y is 1 for a case; nobody is in two of them."""
    table = load_breast_cancer()
    x, y = np.log((table.data + 1e-3) / MIDDLES), 1 - table.target  # there 0 is malignant
    random = fd.key(seed, "patients").numpy()
    cases, controls = (random.permutation(np.flatnonzero(y == label)).tolist() for label in (1, 0))
    own = {}
    for name in HOSPITALS:
        rows = [cases.pop() for _ in range(CASES[name])] + [controls.pop() for _ in range(CONTROLS)]
        own[name] = x[rows], y[rows]
    return own, (x[cases + controls], y[cases + controls])


def load(site):
    """The hospital's few patients to train on; to test with, the patients of the reference, the same for all."""
    if site.name not in CASES:
        raise fd.FoedusError(f"{site.name} is none of the hospitals: take {HOSPITALS[0]} to {HOSPITALS[-1]}")
    own, reference = divided(int(site.key.names[0]))
    return fd.Split(train=own[site.name], valid=own[site.name], test=reference)
