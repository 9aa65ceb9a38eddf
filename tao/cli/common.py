"""Functions shared by the commands: output, and parsing of arguments.

A command prints its result on stdout, and errors and progress on stderr. Text from the network is
escaped, so that it cannot contain control sequences for the terminal.
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import ssl
import sys
import traceback
from types import ModuleType
from typing import NoReturn

from tao.connection.options.definitions import ClientSettings
from tao.runtime.log import logger
from tao.safe_text import printable, safe_str
from tao.transport.certificates import load_client_tls_config

__all__ = [
    "DONE",
    "FAILED",
    "INTERRUPTED",
    "RELOAD_LINK",
    "WRONG_CALL",
    "Address",
    "Failed",
    "WrongCall",
    "client_tls",
    "complain",
    "has_rich",
    "import_module",
    "leave",
    "log_to_stderr",
    "parse_address",
    "parse_count",
    "parse_monitor",
    "parse_number",
    "parse_port",
    "parse_rate",
    "parse_seconds",
    "parse_whole",
    "quoted",
    "raised_in",
    "reason_of",
    "say",
    "size_text",
    "unix_address_of",
]

#: The exit statuses of the process.
DONE, FAILED, WRONG_CALL, INTERRUPTED = 0, 1, 2, 130

#: The environment variable by which ``tao serve --reload`` passes a child the number of its socket.
RELOAD_LINK = "TAO_RELOAD_LINK"

#: Host and port, or the path of a Unix socket.
Address = tuple[str, int] | str

# The largest count, and the largest number of seconds (30 years), that an option accepts.
_MOST_COUNT, _MOST_SECONDS = 10**15, 1e9
# The longest user input that an error message quotes in full, in characters.
_LONGEST_QUOTE = 60
_SIZES = ("B", "KiB", "MiB", "GiB", "TiB")


class WrongCall(Exception):
    """The command line is wrong; the text is one line that says why."""


class Failed(Exception):
    """The command line is right, but the command has failed; the text says why."""


# -- output


def say(line: str) -> None:
    """Print a line of the result, and flush it even if stdout is a pipe."""
    print(line, flush=True)


def complain(line: str) -> None:
    """Print a line about the command itself on stderr; text from a peer in it is escaped."""
    print(f"tao: {printable(line)}", file=sys.stderr, flush=True)


def log_to_stderr(level: str) -> None:
    """Log to stderr only, from this level on."""
    logger.remove()
    logger.add(sys.stderr, level=level.upper())
    logger.enable("tao")


def leave(status: int) -> NoReturn:
    """End the process without waiting for any thread."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def size_text(count: float) -> str:
    """Format a number of bytes with a unit: ``1.5 MiB``."""
    power = 0
    while count >= 1000 and power < len(_SIZES) - 1:
        count /= 1024
        power += 1
    return f"{count:.0f} {_SIZES[power]}" if power == 0 else f"{count:.1f} {_SIZES[power]}"


def has_rich() -> bool:
    """Return whether rich, which draws tables and progress bars, is installed."""
    try:
        import rich  # noqa: F401
    except ImportError:
        return False
    return True


def reason_of(error: BaseException) -> str:
    """Return the text of an error without its errno."""
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror.lower() if error.filename else error.strerror
        return f"{error.filename}: {reason}" if error.filename else reason
    return safe_str(error) or type(error).__name__


# -- parsing of arguments; argparse reports what these functions raise in one line


def parse_port(text: str) -> int:
    return parse_whole(text, 0, 65535, "expected a port from 0 to 65535")


def parse_address(text: str) -> Address:
    """Parse ``HOST:PORT`` or ``[IPV6]:PORT``, or ``:PORT`` or ``PORT`` for this machine.

    The address of a Unix socket is a path, or ``@NAME`` for the abstract namespace.
    """
    if "/" in text or text.startswith("@"):
        return unix_address_of(text)
    host, colon, port = text.rpartition(":")
    if not colon and not port.isdigit():
        raise argparse.ArgumentTypeError(f"the port is missing, as in {text or 'HOST'}:12345")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise argparse.ArgumentTypeError(f"write an IPv6 address and a port as [{host}]:{port}")
    number = parse_port(port)
    if not number:
        raise argparse.ArgumentTypeError("cannot connect to port 0")
    return host or "127.0.0.1", number


def unix_address_of(text: str) -> str:
    """Parse the address of a Unix socket as `address_text` formats it: a path, or ``@NAME``."""
    return f"\0{text[1:]}" if text.startswith("@") else text


def parse_monitor(text: str) -> tuple[str, int]:
    """Parse the address of a monitor, or the URL of its page."""
    address = parse_address(text.removeprefix("http://").removesuffix("/"))
    if isinstance(address, str):
        raise argparse.ArgumentTypeError("a monitor's address is HOST:PORT, not a path")
    return address


def parse_count(text: str) -> int:
    return parse_whole(text, 1, _MOST_COUNT, "expected a positive whole number")


def parse_whole(text: str, least: int, most: int, wanted: str) -> int:
    """Parse digits, and nothing else."""
    # int() raises an error of its own for thousands of digits.
    if text.isascii() and text.isdigit() and len(text) <= 20 and least <= int(text) <= most:
        return int(text)
    raise argparse.ArgumentTypeError(f"{wanted}, not {quoted(text)}")


def quoted(text: str) -> str:
    """Quote the user's input for an error message."""
    return repr(text) if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]!r}..."


def parse_number(text: str) -> int:
    """Parse a message number."""
    try:
        number = int(text)
    except ValueError:
        number = 2**31
    if not -(2**31) <= number < 2**31:
        raise argparse.ArgumentTypeError(
            f"expected a message number from -2147483648 to 2147483647, not {quoted(text)}"
        )
    return number


def parse_seconds(text: str) -> float:
    return _positive(text, _MOST_SECONDS, "expected a positive number of seconds")


def parse_rate(text: str) -> float:
    """Parse a rate per second."""
    return _positive(text, math.inf, "expected a positive number")


def _positive(text: str, most: float, wanted: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (number > 0 and math.isfinite(number)):
        raise argparse.ArgumentTypeError(f"{wanted}, not {quoted(text)}")
    if number > most:
        raise argparse.ArgumentTypeError(f"{wanted}, at most {most:g}, not {quoted(text)}")
    return number


# -- TLS for clients


def client_tls(options: argparse.Namespace) -> ssl.SSLContext | None:
    """Return the context for ``--tls`` and the related options; None without ``--tls``.

    Raises:
        WrongCall: the options contradict each other, or a file cannot be used.
    """
    if not options.tls:
        for name in ("ca", "insecure", "cert", "key", "server_name"):
            if getattr(options, name):
                raise WrongCall(f"--{name.replace('_', '-')} needs --tls")
        return None
    if options.ca and options.insecure:
        raise WrongCall("--ca and --insecure exclude each other")
    try:
        context = load_client_tls_config(ca=options.ca, certfile=options.cert, keyfile=options.key)
        ClientSettings(tls=context, server_hostname=options.server_name)
    except (OSError, ValueError) as error:
        text = reason_of(error).replace("keyfile needs certfile", "--key needs --cert")
        raise WrongCall(text) from error
    if options.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


# -- the user's modules


def import_module(name: str, *, debug: bool | None = None) -> ModuleType:
    """Import a module, which may be in the current directory.

    Args:
        name: the full dotted name.
        debug: whether to print the traceback if the module raises; None: the command has no option
            for that.

    Raises:
        WrongCall: the module does not exist, or it raises.
    """
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        # The module itself or its package is missing, not a module that it imports.
        if missing and f"{name}.".startswith(f"{missing}."):
            meant = name.removesuffix(".py").replace("/", ".")
            hint = "" if meant == name else f"; write the module's name, {meant}, not its file"
            raise WrongCall(f"there is no module {missing}, also not below {here}{hint}") from None
        raise raised_in(f"module {name} cannot be imported", error, debug=debug) from error


def raised_in(what: str, error: BaseException, *, debug: bool | None) -> WrongCall:
    """Return an error that names an exception of user code; ``debug``: print its traceback."""
    if debug:
        traceback.print_exception(error)
        return WrongCall(what)
    text = " ".join(f"{type(error).__name__}: {safe_str(error)}".split())
    hint = "" if debug is None else " (--log-level debug shows where)"
    return WrongCall(f"{what}: {text}{hint}")
