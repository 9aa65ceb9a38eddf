"""The texts of socket and TLS errors."""

from __future__ import annotations

import errno
import socket
import ssl

import pytest

from tao.transport.error_text import explain


def test_explain() -> None:
    """Each kind of error is described in a few plain words."""
    ssl_error = ssl.SSLError(1, "[SSL] something (_ssl.c:1)")
    ssl_error.reason = "HTTP_REQUEST"
    assert explain(ssl_error) == "the peer does not speak TLS (HTTP_REQUEST)"
    ssl_error.reason = "TLSV1_ALERT_UNKNOWN_CA"
    assert explain(ssl_error) == "tlsv1 alert unknown ca"
    refused = ssl.SSLCertVerificationError(1, "x")
    refused.verify_message = "certificate has expired"
    assert explain(refused) == "the peer's certificate is refused: certificate has expired"
    name = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    assert explain(name) == "the name cannot be resolved (Name or service not known)"
    assert explain(OSError(errno.ECONNRESET, "")) == "connection reset by peer"
    assert explain(OSError(errno.EPIPE, "")) == "peer closed"
    assert explain(OSError(errno.ECONNREFUSED, "")) == "connection refused"
    assert explain(TimeoutError("too slow")) == "too slow"
    assert explain(TimeoutError()) == "TimeoutError"


@pytest.mark.parametrize("raised", [ValueError, SystemExit, GeneratorExit])
@pytest.mark.parametrize("base", [OSError, ValueError])
def test_an_error_without_a_text(base: type[Exception], raised: type[BaseException]) -> None:
    """Its class tells enough, whatever its text raises."""

    class Unspeakable(base):  # type: ignore[valid-type,misc]
        def __str__(self) -> str:
            raise raised

    assert explain(Unspeakable()) == "Unspeakable"
