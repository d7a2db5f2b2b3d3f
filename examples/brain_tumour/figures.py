"""`make demo-figures`: Dice over five seeds, in simulation, written to figures.json; the demo compares itself with it.
Every model comes from `foedus run job.py`; Dice is measured on test slices that no run trained on."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from board import COLOURS
from data import read, write
from rich.console import Console
from rich.table import Table

import foedus as fd
from foedus import runs
from foedus.build import differences

HERE = Path(__file__).resolve().parent
JOB, FILE = HERE / "job.py", HERE / "figures.json"
SEEDS = (10, 11, 12, 13, 14)  # 0 to 9 were kept for making the example, and some looked at
ROUNDS, LEFT, JOINED = 30, 12, 20
SCHEDULE = (("ABC", 0, LEFT), ("AB", LEFT, JOINED), ("ABD", JOINED, ROUNDS))
ROLES = {"A": "stays", "B": "stays", "C": "leaves", "D": "joins late", "E": "never joins"}
STYLES = {"alone": ("o", "white"), "federated": ("o", None), "pooled": ("D", "0.85")}  # marker, filled with
SAYS = (
    f"Simulated. Federated: A, B and C for {LEFT} rounds, A and B (C has left) for {JOINED - LEFT}, A, B and D for "
    f"{ROUNDS - JOINED}, about as in the demo. Pooled: all patients of A to D. Alone: one hospital's patients. "
    "All train for the same rounds and local epochs on 8 patients a hospital; 40 others are measured; E takes no part. "
    "Dice of the whole tumour: 2 × overlap / (found + true), counted over all 40 slices, those without a lesion too."
)
T95 = 2.7764451051977987  # Student's t, 4 degrees of freedom
AT_ONCE = 2
Run = tuple[Any, ...]  # any name
Scores = Mapping[str, Mapping[str, Any]]  # model -> hospital -> Dice, or Dice of each seed


def trained(wanted: Mapping[Run, Sequence[str]], home: Path) -> Iterator[tuple[Run, Path]]:
    """(name, file of the model) of each run, as it ends; `wanted` maps names to arguments of `foedus run`.

    Raises FoedusError with the last line of a run that failed. No process outlives the iterator.
    """
    waiting, busy = list(wanted.items()), dict[Run, subprocess.Popen[str]]()
    try:
        while waiting or busy:
            while waiting and len(busy) < AT_ONCE:
                name, arguments = waiting.pop(0)
                busy[name] = _started(arguments, home)
            for name in [name for name, process in busy.items() if process.poll() is not None]:
                yield name, _model(busy.pop(name), name)
            time.sleep(0.05)
    finally:
        for process in busy.values():
            process.kill()
            process.communicate()


def _started(arguments: Sequence[str], home: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "foedus", "run", str(JOB), *arguments, "--home", str(home), "--json"]
    path = os.pathsep.join(filter(None, (str(Path(fd.__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    pipes: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, **pipes)


def _model(process: subprocess.Popen[str], name: Run) -> Path:
    said, wrong = process.communicate()
    if process.returncode:
        raise fd.FoedusError(f"`foedus run` of {name} failed: {''.join(wrong.strip().splitlines()[-1:])}")
    return Path(json.loads(said)["folder"]) / "final.safetensors"


def alone(folder: Path, seed: int, names: str, rounds: int = ROUNDS) -> dict[Run, list[str]]:
    """The runs of hospitals that train by themselves."""
    more = [f"--seed={seed}", f"rounds={rounds}", "evaluate=0"]
    return {(name,): [f"--site={name}={folder / name}", *more] for name in names}


def network(path: Path) -> Any:
    """The U-Net of a model's file."""
    import torch
    from job import UNet
    from safetensors.torch import load_file

    torch.set_num_threads(1)
    net = UNet()
    net.load_state_dict(load_file(path))
    return net.eval()


def found(net: Any, images: Any) -> Any:
    """The labels that a network finds, (n, 64, 64)."""
    import torch

    with torch.no_grad():
        return net(torch.from_numpy(images)).argmax(1).numpy()


def dice(labels: Any, truth: Any) -> float:
    """Of the whole tumour, counted over all slices that are given; 1 where there is none and none was found."""
    a, b = labels > 0, truth > 0
    return float(2 * (a & b).sum() / (a.sum() + b.sum())) if a.any() or b.any() else 1.0


def measured(path: Path, hospitals: Mapping[str, Path]) -> dict[str, float]:
    """Dice of a model at each hospital's test slices."""
    net, tests = network(path), {name: read(folder, "test") for name, folder in hospitals.items()}
    return {name: round(dice(found(net, x), y), 4) for name, (x, y) in tests.items()}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half of the 95 % interval of five values (Student's t)."""
    return float(np.mean(values)), float(T95 * np.std(values, ddof=1) / np.sqrt(len(values)))


def best(scores: Scores) -> str:
    """Of the models trained alone, the one that does best at hospital E."""
    return max("ABCD", key=lambda name: float(np.mean(scores[name]["E"])))


def compared(scores: Scores, name: str) -> dict[str, Any]:
    """What stands in a hospital's row: alone (for E the best of the others' models), federated, pooled."""
    own = name if name in scores else best(scores)
    return {"alone": scores[own][name]} | {m: scores[m][name] for m in ("federated", "pooled") if m in scores}


def known() -> Mapping[str, Any] | None:
    """What figures.json says; None until `make demo-figures` was run."""
    return json.loads(FILE.read_text()) if FILE.exists() else None


def screen() -> Console:
    """Where the table is printed."""
    return Console(soft_wrap=True, highlight=False)


def gain(past: Mapping[str, Any], name: str) -> tuple[float, float, int]:
    """Federated less alone, seed by seed: mean, half of the 95 % interval, and in how many seeds it is above 0."""
    row = compared(past["dice"], name)
    more = np.subtract(row["federated"], row["alone"])
    return *interval(more.tolist()), int((more > 0).sum())


def verdict(past: Mapping[str, Any]) -> str:
    """Who gained and who lost by taking part, a line each: they did where the interval leaves 0 out."""
    groups: dict[str, list[str]] = {"gained": [], "lost": [], "not settled by five seeds": []}
    for name in ROLES:
        mean, half, wins = gain(past, name)
        alone, federated, _ = map(np.mean, compared(past["dice"], name).values())
        said = list(groups)[2 if abs(mean) <= half else mean < 0]
        groups[said].append(f"{name} {alone:.2f} → {federated:.2f} (up in {wins} of {len(past['seeds'])})")
    return "\n".join(f"{said}: {', '.join(names)}" for said, names in groups.items() if names)


def signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def tell(console: Console, past: Mapping[str, Any] | None, now: Scores | None = None, build: Any = None) -> None:
    """Prints the table of figures.json, with the Dice of one more run and of its build beside it."""
    columns = [f"\n{column}*" for column in (*STYLES, "gain")] if past else []
    more = ("this\nalone", "run\nfederated") if now else ()
    table = Table("\nhospital", *columns, *more, box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name, role in ROLES.items():
        new = [f"{value:.2f}" for value in compared(now, name).values()] if now else []
        table.add_row(f"{name} {role}", *(cells(past, name) if past else []), *new)
    console.print("", table, "", sep="\n")
    console.print("Dice of the whole tumour on 40 patients that no run trained on: 0 nothing right, 1 all right.")
    if past is None:
        console.print("One seed; `make demo-figures` computes five, with intervals.")
        return
    asked = {k: x for k, x in (build or {}).items() if k in past["build"]}  # what was not recorded then says nothing
    count, differ = len(past["seeds"]), differences(past["build"], asked or past["build"])
    console.print(f"* mean and 95 % interval of {count} seeds, simulated on {past['date']}; gain: federated − alone")
    console.print("E takes no part; its `alone` is the best there of the models that A, B, C and D trained alone.")
    if differ:
        console.print(f"This machine is another build ({', '.join(differ)}): * would come out a little differently.")
    console.print(f"\n[bold]{verdict(past)}[/]\n")


def cells(past: Mapping[str, Any], name: str) -> list[str]:
    """A hospital's row of the table."""
    models = [interval(values) for values in compared(past["dice"], name).values()]
    mean, half, _ = gain(past, name)
    return [*(f"{m:.2f} ± {h:.2f}" for m, h in models), f"{signed(mean)} ± {half:.2f}"]


def plot(past: Mapping[str, Any] | None, ax: Any) -> None:
    """Draws the same."""
    if past is None:
        ax.set_axis_off()
        return
    for at, (model, (shape, fill)) in zip((-0.26, 0, 0.26), STYLES.items(), strict=True):
        ax.plot([], [], shape, color="0.3", mfc=fill, ms=8, mew=2, label=model)  # for the legend
        for x, name in enumerate(ROLES):
            mean, half = interval(compared(past["dice"], name)[model])
            ax.errorbar(x + at, mean, half, fmt=shape, color=COLOURS[name], mfc=fill, ms=8, mew=2, capsize=3)
            ax.annotate(f"{mean:.2f}", (x + at, mean - half), (0, -13), textcoords="offset points", ha="center", size=9)
    ax.set(title=f"Dice over {len(past['seeds'])} seeds, with 95 % intervals", xticks=range(5), ylim=(0, 1))
    ax.set_xticklabels(f"{name}\n{role}" for name, role in ROLES.items())
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="lower left", frameon=False, ncols=3)


def staged(folder: Path, seed: int) -> dict[str, Path]:
    """Writes all data of a seed: A to D in a folder of their own, for they are what pooling would bring together."""
    return write(folder / "hospitals", seed, "ABCD") | write(folder / "elsewhere", seed, "E")


def one_seed(seed: int, folder: Path, models: str = "ABCD") -> dict[str, dict[str, float]]:
    """model -> hospital -> Dice, for the models trained alone; with all four of them, federated and pooled too."""
    hospitals, whole = staged(folder, seed), models == "ABCD"
    pooled = {("pooled",): [f"--site=pooled={folder / 'hospitals'}", f"--seed={seed}", "evaluate=0"]} if whole else {}
    apart = pooled | alone(folder / "hospitals", seed, models)
    scores = {name: measured(path, hospitals) for (name,), path in trained(apart, folder / "home")}
    start = ""
    for names, first, last in SCHEDULE if whole else ():
        sites = [f"--site={name}={hospitals[name]}" for name in names]
        more = [f"--seed={seed}", f"--rounds={last - first}", f"first={first}", f"start={start}", "evaluate=0"]
        ((_, path),) = trained({("federated",): [*sites, *more]}, folder / "home")
        start, scores["federated"] = str(path), measured(path, hospitals)
    return scores


def built(folder: Path) -> dict[str, Any]:
    """The build with which a seed's runs were done."""
    return dict(runs.about(max((folder / "home" / "runs").iterdir()))["build"])


def main() -> None:
    """Computes all figures again; about two minutes a seed on two cores."""
    every, console = [], screen()
    for seed in SEEDS:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="foedus-figures-") as folder:
            every.append(one_seed(seed, Path(folder)))
            build = built(Path(folder))
        row = {name: compared(every[-1], name) for name in ROLES}
        console.print(f"seed {seed} ({time.monotonic() - began:.0f} s): {json.dumps(row)}")
    scores = {model: {name: [one[model][name] for one in every] for name in ROLES} for model in every[0]}
    about = {"what": SAYS, "date": date.today().isoformat(), "build": build, "seeds": SEEDS}
    FILE.write_text(json.dumps(about | {"dice": scores}, indent=1) + "\n")
    tell(console, json.loads(FILE.read_text()))


if __name__ == "__main__":
    main()
