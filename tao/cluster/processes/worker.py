"""A worker's side of supervision: the tasks of a server process for its supervisor.

A thread of its own, ``tao-supervised``, sends the signs of life and carries out what the supervisor
asks for. So a worker whose interpreter hangs, in C code that holds the interpreter lock for
instance, is found out; one whose handlers merely take long is not. Answers for the monitor are made
on threads of their own, because they may run code of the application.

When the supervisor is gone, the worker first closes its listening sockets, lest it takes
connections away from the next supervisor, and then shuts down gracefully.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import os
import select
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

from tao.cluster.hub.sockets import give_hub_socket
from tao.cluster.processes.channel import Channel
from tao.cluster.processes.draining import drain
from tao.cluster.processes.load_table import LoadRow
from tao.cluster.processes.settings import WorkerOrder
from tao.cluster.sessions.sockets import SessionSockets
from tao.connection.options.definitions import ServerSettings
from tao.runtime.log import logger
from tao.runtime.threads import spawn, usable_cpus
from tao.runtime.wakeup import Wakeup
from tao.server.server import Server, server_core_of

__all__ = ["STACKS_SIGNAL", "Supervised"]

#: Has a worker write the stacks of its threads to stderr.
STACKS_SIGNAL: Final = signal.SIGQUIT
# How long the last messages of a worker may take to be sent, in seconds.
_MOMENT = 2.0


class Supervised:
    """The supervised process, as itself sees it. Made by its main thread, before the application.

    Args:
        order: what the supervisor has told.
    """

    def __init__(self, order: WorkerOrder) -> None:
        self._order = order
        for descriptor in order.descriptors:
            os.set_inheritable(descriptor, False)
        # Used by the thread only.
        self._channel = Channel(socket.socket(fileno=order.control))
        # What the thread is to send. Changed in single steps.
        self._outbox: deque[dict[str, Any]] = deque()
        # What the thread is to do. Used by the thread only.
        self._orders: deque[dict[str, Any]] = deque()
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        self._row = LoadRow(order.load, order.row)
        self._server: Server | None = None
        self._over: bool = False
        self._sent = Wakeup()  # set when the last message is sent
        #: Answers a question of the supervisor: what it asks for, and the details.
        self.answer: Callable[[str, dict[str, str]], Any] | None = None
        sys.path.extend(each for each in order.search_path if each not in sys.path)
        faulthandler.register(STACKS_SIGNAL)
        # Whoever sends SIGHUP to all processes of this name means the supervisor. A function, as
        # programs that the application starts would inherit SIG_IGN.
        signal.signal(signal.SIGHUP, lambda *_: None)
        spawn(self._run, name="tao-supervised", failed=lambda _: self._run()).start()

    # -- called by the main thread

    def take_sockets(self) -> list[socket.socket]:
        """Return the listening sockets."""
        return [socket.socket(fileno=each) for each in self._order.listening]

    def adopt(self, server: Server) -> None:
        """Supervise a server, which is not started yet."""
        core = server_core_of(server)
        core.give_way = self._gives_way
        core.configure(self._settings(core.settings))
        if core.settings.cluster == "local":
            give_hub_socket(core, socket.socket(fileno=self._order.hub))
        sessions = core.settings.sessions
        if sessions is not None:
            order, acceptor = self._order, core.acceptor
            core.session_port = port = SessionSockets(
                order.sessions, order.number, acceptor.take_link, acceptor.take_session
            )
            sessions.mark = port.mark
        self._server = server

    def _settings(self, settings: ServerSettings) -> ServerSettings:
        """Return the options of the server, for one of several processes."""
        if settings.cluster is None:
            settings = dataclasses.replace(settings, cluster="local")
        if (
            settings.cpu_affinity == "auto"
        ):  # another CPU than the other workers, if there are enough
            cpus = sorted(usable_cpus(), reverse=True)
            cpu = cpus[(self._order.slot - 1) % len(cpus)]
            settings = dataclasses.replace(settings, cpu_affinity=cpu)
        return settings

    def ready(self, details: dict[str, Any]) -> None:
        """Tell that the server serves."""
        self._say({"ready": details})

    def failed(self, why: str) -> None:
        """Tell why the server cannot serve, and wait until that is sent."""
        self._end({"failed": why})

    def stopped(self) -> None:
        """Tell the last figures, and wait until that is sent."""
        self._end({"figures": self._answer("figures", {})})

    def _end(self, message: dict[str, Any]) -> None:
        self._outbox.append(message)
        self._over = True
        self._ring()
        self._sent.wait(_MOMENT)

    def _say(self, message: dict[str, Any]) -> None:
        self._outbox.append(message)
        self._ring()

    def _ring(self) -> None:
        try:
            self._wake.send(b"x")
        except OSError:
            pass  # it is awake already

    # -- called by the thread that accepts connections

    def _gives_way(self) -> bool:
        """Whether another worker should take the next connection."""
        assert self._server is not None
        count = len(server_core_of(self._server).acceptor.connections)
        self._row.write(count)
        return self._row.exceeds(count)

    # -- the thread

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        due = 0.0
        while not self._channel.ended:
            if monotonic() >= due:
                due = monotonic() + self._order.beat
                if not self._over:  # from then on it has to end, which the supervisor watches
                    self._beat()
            while self._outbox:
                self._channel.send(self._outbox.popleft())
            if self._over and not (self._outbox or self._channel.events & select.POLLOUT):
                self._sent.set()
            poll.register(self._channel, self._channel.events)
            for descriptor, _ in poll.poll(max(0.0, due - monotonic()) * 1000):
                if descriptor == self._woken.fileno():
                    self._woken.recv(4096)
            self._channel.flush()
            self._orders.extend(self._channel.receive())
            self._obey_all()
        self._sent.set()
        self._orphaned()

    def _beat(self) -> None:
        """Give a sign of life."""
        server, count = self._server, 0
        if server is not None:
            core = server_core_of(server)
            count = len(core.acceptor.connections)
            if core.state == "running":
                self._row.write(count)
        self._channel.send({"beat": count})

    def _obey_all(self) -> None:
        """Carry out the orders; one that cannot be carried out now comes again with the next beat.

        Each is forgotten only once it is done, as the thread may be interrupted.
        """
        try:
            while self._orders:
                self._obey(self._orders[0])
                self._orders.popleft()
        except (RuntimeError, MemoryError) as error:  # no thread can be started
            logger.warning("an order of the supervisor has to wait: {}", error)

    def _obey(self, message: dict[str, Any]) -> None:
        match message:
            case {"ask": number, "what": what, "query": query}:
                self._answer_aside(number, what, query)
            case {"drain": spread, "heir": heir}:
                self._leave(spread, heir)
            case {"stop": _}:
                self._leave(0.0)

    def _answer_aside(self, number: int, what: str, query: dict[str, str]) -> None:
        def failed(error: BaseException) -> None:
            self._say({"answer": number, "value": None})

        name = "tao-supervised-answer"
        try:
            spawn(self._reply, number, what, query, name=name, failed=failed).start()
        except (RuntimeError, MemoryError) as error:  # no thread can be started
            failed(error)

    def _reply(self, number: int, what: str, query: dict[str, str]) -> None:
        self._say({"answer": number, "value": self._answer(what, query)})

    def _answer(self, what: str, query: dict[str, str]) -> Any:
        """Return what the supervisor asks for; None if that fails."""
        try:
            return None if self.answer is None else self.answer(what, query)
        except Exception as error:
            logger.opt(exception=error).error("no answer to the supervisor's question for {}", what)
            return None

    def _leave(self, spread: float, heir: int | None = None) -> None:
        """Stop gracefully; the worker with the number ``heir`` goes on with the sessions."""
        self._row.withdraw()
        if self._server is None:
            os._exit(0)  # there is nothing to finish
        port = server_core_of(self._server).session_port
        if port is not None:
            port.heir = heir
        server = self._server
        spawn(drain, server, spread, name="tao-drain", failed=lambda _: server.stop()).start()

    def _orphaned(self) -> None:
        """The supervisor is gone: have its successor get the next connections, and stop."""
        if self._over:
            return
        if self._server is not None:
            self._server.stop_listening()
            logger.warning("the supervisor is gone: stopping")
        self._leave(0.0)
