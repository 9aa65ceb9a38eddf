"""What a server shows and demands in TLS, and how it is changed while the server runs."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

from tao.connection.options import ServerSettings
from tao.runtime.log import logger
from tao.transport.addresses import unix_address
from tao.transport.certificates import StrPath, load_tls_config

if TYPE_CHECKING:
    from tao.server.listener import Listener

__all__ = ["Credentials", "HasCredentials"]


class Credentials:
    """The TLS context for who connects next; None: plain TCP.

    It is read for each connection and replaced as a whole, each in one step: so it has no lock.
    """

    __slots__ = ("context",)

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self.context: ssl.SSLContext | None = context


class HasCredentials:
    """What users do with the TLS of a server. Any thread may call any method."""

    _listeners: list[Listener]

    @property
    def _credentials(self) -> Credentials:
        """What the option ``tls`` says, once the server is started; else an AttributeError."""
        raise NotImplementedError

    def reload_tls(
        self,
        tls: ssl.SSLContext | StrPath,
        keyfile: StrPath | None = None,
        *,
        password: str | bytes | None = None,
        client_ca: StrPath | None = None,
        address: Any = None,
    ) -> None:
        """Have those who connect from now on meet another certificate, or another authority.

        Connections that are there, and handshakes under way, go on with what they began with. If
        this raises, everything stays as it was.

        Args:
            tls: a context, or the file of a certificate; with a file, ``keyfile``, ``password`` and
                ``client_ca`` are those of `load_tls_config`.
            address: of a listener that was started with ``tls`` of its own, as `start` returned it;
                None: those that go by the option ``tls``.

        Raises:
            OSError: a file cannot be read.
            ValueError: a file holds something else, the context is a client's, or nobody speaks TLS
                there now.
            TypeError: an argument is of the wrong kind.
        """
        if not isinstance(tls, ssl.SSLContext):
            context = load_tls_config(tls, keyfile, password=password, client_ca=client_ca)
        elif keyfile is None and password is None and client_ca is None:
            context = tls
        else:
            raise TypeError("a context has its files already: give either one, or files")
        ServerSettings(tls=context)  # which checks it
        for credentials in self._credentials_at(address):
            if credentials.context is None:
                raise ValueError("tls: this server does not speak TLS there")
            credentials.context = context
        logger.info("TLS reloaded")

    def _credentials_at(self, address: Any) -> list[Credentials]:
        if address is None:
            known = getattr(self, "_credentials", None)
            if known is None:
                raise ValueError("tls: this server has not been started")
            return [known]
        wanted = address if isinstance(address, tuple) else unix_address(address)
        found = [each.credentials for each in list(self._listeners) if each.address == wanted]
        if not found:
            raise ValueError(f"tls: this server does not listen at {address!r}")
        return found
