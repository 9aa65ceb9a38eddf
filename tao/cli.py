"""The command line: ``tao serve MODULE:SERVER`` starts a server that some module has made.

What is wrong with the call is said in one line on stderr, and the exit status is 2. A server that
was stopped by Ctrl-C, SIGTERM or from within ends with 0 if it finished everything, else with 1.
"""

from __future__ import annotations

import argparse
import importlib
import os
import ssl
import sys
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from types import ModuleType
from typing import Any, NoReturn

from tao.errors import TaoError
from tao.log import logger
from tao.monitor import Monitor, monitor_on
from tao.server import Server, StopReport
from tao.tls import load_tls_config
from tao.transport import address_text
from tao.version import __version__

__all__ = ["main"]

_LEVELS = ("trace", "debug", "info", "success", "warning", "error", "critical")
_DEFAULT_NAME = "server"
_WRONG_CALL = 2
_INTERRUPTED = 130

_EPILOG = """\
MODULE:SERVER names a module and a tao.Server in it, as "package.module:server" or
"module:object.attribute"; a function that takes nothing and returns a server will
do as well. Without :SERVER it is called "server". The module is looked for in the
current directory too.

  python -m tao serve examples.chat.server:server --port 12345
  python -m tao serve gateway:make_server --tls-cert cert.pem --tls-key key.pem
  python -m tao serve gateway --host 0.0.0.0 --monitor 8080 --log-level info

Ctrl-C or SIGTERM stops it in order: what was received is handled, what was written
is sent. A second one ends it at once.
"""


class _WrongCall(Exception):
    """The text says in one line what is wrong."""


class _Parser(argparse.ArgumentParser):
    """One that says what is wrong in one line, and leaves the usage to --help."""

    def error(self, message: str) -> NoReturn:
        raise _WrongCall(f"{message} (see {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Args:
        arguments: without the program's name; None: those of the process.
    """
    try:
        options = _parser().parse_args(arguments)
        if options.command is None:
            _parser().print_help()
            return 0
        return _serve(options)
    except _WrongCall as error:
        print(f"tao: {error}", file=sys.stderr)
        return _WRONG_CALL
    except KeyboardInterrupt:
        # Handlers may be running still; nobody wants to wait for them any more.
        print("tao: ended at once", file=sys.stderr)
        _leave(_INTERRUPTED)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="tao", description="TCP messaging for synchronous Python.")
    parser.add_argument("--version", action="version", version=f"tao {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    serve = commands.add_parser(
        "serve",
        help="start a server; see tao serve --help",
        description="Start a server that a module has made, and serve until it is stopped.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    serve.add_argument("target", metavar="MODULE:SERVER", help="what to start")
    serve.add_argument("--host", default="127.0.0.1", help="where to listen (%(default)s)")
    serve.add_argument(
        "--port", type=_port, default=12345, help="0 for any that is free (%(default)s)"
    )
    serve.add_argument("--tls-cert", metavar="FILE", help="speak TLS with this certificate (PEM)")
    serve.add_argument("--tls-key", metavar="FILE", help="its private key, if in another file")
    serve.add_argument(
        "--tls-client-ca", metavar="FILE", help="let in only clients with a certificate of these"
    )
    serve.add_argument(
        "--monitor", type=_port, metavar="PORT", help="show figures over HTTP at localhost"
    )
    serve.add_argument(
        "--log-level", default="warning", choices=_LEVELS, help="of the log on stderr (%(default)s)"
    )
    return parser


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"a port is a number from 0 to 65535, not {text!r}")
    return int(text)


# -- serving


def _serve(options: argparse.Namespace) -> int:
    # Before the module is imported: what it arranges about logging stays.
    logger.remove()
    logger.add(sys.stderr, level=options.log_level.upper())
    logger.enable("tao")
    tls = _tls(options)
    server = _find_server(options.target, debug=options.log_level in ("trace", "debug"))
    with ExitStack() as cleanup:
        monitor = None
        try:
            if options.monitor is not None:
                monitor = cleanup.enter_context(monitor_on(options.monitor))
            address = server.start((options.host, options.port), tls=tls)
        except (OSError, TaoError, ValueError) as error:
            raise _WrongCall(_reason(error)) from error
        how = "TLS" if tls or server._options.tls else "no TLS"
        where = f"tao {__version__}: {options.target} listens at {address_text(address)} ({how})"
        server.context.after_cancel(lambda: _say("tao: stopping"))
        server.serve_forever(handle_signals=True, ready=lambda _: _announce(where, monitor))
        report = server.stop()
    return _end(report)


def _tls(options: argparse.Namespace) -> ssl.SSLContext | None:
    if options.tls_cert is None:
        for name in ("tls_key", "tls_client_ca"):
            if getattr(options, name) is not None:
                raise _WrongCall(f"--{name.replace('_', '-')} needs --tls-cert")
        return None
    try:
        return load_tls_config(options.tls_cert, options.tls_key, client_ca=options.tls_client_ca)
    except (OSError, ValueError) as error:
        raise _WrongCall(_reason(error)) from error


def _announce(where: str, monitor: Monitor | None) -> None:
    _say(where)
    if monitor is not None:
        _say(f"tao: figures at {monitor.url}/debug/vars, /metrics and /healthz")
    _say("tao: Ctrl-C stops it")


def _say(line: str) -> None:
    print(line, flush=True)


def _end(report: StopReport) -> int:
    if report.clean:
        _say("tao: stopped")
        return 0
    for conn, unhandled, unsent in report.abandoned:
        peer = address_text(conn.remote_address)
        _say(f"tao: cut off {peer}: {unhandled} messages not handled, {unsent} not sent")
    _say("tao: stopped, not everything was finished")
    if report.threads:
        # The interpreter would wait for workers whose handlers never return.
        _leave(1)
    return 1


def _leave(status: int) -> NoReturn:
    """End the process without waiting for any thread."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


# -- finding what to serve


def _find_server(target: str, *, debug: bool) -> Server:
    """Return the server that ``MODULE:SERVER`` names.

    Raises:
        _WrongCall: there is none.
    """
    name, _, path = target.partition(":")
    if not name:
        raise _WrongCall(f"{target!r} names no module; it should look like module:server")
    path = path or _DEFAULT_NAME
    module = _import(name, debug=debug)
    found: Any = module
    try:
        for attribute in path.split("."):
            found = getattr(found, attribute)
    except AttributeError:
        raise _WrongCall(f"module {name} has no {path}; {_offer(module)}") from None
    if callable(found):
        try:
            found = found()
        except (Exception, SystemExit) as error:
            raise _failed(f"{name}:{path}() failed", error, debug=debug) from error
        path += "()"
    if not isinstance(found, Server):
        kind = type(found).__name__
        raise _WrongCall(f"{name}:{path} is not a tao.Server but of type {kind}; {_offer(module)}")
    return found


def _import(name: str, *, debug: bool) -> ModuleType:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        # The module itself or a package above it, not one that it imports.
        if missing and f"{name}.".startswith(f"{missing}."):
            raise _WrongCall(f"there is no module {missing}, nor one below {here}") from None
        raise _failed(f"module {name} cannot be imported", error, debug=debug) from error


def _offer(module: ModuleType) -> str:
    """Say which servers a module has."""
    names = [name for name, value in vars(module).items() if isinstance(value, Server)]
    return f"its servers: {', '.join(names)}" if names else "it has no tao.Server at all"


def _failed(what: str, error: BaseException, *, debug: bool) -> _WrongCall:
    """Say in a line which exception code of others raised, and show all of it if wanted."""
    if debug:
        traceback.print_exception(error)
        return _WrongCall(what)
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return _WrongCall(f"{what}: {text} (--log-level debug shows where)")


def _reason(error: BaseException) -> str:
    """Say what is wrong without the number of the error."""
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror.lower() if error.filename else error.strerror
        return f"{error.filename}: {reason}" if error.filename else reason
    return str(error)
