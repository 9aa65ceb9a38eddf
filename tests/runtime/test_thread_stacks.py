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
