"""tao with its default options, or with the ones that a row asks for."""

from __future__ import annotations

import argparse
import contextlib
import sys
import threading
import time
from typing import Any

import tao
from tao import framing
from tests.bench.peers.wire import EchoMessage, announce, arguments

MAX_CONNECTIONS = 10_000


def make_server(options: argparse.Namespace) -> tao.Server:
    """Return a server with the handler that the command line asks for."""
    chosen: dict[str, Any] = {"max_connections": MAX_CONNECTIONS, "heartbeat": None}
    if options.workers is not None:
        chosen["workers"] = options.workers
    if options.cpu_affinity is not None:
        chosen["cpu_affinity"] = options.cpu_affinity
    if options.slow_consumer is not None:
        chosen["slow_consumer"] = options.slow_consumer
    if options.readers is not None:
        chosen["readers"] = options.readers
    if options.declared:
        chosen["codec"] = declared_tlv()
    if options.sessions:
        chosen["sessions"] = tao.Sessions()
    if options.tls:
        chosen["tls"] = tao.load_tls_config(*options.tls)
    server = tao.Server(registry=tao.Registry(), **chosen)
    pause = options.sleep_ms / 1000

    def echo(ctx: tao.Context, conn: tao.Connection) -> None:
        conn.write(ctx.message)

    def echo_or_wait(ctx: tao.Context, conn: tao.Connection) -> None:
        conn.write(ctx.message, timeout=options.patience)

    def sleep_and_echo(ctx: tao.Context, conn: tao.Connection) -> None:
        time.sleep(pause)
        conn.write(ctx.message)

    def broadcast(ctx: tao.Context, conn: tao.Connection) -> None:
        server.broadcast(ctx.message)

    handler = broadcast if options.broadcast else sleep_and_echo if pause else echo
    if options.patience is not None:
        handler = echo_or_wait
    server.handler(EchoMessage)(handler)
    return server


def declared_tlv() -> framing.Frame:
    """Return the default codec's frame, declared."""
    return framing.Frame(
        framing.Field("type", "i32", number=True),
        framing.Length("u32", covers="body"),
        framing.Body(),
        byte_order="little",
        max_bytes=8 * 1024 * 1024 + 8,
    )


def main() -> None:
    """Serve until killed."""
    parser = arguments(__doc__)
    parser.add_argument("--cpu-affinity", type=lambda text: {int(text)})
    parser.add_argument("--workers", type=int)
    parser.add_argument("--sleep-ms", type=float, default=0.0)
    parser.add_argument("--slow-consumer")
    parser.add_argument("--readers", choices=("own", "shared"))
    parser.add_argument("--patience", type=float, help="seconds to wait for room for a reply")
    parser.add_argument("--broadcast", action="store_true")
    parser.add_argument("--switch-interval", type=float, help="seconds, of the interpreter")
    parser.add_argument("--sessions", action="store_true", help="offer sessions")
    parser.add_argument("--declared", action="store_true", help="declare the frame")
    parser.add_argument("--tls", nargs=2, metavar=("CERT", "KEY"))
    options = parser.parse_args()
    if options.switch_interval is not None:
        sys.setswitchinterval(options.switch_interval)
    server = make_server(options)
    address = server.start((options.host, options.port))
    announce(address[1])
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
    server.stop(timeout=5)


if __name__ == "__main__":
    main()
