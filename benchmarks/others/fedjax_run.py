"""The problem in FedJAX; its MLP is written in jax with the same first parameters.
Run in an environment of its own: python fedjax_run.py PROBLEM TOLD."""

import os
import sys

os.environ |= {"OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}

import fedjax
import jax
import jax.numpy as jnp
import numpy as np
from problem import BATCH, LR, Told, read

PROBLEM = read(sys.argv[1])
jax.tree_map = jax.tree_util.tree_map  # its last release is older than jax's removal of that name


def loss(params, batch, rng):
    h = jax.nn.relu(batch["x"] @ params["first.weight"].T + params["first.bias"])
    logits = h @ params["last.weight"].T + params["last.bias"]
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), batch["y"][:, None], 1).mean()


def main():
    told = Told(sys.argv[2])
    sites = {str(i).encode(): {"x": x, "y": y} for i, (x, y) in enumerate(PROBLEM.sites)}
    data = fedjax.InMemoryFederatedData(sites)
    algorithm = fedjax.algorithms.fed_avg.federated_averaging(
        jax.grad(loss), fedjax.optimizers.sgd(LR), fedjax.optimizers.sgd(1.0),
        fedjax.ShuffleRepeatBatchHParams(batch_size=BATCH, num_epochs=1))  # fmt: skip
    sampler = fedjax.client_samplers.UniformGetClientSampler(data, num_clients=PROBLEM.cohort, seed=0)
    state = algorithm.init({name: jnp.asarray(x) for name, x in PROBLEM.start.items()})
    for round in range(PROBLEM.rounds):
        sampler.set_round_num(round)
        state, _ = algorithm.apply(state, sampler.sample())
        jax.block_until_ready(state.params)
        told.round()
    told.model({name: np.asarray(x) for name, x in state.params.items()})


if __name__ == "__main__":
    main()
