"""Bytes and messages: no I/O, no threads, no clock.

Read ``message.py`` first: messages and the registry that maps their numbers (``numbers.py``) to
entries (``registration.py``; ``reloading.py`` tells a reloaded module from conflicting
declarations). ``middleware.py`` has functions around every handler, and ``arrival.py`` the other
fields of the frame that a message came in. ``struct_message.py`` has messages that are declared by
annotations: ``struct_kinds.py`` reads these, and ``struct_compiler.py`` compiles them to functions.
``codec.py`` turns messages into frames and back, ``codec_checks.py`` checks user-defined codecs.
``envelope.py`` is how requests and replies travel between two tao peers, and ``capabilities.py``
how these find each other. ``proxy_protocol.py`` parses the headers that load balancers send.
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
