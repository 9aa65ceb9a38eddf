"""The listeners of a server: where it listens, and whether it still accepts."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from tao.runtime.log import logger
from tao.runtime.threads import in_tao_thread
from tao.server.listening.listener import Listener
from tao.transport.addresses import address_text, canonical
from tao.transport.tls_credentials import Credentials

__all__ = ["Listeners"]

# How long `Listeners.give_up` waits for a socket to be closed, in seconds.
_MOMENT = 1.0


class Listeners:
    """All listeners of a server. Any thread may call any method, at any moment."""

    def __init__(self) -> None:
        #: In the order in which they were started. Changed in single steps of the interpreter.
        self.all: list[Listener] = []
        self._gave_up: bool = False  # `give_up` was called

    def add(self, listener: Listener) -> None:
        """Add a listener, and remove those with no threads left."""
        for each in list(self.all):
            if each.ended:
                self.remove(each)
        self.all.append(listener)

    def remove(self, listener: Listener) -> None:
        """Forget a listener; another thread may have done so already."""
        with suppress(ValueError):
            self.all.remove(listener)

    @property
    def active(self) -> list[Listener]:
        """Those that were not given up."""
        return [each for each in list(self.all) if not each.given_up]

    @property
    def addresses(self) -> list[Any]:
        """The addresses of the listeners that were not given up."""
        return [each.address for each in self.active]

    def give_up(self, address: Any = None) -> None:
        """Stop accepting at one address, or at all; see `Server.stop_listening`."""
        found = self.active
        if address is not None:
            found = _at(address, found)
            if not found:
                raise ValueError(f"this server does not listen at {address!r}")
        self._gave_up = True
        for listener in found:
            listener.give_up()
            logger.info("stopped listening at {}", address_text(listener.address))
        if not in_tao_thread():  # which could be the thread that has to close the socket
            for listener in found:
                listener.closed.wait(_MOMENT)

    def credentials_at(self, address: Any) -> list[Credentials]:
        """Return the credentials of the listeners at an address.

        Raises:
            ValueError: there is none.
        """
        found = [each.credentials for each in _at(address, list(self.all))]
        if not found:
            raise ValueError(f"tls: this server does not listen at {address!r}")
        return found

    @property
    def given_up(self) -> bool:
        """Whether accepting has ended everywhere because `give_up` was called."""
        return self._gave_up and not self.active

    @property
    def failed(self) -> bool:
        """Whether accepting has ended everywhere, at one address at least by a failure."""
        listeners = list(self.all)
        lost = any(each.lost for each in listeners)
        return lost and not any(each.accepting for each in listeners)

    def abandon(self) -> None:
        """In the child of a fork: close the child's copies of the sockets."""
        for listener in self.all:
            listener.abandon()
        self.all.clear()


def _at(address: Any, listeners: list[Listener]) -> list[Listener]:
    """Return those that listen at an address, which may be written in any form."""
    wanted = canonical(address)
    return [each for each in listeners if canonical(each.address) == wanted]
