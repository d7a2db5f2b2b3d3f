"""Messages that a server passes on: only their reader opens them, whole, of this run and matter, from their writer."""

from __future__ import annotations

import pytest

from foedus.errors import Refused
from foedus.keys import key
from foedus.privacy import relays
from foedus.privacy.relays import STATEMENT, WRAP, Identity, opened, read, sealed, simulated

ANNA, BEN, EVE = (simulated(0, name) for name in ("anna", "ben", "eve"))
TEXT = b"the very update" * 100


def test_a_message_comes_to_each_of_its_readers_and_to_nobody_else() -> None:
    letter = sealed(ANNA, {"ben": BEN.statement, "anna": ANNA.statement}, "update 3", TEXT)
    assert len(letter.body) == len(TEXT) + 16 and {len(x) for x in letter.wraps.values()} == {WRAP}
    assert len(ANNA.statement) == STATEMENT and TEXT[:15] not in letter.body
    for reader in (BEN, ANNA):
        wrap = letter.wraps[reader.name]
        assert opened(reader, "anna", ANNA.statement, "update 3", letter.body, wrap) == TEXT
    with pytest.raises(Refused, match="another site, round or step"):
        opened(EVE, "anna", ANNA.statement, "update 3", letter.body, letter.wraps["ben"])


@pytest.mark.parametrize("part", ["body", "wrap"])
@pytest.mark.parametrize("at", [0, 5, -1])
def test_a_changed_bit_is_found(part: str, at: int) -> None:
    letter = sealed(ANNA, {"ben": BEN.statement}, "update 3", TEXT)
    body, wrap = bytearray(letter.body), bytearray(letter.wraps["ben"])
    (body if part == "body" else wrap)[at] ^= 1
    with pytest.raises(Refused, match=r"anna.*opening a sealed message.*was changed"):
        opened(BEN, "anna", ANNA.statement, "update 3", bytes(body), bytes(wrap))


def test_a_cut_message_is_found() -> None:
    letter = sealed(ANNA, {"ben": BEN.statement}, "update 3", TEXT)
    for body, wrap in ((letter.body[:-1], letter.wraps["ben"]), (letter.body, letter.wraps["ben"][:20]), (b"", b"")):
        with pytest.raises(Refused, match="was changed"):
            opened(BEN, "anna", ANNA.statement, "update 3", body, wrap)


def test_a_message_of_another_matter_sender_or_run_cannot_be_opened() -> None:
    letter = sealed(ANNA, {"ben": BEN.statement}, "update 3", TEXT)
    wrap = letter.wraps["ben"]
    with pytest.raises(Refused):
        opened(BEN, "anna", ANNA.statement, "update 4", letter.body, wrap)  # replayed
    with pytest.raises(Refused):
        opened(BEN, "eve", EVE.statement, "update 3", letter.body, wrap)  # as if another had written it
    with pytest.raises(Refused, match="not signed with its enrolled key"):
        opened(BEN, "anna", EVE.statement, "update 3", letter.body, wrap)
    later = BEN._replace(run="another")
    with pytest.raises(Refused, match="not signed with its enrolled key for this run"):
        opened(later, "anna", ANNA.statement, "update 3", letter.body, wrap)


def test_a_key_that_the_register_does_not_have_is_refused_when_it_is_written_to() -> None:
    alone = Identity("", "ben", BEN.private, BEN.statement, lambda name: None)
    with pytest.raises(Refused, match=r"anna.*not in the register that this site pinned"):
        read(alone, "anna", ANNA.statement)
    with pytest.raises(Refused, match="not signed"):
        sealed(BEN, {"anna": EVE.statement}, "update 3", TEXT)


def test_the_same_message_has_the_same_bytes_and_another_one_no_key_in_common() -> None:
    first, again, other = (sealed(ANNA, {"ben": BEN.statement}, "update 3", x) for x in (TEXT, TEXT, TEXT[:-1] + b"!"))
    assert first == again
    same = sum(a == b for a, b in zip(first.body, other.body, strict=True))
    assert same < len(TEXT) / 20  # by chance one in 256: with one key all but the last would be the same
    assert first.wraps["ben"][:12] != other.wraps["ben"][:12]


def test_the_server_s_bytes_of_two_simulated_seeds_differ() -> None:
    assert simulated(0, "anna").private != simulated(1, "anna").private
    assert relays.private_of(key(0, "secret", 0, "anna")) == ANNA.private
