"""`make demo`: a real federation on this machine. Hospitals learn together, one leaves, one joins, the server is killed.
Needs foedus[server,torch,examples]; writes picture.png, report.html and model.safetensors into `--folder`."""

import argparse
import json
import signal
import sys
import tempfile
import time
from pathlib import Path

import figures
import numpy as np
from board import Board
from data import read
from matplotlib.figure import Figure
from rich.console import Console

import foedus as fd
from foedus.loopback import federation

FOLDER = Path(__file__).resolve().parents[2] / "build" / "brain_tumour"
KILLED = 22  # after this many rounds; figures.py has the other events
COLOURS = {"a": "#0072B2", "b": "#D55E00", "c": "#009E73", "d": "#CC79A7"}  # Okabe and Ito
LABELS = np.array([(0, 0, 0, 0), (0.34, 0.71, 0.91, 0.65), (0.9, 0.62, 0, 0.65), (0.8, 0.47, 0.65, 0.65)])


def train(home, folders, board, seed):
    """The Result of a real federation's run; everything of it ends with this call."""
    events = [(figures.LEFT, leave), (figures.LEFT + 1, join), (KILLED, kill)]
    with federation(home) as made, board:
        board.tell("the server and the agents of A, B and C start")
        made.start_server()
        for name in "ABC":
            made.join(name, {"data": folders[name]})
        made.await_sites("ABC")
        run = made.remote().submit(figures.JOB, {"rounds": board.rounds}, seed=seed)
        for kind, news in run.watch():
            if kind == "state" and news[0] in ("paused", "failed", "stopped"):
                raise fd.FoedusError(
                    f"the run is {news[0]}: {news[1]}; the server's log ends: {made.log('server')[-500:]}"
                )
            if kind == "row":
                board.row(news[2], news[3])
            while events and board.done * figures.ROUNDS >= events[0][0] * board.rounds:
                events.pop(0)[1](made, folders, board)
        return run.pull()


def leave(made, folders, board):
    board.tell("C's owner takes it out of the federation", "C leaves")
    made.site("C", "leave")


def join(made, folders, board):
    board.tell("D is invited; its agent makes a key and joins", "D is invited")
    board.state["D"] = "was invited"
    made.join("D", {"data": folders["D"]})


def kill(made, folders, board):
    board.tell("the server dies: kill -9", "kill −9 of the server")
    made.kill("server")
    made.start_server()


def picture(path, folders, models, scores, past, board):
    """The slices with what was found, Dice per round with the events, Dice over five seeds."""
    figure = Figure(figsize=(14, 8.4), layout="constrained", dpi=110)
    left, right = figure.subfigures(1, 2, width_ratios=(1.06, 1))
    for axes, (name, folder) in zip(left.subplots(5, 5), folders.items(), strict=True):
        own = name if name in models else max("ABCD", key=lambda other: scores[other]["E"])
        slices(axes, name, read(folder, "test"), models[own], models["federated"])
    for ax, title in zip(left.axes, ("T1c", "FLAIR", "truth", "alone", "federated"), strict=False):
        ax.set_title(title, fontsize=11)
    top, bottom = right.subplots(2, 1)
    rounds(top, board)
    seeds(bottom, past)
    figure.savefig(path)


def slices(axes, name, test, alone, federated):
    """One hospital's row: of its slices with a lesion, the one whose federated Dice is nearest the median."""
    images, truths = test
    guesses = [figures.found(net, images) for net in (alone, federated)]
    ill = np.flatnonzero((truths > 0).any((1, 2)))
    each = np.array([figures.dice(guesses[1][i], truths[i]) for i in ill])
    i = ill[np.argmin(abs(each - np.median(each)))]
    layers = [None, None, truths[i], *(guess[i] for guess in guesses)]
    for column, (ax, labels) in enumerate(zip(axes, layers, strict=True)):
        ax.imshow(images[i, int(column == 1)].T, cmap="gray", origin="lower", vmin=-2, vmax=3)
        if labels is not None:
            ax.imshow(LABELS[labels].swapaxes(0, 1), origin="lower")
        ax.set(xticks=[], yticks=[], xlim=(7, 56), ylim=(2, 61))
        ax.set_xlabel(f"{figures.dice(labels, truths[i]):.2f}" if column > 2 else "", labelpad=2)
    axes[0].set_ylabel(f"{name}\n{figures.ROLES[name]}", rotation=0, ha="right", va="center")


def rounds(ax, board):
    for name, curve in sorted(board.curves.items()):
        ax.plot(*np.transpose(curve), color=COLOURS[name], lw=2)
        ax.annotate(name, curve[-1], (5, -4), textcoords="offset points", color=COLOURS[name], weight="bold")
    for done, mark in board.marks:
        ax.axvline(done, color="0.5", lw=1, ls=":")
        ax.text(done, 0.02, f" {mark}", rotation=90, va="bottom", ha="right", color="0.3", fontsize=9)
    ax.set(title="this run: Dice after each round", xlabel="round", ylim=(0, 1), xlim=(0, board.rounds * 1.05))


def seeds(ax, past):
    for place, model in zip((-0.2, 0, 0.2), ("alone", "federated", "pooled"), strict=True):
        found = [figures.interval(figures.compared(past["dice"], name)[model]) for name in figures.ROLES]
        mean, half = np.transpose(found)
        style = {"alone": ("s", "0.6"), "federated": ("o", "#0072B2"), "pooled": ("D", "#E69F00")}[model]
        ax.errorbar(np.arange(5) + place, mean, half, fmt=style[0], color=style[1], capsize=3, label=model)
    ax.set(title=f"Dice over {len(past['seeds'])} seeds, 95 % intervals", ylim=(0, 1), xticks=range(5))
    ax.set_xticklabels(f"{name}\n{role}" for name, role in figures.ROLES.items())
    ax.legend(loc="lower right", frameon=False, ncols=3)


def demo(folder, seed, count, console):
    """All of it; the folder's files are made anew."""
    began, past = time.monotonic(), json.loads(figures.FILE.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="foedus-demo-", ignore_cleanup_errors=True) as place:
        board = Board(console, count)
        folders = figures.staged(Path(place), seed)
        result = train(Path(place) / "home", folders, board, seed)
        report, paths = result.report(folder / "report.html"), {"federated": result.save(folder / "model.safetensors")}
        console.print("for comparison, A, B, C and D train alone, in simulation")
        runs = figures.alone(Path(place) / "hospitals", seed, "ABCD", count)
        for (name,), path in figures.trained(runs, Path(place) / "alone"):
            paths[name] = path
            console.print(f"{name} alone: Dice {figures.measured(path, folders)[name]:.2f} on its own patients")
        models = {name: figures.network(path) for name, path in paths.items()}
        scores = {name: figures.measured(path, folders) for name, path in paths.items()}
        picture(folder / "picture.png", folders, models, scores, past, board)
    tables(scores, past, board)
    console.print(
        f"picture: {folder / 'picture.png'}\nreport:  {report}\n{time.monotonic() - began:.0f} s", soft_wrap=True
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--seed", type=int, default=figures.SEEDS[0])
    parser.add_argument("--rounds", type=int, default=figures.ROUNDS)
    chosen, console = parser.parse_args(), Console()

    def interrupted(*_):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # once is enough: what is being ended is ended in peace
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupted)
    try:
        demo(chosen.folder.resolve(), chosen.seed, chosen.rounds, console)
    except KeyboardInterrupt:
        sys.exit("demo: stopped; no process is left")
    except (fd.FoedusError, OSError) as error:
        sys.exit(f"demo: {error}")


if __name__ == "__main__":
    main()
