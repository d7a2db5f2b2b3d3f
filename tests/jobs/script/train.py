"""A plain training script of least squares: arrays that are changed in place, data from a file, faults on demand."""

import argparse
import os
import signal
import socket
import sys
import time
from pathlib import Path

import numpy as np

import foedus as fd

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.01)
parser.add_argument("--fault", default="")
args = parser.parse_args()

model = {"w": np.zeros(4, np.float32)}
data = Path(os.environ.get("FOEDUS_SITE_DATA", "."))
site = os.environ.get("FOEDUS_SITE")
if site is not None and args.fault == "early":
    raise ValueError("secret 42")


def parts():
    rows = np.loadtxt(data / "rows.csv", delimiter=",")
    return {"train": rows[:40], "valid": rows[40:50], "test": rows[50:]}


def measure(model, part):
    rows = parts()[part]
    outputs = rows[:, :4] @ model["w"]
    return outputs, rows[:, 4], (outputs - rows[:, 4]) ** 2


def train(model, rows, order):
    for i in order:
        error = rows[i, :4] @ model["w"] - rows[i, 4]
        model["w"] -= np.float32(args.lr) * (2 * error * rows[i, :4]).astype(np.float32)
    return float(error**2)


rounds = fd.rounds(model, evaluate=measure, examples={"train": 40, "valid": 10, "test": 10})
for seen, rnd in enumerate(rounds, 1):
    with (data / "calls").open("a") as calls:
        calls.write(f"{rnd.number} {os.getpid()} {seen}\n")
    fault = args.fault if site == "north" and rnd.number == 1 else ""
    rows = parts()["train"]
    loss = train(model, rows, rnd.key("order").numpy().permutation(40))
    if fault == "raise":
        raise ValueError("secret 42")
    if fault == "exit":
        sys.exit(0)
    if fault == "code":
        print("secret 42")
        os._exit(3)
    if fault == "walls":
        try:
            socket.socket().close()
            said = "network"
        except PermissionError:
            said = "walls"
        (data / "said").write_text(f"{said} {sorted(name for name in os.environ if 'SECRET' in name)}")
    if fault == "hang":
        time.sleep(1000)
    if fault == "kill" and not (data / "killed").exists():
        (data / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "nan":
        model["w"][0] = np.nan
    if fault == "shape":
        model["w"] = np.zeros(5, np.float32)
    if fault == "print":
        print("x" * (6 << 20))
        print("last words")
    if fault != "silent":
        rnd.report(examples=40, loss=float("nan") if fault == "loss" else loss)
