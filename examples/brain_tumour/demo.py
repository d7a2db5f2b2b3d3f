"""`make demo`, a real federation on this machine. Three hospitals learn; one leaves, one joins, the server is killed.
Needs foedus[server,torch,examples]; writes picture.png, report.html and model.safetensors into `--folder`."""

import argparse
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
KILLED = 24  # after this many rounds; figures.py has the other events
LABELS = np.array([(0, 0, 0, 0), (0.34, 0.71, 0.91, 0.65), (0.9, 0.62, 0, 0.65), (0.8, 0.47, 0.65, 0.65)])
CAPTION = (
    "Synthetic lesions in real anatomy (MNI152): core blue, rim orange, oedema purple. A row is one of a hospital's\n"
    "40 test slices: the one with a lesion whose federated Dice is nearest their median. Below: Dice of the tumour."
)


def train(home, folders, board, seed):
    """The Result of a real federation's run; all its processes end with this call."""
    events = [(figures.LEFT, leave), (figures.LEFT + 1, join), (KILLED, kill)]
    with federation(home) as made, board:
        board.tell("the server and the agents of a, b and c start")
        made.start_server()
        for name in "abc":
            made.join(name, {"data": folders[name]})
        made.await_sites("abc")
        run = made.remote().submit(figures.JOB, {"rounds": board.rounds}, seed=seed)
        for kind, news in run.watch():
            if kind == "row":
                board.row(news[2], news[3])
            elif news[0] in ("paused", "failed", "stopped"):
                raise fd.FoedusError(
                    f"the run {news[0]}: {news[1]}. The server's log ends: {made.log('server')[-500:]}"
                )
            while events and board.done * figures.ROUNDS >= events[0][0] * board.rounds:
                events.pop(0)[1](made, folders, board)
        return run.pull()


def leave(made, folders, board):
    board.tell("the owner of c takes it out of the federation")
    made.site("c", "leave")


def join(made, folders, board):
    board.tell("d is invited: it makes a key and joins")
    board.state["d"] = "was invited"
    made.join("d", {"data": folders["d"]})


def kill(made, folders, board):
    board.tell("the server dies by kill -9 and is started again")
    made.kill("server")
    made.start_server()


def picture(path, folders, models, best, past, board):
    """Slices with what was found in them, Dice of each round with the events, Dice over the seeds of figures.json."""
    figure = Figure(figsize=(13, 8.4), layout="constrained", dpi=120)
    figure.suptitle(f"Hospitals learn to find brain tumours: {board.told()}", fontsize=13)
    left, right = figure.subfigures(1, 2, width_ratios=(1.1, 1))
    grid = left.subplots(len(folders), 5, gridspec_kw={"wspace": 0.02, "hspace": 0.02})
    for axes, (name, folder) in zip(grid, folders.items(), strict=True):
        slices(axes, name, read(folder, "test"), models.get(name) or models[best], models["federated"])
    for ax, title in zip(grid[0], ("T1c", "FLAIR", "truth", "alone", "federated"), strict=True):
        ax.set_title(title)
    left.supxlabel(CAPTION, fontsize=8.5)
    top, bottom = right.subplots(2, 1)
    board.plot(top)
    figures.plot(bottom, past)
    for ax in (top, bottom):
        ax.set_ylim(0, 1)
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def slices(axes, name, test, alone, federated):
    images, truths = test
    alone, federated = (figures.found(net, images) for net in (alone, federated))
    ill = np.flatnonzero((truths > 0).any((1, 2)))
    each = np.array([figures.dice(federated[i], truths[i]) for i in ill])
    i = ill[np.argmin(abs(each - np.median(each)))]
    for ax, channel, labels in zip(axes, (0, 1, 0, 0, 0), (None, None, truths, alone, federated), strict=True):
        ax.imshow(images[i, channel].T, cmap="gray", origin="lower", vmin=-2, vmax=3, interpolation="bicubic")
        if labels is not None:
            ax.imshow(LABELS[labels[i]].swapaxes(0, 1), origin="lower")
        if labels is alone or labels is federated:
            ax.set_xlabel(f"{figures.dice(labels[i], truths[i]):.2f}", labelpad=1)
        ax.set(xticks=[], yticks=[], xlim=(7, 56), ylim=(3, 61))
    axes[0].set_ylabel(f"{name}\n{figures.ROLES[name]}", rotation=0, ha="right", va="center")


def demo(folder, seed, count, console, place):
    """All of it; `place` is for what nobody needs afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    board, past, folders = Board(console, count), figures.known(), figures.staged(place, seed)
    result = train(place / "federation", folders, board, seed)
    report, files = result.report(folder / "report.html"), {"federated": result.save(folder / "model.safetensors")}
    scores = {"federated": figures.measured(files["federated"], folders)}
    console.print("for comparison a, b, c and d train alone, in simulation")
    for (name,), file in figures.trained(figures.alone(place / "hospitals", seed, "abcd", count), place / "alone"):
        files[name], scores[name] = file, figures.measured(file, folders)
        console.print(f"{name} alone: Dice {scores[name][name]:.2f} on its own patients")
    models = {name: figures.network(file) for name, file in files.items()}
    picture(folder / "picture.png", folders, models, figures.best(scores), past, board)
    figures.tell(console, past, scores)
    console.print(f"{board.told()}\npicture: {folder / 'picture.png'}\nreport:  {report}", soft_wrap=True)


def interrupted(*_):
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # one is enough: the rest is ended in peace
    raise KeyboardInterrupt


if __name__ == "__main__":
    parser, began, console = argparse.ArgumentParser(description=__doc__), time.monotonic(), Console(soft_wrap=True)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--seed", type=int, default=figures.SEEDS[0])
    parser.add_argument("--rounds", type=int, default=figures.ROUNDS)
    chosen = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupted)
    try:
        with tempfile.TemporaryDirectory(prefix="foedus-demo-", ignore_cleanup_errors=True) as place:
            demo(chosen.folder.resolve(), chosen.seed, chosen.rounds, console, Path(place))
    except KeyboardInterrupt:
        print("demo: stopped; none of its processes is left", file=sys.stderr)
        sys.exit(130)
    except (fd.FoedusError, OSError) as error:
        sys.exit(f"demo: {error}")
    console.print(f"{time.monotonic() - began:.0f} seconds")
