"""Metrics under a seal, as whole numbers worked out by hand, and the server's side of a sealed Task over restarts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from foedus.core import Outcome
from foedus.errors import FoedusError, Refused, WireError
from foedus.journal import Journal, Memory
from foedus.privacy import masking
from foedus.privacy.masking import figures
from foedus.privacy.masking.figures import Figure
from foedus.server.sealing import Out, Sealing
from foedus.server.tasks import Open
from foedus.wire.ed25519 import new_key


def test_words_of_a_number_by_hand() -> None:
    words = figures.figures(
        {"loss": np.array([1.5]), "n": np.array(-1)}, figures.read_layout([["loss", False, [1]], ["n", True, []]])
    )
    # 1.5 * 2**32 = 0x1_8000_0000; -1 * 2**32 modulo 2**128 has 32 zeros below, and ones above
    assert words.tolist() == [0, 0x8000, 1, 0, 0, 0, 0, 0, 0, 0, *[0xFFFF] * 6]


@given(st.lists(st.floats(-(2.0**40), 2.0**40), min_size=1, max_size=20))
@pytest.mark.properties
def test_the_sum_of_the_words_is_the_sum_of_the_rounded_numbers(xs: list[float]) -> None:
    layout = (Figure("x", False, (1,)),)
    total = sum((figures.figures({"x": np.array([x])}, layout).astype(np.uint64) for x in xs), np.zeros(8, np.uint64))
    (found,) = figures.sums(layout, total.astype("<u4"))["x"]
    assert found == sum(round(x * 2**32) for x in xs) / 2**32


def test_no_metrics_are_no_words() -> None:
    assert figures.figures({}, ()).size == 0 and figures.sums((), figures.figures({}, ())) == {}


def test_whole_numbers_stay_whole_and_shapes_stay() -> None:
    counts = {"hits": np.array([[3, 4], [5, 2**40]])}
    layout = figures.announced(counts)
    assert layout == (Figure("hits", True, (2, 2)),)
    found = figures.sums(layout, figures.figures(counts, layout))["hits"]
    assert found.dtype == np.int64 and found.tolist() == counts["hits"].tolist()


def test_the_layout_has_every_metric_of_one_shape_and_a_site_without_it_adds_nothing() -> None:
    east = {"a": np.zeros(2), "b": np.array(1), "n": np.array(7)}
    west = {"a": np.zeros(3), "b": np.array(0.5), "c": np.array([1.0])}
    layout = figures.merged([figures.announced(east), figures.announced(west)])
    assert layout == (Figure("b", False, ()), Figure("c", False, (1,)), Figure("n", True, ()))
    total = figures.figures(east, layout) + figures.figures(west, layout)
    assert {name: x.tolist() for name, x in figures.sums(layout, total).items()} == {"b": 1.5, "c": [1.0], "n": 7}


def test_three_shapes_of_one_name_are_no_metric_whatever_their_order() -> None:
    one, two = (Figure("a", False, (1,)),), (Figure("a", False, (2,)),)
    assert figures.merged([one, two, one]) == figures.merged([two, one, one]) == ()


@pytest.mark.parametrize("x", [np.nan, np.inf, 2.0**63, -(2.0**63)])
def test_a_number_that_has_no_room_stays_at_its_site(x: float) -> None:
    assert [figure.name for figure in figures.announced({"good": np.array(1.0), "odd": np.array([0.0, x])})] == ["good"]


@pytest.mark.parametrize(
    "rows",
    [
        [["b", False, []], ["a", False, []]],
        [["a", False, []], ["a", False, [1]]],
        [["a", False, [-1]]],
        [["a", False, [1 << 21]]],
        [[1, False, []]],
        None,
    ],
)
def test_a_layout_that_is_none_is_refused(rows: Any) -> None:
    with pytest.raises(WireError):
        figures.read_layout(rows)


# ---- the server's side ---------------------------------------------------------------------------------------------
SITES = ["a", "b", "c", "d"]  # three of them must go to the end
FACTS = {"bundle": "ab" * 32, "seed": 0}
BODY: dict[str, Any] = {
    "work": "train", "payload": {"digest": "cd" * 32}, "returns": [["w", [2], "float32", "trainable", ""]],
    "seal": [3, (8.0).hex(), (64.0).hex()], "asked": SITES, "quorum": None, "least": 3, "late": "drop",
    "deadline": None,
}  # fmt: skip
KEYS = {site: new_key() for site in SITES}
PUBLICS = {site: key.public_key().public_bytes_raw() for site, key in KEYS.items()}


class Server:
    """One sealed Task at a server, and its sites' states; `restart` keeps what is on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.journal, self.body = folder, Journal(Memory()), BODY
        self.states: dict[str, bytes] = {}
        self.restart()

    def restart(self) -> None:
        self.task = Open(0, 1, self.body, SITES)
        self.sealing = Sealing("run", FACTS, self.task, self.folder, self.journal, PUBLICS)

    def own(self, site: str) -> masking.Own:
        return masking.Own(site, KEYS[site], PUBLICS, bytes(32))

    def say(self, site: str, kind: str, message: bytes) -> None:
        self.sealing.hear(site, kind, message, [])

    def advertise(self, *sites: str) -> None:
        for site in sites:
            self.states[site], message = masking.advertise(self.own(site), self.sealing.terms, self.states.get(site))
            self.say(site, "advertisement", message)

    def step(self, do: Any, asked: str, kind: str, *sites: str) -> None:
        for site in sites:
            reply = self.sealing.reply(site, asked)
            assert reply is not None
            self.states[site], message = do(self.own(site), self.sealing.terms, self.states[site], reply["data"])
            self.say(site, kind, message)

    def mask(self, *sites: str) -> None:
        for site in sites:
            reply = self.sealing.reply(site, "shares")
            assert reply is not None
            words = np.zeros(self.sealing.words, "<u4")
            self.states[site] = masking.mask(
                self.own(site), self.sealing.terms, self.states[site], reply["data"], words
            )

    def lose(self, left: Mapping[str, str]) -> None:
        for site, why in left.items():
            self.task.desk.settle(Outcome(site, "lost", why))


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


def test_a_stage_waits_for_everybody_who_is_still_waited_for_and_goes_on_without_who_is_lost(server: Server) -> None:
    server.advertise("a", "b", "c")
    assert server.sealing.gather() == {} and server.sealing.reply("a", "advertisement") is None
    server.lose({"d": "skipped"})
    assert server.sealing.gather() == {} and server.sealing.reply("a", "advertisement") is not None
    with pytest.raises(Out):
        server.advertise("d")


def test_too_few_are_all_left_out_so_that_the_task_begins_again(server: Server) -> None:
    server.advertise("a", "b")
    server.lose({"c": "skipped", "d": "skipped"})
    assert server.sealing.gather() == dict.fromkeys("ab", "only 2 of 3 sites were there to seal")


def test_with_a_quorum_the_first_so_many_go_on_and_the_others_are_told(server: Server) -> None:
    server.body = BODY | {"quorum": 3}
    server.restart()
    server.advertise("a", "b")
    assert server.sealing.gather() == {}
    server.advertise("c")
    assert server.sealing.gather() == {"d": "the sealed Task went on without it"}
    with pytest.raises(Out):
        server.advertise("d")


def test_a_forged_advertisement_is_refused(server: Server) -> None:
    stranger = masking.Own("a", Ed25519PrivateKey.generate(), PUBLICS, bytes(32))
    _, message = masking.advertise(stranger, server.sealing.terms)
    with pytest.raises(Refused, match="advertising keys"):
        server.say("a", "advertisement", message)
    with pytest.raises(Refused):
        server.say("b", "advertisement", message)  # and nobody speaks for another site
    assert server.sealing.said["advertisement"] == {}


def test_after_a_restart_only_the_same_survivors_are_asked_for(server: Server) -> None:
    server.advertise(*SITES)
    server.sealing.gather()
    server.step(masking.share, "advertisement", "shares", *SITES)
    server.sealing.gather()
    server.mask(*SITES)
    assert not server.sealing.settle(["a", "b", "c"])
    asked = server.sealing.message("survivors")
    server.restart()
    assert not server.sealing.settle(SITES)  # whatever has arrived since
    assert server.sealing.message("survivors") == asked and len(server.journal.all("seal-survivors")) == 1
    with pytest.raises(Out):
        server.sealing.reply("d", "masked")
    server.step(masking.agree, "masked", "agreement", "a", "b", "c")
    assert not server.sealing.settle(["a", "b", "c"])
    server.step(masking.reveal, "agreement", "reveal", "a", "b")
    assert not server.sealing.settle(["a", "b", "c"]) and server.sealing.awaits("c") and not server.sealing.awaits("a")
    server.restart()  # what was revealed and not kept is said again
    for site in ("a", "b", "c"):
        _, message = masking.reveal(
            server.own(site), server.sealing.terms, server.states[site], server.sealing.message("endorsement")
        )
        server.say(site, "reveal", message)
    assert server.sealing.settle(["a", "b", "c"])


def test_a_stage_s_file_that_was_changed_is_not_believed(server: Server) -> None:
    server.advertise(*SITES)
    server.sealing.gather()
    file = server.folder / "seal-0-1-0-keys.json"
    file.write_text(file.read_text().replace("figures", "Figures"))
    with pytest.raises(FoedusError, match=r"seal-0-1-0-keys.json is gone or damaged: restore"):
        server.restart()
