"""What is measured: every workload, its contestants, and tao's targets.

Messages have 64 bytes; ``10 x 64`` means ten connections with 64 messages outstanding on each. The
contestants that targets name take part in a quick run; the others only in a full one.
"""

from __future__ import annotations

import dataclasses

from tests.bench.departure import DepartureWorkload
from tests.bench.load import Load
from tests.bench.model import Contestant, Disturbance, Row, Target
from tests.bench.processes import first_cpu, last_cpu
from tests.bench.sessions import SessionWorkload
from tests.bench.workloads import (
    DisturbedWorkload,
    IdleWorkload,
    LoadWorkload,
    RequestWorkload,
    TimersWorkload,
)

TAO = Contestant("tao", "tao_server", package="tao")
TAO_PINNED = Contestant(
    "tao, one CPU", "tao_server", ("--cpu-affinity", str(first_cpu())), package="tao"
)
SHARED = Contestant("tao, shared reading", "tao_server", ("--readers", "shared"), package="tao")
DECLARED = Contestant("tao, declared frame", "tao_server", ("--declared",), package="tao")
SOCKETSERVER = Contestant("socketserver", "socketserver_threads")
STREAMS = Contestant("asyncio streams", "asyncio_streams")
ASYNCIO = Contestant("asyncio Protocol", "asyncio_protocol")
UVLOOP = Contestant("uvloop Protocol", "uvloop_protocol", package="uvloop")
GEVENT = Contestant("gevent", "gevent_server", package="gevent")
TWISTED = Contestant("Twisted", "twisted_server", package="twisted")
GATHERED = (
    Contestant("asyncio Protocol, gathered", "asyncio_protocol", ("--gather",)),
    Contestant("uvloop Protocol, gathered", "uvloop_protocol", ("--gather",), package="uvloop"),
)

PEERS = (SOCKETSERVER, STREAMS, ASYNCIO, UVLOOP, GEVENT, TWISTED)
LOOPS = (ASYNCIO.label, UVLOOP.label)
WORKERS = 20
SLEEP_MS = 5


def _with(contestant: Contestant, *switches: str) -> Contestant:
    return dataclasses.replace(contestant, switches=(*contestant.switches, *switches))


def _resting(contestant: Contestant) -> Contestant:
    """Return a contestant that takes part in full runs only."""
    return dataclasses.replace(contestant, quick=False)


def _field(*quick: Contestant) -> tuple[Contestant, ...]:
    """Every peer; those that are not named take part in a full run only."""
    everyone = (TAO, SHARED, TAO_PINNED, *PEERS, *GATHERED)
    return tuple(dataclasses.replace(c, quick=c in quick) for c in everyone)


def _echo(connections: int, window: int, size: int = 64, tls: bool = False) -> LoadWorkload:
    return LoadWorkload(Load("echo", connections, window, size, tls=tls))


def one_by_one(client_cpu: int) -> LoadWorkload:
    """Return 1 x 1 with the server on the first CPU and the client on a given one.

    Left to the scheduler the two share a CPU in some runs and not in others, and the figures
    differ by a factor of four.
    """
    return LoadWorkload(Load("echo", cpu=client_cpu), server_cpu=first_cpu())


def _pipelined_rows() -> list[Row]:
    return [
        Row(
            "echo-10x64",
            "Echo, 10 connections x 64 outstanding",
            _echo(10, 64),
            (*_field(TAO, SHARED, TAO_PINNED, ASYNCIO, UVLOOP, TWISTED, *GATHERED), DECLARED),
            (
                Target(DECLARED.label, (TAO.label,), at_least=0.7),
                Target(TAO.label, LOOPS, at_least=3.5),
                Target(TAO.label, (TWISTED.label,), at_least=0.75),
                Target(SHARED.label, LOOPS, at_least=4.0),
                Target(SHARED.label, (TWISTED.label,), at_least=0.95),
                Target(TAO_PINNED.label, (TWISTED.label,), at_least=1.0),
            ),
        ),
        Row(
            "echo-100x16",
            "Echo, 100 connections x 16 outstanding",
            _echo(100, 16),
            _field(TAO, SHARED, ASYNCIO, UVLOOP),
            (
                Target(TAO.label, LOOPS, at_least=1.5),
                Target(SHARED.label, LOOPS, at_least=2.5),
            ),
        ),
        Row(
            "echo-1000x16",
            "Echo, 1 000 connections x 16 outstanding",
            _echo(1000, 16),
            (SHARED, _resting(TAO), ASYNCIO, UVLOOP),
            (Target(SHARED.label, LOOPS, at_least=2.5),),
        ),
    ]


def _single_rows() -> list[Row]:
    every_peer = tuple(peer.label for peer in PEERS)
    few = (TAO, SHARED, TAO_PINNED, SOCKETSERVER, ASYNCIO)
    one_at_a_time = (
        Target(TAO.label, (SOCKETSERVER.label,), at_least=0.95),
        Target(SHARED.label, (ASYNCIO.label,), at_least=0.85),
        Target(SHARED.label, (SOCKETSERVER.label,), at_least=1.6),
        Target(TAO_PINNED.label, (ASYNCIO.label,), at_least=0.75),
    )
    at_worst = Target(SHARED.label, (ASYNCIO.label,), at_most=1.5, detail="p99_us")
    return [
        Row(
            "echo-1x1",
            "Echo, 1 connection x 1 outstanding, a CPU each",
            one_by_one(last_cpu()),
            _field(TAO, SHARED, *PEERS),
            (
                Target(TAO.label, every_peer, at_least=0.95),
                Target(SHARED.label, every_peer, at_least=0.95),
            ),
        ),
        Row(
            "echo-1x1-shared",
            "Echo, 1 x 1, client and server on one CPU",
            one_by_one(first_cpu()),
            _field(TAO, *PEERS),
            (Target(TAO.label, every_peer),),
        ),
        *(
            Row(
                f"echo-{count}x1",
                f"Echo, {count} connections x 1 outstanding",
                _echo(count, 1),
                _field(*few),
                one_at_a_time + latency,
            )
            for count, latency in ((10, ()), (100, (at_worst,)))
        ),
        *(
            Row(
                f"echo-{count}x1",
                f"Echo, {count} connections x 1 outstanding",
                _echo(count, 1),
                (SHARED, ASYNCIO, _resting(UVLOOP)),
                (Target(SHARED.label, (ASYNCIO.label,), at_least=0.75),),
            )
            for count in (1000, 4000)
        ),
    ]


def _large_rows() -> list[Row]:
    return [
        Row(
            f"echo-10x4-{name}",
            f"Echo, 10 connections x 4 outstanding, messages of {title}",
            _echo(10, 4, size),
            (TAO, SHARED, ASYNCIO, _resting(UVLOOP), _resting(SOCKETSERVER)),
            (
                Target(TAO.label, (ASYNCIO.label,), at_least=0.9),
                Target(SHARED.label, (ASYNCIO.label,), at_least=1.0),
            ),
        )
        for name, title, size in (("64k", "64 KiB", 65_536), ("1m", "1 MiB", 1 << 20))
    ]


def _server_rows() -> list[Row]:
    per_second = WORKERS * 1000 / SLEEP_MS
    sleeping = ("--sleep-ms", str(SLEEP_MS))
    return [
        Row(
            "sleep-100x1",
            f"Handler that sleeps {SLEEP_MS} ms, 100 x 1, {WORKERS} workers",
            LoadWorkload(Load("echo", 100, 1), limited=False),
            tuple(_with(c, *sleeping, "--workers", str(WORKERS)) for c in (TAO, SHARED)),
            tuple(
                Target(
                    each.label,
                    at_least=0.95,
                    unit=per_second,
                    unit_text=f"x {WORKERS} workers / {SLEEP_MS} ms = {per_second:.0f}/s",
                )
                for each in (TAO, SHARED)
            ),
        ),
        Row(
            "broadcast-500",
            "Broadcast, one sender, 500 receivers",
            LoadWorkload(Load("broadcast", 501), unit="deliveries/s"),
            tuple(_with(c, "--broadcast") for c in (TAO, SHARED, ASYNCIO, UVLOOP)),
            (
                Target(TAO.label, LOOPS, at_least=0.68),
                Target(SHARED.label, LOOPS, at_least=0.8),
            ),
        ),
        Row(
            "broadcast-5000",
            "Broadcast, one sender, 5 000 receivers",
            LoadWorkload(Load("broadcast", 5001), unit="deliveries/s"),
            tuple(_with(c, "--broadcast") for c in (TAO, SHARED, ASYNCIO, UVLOOP)),
            (
                Target(TAO.label, LOOPS, at_least=0.62),
                Target(SHARED.label, LOOPS, at_least=0.75),
            ),
            quick=False,
        ),
        *(
            Row(
                f"churn-{clients}",
                f"Connect, one echo, close; {clients} at a time",
                LoadWorkload(Load("churn", clients, limit=20_000), unit="connections/s"),
                (TAO, SHARED, SOCKETSERVER, _resting(ASYNCIO)),
                (
                    Target(TAO.label, (SOCKETSERVER.label,), at_least=wanted),
                    Target(SHARED.label, (SOCKETSERVER.label,), at_least=1.2),
                ),
            )
            for clients, wanted in ((1, 0.95), (8, 1.0))
        ),
        Row(
            "tls-10x64",
            "Echo over TLS, 10 connections x 64 outstanding",
            _echo(10, 64, tls=True),
            tuple(_with(c, "--tls") for c in (TAO, SHARED, ASYNCIO, _resting(UVLOOP))),
            tuple(Target(each.label, (ASYNCIO.label,), at_least=1.5) for each in (TAO, SHARED)),
        ),
        Row(
            "tls-100x1",
            "Echo over TLS, 100 connections x 1 outstanding",
            _echo(100, 1, tls=True),
            tuple(_with(c, "--tls") for c in (TAO, SHARED, ASYNCIO, _resting(UVLOOP))),
            (Target(SHARED.label, (ASYNCIO.label,), at_least=0.85),),
        ),
    ]


def _beside(mode: str, connections: int, window: int, unit: str) -> DisturbedWorkload:
    """Return a load with the server on one CPU, and the load and who disturbs on another."""
    load = Load(mode, connections, window, cpu=last_cpu())
    return DisturbedWorkload(load, unit=unit, server_cpu=first_cpu())


def _disturbed(label: str, kind: str, *switches: str, elsewhere: bool = False) -> Contestant:
    """Return tao with a bad peer beside the load."""
    return Contestant(
        label, "tao_server", switches, package="tao", disturbance=Disturbance(kind, elsewhere)
    )


def _deaf_row(readers: str) -> Row:
    reads = ("--readers", readers)
    undisturbed = Contestant(f"tao, {readers}, undisturbed", "tao_server", reads, package="tao")
    deaf = tuple(
        _disturbed(f"tao, {readers}, {name}", "deaf", *reads, *switches)
        for name, switches in (
            ("raise", ()),
            ("drop_oldest", ("--slow-consumer", "drop_oldest")),
            ("close", ("--slow-consumer", "close")),
            ("writes wait", ("--patience", "30")),
        )
    )
    return Row(
        f"deaf-200x4-{readers}",
        f"Echo, 200 x 4, {readers} reading, and one that sends at full speed and reads no reply",
        _beside("echo", 200, 4, "messages/s"),
        (undisturbed, *deaf),
        tuple(Target(each.label, (undisturbed.label,), at_least=0.9) for each in deaf),
        quick=False,
    )


def _deaf_rows() -> list[Row]:
    undisturbed = dataclasses.replace(TAO, label="tao, undisturbed")
    silent = _disturbed("tao, one is silent", "silent", "--broadcast")
    return [
        Row(
            "silent-broadcast-200",
            "Broadcast, 200 receivers, and one more that does not read",
            _beside("broadcast", 201, 1, "deliveries/s"),
            (_with(undisturbed, "--broadcast"), silent),
            (Target(silent.label, (undisturbed.label,), at_least=0.9),),
            quick=False,
        ),
        _deaf_row("own"),
        _deaf_row("shared"),
    ]


def _garbage_rows() -> list[Row]:
    undisturbed = dataclasses.replace(TAO, label="tao, undisturbed")
    elsewhere, here = "tao, disturber elsewhere", "tao, disturbed"
    titles = {
        "garbage": "Echo, 200 x 4, and one that connects and sends garbage, again and again",
        "unknown": "Echo, 200 x 4, and a stream of empty messages that nobody knows",
    }
    return [
        Row(
            f"{kind}-200x4",
            title,
            _beside("echo", 200, 4, "messages/s"),
            (undisturbed, _disturbed(elsewhere, kind, elsewhere=True), _disturbed(here, kind)),
            (
                Target(here, (elsewhere,), at_least=0.8),
                Target(here, (undisturbed.label,), at_least=0.8),
            ),
            quick=False,
        )
        for kind, title in titles.items()
    ]


def _idle_rows() -> list[Row]:
    contestants = (TAO, SHARED, _resting(SOCKETSERVER), _resting(ASYNCIO))
    targets = (
        Target(TAO.label, at_most=40.0, unit_text="KB"),
        Target(SHARED.label, at_most=10.0, unit_text="KB"),
    )
    return [
        Row("idle-5000", "5 000 idle connections, memory", IdleWorkload(), contestants, targets),
        Row(
            "idle-5000-touched",
            "5 000 connections that echoed once, memory",
            IdleWorkload(touch=True),
            contestants,
        ),
    ]


def _departure_rows() -> list[Row]:
    contestants = (SHARED, ASYNCIO)
    return [
        Row(
            "departure-5000",
            "5 000 connections closed by their peers at once, until the last is gone",
            DepartureWorkload(),
            (*contestants, _resting(UVLOOP)),
            (Target(SHARED.label, (ASYNCIO.label,), at_most=2.0),),
        ),
        Row(
            "departure-5000-newcomer",
            "5 000 connections closed at once, the longest that newcomers wait",
            DepartureWorkload(newcomer=True),
            (*contestants, _resting(UVLOOP)),
            (Target(SHARED.label, at_most=100.0, unit_text="ms"),),
        ),
        Row(
            "departure-2000-own",
            "2 000 connections with own readers closed at once, until the last is gone",
            DepartureWorkload(connections=2000),
            (TAO, SOCKETSERVER),
            (Target(TAO.label, (SOCKETSERVER.label,)),),
            quick=False,
        ),
    ]


def _timer_row() -> Row:
    def timers(label: str, kind: str, pending: int, package: str | None = None) -> Contestant:
        switches = ("--kind", kind, "--pending", str(pending))
        return Contestant(label, "timers", switches, package, quick=kind == "tao")

    many, few = "tao, 100 000 pending", "tao, 1 000 pending"
    return Row(
        "timers",
        "Timers: add one and cancel it",
        TimersWorkload(),
        (
            timers(many, "tao", 100_000, "tao"),
            timers(few, "tao", 1_000, "tao"),
            timers("asyncio, 100 000 pending", "asyncio", 100_000),
            timers("uvloop, 100 000 pending", "uvloop", 100_000, "uvloop"),
        ),
        (
            Target(many, at_most=5.0, unit_text="us"),
            Target(many, (few,), at_most=1.5),
        ),
    )


def _session_row() -> Row:
    sessions = _with(dataclasses.replace(TAO, label="tao, sessions"), "--sessions")
    return Row(
        "session-10x64",
        "Echo between two processes of tao, 10 connections x 64 outstanding, with sessions",
        SessionWorkload(),
        (TAO, sessions),
        (Target(sessions.label, (TAO.label,), at_most=1.15),),
    )


def _request_rows() -> list[Row]:
    contestants = (
        Contestant("tao", "requests_tao", package="tao"),
        Contestant("rpyc", "requests_rpyc", package="rpyc"),
        Contestant("Pyro5", "requests_pyro5", package="Pyro5"),
        Contestant("gRPC", "requests_grpc", package="grpc"),
    )
    others = tuple(contestant.label for contestant in contestants[1:])
    return [
        Row(
            f"request-{threads}x{window}",
            f"Requests, {title}",
            RequestWorkload(threads, window),
            contestants,
            (Target(TAO.label, others, at_least=1.0),),
        )
        for threads, window, title in (
            (1, 1, "1 thread"),
            (16, 1, "16 threads"),
            (1, 64, "1 thread, 64 at once"),
        )
    ]


def all_rows(quick: bool = False) -> list[Row]:
    """Return every row in the order of the report; quick runs leave out what has no target."""
    rows = [*_pipelined_rows(), *_single_rows(), *_large_rows(), *_server_rows(), *_deaf_rows()]
    rows += [*_garbage_rows(), *_request_rows(), *_idle_rows(), *_departure_rows(), _timer_row()]
    rows += [_session_row()]
    return [row for row in rows if not quick or (row.quick and _judged(row))]


def _judged(row: Row) -> bool:
    return any(target.bounded for target in row.targets)


def growth_contestants() -> tuple[Contestant, ...]:
    """Return those whose figures are followed as the load grows."""
    patient = dataclasses.replace(
        TAO, label="tao, switch interval 20 ms", switches=("--switch-interval", "0.02")
    )
    return (TAO, SHARED, ASYNCIO, UVLOOP, SOCKETSERVER, patient)
