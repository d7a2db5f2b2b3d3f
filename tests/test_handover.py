"""A trained torch model handed over: an ordinary module, and an ONNX file that another runtime computes alike."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import foedus as fd
from foedus.errors import FoedusError, Missing
from foedus.torch import TorchLearner


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.5),
        nn.Linear(16, 3),
    )  # fmt: skip


class Sorted(nn.Module):
    """What no file of operations can say: a way that depends on the numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Linear(4, 2)

    def forward(self, x: Any) -> Any:
        return self.w(x) if float(x.sum()) > 0 else self.w(-x)


def trained(model: Any, *shape: int) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, *shape)).astype(np.float32), rng.integers(0, 2, 40)
    learner = TorchLearner(model, nn.CrossEntropyLoss(), partial(torch.optim.SGD, lr=0.1), metrics=["accuracy"])
    sites = {"a": fd.Split((x[:25], y[:25]), (x[25:], y[25:])), "b": fd.Split((x[25:], y[25:]), (x[:25], y[:25]))}
    return learner, fd.Job(fd.fedavg(), learner, rounds=2).run(sites=sites, backend="local"), x


@pytest.mark.parametrize(
    ("model", "shape"), [(convolutions, (1, 9, 9)), (partial(nn.Linear, 4, 2), (4,))], ids=["cnn", "line"]
)
def test_onnx_computes_what_the_module_does_for_any_number_of_examples(model: Any, shape: Any, tmp_path: Path) -> None:
    learner, result, x = trained(model, *shape)
    made = learner.module(result)
    assert not made.training and made is not learner.module(result)
    for name, value in made.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), result.params[name])
    path = learner.onnx(result, tmp_path / "model.onnx", x[:3])
    session = onnxruntime.InferenceSession(path)
    for count in (1, 7):
        (found,) = session.run(None, {"x": x[:count]})
        np.testing.assert_allclose(found, made(torch.from_numpy(x[:count])).detach().numpy(), atol=1e-5)
    again = learner.module(fd_model(result, tmp_path))
    np.testing.assert_array_equal(again(torch.from_numpy(x)).detach(), made(torch.from_numpy(x)).detach())


def fd_model(result: Any, folder: Path) -> Any:
    """The arrays of the saved file."""
    from safetensors.numpy import load_file

    return load_file(result.save(folder / "model.safetensors"))


def test_what_cannot_be_said_in_onnx_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner, result, x = trained(Sorted, 4)
    with pytest.raises(FoedusError, match=r"cannot be said in ONNX .*; save it as safetensors"):
        learner.onnx(result, tmp_path / "model.onnx", x[:3])
    with pytest.raises(FoedusError, match="two examples or more"):
        learner.onnx(result, tmp_path / "model.onnx", x[:1])
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else real(name))
    with pytest.raises(Missing, match=r"foedus\[onnx\]"):
        learner.onnx(result, tmp_path / "model.onnx", x[:3])
    assert not list(tmp_path.iterdir())
