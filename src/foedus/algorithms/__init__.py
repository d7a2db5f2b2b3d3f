"""What is computed: one method a file, each a few pure functions given to `rounds`.
Aggregators and the contract may come in; no backend, journal or network."""

from foedus.algorithms.afl import afl
from foedus.algorithms.alone import alone
from foedus.algorithms.among import among
from foedus.algorithms.apfl import apfl
from foedus.algorithms.buffered import alike
from foedus.algorithms.cyclic import cyclic
from foedus.algorithms.ditto import ditto
from foedus.algorithms.fedadagrad import adagrad, fedadagrad
from foedus.algorithms.fedadam import adam, fedadam
from foedus.algorithms.fedasync import fedasync
from foedus.algorithms.fedavg import fedavg
from foedus.algorithms.fedavgm import fedavgm, momentum
from foedus.algorithms.fedbn import fedbn
from foedus.algorithms.fedbuff import fedbuff
from foedus.algorithms.feddyn import feddyn
from foedus.algorithms.fedexp import fedexp
from foedus.algorithms.fednova import fednova
from foedus.algorithms.fedopt import ServerOptimizer, fedopt
from foedus.algorithms.fedper import fedper
from foedus.algorithms.fedprox import fedprox
from foedus.algorithms.fedrep import fedrep
from foedus.algorithms.fedyogi import fedyogi, yogi
from foedus.algorithms.fine_tuned import fine_tuned
from foedus.algorithms.gossip import gossip
from foedus.algorithms.hierarchical import hierarchical
from foedus.algorithms.ifca import ifca
from foedus.algorithms.lg_fedavg import lg_fedavg
from foedus.algorithms.moon import moon
from foedus.algorithms.pfedme import pfedme
from foedus.algorithms.qffl import qffl
from foedus.algorithms.rounds import advance, delta, number, rounds
from foedus.algorithms.scaffold import scaffold
from foedus.algorithms.swarm import swarm

__all__ = [
    "ServerOptimizer",
    "adagrad",
    "adam",
    "advance",
    "afl",
    "alike",
    "alone",
    "among",
    "apfl",
    "cyclic",
    "delta",
    "ditto",
    "fedadagrad",
    "fedadam",
    "fedasync",
    "fedavg",
    "fedavgm",
    "fedbn",
    "fedbuff",
    "feddyn",
    "fedexp",
    "fednova",
    "fedopt",
    "fedper",
    "fedprox",
    "fedrep",
    "fedyogi",
    "fine_tuned",
    "gossip",
    "hierarchical",
    "ifca",
    "lg_fedavg",
    "momentum",
    "moon",
    "number",
    "pfedme",
    "qffl",
    "rounds",
    "scaffold",
    "swarm",
    "yogi",
]
