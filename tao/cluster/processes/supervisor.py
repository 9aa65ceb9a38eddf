"""The supervisor: owns the listening sockets, starts the workers, and sees to it that they live.

It never imports the application, and one thread does all its work, so there is little in it that
could fail. Workers are new interpreters, never forks.

- A worker that ends without having been asked to is started again, after a wait that grows with
  each crash. Too many crashes in a minute end the supervisor with status 1.
- A worker that gives no sign of life has its stacks dumped, and is killed in the end; but never
  while it boots.
- SIGHUP starts a successor for each worker; see ``slots.py``.
- SIGTERM and SIGINT stop all workers gracefully; a second one stops them at once.
"""

from __future__ import annotations

import itertools
import select
import signal
import socket
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from time import monotonic
from typing import Any, Final

from tao.cluster.hub.hub import Hub
from tao.cluster.processes.channel import Channel
from tao.cluster.processes.listening import ListeningSockets
from tao.cluster.processes.load_table import LoadTable
from tao.cluster.processes.pid_file import PidFile
from tao.cluster.processes.process import WorkerProcess, start_worker
from tao.cluster.processes.questions import Question
from tao.cluster.processes.restarts import Restarts
from tao.cluster.processes.settings import SupervisorSettings, WorkerOrder
from tao.cluster.processes.signals import SignalFlags
from tao.cluster.processes.slots import Slot
from tao.cluster.processes.systemd import notify
from tao.cluster.processes.worker import STACKS_SIGNAL
from tao.cluster.sessions.sockets import SessionNames
from tao.runtime.log import logger

__all__ = ["Supervisor"]

# The exit statuses.
_DONE, _FAILED, _WRONG_CALL, _INTERRUPTED = 0, 1, 2, 130
# How often a worker gives a sign of life: every so many seconds, and so often within its timeout.
_BEAT, _BEATS = 0.5, 8
# Crashes in a minute that are too many, for each worker.
_CRASHES: Final = 5
# How much longer than its drain timeout a worker may take to stop, in seconds.
_MOMENT: Final = 10.0
# For how many generations of workers the load table has rows.
_ROWS: Final = 8
# How often to look after the workers, in seconds.
_LOOK: Final = 0.2


class Supervisor:
    """One group of workers. `run` is called once, in the main thread of the process.

    Args:
        settings: what it does.
        serving: called once, when all workers serve, with the addresses and what a worker has told.
        stopping: called once, when the stop begins.

    Raises:
        OSError: listening failed.
        TypeError, ValueError: an address is none.
    """

    def __init__(
        self,
        settings: SupervisorSettings,
        serving: Callable[[list[Any], dict[str, Any]], object] = lambda *_: None,
        stopping: Callable[[], object] = lambda: None,
    ) -> None:
        self._settings = settings
        self._serving = serving
        self._stopping = stopping
        #: Called when a worker has ended, with its number, its slot, and the figures that it has
        #: told last, or None. It may be set before `run`.
        self.on_gone: Callable[[int, int, Any], object] = lambda *_: None
        count = settings.processes
        self._numbers = itertools.count(1)
        self._slots: list[Slot[WorkerProcess]] = [
            Slot(each + 1, settings.drain_spread) for each in range(count)
        ]
        self._restarts = Restarts(settings.max_crashes or _CRASHES * count)
        # Rows of the load table that no worker has.
        self._rows: list[int] = list(range(_ROWS * count))
        self._hub = Hub()
        self._questions: dict[int, Question] = {}
        # Questions of other threads, on their way to this one. Changed in single steps.
        self._asked: deque[Question] = deque()
        self._status: int = _DONE
        self._announced: bool = False
        self._reloading: bool = False
        #: When the workers that are left are killed, monotonic; None: it is not stopping.
        self._stop_by: float | None = None
        # When to look after the workers again, monotonic, and how often to do that, in seconds.
        self._look_at: float = 0.0
        self._look_every: float = min(_LOOK, settings.worker_timeout / _BEATS)
        own_sockets = count if settings.reuse_port else None
        with ExitStack() as cleanup:
            self._listening = ListeningSockets(settings.addresses, settings.backlog, own_sockets)
            cleanup.callback(self._listening.close)
            self._pid_file = PidFile(settings.pid_file)
            self._load = LoadTable(len(self._rows))
            cleanup.callback(self._load.close)
            self._session_names = SessionNames()
            cleanup.callback(self._session_names.close)
            self._signals = SignalFlags()
            cleanup.pop_all()

    @property
    def addresses(self) -> list[Any]:
        """Where it listens."""
        return self._listening.addresses

    def run(self, started: Callable[[], object] = lambda: None) -> int:
        """Supervise until the end, and return the exit status.

        Args:
            started: called when the first workers are started: before, there is no other thread.
                What it raises ends the supervisor.

        Raises:
            OSError: the pid file cannot be written.
        """
        with ExitStack() as cleanup:
            cleanup.callback(self._close)
            # Signals are handled before anybody can know of the process, and until all is closed.
            with self._signals, cleanup.pop_all():
                self._pid_file.write()
                for slot in self._slots:
                    self._start(slot)
                started()
                while self._stop_by is None or any(self._workers()):
                    self._step()
        return self._status

    def _close(self) -> None:
        for worker in self._workers():
            worker.channel.close()  # so it knows that it is alone
        self._listening.close()
        self._hub.close()
        self._load.close()
        self._session_names.close()
        self._pid_file.remove()
        for question in [*self._asked, *self._questions.values()]:
            question.done.set()

    # -- for other threads

    def ask(self, what: str, query: dict[str, str], timeout: float) -> dict[int, Any]:
        """Ask all workers, and return their answers by number; those that do not answer are absent.

        Any thread but the supervisor's own may call this.
        """
        question = Question(what, query)
        self._asked.append(question)
        self._signals.ring()
        question.done.wait(timeout)
        return dict(question.answers)

    def slots_of_workers(self) -> dict[int, int]:
        """Return the number of each worker, with that of its slot."""
        return {each.order.number: each.order.slot for each in self._workers()}

    # -- the loop

    def _workers(self) -> Iterator[WorkerProcess]:
        return itertools.chain.from_iterable(list(slot.workers) for slot in self._slots)

    def _step(self) -> None:
        ready = self._wait()
        for worker in self._workers():
            if worker.channel.fileno() in ready:
                worker.channel.flush()
                for message in worker.channel.receive():
                    self._hear(worker, message)
        for member in list(self._hub.members):
            if member.fileno() in ready:
                self._hub.serve(member)
        # What follows takes longer: not after each publication.
        if self._signals.fileno() in ready or monotonic() >= self._look_at:
            self._look_at = monotonic() + self._look_every
            self._signals.clear()
            self._look()

    def _look(self) -> None:
        """See to everything else."""
        for worker in self._workers():
            if worker.process.poll() is not None:
                self._gone(worker)
        self._pass_questions()
        self._heed_signals()
        for worker in self._workers():
            self._watch(worker)
        for slot in self._slots:
            if slot.retry_at is not None and slot.retry_at <= monotonic():
                self._start(slot)

    def _wait(self) -> set[int]:
        """Wait, and return the descriptors that are ready."""
        poll = select.poll()
        poll.register(self._signals, select.POLLIN)
        for worker in self._workers():
            if not worker.channel.ended:
                poll.register(worker.channel, worker.channel.events)
        for member in self._hub.members:
            poll.register(member, member.events)
        left = max(0.0, self._look_at - monotonic())
        return {descriptor for descriptor, _ in poll.poll(left * 1000)}

    def _hear(self, worker: WorkerProcess, message: dict[str, Any]) -> None:
        worker.alive()
        match message:
            case {"beat": count}:
                worker.connections = count
            case {"ready": details}:
                self._ready(worker, details)
            case {"failed": why}:
                worker.failure = why
            case {"figures": figures}:
                worker.figures = figures
            case {"answer": number, "value": value}:
                if number in self._questions:
                    self._questions[number].answered(worker.order.number, value)

    def _heed_signals(self) -> None:
        flags = self._signals
        if flags.stops and self._stop_by is None:
            self._stop()  # first, also if a second one has come at the same time
        if flags.stops > 1 and self._status != _INTERRUPTED:
            logger.warning("stopping at once")
            self._status = _INTERRUPTED
            for worker in self._workers():
                worker.signal(signal.SIGKILL)
        if flags.take_reload() and self._stop_by is None:
            self._reload()

    # -- starting

    def _start(self, slot: Slot[WorkerProcess]) -> None:
        """Start a worker."""
        slot.retry_at = None
        try:
            worker = self._new_worker(slot.number)
        except OSError as error:  # out of descriptors, of processes, or of memory
            logger.error("a worker cannot be started: {}", error)
            if not any(slot.workers):
                self._crashed(slot)
        else:
            slot.started(worker)

    def _new_worker(self, slot: int) -> WorkerProcess:
        settings = self._settings
        with ExitStack() as cleanup:
            ours, theirs = map(cleanup.enter_context, socket.socketpair())
            near, far = map(cleanup.enter_context, socket.socketpair())
            order = WorkerOrder(
                number=next(self._numbers),
                slot=slot,
                control=theirs.fileno(),
                hub=far.fileno(),
                load=self._load.descriptor,
                row=self._rows.pop() if self._rows else -1,
                listening=self._listening.descriptors(slot),
                sessions=self._session_names.prefix,
                beat=min(_BEAT, settings.worker_timeout / _BEATS),
                search_path=list(settings.search_path),
            )
            cleanup.callback(self._free, order)
            process = start_worker(settings.command, order)
            cleanup.pop_all()
        theirs.close()
        far.close()
        return WorkerProcess(order, process, Channel(ours), self._hub.add(near))

    def _ready(self, worker: WorkerProcess, details: dict[str, Any]) -> None:
        if worker.state != "booting":
            return
        worker.state, worker.details = "ready", details
        slot = self._slots[worker.order.slot - 1]
        replaced = slot.current if worker is slot.successor else None
        slot.ready(worker)
        if replaced is not None:
            logger.info("{} is ready; {} drains", worker.name, replaced.name)
        if not self._announced and all(
            each.current is not None and each.current.state == "ready" for each in self._slots
        ):
            self._announced = True
            notify("READY")
            self._serving(self.addresses, details)
        self._end_reload()

    def _reload(self) -> None:
        """Start successors of all workers."""
        notify("RELOADING")
        self._reloading = True
        logger.info("reloading")
        for slot in self._slots:
            self._start(slot)
        self._end_reload()  # if none could be started

    def _end_reload(self) -> None:
        if self._reloading and not any(slot.successor for slot in self._slots):
            self._reloading = False
            notify("READY")

    # -- ending

    def _gone(self, worker: WorkerProcess) -> None:
        """A worker has ended."""
        self._see_off(worker)
        self._end_reload()

    def _see_off(self, worker: WorkerProcess) -> None:
        for message in worker.channel.receive():
            self._hear(worker, message)
        slot, booting = self._slots[worker.order.slot - 1], worker.state == "booting"
        is_successor = worker is slot.successor
        missing = slot.gone(worker)
        worker.channel.close()
        self._hub.remove(worker.member)
        self._free(worker.order)
        self.on_gone(worker.order.number, worker.order.slot, worker.figures)
        status = worker.process.returncode
        if worker.state == "leaving":
            if status and not worker.unready:
                logger.warning("{} {}", worker.name, worker.ending)
                self._status = self._status or (_FAILED if self._stop_by is not None else _DONE)
            return
        why = f"{worker.ending}: {worker.failure}" if worker.failure else worker.ending
        if booting and is_successor and slot.current is not None:
            logger.error("{} did not boot, it {}; {} stays", worker.name, why, slot.current.name)
        elif booting and not self._announced and status == _WRONG_CALL:
            logger.error("{} did not boot, it {}", worker.name, why)
            self._stop(_WRONG_CALL)
        elif self._stop_by is None:
            logger.error("{} {}", worker.name, why)
            if missing:
                self._crashed(slot)

    def _free(self, order: WorkerOrder) -> None:
        """Take back what a worker had."""
        if order.row >= 0:
            self._load.clear(order.row)
            self._rows.append(order.row)
        for question in self._questions.values():
            question.without(order.number)

    def _crashed(self, slot: Slot[WorkerProcess]) -> None:
        wait = self._restarts.crashed(slot.number)
        if self._restarts.too_many:
            logger.error("workers crash again and again: giving up")
            self._stop(_FAILED)
        else:
            logger.info("another worker starts in {:.1f} s", wait)
            slot.retry_at = monotonic() + wait

    def _watch(self, worker: WorkerProcess) -> None:
        """Deal with a worker that gives no sign of life, or does not stop."""
        silence, timeout = worker.silence, self._settings.worker_timeout
        late = self._stop_by is not None and monotonic() > self._stop_by
        if late or silence > timeout:
            why = "does not stop" if late else f"has not answered for {silence:.0f} s"
            logger.error("{} {}: killing it", worker.name, why)
            worker.signal(signal.SIGKILL)
            worker.alive()  # once is enough
        elif silence > timeout / 2 and not worker.dumped:
            logger.error("{} has not answered for {:.1f} s; its stacks:", worker.name, silence)
            worker.dumped = True
            worker.signal(STACKS_SIGNAL)

    def _stop(self, status: int = _DONE) -> None:
        """Have all workers stop gracefully."""
        self._status = self._status or status
        if self._stop_by is not None:
            return
        drains = [float(each.details.get("drain_timeout", 0)) for each in self._workers()]
        self._stop_by = monotonic() + max(drains, default=0.0) + _MOMENT
        notify("STOPPING")
        self._stopping()
        for slot in self._slots:
            slot.retry_at = None
        for worker in self._workers():
            worker.leave()

    # -- questions

    def _pass_questions(self) -> None:
        for number, question in dict(self._questions).items():
            if question.done.is_set():
                del self._questions[number]
        while self._asked:
            question = self._asked.popleft()
            workers = [each for each in self._workers() if each.state != "booting"]
            self._questions[question.number] = question
            for worker in workers:
                worker.channel.send(question.message)
            # One that gives no sign of life now is not waited for.
            late = 2 * min(_BEAT, self._settings.worker_timeout / _BEATS) + 0.5
            question.asked({each.order.number for each in workers if each.silence < late})
