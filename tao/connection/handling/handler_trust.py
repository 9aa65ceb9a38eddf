"""What a dispatcher knows about its connection and about the speed of the handlers."""

from __future__ import annotations

from typing import Any, Protocol

from tao.connection.handling.inbox import CALL
from tao.connection.handling.slow_handlers import Watcher
from tao.connection.reading_gate import ReadingGate
from tao.runtime.context import Context
from tao.runtime.histogram import NEAR_MOST, Latencies
from tao.safe_text import number_text
from tao.wire.message import Registration

__all__ = ["QUICK", "TRUST_MOST", "TRUST_NEEDED", "DispatchHost", "call", "doing", "learn", "note"]

#: A handler is quick if it runs shorter than this, in seconds.
QUICK = NEAR_MOST
# Trust in a handler grows by one with each quick run, up to a bound, and is halved by a slow one: a
# thread may lose the processor in the midst of a quick handler, and one such mishap should not send
# it to the pool. Where a thousand threads want the interpreter lock, such a loss takes a tenth of a
# second, and they are many: so what lasts no longer than the watch is late tells nothing.
TRUST_MOST = 8
# How much trust a reader needs to run a handler, by mode.
TRUST_NEEDED = {"inline": 0, "auto": 3, "pool": TRUST_MOST + 1}


class DispatchHost(Watcher, Protocol):
    """What a dispatcher asks of a connection's core."""

    context: Context
    gate: ReadingGate

    @property
    def waits_for_reply(self) -> bool:
        """Whether a handler waits for the reply to a request of its own."""

    def may_spill(self) -> bool:
        """Whether reading goes on although the inbox is full. Asked by the reading role."""

    def start_handler(self) -> None:
        """Start the second thread, in the handling role; never raises."""

    def collapse(self, error: BaseException, *, for_good: bool = False) -> None:
        """End at once, with this reason; or lose the transport, unless it is to end for good."""

    def drained(self) -> None:
        """Note that all is handled, after `Dispatcher.finish`; never raises."""

    def report(self, error: BaseException, doing: str, context: Context | None = None) -> None:
        """Tell log and application of an error, of a handler's with its context; never raises."""

    def undefined(self, number: Any) -> None:
        """Note a message with an unregistered number."""


def note(
    latencies: Latencies, entry: Registration, elapsed: float, count: int, blocked: float | None
) -> float:
    """Add runs of a handler to the histogram of its number, and return how long they took each.

    Args:
        elapsed: how long all took together, in seconds.
        blocked: for how long the last of them was seen to block, or None.
    """
    if blocked is not None and count > 1:
        blocked = min(blocked, elapsed)
        latencies.add(entry.number, (elapsed - blocked) / (count - 1), count - 1)
        elapsed, count = blocked, 1
    latencies.add(entry.number, elapsed / count, count)
    return elapsed / count


def learn(entry: Registration, mean: float, stuck: bool, lateness: float) -> None:
    """Learn how far to trust a handler from runs of it.

    Two connections may learn at once, and one of two runs not count: it is a guess.

    Args:
        entry: the registration of the handler that ran.
        mean: how long, in seconds.
        stuck: whether the watch found it to block.
        lateness: how long a thread that could run has waited lately, in seconds.
    """
    if stuck:
        entry.trust = 0
    elif mean > QUICK + lateness:
        entry.trust //= 2
    elif mean <= QUICK and entry.trust < TRUST_MOST:
        entry.trust += 1


def call(context: Context, conn: Any) -> None:
    """Handle a timer's callback, which stands where a message does."""
    context.message()


def doing(number: Any) -> str:
    """Say what was being run, for the report of an error."""
    return "in a timer's callback" if number is CALL else f"handling message {number_text(number)}"
