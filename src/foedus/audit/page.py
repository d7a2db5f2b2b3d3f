"""The report of an audit: one HTML page without scripts, and pictures of what was recovered where matplotlib is.
An Audit comes in."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from foedus.errors import Missing
from foedus.params import Array
from foedus.report.markup import Html, el, join, number, table, text

if TYPE_CHECKING:
    from foedus.audit.findings import Audit, Finding, Picture

SHOWN = {"leak": "leaks", "nothing": "nothing found", "not tried": "not tried"}


def page(audit: Audit, images: Mapping[str, bytes]) -> str:
    """The report as one HTML text; `images`: name -> PNG."""
    body = join([_head(audit), _verdict(audit), _table(audit), _images(images), _made(audit)], "\n")
    skeleton = resources.files("foedus.report").joinpath("page.html").read_text("utf-8")
    skeleton = skeleton.replace("style-src 'unsafe-inline'", "style-src 'unsafe-inline'; img-src data:")
    return Template(skeleton).substitute(title=text(f"foedus attack on {audit.about['site']}"), body=body)


def drawn(pictures: Sequence[Picture]) -> dict[str, bytes]:
    """File name -> PNG: records above, what was recovered below. Nothing without matplotlib."""
    try:
        return {_name(picture): _png(picture) for picture in pictures}
    except Missing:
        return {}


def figure(picture: Picture) -> Any:
    """The picture as a matplotlib Figure. Raises Missing without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise Missing("matplotlib", "audit") from error
    count = len(picture.truth)
    made = Figure(figsize=(1.2 + 1.1 * count, 2.9), layout="constrained")
    axes = made.subplots(2, count, squeeze=False)
    low, high = float(picture.truth.min()), float(picture.truth.max())
    for i in range(count):
        for row, x in ((0, picture.truth[i]), (1, picture.recovered[i])):
            axes[row, i].imshow(image(x), vmin=low, vmax=high, cmap="gray", aspect="auto" if x.ndim < 2 else "equal")
            axes[row, i].set(xticks=[], yticks=[])
        axes[1, i].set_xlabel(f"{picture.psnr[i]:.1f} dB", fontsize="small")
    axes[0, 0].set_ylabel("record")
    axes[1, 0].set_ylabel("recovered")
    made.suptitle(f"{picture.defence}: {picture.attack} on {picture.on}", fontsize="medium")
    return made


def image(x: Array) -> Array:
    """One record as rows and columns: channels as colours if there are three, else side by side; a row if it is flat.

    >>> image(np.zeros(64)).shape, image(np.zeros(13)).shape, image(np.zeros((1, 8, 8))).shape
    ((8, 8), (1, 13), (8, 8))
    """
    side = math.isqrt(x.size)
    if x.ndim < 2:
        return x.reshape(side, side) if side * side == x.size and side > 1 else x.reshape(1, -1)
    if x.ndim == 2:
        return x
    planes = x.reshape(-1, *x.shape[-2:])
    return planes[0] if len(planes) == 1 else np.concatenate(list(planes), 1)


def _png(picture: Picture) -> bytes:
    held = io.BytesIO()
    figure(picture).savefig(held, format="png", dpi=90)
    return held.getvalue()


def _name(picture: Picture) -> str:
    words = f"{picture.defence} {picture.attack} {picture.on}"
    return "".join(c if c.isalnum() or c in ".=+" else "-" for c in words) + ".png"


def _head(audit: Audit) -> Html:
    about = audit.about
    return el("header", el("h1", f"What leaves site {about['site']}"), el("p", about["said"]))


def _verdict(audit: Audit) -> Html:
    lines = audit.verdict.split("\n")
    return el("section", el("h2", "Verdict"), *(el("p", x, class_="warn" if _loud(x) else None) for x in lines))


def _loud(line: str) -> bool:
    return line.startswith("FAILED") or "REFUTED" in line


def _table(audit: Audit) -> Html:
    head = ("defence", "attack", "on", "outcome", "numbers", "in words")
    rows = [(f.defence, f.attack, f.on, SHOWN[f.outcome], _numbers(f), f.said) for f in audit.findings]
    return el("section", el("h2", "Findings"), table("Every attack under every defence", head, rows))


def _numbers(finding: Finding) -> Html:
    cells = [join([name, " ", number(float(x) if np.isfinite(x) else None)]) for name, x in finding.values.items()]
    return join(cells, ", ")


def _images(images: Mapping[str, bytes]) -> Html:
    if not images:
        why = "No pictures: nothing was recovered, or matplotlib is not here (pip install 'foedus[audit]')."
        return el("section", el("h2", "Pictures"), el("p", why, class_="soft"))
    shown = [_image(name, data) for name, data in images.items()]
    return el("section", el("h2", "Records, and what was recovered of them"), *shown)


def _image(name: str, data: bytes) -> Html:
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return Html(f'<figure><img alt="{text(name)}" src="{source}" style="max-width:100%"></figure>')


def _made(audit: Audit) -> Html:
    kept = {k: v for k, v in audit.about.items() if k not in ("said",)}
    said = "; ".join(
        f"{name} {', '.join(map(str, x)) if isinstance(x, list) else x}" for name, x in kept.items() if x != ""
    )
    note = "PSNR: 10 log10(range² / mean squared error), best assignment. The baseline: as many records of others."
    return el("section", el("h2", "How it was made"), el("p", said, class_="soft"), el("p", note, class_="soft"))
