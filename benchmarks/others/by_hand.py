"""The problem's MLP as stacked matrices of all sites, its backward pass written by hand, in numpy-like torch:
python by_hand.py PROBLEM TOLD. What a general engine is held against; it does nothing else."""

import os
import sys

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import torch
from problem import BATCH, LR, Told, read

PROBLEM = read(sys.argv[1])
SITES = [tuple(map(torch.from_numpy, part)) for part in PROBLEM.sites]


def batches(cohort):
    """(steps, sites, BATCH) rows of the examples laid side by side, and which of them are real."""
    sizes = [len(SITES[i][0]) for i in cohort]
    most = -(-max(sizes) // BATCH) * BATCH
    rows = torch.zeros(len(cohort), most, dtype=torch.long)
    at = 0
    for k, n in enumerate(sizes):
        rows[k, :n] = at + torch.randperm(n)
        at += n
    real = torch.arange(most) < torch.tensor(sizes)[:, None]
    return rows.view(len(cohort), -1, BATCH).transpose(0, 1), real.view(len(cohort), -1, BATCH).transpose(0, 1)


def step(params, x, y, real):
    """One step of SGD of each site, in place."""
    w1, b1, w2, b2 = params
    h = torch.baddbmm(b1, x, w1).relu_()
    p = torch.baddbmm(b2, h, w2).softmax(2)
    p.scatter_add_(2, y[:, :, None], torch.full((*y.shape, 1), -1.0))
    share = real / real.sum(1, keepdim=True).clamp(min=1)
    dp = p.mul_(share[:, :, None])
    dh = torch.bmm(dp, w2.mT).mul_(h > 0)
    w2.baddbmm_(h.mT, dp, alpha=-LR)
    b2.sub_(dp.sum(1, keepdim=True), alpha=LR)
    w1.baddbmm_(x.mT, dh, alpha=-LR)
    b1.sub_(dh.sum(1, keepdim=True), alpha=LR)


def main():
    torch.set_num_threads(1)
    told = Told(sys.argv[2])
    names = ("first.weight", "first.bias", "last.weight", "last.bias")
    model = [torch.from_numpy(PROBLEM.start[name].copy()) for name in names]
    for _ in range(PROBLEM.rounds):
        cohort = torch.randperm(len(SITES))[: PROBLEM.cohort].tolist()
        cohort.sort(key=lambda i: -len(SITES[i][0]))
        x, y = (torch.cat([SITES[i][part] for i in cohort]) for part in (0, 1))
        weights = torch.tensor([float(len(SITES[i][0])) for i in cohort])
        shaped = [m.mT if m.dim() == 2 else m[None] for m in model]
        params = [m.expand(len(cohort), *m.shape).clone() for m in shaped]
        rows, real = batches(cohort)
        active = real.any(2).sum(1).tolist()
        for t, k in enumerate(active):
            step([p[:k] for p in params], x[rows[t, :k]], y[rows[t, :k]], real[t, :k])
        means = [torch.tensordot(weights / weights.sum(), p, 1) for p in params]
        model = [m.mT if m.shape[0] > 1 else m[0] for m in means]
        told.round()
    told.model({name: m.contiguous().numpy() for name, m in zip(names, model, strict=True)})


if __name__ == "__main__":
    main()
