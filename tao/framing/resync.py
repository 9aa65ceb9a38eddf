"""Finding the next frame after an invalid one."""

from __future__ import annotations

from typing import cast

from tao.errors import BadData
from tao.safe_text import safe_repr

__all__ = ["Resync", "resync_budget", "wants_resync"]

# The default budget is so many of the longest frames.
_FRAMES_IN_VAIN = 16


def wants_resync(on_error: str) -> bool:
    """Return whether an option ``on_error`` asks for it.

    Raises:
        ValueError: it is something else.
    """
    if on_error not in ("close", "resync"):
        raise ValueError(f"on_error must be 'close' or 'resync', not {safe_repr(on_error)}")
    return on_error == "resync"


def resync_budget(on_error: str, resync_bytes: int | None, max_bytes: int) -> int:
    """Return how many bytes may be looked at in vain.

    Args:
        on_error, resync_bytes: the options of a frame.
        max_bytes: of a frame.

    Raises:
        TypeError, ValueError: they contradict each other, or it is no number of bytes.
    """
    if resync_bytes is None:
        return _FRAMES_IN_VAIN * max_bytes
    if on_error != "resync":
        raise ValueError("resync_bytes= needs on_error='resync'")
    if not isinstance(resync_bytes, int) or isinstance(resync_bytes, bool):
        raise TypeError(f"resync_bytes must be an int, not {safe_repr(resync_bytes)}")
    if resync_bytes < 1:
        raise ValueError(f"resync_bytes must be at least 1, not {resync_bytes}")
    return resync_bytes


class Resync:
    """Skips to the next magic, as long as a budget lasts. It belongs to one decoder.

    The budget is for the bytes looked at in vain since the last good frame: those that are skipped,
    and those of frames whose checksum is wrong. So a peer that sends nothing valid costs no more
    than time linear in the budget, and is then disconnected.

    Args:
        magic: what a frame begins with.
        budget: how many bytes may be looked at in vain.
    """

    def __init__(self, magic: bytes, budget: int) -> None:
        self._magic: bytes = magic
        self._budget: int = budget
        self._spent: int = 0  # since the last good frame
        #: How many bytes were skipped in all.
        self.skipped: int = 0

    def skip(self, data: memoryview, start: int, error: BadData, wasted: int = 0) -> int:
        """Return where the next frame may begin, behind ``start``.

        Args:
            error: why the frame at ``start`` is invalid.
            wasted: how many bytes of it were looked at.

        Raises:
            BadData: the budget is spent.
        """
        source, end, magic = cast(bytes, data.obj), len(data), self._magic
        found = source.find(magic, start + 1)
        if found < 0:  # the beginning of one may be at the end
            found = max(start + 1, end - len(magic) + 1)
            while not magic.startswith(source[found:end]):
                found += 1
        self.spend(found - start, error, wasted)
        return found

    def spend(self, skipped: int, error: BadData, wasted: int = 0) -> None:
        """Note skipped bytes; raise `BadData` if the budget is spent."""
        self.skipped += skipped
        self._spent += max(skipped, wasted)
        if self._spent > self._budget:
            raise BadData(f"{error}; no valid frame within {self._budget} bytes")

    def good(self) -> None:
        """Note a good frame."""
        self._spent = 0
