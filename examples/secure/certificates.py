"""Certificates for the example, in a directory that only its owner may enter."""

from __future__ import annotations

import os
import ssl
import stat
import tempfile
from pathlib import Path

import tao

DIRECTORY = Path(tempfile.gettempdir(), f"tao-example-certificates-{os.getuid()}")
CLIENTS = ("alice", "bob")


def make(directory: Path) -> None:
    """Create a CA, and write its certificate, the server's and the clients'."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    check(directory)
    authority = tao.DevelopmentCA("tao example")
    (directory / "ca.pem").write_bytes(authority.certificate)
    authority.issue().write(directory / "server.pem", directory / "server.key")
    for name in CLIENTS:
        certificate = authority.issue_client(name)
        certificate.write(directory / f"{name}.pem", directory / f"{name}.key")


def check(directory: Path) -> None:
    """Refuse a directory in which other users could have placed certificates."""
    status = directory.lstat()
    if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise ValueError(
            f"{directory} must be yours alone (chmod 700); or name another with --certs"
        )


def of_server(directory: Path) -> ssl.SSLContext:
    """Present the server's certificate, and require one from each client."""
    certificate, key = directory / "server.pem", directory / "server.key"
    return tao.load_tls_config(certificate, key, client_ca=directory / "ca.pem")


def of_client(directory: Path, name: str) -> ssl.SSLContext:
    """Trust only servers of the CA, and present a client's certificate."""
    check(directory)
    certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
    return tao.load_client_tls_config(ca=directory / "ca.pem", certfile=certificate, keyfile=key)
