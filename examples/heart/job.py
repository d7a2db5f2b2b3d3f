"""Four hospitals predict heart disease together: logistic regression in plain numpy.

`foedus run examples/heart/job.py` simulates it; `python examples/heart/job.py` compares it with what else one could do.
"""

import numpy as np
from data import examples, rows, split, table, tables

import foedus as fd
from foedus.numpy import NumpyLearner

FEATURES = 14


def load(site):
    """The site's own table; several paths are pooled (in simulation only)."""
    paths = site.data if isinstance(site.data, list) else [table(site.data, site.name)]
    parts = [split(*examples(rows(path)), fd.key(int(site.key.names[0]), path.stem, "split").numpy()) for path in paths]
    both = [[getattr(part, name) for part in parts] for name in ("train", "test")]
    train, test = ((np.concatenate([p.x for p in ps]), np.concatenate([p.y for p in ps])) for ps in both)
    return fd.Split(train=train, test=test)


def gradient(p, x, y):
    """Losses, one an example, and the gradients of their mean with a little L2."""
    z = x @ p["w"] + p["b"]
    error = 1 / (1 + np.exp(-z)) - y
    losses = np.logaddexp(0, z) - y * z
    return losses, {"w": x.T @ error / len(x) + 0.001 * p["w"], "b": error.mean()}


def job(lr=0.5, rounds=100):
    model = {"w": np.zeros(FEATURES), "b": np.float64(0)}
    learner = NumpyLearner(model, gradient, lambda p, x: x @ p["w"] + p["b"], lr=lr, metrics=["accuracy", "auc"])
    return fd.Job(fd.fedavg(), learner, load, rounds=rounds, evaluate=rounds)


def sites():
    """name -> file, where no other sites are given."""
    return tables()


def accuracies(params, seed):
    """Test accuracy of a model at each hospital."""
    bench = job().bench(seed)
    tests = {name: bench.split(name, path).test for name, path in sites().items()}
    found = {name: bench.learner.evaluate(params, test, ["accuracy"]) for name, test in tests.items()}
    return {name: fd.metrics.values(sums, ["accuracy"])["accuracy"] for name, sums in found.items()}


def compare(seeds=range(5), tuning=20):
    """way -> hospital -> accuracies over the seeds, each seed a split of its own."""
    hospitals = sites()
    found = {way: {name: [] for name in hospitals} for way in ("alone", "federated", "pooled", "tuned")}
    for seed in seeds:
        federated = job().run(sites=hospitals, seed=seed).params
        pooled = job().run(sites={"pooled": list(hospitals.values())}, seed=seed).params
        at_home = job(rounds=tuning).replace(start=federated)
        for name, path in hospitals.items():
            alone, tuned = (made.run(sites={name: path}, seed=seed).params for made in (job(), at_home))
            for way, params in zip(found, (alone, federated, pooled, tuned), strict=True):
                found[way][name].append(accuracies(params, seed)[name])
    return found


def interval(values):
    """Mean and half of its 95 % interval over five seeds (Student's t, 4 degrees of freedom)."""
    return np.mean(values), 2.776 * np.std(values, ddof=1) / len(values) ** 0.5


def verdict(found, one, other):
    """Which of two ways won where, by the intervals of their differences, split by split."""
    told = []
    for name, ours in found[one].items():
        mean, half = interval(np.subtract(ours, found[other][name]))
        if abs(mean) > half:
            told.append(f"{one if mean > 0 else other} wins at {name} by {abs(mean):.3f} ± {half:.3f}")
    return f"{one} against {other}: " + ("; ".join(told) + "; elsewhere even" if told else "even everywhere")


if __name__ == "__main__":
    found = compare()
    print(f"{'hospital':12}" + "".join(f"{way:>17}" for way in found))
    for name in sites():
        print(f"{name:12}" + "".join("{:>10.3f} ± {:.3f}".format(*interval(found[way][name])) for way in found))
    print(f"{'mean':12}" + "".join(f"{np.mean(list(found[way].values())):>10.3f}       " for way in found))
    for one, other in (("alone", "federated"), ("pooled", "federated"), ("tuned", "alone")):
        print(verdict(found, one, other))
