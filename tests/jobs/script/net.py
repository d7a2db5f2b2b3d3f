"""A PyTorch script whose shuffling and FedProx term are named; under torchrun it averages gradients over its ranks."""

import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F

import foedus as fd


def steps(model, x, y, order, correct):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for i in range(0, len(order), 10):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[order[i : i + 10]]), y[order[i : i + 10]])
        loss.backward()
        correct(model)
        optimizer.step()
    return loss.item()


def rows(site):
    x = torch.randn(40, 4, generator=fd.key(0, "rows", site).torch())
    return x, (x.sum(1) > 0).long()


if __name__ == "__main__":
    if "ranks" in sys.argv:
        dist.init_process_group("gloo")
    model = torch.nn.Linear(4, 2)
    torch.nn.init.zeros_(model.weight), torch.nn.init.zeros_(model.bias)
    if dist.is_initialized() and dist.get_rank():
        torch.nn.init.ones_(model.weight)  # what rank 0 tells has to reach it
    for rnd in fd.rounds(model):
        x, y = rows(rnd.site)

        def correct(model, rnd=rnd):
            for p in model.parameters() if rnd.world > 1 else ():
                dist.all_reduce(p.grad)
                p.grad /= rnd.world
            if "prox" in sys.argv:
                rnd.correct(model, lr=0.1)

        order = torch.randperm(40, generator=rnd.key("order").torch())
        loss = steps(model, x[rnd.rank :: rnd.world], y[rnd.rank :: rnd.world], order[order < 40 // rnd.world], correct)
        rnd.report(examples=40, loss=loss)
