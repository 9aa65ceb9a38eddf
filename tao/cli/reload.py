"""``tao serve --reload``: runs the server in a child process, restarted when a module changes.

A socket connects the two processes. On it the child reports which modules it has imported from
below the current directory. The parent closes its end when it is interrupted, sees a change or is
killed; then the child shuts down gracefully. A Ctrl-C at the terminal, which both processes get,
has the same effect.

The state of the files is recorded before the child starts, so changes during its imports are not
missed. A child that has ended by itself, usually because of an error in a module, may not have
reported all its files. Then a change to any Python file below the current directory counts.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable
from types import FrameType, ModuleType
from typing import Final

from tao.cli.common import DONE, FAILED, RELOAD_LINK, say
from tao.runtime.deadline import Deadline
from tao.runtime.threads import spawn
from tao.safe_text import FORMATTING_ERRORS
from tao.server.server import Server

__all__ = ["Link", "supervise"]

# How often both processes check for changes, in seconds.
_STEP: Final = 0.2
# How long a child may take to stop, in seconds; usually it needs its drain timeout at most.
_PATIENCE: Final = 60.0
# How long it may take after a second interrupt, in seconds.
_HASTE: Final = 2.0

# Follows each name of a file that the child reports; no name has it.
_END: Final = b"\0"

#: Modification time and size of a file; None if it does not exist.
_Stamp = tuple[int, int] | None


class Link:
    """The child's end; its thread ends with the process.

    Args:
        number: the descriptor of a socket connected to the parent.
    """

    def __init__(self, number: int) -> None:
        self._sock = socket.socket(fileno=number)
        self._sock.set_inheritable(False)
        self._told: set[str] = set()
        self._here = os.path.join(os.getcwd(), "")  # before the application goes elsewhere
        #: The server to stop; None until it has been found.
        self.server: Server | None = None
        spawn(self._run, name="tao-reload", failed=lambda _: self._run()).start()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        try:
            while not poll.poll(_STEP * 1000):
                files = set(_imported(self._here)) - self._told
                self._told |= files
                self._sock.sendall(b"".join(os.fsencode(name) + _END for name in files))
        except OSError:
            pass  # the parent was killed
        if self.server is None:
            os._exit(DONE)
        self.server.stop()


def _imported(here: str) -> Iterable[str]:
    """Yield the files of modules imported from below a directory."""
    for module in list(sys.modules.values()):
        file = _file_of(module)
        if isinstance(file, str) and "site-packages" not in file:
            path = os.path.normpath(os.path.join(here, file))
            if path.startswith(here):
                yield path


def _file_of(module: object) -> object:
    """Return the file of a module, or of what an application has put in the place of one."""
    try:
        if issubclass(type(module), ModuleType):
            # Not by getattr(), which may import one that is loaded lazily.
            return ModuleType.__getattribute__(module, "__dict__").get("__file__")
        return getattr(module, "__file__", None)
    except FORMATTING_ERRORS:  # computed by the application
        return None


def supervise(words: list[str]) -> int:
    """Run ``tao WORDS...`` in a child, and restart it after each change, until interrupted.

    Args:
        words: the command line, without ``--reload``.

    Returns:
        the exit status: the last child's if it was interrupted, else 0.
    """
    parent = _Parent(words)
    before = {
        number: signal.signal(number, parent.interrupt)
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        return parent.run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Parent:
    """The parent process of `supervise`."""

    def __init__(self, words: list[str]) -> None:
        self._words = words
        self._interrupts: int = 0
        self._noted: dict[str, _Stamp] = {}  # each file as it was before the child started
        self._watched: set[str] = set()  # the files that the child has imported
        self._partial = b""  # the beginning of the next file name

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        self._interrupts += 1

    def run(self) -> int:
        say(f"tao: restarts when a module below {os.getcwd()} changes")
        while True:
            self._noted = _all_files()
            ours, theirs = socket.socketpair()
            with ours:
                with theirs:
                    child = _start(self._words, theirs)
                changed = self._watch(child, ours)
            status = self._wait_for_end(child)
            if not changed and not self._interrupts:
                say(f"tao: ended with status {status}; restarts after the next change")
                changed = self._wait_for_a_change(ours=None)
                status = DONE
            if self._interrupts:
                return status if status >= 0 else FAILED
            say(f"tao: {os.path.relpath(changed)} has changed")

    def _watch(self, child: subprocess.Popen[bytes], ours: socket.socket) -> str:
        """Return the changed file; "" if interrupted or the child has ended."""
        self._watched, self._partial = set(), b""
        return self._wait_for_a_change(ours, child)

    def _wait_for_a_change(
        self, ours: socket.socket | None, child: subprocess.Popen[bytes] | None = None
    ) -> str:
        poll = select.poll()
        if ours is not None:
            poll.register(ours, select.POLLIN)
        while not self._interrupts:
            came = poll.poll(_STEP * 1000)
            if ours is not None and came and not self._listen(ours):
                return ""
            if child is not None and child.poll() is not None:
                return ""
            changed = self._changed(everywhere=child is None)
            if changed:
                self._settle(poll, changed)
                return changed
        return ""

    def _listen(self, ours: socket.socket) -> bool:
        """Record the files that the child reports; return False if it has ended."""
        try:
            data = ours.recv(65536)
        except OSError:
            return False
        *names, self._partial = (self._partial + data).split(_END)
        for name in names:
            path = os.fsdecode(name)
            self._watched.add(path)
            if path not in self._noted:
                self._noted[path] = _stamp(path)
        return bool(data)

    def _changed(self, *, everywhere: bool) -> str:
        """Return a file that has changed since it was recorded, or "" if there is none."""
        if everywhere:
            now = _all_files()
            names = sorted(self._noted.keys() | now.keys() | self._watched)
        else:
            now, names = {}, sorted(self._watched)
        for name in names:
            if self._noted.get(name) != (now.get(name) or _stamp(name)):
                return name
        return ""

    def _settle(self, poll: select.poll, name: str) -> None:
        """Wait until a file has not changed for one step, as it may still be being written."""
        before = _stamp(name)
        while not self._interrupts:
            poll.poll(_STEP * 500)
            now = _stamp(name)
            if now == before:
                return
            before = now

    def _wait_for_end(self, child: subprocess.Popen[bytes]) -> int:
        """Wait for a child that is stopping; return its exit status."""
        deadline = Deadline(_PATIENCE)
        hurry: Deadline | None = None
        while True:
            try:
                return child.wait(_STEP / 4)
            except subprocess.TimeoutExpired:
                pass
            if self._interrupts > 1 and hurry is None:
                hurry = Deadline(_HASTE)
            if deadline.expired or (hurry is not None and hurry.expired):
                child.kill()


def _start(words: list[str], theirs: socket.socket) -> subprocess.Popen[bytes]:
    number = theirs.fileno()
    return subprocess.Popen(
        [sys.executable, "-m", "tao", *words],
        env={**os.environ, RELOAD_LINK: str(number)},
        pass_fds=(number,),
    )


def _all_files() -> dict[str, _Stamp]:
    """Return the Python files below the current directory, without virtual environments."""
    found: dict[str, _Stamp] = {}
    for directory, below, files in os.walk(os.getcwd()):
        if "pyvenv.cfg" in files:
            below.clear()
            continue
        below[:] = [
            name
            for name in below
            if not name.startswith(".") and name not in ("__pycache__", "node_modules")
        ]
        for name in files:
            if name.endswith(".py"):
                path = os.path.join(directory, name)
                found[path] = _stamp(path)
    return found


def _stamp(path: str) -> _Stamp:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
