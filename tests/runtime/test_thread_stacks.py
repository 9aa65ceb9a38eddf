"""Listing the stacks of threads, while finalizers start threads."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading

from tao.runtime.thread_stacks import frames_by_thread
from tests.programs import LONG, ROOT

FINALIZERS = """
import _thread, gc, threading
from tao.connection.handling.slow_handlers import current_frames

class Cycle:
    def __init__(self):
        self.itself = self

    def __del__(self):
        _thread.start_new_thread(int, ())

stop = threading.Event()
for _ in range(20):
    threading.Thread(target=stop.wait).start()
gc.set_threshold(10, 1, 1)
for number in range(500):
    garbage = [[] for _ in range(number % 11)]  # so that the collector runs at any moment
    Cycle()
    Cycle()
    current_frames()
assert gc.isenabled()
gc.set_threshold(0)
stop.set()
print("listed")
"""


def test_finalizers_that_start_threads() -> None:
    """The garbage collector may run at any moment, and the process does not dead-lock."""
    done = subprocess.run(
        [sys.executable, "-c", FINALIZERS], cwd=ROOT, capture_output=True, text=True, timeout=LONG
    )
    assert done.stdout == "listed\n", done.stderr


WALK = """
import gc, sys, threading, time
from tao.connection.handling.slow_handlers import calls_handlers, running_in

class Cycle:
    def __init__(self):
        self.itself = self

    def __del__(self):
        time.sleep(0)  # so that others run

class Runner:
    pending, progress = 1, (0, 0)

    def since(self):
        return (0, 0), 0.0

    @calls_handlers
    def run(self, number, depth):
        if depth:
            self.run(number, depth - 1)

def run():
    while not stop.is_set():
        runner.run(1, 30)

stop, runner = threading.Event(), Runner()
threads = [threading.Thread(target=run) for _ in range(4)]
for thread in threads:
    thread.start()
sys.setswitchinterval(1e-5)
for number in range(1500):
    gc.set_threshold(3 + number % 120, 1, 1)  # so that the collector runs at any moment
    Cycle()
    Cycle()
    assert all(found.number == 1 for found in running_in([runner]).values())
gc.set_threshold(0)
stop.set()
print("walked")
"""


def test_finalizers_while_the_stacks_of_running_threads_are_walked() -> None:
    """They let those threads leave the frames that are being looked at."""
    done = subprocess.run(
        [sys.executable, "-c", WALK], cwd=ROOT, capture_output=True, text=True, timeout=LONG
    )
    assert done.stdout == "walked\n", (done.returncode, done.stderr)


def test_the_collector_stays_as_it_was() -> None:
    """It is on afterwards, or off, also if many threads list the stacks."""
    threads = [
        threading.Thread(target=lambda: [frames_by_thread() for _ in range(100)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert gc.isenabled()
    gc.disable()
    try:
        assert threading.get_ident() in frames_by_thread()
        assert not gc.isenabled()
    finally:
        gc.enable()
