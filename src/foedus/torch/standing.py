"""How far a training in PyTorch is: what an attempt that was killed has kept comes back, and is kept in turn.
A model's machine and the training's file come in; what has `state_dict` and `load_state_dict` is kept beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from foedus.midway import Midway
from foedus.torch import randomness
from foedus.torch.machine import Machine

Seen = tuple[Tensor | float, int]  # a batch's mean loss, and its examples


@runtime_checkable
class Stateful(Protocol):
    """An optimizer, a schedule, a dataset that counts: whatever can say where it stands, and go back there."""

    def state_dict(self) -> Any: ...
    def load_state_dict(self, state: Any) -> Any: ...


class Standing:
    """Of a training `step` steps are done, in which it has `seen` these losses.

    parts: of these the Stateful ones are kept, the others begin anew. `everything`: the global generators are kept,
    too; without it each step has to seed what it draws from.
    """

    def __init__(self, machine: Machine, kept: Midway, *parts: Any, everything: bool = False) -> None:
        self.machine, self.kept, self.everything = machine, kept, everything
        self.parts = [part for part in parts if isinstance(part, Stateful)]
        self.step, self.seen = 0, list[Seen]()
        if (found := kept.read(_load)) is not None:
            self._restore(found)

    def passed(self, seen: Seen | None = None, last: bool = False) -> None:
        """Notes that a step is done, the `last` one perhaps, and keeps all of it when it is time."""
        self.step += 1
        if seen is not None:
            self.seen.append(seen)
        if self.kept.due(last):
            self.kept.write(self._save)

    def each(self, items: Sequence[Any]) -> Iterator[Any]:
        """Those of the items that are left; each is a step."""
        for item in items[self.step :]:
            yield item
            self.passed(last=self.step + 1 == len(items))

    def _save(self, file: Any) -> None:
        state = {
            "model": self.machine.numbers(),
            "parts": [part.state_dict() for part in self.parts],
            "random": randomness.state(self.machine.device) if self.everything else None,
            "step": self.step,
            "losses": torch.tensor([float(loss) for loss, _ in self.seen], dtype=torch.float64),
            "examples": torch.tensor([n for _, n in self.seen], dtype=torch.int64),
        }
        torch.save(state, file)

    def _restore(self, found: Any) -> None:
        try:
            self.machine.renew(found["model"])
            for part, state in zip(self.parts, found["parts"], strict=True):
                part.load_state_dict(state)
            if self.everything:
                randomness.restore(found["random"], self.machine.device)
            self.seen = list(zip(found["losses"].tolist(), found["examples"].tolist(), strict=True))
            self.step = found["step"]
        except BaseException:
            self.kept.drop()  # this attempt ends with what is wrong, the next one begins anew
            raise


def _load(file: Any) -> Any:
    return torch.load(file, map_location="cpu", weights_only=True)
