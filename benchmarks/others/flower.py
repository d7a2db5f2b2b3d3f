"""The problem in Flower's simulation, as its documentation shows it: ServerApp, ClientApp, FedAvg.
Run in an environment of its own: python flower.py PROBLEM TOLD."""

import os
import sys

os.environ |= {"OMP_NUM_THREADS": "1", "RAY_DISABLE_DASHBOARD": "1", "FLWR_TELEMETRY_ENABLED": "0"}

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from problem import Told, network, read, started, trained

PROBLEM = read(sys.argv[1])
client, server = ClientApp(), ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    torch.set_num_threads(1)
    x, y = PROBLEM.sites[int(context.node_config["partition-id"])]
    model = network(PROBLEM.model)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    loss = trained(model, torch.from_numpy(x), torch.from_numpy(y))
    metrics = MetricRecord({"loss": loss, "num-examples": len(x)})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    told = Told(sys.argv[2])

    def ended(round: int, arrays: ArrayRecord) -> MetricRecord:
        if round:
            told.round()
        return MetricRecord({"round": float(round)})

    share, count = PROBLEM.cohort / len(PROBLEM.sites), len(PROBLEM.sites)
    strategy = FedAvg(fraction_train=share, fraction_evaluate=0.0, min_train_nodes=PROBLEM.cohort,
                      min_evaluate_nodes=0, min_available_nodes=count)  # fmt: skip
    first = ArrayRecord(started(PROBLEM).state_dict())
    found = strategy.start(grid=grid, initial_arrays=first, num_rounds=PROBLEM.rounds, evaluate_fn=ended)
    told.model({name: x.numpy() for name, x in found.arrays.to_torch_state_dict().items()})


if __name__ == "__main__":
    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server_app=server, client_app=client, num_supernodes=len(PROBLEM.sites), backend_config=resources)
