"""``/healthz``: whether this process serves, for load balancers and supervisors.

200 and ``ok`` says: send connections here. 503 names the servers that are the reason against it.

- Servers: at least one is running, and none is stopping, or has failed so that nobody accepts any
  more, unless another that runs serves at its address. One that has stopped, or was not started
  yet, does not matter while another runs: it may have been replaced, and is shown only as long as
  the program refers to it.
- A process that has none but such servers does not serve: 503.
- ``?port=N`` asks about one address of a process that has several: whether a running server listens
  at that port.
- Clients never count: to restart a process, or to send nobody there, does not bring back the server
  that its client waits for. After ``ok`` those are named that are trying to connect.
- A process without servers, of clients or of nothing, is well as long as it answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tao.connection.statistics import Snapshot, tallies
from tao.monitor.answers import TEXT, Answer

__all__ = ["health"]


def health(query: Mapping[str, str]) -> Answer:
    """Return the answer; the query may have ``port``."""
    found = [tally.snapshot() for tally in tallies()]
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
    return Answer(200, TEXT, "ok\n" + _listed(each for each in found if each.state == "connecting"))


def _health_of(port: str, servers: list[Snapshot]) -> Answer:
    """Whether a port is listened at."""
    if not (port.isascii() and port.isdigit() and len(port) <= 5):
        return Answer(400, TEXT, "port is a number\n")
    there = [each for each in servers if any(_port(text) == port for text in _addresses(each))]
    if any(each.state == "running" for each in there):
        return Answer(200, TEXT, "ok\n")
    return Answer(503, TEXT, _listed(there) or f"no server listens at port {port}\n")


def _addresses(snapshot: Snapshot) -> list[str]:
    return snapshot.address.split(", ")


def _port(address: str) -> str:
    return address.rpartition(":")[2]


def _listed(snapshots: Iterable[Snapshot]) -> str:
    lines = [f"{each.name} ({each.address or 'no address'}): {each.state}\n" for each in snapshots]
    return "".join(lines)
