"""A small Redis: strings and counters in memory, for clients that speak RESP 2."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable

import tao
from examples._shared import run
from examples.redis.resp import Reply, Resp, array, bulk, error, integer, ok

server = tao.Server(codec=Resp(), heartbeat=None)
store: dict[bytes, bytes] = {}
changing = threading.Lock()  # of a value that is read and written


def command(function: Callable[..., Reply]) -> Callable[..., Reply]:
    """Have a function of the same name, in lower case, answer a command."""
    name = function.__name__.strip("_").upper()
    signature = inspect.signature(function)

    def handle(ctx: tao.Context[list[bytes]], conn: tao.Connection) -> None:
        words = ctx.message[1:]
        try:
            signature.bind(*words)
        except TypeError:
            conn.write(error(f"wrong number of arguments for '{name.lower()}' command"))
        else:
            conn.write(function(*words))

    server.registry.register(name, list, handle)
    return function


@server.handler(tao.ANY)
def unknown(ctx: tao.Context[tao.UnknownMessage], conn: tao.Connection) -> None:
    conn.write(error(f"unknown command '{ctx.message.number!s}'"))


@command
def ping(text: bytes | None = None) -> Reply:
    return ok("PONG") if text is None else bulk(text)


@command
def echo(text: bytes) -> Reply:
    return bulk(text)


@command
def get(key: bytes) -> Reply:
    return bulk(store.get(key))


@command
def set_(key: bytes, value: bytes) -> Reply:
    store[key] = value
    return ok("OK")


@command
def del_(*keys: bytes) -> Reply:
    return integer(sum(store.pop(key, None) is not None for key in keys))


@command
def mget(*keys: bytes) -> Reply:
    return Reply(b"*%d\r\n%b" % (len(keys), b"".join(bulk(store.get(key)).data for key in keys)))


@command
def incrby(key: bytes, step: bytes) -> Reply:
    with changing:
        try:
            value = int(store.get(key, b"0")) + int(step)
        except ValueError:
            return error("value is not an integer or out of range")
        store[key] = b"%d" % value
    return integer(value)


@command
def incr(key: bytes) -> Reply:
    return incrby(key, b"1")


@command
def config(verb: bytes, name: bytes) -> Reply:
    return array([name, b""])


@command
def client(*words: bytes) -> Reply:
    return ok("OK")


if __name__ == "__main__":
    run(server, __doc__, 6380, "redis-cli -p {port}")
