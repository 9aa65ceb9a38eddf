"""Bytes and messages: no I/O, no threads, no clock.

In order: ``message.py`` has messages and the registry that knows them by number (``reloading.py``
tells a module that is executed again from a contradiction), ``codec.py`` makes frames of messages
and messages of frames, ``codec_checks.py`` checks codecs of users, and ``proxy_protocol.py`` reads
the headers of load balancers.
"""

from tao.wire.codec import Batch, Codec, Decoder, TypeLengthValueCodec
from tao.wire.message import (
    HEARTBEAT,
    HeartbeatMessage,
    Message,
    Registry,
    default_registry,
    register,
    unregister,
)

__all__ = [
    "HEARTBEAT",
    "Batch",
    "Codec",
    "Decoder",
    "HeartbeatMessage",
    "Message",
    "Registry",
    "TypeLengthValueCodec",
    "default_registry",
    "register",
    "unregister",
]
