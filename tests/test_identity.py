"""Keys, tokens and entries: nothing that was changed, borrowed or forged is taken, and people are told what to do."""

from __future__ import annotations

import base64
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foedus.errors import Denied, FoedusError, WireError
from foedus.wire import ed25519, identity
from foedus.wire.identity import Entry, Federation, Invitation, Renewal, Revocation, Token
from foedus.wire.plain import canonical, parse, plain, read

DAY = 86_400
NOW = 1_800_000_000
OWNER, SITE, SERVER = ed25519.new_key(), ed25519.new_key(), ed25519.new_key()
OWNER_PUBLIC, SITE_PUBLIC = ed25519.public_text(OWNER), ed25519.public_text(SITE)
FEDERATION = identity.new_federation(
    "stroke", ("https://foedus.example:8443",), OWNER_PUBLIC, ed25519.public_text(SERVER), "PEM"
)
TEXT = identity.invite(OWNER, FEDERATION, "north", expires=NOW + 7 * DAY)
TOKEN = identity.read_token(TEXT)
ENTRY = identity.enrol(TOKEN, SITE)


def verify(entry: Entry, *, federation: str = FEDERATION.id, owner: str = OWNER_PUBLIC, at: int = NOW) -> None:
    identity.verify_entry(entry, federation, owner, at)


def leaves(data: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in data.items():
        yield from leaves(value, (*path, name)) if isinstance(value, dict) else [(*path, name)]


def changed(data: dict[str, Any], path: tuple[str, ...], value: object) -> dict[str, Any]:
    name, *rest = path
    return data | {name: changed(data[name], tuple(rest), value) if rest else value}


def at(data: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        data = data[name]
    return data


# Keys

# RFC 8032, 7.1, tests 1 to 3: seed, public key, message, signature.
RFC8032 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]


@pytest.mark.parametrize(("seed", "public", "message", "signature"), RFC8032)
def test_the_published_vectors_of_ed25519_hold(seed: str, public: str, message: str, signature: str) -> None:
    key = ed25519.key_from_seed(bytes.fromhex(seed))
    assert ed25519.public_text(key) == base64.b64encode(bytes.fromhex(public)).decode()
    assert key.sign(bytes.fromhex(message)).hex() == signature
    ed25519.check_signature(ed25519.public_text(key), bytes.fromhex(message), bytes.fromhex(signature))


def test_the_published_pem_of_an_ed25519_key_is_read(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"  # RFC 8410, 10.3, with the public key of 10.1
    body = "MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC"
    file.write_text(f"-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n")
    file.chmod(0o600)
    assert ed25519.public_text(ed25519.load_key(file)) == "Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE="


def test_a_signature_is_over_the_purpose_a_line_feed_and_the_canonical_object() -> None:
    signature = ed25519.sign(SITE, "foedus/test/1", {"b": 1, "a": "ü"})
    SITE.public_key().verify(base64.b64decode(signature), b'foedus/test/1\n{"a":"\xc3\xbc","b":1}')


def test_a_signature_for_one_purpose_is_none_for_another() -> None:
    signature = ed25519.sign(SITE, "foedus/test/1", {})
    ed25519.verify(SITE_PUBLIC, "foedus/test/1", {}, signature, "it")
    with pytest.raises(Denied, match="it: the signature does not match"):
        ed25519.verify(SITE_PUBLIC, "foedus/test/2", {}, signature, "it")


@pytest.mark.parametrize("purpose", ["", "test", "foedus/test", 'foedus/test/1\n{"a":1}', '"@method": GET'])
def test_a_purpose_that_could_look_like_another_message_is_refused(purpose: str) -> None:
    with pytest.raises(WireError, match="is no purpose"):
        ed25519.sign(SITE, purpose, {})


def test_a_key_has_one_spelling_only_so_that_a_revoked_one_cannot_come_back_under_another() -> None:
    body, last = SITE_PUBLIC[:-2], SITE_PUBLIC[-2]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    twin = body + alphabet[alphabet.index(last) ^ 1] + "="
    assert base64.b64decode(twin) == base64.b64decode(SITE_PUBLIC)
    for spelling in (twin, SITE_PUBLIC + "\n", " " + SITE_PUBLIC, SITE_PUBLIC.rstrip("="), "ü" + SITE_PUBLIC):
        with pytest.raises(WireError):
            ed25519.unbase64(spelling)


def test_a_fingerprint_is_the_start_of_the_sha256_of_the_key_in_groups() -> None:
    digits = hashlib.sha256(base64.b64decode(SITE_PUBLIC)).hexdigest()
    groups = ed25519.fingerprint(SITE_PUBLIC).split("-")
    assert "".join(groups) == digits[:32]
    assert [len(group) for group in groups] == [4] * 8


def test_a_key_comes_back_from_a_file_that_only_its_owner_can_read(tmp_path: Path) -> None:
    file = tmp_path / "site.pem"
    ed25519.save_key(file, SITE)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert ed25519.public_text(ed25519.load_key(file)) == SITE_PUBLIC
    assert [path.name for path in tmp_path.iterdir()] == ["site.pem"]


def test_a_key_file_is_never_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "owner.pem"
    ed25519.save_key(file, OWNER)
    with pytest.raises(Denied, match="exists and is kept"):
        ed25519.save_key(file, SITE)
    assert ed25519.public_text(ed25519.load_key(file)) == OWNER_PUBLIC
    assert [path.name for path in tmp_path.iterdir()] == ["owner.pem"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o644])
def test_a_key_file_that_others_can_use_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "a key.pem"
    ed25519.save_key(file, SITE)
    file.chmod(mode)
    with pytest.raises(Denied, match=f"mode 0{mode:o}.*run: chmod 600 '.*a key.pem'"):
        ed25519.load_key(file)


def test_the_chmod_line_of_the_error_is_the_remedy(tmp_path: Path) -> None:
    file = tmp_path / "it's.pem"
    ed25519.save_key(file, SITE)
    file.chmod(0o644)
    with pytest.raises(Denied) as caught:
        ed25519.load_key(file)
    os.system(str(caught.value).split("run: ")[1])
    assert ed25519.public_text(ed25519.load_key(file)) == SITE_PUBLIC


@pytest.mark.parametrize(
    "content", [b"", b"not a key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_a_damaged_key_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    ed25519.write_secret(tmp_path / "bad.pem", content)
    with pytest.raises(Denied, match=r"bad\.pem: this is not an unencrypted Ed25519 key"):
        ed25519.load_key(tmp_path / "bad.pem")


def test_a_missing_key_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(Denied, match=r"none\.pem: there is none"):
        ed25519.load_key(tmp_path / "none.pem")


def test_a_save_that_fails_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        ed25519.save_key(tmp_path / "site.pem", SITE)
    assert list(tmp_path.iterdir()) == []


# Invitations and tokens


def test_a_token_carries_all_that_a_site_needs_and_no_owner_key() -> None:
    assert TOKEN.federation == FEDERATION
    assert (TOKEN.invitation.name, TOKEN.invitation.role, TOKEN.invitation.expires) == ("north", "site", NOW + 7 * DAY)
    assert base64.b64encode(OWNER.private_bytes_raw()).decode() not in canonical(plain(TOKEN)).decode()
    assert identity.token_id(TEXT) == TOKEN.invitation.token
    assert "\n" not in TEXT and " " not in TEXT


def test_the_secret_of_a_token_is_not_shown_in_logs_or_tracebacks() -> None:
    assert TOKEN.secret not in repr(TOKEN) + str(TOKEN) + f"{TOKEN}"


def test_a_token_that_was_wrapped_by_mail_is_read() -> None:
    wrapped = "\r\n  ".join(TEXT[i : i + 60] for i in range(0, len(TEXT), 60))
    assert identity.read_token(f"  {wrapped}\n") == TOKEN


@pytest.mark.parametrize("other", ["A", "b", "-", "=", " ", "ü", "+"])
def test_a_token_with_any_one_character_changed_is_recognised_as_damaged(other: str) -> None:
    for i, old in enumerate(TEXT):
        if old != other:
            with pytest.raises(Denied, match=r"the token is damaged|no token of foedus"):
                identity.read_token(TEXT[:i] + other + TEXT[i + 1 :])


def test_a_token_with_one_character_too_few_or_too_many_is_recognised_as_damaged() -> None:
    for i in range(len(TEXT)):
        for text in (TEXT[:i], TEXT[:i] + TEXT[i + 1 :], TEXT[:i] + "x" + TEXT[i:], TEXT + TEXT[:i]):
            if text != TEXT:
                with pytest.raises(Denied):
                    identity.read_token(text)


@given(st.text())
def test_no_text_makes_the_token_reader_fail_in_another_way(text: str) -> None:
    for candidate in (text, "foedus1." + text):
        with pytest.raises(Denied):
            identity.read_token(candidate)


def test_a_token_whose_invitation_was_changed_is_refused_although_its_checksum_is_right() -> None:
    forged = TOKEN._replace(invitation=TOKEN.invitation._replace(name="south"))
    with pytest.raises(Denied, match="the invitation of 'south': the signature"):
        identity.read_token(identity.write_token(forged))


@pytest.mark.parametrize("secret", [base64.b64encode(bytes(32)).decode(), "AAAA", "", "?"])
def test_a_token_with_another_secret_than_its_invitation_is_refused(secret: str) -> None:
    with pytest.raises(Denied, match="the token is damaged"):
        identity.read_token(identity.write_token(TOKEN._replace(secret=secret)))


def test_only_the_owner_of_the_federation_can_invite() -> None:
    with pytest.raises(Denied, match="not the owner key of federation 'stroke'"):
        identity.invite(SITE, FEDERATION, "north", expires=NOW)


@pytest.mark.parametrize("name", ["", "../x", "a/b", "North", 'a"b', "a b", "a\n", ".a", "-a", "ä", "a" * 64])
def test_a_name_that_is_unsafe_in_paths_or_headers_is_refused(name: str) -> None:
    with pytest.raises(Denied, match="a name has 1 to 63"):
        identity.invite(OWNER, FEDERATION, name, expires=NOW)


def test_a_federation_needs_an_https_url() -> None:
    for urls in ((), ("http://a.example",), ("https://a.example", "ftp://b.example")):
        with pytest.raises(FoedusError, match="give one with https"):
            identity.new_federation("stroke", urls, OWNER_PUBLIC, SITE_PUBLIC, "")


# Entries


def test_a_site_enrols_with_its_token_and_its_own_key() -> None:
    verify(ENTRY)
    assert ENTRY.public == SITE_PUBLIC
    assert read(Entry, plain(ENTRY)) == ENTRY
    verify(
        identity.enrol(identity.read_token(identity.invite(OWNER, FEDERATION, "me", "submitter", expires=NOW)), SITE)
    )


def test_the_one_time_key_and_the_site_key_both_sign_all_facts_of_the_enrolment() -> None:
    facts = (
        f'{{"federation":"{FEDERATION.id}","name":"north","public":"{SITE_PUBLIC}","role":"site",'
        f'"token":"{TOKEN.invitation.token}"}}'
    )
    for public, purpose, signature in (
        (TOKEN.invitation.token, "enrolment", ENTRY.voucher),
        (SITE_PUBLIC, "possession", ENTRY.proof),
    ):
        message = f"foedus/{purpose}/1\n{facts}".encode()
        ed25519.check_signature(public, message, base64.b64decode(signature))


def test_enrolling_twice_with_the_same_key_gives_the_same_entry() -> None:
    assert identity.enrol(identity.read_token(TEXT), SITE) == ENTRY


def test_an_invitation_is_good_until_its_last_second_and_no_longer() -> None:
    verify(ENTRY, at=NOW + 7 * DAY)
    with pytest.raises(Denied, match="the invitation of 'north' expired on 2027-01-22; ask the owner for a new one"):
        verify(ENTRY, at=NOW + 7 * DAY + 1)


def test_an_invitation_that_never_ends_does_not_break_the_message() -> None:
    token = identity.read_token(identity.invite(OWNER, FEDERATION, "north", expires=10**30))
    with pytest.raises(Denied, match="expired on 9999-12-31"):
        verify(identity.enrol(token, SITE), at=10**30 + 1)


ENTRY_LEAVES = list(leaves(plain(ENTRY)))


def test_the_fields_of_an_entry_are_those_tried_below() -> None:
    assert len(ENTRY_LEAVES) == 6 + 3


@pytest.mark.parametrize("path", ENTRY_LEAVES)
@given(data=st.data())
def test_an_entry_with_any_character_of_any_field_changed_is_refused(
    path: tuple[str, ...], data: st.DataObject
) -> None:
    old = at(plain(ENTRY), path)
    if isinstance(old, int):
        new: object = data.draw(st.integers(NOW, 2**70).filter(lambda value: value != old))
    else:
        i = data.draw(st.integers(0, len(old) - 1))
        new = old[:i] + data.draw(st.characters().filter(lambda letter: letter != old[i])) + old[i + 1 :]
    with pytest.raises(Denied):
        verify(read(Entry, changed(plain(ENTRY), path, new)))


@pytest.mark.parametrize("path", [path for path in ENTRY_LEAVES if path[-1] != "expires"])
def test_an_entry_with_a_field_of_another_valid_entry_is_refused(path: tuple[str, ...]) -> None:
    federation = identity.new_federation("x", FEDERATION.urls, SITE_PUBLIC, SITE_PUBLIC, "")
    token = identity.read_token(identity.invite(SITE, federation, "south", "submitter", expires=NOW))
    other = plain(identity.enrol(token, ed25519.new_key()))
    with pytest.raises(Denied):
        verify(read(Entry, changed(plain(ENTRY), path, at(other, path))))


def test_an_entry_of_another_federation_of_the_same_owner_is_refused() -> None:
    twin = identity.new_federation("twin", FEDERATION.urls, OWNER_PUBLIC, FEDERATION.server, "")
    entry = identity.enrol(identity.read_token(identity.invite(OWNER, twin, "north", expires=NOW)), SITE)
    with pytest.raises(Denied, match=f"is of federation {twin.id}, not of {FEDERATION.id}"):
        verify(entry)


def test_an_entry_of_another_owner_is_refused() -> None:
    fake = FEDERATION._replace(owner=SITE_PUBLIC)
    entry = identity.enrol(identity.read_token(identity.invite(SITE, fake, "north", expires=NOW)), ed25519.new_key())
    with pytest.raises(Denied, match="the invitation of 'north': the signature"):
        verify(entry)


def test_without_the_one_time_key_an_invitation_is_worth_nothing() -> None:
    thief = ed25519.new_key()
    stolen = TOKEN._replace(secret=base64.b64encode(thief.private_bytes_raw()).decode())
    with pytest.raises(Denied, match="the enrolment of 'north'"):
        verify(identity.enrol(stolen, thief))


def test_nobody_can_enrol_a_key_that_he_does_not_hold() -> None:
    mine = identity.enrol(TOKEN, ed25519.new_key())
    facts = identity._enrolment(TOKEN.invitation, SITE_PUBLIC)
    voucher = ed25519.sign(identity._one_time_key(TOKEN), "foedus/enrolment/1", facts)
    with pytest.raises(Denied, match="the proof of possession of 'north'"):
        verify(mine._replace(public=SITE_PUBLIC, voucher=voucher))


@pytest.mark.parametrize("public", ["", "AAAA", base64.b64encode(bytes(33)).decode(), "?", "ü"])
def test_what_is_no_public_key_is_refused_as_one(public: str) -> None:
    with pytest.raises(Denied, match="the enrolment of 'north'"):
        verify(ENTRY._replace(public=public))
    facts = identity._enrolment(TOKEN.invitation, public)
    voucher = ed25519.sign(identity._one_time_key(TOKEN), "foedus/enrolment/1", facts)
    with pytest.raises(Denied, match="the proof of possession of 'north'"):
        verify(ENTRY._replace(public=public, voucher=voucher))


def test_the_one_time_key_and_the_owner_key_are_no_site_keys() -> None:
    for key in (identity._one_time_key(TOKEN), OWNER):
        with pytest.raises(Denied, match="a site makes a key of its own"):
            verify(identity.enrol(TOKEN, key))


@pytest.mark.parametrize(("name", "role"), [("north", "owner"), ("../x", "site"), ("", "site")])
def test_even_the_owner_cannot_sign_a_name_or_role_that_is_none(name: str, role: str) -> None:
    token = TOKEN.invitation.token
    invitation = identity.signed(OWNER, Invitation(FEDERATION.id, name, role, token, NOW))
    with pytest.raises(Denied, match="is not one"):
        identity.verify_invitation(invitation, FEDERATION.id, OWNER_PUBLIC)


# Renewals and revocations


@pytest.mark.parametrize("field", Renewal._fields)
def test_a_renewal_with_any_field_changed_is_refused(field: str) -> None:
    renewal = identity.renew(SITE, FEDERATION.id, "north", 1)
    identity.verify_renewal(renewal, FEDERATION.id, SITE_PUBLIC)
    other: dict[str, Any] = {field: 2 if field == "number" else OWNER_PUBLIC}
    with pytest.raises(Denied):
        identity.verify_renewal(renewal._replace(**other), FEDERATION.id, SITE_PUBLIC)


@pytest.mark.parametrize("field", Revocation._fields)
def test_a_revocation_with_any_field_changed_is_refused(field: str) -> None:
    revocation = identity.signed(OWNER, Revocation(FEDERATION.id, "north", SITE_PUBLIC, NOW, "left"))
    identity.verify_revocation(revocation, FEDERATION.id, OWNER_PUBLIC)
    other: dict[str, Any] = {field: 2 if field == "at" else OWNER_PUBLIC}
    with pytest.raises(Denied):
        identity.verify_revocation(revocation._replace(**other), FEDERATION.id, OWNER_PUBLIC)


def test_a_signed_statement_of_one_kind_is_none_of_another() -> None:
    revocation = Revocation(FEDERATION.id, "north", SITE_PUBLIC, NOW, "left")
    body = {name: value for name, value in plain(revocation).items() if name != "signature"}
    right, wrong = (ed25519.sign(OWNER, f"foedus/{kind}/1", body) for kind in ("revocation", "renewal"))
    identity.verify_revocation(revocation._replace(signature=right), FEDERATION.id, OWNER_PUBLIC)
    with pytest.raises(Denied):
        identity.verify_revocation(revocation._replace(signature=wrong), FEDERATION.id, OWNER_PUBLIC)


# Plain data


@pytest.mark.parametrize(
    ("obj", "expected"),
    [
        ({"b": 1, "a": [True, None, "ü"]}, '{"a":[true,null,"ü"],"b":1}'),
        ((1, -2.5, 1e300), "[1,-2.5,1e+300]"),
        ({"é": 0, "z": 0, "": 0, "Z": 0}, '{"":0,"Z":0,"z":0,"é":0}'),
        ('\n"\\', '"\\n\\"\\\\"'),
    ],
)
def test_the_canonical_form_is_sorted_and_without_white_space(obj: object, expected: str) -> None:
    assert canonical(obj) == expected.encode()


def deep() -> list[Any]:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    return nested


@pytest.mark.parametrize("obj", [float("nan"), float("inf"), {1: 2}, {"a": {None: 1}}, b"x", "\ud800", {1}, deep()])
def test_what_has_no_canonical_form_is_refused(obj: object) -> None:
    with pytest.raises(WireError, match="no canonical JSON form"):
        canonical({"x": [obj]})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_reading_the_canonical_form_and_writing_it_again_changes_no_byte(obj: Any) -> None:
    text = canonical(obj)
    assert parse(text) == obj
    assert canonical(parse(text)) == text


@pytest.mark.parametrize("text", [b'{"a":1,"a":2}', b"NaN", b"[Infinity]", b"\xff", b"{", b"", b"[" * 200_000])
def test_json_that_two_readers_could_read_differently_is_refused(text: bytes) -> None:
    with pytest.raises(WireError, match="not JSON of ours"):
        parse(text)


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        plain(FEDERATION) | {"more": 1},
        {name: value for name, value in plain(FEDERATION).items() if name != "id"},
        plain(FEDERATION) | {"id": 1},
        plain(FEDERATION) | {"urls": "https://a.example"},
        plain(FEDERATION) | {"urls": [1]},
    ],
)
def test_a_record_with_other_fields_or_types_is_refused(data: object) -> None:
    with pytest.raises(WireError, match="Federation"):
        read(Federation, data)


def test_a_record_comes_back_as_it_was_and_a_truth_value_is_no_integer() -> None:
    assert read(Token, parse(canonical(plain(TOKEN)))) == TOKEN
    with pytest.raises(WireError, match=r"Invitation\.expires is bool, not int"):
        read(Invitation, plain(TOKEN.invitation) | {"expires": True})
