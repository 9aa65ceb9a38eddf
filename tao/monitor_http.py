"""One HTTP request to a monitor: read within limits, answered, and seen off.

Whoever can connect can read all that there is, and change nothing. Nobody can hold it up: the head
of a request is bounded, and there is one deadline for all of it. An answer that goes on for ever,
the news for the live page, has a deadline for each piece instead.
"""

from __future__ import annotations

import io
import socket
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import parse_qsl

from tao.log import logger
from tao.monitor_live import PERIOD
from tao.threads import Deadline
from tao.version import __version__

if TYPE_CHECKING:
    from tao.monitor import Monitor

__all__ = ["HTML", "JSON", "PATIENCE", "TEXT", "Answer", "Request", "shut"]

#: What a request, or a piece of the news, may take, in seconds.
PATIENCE: Final = 5.0
# How long the head of a request may be, in bytes.
_LONGEST_HEAD = 16 * 1024
# How many fields a query may have.
_MOST_FIELDS: Final = 20

TEXT: Final = "text/plain; charset=utf-8"
JSON: Final = "application/json"
HTML: Final = "text/html; charset=utf-8"

# What every answer says: that it is to be taken for what it is, kept by nobody, shown in no frame,
# and that nothing is to be loaded for it. The live page has a policy of its own.
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Answer(NamedTuple):
    """What a page returns.

    Attributes:
        status: of HTTP.
        content_type: one of the constants of this module, say.
        body: all of it.
        policy: the content security policy, if not the strictest.
    """

    status: int
    content_type: str
    body: str | bytes
    policy: str | None = None


class Request(BaseHTTPRequestHandler):
    """One request: read, answered and seen off by its constructor.

    Raises:
        OSError: the peer is gone, or too slow.
    """

    server_version: str = f"tao/{__version__}"
    sys_version: str = ""
    error_message_format: str = "%(code)d %(message)s\n"
    error_content_type: str = TEXT

    def __init__(self, sock: socket.socket, monitor: Monitor, patience: float = PATIENCE) -> None:
        self._monitor = monitor
        self._patience = patience
        self._deadline = Deadline(patience)
        self._sent: dict[str, str] = {}  # headers
        self._streaming: bool = False
        super().__init__(sock, None, monitor)  # type: ignore[arg-type]

    def setup(self) -> None:
        """Read the head as a whole, for which there is one deadline, not one for each piece."""
        self.connection: socket.socket = self.request
        head = b""
        while len(head) < _LONGEST_HEAD and b"\r\n\r\n" not in head and b"\n\n" not in head:
            data = self._receive()
            if not data:
                break
            head += data
        self.rfile = io.BytesIO(head)
        self.wfile = io.BytesIO()

    def finish(self) -> None:
        """Send the answer, then wait for the peer to close: doing so first would reset it."""
        self.connection.settimeout(self._deadline.remaining() or 0.001)
        self.connection.sendall(self.wfile.getvalue())  # type: ignore[attr-defined]
        if self._streaming:
            self._stream()
        shut(self.connection, socket.SHUT_WR)
        while not self._streaming and self._receive():
            pass

    def _receive(self) -> bytes:
        if self._deadline.expired:
            raise TimeoutError(f"not done after {self._patience} s")
        self.connection.settimeout(self._deadline.remaining() or 0.001)
        return self.connection.recv(4096)

    def parse_request(self) -> bool:
        """As the standard library does, but refuse whatever is not to read."""
        if not super().parse_request():
            return False
        if self.command not in ("GET", "HEAD"):
            answer = Answer(405, TEXT, "there is nothing here but to read\n")
            self._send(answer, Allow="GET, HEAD")
            return False
        return True

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        path = path.rstrip("/") or "/"
        if not self._is_welcome():
            text = "this monitor is for this machine: ask for it as localhost\n"
            self._send(Answer(403, TEXT, text))
        elif path == "/events":
            self._begin_stream()
        else:
            self._send(self._page(path, query))

    do_HEAD = do_GET

    def _page(self, path: str, query: str) -> Answer:
        try:
            fields = dict(parse_qsl(query, max_num_fields=_MOST_FIELDS))
        except ValueError:
            return Answer(400, TEXT, f"a query has {_MOST_FIELDS} fields at most\n")
        return self._monitor.page(path, fields)

    def _is_welcome(self) -> bool:
        """Tell whether whoever asks knows whom he asks.

        A site on the Internet can have its name resolve to this machine, and a browser would then
        let it read what is here (DNS rebinding). It cannot call itself localhost.
        """
        if not self._monitor.local:
            return True
        host = self.headers.get("Host", "localhost").strip().lower()
        name = host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
        is_number = name.startswith("[") or name.replace(".", "").isdigit()
        return is_number or name == "localhost" or name.endswith(".localhost")

    def _begin_stream(self) -> None:
        monitor, listens = self._monitor, self.command == "GET"
        if monitor.crowded or (listens and not monitor.begin_stream(self.connection)):
            text = "enough are looking at this already; close one of the pages\n"
            self._send(Answer(503, TEXT, text), **{"Retry-After": "5"})
            return
        self._streaming = listens
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()

    def _stream(self) -> None:
        """Send news until the peer has gone, does not take it in time, or the monitor closes."""
        feed, closing = self._monitor.feed, self._monitor.closing
        text = f"retry: 2000\nevent: history\ndata: {feed.history()}\n\n"
        while True:
            self.connection.settimeout(self._patience)
            self.connection.sendall(f"{text}data: {feed.news()}\n\n".encode())
            text = ""
            if closing.wait(PERIOD):
                return

    def _send(self, answer: Answer, **headers: str) -> None:
        body = answer.body.encode() if isinstance(answer.body, str) else answer.body
        self.send_response(answer.status)
        headers |= {"Content-Type": answer.content_type, "Content-Length": str(len(body))}
        if answer.policy is not None:
            headers["Content-Security-Policy"] = answer.policy
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_header(self, keyword: str, value: str) -> None:
        self._sent[keyword] = value
        super().send_header(keyword, value)

    def end_headers(self) -> None:
        """Add what every answer says, also those to requests that cannot be understood."""
        for name, value in _HEADERS.items():
            if name not in self._sent:
                self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        logger.trace("{}: {}", self._monitor.url, format % args)


def shut(sock: socket.socket, how: int) -> None:
    """Shut a socket down, if it is not already."""
    try:
        sock.shutdown(how)
    except OSError:
        pass  # the peer was faster
