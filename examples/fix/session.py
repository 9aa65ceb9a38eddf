"""A FIX session: sequence numbers, and what was missed is sent again. It outlives connections."""

from __future__ import annotations

import threading
from datetime import datetime, timezone

import tao
from examples.fix.messages import ADMINISTRATIVE, HEARTBEAT, LOGON, LOGOUT, RESEND, RESET, TEST, Fix


class Session:
    """The numbers and the sent messages of one side. Its methods may be called by any thread."""

    def __init__(self, us: str, them: str) -> None:
        self._names: dict[int, object] = {49: us, 56: them}
        self._lock = threading.Lock()  # guards the fields below, and the order of writing
        self._sent: list[Fix] = []  # the number of the first is 1
        self._expected: int = 1
        self._asked: int = 0  # from which number on was asked for, on this connection

    @property
    def is_new(self) -> bool:
        return not self._sent

    def send(self, conn: tao.Connection, kind: str, fields: dict[int, object]) -> None:
        """Send a message; if the connection is lost, it is sent again when the peer asks for it."""
        with self._lock:
            now = f"{datetime.now(timezone.utc):%Y%m%d-%H:%M:%S}"
            self._sent.append(
                Fix(kind, {**self._names, 34: len(self._sent) + 1, 52: now, **fields})
            )
            self._write(conn, self._sent[-1])

    def receive(self, conn: tao.Connection, message: Fix) -> bool:
        """Do what the session has to; return whether the message is for the application."""
        kind, fields, number = message.message_number, message.fields, int(message.fields[34])
        with self._lock:
            expected = self._expected
            if kind == LOGON:
                self._asked = 0  # on another connection
            ask = number > expected != self._asked
            if ask:
                self._asked = expected
            elif number == expected:
                self._expected = int(fields[36]) if kind == RESET else number + 1
        if number < expected:
            if fields.get(43) != "Y":
                conn.close()  # the two sides disagree on what was sent
            return False
        if kind == RESEND:
            self._resend(conn, int(fields[7]))
        if number > expected:
            if ask:
                self.send(conn, RESEND, {7: expected, 16: 0})
            return False
        if kind == LOGOUT:
            conn.close()
        elif kind == TEST:
            self.send(conn, HEARTBEAT, {112: fields[112]})
        return kind not in ADMINISTRATIVE

    def _resend(self, conn: tao.Connection, first: int) -> None:
        """Send again what the application has sent, and skip the rest."""
        with self._lock:
            for number, message in enumerate(self._sent[first - 1 :], first):
                again: dict[int, object] = {**message.fields, 43: "Y"}
                if message.message_number in ADMINISTRATIVE:
                    again = {**self._names, 34: number, 43: "Y", 123: "Y", 36: number + 1}
                    message = Fix(RESET, {})
                self._write(conn, Fix(message.message_number, again))

    def _write(self, conn: tao.Connection, message: Fix) -> None:
        try:
            conn.write(message, timeout=10)
        except tao.ConnectionClosed:
            pass  # the peer will miss it, and ask
