"""Well-known protocols, ready to use: each function returns a codec.

``python -m tao frame modbus_tcp 000100000006110300...`` prints an annotated dump of a frame.
"""

from __future__ import annotations

from typing import Any, Literal

from tao.framing.choice import Choice
from tao.framing.delimited import Delimited
from tao.framing.frame import Frame
from tao.framing.json_lines import JsonLines
from tao.framing.parts import Bits, Body, Checksum, Field, Length, Magic, Tail
from tao.framing.preamble import Preamble
from tao.framing.stuffing import DLE, JT808

__all__ = [
    "amqp091",
    "dlms_wrapper",
    "fix",
    "gt06",
    "hsms",
    "iec104",
    "iso8583",
    "json_lines",
    "jt808",
    "mllp",
    "modbus_tcp",
    "mqtt",
    "opcua_tcp",
    "soupbintcp",
    "stx_etx",
]

_SOH = b"\x01"


def modbus_tcp(max_bytes: int = 260) -> Frame:
    """Return the codec of Modbus TCP (MODBUS Messaging on TCP/IP Implementation Guide 1.0b).

    The number is the function code, the body the data that follow it.
    """
    return Frame(
        Field("transaction", "u16", correlate=True),
        Field("protocol", "u16", const=0),
        Length("u16", covers="unit..body"),
        Field("unit", "u8", echo=True),
        Field("function", "u8", number=True),
        Body(),
        max_bytes=max_bytes,
    )


def gt06(max_bytes: int = 4096) -> Choice:
    """Return the codec of GT06 and Concox trackers, with short and long packets.

    The number is the protocol number, the body the information content.
    """
    return Choice(
        _gt06(b"\x78\x78", "u8", min(max_bytes, 260)), _gt06(b"\x79\x79", "u16", max_bytes)
    )


def _gt06(magic: bytes, length: str, max_bytes: int) -> Frame:
    return Frame(
        Magic(magic),
        Length(length, covers="type..crc"),
        Field("type", "u8", number=True),
        Body(),
        Field("serial", "u16", correlate=True),
        Checksum("crc16-x25", over="length..serial"),
        Tail(b"\r\n"),
        max_bytes=max_bytes,
    )


def fix(version: str = "FIX.4.4", max_bytes: int = 65536) -> Frame:
    """Return the codec of FIX in tag=value encoding.

    The number is the message type, tag 35, a ``str``. The body are the fields between that and the
    checksum, each with its SOH.

    Args:
        version: BeginString, tag 8, of messages that are written.
    """
    return Frame(
        Magic(b"8=", name="begin"),
        Field("version", "text", end=_SOH, default=version),
        Magic(b"9=", name="length_tag"),
        Length("digits", end=_SOH, covers="type_tag..body"),
        Magic(b"35=", name="type_tag"),
        Field("type", "text", end=_SOH, number=True),
        Body(),
        Magic(b"10=", name="checksum_tag"),
        Checksum("mod256", over="begin..body", name="checksum"),
        Tail(_SOH),
        max_bytes=max_bytes,
    )


def mllp(max_bytes: int = 1024 * 1024) -> Frame:
    """Return the codec of MLLP, which carries HL7 version 2. All messages have the number 1."""
    return Frame(Magic(b"\x0b"), Body(), Tail(b"\x1c\x0d"), max_bytes=max_bytes)


def mqtt(pings: bool = False, max_bytes: int = 256 * 1024) -> Frame:
    """Return the codec of MQTT 3.1.1 and 5.0: fixed header and the rest of the packet.

    The number is the packet type. Some types want flags: ``header={"flags": 2}`` for SUBSCRIBE.

    Args:
        pings: whether a heartbeat is PINGREQ, for a client; a server sends none.
    """
    return Frame(
        Bits("u8", Field("type", 4, number=True), Field("flags", 4, default=0)),
        Length("varint4", covers="body"),
        Body(),
        heartbeat=b"\xc0\x00" if pings else None,
        heartbeats=(13,),
        max_bytes=max_bytes,
    )


def iso8583(
    length: str = "u16",
    counts_itself: bool = False,
    tpdu: bool = False,
    mti: Literal["text", "bcd"] = "text",
    max_bytes: int = 65536,
) -> Frame:
    """Return the codec of ISO 8583 over TCP. The number is the MTI, the body what follows it.

    Args:
        length: how the length is written: ``"u16"``, ``"u16le"``, ``"u32"``, ``"digits4"``.
        counts_itself: whether it includes its own bytes. Otherwise zero is a keep-alive.
        tpdu: whether a TPDU of five bytes comes before the MTI.
        mti: ``"text"``: four digits, a ``str``; ``"bcd"``: two bytes, an ``int``.
    """
    first = "tpdu" if tpdu else "mti"
    header = [Field("tpdu", "bytes5", echo=True)] if tpdu else []
    return Frame(
        Length(
            length,
            covers=f"{'length' if counts_itself else first}..body",
            zero_is_keepalive=not counts_itself,
        ),
        *header,
        Field("mti", "text4" if mti == "text" else "bcd2", number=True),
        Body(),
        max_bytes=max_bytes,
    )


def dlms_wrapper(max_bytes: int = 65536) -> Frame:
    """Return the codec of the DLMS/COSEM wrapper (IEC 62056-47). All messages have the number 1."""
    return Frame(
        Field("version", "u16", const=1),
        Field("source", "u16"),
        Field("destination", "u16"),
        Length("u16", covers="body"),
        Body(),
        max_bytes=max_bytes,
    )


def iec104() -> Frame:
    """Return the codec of IEC 60870-5-104: APCI and ASDU. All messages have the number 1."""
    return Frame(
        Magic(b"\x68"),
        Length("u8", covers="control..body"),
        Field("control", "bytes4"),
        Body(),
        byte_order="little",
        max_bytes=255,
    )


def hsms(max_bytes: int = 16 * 1024 * 1024) -> Frame:
    """Return the codec of HSMS (SEMI E37), which carries SECS-II.

    The number is session type, stream and function: ``(0, 1, 13)`` for S1F13, ``(1, 0, 0)`` for
    Select.req.
    """
    return Frame(
        Length("u32", covers="session..body"),
        Field("session", "u16", echo=True, default=0xFFFF),
        Bits("u8", Field("wait", 1, default=0), Field("stream", 7)),
        Field("function", "u8"),
        Field("presentation", "u8", const=0),
        Field("kind", "u8"),
        Field("system", "u32", correlate=True),
        Body(),
        numbers=("kind", "stream", "function"),
        reply_when=_is_secondary,
        max_bytes=max_bytes,
    )


def _is_secondary(header: Any, number: Any) -> bool:
    """Return whether an HSMS message is a reply: it has an even function or session type."""
    return bool((header.kind or header.function) % 2 == 0)


def opcua_tcp(max_bytes: int = 65536) -> Frame:
    """Return the codec of OPC UA over TCP: one frame a chunk. The number is the type, a ``str``."""
    return Frame(
        Field("type", "text3", number=True),
        Field("chunk", "text1", default="F"),
        Length("u32", covers="type..body"),
        Body(),
        byte_order="little",
        max_bytes=max_bytes,
    )


def soupbintcp(client: bool = True, max_bytes: int = 65537) -> Frame:
    """Return the codec of SoupBinTCP 3.00. The number is the packet type, a ``str``.

    Args:
        client: whether heartbeats are those of a client, ``R``, or of a server, ``H``.
    """
    return Frame(
        Length("u16", covers="type..body"),
        Field("type", "text1", number=True),
        Body(),
        heartbeat=b"\0\x01R" if client else b"\0\x01H",
        heartbeats=("R", "H"),
        max_bytes=max_bytes,
    )


def amqp091(max_bytes: int = 131072 + 8) -> Preamble:
    """Return the codec of AMQP 0-9-1. The number is the frame type.

    A client writes ``codec.preamble`` first.
    """
    frame = Frame(
        Field("type", "u8", number=True),
        Field("channel", "u16", echo=True, default=0),
        Length("u32", covers="body"),
        Body(),
        Tail(b"\xce"),
        heartbeat=b"\x08\0\0\0\0\0\0\xce",
        heartbeats=(8,),
        max_bytes=max_bytes,
    )
    return Preamble(b"AMQP\0\0\x09\x01", frame)


def jt808(
    version: Literal[2013, 2019] = 2013,
    on_error: Literal["close", "resync"] = "close",
    max_bytes: int = 2600,
) -> Delimited:
    """Return the codec of JT/T 808, which Chinese vehicle terminals speak.

    The number is the message id, the body the message body; ``phone`` is the terminal's number as
    an int. A message in several parts has ``split=1``, ``total`` and ``part``.

    Args:
        version: the year of the standard. That of 2019 has a phone of 20 digits, and a version.
        on_error: whether an invalid frame closes the connection, or is skipped (``"resync"``).
    """
    newer = version == 2019
    if not newer and version != 2013:
        raise ValueError(f"version must be 2013 or 2019, not {version!r}")
    frame = Frame(
        Field("id", "u16", number=True),
        Bits(
            "u16",
            Field("reserved", 1, default=0),
            Field("versioned", 1, default=int(newer)),
            Field("split", 1, default=0),
            Field("encryption", 3, default=0),
            Length(10, covers="body"),
        ),
        *([Field("version", "u8", default=1)] if newer else []),
        Field("phone", "bcd10" if newer else "bcd6", echo=True),
        Field("serial", "u16", correlate=True),
        Field("total", "u16", when="split"),
        Field("part", "u16", when="split"),
        Body(),
        Checksum("xor8", over="id..body"),
        max_bytes=max_bytes,
    )
    return Delimited(escape=JT808, frame=frame, on_error=on_error, max_bytes=max_bytes)


def json_lines(key: str = "type", max_bytes: int = 1024 * 1024) -> JsonLines:
    """Return the codec of JSON lines: a JSON object a line, which contains its message number.

    ``serialize()`` returns a dictionary of the other members, and ``deserialize`` is given one.

    Args:
        key: the name of the member that is the number, an int or a str.
    """
    return JsonLines(key, max_bytes)


def stx_etx(
    check: Literal["lrc"] | None = None, transparent: bool = False, max_bytes: int = 65536
) -> Frame | Delimited:
    """Return the codec of bodies between STX and ETX. All messages have the number 1.

    Args:
        check: ``"lrc"``: a longitudinal redundancy check follows ETX, the exclusive-or of the body
            and ETX.
        transparent: DLE stands in front of STX and ETX, and is doubled in the body, which so may
            contain any bytes.
    """
    if check not in (None, "lrc"):
        raise ValueError(f"check must be 'lrc' or None, not {check!r}")
    if transparent:
        if check is not None:
            raise ValueError("with transparent=True there is no check")
        return Delimited(escape=DLE, max_bytes=max_bytes)
    checks = [] if check is None else [Checksum("xor8", over="body..etx", name="lrc")]
    return Frame(
        Magic(b"\x02", name="stx"), Body(), Tail(b"\x03", name="etx"), *checks, max_bytes=max_bytes
    )
