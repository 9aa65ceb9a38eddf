"""The pages of a monitor, except the event stream."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Final

from tao.monitor.answers import HTML, JSON, TEXT, Answer, as_json
from tao.monitor.connections import WrongQuery
from tao.monitor.prometheus import exposition
from tao.monitor.sources import Source
from tao.runtime.log import logger

__all__ = ["page_at"]

Variables = Callable[[], dict[str, Any]]
_Page = Callable[[Mapping[str, str], Variables, Source], Answer]

_NO_PAGE: Final = """\
the live page is not available: the program lacks the file dashboard.html of tao; with
PyInstaller, add --collect-data tao; the other pages are
"""


def page_at(path: str, query: Mapping[str, str], variables: Variables, source: Source) -> Answer:
    """Return the page at ``path``, or a 404 response with a list of pages.

    Args:
        path: without query and trailing slash.
        query: its fields.
        variables: returns the content of ``/debug/vars``.
        source: has the content of the other pages.
    """
    found = _PAGES.get(path)
    if found is None:
        return Answer(404, TEXT, f"there is no page {path}; the pages are\n{_list_of_pages()}")
    return found(query, variables, source)


def _list_of_pages() -> str:
    return "".join(f"{path}\n" for path in [*_PAGES, "/events"])


def _dashboard(query: Mapping[str, str], variables: Variables, source: Source) -> Answer:
    try:
        text, policy = _live_page()
    except (OSError, ModuleNotFoundError) as error:
        logger.opt(exception=error).error("cannot read the monitor's live page")
        return Answer(500, TEXT, _NO_PAGE + _list_of_pages())
    return Answer(200, HTML, text, policy)


@cache
def _live_page() -> tuple[bytes, str]:
    """Return the live page and a content security policy that allows only what it needs."""
    text = files("tao.monitor").joinpath("dashboard.html").read_bytes()
    rules = {"default-src": "'none'", "connect-src": "'self'", "img-src": "data:"}
    for rule, tag in (("script-src", b"script"), ("style-src", b"style")):
        content = text.partition(b"<%s>" % tag)[2].partition(b"</%s>" % tag)[0]
        digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
        rules[rule] = f"'sha256-{digest}'"
    for rule in ("base-uri", "form-action", "frame-ancestors"):
        rules[rule] = "'none'"
    return text, "; ".join(f"{rule} {value}" for rule, value in rules.items())


def _variables(query: Mapping[str, str], variables: Variables, source: Source) -> Answer:
    return Answer(200, JSON, as_json(variables(), indent=2) + "\n")


def _metrics(query: Mapping[str, str], variables: Variables, source: Source) -> Answer:
    try:
        content_type, text = exposition(source.ends())
    except ImportError:
        hint = "this page needs prometheus-client: pip install 'tao-tcp[monitor]'\n"
        return Answer(501, TEXT, hint)
    return Answer(200, content_type, text)


def _healthz(query: Mapping[str, str], variables: Variables, source: Source) -> Answer:
    return source.health(query)


def _connections(query: Mapping[str, str], variables: Variables, source: Source) -> Answer:
    try:
        return Answer(200, JSON, as_json(source.connections(query)) + "\n")
    except WrongQuery as error:
        return Answer(400, TEXT, f"{error}\n")


def _stacks(query: Mapping[str, str], variables: Variables, source: Source) -> Answer:
    return Answer(200, TEXT, source.stacks())


_PAGES: Final[dict[str, _Page]] = {
    "/": _dashboard,
    "/connections": _connections,
    "/stacks": _stacks,
    "/debug/vars": _variables,
    "/metrics": _metrics,
    "/healthz": _healthz,
}
