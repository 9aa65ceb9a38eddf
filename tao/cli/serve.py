"""``tao serve``: starts a server defined in a module, and serves until it is stopped.

When the server is stopped by Ctrl-C, SIGTERM or its own code, the exit status is 0 if the shutdown
was clean, else 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import ssl
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from tao.cli.argument_types import parse_cluster, parse_cluster_key
from tao.cli.common import (
    DONE,
    FAILED,
    INTERRUPTED,
    RELOAD_LINK,
    Address,
    WrongCall,
    complain,
    import_module,
    leave,
    log_to_stderr,
    raised_in,
    reason_of,
    say,
    unix_address_of,
)
from tao.connection.options.definitions import ServerSettings
from tao.errors import TaoError
from tao.monitor.monitor import Monitor, monitor_on
from tao.server.reports import StopReport
from tao.server.server import Server, server_core_of
from tao.transport.addresses import address_text
from tao.transport.certificates import load_tls_config
from tao.version import __version__

if TYPE_CHECKING:
    from tao.cli.reload import Link

__all__ = ["address_of", "how_secured", "prepare", "run"]

_DEFAULT_NAME = "server"


def run(options: argparse.Namespace) -> int:
    """Serve as the command line says, and return the exit status."""
    link = None
    if options.reload or RELOAD_LINK in os.environ:
        from tao.cli.reload import Link, supervise

        if options.reload:
            return supervise([word for word in options.words if word != "--reload"])
        link = Link(int(os.environ.pop(RELOAD_LINK)))
    try:
        return _serve(options, link)
    except KeyboardInterrupt:
        # Handlers may still be running; exit without waiting for them.
        complain("stopped at once")
        leave(INTERRUPTED)


def _serve(options: argparse.Namespace, link: Link | None) -> int:
    tls, server = prepare(options)
    if link is not None:
        link.server = server
    with ExitStack() as cleanup:
        monitor = None
        try:
            if options.monitor is not None:
                monitor = cleanup.enter_context(monitor_on(options.monitor))
            server.start(address_of(options), tls=tls)
        except (OSError, TaoError, ValueError) as error:
            raise WrongCall(reason_of(error)) from error
        how = how_secured(tls, server)
        server.context.after_cancel(lambda: say("tao: stopping"))
        server.serve_forever(
            handle_signals=True,
            ready=lambda _: _announce(server, f"{options.target} listens at", how, monitor),
        )
        report = server.stop()
    return _end(report)


def prepare(options: argparse.Namespace) -> tuple[ssl.SSLContext | None, Server]:
    """Set up logging, and return the certificate and the server with its options.

    Raises:
        WrongCall: there is no such server, or an option is wrong.
    """
    # Before the module is imported, so that its own logging setup takes precedence.
    log_to_stderr(options.log_level)
    if options.switch_interval is not None:
        sys.setswitchinterval(options.switch_interval)
    tls = _tls(options)
    server = _find_server(options.target, debug=options.log_level in ("trace", "debug"))
    _configure(server, options)
    return tls, server


def address_of(options: argparse.Namespace) -> Address:
    """Return the address that the command line says.

    Raises:
        WrongCall: it says two.
    """
    if options.unix is None:
        return options.host or "127.0.0.1", 12345 if options.port is None else options.port
    for name in ("host", "port"):
        if getattr(options, name) is not None:
            raise WrongCall(f"--unix and --{name} exclude each other")
    return unix_address_of(options.unix)


def how_secured(tls: ssl.SSLContext | None, server: Server) -> str:
    """Say whether connections are encrypted."""
    return "TLS" if tls or server_core_of(server).settings.tls else "no TLS"


def _tls(options: argparse.Namespace) -> ssl.SSLContext | None:
    if options.tls_cert is None:
        for name in ("tls_key", "tls_client_ca"):
            if getattr(options, name) is not None:
                raise WrongCall(f"--{name.replace('_', '-')} needs --tls-cert")
        return None
    try:
        return load_tls_config(options.tls_cert, options.tls_key, client_ca=options.tls_client_ca)
    except (OSError, ValueError) as error:
        raise WrongCall(reason_of(error)) from error


def _configure(server: Server, options: argparse.Namespace) -> None:
    """Apply the given options to the server, which must not have been started."""
    given = {**_from_environment(), **vars(options)}
    changes = {
        field.name: given[field.name]
        for field in dataclasses.fields(ServerSettings)
        if field.name in given
    }
    if not changes:
        return
    core = server_core_of(server)
    if core.state != "new":
        names = ", ".join(_as_option(name) for name in changes)
        raise WrongCall(f"cannot change {names}: the module has already started the server")
    if "workers" in changes and not isinstance(core.settings.workers, int):
        raise WrongCall("cannot apply --workers: the server uses a shared worker pool")
    try:
        core.configure(dataclasses.replace(core.settings, **changes))
    except (TypeError, ValueError) as error:
        text = str(error)
        for name in changes:
            text = text.replace(name, _as_option(name))
        raise WrongCall(text) from error


def _from_environment() -> dict[str, Any]:
    """Return the options that may be secret, as the environment has them.

    Everyone on the machine can read the command line of a process.
    """
    found = {}
    for name, convert in (("cluster", parse_cluster), ("cluster_key", parse_cluster_key)):
        variable = f"TAO_{name.upper()}"
        text = os.environ.get(variable)
        if text:
            try:
                found[name] = convert(text)
            except argparse.ArgumentTypeError as error:
                raise WrongCall(f"{variable}: {error}") from None
    return found


def _as_option(name: str) -> str:
    return "--cluster-key-file" if name == "cluster_key" else f"--{name.replace('_', '-')}"


def _announce(server: Server, what: str, how: str, monitor: Monitor | None) -> None:
    options = server_core_of(server).settings
    say(f"tao {__version__}: {what} {', '.join(map(address_text, server.addresses))} ({how})")
    workers = options.workers if isinstance(options.workers, int) else options.workers.size
    say(f"tao: {workers} workers, {options.max_connections} connections at most")
    if monitor is not None:
        say(f"tao: live page at {monitor.url}, figures at {monitor.url}/debug/vars and /metrics")
    say("tao: press Ctrl-C to stop")


def _end(report: StopReport) -> int:
    if report.clean:
        say("tao: stopped")
        return DONE
    for conn, unhandled, unsent in report.abandoned:
        peer = address_text(conn.remote_address)
        say(f"tao: aborted {peer}: {unhandled} messages not handled, {unsent} not sent")
    if report.unpublished:
        say(f"tao: {report.unpublished} messages not published")
    say("tao: stopped before all work was finished")
    if report.threads:
        # A normal exit would wait for workers with handlers that never return.
        leave(FAILED)
    return FAILED


# -- finding what to serve


def _find_server(target: str, *, debug: bool) -> Server:
    """Return the server that ``MODULE:SERVER`` names.

    Raises:
        WrongCall: it does not exist, or is not a server.
    """
    name, _, path = target.partition(":")
    if not name:
        raise WrongCall(f"{target!r} has no module name; expected MODULE:SERVER")
    path = path or _DEFAULT_NAME
    module = import_module(name, debug=debug)
    found: Any = module
    try:
        for attribute in path.split("."):
            found = getattr(found, attribute)
    except AttributeError:
        raise WrongCall(f"module {name} has no {path}; {_offer(module)}") from None
    except (Exception, SystemExit) as error:  # raised by a property, for example
        raise raised_in(f"{name}:{path} failed", error, debug=debug) from error
    if callable(found):
        try:
            found = found()
        except (Exception, SystemExit) as error:
            raise raised_in(f"{name}:{path}() failed", error, debug=debug) from error
        path += "()"
    if not issubclass(type(found), Server):
        kind = type(found).__name__
        raise WrongCall(f"{name}:{path} is of type {kind}, not tao.Server; {_offer(module)}")
    server: Server = found
    return server


def _offer(module: object) -> str:
    """List the servers of a module, for an error message."""
    # type() instead of isinstance(), because a proxy's __class__ may raise.
    names = [name for name, value in vars(module).items() if issubclass(type(value), Server)]
    return f"its servers: {', '.join(names)}" if names else "it defines no tao.Server"
