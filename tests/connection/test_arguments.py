"""Arguments of the wrong kind are refused where they are given, whatever call takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import tao
from tao.framing import Body, Checksum, Field, Frame, Length, Preamble
from tao.transport.certificates import Certificate
from tests.asking import Peers
from tests.ends import Text

Call = Callable[[Any, Any], object]

# Those that take a time: what is no number, or none that can ever be reached.
TIMED: dict[str, Call] = {
    "write": lambda peers, value: peers.client.write(Text("x"), value),
    "request": lambda peers, value: peers.client.request(Text("x"), value),
    "request_async": lambda peers, value: peers.client.request_async(Text("x"), value),
    "run_after": lambda peers, value: peers.client.run_after(value, lambda due, conn: None),
    "run_at": lambda peers, value: peers.client.run_at(value, lambda due, conn: None),
    "run_every": lambda peers, value: peers.client.run_every(value, lambda due, conn: None),
    "schedule": lambda peers, value: peers.server.schedule(value, lambda due, conn: None),
    "set_keepalive": lambda peers, value: peers.client.set_keepalive(heartbeat=value),
    "wait_closed": lambda peers, value: peers.client.wait_closed(value),
    "with_timeout": lambda peers, value: peers.client.context.with_timeout(value),
    "heartbeat": lambda peers, value: tao.ClientConn("/nowhere", heartbeat=value),
    "byte_rate": lambda peers, value: tao.Server(byte_rate=value),
    "Reconnect": lambda peers, value: tao.Reconnect(maximum=value),
}

REFUSED: list[tuple[Call, Any]] = [
    (lambda peers, value: peers.client.request(Text("x"), header=value), {"unit": 1}),
    (lambda peers, value: peers.client.request_async(Text("x"), header=value), 5),
    (lambda peers, value: tao.Registry(value), {}),
    (lambda peers, value: tao.monitor_on(0, value), 0),
    (lambda peers, value: tao.monitor_on(0, value), []),
    (lambda peers, value: tao.ClientConn("/nowhere", server_hostname=value), ""),
    (lambda peers, value: tao.ClientConn("/nowhere", server_hostname=value), "a\0b"),
    (lambda peers, value: tao.ClientConn("/nowhere", server_hostname=value), "a..b"),
    (lambda peers, value: tao.ClientConn("/nowhere", server_hostname=value), b"host"),
    (
        lambda peers, value: Frame(Length("u8", "body"), Body(), max_bytes=9, heartbeats=value),
        "ping",
    ),
    (
        lambda peers, value: Frame(Length("u8", "body"), Body(), max_bytes=9, heartbeats=value),
        b"\x01",
    ),
]


@pytest.fixture(scope="module")
def peers() -> Iterator[Peers]:
    with Peers() as both:
        yield both


@pytest.mark.parametrize("wrong", ["soon", [1], float("nan"), 10**400, -(10**400)])
@pytest.mark.parametrize("name", TIMED)
def test_times(peers: Peers, name: str, wrong: Any) -> None:
    """No call takes one that would make it wait for ever, or that it cannot count with."""
    with pytest.raises((TypeError, ValueError), match="must be"):
        TIMED[name](peers, wrong)


@pytest.mark.parametrize(("call", "wrong"), REFUSED)
def test_what_else_is_refused(peers: Peers, call: Call, wrong: Any) -> None:
    """What cannot be meant is not ignored, and does not fail later."""
    with pytest.raises((TypeError, ValueError)):
        call(peers, wrong)


# Those that take a flag: what only counts as true or false, such as a string, is a mistake.
FLAGGED: dict[str, Call] = {
    "request": lambda peers, value: peers.client.request(Text("x"), only_if_connected=value),
    "request_async": lambda peers, value: peers.client.request_async(
        Text("x"), only_if_connected=value
    ),
    "identify": lambda peers, value: peers.conn.identify("name", replace=value),
    "start": lambda peers, value: tao.ClientConn("/nowhere").start(value),
    "serve_forever": lambda peers, value: tao.Server().serve_forever(None, value),
    "server_config": lambda peers, value: Certificate.server_config(peers, mutual=value),
    "half_close": lambda peers, value: tao.Server(half_close=value),
    "requests": lambda peers, value: tao.ClientConn("/nowhere", requests=value),
    "reconnect": lambda peers, value: tao.ClientConn("/nowhere", reconnect=value),
    "rest": lambda peers, value: Body(rest=value),
    "escaped": lambda peers, value: Checksum("xor", escaped=value),
    "number": lambda peers, value: Field("x", 1, number=value),
    "correlate": lambda peers, value: Field("x", 1, correlate=value),
    "echo": lambda peers, value: Field("x", 1, echo=value),
    "zero_is_keepalive": lambda peers, value: Length(1, zero_is_keepalive=value),
    "required": lambda peers, value: Preamble(b"x", Frame(Length(1), Body()), required=value),
}


@pytest.mark.parametrize("value", ["false", 1, 0, None, []])
@pytest.mark.parametrize("name", FLAGGED)
def test_a_flag_is_true_or_false(peers: Peers, name: str, value: object) -> None:
    """Nothing else is taken for one of them."""
    if name == "reconnect" and value is None:
        return  # which is no flag alone
    with pytest.raises(TypeError):
        FLAGGED[name](peers, value)
