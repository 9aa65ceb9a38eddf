"""Byte streams: sockets, TLS on top of them, and the addresses they have.

In order: ``addresses.py`` and ``unix_sockets.py``; ``nonblocking.py``, the socket calls, and
``error_text.py``, what their errors mean; ``stream.py`` and ``tls_stream.py``, plain and TLS
streams with the same few methods; ``certificates.py``, which makes TLS contexts, and certificates
for tests; ``tls_credentials.py``, the TLS context of a listening address, which can be replaced;
``poller.py``, which waits for many sockets at once.
"""

from tao.transport.certificates import (
    Certificate,
    DevelopmentCA,
    load_client_tls_config,
    load_tls_config,
    self_signed_certificate,
)
from tao.transport.stream import Transport
from tao.transport.tls_stream import TlsTransport

__all__ = [
    "Certificate",
    "DevelopmentCA",
    "TlsTransport",
    "Transport",
    "load_client_tls_config",
    "load_tls_config",
    "self_signed_certificate",
]
