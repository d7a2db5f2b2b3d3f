"""Cases of test_algorithms_server.py that load jax, for a process of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import optax
import pytest

from foedus import fedavgm, fedopt
from foedus.algorithms.optimizers import of_optax
from test_algorithms_server import MEANS, START, stepped
from tiny import SITES, final, job, played


def test_optax_sgd_with_momentum_is_fedavgm_to_the_number() -> None:
    sgd = optax.sgd(1.0, momentum=0.5)
    assert final(played(job(fedopt(sgd), rounds=3), SITES)[0]) == final(played(job(fedavgm(0.5), rounds=3), SITES)[0])


@pytest.mark.parametrize(
    "made", [optax.adam(0.1), optax.adamw(0.1, weight_decay=0.5), optax.yogi(0.1), optax.lamb(0.1)]
)
def test_an_optax_transformation_keeps_its_state_between_rounds(made: Any) -> None:
    point = {"w": np.asarray(START["w"])}
    state = made.init(point)
    for mean in MEANS:
        way, state = made.update({"w": -mean["w"]}, state, point)
        point = optax.apply_updates(point, way)
    assert stepped(of_optax(made)) == pytest.approx(np.asarray(point["w"]).tolist(), rel=1e-6)
