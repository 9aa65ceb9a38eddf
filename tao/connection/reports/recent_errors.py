"""Recent errors, for monitoring: their number, their kinds, and the latest reasons.

A reason is in words of tao's or of the operating system's. What an exception of the application
says is left out, because it may well quote a message; where it was raised is told instead.
"""

from __future__ import annotations

import ssl
import time
from collections import deque
from types import TracebackType
from typing import Final, NamedTuple

from tao.atomic import AtomicInt64
from tao.errors import BadData, ConnectFailed, ConnectionClosed, HandshakeFailed, TaoError
from tao.safe_text import safe_str
from tao.transport.error_text import explain

__all__ = ["Failure", "Failures", "reason_of"]

# How many kinds are counted apart (threads that bring one each at the same moment may make it a few
# more), how many reasons are kept, and how long one may be.
_KINDS, _KEPT, _LONGEST = 64, 20, 200
#: Stands for all kinds beyond.
_OTHER: Final = "other"
# The close reasons that contain no text from a peer.
_OF_TAO: Final = (ConnectFailed, HandshakeFailed)


class Failure(NamedTuple):
    """One error.

    Attributes:
        time: when, in seconds since the Unix epoch.
        connection: its number.
        peer: the address at its other side.
        kind: the name of the exception's class.
        reason: see `reason_of`.
    """

    time: float
    connection: int
    peer: str
    kind: str
    reason: str


class Failures:
    """The errors of a server or client.

    No method waits. Any may be called from any thread, a signal handler or a finalizer.
    """

    def __init__(self) -> None:
        # Both are used only by operations that are a single step of the interpreter.
        self._kinds: dict[str, AtomicInt64] = {}
        self._last: deque[Failure] = deque(maxlen=_KEPT)

    def add(self, error: BaseException, doing: str, connection: int, peer: str) -> None:
        """Note an error.

        Args:
            error: what was raised.
            doing: what was being done, in words of tao's; may be empty.
            connection: its number.
            peer: the address at its other side.
        """
        kind = type(error).__name__[:_LONGEST]
        reason = ": ".join(filter(None, [doing, reason_of(error)]))[:_LONGEST]
        failure = Failure(time.time(), connection, peer, kind, reason)
        if kind not in self._kinds and len(self._kinds) >= _KINDS - 1:
            kind = _OTHER
        self._kinds.setdefault(kind, AtomicInt64()).increment_and_get()
        self._last.append(failure)

    def kinds(self) -> dict[str, int]:
        """Return how many there were of each kind, the most frequent first."""
        kinds = [(kind, count.get()) for kind, count in dict(self._kinds).items()]
        return dict(sorted(kinds, key=lambda item: -item[1]))

    def last(self) -> list[Failure]:
        """Return the last ones, the latest first."""
        return list(self._last)[::-1]


def reason_of(error: BaseException) -> str:
    """Say why, without a word that may come from a message."""
    if isinstance(error, BadData) and error.__cause__ is not None:
        cause = error.__cause__
        return f"{type(cause).__name__} {_place(cause.__traceback__)}".rstrip()
    if isinstance(error, ssl.SSLError) or (isinstance(error, OSError) and error.errno is not None):
        return explain(error)
    place = _place(error.__traceback__)
    if isinstance(error, (TaoError, TimeoutError, ConnectionError)) and not place:
        text = safe_str(error)
        if isinstance(error, ConnectionClosed) and not isinstance(error, _OF_TAO):
            # What comes after the colon is from why it was closed, hence from anywhere.
            text = text.partition(": ")[0]
        return text
    return place


def _place(traceback: TracebackType | None) -> str:
    """Say where something was raised; nothing if that was by tao itself, or nowhere."""
    if traceback is None:
        return ""
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    frame = traceback.tb_frame
    if str(frame.f_globals.get("__name__")).partition(".")[0] == "tao":
        return ""
    code = frame.f_code
    file = code.co_filename.replace("\\", "/").rpartition("/")[2]
    return f"at {file}:{traceback.tb_lineno} in {code.co_name}"
