"""Local training of many sites at once: their parameters are stacked, their batches padded, and who is done leaves.
A TorchLearner and the calls of its `train` come in; batches, steps and stopping are those of one site alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from foedus.core import Correct, Elsewhere, Fit, Private, Term
from foedus.data import Pairs, Split
from foedus.errors import Alone, Refused
from foedus.keys import Key, key, orders
from foedus.params import Array, Leaf, Params, Spec, places
from foedus.progress import progress
from foedus.rows import Apart, Each, Rows
from foedus.torch import private
from foedus.torch.arrays import as_array, joined, torch_dtype
from foedus.torch.chains import chain
from foedus.torch.losses import leaves_out, one_by_one, totals, weighed
from foedus.torch.sgd import SGD, Optimizer, plain_descent
from foedus.torch.stacked import Forward, stacked

Call = tuple[Params, Any, Key, Correct | None]  # the arguments of `train`
MOST_BYTES = 1 << 23  # of stacked parameters: more sites at once are no faster
PROOF = key(0, 0, 0, "here", "together")
MOST_DATA = 1 << 28  # of examples copied side by side
MOST_DRAWN = 1 << 22  # numbers that orders are drawn from at once
ELEMENTWISE = ("SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "Adadelta", "Adamax", "NAdam", "RAdam")


class Plan(NamedTuple):
    """Which rows each site takes at each step: `rows` (steps, sites, batch) of the examples laid side by side.

    `counts` (steps, sites) says how many of them are real, `shares` (steps, sites, batch) what each adds to its batch's
    mean: nothing where it only pads. `active` says how many sites still train: these come first.
    """

    rows: Array
    counts: Array
    shares: Tensor
    active: list[int]


class Together:
    """A learner's model for many sites. Raises Alone with the reason where these have to train one after another."""

    def __init__(self, learner: Any) -> None:
        self.learner = learner
        if learner.own is not None:
            raise Alone("the learner has its own training loop")
        if learner.collate is not None:
            raise Alone("collate=… puts a site's examples together")
        if learner.mixed:
            raise Alone("mixed=True computes in two precisions")
        self.machine = learner.machine
        if self.machine.dtype not in (torch.float32, torch.float64):
            raise Alone(f"the model is {self.machine.dtype}")
        self.machine.mode(training=True)
        self.forward: Forward = stacked(self.machine.model)
        self.each = one_by_one(learner.loss)
        self.chain = chain(self.machine.model, learner.loss)
        self.proved = False

    @cached_property
    def others(self) -> dict[str, Tensor]:
        """Parameters that do not train, and buffers: the same for all sites."""
        model = self.machine.model
        every = {**dict(model.named_buffers()), **dict(model.named_parameters())}
        trained = {id(p) for p in self.machine.trained}
        return {name: x for name, x in every.items() if id(x) not in trained}

    def train(self, calls: Sequence[Call]) -> list[Fit | Refused]:
        """What `learner.train` gives for each of the calls."""
        for _, split, _, correct in calls:
            if isinstance(correct, Term):
                raise Alone("the algorithm adds a term to the loss")
            if isinstance(correct, Elsewhere):
                raise Alone("the algorithm asks for each batch's gradient at two models")
            _check_pairs(split)
        if not self.proved:
            self._prove(*calls[0][:2])
        found: list[Fit | Refused | None] = [None] * len(calls)
        steps = [self.learner.count(len(split.train)) for _, split, _, _ in calls]
        for group in _groups(_longest_first(steps), [(call[0], call[1]) for call in calls]):
            made = self._group([calls[i] for i in group], [steps[i] for i in group])
            for i, fit in zip(group, made, strict=True):
                found[i] = fit
        return found  # type: ignore[return-value]

    def groups(self, params: Params, splits: Sequence[Any]) -> Iterator[list[int]]:
        """The sites, by their place among `splits`, in groups that `rows` may take at once."""
        for split in splits:
            _check_pairs(split)
        if not self.proved:
            self._prove(params, splits[0])
        steps = [self.learner.count(len(split.train)) for split in splits]
        return _groups(_longest_first(steps), [(params, split) for split in splits])

    def rows(self, params: Params, splits: Sequence[Any], keys: Sequence[Key], correct: Correct | None) -> Fit:
        """What `train` gives for the sites of a group: a Fit of Rows and Each. Raises Apart for a Correct with more."""
        if isinstance(correct, (Term, Elsewhere, Private)):
            raise Apart
        steps = [self.learner.count(len(split.train)) for split in splits]
        order = _longest_first(steps)
        calls = [(params, splits[i], keys[i], correct) for i in order]
        stack = Stack(self, calls)
        losses, counts = self._trained(stack, calls, [steps[i] for i in order])
        at = sorted(range(len(order)), key=order.__getitem__)
        found = weighed(losses, counts)[:, at].T
        examples = [len(split.train) for split in splits]
        models: Any = stack.rows(params, at)
        n, count, path, sums = map(_each, (examples, steps, [stack.lr * count for count in steps], list(found)))
        return Fit(models, n, count, path, {"train_loss": sums})

    def _prove(self, params: Params, split: Any) -> None:
        """Takes a step on a padded batch beside another site, and the same one alone. Raises Alone if they differ."""
        part = _several(split.train)
        n = max(1, min(len(part), self.learner.batch_size) - 1)
        longer, own = (Split(part[[*range(n), *more]]) for more in ([0], []))
        calls = [(params.map(lambda x: 1.5 * x), longer, PROOF, None), (params, own, PROOF, None)]
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", ".*performance drop")  # vmap would work one site after another
                found = self._group(calls, [1, 1])[1]
            alone, loss = self.learner.step(params, own.train[:], PROOF)
        except Alone:
            raise
        except Exception as error:  # whatever torch cannot map
            raise Alone(f"its model cannot be mapped over sites ({str(error).splitlines()[0]})") from error
        if any(not np.array_equal(alone[name], params[name]) for name in params if params.kinds[name] != "trainable"):
            raise Alone("its model changes its buffers while it trains")
        if any(not torch.equal(getattr(place.module, place.attribute), x) for place, x in self.machine.rest):
            raise Alone("its model keeps something from one step to the next")
        if isinstance(found, Fit) and not _near(found, alone, loss):
            raise Alone("a step on a padded batch is another: model or loss do not treat the examples one by one")
        self._prove_loss(params, own.train)
        self.proved = True

    def _prove_loss(self, params: Params, part: Pairs) -> None:
        """Raises Alone where a batch's loss is not the mean of its examples' losses, whatever their classes are."""
        self.machine.load(params)
        x, y, _ = self.learner.feed.batch(part[:], 0)
        random = torch.Generator().manual_seed(0)
        with torch.no_grad():
            made = self.machine.model(x)
            if not isinstance(made, Tensor) or made.dim() < 1:
                return
            most = MOST_DRAWN // max(1, made[0].numel())  # an output may be large
            count = max(2, min(most, 4 * (made.shape[1] if made.dim() > 1 else 1)))
            outputs = torch.randn((count, *made.shape[1:]), generator=random).to(made)
            targets = torch.rand((count, *y.shape[1:]), generator=random).to(y)
            if not y.is_floating_point():
                classes = made.shape[1] if made.dim() > 1 and made.shape[1] > 1 else 2
                targets = torch.randint(classes, (count, *y.shape[1:]), generator=random).to(y)
            try:
                whole, each = self.learner.loss(outputs, targets), self.each(outputs, targets)
            except Exception:  # it takes no such targets: the step above is all that can be tried
                return
        if not torch.allclose(whole, each.mean(), rtol=1e-4, equal_nan=True):
            raise Alone(
                "its loss of a batch is not the mean of its examples': classes weigh unlike, or some are left out"
            )

    def _group(self, calls: Sequence[Call], steps: Sequence[int]) -> list[Fit | Refused]:
        if isinstance(calls[0][3], Private):
            stack = Stack(self, [(*call[:3], private.after(call[3])) for call in calls])
            return list(private.together(self, stack, calls, steps))
        stack = Stack(self, calls)
        losses, counts = (x.T.tolist() for x in self._trained(stack, calls, steps))
        return [self._fit(stack, i, call, steps[i], losses[i], counts[i]) for i, call in enumerate(calls)]

    def _trained(self, stack: Stack, calls: Sequence[Call], steps: Sequence[int]) -> tuple[Array, Array]:
        """Takes the stack's steps; (steps, sites) of each step's mean loss in float64, and of its examples."""
        x, y = self._examples([split.train for _, split, _, _ in calls])
        if leaves_out(self.learner.loss) and y.dtype == torch.int64 and bool((y < 0).any()):
            raise Alone("its loss leaves out examples whose class is below 0")
        plan = self._plan(calls, steps)
        losses = torch.zeros(plan.counts.shape, device=self.machine.device)
        for t, k in enumerate(plan.active):
            stack.keep(k)
            wide = int(plan.counts[t, :k].max())  # no site has more examples left than these
            rows = torch.from_numpy(plan.rows[t, :k, :wide]).to(x.device)
            losses[t, :k] = stack.step(_picked(x, rows), _picked(y, rows), plan.shares[t, :k, :wide])
            progress(k)
        return losses.cpu().double().numpy(), plan.counts

    def _examples(self, parts: Sequence[Pairs]) -> tuple[Tensor, Tensor]:
        feed = self.learner.feed
        return feed.input(joined([part.x for part in parts])), feed.target(joined([part.y for part in parts]))

    def _plan(self, calls: Sequence[Call], steps: Sequence[int]) -> Plan:
        """Batches are cut from each epoch's order, as for one site."""
        size, most = self.learner.batch_size, steps[0]
        sizes, lasts = np.array([len(call[1].train) for call in calls]), np.array(steps)
        used = np.array([self.learner.used(n) for n in sizes.tolist()])
        epochs = -(-used // size)  # steps of one
        place = np.arange(most * size) % size
        rows = np.where(place < sizes[:, None], place, 0)  # of epochs that are one batch
        several = np.flatnonzero(sizes > size)
        width = max(1, MOST_DRAWN // sizes.max())
        for some in np.split(several, range(width, len(several), width)):
            self._draw(rows, some, [calls[i][2] for i in some], sizes[some], used[some], epochs[some], lasts[some])
        rows += np.cumsum([0, *sizes[:-1]])[:, None]  # what pads is masked, and is this site's own
        step = np.arange(most)[:, None]
        active = step < lasts
        short = np.where(step % epochs == epochs - 1, epochs * size - used, 0)  # an epoch's last batch
        counts = np.where(active, size - short, 0)
        real = torch.from_numpy(counts)[:, :, None]
        shares = ((torch.arange(size) < real) / real.clamp(min=1).to(self.machine.dtype)).to(self.machine.device)
        turned = np.ascontiguousarray(rows.reshape(len(calls), most, size).swapaxes(0, 1))
        return Plan(turned, counts, shares, active.sum(1).tolist())

    def _draw(
        self, rows: Array, sites: Array, keys: Sequence[Key], sizes: Array, used: Array, epochs: Array, lasts: Array
    ) -> None:
        """Writes these sites' orders into `rows` (sites, places), epoch by epoch up to each one's last step."""
        size, named = self.learner.batch_size, [key("order") for key in keys]
        for epoch in range((-(-lasts // epochs)).max(initial=0)):
            drawn = orders(named, sizes, epoch)
            place = np.arange(drawn.shape[1])
            at = (epoch * size * epochs)[:, None] + place
            fits = (place < used[:, None]) & (at < size * lasts[:, None])
            rows[sites[np.nonzero(fits)[0]], at[fits]] = drawn[fits]

    def _fit(
        self, stack: Stack, i: int, call: Call, steps: int, losses: list[float], counts: list[int]
    ) -> Fit | Refused:
        params, split, key, _ = call
        try:
            sums = totals(losses[:steps], counts[:steps], key)
        except Refused as error:
            return error
        return Fit(stack.read(i, params), len(split.train), steps, stack.lr * steps, {"train_loss": sums})


class Stack:
    """The models of some sites on their way: an array (sites, *shape) for each parameter, a row a site."""

    def __init__(self, together: Together, calls: Sequence[Call]) -> None:
        self.together, self.calls = together, calls
        learner, self.spec = together.learner, calls[0][0].spec
        self.machine = learner.machine
        self.machine.load(calls[0][0])
        models = [call[0] for call in calls]
        self.trained = tuple(leaf for leaf in self.spec if leaf.kind == "trainable")
        made = {leaf.name: _stacked(leaf, group, slice(a, b), models) for leaf, group, a, b in places(self.trained)}
        here = self.machine.device
        self.stacks = {p.name: made[p.name].to(here) for p in self.machine.places if p.kind == "trainable"}
        self.corrects = [call[3] for call in calls]
        self.corrected = any(correct is not None for correct in self.corrects)
        self.leaves: dict[str, Tensor] = {}
        self.optimizer: Optimizer | None = None
        self.descends = False

    @property
    def lr(self) -> float:
        return 0.0 if self.optimizer is None else self.optimizer.lr

    def keep(self, count: int) -> None:
        """The first `count` sites go on."""
        if self.leaves and len(next(iter(self.leaves.values()))) == count:
            return
        old = list(self.leaves.values())
        self.leaves = {name: x[:count].detach().requires_grad_() for name, x in self.stacks.items()}
        others = {name: x.expand(count, *x.shape) for name, x in self.together.others.items()}
        self.params = {**others, **self.leaves}
        if self.optimizer is None:
            self.optimizer = self.together.learner.stepper(self.calls[0][2], list(self.leaves.values()))
            _check_elementwise(self.optimizer)
            self.descends = self._descends()
        else:
            _shrink(self.optimizer, old, list(self.leaves.values()))

    def _descends(self) -> bool:
        """Whether a step is the slopes times a number, and no more."""
        chain, optimizer = self.together.chain, self.optimizer
        free = not self.corrected and self.together.learner.clip is None
        return free and chain is not None and chain.plain and optimizer is not None and plain_descent(optimizer)

    def step(self, x: Tensor, y: Tensor, shares: Tensor) -> Tensor:
        """One optimizer step of each site on its own batch; the losses before it, one a site."""
        if self.descends:
            assert self.optimizer is not None and self.together.chain is not None
            with torch.no_grad():
                return self.together.chain.descend(self.params, x, y, shares, self.optimizer.lr)
        losses = self._slopes(x, y, shares)
        self.go(len(shares))
        return losses

    def go(self, count: int) -> None:
        """The optimizer's step of the first `count` sites by the parameters' `grad`, corrected."""
        if self.corrected:
            self._correct(count)
        if self.together.learner.clip is not None:
            _clip([leaf.grad for leaf in self.leaves.values() if leaf.grad is not None], self.together.learner.clip)
        assert self.optimizer is not None
        self.optimizer.step()

    def _slopes(self, x: Tensor, y: Tensor, shares: Tensor) -> Tensor:
        """Each site's loss; its slopes are the parameters' `grad` from now on."""
        if self.together.chain is not None:
            with torch.no_grad():
                losses, slopes = self.together.chain.slopes(self.params, x, y, shares)
            for name, leaf in self.leaves.items():
                leaf.grad = slopes.get(name)
            return losses
        made = self.together.forward(self.params, x)
        found = self.together.each(made.flatten(0, 1), y.flatten(0, 1))
        if found.dim() > 1:
            found = found.flatten(1).mean(1)
        each = found.view(shares.shape).mul(shares)
        grads = torch.autograd.grad(each.sum(), list(self.leaves.values()), allow_unused=True)
        for leaf, grad in zip(self.leaves.values(), grads, strict=True):
            leaf.grad = grad
        return each.detach().sum(1)

    @property
    def hosts(self) -> dict[str, list[Array]]:
        """group -> its parameters, (sites, numbers) each: on a CPU the very memory that trains."""
        return _by_group(self.trained, {name: x.detach().cpu() for name, x in self.stacks.items()})

    @cached_property
    def flats(self) -> dict[str, Array]:
        """group -> (sites, numbers): the models when nobody trains any more."""
        return _side_by_side(self.hosts, len(self.calls))

    def read(self, i: int, like: Params) -> Params:
        """The model of one site, when nobody trains any more."""
        return Params.of(like.spec, {g: self.flats[g][i] if g in self.flats else x for g, x in like.flats.items()})

    def rows(self, like: Params, at: Sequence[int]) -> Rows:
        """The models of all sites, of which site i has row `at[i]`; the stack is not used again."""
        hosts = self.hosts
        return Rows(like.spec, {g: hosts.get(g, x) for g, x in like.flats.items()}, at)

    def _correct(self, count: int) -> None:
        """Each site's correction of its own gradients, row by row."""
        slopes = {n: torch.zeros_like(p) if p.grad is None else p.grad.contiguous() for n, p in self.leaves.items()}
        given = _by_group(self.trained, {name: x.cpu() for name, x in slopes.items()})
        grads, here = (_side_by_side(x, count) for x in (given, self.hosts))
        for i, correct in enumerate(self.corrects[:count]):
            if correct is not None:
                row, model = (Params.of(self.trained, {g: x[i] for g, x in flats.items()}) for flats in (grads, here))
                for g, x in correct(row, model).flats.items():
                    grads[g][i] = x
        for leaf, group, a, b in places(self.trained):
            corrected = torch.from_numpy(np.ascontiguousarray(grads[group][:, a:b]))
            self.leaves[leaf.name].grad = corrected.view(count, *leaf.shape).to(self.machine.device)


def _several(part: Pairs) -> Pairs:
    """Three examples or more, that differ where they are floats: of one alone no batch's mean can be told."""
    if len(part) > 2 or np.asarray(part.x).dtype.kind != "f":
        return part
    x, y = np.asarray(part.x), np.asarray(part.y)
    return Pairs(np.concatenate([x, x / 2, x / 4]), np.concatenate([y, y, y]))


def _picked(x: Tensor, rows: Tensor) -> Tensor:
    """`x[rows]`, in a quarter of its time."""
    return x.index_select(0, rows.reshape(-1)).view(*rows.shape, *x.shape[1:])


def _near(fit: Fit, params: Params, loss: float) -> bool:
    close = partial(np.allclose, rtol=1e-4, atol=1e-5, equal_nan=True)
    return close(fit.metrics["train_loss"][0] / fit.examples, loss) and all(
        close(fit.params[k], x) for k, x in params.items()
    )


def _stacked(leaf: Leaf, group: str, place: slice, models: Sequence[Params]) -> Tensor:
    """One parameter of all models, (models, *shape)."""
    made = torch.empty((len(models), *leaf.shape), dtype=torch_dtype(models[0].flats[group].dtype))
    host = as_array(made).reshape(len(models), -1)
    if all(p is models[0] for p in models):
        host[:] = models[0].flats[group][place]
    else:
        np.stack([p.flats[group][place] for p in models], out=host)
    return made


def _by_group(spec: Spec, stacks: Mapping[str, Tensor]) -> dict[str, list[Array]]:
    """group -> its parameters, (sites, numbers) each, in the same memory."""
    found: dict[str, list[Array]] = {}
    for leaf in spec:
        x = as_array(stacks[leaf.name])
        found.setdefault(leaf.group, []).append(x.reshape(len(x), -1))
    return found


def _side_by_side(hosts: Mapping[str, Sequence[Array]], count: int) -> dict[str, Array]:
    """group -> (sites, numbers) of the first sites."""
    return {g: np.concatenate([x[:count] for x in parts], axis=1) for g, parts in hosts.items()}


def _each(values: Sequence[Any]) -> Any:
    return Each(values)


def _check_pairs(split: Any) -> None:
    if not isinstance(split.train, Pairs) or isinstance(split.train.x, (tuple, list, dict)):
        raise Alone(f"its examples are {type(split.train).__name__}, not (x, y) arrays")


def _longest_first(steps: Sequence[int]) -> list[int]:
    return sorted(range(len(steps)), key=lambda i: -steps[i])


def _groups(order: Sequence[int], calls: Sequence[tuple[Params, Any]]) -> Iterator[list[int]]:
    """As many sites at once as fit into MOST_BYTES of parameters and MOST_DATA of examples, the longest first."""
    most = max(1, MOST_BYTES // max(1, calls[0][0].nbytes))
    group, held = list[int](), 0
    for i in order:
        part = calls[i][1].train
        size = int(getattr(part.x, "nbytes", 8 * len(part)))
        if group and (len(group) == most or held + size > MOST_DATA or calls[i][0].spec != calls[group[0]][0].spec):
            yield group
            group, held = [], 0
        group.append(i)
        held += size
    if group:
        yield group


def _check_elementwise(made: Optimizer) -> None:
    name = type(made.of).__name__
    if not isinstance(made.of, SGD) and (
        type(made.of).__module__.split(".")[:2] != ["torch", "optim"] or name not in ELEMENTWISE
    ):
        raise Alone(f"the optimizer {name} is not known to treat every number alike")


def _shrink(made: Optimizer, old: Sequence[Tensor], new: Sequence[Tensor]) -> None:
    """The optimizer goes on with the first rows of its parameters and of what it keeps about them."""
    count, optimizer = len(new[0]), made.of
    if isinstance(optimizer, SGD):
        optimizer.parameters = new
        optimizer.velocity = {i: x[:count] for i, x in optimizer.velocity.items()}
        return
    now = {id(a): b for a, b in zip(old, new, strict=True)}
    for group in optimizer.param_groups:
        group["params"] = [now[id(p)] for p in group["params"]]
    state = {now[id(p)]: {k: _first(x, p, count) for k, x in kept.items()} for p, kept in optimizer.state.items()}
    optimizer.state.clear()
    optimizer.state.update(state)


def _first(x: Any, parameter: Tensor, count: int) -> Any:
    return x[:count] if isinstance(x, Tensor) and x.shape == parameter.shape else x


def _clip(grads: Sequence[Tensor], largest: float) -> None:
    """Each site's gradient to a norm of at most `largest`, as clip_grad_norm_ does."""
    norms = torch.stack([g.flatten(1).square().sum(1) if g.dim() > 1 else g.square() for g in grads]).sum(0).sqrt()
    factors = (largest / (norms + 1e-6)).clamp(max=1.0)
    for g in grads:
        g.mul_(factors.view(-1, *[1] * (g.dim() - 1)))
