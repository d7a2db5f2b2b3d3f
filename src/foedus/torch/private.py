"""DP-SGD's steps in PyTorch (Abadi et al. 2016, algorithm 1), for one site and for many at once.
A TorchLearner, or its model for many sites, comes in; the gradient of each example is taken by torch.func.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foedus.core import Elsewhere, Fit, Private, Term
from foedus.keys import Key
from foedus.midway import Midway
from foedus.privacy.keystream import normals, poisson
from foedus.progress import progress
from foedus.torch.batches import arguments, each
from foedus.torch.chains import chain
from foedus.torch.randomness import reseed
from foedus.torch.standing import Standing

MOST_BYTES, MOST_EXAMPLES = 1 << 26, 1024  # of gradients at once, one an example
DOWN = 1 - 2.0**-20  # a clipped gradient's norm, after rounding, is not above the clip
MIXING = (nn.modules.batchnorm._BatchNorm,)


def unfit(model: nn.Module) -> str:
    """Why the model's examples have no gradients of their own; "" where they have."""
    for name, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, MIXING):
            return f"{kind} {name!r}, which mixes the examples of a batch: take nn.GroupNorm"
        if getattr(module, "track_running_stats", False):
            return f"{kind} {name!r}, whose running statistics are sent without noise: take nn.GroupNorm"
    return ""


def trained(learner: Any, split: Any, key: Key, how: Private, kept: Midway) -> Fit:
    """The model after a Task's steps. What is private of it is the model alone: no loss is told."""
    machine, n, count = learner.machine, len(split.train), learner.count(len(split.train))
    optimizer, slopes = learner.stepper(key, machine.trained), learner.slopes
    expected = min(learner.batch_size, n)
    standing = Standing(machine, kept, optimizer.of)
    for i in range(standing.step, count):
        reseed(key("step", i), machine.device)
        sums = [torch.zeros(p.shape, dtype=torch.float64) for p in machine.trained]
        rows = poisson(how.secret("rows", i), n, learner.batch_size)
        for batch in learner.feed.batches(split.train, rows, slopes.most):
            here = {name: p.detach() for name, p in zip(slopes.names, machine.trained, strict=True)}
            for total, found in zip(sums, slopes.sums(here, batch.x, batch.y, how.clip), strict=True):
                total.add_(found[0])
        for p, found in zip(machine.trained, noised(sums, how, i), strict=True):
            p.grad = (found / expected).to(p.device, p.dtype)
        if how.after is not None:
            machine.correct(after(how))
        if learner.clip is not None:
            nn.utils.clip_grad_norm_(machine.trained, learner.clip)
        optimizer.step()
        progress()
        standing.passed(last=i + 1 == count)
    return Fit(machine.read(), n, count, optimizer.lr * count)


def together(many: Any, stack: Any, calls: Sequence[Any], steps: Sequence[int]) -> list[Fit]:
    """What `trained` gives for each of the calls, the longest first; `stack` has their models."""
    learner, slopes = many.learner, many.learner.slopes
    parts, hows = [split.train for _, split, _, _ in calls], [call[3] for call in calls]
    x, y = many._examples(parts)
    firsts = np.cumsum([0, *map(len, parts)])
    for t in range(steps[0]):
        k = sum(count > t for count in steps)
        stack.keep(k)
        drawn = [
            poisson(how.secret("rows", t), len(part), learner.batch_size)
            for how, part in zip(hows[:k], parts, strict=False)
        ]
        rows = torch.from_numpy(np.concatenate([at + first for at, first in zip(drawn, firsts, strict=False)]))
        whose = torch.repeat_interleave(torch.arange(k), torch.tensor([len(at) for at in drawn]))
        sums = [torch.zeros(leaf.shape, dtype=torch.float64) for leaf in stack.leaves.values()]
        for part in range(0, len(rows), slopes.most):
            at, owner = rows[part : part + slopes.most], whose[part : part + slopes.most]
            first = int(owner[0])
            here = {name: leaf.detach()[first:] for name, leaf in stack.leaves.items()}
            for total, found in zip(sums, slopes.sums(here, x[at], y[at], hows[0].clip, owner - first), strict=True):
                total[first : first + len(found)] += found
        for i, how in enumerate(hows[:k]):
            expected = min(learner.batch_size, len(parts[i]))
            for total, found in zip(sums, noised([total[i] for total in sums], how, t), strict=True):
                total[i] = found / expected
        for leaf, total in zip(stack.leaves.values(), sums, strict=True):
            leaf.grad = total.to(leaf.device, leaf.dtype)
        stack.go(k)
        progress(k)
    return [Fit(stack.read(i, call[0]), len(parts[i]), steps[i], stack.lr * steps[i]) for i, call in enumerate(calls)]


class Slopes:
    """Gradients, one an example, of a learner's loss on each example as a batch of one."""

    def __init__(self, learner: Any) -> None:
        self.learner, self.machine = learner, learner.machine
        self.chain = chain(self.machine.model, learner.loss)
        self.names = [place.name for place in self.machine.places if place.kind == "trainable"]
        size = sum(p.numel() * p.element_size() for p in self.machine.trained)
        self.most = max(1, min(MOST_EXAMPLES, MOST_BYTES // max(1, size)))
        self.kept = {
            place.name: place.tensor.detach() for place in self.machine.places if place.kind != "trainable"
        } | {place.name: getattr(place.module, place.attribute) for place, _ in self.machine.rest}
        self.mapped = True

    def sums(
        self, params: dict[str, Tensor], x: Any, y: Any, clip: float, owners: Tensor | None = None
    ) -> list[Tensor]:
        """For each trainable array the sum of the examples' gradients, over all arrays clipped.

        One a site, float64, on the CPU. `owners`: whose each example is, for the sites of `params`; None: there is one.
        An example whose gradient is not finite counts as zero.
        """
        here = params if owners is None else {name: p[owners] for name, p in params.items()}
        found = self.of(here, x, y, own=owners is not None)
        grads = [_wide(found[name]).reshape(len(found[name]), -1) for name in self.names]
        wide = torch.float32 if self.machine.device.type == "mps" else torch.float64
        norms = torch.stack([torch.linalg.vector_norm(g, dim=1, dtype=wide) for g in grads]).norm(dim=0)
        if not norms.isfinite().all():
            good = norms.isfinite()[:, None]
            grads, norms = [torch.where(good, g, 0.0) for g in grads], norms.nan_to_num(0.0, 0.0)
        factors = torch.where(norms > clip, clip / norms * DOWN, 1.0)
        if owners is not None:
            at, each_own = owners.to(factors.device)[None], factors.new_zeros(int(owners[-1]) + 1, len(owners))
            factors = each_own.scatter_(0, at, factors[None])
        made = [torch.mm(factors.view(-1, len(norms)).to(g.dtype), g).cpu().double() for g in grads]
        return [m.view(-1, *found[name].shape[1:]) for m, name in zip(made, self.names, strict=True)]

    def of(self, params: dict[str, Tensor], x: Any, y: Any, own: bool) -> dict[str, Tensor]:
        """name -> (examples, *shape)."""
        if self.chain is not None and isinstance(x, Tensor):
            n = len(x)
            stack = params if own else {name: p.expand(n, *p.shape) for name, p in params.items()}
            with torch.no_grad():
                slopes = self.chain.slopes(stack, x[:, None], y[:, None], x.new_ones(n, 1, dtype=self.machine.dtype))[1]
            return {name: slopes[name] if name in slopes else torch.zeros_like(p) for name, p in stack.items()}
        if self.mapped:
            try:
                many = torch.func.vmap(torch.func.grad(self._loss), (0 if own else None, 0, 0), randomness="different")
                found: dict[str, Tensor] = many(params, x, y)
                return found
            except (RuntimeError, NotImplementedError):  # whatever torch cannot map
                self.mapped = False
        return self._one_by_one(params, x, y, own)

    def _one_by_one(self, params: dict[str, Tensor], x: Any, y: Any, own: bool) -> dict[str, Tensor]:
        found = []
        for i in range(len(next(iter(leaves(y))))):
            here = {name: p[i] for name, p in params.items()} if own else params
            found.append(torch.func.grad(self._loss)(here, each(x, lambda a: a[i]), each(y, lambda a: a[i])))  # noqa: B023
        return {name: torch.stack([grads[name] for grads in found]) for name in self.names}

    def _loss(self, params: dict[str, Tensor], x: Any, y: Any) -> Tensor:
        """Of one example, as a batch of one."""
        model, one = self.machine.model, each(x, lambda a: a[None])
        kept = {name: a.clone() for name, a in self.kept.items()}
        made = torch.func.functional_call(model, {**kept, **params}, *arguments(one))
        loss: Tensor = self.learner._loss(made, each(y, lambda a: a[None]))
        return loss


def _wide(x: Tensor) -> Tensor:
    """Half precision as float32: a sum that is rounded more coarsely would tell more than the clip allows."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def noised(sums: Sequence[Tensor], how: Private, step: int) -> list[Tensor]:
    """The sums with Gaussian noise of standard deviation clip times noise on each number."""
    if not how.noise:
        return list(sums)
    drawn = torch.from_numpy(normals(how.secret("noise", step), sum(x.numel() for x in sums)))
    parts = torch.split(drawn.mul_(how.clip * how.noise), [x.numel() for x in sums])
    return [x + part.view(x.shape) for x, part in zip(sums, parts, strict=True)]


def after(how: Any) -> Any:
    """The algorithm's correction of a noised gradient. Raises NotImplementedError for one that reads examples."""
    if isinstance(how.after, (Term, Elsewhere, Private)):
        raise NotImplementedError("dp_sgd: this algorithm reads each batch's examples beside the noised gradient")
    return how.after


def leaves(x: Any) -> Iterator[Tensor]:
    """The tensors of a batch's inputs or targets."""
    if isinstance(x, Tensor):
        yield x
    else:
        for part in x.values() if isinstance(x, dict) else x:
            yield from leaves(part)
