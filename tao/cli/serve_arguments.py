"""The options of ``tao serve``.

Those that change the server have the names of `ServerSettings`, with ``-`` for ``_``. An option
that is not given is absent from the result, and the server's own value stays.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Final

from tao.cli.argument_types import (
    or_off,
    parse_cluster,
    parse_cpus,
    parse_interval,
    parse_key_file,
)
from tao.cli.common import parse_count, parse_port, parse_rate, parse_seconds

__all__ = ["add_serve_options"]

_LEVELS: Final = ("trace", "debug", "info", "success", "warning", "error", "critical")


def add_serve_options(parser: argparse.ArgumentParser) -> None:
    """Add the options, in groups."""
    parser.add_argument("target", metavar="MODULE:SERVER", help="what to start")
    _add_addresses(parser.add_argument_group("where it listens"))
    _add_tls(parser.add_argument_group("TLS"))
    _add_limits(
        parser.add_argument_group(
            "limits", "Of the server; options that are not given keep the module's values."
        )
    )
    _add_rates(parser.add_argument_group("rates"))
    _add_times(parser.add_argument_group("times"))
    _add_threads(parser.add_argument_group("threads"))
    _add_processes(parser.add_argument_group("more than one process"))
    _add_development(parser.add_argument_group("monitoring and development"))


def _add_addresses(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--host", help="a host name or an address (127.0.0.1)")
    group.add_argument("--port", type=parse_port, help="0 for any free port (12345)")
    group.add_argument(
        "--unix", metavar="PATH", help="a Unix socket instead; @NAME is in the abstract namespace"
    )
    _option(group, "--backlog", parse_count, "N", "connections that may wait to be accepted")
    _option(
        group,
        "--proxy-protocol",
        lambda text: text.split(","),
        "NETWORKS",
        "load balancers that send PROXY headers, such as 10.0.0.0/8,fd00::/8; others are refused",
    )


def _add_tls(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--tls-cert", metavar="FILE", help="speak TLS with this certificate (PEM)")
    group.add_argument("--tls-key", metavar="FILE", help="its private key, if in another file")
    group.add_argument(
        "--tls-client-ca",
        metavar="FILE",
        help="accept only clients with a certificate from these authorities",
    )
    _option(group, "--handshake-timeout", parse_seconds, "SECONDS", "how long a handshake may take")


def _add_limits(group: argparse._ArgumentGroup) -> None:
    count = or_off(parse_count)
    _option(group, "--max-connections", parse_count, "N", "further ones are closed at once")
    _option(group, "--max-connections-per-host", count, "N|off", "from one address")
    _option(group, "--max-groups", parse_count, "N", "that each connection may join")
    _option(group, "--queue-size", parse_count, "N", "messages that may wait, on each connection")
    _option(
        group, "--queue-bytes", count, "N|off", "bytes that may wait to be sent, on each connection"
    )
    _option(group, "--login-max-bytes", parse_count, "N", "the longest message before a login")
    _choice(
        group,
        "--slow-consumer",
        ("raise", "drop_newest", "drop_oldest", "close"),
        "what a write to a full send queue does",
    )


def _add_rates(group: argparse._ArgumentGroup) -> None:
    count, rate = or_off(parse_count), or_off(parse_rate)
    _option(group, "--accept-rate", rate, "N|off", "connections accepted per second, on average")
    _option(group, "--accept-burst", count, "N|off", "how many may arrive at once")
    _option(
        group,
        "--message-rate",
        rate,
        "N|off",
        "messages per second that a peer may send, on average",
    )
    _option(group, "--message-burst", count, "N|off", "how many may arrive at once")
    _option(
        group, "--byte-rate", rate, "N|off", "bytes per second that a peer may send, on average"
    )
    _option(group, "--byte-burst", count, "N|off", "how many may arrive at once")
    _choice(group, "--over-rate", ("delay", "close"), "what happens to a peer that sends more")


def _add_times(group: argparse._ArgumentGroup) -> None:
    for name, meaning in (
        ("heartbeat", "send one after this long without sending anything"),
        ("idle-timeout", "close a connection after this long without receiving anything"),
        ("frame-timeout", "close one if a message takes longer to arrive completely"),
        ("write-timeout", "close one if its peer accepts no data for this long"),
        ("handler-warn-after", "log a handler that runs for longer"),
    ):
        _option(group, f"--{name}", or_off(parse_seconds), "SECONDS|off", meaning)
    _option(
        group,
        "--login-timeout",
        parse_seconds,
        "SECONDS",
        "close one that has not logged in by then",
    )
    _option(
        group, "--drain-timeout", parse_seconds, "SECONDS", "how long a graceful shutdown may take"
    )
    _option(
        group, "--reply-timeout", parse_seconds, "SECONDS", "how long a handler waits for its peer"
    )
    group.add_argument(
        "--half-close",
        action="store_true",
        default=argparse.SUPPRESS,
        help="keep sending to a peer that has shut down its own sending direction",
    )
    _option(
        group, "--half-close-timeout", parse_seconds, "SECONDS", "how long to keep sending to it"
    )


def _add_threads(group: argparse._ArgumentGroup) -> None:
    _option(group, "--workers", parse_count, "N", "how many blocking handlers may run at once")
    _option(
        group,
        "--max-waiting-workers",
        parse_count,
        "N",
        "how many of them may wait for a peer without counting as workers",
    )
    _option(
        group,
        "--max-in-flight",
        or_off(parse_count),
        "N|off",
        "how many requests may wait for replies on each connection",
    )
    _choice(group, "--dispatch", ("auto", "pool", "inline"), "where handlers run")
    _choice(
        group, "--readers", ("own", "shared"), "a reading thread per connection, or one for all"
    )
    _option(group, "--reader-threads", parse_count, "N", 'threads that read, with "shared"')
    _option(
        group,
        "--cpu-affinity",
        parse_cpus,
        "CPUS",
        'CPUs for the threads of connections: "auto" for one, or 0,2 or 0-3; "off" for any',
    )
    group.add_argument(
        "--switch-interval",
        type=parse_interval,
        metavar="SECONDS",
        help="how long a thread may compute while others wait for the interpreter; 0.02 is faster"
        " when hundreds of connections are busy at once (default: the interpreter's)",
    )


def _add_processes(group: argparse._ArgumentGroup) -> None:
    for name, metavar, kind, meaning in (
        ("processes", "N", parse_count, "start so many processes, and supervise them"),
        ("drain-spread", "SECONDS", parse_seconds, "at a reload, spread the closes over it (30)"),
        ("worker-timeout", "SECONDS", parse_seconds, "kill one that gives no sign of life (60)"),
        ("max-crashes", "N", parse_count, "in a minute, of all; then give up (5 for each process)"),
    ):
        group.add_argument(f"--{name}", metavar=metavar, type=kind, help=meaning)
    group.add_argument(
        "--reuse-port",
        action="store_true",
        help="give each process a listening socket of its own, among which the kernel distributes"
        " connections; those that wait at a process that hangs are not taken by the others",
    )
    group.add_argument("--pid-file", metavar="FILE", help="write the supervisor's process id there")
    group.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)
    _option(
        group,
        "--cluster",
        parse_cluster,
        "URL",
        "join it with all servers at that Redis: redis://HOST/0?prefix=NAME, rediss://, unix://"
        " (default: the environment variable TAO_CLUSTER)",
    )
    group.add_argument(
        "--cluster-key-file",
        dest="cluster_key",
        metavar="FILE",
        type=parse_key_file,
        action="append",
        default=argparse.SUPPRESS,
        help="sign what goes through Redis with the bytes in it; given several times, the first key"
        " signs and any is accepted (default: the environment variable TAO_CLUSTER_KEY)",
    )


def _add_development(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--monitor", type=parse_port, metavar="PORT", help="serve metrics over HTTP on localhost"
    )
    group.add_argument(
        "--log-level", default="warning", choices=_LEVELS, help="of the log on stderr (%(default)s)"
    )
    group.add_argument(
        "--reload",
        action="store_true",
        help="restart when a module below the current directory changes",
    )


def _option(
    group: argparse._ArgumentGroup,
    name: str,
    kind: Callable[[str], Any],
    metavar: str,
    meaning: str,
) -> None:
    """Add an option that is absent from the result unless it is given."""
    group.add_argument(name, type=kind, metavar=metavar, default=argparse.SUPPRESS, help=meaning)


def _choice(
    group: argparse._ArgumentGroup, name: str, choices: tuple[str, ...], meaning: str
) -> None:
    """Add such an option that accepts one of a few words."""
    group.add_argument(name, choices=choices, default=argparse.SUPPRESS, help=meaning)
