"""What all peers share: the message, its bytes, the handlers by number, the command line.

The bytes are ``int32 LE type | uint32 LE length | value``.  A server feeds what it received to a
`Framer`, looks the handler up by number and calls it with itself and the message; the handler
answers with ``connection.send(message)``.
"""

from __future__ import annotations

import argparse
import ssl
import time
from collections.abc import Callable
from struct import Struct
from typing import Protocol

HEADER = Struct("<iI")
BACKLOG = 1024
RECEIVE_SIZE = 64 * 1024


class EchoMessage:
    """The one message of the benchmark; its value is opaque bytes."""

    __slots__ = ("value",)
    message_number = 1

    def __init__(self, value: bytes) -> None:
        self.value = value

    def serialize(self) -> bytes:
        """Return the value for the wire."""
        return self.value

    @classmethod
    def deserialize(cls, data: bytes) -> EchoMessage:
        """Create the message from its value."""
        return cls(data)


class Sender(Protocol):
    """What a handler may do with a connection."""

    def send(self, message: EchoMessage) -> None:
        """Encode the message and pass it to the transport."""


DECODERS: dict[int, Callable[[bytes], EchoMessage]] = {
    EchoMessage.message_number: EchoMessage.deserialize
}


def echo(connection: Sender, message: EchoMessage) -> None:
    """Send the message back: the handler of every peer."""
    connection.send(message)


HANDLERS: dict[int, Callable[[Sender, EchoMessage], None]] = {EchoMessage.message_number: echo}


def encode(message: EchoMessage) -> bytes:
    """Return the whole frame of a message."""
    value = message.serialize()
    return HEADER.pack(message.message_number, len(value)) + value


class Framer:
    """Cut received chunks into messages; linear in the bytes, whatever the chunks are."""

    __slots__ = ("_chunks", "_needed", "_waiting")

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._waiting = 0  # bytes in _chunks
        self._needed = 0  # bytes before another look makes sense

    def feed(self, data: bytes) -> list[EchoMessage]:
        """Add a chunk, and return the messages that are complete now."""
        if self._chunks:
            self._chunks.append(data)
            self._waiting += len(data)
            if self._waiting < self._needed:
                return []
            data = b"".join(self._chunks)
            self._chunks.clear()
        messages: list[EchoMessage] = []
        unpack, decoders, offset, end = HEADER.unpack_from, DECODERS, 0, len(data)
        self._needed = 8
        while end - offset >= 8:
            number, length = unpack(data, offset)
            stop = offset + 8 + length
            if stop > end:
                self._needed = 8 + length
                break
            messages.append(decoders[number](data[offset + 8 : stop]))
            offset = stop
        if offset < end:
            self._chunks.append(data[offset:] if offset else data)
            self._waiting = end - offset
        return messages


def compute(microseconds: float) -> None:
    """Use so much time of the processor, as a handler that does something."""
    if microseconds:
        end = time.thread_time() + microseconds / 1e6
        while time.thread_time() < end:
            pass


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Return the parser with the options that every peer has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 lets the system choose")
    return parser


def server_tls(files: list[str] | None) -> ssl.SSLContext | None:
    """Return a server's TLS context for ``[certificate, key]``, or None."""
    if not files:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    return context


def announce(port: int) -> None:
    """Print the listening port for the program that started the peer."""
    print(f"LISTENING {port}", flush=True)
