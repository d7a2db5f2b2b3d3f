"""Live progress without a terminal: what is said of a run, how often, and that nothing is where nobody asked for it."""

from __future__ import annotations

import html as escapes
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import foedus as fd
import tiny
from foedus import launch, report, runs
from foedus.report.live import Above, Lines, Live, Terminal
from foedus.report.standing import Standing, cells, html, line, part

TOTAL = {"per_site": {}, "worst": {}}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Paper(io.StringIO):
    """A stream that keeps its writes apart."""

    encoding = "utf-8"  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []

    def write(self, text: str) -> int:
        self.writes.append(text)
        return len(text)


def screen(writes: list[str]) -> list[str]:
    """The lines of a wide terminal after these writes: \\r, \\n and ESC[K are all that it knows."""
    lines, at = [""], 0
    for text in "".join(writes).replace("\x1b[K", "\x00"):
        if text == "\r":
            at = 0
        elif text == "\n":
            lines, at = [*lines, ""], 0
        elif text == "\x00":
            lines[-1] = lines[-1][:at]
        else:
            lines[-1] = lines[-1][:at] + text + lines[-1][at + 1 :]
            at += 1
    return lines


def opened(rounds: int | None = 4, backend: str = "local") -> Standing:
    found = Standing()
    found.hear("open", {"backend": backend, "description": {"rounds": rounds} if rounds else {}})
    return found


def task(of: Any, round: int, asked: Any = 10, number: int = 0, work: str = "train", **at: float) -> None:
    of.hear("task", {"round": round, "task": number, "work": work, "asked": asked}, **at)


def step(of: Any, round: int, seconds: float = 20.0, examples: float = 0.0, **metrics: float | None) -> None:
    of.hear("step", {"round": round, "seconds": seconds, "examples": examples, "metrics": metrics, "digest": "d"})


def said(of: Standing, at: float | None = None) -> dict[str, str]:
    return dict(cells(of, at))


# What is said.


def test_a_round_that_is_half_done_after_ten_seconds_leaves_seventy_of_four_rounds() -> None:
    of = opened(4)
    of.hear("round", {"round": 0}, 100.0)
    task(of, 0)
    for name in "abcde":
        of.done.add(name)
    assert said(of, 110.0) == {"round": "1 of 4", "left": "1 min 10 s", "train": "5/10 sites", "on": "local"}
    assert part(of) == 0.125


def test_the_median_of_the_rounds_says_what_is_left_and_their_examples_how_fast_it_goes() -> None:
    of = opened(10)
    for round, seconds in enumerate((60.0, 2.0, 2.0)):  # the first has what is done once
        step(of, round, seconds, examples=320.0)
    of.hear("round", {"round": 3}, 0.0)
    assert said(of, 1.0) | {"left": "13 s", "examples/s": "15"} == said(of, 1.0)  # 7 x 2 - 1; 960 / 64
    assert said(of, 50.0)["left"] == "12 s"  # a round that takes longer than usual takes nothing of the others


def test_nobody_can_tell_what_is_left_where_a_rule_ends_the_run() -> None:
    of = opened(None)
    step(of, 0)
    assert "left" not in said(of, 1.0) and part(of) is None and "<progress" not in html(of, 1.0)
    of.hear("end", {"rounds": 1, "reason": "target"})
    assert part(of) == 1.0 and said(of)["round"] == "1"


def test_a_site_whose_work_was_done_again_counts_once() -> None:
    of = opened()
    task(of, 0, 3)
    for name in ("a", "b", "a"):
        of.done.add(name)
    assert said(of, 0.0)["train"] == "2/3 sites"


def test_the_bar_does_not_go_back_while_sites_evaluate() -> None:
    of = opened(1)
    task(of, 0, 2)
    of.done.add("a")
    of.hear("close", {"round": 0, "task": 0})
    assert part(of) == 0.5
    task(of, 0, 2, number=1, work="second")
    assert said(of, 0.0)["second"] == "0/2 sites" and part(of) == 0.5
    of.hear("close", {"round": 0, "task": 1})
    task(of, 0, 2, number=2, work="evaluate")
    assert said(of, 0.0)["evaluate"] == "0/2 sites" and part(of) == 1.0


def test_rows_of_a_federation_tell_who_has_settled_in_open_tasks() -> None:
    of = opened(backend="network")
    task(of, 3, ["a", "b"])
    task(of, 3, ["a", "b"], number=1)
    of.hear("asked", {"round": 3, "task": 1, "sites": ["c"]})
    for kind, site, round, number in (
        ("accepted", "a", 3, 0),
        ("declined", "a", 3, 1),
        ("lost", "b", 3, 1),
        ("accepted", "b", 2, 0),  # of a Task that is closed: late
    ):
        of.hear(kind, {"round": round, "task": number, "site": site})
    assert said(of, 0.0)["train"] == "3/5 sites"


def test_loss_and_a_metric_come_before_all_others_and_the_newest_value_stays() -> None:
    of = opened()
    step(of, 0, train_loss=0.5, test_accuracy=0.25, accuracy=0.123456, loss=2.0, auc=0.75)
    step(of, 1, train_loss=None, accuracy=0.5)
    names = ["round", "loss", "accuracy", "on", "auc", "train_loss", "test_accuracy"]
    assert [what for what, _ in cells(of)] == names
    assert said(of)["loss"] == "2.000" and said(of)["accuracy"] == "0.5000" and said(of)["train_loss"] == "0.5000"


def test_what_does_not_fit_is_left_out_whole() -> None:
    of = opened()
    step(of, 0, loss=2.0)
    assert line(of) == "round 1 of 4  loss 2.000  on local"
    assert line(of, width=34) == line(of) and line(of, width=33) == "round 1 of 4  loss 2.000"


def test_a_name_that_a_site_chose_commands_no_terminal_and_no_page() -> None:
    of = opened()
    step(of, 0, **{"train_\x1b[2J<b>": 1.0})
    assert "\x1b" not in line(of) and "\x1b" not in html(of)
    assert "<b>1.000</b>" in html(of) and escapes.escape("<b>") in html(of)


def test_what_auto_chose_is_said() -> None:
    of = opened()
    of.hear("event", {"what": "backend", "why": "processes, for a site's work takes 2 s: the same bits"})
    of.hear("event", {"what": "backend", "why": "one process again: several took as long"})
    assert said(of)["on"] == "processes"


# How often, and where.


def live(screen: Any, rounds: int | None = 20) -> tuple[Live, Clock]:
    clock = Clock()
    return Live(screen, opened(rounds), clock), clock


class Rows:
    """Rounds as a Live hears of them."""

    def __init__(self, screen: Any, rounds: int | None) -> None:
        self.live, self.clock = live(screen, rounds)

    def hear(self, kind: str, body: Mapping[str, Any]) -> None:
        self.live.hear(kind, body)

    def play(self, rounds: int, seconds: float, sites: int = 1) -> None:
        for round in range(self.live.of.round, self.live.of.round + rounds):
            self.hear("round", {"round": round})
            task(self, round, sites)
            for i in range(sites):
                self.clock.now += seconds / sites
                self.live.site(str(i))
            step(self, round, seconds)


def lines(rounds: int | None, played: int, seconds: float, sites: int = 1) -> list[str]:
    """The lines of a run, up to the number of rounds."""
    paper = Paper()
    rows = Rows(Lines(paper.write), rounds)
    rows.play(played, seconds, sites)
    rows.hear("end", {"rounds": played, "reason": "done"})
    rows.live.end()
    assert all(text.endswith("\n") for text in paper.writes)
    return [text.partition("  ")[0].strip() for text in paper.writes]


def test_lines_tell_of_each_tenth_of_the_rounds() -> None:
    assert lines(40, 40, 0.001) == [f"round {i} of 40" for i in range(4, 41, 4)]
    assert lines(3, 3, 0.001) == [f"round {i} of 3" for i in (1, 2, 3)]


def test_lines_get_rare_where_nobody_knows_how_many_rounds_there_will_be() -> None:
    assert lines(None, 1234, 0.001) == [f"round {i:,}" for i in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 1234)]


def test_a_slow_round_has_a_line_a_minute() -> None:
    assert lines(100, 1, 600, sites=600) == ["round 1 of 100"] * 10


def test_a_rule_that_ends_the_run_leaves_a_line_of_its_last_round() -> None:
    assert lines(100, 13, 0.001) == ["round 10 of 100", "round 13 of 100"]


def test_a_terminal_is_drawn_five_times_a_second_however_fast_sites_and_rounds_are() -> None:
    paper = Paper()
    rows = Rows(Terminal(paper, lambda: 80), 10_000)
    rows.play(10_000, 0.001, sites=3)  # ten seconds
    assert 40 <= len(paper.writes) <= 50
    assert screen(paper.writes)[-1].startswith("━" * 8 + "╌ round 9,")


def test_a_bar_is_drawn_over_itself_in_one_write_and_nothing_is_cleared_before() -> None:
    paper = Paper()
    rows = Rows(Terminal(paper, lambda: 80), 4)
    rows.play(2, 1.0, sites=4)
    assert len(paper.writes) > 2
    for text in paper.writes:
        assert text[0] == "\r" and text.endswith("\x1b[K") and text.count("\r") == text.count("\x1b") == 1
        assert len(text) - 4 < 80
    rows.live.end()
    assert screen(paper.writes) == ["━━━━╌╌╌╌╌ round 2 of 4  left 2 s  on local", ""]


def test_what_is_printed_meanwhile_goes_above_the_bar() -> None:
    paper = Paper()
    terminal = Terminal(paper, lambda: 200)
    rows, above = Rows(terminal, 4), Above(paper, terminal)
    rows.play(1, 1.0)
    print("first", file=above)
    rows.play(1, 1.0)
    print("a part", end=", ", file=above)
    rows.play(1, 1.0)  # a bar would be in its way
    print("and the rest", file=above)
    rows.play(1, 1.0)
    rows.live.end()
    assert screen(paper.writes) == ["first", "a part, and the rest", "━" * 24 + " round 4 of 4  on local", ""]


def test_a_stream_without_boxes_has_a_bar_of_ascii_and_wide_letters_take_two_columns() -> None:
    paper = Paper()
    paper.encoding = "ascii"  # type: ignore[misc]
    Terminal(paper, lambda: 80).draw(opened(4), 0.0)
    assert screen(paper.writes)[-1] == "--------- round 0 of 4  on local"
    wide, of = Paper(), opened(4)
    step(of, 0, **{"損失" * 14: 1.0})
    Terminal(wide, lambda: 80).draw(of, 0.0)
    text = screen(wide.writes)[-1]
    assert "損" in text and len(text) + text.count("損") + text.count("失") <= 79


def test_of_a_run_of_a_moment_a_terminal_shows_nothing() -> None:
    paper = Paper()
    rows = Rows(Terminal(paper, lambda: 80), 4)
    rows.play(4, 0.1)
    rows.live.end()
    assert paper.writes == []


# Real runs.


def test_a_call_is_silent_where_there_is_no_terminal_unless_it_is_asked(capfd: Any, home: Path) -> None:
    made = tiny.job(rounds=2, learner=tiny.learner(metrics=["rmse"]))
    quiet = made.run(tiny.SITES, backend="local")
    never = made.run(tiny.SITES, backend="local", progress=False)
    assert capfd.readouterr() == ("", "")
    loud = made.run(tiny.SITES, backend="local", progress=True)
    out, err = capfd.readouterr()
    # north has 2 examples, south 1, west 5: each is trained on once a round.
    assert out == "" and [text[:14] for text in err.splitlines()] == ["round 1 of 2  ", "round 2 of 2  "]
    assert "  loss " in err and "  rmse " in err and "  examples/s " in err and "  on local" in err
    assert quiet.digest == never.digest == loud.digest
    assert [row["examples"] for row in runs.journal(loud.folder).all("step")] == [8.0, 8.0]


@pytest.mark.parametrize("backend", ["auto", "local", "vectorized"])
def test_each_site_is_heard_of_when_it_is_done(backend: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = watched(monkeypatch, backend)
    assert heard == {("train", 0): set("abc"), ("evaluate", 0): set("abc")}


def watched(monkeypatch: pytest.MonkeyPatch, backend: str, **how: Any) -> dict[tuple[str, int], set[Any]]:
    """(work, round) -> the sites that were heard of while it was at work."""
    found: dict[tuple[str, int], set[Any]] = {}

    def site(self: Live, name: str) -> None:
        self.of.done.add(name)
        found.setdefault((self.of.work, self.of.round), set()).add(name)

    monkeypatch.setattr(Live, "site", site)
    sites = dict(zip("abc", tiny.SITES.values(), strict=True))
    launch.run(tiny.job(rounds=1), sites, backend=backend, show=True, **how)
    return found


def test_a_run_within_a_run_is_not_heard_of(home: Path, capfd: Any) -> None:
    def load(site: fd.Site) -> fd.Split:
        tiny.job(rounds=1).run({f"{site.name}{i}": tiny.NORTH for i in range(50)}, backend="local", progress=False)
        return tiny.NORTH

    made = fd.Job(fd.fedavg(), tiny.learner(), load, rounds=1)
    seen: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Live, "site", lambda self, name: seen.append(name))
        made.run(2, backend="local", progress=True)
    assert sorted(set(seen)) == ["site-0", "site-1"]


def test_a_run_that_goes_on_says_so_from_where_it_stands(home: Path, capfd: Any) -> None:
    def cut(row: Mapping[str, Any]) -> None:
        if row["round"] == 4:
            raise KeyboardInterrupt

    made, folder = tiny.job(rounds=6), home / "runs" / "cut"
    with pytest.raises(KeyboardInterrupt):
        launch.run(made, tiny.SITES, backend="local", folder=folder, told=cut)
    launch.run(made, tiny.SITES, backend="local", folder=folder, show=True)
    assert [text[:12] for text in capfd.readouterr().err.splitlines()] == ["round 6 of 6"]


def test_a_rule_that_ends_a_run_leaves_nothing_to_wait_for(home: Path, capfd: Any) -> None:
    tiny.job(rounds=100, stop=fd.target("loss", 1e9)).run(tiny.SITES, backend="local", progress=True)
    (text,) = capfd.readouterr().err.splitlines()
    assert text.startswith("round 1 of 100  loss ")


def test_a_stream_that_is_gone_ends_no_run() -> None:
    def broken(text: str) -> None:
        raise BrokenPipeError

    rows = Rows(Lines(broken), 2)
    rows.play(2, 1.0)
    rows.live.end()
    assert rows.live.of.round == 2


def test_the_report_says_of_a_run_what_the_bar_said_of_it(home: Path) -> None:
    result = tiny.job(rounds=2).run(tiny.SITES, backend="local")
    of = Standing()
    for row in runs.rows(result.folder):
        of.hear(row.kind, row.body, row.at)
    page = report.page(runs.rows(result.folder), "r")
    assert html(of) in page and '<progress value="1.0000" max="1"' in html(of)
    assert said(of)["round"] == "2 of 2" and said(of)["on"] == "local" and "examples/s" in said(of)
