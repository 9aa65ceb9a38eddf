"""A program with threads and a queue of its own, which also takes orders over TCP."""

from __future__ import annotations

import logging
import math
import queue
import signal
import threading
from concurrent.futures import Future
from contextlib import suppress

import tao
from examples._shared import announce, arguments, plain_end
from examples.embedded.messages import Notice, Order

log = logging.getLogger("workshop")
orders: queue.Queue[tuple[Order, Future[int]] | None] = queue.Queue(100)
closing_time: queue.SimpleQueue[int] = queue.SimpleQueue()  # safe in a signal handler; no Event is

# -- the existing program


def work() -> None:
    """Run in each worker thread: take an order, do it, announce it."""
    while (entry := orders.get()) is not None:
        order, result = entry
        result.set_result(math.gcd(order.first, order.second))
        notice = Notice(f"{threading.current_thread().name} did {order}")
        for conn, _ in server.broadcast(notice).failed:  # new; any thread may do so
            conn.abort()  # it does not keep up, and would miss this message


# -- the server

server = tao.Server()


@server.handler(Order)
def take(ctx: tao.Context[Order], conn: tao.Connection) -> None:
    """Queue an order and wait for the result; only this connection waits."""
    result: Future[int] = Future()
    orders.put((ctx.message, result))
    conn.write(Notice(f"the result is {result.result()}"))


def main() -> None:
    options = arguments(__doc__, port=12345).parse_args()
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    tao.log_to_stdlib()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda caught, _: closing_time.put(caught))
    workers = [threading.Thread(target=work, name=f"worker {name}") for name in "AB"]

    address = server.start((options.host, options.port))  # returns at once
    for worker in workers:
        worker.start()
    announce("examples.embedded.client")(address)
    caught = None
    while caught is None:
        log.debug("%d clients, %d orders wait", server.connection_count, orders.qsize())
        with suppress(queue.Empty):
            caught = closing_time.get(timeout=1)

    server.stop()  # while the workers still run, so that every order is completed
    for _ in workers:
        orders.put(None)
    for worker in workers:
        worker.join()
    log.info("closed")


if __name__ == "__main__":
    with plain_end():
        main()
