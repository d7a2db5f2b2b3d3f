"""MonaiLearner: segmentation of images of any size, trained on what random transforms cut, measured window by window.
monai's networks, losses and windows come in; all else is TorchLearner's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, final

import numpy as np
import torch
from monai.data import list_data_collate
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from torch import nn

from foedus import metrics as measures
from foedus.core import Correct, Fit
from foedus.data import Split, Subset
from foedus.errors import Alone, JobError
from foedus.keys import Key
from foedus.monai.overlap import hausdorff_sums
from foedus.params import Array, Params
from foedus.progress import progress
from foedus.torch import TorchLearner
from foedus.torch.arrays import as_array

APART = "images of any size are trained on and measured one site after another"


def unet(
    dimensions: int,
    inputs: int = 1,
    classes: int = 2,
    channels: Sequence[int] = (16, 32, 64, 128),
    norm: str = "BATCH",
    residual: int = 2,
) -> Callable[[], nn.Module]:
    """A function making monai's U-Net for slices (2) or volumes (3); sides of its input are multiples of 2^(depth - 1).

    With `norm="BATCH"` sites may keep their own normalisation: `fd.fedbn()`. Raises JobError.
    """
    if dimensions not in (2, 3) or classes < 2:
        raise JobError(f"unet(dimensions={dimensions}, classes={classes}): 2 or 3 dimensions, 2 classes or more")
    strides = [2] * (len(channels) - 1)
    return partial(UNet, dimensions, inputs, classes, list(channels), strides, num_res_units=residual, norm=norm)


@final
class MonaiLearner(TorchLearner):
    """A TorchLearner of examples (image, label): `foedus.monai.volumes`, or any dataset of (channels, …) and (1, …).

    augment: a monai transform of {"image", "label"}, such as Compose of RandCropByPosNegLabeld and RandFlipd; in
        training alone, drawn by the Task's key. Transforms that cut several samples of a case make larger batches.
    window: the size that the model sees at once; measuring moves it over the whole image with `overlap` (Gaussian
        weights). None: the whole image at once.
    loss: Dice and cross-entropy of logits by default. The rest is as in TorchLearner.
    """

    def __init__(
        self,
        model: Any,
        loss: Callable[..., Any] | None = None,
        optimizer: Callable[..., Any] | None = None,
        epochs: int = 1,
        batch_size: int = 2,
        metrics: Sequence[Any] = (),
        *,
        augment: Any = None,
        window: Sequence[int] | None = None,
        overlap: float = 0.25,
        **more: Any,
    ) -> None:
        if not 0 <= overlap < 1:
            raise JobError(f"MonaiLearner(overlap={overlap}): a share of the window, at least 0 and below 1")
        self.augment, self.window, self.overlap = augment, None if window is None else tuple(window), overlap
        loss = loss or DiceCELoss(to_onehot_y=True, softmax=True)
        more.setdefault("collate", _collated)
        super().__init__(model, loss, optimizer or _adam, epochs, batch_size, metrics, **more)

    def train(self, params: Params, split: Split, key: Key, correct: Correct | None) -> Fit:
        """As a TorchLearner's, on what `augment` makes of the examples."""
        if self.augment is not None:
            split = Split(Augmented(split.train, self.augment, key("augment")))
        return super().train(params, split, key, correct)

    def unfit(self) -> str:
        """Why its examples have no gradients of their own, with the remedy; "" where they have."""
        if self.augment is not None:
            return (
                "crops, of which a case has several, so that clipping them does not clip the case: leave out augment=…"
            )
        return super().unfit()

    def together(self, calls: Sequence[Any]) -> list[Any]:
        raise Alone(APART)

    def groups(self, params: Params, splits: Sequence[Split]) -> list[list[int]]:
        raise Alone(APART)

    def evaluate_together(self, calls: Sequence[Any]) -> list[Any]:
        raise Alone(APART)

    def evaluate(self, params: Params, data: Any, metrics: Sequence[Any]) -> dict[str, Array]:
        """name -> sums over the cases of `data`, each whole; distances are in mm where the data has `spacing`."""
        wanted = list(map(measures.metric, metrics))
        with self.measuring(params, all=True):
            return measures.add(self._measured(data, i, wanted) for i in range(len(data)))

    def _measured(self, data: Any, index: int, wanted: Sequence[measures.Metric]) -> Mapping[str, Array]:
        assert self.loss is not None
        batch = self.feed.batch([torch.as_tensor(np.asarray(x))[None] for x in data[index]], 1)
        logits = self._segmented(batch.x)
        outputs, targets, spacing = as_array(logits.float().cpu()), as_array(batch.y.cpu()), spacing_of(data, index)
        found = {}
        for m in wanted:
            if m.name == "loss":
                found["loss"] = measures.moments(np.array([float(self.loss(logits, batch.y))]))
            elif isinstance(m.sums, partial) and m.sums.func is hausdorff_sums:
                found[m.name] = m.sums(outputs, targets, spacing=spacing)
            else:
                found |= measures.measure([m], outputs, targets)
        progress()
        return found

    def _segmented(self, image: torch.Tensor) -> torch.Tensor:
        """The logits of one image, (1, classes, …)."""
        if self.window is None:
            made = self.machine.model(image)
        else:
            made = sliding_window_inference(image, self.window, 4, self.machine.model, self.overlap, mode="gaussian")
        if not isinstance(made, torch.Tensor):
            raise JobError(f"the model returns {type(made).__name__}: a segmentation returns logits (n, classes, …)")
        return made


class Augmented:
    """Examples after a random transform, each time that one is taken by a name of its own."""

    def __init__(self, data: Any, transform: Any, key: Key) -> None:
        self.data, self.transform, self.key, self.taken = data, transform, key, 0

    def __len__(self) -> int:
        return len(self.data)

    def state_dict(self) -> int:
        return self.taken

    def load_state_dict(self, taken: int) -> None:
        self.taken = taken

    def __getitem__(self, index: int) -> Any:
        image, label = self.data[index]
        if hasattr(self.transform, "set_random_state"):
            self.transform.set_random_state(self.key(self.taken).number() % 2**32)
        self.taken += 1
        made = self.transform({"image": image.copy(), "label": label.copy()})
        return [(x["image"], x["label"]) for x in (made if isinstance(made, list) else [made])]


def spacing_of(data: Any, index: int) -> Sequence[float] | None:
    """The size of an example's voxels, if its dataset knows it."""
    while isinstance(data, Subset):
        data, index = data.data, int(data.indices[index])
    return data.spacing(index) if hasattr(data, "spacing") else None


def _collated(examples: list[Any]) -> Any:
    """Images and labels of examples, of which each may be several."""
    pairs = [pair for found in examples for pair in (found if isinstance(found, list) else [found])]
    return [_plain(list_data_collate(list(part))) for part in zip(*pairs, strict=True)]


def _plain(x: Any) -> torch.Tensor:
    """A tensor without what monai attaches to it."""
    made: torch.Tensor = x.as_tensor() if hasattr(x, "as_tensor") else torch.as_tensor(x)
    return made.contiguous()


def _adam(parameters: Iterator[Any]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3)
