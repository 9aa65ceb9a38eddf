"""Checksums: the check value of each, and the spellings of their names."""

from __future__ import annotations

import pytest

from tao.framing.checksums import algorithm
from tao.framing.crc_catalogue import ALIASES, CRCS

CHECK = b"123456789"


@pytest.mark.parametrize("name", CRCS)
def test_each_crc_has_its_check_value(name: str) -> None:
    """It has the check value of the catalogue; for no bytes, it returns the initial register."""
    found = algorithm(name)
    assert found.function(CHECK) == CRCS[name].check
    assert found.kind == f"u{CRCS[name].width}"
    assert found.function(CHECK[:4] + CHECK[4:]) == found.function(CHECK)


@pytest.mark.parametrize("alias", ALIASES)
def test_aliases(alias: str) -> None:
    """Each alias names an entry of the catalogue."""
    assert algorithm(alias).name == ALIASES[alias]


@pytest.mark.parametrize(
    ("name", "kind", "value"),
    [
        ("sum8", "u8", 477 % 256),
        ("sum16", "u16", 477),
        ("xor8", "u8", 0x31),
        ("mod256", "digits3", 477 % 256),
    ],
)
def test_simple_checksums(name: str, kind: str, value: int) -> None:
    """Sums and exclusive-or have the expected values."""
    assert algorithm(name).kind == kind
    assert algorithm(name).function(CHECK) == value
    assert algorithm(name).function(b"") == 0


def test_names_are_normalised() -> None:
    """Case and punctuation do not matter; the error for an unknown name suggests a similar one."""
    for name in ("crc16-x25", "CRC_16/X-25", "CRC-16/IBM-SDLC"):
        assert algorithm(name).name == "CRC-16/IBM-SDLC"
    with pytest.raises(
        ValueError, match="no checksum 'crc16-modbsu'; did you mean 'CRC-16/MODBUS'"
    ):
        algorithm("crc16-modbsu")
    with pytest.raises(ValueError, match=r"there is no checksum 'qqq'$"):
        algorithm("qqq")
