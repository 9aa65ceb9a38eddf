"""Every error tao raises, in one tree::

    TaoError
    ├── WouldBlock                the send queue is full; nothing was queued
    ├── ProtocolError             the peer and this side do not agree about the bytes
    │   ├── BadData               bytes that are no message, or a message that is no bytes
    │   └── UndefinedMessage      a message number that nothing was registered for
    ├── RegistrationError
    │   ├── AlreadyRegistered     a message number has one owner
    │   └── NotRegistered         a handler for a number that has no deserializer
    ├── ConnectionClosed          also a ConnectionError: the connection is over
    │   ├── ConnectFailed         it never came to be
    │   └── HandshakeFailed       TLS was not agreed upon
    ├── ServerClosed              the server is not running (any more)
    ├── Cancelled                 a context was cancelled
    │   └── DeadlineExceeded      ... by its deadline; also a TimeoutError
    └── TooManyTimers             a timing wheel is full

A wrong argument is a plain ``TypeError`` or ``ValueError`` that names it, as everywhere in Python.
"""

from __future__ import annotations

__all__ = [
    "AlreadyRegistered",
    "BadData",
    "Cancelled",
    "ConnectFailed",
    "ConnectionClosed",
    "DeadlineExceeded",
    "HandshakeFailed",
    "NotRegistered",
    "ProtocolError",
    "RegistrationError",
    "ServerClosed",
    "TaoError",
    "TooManyTimers",
    "UndefinedMessage",
    "WouldBlock",
]


class TaoError(Exception):
    """The root of the tree: ``except TaoError`` catches whatever tao itself raises."""


class WouldBlock(TaoError):
    """The send queue is full, so writing would block; the message was not queued."""


class ProtocolError(TaoError):
    """The peer sent what the protocol does not allow; its connection is closed."""


class BadData(ProtocolError, ValueError):
    """Bytes that cannot be decoded, or a message that cannot be encoded.

    Attributes:
        unintended: a decoder or deserializer raised something else, the ``__cause__``: rather a bug
            of its own than the peer's fault. False for a ``BadData`` that was raised on purpose.
    """

    unintended: bool = False


class UndefinedMessage(ProtocolError):
    """A message number without registration arrived, or was asked for."""

    def __init__(self, number: int) -> None:
        # What __init__ is called with again when the error is copied or unpickled.
        super().__init__(number)
        self.number: int = number

    def __str__(self) -> str:
        return f"message number {self.number} is not registered"


class RegistrationError(TaoError):
    """A registry was asked for something that would make it ambiguous."""


class AlreadyRegistered(RegistrationError):
    """The message number, or its handler, is taken."""


class NotRegistered(RegistrationError):
    """The message number is unknown to the registry."""


class ConnectionClosed(TaoError, ConnectionError):
    """The connection is closed or closing; its ``close_reason`` tells why."""


class ConnectFailed(ConnectionClosed):
    """No address of the peer answered, or the connection was refused on the way up."""


class HandshakeFailed(ConnectionClosed):
    """The TLS handshake failed or took too long."""


class ServerClosed(TaoError):
    """The server has stopped, or was never started."""


class Cancelled(TaoError):
    """The context was cancelled; the text is the reason."""


class DeadlineExceeded(Cancelled, TimeoutError):
    """The context ran into its deadline."""


class TooManyTimers(TaoError):
    """The timing wheel holds as many timers as it is allowed to."""
