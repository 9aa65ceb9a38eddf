"""``python -m tests.bench.cost``: where the time of one message goes, within one thread.

The parts of the way of an echo, each run alone on batches of 64 messages of 64 bytes (or of one),
with a transport that takes everything at once. So there are no system calls, no hand-over and no
waiting for the interpreter lock in these figures: they are what Python itself costs.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import tao
from tao.connection.application import Application, ApplicationLink
from tao.connection.handling.block_watch import BlockWatch
from tao.connection.handling.dispatcher import Dispatcher
from tao.connection.options.definitions import Settings
from tao.connection.sending.send_queue import SendQueue
from tao.runtime.context import RequestContext
from tao.transport.stream import Transport
from tests.bench.peers.tao_server import declared_tlv
from tests.bench.peers.wire import EchoMessage

BATCH, REPEAT, BEST_OF = 64, 1000, 9


class Taker(Transport):
    """A transport that accepts all data, and keeps nothing."""

    def __init__(self) -> None:
        self.answers: list[int] = []  # no socket is needed

    def send(self, data: bytes | memoryview) -> int:
        return len(data)


class Host:
    """What a dispatcher and a handler need of a connection."""

    def __init__(self, codec: tao.Codec, registry: tao.Registry, watch: BlockWatch) -> None:
        self.context = tao.background().with_cancel()
        self.codec = codec
        self.application = Application(self, Settings(codec=codec), registry)
        self.application.decoder = self.application.new_decoder()
        self.send_queue = SendQueue(1000, lambda: None)
        self.send_queue.attach(Taker(), bool)
        self.send_queue.open()
        link = ApplicationLink(self.application)
        self.dispatcher = Dispatcher(
            self, link, self.send_queue, watch, run=None, mode="auto", limit=256
        )

    def write(self, message: EchoMessage, timeout: float | None = None) -> None:
        self.send_queue.write(self.codec.encode(message), timeout)

    def start_handler(self) -> None:
        raise AssertionError("everything is quick here")

    def report(self, error: BaseException, doing: str) -> None:
        raise error

    def drained(self) -> None:
        raise AssertionError("nothing ends here")

    def undefined(self, number: int) -> None:
        raise AssertionError(number)


def best(function: Callable[[], object]) -> float:
    """Return the nanoseconds of one call, of the quickest of several series."""
    times = []
    for _ in range(BEST_OF):
        started = time.perf_counter()
        for _ in range(REPEAT):
            function()
        times.append(time.perf_counter() - started)
    return min(times) / REPEAT * 1e9


def main() -> None:
    """Measure and print."""
    registry, wheel = tao.Registry(), tao.TimingWheel()
    handler = registry.handler(EchoMessage, dispatch="inline")
    handler(lambda ctx, conn: conn.write(ctx.message))
    watch = BlockWatch(wheel)
    host = Host(tao.TypeLengthValueCodec(), registry, watch)
    other = Host(declared_tlv(), registry, watch)
    dispatcher, message = host.dispatcher, EchoMessage(b"x" * 64)
    frame = host.codec.encode(message)

    def decode(data: bytes, host: Host = host) -> tao.Batch:
        batch: tao.Batch = []
        host.application.decoder.feed(data, batch)
        return batch

    def collect() -> None:
        host.send_queue.collect()
        for _ in range(BATCH):
            host.send_queue.write(frame)
        host.send_queue.release()

    many, one = frame * BATCH, frame
    ready, single = decode(many), decode(one)
    rows = [
        ("decode and deserialize, of 64", lambda: decode(many), BATCH),
        ("make a context", lambda: RequestContext(host.context, message), 1),
        ("serialize and encode", lambda: host.codec.encode(message), 1),
        ("collect and send, of 64", collect, BATCH),
        ("dispatch, handle and reply, of 64", lambda: dispatcher.dispatch(ready), BATCH),
        ("all of it, of 64", lambda: dispatcher.dispatch(decode(many)), BATCH),
        ("... declared: decode", lambda: decode(many, other), BATCH),
        ("... declared: encode", lambda: other.codec.encode(message), 1),
        ("... declared: all of it", lambda: other.dispatcher.dispatch(decode(many, other)), BATCH),
        ("send one at once", lambda: host.send_queue.write(frame), 1),
        ("dispatch, handle and reply, alone", lambda: dispatcher.dispatch(single), 1),
        ("all of it, alone", lambda: dispatcher.dispatch(decode(one)), 1),
    ]
    for name, function, messages in rows:
        print(f"{name:36}{best(function) / messages:7.0f} ns a message")
    wheel.stop()


if __name__ == "__main__":
    main()
