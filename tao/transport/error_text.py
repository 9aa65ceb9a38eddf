"""What an error of a socket or of TLS means, in a few words for a person."""

from __future__ import annotations

import errno
import os
import socket
import ssl

from tao.safe_text import FORMATTING_ERRORS

__all__ = ["NOT_TLS_REASONS", "explain"]

#: OpenSSL's reasons for bytes that are not TLS at all.
NOT_TLS_REASONS = frozenset(
    ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG",
     "RECORD_LAYER_FAILURE", "UNEXPECTED_MESSAGE", "BAD_RECORD_TYPE", "HTTPS_PROXY_REQUEST")
)  # fmt: skip


def explain(error: BaseException) -> str:
    """Describe an error in a few words. Never raises."""
    try:
        return _explanation(error)
    except FORMATTING_ERRORS:  # the class is the application's own, or its arguments are unusual
        return type(error).__name__


def _explanation(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the peer's certificate is refused: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        if error.reason in NOT_TLS_REASONS:
            return f"the peer does not speak TLS ({error.reason})"
        return str(error.reason or error).lower().replace("_", " ")
    if isinstance(error, socket.gaierror):
        return f"the name cannot be resolved ({error.strerror})"
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno == errno.ECONNRESET:
            return "connection reset by peer"
        if error.errno in (errno.EPIPE, errno.ESHUTDOWN):
            return "peer closed"
        return os.strerror(error.errno).lower()
    return str(error) or type(error).__name__
