"""A study's figure: a dot and its interval for each method and its worst site, and the curves over rounds.
A Study comes in; matplotlib is imported here, when a figure is asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from foedus.errors import FoedusError, Missing
from foedus.study.score import Score

if TYPE_CHECKING:
    from foedus.study.study import Study


def drawn(study: Study, metric: str, path: str | os.PathLike[str] | None) -> Any:
    """The Figure, written to `path` if given. Raises Missing without matplotlib, FoedusError for an unknown metric."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise Missing("matplotlib", "plot") from error
    if not any(metric in values for score in study.scores for values in score.sites.values()):
        raise FoedusError(f"the study has no metric {metric!r}")
    figure = Figure(figsize=(10, max(2.5, 1.2 + 0.45 * len(study.by_method))), layout="constrained")
    dots, curves = figure.subplots(1, 2)
    _dots(study, metric, dots)
    _curves(study, metric, curves)
    if path is not None:
        figure.savefig(path)
    return figure


def _dots(study: Study, metric: str, axes: Any) -> None:
    names = list(study.by_method)
    for of, marker, shift in (("mean", "o", -0.12), ("worst_site", "s", 0.12)):
        found = [study.interval(name, of, metric) for name in names]
        halves = [0.0 if half != half else half for _, half in found]
        at = [i + shift for i in range(len(names))]
        means = [mean for mean, _ in found]
        axes.errorbar(means, at, xerr=halves, fmt=marker, capsize=3, mfc="white", label=of.replace("_", " "))
        for name, y in zip(names, at, strict=True):
            values = study.values(name, of, metric)
            axes.plot(values, [y] * len(values), "|", color="0.6", zorder=0)
    axes.set(yticks=range(len(names)), xlabel=f"{metric} on test, 95 % intervals", ylim=(len(names) - 0.5, -0.5))
    axes.set_yticklabels(f"({n})" if study.by_method[n][0].reference else n for n in names)
    axes.legend(fontsize="small")


def _curves(study: Study, metric: str, axes: Any) -> None:
    for name, scores in study.by_method.items():
        points = _points(scores, metric)
        if len(points) > 1:
            style = "--" if scores[0].reference else "-"
            axes.plot([round + 1 for round in points], list(points.values()), style, label=name)
    axes.set(xlabel="round", ylabel=f"{metric} on valid, mean of seeds")
    if axes.lines:
        axes.legend(fontsize="small")


def _points(scores: Sequence[Score], metric: str) -> Mapping[int, float]:
    """round -> the mean over those seeds that measured it."""
    found: dict[int, list[float]] = {}
    for score in scores:
        for round, values in score.curve:
            value = values.get(metric)
            if value is not None:
                found.setdefault(round, []).append(value)
    return {round: fmean(values) for round, values in sorted(found.items())}
