"""TransformersLearner: Hugging Face models at the sites, of which adapters (LoRA) travel, or all that is trained.
transformers and peft come in here and are an extra; machines and batches are torch's room's."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import chain, count, islice
from typing import Any, NamedTuple, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from foedus import metrics as measures
from foedus.core import Correct, Fit
from foedus.data import Split
from foedus.errors import JobError, Missing
from foedus.keys import Key, key
from foedus.loops import Loop, fitted
from foedus.midway import Midway
from foedus.params import Array, Params
from foedus.params import digest as digest_of
from foedus.progress import progress
from foedus.torch import build
from foedus.torch.arrays import as_array, snapshot
from foedus.torch.machine import Machine
from foedus.torch.randomness import named, reseed
from foedus.torch.sgd import optimizer as stepper
from foedus.torch.standing import Standing

try:
    import peft
    import transformers
except ModuleNotFoundError as error:
    raise Missing("transformers with peft", "transformers") from error

BASE = "base/digest"  # travels with adapters: a site whose base is another one says so
PLACE = "base_model_name_or_path"  # which peft writes into a LoraConfig
IGNORED = -100  # the label of what counts for no loss, as in transformers
MODEL, EVALUATED = key(0, "model"), key(0, "evaluate")


class Made(NamedTuple):
    """A model with its adapters, the part of it that travels, and the digest of the rest."""

    model: nn.Module
    part: Travelling
    base: str


@final
class TransformersLearner:
    """A learner whose model is one of transformers; with `lora` only its adapters are trained and travel.

    base: a folder of `save_pretrained`, a PretrainedConfig, or a function making a model, the same at every site.
    lora: a peft.LoraConfig (with `modules_to_save`, these travel too); None trains the whole model.
    auto: the class that makes a model of a folder or a config, as transformers.AutoModelForSequenceClassification.
    collate: examples -> the model's named arguments, as a DataCollator does. `loss`: (model, batch) -> mean loss, by
        default what the model returns for its labels. `read`: (made, batch) -> (outputs, targets) for metrics.
    optimizer: parameters -> optimizer, made new for each Task; AdamW with 1e-3 by default. epochs, steps, batch_size,
        schedule, clip: as a TorchLearner's.
    ranks: {site: rank} or a function of the site's name, at most lora.r. A site of a lower rank trains the first rows
        of A and columns of B and leaves the others as they are (truncation and zero-padding of HetLoRA: Cho et al.
        2024, "Heterogeneous LoRA for federated fine-tuning of on-device foundation models", of differences here).
    freeze_a: A stays as it was drawn and B alone is trained, so that the mean of the sites' B, of any ranks, is the
        mean of their products B·A exactly (FFA-LoRA: Sun et al. 2024, "Improving LoRA in privacy-preserving federated
        learning").
    digest: of the base, where the Job is to name it; each site compares it. Raises JobError.
    """

    def __init__(
        self,
        base: Any,
        lora: Any = None,
        *,
        auto: Any = transformers.AutoModelForCausalLM,
        collate: Callable[[list[Any]], Mapping[str, Any]] | None = None,
        loss: Callable[[Any, Mapping[str, Any]], Tensor] | None = None,
        read: Callable[[Any, Mapping[str, Any]], tuple[Any, Any]] | None = None,
        optimizer: Callable[..., Any] | None = None,
        epochs: int = 1,
        steps: int | None = None,
        batch_size: int = 8,
        schedule: Callable[[int], float] | None = None,
        clip: float | None = None,
        ranks: Mapping[str, int] | Callable[[str], int] | None = None,
        freeze_a: bool = False,
        digest: str | None = None,
        metrics: Sequence[Any] = (),
        dtype: Any = None,
        device: str = "auto",
    ) -> None:
        if lora is None and (ranks is not None or freeze_a or digest):
            raise JobError("ranks, freeze_a and digest are of adapters: give lora=peft.LoraConfig(…)")
        if min(epochs, batch_size, 1 if steps is None else steps) < 1:
            raise JobError("TransformersLearner: epochs, steps and batch_size are whole numbers of at least 1")
        self.base, self.lora, self.auto, self.collate, self.loss = base, lora, auto, collate or default_collate, loss
        self.read, self.optimizer, self.epochs, self.steps = read or _read, optimizer or _adamw, epochs, steps
        self.batch_size, self.schedule, self.clip, self.ranks = batch_size, schedule, clip, ranks
        self.freeze_a, self.digest, self.metrics = freeze_a, digest, list(metrics)
        self.dtype, self.device = build.floating(dtype), device

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("made", "machine")}

    def describe(self) -> dict[str, Any]:
        """The settings, for the Job's description; of a folder its name, for it lies elsewhere at each site."""
        plain = {k: getattr(self, k) for k in ("epochs", "steps", "batch_size", "clip", "freeze_a", "digest", "device")}
        base = self.base.to_dict() if hasattr(self.base, "to_dict") else _named(self.base)
        lora = (
            None if self.lora is None else {k: _said(v) for k, v in sorted(self.lora.to_dict().items()) if k != PLACE}
        )
        ranks = dict(self.ranks) if isinstance(self.ranks, Mapping) else _named(self.ranks)
        named = {k: _named(getattr(self, k)) for k in ("auto", "collate", "loss", "read", "optimizer", "schedule")}
        return plain | named | {"base": base, "lora": lora, "ranks": ranks, "dtype": str(self.dtype)}

    @cached_property
    def made(self) -> Made:
        """This process's model. Raises JobError where its base is not the one that the Job names."""
        return self._make(MODEL)

    @cached_property
    def machine(self) -> Machine:
        """What travels, used for one site after another."""
        self.made.model.to(build.device(self.device))
        return Machine(self.made.part, build.device(self.device))

    @property
    def bytes(self) -> dict[str, int]:
        """What an update weighs, and what the whole model would."""
        model = {id(p): p for p in (*self.made.model.parameters(), *self.made.model.buffers())}
        return {"update": self.machine.arrays.params.nbytes, "model": sum(p.nbytes for p in model.values())}

    def ready(self) -> None:
        """Raises JobError where this machine lacks the device that is named."""
        if self.device != "auto":
            build.device(self.device)

    def init(self, key: Key) -> Params:
        """The first adapters (B is zero, so that they change nothing), with the base's digest; or the whole model."""
        made = self._make(key)
        return self._sent(snapshot(made.part), made.base)

    def train(self, params: Params, split: Split, key: Key, correct: Correct | None) -> Fit:
        """What travels after local training from `params`, with examples, steps and the sum of step sizes.

        Raises JobError where the site's base is another one than the server's, or a rank is none.
        """
        machine, site = self._loaded(params), str(key.names[3]) if len(key.names) > 3 else ""
        cut = self._cut(site)
        loop, device = Loop(None, correct), machine.device
        machine.mode(training=True)
        kept = self._truncated(cut)
        factor = self.schedule(int(key.names[1])) if self.schedule else 1.0
        steps = stepper(self.optimizer, machine.trained, factor)
        total = self.steps or self.epochs * -(-len(split.train) // self.batch_size)
        try:
            with named(key("torch"), device, everything=True):
                standing = Standing(machine, Midway(key, params, len(split.train)), steps.of, loop, everything=True)
                left = islice(self._batches(len(split.train), key), standing.step, total)
                for i, rows in enumerate(left, standing.step):
                    reseed(key("step", i), device)
                    batch = self._batch(split.train, rows)
                    machine.clear()
                    loss = self._loss(self.made.model, batch)
                    loss.backward()  # type: ignore[no-untyped-call]
                    loop.counted(steps.lr)
                    if correct is not None:
                        machine.correct(correct)
                    if self.clip is not None:
                        nn.utils.clip_grad_norm_(machine.trained, self.clip)
                    steps.step()
                    standing.passed((loss.detach(), len(rows)), i + 1 == total)
        finally:
            machine.clear()
        with torch.no_grad():
            for tensor, mask, old in kept:
                tensor[mask] = old[mask]
        mean = float(np.mean([float(x) for x, _ in standing.seen]))
        fit = fitted(loop, self._sent(machine.read(), self.made.base), split, {"loss": mean})
        return fit._replace(params=fit.params.ordered(params.spec))

    def evaluate(self, params: Params, data: Any, metrics: Sequence[Any]) -> dict[str, Array]:
        """name -> sums over `data`; the loss of labels that are tokens counts by token."""
        machine = self._loaded(params)
        machine.mode(training=False)
        wanted = [m for m in map(measures.metric, metrics) if m.name != "loss"]
        found: list[Mapping[str, Any]] = []
        with named(EVALUATED, machine.device, everything=True), torch.no_grad():
            for at in range(0, len(data), self.batch_size):
                rows = np.arange(at, min(at + self.batch_size, len(data)))
                batch = self._batch(data, rows)
                made = self.made.model(**batch) if self.loss is None or wanted else None
                read = self.read(made, batch) if made is not None and "labels" in batch else None
                loss = float(
                    made.loss if self.loss is None and made is not None else self._loss(self.made.model, batch)
                )
                count = len(rows) if read is None else read[1].size
                found.append(
                    {"loss": np.array([loss * count, count])} | (measures.measure(wanted, *read) if read else {})
                )
                progress()
        return measures.add(found)

    def save(self, params: Params, folder: str | os.PathLike[str]) -> None:
        """Writes `params` as a folder that peft (of a whole model: transformers) loads."""
        self._loaded(params)
        kept = {"save_embedding_layers": False} if self.lora is not None else {}
        self.made.model.save_pretrained(folder, **kept)  # type: ignore[operator]

    def _make(self, key: Key) -> Made:
        base = self._base() if self.lora is not None else None
        if base is None:
            model = self._base(key)
            return Made(model, Travelling(model, _state(model)), "")
        digest = digest_of({name: as_array(x.detach()) for name, x in base.state_dict().items()})
        if self.digest not in (None, digest):
            raise JobError(_another(digest, str(self.digest)))
        with named(key, build.CPU, everything=True), _quiet():
            model = peft.get_peft_model(base, copy.deepcopy(self.lora))  # which it writes into
            arrays = peft.get_peft_model_state_dict(
                model, state_dict=model.state_dict(keep_vars=True), save_embedding_layers=False
            )
        for name, x in arrays.items():
            x.requires_grad_(not (self.freeze_a and _axis(name) == 0))
        return Made(model, Travelling(model, arrays), digest)

    def _base(self, key: Key = MODEL) -> nn.Module:
        """The model without adapters; what is drawn for it is drawn by `key`."""
        if isinstance(self.base, (str, os.PathLike)):
            found: nn.Module = self.auto.from_pretrained(self.base, local_files_only=True)
            return found.to(self.dtype) if self.dtype else found
        config = self.base if isinstance(self.base, transformers.PreTrainedConfig) else None
        return build.built(self.base if config is None else lambda: self.auto.from_config(config), key, self.dtype)

    def _loaded(self, params: Params) -> Machine:
        """The machine with these arrays. Raises JobError where they are of another base."""
        machine = self.machine
        if self.lora is not None:
            here = _packed(self.made.base)
            if BASE not in params or not np.array_equal(params[BASE], here):
                raise JobError(_another(self.made.base, "the one that the run began with"))
            params = params.only(set(params) - {BASE})
        machine.load(params)
        return machine

    def _sent(self, params: Params, base: str) -> Params:
        if self.lora is None:
            return params
        return Params({**params, BASE: _packed(base)}, {**params.kinds, BASE: "buffer"})

    def _cut(self, site: str) -> int | None:
        """The site's rank, where it is lower than the model's. Raises JobError for one that is higher, or none."""
        if self.ranks is None:
            return None
        rank = self.ranks(site) if callable(self.ranks) else self.ranks.get(site, self.lora.r)
        if not 1 <= rank <= self.lora.r:
            raise JobError(f"ranks: site {site!r} has rank {rank}; it is from 1 to the model's, lora.r={self.lora.r}")
        return rank if rank < self.lora.r else None

    def _truncated(self, rank: int | None) -> list[tuple[Tensor, Any, Tensor]]:
        """Makes the directions beyond `rank` zero, where they stay as their gradients are; what they were before."""
        kept: list[tuple[Tensor, Any, Tensor]] = []
        for place in self.machine.places if rank is not None else ():
            axis = _axis(place.name)
            if axis is not None:
                mask = (slice(None),) * axis + (slice(rank, None),)
                kept.append((place.tensor.data, mask, place.tensor.detach().clone()))
                place.tensor.data[mask] = 0
        return kept

    def _batches(self, examples: int, key: Key) -> Iterator[Array]:
        epochs = (key("order").order(examples, epoch) for epoch in count())
        return chain.from_iterable(np.split(rows, range(self.batch_size, examples, self.batch_size)) for rows in epochs)

    def _batch(self, data: Any, rows: Array) -> dict[str, Any]:
        batch = self.collate([data[int(i)] for i in rows])
        if not isinstance(batch, Mapping):
            raise JobError(
                f"a batch is {type(batch).__name__}: let examples be mappings, or collate=… give the model's named "
                "arguments, such as input_ids and labels"
            )
        return {name: x.to(self.machine.device) if hasattr(x, "to") else x for name, x in batch.items()}

    def _loss(self, model: Any, batch: Mapping[str, Any]) -> Tensor:
        loss = self.loss(model, batch) if self.loss is not None else model(**batch).loss
        if loss is None:
            raise JobError(
                "the model gave no loss: let batches have `labels`, or give loss=(model, batch) -> mean loss"
            )
        return loss


class Travelling(nn.Module):
    """The arrays of a model that travel, under the names that they are saved by; its mode is the whole model's."""

    def __init__(self, model: nn.Module, arrays: Mapping[str, Any]) -> None:
        super().__init__()
        self.whole = (model,)  # a tuple, so that the rest of it is no part of this
        for name, x in arrays.items():
            *path, last = name.split(".")
            at: nn.Module = self
            for word in path:
                if word not in at._modules:
                    at.add_module(word, nn.Module())
                at = at.get_submodule(word)
            if isinstance(x, nn.Parameter):
                at.register_parameter(last, x)
            else:
                at.register_buffer(last, x)

    def train(self, mode: bool = True) -> Travelling:
        self.whole[0].train(mode)
        return super().train(mode)


def _state(model: nn.Module) -> dict[str, Any]:
    """The arrays of a whole model, tied ones once, under their first name."""
    found = list(model.state_dict(keep_vars=True).items())
    first = {id(x): name for name, x in reversed(found)}
    return {name: x for name, x in found if first[id(x)] == name}


def _read(made: Any, batch: Mapping[str, Any]) -> tuple[Array, Array]:
    """Logits and labels; of a language model the next token's, where it counts."""
    logits, labels = made.logits, batch["labels"]
    if logits.ndim == labels.ndim + 1 and labels.ndim == 2:
        logits, labels = logits[:, :-1], labels[:, 1:]
        logits, labels = logits[labels != IGNORED], labels[labels != IGNORED]
    return as_array(logits.detach().float().cpu()), as_array(labels.detach().cpu())


def _axis(name: str) -> int | None:
    """The axis of an adapter's rank: of A the first, of B the second."""
    words = name.split(".")
    return (
        0 if {"lora_A", "lora_embedding_A"} & set(words) else 1 if {"lora_B", "lora_embedding_B"} & set(words) else None
    )


def _packed(digest: str) -> Array:
    """A digest of 256 bits as 16 whole numbers that float32 holds exactly: of equal ones the mean is the same."""
    return np.frombuffer(bytes.fromhex(digest), ">u2").astype(np.float32)


def _another(here: str, wanted: str) -> str:
    return (
        f"this base model has the digest {here}, not {wanted}: adapters fit one base alone; "
        "put the same folder, or the same config and versions of torch and transformers, at every site"
    )


def _adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3)


def _said(value: Any) -> str:
    """The text of a setting, the same in every process: peft has sets, whose order is not."""
    return str(sorted(value) if isinstance(value, (set, frozenset)) else value)


def _named(x: Any) -> Any:
    return x if x is None or isinstance(x, str) else getattr(x, "__qualname__", type(x).__qualname__)


@contextmanager
def _quiet() -> Iterator[None]:
    """What the libraries warn one another of is not the user's to mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield
