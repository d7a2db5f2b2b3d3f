"""Ed25519 key pairs (RFC 8032) of owners, servers and sites: their files, their public text, signatures with a purpose.
Private keys come in from files of mode 0600 only, public keys and signatures as canonical base64 text."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import secrets
import shlex
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from foedus.errors import Denied, WireError
from foedus.wire.plain import canonical

_PUBLIC_BYTES = 32
_PURPOSE = re.compile(r"foedus/[a-z]+/[0-9]+")


def new_key() -> Ed25519PrivateKey:
    """A fresh private key."""
    return Ed25519PrivateKey.generate()


def key_from_seed(seed: bytes) -> Ed25519PrivateKey:
    """The private key of 32 secret bytes (RFC 8032, 5.1.5); ValueError for any other number."""
    return Ed25519PrivateKey.from_private_bytes(seed)


def derived(key: Ed25519PrivateKey, purpose: str) -> str:
    """64 hex digits that only who has the key can make; they say nothing of it, or of those for another purpose."""
    made = HKDF(SHA256(), 32, salt=None, info=f"foedus/secret/1/{purpose}".encode())
    return made.derive(key.private_bytes_raw()).hex()


def public_text(key: Ed25519PrivateKey) -> str:
    """The public key as base64 text of its 32 bytes: how keys are named in registers and envelopes."""
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def fingerprint(public: str) -> str:
    """128 bits of SHA-256 over the public key, for people to compare by voice: eight groups of four hex digits."""
    digits = hashlib.sha256(unbase64(public)).hexdigest()[:32]
    return "-".join(digits[i : i + 4] for i in range(0, 32, 4))


def unbase64(text: str) -> bytes:
    """The bytes of standard base64; WireError unless `text` is their only canonical spelling.

    Were two spellings read alike, a revoked key could come back under the other one.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        raise WireError("this is not base64") from None
    if base64.b64encode(data).decode() != text:
        raise WireError("this is not canonical base64")
    return data


def sign(key: Ed25519PrivateKey, purpose: str, obj: object) -> str:
    """The base64 signature of `obj` for one purpose, such as "foedus/invitation/1": no other purpose accepts it."""
    return base64.b64encode(key.sign(_message(purpose, obj))).decode()


def verify(public: str, purpose: str, obj: object, signature: str, what: str) -> None:
    """Denied, naming `what`, unless `signature` is that of the key `public` over `obj` for `purpose`."""
    try:
        check_signature(public, _message(purpose, obj), unbase64(signature))
    except (WireError, InvalidSignature):
        raise Denied(
            f"{what}: the signature does not match its content and its key; it was changed or forged"
        ) from None


def check_signature(public: str, message: bytes, signature: bytes) -> None:
    """InvalidSignature or WireError unless the key `public` signed exactly these bytes."""
    raw = unbase64(public)
    if len(raw) != _PUBLIC_BYTES:
        raise WireError(f"an Ed25519 public key has {_PUBLIC_BYTES} bytes")
    Ed25519PublicKey.from_public_bytes(raw).verify(signature, message)


def _message(purpose: str, obj: object) -> bytes:
    # A purpose holds no line feed and starts unlike an HTTP signature base, so no two kinds of message are ever equal.
    if not _PURPOSE.fullmatch(purpose):
        raise WireError(f"{purpose!r} is no purpose; write foedus/WORD/VERSION")
    return purpose.encode() + b"\n" + canonical(obj)


def save_key(path: Path, key: Ed25519PrivateKey) -> None:
    """Writes the private key to a new file (PKCS #8 PEM, mode 0600, fsynced); a file that exists stays: Denied."""
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    write_secret(path, key.private_bytes(*form))


def load_key(path: Path) -> Ed25519PrivateKey:
    """The private key of a PEM file; Denied where others could read it or it is no Ed25519 key."""
    try:
        key = serialization.load_pem_private_key(read_secret(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise Denied(f"key file {path}: this is not an unencrypted Ed25519 key in PEM; restore it from its backup")
    return key


def write_secret(path: Path, data: bytes) -> None:
    """Writes a new file of mode 0600, whole or not at all, and durably; a file that exists stays: Denied."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)  # unlike a rename it never replaces a key
    except FileExistsError:
        raise Denied(f"key file {path} exists and is kept; move it away first if it is not needed") from None
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def read_secret(path: Path) -> bytes:
    """The bytes of a file that nobody but its owner can read; Denied with the chmod line otherwise."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            if mode & 0o077 and os.name == "posix":
                raise Denied(
                    f"key file {path}: others can use it (mode {mode:04o}); run: chmod 600 {shlex.quote(str(path))}"
                )
            return file.read()
    except FileNotFoundError:
        raise Denied(f"key file {path}: there is none; restore it from its backup or join anew") from None


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
