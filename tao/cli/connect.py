"""``tao connect``: a console to talk to any server that speaks the default framing.

The main thread reads lines and writes messages; the reading thread prints received messages.

While the main thread waits for a line it does not notice the loss of the connection. So the reading
thread sends it SIGINT until it reacts. One signal is not enough: if it arrives just before the wait
begins, it does not interrupt the wait.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tao.cli.codecs import ShownCodec, find_codec, parse_any_number, parse_header
from tao.cli.common import (
    DONE,
    Failed,
    WrongCall,
    client_tls,
    complain,
    import_module,
    parse_number,
    reason_of,
    say,
)
from tao.cli.values import (
    Deserializers,
    Raw,
    RawCodec,
    deserializers_of,
    parse_line,
    raw_registry,
    value_text,
)
from tao.client.client import ClientConn
from tao.errors import BadData, ConnectionClosed, ConnectionLost, RequestError, TaoError, WouldBlock
from tao.runtime.deadline import Deadline
from tao.safe_text import printable
from tao.transport.addresses import address_text

__all__ = ["run"]

_PROMPT = "> "
_HISTORY_LENGTH = 1000
# The queue size: how many lines may wait to be sent.
_QUEUE = 16
# How long a line may wait while the server reads nothing, in seconds.
_PATIENCE = 30.0
# How long closing may take to send queued messages, in seconds.
_DRAIN = 2.0
# How often the signal is sent to the main thread, in seconds.
_NUDGE = 0.1

_HELP = """\
NUMBER text           send text, as UTF-8
NUMBER hex:00ff10     send bytes
NUMBER json:{"a": 1}  send JSON, made compact
NUMBER text:hex:00    send text that looks like one of these
?NUMBER text          ask, and show the reply (= ...) before the next line is read
help                  show this
quit, or Ctrl-D       end"""


class _Lost(Exception):
    """The connection is closed; raised in the main thread while it waits for a line."""


def run(options: argparse.Namespace) -> int:
    """Run the console, and return the exit status."""
    tls = client_tls(options)
    known: Deserializers = {}
    if options.messages is not None:
        known = deserializers_of(import_module(options.messages))
        if not known:
            raise WrongCall(f"module {options.messages} has no messages")
    return _Console(options, known).talk(tls)


class _Console:
    """The console.

    Args:
        options: the parsed command line.
        known: the deserializers of the application's messages.
    """

    def __init__(self, options: argparse.Namespace, known: Deserializers) -> None:
        self._options = options
        self._known = known
        self._parse_number: Callable[[str], Any] = parse_number
        self._codec: RawCodec | ShownCodec = RawCodec(self._came, self._beat)
        if options.codec is None and options.header:
            raise WrongCall("--header needs --codec")
        if options.codec is not None:
            self._parse_number = parse_any_number
            spoken = find_codec(options.codec)
            header = parse_header(options.header, spoken)
            self._codec = ShownCodec(spoken, header, self._came, self._beat)
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")  # any bytes may be sent
        self._terminal: bool = sys.stdin.isatty() and sys.stdout.isatty()
        self._readline: Any = _import_readline() if self._terminal else None
        # Whether the main thread waits for a line; only that thread writes it.
        self._waiting: bool = False
        # Guards the attributes below, and the output; notified of each change.
        self._changed = threading.Condition()
        self._replies: int = 0
        self._reason: str | None = None  # why the connection is closed
        self._silent: bool = True  # no message has been received
        self._told: bool = False  # the main thread needs no further signal
        self._unheard: bool = False  # the reader of the output has closed the pipe

    def talk(self, tls: ssl.SSLContext | None) -> int:
        """Connect, and read lines until the end of input; return the exit status."""
        options = self._options
        conn = ClientConn(
            options.address,
            codec=self._codec,
            registry=raw_registry(),
            tls=tls,
            server_hostname=options.server_name,
            heartbeat=options.heartbeat,
            queue_size=_QUEUE,
            drain_timeout=_DRAIN,
            on_close=self._closed,
        )
        try:
            with self._listening(), self._history():
                conn.start()
                if self._terminal:
                    how = conn.tls_version or "no TLS"
                    complain(f"connected to {address_text(conn.remote_address)} ({how}); try help")
                if self._converse(conn):
                    self._wait_for_replies()
        except _Lost:
            self._lost()
        except ConnectionClosed as error:  # connecting failed
            raise Failed(str(error)) from error
        finally:
            conn.close()
        return DONE

    # -- the main thread

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Handle the signal by which the reading thread reports that the connection is lost."""
        before = signal.signal(signal.SIGINT, self._interrupted)
        try:
            yield
        finally:
            with self._changed:
                self._told = True
                self._changed.notify_all()
            signal.signal(signal.SIGINT, before)

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        if self._reason is None:
            if self._terminal:
                print()
            raise KeyboardInterrupt
        # An exception is safe only while waiting for a line, not in the middle of other work.
        if self._waiting and not self._told:
            self._told = True
            raise _Lost

    def _converse(self, conn: ClientConn) -> bool:
        """Execute the lines; return True at the end of input, False after ``quit``."""
        while True:
            line = self._read_line()
            if line is None or line.strip() == "quit":
                return line is None
            if line.strip() == "help":
                say(_HELP)
            elif line.strip() and not line.startswith("#"):
                self._send(conn, line)

    def _read_line(self) -> str | None:
        """Return the next line; None at the end of input.

        Raises:
            _Lost: the connection is closed.
        """
        self._waiting = True
        try:
            if self._reason is not None:
                raise _Lost
            if self._terminal:
                return input(_PROMPT)
            line = sys.stdin.readline()
            return line.removesuffix("\n").removesuffix("\r") if line else None
        except EOFError:
            print()
            return None
        finally:
            self._waiting = False

    def _send(self, conn: ClientConn, line: str) -> None:
        try:
            if line.startswith("?"):
                self._ask(conn, parse_line(line[1:].lstrip(), self._parse_number))
            else:
                conn.write(parse_line(line, self._parse_number), _PATIENCE)
        except ConnectionLost as error:
            raise _Lost from error
        except RequestError as error:
            complain(printable(str(error)))
        except BadData as error:
            complain(str(error).removeprefix("Raw has "))
        except (TypeError, ValueError, argparse.ArgumentTypeError) as error:
            complain(printable(str(error)))
        except WouldBlock:
            raise Failed(f"the server has not read anything for {_PATIENCE:g} s") from None
        except TaoError as error:
            raise _Lost from error

    def _ask(self, conn: ClientConn, message: Raw) -> None:
        """Make a request, and show the reply to it."""
        reply = conn.request(message, _PATIENCE)
        with self._changed:
            self._show(f"= {value_text(reply, self._known, self._options.show)}")
            self._replies += 1

    def _wait_for_replies(self) -> None:
        """Wait for outstanding replies at the end of input, unless the input is a terminal."""
        wanted, wait = self._options.replies, self._options.wait
        if self._terminal:
            return
        deadline = Deadline(wait)
        with self._changed:
            while not deadline.expired and self._reason is None:
                if wanted is not None and self._replies >= wanted:
                    return
                self._changed.wait(deadline.remaining())
            if self._reason is not None:
                raise _Lost
            if wanted is not None and self._replies < wanted:
                raise Failed(f"received {self._replies} of {wanted} replies within {wait:g} s")

    def _lost(self) -> None:
        """Report the lost connection as a failure, unless all expected replies have arrived."""
        wanted = self._options.replies
        with self._changed:
            self._changed.wait_for(lambda: self._reason is not None, _PATIENCE)
            if wanted is not None and self._replies >= wanted:
                return
        if self._unheard:
            raise BrokenPipeError
        if self._terminal:
            print()
        doubtful = self._silent and not self._options.tls
        hint = "; if the server expects TLS, add --tls" if doubtful else ""
        raise Failed(f"connection lost: {self._reason}{hint}")

    # -- the terminal

    @contextmanager
    def _history(self) -> Iterator[None]:
        """Load the history of typed lines, and save it afterwards."""
        readline = self._readline
        if readline is None:
            yield
            return
        file = os.path.expanduser(self._options.history)
        readline.set_auto_history(True)
        readline.clear_history()
        try:
            readline.read_history_file(file)
        except OSError:
            pass  # usually it does not exist yet; a failure to write it is reported below
        try:
            yield
        finally:
            readline.set_history_length(_HISTORY_LENGTH)
            try:
                readline.write_history_file(file)
            except OSError as error:
                complain(f"cannot save the history: {file}: {reason_of(error)}")

    def _show(self, line: str) -> None:
        """Print a line, above the one that is being typed, if any. Needs _changed."""
        if self._terminal and self._waiting:
            typed = self._readline.get_line_buffer() if self._readline else ""
            line, end = f"\r\x1b[K{line}\n{_PROMPT}{typed}", ""
        else:
            end = "\n"
        try:
            print(line, end=end, flush=True)
        except BrokenPipeError:
            self._unheard = True

    # -- called by the connection's threads

    def _came(self, raw: Raw) -> None:
        heartbeat = self._codec.is_heartbeat(raw.message_number)
        line = "" if heartbeat else value_text(raw, self._known, self._options.show)
        with self._changed:
            self._silent = False
            if not heartbeat:
                self._show(f"< {line}")
                self._replies += 1
                self._changed.notify_all()
            elif self._options.heartbeats:
                self._show("< heartbeat")
            if self._unheard:
                raise BrokenPipeError

    def _beat(self) -> None:
        if self._options.heartbeats:
            with self._changed:
                self._show("> heartbeat")

    def _closed(self, conn: ClientConn) -> None:
        """Record why the connection is closed, and signal the main thread until it reacts."""
        with self._changed:
            self._reason = conn.close_reason
            self._changed.notify_all()
            while not self._told:
                if self._waiting:
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                self._changed.wait(_NUDGE)


def _import_readline() -> Any:
    """Return the readline module, or None if Python was built without it."""
    try:
        import readline
    except ImportError:
        return None
    return readline
