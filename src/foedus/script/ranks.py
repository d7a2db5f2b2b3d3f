"""Several processes of one script, as torchrun starts them: rank 0 speaks, the others hear what it heard.
torch.distributed comes in where there is more than one; what is shared goes by gloo, whatever the script uses."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np

from foedus.params import DTYPES, Array, Params, Spec, places


class Ranks:
    """The processes of this script; without a launcher it is one, and nothing is imported."""

    def __init__(self) -> None:
        self.rank, self.world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self.group: Any = None
        if self.world > 1:
            import torch.distributed as dist

            if dist.is_initialized():
                self.group = dist.new_group(backend="gloo")
            else:
                dist.init_process_group("gloo")

    def heard(self, message: Any) -> Any:
        """Rank 0's message, at every rank."""
        if self.world == 1:
            return message
        body = np.frombuffer(json.dumps(message).encode(), np.uint8).copy()
        size = self._shared(np.array([len(body)], np.int64))
        return json.loads(self._shared(body if self.rank == 0 else np.zeros(int(size[0]), np.uint8)).tobytes())

    def params(self, params: Params | None, spec: Spec) -> Params:
        """Rank 0's Params of `spec`, at every rank."""
        if self.world == 1:
            assert params is not None
            return params
        flats = {}
        for leaf, group, _, end in places(spec):
            flats[group] = np.zeros(end, DTYPES[leaf.dtype])
        if params is not None:
            flats = {g: np.array(x) for g, x in params.flats.items()}
        return Params.of(spec, {g: self._shared(flats[g].view(np.uint8)).view(flats[g].dtype) for g in sorted(flats)})

    def _shared(self, x: Array) -> Array:
        import torch
        import torch.distributed as dist

        dist.broadcast(torch.from_numpy(x), 0, group=self.group)
        return x
