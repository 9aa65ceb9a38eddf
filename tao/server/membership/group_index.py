"""Who is in which group: an index of names, kept for all connections of a server.

Guarantees:

- When `join` has returned, the connection is found under the name; when `leave` has, it is not.
- Of a connection that `forget` was called for nothing is left, also if it joins at that moment, as
  long as its ``closed`` was set before.
- A name without connections takes no memory.

Any thread may call any method at any moment, also in a signal handler or a finalizer. One that
interrupts a change on its own thread returns before its own change is made; the interrupted call
makes it when it goes on.

Mechanism: flat combining, see ``runtime/combining.py``. A change is noted in one step, and made by
the thread that has the turn. It can be made again if an exception interrupts it. Readers need no
turn: they copy a dict in one step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from tao.runtime.combining import Combiner
from tao.server.membership.names import Member

__all__ = ["GroupIndex"]

MemberT = TypeVar("MemberT", bound=Member)


class GroupIndex(Generic[MemberT]):
    """The groups of one server. Names are checked by the caller, see ``names.py``."""

    __slots__ = ("_changed", "_changes", "_combiner", "_members", "_names", "_report", "_used")

    def __init__(self) -> None:
        # The number of a connection, a group, and what joins it. Without the last it leaves the
        # group; without a group it leaves all, for good. Any thread appends, in one step; the
        # thread that has the turn removes what it has done.
        self._changes: deque[tuple[int, str | None, MemberT | None]] = deque()
        # Changed by the thread that has the turn; any thread may copy one of the inner dicts.
        self._members: dict[str, dict[int, MemberT]] = {}
        self._names: dict[int, dict[str, None]] = {}
        self._used: bool = False  # whether anything was ever noted; set before that
        self._combiner = Combiner(self._make_changes, lambda: None, lambda: None)
        # What counts are reported to, and the groups whose count is to be reported, by change: each
        # is added in the turn, and removed by any thread that has reported it.
        self._report: Callable[[str, int], object] | None = None
        self._changed: dict[object, str] = {}

    def __len__(self) -> int:
        """How many groups have members."""
        return len(self._members)

    def join(self, member: MemberT, name: str) -> None:
        """Add a connection to a group, unless it is closed."""
        self._change(member.net_id, name, member)
        self._report_counts()

    def leave(self, net_id: int, name: str) -> None:
        """Remove a connection from a group, if it is a member."""
        if self._used:
            self._change(net_id, name, None)
            self._report_counts()

    def forget(self, net_id: int) -> None:
        """Remove a connection, which is closed, from all of its groups."""
        # One that is first to join, and has not set this yet, will find itself closed.
        if self._used:
            self._change(net_id, None, None)
            self._report_counts()

    def members(self, name: str) -> list[MemberT]:
        """Return the members of a group, in the order in which they joined."""
        members = self._members.get(name)
        return [] if members is None else list(members.values())

    def names(self, net_id: int) -> frozenset[str]:
        """Return the groups of a connection."""
        names = self._names.get(net_id)
        return frozenset() if names is None else frozenset(list(names))

    def has_room(self, net_id: int, name: str, most: int) -> bool:
        """Whether a connection is in a group, or in fewer than ``most``."""
        names = self._names.get(net_id)
        return names is None or len(names) < most or name in names

    def count(self, name: str) -> int:
        """Return how many members a group has."""
        members = self._members.get(name)
        return 0 if members is None else len(members)

    def report_counts_to(self, report: Callable[[str, int], object]) -> None:
        """Have a function called with a group and its count after each change. It must not wait.

        Several threads may call it at once; the last call has the last count.
        """
        self._report = report

    @property
    def interrupted_here(self) -> bool:
        """Whether the calling code has interrupted this thread in the midst of a change."""
        return self._combiner.interrupted_here

    def after_fork(self) -> None:
        """In a child process: be empty, as all connections are the parent's."""
        self._combiner.after_fork()
        self._changes.clear()
        self._members.clear()
        self._names.clear()
        self._changed.clear()
        self._report = None

    def _change(self, net_id: int, name: str | None, member: MemberT | None) -> None:
        self._used = True
        combiner = self._combiner
        try:
            self._changes.append((net_id, name, member))
            if not combiner.interrupted_here:
                combiner.run(self._make_changes)
                return
        except BaseException:
            combiner.settle()  # it may be noted already
            raise
        combiner.settle()  # which leaves it to the call that was interrupted

    def _report_counts(self) -> None:
        report = self._report
        while report is not None and self._changed:
            for change, name in dict(self._changed).items():
                told = None
                # Another thread may report an older count in between. But after a change every
                # thread that reports looks again, so the last report is right.
                while told != (count := self.count(name)):
                    report(name, count)
                    told = count
                self._changed.pop(change, None)  # last, as an exception may come before

    # -- in the turn

    def _make_changes(self) -> None:
        """Make all changes that are noted. One is forgotten only when it is made."""
        changes = self._changes
        while changes:
            net_id, name, member = changes[0]
            if name is None:
                for each in list(self._names.get(net_id, ())):
                    self._remove(net_id, each)
                self._names.pop(net_id, None)
            elif member is None:
                self._remove(net_id, name)
            elif not member.closed:
                self._members.setdefault(name, {})[net_id] = member
                self._names.setdefault(net_id, {})[name] = None
                self._note_changed(name)
            changes.popleft()

    def _remove(self, net_id: int, name: str) -> None:
        members, names = self._members.get(name), self._names.get(net_id)
        if members is not None:
            members.pop(net_id, None)
            if not members:
                self._members.pop(name, None)
        if names is not None:
            names.pop(name, None)
            if not names:
                self._names.pop(net_id, None)
        self._note_changed(name)

    def _note_changed(self, name: str) -> None:
        if self._report is not None:
            self._changed[object()] = name
