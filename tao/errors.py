"""Every error tao raises, in one tree::

    TaoError
    ├── WouldBlock                the send queue is full; nothing was queued
    ├── ProtocolError             the peer violated the protocol
    │   ├── BadData               bytes cannot be decoded, or a message cannot be encoded
    │   └── UndefinedMessage      the message number is not registered
    ├── RegistrationError
    │   ├── AlreadyRegistered     the message number is already taken
    │   └── NotRegistered         the registry does not know the message number
    ├── ConnectionClosed          also a ConnectionError: the connection is closed or closing
    │   ├── ConnectFailed         the connection could not be established
    │   └── HandshakeFailed       the TLS handshake failed or timed out
    ├── ServerClosed              the server has stopped, or was never started
    ├── Cancelled                 a context was cancelled
    │   └── DeadlineExceeded      its deadline expired; also a TimeoutError
    └── TooManyTimers             a timing wheel is full

An invalid argument raises ``TypeError`` or ``ValueError``; the message names the argument.
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
    """The base class of all errors that tao raises itself."""


class WouldBlock(TaoError):
    """The send queue is full, so writing would block; the message was not queued."""


class ProtocolError(TaoError):
    """The peer violated the protocol; its connection is closed."""


class BadData(ProtocolError, ValueError):
    """Bytes that cannot be decoded, or a message that cannot be encoded.

    Attributes:
        unintended: True if a decoder or deserializer raised another exception, kept as
            ``__cause__``: probably a bug of its own, not invalid data. False for a ``BadData``
            that was raised on purpose.
    """

    unintended: bool = False


class UndefinedMessage(ProtocolError):
    """An unregistered message number was received or looked up."""

    def __init__(self, number: int) -> None:
        # Copying and unpickling call __init__ with these arguments again.
        super().__init__(number)
        self.number: int = number

    def __str__(self) -> str:
        return f"message number {self.number} is not registered"


class RegistrationError(TaoError):
    """A registration was refused because it would contradict the registry."""


class AlreadyRegistered(RegistrationError):
    """The message number is already registered, or already has a handler."""


class NotRegistered(RegistrationError):
    """The message number is unknown to the registry."""


class ConnectionClosed(TaoError, ConnectionError):
    """The connection is closed or closing; its ``close_reason`` says why."""


class ConnectFailed(ConnectionClosed):
    """No address of the peer accepted a connection, or the connection could not be set up."""


class HandshakeFailed(ConnectionClosed):
    """The TLS handshake failed or took too long."""


class ServerClosed(TaoError):
    """The server has stopped, or was never started."""


class Cancelled(TaoError):
    """The context was cancelled; the message is the reason."""


class DeadlineExceeded(Cancelled, TimeoutError):
    """The deadline of the context expired."""


class TooManyTimers(TaoError):
    """The timing wheel has reached its limit of pending timers."""
