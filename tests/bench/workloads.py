"""The kinds of runs: a load, disturbed or not, idle connections, or timers."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Protocol

from tests.bench.disturbance import disturbed
from tests.bench.load import PATIENCE, Generator, Load, LoadFailed
from tests.bench.model import Contestant, Measurement
from tests.bench.processes import ROOT, ServerProcess, peer_command
from tests.bench.redis_process import redis_running

SHAKEDOWN = 0.1  # seconds of load that a new server gets before it is measured
RAMP = 5000  # connections that make every run a second longer, and its warm-up too


@dataclass(frozen=True)
class Settings:
    """How long and how often everything is measured."""

    generator: Generator
    rounds: int
    seconds: float
    warmup: float
    fresh: bool  # new server processes for every round, not only for every row
    quick: bool
    certificate: tuple[str, str] | None


class Workload(Protocol):
    """One kind of measurement."""

    @property
    def unit(self) -> str:
        """The unit of the figures."""

    @property
    def higher_is_better(self) -> bool:
        """Which way is up."""

    @property
    def load(self) -> Load | None:
        """The load of which the generator's own limit is worth knowing."""

    @property
    def needs_server(self) -> bool:
        """Whether contestants are servers."""

    @property
    def fresh(self) -> bool:
        """Whether every round needs new servers."""

    @property
    def server_cpu(self) -> int | None:
        """The only processor that servers may use, None for all."""

    def prepare(self, settings: Settings, server: ServerProcess) -> None:
        """Bring a new server to the state in which it is measured."""

    def run(
        self, settings: Settings, contestant: Contestant, server: ServerProcess | None
    ) -> Measurement:
        """Measure once."""


@dataclass(frozen=True)
class LoadWorkload:
    """Messages, deliveries or connections per second under a load."""

    asked: Load
    unit: str = "messages/s"
    higher_is_better: bool = True
    needs_server: bool = True
    fresh: bool = False
    limited: bool = True  # whether the load generator could be what limits
    server_cpu: int | None = None

    @property
    def load(self) -> Load | None:
        """The load, if the generator's limit matters."""
        return self.asked if self.limited else None

    @property
    def _ramp(self) -> float:
        return self.asked.connections / RAMP

    def prepare(self, settings: Settings, server: ServerProcess) -> None:
        """Let connections come, be used and go.

        Until it has closed a connection an asyncio server is three times slower: it receives into
        256 KiB, which glibc maps and unmaps for every call until a whole such block was freed once.
        """
        settings.generator.run(self.asked, server.port, SHAKEDOWN + self._ramp, 0.0)
        server.wait_quiet(0.03 + self._ramp)

    def run(
        self, settings: Settings, contestant: Contestant, server: ServerProcess | None
    ) -> Measurement:
        """Put the load on the server and count what its processor time bought."""
        assert server is not None
        measured = self._measure(settings, server)
        server.wait_quiet(0.03 + self._ramp)
        return measured

    def _measure(self, settings: Settings, server: ServerProcess) -> Measurement:
        before = server.cpu_seconds()
        seconds, warmup = settings.seconds + self._ramp, settings.warmup + self._ramp
        figures = settings.generator.run(self.asked, server.port, seconds, warmup)
        used = server.cpu_seconds() - before
        answered = figures["messages"] + figures["warmup_messages"]
        return Measurement(figures["rate"], figures | {"server_cpu_us": used / answered * 1e6})


@dataclass(frozen=True)
class RequestWorkload:
    """Replies per second to requests, asked by each peer's own client in a process of its own."""

    threads: int = 1
    window: int = 1
    unit: str = "replies/s"
    higher_is_better: bool = True
    load: Load | None = None
    needs_server: bool = True
    fresh: bool = False
    server_cpu: int | None = None

    def prepare(self, settings: Settings, server: ServerProcess) -> None:
        """Nothing: the client warms the server up itself."""

    def run(
        self, settings: Settings, contestant: Contestant, server: ServerProcess | None
    ) -> Measurement:
        """Ask for a while."""
        assert server is not None
        words = [f"port={server.port}", f"threads={self.threads}", f"window={self.window}"]
        words += [f"seconds={settings.seconds}", f"warmup={settings.warmup}"]
        done = subprocess.run(
            [sys.executable, "-m", "tests.bench.asking", contestant.peer, *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=settings.seconds + settings.warmup + PATIENCE,
            check=False,
        )
        if done.returncode:
            raise LoadFailed((done.stderr.strip().splitlines() or ["the client failed"])[-1])
        server.wait_quiet()
        return Measurement(json.loads(done.stdout)["rate"])


@dataclass(frozen=True)
class PublishWorkload:
    """Publications through one Redis, from one process to another.

    The figure is how many arrived a second or, with a pace, how long they took.
    """

    pace: float = 0.0  # publications a second; 0: as many as possible
    durable: bool = False  # Redis writes each to its file, and waits for that, before it answers
    load: Load | None = None
    needs_server: bool = False
    fresh: bool = False
    server_cpu: int | None = None

    @property
    def unit(self) -> str:
        """The unit of the figures."""
        return "p99 in ms" if self.pace else "publications/s"

    @property
    def higher_is_better(self) -> bool:
        """Whether it is a rate."""
        return not self.pace

    def prepare(self, settings: Settings, server: ServerProcess) -> None:
        """There is no server."""

    def run(
        self, settings: Settings, contestant: Contestant, server: ServerProcess | None
    ) -> Measurement:
        """Publish for a while."""
        way = contestant.switches[0] if contestant.switches else "-"
        durable = ("--appendonly", "yes", "--appendfsync", "always") if self.durable else ()
        times = [f"{settings.warmup}", f"{settings.seconds}", f"{self.pace}"]
        module = [sys.executable, "-m", "tests.bench.publishing", "publish"]
        with redis_running(*durable) as url:
            done = subprocess.run(
                [*module, contestant.peer, way, url, *times],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=settings.seconds + settings.warmup + PATIENCE,
                check=False,
            )
        if done.returncode:
            raise LoadFailed((done.stderr.strip().splitlines() or ["the sender failed"])[-1])
        figures: dict[str, float] = json.loads(done.stdout)
        return Measurement(figures["p99_us"] / 1000 if self.pace else figures["rate"], figures)


@dataclass(frozen=True)
class DisturbedWorkload(LoadWorkload):
    """What is left of the others' throughput beside a peer that behaves badly.

    The load must name its processor: there the disturber runs too, and the server elsewhere, so
    that what is taken from the server measured is taken by what reaches it.
    """

    limited: bool = False

    def run(
        self, settings: Settings, contestant: Contestant, server: ServerProcess | None
    ) -> Measurement:
        """Put the load on the server while the contestant's disturber, if it has one, is at work.

        The memory is looked at before that one is gone.
        """
        assert server is not None
        before = server.resident_kb()
        longest = settings.seconds + settings.warmup + PATIENCE
        with disturbed(contestant, server, self.asked.cpu, longest) as doings:
            measured = self._measure(settings, server)
            extra = server.resident_kb() - before
        server.wait_quiet(0.03 + self._ramp)
        return Measurement(measured.value, measured.details | doings | {"extra_kb": extra})


@dataclass(frozen=True)
class IdleWorkload:
    """Resident memory of a server per open connection over which nothing is said."""

    connections: int = 5000
    touch: bool = False  # every connection has echoed once before it fell silent
    unit: str = "KB per connection"
    higher_is_better: bool = False
    needs_server: bool = True
    fresh: bool = True
    load: Load | None = None
    server_cpu: int | None = None

    def prepare(self, settings: Settings, server: ServerProcess) -> None:
        """Echo once, which brings in what is loaded lazily."""
        with settings.generator.hold(Load("hold"), server.port):
            pass

    def run(
        self, settings: Settings, contestant: Contestant, server: ServerProcess | None
    ) -> Measurement:
        """Compare the memory before and after."""
        assert server is not None
        before = server.settled_kb()
        load = Load("hold", connections=self.connections, touch=self.touch)
        with settings.generator.hold(load, server.port):
            after, threads = server.settled_kb(), server.threads()
        each = (after - before) * 1024 / 1000 / self.connections
        return Measurement(each, {"before_kb": before, "after_kb": after, "threads": threads})


@dataclass(frozen=True)
class TimersWorkload:
    """Microseconds to add one timer and cancel it, with many others pending."""

    unit: str = "us per add and cancel"
    higher_is_better: bool = False
    needs_server: bool = False
    fresh: bool = False
    load: Load | None = None
    server_cpu: int | None = None

    def prepare(self, settings: Settings, server: ServerProcess) -> None:
        """There is no server."""

    def run(
        self, settings: Settings, contestant: Contestant, server: ServerProcess | None
    ) -> Measurement:
        """Let the peer measure itself: there is no wire in it."""
        done = subprocess.run(
            peer_command(contestant.peer, contestant.switches),
            check=False,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode:
            raise LoadFailed(done.stderr.strip().rpartition("\n")[2])
        return Measurement(float(json.loads(done.stdout)["us"]))
