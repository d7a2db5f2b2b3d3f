"""What would leave a site, as lines for people; `foedus site preview` and `foedus submit --dry-run` print them.
Plain data comes in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foedus.cli.show import columns

Json = Mapping[str, Any]


def lines(found: Json) -> list[str]:
    """Each update with its arrays, metrics and seal, and where its bytes are."""
    made = [line for update in found["updates"] for line in _update(update)]
    end = [f"and no more: {found['why']}"] if found["why"] else []
    return [*made, *end, f"nothing was sent; the bytes are in {found['folder']}"]


def _update(update: Json) -> list[str]:
    sealed = update["sealed"]
    told = f"weight {update['weight']:g}" + (", under the seal" if sealed else "")
    made = [f"round {update['round'] + 1}, {update['work']}: {update['bytes']:,} bytes, {told}: {update['file']}"]
    made += [f"  it would not leave: {update['refused']}"] if update.get("refused") else []
    head, arrays = ("array", "kind", "dtype", "shape", "bytes", "norm"), update["arrays"]
    rows = [
        [a["name"], a["kind"], a["dtype"], _shape(a["shape"]), f"{a['bytes']:,}", _number(a["norm"])] for a in arrays
    ]
    made += [f"  {line}" for line in columns(head, rows)] if rows else ["  no arrays"]
    made += [f"  norm of all trainable arrays together: {_number(update['norm'])}"] if rows else []
    made += [f"  metric {name}: {_metric(x)}" for name, x in update["metrics"].items()] or ["  no metrics"]
    if sealed:
        made.append(
            f"  sealed for {sealed['sites']} sites: {sealed['bytes']:,} bytes leave, words plus masks (numbers within "
            f"{sealed['bound']:g}, weight at most {sealed['wmax']:g}); without masks: {sealed['file']}"
        )
    return [*made, ""]


def _metric(x: Json) -> str:
    if "text" in x:
        return f"the text {x['text']}"
    more = " …" if _size(x["shape"]) > len(x["values"]) else ""
    return f"{x['dtype']} {_shape(x['shape'])}: {', '.join(map(_number, x['values']))}{more}"


def _size(shape: Sequence[int]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "one number"


def _number(x: float | None) -> str:
    return "not finite" if x is None else f"{x:.6g}"
