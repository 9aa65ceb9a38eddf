"""Servers that run during a ``with`` block."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from tao.client.client import ClientOptions
from tao.connection.options.definitions import ServerSettings
from tao.connection.options.help import takes_options
from tao.safe_text import safe_str
from tao.server.reports import StopReport
from tao.server.server import Server, ServerOptions
from tao.testing.recording_client import RecordingClient
from tao.transport.addresses import Address, address_text

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["ClientFactory", "ServerFactory", "running", "serving"]


@contextmanager
def running(
    server: Server, address: Address = ("127.0.0.1", 0), *, clean: bool = True
) -> Iterator[Any]:
    """Run a server in a ``with`` block, which gets the address.

    ::

        import socket, tao
        from tao.testing import running

        server = tao.Server()
        with running(server) as address:
            socket.create_connection(address).close()

    Args:
        server: with its handlers; usually not started.
        address: where to listen; by default a free port that only this machine can reach.
        clean: whether to fail if the shutdown at the end is not clean.

    Raises:
        AssertionError: a handler or a thread did not end, or messages were not handled or not sent,
            within the server's ``drain_timeout``. An exception of the block takes precedence.
    """
    bound = server.start(address)
    try:
        yield bound
    except BaseException:
        server.stop()
        raise
    report = server.stop()
    if clean and not report.clean:
        raise AssertionError(f"the server did not stop cleanly: {_told(report)}")


@takes_options(ServerSettings)
@contextmanager
def serving(
    address: Address = ("127.0.0.1", 0), *, clean: bool = True, **options: Unpack[ServerOptions]
) -> Iterator[Server]:
    """Make a server and run it in a ``with`` block, which gets the server.

    ::

        from tao.testing import RecordingClient, serving

        with serving(max_connections=1) as server:
            with RecordingClient(server), RecordingClient(server) as second:
                assert second.expect_closed() == "peer closed"

    Args:
        address, clean: as for `running`.
        options: of the server.
    """
    server = Server(**options)
    with running(server, address, clean=clean):
        yield server


class ServerFactory(Protocol):
    """The type of the fixture ``tao_server``, for annotations."""

    def __call__(
        self, server: Server | None = None, *, clean: bool = True, **options: Unpack[ServerOptions]
    ) -> Server: ...


class ClientFactory(Protocol):
    """The type of the fixture ``tao_client``, for annotations; takes the client's arguments."""

    def __call__(
        self,
        target: Server | tuple[str, int] | str,
        *,
        messages: Collection[Any] = (),
        memory: bool = False,
        accepted: bool = True,
        **options: Unpack[ClientOptions],
    ) -> RecordingClient: ...


def _told(report: StopReport) -> str:
    """Format a stop report."""
    lines = [
        f"connection {safe_str(conn.name)} ({address_text(conn.remote_address)}) was cut off with "
        f"{unhandled} messages not handled and {unsent} not sent"
        for conn, unhandled, unsent in report.abandoned
    ]
    if report.threads:
        lines.append(f"threads that still run: {', '.join(report.threads)}")
    if report.unpublished:
        lines.append(f"{report.unpublished} messages were not published")
    return "; ".join(lines)
