"""``/healthz``: whether this process serves, for load balancers and supervisors.

The status is 200 with ``ok`` if new connections should be sent here, else 503 with a list of the
servers that are the reason.

- At least one server must be running. A server that is stopping, or that has failed and no longer
  accepts, makes the process unhealthy, unless a running server listens at the same address.
- A server that has stopped or has not been started does not matter while another is running: it may
  have been replaced. If a process has only such servers, the status is 503.
- ``?port=N`` checks one address of a process that has several: whether a running server listens at
  that port.
- Clients never make a process unhealthy, because neither a restart nor a missing connection brings
  back the server that a client waits for. Clients that are trying to connect are listed after
  ``ok``.
- A process without servers is healthy as long as it answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tao.connection.reports.statistics import Snapshot
from tao.monitor.answers import TEXT, Answer

__all__ = ["health"]


def health(query: Mapping[str, str], found: Sequence[Snapshot]) -> Answer:
    """Return the response.

    Args:
        query: may have ``port``.
        found: the figures of all servers and clients.
    """
    servers = [each for each in found if each.kind == "server"]
    if "port" in query:
        return _health_of(query["port"], servers)
    running = [each for each in servers if each.state == "running"]
    ill = servers
    if running:
        served = {address for each in running for address in _addresses(each)}
        leaving = [each for each in servers if each.state in ("stopping", "failed")]
        ill = [each for each in leaving if not set(_addresses(each)) <= served]
    if ill:
        return Answer(503, TEXT, _listed(ill))
    down = [each for each in running if each.cluster.get("state") == "down"]
    notes = [f"{each.name}: its cluster cannot be reached\n" for each in down]
    connecting = _listed(each for each in found if each.state == "connecting")
    return Answer(200, TEXT, "ok\n" + "".join(notes) + connecting)


def _health_of(port: str, servers: list[Snapshot]) -> Answer:
    """Return the response for one port."""
    if not (port.isascii() and port.isdigit() and len(port) <= 5):
        return Answer(400, TEXT, "port must be a number\n")
    there = [each for each in servers if any(_port(text) == port for text in _addresses(each))]
    if any(each.state == "running" for each in there):
        return Answer(200, TEXT, "ok\n")
    return Answer(503, TEXT, _listed(there) or f"no server listens on port {port}\n")


def _addresses(snapshot: Snapshot) -> list[str]:
    return snapshot.address.split(", ")


def _port(address: str) -> str:
    return address.rpartition(":")[2]


def _listed(snapshots: Iterable[Snapshot]) -> str:
    lines = [f"{each.name} ({each.address or 'no address'}): {each.state}\n" for each in snapshots]
    return "".join(lines)
