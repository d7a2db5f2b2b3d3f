"""Four hospitals predict heart disease together: logistic regression in plain numpy.

`foedus run examples/heart/job.py` simulates it; `python examples/heart/job.py` compares alone, federated and pooled.
"""

import numpy as np
from data import examples, rows, split, tables

import foedus as fd
from foedus.numpy import NumpyLearner

FEATURES = 14


def load(site):
    """The site's own table; several paths are pooled (in simulation only)."""
    paths = site.data if isinstance(site.data, list) else [site.data]
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


def compare(seeds=range(5)):
    """way -> hospital -> accuracies over the seeds, each seed a split of its own."""
    hospitals = sites()
    table = {way: {name: [] for name in hospitals} for way in ("alone", "federated", "pooled")}
    for seed in seeds:
        federated = accuracies(job().run(sites=hospitals, seed=seed).params, seed)
        pooled = accuracies(job().run(sites={"pooled": list(hospitals.values())}, seed=seed).params, seed)
        for name, path in hospitals.items():
            alone = accuracies(job().run(sites={name: path}, seed=seed).params, seed)[name]
            for way, value in (("alone", alone), ("federated", federated[name]), ("pooled", pooled[name])):
                table[way][name].append(value)
    return table


if __name__ == "__main__":
    found = compare()
    print(f"{'hospital':12}" + "".join(f"{way:>18}" for way in found))
    for name in sites():
        cells = [np.array(found[way][name]) for way in found]
        half = [2.776 * c.std(ddof=1) / len(c) ** 0.5 for c in cells]  # Student's t, 4 degrees of freedom
        print(f"{name:12}" + "".join(f"{c.mean():>11.3f} ±{h:.3f}" for c, h in zip(cells, half, strict=True)))
    mean = {way: np.mean(list(found[way].values())) for way in found}
    won = max(mean, key=mean.get)
    print(
        "mean accuracy: " + ", ".join(f"{way} {value:.3f}" for way, value in mean.items()) + f"; {won} won on this data"
    )
