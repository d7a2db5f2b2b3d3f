"""Federates train.py as it stands."""

import foedus as fd


def job(rounds=3, fault="", stall=600.0, alive=16):
    script = fd.Script("train.py", ["--fault", fault], metrics=["rmse"], stall=stall, alive=alive)
    return fd.Job(fd.fedavg(), script, rounds=rounds, privacy="none")
