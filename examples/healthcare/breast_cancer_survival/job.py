"""Six regions learn together how long breast-cancer patients live: Cox's partial likelihood, a site's own at each site.

`foedus compare examples/healthcare/breast_cancer_survival/job.py`; `python` on the same file fits the exact Cox model.
"""

import numpy as np
from regions import FEATURES, REGIONS, checked, examples, folder

import foedus as fd
from foedus.numpy import NumpyLearner


def load(site):
    """The published split; the test part is the region's own. No option is chosen, so no rows are set aside."""
    place = folder(site.data)
    train = examples(place, site.name, "train")
    return fd.Split(train=train, valid=train, test=examples(place, site.name, "test"))


def gradient(p, x, y, l2=0.1):
    """Minus the log partial likelihood (Breslow's ties) of each patient, and gradients of its mean, with L2."""
    risk = x @ p["w"]
    weight = np.exp(risk - risk.max())
    at_risk = y[None, :, 0] >= y[:, None, 0]  # (who died, who was under observation then)
    total = at_risk @ weight
    losses = y[:, 1] * (np.log(total) + risk.max() - risk)
    share = (y[:, 1] / total) @ at_risk * weight  # of each patient in all sums
    return losses, {"w": x.T @ (share - y[:, 1]) / len(x) + l2 * p["w"]}


def pairs(outputs, targets):
    """[concordant pairs, comparable pairs] (Harrell 1982): who dies first has the higher risk."""
    days, died = targets[:, 0], targets[:, 1] > 0
    first = died[:, None] & ((days[:, None] < days) | ((days[:, None] == days) & ~died))
    gap = outputs[:, None] - outputs
    return np.array([(first * ((gap > 0) + 0.5 * (gap == 0))).sum(), first.sum()])


CONCORDANCE = fd.Metric("c_index", pairs, lambda sums: sums[0] / sums[1] if sums[1] else np.nan, "max", shapes=[(2,)])


def job(algorithm=None, lr=1.0, rounds=60):
    learner = NumpyLearner(
        {"w": np.zeros(FEATURES)}, gradient, lambda p, x: x @ p["w"], lr=lr, batch_size=None, metrics=[CONCORDANCE]
    )
    return fd.Job(algorithm or fd.fedavg(), learner, load, rounds=rounds, evaluate=rounds)


def tuned(rounds=60, tuning=10):
    """The federated model, trained on at home."""
    return job(rounds=rounds + tuning).replace(algorithm=fd.fine_tuned(after=rounds))


def exact(l2=0.0):
    """The Cox model of all regions' training rows, stratified by region, from sums; see docs/analytics.md."""
    import pandas as pd

    from foedus import analytics

    names = [f"x{i}" for i in range(FEATURES)]
    frames = {}
    for region in REGIONS:
        x, y = examples(folder(), region, "train")
        frames[region] = pd.DataFrame(x, columns=names).assign(days=y[:, 0], died=y[:, 1])
    return analytics.cox(sites=frames, time="days", event="died", features=names, strata="site", l2=l2)


def sites():
    """region -> folder, where no other sites are given."""
    return dict.fromkeys(REGIONS, checked(folder()))


methods = {"FedAvg": job, "personalised": tuned, "FedAdam": lambda: job(fd.fedadam(rate=0.1))}

if __name__ == "__main__":
    for l2 in (0.0, 10.0):
        b = exact(l2).pandas["coef"].fillna(0).to_numpy()
        found = {}
        for region in REGIONS:
            x, y = examples(folder(), region, "test")
            found[region] = CONCORDANCE.value(pairs(x @ b, y))
        found["mean"] = np.mean([*found.values()])
        print(f"exact Cox, l2={l2:g}:", *(f"{name} {value:.3f}" for name, value in found.items()))
