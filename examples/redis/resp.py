"""RESP, the protocol of Redis (https://redis.io/docs/latest/develop/reference/protocol-spec)."""

from __future__ import annotations

from typing import Any

import tao
from tao import framing

CRLF = b"\r\n"


class Reply:
    """What the server answers, as it is on the wire."""

    message_number = "reply"

    def __init__(self, data: bytes) -> None:
        self.data: bytes = data

    def serialize(self) -> bytes:
        return self.data


def ok(text: str) -> Reply:
    return Reply(b"+%b\r\n" % text.encode())


def error(text: str) -> Reply:
    return Reply(b"-ERR %b\r\n" % text.encode(errors="replace"))


def integer(value: int) -> Reply:
    return Reply(b":%d\r\n" % value)


def bulk(value: bytes | None) -> Reply:
    return Reply(b"$-1\r\n" if value is None else b"$%d\r\n%b\r\n" % (len(value), value))


def array(values: list[bytes]) -> Reply:
    items = b"".join(bulk(value).data for value in values)
    return Reply(b"*%d\r\n%b" % (len(values), items))


class Resp(tao.Codec):
    """Commands come, with their name as the message number; replies go."""

    def encode(self, message: tao.Message) -> bytes:
        return message.serialize()

    def decoder(self, registry: tao.Registry) -> CommandDecoder:
        return CommandDecoder(registry)


class CommandDecoder(framing.FrameDecoder):
    """A command is an array of bulk strings, or a line of words. Its value is a list of bytes."""

    def __init__(self, registry: tao.Registry) -> None:
        super().__init__(registry, max_bytes=64 * 1024 * 1024)
        self.words: list[bytes] = []  # of the command that is incomplete
        self.left: int = 0  # how many it lacks
        self.at: int = 0  # how far it is read

    def frame(self, data: memoryview, start: int) -> tuple[int, Any, Any] | None:
        if not self.at:
            end = self.find(data, start, CRLF)
            if end < 0:
                return None
            line = bytes(data[start:end])
            if not line.startswith(b"*"):
                return self.command(end + 2, line.split())
            self.left, self.at = number(line), end + 2 - start
        while self.left > 0:
            end = self.find(data, start, CRLF, self.at)
            if end < 0:
                return None
            begin, size = end + 2, number(bytes(data[start + self.at : end]), b"$")
            if begin + size + 2 > len(data):
                self.need(start, begin + size + 2 - start)
                return None
            self.words.append(bytes(data[begin : begin + size]))
            self.at, self.left = begin + size + 2 - start, self.left - 1
        end, words = start + self.at, self.words
        self.at, self.words = 0, []
        return self.command(end, words)

    def command(self, end: int, words: list[bytes]) -> tuple[int, Any, Any]:
        return end, words[0].upper().decode(errors="replace") if words else None, words


def number(line: bytes, kind: bytes = b"*") -> int:
    if line[:1] != kind or not line[1:].isdigit():
        raise tao.BadData(f"expected {kind.decode()} and a length")
    return int(line[1:])
