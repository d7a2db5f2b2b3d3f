"""The helper of methods that share a part of the model: which arrays are a site's own, and rounds of the others.
Only the contract may come in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from foedus.algorithms.rounds import Rate, advance, at, rounds
from foedus.core import Algorithm, Fit, Local, Personal, RoundContext, SiteContext, State, Total, Update
from foedus.errors import JobError
from foedus.params import Params

Choose = Callable[[Params], Sequence[str]]  # model -> the names of the arrays that are a site's own
NORMS = ("norm", "bn", "layernorm", "batchnorm", "groupnorm", "ln")


def plainly(model: Params, own: Sequence[str], site: SiteContext) -> Fit:
    """Both parts trained together."""
    return site.train(model, site.split, site.key("train"), None)


def shared(
    choose: Choose,
    train: Callable[[Params, Sequence[str], SiteContext], Fit] = plainly,
    alike: bool = False,
    rate: Rate = 1.0,
    **task: Any,
) -> Algorithm:
    """Sites keep the arrays that `choose` names; the mean of the others' differences is added to those at the server.

    `train`: (model, names of its own arrays, site) -> Fit. `alike`: sites count alike, not by examples. The way down
    has the whole model, so that a newcomer's own arrays begin as the first model's; these never come back.
    """

    def rest(model: Params) -> Params:
        return model.only(set(model) - set(choose(model)))

    def work(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
        own, model = choose(payload), payload if local is None else payload.placed(local)
        fit = train(model, own, site)
        return fit.params.only(own), Update(rest(fit.params - model), 1.0 if alike else fit.examples, fit.metrics)

    def step(state: State, total: Total, context: RoundContext) -> State:
        return state.placed(advance(rest(state), total.params, at(rate, context.round)))

    return rounds(
        lambda state: state,
        work,
        step,
        returns=lambda payload: rest(payload).spec,
        personal=Personal(Params.placed, alone=True),
        **task,
    )


def chosen(patterns: str | Sequence[str] | None, usual: Choose, method: str) -> Choose:
    """The arrays whose names match a pattern, such as `head.*`, or those that are `usual`.

    Calling it raises JobError with the model's names where a pattern has none, or where nothing is left to share.
    """
    wanted = [patterns] if isinstance(patterns, str) else patterns

    def choose(model: Params) -> Sequence[str]:
        for pattern in wanted or ():
            if not any(fnmatchcase(name, pattern) for name in model):
                raise JobError(f"{method}(personal={wanted!r}): no array is {pattern!r}; there are {', '.join(model)}")
        own = usual(model) if wanted is None else [x for x in model if any(fnmatchcase(x, p) for p in wanted)]
        if not own or len(own) == len(model):
            what = "no array is" if not own else "every array is"
            raise JobError(
                f"{method}(): {what} a site's own; say which are, as personal=['head.*']; there are {', '.join(model)}"
            )
        return own

    return choose


def last_layer(model: Params) -> list[str]:
    """The arrays of the module that has the last trainable one: a model's head, where it is defined last."""
    module = layer(list(model.trainable())[-1])
    return [name for name in model if layer(name) == module]


def all_but_last(model: Params) -> list[str]:
    last = last_layer(model)
    return [name for name in model if name not in last]


def norms(model: Params) -> list[str]:
    """The arrays of modules with running averages, and of those whose names say so (`norm1`, `bn`, `ln`)."""
    running = {layer(name) for name in model if name.rpartition(".")[2] in ("running_mean", "running_var")}
    return [name for name in model if layer(name) in running or is_norm(layer(name))]


def is_norm(module: str) -> bool:
    word = module.rpartition(".")[2].lower().replace("_", "").rstrip("0123456789")
    return word.endswith(NORMS)


def layer(name: str) -> str:
    """The module that has the array; an array without one is its own."""
    return name.rpartition(".")[0] or name
