"""Signed requests in the shape of RFC 9421 (HTTP Message Signatures), and signed envelopes around what they carry.
Headers and envelopes come in from anybody; a Claim or a body goes out only when its signature holds.

The digest and the length of the whole body are signed, so both are known before its first byte is taken. The authority
is not signed, as proxies rewrite it; the federation's id, in the standard `tag`, ties a request to its server instead.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from foedus.errors import Denied, WireError
from foedus.wire.ed25519 import check_signature, public_text, sign, unbase64, verify
from foedus.wire.identity import NAME
from foedus.wire.plain import plain, read

_COVERED = ("@method", "@path", "@query", "content-digest", "content-length")
_NUMBER = r"(0|[1-9][0-9]{0,14})"  # an integer of structured fields (RFC 8941) that is not negative
_SHA256 = r"[0-9a-f]{64}"
_INPUT = re.compile(
    r"foedus=\(" + " ".join(f'"{name}"' for name in _COVERED) + rf'\);keyid="(?P<keyid>{NAME.pattern})"'
    rf';nonce="(?P<nonce>[A-Za-z0-9_-]{{1,64}})";counter=(?P<counter>{_NUMBER});life=(?P<life>{_NUMBER})'
    r';alg="ed25519";tag="(?P<federation>[a-z0-9]{1,64})"'
)
_TARGET = re.compile(r"[A-Z]+ /[!-~]* [!-~]*")  # no line feed: it would forge a component


class Target(NamedTuple):
    """The request line: path and query as they are sent, percent-encoded, without the "?" between them."""

    method: str
    path: str
    query: str = ""


class Claim(NamedTuple):
    """What a request says of itself: who asks, in which life of the agent, how fresh, and which body follows.

    `digest` is the SHA-256 of the whole body as 64 hex digits, `length` its bytes; see `freshness` for the rest.
    """

    federation: str
    keyid: str
    life: int
    nonce: str
    counter: int
    digest: str
    length: int


class Envelope(NamedTuple):
    """A body, the public key that signed it, and the signature."""

    body: dict[str, Any]
    by: str
    signature: str


def signature_params(names: Iterable[str], parameters: Mapping[str, str | int]) -> str:
    """The value of "@signature-params": the covered names and the parameters, in the order given (RFC 9421, 2.3)."""
    values = (
        f";{name}={value}" if isinstance(value, int) else f';{name}="{value}"' for name, value in parameters.items()
    )
    return "(" + " ".join(f'"{name}"' for name in names) + ")" + "".join(values)


def signature_base(components: Iterable[tuple[str, str]], params: str) -> bytes:
    """The bytes that are signed: one line a component, then the parameters (RFC 9421, 2.5)."""
    return "\n".join(f'"{name}": {value}' for name, value in (*components, ("@signature-params", params))).encode()


def sign_request(key: Ed25519PrivateKey, claim: Claim, target: Target) -> dict[str, str]:
    """The headers that authenticate a request; WireError where claim or target cannot be written as HTTP."""
    params = _params(claim)
    written = (_INPUT, f"foedus={params}"), (_SHA256, claim.digest), (_NUMBER, str(claim.length))
    if not all(re.fullmatch(pattern, text) for pattern, text in written):
        raise WireError(f"request of {claim.keyid!r}: {claim} cannot be written as headers; use the issued values")
    signature = key.sign(_request_base(claim, target))
    return {
        "Content-Digest": _content_digest(claim),
        "Content-Length": str(claim.length),
        "Signature-Input": f"foedus={params}",
        "Signature": f"foedus=:{base64.b64encode(signature).decode()}:",
    }


def verify_request(public: Callable[[str], str], federation: str, target: Target, headers: Mapping[str, str]) -> Claim:
    """The claim of a request whose signature holds; Denied otherwise.

    `public` gives the public key of a key id, or raises Denied (`Register.admit` says who may act). The caller then
    asks `Nonces.accept` for freshness, and compares the body with digest and length while it reads.
    """
    values = {name.lower(): value for name, value in headers.items()}
    if len(values) != len(headers):
        raise Denied("a header of the request comes twice; send each once")
    claim = _read_claim(values)
    if claim.federation != federation:
        raise Denied(
            f"request of {claim.keyid!r} is for federation {claim.federation}, not {federation}; check the URL"
        )
    key = public(claim.keyid)
    try:
        signature = _between("foedus=:", values.get("signature", ""))
        check_signature(key, _request_base(claim, target), signature)
    except (WireError, InvalidSignature):
        raise Denied(
            f"request of {claim.keyid!r}: the signature does not match {target.method} {target.path!r}; it "
            "was changed on its way, or another key signed it"
        ) from None
    return claim


def sign_envelope(key: Ed25519PrivateKey, purpose: str, body: dict[str, Any]) -> dict[str, Any]:
    """The signed envelope of a body as plain data: {body, by, signature}."""
    return plain(Envelope(body, public_text(key), sign(key, purpose, body)))


def open_envelope(envelope: object, purpose: str, public: str) -> dict[str, Any]:
    """The body of an envelope that the key `public` signed for this purpose; Denied otherwise."""
    try:
        found = read(Envelope, envelope)
    except WireError as error:
        raise Denied(f"envelope for {purpose}: {error}; nothing of it is used") from None
    if found.by != public:
        raise Denied(f"envelope for {purpose}: signed by the key {found.by}, not by {public}; nothing of it is used")
    verify(public, purpose, found.body, found.signature, f"envelope for {purpose}")
    return found.body


def _params(claim: Claim) -> str:
    parameters: dict[str, str | int] = {"keyid": claim.keyid, "nonce": claim.nonce, "counter": claim.counter}
    return signature_params(_COVERED, parameters | {"life": claim.life, "alg": "ed25519", "tag": claim.federation})


def _content_digest(claim: Claim) -> str:
    return f"sha-256=:{base64.b64encode(bytes.fromhex(claim.digest)).decode()}:"


def _request_base(claim: Claim, target: Target) -> bytes:
    if not _TARGET.fullmatch(" ".join(target)):
        raise WireError(f"{target} is no request line; percent-encode it")
    values = target.method, target.path, f"?{target.query}", _content_digest(claim), str(claim.length)
    return signature_base(zip(_COVERED, values, strict=True), _params(claim))


def _read_claim(values: Mapping[str, str]) -> Claim:
    """The claim as it is written, not verified yet; any spelling but the one that `sign_request` writes is refused."""
    found, length = _INPUT.fullmatch(values.get("signature-input", "")), values.get("content-length", "0")
    try:
        digest = _between("sha-256=:", values.get("content-digest", "")).hex()
    except WireError:
        digest = ""
    if found is None or not re.fullmatch(_SHA256, digest) or not re.fullmatch(_NUMBER, length):
        raise Denied("the request is not signed as foedus signs; send Content-Digest, Signature-Input and Signature")
    numbers = int(found["life"]), found["nonce"], int(found["counter"])
    return Claim(found["federation"], found["keyid"], *numbers, digest, int(length))


def _between(start: str, value: str) -> bytes:
    if not (value.startswith(start) and value.endswith(":")):
        raise WireError("this is no byte sequence")
    return unbase64(value.removeprefix(start)[:-1])
