"""A job that trains nothing: each site returns an update of the model's size at once."""

import numpy as np

import foedus as fd


def work(payload, local, site):
    return local, fd.Update(payload.map(lambda x: np.full_like(x, 0.5)), 3.0)


def load(site):
    return fd.Split(train=(np.zeros((2, 1)), np.zeros(2)))


def job(mb=0.02, rounds=3):
    sizes = [int(mb * 2**20 / 4 / 4)] * 4
    model = {f"w{i}": np.zeros(n, np.float32) for i, n in enumerate(sizes)}
    algorithm = fd.rounds(lambda state: state, work, lambda state, total, _: state + total.params)
    return fd.Job(algorithm, data=load, start=model, rounds=rounds, evaluate=0)
