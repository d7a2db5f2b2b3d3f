"""TLS in memory: a site trusts the one certificate that it pinned, whatever its clock says, and no other."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from foedus.errors import Denied, FoedusError
from foedus.wire.certificate import pinned_context, self_signed, server_context
from foedus.wire.ed25519 import write_secret

HOSTS = ["foedus.example", "10.0.0.5", "::1"]


def server(folder: Path, certificate: bytes, key: bytes) -> ssl.SSLContext:
    (folder / "cert.pem").write_bytes(certificate)
    write_secret(folder / "key.pem", key)
    return server_context(folder / "cert.pem", folder / "key.pem")


def handshake(site: ssl.SSLContext, server: ssl.SSLContext, host: str = "foedus.example") -> ssl.SSLObject:
    one, two = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours, theirs = site.wrap_bio(one, two, server_hostname=host), server.wrap_bio(two, one, server_side=True)
    for _ in range(4):
        for side in (ours, theirs):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    ours.write(b"ping")
    assert theirs.read(4) == b"ping"
    return ours


def test_a_site_talks_to_the_server_that_it_pinned(tmp_path: Path) -> None:
    certificate, key = self_signed(HOSTS)
    found = handshake(pinned_context(certificate.decode()), server(tmp_path, certificate, key))
    assert found.version() == "TLSv1.3"
    assert found.getpeercert(True) == ssl.PEM_cert_to_DER_cert(certificate.decode())


def test_the_pin_holds_under_the_strict_rules_that_newer_pythons_set(tmp_path: Path) -> None:
    certificate, key = self_signed(HOSTS)
    site = pinned_context(certificate.decode())
    site.verify_flags |= ssl.VERIFY_X509_STRICT
    handshake(site, server(tmp_path, certificate, key))


def test_another_certificate_is_refused_even_with_the_same_names(tmp_path: Path) -> None:
    pinned, _ = self_signed(HOSTS)
    certificate, key = self_signed(HOSTS)
    with pytest.raises(ssl.SSLCertVerificationError, match="self-signed certificate"):
        handshake(pinned_context(pinned.decode()), server(tmp_path, certificate, key))


def test_an_address_that_the_certificate_does_not_name_does_not_matter_as_the_pin_is_exact(tmp_path: Path) -> None:
    certificate, key = self_signed(["localhost"])
    handshake(pinned_context(certificate.decode()), server(tmp_path, certificate, key), "moved.example")


@pytest.mark.parametrize("days", [-3, -29])
def test_a_pinned_certificate_that_the_clock_calls_expired_is_trusted(tmp_path: Path, days: int) -> None:
    certificate, key = self_signed(HOSTS, days)
    assert x509.load_pem_x509_certificate(certificate).not_valid_after_utc < datetime.now(UTC)
    handshake(pinned_context(certificate.decode()), server(tmp_path, certificate, key))


def issue(public: ec.EllipticCurvePublicKey, issuer: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> bytes:
    builder = x509.CertificateBuilder().issuer_name(issuer.subject).public_key(public).serial_number(7)
    builder = builder.subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "other")]))
    builder = builder.not_valid_before(issuer.not_valid_before_utc).not_valid_after(issuer.not_valid_after_utc)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("foedus.example")]), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def private(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, *form)


def test_the_pinned_certificate_is_no_authority_for_others(tmp_path: Path) -> None:
    certificate, key = self_signed(HOSTS)
    other = ec.generate_private_key(ec.SECP256R1())
    child = issue(other.public_key(), x509.load_pem_x509_certificate(certificate), private(key))
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(pinned_context(certificate.decode()), server(tmp_path, child + certificate, pem(other)))


def authority() -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hospital authority")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now.replace(year=now.year + 1, day=1))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return builder.sign(key, hashes.SHA256()), key


def test_a_pinned_authority_vouches_for_the_right_host_name_only(tmp_path: Path) -> None:
    root, key = authority()
    leaf = ec.generate_private_key(ec.SECP256R1())
    context = server(tmp_path, issue(leaf.public_key(), root, key), pem(leaf))
    text = root.public_bytes(serialization.Encoding.PEM).decode()
    handshake(pinned_context(text), context)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(pinned_context(text), context, "evil.example")


def test_a_pinned_certificate_that_does_not_deny_being_an_authority_is_held_to_its_host_name() -> None:
    certificate, key = self_signed(HOSTS)
    issuer = x509.load_pem_x509_certificate(certificate)
    silent = issue(private(key).public_key(), issuer, private(key))
    assert pinned_context(silent.decode()).check_hostname
    assert not pinned_context(certificate.decode()).check_hostname


def test_without_a_pin_the_system_decides(tmp_path: Path) -> None:
    certificate, key = self_signed(HOSTS)
    with pytest.raises(ssl.SSLCertVerificationError, match="self-signed"):
        handshake(pinned_context(""), server(tmp_path, certificate, key))


def test_the_certificate_names_hosts_and_addresses_and_is_on_p256() -> None:
    certificate = x509.load_pem_x509_certificate(self_signed([*HOSTS, "bücher.example"])[0])
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["foedus.example", "xn--bcher-kva.example"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.5", "::1"]
    public = certificate.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert public.curve.name == "secp256r1"


@pytest.mark.parametrize("hosts", [[], [""], ["a..b"], ["x" * 64 + ".example"]])
def test_a_certificate_without_a_proper_host_is_refused(hosts: list[str]) -> None:
    with pytest.raises(FoedusError, match="the server's certificate"):
        self_signed(hosts)


def test_the_server_speaks_nothing_older_than_tls_1_2_and_asks_for_no_client_certificate(tmp_path: Path) -> None:
    context = server(tmp_path, *self_signed(HOSTS))
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_NONE


def test_a_server_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    certificate, key = self_signed(HOSTS)
    server(tmp_path, certificate, key)
    (tmp_path / "key.pem").chmod(0o640)
    with pytest.raises(Denied, match="chmod 600"):
        server_context(tmp_path / "cert.pem", tmp_path / "key.pem")
