"""More than one process: what is measured, by whom, and tao's targets.

Publishing from one process to another through the same Redis, and one server in several processes.
"""

from __future__ import annotations

from tests.bench.load import Load
from tests.bench.model import Contestant, Row, Target
from tests.bench.workloads import LoadWorkload, PublishWorkload

TAO = Contestant("tao", "publish_tao", package="redis")
OTHERS = (
    Contestant("python-socketio", "publish_socketio", ("sync",), package="socketio"),
    Contestant("python-socketio, async", "publish_socketio", ("async",), package="socketio"),
    Contestant("channels_redis, pub/sub", "publish_channels", ("pubsub",), "channels_redis"),
    Contestant("channels_redis, core", "publish_channels", ("core",), "channels_redis"),
)
_BEST = tuple(each.label for each in OTHERS)

PROCESSES = (1, 2, 4)
COMPUTES = 100  # microseconds of a handler that is what limits, not the load
CONNECTIONS = 32


def cluster_rows() -> list[Row]:
    """Return every row in the order of the report."""
    return [*_publish_rows(), *_process_rows()]


def _publish_rows() -> list[Row]:
    def rate(unit: int) -> Target:
        text = f"x {unit} a second"
        return Target(TAO.label, at_least=1.0, unit=unit, unit_text=text)

    return [
        Row(
            "publish",
            "Publish 256 bytes as fast as possible, Redis in memory only",
            PublishWorkload(),
            (TAO, *OTHERS),
            (rate(50_000), Target(TAO.label, _BEST)),
        ),
        Row(
            "publish-durable",
            "Publish 256 bytes as fast as possible, appendfsync always",
            PublishWorkload(durable=True),
            (TAO, OTHERS[-1]),
            (rate(30_000), Target(TAO.label, (OTHERS[-1].label,))),
        ),
        Row(
            "publish-1000",
            "Publish 256 bytes, 1 000 a second: how long they take",
            PublishWorkload(pace=1000.0),
            (TAO, *OTHERS),
            (Target(TAO.label, at_most=5.0, unit_text="ms"), Target(TAO.label, _BEST)),
        ),
    ]


def _process_rows() -> list[Row]:
    scales = tuple(
        Target(_label(who, 2), (_label(who, 1),), at_least=1.7) for who in ("tao", "tao, shared")
    )
    computing = f"{CONNECTIONS} x 1, a handler that computes for {COMPUTES} us"
    load = LoadWorkload(Load("echo", CONNECTIONS, 1), limited=False)
    return [
        _process_row(
            "processes-computing", computing, load, scales, "--microseconds", f"{COMPUTES}"
        ),
        _process_row("processes-echo", "10 x 64", LoadWorkload(Load("echo", 10, 64)), ()),
    ]


def _process_row(
    name: str, title: str, workload: LoadWorkload, targets: tuple[Target, ...], *switches: str
) -> Row:
    """Return a row with each number of processes, of tao and of asyncio."""
    servers = (
        ("tao", "tao_processes", ()),
        ("tao, shared", "tao_processes", ("--readers", "shared")),
        ("asyncio", "asyncio_processes", ()),
    )
    contestants = tuple(
        Contestant(_label(who, count), peer, ("--processes", f"{count}", *switches, *more))
        for count in PROCESSES
        for who, peer, more in servers
    )
    beside = (
        Target(_label(who, count), (_label("asyncio", count),))
        for count in PROCESSES
        for who in ("tao", "tao, shared")
    )
    return Row(name, f"Processes: echo, {title}", workload, contestants, (*targets, *beside))


def _label(who: str, count: int) -> str:
    return f"{who}, {count} {'process' if count == 1 else 'processes'}"
