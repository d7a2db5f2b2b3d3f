"""Analysis: one function for a simulation, a Job for a real federation, and a reader of what either brought.
Algorithms come in as values; a Job is built here, and pandas is needed only to read."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from foedus import frames, home
from foedus.analytics.asking import packed, unpacked
from foedus.analytics.held import loader
from foedus.core import Algorithm
from foedus.errors import FoedusError, Missing, Paused, SiteError
from foedus.files import write_atomic
from foedus.job import Job, Options
from foedus.params import Array, Params

OPTIONS = frozenset(f.name for f in dataclasses.fields(Options)) - {"columns"}  # an analysis has its own


class Tail(NamedTuple):
    """A column of p-values, which is computed when the answer is read: `law` is "t" or "chi2"."""

    column: str
    law: str
    of: str
    df: str


class Table(NamedTuple):
    """A frame before it is one: labels of its rows, columns of numbers or texts, and which of them are p-values."""

    rows: Sequence[Any]
    columns: Mapping[str, Any]
    names: Sequence[str] = ("",)
    tails: Sequence[Tail] = ()


class Analysis:
    """What computes an analysis, from a function of its settings that makes the Algorithm.

    Called with `sites={name: data frame}` it simulates and returns an Answer; `data` loads a site's table where that is
    not a frame or a file. `.job(…)` with the same settings is the Job for a real federation, and takes what `fd.Job`
    takes. `read(result)` makes of that run's Result the same Answer.
    """

    def __init__(self, make: Callable[..., Algorithm]) -> None:
        self.make = make
        functools.update_wrapper(self, make)

    def __repr__(self) -> str:
        return f"<analysis {self.make.__name__}>"

    def __call__(
        self,
        *given: Any,
        sites: Any,
        data: Callable[..., Any] | None = None,
        seed: int = 0,
        backend: str = "local",
        **more: Any,
    ) -> Answer:
        """The Answer over `sites`, simulated. Raises what a site raised, with site, column and remedy."""
        try:
            result = self.job(*given, data=data, **more).run(sites=sites, seed=seed, backend=backend)
        except Paused as error:
            raise (_first(error) or error) from None
        return read(result)

    def job(self, *given: Any, data: Callable[..., Any] | None = None, **more: Any) -> Job:
        """The Job of one round: every site of the roster answers, or it pauses. `min_sites`: so many will do."""
        options = {"rounds": 1} | {name: more.pop(name) for name in list(more) if name in OPTIONS}
        name = options.pop("name", None) or self.make.__name__
        algorithm = self.make(*given, **more)
        if "min_sites" in options:
            some: Callable[..., Any] = functools.partial(algorithm.round, every=False)  # type: ignore[call-arg]
            algorithm = algorithm._replace(round=some)
        return Job(algorithm, None, loader(data), name=name, **options)


def _first(error: BaseException | None) -> SiteError | None:
    """What happened at a site, for which a run paused."""
    while error is not None and not isinstance(error, SiteError):
        error = error.__cause__ or error.__context__
    return error


def analysis(round: Callable[..., Any], works: Mapping[str, Any]) -> Algorithm:
    """An Algorithm of one round, whose state in the end is the answer: the Params that `answer` makes."""
    return Algorithm(_nothing, round, works, traits=("exact",))


def _nothing(params: Params) -> Params:
    return Params({})


def answer(name: str, tables: Mapping[str, Table], facts: Mapping[str, Any]) -> Params:
    """An answer in its saved form; its tables are `pandas`, `per_site` and others, its facts numbers and texts."""
    arrays: dict[str, Array] = {}
    about: dict[str, Any] = {"analysis": name, "tables": {}, "facts": {k: _plain(v) for k, v in facts.items()}}
    for title, table in tables.items():
        texts, columns = {}, []
        for column, values in table.columns.items():
            x = np.asarray(values)
            columns.append(column)
            if x.dtype.kind in "biuf":
                arrays[f"{title}/{column}"] = x
            else:
                texts[column] = [None if v is None else str(v) for v in values]
        index = [[_plain(x) for x in (i if isinstance(i, tuple) else (i,))] for i in table.rows]
        about["tables"][title] = {
            "index": index, "names": list(table.names), "columns": columns, "texts": texts, "tails": table.tails,
        }  # fmt: skip
    return Params({"about": packed(about), **arrays})


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


class Answer(Mapping[str, Any]):
    """What an analysis found: `pandas` and `per_site` are frames; facts and other frames are attributes and items."""

    def __init__(self, analysis: str, found: Mapping[str, Any], result: Any = None) -> None:
        self.analysis, self._found, self.result = analysis, dict(found), result

    def __getitem__(self, name: str) -> Any:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and name in self._found:
            return self._found[name]
        raise AttributeError(f"{self.analysis} has no {name!r}; it has {', '.join(self._found)}")

    @property
    def digest(self) -> str:
        """That of the run: the same for the same data and build, simulated or real. FoedusError where it has none."""
        if self.result is None:
            raise FoedusError("this answer was read from arrays alone: read the Result of a run, or its folder")
        return str(self.result.digest)

    def html(self, path: str | os.PathLike[str], *others: Answer, title: str = "") -> Path:
        """One HTML page of this answer's tables and figures, and those of others."""
        from foedus.report.answers import page  # lazy, as what else a user calls on a result

        place = Path(path)
        write_atomic(place, page([self, *others], title).encode())
        return place

    def __repr__(self) -> str:
        facts = {k: v for k, v in self._found.items() if not hasattr(v, "columns")}
        return f"{self.analysis}: {json.dumps(facts, default=str)}\n{self._found['pandas']}"


def is_answer(params: Mapping[str, Array]) -> bool:
    """Whether a run's params are an analysis's answer."""
    return "about" in params and "tables" in unpacked(params["about"])


def read(result: Any) -> Answer:
    """The Answer of a finished run, simulated or real: of its Result, its params, its file or its RUN.

    Raises FoedusError for what is none, Missing without pandas.
    """
    try:
        import pandas
    except ImportError as error:
        raise Missing("pandas", "analytics") from error
    if isinstance(result, (str, os.PathLike)):
        result = frames.read_model(home.model_file(result))
    params = getattr(result, "params", result)
    if not is_answer(params):
        raise FoedusError("this is no run of an analysis: read the Result of a Job that analytics.….job(…) made")
    about = unpacked(params["about"])
    facts = dict(about["facts"])
    for name, law, of, df in facts.pop("tails", ()):
        facts[name] = float(_tail(law, facts[of], facts[df]))
    tables = {title: _frame(pandas, title, told, params) for title, told in about["tables"].items()}
    return Answer(about["analysis"], tables | facts, None if params is result else result)


def _frame(pandas: Any, title: str, told: Mapping[str, Any], params: Mapping[str, Array]) -> Any:
    names = [name or None for name in told["names"]]
    if len(names) > 1:
        index = pandas.MultiIndex.from_tuples([tuple(x) for x in told["index"]], names=names)
    else:
        index = pandas.Index([x for (x,) in told["index"]], name=names[0])
    texts = told["texts"]
    columns = {c: texts[c] if c in texts else np.array(params[f"{title}/{c}"]) for c in told["columns"]}
    for name, law, of, df in told["tails"]:
        columns[name] = _tail(law, columns[of], columns[df])
    return pandas.DataFrame(columns, index=index)


def _tail(law: str, of: Any, df: Any) -> Any:
    try:
        from scipy.stats import chi2, t
    except ImportError as error:
        raise Missing("scipy", "analytics") from error
    return 2 * t.sf(np.abs(of), df) if law == "t" else chi2.sf(of, df)
