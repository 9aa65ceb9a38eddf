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

    __slots__ = ("_ident", "_launched", "_takers")

    def __init__(self) -> None:
        self._ident: int = threading.get_ident()
        self._takers: dict[str, str] = {}  # under one key, the new holder; the first counts
        self._launched: bool = False  # set by the calling thread

    def give_up(self) -> bool:
        """Give the claim up; return False if the thread has taken it. May be repeated."""
        return self._takers.setdefault("taker", "starter") == "starter"

    @property
    def given_up(self) -> bool:
        """Whether it was given up, perhaps by a thread that was then interrupted."""
        return self._takers.get("taker") == "starter"

    def leave(self, claims: dict[str, StartClaim]) -> None:
        """Remove it from where it is the claim that counts."""
        for key in [key for key, claim in claims.items() if claim is self]:
            claims.pop(key, None)

    def hand_over(self, target: Callable[..., object], *args: Any) -> None:
        """Take the claim and call ``target``. Called on the started thread."""
        if self._takers.setdefault("taker", "thread") == "thread":
            target(*args)

    def note_launched(self) -> None:
        """Note that the started thread runs, and will take the claim unless it is given up."""
        self._launched = True

    @property
    def waits_for_this_thread(self) -> bool:
        """Whether the calling thread holds it, having been interrupted while starting."""
        waits = not (self._takers or self._launched)
        return waits and self._ident == threading.get_ident()
