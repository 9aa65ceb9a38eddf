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
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tao.cli.common import (
    DONE,
    Failed,
    WrongCall,
    client_tls,
    complain,
    harmless,
    import_module,
    reason_of,
    say,
)
from tao.cli.values import Deserializers, Raw, RawCodec, deserializers_of, parse_line, value_text
from tao.client.client import ClientConn
from tao.errors import BadData, ConnectionClosed, TaoError, WouldBlock
from tao.runtime.deadline import Deadline
from tao.transport.addresses import address_text
from tao.wire.message import HEARTBEAT, Registry

__all__ = ["run"]

_PROMPT = "> "
_HISTORY_LENGTH = 1000
# How many lines may wait to be sent.
_QUEUE = 16
# How long a line may wait for a server that reads nothing, in seconds.
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
help                  show this
quit, or Ctrl-D       end"""


class _Lost(Exception):
    """The connection is over; raised in the main thread while it waits for a line."""


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
    """The conversation.

    Args:
        options: of the command line.
        known: what makes messages of bytes.
    """

    def __init__(self, options: argparse.Namespace, known: Deserializers) -> None:
        self._options = options
        self._known = known
        self._codec = RawCodec(self._came, self._beat)
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")  # any bytes may be sent
        self._terminal: bool = sys.stdin.isatty() and sys.stdout.isatty()
        self._readline: Any = _import_readline() if self._terminal else None
        # Whether the main thread waits for a line; written by it only.
        self._waiting: bool = False
        # Guards those below, and the output; notified of each change.
        self._changed = threading.Condition()
        self._replies: int = 0
        self._reason: str | None = None  # why the connection is over
        self._silent: bool = True  # no message has ever come
        self._told: bool = False  # that the connection is over, or no need to know any more
        self._unheard: bool = False  # the reader of the output has gone

    def talk(self, tls: ssl.SSLContext | None) -> int:
        """Connect, and read lines until the end of input; return the exit status."""
        options = self._options
        conn = ClientConn(
            options.address,
            codec=self._codec,
            registry=Registry(),
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
        except ConnectionClosed as error:  # it never came to be
            raise Failed(str(error)) from error
        finally:
            conn.close()
        return DONE

    # -- the main thread

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Listen to the signal by which the reading thread tells that the connection is lost."""
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
        # Elsewhere than in waiting for a line it might be in the middle of something.
        if self._waiting and not self._told:
            self._told = True
            raise _Lost

    def _converse(self, conn: ClientConn) -> bool:
        """Obey line after line; return whether it is the input that has ended."""
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
            _Lost: there is no connection any more.
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
            conn.write(parse_line(line), _PATIENCE)
        except BadData as error:
            complain(str(error).removeprefix("Raw has "))
        except (ValueError, argparse.ArgumentTypeError) as error:
            complain(harmless(str(error)))
        except WouldBlock:
            raise Failed(f"the server has taken nothing for {_PATIENCE:g} s") from None
        except TaoError as error:
            raise _Lost from error

    def _wait_for_replies(self) -> None:
        """After the last line: give the server time to answer, but a person need not wait."""
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
                raise Failed(f"{self._replies} of {wanted} replies came within {wait:g} s")

    def _lost(self) -> None:
        """The connection is over: that is a failure, unless all that was wanted has come."""
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
        hint = "; does it speak TLS? then --tls is needed" if doubtful else ""
        raise Failed(f"connection lost: {self._reason}{hint}")

    # -- the line that is being typed

    @contextmanager
    def _history(self) -> Iterator[None]:
        """Remember the lines typed from one time to the next."""
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
            pass  # usually there is none yet; a failure to write it is reported below
        try:
            yield
        finally:
            readline.set_history_length(_HISTORY_LENGTH)
            try:
                readline.write_history_file(file)
            except OSError as error:
                complain(f"the history is not kept: {file}: {reason_of(error)}")

    def _show(self, line: str) -> None:
        """Print a line; if one is being typed, above that. Needs _changed."""
        if self._terminal and self._waiting:
            typed = self._readline.get_line_buffer() if self._readline else ""
            line, end = f"\r\x1b[K{line}\n{_PROMPT}{typed}", ""
        else:
            end = "\n"
        try:
            print(line, end=end, flush=True)
        except BrokenPipeError:
            self._unheard = True

    # -- the connection's threads

    def _came(self, raw: Raw) -> None:
        heartbeat = raw.message_number == HEARTBEAT
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
        """Tell the main thread why the connection is over, until it has heard."""
        with self._changed:
            self._reason = conn.close_reason
            self._changed.notify_all()
            while not self._told:
                if self._waiting:
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                self._changed.wait(_NUDGE)


def _import_readline() -> Any:
    """Return the module by which lines can be edited, or None where there is none."""
    try:
        import readline
    except ImportError:
        return None
    return readline
