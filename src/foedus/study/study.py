"""Study: what was compared, as a table, a data frame, LaTeX or a plot.
Scores come in; pandas and matplotlib are imported when they are asked for."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from foedus.cli.show import columns
from foedus.errors import FoedusError, Missing
from foedus.files import write_atomic
from foedus.study.score import Score
from foedus.study.student import Interval, interval, paired

SCORES = "scores.json"
COLUMNS = ("mean", "difference", "worst_site", "bytes", "seconds")
MARKS = {"better": "better", "worse": "worse", "": "not significant"}


@dataclass(frozen=True, repr=False)
class Table:
    """Rows of text under a head, and what has to be known beside them; printed as it is read."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def __repr__(self) -> str:
        return "\n".join([*columns(self.head, self.rows), *self.notes])


@dataclass(frozen=True)
class Study:
    """Methods and references under the same seeds, over the same sites; every number is of test parts.

    `scores` has one Score for each of them and each seed, `metric` is what they were chosen and are compared by, and
    `baseline` the method from which differences are taken.
    """

    scores: Sequence[Score]
    metric: str
    better: str
    baseline: str
    folder: Path

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Study:
        """The finished study of a folder. Raises FoedusError."""
        path = Path(folder) / SCORES
        if not path.exists():
            raise FoedusError(f"{folder} holds no finished study: fd.compare(…, save={str(folder)!r}) goes on with it")
        found = json.loads(path.read_text())
        scores = [Score(**row) for row in found.pop("scores")]
        return cls(
            [s._replace(curve=[(r, values) for r, values in s.curve]) for s in scores], folder=path.parent, **found
        )

    def __str__(self) -> str:
        """The table by method, and that by site."""
        return f"{self.table()}\n\n{self.by_site()}\n\nstudy: {self.folder}"

    def save(self) -> Study:
        """Writes what `load` reads into the study's folder."""
        found = {"metric": self.metric, "better": self.better, "baseline": self.baseline}
        rows = [score._asdict() for score in self.scores]
        write_atomic(self.folder / SCORES, json.dumps({**found, "scores": rows}, indent=1).encode())
        return self

    @cached_property
    def by_method(self) -> Mapping[str, Sequence[Score]]:
        """name -> its Scores in the order of the seeds."""
        found: dict[str, list[Score]] = {}
        for score in self.scores:
            found.setdefault(score.method, []).append(score)
        return found

    @cached_property
    def sites(self) -> Sequence[str]:
        """The sites that measured something, in order."""
        return sorted({site for score in self.scores for site in score.sites})

    @cached_property
    def left_out(self) -> Mapping[str, Mapping[str, str]]:
        """site -> method or reference -> why it went on without this site, under one of the seeds at least."""
        found: dict[str, dict[str, str]] = {}
        for score in self.scores:
            for site, why in score.left_out.items():
                found.setdefault(site, {})[score.method] = why
        return dict(sorted(found.items()))

    def values(self, method: str, of: str = "mean", metric: str | None = None) -> list[float]:
        """One number a seed: of `mean` over sites, `worst_site`, `all` test examples together, `bytes`, `seconds`.

        Or what a site has, by its name.
        """
        read = _OF.get(of) or (_at(of) if of in self.sites else None)
        if read is None:
            raise FoedusError(f"there is no {of!r}: choose from {', '.join((*_OF, *self.sites))}")
        found = [read(score, metric or self.metric, self.better) for score in self.by_method[method]]
        return [math.nan if value is None else float(value) for value in found]

    def interval(self, method: str, of: str = "mean", metric: str | None = None) -> Interval:
        """The mean over seeds and half of its 95 % interval; see `student`."""
        return interval(self.values(method, of, metric))

    def difference(self, method: str, other: str | None = None, of: str = "mean") -> Interval:
        """`method` minus `other` (the baseline), paired by seed; all such intervals of the study hold together."""
        others = self.values(other or self.baseline, of)
        return paired(self.values(method, of), others, len(self.by_method) - 1)

    def verdict(self, method: str, other: str | None = None, of: str = "mean") -> str:
        """`better`, `worse`, or "" where the seeds do not tell."""
        for name in (method, other or self.baseline):
            if name not in self.by_method:
                raise FoedusError(f"the study has no {name!r}: choose from {', '.join(self.by_method)}")
        found = self.difference(method, other, of)
        if not found.apart:
            return ""
        return "better" if (found.mean > 0) == (self.better == "max") else "worse"

    def table(self, by: Sequence[str] = COLUMNS) -> Table:
        """A row for each method and reference; `by` are columns: mean, all, worst_site, difference, bytes, seconds,
        rounds, options."""
        check_columns(by)
        shown = [*by, *(["options"] if any(score.options for score in self.scores) and "options" not in by else [])]
        rows = [[name, *(_CELLS[column](self, name) for column in shown)] for name in self.by_method]
        return Table(["method", *shown], rows, self._notes(shown))

    def by_site(self, metric: str | None = None) -> Table:
        """A row for each site, and their mean; a column for each method and reference."""
        cells = [[_cell(self.interval(name, of, metric)) for name in self.by_method] for of in (*self.sites, "mean")]
        rows = [[of, *row] for of, row in zip((*self.sites, "mean"), cells, strict=True)]
        return Table(["site", *self.by_method], rows, self._notes(()))

    def _notes(self, shown: Sequence[str]) -> list[str]:
        seeds, others = len(self.by_method[self.baseline]), len(self.by_method) - 1
        if seeds < 2:
            return [f"{self.metric} on test; one seed has no interval", *self._without()]
        found = [f"{self.metric} on test; ± is half of a 95 % interval over {seeds} seeds (Student's t)"]
        if "difference" in shown and others:
            together = f"; the {others} of them hold together (Bonferroni)" if others > 1 else ""
            found.append(f"difference: to {self.baseline} in pairs, with its 95 % interval{together}")
        return [*found, *self._without()]

    def _without(self) -> list[str]:
        """A line for each site that was left out, and reason."""
        found: dict[tuple[str, str], list[str]] = {}
        for site, by_method in self.left_out.items():
            for method, why in by_method.items():
                found.setdefault((site, why), []).append(method)
        return [f"{', '.join(methods)} without site {site!r}: {why}" for (site, why), methods in found.items()]

    def to_latex(self, by: Sequence[str] = COLUMNS) -> str:
        """The same table for LaTeX with booktabs."""
        table = self.table(by)
        lines = [" & ".join(map(_escaped, row)) + r" \\" for row in (table.head, *table.rows)]
        body = [r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
        notes = [f"% {note}" for note in table.notes]
        return "\n".join([*notes, rf"\begin{{tabular}}{{l{'r' * len(by)}}}", *body, r"\end{tabular}"])

    @property
    def frame(self) -> Any:
        """A pandas DataFrame: a row for each method, seed and site, and one without a site for all together."""
        try:
            import pandas
        except ImportError as error:
            raise Missing("pandas", "parquet") from error
        return pandas.DataFrame([row for score in self.scores for row in _rows(score)])

    def plot(self, metric: str | None = None, path: str | os.PathLike[str] | None = None) -> Any:
        """Means and worst sites with their intervals, and the curves over rounds, as a matplotlib Figure."""
        from foedus.study.plots import drawn

        return drawn(self, metric or self.metric, path)

    def about(self) -> dict[str, Any]:
        """The study as plain data: what `--json` prints."""
        return {
            "metric": self.metric,
            "baseline": self.baseline,
            "folder": str(self.folder),
            "left_out": self.left_out,
            "methods": {name: _told(self, name) for name in self.by_method},
        }


def _mean(score: Score, metric: str, better: str) -> float | None:
    found = [v for values in score.sites.values() if (v := values.get(metric)) is not None]
    return sum(found) / len(found) if found else None


def _worst(score: Score, metric: str, better: str) -> float | None:
    found = [v for values in score.sites.values() if (v := values.get(metric)) is not None]
    return (max if better == "min" else min)(found) if found else None


_OF: Mapping[str, Callable[[Score, str, str], float | None]] = {
    "mean": _mean,
    "worst_site": _worst,
    "all": lambda score, metric, better: score.test.get(metric),
    "bytes": lambda score, metric, better: score.bytes,
    "seconds": lambda score, metric, better: score.seconds,
    "rounds": lambda score, metric, better: score.round + 1,
}


def _at(site: str) -> Callable[[Score, str, str], float | None]:
    return lambda score, metric, better: score.sites.get(site, {}).get(metric)


def _cell(found: Interval) -> str:
    """Mean ± half of the interval."""
    mean, half = found
    return "-" if math.isnan(mean) else f"{mean:.3f}" + ("" if math.isnan(half) else f" ± {half:.3f}")


def _about(of: str) -> Callable[[Study, str], str]:
    return lambda study, name: _cell(study.interval(name, of))


def _difference(study: Study, name: str) -> str:
    if name == study.baseline:
        return "-"
    mean, half = study.difference(name)
    if math.isnan(mean) or math.isnan(half):
        return "-" if math.isnan(mean) else f"{mean:+.3f}"
    return f"{mean:+.3f} ({mean - half:+.3f} to {mean + half:+.3f}) {MARKS[study.verdict(name)]}"


def _options(study: Study, name: str) -> str:
    return ", ".join(f"{k}={v}" for k, v in study.by_method[name][0].options.items()) or "-"


def _size(study: Study, name: str) -> str:
    count = study.interval(name, "bytes").mean
    power = min(4, max(0, int(math.log10(count) // 3))) if count >= 1 else 0
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


_CELLS: Mapping[str, Callable[[Study, str], str]] = {
    "mean": _about("mean"),
    "all": _about("all"),
    "worst_site": _about("worst_site"),
    "difference": _difference,
    "bytes": _size,
    "seconds": lambda study, name: f"{study.interval(name, 'seconds').mean:.1f}",
    "rounds": lambda study, name: f"{study.interval(name, 'rounds').mean:g}",
    "options": _options,
}


def _told(study: Study, name: str) -> dict[str, Any]:
    found = study.by_method[name]
    numbers = {of: _plain(study.interval(name, of)) for of in _OF}
    apart = {} if name == study.baseline else {"difference": _plain(study.difference(name))}
    more = {"reference": found[0].reference, "options": found[0].options, "verdict": study.verdict(name)}
    return {**more, **numbers, **apart, "seeds": [score.seed for score in found], "runs": [s.run for s in found]}


def _plain(found: Interval) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in found._asdict().items()}


def _rows(score: Score) -> list[dict[str, Any]]:
    about = {"method": score.method, "reference": score.reference, "seed": score.seed, **score.options}
    whole = {"site": None, "round": score.round, "bytes": score.bytes, "seconds": score.seconds}
    return [{**about, **whole, **score.test}, *({**about, "site": s, **values} for s, values in score.sites.items())]


def _escaped(text: str) -> str:
    for sign in "&%$#_{}":
        text = text.replace(sign, f"\\{sign}")
    return text.replace("±", r"$\pm$")


def check_columns(by: Sequence[str]) -> None:
    """Raises FoedusError for what is no column of a study's table."""
    if any(name not in _CELLS for name in by):
        raise FoedusError(f"table(by={list(by)!r}): choose from {', '.join(_CELLS)}")
