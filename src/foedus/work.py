"""A Job's code at one place: loads a site's data and performs its works. Simulation and site workers share it.
The contract, learners and data come in as values."""

from __future__ import annotations

import sysconfig
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from foedus import columns, measured, schema
from foedus.aggregators.folding import check
from foedus.core import EVALUATE, Decline, Learner, Local, Personal, SiteContext, Task, Update, Work
from foedus.data import Site, Split, load_split
from foedus.errors import FoedusError, JobError, Refused, Relayed, SiteError
from foedus.keys import Key, key
from foedus.metrics import plain
from foedus.params import Params, Spec
from foedus.rows import Apart, Each

FOREIGN = (
    str(Path(__file__).parent),
    sysconfig.get_path("stdlib"),
    "<frozen",
    "<string>",
)  # code that is not the user's
MOST_SPLITS = 1024


class Order(NamedTuple):
    """One site's share of a Task: what the worker needs besides the Job and the site's data."""

    work: str
    payload: Params
    site: str
    round: int
    task: int
    returns: Spec | None = None
    seal: tuple[int, int] | None = None  # as a SiteContext's


def ordered(task: Task, sites: Iterable[str], round: int, number: int) -> list[Order]:
    """What these sites are asked for in a Task, which is the `number`th of its round."""
    seal = None if task.seal is None else (len(task.sites), int(task.seal.threshold))
    return [Order(task.work, task.letter(site), site, round, number, task.returns, seal) for site in sites]


class Among(NamedTuple):
    """A site's data, among that of all: what the mapping makes is not made before it is needed."""

    sites: Mapping[str, Any]


class Contract(NamedTuple):
    """What a Job asks of a site's data: the datasets by name, and the schema that they must fit."""

    datasets: Sequence[str]
    schema: schema.Schema


NOTHING_ASKED = Contract((), schema.Schema({}))


class Bench:
    """Performs works for sites with one learner, which it uses again and again; the last splits stay loaded."""

    def __init__(
        self,
        works: Mapping[str, Work],
        learner: Learner | None,
        load: Callable[..., Any] | None,
        metrics: Sequence[Any],
        seed: int,
        contract: Contract = NOTHING_ASKED,
        personal: Personal | None = None,
        tells: Sequence[str] = (),
        measuring: Callable[[Work], Work] = lambda work: work,
        columns: Sequence[str] = (),
    ) -> None:
        own = {EVALUATE: measuring(evaluation(learner, metrics, personal))} if learner else {}
        self.works = {**own, **works}
        self.learner, self.load, self.metrics, self.seed = learner, load, metrics, seed
        self.contract, self.personal, self.columns = contract, personal, columns
        self.named: Sequence[str] = ()  # the columns that it told last
        self.splits: OrderedDict[str, Split] = OrderedDict()
        self.declared = {*(m.name for m in metrics), *tells}  # names of sums that works may return
        self.secret: Key | None = None  # of a real site; a simulation has nobody to hide it from
        self.identify: Callable[[str], Any] = partial(_simulated, seed)

    def perform(self, order: Order, local: Local, data: Any) -> tuple[Local, Update | Decline]:
        """The site's new local state and its Update or Decline.

        Raises SiteError with site, stage, file and line when the Job's code raises, Refused for an update of no use.
        """
        return self.work(order, local, self.context(order, data))

    def context(self, order: Order, data: Any) -> SiteContext:
        """What the order's work may touch. Raises SiteError where the data cannot be had."""
        split = self.split(order.site, data)
        here = key(self.seed, order.round, order.task, order.site)
        secret = self.secret or key(self.seed, "secret", 0, order.site)
        train, evaluate, gradient = self._abilities
        own = partial(self.identify, order.site)
        return SiteContext(
            order.site, split, train, here, evaluate, gradient, self.metrics, secret, order.seal, own
        )  # fmt: skip

    @cached_property
    def _abilities(self) -> tuple[Callable[..., Any], ...]:
        return tuple(self._able(name) for name in ("train", "evaluate", "mean_gradient"))

    def _able(self, name: str) -> Callable[..., Any]:
        """The learner's function of that name, or one that says what is missing."""
        return getattr(self.learner, name, None) or (partial(_lacks, name) if self.learner else _no_learner)

    def own_model(self, params: Params, locals: Mapping[str, Local]) -> Params | None:
        """The model that a site has of its own beside what the run ended with; `locals`: work -> what it keeps.

        None where the algorithm gives sites none, or this one never took part.
        """
        local = None if self.personal is None else locals.get(self.personal.work)
        return None if self.personal is None or local is None else self.personal.model(params, local)

    def work(self, order: Order, local: Local, context: SiteContext) -> tuple[Local, Update | Decline]:
        """As `perform`, where the context is there."""
        try:
            local, update = self.works[order.work](order.payload, local, context)
        except SiteError:
            raise
        except (Exception, SystemExit) as error:
            raise SiteError(order.site, order.work, describe(error)) from error
        if isinstance(update, Update):
            update = check(update, order.payload.spec if order.returns is None else order.returns, order.site)
            self._declared(update, order)
            measured.check(update.metrics, self.metrics, order.site, order.work)
        elif not isinstance(update, Decline):
            why = f"it returned {type(update).__name__}"
            raise Refused(order.site, order.work, why, "return fd.Update or fd.Decline")
        return local, update

    def check_rows(self, update: Update, order: Order) -> None:
        """Raises Apart for an update of many sites that has to be looked at site by site."""
        fits = update.params.spec == (order.payload.spec if order.returns is None else order.returns)
        plain_weight = isinstance(update.weight, (Each, int, float))
        if not fits or not plain_weight or not all(name.startswith("train_") for name in update.metrics):
            raise Apart

    def _declared(self, update: Update, order: Order) -> None:
        """Raises Refused for sums that the Job does not declare; an analysis, without a learner, has its own."""
        if not self.learner or self.declared.issuperset(update.metrics):
            return
        shapes = {name: np.shape(x) for name, x in update.metrics.items()}
        if odd := measured.undeclared(shapes, self.declared):
            why = f"it returns {odd[0]!r}, which is none of the metrics that the Job declares"
            raise Refused(order.site, order.work, why, "name it in metrics=…, or in the algorithm's traits")
        self.declared.update(name for name in shapes if plain(name) in self.declared)

    def split(self, site: str, data: Any) -> Split:
        """The site's data as the Job's `load` gives it, with a validation part."""
        if site in self.splits:
            self.splits.move_to_end(site)
            return self.splits[site]
        try:
            data = data.sites[site] if isinstance(data, Among) else data
            self._check(site, data)
            data = load_split(data) if isinstance(data, Path) and data.suffix == ".split" else data
            here = Site(site, data, key(self.seed, "load", 0, site))
            loaded = self.load(here) if self.load else data
            hold = getattr(self.learner, "hold", None)  # of a learner whose data is elsewhere
            split = hold(here, loaded) if hold else self._in_order(site, loaded).with_valid(here.key("valid"))
        except SiteError:
            raise
        except (Exception, SystemExit) as error:
            raise SiteError(site, "loading its data", describe(error)) from error
        self.splits[site] = split
        if len(self.splits) > MOST_SPLITS:
            self.splits.popitem(last=False)
        return split

    def _in_order(self, site: str, loaded: Any) -> Split:
        """What was loaded, with the columns that the Job or its learner names, in their order. Raises SiteError."""
        whose = "the Job's columns=…" if self.columns else "the learner's features"
        wanted, split = self.columns or getattr(self.learner, "feature_names", ()), _as_split(loaded)
        try:
            return columns.in_order(split, wanted, whose, stated=bool(self.columns)) if wanted else split
        except FoedusError as error:
            raise SiteError(site, "comparing its columns", str(error)) from None

    def news(self, site: str) -> tuple[str, ...]:
        """The names of the columns of a site that is loaded, where they are not those that were told last."""
        names = columns.names_of(self.splits.get(site)) if self.learner else ()
        if not names or names == self.named:
            return ()
        self.named = names
        return names

    def _check(self, site: str, data: Any) -> None:
        """Raises SiteError where what the owner bound does not fit the Job's schema."""
        names = self.contract.datasets
        for name, held in {names[0]: data}.items() if len(names) == 1 else dict(data).items() if names else ():
            found = schema.check(self.contract.schema, name, held, site).findings
            if found:
                raise SiteError(site, "checking its data", "; ".join(map(str, found)))


def evaluation(learner: Learner, metrics: Sequence[Any], personal: Personal | None = None) -> Work:
    """The work that measures models on `valid` (plain names) and `test` (names with `test_`); it returns no arrays.

    A site's own model has names with `personal_` before that; a site that has none yet says nothing of it.
    """

    def work(payload: Params, local: Local, site: SiteContext) -> tuple[Local, Update]:
        parts = {"": site.split.valid, "test_": site.split.test}
        parts = {part: data for part, data in parts.items() if data is not None and len(data)}
        models = {} if personal and personal.alone else {"": payload}
        if personal and local is not None:
            models["personal_"] = personal.model(payload, local)
        found = {
            whose + part + name: sums
            for whose, model in models.items()
            for part, data in parts.items()
            for name, sums in learner.evaluate(model, data, metrics).items()
        }
        return None, Update(Params({}), float(max(1, sum(map(len, parts.values())))), found)

    return work


def describe(error: BaseException, text: bool = True) -> str:
    """One line: what was raised, and the last line of the user's own code that led there.

    Without `text` its message is left out, for that may quote data; not where foedus wrote it, or names a module.
    """
    if isinstance(error, Relayed):
        return str(error) if text else error.told
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith(FOREIGN) and "site-packages" not in f.filename]
    where = f" ({Path(own[-1].filename).name}, line {own[-1].lineno}, in {own[-1].name})" if own else ""
    whose = error if text else _ours(error)
    said = str(whose).strip().splitlines() if whose is not None else []
    return f"{type(error).__name__}{': ' + said[0] if said else ''}{where}"


def _ours(error: BaseException | None) -> BaseException | None:
    """The error, or the one that led to it, whose text is foedus's or names a module."""
    while error is not None:
        last = traceback.extract_tb(error.__traceback__)[-1:]
        if isinstance(error, (FoedusError, ImportError)) or (last and last[0].filename.startswith(FOREIGN[0])):
            return error
        error = error.__cause__ or error.__context__
    return None


def _as_split(loaded: Any) -> Split:
    if isinstance(loaded, Split):
        return loaded
    if isinstance(loaded, tuple) and len(loaded) == 2:
        return Split(train=loaded)
    if isinstance(loaded, Path):
        raise TypeError(
            "it is a path, and the Job has no data=… that reads it: write def load(site), and fd.Job(…, data=load)"
        )
    raise TypeError(f"load(site) returned {type(loaded).__name__}: return fd.Split(train=..., valid=..., test=...)")


def _simulated(seed: int, site: str) -> Any:
    from foedus.privacy import relays  # cryptography takes time to import, and few algorithms need it

    return relays.simulated(seed, site)


def _lacks(name: str, *_: Any) -> Any:
    raise JobError(
        f"this algorithm asks the learner for {name}, which it does not have: take a TorchLearner or another algorithm"
    )


def _no_learner(*_: Any) -> Any:
    raise JobError("this algorithm trains, but the Job has no learner: give one as the Job's second argument")
