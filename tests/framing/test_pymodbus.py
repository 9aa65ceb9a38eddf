"""The Modbus example with the server and the client of pymodbus."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import tao
from examples.modbus.messages import PROTOCOL, ReadRegisters, register_replies
from tests.programs import Program
from tests.support import PATIENCE

pytest.importorskip("pymodbus")

from pymodbus.client import ModbusTcpClient
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice


@pytest.fixture
def port() -> Iterator[int]:
    """The port at which pymodbus serves the registers 0, 1, 2 ... 99 of unit 1."""
    ports: queue.SimpleQueue[int] = queue.SimpleQueue()
    loop, stop = asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        values: Any = list(range(100))
        device = SimDevice(1, [SimData(0, values=values, datatype=DataType.REGISTERS)])
        server = ModbusTcpServer(device, address=("127.0.0.1", 0))
        await server.serve_forever(background=True)
        ports.put(server.transport.sockets[0].getsockname()[1])
        await stop.wait()
        await server.shutdown()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), name="test-pymodbus")
    thread.start()
    yield ports.get(timeout=PATIENCE)
    loop.call_soon_threadsafe(stop.set)
    thread.join(PATIENCE)
    loop.close()


def test_their_client_and_our_server() -> None:
    """Its client reads and writes registers, and gets an exception for what is refused."""
    with Program("examples.modbus.server", "--port", 0) as program:
        client = ModbusTcpClient("127.0.0.1", port=int(program.prints(r"port (\d+);")[1]))
        assert client.connect()
        assert client.write_register(4, 77, device_id=9).registers == [77]
        assert client.read_holding_registers(3, count=3, device_id=9).registers == [0, 77, 0]
        assert client.read_holding_registers(98, count=3).exception_code == 2
        assert client.read_coils(0, count=1).exception_code == 1
        client.close()


def test_our_client_and_their_server(port: int) -> None:
    """The example's client sets a register and prints all of them."""
    words = ("examples.modbus.client", "--port", port, "--first", 5, "--count", 3)
    with Program(*words) as client:
        assert client.status() == 0
        assert client.output == ["5 6 7"]
    with Program(*words, "--set", 700) as client:
        assert client.status() == 0
        assert client.output == ["700 6 7"]


def ask(port: int, window: int) -> None:
    """Read 90 registers one by one, with at most ``window`` requests in flight."""
    client = tao.ClientConn(
        ("127.0.0.1", port), codec=PROTOCOL, registry=tao.Registry(), max_in_flight=window
    )
    register_replies(client.registry)
    with client:
        futures = [
            client.request_async(ReadRegisters(first, 1), PATIENCE, header={"unit": 1})
            for first in range(90)
        ]
        assert [each.result(PATIENCE).values for each in futures] == [[n] for n in range(90)]


def test_one_request_at_a_time(port: int) -> None:
    """pymodbus handles one at a time; each reply reaches its request."""
    ask(port, window=1)


def test_many_requests_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    """tao's server answers many at a time; each reply reaches its request."""
    from examples.modbus import server as example

    monkeypatch.setattr(example, "registers", list(range(100)))
    server = tao.Server(codec=PROTOCOL, registry=example.server.registry)
    with server:
        ask(server.start(("127.0.0.1", 0))[1], window=50)
