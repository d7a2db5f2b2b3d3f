"""The server's TLS certificate, self-signed and pinned by the sites, and the TLS settings of both ends.
Host names and PEM come in; TLS authenticates the server only, and no client certificate is ever asked for."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from foedus.errors import FoedusError
from foedus.wire.ed25519 import read_secret

_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL, which the ssl module does not name
_BACKDATED = timedelta(days=30)  # for browsers whose clock is behind


def self_signed(hosts: Sequence[str], days: int = 3650) -> tuple[bytes, bytes]:
    """(certificate, private key) as PEM: ECDSA P-256, valid for the given host names and IP addresses."""
    if not hosts or "" in hosts:
        raise FoedusError("the server's certificate needs at least one host name or IP address; name one")
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _builder(hosts, days, key.public_key()).sign(key, hashes.SHA256())
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return certificate.public_bytes(serialization.Encoding.PEM), key.private_bytes(*form)


def _builder(hosts: Sequence[str], days: int, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    name, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "foedus server")]), datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(public)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - _BACKDATED).not_valid_after(now + timedelta(days=days))
    builder = builder.add_extension(x509.SubjectAlternativeName([_alternative(host) for host in hosts]), critical=False)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    # No authority: whoever holds this key is the server, and can make nobody else one.
    return builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host.encode("idna").decode())
    except ValueError:
        raise FoedusError(f"the server's certificate: {host!r} is no host name or IP address; mend it") from None


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """The server's TLS settings, TLS 1.2 or newer; Denied where others can read the key file."""
    read_secret(key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    return context


def pinned_context(certificate: str) -> ssl.SSLContext:
    """A site's TLS settings: only the server with this PEM certificate is trusted; "" leaves it to the system.

    A pinned server certificate is compared whole, so neither the host name nor the site's clock is asked. A pinned
    authority's certificate vouches for many servers, so with it both are checked.
    """
    context = ssl.create_default_context(cadata=certificate or None)
    if certificate and not _names_authority(certificate):
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    return context


def _names_authority(pem: str) -> bool:
    return any(_is_authority(certificate) for certificate in x509.load_pem_x509_certificates(pem.encode()))


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:  # certificates of old may sign others without saying so
        return True
