"""The register: who may act and until when, and that a site notices when its past is taken back or rewritten."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from foedus.errors import Denied, WireError
from foedus.wire import ed25519, identity
from foedus.wire.identity import Entry, Renewal, Revocation
from foedus.wire.plain import canonical, parse, plain, read
from foedus.wire.register import Change, Pin, Register, first_digest, register_digest

DAY = 86_400
NOW = 1_800_000_000
OWNER = ed25519.new_key()
OWNER_PUBLIC = ed25519.public_text(OWNER)
FEDERATION = identity.new_federation("stroke", ("https://a.example",), OWNER_PUBLIC, OWNER_PUBLIC, "")


def empty() -> Register:
    return Register(FEDERATION.id, OWNER_PUBLIC)


def entry(name: str, key: Ed25519PrivateKey, role: Any = "site") -> Entry:
    text = identity.invite(OWNER, FEDERATION, name, role, expires=NOW + 7 * DAY)
    return identity.enrol(identity.read_token(text), key)


def record(register: Register, statement: Entry | Renewal | Revocation, now: int = NOW) -> Change:
    change = register.draft(statement, now)
    register.apply(change)
    return change


def revocation(name: str, public: str, key: Ed25519PrivateKey = OWNER) -> Revocation:
    return identity.signed(key, Revocation(FEDERATION.id, name, public, NOW, "left the study"))


def renewal(key: Ed25519PrivateKey, number: int, name: str = "north") -> Renewal:
    return identity.renew(key, FEDERATION.id, name, number)


@pytest.fixture
def north() -> Ed25519PrivateKey:
    return ed25519.new_key()


@pytest.fixture
def register(north: Ed25519PrivateKey) -> Register:
    register = empty()
    record(register, entry("north", north))
    return register


def test_the_roster_names_the_enrolled_sites_in_order(register: Register) -> None:
    record(register, entry("aachen", ed25519.new_key()))
    record(register, entry("mary", ed25519.new_key(), "submitter"))
    assert register.roster(NOW) == ["aachen", "north"]
    assert register.roster(NOW, "submitter") == ["mary"]
    assert register.pin.epoch == 3


def test_an_entry_lasts_ninety_days_from_its_recording_and_not_from_any_date_of_the_site(register: Register) -> None:
    assert register.admit("north", NOW + 90 * DAY).valid_until == NOW + 90 * DAY
    assert register.roster(NOW + 90 * DAY + 1) == []
    with pytest.raises(Denied, match="'north' expired on 2027-04-15; it can still renew with the same key"):
        register.admit("north", NOW + 90 * DAY + 1)


def test_a_site_that_nobody_enrolled_is_told_to_ask_for_an_invitation(register: Register) -> None:
    with pytest.raises(Denied, match="'south' is not in the register; ask the federation's owner for an invitation"):
        register.admit("south", NOW)


@pytest.mark.parametrize("day", [30, 60, 90, 91, 180])
def test_a_renewal_in_the_last_sixty_days_or_in_the_grace_time_counts(
    register: Register, north: Ed25519PrivateKey, day: int
) -> None:
    record(register, renewal(north, 1), NOW + day * DAY)
    assert register.admit("north", NOW + (day + 90) * DAY).renewals == 1
    assert register.roster(NOW + (day + 90) * DAY) == ["north"]
    assert register.roster(NOW + (day + 90) * DAY + 1) == []


@pytest.mark.parametrize(
    ("seconds", "cause"),
    [
        (180 * DAY + 1, "expired on 2027-04-15; ask the owner for a new invitation"),
        (30 * DAY - 1, "renewal 1 of 'north' is not due: 0 recorded, the entry ends on 2027-04-15"),
    ],
)
def test_a_renewal_too_late_or_too_early_is_refused(
    register: Register, north: Ed25519PrivateKey, seconds: int, cause: str
) -> None:
    before = register.pin
    with pytest.raises(Denied, match=cause):
        register.draft(renewal(north, 1), NOW + seconds)
    assert register.pin == before


def test_in_the_grace_time_an_expired_site_may_renew_and_do_nothing_else(register: Register) -> None:
    late = NOW + 100 * DAY
    assert register.admit("north", late, renewing=True).entry.invitation.name == "north"
    with pytest.raises(Denied, match="expired"):
        register.admit("north", late)
    with pytest.raises(Denied, match="expired"):
        register.admit("north", NOW + 180 * DAY + 1, renewing=True)


def test_a_renewal_counts_once_and_in_order(register: Register, north: Ed25519PrivateKey) -> None:
    first = renewal(north, 1)
    record(register, first, NOW + 60 * DAY)
    for number in (0, 1, 3):
        with pytest.raises(Denied, match="1 recorded"):
            register.draft(renewal(north, number), NOW + 120 * DAY)
    record(register, renewal(north, 2), NOW + 120 * DAY)
    with pytest.raises(Denied, match="2 recorded"):
        register.draft(first, NOW + 180 * DAY)


def test_a_renewal_by_another_key_is_refused(register: Register) -> None:
    with pytest.raises(Denied, match="by another key than its entry; renew with the same key"):
        register.draft(renewal(ed25519.new_key(), 1), NOW + 60 * DAY)


@pytest.mark.parametrize("offset", [-14, -3, 0, 3, 14])
def test_an_agent_renews_in_time_even_with_a_clock_two_weeks_off(
    register: Register, north: Ed25519PrivateKey, offset: int
) -> None:
    member = register.admit("north", NOW)
    day = next(day for day in range(1000) if member.due(NOW + (day + offset) * DAY))
    record(register, renewal(north, 1), NOW + day * DAY)
    assert register.admit("north", NOW + day * DAY).renewals == 1
    assert day < 90


def test_a_retry_of_what_is_recorded_is_recognised(register: Register, north: Ed25519PrivateKey) -> None:
    known = register.admit("north", NOW).entry
    assert register.holds(known)
    assert not register.holds(entry("north", north))
    assert not register.holds(entry("south", north))
    assert not register.holds(renewal(north, 1))
    record(register, renewal(north, 1), NOW + 60 * DAY)
    assert register.holds(renewal(north, 1))
    leave = revocation("north", known.public)
    assert not register.holds(leave)
    record(register, leave)
    assert register.holds(leave)


def test_a_revoked_site_is_out_at_once_and_cannot_renew(register: Register, north: Ed25519PrivateKey) -> None:
    record(register, revocation("north", ed25519.public_text(north)))
    assert register.roster(NOW) == []
    for renewing in (False, True):
        with pytest.raises(Denied, match=r"'north' was revoked on 2027-01-15 \(left the study\); .* new invitation"):
            register.admit("north", NOW, renewing=renewing)
    with pytest.raises(Denied, match="was revoked"):
        register.draft(renewal(north, 1), NOW + 60 * DAY)


def test_a_revoked_name_comes_back_with_a_new_key_and_never_with_the_old_one(
    register: Register, north: Ed25519PrivateKey
) -> None:
    record(register, revocation("north", ed25519.public_text(north)))
    with pytest.raises(Denied, match=r"used or revoked before; .*join with a new key"):
        register.draft(entry("north", north), NOW)
    record(register, entry("north", ed25519.new_key()))
    assert register.roster(NOW) == ["north"]


def test_a_token_enrols_one_key_only(register: Register) -> None:
    token = identity.read_token(identity.invite(OWNER, FEDERATION, "south", expires=NOW))
    record(register, identity.enrol(token, ed25519.new_key()))
    with pytest.raises(Denied, match="this token or key was used"):
        register.draft(identity.enrol(token, ed25519.new_key()), NOW)


def test_one_key_cannot_stand_under_two_names(register: Register, north: Ed25519PrivateKey) -> None:
    with pytest.raises(Denied, match="this token or key was used"):
        register.draft(entry("south", north), NOW)


def test_a_name_that_is_taken_is_not_taken_over(register: Register) -> None:
    for now in (NOW, NOW + 7 * DAY):
        with pytest.raises(Denied, match="the name is taken; the owner must revoke"):
            register.draft(entry("north", ed25519.new_key()), now)


def test_an_invitation_can_be_revoked_before_and_after_its_use(register: Register) -> None:
    text = identity.invite(OWNER, FEDERATION, "south", expires=NOW)
    unused = identity.enrol(identity.read_token(text), ed25519.new_key())
    record(register, revocation("south", identity.token_id(text)))
    with pytest.raises(Denied, match="used or revoked before"):
        register.draft(unused, NOW)
    record(register, revocation("north", register.admit("north", NOW).entry.invitation.token))
    assert register.roster(NOW) == []


def test_only_the_owner_revokes_once_and_by_the_right_name(register: Register, north: Ed25519PrivateKey) -> None:
    public = ed25519.public_text(north)
    with pytest.raises(Denied, match="the revocation of 'north': the signature"):
        register.draft(revocation("north", public, north), NOW)
    with pytest.raises(Denied, match="this key belongs to 'north'; name that one"):
        register.draft(revocation("south", public), NOW)
    record(register, revocation("north", public))
    with pytest.raises(Denied, match="revoked already"):
        register.draft(revocation("north", public), NOW)


def test_an_expired_invitation_does_not_enrol(register: Register) -> None:
    late = entry("south", ed25519.new_key())
    with pytest.raises(Denied, match="expired on 2027-01-22"):
        register.draft(late, NOW + 7 * DAY + 1)


# The chain


def history() -> list[Change]:
    register, keys = empty(), [ed25519.new_key() for _ in range(3)]
    changes = [record(register, entry(f"site-{i}", key)) for i, key in enumerate(keys)]
    changes.append(record(register, renewal(keys[1], 1, "site-1"), NOW + 50 * DAY))
    changes.append(record(register, revocation("site-0", ed25519.public_text(keys[0])), NOW + 51 * DAY))
    return changes


HISTORY = history()


def replay(changes: list[Change]) -> Register:
    register = empty()
    for change in changes:
        register.apply(change)
    return register


def test_the_digests_are_the_sha256_of_each_change_with_the_digest_before_it() -> None:
    start = f'{{"federation":"{FEDERATION.id}","owner":"{OWNER_PUBLIC}","register":1}}'
    digest = hashlib.sha256(start.encode()).hexdigest()
    assert first_digest(FEDERATION.id, OWNER_PUBLIC) == digest == empty().pin.digest
    for change in HISTORY:
        assert change.previous == digest
        fields = {"epoch": change.epoch, "previous": digest, "at": change.at, "statement": plain(change.statement)}
        digest = hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
        assert register_digest(change) == digest
    assert replay(HISTORY).pin == Pin(5, digest)


def test_the_register_comes_back_from_its_stored_changes() -> None:
    stored = [canonical(plain(change)) for change in HISTORY]
    register = replay([read(Change, parse(text)) for text in stored])
    assert register.roster(NOW + 51 * DAY) == ["site-1", "site-2"]
    assert register.roster(NOW + 140 * DAY) == ["site-1"]


def test_a_site_that_pinned_any_earlier_epoch_accepts_what_extends_it() -> None:
    for n in range(len(HISTORY) + 1):
        replay(HISTORY).check_extends(replay(HISTORY[:n]).pin)


def test_a_register_that_went_back_is_a_rollback() -> None:
    for n in range(len(HISTORY)):
        with pytest.raises(Denied, match=rf"went back from epoch 5 to {n} \(rollback\).*ask the federation's owner"):
            replay(HISTORY[:n]).check_extends(replay(HISTORY).pin)


def test_a_register_with_another_past_is_a_fork() -> None:
    fork = replay(HISTORY[:2])
    for i in range(4):
        record(fork, entry(f"other-{i}", ed25519.new_key()))
    for n in range(3, 6):
        with pytest.raises(Denied, match=rf"differs at epoch {n} \(fork\)"):
            fork.check_extends(replay(HISTORY[:n]).pin)


def test_a_change_that_is_missing_repeated_or_out_of_order_is_refused() -> None:
    for n in range(len(HISTORY)):
        for other in range(len(HISTORY)):
            if other != n:
                with pytest.raises(Denied, match=f"change {other + 1} does not follow epoch {n}"):
                    replay(HISTORY[:n]).apply(HISTORY[other])


@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_a_change_that_misstates_its_epoch_is_refused(register: Register, epoch: int) -> None:
    change = register.draft(entry("south", ed25519.new_key()), NOW)
    with pytest.raises(Denied, match=f"change {epoch} does not follow epoch 1"):
        register.apply(change._replace(epoch=epoch))
    register.apply(change)


def test_a_revocation_cannot_be_left_out_and_the_rest_kept() -> None:
    register, key = empty(), ed25519.new_key()
    changes = [record(register, entry("north", key))]
    changes.append(record(register, revocation("north", ed25519.public_text(key))))
    changes.append(record(register, entry("south", ed25519.new_key())))
    with pytest.raises(Denied, match="does not follow"):
        replay([changes[0], changes[2]])


def test_a_site_verifies_what_the_server_recorded_and_takes_no_word_for_it() -> None:
    register, key = replay(HISTORY), ed25519.new_key()
    forged = entry("mallory", key)._replace(voucher=HISTORY[0].statement.voucher)  # type: ignore[union-attr]
    invited = entry("late", key)
    for statement, at in ((forged, NOW), (invited, NOW + 8 * DAY), (renewal(key, 1, "site-2"), NOW + 60 * DAY)):
        before = register.pin
        with pytest.raises(Denied):
            register.apply(Change(6, before.digest, at, statement))
        assert register.pin == before
        assert register.roster(NOW + 51 * DAY) == ["site-1", "site-2"]


@given(st.integers(0, len(HISTORY) - 1), st.data())
def test_a_stored_change_with_any_byte_changed_breaks_the_chain(n: int, data: st.DataObject) -> None:
    text = canonical(plain(HISTORY[n])).decode()
    i = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.characters(min_codepoint=32, max_codepoint=126).filter(lambda letter: letter != text[i]))
    pin = replay(HISTORY).pin
    with pytest.raises((Denied, WireError)):
        damaged = read(Change, parse((text[:i] + letter + text[i + 1 :]).encode()))
        replay([*HISTORY[:n], damaged, *HISTORY[n + 1 :]]).check_extends(pin)


def test_the_chain_of_one_federation_fits_no_other() -> None:
    with pytest.raises(Denied, match="does not follow epoch 0"):
        Register("0" * 32, OWNER_PUBLIC).apply(HISTORY[0])


def test_a_register_of_another_owner_takes_nothing() -> None:
    stranger = Register(FEDERATION.id, ed25519.public_text(ed25519.new_key()))
    with pytest.raises(Denied, match="the invitation of 'north': the signature"):
        stranger.draft(entry("north", ed25519.new_key()), NOW)
