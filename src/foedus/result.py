"""Result: what a finished run gives back.
The saved form and journal rows may come in; a report is written by `report`, one room up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from foedus import frames
from foedus.errors import FoedusError
from foedus.files import write_atomic
from foedus.params import Params, digest
from foedus.run import BESIDE
from foedus.trees.model import model_json


@dataclass(frozen=True)
class Result:
    """A finished run: the last global model, the best one if the Job names a metric for it, and how it went.

    `history` has one mapping a round with `round`, `seconds` and the metrics (plain names: `valid`; `test_…`: test);
    `per_site` maps site to its last metrics, and `declined` each site that was asked and did not count, at least once,
    to the newest reason; `exact` says whether the bits are reproducible on the same build.
    """

    params: Params = field(repr=False)
    history: Sequence[Mapping[str, Any]] = field(repr=False)
    per_site: Mapping[str, Mapping[str, Any]] = field(repr=False)
    run: str
    folder: Path
    backend: str
    exact: bool
    reason: str
    seconds: float
    best: Params | None = field(default=None, repr=False)
    best_round: int | None = None
    build: Mapping[str, Any] = field(default_factory=dict, repr=False)
    own: Callable[[str], Params | None] | None = field(default=None, repr=False, compare=False)
    declined: Mapping[str, str] = field(default_factory=dict, repr=False)

    @cached_property
    def digest(self) -> str:
        """`fd.digest` of the last global model."""
        return digest(self.params)

    @property
    def rounds(self) -> int:
        return len(self.history)

    @property
    def metrics(self) -> Mapping[str, Any]:
        """The newest value of each metric."""
        found: dict[str, Any] = {}
        for line in self.history:
            found.update({k: v for k, v in line.items() if k not in BESIDE})
        return found

    def save(self, path: str | Path) -> Path:
        """Writes the last global model as safetensors, with the run's description in its metadata.

        A path that ends in .json is XGBoost's file of boosted trees. Raises FoedusError for other models.
        """
        data = model_json(self) if Path(path).suffix == ".json" else frames.model(self.params, self.about())
        write_atomic(Path(path), data)
        return Path(path)

    def personal(self, site: str) -> Params:
        """The site's own model. Raises FoedusError where it has none, or has it elsewhere."""
        found = self.own(site) if self.own else None
        if found is None and self.own is None:
            here = f"`foedus export {self.run} {site}` reads those that a simulation kept"
            raise FoedusError(
                f"run {self.run} holds no sites' own models: {here}; in a federation they are at the sites, "
                f"where `foedus site export {self.run}` writes one"
            )
        if found is None:
            raise FoedusError(f"run {self.run}: site {site!r} has no model of its own: its training never counted")
        return found

    def save_personal(self, site: str, path: str | Path) -> Path:
        """Writes the site's own model as `save` writes the global one."""
        write_atomic(Path(path), frames.model(self.personal(site), {"run": self.run, "site": site}))
        return Path(path)

    def report(self, path: str | Path | None = None) -> Path:
        """Writes the run's report, one page that needs no network, and returns its path (report.html in the folder)."""
        from foedus.report import write  # lazy, for it points up: see docs/design.md

        return write(self.folder, path)

    def about(self) -> dict[str, Any]:
        """The result as plain data, without arrays: what `--json` prints."""
        return {
            "run": self.run,
            "digest": self.digest,
            "exact": self.exact,
            "rounds": self.rounds,
            "metrics": dict(self.metrics),
            "per_site": {s: dict(m) for s, m in self.per_site.items()},
            "declined": dict(self.declined),
            "seconds": round(self.seconds, 3),
            "backend": self.backend,
            "reason": self.reason,
            "best_round": self.best_round,
            "build": self.build.get("hash", ""),
            "folder": str(self.folder),
        }
