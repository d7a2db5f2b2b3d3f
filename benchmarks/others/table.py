"""Makes of FOLDER/beside.json the tables and the picture of docs/speed.md: python benchmarks/others/table.py FOLDER.
Each figure is a ratio to foedus as it ships (`ours-auto`) in the same run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

NAMES = {
    "ours-auto": "foedus", "ours-vectorized": "foedus, vectorized", "ours-processes": "foedus, processes",
    "ours-local": "foedus, local", "loop-1": "plain loop, 1 process", "loop-2": "plain loop, 2 processes",
    "by-hand": "stacked kernels by hand", "flower": "Flower 1.41", "pfl": "pfl 0.6", "fedjax": "FedJAX 0.0.17",
    "nvflare": "NVIDIA FLARE 2.9",
}  # fmt: skip
HEAD = ("", "ms a round", "to foedus", "first round s", "whole s", "CPU s", "MB", "accuracy", "rounds")
DOCS = Path(__file__).resolve().parents[2] / "docs"
BEGIN, END = "<!-- tables, by benchmarks/others/table.py -->\n", "<!-- end of tables -->"


def rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    ours = found["ours-auto"]["round"]
    return [
        (NAMES[way], f"{1e3 * x['round']:.1f}", f"{x['round'] / ours:.2f} ×", f"{x['first']:.1f}", f"{x['whole']:.1f}",
         f"{x['cpu']:.1f}", f"{x['mb']:.0f}", f"{x['accuracy']:.3f}", str(x["rounds"]))
        for way, x in sorted(found.items(), key=lambda item: item[1]["round"])
    ]  # fmt: skip


def table(report: dict[str, Any]) -> str:
    parts = []
    for name in (key for key in report if key in "ABCD"):
        lines = [HEAD, ("---",) * len(HEAD), *rows(report[name])]
        parts.append(f"### {name}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts) + "\n"


def picture(report: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    names = [key for key in report if key in "ABCD"]
    figure, axes = pyplot.subplots(1, len(names), figsize=(3.2 * len(names), 3.6), squeeze=False)
    for ax, name in zip(axes[0], names, strict=True):
        found = sorted(report[name].items(), key=lambda item: -item[1]["round"])
        colours = ["#1b6ca8" if way.startswith("ours") else "#b9bec5" for way, _ in found]
        ax.barh([NAMES[way] for way, _ in found], [1e3 * x["round"] for _, x in found], color=colours)
        ax.set_xscale("log")
        ax.set_title(f"{name}: ms a round", fontsize=9)
        ax.tick_params(labelsize=7)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    folder = Path(sys.argv[1])
    report = json.loads((folder / "beside.json").read_text())
    page = DOCS / "speed.md"
    before, _, rest = page.read_text().partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{table(report)}\n{END}{rest.partition(END)[2]}")
    picture(report, DOCS / "images" / "simulation.svg")


if __name__ == "__main__":
    main()
