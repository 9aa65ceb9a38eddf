"""Byte streams: sockets, TLS on top of them, and the addresses they have.

In order: ``addresses.py``, ``unix_sockets.py``, ``stream.py`` with plain and TLS streams behind the
same few methods, and ``certificates.py``, which makes TLS contexts and certificates for tests.
"""

from tao.transport.certificates import (
    Certificate,
    DevelopmentCA,
    load_client_tls_config,
    load_tls_config,
    self_signed_certificate,
)
from tao.transport.stream import TlsTransport, Transport

__all__ = [
    "Certificate",
    "DevelopmentCA",
    "TlsTransport",
    "Transport",
    "load_client_tls_config",
    "load_tls_config",
    "self_signed_certificate",
]
