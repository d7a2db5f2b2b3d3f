"""Signed requests and envelopes: the published example of RFC 9421, and no header, target or body can be changed."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foedus.errors import Denied, WireError
from foedus.wire import ed25519
from foedus.wire.freshness import Nonces
from foedus.wire.signing import (
    Claim,
    Target,
    open_envelope,
    sign_envelope,
    sign_request,
    signature_base,
    signature_params,
    verify_request,
)

SITE, OTHER = ed25519.new_key(), ed25519.new_key()
PUBLIC = ed25519.public_text(SITE)
FEDERATION = "0123456789abcdef0123456789abcdef"
BODY = b'{"hello": "world"}'
CLAIM = Claim(FEDERATION, "north", 3, "bm9uY2U-_w", 12, hashlib.sha256(BODY).hexdigest(), len(BODY))
TARGET = Target("POST", "/runs/7/updates", "task=2&part=1")
HEADERS = sign_request(SITE, CLAIM, TARGET)


def verify(headers: Mapping[str, str], target: Target = TARGET, public: str = PUBLIC) -> Claim:
    return verify_request(lambda keyid: public, FEDERATION, target, headers)


# RFC 9421, B.2.6 with the key of B.1.4


def test_the_published_example_of_a_request_signed_with_ed25519_is_reproduced() -> None:
    components = [
        ("date", "Tue, 20 Apr 2021 02:07:55 GMT"),
        ("@method", "POST"),
        ("@path", "/foo"),
        ("@authority", "example.com"),
        ("content-type", "application/json"),
        ("content-length", "18"),
    ]
    params = signature_params([name for name, _ in components], {"created": 1618884473, "keyid": "test-key-ed25519"})
    base = signature_base(components, params)
    assert base.decode() == (
        '"date": Tue, 20 Apr 2021 02:07:55 GMT\n'
        '"@method": POST\n'
        '"@path": /foo\n'
        '"@authority": example.com\n'
        '"content-type": application/json\n'
        '"content-length": 18\n'
        '"@signature-params": ("date" "@method" "@path" "@authority" "content-type" "content-length")'
        ';created=1618884473;keyid="test-key-ed25519"'
    )
    key = ed25519.key_from_seed(base64.urlsafe_b64decode("n4Ni-HpISpVObnQMW0wOhCKROaIKqKtW_2ZYb2p9KcU="))
    public = base64.b64encode(base64.urlsafe_b64decode("JrQLj5P_89iXES9-vFgrIy29clF9CC_oPPsw3c5D0bs=")).decode()
    assert ed25519.public_text(key) == public
    signature = "wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw=="
    assert base64.b64encode(key.sign(base)).decode() == signature
    ed25519.check_signature(public, base, base64.b64decode(signature))


def test_the_headers_have_the_shape_of_rfc_9421() -> None:
    assert HEADERS["Content-Digest"] == "sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:"  # RFC 9530, D
    assert HEADERS["Content-Length"] == "18"
    assert HEADERS["Signature-Input"] == (
        'foedus=("@method" "@path" "@query" "content-digest" "content-length")'
        f';keyid="north";nonce="bm9uY2U-_w";counter=12;life=3;alg="ed25519";tag="{FEDERATION}"'
    )
    signed = (
        '"@method": POST\n"@path": /runs/7/updates\n"@query": ?task=2&part=1\n'
        '"content-digest": sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:\n"content-length": 18\n'
        f'"@signature-params": {HEADERS["Signature-Input"].removeprefix("foedus=")}'
    )
    signature = HEADERS["Signature"].removeprefix("foedus=:").removesuffix(":")
    SITE.public_key().verify(base64.b64decode(signature), signed.encode())


# Requests


def test_a_signed_request_gives_back_its_claim() -> None:
    assert verify(HEADERS) == CLAIM
    assert verify({name.lower(): value for name, value in HEADERS.items()} | {"host": "a.example"}) == CLAIM


def test_a_request_without_a_body_needs_no_content_length() -> None:
    claim = CLAIM._replace(digest=hashlib.sha256(b"").hexdigest(), length=0)
    headers = sign_request(SITE, claim, Target("GET", "/tasks"))
    del headers["Content-Length"]  # proxies drop a length of 0
    assert verify(headers, Target("GET", "/tasks")) == claim


@pytest.mark.parametrize("name", HEADERS)
def test_a_request_without_one_of_its_headers_is_refused(name: str) -> None:
    with pytest.raises(Denied):
        verify({other: value for other, value in HEADERS.items() if other != name})


@pytest.mark.parametrize("name", HEADERS)
def test_a_request_with_any_character_of_any_header_changed_is_refused(name: str) -> None:
    value = HEADERS[name]
    for i, old in enumerate(value):
        for letter in {"0", "A", "/", '"', " ", "\n", chr(ord(old) ^ 1)} - {old}:
            for text in (value[:i] + letter + value[i + 1 :], value[:i] + letter + value[i:]):
                with pytest.raises(Denied):
                    verify(HEADERS | {name: text})


@pytest.mark.parametrize("name", HEADERS)
@given(text=st.text(max_size=200))
def test_no_header_text_makes_the_check_fail_in_another_way(name: str, text: str) -> None:
    with pytest.raises(Denied):
        verify(HEADERS | {name: text})


@pytest.mark.parametrize(
    "target",
    [
        TARGET._replace(method="PUT"),
        TARGET._replace(method="post"),
        TARGET._replace(path="/runs/8/updates"),
        TARGET._replace(path="/runs/7/updates/"),
        TARGET._replace(query="task=2&part=2"),
        TARGET._replace(query=""),
        Target("POST", "/runs/7/updates?task=2&part=1"),
    ],
)
def test_a_signature_for_one_target_is_none_for_another(target: Target) -> None:
    with pytest.raises(Denied, match="'north': the signature does not match"):
        verify(HEADERS, target)


def test_a_request_signed_by_another_key_is_refused() -> None:
    with pytest.raises(Denied, match="another key signed it"):
        verify(HEADERS, public=ed25519.public_text(OTHER))


def test_a_request_for_another_federation_is_refused_although_the_key_is_right() -> None:
    with pytest.raises(Denied, match=f"is for federation {FEDERATION}, not"):
        verify_request(lambda keyid: PUBLIC, "f" * 32, TARGET, HEADERS)


def test_whoever_may_not_act_is_refused_by_the_lookup_of_his_key() -> None:
    def nobody(keyid: str) -> str:
        raise Denied(f"{keyid} is not in the register")

    with pytest.raises(Denied, match="north is not in the register"):
        verify_request(nobody, FEDERATION, TARGET, HEADERS)


def test_a_header_that_comes_twice_is_refused() -> None:
    with pytest.raises(Denied, match="twice"):
        verify(HEADERS | {"content-length": "19"})


@pytest.mark.parametrize(
    "change",
    [
        {"keyid": 'north";life=9;x="'},
        {"keyid": "North"},
        {"nonce": ""},
        {"nonce": 'x"'},
        {"counter": -1},
        {"counter": 10**15},
        {"life": -1},
        {"length": -1},
        {"federation": "x y"},
        {"digest": "00"},
        {"digest": hashlib.sha256(b"").hexdigest().upper()},
    ],
)
def test_what_the_headers_cannot_say_is_not_signed(change: dict[str, Any]) -> None:
    with pytest.raises(WireError, match="cannot be written as headers"):
        sign_request(SITE, CLAIM._replace(**change), TARGET)


@pytest.mark.parametrize(
    "target",
    [
        Target("POST", '/a\n"@query": ?b'),
        Target("POST", "/a", 'b\n"content-length": 0'),
        Target('POST\n"@path": /', "/a"),
        Target("POST", "/a b"),
        Target("POST", "a"),
        Target("POST", "/ä"),
    ],
)
def test_a_target_that_could_forge_a_line_of_the_signature_base_is_neither_signed_nor_verified(target: Target) -> None:
    with pytest.raises(WireError, match="no request line"):
        sign_request(SITE, CLAIM, target)
    with pytest.raises(Denied):
        verify(HEADERS, target)


def test_a_line_that_moves_from_one_component_to_another_changes_the_base() -> None:
    first, second = Target("GET", "/a", "b"), Target("GET", "/a?b")
    claim = CLAIM._replace(digest=hashlib.sha256(b"").hexdigest(), length=0)
    with pytest.raises(Denied):
        verify(sign_request(SITE, claim, first), second)


def test_no_clock_is_asked_for_freshness(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked() -> float:
        raise AssertionError("a clock was asked")

    nonces = Nonces()
    with monkeypatch.context() as patch:  # a clock three days off, or none at all, is then the same
        for name in ("time", "time_ns", "monotonic", "monotonic_ns"):
            patch.setattr(time, name, asked)
        claim = CLAIM._replace(nonce=nonces.issue("north"), counter=1)
        found = verify(sign_request(SITE, claim, TARGET))
        nonces.accept(found.keyid, found.nonce, found.counter)
    with pytest.raises(Denied, match="replay"):
        nonces.accept(found.keyid, found.nonce, found.counter)


# Envelopes

UPDATE = {"run": "r7", "round": 3, "weight": 120.0, "metrics": {"loss": [0.5, 1.25]}, "note": "ü"}
ENVELOPE = sign_envelope(SITE, "foedus/update/1", UPDATE)


def test_an_envelope_gives_back_its_body() -> None:
    assert set(ENVELOPE) == {"body", "by", "signature"}
    assert open_envelope(ENVELOPE, "foedus/update/1", PUBLIC) == UPDATE


@pytest.mark.parametrize(
    "change",
    [
        {"run": "r8"},
        {"round": 4},
        {"round": True},
        {"round": 3.0},
        {"weight": 120.00000000000001},
        {"metrics": {"loss": [1.25, 0.5]}},
        {"more": None},
        {"note": "u\u0308"},
        {"note": "\ud800"},
        {"weight": float("nan")},
    ],
)
def test_an_envelope_whose_body_was_changed_in_any_way_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(Denied, match="envelope for foedus/update/1"):
        open_envelope(ENVELOPE | {"body": UPDATE | change}, "foedus/update/1", PUBLIC)


@pytest.mark.parametrize("name", ["by", "signature"])
def test_an_envelope_with_any_character_of_signer_or_signature_changed_is_refused(name: str) -> None:
    value = ENVELOPE[name]
    for i, old in enumerate(value):
        for letter in {"A", "=", "-", chr(ord(old) ^ 1)} - {old}:
            with pytest.raises(Denied):
                open_envelope(ENVELOPE | {name: value[:i] + letter + value[i + 1 :]}, "foedus/update/1", PUBLIC)


def test_an_envelope_for_another_purpose_or_by_another_key_is_refused() -> None:
    with pytest.raises(Denied, match="foedus/task/1: the signature"):
        open_envelope(ENVELOPE, "foedus/task/1", PUBLIC)
    with pytest.raises(Denied, match="signed by the key"):
        open_envelope(ENVELOPE, "foedus/update/1", ed25519.public_text(OTHER))
    posing = sign_envelope(OTHER, "foedus/update/1", UPDATE) | {"by": PUBLIC}
    with pytest.raises(Denied, match="the signature does not match"):
        open_envelope(posing, "foedus/update/1", PUBLIC)


@pytest.mark.parametrize(
    "envelope", [None, [], "x", {}, ENVELOPE | {"more": 1}, ENVELOPE | {"body": []}, ENVELOPE | {"signature": None}]
)
def test_what_is_no_envelope_is_refused(envelope: object) -> None:
    with pytest.raises(Denied, match="Envelope"):
        open_envelope(envelope, "foedus/update/1", PUBLIC)
