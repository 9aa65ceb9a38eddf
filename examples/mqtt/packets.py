"""The packets of MQTT 3.1.1 that a broker of QoS 0 needs."""

from __future__ import annotations

from typing import Annotated

import tao
from tao import framing as f

Text = Annotated[str, f.Counted("u16")]
Binary = Annotated[bytes, f.Counted("u16")]


class Connect(tao.StructMessage, number=1):
    protocol: Text
    level: f.u8
    flags: f.u8
    keep_alive: f.u16
    client_id: Text
    rest: bytes

    def will(self) -> tuple[str, bytes, bool] | None:
        """Return topic, payload and whether it is to be retained."""
        if not self.flags & 4:
            return None
        will = Will.deserialize(self.rest)
        return will.topic, will.payload, bool(self.flags & 32)


class Will(tao.StructMessage):
    """What follows CONNECT, if there is a will: then user name and password, perhaps."""

    topic: Text
    payload: Binary
    rest: bytes


class ConnAck(tao.StructMessage, number=2):
    session_present: bool
    code: f.u8


class Publish(tao.StructMessage, number=3):
    """A message of QoS 0: with others, a packet id follows the topic."""

    topic: Text
    payload: bytes


class Filter(tao.StructMessage):
    pattern: Text
    qos: f.u8


class Subscribe(tao.StructMessage, number=8):
    packet_id: f.u16
    filters: list[Filter]


class SubAck(tao.StructMessage, number=9):
    packet_id: f.u16
    codes: bytes


class Unsubscribe(tao.StructMessage, number=10):
    packet_id: f.u16
    patterns: list[Text]


class UnsubAck(tao.StructMessage, number=11):
    packet_id: f.u16


class PingReq(tao.StructMessage, number=12):
    """Is the broker there?"""


class PingResp(tao.StructMessage, number=13):
    """It is."""


class Disconnect(tao.StructMessage, number=14):
    """The client leaves, so its will is void."""


def matches(pattern: str, topic: str) -> bool:
    """Return whether a topic filter with ``+`` and ``#`` matches a topic."""
    levels, names = pattern.split("/"), topic.split("/")
    if topic.startswith("$") and levels[0] in ("+", "#"):
        return False
    for index, level in enumerate(levels):
        if level == "#":
            return True
        if index >= len(names) or level not in ("+", names[index]):
            return False
    return len(levels) == len(names)
