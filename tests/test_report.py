"""The report of a run: what it says is what the journal says, and nothing that a site chose becomes markup."""

from __future__ import annotations

import html
import json
import re
import sqlite3
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import foedus as fd
import tiny
import toys
from foedus import cli, metrics, report, run, runs
from foedus.core import Outcome, Total
from foedus.errors import JournalError
from foedus.journal import Memory
from foedus.measured import certainty, worst
from foedus.params import Params
from foedus.report import figures, markup, story
from foedus.store import START, Row, chained, read_row

NASTY = "<script>alert(1)</script>"
VOID = ("meta",)


class Page(HTMLParser):
    """A page as tables (caption -> rows of cells), numbers, tags and text; raises at a tag that is not closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.numbers: dict[str, list[list[list[float]]]] = {}  # of a table: the machine's numbers of each cell
        self.caption, self.text = "", ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "caption":
            self.caption = ""
        if tag == "tr" and "tbody" in self.open:
            self.tables.setdefault(self.caption, []).append([])
            self.numbers.setdefault(self.caption, []).append([])
        if tag in ("th", "td") and "tbody" in self.open:
            self.tables[self.caption][-1].append("")
            self.numbers[self.caption][-1].append([])
        if tag == "data" and "tbody" in self.open:
            self.numbers[self.caption][-1][-1].append(float(dict(attrs)["value"] or "nan"))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if self.open and self.open[-1] == "caption":
            self.caption += data
        if "tbody" in self.open and ("td" in self.open or "th" in self.open):
            self.tables[self.caption][-1][-1] += data

    def table(self, beginning: str) -> list[list[str]]:
        return next(rows for caption, rows in self.tables.items() if caption.startswith(beginning))

    def values(self, beginning: str) -> list[list[list[float]]]:
        return next(rows for caption, rows in self.numbers.items() if caption.startswith(beginning))


def rows_of(journal: Memory, began: float = 1.7e9) -> list[Row]:
    """What a store would have kept, a second between rows; the first is of 2023-11-14 22:13:20 UTC."""
    head, rows = START, []
    for i, entry in enumerate(journal.rows()):
        rows += [read_row(*record) for record in chained(head, [entry], began + i)]
        head = head._replace(seq=rows[-1].seq, chain=rows[-1].chain)
    return rows


def opened(**more: Any) -> Memory:
    journal = Memory()
    about: dict[str, Any] = {"job": "j", "seed": 7, "description": {"name": "lesions", "rounds": 9}}
    about |= {"backend": "network", "exact": True, "source": {"file": None}, "sites": []}
    about |= {"build": {"foedus": "0.1", "cpu": "AVX2", "hash": "aaaa"}}
    journal.append([("open", about | more)])
    return journal


def add(journal: Memory, kind: str, **body: Any) -> None:
    journal.append([(kind, body)])


def play(journal: Memory, round: int, fates: dict[str, str]) -> None:
    """A round with one training Task, models of 4,000 bytes and updates of 1,000: site -> status of its outcome."""
    sites = sorted(fates)
    rosters = [b for k, b in journal.rows() if k == "roster"]
    if not rosters or rosters[-1]["sites"] != sites:
        add(journal, "roster", round=round, sites=sites)
    since = [b for k, b in journal.rows() if k == "roster"][-1]["round"]
    add(journal, "round", round=round, roster=since, cohort=None)
    asked = [s for s in sites if fates[s] != "idle"]
    payload = {"digest": "d", "size": 4000}
    add(journal, "task", round=round, task=0, work="train", asked=asked, payload=payload, digest="t")
    for site in asked:
        at = {"round": round, "task": 0, "site": site, "attempt": 0}
        if fates[site] in ("counted", "dropped"):
            add(journal, "accepted", **at, size=1000, build="aaaa" if site != "west" else "bbbb")
        else:
            add(journal, fates[site], **at, why=f"{site} says {NASTY}")
    counted = [[s, round, 0] for s in asked if fates[s] == "counted"]
    why = {s: f"{s} says {NASTY}" if fates[s] not in ("counted", "dropped") else "" for s in asked}
    add(journal, "close", round=round, task=0, counted=counted, outcomes=[[s, fates[s], why[s], 1.0] for s in asked])
    measure(journal, round, asked)


def measure(journal: Memory, round: int, sites: list[str]) -> None:
    """The step row of the round; the last site is the worst."""
    values = {s: {"dice": 0.5 + 0.04 * round - 0.02 * i, "test_dice": 0.4} for i, s in enumerate(sites)}
    add(
        journal,
        "step",
        round=round,
        digest="s",
        seconds=1.5,
        metrics={"dice": 0.5 + 0.04 * round, "test_dice": 0.4 + 0.03 * round, "train_loss": 1 / (1 + round)},
        per_site=values,
        worst={"dice": sites[-1], "test_dice": sites[-1]},
        intervals={"dice": [0.1, 0.9]},
        site_intervals={s: {"dice": [values[s]["dice"] - 0.1, values[s]["dice"] + 0.1]} for s in sites},
        checkpoint=None,
    )


def eventful() -> Memory:
    """Nine rounds: a site is refused, one declines, one is lost and leaves, one joins, the server is killed."""
    journal = opened()
    three = dict.fromkeys(("north", NASTY, "south"), "counted")
    add(journal, "event", what="joined", site="north", why="", round=0)
    for round in range(3):
        play(journal, round, three)
    play(journal, 3, three | {"south": "refused"})
    add(journal, "event", what="left", site="south", why=f"maintenance {NASTY}", round=4)
    play(journal, 4, three | {"south": "lost"})
    play(journal, 5, {"north": "counted", NASTY: "declined"})
    add(journal, "event", what="server restarted", site="", why="", round=6)
    add(journal, "event", what="joined", site="west", why="", round=6)
    for round in range(6, 9):
        play(journal, round, {"north": "dropped", NASTY: "idle", "west": "counted"})
    return journal


def ended(journal: Memory) -> Memory:
    add(journal, "end", reason="all rounds done", rounds=9, digest="f" * 64, seconds=20.0, best_round=8, history=[])
    return journal


def page_of(journal: Memory) -> Page:
    return Page(report.page(rows_of(journal), "20261124-x"))


# ---- the page as a whole -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [lambda: ended(eventful()), eventful, opened, Memory])
def test_a_report_is_one_well_formed_page_without_scripts_or_outside_references(made: Any) -> None:
    text = report.page(rows_of(made()), "20261124-x")
    page = Page(text)  # which raises where a tag is not closed
    assert not re.search(r"https?://|//\w|url\(|@import|@font-face", text.replace("</", "<"))
    assert not {tag for tag, _ in page.tags} & {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "use",
        "image",
        "a",
        "base",
    }
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on") or name in ("src", "href")]
    assert ("meta", "default-src 'none'; style-src 'unsafe-inline'") in [(t, a.get("content")) for t, a in page.tags]


def test_every_figure_says_what_it_shows_and_has_a_table_in_its_section() -> None:
    text = report.page(rows_of(ended(eventful())), "x")
    pictures = re.findall(r"<figure.*?</figure>", text)
    assert len(pictures) == 4  # dice and loss by round, dice by site, who was there
    ids = re.findall(r'id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    for picture in pictures:
        title, told = re.findall(r'aria-labelledby="(\S+) (\S+)"', picture)[0]
        assert 'role="img"' in picture
        assert re.search(f'<title id="{title}">.+?</title>', picture)
        assert re.search(f'<desc id="{told}">.+?</desc>', picture)
    for section in re.findall(r"<section.*?</section>", text):
        assert "<figure" not in section or "<table" in section
    assert "dice per round: valid 0.5000 in round 0, 0.8200 in round 8; test" in text


def test_colours_are_okabe_and_itos() -> None:
    palette = {"e69f00", "56b4e9", "009e73", "f0e442", "0072b2", "d55e00", "cc79a7"}
    style = re.findall(r"<style>.*?</style>", report.page([], "x"), re.S)[0]
    found = set(re.findall(r"#([0-9a-f]{6})\b", style))
    vivid = {c for c in found if max(bytes.fromhex(c)) - min(bytes.fromhex(c)) > 60}
    assert vivid <= palette
    assert len(vivid) >= 6
    assert "prefers-color-scheme: dark" in style
    assert "@media print" in style


def test_fifty_rounds_of_ten_sites_make_a_small_page_soon() -> None:
    journal = opened()
    for round in range(50):
        play(journal, round, {f"hospital-{i}": "declined" if (i + round) % 7 == 0 else "counted" for i in range(10)})
    rows = rows_of(journal)
    began = time.perf_counter()
    text = report.page(rows, "x")
    assert len(text.encode()) < 300_000
    assert time.perf_counter() - began < 2


def test_very_long_runs_are_shown_in_part_and_say_so() -> None:
    journal = opened()
    for round in range(1203):
        fates = {f"{i:03}": "idle" if (i + round) % 40 else "counted" for i in range(120)}
        play(journal, round, fates | {"zz": "lost"})
    rows = rows_of(journal)
    text = report.page(rows, "x")
    page = Page(text)
    assert len(text) < 1_500_000
    shown = [int(row[0]) for row in page.table("Each round")]
    assert shown == [*range(0, 1202, 3), 1202]
    assert "Each round (402 of 1203, evenly)" in page.tables
    fared = page.table("How each site fared")
    assert len(fared) == 100
    assert fared[-1][0] == "zz"


# ---- what it says is what the journal says -----------------------------------------------------------------------


def test_the_numbers_of_a_real_run_are_the_journals(tmp_path: Path, home: Path) -> None:
    result = fd.Job(*_toy(), rounds=4).run(toys.make_sites(tmp_path / "data", ["north", "south", "east"]))
    path = result.report()
    assert path == result.folder / "report.html"
    page = Page(path.read_text("utf-8"))
    steps = runs.journal(result.folder).all("step")
    heads = list(steps[0]["metrics"])
    assert {"round", "seconds", *heads} == set(result.history[0])
    for row, line in zip(page.values("Each round"), result.history, strict=True):
        assert row[1] == [line["seconds"]]
        assert [cell[0] for cell in row[3:]] == [line[name] for name in heads]
    order = ["loss", "test_loss", "train_loss", "rmse", "test_rmse"]
    sites = page.table("Newest values of each site")
    assert [row[0] for row in sites] == ["east", "north", "south"]
    for words, row in zip(sites, page.values("Newest values of each site"), strict=True):
        ends = steps[-1]["site_intervals"][words[0]]
        assert row[2:] == [[result.per_site[words[0]][n], *ends.get(n, [])] for n in order]
    assert result.digest in page.text
    assert "exact: the same bits" in page.text
    assert "no byte went over a network" in page.text
    assert f"foedus verify {result.run}" in page.text


def test_the_worst_site_is_named_with_its_interval() -> None:
    page = page_of(ended(eventful()))
    rows = page.table("Newest value of each metric")
    assert [row[:3] for row in rows] == [["dice", "valid", "8"], ["dice", "test", "8"], ["loss", "train", "8"]]
    assert rows[0][3:] == ["0.8200 [0.1000, 0.9000]", "0.8000 [0.7000, 0.9000]", "west"]
    assert rows[1][4:] == ["0.4000", "west"]
    assert rows[2][4:] == ["–", "–"]
    marked = [row[0] for row in page.table("Newest values of each site") if "▾ worst" in row[2]]
    assert marked == ["west"]


def test_the_roster_shows_how_each_site_fared_in_each_round() -> None:
    told = story.read(rows_of(eventful()))
    assert told.grid["north"] == {r: "counted" for r in range(6)} | dict.fromkeys(range(6, 9), "dropped")
    assert told.grid["south"] == {0: "counted", 1: "counted", 2: "counted", 3: "refused", 4: "lost"}
    assert told.grid[NASTY] == {r: "counted" for r in range(5)} | {5: "declined"} | dict.fromkeys(range(6, 9), "idle")
    assert told.grid["west"] == {6: "counted", 7: "counted", 8: "counted"}
    fared = {row[0]: row[1:] for row in page_of(eventful()).table("How each site fared")}
    #                there   not asked counted dropped declined lost refused
    assert fared["south"] == ["0–4", "0", "3", "0", "0", "1 (round 4)", "1 (round 3)"]
    assert fared["north"] == ["0–8", "0", "6", "3 (round 6–8)", "0", "0", "0"]


def test_causes_are_told_once_with_their_rounds() -> None:
    journal = opened()
    for round in range(6):
        play(journal, round, {"north": "counted", "south": "counted" if round == 3 else "declined"})
    found = page_of(journal).table("Why sites were not counted")
    assert found == [["south", "0–2, 4–5", "train", "declined", f"south says {NASTY}"]]


def test_a_first_attempt_that_failed_is_told_though_the_second_one_counted() -> None:
    journal = opened()
    play(journal, 0, {"north": "counted"})
    add(journal, "declined", round=0, task=0, site="north", attempt=0, why="out of memory")
    told = story.read(rows_of(journal))
    assert told.grid["north"] == {0: "counted"}
    assert [(r.site, r.why, r.rounds) for r in told.reasons] == [("north", "out of memory", [0])]


def test_events_stand_in_order_with_time_and_round() -> None:
    rows = page_of(ended(eventful())).table("What happened")
    assert rows[0] == ["2023-11-14 22:13:20 UTC", "0", "started", "–", ""]
    assert [row[1:4] for row in rows[1:]] == [
        ["0", "joined", "north"],
        ["4", "left", "south"],
        ["6", "server restarted", "–"],
        ["6", "joined", "west"],
        ["9", "finished", "–"],
    ]


def test_the_bytes_of_a_federation_are_added_up_from_what_was_accepted() -> None:
    rows = page_of(eventful()).values("Bytes of each site")
    names = [row[0] for row in page_of(eventful()).table("Bytes of each site")]
    # updates of 1,000 bytes: north 9 (3 of them dropped), south 3, the nasty one 5, west 3; models of 4,000 bytes
    assert {n: [c[0] for c in row[2:]] for n, row in zip(names, rows, strict=True)} == {
        NASTY: [5000, 24000],
        "north": [9000, 36000],
        "south": [3000, 20000],
        "west": [3000, 12000],
        "all sites": [20000, 92000],
    }


def test_a_site_on_another_build_is_named() -> None:
    assert "Bits are not comparable: the fold ran on build aaaa, west on build bbbb." in page_of(eventful()).text
    journal = opened()
    play(journal, 0, {"north": "counted"})
    assert "not comparable" not in page_of(journal).text


def test_a_digest_that_only_comes_close_says_so() -> None:
    journal = opened(exact=False)
    add(journal, "end", reason="done", rounds=0, digest="ab" * 32, seconds=1.0, best_round=None, history=[])
    assert f"≈ {'ab' * 32}" in page_of(journal).text


# ---- runs that are not over, or not simple -----------------------------------------------------------------------


def test_a_paused_run_says_why_and_who_has_not_settled() -> None:
    journal = eventful()
    add(journal, "round", round=9, roster=6, cohort=None)
    asked = [NASTY, "north", "west"]
    add(journal, "task", round=9, task=0, work="train", asked=asked, payload={"size": 1}, digest="t")
    add(journal, "accepted", round=9, task=0, site="north", attempt=0, size=10, build="aaaa")
    add(journal, "declined", round=9, task=0, site="west", attempt=0, why="disk full")
    add(journal, "event", what="paused", why="too few updates", site="", round=9)
    told = story.read(rows_of(journal))
    assert {site: row[9] for site, row in told.grid.items() if 9 in row} == {
        NASTY: "open",
        "north": "open",
        "west": "declined",
    }
    page = page_of(journal)
    assert "paused" in page.text
    assert "too few updates" in page.text
    assert "Digest: none yet" in page.text
    assert ["west", "9", "train", "declined", "disk full"] in page.table("Why sites were not counted")


def test_a_run_that_went_on_after_a_pause_is_not_called_paused() -> None:
    journal = opened()
    add(journal, "event", what="paused", why="too few sites", site="", round=0)
    assert story.read(rows_of(journal)).end is None
    assert re.search(r"<b>paused</b>too few sites", report.page(rows_of(journal), "x"))
    play(journal, 0, {"north": "counted"})
    assert re.search(r"<b>not finished</b>the journal has no end row yet", report.page(rows_of(journal), "x"))


def test_in_a_simulation_an_open_task_waits_for_its_whole_cohort() -> None:
    journal = opened(backend="local", sites=["a", "b", "c"])
    add(journal, "roster", round=0, sites=["a", "b", "c"])
    add(journal, "round", round=0, roster=0, cohort=["a", "c"])
    add(journal, "task", round=0, task=0, work="train", asked=2, digest="t")
    assert story.read(rows_of(journal)).grid == {"a": {0: "open"}, "b": {0: "idle"}, "c": {0: "open"}}


def test_an_update_that_counts_in_a_later_round_is_not_called_dropped() -> None:
    journal = opened()
    play(journal, 0, {"north": "counted", "south": "dropped", "west": "dropped"})
    play(journal, 1, {"north": "counted", "south": "counted", "west": "counted"})
    at = next(i for i, (k, b) in enumerate(journal.kept) if k == "close" and b["round"] == 1)
    journal.kept[at][1]["counted"][1] = ["south", 0, 0]  # what south had sent in round 0
    told = story.read(rows_of(journal))
    assert told.grid["south"][0] == "later"
    assert told.grid["west"][0] == "dropped"


def test_a_failed_evaluation_is_a_cause_but_the_round_was_counted() -> None:
    journal = opened()
    play(journal, 0, {"north": "counted", "south": "counted"})
    add(journal, "task", round=0, task=1, work="evaluate", asked=["north", "south"], digest="e")
    outcomes = [["north", "counted", "", 1.0], ["south", "declined", "no test data", 0.0]]
    add(journal, "close", round=0, task=1, counted=[["north", 0, 1]], outcomes=outcomes)
    told = story.read(rows_of(journal))
    assert told.grid["south"] == {0: "counted"}
    assert told.reasons == [story.Reason("south", "evaluate", "declined", "no test data", [0])]


def test_an_evaluation_after_the_last_round_belongs_to_that_round(home: Path) -> None:
    result = tiny.job(rounds=None, stop=fd.wall_time(1e-9), evaluate=5).run(tiny.SITES)
    page = Page(result.report().read_text("utf-8"))
    assert result.rounds == 1
    (row,) = page.values("Each round")
    assert [result.history[0]["loss"]] in row
    told = story.read(runs.rows(result.folder))
    assert [step["round"] for step in told.steps] == [0]
    assert all(list(row) == [0] for row in told.grid.values())
    assert story.pooled(told)["loss"].interval is not None


# ---- nothing that a site chose becomes markup --------------------------------------------------------------------


def test_names_and_reasons_are_escaped() -> None:
    journal = ended(eventful())
    journal.kept[0][1]["description"]["name"] = f"</title>{NASTY}"
    text = report.page(rows_of(journal), f"run{NASTY}")
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.tags}
    assert "<script" not in text
    assert NASTY in [row[0] for row in page.table("How each site fared")]
    assert f"maintenance {NASTY}" in [row[4] for row in page.table("What happened")]


def test_text_that_would_turn_the_line_around_or_break_the_encoding_is_replaced() -> None:
    journal = opened()
    name = "ab\u202ecd\ud800\x00"
    play(journal, 0, {name: "declined", "north": "counted"})
    text = report.page(rows_of(journal), "x")
    text.encode()
    assert "ab\ufffdcd\ufffd\ufffd" in text
    assert not set("\u202e\ud800\x00") & set(text)


@pytest.mark.properties
@settings(max_examples=60)
@given(st.text(min_size=1, max_size=60))
def test_any_site_name_is_read_back_as_text(name: str) -> None:
    journal = opened()
    play(journal, 0, {name: "counted", "other": "counted"})
    shown = "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in name)
    assert shown in [row[0] for row in page_of(journal).table("How each site fared")]


def test_an_element_escapes_text_and_attributes_but_not_markup() -> None:
    made = markup.el("p", '<"&', markup.el("b", "x"), aria_label='"<&', class_=None)
    assert made == '<p aria-label="&quot;&lt;&amp;">&lt;&quot;&amp;<b>x</b></p>'
    assert html.unescape(markup.text("a" * 500)) == "a" * 399 + "…"


# ---- figures -----------------------------------------------------------------------------------------------------


def test_a_curve_is_drawn_to_scale() -> None:
    drawn = figures.curve(figures.Curve("loss", {"valid": [(0, 1.0), (1, 0.5), (2, 0.0)]}, []), [1], 0)
    path = re.findall(r'<g class="line valid"><path d="M([^"]+)"', drawn)[0]
    points = [tuple(map(float, p.split())) for p in path.split("L")]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x0 < x1 < x2
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.11)
    assert y2 > y0  # downwards on a page
    assert f"M{x1} 10V190" in drawn  # the mark of round 1


@pytest.mark.parametrize("values", [[1.7e308, -1.7e308], [1e-15, 3e-15], [5e-324, 0.0], [2.0], [1.0, 1.0 + 1e-15]])
def test_values_that_diverge_or_vanish_are_drawn_all_the_same(values: list[float]) -> None:
    drawn = figures.curve(figures.Curve("loss", {"valid": list(enumerate(values))}), [], 0)
    assert "nan" not in drawn
    assert "inf" not in drawn
    assert figures.ticks(1e-15, 3e-15)[0] == 1e-15


def test_the_band_runs_from_the_pooled_value_to_the_worst_site() -> None:
    line = [(0, 0.8), (1, 0.9)]
    drawn = figures.curve(figures.Curve("dice", {"valid": line}, [(0, 0.8, 0.6), (1, 0.9, 0.6)]), [], 0)
    area = re.findall(r'<path d="M([^"]+)Z" class="band">', drawn)[0]
    (_, top0), (_, top1), (_, low1), (_, low0) = [tuple(map(float, p.split())) for p in area.split("L")]
    assert top1 < top0 < low0 == low1


def test_statuses_differ_in_shape_and_not_in_colour_alone() -> None:
    shapes = [tuple(bars) for bars in figures.FILL.values()]
    assert len(set(shapes)) == len(shapes)
    assert {*figures.FILL, "absent"} == set(story.STATUS)


def test_rounds_in_a_row_are_one_bar() -> None:
    drawn = figures.roster({"a": {0: "counted", 1: "counted", 2: "absent", 3: "counted"}}, [0, 1, 2, 3], [])
    bars = re.findall(r'<path d="([^"]+)" class="counted">', drawn)[-1]
    assert bars == "M130 10h52v12h-52zM208 10h26v12h-26z"  # cells of 26 x 12


# ---- what a run journals for it ----------------------------------------------------------------------------------


def total_of(sums: dict[str, dict[str, Any]]) -> Total:
    outcomes = [Outcome(site, "counted", "", 1.0, row) for site, row in sums.items()]
    return Total(Params({}), 1.0, len(outcomes), metrics.add(sums.values()), outcomes)


def test_intervals_are_taken_from_sums_as_published() -> None:
    total = total_of({"north": {"accuracy": np.array([8, 10])}, "south": {"accuracy": np.array([0, 10])}})
    found = certainty([total], [metrics.metric("accuracy")])
    # Wilson's interval of 8 of 10 and of 0 of 10, Newcombe 1998 and any table of it
    assert found["site_intervals"]["north"]["accuracy"] == pytest.approx((0.4902, 0.9433), abs=5e-5)
    assert found["site_intervals"]["south"]["accuracy"] == pytest.approx((0.0, 0.2775), abs=5e-5)
    assert found["intervals"]["accuracy"] == pytest.approx((0.2188, 0.6134), abs=5e-5)
    assert found["bounds"] == {}


def test_the_bound_of_a_binned_auc_is_kept() -> None:
    one_bin = np.zeros((2, metrics.BINS), np.int64)
    one_bin[:, 7] = 3, 5
    found = certainty([total_of({"a": {"test_auc": one_bin}})], [metrics.metric("auc")])
    assert found["bounds"] == {"test_auc": 0.5}  # all in one bin: the AUC may be anything


def test_what_has_no_interval_is_left_out() -> None:
    sums = {"train_loss": np.array([4.0, 2.0, 9.0]), "loss": np.array([4.0, 1.0, 16.0])}
    found = certainty([total_of({"a": sums})], [metrics.metric("loss")])
    assert found["site_intervals"] == {"a": {}}  # training: the model changed; one example: no spread
    bad = total_of({"a": {"accuracy": np.array([11, 10])}, "b": {"accuracy": np.array([1, 2])}})
    found = certainty([bad], [metrics.metric("accuracy")])
    assert found["site_intervals"]["a"] == {}  # more hits than examples
    assert found["site_intervals"]["b"] != {}


def test_of_more_than_a_hundred_sites_only_the_pooled_intervals_are_journaled() -> None:
    sums = {f"{i:03}": {"accuracy": np.array([1, 2])} for i in range(101)}
    assert "site_intervals" not in certainty([total_of(sums)], [metrics.metric("accuracy")])
    del sums["100"]
    assert len(certainty([total_of(sums)], [metrics.metric("accuracy")])["site_intervals"]) == 100


def test_the_worst_site_depends_on_which_way_is_better() -> None:
    table = [metrics.metric("loss"), metrics.metric("accuracy")]
    per_site: dict[str, dict[str, float | None]] = {
        "b": {"loss": 2.0, "test_accuracy": 0.5, "accuracy": None},
        "a": {"loss": 2.0, "test_accuracy": 0.7, "odd": 1.0},
        "c": {"loss": 1.0, "test_accuracy": 0.9},
    }
    assert worst(per_site, table) == {"loss": "a", "test_accuracy": "b"}


@pytest.mark.parametrize(("slow", "sure"), [(float("inf"), [False, False, True]), (-1.0, [True, True, True])])
def test_fast_rounds_leave_the_intervals_to_the_last_one(
    slow: float, sure: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "SLOW", slow)
    _, journal = tiny.played(tiny.job(rounds=3), tiny.SITES)
    assert ["intervals" in step for step in journal.all("step")] == sure
    last = journal.all("step")[-1]
    assert set(last["site_intervals"]) == {"north", "south", "west"}
    low, high = last["intervals"]["loss"]
    assert low < last["metrics"]["loss"] < high
    losses = {site: row["loss"] for site, row in last["per_site"].items()}
    assert last["worst"]["loss"] == max(losses, key=losses.__getitem__)


# ---- files and verbs ---------------------------------------------------------------------------------------------


def test_a_report_can_be_written_elsewhere(tmp_path: Path, home: Path) -> None:
    result = tiny.job(rounds=1).run(tiny.SITES)
    assert result.report(tmp_path / "other.html") == tmp_path / "other.html"
    assert (tmp_path / "other.html").read_text("utf-8").startswith("<!doctype html>")
    assert not (result.folder / "report.html").exists()


def test_a_journal_that_was_changed_gives_no_report(home: Path) -> None:
    result = tiny.job(rounds=2).run(tiny.SITES)
    with sqlite3.connect(result.folder / "run.db") as db:
        db.execute("UPDATE journal SET body = replace(body, 'all rounds done', 'a better end') WHERE kind = 'end'")
    db.close()
    with pytest.raises(JournalError, match="was changed after it was written"):
        result.report()


def _toy() -> tuple[Any, ...]:
    from foedus import jobfile

    made = jobfile.load(toys.JOB, {}).job
    return made.algorithm, made.learner, made.data


def verb(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", ["foedus", *words, "--json"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    found: dict[str, Any] = json.loads(capfd.readouterr().out)
    return found


def test_a_finished_run_has_its_report_beside_it_and_the_verb_writes_it_again(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    sites = [f"--site={n}={p}" for n, p in toys.make_sites(tmp_path / "data", ["north", "south"]).items()]
    ran = verb(monkeypatch, capfd, "run", str(toys.JOB), "rounds=2", *sites)
    path = Path(ran["report"])
    assert path == Path(ran["folder"]) / "report.html"
    assert ran["digest"] in path.read_text("utf-8")
    again = verb(monkeypatch, capfd, "report", ran["run"][:-2], "--out", str(tmp_path / "r.html"))
    assert again == {"run": ran["run"], "report": str(tmp_path / "r.html")}
    assert (tmp_path / "r.html").read_bytes() == path.read_bytes()
