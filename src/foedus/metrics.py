"""Metrics as sums: each site sends sums over its examples, these are added exactly, the ratio is taken once at the end.
Only numpy and the errors may come in; a model's outputs and the targets arrive as arrays."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from foedus import ranking
from foedus.errors import FoedusError, JobError

Array = np.ndarray[Any, np.dtype[Any]]
Interval = tuple[float, float]
Reads = Literal["logits", "probabilities"]
PREFIXES = ("personal_test_", "personal_", "test_", "train_")  # of names under which the same metric is kept apart
BINS, CALIBRATED = 4096, 15
FLOAT = np.dtype(np.float64)
Z = 1.959963984540054  # the normal quantile of 97.5 %


class Metric(NamedTuple):
    """What a site adds up (`sums`: outputs, targets -> a fixed-shape float64 or int64 array) and what that means.

    `bound` is the largest error of `value`, where it is approximate; `interval` gives its 95 % confidence interval.

    >>> off_by_one = lambda outputs, targets: np.array([(abs(outputs - targets) <= 1).sum(), len(targets)])
    >>> close = Metric("close", off_by_one, lambda s: s[0] / s[1], "max")
    >>> values(measure([close], np.array([1, 5, 9]), np.array([2, 2, 9])), [close])
    {'close': 0.6666666666666666}
    """

    name: str
    sums: Callable[[Array, Array], Array]
    value: Callable[[Array], float]
    better: Literal["min", "max"]
    bound: Callable[[Array], float] | None = None
    interval: Callable[[Array], Interval] | None = None
    shapes: Sequence[tuple[int | None, ...]] = ()  # that the sums may have, None for any length; (): not known
    sensitivity: float | None = None  # of counts: the L2 norm of what one example adds, at most; None: no bound


def metric(spec: str | Metric, reads: Reads = "logits") -> Metric:
    """The metric of that name, for a model whose outputs are `reads`; a Metric of one's own is given back as it is.

    Raises JobError with the known names.
    """
    found = BUILT.get(spec) if isinstance(spec, str) else spec
    if not isinstance(found, Metric):
        near = difflib.get_close_matches(str(spec), BUILT, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise JobError(f"there is no metric {spec!r}: {hint}choose from {', '.join(BUILT)}, or give a fd.Metric")
    if reads == "probabilities" and BUILT.get(found.name) is found:
        return found._replace(sums=partial(found.sums, reads=reads))  # type: ignore[call-arg]
    return found


def recall_at(alert_rate: float) -> Metric:
    """Recall when the `alert_rate` (0.01: one in a hundred) of examples with the highest scores raise an alert."""
    if not 0 < alert_rate < 1:
        raise JobError(f"recall_at(alert_rate={alert_rate!r}): it is a share of the examples, above 0 and below 1")
    value = partial(ranking.recall_at, rate=alert_rate)

    def interval(sums: Array) -> Interval:
        return _wilson(value(sums) * sums[1].sum(), sums[1].sum())

    bound = partial(ranking.recall_at_bound, rate=alert_rate)
    return Metric(f"recall_at_{alert_rate:g}", _ranked, value, "max", bound, interval, [(2, BINS)])


def plain(name: str) -> str:
    """The metric's own name: `test_auc` and `personal_auc` are both `auc`."""
    return next((name.removeprefix(p) for p in PREFIXES if name.startswith(p)), name)


def measure(
    metrics: Iterable[str | Metric], outputs: Any, targets: Any, losses: Any = None, reads: Reads = "logits"
) -> dict[str, Array]:
    """The sums of every metric over one batch; batches are put together with `add`.

    `losses`, one an example, is what the metric `loss` needs.
    """
    x, y = np.asarray(outputs), np.asarray(targets)
    found = {}
    for m in (metric(spec, reads) for spec in metrics):
        if m.name == "loss" and losses is None:
            raise JobError("the metric 'loss' needs the learner's losses, one an example")
        found[m.name] = moments(np.asarray(losses, np.float64)) if m.name == "loss" else m.sums(x, y)
    return found


def add(many: Iterable[Mapping[str, Any]]) -> dict[str, Array]:
    """name -> the sum over all mappings that hold the name, sorted by name; the same bits in any order.

    Whole numbers add as int64, others as float64, correctly rounded. Raises FoedusError for shapes that differ.
    """
    return {name: _added(name, arrays) for name, arrays in sorted(_by_name(many).items())}


def pooled(many: Sequence[Mapping[str, Any]]) -> dict[str, Array]:
    """As `add`, but without the names whose arrays have other shapes at other sites: these have no sum."""
    shaped = ((name, xs) for name, xs in sorted(_by_name(many).items()) if len({x.shape for x in xs}) == 1)
    return {name: _added(name, arrays) for name, arrays in shaped}


def values(sums: Mapping[str, Any], metrics: Iterable[str | Metric]) -> dict[str, float]:
    """name -> value for each of `metrics`, under plain and prefixed names; NaN where undefined (AUC of one class)."""
    return {name: float(m.value(x)) for name, m, x in _matched(sums, metrics)}


def bounds(sums: Mapping[str, Any], metrics: Iterable[str | Metric]) -> dict[str, float]:
    """name -> the largest error of the value, for metrics that are approximate."""
    return {name: float(m.bound(x)) for name, m, x in _matched(sums, metrics) if m.bound}


def intervals(sums: Mapping[str, Any], metrics: Iterable[str | Metric]) -> dict[str, Interval]:
    """name -> 95 % confidence interval (low, high) over examples, for metrics that have one; NaN where undefined."""
    return {name: m.interval(x) for name, m, x in _matched(sums, metrics) if m.interval}


def scores(outputs: Any, reads: Reads = "logits") -> Array:
    """Probabilities in float64: of class 1 for one or two columns, of each class along axis 1 for more.

    `outputs` are (n,), (n, 1) or (n, C); with pixels (n, 1, …) or (n, C, …). Logits: one column goes through the
    sigmoid, more through softmax. Probabilities: taken as they are. Which of the two is never guessed from the values.
    """
    x = _checked(outputs, reads)
    if reads == "probabilities":
        return (x if x.ndim == 1 or x.shape[1] > 2 else x[:, -1]).astype(np.float64)
    return _softmax(x.astype(np.float64)) if _columns(x) > 2 else _sigmoid(_margin(x))


def _matched(sums: Mapping[str, Any], metrics: Iterable[str | Metric]) -> Iterator[tuple[str, Metric, Array]]:
    known = {m.name: m for m in map(metric, metrics)}
    for name, x in sums.items():
        found = known.get(name) or known.get(plain(name))
        if found is not None:
            yield name, found, _shaped(name, found, np.asarray(x))


def _shaped(name: str, m: Metric, x: Array) -> Array:
    if m.shapes and not any(_like(x.shape, pattern) for pattern in m.shapes):
        raise ValueError(f"the sums of {name!r} have shape {x.shape}, not {' or '.join(map(str, m.shapes))}")
    return x


def _like(shape: tuple[int, ...], pattern: tuple[int | None, ...]) -> bool:
    return len(shape) == len(pattern) and all(n in (None, k) for n, k in zip(pattern, shape, strict=True))


def _by_name(many: Iterable[Mapping[str, Any]]) -> dict[str, list[Array]]:
    """name -> its arrays, in the order of the mappings."""
    found = dict[str, list[Array]]()
    for row in many:
        for name, x in row.items():
            array = x if getattr(x, "dtype", None) is FLOAT and isinstance(x, np.ndarray) else _accepted(name, x)
            if name in found:
                found[name].append(array)
            else:
                found[name] = [array]
    return found


def _accepted(name: str, value: Any) -> Array:
    x = np.asarray(value)
    if x.dtype.kind not in "biuf" or x.dtype == np.uint64:
        raise FoedusError(f"metric {name!r} is {x.dtype}: return a float or an array of float64 or int64 sums")
    return x.astype(np.float64 if x.dtype.kind == "f" else np.int64, copy=False)


def _added(name: str, arrays: Sequence[Array]) -> Array:
    shapes = sorted({x.shape for x in arrays})
    if len(shapes) > 1:
        raise FoedusError(f"metric {name!r} has shape {shapes[0]} here, {shapes[1]} there: sums have one fixed shape")
    if all(x.dtype == np.int64 for x in arrays):
        return _added_whole(name, arrays)
    columns = np.array(arrays, np.float64).reshape(len(arrays), -1).T.tolist()
    return np.array([_rounded_once(column) for column in columns]).reshape(shapes[0])


def _added_whole(name: str, arrays: Sequence[Array]) -> Array:
    high, low = np.zeros_like(arrays[0]), np.zeros_like(arrays[0])
    for x in arrays:  # in halves, so that a count that is too large is found in any order
        high, low = high + (x >> 32), low + (x & 0xFFFFFFFF)
    high = high + (low >> 32)
    if (high != high.astype(np.int32)).any():
        raise FoedusError(f"metric {name!r} adds up to more than 64 bits hold: a site counts wrongly")
    return np.asarray((high << 32) + (low & 0xFFFFFFFF))


def _rounded_once(numbers: list[float]) -> float:
    odd = [x for x in numbers if not math.isfinite(x)]
    if odd:
        return sum(odd)
    try:
        return math.fsum(numbers)
    except OverflowError:  # on the way, in some orders only
        return _nearest(sum(map(Fraction, numbers), Fraction()))


def _nearest(number: Fraction) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def _columns(x: Array) -> int:
    return x.shape[1] if x.ndim > 1 else 1


def _checked(outputs: Any, reads: Reads) -> Array:
    x = np.asarray(outputs)
    if not np.isfinite(x).all():
        raise FoedusError("the model's outputs hold NaN or Inf: lower the learning rate or clip gradients")
    if reads == "probabilities" and x.size and not (x.min() >= 0 and x.max() <= 1):
        raise FoedusError(f"outputs from {x.min():g} to {x.max():g} are no probabilities: say reads='logits'")
    return x


def _margin(x: Array) -> Array:
    """The logit of class 1 from one or two columns of logits."""
    x = x.astype(np.float64)
    return x if x.ndim == 1 else x[:, 0] if x.shape[1] == 1 else x[:, 1] - x[:, 0]


def _sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-x)))


def _softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def _classes(targets: Any, outputs: Array) -> Array:
    """Targets as class numbers, (n,) or (n, pixels…)."""
    y, shape, count = np.asarray(targets), outputs.shape[:1] + outputs.shape[2:], max(2, _columns(outputs))
    if y.dtype.kind not in "biuf" or y.shape not in (shape, (*shape[:1], 1, *shape[1:])):
        raise FoedusError(f"targets {y.shape} of {y.dtype} do not fit outputs {outputs.shape}: give classes {shape}")
    y = y.reshape(shape)
    with np.errstate(invalid="ignore"):
        whole = y.astype(np.int64)
    if (whole != y).any() or (whole.size and not (whole.min() >= 0 and whole.max() < count)):
        raise FoedusError(f"targets must be whole numbers from 0 to {count - 1} for outputs of shape {outputs.shape}")
    return whole


def _predicted(outputs: Array, targets: Array, reads: Reads) -> tuple[Array, Array]:
    """Class numbers, predicted and true, (n,) or (n, pixels…); a tie goes to the lower class."""
    x = _checked(outputs, reads)
    true = _classes(targets, x)
    if _columns(x) > 1:
        return x.argmax(axis=1), true
    return (x > (0 if reads == "logits" else 0.5)).astype(np.int64).reshape(true.shape), true


def _errors(outputs: Array, targets: Array) -> Array:
    x, y = (v[:, 0] if v.ndim == 2 and v.shape[1] == 1 else v for v in (outputs, targets))
    if x.shape != y.shape:
        raise FoedusError(f"targets {y.shape} do not fit outputs {x.shape}: a regression needs equal shapes")
    return np.asarray(x.astype(np.float64) - y)


# What sites add up: `reads` says what the outputs are.


def moments(x: Array) -> Array:
    """The sums of a mean with an interval: [sum, count, sum of squares]."""
    return np.array([x.sum(), x.size, np.square(x).sum()], np.float64)


def _hits(outputs: Array, targets: Array, reads: Reads = "logits") -> Array:
    predicted, true = _predicted(outputs, targets, reads)
    return np.array([(predicted == true).sum(), true.size], np.int64)


def _confusion(outputs: Array, targets: Array, reads: Reads = "logits") -> Array:
    """Counts [[true negatives, false positives], [false negatives, true positives]]."""
    if _columns(outputs) > 2:
        raise JobError("precision, recall and f1 are for two classes: use balanced_accuracy for more")
    predicted, true = _predicted(outputs, targets, reads)
    return np.bincount((2 * true + predicted).ravel(), minlength=4).reshape(2, 2)


def _by_class(outputs: Array, targets: Array, reads: Reads = "logits") -> Array:
    """Per class: how many were found, how many there are; (2, C)."""
    predicted, true = _predicted(outputs, targets, reads)
    count = max(2, _columns(outputs))
    return np.stack([np.bincount(y.ravel(), minlength=count) for y in (true[predicted == true], true)])


def _binned(outputs: Array, targets: Array, reads: Reads = "logits") -> Array:
    """Negatives and positives by score, (2, BINS); of more than two classes each against the rest, (C, 2, BINS)."""
    x, true = _checked(outputs, reads), _classes(targets, outputs)
    one = reads == "logits" and _columns(x) <= 2
    p, edges = (_margin(x), EDGES) if one else (scores(x, reads), _sigmoid(EDGES))
    pairs = [(p, true)] if p.shape == true.shape else [(p[:, c], true == c) for c in range(p.shape[1])]
    rows = [np.bincount((BINS * y + np.searchsorted(edges, q, "right")).ravel(), minlength=2 * BINS) for q, y in pairs]
    return np.stack(rows).reshape(-1, 2, BINS)[slice(None) if len(rows) > 1 else 0]


def _ranked(outputs: Array, targets: Array, reads: Reads = "logits") -> Array:
    """Negatives and positives by score, (2, BINS), of two classes alone."""
    if _columns(outputs) > 2:
        raise JobError("pr_auc, ks and recall_at are for two classes: use auc for more")
    return _binned(outputs, targets, reads)


def _calibrated(outputs: Array, targets: Array, reads: Reads = "logits") -> Array:
    """Examples, sum of probabilities and positives by probability, (3, CALIBRATED), of two classes alone."""
    if _columns(outputs) > 2:
        raise JobError("ece is for two classes: use brier for more")
    p, true = scores(outputs, reads).ravel(), _classes(targets, outputs).ravel()
    at = np.minimum((p * CALIBRATED).astype(np.int64), CALIBRATED - 1)
    return np.stack([np.bincount(at, w, CALIBRATED).astype(np.float64) for w in (None, p, true)])


def _brier(outputs: Array, targets: Array, reads: Reads = "logits") -> Array:
    """The squared error of the probability of class 1; of more than two classes, summed over them (Brier 1950)."""
    true, p = _classes(targets, outputs), scores(outputs, reads)
    if p.shape == true.shape:
        return moments(np.square(p - true))
    own = np.take_along_axis(p, true[:, None], 1)[:, 0]
    return moments(np.square(p).sum(1) + (1 - 2 * own))


def _dice(outputs: Array, targets: Array, reads: Reads = "logits") -> Array:
    """Dice of the foreground (every class but 0) of each case; 1 where there is none and none was found."""
    predicted, true = ((y > 0).reshape(len(y), math.prod(y.shape[1:])) for y in _predicted(outputs, targets, reads))
    overlap, sizes = (predicted & true).sum(1), predicted.sum(1) + true.sum(1)
    return moments(np.where(sizes > 0, 2 * overlap / np.maximum(sizes, 1), 1.0))


def _absolute(outputs: Array, targets: Array, reads: Reads = "logits") -> Array:
    return moments(abs(_errors(outputs, targets)))


def _squared(outputs: Array, targets: Array, reads: Reads = "logits") -> Array:
    return moments(np.square(_errors(outputs, targets)))


def _by_learner(outputs: Array, targets: Array, reads: Reads = "logits") -> Array:
    raise JobError("the metric 'loss' comes from the learner: [sum of losses, n] or [sum, n, sum of squares]")


# What sums mean: values, bounds, 95 % intervals.


def _ratio(a: float, b: float) -> float:
    return float(a / b) if b else math.nan


def _share(sums: Array) -> float:
    return _ratio(sums[0], sums[1])


def _wilson(hits: float, n: float) -> Interval:
    """Wilson 1927: the score interval of a proportion."""
    if not n:
        return math.nan, math.nan
    p, q = float(hits) / float(n), Z * Z / float(n)
    middle, half = (p + q / 2) / (1 + q), Z * math.sqrt(p * (1 - p) / n + q / (4 * n)) / (1 + q)
    return max(0.0, middle - half), min(1.0, middle + half)


def _normal(sums: Array, least: float = -math.inf, most: float = math.inf) -> Interval:
    """By the normal distribution of means, within what the metric can be: `least` to `most`."""
    if len(sums) < 3 or sums[1] < 2:
        return math.nan, math.nan
    total, n, squares = map(float, sums)
    half = Z * math.sqrt(max(0.0, squares - total * total / n) / (n - 1) / n)
    return max(least, total / n - half), min(most, total / n + half)


def _areas(sums: Array) -> Array:
    """AUC and its bound, a row for each class that has others to compare with: a tie within a bin counts one half."""
    n, p = sums.reshape(-1, 2, BINS).astype(np.float64).swapaxes(0, 1)
    pairs = p.sum(1) * n.sum(1)
    ties = (p * n).sum(1) / 2
    wins = (p[:, 1:] * n.cumsum(1)[:, :-1]).sum(1)
    return np.asarray(np.stack([wins + ties, ties], 1)[pairs > 0] / pairs[pairs > 0, None])


def _auc(sums: Array, column: int = 0) -> float:
    areas = _areas(sums)[:, column]
    return float(areas.mean()) if areas.size else math.nan


def _newcombe(sums: Array) -> Interval:
    """Newcombe 2006 (Statistics in Medicine 25:559), method 5: sound for few cases and for an AUC of 1."""
    area, (n, p) = _auc(sums), map(int, sums.sum(-1) if sums.ndim == 2 else (0, 0))
    if not n * p:
        return math.nan, math.nan

    def outside(a: float) -> bool:
        spread = a * (1 - a) * (1 + ((n + p) / 2 - 1) * ((1 - a) / (2 - a) + a / (1 + a))) / (n * p)
        return abs(a - area) > Z * math.sqrt(spread)

    return _border(outside, 0.0, area), _border(outside, 1.0, area)


def _border(outside: Callable[[float], bool], far: float, near: float) -> float:
    for _ in range(50):
        middle = (far + near) / 2
        far, near = (middle, near) if outside(middle) else (far, middle)
    return near


def _recalls(sums: Array) -> Array:
    return np.asarray(sums[0, sums[1] > 0] / sums[1, sums[1] > 0])


def _macro(sums: Array) -> float:
    return float(_recalls(sums).mean()) if sums[1].any() else math.nan


def _mover(sums: Array) -> Interval:
    """The mean of independent proportions from their Wilson intervals (Zou and Donner 2008)."""
    if not sums[1].any():
        return math.nan, math.nan
    found = _recalls(sums)
    low, high = np.array([_wilson(a, n) for a, n in sums.T.tolist() if n]).T
    half = [float(np.linalg.norm(end - found)) / len(found) for end in (low, high)]
    return float(found.mean()) - half[0], float(found.mean()) + half[1]


def _f1(sums: Array) -> float:
    return _ratio(2 * sums[1, 1], 2 * sums[1, 1] + sums[0, 1] + sums[1, 0])


def _f1_interval(sums: Array) -> Interval:
    """F1 is 2j/(1 + j) of the share j = true positives / (all but true negatives), which has a Wilson interval."""
    low, high = _wilson(sums[1, 1], sums.sum() - sums[0, 0])
    return 2 * low / (1 + low), 2 * high / (1 + high)


def _root(sums: Array) -> float:
    return math.sqrt(_share(sums))


def _root_interval(sums: Array) -> Interval:
    low, high = _normal(sums)
    return math.sqrt(max(low, 0.0)), math.sqrt(high)


def _proportion(name: str, sums: Callable[..., Array], part: Callable[[Array], tuple[float, float]]) -> Metric:
    return Metric(name, sums, lambda s: _ratio(*part(s)), "max", None, lambda s: _wilson(*part(s)))


_EVEN = np.arange(1, BINS) * (2 / BINS) - 1
EDGES = _EVEN / (1 - abs(_EVEN))  # of the bins, as logits z: even steps of z/(1 + |z|) tell very sure scores apart too
_ALL = (
    Metric("loss", _by_learner, _share, "min", None, _normal),
    _proportion("accuracy", _hits, lambda s: (s[0], s[1])),
    _proportion("precision", _confusion, lambda s: (s[1, 1], s[:, 1].sum())),
    _proportion("recall", _confusion, lambda s: (s[1, 1], s[1].sum())),
    Metric("f1", _confusion, _f1, "max", None, _f1_interval),
    Metric("balanced_accuracy", _by_class, _macro, "max", None, _mover),
    Metric("auc", _binned, _auc, "max", partial(_auc, column=1), _newcombe),
    Metric(
        "pr_auc",
        _ranked,
        ranking.average_precision,
        "max",
        ranking.average_precision_bound,
        ranking.average_precision_interval,
    ),
    Metric("ks", _ranked, ranking.kolmogorov_smirnov, "max", ranking.kolmogorov_smirnov_bound),
    Metric("ece", _calibrated, ranking.calibration_error, "min"),
    Metric("brier", _brier, _share, "min", None, partial(_normal, least=0.0, most=2.0)),
    Metric("dice", _dice, _share, "max", None, partial(_normal, least=0.0, most=1.0)),
    Metric("mae", _absolute, _share, "min", None, partial(_normal, least=0.0)),
    Metric("rmse", _squared, _root, "min", None, _root_interval),
)
_SHAPES: Mapping[Any, Sequence[tuple[int | None, ...]]] = {
    _hits: [(2,)],
    _confusion: [(2, 2)],
    _by_class: [(2, None)],
    _binned: [(2, BINS), (None, 2, BINS)],
    _ranked: [(2, BINS)],
    _calibrated: [(3, CALIBRATED)],
}
_EACH: Mapping[Any, float] = {_hits: math.sqrt(2), _confusion: 1.0, _by_class: math.sqrt(2)}
BUILT = {m.name: m._replace(shapes=_SHAPES.get(m.sums, [(2,), (3,)]), sensitivity=_EACH.get(m.sums)) for m in _ALL}
