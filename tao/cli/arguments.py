"""What the command line understands: every command, its options and its help, and nothing else.

Reading the options imports none of the commands, so that each starts as quickly as it can. The
names of the options of ``tao serve`` that change the server are those of `ServerSettings`, with
``-`` for ``_``; what is not given is absent from the result, and the server's own value stays.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Any, Final, NoReturn

from tao.cli.common import (
    WrongCall,
    parse_address,
    parse_count,
    parse_monitor,
    parse_number,
    parse_port,
    parse_rate,
    parse_seconds,
    parse_whole,
    quoted,
)
from tao.version import __version__

__all__ = ["SHELLS", "Parser", "make_parser"]

SHELLS: Final = ("bash", "zsh", "fish")
_LEVELS: Final = ("trace", "debug", "info", "success", "warning", "error", "critical")
_SORTS: Final = ("queue", "running", "rate", "age")

# More than any machine has.
_MOST_CPUS: Final = 65535

_STATUS = """\
exit status:
  0  fine
  1  failed: {failed}
  2  wrong usage, told in one line
"""
_INTERRUPTED = "130  ended by Ctrl-C\n"

_MAIN_EPILOG = """\
tao COMMAND --help tells more, with examples. Where tao is not on the PATH, write
python -m tao instead.

exit status: 0 fine, 1 failed, 2 wrong usage, 130 ended by Ctrl-C (but 0 for a server that
was stopped so)
"""

_SERVE_EPILOG = (
    """\
MODULE:SERVER names a module and a tao.Server in it, as "package.module:server" or
"module:object.attribute"; a function that takes nothing and returns a server will
do as well. Without :SERVER it is called "server". The module is looked for in the
current directory too. An option that is not given is as the module has set it.

examples:
  tao serve examples.chat.server:server --port 12345
  tao serve examples.chat.server --reload --log-level debug
  tao serve gateway:make_server --tls-cert cert.pem --tls-key key.pem
  tao serve gateway --host 0.0.0.0 --monitor 8080 --workers 50 --idle-timeout 90

Ctrl-C or SIGTERM stops it in order: what was received is handled, what was written
is sent. A second one ends it at once.

"""
    + _STATUS.format(failed="stopped, but not everything was finished")
    + "130  ended at once by a second Ctrl-C\n"
)

_CONNECT_EPILOG = (
    """\
A line is a message: its number, a space, and the value.
  1 hello there           the text, as UTF-8
  7 hex:00ff10            bytes
  2 json:{"a": 1}         JSON, made compact
  1 text:hex:00           the text "hex:00"
  3                       nothing
"help" shows this, "quit" or Ctrl-D ends; lines that begin with # are passed over.
What comes is shown as  < NUMBER (SIZE bytes) VALUE,  a value that is no printable text
as hex:.... Between messages heartbeats are sent, so that the server keeps the connection.

examples:
  tao connect 127.0.0.1:12345
  tao connect gateway.example.org:7000 --tls --ca ca.pem --messages gateway.messages
  echo '1 hello' | tao connect :12345 --replies 1 --wait 5

"""
    + _STATUS.format(failed="no connection, a lost one, or fewer --replies than wanted")
    + _INTERRUPTED
)

_BENCH_EPILOG = (
    """\
The server must answer each message with one message, as an echo does. Each connection
has --window messages under way: for each reply that comes, one more is sent. Measured
are the replies in a second and, for each, the time from giving the message to the
kernel to having read the reply; with a window that includes the wait behind the others.
Heartbeats are not counted, nor what comes after --duration.

Its limits: it is one Python thread, and can itself be what is slow; the share of a CPU
that it took is shown. On one machine it takes its CPU from the server. Latencies are
told to 3 %. Waiting for replies before sending on, it does not see how latency grows
under a load that does not wait.

examples:
  tao bench 127.0.0.1:12345
  tao bench :12345 --connections 100 --window 1 --duration 10
  tao bench :12345 --size 4096 --tls --ca ca.pem --json > result.json

"""
    + _STATUS.format(failed="no connection, a lost one, or no reply for 5 s")
    + _INTERRUPTED
)

_TOP_EPILOG = (
    """\
HOST:PORT is where a monitor listens: tao.monitor_on(PORT), or tao serve --monitor PORT.
The connections in most need of a look come first. IN, OUT and HANDLED are messages a
second since the frame before; in the first frame, since the start. QUEUE is how many
messages wait to be sent, PENDING how many to be handled, RUNNING the number of the
message that is being handled, FOR since when, HEARD how long ago something came.

examples:
  tao top :8080
  tao top 127.0.0.1:8080 --interval 0.5 --sort running
  tao top :8080 --once

"""
    + _STATUS.format(failed="there is no monitor at the start")
    + _INTERRUPTED
)

_CERT_EPILOG = """\
Writes ca.pem, server.pem, server-key.pem, client.pem and client-key.pem, all new. The
authority's own key is not kept, so nobody can issue more. Keys can be read by you only.
Not for production.

examples:
  tao dev-cert
  tao dev-cert --out certs --name gateway.test 192.168.0.7 --days 7

""" + _STATUS.format(failed="a file cannot be written, or is there and --force is not given")


class Parser(argparse.ArgumentParser):
    """One that says what is wrong in one line, and leaves the usage to --help."""

    def __init__(self, **settings: Any) -> None:
        # Abbreviations that work today would be ambiguous with the next option.
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **settings
        )

    def error(self, message: str) -> NoReturn:
        raise WrongCall(f"{message} (see {self.prog} --help)")


def make_parser() -> Parser:
    """Return the parser of the whole command line."""
    parser = Parser(
        prog="tao", description="TCP messaging for synchronous Python.", epilog=_MAIN_EPILOG
    )
    parser.add_argument("--version", action="version", version=f"tao {__version__}")
    parser.add_argument(
        "--print-completion",
        choices=SHELLS,
        metavar="SHELL",
        help=f"print what makes a shell complete these options: {', '.join(SHELLS)}",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, summary, description, epilog, add in (
        ("serve", "start a server", _SERVE, _SERVE_EPILOG, _add_serve),
        ("connect", "talk to a server, line by line", _CONNECT, _CONNECT_EPILOG, _add_connect),
        ("bench", "measure how fast a server answers", _BENCH, _BENCH_EPILOG, _add_bench),
        ("top", "watch servers and their connections", _TOP, _TOP_EPILOG, _add_top),
        ("dev-cert", "make certificates for development", _CERT, _CERT_EPILOG, _add_dev_cert),
    ):
        command = commands.add_parser(name, help=summary, description=description, epilog=epilog)
        add(command)
        wanted = [each.metavar for each in command._actions if not each.option_strings]
        command.usage = " ".join(["%(prog)s [options]", *map(str, wanted)])
    return parser


_SERVE = "Start a server that a module has made, and serve until it is stopped."
_CONNECT = "Send messages to a server that speaks the default framing, and show what comes."
_BENCH = "Send messages to an echo server as fast as it answers, and tell how fast that is."
_TOP = "Show what the servers and clients of a process do, again and again, from its monitor."
_CERT = "Make a certificate authority, and certificates of a server and a client, to try TLS."


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="MODULE:SERVER", help="what to start")
    group = parser.add_argument_group("where it listens")
    group.add_argument("--host", help="a name or an address (127.0.0.1)")
    group.add_argument("--port", type=parse_port, help="0 for any that is free (12345)")
    group.add_argument(
        "--unix", metavar="PATH", help="a Unix socket, in place of host and port; @NAME has no file"
    )
    _option(group, "--backlog", parse_count, "N", "connections that may wait to be accepted")
    _option(
        group,
        "--proxy-protocol",
        lambda text: text.split(","),
        "NETWORKS",
        "of load balancers that send PROXY headers, as 10.0.0.0/8,fd00::/8; nobody else may come",
    )
    group = parser.add_argument_group("TLS")
    group.add_argument("--tls-cert", metavar="FILE", help="speak TLS with this certificate (PEM)")
    group.add_argument("--tls-key", metavar="FILE", help="its private key, if in another file")
    group.add_argument(
        "--tls-client-ca", metavar="FILE", help="let in only clients with a certificate of these"
    )
    _option(group, "--handshake-timeout", parse_seconds, "SECONDS", "what a handshake may take")
    _add_serve_limits(parser)
    group = parser.add_argument_group("watching and developing")
    group.add_argument(
        "--monitor", type=parse_port, metavar="PORT", help="show figures over HTTP at localhost"
    )
    group.add_argument(
        "--log-level", default="warning", choices=_LEVELS, help="of the log on stderr (%(default)s)"
    )
    group.add_argument(
        "--reload",
        action="store_true",
        help="start again when a module from below the current directory changes",
    )


def _add_serve_limits(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "limits", "Of the server; those not given are as the module has set them."
    )
    count, rate, a_second = (
        _or_off(parse_count),
        _or_off(parse_rate),
        "in a second, in the long run",
    )
    _option(group, "--max-connections", parse_count, "N", "one more is closed at once")
    _option(group, "--max-connections-per-host", count, "N|off", "from one address")
    _option(group, "--queue-size", parse_count, "N", "messages that may wait, on each connection")
    _option(group, "--queue-bytes", count, "N|off", "bytes that may wait to be sent, on each")
    _choice(
        group,
        "--slow-consumer",
        ("raise", "drop_newest", "drop_oldest", "close"),
        "what a write to a full send queue does",
    )
    _option(group, "--accept-rate", rate, "N|off", f"connections accepted {a_second}")
    _option(group, "--accept-burst", count, "N|off", "as many may come at once")
    _option(group, "--message-rate", rate, "N|off", f"messages that a peer may send {a_second}")
    _option(group, "--message-burst", count, "N|off", "as many may come at once")
    _option(group, "--byte-rate", rate, "N|off", f"bytes that a peer may send {a_second}")
    _option(group, "--byte-burst", count, "N|off", "as many may come at once")
    _choice(group, "--over-rate", ("delay", "close"), "what becomes of a peer that sends more")
    group = parser.add_argument_group("times")
    for name, meaning in (
        ("heartbeat", "send one when nothing was sent for so long"),
        ("idle-timeout", "close a connection from which nothing came for so long"),
        ("frame-timeout", "close one if a message that has begun is not whole by then"),
        ("write-timeout", "close one whose peer takes nothing for so long"),
        ("handler-warn-after", "log a handler that runs for longer"),
    ):
        _option(group, f"--{name}", _or_off(parse_seconds), "SECONDS|off", meaning)
    _option(group, "--drain-timeout", parse_seconds, "SECONDS", "what an orderly end may take")
    _option(
        group, "--reply-timeout", parse_seconds, "SECONDS", "how long a handler waits for its peer"
    )
    group.add_argument(
        "--half-close",
        action="store_true",
        default=argparse.SUPPRESS,
        help="go on sending to a peer that has ended its own direction",
    )
    _option(group, "--half-close-timeout", parse_seconds, "SECONDS", "for so long at most")
    group = parser.add_argument_group("threads")
    _option(group, "--workers", parse_count, "N", "handlers that block and may run at once")
    _choice(group, "--dispatch", ("auto", "pool", "inline"), "where handlers run")
    _option(
        group,
        "--cpu-affinity",
        _parse_cpus,
        "CPUS",
        'CPUs for the threads of connections: "auto" for one, or 0,2 or 0-3; "off" for any',
    )
    group.add_argument(
        "--switch-interval",
        type=_parse_interval,
        metavar="SECONDS",
        help="for how long a thread may compute while others want to; more, such as 0.02, is faster"
        " where hundreds of connections talk at once (as the interpreter has it)",
    )


def _add_connect(parser: argparse.ArgumentParser) -> None:
    _add_address(parser)
    parser.add_argument(
        "--messages",
        metavar="MODULE",
        help="show messages as the classes of this module, or what it registers, read them",
    )
    parser.add_argument(
        "--wait",
        type=_or_zero,
        metavar="SECONDS",
        default=1.0,
        help="how long to wait for replies at the end of the input (%(default)s)",
    )
    parser.add_argument(
        "--replies",
        type=parse_count,
        metavar="N",
        help="do not wait for more than so many, and fail if fewer come",
    )
    parser.add_argument(
        "--show",
        type=parse_count,
        metavar="BYTES",
        default=1024,
        help="how much of a message to show (%(default)s)",
    )
    parser.add_argument("--heartbeats", action="store_true", help="show heartbeats too")
    parser.add_argument(
        "--heartbeat",
        type=parse_seconds,
        metavar="SECONDS",
        default=30.0,
        help="send one when nothing was sent for so long (%(default)s)",
    )
    parser.add_argument(
        "--history",
        metavar="FILE",
        default="~/.tao_history",
        help="where lines typed are remembered (%(default)s)",
    )
    _add_client_tls(parser)


def _add_bench(parser: argparse.ArgumentParser) -> None:
    _add_address(parser)
    for name, kind, default, meaning in (
        ("connections", parse_count, 10, "how many"),
        ("window", parse_count, 16, "messages under way on each"),
        ("size", _parse_size, 64, "bytes of a value"),
        ("duration", parse_seconds, 5.0, "seconds to measure"),
        ("number", parse_number, 1, "message number"),
    ):
        parser.add_argument(
            f"--{name}",
            type=kind,
            metavar="SECONDS" if name == "duration" else "BYTES" if name == "size" else "N",
            default=default,
            help=f"{meaning} (%(default)s)",
        )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    _add_client_tls(parser)


def _add_top(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "address",
        type=parse_monitor,
        metavar="HOST:PORT",
        help="where the monitor listens; :PORT is at this machine",
    )
    parser.add_argument(
        "--interval",
        type=parse_seconds,
        metavar="SECONDS",
        default=2.0,
        help="between two frames (%(default)s)",
    )
    parser.add_argument(
        "--sort", choices=_SORTS, default="queue", help="which connections come first (%(default)s)"
    )
    parser.add_argument(
        "--limit",
        type=parse_count,
        metavar="N",
        default=20,
        help="how many connections to show (%(default)s)",
    )
    parser.add_argument("--once", action="store_true", help="show one frame and end")


def _add_dev_cert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", metavar="DIR", default="certs", help="where to, made if missing (%(default)s)"
    )
    parser.add_argument(
        "--name",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="host names and addresses of the server (localhost 127.0.0.1 ::1)",
    )
    parser.add_argument(
        "--client", metavar="NAME", default="client", help="who the client is (%(default)s)"
    )
    parser.add_argument(
        "--days", type=_parse_days, default=30.0, help="how long they are valid (30)"
    )
    parser.add_argument("--force", action="store_true", help="replace files that are there")


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "address",
        type=parse_address,
        metavar="HOST:PORT",
        help="where the server listens; :PORT is at this machine, a path is a Unix socket",
    )


def _add_client_tls(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("TLS")
    group.add_argument("--tls", action="store_true", help="speak TLS; the others need this")
    group.add_argument(
        "--ca", metavar="FILE", help="trust these authorities, not those of the system"
    )
    group.add_argument("--insecure", action="store_true", help="trust whoever answers")
    group.add_argument("--cert", metavar="FILE", help="show this certificate to who asks (PEM)")
    group.add_argument("--key", metavar="FILE", help="its private key, if in another file")
    group.add_argument(
        "--server-name", metavar="NAME", help="whom the certificate must be of, if not HOST"
    )


# -- kinds of values


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
    """The same for an option that is one of a few words."""
    group.add_argument(name, choices=choices, default=argparse.SUPPRESS, help=meaning)


def _or_off(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: None if text == "off" else kind(text)


def _or_zero(text: str) -> float:
    return 0.0 if text == "0" else parse_seconds(text)


def _parse_interval(text: str) -> float:
    seconds = parse_seconds(text)
    if seconds > 1:
        raise argparse.ArgumentTypeError(f"at most 1 second is wanted, not {quoted(text)}")
    return seconds


def _parse_size(text: str) -> int:
    return parse_whole(text, 0, 8 * 1024 * 1024, "a size is from 0 to 8388608 bytes")


def _parse_days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = 0
    if not 0 < days <= 3650:
        raise argparse.ArgumentTypeError(
            f"a number of days up to 3650 is wanted, not {quoted(text)}"
        )
    return days


def _parse_cpus(text: str) -> str | list[int] | None:
    if text in ("auto", "off"):
        return text if text == "auto" else None
    cpus: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        last = last or first
        named = range(0)
        if all(re.fullmatch("[0-9]{1,9}", number) for number in (first, last)):
            named = range(int(first), min(int(last), _MOST_CPUS) + 1)
        if not named:
            raise argparse.ArgumentTypeError(
                f'"auto", "off", or CPUs as 0,2 or 0-3, not {quoted(text)}'
            )
        cpus += named
    return cpus
