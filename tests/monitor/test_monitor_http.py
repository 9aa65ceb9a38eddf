"""The monitor's sockets: no peer blocks another, and every request is answered."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from tao.monitor import http as module
from tao.monitor import pages as monitor_pages
from tao.monitor.monitor import Monitor, monitor_on
from tests.support import PATIENCE, ends, wait_until

ASKED = b"GET /healthz HTTP/1.0\r\n\r\n"


@pytest.fixture
def monitor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Monitor]:
    """A monitor that shows only objects of the test."""
    monkeypatch.setattr("tao.connection.reports.statistics._all", {})
    with monitor_on(0) as made:
        yield made


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Extend all deadlines, so that none expires during the test."""
    monkeypatch.setattr(module, "PATIENCE", 10 * PATIENCE)


def call(monitor: Monitor, request: bytes = b"") -> socket.socket:
    sock = socket.create_connection(monitor.address, PATIENCE)
    sock.sendall(request)
    return sock


def ask(monitor: Monitor, path: str = "/healthz") -> str:
    """Return the complete response."""
    with call(monitor, f"GET {path} HTTP/1.0\r\n\r\n".encode()) as sock:
        return sock.makefile("rb").read().decode()


def peers(monitor: Monitor, state: str) -> int:
    return sum(peer.state.name == state for peer in monitor._http._all())


def answers(monitor: Monitor, respond: Callable[[bytes], Any]) -> None:
    """Replace the function that makes the responses."""
    monitor._http._respond = respond


# -- slow peers


@pytest.mark.parametrize(
    "request_", [b"", b"G", b"GET / HTTP/1.0\r\nHost:", ASKED, b"GET / HTTP/1.0\r\n\r\n"]
)
@pytest.mark.usefixtures("unhurried")
def test_more_slow_peers_than_connections(monitor: Monitor, request_: bytes) -> None:
    """Peers that send nothing, half a request, or do not close, do not block other requests."""
    with ExitStack() as here:
        for _ in range(2 * module._MOST_PEERS):
            here.enter_context(call(monitor, request_))
        assert ask(monitor).startswith("HTTP/1.0 200")
        assert len(monitor._http._all()) <= module._MOST_PEERS


@pytest.mark.usefixtures("unhurried")
def test_a_peer_that_does_not_read(monitor: Monitor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unread long responses use no threads, and others are answered meanwhile."""
    monkeypatch.setattr(module, "_MOST_UNSENT", 10**9)
    respond = monitor._http._respond
    large = module.Reply(b"x" * 10_000_000)
    answers(monitor, lambda head: large if b"/large" in head else respond(head))
    with ExitStack() as here:
        for _ in range(3 * module._ANSWERS):
            here.enter_context(call(monitor, b"GET /large HTTP/1.0\r\n\r\n"))
        wait_until(lambda: peers(monitor, "SENDING") == 3 * module._ANSWERS)
        assert ask(monitor).startswith("HTTP/1.0 200")
        assert not monitor._http._answering


@pytest.mark.usefixtures("unhurried")
def test_which_connections_are_replaced(monitor: Monitor, monkeypatch: pytest.MonkeyPatch) -> None:
    """First those with a sent response, then the oldest; never one while its page is being made."""
    monkeypatch.setattr(module, "_MOST_PEERS", 3)
    monkeypatch.setattr(module, "_GRACE", 0.0)
    release = threading.Event()
    respond = monitor._http._respond
    answers(monitor, lambda head: (b"slow" in head and release.wait(PATIENCE), respond(head))[1])
    with call(monitor, b"GET /healthz?slow HTTP/1.0\r\n\r\n") as slow, call(monitor) as silent:
        wait_until(lambda: peers(monitor, "ANSWERING") == 1)
        for _ in range(5):
            assert ask(monitor).startswith("HTTP/1.0 200")
        with call(monitor) as second, call(monitor) as third:
            assert silent.recv(1) == b""
            for each in (second, third):
                each.sendall(ASKED)
                assert each.makefile("rb").read().startswith(b"HTTP/1.0 200")
            release.set()
            assert slow.makefile("rb").read().startswith(b"HTTP/1.0 200")


def test_a_request_has_one_deadline(monitor: Monitor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sending a little at a time does not extend the deadline."""
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    with call(monitor) as sock:
        never = threading.Event()
        with pytest.raises(OSError):
            while True:
                sock.sendall(b"x")
                never.wait(0.01)


def test_a_connection_without_a_request(monitor: Monitor, log_lines: list[Any]) -> None:
    """A health check that only connects is not logged."""
    for _ in range(3):
        call(monitor).close()
    assert ask(monitor).startswith("HTTP/1.0 200")
    wait_until(lambda: not monitor._http._all())
    assert not [line for line in log_lines if line["level"].no >= 10]


# -- slow and failing responses


def test_concurrent_responses_are_limited(
    monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Further responses wait for a free thread."""
    monkeypatch.setattr(module, "_ANSWERS_EACH", 2)
    release, respond = threading.Event(), monitor._http._respond
    answers(monitor, lambda head: (release.wait(PATIENCE), respond(head))[1])
    socks = [call(monitor, ASKED) for _ in range(6)]
    wait_until(lambda: peers(monitor, "ANSWERING") == 6)
    assert len(monitor._http._answering) == 2
    release.set()
    for sock in socks:
        with sock:
            assert sock.makefile("rb").read().startswith(b"HTTP/1.0 200")


@pytest.mark.usefixtures("unhurried")
def test_a_hanging_page_does_not_block_others(
    monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of requests for it does not matter."""
    release = threading.Event()
    answer = monitor_pages.Answer(200, "text/plain", "at last")
    monkeypatch.setitem(
        monitor_pages._PAGES, "/stacks", lambda *args: (release.wait(PATIENCE), answer)[1]
    )
    hanging = [call(monitor, f"GET /stacks?{n} HTTP/1.0\r\n\r\n".encode()) for n in range(40)]
    wait_until(lambda: peers(monitor, "ANSWERING") == 40)
    for path in ("/healthz", "/connections", "/"):
        assert ask(monitor, path).startswith("HTTP/1.0 200")
    release.set()
    for sock in hanging:
        with sock:
            assert sock.makefile("rb").read().endswith(b"at last")


@pytest.mark.usefixtures("unhurried")
def test_unread_bytes_are_limited(monitor: Monitor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest unread responses are dropped in favour of new ones."""
    monkeypatch.setattr(module, "_MOST_UNSENT", 50_000_000)
    answers(monitor, lambda head: module.Reply(b"x" * 20_000_000))
    with ExitStack() as here:
        for _ in range(12):
            here.enter_context(call(monitor, ASKED))
        wait_until(lambda: not peers(monitor, "READING") and not peers(monitor, "ANSWERING"))
        assert peers(monitor, "SENDING") <= 3


def test_a_response_that_is_late(monitor: Monitor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The response is 503, whether its thread is busy or none was free."""
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    monkeypatch.setattr(module, "_ANSWERS", 1)
    release = threading.Event()
    answers(monitor, lambda head: release.wait(PATIENCE) and None)
    for _ in range(2):
        assert ask(monitor).startswith("HTTP/1.0 503 Service Unavailable\r\n")
    release.set()
    wait_until(lambda: not monitor._http._answering)


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
def test_no_thread_for_an_answer(
    monitor: Monitor, log_lines: list[Any], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The response is 503, the failure is logged, and the next request is answered."""
    real = module.spawn

    def spawn(*args: Any, **kwargs: Any) -> threading.Thread:
        thread = real(*args, **kwargs)
        if not log_lines:
            thread.start = fail  # type: ignore[method-assign]
        return thread

    def fail() -> None:
        failed.append(error)
        raise error

    failed: list[Exception] = []
    monkeypatch.setattr(module, "spawn", spawn)
    assert ask(monitor).startswith("HTTP/1.0 503 Service Unavailable\r\n")
    assert ask(monitor).startswith("HTTP/1.0 200")
    (line,) = [each for each in log_lines if each["level"].no >= 20]
    assert line["level"].name == "WARNING" and "cannot answer: " in line["message"]


@pytest.mark.parametrize("path", list(monitor_pages._PAGES))
@pytest.mark.parametrize("error", [IndexError("secret"), MemoryError(), SystemExit(3)])
def test_a_failing_page(
    monitor: Monitor,
    log_lines: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    error: BaseException,
) -> None:
    """The response names the class of the error, and the log has its traceback."""

    def fail(*args: Any) -> Any:
        raise error

    monkeypatch.setitem(monitor_pages._PAGES, path, fail)
    answer = ask(monitor, path)
    assert answer.startswith("HTTP/1.0 500 Internal Server Error\r\n")
    assert type(error).__name__ in answer and "secret" not in answer
    (line,) = [each for each in log_lines if each["level"].no >= 20]
    assert line["level"].name == "ERROR" and line["exception"].value is error
    assert f"{path} failed" in line["message"]


def test_repeated_errors_do_not_flood_the_log(
    monitor: Monitor, log_lines: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The errors of a page that keeps failing are logged about once per second."""
    monkeypatch.setitem(monitor_pages._PAGES, "/healthz", lambda *args: 1 // 0)
    for _ in range(50):
        assert ask(monitor).startswith("HTTP/1.0 500")
    assert 1 <= len([each for each in log_lines if each["level"].no >= 40]) < 25


def test_failing_events(
    monitor: Monitor, log_lines: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An open stream is closed, and a new request gets the error."""
    monkeypatch.setattr(monitor._http, "_period", 0.01)
    with call(monitor, b"GET /events HTTP/1.0\r\n\r\n") as sock:
        assert sock.recv(12) == b"HTTP/1.0 200"
        monkeypatch.setattr(monitor._site.feed, "_make", lambda now: 1 // 0)
        monkeypatch.setattr(monitor._site.feed, "_made", float("-inf"))
        monkeypatch.setattr("tao.monitor.live.PERIOD", 0.0)
        assert sock.makefile("rb").read()
    assert ask(monitor, "/events").startswith("HTTP/1.0 500")
    assert {"ERROR"} == {each["level"].name for each in log_lines if each["level"].no >= 30}
    assert len(monitor._site._places) == 16


def test_the_file_of_the_live_page_is_missing(
    monitor: Monitor, log_lines: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In a frozen program without the file, the response says how to include it."""
    monitor_pages._live_page.cache_clear()
    monkeypatch.setattr(monitor_pages, "files", lambda package: tmp_path)
    answer = ask(monitor, "/")
    assert answer.startswith("HTTP/1.0 500") and "--collect-data tao" in answer
    assert [each["level"].name for each in log_lines if each["level"].no >= 30] == ["ERROR"]
    assert ask(monitor, "/connections").startswith("HTTP/1.0 200")
    monkeypatch.setattr(monitor_pages, "files", resources.files)
    assert ask(monitor, "/").startswith("HTTP/1.0 200")


# -- the loop


def test_out_of_descriptors(
    monitor: Monitor, log_lines: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure to accept is logged, and accepting continues."""
    monkeypatch.setattr(module, "_BACKOFF", 0.01)
    real, failures = monitor._http._sock, [OSError(24, "Too many open files")]

    class Failing:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def accept(self) -> Any:
            if failures:
                raise failures.pop()
            return real.accept()

    monkeypatch.setattr(monitor._http, "_sock", Failing())
    assert ask(monitor).startswith("HTTP/1.0 200")
    assert any("too many open files" in line["message"] for line in log_lines)


@pytest.mark.parametrize("step", ["_take_posted", "_end_what_is_late", "_accept", "_advance"])
def test_an_error_in_the_loop(
    monitor: Monitor, log_lines: list[Any], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """An error such as a lack of memory is logged, and the loop continues."""
    monkeypatch.setattr(module, "_BACKOFF", 0.01)
    real, failures = getattr(monitor._http, step), [MemoryError()]

    def fail(*args: Any) -> Any:
        if failures:
            raise failures.pop()
        return real(*args)

    monkeypatch.setattr(monitor._http, step, fail)
    with call(monitor, ASKED) as sock:
        wait_until(lambda: log_lines)
        assert sock.recv(12) == b"HTTP/1.0 200"
    assert log_lines[0]["level"].name == "ERROR"


def test_an_error_in_the_error_handling(monitor: Monitor, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the handling of an error raises as well, the loop continues."""
    failed = threading.Semaphore(0)

    def fail(*args: Any) -> None:
        failed.release()
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(module, "_BACKOFF", 0.001)
        patch.setattr(monitor._http, "_turn", fail)
        patch.setattr(monitor._http, "_faults", None)
        monitor._http._ring()
        for _ in range(3):
            assert failed.acquire(timeout=PATIENCE)
    assert ask(monitor).startswith("HTTP/1.0 200")


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("count", [1, module._MOST_PEERS])
def test_closing_ends_all_connections(monitor: Monitor, count: int) -> None:
    """Closing does not wait for silent peers and leaks nothing; a second close is harmless."""
    silent = [call(monitor) for _ in range(count)]
    wait_until(lambda: len(monitor._http._all()) == count)
    assert ends(monitor.close)
    assert not monitor._http._all()
    monitor.close()
    for sock in silent:
        assert sock.recv(1) == b""
        sock.close()
