"""One Task's updates on their way to a Total, in memory or chunk by chunk from files; the checks come first.
Aggregators come in as values; nothing here knows who sends updates or how."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, cast

import numpy as np

from foedus import metrics
from foedus.aggregators import exact
from foedus.aggregators.fixed import OutOfBound
from foedus.aggregators.gathering import COLUMNS, gathered, shares
from foedus.core import Gather, Origin, Outcome, Slice, Sum, Total, Update
from foedus.errors import FoedusError, Refused
from foedus.params import DTYPES, Array, Params, Spec, kind, wide
from foedus.rows import Rows, listed

MOST_UPDATES = 1 << 22
MOST_WHOLE = (1 << 63) // MOST_UPDATES  # of a whole number among metrics, so that the sum of all has 64 bits
ROWS = 64  # that are added at once
UNIT = 160  # weights are whole multiples of 2**-160
FAR = 2.0**500  # squares of differences of numbers up to here can be added up in float64
CHECKING = "checking its update"


def check(update: Update, spec: Spec, site: str) -> Update:
    """The update itself, in the order of `spec`, if it is what the Task announced; never depends on who came first.

    Raises Refused, which names site, array and remedy.
    """
    if not _good(update.weight):
        remedy = "return a positive weight of at most 29 significant bits, for example the number of examples"
        raise Refused(site, CHECKING, f"weight {update.weight!r} cannot be used", remedy)
    _check_sums(update.metrics, site)
    params = _named(update.params, spec, site)
    if params.spec is not spec and params.spec != spec:
        _check_spec(params.spec, spec, site)
        params = params.ordered(spec)
    return update._replace(params=params, weight=float(update.weight))


def _named(params: Any, spec: Spec, site: str) -> Params:
    if isinstance(params, Params):
        return params
    try:
        return Params(params, {leaf.name: leaf.kind for leaf in spec})
    except (FoedusError, AttributeError, TypeError, ValueError) as error:
        raise Refused(
            site, CHECKING, f"its params are {type(params).__name__} ({error})", "return named arrays"
        ) from error


def _check_spec(sent: Spec, announced: Spec, site: str) -> None:
    ours, theirs = ({leaf.name: (leaf.dtype, leaf.shape, leaf.kind) for leaf in spec} for spec in (announced, sent))
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            why = f"array {name!r} is {_said(theirs.get(name))}, the Task announced {_said(ours.get(name))}"
            raise Refused(site, CHECKING, why, "build the model of this Job")


def _check_sums(sums: Any, site: str) -> None:
    odd = [name for name, x in sums.items() if not _summable(x)] if isinstance(sums, Mapping) else [type(sums).__name__]
    if odd:
        raise Refused(site, CHECKING, f"metric {odd[0]!r} is no sum", "return a mapping of name to a float or an array")


def _fine(x: Array) -> Array:
    """Which sites' averages, (sites, 3), are numbers."""
    if x.dtype != np.float64 or x.ndim != 2 or x.shape[1] != 3:
        return np.zeros(len(x), bool)
    return np.asarray(np.isfinite(x).all(1))


def _summable(x: Any) -> bool:
    try:
        x = np.asarray(x)
    except ValueError:
        return False
    whole = x.dtype.kind in "iu" and x.dtype != np.uint64
    return x.dtype.kind in "bf" or (whole and not ((x >= MOST_WHOLE) | (x <= -MOST_WHOLE)).any())


def check_finite(params: Params, site: str) -> None:
    """Raises Refused if an array holds NaN or Inf, and says which."""
    for name, x in params.items():
        if kind(x.dtype.name) == "trainable" and not _finite(x.reshape(-1)):
            raise _not_finite(site, name)


def _finite(x: Array) -> bool:
    """Whether all numbers are finite, looked at in chunks so that memory stays flat."""
    return all(bool(np.isfinite(x[at : at + COLUMNS]).all()) for at in range(0, x.size, COLUMNS))


def bound(aggregator: Any, asked: int) -> Any:
    """The aggregator with what its arithmetic needs to know: the number of sites asked."""
    if isinstance(aggregator, Gather) or aggregator.bind is None:
        return aggregator
    return aggregator.bind(asked)._replace(opened=aggregator.opened)


def check_room(aggregator: Sum | Gather, update: Update, site: str, asked: int) -> None:
    """Raises Refused if the arithmetic has no room for an update of finite numbers: its largest ones are tried."""
    if isinstance(aggregator, Gather):
        _check_far(update.params, site)
        return
    rule: Sum = bound(aggregator, asked)
    weight = rule.weigh(update, Origin(site, 0, 0))
    for group, x in update.params.flats.items():
        if kind(group) != "integer" and x.size and (rule.ring is not None or group.startswith("float64")):
            ends = np.stack([x.max(), x.min()])
            try:
                rule.fold(None, {group: ends}, weight)
            except (exact.NotFinite, OutOfBound) as error:
                raise _beyond(update.params, site, error) from None


def _check_far(params: Params, site: str) -> None:
    x = params.flats.get("float64")
    if x is not None and x.size and not max(x.max(), -x.min()) <= FAR:
        raise Refused(site, CHECKING, f"a float64 array holds numbers above {FAR:g}: distances have no room for them")


def opened(aggregator: Sum | Gather, update: Update, site: str) -> Update:
    """The update as it is aggregated, where sites return something smaller. Raises Refused if it cannot be read."""
    if aggregator.opened is None:
        return update
    try:
        return update._replace(params=aggregator.opened.read(update.params))
    except (FoedusError, ArithmeticError, LookupError, ValueError) as error:
        raise Refused(site, CHECKING, f"it cannot be read ({error})", "compress with this Job's compress=…") from error


class Folding:
    """What one Task has counted so far: the same Total in any order and any tree of merges."""

    def __init__(self, aggregator: Sum | Gather, spec: Spec, asked: int) -> None:
        self.aggregator, self.announced = bound(aggregator, asked), spec
        spec = self.spec = spec if aggregator.opened is None else aggregator.opened.spec
        self.floats = [g for g in dict.fromkeys(leaf.group for leaf in spec) if kind(g) != "integer"]
        self.acc: Any = None
        self.most: dict[str, Array] = {}
        self.rows: list[tuple[Origin, float, Slice]] = []
        self.apart: dict[str, Params] = {}
        self.units, self.count = 0, 0
        self.sums: list[Mapping[str, Any]] = []

    def add(self, update: Update, origin: Origin) -> None:
        """Counts one update; a refused one (the error is Refused) leaves no trace."""
        update = opened(self.aggregator, check(update, self.announced, origin.site), origin.site)
        flats = update.params.flats
        weight = self.weigh(update, origin)
        part = {g: flats[g] for g in self.floats}
        if isinstance(self.aggregator, Gather):
            check_finite(update.params, origin.site)
            _check_far(update.params, origin.site)
        self._take(part, weight, origin, update.params)
        for g, x in flats.items():
            if g not in part:
                self.most[g] = np.maximum(self.most[g], x) if g in self.most else x.copy()
        self._count(update.metrics, weight)

    @property
    def adds(self) -> bool:
        """Whether `add_rows` may be called."""
        return isinstance(self.aggregator, Sum) and self.aggregator.opened is None

    def add_rows(self, update: Update, origins: Sequence[Origin]) -> list[Outcome | None]:
        """Counts an update of many sites, see foedus.rows; None for a site whose update `add` would refuse."""
        count, rows = len(origins), cast(Rows, update.params)
        given = listed(update.weight, count)
        known = {x: float(x) if _good(x) else 0.0 for x in set(given)}
        weights = [known[x] for x in given]
        sums = {name: np.asarray(listed(x, count)) for name, x in update.metrics.items()}
        fit = np.array(weights) > 0
        for x in sums.values():
            fit &= _fine(x)
        found: list[Outcome | None] = [None] * count
        site = sorted(range(count), key=rows.at.__getitem__)  # of each row
        for a in range(0, count, ROWS):
            here = [i for i in site[a : a + ROWS] if fit[i]]
            at = slice(a, a + ROWS) if len(here) == len(site[a : a + ROWS]) else [rows.at[i] for i in here]
            part = rows.read(at)
            ones = [Update(update.params, weights[i], {name: x[i] for name, x in sums.items()}) for i in here]
            weighed = [self.weigh(one, origins[i]) for one, i in zip(ones, here, strict=True)]
            for i, one, weight, good in zip(here, ones, weighed, self._take_rows(part, weighed), strict=True):
                if good:
                    self._count(one.metrics, weight)
                    found[i] = Outcome(origins[i].site, "counted", "", one.weight, one.metrics)
        return found

    def _take_rows(self, part: Slice, weights: Sequence[float]) -> Sequence[bool]:
        """Adds rows, and says which; those that cannot be added leave no trace."""
        floats, rule = {g: part[g] for g in self.floats}, self.aggregator
        assert isinstance(rule, Sum)
        good = [bool(weights)] * len(weights)
        if rule.rows is not None and floats:
            try:
                self.acc = rule.rows(self.acc, floats, weights)
            except (exact.NotFinite, OutOfBound):
                good = [self._take_row({g: x[i] for g, x in floats.items()}, w) for i, w in enumerate(weights)]
        else:
            good = [self._take_row({g: x[i] for g, x in floats.items()}, w) for i, w in enumerate(weights)]
        for g, x in part.items():
            if kind(g) == "integer" and any(good):
                self.most[g] = np.maximum(self.most.get(g, x[0]), x[0])  # the same at all sites
        return good

    def _take_row(self, part: Slice, weight: float) -> bool:
        try:
            self.acc = self.aggregator.fold(self.acc, part, weight) if part else self.acc
        except (exact.NotFinite, OutOfBound):
            return False
        return True

    def _count(self, sums: Mapping[str, Any], weight: float) -> None:
        self.sums.append(sums)
        self.units += int(math.ldexp(weight, UNIT))
        self.count += 1

    def weigh(self, update: Update, origin: Origin) -> float:
        if self.count >= MOST_UPDATES:
            raise FoedusError(f"more than {MOST_UPDATES:,} updates in one Total: use a smaller cohort")
        return self.aggregator.weigh(update, origin) if isinstance(self.aggregator, Sum) else update.weight

    def _take(self, part: Slice, weight: float, origin: Origin, params: Params) -> None:
        if isinstance(self.aggregator, Gather) and self.aggregator.apart:
            self.apart[origin.site] = params.copy()
        elif isinstance(self.aggregator, Gather):
            self.rows.append((origin, weight, {g: x.copy() for g, x in part.items()}))
        elif part:
            try:
                self.acc = self.aggregator.fold(self.acc, part, weight)
            except (exact.NotFinite, OutOfBound) as error:
                check_finite(params, origin.site)
                raise _beyond(params, origin.site, error) from None

    def merge(self, other: Folding) -> None:
        """Takes over what `other` counted, which may not be used again."""
        if self.acc is not None and other.acc is not None:
            assert isinstance(self.aggregator, Sum)
            self.acc = self.aggregator.merge(self.acc, other.acc)
        elif self.acc is None:
            self.acc = other.acc
        for g, x in other.most.items():
            self.most[g] = np.maximum(self.most[g], x) if g in self.most else x
        self.rows += other.rows
        self.apart |= other.apart
        self.sums += other.sums
        self.units, self.count = self.units + other.units, self.count + other.count

    def take(self, acc: Any, weight: Fraction, count: int, sums: Mapping[str, Any]) -> None:
        """Counts so many updates whose sum alone is known: of arrays, of weights, of metrics."""
        self.acc, self.units, self.count = acc or None, int(weight * (1 << UNIT)), count
        self.sums.append(sums)

    def weight(self) -> Fraction:
        return Fraction(self.units, 1 << UNIT)

    def total(self, outcomes: Sequence[Outcome] = ()) -> Total:
        """The Total of what was counted; half-precision arrays come back as float32."""
        if not self.count:
            raise FoedusError("no update was counted: there is no mean of nothing")
        params, sums = Params({}) if self.apart else self._combined(), metrics.pooled(self.sums)
        return Total(params, float(self.weight()), self.count, sums, outcomes, dict(sorted(self.apart.items())))

    def _combined(self) -> Params:
        flats = {**self.most, **self._floats()}
        return _regrouped(self.spec, tuple(wide(leaf) for leaf in self.spec), flats)

    def _floats(self) -> Slice:
        if isinstance(self.aggregator, Sum):
            return dict(self.aggregator.finish(self.acc, self.weight())) if self.acc is not None else {}
        rows = sorted(self.rows, key=lambda row: row[0])
        origins, parts = [o for o, _, _ in rows], [part for _, _, part in rows]
        found = shares(self.aggregator, self.spec, [w for _, w, _ in rows], parts)
        return {g: gathered(self.aggregator, g, origins, found, [part[g] for part in parts]) for g in self.floats}


def nothing(outcomes: Sequence[Outcome]) -> Total:
    """The Total of a Task that closed although nobody's update counted."""
    return Total(Params({}), 0.0, 0, {}, outcomes)


def combine(aggregator: Sum | Gather, updates: Mapping[str, Update]) -> dict[str, Array]:
    """What `aggregator` makes of these updates, name -> array; the order of the mapping does not count.

    >>> one, two = (Update(Params({"w": np.float32([x])}), weight=w) for x, w in ((1, 1), (5, 3)))
    >>> from foedus.aggregators import mean
    >>> combine(mean(), {"north": one, "south": two})["w"].tolist()
    [4.0]
    """
    plain = {
        s: u._replace(params=u.params if isinstance(u.params, Params) else Params(u.params)) for s, u in updates.items()
    }
    if not plain:
        raise FoedusError("no update to combine")
    folding = Folding(aggregator, plain[min(plain)].params.spec, len(plain))
    for site, update in plain.items():
        folding.add(update, Origin(site, 0, 0))
    return dict(folding.total().params)


def _regrouped(spec: Spec, wider: Spec, flats: Mapping[str, Array]) -> Params:
    if spec == wider:
        return Params.of(spec, flats)
    narrow = Params.of(spec, flats)  # float32 values under the half types' groups: views first, then one flat a group
    arrays = {leaf.name: narrow[leaf.name] for leaf in spec}
    groups: dict[str, list[Array]] = {}
    for leaf in wider:
        groups.setdefault(leaf.group, []).append(arrays[leaf.name].reshape(-1))
    return Params.of(
        wider, {g: np.concatenate(xs).astype(DTYPES[g.partition(":")[0]], copy=False) for g, xs in groups.items()}
    )


def _good(weight: Any) -> bool:
    if isinstance(weight, bool) or not isinstance(weight, (int, float, np.integer, np.floating)):
        return False
    if not 2.0**-64 <= weight <= 2.0**64:
        return False
    return math.ldexp(math.frexp(weight)[0], 29).is_integer()


def _not_finite(site: str, name: str) -> Refused:
    return Refused(site, CHECKING, f"array {name!r} holds NaN or Inf", "lower the learning rate or clip gradients")


def _beyond(params: Params, site: str, error: exact.NotFinite | OutOfBound) -> Refused:
    """The refusal of a finite update that the arithmetic has no room for; the array named has the largest value."""
    if isinstance(error, OutOfBound) and not error.group:
        return Refused(site, CHECKING, str(error))
    group = error.group if isinstance(error, OutOfBound) else "float64"  # exact has room for all others
    peaks = {
        leaf.name: np.abs(params[leaf.name]).max(initial=0) for leaf in params.spec if leaf.group.startswith(group)
    }
    return Refused(site, CHECKING, f"array {max(peaks, key=lambda name: peaks[name])!r}: {error}")


def _said(leaf: tuple[Any, ...] | None) -> str:
    return "missing" if leaf is None else f"{leaf[2]} {leaf[0]}{list(leaf[1])}"


def sized(spec: Iterable[Any]) -> int:
    """The bytes of an update of this spec."""
    return sum(leaf.size * DTYPES[leaf.dtype].itemsize for leaf in spec)
