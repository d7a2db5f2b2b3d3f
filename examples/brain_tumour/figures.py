"""`make demo-figures`: Dice over five seeds, in simulation, written to figures.json. The demo compares itself with them.
Every model comes from `foedus run job.py`, two runs at a time; Dice is measured here, on test slices that no run saw."""

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

import foedus as fd
from foedus import build

HERE = Path(__file__).resolve().parent
JOB, FILE = HERE / "job.py", HERE / "figures.json"
SEEDS = (5, 6, 7, 8, 9)  # 0 to 3 were looked at while the example was made
ROUNDS, LEFT, JOINED = 30, 15, 18
SCHEDULE = (("ABC", 0, LEFT), ("AB", LEFT, JOINED), ("ABD", JOINED, ROUNDS))
SAYS = (
    f"simulated; federated: A, B and C for {LEFT} rounds, then A and B (C has left) for {JOINED - LEFT}, then A, B and D "
    f"for {ROUNDS - JOINED}, as in the demo; pooled: all patients of A to D in one place; alone: one hospital's patients; "
    "the same rounds and local epochs for all; 8 patients a hospital train, 40 others are measured; E takes no part. "
    "Dice of the whole tumour: 2 × overlap / (found + true), counted over all 40 slices, those without a lesion too"
)
T95 = 2.7764451051977987  # Student's t, 4 degrees of freedom
Run = tuple[Any, ...]  # any name


def trained(runs: Mapping[Run, Sequence[str]], home: Path) -> Iterator[tuple[Run, Path]]:
    """(name, file of the model) of each run, as it ends; `runs` maps names to arguments of `foedus run`.

    Raises FoedusError with the last line of a run that failed. No process outlives the iterator.
    """
    waiting, busy = list(runs.items()), dict[Run, subprocess.Popen[str]]()
    try:
        while waiting or busy:
            while waiting and len(busy) < 2:
                name, arguments = waiting.pop(0)
                busy[name] = _started(arguments, home)
            for name, process in [(n, p) for n, p in busy.items() if p.poll() is not None]:
                said, wrong = busy.pop(name).communicate()
                if process.returncode:
                    raise fd.FoedusError(f"`foedus run` of {name} failed: {wrong.strip().splitlines()[-1:]}")
                yield name, Path(json.loads(said)["folder"]) / "final.safetensors"
            time.sleep(0.05)
    finally:
        for process in busy.values():
            process.kill()
            process.communicate()


def _started(arguments: Sequence[str], home: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "foedus", "run", str(JOB), *arguments, "--home", str(home), "--json"]
    code = os.pathsep.join(filter(None, (str(Path(fd.__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "PYTHONPATH": code})  # fmt: skip


def alone(folder: Path, seed: int, names: str) -> dict[Run, list[str]]:
    """The runs of hospitals that train by themselves."""
    return {(name,): [f"--site={name}={folder / name}", f"--seed={seed}", "evaluate=0"] for name in names}


def network(path: Path) -> Any:
    """The U-Net of a model's file."""
    from job import UNet
    from safetensors.torch import load_file

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
    from data import read

    net, tests = network(path), {name: read(folder, "test") for name, folder in hospitals.items()}
    return {name: round(dice(found(net, x), y), 4) for name, (x, y) in tests.items()}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half of the 95 % interval of five values (Student's t)."""
    return float(np.mean(values)), float(T95 * np.std(values, ddof=1) / np.sqrt(len(values)))


def compared(scores: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Any]:
    """What stands in a hospital's row: alone (for one without a model the best of the others'), federated, pooled."""
    own = scores[name][name] if name in scores else np.max([scores[other][name] for other in "ABCD"], axis=0)
    return {"alone": own, **{model: scores[model][name] for model in ("federated", "pooled") if model in scores}}


def staged(folder: Path, seed: int) -> dict[str, Path]:
    """Writes all data of a seed: A to D in a folder of their own, for they are what pooling would bring together."""
    from data import write

    return write(folder / "hospitals", seed, "ABCD") | write(folder / "elsewhere", seed, "E")


def one_seed(seed: int, folder: Path, models: str = "ABCD") -> dict[str, dict[str, float]]:
    """model -> hospital -> Dice, for the models trained alone; with all four of them, federated and pooled too."""
    hospitals, home = staged(folder, seed), folder / "home"
    runs, whole = alone(folder / "hospitals", seed, models), models == "ABCD"
    if whole:
        runs["pooled",] = [f"--site=pooled={folder / 'hospitals'}", f"--seed={seed}", "evaluate=0"]
    scores = {name: measured(path, hospitals) for (name,), path in trained(runs, home)}
    start = ""
    for names, first, last in SCHEDULE if whole else ():
        sites = [f"--site={name}={hospitals[name]}" for name in names]
        more = [f"--seed={seed}", f"--rounds={last - first}", f"first={first}", f"start={start}", "evaluate=0"]
        ((_, path),) = trained({("federated",): [*sites, *more]}, home)
        start, scores["federated"] = str(path), measured(path, hospitals)
    return scores


def main() -> None:
    """Computes all figures again; about two minutes a seed on two cores."""
    sys.path.insert(0, str(HERE))
    every = []
    for seed in SEEDS:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="foedus-figures-") as folder:
            every.append(one_seed(seed, Path(folder)))
        rows = {name: compared(every[-1], name) for name in "ABCDE"}
        print(f"seed {seed} ({time.monotonic() - began:.0f} s): {json.dumps(rows)}", flush=True)
    import torch  # noqa: F401, so that the build names it

    scores = {m: {h: [one[m][h] for one in every] for h in "ABCDE"} for m in every[0]}
    about = {"what": SAYS, "date": date.today().isoformat(), "build": build.describe(), "seeds": SEEDS}
    FILE.write_text(json.dumps(about | {"dice": scores}, indent=1) + "\n")


if __name__ == "__main__":
    main()
