"""Headers of the PROXY protocol: from bytes to addresses."""

from __future__ import annotations

import ipaddress
import struct
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tao.wire.proxy_protocol import LONGEST, BadHeader, HeaderReader, ProxyNetworks

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")


def line(protocol: str, *fields: object) -> bytes:
    """Return a header of version 1."""
    return " ".join(["PROXY", protocol, *map(str, fields)]).encode() + b"\r\n"


def binary(kind: int, addresses: bytes = b"", command: int = 0x21, more: bytes = b"") -> bytes:
    """Return a header of version 2."""
    block = addresses + more
    return SIGNATURE + struct.pack(">BBH", command, kind, len(block)) + block


def read(*pieces: bytes) -> tuple[HeaderReader, bytes]:
    """Feed a stream in pieces to a reader; return it and the remaining bytes."""
    reader, left = HeaderReader(), b""
    for piece in pieces:
        left += piece
        if not reader.complete:
            left = left[reader.feed(left) :]
    return reader, left


def source_of(header: bytes) -> Any:
    reader, left = read(header)
    assert reader.complete and not left
    return reader.source


V4 = bytes([192, 0, 2, 1, 198, 51, 100, 7]) + struct.pack(">HH", 56324, 443)
V6 = (
    ipaddress.ip_address("2001:db8::1").packed
    + ipaddress.ip_address("2001:db8::2").packed
    + struct.pack(">HH", 56324, 443)
)
MAPPED = ipaddress.ip_address("::ffff:192.0.2.1").packed * 2 + struct.pack(">HH", 1, 2)
UNIX = b"/run/peer".ljust(108, b"\0") + b"/run/proxy".ljust(108, b"\0")
NAMELESS, ABSTRACT = bytes(216), b"\0peer".ljust(216, b"\0")

GOLDEN = {
    "v1 IPv4": (line("TCP4", "192.0.2.1", "198.51.100.7", 56324, 443), ("192.0.2.1", 56324)),
    "v1 IPv6": (line("TCP6", "2001:DB8::1", "2001:db8::2", 0, 65535), ("2001:db8::1", 0)),
    "v1 mapped": (line("TCP6", "::ffff:192.0.2.1", "::1", 5, 6), ("192.0.2.1", 5)),
    "v1 unknown": (line("UNKNOWN"), None),
    "v1 unknown with more": (line("UNKNOWN", "ff::1", "what", "ever"), None),
    "v1 longest": (b"PROXY UNKNOWN".ljust(105, b"x").replace(b"Nx", b"N ") + b"\r\n", None),
    "v2 IPv4": (binary(0x11, V4), ("192.0.2.1", 56324)),
    "v2 UDP": (binary(0x12, V4), ("192.0.2.1", 56324)),
    "v2 IPv6": (binary(0x21, V6), ("2001:db8::1", 56324)),
    "v2 mapped": (binary(0x21, MAPPED), ("192.0.2.1", 1)),
    "v2 Unix": (binary(0x31, UNIX), "/run/peer"),
    "v2 Unix without a name": (binary(0x31, NAMELESS), None),
    "v2 abstract": (binary(0x31, ABSTRACT), "\0peer"),
    "v2 with more": (binary(0x11, V4, more=b"\x04\0\x03xyz"), ("192.0.2.1", 56324)),
    "v2 longest": (binary(0x11, V4, more=bytes(LONGEST - 28)), ("192.0.2.1", 56324)),
    "v2 LOCAL": (binary(0x00, command=0x20), None),
    "v2 LOCAL with addresses": (binary(0x11, V4, command=0x20), None),
    "v2 LOCAL of whatever kind": (binary(0xFF, b"x", command=0x20), None),
    "v2 unspecified": (binary(0x00), None),
    "v2 unspecified with more": (binary(0x01, b"xyz"), None),
    "v2 without a transport": (binary(0x10, V4), None),
}

BAD = {
    "nothing of the kind": (b"GET / HTTP/1.1\r\n", "does not begin"),
    "TLS": (bytes.fromhex("1603010200"), "does not begin"),
    "small letters": (b"proxy TCP4 ", "does not begin"),
    "v1 too long": (b"PROXY UNKNOWN ".ljust(106, b"x") + b"\r\n", "longer than 107"),
    "v1 endless": (b"PROXY TCP4 ".ljust(107, b"1"), "longer than 107"),
    "v1 empty": (b"PROXY \r\n", "two addresses"),
    "v1 another protocol": (line("UDP4", "192.0.2.1", "192.0.2.2", 1, 2), "two addresses"),
    "v1 a field too few": (line("TCP4", "192.0.2.1", "192.0.2.2", 1), "two addresses"),
    "v1 a field too many": (line("TCP4", "192.0.2.1", "192.0.2.2", 1, 2, 3), "two addresses"),
    "v1 two spaces": (line("TCP4", "", "192.0.2.1", "192.0.2.2", 1, 2), "two addresses"),
    "v1 wrong family": (line("TCP4", "::1", "::2", 1, 2), "not of IPv4"),
    "v1 leading zeros": (line("TCP4", "192.0.2.01", "192.0.2.2", 1, 2), "not of IPv4"),
    "v1 wrong family 6": (line("TCP6", "192.0.2.1", "192.0.2.2", 1, 2), "not of IPv6"),
    "v1 scope": (line("TCP6", "fe80::1%1", "fe80::2", 1, 2), "not of IPv6"),
    "v1 not ASCII": (line("TCP4", "\u0661.0.2.1", "192.0.2.2", 1, 2), "not of IPv4"),
    "v1 bad destination": (line("TCP4", "192.0.2.1", "x", 1, 2), "not of IPv4"),
    "v1 port": (line("TCP4", "192.0.2.1", "192.0.2.2", 65536, 2), "more than 65535"),
    "v1 signed port": (line("TCP4", "192.0.2.1", "192.0.2.2", "+1", 2), "is no number"),
    "v1 port with a zero": (line("TCP4", "192.0.2.1", "192.0.2.2", 1, "02"), "is no number"),
    "v1 newline only": (b"PROXY UNKNOWN\n".ljust(107, b"x"), "longer than 107"),
    "v2 version": (SIGNATURE + b"\x11", "version is 1"),
    "v2 command": (binary(0x11, V4, command=0x22), "command is 2"),
    "v2 family": (binary(0x41, V4), "0x41"),
    "v2 transport": (binary(0x13, V4), "0x13"),
    "v2 short": (binary(0x21, V4), "too short"),
    "v2 too long": (binary(0x11, V4, more=bytes(LONGEST - 27)), "longer than 536"),
    "v2 broken signature": (SIGNATURE[:-1] + b"x", "does not begin"),
}


@pytest.mark.parametrize("kind", GOLDEN)
def test_headers(kind: str) -> None:
    """Each kind of header in the specification is read."""
    header, source = GOLDEN[kind]
    assert source_of(header) == source


@pytest.mark.parametrize("kind", BAD)
def test_invalid_headers(kind: str) -> None:
    """They are refused as early as possible, after at most the length of the longest header."""
    data, why = BAD[kind]
    with pytest.raises(BadHeader, match=why):
        read(data)
    with pytest.raises(BadHeader, match=why):
        read(*(data[at : at + 1] for at in range(len(data))))


headers = st.one_of(
    st.sampled_from([header for header, _ in GOLDEN.values()]),
    st.builds(
        lambda a, b, p, q: line(f"TCP{a.version}", a, b, p, q),
        *[st.ip_addresses(v=4)] * 2,
        *[st.integers(0, 65535)] * 2,
    ),
    st.builds(
        lambda a, b, p, q, more: binary(
            0x21, a.packed + b.packed + struct.pack(">HH", p, q), more=more
        ),
        *[st.ip_addresses(v=6)] * 2,
        *[st.integers(0, 65535)] * 2,
        st.binary(max_size=400),
    ),
)


@given(headers, st.binary(max_size=50), st.lists(st.integers(1, 120), max_size=10))
def test_no_byte_after_the_header_is_consumed(
    header: bytes, behind: bytes, sizes: list[int]
) -> None:
    """The header is taken from the stream, however it is cut, and the rest is left."""
    data, pieces = header + behind, []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    reader, left = read(*pieces, data)
    assert (reader.complete, left, reader.source) == (True, behind, source_of(header))


@given(st.binary(max_size=700))
@example(SIGNATURE + b"\x21\x11")
def test_arbitrary_data(data: bytes) -> None:
    """It is a header, a part of one, or refused; no other exception is raised."""
    for begin in (b"", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21"):
        try:
            reader, left = read(begin + data)
        except BadHeader:
            continue
        assert reader.complete or not left
        assert len(begin + data) - len(left) <= LONGEST


@given(st.ip_addresses(), st.ip_addresses(), st.integers(0, 65535))
def test_round_trip(one: Any, other: Any, port: int) -> None:
    """A header that a proxy has written is read unchanged."""
    if one.version != other.version:
        other = one
    host = str(getattr(one, "ipv4_mapped", None) or one)
    kind, size = (0x11, 4) if one.version == 4 else (0x21, 16)
    block = one.packed + other.packed + struct.pack(">HH", port, 1)
    assert len(one.packed) == size
    assert source_of(line(f"TCP{one.version}", one, other, port, 1)) == (host, port)
    assert source_of(binary(kind, block)) == (host, port)


# -- trusted networks


def test_the_networks_of_proxies() -> None:
    """Networks and addresses of both families, IPv4-mapped IPv6, and Unix sockets are accepted."""
    networks = ProxyNetworks(
        ["10.0.0.0/8", "192.0.2.1", "2001:db8::/32", "::ffff:172.16.0.0/108", "fe80::/10", "unix:"]
    )
    for host in ("10.255.0.1", "192.0.2.1", "2001:db8:1::2", "172.17.0.1", "fe80::1%lo"):
        assert (host, 5) in networks
    for host in ("11.0.0.1", "192.0.2.2", "2001:db9::", "172.32.0.1", "::ffff:10.0.0.1", "name"):
        assert (host, 5) not in networks
    assert "/run/peer" in networks and "" in networks
    assert "" not in ProxyNetworks([ipaddress.ip_network("10.0.0.0/8")])
    assert ("10.0.0.1", 5) in ProxyNetworks([ipaddress.ip_address("10.0.0.1")])
    for network in ("::/0", "::/64", "::ffff:0:0/96"):  # an IPv4 peer of a dual-stack socket
        assert ("10.0.0.1", 5) in ProxyNetworks([network])
    assert ("10.0.0.1", 5) not in ProxyNetworks(["::ffff:11.0.0.0/104"])


@pytest.mark.parametrize(
    ("networks", "error", "why"),
    [
        ("10.0.0.0/8", TypeError, r"must be a list of networks, as \['10.0.0.0/8'\]"),
        (True, TypeError, "must be a list"),
        ([], ValueError, "must name a network"),
        ([7], TypeError, "must hold networks"),
        (["proxy.example"], ValueError, "'proxy.example' is no network"),
        (["10.0.0.1/8"], ValueError, "has host bits set"),
        (["10.0.0.0/33"], ValueError, "'10.0.0.0/33' is no network"),
    ],
)
def test_invalid_networks(networks: Any, error: type[Exception], why: str) -> None:
    """They are refused with an error that names the network."""
    with pytest.raises(error, match=why):
        ProxyNetworks(networks)
