"""Interrupt a call at each of its bytecodes, as signal handlers and finalizers do.

CPython runs signal handlers, finalizers and exceptions set by another thread between two bytecodes
of whatever a thread is executing. `opcodes` tries all of these moments, one after another::

    for moment in opcodes("tao.runtime.timing_wheel", "tao.runtime.wakeup"):
        wheel = TimingWheel()
        with moment.raising(KeyboardInterrupt):
            wheel.run_after(1, print)
        assert wheel.size <= 1, moment  # ... an invariant that holds in either case
        wheel.stop()

The first round interrupts before the first bytecode that is executed in a function of these
modules, the second round before the second, and so on. The last round is the one in which the
block ends before its bytecode is reached, so it runs without an interruption.

``moment.calling(function)`` calls a function at that point, as a signal handler or a finalizer
would, and then the interrupted code continues. With ``thread="name"``, it interrupts threads of
this name that are started inside the block, instead of the calling thread.
"""

from __future__ import annotations

import ctypes
import dis
import functools
import gc
import importlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import CodeType, FrameType, FunctionType
from typing import Any

import pytest

from tests.support import wait_until

__all__ = ["Interruption", "Moment", "interrupting", "opcodes", "raise_in", "skip_if_traced"]

Step = Callable[[CodeType, int], bool]


class Interruption(BaseException):
    """The exception raised by default, which no code of tao expects."""


class Moment:
    """One round: an interruption before one of the bytecodes that are executed in the modules.

    Attributes:
        number: the number of the bytecode, from 0.
        struck: whether the bytecode was reached and the interruption took place.
        place: where it took place, for error messages.
        possible: whether an asynchronous exception can occur there. The interpreter checks for
            signals only after calls, and at the beginning of functions and loops.
    """

    def __init__(self, number: int, modules: tuple[str, ...]) -> None:
        self.number: int = number
        self.struck: bool = False
        self.place: str = "nowhere"
        self.possible: bool = True
        self._modules: tuple[str, ...] = modules
        self._passed: int = 0
        self._strike: Callable[[], object] | None = None

    @contextmanager
    def raising(
        self, error: type[BaseException] = Interruption, thread: str | None = None
    ) -> Iterator[None]:
        """Raise the error at this moment of the block; suppress it at the end of the block."""

        def strike() -> None:
            raise error(f"raised at {self.place}")

        with self.calling(strike, thread):
            try:
                yield
            except error:
                if not self.struck or thread is not None:
                    raise

    @contextmanager
    def calling(self, function: Callable[[], object], thread: str | None = None) -> Iterator[None]:
        """Call the function at this moment of the block."""
        self._strike = function
        watch = _monitoring if sys.version_info >= (3, 12) else _tracing
        with watch(self._modules, thread, self._step):
            yield
        self._strike = None

    def _step(self, code: CodeType, offset: int) -> bool:
        """Interrupt if this is the bytecode; return whether further bytecodes are of interest."""
        strike, number = self._strike, self._passed
        if offset in _offsets_of_ends(code):
            return strike is not None
        self._passed += 1
        if strike is None or number != self.number:
            return strike is not None
        self._strike = None
        self.struck = True
        self.possible = offset in _offsets_of_checks(code)
        lines = [line for start, end, line in code.co_lines() if start <= offset < end]
        self.place = f"{code.co_filename}:{lines} in {code.co_name}, {offset}"
        strike()
        return False

    def __repr__(self) -> str:
        return f"<bytecode {self.number}: {self.place}>"


@functools.cache
def _offsets_of_checks(code: CodeType) -> set[int]:
    """Return the offsets of the bytecodes before which the interpreter checks for signals."""
    offsets, before = set[int](), ""
    for instruction in dis.get_instructions(code):
        name = instruction.opname
        if name == "CACHE":
            continue
        begins = name == "RESUME" or name.startswith(("JUMP_BACKWARD", "JUMP_ABSOLUTE"))
        if begins or (before.startswith("CALL") and name != "PUSH_EXC_INFO"):
            offsets.add(instruction.offset)
        before = name
    return offsets


@functools.cache
def _offsets_of_ends(code: CodeType) -> set[int]:
    """Return the offsets of the bytecodes that begin or end ``except`` clauses, or have no line.

    No exception can occur there. One that is raised nevertheless would leave the exception that was
    handled in ``sys.exc_info()`` of the thread for ever.
    """
    instructions = dis.get_instructions(code)
    offsets = {
        each.offset for each in instructions if each.opname in ("PUSH_EXC_INFO", "POP_EXCEPT")
    }
    for start, end, line in code.co_lines():
        if line is None:
            offsets.update(range(start, end))
    return offsets


def opcodes(*modules: str, first: int = 0, most: int = 20_000, step: int = 1) -> Iterator[Moment]:
    """Yield one `Moment` after another until one is not reached.

    Args:
        modules: the names of the modules in which functions are interrupted.
        first: the number of the first bytecode.
        most: the maximum number of bytecodes, so that a test cannot run forever.
        step: try only every ``step``-th bytecode, for tests that would take too long.
    """
    for name in modules:
        importlib.import_module(name)  # a wrong name would interrupt nothing
    for number in range(first, first + most, step):
        moment = Moment(number, modules)
        yield moment
        if not moment.struck:
            return
    raise AssertionError(f"the block has more than {most} bytecodes")


@contextmanager
def _tracing(modules: tuple[str, ...], thread: str | None, step: Step) -> Iterator[None]:
    """Call ``step`` before each bytecode, for CPython up to 3.11."""

    def trace_call(frame: FrameType, event: str, arg: Any) -> Any:
        if thread is not None and threading.current_thread().name != thread:
            sys.settrace(None)
        elif frame.f_globals.get("__name__") in modules:
            frame.f_trace_lines, frame.f_trace_opcodes = False, True
            return trace_opcode
        return None

    def trace_opcode(frame: FrameType, event: str, arg: Any) -> Any:
        if event == "opcode" and not step(frame.f_code, frame.f_lasti):
            sys.settrace(None)
            return None
        return trace_opcode

    before = sys.gettrace()
    if thread is None:
        sys.settrace(trace_call)
    else:
        threading.settrace(trace_call)
    try:
        yield
    finally:
        if thread is None:
            sys.settrace(before)
        else:
            threading.settrace(before)  # type: ignore[arg-type]


@contextmanager
def _monitoring(modules: tuple[str, ...], thread: str | None, step: Step) -> Iterator[None]:
    """Call ``step`` before each bytecode, from CPython 3.12 on, where tracing may crash."""
    monitoring: Any = sys.monitoring  # type: ignore[attr-defined]
    tool, event = monitoring.PROFILER_ID, monitoring.events.INSTRUCTION
    caller = threading.get_ident()

    def on_instruction(code: CodeType, offset: int) -> None:
        if thread is None:
            concerned = threading.get_ident() == caller
        else:
            concerned = threading.current_thread().name == thread
        if concerned:
            step(code, offset)

    codes = _codes_of(modules)
    monitoring.use_tool_id(tool, "tests.injection")
    monitoring.register_callback(tool, event, on_instruction)
    for code in codes:
        monitoring.set_local_events(tool, code, event)
    try:
        yield
    finally:
        for code in codes:
            monitoring.set_local_events(tool, code, 0)
        monitoring.register_callback(tool, event, None)
        monitoring.free_tool_id(tool)


@functools.cache
def _codes_of(modules: tuple[str, ...]) -> list[CodeType]:
    """Return the code objects of all functions of the modules, including nested ones."""
    codes = [
        item.__code__
        for item in gc.get_objects()
        if isinstance(item, FunctionType) and item.__module__ in modules
    ]
    for code in codes:  # the list grows during the loop
        codes += [const for const in code.co_consts if isinstance(const, CodeType)]
    return codes


def skip_if_traced() -> None:
    """Skip a test that raises exceptions asynchronously if threads are traced or profiled.

    They could end the code of a coverage tool while it holds a lock that all threads need. And in
    CPython 3.11, profiled threads spin while an idle thread has not taken its exception.
    """
    if sys.gettrace() is not None or threading.getprofile() is not None:
        pytest.skip("no asynchronous exceptions while threads are traced or profiled")


def raise_in(thread: threading.Thread | None, error: type[BaseException]) -> None:
    """Raise an exception in a thread asynchronously, as libraries for timeouts do."""
    skip_if_traced()
    if thread is not None and thread.ident is not None:
        number, kind = ctypes.c_ulong(thread.ident), ctypes.py_object(error)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(number, kind)


@contextmanager
def interrupting(when: Callable[[], object]) -> Iterator[None]:
    """Raise an exception in the main thread from a signal handler, which ends the block.

    Args:
        when: polled by another thread; the signal is sent once it returns a true value.
    """
    raised = threading.Event()

    def strike(*_: object) -> None:
        if not raised.is_set():
            raised.set()
            raise Interruption

    def send() -> None:
        wait_until(when)
        while not raised.wait(0.01):  # the signal may arrive just before the thread blocks
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, strike)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        with suppress(Interruption):
            yield
            raise AssertionError("the block came to its end")
    finally:
        sender.join()
        signal.signal(signal.SIGUSR1, before)
