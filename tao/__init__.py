"""tao: TCP messaging for synchronous Python.

You declare messages and their handlers; tao provides framing, ordered dispatch, requests and
replies, heartbeats, timers, reconnecting, sessions, TLS, back-pressure, limits, graceful shutdown
and live metrics.

The public names come from ``api.py``, which is imported when the first of them is used. So the
command line and the pytest plugin start without loading modules that they do not need.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Imported at once, because it disables logging until the application enables it.
import tao.runtime.log  # noqa: F401
from tao.version import __version__ as __version__

if TYPE_CHECKING:
    from tao.api import *  # noqa: F403


def __getattr__(name: str) -> Any:
    if name == "__all__" or not name.startswith("__"):
        api = import_module("tao.api")
        early = [each for each in api.__all__ if each not in api.LATE]
        globals().update({"__all__": api.__all__, **{each: getattr(api, each) for each in early}})
        if name in api.LATE:
            globals()[name] = getattr(api, name)
        if name in globals():
            return globals()[name]
    raise AttributeError(f"module 'tao' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})
