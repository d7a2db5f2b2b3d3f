"""The brain-tumour example: its slices, its model and loss by hand, its federation and its demo as real processes."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import foedus as fd
from foedus.loopback import federation

HERE = Path(__file__).resolve().parents[1] / "examples" / "brain_tumour"
MODULES = ("data", "job", "board", "figures", "demo")
TINY = {"train": 2, "valid": 1, "test": 2}


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The example's files as modules, for other examples have files of the same names."""
    monkeypatch.syspath_prepend(str(HERE))
    before = {name: sys.modules.pop(name, None) for name in MODULES}
    yield SimpleNamespace(**{name: __import__(name) for name in MODULES})
    for name in MODULES:
        sys.modules.pop(name)
    sys.modules.update({name: module for name, module in before.items() if module})


def lines(*names: str) -> int:
    return sum(len((HERE / name).read_text().splitlines()) for name in names)


def test_the_example_is_as_short_as_it_was_promised_to_be() -> None:
    assert lines("job.py", "data.py") <= 200
    assert lines("demo.py") <= 150


def test_the_first_words_of_the_example_are_that_its_lesions_are_synthetic() -> None:
    for name in ("README.md", "data.py"):
        assert "synthetic lesions in real anatomy" in (HERE / name).read_text().splitlines()[0].lower()


def test_a_patient_is_a_function_of_its_names(example: Any) -> None:
    one, same = (example.data.patient("A", fd.key(1, "patient", "A", "train", 0)) for _ in range(2))
    other = example.data.patient("A", fd.key(1, "patient", "A", "train", 1))
    assert all(np.array_equal(x, y) for x, y in zip(one, same, strict=True))
    assert not np.array_equal(one[0], other[0])


@pytest.mark.parametrize("hospital", "ABCDE")
def test_a_slice_has_two_channels_and_labels_that_lie_in_the_brain(example: Any, hospital: str) -> None:
    for n in range(6):
        image, truth = example.data.patient(hospital, fd.key(2, hospital, n))
        assert image.shape == (2, 64, 64) and image.dtype == np.float32 and truth.dtype == np.uint8
        assert set(np.unique(truth)) <= {0, 1, 2, 3}
        assert not truth[:6].any() and not truth[-6:].any()
        assert image[1][truth == 2].min(initial=9) > image[1, 0, 0]  # the corner is air


@pytest.mark.parametrize("hospital", "ABCDE")
def test_a_scanner_leaves_mean_0_and_deviation_1_in_the_head(example: Any, hospital: str) -> None:
    rng = np.random.default_rng(0)
    head, image = rng.random((64, 64)) < 0.4, rng.random((2, 64, 64))
    found = example.data.scanned(image, head, example.data.HOSPITALS[hospital], rng)
    assert found[:, head].mean(1) == pytest.approx([0, 0], abs=1e-5)
    assert found[:, head].std(1) == pytest.approx([1, 1], abs=1e-5)


def test_about_as_many_patients_have_a_lesion_as_the_hospital_says(example: Any) -> None:
    ill = sum(example.data.patient("C", fd.key(3, n))[1].any() for n in range(200))
    assert abs(ill - 150) < 4 * math.sqrt(200 * 0.75 * 0.25)


def test_the_rim_takes_up_contrast_and_the_core_does_not(example: Any) -> None:
    slices = [example.data.patient("C", fd.key(4, n)) for n in range(20)]
    shown = [(image[0], truth) for image, truth in slices if (truth == 1).sum() > 5 and (truth == 2).sum() > 5]
    assert len(shown) >= 8
    assert all(t1c[truth == 2].mean() > t1c[truth == 1].mean() + 1 for t1c, truth in shown)


def test_what_is_written_is_read_and_a_folder_of_folders_pools(example: Any, tmp_path: Path) -> None:
    folders = example.data.write(tmp_path, 5, "AB", TINY)
    images, truths = example.data.read(folders["A"], "train")
    assert images.shape == (2, 2, 64, 64) and truths.shape == (2, 64, 64) and truths.dtype == np.int64
    assert np.array_equal(images[1], example.data.patient("A", fd.key(5, "patient", "A", "train", 1))[0])
    assert len(example.data.read(tmp_path, "test")[0]) == 4


def test_a_folder_without_slices_is_an_error_that_says_what_to_do(example: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no train-\*.npz: write them with data.write"):
        example.job.load(fd.Site("A", tmp_path, fd.key(0)))


def test_the_model_has_the_parameters_of_the_recipe(example: Any) -> None:
    assert sum(p.numel() for p in example.job.UNet().parameters()) == 121_132


def test_the_loss_of_a_model_that_knows_nothing_is_ln_4_and_half_a_dice(example: Any) -> None:
    import torch

    truth = torch.tensor([[[0, 1], [2, 3]]])  # each class: (2/4 + 1) / (4/4 + 1 + 1) = 1/2
    assert example.job.loss(torch.zeros(1, 4, 2, 2), truth).item() == pytest.approx(math.log(4) + 0.5)
    sure = 50 * torch.nn.functional.one_hot(truth, 4).movedim(-1, 1).float()
    assert example.job.loss(sure, truth).item() == pytest.approx(0, abs=1e-6)


def test_dice_is_of_the_whole_tumour_and_counts_false_alarms(example: Any) -> None:
    truth, found = np.array([[[0, 1], [2, 3]], [[0, 0], [0, 0]]]), np.array([[[0, 2], [1, 0]], [[1, 0], [0, 0]]])
    outputs = np.eye(4)[found].transpose(0, 3, 1, 2)
    assert example.job.overlap(outputs, truth).tolist() == [4, 6]  # 2 of 3 found, 3 said
    assert example.figures.dice(found, truth) == pytest.approx(2 / 3)
    assert example.figures.dice(found[1] * 0, truth[1]) == 1


def test_an_interval_is_students_t_of_five(example: Any) -> None:
    mean, half = example.figures.interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (mean, half) == (3, pytest.approx(2.776445 * math.sqrt(2.5) / math.sqrt(5), rel=1e-6))


def made_up() -> dict[str, Any]:
    """Figures in which A gains 0.1 in each seed, B loses 0.2, C wavers, D and E gain; A's model is best at E."""
    flat, waver = [0.5] * 5, [0.6, 0.4, 0.6, 0.4, 0.5]
    apart = {name: dict.fromkeys("ABCDE", flat) for name in "ABCD"}
    apart["A"] = {**apart["A"], "A": [0.1, 0.2, 0.3, 0.4, 0.5], "E": [0.6] * 5}
    federated = {
        "A": [0.2, 0.3, 0.4, 0.5, 0.6],
        "B": [0.3] * 5,
        "C": waver,
        "D": [0.8] * 5,
        "E": [0.9, 0.9, 0.9, 0.9, 0.5],
    }
    dice = {**apart, "federated": federated, "pooled": dict.fromkeys("ABCDE", flat)}
    return {"seeds": [1, 2, 3, 4, 5], "date": "2026-01-31", "build": {"cpu": "AVX2"}, "dice": dice}


def test_a_gain_is_taken_seed_by_seed(example: Any) -> None:
    gains = {name: example.figures.gain(made_up(), name) for name in "ABCE"}
    assert gains["A"] == (pytest.approx(0.1), pytest.approx(0, abs=1e-9), 5)
    assert gains["B"] == (pytest.approx(-0.2), pytest.approx(0, abs=1e-9), 0)
    assert gains["C"] == (pytest.approx(0), pytest.approx(2.776445 * 0.1 / math.sqrt(5)), 2)  # deviation: √(0.04 / 4)
    assert gains["E"][0] == pytest.approx((4 * 0.3 - 0.1) / 5)  # against A's model, the best at E


def test_the_verdict_names_who_gained_who_lost_and_what_nobody_can_say(example: Any) -> None:
    assert example.figures.verdict(made_up()).splitlines() == [
        "gained: A 0.30 → 0.40 (up in 5 of 5), D 0.50 → 0.80 (up in 5 of 5)",
        "lost: B 0.50 → 0.30 (up in 0 of 5)",
        "not settled by five seeds: C 0.50 → 0.50 (up in 2 of 5), E 0.60 → 0.82 (up in 4 of 5)",
    ]


@pytest.mark.parametrize(("cpu", "said"), [("AVX2", False), ("AVX512F", True)])
def test_the_table_fits_a_terminal_and_says_where_the_build_is_another(example: Any, cpu: str, said: bool) -> None:
    text = told(example, made_up(), made_up_run(), {"cpu": cpu})
    row = next(line for line in text.splitlines() if line.strip().startswith("A stays"))
    assert " ".join(row.split()) == "A stays 0.30 ± 0.20 0.40 ± 0.20 0.50 ± 0.00 +0.10 ± 0.00 0.71 0.82"
    assert max(len(line.rstrip()) for line in text.splitlines() if "±" in line) <= 79
    assert ("another build (cpu: AVX2 against AVX512F)" in text) == said


def test_the_table_of_one_run_stands_where_there_are_no_figures_yet(example: Any) -> None:
    text = told(example, None, made_up_run(), {})
    row = next(line for line in text.splitlines() if line.strip().startswith("A stays"))
    assert row.split() == ["A", "stays", "0.71", "0.82"] and "`make demo-figures` computes five" in text


def made_up_run() -> dict[str, Any]:
    return {**{name: dict.fromkeys("ABCDE", 0.71) for name in "ABCD"}, "federated": dict.fromkeys("ABCDE", 0.82)}


def told(example: Any, *arguments: Any) -> str:
    """What `figures.tell` prints on 80 columns."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=80, soft_wrap=True)
    example.figures.tell(console, *arguments)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_schedule_falls_from_1_to_0_and_goes_on_where_a_model_is_trained_on(example: Any) -> None:
    whole, rest = example.job.job(rounds=4), example.job.job(rounds=4, first=2)
    factors = [whole.learner.schedule(r) for r in range(4)]
    assert factors == pytest.approx([1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2])
    assert (rest.rounds, [rest.learner.schedule(r) for r in range(2)]) == (2, factors[2:])


def test_the_board_follows_the_journal(example: Any) -> None:
    from rich.console import Console

    console = Console(record=True, width=100, file=open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    board = example.board.Board(console, 4)
    board.row("roster", {"sites": ["a", "b"]})
    board.row("accepted", {"site": "a", "task": 0, "size": 1_500_000})
    board.row("accepted", {"site": "a", "task": 1, "size": 0})
    board.row("step", {"round": 0, "per_site": {"a": {"test_dice": 0.61}, "b": {"train_loss": 1.0}}})
    board.row("event", {"what": "left", "site": "b"})
    board.row("roster", {"sites": ["a", "d"]})
    console.print(board)
    text = console.export_text()
    rows = {line.split()[1]: line for line in text.splitlines() if line.startswith("│")}
    assert "trains" in rows["A"] and "0.61" in rows["A"] and "1.5" in rows["A"]
    assert "has left" in rows["B"] and "trains" in rows["D"]
    assert "1/4" in text and "last event: B left (after round 1)" in text
    assert board.marks == [(1, "B leaves")]
    assert board.told() == "images sent: 0, parameters sent: 2 MB in 1 updates"
    console.file.close()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_shows_the_live_table_and_anything_else_plain_lines(example: Any, terminal: bool) -> None:
    from rich.console import Console

    out = io.StringIO()
    with example.board.Board(Console(file=out, force_terminal=terminal, width=100), 3) as board:
        board.row("roster", {"sites": ["a"]})
        board.row("event", {"what": "joined", "site": "d"})
        board.row("step", {"round": 2, "per_site": {"a": {"test_dice": 0.61}}})
    lines = ["D joined", "round 3 of 3: Dice A 0.61"]
    assert (out.getvalue().splitlines() == lines) != terminal
    assert all(
        (said in out.getvalue()) == terminal for said in ("updates sent", "3/3", "last event: D joined", "\x1b[")
    )


def test_the_committed_figures_say_where_they_come_from(example: Any) -> None:
    figures = json.loads(example.figures.FILE.read_text())
    assert figures["seeds"] == list(example.figures.SEEDS) and figures["what"] == example.figures.SAYS
    assert figures["date"] and figures["build"]["torch"] and len(figures["build"]["hash"]) == 16
    assert sorted(figures["dice"]) == ["A", "B", "C", "D", "federated", "pooled"]
    assert all(sorted(found) == ["A", "B", "C", "D", "E"] for found in figures["dice"].values())
    assert all(len(values) == 5 for found in figures["dice"].values() for values in found.values())


def test_the_readme_shows_the_committed_figures(example: Any) -> None:
    figures, text = json.loads(example.figures.FILE.read_text()), (HERE / "README.md").read_text()
    for name, role in example.figures.ROLES.items():
        assert f"| {name} {role} | {' | '.join(example.figures.cells(figures, name))} |" in text


def test_the_readme_claims_what_the_committed_figures_say(example: Any) -> None:
    figures, text = json.loads(example.figures.FILE.read_text()), (HERE / "README.md").read_text()
    dice = {model: {name: np.array(v) for name, v in found.items()} for model, found in figures["dice"].items()}
    elsewhere = [(model, name) for model in "ABCD" for name in "ABCDE" if name != model]

    def said(values: Any) -> str:
        mean, half = example.figures.interval(np.mean(values, 0).tolist())
        return f"{mean:.2f} ± {half:.2f}"

    own, shared = [dice[name][name] for name in "ABCD"], [dice["federated"][name] for name in "ABCD"]
    gained, pooled = np.mean(shared, 0) - np.mean(own, 0), [dice["pooled"][n] - dice["federated"][n] for n in "ABCDE"]
    words = " ".join(text.split())
    assert f"other hospitals {said([dice[m][n] for m, n in elsewhere])} on average" in words
    assert f"same patients {said([dice['federated'][n] for _, n in elsewhere])}" in words
    assert f"from {said(own)} to {said(shared)}, by {said([gained])}, in {(gained > 0).sum()} of 5 seeds" in words
    assert f"by {said(pooled)} over all hospitals, most of it at E ({said([pooled[4]])})" in words
    late = dice["federated"]["D"] - dice["D"]["D"]
    assert f"in {(late > 0).sum()} of 5 but by {late.min():.2f} to {late.max():.2f}" in words


@pytest.mark.processes
def test_two_hospitals_give_the_same_model_for_real_and_simulated(example: Any, tmp_path: Path) -> None:
    folders = {name.lower(): path for name, path in example.data.write(tmp_path / "data", 6, "AB", TINY).items()}
    with federation(tmp_path / "federation") as made:
        made.start_server()
        for name, folder in folders.items():
            made.join(name, {"data": folder})
        made.await_sites(folders)
        run = made.remote().submit(HERE / "job.py", {"rounds": "2"}, seed=6, privacy="none")
        result = run.wait()
        sent = [row[3] for row in run.rows()[0] if row[2] == "accepted"]
    updates = [row["size"] for row in sent if row["task"] == 0]
    assert len(updates) == 4 and all(0 < size - 4 * 121_132 < 16_384 for size in updates)  # parameters and their names
    assert all(row["size"] < 1024 for row in sent if row["task"] == 1)  # evaluations: no array
    simulated = example.job.job(rounds=2).run(sites=folders, seed=6)
    assert simulated.digest == result.digest


def compare(example: Any, folder: Path, seed: int, **chosen: str) -> None:
    """One seed against figures.json: the same numbers on the same build, else about the same."""
    scores, figures = example.figures.one_seed(seed, folder, **chosen), json.loads(example.figures.FILE.read_text())
    at, same = figures["seeds"].index(seed), example.figures.built(folder) == figures["build"]
    off = {(model, n): value - figures["dice"][model][n][at] for model in scores for n, value in scores[model].items()}
    wrong = {place: change for place, change in off.items() if abs(change) > (0 if same else 0.25)}
    assert wrong == {} and abs(np.mean(list(off.values()))) < 0.1  # another build: training amplifies the last bit


@pytest.mark.long
@pytest.mark.processes
def test_a_hospital_alone_gives_the_committed_figures(example: Any, tmp_path: Path) -> None:
    compare(example, tmp_path, 10, models="B")


@pytest.mark.processes
@pytest.mark.long
def test_a_whole_seed_gives_the_committed_figures(example: Any, tmp_path: Path) -> None:
    compare(example, tmp_path, 14)


def demo(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """The demo as a process that keeps all its files in `folder`."""
    command = [sys.executable, str(HERE / "demo.py"), "--folder", str(folder / "out"), *arguments]
    env = {**os.environ, "PYTHONPATH": str(Path(fd.__file__).parents[1]), "TMPDIR": str(folder)}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def left_over(folder: Path) -> list[str]:
    """Command lines of processes that were started or work in this folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            said = (
                (process / "cmdline").read_text()
                + (process / "environ").read_text()
                + str((process / "cwd").readlink())
            )
        except OSError:
            continue
        if str(folder) in said:
            found.append((process / "cmdline").read_text().replace("\0", " "))
    return found


@pytest.mark.long
@pytest.mark.processes
def test_ctrl_c_ends_the_demo_and_leaves_no_process(tmp_path: Path) -> None:
    process = demo(tmp_path)
    assert process.stdout is not None
    seen = [next(process.stdout)]
    while "round 3 of 30" not in seen[-1]:
        seen.append(next(process.stdout))  # StopIteration: it ended early
    assert len(left_over(tmp_path)) >= 8  # the demo, the server, its run worker, three agents with a worker each
    process.send_signal(signal.SIGINT)
    _, wrong = process.communicate(timeout=60)
    assert process.returncode == 130 and wrong == "demo: stopped; none of its processes is left\n"
    assert left_over(tmp_path) == [] and list(tmp_path.glob("foedus-demo-*")) == []


@pytest.mark.processes
def test_a_demo_that_cannot_write_says_so_before_it_trains(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    began = time.monotonic()
    _, wrong = (process := demo(tmp_path)).communicate(timeout=60)
    assert process.returncode == 1 and wrong.startswith("demo: ") and str(tmp_path / "out") in wrong
    assert time.monotonic() - began < 30


@pytest.mark.processes
@pytest.mark.long
def test_the_demo_goes_through_all_its_events_and_leaves_its_picture_and_report(tmp_path: Path) -> None:
    said, wrong = (process := demo(tmp_path, "--rounds", "20")).communicate(timeout=600)
    assert (process.returncode, wrong) == (0, "")
    for event in ("C left", "D joined", "server restarted", "images sent: 0", "round 20 of 20"):
        assert event in said
    assert (tmp_path / "out" / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert "<html" in (tmp_path / "out" / "report.html").read_text().lower()
    assert left_over(tmp_path) == []
