"""The problem as a Job: python ours.py PROBLEM TOLD BACKEND."""

import os
import sys
import tempfile
from functools import partial

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
os.environ["FOEDUS_HOME"] = tempfile.mkdtemp()

from problem import BATCH, LR, Told, read, started

PROBLEM = read(sys.argv[1])


def main():
    import torch.nn.functional as F
    from torch.optim import SGD

    import foedus as fd
    from foedus.launch import run
    from foedus.torch import TorchLearner

    told = Told(sys.argv[2])
    width = len(str(len(PROBLEM.sites)))
    sites = {f"s{i:0{width}}": fd.Split(train=part, valid=part) for i, part in enumerate(PROBLEM.sites)}
    learner = TorchLearner(partial(started, PROBLEM), F.cross_entropy, partial(SGD, lr=LR), batch_size=BATCH)
    job = fd.Job(fd.fedavg(), learner, rounds=PROBLEM.rounds, cohort=PROBLEM.cohort, evaluate=0)
    result = run(job, sites, backend=sys.argv[3], told=lambda row: told.round(), say=print)
    told.model(dict(result.params.items()))
    print(result.backend)


if __name__ == "__main__":
    main()
