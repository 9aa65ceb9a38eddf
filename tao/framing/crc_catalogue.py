"""CRC parameters by name.

The names, parameters and check values are those of the reveng catalogue, "Catalogue of parametrised
CRC algorithms" by Greg Cook, https://reveng.sourceforge.io/crc-catalogue/all.htm: its 63 entries of
8, 16 and 32 bits.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["ALIASES", "CRCS", "Crc"]


class Crc(NamedTuple):
    """The parameters of one CRC, in the catalogue's terms.

    Attributes:
        width: its size, in bits.
        poly: the polynomial, without its highest term.
        init: the register at the beginning.
        reflected: whether bits are processed least significant first (``refin`` and ``refout``,
            which are equal in all entries).
        xorout: what the register is combined with at the end.
        check: the CRC of ``b"123456789"``.
    """

    width: int
    poly: int
    init: int
    reflected: bool
    xorout: int
    check: int


# fmt: off
CRCS: dict[str, Crc] = {
    "CRC-8/AUTOSAR": Crc(8, 0x2F, 0xFF, False, 0xFF, 0xDF),
    "CRC-8/BLUETOOTH": Crc(8, 0xA7, 0x00, True, 0x00, 0x26),
    "CRC-8/CDMA2000": Crc(8, 0x9B, 0xFF, False, 0x00, 0xDA),
    "CRC-8/DARC": Crc(8, 0x39, 0x00, True, 0x00, 0x15),
    "CRC-8/DVB-S2": Crc(8, 0xD5, 0x00, False, 0x00, 0xBC),
    "CRC-8/GSM-A": Crc(8, 0x1D, 0x00, False, 0x00, 0x37),
    "CRC-8/GSM-B": Crc(8, 0x49, 0x00, False, 0xFF, 0x94),
    "CRC-8/HITAG": Crc(8, 0x1D, 0xFF, False, 0x00, 0xB4),
    "CRC-8/I-432-1": Crc(8, 0x07, 0x00, False, 0x55, 0xA1),
    "CRC-8/I-CODE": Crc(8, 0x1D, 0xFD, False, 0x00, 0x7E),
    "CRC-8/LTE": Crc(8, 0x9B, 0x00, False, 0x00, 0xEA),
    "CRC-8/MAXIM-DOW": Crc(8, 0x31, 0x00, True, 0x00, 0xA1),
    "CRC-8/MIFARE-MAD": Crc(8, 0x1D, 0xC7, False, 0x00, 0x99),
    "CRC-8/NRSC-5": Crc(8, 0x31, 0xFF, False, 0x00, 0xF7),
    "CRC-8/OPENSAFETY": Crc(8, 0x2F, 0x00, False, 0x00, 0x3E),
    "CRC-8/ROHC": Crc(8, 0x07, 0xFF, True, 0x00, 0xD0),
    "CRC-8/SAE-J1850": Crc(8, 0x1D, 0xFF, False, 0xFF, 0x4B),
    "CRC-8/SMBUS": Crc(8, 0x07, 0x00, False, 0x00, 0xF4),
    "CRC-8/TECH-3250": Crc(8, 0x1D, 0xFF, True, 0x00, 0x97),
    "CRC-8/WCDMA": Crc(8, 0x9B, 0x00, True, 0x00, 0x25),
    "CRC-16/ARC": Crc(16, 0x8005, 0x0000, True, 0x0000, 0xBB3D),
    "CRC-16/CDMA2000": Crc(16, 0xC867, 0xFFFF, False, 0x0000, 0x4C06),
    "CRC-16/CMS": Crc(16, 0x8005, 0xFFFF, False, 0x0000, 0xAEE7),
    "CRC-16/DDS-110": Crc(16, 0x8005, 0x800D, False, 0x0000, 0x9ECF),
    "CRC-16/DECT-R": Crc(16, 0x0589, 0x0000, False, 0x0001, 0x007E),
    "CRC-16/DECT-X": Crc(16, 0x0589, 0x0000, False, 0x0000, 0x007F),
    "CRC-16/DNP": Crc(16, 0x3D65, 0x0000, True, 0xFFFF, 0xEA82),
    "CRC-16/EN-13757": Crc(16, 0x3D65, 0x0000, False, 0xFFFF, 0xC2B7),
    "CRC-16/GENIBUS": Crc(16, 0x1021, 0xFFFF, False, 0xFFFF, 0xD64E),
    "CRC-16/GSM": Crc(16, 0x1021, 0x0000, False, 0xFFFF, 0xCE3C),
    "CRC-16/IBM-3740": Crc(16, 0x1021, 0xFFFF, False, 0x0000, 0x29B1),
    "CRC-16/IBM-SDLC": Crc(16, 0x1021, 0xFFFF, True, 0xFFFF, 0x906E),
    "CRC-16/ISO-IEC-14443-3-A": Crc(16, 0x1021, 0xC6C6, True, 0x0000, 0xBF05),
    "CRC-16/KERMIT": Crc(16, 0x1021, 0x0000, True, 0x0000, 0x2189),
    "CRC-16/LJ1200": Crc(16, 0x6F63, 0x0000, False, 0x0000, 0xBDF4),
    "CRC-16/M17": Crc(16, 0x5935, 0xFFFF, False, 0x0000, 0x772B),
    "CRC-16/MAXIM-DOW": Crc(16, 0x8005, 0x0000, True, 0xFFFF, 0x44C2),
    "CRC-16/MCRF4XX": Crc(16, 0x1021, 0xFFFF, True, 0x0000, 0x6F91),
    "CRC-16/MODBUS": Crc(16, 0x8005, 0xFFFF, True, 0x0000, 0x4B37),
    "CRC-16/NRSC-5": Crc(16, 0x080B, 0xFFFF, True, 0x0000, 0xA066),
    "CRC-16/OPENSAFETY-A": Crc(16, 0x5935, 0x0000, False, 0x0000, 0x5D38),
    "CRC-16/OPENSAFETY-B": Crc(16, 0x755B, 0x0000, False, 0x0000, 0x20FE),
    "CRC-16/PROFIBUS": Crc(16, 0x1DCF, 0xFFFF, False, 0xFFFF, 0xA819),
    "CRC-16/RIELLO": Crc(16, 0x1021, 0xB2AA, True, 0x0000, 0x63D0),
    "CRC-16/SPI-FUJITSU": Crc(16, 0x1021, 0x1D0F, False, 0x0000, 0xE5CC),
    "CRC-16/T10-DIF": Crc(16, 0x8BB7, 0x0000, False, 0x0000, 0xD0DB),
    "CRC-16/TELEDISK": Crc(16, 0xA097, 0x0000, False, 0x0000, 0x0FB3),
    "CRC-16/TMS37157": Crc(16, 0x1021, 0x89EC, True, 0x0000, 0x26B1),
    "CRC-16/UMTS": Crc(16, 0x8005, 0x0000, False, 0x0000, 0xFEE8),
    "CRC-16/USB": Crc(16, 0x8005, 0xFFFF, True, 0xFFFF, 0xB4C8),
    "CRC-16/XMODEM": Crc(16, 0x1021, 0x0000, False, 0x0000, 0x31C3),
    "CRC-32/AIXM": Crc(32, 0x814141AB, 0x00000000, False, 0x00000000, 0x3010BF7F),
    "CRC-32/AUTOSAR": Crc(32, 0xF4ACFB13, 0xFFFFFFFF, True, 0xFFFFFFFF, 0x1697D06A),
    "CRC-32/BASE91-D": Crc(32, 0xA833982B, 0xFFFFFFFF, True, 0xFFFFFFFF, 0x87315576),
    "CRC-32/BZIP2": Crc(32, 0x04C11DB7, 0xFFFFFFFF, False, 0xFFFFFFFF, 0xFC891918),
    "CRC-32/CD-ROM-EDC": Crc(32, 0x8001801B, 0x00000000, True, 0x00000000, 0x6EC2EDC4),
    "CRC-32/CKSUM": Crc(32, 0x04C11DB7, 0x00000000, False, 0xFFFFFFFF, 0x765E7680),
    "CRC-32/ISCSI": Crc(32, 0x1EDC6F41, 0xFFFFFFFF, True, 0xFFFFFFFF, 0xE3069283),
    "CRC-32/ISO-HDLC": Crc(32, 0x04C11DB7, 0xFFFFFFFF, True, 0xFFFFFFFF, 0xCBF43926),
    "CRC-32/JAMCRC": Crc(32, 0x04C11DB7, 0xFFFFFFFF, True, 0x00000000, 0x340BC6D9),
    "CRC-32/MEF": Crc(32, 0x741B8CD7, 0xFFFFFFFF, True, 0x00000000, 0xD2C22F51),
    "CRC-32/MPEG-2": Crc(32, 0x04C11DB7, 0xFFFFFFFF, False, 0x00000000, 0x0376E6E7),
    "CRC-32/XFER": Crc(32, 0x000000AF, 0x00000000, False, 0x00000000, 0xBD0BE338),
}

#: Other names in use, and the catalogue's.
ALIASES: dict[str, str] = {
    "CRC-8/ITU": "CRC-8/I-432-1",
    "CRC-8/MAXIM": "CRC-8/MAXIM-DOW",
    "DOW-CRC": "CRC-8/MAXIM-DOW",
    "CRC-8": "CRC-8/SMBUS",
    "CRC-8/AES": "CRC-8/TECH-3250",
    "CRC-8/EBU": "CRC-8/TECH-3250",
    "ARC": "CRC-16/ARC",
    "CRC-16": "CRC-16/ARC",
    "CRC-16/LHA": "CRC-16/ARC",
    "CRC-IBM": "CRC-16/ARC",
    "R-CRC-16": "CRC-16/DECT-R",
    "X-CRC-16": "CRC-16/DECT-X",
    "CRC-16/DARC": "CRC-16/GENIBUS",
    "CRC-16/EPC": "CRC-16/GENIBUS",
    "CRC-16/EPC-C1G2": "CRC-16/GENIBUS",
    "CRC-16/I-CODE": "CRC-16/GENIBUS",
    "CRC-16/AUTOSAR": "CRC-16/IBM-3740",
    "CRC-16/CCITT-FALSE": "CRC-16/IBM-3740",
    "CRC-16/ISO-HDLC": "CRC-16/IBM-SDLC",
    "CRC-16/ISO-IEC-14443-3-B": "CRC-16/IBM-SDLC",
    "CRC-16/X-25": "CRC-16/IBM-SDLC",
    "CRC-B": "CRC-16/IBM-SDLC",
    "X-25": "CRC-16/IBM-SDLC",
    "CRC-A": "CRC-16/ISO-IEC-14443-3-A",
    "CRC-16/BLUETOOTH": "CRC-16/KERMIT",
    "CRC-16/CCITT": "CRC-16/KERMIT",
    "CRC-16/CCITT-TRUE": "CRC-16/KERMIT",
    "CRC-16/V-41-LSB": "CRC-16/KERMIT",
    "CRC-CCITT": "CRC-16/KERMIT",
    "KERMIT": "CRC-16/KERMIT",
    "CRC-16/MAXIM": "CRC-16/MAXIM-DOW",
    "MODBUS": "CRC-16/MODBUS",
    "CRC-16/IEC-61158-2": "CRC-16/PROFIBUS",
    "CRC-16/AUG-CCITT": "CRC-16/SPI-FUJITSU",
    "CRC-16/BUYPASS": "CRC-16/UMTS",
    "CRC-16/VERIFONE": "CRC-16/UMTS",
    "CRC-16/ACORN": "CRC-16/XMODEM",
    "CRC-16/LTE": "CRC-16/XMODEM",
    "CRC-16/V-41-MSB": "CRC-16/XMODEM",
    "XMODEM": "CRC-16/XMODEM",
    "ZMODEM": "CRC-16/XMODEM",
    "CRC-32Q": "CRC-32/AIXM",
    "CRC-32D": "CRC-32/BASE91-D",
    "CRC-32/AAL5": "CRC-32/BZIP2",
    "CRC-32/DECT-B": "CRC-32/BZIP2",
    "B-CRC-32": "CRC-32/BZIP2",
    "CKSUM": "CRC-32/CKSUM",
    "CRC-32/POSIX": "CRC-32/CKSUM",
    "CRC-32/BASE91-C": "CRC-32/ISCSI",
    "CRC-32/CASTAGNOLI": "CRC-32/ISCSI",
    "CRC-32/INTERLAKEN": "CRC-32/ISCSI",
    "CRC-32C": "CRC-32/ISCSI",
    "CRC-32": "CRC-32/ISO-HDLC",
    "CRC-32/ADCCP": "CRC-32/ISO-HDLC",
    "CRC-32/V-42": "CRC-32/ISO-HDLC",
    "CRC-32/XZ": "CRC-32/ISO-HDLC",
    "PKZIP": "CRC-32/ISO-HDLC",
    "JAMCRC": "CRC-32/JAMCRC",
    "XFER": "CRC-32/XFER",
}
# fmt: on
