"""The types of the keyword arguments by which options are given, for type checkers and editors.

The lines in the classes are generated from ``definitions.py`` by ``python -m tests.typed_options``;
`ServerOptions` and `ClientOptions` are beside the classes whose connections their callbacks get.
"""

from __future__ import annotations

import ssl
from collections.abc import Collection
from typing import Literal, TypedDict

from tao.connection.correlation import Correlate, InOrder
from tao.connection.options.definitions import OverRate, Readers, SlowConsumer
from tao.wire.codec import Codec
from tao.wire.message import Dispatch, Registry

__all__ = ["CommonOptions"]


class CommonOptions(TypedDict, total=False):
    """The options that servers and clients share, but for the callbacks."""

    codec: Codec
    registry: Registry | None
    tls: ssl.SSLContext | None
    queue_size: int
    queue_bytes: int | None
    slow_consumer: SlowConsumer
    message_rate: float | None
    message_burst: int | None
    byte_rate: float | None
    byte_burst: int | None
    over_rate: OverRate
    frame_timeout: float | None
    write_timeout: float | None
    reply_timeout: float
    correlation: InOrder | Correlate | None
    max_in_flight: int | None
    half_close: bool
    half_close_timeout: float
    heartbeat: float | None
    idle_timeout: float | None
    handshake_timeout: float
    drain_timeout: float
    dispatch: Dispatch
    readers: Readers
    reader_threads: int | None
    handler_warn_after: float | None
    cpu_affinity: Literal["auto"] | int | Collection[int] | None
