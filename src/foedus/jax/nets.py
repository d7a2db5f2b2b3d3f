"""Models as two functions over a tree of arrays: Flax (linen) modules, and (init, apply) as they are.
Keys and errors may come in."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from foedus.errors import JobError
from foedus.keys import Key

Tree = Any  # nested mappings and lists of arrays
MOST_DEPTH = 6
WORDS = ("train", "training", "deterministic")  # with which a model is told whether it trains


class Net(NamedTuple):
    """A model as two functions over arrays in a tree."""

    init: Callable[[Any], Tree]  # of a jax key
    apply: Callable[..., tuple[Any, Tree]]  # (tree, x, rng, training) -> (outputs, the tree's buffers as they are then)
    buffers: Callable[[str], bool] = lambda name: False


def net_of(model: Any, inputs: tuple[int, ...] | None) -> Net:
    if isinstance(model, tuple) and len(model) == 2 and all(map(callable, model)):
        return _plain(*model)
    if not (hasattr(model, "init") and hasattr(model, "apply")):
        raise JobError(f"JaxLearner({type(model).__name__}): give a Flax linen module, or (init, apply)")
    if inputs is None:
        raise JobError(f"JaxLearner({type(model).__name__}, …): a Flax module needs inputs=…, the shape of one example")
    return _flax(model, inputs)


def _plain(init: Callable[..., Tree], apply: Callable[..., Any]) -> Net:
    takes = inspect.signature(apply).parameters

    def applied(tree: Tree, x: Any, rng: Any, training: bool) -> tuple[Any, Tree]:
        return apply(tree, x, **_mode(takes, training), **({"rng": rng} if "rng" in takes else {})), tree

    return Net(init, applied)


def _flax(module: Any, inputs: tuple[int, ...]) -> Net:
    """Collections other than `params` change in training, and are buffers."""
    takes = inspect.signature(module.__call__).parameters

    def init(rng: Any) -> Tree:
        return module.init({"params": rng, "dropout": rng}, jnp.zeros((1, *inputs)), **_mode(takes, False))

    def applied(tree: Tree, x: Any, rng: Any, training: bool) -> tuple[Any, Tree]:
        if not training:
            return module.apply(tree, x, **_mode(takes, False)), tree
        others = [name for name in tree if name != "params"]
        found = module.apply(tree, x, **_mode(takes, True), rngs={"dropout": rng}, mutable=others)
        return found[0], {**tree, **found[1]}

    return Net(init, applied, lambda name: not name.startswith("params."))


def _mode(takes: Mapping[str, Any], training: bool) -> dict[str, bool]:
    return {word: training != (word == "deterministic") for word in WORDS if word in takes}


def rng_of(key: Key) -> Any:
    """A jax key of that name."""
    return jax.random.wrap_key_data(jnp.asarray(np.frombuffer(key.digest()[:8], "<u4")), impl="threefry2x32")


def described(x: Any, depth: int = 0) -> Any:
    """`x` as plain data: functions by name, with the values that they closed over; modules by their fields."""
    deeper = partial(described, depth=depth + 1)
    if x is None or isinstance(x, (bool, int, float, str)):
        return x
    if depth > MOST_DEPTH:
        return type(x).__qualname__
    if isinstance(x, partial):
        return [*map(deeper, (x.func, *x.args)), {k: deeper(v) for k, v in x.keywords.items()}]
    if isinstance(x, (list, tuple)):
        return [deeper(part) for part in x]
    if hasattr(x, "__dataclass_fields__") and not isinstance(x, type):
        fields = [name for name in x.__dataclass_fields__ if name not in ("parent", "name")]
        return [type(x).__qualname__, {name: deeper(getattr(x, name)) for name in fields}]
    cells = [cell.cell_contents for cell in getattr(x, "__closure__", None) or ()]
    return [getattr(x, "__qualname__", type(x).__qualname__), *map(deeper, cells)]
