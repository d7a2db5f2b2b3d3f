"""NumpyLearner's batches: which rows a gradient sees, and in which order."""

import numpy as np
import pytest

import foedus as fd
from foedus.numpy import NumpyLearner

ROWS = np.arange(5.0)


def seen(batch_size, epochs=1, seed=1):
    """The rows of each gradient that a Task asks for."""
    batches = []

    def gradient(p, x, y):
        batches.append(x[:, 0].tolist())
        assert (y == x[:, 0]).all()  # labels go with their rows
        return np.zeros(len(x)), {"w": np.zeros(1)}

    learner = NumpyLearner({"w": np.zeros(1)}, gradient, epochs=epochs, batch_size=batch_size)
    split = fd.Split(train=(ROWS[:, None], ROWS))
    learner.train(learner.init(fd.key(seed)), split, fd.key(seed, 1, "north"), None)
    return batches


@pytest.mark.parametrize("batch_size", [None, 5, 32])
def test_an_epoch_of_one_batch_sees_the_rows_in_their_order(batch_size):
    assert seen(batch_size, epochs=2) == [ROWS.tolist()] * 2


def test_batches_hold_every_row_once_an_epoch_in_an_order_that_the_key_draws():
    batches = seen(2, epochs=2)
    assert [len(batch) for batch in batches] == [2, 2, 1, 2, 2, 1]
    first, second = ([row for batch in epoch for row in batch] for epoch in (batches[:3], batches[3:]))
    assert sorted(first) == sorted(second) == ROWS.tolist()
    assert first != second and seen(2, epochs=2) == batches and seen(2, epochs=2, seed=2) != batches
