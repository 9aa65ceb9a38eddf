"""Shared by the examples: command-line arguments and error messages."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import tao


def arguments(description: str | None, port: int) -> argparse.ArgumentParser:
    """Return a parser for ``--host`` and ``--port``, to which others can be added."""
    module = sys.modules["__main__"].__spec__
    prog = f"python -m {module.name}" if module else None
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--host", default="127.0.0.1", help="name or address (%(default)s)")
    parser.add_argument("--port", type=int, default=port, help="a number (%(default)s)")
    return parser


def announce(client: str) -> Callable[[tuple[str, int]], None]:
    """Return a callback that prints the server's address and the command of its client."""

    def say(address: tuple[str, int]) -> None:
        host, port = address[:2]
        where = "" if host in ("127.0.0.1", "0.0.0.0", "::") else f" --host {host}"
        command = f"{_interpreter()} -m {client}{where} --port {port}"
        print(f"listening at {host} port {port}; to talk to it: {command}", flush=True)

    return say


def _interpreter() -> str:
    """Return what starts this interpreter from another terminal, in the same directory."""
    path = os.path.relpath(sys.executable)
    return "python" if path.startswith(os.pardir) else path


@contextmanager
def plain_end() -> Iterator[None]:
    """Exit silently on Ctrl-C, and with a one-line message on expected errors."""
    try:
        yield
    except KeyboardInterrupt:
        pass
    except OSError as error:
        reason = error.strerror or error
        sys.exit(f"error: {error.filename}: {reason}" if error.filename else f"error: {reason}")
    except (tao.TaoError, ValueError) as error:
        sys.exit(f"error: {error}")


def run(server: tao.Server, description: str | None, port: int, command: str) -> None:
    """Run a server for other programs, until a signal; ``command`` tells how to talk to it."""
    options = arguments(description, port).parse_args()

    def say(address: tuple[str, int]) -> None:
        host, port = address[:2]
        what = command.format(port=port)
        print(f"listening at {host} port {port}; to talk to it: {what}", flush=True)

    with plain_end():
        server.serve_forever((options.host, options.port), handle_signals=True, ready=say)
        print("stopped")
