"""The pages of a monitor, but for the news."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from tao.metrics import tallies
from tao.monitor_connections import WrongQuery, page_of_connections
from tao.monitor_http import HTML, JSON, TEXT, Answer
from tao.monitor_metrics import exposition
from tao.monitor_stacks import stacks

if TYPE_CHECKING:
    from tao.monitor import Monitor

__all__ = ["page_at"]


def page_at(monitor: Monitor, path: str, query: Mapping[str, str]) -> Answer:
    """Return what is at ``path``, or an answer that says what there is."""
    found = _PAGES.get(path)
    if found is None:
        paths = "\n".join([*_PAGES, "/events"])
        return Answer(404, TEXT, f"there is no {path} here; there is\n{paths}\n")
    return found(monitor, query)


def _dashboard(monitor: Monitor, query: Mapping[str, str]) -> Answer:
    text, policy = _live_page()
    return Answer(200, HTML, text, policy)


@cache
def _live_page() -> tuple[bytes, str]:
    """Return the live page, and a policy that lets it do what it does and nothing else."""
    text = files("tao").joinpath("dashboard.html").read_bytes()
    rules = {"default-src": "'none'", "connect-src": "'self'", "img-src": "data:"}
    for rule, tag in (("script-src", b"script"), ("style-src", b"style")):
        content = text.partition(b"<%s>" % tag)[2].partition(b"</%s>" % tag)[0]
        digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
        rules[rule] = f"'sha256-{digest}'"
    for rule in ("base-uri", "form-action", "frame-ancestors"):
        rules[rule] = "'none'"
    return text, "; ".join(f"{rule} {value}" for rule, value in rules.items())


def _variables(monitor: Monitor, query: Mapping[str, str]) -> Answer:
    return Answer(200, JSON, json.dumps(monitor.variables(), indent=2) + "\n")


def _metrics(monitor: Monitor, query: Mapping[str, str]) -> Answer:
    try:
        content_type, text = exposition()
    except ImportError:
        hint = "this page needs prometheus-client: pip install 'tao-tcp[monitor]'\n"
        return Answer(501, TEXT, hint)
    return Answer(200, content_type, text)


def _healthz(monitor: Monitor, query: Mapping[str, str]) -> Answer:
    snapshots = [tally.snapshot() for tally in tallies()]
    servers = [each for each in snapshots if each.kind == "server"]
    ill = [each for each in servers if each.state in ("failed", "stopping", "stopped")]
    if not any(each.state == "running" for each in servers):
        ill = servers  # those that were not started yet as well
    if not ill:
        return Answer(200, TEXT, "ok\n")
    lines = [f"{each.name} ({each.address or 'no address'}): {each.state}\n" for each in ill]
    return Answer(503, TEXT, "".join(lines))


def _connections(monitor: Monitor, query: Mapping[str, str]) -> Answer:
    try:
        return Answer(200, JSON, json.dumps(page_of_connections(query)) + "\n")
    except WrongQuery as error:
        return Answer(400, TEXT, f"{error}\n")


def _stacks(monitor: Monitor, query: Mapping[str, str]) -> Answer:
    return Answer(200, TEXT, stacks())


_PAGES: Final[dict[str, Callable[[Monitor, Mapping[str, str]], Answer]]] = {
    "/": _dashboard,
    "/connections": _connections,
    "/stacks": _stacks,
    "/debug/vars": _variables,
    "/metrics": _metrics,
    "/healthz": _healthz,
}
