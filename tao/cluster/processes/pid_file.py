"""The file with the number of the supervisor's process."""

from __future__ import annotations

import os

__all__ = ["PidFile"]


class PidFile:
    """Written when the process handles signals, and removed at the end.

    Args:
        path: of the file; None: there is none.
    """

    def __init__(self, path: str | None) -> None:
        self._path = None if path is None else os.path.abspath(os.fsdecode(path))
        self._text: str = f"{os.getpid()}\n"

    def write(self) -> None:
        """Write the file.

        Raises:
            OSError: that is not possible.
        """
        if self._path is not None:
            # In one step, so that no process reads half of it.
            other = f"{self._path}.{os.getpid()}"
            with open(other, "w", encoding="ascii") as file:
                file.write(self._text)
            os.replace(other, self._path)

    def remove(self) -> None:
        """Remove the file, unless another process has written it by now."""
        if self._path is None:
            return
        try:
            with open(self._path, encoding="ascii") as file:
                ours = file.read() == self._text
            if ours:
                os.unlink(self._path)
        except OSError:
            pass  # it was already removed
