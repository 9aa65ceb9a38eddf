"""Interrupting a call at each of its bytecodes, as signal handlers and finalizers do.

CPython runs signal handlers, finalizers and exceptions set by another thread between two bytecodes
of whatever a thread is doing. `opcodes` tries all of these moments, one after another::

    for moment in opcodes("tao.runtime.timing_wheel", "tao.runtime.wakeup"):
        wheel = TimingWheel()
        with moment.raising(KeyboardInterrupt):
            wheel.run_after(1, print)
        assert wheel.size <= 1, moment  # ... whatever must be true, interrupted or not
        wheel.stop()

In the first round it strikes before the first bytecode that is executed in a function of these
modules, in the second before the second, and so on. The rounds end with the one in which the block
came to its end before anything was struck, so the last round is one without interruption.

``moment.calling(function)`` calls a function there, as a signal handler or a finalizer would, and
lets the interrupted code go on. With ``thread="name"`` it is not the calling thread that is struck,
but threads of this name that are started inside the block.
"""

from __future__ import annotations

import ctypes
import dis
import functools
import gc
import inspect
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import CodeType, FrameType, FunctionType
from typing import Any

from tests.support import wait_until

__all__ = ["Interruption", "Moment", "interrupting", "opcodes", "raise_in"]

Step = Callable[[CodeType, int], bool]


class Interruption(BaseException):
    """What is raised, unless a test wants another: nothing that tao could expect."""


class Moment:
    """One round: the bytecode with this number, of all that are executed in the modules.

    Attributes:
        number: counted from 0.
        struck: whether that many were executed, so that it has struck.
        place: where it struck, for people.
        possible: whether an exception from outside can come there. The interpreter looks for
            signals, and the like, only after calls, and where functions and loops begin.
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
        """Raise the error at this moment of the block; it ends the block, and no more."""

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
        """Before a bytecode: strike if it is the one; tell whether more are of interest."""
        strike, number = self._strike, self._passed
        lines = [line for start, end, line in code.co_lines() if start <= offset < end]
        if lines == [None] and code.co_flags & inspect.CO_GENERATOR:
            return strike is not None  # it is being closed by its destructor, which cannot raise
        self._passed += 1
        if strike is None or number != self.number:
            return strike is not None
        self._strike = None
        self.struck = True
        self.possible = offset in _offsets_of_checks(code)
        self.place = f"{code.co_filename}:{lines} in {code.co_name}, {offset}"
        strike()
        return False

    def __repr__(self) -> str:
        return f"<bytecode {self.number}: {self.place}>"


@functools.cache
def _offsets_of_checks(code: CodeType) -> set[int]:
    """Return before which bytecodes the interpreter looks for signals."""
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


def opcodes(*modules: str, first: int = 0, most: int = 20_000, step: int = 1) -> Iterator[Moment]:
    """Yield one `Moment` after another until one has not struck.

    Args:
        modules: the names of the modules in whose functions it strikes.
        first: with which bytecode to begin.
        most: how many bytecodes there may be, lest a test never ends.
        step: try every so-manyth, where each would take too long.
    """
    for number in range(first, first + most, step):
        moment = Moment(number, modules)
        yield moment
        if not moment.struck:
            return
    raise AssertionError(f"the block has more than {most} bytecodes")


@contextmanager
def _tracing(modules: tuple[str, ...], thread: str | None, step: Step) -> Iterator[None]:
    """Call ``step`` before each bytecode, up to CPython 3.11."""

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
    """Call ``step`` before each bytecode, from CPython 3.12 on, where tracing may crash it."""
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
    """The code of all functions of the modules, with those inside of others."""
    codes = [
        item.__code__
        for item in gc.get_objects()
        if isinstance(item, FunctionType) and item.__module__ in modules
    ]
    for code in codes:  # which grows
        codes += [const for const in code.co_consts if isinstance(const, CodeType)]
    return codes


def raise_in(thread: threading.Thread | None, error: type[BaseException]) -> None:
    """Have an exception raised in a thread, as libraries for timeouts do."""
    if thread is not None and thread.ident is not None:
        number, kind = ctypes.c_ulong(thread.ident), ctypes.py_object(error)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(number, kind)


@contextmanager
def interrupting(when: Callable[[], object]) -> Iterator[None]:
    """Have a signal handler raise an exception in the main thread, which ends the block.

    Args:
        when: tells when; as soon as it returns something true.
    """
    raised = threading.Event()

    def strike(*_: object) -> None:
        if not raised.is_set():
            raised.set()
            raise Interruption

    def send() -> None:
        wait_until(when)
        while not raised.wait(0.01):  # it may come just before the thread blocks
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
