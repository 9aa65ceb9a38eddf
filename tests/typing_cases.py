"""Right and wrong uses of tao, for mypy: it must accept the former and refuse the latter.

Nothing here runs. Wrong uses are marked with the expected error. mypy reports unused marks, so a
wrong use that it accepts fails as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tao
from tao import framing as f
from tao.testing import MemoryClient, RecordingClient, memory_pair, serving

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack, assert_type

ADDRESS = ("127.0.0.1", 12345)


# -- options


def options_of_a_server(pool: tao.WorkerPool) -> None:
    tao.Server(queue_size=5, heartbeat=None, workers=pool, slow_consumer="drop_oldest")
    tao.Server(registry=tao.Registry(), proxy_protocol=["10.0.0.0/8"], cpu_affinity=(0, 1))
    tao.Server(queue_siz=5)  # type: ignore[call-arg]
    tao.Server(heartbeat="soon")  # type: ignore[arg-type]
    tao.Server(queue_size=None)  # type: ignore[arg-type]
    tao.Server(slow_consumer="drop")  # type: ignore[arg-type]
    tao.Server(reconnect=True)  # type: ignore[call-arg]
    tao.Server(tls=("cert.pem", "key.pem"))  # type: ignore[arg-type]


def options_of_a_client() -> None:
    assert_type(tao.connect(ADDRESS, reconnect=tao.Reconnect(jitter=0.1)), tao.ClientConn)
    tao.ClientConn(ADDRESS, connect_timeout=3, socket_options=[(6, 1, 1)])
    tao.ClientConn(address="/run/gateway.sock", dispatch="inline", half_close=True)
    tao.ClientConn(ADDRESS, workers=3)  # type: ignore[call-arg]
    tao.connect(ADDRESS, max_connections=3)  # type: ignore[call-arg]
    tao.connect(ADDRESS, connect_timeout="3")  # type: ignore[arg-type]
    tao.connect(ADDRESS, dispatch="thread")  # type: ignore[arg-type]
    tao.connect(reconnect=True)  # type: ignore[call-arg]


def options_in_tests(server: tao.Server) -> None:
    with serving(workers=2, clean=False) as started:
        assert_type(started, tao.Server)
    RecordingClient(server, messages=[Text], queue_size=3, registry=tao.Registry())
    MemoryClient(server, capacity=1, reconnect=True)
    memory_pair(server, on_close=greet)
    serving(worker=2)  # type: ignore[call-arg]
    RecordingClient(server, workers=2)  # type: ignore[call-arg]
    MemoryClient(server, heartbeat="soon")  # type: ignore[arg-type]
    memory_pair(server, backlog=2)  # type: ignore[call-arg]


def options_passed_on(**options: Unpack[tao.ServerOptions]) -> tao.Server:
    return tao.Server(**options)


def options_from_elsewhere(heartbeat: float) -> None:
    given: tao.ClientOptions = {"heartbeat": heartbeat}
    given["queue_size"] = 3
    tao.connect(ADDRESS, **given)
    options_passed_on(backlog=3)
    options_passed_on(backlo=3)  # type: ignore[call-arg]
    given["queue_siz"] = 3  # type: ignore[typeddict-unknown-key]


# -- callbacks


def greet(conn: tao.Connection) -> bool:
    return conn.closed


def greet_peer(conn: tao.ServerConn) -> None:
    conn.close()


def greet_server(conn: tao.ClientConn) -> None:
    assert_type(conn.connected, bool)


def tell(conn: tao.Connection, error: BaseException) -> None:
    print(conn.name, error)


def tell_more(conn: tao.Connection, error: BaseException, ctx: tao.Context | None) -> None:
    print(conn.name, error, ctx and ctx.message)


def callbacks() -> None:
    tao.Server(on_connect=greet, on_close=greet_peer, on_error=tell)
    tao.connect(ADDRESS, on_connect=greet_server, on_close=greet, on_error=tell)
    tao.connect(ADDRESS, on_connect=lambda conn: conn.connected)
    tao.Server(on_message=lambda message, conn: conn.close())
    tao.Server(on_connect=greet_server)  # type: ignore[arg-type]
    tao.connect(ADDRESS, on_connect=greet_peer)  # type: ignore[arg-type]
    tao.Server(on_error=greet)  # type: ignore[arg-type]
    tao.connect(ADDRESS, on_error=tell_more)
    tao.Server(on_error=lambda conn, error: print(conn.name, error))
    tao.Server(on_error=lambda conn, error, ctx: print(conn.name, error, ctx))
    tao.Server(on_connect=lambda conn: conn.connected)  # type: ignore[attr-defined]


class Text:
    """A message."""

    message_number = 1

    def __init__(self, text: str) -> None:
        self.text = text

    def serialize(self) -> bytes:
        return self.text.encode()

    @classmethod
    def deserialize(cls, data: bytes) -> Text:
        return cls(data.decode())


class Number:
    """A message that declares its number as a class variable."""

    message_number: ClassVar[int] = 2

    def __init__(self, number: int) -> None:
        self.number = number

    def serialize(self) -> bytes:
        return bytes(self.number)

    @classmethod
    def deserialize(cls, data: bytes) -> Self:
        return cls(len(data))


class Nameless:
    @classmethod
    def deserialize(cls, data: bytes) -> Nameless:
        return cls()


# -- handlers

server = tao.Server()
client = tao.ClientConn(ADDRESS)
registry = tao.Registry()


@server.handler(Text)
def say(ctx: tao.Context[Text], conn: tao.ServerConn) -> int:
    assert_type(ctx.message, Text)
    assert_type(ctx.message.text, str)
    assert_type(ctx.with_cancel().message, Text)
    assert_type(tao.message_from_context(ctx), Text)
    print(ctx.message.number)  # type: ignore[attr-defined]
    conn.write(ctx.message)
    return 1


@client.handler(Number)
def count(ctx: tao.Context[Number], conn: tao.Connection) -> None:
    assert_type(ctx.message.number, int)


@registry.handler(Text, dispatch="pool")
def say_anywhere(ctx: tao.Context[Text], conn: tao.ClientConn) -> None:
    assert_type(conn.connected, bool)


@server.handler(Number)
def take_any(ctx: tao.Context, conn: tao.ServerConn) -> str:
    return str(ctx.message)


@server.handler(Text)
def take_base(ctx: tao.Context[Text | Number], conn: tao.Connection) -> None: ...


@server.handler(Text)  # type: ignore[arg-type]
def take_another_class(ctx: tao.Context[Number], conn: tao.ServerConn) -> None: ...


@server.handler(Text)  # type: ignore[arg-type]
def take_the_other_end(ctx: tao.Context[Text], conn: tao.ClientConn) -> None: ...


@registry.handler(Text)  # type: ignore[arg-type]
def take_too_little(ctx: tao.Context[Text]) -> None: ...


def take_all(ctx: tao.Context[object], conn: tao.Connection) -> None: ...


def handlers() -> None:
    conn, ctx = server.connections[0], tao.context_with_message(tao.background(), Text("hi"))
    assert_type(say(ctx, conn), int)
    assert_type(take_any(tao.background(), conn), str)
    say(tao.context_with_message(ctx, Number(1)), conn)  # type: ignore[arg-type]
    registry.handler(Text)(take_all)
    registry.handler(Number)(take_all)
    server.handler(Text)(lambda ctx, conn: conn.write(ctx.message))
    server.handler(Text)(lambda ctx, conn: ctx.message.number)  # type: ignore[attr-defined]
    server.handler(tao.ANY)(lambda ctx, conn: print(ctx.message.number, ctx.message.value))
    server.handler(Nameless)  # type: ignore[type-var]
    server.handler(Text("hi"))  # type: ignore[arg-type]
    server.handler(Text, dispatch="thread")  # type: ignore[arg-type]
    tao.register(1, Text.deserialize, say_anywhere)
    registry.register(2, Number.deserialize)
    registry.register(2, Number.deserialize, take_any)
    registry.register(2, Number.deserialize, take_all)
    registry.register(2, Number.deserialize, 5)  # type: ignore[arg-type]


# -- writing


def writing(conn: tao.Connection, publisher: tao.Publisher) -> None:
    for message in (Text("hi"), Number(1)):
        conn.write(message)
        conn.request(message, timeout=1)
        server.broadcast(message)
        server.unicast(conn.net_id, message)
        server.group("all").broadcast(message)
        publisher.broadcast(message)
    conn.write(Nameless())  # type: ignore[arg-type]
    server.broadcast("hi")  # type: ignore[arg-type]
    publisher.broadcast(b"hi")  # type: ignore[arg-type]


# -- declared values


class Point(tao.StructMessage):
    x: f.i16
    y: f.i16 = 0


class Track(tao.StructMessage, number=7, byte_order="big"):
    name: Annotated[str, f.Counted("u8")]
    points: list[Point]


def declared() -> None:
    track = Track("way", [Point(1), Point(x=1, y=2)])
    assert_type(track.points[0].x, int)
    assert_type(Track.deserialize(track.serialize()), Track)
    Track("way")  # type: ignore[call-arg]
    Point("1")  # type: ignore[arg-type]
    server.handler(Track)(lambda ctx, conn: conn.write(Track(ctx.message.name, [])))
    server.handler(Track)(lambda ctx, conn: ctx.message.title)  # type: ignore[attr-defined]


def audit(ctx: tao.Context, conn: tao.Connection, call_next: Any) -> None:
    call_next(ctx, conn)


def middleware() -> None:
    assert_type(server.use(audit)(tao.background(), server.connections[0], say_anywhere), None)
    server.use(lambda ctx, conn: None)  # type: ignore[type-var]
