"""TLS contexts and certificates, with handshakes in memory."""

from __future__ import annotations

import datetime
import os
import ssl
import stat
import warnings
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tao.transport.certificates import (
    Certificate,
    DevelopmentCA,
    load_client_tls_config,
    load_tls_config,
    self_signed_certificate,
)


class Ends:
    """A server's and a client's end of a TLS connection in memory."""

    def __init__(
        self, server: ssl.SSLContext, client: ssl.SSLContext, hostname: str | None = "localhost"
    ) -> None:
        up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.down = down
        self.server = server.wrap_bio(up, down, server_side=True)
        self.client = client.wrap_bio(down, up, server_hostname=hostname)

    def handshake(self) -> Ends:
        """Perform the handshake of both ends; raise the first error."""
        waiting = [self.client, self.server]
        for _ in range(10):
            for end in list(waiting):
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    continue
                waiting.remove(end)
            if not waiting:
                return self
        raise AssertionError("no end to the handshake")


@pytest.fixture(scope="module")
def authority() -> DevelopmentCA:
    return DevelopmentCA()


@pytest.fixture(scope="module")
def certificate(authority: DevelopmentCA) -> Certificate:
    return authority.issue()


@pytest.fixture
def files(certificate: Certificate, tmp_path: Path) -> tuple[Path, Path, Path]:
    """Return files with the certificate, the key and the authority."""
    certfile, keyfile, cafile = (tmp_path / name for name in ("cert.pem", "key.pem", "ca.pem"))
    certificate.write(certfile, keyfile)
    cafile.write_bytes(certificate.authority)
    return certfile, keyfile, cafile


def encrypted(private_key: bytes, password: bytes) -> bytes:
    key = serialization.load_pem_private_key(private_key, None)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(password),
    )


# Handshakes


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("hostname", ["localhost", "127.0.0.1", "::1"])
def test_a_self_signed_certificate_for_this_machine(
    hostname: str, version: ssl.TLSVersion, tmp_path: Path
) -> None:
    """A client needs only its file to connect to the server by each of its names."""
    certfile, keyfile = tmp_path / "cert.pem", tmp_path / "key.pem"
    self_signed_certificate().write(certfile, keyfile)
    client = load_client_tls_config(ca=certfile)
    client.maximum_version = version
    ends = Ends(load_tls_config(certfile, keyfile), client, hostname).handshake()
    ends.client.write(b"hello")
    assert ends.server.read() == b"hello"
    assert ends.client.version() == ends.server.version() == version.name.replace("_", ".")


def test_contexts_are_hardened(files: tuple[Path, Path, Path]) -> None:
    """Compression and renegotiation are off, TLS 1.2 is the minimum, and clients verify servers."""
    certfile, keyfile, cafile = files
    client = load_client_tls_config(ca=cafile)
    for context in (load_tls_config(certfile, keyfile), client):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
        assert context.options & ssl.OP_NO_COMPRESSION
        assert context.options & ssl.OP_NO_RENEGOTIATION
    assert client.check_hostname
    assert client.verify_mode == ssl.CERT_REQUIRED


def test_tls_1_1_is_refused(certificate: Certificate) -> None:
    """A client that supports only TLS 1.1 is refused."""
    client = certificate.client_config()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        client.minimum_version = client.maximum_version = ssl.TLSVersion.TLSv1_1
    client.set_ciphers("ALL:@SECLEVEL=0")  # otherwise it would not even offer it
    with pytest.raises(ssl.SSLError, match="UNSUPPORTED_PROTOCOL"):
        Ends(certificate.server_config(), client).handshake()


def test_a_wrong_host_is_refused(certificate: Certificate) -> None:
    """A certificate for another host is refused, and the error names the host."""
    ends = Ends(certificate.server_config(), certificate.client_config(), "example.org")
    with pytest.raises(ssl.SSLCertVerificationError, match=r"not valid for 'example\.org'"):
        ends.handshake()


def test_the_hostname_check_can_be_disabled(files: tuple[Path, Path, Path]) -> None:
    """With a private authority, and only then, any host name is accepted."""
    certfile, keyfile, cafile = files
    client = load_client_tls_config(ca=cafile, check_hostname=False)
    Ends(load_tls_config(certfile, keyfile), client, "example.org").handshake()
    Ends(load_tls_config(certfile, keyfile), client, None).handshake()
    with pytest.raises(ValueError, match="check_hostname=False needs ca"):
        load_client_tls_config(check_hostname=False)


def test_a_server_of_another_authority_is_refused(certificate: Certificate) -> None:
    """Clients that trust another authority, or the system's, refuse the server."""
    for client in (DevelopmentCA().issue_client("alice").client_config(), load_client_tls_config()):
        with pytest.raises(ssl.SSLCertVerificationError, match=r"issuer certificate|self.signed"):
            Ends(certificate.server_config(), client).handshake()


def test_an_expired_certificate_is_refused(authority: DevelopmentCA) -> None:
    """This applies to servers and clients, and the error says so."""
    good, old = authority.issue(), authority.issue(days=-1)
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate has expired"):
        Ends(old.server_config(), good.client_config()).handshake()
    old = authority.issue_client("alice", days=-1)
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate has expired"):
        Ends(good.server_config(mutual=True), old.client_config()).handshake()


def test_mutual_tls_identifies_the_client(
    authority: DevelopmentCA, certificate: Certificate
) -> None:
    """The server sees the name in the client's certificate."""
    client = authority.issue_client("alice").client_config()
    peer = Ends(certificate.server_config(mutual=True), client).handshake().server.getpeercert()
    assert peer is not None
    assert peer["subject"] == ((("commonName", "alice"),),)
    assert peer["issuer"] == ((("commonName", "tao development CA"),),)


def test_mutual_tls_refuses_a_client_without_certificate(files: tuple[Path, Path, Path]) -> None:
    """A client without a certificate is refused."""
    certfile, keyfile, cafile = files
    server = load_tls_config(certfile, keyfile, client_ca=cafile)
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        Ends(server, load_client_tls_config(ca=cafile)).handshake()


def test_mutual_tls_refuses_a_client_of_another_authority(
    files: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """A certificate from an unknown authority is refused."""
    certfile, keyfile, cafile = files
    stranger = tmp_path / "stranger.pem", tmp_path / "stranger.key"
    DevelopmentCA("another").issue_client("mallory").write(*stranger)
    client = load_client_tls_config(ca=cafile, certfile=stranger[0], keyfile=stranger[1])
    server = load_tls_config(certfile, keyfile, client_ca=cafile)
    with pytest.raises(ssl.SSLCertVerificationError, match="issuer certificate"):
        Ends(server, client).handshake()


def test_certificates_serve_one_purpose(authority: DevelopmentCA, certificate: Certificate) -> None:
    """A client's certificate is not valid for a server, and vice versa."""
    alice = authority.issue_client("alice")
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate purpose"):
        Ends(alice.server_config(), certificate.client_config()).handshake()
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate purpose"):
        Ends(certificate.server_config(mutual=True), certificate.client_config()).handshake()


@pytest.mark.parametrize("made", [self_signed_certificate(), DevelopmentCA().issue()])
def test_certificates_pass_a_strict_check(made: Certificate) -> None:
    """They comply with RFC 5280, as the default contexts of recent Python versions require."""
    client = ssl.create_default_context(cadata=made.authority.decode())
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    Ends(made.server_config(), client).handshake()


def test_a_truncated_stream_is_an_error(certificate: Certificate) -> None:
    """The end of the bytes without the peer's close_notify is an error."""
    ends = Ends(certificate.server_config(), certificate.client_config()).handshake()
    ends.down.write_eof()
    with pytest.raises(ssl.SSLError, match=r"(?i)eof"):  # SSLEOFError, but not on CPython 3.11.2
        ends.client.read()


def test_an_intermediate_authority_and_one_file_for_all(tmp_path: Path) -> None:
    """A file with key, certificate and intermediate works for a client that knows only the root."""
    root = trustme.CA()
    everything, cafile = tmp_path / "all.pem", tmp_path / "ca.pem"
    issued = root.create_child_ca().issue_cert("localhost")
    issued.private_key_and_cert_chain_pem.write_to_path(everything)
    root.cert_pem.write_to_path(cafile)
    client = load_client_tls_config(ca=str(cafile), certfile=everything)
    Ends(load_tls_config(str(everything)), client).handshake()


# Errors


def test_an_encrypted_key_needs_its_password(
    files: tuple[Path, Path, Path], certificate: Certificate
) -> None:
    """The right password opens it; a wrong and a missing one lead to different errors."""
    certfile, keyfile, _ = files
    keyfile.write_bytes(encrypted(certificate.private_key, b"open sesame"))
    load_tls_config(certfile, keyfile, password="open sesame")
    load_tls_config(certfile, keyfile, password=b"open sesame")
    with pytest.raises(ValueError, match=r"key\.pem: the password is wrong$"):
        load_tls_config(certfile, keyfile, password="open barley")
    with pytest.raises(ValueError, match=r"key\.pem: is encrypted and needs its password$"):
        load_tls_config(certfile, keyfile)


@pytest.mark.parametrize("kind", list(trustme.KeyType))
def test_the_key_must_be_the_certificates(
    files: tuple[Path, Path, Path], kind: trustme.KeyType
) -> None:
    """The key of another certificate is refused, with the names of both files."""
    certfile, keyfile, _ = files
    issued = trustme.CA().issue_cert("localhost", key_type=kind)
    issued.private_key_pem.write_to_path(keyfile)
    fault = r"key\.pem: is not the key of the certificate in .*cert\.pem$"
    with pytest.raises(ValueError, match=fault):
        load_tls_config(certfile, keyfile)


def test_files_that_cannot_be_read(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """The operating system's error names the file."""
    certfile, keyfile, _ = files
    missing = tmp_path / "missing.pem"
    with pytest.raises(FileNotFoundError, match=r"missing\.pem"):
        load_tls_config(missing, keyfile)
    with pytest.raises(FileNotFoundError, match=r"missing\.pem"):
        load_tls_config(certfile, missing)
    with pytest.raises(FileNotFoundError, match=r"missing\.pem"):
        load_tls_config(certfile, keyfile, client_ca=missing)
    with pytest.raises(IsADirectoryError):
        load_client_tls_config(ca=tmp_path)
    with pytest.raises(OSError, match="directory"):
        load_tls_config(certfile, keyfile, client_ca="")


@pytest.mark.parametrize("content", [b"", b"hello\n", b"\x30\x82\x01\x00"])
def test_files_with_other_content(files: tuple[Path, Path, Path], content: bytes) -> None:
    """The error names the file and says what is missing."""
    certfile, keyfile, cafile = files
    junk = cafile.with_name("junk.pem")
    junk.write_bytes(content)
    no_certificate = r"^[^:]*junk\.pem: holds no readable PEM certificate$"
    with pytest.raises(ValueError, match=no_certificate):
        load_tls_config(junk, keyfile)
    with pytest.raises(ValueError, match=r"^[^:]*junk\.pem: holds no readable PEM private key$"):
        load_tls_config(certfile, junk)
    with pytest.raises(ValueError, match=no_certificate):
        load_tls_config(certfile, keyfile, client_ca=junk)
    with pytest.raises(ValueError, match=no_certificate):
        load_client_tls_config(ca=junk)


def test_a_certificate_without_key(files: tuple[Path, Path, Path]) -> None:
    """A single file must contain both, and a client's key alone is refused."""
    certfile, keyfile, _ = files
    with pytest.raises(ValueError, match=r"cert\.pem: holds no readable PEM private key$"):
        load_tls_config(certfile)
    with pytest.raises(ValueError, match="keyfile needs certfile"):
        load_client_tls_config(keyfile=keyfile)


def test_a_revocation_list_is_not_an_authority(files: tuple[Path, Path, Path]) -> None:
    """A file with only a revocation list is refused, because no client could connect."""
    certfile, keyfile, cafile = files
    now = datetime.datetime.now(datetime.timezone.utc)
    revoked = x509.CertificateRevocationListBuilder(
        x509.load_pem_x509_certificate(cafile.read_bytes()).subject, now, now
    ).sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    cafile.write_bytes(revoked.public_bytes(serialization.Encoding.PEM))
    with pytest.raises(ValueError, match=r"ca\.pem: holds no certificate, only revocations"):
        load_tls_config(certfile, keyfile, client_ca=cafile)


def test_keys_that_are_too_weak(tmp_path: Path) -> None:
    """OpenSSL's reason for refusing a certificate is reported."""
    certfile, keyfile = tmp_path / "cert.pem", tmp_path / "key.pem"
    key = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    now = datetime.datetime.now(datetime.timezone.utc)
    nobody = x509.Name([])
    made = x509.CertificateBuilder(nobody, nobody, key.public_key(), 1, now, now)
    pem = made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    Certificate(
        pem,
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        pem,
    ).write(certfile, keyfile)
    with pytest.raises(ValueError, match=r"cert\.pem: refused: ee key too small$"):
        load_tls_config(certfile, keyfile)


# Certificates


def test_the_contents_of_a_certificate() -> None:
    """Names and addresses have the right types, the key is EC P-256, and the validity is short."""
    made = self_signed_certificate("a.example", "*.b.example", "192.0.2.1", "2001:db8::1", days=2)
    parsed = x509.load_pem_x509_certificate(made.certificate)
    names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["a.example", "*.b.example"]
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    assert addresses == ["192.0.2.1", "2001:db8::1"]
    key = parsed.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"
    now = datetime.datetime.now(datetime.timezone.utc)
    assert parsed.not_valid_before_utc < now < parsed.not_valid_after_utc
    assert parsed.not_valid_after_utc <= now + datetime.timedelta(days=2)


def test_a_long_hostname_is_in_the_alternative_names() -> None:
    """A host name may be longer than the subject of a certificate permits."""
    hostname = f"{'a' * 60}.{'b' * 60}.example"
    made = self_signed_certificate(hostname)
    Ends(made.server_config(), made.client_config(), hostname).handshake()


@pytest.mark.parametrize("hostname", ["", "localhost:12345", "a..b", "a b", "http://a", "bücher"])
def test_invalid_hostnames(authority: DevelopmentCA, hostname: str) -> None:
    """They are refused when the certificate is created, not when a client connects."""
    with pytest.raises(ValueError, match="not a hostname or an IP address"):
        self_signed_certificate("localhost", hostname)
    with pytest.raises(ValueError, match="not a hostname or an IP address"):
        authority.issue("localhost", hostname)


def test_the_key_is_not_shown(certificate: Certificate) -> None:
    """The repr of a certificate, which may be logged, does not contain the key."""
    assert "PRIVATE KEY" in certificate.private_key.decode()
    assert "PRIVATE KEY" not in repr(certificate)


def test_the_key_file_is_private(certificate: Certificate, tmp_path: Path) -> None:
    """Its mode is 0600, whatever the umask is and whichever file existed before."""
    certfile, keyfile = tmp_path / "cert.pem", tmp_path / "key.pem"
    keyfile.write_bytes(b"older")
    keyfile.chmod(0o644)
    before = keyfile.open("rb")
    umask = os.umask(0)
    try:
        certificate.write(certfile, keyfile)
    finally:
        os.umask(umask)
    with before:
        assert before.read() == b"older"  # a reader of the old file does not see the key
    assert stat.S_IMODE(keyfile.stat().st_mode) == 0o600
    assert keyfile.read_bytes() == certificate.private_key
    assert certfile.read_bytes() == certificate.certificate


def test_a_failed_write_leaves_no_copy_of_the_key(certificate: Certificate, tmp_path: Path) -> None:
    """After an error, no temporary file with the key remains."""
    taken = tmp_path / "taken"
    taken.mkdir()
    with pytest.raises(IsADirectoryError):
        certificate.write(tmp_path / "cert.pem", taken)
    assert list(tmp_path.iterdir()) == [taken]
