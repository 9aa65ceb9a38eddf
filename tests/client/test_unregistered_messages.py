"""The warning about messages that a client skips because their number is not registered."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tao.client.client import ClientConn
from tao.wire.message import Registry
from tests.ends import Seen, Text, frame, text
from tests.programs import ROOT
from tests.support import PATIENCE

PROGRAM = """
import socket, tao

listener = socket.create_server(("127.0.0.1", 0))
client = tao.connect(listener.getsockname(), on_close=print)
sock, _ = listener.accept()
sock.sendall(bytes([7, 0, 0, 0, 0, 0, 0, 0]) + bytes([8, 0, 0, 0, 0, 0, 0, 0]))
sock.close()
client.wait_closed(10)
"""


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A listening socket to connect to."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.settimeout(PATIENCE)
        yield made


def warned(listener: socket.socket, *numbers: int, **options: Any) -> list[str]:
    """Return the warnings of a client with a handler for texts that receives these numbers."""
    registry, last = Registry(), Seen()
    registry.handler(Text)(lambda ctx, conn: last.add(1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        client = ClientConn(listener.getsockname(), registry=registry, **options)
        with client, listener.accept()[0] as sock:
            sock.sendall(b"".join(map(frame, numbers)) + text("the last"))
            last.wait()
    return [str(each.message) for each in caught if each.category is RuntimeWarning]


def test_a_program_that_does_not_log(tmp_path: Path) -> None:
    """The warning appears once on stderr, with the number and the line that created the client."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert ran.stderr.count("RuntimeWarning") == 1
    assert f"{script}:5: RuntimeWarning: a client made here" in ran.stderr
    assert "message number 7" in ran.stderr and "message number 8" not in ran.stderr


def test_it_is_issued_once(listener: socket.socket) -> None:
    """Only the first unknown number causes a warning; known numbers do not."""
    (said,) = warned(listener, 7, 8, 7, 9)
    assert "message number 7, which its registry does not know" in said
    assert warned(listener, 0) == []


def test_an_enabled_log_replaces_the_warning(listener: socket.socket, log_lines: list[Any]) -> None:
    """If the log is enabled, the message is logged instead."""
    assert warned(listener, 7) == []
    assert [line["level"].name for line in log_lines if "number 7" in line["message"]] == [
        "WARNING"
    ]


def test_on_message_silences_it(listener: socket.socket) -> None:
    """With ``on_message``, no warning is issued."""
    assert warned(listener, 7, on_message=lambda message, conn: None) == []


def test_warnings_that_are_errors(
    listener: socket.socket, recwarn: pytest.WarningsRecorder
) -> None:
    """If warnings are errors, they are printed, because no caller could catch them."""
    warnings.simplefilter("error")
    errors, handled = Seen(), Seen()
    registry = Registry()
    registry.handler(Text)(lambda ctx, conn: handled.add(1))
    client = ClientConn(
        listener.getsockname(), registry=registry, on_error=lambda conn, error: errors.add(error)
    )
    with client, listener.accept()[0] as sock:
        sock.sendall(frame(7) + text("next"))
        handled.wait()
        assert [each.category for each in recwarn] == [RuntimeWarning]
    assert errors.items == []
