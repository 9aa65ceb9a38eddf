"""Helpers for tests of your own handlers, clients and messages.

- `serving` and `running` run a server in a ``with`` block (``servers.py``).
- `RecordingClient` connects to it, records what it receives, and checks it
  (``recording_client.py``).
- `memory_pair` connects a client and a server without sockets (``memory.py``).
- `Clock` is a clock that the test advances, so that it need not wait for timeouts (``clock.py``).
- `FaultProxy` sits between client and server and injects faults into their connections
  (``fault_proxy.py``).

The pytest fixtures ``tao_server``, ``tao_client``, ``tao_clock`` and ``tao_no_leaks`` are available
as soon as tao is installed; see ``pytest_plugin.py``. A failed check raises an ``AssertionError``
that says what happened instead.

The names are imported when they are first used, because pytest imports the plugin at every start.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tao.testing.clock import Clock
    from tao.testing.fault_proxy import FaultProxy, Faults
    from tao.testing.memory import (
        MemoryClient,
        MemoryPair,
        MemoryTransport,
        memory_pair,
        memory_transports,
    )
    from tao.testing.recording_client import PATIENCE, RecordingClient, Unregistered
    from tao.testing.servers import ClientFactory, ServerFactory, running, serving

__all__ = [
    "PATIENCE",
    "ClientFactory",
    "Clock",
    "FaultProxy",
    "Faults",
    "MemoryClient",
    "MemoryPair",
    "MemoryTransport",
    "RecordingClient",
    "ServerFactory",
    "Unregistered",
    "memory_pair",
    "memory_transports",
    "running",
    "serving",
]

# The module of each name.
_HOMES = {
    "Clock": "tao.testing.clock",
    "FaultProxy": "tao.testing.fault_proxy",
    "Faults": "tao.testing.fault_proxy",
    "MemoryClient": "tao.testing.memory",
    "MemoryPair": "tao.testing.memory",
    "MemoryTransport": "tao.testing.memory",
    "memory_pair": "tao.testing.memory",
    "memory_transports": "tao.testing.memory",
    "PATIENCE": "tao.testing.recording_client",
    "RecordingClient": "tao.testing.recording_client",
    "Unregistered": "tao.testing.recording_client",
    "ClientFactory": "tao.testing.servers",
    "ServerFactory": "tao.testing.servers",
    "running": "tao.testing.servers",
    "serving": "tao.testing.servers",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tao.testing' has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
