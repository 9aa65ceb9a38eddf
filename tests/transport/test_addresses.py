"""Addresses: parsing of every form for both ends, name resolution, and display."""

from __future__ import annotations

import gc
import ipaddress
import pathlib
import socket
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tao.client.client import ClientConn
from tao.monitor.monitor import monitor_on
from tao.server.listening.binding import listen
from tao.server.server import Server
from tao.testing import FaultProxy, RecordingClient, serving
from tao.transport.addresses import (
    Target,
    address_text,
    host_of,
    normalized,
    parse,
    resolve,
    resolve_literal,
)
from tao.wire.message import Registry
from tests.ends import MakeServer
from tests.support import PATIENCE, wait_until

LOOPBACK = socket.if_nametoindex("lo")
Names = Callable[..., None]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """A function that gives names to addresses, as a name server does."""
    known: dict[str, tuple[str, ...]] = {}
    original = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *args: Any, **options: Any) -> list[Any]:
        if options.get("flags", 0) & socket.AI_NUMERICHOST or host not in known:
            return original(host, port, *args, **options)
        return [each for real in known[host] for each in original(real, port, *args, **options)]

    def name(host: str, *real: str) -> None:
        known[host] = real

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return name


@pytest.mark.parametrize(
    ("written", "parsed"),
    [
        (("localhost", 80), ("localhost", 80)),
        (["localhost", 80], ("localhost", 80)),
        (("[::1]", 80), ("::1", 80)),
        (("::1", 80, 0, 0), ("::1", 80, 0, 0)),
        (("fe80::1%lo", 80), ("fe80::1%lo", 80)),
        (("::ffff:127.0.0.1", 80), ("127.0.0.1", 80)),
        ((ipaddress.ip_address("::1"), 80), ("::1", 80)),
        ("/run/x", "/run/x"),
        (b"/run/x", "/run/x"),
        (pathlib.Path("/run/x"), "/run/x"),
        (pathlib.Path("x:80"), "x:80"),
        (b"\0name", "\0name"),
    ],
)
def test_forms_of_an_address(written: Any, parsed: Any) -> None:
    """Both ends accept every form from users and sockets, and normalize it."""
    assert parse(written) == parsed
    assert parse(written, listening=True) == parsed


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        (("localhost",), TypeError, "an address is"),
        (("localhost", "80"), TypeError, "an address is"),
        (("localhost", True), TypeError, "an address is"),
        (("localhost", 80, 0, "lo"), TypeError, "an address is"),
        (80, TypeError, "an address is"),
        (("localhost", 65536), ValueError, "65535"),
        (("local\0host", 80), ValueError, "must not contain NUL"),
        ("", ValueError, "must not be empty"),
        (b"\0", ValueError, "must not be empty"),
        ("/run/\0x", ValueError, "must not contain NUL"),
        (b"localhost:80", ValueError, r"write \('localhost', 80\)"),
    ],
)
def test_invalid_addresses(wrong: Any, error: type[Exception], says: str) -> None:
    """Both ends refuse an invalid address before any socket is opened."""
    with pytest.raises(error, match=says):
        ClientConn(wrong, registry=Registry())
    with pytest.raises(error, match=says):
        Server().start(wrong)


#: What people and programs pass by mistake.
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 65536),
    st.sampled_from([2**31, 2**64, -(2**64), 0.5, float("nan"), object(), socket.AF_INET]),
    st.text("a:/%[].1\0 \ud800", max_size=6),
    st.sampled_from(["localhost", "127.0.0.1", "::1", "[::1]", "fe80::1%lo", "a" * 300, "ä.de"]),
    st.binary(max_size=4),
    st.sampled_from([pathlib.Path("x"), ipaddress.ip_address("::1"), socket.socket, print]),
)
ANYTHING = st.recursive(
    SCALARS, lambda some: st.one_of(st.lists(some, max_size=5), st.tuples(some, some)), max_leaves=5
)


@given(ANYTHING)
def check_anything(value: Any) -> None:
    for use in (
        lambda: ClientConn(value, registry=Registry()),
        lambda: ClientConn(("127.0.0.1", 1), registry=Registry(), source_address=value),
        lambda: parse(value, listening=True),
    ):
        try:
            use()
        except (TypeError, ValueError) as error:
            assert str(error), value


def test_anything_is_an_address_or_refused() -> None:
    """Whatever a client, its source address or a server is given: it is checked at once."""
    check_anything()
    gc.collect()  # clients that were dropped hold the timing wheel until then


def test_addresses_for_servers_only() -> None:
    """Port 0 and an empty host mean any, so a client cannot connect to them."""
    assert parse(("", 0), listening=True) == ("", 0)
    with pytest.raises(ValueError, match="must not be empty"):
        parse(("", 80))
    with pytest.raises(ValueError, match="from 1 to 65535"):
        parse(("localhost", 0))


def test_literals_need_no_name_server() -> None:
    """Literal addresses resolve without blocking, including scopes; names may block."""
    assert resolve_literal(("127.0.0.1", 1)) == [Target(socket.AF_INET, ("127.0.0.1", 1))]
    scoped = [Target(socket.AF_INET6, ("fe80::1", 1, 0, LOOPBACK))]
    assert resolve_literal(("fe80::1%lo", 1)) == scoped
    assert resolve_literal(("fe80::1", 1, 0, LOOPBACK)) == scoped
    assert resolve_literal(("fe80::1%lo", 1, 0, 0)) == scoped
    assert resolve_literal((f"fe80::1%{LOOPBACK}", 1)) == scoped
    assert resolve_literal("/run/x") == [Target(socket.AF_UNIX, "/run/x")]
    assert resolve_literal(("localhost", 1)) is None
    with pytest.raises(OSError, match="no network interface 'nowhere'"):
        resolve_literal(("fe80::1%nowhere", 1))


def test_a_name_resolves_to_each_address_once(names: Names) -> None:
    """The order of the name server is kept, without duplicates."""
    names("twice", "::1", "127.0.0.1", "::1")
    assert [target.address[0] for target in resolve(("twice", 1))] == ["::1", "127.0.0.1"]
    with pytest.raises(OSError, match="no host name"):
        resolve(("x" * 70 + ".example", 1))


@pytest.mark.parametrize("host", ["six", "::1", "::1%lo"])
def test_ipv6_for_both_ends(make_server: MakeServer, names: Names, host: str) -> None:
    """Servers and clients accept names with only IPv6 addresses, literals and scopes."""
    names("six", "::1")
    server, address = make_server((host, 0))
    with ClientConn((host, address[1]), registry=Registry()) as client:
        assert client.remote_address[:2] == ("::1", address[1])
    with ClientConn(server.address, registry=Registry()) as client:
        assert client.connected


def test_a_name_with_several_addresses(make_server: MakeServer, names: Names) -> None:
    """A server uses an IPv4 address if there is one, and one that this machine has."""
    names("both", "::1", "127.0.0.1")
    assert make_server(("both", 0))[1][0] == "127.0.0.1"
    names("elsewhere", "192.0.2.77", "::1")
    assert make_server(("elsewhere", 0))[1][0] == "::1"
    _, (_, taken) = make_server(("127.0.0.1", 0))
    with pytest.raises(OSError, match=f"cannot listen at both:{taken}: address already in use"):
        make_server(("both", taken))
    with pytest.raises(OSError, match="the name cannot be resolved"):
        make_server(("no-such.invalid", 0))


def test_the_monitor_and_the_test_client_accept_the_same_forms(names: Names) -> None:
    """They accept all addresses that a server accepts."""
    names("six", "::1")
    monitor = monitor_on(0, host="six")
    assert monitor.address[0] == "::1"
    monitor.close()
    with serving(("::1%lo", 0), registry=Registry()) as server, RecordingClient(server) as client:
        assert not client.closed


@pytest.mark.parametrize("kind", ["four", "path", "name"])
def test_a_proxy_reaches_every_form(tmp_path: pathlib.Path, kind: str, names: Names) -> None:
    """A `FaultProxy` accepts a server's address in any form as its target."""
    address = str(tmp_path / "socket") if kind == "path" else ("::1", 0)
    with serving(address, registry=Registry()) as server:
        names("two", "127.0.0.9", "::1")
        target = ("two", server.address[1]) if kind == "name" else server.address
        with FaultProxy(target) as proxy, ClientConn(proxy.address, registry=Registry()):
            wait_until(lambda: server.connections)


@pytest.mark.parametrize("kind", [bytes, str, pathlib.Path])
def test_kinds_of_paths(tmp_path: pathlib.Path, kind: Any) -> None:
    """The path of a Unix socket can be a str, bytes or a Path."""
    path = tmp_path / "socket"
    written = bytes(path) if kind is bytes else kind(path)
    with (
        listen(written, 1).sock as listening,
        ClientConn(written, registry=Registry()) as client,
    ):
        listening.settimeout(PATIENCE)
        listening.accept()[0].close()
        assert client.remote_address == str(path)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (("127.0.0.1", 80), "127.0.0.1:80"),
        (("::1", 80, 0, 0), "[::1]:80"),
        (("fe80::1", 80, 0, LOOPBACK), "[fe80::1%lo]:80"),
        (("fe80::1", 80, 0, 9999), "[fe80::1%9999]:80"),
        (("fe80::1%lo", 80), "[fe80::1%lo]:80"),
        ("/run/x", "/run/x"),
        (b"\0name", "@name"),
        ("\0na\nme", "@na\\nme"),
        ("", "-"),
        (None, "-"),
    ],
)
def test_the_display_of_an_address(address: Any, shown: str) -> None:
    """It is shown in the usual form, with printable characters."""
    assert address_text(address) == shown


def test_one_peer_has_one_address() -> None:
    """An IPv4 peer of a dual-stack socket has its IPv4 address."""
    mapped = ("::ffff:127.0.0.1", 80, 0, 0)
    assert normalized(mapped) == ("127.0.0.1", 80)
    assert host_of(mapped) == host_of(("127.0.0.1", 9)) == "127.0.0.1"
    assert normalized(("::1", 80, 0, 0)) == ("::1", 80, 0, 0)
    assert normalized(b"\0name") == "\0name"
    assert host_of("/run/x") == ""
