"""`make demo`, a real federation on this machine. Three hospitals learn; one leaves, one joins, the server is killed.
Needs foedus[server,torch,examples]; writes picture.png, report.html and model.safetensors into `--folder`."""

import argparse
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import figures
import numpy as np
from board import COLOURS, Board
from data import read
from matplotlib.figure import Figure

import foedus as fd
from foedus.loopback import federation

FOLDER = Path(__file__).resolve().parents[2] / "build" / "brain_tumour"
KILLED = 24  # after this many rounds; figures.py has the other events
LABELS = np.array([(0, 0, 0, 0), (0.34, 0.71, 0.91, 0.65), (0.9, 0.62, 0, 0.65), (0.8, 0.47, 0.65, 0.65)])
CAPTION = (
    "Synthetic lesions in real anatomy (MNI152): core blue, rim orange, oedema purple; numbers are Dice of the whole.\n"
    "A row is one of a hospital's 40 test patients: of those with a lesion, the one nearest the median federated Dice."
)


def train(home, folders, board, seed):
    """The Result of a real federation's run; all its processes end with this call."""
    events = [(figures.LEFT, leave), (figures.LEFT + 1, join), (KILLED, kill)]
    with federation(home) as made, board:
        board.state = dict.fromkeys("ABC", "starts")
        board.tell("the server and the agents of A, B and C start")
        made.start_server()
        for site in "abc":
            made.join(site, {"data": folders[site.upper()]})
        made.await_sites("abc")
        run = made.remote().submit(figures.JOB, {"rounds": board.rounds}, seed=seed, privacy="none")
        for kind, news in run.watch():
            if kind == "row":
                board.row(news[2], news[3])
            elif news[0] in ("paused", "failed", "stopped"):
                raise fd.FoedusError(f"the run {news[0]}: {news[1]}. Its server's log: {made.log('server')[-500:]}")
            while events and board.done * figures.ROUNDS >= events[0][0] * board.rounds:
                events.pop(0)[1](made, folders, board)
        result = run.pull()
        on_stop(signal.SIG_IGN)  # nothing cuts short how the processes are ended
    on_stop(interrupted)
    return result


def leave(made, folders, board):
    board.tell("the owner of C takes it out of the federation")
    made.site("c", "leave")


def join(made, folders, board):
    board.tell("D is invited: it makes a key and joins")
    board.state["D"] = "was invited"
    made.join("d", {"data": folders["D"]})


def kill(made, folders, board):
    board.tell("the server dies by kill -9 and is started again")
    made.kill("server")
    made.start_server()


def picture(path, folders, models, best, past, board):
    """Slices with what was found in them, Dice of each round with the events, Dice over the seeds of figures.json."""
    figure = Figure(figsize=(14, 9), layout="constrained", dpi=120)
    figure.suptitle(f"Hospitals learn to find brain tumours: {board.told()}", fontsize=15, weight="bold")
    figure.get_layout_engine().set(w_pad=0.04, h_pad=0.05)
    left, right = figure.subfigures(1, 2, width_ratios=(1.2, 1))
    grid = left.subplots(len(folders), 5, gridspec_kw={"wspace": 0, "hspace": 0})
    for axes, (name, folder) in zip(grid, folders.items(), strict=True):
        slices(axes, name, *read(folder, "test"), models.get(name) or models[best], models["federated"])
    for ax, title in zip(grid[0], ("T1c", "FLAIR", "truth", "alone", "federated"), strict=True):
        ax.set_title(title)
    grid[-1, 3].text(0.04, 0.96, f"{best}'s model", transform=grid[-1, 3].transAxes, color="w", va="top")
    left.supxlabel(CAPTION, fontsize=9)
    for plot, ax in zip((board.plot, partial(figures.plot, past)), right.subplots(2, 1), strict=True):
        plot(ax)
    figure.savefig(path)


def slices(axes, name, images, truths, alone, federated):
    alone, federated = (figures.found(net, images) for net in (alone, federated))
    ill = np.flatnonzero((truths > 0).any((1, 2)))
    each = np.array([figures.dice(federated[i], truths[i]) for i in ill])
    i = ill[np.argmin(abs(each - np.median(each)))]
    for ax, channel, labels in zip(axes, (0, 1, 0, 0, 0), (None, None, truths, alone, federated), strict=True):
        ax.imshow(images[i, channel].T, cmap="gray", origin="lower", vmin=-2, vmax=3, interpolation="bicubic")
        if labels is not None:
            ax.imshow(LABELS[labels[i]].swapaxes(0, 1), origin="lower")
        if labels is alone or labels is federated:
            said = f"{figures.dice(labels[i], truths[i]):.2f}"
            ax.text(0.96, 0.04, said, transform=ax.transAxes, color="w", ha="right", size=12, weight="bold")
        ax.set(xticks=[], yticks=[], xlim=(4, 59), ylim=(2, 61))
    style = {"transform": axes[0].transAxes, "ha": "center", "color": COLOURS[name]}
    axes[0].text(-0.34, 0.5, name, size=22, weight="bold", **style)
    axes[0].text(-0.34, 0.36, figures.ROLES[name], size=11, **style)


def demo(folder, seed, count, console, place):
    """All of it; `place` is for what nobody needs afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    board, past, folders = Board(console, count), figures.known(), figures.staged(place, seed)
    result = train(place / "federation", folders, board, seed)
    report, files = result.report(folder / "report.html"), {"federated": result.save(folder / "model.safetensors")}
    scores = {"federated": figures.measured(files["federated"], folders)}
    console.print("for comparison A, B, C and D now train alone, in simulation: about half a minute")
    for (name,), file in figures.trained(figures.alone(place / "hospitals", seed, "ABCD", count), place / "home"):
        files[name], scores[name] = file, figures.measured(file, folders)
        console.print(f"{name} alone: Dice {scores[name][name]:.2f} on its own patients")
    models = {name: figures.network(file) for name, file in files.items()}
    picture(folder / "picture.png", folders, models, figures.best(scores), past, board)
    figures.tell(console, past, scores, figures.built(place))
    console.print(f"{board.told()}\npicture: {folder / 'picture.png'}\nreport:  {report}", soft_wrap=True)


def on_stop(what):
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, what)


def interrupted(*_):
    on_stop(signal.SIG_IGN)  # one is enough: the rest is ended in peace
    raise KeyboardInterrupt


if __name__ == "__main__":
    parser, began, console = argparse.ArgumentParser(description=__doc__), time.monotonic(), figures.screen()
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--seed", type=int, default=figures.SEEDS[0])
    parser.add_argument("--rounds", type=int, default=figures.ROUNDS)
    chosen = parser.parse_args()
    on_stop(interrupted)
    try:
        with tempfile.TemporaryDirectory(prefix="foedus-demo-", ignore_cleanup_errors=True) as place:
            demo(chosen.folder.resolve(), chosen.seed, chosen.rounds, console, Path(place))
    except KeyboardInterrupt:
        print("demo: stopped; none of its processes is left", file=sys.stderr)
        sys.exit(130)
    except (fd.FoedusError, OSError) as error:
        sys.exit(f"demo: {error}")
    console.print(f"{time.monotonic() - began:.0f} seconds")
