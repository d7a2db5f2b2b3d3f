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
from data import read, write
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import foedus as fd
from foedus import runs

HERE = Path(__file__).resolve().parent
JOB, FILE = HERE / "job.py", HERE / "figures.json"
SEEDS = (5, 6, 7, 8, 9)  # 0 to 3 were looked at while the example was made
ROUNDS, LEFT, JOINED = 30, 15, 20
SCHEDULE = (("abc", 0, LEFT), ("ab", LEFT, JOINED), ("abd", JOINED, ROUNDS))
ROLES = {"a": "stays", "b": "stays", "c": "leaves", "d": "joins late", "e": "outside"}
STYLES = {"alone": ("s", "#999999"), "federated": ("o", "#0072B2"), "pooled": ("D", "#E69F00")}
SAYS = (
    f"Simulated. Federated: a, b and c for {LEFT} rounds, a and b (c has left) for {JOINED - LEFT}, a, b and d for "
    f"{ROUNDS - JOINED}, about as in the demo. Pooled: all patients of a to d. Alone: one hospital's patients. "
    "All train for the same rounds and local epochs on 8 patients a hospital; 40 others are measured; e takes no part. "
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
    """Of the models trained alone, the one that does best at hospital e."""
    return max("abcd", key=lambda name: float(np.mean(scores[name]["e"])))


def compared(scores: Scores, name: str) -> dict[str, Any]:
    """What stands in a hospital's row: alone (for e the best of the others' models), federated, pooled."""
    own = name if name in scores else best(scores)
    return {"alone": scores[own][name]} | {m: scores[m][name] for m in ("federated", "pooled") if m in scores}


def known() -> Mapping[str, Any] | None:
    """What figures.json says; None until `make demo-figures` was run."""
    return json.loads(FILE.read_text()) if FILE.exists() else None


def tell(console: Console, past: Mapping[str, Any] | None, now: Scores | None = None) -> None:
    """Prints the table of figures.json, with the Dice of one more run beside it."""
    columns = [f"{model}*" for model in STYLES] if past else []
    table = Table("hospital", *columns, *(("alone", "federated") if now else ()), box=SIMPLE_HEAD)
    for name, role in ROLES.items():
        before = [interval(values) for values in compared(past["dice"], name).values()] if past else []
        new = [f"{value:.2f}" for value in compared(now, name).values()] if now else []
        table.add_row(f"{name}, {role}", *(f"{mean:.2f} ± {half:.2f}" for mean, half in before), *new)
    console.print(table)
    if past is None:
        console.print("Dice of the whole tumour, one seed; `make demo-figures` computes five, with intervals.")
        return
    count, day = len(past["seeds"]), past["date"]
    console.print(f"Dice of the whole tumour. * Mean and 95 % interval over {count} seeds, simulated on {day}.")
    console.print("e takes no part; alone is the best there of the models that a to d trained alone.")


def plot(ax: Any, past: Mapping[str, Any] | None) -> None:
    """Draws the same."""
    if past is None:
        ax.set_axis_off()
        return
    for at, (model, (shape, colour)) in zip((-0.2, 0, 0.2), STYLES.items(), strict=True):
        mean, half = np.transpose([interval(compared(past["dice"], name)[model]) for name in ROLES])
        ax.errorbar(np.arange(5) + at, mean, half, fmt=shape, color=colour, capsize=3, label=model)
    ax.set(title=f"Dice over {len(past['seeds'])} seeds, 95 % intervals", xticks=range(5))
    ax.set_xticklabels(f"{name}\n{role}" for name, role in ROLES.items())
    ax.legend(loc="lower right", frameon=False, ncols=3)


def staged(folder: Path, seed: int) -> dict[str, Path]:
    """Writes all data of a seed: a to d in a folder of their own, for they are what pooling would bring together."""
    return write(folder / "hospitals", seed, "abcd") | write(folder / "elsewhere", seed, "e")


def one_seed(seed: int, folder: Path, models: str = "abcd") -> dict[str, dict[str, float]]:
    """model -> hospital -> Dice, for the models trained alone; with all four of them, federated and pooled too."""
    hospitals, whole = staged(folder, seed), models == "abcd"
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
    every, console = [], Console(soft_wrap=True)
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
