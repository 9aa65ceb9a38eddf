"""Trust and identity: ``ssl`` contexts with secure defaults, and certificates for development.

What every context made here is:

- TLS 1.2 or 1.3, with the ciphers Python chose for them; compression and renegotiation are off.
- A client checks the server's certificate and its hostname, always against some authority.
- A server given ``client_ca`` accepts only clients that show a certificate of that authority
  (mutual TLS). There is no way to ask for certificates and to accept any.
- A file that cannot be used is an error at once, in one line with its name and fault: an
  ``OSError`` if it cannot be read, else a ``ValueError``.

The standard library reads a certificate's key from files only. Where one is made in memory it is
therefore written to a private temporary directory for as long as the loading takes.

A context may be shared by any number of connections and threads. So may all that is here.
"""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tao.callables import checked_flag

__all__ = [
    "Certificate",
    "DevelopmentCA",
    "load_client_tls_config",
    "load_tls_config",
    "self_signed_certificate",
]

StrPath = str | os.PathLike[str]

# Absent if OpenSSL, or its substitute, does not support renegotiation.
_NO_RENEGOTIATION: Final = getattr(ssl, "OP_NO_RENEGOTIATION", 0)
# Takes a stream that was cut for one that ended; some CPythons, as 3.11.2, set it in every context.
_IGNORE_UNEXPECTED_EOF: Final = getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
# OpenSSL's word for a key of another kind than the certificate's is the second of them.
_MISMATCH: Final = ("KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED", "KEY_TYPE_MISMATCH")

_LOCAL: Final = ("localhost", "127.0.0.1", "::1")
_HOSTNAME: Final = re.compile(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*", re.IGNORECASE)
# How long before its making a certificate begins to be valid: clocks of two machines differ.
_CLOCK_SKEW: Final = timedelta(hours=1)
# The bound of X.520 for a commonName; a longer hostname is whole in the alternative names.
_LONGEST_NAME: Final = 64

_Extensions = tuple[x509.ExtensionType, ...]


def load_tls_config(
    certfile: StrPath,
    keyfile: StrPath | None = None,
    *,
    password: str | bytes | None = None,
    client_ca: StrPath | None = None,
) -> ssl.SSLContext:
    """Return the TLS context of a server, for its ``tls`` option.

    Args:
        certfile: PEM file with the server's certificate, followed by those of the intermediate
            authorities if there are any.
        keyfile: PEM file with its private key; None if that is in ``certfile``.
        password: what the key is encrypted with. An encrypted key without it is an error; nobody
            is asked on the terminal.
        client_ca: PEM file with the authorities whose clients are let in. None: every client is,
            and no client certificate is requested.

    Raises:
        OSError: a file cannot be read (``FileNotFoundError``, ``PermissionError``, ...).
        ValueError: a file holds something else, the key is not the certificate's, the password
            is wrong.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    _show(context, certfile, keyfile, password)
    if client_ca is not None:
        _trust(context, client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def load_client_tls_config(
    *,
    ca: StrPath | None = None,
    certfile: StrPath | None = None,
    keyfile: StrPath | None = None,
    password: str | bytes | None = None,
    check_hostname: bool = True,
) -> ssl.SSLContext:
    """Return the TLS context of a client, for its ``tls`` option.

    Args:
        ca: PEM file with the authorities whose servers are trusted, or with a server's own
            self-signed certificate. None: those that the system trusts.
        certfile: PEM file with the certificate to show to a server that asks; None for none.
        keyfile: PEM file with its private key; None if that is in ``certfile``.
        password: what the key is encrypted with.
        check_hostname: whether the certificate must be for the host that was dialled. False is for
            a private ``ca`` that certifies no hostnames, and refused without one: the system's
            authorities vouch for everybody.

    Raises:
        OSError: a file cannot be read.
        ValueError: as for :func:`load_tls_config`; ``keyfile`` without ``certfile``;
            ``check_hostname=False`` without ``ca``.
    """
    if ca is None and not check_hostname:
        raise ValueError("check_hostname=False needs ca, or any server on earth would be trusted")
    if certfile is None and keyfile is not None:
        raise ValueError("keyfile needs certfile")
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = check_hostname
    if ca is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        _trust(context, ca)
    if certfile is not None:
        _show(context, certfile, keyfile, password)
    return context


def _context(protocol: ssl._SSLMethod) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | _NO_RENEGOTIATION
    context.options &= ~_IGNORE_UNEXPECTED_EOF
    return context


def _trust(context: ssl.SSLContext, cafile: StrPath) -> None:
    Path(cafile).read_bytes()  # an OSError of this has the file's name in it
    try:
        context.load_verify_locations(cafile)
    except ssl.SSLError as error:
        raise ValueError(f"{cafile}: holds no readable PEM certificate") from error
    if not context.cert_store_stats()["x509"]:
        raise ValueError(f"{cafile}: holds no certificate, only revocations")


def _show(
    context: ssl.SSLContext,
    certfile: StrPath,
    keyfile: StrPath | None,
    password: str | bytes | None,
) -> None:
    if keyfile is None:
        keyfile = certfile
    certificate, key = Path(certfile).read_bytes(), Path(keyfile).read_bytes()
    try:
        # Without any password OpenSSL would ask for one on the terminal.
        context.load_cert_chain(certfile, keyfile, password or "")
    except ssl.SSLError as error:
        if error.reason in _MISMATCH:
            fault = f"{keyfile}: is not the key of the certificate in {certfile}"
        elif error.reason:
            fault = f"{certfile}: refused: {error.reason.replace('_', ' ').lower()}"
        elif not _is_certificate(certificate):
            fault = f"{certfile}: holds no readable PEM certificate"
        else:
            fault = f"{keyfile}: {_fault_of_key(key, password)}"
        raise ValueError(fault) from error


def _fault_of_key(key: bytes, password: str | bytes | None) -> str:
    if b"ENCRYPTED" not in key:
        return "holds no readable PEM private key"
    return "the password is wrong" if password else "is encrypted and needs its password"


def _is_certificate(data: bytes) -> bool:
    try:
        return bool(x509.load_pem_x509_certificates(data))
    except ValueError:
        return False


@dataclass(frozen=True)
class Certificate:
    """A certificate with its private key, in memory; the key is not in its ``repr``."""

    #: The certificate, PEM.
    certificate: bytes
    #: Its private key, PEM, not encrypted.
    private_key: bytes = field(repr=False)
    #: The issuer's certificate, PEM, which a peer must trust. Its own if self-signed.
    authority: bytes

    def write(self, certfile: StrPath, keyfile: StrPath) -> None:
        """Write the certificate and the key to a PEM file each, replacing what was there.

        Only the owner can ever read the key's file (mode 0600).

        Raises:
            OSError: a file cannot be written.
        """
        # A new file, moved to its place: one that is there may be open to others.
        descriptor, temporary = tempfile.mkstemp(dir=Path(keyfile).parent)
        try:
            with open(descriptor, "wb") as file:
                file.write(self.private_key)
            os.replace(temporary, keyfile)
        except BaseException:
            os.unlink(temporary)
            raise
        Path(certfile).write_bytes(self.certificate)

    def server_config(self, *, mutual: bool = False) -> ssl.SSLContext:
        """Return the context of a server that shows this certificate.

        Args:
            mutual: let in only clients with a certificate of the same authority.
        """
        checked_flag("mutual", mutual)
        with self._files() as (certfile, keyfile, cafile):
            return load_tls_config(certfile, keyfile, client_ca=cafile if mutual else None)

    def client_config(self) -> ssl.SSLContext:
        """Return the context of a client that trusts this certificate's authority, and only it.

        To a server that asks, the client shows this certificate.
        """
        with self._files() as (certfile, keyfile, cafile):
            return load_client_tls_config(ca=cafile, certfile=certfile, keyfile=keyfile)

    @contextmanager
    def _files(self) -> Iterator[tuple[Path, Path, Path]]:
        """Have certificate, key and authority as files, in a directory only the owner may enter."""
        with tempfile.TemporaryDirectory(prefix="tao-tls-") as directory:
            certfile, keyfile, cafile = (Path(directory, name) for name in ("cert", "key", "ca"))
            self.write(certfile, keyfile)
            cafile.write_bytes(self.authority)
            yield certfile, keyfile, cafile


def self_signed_certificate(*hostnames: str, days: float = 30) -> Certificate:
    """Make a server's certificate for development, signed with its own key (EC, P-256).

    A client trusts it when its file is the client's ``ca``. For certificates of clients too, see
    :class:`DevelopmentCA`.

    Args:
        hostnames: DNS names and IP addresses of the server; by default those by which a machine
            calls itself: ``localhost``, ``127.0.0.1`` and ``::1``.
        days: how long from now it is valid. A negative number makes one that has expired.

    Raises:
        ValueError: a hostname is none.
    """
    hostnames = hostnames or _LOCAL
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(hostnames[0][:_LONGEST_NAME])
    pem = _sign(name, key, name, key, days, *_server_extensions(hostnames))
    return Certificate(pem, _key_pem(key), authority=pem)


class DevelopmentCA:
    """A certificate authority for development and tests; its key exists in memory only.

    Args:
        name: what it is called in the certificates it issues, up to 64 characters.
        days: how long from now its own certificate is valid.
    """

    def __init__(self, name: str = "tao development CA", *, days: float = 30) -> None:
        self._name: x509.Name = _name(name)
        self._key: ec.EllipticCurvePrivateKey = ec.generate_private_key(ec.SECP256R1())
        extensions = x509.BasicConstraints(ca=True, path_length=0), _usage(authority=True)
        #: Its certificate, PEM: what both ends of a connection must trust.
        self.certificate: bytes = _sign(
            self._name, self._key, self._name, self._key, days, *extensions
        )

    def issue(self, *hostnames: str, days: float = 30) -> Certificate:
        """Make a server's certificate; the arguments are those of self_signed_certificate().

        Raises:
            ValueError: a hostname is none.
        """
        hostnames = hostnames or _LOCAL
        return self._issue(hostnames[0][:_LONGEST_NAME], days, _server_extensions(hostnames))

    def issue_client(self, name: str, *, days: float = 30) -> Certificate:
        """Make a client's certificate, which no server can use.

        Args:
            name: the client's name, up to 64 characters: the ``commonName`` that a server sees.
            days: how long from now it is valid.

        Raises:
            ValueError: the name is empty or too long.
        """
        return self._issue(name, days, _leaf_extensions(ExtendedKeyUsageOID.CLIENT_AUTH))

    def _issue(self, name: str, days: float, extensions: _Extensions) -> Certificate:
        key = ec.generate_private_key(ec.SECP256R1())
        pem = _sign(_name(name), key, self._name, self._key, days, *extensions)
        return Certificate(pem, _key_pem(key), authority=self.certificate)


def _sign(
    name: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    days: float,
    *extensions: x509.ExtensionType,
) -> bytes:
    """Return the PEM of a certificate as RFC 5280 wants it, so that strict peers take it too."""
    now = datetime.now(timezone.utc)
    end = now + timedelta(days=days)
    builder = (
        x509.CertificateBuilder(issuer, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(min(now, end) - _CLOCK_SKEW)
        .not_valid_after(end)
    )
    for extension in (
        x509.SubjectKeyIdentifier.from_public_key(key.public_key()),
        x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
        *extensions,
    ):
        critical = isinstance(extension, (x509.BasicConstraints, x509.KeyUsage))
        builder = builder.add_extension(extension, critical)
    return builder.sign(issuer_key, SHA256()).public_bytes(Encoding.PEM)


def _server_extensions(hostnames: tuple[str, ...]) -> _Extensions:
    names = x509.SubjectAlternativeName([_general_name(hostname) for hostname in hostnames])
    return (*_leaf_extensions(ExtendedKeyUsageOID.SERVER_AUTH), names)


def _leaf_extensions(purpose: x509.ObjectIdentifier) -> _Extensions:
    return (
        x509.BasicConstraints(ca=False, path_length=None),
        _usage(authority=False),
        x509.ExtendedKeyUsage([purpose]),
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(hostname: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(hostname))
    except ValueError:
        if not _HOSTNAME.fullmatch(hostname):
            raise ValueError(f"not a hostname or an IP address: {hostname!r}") from None
        return x509.DNSName(hostname)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
