"""``tao bench``: counting and timing without a socket, and the load on real servers."""

from __future__ import annotations

import itertools
import json
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as some

import tao
from tao.cli.load import Histogram, ReplyCounter
from tao.cli.main import main
from tests.ends import MakeServer
from tests.programs import LONG, Program
from tests.support import wait_until
from tests.tls_pairs import SERVER

FRAME = struct.pack("<iI", 1, 5) + b"hello"
HEARTBEAT = struct.pack("<iIq", 0, 8, 0)


def counter(frame: bytes = FRAME) -> ReplyCounter:
    return ReplyCounter(frame, ReplyCounter.pattern_of(frame))


def fed(counter: ReplyCounter, data: bytes, cuts: list[int]) -> int:
    """Feed a stream in pieces that end at the cuts, and return the count."""
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return sum(
        counter.feed(memoryview(data)[begin:end])
        for begin, end in itertools.pairwise(places)
        if begin < end
    )


others = some.builds(
    lambda number, value: struct.pack("<iI", number, len(value)) + value,
    some.integers(1, 3),
    some.binary(max_size=20),
)


@given(
    some.lists(some.one_of(some.just(FRAME), some.just(HEARTBEAT), others), max_size=20),
    some.lists(some.integers(0, 1000), max_size=20),
)
def test_replies_are_counted(frames: list[bytes], cuts: list[int]) -> None:
    """However the stream is cut, each message counts once, and heartbeats do not count."""
    wanted = sum(frame != HEARTBEAT for frame in frames)
    assert fed(counter(), b"".join(frames), cuts) == wanted


def test_heartbeats_as_the_measured_message() -> None:
    """Heartbeats are counted if they are the measured message."""
    assert fed(counter(HEARTBEAT), HEARTBEAT * 3 + FRAME, [5]) == 4


@given(some.lists(some.floats(0, 1e5), min_size=1))
def test_percentiles(durations: list[float]) -> None:
    """Each percentile is accurate to 1/32 and not above the longest duration, which is exact."""
    histogram = Histogram()
    for duration in durations:
        histogram.add(duration, 1)
    ordered = sorted(durations)
    for share in (0.01, 0.5, 0.99, 1.0):
        exact = ordered[max(0, -int(-share * len(ordered) // 1) - 1)]
        found = histogram.percentile(share)
        assert exact - 1e-9 <= found <= exact * (1 + 1 / 32) + 2e-9 or found == ordered[-1]
    assert histogram.longest == ordered[-1]
    assert sum(count for _, count in histogram.bars()) == histogram.count == len(durations)


def test_an_empty_histogram() -> None:
    """Without durations, percentiles are 0, and there are no bars."""
    assert Histogram().percentile(0.5) == 0 and Histogram().bars() == []


# -- with real servers


class Text:
    message_number = 1

    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data

    @classmethod
    def deserialize(cls, data: bytes) -> Text:
        return cls(data)


Handler = Callable[[tao.Context, tao.Connection], object]


@pytest.fixture
def serve(make_server: MakeServer) -> Callable[..., str]:
    """A function that starts a server, by default an echo, and returns its address."""

    def serve(handler: Handler | None = None, **options: object) -> str:
        registry = tao.Registry()
        registry.handler(Text)(handler or (lambda ctx, conn: conn.write(ctx.message)))
        _, address = make_server(registry=registry, queue_size=4096, **options)
        return f"127.0.0.1:{address[1]}"

    return serve


Serve = Callable[..., str]


@pytest.mark.parametrize(
    "options", ["", "--window 1 --connections 1", "--size 0", "--size 300000 --duration 1"]
)
def test_the_figures(serve: Serve, capsys: pytest.CaptureFixture[str], options: str) -> None:
    """The output is one JSON object with consistent figures, and nothing else."""
    address = serve()
    arguments = ["--duration", "0.1", "--connections", "3", "--window", "4", *options.split()]
    assert main(["bench", address, "--json", *arguments]) == 0
    output, errors = capsys.readouterr()
    result = json.loads(output)
    assert errors == "" and result["address"] == address and result["tls"] is None
    assert result["messages"] > 0
    rate = result["messages"] / result["seconds"]
    assert result["messages_per_second"] == pytest.approx(rate)
    times = result["latency_ms"]
    assert 0 < times["p50"] <= times["p90"] <= times["p99"] <= times["p99.9"] <= times["max"]
    assert sum(count for _, count in result["histogram_ms"]) == result["messages"]


def test_the_report(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """The report has rates, latencies and a histogram, and no progress lines."""
    assert main(["bench", serve(), "--duration", "0.1", "--connections", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "(no TLS): 2 connections, window 16, 64 bytes, 0.1 s" in lines[0]
    assert [line.split()[0] for line in lines[1:5]] == ["replies", "bytes", "latency", "load"]
    assert any(line.startswith("  up to ") and "#" in line for line in lines)


def test_progress(serve: Serve) -> None:
    """Without a terminal, progress is a line per second on stderr; Ctrl-C ends it quietly."""
    with Program("tao", "bench", serve(), "--duration", 3600) as program:
        wait_until(lambda: program.errors, LONG)
        program.send(signal.SIGINT)
        assert program.status() == 130
    assert all(line.endswith(" replies per second") for line in program.errors)
    assert program.output == []


def test_tls(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """The load works over TLS, with messages smaller and larger than a TLS record."""
    address = serve(tls=SERVER)
    for size in (10, 40000):
        options = ["--tls", "--insecure", "--json", "--duration", "0.5", "--size", str(size)]
        assert main(["bench", address, *options]) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["tls"] == "TLSv1.3" and result["messages"] > 0


def test_other_answers(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """A reply may differ from the message that was sent."""
    address = serve(lambda ctx, conn: conn.write(Text(ctx.message.data * 2 + b".")))
    assert main(["bench", address, "--duration", "0.05", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["messages"] > 0


def test_a_unix_socket(
    make_server: MakeServer, tmp_path: object, capsys: pytest.CaptureFixture[str]
) -> None:
    """The address may be the path of a Unix socket."""
    registry = tao.Registry()
    registry.handler(Text)(lambda ctx, conn: conn.write(ctx.message))
    make_server(f"{tmp_path}/bench.sock", registry=registry, queue_size=4096)
    assert main(["bench", f"{tmp_path}/bench.sock", "--duration", "0.05", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["messages"] > 0


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the error of a call that must fail."""
    assert main(["bench", *arguments]) == 1
    output, errors = capsys.readouterr()
    assert output == "" and errors.startswith("tao: ") and errors.count("\n") == 1
    return errors


def test_an_absent_server(capsys: pytest.CaptureFixture[str]) -> None:
    """A server that is not running, or has an invalid path, is reported in one line."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    where = f"127.0.0.1:{port}"
    assert complaint(capsys, where) == f"tao: cannot connect to {where}: connection refused\n"
    assert "cannot connect to ./none: no such file" in complaint(capsys, "./none")


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        (lambda ctx, conn: None, "no reply within 0.05 s; does the server answer that message?"),
        (lambda ctx, conn: conn.close(), "peer closed"),
    ],
)
def test_no_echo(
    serve: Serve,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    handler: Handler,
    words: str,
) -> None:
    """A server that does not echo is detected with the first message."""
    if "reply" in words:
        monkeypatch.setattr("tao.cli.load._STALLED", 0.05)
    assert words in complaint(capsys, serve(handler))


def test_heartbeats_are_no_replies(
    serve: Serve, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that sends only heartbeats is not waited for."""
    monkeypatch.setattr("tao.cli.load._STALLED", 0.2)
    address = serve(lambda ctx, conn: None, heartbeat=0.02)
    assert "no reply within 0.2 s" in complaint(capsys, address)


def test_a_connection_that_is_lost_before_the_others_are_there(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The loss of a connection while others are being opened is reported in one line."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            for _ in range(2):
                sock, _ = listener.accept()
                with sock:
                    sock.sendall(sock.recv(100))
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        thread = threading.Thread(target=answer, name="test-answer")
        thread.start()
        where = f"127.0.0.1:{listener.getsockname()[1]}"
        assert "connection lost: " in complaint(capsys, where, "--connections", "2", "--size", "8")
        thread.join()


def test_tls_that_is_not_trusted(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """The certificate of an unknown authority is refused."""
    words = complaint(capsys, serve(tls=SERVER), "--tls")
    assert "the peer's certificate is refused" in words


class Fickle:
    """An echo for some messages, then something else."""

    def __init__(self, after: int, then: Handler) -> None:
        self._left = after
        self._then = then
        self._lock = threading.Lock()  # guards _left

    def __call__(self, ctx: tao.Context, conn: tao.Connection) -> None:
        with self._lock:
            self._left -= 1
            left = self._left
        if left < 0:
            self._then(ctx, conn)
        else:
            conn.write(ctx.message)


def twice(ctx: tao.Context, conn: tao.Connection) -> None:
    conn.write(ctx.message)
    conn.write(ctx.message)


@pytest.mark.parametrize(
    ("then", "words"),
    [
        (lambda ctx, conn: None, "no reply for 0.2 s, after 99"),
        (lambda ctx, conn: conn.close(), "connection lost: "),
        (twice, "more than one reply to a message; this is not an echo server"),
    ],
)
def test_a_server_that_changes_its_mind(
    serve: Serve,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    then: Handler,
    words: str,
) -> None:
    """An error under load is reported, and ends the measurement."""
    monkeypatch.setattr("tao.cli.load._STALLED", 0.2 if "0.2" in words else LONG)
    address = serve(Fickle(100, then))
    options = ("--connections", "1", "--window", "2", "--duration", str(LONG))
    assert words in complaint(capsys, address, *options)


@contextmanager
def descriptors(most: int) -> Iterator[None]:
    """Limit the number of descriptors of this process."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_too_many_connections(capsys: pytest.CaptureFixture[str]) -> None:
    """A lack of descriptors is reported."""
    with socket.create_server(("127.0.0.1", 0)) as listener, descriptors(listener.fileno() + 2):
        words = complaint(capsys, f":{listener.getsockname()[1]}")
    assert "too many open files" in words
