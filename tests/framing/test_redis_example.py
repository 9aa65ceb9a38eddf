"""The Redis example with redis-py and with the tools of Redis."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from examples.redis.resp import Resp
from tests.framing.streams import check_cuts, decoded, in_pieces, outcome, registry_of
from tests.programs import LONG, Program

redis: Any = pytest.importorskip("redis")

NAMES = registry_of("SET", "PING")
SET = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$4\r\n\r\n\r\n\r\n"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The port of the running example."""
    with Program("examples.redis.server", "--port", 0) as server:
        yield int(server.prints(r"listening at 127\.0\.0\.1 port (\d+)")[1])
        assert server.interrupt() == 0


@pytest.fixture
def client(port: int) -> Iterator[Any]:
    with redis.Redis(port=port, protocol=2, socket_timeout=LONG) as made:
        yield made


def test_cuts_do_not_matter() -> None:
    """Commands are decoded, as arrays and as lines, wherever the stream is cut."""
    stream = SET + b"ping\r\n" + b"\r\n" + b"*0\r\n" + SET
    command = ("SET", [b"SET", b"k", b"\r\n\r\n"])
    check_cuts(lambda: Resp().decoder(NAMES), stream, [command, ("PING", [b"ping"]), command])


def test_many_words_take_linear_time() -> None:
    """The words of an incomplete command are not parsed again when more of it arrives."""
    words = [b"word"] * 200_000
    stream = b"*%d\r\n" % len(words) + b"$4\r\nword\r\n" * len(words)
    decoder, finds = Resp().decoder(registry_of("WORD")), list[None]()
    find = decoder.find
    decoder.find = lambda *args: finds.append(None) or find(*args)  # type: ignore[method-assign]
    assert decoded(decoder, *in_pieces(stream, 1024)) == [("WORD", words)]
    assert len(finds) < 1.1 * len(words)


@pytest.mark.parametrize("data", [b"*x\r\n", b"*1\r\n:1\r\n", b"*1\r\n$-1\r\n", b"*-1\r\n"])
def test_garbage(data: bytes) -> None:
    """It closes the connection, with a reason that says what was expected."""
    assert outcome(Resp().decoder(NAMES), [SET, data])[1].startswith("expected ")


def test_commands(client: Any) -> None:
    """Values of any bytes, counters, several keys and errors work, in order."""
    assert client.ping() and client.echo("\r\n") == b"\r\n"
    assert client.set("a", b"\0\r\n") and client.get("a") == b"\0\r\n"
    assert [client.incr("n"), client.incr("n", 5)] == [1, 6]
    assert client.mget("n", "nothing") == [b"6", None]
    assert client.delete("a", "n", "nothing") == 2
    for wrong, text in (
        (lambda: client.lpush("a", 1), "unknown command 'LPUSH'"),
        (lambda: client.execute_command("GET"), "wrong number of arguments for 'get' command"),
        (lambda: client.incr("text") if client.set("text", "x") else None, "not an integer"),
    ):
        with pytest.raises(redis.ResponseError, match=text):
            wrong()


def test_pipelines(client: Any) -> None:
    """2 000 commands at once are answered in order."""
    with client.pipeline(transaction=False) as pipe:
        for number in range(1000):
            pipe.set(f"key {number}", number)
            pipe.get(f"key {number}")
        answers = pipe.execute()
    assert answers == [each for number in range(1000) for each in (True, b"%d" % number)]
    large = bytes(range(256)) * 4096
    assert client.set("large", large) and client.get("large") == large


@pytest.mark.skipif(not shutil.which("redis-benchmark"), reason="redis-tools are not installed")
def test_redis_benchmark(port: int) -> None:
    """It completes with four connections and pipelines of 2 000."""
    done = subprocess.run(
        ["redis-benchmark", "-p", str(port), "-t", "ping,set,get,incr", "-n", "8000", "-c", "4",
         "-P", "2000", "--csv"],
        capture_output=True, text=True, timeout=LONG, check=True,
    )  # fmt: skip
    rates = [line.split(",") for line in done.stdout.splitlines()[1:]]
    assert [name for name, *_ in rates] == [
        f'"{each}"' for each in ("PING_INLINE", "PING_MBULK", "SET", "GET", "INCR")
    ]
