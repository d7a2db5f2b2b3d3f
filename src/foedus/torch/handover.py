"""A trained model for others: an ordinary module, and the ONNX file of it.
What builds a model comes in; onnx and onnxscript only to write that file."""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from foedus import frames, home
from foedus.errors import FoedusError, Missing
from foedus.files import write_atomic
from foedus.keys import Key
from foedus.params import Params
from foedus.torch import build
from foedus.torch.batches import tensor
from foedus.torch.machine import Machine

if TYPE_CHECKING:
    from foedus.torch.learner import TorchLearner


def module(learner: TorchLearner, result: Any) -> nn.Module:
    """A model of a Result's arrays (or its params, its file or its RUN), on the CPU, in evaluation mode."""
    if isinstance(result, (str, os.PathLike)):
        result = frames.read_model(home.model_file(result))
    params = getattr(result, "params", result)
    machine = Machine(build.built(learner.model, Key(("handover",)), learner.dtype), torch.device("cpu"))
    kinds = {leaf.name: leaf.kind for leaf in machine.arrays.params.spec}
    machine.load(params if isinstance(params, Params) else Params(params, kinds))
    machine.mode(training=False)
    return machine.model


def onnx(learner: TorchLearner, result: Any, path: str | os.PathLike[str], example: Any) -> Path:
    """Writes an ONNX file; `example` is a batch of inputs. Raises Missing, and FoedusError for what ONNX cannot say."""
    for name in ("onnx", "onnxscript"):
        if importlib.util.find_spec(name) is None:
            raise Missing(name, "onnx")
    made = module(learner, result)
    batch = tensor(np.asarray(example))
    batch = batch.to(learner.dtype or torch.float32) if batch.is_floating_point() else batch
    if len(batch) < 2:
        raise FoedusError("onnx(example=…): give two examples or more, so that it is seen that their number is free")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                made, (batch,), dynamo=True, input_names=["x"], output_names=["y"], verbose=False,
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            )  # fmt: skip
    except Exception as error:  # whatever the exporter says of a model
        said = str(error).strip().splitlines()
        why = said[0] if said else repr(error)
        raise FoedusError(f"this model cannot be said in ONNX ({why}); save it as safetensors") from error
    assert program is not None
    write_atomic(Path(path), program.model_proto.SerializeToString())
    return Path(path)
