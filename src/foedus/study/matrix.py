"""`fd.cross_site`: every site's model on every site's data.
A Job comes in; its run is kept, so that the matrix is found again."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from foedus import launch, runs
from foedus.algorithms.crossing import crossing
from foedus.errors import FoedusError, Missing
from foedus.job import Job
from foedus.params import Array
from foedus.result import Result
from foedus.study.comparing import default_folder
from foedus.study.references import simple
from foedus.study.study import Table
from foedus.study.trial import Place, Trial, done

START = "start"
Cells = Mapping[str, Mapping[str, float | None]]  # site -> metric as it is in the journal -> value


@dataclass(frozen=True)
class Matrix:
    """Models by sites: a row for the model that all began with, and for each site's own; a column for each site.

    `values` has for each model what each site measured, under the names of a run: `accuracy` on valid, `test_accuracy`.
    """

    values: Mapping[str, Cells] = field(repr=False)
    run: str

    @property
    def models(self) -> list[str]:
        return list(self.values)

    @property
    def sites(self) -> list[str]:
        return sorted({site for row in self.values.values() for site in row})

    def array(self, metric: str) -> Array:
        """(models, sites) of float64; NaN where a site could not measure it. Raises FoedusError for an unknown name."""
        known = sorted({name for row in self.values.values() for cell in row.values() for name in cell})
        if metric not in known:
            raise FoedusError(f"nothing was measured as {metric!r}: choose from {', '.join(known)}")
        rows = [[row.get(site, {}).get(metric) for site in self.sites] for row in self.values.values()]
        return np.array(rows, np.float64)

    def table(self, metric: str) -> Table:
        """The same as text, with the mean over the sites that a model was not trained at."""
        array, sites = self.array(metric), self.sites
        rows = []
        for name, row in zip(self.models, array, strict=True):
            others = [x for site, x in zip(sites, row, strict=True) if site != name and not np.isnan(x)]
            cells = ["-" if np.isnan(x) else f"{x:.3f}" for x in row]
            rows.append([name, *cells, f"{np.mean(others):.3f}" if others else "-"])
        return Table(
            ["model of", *sites, "elsewhere"], rows, [f"{metric}: a row for each model, a column for each site"]
        )

    @property
    def frame(self) -> Any:
        """A pandas DataFrame: a row for each model and site. Raises Missing without pandas."""
        try:
            import pandas
        except ImportError as error:
            raise Missing("pandas", "parquet") from error
        rows = [{"model": m, "site": s, **cell} for m, row in self.values.items() for s, cell in row.items()]
        return pandas.DataFrame(rows)

    def plot(self, metric: str, path: str | os.PathLike[str] | None = None) -> Any:
        """The same as a matplotlib Figure, each cell with its number. Raises Missing without matplotlib."""
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise Missing("matplotlib", "plot") from error
        array, (models, sites) = self.array(metric), (self.models, self.sites)
        figure = Figure(figsize=(2 + 0.6 * len(sites), 1.5 + 0.4 * len(models)), layout="constrained")
        axes = figure.add_subplot(xlabel="data of", ylabel="model of", title=metric)
        axes.imshow(array, cmap="cividis", aspect="auto")
        for (i, j), x in np.ndenumerate(array):
            axes.text(j, i, f"{x:.2f}", ha="center", va="center", color="0.5" if np.isnan(x) else "w", fontsize="small")
        axes.set_xticks(range(len(sites)), sites, rotation=90)
        axes.set_yticks(range(len(models)), models)
        if path is not None:
            figure.savefig(path)
        return figure


def cross_site(
    job: Job,
    sites: Any,
    *,
    start: Any = None,
    trainings: int | None = None,
    seed: int = 0,
    save: str | Path | None = None,
    backend: str = "local",
    workers: int | None = None,
    say: Callable[[str], object] = lambda text: None,
) -> Matrix:
    """The Matrix of every site's model on every site's data.

    Each site trains by itself with the Job's learner, `trainings` times: from `start` (a Result, whose best model it
    is, or what a Job's `start=` takes), once by default; without `start` from the Job's first model, as often as the
    Job has rounds. Finished and cut-off runs are found again in `save` (by default in FOEDUS_HOME/studies).
    """
    if isinstance(start, Result):
        start = start.params if start.best is None else start.best
    times = trainings or (1 if start is not None else job.rounds or 1)
    names = launch.bind(sites).names
    more = {"start": job.start if start is None else start, "best": None, "stop": None, "evaluate": 1, "panel": None}
    crossed = simple(job, crossing(times), rounds=1 + len(names), **more)
    place = Place(default_folder(job) if save is None else Path(save), backend, workers, say)
    folder = done(Trial("cross-site", {}, seed, crossed, sites), place)
    steps = sorted(runs.journal(folder).all("step"), key=lambda row: int(row["round"]))
    rows = {name: _cells(step["per_site"]) for name, step in zip([START, *names], steps, strict=True)}
    return Matrix(rows, folder.name)


def _cells(per_site: Cells) -> dict[str, dict[str, float | None]]:
    return {s: {name: v for name, v in cell.items() if not name.startswith("train_")} for s, cell in per_site.items()}
