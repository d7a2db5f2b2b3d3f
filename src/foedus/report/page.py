"""The page: which figures and tables tell a run's story, each figure beside the table of its numbers.
A Story comes in; everything that a site or a submitter chose is escaped by `markup`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from statistics import median
from string import Template
from typing import Any

from foedus.metrics import plain
from foedus.report import figures, story
from foedus.report.markup import Html, between, el, join, lasting, moment, number, ranges, size, table, text, thinned
from foedus.report.standing import Standing, html
from foedus.report.story import PARTS, STATUS, Measured, Story
from foedus.store import Row

MOST_SITES, MOST_ROUNDS, MOST_IN_FOREST, MOST_CAUSES = 100, 500, 24, 300


def page(rows: Sequence[Row], run: str) -> str:
    """The report of the run with these journal rows, as one HTML text."""
    told = story.read(rows)
    sections = (_head(told, run), _results(told), _curves(told), _sites(told), _roster(told), _events(told))
    body = join([*sections, _bytes(told), _made(told, run)], "\n")
    skeleton = resources.files("foedus.report").joinpath("page.html").read_text("utf-8")
    return Template(skeleton).substitute(title=text(f"foedus run {run}"), body=body)


def _section(title: str, *parts: Any) -> Html:
    return el("section", el("h2", title), *parts)


def _note(*parts: Any, kind: str = "soft") -> Html:
    return el("p", *parts, class_=kind)


def _head(told: Story, run: str) -> Html:
    name = told.about.get("description", {}).get("name") or (told.journal.find("submitted") or {}).get("name")
    kept = [el("h1", name or run), _state(told), html(_standing(told)), _cards(told), _digest(told)]
    return el("header", *kept, _note("Run ", el("code", run), ". Rounds count from 0, as in the journal."))


def _state(told: Story) -> Html:
    if told.end is not None:
        return el("p", el("b", "finished"), told.end["reason"], class_="state done")
    news = [e for e in told.events if e.what in ("paused", "failed", "running")][-1:]
    worked = max((row.at for row in told.rows if row.kind != "event"), default=0.0)
    stuck = [e for e in news if e.what != "running" and e.at >= worked]
    what, why = (stuck[0].what, stuck[0].why) if stuck else ("not finished", "the journal has no end row yet")
    return el("p", el("b", what), why, class_="state undone")


def _standing(told: Story) -> Standing:
    """What was shown of the run while it went on."""
    found = Standing()
    for row in told.rows:
        found.hear(row.kind, row.body, row.at)
    return found


def _cards(told: Story) -> Html:
    whole = told.rows[-1].at - told.rows[0].at if told.rows else 0.0
    cards: list[tuple[str, Any]] = [
        ("rounds", el("data", len(told.steps), value=len(told.steps))),
        ("sites", el("data", len(told.grid), value=len(told.grid))),
        ("backend", told.about.get("backend", "–")),
        ("seed", told.about.get("seed", "–")),
        ("duration", lasting(whole)),
    ]
    if told.steps:
        cards.append(("median round", lasting(median(step["seconds"] for step in told.steps))))
    if told.end is not None and told.end.get("best_round") is not None:
        cards.append(("best model", f"round {told.end['best_round']}, counted from 0"))
    return el("dl", *(el("div", el("dt", what), el("dd", value)) for what, value in cards), class_="cards")


def _digest(told: Story) -> Html:
    if told.end is None:
        return _note("Digest: none yet, there is no final model.")
    exact = told.about.get("exact", False)
    sure = "exact: the same bits on the same build" if exact else "close: other runs come near, not to the bit"
    return el("p", "Digest of the final model: ", el("code", "" if exact else "≈ ", told.end["digest"]), f" ({sure})")


# ---- metrics -----------------------------------------------------------------------------------------------------


def _value(m: Measured | None) -> Html:
    if m is None:
        return Html("–")
    within = [" ", el("span", "± ", number(m.bound), class_="interval")] if m.bound else []
    return join([number(m.value), between(m.interval), *within])


def _results(told: Story) -> Html:
    pooled, worst = story.pooled(told), story.worst(told)
    if not pooled:
        return _section("Result", _note("Nothing was measured."))
    rows = []
    for own, parts in story.families(pooled).items():
        for part, name in parts.items():
            low = worst.get(name)
            rows.append((own, part, pooled[name].round, _value(pooled[name]), _value(low), low.site if low else "–"))
    head = ("metric", "part", "round", "all sites", "worst site", "which")
    notes = [_note("Brackets: 95 % confidence interval over the examples. ±: the largest error of a binned metric.")]
    if not any(step.get("intervals") for step in told.steps):
        notes = [_note("No intervals: the journal has none (they are taken when a run ends, or in slow rounds).")]
    return _section("Result", table("Newest value of each metric", head, rows), *notes)


def _curves(told: Story) -> Html:
    if not told.steps:
        return _section("Curves", _note("No round is finished."))
    names = list(dict.fromkeys(name for step in told.steps for name in step["metrics"]))
    found = [_curve(told, own, parts) for own, parts in story.families(names).items()]
    marks = _marks(told)
    drawn = [figures.curve(c, marks, i) for i, c in enumerate(found) if c.lines]
    head = ("round", "seconds", "counted", *names)
    rows = [_round(told, step, names) for step in thinned(told.steps, MOST_ROUNDS)]
    every = "" if len(rows) == len(told.steps) else f" ({len(rows)} of {len(told.steps)}, evenly)"
    lines = [_note("Dotted upright lines: rounds with events.")] if marks else []
    return _section("Curves", el("div", *drawn, class_="figures"), *lines, table(f"Each round{every}", head, rows))


def _curve(told: Story, own: str, parts: Mapping[str, str]) -> figures.Curve:
    lines = {
        part: points
        for part, name in parts.items()
        if (points := [(s["round"], v) for s in told.steps if (v := s["metrics"].get(name)) is not None])
    }
    name = parts.get("valid", "")
    band = [
        (step["round"], step["metrics"][name], step["per_site"][step["worst"][name]][name])
        for step in told.steps
        if name in step.get("worst", {}) and step["metrics"].get(name) is not None
    ]
    return figures.Curve(own, lines, band)


def _marks(told: Story) -> list[int]:
    """The rounds of events that tell more than that the run began or ended."""
    last = told.steps[-1]["round"] if told.steps else 0
    dull = ("submitted", "started", "finished")
    return sorted({e.round for e in told.events if e.what not in dull and 0 < e.round <= last})


def _round(told: Story, step: story.Body, names: Sequence[str]) -> list[Any]:
    fared = [cells.get(step["round"]) for cells in told.grid.values()]
    values = (number(step["metrics"][name]) if name in step["metrics"] else Html("") for name in names)
    return [step["round"], number(step["seconds"]), fared.count("counted"), *values]


def _sites(told: Story) -> Html:
    found, worst = story.per_site(told), story.worst(told)
    names = sorted({name for row in found.values() for name in row}, key=_order)
    if not names:
        return _section("Sites", _note("The journal has no values of single sites."))
    shown = list(found)[:MOST_SITES]
    shown += [m.site for m in worst.values() if m.site not in shown]
    rows = [
        [site, max(m.round for m in row.values()), *(_site(row.get(name), worst.get(name), site) for name in names)]
        for site, row in ((site, found[site]) for site in shown)
    ]
    more = "" if len(shown) == len(found) else f" ({len(shown)} of {len(found)} sites, the worst among them)"
    dots = [figures.forest(*args) for args in _forests(told, found)] if len(found) <= MOST_IN_FOREST else []
    values = table(f"Newest values of each site{more}", ("site", "newest round", *names), rows)
    return _section("Sites", el("div", *dots, class_="figures"), values)


def _order(name: str) -> tuple[str, int]:
    own = plain(name)
    return own, list(PARTS).index(name.removesuffix(own))


def _site(m: Measured | None, worst: Measured | None, site: str) -> Html:
    is_worst = m and worst and (worst.site, worst.round) == (site, m.round)
    return join([_value(m), *([" ", el("span", "▾ worst", class_="flag")] if is_worst else [])])


def _forests(told: Story, found: Mapping[str, Mapping[str, Measured]]) -> Iterable[tuple[str, Any, int]]:
    places = {"all sites": story.pooled(told), **found}
    names = [name for row in found.values() for name in row if not name.startswith("train_")]
    for number_of, (own, parts) in enumerate(story.families(dict.fromkeys(names)).items()):
        rows = {place: {part: row[n] for part, n in parts.items() if n in row} for place, row in places.items()}
        if any(m.value is not None for row in rows.values() for m in row.values()):
            yield own, {place: row for place, row in rows.items() if row}, number_of


# ---- who, when, how much -----------------------------------------------------------------------------------------


def _roster(told: Story) -> Html:
    if not told.grid or not told.rounds:
        return _section("Who was there", _note("No round has begun."))
    missed = {s: sum(status not in ("counted", "idle") for status in row.values()) for s, row in told.grid.items()}
    sites = sorted(sorted(told.grid, key=lambda s: -missed[s])[:MOST_SITES])
    grid = {site: told.grid[site] for site in sites}
    kinds = [k for k in STATUS if any(k in row.values() for row in grid.values())]
    rows = [[s, ranges(row), *(_rounds(row, k) for k in kinds)] for s, row in grid.items()]
    more = "" if len(grid) == len(told.grid) else f" ({len(grid)} of {len(told.grid)} sites: those that missed most)"
    head = ("site", "there in rounds", *(STATUS[k] for k in kinds))
    figure = figures.roster(grid, told.rounds, _marks(told))
    words = _note(
        "Not asked: not drawn, or still at work. Dropped: came too late to be needed. Declined: said no, or its code ",
        "failed. Lost: left or fell silent. Refused: its update did not pass the checks.",
    )
    return _section("Who was there", figure, words, table(f"How each site fared{more}", head, rows), _causes(told))


def _rounds(row: Mapping[int, str], kind: str) -> str:
    """How often, and in which rounds if it is short."""
    there = [r for r, status in row.items() if status == kind]
    where = "" if kind in ("counted", "idle") else ranges(there)
    return f"{len(there)} (round {where})" if 0 < len(where) < 60 else str(len(there))


def _causes(told: Story) -> Html:
    if not told.reasons:
        return _note("No site declined, fell silent or was refused.")
    head = ("site", "rounds", "work", "what", "why")
    rows = [(r.site, ranges(r.rounds), r.work, r.status, r.why) for r in told.reasons[:MOST_CAUSES]]
    more = "" if len(rows) == len(told.reasons) else f" (the first {len(rows)} of {len(told.reasons)})"
    return table(f"Why sites were not counted{more}", head, rows)


def _events(told: Story) -> Html:
    rows = [(moment(e.at), e.round, e.what, e.site or "–", e.why) for e in told.events]
    return _section("Events", table("What happened, in order", ("when", "round", "what", "site", "why"), rows))


def _bytes(told: Story) -> Html:
    found = story.traffic(told)
    if not found:
        why = "A simulation: all sites were on this machine, and no byte went over a network."
        return _section("Bytes", _note(why if told.about.get("backend") != "network" else "Nothing has arrived yet."))
    whole = story.Traffic(*map(sum, zip(*found.values(), strict=True)))
    rows = [(site, t.updates, size(t.sent), size(t.fetched)) for site, t in [*found.items(), ("all sites", whole)]]
    head = ("site", "updates", "sent by it", "to fetch, at most")
    words = "Sent: updates that arrived, without metrics and retries. To fetch: the models of the Tasks it was given."
    return _section("Bytes", table("Bytes of each site", head, rows), _note(words))


# ---- how it was made ---------------------------------------------------------------------------------------------


def _made(told: Story, run: str) -> Html:
    about = told.about
    job = [(key, el("code", text(json.dumps(value, ensure_ascii=False), 2000))) for key, value in _described(about)]
    build = [(key, el("code", value)) for key, value in about.get("build", {}).items()]
    parts = [table("The Job, as it resolved", ("argument", "value"), job)] if job else []
    parts += [_builds(told), table("The build", ("part", "value"), build)] if build else []
    return join([_section("How it was made", *parts), _verify(told, run)])


def _described(about: Mapping[str, Any]) -> list[tuple[str, Any]]:
    source = about.get("source", {})
    options = {"options": source["options"]} if source.get("options") else {}
    return list({**about.get("description", {}), **options, "seed": about.get("seed")}.items()) if about else []


def _builds(told: Story) -> Html:
    own, found = told.about["build"].get("hash"), story.builds(told)
    odd = [f"{', '.join(sites)} on build {build}" for build, sites in found.items() if build != own]
    if not odd:
        return Html("")
    return _note(f"Bits are not comparable: the fold ran on build {own}, {'; '.join(odd)}.", kind="warn")


def _verify(told: Story, run: str) -> Html:
    replay = "checks the chain, replays the run on the same data and compares the bits."
    parts = [_note(el("code", f"foedus verify {run}"), " ", replay, kind="")]
    if told.rows:
        last = told.rows[-1]
        chain = (f"This page was written from {last.seq} journal rows. ", el("code", last.chain))
        parts.append(_note(*chain, " is the hash of the last one; no row can be changed without changing it."))
    return _section("How to verify it", *parts)
