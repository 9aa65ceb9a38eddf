"""The sockets of a monitor: one thread waits for all of them, and no peer can hold up another.

Guarantees, whatever peers send, however slowly, and whether or not they read:

- A peer occupies a thread only while its answer is made: one thread that never blocks reads all
  requests and sends all answers. At most `_ANSWERS` threads make answers, and only a few of them
  work on one page. So a page that hangs in the application's code (such as ``__str__`` of a name)
  does not block the others.
- A request may take `PATIENCE` seconds altogether; so may each event of a stream.
- At most `_MOST_PEERS` connections are open at once, besides the streams. Above that, a new one
  replaces one that waits for its peer: if possible one that only has to close, else the oldest. So
  complete requests are answered at once, even if other peers send slowly. The unread bytes of
  answers are bounded likewise.
- Every complete request is answered: with status 503 if no answer can be made in time, or no thread
  can be started.
- No error ends the thread: it is logged, and at most the connection in question is closed.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from typing import Final

from tao.monitor.answers import FaultLog, Reply, plain
from tao.runtime.deadline import Deadline
from tao.runtime.log import logger
from tao.runtime.threads import gather, spawn
from tao.runtime.wakeup import Wakeup
from tao.transport.error_text import explain

__all__ = ["BACKLOG", "PATIENCE", "HttpServer"]

#: How long a request, or an event of a stream, may take, in seconds.
PATIENCE: Final = 5.0
# The extra time to send a 503 response after that, in seconds.
_APOLOGY: Final = 1.0
# How many connections may be open, how many answers made at once, and how many of one page.
_MOST_PEERS, _ANSWERS, _ANSWERS_EACH = 128, 16, 4
# How many bytes of answers may wait to be sent on all connections together.
_MOST_UNSENT = 32 * 1024 * 1024
# How long a new connection keeps its place, in seconds: its request may be under way.
_GRACE: Final = 0.05
# The longest head of a request, in bytes.
_LONGEST_HEAD: Final = 16 * 1024
# How many bytes are read, and how many connections accepted, before others are served.
_READ, _ACCEPTED_AT_ONCE = 4096, 16
# How long to wait after a failure, in seconds.
_BACKOFF = 0.5
#: The listen backlog.
BACKLOG: Final = 1024


class _State(Enum):
    """The state of a connection."""

    READING = auto()  # the head is incomplete
    ANSWERING = auto()  # the answer is being made
    SENDING = auto()  # the answer is being sent
    STREAMING = auto()  # events are sent until the peer closes
    LINGERING = auto()  # all is sent; closing before the peer does could reset the connection
    ENDED = auto()


class _Peer:
    """One connection. Only the loop's thread uses it."""

    __slots__ = ("deadline", "out", "page", "received", "since", "sock", "state")

    def __init__(self, sock: socket.socket, now: float) -> None:
        self.sock = sock
        self.since: float = now
        self.deadline: float = now + PATIENCE
        self.state = _State.READING
        self.received = bytearray()
        self.page: bytes = b""  # the requested path
        self.out = memoryview(b"")

    @property
    def events(self) -> int:
        """The events to poll for."""
        if self.state is _State.ANSWERING:
            return 0
        if self.state is _State.SENDING:
            return select.POLLOUT
        return select.POLLIN | (select.POLLOUT if self.out else 0)

    @property
    def waits_for_peer(self) -> bool:
        return self.state not in (_State.ANSWERING, _State.STREAMING)

    @property
    def has_deadline(self) -> bool:
        return self.state is not _State.STREAMING or bool(self.out)


class HttpServer:
    """Reads requests, answers them by calling ``respond``, and sends the answers.

    Args:
        sock: a listening, non-blocking socket, which is closed at the end.
        name: of the threads, and in the log.
        respond: makes the answer to the head of a request; called on separate threads.
        news: makes the next event of all streams; called on a separate thread.
        period: seconds between two events.
        left: called for each stream that ends.
        faults: logs errors.
    """

    def __init__(
        self,
        sock: socket.socket,
        name: str,
        respond: Callable[[bytes], Reply],
        news: Callable[[], str],
        period: float,
        left: Callable[[], object],
        faults: FaultLog,
    ) -> None:
        self._sock = sock
        self._name = name
        self._respond = respond
        self._news = news
        self._period = period
        self._left = left
        self._faults = faults
        self._closing = Wakeup()
        # Wakes the loop.
        self._wake, self._woken = socket.socketpair()
        for end in (self._wake, self._woken):
            end.setblocking(False)
        # One item for each thread that is about to write to _wake, and whether the loop has ended,
        # after which none may; see _ring.
        self._ringing: list[None] = []
        self._over: bool = False
        # Results for the loop: the thread and its answer, or None if it failed.
        self._posted: deque[tuple[threading.Thread, Reply | None]] = deque()
        # The fields below are owned by the loop's thread.
        self._peers: dict[int, _Peer] = {}  # by descriptor, the oldest first
        self._queue: deque[tuple[_Peer, bytes]] = deque()  # heads that wait for a free thread
        self._answering: dict[threading.Thread, _Peer] = {}
        self._teller: threading.Thread | None = None  # makes the next event
        self._news_due: float = 0.0
        self._accept_again: float = 0.0
        self._thread = spawn(self._run, name=name, failed=lambda _: self._run())

    def start(self) -> None:
        """Start serving.

        Raises:
            RuntimeError: no thread can be started. The sockets are closed.
        """
        try:
            self._thread.start()
        except BaseException:
            if self._thread.withdraw():
                self.abandon()
            else:  # it has begun, and closes the sockets
                self._closing.set()
                self._ring()
            raise

    def close(self) -> None:
        """Close all connections and wait for the threads.

        May be called from any thread or signal handler.
        """
        self._closing.set()
        self._ring()
        gather([self._thread], Deadline(PATIENCE))

    def abandon(self) -> None:
        """Close the sockets when no loop runs, as in a forked child, which has copies of them."""
        self._closing = Wakeup()
        self._closing.set()
        self._over = True
        for sock in (self._sock, self._wake, self._woken, *(each.sock for each in self._all())):
            sock.close()
        self._peers.clear()

    def _ring(self) -> None:
        """Wake the loop, unless it has ended: its descriptor may have been reused since."""
        self._ringing.append(None)
        try:
            if not self._over:
                self._wake.send(b"x")
        except OSError:
            pass  # it is awake already
        finally:
            self._ringing.pop()

    # -- on separate threads

    def _answer(self, head: bytes) -> None:
        reply = None
        try:
            reply = self._respond(head)
        finally:
            self._post(reply)

    def _make_news(self) -> None:
        reply = None
        try:
            reply = Reply(self._news().encode())
        except BaseException as error:
            self._faults.add("the news", error)
        finally:
            self._post(reply)

    def _post(self, reply: Reply | None) -> None:
        self._posted.append((threading.current_thread(), reply))
        self._ring()

    # -- on the loop's thread, as everything below

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                try:
                    self._turn()
                except BaseException as error:  # such as a lack of memory, which may pass
                    self._go_on(error)
            except BaseException:
                pass  # handling the error has raised, and so might any further handling
        for peer in self._all():
            self._drop(peer)
        self._sock.close()
        makers = [*self._answering, *filter(None, [self._teller])]
        gather(makers, Deadline(0.8 * PATIENCE))
        self._over = True
        deadline = Deadline(_APOLOGY)
        while self._ringing and not deadline.expired:
            time.sleep(0.001)  # another thread needs this long for a few instructions
        self._wake.close()
        self._woken.close()

    def _go_on(self, error: BaseException) -> None:
        try:
            self._faults.add("waiting for requests", error)
        finally:
            self._closing.wait(_BACKOFF)

    def _turn(self) -> None:
        """Wait for events, and handle them."""
        now = time.monotonic()
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        if now >= self._accept_again:
            poll.register(self._sock, select.POLLIN)
        for number, peer in self._peers.items():
            if peer.events:
                poll.register(number, peer.events)
        ready = {number for number, _ in poll.poll(1000 * self._timeout(now))}
        if self._woken.fileno() in ready:
            self._woken.recv(4096)
        for peer in [peer for number, peer in self._peers.items() if number in ready]:
            self._advance(peer)
        self._take_posted()
        now = time.monotonic()
        self._end_what_is_late(now)
        self._begin_news(now)
        if self._sock.fileno() in ready:
            self._accept(now)

    def _timeout(self, now: float) -> float:
        """Return the timeout of the next poll, in seconds."""
        times = [peer.deadline for peer in self._all() if peer.has_deadline]
        if self._accept_again > now:
            times.append(self._accept_again)
        if self._streams() and self._teller is None:
            times.append(self._news_due)
        # An exception may interrupt close() before it rings; this timeout bounds the delay.
        return max(0.0, min([*times, now + PATIENCE]) - now) + 0.001

    def _all(self) -> list[_Peer]:
        return list(self._peers.values())

    def _streams(self) -> list[_Peer]:
        return [peer for peer in self._all() if peer.state is _State.STREAMING]

    # -- connections

    def _accept(self, now: float) -> None:
        for number in range(_ACCEPTED_AT_ONCE):
            if number and self._is_full():
                return  # the next turn checks for further connections, and makes room
            if not self._make_room(now):
                self._accept_again = now + _GRACE
                return
            try:
                sock, _ = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                logger.warning("{}: cannot accept: {}", self._name, explain(error))
                self._accept_again = now + _BACKOFF
                return
            sock.setblocking(False)
            self._peers[sock.fileno()] = _Peer(sock, now)

    def _is_full(self) -> bool:
        return len(self._peers) - len(self._streams()) >= _MOST_PEERS

    def _make_room(self, now: float) -> bool:
        """Close a connection if there are too many; return False if none can be closed."""
        if not self._is_full():
            return True
        idle = [each for each in self._all() if each.waits_for_peer and now - each.since >= _GRACE]
        idle.sort(key=lambda peer: peer.state is not _State.LINGERING)
        if idle:
            self._drop(idle[0], "too many connections")
        return bool(idle)

    def _make_room_for(self, size: int) -> None:
        """Close the oldest connections that do not read, if too many bytes would be unsent."""
        unsent = [peer for peer in self._all() if peer.out]
        while unsent and size + sum(len(peer.out) for peer in unsent) > _MOST_UNSENT:
            self._drop(unsent.pop(0), "too many unread bytes")

    def _advance(self, peer: _Peer) -> None:
        """Read from or write to a connection that is ready."""
        try:
            if peer.state is _State.READING:
                self._read(peer)
            elif peer.out:
                peer.out = peer.out[peer.sock.send(peer.out) :]
            if peer.state is _State.SENDING and not peer.out:
                peer.state = _State.LINGERING
                peer.sock.shutdown(socket.SHUT_WR)
            elif peer.state in (_State.STREAMING, _State.LINGERING) and not peer.sock.recv(_READ):
                self._drop(peer)
        except BlockingIOError:
            pass
        except OSError as error:
            self._drop(peer, explain(error))
        except BaseException as error:
            self._faults.add("a connection", error)
            self._drop(peer)

    def _read(self, peer: _Peer) -> None:
        data = peer.sock.recv(_READ)
        head = peer.received
        head += data
        if not data and not head:
            self._drop(peer)  # a health check that only connects
        elif not data or b"\r\n\r\n" in head or b"\n\n" in head or len(head) >= _LONGEST_HEAD:
            peer.state, peer.received = _State.ANSWERING, bytearray()
            peer.page = b"".join(head.split(None, 2)[1:2]).partition(b"?")[0]
            self._queue.append((peer, bytes(head)))
            self._begin_answers()

    def _end_what_is_late(self, now: float) -> None:
        for peer in self._all():
            if not peer.has_deadline or now < peer.deadline:
                continue
            if peer.state is _State.ANSWERING:
                self._reply(peer, plain(503, f"the page was not ready within {PATIENCE:g} s\n"))
                peer.deadline = now + _APOLOGY
            else:
                self._drop(peer, f"timed out after {PATIENCE:g} s")
        for thread, peer in dict(self._answering).items():
            if not thread.is_alive() and peer.deadline <= now:  # it ended before it could post
                del self._answering[thread]

    def _drop(self, peer: _Peer, why: str = "") -> None:
        """Close a connection."""
        if why:
            logger.debug("{}: connection closed: {}", self._name, why)
        self._peers.pop(peer.sock.fileno(), None)
        if peer.state is _State.STREAMING:
            self._left()
        peer.state = _State.ENDED
        peer.sock.close()

    # -- answers

    def _begin_answers(self) -> None:
        waiting, self._queue = self._queue, deque()
        for peer, head in waiting:
            if peer.state is not _State.ANSWERING:
                continue
            busy = [each.page for each in self._answering.values()]
            if len(busy) >= _ANSWERS or busy.count(peer.page) >= _ANSWERS_EACH:
                self._queue.append((peer, head))
            else:
                self._begin_answer(peer, head)

    def _begin_answer(self, peer: _Peer, head: bytes) -> None:
        name = f"{self._name}-request"
        thread = spawn(self._answer, head, name=name, failed=lambda _: self._post(None))
        self._answering[thread] = peer
        try:
            thread.start()
        except (RuntimeError, MemoryError) as error:
            del self._answering[thread]
            logger.warning("{}: cannot answer: {}", self._name, explain(error))
            self._reply(peer, plain(503, "no thread can be started to answer the request\n"))

    def _take_posted(self) -> None:
        while self._posted:
            thread, reply = self._posted.popleft()
            peer = self._answering.pop(thread, None)
            if peer is not None:
                self._reply(peer, reply or plain(500, "the request failed\n"))
            elif thread is self._teller:
                self._teller = None
                self._tell(reply)
        self._begin_answers()

    def _reply(self, peer: _Peer, reply: Reply) -> None:
        if peer.state is not _State.ANSWERING:  # the request has timed out
            if reply.streams:
                self._left()
            return
        self._make_room_for(len(reply.data))
        peer.out = memoryview(reply.data)
        peer.state = _State.SENDING
        if reply.streams:
            peer.state = _State.STREAMING
            peer.deadline = time.monotonic() + PATIENCE
            if len(self._streams()) == 1:
                self._news_due = time.monotonic() + self._period
        self._advance(peer)

    def _begin_news(self, now: float) -> None:
        """Start making an event for the streams, if it is time."""
        if self._teller is not None or now < self._news_due or not self._streams():
            return
        self._news_due = now + self._period
        name = f"{self._name}-news"
        self._teller = spawn(self._make_news, name=name, failed=lambda _: self._post(None))
        try:
            self._teller.start()
        except (RuntimeError, MemoryError) as error:
            self._teller = None
            logger.warning("{}: cannot make an event: {}", self._name, explain(error))

    def _tell(self, news: Reply | None) -> None:
        """Send an event to all streams that have sent the previous one; None: end all streams."""
        for peer in self._streams():
            if news is None:
                self._drop(peer, "no event could be made")  # the page requests the reason
            elif not peer.out:
                peer.out = memoryview(news.data)
                peer.deadline = time.monotonic() + PATIENCE
                self._advance(peer)
