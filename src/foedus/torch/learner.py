"""TorchLearner: a site's work in PyTorch, declared in one call or written as one's own loop.
Machines, batches and losses come in; what it knows of the federation is the contract."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foedus import metrics as measures
from foedus.core import Correct, Fit
from foedus.data import Pairs, Split
from foedus.errors import JobError, Refused
from foedus.keys import Key, key
from foedus.loops import Loop, fitted
from foedus.params import Array, Params
from foedus.progress import progress
from foedus.torch import losses as lost
from foedus.torch.arrays import as_array, snapshot
from foedus.torch.batches import Batch, Feed, measured_at_once, order, outputs
from foedus.torch.loop import Context
from foedus.torch.machine import Machine
from foedus.torch.randomness import named, reseed
from foedus.torch.sgd import Optimizer, optimizer

MODEL, EVALUATION = key(0, "model"), key(0, "evaluate")
