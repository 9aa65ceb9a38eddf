"""Which thread plays a client's first role: the one that starts it, or the one that is started."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

__all__ = ["StartClaim"]


class StartClaim:
    """Who plays the first role: a thread in `ClientCore.start`, then one that it starts.

    Taking it over is one step of the interpreter, so that after an exception there is always one
    who has it.
    """

    __slots__ = ("_ident", "_takers")

    def __init__(self) -> None:
        self._ident: int = threading.get_ident()
        self._takers: dict[str, str] = {}  # under one key, who has taken it over: the first

    def give_up(self) -> bool:
        """Take it back, unless the thread has taken it over; again, too."""
        return self._takers.setdefault("taker", "starter") == "starter"

    @property
    def given_up(self) -> bool:
        """Whether it was taken back, maybe by one who was interrupted before the next step."""
        return self._takers.get("taker") == "starter"

    def hand_over(self, target: Callable[..., object], *args: Any) -> None:
        """Play, on the thread that was started for it."""
        if self._takers.setdefault("taker", "thread") == "thread":
            target(*args)

    @property
    def waits_for_this_thread(self) -> bool:
        """Whether it is this thread that has it, interrupted in the midst of starting."""
        return not self._takers and self._ident == threading.get_ident()
