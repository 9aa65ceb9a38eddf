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
    raised_in,
    reason_of,
    say,
    unix_address_of,
)
from tao.connection.options import ServerSettings
from tao.errors import TaoError
from tao.monitor.monitor import Monitor, monitor_on
from tao.runtime.log import logger
from tao.server.reports import StopReport
from tao.server.server import Server, server_core_of
from tao.transport.addresses import address_text
from tao.transport.certificates import load_tls_config
from tao.version import __version__

if TYPE_CHECKING:
    from tao.cli.reload import Link

__all__ = ["run"]

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
        # Handlers may still be running; they are not waited for any longer.
        complain("ended at once")
        leave(INTERRUPTED)


def _serve(options: argparse.Namespace, link: Link | None) -> int:
    # Before the module is imported: what it arranges about logging stays.
    logger.remove()
    logger.add(sys.stderr, level=options.log_level.upper())
    logger.enable("tao")
    if options.switch_interval is not None:
        sys.setswitchinterval(options.switch_interval)
    tls = _tls(options)
    server = _find_server(options.target, debug=options.log_level in ("trace", "debug"))
    _configure(server, options)
    if link is not None:
        link.server = server
    with ExitStack() as cleanup:
        monitor = None
        try:
            if options.monitor is not None:
                monitor = cleanup.enter_context(monitor_on(options.monitor))
            server.start(_address(options), tls=tls)
        except (OSError, TaoError, ValueError) as error:
            raise WrongCall(reason_of(error)) from error
        how = "TLS" if tls or server_core_of(server).settings.tls else "no TLS"
        server.context.after_cancel(lambda: say("tao: stopping"))
        server.serve_forever(
            handle_signals=True,
            ready=lambda _: _announce(server, f"{options.target} listens at", how, monitor),
        )
        report = server.stop()
    return _end(report)


def _address(options: argparse.Namespace) -> Address:
    if options.unix is None:
        return options.host or "127.0.0.1", 12345 if options.port is None else options.port
    for name in ("host", "port"):
        if getattr(options, name) is not None:
            raise WrongCall(f"--unix stands in place of --{name}")
    return unix_address_of(options.unix)


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
    """Have the options given take the place of the server's own, which must not run yet."""
    given = vars(options)
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
        raise WrongCall(f"the server was started by its module: {names} cannot be changed any more")
    if "workers" in changes and not isinstance(core.settings.workers, int):
        raise WrongCall("the server shares its workers with others: --workers cannot change them")
    try:
        core.configure(dataclasses.replace(core.settings, **changes))
    except (TypeError, ValueError) as error:
        text = str(error)
        for name in changes:
            text = text.replace(name, _as_option(name))
        raise WrongCall(text) from error


def _as_option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _announce(server: Server, what: str, how: str, monitor: Monitor | None) -> None:
    options = server_core_of(server).settings
    say(f"tao {__version__}: {what} {', '.join(map(address_text, server.addresses))} ({how})")
    workers = options.workers if isinstance(options.workers, int) else options.workers.size
    say(f"tao: {workers} workers, {options.max_connections} connections at most")
    if monitor is not None:
        say(f"tao: live page at {monitor.url}, figures at {monitor.url}/debug/vars and /metrics")
    say("tao: Ctrl-C stops it")


def _end(report: StopReport) -> int:
    if report.clean:
        say("tao: stopped")
        return DONE
    for conn, unhandled, unsent in report.abandoned:
        peer = address_text(conn.remote_address)
        say(f"tao: cut off {peer}: {unhandled} messages not handled, {unsent} not sent")
    say("tao: stopped, not everything was finished")
    if report.threads:
        # The interpreter would wait for workers whose handlers never return.
        leave(FAILED)
    return FAILED


# -- finding what to serve


def _find_server(target: str, *, debug: bool) -> Server:
    """Return the server that ``MODULE:SERVER`` names.

    Raises:
        WrongCall: there is none.
    """
    name, _, path = target.partition(":")
    if not name:
        raise WrongCall(f"{target!r} names no module; it should look like module:server")
    path = path or _DEFAULT_NAME
    module = import_module(name, debug=debug)
    found: Any = module
    try:
        for attribute in path.split("."):
            found = getattr(found, attribute)
    except AttributeError:
        raise WrongCall(f"module {name} has no {path}; {_offer(module)}") from None
    except (Exception, SystemExit) as error:  # it is a property, say
        raise raised_in(f"{name}:{path} failed", error, debug=debug) from error
    if callable(found):
        try:
            found = found()
        except (Exception, SystemExit) as error:
            raise raised_in(f"{name}:{path}() failed", error, debug=debug) from error
        path += "()"
    if not issubclass(type(found), Server):
        kind = type(found).__name__
        raise WrongCall(f"{name}:{path} is not a tao.Server but of type {kind}; {_offer(module)}")
    server: Server = found
    return server


def _offer(module: object) -> str:
    """Say which servers a module has."""
    # By type(): what a proxy says of its class may raise.
    names = [name for name, value in vars(module).items() if issubclass(type(value), Server)]
    return f"its servers: {', '.join(names)}" if names else "it has no tao.Server at all"
