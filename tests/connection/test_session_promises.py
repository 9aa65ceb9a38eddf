"""What is promised of sessions, sentence by sentence, where no other test has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import tao
from tao.framing.json_lines import JsonLines
from tao.testing import FaultProxy
from tao.wire.message import Registry
from tests.ends import Number, Seen, Text
from tests.session_pairs import READERS, Both
from tests.support import PATIENCE, wait_until


def without_sessions(make_server: Any) -> tuple[Any, Seen]:
    """Return the address of a server that offers no sessions, and what it handles."""
    seen, registry = Seen(), Registry()
    registry.handler(Number)(lambda ctx, conn: seen.add(ctx.message.value))
    return make_server(registry=registry)[1], seen


@READERS
def test_a_client_that_has_a_session_does_not_go_on_without(
    open_both: Callable[..., Both], make_server: Any, readers: str
) -> None:
    """It redials, and resumes its session as soon as it finds a server that has it."""
    both = open_both(readers=readers)
    elsewhere, seen = without_sessions(make_server)
    both.proxy.target = elsewhere
    before = both.proxy.accepted
    both.lose()
    both.client.write(Number(1))
    wait_until(lambda: both.proxy.accepted >= before + 3)
    assert both.client.session is not None and not both.client.session.connected
    both.proxy.target = both.address
    assert both.at_server.wait() == [1] and not seen.items
    assert both.client_events.items == both.events.items == ["connect", "resume"]


@READERS
def test_it_redials_until_linger_ends(
    open_both: Callable[..., Both], make_server: Any, readers: str
) -> None:
    """Then the session is lost, and a new connection is one without a session."""
    both = open_both(readers=readers, server={"sessions": tao.Sessions(linger=0.3)})
    both.proxy.target, seen = without_sessions(make_server)
    before = both.proxy.accepted
    both.lose()
    both.client.write(Number(1))
    expected = ["connect", ("lost", []), "close", "connect"]
    assert both.client_events.wait(4) == expected
    assert both.proxy.accepted >= before + 2
    assert seen.wait() == [1] and both.client.session is None
    assert both.events.wait(3) == ["connect", ("lost", []), "close"]


@READERS
def test_a_server_that_requires_nothing_is_not_enough_for_one_that_does(
    open_both: Callable[..., Both], make_server: Any, readers: str
) -> None:
    """With ``session="required"`` it tries again and again, also once its session is lost."""
    options = {"server": {"sessions": tao.Sessions(linger=0.2)}, "client": {"session": "required"}}
    both = open_both(readers=readers, **options)
    both.proxy.target, seen = without_sessions(make_server)
    both.lose()
    assert both.client_events.wait(3) == ["connect", ("lost", []), "close"]
    both.client.write(Number(1))
    before = both.proxy.accepted
    wait_until(lambda: both.proxy.accepted >= before + 3)
    both.proxy.target = both.address
    assert both.at_server.wait() == [1] and not seen.items
    assert both.client.session is not None


@READERS
def test_connections_that_are_not_ready_never_linger(make_server: Any, readers: str) -> None:
    """A stranger who has not logged in keeps nothing here; one who has does."""
    events, registry, sessions = Seen(), Registry(), tao.Sessions(linger=1000)
    registry.handler(Text)(lambda ctx, conn: conn.ready())
    server, address = make_server(
        registry=registry,
        sessions=sessions,
        readers=readers,
        login=(Text,),
        on_connect=lambda conn: events.add("connect"),
        on_close=lambda conn: events.add("close"),
        on_resume=lambda conn: events.add("resume"),
    )
    with FaultProxy(address) as proxy:
        stranger, friend = (
            tao.ClientConn(
                proxy.address,
                registry=Registry(),
                session="required",
                readers=readers,
                reconnect=tao.Reconnect(initial=60),
            )
            for _ in range(2)
        )
        with stranger:
            events.wait()
            proxy.refuse()
            proxy.reset()
            assert events.wait(2) == ["connect", "close"]
            wait_until(lambda: len(sessions) == 0)
            assert sessions.lingering == 0
        proxy.accept()
        with friend:
            friend.write(Text("it is me"))
            wait_until(lambda: friend.session.unacknowledged == 0)  # type: ignore[union-attr]
            proxy.refuse()
            proxy.reset()
            wait_until(lambda: sessions.lingering == 1)
            assert len(sessions) == 1 and events.items == ["connect", "close", "connect"]
            friend.abort()
            server.connections[0].abort()
            events.wait(4)


@READERS
def test_a_login_is_not_repeated(open_both: Callable[..., Both], readers: str) -> None:
    """A resumed session is as ready as it was, and what waited is sent."""
    logins = Seen()

    def login(ctx: Any, conn: Any) -> None:
        logins.add(ctx.message.text)
        conn.ready()

    registry, seen = Registry(), Seen()
    registry.handler(Text)(login)
    registry.handler(Number)(lambda ctx, conn: seen.add(ctx.message.value))
    both = open_both(
        readers=readers,
        server={"login": (Text,), "registry": registry},
        client={"on_connect": lambda conn: conn.write(Text("it is me"))},
    )
    both.client.write(Number(1))
    assert seen.wait() == [1]
    both.cut()
    both.client.write(Number(2))
    both.conn.write(Number(3), timeout=PATIENCE)
    assert seen.wait(2) == [1, 2] and both.at_client.wait() == [3]
    assert logins.items == ["it is me"]


def test_other_framing_has_no_sessions() -> None:
    """It is refused where it is declared, at a server and at a client."""
    codec = JsonLines()
    with pytest.raises(ValueError, match="sessions need tao's own framing"):
        tao.Server(codec=codec, sessions=tao.Sessions())
    with pytest.raises(ValueError, match="session needs tao's own framing"):
        tao.ClientConn(("127.0.0.1", 1), codec=codec, session=True, reconnect=True)
