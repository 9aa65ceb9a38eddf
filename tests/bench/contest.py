"""The schedule: all contestants of a row run one after the other, round after round.

The order rotates from round to round, so that a busy moment of the machine does not always affect
the same contestant. A contestant that is not installed is listed as missing; one that fails is
removed from its row, with the reason, and the others continue.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tests.bench.load import LoadFailed
from tests.bench.model import Contestant, Entry, Outcome, Row
from tests.bench.processes import OtherLoad, ServerFailed, ServerProcess, peer_command
from tests.bench.workloads import Settings

LIMIT = "limit of the load generator"
Servers = dict[str, ServerProcess]


class Contest:
    """One row while it runs."""

    def __init__(self, row: Row, settings: Settings) -> None:
        self._row = row
        self._settings = settings
        self._contestants = [c for c in row.contestants if c.quick or not settings.quick]
        self._entries = {c.label: Entry(c.label, missing=c.missing) for c in self._contestants}
        if row.workload.load is not None:
            self._contestants.append(Contestant(LIMIT, ""))
            self._entries[LIMIT] = Entry(LIMIT)

    def run(self) -> Outcome:
        """Run all rounds and return the results."""
        rounds, others = range(self._settings.rounds), OtherLoad()
        if self._settings.fresh or self._row.workload.fresh:
            for number in rounds:
                with self._servers() as servers:
                    self._round(number, servers)
        else:
            with self._servers() as servers:
                for number in rounds:
                    self._round(number, servers)
        limit = self._entries.pop(LIMIT, None)
        return Outcome(self._row, list(self._entries.values()), limit, others.share())

    def _able(self) -> list[Contestant]:
        """The contestants that are installed and have not failed."""
        entries = self._entries
        return [
            c
            for c in self._contestants
            if not (entries[c.label].missing or entries[c.label].problem)
        ]

    def _command(self, contestant: Contestant) -> list[str]:
        certificate, load = self._settings.certificate, self._row.workload.load
        if contestant.label == LIMIT and load is not None:
            return self._settings.generator.sink_command(load, certificate)
        switches = contestant.switches
        if "--tls" in switches and certificate is not None:
            switches = (*switches, *certificate)
        return peer_command(contestant.peer, switches)

    @contextlib.contextmanager
    def _servers(self) -> Iterator[Servers]:
        """Start the servers of all contestants together, and end them all."""
        servers: Servers = {}
        try:
            if self._row.workload.needs_server:
                for contestant in self._able():
                    servers[contestant.label] = ServerProcess(
                        self._command(contestant), self._row.workload.server_cpu
                    )
            for label, server in servers.items():
                self._prepare(label, server)
            yield servers
        finally:
            for server in servers.values():
                server.end()

    def _prepare(self, label: str, server: ServerProcess) -> None:
        try:
            server.wait_listening()
            self._row.workload.prepare(self._settings, server)
        except (LoadFailed, ServerFailed, OSError) as error:
            self._give_up(label, error, server)

    def _round(self, number: int, servers: Servers) -> None:
        able = self._able()
        turn = number % len(able) if able else 0
        for contestant in able[turn:] + able[:turn]:
            entry, server = self._entries[contestant.label], servers.get(contestant.label)
            try:
                run = self._row.workload.run(self._settings, contestant, server)
                entry.runs.append(run)
            except (LoadFailed, ServerFailed, OSError) as error:
                self._give_up(contestant.label, error, server)

    def _give_up(self, label: str, error: Exception, server: ServerProcess | None) -> None:
        """Remove a contestant, and end its server, which may still be busy."""
        self._entries[label].problem = _reason(error, server)
        if server is not None:
            server.end()


def _reason(error: Exception, server: ServerProcess | None) -> str:
    """Describe a failure, with the last line of the server's output."""
    words = server.last_words() if server else ""
    return f"{error}; {words}" if words and words not in str(error) else str(error)
