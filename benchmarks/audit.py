"""What attacks find in the first update of a site, under each defence: digits of scikit-learn, a small dense network.
Prints JSON: python benchmarks/audit.py [RECORDS …]. One row a defence; RECORDS: how many the site trains on (1 and 20).

`psnr`: of the best of the gradient attacks on what the server sees of this one site, in dB, beside that of the best
record of others (`baseline`); `recovered`: records 3 dB above it. `labels`: share of labels read right. `auc`:
membership by the final loss, on the released model. `epsilon`: the bound by 200 canaries; `claimed`: by the site.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.optim import SGD

import foedus as fd
from foedus.torch import TorchLearner

DEFENCES = ("none", "clip=0.1", "int8", "top_k=0.01", "secagg", "dp_sgd=8", "dp_sgd=2", "hospital")
SITES, ROUNDS, CANARIES = 10, 5, 200
SEEN = ("its update", "its masked words")  # of this one site


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def sites() -> dict[str, fd.Split]:
    x, y = load_digits(return_X_y=True)
    x, y = (x / 16).astype(np.float32), y.astype(np.int64)
    return dict(fd.partition.iid(x, y, sites=SITES, seed=0, valid=0.1, test=0.3))


def row(job: fd.Job, data: dict[str, fd.Split], records: int, word: str) -> dict[str, Any]:
    found = fd.attack(job, data, records=records, against=word, shadows=0, canaries=CANARIES, steps=300)
    by = [f for f in found.findings if f.values]
    inputs = [f.values for f in by if "psnr" in f.values and f.on in SEEN]
    best = max(inputs, key=lambda values: values["psnr"] - values["baseline"], default={})
    labels, members, bound = (
        next((f.values for f in by if f.attack == name and f.on in places), {})
        for name, places in (("labels", SEEN), ("loss threshold", ("the released model",)), ("canaries", ("a run",)))
    )
    numbers = {
        **{name: best.get(name) for name in ("psnr", "baseline", "recovered")},
        "labels": labels.get("accuracy"), "auc": members.get("auc"),
        "epsilon": bound.get("epsilon"), "claimed": bound.get("claimed"),
    }  # fmt: skip
    shown = {name: x if x is None else round(float(x), 2) for name, x in numbers.items()}
    return {"defence": word, "records": records, **shown, "refuted": word in found.refuted}


def main() -> None:
    data = sites()
    learner = TorchLearner(model, F.cross_entropy, lambda p: SGD(p, lr=0.1), batch_size=20, metrics=["accuracy"])
    job = fd.Job(fd.fedavg(), learner, rounds=ROUNDS)
    rows = []
    for records in map(int, sys.argv[1:] or ["1", "20"]):
        for word in DEFENCES:
            rows.append(row(job, data, records, word))
            print(json.dumps(rows[-1]), file=sys.stderr)
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
