"""Lending the reading role to another thread while ``on_connect`` waits for an answer."""

from __future__ import annotations

from tao.runtime.wakeup import Wakeup

__all__ = ["ReadingLoan"]


class ReadingLoan:
    """The role of one transport's reader, lent by the thread that calls ``on_connect``.

    When ``on_connect`` has returned, the borrower keeps the role. If the stream ends before, the
    borrower returns it instead, so that the lender decides what follows, as if it had read itself.
    Either is one step, and whichever comes first counts.
    """

    __slots__ = ("_fate", "left")

    def __init__(self) -> None:
        self._fate: dict[str, str] = {}  # under one key
        #: Set when the borrower has returned the role, and is out of the transport.
        self.left = Wakeup()

    def keep(self) -> bool:
        """Let the borrower keep the role; return False if it was returned. By the lender."""
        return self._fate.setdefault("role", "kept") == "kept"

    def give_back(self) -> bool:
        """Return the role unless it is kept; return whether it is returned. By the borrower."""
        return self._fate.setdefault("role", "returned") == "returned"

    def leave(self) -> bool:
        """Note that the borrower is out of the transport; return whether the role is returned."""
        self.left.set()
        return self.returned

    @property
    def returned(self) -> bool:
        """Whether it was returned."""
        return self._fate.get("role") == "returned"
