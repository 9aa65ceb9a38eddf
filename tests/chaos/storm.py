"""``python -m tests.chaos.storm``: what interrupts a program strikes tao, everywhere and at random.

- ``signals``: handlers of SIGALRM raise in the main thread, while it uses servers and clients.
- ``threads``: exceptions are raised in tao's own threads (``PyThreadState_SetAsyncExc``).
- ``finalizers``: objects in reference cycles write and broadcast when they are collected.

It goes in rounds: a server and its clients live through some of these, with TLS or without, with
readers of their own or shared ones. When that is over, newcomers must be served, the server must
stop, and nothing may be left: no thread, no descriptor, no user of the shared timing wheel.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import gc
import itertools
import os
import random
import signal
import socket
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

from tao.client.client import ClientConn
from tao.errors import TaoError
from tao.runtime.thread_stacks import frames_by_thread
from tao.runtime.thread_start import StartableThread
from tao.runtime.timing_wheel import shared_wheel
from tao.server.server import Server
from tao.wire.message import Registry
from tests.support import PATIENCE, wait_until
from tests.tls_pairs import CLIENT, SERVER

KINDS = ("signals", "threads", "finalizers")
SIZES = (0, 10, 1_000, 40_000, 400_000)
# How many clients live at once, and how long a round is, in seconds.
CLIENTS, ROUND = 4, 0.5
# How long until the next strike, in seconds, at least and at most.
SOON, LATE = 0.0002, 0.004
# Where a strike breaks the standard library, and not tao: where a descriptor is a mere number, ...
NUMBERS = socket.__file__
# ... and where the interpreter runs a finalizer, which it does once.
FINALIZERS = {weakref.finalize.__call__.__code__, ClientConn.__del__.__code__}


class Strike(BaseException):
    """What is raised: nothing that tao could expect."""


class Blob:
    """A message of any bytes."""

    message_number = 3

    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data

    @classmethod
    def deserialize(cls, data: bytes) -> Blob:
        return cls(bytes(data))


class Cycle:
    """An object that only the garbage collector ends, wherever it runs; then it writes."""

    ended = 0

    def __init__(self, conn: Any, server: Server) -> None:
        self._conn, self._server, self._itself = conn, server, self

    def __del__(self) -> None:
        Cycle.ended += 1
        try:
            self._conn.write(Blob(b"finalizer"), timeout=0.0)
        except TaoError:
            pass  # it is closed, or full
        if Cycle.ended % 50 == 0:
            self._server.broadcast(Blob(b"broadcast"))


class Alarms:
    """Raises in the main thread at random moments, but only inside of `attempt`."""

    def __init__(self, fate: random.Random, on: bool) -> None:
        self._fate, self._on = fate, on
        self._armed: list[bool] = []  # one for each strike that may come
        self.strikes = 0

    @contextmanager
    def ringing(self) -> Iterator[None]:
        before = signal.signal(signal.SIGALRM, self._ring)
        self._wind_up()
        try:
            yield
        finally:
            self._on = False  # a signal that came already would wind it up again
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def _wind_up(self) -> None:
        if self._on:
            signal.setitimer(signal.ITIMER_REAL, self._fate.uniform(SOON, LATE))

    def _ring(self, number: int, frame: FrameType | None) -> None:
        self._wind_up()
        if self._armed and not spared(frame) and self._disarm():
            self.strikes += 1
            raise Strike

    def _disarm(self) -> bool:
        """Take one strike; return whether there was one left."""
        try:
            return self._armed.pop()
        except IndexError:
            return False  # another signal has interrupted this one, and taken it

    def attempt(self, call: Callable[[], object]) -> None:
        """Call a function, which may be struck, and once more while it recovers from that."""
        try:
            try:
                self._armed.extend([True, True])
                call()
            finally:
                self._armed.clear()
        except (Strike, TaoError, RuntimeError):
            self._armed.clear()


class Lightning:
    """Raises in tao's threads, from a thread of its own, in a ``with`` block."""

    def __init__(self, fate: random.Random, on: bool) -> None:
        self._fate, self._on = fate, on
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="storm-lightning")
        self.strikes: Counter[str] = Counter()

    def __enter__(self) -> Lightning:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._thread.join()
        for ident in frames_by_thread():
            _raise_in(ident, None)  # what has not come yet does not come any more

    def _run(self) -> None:
        while not self._over.wait(self._fate.uniform(SOON, LATE)):
            threads = [each for each in threading.enumerate() if isinstance(each, StartableThread)]
            if self._on and threads:
                self._strike(self._fate.choice(threads))

    def _strike(self, thread: Any) -> None:
        """Strike a thread that has begun its work and not ended it, unless it is to be spared."""
        with alone():
            at_work = thread._begun.is_set() and not thread._done.is_set()
            if at_work and not spared(frames_by_thread().get(thread.ident or 0)):
                self.strikes[thread.name.rstrip("-0123456789_")] += 1
                _raise_in(thread.ident or 0, Strike)


@contextmanager
def alone() -> Iterator[None]:
    """Have no other thread run Python code, so that the stack of another can be looked at."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)
    try:
        time.sleep(0)  # lets the others begin to wait with the new interval
        yield
    finally:
        sys.setswitchinterval(interval)


def spared(frame: FrameType | None) -> bool:
    """Tell whether a strike would break the standard library here, and not tao."""
    codes = list(_codes(frame))
    return not codes or codes[0].co_filename == NUMBERS or not FINALIZERS.isdisjoint(codes)


def _codes(frame: FrameType | None) -> Iterator[CodeType]:
    """Yield the code that runs, innermost first."""
    while frame is not None:
        yield frame.f_code
        frame = frame.f_back


def _raise_in(ident: int, error: type[BaseException] | None) -> None:
    kind = ctypes.py_object(error) if error is not None else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), kind)


class Round:
    """The life of one server and its clients.

    Args:
        fate: of everything.
        kinds: what strikes.
    """

    def __init__(self, fate: random.Random, kinds: list[str]) -> None:
        self._fate = fate
        self._tls = fate.random() < 0.5
        self._readers = fate.choice(["own", "shared"])
        self._finalizers = "finalizers" in kinds
        self.alarms = Alarms(fate, "signals" in kinds)
        self.lightning = Lightning(fate, "threads" in kinds)
        self.server = Server(
            registry=self._registry(reply=True),
            dispatch=fate.choice(["auto", "pool", "inline"]),
            readers=self._readers,
            heartbeat=0.05,
            drain_timeout=0.5,
            tls=SERVER if self._tls else None,
        )
        self.address = self.server.start(("127.0.0.1", 0))
        self.clients: list[ClientConn] = []
        self.timers: list[tuple[Any, int]] = []

    def _registry(self, *, reply: bool) -> Registry:
        registry, count = Registry(), itertools.count(1)

        @registry.handler(Blob)
        def handle(ctx: Any, conn: Any) -> None:
            # Not for each message: what is written has another made at the other end.
            if self._finalizers and next(count) % 4 == 0:
                Cycle(conn, self.server)
            if reply:
                conn.write(ctx.message)

        return registry

    def run(self, seconds: float) -> None:
        """Use the server until the time is over."""
        calls = (self._open, self._close, self._write, self._write, self._write, self._set_timer,
                 self._cancel_timer, self._broadcast, self._look, self._abort)  # fmt: skip
        end = time.monotonic() + seconds
        with self.lightning, self.alarms.ringing():
            while time.monotonic() < end:
                self.alarms.attempt(self._fate.choice(calls))
        self._finalizers = False

    def _open(self) -> None:
        if len(self.clients) < CLIENTS:
            self.clients.append(self.client())
            self.clients[-1].start()

    def client(self, **options: Any) -> ClientConn:
        """A client that is not started yet."""
        return ClientConn(
            ("localhost", self.address[1]),
            registry=options.pop("registry", None) or self._registry(reply=False),
            tls=CLIENT if self._tls else None,
            readers=self._readers,
            drain_timeout=0.5,
            reconnect=self._fate.random() < 0.3,
            **options,
        )

    def _any(self) -> Any:
        """A connection, of either end."""
        conns = [*self.clients, *self.server.connections]
        return self._fate.choice(conns) if conns else self.client()

    def _close(self) -> None:
        if len(self.clients) == CLIENTS:
            client = self.clients[0]
            client.close()
            self.clients.remove(client)

    def _abort(self) -> None:
        if self._fate.random() < 0.1:
            self._any().abort()

    def _write(self) -> None:
        conn = self._any()
        if self._finalizers:
            Cycle(conn, self.server)
        timeout = self._fate.choice([None, 0.0, 0.01])
        conn.write(Blob(bytes(self._fate.choice(SIZES))), timeout)

    def _set_timer(self) -> None:
        if len(self.timers) > 50:
            return
        conn, once = self._any(), self._fate.random() < 0.5
        run = conn.run_after if once else conn.run_every
        self.timers.append((conn, run(self._fate.uniform(0.001, 0.02), self._fire)))
        schedule = self.server.schedule(0.01, self._fire)
        self.server.cancel_schedule(schedule)

    def _fire(self, due: Any, conn: Any) -> None:
        conn.write(Blob(b"timer"))

    def _cancel_timer(self) -> None:
        if self.timers:
            conn, timer = self.timers.pop()
            conn.cancel_timer(timer)

    def _broadcast(self) -> None:
        self.server.broadcast(Blob(b"broadcast"))

    def _look(self) -> None:
        self.server.snapshot()
        repr(self.server.connections)

    def end(self) -> Iterator[str]:
        """See that newcomers are served, and stop; yield what was not as it should be."""
        for _ in range(3):
            if not self._serves_a_newcomer():
                yield "a newcomer is not served"
        for client in self.clients:
            client.close()
            if not client.wait_closed(PATIENCE):
                yield f"a client does not end: {client}"
        report = self.server.stop(PATIENCE)
        if not report.finished or report.threads:
            yield f"the stop did not end: {report}"

    def _serves_a_newcomer(self) -> bool:
        replied, fired, registry = threading.Event(), threading.Event(), Registry()

        @registry.handler(Blob)
        def hear(ctx: Any, conn: Any) -> None:
            if ctx.message.data == b"newcomer":
                replied.set()

        with self.client(registry=registry) as client:
            client.run_after(0.001, lambda due, conn: fired.set())
            client.write(Blob(b"newcomer"))
            return replied.wait(PATIENCE) and fired.wait(PATIENCE)


def left(descriptors: set[str]) -> list[str]:
    """Tell what is left of tao's, beside the descriptors that there were before."""
    gc.collect()
    found = [name for name in _thread_names() if name.startswith("tao-")]
    found += [f"descriptor {each}" for each in _descriptors() - descriptors]
    found += ["a user of the shared wheel"] * len(shared_wheel._users)
    return found


def _thread_names() -> list[str]:
    """Return the names of the threads that the operating system still has."""
    alive = set(map(int, os.listdir("/proc/self/task")))
    return [each.name for each in threading.enumerate() if each.native_id in alive]


def _descriptors() -> set[str]:
    found = set[str]()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
        except OSError:
            pass  # that of the listing itself
    return found


def storm(seconds: float, seed: int, kinds: list[str]) -> list[str]:
    """Have it blow for so long, and return what was not as it should be afterwards."""
    fate, broken, total = random.Random(seed), list[str](), Counter[str]()
    end = time.monotonic() + seconds
    descriptors = _descriptors()
    while time.monotonic() < end and not broken:
        faulthandler.dump_traceback_later(ROUND + 8 * PATIENCE, exit=True)  # if it hangs
        these = fate.sample(kinds, fate.randint(1, len(kinds)))
        one = Round(fate, these)
        one.run(ROUND)
        broken += [f"{text}, after {these}" for text in one.end()]
        total += one.lightning.strikes
        total["main thread"] += one.alarms.strikes
        del one
        try:
            wait_until(lambda: not left(descriptors), 5.0)
        except AssertionError:
            broken += [f"left behind after {these}: {each}" for each in left(descriptors)]
    total["finalizers"] = Cycle.ended
    faulthandler.cancel_dump_traceback_later()
    for name, count in sorted(total.items()):
        print(f"{name:24}{count:8}")
    return broken


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.storm", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    options = parser.parse_args()
    gc.set_threshold(50, 5, 5)
    sys.unraisablehook = lambda _: None  # strikes in finalizers end there
    print(f"seed {options.seed}, {options.seconds:g} s of {', '.join(options.kinds)}", flush=True)
    broken = storm(options.seconds, options.seed, list(options.kinds))
    for text in broken:
        print(f"BROKEN: {text}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
