"""What an audit found, as plain data, and the verdict in words.
Numbers of attacks come in; nothing is measured here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from foedus.files import make_folder, write_atomic
from foedus.params import Array

Outcome = Literal["leak", "nothing", "not tried"]


class Finding(NamedTuple):
    """One attack on one thing under one defence: what came of it, its numbers, and a sentence that says so."""

    defence: str
    attack: str
    on: str
    outcome: Outcome
    values: Mapping[str, float]
    said: str


class Picture(NamedTuple):
    """Records (rows) beside what was recovered of them, the nearest first; PSNR in dB."""

    defence: str
    attack: str
    on: str
    truth: Array
    recovered: Array
    psnr: Array


@dataclass(frozen=True)
class Audit:
    """What attacks found in what leaves one site of a Job.

    `findings` has one entry for each defence, attack and thing attacked; `verdict` says it in words. `refuted` names
    the defences whose claimed ε is below its audited lower bound.
    """

    about: Mapping[str, Any]
    findings: Sequence[Finding]
    pictures: Sequence[Picture] = field(repr=False, default=())

    @property
    def refuted(self) -> list[str]:
        return [f.defence for f in self.findings if f.values.get("claimed", np.inf) < f.values.get("epsilon", 0.0)]

    @property
    def verdict(self) -> str:
        """One paragraph a defence, after what was attacked; loud where a claim is refuted."""
        lines = [f"FAILED: the claimed ε of {', '.join(self.refuted)} does not hold."] if self.refuted else []
        lines += [str(self.about["said"])]
        for defence in self.about["defences"]:
            said = [_upper(f.said) for f in self.findings if f.defence == defence and f.outcome != "not tried"]
            lines.append(f"With {defence}: {' '.join(said) or 'no attack could be tried.'}")
        left = {f"{f.attack} ({f.said})" for f in self.findings if f.outcome == "not tried"}
        if left:
            lines.append(f"Not tried: {'; '.join(sorted(left))}.")
        return "\n".join([*lines, LIMITS])

    def plain(self) -> dict[str, Any]:
        """All of it but the pictures, as JSON holds it; numbers that JSON has not are None."""
        rows = [f._asdict() | {"values": {k: _finite(v) for k, v in f.values.items()}} for f in self.findings]
        return {**self.about, "verdict": self.verdict, "refuted": self.refuted, "findings": rows}

    def save(self, folder: str | Path) -> Path:
        """Writes report.html, audit.json and, where matplotlib is, the pictures into `folder`; the report's path."""
        from foedus.audit import page

        place = Path(folder).expanduser()
        make_folder(place, durable=False)
        write_atomic(place / "audit.json", json.dumps(self.plain(), indent=2).encode(), durable=False)
        images = page.drawn(self.pictures)
        for name, image in images.items():
            write_atomic(place / name, image, durable=False)
        write_atomic(place / "report.html", page.page(self, images).encode(), durable=False)
        return place / "report.html"


LIMITS = (
    "An attack that finds nothing proves nothing: others may find more. What is found is a lower bound of what leaks."
)


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _finite(x: float) -> float | None:
    return float(x) if np.isfinite(x) else None
