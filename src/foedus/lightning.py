"""LightningLearner: a site's round is a `Trainer.fit` of its LightningModule, without files, loggers or output.
lightning comes in here and is an extra; machines, metrics and corrections are TorchLearner's."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from foedus.errors import JobError, Missing
from foedus.torch import TorchLearner
from foedus.torch.loop import Context

try:
    import lightning
except ModuleNotFoundError as error:
    raise Missing("lightning", "lightning") from error

SILENT = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "limit_val_batches": 0,
    "num_sanity_val_steps": 0,
    "devices": 1,
    "max_epochs": 1,
}
OURS = ("callbacks", "default_root_dir", "accelerator")


@final
class LightningLearner(TorchLearner):
    """A learner whose model is a LightningModule, which says its training step and its optimizers.

    model: its class, or a function or partial without arguments; a module is copied. Params are its `state_dict`.
    trainer: arguments of lightning.Trainer, such as {"max_epochs": 2, "gradient_clip_val": 1.0}; by default one epoch
        on one device, and nothing is written. `callbacks`: a function of nothing that makes them for each round.
    loaders: (data, ctx) -> what `fit` trains on: a DataLoader that shuffles by `ctx.generator`, of `batch_size` and
        `collate`, by default.
    loss, metrics, outputs, reads, dtype, device: as a TorchLearner's, for what `forward` returns of (input, target).

    A site's optimizers are new each round. What `self.log` says of an epoch is reported as `train_…`; FedProx, SCAFFOLD
    and others change the gradients before each step, of modules with automatic optimisation or their own.
    """

    def __init__(
        self,
        model: Any,
        trainer: Mapping[str, Any] | None = None,
        *,
        callbacks: Callable[[], Sequence[Any]] | None = None,
        loaders: Callable[[Any, Context], Any] | None = None,
        loss: Callable[..., Any] | None = None,
        batch_size: int = 32,
        metrics: Sequence[Any] = (),
        collate: Callable[..., Any] | None = None,
        outputs: Callable[[Any], Tensor] | None = None,
        reads: Any = "logits",
        dtype: Any = None,
        device: str = "auto",
    ) -> None:
        taken = [name for name in OURS if name in (trainer or {})]
        if taken:
            raise JobError(f"LightningLearner(trainer={{{taken[0]!r}: …}}): say callbacks=… or device=… instead")
        self.trainer, self.callbacks, self.loaders = dict(trainer or {}), callbacks, loaders
        super().__init__(
            model, loss, batch_size=batch_size, metrics=metrics, collate=collate, outputs=outputs, reads=reads,
            dtype=dtype, device=device, train=self.fit,
        )  # fmt: skip

    def describe(self) -> dict[str, Any]:
        """The settings, for the Job's description."""
        return super().describe() | {"trainer": {name: str(x) for name, x in sorted(self.trainer.items())}}

    def fit(self, model: Any, split: Any, ctx: Context) -> Mapping[str, float]:
        """One round: the means of what the module logged and of its loss. Raises JobError for what is no module."""
        if not isinstance(model, lightning.LightningModule):
            raise JobError(
                f"a LightningLearner trains a LightningModule, not {type(model).__name__}: take a TorchLearner"
            )
        seen = _Seen(ctx)
        more = [*(self.callbacks() if self.callbacks else ()), seen]
        kind = {"cuda": "gpu"}.get(ctx.device.type, ctx.device.type)
        loader = self.loaders(split.train, ctx) if self.loaders else self._loader(split.train, ctx)
        with tempfile.TemporaryDirectory() as folder, _quiet():
            trainer = lightning.Trainer(
                **SILENT | self.trainer, accelerator=kind, callbacks=more, default_root_dir=folder
            )
            try:
                trainer.fit(model, loader)
                logged = {name: float(x) for name, x in trainer.callback_metrics.items() if x.numel() == 1}
            finally:
                model.trainer = None
        return seen.losses() | {name.removeprefix("train_"): x for name, x in logged.items()}

    def _loader(self, data: Any, ctx: Context) -> DataLoader[Any]:
        collate = self.collate or default_collate
        return DataLoader(data, self.batch_size, shuffle=True, generator=ctx.generator, collate_fn=collate)


class _Seen(lightning.Callback):
    """Applies the algorithm's correction before each step, and adds up the losses."""

    def __init__(self, ctx: Context) -> None:
        self.ctx, self.found = ctx, list[Tensor]()

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.ctx.correct(module, lr=float(optimizer.param_groups[0]["lr"]))

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            self.found.append(loss.detach())
        self.ctx.progress()

    def losses(self) -> dict[str, float]:
        return {"loss": float(torch.stack(self.found).mean())} if self.found else {}


@contextmanager
def _quiet() -> Iterator[None]:
    """Advice of the library on loaders, loggers and hardware is not the user's to follow here."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
