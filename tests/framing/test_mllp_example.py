"""The MLLP example with the client of the package hl7."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.programs import Program
from tests.support import PATIENCE, recv_exactly

hl7: Any = pytest.importorskip("hl7")

from hl7.client import MLLPClient  # noqa: E402

ADMISSION = (
    "MSH|^~\\&|ward|hospital|tao|here|20260101||ADT^A01|{}|P|2.5\r"
    "PID|1||{}^^^H||Doe^J\u00e9r\u00f4me\r"
)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The port of the running example."""
    with Program("examples.mllp.server", "--port", 0) as server:
        yield int(server.prints(r"listening at 127\.0\.0\.1 port (\d+)")[1])
        assert server.interrupt() == 0


def test_messages_are_acknowledged(port: int) -> None:
    """Each is acknowledged by its control id: accepted, in error or rejected."""
    with MLLPClient("127.0.0.1", port) as client:
        for text, code in (
            (ADMISSION.format("id-1", 42), "AA"),
            (ADMISSION.format("id-2", 43).partition("PID")[0], "AE"),
            (ADMISSION.format("id-3", 44).replace("ADT^A01", "ORM^O01"), "AR"),
        ):
            answer = hl7.parse(client.send_message(text))
            assert (str(answer["MSA.F1"]), answer["MSA.F2"]) == (code, hl7.parse(text)["MSH.F10"])
            assert answer["MSH.F5"] == "ward"


def test_messages_in_a_row(port: int) -> None:
    """They are answered in order, however the bytes are cut."""
    stream = b"".join(b"\x0b%b\x1c\r" % ADMISSION.format(f"id-{n}", n).encode() for n in range(20))
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
        for at in range(0, len(stream), 97):
            sock.sendall(stream[at : at + 97])
        for number in range(20):
            answer = b""
            while not answer.endswith(b"\x1c\r"):
                answer += recv_exactly(sock, 1)
            assert b"MSA|AA|id-%d\r" % number in answer


@pytest.mark.parametrize("data", [b"\x0bhello\x1c\r", b"\x0bMSH\xff\x1c\r", b"MSH|", b"\x0bMSH|"])
def test_what_is_no_message(port: int, data: bytes) -> None:
    """The connection is closed."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(100) == b""
