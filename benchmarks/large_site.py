"""A site with 200,000 small images on disk: peak memory beside a small site, what keeping costs, what a kill costs.

`python benchmarks/large_site.py [IMAGES]` prints JSON; `limit` is what is aimed at. Images are PNG files of 28 x 28;
each run has a process of its own. The last one is killed in the middle of its training, and the run resumed.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

import foedus as fd
from foedus import launch, midway
from foedus.torch import TorchLearner

IMAGES, FEW, FOLDER, BATCH = 200_000, 2_000, 1_000, 64
PAIRS, OFTEN, NEVER = 3, 1.0, 1e9  # seconds between two files of a training; by default 30


def main(images: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        write(place / "images", images)
        small = apart(place, "small", FEW, NEVER)
        pairs = [
            (apart(place, f"calm{i}", images, NEVER), apart(place, f"kept{i}", images, OFTEN)) for i in range(PAIRS)
        ]
        large, kept = pairs[0]
        killed = after_a_kill(place, images, large["seconds"] / 2)
    found = {
        "images": images,
        "peak_mb": {str(FEW): small["peak_mb"], str(images): large["peak_mb"]},
        "more_mb": round(large["peak_mb"] - small["peak_mb"], 1),
        "more_mb_limit": 50,
        "images_a_second": round(images / large["seconds"]),
        "with_a_file_a_second": round(median(b["seconds"] / a["seconds"] for a, b in pairs), 3),
        "with_a_file_limit": 1.05,
        "killed_after": killed["before"],
        "taken_twice": killed["taken"] - kept["taken"],
        "taken_twice_limit": round(1.5 * OFTEN * images / large["seconds"]),
        "same_bits": len({x["digest"] for x in (large, kept, killed)}) == 1,
    }
    print(json.dumps(found, indent=2))


def write(folder: Path, images: int) -> None:
    """Digits that differ from one another by noise."""
    draw = np.random.default_rng(0)
    for first in range(0, images, FOLDER):
        place = folder / str(first // FOLDER)
        place.mkdir(parents=True)
        for i, pixels in enumerate(draw.integers(0, 128, (min(FOLDER, images - first), 28, 28), dtype=np.uint8)):
            label = (first + i) % 10
            pixels[2 * label : 2 * label + 6] += 100
            Image.fromarray(pixels).save(place / f"{i}-{label}.png", compress_level=1)


class Images:
    """PNG files, read when they are asked for; no list of them is held. A file counts what a process takes."""

    taken = 0

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        Images.taken += 1
        if Images.taken % 100 == 0:
            (self.folder.parent / f"taken-{os.getpid()}").write_text(str(Images.taken))
        with Image.open(self.folder / str(i // FOLDER) / f"{i % FOLDER}-{i % 10}.png") as image:
            return torch.from_numpy(np.array(image, np.float32)[None] / 255), i % 10


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, 2), nn.ReLU(), nn.Conv2d(8, 16, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)
    )


def job(folder: Path, count: int) -> fd.Job:
    def load(site: fd.Site) -> fd.Split:
        return fd.Split(train=Images(folder, count), valid=Images(folder, 100))

    learner = TorchLearner(net, nn.CrossEntropyLoss(), partial(torch.optim.Adam, lr=1e-3), batch_size=BATCH)
    return fd.Job(fd.fedavg(), learner, load, rounds=1)


def told(folder: Path, run: str, count: int, every: float) -> None:
    """Runs, or goes on, and prints what it took."""
    midway.EVERY = every
    began = time.perf_counter()
    result = launch.run(job(folder / "images", count), 1, backend="local", folder=folder / run)
    seconds, peak = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mb": round(peak, 1), "digest": result.digest}))


def begin(folder: Path, run: str, count: int, every: float) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, str(folder), run, str(count), str(every)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def apart(folder: Path, run: str, count: int, every: float) -> dict[str, Any]:
    """What a run in a process of its own says."""
    process = begin(folder, run, count, every)
    out, _ = process.communicate()
    found: dict[str, Any] = json.loads(out) | {"taken": taken(folder, process)}
    return found


def after_a_kill(folder: Path, count: int, seconds: float) -> dict[str, Any]:
    """What a run says that is killed after so many seconds, and goes on."""
    process = begin(folder, "killed", count, OFTEN)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before, found = taken(folder, process), apart(folder, "killed", count, OFTEN)
    return found | {"before": before, "taken": before + found["taken"]}


def taken(folder: Path, process: subprocess.Popen[str]) -> int:
    """How many images a process took, to the last hundred."""
    path = folder / f"taken-{process.pid}"
    return int(path.read_text()) if path.exists() else 0


if __name__ == "__main__":
    if len(sys.argv) > 2:
        told(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else IMAGES)
