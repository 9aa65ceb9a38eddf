"""Right and wrong uses of tao, for mypy: it must accept the ones and refuse the others.

Nothing here runs. What must be refused is marked with the error that it is; as mypy is told to warn
about marks that are not needed, an accepted mistake fails too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import tao
from tao.testing import MemoryClient, RecordingClient, memory_pair, serving

if TYPE_CHECKING:
    from typing_extensions import Unpack, assert_type

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


def callbacks() -> None:
    tao.Server(on_connect=greet, on_close=greet_peer, on_error=tell)
    tao.connect(ADDRESS, on_connect=greet_server, on_close=greet, on_error=tell)
    tao.connect(ADDRESS, on_connect=lambda conn: conn.connected)
    tao.Server(on_message=lambda message, conn: conn.close())
    tao.Server(on_connect=greet_server)  # type: ignore[arg-type]
    tao.connect(ADDRESS, on_connect=greet_peer)  # type: ignore[arg-type]
    tao.Server(on_error=greet)  # type: ignore[arg-type]
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
