"""Passing links of sessions among the processes of one supervisor, to the one that has the session.

Each process listens at a Unix socket whose name ends in its number, and the id of each session ends
in the number of the process that has it. So a process that is asked to resume a session of another
one knows where to send the connection: the socket itself (``SCM_RIGHTS``), and what its client has
said so far. Nobody waits for an answer. If the process ends before it has taken the connection, the
kernel closes that; the client connects again, and is told that the session is lost.

Connections with TLS are relayed, see ``relay.py``.

When a process is replaced, its sessions move to its heir (``handover.py``), over the same
sockets. It passes on to the heir what comes for sessions that it does not have any more; and when
it ends, the heir gets its listening socket, so nothing is lost that is on its way there.

On Linux the names are abstract, and either side checks that the other one has the same user.
Elsewhere the sockets are in a folder that only this user may enter.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import shutil
import socket
import struct
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Any, Final

from tao.cluster.sessions.handover import KIND, SessionArrival, give, with_tuples
from tao.cluster.sessions.relay import SessionRelay
from tao.errors import BadData, ConnectionClosed, ServerClosed
from tao.runtime.deadline import Deadline
from tao.runtime.forks import renew_after_fork
from tao.runtime.log import logger
from tao.runtime.threads import gather, spawn
from tao.runtime.wakeup import Wakeup
from tao.server.sessions.links import PassedLink
from tao.server.sessions.moves import MovedSession
from tao.session.frames import hello_frame, read_hello
from tao.transport.error_text import explain
from tao.transport.stream import Transport

__all__ = ["SessionNames", "SessionSockets"]

_MARK: Final = struct.Struct("!I")
_CREDENTIALS: Final = struct.Struct("iII")  # process, user and group
_FRAME_HEADER: Final = 8
# How many links may wait to be taken.
_BACKLOG: Final = 1024
# How much is read at once, in bytes: more than is ever told of a link.
_PIECE: Final = 64 * 1024
# What comes with a socket at which an ended process has listened.
_LISTENS: Final = b"L"
# How long the other side may take to tell, in seconds; how long to wait after an error; and how
# long the thread may take to end.
_TELLING, _PAUSE, _MOMENT = 1.0, 0.1, 2.0


class SessionNames:
    """How the Unix sockets of one supervisor's processes are called."""

    def __init__(self) -> None:
        self._folder: str | None = None
        #: The beginning of each name; the number of the process follows.
        self.prefix: str = f"\0tao-sessions-{secrets.token_hex(8)}-"
        if not sys.platform.startswith("linux"):
            self._folder = tempfile.mkdtemp(prefix="tao-")
            self.prefix = f"{self._folder}/"

    def close(self) -> None:
        """Remove what is left of them."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


class SessionSockets:
    """See `SessionPort`. A thread of its own, ``tao-session-links``, takes links from the others.

    Args:
        prefix: how the names of the sockets begin, for all processes.
        number: of this process.
        take: called with each connection that another process has passed on.
        take_session: called with each session that another process gives away, and the first link.

    Raises:
        OSError: the socket cannot be made.
        RuntimeError: no thread can be started.
    """

    def __init__(
        self,
        prefix: str,
        number: int,
        take: Callable[[socket.socket, PassedLink], object],
        take_session: Callable[[SessionArrival, socket.socket], object] = lambda *_: None,
    ) -> None:
        self._prefix = prefix
        self._number = number
        self._take = take
        self._take_session = take_session
        #: See `SessionPort.heir`. Set once, before the process ends.
        self.heir: int | None = None
        # Held while a session is given away: one at a time is in memory twice.
        self._giving = threading.Lock()
        self._fails: bool = False  # whether the heir has turned out to be gone, or to hang
        #: How the ids of the sessions of this process end.
        self.mark: bytes = _MARK.pack(number)
        self._closing = Wakeup()
        self._wake, self._woken = socket.socketpair()
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.setblocking(False)
        listening.bind(f"{prefix}{number}")
        listening.listen(_BACKLOG)
        # Its own, and those of processes that it has replaced. Changed by the thread.
        self._listening: list[socket.socket] = [listening]
        # The first counts, if several threads make one at once when it is needed.
        self._relays: list[SessionRelay] = []
        renew_after_fork(self, SessionSockets.after_fork)
        self._thread = spawn(self._run, name="tao-session-links", failed=self._run)
        self._thread.start()

    def pass_on(self, sock: socket.socket, link: PassedLink, *, again: bool = False) -> bool:
        """See `SessionPort.pass_on`."""
        number: int | None
        (number,) = _MARK.unpack(link.hello.session_id[-_MARK.size :])
        if again or number == self._number:
            number = self.heir
        if number is None:
            return False
        data = _packed(link)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as way:
            way.setblocking(False)  # a process that hangs does not hold up this one
            try:
                self._reach(way, number)
                if socket.send_fds(way, [data], [sock.fileno()]) < len(data):
                    raise BlockingIOError("not all was taken at once")
            except (ConnectionRefusedError, FileNotFoundError):
                return False
            except OSError as error:
                text = f"the process that has its session does not take it now: {explain(error)}"
                raise ConnectionClosed(text) from error
        return True

    def _reach(self, way: socket.socket, number: int) -> None:
        """Connect to another process.

        Raises:
            OSError: that is not possible.
        """
        way.connect(f"{self._prefix}{number}")
        if not _is_of_this_user(way):
            raise ConnectionRefusedError("it belongs to another user")

    def hand_over(self, moved: MovedSession, decided: list[bool]) -> str:
        """See `SessionPort.hand_over`."""
        with self._giving, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as way:
            if self.heir is None or self._fails:
                return "there is no process that takes it"
            try:
                self._reach(way, self.heir)
                return give(way, moved, decided)
            except OSError as error:
                self._fails = True
                return f"the new process does not take it: {explain(error)}"

    @property
    def gives(self) -> bool:
        """See `SessionPort.gives`."""
        return self.heir is not None and not self._fails

    def relay(self, transport: Transport, link: PassedLink) -> bool:
        """See `SessionPort.relay`."""
        if transport.descriptor < 0:
            return False  # it cannot be polled
        near, far = socket.socketpair()
        with far:
            try:
                passed = self.pass_on(far, link)
                if passed:
                    self._relay().add(transport, near)
            except BaseException:
                near.close()
                raise
        if not passed:
            near.close()
        return passed

    def _relay(self) -> SessionRelay:
        if not self._relays:
            relay = SessionRelay()
            self._relays.append(relay)
            if self._relays[0] is not relay:
                relay.close()
        return self._relays[0]

    def close(self) -> None:
        """See `SessionPort.close`."""
        self._closing.set()
        for relay in self._relays:
            relay.close()
        self._wake.close()
        gather([self._thread], Deadline(_MOMENT))

    def after_fork(self, reason: str) -> None:
        """In a child process: leave the links to the parent."""
        for each in (*self._listening, self._wake, self._woken):
            each.close()
        self._giving = threading.Lock()

    # -- the thread

    def _run(self, interrupted: BaseException | None = None) -> None:
        """Take links until the close. If this is interrupted, it is called again."""
        poll = select.poll()
        while not self._closing.is_set():
            for each in (*self._listening, self._woken):
                poll.register(each, select.POLLIN)
            poll.poll()
            try:
                for each in list(self._listening):
                    self._accept(each)
            except Exception as error:
                # Such as a lack of descriptors; anything else is a fault of this side.
                expected = isinstance(error, (OSError, BadData, ServerClosed))
                logger.opt(exception=None if expected else error).warning(
                    "a link was not taken from another process: {}", explain(error)
                )
                self._closing.wait(_PAUSE)
        for each in self._listening:
            self._bequeath(each)
            each.close()
        self._woken.close()

    def _accept(self, listening: socket.socket) -> None:
        try:
            way, _ = listening.accept()
        except BlockingIOError:
            return
        with way:
            way.settimeout(_TELLING)
            if not _is_of_this_user(way):
                raise BadData("it belongs to another user")
            sock, data = _receive(way)
            if sock is None:
                other = way.dup()
                arrival = spawn(self._await_session, other, data, name="tao-session-arrival")
                arrival.start()
                return
        try:
            if data == _LISTENS:
                sock.setblocking(False)
                self._listening.append(sock)
                return
            link = _unpacked(data)
        except BaseException:
            sock.close()
            raise
        self._take(sock, link)

    def _await_session(self, way: socket.socket, begun: bytes) -> None:
        """Receive a session, on a thread of its own."""
        try:
            arrival = SessionArrival(way, begun)
        except (OSError, ValueError, TypeError, BadData) as error:
            way.close()
            logger.warning("a session was not taken from another process: {}", explain(error))
            return
        try:
            self._take_session(arrival, arrival.link)
        except BaseException as error:
            arrival.refuse(f"the new process does not take it: {explain(error)}")
            if not isinstance(error, ServerClosed):
                raise

    def _bequeath(self, listening: socket.socket) -> None:
        """Have the heir take what comes for this process."""
        if self.heir is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as way:
                way.settimeout(_TELLING)
                self._reach(way, self.heir)
                socket.send_fds(way, [_LISTENS], [listening.fileno()])
        except OSError as error:
            logger.warning("links for this process are not taken any more: {}", explain(error))


def _is_of_this_user(sock: socket.socket) -> bool:
    """Whether the process at the other end belongs to this user, as far as that can be known."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return True
    answer = sock.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size)
    user: int = _CREDENTIALS.unpack(answer)[1]
    return user == os.geteuid()


def _receive(way: socket.socket) -> tuple[socket.socket | None, bytes]:
    """Return the passed socket, and what is told of it; without one, the beginning of a session.

    Raises:
        BadData: there is no socket.
        OSError: the other side takes too long, or is gone.
    """
    cloexec = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
    data, descriptors, _, _ = socket.recv_fds(way, _PIECE, 1, cloexec)
    if not descriptors:
        if data[:1] == KIND:
            return None, data
        raise BadData("no socket came with it")
    os.set_inheritable(descriptors[0], False)
    sock = socket.socket(fileno=descriptors[0])
    try:
        sock.setblocking(True)
        while more := way.recv(_PIECE):
            data += more
    except BaseException:
        sock.close()
        raise
    return sock, data


def _packed(link: PassedLink) -> bytes:
    told = {
        "nonce": link.nonce.hex(),
        "hello": hello_frame(link.hello).hex(),
        "remote_address": link.remote_address,
        "local_address": link.local_address,
        "tls_version": link.tls_version,
        "certificate": link.certificate,
    }
    return json.dumps(told, default=os.fsdecode).encode()


def _unpacked(data: bytes) -> PassedLink:
    told: dict[str, Any] = json.loads(data)
    return PassedLink(
        bytes.fromhex(told["nonce"]),
        read_hello(bytes.fromhex(told["hello"])[_FRAME_HEADER:]),
        with_tuples(told["remote_address"]),
        with_tuples(told["local_address"]),
        told["tls_version"],
        with_tuples(told["certificate"]),
    )
