"""Turn the head of an HTTP request into a response, as bytes: no socket, no waiting.

Guarantee: `respond` always returns a response. An error in a page is logged with its traceback and
answered with status 500, so that the client gets a reason and not just a closed connection.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import parse_qsl

from tao.atomic import AtomicInt64
from tao.runtime.log import logger
from tao.runtime.rate_limits import TokenBucket
from tao.safe_text import safe_repr
from tao.version import __version__

__all__ = [
    "HTML",
    "JSON",
    "TEXT",
    "Answer",
    "FaultLog",
    "Pages",
    "Reply",
    "as_json",
    "plain",
    "respond",
]

# How many fields a query may have.
_MOST_FIELDS: Final = 20

TEXT: Final = "text/plain; charset=utf-8"
JSON: Final = "application/json"
HTML: Final = "text/html; charset=utf-8"
EVENTS: Final = "text/event-stream"

# Sent with every response: no sniffing of the content type, no caching, no framing, no loading of
# other resources. The live page has its own content security policy.
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Answer(NamedTuple):
    """The result of a page.

    Attributes:
        status: the HTTP status.
        content_type: usually one of the constants of this module.
        body: the complete body.
        policy: the content security policy; None: the strictest.
    """

    status: int
    content_type: str
    body: str | bytes
    policy: str | None = None


class Reply(NamedTuple):
    """The response to a request.

    Attributes:
        data: the response, from its status line on.
        streams: whether the connection stays open for events; ``data`` has the first ones.
    """

    data: bytes
    streams: bool = False


class Pages(Protocol):
    """The pages of a monitor, as `respond` needs them."""

    @property
    def local(self) -> bool:
        """Whether only this machine can connect."""
        ...

    def page(self, path: str, query: dict[str, str]) -> Answer:
        """Return the page at a path."""
        ...

    def events(self) -> str:
        """Return the first events of a stream."""
        ...

    def join_stream(self) -> bool:
        """Reserve a place for a subscriber to events; return False if there is none."""
        ...

    def leave_stream(self) -> None:
        """Release the place."""
        ...


class FaultLog:
    """Logs errors in pages at ERROR with the traceback, at most one per second.

    May be called from any thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._bucket = TokenBucket(1.0, 10.0)
        self._left_out = AtomicInt64()

    def add(self, what: str, error: BaseException) -> None:
        if not self._bucket.take(1):
            self._left_out.increment_and_get()
            return
        left_out = self._left_out.get_and_set(0)
        note = f"; {left_out} more such lines were left out" if left_out else ""
        logger.opt(exception=error).error("{}: {} failed{}", self._name, what, note)


def as_json(value: Any, *, indent: int | None = None) -> str:
    """Return ``value`` as JSON; types that JSON does not have become strings."""
    separators = None if indent else (",", ":")
    return json.dumps(value, default=safe_repr, indent=indent, separators=separators)


def respond(head: bytes, pages: Pages, faults: FaultLog) -> Reply:
    """Return the response to the head of a request."""
    try:
        request = _Request(head, pages, faults)
        return Reply(request.wfile.getvalue(), request.streams)
    except BaseException as error:
        faults.add("a request", error)
        return plain(500, _failed(error))


def plain(status: int, text: str) -> Reply:
    """Return a response that does not depend on the request."""
    body = text.encode(errors="backslashreplace")
    headers = _HEADERS | {"Content-Type": TEXT, "Content-Length": str(len(body))}
    lines = [
        f"HTTP/1.0 {status} {HTTPStatus(status).phrase}",
        *(f"{name}: {headers[name]}" for name in headers),
    ]
    return Reply("\r\n".join([*lines, "", ""]).encode() + body)


def _failed(error: BaseException) -> str:
    return f"the request failed with {type(error).__name__}; the program's log has the traceback\n"


class _Request(BaseHTTPRequestHandler):
    """One request: read from bytes and answered into ``wfile`` by its constructor."""

    server_version: str = f"tao/{__version__}"
    sys_version: str = ""
    error_message_format: str = "%(code)d %(message)s\n"
    error_content_type: str = TEXT
    wfile: io.BytesIO

    def __init__(self, head: bytes, pages: Pages, faults: FaultLog) -> None:
        self._pages = pages
        self._faults = faults
        self._sent: dict[str, str] = {}  # headers
        #: Whether events follow.
        self.streams: bool = False
        super().__init__(head, None, None)  # type: ignore[arg-type]

    def setup(self) -> None:
        self.rfile = io.BytesIO(self.request)
        self.wfile = io.BytesIO()

    def finish(self) -> None:
        pass  # the caller sends the response

    def parse_request(self) -> bool:
        """Parse as the standard library does, but allow only GET and HEAD."""
        if not super().parse_request():
            return False
        if self.command not in ("GET", "HEAD"):
            answer = Answer(405, TEXT, "only GET and HEAD are supported\n")
            self._send(answer, {"Allow": "GET, HEAD"})
            return False
        return True

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        path = path.rstrip("/") or "/"
        if not self._host_is_allowed():
            text = "this monitor serves only this machine: use localhost in the URL\n"
            self._send(Answer(403, TEXT, text))
        elif path == "/events":
            self._begin_stream()
        else:
            self._send(self._made(path, lambda: self._page(path, query)))

    do_HEAD = do_GET

    def _page(self, path: str, query: str) -> Answer:
        try:
            fields = dict(parse_qsl(query, max_num_fields=_MOST_FIELDS))
        except ValueError:
            return Answer(400, TEXT, f"a query may have at most {_MOST_FIELDS} fields\n")
        return self._pages.page(path, fields)

    def _made(self, path: str, make: Callable[[], Answer]) -> Answer:
        """Return the result of ``make``, or a response with status 500 if it raises."""
        try:
            return make()
        except BaseException as error:  # also from the application's code; this thread continues
            self._faults.add(path, error)
            return Answer(500, TEXT, _failed(error))

    def _host_is_allowed(self) -> bool:
        """Return whether the Host header is safe against DNS rebinding.

        A web site can make its own name resolve to this machine, and then a browser would let it
        read these pages. It cannot use the name localhost or an address.
        """
        if not self._pages.local:
            return True
        host = self.headers.get("Host", "localhost").strip().lower()
        name = host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
        is_number = name.startswith("[") or name.replace(".", "").isdigit()
        return is_number or name == "localhost" or name.endswith(".localhost")

    def _begin_stream(self) -> None:
        """Answer with the first events, or with the reason why there are none."""
        if not self._pages.join_stream():
            text = "too many live pages are open; close one of them\n"
            self._send(Answer(503, TEXT, text), {"Retry-After": "5"})
            return
        try:
            events = self._made("/events", lambda: Answer(200, EVENTS, self._pages.events()))
            self._send(events, ends=events.status != 200)
            self.streams = self.command == "GET" and events.status == 200
        finally:
            if not self.streams:
                self._pages.leave_stream()

    def _send(
        self, answer: Answer, headers: Mapping[str, str] | None = None, *, ends: bool = True
    ) -> None:
        """Write a response; a stream has no Content-Length."""
        body = answer.body
        if isinstance(body, str):
            body = body.encode(errors="backslashreplace")
        self.send_response(answer.status)
        all_headers = {**(headers or {}), "Content-Type": answer.content_type}
        if ends:
            all_headers["Content-Length"] = str(len(body))
        if answer.policy is not None:
            all_headers["Content-Security-Policy"] = answer.policy
        for name, value in all_headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_header(self, keyword: str, value: str) -> None:
        self._sent[keyword] = value
        super().send_header(keyword, value)

    def end_headers(self) -> None:
        """Add the headers of every response, also of those to malformed requests."""
        for name, value in _HEADERS.items():
            if name not in self._sent:
                self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        logger.trace("monitor: {}", format % args)
