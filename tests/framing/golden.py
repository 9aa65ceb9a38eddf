"""Frames of well-known protocols, from their specifications."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from tao.framing import presets


class Golden(NamedTuple):
    """A frame, and what is in it."""

    preset: Callable[[], Any]
    frame: bytes
    number: Any
    body: bytes
    header: dict[str, Any]
    #: Where it is from.
    origin: str


def golden(
    preset: Callable[[], Any], frame: str | bytes, number: Any, body: str | bytes, origin: str,
    **header: Any,
) -> Golden:  # fmt: skip
    frame, body = (bytes.fromhex(each) if isinstance(each, str) else each for each in (frame, body))
    return Golden(preset, frame, number, body, header, origin)


def fix(text: str) -> bytes:
    return text.replace("|", "\x01").encode()


def jt808_2019() -> Any:
    return presets.jt808(2019)


FRAMES = [
    golden(
        presets.modbus_tcp, "1501 0000 0006 ff 03 006b 0003", 3, "006b0003",
        "MODBUS Application Protocol V1.1b3, 6.3", transaction=0x1501, unit=255,
    ),
    golden(
        presets.modbus_tcp, "1501 0000 0009 ff 03 06 022b 0000 0064", 3, "06022b00000064",
        "MODBUS Application Protocol V1.1b3, 6.3", transaction=0x1501, unit=255,
    ),
    golden(
        presets.gt06, "78780d01012345678901234500018cdd0d0a", 1, "0123456789012345",
        "GT06 protocol 1.8, login", serial=1,
    ),
    golden(
        presets.gt06, "787805010001d9dc0d0a", 1, "", "GT06 protocol 1.8, login response", serial=1
    ),
    golden(
        presets.gt06, "7979 0008 94 000000 0003 38ba 0d0a", 0x94, "000000",
        "Concox information transmission, recorded by Traccar", serial=3, magic=b"yy",
    ),
    golden(
        presets.fix,
        fix("8=FIX.4.2|9=178|35=8|49=PHLX|56=PERS|52=20071123-05:30:00.000|11=ATOMNOCCC9990900|"
            "20=3|150=E|39=E|55=MSFT|167=CS|54=1|38=15|40=2|44=15|58=PHLX EQUITY TESTING|59=0|"
            "47=C|32=0|31=0|151=15|14=0|6=0|10=128|"),
        "8",
        fix("49=PHLX|56=PERS|52=20071123-05:30:00.000|11=ATOMNOCCC9990900|"
            "20=3|150=E|39=E|55=MSFT|167=CS|54=1|38=15|40=2|44=15|58=PHLX EQUITY TESTING|59=0|"
            "47=C|32=0|31=0|151=15|14=0|6=0|"),
        "the execution report of the encyclopedias", version="FIX.4.2",
    ),
    golden(
        presets.mllp, b"\x0bMSH|^~\\&|A\rMSA|AA|1\r\x1c\x0d", 1, b"MSH|^~\\&|A\rMSA|AA|1\r",
        "HL7 Transport Specification: MLLP, release 1",
    ),
    golden(
        presets.mqtt, "10 0c 0004 4d515454 04 02 003c 0000", 1, "00044d5154540402003c0000",
        "MQTT 3.1.1, 3.1", flags=0,
    ),
    golden(presets.mqtt, "82 06 000a 0001 61 00", 8, "000a00016100", "MQTT 3.1.1, 3.8", flags=2),
    golden(presets.mqtt, "d0 00", 13, "", "MQTT 3.1.1, 3.13", flags=0),
    golden(
        presets.iso8583,
        "0020 30383030 2020000000800000 303030303030 303030303031 3239313130303031",
        "0800", "2020000000800000 303030303030 303030303031 3239313130303031",
        "ISO 8583-1, network management",
    ),
    golden(
        presets.dlms_wrapper,
        "0001 0010 0001 001f 601da109060760857405080101be10040e01000000065f1f0400007e1f04b0", 1,
        "601da109060760857405080101be10040e01000000065f1f0400007e1f04b0",
        "DLMS UA 1000-2, AARQ in a wrapper", source=16, destination=1,
    ),
    golden(
        presets.iec104, "68 04 07000000", 1, "", "IEC 60870-5-104, STARTDT act",
        control=b"\7\0\0\0",
    ),
    golden(
        presets.iec104, "68 0e 00000000 64 01 0600 0100 000000 14", 1, "64010600010000000014",
        "IEC 60870-5-104, general interrogation", control=bytes(4),
    ),
    golden(
        presets.hsms, "0000000a ffff 00 00 00 01 00000001", (1, 0, 0), "", "SEMI E37, Select.req",
        session=0xFFFF, system=1,
    ),
    golden(
        presets.hsms, "0000000a 0001 81 0d 00 00 00000005", (0, 1, 13), "", "SEMI E37, S1F13 W",
        session=1, wait=1, system=5,
    ),
    golden(
        presets.opcua_tcp, "41434b 46 1c000000 00000000 00000100 00000100 00000000 00000000",
        "ACK", "0000000000000100000001000000000000000000", "OPC UA part 6, 7.1.2.4", chunk="F",
    ),
    golden(presets.soupbintcp, "0001 48", "H", "", "SoupBinTCP 3.00, server heartbeat"),
    golden(
        presets.soupbintcp, "0003 53 6869", "S", b"hi", "SoupBinTCP 3.00, sequenced data"
    ),
    golden(
        presets.amqp091, "01 0000 00000004 000a0033 ce", 1, "000a0033",
        "AMQP 0-9-1, connection.close-ok", channel=0,
    ),
    golden(
        presets.jt808,
        "7e 0100 002d 013511221122 0005 00000000373031303748422d5230334742440000000000000000"
        "0000003233363631303402cbd5424136383630 38 7e",
        0x100,
        "00000000373031303748422d52303347424400000000000000000000003233363631303402cbd5424136383630",
        "JT/T 808-2013, registration, recorded by Traccar", phone=13511221122, serial=5,
    ),
    golden(
        presets.jt808, "7e 0002 0000 013812345678 007d02 4d 7e", 2, "",
        "JT/T 808-2013, heartbeat with an escaped serial number", phone=13812345678, serial=0x7E,
    ),
    golden(
        presets.jt808, "7e 0002 0000 050764008195 000d 7d01 7e", 2, "",
        "JT/T 808-2013, heartbeat with an escaped checksum", phone=50764008195, serial=13,
    ),
    golden(
        jt808_2019,
        "7e 8100 400e 01 00000000017299841738 0000 000000 3137323939383431373338 ba 7e",
        0x8100, "000000 3137323939383431373338", "JT/T 808-2019, response to a registration",
        phone=17299841738, serial=0, version=1,
    ),
    golden(
        presets.stx_etx, b"\x02READ 1\x03", 1, b"READ 1", "ISO 1745",
    ),
]  # fmt: skip
