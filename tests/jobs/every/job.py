"""Every algorithm, one after the other in each round of one run: what a backend gives for all of them in one go.

A new algorithm is one line of EVERY. Its model in the end is `params.part(name)`.
"""

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import foedus as fd
from foedus.layers import LayeredLearner, dense, tanh
from foedus.params import join
from foedus.participation import by_loss
from foedus.torch import TorchLearner, layer

EVERY = {  # name -> a function of nothing that makes it
    "fedavg": fd.fedavg,
    "fedavg-median": lambda: fd.fedavg(aggregator=fd.median()),
    "fedavg-schedule": lambda: fd.fedavg(rate=lambda round: 1 / (1 + round)),
    "fedprox": lambda: fd.fedprox(0.1),
    "among": lambda: fd.among(fd.fedavg(), without=["north"]),
    "alone": lambda: shown(fd.alone()),
    "fedavgm": fd.fedavgm,
    "fedadam": fd.fedadam,
    "fedyogi": fd.fedyogi,
    "fedadagrad": fd.fedadagrad,
    "fedopt-torch": lambda: fd.fedopt(partial(torch.optim.AdamW, lr=0.05)),
    "scaffold": fd.scaffold,
    "scaffold-1": lambda: fd.scaffold(option=1),
    "fednova": fd.fednova,
    "feddyn": lambda: fd.feddyn(alpha=0.1),
    "moon": fd.moon,
    "fedexp": fd.fedexp,
    "qffl": fd.qffl,
    "afl": fd.afl,
    "fedbn": lambda: shown(fd.fedbn()),
    "fedper": lambda: shown(fd.fedper()),
    "fedrep": lambda: shown(fd.fedrep(personal=["head.*", "norm.*"])),
    "lg-fedavg": lambda: shown(fd.lg_fedavg()),
    "ditto": lambda: shown(fd.ditto()),
    "apfl": lambda: shown(fd.apfl()),
    "pfedme": lambda: shown(fd.pfedme(local=2)),
    "fine-tuned": lambda: shown(fd.fine_tuned(fd.fedprox(0.1), after=1)),
    "ifca": lambda: shown(fd.ifca()),
    "ditto-int8": lambda: shown(fd.transformed(fd.ditto(), fd.int8())),
    "cyclic": fd.cyclic,
    "cyclic-shuffled": lambda: fd.cyclic(fd.scaffold(), shuffle=True),
    "gossip": fd.gossip,
    "gossip-moon": lambda: fd.gossip(fd.moon(), {"south": ["north", "west"]}),
    "hierarchical": lambda: fd.hierarchical({"land": ["north", "south"]}, base=fd.fedprox(0.1)),
    "hierarchical-int8": lambda: fd.transformed(fd.hierarchical({"land": ["north", "south"]}, 3), fd.int8()),
    "trimmed-mean": lambda: fd.fedprox(0.1, aggregator=fd.trimmed_mean(1)),  # of three sites it is the median
    "krum": lambda: fd.fedavg(aggregator=fd.krum(0)),
    "multi-krum": lambda: fd.fedavg(aggregator=fd.multi_krum(0, 2)),
    "bulyan": lambda: fd.fedavg(aggregator=fd.bulyan(0)),
    "geometric-median": lambda: fd.fedavg(aggregator=fd.geometric_median()),
    "centered-clipping": lambda: fd.fedavg(aggregator=fd.centered_clipping(0.1)),
    "norm-bounded": lambda: fd.fedavg(aggregator=fd.norm_bounded(0.1)),
    "sign-flip": lambda: fd.attacked(fd.fedavg(), {"north": fd.sign_flip()}),
    "gaussian": lambda: fd.attacked(fd.fedavg(), {"north": fd.gaussian()}),
    "alie": lambda: fd.attacked(fd.fedavg(), {"north": fd.alie(1.0), "south": fd.alie(1.0)}),
    "inner-product": lambda: fd.attacked(fd.fedavg(), share=0.7, attack=fd.inner_product()),
    "label-flip": lambda: fd.attacked(fd.fedavg(), {"north": fd.label_flip(2)}),
    "backdoor": lambda: fd.attacked(fd.fedavg(), {"north": fd.backdoor(np.zeros_like, 1, boost=3.0)}),
    "power-of-choice": lambda: by_loss(fd.fedavg(), 2),
    "bf16": lambda: fd.transformed(fd.fedavg(), fd.bf16()),
    "fp16": lambda: fd.transformed(fd.fedavg(), fd.fp16()),
    "int8": lambda: fd.transformed(fd.fedavg(), fd.int8()),
    "int4": lambda: fd.transformed(fd.fedavg(aggregator=fd.median()), fd.int4()),
    "qsgd": lambda: fd.transformed(fd.scaffold(), fd.qsgd()),
    "top-k": lambda: fd.transformed(fd.fedavg(), fd.top_k(0.1)),
    "random-k": lambda: fd.transformed(fd.fedavg(), fd.chain(fd.clip(0.1), fd.random_k(0.1), fd.bf16())),
    "powersgd": lambda: fd.transformed(fd.fedavg(), fd.powersgd(1)),
    "split": lambda: beginning(fd.split_learning(CUT, 2), CUT),
    "split-at-once": lambda: beginning(fd.split_learning(CUT, 2, turns=False), CUT),
    "split-u-shaped": lambda: beginning(fd.split_learning(CUT, 2, 3, labels="site", turns=False), CUT),
    "link": lambda: with_people(fd.link()),
    "vertical": lambda: told(with_people(fd.vertical("squared", label="north", batch_size=16, test=0.1))),
    "vertical-neural": lambda: told(with_people(fd.vertical("softmax", [dense(3)], [tanh(), dense(2)], label="west"))),
}


CUT = LayeredLearner([layer(lambda: nn.Linear(4, 6)), tanh(), dense(5), tanh(), dense(2)], 4, "softmax", batch_size=32)


def beginning(algorithm, learner):
    """The algorithm on a model of its own, which that of the Job is not."""
    return algorithm._replace(init=lambda params: algorithm.init(learner.init(fd.key(0))))


def with_people(algorithm):
    """The algorithm at sites whose rows are those of people that not all of them know."""

    def among(work):
        def at_site(payload, local, site):
            train = site.split.train
            ids = [f"p{i}" for i in range(len(train))][:: -1 if site.name == "south" else 1]
            return work(payload, local, site._replace(split=fd.Split(train=fd.Records(ids, train.x, train.y))))

        return at_site

    return algorithm._replace(works={name: among(work) for name, work in algorithm.works.items()})


def told(algorithm):
    """The same, whose model is the sum of all that the sites have of their own: each has other names for it."""

    def tell(payload, local, site):
        own = algorithm.personal.model(fd.Params({}), local)
        return None, fd.Update(fd.Params({"sum": np.float64(sum(x.sum() for x in own.values()))}))

    def round(state, context):
        inner = yield from algorithm.round(state["inner"], context)
        total = yield fd.Task("tell", state["own"], context.roster, reads="vertical")
        return {"inner": inner, "own": total.params}

    return algorithm._replace(
        init=lambda params: {"inner": algorithm.init(params), "own": fd.Params({"sum": np.float64(0)})},
        round=round,
        works={**algorithm.works, "tell": tell},
        params=lambda state: state["own"],
    )


class Net(nn.Module):
    """Logits and representations, with every kind of array."""

    def __init__(self):
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)

    def forward(self, x):
        z = torch.tanh(self.norm(self.body(x)))
        return self.head(F.dropout(z, 0.2, self.training)), z


def loss(made, y):
    return F.cross_entropy(made[0], y)


def logits(made):
    return made[0]


def load(site):
    rows = np.loadtxt(site.data / "rows.csv", delimiter=",", dtype=np.float32)[: 24 + 8 * (site.key.number() % 5)]
    return fd.Split(train=(rows[:, :-1], (rows[:, -1] > 1).astype(np.int64)))


def shown(algorithm):
    """The same, and beside its model the mean of those that sites have of their own, so that these are compared too."""
    own = algorithm.personal

    def show(payload, local, site):
        return None, fd.Update(payload if local is None else own.model(payload, local))

    def round(state, context):
        inner = yield from algorithm.round(state["inner"], context)
        model = algorithm.params(inner)
        returns = model.part("0").spec or model.spec  # clusters have one model each
        total = yield fd.Task("show", model, context.roster, returns=returns, reads=own.work)
        return {"inner": inner, "own": total.params}

    return fd.Algorithm(
        lambda params: {"inner": algorithm.init(params), "own": params},
        round,
        {**algorithm.works, "show": show},
        lambda state: join(w=algorithm.params(state["inner"]), own=state["own"]),
    )


def together(algorithms):
    """One Algorithm whose rounds are a round of each of these, apart from one another."""

    def round(state, context):
        after = {}
        for name, algorithm in algorithms.items():
            after[name] = yield from renamed(name, algorithm.round(state[name], context))
        return after

    works = {f"{name}.{work}": f for name, a in algorithms.items() for work, f in a.works.items()}
    return fd.Algorithm(
        lambda params: {name: a.init(params) for name, a in algorithms.items()},
        round,
        works,
        lambda state: join(**{name: a.params(state[name]) for name, a in algorithms.items()}),
    )


def renamed(name, steps):
    answer = None
    while True:
        try:
            asked = steps.send(answer)
        except StopIteration as end:
            return end.value
        one = isinstance(asked, fd.Task)
        answer = yield [
            task._replace(work=f"{name}.{task.work}", reads=task.reads and f"{name}.{task.reads}")
            for task in ([asked] if one else asked)
        ]
        answer = answer[0] if one else answer


def job(rounds=3):
    learner = TorchLearner(Net, loss, partial(torch.optim.SGD, lr=0.1), 2, 8, outputs=logits)
    every = together({name: make() for name, make in EVERY.items()})
    return fd.Job(every, learner, load, rounds=rounds, evaluate=0, privacy="none")
