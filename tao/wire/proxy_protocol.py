"""The PROXY protocol: the client's address behind a load balancer. Bytes in, addresses out; no I/O.

A proxy that forwards TCP connections begins each with a header that names the client's address.
Version 1 is a line of text, version 2 is binary; both are parsed here as specified (Willy Tarreau,
"The PROXY protocol, versions 1 & 2", HAProxy, 2020).

`HeaderReader` returns how many of the bytes belong to the header, so the data after it, TLS for
example, stays untouched. The optional fields after the addresses of version 2 are skipped.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Collection
from typing import Any

from tao.safe_text import safe_repr

__all__ = ["LONGEST", "BadHeader", "HeaderReader", "Network", "ProxyNetworks"]

#: The longest header accepted, in bytes: as long as fits into one packet on any path.
LONGEST = 536

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_PREFIX = struct.Struct(">12sBBH")
_LINE_BEGIN, _LONGEST_LINE = b"PROXY ", 107

# The minimum size of the address block, in bytes, by address family.
_INET, _INET6, _UNIX = 0x1, 0x2, 0x3
_SIZES = {_INET: 12, _INET6: 36, _UNIX: 216}
_LOCAL, _PROXY = 0x0, 0x1

#: A network of `ipaddress`.
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class BadHeader(ValueError):
    """The connection does not begin with a valid PROXY protocol header; the text says why."""


class HeaderReader:
    """Reads exactly one header from the beginning of a stream."""

    __slots__ = ("_data", "complete", "source")

    def __init__(self) -> None:
        self._data: bytes = b""
        #: Whether the header has been read completely.
        self.complete: bool = False
        #: The client of the proxy: ``(host, port)`` or the path of a Unix socket. None if the
        #: proxy connects for itself (LOCAL) or does not name the client (UNKNOWN).
        self.source: tuple[str, int] | str | None = None

    def feed(self, data: bytes) -> int:
        """Parse the next bytes of the stream; return how many of them belong to the header.

        Until `complete`, pass the remaining bytes again, followed by the next ones.

        Raises:
            BadHeader: the header is invalid or too long.
        """
        shown = self._data + data
        size = _size_of(shown)
        taken = (len(shown) if size is None else min(size, len(shown))) - len(self._data)
        self._data = shown[: len(self._data) + taken]
        if len(self._data) == size:
            is_text = shown.startswith(_LINE_BEGIN)
            self.source = _source_of_line(self._data) if is_text else _source_of_binary(self._data)
            self.complete = True
        return taken


def _size_of(data: bytes) -> int | None:
    """Return the size of the header that begins with these bytes; None if not known yet."""
    if _LINE_BEGIN.startswith(data[: len(_LINE_BEGIN)]):
        end = data.find(b"\r\n", 0, _LONGEST_LINE)
        if end >= 0:
            return end + 2
        if len(data) >= _LONGEST_LINE:
            raise BadHeader(f"its line is longer than {_LONGEST_LINE} bytes")
        return None
    if not _SIGNATURE.startswith(data[: len(_SIGNATURE)]):
        raise BadHeader("it does not begin with one")
    if len(data) > len(_SIGNATURE) and data[len(_SIGNATURE)] >> 4 != 2:
        raise BadHeader(f"its version is {data[len(_SIGNATURE)] >> 4}")
    if len(data) < _PREFIX.size:
        return None
    size: int = _PREFIX.size + _PREFIX.unpack_from(data)[3]
    if size > LONGEST:
        raise BadHeader(f"it is longer than {LONGEST} bytes")
    return size


def _source_of_line(line: bytes) -> tuple[str, int] | None:
    fields = line[:-2].split(b" ")
    if fields[1] == b"UNKNOWN":
        return None
    if len(fields) != 6 or fields[1] not in (b"TCP4", b"TCP6"):
        raise BadHeader("its line is not PROXY TCP4 or TCP6, two addresses and two ports")
    parse = _ipv4 if fields[1] == b"TCP4" else _ipv6
    host, _ = parse(fields[2]), parse(fields[3])
    port, _ = _port(fields[4]), _port(fields[5])
    return host, port


def _ipv4(text: bytes) -> str:
    try:
        return str(ipaddress.IPv4Address(text.decode("ascii")))
    except ValueError:
        raise BadHeader("an address in its line is not of IPv4") from None


def _ipv6(text: bytes) -> str:
    try:
        if b"%" in text:
            raise ValueError("a scope means nothing elsewhere")
        return _plain(ipaddress.IPv6Address(text.decode("ascii")))
    except ValueError:
        raise BadHeader("an address in its line is not of IPv6") from None


def _plain(address: ipaddress.IPv6Address) -> str:
    """Return an IPv4-mapped IPv6 address as IPv4, as everywhere in tao."""
    return str(address.ipv4_mapped or address)


def _port(text: bytes) -> int:
    if not (text.isdigit() and len(text) <= 5 and str(int(text)).encode() == text):
        raise BadHeader("a port in its line is no number")
    if int(text) > 65535:
        raise BadHeader("a port in its line is more than 65535")
    return int(text)


def _source_of_binary(data: bytes) -> tuple[str, int] | str | None:
    _, command, kind, size = _PREFIX.unpack_from(data)
    family, transport = kind >> 4, kind & 0x0F
    if command & 0x0F not in (_LOCAL, _PROXY):
        raise BadHeader(f"its command is {command & 0x0F}")
    if command & 0x0F == _LOCAL:
        return None
    if family > _UNIX or transport > 2:
        raise BadHeader(f"its kind of address is 0x{kind:02x}")
    if not family or not transport:
        return None
    if size < _SIZES[family]:
        raise BadHeader("it is too short for its addresses")
    return _address_of(family, data[_PREFIX.size :])


def _address_of(family: int, block: bytes) -> tuple[str, int] | str | None:
    """Return the first of the two addresses in a block."""
    if family == _INET:
        return str(ipaddress.IPv4Address(block[:4])), int.from_bytes(block[8:10], "big")
    if family == _INET6:
        return _plain(ipaddress.IPv6Address(block[:16])), int.from_bytes(block[32:34], "big")
    # Padded with NUL; only NUL if the peer has no address.
    return block[:108].rstrip(b"\x00").decode("utf-8", "surrogateescape") or None


class ProxyNetworks:
    """The addresses of the trusted proxies.

    Args:
        networks: strings such as ``"10.0.0.0/8"`` or ``"2001:db8::1"``, objects of `ipaddress`,
            and ``"unix:"`` for every peer of a Unix socket.

    Raises:
        TypeError, ValueError: an entry is not a network; the text names it.
    """

    def __init__(self, networks: Collection[Any]) -> None:
        if isinstance(networks, (str, bytes)) or not isinstance(networks, Collection):
            raise TypeError(
                "proxy_protocol must be a list of networks, as ['10.0.0.0/8'], not "
                f"{safe_repr(networks)}"
            )
        if not networks:
            raise ValueError("proxy_protocol must name a network, or all peers would be refused")
        self._unix: bool = "unix:" in networks
        self._networks: list[Network] = [_network(each) for each in networks if each != "unix:"]

    def __contains__(self, address: Any) -> bool:
        """Return whether a normalized address belongs to a trusted proxy."""
        if not isinstance(address, tuple):
            return self._unix
        try:
            host = ipaddress.ip_address(address[0])
        except ValueError:
            return False
        names = [host]
        if isinstance(host, ipaddress.IPv4Address):  # as a network of IPv6 may hold it
            names.append(ipaddress.IPv6Address(b"\0" * 10 + b"\xff\xff" + host.packed))
        return any(name in network for network in self._networks for name in names)


def _network(written: Any) -> Network:
    kinds = (str, *Network.__args__, ipaddress.IPv4Address, ipaddress.IPv6Address)
    if not isinstance(written, kinds):
        raise TypeError(
            f"proxy_protocol must hold networks, as '10.0.0.0/8', not {safe_repr(written)}"
        )
    try:
        return ipaddress.ip_network(written)
    except ValueError as error:
        raise ValueError(f"proxy_protocol: {written!r} is no network: {error}") from None
