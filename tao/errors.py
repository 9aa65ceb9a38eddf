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
    │   ├── HandshakeFailed       the TLS handshake failed or timed out
    │   └── ConnectionLost        the connection ended before the reply to a request came
    ├── RequestError              a request failed; a ConnectionLost is one, too
    │   ├── RequestTimeout        also a TimeoutError: no reply came in time
    │   ├── RequestCancelled      also a CancelledError: the request was cancelled by its caller
    │   ├── RequestsNotSupported  the peer does not answer requests
    │   ├── WouldDeadlock         the request could not be waited for where it was made
    │   └── RemoteError           the peer refused the request, or its handler raised
    │       └── NoHandler         the peer has no handler for the request
    ├── ServerClosed              the server has stopped, or was never started
    ├── Cancelled                 a context was cancelled
    │   └── DeadlineExceeded      its deadline expired; also a TimeoutError
    ├── ClusterUnavailable        the cluster did not take, or not confirm, a publication
    ├── IdentityTaken             another connection has the identity
    ├── TooManyGroups             a connection is in as many groups as it may be
    └── TooManyTimers             a timing wheel is full

An invalid argument raises ``TypeError`` or ``ValueError``; the message names the argument.
"""

from __future__ import annotations

from concurrent.futures import CancelledError
from typing import Any

from tao.safe_text import number_text

__all__ = [
    "AlreadyRegistered",
    "BadData",
    "Cancelled",
    "ClusterUnavailable",
    "ConnectFailed",
    "ConnectionClosed",
    "ConnectionLost",
    "DeadlineExceeded",
    "HandshakeFailed",
    "IdentityTaken",
    "NoHandler",
    "NotRegistered",
    "ProtocolError",
    "RegistrationError",
    "RemoteError",
    "RequestCancelled",
    "RequestError",
    "RequestTimeout",
    "RequestsNotSupported",
    "ServerClosed",
    "TaoError",
    "TooManyGroups",
    "TooManyTimers",
    "UndefinedMessage",
    "WouldBlock",
    "WouldDeadlock",
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

    def __init__(self, number: Any) -> None:
        # Copying and unpickling call __init__ with these arguments again.
        super().__init__(number)
        self.number: Any = number

    def __str__(self) -> str:
        return f"message number {number_text(self.number)} is not registered"


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


class RequestError(TaoError):
    """A request failed.

    Attributes:
        sent: whether the kernel has taken the request's last byte, so that the peer may have
            executed it. False is certain: the peer never does, and it is safe to ask again.
    """

    def __init__(self, text: object = "", sent: bool = False) -> None:
        super().__init__(text)
        self.sent: bool = sent


class ConnectionLost(RequestError, ConnectionClosed):
    """The connection ended before the reply to a request came."""


class RequestTimeout(RequestError, TimeoutError):
    """No reply came in time."""


class RequestCancelled(RequestError, CancelledError):
    """The request was cancelled by its caller: a `RequestError`.

    It is also a ``concurrent.futures.CancelledError``.
    """


class RequestsNotSupported(RequestError):
    """The peer does not answer requests; nothing but a heartbeat was sent."""


class WouldDeadlock(RequestError):
    """A request could not be waited for where it was made: the reply could never have come."""


class RemoteError(RequestError):
    """The peer refused a request. A handler raises it to refuse one.

    Args:
        code: a short word for programs. ``"error"`` if the handler raised another exception,
            ``"no_reply"`` if it returned without a reply.
        text: for people.

    Attributes:
        received: whether the peer has sent it. One that a handler gets from elsewhere and does not
            catch is an exception like any other.
    """

    received: bool = False
    # For a subclass that does not call `__init__`.
    sent: bool = True
    code: str = "error"
    text: str = ""

    def __init__(self, code: str, text: str = "") -> None:
        # Copying and unpickling call __init__ with these arguments again.
        super().__init__(code, sent=True)
        self.args = (code, text) if text else (code,)
        self.code = code
        self.text = text

    def __str__(self) -> str:
        return f"{self.code}: {self.text}" if self.text else str(self.code)


class NoHandler(RemoteError):
    """The peer has no handler for the request."""


class ServerClosed(TaoError):
    """The server has stopped, or was never started."""


class Cancelled(TaoError):
    """The context was cancelled; the message is the reason."""


class DeadlineExceeded(Cancelled, TimeoutError):
    """The deadline of the context expired."""


class ClusterUnavailable(TaoError):
    """What joins the servers of a cluster did not take a publication, or not confirm it in time."""


class IdentityTaken(TaoError):
    """Another connection of the server has the identity that was claimed."""


class TooManyGroups(TaoError):
    """The connection is in as many groups as the option ``max_groups`` allows."""


class TooManyTimers(TaoError):
    """The timing wheel has reached its limit of pending timers."""
