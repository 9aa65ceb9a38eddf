"""The stacks of tao's threads, by connection and role, without the values of variables."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Iterable, Iterator
from types import FrameType

from tao.connection.handling.slow_handlers import current_frames, running_in
from tao.connection.reports.statistics import all_statistics
from tao.monitor.connections import name_of, peer_of
from tao.runtime.thread_stacks import while_walked

__all__ = ["stacks"]

# How many threads are shown; a longer page would not be useful.
_MOST = 1000
# The roles of threads that belong to no connection, by the beginning of their names.
_ROLES = (
    ("tao-reader-servers", "accepts and reads the connections of a server"),
    ("tao-reader-clients", "reads the connections of all clients"),
    ("tao-watchdog", "notices when a handler blocks such a thread"),
    ("tao-helper", "does for a connection what may block"),
    ("tao-acceptor", "accepts connections"),
    ("tao-spare", "waits to take over accepting or reading"),
    ("tao-worker", "runs handlers that may block"),
    ("tao-timing-wheel", "runs timers, heartbeats and timeouts"),
    ("tao-stopper", "stops a server"),
    ("tao-after-cancel", "runs callbacks of after_cancel"),
    ("tao-callbacks", "runs callbacks of the futures of requests"),
    ("tao-supervised", "reports to the supervisor"),
    ("tao-drain", "closes connections before the process is replaced"),
    ("tao-hub-reader", "delivers what other processes publish"),
    ("tao-hub-writer", "publishes to other processes"),
    ("tao-monitor", "serves the monitor's pages"),
)


def stacks() -> str:
    """Return the stacks of tao's threads as text.

    Source lines are shown, the values of variables are not. The stacks are taken one after another
    while the program runs.
    """
    by_connection = list(_by_connection())
    with while_walked():
        return _stacks(by_connection)


def _stacks(by_connection: list[tuple[str, Iterable[threading.Thread]]]) -> str:
    frames = current_frames()
    alive = {each for each in threading.enumerate() if each.name.startswith("tao-")}
    total, left = len(alive), _MOST
    parts: list[str] = []
    for title, threads in by_connection:
        shown = [each for each in threads if each in alive][:left]
        alive.difference_update(shown)
        left -= len(shown)
        if shown:
            parts.append(title + "".join(_told(each, frames) for each in shown))
    others = sorted(alive, key=lambda each: each.name)[:left]
    if others:
        parts.append("no connection\n" + "".join(_told(each, frames) for each in others))
    note = f"{total} threads" if total <= _MOST else f"{_MOST} of {total} threads"
    if not frames:
        parts.insert(0, "stacks are not available without the interpreter lock\n")
    return "\n".join([f"{note}\n", *parts])


def _by_connection() -> Iterator[tuple[str, Iterable[threading.Thread]]]:
    for statistics in all_statistics():
        living = sorted(statistics.living(), key=lambda each: each.net_id)
        running_now = running_in([conn.runner for conn in living])
        for conn in living:
            running = running_now.get(conn.runner)
            title = f"{statistics.name}, connection {conn.net_id}, {peer_of(conn)}"
            name = name_of(conn)
            if name != str(conn.net_id):
                title += f", named {name!r}"
            title += "\n"
            if running is not None:
                title += f"  handling {running.what} for {running.seconds:.3f} s,"
                title += f" on {_name_of(running.ident)}\n"
            yield title, conn.roles.threads_now()


def _name_of(ident: int) -> str:
    names = {each.ident: each.name for each in threading.enumerate()}
    return names.get(ident, f"thread {ident}")


def _told(thread: threading.Thread, frames: dict[int, FrameType]) -> str:
    role = next((f", {role}" for start, role in _ROLES if thread.name.startswith(start)), "")
    frame = frames.get(thread.ident or 0)
    if frame is None:
        return f"  {thread.name}{role}{': just started or ended' if frames else ''}\n"
    lines = "".join(traceback.StackSummary.extract(traceback.walk_stack(frame)).format()[::-1])
    return f"  {thread.name}{role}\n" + "".join(f"  {line}\n" for line in lines.splitlines())
