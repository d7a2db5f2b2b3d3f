"""`fd.validate`: a fixed model against every site's held-out data and a claim that was stated before.
A Job comes in: its learner, its data and its rules; what it trains with does not matter."""

from __future__ import annotations

import json as texts
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from foedus import frames, home, ranking
from foedus.errors import FoedusError, JobError
from foedus.files import write_atomic
from foedus.job import Job
from foedus.keys import Key, key
from foedus.params import Array, Params
from foedus.validation.counting import counted
from foedus.validation.groups import ALL, Groups
from foedus.validation.judging import STATISTICS, SURE, Claim, Judged, judged

EVERYWHERE = "all sites"
LEAST, REPLICATES = 10, 2000


class Counts(NamedTuple):
    """Of a group: scores by class (2, BINS), calibration (3, CALIBRATED), at how many sites it has too few examples."""

    scores: Array
    calibration: Array
    hidden: float


class Line(NamedTuple):
    """One group at one site, or at all of them."""

    site: str
    by: str
    group: str
    examples: int
    positives: int
    found: Mapping[str, Judged]
    calibration_error: float
    hidden: bool  # too few examples to say anything, or what others of so few could be read from


@dataclass(frozen=True)
class Validation:
    """What was found: `lines` by site and group, everybody at all sites first."""

    claim: Claim
    lines: Sequence[Line]
    model: str
    least: int

    def line(self, site: str = EVERYWHERE, by: str = "", group: str = "all") -> Line:
        """The line of a group. Raises FoedusError where there is none."""
        for line in self.lines:
            if (line.site, line.by, line.group) == (site, by, group):
                return line
        raise FoedusError(f"there is no line of {site!r}, {by!r}, {group!r}")

    def meets(self, line: Line) -> bool | None:
        """Whether the claim is shown for a line: p at most 2.5 %; None where nothing was claimed, or is known."""
        p = line.found[self.claim.metric].p
        return None if p is None else p <= (1 - SURE) / 2

    @property
    def verdict(self) -> str:
        """In words: whether the claim is shown for everybody, where it is not, and for whom."""
        claim, whole = self.claim, self.line()
        found = whole.found[claim.metric]
        said = f"{claim.metric} {found.value:.3f} ({found.low:.3f} to {found.high:.3f}) on {whole.examples} examples"
        if claim.reference is None:
            return f"{said}; nothing was claimed beforehand."
        if found.p is None:
            return f"{claim.metric} is not known: {whole.examples} examples, {whole.positives} of them positive."
        goal = f"no more than {claim.margin:g} below {claim.reference:g}"
        made = [f"{said}: {'SHOWN' if self.meets(whole) else 'NOT SHOWN'} to be {goal} (p = {found.p:.4f})."]
        open_ = [line for line in self.lines if line is not whole and not line.hidden and not self.meets(line)]
        if open_:
            made.append(f"Not shown for: {'; '.join(map(_named, open_))}.")
        few = [line for line in self.lines if line.hidden and line.site == EVERYWHERE]
        if few:
            made.append(f"Not told of, for {self.least} examples are the least: {'; '.join(map(_named, few))}.")
        return " ".join(made)

    def plain(self) -> dict[str, Any]:
        """Everything as plain data."""
        lines = [
            {**line._asdict(), "found": {k: _finite(v) for k, v in line.found.items()},
             "calibration_error": _number(line.calibration_error), "meets": self.meets(line)}
            for line in self.lines
        ]  # fmt: skip
        return {"claim": self.claim._asdict(), "model": self.model, "least": self.least, "verdict": self.verdict,
                "lines": lines}  # fmt: skip

    def text(self) -> list[str]:
        """A table for people, and the verdict."""
        head = ["site", "group", "examples", "positives", self.claim.metric, "95 %", "calibration", "shown"]
        return [*_aligned([head, *map(self._cells, self.lines)]), "", self.verdict]

    def _cells(self, line: Line) -> list[str]:
        group = line.group if not line.by else f"{line.by}: {line.group}"
        if line.hidden:
            return [line.site, group, f"fewer than {self.least}, or would show such", "", "", "", "", ""]
        found, shown = line.found[self.claim.metric], {None: "", True: "yes", False: "no"}[self.meets(line)]
        interval = f"{found.low:.3f} to {found.high:.3f}" if not math.isnan(found.low) else ""
        value = f"{found.value:.3f}" if not math.isnan(found.value) else "one class"
        error = "" if math.isnan(line.calibration_error) else f"{line.calibration_error:.3f}"
        return [line.site, group, str(line.examples), str(line.positives), value, interval, error, shown]

    def save(self, folder: str | Path) -> Path:
        """Writes validation.json and validation.txt into the folder; the path of the latter."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        write_atomic(place / "validation.json", texts.dumps(self.plain(), indent=1).encode())
        write_atomic(place / "validation.txt", ("\n".join(self.text()) + "\n").encode())
        return place / "validation.txt"


def job(
    of: Job,
    model: Any,
    by: Mapping[str, Groups] | None = None,
    *,
    claim: Claim | None = None,
    part: str = "test",
    least: int = LEAST,
    privacy: Any = "none",
) -> Job:
    """The Job that validates `model` (a Result, its file, Params) by the learner, data and schema of the Job `of`.

    Where it has no learner, but boosted trees (`foedus.trees`), these score.

    One round; sites count, and nothing trains. Its counts are of groups of at least `least` examples: in the clear, or
    under `privacy="secagg"` of all sites together alone. `claim` is part of the Job, and so stated before it runs.
    A file of the model lies beside the job file, and travels with it.
    """
    stated = claim or Claim()
    learner = of.learner or of.algorithm.scorer
    if learner is None:
        raise JobError("this Job scores no examples (an analysis does not): validate a Job with a learner, or trees")
    if part not in ("test", "valid"):
        raise JobError(f"part={part!r}: it is 'test' or 'valid'")
    if not isinstance(least, int) or least < 1:
        raise JobError(f"least={least!r}: it must be a whole number of at least 1")
    name = f"{of.name or 'job'}-validation"
    _check_claim(stated)
    metric = stated.metric
    if metric not in STATISTICS and metric not in of.table():
        raise JobError(f"Claim(metric={metric!r}): choose from {', '.join((*STATISTICS, *of.table()))}")
    named = [*(of.metrics or learner.metrics)] if metric not in STATISTICS else []
    return Job(
        counted(by or {}, part, least, stated), learner, of.data, name=name, datasets=of.datasets, schema=of.schema,
        requires=of.requires, files=of.files, purpose=of.purpose, start=model, rounds=1, evaluate=0, metrics=named,
        privacy=privacy,
    )  # fmt: skip


def validate(
    of: Job,
    model: Any,
    sites: Any = None,
    claim: Claim | None = None,
    by: Mapping[str, Groups] | None = None,
    *,
    part: str = "test",
    least: int = LEAST,
    seed: int = 0,
    replicates: int = REPLICATES,
    privacy: Any = "none",
) -> Validation:
    """The Validation of a fixed model at every site, simulated; a real federation runs `job(…)`, and `read`s it.

    claim: stated beforehand. by: name -> `cut(…)` or `levels(…)`, subgroups. part: test, or valid. least: examples
    below which a group at a site is not told of. replicates: of the bootstrap. privacy: "secagg" tells of all sites
    together alone.
    Raises JobError.
    """
    asked = job(of, model, by, claim=claim, part=part, least=least, privacy=privacy)
    return read(asked.run(sites=sites, seed=seed), seed=seed, replicates=replicates)


def read(
    result: Any,
    claim: Claim | None = None,
    *,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> Validation:
    """The Validation of a run of `job(…)`, simulated or real: of its Result, its params, its file or its RUN.

    claim: another one than the Job's; it was not stated beforehand. Raises FoedusError for what is no validation.
    """
    if isinstance(result, (str, os.PathLike)):
        result = frames.read_model(home.model_file(result))
    params: Params = getattr(result, "params", result)
    asked = _asked(params)
    stated, groups = claim or Claim(**asked["claim"]), [(by, group) for by, group in asked["groups"]]
    _check_claim(stated)
    told = asked["claim"]["metric"]
    if stated.metric != told and not {stated.metric, told} <= set(STATISTICS):
        raise JobError(f"Claim(metric={stated.metric!r}): this run counted for {told!r}, see validation.job(claim=…)")
    names = sorted({name.removeprefix("site/").rpartition("/")[0] for name in params if name.startswith("site/")})
    each = {EVERYWHERE: _counts(params.part("all"))} | {site: _counts(params.part(f"site/{site}")) for site in names}
    lines = [
        _line(site, group, found[i], stated, key(seed, 0, 0, site, "validate")(*group), replicates)
        for i, group in enumerate(groups)
        for site, found in each.items()
    ]
    return Validation(stated, lines, asked["model"], asked["least"])


def is_validation(params: Any) -> bool:
    """Whether a run ended with counts that `read` reads."""
    return isinstance(params, Params) and "about/asked" in params


def _asked(params: Any) -> Any:
    if not is_validation(params):
        raise FoedusError("this is no run of a validation: read the Result of a Job that validation.job(…) made")
    return texts.loads(params["about/asked"].tobytes())


def _line(site: str, group: tuple[str, str], found: Counts, claim: Claim, drawn: Key, replicates: int) -> Line:
    negatives, positives = np.rint(found.scores.sum(1)).astype(int).tolist()
    few = found.hidden > 0 and not negatives + positives
    error = ranking.calibration_error(found.calibration)
    return Line(
        site, *group, negatives + positives, positives, judged(found.scores, drawn, replicates, claim), error, few
    )


def _counts(found: Params) -> list[Counts]:
    rows = zip(found["counts"], found["calibration"], found["hidden"].tolist(), strict=True)
    return [Counts(*row) for row in rows]


def _check_claim(claim: Claim) -> None:
    if not 0 < claim.threshold < 1:
        raise JobError(f"Claim(threshold={claim.threshold!r}): it is a probability, above 0 and below 1")
    if claim.reference is not None and not 0 <= claim.reference <= 1:
        raise JobError(f"Claim(reference={claim.reference!r}): a {claim.metric} is from 0 to 1")
    if not 0 <= claim.margin < 1:
        raise JobError(f"Claim(margin={claim.margin!r}): how much worse would still do, from 0 to below 1")


def _named(line: Line) -> str:
    group = "" if (line.by, line.group) == ALL else f", {line.by} {line.group}"
    return f"{line.site}{group}"


def _finite(found: Judged) -> dict[str, float | None]:
    return {name: _number(value) for name, value in found._asdict().items()}


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
