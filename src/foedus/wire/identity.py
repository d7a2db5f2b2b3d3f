"""Who is who: a federation's facts, and the statements that owners and sites sign to join, to stay and to leave.
Signed statements come in from anybody; what has not been verified here is nobody's word.

A name joins in four steps, none of which needs the owner's key at the server. (1) The owner signs an Invitation of a
fresh one-time public key. (2) The token carries it with the one-time private key. (3) The site makes its own key, lets
the one-time key sign it, and signs the same facts with it (so nobody enrols a key that he does not hold): the Entry,
which is the site's certificate. (4) The server appends the Entry to the register, whose rules are in `register.py`.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from foedus.errors import Denied, FoedusError, WireError
from foedus.wire.ed25519 import key_from_seed, new_key, public_text, sign, unbase64, verify
from foedus.wire.plain import canonical, parse, plain, read

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")  # safe as a folder on any system and inside an HTTP header
_TOKEN = "foedus1."
_CHECK = 8  # bytes of SHA-256 that tell a damaged paste from a token
_LAST = 253_402_300_799  # the last second that a calendar can show: 9999-12-31


class Federation(NamedTuple):
    """What a site must know of its federation; `owner` and `server` are public keys, `certificate` is PEM.

    `server` signs Tasks, so that a proxy that ends TLS cannot. Where `certificate` is empty, the system's own
    certificate authorities vouch for the server.
    """

    id: str
    name: str
    urls: tuple[str, ...]
    owner: str
    server: str
    certificate: str


class Invitation(NamedTuple):
    """The owner's word that whoever holds the one-time key may enrol one key under this name, until `expires`."""

    federation: str
    name: str
    role: str
    token: str
    expires: int
    signature: str = ""


class Token(NamedTuple):
    """All that enrolling needs; `secret` is the one-time private key, so the whole is a secret."""

    federation: Federation
    invitation: Invitation
    secret: str

    def __repr__(self) -> str:
        return f"Token({self.invitation.name!r}, federation={self.federation.name!r})"


class Entry(NamedTuple):
    """A register entry, the site's certificate: `voucher` is by the one-time key, `proof` by the site's own."""

    invitation: Invitation
    public: str
    voucher: str
    proof: str


class Renewal(NamedTuple):
    """A site's wish to stay, signed by the same key; `number` counts its renewals from 1."""

    federation: str
    name: str
    public: str
    number: int
    signature: str = ""


class Revocation(NamedTuple):
    """The owner's word that a site's key, or the one-time key of an invitation, is good for nothing from now on."""

    federation: str
    name: str
    public: str
    at: int
    reason: str
    signature: str = ""


S = TypeVar("S", Invitation, Renewal, Revocation)


def day(seconds: int) -> str:
    """The UTC date of Unix seconds, as text for people."""
    return datetime.fromtimestamp(min(max(seconds, 0), _LAST), UTC).strftime("%Y-%m-%d")


def new_federation(name: str, urls: tuple[str, ...], owner: str, server: str, certificate: str) -> Federation:
    """A federation with a random id; FoedusError unless it has a URL and each is https."""
    for url in urls or ("",):
        if not url.startswith("https://"):
            raise FoedusError(f"federation {name!r}: {url!r} is no address for sites; give one with https://")
    return Federation(secrets.token_hex(16), name, urls, owner, server, certificate)


def invite(
    owner_key: Ed25519PrivateKey,
    federation: Federation,
    name: str,
    role: Literal["site", "submitter"] = "site",
    *,
    expires: int,
) -> str:
    """A one-time token, one line to hand over in secret; `expires` in Unix seconds, judged by the server alone."""
    if public_text(owner_key) != federation.owner:
        raise Denied(f"inviting {name!r}: this is not the owner key of federation {federation.name!r}; use that one")
    if not NAME.fullmatch(name):
        raise Denied(f"inviting {name!r}: a name has 1 to 63 of a-z 0-9 . _ - and starts with a letter or digit")
    key = new_key()
    invitation = signed(owner_key, Invitation(federation.id, name, role, public_text(key), expires))
    return write_token(Token(federation, invitation, base64.b64encode(key.private_bytes_raw()).decode()))


def write_token(token: Token) -> str:
    """The token as one line: `foedus1.` and base64url of its canonical JSON with a checksum."""
    body = canonical(plain(token))
    return _TOKEN + base64.urlsafe_b64encode(body + _checksum(body)).decode().rstrip("=")


def read_token(text: str) -> Token:
    """The token of a pasted line (white space is ignored); Denied where it is damaged or nobody signed it."""
    token = _unpack("".join(text.split()))
    verify_invitation(token.invitation, token.federation.id, token.federation.owner)
    return token


def _unpack(text: str) -> Token:
    coded = text.removeprefix(_TOKEN)
    if coded == text:
        raise Denied(f"this is no token of foedus, which starts with {_TOKEN!r}; copy all of it")
    try:
        token = read(Token, parse(base64.urlsafe_b64decode(coded + "=" * (-len(coded) % 4))[:-_CHECK]))
        if write_token(token) != text:
            raise WireError("its checksum differs")
        if public_text(_one_time_key(token)) != token.invitation.token:
            raise WireError("its key is not that of its invitation")
        return token
    except (WireError, ValueError) as error:
        raise Denied(f"the token is damaged ({error}); copy it again, in one piece") from None


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:_CHECK]


def _one_time_key(token: Token) -> Ed25519PrivateKey:
    return key_from_seed(unbase64(token.secret))


def token_id(text: str) -> str:
    """The one-time public key of a token: what the register remembers as spent, and what a Revocation may name."""
    return read_token(text).invitation.token


def enrol(token: Token, site_key: Ed25519PrivateKey) -> Entry:
    """The entry that asks the register to take the site's own key; it is the same each time, so a retry is safe."""
    public = public_text(site_key)
    facts = _enrolment(token.invitation, public)
    voucher = sign(_one_time_key(token), "foedus/enrolment/1", facts)
    return Entry(token.invitation, public, voucher, sign(site_key, "foedus/possession/1", facts))


def _enrolment(invitation: Invitation, public: str) -> dict[str, str]:
    names = ("federation", "name", "role", "token")
    return {name: getattr(invitation, name) for name in names} | {"public": public}


def verify_invitation(invitation: Invitation, federation: str, owner: str) -> None:
    """Denied unless the owner of this federation signed the invitation; says nothing about its age."""
    _verify(owner, invitation, federation)
    if invitation.role not in ("site", "submitter") or not NAME.fullmatch(invitation.name):
        raise Denied(f"the invitation of {invitation.name!r} as {invitation.role!r} is not one; ask for a new one")


def verify_entry(entry: Entry, federation: str, owner: str, at: int) -> None:
    """Denied unless the entry could be recorded at Unix second `at`: invitation, voucher and proof all hold."""
    invitation = entry.invitation
    verify_invitation(invitation, federation, owner)
    if at > invitation.expires:
        raise Denied(
            f"the invitation of {invitation.name!r} expired on {day(invitation.expires)}; ask the owner for a new one"
        )
    if entry.public in (invitation.token, owner):
        raise Denied(f"the entry of {invitation.name!r} uses the key of somebody else; a site makes a key of its own")
    facts = _enrolment(invitation, entry.public)
    verify(invitation.token, "foedus/enrolment/1", facts, entry.voucher, f"the enrolment of {invitation.name!r}")
    verify(entry.public, "foedus/possession/1", facts, entry.proof, f"the proof of possession of {invitation.name!r}")


def renew(site_key: Ed25519PrivateKey, federation: str, name: str, number: int) -> Renewal:
    """The site's signed wish to stay; `number` is one more than the register's, so retrying a lost one is harmless."""
    return signed(site_key, Renewal(federation, name, public_text(site_key), number))


def verify_renewal(renewal: Renewal, federation: str, public: str) -> None:
    """Denied unless the key `public`, the one that is in the register, signed the renewal."""
    if renewal.public != public:
        raise Denied(f"the renewal of {renewal.name!r} is by another key than its entry; renew with the same key")
    _verify(public, renewal, federation)


def signed(key: Ed25519PrivateKey, statement: S) -> S:
    """The statement with the signature of `key`: how an owner signs a Revocation.

    Its `public` is the site's key, or that of a token (`token_id`) which nobody should use any more.
    """
    return statement._replace(signature=sign(key, *_statement(statement)))


def verify_revocation(revocation: Revocation, federation: str, owner: str) -> None:
    """Denied unless the owner of this federation signed the revocation."""
    _verify(owner, revocation, federation)


def _verify(public: str, statement: Invitation | Renewal | Revocation, federation: str) -> None:
    kind = type(statement).__name__.lower()
    if statement.federation != federation:
        raise Denied(f"the {kind} of {statement.name!r} is of federation {statement.federation}, not of {federation}")
    verify(public, *_statement(statement), statement.signature, f"the {kind} of {statement.name!r}")


def _statement(statement: Invitation | Renewal | Revocation) -> tuple[str, dict[str, Any]]:
    body = plain(statement)
    del body["signature"]
    return f"foedus/{type(statement).__name__.lower()}/1", body
