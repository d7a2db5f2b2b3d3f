"""The problem in Apple's pfl, in one process, which is what it does by default.
Run in an environment of its own: python pfl_run.py PROBLEM TOLD."""

import os
import sys

os.environ["OMP_NUM_THREADS"] = "1"

import torch
import torch.nn.functional as F
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from problem import BATCH, LR, Told, read, started

PROBLEM = read(sys.argv[1])
torch.set_num_threads(1)


class Each(TrainingProcessCallback):
    def __init__(self, told):
        self.told = told

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        self.told.round()
        return False, Metrics()


def site(number):
    x, y = PROBLEM.sites[number]
    order = torch.randperm(len(x))  # it trains in the order that it is given
    tensors = [torch.from_numpy(x)[order], torch.from_numpy(y)[order]]
    return PyTorchTensorDataset(tensors, user_id=str(number), train_kwargs={}, eval_kwargs={})


def main():
    module, told = started(PROBLEM), Told(sys.argv[2])
    module.loss = lambda x, y, eval=False: F.cross_entropy(module(x), y)
    module.metrics = lambda x, y, eval=True: {"loss": Weighted(0.0, len(y))}
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    users = list(range(len(PROBLEM.sites)))
    data = FederatedDataset(site, get_user_sampler("minimize_reuse", users))
    backend = SimulatedBackend(training_data=data, val_data=data)
    params = NNAlgorithmParams(central_num_iterations=PROBLEM.rounds, evaluation_frequency=10**6,
                               train_cohort_size=PROBLEM.cohort, val_cohort_size=0)  # fmt: skip
    train = NNTrainHyperParams(local_num_epochs=1, local_learning_rate=LR, local_batch_size=BATCH)
    FederatedAveraging().run(params, backend, model, train, NNEvalHyperParams(local_batch_size=None),
                             callbacks=[Each(told)], send_metrics_to_platform=False)  # fmt: skip
    told.model({name: x.detach().numpy() for name, x in module.state_dict().items()})


if __name__ == "__main__":
    main()
