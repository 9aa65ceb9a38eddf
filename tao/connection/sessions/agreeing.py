"""Agreeing with the peer on a session before the first message, on a thread that may wait."""

from __future__ import annotations

from tao.connection.sessions.stream import SessionStream
from tao.errors import ConnectionClosed
from tao.runtime.deadline import Deadline
from tao.session.agreement import Agreement
from tao.transport.stream import Transport

__all__ = ["converse", "say", "session_of"]


def converse(transport: Transport, agreement: Agreement, patience: Deadline, end: Deadline) -> None:
    """Carry an agreement out.

    Args:
        patience: until when silence is listened to, before the peer has agreed.
        end: until when all of it has to be done.

    Raises:
        BadData: the peer does not keep to it.
        ConnectionClosed: the peer has left, or it takes too long.
        OSError: the connection is broken.
    """
    while True:
        say(transport, agreement, end)
        if agreement.over:
            return
        deadline = end if agreement.agreed else patience
        data = transport.receive_up_to(agreement.wanted)
        if data is None:
            if not transport.wait_readable(deadline.remaining()):
                if agreement.agreed:
                    raise ConnectionClosed("agreeing on a session takes too long")
                agreement.give_up()
        elif data:
            agreement.feed(data)
        else:
            raise ConnectionClosed("the peer left while a session was agreed on")


def say(transport: Transport, agreement: Agreement, end: Deadline) -> None:
    """Send what is to be said; it is little, and the first that is sent.

    Raises:
        ConnectionClosed: the peer takes nothing.
        OSError: the connection is broken.
    """
    while agreement.output:
        transport.answers.clear()
        sent = transport.send(agreement.output)
        agreement.output = agreement.output[sent:]
        if not sent:
            if end.expired:
                raise ConnectionClosed("the peer takes nothing")
            transport.wait_writable()


def session_of(transport: Transport | None) -> SessionStream | None:
    """Return the stream of a session, if a transport is one."""
    return transport if isinstance(transport, SessionStream) else None
