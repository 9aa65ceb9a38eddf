"""The claim on starting a client: held by the calling thread, then by the reading thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

__all__ = ["StartClaim"]


class StartClaim:
    """Held by the thread inside `ClientCore.start`, then by the thread that it starts.

    The hand-over is one step of the interpreter, so after an exception exactly one thread holds it.
    """

    __slots__ = ("_ident", "_takers")

    def __init__(self) -> None:
        self._ident: int = threading.get_ident()
        self._takers: dict[str, str] = {}  # under one key, the new holder; the first counts

    def give_up(self) -> bool:
        """Give the claim up; return False if the thread has taken it. May be repeated."""
        return self._takers.setdefault("taker", "starter") == "starter"

    @property
    def given_up(self) -> bool:
        """Whether it was given up, perhaps by a thread that was then interrupted."""
        return self._takers.get("taker") == "starter"

    def hand_over(self, target: Callable[..., object], *args: Any) -> None:
        """Take the claim and call ``target``. Called on the started thread."""
        if self._takers.setdefault("taker", "thread") == "thread":
            target(*args)

    @property
    def waits_for_this_thread(self) -> bool:
        """Whether the calling thread holds it, having been interrupted while starting."""
        return not self._takers and self._ident == threading.get_ident()
