"""The send queue of one connection: order, bounds, and as few system calls as can be.

Guarantees:

- Frames leave in the order of `write` calls, each whole; bytes of two never mix.
- The queue never holds more frames than its limit, nor more bytes unless it is one frame that does;
  those of a preface (see `Outbox.attach`) have as much room of their own.
- `write` does not block unless it is given time to.
- A frame is forgotten only when the kernel has taken all of it. If the transport breaks, what is
  left is kept, from the first frame that is not wholly gone, for the next transport or the report.

Mechanism: the frames wait in a ``queue.Queue`` whose mutex guards everything here. Who writes while
nothing waits sends at once, without blocking, and is done: no other thread is involved. Only what
the kernel does not take (``_blocked``) is left to the writer thread, which waits for the socket
outside of the mutex, and from then on all frames line up behind. While a batch of messages is being
handled, small frames are only collected (``_collected``), so that the replies leave together.

Collecting takes no lock, because it is done once for each message. It is on only while nothing else
waits. Whoever ends it first says so and then looks what has been collected; whoever collects first
appends and then looks whether it is still on. So of the two at least one sees to each frame.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from time import monotonic

from tao.errors import ConnectionClosed
from tao.overflow import make_room
from tao.threads import Deadline, LazyCondition
from tao.transport import Transport, explain

__all__ = ["Outbox"]

# So many frames are collected at most, each shorter than so many bytes.
_COLLECT_FRAMES, _COLLECT_BYTES = 128, 16 * 1024
# One send is given at most about so many bytes: more than a socket buffer takes is copied in vain.
_SEND_BYTES = 256 * 1024


class Outbox(queue.Queue[bytes]):
    """A queue of frames that empties itself into a transport.

    Any thread may call `write`; who calls the others is said there.

    Args:
        limit: how many frames may wait.
        slow_consumer: what a write does when so many do: ``"raise"`` raises `WouldBlock`,
            ``"drop_newest"`` and ``"drop_oldest"`` drop a frame and count it, ``"close"`` seals the
            outbox and gives up.
        start_writer: starts the thread that runs `run_writer`; called when that is first needed,
            under the mutex, and again only if it raised.
        keep: frames written while there is no transport wait for the next one.
        limit_bytes: how many bytes may wait, beside ``limit``; None: any number.
    """

    __slots__ = (
        "_ahead", "_blocked", "_bytes", "_collect_most", "_collected", "_collecting",
        "_final", "_keep", "_limit_bytes", "_offset", "_open", "_polling", "_preface", "_seal",
        "_shut", "_slow_consumer", "_start_writer", "_stopped", "_transport", "_waiting",
        "_writer_started", "bytes_sent", "dropped", "error", "frames_sent", "last_sent",
        "queue", "send_time",
    )  # fmt: skip

    def __init__(
        self,
        limit: int,
        start_writer: Callable[[], None],
        *,
        slow_consumer: str = "raise",
        keep: bool = False,
        limit_bytes: int | None = None,
    ) -> None:
        # In place of the base's, which makes three conditions that most connections never need.
        self.maxsize: int = limit
        self.mutex = threading.Lock()
        self._limit_bytes: int | None = limit_bytes
        self._slow_consumer: str = slow_consumer
        self._start_writer = start_writer
        self._keep: bool = keep
        # All below is guarded by self.mutex, like self.queue, which holds the frames. Of the
        # inherited conditions, not_full wakes writes that wait for room, not_empty the writer
        # thread, and all_tasks_done who waits for the end.
        self.queue: deque[bytes] = deque()
        self._transport: Transport | None = None
        self._open: bool = False  # there is one, no preface is under way, and nothing sealed
        self._offset: int = 0  # bytes of the first frame that the kernel has
        self._bytes: int = 0  # in all frames that wait
        self._blocked: bool = False  # the kernel did not take all: the writer is on it
        self._polling: bool = False  # the writer waits for the transport, outside of the mutex
        self._preface: int | None = None  # the thread whose frames go ahead, see attach
        self._waiting: int = 0  # writes that wait for room; to notify costs, if in vain too
        self._ahead: int = 0  # how many frames of the preface wait
        self._seal: str | None = None  # why nothing may be written
        self._final: bool = False  # ... nor on another transport
        self._shut: bool = False  # the peer has been told the end
        self._stopped: bool = False  # the writer thread is to end
        self._writer_started: bool = False
        self.error: OSError | None = None  #: what broke the transport
        #: When the kernel last took bytes, or began to refuse them.
        self.last_sent: float = monotonic()
        self.send_time: float = 0.0  #: seconds that the kernel needed to take them
        self.frames_sent: int = 0
        self.bytes_sent: int = 0
        self.dropped: int = 0
        # Written under the mutex, read without.
        self._collecting: bool = False
        # Appended to by anyone while that is on, taken from under the mutex: a deque's append and
        # popleft are atomic in CPython, also without the GIL.
        self._collected: deque[bytes] = deque()
        self._collect_most: int = min(limit // 2, _COLLECT_FRAMES)
        if limit_bytes is not None:
            self._collect_most = min(self._collect_most, limit_bytes // _COLLECT_BYTES)

    not_full, not_empty, all_tasks_done = LazyCondition(), LazyCondition(), LazyCondition()

    def _wake(self, condition: str) -> None:
        """Wake all who wait for a condition. Needs the mutex."""
        if condition in self.__dict__:
            getattr(self, condition).notify_all()

    # -- for everyone

    def write(self, frame: bytes, timeout: float | None = None) -> None:
        """Send or queue a frame.

        Args:
            frame: one whole message.
            timeout: seconds to wait for room; None does not wait.

        Raises:
            WouldBlock: there was no room, or not in time; the frame was not queued.
            ConnectionClosed: nothing can be sent any more; the frame was not queued.
        """
        if (
            self._collecting
            and 0 < len(frame) < _COLLECT_BYTES
            and len(self._collected) < self._collect_most
        ):
            self._collected.append(frame)
            if not self._collecting:
                self._collected_late(frame)  # type: ignore[unreachable]  # says mypy, but threads
            return
        with self.mutex:
            if self._collected:
                self._take_collected()
            if self._open and not self.queue and frame:
                self._send_at_once(frame, (frame,))  # as nearly always
            elif not self._line_up(frame, timeout):
                return
            if self.error is not None and not self._keep:
                self._take_back(frame)
                raise ConnectionClosed(self._seal or "connection broken")

    @property
    def waiting(self) -> int:
        """How many frames wait."""
        return len(self.queue) + len(self._collected)

    @property
    def bytes_waiting(self) -> int:
        """How many bytes of them the kernel does not have."""
        return self._bytes - self._offset

    # -- for who handles a batch

    def collect(self) -> None:
        """Hold frames back until `release`, or until they are many."""
        with self.mutex:
            # Where frames wait already, the writer sends them together anyway.
            self._collecting = self._open and not self.queue

    def release(self) -> None:
        """Send what was held back and hold nothing more. Any thread may call it."""
        with self.mutex:
            self._collecting = False
            self._send_collected()

    def flush(self) -> None:
        """Send what was held back so far. Any thread may call it."""
        with self.mutex:
            self._send_collected()

    # -- for the connection

    def attach(self, transport: Transport) -> None:
        """Send into this transport from now on.

        Until `open`, only frames that the calling thread writes go out, the preface, ahead of those
        that wait: on a new connection, who talks first must not be overtaken by the backlog.
        """
        with self.mutex:
            self._transport = transport
            self._preface = threading.get_ident()
            self.error = None

    def open(self) -> None:
        """End the preface and send what waits."""
        with self.mutex:
            self._preface = None
            self._open = self._transport is not None and self._seal is None
            if not self._blocked:
                self._send()

    def detach(self) -> int:
        """Take an aborted transport away; when this returns, no thread is in it.

        What is not wholly sent is kept, but nothing of the preface: on the next connection, there
        will be a new one.

        Returns:
            how many frames of the preface were dropped.
        """
        with self.mutex:
            self._leave()
            dropped = self._ahead
            for _ in range(dropped):
                self._bytes -= len(self.queue.popleft())
            self._ahead = self._offset = 0
            if not self._final:
                self._seal = None
            return dropped

    def seal(self, reason: str) -> None:
        """Let nothing more be written; when all is sent, tell the peer so. From any thread."""
        with self.mutex:
            if self._seal is None:
                self._seal = reason
            self._final = True
            self._collecting = self._open = False
            self._take_collected()
            self._wake("not_full")
            if not self._blocked:
                self._send()

    def wait_sent(self, deadline: Deadline) -> bool:
        """Wait until all is sent and the peer told, or nothing can be; tell whether it is."""
        with self.mutex:
            while not self._shut and self._transport is not None and not deadline.expired:
                self.all_tasks_done.wait(deadline.remaining())
            return self._shut

    def give_up(self, error: OSError, transport: Transport | None = None) -> None:
        """Note that the transport is broken, or that the peer takes nothing, and abort it.

        Any thread may call it; if it names the transport, one that came after is left alone.
        """
        with self.mutex:
            if transport is None or transport is self._transport:
                self._break(error)

    @property
    def blocked(self) -> bool:
        """Whether the kernel has not taken all: the peer does not read, or not fast enough."""
        return self._blocked

    @property
    def shut(self) -> bool:
        """Whether all is sent and the peer has been told that nothing more comes."""
        return self._shut

    def stop(self) -> tuple[int, int]:
        """End the writer thread and return the number of frames, and of bytes, never sent.

        All is sent, or the transport is aborted already, and no thread is in it afterwards.
        """
        with self.mutex:
            self._stopped = True
            self._wake("not_empty")
            self._leave()
            return len(self.queue), self.bytes_waiting

    def run_writer(self) -> None:
        """The writer thread: send what the kernel did not take at once."""
        while True:
            with self.mutex:
                while not (self._stopped or self._blocked):
                    self.not_empty.wait()
                if self._stopped:
                    return
                transport = self._transport
                assert transport is not None, "what blocks is there"
                self._polling = True
            transport.wait_writable()
            with self.mutex:
                self._polling = False
                self._wake("all_tasks_done")
                if transport is self._transport and self._blocked:
                    self._send()

    # -- inside, all but the first under the mutex

    def _collected_late(self, frame: bytes) -> None:
        """See to a frame that was collected while someone ended that."""
        with self.mutex:
            if self._seal is not None and frame in self._collected:
                self._collected.remove(frame)
                raise ConnectionClosed(self._seal)
            self._send_collected()

    def _send_collected(self) -> None:
        """Send what was collected, unless the writer does. Needs the mutex."""
        if self._open and not self.queue:
            if self._collected:
                frames = self._pop_collected()
                self._send_at_once(b"".join(frames), frames)
            return
        self._take_collected()
        if self.queue and not self._blocked:
            self._send()

    def _take_collected(self) -> None:
        """Move what was collected to where the frames wait. Needs the mutex."""
        frames = self._pop_collected()
        self._bytes += sum(map(len, frames))
        self.queue.extend(frames)

    def _pop_collected(self) -> list[bytes]:
        """Take out what was collected so far. Needs the mutex."""
        collected = self._collected
        return list(islice(iter(collected.popleft, None), len(collected)))

    def _line_up(self, frame: bytes, timeout: float | None) -> bool:
        """Queue a frame behind those that wait; False: it was dropped. Needs the mutex."""
        most, size = self._limit_bytes, len(frame)
        crowded = self._seal is not None or len(self.queue) >= self.maxsize
        crowded = crowded or (most is not None and self._bytes + size > most)
        if crowded and not make_room(self, size, timeout):
            return False
        if not frame:
            return False  # a kernel that takes nothing of it would look like one that is full
        self._bytes += len(frame)
        if self._preface == threading.get_ident():
            self.queue.insert(self._ahead, frame)
            self._ahead += 1
        else:
            self.queue.append(frame)
        if self._blocked:
            return False
        self._send()
        return True

    def _take_back(self, frame: bytes) -> None:
        """Forget the frame added last: whoever wrote it is told that it cannot be sent."""
        if self.queue[-1] is frame:
            self._bytes -= len(self.queue.pop())
            self._ahead = min(self._ahead, len(self.queue))
            if not self.queue:
                self._offset = 0

    def _send_at_once(self, data: bytes, frames: Sequence[bytes]) -> None:
        """Give the kernel frames while none waits; what it does not take does from then on.

        Needs the mutex.

        Args:
            data: all of the frames in one.
        """
        taken = 0
        started = monotonic()
        try:
            taken = self._transport.send(data)  # type: ignore[union-attr]
        except OSError as error:
            self._break(error)
        now = monotonic()
        self.send_time += now - started
        if taken == len(data):
            self.last_sent = now
            self.bytes_sent += taken
            self.frames_sent += len(frames)
            return
        self._bytes = len(data)
        self.queue.extend(frames)
        if taken:
            self.last_sent = now
            self._forget(taken)
        self._send()

    def _give(self, data: bytes | memoryview) -> int:
        """Have the kernel take what it can. Needs the mutex, and a transport."""
        started = monotonic()
        taken = self._transport.send(data)  # type: ignore[union-attr]
        now = monotonic()
        self.send_time += now - started
        if taken:
            self.last_sent = now
        return taken

    def _send(self) -> None:
        """Give the kernel what it takes, and leave the rest to the writer. Needs the mutex."""
        assert self.mutex.locked()
        transport = self._transport
        if transport is None:
            return
        count = len(self.queue) if self._preface is None else self._ahead
        try:
            while count:
                taken = self._give(self._next_bytes(count))
                if not taken:
                    self._block()
                    return
                count -= self._forget(taken)
            if self._seal is not None and not self.queue and not self._shut:
                if not transport.shutdown_write():
                    self._block()
                    return
                self._shut = True
                self._wake("all_tasks_done")
            self._blocked = False
        except OSError as error:
            self._break(error)

    def _next_bytes(self, count: int) -> bytes | memoryview:
        """What one send is given: the first frames, joined, without what went before."""
        first = self.queue[0]
        if count == 1 or len(first) >= _SEND_BYTES:
            return memoryview(first)[self._offset :] if self._offset else first
        if self._bytes <= _SEND_BYTES:
            data = b"".join(islice(self.queue, count))
        else:
            some, size = [], 0
            for frame in islice(self.queue, count):
                some.append(frame)
                size += len(frame)
                if size >= _SEND_BYTES:
                    break
            data = b"".join(some)
        return memoryview(data)[self._offset :] if self._offset else data

    def _forget(self, taken: int) -> int:
        """Drop the frames that the kernel has wholly got; return how many."""
        self.bytes_sent += taken
        taken += self._offset
        dropped = 0
        frames = self.queue
        if taken == self._bytes:  # all, as a rule
            dropped = len(frames)
            frames.clear()
            taken = self._bytes = 0
        while frames and taken >= len(frames[0]):
            length = len(frames.popleft())
            taken -= length
            self._bytes -= length
            dropped += 1
        self._offset = taken
        self.frames_sent += dropped
        if self._ahead:
            self._ahead -= min(dropped, self._ahead)
        if self._waiting:
            self._wake("not_full")
        return dropped

    def _block(self) -> None:
        """Leave the rest to the writer thread."""
        if not self._writer_started:
            self._start_writer()  # if no thread can be had, the next to write tries again
            self._writer_started = True
        self._blocked = True
        self._collecting = False
        # Either the wait begins now, or the socket was writable a moment ago: under TLS, the kernel
        # may take bytes for long before it has all that a frame became.
        self.last_sent = monotonic()
        self._wake("not_empty")

    def _leave(self) -> None:
        """Let no thread be in the transport. Needs the mutex, and gives it up while it waits."""
        self._transport = None
        self._preface = None
        self._collecting = self._open = False
        self._take_collected()
        # Before the wait, or the writer would go on with a transport that is gone.
        self._blocked = False
        self._wake("all_tasks_done")
        while self._polling:
            self.all_tasks_done.wait()

    def _break(self, error: OSError) -> None:
        """Be done with a transport that takes nothing any more. Needs the mutex."""
        if self.error is None:
            self.error = error
        if self._transport is not None:
            self._transport.abort()
        self._blocked = False
        self._collecting = self._open = False
        if not self._keep and self._seal is None:
            self._seal = explain(error)
        self._transport = None
        self._wake("not_full")
        self._wake("all_tasks_done")
