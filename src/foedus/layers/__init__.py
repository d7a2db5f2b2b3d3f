"""Networks of layers that can be cut between sites, and the learner that has one whole.
Nothing but numpy comes in; `foedus.torch.layer` makes a layer of any torch module.
"""

from foedus.layers.kinds import dense, linear, relu, shift, tanh
from foedus.layers.learner import LayeredLearner, measured
from foedus.layers.losses import Loss, logistic, loss_of, softmax, squared
from foedus.layers.stack import Layer, Stack, checked, down, merged

__all__ = [
    "Layer",
    "LayeredLearner",
    "Loss",
    "Stack",
    "checked",
    "dense",
    "down",
    "linear",
    "logistic",
    "loss_of",
    "measured",
    "merged",
    "relu",
    "shift",
    "softmax",
    "squared",
    "tanh",
]
