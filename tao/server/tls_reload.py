"""Replacing the certificate of a running server."""

from __future__ import annotations

import ssl
from collections.abc import Iterable

from tao.connection.options.definitions import ServerSettings
from tao.runtime.log import logger
from tao.transport.certificates import StrPath, load_tls_config
from tao.transport.tls_credentials import Credentials

__all__ = ["reload_credentials", "server_context"]


def server_context(
    tls: ssl.SSLContext | StrPath,
    keyfile: StrPath | None = None,
    *,
    password: str | bytes | None = None,
    client_ca: StrPath | None = None,
) -> ssl.SSLContext:
    """Return a checked context for a server; see `Server.reload_tls` for the arguments."""
    if not isinstance(tls, ssl.SSLContext):
        context = load_tls_config(tls, keyfile, password=password, client_ca=client_ca)
    elif keyfile is None and password is None and client_ca is None:
        context = tls
    else:
        raise TypeError("a context has its files already: pass either a context or files")
    ServerSettings(tls=context)  # checks it
    return context


def reload_credentials(found: Iterable[Credentials], context: ssl.SSLContext) -> None:
    """Use another context for the connections accepted from now on.

    Raises:
        ValueError: one of the addresses does not use TLS.
    """
    for credentials in found:
        if credentials.context is None:
            raise ValueError("tls: this server does not speak TLS there")
        credentials.context = context
    logger.info("TLS reloaded")
