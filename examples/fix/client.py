"""A FIX initiator: sends orders and prints which are filled; it logs on again when it has to."""

from __future__ import annotations

import queue
import time

import tao
from examples._shared import arguments, plain_end
from examples.fix.messages import HEARTBEAT, LOGON, LOGOUT, ORDER, PROTOCOL, Fix, register
from examples.fix.session import Session


class Initiator:
    """Orders on their way to the acceptor, over one connection after another."""

    def __init__(self, name: str, count: int) -> None:
        self.session = Session(name, "BROKER")
        self.orders = iter(range(1, count + 1))
        self.events: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.registry = tao.Registry()
        register(self.registry, self.receive)

    def connect(self, address: tuple[str, int]) -> tao.ClientConn:
        """Return a connection on which the Logon is sent first."""

        def log_on(conn: tao.Connection) -> bool:
            reset = "Y" if self.session.is_new else "N"
            self.session.send(conn, LOGON, {98: 0, 108: 30, 141: reset})
            conn.run_every(30, lambda due, conn: self.session.send(conn, HEARTBEAT, {}))
            return True

        client = tao.ClientConn(
            address,
            codec=PROTOCOL,
            registry=self.registry,
            queue_size=10_000,
            on_connect=log_on,
            on_close=lambda conn: self.events.put("lost"),
        )
        client.start()
        return client

    def receive(self, ctx: tao.Context[Fix], conn: tao.Connection) -> None:
        if ctx.message.message_number == LOGON:
            print("logged on", flush=True)
            self.events.put("logged on")
        if self.session.receive(conn, ctx.message):
            print(f"{ctx.message.fields[11]} is filled", flush=True)
            self.events.put("filled")

    def send_orders(self, conn: tao.Connection, pause: float) -> None:
        for number in self.orders:
            order = {11: f"order-{number}", 55: "TAO", 54: 1, 38: 100, 40: 1}
            self.session.send(conn, ORDER, order)
            if pause:
                time.sleep(pause)
            if conn.closed:
                break  # what is lost is sent again at the next Logon


def main() -> None:
    parser = arguments(__doc__, port=9878)
    parser.add_argument("--name", default="CLIENT", help="SenderCompID (%(default)s)")
    parser.add_argument("--count", type=int, default=5, help="number of orders (%(default)s)")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between orders")
    options = parser.parse_args()
    initiator, missing = Initiator(options.name, options.count), options.count
    client = initiator.connect((options.host, options.port))
    while missing:
        event = initiator.events.get()
        if event == "logged on":
            initiator.send_orders(client, options.pause)
        elif event == "lost":
            client = initiator.connect((options.host, options.port))
        else:
            missing -= 1
    initiator.session.send(client, LOGOUT, {})
    client.close()


if __name__ == "__main__":
    with plain_end():
        main()
