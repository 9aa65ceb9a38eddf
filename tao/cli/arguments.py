"""The parser of the command line: every command with its options and its help.

It imports none of the commands, so that each starts as quickly as possible. The options of ``tao
serve`` are in ``serve_arguments.py``, what ``--help`` says about a command in ``help_texts.py``.
"""

from __future__ import annotations

import argparse
from typing import Any, Final, NoReturn

from tao.cli.argument_types import or_zero, parse_days, parse_size
from tao.cli.common import (
    WrongCall,
    parse_address,
    parse_count,
    parse_monitor,
    parse_seconds,
)
from tao.cli.help_texts import DESCRIPTIONS, EPILOGS, MAIN_EPILOG
from tao.cli.serve_arguments import add_serve_options
from tao.version import __version__

__all__ = ["SHELLS", "Parser", "make_parser"]

SHELLS: Final = ("bash", "zsh", "fish")
_SORTS: Final = ("queue", "running", "rate", "age")


class Parser(argparse.ArgumentParser):
    """A parser that reports what is wrong in one line, and leaves the usage to --help."""

    def __init__(self, **settings: Any) -> None:
        # An abbreviation that works today may be ambiguous when an option is added.
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **settings
        )

    def error(self, message: str) -> NoReturn:
        raise WrongCall(f"{message} (see {self.prog} --help)")


def make_parser() -> Parser:
    """Return the parser of the whole command line."""
    parser = Parser(
        prog="tao", description="TCP messaging for synchronous Python.", epilog=MAIN_EPILOG
    )
    parser.add_argument("--version", action="version", version=f"tao {__version__}")
    parser.add_argument(
        "--print-completion",
        choices=SHELLS,
        metavar="SHELL",
        help=f"print the completion script for a shell: {', '.join(SHELLS)}",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, summary, add in (
        ("serve", "start a server", add_serve_options),
        ("connect", "talk to a server, line by line", _add_connect),
        ("bench", "measure how fast a server answers", _add_bench),
        ("top", "watch servers and their connections", _add_top),
        ("frame", "explain the bytes of a frame", _add_frame),
        ("dev-cert", "make certificates for development", _add_dev_cert),
    ):
        command = commands.add_parser(
            name, help=summary, description=DESCRIPTIONS[name], epilog=EPILOGS[name]
        )
        add(command)
        wanted = [each.metavar for each in command._actions if not each.option_strings]
        command.usage = " ".join(["%(prog)s [options]", *map(str, wanted)])
    return parser


def _add_connect(parser: argparse.ArgumentParser) -> None:
    _add_address(parser)
    _add_codec(parser)
    parser.add_argument(
        "--messages",
        metavar="MODULE",
        help="decode messages with the classes that this module defines or registers",
    )
    parser.add_argument(
        "--wait",
        type=or_zero,
        metavar="SECONDS",
        default=1.0,
        help="how long to wait for replies at the end of the input (%(default)s)",
    )
    parser.add_argument(
        "--replies",
        type=parse_count,
        metavar="N",
        help="stop waiting after this many, and fail if fewer arrive",
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
        help="send one after this long without sending anything (%(default)s)",
    )
    parser.add_argument(
        "--history",
        metavar="FILE",
        default="~/.tao_history",
        help="where typed lines are kept (%(default)s)",
    )
    _add_client_tls(parser)


def _add_bench(parser: argparse.ArgumentParser) -> None:
    _add_address(parser)
    _add_codec(parser)
    for name, kind, default, meaning in (
        ("connections", parse_count, 10, "how many"),
        ("window", parse_count, 16, "messages in flight on each"),
        ("size", parse_size, 64, "bytes of a value"),
        ("duration", parse_seconds, 5.0, "seconds to measure"),
        ("number", str, 1, "message number"),
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
        help="the monitor's address; :PORT is on this machine",
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


def _add_frame(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "codec", metavar="PRESET|MODULE:FRAME", help="a preset, or a codec that a module defines"
    )
    parser.add_argument("hex", nargs="+", metavar="HEX", help="the bytes, as hexadecimal digits")


def _add_dev_cert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        metavar="DIR",
        default="certs",
        help="the directory, created if missing (%(default)s)",
    )
    parser.add_argument(
        "--name",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="host names and addresses of the server (localhost 127.0.0.1 ::1)",
    )
    parser.add_argument(
        "--client", metavar="NAME", default="client", help="name of the client (%(default)s)"
    )
    parser.add_argument(
        "--days", type=parse_days, default=30.0, help="how long they are valid (30)"
    )
    parser.add_argument("--force", action="store_true", help="replace existing files")


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "address",
        type=parse_address,
        metavar="HOST:PORT",
        help="the server's address; :PORT is on this machine, a path is a Unix socket",
    )


def _add_codec(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--codec",
        metavar="PRESET|MODULE:FRAME",
        help="the protocol, if it is not tao's own framing",
    )
    parser.add_argument(
        "--header",
        metavar="NAME=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="fields of the messages that are sent; needs --codec",
    )


def _add_client_tls(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("TLS")
    group.add_argument("--tls", action="store_true", help="use TLS; the options below need this")
    group.add_argument(
        "--ca", metavar="FILE", help="trust these authorities instead of the system's"
    )
    group.add_argument(
        "--insecure", action="store_true", help="do not verify the server's certificate"
    )
    group.add_argument(
        "--cert", metavar="FILE", help="the client's certificate, if the server asks for one (PEM)"
    )
    group.add_argument("--key", metavar="FILE", help="its private key, if in another file")
    group.add_argument(
        "--server-name", metavar="NAME", help="the name that the certificate must have, if not HOST"
    )
