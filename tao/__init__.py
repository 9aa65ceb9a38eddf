"""tao: TCP messaging for synchronous Python.

Declare messages and handlers, start a server or a client, and framing, order, heartbeats, timers,
reconnecting, TLS, back-pressure, limits and a graceful stop are there.

The names are those of ``api.py``, which is imported when the first of them is used: the command
line and the plugin for pytest come with the package, and should not wait for what they do not need.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# At once, because it silences the log until the application says otherwise.
import tao.runtime.log  # noqa: F401
from tao.version import __version__ as __version__

if TYPE_CHECKING:
    from tao.api import *  # noqa: F403


def __getattr__(name: str) -> Any:
    if name == "__all__" or not name.startswith("__"):
        api = import_module("tao.api")
        names = {"__all__": api.__all__, **{each: getattr(api, each) for each in api.__all__}}
        globals().update(names)
        if name in globals():
            return globals()[name]
    raise AttributeError(f"module 'tao' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})
